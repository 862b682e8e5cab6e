"""A day of production as a TensorBoard run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kit.files import clear_disk_errors
from kit.traffic import minute_of_day


def write_dashboard(
    folder: str | Path,
    windows: pd.DataFrame,
    log: pd.DataFrame,
    events: pd.DataFrame,
    unsure: pd.DataFrame,
    pixels,
) -> Path:
    """Write a day for TensorBoard: step is the minute of the day, wall time that of the
    log.

    What an earlier call wrote to the folder is replaced, else both would be drawn.

    Parameters
    ----------
    windows, log, events : DataFrames of `judge_windows` and `replay_day`
        Become scalars, histograms of confidence and latency by hour, and texts.
    unsure : lines of the log, with `row`, the image's place in `pixels`
        Their pictures are shown, with their ids in the tags.
    pixels : uint8 (N, C, S, S)
    """
    from torch.utils.tensorboard import SummaryWriter

    for old in Path(folder).glob("events.out.tfevents.*"):
        old.unlink()
    with (
        clear_disk_errors(folder, kept="The log that it shows is untouched."),
        SummaryWriter(str(folder)) as writer,
    ):
        _write_windows(writer, windows)
        _write_hours(writer, log[log["status"] == "ok"])
        _write_alerts(writer, windows["timestamp"], events)
        for rank, case in enumerate(unsure.itertuples(), start=1):
            picture = pixels[case.row]
            # TensorBoard shows pixels as they are: a thumb nail at 64
            scale = max(1, 192 // picture.shape[-1])
            picture = picture.repeat(scale, axis=1).repeat(scale, axis=2)
            name = f"{rank} {Path(case.image).name} {case.confidence:.2f}"
            writer.add_image(f"low_confidence/{name}", picture, 0)
    return Path(folder)


def tag_of(metric: str) -> str:
    """Where TensorBoard shows a metric: what stands before the slash is a group."""
    if metric.endswith("_z"):
        return f"deviation/{metric.removesuffix('_z')}"
    if metric.startswith("latency_"):
        return metric.replace("_", "/")
    return f"window/{metric}"


def _write_windows(writer, windows: pd.DataFrame) -> None:
    table = windows.set_index("timestamp")
    for metric in table:
        for tick, value in table[metric].dropna().items():
            step, wall = int(minute_of_day(tick)), tick.timestamp()
            writer.add_scalar(tag_of(metric), value, step, wall)


def _write_hours(writer, answered: pd.DataFrame) -> None:
    for hour, part in answered.groupby(answered["timestamp"].dt.floor("h")):
        step, wall = 60 * hour.hour, hour.timestamp()
        for name in ("confidence", "latency_ms"):
            writer.add_histogram(
                f"hourly/{name}", part[name].to_numpy(), step, walltime=wall
            )


def _write_alerts(writer, ticks: pd.Series, events: pd.DataFrame) -> None:
    change = events["event"].map({"firing": 1, "resolved": -1})
    for tick in ticks:
        firing = change[events["timestamp"] <= tick].sum()
        step, wall = int(minute_of_day(tick)), tick.timestamp()
        writer.add_scalar("alerts/firing", firing, step, wall)
    for event in events.itertuples():
        step, wall = int(minute_of_day(event.timestamp)), event.timestamp.timestamp()
        text = (
            f"**{event.event}** {event.severity} `{event.rule}` at"
            f" {event.timestamp:%H:%M}: {event.metric} = {event.value:.4g} (limit"
            f" {event.threshold:.4g}). {event.runbook}"
        )
        writer.add_text(f"alerts/{event.rule}", text, step, walltime=wall)
