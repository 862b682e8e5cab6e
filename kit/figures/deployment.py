"""Figures of theme 4: what serving costs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kit.figures.look import COLOURS, style


def steps(table: pd.DataFrame, title: str):
    """Speedup of each backend with the range of its rounds, one group a batch size
    (table of `benchmark_table`).
    """
    import matplotlib.pyplot as plt

    style()
    batches, names = sorted(table["batch"].unique()), table["backend"].unique()[::-1]
    figure, axis = plt.subplots(figsize=(10, 0.55 * len(names) + 1.6))
    for number, batch in enumerate(batches):
        own = table[table["batch"] == batch].set_index("backend").loc[names]
        places = np.arange(len(names)) + 0.2 * (len(batches) - 1 - 2 * number)
        error = np.abs(
            [own["speedup"] - own["speedup_low"], own["speedup_high"] - own["speedup"]]
        )
        axis.barh(
            places,
            own["speedup"],
            0.38,
            xerr=error,
            capsize=3,
            color=COLOURS[number],
            label=f"{batch} image{'s' if batch > 1 else ''} a call",
            hatch=("", "//")[number % 2],
        )
        for place, (value, end) in zip(
            places, own[["speedup", "speedup_high"]].to_numpy(), strict=True
        ):
            axis.annotate(
                f"{value:.1f}×",
                (end, place),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
    axis.axvline(1, ls=":", color="black")
    axis.set_yticks(range(len(names)), names)
    axis.set(
        xlabel="speedup: median of the rounds, bar from the smallest to the largest",
        ylabel="backend",
        xlim=(0, 1.1 * table["speedup_high"].max()),
        title=title,
    )
    figure.legend(loc="outside lower center", ncols=len(batches))
    return figure


def pareto(table: pd.DataFrame, title: str):
    """Latency against accuracy with its interval; the size of a dot is that of the
    file, the line the Pareto front.

    Columns: p50_ms, accuracy, low, high, size_mb, front (bool); index: names of the
    backends.
    """
    import matplotlib.pyplot as plt

    style()
    figure, axis = plt.subplots(figsize=(10, 4.6))
    front = table[table["front"]].sort_values("p50_ms")
    if len(front) > 1:
        axis.plot(
            front["p50_ms"],
            front["accuracy"],
            "--",
            color=COLOURS[6],
            zorder=1,
            label="Pareto front",
        )
    for number, (name, row) in enumerate(table.iterrows()):
        colour = COLOURS[number % len(COLOURS)]
        error = np.abs(
            [[row["accuracy"] - row["low"]], [row["high"] - row["accuracy"]]]
        )
        axis.errorbar(
            row["p50_ms"],
            row["accuracy"],
            error,
            color=colour,
            capsize=4,
            lw=1,
            zorder=2,
        )
        axis.scatter(
            row["p50_ms"],
            row["accuracy"],
            s=60 + 120 * row["size_mb"],
            color=colour,
            edgecolor="black",
            marker="osD^vP*"[number % 7],
            zorder=3,
            label=f"{name}: {row['size_mb']:.2f} MiB",
        )
    axis.set(
        xscale="log",
        xlabel="latency of one image, p50 (ms, logarithmic)",
        ylabel="accuracy on test (bar: 95 % interval)",
        title=title,
    )
    axis.xaxis.set_major_locator(plt.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.tick_params(axis="x", labelsize=10)
    axis.legend(
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        markerscale=0.6,
        title="area of a dot: size of the file",
    )
    return figure


def latency(table: pd.DataFrame, title: str):
    """Latency (p50 to p99) and throughput by batch size, one line a backend."""
    import matplotlib.pyplot as plt

    style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2))
    for number, (name, own) in enumerate(table.groupby("backend", sort=False)):
        look = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": "osD^vP*"[number % 7],
            "label": name,
            "ls": ("-", "--", "-.", ":")[number % 4],
        }
        error = np.array([own["p50_ms"] * 0, own["p99_ms"] - own["p50_ms"]])
        left.errorbar(
            own["batch"] * (1 + 0.04 * number), own["p50_ms"], error, capsize=3, **look
        )
        right.plot(own["batch"], own["images_s"], **look)
    batches = sorted(table["batch"].unique())
    for axis, label in (
        (left, "latency of a call (ms)"),
        (right, "throughput (images/s)"),
    ):
        axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel=label)
        axis.set_xticks(batches, batches)
        axis.yaxis.set_major_locator(plt.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    left.set_title("Latency: p50, bar up to p99 (points moved apart)")
    right.set_title("Throughput")
    figure.suptitle(title)
    figure.legend(
        *right.get_legend_handles_labels(), loc="outside lower center", ncols=3
    )
    return figure
