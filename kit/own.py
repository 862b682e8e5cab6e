"""A group's own code: registered in one notebook, kept in my_code.py of the home, known
to all later notebooks.
"""

from __future__ import annotations

import ast
import builtins
import copy
import importlib.util
import inspect
import linecache
import re
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import nn

from kit.files import CourseError, atomic, read_text
from kit.machine import same_generators, seed_generators
from kit.syntax import globals_of

FILE = "my_code.py"
HEAD = '''"""Our own code, as our notebooks registered it; later ones load it."""

import math

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from utils import AlertRule
'''
# What HEAD and Python bind: every cell may use it.
KNOWN = {"math", "np", "pd", "torch", "F", "nn", "AlertRule", *dir(builtins)}
MARK = "# --- {kind}: {name} ---"
BLOCK = re.compile(r"^# --- (?P<kind>\w+): (?P<name>\w+) ---\n", re.MULTILINE)
OF_A_CELL = ("__main__", "my_code")
PLAIN = (bool, int, float, str, type(None), tuple, list, dict)
_opened: list[Path] = []  # my_code.py of the home that this kernel has open
_shape = [1, 3, 64]  # channels, classes and side of the pictures of that home
SECONDS = 20.0  # for a trial of what is registered

OWN: dict[str, dict[str, object]] = {}  # kind: name: thing, of this kernel
# Tables of the kit in which a kind stands beside the kit's own, and as what.
TABLES: dict[str, tuple[dict, Callable]] = {}


# --------------------------------------------------------------------------------------
# What can be registered, and what each must do
# --------------------------------------------------------------------------------------


def register_model(model_class: type) -> None:
    """Make a network of your own known to all themes, by the name of its class.

    Parameters
    ----------
    model_class : subclass of torch.nn.Module
        `model_class(channels, classes)` builds it; images (N, channels, S, S) become
        logits (N, classes), by an `nn.Linear` as its last layer: what that layer reads
        is the embedding.

    Raises
    ------
    CourseError
        It cannot be built so, gives another shape, or ends in another layer.
    """
    name, (channels, classes, _) = model_class.__name__, _shape
    images = _pictures(2)
    with _trial(f"{name}(channels, classes) cannot be used", images) as (given,):
        fault = _fault(model_class(channels, classes).eval(), given, classes)
    if fault:
        raise CourseError(f"{name}({channels}, {classes}) {fault}")
    keep_own("model", name, model_class)


@torch.no_grad()
def _fault(model: nn.Module, images: torch.Tensor, classes: int) -> str:
    """What later themes could not work with; "" if there is nothing."""
    logits = model(images)  # (2, K)
    if getattr(logits, "shape", None) != (2, classes):
        made = tuple(getattr(logits, "shape", [type(logits).__name__]))
        return f"makes {made} of 2 images: it must return the logits (2, {classes})."
    if not torch.allclose(model(images), logits, atol=1e-5):
        return (
            "answers the same images differently each time: F.dropout wants"
            " training=self.training, so that it stops where nothing is learned."
        )
    alone = model(images[:1])
    if alone.shape != (1, classes) or not torch.allclose(alone, logits[:1], atol=1e-4):
        return (
            "answers one image alone otherwise than in a batch: squeeze() drops the"
            " axis of the images, flatten(1) keeps it."
        )
    body, head = split_head(model)
    if not torch.allclose(head(body(images)), logits, atol=1e-5):
        return (
            "does more after its last nn.Linear: it must return the logits of that"
            " layer, without a softmax."
        )
    return ""


