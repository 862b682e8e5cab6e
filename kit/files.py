"""Whole files or a sentence: written under a temporary name and renamed, JSON, locks,
copies to Drive and back.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import re
import shutil
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch

KIT = Path(__file__).resolve().parents[1]


class CourseError(RuntimeError):
    """An error for people: what was wrong, where, and the one thing to do next."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]  # what a notebook shows instead of the traceback


def check_choice(what: str, value, known) -> None:
    if value not in known:
        raise CourseError(
            f"{what}={value!r} is unknown: choose one of {', '.join(known)}."
        )


# What the system says when there is no room: of the disk, of a quota, of the size that
# one file may have.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The same in the words of libraries that raise no OSError: torch.save, SQLite,
# shutil.copytree.
FULL_WORDS = re.compile(
    r"No space left|File too large|quota exceeded|disk is full|disk I/O"
    r" error|inline_container"
)
HOST = platform.node().split(".")[0]
# what `atomic` calls its temporary files
LEFTOVER = re.compile(r"\..+\.(?P<host>[^.]*)-(?P<pid>\d{1,9})(\.\w+)?\.tmp")


@contextmanager
def clear_disk_errors(
    path: str | Path, kept: str = "What stood there before is untouched."
):
    """Say in one sentence that `path` could not be written, why, how much is free and
    what to do.

    Raises
    ------
    CourseError
        In the place of any OSError, and of what libraries raise when the disk is full;
        other errors pass.
    """
    try:
        yield
    except CourseError:
        raise
    except Exception as error:
        full = _disk_is_full(error)
        if not full and not isinstance(error, OSError):
            raise
        reason, advice = why_not_written(error), "check the permissions of the folder"
        if full:
            place = next(p for p in Path(path).absolute().parents if p.exists())
            free = shutil.disk_usage(place).free / 1e6
            reason += f"; {free:,.1f} MB are free on that disk"
            advice = "free some space there (on Google Drive: empty the trash as well)"
        told = (
            f"{path} could not be written ({reason}): {advice}, then run the cell"
            f" again. {kept}"
        )
        raise CourseError(told) from error


def _disk_is_full(error: BaseException | None) -> bool:
    """Does this error, or the one that it came from, say so?"""
    if error is None:
        return False
    told = getattr(error, "errno", None) in FULL or FULL_WORDS.search(str(error))
    return bool(told) or _disk_is_full(error.__cause__)


def why_not_written(error: Exception) -> str:
    # of copytree: a list of (source, target, what happened)
    if isinstance(error, shutil.Error):
        return error.args[0][0][-1]
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # torch.save tells of positions in a file, SQLite of an I/O error
    return "no space left"


