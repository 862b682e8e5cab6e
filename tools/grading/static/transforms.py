"""How images are prepared: one normalisation for a model, and nothing random for the
images that judge it.
"""

import ast
import re
from collections.abc import Iterator

from tools.grading.finding import Check, Finding, listed
from tools.grading.static.code import argument, assigned, called, calls_in, files
from tools.grading.static.code import numbers as numbers_of
from tools.grading.static.look import Look, calls
from tools.shared.foreign import MIB, SubmissionError, shown

METHOD = Check("method")
RANDOM = re.compile(
    r"Random\w+|ColorJitter|AutoAugment|RandAugment|TrivialAugmentWide|AugMix"
)
JUDGES = re.compile(r"(?i)(^|_)(test|eval|valid|validation|val)(?![a-z]*train)")
TRAINS = re.compile(r"(?i)train|drift|augment")
CLOSE, MAX_SETTINGS, DEEP = 0.002, 60, 20


def normalisations(look: Look) -> Iterator[Finding]:
    """More than one mean and spread among all transforms and settings."""
    groups: list[tuple[tuple, list[str]]] = []
    for values, where in [*_in_code(look), *_in_settings(look)]:
        for known, places in groups:
            if _alike(known, values):
                places.append(where)
                break
        else:
            groups.append((values, [where]))
    if len(groups) > 1:
        told = "; ".join(
            f"{_text(mean)} / {_text(spread)} in {listed(places, 2)}"
            for (mean, spread), places in groups[:4]
        )
        says = f"Images are normalised in {len(groups)} ways: {told}. A model must see"
        yield METHOD.human(f"{says} them as it was trained: ask which is whose.")


def _alike(first: tuple, second: tuple) -> bool:
    pairs = zip(first, second, strict=True)
    return all(
        len(a) == len(b) and all(abs(x - y) < CLOSE for x, y in zip(a, b, strict=True))
        for a, b in pairs
    )


def _text(values: tuple) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _plain(values: tuple) -> tuple:
    """One number for channels that are alike."""
    return values[:1] if len(set(values)) == 1 else values


def _in_code(look: Look) -> Iterator[tuple[tuple, str]]:
    for sources in files(look).values():
        names = assigned(sources)
        for source in sources:
            for call in calls(source, "Normalize"):
                mean = numbers_of(argument(call, 0, "mean"), names)
                spread = numbers_of(argument(call, 1, "std"), names)
                if mean and spread:
                    yield (_plain(mean), _plain(spread)), source.where(call)


def _in_settings(look: Look) -> Iterator[tuple[tuple, str]]:
    """Means and spreads that stand beside each other in small JSON files."""
    small = [path for path in look.submission.files if path.suffix == ".json"]
    for path in small[:MAX_SETTINGS]:
        try:
            content = look.read_json(path) if look.size(path) <= MIB // 4 else None
        except SubmissionError:
            continue
        for mean, spread in _pairs(content):
            yield (_plain(mean), _plain(spread)), shown(path)


def _pairs(value, left: int = DEEP) -> Iterator[tuple[tuple, tuple]]:
    if not isinstance(value, dict) or not left:
        return
    mean, spread = (
        next((_floats(value[key]) for key in value if re.search(word, key)), None)
        for word in (r"(?i)norm\w*mean", r"(?i)norm\w*std")
    )
    if mean and spread:
        yield mean, spread
    for below in value.values():
        yield from _pairs(below, left - 1)


def _floats(value) -> tuple | None:
    values = value if isinstance(value, list) else [value]
    real = all(type(each) in (int, float) and abs(each) < 1e300 for each in values)
    return tuple(values) if real and values else None


def random_in_tests(look: Look) -> Iterator[Finding]:
    """Transforms of test images that draw at random: their figures differ in every
    run, and from what is deployed.
    """
    for sources in files(look).values():
        names = assigned(sources)
        for source in sources:
            for name, value, node in _of_tests(source.nodes, names):
                if drawn := sorted(_random(value)):
                    what = f"{', '.join(drawn)} in {shown(name)}"
                    says = f"{what}: the images that judge are changed at random."
                    kind = "{n} transforms change the images that judge at random:"
                    yield METHOD.human(
                        says, source.where(node), kind=kind + " {what}.", what=what
                    )


def _of_tests(nodes: list[ast.AST], names: dict) -> Iterator[tuple]:
    """(name, transform, place) of what is called after test images, or given to a
    folder of them.
    """
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if _judges(node.targets[0].id):
                yield node.targets[0].id, node.value, node
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                name = getattr(key, "value", None)
                if isinstance(name, str) and _judges(name):
                    yield name, value, value
        elif isinstance(node, ast.Call) and called(node) == "ImageFolder" and node.args:
            given = argument(node, 1, "transform")
            of_tests = re.search(r"""['"/]test['"/]""", ast.unparse(node.args[0]))
            if of_tests and isinstance(given, ast.Name) and not _judges(given.id):
                if value := names.get(given.id):
                    yield given.id, value, node


def _judges(name: str) -> bool:
    return JUDGES.search(name) is not None and not TRAINS.search(name)


def _random(value: ast.expr) -> set[str]:
    composed = list(calls_in(value, "Compose", "Sequential"))
    return {
        called(part)
        for compose in composed
        for part in ast.walk(compose)
        if isinstance(part, ast.Call) and RANDOM.fullmatch(called(part))
    }