def split_head(model: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """A network in two: images (N, C, S, S) -> embedding (N, D), and the linear layer
    that makes logits (N, K) of it. The weights are shared with `model`.

    Raises
    ------
    CourseError
        It has no nn.Linear.
    """
    names = [n for n, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not names:
        raise CourseError(
            f"{type(model).__name__} has no nn.Linear: end it with one, which gives the"
            " logits."
        )
    head = model.get_submodule(names[-1])
    shared = (*model.parameters(), *model.buffers())
    body = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    body.set_submodule(names[-1], nn.Identity())
    return body, head


def register_augmentation(function: Callable) -> None:
    """Use a function on batches, images (N, C, S, S) in 0..1 -> the same, on top of the
    course's augmentation in every training from theme 3 on.
    """
    name, images = function.__name__, _pictures(4)
    with _trial(f"{name}(images) cannot be used", images) as (given,):
        made = function(given)
        good = made.shape == images.shape and made.dtype == images.dtype
        good = good and bool(((made >= 0) & (made <= 1)).all())
    if not good:
        raise CourseError(
            f"{name}(images) must return floats in 0..1 of the same shape as images."
        )
    keep_own("augmentation", name, function)


def register_detector(function: Callable, view: str = "embedding") -> None:
    """Use a function `f(reference, window) -> p-value` as a detector of drift.

    Parameters
    ----------
    function : arrays (n, D), (m, D) -> float in 0..1
    view : {"statistics", "probabilities", "embedding"}
        What it looks at.
    """
    name, views = function.__name__, ("statistics", "probabilities", "embedding")
    if view not in views:
        raise CourseError(
            f"view={view!r} is unknown: choose one of {', '.join(views)}."
        )
    rng = np.random.default_rng(0)
    sides = rng.normal(size=(40, 6)), rng.normal(size=(30, 6))
    with _trial(f"{name}(reference, window) cannot be used", *sides) as given:
        answer = function(*given)
    number = isinstance(answer, (int, float, np.number)) and not isinstance(
        answer, bool
    )
    if not number or not 0 <= answer <= 1:
        raise CourseError(
            f"{name}(reference, window) must return a p-value, a number of 0 to 1; it"
            f" returned {answer!r}."
        )
    function.view = view
    keep_own("detector", name, function, f'{name}.view = "{view}"')


def register_drift(function: Callable) -> None:
    """Let something of your own happen to pictures: `f(images, severity, rng)`, grey
    levels 0..255, float32 (n, C, S, S), a severity of 1 to 5 and a NumPy generator ->
    the same shape. Its docstring says what happens in the world.
    """
    name, images, rng = function.__name__, 255 * _pictures(2), np.random.default_rng(0)
    for severity in (1, 5):
        with _trial(f"{name}(images, severity, rng) cannot be used", images) as (
            given,
        ):
            made = torch.as_tensor(function(given, severity, rng))
            good = made.shape == images.shape and bool(made.isfinite().all())
        if not good:
            raise CourseError(
                f"{name}(images, severity, rng) must return finite numbers in the shape"
                f" of images, {tuple(images.shape)}; it returned {tuple(made.shape)}."
            )
    keep_own("drift", name, function)


def register_rule(rule) -> None:
    """Watch for one more thing: an `AlertRule` beside those of the course."""
    with _trial("register_rule takes an AlertRule"):
        name = re.sub(r"\W", "_", rule.name)
    keep_own("rule", name, rule)


def seeded(function: Callable, images: torch.Tensor, numbers: list[int]):
    """A group's augmentation on a batch; what it draws depends on `numbers` alone, so
    that a training which was interrupted can go on.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    with same_generators(images.device):
        seed_generators(seed)
        return function(images)


def _pictures(count: int) -> torch.Tensor:
    """Noise in 0..1 in the shape of the home's pictures, (count, C, S, S)."""
    channels, _, side = _shape
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, side, side, generator=generator)


@contextmanager
def _trial(says: str, *given):
    """Copies of some arguments, for a call of a student's function. That it fails, does
    not end, or changes them becomes one sentence; what it draws by chance is unnoticed.
    """
    copies = copy.deepcopy(given)
    try:
        with time_limit(SECONDS), same_generators(torch.device("cpu")):
            yield copies
    except CourseError:
        raise
    except TooSlow:
        why = f"no answer after {SECONDS:g} s: a loop that never ends?"
        raise CourseError(f"{says}: {why}") from None
    except Exception as error:
        why = f"{type(error).__name__}: {error}{_place_of(error)}."
        raise CourseError(f"{says}: {why}") from error
    if not all(map(np.array_equal, copies, given)):
        raise CourseError(f"{says}: it changes what it is given; let it make a copy.")


class TooSlow(BaseException):
    """No Exception, so that a student's `except Exception` does not swallow it."""


@contextmanager
def time_limit(seconds: float):
    """TooSlow after so many seconds, and again every half second in case a bare
    `except:` swallows it.

    Works where there are timers and in the main thread, as in a notebook on Linux and
    macOS; elsewhere without limit."""
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def stop(*_):
        raise TooSlow

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)


# --------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------


def load_own(home: Path, shape=(1, 3, 64)) -> list[tuple[str, str, object]]:
    """Open my_code.py of a home: (kind, name, thing) of all that it registers, which
    from now on stands in OWN. Its pictures have `shape`: channels, classes, side.

    Raises
    ------
    CourseError
        The file does not run, and the line where it stops.
    """
    path = home / FILE
    _opened[:], _shape[:] = [path], shape
    for kind, things in OWN.items():  # of another home
        for name in things if kind in TABLES else ():
            TABLES[kind][0].pop(name, None)
    OWN.clear()
    if not path.exists():
        return []
    module = _run(path)
    found = BLOCK.findall(read_text(path))
    things = [(kind, name, getattr(module, name)) for kind, name in found]
    for kind, name, thing in things:
        _make_known(kind, name, thing)
    return things


def _make_known(kind: str, name: str, thing) -> None:
    OWN.setdefault(kind, {})[name] = thing
    if kind in TABLES:
        table, entry = TABLES[kind]
        table[name] = entry(thing)


