"""Monitoring: a log that survives, windows, alerts that fire once,
a drill, dashboards.
"""

import json
import os
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

import utils
from kit import figures
from kit.dashboard import tag_of, write_dashboard
from kit.figures.monitoring import PANELS
from kit.traffic import Incident, draw_traffic, plan_drill, replay_day, score_drill

DAY = datetime(2026, 3, 1, tzinfo=UTC)


class BrightIsPneumonia:
    """Stands in for the session: what it answers depends on the mean
    grey level alone.
    """

    hash, classes, threshold = "0123456789abcdef", ("NORMAL", "PNEUMONIA"), 0.5

    def predict(self, pixels):
        if pixels.shape[1:] != (1, 16, 16):
            raise ValueError(f"expected (N, 1, 16, 16), got {pixels.shape}")
        positive = 1 / (
            1 + np.exp(-(pixels.mean(axis=(1, 2, 3), dtype=np.float32) - 100) / 6)
        )
        return np.stack([1 - positive, positive], axis=1)


@pytest.fixture(scope="module")
def pictures() -> SimpleNamespace:
    """Three hundred random images in pool "production", three of four positive and
    brighter.
    """
    rng = np.random.default_rng(0)
    labels = (rng.random(300) < 0.74).astype(np.int64)
    level = rng.normal(np.where(labels, 112, 88), 9)
    pixels = level[:, None, None, None] + rng.normal(0, 20, (300, 1, 16, 16))
    index = pd.DataFrame(
        {"pool": "production", "path": [f"production/{i}.jpeg" for i in range(300)]}
    )
    return utils.Data(
        index,
        pixels.clip(0, 255).astype(np.uint8),
        labels,
        BrightIsPneumonia.classes,
        [0.4],
        [0.1],
        "key",
        None,
    )


def serve(folder, run_id=None):
    return utils.MonitoredModel(
        BrightIsPneumonia(), utils.InferenceLogger(folder / "production.csv", run_id)
    )


@pytest.fixture(scope="module")
def quiet(pictures, tmp_path_factory) -> pd.DataFrame:
    served = serve(tmp_path_factory.mktemp("quiet"))
    return replay_day(served, pictures, seed=1000, day=DAY)


@pytest.fixture(scope="module")
def drilled(pictures, quiet, tmp_path_factory):
    """log, windows and events of a day with five incidents."""
    folder = tmp_path_factory.mktemp("drill")
    manager = utils.AlertManager(utils.default_rules(), folder / "alerts.csv")
    log = replay_day(serve(folder), pictures, 1, incidents=plan_drill(), day=DAY)
    return log, *utils.judge_windows(log, manager, utils.monitoring_baseline(quiet))


# --- image statistics


@pytest.mark.parametrize("channels", [1, 3])
def test_image_statistics_against_scipy(channels):
    pixels = np.random.default_rng(0).integers(
        0, 256, (300, channels, 20, 20), dtype=np.uint8
    )
    table = pd.DataFrame(utils.image_statistics(pixels))
    for i in (0, 1, 299):
        grey = pixels[i].astype(float).mean(axis=0)
        laplacian = ndimage.laplace(grey)[1:-1, 1:-1]
        assert table.loc[i].tolist() == pytest.approx(
            [grey.mean(), grey.std(), laplacian.var()], rel=1e-4
        )
    assert len(table) == 300 and list(table) == ["brightness", "contrast", "sharpness"]


# --- the model under watch


