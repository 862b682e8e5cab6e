"""What a stored result depends on: found by walking, the same on every Python, taken
from the modules as they stood when they were imported."""

import importlib
import itertools
import linecache
import operator
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from types import ModuleType

import numpy as np
import pytest
from torch import nn

import utils
from kit import fingerprint as room
from kit.fingerprint import fingerprint

KIT = Path(utils.__file__).parent

# One of everything that Pythons have parsed differently.
ODD = '''
def odd[T](x: T = 1, *, y: "int" = 2) -> T:
    """Docstring."""
    text = "a" f"{x!r:>{y}} b" 'c' f"{x=} {x:%Y-%m}" f"{{}}é\\N{BULLET}"
    return [z async for z in x if (w := z)], f"{x:{y}.{y}f}", lambda q=text: q
'''
SYNTAX = """
import ast, hashlib, sys
from kit.syntax import globals_of, text_of
told = hashlib.sha256()
for path in sys.argv[1:]:
    for node in ast.parse(open(path, encoding="utf-8").read()).body:
        names, attributes, _ = globals_of(node)
        told.update(repr((text_of(node), sorted(names), sorted(attributes))).encode())
print(told.hexdigest())
"""


def pythons() -> list[str]:
    """Every Python 3.11 to 3.13 of this machine that starts."""
    names = [f"python3.{minor}" for minor in (11, 12, 13)]
    versions = Path.home() / ".pyenv" / "versions"
    found = [*map(shutil.which, names), *versions.glob("3.1[123].*/bin/python")]
    starts = [sys.executable]
    for path in {str(path) for path in found if path}:
        asked = subprocess.run([path, "-c", "print(1)"], capture_output=True)
        starts += [path] if asked.returncode == 0 else []
    return starts


@pytest.mark.course
def test_syntax_is_the_same_text_on_every_python(tmp_path):
    """On all files of the kit; and against a digest written down, so that machines with
    one Python each compare as well."""
    odd = tmp_path / "odd.py"
    odd.write_text(ODD.replace("[T]", "").replace("async for", "for"), encoding="utf-8")
    files = [*KIT.glob("*.py"), *KIT.glob("kit/*.py"), *KIT.glob("models/*.py"), odd]

    def told(python, *paths):
        command = [python, "-c", SYNTAX, *map(str, paths)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=KIT, check=True
        )
        return done.stdout.strip()

    assert len({told(python, *files) for python in pythons()}) == 1
    assert told(sys.executable, odd)[:16] == "8735fdb11ca39334"


HELPER = """
LIMIT = 3
TABLE = {"a": 1}
TABLE["b"] = 2

def helper(x):
    return x + LIMIT

class Part:
    def run(self, x):
        return helper(x)

def aside(x):
    return -x
"""
WORK = """
import helper_{name} as other
from helper_{name} import Part, TABLE as table

def work(x, aside=0):
    aside = x  # a variable of its own, not the function of that name
    return Part().run(x) + other.TABLE["a"] + len(table)

def aside():
    return 1
"""


MADE = itertools.count()  # modules are imported once a process


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function over two files, imported; each call makes it anew, edited."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(edit=lambda helper, work: (helper, work)):
        name = f"f{next(MADE)}"
        helper, work = edit(HELPER, WORK.replace("{name}", name))
        (tmp_path / f"helper_{name}.py").write_text(helper)
        (tmp_path / f"work_{name}.py").write_text(work)
        return importlib.import_module(f"work_{name}")

    return make


@pytest.mark.parametrize(
    "old, new, changes",
    [
        ("x + LIMIT", "x - LIMIT", True),
        ("LIMIT = 3", "LIMIT = 4", True),
        ('TABLE["b"] = 2', 'TABLE["b"] = 3', True),
        ("def run(self, x):", "def run(self, x, more=1):", True),
        ("return -x", "return +x", False),
        ("def aside():\n    return 1", "def aside():\n    return 2", False),
        ("x + LIMIT", "(x\n        + LIMIT)  # why", False),
        ("def helper(x):", 'def helper(x: int) -> int:\n    """What."""', False),
    ],
)
def test_an_edit_of_what_is_reached_counts_and_no_other(module, old, new, changes):
    def edit(helper, work):
        assert old in helper + work
        return helper.replace(old, new), work.replace(old, new)

    before = fingerprint(module().work)
    assert (fingerprint(module(edit).work) != before) is changes


