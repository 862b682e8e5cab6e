"""A group's own code: registered in one notebook, kept in my_code.py of the home, known
to all later notebooks.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import inspect
import linecache
import re
import sys
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType

from kit.files import CourseError, atomic
from kit.syntax import globals_of

FILE = "my_code.py"
HEAD = '''"""Our own code, as our notebooks registered it; later ones load it."""

import math

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from utils import AlertRule
'''
# What HEAD and Python bind: every cell may use it.
KNOWN = {"math", "np", "pd", "torch", "F", "nn", "AlertRule", *dir(builtins)}
MARK = "# --- {kind}: {name} ---"
BLOCK = re.compile(r"^# --- (?P<kind>\w+): (?P<name>\w+) ---\n", re.MULTILINE)
OF_A_CELL = ("__main__", "my_code")
PLAIN = (bool, int, float, str, type(None), tuple, list, dict)
_opened: list[Path] = []  # my_code.py of the home that this kernel has open


def load_own(home: Path) -> list[tuple[str, str, object]]:
    """(kind, name, thing) of everything that my_code.py of a home registers.

    Raises
    ------
    CourseError
        The file does not run, and the line where it stops.
    """
    path = home / FILE
    _opened[:] = [path]
    if not path.exists():
        return []
    module = _run(path)
    found = BLOCK.findall(path.read_text(encoding="utf-8-sig"))
    return [(kind, name, getattr(module, name)) for kind, name in found]


def keep_own(kind: str, name: str, thing) -> None:
    """Write a function, class or value, and what it uses of its notebook, to
    my_code.py; one of the same kind and name is replaced.

    Raises
    ------
    CourseError
        Its source is nowhere to be read, or it uses what a file cannot hold. The file
        stays as it was.
    """
    if not _opened:  # no home is open: known in this kernel alone
        return
    path, own = _opened[0], "\n\n\n".join(_sources(name, thing))
    blocks = _blocks(path.read_text(encoding="utf-8-sig")) if path.exists() else {}
    blocks[kind, name] = own
    parts = [HEAD.rstrip()]
    for (kind_, name_), text in blocks.items():
        parts.append(f"{MARK.format(kind=kind_, name=name_)}\n{text.strip()}")
    with atomic(path) as temporary:
        temporary.write_text("\n\n\n".join(parts) + "\n", encoding="utf-8")
        _run(temporary)


def _blocks(text: str) -> dict[tuple[str, str], str]:
    _, *parts = BLOCK.split(text)
    return dict(
        zip(zip(parts[::3], parts[1::3], strict=True), parts[2::3], strict=True)
    )


def _run(path: Path) -> ModuleType:
    """my_code.py as a module."""
    spec = importlib.util.spec_from_loader("my_code", loader=None, origin=str(path))
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    text = path.read_text(encoding="utf-8-sig")
    try:
        exec(compile(text, str(path), "exec"), vars(module))
    except Exception as error:
        line = _line_of(error, path)
        raise CourseError(
            f"{path.parent / FILE}, line {line}: {type(error).__name__}: {error}. Mend"
            " that line, or delete the file to go on without your own code."
        ) from error
    sys.modules["my_code"] = module
    linecache.checkcache(str(path))
    return module


def _line_of(error: Exception, path: Path) -> int | None:
    """The line of the file where an error arose."""
    if isinstance(error, SyntaxError):
        return error.lineno
    frames = inspect.getinnerframes(error.__traceback__)
    return [frame.lineno for frame in frames if frame.filename == str(path)][-1]


def _sources(name: str, thing) -> list[str]:
    """The text of a definition, after those of its notebook that it uses."""
    found: dict[str, str] = {}

    def add(name: str, thing, user: str) -> None:
        if name in found:
            return
        if inspect.ismodule(thing):
            found[name] = f"import {thing.__name__} as {name}"
        elif isinstance(thing, PLAIN) or is_dataclass(type(thing)):
            found[name] = f"{name} = {thing!r}"
        elif not hasattr(thing, "__name__") or thing.__module__ in OF_A_CELL:
            add_definition(name, thing, user)
        else:
            found[name] = f"from {thing.__module__} import {thing.__name__} as {name}"

    def add_definition(name: str, thing, user: str) -> None:
        text, space = _source(thing, user)
        found[name] = ""  # it may use itself
        for other in sorted(globals_of(ast.parse(text))[0] - KNOWN - {name}):
            if other not in space:
                raise CourseError(f"{name} uses {other}, which is not defined yet.")
            add(other, space[other], name)
        found[name] = found.pop(name) + text

    add(name, thing, name)
    return list(found.values())


def _source(thing, user: str) -> tuple[str, dict]:
    """The text of a function or class, as its cell has it, and the names that it
    sees.
    """
    function = thing
    if inspect.isclass(thing):  # before Python 3.13 only its methods know their cell
        methods = [m for m in vars(thing).values() if inspect.isfunction(m)]
        function = methods[0] if methods else None
    if inspect.isfunction(function):
        text = "".join(linecache.getlines(function.__code__.co_filename))
        for node in ast.parse(text).body:
            if getattr(node, "name", "") == thing.__name__:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                lines = text.splitlines()[first - 1 : node.end_lineno]
                return "\n".join(lines), function.__globals__
    raise CourseError(
        f"{user} uses a {type(thing).__name__} that {FILE} cannot hold: define it with"
        f" def or class in a cell, or inside {user}."
    )
