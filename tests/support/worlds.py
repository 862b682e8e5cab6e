"""A world of numbers for the tests of drift: what detectors see, drawn at random."""

import numpy as np
import pandas as pd
from scipy import stats

import utils


def correlated(rng, n, features=12, noise=0.1):
    """Features that say nearly the same thing, as image statistics do."""
    return rng.normal(size=(n, 1)) + noise * rng.normal(size=(n, features))


def within(alarms: int, n: int, rate: float = 0.05) -> bool:
    """Is this number of alarms what a true rate gives, but for one case in ten
    thousand?
    """
    return stats.binomtest(alarms, n, rate).pvalue > 1e-4


def world(n, seed=0, shift=0.0, unsure=0.0):
    """What detectors see of n images, and their labels: answers with 85 % accuracy,
    calibrated; embeddings that go together.
    """
    rng = np.random.default_rng(seed)
    embedding = correlated(rng, n, 16, noise=0.7) + shift
    confident = stats.beta.ppf(rng.random(n), 6, 1) / 2 + 0.5
    confident = np.clip(confident - unsure, 0.5, 1)
    answer = rng.integers(0, 2, n)
    probabilities = np.where(
        np.arange(2) == answer[:, None], confident[:, None], 1 - confident[:, None]
    )
    labels = np.where(rng.random(n) < confident, answer, 1 - answer)
    names = ["brightness", "contrast", "sharpness"]
    table = pd.DataFrame(correlated(rng, n, 3) * 10 + 100 + 5 * shift, columns=names)
    return utils.Observation(table, probabilities, embedding), labels


def as_reference(seen, labels, classes=("NORMAL", "PNEUMONIA")) -> utils.Reference:
    parts = (seen.statistics, seen.probabilities, seen.embedding)
    return utils.Reference(*parts, labels, "0123456789abcdef", classes)


class Stand:
    """Stands in for an OnnxModel: answers by brightness."""

    hash, classes = "0123456789abcdef", ("NORMAL", "PNEUMONIA")

    def predict_all(self, pixels):
        level = (pixels.mean(axis=(1, 2, 3)) / 255).astype(np.float32)
        embedding = np.stack([level, level**2, 1 - level], axis=1)
        return np.stack([1 - level, level], axis=1), embedding
