"""The exercises of themes 1 to 4: the solution passes, each typical mistake gets its
own hint.
"""

import ast
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score
from torch import nn
from torch.nn import functional as F

import exercises
import utils
from exercises import Build, Implement, Mistake, Predict

KIT = Path(__file__).resolve().parent.parent
START, END = "<details><summary>Solution</summary>\n\n", "\n\n</details>"
NAMES = [
    f"theme{theme}/{short}"
    for theme in range(1, 5)
    for short in exercises.import_module(f"exercises.theme{theme}").EXERCISES
]
WRITTEN = [name for name in NAMES if not isinstance(exercises.find(name), Predict)]
PREDICTED = [name for name in NAMES if name not in WRITTEN]


def cells(theme: str) -> list:
    return nbformat.read(next((KIT / "notebooks").glob(f"{theme}_*.ipynb")), 4).cells


def place_of(name: str) -> int:
    asked = re.compile(rf'exercises\.(check|predict)\(\s*"{name}"')
    places = [
        n
        for n, cell in enumerate(cells(name[:6]))
        if cell.cell_type == "code" and asked.search(cell.source)
    ]
    assert len(places) == 1, f"{name} is asked for {len(places)} times"
    return places[0]


DEFINED, IMPORTED = (ast.FunctionDef, ast.ClassDef), (ast.Import, ast.ImportFrom)


def defined(source: str, names: dict, kinds: tuple = DEFINED + IMPORTED) -> dict:
    """What a cell or a solution imports and defines, and nothing else of it, in a
    notebook that knows `names`.
    """
    tree, names = ast.parse(source), dict(names)
    tree.body = [node for node in tree.body if isinstance(node, kinds)]
    exec(compile(tree, "cell", "exec"), names)
    return names


def notebook_names(name: str) -> dict:
    """What the cells before an exercise import: a student's kernel knows no more."""
    code = [
        cell.source
        for cell in cells(name[:6])[: place_of(name)]
        if cell.cell_type == "code"
    ]
    return defined("\n".join(code), {}, IMPORTED)


def handed_in(name: str) -> str:
    """The name of the student's function in the cell of an exercise."""
    return re.search(
        rf'exercises\.check\("{name}", (\w+)\)', cells(name[:6])[place_of(name)].source
    )[1]


def solution(name: str):
    text = cells(name[:6])[place_of(name) + 1].source
    (block,) = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    return defined(block, notebook_names(name))[handed_in(name)]


@pytest.mark.parametrize("theme", ["theme1", "theme2", "theme3", "theme4"])
def test_notebook_asks_for_every_exercise_once_in_order(theme):
    source = "\n".join(cell.source for cell in cells(theme) if cell.cell_type == "code")
    asked = [
        f"{theme}/{name}"
        for name in re.findall(
            rf'exercises\.(?:check|predict)\(\s*"{theme}/(\w+)"', source
        )
    ]
    assert (
        sorted(asked) == sorted(name for name in NAMES if name.startswith(theme))
        and 2 <= len(asked) <= 4
    )
    assert "\nimport exercises\n" in cells(theme)[3].source


@pytest.mark.parametrize("name", NAMES)
def test_statement_cell_and_folded_solution(name):
    place, book = place_of(name), cells(name[:6])
    statement, cell, folded = book[place - 1], book[place], book[place + 1]
    kind = "implement" if name in WRITTEN else "predict|measure"
    assert (
        re.search(rf"\*\*Exercise \d \(({kind})\)\.\*\*", statement.source)
        and "*Done* when" in statement.source
    )
    assert "# exercise: " in cell.source and len(cell.source.splitlines()) <= 40
    assert folded.cell_type == "markdown" and folded.metadata["tags"] == ["solution"]
    assert folded.source.startswith(START) and folded.source.endswith(END)
    if name in WRITTEN:
        signature = re.compile(rf"`{handed_in(name)}\([\w, =]+\)`")
        assert signature.search(statement.source.replace("\n", " ")), (
            "the statement says what to write"
        )


