"""A table in, a figure out."""

from __future__ import annotations

import math
import textwrap

import numpy as np
import pandas as pd

# Okabe and Ito (2008): told apart with every common colour blindness. In grey print
# they are not: figures change the line, the marker or the hatch as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def style() -> None:
    """Set the one style of the course: readable on a projector and in grey print.

    A legend that has to lie on a curve covers it with a white, slightly transparent
    ground, so that both stay readable."""
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 12,
            "axes.titlesize": 13,
            "lines.linewidth": 1.8,
            "figure.dpi": 100,
            "savefig.dpi": 150,
            "figure.constrained_layout.use": True,
            "legend.frameon": True,
            "legend.framealpha": 0.7,
            "legend.edgecolor": "white",
            "legend.fancybox": False,
            "image.cmap": "gray",
        }
    )


def image_grid(images, titles, columns: int = 8, title: str = ""):
    """Draw a sheet of images.

    Parameters
    ----------
    images : sequence of arrays
        (H, W), (H, W, 3) or (C, H, W); uint8 or floats in 0..1.
    titles : sequence of str
    """
    import matplotlib.pyplot as plt

    style()
    rows = max(1, math.ceil(len(images) / columns))
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.6 * columns, 1.9 * rows), squeeze=False
    )
    longest = max(
        (len(line) for text in titles for line in str(text).splitlines()), default=0
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, text in zip(axes.flat, images, titles, strict=False):
        image = np.asarray(image)
        if image.ndim == 3 and image.shape[0] in (1, 3):
            image = image.transpose(1, 2, 0).squeeze()
        axis.imshow(image, vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
        # as large as neighbours leave room for
        axis.set_title(text, fontsize=10 if longest <= 18 else 8)
    figure.suptitle(title)
    return figure


def arms(rows: pd.DataFrame, value: str = "accuracy") -> np.ndarray:
    """Lengths of the error bars, float (2, N), of a table with low and high; its
    rounding may leave a value just outside.
    """
    return np.abs([rows[value] - rows["low"], rows["high"] - rows[value]])


def plot_history(history: pd.DataFrame, title: str):
    """Loss and accuracy of training and validation by epoch."""
    import matplotlib.pyplot as plt

    style()
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.5))
    # of sixty markers none could be told from its neighbour
    few = math.ceil(len(history) / 15)
    lines = {"train": ("o-", "train (weights still moving)"), "val": ("s--", "val")}
    for axis, what in zip(axes, ("loss", "accuracy"), strict=True):
        for pool, (look, label) in lines.items():
            values = history[f"{pool}_{what}"]
            axis.plot(history["epoch"], values, look, label=label, markevery=few)
        axis.set(xlabel="epoch", ylabel=what, title=f"{title}: {what}")
        axis.xaxis.get_major_locator().set_params(integer=True)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2)
    return figure


def plot_confusion(counts: np.ndarray, recalls: np.ndarray, classes, title: str):
    """Confusion matrix: counts (K, K), rows are the true classes, and the recall of
    each with its interval (K, 3).
    """
    import matplotlib.pyplot as plt

    style()
    k = len(classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(1.9 * k + 2.2, 1.5 * k + 1.4))
    axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axis.grid(False)
    for i, j in np.ndindex(counts.shape):
        text = f"{counts[i, j]}"
        if i == j:
            text += "\n{:.0%} [{:.0%}, {:.0%}]".format(*recalls[i])
        colour = "white" if shares[i, j] > 0.6 else "black"
        axis.text(j, i, text, ha="center", va="center", color=colour)
    axis.set_xticks(range(k), classes)
    axis.set_yticks(range(k), classes, rotation=90, va="center")
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.set_title(f"{title} (n = {counts.sum()})")
    return figure


