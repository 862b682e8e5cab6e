"""What the exercises of theme 3 are checked on."""

import numpy as np
import torch
from torch import nn

from exercises import Build, Implement, Mistake, Predict

RNG = np.random.default_rng(3)
CANCELS = (
    "Too sure in one bin and too timid in another cancel in yours: is it one single"
    " bin, or does every gap keep its sign?"
)


# --- calibration


def _ece(confidence, right, bins=10):
    """Guo et al. (2017), as a sum over the images of each bin."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = [
        abs((right[place == b].astype(float) - confidence[place == b]).sum())
        for b in range(bins)
    ]
    return sum(gaps) / len(confidence)


def _gaps(confidence, right, place) -> tuple[np.ndarray, np.ndarray]:
    """Signed gap and share of the images of each bin that is not empty."""
    filled = np.unique(place)
    gaps = [confidence[place == b].mean() - right[place == b].mean() for b in filled]
    return np.array(gaps), np.array([(place == b).mean() for b in filled])


def _place(confidence, bins=10) -> np.ndarray:
    return np.minimum((confidence * bins).astype(int), bins - 1)


def _ece_unweighted(confidence, right, bins=10):
    return np.abs(_gaps(confidence, right, _place(confidence))[0]).mean()


def _ece_over_all_bins(confidence, right, bins=10):
    return np.abs(_gaps(confidence, right, _place(confidence))[0]).sum() / bins


def _ece_squared(confidence, right, bins=10):
    gaps, shares = _gaps(confidence, right, _place(confidence))
    return (gaps**2 * shares).sum()


def _ece_without_the_last(confidence, right, bins=10):
    inside = confidence < 1
    gaps, _ = _gaps(confidence[inside], right[inside], _place(confidence[inside]))
    return (
        np.abs(gaps) * np.unique(_place(confidence[inside]), return_counts=True)[1]
    ).sum() / len(confidence)


def _ece_with_an_eleventh(confidence, right, bins=10):
    gaps, shares = _gaps(confidence, right, (confidence * bins).astype(int))
    return (np.abs(gaps) * shares).sum()


def _ece_from_the_middle(confidence, right, bins=10):
    place = _place(confidence, bins)
    return sum(
        (place == b).mean() * abs((b + 0.5) / bins - right[place == b].mean())
        for b in np.unique(place)
    )


def _ece_by_rank(confidence, right, bins=10):
    place = np.argsort(np.argsort(confidence, kind="stable")) * bins // len(confidence)
    gaps, shares = _gaps(confidence, right, place)
    return (np.abs(gaps) * shares).sum()


def _ece_cases() -> dict:
    sure = RNG.uniform(0.5, 1.0, 200)
    return {
        "200 images that are as sure as they are right": (sure, RNG.random(200) < sure),
        "too sure in one bin, too timid in another": (
            np.repeat([0.95, 0.65], 4),
            np.repeat([False, True], [2, 6]),
        ),
        "seven images in one bin, one in another": (
            np.array([0.95] * 7 + [0.55]),
            np.array([True] * 6 + [False] * 2),
        ),
        "two images that are entirely sure, one nearly": (
            np.array([1.0, 1.0, 0.95, 0.75, 0.55]),
            np.array([True, False, True, True, False]),
        ),
    }


# --- the residual block


class Block(nn.Module):
    """The course's own, which later cells use until yours is right."""

    def __init__(self, before, after, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Conv2d(before, after, 1, stride)

    def forward(self, x):
        out = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


def _made(block, before: int, after: int, stride: int) -> nn.Module:
    """A block with weights drawn anew (so that none starts as the identity), or with
    all of them at zero.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = block(before, after, stride).eval()
        for weights in made.parameters():
            nn.init.normal_(weights, std=0.5)
    return made


def _pictures(channels=8, side=8, n=4) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(4)
        .normal(size=(n, channels, side, side))
        .astype(np.float32)
    )


@torch.no_grad()
def _answer(block, x, after=8, stride=1, zero=False) -> torch.Tensor:
    made = _made(block, x.shape[1], after, stride)
    if zero:
        for weights in made.parameters():
            nn.init.zeros_(weights)
    return made(x)


def _is_a_module(block) -> bool:
    return isinstance(block, type) and issubclass(block, nn.Module)


def _keeps_the_shape(block) -> bool:
    return _answer(block, _pictures()).shape == (4, 8, 8, 8)


def _two_convolutions(block) -> bool:
    made = _made(block, 8, 8, 1)
    return (
        sum(
            isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)
            for part in made.modules()
        )
        == 2
    )


@torch.no_grad()
def _matters(made: nn.Module, part: nn.Module) -> bool:
    """Whether the answer changes when the answer of one part changes its sign."""
    before, hook = (
        made(_pictures()),
        part.register_forward_hook(lambda module, given, answer: -answer),
    )
    after = made(_pictures())
    hook.remove()
    return not torch.allclose(before, after)


def _normalised(block) -> bool:
    made, norms = (
        _made(block, 8, 8, 1),
        (
            nn.BatchNorm2d,
            nn.GroupNorm,
            nn.LayerNorm,
            nn.InstanceNorm2d,
        ),
    )
    return (
        sum(isinstance(part, norms) and _matters(made, part) for part in made.modules())
        >= 2
    )


def _relu_between(block) -> bool:
    """What reaches the second of the two convolutions, in the order in which they are
    called.
    """
    made, given = _made(block, 8, 8, 1), []
    for part in made.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3):
            part.register_forward_pre_hook(
                lambda module, inputs: given.append(inputs[0].min())
            )
    with torch.no_grad():
        made(_pictures())
    return bool(given[1] >= 0)


def _hands_its_input_on(block) -> bool:
    x = _pictures().abs()
    return torch.allclose(_answer(block, x, zero=True), x, atol=1e-5)


def _leaves_its_input(block) -> bool:
    x = _pictures()
    _answer(block, x)
    return torch.equal(x, _pictures())


def _ends_with_relu(block) -> bool:
    return bool(_answer(block, _pictures()).min() >= 0)


def _can_take_away(block) -> bool:
    x = _pictures().abs()
    return bool((_answer(block, x) < x - 1e-3).any())


def _changes_shape(block) -> bool:
    return _answer(block, _pictures(), after=16, stride=2).shape == (4, 16, 4, 4)


def _shortcut_changes_shape(block) -> bool:
    """With the 3 x 3 convolutions at zero, only the shortcut speaks."""
    x, made = _pictures(), _made(block, 8, 16, 2)
    with torch.no_grad():
        for part in made.modules():
            if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3):
                part.weight.zero_()
        return not torch.allclose(made(x), made(torch.zeros_like(x)))


def _odd_side(block) -> bool:
    return _answer(block, _pictures(side=7), after=16, stride=2).shape == (4, 16, 4, 4)


EXERCISES = {
    "threshold": Predict(
        ("rises", "falls", "stays"),
        {
            "rises": (
                "A higher threshold lets more sick patients pass. Which error has just"
                " become dearer?"
            ),
            "falls": (
                "A lower threshold raises more false alarms. What did the change make"
                " dearer: those, or misses?"
            ),
            "stays": (
                "The threshold minimises a cost: write down the expected cost of saying"
                " 'positive'."
            ),
            ("falls", "stays"): (
                "In theory you are right. Here `val` has no image whose decision would"
                " have to change. Which images would move the threshold: sick ones or"
                " healthy ones, and on which side?"
            ),
        },
    ),
    "ece": Implement(
        _ece_cases(),
        _ece,
        (
            Mistake(
                lambda confidence, right, bins=10: abs(
                    confidence.mean() - right.mean()
                ),
                CANCELS,
            ),
            Mistake(
                lambda confidence, right, bins=10: confidence.mean() - right.mean(),
                CANCELS,
            ),
            Mistake(
                lambda confidence, right, bins=10: right.mean() - confidence.mean(),
                CANCELS,
            ),
            Mistake(
                _ece_unweighted,
                "Every bin counts the same in yours. Should one image weigh as much as"
                " seven?",
            ),
            Mistake(
                _ece_over_all_bins,
                "You divide by the number of bins, empty ones too. What should weigh a"
                " bin?",
            ),
            Mistake(
                _ece_squared,
                "You square the gaps: a gap of 0.1 then counts ten times less than"
                " it is.",
            ),
            Mistake(
                _ece_without_the_last,
                "An image with confidence exactly 1 is in none of your bins: where does"
                " the last one end?",
            ),
            Mistake(
                _ece_with_an_eleventh,
                "An image with confidence exactly 1 has a bin of its own in yours,"
                " which is one bin too many: where does the last one end?",
            ),
            Mistake(
                _ece_from_the_middle,
                "You take the middle of a bin for what its images said. What is the"
                " mean of their confidence?",
            ),
            Mistake(
                lambda confidence, right, bins=10: (
                    _ece(confidence, right) * len(confidence)
                ),
                "Yours grows with the number of images. It shall be a mean over them.",
            ),
            Mistake(
                _ece_by_rank,
                "Your bins hold equally many images. Here they are equally wide: 0 to"
                " 0.1, and so on.",
            ),
            Mistake(
                lambda confidence, right, bins=10: np.abs(
                    _gaps(confidence, right, _place(confidence))[0]
                ).max(),
                "That is the worst bin (the maximum calibration error). A mean over the"
                " images is asked for.",
            ),
            Mistake(
                lambda confidence, right, bins=10: np.abs(confidence - right).mean(),
                "That compares each image with its own hit, which is 0 or 1. Average"
                " within a bin first.",
            ),
        ),
        "Mean confidence less share of hits, in each of ten equal bins; then a mean"
        " that heeds how full they are.",
    ),
    "residual_block": Build(
        (
            (
                _is_a_module,
                (
                    "Hand over the class itself, a subclass of torch.nn.Module: no"
                    " brackets."
                ),
            ),
            (
                _keeps_the_shape,
                (
                    "MyBlock(8, 8, 1) should keep the shape of (4, 8, 8, 8). Is a"
                    " border lost (padding), or are the two paths put side by side"
                    " instead of added?"
                ),
            ),
            (
                _two_convolutions,
                (
                    "Where shapes agree, a block has two 3 x 3 convolutions, and"
                    " nothing else has weights but the normalisations."
                ),
            ),
            (
                _normalised,
                (
                    "Each of the two convolutions is followed by its normalisation: are"
                    " both made, and does what comes out depend on both?"
                ),
            ),
            (
                _leaves_its_input,
                (
                    "Your block changes x itself, which the shortcut still needs: avoid"
                    " += on x and inplace."
                ),
            ),
            (
                _hands_its_input_on,
                (
                    "With all weights at zero a residual block hands its input on, here"
                    " not. Is x itself added, without a layer between, where shapes"
                    " agree?"
                ),
            ),
            (
                _can_take_away,
                (
                    "Your block can only make x larger: does a ReLU stand on the branch"
                    " before the sum?"
                ),
            ),
            (
                _relu_between,
                (
                    "What reaches the second convolution is negative in places: without"
                    " a ReLU between them, two convolutions are no more than one."
                ),
            ),
            (_ends_with_relu, "Some outputs are negative: what comes after the sum?"),
            (
                _changes_shape,
                (
                    "MyBlock(8, 16, 2) should turn (4, 8, 8, 8) into (4, 16, 4, 4)."
                    " Which of the convolutions takes the stride, and can two shapes be"
                    " added that differ?"
                ),
            ),
            (
                _shortcut_changes_shape,
                (
                    "Where shapes differ, nothing of x comes around the convolutions: a"
                    " shortcut there needs a layer of its own, and no kernel wider"
                    " than 1."
                ),
            ),
            (
                _odd_side,
                (
                    "A side of 7 and a stride of 2 should give 4 on both paths: which"
                    " of them rounds the other way?"
                ),
            ),
        ),
        right=Block,
    ),
}
