"""A group's own code: written once, known to later kernels."""

import itertools
import linecache
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from support.books import asked, code

import utils
from kit import own

NUMBER = itertools.count()
BLOCK = """
from torch import nn
import torch

class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
    def forward(self, x):
        return torch.relu(x + self.conv(x))
"""
NET = """
WIDTH = 6

class MyCNN(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, WIDTH, 3), Block(WIDTH))
        self.head = nn.Linear(WIDTH, classes)
    def forward(self, x):
        return self.head(self.body(x).mean(dim=(2, 3)))
"""


def cell(text: str, space: dict) -> None:
    """Run a text as a notebook runs a cell: its source is kept in linecache."""
    name = f"<cell {next(NUMBER)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    exec(compile(text, name, "exec"), space)


@pytest.fixture
def notebook(tmp_path):
    own.load_own(tmp_path)
    yield {"__name__": "__main__"}
    own.load_own(tmp_path / "nowhere")  # other tests do not know what was registered


def in_a_new_kernel(home: Path, code: str) -> str:
    program = (
        f"from pathlib import Path; from kit import own\nhome = Path({str(home)!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program + code],
        cwd=utils.__file__.rpartition("/")[0],
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def test_a_class_with_what_it_uses(tmp_path, notebook):
    cell(BLOCK, notebook)
    cell(NET, notebook)
    own.keep_own("model", "MyCNN", notebook["MyCNN"])
    said = in_a_new_kernel(
        tmp_path,
        "import torch\n[(kind, name, MyCNN)] = own.load_own(home)\n"
        "print(kind, name, MyCNN(1, 2)(torch.zeros(3, 1, 8, 8)).shape)",
    )
    assert said == "model MyCNN torch.Size([3, 2])\n"


def test_what_is_called_by_another_name(tmp_path, notebook):
    """`Block = exercises.check("theme3/residual_block", MyBlock)`."""
    cell(BLOCK.replace("class Block", "class MyBlock"), notebook)
    cell("Block = MyBlock", notebook)
    cell(NET, notebook)
    own.register_model(notebook["MyCNN"])
    said = in_a_new_kernel(
        tmp_path,
        "import torch\n[(kind, name, MyCNN)] = own.load_own(home)\n"
        "print(MyCNN(1, 2)(torch.zeros(3, 1, 8, 8)).shape)",
    )
    assert said == "torch.Size([3, 2])\n"


def test_registered_again_it_replaces_only_itself(tmp_path, notebook):
    cell(
        "def mine(x, y):\n    return 0.1\n\ndef other(x, y):\n    return 0.2", notebook
    )
    own.keep_own("detector", "mine", notebook["mine"])
    own.keep_own("detector", "other", notebook["other"])
    cell("def mine(x, y):\n    return 0.3", notebook)
    own.keep_own("detector", "mine", notebook["mine"])
    found = {name: thing(0, 0) for _, name, thing in own.load_own(tmp_path)}
    assert found == {"mine": 0.3, "other": 0.2}


def test_what_comes_back_can_be_registered_again(tmp_path, notebook):
    cell("def mine(x, y):\n    return float(np.abs(x).mean())", notebook | {"np": np})
    space = notebook | {"np": np}
    cell("def mine(x, y):\n    return float(np.abs(x).mean())", space)
    own.keep_own("detector", "mine", space["mine"])
    [(kind, name, loaded)] = own.load_own(tmp_path)
    own.keep_own(kind, name, loaded)
    [(_, _, again)] = own.load_own(tmp_path)
    assert again(np.array([-2.0]), None) == 2.0


def test_a_value(tmp_path, notebook):
    rule = utils.AlertRule("unsure", "low_confidence_share", ">", 0.2, runbook="look")
    own.keep_own("rule", "unsure", rule)
    assert own.load_own(tmp_path) == [("rule", "unsure", rule)]


def test_a_class_of_a_file_is_imported(tmp_path, notebook):
    own.keep_own("model", "Linear", torch.nn.Linear)
    assert own.load_own(tmp_path) == [("model", "Linear", torch.nn.Linear)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "def mine(x, y):\n    return later(x)",
            "mine uses later, which is not defined",
        ),
        ("mine = lambda x, y: 0.5", "define it with def or class"),
        (
            "model = torch.nn.Linear(1, 1)\ndef mine(x, y):\n    return model(x)",
            "mine uses a Linear that my_code.py cannot hold",
        ),
    ],
)
def test_what_a_file_cannot_hold(tmp_path, notebook, text, says):
    notebook |= {"np": np, "torch": torch}
    cell("def good(x, y):\n    return 0.5", notebook)
    own.keep_own("detector", "good", notebook["good"])
    before = (tmp_path / own.FILE).read_bytes()
    cell(text, notebook)
    with pytest.raises(utils.CourseError, match=says):
        own.keep_own("detector", "mine", notebook["mine"])
    assert (tmp_path / own.FILE).read_bytes() == before


BUILT = [
    (3, "class MyCNN"),
    (5, "unsure ="),
    (6, "def my_drift"),
    (6, "def my_detector"),
]


