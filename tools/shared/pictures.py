"""Pictures that the report prints and the hand-in takes along: known by what they hold,
as the ending of a name may lie.
"""

import re
import warnings
from pathlib import Path

from kit.files import decode_text

# By Typst: the name of a format in Pillow, then in Typst. Pillow opens neither of the
# last two.
PRINTED = {
    "PNG": "png",
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG of two pictures, as phones make
    "GIF": "gif",
    "WEBP": "webp",
    "SVG": "svg",
    "PDF": "pdf",
}
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".gif", ".webp", ".svg", ".pdf")


def kind_of(path: Path) -> str:
    """The format of a picture, as Pillow calls it; "" for what is no picture."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return image.format
    except Exception:  # a dozen kinds: no picture, broken, or of too many pixels
        with path.open("rb") as file:
            head = file.read(4096)
    if head.startswith(b"%PDF-"):
        return "PDF"
    if head[4:8] == b"ftyp" and head[8:10] in (b"he", b"mi"):
        return "HEIC"  # of an iPhone
    text = decode_text(head)
    is_svg = text.lstrip().startswith("<") and re.search(r"<(!DOCTYPE )?svg\b", text)
    return "SVG" if is_svg else ""
