"""Which images train and which judge: loops and choices that are fed with test images,
as far as the names in a notebook tell.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tools.grading.finding import Check, Finding
from tools.grading.static.code import called, calls_in, files, names_in, says
from tools.grading.static.look import Look
from tools.shared.foreign import MIB, SubmissionError, shown
from tools.shared.parsing import Source

METHOD = Check("method", 3)
TEST_NAME = re.compile(r"(?i)(^|_)test(?!ing|er|ed|s?_?transform|_?tf|_?fraction)")
TEST_FOLDER = re.compile(r"(?i)(^|[/\\ _-])test($|[/\\ _-])")
# what hands images on
PASSED_ON = re.compile(
    r"ImageFolder|\w*Dataset|Path|join|random_split|Subset|DataLoader|enumerate|tqdm"
    r"|list|sorted|glob|str"
)
FIGURE = r"acc|loss|f1|auc|score|recall"
CHOSEN = re.compile(
    r"(?i)(s[ée]lectionn|choisi|retenu|selected|chosen|picked)\w*[^.]{0,80}\btest\b"
)
MAX_SETTINGS = 60


@dataclass
class Trainer:
    """A function that trains: the parameters that it learns from, and those that it
    chooses the best epoch by.
    """

    parameters: list[str]
    learns: set[str] = field(default_factory=set)
    chooses: set[str] = field(default_factory=set)


def tests_that_train(look: Look) -> Iterator[Finding]:
    """Training loops over images of a test folder, and choices by them."""
    for sources in files(look).values():
        trainers = _trainers(sources)
        tests: set[str] = set()
        for source in sources:
            for node in _in_order(source):
                _follow(node, tests)
                yield from _learned(source, node, tests)
                yield from _given(source, node, tests, trainers)
                yield from _chosen(source, node)
    yield from _said(look)


def _in_order(source: Source) -> list[ast.AST]:
    placed = [node for node in source.nodes if isinstance(node, ast.stmt | ast.Call)]
    return sorted(placed, key=lambda node: (node.lineno, node.col_offset))


def _follow(node: ast.AST, tests: set[str]) -> None:
    """Note the names that test images are given to."""
    if not isinstance(node, ast.Assign):
        return
    for target in node.targets:
        parts = target.elts if isinstance(target, ast.Tuple) else [target]
        names = {part.id for part in parts if isinstance(part, ast.Name)}
        if _is_test(node.value, tests):
            tests |= names
        else:
            tests -= names


def _is_test(value: ast.expr, tests: set[str]) -> bool:
    """Whether an expression is a test folder, or images of one."""
    if isinstance(value, ast.Constant):
        text = value.value
        return isinstance(text, str) and bool(TEST_FOLDER.search(text[:500]))
    if isinstance(value, ast.Name):
        return value.id in tests or bool(TEST_NAME.search(value.id))
    if isinstance(value, ast.BinOp):
        return _is_test(value.left, tests) or _is_test(value.right, tests)
    if isinstance(value, (ast.List, ast.Tuple)):
        return any(_is_test(part, tests) for part in value.elts)
    if isinstance(value, ast.Call) and PASSED_ON.fullmatch(called(value)):
        return any(_is_test(part, tests) for part in value.args)
    return False


def _learned(source: Source, node: ast.AST, tests: set[str]) -> Iterator[Finding]:
    learns = isinstance(node, ast.For) and any(calls_in(node, "backward"))
    inner = learns and not any(
        any(calls_in(below, "backward"))
        for statement in node.body
        for below in ast.walk(statement)
        if isinstance(below, ast.For)
    )
    if inner and _is_test(node.iter, tests):
        yield _trains(source.where(node), ast.unparse(node.iter))


def _trains(where: str, what: str) -> Finding:
    says = f"It trains on images that come from a test folder ({shown(what[:60])}):"
    kind = "{n} loops train on images that come from a test folder ({what}): what was"
    return METHOD.human(
        f"{says} what was measured on them afterwards shows little.",
        where,
        kind=f"{kind} measured on them afterwards shows little.",
        what=shown(what[:60]),
    )


def _trainers(sources: list[Source]) -> dict[str, Trainer]:
    """Functions of a notebook that train, by name."""
    found = {}
    for source in sources:
        for node in source.nodes:
            if isinstance(node, ast.FunctionDef) and any(calls_in(node, "backward")):
                found[node.name] = _trainer(node)
    return found


def _trainer(function: ast.FunctionDef) -> Trainer:
    trainer = Trainer([part.arg for part in function.args.args])
    keeps = says("best", names_in(function)) or any(calls_in(function, "save"))
    for loop in (node for node in ast.walk(function) if isinstance(node, ast.For)):
        used = {
            name for name in trainer.parameters if name.lower() in names_in(loop.iter)
        }
        learns = any(calls_in(loop, "backward"))
        trainer.learns |= used if learns else set()
        trainer.chooses |= used if keeps and not learns else set()
    return trainer


def _given(
    source: Source, node: ast.AST, tests: set[str], trainers: dict[str, Trainer]
) -> Iterator[Finding]:
    """Test images as an argument of a function that trains."""
    trainer = trainers.get(called(node)) if isinstance(node, ast.Call) else None
    if trainer is None:
        return
    given = dict(zip(trainer.parameters, node.args, strict=False))
    given |= {each.arg: each.value for each in node.keywords if each.arg}
    for name, value in given.items():
        if isinstance(value, ast.Name) and _is_test(value, tests):
            if name in trainer.learns:
                yield _trains(source.where(node), value.id)
            elif name in trainer.chooses:
                yield _chooses(source.where(node), value.id)


def _chooses(where: str, what: str) -> Finding:
    says = f"The best state is chosen by test images ({shown(what[:60])}): their figure"
    kind = "{n} choices are made by test images ({what}): their figures are no longer"
    return METHOD.human(
        f"{says} is no longer unseen.",
        where,
        kind=f"{kind} unseen.",
        what=shown(what[:60]),
    )


def _chosen(source: Source, node: ast.AST) -> Iterator[Finding]:
    """`if test_acc > best_acc:` and the like."""
    if not isinstance(node, ast.If) or not isinstance(node.test, ast.Compare):
        return
    names = names_in(node.test)
    tested = says(rf"test_?\w*({FIGURE})|({FIGURE})\w*_test", names)
    if tested and says("best|champion", names):
        yield _chooses(source.where(node), ast.unparse(node.test))


def _said(look: Look) -> Iterator[Finding]:
    """Settings that say so themselves."""
    small = [path for path in look.submission.files if path.suffix == ".json"]
    for path in small[:MAX_SETTINGS]:
        try:
            content = look.read_json(path) if look.size(path) <= MIB // 4 else None
        except SubmissionError:
            continue
        for value in content.values() if isinstance(content, dict) else ():
            if isinstance(value, str) and (told := CHOSEN.search(value)):
                yield _chooses(shown(path), f"“{told[0]}”")