def test_a_file_edited_under_a_running_kernel_counts_when_it_is_imported_again(module):
    work = module()
    helper = sys.modules[work.other.__name__]
    before = fingerprint(work.work)
    path = Path(helper.__file__)
    path.write_text("# a line above\n" + path.read_text().replace("x + L", "x - L"))
    assert fingerprint(work.work) == before
    os.utime(path, (1, 1))
    importlib.reload(helper)
    assert fingerprint(work.work) != before


@pytest.mark.course
def test_a_module_that_was_never_asked_about_counts_as_it_was_imported():
    """In a new process: utils is imported, then edited, then asked."""
    code = (
        "import pathlib, sys, utils\n"
        "from kit.drifts import drift_data\n"
        "from kit.fingerprint import fingerprint\n"
        "read = pathlib.Path.read_text\n"
        "pathlib.Path.read_text = lambda *_, **__: sys.exit('read again')\n"
        "print(fingerprint(utils.fit), fingerprint(utils.detect, drift_data))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=KIT
    )
    assert done.returncode == 0, done.stderr


def test_arguments_and_notebook_code(monkeypatch):
    @dataclass
    class Recipe:
        rate: float

    weights = nn.Linear(2, 1)
    same = nn.Linear(2, 1)
    same.load_state_dict(weights.state_dict())
    double, triple = partial(operator.mul, 2), partial(operator.mul, 3)
    table = np.arange(6.0)
    assert fingerprint(weights) == fingerprint(same) != fingerprint(nn.Linear(2, 1))
    assert fingerprint(double) == fingerprint(partial(operator.mul, 2))
    different = [
        (double, triple),
        (max, min),
        (np.add, np.multiply),
        (Recipe(0.1), Recipe(0.2)),
        (table, table + 1),
        (table, table.reshape(2, 3)),
        ([1, 2], [2, 1]),
        (1, "1"),
        (None, 0),
    ]
    assert not [pair for pair in different if len({*map(fingerprint, pair)}) == 1]

    def cell(source, **names):
        """What IPython makes of a cell: code that only `linecache` holds."""
        file = f"<cell {hash(source)}>"
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
        space = {"nn": nn, "__name__": "__main__", **names}
        exec(compile(source, file, "exec"), space)
        return space["work"]

    def network(factor):
        """Python finds no source of such a class; its methods must speak for it."""
        body = f"class work(nn.Module):\n    def forward(self, x): return {factor} * x"
        return cell(body)()

    assert fingerprint(network(2)) == fingerprint(network(2))
    assert fingerprint(network(2)) != fingerprint(network(3))
    uses = "def work(x): return x + COST"
    assert fingerprint(cell(uses, COST=1)) == fingerprint(cell(uses, COST=1))
    assert fingerprint(cell(uses, COST=1)) != fingerprint(cell(uses, COST=2))
    assert fingerprint(cell("def work(x): return utils.fit", utils=utils)) != (
        fingerprint(cell("def work(x): return utils.detect", utils=utils))
    )


def test_a_detector_that_a_student_registers_or_repairs_is_measured_again(monkeypatch):
    before = fingerprint(utils.alarm_rates)

    def broken(reference, window, **_):
        return 0.0

    def repaired(reference, window, **_):
        return 1.0

    told = []
    for mine in (broken, repaired):
        monkeypatch.setitem(utils.DETECTORS, "mine", ("embedding", mine, {}))
        told.append(fingerprint(utils.alarm_rates))
    assert len({before, *told}) == 3


@pytest.mark.parametrize(
    "path, ours",
    [
        (r"C:\kit\utils.py", True),
        (r"C:\kit\.venv\Lib\site-packages\torch\nn\__init__.py", False),
        (r"C:\Python312\Lib\json\__init__.py", False),
        ("<string>", False),
        (None, False),
    ],
)
def test_a_module_of_windows_is_ours_or_a_library_s(monkeypatch, path, ours):
    monkeypatch.setattr(room, "Path", PureWindowsPath)
    monkeypatch.setattr(room, "STANDARD_LIBRARY", r"c:\python312\lib")
    module = ModuleType("some")
    module.__file__ = path
    assert room._is_ours(module) == ours
