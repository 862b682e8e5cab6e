"""What the exercises of theme 8 are checked on."""

from itertools import combinations

import numpy as np

from exercises import Implement, Mistake, Predict

# --- the variant to ship


def _choice(cost, p95_ms, change, margin, slo_ms) -> int:
    """The places in the order of their cost, one by one: the first that may serve."""
    for place in sorted(range(len(cost)), key=lambda i: cost[i]):
        if change[place][1] >= -margin and p95_ms[place] <= slo_ms:
            return place
    return -1


def _cheapest(may_serve, best=lambda cost, p95_ms, change: cost, none=-1):
    """The same choice with another idea of who may serve, or of who is the best of
    those.
    """

    def answer(cost, p95_ms, change, margin, slo_ms):
        able = may_serve(p95_ms, change, margin, slo_ms)
        return (
            int(np.argmin(np.where(able, best(cost, p95_ms, change), np.inf)))
            if able.any()
            else none
        )

    return answer


def _both(p95_ms, change, margin, slo_ms):
    return (change[:, 1] >= -margin) & (p95_ms <= slo_ms)


def _among_the_able(cost, p95_ms, change, margin, slo_ms):
    able = _both(p95_ms, change, margin, slo_ms)
    return int(np.argmin(cost[able])) if able.any() else -1


def _price(*given):
    return given[0][_choice(*given)] if _choice(*given) >= 0 else -1


def _variants(cost, p95_ms, change) -> tuple:
    """Arrays of a case; `change` in percentage points (difference, low end, high end),
    as one would write them.
    """
    return (
        np.array(cost, float),
        np.array(p95_ms, float),
        np.array(change, float) / 100,
        0.02,
        10.0,
    )


def _random_variants(n=12) -> tuple:
    rng = np.random.default_rng(8)
    point, half = rng.normal(-0.5, 1, n), rng.uniform(0.3, 2.5, n)
    return _variants(
        rng.permutation(n) + 1,
        rng.uniform(2, 14, n),
        np.stack([point, point - half, point + half], 1),
    )


SAME = (0, -1, 1)
CHOICE_CASES = {
    "all may serve": _variants([3, 1, 2], [5, 6, 4], [SAME, SAME, (1.5, 0.5, 2.5)]),
    "the cheapest may have lost too much": _variants(
        [3, 1, 2], [5, 5, 5], [SAME, (-1, -4, 2), SAME]
    ),
    "the cheapest has lost too much": _variants(
        [3, 1, 2], [5, 5, 5], [SAME, (-7, -9, -5), SAME]
    ),
    "the cheapest answers too late": _variants(
        [1, 2, 3], [12, 5, 4], [SAME, SAME, SAME]
    ),
    "the cheapest two may not serve": _variants(
        [1, 2, 5, 4], [12, 5, 9, 8], [SAME, (-3, -6, 0), SAME, SAME]
    ),
    "the cheapest keeps neither promise": _variants(
        [2, 3, 1], [5, 5, 12], [SAME, SAME, (-3, -6, 0)]
    ),
    "nobody may serve": _variants([1, 2], [5, 12], [(-1, -4, 2), SAME]),
    "the cheapest is shown to be better": _variants([2, 1], [5, 5], [SAME, (6, 3, 9)]),
    "exactly at the margin": _variants([2, 1], [5, 5], [SAME, (-1, -2, 0)]),
    "exactly at the promise": _variants([2, 1], [5, 10], [SAME, SAME]),
    "twelve at random": _random_variants(),
}

# --- Holm's correction


def _holm(p_values):
    """Closed testing (Marcus, Peritz and Gabriel, 1976): the largest Bonferroni p of
    all sets that hold the test.
    """
    tests = range(len(p_values))
    sets = [
        group
        for size in range(1, len(p_values) + 1)
        for group in combinations(tests, size)
    ]
    return np.array(
        [
            max(
                min(len(group) * min(p_values[j] for j in group), 1)
                for group in sets
                if i in group
            )
            for i in tests
        ]
    )


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

