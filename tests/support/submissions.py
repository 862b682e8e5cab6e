"""A whole submission made by hand: the kit's own code, a record, models and a report
that fit each other.
"""

import json
import os
import shutil
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pypdf

import utils
from kit.files import KIT
from kit.promotion import AUDIT_COLUMNS
from kit.record import HEADLINE_TAGS, SCHEMA

# Put together here, so that no scanner takes this file for a leak.
HEX = "0123456789abcdef"
THEME2 = "notebooks/theme2_baseline_model.ipynb"
COPY2 = "exports/" + THEME2
RECORD = "exports/results.json"
NO_ANSWERS = "of baseline_test nothing shows baseline_test_accuracy"
SECTIONS = (
    "Executive Summary",
    "Introduction",
    "Theme 1: Data Analysis",
    "Theme 2: Baseline Model",
    "Theme 3: Optimization",
    "Theme 4: ONNX Deployment",
    "Theme 5: Monitoring",
    "Theme 6: Drift Detection",
    "Theme 7: Retraining",
    "Theme 8: Synthesis",
    "Conclusion",
    "References",
)
PAGES = (1, 2, 5, 6, 7, 7, 5, 6, 6, 6, 2, 1)
CODE = (
    "utils.py",
    "sample_data.py",
    "course.py",
    "requirements.txt",
    "requirements-dev.txt",
    "constraints.txt",
    "README.md",
    "kit",
    "models",
    "notebooks",
    "exercises",
    "tools",
)
HEADLINE = {name: 0.75 for name in HEADLINE_TAGS} | {
    "provider": "CPUExecutionProvider",
    "gate_passed": True,
    "loader_speedup": 12.0,
    "alerts_raised": 7,
}


def make_submission(root: Path) -> Path:
    """Lay out a faithful submission; the notebooks are clean, their executed copies
    stand in exports/notebooks/.
    """
    for name in CODE:
        source = KIT / name
        if source.is_dir():
            shutil.copytree(
                source, root / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            root.mkdir(exist_ok=True)
            shutil.copy(source, root / name)
    last = root / "notebooks" / "theme8_synthesis.ipynb"
    if not last.exists():
        shutil.copy(root / "notebooks" / "theme7_retraining.ipynb", last)
    for path in (root / "notebooks").glob("theme*.ipynb"):
        execute(path, root / "exports" / "notebooks" / path.name)
    story = {
        "dataset": "pneumonia",
        "source": "sample",
        "profile": "smoke",
        "image_size": 32,
        "seed": 42,
    }
    utils.write_json(root / "course.json", story)
    make_results(root, story)
    make_report(root / "report" / "report.pdf")
    return root


def execute(path: Path, target: Path) -> None:
    """Number the cells of a notebook as a fresh kernel would."""
    notebook = json.loads(path.read_text())
    code = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    for number, cell in enumerate(code, 1):
        cell["execution_count"] = number
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(notebook))


def make_results(root: Path, story: dict) -> None:
    for name in ("baseline", "best_model", "model_retrained"):
        path = root / "checkpoints" / f"{name}.pth"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode() * 10)
    index = root / "data" / "pneumonia" / "index.csv"
    index.parent.mkdir(parents=True)
    index.write_text("path,label,pool\n")
    stored = make_onnx(root, "best_model")
    shutil.copy(stored, root / "exports" / "model.onnx")
    (root / "exports" / "environment.txt").write_text("torch 2.15.0\n")
    audit = utils.AppendOnlyCsv(root / "exports" / "audit.csv", "audit", AUDIT_COLUMNS)
    for event in ("promoting", "in service"):
        values = [datetime.now(UTC), "a", event, stored.stem, "0" * 16, "", ""]
        audit.append([dict(zip(AUDIT_COLUMNS, values, strict=True))])
    read = {
        name: digest(root / name)
        for name in ("data/pneumonia/index.csv", "checkpoints/baseline.pth")
    }
    record = {
        "schema": SCHEMA,
        "meta": story | {"hardware": "test"},
        "headline": HEADLINE,
    }
    record |= {f"theme{n}": {"inputs": read} for n in range(1, 9)}
    record["theme4"]["models"] = {"fp32": stored.stem}
    for name in ("baseline_test", "optimized_test"):
        make_answers(root, name)
    rows = [{"name": "it ran", "value": 1, "target": "== 1", "passed": True}]
    record["criteria"] = {f"theme{n}": rows for n in range(1, 9)}
    utils.write_json(root / "exports" / "results.json", record)


def make_answers(root: Path, stored: str, right: int = 3) -> None:
    """Stored answers on eight test images: of each class `right` of four; at 3, all
    metrics of HEADLINE are 0.75.
    """
    labels = np.repeat([0, 1], 4)
    positive = np.where(
        np.tile(np.arange(4) < right, 2) == (labels == 1), 0.9, 0.1
    ).astype(np.float32)
    path = root / "exports" / "predictions" / f"{stored}.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(
        path, probabilities=np.column_stack([1 - positive, positive]), labels=labels
    )


def digest(path: Path) -> str:
    return utils.hash_file(path)[:16]


def make_onnx(root: Path, checkpoint: str, **settings) -> Path:
    """The smallest model that checks, with the metadata of an export."""
    shape = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])
        for name in "xy"
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "g", shape[:1], shape[1:]
    )
    about = {
        "dataset": "pneumonia",
        "seed": 42,
        "checkpoint": digest(root / "checkpoints" / f"{checkpoint}.pth"),
    }
    return utils.store_onnx(
        SimpleNamespace(exports=root / "exports"),
        onnx.helper.make_model(graph),
        about | settings,
    )


def make_report(
    path: Path, sections=SECTIONS, pages=PAGES, password: str | None = None
) -> None:
    """A PDF of blank pages with an outline."""
    writer = pypdf.PdfWriter()
    for title, count in zip(sections, pages, strict=False):
        begins = len(writer.pages)
        for _ in range(count):
            writer.add_blank_page(100, 100)
        writer.add_outline_item(title, begins)
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write(path)


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def add_cell(
    root: Path, source: str, theme: str = "theme2_baseline_model", **more
) -> None:
    """Put a code cell at the end of a notebook, and of its executed copy."""
    for folder in ("notebooks", "exports/notebooks"):
        path = root / folder / f"{theme}.ipynb"
        count = (
            len(code_cells(json.loads(path.read_text()))) + 1
            if folder.startswith("exports")
            else None
        )
        cell = {
            "cell_type": "code",
            "source": source,
            "execution_count": count,
            "outputs": [],
            "metadata": {},
        } | more
        edit_json(path, lambda notebook, cell=cell: notebook["cells"].append(cell))


def zipped(folder: Path, path: Path, inside: str = "project/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            if file.is_file():
                archive.write(file, inside + file.relative_to(folder).as_posix())
    return path


def of(found, check, verdict="fail") -> str:
    """What the findings of one check and verdict say, together."""
    return "\n".join(
        says for name, kind, says in found if (name, kind) == (check, verdict)
    )


def put(path, content=b""):
    def damage(root):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        text = content.encode() if isinstance(content, str) else content
        (root / path).write_bytes(text)

    return damage


def huge(path, mib=60):
    def damage(root):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
        os.truncate(root / path, mib << 20)

    return damage