@pytest.mark.parametrize(("theme", "begins"), BUILT)
def test_an_exercise_that_registers_is_right_as_it_stands(
    tmp_path, notebook, theme, begins
):
    """Its mistakes: WRONG, below."""
    text = "\n\n".join(code(f"theme{theme}"))
    text = text[text.index(begins) :]
    text = text[: re.search(r"^utils\.register_\w+\([^)]*\)", text, re.M).end()]
    notebook |= {"utils": utils, "torch": torch, "nn": torch.nn, "stats": stats}
    solved = asked("theme3/residual_block").folded.source
    cell(re.search(r"```python\n(.+?)```", solved, re.S)[1], notebook)
    cell("Block = MyBlock", notebook)
    cell(text, notebook)
    [(_, name, _)] = own.load_own(tmp_path)
    assert f"def {name}" in text or f"class {name}" in text or f'"{name}"' in text


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("def broken(:", "SyntaxError"),
        ("value = missing + 1", "NameError: name 'missing' is not defined"),
        ("raise ValueError('no')", "ValueError: no"),
    ],
)
def test_a_file_that_does_not_run_names_its_line(tmp_path, notebook, line, says):
    path = tmp_path / own.FILE
    path.write_text(f"# -*- by hand -*-\r\n\r\n{line}\r\n", newline="")
    before = path.read_bytes()
    with pytest.raises(utils.CourseError, match=rf"my_code.py, line 3: {says}.*Mend"):
        own.load_own(tmp_path)
    assert path.read_bytes() == before


def test_a_broken_file_costs_nothing_of_its_home(open_course, tmp_path):
    utils.build_index(open_course())
    home = tmp_path / "home"
    (home / own.FILE).write_text("def broken(:\n")
    before = {p: p.read_bytes() for p in home.rglob("*") if p.is_file()}
    with pytest.raises(utils.CourseError, match=r"my_code.py, line 1: SyntaxError"):
        open_course()
    assert {p: p.read_bytes() for p in home.rglob("*") if p.is_file()} == before
    (home / own.FILE).unlink()
    assert utils.load_data(open_course()).pixels.size


# --- what can be registered

LINEAR = """
from torch import nn
class Mine(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.maps = nn.Conv2d(channels, 4, 3)
        self.last = nn.Linear(4, classes)
    def forward(self, x):
        return self.last(self.maps(x).mean(dim=(2, 3)))
"""


def test_a_network_in_two_shares_its_weights(notebook):
    cell(LINEAR, notebook)
    own.register_model(notebook["Mine"])
    model, images = notebook["Mine"](1, 2).eval(), torch.rand(5, 1, 9, 9)
    body, head = own.split_head(model)
    assert torch.equal(head(body(images)), model(images))
    assert body(images).shape == (5, 4) and head is model.last
    assert all(
        a is b for a, b in zip(body.parameters(), model.parameters(), strict=False)
    )


def test_everything_registered_is_there_in_a_new_kernel(tmp_path, notebook):
    notebook["np"] = np
    cell(LINEAR, notebook)
    cell("def brighter(images):\n    return (images + 0.1).clamp(0, 1)", notebook)
    cell(
        "def mean_test(x, y):\n    return float(np.abs(x.mean() - y.mean()) < 1)",
        notebook,
    )
    cell("def fog(images, severity, rng):\n    return images + severity", notebook)
    own.register_model(notebook["Mine"])
    own.register_augmentation(notebook["brighter"])
    own.register_detector(notebook["mean_test"], view="statistics")
    own.register_drift(notebook["fog"])
    own.register_rule(utils.AlertRule("not sure", "low_confidence_share", ">", 0.2))
    said = in_a_new_kernel(
        tmp_path,
        "own.load_own(home)\n"
        "print({kind: list(things) for kind, things in own.OWN.items()})\n"
        "print(own.OWN['detector']['mean_test'].view)",
    )
    assert said.splitlines() == [
        "{'model': ['Mine'], 'augmentation': ['brighter'], 'detector': ['mean_test'],"
        " 'drift': ['fog'], 'rule': ['not_sure']}",
        "statistics",
    ]


