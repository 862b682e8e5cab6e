"""Names that strangers give: compared as people read them, whatever a system made of
them on the way.
"""

import re
import unicodedata
from functools import cache
from pathlib import PurePath

# What desktops write before or after the name of a copy: "Copie de a", "a - Copy (2)".
_WORDS = "copy|copie|kopie|copia|cópia"
BEFORE = re.compile(rf"^({_WORDS})[ _](of|de|von|di)[ _]")
AFTER = re.compile(rf"\s*(\(\d+\)|[-_ ]+({_WORDS}) ?(\d+|\(\d+\))?|-checkpoint)$")
# Folders and files that systems leave beside the work, beside those that are hidden.
LITTER = {
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "@eadir",
}


def plain(name: str) -> str:
    """A name as it is compared: without case, with accents composed, spaces that look
    alike as one, and without marks that nobody sees.
    """
    text = unicodedata.normalize("NFKD", name).casefold()
    seen = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFKC", " ".join(seen.split()))


@cache
def original(name: str) -> str:
    """The plain name of what this is a copy of; its own where it is none. Endings such
    as .ipynb stay.
    """
    stem, suffix = plain(name), ""
    if found := re.fullmatch(r"(.+?)(\.[a-z]\w{0,9})", stem):
        stem, suffix = found.groups()
    less, longer = stem, ""
    while less != longer:
        less, longer = AFTER.sub("", BEFORE.sub("", less)) or less, less
    return less + suffix


def is_litter(path: PurePath) -> bool:
    """Whether a path lies in, or is, what a system left behind: hidden files and
    folders (`._a.ipynb`, `.ipynb_checkpoints`), Windows' thumbnails, macOS' copies.
    """
    return any(
        part.startswith((".", "~$")) or part.casefold() in LITTER for part in path.parts
    )
