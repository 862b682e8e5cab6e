"""One model in service: one file changes place, and a log says who, when and why."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
from filelock import FileLock

from kit.files import CourseError, atomic, make_parent
from kit.home import Course
from kit.log import AppendOnlyCsv
from kit.serving import verify_onnx

AUDIT_COLUMNS = {
    "timestamp": "time",
    "who": "str",
    "event": "str",
    "model": "str",
    "previous": "str",
    "checks": "str",
    "why": "str",
}


def in_service(course: Course) -> str:
    """Hash of exports/model.onnx, the model that answers now; it must be one of the
    files in exports/models/.
    """
    return verify_onnx(course.exports / "model.onnx")


def read_audit(course: Course) -> pd.DataFrame:
    """The log of promotions, exports/audit.csv, oldest line first: `model` came into
    the place of `previous` ("in service", "rollback") or not ("refused"); `checks` are
    the figures of the gate as JSON.
    """
    file = _log(course)
    return file.read() if file.path.exists() else pd.DataFrame(columns=[*AUDIT_COLUMNS])


def promote(course: Course, stored: Path, report, who: str = "", why: str = "") -> Path:
    """Put a candidate that passed the gate in service; returns exports/model.onnx.

    `report` is the gate's on this very file (`new`) against the model in service now
    (`current`); what it does not accept is refused, and the refusal logged. First a
    line in the audit log, then one rename: killed at any moment, one whole model is in
    place. (On a local disk: Google Drive promises neither the rename nor the lock.)
    """
    with FileLock(make_parent(course.exports / "audit.lock"), timeout=60):
        candidate, current = _hash(course, Path(stored).stem), in_service(course)
        if candidate == current:
            print(f"{candidate} is already in service: nothing to do.")
            return course.exports / "model.onnx"
        line = [candidate, current, json.dumps(report.figures)]
        if reason := _refusal(report, candidate, current):
            _write(course, who, "refused", *line, reason)
            raise CourseError(f"{candidate} is not promoted: {reason}.")
        return _swap(course, who, "in service", *line, why)


def rollback(course: Course, who: str = "", why: str = "") -> Path:
    """Put the model back that served before the current one; a second call goes one
    further back, not forth again, as nobody wants the bad model back.
    """
    with FileLock(make_parent(course.exports / "audit.lock"), timeout=60):
        current, served = in_service(course), []
        for line in read_audit(course).itertuples():
            if line.event == "in service":
                served = [*_until(served, line.previous), line.model]
            elif line.event == "rollback":
                served = _until(served, line.model)
        if not (earlier := _until(served, current)[:-1]):
            raise CourseError(
                f"There is no earlier model to go back to: the audit log names none"
                f" before {current}."
            )
        back = _hash(course, earlier[-1])
        return _swap(course, who, "rollback", back, current, "", why)


def _until(served: list[str], model: str) -> list[str]:
    """What served until `model` did, the last time; a line of the log that no rename
    followed is forgotten so.
    """
    places = [place for place, name in enumerate(served) if name == model]
    return served[: places[-1] + 1] if places else [*served, model]


def _refusal(report, candidate: str, current: str) -> str:
    """Why this report does not allow the swap; empty if it does."""
    if report.new != candidate:
        return f"the report is of {report.new or 'no file'}; run the gate on this one"
    if report.current != current:
        return (
            f"the gate did not compare it with {current}, in service now; run it again"
        )
    return "" if report.accepted else f"{report.verdict} {'; '.join(report.reasons)}"


def _hash(course: Course, name: str) -> str:
    """Hash of a file in exports/models/, whose name it must be."""
    return verify_onnx(course.exports / "models" / f"{name}.onnx")


def _swap(course: Course, who: str, event: str, model: str, *line: str) -> Path:
    path = course.exports / "model.onnx"
    with atomic(path) as temporary:  # renames it at the end
        shutil.copy(course.exports / "models" / f"{model}.onnx", temporary)
        _write(course, who, event, model, *line)
    return path


def _log(course: Course) -> AppendOnlyCsv:
    path = course.exports / "audit.csv"
    return AppendOnlyCsv(path, "theme7_retraining", AUDIT_COLUMNS)


def _write(course: Course, who: str, *line: str) -> None:
    user = who or os.environ.get("USER", "unknown")
    values = [datetime.now(UTC), user, *line]
    _log(course).append([dict(zip(AUDIT_COLUMNS, values, strict=True))])
