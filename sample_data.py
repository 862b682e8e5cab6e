"""Draws the two embedded sample datasets: real JPEG files in the folders and file names
of the real archives.

They exist so that the whole course runs without a download. They are hard enough to
learn something from: the signal is local and randomly placed, brightness says nothing,
and healthy images carry look-alikes."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed
from PIL import Image

DISCLAIMER = (
    "These images are drawn by sample_data.py, not real: their figures mean nothing,"
    " medically or otherwise."
)
# raised when the drawings change, so that folders drawn before are recognised
VERSION = 2


# --------------------------------------------------------------------------------------
# Brushes
# --------------------------------------------------------------------------------------


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates x, y in -1..1, float32 (height, width)."""
    return np.meshgrid(
        *(np.linspace(-1, 1, side, dtype=np.float32) for side in (width, height))
    )


def _smooth(rng, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth random field, about mean 0 and spread 1, with `cells` bumps a side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))


def _soft(distance: np.ndarray, width: float) -> np.ndarray:
    """1 inside (distance below 0), 0 outside, with an edge of the given width."""
    return 1 / (1 + np.exp(np.clip(distance / width, -30, 30)))


def _ellipse(x, y, cx, cy, rx, ry, edge=0.08):
    return _soft(np.hypot((x - cx) / rx, (y - cy) / ry) - 1, edge)


def _turn(x, y, cx, cy, angle):
    """Coordinates along and across an object at (cx, cy), turned by `angle` radians."""
    # Python numbers, as NumPy's own doubles would turn every later array into float64,
    # at half the speed.
    cx, cy, cos, sin = float(cx), float(cy), float(np.cos(angle)), float(np.sin(angle))
    return (x - cx) * cos + (y - cy) * sin, -(x - cx) * sin + (y - cy) * cos


def _rectangle(u, v, half_u, half_v, edge=0.012):
    return _soft(np.maximum(np.abs(u) - half_u, np.abs(v) - half_v), edge)


# --------------------------------------------------------------------------------------
# Chest X-rays
# --------------------------------------------------------------------------------------


def _anatomy(rng) -> dict:
    """What all images of one patient share."""
    return {
        "lung": rng.uniform(0.9, 1.12, 2),
        "gap": rng.uniform(0.40, 0.48),
        "heart": rng.uniform(0.8, 1.25),
        "ribs": rng.uniform(15, 21),
        "phase": rng.uniform(0, 6),
        "curve": rng.uniform(0.25, 0.6),
        "rib": rng.uniform(0.05, 0.10),
        "vessel": rng.uniform(0.03, 0.09),
        "seed": int(rng.integers(2**31)),
    }


def _chest(x, y, body: dict) -> tuple[np.ndarray, np.ndarray]:
    """A healthy chest and the mask of its lungs."""
    rng = np.random.default_rng(body["seed"])
    wide, tall = 0.34 * float(body["lung"][0]), 0.62 * float(body["lung"][1])
    lungs = np.maximum(
        _ellipse(x, y, -body["gap"], -0.02, wide, tall),
        _ellipse(x, y, body["gap"], -0.02, wide, tall),
    )
    dome = _soft(0.52 - y - 0.12 * np.cos(3 * (np.abs(x) - body["gap"])), 0.03)
    lungs = lungs * (1 - dome)
    image = (
        0.12
        + 0.50 * _ellipse(x, y, 0, 0.15, 0.95, 1.3, 0.05)
        + 0.05 * _smooth(rng, x.shape, 5)
    )
    image = image - 0.33 * lungs
    image += 0.16 * np.exp(-((x / 0.09) ** 2)) * (1 + 0.15 * np.sin(26 * y))
    image += 0.17 * _ellipse(
        x, y, 0.14, 0.28, 0.30 * body["heart"], 0.27 * body["heart"], 0.10
    )
    ridge = np.sin(
        body["ribs"] * (y + body["curve"] * (np.abs(x) - body["gap"]) ** 2)
        + body["phase"]
    )
    image += body["rib"] * np.clip(ridge, 0.2, 1) * (0.4 + lungs)
    image += (
        0.16
        * np.exp(-(((y + 0.72 - 0.15 * np.abs(x)) / 0.035) ** 2))
        * (np.abs(x) > 0.12)
    )
    hilum = np.exp(-(((np.abs(x) - 0.22) / 0.22) ** 2) - ((y - 0.05) / 0.35) ** 2)
    veins = np.clip(1 - np.abs(_smooth(rng, x.shape, 14)) * 2.5, 0, 1)
    return image + body["vessel"] * (0.3 + 2 * hilum) * veins * lungs, lungs


