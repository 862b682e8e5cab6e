"""What can happen to a picture: effects, windows, streams."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from kit.files import CourseError
from kit.fingerprint import fingerprint
from kit.home import DATASETS, POOLS


@dataclass(frozen=True)
class Drift:
    """A change of the world in five graded severities.

    Attributes
    ----------
    name : str
    says : str
        What happens in the world, in one sentence.
    unit : str
        Of the levels. Lengths are shares of the picture, so that 64 and 224 pixels mean
        the same.
    levels : tuple of five numbers
        Level of severity 1 (barely visible) to 5 (harmful, but a person still knows the
        picture).
    datasets : tuple of str
        Where it can happen.
    """

    name: str
    says: str
    unit: str
    levels: tuple[float, ...]
    datasets: tuple[str, ...] = tuple(DATASETS)

    def label(self, severity: int) -> str:
        """Level and unit of a severity 1 to 5, as "20°", "12 grey levels" or "gamma
        1.6".
        """
        level = f"{self.levels[severity - 1]:.3g}"
        if self.unit in ("gamma", "JPEG quality"):  # names of a number, no units
            return f"{self.unit} {level}"
        return (
            level + self.unit if self.unit.startswith("°") else f"{level} {self.unit}"
        )


_LUNGS, _ROOFS = ("pneumonia", "pneumonia3"), ("solar",)
DRIFTS = {
    drift.name: drift
    for drift in (
        Drift(
            "scanner",
            "Another X-ray machine: its tone curve lifts the dark parts and its"
            " detector is coarser.",
            "gamma",
            (1.15, 1.35, 1.6, 1.9, 2.2),
            _LUNGS,
        ),
        Drift(
            "shadow",
            "The shadow of a tree or a chimney lies across part of the roof.",
            "% less light",
            (15, 30, 45, 60, 75),
            _ROOFS,
        ),
        Drift(
            "cloud",
            "Haze or thin cloud between camera and roof: a white veil, here thinner and"
            " there thicker.",
            "% veil",
            (8, 16, 26, 38, 52),
            _ROOFS,
        ),
        Drift(
            "view_angle",
            "The camera looks from the side, no longer straight down.",
            "° off vertical",
            (15, 30, 42, 52, 60),
            _ROOFS,
        ),
        Drift(
            "blur", "The lens is out of focus.", "% of width", (0.7, 1.1, 1.6, 2.2, 3.0)
        ),
        Drift(
            "noise",
            "Less light or a cheaper sensor: every pixel is off by chance.",
            "grey levels",
            (4, 10, 18, 28, 40),
        ),
        Drift(
            "brightness",
            "Longer exposure: every pixel is brighter, and the brightest are lost.",
            "grey levels",
            (10, 25, 45, 65, 90),
        ),
        Drift(
            "contrast",
            "A flat picture: scattered rays, a dirty lens, a changed setting.",
            "% of contrast",
            (85, 70, 55, 45, 35),
        ),
        Drift(
            "rotation",
            "The picture is taken at an angle, to the left or to the right.",
            "°",
            (4, 10, 20, 32, 45),
        ),
        Drift(
            "resolution",
            "A smaller picture was sent and enlarged again.",
            "% of pixels a side",
            (75, 50, 35, 25, 17),
        ),
        Drift(
            "jpeg",
            "Someone compresses the files harder to save space.",
            "JPEG quality",
            (75, 50, 30, 18, 10),
        ),
        Drift(
            "occlusion",
            "Something dark lies in the way: a marker, a tag, a bird.",
            "% of the area",
            (2, 5, 9, 14, 20),
        ),
        Drift(
            "class_prior",
            "The pictures stay as they are, but positives become rarer.",
            "× odds of positives",
            tuple(round(math.exp(-0.4 * severity), 4) for severity in range(1, 6)),
        ),
    )
}


def drifts_of(dataset: str) -> list[str]:
    """Names of the drifts that can happen to a dataset, in the order of DRIFTS."""
    if dataset not in DATASETS:
        raise CourseError(
            f"Dataset {dataset!r} is unknown: choose one of {', '.join(DATASETS)}."
        )
    return [name for name, drift in DRIFTS.items() if dataset in drift.datasets]


def check_kind(kind: str, allowed, where: str = "") -> None:
    if kind not in allowed:
        raise CourseError(
            f"Drift {kind!r} is unknown{where}: choose one of {', '.join(allowed)}."
        )


def check_severity(severity: int) -> None:
    if not isinstance(severity, (int, np.integer)) or not 0 <= severity <= 5:
        raise CourseError(
            f"Severity {severity!r} is unknown: choose 0 (no drift), 1, 2, 3, 4 or 5"
            " (worst)."
        )


def drift_images(
    pixels: np.ndarray, kind: str, severity: int, seed: int = 42
) -> np.ndarray:
    """Harm images as the world would, on a scale of five.

    What happens by chance to an image (side, place, pattern) depends on (kind, seed)
    and its position in `pixels`, how strongly it happens on the severity alone: the
    five severities of an image tell one story.

    Parameters
    ----------
    pixels : uint8 array (N, C, S, S)
        Not changed.
    kind : str
        A key of DRIFTS, except "class_prior".
    severity : int
        0 (an equal copy) to 5; `DRIFTS[kind].levels[severity - 1]` is its physical
        size.
    seed : int

    Returns
    -------
    uint8 array (N, C, S, S)

    Raises
    ------
    CourseError
        Unknown kind or severity; pixels of another type or shape; "class_prior", which
        draws other images.
    """
    if kind == "class_prior":
        raise CourseError(
            "Drift 'class_prior' changes no pixels, it draws other images: use"
            " utils.drift_window."
        )
    check_kind(kind, _EFFECTS)
    check_severity(severity)
    square = (
        isinstance(pixels, np.ndarray)
        and pixels.ndim == 4
        and pixels.shape[2] == pixels.shape[3]
    )
    if not square or pixels.dtype != np.uint8:
        found = (
            f"{pixels.dtype} {pixels.shape}"
            if isinstance(pixels, np.ndarray)
            else type(pixels).__name__
        )
        raise CourseError(
            f"pixels must be uint8 (N, C, S, S), these are {found}: pass"
            " data.pixels[rows]."
        )
    drifted = np.array(pixels)
    if severity == 0:
        return drifted
    level = DRIFTS[kind].levels[severity - 1]
    chance = np.random.default_rng([seed, *kind.encode()]).random((len(pixels), 4))
    # 16 MB of floats: any number of images fits into memory
    block = max(1, 2**22 // math.prod(pixels.shape[1:]))
    for start in range(0, len(pixels), block):
        part = slice(start, start + block)
        images = torch.from_numpy(drifted[part]).float() / 255
        images = _EFFECTS[kind](images, level, torch.from_numpy(chance[part]))
        drifted[part] = (images * 255).round().clamp(0, 255).byte().numpy()
    return drifted


def _scanner(images, gamma, chance):
    """Dark parts turn lighter (grey to the power 1/gamma), black and white stay;
    1/gamma of the pixels a side.
    """
    return _resolution(images, 100 / gamma, chance) ** (1 / gamma)


def _shadow(images, percent, chance):
    """A band with soft edges, at a drawn angle, place and width; the sky still lights
    it, hence its blue.
    """
    angle, place, width = (
        chance[:, 0] * math.pi,
        chance[:, 1] - 0.5,
        0.2 + 0.3 * chance[:, 2],
    )
    x, y = _turned(images, angle)
    # negative inside
    distance = (x - place.view(-1, 1, 1)).abs() - width.view(-1, 1, 1)
    inside = torch.sigmoid(-distance / 0.06).float()
    light = torch.tensor([1.0, 0.95, 0.85])[: images.shape[1]].view(1, -1, 1, 1)
    return images * (1 - percent / 100 * light * inside.unsqueeze(1))


def _cloud(images, percent, chance):
    """Blend with white; the density varies slowly over the picture, between half and
    one and a half of its level.
    """
    smooth = F.interpolate(
        2 * _normal(chance, (1, 5, 5)), size=images.shape[-1], mode="bicubic"
    )
    return torch.lerp(
        images, torch.ones_like(images), percent / 100 * (0.5 + torch.sigmoid(smooth))
    )


def _view_angle(images, degrees, chance):
    """A pinhole camera four half-widths away, tilted from the vertical towards a drawn
    azimuth.
    """
    azimuth, tilt, far = chance[:, 0] * 2 * math.pi, math.radians(degrees), 4.0
    u, v = _turned(images, azimuth)
    # the ray (u, v) meets the ground at (x, y)
    depth = far * math.cos(tilt) + u * math.sin(tilt)
    x, y = far * u / depth, far * math.cos(tilt) * v / depth
    cos, sin = torch.cos(azimuth).view(-1, 1, 1), torch.sin(azimuth).view(-1, 1, 1)
    return _sample(images, cos * x - sin * y, sin * x + cos * y)


def _blur(images, percent, chance):
    """Gaussian, its sigma in percent of the width, cut at four sigma."""
    sigma = percent / 100 * images.shape[-1]
    reach = min(math.ceil(4 * sigma), images.shape[-1] - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    # As one matrix for rows and columns, it costs the same for every sigma and channel.
    single = F.pad(
        torch.eye(images.shape[-1]).unsqueeze(1), (reach, reach), mode="reflect"
    )
    matrix = F.conv1d(single, (kernel / kernel.sum()).view(1, 1, -1)).squeeze(1)
    return matrix.T @ images @ matrix


def _noise(images, std, chance):
    """White Gaussian noise, its standard deviation in grey levels."""
    return images + std / 255 * _normal(chance, images.shape[1:])


def _brightness(images, shift, chance):
    return images + shift / 255


def _contrast(images, percent, chance):
    """About the mean of the image, which stays."""
    return torch.lerp(images.mean(dim=(1, 2, 3), keepdim=True), images, percent / 100)


def _rotation(images, degrees, chance):
    angle = torch.where(chance[:, 0] < 0.5, -1.0, 1.0) * math.radians(degrees)
    return _sample(images, *_turned(images, angle))


def _resolution(images, percent, chance):
    """Averaged down and interpolated up again."""
    size = images.shape[-1]
    small = F.interpolate(
        images,
        size=max(1, round(size * percent / 100)),
        mode="bilinear",
        antialias=True,
    )
    return F.interpolate(small, size=size, mode="bilinear")


def _jpeg(images, quality, chance):
    from PIL import Image

    drifted = torch.empty_like(images)
    for target, image in zip(
        drifted, (images * 255).round().byte().numpy(), strict=True
    ):
        file = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(
            file, "JPEG", quality=int(quality)
        )
        back = (
            np.asarray(Image.open(file))
            .reshape(*image.shape[1:], -1)
            .transpose(2, 0, 1)
        )
        target.copy_(torch.from_numpy(back.copy()).float() / 255)
    return drifted


def _occlusion(images, percent, chance):
    """A dark grey square at a drawn place, wholly inside the picture."""
    side, line = (
        math.sqrt(percent / 100),
        (torch.arange(images.shape[-1]) + 0.5) / images.shape[-1],
    )
    # every larger square holds the smaller ones
    start = chance[:, :2, None] * (1 - side)
    inside = (line >= start) & (line < start + side)
    hidden = inside[:, 0, None, None, :] & inside[:, 1, None, :, None]
    return images.masked_fill(hidden, 40 / 255)


_EFFECTS = {
    "scanner": _scanner,
    "shadow": _shadow,
    "cloud": _cloud,
    "view_angle": _view_angle,
    "blur": _blur,
    "noise": _noise,
    "brightness": _brightness,
    "contrast": _contrast,
    "rotation": _rotation,
    "resolution": _resolution,
    "jpeg": _jpeg,
    "occlusion": _occlusion,
}


def _normal(chance: torch.Tensor, shape) -> torch.Tensor:
    """Standard normal fields (n, *shape), one generator an image: no block and no
    neighbour changes its draw.
    """
    seeds = (chance[:, 3].numpy() * 2**53).astype(np.int64)
    fields = [
        np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32)
        for seed in seeds
    ]
    return torch.from_numpy(np.stack(fields))


def _turned(
    images: torch.Tensor, angle: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates x, y (n, S, S) of every pixel in axes turned by `angle` (n,), -1..1
    along the sides.
    """
    line = (torch.arange(images.shape[-1]) + 0.5) * 2 / images.shape[-1] - 1
    cos, sin = torch.cos(angle).view(-1, 1, 1), torch.sin(angle).view(-1, 1, 1)
    return cos * line + sin * line.view(-1, 1), cos * line.view(-1, 1) - sin * line


