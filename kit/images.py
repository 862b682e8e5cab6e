"""From files to pixels: inspected, decoded; their index and their cache."""

from __future__ import annotations

import hashlib
import io
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd

from kit.datasets import PATTERNS, fetch_again, list_images
from kit.files import (
    CourseError,
    alone,
    atomic,
    copy_back,
    copy_to_home,
    hash_file,
    now,
    read_json,
    write_json,
)
from kit.fingerprint import fingerprint
from kit.home import POOLS, Course

# Flags that keep an image out of every pool; the others are only reported.
EXCLUDING = (
    "unreadable",
    "animated",
    "blank",
    "exact_duplicate",
    "conflicting_label",
    "unknown_subtype",
    "leak_into_test",
)
THEME_1 = "notebooks/theme1_data_analysis.ipynb"


# --------------------------------------------------------------------------------------
# One file
# --------------------------------------------------------------------------------------

# of one file: more than any scanner or satellite tile here, less than fills the memory
MAX_PIXELS = 64_000_000


@contextmanager
def open_image(source: str | Path | io.BytesIO):
    """A picture of a file or its bytes; whatever PIL raises on a broken one (a dozen
    kinds of error) is an OSError.
    """
    from PIL import Image

    try:
        with Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise OSError(
                    f"{image.width} x {image.height} pixels are too many for one image"
                )
            # PIL would cut them off at 255, a white picture
            if image.mode.split(";")[0] in ("I", "F"):
                raise OSError("more than 8 bits a channel: save it with 8 bits")
            yield image
    except OSError:
        raise
    except Exception as error:
        raise OSError(
            f"no image that can be decoded ({type(error).__name__}: {error})"
        ) from error


def decode(path: str | Path | io.BytesIO, size: int, channels: int) -> np.ndarray:
    """The only way from a file (or its bytes) to pixels, in training and in serving
    alike.

    Returns
    -------
    uint8 array (channels, size, size). The aspect ratio is not kept: both datasets are
    squashed to a square.

    Raises
    ------
    OSError
        The file is missing, cut, no image, of more than MAX_PIXELS or of more than 8
        bits a channel.
    """
    from PIL import Image

    with open_image(path) as image:
        mode = "L" if channels == 1 else "RGB"
        # a JPEG decodes faster at a reduced scale
        image.draft(mode, (2 * size, 2 * size))
        # PIL knows no direct way to grey
        image = image.convert("RGB") if image.mode in ("LAB", "HSV") else image
        image = image.convert(mode).resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    if channels == 1:
        return pixels[None]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def inspect_image(path: Path) -> dict:
    """Size, mode, content hash, grey statistics and a 32x32 thumbnail of one file;
    flags what is wrong with it.
    """
    from PIL import Image

    row = {"width": 0, "height": 0, "mode": ""}
    row |= dict.fromkeys(("brightness", "contrast", "saturated"), np.nan)
    content, flags, thumbnail = b"", [], np.zeros((32, 32), np.uint8)
    try:
        content = path.read_bytes()
        with open_image(io.BytesIO(content)) as image:
            row |= {"width": image.width, "height": image.height, "mode": image.mode}
            frames = getattr(image, "n_frames", 1)
            image.draft(None, (256, 256))
            small = image.convert("RGB").resize((128, 128), Image.Resampling.BILINEAR)
            pixels = np.asarray(small, np.float32)
        grey = pixels.mean(axis=2)
        row |= {"brightness": grey.mean(), "contrast": grey.std()}
        row["saturated"] = np.mean((grey < 2) | (grey > 253))
        coloured = np.ptp(pixels, axis=2).max() >= 12
        wrong = {
            "animated": frames > 1,
            "blank": row["contrast"] < 4,
            "saturated": row["saturated"] > 0.5,
            "gray_as_rgb": row["mode"] == "RGB" and not coloured,
            "tiny": min(row["width"], row["height"]) < 32,
        }
        flags = [flag for flag, true in wrong.items() if true]
        thumbnail = grey.reshape(32, 4, 32, 4).mean(axis=(1, 3)).astype(np.uint8)
    except OSError:
        flags = ["unreadable"]
    digest = hashlib.sha256(content).hexdigest()[:16]
    row |= {"bytes": len(content), "sha256": digest}
    return row | {"flags": flags, "thumbnail": thumbnail}