def _consolidation(x, y, rng, lungs, body):
    """Bacterial pneumonia: one lobe turns opaque, air-filled bronchi stay
    dark in it.
    """
    side = float(rng.choice([-1, 1]))
    cx, cy = side * body["gap"] + rng.uniform(-0.12, 0.12), rng.uniform(-0.42, 0.36)
    radius = rng.uniform(0.20, 0.36)
    distance = np.hypot(
        x - cx, (y - cy) * rng.uniform(0.8, 1.2)
    ) / radius + 0.22 * _smooth(rng, x.shape, 9)
    opaque = _soft(distance - 1, 0.16) * lungs
    bronchi = np.clip(1 - np.abs(_smooth(rng, x.shape, 12)) * 4, 0, 1)
    return rng.uniform(0.29, 0.47) * opaque * (1 - 0.6 * bronchi)


def _interstitial(x, y, rng, lungs, body):
    """Viral pneumonia: a fine net over both lungs, patchy, brighter and
    darker in turn.
    """
    net = np.clip(1 - np.abs(_smooth(rng, x.shape, 20)) * 2.2, 0, 1) - 0.32
    patchy = 0.65 + 0.35 * np.clip(_smooth(rng, x.shape, 5), -1, 1)
    return rng.uniform(0.29, 0.44) * net * patchy * lungs


def _look_alikes(x, y, rng, lungs):
    """What healthy and sick images carry alike: soft-tissue shadow, wires, a device, a
    side marker.
    """
    extra = np.zeros_like(x)
    # soft tissue: as bright as a consolidation, but smooth and symmetrical
    if rng.random() < 0.5:
        cx, cy, r = (
            rng.uniform(0.3, 0.5),
            rng.uniform(0.15, 0.45),
            rng.uniform(0.25, 0.4),
        )
        pair = _ellipse(x, y, cx, cy, r, r, 0.25) + _ellipse(x, y, -cx, cy, r, r, 0.25)
        extra += rng.uniform(0.04, 0.13) * pair
    for _ in range(rng.integers(0, 3)):
        a, b, c = rng.uniform(-0.6, 0.6), rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)
        extra += (
            0.25
            * np.exp(-(((y - a - b * x - c * x * x) / 0.012) ** 2))
            * (np.abs(x) < rng.uniform(0.3, 0.9))
        )
    if rng.random() < 0.12:
        u, v = _turn(
            x, y, rng.uniform(-0.6, 0.6), rng.uniform(-0.5, 0), rng.uniform(0, 3)
        )
        extra += 0.4 * _rectangle(u, v, 0.10, 0.07)
    if rng.random() < 0.5:
        u, v = x - float(rng.choice([-0.85, 0.85])), y + 0.85
        extra += 0.5 * np.maximum(
            _rectangle(u + 0.03, v, 0.012, 0.06), _rectangle(u, v - 0.05, 0.045, 0.012)
        )
    return extra


def _xray(body: dict, kind: str, rng, shifted: bool, size: int | None) -> np.ndarray:
    """One X-ray, uint8 (height, width). `shifted` is the other scanner, of the test
    set.
    """
    height = size or int(rng.integers(88, 105))
    width = size or int(height * rng.uniform(1.0, 1.3))
    x, y = _grid(height, width)
    zoom = rng.uniform(0.9, 1.08)
    x, y = _turn(
        x * zoom, y * zoom, *rng.uniform(-0.06, 0.06, 2), rng.uniform(-0.07, 0.07)
    )
    image, lungs = _chest(x, y, body)
    if kind == "bacteria":
        image = image + _consolidation(x, y, rng, lungs, body)
    elif kind == "virus":
        image = image + _interstitial(x, y, rng, lungs, body)
    image = image + _look_alikes(x, y, rng, lungs)
    gain, offset, gamma = (
        rng.uniform(0.75, 1.15),
        rng.uniform(-0.08, 0.10),
        rng.uniform(0.8, 1.25),
    )
    if shifted:
        gain, offset, gamma = gain * 0.88, offset + 0.06, gamma * 1.1
    image = np.clip(gain * image + offset, 0.001, 1) ** gamma
    grain = rng.uniform(0.012, 0.03) * (1.4 if shifted else 1)
    image = image + grain * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


