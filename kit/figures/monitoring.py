"""Figures of themes 5 and 6: a day of production, drifts, and who sees them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from kit.figures.look import COLOURS

PANELS = {
    "latency (ms)": ("latency_p50", "latency_p95", "latency_p99"),
    "requests a minute": ("throughput", "requests"),
    "error rate": ("error_rate",),
    "mean confidence": ("confidence", "confidence_z"),
    "share of positives": ("positive_share", "class_mix_z"),
    "brightness (grey levels)": ("brightness", "brightness_z", "blank_share"),
}


def hours_of(times: pd.Series, windows: pd.DataFrame) -> pd.Series:
    return (times - windows["timestamp"].iloc[0].normalize()) / pd.Timedelta(hours=1)


def mark_alerts(axis, events: pd.DataFrame, windows: pd.DataFrame, metric: str) -> None:
    """A triangle on the curve where each alert fires, with the rule's name; on the axis
    where the curve has a gap.
    """
    curve = windows.set_index("timestamp")[metric].fillna(axis.get_ylim()[0])
    look = {"color": COLOURS[1], "ms": 9, "mec": "black", "zorder": 5, "clip_on": False}
    text = {"textcoords": "offset points", "fontsize": 9, "weight": "bold"}
    hours = hours_of(events["timestamp"], windows)
    for event, hour in zip(events.itertuples(), hours, strict=True):
        value = curve.get(event.timestamp, axis.get_ylim()[0])
        place = {"xytext": (-8, 4), "ha": "right"} if hour > 18 else {"xytext": (8, 4)}
        axis.plot(hour, value, "^", **look)
        axis.annotate(event.rule, (hour, value), **text, **place)


def mark_incidents(axis, incidents, named: bool) -> None:
    """A shade over the hours of each incident, with its name above."""
    for incident in incidents:
        begin, end = incident.start, incident.start + incident.hours
        axis.axvspan(begin, end, color=COLOURS[4], alpha=0.25, lw=0)
        if named:
            words = incident.name.replace(" ", "\n")
            above = {"ha": "center", "transform": axis.get_xaxis_transform()}
            axis.text((begin + end) / 2, 1.02, words, **above, fontsize=9)


def dashboard(
    windows: pd.DataFrame,
    events=None,
    incidents=(),
    title: str = "",
    slo_ms: float = 50.0,
):
    """Draw a day in six panels, for a report or for people without TensorBoard.

    Shaded: incidents. Triangles: alerts that fire, each in the panel of its metric.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 2, figsize=(13, 8.5), sharex=True)
    hours = hours_of(windows["timestamp"], windows)
    for axis, (label, metrics) in zip(axes.flat, PANELS.items(), strict=True):
        drawn = metrics if label.startswith("latency") else metrics[:1]
        for metric, line in zip(drawn, ("-", "--", ":"), strict=False):
            name = metric.removeprefix("latency_")
            axis.plot(hours, windows[metric], line, label=name, zorder=3, clip_on=False)
        if len(drawn) > 1:
            axis.axhline(slo_ms, color=COLOURS[6], lw=1, ls="-.", label="SLO")
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
            place = {"loc": "center right", "bbox_to_anchor": (1, 0.52)}
            axis.legend(**place, ncols=2, fontsize=9)
        if events is not None and len(events):
            own = events[events["metric"].isin(metrics) & (events["event"] == "firing")]
            mark_alerts(axis, own, windows, drawn[-1])
        axis.margins(y=0.12)
        # a rate of 0 lies on the axis, over it
        if metrics[0] in ("error_rate", "throughput"):
            axis.set_ylim(bottom=0)
        axis.set(ylabel=label, xlim=(0, 24), xticks=range(0, 25, 3))
        mark_incidents(axis, incidents, named=axis in axes[0])
    for axis in axes[-1]:
        axis.set_xlabel("hour of the day (UTC)")
    figure.suptitle(title)
    return figure


