"""The command line: how a command ends, what it says where, and which home it means."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import utils
from tools import cli
from tools.shared import options

KIT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "numpy", "pandas", "utils", "papermill"}


def course(*arguments: str, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, "course.py", *arguments]
    return subprocess.run(command, cwd=KIT, capture_output=True, text=True, **more)


def loaded(*arguments: str) -> tuple[int, set[str]]:
    """The status of one command, and what of the heavy libraries it has imported."""
    code = (
        "import sys\nfrom tools.cli import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as ended: status = ended.code or 0\n"
        f"print('STATUS', status, *({HEAVY} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, *arguments]
    told = subprocess.run(command, cwd=KIT, capture_output=True, text=True)
    status, *names = re.search(r"STATUS (.*)", told.stdout)[1].split()
    return int(status), set(names)


@pytest.mark.parametrize("arguments", [["--help"], ["help"], ["-h"], ["--version"]])
def test_help_is_a_result(arguments):
    ended = course(*arguments)
    assert ended.returncode == 0 and ended.stdout and not ended.stderr
    if arguments != ["--version"]:
        assert all(f"  {name} " in ended.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["fly"], ["--fly"]])
def test_no_command_is_a_fault_and_lists_them(arguments, capsys):
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert not said.out and all(f"  {name} " in said.err for name in cli.COMMANDS)


@pytest.mark.parametrize(
    "arguments, status",
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["help", "run"], 0),
        (["run", "--dataset", "cats"], 2),
        (["run", "--profile", "huge"], 2),
        (["report", "--help"], 0),
        (["report", "--lang", "de"], 2),
        (["pack", "--help"], 0),
        (["pack", "--fly"], 2),
    ],
)
def test_what_is_typed_is_read_before_anything_heavy_is_loaded(arguments, status):
    assert loaded(*arguments) == (status, set())


def test_output_into_a_file_of_windows_is_written_to_its_end():
    """The code page lacks ✓ and ≥: their names stand there, and the status is that of
    the work.
    """
    code = (
        "import sys; from tools import cli\n"
        "from types import SimpleNamespace\n"
        "def main(arguments):\n"
        "    print('✓ é ≥'); print('✗', file=sys.stderr); return 1\n"
        "sys.modules['tools.notebooks.run'] = SimpleNamespace(main=main)\n"
        "sys.exit(cli.main(['run']))"
    )
    page = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(KIT)}
    ended = subprocess.run([sys.executable, "-c", code], env=page, capture_output=True)
    assert ended.returncode == 1
    said = ended.stdout.decode("cp1252").strip()
    assert said == r"\N{CHECK MARK} é \N{GREATER-THAN OR EQUAL TO}"
    assert ended.stderr.decode("cp1252").strip() == r"\N{BALLOT X}"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_help(command, capsys):
    try:
        assert cli.main([command, "--help"]) == 0
    except SystemExit as ended:
        assert not ended.code
    said = capsys.readouterr()
    assert "usage: " in said.out and "--help" in said.out and not said.err


def ends_in(error: BaseException | None, monkeypatch):
    """`course.py run` ends in this error, or well."""

    def main(arguments):
        print("a result")
        if error:
            raise error
        return 0

    monkeypatch.setattr("tools.notebooks.run.main", main)


class Own(utils.CourseError):
    """A kind of its own."""


@pytest.mark.parametrize(
    "error, status, said",
    [
        (None, 0, ""),
        (utils.CourseError("Do this."), 2, "Do this.\n"),
        (Own("Do that."), 2, "Do that.\n"),
        (KeyboardInterrupt(), 130, "\nStopped.\n"),
        (ZeroDivisionError("inside"), 3, "Traceback .*ZeroDivisionError: inside\n.*"),
    ],
)
def test_every_end_has_its_status_and_stdout_holds_results_only(
    error, status, said, monkeypatch, capsys
):
    ends_in(error, monkeypatch)
    assert cli.main(["run"]) == status
    told = capsys.readouterr()
    assert told.out == "a result\n"
    assert re.fullmatch(said, told.err, flags=re.DOTALL)


def test_exits_of_a_command_pass(monkeypatch):
    ends_in(SystemExit(7), monkeypatch)
    with pytest.raises(SystemExit, match="7"):
        cli.main(["run"])


def test_ctrl_c_in_a_run_ends_with_130(tmp_path):
    command = [sys.executable, "course.py", "run", "--home", tmp_path, "--until", "1"]
    running = subprocess.Popen(
        [*command, "--source", "sample", "--profile", "smoke"],
        cwd=KIT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "exports" / "notebooks").exists():
        assert running.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130, said
    # the kernel that was interrupted may print a traceback of its own
    assert "Stopped." in said and "error of the course kit" not in said


def finished(folder: Path, when: float) -> None:
    record = folder / "exports" / "results.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    os.utime(record, (when, when))


@pytest.mark.parametrize(
    "given, named, runs, meant, why",
    [
        ("mine", "other", ["sample-run"], "mine", None),
        (None, "other", ["sample-run"], "other", "COURSE_HOME"),
        (None, None, [".", "sample-run"], "sample-run", "newest"),
        (None, None, ["sample-run", "."], ".", "newest"),
        (None, None, ["sample-run", "sample-run-solar"], "sample-run-solar", "newest"),
        (None, "", ["sample-run", "my-run"], "sample-run", "newest"),
        (None, None, [], ".", "no run"),
    ],
)
def test_home_is_the_option_else_the_variable_else_the_newest_run(
    given, named, runs, meant, why, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("COURSE_HOME", raising=False)
    if named is not None:
        monkeypatch.setenv("COURSE_HOME", str(tmp_path / named) if named else "")
    for when, run in enumerate(runs):
        finished(tmp_path / run, 1000.0 + when)
    chosen = options.home(tmp_path / given if given else None, tmp_path)
    assert chosen == (tmp_path / meant).resolve()
    said = capsys.readouterr()
    assert not said.out
    assert (f"home: {chosen} " in said.err and why in said.err) if why else not said.err


def test_choices_are_those_of_the_course():
    assert options.DATASETS == tuple(utils.DATASETS)
    assert options.PROFILES == ("auto", *utils.PROFILES)