@pytest.mark.parametrize("name", WRITTEN)
def test_solution_passes_and_the_cell_as_it_stands_gets_a_hint(name):
    assert exercises.judge(name, solution(name)).right
    default = defined(cells(name[:6])[place_of(name)].source, notebook_names(name))[
        handed_in(name)
    ]
    verdict = exercises.judge(name, default)
    assert (
        not verdict.right
        and "raises" not in verdict.says
        and verdict.says.endswith(("?", ".", "`low` becomes 0?"))
    )


@pytest.mark.parametrize("name", PREDICTED)
def test_prediction_cell_shows_nothing_before_a_prediction(name, capsys):
    assert re.search(
        r"^MY_PREDICTION = None  # exercise: ",
        cells(name[:6])[place_of(name)].source,
        re.MULTILINE,
    )
    exercises.predict(name, None, 1234.5, "evidence: 1234.5")
    said = capsys.readouterr().out
    assert said.startswith("✗ not yet: your prediction first: ") and "1234" not in said
    exercise = exercises.find(name)
    if exercise.choices == (float,):
        exercises.predict(name, 1.0, 1234.5, "evidence: 1234.5")
        assert "too low" in (said := capsys.readouterr().out) and said.endswith(
            "evidence: 1234.5\n"
        )
        assert exercise.judge(1e9, 1234.5).says.endswith(exercise.why["too high"])
        return
    for said in exercise.choices:
        for came in exercise.choices:
            verdict = exercise.judge(said, came)
            assert verdict.right == (said == came)
            assert verdict.right or verdict.says.endswith(
                exercise.why.get((said, came)) or exercise.why[said]
            )


@pytest.mark.parametrize(
    "name", [name for name in WRITTEN if isinstance(exercises.find(name), Implement)]
)
def test_every_mistake_in_the_list_gets_its_own_hint(name):
    exercise = exercises.find(name)
    for mistake in exercise.mistakes:
        if isinstance(mistake, Mistake):
            verdict = exercises.judge(name, mistake.wrong)
            assert not verdict.right and verdict.says.endswith(mistake.hint), (
                f"{mistake.hint}: {verdict.says}"
            )


@pytest.mark.parametrize(
    "name", [name for name in WRITTEN if isinstance(exercises.find(name), Implement)]
)
def test_no_verdict_prints_the_right_number(name):
    exercise = exercises.find(name)
    for mistake in exercise.mistakes:
        says = exercises.judge(name, getattr(mistake, "wrong", lambda *_: -1.0)).says
        for arguments in exercise.cases.values():
            right = np.ravel(np.asarray(exercise.right(*arguments), dtype=object))[0]
            assert (
                np.ndim(right)
                or float(right) in (0.0, 1.0)
                or f"{float(right):.3f}" not in says
            )


# --- what students write, and a piece of the hint that should come


def _wrong(text: str):
    """The one function or class of a student's text."""
    tree = ast.parse(text)
    libraries = {"np": np, "torch": torch, "nn": nn, "F": F, "softmax": utils.softmax}
    return defined(text, libraries)[tree.body[-1].name]


