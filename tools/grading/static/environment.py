"""Environment: versions are pinned, and all that is imported is declared."""

import ast
import os
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from packaging.utils import canonicalize_name

from kit.names import original
from tools.grading.finding import Check, Finding, listed
from tools.grading.static import requirements
from tools.grading.static.look import Look, commands, kit_text
from tools.shared.foreign import MIB, decode, shown
from tools.shared.parsing import Source

ENVIRONMENT = Check("environment")
# a notebook's own
ALWAYS_THERE = {"google", "IPython", "ipykernel", "ipywidgets", "pip", "setuptools"}
HAVE = sys.stdlib_module_names | ALWAYS_THERE | {"__main__"}


def environment(look: Look) -> Iterator[Finding]:
    declared, findings = _requirements(look)
    yield from findings
    yield from _pinned(look, declared)
    installed = _installed_in_cells(look)
    for name, where in installed.items():
        if name not in declared:
            says = f"{shown(name)} is installed by a cell: add it to requirements.txt,"
            kind = "{n} packages are installed by cells, and not in requirements.txt:"
            yield ENVIRONMENT.note(
                f"{says} with its version.", where, kind=kind + " {what}.", what=name
            )
    known = requirements.with_what_they_bring({*declared, *installed})
    undeclared, optional, imports = _undeclared(look, known)
    yield from _imported(undeclared, optional)
    if imports and not undeclared:
        yield ENVIRONMENT.passed("Everything that is imported is declared.")


def _imported(undeclared: dict, optional: dict) -> Iterator[Finding]:
    """Packages that are imported and not declared, those of most imports first."""
    for name in sorted(undeclared, key=lambda name: -len(undeclared[name])):
        places, name = undeclared[name], shown(name)
        more = f" (and {len(places) - 1} more times)" if len(places) > 1 else ""
        says = f"{name} is imported{more} and not in requirements.txt: add it, with its"
        kind = "{n} packages are imported and not in requirements.txt: {what}. Add"
        yield ENVIRONMENT.fail(
            f"{says} version.",
            places[0],
            kind=f"{kind} them, with their versions.",
            what=f"{name} ({len(places)}×)" if more else name,
        )
    for name, places in optional.items():
        if name not in undeclared:
            says = f"{shown(name)} is used if it is there, and is not in the"
            kind = "{n} packages are used if they are there, and not required: {what}."
            what = shown(name)
            yield ENVIRONMENT.note(
                f"{says} requirements.", places[0], kind=kind, what=what
            )


def _requirements(look: Look) -> tuple[dict[str, bool], list[Finding]]:
    """Names in requirements*.txt and the files that they include, and whether each is
    pinned.
    """
    found, findings = {}, []
    waiting = [path for path in look.written if _is_list(path)]
    for path in waiting:
        text = _text(look, path)
        if look.size(path) and not text:
            says = "pip cannot read this: it is no text, or UTF-16 without its mark."
            findings.append(ENVIRONMENT.fail(f"{says} Save it as UTF-8.", shown(path)))
        for line in requirements.parse(text):
            where = f"{shown(path)}, line {line.number}"
            if line.included:
                below = Path(os.path.normpath(path.parent / line.included))
                there = below.as_posix() in look.paths
                if there and below not in waiting:
                    waiting.append(below)
            elif line.name is None:
                says = f"pip does not understand {shown(line.text[:60])!r}: correct"
                kind = "pip does not understand {n} lines, such as {what}: correct"
                what = shown(line.text[:40])
                findings.append(
                    ENVIRONMENT.fail(
                        f"{says} this line.", where, kind=f"{kind} them.", what=what
                    )
                )
            else:
                found[line.name] = line.exact
    return found, findings


def _is_list(path: Path) -> bool:
    named = re.fullmatch(r"requirements?.*\.txt", original(path.name))
    kept = path.suffix == ".txt" and path.parent.name.casefold() == "requirements"
    return (named is not None or kept) and len(path.parts) <= 2


def _text(look: Look, path: Path | str) -> str:
    return decode(look.read(path, MIB))


def _pinned(look: Look, declared: dict[str, bool]) -> Iterator[Finding]:
    constraints, lock = "constraints.txt", "exports/environment.txt"
    text = _text(look, constraints) if constraints in look.paths else ""
    pins = len(re.findall(r"^[\w.-]+\s*==", text, re.MULTILINE))
    loose = [name for name, exact in declared.items() if not exact]
    if pins:
        says = f"constraints.txt pins {pins} packages."
        yield ENVIRONMENT.passed(says, constraints)
    elif declared and not loose:
        says = "requirements.txt pins every package."
        yield ENVIRONMENT.passed(says, "requirements.txt")
    elif lock in look.paths:
        says = f"Nothing is pinned, but {lock} names the versions of the run: add"
        yield ENVIRONMENT.note(f"{says} constraints.txt.", lock)
    elif len(loose) < len(declared):
        says = f"{len(declared) - len(loose)} of {len(declared)} packages are pinned;"
        names = listed(map(shown, loose), 6)
        yield ENVIRONMENT.human(f"{says} not: {names}.", "requirements.txt")
    elif declared:
        says = "No version is pinned: hand in constraints.txt (`pip freeze >"
        yield ENVIRONMENT.fail(f"{says} constraints.txt`).", "requirements.txt")


def _installed_in_cells(look: Look) -> dict[str, str]:
    """Packages that cells install with pip, and where."""
    found = {}
    for source in (source for source in look.sources if source.cell):
        for call, command in commands(source):
            match = re.search(r"\bpip3?\s+install\s+([^\n;&|]+)", command)
            for word in _words(match[1]) if match else ():
                name = canonicalize_name(re.split(r"[\[<>=!~; @]", word)[0])
                found.setdefault(name, source.where(call))
    return found


def _words(command: str) -> list[str]:
    """What stands behind `pip install`, options aside."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    return [word for word in words if re.match(r"[A-Za-z]", word)]


def _undeclared(look: Look, known: set[str]) -> tuple[dict, dict, int]:
    """Imported packages that no requirement covers, with the places; those that may be
    absent apart; and how many imports there are.
    """
    undeclared, optional, imports = {}, {}, 0
    # wherever they stand: notebooks extend sys.path as they like
    local = {part.removesuffix(".py") for path in look.modules for part in path.parts}
    for source in look.sources:
        own = HAVE | local | _imports_of_kit(source.path)
        guarded = _guarded(source)
        for node in source.nodes:
            names = imported(node)
            imports += bool(names)
            for name in set(names) - own:
                packages = requirements.providers(name)
                if packages.isdisjoint(known):
                    kind = optional if node in guarded else undeclared
                    places = kind.setdefault(min(packages, key=len), [])
                    places.append(source.where(node))
    return undeclared, optional, imports


@cache
def _imports_of_kit(path: Path) -> set[str]:
    """What the kit's own file of that name imports: another version of it is no fault
    of the group's.
    """
    tree = ast.parse(kit_text(path) or "")
    return {name for node in ast.walk(tree) for name in imported(node)}


def imported(node: ast.AST) -> list[str]:
    """Top-level names of an import statement, and TensorBoard behind torch's own."""
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        modules = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return []
    behind = any(name.startswith("torch.utils.tensorboard") for name in modules)
    names = [name.partition(".")[0] for name in modules]
    return list(dict.fromkeys(names)) + ["tensorboard"] * behind


def _guarded(source: Source) -> set[ast.AST]:
    """Import statements whose failure is caught."""
    return {
        inner
        for node in source.nodes
        if isinstance(node, ast.Try)
        for statement in node.body
        for inner in ast.walk(statement)
        if imported(inner)
    }
