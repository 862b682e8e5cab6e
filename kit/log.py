"""A CSV file that many processes append to and plain `pandas.read_csv` reads."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import warnings
from datetime import UTC, datetime
from pathlib import Path
from textwrap import shorten

import pandas as pd

from kit.files import CourseError, _plain, clear_disk_errors

# The version stands in the header, as the last column. Its value ends each line, so
# that a line which was cut is never taken for a whole one.
SCHEMA = "schema1"
MOVE = "move the file away, and a new one is started."
MAX_TICKS = 20_000  # of one table; a clock that was set back to 1970 asks for millions


class AppendOnlyCsv:
    """A CSV file that many processes append to; a lock lets in one at a time.

    Parameters
    ----------
    notebook : str
        Who writes the file, for the sentence that it is missing.
    columns : dict
        By name "time" (always there), "float", "Int64" or "str": what `append` takes
        and `read` returns.
    """

    def __init__(self, path: str | Path, notebook: str, columns: dict[str, str]):
        from filelock import FileLock

        self.path, self.notebook, self.columns = Path(path), notebook, columns
        self.lock = FileLock(f"{path}.lock", timeout=10)
        self.header = f"{','.join(columns)},{SCHEMA}\n".encode()

    def append(self, rows) -> None:
        """Add lines, each a dict of values; what a crash left of a line is cut off.

        A missing value is none. Names that are no column go into the column `extra` as
        JSON, where there is one.

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
        texts, others = [], {n: v for n, v in row.items() if n not in self.columns}
        if others and "extra" in self.columns:
            row = row | {"extra": json.dumps(others, default=_plain)}
        for name, kind in self.columns.items():
            value = row.get(name)
            try:
                texts.append(_text(value, kind))
            except (TypeError, ValueError, OverflowError) as error:
                told = f"{self.path.name}: {name} takes no {value!r}, but {kind}."
                raise CourseError(told) from error
        return [*texts, "1"]

    def _cut_torn_line(self, file) -> int:
        self._check(file)
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        if file.read(1) not in (b"", b"\n"):
            file.seek(0)
            end = file.read().rfind(b"\n") + 1
            file.truncate(end)
        return end

    def _check(self, file) -> None:
        file.seek(0)
        found, expected = file.read(len(self.header)), self.header
        if not expected.startswith(found):
            raise CourseError(
                f"{self.path} has another schema (it begins with {found!r}, not with"
                f" {expected!r}): {MOVE}"
            )

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
            self._check(file)
            file.seek(max(start, len(self.header)))
            lines = file.read()
        try:
            # the last line may be in the making
            table = self._typed(lines[: lines.rfind(b"\n") + 1])
        except (TypeError, ValueError, OverflowError, pd.errors.ParserWarning) as error:
            why = shorten(str(error), 120)
            raise CourseError(f"{self.path} is damaged ({why}): {MOVE}") from error
        if run_id is None:
            return table
        return table[table["run_id"] == run_id].reset_index(drop=True)

    def _typed(self, lines: bytes) -> pd.DataFrame:
        kinds = {name: kind for name, kind in self.columns.items() if kind != "time"}
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
    value = value.item() if hasattr(value, "item") else value
    if kind == "time":
        time = pd.Timestamp(value).as_unit("ns")
        time = time.tz_convert("UTC") if time.tz else time.tz_localize("UTC")
        return f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03}Z"
    if value is None or value != value:
        return ""
    if kind == "str":
        return " ".join(str(value).replace("\0", " ").splitlines())
    number = int(value) if kind == "Int64" else float(value)
    if number != value or abs(number) > 2**53:
        raise ValueError(value)
    return str(number) if kind == "Int64" else f"{number:.6g}"


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
