"""Submissions of strangers: each flaw gets its finding, and nothing in them runs, leaks
or reaches outside.
"""

import json
import os
import shutil
import socket
import sys
import zipfile
from pathlib import Path

import numpy as np
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
    zipped,
)

import utils
from tools.grading import static, submission
from tools.grading.finding import VERDICTS
from tools.grading.static import look as looking
from tools.grading.static import requirements
from tools.grading.static.files import REQUIRED
from tools.grading.static.notebooks import BOOTSTRAP
from tools.grading.submission import copy_code, open_submission
from tools.shared.foreign import SubmissionError

THEME2 = "notebooks/theme2_baseline_model.ipynb"
COPY2 = "exports/" + THEME2
RECORD = "exports/results.json"


@pytest.fixture
def look(tmp_path):
    """look(path, check) -> what opening and one check find, as (check, verdict, says
    and where); all checks without one.
    """

    def findings(path: Path, check: str = "") -> list[tuple[str, str, str]]:
        opened = open_submission(path, tmp_path / "work")
        if check in static.CHECKS:
            found = [*opened.findings, *static.CHECKS[check](looking.Look(opened))]
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


def of(found, check, verdict="fail") -> str:
    """What the findings of one check and verdict say, together."""
    return "\n".join(
        says for name, kind, says in found if (name, kind) == (check, verdict)
    )


# --------------------------------------------------------------------------------------
# Ways to damage a submission: each returns a function of its folder
# --------------------------------------------------------------------------------------


def put(path, content=b""):
    def damage(root):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        text = content.encode() if isinstance(content, str) else content
        (root / path).write_bytes(text)

    return damage


def remove(path):
    return lambda root: (root / path).unlink()


def huge(path, mib=60):
    def damage(root):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
        os.truncate(root / path, mib << 20)

    return damage


def recorded(change):
    return lambda root: edit_json(root / RECORD, change)


def headline(name, value):
    return recorded(lambda record: record["headline"].update({name: value}))


def measured(**sections):
    """Change sections of the record."""
    return recorded(
        lambda record: [record[name].update(new) for name, new in sections.items()]
    )


def criterion(theme, name, value, target, passed=True):
    row = {"name": name, "value": value, "target": target, "passed": passed}
    return recorded(lambda record: record["criteria"].update({theme: [row]}))


def cell(source, **more):
    return lambda root: add_cell(root, source, **more)


def notebook(change, path=THEME2):
    return lambda root: edit_json(root / path, change)


def set_source(number, text):
    """Replace the source of a theme's code cell."""
    return notebook(lambda book: code_cells(book)[number].update(source=text))


def numbered(**by_position):
    """Executed in place, with other numbers at some cells."""

    def change(book):
        for position, count in by_position.items():
            code_cells(book)[int(position[1:])].update(execution_count=count)

    return both(in_place, notebook(change))


def in_place(root):
    execute(root / THEME2, root / THEME2)


def both(*damages):
    return lambda root: [damage(root) for damage in damages]


def parameters(text):
    """Another cell of parameters, in the notebook and in its executed copy."""

    def change(book):
        for each in code_cells(book):
            if "parameters" in each["metadata"].get("tags", []):
                each.update(source=text)

    return both(notebook(change), notebook(change, COPY2))


def injected(text):
    one = {"cell_type": "code", "source": text, "outputs": [], "execution_count": None}
    one["metadata"] = {"tags": ["injected-parameters"]}

    def damage(root):
        for path in (root / "exports/notebooks").iterdir():
            edit_json(path, lambda book: book["cells"].insert(3, one))
            execute(path, path)

    return damage


def deep(root):
    (root / RECORD).write_text('{"a":' * 10_000 + "1" + "}" * 10_000)


def half(root):
    (root / RECORD).write_text((root / RECORD).read_text()[:500])


def own_home(root):
    (root / "my-run").mkdir()
    for name in ("exports", "checkpoints", "course.json"):
        shutil.move(root / name, root / "my-run" / name)


def changed_model(root):
    stored = next((root / "exports/models").glob("*.onnx"))
    stored.write_bytes(stored.read_bytes() + b" ")


def other_model(root):
    other = make_onnx(root, "baseline", doc="another")
    shutil.move(other, root / "exports/model.onnx")


def odd_answers(root):
    wrong = np.full((8, 2), np.nan)
    path = root / "exports/predictions/baseline_test.npz"
    np.savez(path, probabilities=wrong, labels=np.arange(8))


def objects(root):
    path = root / "exports/predictions/baseline_test.npz"
    wrong = np.array([{}])
    np.savez(path, probabilities=wrong, labels=np.arange(1), allow_pickle=True)


def pdf(*arguments, **options):
    return lambda root: make_report(root / "report/report.pdf", *arguments, **options)


