"""The exercises as the notebooks ask for them: cells, solutions, names of a kernel."""

import ast
import re
from functools import cache
from importlib import import_module
from types import SimpleNamespace

import nbformat

from exercises import Predict
from kit.files import KIT

EXERCISES = {
    f"theme{theme}/{short}": exercise
    for theme in range(1, 9)
    for short, exercise in import_module(f"exercises.theme{theme}").EXERCISES.items()
}
PREDICTED = [n for n, exercise in EXERCISES.items() if isinstance(exercise, Predict)]
WRITTEN = [name for name in EXERCISES if name not in PREDICTED]
IMPORTED = (ast.Import, ast.ImportFrom)
DEFINED = (ast.FunctionDef, ast.ClassDef, *IMPORTED)


@cache
def cells(theme: str) -> list:
    path = next((KIT / "notebooks").glob(f"{theme}_*.ipynb"))
    return nbformat.read(path, 4).cells


def code(theme: str) -> list[str]:
    """The code cells, without the lines that only a notebook understands."""
    sources = [cell.source for cell in cells(theme) if cell.cell_type == "code"]
    return [re.sub(r"^%.*\n?", "", source, flags=re.MULTILINE) for source in sources]


@cache
def asked(name: str) -> SimpleNamespace:
    """The one cell that asks for an exercise, its statement, its folded solution, and
    what the student's function is called there.
    """
    book = cells(name[:6])
    call = re.compile(rf'exercises\.(?:check|predict)\(\s*"{name}",\s*(\w+)')
    places = [n for n, cell in enumerate(book) if call.search(cell.source)]
    (place,) = (n for n in places if book[n].cell_type == "code")
    return SimpleNamespace(
        place=place,
        statement=book[place - 1].source,
        source=book[place].source,
        folded=book[place + 1],
        answer=call.search(book[place].source)[1],
    )


def defined(source: str, names: dict, kinds: tuple = DEFINED) -> dict:
    """What a cell or a solution imports and defines, and nothing else of it, in a
    notebook that knows `names`.
    """
    tree, names = ast.parse(source), dict(names)
    tree.body = [node for node in tree.body if isinstance(node, kinds)]
    exec(compile(tree, "cell", "exec"), names)
    return names


def answer_of(source: str, name: str):
    """The student's function, in a kernel that knows what the cells before import."""
    text = "\n".join(code(name[:6]))
    text = text[: text.index(f'"{name}"')].rpartition("\n\n")[0]
    return defined(source, defined(text, {}, IMPORTED))[asked(name).answer]


@cache
def solution(name: str):
    (block,) = re.findall(r"```python\n(.+?)```", asked(name).folded.source, re.DOTALL)
    return answer_of(block, name)
