"""Where the images come from: found, downloaded or drawn; their folders listed and
labelled.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
from collections import Counter
from pathlib import Path

import pandas as pd

import sample_data
from kit.files import CourseError, clear_disk_errors, locked, read_text, write_json
from kit.home import DATASETS, PROFILES, Course, Dataset
from kit.machine import best_device
from kit.names import is_litter, original, plain

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")  # whatever a name ends in
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation"), "val")
# How the names of the X-rays give kind and patient: the current release, and the older
# one.
PATIENTS = [
    re.compile(r"person(?P<person>\d+)_(?P<kind>bacteria|virus)"),
    re.compile(r"(?P<person>(?:normal\d*-)?im-\d+)"),
    re.compile(r"((?P<kind>bacteria|virus)|normal)-(?P<person>\d+)-\d+"),
]
PATTERNS = "person1_bacteria_1.jpeg, IM-0001-0001.jpeg or VIRUS-1-0001.jpeg"
OWN = ("classes.json", "classes.json.txt")  # Notepad adds the second ending, unseen
NOTES = (".drawn.json", *OWN)  # not the archive's fault
# What is repaired in the layout of a folder, and how.
REPAIRS = {
    "hidden files and litter of systems": "ignored",
    "names that are no text": "ignored",
    "files that are no images": "ignored",
    "images outside train/ and test/": "ignored",
    "second copy of an image": "ignored, first copy kept",
    "second copy that differs": "ignored, first copy kept",
    "two images of one name": "both kept",
    "images of the tiny val/ folder": "joined to train",
    "images in folders of no known class": "ignored",
    "official test images": "none: 15 % of the patients of train become pool test",
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
    inside = sorted(place.iterdir()) if place.is_dir() else []
    alike = [path for path in inside if original(path.name) == folder]
    for found in (place / folder, *alike, place):
        if original(found.name) == folder and found.is_dir():
            return found
    held = [path.name for path in inside[:6]] or "nothing"
    held = held if place.is_dir() else "nothing: no such folder"
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
    to find them; what nobody should overlook is printed as well.
    """
    root, spec = course.root, course.spec
    found = find_images(root, course.dataset)
    files = found[found["folder"] != ""].drop(columns="problem")
    if files.empty:
        told = [f"{n} {what}" for what, n, _ in _repairs(found)]
        raise CourseError(
            f"{root} holds no images in class folders"
            f"{' below train/ and test/' * (spec.folder == 'chest_xray')} (it holds"
            f" {', '.join(told) or 'nothing'}): complete it or delete it and run again."
        )
    table = label_images(files.reset_index(drop=True), root, course.dataset)
    lost = files[~files["path"].isin(table["path"])]
    what = "images in folders of no known class"
    found.loc[lost.index, "problem"] = f"{what}: " + lost["folder"]
    repairs = _repairs(found)
    if spec.folder == "chest_xray":
        if not (table["split"] == "test").any():
            repairs.append(("official test images", 0, REPAIRS["official test images"]))
            print(f"{root} holds no official test images: {repairs[-1][2]}.")
        unknown = table.loc[table["patient"] == table["path"], "path"]
        if len(unknown):
            print(
                f"{len(unknown)} of {len(table)} images have names that give no patient"
                f" (such as {unknown.iloc[0]}; {PATTERNS} would): each counts as a"
                " patient of its own, and images of one patient may stand in several"
                " pools."
            )
    return table, pd.DataFrame(repairs, columns=["what", "files", "action"])


def find_images(root: Path, dataset: str) -> pd.DataFrame:
    """List the files of a dataset folder, links followed, and how its layout is to be
    repaired.

    Returns
    -------
    DataFrame, one row a file: path (relative to `root`), folder (class folder, "" where
    it is no image to use), split (train, test or ""), problem (of REPAIRS, or "").
    """
    split_up = DATASETS[dataset].folder == "chest_xray"
    rows, kept = [], {}
    paths = walk(root)
    for path in sorted(paths, key=lambda path: (len(path.parts), str(path))):
        relative, split, folder, below = path.relative_to(root), "", path.parent.name, 1
        if split_up:
            split, folder, below = _place(relative.parts)
        key = split, original(folder), *relative.parts[-below:]
        problem, used = _no_image(path, relative), False
        if problem:
            pass
        elif split_up and not split:
            problem = "images outside train/ and test/"
        elif key not in kept:
            kept[key], used = path, True
            problem = "images of the tiny val/ folder" if split == "val" else ""
        elif filecmp.cmp(kept[key], path, shallow=False):
            problem = "second copy of an image"
        elif split_up:
            problem = "second copy that differs"
        else:
            problem, used = "two images of one name", True
        split = "train" if split == "val" else split
        rows.append((relative.as_posix(), folder if used else "", split, problem))
    table = pd.DataFrame(rows, columns=["path", "folder", "split", "problem"])
    return table.sort_values("path", ignore_index=True)


def _place(parts: tuple[str, ...]) -> tuple[str, str, int]:
    """Split and class folder of an X-ray, and how many parts of its path lie below
    them: a hospital may have a folder for each patient.
    """
    for place in reversed(range(len(parts) - 2)):
        if split := SPLITS.get(original(parts[place])):
            return split, parts[place + 1], len(parts) - place - 2
    return "", parts[-2] if len(parts) > 1 else "", 1


