"""Unpack a zip that somebody else made: whole or not at all, and never outside its own
folder.
"""

import errno
import lzma
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

MIB = 1 << 20
# Real X-rays are 2.4 GB with their second copy and barely shrink, a hand-in shrinks to
# half, a bomb to a thousandth.
MAX_UNPACKED, MAX_RATIO, MAX_FILES = 4 << 30, 200, 50_000
MAX_DEPTH = 100  # folders in each other: whoever walks through a thousand may break off
# What the machine refuses, whatever the archive: all other errors of a file system come
# from the names inside it.
MACHINE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.EMFILE,
}


# In a name: control characters, and bytes that are no UTF-8.
MANGLED = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class ArchiveError(RuntimeError):
    """A zip that was not unpacked.

    Attributes
    ----------
    kind : {"missing", "no zip", "damaged", "outside", "encrypted", "large", "disk"}
        "disk": the archive may be fine, this machine has no room or no permission for
        it.
    """

    def __init__(self, kind: str, archive: Path, what: str):
        super().__init__(f"{shown(archive)} {what}")
        self.kind, self.what = kind, what


def shown(name) -> str:
    """A file name or foreign text that prints everywhere: bytes that are no UTF-8, and
    control characters, escaped.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name)
    )


# What `zipfile` raises on a broken zip; RuntimeError: a method Python does not know.
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    ArithmeticError,
    RuntimeError,
)


def unpack(
    archive: Path, target: Path, leave_out=frozenset(), most_files: int = MAX_FILES
) -> list[PurePosixPath]:
    """Unpack a zip to `target`, a folder that does not exist yet, by way of a temporary
    one beside it; what lies in folders named in `leave_out` is passed over.

    Returns
    -------
    list of the links inside, which were not made.

    Raises
    ------
    ArchiveError
        Missing, damaged, encrypted, far too large, a name twice, or a name that leads
        outside. Nothing is left of it.
    """
    if not archive.is_file():
        raise ArchiveError("missing", archive, "is missing")
    if not zipfile.is_zipfile(archive):
        raise ArchiveError("no zip", archive, "is no whole zip")
    temporary = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed process left
    try:
        temporary.mkdir(parents=True)
        with zipfile.ZipFile(archive) as file:
            links = _extract_all(archive, file, temporary, leave_out, most_files)
        os.replace(temporary, target)
    except ArchiveError:
        raise
    except (OSError, *BROKEN) as error:
        kind = "disk" if getattr(error, "errno", None) in MACHINE else "damaged"
        told = shown(getattr(error, "strerror", None) or error)[:200]
        raise ArchiveError(kind, archive, f"cannot be unpacked ({told})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return links


def _extract_all(
    archive: Path, file: zipfile.ZipFile, folder: Path, leave_out, most_files
) -> list[PurePosixPath]:
    places = {member: _inside(archive, member) for member in file.infolist()}
    places = {
        member: path
        for member, path in places.items()
        if path.parts and not leave_out.intersection(path.parts)
    }
    _refuse_bombs(archive, [*places], shutil.disk_usage(folder).free, most_files)
    links, files = [], set()
    for member, path in places.items():
        if stat.S_ISLNK(member.external_attr >> 16):
            links.append(path)
        elif member.is_dir() or member.filename.endswith("\\"):
            (folder / path).mkdir(parents=True, exist_ok=True)
        elif path in files:  # programs disagree on which of two counts
            raise zipfile.BadZipFile(f"it holds {shown(path)} twice")
        else:
            files.add(path)
            _extract(file, member, folder / path)
    return links


def _inside(archive: Path, member: zipfile.ZipInfo) -> PurePosixPath:
    """Where a member goes, below the target; some Windows
    programs write backslashes.
    """
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", str(path)):
        what = f"would write outside its own folder ({shown(member.filename)})"
        raise ArchiveError("outside", archive, what)
    if len(path.parts) > MAX_DEPTH:
        what = f"holds folders nested more than {MAX_DEPTH} deep"
        raise ArchiveError("large", archive, what)
    if member.flag_bits & 1:
        raise ArchiveError("encrypted", archive, "is encrypted")
    return path


def _refuse_bombs(
    archive: Path, members: list[zipfile.ZipInfo], free: int, most_files: int
) -> None:
    size, packed = sum(member.file_size for member in members), archive.stat().st_size
    unpacks = f"unpacks to {size / MIB:,.0f} MiB"
    if len(members) > most_files:
        what = f"holds {len(members):,} files (limit: {most_files:,})"
        raise ArchiveError("large", archive, what)
    if size > MAX_UNPACKED or (size > 256 * MIB and size > MAX_RATIO * packed):
        what = f"{unpacks}, {size // max(packed, 1):,} times its own size"
        raise ArchiveError("large", archive, what)
    if size > free:
        what = f"{unpacks}, and {free / MIB:,.0f} MiB are free"
        raise ArchiveError("disk", archive, what)


def _extract(file: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Write one member; `zipfile` compares its checksum at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    left = member.file_size
    with file.open(member) as source, open(path, "xb") as target:
        while block := source.read(MIB):
            left -= len(block)
            if left < 0:
                raise zipfile.BadZipFile(f"{member.filename} is larger than it says")
            target.write(block)
