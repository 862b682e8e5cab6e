"""A class of submissions: one report and one row each, whatever dies on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from support.submissions import add_cell, make_submission

import utils
from kit import files
from tools import cli
from tools.grading import klass

pytestmark = pytest.mark.course

KIT = files.KIT
PLAIN = ["--jobs", "1"]


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
    key = '{"username": "team", "key": "' + "0123456789abcdef" * 2 + '"}'
    (leaky / "kaggle.json").write_text(key)
    (folder / "half.zip").write_bytes((folder / "faithful.zip").read_bytes()[:9999])
    (folder / "late.rar").write_bytes(b"Rar!")
    (folder / "check-old").mkdir()
    (folder / "check-old" / "check.json").write_text("{}")
    return folder


def check_class(folder: Path, output: Path, *options: str) -> int:
    return cli.main(["check", "--all", str(folder), "--output", str(output), *options])


def rows_of(output: Path) -> dict[str, dict]:
    rows = json.loads((output / "summary.json").read_text())["rows"]
    return {row["submission"]: row for row in rows}


def test_what_two_groups_have_in_common_is_named(submissions, tmp_path, capsys):
    """The faithful zip and the leaky folder are one; a third is another's."""
    folder = tmp_path / "class"
    shutil.copytree(submissions / "leaky", folder / "a")
    shutil.copytree(submissions / "leaky", folder / "b")
    shutil.copytree(submissions / "leaky", folder / "c")
    for group in "abc":
        for path in folder.glob(f"{group}/**/*.*"):
            if path.suffix in (".pth", ".onnx", ".npz", ".pdf"):
                path.write_text(f"{group} {path.name} " * 50)
    weights = [folder / group / "checkpoints" / "best_model.pth" for group in "ac"]
    shutil.copy(*weights)
    words = "# Our own words\n" + "what we found, and why. " * 20
    for group in "bc":
        add_cell(folder / group, words)
        (folder / group / "notes.md").write_text("short")
    check_class(folder, tmp_path / "out", *PLAIN)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    theme2 = "notebooks/theme2_baseline_model.ipynb"
    assert summary["copies"] == [
        {"submissions": ["a", "c"], "files": ["checkpoints/best_model.pth"]},
        {"submissions": ["b", "c"], "files": [theme2]},
    ]
    assert "The same in a and c, files: 1 (checkpoints/best" in capsys.readouterr().out
    assert theme2 in (tmp_path / "out" / "summary.html").read_text()


def check_rows(output: Path) -> None:
    rows = rows_of(output)
    statuses = {name: row["status"] for name, row in rows.items()}
    assert statuses == {"leaky": 1, "faithful.zip": 0, "half.zip": 2, "late.rar": 2}
    assert "neither a folder nor a zip" in rows["late.rar"]["verdict"]
    assert "Could not be opened" in rows["half.zip"]["verdict"]
    for name in ("leaky", "faithful"):
        report = json.loads((output / name / "check.json").read_text())
        assert report["submission"].startswith(name)
        assert f"{name}/check.html" in (output / "summary.html").read_text()


def test_one_after_the_other(submissions, tmp_path, capsys):
    assert check_class(submissions, tmp_path / "out", *PLAIN) == 1
    check_rows(tmp_path / "out")
    assert "Left out, as they hold reports: check-old." in capsys.readouterr().err


@pytest.mark.scale
def test_worker_killed_in_the_middle_loses_nothing(submissions, tmp_path):
    pytest.importorskip("distributed")
    killed, over = [], threading.Event()

    def kill():
        while not killed and not over.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.cmdline()[1:3] == ["course.py", "check"]:
                        os.kill(process.ppid(), signal.SIGKILL)
                        return killed.append(process)
                except (psutil.Error, ProcessLookupError):
                    pass

    thread = threading.Thread(target=kill)
    thread.start()
    assert check_class(submissions, tmp_path / "out", "--jobs", "2") == 1
    over.set()
    thread.join()
    check_rows(tmp_path / "out")
    assert killed and not killed[0].is_running()  # the check went with its worker


@pytest.mark.scale
def test_no_scheduler_answers(submissions, tmp_path, capsys):
    pytest.importorskip("distributed")
    for address in ("tcp://127.0.0.1:1", "nonsense"):
        assert check_class(submissions, tmp_path, "--scheduler", address) == 2
        assert "No scheduler with a worker answers at" in capsys.readouterr().err