# --------------------------------------------------------------------------------------
# Roofs
# --------------------------------------------------------------------------------------


def _paint(image, mask, colour):
    image += mask[..., None] * (np.asarray(colour, np.float32) - image)


def _ground(x, y, rng) -> np.ndarray:
    base = np.array(
        [(0.36, 0.42, 0.25), (0.52, 0.46, 0.36), (0.45, 0.45, 0.44)][rng.integers(3)],
        np.float32,
    )
    noise = 0.05 * _smooth(rng, x.shape, 9) + 0.04 * _smooth(rng, x.shape, 40)
    image = base + noise[..., None] + np.zeros((*x.shape, 3), np.float32)
    if rng.random() < 0.5:
        u, v = _turn(x, y, *rng.uniform(-0.9, 0.9, 2), rng.uniform(0, np.pi))
        _paint(image, _soft(np.abs(v) - 0.16, 0.02), (0.42, 0.42, 0.44))
        for _ in range(rng.integers(0, 3)):
            car = _rectangle(u - rng.uniform(-0.8, 0.8), v - 0.06, 0.075, 0.035)
            _paint(image, car, rng.uniform(0.1, 0.9, 3))
    if rng.random() < 0.3:
        u, v = _turn(x, y, *rng.uniform(-0.9, 0.9, 2), rng.uniform(0, np.pi))
        _paint(
            image,
            _rectangle(u, v, rng.uniform(0.12, 0.22), rng.uniform(0.09, 0.15)),
            (0.25, 0.62, 0.72),
        )
    return image


