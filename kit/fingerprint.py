"""One idea of a run: a short name for work, made from all that its result depends on.

The code counts as syntax, without comments, docstrings and annotations, so that layout
and the version of Python change nothing; and as it stood when it was imported, so that
a file edited under a running kernel changes nothing until it is imported again.
"""

import ast
import hashlib
import inspect
import json
import re
import sys
import sysconfig
import textwrap
from dataclasses import fields, is_dataclass
from functools import cache, partial
from importlib.util import decode_source
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kit.syntax import definitions_of, globals_of, text_of

STANDARD_LIBRARY = sysconfig.get_path("stdlib")


def fingerprint(*parts) -> str:
    """Short hash of everything that the result of some work depends on.

    Parameters
    ----------
    *parts
        Functions, classes and networks stand for their code and all code of ours that
        it reaches, by walking the global names it uses (a network also for its weights
        and buffers). An object with a `key` stands for that key, a path for its last
        part. Other values stand for themselves.

    Returns
    -------
    str
        12 hexadecimal digits, the same on every version of Python.
    """
    code = Code()
    values = [_plain(part, code) for part in parts]
    text = json.dumps([values, sorted(code.told)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def hash_weights(model: nn.Module) -> str:
    """Short hash of all weights and buffers of a network, wherever they lie."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        flat = value.detach().cpu().contiguous().reshape(-1)
        # as bytes: NumPy knows no bfloat16
        digest.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _plain(value, code: "Code"):
    """A value as JSON knows it; code that it brings along is added to `code`."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, np.generic):
        return _plain(value.item(), code)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.ascontiguousarray(value)
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        return [list(array.shape), str(array.dtype), digest]
    if isinstance(value, Path):  # the same work in another home
        return value.name
    if isinstance(value, nn.Module):
        code.add(*{type(module) for module in value.modules()})
        return [repr(value), hash_weights(value)]
    if isinstance(value, partial):
        return [_plain(part, code) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, dict):
        return {str(key): _plain(content, code) for key, content in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(str(_plain(item, code)) for item in value)
    if isinstance(value, (list, tuple)):
        return [_plain(item, code) for item in value]
    if inspect.ismethod(value):
        code.add(value.__func__)
        return [value.__qualname__, _plain(value.__self__, code)]
    if inspect.isroutine(value) or inspect.isclass(value):
        code.add(value)
        return value.__qualname__
    code.add(type(value))
    if hasattr(value, "key"):  # images, which know the hash of their pixels
        return str(value.key)
    if is_dataclass(value):
        return [_plain(getattr(value, field.name), code) for field in fields(value)]
    if hasattr(value, "to_csv"):  # a table of pandas, whose text shows a few rows only
        return value.to_csv()
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


class Code:
    """The definitions that some work reaches, each as text in `told`."""

    def __init__(self):
        self.told: set[str] = set()
        self.seen: set = set()

    def add(self, *things) -> None:
        for thing in things:
            thing = inspect.unwrap(thing)
            module = sys.modules.get(getattr(thing, "__module__", None) or "")
            name = getattr(thing, "__qualname__", repr(thing))
            top = name.partition(".")[0]
            if top in definitions(module) and "<locals>" in name:
                self._add_nested(thing, module, top)
            elif top in definitions(module):
                self._add_name(module, top)
            elif _is_ours(module):
                self._add_live(thing)
            else:
                self.told.add(f"{type(thing).__name__} {name}")

    def _add_name(self, module, name: str) -> None:
        """A definition at the top of a file, and what it reaches."""
        if (module.__name__, name) in self.seen:
            return
        self.seen.add((module.__name__, name))
        for node in definitions(module)[name]:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._follow_import(node, name)
                continue
            self.told.add(text_of(node))
            self._reach(module, node)
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
                self._add_registered(vars(module).get(name))

    def _add_nested(self, function, module, top: str) -> None:
        """A function made by another one: its syntax, and the values it encloses."""
        inside = [part for node in definitions(module)[top] for part in ast.walk(node)]
        same = [n for n in inside if getattr(n, "name", "") == function.__name__]
        for node in same or definitions(module)[top]:  # a lambda has no name
            self.told.add(text_of(node))
            self._reach(module, node)
        if inspect.isfunction(function):
            enclosed = inspect.getclosurevars(function).nonlocals
            self.told.add(json.dumps(_plain(enclosed, self), sort_keys=True))

    def _follow_import(self, node, name: str) -> None:
        """`from kit.drifts import DRIFTS`: what the name is called over there."""
        for alias in node.names:
            called = alias.asname or alias.name
            if isinstance(node, ast.ImportFrom) and name == called:
                module = sys.modules.get(node.module or "")
                if alias.name in definitions(module):
                    self._add_name(module, alias.name)

    def _reach(self, module, node: ast.AST) -> None:
        """All global names that a piece of syntax uses, and their definitions."""
        names, attributes, imports = globals_of(node)
        for name in names & definitions(module).keys():
            self._add_name(module, name)
        for name, attribute in attributes:
            other = vars(module).get(name)
            if inspect.ismodule(other) and attribute in definitions(other):
                self._add_name(other, attribute)
        for found in imports:
            for alias in found.names:
                self._follow_import(found, alias.asname or alias.name)

    def _add_registered(self, value) -> None:
        """What a student has put into one of our tables while it ran."""
        for key, item in value.items() if isinstance(value, dict) else ():
            parts = item if isinstance(item, tuple) else [item]
            if any(callable(part) for part in parts):
                self.told.add(json.dumps([str(key), _plain(item, self)]))

    def _add_live(self, thing) -> None:
        """A function or class of a notebook: its cell is all the file that it has."""
        if thing in self.seen:
            return
        self.seen.add(thing)
        for node in _live_syntax(thing):
            self.told.add(text_of(node))
            self._reach_live(thing, node)

    def _reach_live(self, thing, node: ast.AST) -> None:
        space = dict(getattr(sys.modules.get(thing.__module__), "__dict__", {}))
        if inspect.isfunction(thing):
            space = thing.__globals__ | inspect.getclosurevars(thing).nonlocals
        names, attributes, _ = globals_of(node)
        for name in sorted(names & space.keys()):
            value = space[name]
            if not inspect.ismodule(value):
                self.told.add(json.dumps([name, _plain(value, self)], sort_keys=True))
        for name, attribute in attributes:
            if attribute in definitions(space.get(name)):
                self._add_name(space[name], attribute)


# --------------------------------------------------------------------------------------
# Sources, as they stood at import
# --------------------------------------------------------------------------------------

_SOURCES: dict[str, tuple] = {}  # module name -> (how to know it, its text)


def remember_sources() -> None:
    """Read the sources of all modules of ours that are loaded, as they stand now.

    The last line of utils.py calls it: what is edited later is another matter.
    """
    for module in list(sys.modules.values()):
        _source(module)


def _source(module) -> str:
    """The text of a module of ours, as it was imported; "" of any other.

    Read again only when the module was imported again: it then has a new spec
    (`importlib.reload`) or functions with new code (`%autoreload`).
    """
    if not _is_ours(module) or not getattr(module, "__file__", "").endswith(".py"):
        return ""
    functions = [f for f in vars(module).values() if inspect.isfunction(f)]
    own = [f.__code__ for f in functions if f.__module__ == module.__name__]
    known_by = [id(module.__spec__), *own]
    if _SOURCES.get(module.__name__, ("",))[0] != known_by:
        # as an import reads it: byte-order mark, coding line, line ends
        text = decode_source(Path(module.__file__).read_bytes())
        _SOURCES[module.__name__] = (known_by, text)
    return _SOURCES[module.__name__][1]


def definitions(module) -> dict[str, list[ast.stmt]]:
    """What a module of ours defines at its top, by name; {} for any other."""
    return _parsed(_source(module))


@cache
def _parsed(text: str) -> dict[str, list[ast.stmt]]:
    return definitions_of(ast.parse(text))


def _is_ours(module) -> bool:
    """Whether a module is no library's: a file of the kit, of a group, a notebook."""
    if not inspect.ismodule(module):
        return False
    path = Path(getattr(module, "__file__", None) or "")
    installed = any(folder.endswith("-packages") for folder in path.parts)
    installed = installed or path.is_relative_to(STANDARD_LIBRARY)
    return module.__name__ == "__main__" or (path.is_absolute() and not installed)


def _live_syntax(thing) -> list[ast.stmt]:
    """The syntax of a function or class that no file holds."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    except (OSError, TypeError, SyntaxError):
        if inspect.isclass(thing):  # of a cell: older Pythons find the methods only
            methods = [m for m in vars(thing).values() if inspect.isfunction(m)]
            return [node for method in methods for node in _live_syntax(method)]
        code = getattr(thing, "__code__", None)
        says = (code.co_code, code.co_consts, code.co_names) if code else thing
        return [ast.Expr(ast.Constant(repr(says)))]
