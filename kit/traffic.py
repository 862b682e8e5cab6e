"""A day of requests and its incidents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from kit.files import CourseError


@dataclass(frozen=True)
class Incident:
    """Something that goes wrong at a known hour, and the rules that must see it.

    `size`: milliseconds added for "slow", else the share of requests that it hits.
    """

    name: str
    kind: str
    start: float
    hours: float
    size: float
    expected: tuple[str, ...]

    def __post_init__(self):
        kinds = ("slow", "blank", "class_shift", "exceptions", "silence")
        if self.kind not in kinds:
            raise CourseError(
                f"Incident {self.name!r}: kind {self.kind!r} is unknown: choose one of"
                f" {kinds}."
            )


def drill(slo_ms: float = 50.0) -> list[Incident]:
    """Five incidents of an hour between 8 and 21 h, two hours apart, so that each alert
    clears before the next.
    """
    return [
        Incident("slow model", "slow", 8, 1, 2 * slo_ms, ("slow",)),
        Incident("blank images", "blank", 11, 1, 0.5, ("blank_images",)),
        Incident("class shift", "class_shift", 14, 1, 1.0, ("class_mix",)),
        Incident("exceptions", "exceptions", 17, 1, 0.2, ("errors",)),
        Incident("silence", "silence", 20, 1, 1.0, ("no_traffic",)),
    ]


def traffic(data, seed: int, requests: int = 3000, incidents=()) -> pd.DataFrame:
    """Draw a day of requests: Poisson, busiest at 14 h, nine times quieter at 2 h.

    Images are drawn from pool "production" with replacement. That makes requests
    independent; in a real service the images of one patient come together, and limits
    on z must be wider.

    Returns
    -------
    DataFrame by time: minute (of the day, float), row (of `data`), kind (of the
    incident that hits it, or ""), size"""
    rng = np.random.default_rng(seed)
    minutes = np.arange(1440)
    rate = requests / 1440 * (1 + 0.8 * np.cos(2 * np.pi * (minutes - 14 * 60) / 1440))
    at = np.repeat(minutes, rng.poisson(rate))
    at = np.sort(at + rng.random(len(at)))
    pool = data.where("production")
    day = pd.DataFrame(
        {"minute": at, "row": rng.choice(pool, len(at)), "kind": "", "size": 0.0}
    )
    first = data.labels[pool] == 0
    # of class 0 and the rest: the larger jump of the mix
    rarer = pool[first] if first.mean() <= 0.5 else pool[~first]
    if len(rarer) == 0:
        raise CourseError(
            f"Pool production has images of one class only ({len(pool)} images): a"
            " class shift needs both. Use a dataset with more images."
        )
    for incident in incidents:
        inside = day["minute"].between(
            incident.start * 60,
            (incident.start + incident.hours) * 60,
            inclusive="left",
        )
        share = 1.0 if incident.kind == "slow" else incident.size
        hit = inside & (rng.random(len(day)) < share)
        day.loc[hit, ["kind", "size"]] = incident.kind, incident.size
        if incident.kind == "class_shift":
            day.loc[hit, "row"] = rng.choice(rarer, hit.sum())
    return day[day["kind"] != "silence"].reset_index(drop=True)


def score_drill(
    events: pd.DataFrame, incidents, aftermath: float = 60.0
) -> pd.DataFrame:
    """Did each incident raise its alert, how soon, and what was raised for nothing?

    Parameters
    ----------
    events : DataFrame of `replay_day`
    aftermath : float
        Minutes after an incident in which its traces are still in the windows: an alert
        then is no false alarm.

    Returns
    -------
    DataFrame: incident, rule, raised (bool), minutes_to_detect (from its start),
    minutes_to_clear (from its end)
        One row an incident and expected rule; then one row "false alarm" for each alert
        outside all incidents.
    """
    firing, resolved = (
        events[events["event"] == name] for name in ("firing", "resolved")
    )
    fired, cleared = (
        pd.Series(map(minute_of_day, table["timestamp"]), table.index, float)
        for table in (firing, resolved)
    )
    rows, explained = [], pd.Series(False, index=firing.index)
    for incident in incidents:
        start, end = incident.start * 60, (incident.start + incident.hours) * 60
        explained |= fired.between(start, end + aftermath)
        for rule in incident.expected:
            seen = fired[
                (firing["rule"] == rule) & fired.between(start, end + aftermath)
            ].min()
            gone = cleared[(resolved["rule"] == rule) & (cleared > seen)].min()
            rows.append(
                (
                    incident.name,
                    rule,
                    not math.isnan(seen),
                    seen - start,
                    max(gone - end, 0.0),
                )
            )
    rows += [
        ("false alarm", rule, True, math.nan, math.nan)
        for rule in firing.loc[~explained, "rule"]
    ]
    return pd.DataFrame(
        rows,
        columns=["incident", "rule", "raised", "minutes_to_detect", "minutes_to_clear"],
    )


def minute_of_day(tick: datetime) -> float:
    """1440, not 0, at midnight: a tick closes the window before it."""
    return (
        tick - (pd.Timestamp(tick) - pd.Timedelta(seconds=1)).normalize()
    ) / pd.Timedelta(minutes=1)
