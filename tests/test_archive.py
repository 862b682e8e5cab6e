"""Hostile archives: refused in one sentence, and nothing is left."""

import types
import zipfile
from pathlib import Path

import pytest
from support.kaggle_user import MIB, packed

from kit import archive


def encrypted() -> bytes:
    content = bytearray(packed(("a.jpeg", "x")))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + at] |= 1
    return bytes(content)


HOSTILE = {
    "up": (packed(("a.jpeg", "x"), ("../evil", "x")), "outside"),
    "up, further in": (packed(("a/../../evil", "x")), "outside"),
    "absolute": (packed(("/tmp/evil", "x")), "outside"),
    "backslashes": (packed(("..\\evil", "x")), "outside"),
    "drive": (packed(("C:\\evil", "x")), "outside"),
    "network drive": (packed(("\\\\host\\evil", "x")), "outside"),
    "encrypted": (encrypted(), "encrypted"),
    "a name twice": (packed(("a.jpeg", "x"), ("./a.jpeg", "y")), "damaged"),
    "a file that is a folder": (packed(("a", "x"), ("a/b", "y")), "damaged"),
    "1,900 folders in each other": (packed(("a/" * 1900 + "a", "x")), "large"),
    "a name too long": (packed(("a" * 300, "x")), "damaged"),
    "cut": (packed(("a.jpeg", "x" * 900))[:-30], "no zip"),
    "changed": (packed(("a.jpeg", "x" * 900)).replace(b"xxx", b"yyy", 1), "damaged"),
    "larger than it says": (
        packed(("a.jpeg", "x" * 900)).replace(
            (900).to_bytes(4, "little"), (9).to_bytes(4, "little")
        ),
        "damaged",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archive_is_refused_and_leaves_nothing(name, tmp_path):
    content, kind = HOSTILE[name]
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.zip"
    path.write_bytes(content)
    with pytest.raises(archive.ArchiveError) as caught:
        archive.unpack(path, tmp_path / "in" / "target")
    assert caught.value.kind == kind and path.read_bytes() == content
    assert [found.name for found in tmp_path.rglob("*")] == ["in", "a.zip"]


def test_bomb_is_refused_and_images_that_hardly_shrink_are_not(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    path.write_bytes(packed(("zeros", bytes(MIB)), compression=zipfile.ZIP_DEFLATED))
    monkeypatch.setattr(archive, "MAX_UNPACKED", MIB - 1)
    with pytest.raises(archive.ArchiveError, match="unpacks to 1 MiB") as caught:
        archive.unpack(path, tmp_path / "target")
    assert caught.value.kind == "large" and list(tmp_path.iterdir()) == [path]
    archive._refuse_bombs(path, [types.SimpleNamespace(file_size=MIB - 1)], MIB, 1)
    # 2.4 GiB of X-rays and their litter
    real = [types.SimpleNamespace(file_size=150_000)] * 17_568
    monkeypatch.undo()
    monkeypatch.setattr(
        Path, "stat", lambda _: types.SimpleNamespace(st_size=int(2.3 * 2**30))
    )
    archive._refuse_bombs(path, real, 1 << 40, archive.MAX_FILES)
