"""A class on Dask: the reports of the plain loop, whatever dies on the way, and only where all machines are alike."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import ExitStack
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from submissions import make_submission

from tools import attempt, check, cluster, sandbox

distributed = pytest.importorskip("distributed")
pytestmark = [pytest.mark.scale, pytest.mark.filterwarnings("ignore:Mismatched versions")]
KIT = Path(__file__).resolve().parent.parent
TIMES = ((r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "DATE"), (r'"seconds": [\d.]+', "SECONDS"), (r"\b\d+\.\d s\b", "SECONDS"),
         (r"\| \d+\.\d \|$", "SECONDS"), (r'<td class="n">\d+\.\d</td></tr>', "SECONDS"))  # fmt: skip


@pytest.fixture(scope="module")
def submissions(tmp_path_factory) -> Path:
    """A faithful zip, a folder with a leaked key, half a zip, and what is neither; read only."""
    folder = tmp_path_factory.mktemp("class")
    leaky = make_submission(folder / "leaky")
    with zipfile.ZipFile(folder / "faithful.zip", "w") as file:
        for path in sorted(leaky.rglob("*")):
            file.write(path, Path("project") / path.relative_to(leaky))
    (leaky / "kaggle.json").write_text('{"username": "team", "key": "' + "0123456789abcdef" * 2 + '"}')
    (folder / "half.zip").write_bytes((folder / "faithful.zip").read_bytes()[:9999])
    (folder / "late.rar").write_bytes(b"Rar!")
    return folder


@pytest.fixture(scope="module")
def serial(submissions, tmp_path_factory) -> dict[str, str]:
    """What the plain loop writes."""
    output = tmp_path_factory.mktemp("serial")
    assert check.main(["--all", str(submissions), "--output", str(output)]) == 1
    return files(output)


@pytest.fixture(scope="module")
def running():
    """A cluster of two workers that is there already."""
    with cluster._local(2) as local:
        yield local


def files(output: Path) -> dict[str, str]:
    """All files of a folder of reports, times and dates aside."""
    texts = {str(path.relative_to(output)): path.read_text() for path in sorted(output.rglob("*")) if path.is_file()}
    for pattern, word in TIMES:
        texts = {name: re.sub(pattern, word, text, flags=re.MULTILINE) for name, text in texts.items()}
    return texts


def rows(output: Path) -> dict[str, dict]:
    return {row["submission"]: row for row in json.loads((output / "summary.json").read_text())["rows"]}


def checks(name: str = "") -> list[psutil.Process]:
    """Processes below this one that check a submission, each on a worker."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if "tools.check" in command and name in " ".join(command):
            found.append(process)
    return found


class Killer(threading.Thread):
    """Kills the worker that checks a submission, so many times."""

    def __init__(self, times: int, name: str = ""):
        super().__init__(daemon=True)
        self.times, self.name, self.orphans, self.over = times, name, [], threading.Event()

    def run(self):
        while len(self.orphans) < self.times and not self.over.wait(0.05):
            for process in [process for process in checks(self.name) if process not in self.orphans][:1]:
                try:
                    os.kill(process.ppid(), signal.SIGKILL)
                    self.orphans.append(process)
                except (psutil.Error, ProcessLookupError):
                    pass


def start(*command: str, cwd: Path = KIT, **environment) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", *command], cwd=cwd, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, env=os.environ | environment)  # fmt: skip


@pytest.fixture
def other_worker(tmp_path, running):
    """A worker of an edited kit, that also sees another numpy."""
    kit = tmp_path / "kit"
    for name in ("models", "tools", "exercises", "notebooks", "report"):
        shutil.copytree(KIT / name, kit / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in KIT.glob("*.py"):
        shutil.copy(path, kit / path.name)
    with open(kit / "utils.py", "a") as file:
        file.write("# edited\n")
    about = tmp_path / "packages" / "numpy-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n")
    worker = start("dask", "worker", running.scheduler_address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
                   "--local-directory", str(tmp_path), cwd=kit, PYTHONPATH=str(about.parent))  # fmt: skip
    with distributed.Client(running) as client:
        client.wait_for_workers(3, timeout=60)
    yield worker
    worker.kill()
    worker.wait()
    with distributed.Client(running) as client:
        while len(client.nthreads()) > 2:
            time.sleep(0.1)


# ------------------------------------------------------------------------------------------------------
# The same reports
# ------------------------------------------------------------------------------------------------------


