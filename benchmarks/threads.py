"""Threads: training and the agreement of theme 4 with one thread and with two, on a
quiet machine and beside programs that use its cores. Run by hand.

    python benchmarks/threads.py [--neighbours 0 1 4] [--threads 1 2] [--rounds 3]
    [--seconds 8]

Each measurement is a process of its own, the sides take turns. Neighbours are processes
that only compute. Steps: of the optimised network at 64 px, batches of 64 drawn pixels.
Agreement: one pass of `utils.agreement` over 128 images, in which PyTorch's threads and
ONNX Runtime's meet; with `spin`, ONNX Runtime's threads burn their core while they wait
(its default), without they sleep.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))
import utils  # noqa: E402
from kit import serving  # noqa: E402

SPIN = "import time\nwhile True: pass"


def measure(threads: int, seconds: float) -> dict:
    """Training steps a second, and seconds of the agreement, in this process."""
    place = Path(tempfile.mkdtemp())
    utils.set_seed(42, threads)
    settings = (utils.PROFILES["quick"], 64, 42, place, place, place)
    course = utils.Course(
        4, "pneumonia", "sample", *settings, torch.device("cpu"), True
    )
    rng, network = np.random.default_rng(0), utils.optimized_network(course)
    network.to(memory_format=torch.channels_last)
    images = torch.randn(64, 1, 64, 64).to(memory_format=torch.channels_last)
    labels, criterion = torch.randint(0, 2, (64,)), torch.nn.CrossEntropyLoss()
    optimizer, _ = utils.make_optimizer(network, utils.Recipe(), 10**6)
    scaler = utils.make_scaler(course.device)
    work = network, images, labels, criterion, optimizer, scaler
    utils.train_step(*work)
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        utils.train_step(*work)
        steps += 1
    found = {"steps_s": steps / (time.perf_counter() - began)}

    about = {"classes": list(course.classes), "mean": [0.5], "std": [0.25], "size": 64}
    about |= {"channels": 1, "dataset": "pneumonia", "threshold": 0.5}
    path = utils.save_checkpoint(place / "best.pth", network, temperature=1.0, **about)
    original, _ = utils.served_network(course, path)
    stored = utils.export_onnx(course, path)
    pixels = rng.integers(0, 256, (128, 1, 64, 64), dtype=np.uint8)
    usual = serving._settings
    for name, spins in (("spin", "1"), ("sleep", "0")):

        def settings(level, spins=spins):
            chosen = usual(level)
            chosen.add_session_config_entry("session.intra_op.allow_spinning", spins)
            return chosen

        serving._settings = settings
        model = utils.OnnxModel(stored)
        began = time.perf_counter()
        utils.agreement(original, model, pixels)
        found[f"agreement_{name}_s"] = time.perf_counter() - began
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 4])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.seconds)))
        return
    rows = []
    for _ in range(options.rounds):
        for count in options.neighbours:
            beside = [
                subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)
            ]
            for threads in options.threads:
                command = [sys.executable, __file__, "--measure", str(threads)]
                command += ["--seconds", str(options.seconds)]
                told = subprocess.run(
                    command, capture_output=True, text=True, check=True
                )
                found = json.loads(told.stdout.splitlines()[-1])
                rows.append({"neighbours": count, "threads": threads} | found)
            for process in beside:
                process.kill()
                process.wait()
    print(utils.hardware())
    table = pd.DataFrame(rows).groupby(["neighbours", "threads"])
    print(table.agg(["median", "min", "max"]).round(2).to_string())


if __name__ == "__main__":
    main()