# Put together here, so that no scanner takes this file for a leak.
HEX = "0123456789abcdef"
KEY = {"username": "somebody", "key": HEX * 2}
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "the dog ate it"}
CHECKS_OF_GATE = [{"name": []}, 3, {"name": "latency", "passed": True}]
ON_GATE = {"model": "candidate", "images": "drifted", "accuracy": 0.5}
INT8 = {"backend": "ONNX Runtime int8", "batch": 1, "speedup": 9.0}
DRAFT = {"pages": sum(PAGES), "placeholders": ["a:4"], "errors": ["x"], "draft": True}
SWAPPED = (*SECTIONS[:3], SECTIONS[4], SECTIONS[3], *SECTIONS[5:])
OLD_IMPORT = "try:\n    import seaborn\nexcept ImportError:\n    seaborn = None"
NO_ANSWERS = "of baseline_test nothing shows baseline_test_accuracy"

# (check, verdict): the damages that it must find, each with words of its finding.
DAMAGES = {
    ("record", "fail"): [
        (remove(RECORD), "There is no record of results"),
        (half, "is damaged"),
        (put(RECORD, b"\xff\xfe{}"), "is damaged"),
        (recorded(lambda r: r.update(schema=99)), "has schema 99"),
        (put(RECORD, "[]"), "is not a record"),
        (deep, "nested too deep"),
        (huge(RECORD), "60 MiB and was not read"),
        (own_home, "pack --home my-run"),
        (headline("optimized_test_auroc", 78.7), "78.7, outside 0 to 1"),
        (headline("optimized_test_auroc", 10**400), "outside 0 to 1"),
        (headline("optimized_test_auroc", "0.9"), "no number"),
        (headline("optimized_test_auroc", None), "no number"),
        (headline("optimized_test_auroc", float("nan")), "no number"),
        (headline("ort_speedup_b1", True), "no number"),
        (headline("ort_speedup_b1", 0), "above 0"),
        (headline("gate_passed", 1), "neither true nor false"),
        (headline("marks", 20), "that the course does not know"),
        (recorded(lambda r: r.update(headline={})), "no theme recorded"),
        (recorded(lambda r: r.pop("theme5")), "No results of themes 5"),
        (recorded(lambda r: r["meta"].pop("seed")), "a valid seed"),
        (put("course.json", '{"seed": 7}'), "differ in seed"),
        (
            measured(theme7={"gate": {"passed": False}}),
            "headline gate_passed is True, and False by section th",
        ),
        (
            measured(theme7={"on_gate": [ON_GATE]}),
            "headline drift_accuracy_after is 0.75, and 0.5 by section theme7",
        ),
        (
            measured(theme4={"benchmark": [INT8]}),
            "headline int8_speedup_b1 is 0.75, and 9.0 by the benchmark",
        ),
        (
            criterion("theme1", "optimised loader, speedup over naive", 3.0, "> 1"),
            "headline loader_speedup is 12.0, and 3.0 by the criteria of theme1",
        ),
        (
            measured(
                theme7={
                    "gate": {
                        "passed": True,
                        "checks": [*CHECKS_OF_GATE, {"passed": False}],
                    }
                }
            ),
            "the gate of theme7 passed, with 1 of its 3 checks failed",
        ),
        (
            criterion("theme2", "accuracy", 0.6, "> 0.7"),
            "criterion accuracy of theme2: 0.6, target > 0.7, passed = True",
        ),
        (
            measured(theme2={"test": {"accuracy": {"value": 0.75, "n": 400}}}),
            "theme2 was tested on 400 images, and baseline_test.npz holds 8",
        ),
        (
            lambda root: make_answers(root, "baseline_test", 2),
            "0.75, and 0.5 by exports/predictions/baseline_test.npz",
        ),
    ],
    ("record", "human"): [
        (recorded(lambda r: r["headline"].pop("int8_speedup_b1")), "int8_speedup_b1"),
        (remove("exports/predictions/baseline_test.npz"), NO_ANSWERS),
        (put("exports/predictions/baseline_test.npz", b"PK\x03\x04"), NO_ANSWERS),
        (odd_answers, NO_ANSWERS),
        (objects, NO_ANSWERS),
    ],
    ("record", "note"): [
        (
            criterion("theme2", "CNN", 0.6, "> 0.7", False),
            "7 of 8 recorded criteria are met; not met: theme2: CNN",
        ),
    ],
    ("notebooks", "fail"): [
        (numbered(_5=3), "ran as [3], the one above as [5]"),
        (numbered(_5=5), "ran as [5], the one above as [5]"),
        (
            both(
                in_place,
                notebook(lambda book: code_cells(book)[4].update(outputs=[ERROR])),
            ),
            "ValueError: the dog ate it",
        ),
        (put(THEME2, "{ not json"), "not valid JSON"),
        (put(THEME2, b"\xff\xfe\x00"), "not valid JSON"),
        (put(THEME2), "not valid JSON"),
        (put(THEME2, "[" * 10000 + "]" * 10000), "too deep"),
        (put(THEME2, '{"worksheets": []}'), "format 4"),
        (put(THEME2, '{"cells": [1, 2]}'), "format 4"),
        (huge(THEME2), f"{THEME2} has 60 MiB and was not read"),
    ],
    ("notebooks", "human"): [
        (numbered(_0=0), "not in one go"),
        (numbered(_5=None), "Cells that were not run: 1,"),
        (set_source(-1, "x = 1"), "code (differing cells: 1)"),
        (cell("def f(:\n"), "does not parse as Python"),
        (cell("-" * 90000 + "1"), "does not parse as Python"),
        (cell("!ls\n" * 600), "does not parse as Python"),
    ],
    ("notebooks", "note"): [
        (remove(COPY2), "Themes 2: clean"),
    ],
    ("required files", "fail"): [
        *((remove(path), f"{path} is missing") for path in REQUIRED),
        (remove("notebooks/theme3_optimization.ipynb"), "Theme 3 is missing"),
        (put("checkpoints/best_model.pth"), "best_model.pth is empty"),
    ],
    ("environment", "fail"): [
        (cell("import cv2"), "opencv-python is imported"),
        (
            both(remove("constraints.txt"), remove("exports/environment.txt")),
            "No version is pinned",
        ),
        (
            put("requirements.txt", "numpy==2\n# why\n-r other.txt\nnot one !!\n"),
            "requirements.txt, line 4",
        ),
    ],
    ("environment", "note"): [
        (cell(OLD_IMPORT), "seaborn is used if it is there"),
        (cell("!pip install -q seaborn==0.13"), "seaborn is installed by a cell"),
        (cell("if 1:\n    %pip install seaborn"), "seaborn is installed by a cell"),
        (remove("constraints.txt"), "Nothing is pinned"),
    ],
    ("seeds", "fail"): [
        (parameters("SEED = 7"), "SEED is 7 here and 42 in the record"),
        (
            notebook(lambda book: [one.update(source="") for one in code_cells(book)]),
            "Theme 2 fixes no seed",
        ),
        (recorded(lambda r: r["meta"].update(seed=7)), "SEED is 42 here and 7"),
    ],
    ("seeds", "human"): [
        (parameters("pass"), "not through SEED"),
    ],
    ("secrets", "fail"): [
        (put("old.env.txt", f'KAGGLE_KEY="{HEX * 2}"'), "old.env.txt"),
        (put("kaggle.json", "{}"), "kaggle.json holds credentials"),
        (put(".env", "A=1"), ".env holds credentials"),
        (
            put("server.key", "-----BEGIN RSA " + "PRIVATE KEY-----"),
            "server.key, line 1",
        ),
        (put("notes.txt", f'key = "{HEX * 2}"'.encode("utf-16")), "notes.txt"),
        (
            notebook(lambda book: book["metadata"].update(kaggle=KEY)),
            "metadata, attachments or data",
        ),
        (
            cell(
                "x", outputs=[{"output_type": "display_data", "data": {"a/json": KEY}}]
            ),
            "metadata, attachments or data",
        ),
        (
            cell("x", outputs=[{"output_type": "stream", "text": f'key="{HEX * 2}"'}]),
            ", output]",
        ),
    ],
    ("secrets", "human"): [
        (put("older.rar", "Rar!"), "older.rar"),
    ],
    ("secrets", "note"): [
        (huge("log.txt", 1024), "too large to search for secrets"),
    ],
    ("absolute paths", "fail"): [
        (cell('x = f"/Users/alice/{x}"'), "/Users/alice/ exists"),
        (cell("y = 'C:\\\\Users\\\\bob'"), "C:\\Users"),
        (cell("!ls /home/alice/d"), "/home/alice/d exists"),
        (cell('q = "/content/drive/MyDrive/me"'), "one person's Drive"),
        (
            put(
                "extra.py",
                'def f():\n    """Of /home/you."""\n    return "/root/data"\n',
            ),
            "extra.py, line 3",
        ),
        (
            put("tests/test_of_our_own.py", 'PATH = "/home/alice/x"\n'),
            "test_of_our_own.py",
        ),
    ],
    ("absolute paths", "human"): [
        (cell("%cd /content/project"), "/content/project exists on Colab only"),
    ],
    ("absolute paths", "note"): [
        (parameters('SEED = 42\nSOURCE = "/home/alice/data"'), "/home/alice/data"),
    ],
    ("artefacts", "fail"): [
        (changed_model, "must be its name"),
        (other_model, "none of exports/models/"),
        (other_model, "model.onnx is another"),
        (
            put("checkpoints/best_model.pth", "retouched"),
            "from a checkpoint that is not handed in",
        ),
        (
            recorded(lambda r: r["meta"].update(dataset="solar")),
            "Its dataset is pneumonia, the record's solar",
        ),
        (
            put("exports/model.onnx", b"\n\xff\xff\xff\xff not protobuf"),
            "This is no ONNX model",
        ),
        (
            put("checkpoints/baseline.pth", "other"),
            "theme3 is stale: checkpoints/baseline.pth has changed",
        ),
    ],
    ("artefacts", "human"): [
        (remove("data/pneumonia/index.csv"), "index.csv, which is not handed in"),
        (
            measured(theme4={"models": {"fp32": "f" * 16}}),
            "speaks of exports/models/ffffffffffffffff.onnx, which",
        ),
        (put("exports/audit.csv", "nonsense\n"), "audit log cannot be read"),
    ],
    ("report", "fail"): [
        (remove("report/report.pdf"), "There is no report"),
        (put("report/report.pdf", "%PDF-1.7 none"), "cannot be read"),
        (put("report/report.pdf"), "PDF cannot be read"),
        (pdf(password="secret"), "asks for a password"),
    ],
    ("report", "human"): [
        (pdf(SECTIONS, [1] * 12), "has 12 pages: the course asks for"),
        (pdf(SECTIONS[:9] + SECTIONS[10:]), "was found for Theme 8"),
        (pdf(SWAPPED), "not in the order"),
        (
            put("report/report.json", json.dumps(DRAFT)),
            "Still a draft, with 1 placeholders left",
        ),
        (put("report/report.json", json.dumps(DRAFT)), "1 sections have Typst errors"),
    ],
    ("report", "note"): [
        (pdf(SECTIONS, [1] * 12), "Theme 3: Optimization 1 (asked: 7–10"),
        (
            put("report/report.json", '{"pages": 3, "draft": false}'),
            "belongs to another PDF",
        ),
        (put("report/report.json", "{"), "report.json is damaged"),
    ],
    ("kit files", "note"): [
        (put("mine.py", "x = 1\n\ny = 2\n"), "New, lines: 2. [mine.py]"),
        (cell("answer = 42"), f"lines added 1, removed 0. [{THEME2}]"),
        (
            both(
                put("tools/handin/pack.py", "OLDER = 1\n"), put("kit/log.py", "X = 1\n")
            ),
            "2 files of tools/, tests/ or benchmarks/ differ",
        ),
    ],
    ("size", "human"): [
        (huge("old/backup.bin", 2048), "old/backup.bin (2,048.0 MiB)"),
    ],
    ("size", "note"): [
        (put("data/raw/train/1.jpeg", "x"), "1 files of pixel data"),
    ],
    ("files", "human"): [
        (
            lambda root: (root / Path(*"d" * 60)).mkdir(parents=True),
            "Folders nested too deep",
        ),
    ],
}


