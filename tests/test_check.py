"""course.py check: every kind of submission gets its verdict and status, and stays as
it was handed in.

The submissions are made from the kit: an honest run of themes 1 and 2 on the smoke
profile, and copies that cheat."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import nbformat
import pandas as pd
import pytest

import utils
from tools.grading import (
    attempt,
    check,
    compare,
    examine,
    reexecute,
    sandbox,
    verdict,
)
from tools.grading.finding import Finding
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
# one process makes it, for all of them
pytestmark = pytest.mark.xdist_group("submission")
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
    command = [
        sys.executable,
        "course.py",
        "run",
        "--source",
        "sample",
        "--profile",
        "smoke",
        "--until",
        str(last),
    ]
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


def edit_record(folder: Path, change) -> None:
    path = folder / "exports" / "results.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


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


def rows_of(output: Path) -> dict[str, dict]:
    """The summary of a class."""
    return {
        row["submission"]: row
        for row in json.loads((output / "summary.json").read_text())["rows"]
    }


def figures(report: dict, by: str) -> dict[str, str]:
    return {row["figure"]: row["verdict"] for row in report["tables"][by]}


# --------------------------------------------------------------------------------------
# Submissions
# --------------------------------------------------------------------------------------


def test_faithful_submission_is_reproduced_to_the_digit(submission, run_check):
    status, report, out = run_check(
        submission, "--level", "full", "--until", "2", "--no-another-seed"
    )
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
    assert (
        "Nothing in the re-execution contradicts it" in out
        and out.rstrip().endswith("check.html")
    )


def test_the_page_says_what_was_found_and_awards_no_points(
    submission, run_check, tmp_path
):
    _, report, _ = run_check(submission, whole=False)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*check.REPORT}
    page = (tmp_path / "out" / "check.html").read_text()
    for words in (
        report["verdict"],
        "awards no points and is no grade",
        "Theme 3 is missing",
        "TensorRT",
        "Tracking",
    ):
        assert words in page
    assert [row["of"] for row in report["criteria"]] == [4, 6, 5, 3, 2]
    assert all(row["questions"] for row in report["criteria"])
    assert len(report["bonuses"]) == 4
    assert "http" not in page.replace("http-equiv", "")  # opens anywhere, asks nobody


def test_help_is_short_and_points_to_the_page_that_says_the_rest(capsys):
    assert check.main(["--help"]) == 0
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
    edit_record(
        submission,
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
    edit_record(
        submission, lambda record: record["headline"].update(loader_speedup=13.7)
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
        cell = next(cell for cell in cells if '"baseline_test_accuracy"' in cell.source)
        cell.source = cell.source.replace(
            'metrics.loc["accuracy", "value"]', "0.8125", 1
        )

    edit_notebook(submission, 2, cheat)
    edit_record(
        submission,
        lambda record: record["headline"].update(baseline_test_accuracy=0.8125),
    )
    status, report, _ = run_check(submission, "--level", "full", "--until", "2")
    assert (
        status == 1
        and figures(report, "re-execution")["baseline_test_accuracy"] == "identical"
    )
    assert [says.split()[0] for says in found(report, "hard-coded figures")] == [
        "baseline_test_accuracy"
    ]


def test_notebook_that_hangs_is_named_with_its_cell_and_the_rest_goes_on(
    submission, run_check, only_notebooks
):
    replace_theme(submission, 1, "x = 1", "import time\nwhile True:\n    time.sleep(1)")
    status, report, _ = run_check(
        submission,
        "--level",
        "full",
        "--until",
        "2",
        "--notebook-limit",
        "6",
        "--no-another-seed",
    )
    first, second = report["runs"][0]["notebooks"]
    assert (
        status == 1
        and first["status"] == "stopped"
        and "6 s were over" in first["says"]
    )
    assert "cell 3 (import time)" in first["says"] and 6 <= first["seconds"] < 20
    assert second["status"] == "skipped" and "index.csv is missing" in second["says"]
    assert set(figures(report, "re-execution").values()) == {"not reproduced"}
    told = found(report, "figures", "human")
    assert (
        len(told) == 2
        and "yet whether these hold: loader_speedup (theme 1 was stopped" in told[1]
    )


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
    _, report, _ = run_check(
        submission, "--level", "full", "--until", "1", "--no-another-seed"
    )
    assert (canary / "file").read_text() == "alive" and (
        KIT / "models" / "baseline_cnn.py"
    ).exists()
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
    status, report, _ = run_check(
        submission, "--level", "full", "--until", "1", "--no-another-seed"
    )
    assert status == 1
    assert "Theme 1 failed in cell 2" in found(report, "re-execution")[0]
    assert found(report, "re-execution")[0].endswith("RuntimeError: saw [].")


def test_report_says_when_nothing_could_be_closed(
    submission, run_check, only_notebooks, monkeypatch
):
    monkeypatch.setattr(sandbox, "best_layer", lambda: "plain")
    replace_theme(submission, 1, "x = 1")
    _, report, out = run_check(
        submission, "--level", "full", "--until", "1", "--no-another-seed"
    )
    assert (
        report["containment"] == "plain"
        and "NOT CLOSED" in report["notes"][0]
        and "NOT CLOSED" in out
    )
    assert report["runs"][0]["notebooks"][0]["status"] == "ran"
    assert compare.NOT_RECORDED in found(report, "figures")[0]


def test_missing_theme_is_named(submission, run_check):
    next((submission / "notebooks").glob("theme2_*.ipynb")).unlink()
    status, report, _ = run_check(submission, whole=False)
    assert status == 1 and any(
        "Theme 2 is missing" in says for says in found(report, "required files")
    )
    project_found = reexecute.notebooks(submission)
    assert list(project_found) == [1]


def test_leaked_key_and_undeclared_package_and_disorder_are_found(
    submission, run_check
):
    (submission / "kaggle.json").write_text(
        '{"username": "team", "key": "' + "0123456789abcdef" * 2 + '"}'
    )

    def spoil(cells):
        cells[-1:] = [
            nbformat.v4.new_code_cell("import imaginarylib"),
            nbformat.v4.new_code_cell("1 + 1"),
        ]
        code = [
            cell for cell in cells if cell.cell_type == "code" and cell.source.strip()
        ]
        for number, cell in enumerate(code):
            cell.execution_count = len(code) - number

    edit_notebook(submission, 2, spoil)
    status, report, _ = run_check(submission, whole=False)
    assert status == 1
    assert found(report, "secrets") and "0123456789abcdef" not in json.dumps(report)
    assert any("imaginarylib" in says for says in found(report, "environment"))
    assert found(report, "notebooks") + found(report, "notebooks", "human")


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
    status, report, _ = run_check(submission, "--level", "evaluate", "--until", "2")
    assert status == 0 and figures(report, "weights") == {
        "baseline_test_accuracy": "identical"
    }
    assert (
        "models/baseline_cnn.py is not the kit's and ran"
        in found(report, "weights", "human")[0]
    )


def test_a_fault_of_the_check_itself_has_a_status_of_its_own(
    submission, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(check, "examine", lambda *arguments: 1 / 0)
    assert check.main([str(submission), "--output", str(tmp_path / "out")]) == 3
    assert "says nothing of the submission" in capsys.readouterr().out


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
    edit_record(submission, lambda record: record["meta"].update(source="kaggle"))
    status, report, _ = run_check(submission, "--level", "full")
    assert (
        status == 0
        and report["level"] == "static"
        and report["asked_level"] == "full"
        and not report["runs"]
    )
    assert (
        "give --source, the folder above chest_xray/"
        in found(report, "level", "human")[0]
    )


def test_record_without_a_story_falls_back_to_the_files(submission, run_check):
    (submission / "exports" / "results.json").unlink()
    (submission / "course.json").unlink()
    status, report, _ = run_check(submission, "--level", "evaluate")
    assert (
        status == 1
        and report["level"] == "static"
        and "does not say dataset" in found(report, "level")[0]
    )


@pytest.mark.parametrize(
    "headline",
    [
        [],
        {"baseline_test_accuracy": "high"},
        {"baseline_test_accuracy": {"a": 1}},
        {"loader_speedup": None},
    ],
)
def test_strange_records_never_stop_a_check(submission, run_check, headline):
    edit_record(
        submission,
        lambda record: record.update(
            headline=headline,
            theme2=[],
            theme3="x",
            theme4={"models": 3, "tensorrt": []},
            criteria=[1],
        ),
    )
    status, report, _ = run_check(submission, whole=False)
    assert status in (0, 1) and report["criteria"]


STRANGE = (
    (
        "theme3",
        {"ablation": [1], "paired": {"difference": 10**400, "p_value": 0}, "test": {}},
    ),
    ("theme4", {"benchmark": [{"backend": ["a"], "batch": 1}]}),
    ("headline", {"alerts_raised": 10**400}),
)


@pytest.mark.parametrize("section, values", STRANGE)
def test_shapes_that_no_criterion_expects_are_a_finding(
    submission, run_check, section, values
):
    edit_record(submission, lambda record: record.update({section: values}))
    status, report, said = run_check(submission, whole=False)
    assert status == 1 and report["findings"] and "Traceback" not in said


def test_what_python_caches_is_no_change(submission):
    before = examine.fingerprint(submission)
    (submission / "tools" / "__pycache__").mkdir(parents=True)
    (submission / "tools" / "__pycache__" / "run.pyc").touch()
    assert examine.fingerprint(submission) == before
    (submission / "notes.txt").touch()
    assert examine.fingerprint(submission) != before


def test_figure_that_its_notebook_never_recorded_is_a_fault():
    row = row_of("baseline_test_accuracy", 0.8, None)
    assert (
        row["says"] == compare.NOT_RECORDED
        and compare.findings_of([row], False)[0].verdict == "fail"
    )


def test_all_of_a_class_with_one_broken_zip(submission, tmp_path, capsys):
    for name in ("other", "third"):
        with zipfile.ZipFile(submission.parent / f"{name}.zip", "w") as file:
            for path in submission.rglob("*"):
                file.write(path, Path("project") / path.relative_to(submission))
    whole = (submission.parent / "third.zip").read_bytes()
    (submission.parent / "third.zip").write_bytes(whole[: len(whole) // 2])
    (submission.parent / "late.rar").write_bytes(b"Rar!")
    (submission.parent / "link").symlink_to(tmp_path)
    assert (
        check.main(["--all", str(submission.parent), "--output", str(tmp_path / "out")])
        == 1
    )
    rows = rows_of(tmp_path / "out")
    assert {name: row["status"] for name, row in rows.items()} == {
        "other.zip": 1,
        "team": 1,
        "third.zip": 2,
        "late.rar": 2,
        "link": 2,
    }
    assert "neither a folder nor a zip" in rows["late.rar"]["verdict"]
    assert (
        "Could not be opened" in rows["third.zip"]["verdict"]
        and (tmp_path / "out" / "other" / "check.html").exists()
    )
    assert list(rows)[2] == "third.zip" and "third.zip" in capsys.readouterr().out
    assert "team/check.html" in (tmp_path / "out" / "summary.html").read_text()


def test_a_class_of_nothing_and_wrong_arguments(tmp_path, capsys):
    assert check.main(["--all", str(tmp_path)]) == 2
    assert check.main([]) == 2 and check.main([str(tmp_path), "--level", "deep"]) == 2
    assert (
        check.main([str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]) == 2
    )
    assert (
        "nowhere is missing" in capsys.readouterr().out
        and not (tmp_path / "out").exists()
    )
    assert check.main([str(tmp_path), "--source", str(tmp_path / "nowhere")]) == 2
    assert (
        check.main([str(tmp_path), "--jobs", "2"]) == 2
        and "give --all DIR" in capsys.readouterr().err
    )
    for address in ("tcp://127.0.0.1:8786", ""):
        assert (
            check.main(["--all", str(tmp_path), "--jobs", "2", "--cluster", address])
            == 2
        )


@pytest.mark.parametrize(
    ("level", "cores", "gpu", "jobs"),
    [
        ("static", 4, False, 4),
        ("static", 64, True, 5),
        ("full", 9, False, 4),
        ("full", 1, False, 1),
        ("evaluate", 8, True, 1),
    ],
)
def test_as_many_at_a_time_as_the_machine_has_room_for(
    monkeypatch, level, cores, gpu, jobs
):
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False
    )
    monkeypatch.setattr(utils.torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(check.cluster, "is_installed", lambda: True)
    assert (
        check._at_a_time(check.parse(["--all", ".", "--level", level]), submissions=5)
        == jobs
    )
    assert (
        check._at_a_time(
            check.parse(["--all", ".", "--level", level, "--jobs", "3"]), submissions=5
        )
        == 3
    )


def test_a_class_goes_one_after_the_other_where_dask_is_not_installed(
    tmp_path, monkeypatch, attempts, hand_in, capsys
):
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.setattr(
        os, "sched_getaffinity", lambda pid: set(range(4)), raising=False
    )
    assert check.main(hand_in("first", "second")[:-2]) == 0 and attempts.checked == [
        "first",
        "second",
    ]
    said = capsys.readouterr().out
    assert (
        "One submission after the other: Dask, with which 2 are checked at a time, is"
        " not installed (run" in said
    )
    assert "make scale" in said


@pytest.mark.parametrize(
    "asked", [("--jobs", "2"), ("--cluster", "tcp://127.0.0.1:8786")]
)
def test_a_class_on_dask_where_it_is_not_installed(
    tmp_path, monkeypatch, capsys, asked
):
    monkeypatch.setitem(sys.modules, "distributed", None)
    (tmp_path / "class" / "team").mkdir(parents=True)
    kept = tmp_path / "out" / "team" / "check.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("of an earlier check")
    assert (
        check.main(
            [
                "--all",
                str(tmp_path / "class"),
                *asked,
                "--output",
                str(tmp_path / "out"),
            ]
        )
        == 2
    )
    said = capsys.readouterr().out
    assert (
        "--jobs and --cluster need Dask" in said
        and "make scale" in said
        and "Traceback" not in said
    )
    assert kept.read_text() == "of an earlier check"


class Attempts:
    """In the place of a check: every submission is well, but for those that are ill, or
    at which somebody stops.
    """

    def __init__(self):
        self.checked, self.ill, self.interrupted = [], {"ill"}, ""

    def __call__(self, job: attempt.Job) -> attempt.Outcome:
        self.checked.append(job.name)
        if job.name == self.interrupted:
            raise KeyboardInterrupt
        folder = Path(job.root) / job.name
        folder.mkdir()
        report = {
            "schema": 1,
            "level": "static",
            "status": 0,
            "verdict": "well",
            "seconds": 1.5,
            "tables": {},
            "findings": [],
            "of": Path(job.arguments[0]).name,
        }
        for name in check.REPORT:
            (folder / name).write_text(json.dumps(report))
        return attempt.Outcome(
            3 if job.name in self.ill else 0, "fell ill", 2.0, job.name
        )


@pytest.fixture
def attempts(monkeypatch) -> Attempts:
    monkeypatch.setattr(attempt, "attempt", Attempts())
    return attempt.attempt


@pytest.fixture
def hand_in(tmp_path):
    """hand_in(*names) puts a folder, or what is called a zip, into a class for each;
    the command that checks it.
    """

    def put(*names: str) -> list[str]:
        for name in names:
            path = tmp_path / "class" / name
            (path.parent if path.suffix == ".zip" else path).mkdir(
                parents=True, exist_ok=True
            )
            (path if path.suffix == ".zip" else path / "utils.py").touch()
        return [
            "--all",
            str(tmp_path / "class"),
            "--output",
            str(tmp_path / "out"),
            "--jobs",
            "1",
        ]

    return put


def test_only_what_is_missing_or_has_changed_is_checked_again(
    tmp_path, attempts, hand_in, capsys
):
    command, checked = hand_in("ill", "same", "team"), attempts.checked
    attempts.interrupted = "team"
    assert (
        check.main(command) == 3
        and "Stopped by hand. The same command with --missing"
        in capsys.readouterr().out
    )
    rows = rows_of(tmp_path / "out")
    assert (
        rows["same"]["verdict"] == "well"
        and rows["team"]["verdict"] == "Not checked: the class was stopped"
    )
    attempts.interrupted = ""
    assert check.main([*command, "--missing"]) == 3 and checked[3:] == ["ill", "team"]
    checked.clear()
    time.sleep(0.05)  # more than a tick of the clock of files
    old = tmp_path / "class" / "team" / "old.py"
    old.touch()
    os.utime(old, (0, 0))  # as unzipped: its own time is long ago, that it came is not
    assert check.main([*command, "--missing"]) == 3 and checked == ["ill", "team"]
    rows = rows_of(tmp_path / "out")
    assert [rows[name]["seconds"] for name in ("ill", "same", "team")] == [
        2.0,
        1.5,
        2.0,
    ]
    assert check.main([*command, "--missing", "--level", "full"]) == 3 and checked[
        2:
    ] == ["ill", "same", "team"]
    assert not (tmp_path / "out" / "ill" / "check.json").exists()
    assert not [
        path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")
    ]


def test_a_check_anew_that_is_stopped_or_fails_leaves_no_old_report(
    tmp_path, attempts, hand_in
):
    command = hand_in("first", "second", "third")
    assert check.main(command) == 0
    attempts.ill, attempts.interrupted = {"first"}, "second"
    assert check.main(command) == 3
    assert [path.name for path in (tmp_path / "out").rglob("check.*")] == []
    verdicts = {
        name: row["verdict"].split(":")[0]
        for name, row in rows_of(tmp_path / "out").items()
    }
    assert verdicts == {
        "first": "The check itself failed",
        "second": "Not checked",
        "third": "Not checked",
    }
    attempts.checked.clear()
    attempts.ill, attempts.interrupted = set(), ""
    assert check.main([*command, "--missing"]) == 0 and attempts.checked == [
        "first",
        "second",
        "third",
    ]


def test_every_submission_has_a_report_of_its_own(tmp_path, attempts, hand_in):
    """Whatever they are called: not even the summary loses its place."""
    command = hand_in("a", "a.zip", "a-2", "a b", "a_b.zip", "check-us.zip", "check-a")
    assert check.main(hand_in("summary.json.zip", "summary.md")) == 0
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 9
    for name, row in rows.items():
        assert (
            json.loads(
                (tmp_path / "out" / row["report"]).with_suffix(".json").read_text()
            )["of"]
            == name
        )
    places = {name: row["report"].split("/")[0] for name, row in rows.items()}
    assert (places["a"], places["a-2"], places["a.zip"], places["check-us.zip"]) == (
        "a",
        "a-2",
        "a.zip",
        "check-us",
    )
    attempts.checked.clear()
    # who was there before is not checked again
    hand_in("a-3", "b", "b.zip", "summary.html.zip")
    assert check.main([*command, "--missing"]) == 0
    assert sorted(attempts.checked) == ["a-3", "b", "b.zip", "summary.html.zip"]


def test_reports_among_the_submissions_are_left_out_aloud(
    tmp_path, attempts, hand_in, capsys
):
    hand_in("team")
    (tmp_path / "class" / "check-team").mkdir()
    (tmp_path / "class" / "check-team" / "check.json").write_text("{}")
    assert check.main(hand_in("check-in")) == 0 and attempts.checked == [
        "check-in",
        "team",
    ]
    assert "Left out, as they hold reports: check-team." in capsys.readouterr().out


@pytest.mark.parametrize(
    "odd",
    [
        "",
        "[]",
        '{"level": "static"}',
        '{"schema": 1, "level": "static", "status": "x"}',
        '{"schema": 1, "level": "static", "status": 0, "tables": []}',
    ],
)
def test_odd_reports_are_none(tmp_path, attempts, hand_in, odd):
    command = [*hand_in("other", "team"), "--missing"]
    assert check.main(command) == 0
    (tmp_path / "out" / "team" / "check.json").write_text(odd)
    attempts.checked.clear()
    assert check.main(command) == 0 and attempts.checked == ["team"]
    assert rows_of(tmp_path / "out")["team"]["verdict"] == "well"


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_file_in_the_place_of_a_report_is_a_row(
    tmp_path, attempts, hand_in, monkeypatch, capsys, when
):
    """It stands there before the class is checked, and the check is spared; or it comes
    meanwhile.
    """
    command, kept = hand_in("other", "team"), tmp_path / "out" / "team"

    def place(*_):
        kept.parent.mkdir(exist_ok=True)
        kept.write_text("somebody's")

    if when == "before":
        place()
    else:
        monkeypatch.setattr(attempt, "attempt", lambda job: (place(), attempts(job))[1])
    assert check.main(command) == 3
    rows, said = rows_of(tmp_path / "out"), capsys.readouterr()
    assert rows["other"]["verdict"] == "well" and kept.read_text() == "somebody's"
    assert (
        f"The check itself failed: its report cannot be put into {kept}"
        in rows["team"]["verdict"]
    )
    assert attempts.checked == (["other"] if when == "before" else ["other", "team"])
    assert "Traceback" not in said.out + said.err


def test_ctrl_c_before_the_first_result_is_a_sentence(
    tmp_path, hand_in, attempts, monkeypatch, capsys
):
    command = hand_in("team")
    assert check.main(command) == 0
    before = (tmp_path / "out" / "team" / "check.json").read_text()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(check.cluster, "packages", stop)
    assert check.main([*command, "--jobs", "2"]) == 3
    assert capsys.readouterr().out.endswith(
        "Stopped by hand. Reports of earlier checks are as they were.\n"
    )
    assert (tmp_path / "out" / "team" / "check.json").read_text() == before
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_check_ends_with_the_process_that_began_it(submission, tmp_path):
    """Killed as it may be; what it left behind goes with the next class."""
    command = [
        sys.executable,
        "-m",
        "tools.grading.check",
        "--all",
        str(submission.parent),
        "--output",
        str(tmp_path / "out"),
    ]
    parent = subprocess.Popen(
        [*command, "--jobs", "1"],
        cwd=KIT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")

    def command_of(pid: str) -> bytes:
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:  # it has ended
            return b""

    while not (
        checks := [
            pid for pid in children.read_text().split() if b"--bound" in command_of(pid)
        ]
    ):
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while command_of(checks[0]):
        assert time.monotonic() < deadline, "the check goes on"
        time.sleep(0.05)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [
        f".attempts.{utils.HOST}-{parent.pid}.tmp"
    ]
    verdict.write_summary({"rows": [], "seconds": 0}, tmp_path / "out")
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {
        ".json",
        ".html",
    }


def test_a_check_ends_when_its_class_is_over_or_takes_too_long(tmp_path):
    (tmp_path / "root").mkdir()
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    assert attempt._run(sleeping, os.environ, tmp_path / "root", 0) == (
        3,
        "the check took more than 0 s",
    )
    assert attempt._run(sleeping, os.environ, tmp_path / "gone", 600)[0] < 0


def test_a_check_that_crashes_or_hangs_is_a_row(tmp_path):
    row = check._row(
        tmp_path / "team", tmp_path / "none", -11, "Segmentation fault", 3.0
    )
    assert (
        row["status"] == 3
        and "The check itself failed: Segmentation fault" in row["verdict"]
    )


@pytest.mark.slow
def test_whole_course_is_reproduced_to_the_digit(tmp_path, run_check):
    """All notebooks; once from weights, once from nothing, once more
    on another seed.
    """
    folder = project(tmp_path / "class" / "whole", range(1, 9))
    last = max(reexecute.notebooks(folder))
    run_course(folder, last)
    status, report, _ = run_check(folder, "--level", "full", "--until", str(last))
    assert (
        set(figures(report, "weights").values()) == {"identical"}
        and len(report["tables"]["weights"]) == 10
    )
    rerun = figures(report, "re-execution")
    assert {rerun[name] for name in rerun if name not in compare.CLOCKED} <= {
        "identical",
        "ratio",
    }
    assert status == 0, report["findings"]


# --------------------------------------------------------------------------------------
# Figures
# --------------------------------------------------------------------------------------


def row_of(name, theirs, ours, same=False, by="re-execution", images=None) -> dict:
    return compare.compare(
        {name: theirs}, {name: ours}, [name], by, same, images or {}, {}
    )[0]


@pytest.mark.parametrize(
    ("name", "theirs", "ours", "same", "expected"),
    [
        ("baseline_test_accuracy", 0.8, 0.8, True, "identical"),
        ("baseline_test_accuracy", 0.8, 0.81, True, "differs"),
        ("baseline_test_accuracy", 0.8, 0.81, False, "within tolerance"),
        ("baseline_test_accuracy", 0.8, 0.9, False, "differs"),
        ("baseline_test_accuracy", None, 0.9, False, "not submitted"),
        ("baseline_test_accuracy", 0.8, None, False, "not reproduced"),
        ("baseline_test_accuracy", "0.8", 0.8, False, "differs"),
        ("baseline_test_accuracy", float("nan"), 0.8, False, "differs"),
        ("train_seconds_baseline", 10.0, 90.0, True, "ratio"),
        ("train_seconds_baseline", 0, 90.0, True, "differs"),
        (
            "provider",
            "CPUExecutionProvider",
            "CUDAExecutionProvider",
            False,
            "within tolerance",
        ),
        ("provider", "CPUExecutionProvider", "CUDAExecutionProvider", True, "differs"),
        ("gate_passed", True, False, False, "differs"),
        ("gate_passed", 1, True, True, "differs"),
        ("alerts_raised", 7, 8, True, "within tolerance"),
        ("alerts_raised", 7, 12, True, "differs"),
    ],
)
def test_verdict_of_a_figure(name, theirs, ours, same, expected):
    assert row_of(name, theirs, ours, same)["verdict"] == expected


def test_tolerance_is_never_below_two_images():
    assert (
        row_of(
            "baseline_test_accuracy", 0.50, 0.59, images={"baseline_test_accuracy": 22}
        )["tolerance"]
        > 2 / 22
    )
    scored = row_of(
        "baseline_test_accuracy",
        0.5,
        0.51,
        by="weights",
        images={"baseline_test_accuracy": 5000},
    )
    assert scored["verdict"] == "differs" and scored["tolerance"] == 0.005
    record = {
        "theme2": {"test": {"accuracy": {"n": 22}}},
        "theme3": [],
        "theme4": {"int8_paired": {"n": 30}},
    }
    counts = compare.number_of_images(record)
    assert counts == {"baseline_test_accuracy": 22, "int8_accuracy_drop": 30}


def test_what_is_a_finding():
    def verdicts(*arguments, **options):
        row = row_of(*arguments, **options)
        return [
            finding.verdict
            for finding in compare.findings_of([row], options.get("same", False))
        ]

    # slow, never wrong
    assert verdicts("train_seconds_baseline", 10.0, 90.0) == ["note"]
    assert verdicts("train_seconds_baseline", 10.0, 12.0) == []
    # no clock says that twice
    assert verdicts("train_seconds_baseline", 10.0, 10.0) == ["fail"]
    assert verdicts("gate_passed", True, False) == ["human"]
    assert verdicts("gate_passed", True, False, same=True) == ["fail"]
    assert verdicts("baseline_test_accuracy", 0.8, 0.95) == ["fail"]
    assert verdicts("baseline_test_accuracy", 0.8, None) == ["fail"]


def test_figures_that_must_move():
    theirs = {
        "baseline_test_accuracy": 0.8125,
        "optimized_test_accuracy": 1.0,
        "int8_accuracy_drop": 0.25,
        "provider": "cpu",
        "gate_passed": True,
        "loader_speedup": 13.7,
        "alerts_raised": 7,
    }
    assert compare.unmoved(theirs, dict(theirs), theirs) == [
        "baseline_test_accuracy",
        "loader_speedup",
    ]
    assert compare.unmoved(theirs, theirs | {"loader_speedup": 13.7000001}, theirs) == [
        "baseline_test_accuracy"
    ]
    assert compare.unmoved(theirs, {}, theirs) == []


def test_every_headline_figure_has_its_tolerance():
    assert set(compare.TOLERANCES) == set(utils.HEADLINE_TAGS)
    assert all(figure.why for figure in compare.TOLERANCES.values())


def test_machine_of_a_record():
    meta = {
        "hardware": "A, 2 threads",
        "environment": {"torch": "2.15.0", "date": "then", "system": "x"},
    }
    record = {"meta": meta, "theme3": {"on": "A, 2 threads"}}
    assert (
        compare.differences(
            record, "A, 2 threads", {"torch": "2.15.0", "date": "now", "system": "y"}
        )
        == []
    )
    assert compare.differences(record, "A, 2 threads", {"torch": "2.16.0"}) == [
        "torch: 2.15.0 there, 2.16.0 here"
    ]
    assert compare.differences({}, "A", {}) and compare.differences(record, None, {})
    record["theme3"]["on"] = "Tesla T4"  # trained there, opened here for theme 8
    assert compare.differences(record, "A, 2 threads", {}) == [
        "training of theme3: Tesla T4 there, A, 2 threads here"
    ]
    assert (
        reexecute.threads_of({"meta": meta}) == 2
        and reexecute.threads_of({"meta": {"hardware": 3}}) == 2
    )
    assert reexecute.threads_of({"meta": {"hardware": "A, 1 thread"}}) == 1


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


def test_bonus_of_the_kit_is_not_the_groups(submission, tmp_path):
    (submission / ".github" / "workflows").mkdir(parents=True)
    shutil.copy(
        KIT / ".github" / "workflows" / "ci.yml",
        submission / ".github" / "workflows" / "ci.yml",
    )
    rows = {
        row["bonus"]: row
        for row in verdict.bonuses(open_submission(submission, tmp_path))
    }
    assert not any(row["found"] for row in rows.values())
    shutil.copytree(
        KIT / "demo", submission / "demo", ignore=shutil.ignore_patterns("__pycache__")
    )
    # the last two import Gradio and wandb
    for name in (".github/workflows/ci.yml", "demo/app.py", "utils.py"):
        shutil.copy(KIT / name, submission / name)
        with open(submission / name, "a") as file:
            file.write("# an older kit, or an edit: for a person to say\n")
    rows = {
        row["bonus"]: row
        for row in verdict.bonuses(open_submission(submission, tmp_path))
    }
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
    rows = {
        row["bonus"]: row
        for row in verdict.bonuses(open_submission(submission, tmp_path))
    }
    assert rows["CI/CD"]["found"] and "ours.yml" in rows["CI/CD"]["evidence"]
    assert (
        "app.py" in rows["Demo"]["evidence"]
        and "theme2" in rows["Tracking"]["evidence"]
    )
    assert not rows["TensorRT (+1)"]["found"]
