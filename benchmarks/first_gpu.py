"""The first time a GPU is there: what is believed of it, settled in one command.

    python benchmarks/first_gpu.py [--half float16] [--course full] [--json FILE]
    python benchmarks/first_gpu.py --cpu

Prints a row a check, in Markdown, for docs/measured.md: is cuDNN on while PyTorch is
timed; does a training warn of operators that are not deterministic; do two trainings,
and one that was stopped and went on, end with the same weights; is a batch that does
not fit told in a sentence; does CUDA answer as the CPU does, at a size whose maps are
even and at one whose maps are odd. Then the launches, waits and copies of a step, by
PyTorch's profiler, and images a second. Exit status 1: something is wrong.

`--half float16` takes the precision of a T4 on a newer GPU, `--course` runs themes 1 to
8 in that profile and times them, `--cpu` only tries this program where no GPU is.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))
import utils  # noqa: E402
from kit.bench import torch_backend  # noqa: E402
from kit.fingerprint import hash_weights  # noqa: E402
from kit.machine import BUSY, OtherPrograms  # noqa: E402

COUNTED = {
    "cudaLaunchKernel": "launches",
    "cudaStreamSynchronize": "waits",
    "cudaMemcpyAsync": "copies",
}


class Trial:
    """A course of random pixels on one device."""

    def __init__(self, device: torch.device, size: int, batch: int):
        self.device, self.size, self.batch = device, size, batch
        self.place = Path(tempfile.mkdtemp())

    def course(self, name: str, size: int) -> utils.Course:
        home = self.place / name
        settings = (utils.PROFILES["full"], size, 42, home, home, home)
        return utils.Course(4, "pneumonia", "sample", *settings, self.device, True)

    def data(self, course: utils.Course, images: int) -> utils.Data:
        size, rng = course.image_size, np.random.default_rng(0)
        pools = np.repeat(["train", "val"], [3 * images // 4, images - 3 * images // 4])
        names = [f"{number:064d}" for number in range(images)]
        index = pd.DataFrame({"pool": pools, "path": names, "sha256": names})
        pixels = rng.integers(0, 256, (images, 1, size, size), dtype=np.uint8)
        labels = np.arange(images) % 2
        return utils.Data(
            index, pixels, labels, course.classes, [0.5], [0.25], "random", course
        )

    def networks(self, course: utils.Course) -> dict[str, torch.nn.Module]:
        made = {
            "baseline": utils.BaselineCNN(),
            "optimised": utils.optimized_network(course),
        }
        layout = {"memory_format": torch.channels_last}
        return {name: net.to(self.device, **layout) for name, net in made.items()}


def cudnn(trial: Trial) -> tuple[str, bool]:
    seen = {}

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Linear(1, 1)

        def forward(self, pixels):
            backend = torch.backends.cudnn
            seen.update(enabled=backend.enabled, search=backend.benchmark)
            return pixels.float(), pixels

    backend = torch_backend(Spy(), None, "spy", trial.device.type)
    backend.run(np.zeros((1, 1, 8, 8), np.uint8))
    return str(seen), seen["enabled"] and (trial.device.type == "cpu" or seen["search"])


def deterministic(trial: Trial) -> tuple[str, bool]:
    course = trial.course("warnings", trial.size)
    data = trial.data(course, 4 * trial.batch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for network in trial.networks(course).values():
            loader = data.loader(
                "train", trial.batch, utils.AUGMENT["pneumonia"], shuffle=True
            )
            optimizer, scheduler = utils.make_optimizer(network, utils.Recipe(), 100)
            criterion = utils.make_criterion(loader, 2, utils.Recipe())
            scaler = utils.make_scaler(trial.device)
            parts = criterion, optimizer, trial.device, scaler, scheduler
            utils.train_epoch(network, loader, *parts)
            images, _ = next(iter(data.loader("val", 8)))
            utils.grad_cam(network, images, torch.zeros(len(images), dtype=torch.long))
    told = {str(warning.message)[:100] for warning in caught}
    told = {text for text in told if "deterministic" in text}
    return "; ".join(told) or "none", not told


def same_weights(trial: Trial) -> tuple[str, bool]:
    """Two trainings, and a third that is stopped in its second epoch and goes on."""

    def stop(epoch, row):
        raise KeyboardInterrupt

    hashes = []
    for name, stopped in (("first", False), ("second", False), ("stopped", True)):
        course = trial.course(name, 64)
        data = trial.data(course, 256)
        recipe = replace(utils.optimized_recipe(data), epochs=3, batch_size=16)
        options = {"tracker": "none", "progress": False, "save_every": 0.0}
        work = course, "trial", utils.optimized_network(course), data, recipe
        utils.set_seed(42)
        if stopped:
            try:
                utils.fit(*work, on_epoch=stop, **options)
            except KeyboardInterrupt:
                work = (*work[:2], utils.optimized_network(course), *work[3:])
        hashes.append(hash_weights(utils.fit(*work, **options).model))
    equal = [hashes[0] == other for other in hashes[1:]]
    return f"two runs equal {equal[0]}, stopped and resumed equal {equal[1]}", all(
        equal
    )


def too_large(trial: Trial) -> tuple[str, bool]:
    """A training that gets a sliver of the GPU says so, and leaves nothing broken."""
    if trial.device.type == "cpu":
        return "needs a GPU", True
    course = trial.course("memory", trial.size)
    data = trial.data(course, 8 * trial.batch)
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_allocated() + 600 * 2**20) / whole
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        recipe = utils.Recipe(epochs=1, batch_size=4 * trial.batch)
        options = {"tracker": "none", "progress": False}
        utils.fit(course, "m", utils.optimized_network(course), data, recipe, **options)
        return "it fitted: lower the share", False
    except utils.CourseError as error:
        return str(error)[:100], "memory is too small" in str(error)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def agreement(trial: Trial, size: int, half: bool) -> tuple[str, bool]:
    """CUDA's ONNX Runtime, which serves, against PyTorch on the CPU."""
    course = trial.course(f"serve-{size}", size)
    network = utils.optimized_network(course).train()
    with torch.no_grad():
        for _ in range(3):  # batch norm that has seen something
            network(torch.randn(8, 1, size, size))
    about = trial.data(course, 8).about | {"threshold": 0.5, "temperature": 1.3}
    path = utils.save_checkpoint(
        course.checkpoints / "best.pth", network.eval(), **about
    )
    original, _ = utils.served_network(course, path)
    dtype = torch.float16 if half else torch.float32
    file = utils.export_onnx(course, path, dtype=dtype)
    model = utils.OnnxModel(file, provider=trial.device.type)
    pixels = np.random.default_rng(1).integers(
        0, 256, (64, 1, size, size), dtype=np.uint8
    )
    apart = utils.agreement(original, model, pixels, (1, 32))["max_abs_diff"].max()
    return f"{apart:.1e} on {model.provider}", apart <= (1e-2 if half else 1e-4)