@pytest.mark.parametrize(
    "damage, check, verdict, words",
    [
        (damage, *kind, words)
        for kind, damages in DAMAGES.items()
        for damage, words in damages
    ],
)
def test_damage_is_found(damage, check, verdict, words, group, look):
    damage(group)
    found = look(group, check)
    assert words in of(found, check, verdict)
    assert not any(str(group) in says or HEX * 2 in says for _, _, says in found)


NEVER = ("human", "fail")
HONEST_RECORD = both(
    headline("onnx_max_abs_diff", 3e-7),
    headline("ort_speedup_b1", 4.346),
    headline("drift_accuracy_after", 0.8049),
    measured(
        theme4={
            "agreement": [{"max_abs_diff": 3e-7}, None],
            "benchmark": [
                {"backend": "ONNX Runtime fp32", "batch": 1, "speedup": 4.34567}
            ],
        },
        theme7={
            "gate": {"passed": True, "checks": CHECKS_OF_GATE},
            "on_gate": [ON_GATE | {"accuracy": 0.80487}],
        },
    ),
    criterion("theme7", "accuracy lost", 0.41105, "< 0.4111"),
    criterion("theme6", "mine", [1], "> x"),
)
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
USED = "import yaml, sklearn.svm, PIL.Image, IPython\nfrom google.colab import files"
EMPTY = {
    "cell_type": "code",
    "source": [],
    "outputs": [],
    "execution_count": None,
    "metadata": {},
}
PICTURE = {"image/png": HEX, "text/html": "data:image/png;base64," + HEX * 9}
# check: what an honest group may well do, and what it may not hold against it.
HARMLESS = {
    "record": [
        HONEST_RECORD,
    ],
    "notebooks": [
        in_place,
        both(in_place, notebook(lambda book: book["cells"].insert(3, EMPTY))),
        injected('HOME = "/home/me"\nSEED = 42'),
        notebook(
            lambda book: code_cells(book)[0].update(source=BOOTSTRAP + "1, 2"), COPY2
        ),
        cell("%%bash\nls | grep x"),
    ],
    "absolute paths": [
        injected('HOME = "/home/me"\nSEED = 42'),
        cell('"""A docstring may say /home/you."""\n# /home/comment'),
        cell('u = "https://x.org/home/y"'),
        cell('drive.mount("/content/drive")'),
        cell('p = "/content/course-kit/x"'),
        put("tests/test_setup.py", 'PATH = "/home/alice/x"\n'),
    ],
    "environment": [
        cell(USED),
        cell("!pip install seaborn\nimport seaborn\nx = !ls\nx?"),
        both(put("extra.py", "import os\nimport utils\n"), cell("import extra")),
        put("demo/app.py", "import gradio\n"),  # of an older kit
    ],
    "seeds": [
        both(recorded(lambda r: r["meta"].update(seed=7)), injected("SEED = 7")),
    ],
    "secrets": [
        put("slides.key", b"PK\x03\x04\x00\x00\x00\x00index.apxl"),
        put("notes.md", 'api_key = "YOUR_API_KEY_GOES_HERE_1"'),
        put("notes.md", 'password = os.environ["COURSE_PASSWORD"]'),
        put("notes.md", "class sk-toggleable__control-hidden--visually"),
        put("notes.md", f'"sha256": "{HEX * 4}"\n"key": ["d35bc3ea5bbf"]'),
        put("notes.md", "the key: " + HEX * 2),
        cell("x", outputs=[{"output_type": "display_data", "data": PICTURE}]),
    ],
    "report": [
        pdf(FRENCH),
    ],
}


