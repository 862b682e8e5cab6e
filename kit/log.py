"""A CSV file that many processes append to and plain `pandas.read_csv` reads."""

from __future__ import annotations

import codecs
import csv
import errno
import io
import json
import os
import warnings
from datetime import UTC, datetime
from pathlib import Path
from textwrap import shorten

import numpy as np
import pandas as pd

from kit.files import CourseError, _plain, clear_disk_errors

# The version stands in the header, as the last column. Its value ends each line, so
# that a line which was cut is never taken for a whole one.
SCHEMA = "schema1"
MOVE = "move the file away, and a new one is started."
# What a column takes, in words, and what `read` makes of it.
KINDS = {
    "time": ("a datetime, or a time in ISO form", None),
    "float": ("a finite number", "float"),
    "share": ("a number of 0 to 1", "float"),
    "Int64": ("a whole number", "Int64"),
    "str": ("text", "str"),
    "status": ('"ok", or the name of an error', "str"),
}
MAX_TICKS = 20_000  # of one table; a clock that was set back to 1970 asks for millions


class AppendOnlyCsv:
    """A CSV file that many processes append to; a lock lets in one at a time.

    Parameters
    ----------
    notebook : str
        Who writes the file, for the sentence that it is missing.
    columns : dict
        By name a key of KINDS: what `append` takes and `read` returns.
    """

    def __init__(self, path: str | Path, notebook: str, columns: dict[str, str]):
        from filelock import FileLock

        self.path, self.notebook, self.columns = Path(path), notebook, columns
        self.lock = FileLock(f"{path}.lock", timeout=10)
        self.header = f"{','.join(columns)},{SCHEMA}\n".encode()

    def append(self, rows) -> None:
        """Add lines, each a dict of values; what a crash left of a line is cut off.

        A missing value is none. Names that are no column go into the column `extra` as
        JSON, where there is one, beside what `extra` itself says.

        Raises
        ------
        CourseError
            A value that its column does not take, a file of another schema, no
            permission, a full disk. The lines written before are untouched.
        """
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(map(self._texts, rows))
        lines = text.getvalue().encode(errors="backslashreplace")
        with clear_disk_errors(self.path, "The lines written before are all there."):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.lock, open(self.path, "a+b", buffering=0) as file:
                end = self._cut_torn_line(file)
                lines = lines if end else self.header + lines
                if lines and os.write(file.fileno(), lines) < len(lines):
                    file.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _texts(self, row: dict) -> list[str]:
        texts = {}
        for name, kind in self.columns.items():
            value = row.get(name)
            try:
                value = self._others(row) if name == "extra" else value
                texts[name] = _text(value, kind)
            except (TypeError, ValueError, OverflowError, RuntimeError) as error:
                raise CourseError(
                    f"{self.path.name}: {name} takes {KINDS[kind][0]}, not"
                    f" {shorten(repr(value), 80)}; no line was written."
                ) from error
        answer = [name for name in ("pred_class", "confidence") if name in texts]
        none = [n for n in answer if not texts[n] and row.get(n) is not None]
        if none and texts.get("status") == "ok":  # NaN is no answer
            texts |= dict.fromkeys(answer, "") | {"status": "nan"}
        return [*texts.values(), "1"]

    def _others(self, row: dict) -> str | None:
        """What is no column, as JSON; a dict given as `extra`, as Python's own logging
        has it, is part of it.
        """
        others = {n: v for n, v in row.items() if n not in self.columns}
        extra = row.get("extra")
        if isinstance(extra, dict):
            others = extra | others
        elif extra is not None:
            others["extra"] = extra
        return json.dumps(others, default=_plain) if others else None

    def _cut_torn_line(self, file) -> int:
        self._check(file)
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        if file.read(1) not in (b"", b"\n"):
            file.seek(0)
            end = file.read().rfind(b"\n") + 1
            file.truncate(end)
        return end

    def _check(self, file) -> int:
        """Length of the first line, which an editor may have saved with other line ends
        or quotes.
        """
        file.seek(0)
        found, expected = file.readline(2 * len(self.header)), self.header
        plain = found.removeprefix(codecs.BOM_UTF8).replace(b'"', b"")
        plain = plain.replace(b"\r\n", b"\n")
        if not expected.startswith(plain):
            why = f"it begins with {found!r}, not with {expected!r}"
            commas = found.translate(bytes.maketrans(b";\t", b",,"))
            if commas != found and commas.strip() in expected:
                why = "a spreadsheet has saved it without commas, and its numbers anew"
            raise CourseError(f"{self.path} has another schema ({why}): {MOVE}")
        return len(found)

    def read(self, run_id: str | None = None, start: int = 0) -> pd.DataFrame:
        """The whole lines from byte `start` on, of one run or of all.

        Raises
        ------
        CourseError
            No such file, another schema, a line that something else has damaged.
        """
        if not self.path.exists():
            raise CourseError(
                f"{self.path} is missing: run notebooks/{self.notebook}.ipynb, which"
                " writes it."
            )
        with open(self.path, "rb") as file:
            file.seek(max(start, self._check(file)))
            lines = file.read()
        try:
            # the last line may be in the making
            table = self._typed(lines[: lines.rfind(b"\n") + 1])
        except (TypeError, ValueError, OverflowError, pd.errors.ParserWarning) as error:
            why = shorten(str(error), 120)
            raise CourseError(f"{self.path} is damaged ({why}): {MOVE}") from error
        if run_id is None:
            return table
        return table[table["run_id"] == _text(run_id, "str")].reset_index(drop=True)

    def _typed(self, lines: bytes) -> pd.DataFrame:
        kinds = {name: KINDS[kind][1] for name, kind in self.columns.items()}
        kinds = {name: kind for name, kind in kinds.items() if kind}
        with warnings.catch_warnings():
            # pandas would leave out what a line has too much, and go on
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.BytesIO(self.header + lines),
                dtype=kinds | {SCHEMA: int},
                keep_default_na=False,
                na_values={name: [""] for name, kind in kinds.items() if kind != "str"},
                index_col=False,
            )
        for name in self.columns.keys() - kinds.keys():
            times = pd.to_datetime(table[name], utc=True, format="ISO8601")
            if times.isna().any():
                raise ValueError(f"a {name} is missing")
            table[name] = times.dt.as_unit("ns")
        return table.drop(columns=SCHEMA)


