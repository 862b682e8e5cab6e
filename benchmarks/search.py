"""Search: how long one study takes with 1, 2 and 3 workers. Run by hand, on a machine
that does nothing else.

    python benchmarks/search.py [--workers 1 2 3] [--rounds 3] [--trials 12] [--images
    1200] [--size 64] [--epochs 2]

Each round makes the same study anew for each number of workers, in turns, with real
trainings on drawn images and a journal on the local disk. A worker is a process of its
own with one thread. The clock runs from the moment at which all have loaded Python,
torch and the data, and have trained once, until the last one has the complete study:
the wait of those that find no trial left counts. With several workers a proposal knows
fewer results, so trials differ; pruned ones take less time.
Every study is checked: the number of trials, none twice, none lost.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sample_data  # noqa: E402
import utils  # noqa: E402
from tools.scale import shared_study  # noqa: E402


def open_course(options: argparse.Namespace) -> tuple:
    course = utils.start(
        1,
        source=options.source,
        profile="quick",
        image_size=options.size,
        home=options.home,
    )
    utils.build_index(course)
    data = utils.load_data(course)
    return (
        course,
        data,
        replace(utils.optimized_recipe(data), epochs=options.epochs, average=0.5),
    )


def work(options: argparse.Namespace) -> None:
    """One worker: gets ready, says so, and begins when all are."""
    shared_study.import_optuna()
    course, data, recipe = open_course(options)
    # the first training of a process loads half of torch
    short = replace(recipe, epochs=1, lr=1e-3)
    utils.fit(
        course,
        f"warm-up-{os.getpid()}",
        utils.optimized_network(course),
        data,
        short,
        tracker="none",
    )
    print("ready", flush=True)
    sys.stdin.readline()
    utils.search(
        course, data, "search", recipe, options.trials, storage=options.journal
    )
    print("complete", flush=True)


def measure(workers: int, options: argparse.Namespace, command: list[str]) -> dict:
    """Seconds that so many workers need for a new study, and what became
    of its trials.
    """
    shutil.rmtree(options.home / "runs", ignore_errors=True)
    options.journal.unlink(missing_ok=True)
    own = os.environ | {"COURSE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
    }
    processes = [
        subprocess.Popen(command, text=True, env=own, **pipes) for _ in range(workers)
    ]
    hear(processes, "ready")
    began = time.perf_counter()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    hear(processes, "complete")
    seconds = time.perf_counter() - began
    for process in processes:
        process.communicate()
    return {"workers": workers, "seconds": seconds} | outcome(options)


def hear(processes: list[subprocess.Popen], word: str) -> None:
    """Wait until each has said the word."""
    for process in processes:
        said = []
        while not said or said[-1] != f"{word}\n":
            said.append(process.stdout.readline())
            if not said[-1]:
                raise SystemExit("".join(["A worker failed:\n", *said]))


def outcome(options: argparse.Namespace) -> dict:
    optuna = shared_study.import_optuna()
    study = optuna.load_study(
        study_name=None, storage=shared_study.open_journal(options.journal)
    )
    states = [trial.state.name for trial in study.trials]
    done = [trial for trial in study.trials if trial.state.name != "FAIL"]
    if (
        len({str(trial.params) for trial in done}) != options.trials
        or len(done) != options.trials
    ):
        raise SystemExit(
            f"{len(done)} trials instead of {options.trials}, or one of them twice."
        )
    epochs = sum(len(trial.intermediate_values) for trial in done)
    return {
        "pruned": states.count("PRUNED"),
        "given back": states.count("FAIL"),
        "epochs": epochs,
        "best loss": study.best_value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)  # of a worker
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours = options.home or Path(folder) / "home"
        options.source, options.journal = (
            ours.parent / "raw",
            ours.parent / "study.journal",
        )
        if options.home:
            return work(options)
        options.home = ours
        sample_data.draw_chest_xray(options.source, options.images, seed=1)
        open_course(options)  # index and pixels, once for all
        command = [sys.executable, __file__, *sys.argv[1:], "--home", str(ours)]
        rounds = [
            measure(n, options, command)
            for _ in range(options.rounds)
            for n in options.workers
        ]
    table = pd.DataFrame(rounds)
    print(table.round(3).to_string(index=False))
    times = table.groupby("workers")["seconds"].agg(["count", "mean", "min", "max"])
    print(
        times.assign(speedup=times["mean"].iloc[0] / times["mean"]).round(2).to_string()
    )
    print(
        f"{options.trials} trials of {options.epochs} epochs, {options.images} drawn"
        f" images at {options.size} px; one thread a worker, {os.cpu_count()} cores;"
        f" {utils.hardware()}, torch {utils.torch.__version__}, Optuna"
        f" {shared_study.import_optuna().__version__}"
    )


if __name__ == "__main__":
    main()