@pytest.mark.parametrize(
    "change, check",
    [(change, check) for check, changes in HARMLESS.items() for change in changes],
)
def test_what_an_honest_group_does_is_not_held_against_it(change, check, group, look):
    change(group)
    found = look(group, check)
    held = [says for name, kind, says in found if name == check and kind in NEVER]
    assert held == [] and of(found, check, "pass")


ODD_CELLS = [
    {"source": {"a": 1}},
    {"source": None},
    {"outputs": 3},
    {"metadata": 1},
    {"execution_count": "x"},
    {"outputs": [1, {"data": 3, "text": {"a": 2}}]},
]


def test_odd_cells_break_no_check(group, look):
    cells = [{"cell_type": "code"} | odd for odd in ODD_CELLS]
    edit_json(group / THEME2, lambda book: book["cells"].extend(cells))
    assert look(group)


# --------------------------------------------------------------------------------------
# A faithful submission
# --------------------------------------------------------------------------------------


def test_a_faithful_submission_passes_every_check(whole, look):
    found = look(whole)
    assert {verdict for _, verdict, _ in found} == {"pass", "note"}
    passed = {check for check, verdict, _ in found if verdict == "pass"}
    assert passed == set(static.CHECKS) - {"kit files"}
    assert "8 executed from top to bottom" in of(found, "notebooks", "pass")


