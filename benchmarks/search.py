"""Search: how long one study takes with 1, 2 and 3 workers. Run by hand, on a machine
that does nothing else.

    python benchmarks/search.py [--workers 1 2 3] [--rounds 3] [--trials 12]

Each round makes the same study anew for each number of workers, with real trainings on
drawn images. A worker is `course.py search` with one thread, started with the others;
the clock stops when the last one has the complete study, so the start of Python counts.
With several workers a proposal knows fewer results, so trials differ.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import pandas as pd

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))
import utils  # noqa: E402


def measure(workers: int, home: Path, trials: int) -> dict:
    """Seconds that so many workers need for a new study, and what it holds."""
    shutil.rmtree(home / "runs", ignore_errors=True)
    command = [sys.executable, "course.py", "search", "--home", str(home)]
    own = os.environ | {"COURSE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    processes = [
        subprocess.Popen([*command, "--trials", str(trials)], cwd=KIT, env=own)
        for _ in range(workers)
    ]
    if any([process.wait() for process in processes]):
        raise SystemExit("A worker failed.")
    seconds = time.perf_counter() - began
    (file,) = (home / "runs").glob("search-*.db")
    study = optuna.load_study(study_name=file.stem, storage=f"sqlite:///{file}")
    done = [trial for trial in study.trials if trial.state.is_finished()]
    if len({str(trial.params) for trial in done}) != trials:
        raise SystemExit(
            f"{len(done)} trials instead of {trials}, or one of them twice."
        )
    return {
        "workers": workers,
        "seconds": seconds,
        "pruned": sum(trial.state.name == "PRUNED" for trial in done),
        "epochs": sum(len(trial.intermediate_values) for trial in done),
        "best loss": study.best_value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        course = utils.start(1, source="sample", profile="quick", home=home)
        utils.build_index(course)
        utils.load_data(course)  # index and pixels, once for all
        rounds = [
            measure(workers, home, options.trials)
            for _ in range(options.rounds)
            for workers in options.workers
        ]
    table = pd.DataFrame(rounds)
    print(table.round(3).to_string(index=False))
    times = table.groupby("workers")["seconds"].agg(["count", "mean", "min", "max"])
    speedup = times["mean"].iloc[0] / times["mean"]
    print(times.assign(speedup=speedup).round(2).to_string())
    print(
        f"one thread a worker, {os.cpu_count()} cores; {utils.hardware()}, torch"
        f" {utils.torch.__version__}, Optuna {optuna.__version__}"
    )


if __name__ == "__main__":
    main()
