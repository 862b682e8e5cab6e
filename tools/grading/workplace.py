"""The folder that a check works in: gone when it ends, whatever was put into it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from kit.files import is_alive

PREFIX = "check-of-"


@contextmanager
def workplace() -> Iterator[Path]:
    """A new folder among the temporary ones."""
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
    try:
        yield folder
    finally:
        remove(folder)


def sweep() -> None:
    """Remove the folders of checks that were killed."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdecimal() and not is_alive(int(pid)):
            remove(left)


def remove(folder: Path) -> None:
    """Remove a folder as far as that is allowed, however deep it is: what lies further
    down is brought up first, so that no path grows too long.
    """
    removed = True
    while removed:
        removed = [_remove_one(folder, entry) for entry in _entries(folder)]
        removed = any(removed)
    with suppress(OSError):
        os.rmdir(folder)


def _entries(folder) -> list[os.DirEntry]:
    with suppress(OSError), os.scandir(folder) as entries:
        return list(entries)
    return []


def _remove_one(top: Path, entry: os.DirEntry) -> bool:
    with suppress(OSError):
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)
            return True
        os.chmod(entry.path, 0o700)
        for inner in _entries(entry.path):
            if inner.is_dir(follow_symlinks=False):
                os.chmod(inner.path, 0o700)
                os.rename(inner.path, top / uuid4().hex)
            else:
                os.unlink(inner.path)
        os.rmdir(entry.path)
        return True
    return False
