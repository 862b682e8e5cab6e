"""What the exercises of theme 1 are checked on."""

import numpy as np
import torch
from sklearn.metrics import recall_score

from exercises import Build, Implement, Mistake, Predict

# Interleaved on purpose, and of uneven size: who splits by position or by image is
# found out.
GROUPS = np.random.default_rng(1).permutation(
    np.repeat([f"person{n}" for n in range(60)], np.arange(60) % 6 + 1)
)
SHARES, SEEDS = (0.12, 0.5), range(20)


def split(groups, share, seed):
    """The course's own: whole groups are held out, each with the chance `share`."""
    names = np.unique(groups)
    rng = np.random.default_rng(seed)
    return np.isin(groups, names[rng.random(len(names)) < share])


def _split(answer, share=0.12, seed=0) -> np.ndarray:
    return np.asarray(answer(GROUPS.copy(), share, seed))


def _one_answer_per_image(answer) -> bool:
    split = _split(answer)
    return split.shape == GROUPS.shape and split.dtype == bool


def _leaves_its_input(answer) -> bool:
    mine = GROUPS.copy()
    answer(mine, 0.12, 0)
    return np.array_equal(mine, GROUPS)


def _repeatable(answer) -> bool:
    return all(
        np.array_equal(_split(answer, seed=seed), _split(answer, seed=seed))
        for seed in SEEDS
    )


def _apart(answer) -> bool:
    splits = [_split(answer, share, seed) for share in SHARES for seed in SEEDS]
    return not any(set(GROUPS[split]) & set(GROUPS[~split]) for split in splits)


def _draws(answer) -> bool:
    return len({_split(answer, 0.5, seed).tobytes() for seed in SEEDS}) > 1


def _mean_share(answer, share: float) -> float:
    return float(np.mean([_split(answer, share, seed).mean() for seed in SEEDS]))


def _not_the_other_side(answer) -> bool:
    return _mean_share(answer, 0.12) < 0.7


def _as_many_as_asked(answer) -> bool:
    return all(abs(_mean_share(answer, share) - share) < 0.06 for share in SHARES)


IMAGES = 0.2 + 0.6 * torch.rand(
    1, 3, 16, 16, generator=torch.Generator().manual_seed(0)
)


def _augmented(answer) -> torch.Tensor:
    """Sixteen draws of one image."""
    return answer(IMAGES.repeat(16, 1, 1, 1))


def _same_form(answer) -> bool:
    gray = answer(IMAGES[:, :1].repeat(3, 1, 1, 1))
    made = _augmented(answer)
    return (
        torch.is_tensor(made)
        and made.shape == (16, 3, 16, 16)
        and gray.shape == (3, 1, 16, 16)
        and made.dtype == torch.float32
    )


def _stays_in_range(answer) -> bool:
    extreme = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)]).repeat(
        8, 1, 1, 1
    )
    made = answer(extreme)
    return bool((made >= 0).all() and (made <= 1).all())


def _leaves_the_batch(answer) -> bool:
    mine = IMAGES.repeat(16, 1, 1, 1)
    answer(mine)
    return torch.equal(mine, IMAGES.repeat(16, 1, 1, 1))


def _does_something(answer) -> bool:
    return not torch.equal(_augmented(answer), IMAGES.repeat(16, 1, 1, 1))


def _one_draw_each(answer) -> bool:
    made = _augmented(answer)
    return not all(torch.equal(made[0], other) for other in made[1:])


def _keeps_the_picture(answer) -> bool:
    """On average over many draws, light and dark still lie where they lay."""
    made = torch.cat([_augmented(answer) for _ in range(16)])
    kept = [float((image - IMAGES[0]).abs().mean()) for image in made]
    return float(np.mean(kept)) < 0.25


def _balanced_accuracy(counts) -> float:
    """What scikit-learn says of the images behind the counts; a class without images is
    left out.
    """
    true, predicted = (
        np.repeat(places, counts.ravel()) for places in np.indices(counts.shape)
    )
    return recall_score(true, predicted, labels=np.unique(true), average="macro")


