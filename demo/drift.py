"""The drift slider: the same production pictures under a drift of growing severity."""

from dataclasses import dataclass
from functools import cache

import numpy as np

import utils
from demo.service import Service

SEVERITIES = range(6)
WINDOW = 40  # pictures of one look


@dataclass(frozen=True)
class Look:
    """One window: pictures before and after, uint8 (n, C, S, S), their labels, the
    answers float (n, K), and what theme 6's policy decides.
    """

    before: np.ndarray
    after: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    decision: utils.Decision

    @property
    def right(self) -> np.ndarray:
        return self.probabilities.argmax(axis=1) == self.labels


def looker(service: Service):
    """A function from a kind of drift and a severity 0..5 to a Look, the same one each
    time; of one kind always the same pictures, except "class_prior".

    Raises
    ------
    CourseError
        The home has no pictures or no reference.
    """
    for part in ("images", "reference"):
        if part in service.missing:
            raise utils.CourseError(service.missing[part])
    data, seed = service.data, service.course.seed
    rows, floor = data.where("production"), service.reference.accuracy - 0.05
    # a window that even the rarest class mix can fill
    _, fewest = utils.drift_window(data, rows, "class_prior", max(SEVERITIES))
    policy = utils.DriftPolicy(round(floor, 3), min(WINDOW, len(fewest)))

    @cache
    def look(kind: str, severity: int) -> Look:
        after, chosen = utils.drift_window(
            data, rows, kind, severity, seed, policy.window
        )
        seen = utils.observe(service.model, after)
        decision = utils.DriftMonitor(service.reference, policy).look(seen)
        before = np.array(data.pixels[chosen])
        return Look(before, after, data.labels[chosen], seen.probabilities, decision)

    return look
