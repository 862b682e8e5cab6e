"""course.py check: every kind of submission gets its verdict and status, and stays as
it was handed in.

The submissions are made from the kit: an honest run of themes 1 and 2 on the smoke
profile, and copies that cheat."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from support.submissions import edit_json

from tools import cli
from tools.grading import (
    check,
    compare,
    examine,
    klass,
    reexecute,
    sandbox,
    verdict,
)
from tools.grading.finding import Finding
from tools.grading.static.look import Look
from tools.grading.submission import open_submission

KIT = Path(__file__).resolve().parent.parent
CODE = (
    "utils.py",
    "sample_data.py",
    "course.py",
    "requirements.txt",
    "constraints.txt",
    "README.md",
)
RECORD, THEME1 = "exports/results.json", "notebooks/theme1_data_analysis.ipynb"
ONCE = ("--level", "full", "--until", "1", "--no-another-seed")
# one process makes it, for all of them
pytestmark = [pytest.mark.course, pytest.mark.xdist_group("submission")]
contained = pytest.mark.skipif(
    sandbox.best_layer() == "plain",
    reason="bubblewrap is not installed, or does not work here",
)


def project(folder: Path, themes) -> Path:
    """The kit's code with the notebooks of some themes."""
    for name in ("kit", "models", "exercises", "tools", "report"):
        shutil.copytree(
            KIT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in CODE:
        shutil.copy(KIT / name, folder / name)
    (folder / "notebooks").mkdir()
    for theme in themes:
        for path in (KIT / "notebooks").glob(f"theme{theme}_*.ipynb"):
            shutil.copy(path, folder / "notebooks" / path.name)
    return folder


def run_course(folder: Path, last: int) -> None:
    options = f"run --source sample --profile smoke --until {last}".split()
    command = [sys.executable, "course.py", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(folder / "data" / "raw")


@pytest.fixture(scope="session")
def honest(tmp_path_factory) -> Path:
    """A project whose themes 1 and 2 were run; read only."""
    folder = project(tmp_path_factory.mktemp("honest") / "team", (1, 2))
    run_course(folder, 2)
    return folder


@pytest.fixture
def submission(honest, tmp_path) -> Path:
    """A copy of it, to cheat with."""
    return Path(shutil.copytree(honest, tmp_path / "class" / "team"))


@pytest.fixture
def run_check(tmp_path, monkeypatch, capsys):
    """run_check(path, *options) -> (status, report, what was printed); the submission
    must be left as it was.

    Two themes are no complete hand-in: with `whole=True` the static checks, which have
    tests of their own, are left out, so that the status is that of the re-execution.
    """

    def run(path, *options, whole=True):
        if whole:
            monkeypatch.setattr(examine.static, "checks", lambda submission: [])
        before = examine.fingerprint(path)
        status = check.main([str(path), "--output", str(tmp_path / "out"), *options])
        assert examine.fingerprint(path) == before
        return (
            status,
            json.loads((tmp_path / "out" / "check.json").read_text()),
            capsys.readouterr().out,
        )

    return run


@pytest.fixture
def only_notebooks(monkeypatch):
    """Level full without scoring the weights, which has tests of its own."""
    monkeypatch.setattr(examine, "_evaluate", lambda *arguments: None)


def edit_notebook(folder: Path, theme: int, change) -> None:
    path = next((folder / "notebooks").glob(f"theme{theme}_*.ipynb"))
    notebook = nbformat.read(path, 4)
    change(notebook.cells)
    nbformat.write(notebook, path)


def replace_theme(folder: Path, theme: int, *cells: str) -> None:
    """A notebook of these cells instead, after one of parameters."""
    names = "DATASET = SOURCE = PROFILE = IMAGE_SIZE = SEED = HOME = None"
    parameters = nbformat.v4.new_code_cell(names, metadata={"tags": ["parameters"]})
    edit_notebook(
        folder,
        theme,
        lambda old: old.__setitem__(
            slice(None), [parameters, *map(nbformat.v4.new_code_cell, cells)]
        ),
    )


def found(report: dict, name: str, kind: str = "fail") -> list[str]:
    return [
        row["says"]
        for row in report["findings"]
        if row["check"] == name and row["verdict"] == kind
    ]


def figures(report: dict, by: str) -> dict[str, str]:
    return {row["figure"]: row["verdict"] for row in report["tables"][by]}


# --------------------------------------------------------------------------------------
# Submissions
# --------------------------------------------------------------------------------------


def test_faithful_submission_is_reproduced_to_the_digit(submission, run_check):
    status, report, out = run_check(submission, *ONCE, "--until", "2")
    assert status == 0 and not report["contradicted"] and report["level"] == "full"
    assert figures(report, "weights") == {"baseline_test_accuracy": "identical"}
    assert figures(report, "re-execution") == {
        "loader_speedup": "ratio",
        "baseline_test_accuracy": "identical",
        "train_seconds_baseline": "ratio",
    }
    assert report["same"] == {"weights": True, "re-execution": True}
    assert [row["status"] for row in report["runs"][0]["notebooks"]] == ["ran", "ran"]
    assert found(report, "re-execution", "pass") and found(report, "pools", "pass")
    assert "Nothing in the re-execution contradicts it" in out
    assert out.rstrip().endswith("check.html")


def test_the_page_says_what_was_found_and_awards_no_points(
    submission, run_check, tmp_path
):
    _, report, _ = run_check(submission, whole=False)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*klass.REPORT}
    page = (tmp_path / "out" / "check.html").read_text()
    for words in (
        report["verdict"],
        "awards no points and is no grade",
        "Themes 3, 4, 5, 6, 7, 8 are missing",
        "TensorRT",
        "Tracking",
    ):
        assert words in page
    assert [row["of"] for row in report["criteria"]] == [4, 6, 5, 3, 2]
    assert all(row["questions"] for row in report["criteria"])
    assert len(report["bonuses"]) == 4
    assert "http" not in page.replace("http-equiv", "")  # opens anywhere, asks nobody


def test_help_is_short_and_points_to_the_page_that_says_the_rest(capsys):
    with pytest.raises(SystemExit, match="0"):
        check.main(["--help"])
    told = capsys.readouterr().out.partition("positional arguments:")[0]
    assert len(told.partition("Evidence")[2].strip().splitlines()) <= 15
    assert "docs/grading.md" in told


def test_every_key_of_the_report_is_documented(submission, run_check):
    page = (KIT / "docs" / "grading.md").read_text()
    _, report, _ = run_check(submission)
    assert [key for key in report if f"`{key}`" not in page] == []


@pytest.mark.parametrize(
    "level, by",
    [
        ("evaluate", "weights"),
        pytest.param("full", "re-execution", marks=pytest.mark.slow),
    ],
)
def test_edited_metric_differs(submission, run_check, level, by):
    edit_json(
        submission / RECORD,
        lambda record: record["headline"].update(baseline_test_accuracy=0.91),
    )
    status, report, _ = run_check(
        submission, "--level", level, "--until", "2", "--no-another-seed"
    )
    assert status == 1 and figures(report, by)["baseline_test_accuracy"] == "differs"
    assert "0.91 in the record" in found(report, "figures")[0]


def test_hard_coded_figures_do_not_move_with_the_seed(
    submission, run_check, only_notebooks
):
    """A constant comes back in every run: only another seed, and the clock, tell it
    from a measurement.
    """
    replace_theme(
        submission,
        1,
        "import utils\ncourse = utils.start(1, DATASET, SOURCE, "
        "PROFILE, IMAGE_SIZE, SEED, home=HOME)",
        "utils.record(course, 'headline', {'loader_speedup': 13.7})",
    )
    edit_json(
        submission / RECORD,
        lambda record: record["headline"].update(loader_speedup=13.7),
    )
    status, report, _ = run_check(submission, "--level", "full", "--until", "1")
    # its own seed, another, and a third to be sure
    assert status == 1 and len(report["runs"]) == 3
    told = " ".join(found(report, "hard-coded figures"))
    assert "a time never repeats" in told and "does not move with the seed" in told


@pytest.mark.slow
def test_hard_coded_accuracy_among_measured_figures(
    submission, run_check, only_notebooks
):
    def cheat(cells):
        cell = next(cell for cell in cells if "baseline_test_accuracy=" in cell.source)
        cell.source = cell.source.replace(
            'metrics.loc["accuracy", "value"]', "0.8125", 1
        )

    edit_notebook(submission, 2, cheat)
    edit_json(
        submission / RECORD,
        lambda record: record["headline"].update(baseline_test_accuracy=0.8125),
    )
    status, report, _ = run_check(submission, "--level", "full", "--until", "2")
    assert status == 1
    assert figures(report, "re-execution")["baseline_test_accuracy"] == "identical"
    assert [says.split()[0] for says in found(report, "hard-coded figures")] == [
        "baseline_test_accuracy"
    ]


def test_notebook_that_hangs_is_named_with_its_cell_and_the_rest_goes_on(
    submission, run_check, only_notebooks
):
    replace_theme(submission, 1, "x = 1", "import time\nwhile True:\n    time.sleep(1)")
    status, report, _ = run_check(
        submission, *ONCE, "--until", "2", "--notebook-limit", "6"
    )
    first, second = report["runs"][0]["notebooks"]
    assert status == 1
    assert first["status"] == "stopped"
    assert "6 s were over" in first["says"]
    assert "cell 3 (import time)" in first["says"] and 6 <= first["seconds"] < 20
    assert second["status"] == "skipped" and "index.csv is missing" in second["says"]
    assert set(figures(report, "re-execution").values()) == {"not reproduced"}
    told = found(report, "figures", "human")
    assert len(told) == 2
    assert "yet whether these hold: loader_speedup (theme 1 was stopped" in told[0]


@contained
def test_deletions_reach_nothing_but_the_copy(
    submission, run_check, only_notebooks, tmp_path
):
    canary = tmp_path / "canary"
    canary.mkdir()
    (canary / "file").write_text("alive")
    replace_theme(
        submission,
        1,
        f"""import os, pathlib, shutil
for place in ({str(submission)!r}, {str(canary)!r}, {str(KIT / "models")!r}, os.environ["HOME"], HOME):
    shutil.rmtree(place, ignore_errors=True)
seen = [os.path.exists(path) for path in ({str(submission)!r}, {str(canary)!r}, {str(Path.home() / ".ssh")!r})]
(pathlib.Path(HOME) / "exports").mkdir(parents=True, exist_ok=True)
(pathlib.Path(HOME) / "exports" / "results.json").write_text('{{"headline": {{"seen": %d}}}}' % sum(seen))""",
    )
    _, report, _ = run_check(submission, *ONCE)
    assert (canary / "file").read_text() == "alive"
    assert (KIT / "models" / "baseline_cnn.py").exists()
    assert not found(report, "containment")
    assert report["containment"] == "bwrap"


@contained
def test_network_and_tokens_are_out_of_reach(
    submission, run_check, only_notebooks, monkeypatch
):
    monkeypatch.setenv("KAGGLE_KEY", "not-for-students")
    replace_theme(
        submission,
        1,
        """import os, pathlib, socket
told = [name for name in ("KAGGLE_KEY",) if name in os.environ]
for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
    try:
        told += [path] if b"not-for-students" in path.read_bytes() else []
    except OSError:
        pass
for address in (("1.1.1.1", 53), ("127.0.0.1", 22)):
    try:
        socket.create_connection(address, timeout=3)
        told.append(address)
    except OSError:
        pass
raise RuntimeError(f"saw {told}")""",
    )
    status, report, _ = run_check(submission, *ONCE)
    assert status == 1
    assert "Theme 1 failed in cell 2" in found(report, "re-execution")[0]
    assert found(report, "re-execution")[0].endswith("RuntimeError: saw [].")


def test_report_says_when_nothing_could_be_closed(
    submission, run_check, only_notebooks, monkeypatch
):
    monkeypatch.setattr(sandbox, "best_layer", lambda: "plain")
    replace_theme(submission, 1, "x = 1")
    _, report, out = run_check(submission, *ONCE)
    assert report["containment"] == "plain"
    assert "NOT CLOSED" in report["notes"][0]
    assert "NOT CLOSED" in out
    assert report["runs"][0]["notebooks"][0]["status"] == "ran"
    assert compare.NOT_RECORDED in found(report, "figures")[0]


def test_moved_images_are_found(submission, run_check):
    """Two images of the test pool that the group put among those it trains on."""
    path = submission / "data" / "pneumonia" / "index.csv"
    index = pd.read_csv(path, dtype=str, keep_default_na=False)
    index.loc[index.index[index["pool"] == "test"][:2], "pool"] = "train"
    index.to_csv(path, index=False)
    status, report, _ = run_check(submission, "--level", "evaluate", "--until", "1")
    assert status == 1 and found(report, "pools")[0].startswith("2 of ")


def test_networks_of_a_group_run_where_they_are_scored_and_the_page_says_so(
    submission, run_check
):
    own = submission / "models" / "baseline_cnn.py"
    own.write_text(own.read_text() + "\n# ours\n")
    # what theme 3 writes of a network that is built from its exercise
    (submission / "my_code.py").write_text("from exercises.theme3 import Block\n")
    status, report, _ = run_check(submission, "--level", "evaluate", "--until", "2")
    assert status == 0
    assert figures(report, "weights") == {"baseline_test_accuracy": "identical"}
    assert (
        "my_code.py, models/baseline_cnn.py are not the kit's and ran"
        in found(report, "weights", "human")[0]
    )


def test_weights_that_cannot_be_scored_say_why(submission, run_check):
    """And not what was printed before: that line is still in a buffer."""
    says = "print('a good start')\nraise ValueError('of ours')\n"
    (submission / "my_code.py").write_text(says)
    status, report, _ = run_check(submission, "--level", "evaluate", "--until", "2")
    assert status == 1
    assert "line 2: ValueError: of ours" in found(report, "weights")[0]


FORGED = """

def _forged(self, *arguments, forward=BaselineCNN.forward):
    return forward(self, *arguments).flip(1)


BaselineCNN.forward = _forged
"""


@pytest.mark.parametrize("forged", [False, True])
def test_networks_that_forge_answers_are_held_against_the_kits(
    submission, run_check, monkeypatch, forged
):
    own = submission / "models" / "baseline_cnn.py"
    own.write_text(own.read_text() + (FORGED if forged else "\n# ours\n"))
    monkeypatch.setattr(reexecute, "rerun", lambda *_, **__: reexecute.Rerun())
    options = ("--level", "full", "--until", "2", "--no-another-seed")
    _, report, _ = run_check(submission, *options)
    told = " ".join(found(report, "weights"))
    assert ("its code changes the answers" in told) is forged
    same = "With the kit's own networks the submitted weights give the same"
    assert (same in " ".join(found(report, "weights", "pass"))) is not forged


def test_the_notebook_that_is_read_is_the_one_that_runs(
    submission, run_check, only_notebooks
):
    """Not one whose name an other rule would choose."""
    replace_theme(submission, 1, "print('read')")
    for name in ("theme01_data_analysis.ipynb", "theme1_data_analysis-Copy1.ipynb"):
        shutil.copy(submission / THEME1, submission / "notebooks" / name)
    _, report, _ = run_check(submission, *ONCE)
    read = Look(open_submission(submission, submission)).places[1]
    assert report["runs"][0]["notebooks"][0]["notebook"] == str(read)


def test_a_fault_of_the_check_itself_has_a_status_of_its_own(
    submission, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(examine, "examine", lambda *arguments: 1 / 0)
    output = ["--output", str(tmp_path / "out")]
    assert cli.main(["check", str(submission), *output]) == 3
    assert "an error of the course kit" in capsys.readouterr().err


def test_reader_that_stops_reading_changes_no_status(submission, tmp_path):
    command = (
        f"{sys.executable} course.py check {submission} --output {tmp_path / 'out'}"
        " 2>&1 | head -n 1 >/dev/null"
    )
    done = subprocess.run(
        ["bash", "-c", command + "; exit ${PIPESTATUS[0]}"],
        cwd=KIT,
        capture_output=True,
    )
    assert done.returncode == 1 and (tmp_path / "out" / "check.html").exists()


def test_weights_of_somebody_else_and_damaged_ones(submission, run_check):
    (submission / "checkpoints" / "baseline.pth").write_bytes(b"no weights")
    status, report, _ = run_check(submission, "--level", "evaluate", "--until", "2")
    assert status == 1 and "baseline could not be scored" in found(report, "weights")[0]
    assert figures(report, "weights") == {"baseline_test_accuracy": "not reproduced"}


def test_real_images_need_a_source_and_one_sentence_says_so(submission, run_check):
    edit_json(
        submission / RECORD, lambda record: record["meta"].update(source="kaggle")
    )
    status, report, _ = run_check(submission, "--level", "full")
    assert status == 0
    assert report["level"] == "static"
    assert report["asked_level"] == "full"
    assert not report["runs"]
    assert (
        "give --source, the folder above chest_xray/"
        in found(report, "level", "human")[0]
    )


def test_record_without_a_story_falls_back_to_the_files(submission, run_check):
    (submission / "exports" / "results.json").unlink()
    (submission / "course.json").unlink()
    status, report, _ = run_check(submission, "--level", "evaluate")
    assert status == 1
    assert report["level"] == "static"
    assert "does not say dataset" in found(report, "level")[0]


STRANGE = [
    {"headline": [], "theme2": [], "theme3": "x", "criteria": [1]},
    {"headline": {"baseline_test_accuracy": "high"}, "theme4": {"models": 3}},
    {"headline": {"baseline_test_accuracy": {"a": 1}}, "theme4": {"tensorrt": []}},
    {"headline": {"loader_speedup": None, "alerts_raised": 10**400}},
    {"theme3": {"ablation": [1], "paired": {"difference": 10**400}, "test": {}}},
    {"theme4": {"benchmark": [{"backend": ["a"], "batch": 1}]}},
]


@pytest.mark.parametrize("sections", STRANGE)
def test_strange_records_never_stop_a_check(submission, run_check, sections):
    edit_json(submission / RECORD, lambda record: record.update(sections))
    status, report, said = run_check(submission, whole=False)
    assert status == 1 and report["findings"] and report["criteria"]
    assert "Traceback" not in said


def test_what_python_caches_is_no_change(submission):
    before = examine.fingerprint(submission)
    (submission / "tools" / "__pycache__").mkdir(parents=True)
    (submission / "tools" / "__pycache__" / "run.pyc").touch()
    assert examine.fingerprint(submission) == before
    (submission / "notes.txt").touch()
    assert examine.fingerprint(submission) != before


def test_wrong_arguments(tmp_path, capsys):
    nowhere, output = str(tmp_path / "nowhere"), tmp_path / "out"
    for wrong in ([], ["x", "--level", "deep"], ["x", "--source", nowhere]):
        with pytest.raises(SystemExit, match="2"):
            check.main(wrong)
    assert cli.main(["check", nowhere, "--output", str(output)]) == 2
    assert "nowhere is missing" in capsys.readouterr().err and not output.exists()


@pytest.mark.slow
def test_whole_course_is_reproduced_to_the_digit(tmp_path, run_check):
    """All notebooks; once from weights, once from nothing, once more
    on another seed.
    """
    folder = project(tmp_path / "class" / "whole", range(1, 9))
    last = max(Look(open_submission(folder, tmp_path)).places)
    run_course(folder, last)
    status, report, _ = run_check(folder, "--level", "full", "--until", str(last))
    assert set(figures(report, "weights").values()) == {"identical"}
    assert len(report["tables"]["weights"]) == 10
    rerun = figures(report, "re-execution")
    assert {rerun[name] for name in rerun if name not in compare.CLOCKED} <= {
        "identical",
        "ratio",
    }
    assert status == 0, report["findings"]


# --------------------------------------------------------------------------------------
# Report
# --------------------------------------------------------------------------------------


def test_foreign_text_is_not_markup(submission, run_check, tmp_path, monkeypatch):
    attack = Finding("record", "human", "<script>alert(1)</script>")
    monkeypatch.setattr(examine.static, "checks", lambda submission: [attack])
    run_check(submission, whole=False)
    page = (tmp_path / "out" / "check.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_exercises_are_judged_by_the_kits_own_check(submission):
    (submission / "exercises" / "__init__.py").write_text(
        "def check(*_):\n    print('right')\n\n\npredict = check\n"
    )
    reexecute._complete(submission)
    assert (submission / "exercises" / "__init__.py").read_bytes() == (
        KIT / "exercises" / "__init__.py"
    ).read_bytes()


def bonuses(submission, work) -> dict[str, dict]:
    rows = verdict.bonuses(open_submission(submission, work))
    return {row["bonus"]: row for row in rows}


def test_bonus_of_the_kit_is_not_the_groups(submission, tmp_path):
    (submission / ".github" / "workflows").mkdir(parents=True)
    shutil.copy(
        KIT / ".github" / "workflows" / "ci.yml",
        submission / ".github" / "workflows" / "ci.yml",
    )
    rows = bonuses(submission, tmp_path)
    assert not any(row["found"] for row in rows.values())
    shutil.copytree(
        KIT / "demo", submission / "demo", ignore=shutil.ignore_patterns("__pycache__")
    )
    # the last two import Gradio and wandb
    for name in (".github/workflows/ci.yml", "demo/app.py", "utils.py"):
        shutil.copy(KIT / name, submission / name)
        with open(submission / name, "a") as file:
            file.write("# an older kit, or an edit: for a person to say\n")
    rows = bonuses(submission, tmp_path)
    assert not any(row["found"] for row in rows.values())
    assert "ci.yml differ from this kit's: look" in rows["CI/CD"]["evidence"]
    assert "demo/app.py differ from this kit's: look" in rows["Demo"]["evidence"]
    (submission / ".github" / "workflows" / "ours.yml").write_text("on: push")
    (submission / "app.py").write_text("import gradio as gr")
    edit_notebook(
        submission,
        2,
        lambda cells: cells.append(nbformat.v4.new_code_cell("x = 1\nimport wandb")),
    )
    rows = bonuses(submission, tmp_path)
    assert rows["CI/CD"]["found"] and "ours.yml" in rows["CI/CD"]["evidence"]
    assert "app.py" in rows["Demo"]["evidence"]
    assert "theme2" in rows["Tracking"]["evidence"]
    assert not rows["TensorRT (+1)"]["found"]
