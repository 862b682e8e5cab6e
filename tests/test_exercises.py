"""The self-check of exercises: it knows right from wrong, and nothing that a student
writes breaks it.
"""

import sys
import threading

import numpy as np
import pytest
import torch

import exercises
from exercises import Build, Implement, Mistake, Predict, Symptom
from exercises.__main__ import listing

MEAN = Implement(
    {"three numbers": (np.array([1.0, 2.0, 6.0]),), "one number": (np.array([4.0]),)},
    np.mean,
    (
        Mistake(np.median, "the middle one"),
        Mistake(np.sum, "divide by how many they are"),
    ),
    "think of the centre of gravity",
)
PAIR = Implement(
    {"two": (np.array([3.0, 1.0]),)},
    lambda x: (x.min(), x.max()),
    (),
    "smallest and largest",
)


@pytest.fixture
def mean(monkeypatch):
    monkeypatch.setattr(
        exercises, "find", lambda name: {"mean": MEAN, "pair": PAIR}[name]
    )


def test_right_answers_of_all_number_types_are_right(mean):
    for answer in (
        np.mean,
        lambda x: float(x.mean()),
        lambda x: torch.as_tensor(x).mean(),
        lambda x: sum(x) / len(x),
    ):
        assert exercises.judge("mean", answer) == exercises.Verdict(
            True, "right on 2 of 2 cases"
        )


def test_the_hint_fits_the_mistake(mean):
    assert exercises.judge("mean", np.median).says.endswith(
        "wrong on 'three numbers'. the middle one"
    )
    assert exercises.judge("mean", np.sum).says.endswith("divide by how many they are")
    assert exercises.judge("mean", lambda x: 0.0).says.endswith(
        "think of the centre of gravity"
    )


def test_a_symptom_must_show_in_every_case(monkeypatch):
    too_large = Symptom(lambda answer, x: answer > x.max(), "larger than the largest?")
    raises = Symptom(lambda answer, x: answer > x[7], "never")
    exercise = Implement(
        MEAN.cases, MEAN.right, (raises, too_large), "think of the centre of gravity"
    )
    monkeypatch.setattr(exercises, "find", lambda name: exercise)
    assert exercises.judge("mean", lambda x: x.sum() + 1).says.endswith(
        "larger than the largest?"
    )
    assert exercises.judge("mean", lambda x: 5.0).says.endswith(
        "think of the centre of gravity"
    )


def loops(x):
    while True:
        pass


def loops_and_swallows(x):
    while True:
        try:
            x = x + 1
        except Exception:
            continue


def changes_its_input(x):
    centre = x.mean()
    x -= centre
    return centre


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x: 1 / 0, "your code raises ZeroDivisionError: division by zero, in `"),
        (lambda x, y: 0, "your code raises TypeError: "),
        (lambda x: sys.exit("bye"), "your code raises SystemExit: bye"),
        (
            lambda x: torch.nn.Linear(2, 1)(torch.zeros(3)),
            "in `lambda x: torch.nn.Linear(2, 1)",
        ),
        (lambda x: x["mean"], "your code raises IndexError: "),
        (lambda x: None, "returns None (is the `return` missing?), not a number"),
        (lambda x: "3", "returns str, not a number"),
        (lambda x: [[1], [1, 2]], "returns list, not a number"),
        (lambda x: x, "returns an array of shape (3,), not one number"),
        (lambda x: np.nan, "returns nan or inf"),
        (changes_its_input, "changed its input: work on a copy"),
        (3.0, "this is float; a function is checked here: pass its name, no brackets"),
        (None, "this is None"),
    ],
)
def test_strange_answers_become_sentences(mean, answer, says):
    verdict = exercises.judge("mean", answer)
    assert not verdict.right and says in verdict.says


@pytest.mark.parametrize("answer", [loops, loops_and_swallows])
def test_a_loop_without_end_is_stopped(monkeypatch, answer):
    quick = Implement(MEAN.cases, MEAN.right, (), "", seconds=0.3)
    monkeypatch.setattr(exercises, "find", lambda name: quick)
    verdict = exercises.judge("mean", answer)
    assert not verdict.right
    assert verdict.says.startswith("no answer after 0.3 s: a loop that never ends?")


def test_outside_the_main_thread_answers_are_judged_without_a_limit(mean):
    verdicts = []
    thread = threading.Thread(
        target=lambda: verdicts.append(exercises.judge("mean", np.mean))
    )
    thread.start()
    thread.join()
    assert verdicts[0].right


