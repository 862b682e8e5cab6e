"""Size: how large it is, what in it nobody needs, and pixel data that came along."""

from collections.abc import Iterator
from pathlib import Path

from tools.grading.finding import Check, Finding
from tools.grading.static.look import Look
from tools.grading.submission import is_artefact, is_check, is_code, is_report
from tools.shared.foreign import MIB, shown

SIZE = Check("size", 0)
IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy"}
MAX_SIZE, MAX_FIGURES = 500 * MIB, 100
DATASET = {"data", "dataset", "train", "test", "val", "chest_xray", "solar_panels"}
RESULTS = {
    *(".pth", ".pt", ".ckpt", ".safetensors", ".onnx", ".data", ".trt", ".engine"),
    *(".csv", ".npz", ".xlsx", ".svg", ".json", ".md", ".txt"),
}


def _is_result(path: Path) -> bool:
    """Weights, tables, words and events of TensorBoard, in whatever folder."""
    events = path.name.startswith("events.out.tfevents")
    return events or path.suffix.lower() in RESULTS


OF_USE = (is_code, is_artefact, is_report, is_check, _is_result)


def size(look: Look) -> Iterator[Finding]:
    sizes = {path: look.size(path) for path in look.submission.files}
    pixels, junk = {}, {}
    for path, count in sizes.items():
        if path.suffix.lower() in IMAGES:
            if not is_artefact(path) and not is_report(path):
                pixels[path] = count
        elif not any(of_use(path) for of_use in OF_USE):
            junk[path] = count
    if len(pixels) > MAX_FIGURES or any(map(_is_of_dataset, pixels)):
        says = f"{len(pixels):,} files of pixel data ({_mib(sum(pixels.values()))}):"
        where = shown(next(iter(pixels)).parent)
        yield SIZE.note(f"{says} leave the dataset out.", where)
    if junk:
        largest = sorted(junk, key=junk.get, reverse=True)[:5]
        names = ", ".join(f"{shown(path)} ({_mib(junk[path])})" for path in largest)
        weight = sum(junk.values())
        says = f"{len(junk):,} files ({_mib(weight)}) are neither code nor results; the"
        verdict = "human" if weight > MAX_SIZE else "note"
        yield SIZE.finding(verdict, f"{says} largest: {names}.")
    total = sum(sizes.values())
    says = f"{len(sizes):,} files, {_mib(total)}"
    if total <= MAX_SIZE:
        yield SIZE.passed(f"{says}.")
    else:
        yield SIZE.human(f"{says}: hand in what `python course.py pack` makes.")


def _is_of_dataset(path: Path) -> bool:
    return bool(DATASET.intersection(part.casefold() for part in path.parts[:-1]))


def _mib(count: int) -> str:
    small = count < MIB / 10
    return f"{count / 1024:,.1f} KiB" if small else f"{count / MIB:,.1f} MiB"