EXERCISES = {
    "leak": Predict(
        ("rises", "falls", "stays"),
        {
            "rises": (
                "Take an image with one sibling. It leaks only if the sibling went to"
                " training: how often is that at 12 %, how often at 50 %?"
            ),
            "falls": (
                "Follow one image and one sibling: is the sibling in training more"
                " often at 12 % or at 50 %?"
            ),
            "stays": (
                "Take an image with one sibling. Is the sibling in training equally"
                " often at 12 % and at 50 %?"
            ),
            ("falls", "stays"): (
                "Right wherever images have siblings. Count them here: how many groups"
                " have two images?"
            ),
        },
    ),
    "balanced_accuracy": Implement(
        {
            "three of four, and one of two": (np.array([[3, 1], [1, 1]]),),
            "a rare class": (np.array([[90, 6], [3, 1]]),),
            "three classes": (np.array([[5, 2, 1], [0, 4, 4], [3, 0, 9]]),),
            "a class without images": (np.array([[4, 1, 1], [0, 0, 0], [1, 0, 2]]),),
        },
        _balanced_accuracy,
        (
            Mistake(
                lambda counts: np.trace(counts) / counts.sum(),
                "That is plain accuracy: a class with many images counts for more."
                " Start from one recall per class.",
            ),
            Mistake(
                lambda counts: np.mean(
                    np.diag(counts) / np.maximum(counts.sum(axis=0), 1)
                ),
                "You divide by how often a class was predicted, which is precision."
                " Along which axis are the true classes?",
            ),
            Mistake(
                lambda counts: np.mean(np.diag(counts) / counts.sum()),
                "Every class is divided by all images. By how many of them can it be"
                " found?",
            ),
            Mistake(
                lambda counts: np.mean(
                    np.diag(counts) / np.maximum(counts.sum(axis=1), 1)
                ),
                "Right where all classes have images. One that has none was never"
                " missed: should it pull the mean down?",
            ),
            Mistake(
                lambda counts: np.sum(
                    np.diag(counts) / np.maximum(counts.sum(axis=1), 1)
                ),
                "That is the sum of the recalls: can an accuracy be above 1?",
            ),
        ),
        "One recall per class: the images on the diagonal over all images of its row."
        " Then their mean.",
    ),
    "split_by_patient": Build(
        (
            (
                _one_answer_per_image,
                (
                    "Return one True or False per image, True where it is held out: a"
                    " mask, no positions and no names."
                ),
            ),
            (
                _leaves_its_input,
                (
                    "Your function changes `groups`, which others still need: work on a"
                    " copy."
                ),
            ),
            (
                _repeatable,
                (
                    "The same seed gave two different splits. Where does your generator"
                    " get its seed from?"
                ),
            ),
            (
                _apart,
                (
                    "Somebody stands on both sides. Draw the patients first, then look"
                    " whose images they are."
                ),
            ),
            (
                _draws,
                (
                    "Every seed gives the same split. Then nobody can see how much is"
                    " the luck of the split: draw."
                ),
            ),
            (
                _not_the_other_side,
                "You hold out nearly everything. Which side does True stand for?",
            ),
            (
                _as_many_as_asked,
                (
                    "Over twenty seeds you hold out another share of the images than"
                    " was asked, or always of the small groups. Does your draw heed"
                    " `share`, and has every patient the same chance?"
                ),
            ),
        ),
        right=split,
    ),
    "augmentation": Build(
        (
            (
                _same_form,
                (
                    "A batch (n, C, S, S) of floats goes in, the same shape and type"
                    " must come out."
                ),
            ),
            (
                _stays_in_range,
                "Pixels leave the range 0..1: what does a screen show of those?",
            ),
            (
                _leaves_the_batch,
                (
                    "The batch that came in has changed. Others still read it: make a"
                    " new one."
                ),
            ),
            (
                _does_something,
                "What comes out is what went in: what does your function change?",
            ),
            (
                _one_draw_each,
                (
                    "Two equal images of a batch come out equal, always: one draw for"
                    " the whole batch. What shape has your draw?"
                ),
            ),
            (
                _keeps_the_picture,
                (
                    "Hardly anything of the picture is left. Would you still give it"
                    " the same label?"
                ),
            ),
        )
    ),
}
