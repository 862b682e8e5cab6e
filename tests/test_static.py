"""Static checks: each flaw of a submission gets its finding, and what an honest group
may do is not held against it.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.submissions import (
    COPY2,
    HEADLINE,
    HEX,
    NO_ANSWERS,
    PAGES,
    RECORD,
    SECTIONS,
    THEME2,
    add_cell,
    code_cells,
    edit_json,
    execute,
    huge,
    make_answers,
    make_onnx,
    make_report,
    of,
    put,
)

from tools.grading import static
from tools.grading.static.files import REQUIRED
from tools.grading.static.notebooks import BOOTSTRAP
from tools.grading.submission import open_submission

# --------------------------------------------------------------------------------------
# Ways to damage a submission: each returns a function of its folder
# --------------------------------------------------------------------------------------


def remove(path):
    return lambda root: (root / path).unlink()


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


KEY = {"username": "somebody", "key": HEX * 2}
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "the dog ate it"}
CHECKS_OF_GATE = [{"name": []}, 3, {"name": "latency", "passed": True}]
ON_GATE = {"model": "candidate", "images": "drifted", "accuracy": 0.5}
INT8 = {"backend": "ONNX Runtime int8", "batch": 1, "speedup": 9.0}
DRAFT = {"pages": sum(PAGES), "placeholders": ["a:4"], "errors": ["x"], "draft": True}
SWAPPED = (*SECTIONS[:3], SECTIONS[4], SECTIONS[3], *SECTIONS[5:])
OLD_IMPORT = "try:\n    import seaborn\nexcept ImportError:\n    seaborn = None"

# (check, verdict): the damages that it must find, each with words of its finding.
DAMAGES = {
    ("record", "fail"): [
        (remove(RECORD), "There is no record of results"),
        (half, "is damaged"),
        (put(RECORD, b"\xff\xfe{}"), "is damaged"),
        (recorded(lambda r: r.update(schema=99)), "has schema 99"),
        (put(RECORD, "[]"), "is damaged"),
        (deep, "is damaged"),
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
        (remove(COPY2), "Themes 2: no output"),
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
        (put("notes.txt", f'kaggle key = "{HEX * 2}"'.encode("utf-16")), "notes.txt"),
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
            cell("x", outputs=[{"output_type": "stream", "text": "hf_" + "aB1d" * 9}]),
            ", output]",
        ),
    ],
    ("secrets", "human"): [
        (put("notes.txt", f"{{'key': '{HEX * 2}'}}"), "a Kaggle key, or a checksum?"),
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
    "Résumé exécutif|1. Introduction|2 Thème 1 : Analyse des données|Thème 2 – Modèle|"
    "THÈME 3|Theme 4|Thème 5|Thème 6|Thème 7|VIII. Thème 8|Conclusion|Références"
).split("|")
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


def test_a_faithful_submission_passes_every_check(whole, look):
    found = look(whole)
    assert {verdict for _, verdict, _ in found} == {"pass", "note"}
    passed = {check for check, verdict, _ in found if verdict == "pass"}
    assert passed == set(static.CHECKS) - {"kit files", "models", "evidence", "method"}
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
