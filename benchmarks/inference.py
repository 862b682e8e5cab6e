"""Inference: every way to serve the network of a home that theme 3 has finished, side
by side. Run by hand, on Linux.

    python benchmarks/inference.py --home HOME [--rounds 10] [--seconds 0.3]

Exports the network, checks it against PyTorch on the test pool, quantizes it on
training images, and lets all backends of this machine take turns in interleaved rounds
(see `utils.benchmark`). Printed: the table; the ratios against PyTorch eager in float32
on the same device and threads, as the median of the rounds [smallest, largest]; what
the export and INT8 change on the test pool; memory, and four clients at once, each
backend of the CPU in a process of its own.
"""

import argparse
import multiprocessing
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
TARGETS = {("ONNX Runtime fp32", 1): 3.0, ("ONNX Runtime int8", 1): 5.0}


def serve(path: Path, images: np.ndarray, threads: int, clients=4, seconds=2.0) -> dict:
    """In a process of its own: images/s of several clients, each sending one image as
    soon as it has its answer; peak of memory after a batch.

    ONNX Runtime is used without torch, as a real service would.
    """
    if path.suffix == ".onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options)

        def run(pixels):
            return session.run(["probabilities"], {"pixels": pixels})
    else:
        import torch

        import utils
        from kit.bench import torch_backend

        torch.set_num_threads(threads)
        model, state = utils.load_model(path)
        network = utils.ServedNetwork(model.cpu(), state).eval()
        run = torch_backend(network, path, "PyTorch eager").run

    def client(_) -> int:
        answered, ends = 0, time.perf_counter() + seconds
        while time.perf_counter() < ends:
            run(images[:1])
            answered += 1
        return answered

    run(images[:32])
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    with ThreadPoolExecutor(clients) as pool:
        answered = sum(pool.map(client, range(clients)))
    return {"images_s": answered / seconds, "MiB": int(peak[1]) / 1024}


def print_services(paths: list[Path], images: np.ndarray, threads: int) -> None:
    for path in paths:
        # a new program for each: memory counts from its start
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            told = pool.submit(serve, path, images, threads).result()
        print(
            f"{path.name}: four clients get {told['images_s']:.0f} images/s,"
            f" {told['MiB']:.0f} MiB"
        )


def ways_to_serve(course, checkpoint: Path, models: dict[str, Path]):
    """All that this machine has, and for each PyTorch eager on the same device."""
    import torch

    import utils
    from kit.bench import onnx_backend, torch_backend

    device, low = course.device.type, utils.amp_dtype(course.device) or torch.float32
    eager = partial(torch_backend, utils.served_network(course, checkpoint)[0])
    found = [
        eager(checkpoint, "PyTorch eager", device),
        eager(checkpoint, "PyTorch tuned", device, channels_last=True, dtype=low),
        *onnx_backend(models["fp32"], "ONNX Runtime fp32", device),
        *onnx_backend(models["int8"], "ONNX Runtime int8"),
    ]
    against = {"cpu": "PyTorch eager", device: "PyTorch eager"}
    if device == "cuda":
        half = utils.export_onnx(course, checkpoint, dtype=torch.float16)
        against["cpu"] = "PyTorch eager on the CPU"
        found += onnx_backend(half, "ONNX Runtime fp16", device)
        found.append(eager(checkpoint, against["cpu"]))
    return found, {backend.name: against[backend.device] for backend in found}


def main() -> None:
    import torch

    import utils

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.3)
    options = parser.parse_args()
    held = utils.read_json(options.home.resolve() / "course.json")
    if not held:
        raise SystemExit(
            f"{options.home} holds no course: run course.py run --home {options.home}"
            " --until 3 first."
        )
    held.pop("threads", None)  # `start` reads them from the home
    course = utils.start(4, home=options.home, **held)
    data = utils.load_data(course)
    val, test = data.where("val"), data.where("test")
    pixels, labels = np.array(data.pixels[test]), data.labels[test]
    images = np.array(data.pixels[val[:128]])
    checkpoint = course.checkpoints / "best_model.pth"
    models = {"fp32": utils.export_onnx(course, checkpoint)}
    calibration = np.array(data.pixels[utils.calibration_rows(data)])
    models["int8"] = utils.quantize_int8(course, models["fp32"], calibration)
    backends, reference = ways_to_serve(course, checkpoint, models)
    rows = utils.benchmark(
        backends, images, rounds=options.rounds, seconds=options.seconds
    )
    table = utils.benchmark_table(rows, reference)
    print(table.round(2).to_string(index=False), "\n")
    for row in table[table["speedup"] != 1].itertuples():
        target = TARGETS.get((row.backend, row.batch))
        verdict = "" if target is None else f"   (to reach: {target:g})"
        print(
            f"{row.backend}, batch {row.batch}: {row.speedup:.2f}"
            f" [{row.speedup_low:.2f}, {row.speedup_high:.2f}]{verdict}"
        )
    served = [checkpoint, models["fp32"], models["int8"]]
    print_services(served, images, torch.get_num_threads())
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
