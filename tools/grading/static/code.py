"""What code says, file by file: what a name was given, numbers, words of a name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tools.grading.static.look import Look
from tools.shared.parsing import Source

DEEP = 8  # names that stand for names


def files(look: Look) -> dict[Path, list[Source]]:
    """The sources of each notebook and module, in order."""
    found: dict[Path, list[Source]] = {}
    for source in look.sources:
        found.setdefault(source.path, []).append(source)
    return found


def assigned(sources: list[Source]) -> dict[str, ast.expr]:
    """What each name was given last, in whatever scope."""
    return {
        target.id: node.value
        for source in sources
        for node in source.nodes
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def called(node: ast.AST) -> str:
    """The last name of what is called: `export` of torch.onnx.export(…)."""
    function = getattr(node, "func", None)
    return getattr(function, "attr", getattr(function, "id", ""))


def argument(call: ast.Call, place: int, name: str) -> ast.expr | None:
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return call.args[place] if place < len(call.args) else None


def numbers(node: ast.expr | None, names: dict, left: int = DEEP) -> tuple | None:
    """The numbers that an expression stands for; None where only a run would tell."""
    if isinstance(node, ast.Constant):
        is_number = type(node.value) in (int, float)
        return (node.value,) if is_number else None
    if isinstance(node, ast.Name) and left:
        return numbers(names.get(node.id), names, left - 1)
    if isinstance(node, (ast.List, ast.Tuple)):
        parts = [numbers(part, names, left) for part in node.elts]
        return None if None in parts or not parts else sum(parts, ())
    repeated = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)
    return numbers(node.left, names, left) if repeated else None


def names_in(node: ast.AST) -> set[str]:
    """Names and attributes in a piece of code, in small letters."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            found.add(part.id.casefold())
        elif isinstance(part, ast.Attribute):
            found.add(part.attr.casefold())
    return found


def calls_in(node: ast.AST, *names: str) -> Iterator[ast.Call]:
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and called(part) in names:
            yield part


def says(pattern: str, names: set[str]) -> bool:
    return any(re.search(pattern, name) for name in names)
