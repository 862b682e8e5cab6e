"""Where the images come from: found, downloaded or drawn; their folders listed and
labelled.
"""

from __future__ import annotations

import filecmp
import json
import re
from pathlib import Path

import pandas as pd

import sample_data
from kit.files import CourseError, clear_disk_errors, locked, read_json, write_json
from kit.home import DATASETS, PROFILES, Course, Dataset
from kit.machine import best_device

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
OWN_NOTES = (".drawn.json", "classes.json")  # not the archive's fault
# What is repaired in the layout of a folder, and how.
REPAIRS = {
    "__MACOSX and ._ files": "ignored",
    "names that are no text": "ignored",
    "files that are no images": "ignored",
    "images outside train/ and test/": "ignored",
    "second copy of an image": "ignored, first copy kept",
    "second copy that differs": "ignored, first copy kept",
    "two images of one name": "both kept",
    "images of the tiny val/ folder": "joined to train",
    "images in folders of no known class": "ignored",
}


def open_dataset(theme: int, home: Path, local: Path, settings: dict) -> Course:
    """Open a home on its images, found, downloaded or drawn; `settings` then says where
    they come from, and why they are drawn where that was not asked for.
    """
    dataset, seed = settings["dataset"], settings["seed"]
    profile, raw = PROFILES[settings["profile"]], local / "data" / "raw"
    if theme > 1 and _rests_on_drive(home, local, settings):
        origin, root, why = settings["source"], raw / DATASETS[dataset].folder, ""
    else:
        images = profile.sample_images
        origin, root, why = acquire(dataset, settings["source"], raw, images, seed)
    why = why or settings.pop("why_sample", "")
    settings["source"] = origin
    if origin == "sample" and why:
        settings["why_sample"] = why
    write_json(home / "course.json", settings)
    where = home, local, root, best_device()
    size, drawn = settings["image_size"], origin == "sample"
    return Course(theme, dataset, origin, profile, size, seed, *where, sample=drawn)


def _rests_on_drive(home: Path, local: Path, settings: dict) -> bool:
    """Whether the decoded images lie on Drive: the files are then not downloaded, until
    `pixel_cache` asks for them (another size).
    """
    caches = home / "data" / settings["dataset"] / "cache"
    known = settings["source"] in ("kaggle", "sample")
    return home != local and known and any(caches.glob("*.npy"))


def fetch_again(course: Course) -> None:
    """The files of a course that began without them."""
    if not course.root.exists():
        raw, images = course.root.parent, course.profile.sample_images
        acquire(course.dataset, course.source, raw, images, course.seed)


def acquire(
    dataset: str, source: str, raw: Path, sample_images: int, seed: int
) -> tuple[str, Path, str]:
    """Find, download or draw a dataset: where it came from, its folder, and why `auto`
    drew it ("" where it did not).

    Raises
    ------
    CourseError
        The folder given holds no such dataset, the place holds other images, or, for
        "kaggle", whatever kept the download from being whole (`kit/download.py` has
        the list). What was there before is untouched.
    """
    folder = DATASETS[dataset].folder
    if source not in ("auto", "kaggle", "sample"):
        return source, _given(Path(source), folder), ""
    place, why = raw / folder, ""
    drawn = (place / ".drawn.json").exists()
    held = "sample" if drawn else "kaggle" if place.is_dir() else None
    if held and source not in ("auto", held):
        kind = "drawn" if drawn else "real"
        raise CourseError(
            f"{place} already holds {kind} images, not those of source {source!r}:"
            f" choose another HOME, or SOURCE={held!r}."
        )
    if not held and source != "sample":
        why = _download(DATASETS[dataset].kaggle, place, required=source == "kaggle")
    origin = held or ("sample" if why or source == "sample" else "kaggle")
    if origin == "sample":
        _draw(folder, raw, sample_images, seed)
    return origin, place, why


def _given(place: Path, folder: str) -> Path:
    """The folder of a dataset at or below a place of somebody's own."""
    for found in (place / folder, place):
        if found.name == folder and found.is_dir():
            return found
    held = "nothing: no such folder"
    if place.is_dir():
        held = sorted(path.name for path in place.iterdir())[:6]
    raise CourseError(
        f"{place} holds no folder {folder}/ (it holds {held}): give the folder above"
        f" {folder}/."
    )


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


def _draw(folder: str, raw: Path, images: int, seed: int) -> None:
    """Draw the sample, unless it is there."""
    draw = sample_data.draw_solar_panels
    if folder == "chest_xray":
        draw = sample_data.draw_chest_xray
    kept = "Nothing half-drawn is left."
    with (
        locked(raw / f".{folder}.lock", folder),
        clear_disk_errors(raw / folder, kept),
    ):
        try:
            draw(raw, images=images, seed=seed)
        except FileExistsError as error:
            raise CourseError(f"{error}.") from error


def list_images(course: Course) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All images of the dataset with label, subtype and patient, and what was repaired
    to find them.
    """
    files, repairs = find_images(course.root, course.dataset)
    if files.empty:
        raise CourseError(
            f"{course.root} holds no images in class folders: complete it or delete it"
            " and run again."
        )
    table = label_images(files, course.root, course.dataset)
    if lost := len(files) - len(table):
        what = "images in folders of no known class"
        repairs.loc[len(repairs)] = [what, lost, REPAIRS[what]]
    return table, repairs


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
    split_up = DATASETS[dataset].folder == "chest_xray"
    counts, kept = dict.fromkeys(REPAIRS, 0), {}
    paths = [path for path in root.rglob("*") if path.is_file()]
    for path in sorted(paths, key=lambda path: (len(path.parts), str(path))):
        relative = path.relative_to(root)
        split = path.parent.parent.name.lower() if split_up else ""
        key = split, path.parent.name, path.name
        if problem := _no_image(relative):
            counts[problem] += path.name not in OWN_NOTES
        elif split_up and split not in ("train", "test", "val"):
            counts["images outside train/ and test/"] += 1
        elif key not in kept:
            kept[key] = relative
            counts["images of the tiny val/ folder"] += split == "val"
        elif filecmp.cmp(root / kept[key], path, shallow=False):
            counts["second copy of an image"] += 1
        elif split_up:
            counts["second copy that differs"] += 1
        else:
            kept[(*key[:2], relative)] = relative
            counts["two images of one name"] += 1
    rows = [
        (relative.as_posix(), folder, "train" if split == "val" else split)
        for (split, folder, _), relative in kept.items()
    ]
    files = pd.DataFrame(rows, columns=["path", "folder", "split"])
    done = [(what, n, REPAIRS[what]) for what, n in counts.items() if n]
    repairs = pd.DataFrame(done, columns=["what", "files", "action"])
    return files.sort_values("path", ignore_index=True), repairs


def _no_image(path: Path) -> str:
    """Why a file below the dataset's folder counts as no image; "" where it does."""
    if "__MACOSX" in path.parts or path.name.startswith("._"):
        return "__MACOSX and ._ files"
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", str(path)):  # no table could hold it
        return "names that are no text"
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return "files that are no images"
    return ""


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
