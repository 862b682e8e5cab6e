"""A production log as Parquet files, a folder a day, for logs that outgrow memory.

The CSV stays as it is; run the command again whenever there is more in it, also while
the service writes. `windows` of this module are those of theme 5.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import utils
from kit.files import clear_disk_errors, locked
from tools.shared import options as common

KINDS = {"time": "TIMESTAMP", "str": "VARCHAR", "Int64": "BIGINT", "float": "DOUBLE"}
KINDS |= {"status": "VARCHAR", "share": "DOUBLE"}
TYPES = {name: KINDS[kind] for name, kind in utils.LOG_COLUMNS.items()}
AT_ONCE, MEMORY = 36, "500MB"  # windows of one question, and room for them

# Of the last line, the half that a crash left is no line.
COMPACT = f"""
COPY (
    SELECT {", ".join(TYPES)}, timestamp::DATE AS day
    FROM read_csv($csv, columns = {TYPES | {"schema": "INTEGER"}}, header = false,
                  skip = 1, delim = ',', quote = '"', escape = '"',
                  auto_detect = false, ignore_errors = true)
) TO $folder (FORMAT parquet, PARTITION_BY (day))"""

# Trailing windows (tick - minutes, tick]
WINDOWS = f"""
SELECT tick AS timestamp,
       count(lines.timestamp) AS requests,
       requests / least(epoch($minutes), epoch(tick - $start)) * 60 AS throughput,
       1 - avg(ok::INT) AS error_rate,
       quantile_cont(latency_ms, 0.50) FILTER (ok) AS latency_p50,
       quantile_cont(latency_ms, 0.95) FILTER (ok) AS latency_p95,
       quantile_cont(latency_ms, 0.99) FILTER (ok) AS latency_p99,
       avg(confidence) FILTER (ok) AS confidence,
       avg((confidence < {utils.LOW_CONFIDENCE})::INT) FILTER (ok)
           AS low_confidence_share,
       avg((pred_class <> 0)::INT) FILTER (ok) AS positive_share,
       avg((contrast < {utils.BLANK_CONTRAST})::INT) FILTER (ok) AS blank_share,
       avg(brightness) FILTER (ok) AS brightness,
       avg(contrast) FILTER (ok) AS contrast,
       avg(sharpness) FILTER (ok) AS sharpness
FROM unnest(generate_series($first, $last, $every)) AS ticks(tick)
LEFT JOIN (
    SELECT *, status = 'ok' AS ok FROM read_parquet($files)
    WHERE day BETWEEN ($first - $minutes)::DATE AND $last::DATE
) AS lines ON lines.timestamp > tick - $minutes AND lines.timestamp <= tick
GROUP BY tick ORDER BY tick"""


def connect():
    """A database in memory that writes to disk what does not fit."""
    try:
        import duckdb
    except ImportError as error:
        raise utils.CourseError(
            "Logs in Parquet need duckdb: run `make scale`, then use"
            " .venv-scale/bin/python in the place of python."
        ) from error
    spill = {"memory_limit": MEMORY, "temp_directory": tempfile.gettempdir()}
    threads = {"threads": utils.torch.get_num_threads()}
    config = spill | threads | {"preserve_insertion_order": False}
    database = duckdb.connect(config=config)
    database.execute("SET enable_progress_bar = false")
    return database


def compact(csv: str | Path, folder: str | Path) -> int:
    """Write an inference log as `folder`/day=…/*.parquet; returns its requests.

    The new folder is made beside the old one and takes its name once it is whole: a
    kill leaves the one or the other.

    Raises
    ------
    CourseError
        No such CSV, or of another schema; a folder of something else; a full disk.
    """
    csv, folder = Path(csv), Path(folder)
    log = utils.AppendOnlyCsv(csv, "theme5_monitoring", utils.LOG_COLUMNS)
    log.read(start=csv.stat().st_size if csv.exists() else 0)  # looks at the header
    if folder.exists() and any(not path.match("day=*") for path in folder.iterdir()):
        raise utils.CourseError(
            f"{folder} holds something else than a compacted log: give another folder"
            " with --output."
        )
    new, old = _beside(folder, ".new"), _beside(folder, ".old")
    with (
        locked(_beside(folder, ".lock"), folder.name),
        clear_disk_errors(folder),
    ):
        shutil.rmtree(new, ignore_errors=True)
        asked = {"csv": str(csv), "folder": str(new)}
        (rows,) = connect().execute(COMPACT, asked).fetchone()
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    return rows


def windows(source: str | Path, minutes: int = 30, every: int = 10) -> pd.DataFrame:
    """`utils.window_statistics` of a log that need not fit into memory, but for the
    deviations from a baseline.

    Parameters
    ----------
    source : path
        The folder that `compact` made, or the CSV itself.
    """
    source = Path(source)
    if source.is_file():
        with tempfile.TemporaryDirectory() as folder:
            compact(source, Path(folder) / "log")
            return windows(Path(folder) / "log", minutes, every)
    if not source.exists():  # a kill came between the two renames
        source = _beside(source, ".old")
    database, files = connect(), str(source / "*" / "*.parquet")
    if not list(source.glob("*/*.parquet")):
        raise utils.CourseError(utils.NO_LINES)
    span = "SELECT min(timestamp), max(timestamp) FROM read_parquet($files)"
    span = map(pd.Timestamp, database.execute(span, {"files": files}).fetchone())
    step = pd.Timedelta(minutes=every)
    start, end = next(span).floor(step), next(span).ceil(step)
    ticks = pd.date_range(start + step, max(end, start + step), freq=step)
    asked = {"files": files, "start": start, "every": step}
    asked |= {"minutes": pd.Timedelta(minutes=minutes)}
    parts = [
        database.execute(WINDOWS, asked | {"first": some[0], "last": some[-1]}).df()
        for some in np.array_split(ticks, len(ticks) // AT_ONCE + 1)
    ]
    table = pd.concat(parts, ignore_index=True)
    table["timestamp"] = table["timestamp"].dt.as_unit("ns").dt.tz_localize("UTC")
    return table[[name for name in ("timestamp", *utils.METRICS) if name in table]]


def _beside(folder: Path, ending: str) -> Path:
    return folder.with_name(f".{folder.name}{ending}")


def main(arguments: list[str]) -> int:
    parser = common.parser("compact", __doc__)
    common.add_home(parser)
    common.add_output(parser, "the folder (default: logs/production.parquet)")
    options = parser.parse_args(arguments)
    csv = common.home(options.home) / "logs" / "production.csv"
    folder = options.output or csv.with_suffix(".parquet")
    rows, days = compact(csv, folder), len(list(folder.iterdir()))
    size = sum(path.stat().st_size for path in folder.glob("*/*.parquet"))
    print(
        f"{folder}: {rows:,} requests, {days} days, {size / 2**20:,.1f} MiB (the CSV"
        f" has {csv.stat().st_size / 2**20:,.1f} MiB)"
    )
    return 0
