"""The house: imports run one way, and no room needs a room that needs it."""

import ast
import json
from pathlib import Path

import pytest

import utils

KIT = Path(utils.__file__).parent
GROUND = {"models", "sample_data"}
LECTURE = GROUND | {"kit", "utils"}
BELOW = {  # what a part of the house may import, beside itself
    "models": set(),
    "sample_data": set(),
    "kit": GROUND,
    "utils": GROUND | {"kit"},
    "tools": LECTURE,
    "exercises": LECTURE,
    "demo": LECTURE | {"tools"},
    "benchmarks": LECTURE | {"tools"},
    "course": {"tools"},
    "notebooks": LECTURE | {"tools", "exercises"},
}
DOORS = {  # rooms of tools/ that may ask another room than shared/
    "handin": {"grading"},
    "web": {"report", "notebooks", "colab"},
}


def source(path: Path) -> str:
    """The code of a module, or of all cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lines = "\n".join("".join(cell["source"]) for cell in cells).splitlines()
    return "\n".join(line for line in lines if not line.startswith(("%", "!")))


def files() -> dict[str, Path]:
    """All files that import, by their dotted name."""
    found = [*KIT.glob("*.py"), *(KIT / "notebooks").rglob("*.ipynb")]
    for part in BELOW:
        found += (KIT / part).rglob("*.py")
    names = [path.relative_to(KIT).with_suffix("").as_posix() for path in found]
    return {
        name.replace("/", ".").removesuffix(".__init__"): path
        for name, path in zip(names, found, strict=True)
    }


FILES = files()


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(source(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in FILES else node.module)
    return found & FILES.keys()


EDGES = {(name, used) for name, path in FILES.items() for used in imports(path)}


@pytest.mark.parametrize("part", BELOW)
def test_imports_run_one_way(part):
    for name, used in sorted(EDGES):
        if name.split(".")[0] == part:
            assert used.split(".")[0] in BELOW[part] | {part}, f"{name} imports {used}"


def test_rooms_of_tools_ask_shared_and_named_doors_only():
    for name, used in sorted(EDGES):
        if not name.startswith("tools.") or not used.startswith("tools."):
            continue
        own, other = name.split(".")[1], used.split(".")[1]
        allowed = {own} if own == "shared" else {own, "shared"} | DOORS.get(own, set())
        assert other in allowed, f"{name} imports {used}"


def test_nothing_stands_in_a_circle():
    above = {name: {used for a, used in EDGES if a == name} for name in FILES}
    while free := [name for name, used in above.items() if not used & above.keys()]:
        for name in free:
            del above[name]
    assert not above
