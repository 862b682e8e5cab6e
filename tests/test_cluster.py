"""A class on Dask: the reports of the plain loop, whatever dies on the way, and only
where all machines are alike.
"""

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
from support.submissions import make_submission

from tools.grading import attempt, check, cluster, sandbox

dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
pytestmark = [
    pytest.mark.scale,
    pytest.mark.filterwarnings("ignore:Mismatched versions"),
]
KIT = Path(__file__).resolve().parent.parent
DASK = (sys.executable, "-m", "dask")
PLAIN = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory")
TIMES = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "DATE"),
    (r'"seconds": [\d.]+', "SECONDS"),
    (r"\b\d+\.\d s\b", "SECONDS"),
    (r"\| \d+\.\d \|$", "SECONDS"),
    (r'<td class="n">\d+\.\d</td></tr>', "SECONDS"),
)


@pytest.fixture(scope="module")
def submissions(tmp_path_factory) -> Path:
    """A faithful zip, a folder with a leaked key, half a zip, and what is neither; read
    only.
    """
    folder = tmp_path_factory.mktemp("class")
    leaky = make_submission(folder / "leaky")
    with zipfile.ZipFile(folder / "faithful.zip", "w") as file:
        for path in sorted(leaky.rglob("*")):
            file.write(path, Path("project") / path.relative_to(leaky))
    (leaky / "kaggle.json").write_text(
        '{"username": "team", "key": "' + "0123456789abcdef" * 2 + '"}'
    )
    (folder / "half.zip").write_bytes((folder / "faithful.zip").read_bytes()[:9999])
    (folder / "late.rar").write_bytes(b"Rar!")
    return folder


@pytest.fixture(scope="module")
def serial(submissions, tmp_path_factory) -> dict[str, str]:
    """What the plain loop writes."""
    output = tmp_path_factory.mktemp("serial")
    assert (
        check.main(["--all", str(submissions), "--jobs", "1", "--output", str(output)])
        == 1
    )
    return files(output)


@pytest.fixture(scope="module")
def running():
    """A cluster of two workers that is there already."""
    with cluster._local(2) as local:
        yield local


def files(output: Path) -> dict[str, str]:
    """All files of a folder of reports, times and dates aside."""
    texts = {
        str(path.relative_to(output)): path.read_text()
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }
    for pattern, word in TIMES:
        texts = {
            name: re.sub(pattern, word, text, flags=re.MULTILINE)
            for name, text in texts.items()
        }
    return texts


def rows(output: Path) -> dict[str, dict]:
    return {
        row["submission"]: row
        for row in json.loads((output / "summary.json").read_text())["rows"]
    }


def checks(name: str = "") -> list[psutil.Process]:
    """Processes below this one that check a submission, each on a worker."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if "tools.grading.check" in command and name in " ".join(command):
            found.append(process)
    return found


class Killer(threading.Thread):
    """Kills the worker that checks a submission, so many times."""

    def __init__(self, times: int, name: str = ""):
        super().__init__(daemon=True)
        self.times, self.name, self.orphans, self.over = (
            times,
            name,
            [],
            threading.Event(),
        )

    def run(self):
        while len(self.orphans) < self.times and not self.over.wait(0.05):
            for process in [
                process for process in checks(self.name) if process not in self.orphans
            ][:1]:
                try:
                    os.kill(process.ppid(), signal.SIGKILL)
                    self.orphans.append(process)
                except (psutil.Error, ProcessLookupError):
                    pass


def start(*command: str, **options) -> subprocess.Popen:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(list(command), **{"cwd": KIT} | quiet | options)


def until(done, seconds: float = 120) -> None:
    """Wait for what must come, and fail where it does not, instead of hanging."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


@pytest.fixture
def join(tmp_path, running):
    """join(...) starts one more worker of the running cluster, by a command of its own,
    and waits for it.
    """
    with ExitStack() as stack:

        def start_it(*before: str, cwd: Path = KIT, **environment) -> subprocess.Popen:
            command = [
                *before,
                *DASK,
                "worker",
                running.scheduler_address,
                *PLAIN,
                str(tmp_path),
            ]
            worker = start(*command, cwd=cwd, env=os.environ | environment)
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            wait_for_workers(running, 3)
            return worker

        yield start_it
    wait_for_workers(running, 2)


