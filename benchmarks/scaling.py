"""Scaling: the same training by one process and by several, side by side. Run by hand.

    python benchmarks/scaling.py [--source DIR] [--size 96] [--epochs 2] [--rounds 5]
    [--processes 1 2]

Without --source it draws its own images. Each run is a whole `utils.fit` of the
optimised network from its first weights, with the same batches, started by torchrun; on
a CPU each process has one thread (and one process with as many threads as the largest
number of processes stands beside them), on GPUs each has one GPU. The sides take turns,
in an order that turns too. Seconds are those of the training, validation and saved
steps with them; the launch stands beside, as it is paid once. Efficiency is the speedup
over one process of one thread, divided by the number of cores (GPUs)."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))
import sample_data  # noqa: E402
import utils  # noqa: E402


def work(home: Path, answer: Path, epochs: int) -> None:
    """Train in each of the processes; rank 0 writes what it took."""
    from tools.scale import train

    rank = train.join()
    if rank:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - rank 0 speaks for all
    story = json.loads((home / "course.json").read_text())
    course = utils.start(1, story["dataset"], story["source"], "quick", home=home)
    utils.set_seed(course.seed)
    data = utils.load_data(course)
    recipe = replace(utils.optimized_recipe(data), epochs=epochs)
    name = f"scaling-{answer.stem}"
    run = utils.fit(
        course,
        name,
        utils.optimized_network(course),
        data,
        recipe,
        tracker="none",
        progress=False,
    )
    if rank == 0:
        images = epochs * len(data.where("train"))
        utils.write_json(
            answer,
            {
                "images_s": images / run.seconds,
                "seconds": run.seconds,
                "batch": recipe.batch_size,
                "val_loss": run.history["val_loss"].iloc[-1],
                "hardware": utils.hardware(),
            },
        )
    train.leave()


def timed(home: Path, processes: int, threads: int, epochs: int, answer: Path) -> dict:
    """One training by so many processes, from its first weights."""
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    environment = os.environ | {
        "COURSE_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
    }
    began = time.perf_counter()
    done = subprocess.run(
        [*launcher, __file__, "--work", home, answer, "--epochs", str(epochs)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    row = json.loads(answer.read_text())
    launch = time.perf_counter() - began - row["seconds"]
    return row | {"processes": processes, "threads each": threads, "launch": launch}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source",
        help="folder above chest_xray/ or solar_panels/ (default: drawn images)",
    )
    parser.add_argument("--dataset", default="pneumonia")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--work", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work, options.epochs)
        return
    sides = [(processes, 1) for processes in sorted({1, *options.processes})]
    if not torch.cuda.is_available():
        sides.append((1, max(options.processes)))
    with tempfile.TemporaryDirectory() as folder:
        home, rows = Path(folder) / "home", []
        source = (
            options.source
            or sample_data.draw_chest_xray(Path(folder) / "raw", 2400).parent
        )
        course = utils.start(
            1, options.dataset, source, "quick", options.size, home=home
        )
        utils.build_index(course)
        utils.load_data(course)
        # the first round warms the disk's cache up
        for turn in range(options.rounds + 1):
            for processes, threads in (
                sides[turn % len(sides) :] + sides[: turn % len(sides)]
            ):
                answer = Path(folder) / f"{turn}-{processes}-{threads}.json"
                rows += [
                    timed(home, processes, threads, options.epochs, answer)
                    | {"round": turn}
                ]
    table = pd.DataFrame(rows).query("round > 0")
    first = table[table["processes"].eq(1) & table["threads each"].eq(1)].set_index(
        "round"
    )["images_s"]
    table["speedup"] = table["images_s"] / table["round"].map(first)
    table["efficiency"] = table["speedup"] / (
        table["processes"] * table["threads each"]
    )
    groups = table.groupby(["processes", "threads each"])
    spread = groups[["images_s", "speedup", "efficiency", "launch", "val_loss"]].agg(
        ["median", "min", "max"]
    )
    print(spread.round(3).to_string())
    images = "real images" if options.source else "drawn images"
    print(
        f"n = {options.rounds} rounds, {options.epochs} epochs each, batches of"
        f" {rows[0]['batch']} in all; {course.dataset}, {images}, {options.size} px;"
        f" {rows[0]['hardware']}, {os.cpu_count()} CPUs, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
