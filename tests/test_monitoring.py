"""Monitoring: a log that survives, windows, alerts that fire once,
a drill, dashboards.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

import course
import utils

KIT = Path(utils.__file__).parent
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
    return utils.replay_day(
        serve(tmp_path_factory.mktemp("quiet")), pictures, seed=1000, day=DAY
    )[0]


@pytest.fixture(scope="module")
def drilled(pictures, quiet, tmp_path_factory):
    """log, windows and events of a day with five incidents."""
    folder = tmp_path_factory.mktemp("drill")
    manager = utils.AlertManager(utils.default_rules(), folder / "alerts.csv")
    return utils.replay_day(
        serve(folder),
        pictures,
        1,
        incidents=utils.drill(),
        manager=manager,
        day=DAY,
        baseline=utils.monitoring_baseline(quiet),
    )


# --- image statistics


@pytest.mark.parametrize("channels", [1, 3])
def test_image_statistics_against_scipy(channels):
    pixels = np.random.default_rng(0).integers(
        0, 256, (300, channels, 20, 20), dtype=np.uint8
    )
    table = utils.image_statistics(pixels)
    for i in (0, 1, 299):
        grey = pixels[i].astype(float).mean(axis=0)
        laplacian = ndimage.laplace(grey)[1:-1, 1:-1]
        assert table.loc[i].tolist() == pytest.approx(
            [grey.mean(), grey.std(), laplacian.var()], rel=1e-4
        )
    assert len(table) == 300 and list(table) == ["brightness", "contrast", "sharpness"]


def test_image_statistics_of_nothing():
    assert utils.image_statistics(np.zeros((0, 1, 8, 8), np.uint8)).shape == (0, 3)


# --- the log


def test_a_line_comes_back_typed(tmp_path):
    logger = utils.InferenceLogger(tmp_path / "logs" / "p.csv", run_id="a")
    logger.log(
        1,
        0.98765432,
        1.5,
        image='x,"y"\nz.png',
        model="abc",
        site="Lyon",
        thread=[1, 2],
    )
    logger.log_batch(
        np.array([0, 1]),
        np.array([0.5, 0.6], np.float32),
        [2.0, 2.0],
        image=["a", "b"],
        site="Metz",
        timestamp=datetime(2026, 3, 1, 12),
    )
    utils.InferenceLogger(tmp_path / "logs" / "p.csv", run_id="b").log(0, 0.9, 1)
    assert (
        (tmp_path / "logs" / "p.csv")
        .read_text()
        .startswith("# inference log, schema 1\ntimestamp,run_id,model,")
    )
    log = utils.read_log(tmp_path / "logs" / "p.csv", "a")
    assert (
        log["pred_class"].tolist() == [1, 0, 1] and log["pred_class"].dtype == "Int64"
    )
    assert log["confidence"].tolist() == pytest.approx([0.987654, 0.5, 0.6], abs=1e-6)
    assert log["image"].tolist() == ['x,"y" z.png', "a", "b"] and log[
        "batch"
    ].tolist() == [1, 2, 2]
    assert [json.loads(text) for text in log["extra"]] == [
        {"site": "Lyon", "thread": [1, 2]}
    ] + [{"site": "Metz"}] * 2
    assert (
        log["timestamp"][2] == pd.Timestamp("2026-03-01T12:00Z")
        and log["status"].eq("ok").all()
    )
    assert abs(log["timestamp"][0] - datetime.now(UTC)) < timedelta(minutes=1)
    assert len(utils.read_log(tmp_path / "logs" / "p.csv")) == 4


def test_lengths_must_agree(tmp_path):
    logger = utils.InferenceLogger(tmp_path / "p.csv")
    with pytest.raises(
        utils.CourseError, match="confidence has 1 values for 2 predictions"
    ):
        logger.log_batch([0, 1], [0.5], [1, 1])
    assert utils.read_log(tmp_path / "p.csv").empty


def test_reopening_never_truncates(tmp_path):
    for k in range(3):
        utils.InferenceLogger(tmp_path / "p.csv", run_id=str(k)).log(k, 0.5, 1.0)
    assert utils.read_log(tmp_path / "p.csv")["pred_class"].tolist() == [0, 1, 2]


WRITER = """
import sys, utils
logger = utils.InferenceLogger(sys.argv[1], run_id=sys.argv[2])
for i in range(int(sys.argv[3])):
    image = [f"{sys.argv[2]}-{i}-{k}" + "x" * 200 for k in range(20)]
    logger.log_batch([0] * 20, [0.5] * 20, [1.0] * 20, image=image)
