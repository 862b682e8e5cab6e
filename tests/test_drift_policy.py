"""Accuracy without labels, the policy that decides, and the figures of theme 6."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support.worlds import as_reference, world

import utils
from kit import figures
from kit.watching import read_drift_log


@pytest.fixture(scope="module")
def reference():
    return as_reference(*world(200))


# --- Accuracy without labels


def test_estimates_are_right_where_confidence_is(reference):
    for seed in range(5):
        window, labels = world(4000, seed=30 + seed, unsure=0.05 * seed)
        truth = (window.probabilities.argmax(axis=1) == labels).mean()
        guess = utils.estimate_accuracy(reference, window)
        assert guess["average_confidence"] == pytest.approx(truth, abs=0.03)
        # the reference has 200 images
        assert guess["difference_of_confidences"] == pytest.approx(truth, abs=0.08)
    assert set(guess) == set(utils.ESTIMATES)
    guess = utils.estimate_accuracy(reference, reference)
    assert guess["difference_of_confidences"] == pytest.approx(reference.accuracy)
    assert guess["atc"] == pytest.approx(reference.accuracy, abs=1 / len(reference))


def test_estimates_trust_a_confident_liar(reference):
    """What no estimate from confidence can see: answers that are wrong and sure."""
    liar = utils.replace(reference, probabilities=np.tile([0.001, 0.999], (200, 1)))
    assert min(utils.estimate_accuracy(reference, liar).values()) > 0.95


# --- The policy


def test_levels_none_watch_retrain(reference, tmp_path):
    policy = utils.DriftPolicy(accuracy_floor=0.8, window=40)
    monitor = utils.DriftMonitor(reference, policy, tmp_path / "drift.csv")
    bad, sure, quiet = (2, 0.3), (2, 0), (0, 0)
    stream = [quiet, bad, quiet, bad, bad, sure, sure, sure, sure]
    looks = [
        monitor.look(world(60, seed=40 + i, shift=a, unsure=b)[0])
        for i, (a, b) in enumerate(stream)
    ]
    levels = [look.level for look in looks]
    told = "none watch none watch retrain retrain watch retrain retrain"
    assert levels == told.split()
    assert [look.streak for look in looks] == [0, 1, 0, 1, 2, 3, 4, 5, 6]
    for number, reason in (
        (1, "flagged window 1 of the 2"),
        (4, "below the floor of 0.800"),
        (6, "not below the floor"),
        (7, "it has lasted 5 windows"),
    ):
        assert reason in looks[number].reasons[-1]
    log = read_drift_log(tmp_path / "drift.csv", monitor.run_id)
    assert log["level"].tolist() == levels and set(log["model"]) == {reference.model}
    assert set(log["images"]) == {60} and set(log["floor"]) == {0.8}
    assert log["window"].tolist() == list(range(9))
    assert log["reasons"].iloc[4] == "; ".join(looks[4].reasons)
    for name in ("p_value", "estimated_accuracy", "streak"):
        expected = [getattr(look, name) for look in looks]
        assert np.allclose(log[name], expected, rtol=1e-5)
    assert read_drift_log(tmp_path / "drift.csv", "another run").empty
    with pytest.raises(utils.CourseError, match="missing: run notebooks/theme6"):
        read_drift_log(tmp_path / "absent.csv")


def test_a_quiet_stream_keeps_its_promise():
    """Of undrifted streams with one reference each, at most alpha may ever be called
    drifted.
    """
    policy = utils.DriftPolicy(1.0, 30, 0.2, horizon=10, detectors=("KS softmax",))
    called = 0
    for stream in range(120):
        monitor = utils.DriftMonitor(as_reference(*world(100, 1000 + stream)), policy)
        windows = (world(30, seed=5000 + 20 * stream + i)[0] for i in range(10))
        called += any(monitor.look(window).level == "retrain" for window in windows)
    test = stats.binomtest(called, 120, policy.alpha, alternative="greater")
    assert test.pvalue > 1e-3


def test_the_policys_numbers():
    policy = utils.DriftPolicy(0.8, alpha=0.05, horizon=20, consecutive=2)
    assert policy.window_alpha == pytest.approx(0.005)
    assert 1 / (policy.permutations + 1) < policy.window_alpha / len(policy.detectors)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"alpha": 1}, "alpha=1 is no error rate"),
        ({"consecutive": 0}, "consecutive=0 must lie"),
        ({"consecutive": 30, "lasting": 50}, "and horizon=20"),
        ({"consecutive": 6}, "smaller of lasting=5"),
        ({"estimate": "luck"}, "is unknown"),
        ({"detectors": ("PSI classes",)}, "must be names of DETECTORS"),
        ({"detectors": ()}, "must be names of DETECTORS"),
    ],
)
def test_a_policy_that_cannot_be_is_told(options, message):
    with pytest.raises(utils.CourseError, match=message):
        utils.DriftPolicy(0.8, **options)


def test_a_bad_window_is_told_and_not_counted(reference, tmp_path):
    path = tmp_path / "drift.csv"
    monitor = utils.DriftMonitor(reference, utils.DriftPolicy(0.8), path)
    good = world(60, seed=61, shift=2)[0]
    monitor.look(good)
    before, change = path.read_bytes(), partial(utils.replace, good)
    for window, message in (
        (good.take(range(20)), "has 20 images, the policy asks for 50"),
        (change(embedding=good.embedding * np.nan), "NaN or infinite .* 60 of 60"),
        (change(embedding=good.embedding[:, :4]), "16 features, the window 4"),
        (change(probabilities=np.full((60, 3), 1 / 3)), "2 features, the window 3"),
        (change(probabilities=good.probabilities * np.nan), "answers.* 60 of 60"),
    ):
        with pytest.raises(utils.CourseError, match=message):
            monitor.look(window)
    assert (monitor.number, monitor.streak, len(monitor.recent)) == (1, 1, 1)
    assert path.read_bytes() == before and monitor.look(good).streak == 2


# --- The figures


def test_alarm_rates_are_drawn_one_by_one():
    rates = {"KS": 0.02, "MMD": 0.05, "mine": 0.3}
    rows = [
        {"detector": name, "rate": rate, "low": rate / 2, "high": 2 * rate}
        for name, rate in rates.items()
    ]
    axis = figures.alarm_rates(pd.DataFrame(rows), "t", alpha=0.04).axes[0]
    points, line = axis.lines
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert dict(zip(names, points.get_xdata(), strict=True)) == rates
    ends = [segment[:, 0].tolist() for segment in axis.collections[0].get_segments()]
    assert ends == [[row["low"], row["high"]] for row in rows[::-1]]
    assert set(line.get_xdata()) == {0.04} and axis.get_xlim()[1] > 0.6


def test_heat_maps_write_what_the_table_says():
    table = pd.DataFrame(
        [[0.0, -0.001, 1.0], [np.nan, 0.256, -0.3]], index=["motion_blur", "noise"]
    )
    panels = {"first": table, "second": 1 - table}
    axes = figures.heat_maps(panels, "t", "label", low=-0.5).axes
    for axis, said in zip(
        axes[:2], ("0 0 100 26 -30", "100 100 0 74 130"), strict=True
    ):
        assert " ".join(filter(None, (t.get_text() for t in axis.texts))) == said
    names = [label.get_text() for label in axes[0].get_yticklabels()]
    assert axes[0].patch.get_hatch() and names == ["motion blur", "noise"]


def test_estimates_and_streams_are_drawn_point_by_point():
    rng, names = np.random.default_rng(25), utils.ESTIMATES
    table = pd.DataFrame(rng.random((6, 4)), columns=["accuracy", *names])
    table = table.assign(severity=range(6), label=[f"noise {i}" for i in range(6)])
    for axis, name in zip(
        figures.estimates(table, names, "t").axes, names, strict=False
    ):
        points, star = (np.asarray(part.get_offsets()) for part in axis.collections[:2])
        assert np.array_equal(points, table[["accuracy", name]])
        assert np.array_equal(star, points[:1])
        worst = (table[name] - table["accuracy"]).abs().nlargest(4).index
        said = {text.get_text() for text in axis.texts}
        assert said == set(table["label"][worst])
    policy = SimpleNamespace(window_alpha=0.01, accuracy_floor=0.8, estimate="atc")
    stream = table[:4].assign(
        p_value=[0.5, 0.01, 1e-9, 1e-3],
        level=["none", "watch", "retrain", "retrain"],
        estimated_accuracy=table["atc"],
        low=table["accuracy"] - 0.1,
        high=table["accuracy"] + 0.05,
    )
    top, bottom = figures.streams({"drifted": stream}, policy, "t").axes
    drawn = {p: line.get_label() for line in top.lines[:3] for p in line.get_ydata()}
    assert drawn == dict(zip([0.5, 0.01, 1e-6, 1e-3], stream["level"], strict=True))
    # told apart in a grey print, too
    assert len({line.get_marker() for line in top.lines[:3]}) == 3
    assert len(top.patches) == 3  # severity 1, 2 and 3
    assert np.array_equal(bottom.containers[0].lines[0].get_ydata(), stream["accuracy"])
    assert np.array_equal(bottom.lines[-2].get_ydata(), stream["estimated_accuracy"])