def test_story_and_record_are_read(whole, tmp_path):
    opened = open_submission(whole, tmp_path)
    assert opened.story == {
        "dataset": "pneumonia",
        "source": "sample",
        "profile": "smoke",
        "image_size": 32,
        "seed": 42,
    }
    assert opened.name == "group-7" and opened.record["headline"] == HEADLINE
    assert Path(RECORD) in opened.files
    assert not any(path.is_absolute() for path in opened.files)


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(
    whole, tmp_path, monkeypatch
):
    def broken(look):
        raise RuntimeError("surprise")

    monkeypatch.setitem(static.CHECKS, "report", broken)
    found = static.checks(open_submission(whole, tmp_path))
    says = {finding.says for finding in found if finding.check == "report"}
    assert says == {
        "This check broke off (RuntimeError: surprise): look by hand.",
    }
    assert {"notebooks", "size"} <= {finding.check for finding in found}


# --------------------------------------------------------------------------------------
# Imports and requirements
# --------------------------------------------------------------------------------------


def test_every_undeclared_import_is_counted_once(group, look):
    add_cell(group, "import numpy as np\nimport seaborn as sns\nfrom cv2 import imread")
    (group / "extra.py").write_text("def f():\n    import seaborn.objects\n")
    lines = of(look(group, "environment"), "environment").splitlines()
    assert len(lines) == 2
    assert "seaborn is imported (and 1 more times) and not in" in lines[0]
    assert f"{THEME2}, cell" in lines[1] and "line 3" in lines[1]


