"""From folders of files to pixels: found, repaired, labelled, inspected, decoded."""

from __future__ import annotations

import filecmp
import hashlib
import io
import json
import math
import os
import re
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd

import sample_data
from kit.files import (
    CourseError,
    alone,
    atomic,
    clear_disk_errors,
    hash_file,
    locked,
    now,
    read_json,
    write_json,
)
from kit.fingerprint import fingerprint
from kit.home import DATASETS, POOLS, Course, Dataset

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
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


def acquire(
    dataset: str, source: str, raw: Path, sample_images: int, seed: int
) -> tuple[str, Path, str]:
    """Find, download or draw a dataset: where it came from, its folder, and why `auto`
    drew it ("" where it did not).

    Raises
    ------
    CourseError
        The folder given holds no such dataset, the place holds other images, or, for
        "kaggle", whatever kept the download from being whole (`tools/download.py` has
        the list). What was there before is untouched.
    """
    folder, place = DATASETS[dataset].folder, raw / DATASETS[dataset].folder
    if source not in ("auto", "kaggle", "sample"):
        given = Path(source)
        found = [
            path
            for path in (given / folder, given)
            if path.name == folder and path.is_dir()
        ]
        if not found:
            held = (
                sorted(path.name for path in given.iterdir())[:6]
                if given.is_dir()
                else "nothing: no such folder"
            )
            raise CourseError(
                f"{given} holds no folder {folder}/ (it holds {held}): give the folder"
                f" above {folder}/."
            )
        return source, found[0], ""
    held = (
        "sample"
        if (place / ".drawn.json").exists()
        else "kaggle"
        if place.is_dir()
        else None
    )
    if held and source not in ("auto", held):
        kind = "drawn" if held == "sample" else "real"
        raise CourseError(
            f"{place} already holds {kind} images, not those of source {source!r}:"
            f" choose another HOME, or SOURCE={held!r}."
        )
    why = ""
    if not held and source != "sample":
        why = _download(DATASETS[dataset].kaggle, place, required=source == "kaggle")
        held = "sample" if why else "kaggle"
    if (held or source) == "sample":
        draw = (
            sample_data.draw_chest_xray
            if folder == "chest_xray"
            else sample_data.draw_solar_panels
        )
        with (
            locked(raw / f".{folder}.lock", folder),
            clear_disk_errors(place, kept="Nothing half-drawn is left."),
        ):
            try:
                # returns at once when they are there
                draw(raw, images=sample_images, seed=seed)
            except FileExistsError as error:
                raise CourseError(f"{error}.") from error
    return held or source, place, why


def _download(reference: str, place: Path, required: bool) -> str:
    """Bring a dataset from Kaggle; where it may fail, say what to do and return why it
    did.
    """
    from kit import download

    try:
        download.install(reference, place)
    except download.DownloadError as error:
        if required:
            raise CourseError(str(error)) from None
        print(error)
        return error.reason
    return ""


