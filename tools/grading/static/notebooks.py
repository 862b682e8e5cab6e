"""Notebooks: each is clean, or was executed from top to bottom in a fresh kernel."""

from collections import Counter
from collections.abc import Iterator

from tools.grading.finding import Finding
from tools.grading.static.look import MAX_PARSED, MAX_SECONDS, NOTEBOOKS, Look
from tools.shared.foreign import MIB, shown
from tools.shared.parsing import Cell, Notebook

# a newer kit changes it, which changes no result
BOOTSTRAP = "import os\n\nREPOSITORY, BRANCH = "


def notebooks(look: Look) -> Iterator[Finding]:
    states, unproven = Counter(), []
    for theme, notebook in look.notebooks.items():
        state, found = _execution(notebook)
        if state == "clean" and theme in look.executed:
            copy = look.executed[theme]
            state, found = _execution(copy)
            found += _same_code(notebook, copy)
        elif state == "clean":
            unproven.append(str(theme))
        states[state] += not found
        yield from found
    if unproven:
        says = f"Themes {', '.join(unproven)}: clean, and no executed copy shows that"
        yield NOTEBOOKS.note(f"{says} they run.", "notebooks")
    for notebook in look.others:
        yield from _execution(notebook)[1]
    for state, count in states.items():
        if count:
            more = " from top to bottom, without errors" * (state == "executed")
            yield NOTEBOOKS.passed(f"Notebooks: {count} {state}{more}.")
    yield from _unreadable(look)


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
        )
        for cell in code
        for error in _errors(cell)
    ]
    never = [cell for cell in code if cell.count is None]
    if never:
        says = f"Cells that were not run: {len(never)}, this one first."
        says += " Choose Restart and run all."
        found.append(NOTEBOOKS.human(says, where(never[0])))
    run = [cell for cell in code if cell.count is not None]
    for before, cell in zip(run, run[1:], strict=False):
        if cell.count <= before.count:
            says = (
                f"Out of order: this cell ran as [{cell.count}], the one above as"
                f" [{before.count}]. Choose Restart and run all."
            )
            found.append(NOTEBOOKS.fail(says, where(cell)))
    gaps = [cell for number, cell in enumerate(run, 1) if cell.count != number]
    if gaps and not found:
        says = (
            "In order, but not in one go from a fresh kernel (this cell is"
            f" [{gaps[0].count}]): restart and run all."
        )
        found.append(NOTEBOOKS.human(says, where(gaps[0])))
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
