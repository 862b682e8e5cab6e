"""Readers of what a home writes while it serves: logs, and stored arrays."""

import io
import zipfile

import numpy as np
from hypothesis import strategies as st

import utils
from kit import log
from kit.promotion import AUDIT_COLUMNS
from kit.watching import DRIFT_COLUMNS, read_drift_log
from support.fuzzing import put, reader
from support.hostile import (
    broken,
    broken_csv,
)
from tools.grading import hostile as guards

# --- monitoring: logs


def log_lines(columns, rows) -> str:
    return (
        "\n".join(
            ",".join(str(row.get(name, "")) for name in columns) + ",1" for row in rows
        )
        + "\n"
    )


def first_line(columns) -> str:
    return f"{','.join(columns)},{log.SCHEMA}\n"


INFERENCES = log_lines(
    utils.LOG_COLUMNS,
    [
        {
            "timestamp": f"2026-03-01T12:{minute:02}:00.000Z",
            "run_id": "a",
            "model": "m",
            "image": "x",
            "pred_class": 1,
            "confidence": 0.9,
            "latency_ms": 2.5,
            "batch": 1,
            "brightness": 100,
            "contrast": 20,
            "sharpness": 5,
            "status": "ok",
        }
        for minute in range(0, 40, 5)
    ],
)


@reader(
    lambda kit: broken_csv(INFERENCES, first_line(utils.LOG_COLUMNS)),
    quick=60,
    many=700,
)
def inference_logs(kit, case):
    path = put(kit.home / "logs" / "production.csv", case)
    log = utils.read_log(path)
    assert list(log) == list(utils.LOG_COLUMNS)
    assert str(log["pred_class"].dtype) == "Int64"
    assert log["timestamp"].notna().all()
    utils.InferenceLogger(path, "b").log(1, 0.5, 1.0)
    assert path.read_bytes().startswith(case[: case.rfind(b"\n") + 1])
    assert len(utils.read_log(path, "b")) == 1
    windows = utils.window_statistics(log)
    assert {"requests", "error_rate"} <= {*windows}
    assert 0 <= utils.error_budget(log)["good_share"] <= 1


ALERTS = log_lines(
    utils.ALERT_COLUMNS,
    [
        {
            "timestamp": "2026-03-01T12:00:00.000Z",
            "run_id": "a",
            "rule": "slow",
            "severity": "critical",
            "event": event,
            "metric": "latency_p95",
            "value": 60,
            "threshold": 50,
            "runbook": "look",
        }
        for event in ("firing", "resolved")
    ],
)


@reader(
    lambda kit: broken_csv(ALERTS, first_line(utils.ALERT_COLUMNS)),
    quick=80,
    many=400,
)
def alert_logs(kit, case):
    path = put(kit.home / "logs" / "alerts.csv", case)
    alerts = utils.read_alerts(path)
    assert list(alerts) == list(utils.ALERT_COLUMNS) and alerts["value"].dtype == float
    manager = utils.AlertManager(utils.default_rules(), path, "a")
    assert manager.firing <= set(alerts["rule"])
    assert path.read_bytes().startswith(case[: case.rfind(b"\n") + 1])


STAMP = {"timestamp": "2026-03-01T12:00:00.000Z"}
DRIFTS = log_lines(DRIFT_COLUMNS, [dict.fromkeys(DRIFT_COLUMNS, 1) | STAMP] * 3)
AUDITS = log_lines(
    AUDIT_COLUMNS,
    [
        {
            "timestamp": "2026-03-01T12:00:00.000Z",
            "who": "a",
            "event": event,
            "model": "0" * 16,
            "previous": "1" * 16,
        }
        for event in ("promoting", "in service", "rolling back", "rollback")
    ],
)


def whole(columns, lines: str):
    return st.just((first_line(columns) + lines).encode())


@reader(
    lambda kit: (
        st.tuples(
            broken_csv(DRIFTS, first_line(DRIFT_COLUMNS)), whole(AUDIT_COLUMNS, AUDITS)
        )
        | st.tuples(
            whole(DRIFT_COLUMNS, DRIFTS), broken_csv(AUDITS, first_line(AUDIT_COLUMNS))
        )
    ),
    quick=100,
    many=600,
)
def drift_and_audit_logs(kit, case):
    drifts, audits = case
    put(kit.home / "exports" / "audit.csv", audits)
    assert list(utils.read_audit(kit.course)) == list(AUDIT_COLUMNS)
    table = read_drift_log(put(kit.home / "logs" / "drift.csv", drifts))
    assert list(table) == list(DRIFT_COLUMNS) and table["p_value"].dtype == float


# --- drift and synthesis: arrays


def arrays(**values) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **values)
    return buffer.getvalue()


def claiming(shape: tuple, dtype: str = "<f8") -> bytes:
    """An array whose header claims any shape and which holds nothing."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def with_claim(valid: dict, name: str, shape: tuple) -> bytes:
    buffer = io.BytesIO(
        arrays(**{key: value for key, value in valid.items() if key != name})
    )
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(f"{name}.npy", claiming(shape))
    return buffer.getvalue()


ODD_ARRAYS = [
    np.array(None),
    np.zeros(0),
    np.array(["x"]),
    np.array(np.nan),
    np.zeros((2, 0)),
    np.zeros((4, 2, 2)),
    np.full((4, 2), np.nan),
    np.full((4, 2), np.inf),
    np.zeros(4, complex),
    np.array([b"x"] * 4),
    np.zeros(4, "M8[s]"),
    np.array([{}] * 4),
    np.zeros(4, [("a", "f4")]),
]
ANSWERS = {"probabilities": np.full((4, 2), 0.5), "labels": np.array([0, 1, 0, 1])}


def broken_arrays(valid: dict):
    """Arrays of other kinds and shapes, missing ones, or a broken file."""
    other = st.tuples(
        st.sampled_from(list(valid)), st.sampled_from([*ODD_ARRAYS, None])
    )

    def change(pairs):
        return arrays(
            **{
                name: array
                for name, array in (valid | dict(pairs)).items()
                if array is not None
            }
        )

    return broken(arrays(**valid)) | st.lists(other, min_size=1, max_size=2).map(change)


def claims(valid: dict) -> list[bytes]:
    return [
        with_claim(valid, name, shape)
        for name in valid
        for shape in ((10**9,), (10**9, 10**9), (4, 10**9), (-1,))
    ]


@reader(
    lambda kit: broken_arrays(ANSWERS),
    quick=80,
    many=450,
    examples=lambda kit: claims(ANSWERS),
)
def stored_answers(kit, case):
    path = put(kit.home / "exports" / "predictions" / "optimized_test.npz", case)
    try:
        probabilities, labels = guards.load_answers(path)
    except ValueError as error:  # what its callers turn into a finding
        raise utils.CourseError(str(error)) from error
    assert probabilities.ndim == 2
    assert len(probabilities) == len(labels)
    assert labels.dtype.kind in "iu"
    assert utils.right_answers(kit.home)["optimised"].dtype == bool
