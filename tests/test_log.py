"""What the monitoring stands on: a log that many processes append to, and alerts that
are posted.
"""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import utils
from kit.webhook import send_alert


def test_a_line_comes_back_typed_and_plain_pandas_reads_it(tmp_path):
    path = tmp_path / "logs" / "p.csv"
    logger = utils.InferenceLogger(path, run_id="a")
    odd = {"image": 'x,"y"\nz\udcff.png', "model": "NA", "site": "Lyon", "tags": [1, 2]}
    logger.log(1, 0.98765432, 1.5, **odd)
    logger.log_batch(
        np.array([0, 1]),
        np.array([0.5, 0.6], np.float32),
        [2.0, 2.0],
        image=["a", "b"],
        site="Metz",
        timestamp=datetime(2026, 3, 1, 12),
    )
    other = utils.InferenceLogger(path)
    other.log_batch([None], [np.nan], [1], status="ValueError")
    log = utils.read_log(path, "a")
    assert log["pred_class"].tolist() == [1, 0, 1]
    assert log["confidence"].tolist() == pytest.approx([0.987654, 0.5, 0.6], abs=1e-6)
    assert log["image"].tolist() == ['x,"y" z\\udcff.png', "a", "b"]
    assert log["batch"].tolist() == [1, 2, 2] and log["model"][0] == "NA"
    extra = [json.loads(text) for text in log["extra"]]
    assert extra == [{"site": "Lyon", "tags": [1, 2]}] + [{"site": "Metz"}] * 2
    assert log["timestamp"][2] == pd.Timestamp("2026-03-01T12:00Z")
    assert abs(log["timestamp"][0] - datetime.now(UTC)) < timedelta(minutes=1)
    assert log["pred_class"].dtype == "Int64" and log["status"].eq("ok").all()
    plain, rows = pd.read_csv(path), utils.read_log(path)
    assert list(plain)[:-1] == list(utils.LOG_COLUMNS) and len(plain) == len(rows) == 4
    assert plain["confidence"].equals(rows["confidence"])
    assert other.read().equals(utils.read_log(path, other.run_id))
    assert other.read()["status"].tolist() == ["ValueError"]


@pytest.mark.parametrize(
    "values",
    [
        {"preds": [0, 1]},
        {"preds": ["1"]},
        {"preds": [0.5]},
        {"preds": [1e300]},
        {"confidences": ["high"]},
        {"confidences": [np.inf]},
        {"latencies": [[1]]},
        {"timestamp": None},
        {"timestamp": "noon"},
        {"timestamp": datetime(9999, 1, 1)},
        {"status": ["ok", "ok"]},
    ],
    ids=str,
)
def test_what_the_reader_would_not_read_is_not_written(tmp_path, values):
    logger = utils.InferenceLogger(tmp_path / "p.csv")
    logger.log(0, 0.5, 1.0)
    line = {"preds": [0], "confidences": [0.5], "latencies": [1]}
    with pytest.raises(utils.CourseError):
        logger.log_batch(**line | values)
    assert len(utils.read_log(tmp_path / "p.csv")) == 1