def find_images(root: Path, dataset: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """List the images of a dataset folder and repair its layout, saying what was
    repaired.

    Returns
    -------
    files : DataFrame
        path (relative to `root`), folder (class folder), split (train, test or "").
    repairs : DataFrame
        what, files, action: one row for each repair.
    """
    actions = {
        "__MACOSX and ._ files": "ignored",
        "names that are no text": "ignored",
        "files that are no images": "ignored",
        "images outside train/ and test/": "ignored",
        "second copy of an image": "ignored, first copy kept",
        "second copy that differs": "ignored, first copy kept",
        "two images of one name": "both kept",
        "images of the tiny val/ folder": "joined to train",
    }
    repairs, kept = dict.fromkeys(actions, 0), {}
    splits = (
        ("train", "test", "val") if DATASETS[dataset].folder == "chest_xray" else ()
    )
    for path in sorted(
        (p for p in root.rglob("*") if p.is_file()),
        key=lambda p: (len(p.parts), str(p)),
    ):
        relative = path.relative_to(root)
        split, folder = (
            (path.parent.parent.name.lower() if splits else ""),
            path.parent.name,
        )
        key = split, folder, path.name
        if "__MACOSX" in relative.parts or path.name.startswith("._"):
            repairs["__MACOSX and ._ files"] += 1
        elif re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", str(relative)):
            # no table could hold them
            repairs["names that are no text"] += 1
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            # Our own notes in the folder are not the archive's fault.
            repairs["files that are no images"] += path.name not in (
                ".drawn.json",
                "classes.json",
            )
        elif splits and split not in splits:
            repairs["images outside train/ and test/"] += 1
        elif key not in kept:
            kept[key] = relative
            repairs["images of the tiny val/ folder"] += split == "val"
        elif filecmp.cmp(root / kept[key], path, shallow=False):
            repairs["second copy of an image"] += 1
        elif splits:
            repairs["second copy that differs"] += 1
        else:
            kept[(*key[:2], relative)] = relative
            repairs["two images of one name"] += 1
    files = pd.DataFrame(
        [
            {"path": r.as_posix(), "folder": f, "split": "train" if s == "val" else s}
            for (s, f, _), r in kept.items()
        ],
        columns=["path", "folder", "split"],
    )
    table = pd.DataFrame(
        {"what": repairs.keys(), "files": repairs.values(), "action": actions.values()}
    )
    return files.sort_values("path", ignore_index=True), table[
        table["files"] > 0
    ].reset_index(drop=True)


def label_images(files: pd.DataFrame, root: Path, dataset: str) -> pd.DataFrame:
    """Add label, subtype and patient to the table of files.

    The patient key of the X-rays is (subtype, person): `person1_bacteria_1` and
    `person1_virus_6` are two people."""
    spec, own = DATASETS[dataset], root / "classes.json"
    mapping = _own_classes(own, spec) if own.exists() else spec.folders
    found = sorted(files["folder"].unique())
    unknown = [name for name in found if name.lower() not in mapping]
    wanted = sorted(set(spec.folders.values()))
    if unknown and len(found) == 2:
        example = json.dumps(dict(zip(found, wanted, strict=True)))
        raise CourseError(
            f"{root} has the class folders {found}, and which is which is unknown: "
            f"write {own} with, for example, {example}, then run again."
        )
    label = files["folder"].str.lower().map(mapping)
    missing = [name for name in wanted if name not in set(label)]
    if missing:
        raise CourseError(
            f"{root} has no images of class {', '.join(missing)} (class folders found:"
            f" {', '.join(found) or 'none'}): complete it, or delete the folder to"
            " fetch it again."
        )
    table = files.assign(label=label)[label.notna()].reset_index(drop=True)
    name = table["path"].str.split("/").str[-1]
    if spec.folder == "solar_panels":
        return table.assign(subtype=table["label"], patient=name)
    person = name.str.extract(r"(?i)^person(\d+)_(bacteria|virus)")
    normal = name.str.extract(r"(?i)^((?:normal\d*-)?im-\d+)")[0]
    subtype = (
        person[1]
        .str.upper()
        .where(table["label"] == "PNEUMONIA", "NORMAL")
        .fillna("UNKNOWN")
    )
    patient = (subtype.str.lower() + "-" + person[0].fillna(normal)).fillna(name)
    if dataset == "pneumonia3":
        table["label"] = subtype
    return table.assign(subtype=subtype, patient=patient)


def _own_classes(path: Path, spec: Dataset) -> dict[str, str]:
    """What classes.json says: the class of each folder, by its name
    in small letters.
    """
    wanted, given = sorted(set(spec.folders.values())), read_json(path)
    if not given or not all(
        isinstance(name, str) and name in wanted for name in given.values()
    ):
        example = json.dumps(
            {f"folder {number}": name for number, name in enumerate(wanted, 1)}
        )
        raise CourseError(
            f"{path} must name a class for each folder, as {example} does: correct it,"
            " then run again."
        )
    return {folder.lower(): name for folder, name in given.items()}


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
    return (
        pixels[None]
        if channels == 1
        else np.ascontiguousarray(pixels.transpose(2, 0, 1))
    )


def inspect_image(path: Path) -> dict:
    """Size, mode, content hash, grey statistics and a 32x32 thumbnail of one file;
    flags what is wrong with it.
    """
    from PIL import Image

    row = {
        "width": 0,
        "height": 0,
        "mode": "",
        "brightness": np.nan,
        "contrast": np.nan,
        "saturated": np.nan,
    }
    content, flags, thumbnail = b"", [], np.zeros((32, 32), np.uint8)
    try:
        content = path.read_bytes()
        with open_image(io.BytesIO(content)) as image:
            row |= {"width": image.width, "height": image.height, "mode": image.mode}
            flags += ["animated"] if getattr(image, "n_frames", 1) > 1 else []
            image.draft(None, (256, 256))
            pixels = np.asarray(
                image.convert("RGB").resize((128, 128), Image.Resampling.BILINEAR),
                np.float32,
            )
        grey = pixels.mean(axis=2)
        row |= {
            "brightness": grey.mean(),
            "contrast": grey.std(),
            "saturated": np.mean((grey < 2) | (grey > 253)),
        }
        flags += ["blank"] if row["contrast"] < 4 else []
        flags += ["saturated"] if row["saturated"] > 0.5 else []
        flags += (
            ["gray_as_rgb"]
            if row["mode"] == "RGB" and np.ptp(pixels, axis=2).max() < 12
            else []
        )
        flags += ["tiny"] if min(row["width"], row["height"]) < 32 else []
        thumbnail = grey.reshape(32, 4, 32, 4).mean(axis=(1, 3)).astype(np.uint8)
    except OSError:
        flags = ["unreadable"]
    digest = hashlib.sha256(content).hexdigest()[:16]
    return row | {
        "bytes": len(content),
        "sha256": digest,
        "flags": flags,
        "thumbnail": thumbnail,
    }


def load_index(course: Course) -> pd.DataFrame:
    """Read data/<dataset>/index.csv, with its repairs in `.attrs["repairs"]`."""
    path = course.data / "index.csv"
    if not path.exists():
        raise CourseError(
            f"{path} is missing: run notebooks/theme1_data_analysis.ipynb first."
        )
    text = dict.fromkeys(
        (
            "path",
            "label",
            "subtype",
            "patient",
            "split",
            "pool",
            "mode",
            "sha256",
            "flags",
        ),
        str,
    )
    numbers = (
        "group",
        "width",
        "height",
        "brightness",
        "contrast",
        "saturated",
        "bytes",
    )
    empty = dict.fromkeys(("brightness", "contrast", "saturated"), "")
    try:
        table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=empty)
        if absent := [
            name for name in ("path", "label", "pool", "sha256") if name not in table
        ]:
            raise ValueError(f"it has no column {', '.join(absent)}")
        if odd := [
            name
            for name in numbers
            if name in table and table[name].dtype.kind not in "iuf"
        ]:
            raise ValueError(f"its column {odd[0]} holds text")
        used = table[table["pool"] != ""]
        if (
            used.empty
            or not (
                used["pool"].isin(["test", *POOLS]) & used["label"].isin(course.classes)
            ).all()
        ):
            raise ValueError("it names pools or classes that this dataset has not")
    except ValueError as error:  # of pandas: empty, torn, no text
        raise CourseError(
            f"{path} is damaged ({error}): delete it and run"
            " notebooks/theme1_data_analysis.ipynb again; it is made from the images."
        ) from error
    table.attrs["repairs"] = read_json(course.data / "index.json").get("repairs", [])
    return table