# --------------------------------------------------------------------------------------
# The index: one row an image
# --------------------------------------------------------------------------------------


def stored_index(course: Course, put_in_order) -> pd.DataFrame:
    """The index of a dataset, made anew where a file has changed: every image is looked
    at, then `put_in_order(table)` gives groups and pools.
    """
    table, repairs = list_images(course)
    stats = [(course.root / path).stat() for path in table["path"]]
    key = fingerprint(
        *(stored_index, put_in_order, course.seed),
        table[["path", "label", "patient"]].to_dict("list"),
        [(stat.st_size, stat.st_mtime_ns) for stat in stats],
    )
    path, stamp = course.data / "index.csv", course.data / "index.json"
    with alone(course, f"index-{course.dataset}"):
        if path.exists() and read_json(stamp).get("key") == [key, hash_file(path)]:
            return load_index(course)
        table = put_in_order(_inspect_all(course, table))
        check_pools(table, course.classes)
        table = table.drop(columns="thumbnail")
        table["flags"] = table["flags"].str.strip(";")
        with atomic(path) as temporary:
            table.to_csv(temporary, index=False)
        done = {"repairs": repairs.to_dict("records"), "date": now()}
        write_json(stamp, {"key": [key, hash_file(path)], **done})
        return load_index(course)


def _inspect_all(course: Course, table: pd.DataFrame) -> pd.DataFrame:
    """The table with what was seen of each image, its flags as text."""
    files = [course.root / path for path in table["path"]]
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        seen = workers.map(inspect_image, files)
        seen = list(_bar(seen, len(files), "reading images"))
    table = pd.concat([table, pd.DataFrame(seen)], axis=1)
    table["flags"] = table["flags"].map(";".join)
    readable = ~table["flags"].str.contains("unreadable|blank|animated")
    if not readable.any():
        raise CourseError(
            f"None of the {len(table)} images can be read (the first:"
            f" {table['path'][0]}): the download is damaged; delete the dataset folder"
            " and run again."
        )
    usual = ("L", "RGB") if course.channels == 1 else ("RGB",)
    add_flag(table, readable & _odd_sizes(table, readable), "odd_size")
    add_flag(table, readable & ~table["mode"].isin(usual), "odd_mode")
    if course.dataset == "pneumonia3":
        add_flag(table, table["label"] == "UNKNOWN", "unknown_subtype")
    if course.spec.folder == "chest_xray":
        add_flag(table, table["patient"] == table["path"], "no_patient")
    return table


def add_flag(table: pd.DataFrame, rows, flag: str) -> None:
    table.loc[rows, "flags"] += f";{flag}"


def _odd_sizes(table: pd.DataFrame, readable: pd.Series) -> np.ndarray:
    """Which areas or aspect ratios are far from all others: beyond three interquartile
    ranges from the quartiles (Tukey, 1977), and by a factor of 1.5 at least.
    """
    width = np.log(table["width"].clip(lower=1).to_numpy(float))
    height = np.log(table["height"].clip(lower=1).to_numpy(float))
    odd = np.zeros(len(table), bool)
    for values in (width + height, width - height):
        first, third = np.percentile(values[readable], [25, 75])
        reach = max(3 * (third - first), math.log(1.5))
        odd |= (values < first - reach) | (values > third + reach)
    return odd


