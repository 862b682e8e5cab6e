"""What the exercises of theme 6 are checked on."""

from collections import Counter

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import permutation_test

from exercises import Build, Implement, Mistake, Predict, number

# --- the squared MMD


def _kernel(a, b, gamma):
    return np.exp(-gamma * cdist(a, b, "sqeuclidean"))


def _within(x, gamma):
    """Mean over pairs of two different points."""
    return np.mean(
        [_kernel(x[[i]], np.delete(x, i, axis=0), gamma) for i in range(len(x))]
    )


def _mmd(x, y, gamma):
    """Gretton et al. (2012), equation 3, point by point."""
    return _within(x, gamma) + _within(y, gamma) - 2 * _kernel(x, y, gamma).mean()


def _biased(x, y, gamma):
    return (
        _kernel(x, x, gamma).mean()
        + _kernel(y, y, gamma).mean()
        - 2 * _kernel(x, y, gamma).mean()
    )


def _zeroed(x, y, gamma):
    """The diagonal is taken out of the sum, but not out of the number of pairs."""
    within = (_kernel(x, x, gamma).mean() - 1 / len(x)) + (
        _kernel(y, y, gamma).mean() - 1 / len(y)
    )
    return within - 2 * _kernel(x, y, gamma).mean()


def _without_ones(x, y, gamma):
    parts = [_kernel(a, a, gamma) for a in (x, y)]
    return (
        sum(part[part < 1].mean() for part in parts) - 2 * _kernel(x, y, gamma).mean()
    )


def _cross_without_diagonal(x, y, gamma):
    cross = _kernel(x, y, gamma)
    np.fill_diagonal(cross, np.nan)
    return _within(x, gamma) + _within(y, gamma) - 2 * np.nanmean(cross)


def _not_squared(x, y, gamma):
    def within(a):
        return np.exp(-gamma * cdist(a, a))[~np.eye(len(a), dtype=bool)].mean()

    return within(x) + within(y) - 2 * np.exp(-gamma * cdist(x, y)).mean()


def _mmd_cases() -> dict:
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(30, 5)), rng.normal(size=(12, 5))
    return {
        "no shift": (x, y, 0.1),
        "a shift": (x, y + 1.0, 0.1),
        "as many in both, a wide kernel": (x[:12], y + 0.5, 0.03),
        "two points against three": (x[:2], y[:3], 0.5),
        "every point of the window twice": (x, np.repeat(y[:6], 2, axis=0), 0.2),
    }


# --- a permutation test


def _far(x, y):
    """A statistic for the tests: distance of the two means."""
    return float(np.abs(x.mean(axis=0) - y.mean(axis=0)).sum())


def _points(shift: float, n: int = 12, m: int = 7):
    rng = np.random.default_rng(61)
    return rng.normal(size=(n, 2)), rng.normal(size=(m, 2)) + shift


def _asked(
    test, shift: float = 0.0, permutations: int = 30, seed: int = 0
) -> list[tuple]:
    """What a test asks its statistic for: the two groups of every call."""
    calls = []

    def spy(x, y):
        calls.append((np.array(x), np.array(y)))
        return _far(x, y)

    test(*_points(shift), spy, permutations, np.random.default_rng(seed))
    return calls


def _gives_a_number(test) -> bool:
    p = (
        number(test(*_points(0.0), _far, 20, np.random.default_rng(1)))
        if callable(test)
        else None
    )
    return p is not None and 0 <= p <= 1


def _looks_at_the_truth(test) -> bool:
    x, y = _points(0.0)
    return any(np.array_equal(x, a) and np.array_equal(y, b) for a, b in _asked(test))


def _shuffles(test) -> bool:
    return len({tuple(np.sort(y[:, 0])) for _, y in _asked(test)}) > 10


def _keeps_the_sizes(test) -> bool:
    return {(len(x), len(y)) for x, y in _asked(test)} == {(12, 7)}


def _uses_each_point_once(test) -> bool:
    whole = Counter(np.concatenate(_points(0.0))[:, 0])
    return all(Counter(np.concatenate(pair)[:, 0]) == whole for pair in _asked(test))


