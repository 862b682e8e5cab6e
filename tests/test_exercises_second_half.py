"""The exercises of themes 5 to 8: solutions pass, typical mistakes meet their own hint,
nothing gives itself away.
"""

import ast
import json
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

import exercises
import utils
from exercises import Build, Implement, Predict

KIT = Path(__file__).resolve().parent.parent
BOOK = {
    theme: json.loads(
        next((KIT / "notebooks").glob(f"theme{theme}_*.ipynb")).read_text(
            encoding="utf-8"
        )
    )["cells"]
    for theme in (5, 6, 7, 8)
}
ALL = {
    f"theme{theme}/{name}": exercise
    for theme in BOOK
    for name, exercise in import_module(f"exercises.theme{theme}").EXERCISES.items()
}
WRITTEN = [name for name, exercise in ALL.items() if not isinstance(exercise, Predict)]
MISTAKES = [
    (name, number)
    for name, exercise in ALL.items()
    if isinstance(exercise, Implement)
    for number in range(len(exercise.mistakes))
]
RNG = np.random.default_rng(58)


def text(cell: dict) -> str:
    return "".join(cell["source"])


def asked(name: str) -> tuple[str, dict]:
    """Source of the cell that asks for an exercise, and the cell after it."""
    cells = BOOK[int(name[5])]
    places = [
        i
        for i, cell in enumerate(cells)
        if cell["cell_type"] == "code"
        and re.search(rf'exercises\.(check|predict)\(\s*"{name}",\s', text(cell))
    ]
    assert len(places) == 1, f"{name} is asked for {len(places)} times"
    return text(cells[places[0]]), cells[places[0] + 1]