def test_predictions_are_logged(pictures, tmp_path):
    monitored, paths = serve(tmp_path), pictures.index["path"].tolist()
    answer = monitored.predict(pictures.pixels[:5], paths[:5], added_ms=200)
    assert np.array_equal(answer, BrightIsPneumonia().predict(pictures.pixels[:5]))
    log = utils.read_log(tmp_path / "production.csv")
    assert log["pred_class"].tolist() == answer.argmax(axis=1).tolist()
    assert log["image"].tolist() == paths[:5] and (log["batch"] == 5).all()
    assert log["confidence"].tolist() == pytest.approx(answer.max(axis=1), abs=1e-5)
    assert log["latency_ms"].between(200, 1200).all()
    assert (log["model"] == BrightIsPneumonia.hash).all()
    seen = utils.image_statistics(pictures.pixels[:5])
    assert np.allclose(log[list(seen)], pd.DataFrame(seen), rtol=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 1, 15, 16), np.uint8),
        np.zeros((0, 1, 16, 16), np.uint8),
        np.zeros((16, 16), np.uint8),
        None,
        "picture",
    ],
    ids=lambda wrong: str(getattr(wrong, "shape", wrong)),
)
def test_a_bad_request_is_one_line_and_its_error_is_raised_again(tmp_path, wrong):
    monitored = serve(tmp_path)
    monitored.model = SimpleNamespace(hash="0", predict=lambda pixels: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        monitored.predict(wrong, images=["cut.png"])
    log = utils.read_log(tmp_path / "production.csv")
    assert log["status"].tolist() == ["ZeroDivisionError"] and monitored.lost == 0
    assert log["pred_class"].isna().all() and log["confidence"].isna().all()


def refuse(*arguments):
    raise PermissionError(13, "Permission denied")


def test_a_broken_log_costs_no_prediction(pictures, tmp_path, monkeypatch, capsys):
    monitored = serve(tmp_path)
    monkeypatch.setattr(os, "write", refuse)
    for _ in range(3):
        assert monitored.predict(pictures.pixels[:1]).shape == (1, 2)
    # the model's own error, not the log's
    with pytest.raises(ValueError, match="expected"):
        monitored.predict(pictures.pixels[:1, :, 1:])
    said = capsys.readouterr().out
    assert monitored.lost == 4 and said.count("Monitoring has a gap") == 1
    assert "Permission denied" in said


# --- windows


def test_windows_against_numpy(drilled):
    log, windows, _ = drilled
    assert len(windows) == 144 and windows["timestamp"].iloc[-1] == DAY + timedelta(
        days=1
    )
    for row in windows.iloc[[0, 40, 70, 105, 143]].to_dict("records"):
        since = row["timestamp"] - timedelta(minutes=30)
        part = log[(log["timestamp"] > since) & (log["timestamp"] <= row["timestamp"])]
        fine = part[part["status"] == "ok"]
        assert row["requests"] == len(part) and row["error_rate"] == pytest.approx(
            1 - len(fine) / len(part)
        )
        percentiles = [row[f"latency_p{q}"] for q in (50, 95, 99)]
        assert percentiles == pytest.approx(
            np.percentile(fine["latency_ms"], [50, 95, 99])
        )
        assert row["positive_share"] == pytest.approx((fine["pred_class"] == 1).mean())
        assert row["blank_share"] == pytest.approx((fine["contrast"] < 2).mean())
        assert row["low_confidence_share"] == pytest.approx(
            (fine["confidence"] < 0.7).mean()
        )
        for name in ("confidence", "brightness", "contrast", "sharpness"):
            assert row[name] == pytest.approx(fine[name].mean())
    assert windows["throughput"].iloc[50] == pytest.approx(
        windows["requests"].iloc[50] / 30
    )
    # ten minutes so far
    assert windows["throughput"].iloc[0] == pytest.approx(
        windows["requests"].iloc[0] / 10
    )


def test_deviations_are_in_standard_errors(quiet):
    baseline = utils.monitoring_baseline(quiet)
    assert baseline["brightness"] == pytest.approx(
        {
            "mean": quiet["brightness"].mean(),
            "std": quiet["brightness"].std(),
            "n": len(quiet),
        }
    )
    # apart: independent but for the baseline
    windows = utils.window_statistics(quiet, 30, 30, baseline).iloc[10:]
    for name in utils.COMPARED:
        assert (
            abs(windows[f"{name}_z"].mean()) < 1
            and 0.6 < windows[f"{name}_z"].std() < 1.4
        )


def test_too_little_to_say_and_silence(quiet):
    with pytest.raises(utils.CourseError, match="The log has no lines"):
        utils.window_statistics(quiet.head(0))
    with pytest.raises(utils.CourseError, match="baseline of 99 answered requests"):
        utils.monitoring_baseline(quiet.head(99))
    log = quiet[quiet["timestamp"] < DAY + timedelta(hours=10)]
    last = utils.window_statistics(log, until=DAY + timedelta(hours=12)).iloc[-1]
    assert last["requests"] == 0 and np.isnan(last["error_rate"])


def test_error_budget():
    log = pd.DataFrame(
        {
            "status": ["ok"] * 990 + ["ValueError"] * 10,
            "latency_ms": [1.0] * 985 + [60.0] * 15,
        }
    )
    budget = utils.error_budget(log, objective=0.98, limit_ms=50)
    assert budget["bad"] == 15 and budget["allowed_bad"] == pytest.approx(20)
    assert budget["good_share"] == 0.985 and budget["budget_left"] == pytest.approx(
        0.25
    )
    with pytest.raises(utils.CourseError, match="between 0 and 1"):
        utils.error_budget(log, objective=99)
    with pytest.raises(utils.CourseError, match="The log has no lines"):
        utils.error_budget(log.head(0))


# --- rules and alerts


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"metric": "accuracy"}, "metric='accuracy' is unknown: .*latency_p95"),
        ({"sign": "="}, "abs>"),
        ({"severity": "bad"}, "warning, critical"),
    ],
)
def test_rules_that_mean_nothing_are_refused(wrong, told):
    rule = {"name": "r", "metric": "latency_p95", "sign": ">", "threshold": 9.0}
    with pytest.raises(utils.CourseError, match=told):
        utils.AlertRule(**rule | wrong)


