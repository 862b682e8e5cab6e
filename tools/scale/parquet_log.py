"""A production log that outgrew memory: what `course.py compact` made of it, asked with
DuckDB.

    log = open_log("logs/production.parquet", run_id=None)
    utils.window_statistics(log), utils.watch(log, manager, baseline),
    utils.error_budget(log)   as with a DataFrame

Only the columns and the stretch of time in question are read; what is in memory at once
does not grow with the log."""

import math
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime
from functools import cached_property
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import utils

# readers of Parquet folders pass over a name with this first letter
MANIFEST = "_manifest.json"
FILE = re.compile(r"day=(\d{4}-\d\d-\d\d)/part-\d{15}\.parquet")
NUMBERS = ("confidence", "latency_ms", "batch", "brightness", "contrast", "sharpness")
IMAGE_STATISTICS = ("brightness", "contrast", "sharpness")
# ns; the ends of what a time in ns can be
DAY, FIRST, LAST = 86_400 * 10**9, -(2**63) + 1, 2**63 - 1
# of a busy day; times 8 bytes, the latencies in memory beside those of one window
ROWS_AT_ONCE = 2_000_000
AGAIN = (
    "bring it back from a copy, or rename {folder} and run `python course.py compact`"
    " again"
)


def library(name: str):
    """duckdb or pyarrow, which nothing else in the kit needs."""
    try:
        return import_module(name)
    except ImportError as error:
        raise utils.CourseError(
            f"Logs in Parquet need duckdb and pyarrow ({name} is missing): run `make"
            " scale`, then use .venv-scale/bin/python in the place of python."
        ) from error


def schema():
    """Columns of every file: those of `read_log`, times in UTC without saying so, and
    `row`, the place in the log.
    """
    pa = library("pyarrow")
    types = dict.fromkeys(NUMBERS, pa.float64()) | {
        "timestamp": pa.timestamp("ns"),
        "pred_class": pa.int64(),
    }
    columns = [(name, types.get(name, pa.string())) for name in utils.LOG_COLUMNS]
    return pa.schema([("row", pa.int64()), *columns])


def read_manifest(folder: Path) -> dict:
    """What a compacted log holds: `files` with their rows and bytes, and how far the
    CSV has been taken.

    Raises
    ------
    CourseError
        The folder is no compacted log, or its manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise utils.CourseError(
            f"{folder} is no compacted log (it has no {MANIFEST}): run `python"
            " course.py compact`, which makes one from logs/production.csv."
        )
    try:
        manifest = utils.read_json(path, precious=True)
        numbers = [manifest[name] for name in ("position", "lines", "torn", "rows")]
        numbers += [
            file[name]
            for file in manifest["files"].values()
            for name in ("rows", "bytes")
        ]
        whole = all(type(number) is int and number >= 0 for number in numbers)
        whole &= manifest["schema"] == 1 and all(
            type(manifest[name]) is str for name in ("begins", "ends")
        )
        whole &= manifest["rows"] == sum(
            file["rows"] for file in manifest["files"].values()
        )
        for name in manifest["files"]:
            _day(name)  # an error where it names no day
    except (utils.CourseError, KeyError, TypeError, AttributeError, ValueError):
        whole = False
    if not whole:
        raise utils.CourseError(f"{path} is damaged: {AGAIN.format(folder=folder)}.")
    return manifest


def check_files(folder: Path, manifest: dict) -> None:
    """Compare the files with the manifest, by their footers: nothing missing, cut, or
    of another schema.

    Raises
    ------
    CourseError
        Names the first file that is not as it was written, and how many requests it
        held.
    """
    parquet, expected = library("pyarrow.parquet"), schema()
    missing = [name for name in manifest["files"] if not (folder / name).exists()]
    for name in missing or manifest["files"]:
        path, written = folder / name, manifest["files"][name]
        wrong = f"is missing ({len(missing)} of {len(manifest['files'])} files are)"
        if not missing:
            wrong = _difference(path, written, parquet, expected)
        if wrong:
            raise utils.CourseError(
                f"{path}, {written['rows']:,} requests, {wrong}:"
                f" {AGAIN.format(folder=folder)}."
            )


def _difference(path: Path, written: dict, parquet, expected) -> str:
    try:
        with parquet.ParquetFile(path) as file:
            found, rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, ValueError) as error:  # Arrow's errors are of both kinds
        return f"is damaged ({str(error).splitlines()[0]})"
    if not found.equals(expected):
        columns = {field.name: str(field.type) for field in found}
        odd = [
            f"{field.name} is {columns.get(field.name, 'missing')} and not {field.type}"
            for field in expected
            if columns.get(field.name) != str(field.type)
        ]
        return f"has another schema ({', '.join(odd) or 'other columns than a log'})"
    if rows != written["rows"] or path.stat().st_size != written["bytes"]:
        return (
            f"is not what was written ({rows:,} requests in {path.stat().st_size:,}"
            " bytes)"
        )
    return ""


def open_log(
    folder: str | Path, run_id: str | None = None, memory: str = "1GB"
) -> "ParquetLog":
    """Open what `course.py compact` made of a log.

    Parameters
    ----------
    run_id : str, optional
        Only the lines of this run, as in `read_log`.
    memory : str
        What DuckDB may use before it writes to disk, e.g. "500MB".

    Raises
    ------
    CourseError
        No compacted log, or a file of it is missing, damaged or of another schema;
        duckdb or pyarrow are not there.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return ParquetLog(folder, manifest, run_id, memory)