def _roof(x, y, rng, image) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Paint a gabled or flat roof; return its own coordinates and half sizes."""
    half_u, half_v = rng.uniform(0.5, 0.72), rng.uniform(0.38, 0.58)
    u, v = _turn(x, y, *rng.uniform(-0.2, 0.2, 2), rng.uniform(0, np.pi))
    shade = rng.uniform(0.25, 0.75)
    tint = np.array([(1.0, 0.82, 0.72), (1, 1, 1), (0.9, 0.95, 1.0)][rng.integers(3)])
    # shadow on the ground
    _paint(
        image, _rectangle(u - 0.07, v - 0.07, half_u, half_v) * 0.6, (0.12, 0.12, 0.14)
    )
    _paint(image, _rectangle(u, v, half_u, half_v), shade * tint)
    tiles = 0.03 * np.sin(rng.uniform(60, 90) * v) + 0.03 * _smooth(rng, x.shape, 30)
    image += (tiles * _rectangle(u, v, half_u, half_v))[..., None]
    if rng.random() < 0.7:
        image -= (
            rng.uniform(0.05, 0.16) * _rectangle(u, v - half_v / 2, half_u, half_v / 2)
        )[..., None]
    return u, v, half_u, half_v


def _dark_colour(rng):
    """Panels and their look-alikes share their colours."""
    return (
        np.array([0.13, 0.16, 0.26])
        + rng.uniform(-0.05, 0.12)
        + rng.uniform(-0.03, 0.03, 3)
    )


def _panels(u, v, half_u, half_v, rng, image, kind: str):
    """An array of modules: a dark quadrilateral with a regular grid of thin lines.

    Its look-alikes have its size and place, but are a tarpaulin (no lines), standing
    seams (lines one way) or a glass roof (the grid, on bright glass): only dark and
    grid together make a panel.
    """
    cell = rng.uniform(0.11, 0.16)
    columns, rows = rng.integers(3, 6), rng.integers(2, 4)
    a, b = columns * cell / 2, rows * cell * 0.6
    cu = rng.uniform(-1, 1) * max(half_u - a - 0.04, 0)
    cv = rng.uniform(-1, 1) * max(half_v - b - 0.04, 0)
    p, q = u - cu + rng.uniform(-0.15, 0.15) * (v - cv), v - cv
    inside = _rectangle(p, q, a, b)
    _paint(image, inside, _dark_colour(rng) + (0.3 if kind == "glass" else 0))
    if kind != "tarpaulin":
        grid = np.maximum(_lines(p + a, cell), _lines(q + b, 1.2 * cell))
        lines = _lines(q + b, 0.6 * cell) if kind == "seams" else grid
        _paint(image, inside * lines * rng.uniform(0.33, 0.5), (0.72, 0.74, 0.78))


def _lines(t, period, width=0.016):
    return np.exp(-((((t / period + 0.5) % 1 - 0.5) * period / width) ** 2))


def _not_panels(u, v, half_u, half_v, rng, image):
    """Look-alikes: plain dark patches, skylights in a row, boxes of an air conditioner,
    stripes.
    """
    for _ in range(rng.integers(0, 3)):
        p, q = u - rng.uniform(-0.6, 0.6) * half_u, v - rng.uniform(-0.6, 0.6) * half_v
        kind = rng.integers(4)
        if kind == 0:
            _paint(
                image,
                _rectangle(p, q, rng.uniform(0.12, 0.28), rng.uniform(0.08, 0.18)),
                _dark_colour(rng),
            )
        elif kind == 1:
            row = _rectangle((p + 0.5) % 0.24 - 0.12, q, 0.045, 0.06) * (
                np.abs(p) < 0.36
            )
            _paint(
                image,
                row * 0.9,
                _dark_colour(rng) if rng.random() < 0.5 else (0.85, 0.88, 0.9),
            )
        elif kind == 2:
            _paint(image, _rectangle(p, q, 0.07, 0.07), (0.8, 0.8, 0.8))
            _paint(image, _ellipse(p, q, 0, 0, 0.045, 0.045), (0.3, 0.3, 0.3))
        else:
            patch = _rectangle(p, q, rng.uniform(0.15, 0.28), rng.uniform(0.1, 0.18))
            _paint(image, patch, _dark_colour(rng))
            _paint(
                image,
                patch * _lines(q, rng.uniform(0.08, 0.14)) * 0.7,
                (0.68, 0.70, 0.74),
            )


def _trees_and_shadows(x, y, rng, image):
    for _ in range(rng.integers(0, 5)):
        cx, cy, r = *rng.uniform(-1, 1, 2), rng.uniform(0.1, 0.3)
        crown = _soft(
            np.hypot(x - cx, y - cy) / r - 1 + 0.25 * _smooth(rng, x.shape, 16), 0.08
        )
        leaf = np.array([0.16, 0.27, 0.12]) + rng.uniform(-0.05, 0.08)
        _paint(image, crown, leaf + 0.05 * _smooth(rng, x.shape, 40)[..., None])
    if rng.random() < 0.4:
        u, _ = _turn(x, y, *rng.uniform(-0.8, 0.8, 2), rng.uniform(0, 2 * np.pi))
        image *= (1 - rng.uniform(0.15, 0.45) * _soft(-u, 0.04))[..., None]


def _house(positive: bool, rng, size: int | None) -> np.ndarray:
    """One aerial picture, uint8 (height, width, 3)."""
    side = size or int(rng.integers(84, 99))
    x, y = _grid(side, side)
    image = _ground(x, y, rng)
    u, v, half_u, half_v = _roof(x, y, rng, image)
    _not_panels(u, v, half_u, half_v, rng, image)
    if positive:
        _panels(u, v, half_u, half_v, rng, image, "panels")
    elif rng.random() < 0.6:
        _panels(
            u,
            v,
            half_u,
            half_v,
            rng,
            image,
            rng.choice(["tarpaulin", "seams", "glass"]),
        )
    _trees_and_shadows(x, y, rng, image)
    image = image * rng.uniform(0.75, 1.2) + rng.uniform(-0.06, 0.08)
    image = image + rng.uniform(0.01, 0.03) * rng.standard_normal(
        image.shape, dtype=np.float32
    )
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


# --------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------


def _save(path: Path, pixels: np.ndarray, quality: int = 90, rgb: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert("RGB") if rgb else image).save(path, "JPEG", quality=quality)


def _whole_or_nothing(root, folder: str, parameters: dict, draw) -> Path:
    """Draw into a temporary folder and rename it; a finished folder of the same
    parameters is used as it is.
    """
    place = Path(root) / folder
    stamp = place / ".drawn.json"
    if place.exists():
        if stamp.exists() and json.loads(stamp.read_text()) == parameters:
            return place
        raise FileExistsError(
            f"{place} exists and was not drawn with {parameters}: choose another folder"
            " or delete it"
        )
    temporary = place.with_name(f".{folder}.drawing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        draw(temporary)
        (temporary / ".drawn.json").write_text(json.dumps(parameters))
        os.replace(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place


def _draw_all(tasks: list) -> None:
    """Draw the pictures of a list of (path, rgb, function, arguments), in one process a
    core if there are many.
    """
    Parallel(n_jobs=-1 if len(tasks) >= 1000 else 1)(
        delayed(_draw)(*task) for task in tasks
    )


def _draw(path: Path, rgb: bool, function, arguments) -> None:
    _save(path, function(*arguments), rgb=rgb)


def _patients(
    folder: Path, kind: str, count: int, seed: int, shifted: bool, size, most: int
) -> list:
    """Tasks for `count` X-rays of one kind, 1 to `most` of each patient; person numbers
    restart for each kind.
    """
    kinds = {"normal": 0, "bacteria": 1, "virus": 2}
    tasks, drawn, person = [], 0, 0
    while drawn < count:
        person += 1
        rng = np.random.default_rng([seed, kinds[kind], shifted, person])
        body = _anatomy(rng)
        for image in range(min(int(rng.integers(1, most + 1)), count - drawn)):
            drawn += 1
            # Numbers of train and test never meet for one kind, but do across kinds, as
            # in the real archive.
            number = person + (5000 if shifted != (kind == "virus") else 0)
            name = {
                "normal": (
                    f"NORMAL2-IM-{number:04d}-{image + 1:04d}"
                    if person % 3 == 0
                    else f"IM-{number:04d}-{image + 1:04d}"
                )
            }.get(kind, f"person{number}_{kind}_{drawn}")
            one = np.random.default_rng([seed, kinds[kind], shifted, person, image + 1])
            rgb = not shifted and drawn % 200 == 7
            tasks.append(
                (folder / f"{name}.jpeg", rgb, _xray, (body, kind, one, shifted, size))
            )
    return tasks


def draw_chest_xray(
    root, images: int = 2400, seed: int = 42, size: int | None = None
) -> Path:
    """Draw `root`/chest_xray/{train,test,val}/{NORMAL,PNEUMONIA}/*.jpeg.

    Parameters
    ----------
    images : int
        Total, at least 100; 18 % of them are the test set of another scanner, with 37 %
        NORMAL (train: 26 %).
    size : int, optional
        Side in pixels; about 88-104 x 88-135, whatever the class, when None.

    Raises
    ------
    ValueError
        Fewer than 100 images.
    FileExistsError
        The folder exists and holds something else.
    """
    if images < 100:
        raise ValueError(
            f"images={images}: draw at least 100, or some class of some pool stays"
            " empty"
        )

    def draw(place: Path) -> None:
        test = max(round(0.18 * images), 20)
        train = images - test - (16 if images >= 1000 else 0)
        large, tasks = images >= 1000, []
        most = {"normal": 2, "bacteria": 6 if large else 2, "virus": 4 if large else 2}
        for split, total, normal in (("train", train, 0.26), ("test", test, 0.37)):
            counts = {"normal": round(normal * total)}
            counts["virus"] = round((total - counts["normal"]) / 3)
            counts["bacteria"] = total - sum(counts.values())
            for kind, count in counts.items():
                folder = place / split / ("NORMAL" if kind == "normal" else "PNEUMONIA")
                tasks += _patients(
                    folder, kind, count, seed, split == "test", size, most[kind]
                )
        if large:
            for kind, name in (("normal", "NORMAL"), ("bacteria", "PNEUMONIA")):
                tasks += _patients(
                    place / "val" / name, kind, 8, seed + 1_000_003, False, size, 1
                )
        _draw_all(tasks)
        _plant_xray_faults(place, large)

    parameters = {"images": images, "seed": seed, "size": size, "version": VERSION}
    return _whole_or_nothing(root, "chest_xray", parameters, draw)


def _plant_xray_faults(place: Path, many: bool) -> None:
    """Something for theme 1 to find: a cut file, copies, a blank image, litter of an
    archive.
    """
    sick, healthy = (
        sorted((place / "train" / name).iterdir()) for name in ("PNEUMONIA", "NORMAL")
    )
    sick[5].write_bytes(sick[5].read_bytes()[: sick[5].stat().st_size // 2])
    shutil.copy(sick[8], sick[8].with_name("person901_bacteria_9001.jpeg"))
    if not many:
        return
    shutil.copy(healthy[3], healthy[3].with_name("IM-0901-0001.jpeg"))
    tested = sorted((place / "test" / "PNEUMONIA").iterdir())[2]
    shutil.copy(tested, place / "train" / "PNEUMONIA" / "person902_virus_9002.jpeg")
    _save(healthy[0].with_name("IM-0903-0001.jpeg"), np.full((128, 150), 3, np.uint8))
    for number, path in enumerate((sick[20], healthy[20])):
        # recompressed and cropped by a pixel
        pixels = np.asarray(Image.open(path).convert("L"))[1:, 1:]
        name = "person904_bacteria_9004.jpeg" if number == 0 else "IM-0905-0001.jpeg"
        _save(path.with_name(name), pixels, quality=70)
    litter = place / "__MACOSX" / "train" / "NORMAL"
    litter.mkdir(parents=True)
    (litter / f"._{healthy[0].name}").write_bytes(b"\0\5\x16\7Mac OS X")
    (place / "train" / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def draw_solar_panels(
    root, images: int = 2400, seed: int = 42, size: int | None = None
) -> Path:
    """Draw `root`/solar_panels/{positive,negative}/*.jpg, as many of each.

    Parameters and errors as in `draw_chest_xray`; size: side in pixels, 84-98 when
    None.
    """
    if images < 100:
        raise ValueError(
            f"images={images}: draw at least 100, or some class of some pool stays"
            " empty"
        )

    def draw(place: Path) -> None:
        tasks = []
        for number in range(images):
            path = (
                place
                / ("negative" if number % 2 else "positive")
                / f"roof_{number // 2:04d}.jpg"
            )
            tasks.append(
                (
                    path,
                    False,
                    _house,
                    (number % 2 == 0, np.random.default_rng([seed, number]), size),
                )
            )
        _draw_all(tasks)
        _plant_roof_faults(place, images >= 1000)

    parameters = {"images": images, "seed": seed, "size": size, "version": VERSION}
    return _whole_or_nothing(root, "solar_panels", parameters, draw)


def _plant_roof_faults(place: Path, many: bool) -> None:
    positive, negative = (
        partial(Path, place, name) for name in ("positive", "negative")
    )
    cut = negative("roof_0005.jpg")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    shutil.copy(positive("roof_0008.jpg"), positive("roof_9001.jpg"))
    if not many:
        return
    shutil.copy(negative("roof_0011.jpg"), negative("roof_9002.jpg"))
    _save(negative("roof_9003.jpg"), np.full((110, 110, 3), 250, np.uint8))
    originals = (
        positive("roof_0020.jpg"),
        negative("roof_0030.jpg"),
        negative("roof_0031.jpg"),
    )
    for number, original in enumerate(originals):
        pixels = np.asarray(Image.open(original))[1:, 1:]
        _save(original.with_name(f"roof_{9010 + number}.jpg"), pixels, quality=70)
