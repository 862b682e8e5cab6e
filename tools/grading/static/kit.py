"""Kit files: what the group changed or wrote itself, for a person to read."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kit.files import KIT
from tools.grading.finding import Check, Finding
from tools.grading.static.look import THEMES, Look, kit_text
from tools.shared.foreign import shown
from tools.shared.parsing import Notebook, read_notebook

KIT_FILES = Check("kit files")
PLUMBING = ("kit", "tools", "tests", "benchmarks")


def kit_files(look: Look) -> Iterator[Finding]:
    if look.root.resolve() == KIT:
        # a group that checks its own copy of the kit: nothing to compare with
        return
    same, plumbing = 0, []
    for path, kit, text in _pairs(look):
        if kit is None:
            lines = sum(bool(line.strip()) for line in text)
            yield KIT_FILES.note(f"New, lines: {lines}.", shown(path))
        elif kit == text:
            same += 1
        elif path.parts[0] in PLUMBING:
            plumbing.append(path)
        else:
            yield _changed(path, kit, text)
    if plumbing:
        says = f"{len(plumbing)} files of tools/, tests/ or benchmarks/ differ: another"
        where = ", ".join(map(shown, plumbing[:4]))
        yield KIT_FILES.note(f"{says} version of the kit, or edits.", where)
    if same:
        yield KIT_FILES.note(f"{same} files are the kit's own, unchanged.")


def _pairs(look: Look) -> Iterator[tuple[Path, list[str] | None, list[str]]]:
    """(path, lines of the kit's file, lines of the group's) of modules and themes."""
    for path, text in look.modules.items():
        kit = kit_text(path)
        yield path, None if kit is None else kit.splitlines(), text.splitlines()
    for theme, notebook in look.notebooks.items():
        own = Path("notebooks") / f"theme{theme}_{THEMES[theme]}.ipynb"
        if (KIT / own).is_file():
            kit = read_notebook(KIT, own)
            yield notebook.path, _lines(kit), _lines(notebook)


def _lines(notebook: Notebook) -> list[str]:
    cells = (cell for cell in notebook.cells if "injected-parameters" not in cell.tags)
    return [line for cell in cells for line in cell.source.strip().splitlines()]


def _changed(path: Path, kit: list[str], text: list[str]) -> Finding:
    """Counted by content, as difflib takes hours on a hostile file: moved lines are no
    change.
    """
    added, removed = Counter(text) - Counter(kit), Counter(kit) - Counter(text)
    says = f"Differs from the kit: lines added {added.total()}, removed"
    return KIT_FILES.note(f"{says} {removed.total()}.", shown(path))