def wait_for_workers(running, count: int) -> None:
    with distributed.Client(running) as client:
        until(lambda: len(client.nthreads()) == count)


@pytest.fixture
def other_worker(tmp_path, join):
    """A worker of an edited kit, that also sees another numpy."""
    kit = tmp_path / "kit"
    for name in ("kit", "models", "tools", "exercises", "notebooks", "report"):
        shutil.copytree(
            KIT / name, kit / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for path in KIT.glob("*.py"):
        shutil.copy(path, kit / path.name)
    with open(kit / "utils.py", "a") as file:
        file.write("# edited\n")
    about = tmp_path / "packages" / "numpy-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: numpy\nVersion: 1.0\n"
    )
    return join(cwd=kit, PYTHONPATH=str(about.parent))


# --------------------------------------------------------------------------------------
# The same reports
# --------------------------------------------------------------------------------------


def test_worker_killed_in_the_middle_loses_nothing(
    submissions, serial, tmp_path, capsys
):
    """A local cluster writes the reports of the plain loop, though one of its two
    workers dies at work.
    """
    killer = Killer(1)
    killer.start()
    assert (
        check.main(
            [
                "--all",
                str(submissions),
                "--jobs",
                "2",
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 1
    )
    assert (
        len(killer.orphans) == 1
        and files(tmp_path / "out") == serial
        and len(serial) == 2 * 3 + 3
    )
    psutil.wait_procs(killer.orphans, timeout=30)
    # the check went with its worker
    assert not killer.orphans[0].is_running() and not checks()
    said = capsys.readouterr()
    assert "3/3" in said.out and "Traceback" not in said.out + said.err


def test_local_cluster_is_the_default(submissions, tmp_path, monkeypatch):
    """One for each core; what a cluster does with them, the other tests see."""
    asked, workers = [], cluster.workers
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(
        cluster,
        "workers",
        lambda *given: asked.append(given[1].jobs) or workers(*given),
    )
    assert (
        check.main(["--all", str(submissions), "--output", str(tmp_path / "out")]) == 1
    )
    assert (
        asked == [2]
        and rows(tmp_path / "out")["leaky"]["verdict"]
        == "1 finding to take up with the group"
    )


@pytest.mark.slow
def test_cluster_that_runs_already_writes_the_reports_of_the_plain_loop(
    submissions, serial, running, tmp_path
):
    address = running.scheduler_address
    assert (
        check.main(
            [
                "--all",
                str(submissions),
                "--cluster",
                address,
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 1
    )
    assert files(tmp_path / "out") == serial


@pytest.mark.slow
def test_ctrl_c_ends_in_a_sentence(submissions, tmp_path):
    """As a terminal sends it: to the class, its workers and their checks at once."""
    command = [
        "course.py",
        "check",
        "--all",
        str(submissions),
        "--jobs",
        "2",
        "--output",
        str(tmp_path / "out"),
    ]
    with open(tmp_path / "said", "w") as said:
        parent = start(
            sys.executable, *command, stdout=said, stderr=said, start_new_session=True
        )
    until(checks)
    begun = checks()
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.wait(60) == 3
    said = (tmp_path / "said").read_text()
    assert (
        "Stopped by hand. The same command with --missing" in said
        and "Traceback" not in said
    )
    psutil.wait_procs(begun, timeout=30)
    assert not checks() and not [
        path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")
    ]


@pytest.mark.slow
def test_ctrl_c_while_the_workers_of_a_class_start(submissions, tmp_path):
    """The terminal sends it to them as well: none of them says a word."""
    command = [
        "course.py",
        "check",
        "--all",
        str(submissions),
        "--jobs",
        "2",
        "--output",
        str(tmp_path / "out"),
    ]
    with open(tmp_path / "said", "w") as said:
        parent = start(
            sys.executable, *command, stdout=said, stderr=said, start_new_session=True
        )
    until(lambda: len(psutil.Process(parent.pid).children(recursive=True)) >= 3)
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.wait(60) == 3
    assert (
        tmp_path / "said"
    ).read_text() == "Stopped by hand. Reports of earlier checks are as they were.\n"
    assert not list((tmp_path / "out").iterdir())


class Interrupt(threading.Thread):
    """Presses Ctrl-C once something has come."""

    def __init__(self, come):
        super().__init__(daemon=True)
        self.come = come

    def run(self):
        until(self.come)
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_the_checks_on_workers_that_go_on(
    submissions, running, tmp_path, capsys
):
    """A check that is held still ends only if its worker sees that the
    class is over.
    """
    begun = []

    def held() -> bool:
        for process in checks():
            process.suspend()
            begun.append(process)
        return bool(begun)

    Interrupt(held).start()
    command = [
        "--all",
        str(submissions),
        "--cluster",
        running.scheduler_address,
        "--output",
        str(tmp_path / "out"),
    ]
    try:
        assert check.main(command) == 3
        _, alive = psutil.wait_procs(begun, timeout=30)
    finally:
        for process in begun:
            if process.is_running():
                process.kill()
    assert (
        begun
        and not alive
        and "Stopped by hand. The same command with --missing"
        in capsys.readouterr().out
    )
    wait_for_workers(running, 2)


def test_ctrl_c_while_no_worker_comes_leaves_all_as_it_was(
    submissions, tmp_path, monkeypatch, capsys
):
    told = []
    monkeypatch.setattr(
        cluster, "print", lambda *words, **_: told.append(words), raising=False
    )
    kept = tmp_path / "out" / "leaky" / "check.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("of an earlier check")
    with cluster._local(0) as empty:
        Interrupt(lambda: told).start()
        command = [
            "--all",
            str(submissions),
            "--cluster",
            empty.scheduler_address,
            "--output",
            str(tmp_path / "out"),
        ]
        assert check.main(command) == 3
    said = capsys.readouterr()
    assert (
        said.out == "Stopped by hand. Reports of earlier checks are as they were.\n"
        and "Traceback" not in said.err
    )
    assert told[0][0].startswith("Waiting for a worker")
    assert (
        list((tmp_path / "out").rglob("*")) == [kept.parent, kept]
        and kept.read_text() == "of an earlier check"
    )


@pytest.mark.slow
def test_submission_on_which_all_workers_die_is_a_row(
    submissions, serial, running, tmp_path
):
    killer, output = Killer(99, str(submissions / "leaky")), tmp_path / "out"
    killer.start()
    command = ["--all", str(submissions), "--cluster", running.scheduler_address]
    try:
        status = check.main([*command, "--output", str(output)])
    finally:
        killer.over.set()
        killer.join()
    row = rows(output)["leaky"]
    died = int(
        re.match(
            r"Could not be checked: workers died on it (\d+) times; check it alone",
            row["verdict"],
        )[1]
    )
    assert (
        status == 3
        and row["status"] == 3
        and row["report"] == ""
        and 3 <= died <= len(killer.orphans)
    )
    written = files(output)
    assert not any(name.startswith(("leaky", ".")) for name in written)
    assert all(
        written[name] == serial[name] for name in serial if name.startswith("faithful")
    )


# --------------------------------------------------------------------------------------
# Only where all is alike
# --------------------------------------------------------------------------------------


def test_worker_with_other_packages_and_another_kit_is_refused(
    submissions, running, other_worker, tmp_path, capsys
):
    kept = tmp_path / "out" / "leaky" / "check.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("of an earlier check")
    command = [
        "--all",
        str(submissions),
        "--cluster",
        running.scheduler_address,
        "--output",
        str(tmp_path / "out"),
    ]
    assert check.main(command) == 2
    said = capsys.readouterr().out
    lines = re.findall(r"worker (tcp://127\.0\.0\.1:\d+): (.*)", said)
    assert len(lines) == 1 and lines[0][0] not in [
        worker.worker_address for worker in running.workers.values()
    ]
    assert f"numpy 1.0, here {attempt.version('numpy')}" in lines[0][1]
    assert (
        re.search(r"the kit's utils\.py [0-9a-f]{8}, here [0-9a-f]{8}", lines[0][1])
        and "Traceback" not in said
    )
    assert (
        list((tmp_path / "out").rglob("*")) == [kept.parent, kept]
        and kept.read_text() == "of an earlier check"
    )


@pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0, reason="hides folders from one process"
)
def test_worker_that_does_not_see_the_folders_is_refused(
    submissions, running, join, tmp_path, capsys
):
    output = tmp_path / "out"
    output.mkdir()
    hide = (
        'mount -t tmpfs none "$1" && mount -t tmpfs none "$2" && shift 2 && exec "$@"'
    )
    if subprocess.run(
        ["unshare", "-m", "sh", "-c", hide, "", submissions, output, "true"]
    ).returncode:
        pytest.skip("this machine does not let the tests mount a disk")
    join("unshare", "-m", "sh", "-c", hide, "", str(submissions), str(output))
    command = [
        "--all",
        str(submissions),
        "--cluster",
        running.scheduler_address,
        "--output",
        str(output),
    ]
    assert check.main(command) == 2
    told = re.search(r"worker tcp://127\.0\.0\.1:\d+: (.*)", capsys.readouterr().out)[1]
    assert f"output folder {output} not shared, or read-only, here shared" in told
    assert f"submissions in {submissions} missing, here" in told and not list(
        output.iterdir()
    )


@pytest.mark.slow
def test_worker_that_comes_later_and_differs_is_dismissed(
    submissions, serial, running, other_worker, tmp_path, monkeypatch, capsys
):
    refused = cluster._refused
    asked = []  # not seen at first, as if it had come later
    monkeypatch.setattr(
        cluster, "_refused", lambda *a: refused(*a) if asked else asked.append(a) or {}
    )
    command = [
        "--all",
        str(submissions),
        "--cluster",
        running.scheduler_address,
        "--output",
        str(tmp_path / "out"),
    ]
    assert check.main(command) == 1
    assert "Dismissed, as not like this machine:" in capsys.readouterr().out
    assert files(tmp_path / "out") == serial and other_worker.wait(30) is not None


def test_worker_outside_the_kit_is_told_where_to_start():
    assert (
        "start it in the kit's folder"
        in cluster._differ(ModuleNotFoundError("No module named 'tools'"), {})[0]
    )


# --------------------------------------------------------------------------------------
# Clusters that are not there, or no more
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["", "10.0.0.5:8786", "tcp:/10.0.0.5", "http://10.0.0.5:8786", "tcp://host"],
)
def test_malformed_address(submissions, tmp_path, capsys, address):
    assert (
        check.main(
            [
                "--all",
                str(submissions),
                "--cluster",
                address,
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    assert "it looks like tcp://" in capsys.readouterr().out and not list(
        (tmp_path / "out").iterdir()
    )


@pytest.mark.parametrize("there", ["nobody", "silence", "page", "worker"])
def test_address_that_does_not_answer(
    submissions, running, tmp_path, capsys, monkeypatch, there
):
    """Nobody, somebody who takes the call and says nothing, a web server, a worker."""
    # a fifth of it is left to tell the cause
    monkeypatch.setattr(cluster, "ANSWER", 4 if there == "nobody" else 1)
    with ExitStack() as stack:
        if there == "page":
            server = stack.enter_context(
                ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
            )
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
        else:
            server = SimpleNamespace(
                socket=stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            )
        address = f"tcp://127.0.0.1:{server.socket.getsockname()[1]}"
        if there == "nobody":
            server.socket.close()
        elif there == "worker":
            address = running.workers[0].worker_address
        assert (
            check.main(
                [
                    "--all",
                    str(submissions),
                    "--cluster",
                    address,
                    "--output",
                    str(tmp_path / "out"),
                ]
            )
            == 2
        )
    said = capsys.readouterr()
    assert (
        f"No Dask scheduler answers at {address}" in said.out
        and "Traceback" not in said.out + said.err
    )
    cause = {
        "nobody": "ConnectionRefusedError",
        "silence": "TimeoutError",
        "page": "Error",
        "worker": "is a Worker",
    }
    assert (
        re.search(rf"\(.*{cause[there]}.*\)\.$", said.out)
        and "certificates" not in said.out
    )


def test_certificates_that_are_missing_are_the_cause(submissions, tmp_path, capsys):
    command = [
        "--all",
        str(submissions),
        "--cluster",
        "tls://127.0.0.1:8786",
        "--output",
        str(tmp_path / "out"),
    ]
    files = dict.fromkeys(
        ("ca-file", "client.cert", "client.key"), str(tmp_path / "none.pem")
    )
    with dask.config.set(
        {f"distributed.comm.tls.{name}": file for name, file in files.items()}
    ):
        assert check.main(command) == 2
    assert re.search(
        r"or see the certificates \(.*No such file.*\)\.$", capsys.readouterr().out
    )


def test_scheduler_without_workers(submissions, tmp_path, capsys):
    with cluster._local(0) as empty:
        command = [
            "--all",
            str(submissions),
            "--cluster",
            empty.scheduler_address,
            "--wait",
            "1",
        ]
        assert check.main([*command, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().out
    assert (
        "Waiting for a worker" in said
        and f"python -m dask worker {empty.scheduler_address}" in said
    )


@pytest.mark.parametrize(
    "lost", ["scheduler", pytest.param("worker", marks=pytest.mark.slow)]
)
def test_cluster_lost_in_the_middle_keeps_what_is_done(
    submissions, serial, tmp_path, capsys, lost
):
    """Its scheduler, or its only worker. A second run, without a cluster, checks only
    the others.
    """
    output, file = tmp_path / "out", tmp_path / "scheduler.json"
    scheduler = start(
        *DASK,
        "scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
        "--scheduler-file",
        str(file),
    )
    worker = start(
        *DASK, "worker", "--scheduler-file", str(file), *PLAIN, str(tmp_path)
    )
    over = threading.Event()

    def kill():
        while not list(output.glob("*/check.json")) and not over.wait(0.02):
            pass
        {"scheduler": scheduler, "worker": worker}[lost].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        until(lambda: file.exists() and file.read_text().endswith("}"))
        address = json.loads(file.read_text())["address"]
        command = ["--all", str(submissions), "--output", str(output)]
        assert check.main([*command, "--cluster", address, "--wait", "8"]) == 3
    finally:
        over.set()
        killer.join()
        for process in (scheduler, worker):
            process.kill()
            process.wait()
    told = {
        "scheduler": "connection to the scheduler was lost",
        "worker": "For 8 s there was no worker left",
    }
    assert told[lost] in capsys.readouterr().out
    done = {
        path.parent.name: path.stat().st_mtime_ns
        for path in output.glob("*/check.json")
    }
    left = [
        name
        for name, row in rows(output).items()
        if row["verdict"].startswith("Not checked")
    ]
    assert done and left and len(done) + len(left) in (2, 3)  # half.zip has no report
    assert check.main([*command, "--jobs", "1", "--missing"]) == 1
    assert files(output) == serial
    assert all(
        (output / name / "check.json").stat().st_mtime_ns == then
        for name, then in done.items()
    )


def test_a_local_cluster_leaves_the_threads_of_later_processes_alone():
    """In a new process, where Dask is not imported before."""
    code = (
        "import os; from tools.grading import cluster\n"
        "with cluster._local(1): print(*(name for name in os.environ"
        " if name.endswith('_NUM_THREADS')))"
    )
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.endswith("_NUM_THREADS")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=KIT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_nothing_of_a_local_cluster_is_reachable_from_outside(running):
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [
        connection.laddr
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 3 and {address.ip for address in listening} == {
        "127.0.0.1"
    }


def test_sandbox_of_an_overlay_shows_the_packages_of_its_core(tmp_path):
    """Above level static a worker runs notebooks there: Dask lies in the overlay, all
    else in the core.
    """
    program = (
        "import distributed, nbclient; print(distributed.__file__, nbclient.__file__)"
    )
    outcome = sandbox.run([sys.executable, "-c", program], tmp_path, 60)
    assert outcome.rc == 0, outcome.tail


def test_what_must_be_shared_is_told_by_name_and_size(tmp_path):
    def seen(root="root"):
        attempt.about.cache_clear()
        return attempt.about(
            attempt.Shared(
                ("numpy",),
                str(tmp_path),
                ("team",),
                str(tmp_path / "images"),
                str(tmp_path / "out" / root),
            )
        )

    for name in ("team", "images", "out/root"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "team" / "utils.py").write_text("1")
    here = seen()
    assert attempt.differences(seen(), here) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 4711)
        assert attempt.differences(seen(), here) == [
            f"account number 4711, here {here['account']}"
        ]
    (tmp_path / "team" / "utils.py").write_text("12")
    (tmp_path / "images").rmdir()
    told = attempt.differences(seen(root="elsewhere"), here)
    assert [says.split(" in ")[0].split(" folder")[0] for says in told] == [
        "images",
        "output",
        "submissions",
    ]
    assert (
        "missing, here 0 files" in told[0]
        and "not shared, or read-only, here shared" in told[1]
    )
    attempt.about.cache_clear()