def _flag_odd_ones(
    table: pd.DataFrame, flags: list, readable: np.ndarray, channels: int
) -> None:
    """Flag colour modes that the dataset should not have, and areas or aspect ratios
    far from all others.

    Far: beyond three interquartile ranges from the quartiles, and by a factor of 1.5 at
    least. Source: Tukey (1977)."""
    usual = ("L", "RGB") if channels == 1 else ("RGB",)
    width, height = (
        np.log(table[side].clip(lower=1).to_numpy(float))
        for side in ("width", "height")
    )
    odd = np.zeros(len(table), bool)
    for values in (width + height, width - height):
        first, third = np.percentile(values[readable], [25, 75])
        reach = max(3 * (third - first), math.log(1.5))
        odd |= (values < first - reach) | (values > third + reach)
    for row in np.flatnonzero(readable):
        flags[row] += (["odd_size"] if odd[row] else []) + (
            ["odd_mode"] if table["mode"][row] not in usual else []
        )


def quality_report(index: pd.DataFrame) -> pd.DataFrame:
    """What is wrong with the dataset: one row a problem, with the number of images and
    what was done about it.
    """
    flags = index["flags"].str.split(";").explode()
    counts = flags[flags != ""].value_counts()
    done = {flag: "excluded from all pools" for flag in EXCLUDING}
    done["unreadable"] += " (cut, no image, or of more than 8 bits a channel)"
    done |= {
        "near_duplicate": "kept together in one pool",
        "gray_as_rgb": "read as one channel where the dataset is gray",
        "saturated": "kept, look at it",
        "tiny": "kept, enlarged",
        "odd_size": "kept, squashed to a square like all others",
        "odd_mode": "kept, converted to the dataset's own mode",
    }
    rows = [
        {
            "problem": flag,
            "images": int(count),
            "share": count / len(index),
            "action": done.get(flag, "kept"),
        }
        for flag, count in counts.items()
    ]
    classes = index.loc[index["pool"] != "", "label"].value_counts()
    if len(classes) > 1 and classes.max() > 1.5 * classes.min():
        rows.append(
            {
                "problem": f"few images of {classes.idxmin()}",
                "images": int(classes.min()),
                "share": classes.min() / classes.sum(),
                "action": (
                    "class weights in training, balanced accuracy beside accuracy"
                ),
            }
        )
    return pd.DataFrame(rows, columns=["problem", "images", "share", "action"])