def check_pools(table: pd.DataFrame, classes: tuple[str, ...]) -> None:
    """Refuse a dataset that leaves a pool without images of a class."""
    counts = table[table["pool"] != ""].groupby(["pool", "label"]).size()
    for pool in ("test", *POOLS):
        few = [name for name in classes if counts.get((pool, name), 0) == 0]
        if few:
            there = table[table["label"].isin(few) & (table["pool"] != "")]
            unknown = table.loc[table["label"] == "UNKNOWN", "path"]
            why = (
                f"the dataset has too few usable images or patients of it ({len(there)}"
                f" of {there['patient'].nunique()}); add some (about 30 a class)."
            )
            if len(unknown) > len(there):
                why = (
                    f"{len(unknown)} images have names that give neither bacteria nor"
                    f" virus (such as {unknown.iloc[0]}); rename them as {PATTERNS}, or"
                    ' take DATASET = "pneumonia".'
                )
            told = f"Pool {pool} would get no image of class {', '.join(few)}"
            raise CourseError(f"{told}: {why}")


def load_index(course: Course) -> pd.DataFrame:
    """Read data/<dataset>/index.csv, with its repairs in `.attrs["repairs"]`."""
    path = course.data / "index.csv"
    if not path.exists():
        raise CourseError(f"{path} is missing: run {THEME_1} first.")
    names = "path folder label subtype patient split pool mode sha256 flags"
    text = dict.fromkeys(names.split(), str)
    empty = dict.fromkeys(("brightness", "contrast", "saturated"), "")
    try:
        table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=empty)
        numbers = table.columns.difference([*text])
        if odd := [n for n in numbers if table[n].dtype.kind not in "iuf"]:
            raise ValueError(f"its column {odd[0]:.40} holds text")
        if absent := {"path", "label", "pool", "sha256"}.difference(table):
            raise ValueError(f"it has no column {', '.join(sorted(absent))}")
        used = table[table["pool"] != ""]
        known = used["pool"].isin(["test", *POOLS]) & used["label"].isin(course.classes)
        if used.empty or not known.all():
            raise ValueError("it names pools or classes that this dataset has not")
    except ValueError as error:  # of pandas: empty, torn, no text
        raise CourseError(
            f"{path} is damaged ({error}): delete it and run {THEME_1} again; it is"
            " made from the images."
        ) from error
    table.attrs["repairs"] = read_json(course.data / "index.json").get("repairs", [])
    return table


def quality_report(index: pd.DataFrame) -> pd.DataFrame:
    """What is wrong with the dataset: one row a problem, with the number of images and
    what was done about it.
    """
    done = {flag: "excluded from all pools" for flag in EXCLUDING} | {
        "unreadable": (
            "excluded from all pools (cut, no image, or of more than 8 bits a channel)"
        ),
        "near_duplicate": "kept together in one pool",
        "no_patient": "the name gives none: each a patient of its own",
        "gray_as_rgb": "read as one channel where the dataset is gray",
        "saturated": "kept, look at it",
        "tiny": "kept, enlarged",
        "odd_size": "kept, squashed to a square like all others",
        "odd_mode": "kept, converted to the dataset's own mode",
    }
    flags = index["flags"].str.split(";").explode()
    counts = flags[flags != ""].value_counts()
    rows = [
        (flag, int(count), count / len(index), done.get(flag, "kept"))
        for flag, count in counts.items()
    ]
    classes = index.loc[index["pool"] != "", "label"].value_counts()
    if len(classes) > 1 and classes.max() > 1.5 * classes.min():
        few, share = f"few images of {classes.idxmin()}", classes.min() / classes.sum()
        action = "class weights in training, balanced accuracy beside accuracy"
        rows.append((few, int(classes.min()), share, action))
    return pd.DataFrame(rows, columns=["problem", "images", "share", "action"])


