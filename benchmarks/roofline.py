"""Roofline: how much of the hardware's own rates a training step and an inference
reach. Run by hand.

    python benchmarks/roofline.py [--size 224] [--batch 64] [--rounds 5] [--network
    optimized]

Measured in turns on one device (a GPU if there is one): the rate of matrix
multiplication in the precision of autocast and the rate of memory (a copy of a large
tensor: read and written), then images a second of a whole training step and of a
forward pass. FLOPs come from PyTorch's own counter of multiplications (two a
multiply-add); the bytes are those that all operations read and write when none is fused
and nothing stays in a cache, so their fraction can pass 1. What comes close to 1 is the
limit (Williams, Waterman and Patterson, Roofline, 2009); where neither does, the time
goes elsewhere: into operations too small to fill the device, or into starting them.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils  # noqa: E402


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write; views move none."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        tensors = [
            leaf
            for leaf in tree_leaves((arguments, options, result))
            if isinstance(leaf, torch.Tensor)
        ]
        if not function.is_view:
            self.bytes += sum(
                tensor.numel() * tensor.element_size() for tensor in tensors
            )
        return result


def rate(work, device: torch.device, seconds: float) -> float:
    """Calls of `work` a second, over at least so many seconds, after one call that
    warms up.
    """
    work()
    calls, began = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - began < seconds:
        work()
        calls += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
    return calls / (time.perf_counter() - began)


def make_works(device: torch.device, size: int, batch: int, name: str) -> dict:
    """The four things that are timed, by name, and what each does: (callable, FLOPs,
    bytes, images).
    """
    dtype, side = (
        utils.amp_dtype(device) or torch.float32,
        (8192 if device.type == "cuda" else 1536),
    )
    square = torch.randn(side, side, device=device, dtype=dtype)
    source = torch.empty(side * side * 4, device=device)
    target = torch.empty_like(source)
    model = (utils.OptimizedCNN() if name == "optimized" else utils.BaselineCNN()).to(
        device
    )
    model.to(memory_format=torch.channels_last)
    images = torch.randn(batch, 1, size, size, device=device).to(
        memory_format=torch.channels_last
    )
    labels = torch.randint(0, 2, (batch,), device=device)
    optimizer, _ = utils.make_optimizer(model, utils.Recipe(), 10**6)
    scaler, criterion = utils.make_scaler(device), torch.nn.CrossEntropyLoss()

    def training():
        model.train()
        loss, _ = utils.train_step(model, images, labels, criterion, optimizer, scaler)
        loss.item()  # waits until the device is done

    def inference():
        model.eval()
        with torch.no_grad(), utils.autocast(device):
            model(images).argmax(dim=1).sum().item()

    def counted(work) -> tuple[float, float]:
        work()
        with FlopCounterMode(display=False) as flops, Traffic() as traffic:
            work()
        return flops.get_total_flops(), traffic.bytes

    return {
        "matrix": (lambda: square @ square, 2 * side**3, 0, 0),
        "memory": (lambda: target.copy_(source), 0, 2 * source.nbytes, 0),
        "training step": (training, *counted(training), batch),
        "inference": (inference, *counted(inference), batch),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of each work in each round"
    )
    parser.add_argument(
        "--network", choices=("optimized", "baseline"), default="optimized"
    )
    options = parser.parse_args()
    utils.set_seed()
    device = utils.best_device()
    works = make_works(device, options.size, options.batch, options.network)
    rounds = [
        {
            name: rate(work, device, options.seconds)
            for name, (work, *_) in works.items()
        }
        for _ in range(options.rounds)
    ]
    calls, rows = pd.DataFrame(rounds), []
    flops = {name: calls[name] * work[1] for name, work in works.items()}
    moved = {name: calls[name] * work[2] for name, work in works.items()}
    for name in ("training step", "inference"):
        columns = {
            "images/s": calls[name] * works[name][3],
            "GFLOP/s": flops[name] / 1e9,
            "GB/s": moved[name] / 1e9,
            "of matrix rate": flops[name] / flops["matrix"],
            "of memory rate": moved[name] / moved["memory"],
        }
        rows += [
            {
                "work": name,
                "figure": figure,
                "median": values.median(),
                "min": values.min(),
                "max": values.max(),
            }
            for figure, values in columns.items()
        ]
    print(pd.DataFrame(rows).set_index(["work", "figure"]).round(3).to_string())
    print(
        f"matrix: {flops['matrix'].median() / 1e9:.0f} GFLOP/s in"
        f" {utils.amp_dtype(device) or torch.float32}"
        f" [{flops['matrix'].min() / 1e9:.0f}, {flops['matrix'].max() / 1e9:.0f}];"
        f" memory: {moved['memory'].median() / 1e9:.1f} GB/s"
        f" [{moved['memory'].min() / 1e9:.1f}, {moved['memory'].max() / 1e9:.1f}]"
    )
    print(
        f"n = {options.rounds} rounds; {options.network} at {options.size} px, batches"
        f" of {options.batch}; {utils.hardware()}, {os.cpu_count()} CPUs, torch"
        f" {torch.__version__}"
    )


if __name__ == "__main__":
    main()
