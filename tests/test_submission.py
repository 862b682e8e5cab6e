"""Submissions of strangers: each flaw gets its finding, and nothing in them runs, leaks
or reaches outside.
"""

import json
import os
import shutil
import socket
import zipfile
from pathlib import Path

import numpy as np
import pypdf
import pytest
from support.submissions import (
    HEADLINE,
    PAGES,
    SECTIONS,
    add_cell,
    code_cells,
    edit_json,
    execute,
    make_answers,
    make_onnx,
    make_report,
    make_submission,
)

import utils
from tools.grading import static, submission
from tools.grading.finding import VERDICTS
from tools.grading.static.files import REQUIRED
from tools.grading.static.notebooks import BOOTSTRAP
from tools.grading.submission import copy_code, open_submission
from tools.shared.foreign import SubmissionError

THEME2 = "notebooks/theme2_baseline_model.ipynb"
RECORD = "exports/results.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_submission(tmp_path_factory.mktemp("whole") / "group-7")


@pytest.fixture
def group(whole, tmp_path) -> Path:
    """A private copy of a faithful submission, to break."""
    return Path(shutil.copytree(whole, tmp_path / "group-7"))


@pytest.fixture
def look(tmp_path):
    """look(path) -> findings, a list of (check, verdict, says and where)."""

    def findings(path: Path) -> list[tuple[str, str, str]]:
        found = static.checks(open_submission(path, tmp_path / "work"))
        ranks = [VERDICTS.index(finding.verdict) for finding in found]
        assert ranks == sorted(ranks, reverse=True)
        return [
            (finding.check, finding.verdict, f"{finding.says} [{finding.where}]")
            for finding in found
        ]

    return findings


def of(found, check, verdict="fail") -> str:
    """What the findings of one check and verdict say, together."""
    return "\n".join(
        says for name, kind, says in found if (name, kind) == (check, verdict)
    )


