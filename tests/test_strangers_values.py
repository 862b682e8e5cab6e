"""What strangers hand to functions: a line for the log, a recipe, answers, tables."""

import math
import re
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import utils

# --- the log: what `log` accepts, `read_log` reads


@pytest.mark.parametrize(
    "given, read",
    [
        ({"extra": {"user": "bob"}}, {"extra": '{"user": "bob"}'}),
        (
            {"extra": {"user": "bob"}, "site": "Lyon"},
            {"extra": '{"user": "bob", "site": "Lyon"}'},
        ),
        ({"extra": "bob"}, {"extra": '{"extra": "bob"}'}),
        ({"pred_class": True}, {"pred_class": 1}),
        ({"pred_class": torch.tensor([1])}, {"pred_class": 1}),
        ({"confidence": 1.0000001}, {"confidence": 1.0}),
        ({"confidence": Decimal("0.25")}, {"confidence": 0.25}),
        ({"status": " OK"}, {"status": "ok"}),
        ({"status": "Timeout"}, {"status": "Timeout"}),
        ({"image": "caf\udce9.png"}, {"image": "caf\\udce9.png"}),
        ({"image": 'a;"b"\r\nc'}, {"image": 'a;"b" c'}),
        (
            {"timestamp": np.datetime64("2026-03-01T12:00", "ns")},
            {"timestamp": pd.Timestamp("2026-03-01T12:00Z")},
        ),
        (
            {"timestamp": "2026-03-01T12:00:00.123456789+02:00"},
            {"timestamp": pd.Timestamp("2026-03-01T10:00:00.123Z")},
        ),
        # NaN is no answer of class 0
        ({"confidence": math.nan}, {"status": "nan", "pred_class": pd.NA}),
        ({"confidence": np.float32("nan"), "pred_class": 0}, {"status": "nan"}),
        ({"pred_class": None, "confidence": None}, {"status": "ok"}),
    ],
    ids=str,
)
def test_what_is_logged_is_read(tmp_path, given, read):
    logger = utils.InferenceLogger(tmp_path / "p.csv")
    logger.log(**{"pred_class": 1, "confidence": 0.5, "latency_ms": 1.0} | given)
    line = utils.read_log(tmp_path / "p.csv").iloc[0]
    for name, value in read.items():
        assert line[name] is value or line[name] == value


@pytest.mark.parametrize(
    "given, told",
    [
        ({"pred_class": "PNEUMONIA"}, "pred_class takes a whole number, not 'PNEU"),
        ({"pred_class": torch.tensor([1, 2])}, "pred_class takes a whole number"),
        ({"confidence": "0,93"}, "confidence takes a number of 0 to 1, not '0,93'"),
        ({"confidence": 93.0}, "confidence takes a number of 0 to 1, not 93.0"),
        ({"latency_ms": math.inf}, "latency_ms takes a finite number, not inf"),
        ({"timestamp": 1710000000.5}, "timestamp takes a datetime, or a time in ISO"),
        ({"timestamp": np.int64(1710000000500)}, "timestamp takes a datetime"),
        ({"timestamp": "01/03/2026 12:00"}, "timestamp takes a datetime"),
        ({"timestamp": pd.NaT}, "timestamp takes a datetime"),
        ({"status": ""}, 'status takes "ok", or the name of an error'),
        ({"status": None}, 'status takes "ok", or the name of an error'),
        ({"extra": {("a", "b"): 1}}, "extra takes text"),
    ],
    ids=str,
)
def test_what_would_not_be_read_is_refused_by_name(tmp_path, given, told):
    logger = utils.InferenceLogger(tmp_path / "p.csv")
    logger.log(0, 0.5, 1.0)
    before = (tmp_path / "p.csv").read_bytes()
    with pytest.raises(utils.CourseError, match=rf"p\.csv: {told}.*no line was writ"):
        logger.log(**{"pred_class": 1, "confidence": 0.5, "latency_ms": 1.0} | given)
    assert (tmp_path / "p.csv").read_bytes() == before


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.datetimes(),
    st.floats(width=32).map(np.float32),
    st.sampled_from(
        [pd.NA, pd.NaT, math.nan, [1], {"a": 1}, "NA", "\udcff", '"', "\r"]
    ),
)
COLUMNS = [name for name in utils.LOG_COLUMNS if name not in ("run_id", "batch")]


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(st.dictionaries(st.sampled_from([*COLUMNS, "site"]), ANYTHING, max_size=4))
def test_a_log_never_holds_a_line_that_its_reader_refuses(given):
    with TemporaryDirectory() as folder:
        logger = utils.InferenceLogger(Path(folder, "p.csv"), run_id="a,b\r\n\udcff")
        lines = 0
        with suppress(utils.CourseError):
            line = {"pred_class": 1, "confidence": 0.5, "latency_ms": 1.0} | given
            logger.log(**line)
            lines = 1
        log = logger.read()
        assert len(log) == len(utils.read_log(logger.path)) == lines
        assert log["status"].ne("").all() and log["confidence"].dropna().le(1).all()
        plain = pd.read_csv(logger.path, keep_default_na=False)
        assert len(plain) == lines


