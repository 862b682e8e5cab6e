"""What the exercises of theme 3 are checked on."""

import numpy as np

from exercises import Implement, Mistake, Predict

RNG = np.random.default_rng(3)


def _ece(confidence, right, bins=10):
    """Guo et al. (2017), as a sum over the images of each bin."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = [abs((right[place == b].astype(float) - confidence[place == b]).sum()) for b in range(bins)]
    return sum(gaps) / len(confidence)


def _ece_unweighted(confidence, right, bins=10):
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return np.mean([abs(right[place == b].mean() - confidence[place == b].mean()) for b in np.unique(place)])


def _ece_signed(confidence, right, bins=10):
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return sum((confidence[place == b] - right[place == b]).sum() for b in range(bins)) / len(confidence)


def _ece_cases() -> dict:
    sure = RNG.uniform(0.5, 1.0, 200)
    return {
        "200 images that are as sure as they are right": (sure, RNG.random(200) < sure),
        "too sure in one bin, too timid in another": (np.repeat([0.95, 0.65], 4), np.repeat([False, True], [2, 6])),
        "seven images in one bin, one in another": (np.array([0.95] * 7 + [0.55]), np.array([True] * 6 + [False] * 2)),
    }


EXERCISES = {
    "threshold": Predict(
        ("rises", "falls", "stays"),
        {"rises": "A higher threshold lets more sick patients pass. Which error has just become dearer?",
         "falls": "A lower threshold raises more false alarms. What did the change make dearer: those, or misses?",
         "stays": "The threshold minimises a cost: write down the expected cost of saying 'positive'."},
    ),
    "ece": Implement(
        _ece_cases(), _ece,
        (Mistake(lambda confidence, right, bins=10: abs(confidence.mean() - right.mean()),
                 "That is one single bin: too sure here and too timid there cancel. Sort the images into ten bins."),
         Mistake(_ece_signed, "Too sure and too timid still cancel between your bins: what about the sign of a gap?"),
         Mistake(_ece_unweighted, "Every bin counts the same in yours. Should one image weigh as much as seven?"),
         Mistake(lambda confidence, right, bins=10: np.abs(confidence - right).mean(),
                 "That compares each image with its own hit, which is 0 or 1. Average within a bin first.")),
        "Mean confidence less share of hits, in each of ten equal bins; then a mean that heeds how full they are.",
    ),
}  # fmt: skip
