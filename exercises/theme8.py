"""What the exercises of theme 8 are checked on."""

from itertools import combinations

import numpy as np

from exercises import Implement, Mistake, Predict

# --- the Pareto front


def _beats(a, b) -> bool:
    """`a` is at least as good as `b` everywhere and better somewhere; less is better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def _front_by(beats):
    return lambda values: np.array([not any(beats(other, row) for other in values) for row in values])


_front = _front_by(_beats)


def _first_of_equals(values):
    first = [not any(np.array_equal(row, earlier) for earlier in values[:i]) for i, row in enumerate(values)]
    return _front(values) & np.array(first)


FRONT_CASES = {
    "six variants, two of them equal": (np.array([[1, 5], [2, 4], [2, 5], [3, 1], [3, 1], [1, 6]], dtype=float),),
    "one beats all": (np.array([[1, 1, 1], [1, 2, 1], [3, 1, 2]], dtype=float),),
    "nobody is the best in anything, and stays": (np.array([[1, 9], [4, 4], [9, 1], [6, 6]], dtype=float),),
    "one column": (np.array([[2.0], [1.0], [1.0], [3.0]]),),
    "one variant": (np.array([[0.3, 0.9]]),),
    "below 0": (np.array([[-1, 2], [-3, 4], [-3, 3], [0, 0]], dtype=float),),
    "twenty at random": (np.random.default_rng(8).integers(0, 6, (20, 3)).astype(float),),
}

# --- Holm's correction


def _holm(p_values):
    """Closed testing (Marcus, Peritz and Gabriel, 1976): the largest Bonferroni p of all sets that hold the test."""
    tests = range(len(p_values))
    sets = [group for size in range(1, len(p_values) + 1) for group in combinations(tests, size)]
    return np.array([max(min(len(group) * min(p_values[j] for j in group), 1) for group in sets if i in group)
                     for i in tests])  # fmt: skip


def _steps(p_values, factors, joined=np.maximum.accumulate, back=True):
    """What step-wise corrections share; the arguments are what one can get wrong."""
    order = np.argsort(p_values)
    stepped = np.minimum(joined(p_values[order] * factors(len(p_values))), 1)
    return stepped[np.argsort(order)] if back else stepped


def _from_above(values):
    return np.minimum.accumulate(values[::-1])[::-1]


def _down(k):
    return k - np.arange(k)


HOLM_CASES = {
    "four, not in order": (np.array([0.04, 0.001, 0.03, 0.20]),),
    "two nearly equal ones": (np.array([0.010, 0.011, 0.5]),),
    "one alone": (np.array([0.03]),),
    "some above a half": (np.array([0.9, 0.6, 0.02, 0.4, 0.015]),),
    "equal ones": (np.array([0.02, 0.02, 0.02]),),
}

_FRONT_HINT = "For one row and one other: is the other at least as good in all columns, and better in one?"

EXERCISES = {
    "price": Predict(
        ("none", "some"),
        {"none": "What did you change beside the price? Which rule compares with a fixed number, and not one variant "
                 "with another?",
         "some": "Every hour costs ten times as much, whoever serves. Which of two variants is the cheaper one then?"},
    ),
    "front": Implement(
        FRONT_CASES, _front,
        (Mistake(lambda values: np.ones(len(values), bool), "All stay, whatever they are: who is beaten by whom?"),
         Mistake(_front_by(lambda a, b: np.all(a <= b)),
                 "Every row is at least as good as itself, so yours beats itself. What is missing in 'better'?"),
         Mistake(_front_by(lambda a, b: np.all(a < b)),
                 "A row that ties in one column and loses in the others is beaten, too: must it be worse everywhere?"),
         Mistake(_front_by(lambda a, b: np.any(a < b)),
                 "Yours keeps only who is best in everything. A front is for the case that there is nobody like that: "
                 "who is better somewhere may be worse elsewhere."),
         Mistake(_front_by(lambda a, b: _beats(b, a)), "Less is better: which of the two rows beats the other?"),
         Mistake(lambda values: values.sum(axis=1) == values.sum(axis=1).min(),
                 "A sum adds milliseconds to errors. A front needs no such price: compare column by column."),
         Mistake(lambda values: (values == values.min(axis=0)).any(axis=1),
                 "The best of a column stay, but so may one that is second in all. And two that tie in one column?"),
         Mistake(_first_of_equals, "Two equal rows: is either of them better than the other in anything?")),
        _FRONT_HINT,
    ),
    "holm": Implement(
        HOLM_CASES, _holm,
        (Mistake(lambda p: np.minimum(p * len(p), 1),
                 "That is Bonferroni: each pays for all. In Holm's, whom does the second smallest still pay for?"),
         Mistake(lambda p: p * len(p), "That is Bonferroni, and a probability above 1 besides."),
         Mistake(lambda p: p.copy(), "Nothing is corrected yet: what does the smallest of k p-values pay?"),
         Mistake(lambda p: _steps(p, _down, lambda values: values),
                 "A larger p-value must not become the smaller one. What do you do with a step that falls?"),
         Mistake(lambda p: _steps(p, _down, back=False),
                 "Right numbers, in the order of their size. In which order were the tests given?"),
         Mistake(lambda p: np.maximum.accumulate(np.sort(p) * _down(len(p)))[np.argsort(np.argsort(p))],
                 "A probability stays at 1 or below."),
         Mistake(lambda p: _steps(p, _down, _from_above),
                 "That steps up from the largest (Hochberg), which needs tests that go together. Holm begins with the "
                 "smallest: which of two neighbours gives way?"),
         Mistake(lambda p: _steps(p, lambda k: k / np.arange(1, k + 1), _from_above),
                 "That is the false discovery rate (Benjamini and Hochberg): it promises less. Holm takes off one test "
                 "a step."),
         Mistake(lambda p: _steps(p, lambda k: np.arange(1, k + 1)),
                 "The smallest pays for all that are tested, the largest only for itself: yours is the other way."),
         Mistake(lambda p: _steps(p, lambda k: k - 1 - np.arange(k)),
                 "Your last factor is 0. What does the largest of k p-values pay, and what the smallest?")),
        "Sort; multiply the smallest by the number of tests, the next by one less, and so on; none may fall below the "
        "one before, none may exceed 1; then back into the order that was given.",
    ),
    "weakest": Predict(
        ("data", "model", "infrastructure", "monitoring"),
        dict.fromkeys(("data", "model", "infrastructure", "monitoring"),
                      "A chain is as strong as its weakest link: which section has the shortest bar in the figure? One "
                      "more half point there is the cheapest way up."),
    ),
}  # fmt: skip