def test_undeclared_is_judged_without_asking_the_graders_packages(
    group, look, monkeypatch
):
    """A table tells what an import belongs to: two machines find the same."""
    import importlib.metadata as metadata

    def asked(*_):
        raise AssertionError("the grader's packages were asked")

    for name in ("packages_distributions", "requires", "distribution"):
        monkeypatch.setattr(metadata, name, asked)
    add_cell(group, "import yaml, seaborn")
    says = of(look(group, "environment"), "environment")
    assert "seaborn is imported" in says and "yaml" not in says


REQUIREMENTS = """
numpy==2.0 ; python_version >= "3.11"   # pinned
scikit_learn[extra]>=1.5
torch == 2.6.0 \\
    --hash=sha256:0123 \\
    --hash=sha256:4567
git+https://github.com/owner/own-network.git@v1#egg=own_network
git+ssh://git@host.org/owner/other.git@main
https://x.org/wheels/fast_mmd-0.1-py3-none-any.whl
./wheels/local.pkg-1.2.0-py3-none-any.whl ; sys_platform == "linux"
../sibling
-e ./lib[dev]
--index-url https://x.org/simple
-r other.txt
pandas @ https://x.org/pandas.zip
seaborn>=0.13,<1
"""


def test_requirements_are_read_as_pip_reads_them():
    found = list(requirements.parse(REQUIREMENTS))
    assert {name: exact for _, _, name, exact in found} == {
        "numpy": True,
        "scikit-learn": False,
        "torch": True,
        "own-network": True,
        "other": True,
        "fast-mmd": True,
        "local-pkg": True,
        "sibling": True,
        "lib": True,
        "pandas": True,
        "seaborn": False,
    }
    assert [number for number, *_ in found][:4] == [2, 3, 4, 7]


@pytest.mark.parametrize("line", ["not one !!", "numpy=2", "numpy 2.0", "==1.0"])
def test_what_pip_does_not_understand(line):
    assert [name for *_, name, _ in requirements.parse(line)] == [None]


def test_a_slow_machine_is_no_fault_of_the_group(group, look, monkeypatch):
    monkeypatch.setattr(looking, "MAX_SECONDS", -1)
    found = look(group, "notebooks")
    says = of(found, "notebooks", "human")
    assert "of reading were over" in says and "no fault of the group's" in says
    assert "does not parse" not in says and not of(found, "notebooks")


# --------------------------------------------------------------------------------------
# Secrets and artefacts
# --------------------------------------------------------------------------------------

LEAKS = [
    '{"username":"bob","key":"' + HEX * 2 + '"}',
    'os.environ["KAGGLE_KEY"] = "' + HEX * 2 + '"',
    "KGAT" + "_" + HEX * 2,
    "gh" + "p_" + "a1B2" * 9,
    "github" + "_pat_" + "a1B2" * 9,
    "h" + "f_" + "aBcD" * 9,
    "s" + "k-" + "proj-" + "a1B2c3" * 6,
    "AK" + "IA" + "ABCD1234EFGH5678",
    "AI" + "za" + "B1" * 17 + "c",
    'wandb.login(key="' + HEX * 2 + HEX[:8] + '")',
    "-----BEGIN RSA " + "PRIVATE KEY-----",
    'api_key = "' + "q7Zq" * 6 + '"',
]


def test_leaked_secrets_are_found_and_shown_masked(group, look):
    (group / "notes.md").write_text("first\n" + "\n".join(LEAKS))
    says = of(look(group, "secrets"), "secrets")
    for number, leak in enumerate(LEAKS, 2):
        assert f"[notes.md, line {number}]" in says
        assert leak[-20:-1] not in says and leak[-20:] not in says
    assert says.count("revoke it") >= len(LEAKS)


def test_secret_inside_an_archive(group, look):
    with zipfile.ZipFile(group / "old.zip", "w") as archive:
        archive.writestr("v1/config.py", f'KAGGLE_KEY = "{HEX * 2}"')
        archive.writestr("v1/kaggle.json", "{}")
    found = look(group, "secrets")
    says = of(found, "secrets")
    assert "old.zip, v1/config.py, line 1" in says and HEX * 2 not in says
    assert "old.zip, v1/kaggle.json" in says and not of(found, "secrets", "human")


