"""What hostile files are made of, as Hypothesis strategies, and a watch over the place
that they are read in.
"""

import copy
import faulthandler
import io
import json
import os
import stat
import sys
import zipfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

TOKENS = b"""" , ; ' -1e999 1e300 -1 NaN inf null {} ../../ /etc/passwd %s%n{0} True
1970-01-01T00:00:00Z 9999-12-31T23:59:59Z""".split()
TOKENS += [b"\0", b"\0" * 64, b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n\n"]
TOKENS += [b"9" * 400, b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"x" * 200_000]
TOKENS += [b"\x1b[2J", "é\u202e\u0000".encode(), "\U0001f600".encode("utf-16")]
ODD_TEXTS = (
    r"""../../x /etc/passwd C:\x NaN inf 1e999 -1 {0} #{panic()} " , None""".split()
)
ODD_TEXTS += ["", " ", "\0", "\ud800", "\u202e", "e\u0301", "a\nb", "a\rb"]
ODD_TEXTS += ["x" * 5000, "9" * 400]
ODD_NUMBERS = [0, -1, 1, 0.5, 2**31, 2**63, 10**9, 10**400, -(10**9), 1e308]
ODD_NUMBERS += [float("nan"), float("inf"), float("-inf")]
BLOCK = st.tuples(st.integers(0, 2**16), st.integers(0, 2**16))


# --------------------------------------------------------------------------------------
# Bytes
# --------------------------------------------------------------------------------------


def _flip(data, first, last, token):
    data[first] ^= 1 << (last % 8)
    return data


def _whole(change):
    """A change of the text as a whole; bytes that are no text stay as they are."""

    def changed(data, first, last, token):
        try:
            return bytearray(change(data.decode()))
        except ValueError:
            return data

    return changed


CHANGES = {
    "flip a bit": _flip,
    "cut off the end": lambda data, first, last, token: data[:first],
    "cut off the beginning": lambda data, first, last, token: data[first:],
    "leave a block out": lambda data, first, last, token: data[:first] + data[last:],
    "repeat a block": lambda data, first, last, token: data[:last] + data[first:],
    "insert": lambda data, first, last, token: data[:first] + token + data[first:],
    "overwrite": (
        lambda data, first, last, token: (
            data[:first] + token + data[first + len(token) :]
        )
    ),
    "another encoding": _whole(lambda text: text.encode("utf-16")),
    "Latin-1": _whole(lambda text: ("é" + text).encode("latin-1")),
    "byte order mark": _whole(lambda text: b"\xef\xbb\xbf" + text.encode()),
    "Windows line ends": _whole(lambda text: text.replace("\n", "\r\n").encode()),
}
CHANGE = st.tuples(st.sampled_from(list(CHANGES)), BLOCK, st.sampled_from(TOKENS))


def _broken(valid: bytes, changes) -> bytes:
    data = bytearray(valid)
    for name, block, token in changes:
        first, last = sorted(at * len(data) >> 16 for at in block)
        if data:
            data = CHANGES[name](data, min(first, len(data) - 1), last, token)
    return bytes(data[:2_000_000])


def broken(valid: bytes) -> st.SearchStrategy[bytes]:
    """A valid file with up to five changes (sometimes none), or a few random bytes."""
    return st.lists(CHANGE, max_size=5).map(partial(_broken, valid)) | st.binary(
        max_size=200
    )


# --------------------------------------------------------------------------------------
# JSON
# --------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from(ODD_NUMBERS)
    | st.sampled_from(ODD_TEXTS)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def _places(node, path=()):
    """Paths of all nodes below `node`."""
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _replaced(valid, edits):
    """A copy of nested dicts and lists in which some nodes have become another value,
    or have gone.
    """
    values = copy.deepcopy(valid)
    for at, what, value in edits:
        places = list(_places(values))
        if not places:
            return value
        *path, last = places[at % len(places)]
        node = values
        for key in path:
            node = node[key]
        if what == "replace":
            node[last] = value
        elif what == "double" and isinstance(node, list):
            node.insert(last, node[last])
        else:
            del node[last]
    return values


def edited(valid) -> st.SearchStrategy:
    """Nested dicts and lists with one to three nodes replaced, repeated or taken out;
    or another value altogether.
    """
    edit = st.tuples(
        st.integers(0, 2**16),
        st.sampled_from(["replace", "replace", "double", "delete"]),
        VALUES,
    )
    return (
        st.lists(edit, min_size=1, max_size=3).map(partial(_replaced, valid)) | VALUES
    )


def broken_json(valid) -> st.SearchStrategy[bytes]:
    """Text of a JSON file: other values, or broken text."""
    return edited(valid).map(lambda values: json.dumps(values).encode()) | broken(
        json.dumps(valid, indent=1).encode()
    )


# --------------------------------------------------------------------------------------
# CSV
# --------------------------------------------------------------------------------------

ODD_CELLS = r"""nan inf -inf 1e300 1e999 -1 0 1.5 0x10 1_000 True {} a;b " ok firing
2026-01-01 1677-01-01T00:00:00Z 2400-01-01T00:00:00Z 0001-01-01
../../../etc/passwd /etc/passwd""".split()
ODD_CELLS += ["", "\r", "\0", "é\u202e", "in service", "9" * 30]
ODD_CELLS += ["[" * 2000, "x" * 200_000]
CELLS = st.sampled_from(ODD_CELLS) | st.text(max_size=6)


def _table(rows: list[list[str]], edits) -> list[list[str]]:
    rows = [list(row) for row in rows]
    for what, (row, column), cell in edits:
        r, c = row % len(rows), column % max(len(rows[0]), 1)
        if what == "cell" and c < len(rows[r]):
            rows[r][c] = cell
        elif what == "column":
            rows = [row[:c] + row[c + 1 :] for row in rows]
        elif what == "new-column":
            rows = [[*row[:c], cell, *row[c:]] for row in rows]
        elif what == "reorder":
            rows = [row[c:] + row[:c] for row in rows]
        elif what == "row":
            rows.insert(r, rows[r])
        elif what == "short":
            rows[r] = rows[r][:c]
        elif what == "long":
            rows[r] = [*rows[r], cell]
    return rows


def broken_csv(valid: str, first: str = "") -> st.SearchStrategy[bytes]:
    """A table without quotes, with other cells, columns and rows, below a `first` line;
    or broken text.
    """
    rows = [line.split(",") for line in valid.splitlines()]
    kinds = "cell cell cell column new-column reorder row short long".split()
    edit = st.tuples(st.sampled_from(kinds), BLOCK, CELLS)

    def text(edits) -> bytes:
        table = "\n".join(",".join(row) for row in _table(rows, edits)) + "\n"
        return (first + table).encode(errors="surrogatepass")

    return st.lists(edit, min_size=1, max_size=4).map(text) | broken(
        (first + valid).encode()
    )


# --------------------------------------------------------------------------------------
# Zips
# --------------------------------------------------------------------------------------

NAMES = r"""
a.txt  train/NORMAL/a.jpeg  chest_xray/test/x.jpeg  ../out.txt  a/../../out.txt
/tmp/out.txt  \out.txt  ..\out.txt  C:\out.txt  C:out.txt  //host/share/x  a//b  ./a.txt
a/./b  é.txt  A.TXT  a.txt/b  NUL  notebooks/  utils.py  notebooks/theme1.ipynb
exports/results.json  course.json  .hidden""".split()
NAMES += ["e\u0301.txt", "a\nb", "a ", "x" * 300, "d/" * 60 + "x", "\u202etxt.exe", ""]
MODES = [
    0,
    stat.S_IFREG | 0o644,
    stat.S_IFLNK | 0o777,
    stat.S_IFDIR | 0o755,
    stat.S_IFIFO | 0o644,
    0o4755,
]
CONTENTS = [b"", b"text", b"../../out.txt", b"/etc/passwd", b"\0" * 4096]
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]
MEMBER = st.tuples(*map(st.sampled_from, (NAMES, CONTENTS, MODES, METHODS)))