@pytest.mark.parametrize(
    "saved",
    [
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\n", b"\r\n", 1),
        # a program that quotes every field
        lambda text: re.sub(rb"[^,\n]*", rb'"\g<0>"', text).replace(b'""', b""),
    ],
)
def test_a_log_that_windows_saved_is_read_and_written_on(tmp_path, saved):
    path = tmp_path / "p.csv"
    utils.InferenceLogger(path, "old").log(1, 0.5, 1.0, image="é")
    path.write_bytes(saved(path.read_bytes()))
    logger = utils.InferenceLogger(path)
    logger.log(0, 0.25, 2.0)
    assert utils.read_log(path)["pred_class"].tolist() == [1, 0]
    assert logger.read()["latency_ms"].tolist() == [2.0]
    path.write_bytes(path.read_bytes()[:-7])  # a crash in the last line
    logger.log(2, 0.5, 1.0)
    assert utils.read_log(path)["pred_class"].tolist() == [1, 2]


@pytest.mark.parametrize("sign", [b";", b"\t"])
def test_a_log_that_a_spreadsheet_saved_anew_is_refused(tmp_path, sign):
    path = tmp_path / "p.csv"
    utils.InferenceLogger(path).log(1, 0.5, 1.0)
    path.write_bytes(path.read_bytes().replace(b",", sign).replace(b"\n", b"\r\n"))
    with pytest.raises(utils.CourseError, match="a spreadsheet has saved it"):
        utils.read_log(path)


class Broken:
    """A model whose weights have diverged."""

    hash = "broken"

    def predict(self, pixels):
        return np.full((len(pixels), 2), np.nan, np.float32)


def test_a_model_that_answers_nan_has_failed_and_wakes_somebody(tmp_path):
    logger = utils.InferenceLogger(tmp_path / "p.csv")
    model = utils.MonitoredModel(Broken(), logger)
    for minute in range(60):
        when = pd.Timestamp("2026-03-01T08:00Z") + pd.Timedelta(minutes=minute)
        model.predict(np.full((3, 1, 8, 8), 90, np.uint8), timestamp=when)
    log = logger.read()
    assert model.lost == 0 and log["status"].eq("nan").all()
    assert log["pred_class"].isna().all()
    rules = [rule for rule in utils.default_rules() if not rule.metric.endswith("_z")]
    manager = utils.AlertManager(rules, tmp_path / "alerts.csv")
    _, events = utils.judge_windows(log, manager)
    assert "errors" in set(events["rule"])
    with pytest.raises(utils.CourseError, match="baseline of 0 answered requests"):
        utils.monitoring_baseline(log)