"""


def writer(path, run_id, batches):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), run_id, str(batches)], cwd=KIT
    )


def test_writers_of_several_processes_and_threads_do_not_mix(tmp_path, capsys):
    """Every writer also finds the file missing, so that they race for the header."""
    path = tmp_path / "p.csv"
    children = [writer(path, f"process{k}", 50) for k in range(2)]

    def thread(k):
        logger = utils.InferenceLogger(path, run_id=f"thread{k}")
        for i in range(200):
            logger.log(0, 0.5, 1.0, image=f"thread{k}-{i}-" + "x" * 200)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(thread, range(4)))
    assert [child.wait() for child in children] == [0, 0]
    log = utils.read_log(path)
    assert capsys.readouterr().out == "" and log["image"].is_unique
    assert log["run_id"].value_counts().to_dict() == {
        f"process{k}": 1000 for k in range(2)
    } | {f"thread{k}": 200 for k in range(4)}
    assert path.read_text().count("# inference log") == 1


def test_kill_9_of_a_writer(tmp_path):
    """What is read is what was written first, without a gap; the system may stop a long
    write between two pages.
    """
    path, child = tmp_path / "p.csv", writer(tmp_path / "p.csv", "killed", 10**6)
    while child.poll() is None and not (
        path.exists() and path.stat().st_size > 100_000
    ):
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    before = utils.read_log(path)
    utils.InferenceLogger(path, run_id="next").log(1, 0.5, 1.0)
    assert len(before) > 100
    assert before["image"].str.rstrip("x").tolist() == [
        f"killed-{n // 20}-{n % 20}" for n in range(len(before))
    ]
    pd.testing.assert_frame_equal(utils.read_log(path).head(len(before)), before)
    assert len(utils.read_log(path, "next")) == 1


def test_killed_in_the_middle_of_a_line(tmp_path):
    """As between two pages of a long write, or when a machine loses power: half of a
    line is on disk.
    """
    path = tmp_path / "p.csv"
    code = """