def contact_sheet(course: Course, index: pd.DataFrame, most: int = 24):
    """Draw the offenders, exact copies beside the one that is kept, near-duplicates
    last, as many as fit.
    """
    from kit import figures

    flags = index["flags"].str.replace("gray_as_rgb|no_patient", "", regex=True)
    flags = flags.str.replace(";+", ";", regex=True).str.strip(";")
    copied = index["flags"].str.contains("exact_duplicate|conflicting_label")
    kept = index["sha256"].isin(index["sha256"][copied]) & (flags == "")
    offenders = index.assign(
        flags=flags.mask(kept, "the copy kept"), near=flags.str.contains("near_dup")
    )
    offenders = offenders[offenders["flags"] != ""].sort_values(
        ["near", "group"], kind="stable"
    )
    images, titles = [], []
    for path, told in offenders[["path", "flags"]].head(most).itertuples(index=False):
        try:
            images.append(decode(course.root / path, 96, course.channels))
        except OSError:  # nothing to show: a grey square
            images.append(np.full((96, 96), 128, np.uint8))
        name = Path(path).stem
        name = name if len(name) <= 20 else f"…{name[-19:]}"
        titles.append(f"{name}\n" + told.replace(";", "\n"))
    title = (
        f"Offenders beside what they copy: {len(images)} of {len(offenders)} (grey"
        " square: cannot be read)"
    )
    return figures.image_grid(images, titles, title=title)


# --------------------------------------------------------------------------------------
# The cache: every image decoded once
# --------------------------------------------------------------------------------------


def pixel_cache(course: Course, index: pd.DataFrame) -> np.ndarray:
    """Decode every usable image once, in parallel, into one memory-mapped file.

    The file is named by the content of the images, the size and the channels, and
    carries a checksum: a changed or half-written cache is rebuilt, never trusted. With
    Drive a copy lies there, so that the next notebook has nothing to download.

    Returns
    -------
    uint8 (N, channels, size, size), in the order of `index`, copy-on-write.

    Raises
    ------
    CourseError
        An image has gone or changed since it was indexed; the disk is full.
    """
    size, channels = course.image_size, course.channels
    shape = (len(index), channels, size, size)
    key = fingerprint(decode, index["sha256"].tolist(), size, channels)
    path = course.local / "data" / course.dataset / "cache" / f"{key}.npy"
    stamp = path.with_suffix(".json")
    with alone(course, f"pixels-{key}"):
        for file in (path, stamp):  # with Drive: decoded in an earlier session
            copy_back(course, file)
        if path.exists() and read_json(stamp).get("sha256") == hash_file(path):
            # NumPy raises half a dozen kinds of error on a header that is none
            with suppress(Exception):
                pixels = np.load(path, mmap_mode="c")
                if (pixels.shape, pixels.dtype) == (shape, np.uint8):
                    return pixels
        fetch_again(course)
        with atomic(path) as temporary:
            _decode_all(course, index, temporary)
        done = {"sha256": hash_file(path), "images": len(index), "date": now()}
        write_json(stamp, done)
        for file in (path, stamp):
            copy_to_home(course, file)
        return np.load(path, mmap_mode="c")


def _decode_all(course: Course, index: pd.DataFrame, path: Path) -> None:
    """Write the pixels of all images as one .npy file."""
    size, channels = course.image_size, course.channels
    shape = (len(index), channels, size, size)

    def read(relative, digest):
        try:
            content = (course.root / relative).read_bytes()
            if hashlib.sha256(content).hexdigest()[:16] == digest:
                return decode(io.BytesIO(content), size, channels)
            problem = None
        except OSError as error:
            problem = error
        raise CourseError(
            f"{course.root / relative} has gone or changed since it was indexed: run"
            f" {THEME_1} again."
        ) from problem

    # Plain writes, not a memory map: a full disk is then an error message, not a killed
    # process.
    with open(path, "wb") as file, ThreadPoolExecutor(os.cpu_count()) as workers:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        # all of it at once: a full disk says so before the work, not at its end
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, file.tell() + math.prod(shape))
        pieces = workers.map(read, index["path"], index["sha256"])
        for piece in _bar(pieces, len(index), "decoding once"):
            file.write(piece.tobytes())


def _bar(work, total: int, what: str):
    from tqdm import tqdm

    return tqdm(work, total=total, desc=what, unit="image", file=sys.stdout)
