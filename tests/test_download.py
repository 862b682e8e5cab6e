"""A download against a server on the loopback: every fault, what the student reads,
what is left.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import pytest
from support.kaggle_server import (
    KEY,
    environment,
    point_client_at,
    serving,
)
from support.kaggle_user import MIB, PART, XRAY, fails, left, no_secret, packed

import utils
from kit import archive, download

KIT = Path(utils.__file__).parent


# --- a download that goes well


def test_real_layout_becomes_the_index_and_is_asked_for_once(
    server, user, tmp_path, monkeypatch, capfd, open_course
):
    expected = utils.build_index(open_course(home=tmp_path / "other"))
    monkeypatch.delenv("KAGGLE_KEY")
    file = user / ".kaggle" / "kaggle.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"username": "student", "key": KEY}))
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
        == repairs["hidden files and litter of systems"]
        == len(index)
    )
    assert server.asked == ["ask", "GET all"]
    assert "100%" in out and "B/s" in out  # the progress bar
    assert {path.name for path in course.root.parent.iterdir()} == {
        "chest_xray",
        ".chest_xray.lock",
    }
    no_secret(out + err, tmp_path)


def test_download_that_broke_off_goes_on_from_there(server, place, waits, capfd):
    server.storage = [("cut", 3 << 19)]
    download.install(XRAY, place)
    assert server.asked[-1] == f"GET bytes={MIB}-"
    assert left(place) == {"chest_xray"}
    assert waits == [2]
    assert (
        "The connection to Kaggle broke off: trying again in 2 s."
        in capfd.readouterr()[0]
    )


def test_storage_that_refuses_in_between_does_not_cost_the_part(server, place, waits):
    server.storage = [("cut", 3 << 19), 503]
    download.install(XRAY, place)
    assert server.asked[-1] == f"GET bytes={MIB}-"
    assert waits == [2, 5]
    assert left(place) == {"chest_xray"}


def test_part_that_an_earlier_call_left_is_continued(server, place, waits):
    server.storage = [("cut", 3 << 19)] + [503] * 4
    assert fails(place).kind == "answer"
    assert left(place) == {PART}
    assert waits == list(download.WAITS)
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


@pytest.mark.parametrize("extra", [-9, 0, 9])
def test_part_that_is_no_part_of_this_archive_costs_one_try(
    extra, server, place, waits, content
):
    (place.parent / PART).write_bytes(bytes(extra + len(content)))
    download.install(XRAY, place)
    assert len(waits) == 1 and left(place) == {"chest_xray"}


def test_server_without_ranges_is_asked_for_everything_again(server, place, waits):
    server.ranges, server.storage = False, [("cut", 3 << 19)]
    download.install(XRAY, place)
    assert server.asked[1:] == ["GET all", "ask", f"GET bytes={MIB}-"]
    assert left(place) == {"chest_xray"}


@pytest.mark.parametrize("status", [429, 503])
def test_busy_server_is_asked_again(server, place, waits, status, capfd):
    server.api = [status]
    download.install(XRAY, place)
    assert waits == [2]
    assert f"{status}" in (out := capfd.readouterr()[0])
    assert "in 2 s." in out


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
        assert fails(place).kind == "disk"
        assert left(place) == {".chest-xray-pneumonia.zip"}
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
    def filling(path, mode="r"):
        return open(path, mode) if mode == "rb" else no_space()

    monkeypatch.setattr(download, "open", filling, raising=False)
    fault = fails(place)
    assert fault.kind == "disk" and left(place) == set() and waits == []


@pytest.mark.course
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


@pytest.mark.course
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
                packed(("chest_xray/../../evil.txt", "x")),
                "",
            )
        case "your zip":
            place.with_name("chest-xray-pneumonia.zip").write_bytes(b"PK")
        case "disk":
            monkeypatch.setattr(
                shutil, "disk_usage", lambda _: types.SimpleNamespace(free=MIB)
            )
        case "not writable":
            (place.parent / PART).mkdir()


@pytest.mark.parametrize("kind", download.FAULTS)
def test_fault_is_one_sentence_with_a_next_step_and_leaves_nothing(
    kind, server, user, place, waits, monkeypatch, capfd, tmp_path
):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    provoke(kind, server, user, place, monkeypatch)
    fault = fails(place)
    said, printed = str(fault), "".join(capfd.readouterr())
    assert fault.kind == kind
    assert said.startswith(f"{fault.reason}: ")
    assert said.endswith(".")
    assert "\n" not in said and "{" not in said and "Traceback" not in said + printed
    kept = {
        "your zip": "chest-xray-pneumonia.zip",
        "not writable": PART,
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


def test_content_that_is_no_archive(server, place, waits, content):
    server.checksum = ""
    # the server itself has only that, so the size is as stated
    server.content = content[:-100]
    assert "it is no whole zip" in str(fails(place)) and left(place) == set()
    server.content = content.replace(b"\xff\xd8", b"\0\0", 1)
    assert "cannot be unpacked (Bad CRC-32" in str(fails(place))
    assert left(place) == set()
    server.content = b"<!doctype html><p>Log in"
    assert "it is no whole zip" in str(fails(place)) and left(place) == set()


def test_images_in_place_are_never_asked_for_again(server, place):
    place.mkdir()
    (place / "mine.jpeg").write_bytes(b"mine")
    download.install(XRAY, place)
    assert server.asked == [] and (place / "mine.jpeg").read_bytes() == b"mine"


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
        banner = printed.split("=" * 80)[1]
        assert "SAMPLE DATA" in banner
        assert f"Why: {str(caught.value).split(': ')[0]}." in " ".join(banner.split())
        assert "SOURCE='kaggle'" in banner
    no_secret(first + later + str(caught.value), tmp_path)