def started(work, *arguments):
    """A process of its own that does some work."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def write(path, run_id, batches, images=20):
    logger = utils.InferenceLogger(path, run_id=run_id)
    for i in range(batches):
        names = [f"{run_id}-{i * images + k}-" + "x" * 200 for k in range(images)]
        logger.log_batch([0] * images, [0.5] * images, [1.0] * images, image=names)


def test_writers_of_several_processes_and_threads_do_not_mix(tmp_path):
    """Every writer also finds the file missing, so that they race for the header."""
    path = tmp_path / "p.csv"
    children = [started(write, path, f"process{k}", 50) for k in range(3)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: write(path, f"thread{k}", 100, 1), range(4)))
    for child in children:
        child.join()
    log = utils.read_log(path)
    runs = {f"process{k}": 1000 for k in range(3)}
    runs |= {f"thread{k}": 100 for k in range(4)}
    assert log["image"].is_unique and log["run_id"].value_counts().to_dict() == runs
    assert len(pd.read_csv(path)) == len(log)


def test_kill_9_of_writers_costs_no_line_that_was_written(tmp_path):
    path, whole = tmp_path / "p.csv", 0
    for kill in range(20):
        child, run_id = started(write, path, f"run{kill}", 10**6), f"run{kill}"
        size = path.stat().st_size if path.exists() else 0
        while not path.exists() or path.stat().st_size < size + 20_000:
            time.sleep(0.001)
        time.sleep(0.0007 * kill)
        child.kill()
        child.join()
        log = utils.read_log(path)
        found = log.loc[log["run_id"] == run_id, "image"].str.rstrip("x").tolist()
        assert found == [f"{run_id}-{n}-" for n in range(len(found))] and found
        assert len(log) == whole + len(found)
        whole = len(log)
    write(path, "next", 1, 1)
    assert len(pd.read_csv(path)) == len(utils.read_log(path)) == whole + 1


def die_within(path, share):
    logger, whole = utils.InferenceLogger(path, run_id="killed"), os.write
    logger.log(1, 0.5, 1.0)

    def part(file, lines):
        whole(file, lines[: int(len(lines) * share)])
        os.kill(os.getpid(), signal.SIGKILL)

    os.write = part
    logger.log(0, 0.5, 1.0, image='a "quoted" name', site="Lyon")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_killed_in_the_middle_of_a_line(tmp_path, share):
    path = tmp_path / "p.csv"
    started(die_within, path, share).join()
    assert not path.read_text().endswith("\n") and len(utils.read_log(path)) == 1
    write(path, "next", 1, 1)
    assert utils.read_log(path)["run_id"].tolist() == ["killed", "next"]
    assert len(pd.read_csv(path)) == 2


def test_torn_header_is_completed(tmp_path):
    (tmp_path / "p.csv").write_text("timestamp,run_id,mo")
    assert utils.read_log(tmp_path / "p.csv").empty
    utils.InferenceLogger(tmp_path / "p.csv").log(1, 0.5, 1.0)
    assert len(utils.read_log(tmp_path / "p.csv")) == 1


@pytest.mark.parametrize(
    "first", ["# inference log, schema 1\n", "timestamp,run_id\n", "no end"]
)
def test_another_schema_is_refused_and_nothing_is_lost(tmp_path, first):
    path = tmp_path / "p.csv"
    path.write_text(first + "1,2\nthe last line has no end")
    before = path.read_bytes()
    for attempt in (utils.InferenceLogger, utils.read_log):
        with pytest.raises(utils.CourseError, match="another schema.*move the file"):
            attempt(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "old, new",
    [
        (",ok,", ',"ok,'),
        (",ok,", ",ok,,,,"),
        (",ok,,1\n", ",ok\n"),
        (",1,0.5,", ",0.9,0.5,"),
        (",0.5,", ",half,"),
        ("2026", "one day of 2026"),
        ("2026", "9999"),
    ],
)
def test_a_damaged_line_is_told(tmp_path, old, new):
    path, day = tmp_path / "p.csv", datetime(2026, 3, 1)
    utils.InferenceLogger(path).log(1, 0.5, 1.0, timestamp=day)
    header, line = path.read_text().splitlines(keepends=True)
    path.write_text(header + line.replace(old, new, 1))
    with pytest.raises(utils.CourseError, match=r"p\.csv is damaged \(.*move the file"):
        utils.read_log(path)


@pytest.mark.parametrize("read", [utils.read_log, utils.read_alerts])
def test_missing_log_names_the_notebook(tmp_path, read):
    with pytest.raises(utils.CourseError, match=r"missing: run .*theme5_monitoring"):
        read(tmp_path / "p.csv")


def refuse(*arguments):
    raise PermissionError(13, "Permission denied")


def test_a_line_that_could_not_be_written(tmp_path, monkeypatch):
    """No permission, or a disk that fills up in the middle of it."""
    path, whole = tmp_path / "p.csv", os.write
    logger = utils.InferenceLogger(path)
    logger.log(1, 0.5, 1.0)
    for broken, told in (
        (lambda file, lines: whole(file, lines[:10]), "No space.*free some space"),
        (refuse, r"p\.csv could not be written \(Permission denied\).*are all there"),
    ):
        monkeypatch.setattr(os, "write", broken)
        with pytest.raises(utils.CourseError, match=told):
            logger.log(0, 0.5, 1.0)
        monkeypatch.undo()
    logger.log(2, 0.5, 1.0)
    assert pd.read_csv(path)["pred_class"].tolist() == [1, 2]


def test_a_run_does_not_read_what_came_before_it(tmp_path):
    path = tmp_path / "p.csv"
    utils.InferenceLogger(path, run_id="old").log(0, 0.5, 1.0)
    logger = utils.InferenceLogger(path)
    logger.log(1, 0.5, 1.0)
    path.write_bytes(path.read_bytes().replace(b",0.5,", b",bad,", 1))
    assert logger.read()["pred_class"].tolist() == [1]
    with pytest.raises(utils.CourseError, match="damaged"):
        utils.read_log(path)


def test_logs_are_kept_and_fetched(open_course, tmp_path):
    course = replace(open_course(), local=tmp_path / "local")
    utils.InferenceLogger(course.logs / "production.csv").log(1, 0.5, 1.0)
    utils.copy_to_home(course, course.logs)
    assert len(utils.read_log(course.home / "logs" / "production.csv")) == 1
    shutil.rmtree(course.local)
    utils.copy_back(course, course.logs)
    assert len(utils.read_log(course.logs / "production.csv")) == 1


# --- webhook


@contextmanager
def receiver(status=(), delay=0.0):
    """A web server on the loopback that keeps what is posted to it, and answers with
    one status after the other, then 200.
    """
    received, left = [], list(status)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(json.loads(body))
            time.sleep(delay)
            self.send_response(left.pop(0) if left else 200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield SimpleNamespace(
            received=received, url=f"http://127.0.0.1:{server.server_port}/hook"
        )
    finally:
        server.shutdown()
        server.server_close()


EVENT = {
    "event": "firing",
    "rule": "slow",
    "timestamp": pd.Timestamp("2026-03-01", tz="UTC"),
    "value": 1.5,
}


@pytest.mark.parametrize(
    "status, posts, told",
    [((), 1, ""), ((500, 503), 3, ""), ((500,) * 9, 3, "500"), ((404,), 1, "404")],
)
def test_an_alert_is_posted_tried_again_and_told(capsys, status, posts, told):
    with receiver(status) as web:
        send_alert(web.url, EVENT, retries=2).join(20)
    assert len(web.received) == posts
    assert web.received[0]["text"] == web.received[0]["content"] == "firing: slow"
    assert web.received[0]["value"] == 1.5
    said = capsys.readouterr().out
    assert told in said and bool(told) == ("did not reach" in said)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "ftp://a", "http://"])
def test_a_receiver_that_is_not_there_is_told(capsys, url):
    send_alert(url, EVENT, timeout=1, retries=0).join(20)
    assert f"did not reach {url} (" in capsys.readouterr().out


ALWAYS = utils.AlertRule("slow", "latency_p95", ">", 50.0, hold=0)


@pytest.mark.parametrize("delay", [1.0, None])
def test_no_tick_waits_for_a_receiver_that_is_slow_or_hangs(tmp_path, delay):
    with socket.socket() as silent, receiver(delay=delay or 0) as web:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hangs = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        url = web.url if delay else hangs
        manager = utils.AlertManager([ALWAYS], tmp_path / "alerts.csv", webhook=url)
        began = time.perf_counter()
        row = {"requests": 100, "latency_p95": 60.0}
        (event,) = manager.evaluate(datetime.now(UTC), row)
        assert time.perf_counter() - began < 0.9
        end = time.monotonic() + 20
        while delay and not web.received and time.monotonic() < end:
            time.sleep(0.02)
        assert [event["rule"] for event in web.received] == ["slow"] * bool(delay)
