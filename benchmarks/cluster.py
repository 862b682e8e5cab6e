"""A class of submissions, one after the other and on a local Dask cluster; by hand.

    .venv-scale/bin/python benchmarks/cluster.py CLASS [--rounds 3] [--workers 2]

CLASS is a folder of submissions. Each measurement is a `course.py check --all` of its
own, at level static, from start to summary; the sides take turns, and both must come to
the same verdicts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))
import utils  # noqa: E402


def measure(folder: Path, jobs: int) -> dict:
    """Seconds of one check of the class, and its verdicts."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "course.py", "check", "--all", str(folder)]
        command += ["--jobs", str(jobs), "--output", output]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=KIT, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if done.returncode not in (0, 1):
            raise SystemExit(f"The check failed:\n{done.stdout}{done.stderr}")
        rows = json.loads((Path(output) / "summary.json").read_text())["rows"]
    verdicts = str(sorted((row["submission"], row["verdict"]) for row in rows))
    return {"jobs": jobs, "seconds": seconds, "verdicts": verdicts, "n": len(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="CLASS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    found = pd.DataFrame(
        measure(options.folder.resolve(), jobs)
        for _ in range(options.rounds)
        for jobs in (1, options.workers)
    )
    if found["verdicts"].nunique() > 1:
        raise SystemExit("The sides came to different verdicts.")
    table = found.groupby("jobs")["seconds"].agg(["median", "min", "max"])
    print(f"{found['n'].iloc[0]} submissions, seconds\n{table.round(2).to_string()}")
    print(f"{utils.hardware()}; Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