def zipped(folder: Path, path: Path, inside: str = "project/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            if file.is_file():
                archive.write(file, inside + file.relative_to(folder).as_posix())
    return path


# --------------------------------------------------------------------------------------
# A faithful submission, and one flaw at a time
# --------------------------------------------------------------------------------------


def test_a_faithful_submission_passes_every_check(whole, look):
    found = look(whole)
    assert {verdict for _, verdict, _ in found} == {"pass", "note"}
    assert {check for check, verdict, _ in found if verdict == "pass"} == set(
        static.CHECKS
    ) - {"kit files"}
    assert "8 executed from top to bottom" in of(found, "notebooks", "pass")


def test_story_and_record_are_read(whole, tmp_path):
    opened = open_submission(whole, tmp_path)
    story = {
        "dataset": "pneumonia",
        "source": "sample",
        "profile": "smoke",
        "image_size": 32,
        "seed": 42,
    }
    assert opened.story == story
    assert opened.name == "group-7" and opened.record["headline"] == HEADLINE
    assert Path(RECORD) in opened.files and not any(
        path.is_absolute() for path in opened.files
    )


def wrong_headline(name, value):
    return lambda root: edit_json(
        root / RECORD, lambda record: record["headline"].update({name: value})
    )


def drop(*path):
    def without(record):
        for key in path[:-1]:
            record = record[key]
        del record[path[-1]]

    return lambda root: edit_json(root / RECORD, without)


BROKEN_RECORDS = {
    "no results": (
        lambda root: (root / RECORD).unlink(),
        "There is no record of results",
    ),
    "half-written": (
        lambda root: (root / RECORD).write_text((root / RECORD).read_text()[:500]),
        "is damaged",
    ),
    "not UTF-8": (
        lambda root: (root / RECORD).write_bytes(b"\xff\xfe{}"),
        "is damaged",
    ),
    "another schema": (
        lambda root: edit_json(root / RECORD, lambda r: r.update(schema=99)),
        "has schema 99",
    ),
    "a list": (lambda root: (root / RECORD).write_text("[]"), "is not a record"),
    "deep": (
        lambda root: (root / RECORD).write_text('{"a":' * 10_000 + "1" + "}" * 10_000),
        "nested too deep",
    ),
    "huge": (
        lambda root: os.truncate(root / RECORD, 60 << 20),
        "60 MiB and was not read",
    ),
    "accuracy above 1": (
        wrong_headline("baseline_test_accuracy", 78.7),
        "78.7, outside 0 to 1",
    ),
    "accuracy as text": (wrong_headline("baseline_test_accuracy", "0.9"), "no number"),
    "null": (wrong_headline("optimized_test_auroc", None), "no number"),
    "NaN": (wrong_headline("optimized_test_auroc", float("nan")), "no number"),
    "beyond floats": (
        wrong_headline("optimized_test_auroc", 10**400),
        "outside 0 to 1",
    ),
    "true": (wrong_headline("ort_speedup_b1", True), "no number"),
    "speedup of 0": (wrong_headline("ort_speedup_b1", 0), "above 0"),
    "gate as number": (wrong_headline("gate_passed", 1), "neither true nor false"),
    "no headline": (
        lambda root: edit_json(root / RECORD, lambda r: r.update(headline={})),
        "that no theme recorded",
    ),
    "unknown figure": (
        wrong_headline("marks", 20),
        "a figure that the course does not know",
    ),
    "no theme 5": (drop("theme5"), "No results of themes 5"),
    "no seed": (drop("meta", "seed"), "lacks a valid seed"),
    "two stories": (
        lambda root: edit_json(root / "course.json", lambda c: c.update(seed=7)),
        "differ in seed",
    ),
}


@pytest.mark.parametrize("name", BROKEN_RECORDS)
def test_a_broken_record_is_named_and_the_rest_is_still_checked(name, group, look):
    spoil, words = BROKEN_RECORDS[name]
    spoil(group)
    found = look(group)
    assert words in of(found, "record") and str(group) not in of(found, "record")
    assert "8 executed" in of(found, "notebooks", "pass")
    assert not any("broke off" in says for _, _, says in found)


def measure(**sections):
    """Change sections of the record."""
    return lambda record: [
        record[name].update(values) for name, values in sections.items()
    ]


GATE = {
    "passed": True,
    "checks": [{"name": []}, 3, {"name": "latency", "passed": True}],
}
CONTRADICTED = {
    "a section": (
        measure(theme7={"gate": {"passed": False}}),
        "headline gate_passed is True, and False by section th",
    ),
    "the gate images": (
        measure(
            theme7={
                "on_gate": [
                    {"model": "candidate", "images": "drifted", "accuracy": 0.5}
                ]
            }
        ),
        "headline drift_accuracy_after is 0.75, and 0.5 by section theme7",
    ),
    "a benchmark": (
        measure(
            theme4={
                "benchmark": [
                    {"backend": "ONNX Runtime int8", "batch": 1, "speedup": 9.0}
                ]
            }
        ),
        "headline int8_speedup_b1 is 0.75, and 9.0 by the benchmark",
    ),
    "a criterion": (
        lambda record: record["criteria"].update(
            theme1=[
                {
                    "name": "optimised loader, speedup over naive",
                    "value": 3.0,
                    "target": "> 1",
                    "passed": True,
                }
            ]
        ),
        "headline loader_speedup is 12.0, and 3.0 by the criteria of theme1",
    ),
    "its own checks": (
        measure(
            theme7={"gate": GATE | {"checks": [*GATE["checks"], {"passed": False}]}}
        ),
        "the gate of theme7 passed, with 1 of its 3 checks failed",
    ),
    "its own target": (
        lambda record: record["criteria"].update(
            theme2=[
                {"name": "accuracy", "value": 0.6, "target": "> 0.7", "passed": True}
            ]
        ),
        "criterion accuracy of theme2: 0.6, target > 0.7, passed = True",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTED)
def test_headline_that_the_record_itself_contradicts(name, group, look):
    change, words = CONTRADICTED[name]
    edit_json(group / RECORD, change)
    assert words in of(look(group), "record")


def test_honest_records_that_a_group_has_changed_are_no_contradiction(group, look):
    """Rounded by hand, with a row of one's own, a target that was rounded, odd rows."""

    def change(record):
        record["headline"].update(
            onnx_max_abs_diff=3e-7, ort_speedup_b1=4.346, drift_accuracy_after=0.8049
        )
        record["theme4"].update(
            agreement=[
                {"max_abs_diff": 3e-7},
                {"network": "int8", "max_abs_diff": 0.02},
                None,
            ],
            benchmark=[
                {"backend": "ONNX Runtime fp32", "batch": 1, "speedup": 4.34567}
            ],
        )
        record["theme7"].update(
            gate=GATE,
            on_gate=[{"model": "candidate", "images": "drifted", "accuracy": 0.80487}],
        )
        record["criteria"].update(
            theme7=[
                {
                    "name": "accuracy lost",
                    "value": 0.41105,
                    "target": "< 0.4111",
                    "passed": True,
                },
                {"name": "mine", "value": [1], "target": "> x", "passed": True},
            ]
        )

    edit_json(group / RECORD, change)
    found = look(group)
    assert not of(found, "record") and "they agree" in of(found, "record", "pass")


@pytest.mark.parametrize(
    "right, told",
    [(3, ""), (2, "0.75, and 0.5 by exports/predictions/baseline_test.npz")],
)
def test_headline_that_the_stored_answers_contradict(right, told, group, look):
    make_answers(group, "baseline_test", right)
    found = look(group)
    assert told in of(found, "record") and bool(told) == bool(of(found, "record"))


def test_figures_without_their_answers_are_for_a_person(group, look):
    (group / "exports" / "predictions" / "optimized_test.npz").unlink()
    says = of(look(group), "record", "human")
    assert (
        "Without whole exports/predictions/ of optimized_test nothing shows"
        " optimized_test_accuracy" in says
    )


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", "wide", "objects", "bomb"])
def test_stored_answers_that_are_none_break_no_check(content, group, look):
    path = group / "exports" / "predictions" / "baseline_test.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("probabilities.npy", b"\0" * (65 << 20))
    else:
        wrong = np.array([{}]) if content == "objects" else np.full((8, 2), np.nan)
        np.savez(
            path, probabilities=wrong, labels=np.arange(len(wrong)), allow_pickle=True
        )
    found = look(group)
    assert not any("broke off" in says for _, _, says in found) and not of(
        found, "record"
    )
    assert "of baseline_test nothing shows" in of(found, "record", "human")


def test_missing_headline_figures_and_failed_criteria_are_told(group, look):
    drop("headline", "int8_speedup_b1")(group)
    row = {"name": "CNN baseline", "value": 0.6, "target": "> 0.7", "passed": False}
    edit_json(group / RECORD, lambda record: record["criteria"].update(theme2=[row]))
    found = look(group)
    assert "int8_speedup_b1" in of(found, "record", "human")
    assert "7 of 8 recorded criteria are met; not met: theme2: CNN baseline" in of(
        found, "record", "note"
    )


def test_record_in_a_home_of_its_own_is_found(group, look):
    (group / "my-run").mkdir()
    for name in ("exports", "checkpoints", "course.json"):
        shutil.move(group / name, group / "my-run" / name)
    assert "pack --home my-run" in of(look(group), "record")


def set_source(number, text):
    """Replace the source of a theme's cell number `number`, counted from the end."""
    return lambda notebook: code_cells(notebook)[number].update(source=text)


def executed_in_place(root: Path, change=None) -> Path:
    path = root / THEME2
    execute(path, path)
    if change:
        edit_json(path, change)
    return path


def counts(**by_position):
    return lambda notebook: [
        code_cells(notebook)[int(n[1:])].update(execution_count=c)
        for n, c in by_position.items()
    ]


ERROR = {
    "output_type": "error",
    "ename": "ValueError",
    "evalue": "the dog ate it",
    "traceback": [],
}
NOTEBOOKS = {
    "out of order": (counts(_5=3), "fail", "ran as [3], the one above as [5]"),
    "twice the same": (counts(_5=5), "fail", "ran as [5], the one above as [5]"),
    "not fresh": (
        lambda book: [
            cell.update(execution_count=cell["execution_count"] + 4)
            for cell in code_cells(book)
        ],
        "human",
        "not in one go",
    ),
    "a gap": (
        lambda book: code_cells(book)[-1].update(execution_count=99),
        "human",
        "(this cell is [99])",
    ),
    "not run": (counts(_5=None), "human", "Cells that were not run: 1,"),
    "an error": (
        lambda book: code_cells(book)[4].update(outputs=[ERROR]),
        "fail",
        "ValueError: the dog ate it",
    ),
}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_execution_out_of_order(name, group, look):
    change, verdict, words = NOTEBOOKS[name]
    executed_in_place(group, change)
    says = of(look(group), "notebooks", verdict)
    assert words in says and f"{THEME2}, cell " in says


def test_notebook_executed_in_place_passes_and_empty_cells_count_for_nothing(
    group, look
):
    path = executed_in_place(group)
    edit_json(
        path,
        lambda book: book["cells"].insert(
            3,
            {
                "cell_type": "code",
                "source": [],
                "outputs": [],
                "execution_count": None,
                "metadata": {},
            },
        ),
    )
    assert "8 executed" in of(look(group), "notebooks", "pass")


def test_runners_parameters_cell_belongs_to_no_one(group, look):
    path = group / "exports" / THEME2
    cell = {
        "cell_type": "code",
        "source": 'HOME = "/home/me"\nSEED = 42',
        "outputs": [],
        "execution_count": None,
        "metadata": {"tags": ["injected-parameters"]},
    }
    edit_json(path, lambda book: book["cells"].insert(3, cell))
    execute(path, path)
    found = look(group)
    assert "8 executed" in of(found, "notebooks", "pass") and not of(
        found, "absolute paths"
    )


def test_executed_copy_may_have_the_bootstrap_of_an_older_kit(group, look):
    def older(notebook):
        cell = code_cells(notebook)[0]
        assert "".join(cell["source"]).startswith(BOOTSTRAP)
        cell["source"] = BOOTSTRAP + ": older\nimport sys"

    edit_json(group / "exports/notebooks" / Path(THEME2).name, older)
    assert "of other code" not in of(look(group), "notebooks", "human")


def test_executed_copy_of_other_code_is_told(group, look):
    edit_json(group / THEME2, set_source(-1, "x = 1"))
    assert "of other code (differing cells: 1)" in of(look(group), "notebooks", "human")


def test_clean_without_executed_copy_is_noted(group, look):
    (group / "exports" / THEME2).unlink()
    assert "Themes 2: clean" in of(look(group), "notebooks", "note")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"{ not json", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b'{"worksheets": []}', "format 4"),
        (b'{"cells": [1, 2]}', "format 4"),
        (b"[" * 10_000 + b"]" * 10_000, "nested too deep"),
        (b"", "not valid JSON"),
    ],
)
def test_notebook_that_is_none(content, words, group, look):
    (group / THEME2).write_bytes(content)
    assert words in of(look(group), "notebooks")


