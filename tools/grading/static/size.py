"""Size: how large it is, what in it nobody needs, and pixel data that came along."""

from collections.abc import Iterator

from tools.grading.finding import Check, Finding
from tools.grading.static.look import Look
from tools.grading.submission import is_artefact, is_check, is_code, is_report
from tools.shared.foreign import MIB, shown

SIZE = Check("size", 0)
IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy"}
OF_USE = (is_code, is_artefact, is_report, is_check)
MAX_SIZE = 500 * MIB


def size(look: Look) -> Iterator[Finding]:
    sizes = {path: look.size(path) for path in look.submission.files}
    pixels, junk = {}, {}
    for path, count in sizes.items():
        if not any(of_use(path) for of_use in OF_USE):
            kind = pixels if path.suffix.lower() in IMAGES else junk
            kind[path] = count
    if len(pixels) > 20 or any(path.parts[0] == "data" for path in pixels):
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


def _mib(count: int) -> str:
    small = count < MIB / 10
    return f"{count / 1024:,.1f} KiB" if small else f"{count / MIB:,.1f} MiB"