def step(trial: Trial, name: str) -> tuple[str, bool]:
    """Time, launches, waits and copies of a training step, its batch included."""
    course = trial.course("step", trial.size)
    data, steps = trial.data(course, 16 * trial.batch), 20
    network = trial.networks(course)[name].train()
    loader = data.loader("train", trial.batch, utils.AUGMENT["pneumonia"], shuffle=True)
    optimizer, _ = utils.make_optimizer(network, utils.Recipe(), 10**6)
    criterion = utils.make_criterion(loader, 2, utils.Recipe())
    scaler, average = (
        utils.make_scaler(trial.device),
        utils.RunningAverage(network, 0.99),
    )

    def epoch():
        utils.train_epoch(
            network,
            loader,
            *(criterion, optimizer, trial.device, scaler),
            on_step=lambda totals: average.update(network),
        )

    epoch()
    others, began, epochs = (
        OtherPrograms(),
        time.perf_counter(),
        max(steps // len(loader), 1),
    )
    for _ in range(epochs):
        epoch()
    ms = 1000 * (time.perf_counter() - began) / (epochs * len(loader))
    busy = ", busy machine" if others.cores() >= BUSY else ""
    told = f"{ms:.1f} ms, {1000 * trial.batch / ms:.0f} images/s{busy}"
    if trial.device.type == "cpu":
        return told, True
    with torch.profiler.profile() as profile:
        epoch()
    counts = dict.fromkeys(COUNTED.values(), 0.0)
    for event in profile.key_averages():
        if event.key in COUNTED:
            counts[COUNTED[event.key]] += event.count / len(loader)
    told += "".join(f", {count:.1f} {what}" for what, count in counts.items())
    told += f", {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB at most"
    return f"{told} a step", counts["waits"] <= 1


def themes(profile: str, place: Path) -> tuple[str, bool]:
    """The eight notebooks on drawn images: seconds of each."""
    command = [sys.executable, KIT / "course.py", "run", "--source", "sample"]
    command += ["--profile", profile, "--home", place]
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    took = [row[:2] for row in lines if row and row[0] in "12345678" and len(row) > 3]
    seconds = ", ".join(f"{theme}: {s} s" for theme, s in took)
    return seconds or done.stderr.strip()[-200:], done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--half", choices=["float16"], help="precision of a T4")
    parser.add_argument("--course", metavar="PROFILE", help="run the eight themes, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the rows, to a file")
    parser.add_argument("--cpu", action="store_true", help="only try this program")
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        parser.error("there is no GPU here; --cpu tries this program without")
    device = torch.device("cpu" if options.cpu else "cuda")
    if options.half:
        utils.amp_dtype = lambda device: torch.float16
    trial = Trial(device, *((64, 8) if options.cpu else (224, 64)))
    odd = 72 if options.cpu else 200
    checks: dict[str, Callable] = {
        "cuDNN while PyTorch is timed": lambda: cudnn(trial),
        "warnings of determinism": lambda: deterministic(trial),
        "weights of a training": lambda: same_weights(trial),
        "a batch that does not fit": lambda: too_large(trial),
        f"answers at {trial.size} px": lambda: agreement(trial, trial.size, False),
        f"answers at {odd} px": lambda: agreement(trial, odd, False),
        "answers in float16": lambda: agreement(trial, trial.size, True),
        "step of the baseline": lambda: step(trial, "baseline"),
        "step of the optimised network": lambda: step(trial, "optimised"),
    }
    if options.course:
        checks["themes"] = lambda: themes(options.course, trial.place / "course")
    return report(checks, options.json)


def report(checks: dict[str, Callable], file: Path | None) -> int:
    """Print each row as it is found; 1 where one of them is wrong."""
    print(f"{utils.hardware()}, torch {torch.__version__}, autocast", end=" ")
    print(utils.amp_dtype(utils.best_device()), end="\n\n")
    print("| check | found | right |\n|---|---|---|")
    rows = []
    for name, check in checks.items():
        try:
            found, right = check()
        except Exception as error:  # the other checks are still worth knowing
            found, right = f"{type(error).__name__}: {str(error)[:200]}", False
        rows.append({"check": name, "found": found, "right": bool(right)})
        print(f"| {name} | {found} | {'yes' if right else '**no**'} |", flush=True)
    if file:
        file.write_text(json.dumps(rows, indent=1) + "\n")
    return int(not all(row["right"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