import os, sys, signal, utils
logger = utils.InferenceLogger(sys.argv[1], run_id="killed")
logger.log(1, 0.5, 1.0)
write = os.write
def half(file, lines):
    write(file, lines[: len(lines) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
os.write = half
logger.log(0, 0.5, 1.0)
"""
    assert (
        subprocess.run([sys.executable, "-c", code, str(path)], cwd=KIT).returncode
        == -signal.SIGKILL
    )
    assert not path.read_text().endswith("\n")
    utils.InferenceLogger(path, run_id="next").log(1, 0.5, 1.0)
    assert utils.read_log(path)["run_id"].tolist() == ["killed", "next"]


@pytest.mark.parametrize(
    "torn",
    [
        '2026-03-01T10:00:00.000Z,r,h,"img',
        "2026-03-01T10:00",
        "\x00\x00\x00\x00",
        '"',
        "2026-03-01T10:00:00.000Z,r,h,i,one,0.5,1,1,,,,ok,",
        "10:00,r,h,i,1,0.5,1,1,,,,ok,",
        '2026-03-01T10:00:00.000Z,r,h,i,1,0.5,1,1,,,,ok,"{""si',
    ],
)
def test_torn_line(tmp_path, capsys, torn):
    path = tmp_path / "p.csv"
    utils.InferenceLogger(path, run_id="a").log(1, 0.5, 1.0)
    with path.open("a") as file:
        file.write(torn)
    assert len(utils.read_log(path)) == 1
    assert (
        capsys.readouterr().out
        == "p.csv: 1 of 2 lines are torn (by a crash) and left out.\n"
    )
    utils.InferenceLogger(path, run_id="b").log(1, 0.5, 1.0)
    assert utils.read_log(path)["run_id"].tolist() == ["a", "b"]


def test_torn_header_is_completed(tmp_path):
    (tmp_path / "p.csv").write_text("# inference log, schema 1\ntimestamp,ru")
    assert utils.read_log(tmp_path / "p.csv").empty
    utils.InferenceLogger(tmp_path / "p.csv").log(1, 0.5, 1.0)
    assert len(utils.read_log(tmp_path / "p.csv")) == 1


def test_another_schema_is_refused(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("# inference log, schema 2\na,b\n1,2\n")
    for attempt in (utils.InferenceLogger, utils.read_log):
        with pytest.raises(
            utils.CourseError, match="another schema .*schema 2.*move the file away"
        ):
            attempt(path)
    assert path.read_text() == "# inference log, schema 2\na,b\n1,2\n"


def test_logs_in_parquet_say_what_they_need(tmp_path, monkeypatch, capsys):
    """The core kit runs without duckdb and pyarrow; here as if they were missing,
    wherever this runs.
    """
    for name in ("duckdb", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    utils.InferenceLogger(tmp_path / "logs" / "production.csv")
    assert course.main(["compact", "--home", str(tmp_path)]) == 2
    assert (
        "need duckdb and pyarrow (pyarrow is missing): run `make scale`"
        in capsys.readouterr().out
    )
    assert not (tmp_path / "logs" / "production.parquet").exists()


def test_missing_log_names_the_notebook(tmp_path):
    for read in (utils.read_log, utils.read_alerts):
        with pytest.raises(
            utils.CourseError,
            match=r"is missing: run notebooks/theme5_monitoring\.ipynb",
        ):
            read(tmp_path / "p.csv")


def test_no_write_permission(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    # tests may run as root, whom nothing is forbidden
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(
        utils.CourseError,
        match=r"p\.csv could not be written \(Permission denied\).*are all there",
    ):
        utils.InferenceLogger(tmp_path / "p.csv")


def test_write_cut_short(tmp_path, monkeypatch):
    """A disk that fills up takes half a line."""
    path, write = tmp_path / "p.csv", os.write
    logger = utils.InferenceLogger(path)
    logger.log(1, 0.5, 1.0)
    monkeypatch.setattr(os, "write", lambda file, lines: write(file, lines[:10]))
    with pytest.raises(
        utils.CourseError,
        match="only a part of the last line was written.*free some space",
    ):
        logger.log(0, 0.5, 1.0)
    monkeypatch.undo()
    logger.log(2, 0.5, 1.0)
    assert utils.read_log(path)["pred_class"].tolist() == [1, 2]


def test_logs_are_kept_and_fetched(open_course, tmp_path):
    course = replace(open_course(), local=tmp_path / "local")
    utils.InferenceLogger(course.logs / "production.csv").log(1, 0.5, 1.0)
    utils.copy_to_home(course, course.logs)
    assert len(utils.read_log(course.home / "logs" / "production.csv")) == 1
    shutil.rmtree(course.local)
    utils.copy_back(course, course.logs)
    assert len(utils.read_log(course.logs / "production.csv")) == 1


# --- the model under watch


def test_predictions_are_logged(pictures, tmp_path):
    monitored, paths = serve(tmp_path), pictures.index["path"].tolist()
    answer = monitored.predict(pictures.pixels[:5], paths[:5], added_ms=200)
    assert np.array_equal(answer, BrightIsPneumonia().predict(pictures.pixels[:5]))
    log = utils.read_log(tmp_path / "production.csv")
    assert (
        log["pred_class"].tolist() == answer.argmax(axis=1).tolist()
        and log["image"].tolist() == paths[:5]
    )
    assert log["confidence"].tolist() == pytest.approx(answer.max(axis=1), abs=1e-5)
    assert log["latency_ms"].between(200, 1200).all() and (log["batch"] == 5).all()
    assert (log["model"] == BrightIsPneumonia.hash).all()
    seen = utils.image_statistics(pictures.pixels[:5])
    assert np.allclose(log[list(seen)], seen, rtol=1e-4)


def test_an_error_is_logged_and_raised_again(tmp_path):
    monitored = serve(tmp_path)
    with pytest.raises(ValueError, match="expected"):
        monitored.predict(np.zeros((1, 1, 15, 16), np.uint8), ["cut.png"])
    with pytest.raises(Exception, match="shape"):
        monitored.predict("no picture")
    log = utils.read_log(tmp_path / "production.csv")
    assert log["status"][0] == "ValueError" and log["image"][0] == "cut.png"
    assert (
        log["pred_class"].isna().all()
        and log["confidence"].isna().all()
        and monitored.lost == 0
    )


def test_a_broken_log_costs_no_prediction(pictures, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monitored = serve(tmp_path)
    monkeypatch.setattr(os, "write", full)
    for _ in range(3):
        assert monitored.predict(pictures.pixels[:1]).shape == (1, 2)
    # the model's own error, not the log's
    with pytest.raises(ValueError, match="expected"):
        monitored.predict(pictures.pixels[:1, :, 1:])
    said = capsys.readouterr().out
    assert (
        monitored.lost == 4
        and said.count("Monitoring has a gap") == 1
        and "No space left" in said
    )


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


def test_a_live_watch_sees_the_silence_after_the_last_line(quiet):
    log = quiet[quiet["timestamp"] < DAY + timedelta(hours=10)]
    windows = utils.window_statistics(log, until=DAY + timedelta(hours=12))
    assert windows["requests"].iloc[-1] == 0 and np.isnan(
        windows["error_rate"].iloc[-1]
    )


def test_too_little_to_say(quiet):
    with pytest.raises(utils.CourseError, match="The log has no lines"):
        utils.window_statistics(quiet.head(0))
    with pytest.raises(
        utils.CourseError, match="baseline of 99 answered requests is too short"
    ):
        utils.monitoring_baseline(quiet.head(99))
    assert len(utils.window_statistics(quiet.head(1))) == 1


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


# --- rules and alerts


@pytest.mark.parametrize(
    "wrong, known",
    [
        ({"metric": "accuracy"}, "metric 'accuracy' is unknown: .*latency_p95"),
        ({"sign": "="}, "abs>"),
        ({"severity": "bad"}, "warning, critical"),
    ],
)
def test_unknown_names_in_a_rule(wrong, known):
    with pytest.raises(utils.CourseError, match=known):
        utils.AlertRule(
            **{"name": "r", "metric": "latency_p95", "sign": ">", "threshold": 1.0}
            | wrong
        )


def test_rules_are_data():
    rules = utils.default_rules(slo_ms=80)
    again = [
        utils.AlertRule(**row)
        for row in json.loads(json.dumps([asdict(rule) for rule in rules]))
    ]
    assert (
        again == rules
        and rules[0].threshold == 80
        and all(rule.runbook for rule in rules)
    )


RULE = utils.AlertRule(
    "slow", "latency_p95", ">", 50.0, hold=20, least=10, runbook="Look."
)


def judge(manager, values, start=0, requests=100):
    """Rows ten minutes apart; returns (tick, event) of what was told."""
    told = []
    for tick, value in enumerate(values, start):
        row = {"window": 30, "requests": requests, "latency_p95": value}
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


def test_an_alert_that_could_not_be_written_is_told_at_the_next_tick(
    tmp_path, monkeypatch
):
    rule = utils.AlertRule("slow", "latency_p95", ">", 50.0, hold=0)
    manager = utils.AlertManager([rule], tmp_path / "alerts.csv")
    row = {"window": 30, "requests": 99, "latency_p95": 90.0}
    with monkeypatch.context() as broken:
        broken.setattr(
            os,
            "open",
            lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")),
        )
        with pytest.raises(
            utils.CourseError,
            match="alerts.csv could not be written .Permission denied",
        ):
            manager.evaluate(DAY, row)
    assert [
        event["event"] for event in manager.evaluate(DAY + timedelta(minutes=10), row)
    ] == ["firing"]
    assert len(utils.read_alerts(tmp_path / "alerts.csv")) == 1


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
    """A missing baseline, or windows of another length, must not look like
    a quiet day.
    """
    manager = utils.AlertManager(utils.default_rules(), tmp_path / "alerts.csv")
    row = {"window": 30, "requests": 100} | dict.fromkeys(utils.METRICS[1:-4], 0.0)
    with pytest.raises(
        utils.CourseError, match="watches class_mix_z.*baseline=monitoring_baseline"
    ):
        manager.evaluate(DAY, row)
    with pytest.raises(utils.CourseError, match="windows of 60 minutes: .*minutes=30"):
        manager.evaluate(DAY, row | {"window": 60})
    with pytest.raises(utils.CourseError, match="share a name"):
        utils.AlertManager([RULE, RULE], tmp_path / "alerts.csv")


def test_rules_of_two_windows(quiet, tmp_path):
    rules = [
        utils.AlertRule(f"busy{w}", "requests", ">", 40 * w / 30, window=w)
        for w in (30, 120)
    ]
    windows, events = utils.watch(
        quiet, utils.AlertManager(rules, tmp_path / "alerts.csv")
    )
    assert (windows["window"] == 30).all() and {"busy30", "busy120"} <= set(
        events["rule"]
    )


# --- webhook


@contextmanager
def receiver(port=0, status=200, delay=0.0):
    """A web server on the loopback that keeps what is posted to it."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            time.sleep(delay)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            received.append(json.loads(body))

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield SimpleNamespace(
            received=received,
            port=server.server_port,
            url=f"http://127.0.0.1:{server.server_port}",
        )
    finally:
        server.shutdown()
        server.server_close()


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing within {seconds} s"
        time.sleep(0.02)


def test_webhook_delivers_in_order(tmp_path):
    with receiver() as web:
        hook = utils.Webhook(web.url, tmp_path / "spool", pause=0.05)
        manager = utils.AlertManager([RULE], tmp_path / "alerts.csv", webhook=hook)
        judge(manager, [60] * 5 + [40] * 5)
        assert hook.close() == 0
    assert [event["event"] for event in web.received] == ["firing", "resolved"]
    assert (
        web.received[0]["rule"] == "slow"
        and web.received[0]["id"] != web.received[1]["id"]
    )


def test_webhook_down_then_up(tmp_path):
    with receiver() as web:
        port = web.port
    hook = utils.Webhook(f"http://127.0.0.1:{port}", tmp_path / "spool", pause=0.02)
    hook.send({"rule": "slow"})
    time.sleep(0.2)
    assert len(hook.pending()) == 1
    with receiver(port) as web:
        wait_for(lambda: not hook.pending())
    assert web.received[0]["rule"] == "slow" and hook.close() == 0


def test_webhook_that_fails_keeps_the_alert_for_the_next(tmp_path):
    with receiver(status=503) as web:
        hook = utils.Webhook(web.url, tmp_path / "spool", pause=0.02)
        hook.send({"rule": "slow"})
        wait_for(lambda: len(web.received) >= 2)  # it tries again
        assert hook.close() == 1
    with receiver() as web:
        assert utils.Webhook(web.url, tmp_path / "spool", pause=0.02).close() == 0
    assert [event["rule"] for event in web.received] == ["slow"]


def test_webhook_never_blocks_and_never_raises(tmp_path, capsys):
    with receiver(delay=2) as web:
        hook = utils.Webhook(web.url, tmp_path / "spool", timeout=0.5, pause=0.02)
        judge(
            utils.AlertManager([RULE], tmp_path / "alerts.csv", webhook=hook), [60] * 5
        )
        assert web.received == []  # evaluated, while the receiver still thinks
        assert hook.close(timeout=0.1) == 1
    (tmp_path / "file").write_text("")
    hook.folder = tmp_path / "file"
    hook.send({"rule": "slow"})
    assert "Alert slow could not be queued" in capsys.readouterr().out
    with pytest.raises(utils.CourseError, match="begins with http"):
        utils.Webhook("file:///etc/passwd", tmp_path / "spool")


# --- replay and drill


def test_traffic_is_diurnal_and_repeats(pictures):
    day = utils.traffic(pictures, seed=3)
    assert 2700 < len(day) < 3300 and day["minute"].is_monotonic_increasing
    afternoon, night = (
        day["minute"].between(12 * 60, 16 * 60).sum(),
        day["minute"].between(0, 4 * 60).sum(),
    )
    assert afternoon > 4 * night
    pd.testing.assert_frame_equal(day, utils.traffic(pictures, seed=3))
    assert len(utils.traffic(pictures, seed=4)) != len(day)


def test_replay_repeats_but_for_latency(pictures, quiet, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    first, second = (
        utils.replay_day(
            serve(folder, "run"), pictures, 5, 500, utils.drill(), day=DAY
        )[0]
        for folder in folders
    )
    pd.testing.assert_frame_equal(
        first.drop(columns="latency_ms"), second.drop(columns="latency_ms")
    )


def test_replay_of_a_day_that_is_there_is_refused(pictures, tmp_path):
    monitored = serve(tmp_path)
    utils.replay_day(monitored, pictures, 1, 50, day=DAY)
    utils.replay_day(monitored, pictures, 1, 50, day=DAY + timedelta(days=1))
    with pytest.raises(
        utils.CourseError,
        match="already holds lines of 2026-03-01: make a new InferenceLogger",
    ):
        utils.replay_day(monitored, pictures, 1, 50, day=DAY)


def test_replay_does_not_hide_a_model_that_fails(pictures, tmp_path):
    wrong = replace(pictures, pixels=pictures.pixels[:, :, :15, :15])
    with pytest.raises(ValueError, match="expected"):
        utils.replay_day(serve(tmp_path), wrong, 1, 50, day=DAY)


def test_drill_is_what_it_says(drilled, pictures):
    log, _, _ = drilled
    hour = (log["timestamp"] - DAY) / timedelta(hours=1)
    inside = {
        incident.kind: log[hour.between(incident.start, incident.start + 1)]
        for incident in utils.drill()
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
    score = utils.score_drill(drilled[2], utils.drill())
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
    return utils.replay_day(
        serve(folder), pictures, seed, manager=manager, baseline=baseline, day=DAY
    )[2]


@pytest.mark.parametrize("seed", range(3))
def test_quiet_days_raise_nothing(pictures, quiet, tmp_path, seed):
    events = quiet_day(pictures, utils.monitoring_baseline(quiet), tmp_path, seed)
    assert events.empty, events
    assert list(utils.score_drill(events, utils.drill())["raised"]) == [False] * 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 23))
def test_twenty_quiet_days_and_twenty_drills(pictures, tmp_path, seed):
    """Each with a baseline of its own."""
    log, _, _ = utils.replay_day(
        serve(tmp_path / "baseline"), pictures, seed + 1000, day=DAY
    )
    baseline = utils.monitoring_baseline(log)
    assert quiet_day(pictures, baseline, tmp_path / "quiet", seed).empty
    manager = utils.AlertManager(utils.default_rules(), tmp_path / "alerts.csv")
    _, _, events = utils.replay_day(
        serve(tmp_path / "drill"),
        pictures,
        seed,
        incidents=utils.drill(),
        day=DAY,
        manager=manager,
        baseline=baseline,
    )
    score = utils.score_drill(events, utils.drill())
    assert score["raised"].all() and len(score) == 5, score


def test_score_tells_missed_from_false():
    event = {"event": "firing", "rule": "errors"}
    events = pd.DataFrame(
        [
            event | {"timestamp": pd.Timestamp(DAY) + pd.Timedelta(hours=hour)}
            for hour in (5, 17.5)
        ]
    )
    score = utils.score_drill(events, utils.drill()).set_index("incident")
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


def test_class_shift_needs_two_classes(pictures):
    one = replace(pictures, labels=np.ones_like(pictures.labels))
    with pytest.raises(utils.CourseError, match="images of one class only"):
        utils.traffic(one, 0, incidents=utils.drill())


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((0, 1, 16, 16), np.uint8), np.zeros((16, 16), np.uint8), None, "picture"],
)
def test_a_bad_request_is_one_line(tmp_path, wrong):
    monitored = serve(tmp_path)
    monitored.model = SimpleNamespace(hash="0", predict=lambda pixels: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        monitored.predict(wrong, images=["a", "b"])
    log = utils.read_log(tmp_path / "production.csv")
    assert log["status"].tolist() == ["ZeroDivisionError"] and monitored.lost == 0


def test_webhook_url_that_is_none():
    for url in ("ftp://a", "http://[bad", "http://"):
        with pytest.raises(utils.CourseError, match="begins with http"):
            utils.Webhook(url, "unused")


def test_refused_alert_does_not_block_the_next(tmp_path, capsys):
    taken = []

    class Picky(BaseHTTPRequestHandler):
        def do_POST(self):
            event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            taken.append(event["rule"])
            self.send_response(400 if event["rule"] == "refused" else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Picky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hook = utils.Webhook(
        f"http://127.0.0.1:{server.server_port}/", tmp_path, pause=0.05
    )
    for rule in ("refused", "good"):
        hook.send({"rule": rule, "event": "firing", "metric": "x", "value": 1.0})
    assert hook.close(10) == 0 and taken == ["refused", "good"]
    server.shutdown()
    (kept,) = (tmp_path / "rejected").iterdir()
    assert (
        json.loads(kept.read_text())["text"] == "firing: refused, x = 1.0"
        and "400" in capsys.readouterr().out
    )


def test_prediction_does_not_wait_for_a_webhook_that_hangs(pictures, quiet, tmp_path):
    """The receiver takes the connection and never answers; a whole drill goes on."""
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen()
    hook = utils.Webhook(
        f"http://127.0.0.1:{silent.getsockname()[1]}/", tmp_path / "spool", timeout=60
    )
    manager = utils.AlertManager(
        utils.default_rules(), tmp_path / "alerts.csv", webhook=hook
    )
    _, _, events = utils.replay_day(
        serve(tmp_path),
        pictures,
        5,
        1500,
        utils.drill(),
        manager,
        utils.monitoring_baseline(quiet),
    )
    assert len(events) and len(hook.pending()) == len(events)
    silent.close()


def test_unknown_incident():
    with pytest.raises(utils.CourseError, match="kind 'flood' is unknown"):
        utils.Incident("rain", "flood", 1, 1, 1, ())


def test_replay_on_a_drawn_dataset(data, tmp_path):
    """The pool of a smoke course has a handful of images, of another size than the fake
    model's.
    """
    model = SimpleNamespace(
        hash="0" * 16, predict=lambda pixels: np.full((len(pixels), 2), 0.5, np.float32)
    )
    monitored = utils.MonitoredModel(model, utils.InferenceLogger(tmp_path / "p.csv"))
    log, _, _ = utils.replay_day(monitored, data, 1, 100)
    assert set(log["image"]) <= set(data.index["path"][data.where("production")])
    assert (
        log["timestamp"].iloc[0].date()
        == (datetime.now(UTC) - timedelta(days=1)).date()
    )


# --- dashboards


@pytest.fixture(scope="module")
def board(drilled, pictures, tmp_path_factory) -> Path:
    log, windows, events = drilled
    folder = tmp_path_factory.mktemp("tensorboard")
    for _ in range(2):  # the second replaces the first
        utils.write_dashboard(folder / "day", windows, log, pictures, events)
    return folder


def test_dashboard_holds_what_was_measured(board, drilled):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log, windows, events = drilled
    stored = EventAccumulator(
        str(board / "day"), size_guidance={"images": 0, "histograms": 0}
    ).Reload()
    assert set(utils.TAGS.values()) < set(stored.Tags()["scalars"])
    p95, expected = stored.Scalars("latency/p95"), windows.dropna(subset="latency_p95")
    assert [point.value for point in p95] == pytest.approx(
        expected["latency_p95"].tolist(), rel=1e-5
    )
    assert [point.step for point in p95][::40] == [10, 410, 810, 1210] and p95[
        -1
    ].step == 1440
    assert p95[-1].wall_time == (DAY + timedelta(days=1)).timestamp()
    assert (
        len(stored.Histograms("hourly/confidence"))
        == log["timestamp"].dt.hour.nunique()
    )
    images = [
        tag for tag in stored.Tags()["images"] if tag.startswith("low_confidence/")
    ]
    assert (
        len(images) == 8
        and Path(log.loc[log["confidence"].idxmin(), "image"]).name in images[0]
    )
    texts = [tag for tag in stored.Tags()["tensors"] if tag.startswith("alerts/")]
    assert {tag.split("/")[1] for tag in texts} == set(events["rule"])
    assert max(point.value for point in stored.Scalars("alerts/firing")) >= 2
    assert stored.Scalars("alerts/firing")[-1].value == 0
    assert "custom_scalars__config__" in stored.summary_metadata


def test_alerts_reach_tensorboard_as_they_happen(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "run")) as events:
        judge(
            utils.AlertManager([RULE], tmp_path / "alerts.csv", writer=events), [60] * 5
        )
    stored = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [point.value for point in stored.Scalars("alerts/firing")] == [0, 0, 1, 1, 1]
    text = (
        stored.Tensors("alerts/slow/text_summary")[0]
        .tensor_proto.string_val[0]
        .decode()
    )
    assert "**firing**" in text and "Look." in text


def test_figure_has_a_panel_a_metric(drilled):
    import matplotlib.pyplot as plt

    _, windows, events = drilled
    figure = utils.plot_dashboard(windows, events, utils.drill(), "A day")
    assert [axis.get_ylabel() for axis in figure.axes] == list(utils.PANELS)
    names = {text.get_text() for axis in figure.axes for text in axis.texts}
    assert set(events["rule"]) | {"silence", "class\nshift"} <= names
    plt.close(figure)
    quiet = utils.plot_dashboard(windows, events.head(0))
    assert len(quiet.axes[1].lines) == 1
    plt.close(quiet)


def test_tensorboard_shows_it_in_a_browser(board, tmp_path):
    import socket

    browser = next(
        filter(
            None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
        ),
        None,
    )
    if not browser:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tensorboard.main",
            "--logdir",
            str(board),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def served(plugin, word):
        try:
            return (
                word
                in urlopen(
                    f"http://127.0.0.1:{port}/data/plugin/{plugin}", timeout=5
                ).read()
            )
        except OSError:
            return False

    def shows(address, *words):
        """Virtual time may run out before the first visit has compiled the page; the
        next finds it in the cache.
        """
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}",
            "--window-size=1500,1600",
            "--virtual-time-budget=200000",
            "--dump-dom",
            f"http://127.0.0.1:{port}/{address}",
        ]
        page = subprocess.run(
            command, capture_output=True, text=True, timeout=120
        ).stdout
        return all(word in page for word in words)

    try:
        wait_for(lambda: served("timeseries/tags", b"latency/p95"), 60)
        titles = [
            f'title="{tag}'
            for tag in (
                "latency/p50",
                "latency/p95",
                "latency/p99",
                "low_confidence/1 ",
            )
        ]
        # without a filter, groups are folded
        filtered = "?tagFilter=latency%7Clow_confidence#timeseries"
        wait_for(lambda: shows(filtered, *titles), 60)
        # That page draws in shadow roots, which are not in the dump: its frame, and the
        # layout it is given.
        wait_for(lambda: shows("#custom_scalars", "<tf-custom-scalar-dashboard"), 60)
        assert served("custom_scalars/layout", b"class mix and confidence")
    finally:
        server.terminate()
        server.wait()
