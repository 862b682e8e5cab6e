"""What the exercises of theme 2 are checked on."""

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from exercises import Build, Implement, Mistake, Predict, number

RATE, START = 0.5, np.array([[1.0, -1.0, 0.5], [-0.5, 0.2, 2.0]])
RNG = np.random.default_rng(2)
IMAGES, LABELS = (
    RNG.normal(size=(2, 12, 3)).astype(np.float32),
    RNG.integers(0, 2, (2, 12)),
)


def _map_side(side, kernel, stride, padding) -> int:
    """Asked of PyTorch itself."""
    picture, weights = torch.zeros(1, 1, side, side), torch.zeros(1, 1, kernel, kernel)
    return nn.functional.conv2d(picture, weights, stride=stride, padding=padding).shape[
        -1
    ]


def step(model, images, labels, optimizer) -> float:
    """The course's own step, which later cells use until yours is right."""
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def _class_weights(labels, classes) -> np.ndarray:
    return compute_class_weight("balanced", classes=np.arange(classes), y=labels)


def _counts(labels, classes) -> np.ndarray:
    return np.bincount(labels, minlength=classes)


def _new_network() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A linear network with the weights START; nothing is drawn."""
    model = nn.utils.skip_init(nn.Linear, 3, 2, bias=False)
    nn.init.zeros_(model.weight).data += torch.from_numpy(START).float()
    return model, torch.optim.SGD(model.parameters(), lr=RATE)


def _steps(step, count=2) -> tuple[list[float], list[np.ndarray]]:
    """The loss that each of a few steps returns, and the weights after it."""
    (model, optimizer), losses, weights = _new_network(), [], []
    for images, labels in zip(IMAGES[:count], LABELS[:count], strict=True):
        said = step(
            model,
            torch.from_numpy(images.copy()),
            torch.from_numpy(labels.copy()),
            optimizer,
        )
        losses.append(float(torch.as_tensor(said).detach()))
        weights.append(model.weight.detach().numpy().copy())
    return losses, weights


def _probabilities(weights, images) -> np.ndarray:
    powers = np.exp(images @ weights.T)
    return powers / powers.sum(axis=1, keepdims=True)


def _loss(weights, images, labels) -> float:
    return float(
        -np.log(_probabilities(weights, images)[np.arange(len(labels)), labels]).mean()
    )


def _by_hand(accumulate=False, count=2) -> tuple[list[float], list[np.ndarray]]:
    """The same steps without autograd: the gradient of the cross-entropy is (p - y) x,
    averaged over the images.
    """
    weights, gradient, losses, path = START, 0.0, [], []
    for images, labels in zip(IMAGES[:count], LABELS[:count], strict=True):
        losses.append(_loss(weights, images, labels))
        new = (
            (_probabilities(weights, images) - np.eye(2)[labels]).T
            @ images
            / len(labels)
        )
        gradient = gradient + new if accumulate else new
        weights = weights - RATE * gradient
        path.append(weights)
    return losses, path


def _returns_a_number(step) -> bool:
    model, optimizer = _new_network()
    said = step(
        model,
        torch.from_numpy(IMAGES[0].copy()),
        torch.from_numpy(LABELS[0].copy()),
        optimizer,
    )
    return number(said) is not None


def _one_softmax(step) -> bool:
    twice = np.exp(_probabilities(START, IMAGES[0]))
    twice = -np.log(
        (twice / twice.sum(axis=1, keepdims=True))[np.arange(12), LABELS[0]]
    ).mean()
    return not np.isclose(_steps(step, 1)[0][0], twice, rtol=1e-4)


def _loss_of_before(step) -> bool:
    losses, path = _steps(step, 1)
    return not np.isclose(
        losses[0], _loss(path[0], IMAGES[0], LABELS[0]), rtol=1e-4
    ) or np.isclose(losses[0], _by_hand()[0][0], rtol=1e-4)


def _loss_is_cross_entropy(step) -> bool:
    return np.isclose(_steps(step, 1)[0][0], _by_hand()[0][0], rtol=1e-4)


def _weights_move(step) -> bool:
    return not np.array_equal(_steps(step, 1)[1][0], _steps(lambda *_: 0.0, 1)[1][0])


def _first_step_fits(step) -> bool:
    return np.allclose(_steps(step, 1)[1][0], _by_hand()[1][0], atol=1e-5)


def _gradient_is_forgotten(step) -> bool:
    return not np.allclose(
        _steps(step)[1][1], _by_hand(accumulate=True)[1][1], atol=1e-5
    )


def _second_step_fits(step) -> bool:
    return np.allclose(_steps(step)[1][1], _by_hand()[1][1], atol=1e-5)


EXERCISES = {
    "learning_rate": Predict(
        ("falls faster", "falls slower", "rises first"),
        {
            "falls faster": (
                "A hundred times the rate is a hundred times the first step. Is the"
                " valley that wide?"
            ),
            "falls slower": (
                "Does a larger rate make steps shorter or longer? And what if a step is"
                " longer than the valley is wide?"
            ),
            "rises first": (
                "It could have. Look at the highest loss and at the last one: which of"
                " the two rates is lower in the end?"
            ),
        },
    ),
    "map_side": Implement(
        {
            "a convolution that keeps the side": (96, 3, 1, 1),
            "a stride of two": (96, 3, 2, 1),
            "an odd side, a stride of two": (7, 3, 2, 1),
            "a wide kernel": (96, 5, 2, 2),
            "a kernel as large as the picture": (5, 5, 1, 0),
            "pooling": (9, 2, 2, 0),
            "a stride of three": (10, 3, 3, 0),
        },
        _map_side,
        (
            Mistake(
                lambda side, kernel, stride, padding: side // stride,
                "That forgets the kernel: how many places has a 5 wide kernel in a"
                " picture that is 5 wide?",
            ),
            Mistake(
                lambda side, kernel, stride, padding: (
                    (side + 2 * padding - kernel) // stride
                ),
                "One place is missing: count the places of a 5 wide kernel in a picture"
                " that is 5 wide.",
            ),
            Mistake(
                lambda side, kernel, stride, padding: (
                    (side + padding - kernel) // stride + 1
                ),
                "How many borders does a row of pixels have?",
            ),
            Mistake(
                lambda side, kernel, stride, padding: (side - kernel) // stride + 1,
                "Where is the padding? It makes the picture larger before the kernel"
                " moves.",
            ),
            Mistake(
                lambda side, kernel, stride, padding: (
                    (side + 2 * padding - kernel) / stride + 1
                ),
                "The last step may not fit in whole, and there is no half pixel: what"
                " happens to the rest?",
            ),
            Mistake(
                lambda side, kernel, stride, padding: (
                    -(-(side + 2 * padding - kernel) // stride) + 1
                ),
                "Where the last step does not fit in whole, yours takes it all the"
                " same. Round the other way.",
            ),
            Mistake(
                lambda side, kernel, stride, padding: (
                    round((side + 2 * padding - kernel) / stride) + 1
                ),
                "Where the last step does not fit in whole, yours takes it sometimes:"
                " does a kernel ever hang over the border?",
            ),
            Mistake(
                lambda side, kernel, stride, padding: side + 2 * padding - kernel + 1,
                "That is right for a stride of 1. A stride of 2 skips every other"
                " place.",
            ),
        ),
        "Draw seven pixels in a row, add the padding on both sides, and move a 3 wide"
        " kernel by hand.",
    ),
    "class_weights": Implement(
        {
            "four images and two": (np.array([0, 0, 0, 0, 1, 1]), 2),
            "3, 2 and 1 images": (np.array([0, 0, 0, 1, 1, 2]), 3),
            "as many of each": (np.array([1, 0, 1, 0]), 2),
            "a very rare class": (np.repeat([0, 1], [97, 3]), 2),
        },
        _class_weights,
        (
            Mistake(
                lambda labels, classes: np.ones(classes),
                "All classes still weigh the same. What should grow when "
                "a class is rare?",
            ),
            Mistake(
                lambda labels, classes: _counts(labels, classes) / len(labels),
                "The frequent class weighs most in yours. Which one should?",
            ),
            Mistake(
                lambda labels, classes: (
                    classes * _counts(labels, classes) / len(labels)
                ),
                "The frequent class weighs most in yours. Which one should?",
            ),
            Mistake(
                lambda labels, classes: 1 / _counts(labels, classes),
                "Their ratio is right, their size is not: then the loss depends on how"
                " many images there are. What is the mean weight over the images?",
            ),
            Mistake(
                lambda labels, classes: len(labels) / _counts(labels, classes),
                "Their ratio is right. With two classes of the same size, which weight"
                " should each have, and what does yours give?",
            ),
            Mistake(
                lambda labels, classes: (
                    _counts(labels, classes).max() / _counts(labels, classes)
                ),
                "Their ratio is right, but the mean weight over the images is not 1:"
                " the loss grows with every class that is rare.",
            ),
            Mistake(
                lambda labels, classes: (
                    _counts(labels, classes).min() / _counts(labels, classes)
                ),
                "Their ratio is right, but no weight exceeds 1 in yours: the loss"
                " shrinks with every class that is frequent. What is the mean weight"
                " over the images?",
            ),
            Mistake(
                lambda labels, classes: len(labels) / 2 / _counts(labels, classes),
                "With two classes yours is right, with three it is not: where does"
                " their number stand in it?",
            ),
            Mistake(
                lambda labels, classes: (
                    1 / _counts(labels, classes) / (1 / _counts(labels, classes)).sum()
                ),
                "The sum over the classes is 1 in yours. Which mean should be 1, and"
                " over what?",
            ),
            Mistake(
                lambda labels, classes: (
                    classes
                    / _counts(labels, classes)
                    / (1 / _counts(labels, classes)).sum()
                ),
                "The mean over the classes is 1 in yours. It should be over the images:"
                " a class has many of them.",
            ),
            Mistake(
                lambda labels, classes: 1 - _counts(labels, classes) / len(labels),
                "Rarer is heavier in yours, but not twice as heavy where there are half"
                " as many.",
            ),
        ),
        "Count each class first. A class with half as many images needs twice the"
        " weight, and the mean weight over the images should be 1.",
    ),
    "training_step": Build(
        (
            (
                _returns_a_number,
                "Return the loss, one number: who calls you wants to draw it.",
            ),
            (
                _one_softmax,
                (
                    "A softmax stands before the loss, and the loss has its own: it"
                    " wants logits."
                ),
            ),
            (
                _loss_of_before,
                (
                    "You return the loss after the step. What did the network know when"
                    " it predicted?"
                ),
            ),
            (
                _loss_is_cross_entropy,
                (
                    "The loss is not the mean cross-entropy of the batch: of which two"
                    " things is it computed, and is it a mean or a sum?"
                ),
            ),
            (
                _weights_move,
                (
                    "After your step the weights are what they were. Which call moves"
                    " them, and is the gradient still there when it comes?"
                ),
            ),
            (
                _first_step_fits,
                (
                    "The weights move, but not by one step against the gradient: is"
                    " each call made once?"
                ),
            ),
            (
                _gradient_is_forgotten,
                (
                    "The first step is right, the second is not: whose gradient is"
                    " still there?"
                ),
            ),
            (
                _second_step_fits,
                (
                    "The first step is right, the second is not: what is left over from"
                    " the first?"
                ),
            ),
        ),
        right=step,
    ),
}
