"""Logs: time and peak memory of theme 5 on pandas with the CSV and on DuckDB with
Parquet, side by side. Run by hand.

    .venv-scale/bin/python benchmarks/logs.py [--rows 10000 100000 1000000] [--rounds 5]
    [--memory 10] [--data DIR]

Draws a log of ten days with incidents on the last two. What is timed, from the file to
the answers: baseline, windows of 30 minutes with the default rules replayed over them,
error budget. Every measurement is a process of its own, the two sides take turns, and a
side whose process runs out of memory (--memory, GiB) is said not to have finished. Both
must raise the same alerts at the same ticks, with the same percentiles, and count the
same bad requests. Processor seconds stand beside those of the clock: other work on the
machine moves them less. With --data the drawn logs stay there for the next time.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils  # noqa: E402
from tools.scale.compact import compact  # noqa: E402
from tools.scale.parquet_log import library, open_log  # noqa: E402

DAYS, FIRST_DAY = 10, "2026-03-01"
# Box and Muller (1958)
NORMAL = "(sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random()))"
DRAW = f"""
COPY (
    WITH drawn AS (
        SELECT i, TIMESTAMP '{FIRST_DAY}' + to_microseconds(((i + random()) * $step)::BIGINT) AS time,
               random() AS chance, {NORMAL} AS one, {NORMAL} AS two, {NORMAL} AS three
        FROM range($rows) AS requests(i)),
    hours AS (SELECT *, CASE WHEN time >= TIMESTAMP '{FIRST_DAY}' + to_days({DAYS - 2}) THEN hour(time) END AS bad_hour
              FROM drawn),
    lines AS (SELECT *, coalesce(bad_hour = 17 AND chance < 0.3, false) AS failed FROM hours)
    SELECT strftime(time, '%Y-%m-%dT%H:%M:%S.%gZ'), '20260301T000000-drawn0', '2148c692ec21172a',
           'test/PNEUMONIA/person' || i % 1000 || '_virus_' || i % 7 || '.jpeg',
           CASE WHEN NOT failed THEN (bad_hour IS DISTINCT FROM 14 AND random() < 0.73)::INTEGER END,
           CASE WHEN NOT failed THEN printf('%.6g', 1 - 0.5 * random() ** 3) END,
           printf('%.6g', exp(0.8 + 0.3 * one) * CASE WHEN bad_hour = 8 THEN 40 ELSE 1 END), 1,
           printf('%.6g', 122 + 12 * two),
           printf('%.6g', CASE WHEN bad_hour = 11 THEN 0.5 ELSE exp(4 + 0.1 * three) END),
           printf('%.6g', exp(5.7 + 0.2 * one)), CASE WHEN failed THEN 'ValueError' ELSE 'ok' END, NULL
    FROM lines
) TO '$csv' (FORMAT csv, HEADER false)"""


def draw(csv: Path, rows: int) -> None:
    """A production log of `rows` requests, the same each time."""
    database = library("duckdb").connect(config={"threads": 1})
    database.execute("SELECT setseed(0.42)")
    step = DAYS * 86_400 * 10**6 / rows
    database.execute(
        DRAW.replace("$rows", str(rows))
        .replace("$step", repr(step))
        .replace("$csv", f"{csv}.lines")
    )
    utils.InferenceLogger(csv)  # writes the header
    with open(csv, "ab") as log, open(f"{csv}.lines", "rb") as lines:
        while block := lines.read(1 << 24):
            log.write(block)
    Path(f"{csv}.lines").unlink()


def answer(log, folder: Path) -> dict:
    """Everything that theme 5 asks of a log."""
    baseline = utils.monitoring_baseline(log)
    manager = utils.AlertManager(utils.default_rules(), folder / "alerts.csv")
    windows, events = utils.judge_windows(log, manager, baseline)
    budget = utils.error_budget(log)
    told = [
        (str(event["timestamp"]), event["rule"], event["event"])
        for event in events.to_dict("records")
    ]
    return {
        "alerts": told,
        "bad": budget["bad"],
        "requests": len(log),
        "p99": windows["latency_p99"].tolist(),
    }


def work(options: argparse.Namespace) -> None:
    """One measurement, in this process; its last line is the result."""
    if options.memory:
        resource.setrlimit(resource.RLIMIT_AS, (int(options.memory * 2**30),) * 2)
    csv, parquet = (
        options.folder / "production.csv",
        options.folder / "production.parquet",
    )
    imported, began, busy = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        time.perf_counter(),
        time.process_time(),
    )
    result = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.work == "compact":
            compact(csv, Path(folder) / "log")
        else:
            log = utils.read_log(csv) if options.work == "pandas" else open_log(parquet)
            result["opened"] = time.process_time() - busy
            result |= answer(log, Path(folder))
        result |= {
            "seconds": time.perf_counter() - began,
            "cpu": time.process_time() - busy,
        }
        if options.work == "compact" and not parquet.exists():
            (Path(folder) / "log").rename(parquet)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            result | {"grown": (peak - imported) / 1024, "imported": imported / 1024}
        )
    )


def measure(name: str, folder: Path, memory: float) -> dict | None:
    """A measurement in a process of its own; None when that ran out of memory."""
    command = [
        sys.executable,
        __file__,
        "--work",
        name,
        "--folder",
        str(folder),
        "--memory",
        str(memory),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "MemoryError" in done.stderr:
        return None
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(rows: int, rounds: int, folder: Path, memory: float) -> dict:
    """One row of the table: both sides in turns, `rounds` times."""
    folder.mkdir(parents=True, exist_ok=True)
    csv, parquet = folder / "production.csv", folder / "production.parquet"
    if not csv.exists():
        command = [
            sys.executable,
            __file__,
            "--work",
            "draw",
            "--folder",
            folder,
            "--rows",
            str(rows),
        ]
        subprocess.run(command, check=True)
    measured = {"compact": [], "pandas": [], "parquet": []}
    for number in range(rounds):
        # compacts first, as the others need what it makes
        for name in sorted(measured, reverse=bool(number % 2)):
            measured[name].append(
                None if None in measured[name] else measure(name, folder, memory)
            )
    both = [
        result for name in ("pandas", "parquet") for result in measured[name] if result
    ]
    same = all(
        result[what] == both[0][what]
        for result in both
        for what in ("alerts", "bad", "requests", "p99")
    )
    files = sum(path.stat().st_size for path in parquet.rglob("*.parquet"))
    row = {
        "rows": f"{rows:,}",
        "n": rounds,
        "alerts": len(both[0]["alerts"]) if same else "DIFFER",
    }
    for name, results in measured.items():
        row |= {
            f"{name}, s": spread(results, "seconds"),
            f"{name}, processor s": spread(results, "cpu"),
            f"{name}, MiB": spread(results, "grown", 0),
        }
        row |= (
            {f"{name}, opened after processor s": spread(results, "opened")}
            if name != "compact"
            else {}
        )
    row["MiB when imported"] = spread(measured["parquet"], "imported", 0)
    ratios = [
        a["cpu"] / b["cpu"]
        for a, b in zip(measured["pandas"], measured["parquet"], strict=True)
        if a
    ]
    row["ratio of processor s"] = (
        f"{np.median(ratios):.1f} [{min(ratios):.1f}, {max(ratios):.1f}]"
        if ratios
        else "–"
    )
    return row | {
        "CSV, MiB": f"{csv.stat().st_size / 2**20:,.1f}",
        "Parquet, MiB": f"{files / 2**20:,.1f}",
    }


def spread(results: list[dict | None], what: str, digits: int = 2) -> str:
    """Median [smallest, largest]."""
    if None in results:
        return "out of memory"
    values = [result[what] for result in results]
    return (
        f"{np.median(values):,.{digits}f} [{min(values):,.{digits}f},"
        f" {max(values):,.{digits}f}]"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--data", type=Path, help="folder of the drawn logs (default: a temporary one)"
    )
    parser.add_argument(
        "--memory",
        type=float,
        default=10,
        help="GiB of addresses that a process may have",
    )
    for name in ("--work", "--folder"):  # for the processes that this one starts
        parser.add_argument(
            name, help=argparse.SUPPRESS, type=Path if name == "--folder" else str
        )
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.work == "draw":
        draw(options.folder / "production.csv", options.rows[0])
    elif options.work:
        work(options)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            for rows in options.rows:
                folder = (options.data or Path(temporary)) / str(rows)
                print(
                    pd.Series(
                        compare(rows, options.rounds, folder, options.memory)
                    ).to_string(),
                    flush=True,
                )
        print(
            f"{utils.hardware()}; Python {sys.version.split()[0]}, "
            + ", ".join(
                f"{name} {version(name)}" for name in ("duckdb", "pyarrow", "pandas")
            )
        )


if __name__ == "__main__":
    main()