FOREVER, LOOP = "def Mine(", "while True: pass"
RIGHT = "def Right(x, y):\n    return 0.5"
WRONG = [
    (
        "model",
        LINEAR.replace("return self.last(", "return nn.Softmax(1)(self.last(").replace(
            "(2, 3)))", "(2, 3))))"
        ),
        "without a softmax",
    ),
    (
        "model",
        LINEAR.replace("channels, classes", "classes"),
        "Mine.channels, classes.",
    ),
    (
        "model",
        LINEAR.replace("nn.Linear(4, classes)", "nn.Identity()").replace(
            "(channels, 4, 3)", "(channels, classes, 3)"
        ),
        "Mine has no nn.Linear: end it with one",
    ),
    (
        "model",
        LINEAR.replace("return self.last(", "x -= 0.1\n        return self.last("),
        "changes what it is given; let it make a copy",
    ),
    (
        "model",
        LINEAR.replace("(2, 3)))", "(2, 3)).squeeze())"),
        "answers one image alone otherwise",
    ),
    (
        "model",
        LINEAR.replace("self.last(", "self.last(nn.functional.dropout(").replace(
            "(2, 3)))", "(2, 3))))"
        ),
        "F.dropout wants training=self.training",
    ),
    (
        "model",
        LINEAR.replace("(2, 3)))", "(2, 3))), x"),
        r"makes \('tuple',\) of 2 images",
    ),
    ("detector", "def Mine(x, y):\n    y -= y.mean()\n    return 0.5", "let it make a"),
    ("augmentation", "def Mine(images):\n    return images.mul_(0.5)", "let it make a"),
    ("augmentation", f"{FOREVER}images):\n    {LOOP}", "no answer after .* s: a loop"),
    ("detector", f"{FOREVER}x, y):\n    {LOOP}", "no answer after .* s: a loop"),
    ("drift", f"{FOREVER}images, severity, rng):\n    {LOOP}", "no answer after"),
    (
        "drift",
        "def Mine(images, severity, rng):\n    images[:] = 0\n    return images",
        "let it make a copy",
    ),
    (
        "drift",
        "def Mine(images, severity, rng):\n    return images * float('nan')",
        "must return finite numbers",
    ),
    ("rule", "def Mine(row):\n    return True", "takes an AlertRule: .* no attribute"),
    ("detector", "def Mine(x, y):\n    return 2.0", "p-value.*returned 2.0"),
    ("detector", "def Mine(x, y):\n    return float('nan')", "returned nan"),
    ("detector", "def Mine(x, y):\n    return 0.1, True", r"returned \(0.1, True\)"),
    ("detector", "def Mine(x):\n    return 0.1", "takes 1 positional argument"),
    (
        "drift",
        "def Mine(images, severity, rng):\n    return images[0]",
        "shape of images",
    ),
    ("augmentation", "def Mine(images):\n    return images + 1", "floats in 0..1"),
    (
        "augmentation",
        "def Mine(images):\n    return images.missing",
        r"missing' \(line 2 of its cell: return images\.missing\)\.",
    ),
]


@pytest.mark.parametrize(("kind", "text", "says"), WRONG)
def test_what_cannot_be_used_is_said_before_it_is_kept(
    tmp_path, notebook, monkeypatch, kind, text, says
):
    if LOOP in text:
        monkeypatch.setattr(own, "SECONDS", 0.3)
    cell(RIGHT, notebook)
    own.register_detector(notebook["Right"])
    before, known = (tmp_path / own.FILE).read_bytes(), dict(own.OWN)
    cell(text, notebook)
    register = getattr(own, f"register_{kind}")
    with pytest.raises(utils.CourseError, match=says) as caught:
        register(notebook["Mine"])
    assert "\n" not in str(caught.value)
    assert (tmp_path / own.FILE).read_bytes() == before and own.OWN == known


def test_a_trial_draws_nothing_that_the_notebook_would_miss(notebook):
    notebook["torch"] = torch
    cell("def noisy(images):\n    return torch.rand_like(images)", notebook)
    before = torch.random.get_rng_state()
    own.register_augmentation(notebook["noisy"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_network_of_one_size_is_tried_on_that_of_its_home(tmp_path, notebook):
    fixed = LINEAR.replace("(4, classes)", "(4 * 38 * 38, classes)").replace(
        ".mean(dim=(2, 3))", ".flatten(1)"
    )
    cell(fixed, notebook)
    own.load_own(tmp_path, (3, 2, 40))
    own.register_model(notebook["Mine"])
    own.load_own(tmp_path, (3, 2, 64))
    with pytest.raises(utils.CourseError, match="shapes cannot be multiplied"):
        own.register_model(notebook["Mine"])


def test_a_rule_takes_no_name_of_the_course(tmp_path, notebook):
    """Else the alarms of all later notebooks would stop at two rules of one name."""
    rule = utils.AlertRule("class mix", "low_confidence_share", ">", 0.2)
    with pytest.raises(utils.CourseError, match="has a rule class_mix of its own"):
        own.register_rule(rule)
    assert not (tmp_path / own.FILE).exists()
    own.register_rule(replace(rule, name="mine"))
    assert utils.default_rules(10)[-1].name == "mine" and "mine" in utils.RUNBOOKS
    own.load_own(tmp_path / "elsewhere")
    assert "mine" not in utils.RUNBOOKS


def test_a_detector_gets_arrays_of_its_own(notebook):
    """One that goes wrong in use harms no reference, and says which number is wrong."""
    cell(
        "def centred(x, y):\n    if len(x) == 40: return 0.5\n"
        "    x -= 1.0\n    return 1.0 + x[0, 0]",
        notebook,
    )
    own.register_detector(notebook["centred"], view="statistics")
    statistics = utils.pd.DataFrame(np.ones((50, 3)))
    seen = utils.Observation(statistics, np.full((50, 2), 0.5), np.ones((50, 4)))
    assert utils.detect(seen, seen, "centred").p_value == 1.0
    assert (seen.statistics == 1).all(axis=None)
