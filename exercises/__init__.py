"""Exercises that check themselves: right, or a hint that fits the mistake.

In a notebook:

    # a function or class of your own; what comes back, the cells below can use
    ece = exercises.check("theme3/ece", my_ece)
    # what you said before you ran it, and what came out
    exercises.predict("theme3/threshold", MY_PREDICTION, moved)

An exercise is stated in its notebook; what it is checked on stands in
`exercises/theme<N>.py`. There a typical mistake is written as a wrong solution with its
hint: an answer that does what this solution does gets this hint. No hint prints a right
number: nothing is marked here, so whoever looks a solution up only skips the exercise.
"""

import copy
import sysconfig
import textwrap
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kit.own import TooSlow, time_limit


@dataclass(frozen=True)
class Mistake:
    """A wrong solution that students often write, and the hint that leads on from it.

    Attributes
    ----------
    wrong : callable
        Same arguments as the exercise's function.
    hint : str
        A question or an observation; neither the code nor the number that is asked for.
    """

    wrong: Callable
    hint: str

    def fits(self, given: Mapping, cases: Mapping, tolerance: float) -> bool:
        """Whether the student answered on every case what this
        wrong solution answers.
        """
        return all(
            _equal(given[name], _quietly(self.wrong, arguments), tolerance)
            for name, arguments in cases.items()
        )


@dataclass(frozen=True)
class Symptom:
    """A mistake known by what its answers look like, where no wrong solution gives the
    same number to all.

    Attributes
    ----------
    shows : callable
        Called with the answer and the exercise's arguments; True where the answer shows
        it.
    hint : str
        As for a Mistake.
    """

    shows: Callable
    hint: str

    def fits(self, given: Mapping, cases: Mapping, tolerance: float) -> bool:
        """Whether the student's answers show it on every case."""
        return all(
            _quietly(self.shows, (given[name], *arguments))
            for name, arguments in cases.items()
        )


@dataclass(frozen=True)
class Verdict:
    """What the check of one answer says: `right`, and the sentence that the student
    reads.
    """

    right: bool
    says: str


@dataclass(frozen=True)
class Implement:
    """A function to write, checked on cases against a solution that does not use the
    course's own code.

    Attributes
    ----------
    cases : mapping of str to tuple
        Arguments of each call; the name says what is special about it ("two classes,
        one absent").
    right : callable
        The solution: SciPy, scikit-learn or a closed form.
    mistakes : iterable of Mistake or Symptom
        Tried in order; the first that fits what the student answers, on every case,
        gives the hint.
    hint : str
        For all other mistakes.
    tolerance : float
        Largest relative or absolute difference that still counts as equal.
    seconds : float
        Time limit of all calls together.
    """

    cases: Mapping[str, tuple]
    right: Callable
    mistakes: Iterable[Mistake | Symptom]
    hint: str
    tolerance: float = 1e-6
    seconds: float = 5.0

    def judge(self, answer) -> Verdict:
        """Call `answer` on every case. It works on copies, so what it changes harms
        nobody.
        """
        if not callable(answer):
            return Verdict(
                False,
                f"this is {_kind(answer)}; a function is checked here: pass its name,"
                " no brackets",
            )
        given, wrong = {}, []
        for name, arguments in self.cases.items():
            mine, same = copy.deepcopy(arguments), copy.deepcopy(arguments)
            given[name] = answer(*mine)
            expected = self.right(*same)
            strange = _strange(given[name], expected)
            if strange:
                return Verdict(False, f"on the case '{name}' your function {strange}")
            if not _equal(given[name], expected, self.tolerance):
                wrong.append(name)
            elif not _untouched(mine, arguments):
                return Verdict(
                    False,
                    f"on the case '{name}' the answer is right, but your function"
                    " changed its input: work on a copy",
                )
        if not wrong:
            return Verdict(True, f"right on {len(given)} of {len(given)} cases")
        done = (
            f"right on {len(given) - len(wrong)} of {len(given)} cases, wrong on"
            f" '{wrong[0]}'"
        )
        return Verdict(False, f"{done}. {self._hint(given)}")

    def _hint(self, given: dict) -> str:
        fitting = (
            mistake.hint
            for mistake in self.mistakes
            if mistake.fits(given, self.cases, self.tolerance)
        )
        return next(fitting, self.hint)