@pytest.mark.parametrize(
    "name, content", [("words.txt", b"a" * (9 << 20)), ("inner.zip", b"PK")]
)
def test_archive_that_cannot_be_searched_whole_is_named(name, content, group, look):
    with zipfile.ZipFile(group / "old.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    assert "old.zip" in of(look(group, "secrets"), "secrets", "human")


def test_arrays_that_unpack_to_a_gigabyte_are_not_opened(group, look, monkeypatch):
    monkeypatch.setattr("tools.grading.hostile.MAX_ARRAYS", 1 << 20)
    path = group / "exports/predictions/baseline_test.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("probabilities.npy", b"\0" * (2 << 20))
    assert NO_ANSWERS in of(look(group, "record"), "record", "human")


def test_no_file_outside_the_submission_is_hashed(group, look, monkeypatch):
    hashed, checksum = [], utils.hash_file
    monkeypatch.setattr(
        utils, "hash_file", lambda path: hashed.append(Path(path)) or checksum(path)
    )
    names = {"/etc/hostname": "0", "../outside.txt": "0", "/dev/zero": "0"}
    sections = {"theme2": {"inputs": names}, "theme5": {"inputs": [1]}}
    edit_json(group / RECORD, lambda record: record.update(sections))
    says = of(look(group, "artefacts"), "artefacts", "human")
    assert "../outside.txt, which is not handed in" in says
    assert hashed and all(path.resolve().is_relative_to(group) for path in hashed)


# --------------------------------------------------------------------------------------
# Report
# --------------------------------------------------------------------------------------


def test_report_of_another_program_has_its_headings_read_from_the_pages(group, look):
    """A PDF without outline, with a table of contents and a conclusion inside a
    theme.
    """
    from matplotlib import pyplot as plt
    from matplotlib.backends.backend_pdf import PdfPages

    texts = ["\n".join(SECTIONS)]
    texts += [f"{n}. {title}\ntext\n" for n, title in enumerate(SECTIONS, 1)]
    shutil.rmtree(group / "report")
    with PdfPages(group / "rapport.pdf") as pages:
        for text in texts:
            figure = plt.figure(figsize=(4, 4))
            figure.text(0.1, 0.1, text)
            pages.savefig(figure)
            plt.close(figure)
    found = look(group, "report")
    assert "twelve sections are there" in of(found, "report", "pass")
    assert "13 pages" in of(found, "report", "human")
    assert "Theme 1: Data Analysis 1 (asked: 5–8)" in of(found, "report", "note")


def test_pages_are_not_counted_without_pypdf(group, look, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    assert "pip install pypdf" in of(look(group, "report"), "report", "human")


# --------------------------------------------------------------------------------------
# Opening: zips, links, names
# --------------------------------------------------------------------------------------


def test_a_zip_is_a_submission(whole, look, tmp_path):
    path = zipped(whole, tmp_path / "groupe 7.zip")
    assert {verdict for _, verdict, _ in look(path)} == {"pass", "note"}
    (tmp_path / "delivered").mkdir()
    shutil.move(path, tmp_path / "delivered")  # as a learning platform does
    opened = open_submission(tmp_path / "delivered", tmp_path / "work")
    assert Path(RECORD) in opened.files


def test_windows_zip_with_backslashes(whole, tmp_path):
    path = zipped(whole, tmp_path / "a.zip", "a\\b\\")
    opened = open_submission(path, tmp_path / "work")
    assert opened.root.name == "b" and Path(RECORD) in opened.files


def small_zip(path: Path, *members) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def replaced(path: Path, old: bytes, new: bytes) -> Path:
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def locked(path: Path) -> Path:
    small_zip(path, ("utils.py", "a"))
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)
    return path


def lying(path: Path) -> Path:
    small_zip(path, ("utils.py", b"a" * 100_000))
    return replaced(path, (100_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))


def damaged(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("utils.py", "a" * 99)
    return replaced(path, b"a" * 99, b"b" * 99)


def bomb(path: Path) -> Path:
    return small_zip(path, ("utils.py", bytes(300 << 20)))


OUTSIDE = (
    "../evil.py",
    "/tmp/evil.py",
    "a/../../evil.py",
    "C:\\evil.py",
    "..\\evil.py",
)
REFUSED = [
    *(
        (lambda path, name=name: small_zip(path, (name, "x")), "outside its own folder")
        for name in OUTSIDE
    ),
    (bomb, "300 MiB, 1,0.. times its own size"),
    (lying, "cannot be unpacked"),
    (locked, "encrypted"),
    (lambda path: path.write_bytes(b"hello"), "neither a folder nor a whole zip"),
    (
        lambda path: path.write_bytes(small_zip(path, ("a", "b")).read_bytes()[:-9]),
        "neither a folder nor a whole zip",
    ),
    (damaged, "cannot be unpacked"),
    (
        lambda path: small_zip(path, ("utils.py", "a"), ("utils.py", "b")),
        "cannot be unpacked",
    ),
    (
        lambda path: small_zip(path, ("photo.jpg", "x")),
        "holds neither notebooks/ nor utils.py.*course.py pack",
    ),
    (lambda path: None, "is missing"),
]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("make, words", REFUSED)
def test_zip_that_is_refused_leaves_nothing(make, words, tmp_path):
    make(tmp_path / "a.zip")
    with pytest.raises(SubmissionError, match=words):
        open_submission(tmp_path / "a.zip", tmp_path / "work")
    left = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert [path.name for path in left] in ([], ["photo.jpg"])
    assert not list(tmp_path.rglob("evil*"))


def test_zip_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "MAX_FILES", 2)
    path = small_zip(tmp_path / "many.zip", *((f"{n}.py", "") for n in range(4)))
    with pytest.raises(SubmissionError, match="holds 4 files"):
        open_submission(path, tmp_path / "work")


def test_link_inside_a_zip_is_named_and_not_made(whole, tmp_path):
    path = zipped(whole, tmp_path / "a.zip")
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("project/secret")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    opened = open_submission(path, tmp_path / "work")
    assert not list((tmp_path / "work").rglob("secret"))
    assert "link inside the zip" in opened.findings[0].says


def test_project_is_found_two_folders_down(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "a/b/c")
    assert open_submission(tmp_path / "a", tmp_path / "work").root == tmp_path / "a/b/c"


def test_links_and_special_files_are_named_and_never_opened(
    group, look, tmp_path, monkeypatch
):
    (tmp_path / "outside.txt").write_text("precious")
    (group / "loop").symlink_to(group)
    (group / "away.py").symlink_to(tmp_path / "outside.txt")
    (group / "notebooks/extra.ipynb").symlink_to("/etc/passwd")
    (group / ".venv").symlink_to("/usr")
    (group / RECORD).unlink()
    (group / RECORD).symlink_to(tmp_path / "outside.txt")
    os.mkfifo(group / "pipe.py")
    monkeypatch.chdir(group)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s.py")
        found = look(group)
    says = of(found, "files", "human")
    odd = ("loop", "away.py", "extra.ipynb", "pipe.py", "s.py", RECORD)
    assert [name for name in odd if f"{name}]" not in says] == []
    assert "There is no record" in of(found, "record") and "precious" not in str(found)
    assert not copy_code(open_submission(group, tmp_path / "work"), tmp_path / "copy")
    assert not (tmp_path / "copy/away.py").exists()
    assert not (tmp_path / "copy/loop").exists()


def test_names_that_are_no_utf8_are_shown(group, look, tmp_path):
    odd = os.fsdecode(b"caf\xe9 \x1b[31m.py")
    (group / odd).write_text("import seaborn\nx = '/home/alice/b'\n")
    found = look(group)
    f"{found}".encode()  # printing never raises
    assert "caf\\udce9 \\x1b[31m.py, line 1" in of(found, "environment")
    assert "\x1b" not in "".join(words for _, _, words in found)
    copy_code(open_submission(group, tmp_path / "work"), tmp_path / "copy")
    assert (tmp_path / "copy" / odd).exists()


def test_unreadable_files_are_named(group, look, monkeypatch):
    opened, names = os.open, (THEME2, "sample_data.py", "results.json")

    def refusing(path, *arguments, **options):
        if str(path).endswith(names):
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
    monkeypatch.setattr(submission, "MAX_FILES", 150)
    found = look(group, "required files")
    says = of(found, "files", "human")
    assert "200 files in one folder: only the first 100" in says
    assert "More than 150 files" in says and not of(found, "required files")


# --------------------------------------------------------------------------------------
# The copy that is run
# --------------------------------------------------------------------------------------


def test_copy_holds_code_and_nothing_that_could_load(group, tmp_path):
    for damage in (
        put("cached.csv", "1"),
        put("src/data/loader.py"),
        huge("big.json", 21),
        put("figures.json", b" " * (300 << 10)),
        put("check-group-7/check.md", "checked before"),
    ):
        damage(group)
    said = copy_code(open_submission(group, tmp_path / "work"), tmp_path / "copy")
    copied = {path.as_posix() for path in submission.list_files(tmp_path / "copy")[0]}
    code = {"utils.py", THEME2, "models/baseline_cnn.py", "requirements.txt"}
    assert code | {"src/data/loader.py"} <= copied
    tops = {name.partition("/")[0] for name in copied}
    assert not tops & {"exports", "checkpoints", "data", "logs", "runs"}
    left = {"course.json", "cached.csv", "big.json", "figures.json"}
    assert not (left | {"check-group-7/check.md"}) & copied
    says = " ".join(finding.says for finding in said)
    for words in ("big.json has 21 MiB", "cached.csv", "figures.json has 0.293 MiB"):
        assert words in says
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
        ("tools/grading/check.py", True, False),
        ("check.html", False, False),
    ],
)
def test_what_is_what(path, code, artefact):
    path = Path(path)
    assert (submission.is_code(path), submission.is_artefact(path)) == (code, artefact)
