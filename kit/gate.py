"""What a check of the gate is, and how a report of them reads."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import pandas as pd


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
