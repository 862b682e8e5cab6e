"""An append-only CSV that many processes write to."""

from __future__ import annotations

import errno
import io
import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from kit.files import CourseError, clear_disk_errors

LOG_COLUMNS = (
    "timestamp",
    "run_id",
    "model",
    "image",
    "pred_class",
    "confidence",
    "latency_ms",
    "batch",
    "brightness",
    "contrast",
    "sharpness",
    "status",
    "extra",
)
ALERT_COLUMNS = (
    "timestamp",
    "run_id",
    "rule",
    "severity",
    "event",
    "metric",
    "value",
    "threshold",
    "runbook",
)
TORN = "\0"  # ends a line that was cut: no value holds it


class AppendOnlyCsv:
    """A CSV file that many processes append to and that no crash shortens.

    The file is opened with O_APPEND and every call is one `write`: on a local disk the
    system puts it whole at the end, so lines of two writers never mix. A line torn by a
    crash or a full disk has no end; the next write closes it with a mark, so that no
    reader takes it for a whole one, and begins a new line.
    The first line names the schema, and a file of another schema is refused rather than
    mixed.
    """

    def __init__(self, path: str | Path, kind: str, columns: tuple[str, ...]):
        self.path, self.columns = Path(path), columns
        self.header = f"# {kind} log, schema 1\n{','.join(columns)}\n".encode()

    def append(self, rows: list[list]) -> None:
        """Add whole lines, in one write.

        Raises
        ------
        CourseError
            No permission, disk full, a write cut short, a file of another schema; what
            stood there is untouched.
        """
        import csv

        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [[_text(value) for value in row] for row in rows]
        )
        with clear_disk_errors(
            self.path, kept="The lines written before are all there."
        ):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                self._begin(file)
                os.lseek(file, -1, os.SEEK_END)
                torn = os.read(file, 1) != b"\n"
                self._write(
                    file,
                    (f"{TORN}\n" * (torn and bool(rows)) + text.getvalue()).encode(),
                )
            finally:
                os.close(file)

    def _write(self, file: int, lines: bytes) -> None:
        if os.write(file, lines) < len(lines):
            raise OSError(errno.ENOSPC, "only a part of the last line was written")

    def _begin(self, file: int) -> None:
        """Write the header, or what a crash left out of it; one process at a time."""
        if self._missing_header(os.read(file, len(self.header))):
            from filelock import FileLock

            with FileLock(f"{self.path}.lock", timeout=10):
                os.lseek(file, 0, os.SEEK_SET)
                self._write(file, self._missing_header(os.read(file, len(self.header))))

    def _missing_header(self, found: bytes) -> bytes:
        if not self.header.startswith(found):
            raise CourseError(
                f"{self.path} has another schema (its first line is"
                f" {found.splitlines()[0].decode(errors='replace')!r}, expected"
                f" {self.header.splitlines()[0].decode()!r}): move the file away, and a"
                " new one is started."
            )
        return self.header[len(found) :]

    def check(self) -> None:
        """Raise a CourseError where there is no such file, or one of another schema."""
        if not self.path.exists():
            writer = (
                "theme6_drift_detection"
                if self.header.startswith(b"# drift")
                else "theme5_monitoring"
            )
            raise CourseError(
                f"{self.path} is missing: run notebooks/{writer}.ipynb, which"
                " writes it."
            )
        with open(self.path, "rb") as file:
            self._missing_header(file.read(len(self.header)))

    def read(self) -> tuple[list[list[str]], int]:
        """Fields of all whole lines, and how many lines were torn."""
        self.check()
        return self.split(self.path.read_bytes()[len(self.header) :])

    def split(self, content: bytes) -> tuple[list[list[str]], int]:
        """Fields of all whole lines of a stretch of the file, and how many lines were
        torn.
        """
        *lines, rest = content.decode(errors="replace").split("\n")
        # Line by line: within one file, an open quote in a torn line would swallow the
        # lines after it.
        fields = [self._fields(line) for line in lines if not line.endswith(TORN)]
        whole = [row for row in fields if len(row) == len(self.columns)]
        # A mark alone: a writer looked while another was in the middle of its line,
        # which is whole.
        return whole, sum(line not in ("", TORN) for line in [*lines, rest]) - len(
            whole
        )

    @staticmethod
    def _fields(line: str) -> list[str]:
        import csv

        try:
            return next(csv.reader([line]), [])
        except csv.Error:  # longer than any line of a log
            return []