SPLITS = {
    "one True or False per image": (
        """
def split(groups, share, seed):
    return np.random.default_rng(seed).choice(len(groups), int(share * len(groups)), replace=False)"""
    ),
    "changes `groups`": (
        """
def split(groups, share, seed):
    np.random.default_rng(seed).shuffle(groups)
    return np.isin(groups, np.unique(groups)[: int(share * 60)])"""
    ),
    "same seed gave two": (
        """
def split(groups, share, seed):
    names = np.unique(groups)
    return np.isin(groups, names[np.random.random(len(names)) < share])"""
    ),
    "stands on both sides": (
        """
def split(groups, share, seed):
    order = np.random.default_rng(seed).permutation(len(groups))
    return order < share * len(groups)"""
    ),
    "Every seed gives the same": (
        """
def split(groups, share, seed):
    names = np.unique(groups)
    return np.isin(groups, names[: int(share * len(names))])"""
    ),
    "Which side does True": (
        """
def split(groups, share, seed):
    names = np.unique(groups)
    return ~np.isin(groups, names[np.random.default_rng(seed).random(len(names)) < share])"""
    ),
    "another share": (
        """
def split(groups, share, seed):
    names = np.unique(groups)
    return np.isin(groups, names[np.random.default_rng(seed).random(len(names)) < 0.2])"""
    ),
    "raises ValueError": (
        """
def split(groups, share, seed):
    return np.isin(groups, np.random.default_rng(seed).choice(np.unique(groups), 1000, replace=False))"""
    ),
}
RECALLS = {
    "plain accuracy": "def b(counts): return counts.diagonal().sum() / counts.sum()",
    "which is precision": (
        "def b(counts): return (counts.diagonal() / counts.sum(0)).mean()"
    ),
    "By how many of them": (
        "def b(counts): return (counts.diagonal() / counts.sum()).mean()"
    ),
    "should it pull the mean down": (
        "def b(counts): return (counts.diagonal() / np.fmax(counts.sum(1), 1)).mean()"
    ),
    "is something divided by zero": (
        "def b(counts): return (counts.diagonal() / counts.sum(1, dtype=float)).mean()"
    ),
    "above 1": "def b(counts): return np.nansum(counts.diagonal() / counts.sum(1))",
    "not one number": (
        "def b(counts): return counts.diagonal() / np.fmax(counts.sum(1), 1)"
    ),
}
SIDES = {
    "forgets the kernel": (
        "def s(side, kernel, stride, padding): return int(side / stride)"
    ),
    "One place is missing": (
        "def s(side, kernel, stride, padding): return (side + 2 * padding - kernel) //"
        " stride"
    ),
    "How many borders": (
        "def s(side, kernel, stride, padding): return (side + padding - kernel) //"
        " stride + 1"
    ),
    "Where is the padding": (
        "def s(side, kernel, stride, padding): return (side - kernel) // stride + 1"
    ),
    "no half pixel": (
        "def s(side, kernel, stride, padding): return (side + 2 * padding - kernel) /"
        " stride + 1"
    ),
    "the other way": (
        "def s(side, kernel, stride, padding): return 1 - (kernel - side - 2 * padding)"
        " // stride"
    ),
    "every other place": (
        "def s(side, kernel, stride, padding): return side + 2 * padding - (kernel - 1)"
    ),
}
WEIGHTS = {
    "frequent class weighs most": (
        "def w(labels, k): return np.bincount(labels, minlength=k) / len(labels)"
    ),
    "their size is not": (
        "def w(labels, k): return 1 / np.bincount(labels, minlength=k)"
    ),
    "With two classes of the same size": (
        "def w(labels, k): return len(labels) / np.bincount(labels, minlength=k)"
    ),
    "over the images": (
        "def w(labels, k):\n    w = 1 / np.bincount(labels, minlength=k)\n    return k"
        " * w / w.sum()"
    ),
    "not twice as heavy": (
        "def w(labels, k): return 1 - np.bincount(labels, minlength=k) / len(labels)"
    ),
    "no weight exceeds 1": (
        "def w(labels, k):\n    n = np.bincount(labels, minlength=k)\n    return"
        " n.min() / n"
    ),
    "where does their number stand": (
        "def w(labels, k): return len(labels) / (2 * np.bincount(labels, minlength=k))"
    ),
    "sum over the classes is 1": (
        "def w(labels, k):\n    w = 1 / np.bincount(labels)\n    return w / w.sum()"
    ),
    "not an array of shape": (
        "def w(labels, k): return (len(labels) / k / np.bincount(labels,"
        " minlength=k))[labels]"
    ),
    "still weigh the same": "def w(labels, k): return torch.ones(k)",
}
LOSS = "loss = F.cross_entropy(model(images), labels); "
STEPS = {
    "Return the loss": (
        f"def t(model, images, labels, optimizer): {LOSS}loss.backward();"
        " optimizer.step()"
    ),
    "A softmax stands before": (
        """
def t(model, images, labels, optimizer):
    loss = F.cross_entropy(torch.softmax(model(images), dim=1), labels)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    return loss.item()"""
    ),
    "the loss after the step": (
        f"""
def t(model, images, labels, optimizer):
    {LOSS}optimizer.zero_grad(); loss.backward(); optimizer.step()
    return F.cross_entropy(model(images), labels).item()"""
    ),
    "a mean or a sum": (
        """
def t(model, images, labels, optimizer):
    loss = F.cross_entropy(model(images), labels, reduction="sum")
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    return loss.item()"""
    ),
    "Which call moves them": (
        f"""
def t(model, images, labels, optimizer):
    {LOSS}loss.backward(); optimizer.zero_grad(); optimizer.step()
    return loss.item()"""
    ),
    "is each call made once": (
        f"""
def t(model, images, labels, optimizer):
    {LOSS}optimizer.zero_grad(); loss.backward(); optimizer.step(); optimizer.step()
    return loss.item()"""
    ),
    "whose gradient is still there": (
        f"""
def t(model, images, labels, optimizer):
    {LOSS}loss.backward(); optimizer.step()
    return loss.item()"""
    ),
    "raises RuntimeError: element 0 of tensors does not require grad": (
        f"""
def t(model, images, labels, optimizer):
    {LOSS}optimizer.zero_grad(); loss.detach().backward(); optimizer.step()
    return loss.item()"""
    ),
}
GRID = "grid = np.exp(np.linspace(-3, 3, 601)); rows = np.arange(len(labels))\n    "
TEMPERATURES = {
    "Multiplied or divided": (
        f"""
def t(logits, labels):
    {GRID}return min(grid, key=lambda t: -np.log(softmax(logits * t)[rows, labels]).mean())"""
    ),
    "return it?": (
        f"""
def t(logits, labels):
    {GRID}return np.log(min(grid, key=lambda t: -np.log(softmax(logits / t)[rows, labels]).mean()))"""
    ),
    "At which temperature": (
        f"""
def t(logits, labels):
    {GRID}return min(-np.log(softmax(logits / t)[rows, labels]).mean() for t in grid)"""
    ),
    "a softmax is taken twice": (
        f"""
def t(logits, labels):
    {GRID}return min(grid, key=lambda t: -np.log(softmax(softmax(logits) / t)[rows, labels]).mean())"""
    ),
    "its own answers": (
        f"""
def t(logits, labels):
    {GRID}return min(grid, key=lambda t: -np.log(softmax(logits / t).max(axis=1)).mean())"""
    ),
    "as if it were never wrong": (
        """
def t(logits, labels):
    labels, rows = logits.argmax(axis=1), np.arange(len(logits))
    return min(np.logspace(-2, 2, 200, base=np.e), key=lambda t: -np.log(softmax(logits / t)[rows, labels]).mean())"""
    ),
    "for the highest": (
        f"""
def t(logits, labels):
    {GRID}return max(grid, key=lambda t: softmax(logits / t)[rows, 1 - labels.clip(max=1)].mean())"""
    ),
    "Close.": (
        """
def t(logits, labels):
    rows = np.arange(len(labels))
    return min(np.exp(np.arange(-3, 3, 0.17)), key=lambda t: -np.log(softmax(logits / t)[rows, labels]).mean())"""
    ),
    "Search both below and above 1": (
        """
def t(logits, labels):
    rows = np.arange(len(labels))
    return min(np.linspace(1, 5, 801), key=lambda t: -np.log(softmax(logits / t)[rows, labels]).mean())"""
    ),
}
EDGES = (
    "bin_of = np.digitize(confidence, np.linspace(0, 1, bins + 1)[1:-1]); all_bins ="
    " range(bins)\n    "
)
PARTS = (
    EDGES
    + "parts = [(confidence[bin_of == b], right[bin_of == b]) for b in all_bins if"
    " (bin_of == b).any()]\n    "
)
ERRORS = {
    "every gap keep its sign": (
        f"""
def e(confidence, right, bins=10):
    {PARTS}return sum(len(c) / len(right) * (c.mean() - r.mean()) for c, r in parts)"""
    ),
    "as much as seven": (
        f"""
def e(confidence, right, bins=10):
    {PARTS}return np.mean([abs(c.mean() - r.mean()) for c, r in parts])"""
    ),
    "empty ones too": (
        f"""
def e(confidence, right, bins=10):
    {PARTS}return sum(abs(c.mean() - r.mean()) for c, r in parts) / bins"""
    ),
    "You square": (
        f"""
def e(confidence, right, bins=10):
    {PARTS}return sum(len(c) / len(right) * (c.mean() - r.mean()) ** 2 for c, r in parts)"""
    ),
    "where does the last one end": (
        """
def e(confidence, right, bins=10):
    total = 0
    for low in np.arange(bins) / bins:
        inside = (confidence >= low) & (confidence < low + 1 / bins)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total"""
    ),
    "one bin too many": (
        """
def e(confidence, right, bins=10):
    place = np.digitize(confidence, np.linspace(0, 1, bins + 1))
    parts = [place == b for b in np.unique(place)]
    return sum(inside.mean() * abs(confidence[inside].mean() - right[inside].mean()) for inside in parts)"""
    ),
    "middle of a bin": (
        f"""
def e(confidence, right, bins=10):
    {EDGES}middles = (np.arange(bins) + 0.5) / bins
    return sum((bin_of == b).mean() * abs(middles[b] - right[bin_of == b].mean()) for b in np.unique(bin_of))"""
    ),
    "grows with the number": (
        f"""
def e(confidence, right, bins=10):
    {PARTS}return sum(len(c) * abs(c.mean() - r.mean()) for c, r in parts)"""
    ),
    "equally wide": (
        """
def e(confidence, right, bins=10):
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return sum(len(p) / len(order) * abs(confidence[p].mean() - right[p].mean()) for p in parts)"""
    ),
    "worst bin": (
        f"""
def e(confidence, right, bins=10):
    {PARTS}return max(abs(c.mean() - r.mean()) for c, r in parts)"""
    ),
    "its own hit": (
        "def e(confidence, right, bins=10): return abs(confidence - right).mean()"
    ),
    "returns nan": (
        f"""
def e(confidence, right, bins=10):
    {EDGES}return sum(abs((confidence - right)[bin_of == b].mean()) for b in all_bins)"""
    ),
}
BLOCK = """
class B(nn.Module):
    def __init__(self, before, after, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Identity() if stride == 1 and before == after else nn.Conv2d(before, after, 1, stride)

    def branch(self, x):
        return self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))

    def forward(self, x):
        return torch.relu(self.branch(x) + self.shortcut(x))
"""
LAST = "return torch.relu(self.branch(x) + self.shortcut(x))"


