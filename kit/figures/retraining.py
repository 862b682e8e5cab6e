"""Figures of themes 7 and 8: candidates, the gate, what was gained."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd

from kit.figures.look import COLOURS, arms


def learning_curve(table: pd.DataFrame, current: dict[str, float], title: str):
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


def candidates(table: pd.DataFrame, clean_margin: float, title: str):
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


def gate(table: pd.DataFrame, title: str):
    """The checks of the gate: what is a change, with its interval and limit; the others
    stand in their labels.

    Parameters
    ----------
    table : DataFrame
        Of a GateReport: name, value, low, high, limit, above, n, verdict.
    """
    import matplotlib.pyplot as plt

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


def timeline(
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


def tradeoff(table: pd.DataFrame, title: str):
    """Accuracy against latency (left) and against cost (right); hollow: another variant
    is as good in all and better in one.

    Columns: accuracy, accuracy_low, accuracy_high, p50_ms, size_mb, cost_per_million,
    and front (bool, of `pareto`); index: the variants.
    """
    import matplotlib.pyplot as plt

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


def robustness(table: pd.DataFrame, trained_on: str, title: str):
    """Accuracy before (open) and after (filled) retraining, by drift.

    Columns: kind, before, after, n, and says ("better", "worse" or "no difference
    shown").
    """
    import matplotlib.pyplot as plt

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
