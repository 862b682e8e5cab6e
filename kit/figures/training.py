"""Figures of themes 2 and 3: a table in, a figure out."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from kit.figures.look import COLOURS, arms, image_grid


def history(history: pd.DataFrame, title: str):
    """Loss and accuracy of training and validation by epoch."""
    import matplotlib.pyplot as plt

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


def confusion(counts: np.ndarray, classes, title: str):
    """Confusion matrix: counts int (K, K), rows are the true classes; on the diagonal
    the recall with its 95 % interval (Wilson, 1927).
    """
    import matplotlib.pyplot as plt

    k = len(classes)
    totals = np.maximum(counts.sum(axis=1), 1)
    shares = counts / totals[:, None]
    figure, axis = plt.subplots(figsize=(1.9 * k + 2.2, 1.5 * k + 1.4))
    axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axis.grid(False)
    for i, j in np.ndindex(counts.shape):
        text = f"{counts[i, j]}"
        if i == j:
            found = binomtest(int(counts[i, i]), int(totals[i]))
            low, high = found.proportion_ci(method="wilson")
            text += f"\n{shares[i, i]:.0%} [{low:.0%}, {high:.0%}]"
        colour = "white" if shares[i, j] > 0.6 else "black"
        axis.text(j, i, text, ha="center", va="center", color=colour)
    axis.set_xticks(range(k), classes)
    axis.set_yticks(range(k), classes, rotation=90, va="center")
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.set_title(f"{title} (n = {counts.sum()})")
    return figure


def effects(table: pd.DataFrame, title: str, label: str):
    """Differences with their intervals (columns difference, low, high), one row each,
    against a line at zero.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 0.5 * len(table) + 1.4))
    places, error = np.arange(len(table))[::-1], arms(table, "difference")
    axis.axvline(0, ls=":", color="black")
    axis.errorbar(table["difference"], places, xerr=error, fmt="o", capsize=4)
    axis.set_yticks(places, table.index)
    axis.set(title=title, xlabel=label, ylabel="what is changed")
    axis.set_ylim(-0.6, len(table) - 0.4)
    return figure


def transfer(table: pd.DataFrame, title: str):
    """Accuracy against the number of training images, a line a network: columns
    images, network, accuracy, low, high.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8.5, 4.2))
    for number, (name, rows) in enumerate(table.groupby("network", sort=False)):
        # side by side: three intervals at one place would hide one another
        x = rows["images"] * 1.04 ** (number - 1)
        look = {"marker": "os^D"[number], "capsize": 4, "color": COLOURS[number]}
        axis.errorbar(x, rows["accuracy"], arms(rows), label=name, **look)
    counts = np.unique(table["images"])
    axis.set_xscale("log")
    axis.set_xticks(counts, counts)
    axis.minorticks_off()
    axis.set_xlabel("training images (logarithmic)")
    axis.set(ylabel="accuracy on val, 95 %", title=title)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# How the trials of a search look, by what became of them.
TRIALS = {
    "finished": {"color": COLOURS[0], "marker": "o"},
    "best": {"color": COLOURS[2], "marker": "D", "lw": 3},
    "pruned": {"color": COLOURS[1], "marker": "x", "ls": "--"},
}


def search(study):
    """The trials of an Optuna study: lowest losses, and their learning curves."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6))
    # others were tried again, or exploded in their first epoch
    trials = [
        trial
        for trial in study.trials
        if trial.state.name in ("COMPLETE", "PRUNED") and trial.intermediate_values
    ]
    told, own = set(), ""
    for trial in trials:
        kind = "finished" if trial.state.name == "COMPLETE" else "pruned"
        kind = "best" if trial.number == study.best_trial.number else kind
        values, look = trial.intermediate_values, TRIALS[kind]
        right.plot(values.keys(), values.values(), **look)
        label = None if kind in told else kind
        told.add(kind)
        point = look | {"ls": "none", "ms": 8, "label": label}
        left.plot(trial.number, min(values.values()), **point)
        if trial.params == study.user_attrs["own"]:
            own = own or f" (number {trial.number}: our own recipe)"
    left.legend()
    loss = "val loss (weighted)"
    title = f"{len(trials)} trial{'s' * (len(trials) != 1)}"
    left.set(xlabel=f"trial{own}", ylabel=f"lowest {loss}", title=title)
    right.set(xlabel="epoch", ylabel=loss, title="Their learning curves")
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def heat(images: np.ndarray, maps: np.ndarray, titles, title: str, columns: int = 8):
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