@pytest.mark.parametrize(
    "cell",
    [
        {"source": {"a": 1}},
        {"source": None},
        {"outputs": 3},
        {"metadata": 1},
        {"execution_count": "x"},
        {"outputs": [1, {"data": 3, "text": {"a": 2}}]},
    ],
)
def test_odd_cells_break_no_check(cell, group, look):
    edit_json(
        group / THEME2, lambda book: book["cells"].append({"cell_type": "code"} | cell)
    )
    assert not any("broke off" in says for _, _, says in look(group))


def test_huge_notebook_is_named_and_not_read(group, look):
    os.truncate(group / THEME2, 60 << 20)
    assert f"{THEME2} has 60 MiB and was not read" in of(look(group), "notebooks")


@pytest.mark.parametrize("path", ["notebooks/theme3_optimization.ipynb", *REQUIRED])
def test_missing_files_are_named(path, group, look):
    (group / path).unlink()
    says = of(look(group), "required files")
    assert (
        "Theme 3 is missing" in says
        if path.endswith(".ipynb")
        else f"{path} is missing" in says
    )


def test_empty_file_is_not_handed_in(group, look):
    (group / "checkpoints/best_model.pth").write_bytes(b"")
    assert "best_model.pth is empty" in of(look(group), "required files")


# --------------------------------------------------------------------------------------
# Environment and seeds
# --------------------------------------------------------------------------------------


def test_import_that_no_requirement_covers(group, look):
    add_cell(group, "import numpy as np\nimport seaborn as sns\nfrom cv2 import imread")
    (group / "extra.py").write_text(
        "import os\nimport utils\n\n\ndef f():\n    import seaborn.objects\n"
    )
    add_cell(
        group,
        "import extra, yaml, sklearn.svm, PIL.Image, IPython\nfrom google.colab import"
        " files",
    )
    says = of(look(group), "environment")
    assert (
        "seaborn is imported (and 1 more times) and not in requirements.txt" in says
        and "extra.py" not in says
    )
    assert (
        "opencv-python is imported" in says
        and f"{THEME2}, cell" in says
        and "line 2" in says
    )
    assert says.count("\n") == 1  # and nothing else