def test_a_worker_that_is_not_like_this_machine_is_refused():
    def client(there):
        return SimpleNamespace(run=lambda about, on_error: {"tcp://10.0.0.6:1": there})

    klass.refuse_others(client(klass.about()))
    with pytest.raises(utils.CourseError, match="10.0.0.6:1 .*: numpy 1.0, here"):
        klass.refuse_others(client(klass.about() | {"numpy": "1.0"}))
    with pytest.raises(utils.CourseError, match="the kit is not there"):
        klass.refuse_others(client(ImportError("No module named 'tools'")))


def test_without_dask(submissions, tmp_path, monkeypatch, capsys, checked):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setattr(klass, "at_a_time", lambda level: 4)
    assert check_class(submissions, tmp_path, "--jobs", "2") == 2
    assert "--jobs and --scheduler need Dask: run `make" in capsys.readouterr().err
    check_class(submissions, tmp_path)
    assert klass.PLAIN in capsys.readouterr().err and len(checked) == 3


@pytest.fixture
def checked(monkeypatch) -> list:
    """Names of what is checked, all of it well, in the place of real checks."""
    names = []

    def attempt(job):
        names.append(job.path.name)
        if job.path.name == "stop":
            raise KeyboardInterrupt
        if job.path.name == "ill":
            return klass.Outcome(-11, "Segmentation fault", 2.0)
        job.folder.mkdir(parents=True, exist_ok=True)
        report = {"schema": 1, "level": "static", "status": 0, "seconds": 1.5}
        report |= {"verdict": "well", "tables": {}, "findings": []}
        (job.folder / "check.json").write_text(json.dumps(report))
        return klass.Outcome(0, "", 2.0)

    monkeypatch.setattr(klass, "attempt", attempt)
    return names


def test_only_what_is_missing_or_has_changed_is_checked_again(
    tmp_path, checked, capsys
):
    folder, output = tmp_path / "class", tmp_path / "out"
    for name in ("ill", "same", "stop", "team"):
        (folder / name).mkdir(parents=True)
    assert check_class(folder, output, *PLAIN) == 130
    assert checked == ["ill", "same", "stop"]
    assert "The class was stopped: the same command with" in capsys.readouterr().err
    verdicts = {name: row["verdict"] for name, row in rows_of(output).items()}
    assert verdicts["team"] == verdicts["stop"] == "Not checked: the class was stopped"
    assert verdicts["ill"] == "The check itself failed: Segmentation fault"
    (folder / "stop").rename(folder / "go")
    assert check_class(folder, output, *PLAIN, "--missing") == 3
    assert checked[3:] == ["go", "ill", "team"]
    assert rows_of(output)["same"]["status"] == 0
    time.sleep(0.05)  # more than a tick of the clock of files
    (folder / "team" / "old.py").touch()
    os.utime(folder / "team" / "old.py", (0, 0))  # as unzipped
    (output / "go" / "check.json").write_text("[]")
    check_class(folder, output, *PLAIN, "--missing")
    assert checked[6:] == ["go", "ill", "team"]
    (folder / "go").rename(folder / "stop")  # no old report may pass for a new one
    check_class(folder, output, *PLAIN)
    assert [path.parent.name for path in output.rglob("check.json")] == ["go", "same"]


def test_every_report_has_a_place_of_its_own():
    paths = [Path(name) for name in ("a.zip", "a", "a b", "a_b.zip", "summary.json")]
    names = klass.names(paths)
    assert len(set(names.values())) == 5 and "summary.json" not in names.values()
    assert (names[Path("a")], names[Path("a.zip")]) == ("a", "a.zip")
    assert klass.names([*paths, Path("b")]).items() >= names.items()


def test_a_check_that_takes_too_long_is_a_row(submissions, tmp_path):
    job = klass.Job(submissions / "leaky", tmp_path / "out", (), 0.01)
    outcome = klass.attempt(job)
    assert (outcome.status, outcome.said) == (3, "the check took more than 0 s")
    assert not (tmp_path / "out" / "check.json").exists()


@pytest.mark.skipif(not shutil.which("setpriv"), reason="Linux, with util-linux")
def test_a_check_ends_with_the_process_that_began_it(submissions, tmp_path):
    command = [sys.executable, "course.py", "check", "--all", submissions, *PLAIN]
    parent = subprocess.Popen([*command, "--output", tmp_path / "out"], cwd=KIT)
    while not (children := psutil.Process(parent.pid).children()):
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(children, timeout=30)[1] == []


def test_wrong_arguments(tmp_path, capsys):
    assert check_class(tmp_path, tmp_path / "out") == 2
    assert check_class(tmp_path / "nowhere", tmp_path / "out") == 2
    assert "is no folder: give the one that holds" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["check", str(tmp_path), "--jobs", "2"])
    assert "give --all" in capsys.readouterr().err
