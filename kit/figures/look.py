"""The one look of the course, and what several figures share."""

from __future__ import annotations

import math

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
            # names of files and rules are strangers' text: $ is a letter
            "text.parse_math": False,
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
