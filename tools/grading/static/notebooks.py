"""Notebooks: each was executed from top to bottom in a fresh kernel, or is clean and
has an executed copy.
"""

from collections import Counter
from collections.abc import Iterator

from tools.grading.finding import Finding
from tools.grading.static.look import MAX_PARSED, MAX_SECONDS, NOTEBOOKS, Look
from tools.grading.themes import THEMES, is_left_behind
from tools.shared.foreign import MIB, shown
from tools.shared.parsing import Cell, Notebook

# a newer kit changes it, which changes no result
BOOTSTRAP = "import os\n\nREPOSITORY, BRANCH = "


def notebooks(look: Look) -> Iterator[Finding]:
    executed, unproven = 0, []
    for theme, notebook in look.notebooks.items():
        state, found = _execution(notebook)
        if state == "clean" and theme in look.executed:
            copy = look.executed[theme]
            state, found = _execution(copy)
            found += _same_code(notebook, copy)
        elif state == "clean":
            unproven.append(str(theme))
        executed += state == "executed" and not found
        yield from found
    if unproven:
        says = f"Themes {', '.join(unproven)}: no output, and no executed copy shows"
        yield NOTEBOOKS.note(f"{says} that they run.", _folder(look))
    for notebook in look.others:
        yield from _execution(notebook)[1]
    if executed:
        says = f"Notebooks: {executed} executed from top to bottom, without errors."
        yield NOTEBOOKS.passed(says)
    yield from _found_as(look)
    yield from _unreadable(look)


def _folder(look: Look) -> str:
    """The folder of most notebooks."""
    folders = Counter(path.parent.as_posix() for path in look.places.values())
    return shown(folders.most_common(1)[0][0])


def _found_as(look: Look) -> Iterator[Finding]:
    """Notebooks that are called otherwise, and copies beside those that count."""
    for theme, path in look.places.items():
        own = path.name == f"theme{theme}_{THEMES[theme]}.ipynb"
        if not own or is_left_behind(path):
            name = shown(path if is_left_behind(path) else path.name)
            says = f"Theme {theme} was found as {name}."
            kind = "{n} themes were found under other names: {what}."
            yield NOTEBOOKS.note(says, shown(path.parent), kind=kind, what=name)
    for path in look.copies:
        says = "A copy or an older state of a notebook, which was not judged."
        kind = "{n} copies or older states of notebooks were not judged."
        yield NOTEBOOKS.note(says, shown(path), kind=kind)


def _unreadable(look: Look) -> Iterator[Finding]:
    """Notebooks and cells that are none, and what there was no time for."""
    look.sources  # noqa: B018 - reading them fills the lists
    yield from (each for each in look.unreadable if each.check == NOTEBOOKS.name)
    if look.unread:
        says = (
            f"Not read, as {MAX_SECONDS} s or {MAX_PARSED // MIB} MiB of reading were"
            f" over: {len(look.unread)} cells or modules, this one first. A slow"
            " machine is no fault of the group's: look at them, or check again where"
            " it does nothing else."
        )
        yield NOTEBOOKS.human(says, look.unread[0])


def _execution(notebook: Notebook) -> tuple[str, list[Finding]]:
    """'clean', 'executed' or 'partly executed', and what is wrong with it."""
    code = notebook.code
    if not any(cell.count or cell.outputs for cell in code):
        return "clean", []

    def where(cell: Cell) -> str:
        return f"{shown(notebook.path)}, cell {cell.number}"

    found = [
        NOTEBOOKS.fail(
            f"This cell ended with {error}. Correct it and run the whole notebook.",
            where(cell),
            kind="{n} cells ended with errors ({what}): run the notebooks again.",
            what=error,
        )
        for cell in code
        for error in _errors(cell)
    ]
    never = [cell for cell in code if cell.count is None]
    if never:
        says = f"Cells that were not run: {len(never)}, this one first."
        says += " Choose Restart and run all."
        kind = "Cells of {n} notebooks were not run (the first of each is named)."
        found.append(NOTEBOOKS.human(says, where(never[0]), kind=kind))
    run = [cell for cell in code if cell.count is not None]
    for before, cell in zip(run, run[1:], strict=False):
        if cell.count <= before.count:
            says = (
                f"Out of order: this cell ran as [{cell.count}], the one above as"
                f" [{before.count}]. Choose Restart and run all."
            )
            what = f"[{cell.count}] after [{before.count}]"
            kind = "Cells ran out of order, {n} times ({what}): restart and run all."
            found.append(NOTEBOOKS.fail(says, where(cell), kind=kind, what=what))
    gaps = [cell for number, cell in enumerate(run, 1) if cell.count != number]
    if gaps and not found:
        says = (
            "In order, but not in one go from a fresh kernel (this cell is"
            f" [{gaps[0].count}]): restart and run all."
        )
        kind = "{n} notebooks ran in order, but not in one go from a fresh kernel."
        found.append(NOTEBOOKS.human(says, where(gaps[0]), kind=kind))
    return "partly executed" if never else "executed", found


def _errors(cell: Cell) -> list[str]:
    return [
        shown(f"{output.get('ename')}: {output.get('evalue')}"[:120])
        for output in cell.outputs
        if output.get("output_type") == "error"
    ]


def _same_code(notebook: Notebook, copy: Notebook) -> list[Finding]:
    """The executed copy must be of this very code, less the cell with the runner's
    parameters.
    """
    ours, ran = _code(notebook), _code(copy)
    if ours == ran:
        return []
    more, fewer = Counter(ours) - Counter(ran), Counter(ran) - Counter(ours)
    differ = more.total() or fewer.total() or "order"
    says = f"The executed copy is of other code (differing cells: {differ}): run the"
    return [NOTEBOOKS.human(f"{says} theme again.", shown(copy.path))]


def _code(notebook: Notebook) -> list[str]:
    return [
        cell.source.strip()
        for cell in notebook.code
        if "injected-parameters" not in cell.tags
        and not cell.source.startswith(BOOTSTRAP)
    ]
