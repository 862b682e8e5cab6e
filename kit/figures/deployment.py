"""Figures of theme 4: what serving costs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kit.figures.look import COLOURS, arms

BUSY_NOTE = " · busy machine or uneven rounds: measure again"
MARKS, LINES = "osD^vP*", ("-", "--", "-.", ":")


def steps(table: pd.DataFrame, title: str):
    """Speedup of each backend with the range of its rounds, one group a batch size
    (table of `benchmark_table`).
    """
    import matplotlib.pyplot as plt

    batches, names = sorted(table["batch"].unique()), table["backend"].unique()[::-1]
    figure, axis = plt.subplots(figsize=(10, 0.55 * len(names) + 1.6))
    for number, batch in enumerate(batches):
        own = table[table["batch"] == batch].set_index("backend").loc[names]
        places = np.arange(len(names)) + 0.2 * (len(batches) - 1 - 2 * number)
        ends = own.rename(columns={"speedup_low": "low", "speedup_high": "high"})
        look = {"fmt": "osD^"[number % 4], "color": COLOURS[number], "capsize": 3}
        label = f"{batch} image{'s' if batch > 1 else ''} a call"
        error = arms(ends, "speedup")
        axis.errorbar(own["speedup"], places, xerr=error, ms=8, label=label, **look)
        text = {"textcoords": "offset points", "ha": "center", "fontsize": 9}
        for place, value in zip(places, own["speedup"], strict=True):
            axis.annotate(f"{value:.1f}×", (value, place), (0, 7), **text)
    axis.axvline(1, ls=":", color="black")
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(-0.6, len(names) - 0.3)
    axis.set_xlabel("speedup (logarithmic): median of the rounds, smallest to largest")
    # one disturbed round stretches its own bar, and hides no other
    title += BUSY_NOTE * bool(table["busy"].any())
    axis.set(ylabel="backend", xscale="log", title=title)
    axis.xaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    figure.legend(loc="outside lower center", ncols=len(batches))
    return figure


def pareto(table: pd.DataFrame, title: str):
    """Latency against accuracy with its interval; the size of a dot is that of the
    file, the line the Pareto front.

    Columns: p50_ms, accuracy, low, high, size_mb, front (bool); index: names of the
    backends.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(10, 4.6))
    front = table[table["front"]].sort_values("p50_ms")
    if len(front) > 1:
        look = {"color": COLOURS[6], "zorder": 1, "label": "Pareto front"}
        axis.plot(front["p50_ms"], front["accuracy"], "--", **look)
    error = arms(table)  # (2, backends)
    for number, row in enumerate(table.itertuples()):
        at, colour = (row.p50_ms, row.accuracy), COLOURS[number % len(COLOURS)]
        bar = {"color": colour, "capsize": 4, "lw": 1, "zorder": 2}
        axis.errorbar(*at, error[:, [number]], **bar)
        dot = {"marker": MARKS[number % 7], "edgecolor": "black", "zorder": 3}
        label = f"{row.Index}: {row.size_mb:.2f} MiB"
        size = 60 + 120 * row.size_mb
        axis.scatter(*at, s=size, color=colour, label=label, **dot)
    axis.set(xscale="log", xlabel="latency of one image, p50 (ms, logarithmic)")
    axis.set(ylabel="accuracy on test (bar: 95 % interval)", title=title)
    axis.xaxis.set_major_locator(plt.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.tick_params(axis="x", labelsize=10)
    place = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "markerscale": 0.6}
    axis.legend(title="area of a dot: size of the file", **place)
    return figure


def latency(table: pd.DataFrame, title: str):
    """Latency (p50 to p99) and throughput by batch size, one line a backend."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2))
    for number, (name, own) in enumerate(table.groupby("backend", sort=False)):
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number % 7]}
        look |= {"label": name, "ls": LINES[number % 4]}
        error = np.array([own["p50_ms"] * 0, own["p99_ms"] - own["p50_ms"]])
        apart = own["batch"] * (1 + 0.04 * number)
        left.errorbar(apart, own["p50_ms"], error, capsize=3, **look)
        right.plot(own["batch"], own["images_s"], **look)
    batches = sorted(table["batch"].unique())
    for axis in (left, right):
        axis.set(xscale="log", yscale="log", xlabel="batch size")
        axis.set_xticks(batches, batches)
        axis.yaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    left.set_title("Latency: p50, bar up to p99 (points moved apart)")
    left.set_ylabel("latency of a call (ms)")
    right.set(title="Throughput", ylabel="throughput (images/s)")
    figure.suptitle(title + BUSY_NOTE * bool(table["busy"].any()))
    lines = right.get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=3)
    return figure