def block(old: str, new: str) -> str:
    assert BLOCK.count(old) >= 1
    return BLOCK.replace(old, new)


BLOCKS = {
    "put side by side": block(
        LAST, "return torch.relu(torch.cat([self.branch(x), self.shortcut(x)], 1))"
    ),
    "Is a border lost": block(", padding=1", ""),
    "has two 3 x 3 convolutions": (
        block("self.conv2(torch", "(torch").replace(
            "        self.conv2 = nn.Conv2d(after, after, 3, padding=1)\n", ""
        )
    ),
    "is followed by its normalisation": (
        block("self.norm2(", "(").replace(
            "        self.norm2 = nn.BatchNorm2d(after)\n", ""
        )
    ),
    "depend on both": block(
        "torch.relu(self.norm1(self.conv1(x)))", "torch.relu(self.conv1(x))"
    ),
    "negative in places": block(
        "torch.relu(self.norm1(self.conv1(x)))", "self.norm1(self.conv1(x))"
    ),
    "no more than one": block(
        "torch.relu(self.norm1(self.conv1(x)))", "self.norm1(torch.relu(self.conv1(x)))"
    ),
    "which the shortcut still needs": block(
        LAST, "x += self.branch(x); return torch.relu(x)"
    ),
    "Is x itself added": block(LAST, "return torch.relu(self.branch(x))"),
    "without a layer between": block(
        "nn.Identity() if stride == 1 and before == after else ", ""
    ),
    "ReLU stand on the branch": block(
        LAST, "return torch.relu(self.branch(x)) + self.shortcut(x)"
    ),
    "what comes after the sum": block(LAST, "return self.branch(x) + self.shortcut(x)"),
    "can two shapes be added": block(LAST, "return torch.relu(self.branch(x) + x)"),
    "takes the stride": block("3, stride, padding", "3, 1, padding"),
    "needs a layer of its own": block(
        LAST,
        "return torch.relu(self.branch(x) + (self.shortcut(x) if x.shape[1] == "
        "self.conv2.out_channels else 0))",
    ),
    "rounds the other way": block(
        "nn.Conv2d(before, after, 1, stride)",
        "nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(before, after, 1))",
    ),
    "Hand over the class": "def B(before, after, stride): return nn.Identity()",
}
SCALE = "scale = (high - low) / 255; zero = np.round(-low / scale)\n    "
QUANTIZED = {
    "Which whole number": (
        f"""
def q(x, low, high):
    {SCALE}return np.clip(np.rint(x / scale), 0, 255).astype(np.uint8), scale"""
    ),
    "wrong sign": (
        f"""
def q(x, low, high):
    {SCALE}return np.clip(np.round(x / scale) - zero, 0, 255).astype(np.uint8), scale"""
    ),
    "comes out at the other end": (
        f"""
def q(x, low, high):
    {SCALE}return ((np.round(x / scale) + zero) % 256).astype(np.uint8), scale"""
    ),
    "Always downwards": (
        f"""
def q(x, low, high):
    {SCALE}return np.clip(x / scale + zero, 0, 255).astype(np.uint8), scale"""
    ),
    "towards zero": (
        f"""
def q(x, low, high):
    {SCALE}return np.clip((x / scale).astype(int) + zero, 0, 255).astype(np.uint8), scale"""
    ),
    "How many steps lie": (
        """
def q(x, low, high):
    scale = (high - low) / 256
    return np.clip(np.round((x - low) / scale), 0, 255).astype(np.uint8), scale"""
    ),
    "The scale is the width": (
        f"""
def q(x, low, high):
    {SCALE}return np.clip(np.round(x / scale) + zero, 0, 255).astype(np.uint8), 255 / (high - low)"""
    ),
    "what comes back for 0.0": (
        """
def q(x, low, high):
    scale = (high - low) / 255
    return np.clip(np.round((x - low) / scale), 0, 255).astype(np.uint8), scale"""
    ),
    "Your zero point is cut off": (
        """
def q(x, low, high):
    scale = (high - low) / 255
    return np.clip(np.round(x / scale) + int(-low / scale), 0, 255).astype(np.uint8), scale"""
    ),
    "half way between": (
        f"""
def q(x, low, high):
    {SCALE}return np.clip(x / scale + zero + 0.5, 0, 255).astype(np.uint8), scale"""
    ),
    "before you shift": (
        f"""
def q(x, low, high):
    {SCALE}return np.clip(np.round(x / scale), 0, 255) + zero, scale"""
    ),
    "not a tuple of 2": "def q(x, low, high): return np.round(x / (high - low) * 255)",
    "Three steps": "def q(x, low, high): return np.round(x), (high - low) / 255",
}
LOOP = """
def f(latency, size, accuracy):
    n, front = len(latency), []
    for i in range(n):
        front.append(not any(%s for j in range(n)))
    return np.array(front)"""