def notebook_names(name: str) -> dict:
    """What the cells before an exercise import: a student's kernel knows no more."""
    cells = [text(cell) for cell in BOOK[int(name[5])] if cell["cell_type"] == "code"]
    tree = ast.parse("\n".join(cells[: cells.index(asked(name)[0])]))
    tree.body = [
        node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    names = {}
    exec(compile(tree, "cells", "exec"), names)
    return names


def answer_of(source: str, name: str):
    """The function that a piece of code defines under the name that the notebook passes
    to the check.
    """
    names = notebook_names(name)
    exec(source, names)
    return names[re.search(rf'check\("{name}", (\w+)\)', asked(name)[0])[1]]


def solution(name: str):
    (block,) = re.findall(r"```python\n(.*?)```", text(asked(name)[1]), re.DOTALL)
    return answer_of(block, name)


@pytest.mark.parametrize("theme", BOOK)
def test_a_theme_asks_for_each_of_its_exercises_once(theme):
    source = "\n".join(
        text(cell) for cell in BOOK[theme] if cell["cell_type"] == "code"
    )
    names = re.findall(r'exercises\.(?:check|predict)\(\s*"(.+?)"', source)
    own = [name for name in ALL if name.startswith(f"theme{theme}/")]
    assert (
        sorted(names) == sorted(own)
        and 2 <= len(own) <= 4
        and "\nimport exercises\n" in source
    )


@pytest.mark.parametrize("name", ALL)
def test_statement_cell_and_folded_solution(name):
    source, after = asked(name)
    cells = BOOK[int(name[5])]
    before = text(cells[[text(cell) for cell in cells].index(source) - 1])
    assert (
        re.search(
            r"\*\*Exercise \d \((predict|change|implement|measure)\)\.\*\*", before
        )
        and "Done" in before
    )
    assert "# exercise: " in source and f'"{name}", ' in ast.unparse(
        ast.parse(source).body[-1]
    ).replace("'", '"')
    assert "if MY_PREDICTION:" not in source, (
        "numbers are evidence: they are shown below a valid prediction only"
    )
    assert after["cell_type"] == "markdown" and after["metadata"] == {
        "tags": ["solution"]
    }
    assert text(after).startswith("<details><summary>Solution</summary>\n\n") and text(
        after
    ).endswith("\n\n</details>")
    assert text(after).count("```python") == (
        0 if isinstance(ALL[name], Predict) else 1
    )


@pytest.mark.parametrize("theme", BOOK)
def test_your_turn_begins_with_how_it_works(theme):
    (opening,) = [text(cell) for cell in BOOK[theme] if "## Your turn" in text(cell)]
    first = (
        opening.split("## Your turn\n\n")[1].split("**Exercise 1")[0].replace("\n", " ")
    )
    assert (
        first
        == "Every cell runs as it stands, and its last line checks your answer. Change"
        " the line marked `# exercise`, and read the hint before you unfold the"
        " solution.  "
    )


@pytest.mark.parametrize("name", WRITTEN)
def test_the_solution_of_the_notebook_is_right(name):
    verdict = exercises.judge(name, solution(name))
    assert verdict.right, verdict.says


@pytest.mark.parametrize("name", WRITTEN)
def test_the_cell_as_it_stands_gets_a_hint(name):
    tree = ast.parse(asked(name)[0])
    own = ast.unparse(
        ast.Module(
            [node for node in tree.body if isinstance(node, ast.FunctionDef)], []
        )
    )
    verdict = exercises.judge(name, answer_of(own, name))
    assert (
        not verdict.right
        and "your code raises" not in verdict.says
        and verdict.says.endswith(("?", ".", "!"))
    )


@pytest.mark.parametrize(("name", "number"), MISTAKES)
def test_each_mistake_meets_its_own_hint(name, number):
    mistake = ALL[name].mistakes[number]
    verdict = exercises.judge(name, mistake.wrong)
    assert not verdict.right and verdict.says.endswith(mistake.hint)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("value", [None, "0.5", float("nan"), np.zeros((3, 2))])
def test_nonsense_becomes_a_sentence(name, value):
    verdict = exercises.judge(name, lambda *given: value)
    assert not verdict.right and len(verdict.says) > 30


@pytest.mark.parametrize(
    "name", [name for name, exercise in ALL.items() if isinstance(exercise, Predict)]
)
def test_a_prediction_is_asked_for_first_and_every_wrong_one_has_its_hint(name):
    exercise, source = ALL[name], asked(name)[0]
    lines = source.splitlines()
    (place,) = [i for i, line in enumerate(lines) if "# exercise: " in line]
    # where it is long, the formatter has put the comment on the line above
    asked_in = " ".join(lines[place : place + 2])
    assert "MY_PREDICTION" in asked_in and "None" in asked_in
    if exercise.choices == (float,):
        assert set(exercise.why) == {"too low", "too high"}
        assert exercise.judge(1.0, 1.0).right and not exercise.judge(3.0, 1.0).right
        return
    assert set(exercise.why) == set(exercise.choices)
    for came in exercise.choices:
        asked_for = exercise.judge(None, came)
        assert not asked_for.right and f"this run says {came!r}" not in asked_for.says
        for said in exercise.choices:
            verdict = exercise.judge(said, came)
            assert verdict.right == (said == came) and (
                said == came or verdict.says.endswith(exercise.why[said])
            )


@pytest.mark.parametrize("name", ALL)
def test_hints_hold_no_code_and_no_number_that_could_be_copied(name):
    exercise = ALL[name]
    if isinstance(exercise, Implement):
        hints = [exercise.hint, *(mistake.hint for mistake in exercise.mistakes)]
    elif isinstance(exercise, Build):
        hints = [hint for _, hint in exercise.properties]
    else:
        hints = list(exercise.why.values())
    assert not [
        hint
        for hint in hints
        if re.search(r"\bnp\.|scipy|lambda|return \w+\b.*[\[(]|==|\d\.\d", hint)
    ]
    assert all(len(hint) > 25 for hint in hints)


# --- the references of the exercises against something else: the course's own code, or
# a library


def rule_of_the_course(values, limit, hold, folder):
    rule = utils.AlertRule("exercise", "throughput", ">", limit, hold=10 * (hold - 1))
    manager = utils.AlertManager([rule], folder / "alerts.csv")
    ticks = pd.date_range("2026-01-01", periods=len(values), freq="10min", tz="UTC")
    rows = [{"requests": 99, "throughput": value} for value in values]
    told = [
        event
        for tick, row in zip(ticks, rows, strict=True)
        for event in manager.evaluate(tick, row)
    ]
    return sum(event["event"] == "firing" for event in told)


@pytest.mark.parametrize("hold", [1, 2, 3])
def test_alerts_are_those_of_the_alert_manager(tmp_path, hold):
    for number in range(20):
        values = RNG.choice([0.0, 5.0, 9.0], 30, p=[0.4, 0.1, 0.5]).tolist()
        right = rule_of_the_course(values, 5, hold, tmp_path / f"{hold}-{number}")
        assert (
            ALL["theme5/alerts"].right(values, 5, hold)
            == solution("theme5/alerts")(values, 5, hold)
            == right
        )


def test_budget_is_that_of_the_course():
    for _ in range(20):
        failed, latency = (
            RNG.random(300) < 0.02,
            RNG.choice([20.0, 50.0, 80.0], 300, p=[0.8, 0.15, 0.05]),
        )
        log = pd.DataFrame(
            {"status": np.where(failed, "error", "ok"), "latency_ms": latency}
        )
        right = utils.error_budget(log, 0.98, 50.0)["budget_left"]
        assert ALL["theme5/budget"].right(failed, latency, 0.98, 50.0) == pytest.approx(
            right
        )


def test_mmd_is_that_of_the_course():
    for _ in range(5):
        x, y = RNG.normal(size=(9, 4)), RNG.normal(0.5, size=(14, 4))
        assert ALL["theme6/mmd"].right(x, y, 0.2) == pytest.approx(
            utils.compute_mmd(x, y, gamma=0.2), abs=1e-12
        )


def test_mcnemar_is_scipys_binomial_test():
    for _ in range(20):
        old, new = RNG.random(80) < 0.6, RNG.random(80) < 0.7
        won, lost = (new & ~old).sum(), (old & ~new).sum()
        right = scipy.stats.binomtest(
            int(won), int(won + lost), alternative="greater"
        ).pvalue
        assert ALL["theme7/mcnemar"].right(old, new) == pytest.approx(right)
        assert utils.mcnemar(old, new, "greater") == pytest.approx(right)


def test_not_worse_is_the_t_interval_with_a_normal_quantile():
    for _ in range(20):
        old, new = RNG.random(400) < 0.9, RNG.random(400) < 0.9
        change = new.astype(float) - old
        low = scipy.stats.norm.interval(0.9, change.mean(), scipy.stats.sem(change))[0]
        assert ALL["theme7/not_worse"].right(old, new, 0.05) == (
            pytest.approx(low),
            low > -0.05,
        )


@pytest.mark.parametrize(
    ("z", "hint"),
    [(1.645, None), (1.64, "One difference an image"), (1.96, "two-sided")],
)
def test_a_quantile_from_a_table_will_do(z, hint):
    def by_hand(old_right, new_right, margin):
        change = new_right.astype(float) - old_right
        low = change.mean() - z * change.std(ddof=1) / np.sqrt(len(change))
        return low, low > -margin

    verdict = exercises.judge("theme7/not_worse", by_hand)
    assert (
        verdict.right if hint is None else not verdict.right and hint in verdict.says
    ), verdict.says


def test_choice_is_the_cheapest_that_keeps_both_promises():
    for _ in range(20):
        cost, p95_ms = RNG.permutation(8) + 1.0, RNG.uniform(2, 14, 8)
        point = RNG.normal(-0.01, 0.02, 8)
        change = np.stack([point, point - 0.01, point + 0.01], axis=1)
        table = pd.DataFrame({"cost": cost, "p95": p95_ms, "low": change[:, 1]})
        able = table.query("p95 <= 10 and low >= -0.02")
        expected = able["cost"].idxmin() if len(able) else -1
        assert ALL["theme8/choice"].right(cost, p95_ms, change, 0.02, 10) == expected
        assert solution("theme8/choice")(cost, p95_ms, change, 0.02, 10) == expected


def test_holm_is_that_of_the_course():
    for k in (1, 2, 3, 5, 7):
        p_values = RNG.random(k) ** 3
        assert ALL["theme8/holm"].right(p_values) == pytest.approx(utils.holm(p_values))


# --- the permutation test: properties, each with the answer that lacks it


def shuffled_p(
    x,
    y,
    statistic,
    permutations,
    rng,
    *,
    deal=None,
    size=None,
    count=None,
    equal=np.greater_equal,
):
    """A permutation test with one thing to get wrong."""
    observed, pooled, size = statistic(x, y), np.concatenate([x, y]), size or len(x)
    values = []
    for _ in range(permutations):
        rows = deal(pooled, rng) if deal else pooled[rng.permutation(len(pooled))]
        values.append(statistic(rows[:size], rows[size:]))
    reached = int(equal(values, observed).sum())
    return float(
        count(reached, permutations) if count else (reached + 1) / (permutations + 1)
    )


def with_other(**wrong):
    return lambda *given: shuffled_p(*given, **wrong)


def shuffles_in_place(x, y, statistic, permutations, rng):
    p_value = shuffled_p(x, y, statistic, permutations, rng)
    rng.shuffle(x)
    return p_value


def forgets_the_truth(x, y, statistic, permutations, rng):
    shuffled = rng.permutation(np.concatenate([x, y]))
    return shuffled_p(
        shuffled[: len(x)], shuffled[len(x) :], statistic, permutations, rng
    )


def one_shuffle_too_few(x, y, statistic, permutations, rng):
    return shuffled_p(x, y, statistic, permutations - 2, rng)


def window_first(x, y, statistic, permutations, rng):
    return shuffled_p(x, y, statistic, permutations, rng, size=len(y))


def cyclic(pooled, rng):
    return np.roll(pooled, rng.integers(len(pooled)), axis=0)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        (5, "does your function return a float"),
        (lambda *given: None, "does your function return a float"),
        (lambda *given: 7.0, "does your function return a float"),
        (forgets_the_truth, "as they came was never asked for"),
        (with_other(deal=lambda pooled, rng: pooled), "the same each time"),
        (
            with_other(
                deal=lambda pooled, rng: np.random.default_rng(0).permutation(pooled)
            ),
            "or start again",
        ),
        (window_first, "where do you cut"),
        (
            with_other(
                deal=lambda pooled, rng: pooled[
                    rng.integers(0, len(pooled), len(pooled))
                ]
            ),
            "a bootstrap",
        ),
        (
            with_other(deal=lambda pooled, rng: rng.permuted(pooled, axis=0)),
            "tear rows apart",
        ),
        (shuffles_in_place, "shuffle a copy"),
        (one_shuffle_too_few, "Count your shuffles"),
        (with_other(equal=np.less_equal), "nothing in common get a large p-value"),
        (with_other(count=lambda b, m: b / m), "can be 0"),
        (with_other(count=lambda b, m: b / (m + 1)), "can be 0"),
        (
            with_other(count=lambda b, m: min((b + 1) / m, 1)),
            "numerator and a denominator",
        ),
        (with_other(equal=np.greater), "Does an equal value reach the truth"),
        (with_other(deal=cyclic), "Does each split have the same chance"),
    ],
)
def test_a_permutation_test_that_lacks_something_hears_what(wrong, hint):
    verdict = exercises.judge("theme6/p_value", wrong)
    assert not verdict.right and hint in verdict.says, verdict.says


