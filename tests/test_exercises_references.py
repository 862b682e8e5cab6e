"""The solutions and references of the exercises against something else: the course's
own code, or a library.
"""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from sklearn.metrics import balanced_accuracy_score
from support.books import EXERCISES, answer_of, asked, solution
from torch import nn

import utils

RNG = np.random.default_rng(58)


def reference(name, *given):
    return EXERCISES[name].right(*given)


@pytest.mark.parametrize("seed", range(5))
def test_solutions_agree_with_others_on_random_cases(seed):
    rng = np.random.default_rng(seed)
    true, said = rng.integers(0, 3, (2, 60))
    counts = np.zeros((3, 3), int)
    np.add.at(counts, (true, said), 1)
    assert np.isclose(
        solution("theme1/balanced_accuracy")(counts),
        balanced_accuracy_score(true, said),
    )
    side, kernel, stride, padding = (
        int(rng.integers(*ends)) for ends in ((8, 40), (1, 6), (1, 4), (0, 3))
    )
    windows = torch.zeros(1, 1, side + 2 * padding).unfold(2, kernel, stride)
    assert (
        solution("theme2/map_side")(side, kernel, stride, padding) == windows.shape[2]
    )
    confidence = rng.uniform(0.5, 1, 300)
    right = rng.random(300) < 0.8
    pairs = np.stack([1 - confidence, confidence], 1)
    assert np.isclose(
        solution("theme3/ece")(confidence, right),
        utils.expected_calibration_error(pairs, right * 1),
    )
    x = rng.normal(0, 2, 200).astype(np.float32)
    mine, scale = solution("theme4/quantize")(x, -1.0, 2.984375)
    theirs = torch.fake_quantize_per_tensor_affine(
        torch.from_numpy(x), float(scale), 64, 0, 255
    ).numpy()
    assert np.allclose((mine.astype(float) - 64) * scale, theirs)
    columns = {
        name: rng.integers(1, 6, 15).astype(float)
        for name in ("latency", "size", "accuracy")
    }
    table = utils.pd.DataFrame(columns)
    assert np.array_equal(
        solution("theme4/pareto")(**columns),
        utils.pareto(table, low=("latency", "size"), high=("accuracy",)),
    )


def test_residual_block_of_the_solution_learns_what_a_plain_stack_of_layers_does_not():
    """Twenty blocks deep, the gradient still reaches the first weights: the reason for
    the shortcut.
    """
    torch.manual_seed(0)
    x, first = torch.randn(4, 4, 8, 8), {}
    name = "theme3/residual_block"
    plain = answer_of(asked(name).source, name)
    for label, kind in (
        ("residual", solution(name)),
        ("plain", plain),
    ):
        network = nn.Sequential(*(kind(4, 4, 1) for _ in range(20))).eval()
        network(x).square().mean().backward()
        first[label] = float(network[0].conv1.weight.grad.abs().mean())
    assert first["residual"] > 100 * first["plain"]


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
            reference("theme5/alerts", values, 5, hold)
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
        assert reference("theme5/budget", failed, latency, 0.98, 50.0) == pytest.approx(
            right
        )


def test_mmd_is_that_of_the_course():
    for _ in range(5):
        x, y = RNG.normal(size=(9, 4)), RNG.normal(0.5, size=(14, 4))
        assert reference("theme6/mmd", x, y, 0.2) == pytest.approx(
            utils.compute_mmd(x, y, gamma=0.2), abs=1e-12
        )


def test_mcnemar_is_scipys_binomial_test():
    for _ in range(20):
        old, new = RNG.random(80) < 0.6, RNG.random(80) < 0.7
        won, lost = (new & ~old).sum(), (old & ~new).sum()
        right = scipy.stats.binomtest(
            int(won), int(won + lost), alternative="greater"
        ).pvalue
        assert reference("theme7/mcnemar", old, new) == pytest.approx(right)
        assert utils.mcnemar(old, new, "greater") == pytest.approx(right)


def test_not_worse_is_the_t_interval_with_a_normal_quantile():
    for _ in range(20):
        old, new = RNG.random(400) < 0.9, RNG.random(400) < 0.9
        change = new.astype(float) - old
        low = scipy.stats.norm.interval(0.9, change.mean(), scipy.stats.sem(change))[0]
        assert reference("theme7/not_worse", old, new, 0.05) == (
            pytest.approx(low),
            low > -0.05,
        )


def test_choice_is_the_cheapest_that_keeps_both_promises():
    for _ in range(20):
        cost, p95_ms = RNG.permutation(8) + 1.0, RNG.uniform(2, 14, 8)
        point = RNG.normal(-0.01, 0.02, 8)
        change = np.stack([point, point - 0.01, point + 0.01], axis=1)
        table = pd.DataFrame({"cost": cost, "p95": p95_ms, "low": change[:, 1]})
        able = table.query("p95 <= 10 and low >= -0.02")
        expected = able["cost"].idxmin() if len(able) else -1
        given = cost, p95_ms, change, 0.02, 10
        assert reference("theme8/choice", *given) == expected
        assert solution("theme8/choice")(*given) == expected


def test_holm_is_that_of_the_course():
    for k in (1, 2, 3, 5, 7):
        p_values = RNG.random(k) ** 3
        assert reference("theme8/holm", p_values) == pytest.approx(utils.holm(p_values))
