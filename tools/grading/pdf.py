"""Pages and headings of a report: from its outline, else from the lines
on its pages.
"""

import logging
import re
import time
import unicodedata
from collections.abc import Iterator
from io import BytesIO

from tools.shared.foreign import SubmissionError, shown
from tools.shared.sections import SECTIONS

MAX_SECONDS = 40  # of reading pages


def read_pdf(content: bytes) -> tuple[int, list[tuple[str, int]]]:
    """Number of pages, and headings with their page (from 1): of the outline, else
    lines that look like one.
    """
    import pypdf

    # it comments on every flaw of a damaged file
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = pypdf.PdfReader(BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise SubmissionError(
                "The PDF asks for a password: hand it in without one."
            )
        pages, headings = len(reader.pages), list(_outline(reader, reader.outline))
        found = {
            number for title, _ in headings if (number := section_of(title)) is not None
        }
        if len(found) < len(SECTIONS) // 2:
            headings = list(_printed_headings(reader, time.monotonic() + MAX_SECONDS))
    except SubmissionError:
        raise
    except Exception as error:  # a foreign PDF may break its reader in any way
        says = shown(error)[:100] or type(error).__name__
        says = (
            f"The PDF cannot be read ({says}): build it again with `python course.py"
            " report`."
        )
        raise SubmissionError(says) from error
    return pages, headings


def _outline(reader, entries: list) -> Iterator[tuple[str, int]]:
    for entry in entries:
        if isinstance(entry, list):
            yield from _outline(reader, entry)
        else:
            yield str(entry.title), (reader.get_destination_page_number(entry) or 0) + 1


def _printed_headings(reader, until: float) -> Iterator[tuple[str, int]]:
    """Short lines that are called like a section; a page with many of them is a table
    of contents.
    """
    for number, page in enumerate(reader.pages, 1):
        if time.monotonic() > until:
            return
        lines = [line.strip() for line in page.extract_text().splitlines()]
        titles = [
            line for line in lines if len(line) < 80 and section_of(line) is not None
        ]
        if len({section_of(title) for title in titles}) <= 3:
            yield from ((title, number) for title in titles)


def section_of(title: str) -> int | None:
    """Which of the twelve sections a heading begins, whatever its numbering, accents
    and case.
    """
    plain = "".join(
        c for c in unicodedata.normalize("NFKD", title) if not unicodedata.combining(c)
    ).lower()
    plain = " ".join(re.sub(r"[^a-z0-9]+", " ", plain).split())
    plain = re.sub(
        r"^(?:(?:section|chapitre|chapter|partie) )?(?:(?:\d+|[ivx]+) )+(?=[a-z])",
        "",
        plain,
    )
    return next(
        (n for n, part in enumerate(SECTIONS) if re.match(part.pattern, plain)),
        None,
    )
