"""Files that somebody else wrote: read within limits, links not followed, names shown
so that they print everywhere.
"""

import codecs
import json
import os
import stat
from pathlib import Path

from kit.archive import MIB, shown
from kit.files import CourseError, decode_text

__all__ = ["MAX_FILE", "MIB", "SubmissionError", "decode", "read", "read_json"]
__all__ += ["shallow", "shown"]
MAX_FILE, MAX_NESTED = 20 * MIB, 100


class SubmissionError(CourseError):
    """A submission, or one of its files, that cannot be looked at: what is wrong and
    what to do.
    """


def read(root: Path, path: Path, most: int = MAX_FILE) -> bytes:
    """Content of one regular file of a submission.

    Raises
    ------
    SubmissionError
        It is larger than `most` bytes, cannot be read, or has become a link or a
        special file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(os.open(root / path, flags), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise SubmissionError(
                    f"{shown(path)} is no regular file: hand in the file itself."
                )
            if about.st_size > most:
                raise SubmissionError(
                    f"{shown(path)} has {about.st_size / MIB:,.3g} MiB and was not read"
                    f" (limit: {most / MIB:,.3g} MiB): make it smaller."
                )
            return file.read(most)
    except OSError as error:
        raise SubmissionError(
            f"{shown(path)} cannot be read ({error.strerror}): hand it in again."
        ) from error


def read_json(root: Path, path: Path, most: int = MAX_FILE):
    """The value that a JSON file holds.

    Raises
    ------
    SubmissionError
        See `read`; or it is no JSON, or nested too deep.
    """
    try:
        return shallow(json.loads(read(root, path, most)))
    except RecursionError as error:
        why, cause = "nested too deep", error
    except ValueError as error:
        why, cause = shown(error), error
    raise SubmissionError(
        f"{shown(path)} is not valid JSON ({why}): save it again."
    ) from cause


def shallow(values):
    """The same values of JSON, unless they are nested so deep that who walks through
    them comes to the end of Python's stack.

    Raises
    ------
    RecursionError
    """
    level = [values]
    for _ in range(MAX_NESTED):
        level = [
            part
            for value in level
            if isinstance(value, (dict, list))
            for part in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return values
    raise RecursionError(f"Its values are nested more than {MAX_NESTED} deep.")


def decode(content: bytes) -> str:
    """The text of a file as any editor or shell may have saved it; "" for a binary
    one.
    """
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return "" if b"\0" in content[:1024] and not marked else decode_text(content)
