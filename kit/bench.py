"""Ways to serve, for the benchmark, and the table that it gives."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kit.files import CourseError
from kit.machine import hardware
from kit.serving import OnnxModel


def conditions() -> list:
    """What a measured time depends on beside the code."""
    import onnxruntime

    here = [hardware(), torch.get_num_threads()]
    return [*here, torch.__version__, onnxruntime.__version__]


@dataclass
class Backend:
    """One way to serve: `run` takes pixels uint8 (N, C, S, S) in host memory and
    returns probabilities (N, K) there.

    Copies to a device and back are inside `run`, for all alike.
    """

    name: str
    run: object
    device: str
    precision: str
    provider: str
    file: Path
    # so that `load_or_run` measures again on another machine
    conditions: list = field(default_factory=conditions, repr=False)


def torch_backend(
    network,
    checkpoint: Path,
    name: str,
    device: str = "cpu",
    channels_last: bool = False,
    dtype=torch.float32,
) -> Backend:
    """A network in PyTorch as one way to serve."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = deepcopy(network).to(device)
    network.model.to(dtype=dtype, memory_format=layout)

    def run(pixels: np.ndarray) -> np.ndarray:
        # On a GPU, ONNX Runtime may search for the quickest kernel, so PyTorch may as
        # well. (`enabled` is said, as its default here is False.)
        search = (
            torch.backends.cudnn.flags(enabled=True, benchmark=True)
            if device == "cuda"
            else nullcontext()
        )
        with torch.inference_mode(), search:
            return network(torch.from_numpy(pixels).to(device))[0].cpu().numpy()

    precision = str(dtype).removeprefix("torch.")
    return Backend(name, run, device, precision, "PyTorch", checkpoint)


def onnx_backend(path: Path, name: str, provider: str = "cpu", **options) -> list:
    """[an exported file, as one way to serve], or [] after saying why it does not start
    there: a row is left out, never run elsewhere.
    """
    try:
        model = OnnxModel(path, provider=provider, **options)
    except CourseError as error:
        print(f"{name} is left out: {error}")
        return []
    device = "cpu" if provider == "cpu" else "cuda"
    precision = model.metadata["precision"]
    return [Backend(name, model.predict, device, precision, model.provider, path)]


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
            row |= {"speedup": ratios.median()}
            row |= {"speedup_low": ratios.min(), "speedup_high": ratios.max()}
        table.append(row)
    return pd.DataFrame(table)


def percentiles(ms: np.ndarray) -> dict[str, float]:
    return {f"p{share}_ms": float(np.percentile(ms, share)) for share in (50, 95, 99)}