def _text(value, kind: str) -> str:
    """A value as it stands in a file, nothing for None and NaN; raises where it is none
    of its kind.
    """
    if kind == "time":
        return _time(value)
    value = value.item() if hasattr(value, "item") else value
    missing = value is None or value is pd.NA or value != value
    if kind in ("str", "status"):
        text = "" if missing else str(value)
        text = " ".join(text.replace("\0", " ").splitlines())
        # a name that is no UTF-8 is kept as it can be written
        text = text.encode(errors="backslashreplace").decode()
        if kind == "status" and not text.strip():
            raise ValueError(value)  # the reader would count it as an error
        return "ok" if kind == "status" and text.strip().lower() == "ok" else text
    if missing:
        return ""
    number = int(value) if kind == "Int64" else float(value)
    if number != value or abs(number) > 2**53:
        raise ValueError(value)
    # rounding may put a probability a little above 1
    if kind == "share" and not -1e-3 <= number <= 1.001:
        raise ValueError(value)
    return str(number) if kind == "Int64" else f"{number:.6g}"


def _time(value) -> str:
    """A time in UTC, to the millisecond; raises for a number, whose unit nobody knows,
    and for other ways to write a date, whose month nobody knows.
    """
    if isinstance(value, (int, float, np.number)):
        raise TypeError(value)
    value = datetime.fromisoformat(value) if isinstance(value, str) else value
    time = pd.Timestamp(value).as_unit("ns")
    if time is pd.NaT:
        raise ValueError(value)
    time = time.tz_convert("UTC") if time.tz else time.tz_localize("UTC")
    return f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03}Z"


def new_run_id() -> str:
    """Name of one run of a service: when it began, and six digits that tell two of the
    same second apart.
    """
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.urandom(3).hex()}"


def rows_of(columns: dict, n: int) -> list[dict]:
    """N lines, from columns that hold one value for all, or n."""
    lists = {}
    for name, value in columns.items():
        many = isinstance(value, (list, tuple)) or getattr(value, "ndim", 0)
        lists[name] = list(value) if many else [value] * n
        if len(lists[name]) != n:
            raise CourseError(
                f"{name} has {len(value)} values for {n} predictions: give one for"
                " each."
            )
    return [{name: lists[name][i] for name in lists} for i in range(n)]


def ticks_of(times: pd.DatetimeIndex, every: int, until: datetime | None = None):
    """Start of the step (minutes) of the first line, and the ticks from its end to
    `until` or the last line.
    """
    step, end = pd.Timedelta(minutes=every), pd.Timestamp(until or times[-1])
    # a Timedelta holds 292 years at most
    if end.timestamp() - times[0].timestamp() > MAX_TICKS * step.total_seconds():
        raise CourseError(
            f"The log goes from {times[0]:%Y-%m-%d} to {end:%Y-%m-%d}, more than"
            f" {MAX_TICKS:,} steps of {every} minutes: choose one run_id, or a larger"
            " `every`."
        )
    first = times[0].floor(step) + step
    return first - step, pd.date_range(first, max(end.ceil(step), first), freq=step)
