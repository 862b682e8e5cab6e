"""Ways to serve, for the benchmark, and the table that it gives."""

from __future__ import annotations

import math
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kit.files import CourseError
from kit.machine import BUSY, OtherPrograms, hardware
from kit.serving import OnnxModel


def conditions() -> list:
    """What a measured time depends on beside the code."""
    import onnxruntime

    here = [hardware(), torch.get_num_threads()]
    return [*here, torch.__version__, onnxruntime.__version__]


class CalmRounds:
    """The rounds of a measurement: `rows` takes what each found, and gets its number
    (`round`) and the cores that other programs used meanwhile (`others`).

    A round that these disturbed is taken again, up to as many as there are rounds.
    """

    def __init__(self, rounds: int):
        self.rounds, self.rows = rounds, []

    def __iter__(self):
        calm = 0
        for number in range(2 * self.rounds):
            others, before = OtherPrograms(), len(self.rows)
            yield number
            cores = others.cores()
            for row in self.rows[before:]:
                row |= {"round": number, "others": round(cores, 2)}
            calm += cores < BUSY
            if calm == self.rounds:
                return

    def calmest(self) -> list[dict]:
        """The rows of so many rounds, those beside which others did least."""
        cores = {row["round"]: row["others"] for row in self.rows}
        kept = sorted(cores, key=cores.get)[: self.rounds]
        return [row for row in self.rows if row["round"] in kept]


def ratio_row(ratios: pd.Series, others: pd.Series) -> pd.Series:
    """A speedup over rounds: its median, smallest and largest, and whether to trust it.

    It is `busy` where other programs used BUSY cores or more (the median over the
    rounds), or where the middle half of the rounds spans more than half of the median.
    """
    middle, cores = ratios.median(), others.median()
    apart = (ratios.quantile(0.75) - ratios.quantile(0.25)) / middle
    row = {"speedup": middle, "speedup_low": ratios.min()}
    row |= {"speedup_high": ratios.max(), "others": cores}
    return pd.Series(row | {"busy": bool(cores >= BUSY or apart > 0.5)})


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

    @property
    def largest_batch(self) -> float:
        """Beside a GPU nobody serves many images on the CPU: 128 take it seconds."""
        beside_gpu = self.device == "cpu" and torch.cuda.is_available()
        return 32 if beside_gpu else math.inf


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
    if provider == "cuda":  # the quickest kernel for each size, as PyTorch's side has
        options = {"cudnn_conv_algo_search": "EXHAUSTIVE"} | options
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
        the backend, round by round, gives the columns of `ratio_row`.
    """
    frame, table = pd.DataFrame(rows), []
    medians = (
        frame.assign(ms=frame["ms"].map(np.median))
        .set_index(["backend", "batch", "round"])["ms"]
        .sort_index()
    )
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
            row |= ratio_row(ratios, group["others"])
        table.append(row)
    return pd.DataFrame(table)


def percentiles(ms: np.ndarray) -> dict[str, float]:
    return {f"p{share}_ms": float(np.percentile(ms, share)) for share in (50, 95, 99)}