def test_rules_are_data():
    rules = utils.default_rules(slo_ms=80)
    rows = json.loads(json.dumps([asdict(rule) for rule in rules]))
    assert [utils.AlertRule(**row) for row in rows] == rules
    assert rules[0].threshold == 80 and all(rule.runbook for rule in rules)


RULE = utils.AlertRule(
    "slow", "latency_p95", ">", 50.0, hold=20, least=10, runbook="Look."
)


def judge(manager, values, start=0, requests=100):
    """Rows ten minutes apart; returns (tick, event) of what was told."""
    told = []
    for tick, value in enumerate(values, start):
        row = {"requests": requests, "latency_p95": value}
        told += [
            (tick, event["event"])
            for event in manager.evaluate(DAY + timedelta(minutes=10 * tick), row)
        ]
    return told


def test_fires_once_holds_and_clears(tmp_path):
    manager = utils.AlertManager([RULE], tmp_path / "alerts.csv", run_id="a")
    assert judge(manager, [60, 40, 60, 60, 40]) == []  # never twenty minutes on end
    assert judge(manager, [60] * 50, 10) == [(12, "firing")]
    assert judge(manager, [40, 60, 40, 40, 60], 60) == []  # trembles: still firing
    assert judge(manager, [40] * 9, 70) == [(72, "resolved")]
    events = utils.read_alerts(tmp_path / "alerts.csv")
    assert events["event"].tolist() == ["firing", "resolved"] and events[
        "value"
    ].tolist() == [60, 40]
    assert list(events) == list(utils.ALERT_COLUMNS) and events["runbook"][0] == "Look."


def test_no_verdict_without_requests(tmp_path):
    manager = utils.AlertManager([RULE], tmp_path / "alerts.csv")
    assert (
        judge(manager, [60] * 5, requests=9) == []
        and judge(manager, [np.nan] * 5, 5) == []
    )
    assert judge(manager, [60] * 3, 10) == [(12, "firing")]
    assert judge(manager, [np.nan] * 9, 20) == []  # silence is no proof of health


def test_a_restart_fires_nothing_twice(tmp_path):
    judge(utils.AlertManager([RULE], tmp_path / "alerts.csv", run_id="a"), [60] * 5)
    same = utils.AlertManager([RULE], tmp_path / "alerts.csv", run_id="a")
    assert judge(same, [60] * 5, 5) == [] and judge(same, [40] * 5, 10) == [
        (12, "resolved")
    ]
    assert (
        utils.AlertManager([RULE], tmp_path / "alerts.csv", run_id="a").firing == set()
    )
    other = utils.AlertManager([RULE], tmp_path / "alerts.csv", run_id="b")
    assert judge(other, [60] * 5) == [(2, "firing")]


def test_rules_that_would_sleep_are_named(tmp_path):
    """A missing baseline must not look like a quiet day."""
    manager = utils.AlertManager(utils.default_rules(), tmp_path / "alerts.csv")
    row = {"requests": 100} | dict.fromkeys(utils.METRICS[1:-4], 0.0)
    with pytest.raises(utils.CourseError, match="class_mix_z.*baseline=monitoring"):
        manager.evaluate(DAY, row)
    with pytest.raises(utils.CourseError, match="share a name"):
        utils.AlertManager([RULE, RULE], tmp_path / "alerts.csv")


def test_an_alert_that_could_not_be_written_is_told_at_the_next_tick(
    tmp_path, monkeypatch
):
    manager = utils.AlertManager([replace(RULE, hold=0)], tmp_path / "alerts.csv")
    with monkeypatch.context() as broken:
        broken.setattr(os, "write", refuse)
        with pytest.raises(utils.CourseError, match="alerts.csv could not be written"):
            judge(manager, [90])
    assert judge(manager, [90], 1) == [(1, "firing")]
    assert len(utils.read_alerts(tmp_path / "alerts.csv")) == 1