NO_WORSE = (
    "latency[j] <= latency[i] and size[j] <= size[i] and accuracy[j] >= accuracy[i]"
)
FRONTS = {
    "better in all three": (
        LOOP
        % "latency[j] < latency[i] and size[j] < size[i] and accuracy[j] > accuracy[i]"
    ),
    "beats itself": LOOP % NO_WORSE,
    "must beat all others": (
        LOOP % "j != i and (latency[j] <= latency[i] or size[j] <= size[i] or "
        "accuracy[j] >= accuracy[i])"
    ),
    "best in everything": (
        LOOP
        % "latency[j] < latency[i] or size[j] < size[i] or accuracy[j] > accuracy[i]"
    ),
    "throw each other out": LOOP % f"j != i and {NO_WORSE}",
    "likes a low accuracy": (
        LOOP
        % f"{NO_WORSE.replace('>=', '<=')} and (latency[j] < latency[i] or size[j] < "
        "size[i] or accuracy[j] < accuracy[i])"
    ),
    "marked those": (
        "def f(latency, size, accuracy):\n    best = np.stack([latency, size,"
        " -accuracy], 1)\n    return np.array([((best <= b).all(1) & (best <"
        " b).any(1)).any() for b in best])"
    ),
    "compare in pairs": (
        "def f(a, b, c): return (a == a.min()) | (b == b.min()) | (c == c.max())"
    ),
    "only the fastest": "def f(a, b, c): return a <= np.sort(a)[0]",
    "not an array of shape": "def f(a, b, c): return np.flatnonzero(a < 100)[:0]",
    "at least as good in all three": "def f(a, b, c): return np.ones(len(a), bool)",
}
TYPICAL = {
    "theme1/split_by_patient": SPLITS,
    "theme1/balanced_accuracy": RECALLS,
    "theme2/map_side": SIDES,
    "theme2/class_weights": WEIGHTS,
    "theme2/training_step": STEPS,
    "theme3/temperature": TEMPERATURES,
    "theme3/ece": ERRORS,
    "theme3/residual_block": BLOCKS,
    "theme4/quantize": QUANTIZED,
    "theme4/pareto": FRONTS,
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("name", "hint"),
    [(name, hint) for name, wrong in TYPICAL.items() for hint in wrong],
)
def test_what_students_write_gets_the_hint_that_fits(name, hint):
    verdict = exercises.judge(name, _wrong(TYPICAL[name][hint]))
    assert not verdict.right and hint in verdict.says, verdict.says


