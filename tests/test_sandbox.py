"""The sandbox: what foreign code can reach, what is left of it, and what is said where
nothing is closed.
"""

import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path

import nbformat
import pytest

from tools.grading import reexecute, sandbox

BWRAP = pytest.param(
    "bwrap",
    marks=pytest.mark.skipif(
        sandbox.best_layer() != "bwrap",
        reason="bubblewrap is not installed, or does not work here",
    ),
)
LAYERS = ["plain", BWRAP]
LINGER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            open("beat", "w").write(str(time.time()))
            time.sleep(0.05)
    os._exit(0)
print("started", flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("seconds", [0.5, 600])
def test_nothing_survives(tmp_path, layer, seconds):
    """Neither a command that ends nor one that is stopped leaves a process, though it
    hides it in its own session.
    """
    command = [sys.executable, "-c", LINGER, str(seconds)]
    outcome = sandbox.run(command, tmp_path, 3, layer=layer)
    assert outcome.timed_out == (seconds > 3)
    assert "started" in outcome.tail and outcome.seconds < 15
    before = (tmp_path / "beat").read_text()
    time.sleep(0.4)
    assert (tmp_path / "beat").read_text() == before


LIMITS = """
import getpass, os, resource as r
print(sorted(os.environ), os.environ["HOME"], getpass.getuser(), os.environ["COURSE_THREADS"])
print(r.getrlimit(r.RLIMIT_CORE)[0], r.getrlimit(r.RLIMIT_FSIZE)[0] <= 2**32, r.getrlimit(r.RLIMIT_AS))
raise SystemExit(7)
"""


@pytest.mark.parametrize("layer", LAYERS)
def test_environment_and_limits(tmp_path, layer, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "secret")
    outcome = sandbox.run(
        [sys.executable, "-c", LIMITS],
        tmp_path,
        30,
        layer=layer,
        environment={"COURSE_THREADS": 3},
    )
    assert outcome.rc == 7
    assert "KAGGLE_KEY" not in outcome.tail and str(tmp_path) in outcome.tail
    first, second = outcome.tail.splitlines()
    assert first.endswith(" group 3") and second == "0 True (-1, -1)"


WALLS = """
import os, subprocess, sys
from pathlib import Path
shown, hidden = map(Path, sys.argv[1:])
print("hidden is", "seen" if hidden.exists() else "not seen", "and shown reads", (shown / "file").read_text())
print("passwd is", "seen" if os.path.exists("/etc/passwd") else "not seen")
for path in (shown / "file", hidden / "new", Path("/usr/new"), Path("/etc/new"), Path("/new"),
             Path("/proc/sys/kernel/domainname"), Path(os.environ["HOME"]) / "mine"):
    try:
        path.write_text("y")
        print("wrote", path.name)
    except OSError:
        pass
remount = ["mount", "-o", "remount,rw,bind", str(shown)]
for command in (remount, ["unshare", "-Urm", *remount], ["umount", str(shown)]):
    print(command[0], "works" if subprocess.run(command, capture_output=True).returncode == 0 else "fails")
"""


@pytest.fixture
def places(tmp_path) -> dict[str, Path]:
    """Three folders with a file each: one to be shown, one hidden, one to work in."""
    folders = {name: tmp_path / name for name in ("shown", "hidden", "work")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "file").write_text("x")
    return folders


@pytest.mark.parametrize("layer", [BWRAP])
def test_walls(tmp_path, places, layer):
    """Only the work folder can be written to, whatever is tried; what was not named is
    not seen.
    """
    shown, hidden, work = places.values()
    command = [sys.executable, "-c", WALLS, str(shown), str(hidden)]
    outcome = sandbox.run(command, work, 30, layer=layer, readable=[shown])
    assert outcome.tail.splitlines() == [
        "hidden is not seen and shown reads x",
        "passwd is not seen",
        "wrote mine",
        "mount fails",
        "unshare fails",
        "umount fails",
    ]
    assert sorted(os.listdir(tmp_path)) == ["hidden", "shown", "work"]
    assert (shown / "file").read_text() == "x"


def pairs_of(line: list[str], option: str) -> dict[str, str]:
    """Each place that an option of bubblewrap names, with what stands there."""
    return {
        line[at + 2]: line[at + 1] for at, word in enumerate(line) if word == option
    }


def test_command_line_of_bubblewrap(places):
    """No network, no other processes, and of the files what is needed: read-only."""
    shown, hidden, work = places.values()
    line = sandbox.entrance(work, [shown])
    assert {"--unshare-all", "--die-with-parent", "--new-session"} <= set(line)
    assert "--share-net" not in line and line[-1] == "--"
    assert pairs_of(line, "--bind") == {str(work): str(work)}
    read = pairs_of(line, "--ro-bind")
    assert all(place == path for place, path in read.items())
    assert str(shown) in read and str(hidden) not in read
    seen = [*read, *pairs_of(line, "--symlink")]

    def reached(path) -> bool:
        return any(Path(path).is_relative_to(place) for place in seen)

    assert reached(sys.executable) and reached(os.__file__) and reached("/usr/bin")
    for path in ("/etc/passwd", "/etc/shadow", "/root/.ssh", Path.home() / ".kaggle"):
        assert not reached(path)
    if not sys.base_prefix.startswith("/opt"):
        assert not reached("/opt")
    if not sandbox._devices(*sandbox.GPUS):
        assert not reached("/sys/class") and not reached("/sys/kernel")


FAKE = """#!/bin/bash
while [ "$1" != "--" ]; do shift; done
shift
exec "$@"
"""


@pytest.fixture
def open_bwrap(tmp_path, monkeypatch):
    """In the place of bubblewrap, a program that runs the command and closes nothing."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "bwrap").write_text(FAKE)
    (tmp_path / "bin" / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    sandbox.best_layer.cache_clear()
    yield
    sandbox.best_layer.cache_clear()


def test_a_bubblewrap_that_closes_nothing_is_not_trusted(open_bwrap):
    assert shutil.which("bwrap") and sandbox.best_layer() == "plain"
    assert "There is no sandbox" in sandbox.LAYERS["plain"]


def test_command_limits_and_status_go_through_bubblewrap(open_bwrap, tmp_path):
    (tmp_path / "work").mkdir()
    outcome = sandbox.run(
        [sys.executable, "-c", LIMITS],
        tmp_path / "work",
        30,
        layer="bwrap",
        environment={"COURSE_THREADS": 3},
    )
    assert outcome.rc == 7 and outcome.tail.splitlines()[1] == "0 True (-1, -1)"


def test_links_left_in_the_work_folder_lead_nowhere(tmp_path, places):
    outside, work = places["hidden"], places["work"]
    program = (
        f"import os, shutil; shutil.rmtree('.sandbox'); os.symlink({str(outside)!r},"
        " '.sandbox')"
    )
    assert sandbox.run([sys.executable, "-c", program], work, 30).rc == 0
    assert sandbox.run([sys.executable, "-c", "open('here', 'w')"], work, 30).rc == 0
    assert os.listdir(outside) == ["file"] and not (work / ".sandbox").is_symlink()
    (work / "results.json").symlink_to(tmp_path / "secret.json")
    (tmp_path / "secret.json").write_text('{"a": 1}')
    for name in ("results.json", "none.json"):
        assert reexecute._json(work, Path(name)) == {}


def test_flood_of_output_is_cut_and_a_full_disk_is_seen(tmp_path, monkeypatch):
    program = "print('x' * 5_000_000); print('last')"
    outcome = sandbox.run([sys.executable, "-c", program], tmp_path, 30)
    assert len(outcome.tail) <= sandbox.TAIL and outcome.tail.endswith("last\n")
    usage = shutil.disk_usage(tmp_path)
    free = iter([usage.free])
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=next(free, 1000))
    )
    program = "import time; time.sleep(60)"
    outcome = sandbox.run([sys.executable, "-c", program], tmp_path, 30)
    assert outcome.stopped == "disk" and outcome.seconds < 10


SOCKETS = """
import ctypes, errno, socket
made = []
for family in range(64):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        try:
            socket.socket(family, kind).close()
            made.append(family)
        except OSError:
            pass
print(sorted(set(made)))
try:
    socket.socketpair(socket.AF_VSOCK)
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.mark.skipif(not sandbox._filter(), reason="a machine without a filter")
@pytest.mark.parametrize("layer", LAYERS)
def test_only_sockets_that_a_network_namespace_closes_can_be_made(tmp_path, layer):
    """Made and no more: nothing is ever connected."""
    outcome = sandbox.run([sys.executable, "-c", SOCKETS], tmp_path, 30, layer=layer)
    families, refused = outcome.tail.splitlines()
    assert set(json.loads(families)) <= {*sandbox.FAMILIES} and "1, 2" in families
    assert refused == "EAFNOSUPPORT"


KEYS = """
import ctypes, os, sys
library = ctypes.CDLL(None, use_errno=True)
for number in map(int, sys.argv[1:]):
    print(library.syscall(number, 0, -3, 0), os.strerror(ctypes.get_errno()))
print(sum("user" in line.split()[7:8] for line in open("/proc/keys")))
"""


@pytest.mark.skipif(not sandbox._filter(), reason="a machine without a filter")
@pytest.mark.parametrize("layer", LAYERS)
def test_keys_of_the_grader_cannot_be_asked_for(tmp_path, layer):
    """Neither by the calls for keys nor by the ring that makes calls of its own."""
    calls = map(str, sandbox.CALLS[platform.machine()][2])
    command = [sys.executable, "-c", KEYS, *calls]
    outcome = sandbox.run(command, tmp_path, 30, layer=layer)
    assert outcome.tail.splitlines() == ["-1 Function not implemented"] * 4 + ["0"]


GREEDY = {
    "tasks": "import threading, time\nfor _ in range(60): threading.Thread(target=time.sleep, args=(60,)).start()",
    "memory": "import time\nheld = bytearray(b'x') * (400 << 20)\ntime.sleep(60)",
    "written": "import os, time\nos.posix_fallocate(os.open('file', os.O_CREAT | os.O_RDWR), 0, 400 << 20)\ntime.sleep(60)",
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("what", GREEDY)
def test_what_processes_use_together_has_a_limit(tmp_path, layer, what, monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_TASKS", 40)
    monkeypatch.setattr(sandbox, "MAX_MEMORY", 200 << 20)
    monkeypatch.setattr(sandbox, "MAX_WRITTEN", 100 << 20)
    command = [sys.executable, "-c", GREEDY[what]]
    outcome = sandbox.run(command, tmp_path, 30, layer=layer)
    assert outcome.stopped == what and outcome.seconds < 15
    assert outcome.why(30) and outcome.rc


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("terminals", [True, False])
def test_an_honest_shell_line_runs(tmp_path, layer, terminals, monkeypatch):
    """Also where no terminal can be opened, as in a container without devpts."""
    if not terminals:
        if layer == "plain":
            pytest.skip("it has the terminals of this machine")
        line = [
            *sandbox.entrance(tmp_path, [reexecute.KIT])[:-1],
            "--tmpfs",
            "/dev/pts",
        ]
        monkeypatch.setattr(sandbox, "entrance", lambda *_: [*line, "--"])
    (tmp_path / "notebooks").mkdir()
    cell = nbformat.v4.new_code_cell("said = !echo said\n!echo heard > said.txt\nsaid")
    nbformat.write(
        nbformat.v4.new_notebook(cells=[cell]), tmp_path / "notebooks/a.ipynb"
    )
    script = reexecute.KIT / "tools" / "notebooks" / "rerun.py"
    command = [
        sys.executable,
        "-P",
        script,
        reexecute.KIT,
        tmp_path,
        "notebooks/a.ipynb",
    ]
    command = [*map(str, command), "{}"]
    outcome = sandbox.run(command, tmp_path, 60, layer=layer, readable=[reexecute.KIT])
    assert outcome.rc == 0, outcome.tail
    assert (tmp_path / "said.txt").read_text() == "heard\n"


def test_a_full_disk_is_the_reason_whatever_the_program_says(small_disk):
    folder = small_disk(64 << 20)
    program = "import os; os.posix_fallocate(os.open('file', 65), 0, 50 << 20); 1 / 0"
    outcome = sandbox.run([sys.executable, "-c", program], folder, 30, layer="plain")
    assert outcome.stopped == "disk" and "ZeroDivisionError" in outcome.tail