def test_local_cluster_writes_the_reports_of_the_plain_loop(submissions, serial, tmp_path, capsys):
    assert check.main(["--all", str(submissions), "--jobs", "2", "--output", str(tmp_path / "out")]) == 1
    assert files(tmp_path / "out") == serial and len(serial) == 2 * 3 + 3
    assert "3/3" in capsys.readouterr().out
    assert not checks()


def test_worker_killed_in_the_middle_loses_nothing(submissions, serial, running, tmp_path):
    killer = Killer(1)
    killer.start()
    address = running.scheduler_address
    assert check.main(["--all", str(submissions), "--cluster", address, "--output", str(tmp_path / "out")]) == 1
    assert len(killer.orphans) == 1 and files(tmp_path / "out") == serial
    psutil.wait_procs(killer.orphans, timeout=30)
    assert not killer.orphans[0].is_running()  # it went with its worker


@pytest.mark.slow
def test_submission_on_which_all_workers_die_is_a_row(submissions, serial, running, tmp_path):
    killer, output = Killer(99, str(submissions / "leaky")), tmp_path / "out"
    killer.start()
    command = ["--all", str(submissions), "--cluster", running.scheduler_address]
    try:
        status = check.main([*command, "--output", str(output)])
    finally:
        killer.over.set()
        killer.join()
    row = rows(output)["leaky"]
    died = int(re.match(r"Could not be checked: workers died on it (\d+) times; check it alone", row["verdict"])[1])
    assert status == 0 and row["status"] == 2 and row["report"] == "" and 3 <= died <= len(killer.orphans)
    written = files(output)
    assert not any(name.startswith(("leaky", ".")) for name in written)
    assert all(written[name] == serial[name] for name in serial if name.startswith("faithful"))


# ------------------------------------------------------------------------------------------------------
# Only where all is alike
# ------------------------------------------------------------------------------------------------------


def test_worker_with_other_packages_and_another_kit_is_refused(submissions, running, other_worker, tmp_path, capsys):
    kept = tmp_path / "out" / "leaky" / "check.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("of an earlier check")
    command = ["--all", str(submissions), "--cluster", running.scheduler_address, "--output", str(tmp_path / "out")]
    assert check.main(command) == 2
    said = capsys.readouterr().out
    lines = re.findall(r"worker (tcp://127\.0\.0\.1:\d+): (.*)", said)
    assert len(lines) == 1 and lines[0][0] not in [worker.worker_address for worker in running.workers.values()]
    assert f"numpy 1.0, here {attempt.version('numpy')}" in lines[0][1]
    assert re.search(r"the kit's utils\.py [0-9a-f]{8}, here [0-9a-f]{8}", lines[0][1]) and "Traceback" not in said
    assert list((tmp_path / "out").rglob("*")) == [kept.parent, kept] and kept.read_text() == "of an earlier check"


@pytest.mark.slow
def test_worker_that_comes_later_and_differs_is_dismissed(submissions, serial, running, other_worker, tmp_path,
                                                          monkeypatch, capsys):  # fmt: skip
    refused = cluster._refused
    asked = []  # not seen at first, as if it had come later
    monkeypatch.setattr(cluster, "_refused", lambda *a: refused(*a) if asked else asked.append(a) or {})
    command = ["--all", str(submissions), "--cluster", running.scheduler_address, "--output", str(tmp_path / "out")]
    assert check.main(command) == 1
    assert "Dismissed, as not like this machine:" in capsys.readouterr().out
    assert files(tmp_path / "out") == serial and other_worker.wait(30) is not None


def test_worker_outside_the_kit_is_told_where_to_start():
    assert "start it in the kit's folder" in cluster._differ(ModuleNotFoundError("No module named 'tools'"), {})[0]


# ------------------------------------------------------------------------------------------------------
# Clusters that are not there, or no more
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["10.0.0.5:8786", "tcp:/10.0.0.5", "http://10.0.0.5:8786", "tcp://host", "none"])
def test_malformed_address(submissions, tmp_path, capsys, address):
    assert check.main(["--all", str(submissions), "--cluster", address, "--output", str(tmp_path / "out")]) == 2
    assert "it looks like tcp://" in capsys.readouterr().out and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("there", ["nobody", "silence", "page", "worker"])