def test_tuples_are_compared_part_by_part(mean):
    assert exercises.judge("pair", lambda x: (x.min(), x.max())).right
    assert (
        "smallest and largest"
        in exercises.judge("pair", lambda x: (x.max(), x.min())).says
    )
    assert "not a tuple of 2" in exercises.judge("pair", lambda x: (1.0, 2.0, 3.0)).says
    assert exercises.judge("pair", lambda x: [x.min(), x.max()]).right
    assert (
        "returns list, not a tuple of 2"
        in exercises.judge("pair", lambda x: [1.0]).says
    )


def test_build_names_the_first_property_that_fails(monkeypatch):
    rule = Build(
        ((lambda n: n > 0, "is it positive?"), (lambda n: n % 2 == 0, "is it even?"))
    )
    monkeypatch.setattr(exercises, "find", lambda name: rule)
    assert exercises.judge("rule", 4).right
    assert exercises.judge("rule", 3) == exercises.Verdict(
        False, "1 of 2 properties hold. is it even?"
    )
    # what it raises, and the hint of the property at which it did
    raised = exercises.judge("rule", "a").says
    assert raised.startswith("0 of 2 properties hold. your code raises TypeError: ")
    assert raised.endswith(". is it positive?")


def test_a_prediction_comes_before_the_outcome():
    guess = Predict(("rises", "falls"), {"rises": "why up?", "falls": "why down?"})
    asked = guess.judge(None, "rises")
    assert not asked.right
    assert (
        asked.says
        == "your prediction first: 'rises' or 'falls'. Then run the cell again"
    )
    assert guess.judge("rises", "rises").right
    assert (
        guess.judge("falls", "rises").says
        == "you said 'falls', this run says 'rises'. why down?"
    )
    for odd in ("up", "Rises", np.array(["rises"] * 2), 3):
        assert "none of the answers" in guess.judge(odd, "rises").says


def test_who_is_right_in_theory_and_not_in_these_data_is_told_so():
    guess = Predict(
        ("rises", "stays"),
        {"rises": "why up?", "stays": "why not?", ("rises", "stays"): "too few images"},
    )
    assert guess.judge("rises", "stays").says.endswith("too few images")
    assert guess.judge("stays", "rises").says.endswith("why not?")


def test_evidence_is_shown_after_a_prediction_only(monkeypatch, capsys):
    monkeypatch.setattr(
        exercises,
        "find",
        lambda name: Predict(("rises", "falls"), {"rises": "up?", "falls": "down?"}),
    )
    for none in (None, "Rises first"):
        exercises.predict("x", none, "rises", "from 1 to 2")
        assert "from" not in capsys.readouterr().out
    exercises.predict("x", "falls", "rises", "from 1 to 2")
    assert capsys.readouterr().out.splitlines()[1] == "from 1 to 2"
    exercises.predict("x", "rises", "rises")
    assert capsys.readouterr().out == "✓ predicted: it is 'rises'\n"


@pytest.mark.parametrize(
    ("said", "right"),
    [
        (10, True),
        (19.9, True),
        (np.array(10.0), True),
        (torch.tensor(10.0), True),
        (4.9, False),
        (21, False),
        ("ten", False),
        (True, False),
        ([10.0], False),
        (float("nan"), False),
    ],
)
def test_a_number_is_predicted_within_a_factor(said, right):
    verdict = Predict((float,), {"too low": "more", "too high": "less"}).judge(
        said, 10.0
    )
    assert verdict.right == right and ("more" in verdict.says) == (said == 4.9)


def test_one_number_is_one_number_whatever_holds_it():
    for holder in (
        3,
        3.0,
        np.float32(3),
        np.array(3),
        torch.tensor(3.0, requires_grad=True),
    ):
        assert exercises.number(holder) == 3.0
    for other in ("3", None, [3.0], np.array([3.0]), [[1], [1, 2]]):
        assert exercises.number(other) is None


def test_unknown_exercise_names_those_there_are():
    with pytest.raises(KeyError, match="theme3 has .*ece"):
        exercises.find("theme3/nothing")


def test_teachers_can_list_every_hint():
    text = listing([3, 4])
    assert text.startswith("## Theme 3")
    assert "**residual_block** (build, " in text
    assert "**idle** (predict, " in text
    for mistake in exercises.find("theme3/ece").mistakes:
        assert f"- {mistake.hint}" in text
