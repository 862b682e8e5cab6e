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
    unsure : lines of the log, with `row`, the image's place in `pixels`
        Their pictures are shown.
    pixels : uint8 (N, C, S, S)
    """
    from torch.utils.tensorboard import SummaryWriter

    for old in Path(folder).glob("events.out.tfevents.*"):
        old.unlink()
    with (
        clear_disk_errors(folder, kept="The log that it shows is untouched."),
        SummaryWriter(str(folder)) as writer,
    ):
        for tick, row in windows.set_index("timestamp").iterrows():
            for metric, value in row.dropna().items():
                writer.add_scalar(tag_of(metric), value, **at(tick))
        answered = log[log["status"] == "ok"]
        for hour, part in answered.groupby(answered["timestamp"].dt.ceil("h")):
            for name in ("confidence", "latency_ms"):
                writer.add_histogram(
                    f"hourly/{name}", part[name].to_numpy(), **at(hour)
                )
        for event in events.itertuples():
            writer.add_text(f"alerts/{event.rule}", told(event), **at(event.timestamp))
        for rank, case in enumerate(unsure.itertuples(), start=1):
            # TensorBoard shows pixels as they are: a thumb nail at 64
            large = pixels[case.row].repeat(3, axis=1).repeat(3, axis=2)
            name = f"{rank} {Path(case.image).name} {case.confidence:.2f}"
            writer.add_image(f"low_confidence/{name}", large, 0)
    return Path(folder)


def at(tick: pd.Timestamp) -> dict:
    return {"global_step": int(minute_of_day(tick)), "walltime": tick.timestamp()}


def tag_of(metric: str) -> str:
    """Where TensorBoard shows a metric: what stands before the slash is a group."""
    if metric.endswith("_z"):
        return f"deviation/{metric.removesuffix('_z')}"
    if metric.startswith("latency_"):
        return metric.replace("_", "/")
    return f"window/{metric}"


def told(event) -> str:
    return (
        f"**{event.event}** {event.severity} `{event.rule}` at"
        f" {event.timestamp:%H:%M}: {event.metric} = {event.value:.4g} (limit"
        f" {event.threshold:.4g}). {event.runbook}"
    )
