"""The notebooks: clean, alike where they must be, and running from top to bottom."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from PIL import Image

from kit.promotion import in_service
from kit.watching import load_reference, read_drift_log, watched_path

KIT = Path(__file__).resolve().parent.parent
PATHS = sorted((KIT / "notebooks").glob("*.ipynb"))
BOOK = {path.stem: nbformat.read(path, 4) for path in PATHS}
TITLES = [path.stem for path in PATHS]


def code_cells(title: str) -> list:
    return [cell for cell in BOOK[title].cells if cell.cell_type == "code"]


def test_notebooks_are_numbered_without_gaps():
    assert [int(re.match(r"theme(\d)_", title)[1]) for title in TITLES] == list(
        range(1, len(TITLES) + 1)
    )


@pytest.mark.parametrize("title", TITLES)
def test_notebook_is_clean(title):
    nbformat.validate(BOOK[title])
    cells = json.loads((KIT / "notebooks" / f"{title}.ipynb").read_text())["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in code_cells(title):
        assert cell.outputs == [] and cell.execution_count is None
        assert len(cell.source.splitlines()) <= 72, (
            f"a cell must fit a projector:\n{cell.source}"
        )
    text = json.dumps(BOOK[title])
    assert not re.search(r"/home/|/Users/|/root/|TODO|FIXME", text)


@pytest.mark.parametrize("title", TITLES)
def test_anatomy(title):
    """Title and badge, bootstrap, parameters, start, checkpoint, report: in this
    order.
    """
    cells, theme = BOOK[title].cells, int(title[5])
    assert cells[0].source.startswith(f"# Theme {theme} · ")
    for words in (
        f"notebooks/{title}.ipynb",
        "**Time needed:**",
        "**You will learn**",
        "**Reads:**",
        "**Writes:**",
    ):
        assert words in cells[0].source
    assert cells[1].source == code_cells(TITLES[0])[0].source
    assert cells[2].metadata["tags"] == ["parameters"]
    assert cells[2].source == code_cells(TITLES[0])[1].source
    assert re.search(rf"utils\.start\(\s*theme={theme},", cells[4].source)
    assert "(../docs/glossary.md)" in cells[0].source
    text = "\n".join(cell.source for cell in cells)
    parts = (
        "\n## Checkpoint",
        "course.finish(",
        "## For your report",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert 3 <= len(re.findall(r"\*\*Exercise \d", text)) <= 6
    assert len(re.findall(r"# exercise: ", text)) >= len(
        re.findall(r"\*\*Exercise \d", text)
    )


def test_parameters_are_the_seven_of_the_course():
    names = [
        node.targets[0].id for node in ast.parse(code_cells(TITLES[0])[1].source).body
    ]
    assert names == [
        "DATASET",
        "SOURCE",
        "PROFILE",
        "IMAGE_SIZE",
        "SEED",
        "DRIVE",
        "HOME",
    ]


def test_first_cell_is_short_and_leaves_installing_to_the_kit():
    lines = code_cells(TITLES[0])[0].source.splitlines()
    assert len(lines) <= 8 and max(map(len, lines)) <= 88
    assert "pip" not in "".join(lines) and "bootstrap.py" in lines[-1]


@pytest.mark.course
def test_first_cell_finds_the_kit_above_and_installs_nothing_here():
    source = code_cells(TITLES[0])[0].source + "\nfrom kit.files import KIT; print(KIT)"
    # an attempt to install or to clone fails instead of changing anything
    alone = os.environ | {"PIP_NO_INDEX": "1", "GIT_ALLOW_PROTOCOL": "none"}
    for folder in (KIT, KIT / "notebooks", KIT / "tests" / "support"):
        run = subprocess.run(
            [sys.executable, "-c", source],
            cwd=folder,
            env=alone,
            capture_output=True,
            text=True,
        )
        assert (run.returncode, run.stdout, run.stderr) == (0, f"{KIT}\n", "")


# --- running them


def run_course(home: Path, *options: str) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "course.py",
        "run",
        "--profile",
        "smoke",
        "--home",
        str(home),
        *options,
    ]
    return subprocess.run(command, cwd=KIT, capture_output=True, text=True)


@pytest.mark.course
@pytest.mark.parametrize(
    "dataset",
    ["pneumonia", "solar", pytest.param("pneumonia3", marks=pytest.mark.slow)],
)
def test_whole_course(tmp_path, raw, dataset):
    """Two datasets drawn by the course; one from a folder, where every image is flagged
    (gray stored as RGB).
    """
    source = raw if dataset == "pneumonia3" else "sample"
    for path in (raw / "chest_xray").rglob("*.jpeg"):
        try:
            Image.open(path).convert("RGB").save(path)
        except OSError:
            continue  # the planted cut file stays as it is
    done = run_course(tmp_path / "home", "--dataset", dataset, "--source", str(source))
    tmp_path = tmp_path / "home"
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    for title in TITLES:
        executed = nbformat.read(
            tmp_path / "exports" / "notebooks" / f"{title}.ipynb", 4
        )
        assert all(
            cell.execution_count for cell in executed.cells if cell.cell_type == "code"
        )
        errors = [
            o
            for c in executed.cells
            for o in c.get("outputs", [])
            if o.get("name") == "stderr"
        ]
        said = "".join(o["text"] for o in errors)
        assert not re.search(r"Warning|Error", said)
        shown = [
            o["data"].get("text/plain", "")
            for c in executed.cells
            for o in c.get("outputs", [])
            if "data" in o
        ]
        assert max(len(text.splitlines()) for text in shown) < 60, (
            "a cell shows more than a page"
        )
        text = "\n".join(cell.source for cell in executed.cells)
        figures = set(re.findall(r'save_figure\(course, figure, "(\w+)"\)', text))
        assert all(
            (tmp_path / "exports" / "figures" / f"{title[:6]}_{name}.png")
            .stat()
            .st_size
            for name in figures
        )
        tables = set(re.findall(r'save_table\(course, .+, "(\w+)"\)', text))
        assert all(
            (tmp_path / "exports" / "tables" / f"{title[:6]}_{name}.csv").stat().st_size
            for name in tables
        )
        prose = [cell.source for cell in executed.cells if cell.cell_type == "markdown"]
        asked = re.split(r"(Tables|Figures):", prose[-1])[1:]
        # what the report section asks for exists
        for kind, names in zip(asked[::2], asked[1::2], strict=True):
            assert set(re.findall(rf"`{title[:6]}_(\w+)`", names)) == (
                tables if kind == "Tables" else figures
            )
    results = json.loads((tmp_path / "exports" / "results.json").read_text())
    assert set(results["criteria"]) - {"recorded"} == {title[:6] for title in TITLES}
    assert results["headline"].keys() <= results["tags"].keys()
    assert ("SAMPLE DATA" in done.stdout) == (source == "sample")
    assert "results.json" in done.stdout
    check_final_model(tmp_path, dataset, results)
    if dataset == "pneumonia3":
        run_further(tmp_path, dataset, str(source))
    check_service(tmp_path, results)
    check_drift_and_retraining(tmp_path, dataset, results)
    check_synthesis(tmp_path, dataset, results)


def run_further(home: Path, dataset: str, source: str) -> None:
    """The optional notebooks run on what the course has left."""
    from tools.notebooks import run

    asked = {"DATASET": dataset, "SOURCE": source, "PROFILE": "smoke"}
    asked |= {"HOME": str(home), "DRIVE": False}
    books = sorted((KIT / "notebooks" / "further").glob("*.ipynb"))
    assert len(books) >= 3
    for book in books:
        run.execute(book, asked, home / "exports" / "notebooks")


def check_final_model(home: Path, dataset: str, results: dict) -> None:
    """The model that theme 3 stored gives the figure that it recorded."""
    import utils

    course = utils.start(4, dataset, home=home)
    data = utils.load_data(course)
    model, state = utils.load_model(
        home / "checkpoints" / "best_model.pth", course.classes
    )
    logits, labels = utils.predict(model, data.loader("test", 64))
    assert (logits.argmax(1) == labels).mean() == results["headline"][
        "optimized_test_accuracy"
    ]
    assert {
        "classes",
        "mean",
        "std",
        "size",
        "threshold",
        "temperature",
        "config",
        "seed",
    } <= state.keys()


def check_service(home: Path, results: dict) -> None:
    """What serves is what was exported; what was served stands in the log; no file of
    the record is stale.
    """
    import utils

    model = utils.OnnxModel(
        home / "exports" / "models" / f"{results['theme4']['models']['fp32']}.onnx"
    )
    assert model.hash == results["theme5"]["model"] == results["theme6"]["model"]
    assert results["headline"]["onnx_max_abs_diff"] <= 1e-5
    assert results["headline"]["provider"] == model.session.get_providers()[0]
    log = utils.read_log(
        home / "logs" / "production.csv", results["theme5"]["runs"]["drill"]
    )
    assert len(log) == results["theme5"]["requests"]
    assert set(log["model"]) == {model.hash}
    alerts = utils.read_alerts(home / "logs" / "alerts.csv")
    assert (alerts["event"] == "firing").sum() >= results["headline"]["alerts_raised"]
    assert not (home / "exports" / "model.onnx.data").exists()


def check_drift_and_retraining(home: Path, dataset: str, results: dict) -> None:
    """Theme 6 describes what theme 4 exported, theme 7 starts from there; what serves
    now is what the gate allowed.
    """
    import utils

    course = utils.start(7, dataset, home=home)
    report, seventh = utils.read_drift_report(course), results["theme7"]
    model = utils.OnnxModel(watched_path(course), course.classes)
    assert (
        len(load_reference(home / "exports" / "drift_reference.npz", model))
        == report["reference"]["images"]
    )
    looks = read_drift_log(
        home / "logs" / "drift.csv", results["theme6"]["runs"]["sudden"]
    )
    assert looks["level"].tolist() == [
        look["level"] for look in report["streams"]["sudden"]
    ]
    assert seventh["models"]["before"] == report["model"]
    assert results["headline"]["gate_passed"] == seventh["gate"]["passed"]
    assert (
        in_service(course)
        == seventh["models"]["after" if seventh["gate"]["passed"] else "before"]
    )
    state = utils.load_checkpoint(
        home / "checkpoints" / "model_retrained.pth", classes=course.classes
    )
    gate = utils.load_data(course).loader("gate", 64).hashes
    assert state["trained_on"]
    assert not {digest[:16] for digest in gate} & set(state["trained_on"])
    assert not any(refused["passed"] for refused in seventh["refused"].values())
    assert utils.stale(course) == []


def check_synthesis(home: Path, dataset: str, results: dict) -> None:
    """The summary says what the themes recorded; robustness starts from the model that
    served before retraining.
    """
    import utils

    course, eighth, headline = (
        utils.start(8, dataset, home=home),
        results["theme8"],
        results["headline"],
    )
    table = eighth["performance"]
    assert [
        table[name]["accuracy"] for name in ("baseline", "optimised")
    ] == pytest.approx(
        [headline["baseline_test_accuracy"], headline["optimized_test_accuracy"]]
    )
    assert table["ONNX float32"]["accuracy"] - table["ONNX INT8"][
        "accuracy"
    ] == pytest.approx(headline["int8_accuracy_drop"])
    assert table["retrained"]["auroc"] == pytest.approx(
        results["theme7"]["test"]["auroc"]["value"]
    )
    assert all(
        table[name]["p50_ms"] > 0 and table[name]["size_mb"] > 0 for name in table
    )
    assert eighth["missing"] == []
    data = utils.load_data(course)
    clean = data.where("production")
    right = (
        utils.OnnxModel(watched_path(course), course.classes)
        .predict_all(data.pixels[clean])[0]
        .argmax(1)
        == data.labels[clean]
    )
    first = eighth["robustness"][0]
    assert (first["kind"], first["before"], first["n"]) == (
        "none",
        right.mean(),
        len(clean),
    )
    medical = "Not a medical device" in (home / "exports" / "MODEL_CARD.md").read_text(
        encoding="utf-8"
    )
    assert medical == dataset.startswith("pneumonia")
    assert json.loads((home / "report" / "report.json").read_text())["pages"] > 12
    assert list(home.glob("hand-in-*.zip"))


@pytest.mark.course
@pytest.mark.parametrize("themes", [0, 2])
def test_theme_8_runs_on_whatever_there_is(tmp_path, themes):
    if themes:
        assert (
            run_course(
                tmp_path, "--source", "sample", "--until", str(themes)
            ).returncode
            == 0
        )
    done = run_course(tmp_path, "--source", "sample", "--from", "8")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    results = json.loads((tmp_path / "exports" / "results.json").read_text())
    assert results["theme8"]["missing"] == list(range(themes + 1, 8))
    assert results["theme8"]["themes"] == themes
    assert list(results["theme8"]["advice"]) == ["after the drift of theme 6"]
    assert set(results["theme8"]["performance"]) == ({"baseline"} if themes else set())


@pytest.mark.slow
def test_same_command_same_figures_and_bit_identical_weights(tmp_path):
    results = []
    for name in ("first", "second"):
        assert run_course(tmp_path / name, "--source", "sample").returncode == 0
        stored = json.loads((tmp_path / name / "exports" / "results.json").read_text())
        timed = {key for key, tag in stored["tags"].items() if tag == "timing"}
        results.append(
            {
                key: value
                for key, value in stored["headline"].items()
                if key not in timed
            }
        )
    assert results[0] == results[1] and len(results[0]) >= 4
    for checkpoint in ("baseline.pth", "best_model.pth", "model_retrained.pth"):
        first, second = (
            torch.load(tmp_path / name / "checkpoints" / checkpoint, weights_only=True)[
                "weights"
            ]
            for name in ("first", "second")
        )
        assert all(torch.equal(first[key], second[key]) for key in first)
    indexes = [
        pd.read_csv(tmp_path / n / "data" / "pneumonia" / "index.csv")
        for n in ("first", "second")
    ]
    assert indexes[0].equals(indexes[1])