def test_import_that_may_fail_is_noted(group, look):
    add_cell(group, "try:\n    import seaborn\nexcept ImportError:\n    seaborn = None")
    found = look(group)
    assert "seaborn is used if it is there" in of(
        found, "environment", "note"
    ) and not of(found, "environment")


@pytest.mark.parametrize(
    "line",
    [
        "!pip install -q seaborn==0.13",
        "%pip install seaborn",
        "if 1:\n    !pip install seaborn",
    ],
    ids=["shell", "magic", "indented"],
)
def test_package_installed_by_a_cell_is_noted(line, group, look):
    add_cell(group, f"{line}\nimport seaborn\nx = !ls\nseaborn?")
    found = look(group)
    assert "seaborn is installed by a cell" in of(
        found, "environment", "note"
    ) and not of(found, "environment")


def test_cells_of_other_languages_and_syntax_errors(group, look):
    add_cell(group, "%%bash\nls | grep x")
    add_cell(group, "%%time\nimport seaborn")
    add_cell(group, "def f(:\n")
    add_cell(group, "-" * 90_000 + "1")
    add_cell(group, "!ls\n" * 600)
    found = look(group)
    assert of(found, "notebooks", "human").count("does not parse as Python") == 3
    assert "seaborn is imported" in of(found, "environment")


def test_nothing_pinned(group, look):
    (group / "constraints.txt").unlink()
    assert "Nothing is pinned" in of(look(group), "environment", "note")
    (group / "exports" / "environment.txt").unlink()
    assert "No version is pinned" in of(look(group), "environment")
    (group / "requirements.txt").write_text(
        "numpy==2\n# why\n-r other.txt\nnot a requirement !!\n"
    )
    assert "requirements.txt, line 4" in of(look(group), "environment")


def test_seeds(group, look):
    parameters = "SEED = 7\nSOURCE = HOME = None"
    number = next(
        n
        for n, cell in enumerate(code_cells(json.loads((group / THEME2).read_text())))
        if "parameters" in cell["metadata"].get("tags", [])
    )
    edit_json(group / THEME2, set_source(number, parameters))
    assert "SEED is 7 here and 42 in the record" in of(look(group), "seeds")
    edit_json(group / THEME2, set_source(number, "pass"))
    assert "not through SEED" in of(look(group), "seeds", "human")
    edit_json(
        group / THEME2,
        lambda book: [cell.update(source="pass") for cell in code_cells(book)],
    )
    assert "Theme 2 fixes no seed" in of(look(group), "seeds")


def test_seed_given_by_the_runner_counts(group, look):
    edit_json(group / RECORD, lambda record: record["meta"].update(seed=7))
    assert of(look(group), "seeds").count("SEED is 42 here and 7") == 8
    for path in (group / "exports/notebooks").iterdir():
        cell = {
            "cell_type": "code",
            "source": "SEED = 7",
            "metadata": {"tags": ["injected-parameters"]},
        }
        edit_json(path, lambda book, cell=cell: book["cells"].insert(3, cell))
        execute(path, path)
    assert not of(look(group), "seeds")


# --------------------------------------------------------------------------------------
# Secrets and paths
# --------------------------------------------------------------------------------------

# Put together here, so that no scanner takes this file for a leak.
HEX = "0123456789abcdef"
LEAKS = {
    "Kaggle key": '{"username":"bob","key":"' + HEX * 2 + '"}',
    "Kaggle key, Python": 'os.environ["KAGGLE_KEY"] = "' + HEX * 2 + '"',
    "Kaggle token": "KGAT" + "_" + HEX * 2,
    "GitHub token": "gh" + "p_" + "a1B2" * 9,
    "new GitHub token": "github" + "_pat_" + "a1B2" * 9,
    "Hugging Face": "h" + "f_" + "aBcD" * 9,
    "OpenAI": "s" + "k-" + "proj-" + "a1B2c3" * 6,
    "AWS": "AK" + "IA" + "ABCD1234EFGH5678",
    "Google": "AI" + "za" + "B1" * 17 + "c",
    "wandb": 'wandb.login(key="' + HEX * 2 + HEX[:8] + '")',
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "generic": 'api_key = "' + "q7Zq" * 6 + '"',
}


@pytest.mark.parametrize("name", LEAKS)
def test_leaked_secret_is_found_in_code_and_shown_masked(name, group, look):
    (group / "notes.md").write_text(f"first\n{LEAKS[name]}\n")
    says = of(look(group), "secrets")
    assert "[notes.md, line 2]" in says and "revoke it" in says
    for secret in (HEX * 2, LEAKS[name][-20:-1], LEAKS[name][-20:]):
        assert secret not in says


def test_secret_that_no_page_shows(group, look):
    key = {"username": "somebody", "key": HEX * 2}

    def hide(notebook):
        notebook["metadata"]["kaggle"] = key
        code_cells(notebook)[0]["outputs"] = [
            {
                "output_type": "display_data",
                "metadata": {},
                "data": {"application/json": key},
            }
        ]

    edit_json(group / THEME2, hide)
    (group / "notes.txt").write_bytes(f'key = "{HEX * 2}"'.encode("utf-16"))
    says = of(look(group), "secrets")
    assert (
        "metadata, attachments or data" in says
        and "notes.txt" in says
        and HEX * 2 not in says
    )