def test_choices_that_students_write():
    """Their own words, not those of the list of mistakes."""

    def in_a_loop(cost, p95_ms, change, margin, slo_ms):
        best = -1
        for place, (price, latency, (_, low, _)) in enumerate(
            zip(cost, p95_ms, change, strict=True)
        ):
            if (
                -low <= margin
                and latency <= slo_ms
                and (best < 0 or price < cost[best])
            ):
                best = place
        return best

    def raises_for_nobody(cost, p95_ms, change, margin, slo_ms):
        places = np.flatnonzero((change[:, 1] >= -margin) & (p95_ms <= slo_ms))
        return places[cost[places].argmin()]

    def counts_anew(cost, p95_ms, change, margin, slo_ms):
        left = [
            price
            for price, latency, row in zip(cost, p95_ms, change, strict=True)
            if row[1] >= -margin and latency <= slo_ms
        ]
        return left.index(min(left)) if left else -1

    assert exercises.judge("theme8/choice", in_a_loop).right
    assert (
        "your code raises ValueError"
        in exercises.judge("theme8/choice", raises_for_nobody).says
    )
    assert exercises.judge("theme8/choice", counts_anew).says.endswith(
        "Which place has it among all?"
    )


def test_other_ways_to_write_a_permutation_test_are_right():
    def by_appending(x, y, statistic, permutations, rng):
        rows, values = np.vstack([x, y]), [statistic(x, y)]
        for _ in range(permutations):
            order = rng.permutation(len(rows))
            values.append(statistic(rows[order[: len(x)]], rows[order[len(x) :]]))
        return np.mean(np.array(values) >= values[0])

    for kind in (float, np.asarray, torch.tensor):
        assert exercises.judge(
            "theme6/p_value", lambda *given, kind=kind: kind(shuffled_p(*given))
        ).right
    assert exercises.judge("theme6/p_value", by_appending).right