def test_every_written_exercise_has_typical_mistakes_and_every_property_fails_for_one_of_them():
    assert set(TYPICAL) == set(WRITTEN)
    for name in (name for name in WRITTEN if isinstance(exercises.find(name), Build)):
        said = {
            exercises.judge(name, _wrong(text)).says for text in TYPICAL[name].values()
        }
        for _, hint in exercises.find(name).properties:
            known = any(says.endswith(hint) for says in said)
            assert known or hint.startswith(
                "The first step is right, the second is not: what is left"
            ), hint


def test_other_ways_to_be_right_are_right():
    """Whoever solves it differently is not told to do it as we did."""
    assert exercises.judge(
        "theme3/ece",
        _wrong(
            f"""
def e(confidence, right, bins=10):
    {PARTS}return sum(len(c) / len(right) * abs(c.mean() - r.mean()) for c, r in parts)"""
        ),
    ).right
    assert exercises.judge("theme3/residual_block", _wrong(BLOCK)).right
    assert exercises.judge(
        "theme3/residual_block", utils.OptimizedCNN().features[-1].__class__
    ).right
    assert exercises.judge(
        "theme3/residual_block", _wrong(BLOCK.replace("BatchNorm2d(", "GroupNorm(2, "))
    ).right
    assert exercises.judge("theme3/temperature", utils.fit_temperature).right
    assert exercises.judge(
        "theme2/training_step",
        _wrong(f"""
def t(model, images, labels, optimizer):
    {LOSS}loss.backward(); optimizer.step(); optimizer.zero_grad()
    return loss"""),
    ).right
    assert exercises.judge(
        "theme2/training_step",
        _wrong(f"""
def t(model, images, labels, optimizer):
    {LOSS}optimizer.zero_grad(); loss.backward(); optimizer.step()
    return loss.detach().numpy()"""),
    ).right
    assert exercises.judge("theme2/class_weights", utils.class_weights).right
    assert exercises.judge(
        "theme1/split_by_patient",
        _wrong("""
def split(groups, share, seed):
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    return np.isin(groups, names[: round(share * len(names))])"""),
    ).right


