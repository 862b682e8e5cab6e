"""A student who asks Kaggle for the images: home folder, key, place for the images, and
what must hold after any download. The fixtures are those of tests/conftest.py.
"""

import base64
import io
import os
import types
import warnings
import zipfile
from pathlib import Path

import pytest

from kit import download
from support.kaggle_server import (
    KEY,
    SIGNATURE,
    TOKEN,
    environment,
    point_client_at,
    serving,
)

MIB = 1 << 20
PART = ".chest-xray-pneumonia.zip.part"
XRAY = "paultimothymooney/chest-xray-pneumonia"
SECRETS = (KEY, TOKEN, SIGNATURE, base64.b64encode(f"student:{KEY}".encode()).decode())


@pytest.fixture(scope="session")
def content(drawn) -> bytes:
    """A zip in the layout of the real one: everything below chest_xray/, a second copy,
    litter of a Mac.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        # a download writes a MiB at a time
        zipped.writestr("chest_xray/notes.bin", os.urandom(5 << 19))
        for path in sorted((drawn / "chest_xray").rglob("*.jpeg")):
            name = path.relative_to(drawn / "chest_xray").as_posix()
            zipped.write(path, f"chest_xray/{name}")
            zipped.write(path, f"chest_xray/chest_xray/{name}")
            zipped.writestr(
                f"chest_xray/__MACOSX/{Path(name).parent}/._{path.name}", b"\0\5\x16\7"
            )
    return packed.getvalue()


@pytest.fixture
def user(tmp_path, monkeypatch) -> Path:
    """The home folder of a user without credentials."""
    home = tmp_path / "user"
    home.mkdir()
    for name in set(os.environ) - set(environment(home)):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def server(content, user, monkeypatch):
    """The server, a client that asks it, a key in the environment; afterwards: no
    secret was told or written.
    """
    with serving(content) as running:
        point_client_at(running.url)
        monkeypatch.setenv("KAGGLE_USERNAME", "student")
        monkeypatch.setenv("KAGGLE_KEY", KEY)
        yield running


@pytest.fixture
def waits(monkeypatch) -> list:
    """The seconds that a download would have waited, without waiting."""
    waited = []
    monkeypatch.setattr(download, "time", types.SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def place(tmp_path) -> Path:
    """Where the images go; another dataset lies beside it."""
    (tmp_path / "raw" / "solar_panels").mkdir(parents=True)
    (tmp_path / "raw" / "solar_panels" / "roof.jpg").write_bytes(b"precious")
    return tmp_path / "raw" / "chest_xray"


def left(place: Path) -> set[str]:
    """What lies beside the images, the lock aside."""
    assert (place.parent / "solar_panels" / "roof.jpg").read_bytes() == b"precious"
    return {path.name for path in place.parent.iterdir()} - {
        "solar_panels",
        ".chest_xray.lock",
    }


def fails(place: Path) -> download.DownloadError:
    with pytest.raises(download.DownloadError) as caught:
        download.install(XRAY, place)
    assert not place.exists() and caught.value.__cause__ is None
    return caught.value


def no_secret(text: str, folder: Path) -> None:
    """Neither in what was printed nor in any file below the folder."""
    assert not [secret for secret in SECRETS if secret in text]
    for path in folder.rglob("*"):
        found = path.is_file() and path.name != "kaggle.json" and path.read_bytes()
        assert not [
            secret for secret in SECRETS if found and secret.encode() in found
        ], path


def packed(*files, **options) -> bytes:
    """A zip of (name, content) pairs, names as they are."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", **options) as zipped, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name twice
        for name, content in files:
            zipped.writestr(
                name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name),
                content,
            )
    return made.getvalue()