def plot_reliability(tables: dict[str, pd.DataFrame], title: str):
    """Reliability diagram (diagramme de fiabilité): on the diagonal, confidence means
    accuracy.
    """
    import matplotlib.pyplot as plt

    style()
    size = (4.4 * len(tables), 4)
    figure, axes = plt.subplots(1, len(tables), figsize=size, squeeze=False)
    text = {"textcoords": "offset points", "ha": "center", "fontsize": 10}
    text["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    dots = {"fmt": "o-", "capsize": 3, "label": "measured, 95 %"}
    for axis, (name, table) in zip(axes.flat, tables.items(), strict=True):
        axis.plot([0, 1], [0, 1], ":", color="black", label="perfect calibration")
        axis.errorbar(table["confidence"], table["accuracy"], arms(table), **dots)
        for row in table.itertuples():
            axis.annotate(f"n={row.n}", (row.confidence, row.low), (0, -13), **text)
        least = min(0.5, float(table["confidence"].min()))
        axis.set(xlim=(least - 0.03, 1.03), ylim=(-0.1, 1.03), ylabel="accuracy")
        axis.set(xlabel="mean confidence in a bin", title=f"{title}: {name}")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2)
    return figure


def plot_effects(table: pd.DataFrame, title: str, label: str):
    """Differences with their intervals (columns difference, low, high), one row each,
    against a line at zero.
    """
    import matplotlib.pyplot as plt

    style()
    figure, axis = plt.subplots(figsize=(9, 0.5 * len(table) + 1.4))
    places, error = np.arange(len(table))[::-1], arms(table, "difference")
    axis.axvline(0, ls=":", color="black")
    axis.errorbar(table["difference"], places, xerr=error, fmt="o", capsize=4)
    axis.set_yticks(places, table.index)
    axis.set(title=title, xlabel=label, ylabel="what is changed")
    axis.set_ylim(-0.6, len(table) - 0.4)
    return figure


def plot_search(study):
    """The trials of an Optuna study: lowest losses, pruned ones apart, and the learning
    curves.
    """
    import matplotlib.pyplot as plt

    style()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6))
    # others were tried again, or exploded in their first epoch
    trials = [
        trial
        for trial in study.trials
        if trial.state.name in ("COMPLETE", "PRUNED") and trial.intermediate_values
    ]
    for trial in trials:
        values, pruned = trial.intermediate_values, trial.state.name == "PRUNED"
        best = trial.number == study.best_trial.number
        look = (
            {"ls": "--", "marker": "x"}
            if pruned
            else {"marker": "D" if best else "o", "lw": 3 if best else 1.5}
        )
        colour = COLOURS[1] if pruned else COLOURS[2] if best else COLOURS[0]
        left.plot(
            trial.number, min(values.values()), look["marker"], color=colour, ms=8
        )
        right.plot(values.keys(), values.values(), color=colour, **look)
    lost = any(trial.state.name == "PRUNED" for trial in trials)
    for label, colour, mark in (
        ("finished", 0, "o"),
        ("best", 2, "D"),
        *([("pruned", 1, "x")] if lost else []),
    ):
        left.plot([], [], mark, color=COLOURS[colour], label=label)
    left.legend()
    loss = "val loss (weighted)"
    own = [
        f" (number {trial.number}: our own recipe)"
        for trial in trials
        if trial.params == study.user_attrs["own"]
    ]
    title = f"{len(trials)} trial{'s' * (len(trials) != 1)}"
    left.set(xlabel="".join(["trial", *own[:1]]), ylabel=f"lowest {loss}", title=title)
    right.set(xlabel="epoch", ylabel=loss, title="Their learning curves")
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def plot_heat(
    images: np.ndarray, maps: np.ndarray, titles, title: str, columns: int = 8
):
    """Images (N, C, S, S) uint8 under maps (N, S, S) in 0..1; the line encloses what is
    above 0.5.
    """
    figure = image_grid(images, titles, columns, title)
    for axis, heat in zip(figure.axes, maps, strict=False):
        axis.imshow(heat, cmap="inferno", alpha=0.35, vmin=0, vmax=1)
        if heat.max() > 0.5:
            axis.contour(heat, levels=[0.5], colors="black", linewidths=2.5)
            axis.contour(heat, levels=[0.5], colors="white", linewidths=1.2)
    return figure


