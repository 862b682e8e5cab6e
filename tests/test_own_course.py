"""A group that writes its own: network, augmentation, rule, drift and detector, each in
its theme; later themes run in new kernels and go on with them.
"""

import json
import re
import subprocess
import sys
from copy import deepcopy

import nbformat
import numpy as np
import pytest
from support.books import EXERCISES, WRITTEN, asked, cells

import utils
from kit import own
from kit.files import KIT
from tools.notebooks import run

pytestmark = pytest.mark.slow

# The network of PyTorch's own tutorial: no name of ours, no normalisation, one size.
NETWORK = """
class MyCNN(nn.Module):
    def __init__(self, in_maps, answers):
        super().__init__()
        self.first = nn.Conv2d(in_maps, 8, 3)
        self.second = nn.Conv2d(8, 16, 3)
        self.fc1 = nn.Linear(16 * 6 * 6, 24)
        self.fc2 = nn.Linear(24, answers)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.max_pool2d(F.relu(self.second(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))
"""
RULE = """
unsure = utils.AlertRule("half_asleep", "requests", "<", 10_000, hold=0)
"""
DRIFT = """
def my_drift(images, severity, rng):
    \"\"\"The lamp flickers.\"\"\"
    shade = torch.from_numpy(rng.random((len(images), 1, 1, 1), "float32"))
    return images * (1 - 0.18 * severity * shade)
"""
DETECTOR = """
def my_detector(reference, window):
    far = np.abs(reference.mean(axis=0) - window.mean(axis=0))
    return float(stats.ttest_ind(reference, window).pvalue[far.argmax()])
"""
DEFINED = r".*?(?=^\S|\Z)"  # to the next line that begins at the margin
# Of a theme, what stands in its cells and what the group writes there.
MINE = {
    3: [("^class MyCNN" + DEFINED, NETWORK), (r"^NETWORK = [^\n]*", 'NETWORK = "own"')],
    5: [(r"^utils\.register_rule\(unsure\)", RULE + "utils.register_rule(unsure)")],
    6: [
        ("^def my_drift" + DEFINED, DRIFT),
        ("^def my_detector" + DEFINED, DETECTOR),
        ("^KIND, SEVERITY = .*?$", 'KIND, SEVERITY = "my_drift", 4'),
    ],
}


def answered(name: str, cell: str) -> str:
    """A cell with its exercise done: the folded solution, or a prediction."""
    if name in WRITTEN:
        solution = re.search(r"```python\n(.+?)```", asked(name).folded.source, re.S)[1]
        return re.sub(
            r"^(.*exercises\.check)", lambda m: solution + m[1], cell, flags=re.M
        )
    [choice, *_] = EXERCISES[name].choices
    said = repr(1.0 if choice is float else choice)
    return re.sub(r"(MY_PREDICTION\b.*?)\bNone\b", lambda m: m[1] + said, cell, count=1)


def done_by_the_group(theme: int) -> nbformat.NotebookNode:
    """The notebook of a theme with all exercises answered and the group's own code."""
    about = {"language_info": {"name": "python"}}
    book = nbformat.v4.new_notebook(
        cells=deepcopy(cells(f"theme{theme}")), metadata=about
    )
    for name in (n for n in EXERCISES if n.startswith(f"theme{theme}/")):
        cell = book.cells[asked(name).place]
        cell.source = answered(name, cell.source)
    for stands, text in MINE.get(theme, []):
        found = [
            (cell, re.search(stands, cell.source, re.S | re.M)) for cell in book.cells
        ]
        [(cell, match)] = [(c, m) for c, m in found if m and c.cell_type == "code"]
        cell.source = cell.source.replace(match[0], text)
    return book


@pytest.fixture(scope="module", params=["pneumonia", "solar"])
def home(request, tmp_path_factory):
    """Eight notebooks of a group, each in a kernel of its own."""
    folder = tmp_path_factory.mktemp("group")
    asked_for = {"DATASET": request.param, "SOURCE": "sample", "PROFILE": "smoke"}
    asked_for |= {"DRIVE": False, "HOME": str(folder)}
    for theme in range(1, 9):
        path = folder / f"theme{theme}.ipynb"
        nbformat.write(done_by_the_group(theme), path)
        run.execute(path, asked_for, folder)
    return folder


def test_later_themes_go_on_with_what_is_the_groups(home):
    results = json.loads((home / "exports" / "results.json").read_text())
    assert set(results["criteria"]) - {"recorded"} == {f"theme{n}" for n in range(1, 9)}
    kinds = {kind for kind, _, _ in own.load_own(home)}
    assert kinds == {"model", "augmentation", "rule", "drift", "detector"}
    for name in ("best_model", "model_retrained"):
        _, state = utils.load_model(home / "checkpoints" / f"{name}.pth")
        assert state["architecture"] == "MyCNN"
    own.load_own(home / "nowhere")  # other tests do not know what was registered
    served = utils.OnnxModel(home / "exports" / "model.onnx")
    pixels = np.zeros((1, served.channels, served.size, served.size), np.uint8)
    assert served.predict_all(pixels)[1].shape == (1, 24)  # what its last layer reads

    plans = {row["how"] for row in results["theme7"]["candidates"]}
    assert plans == {"in service", "whole", "frozen stem"}  # nothing to normalise anew
    assert results["theme6"]["scenario"]["kind"] == "my_drift"
    judged = {row["detector"] for row in results["theme6"]["false_alarms"]}
    assert "my_detector" in judged and len(judged) > 3
    assert "my_drift" in {row["kind"] for row in results["theme8"]["robustness"]}
    fired = utils.read_alerts(home / "logs" / "alerts.csv")
    assert "half_asleep" in set(fired["rule"])


def test_the_grader_scores_a_network_of_the_group(home, tmp_path):
    """From the hand-in alone: the weights give the figures that the record holds."""
    archive = next(home.glob("hand-in-*.zip"))
    command = ["check", str(archive), "--level", "evaluate", "-o", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "course.py", *command], cwd=KIT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "my_code.py is not the kit's and ran inside the scoring" in done.stdout
    assert re.search(r"figures by weights: \d+ identical$", done.stdout, re.M)
