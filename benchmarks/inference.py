"""Inference: every way to serve the network of a home that theme 3 has finished, side
by side. Run by hand.

    python benchmarks/inference.py --home HOME [--rounds 10] [--seconds 0.3] [--compile]

Exports the network, checks it against PyTorch on the test pool, quantizes it on
training images, and lets all backends of this machine take turns in interleaved rounds
(see `utils.benchmark`). Printed: the table; the ratios against PyTorch eager in float32
on the same device and threads, as the median of the rounds [smallest, largest]; what
the export and INT8 change on the test pool; memory, and four clients at once, each
backend in a process of its own. --compile adds torch.compile to the rivals, half a
minute on two cores.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils  # noqa: E402

TARGETS = {("ONNX Runtime fp32", 1): 3.0, ("ONNX Runtime int8", 1): 5.0}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    held = utils.read_json(options.home.resolve() / "course.json")
    if not held:
        raise SystemExit(
            f"{options.home} holds no course: run course.py run --home {options.home}"
            " --until 3 first."
        )
    course = utils.start(4, home=options.home, **held)
    data = utils.load_data(course)
    val, test = data.where("val"), data.where("test")
    pixels, labels = np.array(data.pixels[test]), data.labels[test]
    checkpoint = course.checkpoints / "best_model.pth"
    models = {"fp32": utils.export_onnx(course, checkpoint)}
    calibration = np.array(data.pixels[utils.calibration_rows(data)])
    models["int8"] = utils.quantize_int8(course, models["fp32"], calibration)
    if course.device.type == "cuda":
        models["fp16"] = utils.export_onnx(course, checkpoint, dtype=torch.float16)
    images = np.array(data.pixels[val[:128]])
    backends, reference, tuning = utils.make_backends(
        course, checkpoint, models, images, options.compile
    )
    print(tuning.round(2).to_string(), "\n")
    rows = utils.benchmark(
        backends, images, rounds=options.rounds, seconds=options.seconds
    )
    table = utils.benchmark_table(rows, reference)
    print(table.round(2).to_string(index=False), "\n")
    services = utils.benchmark_services(
        backends, images, rounds=options.rounds, seconds=options.seconds
    )
    print(
        utils.clients_table(services["clients"]).round(2).to_string(index=False), "\n"
    )
    print(pd.DataFrame(services["memory"]).T.round(0).to_string(), "\n")
    for row in table[table["speedup"] != 1].itertuples():
        target = TARGETS.get((row.backend, row.batch))
        verdict = "" if target is None else f"   (to reach: {target:g})"
        print(
            f"{row.backend}, batch {row.batch}: {row.speedup:.2f}"
            f" [{row.speedup_low:.2f}, {row.speedup_high:.2f}]{verdict}"
        )
    network, _ = utils.served_network(course, checkpoint)
    float_model = utils.OnnxModel(models["fp32"])
    print(f"\n{utils.agreement(network, float_model, pixels).to_string()}\n")
    right = [
        utils.OnnxModel(models[name]).predict_all(pixels)[0].argmax(1) == labels
        for name in ("fp32", "int8")
    ]
    paired = utils.paired_row(*right)
    print(
        "INT8 minus float32, accuracy on test: {difference:+.4f} [{low:+.4f},"
        " {high:+.4f}], n = {n}, lost {lost}, won {won}".format(**paired)
    )
    print(
        f"{course.dataset} at {course.image_size} px, {options.rounds} rounds,"
        f" {utils.hardware()}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
