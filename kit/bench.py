"""Backends of the benchmark and its tables."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kit.files import KIT, CourseError


@dataclass
class Backend:
    """One way to serve: `run` takes pixels uint8 (N, C, S, S) in host memory and
    returns probabilities (N, K) there.

    Copies to a device and back are inside `run`, for all alike. From `spec`,
    tools/service.py builds the same in a process of its own.
    """

    name: str
    run: object
    device: str
    precision: str
    provider: str
    file: Path
    spec: dict = field(default_factory=dict)


def torch_runner(
    network,
    device: str = "cpu",
    channels_last=False,
    dtype=torch.float32,
    compiled=False,
):
    """A function from pixels to probabilities, both in host memory, that PyTorch
    computes.
    """
    from copy import deepcopy

    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = deepcopy(network).to(device)
    network.model.to(dtype=dtype, memory_format=layout)
    call = torch.compile(network, dynamic=True) if compiled else network

    def run(pixels: np.ndarray) -> np.ndarray:
        # On a GPU, ONNX Runtime may search for the quickest kernel, so PyTorch may as
        # well. (`enabled` is said, as its default here is False.)
        search = (
            torch.backends.cudnn.flags(enabled=True, benchmark=True)
            if device == "cuda"
            else nullcontext()
        )
        with torch.inference_mode(), search:
            return call(torch.from_numpy(pixels).to(device))[0].cpu().numpy()

    return run


def warm_up(run, pixels: np.ndarray, most: int = 30) -> int:
    """Call until two groups of three calls in a row agree within 10 %, at most `most`
    times; returns the calls.
    """
    times = []
    while len(times) < most:
        times.append(timed(run, pixels))
        if (
            len(times) >= 6
            and abs(np.median(times[-3:]) / np.median(times[-6:-3]) - 1) < 0.1
        ):
            break
    return len(times)


def timed(run, pixels) -> float:
    began = time.perf_counter()
    run(pixels)
    return 1000 * (time.perf_counter() - began)


def benchmark_table(
    rows: list, against: dict[str, str] | str | None = None
) -> pd.DataFrame:
    """One row a backend and batch size: p50_ms, p95_ms, p99_ms, images_s, calls; with
    `against`, the speedup.

    Parameters
    ----------
    against : str or dict, optional
        The reference backend, or one for each backend. Its median over the median of
        the backend, round by round: speedup is the median of these ratios, speedup_low
        and speedup_high the smallest and largest.
    """
    frame = pd.DataFrame(rows)
    medians = (
        frame.assign(ms=frame["ms"].map(np.median))
        .set_index(["backend", "batch", "round"])["ms"]
        .sort_index()
    )
    table = []
    for (name, batch), group in frame.groupby(["backend", "batch"], sort=False):
        ms = np.concatenate(group["ms"].to_list())
        row = {
            "backend": name,
            "batch": batch,
            **percentiles(ms),
            "images_s": 1000 * batch / ms.mean(),
            "calls": len(ms),
        }
        if against:
            reference = against[name] if isinstance(against, dict) else against
            ratios = medians[reference, batch] / medians[name, batch]
            row |= {
                "speedup": ratios.median(),
                "speedup_low": ratios.min(),
                "speedup_high": ratios.max(),
            }
        table.append(row)
    return pd.DataFrame(table)


def clients_table(rows: list) -> pd.DataFrame:
    """One row a backend and number of clients: images_s (median of the rounds), low and
    high (the smallest and largest round), p50_ms, p95_ms, p99_ms, calls."""
    table = []
    for (name, count), group in pd.DataFrame(rows).groupby(
        ["backend", "clients"], sort=False
    ):
        ms = np.concatenate(group["ms"].to_list())
        images_s = group["images_s"]
        table.append(
            {
                "backend": name,
                "clients": count,
                "images_s": images_s.median(),
                "low": images_s.min(),
                "high": images_s.max(),
                **percentiles(ms),
                "calls": len(ms),
            }
        )
    return pd.DataFrame(table)


def percentiles(ms: np.ndarray) -> dict[str, float]:
    return dict(
        zip(
            ("p50_ms", "p95_ms", "p99_ms"),
            np.percentile(ms, [50, 95, 99]).tolist(),
            strict=True,
        )
    )


def benchmark_services(
    backends: list[Backend], pixels: np.ndarray, clients=(1, 4), seconds=0.2, rounds=3
) -> dict:
    """Every backend as a service of its own process: its memory, and several clients at
    once.

    In one process the backends would disturb each other: threads of a second client
    make OpenMP, and with it PyTorch, slow for good. Each client sends one image as soon
    as it has its answer; the services take turns.

    Returns
    -------
    dict
        memory: by backend, peak of the host and memory of the GPU in MiB, after 32
        images (NaN where it is unknown). clients: list of dict backend, clients, round,
        images_s (of all together), ms (latency of each call).

    Raises
    ------
    CourseError
        A process does not start, or dies.
    """
    from concurrent.futures import ThreadPoolExecutor

    with tempfile.TemporaryDirectory() as folder:
        np.save(
            f"{folder}/images.npy",
            np.concatenate([pixels] * math.ceil(32 / len(pixels)))[:32],
        )
        # on a GPU, memory is seen one by one
        with ThreadPoolExecutor(1 if torch.cuda.is_available() else 2) as pool:
            services = list(
                pool.map(
                    lambda backend: start_service(backend, f"{folder}/images.npy"),
                    backends,
                )
            )
    rows, pairs = [], list(zip(backends, services, strict=True))
    try:
        for number in range(rounds):
            turn = number % len(pairs)
            for backend, (process, _) in pairs[turn:] + pairs[:turn]:
                for count in clients:
                    # it has died: it will not answer either
                    with suppress(BrokenPipeError):
                        process.stdin.write(json.dumps([count, seconds]) + "\n")
                        process.stdin.flush()
                    told = process.stdout.readline()
                    if not told:
                        raise CourseError(
                            f"The process that serves {backend.name} died with {count}"
                            " clients: run the cell again; if it dies again, memory is"
                            " short."
                        )
                    rows.append(
                        {
                            "backend": backend.name,
                            "clients": count,
                            "round": number,
                            **json.loads(told),
                        }
                    )
    finally:
        for process, _ in services:
            with suppress(BrokenPipeError):
                process.communicate()  # the end of its input ends it
    return {
        "memory": {backend.name: memory for backend, (_, memory) in pairs},
        "clients": rows,
    }


def start_service(backend: Backend, images: str):
    """Start tools/service.py, wait until it has served; returns the process and its
    memory.
    """
    free = torch.cuda.mem_get_info()[0] if backend.device == "cuda" else 0
    command = [
        sys.executable,
        str(KIT / "tools" / "service.py"),
        json.dumps(backend.spec, default=str),
        images,
    ]
    # a pipe that nobody reads would block the service when it is full
    with tempfile.TemporaryFile("w+") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        process = subprocess.Popen(command, text=True, **pipes)
        line = process.stdout.readline()
        if not line:
            errors.seek(0)
            said = " ".join(errors.read().strip().splitlines()[-3:]) or "no message"
            raise CourseError(
                f"{backend.name} did not start in a process of its own: {said}"
            )
    used = (
        (free - torch.cuda.mem_get_info()[0]) / 2**20
        if backend.device == "cuda"
        else math.nan
    )
    # counts anew for each program, unlike ru_maxrss
    found = re.search(r"VmHWM:\s*(\d+) kB", json.loads(line))
    return process, {
        "memory_mb": int(found[1]) / 1024 if found else math.nan,
        "gpu_mb": used,
    }