@dataclass(frozen=True)
class Build:
    """A thing to build that no single number decides (a network, a rule): a list of
    properties, in order.

    Attributes
    ----------
    properties : iterable of (callable, str)
        Each is called with the answer and says whether the property holds; its hint
        belongs to the first that does not, or at which the answer raises.
    seconds : float
        Time limit of all of them together.
    right : callable, optional
        The course's own, which later cells use until the answer is right.
    """

    properties: Iterable[tuple[Callable, str]]
    seconds: float = 10.0
    right: Callable | None = None

    def judge(self, answer) -> Verdict:
        properties = list(self.properties)
        for number, (holds, hint) in enumerate(properties):
            try:
                if holds(answer):
                    continue
                raised = ""
            except (Exception, SystemExit) as error:
                raised = _told(error) + ". "
            return Verdict(
                False, f"{number} of {len(properties)} properties hold. {raised}{hint}"
            )
        return Verdict(
            True, f"right: {len(properties)} of {len(properties)} properties hold"
        )


@dataclass(frozen=True)
class Predict:
    """Say first, then look.

    Attributes
    ----------
    choices : tuple
        The answers that can be given. With (float,) a number is asked for.
    why : mapping
        Hint for each wrong choice; for a number the keys are "too low" and "too high".
        A pair of choices is the hint for who said the first where the second came:
        right in theory, and not in these data.
    factor : float
        A number counts as right within this factor of what came out.
    """

    choices: tuple
    why: Mapping[str | tuple[str, str], str]
    factor: float = 2.0

    @property
    def a_number(self) -> bool:
        return self.choices == (float,)

    def allows(self, said) -> bool:
        """Whether this is a prediction at all: one of the choices, or a finite number
        that is no True or False.
        """
        if self.a_number:
            value = None if isinstance(said, (bool, np.bool_, list)) else number(said)
            return value is not None and bool(np.isfinite(value))
        return any(
            type(said) is type(choice) and said == choice for choice in self.choices
        )

    def judge(self, said, came) -> Verdict:
        """Compare a prediction with what came out; without one, ask for it and give
        nothing away.
        """
        wanted = "a number" if self.a_number else " or ".join(map(repr, self.choices))
        if said is None:
            return Verdict(
                False, f"your prediction first: {wanted}. Then run the cell again"
            )
        if not self.allows(said):
            return Verdict(
                False,
                f"{said!r} is "
                + ("no number" if self.a_number else f"none of the answers: {wanted}"),
            )
        if self.a_number:
            return self._judge_number(number(said), came)
        if said == came:
            return Verdict(True, f"predicted: it is {came!r}")
        hint = self.why.get((said, came)) or self.why[said]
        return Verdict(False, f"you said {said!r}, this run says {came!r}. {hint}")

    def _judge_number(self, said: float, came: float) -> Verdict:
        low, high = sorted((came / self.factor, came * self.factor))
        if low <= said <= high:
            return Verdict(
                True, f"predicted within a factor {self.factor:g}: it is {came:.4g}"
            )
        way = "too low" if said < low else "too high"
        return Verdict(
            False,
            f"you said {said:.4g}, which is {way}: it is {came:.4g}. {self.why[way]}",
        )


def find(name: str) -> Implement | Build | Predict:
    """The exercise "theme<N>/<name>".

    Raises
    ------
    KeyError
        There is none of that name; the message lists those of the theme.
    """
    theme, _, short = name.partition("/")
    known = import_module(f"exercises.{theme}").EXERCISES
    if short not in known:
        raise KeyError(f"there is no exercise {name!r}; {theme} has {', '.join(known)}")
    return known[short]


def judge(name: str, answer) -> Verdict:
    """Judge an answer. Whatever it does (raise, loop, return nonsense) becomes a
    sentence.
    """
    exercise = find(name)
    try:
        # the random numbers of the notebook go on where they stood
        with time_limit(exercise.seconds), torch.random.fork_rng(devices=[]):
            return exercise.judge(answer)
    except TooSlow:
        return Verdict(
            False,
            f"no answer after {exercise.seconds:g} s: a loop that never ends? "
            "Follow its condition by hand for two rounds",
        )
    except (Exception, SystemExit) as error:
        return Verdict(False, _told(error))


def check(name: str, answer):
    """Judge an answer, print the verdict, and return what the cells below can use: the
    answer where it is right, else the course's own, or None where there is none.
    """
    verdict = judge(name, answer)
    _print(verdict)
    return answer if verdict.right else getattr(find(name), "right", None)