# --- training, answers, drift


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"batch_size": 0},
        {"batch_size": -3},
        {"lr": 0.0},
        {"lr": math.nan},
        {"lr": "0.01"},
        {"clip": 0.0},
        {"patience": 0},
        {"weight_decay": -1},
        {"label_smoothing": 2},
        {"average": -1.0},
    ],
    ids=str,
)
def test_a_recipe_that_cannot_train_is_refused_before_anything_is_stored(wrong):
    (name, value), *_ = wrong.items()
    told = re.escape(f"recipe with {name}={value!r} cannot train: give")
    with pytest.raises(utils.CourseError, match=told):
        utils.Recipe(**wrong)
    with pytest.raises(utils.CourseError, match=told):
        utils.replace(utils.Recipe(), **wrong)


def test_a_pool_that_is_none_is_told(data):
    with pytest.raises(utils.CourseError, match="pool='valid' is unknown: choose one"):
        data.loader("valid")


def test_nan_is_no_answer_of_class_0(data):
    answers, labels = np.full((6, 2), 0.5), np.array([0, 0, 1, 1, 0, 1])
    answers[2] = np.nan
    for measure in (
        lambda: utils.accuracy_row(answers, labels),
        lambda: utils.evaluate(answers, labels, ("A", "B"), resamples=10),
    ):
        with pytest.raises(utils.CourseError, match="NaN .*in 1 of 6 images"):
            measure()
    with pytest.raises(utils.CourseError, match="'mine' are not stored"):
        utils.save_predictions(data.course, "mine", answers, labels)
    assert utils.stored_predictions(data.course.home, "mine") is None


TESTS = (utils.ks_test, utils.mmd_test, utils.classifier_test, utils.compute_mmd)


def table(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"age": rng.normal(50, 9, n), "dose": rng.normal(size=n)})


@pytest.mark.parametrize("test", TESTS)
def test_columns_are_compared_by_name(test):
    reference, window = table(80, 0), table(50, 1)
    answers = [test(reference, w) for w in (window, window[["dose", "age"]])]
    assert str(answers[0]) == str(answers[1])
    assert not getattr(answers[0], "drift", False)


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize(
    "change, told",
    [
        (lambda t: t.rename(columns={"dose": "Dose"}), "lacks 'dose', and has 'Dose'"),
        (lambda t: t.assign(more=1), "lacks none, and has 'more'"),
        (lambda t: t[["age", "dose", "dose"]], "each once"),
        (
            lambda t: t.assign(dose="B"),
            "Column 'dose' of the window holds .*no numbers",
        ),
        (lambda t: t.assign(dose=pd.Timestamp("2026")), "Column 'dose' .*datetime64"),
        (
            lambda t: t.assign(dose=pd.array([1, None] * (len(t) // 2), "Int64")),
            "window has NaN .*in 25 of 50",
        ),
        (lambda t: t * 1e200, "values beyond 1e.150"),
        (
            lambda t: t.to_numpy().reshape(-1, 1, 1, 2),
            r"shape \(50, 1, 1, 2\).*drift_s",
        ),
        (lambda t: [["a", "b"]] * 50, "window holds no numbers"),
        (lambda t: 1.0, r"shape \(\)"),
        (lambda t: np.ones((50, 0)), r"shape \(50, 0\)"),
    ],
)
def test_what_no_test_can_compare_is_named(test, change, told):
    with pytest.raises(utils.CourseError, match=told):
        test(table(80, 0), change(table(50, 1)))


@pytest.mark.parametrize("threads", ["two", "0", "-1", "1.5"])
def test_threads_that_cannot_be(open_course, monkeypatch, threads):
    monkeypatch.setenv("COURSE_THREADS", threads)
    with pytest.raises(utils.CourseError, match=f"COURSE_THREADS='{threads}' cannot"):
        open_course()


def test_a_quiet_day_without_pictures_says_what_stays_silent(tmp_path, capsys):
    logger = utils.InferenceLogger(tmp_path / "p.csv")
    logger.log_batch([0, 1] * 60, [0.9, 0.8] * 60, [5.0] * 120)
    assert utils.monitoring_baseline(logger.read())["confidence"]["n"] == 120
    assert (
        "No line has brightness, contrast, sharpness, blank_share: "
        in capsys.readouterr().out
    )