class ParquetLog:
    """A log in Parquet in the place of the DataFrame of `read_log`: theme 5's functions
    take either.

    Counts and percentiles are those of the DataFrame to the last digit, means and
    deviations to 1e-9: their sums are taken in another order. Lines that are appended
    to the CSV later are seen by the next `compact` and `open_log`."""

    def __init__(
        self,
        folder: Path,
        manifest: dict,
        run_id: str | None = None,
        memory: str = "1GB",
    ):
        self.folder, self.files, self.run_id = folder, manifest["files"], run_id
        self._spill = tempfile.TemporaryDirectory()
        self._database = library("duckdb").connect(
            config={
                "threads": torch.get_num_threads(),
                "memory_limit": memory,
                "temp_directory": self._spill.name,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            }
        )

    def __len__(self) -> int:
        return self._span[2]

    @cached_property
    def _span(self) -> tuple[pd.Timestamp, pd.Timestamp, int]:
        """First and last time, and how many requests."""
        told = "SELECT epoch_ns(min(timestamp)), epoch_ns(max(timestamp)), count(*)"
        first, last, requests = (
            self._ask(f"{told} FROM log").iloc[0] if self.files else (None, None, 0)
        )
        if not requests:
            return pd.NaT, pd.NaT, 0
        return (
            pd.Timestamp(int(first), tz="UTC"),
            pd.Timestamp(int(last), tz="UTC"),
            int(requests),
        )

    def _ask(
        self,
        question: str,
        since: int | None = None,
        until: int | None = None,
        **values,
    ) -> pd.DataFrame:
        """Answer of DuckDB about the view `log`: the lines of this run with since <
        time <= until, in ns since 1970.
        """
        files = [
            str(self.folder / name)
            for name in self.files
            if _meets(_day(name), since, until)
        ]
        if not files:
            return pd.DataFrame()
        values |= {"since": since, "until": until, "run_id": self.run_id}
        given = {
            "since": "timestamp > make_timestamp_ns($since)",
            "until": "timestamp <= make_timestamp_ns($until)",
            "run_id": "run_id = $run_id",
        }
        where = " AND ".join(given[name] for name in given if values[name] is not None)
        log = (
            "SELECT * FROM read_parquet($files, hive_partitioning = false)"
            f" {where and 'WHERE '}{where}"
        )
        values = {
            name: value for name, value in values.items() if value is not None
        } | {"files": files}
        duckdb = library("duckdb")
        try:
            return self._database.execute(
                f"WITH log AS ({log}) {question}", values
            ).df()
        except duckdb.OutOfMemoryException as error:
            raise utils.CourseError(
                f"{self.folder} needs more memory than DuckDB may use here: open it"
                " again with a larger one, as open_log(..., memory='4GB')."
            ) from error
        except duckdb.Error as error:
            raise utils.CourseError(
                f"{self.folder} could not be read ({str(error).splitlines()[0]}): "
                f"{AGAIN.format(folder=self.folder)}."
            ) from error

    def _stretches(self) -> Iterator[tuple[int, int]]:
        """Consecutive (since, until] that cover the log: days, and parts of those with
        more than ROWS_AT_ONCE lines.
        """
        days = Counter()
        for name, file in self.files.items():
            days[_day(name)] += file["rows"]
        for day in sorted(days):
            parts = math.ceil(days[day] / ROWS_AT_ONCE) or 1
            edges = [day + DAY * part // parts - 1 for part in range(parts + 1)]
            yield from (
                (max(since, FIRST), min(until, LAST))
                for since, until in zip(edges, edges[1:], strict=False)
            )

    def to_pandas(
        self, since: datetime | None = None, until: datetime | None = None
    ) -> pd.DataFrame:
        """The DataFrame of `read_log`, or its lines with since < timestamp <= until:
        for a closer look at an hour.
        """
        bounds = [None if time is None else _ns(time) for time in (since, until)]
        log = self._ask(
            f"SELECT {', '.join(utils.LOG_COLUMNS)} FROM log ORDER BY row", *bounds
        )
        if log.empty:
            return utils.typed_log([])
        texts = [
            name for name in log if name not in (*NUMBERS, "timestamp", "pred_class")
        ]
        log = log.astype(
            dict.fromkeys(texts, object) | {"status": str, "pred_class": "Int64"}
        )
        log["timestamp"] = log["timestamp"].dt.as_unit("ns").dt.tz_localize("UTC")
        return log

    # What theme 5 asks

    def monitoring_baseline(self) -> dict[str, dict[str, float]]:
        """See `utils.monitoring_baseline`."""
        classes = self._ask(
            "SELECT DISTINCT pred_class FROM log WHERE status = 'ok' ORDER BY 1"
        )
        quantities = _quantities(classes["pred_class"] if len(classes) else ())
        told = ", ".join(
            f"favg({sql}), stddev_samp({sql})" for sql in quantities.values()
        )
        row = self._ask(f"SELECT count(*), {told} FROM log WHERE status = 'ok'")
        n, *values = row.iloc[0].tolist() if len(row) else [0]
        utils.check_baseline(int(n))
        pairs = zip(quantities, values[::2], values[1::2], strict=True)
        return {
            name: {"mean": float(mean), "std": float(std), "n": int(n)}
            for name, mean, std in pairs
        }

    def window_statistics(
        self, minutes=30, every=10, baseline: dict | None = None, until=None
    ) -> pd.DataFrame:
        """See `utils.window_statistics`.

        Windows overlap, so time is cut into slots that each window is made of, and each
        line is read once: counts, means and deviations of slots are merged (Chan, Golub
        and LeVeque, 1983); for percentiles, which cannot be merged, the latencies of
        one window are kept.
        """
        first, last, requests = self._span
        if not requests:
            raise utils.CourseError(utils.NO_LINES)
        start, ticks = utils.window_ticks(first, last, every, until)
        width = math.gcd(minutes, every)
        names = [
            name.removeprefix("share_")
            for name in baseline or ()
            if name.startswith("share_")
        ]
        pending, slots, known, rows = (
            self._slots(start, width, _quantities(names)),
            defaultdict(list),
            FIRST,
            [],
        )
        for tick in ticks:
            while known < tick.value and (more := next(pending, None)):
                known, parts = more
                for slot, part in parts:
                    slots[slot].append(part)
            newest = (tick - start) // pd.Timedelta(minutes=width)
            for slot in [slot for slot in slots if slot <= newest - minutes // width]:
                del slots[slot]
            inside = [
                part
                for slot, parts in slots.items()
                if slot <= newest
                for part in parts
            ]
            rows.append(
                utils.window_row(
                    tick, start, minutes, *_merge(inside, _quantities(names)), baseline
                )
            )
        return utils.window_table(rows)

    def _slots(
        self, start: pd.Timestamp, width: int, quantities: dict[str, str]
    ) -> Iterator[tuple[int, list]]:
        """After each stretch: up to when the log is known now, and (number, part) of
        its slots of `width` minutes.

        Slot s is (start + (s - 1) width, start + s width]; one on the border of two
        stretches comes in two parts. A part: requests, latencies of the answered, and
        n, sum and sum of squared deviations of each quantity."""
        told = ", ".join(
            f"count({sql}) FILTER (ok), fsum({sql}) FILTER (ok), (var_pop({sql}) FILTER"
            f" (ok)) * count({sql}) FILTER (ok)"
            for sql in quantities.values()
        )
        question = f"""
            SELECT slot, count(*), list(coalesce(latency_ms, 'nan'::DOUBLE)) FILTER (ok), {told}
            FROM (SELECT *, status = 'ok' AS ok, (epoch_ns(timestamp) - $start + $width - 1) // $width AS slot FROM log)
            GROUP BY slot"""
        for since, until in self._stretches():
            found = self._ask(
                question, since, until, start=start.value, width=width * 60 * 10**9
            )
            columns = [
                found.iloc[:, column].to_numpy() for column in range(found.shape[1])
            ]
            sums = np.stack(columns[3:], axis=1).astype(float) if len(found) else []
            parts = []
            for i in range(len(found)):
                latency = (
                    columns[2][i]
                    if isinstance(columns[2][i], np.ndarray)
                    else np.empty(0)
                )
                parts.append(
                    (
                        int(columns[0][i]),
                        (
                            int(columns[1][i]),
                            latency,
                            np.nan_to_num(sums[i].reshape(-1, 3)),
                        ),
                    )
                )
            yield until, parts

    def bad_requests(self, limit_ms: float) -> int:
        """How many requests failed, or took longer than the limit, in ms."""
        good = "status = 'ok' AND coalesce(latency_ms <= $limit, false)"
        return int(
            self._ask(
                f"SELECT count(*) FILTER (NOT ({good})) FROM log", limit=float(limit_ms)
            ).iloc[0, 0]
        )

    # What theme 6 asks

    def drift_windows(self, requests: int) -> Iterator[pd.DataFrame]:
        """Image statistics of `requests` consecutive answered requests at a time, for
        `utils.ks_test`.

        Yields
        ------
        DataFrame (requests, 3): brightness, contrast and sharpness, in grey levels, by
        time
            Lines without an image are left out, and so are the last ones where they
            fill no window.
        """
        if requests < 1:
            raise utils.CourseError(
                f"A window of {requests} requests holds nothing: give 1 or more."
            )
        names = ", ".join(IMAGE_STATISTICS)
        whole = (
            "status = 'ok' AND"
            f" {' AND '.join(f'{name} IS NOT NULL' for name in IMAGE_STATISTICS)}"
        )
        left = pd.DataFrame()
        for stretch in self._stretches():
            found = self._ask(
                f"SELECT timestamp, {names} FROM log WHERE {whole} ORDER BY"
                " timestamp, row",
                *stretch,
            )
            if found.empty:
                continue
            found["timestamp"] = (
                found["timestamp"].dt.as_unit("ns").dt.tz_localize("UTC")
            )
            left = pd.concat([left, found.set_index("timestamp")])
            for _ in range(len(left) // requests):
                yield left.iloc[:requests]
                left = left.iloc[requests:]


def _quantities(classes=()) -> dict[str, str]:
    """In SQL, what `utils` takes the means of in answered requests; `classes` are those
    whose shares are asked for.
    """
    low, blank = (
        f"confidence < {utils.LOW_CONFIDENCE}",
        f"contrast < {utils.BLANK_CONTRAST}",
    )
    columns = {name: name for name in ("confidence", "latency_ms", *IMAGE_STATISTICS)}
    conditions = {
        "positive_share": "pred_class <> 0",
        "low_confidence_share": low,
        "blank_share": blank,
    }
    conditions |= {
        f"share_{int(number)}": f"pred_class = {int(number)}" for number in classes
    }
    return columns | {
        name: f"coalesce({sql}, false)::DOUBLE" for name, sql in conditions.items()
    }


def _merge(parts: list, quantities: dict[str, str]):
    """Requests, latencies, means and standard deviations of the union of `parts`, as
    `utils.window_row` wants them.
    """
    requests = sum(part[0] for part in parts)
    latency = np.concatenate([np.empty(0), *(part[1] for part in parts)])
    n, sums, squares = np.stack(
        [np.zeros((len(quantities), 3)), *(part[2] for part in parts)]
    ).transpose(2, 0, 1)
    with np.errstate(divide="ignore", invalid="ignore"):  # means of nothing are NaN
        means = sums.sum(axis=0) / n.sum(axis=0)
        between = np.nansum(n * (sums / n - means) ** 2, axis=0)
        spread = np.sqrt((squares.sum(axis=0) + between) / (n.sum(axis=0) - 1))
    return (
        requests,
        latency,
        dict(zip(quantities, means.tolist(), strict=True)),
        dict(zip(quantities, spread.tolist(), strict=True)),
    )


def _ns(time: datetime) -> int:
    time = pd.Timestamp(time)
    return (time if time.tz else time.tz_localize("UTC")).value


def _day(name: str) -> int:
    """Midnight of the day of a file, in ns since 1970; of the oldest, that is before
    what 64 bits can hold.
    """
    return int(np.datetime64(FILE.fullmatch(name)[1], "D").astype(int)) * DAY


def _meets(day: int, since: int | None, until: int | None) -> bool:
    return (since is None or since < day + DAY - 1) and (until is None or until >= day)