def test_secret_inside_an_archive(group, look):
    with zipfile.ZipFile(group / "old.zip", "w") as archive:
        archive.writestr("v1/config.py", f'KAGGLE_KEY = "{HEX * 2}"')
        archive.writestr("v1/kaggle.json", "{}")
    (group / "older.rar").write_bytes(b"Rar!")
    found = look(group)
    says = of(found, "secrets")
    assert (
        "old.zip, v1/config.py, line 1" in says
        and "old.zip, v1/kaggle.json" in says
        and HEX * 2 not in says
    )
    assert "older.rar" in of(found, "secrets", "human") and "old.zip" not in of(
        found, "secrets", "human"
    )


@pytest.mark.parametrize(
    "name, content", [("words.txt", b"a" * (9 << 20)), ("inner.zip", b"PK")]
)
def test_archive_that_cannot_be_searched_whole_is_named(name, content, group, look):
    with zipfile.ZipFile(group / "old.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    assert "old.zip" in of(look(group), "secrets", "human")


def test_secret_in_cells_outputs_and_files(group, look):
    output = {"output_type": "stream", "name": "stdout", "text": ["ok\n", LEAKS["AWS"]]}
    pictures = {
        "image/png": LEAKS["Google"],
        "text/html": "data:image/png;base64," + LEAKS["AWS"],
    }
    picture = {"output_type": "display_data", "data": pictures}
    add_cell(group, "x = 1", outputs=[output])
    add_cell(group, "token = 1", theme="theme4_onnx_deployment", outputs=[picture])
    (group / "kaggle.json").write_text("{}")
    (group / ".env").write_text("A=1")
    says = of(look(group), "secrets")
    assert "theme2_baseline_model.ipynb, cell" in says and ", output]" in says
    assert "kaggle.json holds credentials" in says and ".env holds credentials" in says
    assert "theme4" not in says


@pytest.mark.parametrize(
    "text",
    [
        'api_key = "YOUR_API_KEY_GOES_HERE_1"',
        'password = os.environ["COURSE_PASSWORD"]',
        "class sk-toggleable__control-hidden--visually",
        '"sha256": "' + HEX * 4 + '"',
        '"key": ["d35bc3ea5bbf"]',
        "the key: " + HEX * 2,
    ],
)
def test_what_is_no_secret(text, group, look):
    (group / "notes.md").write_text(text)
    assert not of(look(group), "secrets")


def test_absolute_paths(group, look):
    add_cell(
        group,
        '"""A docstring may say /home/you."""\nx = open("/home/alice/x.csv")\ny ='
        ' "C:\\\\Users\\\\bob"\nz = f"/Users/{x}/a"\nw = f"/Users/alice/{x}"\n#'
        " /home/comment\n%cd /content/project\n!ls /home/alice/d\nu ="
        ' "https://x.org/home/y"',
    )
    add_cell(
        group,
        'drive.mount("/content/drive")\np = "/content/course-kit/x"\nq ='
        ' "/content/drive/MyDrive/me"',
    )
    (group / "extra.py").write_text(
        'def f():\n    """Reads /home/you."""\n    return "/root/data"\n'
    )
    found = look(group)
    says = of(found, "absolute paths")
    for words in (
        "/home/alice/x.csv exists",
        "C:\\Users",
        "/Users/alice/ exists",
        "/content/project",
        "/home/alice/d",
        "extra.py, line 3",
        "one person's Drive",
    ):
        assert words in says + of(found, "absolute paths", "human")
    assert len(says.splitlines()) == 6 and "exists on Colab only" in of(
        found, "absolute paths", "human"
    )


def test_tests_of_another_version_of_the_kit_may_name_paths(group, look):
    (group / "tests").mkdir()
    for name in ("test_setup.py", "test_of_our_own.py"):
        (group / "tests" / name).write_text('PATH = "/home/alice/x"\n')
    says = of(look(group), "absolute paths")
    assert "test_of_our_own.py" in says and "test_setup.py" not in says


def test_folder_of_images_in_the_parameters_is_a_note(group, look):
    for folder in ("notebooks", "exports/notebooks"):
        edit_json(
            group / folder / Path(THEME2).name,
            lambda book: [
                cell.update(
                    source='SEED = 42\nSOURCE = "/home/alice/data"\nHOME = None'
                )
                for cell in code_cells(book)
                if "parameters" in cell["metadata"].get("tags", [])
            ],
        )
    found = look(group)
    assert "/home/alice/data" in of(found, "absolute paths", "note") and not of(
        found, "absolute paths"
    )


# --------------------------------------------------------------------------------------
# Artefacts
# --------------------------------------------------------------------------------------


def test_model_whose_bytes_changed(group, look):
    stored = next((group / "exports/models").glob("*.onnx"))
    stored.write_bytes(stored.read_bytes() + b" ")
    says = of(look(group), "artefacts")
    assert "must be its name" in says and stored.name in says


def test_model_in_service_of_unknown_origin(group, look):
    other = make_onnx(group, "baseline", doc="another")
    shutil.move(other, group / "exports/model.onnx")
    says = of(look(group), "artefacts")
    assert "none of exports/models/" in says and "model.onnx is another" in says


def test_model_of_a_checkpoint_that_is_not_there_and_of_another_story(group, look):
    (group / "checkpoints/best_model.pth").write_bytes(b"retouched")
    assert "from a checkpoint that is not handed in" in of(look(group), "artefacts")
    edit_json(group / RECORD, lambda record: record["meta"].update(dataset="solar"))
    assert "Its dataset is pneumonia, the record's solar" in of(
        look(group), "artefacts"
    )


def test_model_that_is_none(group, look):
    (group / "exports/model.onnx").write_bytes(b"\x0a\xff\xff\xff\xff not protobuf")
    assert "This is no ONNX model" in of(look(group), "artefacts")


def test_sections_measured_on_other_files(group, look):
    (group / "checkpoints/baseline.pth").write_bytes(b"other")
    (group / "data/pneumonia/index.csv").unlink()
    found = look(group)
    assert "theme3 is stale: checkpoints/baseline.pth has changed" in of(
        found, "artefacts"
    )
    assert "index.csv, which is not handed in" in of(found, "artefacts", "human")


def test_no_file_outside_the_submission_is_hashed(group, look, monkeypatch):
    hashed, checksum = [], utils.hash_file
    monkeypatch.setattr(
        utils, "hash_file", lambda path: hashed.append(Path(path)) or checksum(path)
    )
    names = {"/etc/hostname": "0", "../outside.txt": "0", "/dev/zero": "0"}
    edit_json(
        group / RECORD,
        lambda record: record.update(theme2={"inputs": names}, theme5={"inputs": [1]}),
    )
    assert "../outside.txt, which is not handed in" in of(
        look(group), "artefacts", "human"
    )
    assert all(path.resolve().is_relative_to(group) for path in hashed)


def test_damaged_audit_log(group, look):
    (group / "exports/audit.csv").write_text("nonsense\n")
    assert "audit log cannot be read" in of(look(group), "artefacts", "human")


# --------------------------------------------------------------------------------------
# Report
# --------------------------------------------------------------------------------------

FRENCH = (
    "Résumé exécutif",
    "1. Introduction",
    "2 Thème 1 : Analyse des données",
    "Thème 2 – Modèle",
    "THÈME 3",
    "Theme 4",
    "Thème 5",
    "Thème 6",
    "Thème 7",
    "VIII. Thème 8",
    "Conclusion",
    "Références",
)


def test_french_headings_pass(group, look):
    make_report(group / "report/report.pdf", FRENCH)
    assert "twelve sections are there" in of(look(group), "report", "pass")


def test_short_report_with_a_section_missing_is_for_a_person(group, look):
    make_report(group / "report/report.pdf", SECTIONS[:9] + SECTIONS[10:], [1] * 11)
    found = look(group)
    says = of(found, "report", "human")
    assert (
        "has 11 pages: the course asks for 40 to 100" in says
        and "No heading was found for Theme 8" in says
    )
    assert "Theme 3: Optimization 1 (asked: 7–10)" in of(
        found, "report", "note"
    ) and not of(found, "report")


def test_sections_out_of_order(group, look):
    make_report(
        group / "report/report.pdf",
        (*SECTIONS[:3], SECTIONS[4], SECTIONS[3], *SECTIONS[5:]),
    )
    assert "not in the order" in of(look(group), "report", "human")


def test_report_of_another_program_has_its_headings_read_from_the_pages(group, look):
    """A PDF without outline, with a table of contents and a conclusion
    inside a theme.
    """
    from matplotlib import pyplot as plt
    from matplotlib.backends.backend_pdf import PdfPages

    texts = ["\n".join(SECTIONS)] + [
        f"{n}. {title}\ntext\n" for n, title in enumerate(SECTIONS, 1)
    ]
    shutil.rmtree(group / "report")
    with PdfPages(group / "rapport.pdf") as pdf:
        for text in texts:
            figure = plt.figure(figsize=(4, 4))
            figure.text(0.1, 0.1, text)
            pdf.savefig(figure)
            plt.close(figure)
    found = look(group)
    assert "twelve sections are there" in of(
        found, "report", "pass"
    ) and "13 pages" in of(found, "report", "human")
    assert "Theme 1: Data Analysis 1 (asked: 5–8)" in of(found, "report", "note")


def test_pdf_that_cannot_be_read(group, look):
    path = group / "report/report.pdf"
    whole = path.read_bytes()
    for content in (b"%PDF-1.7 nothing", b"", b"\0" * 1000, whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert "PDF cannot be read" in of(look(group), "report")
    make_report(path, password="secret")
    assert "asks for a password" in of(look(group), "report")
    path.unlink()
    assert "There is no report" in of(look(group), "report")


def test_draft_is_a_finding_and_no_failure(group, look):
    told = {
        "pages": sum(PAGES),
        "placeholders": ["sections/03.typ:4"],
        "errors": ["x"],
        "draft": True,
    }
    (group / "report/report.json").write_text(json.dumps(told))
    found = look(group)
    assert "Still a draft, with 1 placeholders left" in of(found, "report", "human")
    assert "1 sections have Typst errors" in of(found, "report", "human") and not of(
        found, "report"
    )
    (group / "report/report.json").write_text(json.dumps({"pages": 3, "draft": False}))
    assert "belongs to another PDF" in of(look(group), "report", "note")


def test_pages_are_not_counted_without_pypdf(group, look, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pypdf", None)
    assert "pip install pypdf" in of(look(group), "report", "human")


# --------------------------------------------------------------------------------------
# What the group changed; size
# --------------------------------------------------------------------------------------


def test_changes_against_the_kit_are_counted(group, look):
    with open(group / "models/baseline_cnn.py", "a") as file:
        file.write("\nONE = 1\nTWO = 2\n")
    (group / "mine.py").write_text("x = 1\n\ny = 2\n")
    add_cell(group, "answer = 42")
    says = of(look(group), "kit files", "note")
    assert "lines added 3, removed 0. [models/baseline_cnn.py]" in says
    assert (
        "New, lines: 2. [mine.py]" in says
        and f"lines added 1, removed 0. [{THEME2}]" in says
    )


def test_another_version_of_the_kit_is_one_note_and_no_undeclared_import(group, look):
    for name in ("tools/notebooks/run.py", "tools/handin/pack.py", "utils.py"):
        with open(group / name, "a") as file:
            file.write("\nimport tensorrt\n" if name == "utils.py" else "\nOLDER = 1\n")
    found = look(group)
    assert "2 files of tools/, tests/ or benchmarks/ differ" in of(
        found, "kit files", "note"
    )
    assert not of(found, "environment")  # the kit's own utils.py imports it, too


def test_two_gigabytes_of_junk_are_weighed_and_never_read(group, look, tmp_path):
    (group / "old").mkdir()
    (group / "old/backup.bin").touch()
    os.truncate(group / "old/backup.bin", 2 << 30)
    (group / "old/log.txt").touch()
    os.truncate(group / "old/log.txt", 1 << 30)
    found = look(group)
    assert "old/backup.bin (2,048.0 MiB)" in of(found, "size", "human")
    assert "too large to search for secrets" in of(found, "secrets", "note")
    said = copy_code(open_submission(group, tmp_path), tmp_path / "copy")
    assert (
        not (tmp_path / "copy/old").exists()
        and "old/backup.bin" in said[-1].says + said[0].says
    )


def test_pixel_data_is_noted(group, look):
    (group / "data/raw/train").mkdir(parents=True)
    for number in range(3):
        (group / f"data/raw/train/{number}.jpeg").write_bytes(b"x" * 1000)
    assert "3 files of pixel data" in of(look(group), "size", "note")


# --------------------------------------------------------------------------------------
# Opening: zips, links, names
# --------------------------------------------------------------------------------------


def test_a_zip_is_a_submission(whole, look, tmp_path):
    path = zipped(whole, tmp_path / "groupe 7.zip")
    assert {verdict for _, verdict, _ in look(path)} == {"pass", "note"}
    (tmp_path / "delivered").mkdir()
    shutil.move(path, tmp_path / "delivered")  # as a learning platform does
    assert {verdict for _, verdict, _ in look(tmp_path / "delivered")} == {
        "pass",
        "note",
    }


def test_windows_zip_with_backslashes(whole, tmp_path):
    path = zipped(whole, tmp_path / "a.zip", "a\\b\\")
    opened = open_submission(path, tmp_path / "work")
    assert opened.root.name == "b" and Path(RECORD) in opened.files


@pytest.mark.parametrize(
    "name",
    ["../evil.py", "/tmp/evil.py", "a/../../evil.py", "C:\\evil.py", "..\\evil.py"],
)
def test_zip_that_reaches_outside_is_refused_whole(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notebooks/theme1.ipynb", "{}")
        archive.writestr(zipfile.ZipInfo(name), "print(1)")
    with pytest.raises(SubmissionError, match="outside its own folder"):
        open_submission(tmp_path / "a.zip", tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == [] and not list(
        tmp_path.rglob("evil*")
    )


def test_link_inside_a_zip_is_named_and_not_made(whole, tmp_path):
    path = zipped(whole, tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("project/secret")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    opened = open_submission(path, tmp_path / "work")
    assert (
        not list((tmp_path / "work").rglob("secret"))
        and "link inside the zip" in opened.findings[0].says
    )


def test_bombs_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("utils.py", "w") as file,
    ):
        for _ in range(300):
            file.write(bytes(1 << 20))
    with pytest.raises(SubmissionError, match="300 MiB, 1,0.. times its own size"):
        open_submission(path, tmp_path / "work")
    monkeypatch.setattr(submission, "MAX_FILES", 2)
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(4):
            archive.writestr(f"{number}.py", "")
    with pytest.raises(SubmissionError, match="holds 4 files"):
        open_submission(tmp_path / "many.zip", tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


def test_zip_that_lies_about_its_size_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("utils.py", b"a" * 100_000)
    content = (
        (tmp_path / "a.zip")
        .read_bytes()
        .replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    )
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(SubmissionError, match="cannot be unpacked"):
        open_submission(tmp_path / "a.zip", tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


def test_damaged_encrypted_and_other_files_are_refused(whole, tmp_path):
    path = zipped(whole, tmp_path / "a.zip")
    content = path.read_bytes()
    encrypted = bytearray(content)
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[content.index(mark) + place] |= 1
    middle = len(content) // 2
    damaged = (
        content[:middle]
        + bytes(b ^ 255 for b in content[middle : middle + 500])
        + content[middle + 500 :]
    )
    cases = (
        ("cut", content[:-500], "neither a folder nor a whole zip"),
        ("none", b"hello", "neither"),
        ("locked", bytes(encrypted), "encrypted"),
        ("damaged", damaged, "cannot be unpacked"),
    )
    for name, bad, words in cases:
        (tmp_path / f"{name}.zip").write_bytes(bad)
        with pytest.raises(SubmissionError, match=words):
            open_submission(tmp_path / f"{name}.zip", tmp_path / "work")
    with pytest.raises(SubmissionError, match="is missing"):
        open_submission(tmp_path / "nowhere", tmp_path / "work")


def test_name_twice_in_a_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("utils.py", "a")
        with pytest.warns(UserWarning):
            archive.writestr("utils.py", "b")
    with pytest.raises(SubmissionError, match="cannot be unpacked"):
        open_submission(tmp_path / "a.zip", tmp_path / "work")


def test_not_a_submission_at_all(tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_bytes(b"x")
    with pytest.raises(
        SubmissionError, match="holds neither notebooks/ nor utils.py.*course.py pack"
    ):
        open_submission(tmp_path / "holiday", tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_project_is_found_two_folders_down(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "a/b/c")
    assert open_submission(tmp_path / "a", tmp_path / "work").root == tmp_path / "a/b/c"


def test_links_and_special_files_are_named_and_never_opened(group, look, tmp_path):
    (tmp_path / "outside.txt").write_text("precious")
    (group / "loop").symlink_to(group)
    (group / "away.py").symlink_to(tmp_path / "outside.txt")
    (group / "notebooks/extra.ipynb").symlink_to("/etc/passwd")
    (group / ".venv").symlink_to("/usr")
    (group / "exports/results.json").unlink()
    (group / "exports/results.json").symlink_to(tmp_path / "outside.txt")
    os.mkfifo(group / "pipe.py")
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(group)  # the name of a socket is short
    server.bind("s.py")
    os.chdir(here)
    found = look(group)
    server.close()
    says = of(found, "files", "human")
    for name in (
        "loop",
        "away.py",
        "extra.ipynb",
        "pipe.py",
        "s.py",
        "exports/results.json",
    ):
        assert f"{name}]" in says
    assert "There is no record" in of(found, "record") and "precious" not in str(found)
    assert not copy_code(open_submission(group, tmp_path / "work"), tmp_path / "copy")
    assert (
        not (tmp_path / "copy/away.py").exists()
        and not (tmp_path / "copy/loop").exists()
    )


def test_names_that_are_no_utf8_are_shown(group, look, tmp_path):
    odd = os.fsdecode(b"caf\xe9 \x1b[31m.py")
    (group / odd).write_text("import seaborn\nx = '/home/alice/b'\n")
    found = look(group)
    says = "\n".join(f"{parts}" for parts in found)
    says.encode("utf-8")  # printing never raises
    assert "caf\\udce9 \\x1b[31m.py, line 1" in of(found, "environment")
    assert "\x1b" not in "".join(words for _, _, words in found)
    copy_code(open_submission(group, tmp_path / "work"), tmp_path / "copy")
    assert (tmp_path / "copy" / odd).exists()


def test_unreadable_files_are_named(group, look, monkeypatch):
    opened = os.open

    def refusing(path, *arguments, **options):
        if str(path).endswith(
            ("theme2_baseline_model.ipynb", "sample_data.py", "results.json")
        ):
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    found = look(group)
    assert "cannot be read (Permission denied)" in of(found, "notebooks")
    assert "sample_data.py cannot be read" in of(found, "required files", "human")
    assert "results.json cannot be read" in of(found, "record")


def test_too_many_files_are_capped_and_shallow_ones_come_first(
    group, look, monkeypatch
):
    (group / "aaa/deep").mkdir(parents=True)
    for number in range(200):
        (group / f"aaa/deep/{number}").touch()
    monkeypatch.setattr(submission, "MAX_FOLDER", 100)
    assert "200 files in one folder: only the first 100" in of(
        look(group), "files", "human"
    )
    monkeypatch.setattr(submission, "MAX_FILES", 80)
    found = look(group)
    assert "More than 80 files" in of(found, "files", "human") and not of(
        found, "required files"
    )


def test_folders_nested_too_deep_end_the_walk(group, look):
    (group / Path(*"d" * 60)).mkdir(parents=True)
    assert "Folders nested too deep" in of(look(group), "files", "human")


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(
    whole, look, monkeypatch
):
    def broken(look):
        raise RuntimeError("surprise")

    monkeypatch.setitem(static.CHECKS, "report", broken)
    found = look(whole)
    assert "broke off (RuntimeError: surprise)" in of(found, "report", "human")
    assert of(found, "notebooks", "pass") and of(found, "size", "pass")


def test_copy_holds_code_and_nothing_that_could_load(group, tmp_path):
    (group / "cached.csv").write_text("1")
    (group / "src/data").mkdir(parents=True)
    (group / "src/data/loader.py").write_text("")
    (group / "big.json").touch()
    os.truncate(group / "big.json", 21 << 20)
    (group / "figures.json").write_bytes(b" " * (300 << 10))
    (group / "check-group-7").mkdir()
    (group / "check-group-7/check.md").write_text("checked before")
    said = copy_code(open_submission(group, tmp_path / "work"), tmp_path / "copy")
    copied = {path.as_posix() for path in submission.list_files(tmp_path / "copy")[0]}
    assert {
        "utils.py",
        THEME2,
        "models/baseline_cnn.py",
        "requirements.txt",
        "src/data/loader.py",
    } <= copied
    assert not {name.partition("/")[0] for name in copied} & {
        "exports",
        "checkpoints",
        "data",
        "logs",
        "runs",
    }
    assert (
        not {
            "course.json",
            "cached.csv",
            "big.json",
            "figures.json",
            "check-group-7/check.md",
        }
        & copied
    )
    says = " ".join(finding.says for finding in said)
    assert (
        "big.json has 21 MiB" in says
        and "cached.csv" in says
        and "figures.json has 0.293 MiB" in says
    )
    assert "check-group-7" not in says


@pytest.mark.parametrize(
    "path, code, artefact",
    [
        ("notebooks/a.ipynb", True, False),
        ("exports/notebooks/a.ipynb", False, True),
        ("data/loader.py", True, False),
        ("checkpoints/best.pth", False, True),
        ("course.json", False, True),
        ("sub/.venv/x.py", False, False),
        ("data/pneumonia/index.csv", False, True),
        ("data/raw/x.jpeg", False, False),
        ("report/a.typ", True, False),
        ("my-run/exports/results.json", False, False),
        ("x.zip", False, False),
        ("Makefile", True, False),
    ],
)
def test_what_is_what(path, code, artefact):
    assert (submission.is_code(Path(path)), submission.is_artefact(Path(path))) == (
        code,
        artefact,
    )


def test_real_pdf_reader_is_the_judge(whole):
    assert len(pypdf.PdfReader(whole / "report/report.pdf").pages) == sum(PAGES)
