"""The house: imports run one way, and no room needs a room that needs it."""

import ast
from pathlib import Path

import utils

KIT = Path(utils.__file__).parent
BELOW = {  # what a part of the house may import, beside itself
    "models": set(),
    "kit": {"models", "sample_data"},
}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_kit_knows_nothing_of_what_stands_on_it():
    ours = {path.stem for path in KIT.glob("*.py")}
    ours |= {path.parent.name for path in KIT.glob("*/*.py")}
    for part, below in BELOW.items():
        for path in (KIT / part).glob("*.py"):
            used = {name.partition(".")[0] for name in imports(path)} & ours
            assert used <= below | {part}, f"{path.name} imports {used - below}"


def test_no_room_of_the_kit_stands_in_a_circle():
    rooms = {path.stem: path for path in (KIT / "kit").glob("*.py")}
    above = {
        room: {name.split(".")[1] for name in imports(path) if name.startswith("kit.")}
        for room, path in rooms.items()
    }
    while free := [room for room, used in above.items() if not used & above.keys()]:
        for room in free:
            del above[room]
    assert not above
