"""A day of requests and its incidents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

from kit.files import CourseError

KINDS = ("slow", "blank", "class_shift", "exceptions", "silence")


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
        if self.kind not in KINDS:
            raise CourseError(
                f"Incident {self.name!r}: kind {self.kind!r} is unknown: choose one of"
                f" {', '.join(KINDS)}."
            )

    @property
    def minutes(self) -> tuple[float, float]:
        """From and to, in minutes of the day."""
        return 60 * self.start, 60 * (self.start + self.hours)


def plan_drill(slo_ms: float = 50.0) -> list[Incident]:
    """Five incidents of an hour, two hours apart, so that each alert clears before the
    next.
    """
    return [
        Incident("slow model", "slow", 8, 1, 2 * slo_ms, ("slow",)),
        Incident("blank images", "blank", 11, 1, 0.5, ("blank_images",)),
        Incident("class shift", "class_shift", 14, 1, 1.0, ("class_mix",)),
        Incident("exceptions", "exceptions", 17, 1, 0.2, ("errors",)),
        Incident("silence", "silence", 20, 1, 1.0, ("no_traffic",)),
    ]


def draw_traffic(data, seed: int, requests: int = 3000, incidents=()) -> pd.DataFrame:
    """Draw a day of requests: Poisson, busiest at 14 h, nine times quieter at 2 h.

    Images are drawn from pool "production" with replacement. That makes requests
    independent; in a real service the images of one patient come together, and limits
    on z must be wider.

    Returns
    -------
    DataFrame by time: minute (of the day, float), row (of `data`), kind (of the
    incident that hits it, or ""), size
    """
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
        inside = day["minute"].between(*incident.minutes, inclusive="left")
        share = 1.0 if incident.kind == "slow" else incident.size
        hit = inside & (rng.random(len(day)) < share)
        day.loc[hit, ["kind", "size"]] = incident.kind, incident.size
        if incident.kind == "class_shift":
            day.loc[hit, "row"] = rng.choice(rarer, hit.sum())
    return day[day["kind"] != "silence"].reset_index(drop=True)


def harm(pixels: np.ndarray, kind: str, rng) -> np.ndarray:
    """What an incident does to an image uint8 (1, C, S, S)."""
    # a covered lens: dark, with the sensor's noise of half a grey level
    if kind == "blank":
        return np.round(16 + rng.normal(0, 0.5, pixels.shape)).astype(np.uint8)
    # a row is missing: no network takes that
    return pixels[:, :, 1:] if kind == "exceptions" else pixels


def replay_day(
    monitored, data, seed: int, requests: int = 3000, incidents=(), day=None
) -> pd.DataFrame:
    """Serve a day of traffic in seconds, image by image, and return its log.

    The clock of the log is that of the virtual day (UTC; yesterday when `day` is None);
    the latencies are measured on this machine, now. All the rest repeats with the seed.

    Parameters
    ----------
    monitored : utils.MonitoredModel
        With a log of its own run.

    Raises
    ------
    CourseError
        The run already holds lines of this day: two would look like twice the traffic.
        An error of the model that no incident has asked for is raised on.
    """
    day = pd.Timestamp(day or datetime.now(UTC) - timedelta(days=1)).normalize()
    logger, end = monitored.logger, day + pd.Timedelta(days=1)
    if logger.read()["timestamp"].between(day, end).any():
        raise CourseError(
            f"Run {logger.run_id} already holds lines of {day:%Y-%m-%d}: make a new"
            " InferenceLogger (a new run), or give another day."
        )
    rng, paths = np.random.default_rng([seed, 1]), data.index["path"].to_numpy()
    for request in draw_traffic(data, seed, requests, incidents).itertuples():
        pixels = harm(data.pixels[request.row : request.row + 1], request.kind, rng)
        when = day + pd.Timedelta(minutes=request.minute)
        added = request.size if request.kind == "slow" else 0.0
        try:
            monitored.predict(pixels, [paths[request.row]], when, added)
        except Exception:
            if request.kind != "exceptions":  # else a server would answer 400 and go on
                raise
    log = logger.read()
    return log[log["timestamp"].between(day, end)].reset_index(drop=True)


def score_drill(
    events: pd.DataFrame, incidents, aftermath: float = 60.0
) -> pd.DataFrame:
    """Did each incident raise its alert, how soon, and what was raised for nothing?

    Parameters
    ----------
    events : DataFrame of `judge_windows`
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
    events = events.assign(minute=events["timestamp"].map(minute_of_day))
    fired, cleared = (
        events[events["event"] == name] for name in ("firing", "resolved")
    )
    rows, explained = [], set()
    for incident in incidents:
        start, end = incident.minutes
        near = fired[fired["minute"].between(start, end + aftermath)]
        explained |= {*near.index}
        for rule in incident.expected:
            seen = near.loc[near["rule"] == rule, "minute"].min()
            after = (cleared["rule"] == rule) & (cleared["minute"] > seen)
            rows.append(
                {
                    "incident": incident.name,
                    "rule": rule,
                    "raised": not math.isnan(seen),
                    "minutes_to_detect": seen - start,
                    "minutes_to_clear": max(
                        cleared.loc[after, "minute"].min() - end, 0
                    ),
                }
            )
    for rule in fired.drop(index=explained)["rule"]:
        rows.append({"incident": "false alarm", "rule": rule, "raised": True})
    return pd.DataFrame(rows)


def minute_of_day(tick: pd.Timestamp) -> float:
    """1440, not 0, at midnight: a tick closes the window before it."""
    midnight = (tick - pd.Timedelta(seconds=1)).normalize()
    return (tick - midnight) / pd.Timedelta(minutes=1)