def pixel_cache(course: Course, index: pd.DataFrame) -> np.ndarray:
    """Decode every usable image once, in parallel, into one memory-mapped file.

    The file is named by the content of the images, the size and the channels, and
    carries a checksum: a changed or half-written cache is rebuilt, never trusted.

    Returns
    -------
    uint8 (N, channels, size, size), in the order of `index`, copy-on-write.

    Raises
    ------
    CourseError
        An image has gone or changed since it was indexed; the disk is full.
    """
    key = fingerprint(
        decode, index["sha256"].tolist(), course.image_size, course.channels
    )
    path = course.local / "data" / course.dataset / "cache" / f"{key}.npy"
    stamp = path.with_suffix(".json")
    shape = (len(index), course.channels, course.image_size, course.image_size)
    with alone(course, f"pixels-{key}"):
        if path.exists() and read_json(stamp).get("sha256") == hash_file(path):
            # NumPy raises half a dozen kinds of error on a header that is none
            with suppress(Exception):
                pixels = np.lib.format.open_memmap(path, mode="c")
                if (pixels.shape, pixels.dtype) == (shape, np.uint8):
                    return pixels
        digest = _decode_all(course, index, path)
        write_json(stamp, {"sha256": digest, "images": len(index), "date": now()})
        return np.load(path, mmap_mode="c")


def _decode_all(course: Course, index: pd.DataFrame, path: Path) -> str:
    """Write the pixels of all images as one .npy file; returns its SHA-256."""
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    size, channels = course.image_size, course.channels

    def read(relative, digest):
        try:
            content = (course.root / relative).read_bytes()
            if hashlib.sha256(content).hexdigest()[:16] == digest:
                return decode(io.BytesIO(content), size, channels)
            problem = None
        except OSError as error:
            problem = error
        raise CourseError(
            f"{course.root / relative} has gone or changed since it was indexed: "
            "run notebooks/theme1_data_analysis.ipynb again."
        ) from problem

    digest = hashlib.sha256()
    header = {
        "descr": "|u1",
        "fortran_order": False,
        "shape": (len(index), channels, size, size),
    }
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, header)
    # Plain writes, not a memory map: a full disk is then an error message, not a killed
    # process.
    with (
        atomic(path) as temporary,
        open(temporary, "wb") as file,
        ThreadPoolExecutor(os.cpu_count()) as workers,
    ):
        # all of it at once: a full disk says so before the work, not at its end
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(
                file.fileno(), 0, buffer.tell() + len(index) * channels * size**2
            )
        pieces = workers.map(read, index["path"], index["sha256"])
        pieces = tqdm(
            pieces,
            total=len(index),
            desc="decoding once",
            unit="image",
            file=sys.stdout,
        )
        for piece in (buffer.getvalue(), *(pixels.tobytes() for pixels in pieces)):
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()