def drifts(rows: dict[str, list], classes, title: str):
    """Pictures under growing severity, one row a drift.

    Parameters
    ----------
    rows : dict {name: list of (picture or shares, caption)}
        A picture is uint8 (C, S, S); shares of the classes, float (K,), become bars.
    """
    import matplotlib.pyplot as plt

    columns = len(next(iter(rows.values())))
    size = (1.42 * columns, 1.52 * len(rows) + 0.6)
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    for line, (name, cells) in zip(axes, rows.items(), strict=True):
        for axis, (content, caption) in zip(line, cells, strict=True):
            if content.ndim == 3:
                axis.imshow(content.transpose(1, 2, 0).squeeze(), vmin=0, vmax=255)
                axis.set(xticks=[])
            else:
                bars = axis.bar(range(len(content)), content, color=COLOURS)
                axis.bar_label(bars, [f"{share:.0%}" for share in content], fontsize=8)
                short = [str(name)[:9].lower() for name in classes]
                axis.set_xticks(range(len(content)), short, fontsize=7)
                axis.set(ylim=(0, 1.1), box_aspect=1)
            axis.grid(False)
            axis.set(yticks=[])
            axis.set_xlabel(caption, fontsize=8, labelpad=2)
            axis.spines[["left", "bottom"]].set_visible(False)
        line[0].set_ylabel(name.replace("_", " "), fontsize=10)
    for severity, axis in enumerate(axes[0]):
        axis.set_title(f"severity {severity}" if severity else "original", fontsize=10)
    figure.suptitle(title)
    return figure


def alarm_rates(table: pd.DataFrame, title: str, alpha: float = 0.05):
    """How often each detector raises a false alarm, with 95 % intervals, against what
    it promises. Columns detector, rate, low, high.
    """
    import matplotlib.pyplot as plt

    table = table[::-1].reset_index(drop=True)
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(table) + 1.5))
    axis.hlines(table.index, table["low"], table["high"], color=COLOURS[0], lw=2)
    axis.plot(table["rate"], table.index, "o", color=COLOURS[0])
    axis.axvline(alpha, color=COLOURS[1], ls="--", label=f"α = {alpha:g}")
    axis.set(
        yticks=table.index,
        yticklabels=table["detector"],
        xlim=(-0.01, max(0.2, table["high"].max() + 0.02)),
        xlabel="share of undrifted windows in which drift is told (95 % interval)",
        title=title,
    )
    axis.legend()
    return figure


def heat_maps(
    panels: dict[str, pd.DataFrame],
    title: str,
    label: str,
    low=0.0,
    high=1.0,
    cmap="Blues",
):
    """Tables of shares side by side, one row a kind of drift, one column a severity,
    with the numbers written in as per cent; hatched: not measured.
    """
    import matplotlib.pyplot as plt

    rows, count = len(next(iter(panels.values()))), len(panels)
    size = (3.6 + 2.6 * count, 0.36 * rows + 1.6)
    figure, axes = plt.subplots(1, count, figsize=size, sharey=True, squeeze=False)
    look = {"vmin": low, "vmax": high, "cmap": cmap, "alpha": 0.6, "aspect": "auto"}
    for axis, (name, table) in zip(axes[0], panels.items(), strict=True):
        image = axis.imshow(table, **look)
        for (row, column), value in np.ndenumerate(table.to_numpy(dtype=float)):
            text = "" if math.isnan(value) else round(100 * value)
            axis.text(column, row, text, ha="center", va="center", fontsize=9)
        axis.grid(False)
        axis.patch.set(hatch="///", edgecolor="0.7")  # shows where nothing was measured
        axis.set_xticks(range(table.shape[1]), table.columns)
        axis.set_yticks(range(rows), [kind.replace("_", " ") for kind in table.index])
        axis.set(title=name, xlabel="severity")
    figure.colorbar(
        image, ax=axes[0], label=label, format=lambda value, _: f"{100 * value:.0f}"
    )
    figure.suptitle(title)
    return figure


