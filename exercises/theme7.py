"""What the exercises of theme 7 are checked on."""

from math import comb

import numpy as np
from scipy.stats import binom, chi2, fisher_exact, norm

from exercises import Implement, Mistake, Predict

# --- two models on the same images


def _pair(
    won: int, lost: int, both: int = 5, neither: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Which images the old and the new model get right, bool (N,) each."""
    counts = [won, lost, both, neither]
    return np.repeat([False, True, True, False], counts), np.repeat(
        [True, False, True, False], counts
    )


def _counts(old_right, new_right) -> tuple[int, int]:
    """Won and lost: only one of the two is right."""
    return int((new_right & ~old_right).sum()), int((old_right & ~new_right).sum())


# --- superiority: McNemar's exact test


def _mcnemar(old_right, new_right):
    """Edwards (1948): the coins, one by one."""
    won, lost = _counts(old_right, new_right)
    return sum(comb(won + lost, heads) for heads in range(won, won + lost + 1)) / 2 ** (
        won + lost
    )


def _of_coins(p):
    """A p-value from won and lost; 1 where the models never differ."""

    def answer(old_right, new_right):
        won, lost = _counts(old_right, new_right)
        return p(won, lost) if won + lost else 1.0

    return answer


ANSWERS = (
    (9, 1, 5, 0),
    (3, 3, 5, 2),
    (1, 9, 5, 0),
    (0, 0, 5, 1),
    (30, 0, 5, 0),
    (14, 6, 300, 9),
)
MCNEMAR_CASES = {
    f"{counts[0]} won, {counts[1]} lost": _pair(*counts) for counts in ANSWERS
}

# --- non-inferiority: an interval against a margin


Z = norm.ppf(0.95)


def _interval(deviation=lambda d: d.std(ddof=1), z=Z, scale=np.sqrt):
    """Lower end for a mean of paired differences; the arguments are what one can get
    wrong.
    """

    def low(old_right, new_right):
        d = new_right.astype(float) - old_right
        return d.mean() - z * deviation(d) / scale(len(d))

    return low


def _unpaired(old_right, new_right):
    spread = np.sqrt((old_right.var(ddof=1) + new_right.var(ddof=1)) / len(old_right))
    return new_right.mean() - old_right.mean() - Z * spread


def _not_worse(old_right, new_right, margin):
    """From the counts: the differences are +1, -1 and 0, so their variance has a closed
    form.
    """
    (won, lost), n = _counts(old_right, new_right), len(old_right)
    variance = (won + lost - (won - lost) ** 2 / n) / (n - 1)
    low = (won - lost) / n - Z * np.sqrt(variance / n)
    return low, bool(low > -margin)


def _gate(low, passes=lambda low, margin: low > -margin):
    """The same check with another lower end, or another comparison."""
    return lambda old_right, new_right, margin: (
        low(old_right, new_right),
        bool(passes(low(old_right, new_right), margin)),
    )


def _by_the_point(old_right, new_right, margin):
    return _interval()(old_right, new_right), bool(
        new_right.mean() - old_right.mean() > -margin
    )


_right_end = _interval(z=-Z)
GATE_CASES = {
    "as good as before, 40 images": (*_pair(2, 2, 33, 3), 0.03),
    "as good as before, 1000 images": (*_pair(20, 20, 900, 60), 0.03),
    "a little worse, 400 images": (*_pair(4, 8, 360, 28), 0.03),
    "clearly worse, 200 images": (*_pair(2, 30, 160, 8), 0.03),
    "better, 300 images": (*_pair(24, 3, 260, 13), 0.03),
    "better by little, 500 images": (*_pair(12, 3, 460, 25), 0.03),
    "a wide margin, 60 images": (*_pair(3, 4, 50, 3), 0.10),
    "no answer differs": (*_pair(0, 0, 50, 4), 0.03),
}

EXERCISES = {
    "mcnemar": Implement(
        MCNEMAR_CASES,
        _mcnemar,
        (
            Mistake(
                _of_coins(lambda won, lost: binom.cdf(won, won + lost, 0.5)),
                "The other tail: a new model that wins nearly always gets a p-value"
                " near 1 from yours.",
            ),
            Mistake(
                _of_coins(lambda won, lost: binom.sf(lost - 1, won + lost, 0.5)),
                "The other tail: a new model that wins nearly always gets a p-value"
                " near 1 from yours.",
            ),
            Mistake(
                _of_coins(
                    lambda won, lost: min(
                        2 * binom.cdf(min(won, lost), won + lost, 0.5), 1.0
                    )
                ),
                "That is two-sided. A model that is worse is refused anyway: which side"
                " is asked for?",
            ),
            Mistake(
                _of_coins(lambda won, lost: binom.sf(won, won + lost, 0.5)),
                "At least as often: does your sum begin at the number of wins, or one"
                " later?",
            ),
            Mistake(
                _of_coins(lambda won, lost: binom.pmf(won, won + lost, 0.5)),
                "That is the chance of exactly this number of wins. And of even more?",
            ),
            Mistake(
                _of_coins(
                    lambda won, lost: (
                        binom.sf(won - 1, won + lost, 0.5)
                        - binom.pmf(won, won + lost, 0.5) / 2
                    )
                ),
                "That is the mid-p variant, which counts half of what was seen. The"
                " exact test counts it whole.",
            ),
            Mistake(
                _of_coins(
                    lambda won, lost: norm.sf((won - lost) / np.sqrt(won + lost))
                ),
                "A normal approximation: with ten coins it is off. The exact test"
                " counts coins.",
            ),
            Mistake(
                _of_coins(
                    lambda won, lost: chi2.sf((won - lost) ** 2 / (won + lost), 1)
                ),
                "That is the approximate test, and two-sided. The exact one counts"
                " coins, on one side.",
            ),
            Mistake(
                lambda old, new: binom.sf(_counts(old, new)[0] - 1, len(old), 0.5),
                "You toss a coin for every image. On which images do the two models"
                " give any evidence?",
            ),
            Mistake(
                lambda old, new: binom.sf(new.sum() - 1, len(old), 0.5),
                "That asks whether the new model is right more often than not. Compare"
                " it with the old one.",
            ),
            Mistake(
                lambda old, new: fisher_exact(
                    [[new.sum(), (~new).sum()], [old.sum(), (~old).sum()]], "greater"
                )[1],
                "That compares two groups of images. Here both models saw the same"
                " ones: use the pairs.",
            ),
            Mistake(
                _of_coins(lambda won, lost: 0.5),
                "A number that does not depend on the answers proves nothing.",
            ),
            Mistake(
                lambda old, new: _mcnemar(old, new) if sum(_counts(old, new)) else 0.0,
                "If the models never differ, is that evidence for the new one? p says"
                " how easily chance does it.",
            ),
        ),
        "Won: only the new model is right; lost: only the old one is. A fair coin,"
        " tossed once for each of these: how probable are that many heads, or more?",
    ),
    "not_worse": Implement(
        GATE_CASES,
        _not_worse,
        (
            Mistake(
                lambda old, new, margin: (
                    new.mean() - old.mean(),
                    bool(new.mean() - old.mean() > -margin),
                ),
                "That is the point. Forty images can be lucky: where does the interval"
                " end?",
            ),
            Mistake(
                _by_the_point,
                "The lower end is right, but your verdict goes by the point. Which of"
                " the two proves?",
            ),
            Mistake(
                _gate(_right_end),
                "That is the upper end: how good the candidate may be. How bad may"
                " it be?",
            ),
            Mistake(
                _gate(_interval(z=norm.ppf(0.975))),
                "Your z is that of a two-sided interval. How much does it leave below,"
                " and how much is asked for?",
            ),
            Mistake(
                _gate(_interval(z=1.0)),
                "One standard error leaves 16 % below. How many leave 5 %?",
            ),
            Mistake(
                _gate(_interval(z=0.05)),
                "You multiply by α itself, not by a quantile of the normal.",
            ),
            Mistake(
                _gate(_unpaired),
                "That is the spread of two separate groups. The same images were"
                " answered twice: take the differences first, then their spread.",
            ),
            Mistake(
                _gate(_interval(scale=lambda n: 1.0)),
                "That is the spread of one image. How does that of a mean shrink"
                " with n?",
            ),
            Mistake(
                _gate(_interval(scale=lambda n: n)),
                "The spread of a mean does not shrink as fast as n grows.",
            ),
            Mistake(
                _gate(_interval(lambda d: d.var(ddof=1))),
                "A variance is no spread: which root is missing?",
            ),
            Mistake(
                _gate(_interval(lambda d: d.std())),
                "Nearly: your spread divides by n. About a mean that was estimated, one"
                " divides by n − 1 (`ddof`).",
            ),
            Mistake(
                _gate(lambda old, new: _interval()(new, old)),
                "Old minus new: a loss looks like a gain.",
            ),
            Mistake(
                _gate(_interval(), lambda low, margin: low > margin),
                "Your candidate must be better by the margin. It may be worse by less"
                " than it: mind the sign.",
            ),
            Mistake(
                _gate(_interval(), lambda low, margin: low > 0),
                "That asks for superiority. What may a candidate lose and still pass?",
            ),
            Mistake(
                _gate(_interval(), lambda low, margin: low < -margin),
                "Yours lets pass whoever may be worse than the margin. Read the"
                " comparison aloud.",
            ),
            Mistake(
                _gate(_interval(), lambda low, margin: abs(low) < margin),
                "That also refuses a candidate that is much better. Only one side is"
                " dangerous.",
            ),
        ),
        "One difference an image (+1, 0 or −1), their mean, the standard error of this"
        " mean, and the normal quantile that leaves 5 % on one side.",
        tolerance=2e-5,  # a quantile from a table will do
    ),
    "other_drift": Predict(
        ("better", "worse", "no difference shown"),
        {
            "better": (
                "Training on one drift teaches that one. What has this one in common"
                " with it? And if the point lies above 0: does its interval?"
            ),
            "worse": (
                "Clean images were in the mix, too: what should the network have"
                " forgotten? Look at the sign first, then at the ends of the interval."
            ),
            "no difference shown": (
                "The interval lies on one side of 0. What do the two drifts do to a"
                " picture that is alike, or opposite?"
            ),
        },
    ),
}