# --- replay and drill


def test_traffic_is_diurnal_and_the_day_repeats_but_for_latency(pictures, tmp_path):
    day = draw_traffic(pictures, seed=3)
    assert 2700 < len(day) < 3300 and day["minute"].is_monotonic_increasing
    minute = day["minute"]
    afternoon = minute.between(12 * 60, 16 * 60).sum()
    assert afternoon > 4 * minute.between(0, 4 * 60).sum()
    assert len(draw_traffic(pictures, seed=4)) != len(day)
    first, second = (
        replay_day(
            serve(tmp_path / name, "run"), pictures, 5, 300, plan_drill(), day=DAY
        ).drop(columns="latency_ms")
        for name in "ab"
    )
    pd.testing.assert_frame_equal(first, second)


def test_an_incident_needs_a_known_kind_and_two_classes(pictures):
    with pytest.raises(utils.CourseError, match="kind 'flood' is unknown"):
        Incident("rain", "flood", 1, 1, 1, ())
    one = replace(pictures, labels=np.ones_like(pictures.labels))
    with pytest.raises(utils.CourseError, match="images of one class only"):
        draw_traffic(one, 0, incidents=plan_drill())


def test_replay_of_a_day_that_is_there_is_refused(pictures, tmp_path):
    monitored = serve(tmp_path)
    replay_day(monitored, pictures, 1, 50, day=DAY)
    replay_day(monitored, pictures, 1, 50, day=DAY + timedelta(days=1))
    with pytest.raises(
        utils.CourseError,
        match="already holds lines of 2026-03-01: make a new InferenceLogger",
    ):
        replay_day(monitored, pictures, 1, 50, day=DAY)


def test_replay_does_not_hide_a_model_that_fails(pictures, tmp_path):
    wrong = replace(pictures, pixels=pictures.pixels[:, :, :15, :15])
    with pytest.raises(ValueError, match="expected"):
        replay_day(serve(tmp_path), wrong, 1, 50, day=DAY)


def test_drill_is_what_it_says(drilled, pictures):
    log, _, _ = drilled
    hour = (log["timestamp"] - DAY) / timedelta(hours=1)
    inside = {
        incident.kind: log[hour.between(incident.start, incident.start + 1)]
        for incident in plan_drill()
    }
    assert inside["silence"].empty
    assert (
        inside["slow"]["latency_ms"].min() > 100
        and log["latency_ms"][hour < 8].median() < 100
    )
    assert 0.3 < (inside["blank"]["contrast"] < 1).mean() < 0.7
    assert set(inside["exceptions"]["status"]) == {"ok", "ValueError"}
    label = dict(zip(pictures.index["path"], pictures.labels, strict=True))
    assert set(inside["class_shift"]["image"].map(label)) == {0}


def test_every_incident_raises_its_alert_and_nothing_else(drilled):
    score = score_drill(drilled[2], plan_drill())
    assert len(score) == 5 and score["raised"].all()
    assert (
        score["minutes_to_detect"].between(1, 60).all()
        and score["minutes_to_clear"].between(0, 60).all()
    )
    for _, events in drilled[2].groupby("rule"):
        assert events["event"].tolist() == ["firing", "resolved"] * (len(events) // 2)


def quiet_day(pictures, baseline, folder, seed):
    # a loaded machine is slow
    manager = utils.AlertManager(
        utils.default_rules(slo_ms=1000), folder / "alerts.csv"
    )
    log = replay_day(serve(folder), pictures, seed, day=DAY)
    return utils.judge_windows(log, manager, baseline)[1]


@pytest.mark.parametrize("seed", range(3))
def test_quiet_days_raise_nothing(pictures, quiet, tmp_path, seed):
    events = quiet_day(pictures, utils.monitoring_baseline(quiet), tmp_path, seed)
    assert events.empty, events
    assert list(score_drill(events, plan_drill())["raised"]) == [False] * 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 23))
