"""Kit files: what the group changed or wrote itself, for a person to read."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kit.files import KIT
from tools.grading.finding import Check, Finding, listed
from tools.grading.static.look import Look, kit_text
from tools.grading.themes import THEMES
from tools.shared.foreign import shown
from tools.shared.parsing import Notebook, read_notebook

KIT_FILES = Check("kit files")
PLUMBING = ("kit", "tools", "tests", "benchmarks")
KEPT = 0.3  # of the kit's lines: with fewer, it is another file of that name


def kit_files(look: Look) -> Iterator[Finding]:
    if look.root.resolve() == KIT:
        # a group that checks its own copy of the kit: nothing to compare with
        return
    same, plumbing = 0, []
    for path, kit, text in _pairs(look):
        if kit == text:
            same += 1
        elif kit is not None and path.parts[0] in PLUMBING:
            plumbing.append(path)
        elif kit is None or not _is_of_kit(kit, text):
            yield _own(path, text)
        else:
            yield _changed(path, kit, text)
    if plumbing:
        says = f"{len(plumbing)} files of tools/, tests/ or benchmarks/ differ: another"
        where = listed(map(shown, plumbing), 4)
        yield KIT_FILES.note(f"{says} version of the kit, or edits.", where)
    if same:
        yield KIT_FILES.note(f"{same} files are the kit's own, unchanged.")


def _is_of_kit(kit: list[str], text: list[str]) -> bool:
    shared = (Counter(kit) & Counter(text)).total()
    return shared >= KEPT * len(kit)


def _pairs(look: Look) -> Iterator[tuple[Path, list[str] | None, list[str]]]:
    """(path, lines of the kit's file, lines of the group's) of modules and themes;
    empty lines aside.
    """
    for path, text in look.modules.items():
        kit = kit_text(path)
        yield path, None if kit is None else _written(kit), _written(text)
    for theme, notebook in look.notebooks.items():
        own = Path("notebooks") / f"theme{theme}_{THEMES[theme]}.ipynb"
        if (KIT / own).is_file():
            kit = read_notebook(KIT, own)
            yield notebook.path, _lines(kit), _lines(notebook)


def _written(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _lines(notebook: Notebook) -> list[str]:
    cells = (cell for cell in notebook.cells if "injected-parameters" not in cell.tags)
    return [line for cell in cells for line in _written(cell.source)]


def _own(path: Path, text: list[str]) -> Finding:
    kind = "{n} files of the group's own: {what}."
    what = f"{shown(path.name)} ({len(text)} lines)"
    return KIT_FILES.note(
        f"New, lines: {len(text)}.", shown(path), kind=kind, what=what
    )


def _changed(path: Path, kit: list[str], text: list[str]) -> Finding:
    """Counted by content, as difflib takes hours on a hostile file: moved lines are no
    change.
    """
    added, removed = Counter(text) - Counter(kit), Counter(kit) - Counter(text)
    counts = f"lines added {added.total()}, removed {removed.total()}"
    counts = counts if added or removed else "the same lines in another order"
    says = f"Differs from the kit: {counts}."
    kind = "{n} files differ from the kit's (lines): {what}."
    what = f"{shown(path.name)} +{added.total()} −{removed.total()}"
    return KIT_FILES.note(says, shown(path), kind=kind, what=what)