EXERCISES = {
    "price": Predict(
        ("none", "some"),
        {
            "none": (
                "What did you change beside the price? Which rule compares with a fixed"
                " number, and not one variant with another?"
            ),
            "some": (
                "Every hour costs ten times as much, whoever serves. Which of two"
                " variants is the cheaper one then?"
            ),
        },
    ),
    "choice": Implement(
        CHOICE_CASES,
        _choice,
        (
            Mistake(
                lambda cost, *given: int(np.argmin(cost)),
                "The cheapest of all, whatever it costs in accuracy and in "
                "patience: who may serve at all?",
            ),
            Mistake(
                _cheapest(
                    lambda p95_ms, change, margin, slo_ms: change[:, 1] >= -margin
                ),
                "Who waits for the cheapest in yours? One of the two promises is not"
                " asked.",
            ),
            Mistake(
                _cheapest(lambda p95_ms, change, margin, slo_ms: p95_ms <= slo_ms),
                "How much may the cheapest have lost in yours? One of the two promises"
                " is not asked.",
            ),
            Mistake(
                _cheapest(
                    lambda p95_ms, change, margin, slo_ms: (
                        (change[:, 0] >= -margin) & (p95_ms <= slo_ms)
                    )
                ),
                "That goes by the difference itself, which may be luck. What do the"
                " images still allow?",
            ),
            Mistake(
                _cheapest(
                    lambda p95_ms, change, margin, slo_ms: (
                        (change[:, 2] >= -margin) & (p95_ms <= slo_ms)
                    )
                ),
                "Yours lets serve whoever may be good enough. The proof is asked for:"
                " which end shows the worst?",
            ),
            Mistake(
                _cheapest(
                    lambda p95_ms, change, margin, slo_ms: (
                        (change[:, 1] >= margin) & (p95_ms <= slo_ms)
                    )
                ),
                "Yours must be better by the margin. A loss is negative: mind the"
                " sign.",
            ),
            Mistake(
                _cheapest(
                    lambda p95_ms, change, margin, slo_ms: (
                        (change[:, 1] >= 0) & (p95_ms <= slo_ms)
                    )
                ),
                "Yours may lose nothing. What is the margin for?",
            ),
            Mistake(
                _cheapest(
                    lambda p95_ms, change, margin, slo_ms: (
                        (change[:, 1] <= -margin) & (p95_ms <= slo_ms)
                    )
                ),
                "Yours lets serve whoever may have lost more than the margin. Read the"
                " comparison aloud.",
            ),
            Mistake(
                _cheapest(
                    lambda p95_ms, change, margin, slo_ms: (
                        (abs(change[:, 1]) <= margin) & (p95_ms <= slo_ms)
                    )
                ),
                "That also refuses a variant that is much better. Only one side is"
                " dangerous.",
            ),
            Mistake(
                _cheapest(
                    lambda p95_ms, change, margin, slo_ms: (
                        (change[:, 1] > -margin) & (p95_ms <= slo_ms)
                    )
                ),
                "At most the margin: what of a variant that may have lost exactly that"
                " much?",
            ),
            Mistake(
                _cheapest(
                    lambda p95_ms, change, margin, slo_ms: (
                        (change[:, 1] >= -margin) & (p95_ms < slo_ms)
                    )
                ),
                "Within the promise: is an answer that takes exactly so long late?",
            ),
            Mistake(
                _cheapest(
                    lambda p95_ms, change, margin, slo_ms: (
                        (change[:, 1] >= -margin) | (p95_ms <= slo_ms)
                    )
                ),
                "One kept promise is enough for yours. Which word stands between the"
                " two?",
            ),
            Mistake(
                _among_the_able,
                "That is a place among those that may serve. Which place has it among"
                " all?",
            ),
            Mistake(
                _cheapest(_both, none=0),
                "Where nobody may serve, yours ships the first all the same.",
            ),
            Mistake(_price, "That is its price. In which place does it stand?"),
            Mistake(
                _cheapest(_both, lambda cost, p95_ms, change: np.arange(len(cost))),
                "That is the first that may serve. Which of them is the cheapest?",
            ),
            Mistake(
                _cheapest(_both, lambda cost, p95_ms, change: -change[:, 0]),
                "That is the most accurate of those that may serve. What is asked for?",
            ),
            Mistake(
                _cheapest(_both, lambda cost, p95_ms, change: p95_ms),
                "That is the fastest of those that may serve. What is asked for?",
            ),
        ),
        "First mark who may serve: the worst that the images allow, against the margin,"
        " and the latency, against the promise. Then the cheapest of those, or the"
        " answer for nobody.",
    ),
    "holm": Implement(
        HOLM_CASES,
        _holm,
        (
            Mistake(
                lambda p: np.minimum(p * len(p), 1),
                "That is Bonferroni: each pays for all. In Holm's, whom does the second"
                " smallest still pay for?",
            ),
            Mistake(
                lambda p: p * len(p),
                "That is Bonferroni, and a probability above 1 besides.",
            ),
            Mistake(
                lambda p: p.copy(),
                "Nothing is corrected yet: what does the smallest of k p-values pay?",
            ),
            Mistake(
                lambda p: _steps(p, _down, lambda values: values),
                "A larger p-value must not become the smaller one. What do you do with"
                " a step that falls?",
            ),
            Mistake(
                lambda p: _steps(p, _down, back=False),
                "Right numbers, in the order of their size. In which order were the"
                " tests given?",
            ),
            Mistake(
                lambda p: _steps(p, _down, back=False)[np.argsort(p)],
                "Nearly: you sort with the order itself. Which order brings sorted"
                " numbers back to where they came from?",
            ),
            Mistake(
                lambda p: np.maximum.accumulate(np.sort(p) * _down(len(p)))[
                    np.argsort(np.argsort(p))
                ],
                "A probability stays at 1 or below.",
            ),
            Mistake(
                lambda p: _steps(p, _down, _from_above),
                "That steps up from the largest (Hochberg), which needs tests that go"
                " together. Holm begins with the smallest: which of two neighbours"
                " gives way?",
            ),
            Mistake(
                lambda p: _steps(p, lambda k: k / np.arange(1, k + 1), _from_above),
                "That is the false discovery rate (Benjamini and Hochberg): it promises"
                " less. Holm takes off one test a step.",
            ),
            Mistake(
                lambda p: _steps(p, lambda k: np.arange(1, k + 1)),
                "The smallest pays for all that are tested, the largest only for"
                " itself: yours is the other way.",
            ),
            Mistake(
                lambda p: _steps(p, lambda k: k - 1 - np.arange(k)),
                "Your last factor is 0. What does the largest of k p-values pay, and"
                " what the smallest?",
            ),
        ),
        "Sort; multiply the smallest by the number of tests, the next by one less, and"
        " so on; none may fall below the one before, none may exceed 1; then back into"
        " the order that was given.",
    ),
    "weakest": Predict(
        ("data", "model", "infrastructure", "monitoring"),
        dict.fromkeys(
            ("data", "model", "infrastructure", "monitoring"),
            "A chain is as strong as its weakest link: which section has the smallest"
            " sum in the table `maturity`? Half a point more there is the cheapest way"
            " up.",
        ),
    ),
}