def test_twenty_quiet_days_and_twenty_drills(pictures, tmp_path, seed):
    """Each with a baseline of its own."""
    first = serve(tmp_path / "baseline")
    log = replay_day(first, pictures, seed + 1000, day=DAY)
    baseline = utils.monitoring_baseline(log)
    assert quiet_day(pictures, baseline, tmp_path / "quiet", seed).empty
    manager = utils.AlertManager(utils.default_rules(), tmp_path / "alerts.csv")
    drill = serve(tmp_path / "drill")
    log = replay_day(drill, pictures, seed, incidents=plan_drill(), day=DAY)
    _, events = utils.judge_windows(log, manager, baseline)
    score = score_drill(events, plan_drill())
    assert score["raised"].all() and len(score) == 5, score


def test_score_tells_missed_from_false():
    event = {"event": "firing", "rule": "errors"}
    events = pd.DataFrame(
        [
            event | {"timestamp": pd.Timestamp(DAY) + pd.Timedelta(hours=hour)}
            for hour in (5, 17.5)
        ]
    )
    score = score_drill(events, plan_drill()).set_index("incident")
    assert score["raised"].tolist() == [False] * 3 + [True, False, True]
    assert (
        score.loc["exceptions", "minutes_to_detect"] == 30
        and score.loc["false alarm", "rule"] == "errors"
    )
    assert np.isnan(score.loc["exceptions", "minutes_to_clear"])


def test_swap_between_two_positive_classes_is_seen(tmp_path):
    """Bacteria turn into viruses: the share of positives stays, the mix of classes does
    not.
    """

    def day(shares, seed):
        rng, logger = (
            np.random.default_rng(seed),
            utils.InferenceLogger(tmp_path / f"{seed}.csv"),
        )
        n = 600
        times = [DAY + timedelta(minutes=0.2 * i) for i in range(n)]
        logger.log_batch(
            rng.choice(3, n, p=shares),
            np.full(n, 0.9),
            np.ones(n),
            timestamp=times,
            brightness=list(rng.normal(100, 5, n)),
            contrast=[30.0] * n,
            sharpness=[50.0] * n,
        )
        return utils.read_log(tmp_path / f"{seed}.csv")

    baseline = utils.monitoring_baseline(day([0.3, 0.5, 0.2], 0))
    calm, swapped = (
        utils.window_statistics(day(shares, seed), baseline=baseline).iloc[2:]
        for shares, seed in (([0.3, 0.5, 0.2], 1), ([0.3, 0.2, 0.5], 2))
    )
    assert calm["class_mix_z"].max() < 5 < swapped["class_mix_z"].min()
    assert swapped["positive_share_z"].abs().max() < 5


# --- dashboards


def test_dashboard_holds_what_was_measured(drilled, pictures, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log, windows, events = drilled
    unsure = log[log["status"] == "ok"].drop_duplicates("image")
    unsure = unsure.nsmallest(8, "confidence").assign(row=range(8))
    for _ in range(2):  # the second replaces the first
        write_dashboard(tmp_path, windows, log, events, unsure, pictures.pixels)
    sizes = {"images": 0, "histograms": 0, "scalars": 0}
    stored = EventAccumulator(str(tmp_path), size_guidance=sizes).Reload()
    metrics = {tag_of(name) for name in utils.METRICS}
    assert metrics == set(stored.Tags()["scalars"])
    p95, expected = stored.Scalars("latency/p95"), windows["latency_p95"].dropna()
    assert [point.value for point in p95] == pytest.approx(list(expected), rel=1e-5)
    assert [point.step for point in p95][::40] == [10, 410, 810, 1210]
    assert p95[-1].step == 1440
    assert p95[-1].wall_time == (DAY + timedelta(days=1)).timestamp()
    hours = log["timestamp"].dt.hour.nunique()
    assert len(stored.Histograms("hourly/confidence")) == hours
    images = stored.Tags()["images"]
    assert len(images) == 8
    assert Path(unsure["image"].iloc[0]).name in images[0]
    texts = [tag for tag in stored.Tags()["tensors"] if tag.startswith("alerts/")]
    assert {tag.split("/")[1] for tag in texts} == set(events["rule"])


def test_figure_has_a_panel_a_metric(drilled):
    import matplotlib.pyplot as plt

    _, windows, events = drilled
    figure = figures.dashboard(windows, events, plan_drill(), "A day")
    assert [axis.get_ylabel() for axis in figure.axes] == list(PANELS)
    names = {text.get_text() for axis in figure.axes for text in axis.texts}
    assert set(events["rule"]) | {"silence", "class\nshift"} <= names
    quiet = figures.dashboard(windows, events.head(0))
    assert len(quiet.axes[1].lines) == 1
    plt.close("all")
