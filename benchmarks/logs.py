"""Logs: time and peak memory of theme 5's windows, by pandas from the CSV and by DuckDB
from Parquet. Run by hand.

    .venv-scale/bin/python benchmarks/logs.py [--rows 10000 1000000] [--rounds 3]

Draws a log of ten days. Every measurement is a process of its own, the sides take
turns, and both must come to the same windows. pandas is left out above --pandas rows,
where it does not fit into memory.
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

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils  # noqa: E402
from tools.scale import logs  # noqa: E402

DRAW = """
COPY (
    SELECT strftime(TIMESTAMP '2026-03-01' + to_microseconds((i * $step)::BIGINT),
                    '%Y-%m-%dT%H:%M:%S.%gZ'), 'drawn', '2148c692ec21172a',
           'test/PNEUMONIA/person' || i % 1000 || '_virus.jpeg',
           (random() < 0.73)::INT, printf('%.6g', 1 - 0.5 * random() ** 3),
           printf('%.6g', exp(0.8 + random())), 1, printf('%.6g', 110 + 24 * random()),
           printf('%.6g', 40 + 20 * random()), printf('%.6g', 250 + 99 * random()),
           'ok', NULL, 1
    FROM range($rows) AS requests(i)
) TO $csv (FORMAT csv, HEADER false)"""


def draw(csv: Path, rows: int) -> None:
    database = logs.connect()
    database.execute("SELECT setseed(0.42)")
    asked = {"rows": rows, "step": 864_000e6 / rows, "csv": f"{csv}.lines"}
    database.execute(DRAW, asked)
    utils.InferenceLogger(csv)  # writes the header
    with open(csv, "ab") as log, open(f"{csv}.lines", "rb") as lines:
        log.writelines(lines)
    Path(f"{csv}.lines").unlink()


def work(side: str, csv: Path) -> None:
    """One measurement, in this process; its last line is the result."""
    folder, imported = csv.with_suffix(".parquet"), peak()
    logs.connect()
    began, seen = time.perf_counter(), 0.0
    if side == "compact":
        logs.compact(csv, folder)
    else:
        ask = logs.windows if side == "duckdb" else _pandas
        table = ask(folder if side == "duckdb" else csv)
        seen = float(table["latency_p99"].sum())
    seconds = time.perf_counter() - began
    told = {"seconds": seconds, "MiB": peak() - imported, "sum of p99": seen}
    print(json.dumps(told))


def _pandas(csv: Path) -> pd.DataFrame:
    return utils.window_statistics(utils.read_log(csv))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(side: str, csv: Path) -> dict:
    command = [sys.executable, __file__, "--work", side, "--csv", str(csv)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = {"rows": int(csv.stem), "side": side}
    return rows | json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10**4, 10**6, 10**7])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pandas", type=int, default=10**6)
    parser.add_argument("--work", help=argparse.SUPPRESS)  # of a process of this one
    parser.add_argument("--csv", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.csv)
    found = []
    with tempfile.TemporaryDirectory() as place:
        for rows in options.rows:
            csv = Path(place) / f"{rows}.csv"
            draw(csv, rows)
            sides = ["compact", "duckdb"] + ["pandas"] * (rows <= options.pandas)
            found += [
                measure(side, csv) for _ in range(options.rounds) for side in sides
            ]
    table = pd.DataFrame(found).groupby(["rows", "side"])
    if (table["sum of p99"].agg("max") - table["sum of p99"].agg("min")).max() > 1e-6:
        raise SystemExit("The rounds came to different windows.")
    print(table.agg(["median", "min", "max"]).round(2).to_string())
    versions = ", ".join(f"{name} {version(name)}" for name in ("duckdb", "pandas"))
    print(f"{utils.hardware()}; Python {sys.version.split()[0]}, {versions}")


if __name__ == "__main__":
    main()
