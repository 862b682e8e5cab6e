"""Pictures of the report: found as the texts call them, and tried before they are
placed, as Typst stops at one that it cannot print and says not which.
"""

import unicodedata
from functools import cache
from pathlib import Path

from kit.archive import MANGLED
from tools.shared.pictures import PRINTED, kind_of

TRIAL = b"""
#import sys: inputs
#context { let seen = measure(image(inputs.path, format: inputs.format)) }
"""


def look(home: Path, place: str, words: dict) -> dict:
    """One picture as the template wants it: `path` and `format`, or no path and `why`.

    Parameters
    ----------
    place : below the home.
    """
    import typst
    from PIL import Image

    kind = kind_of(home / place)
    found = {"path": f"/{place}", "format": PRINTED.get(kind, "")}
    if kind not in PRINTED:
        why = f"{words['is_kind']} {kind}" if kind else no_kind(home / place, words)
        return {"path": None, "why": why}
    try:
        if kind not in ("SVG", "PDF"):  # Typst prints what is left of a JPEG
            with Image.open(home / place) as image:
                image.load()
        typst.compile(
            TRIAL, root=str(home), font_paths=fonts(), format="svg", sys_inputs=found
        )
    except (OSError, typst.TypstError) as error:
        return {"path": None, "why": getattr(error, "message", str(error))}
    return found


def no_kind(path: Path, words: dict) -> str:
    """What a file is that no program opens as a picture."""
    from PIL import Image

    try:
        Image.open(path).close()
    except Image.DecompressionBombError:
        return words["is_large"]
    except OSError:
        return words["no_picture"] if path.stat().st_size else words["is_empty"]
    return words["no_picture"]


@cache
def fonts():
    """Those that Typst brings: the system's would be looked for at each trial."""
    import typst

    return typst.Fonts(include_system_fonts=False)


def own(folder: Path, asked: set[str]) -> dict[str, str]:
    """The files below report/images/, by their names there and by the names that the
    texts give them.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in files]
    names = [
        name
        for name in names
        if not (Path(name).name.startswith(".") or MANGLED.search(name))
    ]
    alike = {comparable(name): name for name in reversed(names)}
    meant = {name: alike.get(comparable(name)) for name in asked}
    return {name: file for name, file in meant.items() if file} | {n: n for n in names}


def comparable(name: str) -> str:
    """A name as another system may write it: case, composed accents, backslashes, the
    narrow space of a Mac's screenshots, and the folder that is meant anyway.
    """
    name = " ".join(name.replace("\\", "/").split())
    name = unicodedata.normalize("NFC", name).casefold()
    return name.removeprefix("report/").removeprefix("images/")
