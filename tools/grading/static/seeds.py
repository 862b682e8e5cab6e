"""Seeds: SEED of every notebook is that of the record, and it reaches the course.
Without a record: what trains is seeded, and not its split alone.
"""

import ast
from collections.abc import Iterator

from tools.grading.finding import Check, Finding
from tools.grading.static.look import Look, calls, starts
from tools.shared.foreign import shown
from tools.shared.parsing import NOT_PYTHON, Notebook, Source, parse_cell

SEEDS = Check("seeds")


def seeds(look: Look) -> Iterator[Finding]:
    recorded, found, fixed = look.submission.story.get("seed"), [], []
    for theme, notebook in look.notebooks.items():
        sources = [source for source in look.sources if source.path == notebook.path]
        if look.submission.record or any(any(starts(source)) for source in sources):
            told = list(_theme(look, theme, notebook, sources, recorded))
        else:
            told = list(_foreign(theme, sources))
        fixed += [theme] if not told and _seeded(sources) else []
        found += told
    yield from found
    if fixed and not found:
        same = f" ({recorded}, as in the record)" if recorded is not None else ""
        every = (
            "Every notebook fixes its seed" if len(fixed) == len(look.notebooks) else ""
        )
        some = f"Seeds are fixed in themes {', '.join(map(str, fixed))}"
        yield SEEDS.passed(f"{every or some}{same}.")


def _seeded(sources: list[Source]) -> bool:
    return any(any(starts(source)) or _seedings(source) for source in sources)


def _seedings(source: Source) -> list[ast.Call]:
    """Calls that seed PyTorch itself; `Generator().manual_seed` seeds that alone."""
    known = list(calls(source, "set_seed", "seed_everything", "fix_seed", "seed_all"))
    own = ("manual_seed", "torch.manual_seed", "torch.random.manual_seed")
    return known + [
        call for call in calls(source, "manual_seed") if ast.unparse(call.func) in own
    ]


def _foreign(theme: int, sources: list[Source]) -> Iterator[Finding]:
    """What a notebook of the group's own trains without a seed; the split's does not
    count.
    """
    steps = ("backward", "train_epoch", "train_epoch_amp")
    trains = [(source, call) for source in sources for call in calls(source, *steps)]
    if not trains or any(_seedings(source) for source in sources):
        return
    splits = [(s, c) for s in sources for c in calls(s, "manual_seed", "Generator")]
    says = f"Theme {theme} trains without a seed, so weights, order and augmentation"
    kind = "Themes {what} train without a seed: weights, order and augmentation differ"
    where = trains[0][0].where(trains[0][1])
    if splits:
        where += f"; the split alone is seeded: {splits[0][0].where(splits[0][1])}"
    yield SEEDS.human(
        f"{says} differ in every run.",
        where,
        kind=f"{kind} in every run.",
        what=str(theme),
    )


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
    started = any(any(starts(source)) for source in sources)
    if started and named:
        return
    if started or any(_seedings(source) for source in sources):
        says = f"Theme {theme} sets a seed, but not through SEED and utils.start: look"
        kind = "Themes {what} set a seed, but not through SEED and utils.start: look"
        yield SEEDS.human(
            f"{says} whether all sources are fixed.",
            shown(notebook.path),
            kind=f"{kind} whether all sources are fixed.",
            what=str(theme),
        )
    else:
        says = f"Theme {theme} fixes no seed: define SEED and pass it to utils.start."
        kind = "Themes {what} fix no seed: define SEED and pass it to utils.start."
        yield SEEDS.fail(says, shown(notebook.path), kind=kind, what=str(theme))


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