# --- the solutions, on random cases and against something else


@pytest.mark.parametrize("seed", range(10))
def test_solutions_agree_with_others_on_random_cases(seed):
    rng = np.random.default_rng(seed)
    true, said = rng.integers(0, 3, (2, 60))
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (true, said), 1)
    assert np.isclose(
        solution("theme1/balanced_accuracy")(counts),
        balanced_accuracy_score(true, said),
    )
    side, kernel, stride, padding = (
        int(rng.integers(*ends)) for ends in ((8, 40), (1, 6), (1, 4), (0, 3))
    )
    windows = torch.zeros(1, 1, side + 2 * padding).unfold(2, kernel, stride)
    assert (
        solution("theme2/map_side")(side, kernel, stride, padding) == windows.shape[2]
    )
    confidence = rng.uniform(0.5, 1, 300)
    right = rng.random(300) < 0.8
    pairs = np.stack([1 - confidence, confidence], 1)
    assert np.isclose(
        solution("theme3/ece")(confidence, right),
        utils.expected_calibration_error(pairs, right * 1),
    )
    x = rng.normal(0, 2, 200).astype(np.float32)
    mine, scale = solution("theme4/quantize")(x, -1.0, 2.984375)
    theirs = torch.fake_quantize_per_tensor_affine(
        torch.from_numpy(x), float(scale), 64, 0, 255
    ).numpy()
    assert np.allclose((mine.astype(float) - 64) * scale, theirs)
    columns = {
        name: rng.integers(1, 6, 15).astype(float)
        for name in ("latency", "size", "accuracy")
    }
    table = utils.pd.DataFrame(columns)
    assert np.array_equal(
        solution("theme4/pareto")(**columns),
        utils.pareto(table, low=("latency", "size"), high=("accuracy",)),
    )