def walk(root: Path) -> list[Path]:
    """All files below a folder, also those behind links.

    Raises
    ------
    CourseError
        A link that leads nowhere, or a folder that may not be read: what it holds would
        be missing, and nobody would notice.
    """
    files = []

    def refuse(error: OSError):
        told = f"{error.filename} cannot be read ({error.strerror})"
        raise CourseError(f"{told}: make it readable, then run again.")

    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        above = {os.path.realpath(p) for p in (folder, *Path(folder).parents)}
        # a link back to a folder above would be followed for ever
        folders[:] = [
            name
            for name in folders
            if os.path.realpath(os.path.join(folder, name)) not in above
        ]
        files += [Path(folder, name) for name in names]
    dead = [p for p in files if os.path.islink(p) and not os.path.exists(p)]
    dead = [path for path in dead if not is_litter(path.relative_to(root))]
    if dead:
        raise CourseError(
            f"{dead[0]} is a link to {os.readlink(dead[0])}, which is not there"
            f" ({len(dead)} such links below {root}): connect the disk that it leads"
            " to, or remove the link, then run again."
        )
    return [path for path in files if os.path.isfile(path)]


def _no_image(path: Path, relative: Path) -> str:
    """Why a file below the dataset's folder counts as no image; "" where it does."""
    if is_litter(relative):
        return "hidden files and litter of systems"
    # no table could hold it
    if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", str(relative)):
        return "names that are no text"
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES and not _holds_image(path):
        return f"files that are no images: {suffix or 'no ending'}"
    return ""


def _holds_image(path: Path) -> bool:
    """What a file is, whatever its name: Windows saves a JPEG as .jfif."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:  # PIL raises a dozen kinds on what is none
        return False


def _repairs(found: pd.DataFrame) -> list[tuple[str, int, str]]:
    """What was repaired, how often and how; kinds of one problem in one row."""
    counts = {what: Counter() for what in REPAIRS}
    for path, problem in zip(found["path"], found["problem"], strict=True):
        what, _, kind = problem.partition(": ")
        if what and original(path.rpartition("/")[2]) not in NOTES:
            counts[what][kind] += 1
    rows = []
    for what, kinds in counts.items():
        named = ", ".join(f"{kind} {n}" for kind, n in kinds.most_common() if kind)
        told = f"{what} ({named})" if named else what
        rows += [(told, kinds.total(), REPAIRS[what])] if kinds else []
    return rows


def label_images(files: pd.DataFrame, root: Path, dataset: str) -> pd.DataFrame:
    """Add label, subtype and patient to the table of files; a name that gives no
    patient leaves the image alone: its patient is its path.

    The patient key of the X-rays is (subtype, person): `person1_bacteria_1` and
    `person1_virus_6` are two people."""
    spec, own = DATASETS[dataset], root / "classes.json"
    for path in sorted(root.glob("*.*")):
        own = path if original(path.name) in OWN else own
    mapping = _own_classes(own, spec) if own.exists() else spec.folders
    label = files["folder"].map(lambda name: mapping.get(original(name)))
    _check_classes(files["folder"], label, spec, own)
    table = files.assign(label=label)[label.notna()].reset_index(drop=True)
    if spec.folder == "solar_panels":
        return table.assign(subtype=table["label"], patient=table["path"])
    known = [_patient(path.rpartition("/")[2]) for path in table["path"]]
    kind, person = (pd.Series(part, table.index) for part in zip(*known, strict=True))
    subtype = kind.where(table["label"] == "PNEUMONIA", "NORMAL").fillna("UNKNOWN")
    patient = (subtype.str.lower() + "-" + person).fillna(table["path"])
    if dataset == "pneumonia3":
        table["label"] = subtype
    return table.assign(subtype=subtype, patient=patient)


def _patient(name: str) -> tuple[str | None, str | None]:
    """Kind and person that the name of an X-ray gives; None for what it does not."""
    name = original(name)
    for pattern in PATIENTS:
        if found := pattern.match(name):
            kind = found.groupdict().get("kind")
            return kind and kind.upper(), found["person"]
    return None, None


def _check_classes(folder: pd.Series, label: pd.Series, spec: Dataset, own: Path):
    """Refuse a dataset that lacks a class, and say how to name the folders."""
    wanted, found = sorted(set(spec.folders.values())), sorted(folder.unique())
    if not (missing := [name for name in wanted if name not in set(label)]):
        return
    unknown = sorted(folder[label.isna()].unique())
    if len(unknown) >= len(missing):
        guess = dict(zip(folder, label, strict=True))
        guess |= {name: missing[n % len(missing)] for n, name in enumerate(unknown)}
        example = json.dumps({name: guess[name] for name in found}, ensure_ascii=False)
        raise CourseError(
            f"{own.parent} has the class folders {found}, and which is which is"
            f" unknown: write {own} with, for example, {example}, then run again."
        )
    raise CourseError(
        f"{own.parent} has no images of class {', '.join(missing)} (class folders"
        f" found: {', '.join(found) or 'none'}): complete it, or delete the folder to"
        " fetch it again."
    )


def _own_classes(path: Path, spec: Dataset) -> dict[str, str]:
    """What classes.json says: the class of each folder, by its plain name."""
    wanted = {plain(name): name for name in sorted(set(spec.folders.values()))}
    pairs = zip(("folder 1", "folder 2"), wanted.values(), strict=True)
    example, why = json.dumps(dict(pairs)), ""
    try:
        given = json.loads(read_text(path))
        classes = {original(f): wanted.get(plain(c)) for f, c in given.items()}
        if odd := [name for name in given if not classes[original(name)]]:
            why = f"; it says {given[odd[0]]!r} of {odd[0]}"
        if classes and not odd:
            return classes
    except (ValueError, RecursionError) as error:
        why = f"; {getattr(error, 'msg', 'nested too deep')}"
        why += f", line {error.lineno}" if hasattr(error, "lineno") else ""
    except (AttributeError, TypeError):
        pass  # no object of texts
    raise CourseError(
        f"{path} must name a class for each folder, as {example} does{why}: correct"
        " it, then run again."
    )
