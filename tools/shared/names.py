"""Names of files that somebody else's system wrote: what a copy was called before it
was copied, and what is litter.
"""

import re
import unicodedata

LITTER = re.compile(
    r"\._.*|~\$.*|\.~lock\..*#|\.ds_store|(eh)?thumbs\.db|desktop\.ini|icon\r?"
    r"|__macosx|\.spotlight-v100|\.trashes|\.fseventsd|\.temporaryitems|\.directory"
    r"|\$recycle\.bin|system volume information|@eadir",
    re.IGNORECASE,
)
# Colab, Windows and the Finder; browsers; Jupyter
COPIED = re.compile(
    r"^(copie|copy|kopie|copia|cópia)[ _](de|of|von)[ _]"
    r"|[ _]?\(\d+\)$|[ _-]+(copie|copy|kopie|copia)[ _-]?\d*$",
    re.IGNORECASE,
)


def is_litter(name: str) -> bool:
    """Whether a system, and no person, made a file or folder of this name."""
    return LITTER.fullmatch(name) is not None


def same_letters(name: str) -> str:
    """A name with accents composed, one kind of space, and no capitals."""
    return " ".join(unicodedata.normalize("NFKC", name).split()).casefold()


def original(name: str) -> str:
    """What a file was called before "Copie de …", " (1)" or "-Copy1", in the letters
    of `same_letters`.
    """
    stem, dot, ending = same_letters(name).rpartition(".")
    before = None
    while stem != before:
        before, stem = stem, COPIED.sub("", stem)
    return f"{stem}{dot}{ending}"