def test_temperature_finds_what_was_put_in():
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, (5_000, 2))
    labels = (rng.random(5_000) < utils.softmax(honest)[:, 1]).astype(int)
    for put_in in (0.5, 1.0, 3.0):
        assert solution("theme3/temperature")(honest * put_in, labels) == pytest.approx(
            put_in, rel=0.1
        )


def test_residual_block_of_the_solution_learns_what_a_plain_stack_of_layers_does_not():
    """Twenty blocks deep, the gradient still reaches the first weights: the reason for
    the shortcut.
    """
    torch.manual_seed(0)
    x, first = torch.randn(4, 4, 8, 8), {}
    plain = defined(
        cells("theme3")[place_of("theme3/residual_block")].source, {"torch": torch}
    )["MyBlock"]
    for name, kind in (
        ("residual", solution("theme3/residual_block")),
        ("plain", plain),
    ):
        network = nn.Sequential(*(kind(4, 4, 1) for _ in range(20))).eval()
        network(x).square().mean().backward()
        first[name] = float(network[0].conv1.weight.grad.abs().mean())
    assert first["residual"] > 100 * first["plain"]


def test_checks_leave_the_random_numbers_of_the_notebook_alone():
    for name in WRITTEN:
        torch.manual_seed(0), np.random.seed(0)  # noqa: NPY002 - the generators that a notebook may use
        before = (
            torch.random.get_rng_state(),
            np.random.get_state()[1].copy(),  # noqa: NPY002
        )  # noqa: NPY002
        exercises.judge(name, solution(name))
        after = torch.random.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
        assert torch.equal(before[0], after[0]) and np.array_equal(
            before[1], after[1]
        ), name


@pytest.mark.parametrize("theme", ["theme1", "theme2", "theme3", "theme4"])
def test_every_section_ends_with_what_to_look_at(theme):
    """After its last code cell, and before the next section; nothing is shown that no
    sentence opens up.
    """
    heading, open_cells, sections = "", 0, 0
    for cell in cells(theme)[4:]:
        if cell.cell_type == "code":
            open_cells += 1
            continue
        for part in re.split(r"(?m)^(?=## )", cell.source):
            if part.startswith("## "):
                assert not (re.match(r"## \d", heading) and open_cells), (
                    f"{theme}: nothing to look at in '{heading}'"
                )
                heading, open_cells, sections = (
                    part.splitlines()[0],
                    0,
                    sections + bool(re.match(r"## \d", part)),
                )
            if "*What to look at:*" in part or "*What to look at* in" in part:
                open_cells = 0
    assert sections >= 5
