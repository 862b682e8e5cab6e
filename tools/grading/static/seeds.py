"""Seeds: SEED of every notebook is that of the record, and it reaches the course."""

import ast
from collections.abc import Iterator

from tools.grading.finding import Check, Finding
from tools.grading.static.look import Look, calls
from tools.shared.foreign import shown
from tools.shared.parsing import NOT_PYTHON, Notebook, Source, parse_cell

SEEDS = Check("seeds")


def seeds(look: Look) -> Iterator[Finding]:
    recorded, found = look.submission.story.get("seed"), []
    for theme, notebook in look.notebooks.items():
        sources = [source for source in look.sources if source.path == notebook.path]
        found += _theme(look, theme, notebook, sources, recorded)
    yield from found
    if look.notebooks and not found:
        same = f" ({recorded}, as in the record)" if recorded is not None else ""
        yield SEEDS.passed(f"Every notebook fixes its seed{same}.")


def _theme(
    look: Look, theme: int, notebook: Notebook, sources: list[Source], recorded
) -> Iterator[Finding]:
    values = [
        (value, source.where(node))
        for source in sources
        for value, node in _seed_values(source.tree)
    ]
    yield from _seeding(theme, notebook, sources, bool(values))
    injected = _injected_seed(look.executed.get(theme))
    for value, where in values[:1]:
        if recorded is not None and recorded not in (value, injected):
            says = f"SEED is {value} here and {recorded} in the record: write"
            yield SEEDS.fail(f"{says} {recorded} and run theme {theme}.", where)
    for value, where in values[1:]:
        says = f"SEED changes to {value} in the middle of the notebook: keep one seed."
        yield SEEDS.human(says, where)


def _seeding(
    theme: int, notebook: Notebook, sources: list[Source], named: bool
) -> Iterator[Finding]:
    """Whether the seed is set at all: by utils.start, or by the group's own calls."""
    starts = [
        call
        for source in sources
        for call in calls(source, "start")
        if any(keyword.arg == "seed" for keyword in call.keywords)
    ]
    names = ("manual_seed", "set_seed", "seed_everything")
    own = [call for source in sources for call in calls(source, *names)]
    if starts and named:
        return
    if own or starts:
        says = f"Theme {theme} sets a seed, but not through SEED and utils.start: look"
        yield SEEDS.human(
            f"{says} whether all sources are fixed.", shown(notebook.path)
        )
    else:
        says = f"Theme {theme} fixes no seed: define SEED and pass it to utils.start."
        yield SEEDS.fail(says, shown(notebook.path))


def _seed_values(tree: ast.Module) -> Iterator[tuple[int, ast.AST]]:
    """Whole numbers that top-level statements assign to SEED."""
    for node in tree.body:
        if not isinstance(node, (ast.Assign, ast.AnnAssign)):
            continue
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        named = "SEED" in [getattr(name, "id", "") for name in targets]
        if named and isinstance(node.value, ast.Constant):
            if type(node.value.value) is int:
                yield node.value.value, node


def _injected_seed(notebook: Notebook | None) -> int | None:
    """The seed that the runner gave to an executed copy."""
    for cell in notebook.code if notebook else ():
        if "injected-parameters" in cell.tags:
            try:
                values = _seed_values(parse_cell(cell.source))
                return next((value for value, _ in values), None)
            except NOT_PYTHON:
                return None
    return None
