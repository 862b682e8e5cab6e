"""The machine that figures are measured on: device, precision, versions."""

from __future__ import annotations

import platform
import random
import re
import subprocess
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch


def seed_generators(seed: int) -> None:
    """Seed the three global generators, of Python, NumPy and torch, and leave
    everything else as it is.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that students add still use the global generator
    torch.manual_seed(seed)


def generator_states(device: torch.device) -> dict:
    """Where the global generators of Python, NumPy, torch and the device stand, as
    `torch.load` may read it.
    """
    name, key, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (name, key.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_generator_states(states: dict, device: torch.device) -> None:
    """Put the generators back to where `generator_states` found them; a state of a GPU
    needs a GPU.
    """
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


@contextmanager
def same_generators(device: torch.device):
    """Within this block random numbers may be drawn: nobody outside notices."""
    states = generator_states(device)
    try:
        yield
    finally:
        set_generator_states(states, device)


def hardware() -> str:
    """One line that names the machine a figure was measured on."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        name = found.group(1).strip() if found else name
    threads = torch.get_num_threads()
    cpu = f"{name}, {threads} thread{'s' * (threads > 1)}"
    return (
        f"{torch.cuda.get_device_name()} + {cpu}" if torch.cuda.is_available() else cpu
    )


def environment() -> pd.Series:
    """Versions and hardware of this run, one row each; `start` writes it to
    exports/environment.txt.
    """
    from importlib.metadata import PackageNotFoundError, version

    rows = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
    }
    for package in (
        "torch",
        "torchvision",
        "numpy",
        "pandas",
        "scipy",
        "scikit-learn",
        "pillow",
        "optuna",
        "onnx",
        "onnxruntime",
        "onnxruntime-gpu",
    ):
        try:
            rows[package] = version(package)
        except PackageNotFoundError:
            rows[package] = "not installed"
    rows |= {
        "system": platform.platform(),
        "hardware": hardware(),
        "autocast": str(amp_dtype(best_device())),
    }
    rows |= {"CUDA of torch": str(torch.version.cuda)}
    if torch.cuda.is_available():
        rows["GPU driver"] = _gpu_driver()
    return pd.Series(rows, name="value")


def _gpu_driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True).stdout.strip()
    except OSError:  # slim containers have a GPU and no nvidia-smi
        return "unknown"


# Cores that other programs may use before a time that was measured beside them is one
# of a busy machine.
BUSY = 0.25


class OtherPrograms:
    """How many cores the programs beside this one have used since it was asked."""

    def __init__(self):
        self.began = time.perf_counter(), *self._seconds()

    def cores(self) -> float:
        """On average since then: all that the machine worked, less what we did."""
        began, busy, ours = self.began
        now_busy, now_ours = self._seconds()
        worked = (now_busy - busy) - (now_ours - ours)
        return max(0.0, worked / max(time.perf_counter() - began, 1e-9))

    @staticmethod
    def _seconds() -> tuple[float, float]:
        """Processor seconds of the machine, and of this process with its children."""
        import psutil

        # what a guest does is counted as `user` already
        rest = {"idle", "iowait", "guest", "guest_nice"}
        times = psutil.cpu_times()._asdict()
        busy = sum(seconds for name, seconds in times.items() if name not in rest)
        return busy, sum(psutil.Process().cpu_times()[:4])


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpu_memory(device: torch.device) -> int:
    """Bytes of the whole GPU."""
    return torch.cuda.get_device_properties(device).total_memory


def amp_dtype(device: torch.device) -> torch.dtype | None:
    """Precision of autocast that pays on this hardware; None means plain float32.

    fp16 with loss scaling on compute capability 7.x (V100, T4), bf16 from 8.0 and on
    CPUs that multiply it in hardware (Intel AMX; AVX512-BF16, as in AMD Zen 4). Source:
    Micikevicius et al., Mixed Precision Training (2018)."""
    if device.type == "cuda":
        major = torch.cuda.get_device_capability(device)[0]
        return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else None
    return torch.bfloat16 if {"amx_bf16", "avx512_bf16"} & cpu_flags() else None


def multiplies_int8() -> bool:
    """Whether the processor multiplies 8-bit integers without overflow: VNNI, or Arm's
    dot products. Where nothing is known of it, yes.
    """
    known = {"avx512_vnni", "avx_vnni", "asimddp"}
    return not cpu_flags() or bool(known & cpu_flags())


@cache
def cpu_flags() -> frozenset[str]:
    """What Linux says of the processor, its instruction sets among it as far as PyTorch
    uses them; empty elsewhere.
    """
    cpuinfo = Path("/proc/cpuinfo")
    flags = frozenset(cpuinfo.read_text().split() if cpuinfo.exists() else ())
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return flags
    # bfloat16 would be emulated, and slow
    return frozenset(f for f in flags if not f.startswith(("amx", "avx512")))