def _keeps_rows_whole(test) -> bool:
    rows = set(map(tuple, np.concatenate(_points(0.0))))
    return all(set(map(tuple, np.concatenate(pair))) == rows for pair in _asked(test))


def _shuffles_as_often_as_asked(test) -> bool:
    # one who looks at the truth twice is forgiven
    return len(_asked(test, permutations=30)) in (31, 32)


def _far_apart(test, permutations: int) -> float:
    """p where no shuffle of 50 points has any chance to reach the truth."""
    return number(
        test(*_points(50.0, 30, 20), _far, permutations, np.random.default_rng(2))
    )


def _small_when_far(test) -> bool:
    return _far_apart(test, 99) < 0.2


def _is_never_zero(test) -> bool:
    return _far_apart(test, 9) > 0 and _far_apart(test, 99) > 0


def _counts_the_truth_on_both_sides(test) -> bool:
    return np.allclose([_far_apart(test, 9), _far_apart(test, 99)], [1 / 10, 1 / 100])


def _counts_equal_ones(test) -> bool:
    return np.isclose(
        test(*_points(0.0), lambda x, y: 0.0, 50, np.random.default_rng(3)), 1.0
    )


def _agrees_with_scipy(test) -> bool:
    """Against all 70 ways to split 4 and 4 points: 4,000 shuffles know that share to
    0.03.
    """
    for shift in (0.0, 0.8):
        x, y = (rows[:, :1] for rows in _points(shift, 4, 4))
        exact = permutation_test(
            (x[:, 0], y[:, 0]),
            _far,
            vectorized=False,
            n_resamples=np.inf,
            alternative="greater",
        ).pvalue
        if abs(test(x, y, _far, 4000, np.random.default_rng(4)) - exact) > 0.03:
            return False
    return True


def _leaves_its_input_alone(test) -> bool:
    x, y = _points(1.0)
    test(x, y, _far, 20, np.random.default_rng(5))
    return all(np.array_equal(a, b) for a, b in zip((x, y), _points(1.0), strict=True))