def _times(texts: pd.Series) -> pd.Series:
    """UTC times of a log; NaT for a text that is none, or lies outside of what
    nanoseconds can count (1678 to 2261).
    """
    times = pd.to_datetime(texts, utc=True, errors="coerce", format="ISO8601")
    within = times.between(
        pd.Timestamp.min.tz_localize("UTC"), pd.Timestamp.max.tz_localize("UTC")
    )
    return times.where(within).dt.as_unit("ns")


def _text(value) -> str:
    """A value as it stands in a log: UTC times with milliseconds, six digits, no line
    breaks, nothing for NaN.
    """
    value = value.item() if hasattr(value, "item") else value
    if (
        value is None
        or value is pd.NaT
        or (isinstance(value, float) and math.isnan(value))
    ):
        return ""
    if isinstance(value, datetime):
        value = value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC)
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return (
        f"{value:.6g}"
        if isinstance(value, float)
        else " ".join(str(value).replace(TORN, " ").splitlines())
    )


def new_run_id() -> str:
    """Name of one run of a service: when it began, and six digits that tell two of the
    same second apart.
    """
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.urandom(3).hex()}"


def read_log(path: str | Path, run_id: str | None = None) -> pd.DataFrame:
    """Read an inference log; lines that a crash has torn are left out, and counted in
    one printed sentence.

    Returns
    -------
    DataFrame with the columns of LOG_COLUMNS
        timestamp as UTC, pred_class as Int64 (missing where the request failed),
        numbers as float, the rest as text.

    Raises
    ------
    CourseError
        No such file, or another schema.
    """
    rows, torn = AppendOnlyCsv(path, "inference", LOG_COLUMNS).read()
    log = typed_log(rows)
    if torn + len(rows) - len(log):
        print(torn_lines(path, torn + len(rows) - len(log), torn + len(rows)))
    return log[(log["run_id"] == run_id) | (run_id is None)].reset_index(drop=True)


def torn_lines(path: str | Path, torn: int, lines: int) -> str:
    return (
        f"{Path(path).name}: {torn} of {lines} lines are torn (by a crash) and left"
        " out."
    )


def typed_log(rows: list[list[str]]) -> pd.DataFrame:
    """The table of `read_log` from the fields of its lines, less those in which a value
    is none of its column.
    """
    log = pd.DataFrame(rows, columns=list(LOG_COLUMNS), dtype=object)
    names = [
        "pred_class",
        "confidence",
        "latency_ms",
        "batch",
        "brightness",
        "contrast",
        "sharpness",
    ]
    numbers = log[names].apply(pd.to_numeric, errors="coerce").astype(float)
    # no reading of anything; a class number above it fits no integer
    numbers = numbers.where(numbers.abs() < 1e15)
    bad = (
        (numbers.isna() & log[names].ne("")).any(axis=1)
        | log["status"].eq("")
        | ~log["extra"].map(_is_json)
    )
    log["timestamp"] = _times(log["timestamp"])
    log[names] = numbers
    log["pred_class"] = numbers["pred_class"].round().astype("Int64")
    log["status"] = log["status"].astype(str)
    bad |= log["timestamp"].isna() | (log["status"].eq("ok") & log["pred_class"].isna())
    return log[~bad].reset_index(drop=True)


def _is_json(text: str) -> bool:
    try:
        return not text or bool(json.loads(text))
    except (ValueError, RecursionError):
        return False
