"""Method: the faults that teachers look for, each a question with its place and never
a fail by itself.
"""

import ast
import re
from collections.abc import Iterator

from tools.grading.finding import Check, Finding
from tools.grading.static.code import (
    argument,
    called,
    calls_in,
    files,
    names_in,
    says,
)
from tools.grading.static.judging import tests_that_train
from tools.grading.static.look import Look
from tools.grading.static.transforms import normalisations, random_in_tests
from tools.shared.foreign import shown
from tools.shared.parsing import Source, output_text

METHOD, READING = Check("method"), Check("method", 3)
LOADS = ("load_state_dict", "load_checkpoint", "load_model")
WRITES = re.compile(
    r"add_(scalars?|histogram|images?|figure|graph|text|hparams|embedding|pr_curve"
    r"|video|audio|mesh|custom_scalars)"
)
# What a sentence is about: words of it, and of names that its figure may have.
FIGURES = {
    r"confian|confiden": r"conf|prob|score",
    r"accurac|exactitude|performance|pr[ée]cision": r"acc|perf|drop|score|f1|auc|gain",
    r"laten|vitesse|speed|rapid|faster": r"lat|time|speed|ms|fast",
    r"\bloss|perte": r"loss",
}
CLAIMS = re.compile(
    r"(?i)baisse|chute|hausse|augment|am[ée]lior|d[ée]grad|\bdrop|decreas|increas"
    r"|improv|meilleur|better|faster|plus rapide|sup[ée]rieur|\bgain"
)
ASKED = r"improv|better|best|amelior|gain|passed|degrad|decreas|increas"
LABEL = re.compile(r"(:|\.\.\.|…|=|-)\s*$")  # a heading, or a message of progress


def method(look: Look) -> Iterator[Finding]:
    for rule in (tests_that_train, normalisations, random_in_tests):
        yield from rule(look)
    for sources in files(look).values():
        yield from _silent_writer(sources)
        for source in sources:
            yield from _swallowed(source)
            yield from _emptied_log(source)
            yield from _told_anyway(source)
            yield from _no_embedding(source)


def _swallowed(source: Source) -> Iterator[Finding]:
    """Weights that fail to load, and work that goes on without them."""
    printed = output_text(source.cell) if source.cell else ""
    for node in source.nodes:
        if not isinstance(node, ast.Try):
            continue
        loads = [call for part in node.body for call in calls_in(part, *LOADS)]
        for handler in node.handlers if loads else ():
            caught = getattr(handler.type, "id", "everything")
            goes_on = not any(
                isinstance(part, (ast.Raise, ast.Return))
                or called(part) in (*LOADS, "exit", "_exit")
                for part in ast.walk(handler)
            )
            if goes_on and caught in ("everything", "Exception", "BaseException"):
                taken = any(text in printed for text in _printed(handler))
                did = ": its message stands in the output" if taken else ""
                what = f"A failure of {called(loads[0])} is passed over{did}"
                kind = "{n} failures to load weights are passed over: with which"
                yield METHOD.human(
                    f"{what}. With which weights does the work go on?",
                    source.where(handler),
                    kind=f"{kind} weights does the work go on?",
                )


def _printed(node: ast.AST) -> Iterator[str]:
    """Longer texts that a piece of code prints as they stand."""
    for call in calls_in(node, "print"):
        for part in call.args:
            text = part.value if isinstance(part, ast.Constant) else ""
            if isinstance(text, str) and len(text.strip()) > 8:
                yield text.strip()


def _emptied_log(source: Source) -> Iterator[Finding]:
    """A log that is opened with "w"."""
    for node in source.nodes:
        named = getattr(node, "name", "") or ""
        is_scope = isinstance(node, (ast.ClassDef, ast.FunctionDef))
        if not is_scope or not re.search(r"(?i)log(ger|_|$)", named):
            continue
        for call in calls_in(node, "open"):
            # open(path, "w"), and path.open("w")
            mode = argument(call, isinstance(call.func, ast.Name), "mode")
            if isinstance(mode, ast.Constant) and str(mode.value).startswith("w"):
                what = f'{shown(named)} opens its file with "w"'
                kind = '{n} logs are opened with "w" ({what}): each start empties them.'
                yield METHOD.note(
                    f"{what}: each start empties the log, unless it has a new name.",
                    source.where(call),
                    kind=kind,
                    what=shown(named),
                )


def _silent_writer(sources: list[Source]) -> Iterator[Finding]:
    """A SummaryWriter that nothing is written with, nor handed to anybody."""
    made, used = None, False
    for source in sources:
        for node in source.nodes:
            value = getattr(node, "value", None)
            if isinstance(node, ast.Assign) and called(value) == "SummaryWriter":
                made = made or (source, node, names_in(node.targets[0]))
            used |= WRITES.fullmatch(called(node)) is not None
    if made is None or used:
        return
    source, node, names = made
    for call in (node for each in sources for node in each.nodes):
        if isinstance(call, ast.Call):
            given = [*call.args, *(keyword.value for keyword in call.keywords)]
            if any(names_in(value) & names for value in given):
                return
    says_so = "A SummaryWriter is made, and nothing is written with it."
    kind = "{n} SummaryWriters are made, and nothing is written with them."
    yield METHOD.human(says_so, source.where(node), kind=kind)


def _told_anyway(source: Source) -> Iterator[Finding]:
    """Conclusions on a figure that are printed as they stand, where no condition asks
    for that figure.
    """
    shown_below = output_text(source.cell) if source.cell else ""
    for call, conditions in _prints(source.tree):
        for text in _texts(call):
            about = [
                names
                for words, names in FIGURES.items()
                if re.search(words, text, re.I)
            ]
            claims = CLAIMS.search(text) and not LABEL.search(text)
            asked = says("|".join([*about, ASKED]), conditions)
            if not claims or not about or asked:
                continue
            if shown_below and text not in shown_below:
                continue
            what = f"“{shown(text[:60])}”"
            kind = "{n} conclusions are printed whatever their figures say: {what}."
            yield READING.human(
                f"{what} is printed whatever its figure says: compare it.",
                source.where(call),
                kind=kind,
                what=what,
            )


def _prints(tree: ast.AST) -> Iterator[tuple[ast.Call, set[str]]]:
    """Each print, with the names in the conditions above it."""
    waiting: list[tuple[ast.AST, frozenset]] = [(tree, frozenset())]
    while waiting:
        node, asked = waiting.pop()
        if isinstance(node, (ast.If, ast.IfExp, ast.While)):
            asked = asked | names_in(node.test)
        if isinstance(node, ast.Call) and called(node) == "print":
            yield node, set(asked)
        waiting += [(below, asked) for below in ast.iter_child_nodes(node)]


def _texts(call: ast.Call) -> Iterator[str]:
    """Texts of a print that hold no figure."""
    for part in call.args[:4]:
        if isinstance(part, ast.JoinedStr) and len(part.values) == 1:
            part = part.values[0]
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value.strip()


def _no_embedding(source: Source) -> Iterator[Finding]:
    """A distance of embeddings that is given probabilities."""
    for node in source.nodes:
        if re.search(r"(?i)mmd|embedding_drift", called(node)):
            given = [part for part in node.args if isinstance(part, ast.Name)]
            probabilities = [p.id for p in given if re.search(r"(?i)prob|conf", p.id)]
            if probabilities:
                what = f"{called(node)}({', '.join(map(shown, probabilities))}, …)"
                yield READING.human(
                    f"{what} measures probabilities, not embeddings: is it said so?",
                    source.where(node),
                )