def _sample(images: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Images at (x, y), bilinear; what lies outside is mirrored, as in the
    augmentation.
    """
    grid = torch.stack([x, y], dim=-1).float()
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def drift_window(
    data,
    rows,
    kind: str,
    severity: int,
    seed: int = 42,
    size: int | None = None,
    replace: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a window of images and let a drift happen to it.

    The draw depends on the seed alone, so that every kind and severity of one seed
    harms the same images. Only "class_prior" leaves positives out (all classes but
    class 0): the expected odds of the positives fall by its level, exp(-0.4 severity).

    Parameters
    ----------
    data : Data
    rows : int array
        Row numbers to draw from, as of `data.where(pool)`.
    kind, severity, seed : as in `drift_images`
    size : int, optional
        Images of the window; None takes all rows in order, or as many as the odds of
        "class_prior" allow.
    replace : bool
        Draw with replacement.

    Returns
    -------
    pixels : uint8 array (n, C, S, S)
    rows : int64 array (n,)
        `data.labels[rows]` are the labels.

    Raises
    ------
    CourseError
        A drift of another dataset; no rows, or rows of one class for "class_prior"; a
        window larger than the rows can serve without replacement.
    """
    check_kind(kind, drifts_of(data.course.dataset), f" for {data.course.dataset}")
    check_severity(severity)
    rows = np.asarray(rows)
    if len(rows) == 0 or (size is not None and size < 1):
        raise CourseError(
            f"A window of {size or len(rows)} images from {len(rows)} rows is empty:"
            " ask for one image or more, from a pool that has images."
        )
    if rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= len(data.labels):
        raise CourseError(
            f"rows must be row numbers 0 to {len(data.labels) - 1}, these are"
            f" {rows.dtype} up to {rows.max()}: pass data.where(pool)."
        )
    rows = rows.astype(np.int64)
    rng = np.random.default_rng([seed, 0])
    left = (
        rows[_kept(data.labels[rows], severity, rng)] if kind == "class_prior" else rows
    )
    if size is not None and size > len(left) and not replace:
        needed = math.ceil(size * len(rows) / len(left))
        raise CourseError(
            f"A window of {size} images (drift {kind!r}, severity {severity}) without"
            f" replacement needs {needed} rows of this class mix, there are"
            f" {len(rows)}: ask for {len(left)} at most, or pass replace=True."
        )
    if size is not None or replace:
        left = rng.choice(left, size or len(left), replace=replace)
    pixels = np.asarray(data.pixels[left])
    return (
        pixels if kind == "class_prior" else drift_images(pixels, kind, severity, seed)
    ), left


def _kept(labels: np.ndarray, severity: int, rng) -> np.ndarray:
    """Positions, sorted, after positives were left out: all of class 0, and a share
    exp(-0.4 severity) of the rest.
    """
    if severity == 0:
        return np.arange(len(labels))
    negative, positive = (
        np.flatnonzero(labels == 0),
        rng.permutation(np.flatnonzero(labels != 0)),
    )
    if len(negative) == 0 or len(positive) == 0:
        raise CourseError(
            f"Drift 'class_prior' changes the mix of classes, but all {len(labels)}"
            f" images are {'positive' if len(positive) else 'negative'}: draw from a"
            " whole pool."
        )
    share = len(positive) * DRIFTS["class_prior"].levels[severity - 1]
    # rounded by chance: the expected odds are exact
    count = int(share) + (rng.random() < share % 1)
    return np.sort(np.concatenate([negative, positive[:count]]))


def drift_data(
    data,
    kind: str,
    severity: int,
    seed: int = 42,
    pools=("val", "production", "adapt", "gate"),
):
    """The same data after a drift: pixels of these pools are harmed, or positives leave
    them ("class_prior").

    Every pool is drifted as `drift_window` drifts all its rows. The cache on disk is
    not touched; the copy lives in memory, and its `key` names the drift, so that stored
    results of the clean data are not taken for its own.

    Raises
    ------
    CourseError
        Pools "train" and "test", unknown pools, a drift of another dataset.
    """
    pools = [pools] if isinstance(pools, str) else list(pools)
    allowed = [pool for pool in POOLS if pool != "train"]
    wrong = [pool for pool in pools if pool not in allowed]
    if wrong:
        raise CourseError(
            f"Pool {wrong[0]!r} is not drifted: the network is trained before the world"
            " changes, and test is for one final figure a model. Choose among"
            f" {', '.join(allowed)}."
        )
    check_kind(kind, drifts_of(data.course.dataset), f" for {data.course.dataset}")
    check_severity(severity)
    key = fingerprint(drift_images, data.key, kind, severity, seed, sorted(pools))
    if kind == "class_prior":
        index = data.index.copy()
        for pool in pools:
            rows = data.where(pool)
            index.loc[
                np.setdiff1d(rows, drift_window(data, rows, kind, severity, seed)[1]),
                "pool",
            ] = ""
        return replace(data, index=index, key=key)
    pixels = np.array(data.pixels)
    for pool in pools:
        rows = data.where(pool)
        pixels[rows] = drift_images(pixels[rows], kind, severity, seed)
    return replace(data, pixels=pixels, key=key)


def drift_scenario(shape: str, windows: int, severity: int = 4) -> list[int]:
    """Severity of each window of a stream.

    Parameters
    ----------
    shape : {"none", "sudden", "gradual", "recurring"}
        No drift; full severity after a third; after a quarter one step at a time, full
        at the end; two episodes with quiet before, between and after.
    windows : int
        At least 6.

    Raises
    ------
    CourseError
        Unknown shape or severity, fewer than six windows.
    """
    check_severity(severity)
    if windows < 6:
        raise CourseError(
            f"A stream of {windows} windows is too short to have a before and an after:"
            " use 6 or more."
        )
    quiet = windows // 4
    ramp = [
        math.ceil(severity * step / (windows - quiet))
        for step in range(1, windows - quiet + 1)
    ]
    shapes = {
        "none": [0] * windows,
        "sudden": [
            severity if window >= windows // 3 else 0 for window in range(windows)
        ],
        "gradual": [0] * quiet + ramp,
        "recurring": [
            severity * (window * 5 // windows % 2) for window in range(windows)
        ],
    }
    if shape not in shapes:
        raise CourseError(
            f"Scenario {shape!r} is unknown: choose one of {', '.join(shapes)}."
        )
    return shapes[shape]
