"""The notebooks teach the technique: it stands in a lesson cell, in the field's own
calls, in cells that fit a projector.
"""

import ast
import json
import re
from pathlib import Path

import pytest

PATHS = sorted((Path(__file__).parents[1] / "notebooks").glob("theme*.ipynb"))
# What must be called in a cell, whatever the kit brings for the long run.
VISIBLE = {
    1: "DataLoader KFold GroupKFold cross_val_score affine_grid grid_sample sha256"
    " LogisticRegression roc_auc_score",
    2: "train_epoch validate count_parameters save_checkpoint"
    " Sequential Conv2d ReLU MaxPool2d AdaptiveAvgPool2d CrossEntropyLoss AdamW"
    " zero_grad backward step train eval no_grad argmax SummaryWriter add_scalar"
    " LogisticRegression paired_difference",
    3: "BatchNorm2d relu autocast GradScaler scale update OneCycleLR minimize_scalar"
    " log_softmax binomtest register_forward_hook grad register_model"
    " pretrained_network extract_embeddings StandardScaler LogisticRegression",
    4: "benchmark_model benchmark_onnx"
    " export InferenceSession run get_providers perf_counter synchronize quantile"
    " quant_pre_process quantize_static",
    5: "InferenceLogger open writer writerow read_csv rolling AlertRule register_rule",
    6: "extract_embeddings compute_mmd detect_pixel_drift detect_embedding_drift"
    " ks_2samp accumulate step permutation hist register_detector register_drift",
    7: "load_checkpoint validate_retrained_model"
    " choice requires_grad_ AdamW cross_entropy backward replace rollback"
    " retrain_and_gate",
    8: "paired_tests pareto lost_accuracy checklist maturity write build hand_in",
}
SECTIONS, LINES, WIDTH = 6, 13, 88


def cells(path: Path, kind: str) -> list[str]:
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in found if c["cell_type"] == kind]


def calls(path: Path) -> set[str]:
    """Names of all functions, classes and methods that its cells call."""
    found = set()
    for source in cells(path, "code"):
        lines = [line.replace("%time ", "") for line in source.splitlines()]
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.Call):
                name = node.func
                found.add(getattr(name, "attr", getattr(name, "id", "")))
    return found


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_techniques_stand_in_cells(path):
    assert set(VISIBLE[int(path.stem[5])].split()) <= calls(path)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_cells_fit_a_projector(path):
    code = cells(path, "code")
    lines = [[line for line in cell.splitlines() if line.strip()] for cell in code]
    lengths = sorted(map(len, lines))
    assert lengths[-1] <= LINES and lengths[len(lengths) // 2] <= 7
    assert max(len(line) for cell in lines for line in cell) <= WIDTH


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_sections_ask_and_answer(path):
    """At most six, each with its minutes; every question has a folded answer below."""
    text = "\n".join(cells(path, "markdown"))
    sections = re.split(r"^## \d · ", text, flags=re.MULTILINE)[1:]
    assert len(sections) <= SECTIONS
    for section in sections:
        assert re.search(r"^\*\d+ minutes\.\*", section, re.MULTILINE), section[:40]
    questions = text.count("**Question.**")
    assert questions == text.count("<summary>Answer</summary>") >= 3


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_cells_compose_no_verdicts_and_no_records(path):
    code = "\n".join(cells(path, "code"))
    assert "utils.record(" not in code and "check_criteria" not in code
    assert code.count("course.finish(") == 1
    assert len(re.findall(r"\bprint\(", code)) <= 3
