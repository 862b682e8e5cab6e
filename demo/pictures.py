"""From a file that a stranger sends to pixels: refused in one sentence, or decoded as
the training pictures were.
"""

import io
import time
from contextlib import suppress

import numpy as np

import utils
from kit.images import MAX_PIXELS, open_image

MAX_BYTES = 20 << 20  # of one file: an X-ray or a photo is far smaller
# A JPEG is decoded once for each scan in it: ten as a rule, thousands in one that is
# made to keep a server busy.
MAX_SCANNED = 10 * MAX_PIXELS
# those of the course; PIL would open scripts, too
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP", "GIF")


class Refused(utils.CourseError):
    """This file gets no answer: why, and what to send instead."""


def read_picture(
    content: bytes, size: int, channels: int
) -> tuple[np.ndarray, float, list[str]]:
    """Decode one file: pixels uint8 (channels, size, size), the milliseconds that it
    took, sentences on what was converted; or Refused.
    """
    if len(content) > MAX_BYTES:
        raise Refused(
            f"The file is larger than {MAX_BYTES >> 20} MB: send a smaller copy."
        )
    try:
        notes = _inspect(content, channels)
        began = time.perf_counter()
        pixels = utils.decode(io.BytesIO(content), size, channels)
        return pixels, 1000 * (time.perf_counter() - began), notes
    except OSError as error:
        raise Refused(_reason(content, str(error))) from error


def _inspect(content: bytes, channels: int) -> list[str]:
    """What a picture is beside its pixels, and what the decoding changes."""
    _refuse(content)
    # which turns whatever is raised inside into "no image"
    with open_image(io.BytesIO(content)) as image:
        mode, frames = image.mode, getattr(image, "n_frames", 1)
        turned, alpha = image.getexif().get(0x0112, 1) != 1, image.has_transparency_data
        clear = alpha and image.convert("RGBA").getchannel("A").getextrema()[0] < 255
    coloured = _is_coloured(content)
    notes = {
        f"Only the first of {frames} pictures in the file is looked at.": frames > 1,
        "Transparency is ignored: the colours behind it are read.": clear,
        "CMYK colours, made for print, were converted.": mode == "CMYK",
        "The file asks to be turned (EXIF); like the training pictures it is read as it"
        " was stored.": turned,
        "A colour picture, read in grey: the model knows grey pictures only.": (
            channels == 1 and coloured
        ),
        "A grey picture: the model has learned from colours.": (
            channels == 3 and not coloured
        ),
    }
    return [note for note, holds in notes.items() if holds]


def _refuse(content: bytes) -> None:
    """Refuse what has no clear meaning or costs too much, before it is decoded."""
    with open_image(io.BytesIO(content)) as image:
        kind, pixels, several = image.format, image.width * image.height, False
        if kind in FORMATS and kind != "MPO":
            with suppress(EOFError):  # to count all of them may take long
                image.seek(1)
                several = True
    if kind not in FORMATS:
        raise Refused(f"{kind} files are not read: save the picture as JPEG or PNG.")
    if several:
        raise Refused(
            "The file holds several pictures, and one gets one answer: save one of them"
            " as JPEG or PNG."
        )
    # a start of scan: in compressed data this pair of bytes cannot stand
    scans = content.count(b"\xff\xda") if kind in ("JPEG", "MPO") else 1
    if scans * pixels > MAX_SCANNED:
        raise Refused(
            f"The JPEG holds its picture in {scans} layers, which takes too long: save"
            " it again as JPEG or PNG."
        )


def _is_coloured(content: bytes) -> bool:
    """Whether any patch of the picture has a colour, beyond what JPEG makes of grey."""
    return bool(np.ptp(utils.decode(io.BytesIO(content), 32, 3), axis=0).max() >= 12)


def _reason(content: bytes, told: str) -> str:
    if not content:
        return "The file is empty: choose another."
    if "too many for one image" in told or "DecompressionBomb" in told:
        return (
            f"The picture has more than {MAX_PIXELS // 10**6} million pixels:"
            " send a smaller copy."
        )
    if "8 bits" in told:
        return (
            "The picture has more than 8 bits a channel: choose the range to look at (a"
            " window) in your viewer and save it as 8-bit PNG."
        )
    if "truncated" in told or "broken" in told:
        return (
            "The file breaks off before the picture is complete: copy or download it"
            " again."
        )
    return (
        "This is no image that can be read: send a JPEG, PNG, BMP, TIFF, WebP or GIF"
        " file."
    )