def plot_steps(table: pd.DataFrame, title: str):
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


def plot_pareto(table: pd.DataFrame, title: str):
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


def plot_latency(table: pd.DataFrame, title: str):
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
    """A triangle on the curve where each alert fires, with the rule's name."""
    low = axis.get_ylim()[0]
    for event, hour in zip(
        events.itertuples(), hours_of(events["timestamp"], windows), strict=True
    ):
        value = windows.set_index("timestamp")[metric].get(event.timestamp, math.nan)
        value = low if math.isnan(value) else value
        axis.plot(
            hour,
            value,
            "^",
            color=COLOURS[1],
            ms=9,
            mec="black",
            zorder=5,
            clip_on=False,
        )
        place = {"xytext": (-8, 4), "ha": "right"} if hour > 18 else {"xytext": (8, 4)}
        axis.annotate(
            event.rule,
            (hour, value),
            textcoords="offset points",
            fontsize=9,
            weight="bold",
            **place,
        )


def plot_dashboard(
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

    style()
    figure, axes = plt.subplots(3, 2, figsize=(13, 8.5), sharex=True)
    for axis, (label, metrics) in zip(axes.flat, PANELS.items(), strict=True):
        drawn = metrics if label.startswith("latency") else metrics[:1]
        for metric, line in zip(drawn, ("-", "--", ":"), strict=False):
            name = metric.removeprefix("latency_")
            axis.plot(
                hours_of(windows["timestamp"], windows),
                windows[metric],
                line,
                label=name,
                zorder=3,
                clip_on=False,
            )
        if len(drawn) > 1:
            axis.axhline(slo_ms, color=COLOURS[6], lw=1, ls="-.", label="SLO")
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.legend(
                loc="center right", bbox_to_anchor=(1, 0.52), ncols=2, fontsize=9
            )
        if events is not None and len(events):
            own = events[events["metric"].isin(metrics) & (events["event"] == "firing")]
            mark_alerts(axis, own, windows, drawn[-1])
        axis.margins(y=0.12)
        # a rate of 0 lies on the axis, over it
        if metrics[0] in ("error_rate", "throughput"):
            axis.set_ylim(bottom=0)
        axis.set(ylabel=label, xlim=(0, 24), xticks=range(0, 25, 3))
    for axis in axes.flat:
        for incident in incidents:
            axis.axvspan(
                incident.start,
                incident.start + incident.hours,
                color=COLOURS[4],
                alpha=0.25,
                lw=0,
            )
    for axis in axes[0]:
        for incident in incidents:
            axis.text(
                incident.start + incident.hours / 2,
                1.02,
                incident.name.replace(" ", "\n"),
                ha="center",
                transform=axis.get_xaxis_transform(),
                fontsize=9,
            )
    for axis in axes[-1]:
        axis.set_xlabel("hour of the day (UTC)")
    figure.suptitle(title)
    return figure


def plot_drifts(rows: dict[str, list], classes, title: str):
    """Pictures under growing severity, one row a drift.

    Parameters
    ----------
    rows : dict {name: list of (picture or shares, caption)}
        A picture is uint8 (C, S, S); shares of the classes, float (K,), become bars.
    """
    import matplotlib.pyplot as plt

    style()
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


def plot_alarm_rates(table: pd.DataFrame, title: str, alpha: float = 0.05):
    """How often each detector raises a false alarm, with 95 % intervals, against what
    it promises. Columns detector, rate, low, high.
    """
    import matplotlib.pyplot as plt

    style()
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

    style()
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


def plot_estimates(table: pd.DataFrame, names, title: str):
    """Estimated against true accuracy; above the line: too optimistic.

    Parameters
    ----------
    table : DataFrame
        One row a point: label, severity (0: no drift), accuracy, and the estimates
        `names`. The four that are furthest off carry their label.
    """
    import matplotlib.pyplot as plt

    style()
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


def plot_streams(streams: dict[str, pd.DataFrame], policy, title: str):
    """What the monitor said, window by window, for several streams.

    Parameters
    ----------
    streams : dict {name: DataFrame}
        Columns severity, p_value, level, estimated_accuracy, accuracy, low, high;
        accuracy is the true one, which only a simulation knows.
    """
    import matplotlib.pyplot as plt

    style()
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


def plot_learning_curve(table: pd.DataFrame, current: dict[str, float], title: str):
    """Accuracy against the labelling budget, on clean and on drifted images.

    Parameters
    ----------
    table : DataFrame
        budget, images ("clean" or "drifted"), accuracy, low, high: one row a budget and
        kind of images. Budget 0 is the control: the same training without drifted
        images.
    current : dict
        Accuracy of the model in service by kind of images: the dashed lines.
    """
    import matplotlib.pyplot as plt

    style()
    figure, axis = plt.subplots(figsize=(8.5, 4.2))
    budgets = np.unique(table["budget"])
    fewest = budgets[budgets > 0].min()

    def place(values):  # no labels at all have no logarithm: one step before the fewest
        return np.log2(np.maximum(values, fewest / 2))

    for number, (kind, rows) in enumerate(table.groupby("images", sort=False)):
        rows, colour = rows.sort_values("budget"), COLOURS[number]
        x, mark = place(rows["budget"]) + 0.04 * number, "os^"[number]
        bars = {"marker": mark, "capsize": 4, "label": f"retrained, {kind} images"}
        axis.errorbar(x, rows["accuracy"], arms(rows), color=colour, **bars)
        look = {"ls": ("--", ":")[number], "lw": 1.5, "color": colour}
        axis.axhline(current[kind], label=f"in service, {kind} images", **look)
    axis.set_xticks(place(budgets), budgets)
    axis.set_xlabel("labels of drifted images (logarithmic; 0: the control)")
    axis.set(ylabel="accuracy, 95 %", title=title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_candidates(table: pd.DataFrame, clean_margin: float, title: str):
    """Accuracy on clean against accuracy on drifted images, one point a candidate, with
    both intervals.

    Parameters
    ----------
    table : DataFrame
        how, share, images ("clean" or "drifted"), accuracy, low, high: two rows a
        candidate. The model in service has the how "in service".
    clean_margin : float
        Of the gate: the line left of which a candidate has forgotten too much.
    """
    import matplotlib.pyplot as plt

    style()
    figure, axis = plt.subplots(figsize=(9, 5))
    both = {images: rows for images, rows in table.groupby("images")}
    pairs = both["clean"].merge(both["drifted"], on=["how", "share"])
    hows = [how for how in pairs["how"].unique() if how != "in service"]
    marks = dict(zip(hows, "os^Dv", strict=False)) | {"in service": "*"}
    shares = sorted(pairs["share"].dropna().unique())
    # From light to dark, so that a grey print keeps the order.
    shades = plt.get_cmap("viridis_r")(np.linspace(0.1, 1, len(shares)))
    colours = dict(zip(shares, shades, strict=True))
    bars = {"ecolor": "grey", "elinewidth": 0.8, "capsize": 2, "mec": "black"}
    for row in pairs.itertuples():
        x, y = row.accuracy_x, row.accuracy_y
        across = np.abs([[x - row.low_x], [row.high_x - x]])
        upward = np.abs([[y - row.low_y], [row.high_y - y]])
        colour = colours.get(row.share, "black")
        look = {"marker": marks[row.how], "ms": 11, "color": colour}
        axis.errorbar(x, y, upward, across, **look, **bars)
    served = pairs.loc[pairs["how"] == "in service", "accuracy_x"].item()
    line = {"color": "black", "ls": "--", "label": "in service minus margin"}
    axis.axvline(served - clean_margin, **line)
    for how, mark in marks.items():
        face = "black" if how == "in service" else "white"
        axis.plot([], [], mark, color=face, mec="black", ms=10, label=how)
    for share, colour in colours.items():
        axis.plot([], [], "-", lw=6, color=colour, label=f"{share:.0%} drifted")
    axis.set_xlabel("accuracy on clean images, 95 %")
    axis.set(ylabel="accuracy on drifted images, 95 %", title=title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# Colour and marker of a verdict, so that a grey print tells them apart.
VERDICTS = {
    "passed": (COLOURS[2], "o"),
    "inconclusive": (COLOURS[4], "D"),
    "failed": (COLOURS[1], "X"),
}


def plot_gate(table: pd.DataFrame, title: str):
    """The checks of the gate: what is a change, with its interval and limit; the others
    stand in their labels.

    Parameters
    ----------
    table : DataFrame
        Of a GateReport: name, value, low, high, limit, above, n, verdict.
    """
    import matplotlib.pyplot as plt

    style()
    table = table[::-1].reset_index(drop=True)
    figure, axis = plt.subplots(figsize=(11, 0.5 * len(table) + 2.2))
    for row in table.itertuples():
        colour, mark = VERDICTS[row.verdict]
        if not -1 < row.limit < 0.5 or row.name in ("leakage", "shadow"):
            text = f"{row.value:.3g}, asked: at most {row.limit:g}"
            axis.plot(0, row.Index, mark, color=colour, ms=9, mec="black", mew=0.6)
            axis.annotate(text, (0, row.Index), (12, -4), textcoords="offset points")
            continue
        ends = np.abs([[row.value - row.low], [row.high - row.value]])
        look = {"fmt": mark, "color": colour, "capsize": 4, "ms": 9, "mec": "black"}
        axis.errorbar(row.value, row.Index, xerr=ends, mew=0.6, lw=2, **look)
        side = ">" if row.above else "<"  # points to where it passes
        axis.plot(row.limit, row.Index, marker=side, color="black", ms=8)
        axis.vlines(row.limit, row.Index - 0.35, row.Index + 0.35, "black", lw=2.5)
    for verdict, (colour, mark) in VERDICTS.items():
        count = (table["verdict"] == verdict).sum()
        label = f"{verdict}: {count}"
        axis.plot([], [], mark, color=colour, ms=9, mec="black", mew=0.6, label=label)
    axis.axvline(0, color="grey", lw=0.8)
    names = [f"{row.name}, n = {row.n}" for row in table.itertuples()]
    axis.set_yticks(table.index, names)
    axis.set_xlabel(
        "candidate minus model in service; black: limit, and where it leads"
    )
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axis.set_title("\n".join(textwrap.wrap(title, 80)))
    return figure


def plot_timeline(
    table: pd.DataFrame,
    drift: tuple[float, float],
    decided: float | None,
    promoted: float | None,
    title: str,
):
    """Accuracy of the service by window, before, during and after; and what the other
    model would have had.

    Parameters
    ----------
    table : DataFrame
        window, accuracy, low, high (of the model in service then), old, new (accuracies
        of both models everywhere).
    drift : (float, float)
        First and last window with drifted images.
    decided, promoted : float, optional
        Windows of the decision to retrain and of the swap; None where it did not
        happen.
    """
    import matplotlib.pyplot as plt

    style()
    figure, axis = plt.subplots(figsize=(11, 4.2))
    first, last, x = drift[0] - 0.5, drift[1] + 0.5, table["window"]
    axis.axvspan(first, last, color=COLOURS[4], alpha=0.2, label="drifted images")
    axis.plot(x, table["old"], "--", color=COLOURS[1], label="old model, if kept")
    axis.plot(x, table["new"], ":", color=COLOURS[2], label="new model everywhere")
    look = {"fmt": "o-", "lw": 2, "capsize": 4, "label": "in service, 95 %"}
    axis.errorbar(x, table["accuracy"], arms(table), color=COLOURS[0], **look)
    # a window is judged when it is full, and a swap comes before one
    marks = ((decided, 0.5, "decided", "-."), (promoted, -0.5, "promoted", "-"))
    for when, shift, text, line in marks:
        if when is not None:
            axis.axvline(when + shift, color="black", ls=line, lw=1.2, label=text)
    axis.set(xlabel="window", ylabel="accuracy", title=title)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_tradeoff(table: pd.DataFrame, title: str):
    """Accuracy against latency (left) and against cost (right); hollow: another variant
    is as good in all and better in one.

    Columns: accuracy, accuracy_low, accuracy_high, p50_ms, size_mb, cost_per_million,
    and front (bool, of `pareto`); index: the variants.
    """
    import matplotlib.pyplot as plt

    style()
    labels = {
        "p50_ms": "latency of one image, p50 (ms)\nlogarithmic",
        "cost_per_million": "cost of a million images (your currency)\nlogarithmic",
    }
    columns = [name for name in labels if name in table]
    size = (5.2 * len(columns) + 1.2, 4.2)
    figure, axes = plt.subplots(1, len(columns), figsize=size, sharey=True, squeeze=0)
    renamed = table.rename(columns={"accuracy_low": "low", "accuracy_high": "high"})
    for axis, column in zip(axes.flat, columns, strict=True):
        for number, name in enumerate(table.index):
            row = renamed.iloc[[number]]
            colour, mark = COLOURS[number % len(COLOURS)], "osD^vP*"[number % 7]
            look = {"fmt": mark, "ms": 9, "capsize": 4, "lw": 1.2, "color": colour}
            look["mfc"] = colour if row["front"].item() else "white"
            label = f"{name}, {row['size_mb'].item():.2f} MiB"
            axis.errorbar(row[column], row["accuracy"], arms(row), label=label, **look)
        axis.set(xscale="log", xlabel=labels[column])
        for place in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
            place("{x:g}")
        axis.tick_params(axis="x", which="both", labelrotation=45, labelsize=9)
    axes[0, 0].set_ylabel("accuracy on test, 95 %")
    place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    axes[0, -1].legend(title="filled: on the Pareto front", **place)
    figure.suptitle(title)
    return figure


# Colour and marker of a paired comparison, as VERDICTS.
STEPS = {
    "better": (COLOURS[2], "s"),
    "worse": (COLOURS[1], "X"),
    "no difference shown": ("grey", "o"),
}


def plot_robustness(table: pd.DataFrame, trained_on: str, title: str):
    """Accuracy before (open) and after (filled) retraining, by drift.

    Columns: kind, before, after, n, and says ("better", "worse" or "no difference
    shown").
    """
    import matplotlib.pyplot as plt

    style()
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(table) + 1.6))
    for place, row in enumerate(table.itertuples()):
        colour, mark = STEPS[row.says]
        axis.plot([row.before, row.after], [place] * 2, color=colour, lw=2.5)
        axis.plot(row.before, place, mark, mfc="white", mec=colour, ms=9)
        axis.plot(row.after, place, mark, color=colour, ms=9)
    for says, (colour, mark) in STEPS.items():
        label = f"{says}: {(table['says'] == says).sum()}"
        axis.plot([], [], mark, color=colour, ms=9, label=label)
    axis.plot([], [], "o", mfc="white", mec="grey", ms=9, label="open: before")
    names = {"none": "none (clean)", trained_on: f"{trained_on} (retrained on)"}
    shown = [names.get(kind, kind).replace("_", " ") for kind in table["kind"]]
    axis.set_yticks(range(len(table)), shown)
    axis.set_xlabel(f"accuracy on the same {table['n'].min()} images of production")
    axis.set_title(title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