def keep_own(kind: str, name: str, thing, after: str = "") -> None:
    """Write a function, class or value, what it uses of its notebook, and a line after
    it to my_code.py; one of the same kind and name is replaced.

    Raises
    ------
    CourseError
        Its source is nowhere to be read, or it uses what a file cannot hold. The file
        stays as it was.
    """
    table = TABLES[kind][0] if kind in TABLES else {}
    if name in table and name not in OWN.get(kind, {}):
        raise CourseError(f"The course has a {kind} {name} of its own: rename yours.")
    if _opened:  # else it is known in this kernel alone
        _write(_opened[0], kind, name, [*_sources(name, thing), after])
    _make_known(kind, name, thing)


def _write(path: Path, kind: str, name: str, definitions: list[str]) -> None:
    blocks = _blocks(read_text(path)) if path.exists() else {}
    blocks[kind, name] = "\n\n\n".join(definitions)
    parts = [HEAD.rstrip()]
    for (kind_, name_), text in blocks.items():
        parts.append(f"{MARK.format(kind=kind_, name=name_)}\n{text.strip()}")
    with atomic(path) as temporary:
        temporary.write_text("\n\n\n".join(parts) + "\n", encoding="utf-8")
        _run(temporary)


def _blocks(text: str) -> dict[tuple[str, str], str]:
    _, *parts = BLOCK.split(text)
    return dict(
        zip(zip(parts[::3], parts[1::3], strict=True), parts[2::3], strict=True)
    )


def _run(path: Path) -> ModuleType:
    """my_code.py as a module."""
    spec = importlib.util.spec_from_loader("my_code", loader=None, origin=str(path))
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(path)
    text = read_text(path)
    try:
        exec(compile(text, str(path), "exec"), vars(module))
    except Exception as error:
        line = _line_of(error, path)
        raise CourseError(
            f"{path.parent / FILE}, line {line}: {type(error).__name__}: {error}. Mend"
            " that line, or delete the file to go on without your own code."
        ) from error
    sys.modules["my_code"] = module
    linecache.checkcache(str(path))
    return module


def _place_of(error: Exception) -> str:
    """The last line of a cell, or of my_code.py, on the way to an error."""
    frames = inspect.getinnerframes(error.__traceback__)
    own = [f for f in frames if f.frame.f_globals.get("__name__") in OF_A_CELL]
    if not own:
        return ""
    code = f": {own[-1].code_context[0].strip()}" if own[-1].code_context else ""
    return f" (line {own[-1].lineno} of its cell{code})"


def _line_of(error: Exception, path: Path) -> int | None:
    """The line of the file where an error arose."""
    if isinstance(error, SyntaxError):
        return error.lineno
    frames = inspect.getinnerframes(error.__traceback__)
    return [frame.lineno for frame in frames if frame.filename == str(path)][-1]


def _sources(name: str, thing) -> list[str]:
    """The text of a definition, after those of its notebook that it uses."""
    found: dict[str, str] = {}

    def add(name: str, thing, user: str) -> None:
        if name in found:
            return
        if inspect.ismodule(thing):
            found[name] = f"import {thing.__name__} as {name}"
        elif isinstance(thing, PLAIN) or is_dataclass(type(thing)):
            found[name] = f"{name} = {thing!r}"
        elif hasattr(thing, "__name__") and thing.__module__ not in OF_A_CELL:
            found[name] = f"from {thing.__module__} import {thing.__name__} as {name}"
        elif getattr(thing, "__name__", name) != name:  # as in Block = MyBlock
            add(thing.__name__, thing, user)
            found[name] = f"{name} = {thing.__name__}"
        else:
            add_definition(name, thing, user)

    def add_definition(name: str, thing, user: str) -> None:
        text, space = _source(thing, user)
        found[name] = ""  # it may use itself
        for other in sorted(globals_of(ast.parse(text))[0] - KNOWN - {name}):
            if other not in space:
                raise CourseError(f"{name} uses {other}, which is not defined yet.")
            add(other, space[other], name)
        found[name] = found.pop(name) + text

    add(name, thing, name)
    return list(found.values())


def _source(thing, user: str) -> tuple[str, dict]:
    """The text of a function or class, as its cell has it, and the names that it
    sees.
    """
    function = thing
    if inspect.isclass(thing):  # before Python 3.13 only its methods know their cell
        methods = [m for m in vars(thing).values() if inspect.isfunction(m)]
        function = methods[0] if methods else None
    if inspect.isfunction(function):
        text = "".join(linecache.getlines(function.__code__.co_filename))
        for node in ast.parse(text).body:
            if getattr(node, "name", "") == thing.__name__:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                lines = text.splitlines()[first - 1 : node.end_lineno]
                return "\n".join(lines), function.__globals__
    raise CourseError(
        f"{user} uses a {type(thing).__name__} that {FILE} cannot hold: define it with"
        f" def or class in a cell, or inside {user}."
    )