def zipped(members) -> bytes:
    """A zip of (name, content, mode, method), whatever the names are."""
    import warnings

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content, mode, method in members:
            about = zipfile.ZipInfo("x")
            about.filename, about.external_attr, about.compress_type = (
                name,
                mode << 16,
                method,
            )
            archive.writestr(about, content)
    return buffer.getvalue()


ZIPS = st.lists(MEMBER, max_size=6).map(zipped)
BROKEN_ZIPS = ZIPS | st.tuples(ZIPS, st.lists(CHANGE, min_size=1, max_size=3)).map(
    lambda pair: _broken(*pair)
)
BROKEN_ZIPS |= st.binary(max_size=100).map(lambda rest: b"PK\3\4" + rest)


# --------------------------------------------------------------------------------------
# Images
# --------------------------------------------------------------------------------------

FORMATS = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "GIF": ("L", "P", "RGB"),
    "TIFF": ("1", "L", "RGB", "CMYK", "F", "I;16", "LAB"),
    "BMP": ("1", "L", "RGB"),
    "WEBP": ("RGB", "RGBA"),
}
SIZES = [(1, 1), (40, 30), (32, 32), (1, 3000), (3000, 1), (2, 2)]


def picture(
    kind: str, mode: str, size: tuple[int, int], frames: int = 1, turned: int = 1
) -> bytes:
    """A file of random pixels; `turned` is its EXIF orientation."""
    noise = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
    pixels, buffer = Image.fromarray(noise), io.BytesIO()
    image = (
        pixels.convert("RGB").convert(mode)
        if mode in ("P", "CMYK")
        else pixels.convert(mode.split(";")[0])
    )
    image = pixels.convert("I").convert("I;16") if mode == "I;16" else image
    image = Image.new("LAB", size, (50, 0, 0)) if mode == "LAB" else image
    options = (
        {"exif": _turned(turned)}
        if turned > 1 and kind in ("JPEG", "PNG", "WEBP")
        else {}
    )
    if frames > 1 and kind in ("GIF", "TIFF", "WEBP"):
        options |= {
            "save_all": True,
            "append_images": [image.copy() for _ in range(frames - 1)],
        }
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header claims any size; its pixels are a few bytes."""
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body))
            + name
            + body
            + struct.pack(">I", zlib.crc32(name + body))
        )

    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0),
        b"IDAT": zlib.compress(b"\0" * 99),
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in (parts | {b"IEND": b""}).items()
    )


_PICTURES = {}


def _picture(choice) -> bytes:
    if choice not in _PICTURES:
        (kind, mode), size, frames, turned = choice
        _PICTURES[choice] = picture(kind, mode, size, frames, turned)
    return _PICTURES[choice]


KINDS = [(kind, mode) for kind, modes in FORMATS.items() for mode in modes]
VALID_PICTURES = st.tuples(*map(st.sampled_from, (KINDS, SIZES, [1, 3], [1, 6]))).map(
    _picture
)
HEADERS = [
    b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"BM",
    b"RIFF\0\0\0\0WEBP",
    b"%!PS-Adobe",
    b"P6 9999999 9999999 255\n",
    b"\0\0\1\0",
]
PICTURES = (
    VALID_PICTURES
    | st.tuples(VALID_PICTURES, st.lists(CHANGE, min_size=1, max_size=4)).map(
        lambda pair: _broken(*pair)
    )
    | st.tuples(st.sampled_from(HEADERS), st.binary(max_size=120)).map(b"".join)
    | st.sampled_from(
        [(1, 100_000), (100_000, 1), (13_000, 13_000), (2**31 - 1, 2**31 - 1), (0, 0)]
    ).map(lambda size: huge_png(*size))
)


# --------------------------------------------------------------------------------------
# The watch
# --------------------------------------------------------------------------------------


def listing(folder: Path, less: Path) -> dict[str, tuple]:
    """What lies in a folder, outside of one folder in it: names, sizes, times and
    contents of small files.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path != less and less not in path.parents:
            about = path.lstat()
            content = (
                path.read_bytes() if path.is_file() and about.st_size < 1000 else b""
            )
            found[str(path)] = (
                about.st_mode,
                about.st_mtime_ns if path.is_file() else 0,
                about.st_size,
                content,
            )
    return found


@contextmanager
def no_hang(seconds: float = 60):
    """End the process, with the place where it hangs, when what is below takes longer:
    also inside of a C library.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def bounded_memory(more: int = 2 << 30):
    """Refuse allocations beyond what the process has now and `more` bytes, on Linux."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def peak() -> int:
    """Most memory that this process ever held, in bytes; 0 where the system does not
    say.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next(
        (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0
    )
