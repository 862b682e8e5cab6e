"""What can happen to a picture between training and next year: effects, windows,
streams.

Pixels uint8 (N, C, S, S) come in, the same go out. A drift of your own is a function
`fog(images, severity, rng)` whose docstring says what happens: `register_drift(fog)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from kit.files import CourseError
from kit.fingerprint import fingerprint
from kit.home import DATASETS


class Drift(NamedTuple):
    """A change of the world in five graded severities.

    effect : `effect(images, level, rng)`: grey levels 0..255, float32 (n, C, S, S), one
        of `levels` and a NumPy generator -> the same shape. It draws the same whatever
        the level, so that the five severities of an image tell one story.
    levels : of severity 1 (barely visible) to 5 (a person still knows the picture), in
        `unit`; lengths are shares of the picture, so that 64 and 224 pixels mean the
        same.
    datasets : where it can happen.
    """

    effect: Callable
    unit: str = "of 5"
    levels: tuple[float, ...] = (1, 2, 3, 4, 5)
    datasets: tuple[str, ...] = tuple(DATASETS)

    @property
    def says(self) -> str:
        """What happens in the world, in one sentence."""
        return " ".join((self.effect.__doc__ or self.effect.__name__).split())

    def label(self, severity: int) -> str:
        """Level and unit of a severity, as "20°", "12 grey levels" or "gamma 1.6"."""
        level = f"{self.levels[severity - 1]:.3g}"
        if self.unit in ("gamma", "JPEG quality"):  # names of a number, no units
            return f"{self.unit} {level}"
        return level + ("" if self.unit.startswith("°") else " ") + self.unit


def blur(images, percent, rng):
    """The lens is out of focus."""
    sigma = percent / 100 * images.shape[-1]
    return vision().gaussian_blur(images, 2 * math.ceil(4 * sigma) + 1, sigma)


def noise(images, std, rng):
    """Less light or a cheaper sensor: every pixel is off by chance."""
    # torchvision's gaussian_noise takes no generator: nobody could draw it again
    return images + std * torch.from_numpy(rng.standard_normal(images.shape, "float32"))


def brightness(images, factor, rng):
    """Longer exposure: every pixel is brighter, and the brightest are lost."""
    return vision().adjust_brightness(images.byte(), factor)


def contrast(images, percent, rng):
    """A flat picture: scattered rays, a dirty lens, a changed setting."""
    return vision().adjust_contrast(images.byte(), percent / 100)


def resolution(images, percent, rng):
    """A smaller picture was sent and enlarged again."""
    size = images.shape[-1]
    small = vision().resize(images, [max(1, round(size * percent / 100))] * 2)
    return vision().resize(small, [size, size])


def jpeg(images, quality, rng):
    """Someone compresses the files harder to save space."""
    return vision().jpeg(images.byte(), quality)


def rotation(images, degrees, rng):
    """The picture is taken at an angle, to the left or to the right."""
    sign = torch.from_numpy(rng.random(len(images)) < 0.5) * 2.0 - 1
    return sample(images, *turned(images, sign * math.radians(degrees)))


def view_angle(images, degrees, rng):
    """The camera looks from the side, no longer straight down."""
    azimuth = torch.from_numpy(rng.random(len(images))) * 2 * math.pi
    tilt, far = math.radians(degrees), 4.0  # a pinhole, four half-widths away
    u, v = turned(images, azimuth)
    depth = far * math.cos(tilt) + u * math.sin(tilt)
    x, y = far * u / depth, far * math.cos(tilt) * v / depth  # where the ray lands
    cos, sin = azimuth.cos().view(-1, 1, 1), azimuth.sin().view(-1, 1, 1)
    return sample(images, cos * x - sin * y, sin * x + cos * y)


def scanner(images, gamma, rng):
    """Another X-ray machine: its tone curve lifts the dark parts and its detector is
    coarser."""
    return 255 * (resolution(images, 100 / gamma, rng) / 255) ** (1 / gamma)


def shadow(images, percent, rng):
    """The shadow of a tree or a chimney lies across part of the roof."""
    angle, place, width = torch.from_numpy(rng.random((len(images), 3))).T
    across = turned(images, angle * math.pi)[0] - (place - 0.5).view(-1, 1, 1)
    distance = across.abs() - (0.2 + 0.3 * width).view(-1, 1, 1)  # negative inside
    inside = torch.sigmoid(-distance / 0.06).unsqueeze(1)  # (n, 1, S, S), soft edges
    # the sky still lights it, hence its blue
    light = torch.tensor([1.0, 0.95, 0.85])[: images.shape[1], None, None]
    return images * (1 - percent / 100 * light * inside)


def cloud(images, percent, rng):
    """Haze or thin cloud between camera and roof: a white veil, here thinner and there
    thicker."""
    coarse = torch.from_numpy(rng.standard_normal((len(images), 1, 5, 5), "float32"))
    smooth = F.interpolate(2 * coarse, size=images.shape[-1], mode="bicubic")
    veil = percent / 100 * (0.5 + torch.sigmoid(smooth))  # half to one and a half
    return images * (1 - veil) + 255 * veil


def occlusion(images, percent, rng):
    """Something dark lies in the way: a marker, a tag, a bird."""
    side = math.sqrt(percent / 100)
    # every larger square holds the smaller ones
    start = torch.from_numpy(rng.random((len(images), 2, 1))) * (1 - side)
    line = (torch.arange(images.shape[-1]) + 0.5) / images.shape[-1]
    inside = (line >= start) & (line < start + side)  # (n, 2, S): columns, rows
    hidden = inside[:, 0, None, None, :] & inside[:, 1, None, :, None]
    return images.masked_fill(hidden, 40)


def orientation(images, percent, rng):
    """Some pictures lie on their side: a program ignores how the file was held."""
    return some(images, images.rot90(1, (2, 3)), percent, rng)


def colour_order(images, percent, rng):
    """Some pictures come as blue, green, red: a program expects red, green, blue."""
    return some(images, images.flip(1), percent, rng)


def class_prior(images, odds, rng):
    """The pictures stay as they are, but positives become rarer."""
    return images  # `drift_window` draws others


def vision():
    from torchvision.transforms.v2 import functional  # takes seconds to import

    return functional


def some(images, changed, percent, rng):
    """So many changed images of a hundred, drawn by chance, the others as they are."""
    drawn = torch.from_numpy(rng.random(len(images)) < percent / 100)
    return torch.where(drawn.view(-1, 1, 1, 1), changed, images)


def turned(images, angle):
    """Coordinates x, y (n, S, S) of every pixel in axes turned by `angle` (n,), -1..1
    along the sides.
    """
    line = (torch.arange(images.shape[-1]) + 0.5) * 2 / images.shape[-1] - 1
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    return cos * line + sin * line.view(-1, 1), cos * line.view(-1, 1) - sin * line


def sample(images, x, y):
    """Images at (x, y), bilinear; what lies outside is mirrored, as in the
    augmentation.
    """
    grid = torch.stack([x, y], dim=-1).float()
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


LUNGS, ROOFS = ("pneumonia", "pneumonia3"), ("solar",)
DRIFTS = {
    "scanner": Drift(scanner, "gamma", (1.15, 1.35, 1.6, 1.9, 2.2), LUNGS),
    # these two leave the grey levels as they are: statistics of the pixels see nothing
    "orientation": Drift(orientation, "% of images", (10, 25, 45, 70, 100), LUNGS),
    "colour_order": Drift(colour_order, "% of images", (10, 25, 45, 70, 100), ROOFS),
    "shadow": Drift(shadow, "% less light", (15, 30, 45, 60, 75), ROOFS),
    "cloud": Drift(cloud, "% veil", (8, 16, 26, 38, 52), ROOFS),
    "view_angle": Drift(view_angle, "° off vertical", (15, 30, 42, 52, 60), ROOFS),
    "blur": Drift(blur, "% of width", (0.7, 1.1, 1.6, 2.2, 3.0)),
    "noise": Drift(noise, "grey levels", (4, 10, 18, 28, 40)),
    "brightness": Drift(brightness, "× light", (1.1, 1.25, 1.45, 1.7, 2.0)),
    "contrast": Drift(contrast, "% of contrast", (85, 70, 55, 45, 35)),
    "rotation": Drift(rotation, "°", (4, 10, 20, 32, 45)),
    "resolution": Drift(resolution, "% of pixels a side", (75, 50, 35, 25, 17)),
    "jpeg": Drift(jpeg, "JPEG quality", (75, 50, 30, 18, 10)),
    "occlusion": Drift(occlusion, "% of the area", (2, 5, 9, 14, 20)),
    "class_prior": Drift(
        class_prior, "× odds of positives", (0.6703, 0.4493, 0.3012, 0.2019, 0.1353)
    ),
}


def drifts_of(dataset: str) -> list[str]:
    """Names of the drifts that can happen to a dataset, in the order of DRIFTS."""
    return [name for name, drift in DRIFTS.items() if dataset in drift.datasets]


def check_drift(kind: str, severity: int, dataset: str | None = None) -> None:
    allowed = drifts_of(dataset) if dataset else list(DRIFTS)
    if kind not in allowed:
        where = f" for {dataset}" if dataset else ""
        raise CourseError(
            f"Drift {kind!r} is unknown{where}: choose one of {', '.join(allowed)}."
        )
    if severity not in range(6):
        raise CourseError(f"Severity {severity!r} is unknown: choose 0 (none) to 5.")


def drift_images(
    pixels: np.ndarray, kind: str, severity: int, seed: int = 42
) -> np.ndarray:
    """Harm images, uint8 (N, C, S, S), as the world would, on a scale of five (0: an
    equal copy).

    What happens by chance to an image (side, place, pattern) depends on (kind, seed)
    and its position in `pixels`, how strongly it happens on the severity alone: the
    five severities of an image tell one story.
    """
    check_drift(kind, severity)
    if kind == "class_prior":
        raise CourseError(
            "Drift 'class_prior' changes no pixels, it draws other images: use"
            " utils.drift_window."
        )
    drifted, drift = np.array(pixels), DRIFTS[kind]
    if drifted.ndim != 4 or drifted.dtype != np.uint8:
        raise CourseError(
            f"pixels must be uint8 (N, C, S, S), these are {drifted.dtype}"
            f" {drifted.shape}: pass data.pixels[rows]."
        )
    rng = np.random.default_rng([seed, *kind.encode()])
    for start in range(0, len(drifted) if severity else 0, 64):  # as fits into memory
        images = torch.from_numpy(drifted[start : start + 64]).float()
        harmed = torch.as_tensor(drift.effect(images, drift.levels[severity - 1], rng))
        drifted[start : start + 64] = harmed.round().clamp(0, 255).byte().numpy()
    return drifted


def drift_window(
    data,
    rows,
    kind: str,
    severity: int,
    seed: int = 42,
    size: int | None = None,
    replace: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `size` images of `rows`, as of `data.where(pool)`, and let a drift happen to
    them: pixels uint8 (n, C, S, S), and which rows they are, int64 (n,).

    The draw depends on the seed alone, so that every kind and severity of one seed
    harms the same images. Only "class_prior" leaves positives out (all classes but
    class 0): the expected odds of the positives fall by its level, exp(-0.4 severity).
    Without a size all rows come, in order, or as many as these odds allow.
    """
    check_drift(kind, severity, data.course.dataset)
    left, rng = np.asarray(rows, dtype=np.int64), np.random.default_rng([seed, 0])
    if kind == "class_prior" and severity:
        left = fewer_positives(data.labels, left, severity, rng)
    if len(left) == 0 or (size is not None and size < 1):
        raise CourseError(
            f"A window of {size or len(left)} images from {len(left)} rows is empty:"
            " ask for one image or more, from a pool that has images."
        )
    if size is not None and size > len(left) and not replace:
        raise CourseError(
            f"A window of {size} images (drift {kind!r}, severity {severity}) is more"
            f" than the {len(left)} that {len(rows)} rows give: ask for {len(left)} at"
            " most, or pass replace=True."
        )
    if size is not None or replace:
        left = rng.choice(left, size or len(left), replace=replace)
    pixels = np.array(data.pixels[left])
    if kind != "class_prior":
        pixels = drift_images(pixels, kind, severity, seed)
    return pixels, left


