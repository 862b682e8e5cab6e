"""Notebooks out of order, twice, side by side, after an edit: each works, or says which
one to run first.
"""

import json
import multiprocessing
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import sample_data
import utils
from kit import datasets
from kit.record import stale_sections
from tools.grading.compare import CLOCKED

pytestmark = pytest.mark.course

KIT = Path(__file__).resolve().parent.parent
FIRST = {2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6}  # theme, and the one that it waits for


def command(home: Path, first: int, last: int, *options: str) -> list[str]:
    return [
        sys.executable,
        "course.py",
        "run",
        "--profile",
        "smoke",
        "--source",
        "sample",
        "--home",
        str(home),
        "--from",
        str(first),
        "--until",
        str(last),
        *options,
    ]


def run(
    home: Path, first: int, last: int, *options: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(home, first, last, *options), cwd=KIT, capture_output=True, text=True
    )


def record_of(home: Path) -> dict:
    return json.loads((home / "exports" / "results.json").read_text())


# --- side by side


def _record_often(home: str, key: int, source: str) -> None:
    course = utils.start(1, source=source, profile="smoke", home=home)
    for number in range(20):
        utils.record(course, f"worker{key}", {f"value{number}": number})


def test_notebooks_that_record_at_the_same_time_lose_nothing(open_course, drawn):
    home = open_course().home
    spawn = multiprocessing.get_context("spawn")
    workers = [
        spawn.Process(target=_record_often, args=(str(home), key, str(drawn)))
        for key in (1, 2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    results = record_of(home)
    for key in (1, 2):
        assert results[f"worker{key}"].keys() >= {
            f"value{number}" for number in range(20)
        }


def test_second_notebook_waits_for_the_first_and_loads_its_result(open_course, capsys):
    course, results = open_course(), []

    class State:  # the values that a function encloses are a part of its fingerprint
        entered, go_on, calls = threading.Event(), threading.Event(), []

    entered, go_on, calls = State.entered, State.go_on, State.calls

    def work():
        State.calls.append(1)
        State.entered.set()
        State.go_on.wait(20)
        return 42

    first = threading.Thread(
        target=lambda: results.append(utils.load_or_run(course, "slow", work))
    )
    second = threading.Thread(
        target=lambda: results.append(utils.load_or_run(course, "slow", work))
    )
    first.start()
    assert entered.wait(20)
    second.start()
    for _ in range(200):
        if "waiting for its result" in (said := capsys.readouterr().out):
            break
        second.join(0.05)
    go_on.set()
    first.join()
    second.join()
    assert results == [42, 42] and len(calls) == 1 and "slow-" in said


def test_lock_of_a_killed_process_keeps_nobody_out(open_course):
    course = open_course()
    code = (
        "import os, sys, utils\ncourse = utils.start(1, source=sys.argv[1],"
        " profile='smoke', home=sys.argv[2])\nwith utils.alone(course, 'x'):\n   "
        " os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(course.root.parent), str(course.home)], cwd=KIT
    )
    assert done.returncode == -9
    assert list((course.local / "runs" / ".locks").glob("x.lock"))
    with utils.alone(course, "x"):
        pass


def test_lock_that_cannot_be_made_is_one_sentence(open_course):
    course = open_course()
    (course.local / "runs" / ".locks" / "x.lock").mkdir(parents=True)
    with (
        pytest.raises(utils.CourseError, match="x.lock could not be written"),
        utils.alone(course, "x"),
    ):
        pass


def test_two_notebooks_that_draw_the_sample_at_once_get_all_of_it(tmp_path):
    done, raw = [], tmp_path / "raw"
    both = [
        threading.Thread(
            target=lambda: done.append(
                datasets.acquire("pneumonia", "sample", raw, 120, 1)
            )
        )
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(done) == 2
    sample_data.draw_chest_xray(tmp_path / "alone", images=120, seed=1)
    drawn, alone = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*.jpeg")}
        for root in (raw, tmp_path / "alone")
    )
    assert drawn == alone and len(alone) > 100


@pytest.mark.slow
def test_the_same_theme_twice_at_once(tmp_path):
    """Two windows of one student: one run trains, both end well, with one set of
    weights and one record.
    """
    assert run(tmp_path, 1, 1).returncode == 0
    both = [
        subprocess.Popen(
            command(tmp_path, 2, 2), cwd=KIT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len(list((tmp_path / "runs").glob("baseline-*"))) == 1
    assert {"theme1", "theme2"} <= record_of(tmp_path).keys()
    assert not list((tmp_path / "exports" / "notebooks").glob(".*"))


# --- out of order, twice, after an edit


@pytest.mark.slow
@pytest.mark.parametrize("theme", FIRST)
def test_notebook_run_first_names_the_one_to_run_before(tmp_path, theme):
    done = run(tmp_path, theme, theme)
    assert done.returncode == 1 and f"run notebooks/theme{FIRST[theme]}_" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "exports" / "results.json").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """All eight themes, run once; read only."""
    home = tmp_path_factory.mktemp("order") / "home"
    assert run(home, 1, 8).returncode == 0
    return home


@pytest.mark.slow
def test_second_run_measures_nothing_anew(whole, tmp_path):
    """Every training, search, ablation and benchmark loads: the instructor never waits
    twice.
    """
    home = Path(shutil.copytree(whole, tmp_path / "home"))
    before, runs = record_of(home), {path.name for path in (home / "runs").iterdir()}
    assert run(home, 1, 8).returncode == 0
    after = record_of(home)
    assert {path.name for path in (home / "runs").iterdir()} == runs
    for name in before["headline"].keys() - set(CLOCKED):
        assert after["headline"][name] == before["headline"][name], name
    assert stale_sections(home, after) == []


@pytest.mark.slow
def test_edited_parameters_are_refused_with_the_way_out(whole, tmp_path):
    home = Path(shutil.copytree(whole, tmp_path / "home"))
    before = (home / "exports" / "results.json").read_bytes()
    for option in (("--seed", "43"), ("--image-size", "48"), ("--dataset", "solar")):
        done = run(home, 2, 2, *option)
        assert (
            done.returncode == 1
            and "HOME" in done.stderr
            and "Traceback" not in done.stderr
        ), done.stderr
    assert (home / "exports" / "results.json").read_bytes() == before


@pytest.mark.slow
def test_what_was_measured_on_other_weights_is_called_stale(whole, tmp_path):
    """A student trains the final network anew and goes straight on to theme 8."""
    home = Path(shutil.copytree(whole, tmp_path / "home"))
    path = home / "checkpoints" / "best_model.pth"
    state = torch.load(path, weights_only=True)
    state["weights"]["classifier.bias"] += 0.5
    torch.save(state, path)
    done = run(home, 8, 8)
    assert done.returncode == 0 and "✗ stale sections" in done.stdout
    executed = json.loads(
        (home / "exports" / "notebooks" / "theme8_synthesis.ipynb").read_text()
    )
    said = "".join(
        line
        for cell in executed["cells"]
        for output in cell.get("outputs", [])
        for line in output.get("text", [])
    )
    assert set(re.findall(r"theme(\d) is stale", said)) >= {"4", "7"}
    told = stale_sections(home, record_of(home))
    assert any("best_model.pth has changed" in line for line in told)
