"""The drift slider: the same window of production pictures under a drift of growing
severity.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

import utils
from demo.service import Service
from kit import figures

SEVERITIES = range(6)
WINDOW = 40  # pictures of one look where theme 6 has not chosen
# What comes of a report without a policy, or with values that are none: the defaults
# are used then.
DAMAGED = (AttributeError, KeyError, TypeError, ValueError, utils.CourseError)
# drawn no lower: an exact test can say 1e-30, where permutations end near 1e-3
LEAST_P = 1e-6


@dataclass(frozen=True)
class Look:
    """One window: pictures before and after, uint8 (n, C, S, S), their labels, the
    answers, and what was decided.
    """

    before: np.ndarray
    after: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    decision: utils.Decision

    @property
    def confidence(self) -> float:
        return float(self.probabilities.max(axis=1).mean())

    @property
    def right(self) -> int:
        return int((self.probabilities.argmax(axis=1) == self.labels).sum())


def adjusted_p(decision: utils.Decision, policy: utils.DriftPolicy) -> dict[str, float]:
    """p-value of each detector, corrected for being several: what the policy compares
    with its error rate.
    """
    p_values = np.array([result.p_value for result in decision.results.values()])
    return dict(
        zip(
            decision.results,
            utils.adjust(p_values, policy.correction).tolist(),
            strict=True,
        )
    )


class Replay:
    """Windows of production pictures, looked at as theme 6 does; each is computed once.

    Raises
    ------
    CourseError
        The home has no pictures or no reference.
    """

    def __init__(self, service: Service):
        missing = [
            service.missing[part]
            for part in ("images", "reference")
            if part in service.missing
        ]
        if missing:
            raise utils.CourseError(missing[0])
        self.service, self.looks = service, {}
        self.kinds = utils.drifts_of(service.course.dataset)
        self.rows = service.data.where("production")

    @cached_property
    def policy(self) -> utils.DriftPolicy:
        """Theme 6's numbers where it has run, with a window that even the rarest class
        mix can fill.
        """
        policy = utils.DriftPolicy(
            round(self.service.reference.accuracy - 0.05, 3), WINDOW
        )
        told = utils.read_json(self.service.course.exports / "drift_report.json").get(
            "policy"
        )
        with suppress(*DAMAGED):
            known = {
                name: value
                for name, value in told.items()
                if name in policy.__dataclass_fields__
            }
            policy = replace(
                policy,
                **known
                | {
                    "detectors": tuple(known["detectors"]),
                    "window": int(known["window"]),
                },
            )
        _, fewest = utils.drift_window(
            self.service.data, self.rows, "class_prior", max(SEVERITIES)
        )
        return replace(policy, window=min(policy.window, len(fewest)))

    def look(self, kind: str, severity: int) -> Look:
        """The window of a kind and severity 0..5: of one kind, always the same
        pictures, except "class_prior".
        """
        if (kind, severity) not in self.looks:
            self.looks[kind, severity] = self._look(kind, severity)
        return self.looks[kind, severity]

    def _look(self, kind: str, severity: int) -> Look:
        data, seed = self.service.data, self.service.course.seed
        after, rows = utils.drift_window(
            data, self.rows, kind, severity, seed, self.policy.window
        )
        seen = utils.observe(self.service.model, after)
        decision = utils.DriftMonitor(self.service.reference, self.policy).look(seen)
        return Look(
            np.array(data.pixels[rows]),
            after,
            data.labels[rows],
            seen.probabilities,
            decision,
        )

    def curve(self, kind: str) -> pd.DataFrame:
        """One row a severity: confidence, estimated and true accuracy with its
        interval, p-value of each detector.
        """
        rows = []
        for severity in SEVERITIES:
            look = self.look(kind, severity)
            low, high = utils.wilson(look.right, len(look.labels))
            p_values = adjusted_p(look.decision, self.policy)
            rows.append(
                {
                    "severity": severity,
                    "confidence": look.confidence,
                    "low": low,
                    "high": high,
                    "estimated": look.decision.estimated_accuracy,
                    "accuracy": look.right / len(look.labels),
                    **p_values,
                }
            )
        return pd.DataFrame(rows)


def plot_curve(
    curve: pd.DataFrame, severity: int, policy: utils.DriftPolicy, title: str
):
    """What severity does to confidence and accuracy, and to the p-value of each
    detector; the line is the slider.
    """
    import matplotlib.pyplot as plt

    figures.style()
    figure, (answers, tests) = plt.subplots(1, 2, figsize=(11, 4.1))
    lines = {
        "confidence": ("mean confidence", "-o"),
        "estimated": ("accuracy estimated without labels", "--s"),
        "accuracy": ("accuracy with labels (95 % interval)", ":^"),
    }
    for name, (label, line) in lines.items():
        answers.plot(curve["severity"], curve[name], line, label=label)
    answers.fill_between(
        curve["severity"],
        curve["low"],
        curve["high"],
        color=figures.COLOURS[2],
        alpha=0.15,
        lw=0,
    )
    answers.set(ylim=(min(0.4, curve["low"].min()), 1.02), ylabel="share of the window")
    limit = policy.window_alpha
    for name, line in zip(policy.detectors, ("-o", "--s", ":^", "-.d"), strict=False):
        tests.plot(curve["severity"], curve[name].clip(lower=LEAST_P), line, label=name)
    tests.axhline(limit, color="black", lw=1, ls="-.", label=f"limit {limit:g}")
    tests.set(
        yscale="log",
        ylabel=f"p after {policy.correction.title()} (down to {LEAST_P:g})",
        ylim=(LEAST_P / 2, 2),
    )
    for axis in (answers, tests):
        axis.axvline(severity, color="grey", lw=6, alpha=0.3, zorder=0)
        axis.set(xlabel="severity (0: no drift)", xticks=SEVERITIES)
        axis.legend(
            fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2
        )
    figure.suptitle(title)
    return figure
