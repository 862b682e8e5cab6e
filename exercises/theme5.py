"""What the exercises of theme 5 are checked on."""

from itertools import groupby, pairwise

import numpy as np

from exercises import Implement, Mistake, Predict

# --- an alert rule


def _runs(values, limit) -> list[tuple[bool, int]]:
    """Is it above the limit, and for how many ticks in a row."""
    return [
        (above, len(list(ticks)))
        for above, ticks in groupby(value > limit for value in values)
    ]


def _states(values, limit, hold) -> list[bool]:
    """The states of a rule: only a run that lasts decides, and a short one leaves
    everything as it was.
    """
    return [False, *(above for above, length in _runs(values, limit) if length >= hold)]


def _alerts(values, limit, hold):
    return sum(
        after and not before for before, after in pairwise(_states(values, limit, hold))
    )


def _alerts_at_the_limit(values, limit, hold):
    return _alerts(values, np.nextafter(limit, -np.inf), hold)


def _alerts_not_in_a_row(values, limit, hold):
    firing, ticks, count = False, [0, 0], 0
    for value in values:
        ticks[value > limit] += 1
        if ticks[not firing] >= hold:
            firing, ticks = not firing, [0, 0]
            count += firing
    return count


ALERT_CASES = {
    "no tick at all": ([], 5, 2),
    "one long incident": ([0, 9, 9, 9, 9, 0, 0, 0], 5, 2),
    "two blips of one tick": ([0, 9, 0, 0, 0, 9, 0], 5, 2),
    "one long incident with a dip of one tick": ([9, 9, 9, 0, 9, 9, 9, 9], 5, 2),
    "trembling": ([0, 9, 0, 9, 0, 9, 9, 0, 9, 9], 5, 2),
    "two incidents": ([9, 9, 9, 0, 0, 0, 9, 9, 9], 5, 3),
    "two incidents that last just long enough": ([9, 9, 0, 0, 9, 9], 5, 2),
    "exactly at the limit": ([5, 5, 5, 5, 0, 0, 9], 5, 2),
    "trembling with a hold of three": ([0, 9, 0, 9, 9, 0, 0, 9, 9, 9, 0, 0], 5, 3),
    "a hold of one tick": ([0, 9, 0, 9, 9, 0], 5, 1),
}

# --- an error budget


def _budget_left(failed, latency_ms, objective, limit_ms):
    """Counted request by request."""
    bad = sum(
        broken or not ms <= limit_ms
        for broken, ms in zip(failed.tolist(), latency_ms.tolist(), strict=True)
    )
    return (len(failed) * (1 - objective) - bad) / (len(failed) * (1 - objective))


def _budget_with(bad):
    """The same formula with another idea of what is bad."""
    return lambda failed, latency_ms, objective, limit_ms: (
        1 - bad(failed, latency_ms > limit_ms).sum() / (len(failed) * (1 - objective))
    )


def _share_bad(failed, latency_ms, objective, limit_ms):
    return (failed | (latency_ms > limit_ms)).mean()


def _budget_cases() -> dict:
    fast = np.full(200, 20.0)
    slow, broken, both = fast.copy(), np.zeros(200, bool), fast.copy()
    slow[:5], broken[[7, 9, 11]], both[[7, 8]] = 80.0, True, 90.0
    return {
        "nothing happened": (np.zeros(200, bool), fast, 0.99, 50.0),
        "three failed, all fast": (broken, fast, 0.99, 50.0),
        "five too slow": (np.zeros(200, bool), slow, 0.95, 50.0),
        "one failed and too slow, two failed, one too slow": (broken, both, 0.98, 50.0),
        "all exactly at the limit": (np.zeros(4, bool), np.full(4, 50.0), 0.9, 50.0),
    }


