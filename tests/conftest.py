"""Fixtures: small drawn datasets, courses on the smoke profile, and no network but the
loopback.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

os.environ["COURSE_THREADS"] = "1"  # two test processes share two cores
os.environ["MPLBACKEND"] = "agg"
# the suite is the same everywhere: tests marked `gpu` run with COURSE_TEST_GPU=1 alone
if os.environ.get("COURSE_TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# what a script puts in the background
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))

import pytest  # noqa: E402

for asserting in ("kaggle_user", "readers_home", "readers_logs", "readers_strangers"):
    pytest.register_assert_rewrite(f"support.{asserting}")
from support.browser import browse, chromium  # noqa: E402, F401 - fixtures
from support.kaggle_user import content, place, server, user, waits  # noqa: E402, F401

import sample_data  # noqa: E402
import utils  # noqa: E402

FORKING = ("test_kills.py", "test_writers.py", "test_search.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What has no tier is `unit`. Tests whose forked children train come first:
    exporting a model starts threads that no fork survives.
    """
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if not marks & {"course", "slow", "bonus", "scale"}:
            item.add_marker("unit")
    items.sort(key=lambda item: item.path.name not in FORKING)


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch):
    """A test that reaches for the network fails instead of hanging."""
    connect = socket.socket.connect

    def guarded(self, address):
        if isinstance(address, tuple) and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise OSError(f"tests have no network (asked for {address[0]})")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """A folder with both drawn datasets, 120 images each; read only."""
    root = tmp_path_factory.mktemp("drawn")
    sample_data.draw_chest_xray(root, 120, seed=1)
    sample_data.draw_solar_panels(root, 120, seed=1)
    return root


@pytest.fixture
def raw(drawn, tmp_path) -> Path:
    """A private copy of the drawn datasets, to break."""
    return Path(shutil.copytree(drawn, tmp_path / "raw"))


@pytest.fixture
def open_course(drawn, tmp_path):
    """open_course(dataset="pneumonia", source=..., ...) -> Course on the smoke profile,
    in a home of its own.
    """

    def open_it(dataset="pneumonia", source=None, theme=1, home=None, **options):
        return utils.start(
            theme,
            dataset,
            source=source or drawn,
            profile="smoke",
            home=home or tmp_path / "home",
            **options,
        )

    return open_it


@pytest.fixture
def data(open_course) -> utils.Data:
    course = open_course()
    utils.build_index(course)
    return utils.load_data(course)


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(size, folder=...) mounts a real file system of so many bytes and
    returns its folder.
    """
    mounted = []

    def mount(size: int, folder: Path = tmp_path / "disk") -> Path:
        folder.mkdir(parents=True)
        options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        if (
            shutil.which("mount") is None
            or subprocess.run(["mount", *options], capture_output=True).returncode
        ):
            pytest.skip("this machine does not let the tests mount a disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A faithful submission, made by hand; read only."""
    from support.submissions import make_submission

    return make_submission(tmp_path_factory.mktemp("whole") / "group-7")


@pytest.fixture
def group(whole, tmp_path) -> Path:
    """A private copy of a faithful submission, to break."""
    return Path(shutil.copytree(whole, tmp_path / "group-7"))


@pytest.fixture
def look(tmp_path):
    """look(path, check) -> what opening and one check find, as (check, verdict, says
    and where); all checks without one.
    """

    from tools.grading import static
    from tools.grading.finding import VERDICTS
    from tools.grading.static.look import Look
    from tools.grading.submission import open_submission

    def findings(path: Path, check: str = "") -> list[tuple[str, str, str]]:
        opened = open_submission(path, tmp_path / "work")
        if check in static.CHECKS:
            found = [*opened.findings, *static.CHECKS[check](Look(opened))]
        else:
            found = static.checks(opened)
            ranks = [VERDICTS.index(finding.verdict) for finding in found]
            assert ranks == sorted(ranks, reverse=True)
        assert not [finding for finding in found if "broke off" in finding.says]
        return [
            (finding.check, finding.verdict, f"{finding.says} [{finding.where}]")
            for finding in found
        ]

    return findings