def fewer_positives(labels: np.ndarray, rows: np.ndarray, severity: int, rng):
    """All rows of class 0 and a share exp(-0.4 severity) of the others, in order."""
    negative = rows[labels[rows] == 0]
    positive = rng.permutation(rows[labels[rows] != 0])
    if len(negative) == 0 or len(positive) == 0:
        raise CourseError(
            f"Drift 'class_prior' changes the mix of classes, but all {len(rows)}"
            f" images are {'positive' if len(positive) else 'negative'}: draw from a"
            " whole pool."
        )
    share = len(positive) * DRIFTS["class_prior"].levels[severity - 1]
    # rounded by chance: the expected odds are exact
    count = int(share) + (rng.random() < share % 1)
    kept = np.concatenate([negative, positive[:count]])
    return rows[np.isin(rows, kept)]


def drift_data(data, kind: str, severity: int, seed: int = 42):
    """The same data after a drift: the pixels of its pools are harmed, or positives
    leave them ("class_prior"), each pool as by `drift_window` with all its rows.

    Pool "train" is not drifted, as the network learns before the world changes, nor is
    "test", which is for one final figure a model. The cache on disk is not touched; the
    copy lives in memory, and its `key` names the drift, so that stored results of the
    clean data are not taken for its own.
    """
    index, pixels = data.index.copy(), np.array(data.pixels)
    for pool in ("val", "production", "adapt", "gate"):
        rows = data.where(pool)
        harmed, left = drift_window(data, rows, kind, severity, seed)
        index.loc[np.setdiff1d(rows, left), "pool"] = ""
        pixels[left] = harmed
    key = fingerprint(drift_images, data.key, kind, severity, seed)
    index["drifted"] = bool(severity)  # so that it is not taken for the clean data
    return replace(data, index=index, pixels=pixels, key=key)


def drift_scenario(shape: str, windows: int, severity: int = 4) -> list[int]:
    """Severity of each window of a stream.

    Parameters
    ----------
    shape : {"none", "sudden", "gradual", "recurring"}
        No drift; full severity after a third; after a quarter one step at a time, full
        at the end; two episodes with quiet before, between and after.
    windows : int
        At least 6.
    """
    if windows < 6:
        raise CourseError(
            f"A stream of {windows} windows is too short to have a before and an after:"
            " use 6 or more."
        )
    quiet, every = windows // 4, range(windows)
    rising = [math.ceil(severity * (w - quiet + 1) / (windows - quiet)) for w in every]
    shapes = {
        "none": [0 for _ in every],
        "sudden": [severity * (w >= windows // 3) for w in every],
        "gradual": [max(0, step) for step in rising],
        "recurring": [severity * (w * 5 // windows % 2) for w in every],
    }
    if shape not in shapes:
        raise CourseError(
            f"Scenario {shape!r} is unknown: choose one of {', '.join(shapes)}."
        )
    return shapes[shape]