def predict(name: str, said, came, evidence: str = "") -> None:
    """Print whether what was said came; without a prediction, ask for it and show
    nothing.

    Parameters
    ----------
    name : str
        "theme<N>/<name>".
    said : str, float or None
        The student's prediction; None before there is one.
    came : str or float
        What the cell found in this run.
    evidence : str
        The numbers behind it, printed only below a prediction.
    """
    exercise = find(name)
    _print(exercise.judge(said, came))
    if evidence and exercise.allows(said):
        print(evidence)


def _print(verdict: Verdict) -> None:
    mark = "✓ " if verdict.right else "✗ not yet: "
    print(
        textwrap.fill(
            mark + verdict.says,
            width=110,
            subsequent_indent="  ",
            break_long_words=False,
        )
    )


def _told(error: BaseException) -> str:
    """What an answer raised, and on which of the student's lines: neither one of ours
    nor one of a library.
    """
    others = (
        str(Path(__file__).parent),
        sysconfig.get_path("stdlib"),
        "site-packages",
        "dist-packages",
    )
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(place in frame.filename for place in others)
    ]
    place = f", in `{frames[0].line}`" if frames and frames[0].line else ""
    return f"your code raises {type(error).__name__}: {error}{place}"


def _quietly(wrong: Callable, arguments: tuple) -> Any:
    """What a typical mistake answers; one that raises answers nothing that a student
    could answer.
    """
    try:
        with np.errstate(all="ignore"):
            return wrong(*copy.deepcopy(arguments))
    except Exception:
        return None


def _kind(value) -> str:
    shape = getattr(value, "shape", None)
    if value is None:
        return "None (is the `return` missing?)"
    return f"{type(value).__name__}" + (
        f" of shape {tuple(shape)}" if shape is not None else ""
    )


def number(value) -> float | None:
    """One number as a float, whatever holds it (Python, NumPy, PyTorch); None for what
    is none.
    """
    array = _array(value)
    return float(array) if array is not None and array.ndim == 0 else None


def _array(value) -> np.ndarray | None:
    """Numbers as an array; None for what holds none."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError:
        return None
    return array if array.dtype.kind in "biuf" else None


def _strange(given, expected) -> str | None:
    """What is wrong with the kind of an answer, before its value is looked at."""
    if isinstance(expected, str):
        return None if isinstance(given, str) else f"returns {_kind(given)}, not a str"
    if isinstance(expected, tuple):
        right_kind = isinstance(given, (tuple, list)) and len(given) == len(expected)
        return (
            None
            if right_kind
            else f"returns {_kind(given)}, not a tuple of {len(expected)}"
        )
    theirs, ours = _array(given), _array(expected)
    if theirs is None:
        return f"returns {_kind(given)}, not " + (
            "a number" if ours.ndim == 0 else "an array of numbers"
        )
    if theirs.shape != ours.shape:
        return f"returns {_form(theirs)}, not {_form(ours)}"
    if not np.isfinite(theirs).all() and np.isfinite(ours).all():
        return (
            "returns nan or inf: is something divided by zero, or a logarithm taken"
            " of it?"
        )
    return None


def _form(array: np.ndarray) -> str:
    return "one number" if array.ndim == 0 else f"an array of shape {array.shape}"


def _equal(given, expected, tolerance: float) -> bool:
    if isinstance(expected, tuple) and isinstance(given, (tuple, list)):
        return len(given) == len(expected) and all(
            map(lambda a, b: _equal(a, b, tolerance), given, expected)
        )
    if isinstance(expected, str) or isinstance(given, str):
        return isinstance(given, str) and given == expected
    theirs, ours = _array(given), _array(expected)
    if theirs is None or ours is None or theirs.shape != ours.shape:
        return False
    return np.allclose(
        theirs.astype(float),
        ours.astype(float),
        rtol=tolerance,
        atol=tolerance,
        equal_nan=True,
    )


def _untouched(mine: tuple, arguments: tuple) -> bool:
    """Whether arrays that were handed out still hold what they held."""
    pairs = [(_array(a), _array(b)) for a, b in zip(mine, arguments, strict=True)]
    return all(
        a is None
        or b is None
        or (a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
        for a, b in pairs
    )