@contextmanager
def atomic(path: str | Path):
    """Yield a temporary name beside `path` and rename it at the end: a reader never
    sees half a file, or folder.

    A process that is killed leaves its temporary file behind; the next writer in that
    folder removes it.

    Raises
    ------
    CourseError
        Disk full or no permission; what stood at `path` before is untouched.
    """
    path = Path(path)
    # its own name for each call: threads may write the same file at once
    mine = f"{HOST}-{os.getpid()}.{uuid4().hex[:8]}"
    temporary = path.with_name(f".{path.name}.{mine}.tmp")
    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            remove(temporary)


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed processes; one of another machine, or of our
    own number, may be in use for a day.
    """
    for path in folder.glob(".*.tmp"):
        if found := LEFTOVER.fullmatch(path.name):
            with suppress(OSError):  # another process may have been faster
                dead = found["host"] == HOST and not is_alive(int(found["pid"]))
                if dead or time.time() - path.lstat().st_mtime > 86_400:
                    remove(path)


def is_alive(pid: int) -> bool:
    """Is a process of this number at work here? Where that cannot be asked,
    it may be.
    """
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)  # signal 0 asks and does nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, as somebody else's
    return True


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def copy_to_home(course, path: Path) -> None:
    """Copy a file or folder of the local disk to the home: a safe point. Nothing to do
    where both are one.

    Where the home cannot take it (Drive full, or gone), says so and goes on: the next
    safe point copies it again.
    """
    kept = course.home / path.relative_to(course.local)
    if course.home == course.local:
        return
    try:
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file() and not LEFTOVER.fullmatch(file.name):
                with atomic(kept / file.relative_to(path)) as temporary:
                    shutil.copy(file, temporary)
    except (CourseError, OSError) as error:
        print(
            f"\nNot on Drive yet ({error.__cause__ or error}): the work goes on, kept"
            f" on this machine in {path}. Make room on Drive or mount it again before"
            " the session ends; the next safe point copies it."
        )


def copy_back(course, path: Path) -> None:
    """Bring back what `copy_to_home` stored, when the local disk has lost it (a new
    runtime); whole, or not at all.

    Raises
    ------
    CourseError
        The home cannot be read, or the local disk is full; the home is untouched.
    """
    kept = course.home / path.relative_to(course.local)
    if path.exists() or not kept.exists():
        return
    try:
        # half a copy would pass for the whole, and be stored over that
        with atomic(path) as temporary:
            if kept.is_dir():
                shutil.copytree(
                    kept,
                    temporary,
                    ignore=lambda _, names: [n for n in names if LEFTOVER.fullmatch(n)],
                )
            else:
                shutil.copy(kept, temporary)
    except CourseError as error:
        raise CourseError(
            f"{kept} could not be brought back ({why_not_written(error.__cause__)}):"
            " mount Drive again or free some space here, then run the cell again."
        ) from error


def read_text(path: str | Path) -> str:
    """The text of a file that any editor or shell may have saved; see `decode_text`."""
    return decode_text(Path(path).read_bytes())


def decode_text(content: bytes) -> str:
    """Bytes as text with line ends \\n and no byte-order mark: UTF-8, UTF-16 or UTF-32
    as they show themselves, else the code page of Western Windows.
    """
    encoding = json.detect_encoding(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        # UTF-16 that was cut stays UTF-16
        encoding = "cp1252" if encoding.startswith("utf-8") else encoding
        text = content.decode(encoding, errors="replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, precious: bool = False) -> dict:
    """Content of a JSON file of ours, an object; {} when it is missing, or damaged and
    not precious.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:  # broken text, or nested too deep
        if not precious:
            return {}
        raise damaged(path) from error
    return content


def damaged(path: Path) -> CourseError:
    """The error of a file that the notebooks wrote and can write again."""
    return CourseError(
        f"{path} is damaged: move it away, then run the notebooks again from theme 1"
        " (finished trainings load)."
    )


def write_json(path: str | Path, values) -> Path:
    with atomic(path) as temporary:
        temporary.write_text(
            json.dumps(_finite(values), indent=1, allow_nan=False) + "\n"
        )
    return Path(path)


def _finite(values):
    """Values as JSON knows them: no NumPy, and null for NaN and infinity, which other
    readers than Python refuse.
    """
    if isinstance(values, dict):
        return {str(_plain(key)): _finite(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    if values is None or isinstance(values, (str, bool, int)):
        return values
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    return _finite(_plain(values))


def _plain(value):
    """NumPy scalars and paths as JSON knows them; the images as their key."""
    if hasattr(value, "key"):  # the images
        return value.key
    if isinstance(value, (np.generic, torch.Tensor, np.ndarray)):
        return value.tolist()
    return str(value)


def make_parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


@contextmanager
def alone(course, name: str, quiet: bool = False):
    """Let one process at a time do the work of that name in a home: the others wait,
    and then find it done.

    The lock goes with the process that holds it: after a kill, the file that is left
    keeps nobody out."""
    path = course.local / "runs" / ".locks" / f"{name}.lock"
    with locked(path, "" if quiet else name):
        yield


@contextmanager
def locked(path: Path, name: str = ""):
    """Hold the lock file `path`, waiting for another process that has it; with a name,
    say so.

    Raises
    ------
    CourseError
        The lock cannot be made: a full disk, a folder that may only be read.
    """
    from filelock import FileLock, Timeout

    with clear_disk_errors(path):
        lock = FileLock(make_parent(path))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if name:
                told = "another notebook is at work on this; waiting for its result"
                print(f"{name}: {told}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a .npz file: numbers and text, never objects, which could run code.
    A damaged file raises ValueError.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # NumPy and zipfile raise a dozen kinds
        raise ValueError(f"{type(error).__name__}: {error}") from error
