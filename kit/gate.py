"""What retraining checks: the images of a mix, the answers that a gate compares, a
check and how a report of them reads.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from kit.files import CourseError

# Training images of a candidate, at most: it starts from a network that knows its work,
# and a wish must not take hours. Fewer clean ones forget more: 800 for 1,400 cost 2 to
# 3 points of clean validation accuracy (real X-rays, two draws).
MIX_IMAGES = {"smoke": 64, "quick": 1400, "full": 4096}


def size_of_mix(data, drifted, rows, share: float, images: int | None = None) -> int:
    """How many images: as many as pool train has, at most MIX_IMAGES of the profile;
    more where it takes them to use every bought label once, and there are clean ones.

    CourseError where the two are taken for one another, where these drifted images may
    not be learned from, or where there are too few clean ones for that many.
    """
    if data.index.get("drifted", pd.Series(False)).any() or data.key == drifted.key:
        wrong = "both are the same"
        if data.key != drifted.key:
            wrong = "the first is drifted"
        raise CourseError(
            f"A mix takes clean images, then drifted ones, and {wrong}: call mix(data,"
            " drifted, rows)."
        )
    train = len(data.where("train"))
    if images is None:
        images = min(train, MIX_IMAGES[data.course.profile.name])
        if 0 < share:
            images = max(images, math.ceil(len(rows) / share))
        if share < 1:
            images = min(images, math.floor(train / (1 - share)))
    pools = data.index["pool"].iloc[rows]
    if (foreign := pools[pools != "adapt"]).size:
        raise CourseError(
            f"{len(foreign)} of the {len(rows)} drifted images are of pool"
            f" {', '.join(set(foreign))}: only pool adapt may be learned from; take"
            " rows from buy_labels."
        )
    clean = images - round(share * images)
    none = images < 1 or (share > 0 and not len(rows))
    if none or not 0 <= share <= 1 or not 0 <= clean <= train:
        raise CourseError(
            f"share={share} of {images} images, with {len(rows)} drifted ones bought,"
            f" is no mix: choose a share of 0 (clean images only) to 1 (drifted images"
            f" only); pool train has {train} clean images."
        )
    return images


@dataclass(frozen=True)
class Answers:
    """What the candidate ("new") and the model in service ("old") say to the same
    images: calibrated probabilities, float (N, K).
    """

    new: np.ndarray
    old: np.ndarray
    labels: np.ndarray  # int64 (N,)
    hashes: tuple[str, ...] = ()  # of the images

    @property
    def new_right(self) -> np.ndarray:
        """Which images the candidate gets right, bool (N,)."""
        return self.new.argmax(axis=1) == self.labels

    @property
    def old_right(self) -> np.ndarray:
        return self.old.argmax(axis=1) == self.labels

    def check(self, classes) -> None:
        shape = (len(self.labels), len(classes))
        if self.new.shape != shape or self.old.shape != shape:
            raise CourseError(
                f"The answers of the two models have shapes {self.new.shape} and"
                f" {self.old.shape}, expected {shape}: both must know the classes"
                f" {list(classes)} and answer for every image."
            )
        if np.isnan(self.new).any() or np.isnan(self.old).any():
            raise CourseError("Some answers are NaN: export that model again.")
        counts = np.bincount(self.labels, minlength=len(classes))
        if 0 in counts:
            raise CourseError(
                f"The images of the gate have none of class {classes[counts.argmin()]}:"
                " a gate needs images of every class, a hundred or more."
            )


@dataclass(frozen=True)
class Check:
    """One figure of the gate with its interval, and the limit that it must keep.

    Passed: the whole interval keeps the limit. Failed: not even the figure does.
    Between the two these images cannot decide.
    """

    name: str
    value: float
    low: float
    high: float
    limit: float
    n: int
    above: bool = False  # must stay above the limit; else at it or below
    note: str = ""
    of: str = "images"

    @property
    def verdict(self) -> str:
        if self.low > self.limit if self.above else self.high <= self.limit:
            return "passed"
        wrong = self.value <= self.limit if self.above else self.value > self.limit
        return "failed" if wrong else "inconclusive"

    @property
    def says(self) -> str:
        """The check as a sentence."""
        if math.isnan(self.value):
            return f"{self.name}: not measured, {self.note}"
        says = f"{self.name} {self.value:.3g}"
        if self.low < self.high:
            says += f" [{self.low:.3g}, {self.high:.3g}]"
        side = "above" if self.above else "at most"
        says += f", asked: {side} {self.limit:.3g} (n = {self.n})"
        says += f", {self.note}" if self.note else ""
        if self.verdict != "inconclusive":
            return says
        # An interval narrows with the square root of their number.
        arm = self.value - self.low if self.above else self.high - self.value
        needed = math.ceil(self.n * (arm / (self.value - self.limit)) ** 2)
        return f"{says}: inconclusive, about {needed:,} {self.of} could decide"


@dataclass(frozen=True)
class GateReport:
    """What the gate found; true where it accepts, and it unpacks as (accepted,
    figures).
    """

    checks: tuple[Check, ...]
    new: str = ""  # hashes of the two exported files
    current: str = ""

    @property
    def accepted(self) -> bool:
        return bool(self.checks) and not self.reasons

    def __bool__(self) -> bool:
        return self.accepted

    def __iter__(self):
        return iter((self.accepted, self.figures))

    @property
    def figures(self) -> dict[str, float]:
        return {check.name: check.value for check in self.checks}

    @property
    def reasons(self) -> list[str]:
        """Why the candidate is not accepted, a sentence a check."""
        return [check.says for check in self.checks if check.verdict != "passed"]

    @property
    def verdict(self) -> str:
        """Refused where a check failed, else inconclusive where one is not decided."""
        if self.accepted:
            return f"Accepted: all {len(self.checks)} checks passed."
        failed = [check.name for check in self.checks if check.verdict == "failed"]
        open_ = [check.name for check in self.checks if check.verdict == "inconclusive"]
        head, named, what = "Inconclusive, label more", open_, "not decided"
        if failed:
            head, named, what = "Refused", failed, "failed"
        of = f"{len(named)} of {len(self.checks)} checks {what}"
        return f"{head}: {of} ({', '.join(named)})."

    @property
    def table(self) -> pd.DataFrame:
        """One row a check: the fields of `Check`, verdict, passed, says."""
        rows = [
            asdict(check)
            | {"verdict": check.verdict, "passed": check.verdict == "passed"}
            | {"says": check.says}
            for check in self.checks
        ]
        return pd.DataFrame(rows)

    def to_dict(self) -> dict:
        """The same for the record."""
        found = {"new": self.new, "current": self.current, "passed": self.accepted}
        found |= {"verdict": self.verdict, "reasons": self.reasons}
        return found | {"checks": self.table.to_dict("records")}


def unmeasured(name: str, note: str) -> Check:
    nothing = [math.nan] * 4
    return Check(name, *nothing, n=0, note=note)


def counted(name: str, count: float, limit: float, n: int, note: str) -> Check:
    """A check of something exact, which needs no interval."""
    return Check(name, count, count, count, limit, n, note=note)