EXERCISES = {
    "nervous": Predict(
        ("none", "fewer", "as many"),
        {
            "none": (
                "Section 4 counts how many looks lie beyond 2 by chance. Does no pair"
                " of them follow each other?"
            ),
            "fewer": (
                "Two things stand between a look and an alert: how long it lasts, and"
                " whether it was told already. Which of them decided on this day? (One"
                " day is one draw.)"
            ),
            "as many": (
                "A look is no alert yet. How many ticks must a deviation last, and how"
                " often is it told when it lasts an hour?"
            ),
        },
    ),
    "alerts": Implement(
        ALERT_CASES,
        _alerts,
        (
            Mistake(
                lambda values, limit, hold: sum(value > limit for value in values),
                "That counts ticks: an incident of four ticks rings four times. When"
                " does the state change?",
            ),
            Mistake(
                lambda values, limit, hold: _alerts(values, limit, 1),
                "One tick is enough for yours, to fire and to clear. Where does `hold`"
                " come in?",
            ),
            Mistake(
                lambda values, limit, hold: sum(
                    above and n >= hold for above, n in _runs(values, limit)
                ),
                "Yours fires as it should, but one good tick clears it. What does a"
                " trembling value do then?",
            ),
            Mistake(
                lambda values, limit, hold: sum(
                    n // hold for above, n in _runs(values, limit) if above
                ),
                "A rule that fires already cannot fire again. What do you have to"
                " remember from tick to tick?",
            ),
            Mistake(
                lambda values, limit, hold: min(_alerts(values, limit, hold), 1),
                "Yours fires once and never again. What has to happen before a second"
                " alert is possible?",
            ),
            Mistake(
                lambda values, limit, hold: sum(
                    a != b for a, b in pairwise(_states(values, limit, hold))
                ),
                "Those are all changes of state. Which of the two kinds is an alert?",
            ),
            Mistake(
                lambda values, limit, hold: _alerts(values, limit, hold + 1),
                "One tick too late: with a hold of 2, which tick of an incident rings?",
            ),
            Mistake(
                lambda values, limit, hold: _alerts(values, limit, max(hold - 1, 1)),
                "One tick too early: with a hold of 2, which tick of an incident"
                " rings?",
            ),
            Mistake(
                _alerts_at_the_limit,
                "Above the limit: what is a value that is exactly equal to it?",
            ),
            Mistake(
                _alerts_not_in_a_row,
                "In a row: what becomes of your count when a tick of the other kind"
                " comes?",
            ),
        ),
        "Follow 'trembling' by hand and note after each tick: does the rule fire now,"
        " and for how many ticks has the value contradicted that?",
    ),
    "budget": Implement(
        _budget_cases(),
        _budget_left,
        (
            Mistake(
                _budget_with(lambda failed, slow: slow),
                "A request that fails quickly is no good answer either.",
            ),
            Mistake(
                _budget_with(lambda failed, slow: failed),
                "Who waits too long was let down, too.",
            ),
            Mistake(
                _budget_with(lambda failed, slow: failed.astype(int) + slow),
                "One request can be too slow and fail: how often may it be counted?",
            ),
            Mistake(
                _budget_with(lambda failed, slow: failed & slow),
                "Yours forgives a request that is only slow, or only failed. One fault"
                " is enough.",
            ),
            Mistake(
                lambda failed, latency_ms, objective, limit_ms: (
                    1
                    - (failed | (latency_ms >= limit_ms)).sum()
                    / (len(failed) * (1 - objective))
                ),
                "Within the limit: is an answer that takes exactly so long late?",
            ),
            Mistake(
                lambda *given: 1 - _budget_left(*given),
                "That is what was spent. What is left?",
            ),
            Mistake(
                lambda *given: max(_budget_left(*given), 0.0),
                "Yours stops at 0. A team that has spent twice its budget wants to know"
                " that.",
            ),
            Mistake(
                lambda *given: 1 - _share_bad(*given),
                "That is the share of good requests. The budget is what the objective"
                " allows to go wrong.",
            ),
            Mistake(
                lambda *given: 1 - _share_bad(*given) / given[2],
                "You divide by the promise. How many bad requests does the promise"
                " leave room for?",
            ),
            Mistake(
                lambda *given: len(given[0]) * (1 - given[2] - _share_bad(*given)),
                "That is a number of requests. As a share of those that were allowed?",
            ),
        ),
        "Two counts: how many were bad, and how many the objective allows. Which share"
        " of the second is not used?",
    ),
    "smallest": Predict(
        ("seen", "missed"),
        {
            "seen": (
                "The rule has a limit of its own. On which side of it does the share"
                " that you chose lie, and how many of the requests of one window is"
                " that?"
            ),
            "missed": (
                "Compare the share that you chose with the limit of the rule, and the"
                " hour with its hold."
            ),
        },
    ),
}