def test_address_that_does_not_answer(submissions, running, tmp_path, capsys, monkeypatch, there):
    """Nobody, somebody who takes the call and says nothing, a web server, a worker."""
    monkeypatch.setattr(cluster, "ANSWER", 1)
    with ExitStack() as stack:
        if there == "page":
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler))
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        else:
            server = SimpleNamespace(socket=stack.enter_context(socket.create_server(("127.0.0.1", 0))))
        address = f"tcp://127.0.0.1:{server.socket.getsockname()[1]}"
        if there == "nobody":
            server.socket.close()
        elif there == "worker":
            address = running.workers[0].worker_address
        assert check.main(["--all", str(submissions), "--cluster", address, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert f"No Dask scheduler answers at {address}" in said.out and "Traceback" not in said.out + said.err


def test_scheduler_without_workers(submissions, tmp_path, capsys):
    with cluster._local(0) as empty:
        command = ["--all", str(submissions), "--cluster", empty.scheduler_address, "--wait", "1"]
        assert check.main([*command, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().out
    assert "Waiting for a worker" in said and f"python -m dask worker {empty.scheduler_address}" in said


@pytest.mark.parametrize("lost", ["scheduler", pytest.param("worker", marks=pytest.mark.slow)])
def test_cluster_lost_in_the_middle_keeps_what_is_done(submissions, serial, tmp_path, capsys, lost):
    """Its scheduler, or its only worker. A second run, without a cluster, checks only the others."""
    output, file = tmp_path / "out", tmp_path / "scheduler.json"
    scheduler = start("dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                      "--scheduler-file", str(file))  # fmt: skip
    worker = start("dask", "worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard", "--no-nanny",
                   "--local-directory", str(tmp_path))  # fmt: skip
    over = threading.Event()

    def kill():
        while not list(output.glob("*/check.json")) and not over.wait(0.02):
            pass
        {"scheduler": scheduler, "worker": worker}[lost].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        while not (file.exists() and file.read_text().endswith("}")):
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        command = ["--all", str(submissions), "--output", str(output)]
        assert check.main([*command, "--cluster", address, "--wait", "8"]) == 3
    finally:
        over.set()
        killer.join()
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    told = {"scheduler": "connection to the scheduler was lost", "worker": "For 8 s there was no worker left"}
    assert told[lost] in capsys.readouterr().out
    done = {path.parent.name: path.stat().st_mtime_ns for path in output.glob("*/check.json")}
    left = [name for name, row in rows(output).items() if row["verdict"].startswith("Not checked")]
    assert done and left and len(done) + len(left) in (2, 3)  # half.zip has no report
    assert check.main([*command, "--missing"]) == 1
    assert files(output) == serial
    assert all((output / name / "check.json").stat().st_mtime_ns == then for name, then in done.items())


def test_nothing_of_a_local_cluster_is_reachable_from_outside(running):
    own = psutil.Process()
    listening = [connection.laddr for process in (own, *own.children(recursive=True))
                 for connection in process.net_connections("inet") if connection.status == psutil.CONN_LISTEN]
    assert len(listening) >= 3 and {address.ip for address in listening} == {"127.0.0.1"}


def test_sandbox_of_an_overlay_shows_the_packages_of_its_core(tmp_path):
    """Above level static a worker runs notebooks there: Dask lies in the overlay, all else in the core."""
    program = "import distributed, nbclient; print(distributed.__file__, nbclient.__file__)"
    outcome = sandbox.run([sys.executable, "-c", program], tmp_path, 60)
    assert outcome.rc == 0, outcome.tail


def test_what_must_be_shared_is_told_by_name_and_size(tmp_path):
    def seen(root="root"):
        attempt.about.cache_clear()
        return attempt.about(attempt.Shared(("numpy",), str(tmp_path), ("team",), str(tmp_path / "images"),
                                            str(tmp_path / "out" / root)))  # fmt: skip

    for name in ("team", "images", "out/root"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "team" / "utils.py").write_text("1")
    here = seen()
    assert attempt.differences(seen(), here) == []
    (tmp_path / "team" / "utils.py").write_text("12")
    (tmp_path / "images").rmdir()
    told = attempt.differences(seen(root="elsewhere"), here)
    assert [says.split(" in ")[0].split(" folder")[0] for says in told] == ["images", "output", "submissions"]
    assert "missing, here 0 files" in told[0] and "not shared, or read-only, here shared" in told[1]
    attempt.about.cache_clear()