def estimates(table: pd.DataFrame, names, title: str):
    """Estimated against true accuracy; above the line: too optimistic.

    Parameters
    ----------
    table : DataFrame
        One row a point: label, severity (0: no drift), accuracy, and the estimates
        `names`. The four that are furthest off carry their label.
    """
    import matplotlib.pyplot as plt

    size = (4.2 * len(names), 4.4)
    figure, axes = plt.subplots(1, len(names), figsize=size, sharex=True, sharey=True)
    least = table[["accuracy", *names]].min().min() - 0.03
    calm = table[table["severity"] == 0]
    for axis, name in zip(np.atleast_1d(axes), names, strict=True):
        axis.axline((1, 1), slope=1, color="black", lw=1)
        points = {"c": table["severity"], "cmap": "viridis_r", "s": 30, "zorder": 3}
        drawn = axis.scatter(table["accuracy"], table[name], **points)
        star = {"marker": "*", "s": 160, "color": COLOURS[1], "zorder": 4}
        axis.scatter(calm["accuracy"], calm[name], **star, label="no drift")
        worst = (table[name] - table["accuracy"]).abs().nlargest(4).index
        for row in table.loc[worst].to_dict("records"):
            place = {"xytext": (5, -3), "textcoords": "offset points", "fontsize": 8}
            axis.annotate(row["label"], (row["accuracy"], row[name]), **place)
        axis.set(title=name.replace("_", " "), xlabel="true accuracy")
        axis.set(xlim=(least, 1.01), ylim=(least, 1.01))
    np.atleast_1d(axes)[0].set_ylabel("estimated without labels")
    np.atleast_1d(axes)[0].legend(loc="upper left")
    figure.colorbar(drawn, ax=axes, label="severity", ticks=range(6), pad=0.01)
    figure.suptitle(title)
    return figure


# Colour and marker, so that a grey print tells them apart.
LEVELS_OF_DRIFT = {
    "none": (COLOURS[2], "o"),
    "watch": (COLOURS[4], "s"),
    "retrain": (COLOURS[1], "^"),
}


def streams(streams: dict[str, pd.DataFrame], policy, title: str):
    """What the monitor said, window by window, for several streams.

    Parameters
    ----------
    streams : dict {name: DataFrame}
        Columns severity, p_value, level, estimated_accuracy, accuracy, low, high;
        accuracy is the true one, which only a simulation knows.
    """
    import matplotlib.pyplot as plt

    size = (3.6 * len(streams) + 0.6, 6)
    figure, axes = plt.subplots(
        2, len(streams), figsize=size, sharex=True, sharey="row", squeeze=False
    )
    for (name, table), (top, bottom) in zip(streams.items(), axes.T, strict=True):
        for window, severity in table["severity"].items():
            for axis in (top, bottom) if severity else ():
                shade = {"color": "black", "alpha": 0.04 * severity, "lw": 0}
                axis.axvspan(window - 0.5, window + 0.5, **shade)
        for level, (colour, mark) in LEVELS_OF_DRIFT.items():
            shown = table["p_value"][table["level"] == level].clip(lower=1e-6)
            top.plot(shown, mark, color=colour, ms=7, mec="black", label=level)
        top.axhline(policy.window_alpha, color="black", lw=1, ls="--")
        top.set(yscale="log", title=name)
        ends = [table["accuracy"] - table["low"], table["high"] - table["accuracy"]]
        true = {"fmt": "o", "color": COLOURS[0], "ms": 4, "lw": 1}
        bottom.errorbar(
            table.index, table["accuracy"], ends, label="true (95 %)", **true
        )
        label = f"estimated ({policy.estimate})"
        bottom.plot(table["estimated_accuracy"], color=COLOURS[3], label=label)
        bottom.axhline(policy.accuracy_floor, color="black", lw=1, ls="--")
        bottom.set(xlabel="window", xticks=range(0, len(table), 2))
    axes[0, 0].set_ylabel("p-value, corrected\n(dashed: limit;\n1e-6: or less)")
    axes[1, 0].set_ylabel("accuracy (dashed: floor)")
    handles, labels = axes[0, -1].get_legend_handles_labels()
    more, said = axes[1, -1].get_legend_handles_labels()
    figure.legend(
        handles + more, labels + said, loc="outside lower center", ncols=5, fontsize=10
    )
    figure.suptitle(title)
    return figure
