"""Absolute paths: what exists on one machine only, in the group's code."""

import ast
import re
from collections.abc import Iterator

from kit.files import KIT
from tools.grading.finding import Check, Finding
from tools.grading.static.look import Look, commands
from tools.shared.foreign import shown
from tools.shared.parsing import Source

ABSOLUTE = Check("absolute paths")
PATHS = r"(?:/home/|/Users/|/root/|/mnt/|/media/|/kaggle/|/content/|[A-Za-z]:[\\/])\w"
# The mount point of Google Drive, and where the bootstrap cell puts the kit.
EXEMPT = re.compile(r"/content/(?:drive/?$|course-kit\b|dl-course-local\b)")


def absolute_paths(look: Look) -> Iterator[Finding]:
    """Paths in strings and shell lines."""
    clean = True
    for source in look.sources:
        # tests of another version of the kit name such paths on purpose
        if source.path.parts[0] == "tests" and (KIT / source.path).is_file():
            continue
        for finding in _in_source(source):
            clean = False
            yield finding
    if look.sources and clean:
        yield ABSOLUTE.passed("No path of somebody's own machine was found.")


def _in_source(source: Source) -> Iterator[Finding]:
    documentation = {
        id(node.value) for node in source.nodes if isinstance(node, ast.Expr)
    }
    shell_lines = {id(part) for call, _ in commands(source) for part in call.args}
    settings = _settings(source)
    for node in source.nodes:
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if id(node) in documentation:
            continue
        start = r"(?<![\w./:~-])" if id(node) in shell_lines else "^"
        found = re.search(start + PATHS + r"[^\s\"']*", node.value)
        if found and not EXEMPT.match(found[0]):
            verdict, says, several = _judged(found[0], id(node) in settings)
            says = f"{shown(found[0][:80])} {says}"
            kind = f"{{n}} paths {several}, such as {{what}}."
            what = shown("".join(re.split(r"([\\/])", found[0])[:7])[:60])
            yield ABSOLUTE.finding(
                verdict, says, source.where(node), kind=kind, what=what
            )


def _judged(path: str, setting: bool) -> tuple[str, str, str]:
    """The verdict, and what is said of one such path and of several."""
    remedy = "build the path from course.home or HOME."
    if setting:
        says = "is a folder of one machine: graders give their own."
        return "note", says, "in the parameters are of one machine"
    if path.startswith("/content/drive"):
        says = "is one person's Drive: set DRIVE = True and use course.home instead."
        return "fail", says, "of one person's Drive"
    if path.startswith("/content/"):
        return "human", f"exists on Colab only: {remedy}", "exist on Colab only"
    if path.startswith("/kaggle/"):
        says = "exists in a Kaggle kernel with that dataset only:"
        return "human", f"{says} {remedy}", "of a Kaggle kernel"
    return "fail", f"exists on one machine only: {remedy}", "of one machine"


def _settings(source: Source) -> set[int]:
    """Values of SOURCE and HOME in the parameters cell, which may well be absolute."""
    if source.cell is None or "parameters" not in source.cell.tags:
        return set()
    return {
        id(node.value)
        for node in source.tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id in ("SOURCE", "HOME")
    }