EXERCISES = {
    "horizon": Predict(
        (float,),
        {
            "too low": (
                "Markov's inequality, section 6: how many flagged windows does a stream"
                " have on average, and from how many on is it an alarm?"
            ),
            "too high": (
                "A promise for more windows costs more: with how many windows do you"
                " share α, and how many of them in a row must be flagged before anybody"
                " is called?"
            ),
        },
        factor=1.2,
    ),
    "p_value": Build(
        (
            (
                _gives_a_number,
                "A p-value is one number of 0 to 1: does your function return a float?",
            ),
            (
                _looks_at_the_truth,
                (
                    "The statistic of x and y as they came was never asked for: what do"
                    " you compare with?"
                ),
            ),
            (
                _shuffles,
                (
                    "Your groups are (nearly) the same each time. What is drawn anew"
                    " for every shuffle, and does the generator go on or start again?"
                ),
            ),
            (
                _keeps_the_sizes,
                "A shuffled window must be as large as the true one: where do you cut?",
            ),
            (
                _uses_each_point_once,
                (
                    "In some of your shuffles a point is missing and another is there"
                    " twice. That is a bootstrap; a permutation deals every card once."
                ),
            ),
            (
                _keeps_rows_whole,
                (
                    "Your shuffles tear rows apart: a point is a whole row, and only"
                    " its group is shuffled."
                ),
            ),
            (
                _leaves_its_input_alone,
                "The right thing, but x or y is not what it was: shuffle a copy.",
            ),
            (
                _shuffles_as_often_as_asked,
                "Count your shuffles: how many were asked for?",
            ),
            (
                _small_when_far,
                (
                    "Two groups that have nothing in common get a large p-value from"
                    " yours: do few or many shuffles reach the truth then?"
                ),
            ),
            (
                _is_never_zero,
                (
                    "Your p-value can be 0, which would mean impossible. The true order"
                    " is one of the orders, too: does it reach itself?"
                ),
            ),
            (
                _counts_the_truth_on_both_sides,
                (
                    "Never 0, that is right. But a share has a numerator and a"
                    " denominator: how many orders are there in all, the true one"
                    " included?"
                ),
            ),
            (
                _counts_equal_ones,
                (
                    "Where every shuffle gives the same value as the truth, nothing"
                    " speaks for drift, and p must be as large as can be. Does an equal"
                    " value reach the truth?"
                ),
            ),
            (
                _agrees_with_scipy,
                (
                    "On eight points, where all splits can be counted, the share is"
                    " another one. Does each split have the same chance in yours?"
                ),
            ),
        ),
    ),
    "mmd": Implement(
        _mmd_cases(),
        _mmd,
        (
            Mistake(
                _biased,
                "That is the biased version: a point is compared with itself, and is"
                " very similar. Which entries of the two square matrices are these, and"
                " how many are left without them?",
            ),
            Mistake(
                _zeroed,
                "The diagonal is out of your sum, but not yet out of the number that"
                " you divide by.",
            ),
            Mistake(
                _without_ones,
                "You leave out what is equal to 1. Two different points may be equal,"
                " too: go by place, not by value.",
            ),
            Mistake(
                _cross_without_diagonal,
                "Between X and Y no point meets itself: is there anything to leave"
                " out?",
            ),
            Mistake(
                lambda x, y, gamma: (
                    _within(x, gamma) + _within(y, gamma) - _kernel(x, y, gamma).mean()
                ),
                "Two groups within, one between: what makes the sum 0 on average if"
                " nothing differs?",
            ),
            Mistake(
                lambda x, y, gamma: (
                    _within(x, gamma)
                    + _within(y, gamma)
                    + 2 * _kernel(x, y, gamma).mean()
                ),
                "Similar across the groups means no drift: with which sign does that"
                " count?",
            ),
            Mistake(
                lambda x, y, gamma: np.sqrt(max(_mmd(x, y, gamma), 0)),
                "The squared MMD is asked for; an unbiased one may fall below 0.",
            ),
            Mistake(
                lambda x, y, gamma: max(_mmd(x, y, gamma), 0),
                "Yours stops at 0. An estimate that is right on average must be allowed"
                " to fall below.",
            ),
            Mistake(
                lambda x, y, gamma: _mmd(x, y, 1 / gamma),
                "A larger gamma means a narrower kernel, not a wider one.",
            ),
            Mistake(
                lambda x, y, gamma: _mmd(x, y, 1 / (2 * gamma)),
                "You divide by gamma, as by a variance. Here gamma multiplies the"
                " squared distance, and nothing else does.",
            ),
            Mistake(
                lambda x, y, gamma: _mmd(x, y, gamma / 2),
                "There is no factor beside gamma.",
            ),
            Mistake(
                lambda x, y, gamma: _mmd(x, y, 1 / (2 * gamma**2)),
                "That is the kernel with a standard deviation; here gamma multiplies"
                " the squared distance.",
            ),
            Mistake(_not_squared, "The distance in the kernel is squared."),
            Mistake(
                lambda x, y, gamma: _kernel(
                    x.mean(axis=0)[None], y.mean(axis=0)[None], gamma
                )[0, 0],
                "That compares two means. Kernel values of pairs are averaged, not"
                " points.",
            ),
        ),
        "Three means of kernel values: pairs within X, pairs within Y, pairs across."
        " Which pairs belong to each?",
    ),
    "policy": Predict(
        ("none", "watch", "retrain"),
        {
            "none": (
                "First question: does one of the three detectors see this drift in a"
                " window? The heat maps of section 5 know."
            ),
            "watch": (
                "A drift is confirmed by windows in a row; then two things can turn"
                " `watch` into `retrain`. Read the reasons above: which of them did, or"
                " is the drift not seen at all?"
            ),
            "retrain": (
                "What is missing, says the last of the reasons above: a flag, a second"
                " one in a row, an estimate below the floor?"
            ),
        },
    ),
}
