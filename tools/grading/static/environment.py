"""Environment: versions are pinned, and all that is imported is declared."""

import ast
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from packaging.utils import canonicalize_name

from tools.grading.finding import Check, Finding
from tools.grading.static import requirements
from tools.grading.static.look import Look, commands, kit_text
from tools.grading.submission import is_code
from tools.shared.foreign import MIB, decode, shown
from tools.shared.parsing import Source

ENVIRONMENT = Check("environment")
# a notebook's own
ALWAYS_THERE = {"google", "IPython", "ipykernel", "ipywidgets", "pip", "setuptools"}
HAVE = sys.stdlib_module_names | ALWAYS_THERE | {"__main__"}


def environment(look: Look) -> Iterator[Finding]:
    declared, findings = _requirements(look)
    yield from findings
    yield _pinned(look, declared)
    installed = _installed_in_cells(look)
    for name, where in installed.items():
        says = f"{shown(name)} is installed by a cell: add it to requirements.txt, with"
        yield ENVIRONMENT.note(f"{says} its version.", where)
    known = requirements.with_what_they_bring({*declared, *installed})
    undeclared, optional = _undeclared(look, known)
    for name, places in undeclared.items():
        more = f" (and {len(places) - 1} more times)" if len(places) > 1 else ""
        says = f"{shown(name)} is imported{more} and not in requirements.txt: add it,"
        yield ENVIRONMENT.fail(f"{says} with its version.", places[0])
    for name, places in optional.items():
        if name not in undeclared:
            says = f"{shown(name)} is used if it is there, and is not in the"
            yield ENVIRONMENT.note(f"{says} requirements.", places[0])
    if look.sources and not undeclared:
        yield ENVIRONMENT.passed("Everything that is imported is declared.")


def _requirements(look: Look) -> tuple[dict[str, bool], list[Finding]]:
    """Names in requirements*.txt, and whether each is pinned."""
    found, findings = {}, []
    for path in look.submission.files:
        if not re.fullmatch(r"requirements.*\.txt", path.name) or len(path.parts) > 2:
            continue
        if not is_code(path):
            continue
        text = decode(look.read(path, MIB))
        for number, words, name, exact in requirements.parse(text):
            if name is None:
                says = f"pip does not understand {shown(words[:60])!r}: correct this"
                where = f"{shown(path)}, line {number}"
                findings.append(ENVIRONMENT.fail(f"{says} line.", where))
            else:
                found[name] = exact
    return found, findings


def _pinned(look: Look, declared: dict[str, bool]) -> Finding:
    constraints, lock = "constraints.txt", "exports/environment.txt"
    if constraints in look.paths:
        text = decode(look.read(constraints, MIB))
        if pins := len(re.findall(r"^[\w.-]+\s*==", text, re.MULTILINE)):
            says = f"constraints.txt pins {pins} packages."
            return ENVIRONMENT.passed(says, constraints)
    if declared and all(declared.values()):
        says = "requirements.txt pins every package."
        return ENVIRONMENT.passed(says, "requirements.txt")
    if lock in look.paths:
        says = f"Nothing is pinned, but {lock} names the versions of the run: add"
        return ENVIRONMENT.note(f"{says} constraints.txt.", lock)
    says = "No version is pinned: hand in constraints.txt (`pip freeze >"
    return ENVIRONMENT.fail(f"{says} constraints.txt`).", "requirements.txt")


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


def _undeclared(look: Look, known: set[str]) -> tuple[dict, dict]:
    """Imported packages that no requirement covers, with the places; those that may be
    absent apart.
    """
    undeclared, optional, local = {}, {}, _local_modules(look)
    for source in look.sources:
        own = HAVE | _imports_of_kit(source.path)
        near = [local[at] for at in (Path(), Path("notebooks"), source.path.parent)]
        guarded = _guarded(source)
        for node in source.nodes:
            for name in set(imported(node)) - own:
                if any(name in modules for modules in near):
                    continue
                packages = requirements.providers(name)
                if packages.isdisjoint(known):
                    kind = optional if node in guarded else undeclared
                    places = kind.setdefault(min(packages, key=len), [])
                    places.append(source.where(node))
    return undeclared, optional


@cache
def _imports_of_kit(path: Path) -> set[str]:
    """What the kit's own file of that name imports: another version of it is no fault
    of the group's.
    """
    tree = ast.parse(kit_text(path) or "")
    return {name for node in ast.walk(tree) for name in imported(node)}


def imported(node: ast.AST) -> list[str]:
    """Top-level names of an import statement."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    absolute = isinstance(node, ast.ImportFrom) and node.module and not node.level
    return [node.module.partition(".")[0]] if absolute else []


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


def _local_modules(look: Look) -> dict[Path, set[str]]:
    """Modules and packages that are found in a folder, by that folder; a file finds
    those at the root, in notebooks/ and beside itself.
    """
    found = defaultdict(set)
    for module in look.modules:
        for folder in module.parents:
            name = module.relative_to(folder).parts[0].removesuffix(".py")
            found[folder].add(name)
    return found
