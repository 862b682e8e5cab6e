"""The official Kaggle client against a server on the loopback: every fault, what the
student reads, what is left.
"""

import base64
import errno
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import types
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from support.kaggle_server import (
    KEY,
    SIGNATURE,
    TOKEN,
    environment,
    point_client_at,
    serving,
)

import utils
from kit import archive, download

KIT = Path(utils.__file__).parent
MIB = 1 << 20
PART = Path(".chest-xray-pneumonia.download/chest-xray-pneumonia.zip")
XRAY = "paultimothymooney/chest-xray-pneumonia"
SECRETS = (KEY, TOKEN, SIGNATURE, base64.b64encode(f"student:{KEY}".encode()).decode())


@pytest.fixture(scope="session")
def content(drawn) -> bytes:
    """A zip in the layout of the real one: everything below chest_xray/, a second copy,
    litter of a Mac.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        # the client writes a MiB at a time
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
    with suppress(SystemExit, OSError):  # the import wants credentials, at once
        import kaggle.api.kaggle_api_extended  # noqa: F401

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


# --- a download that goes well


def test_key_file_is_made_private_and_the_real_layout_becomes_the_index(
    server, user, tmp_path, monkeypatch, capfd, open_course
):
    expected = utils.build_index(open_course(home=tmp_path / "other"))
    monkeypatch.delenv("KAGGLE_KEY")
    file = user / ".kaggle" / "kaggle.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"username": "student", "key": KEY}))
    file.chmod(0o644)
    from kaggle.api.kaggle_api_extended import KaggleApi

    # with VERBOSE=1 the client prints its requests, key and all
    monkeypatch.setattr(KaggleApi, "args", ["--verbose"])
    for _ in range(2):
        course = utils.start(
            1, source="kaggle", profile="smoke", home=tmp_path / "home"
        )
    out, err = capfd.readouterr()
    index = utils.build_index(course)
    images = expected[["label", "pool"]].value_counts()
    assert not course.sample and index[["label", "pool"]].value_counts().equals(images)
    repairs = {row["what"]: row["files"] for row in index.attrs["repairs"]}
    assert (
        repairs["second copy of an image"]
        == repairs["__MACOSX and ._ files"]
        == len(index)
    )
    # the second start asks for nothing
    assert server.asked == ["POST DownloadDataset", "GET all"]
    assert (
        stat.S_IMODE(file.stat().st_mode) == 0o600
        and "~/.kaggle/kaggle.json could be read by others" in out
    )
    assert "100%" in err and "B/s" in err  # the progress bar
    assert {path.name for path in course.root.parent.iterdir()} == {
        "chest_xray",
        ".chest_xray.lock",
    }
    no_secret(out + err, tmp_path)


def test_download_that_broke_off_goes_on_from_there(server, place, waits, capfd):
    server.storage = [("cut", 3 << 19)]
    download.install(XRAY, place)
    assert (
        server.asked[-1] == f"GET bytes={MIB}-"
        and left(place) == {"chest_xray"}
        and waits == [2]
    )
    assert (
        "The connection to Kaggle broke off: try 2 of 5 in 2 s."
        in capfd.readouterr()[0]
    )


def test_storage_that_refuses_in_between_does_not_cost_the_part(server, place, waits):
    # the client asks for all, then for the rest
    server.storage = [("cut", 3 << 19), None, 503]
    download.install(XRAY, place)
    assert (
        server.asked[-1] == f"GET bytes={MIB}-"
        and waits == [2, 5]
        and left(place) == {"chest_xray"}
    )


def test_part_that_an_earlier_call_left_is_continued(server, place, waits):
    server.storage = [("cut", 3 << 19)] + [503] * 4
    assert (
        fails(place).kind == "answer"
        and left(place) == {PART.parent.name}
        and waits == list(download.WAITS)
    )
    assert (place.parent / PART).stat().st_size == MIB
    download.install(XRAY, place)
    assert server.asked[-1] == f"GET bytes={MIB}-" and left(place) == {"chest_xray"}


@pytest.mark.parametrize("kind", ["web page", "403", "disk", "unreachable"])
def test_fault_does_not_cost_the_part_that_is_there(
    kind, server, user, place, waits, monkeypatch
):
    server.storage = [("cut", 3 << 19)] + [503] * 4
    fails(place)
    provoke(kind, server, user, place, monkeypatch)
    fails(place)
    assert (place.parent / PART).stat().st_size == MIB


@pytest.mark.parametrize("whole", [True, False])
def test_part_of_full_length_is_taken_only_if_it_is_whole(
    whole, server, place, waits, content
):
    (place.parent / PART).parent.mkdir()
    (place.parent / PART).write_bytes(content if whole else bytes(len(content)))
    download.install(XRAY, place)
    assert len(waits) == (0 if whole else 1) and left(place) == {"chest_xray"}


def test_server_without_ranges_is_asked_for_everything_again(server, place, waits):
    server.ranges, server.storage = False, [("cut", 3 << 19)]
    download.install(XRAY, place)
    assert server.asked[1:] == ["GET all", "POST DownloadDataset", "GET all"] and left(
        place
    ) == {"chest_xray"}


@pytest.mark.parametrize(
    ("about", "expected"),
    [({}, 2), ({"Retry-After": "7"}, 7), ({"Retry-After": "soon"}, 2)],
)
@pytest.mark.parametrize("status", [429, 503])
def test_busy_server_is_asked_again_after_the_time_it_names(
    server, place, waits, status, about, expected, capfd
):
    server.api = [(status, about)]
    download.install(XRAY, place)
    assert (
        waits == [expected]
        and f"{status}" in (out := capfd.readouterr()[0])
        and f"in {expected} s." in out
    )


def test_server_that_asks_for_long_patience_is_not_waited_for(server, place, waits):
    server.api = [(429, {"Retry-After": "3600"})]
    assert "wait 60 minutes, then run again" in str(fails(place)) and waits == []


def test_server_that_falls_silent_does_not_hold_the_notebook(
    server, place, waits, monkeypatch
):
    monkeypatch.setattr(download, "TIME_LIMITS", (5, 2))
    done = threading.Event()
    server.storage = [("slow", done)]
    download.install(XRAY, place)
    done.set()
    assert server.asked[-1] == f"GET bytes={MIB}-" and waits == [2]


def test_archive_that_waits_is_unpacked_and_not_downloaded_again(
    server, place, monkeypatch
):
    with monkeypatch.context() as full:
        full.setattr(archive, "open", no_space, raising=False)
        assert fails(place).kind == "disk" and left(place) == {
            ".chest-xray-pneumonia.zip"
        }
    asked = list(server.asked)
    download.install(XRAY, place)
    assert server.asked == asked and left(place) == {"chest_xray"}


def test_zip_downloaded_by_hand_is_taken_and_kept(user, place, content):
    given = place.with_name("chest-xray-pneumonia.zip")
    given.write_bytes(content)
    download.install(XRAY, place)  # no credentials, no server
    assert left(place) == {"chest_xray", given.name} and given.read_bytes() == content


def test_disk_that_fills_in_the_middle_leaves_nothing(
    server, place, waits, monkeypatch
):
    from kaggle.api import kaggle_api_extended as client

    def filling(path, mode="r"):
        return (
            open(path, mode)
            if "w" not in mode or path.endswith("partial")
            else no_space()
        )

    monkeypatch.setattr(client, "open", filling, raising=False)
    fault = fails(place)
    assert fault.kind == "disk" and left(place) == set() and waits == []


def test_one_process_downloads_and_the_other_waits(server, user, place):
    done = threading.Event()
    server.storage = [("slow", done)]
    first = process(server, user, place)
    until(lambda: "GET all" in server.asked)
    second = process(server, user, place)
    assert (
        second.stdout.readline()
        == "chest_xray: another notebook is at work on this; waiting for its result\n"
    )
    done.set()
    outputs = [running.communicate(timeout=60)[0] for running in (first, second)]
    assert first.returncode == second.returncode == 0, outputs
    assert server.asked.count("GET all") == 1 and left(place) == {"chest_xray"}


def test_killed_download_is_continued(server, user, place):
    done = threading.Event()
    server.storage = [("slow", done)]
    running = process(server, user, place)
    until(
        lambda: (
            (place.parent / PART).exists()
            and (place.parent / PART).stat().st_size == MIB
        )
    )
    running.kill()
    running.communicate()
    done.set()
    download.install(XRAY, place)
    assert server.asked[-1] == f"GET bytes={MIB}-" and left(place) == {"chest_xray"}


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def process(server, user: Path, place: Path) -> subprocess.Popen:
    """The same download in a process of its own."""
    code = (
        "import pathlib, sys; from support import kaggle_server;"
        " kaggle_server.point_client_at(sys.argv[1]);from kit import download;"
        " download.install(sys.argv[2], pathlib.Path(sys.argv[3]))"
    )
    variables = environment(user) | {
        "KAGGLE_USERNAME": "student",
        "KAGGLE_KEY": KEY,
        "PYTHONPATH": os.pathsep.join((str(KIT), str(KIT / "tests"))),
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, server.url, XRAY, place],
        env=variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def until(holds) -> None:
    """Wait for what another process or thread does."""
    for _ in range(1200):
        if holds():
            return
        threading.Event().wait(0.05)
    raise AssertionError("it never happened")


# --- every fault


def zipped(**files) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as made:
        for name, text in files.items():
            made.writestr(zipfile.ZipInfo(name), text)
    return packed.getvalue()


def closed_port() -> str:
    with serving(b"") as gone:
        return gone.url


def provoke(kind: str, server, user: Path, place: Path, monkeypatch) -> None:
    """Bring about one fault of download.FAULTS."""
    match kind:
        case "no credentials":
            monkeypatch.delenv("KAGGLE_KEY")
        case "no key":
            monkeypatch.delenv("KAGGLE_KEY")
            (user / ".kaggle").mkdir()
            (user / ".kaggle" / "kaggle.json").write_text('{"key": "')
        case "401" | "403" | "404":
            server.api = [int(kind)]
        case "429":
            server.api = [429] * 5
        case "answer":
            server.api = [503] * 5
        case "unreachable":
            point_client_at(closed_port())
        case "web page":
            server.api = ["html"]
        case "broken off":
            server.api = ["drop"] * 5
        case "damaged":
            server.checksum = "md5=AAAAAAAAAAAAAAAAAAAAAA=="
        case "refused":
            server.content, server.checksum = (
                zipped(**{"chest_xray/../../evil.txt": "x"}),
                "",
            )
        case "your zip":
            place.with_name("chest-xray-pneumonia.zip").write_bytes(b"PK")
        case "disk":
            monkeypatch.setattr(
                shutil, "disk_usage", lambda _: types.SimpleNamespace(free=MIB)
            )
        case "not writable":
            (place.parent / PART).parent.write_text("in the way")
        case "client":
            monkeypatch.setitem(sys.modules, "kaggle.api.kaggle_api_extended", None)


@pytest.mark.parametrize("kind", download.FAULTS)
def test_fault_is_one_sentence_with_a_next_step_and_leaves_nothing(
    kind, server, user, place, waits, monkeypatch, capfd, tmp_path
):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    provoke(kind, server, user, place, monkeypatch)
    fault = fails(place)
    said, printed = str(fault), "".join(capfd.readouterr())
    assert (
        fault.kind == kind
        and said.startswith(f"{fault.reason}: ")
        and said.endswith(".")
    )
    assert "\n" not in said and "{" not in said and "Traceback" not in said + printed
    kept = {
        "your zip": "chest-xray-pneumonia.zip",
        "not writable": PART.parent.name,
    }
    assert left(place) == ({kept[kind]} if kind in kept else set())
    assert waits == (
        list(download.WAITS)
        if kind in ("429", "answer", "broken off", "damaged")
        else []
    )
    no_secret(said + printed, tmp_path)
    print(f"| {kind} | {said} |")


@pytest.mark.parametrize(
    "kind", ["401", "403", "404", "429", "answer", "broken off", "web page"]
)
def test_after_a_fault_the_same_call_works(
    kind, server, user, place, waits, monkeypatch
):
    provoke(kind, server, user, place, monkeypatch)
    fails(place)
    download.install(XRAY, place)
    assert left(place) == {"chest_xray"}


def test_name_not_found_encryption_that_fails_and_a_proxy_that_is_gone(
    server, place, monkeypatch, waits
):
    point_client_at(server.url.replace("http:", "https:"))
    assert fails(place).kind == "unreachable"
    point_client_at("http://kaggle.invalid")
    assert fails(place).kind == "unreachable"
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    point_client_at(server.url)
    monkeypatch.setenv("HTTP_PROXY", closed_port())
    assert fails(place).kind == "unreachable" and waits == []


def test_other_answer_is_not_asked_again(server, place, waits):
    server.api = [400]
    assert "Kaggle answered 400" in str(fails(place)) and waits == []


def test_content_that_is_no_archive(server, place, waits, content):
    server.checksum = ""
    # the server itself has only that, so the size is as stated
    server.content = content[:-100]
    assert "it is no whole zip" in str(fails(place)) and left(place) == set()
    server.content = content.replace(b"\xff\xd8", b"\0\0", 1)
    assert (
        "cannot be unpacked (Bad CRC-32" in str(fails(place)) and left(place) == set()
    )
    server.content = b"<!doctype html><p>Log in"
    assert "it is no whole zip" in str(fails(place)) and left(place) == set()


def test_images_in_place_are_never_asked_for_again(server, place):
    place.mkdir()
    (place / "mine.jpeg").write_bytes(b"mine")
    download.install(XRAY, place)
    assert server.asked == [] and (place / "mine.jpeg").read_bytes() == b"mine"


# --- hostile archives


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


def test_links_in_a_dataset_are_not_made(server, place, capfd):
    link = zipfile.ZipInfo("chest_xray/passwords")
    link.external_attr = 0o120777 << 16
    server.content, server.checksum = (
        packed((link, "/etc/passwd"), ("chest_xray/a.jpeg", "x")),
        "",
    )
    download.install(XRAY, place)
    assert [path.name for path in place.rglob("*")] == ["chest_xray", "a.jpeg"]
    assert "Links inside the archive were not made: 1." in capfd.readouterr()[0]


# --- credentials


@pytest.fixture
def colab(monkeypatch):
    """colab(secrets) puts a stand-in for google.colab in place; an exception as
    `secrets` is raised.
    """

    def install(secrets=()):
        def get(name):
            if isinstance(secrets, Exception):
                raise secrets
            return dict(secrets)[name]  # Colab raises for a secret that is not there

        module = types.ModuleType("google.colab")
        module.userdata = types.SimpleNamespace(get=get)
        monkeypatch.setitem(sys.modules, "google.colab", module)
        monkeypatch.setitem(sys.modules, "google", types.SimpleNamespace(colab=module))

    return install


def test_credentials_are_looked_for_in_this_order(user, monkeypatch, colab):
    files = user / ".kaggle"
    files.mkdir()
    (files / "access_token").write_text(f"{TOKEN}\n")
    (files / "kaggle.json").write_text(json.dumps({"username": "student", "key": KEY}))
    for name, value in {"API_TOKEN": TOKEN, "USERNAME": "student", "KEY": KEY}.items():
        monkeypatch.setenv(f"KAGGLE_{name}", value)
    secrets = {"KAGGLE_USERNAME": "student", "KAGGLE_KEY": KEY}
    colab({"KAGGLE_API_TOKEN": TOKEN, **secrets})
    found = [download.find_credentials()]
    for remove in (
        lambda: monkeypatch.delenv("KAGGLE_API_TOKEN"),
        (files / "access_token").unlink,
        lambda: monkeypatch.delenv("KAGGLE_KEY"),
        (files / "kaggle.json").unlink,
        lambda: colab(secrets),
    ):
        remove()
        found.append(download.find_credentials())
    assert [each.account for each in found] == [
        "the token of KAGGLE_API_TOKEN",
        "the token of ~/.kaggle/access_token",
        "KAGGLE_USERNAME and KAGGLE_KEY",
        "the key of ~/.kaggle/kaggle.json",
        "the Colab secret KAGGLE_API_TOKEN",
        "the Colab secrets KAGGLE_USERNAME and KAGGLE_KEY",
    ]
    assert all(
        each.token == TOKEN or (each.username, each.key) == ("student", KEY)
        for each in found
    )
    assert KEY not in repr(found) and TOKEN not in repr(found)


@pytest.mark.parametrize("way", ["token", "token file", "secret", "login"])
def test_token_opens_kaggle(
    way, server, user, place, monkeypatch, colab, capfd, tmp_path
):
    monkeypatch.delenv("KAGGLE_KEY")
    if way == "login":
        (user / ".kaggle").mkdir()
        told = {
            "refresh_token": "r",
            "access_token": TOKEN,
            "access_token_expiration": "2999-01-01T00:00:00+00:00",
            "username": "student",
        }
        (user / ".kaggle" / "credentials.json").write_text(json.dumps(told))
    elif way == "secret":
        colab({"KAGGLE_API_TOKEN": TOKEN})
    elif way == "token file":
        (user / "token.txt").write_text(TOKEN)
        monkeypatch.setenv("KAGGLE_API_TOKEN", str(user / "token.txt"))
    else:
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    before = dict(os.environ)
    download.install(XRAY, place)
    assert left(place) == {"chest_xray"} and dict(os.environ) == before
    no_secret("".join(capfd.readouterr()), place.parent)


@pytest.mark.parametrize("value", ["two words", "ligne\nbrisée", "clé"])
def test_key_that_no_header_can_carry(value, server, place, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", value)
    fault = fails(place)
    assert fault.kind == "no key" and value not in str(fault) and server.asked == []


def test_key_file_uploaded_to_colab_is_found_and_made_private(
    server, user, place, monkeypatch, colab, capfd
):
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setattr(download, "COLAB", user)
    file = user / "kaggle.json"
    file.write_text(json.dumps({"username": "student", "key": KEY}))
    file.chmod(0o644)
    assert fails(place).kind == "no credentials"  # elsewhere it is not looked for there
    colab(RuntimeError("not in this page"))
    download.install(XRAY, place)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    no_secret("".join(capfd.readouterr()), user)


@pytest.mark.parametrize("content", [b"[1]", b"\xff", b'{"username": 1, "key": 2}'])
def test_key_file_that_holds_no_key(content, user, place):
    (user / ".kaggle").mkdir()
    (user / ".kaggle" / "kaggle.json").write_bytes(content)
    assert fails(place).kind == "no key"


def test_secrets_are_not_asked_for_where_nobody_looks(user, place, monkeypatch, colab):
    monkeypatch.setenv("COURSE_UNATTENDED", "1")  # as course.py run does
    colab({"KAGGLE_API_TOKEN": TOKEN})  # in truth it would wait for a page, for ever
    assert fails(place).kind == "no credentials"


# --- what the notebooks see


@pytest.mark.parametrize("kind", ["no credentials", "403"])
def test_auto_falls_back_with_a_banner_that_says_why_and_kaggle_never_does(
    kind, server, user, tmp_path, monkeypatch, capsys
):
    provoke(kind, server, user, tmp_path / "raw" / "chest_xray", monkeypatch)
    server.api *= 2
    with pytest.raises(utils.CourseError) as caught:
        utils.start(1, source="kaggle", profile="smoke", home=tmp_path / "real")
    assert not (tmp_path / "real" / "course.json").exists()
    course = utils.start(1, source="auto", profile="smoke", home=tmp_path / "home")
    first = capsys.readouterr().out
    # the whole sentence, with what to do next
    assert course.sample and str(caught.value) in first
    utils.build_index(course)
    utils.start(2, source="auto", profile="smoke", home=tmp_path / "home")
    later = capsys.readouterr().out
    for printed in (first, later):
        banner = printed.split("=" * 100)[1]
        assert (
            "SAMPLE DATA" in banner
            and f"Why: {str(caught.value).split(': ')[0]}." in " ".join(banner.split())
        )
        assert "SOURCE='kaggle'" in banner
    no_secret(first + later + str(caught.value), tmp_path)
