"""The lecture of "Deep Learning with PyTorch – MLOps pipeline: data to production".

A preface and eight chapters: chapter N is theme N, and the names of the course's
handout stand at the heads of their chapters. What no chapter talks about stands in
kit/: files, folders, records, figures, sessions. Heavy libraries are imported in the
one function that needs them, so `import utils` stays quick.
"""

from __future__ import annotations

import inspect
import itertools
import math
import operator
import os
import time
from collections import defaultdict
from contextlib import closing, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import swa_utils

# What the chapters stand on; `noqa` marks the few names that only notebooks call.
from kit import studies
from kit.bench import (  # noqa: F401
    Backend,
    CalmRounds,
    benchmark_table,
    onnx_backend,
    ratio_row,
    torch_backend,
)
from kit.datasets import open_dataset
from kit.drifts import DRIFTS, Drift, drift_images, drift_window, drifts_of  # noqa: F401
from kit.evidence import PAIRS, VARIANTS
from kit.files import (  # noqa: F401
    CourseError,
    alone,
    atomic,
    check_choice,
    copy_back,
    copy_to_home,
    hash_file,
    now,
    read_json,
    write_json,
)
from kit.fingerprint import fingerprint, remember_sources
from kit.gate import Answers, Check, GateReport, counted, size_of_mix, unmeasured
from kit.handout import from_handout, missing_name
from kit.home import (  # noqa: F401
    DATASETS,
    POOLS,
    PROFILES,
    Course,
    asked_threads,
    catch_up,
    greet,
    open_home,
)
from kit.images import (
    EXCLUDING,
    add_flag,
    decode,
    load_index,
    pixel_cache,
    stored_index,
)
from kit.log import AppendOnlyCsv, new_run_id, rows_of, ticks_of
from kit.machine import (  # noqa: F401
    BUSY,
    amp_dtype,
    best_device,
    environment,
    gpu_memory,
    hardware,
    multiplies_int8,
    same_generators,
    seed_generators,
)
from kit.own import (  # noqa: F401
    OWN,
    TABLES,
    load_own,
    register_augmentation,
    register_detector,
    register_drift,
    register_model,
    register_rule,
    seeded,
    split_head,
)
from kit.pretrained import SMALLEST, build_pretrained
from kit.promotion import promote, read_audit  # noqa: F401
from kit.ranks import add_up, parallel, rank_and_world, take_buffers_of_rank0
from kit.record import (  # noqa: F401
    check_criteria,
    hash_inputs,
    record,
    record_settings,
    save_figure,
    save_predictions,
    save_table,
    stale,
    stored_predictions,
)
from kit.runs import (  # noqa: F401
    Session,
    TrainingStopped,
    check_recipe,
    fill_in,
    load_or_run,
    one_training,
    read_state,
    save_state,
    stopped,
)
from kit.serving import (
    LAYERS,
    OnnxModel,
    check_numbers,
    export_once,
    make_session,
    open_to_quantize,
    store_onnx,
)
from kit.trackers import Curves, show_tensorboard  # noqa: F401
from kit.watching import (
    Decision,
    DecisionLog,
    DriftResult,
    Observation,
    Reference,
    as_result,
    check_detector,
    check_features,
    check_pair,
    check_policy,
    check_reach,
    check_window,
    explain,
    grey_levels,
    join,
    read_drift_report,
)
from kit.webhook import send_alert
from models.baseline_cnn import BaselineCNN
from models.optimized_cnn import OptimizedCNN
from models.pretrained_cnn import PretrainedCNN

NETWORKS = (BaselineCNN, OptimizedCNN, PretrainedCNN)
MODELS = {network.__name__: network for network in NETWORKS}
# From 1.29 on, ONNX Runtime sends what it runs to its maker, and keeps an identifier in
# the user's folder, unless told.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


# ======================================================================================
# PREFACE: seeds and one home, before any theme
# ======================================================================================


def set_seed(seed: int = 42, threads: int | None = None) -> None:
    """Fix every source of randomness and, with `threads`, the way that sums are split.

    Floating-point addition is not associative: another number of threads gives other
    last bits, and after an epoch other weights. `start` takes the number of the home,
    which COURSE_THREADS overrides.

    Parameters
    ----------
    seed : int
        Of Python, NumPy and PyTorch, on the CPU and on every GPU.
    threads : int, None leaves the number as it is
    """
    seed_generators(seed)
    if threads is not None:
        torch.set_num_threads(threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # use_deterministic_algorithms would also import the compiler, for 2 s
    torch.set_deterministic_debug_mode("warn")
    # else every new tensor is first filled with NaN
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False


def start(
    theme,
    dataset="pneumonia",
    source="auto",
    profile="auto",
    image_size=None,
    seed=42,
    drive=False,
    home=None,
) -> Course:
    """Open the course for one theme: seeds, device, folders, dataset, prerequisites.

    Parameters
    ----------
    theme : int, 1 to 8
    dataset : {"pneumonia", "pneumonia3", "solar"}
    source : {"auto", "kaggle", "sample"}, or the folder above chest_xray/
    profile : {"auto", "smoke", "quick", "full"}
        `auto` is what the home already holds, else full with a GPU and quick without.
    image_size : int, optional
        Pixels of a side, at least 32; the profile's own when None.
    drive : bool
        On Colab: keep the results on Google Drive, the pixels on the local disk.
    home : path, optional
        Folder of all artefacts; COURSE_HOME, else the kit's folder when None. With
        `drive` a folder below MyDrive, `dl-course` when None.
    """
    asked = theme, dataset, source, profile, image_size, seed, drive, home
    home, local, settings = open_home(*asked)
    set_seed(seed, asked_threads(settings))
    course = open_dataset(theme, home, local, settings)
    load_own(home, (course.channels, len(course.classes), course.image_size))
    copy_back(course, course.logs)  # after a lost runtime: the lines that were kept
    record_settings(course, settings)
    greet(course, settings.get("why_sample", ""))
    print(*stale(course), sep="\n", end="")
    return course


# ======================================================================================
# 1 · DATA: from folders of files to batches on the device
# ======================================================================================


# ---- Which images are the same, and who may see which --------------------------------


def perceptual_hash(thumbnails: np.ndarray) -> np.ndarray:
    """Signs of low cosine frequencies: uint8 (N, 32, 32) -> float32 (N, 255) of -1, 1.

    Pictures that look alike share most signs, whatever their size or compression.
    Source: Zauner, Implementation and benchmarking of perceptual image hash functions
    (2010).
    """
    from scipy.fft import dctn

    frequencies = dctn(thumbnails.astype(np.float32), axes=(1, 2))
    low = frequencies[:, :16, :16].reshape(len(thumbnails), -1)  # (N, 256)
    low = low[:, 1:]  # without the mean grey level
    above = low > np.median(low, axis=1, keepdims=True)
    return np.where(above, 1, -1).astype(np.float32)


def near_duplicates(
    thumbnails: np.ndarray, max_bits: int = 40, max_difference: float = 4.0
) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, that differ in few bits of the hash and few grey levels."""
    signs, pairs = perceptual_hash(thumbnails), []
    for first in range(0, len(signs), 1024):  # in blocks: memory stays at 1024 x N
        bits = (signs.shape[1] - signs[first : first + 1024] @ signs.T) / 2
        for i, j in zip(*np.nonzero(bits <= max_bits), strict=True):
            i += first
            difference = thumbnails[i].astype(float) - thumbnails[j]
            if i < j and np.abs(difference).mean() <= max_difference:
                pairs.append((int(i), int(j)))
    return pairs


def build_index(course: Course) -> pd.DataFrame:
    """The table that drives everything, data/<dataset>/index.csv: a row an image file.

    Columns: path, label, subtype, patient, group, split, pool, width, height, mode,
    brightness, contrast, saturated, bytes, sha256, flags. `.attrs["repairs"]` holds
    what was repaired. Loads at once when no file has changed since.
    """

    def put_in_order(table):
        return assign_pools(flag_and_group(table), course.seed)

    return stored_index(course, put_in_order)


def flag_and_group(table: pd.DataFrame) -> pd.DataFrame:
    """Flag copies, and number the families: images that must stay in one pool."""
    seen = ~table["flags"].str.contains("unreadable|blank|animated")
    test = table["split"] == "test"
    # the same file twice
    copies = table[seen & table["sha256"].duplicated(keep=False)]
    for _, same in copies.groupby("sha256"):
        if same["label"].nunique() > 1:  # which label is right?
            add_flag(table, same.index, "conflicting_label")
        elif len(same) > 1:  # kept is the official test image, else the first
            kept = test[same.index].idxmax()
            add_flag(table, same.index.drop(kept), "exact_duplicate")
    # the same picture in two files
    rows = np.flatnonzero(seen)
    pairs = near_duplicates(np.stack(table.loc[rows, "thumbnail"]))
    pairs = rows[np.array(pairs, dtype=int).reshape(-1, 2)]  # (P, 2)
    content = table["sha256"].to_numpy()[pairs]
    alike = pairs[content[:, 0] != content[:, 1]]
    add_flag(table, np.unique(alike), "near_duplicate")
    table["group"] = families(table["patient"], pairs)
    # Of a family with an official test image, only the test images may be used.
    with_test = table["group"].isin(table["group"][test])
    add_flag(table, with_test & ~test, "leak_into_test")
    return table


def families(patients: pd.Series, pairs: np.ndarray) -> np.ndarray:
    """Number of each image's family, int (N,): images that belong together.

    They are the connected components of a graph, whose edges join images of one patient
    and look-alikes, `pairs` (P, 2) of rows.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    rows = pd.Series(range(len(patients)))
    first = rows.groupby(patients.to_numpy()).transform("first")  # of that patient
    edges = np.concatenate([pairs, np.stack([rows, first], axis=1)])  # (E, 2)
    size = (len(rows), len(rows))
    graph = coo_matrix((np.ones(len(edges)), edges.T), shape=size)
    return connected_components(graph, directed=False)[1]


def assign_pools(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Give each usable image its pool: stratified by subtype, no group in two pools.

    Pneumonia keeps its official test set; solar draws 15 % of its groups. The rest is
    shared out as in POOLS.
    """
    usable = ~table["flags"].str.contains("|".join(EXCLUDING))
    test = usable & (table["split"] == "test")
    rest = usable & ~test
    shares = POOLS
    if not test.any():
        shares = {"test": 0.15} | {pool: 0.85 * share for pool, share in POOLS.items()}
    groups = table[rest].groupby("group")
    groups = groups.agg(stratum=("subtype", "first"), size=("path", "size"))
    order = np.random.default_rng(seed).permutation(len(groups))
    # Large patients first: they are the hardest to fit in.
    groups = groups.iloc[order].sort_values("size", ascending=False, kind="stable")
    chosen = {}
    for _, stratum in groups.groupby("stratum"):
        chosen |= share_out(stratum["size"], shares)
    pool = table["group"].map(chosen).where(rest, "").mask(test, "test")
    return table.assign(pool=pool)


def share_out(sizes: pd.Series, shares: dict[str, float]) -> dict[int, str]:
    """The pool of each group of images: the one that lacks most.

    For a group of a single image it is the one that lacks most for its size.
    """
    lacks = {pool: share * sizes.sum() for pool, share in shares.items()}
    chosen = {}
    for group, size in sizes.items():
        need = lacks
        if size == 1:
            need = {pool: lacks[pool] / shares[pool] for pool in shares}
        chosen[group] = max(need, key=need.get)
        lacks[chosen[group]] -= size
    return chosen


# ---- Batches: pixels decoded once, read as they are asked for ------------------------


@dataclass
class Data:
    """Every image that has a pool; `index`, `pixels` and `labels` share their order."""

    index: pd.DataFrame
    pixels: np.ndarray  # uint8 (N, C, S, S)
    labels: np.ndarray  # int64 (N,)
    classes: tuple[str, ...]
    mean: list[float]  # of the training pixels, in 0..1, one a channel
    std: list[float]
    key: str
    course: Course

    @cached_property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`pixels` and `labels` for loaders: copied to the GPU where they take less
        than a tenth of it, so that no batch has to travel.
        """
        device, pixels = self.course.device, torch.from_numpy(self.pixels)
        labels = torch.from_numpy(self.labels)
        if device.type == "cuda" and 10 * pixels.nbytes < gpu_memory(device):
            return pixels.to(device), labels.to(device)
        return pixels, labels

    @property
    def about(self) -> dict:
        """What a checkpoint must know of the images that its network learned from."""
        course = self.course
        return {
            "classes": list(self.classes),
            "mean": self.mean,
            "std": self.std,
            "size": course.image_size,
            "channels": course.channels,
            "dataset": course.dataset,
            "seed": course.seed,
        }

    def normalised(self, mean: list[float], std: list[float]) -> Data:
        """The same images, for a network that learned with another mean and std."""
        if (mean, std) == (self.mean, self.std):
            return self
        key = fingerprint(self.key, mean, std)
        return replace(self, mean=mean, std=std, key=key)

    def few(self, count: int) -> Data:
        """The same with only `count` images to train on, drawn by the seed; fewer are
        part of more.
        """
        train = self.where("train")
        drawn = np.random.default_rng(self.course.seed).permutation(train)
        pool = self.index["pool"].copy()
        pool.iloc[drawn[count:]] = ""
        index = self.index.assign(pool=pool)
        return replace(self, index=index, key=fingerprint(self.key, drawn[:count]))

    def where(self, pool: str) -> np.ndarray:
        """Row numbers of a pool, int64 (n,)."""
        check_choice("pool", pool, ("test", *POOLS))
        return np.flatnonzero(self.index["pool"] == pool)

    def loader(self, pool: str, batch_size=64, augment=None, shuffle=False):
        """Batches of a pool; only training shuffles or augments (see AUGMENT)."""
        if (augment or shuffle) and pool != "train":
            raise CourseError(
                f"Pool {pool} is for measuring: only 'train' is shuffled or augmented."
            )
        if pool != "train":  # 256 images of 448 px would need four times the memory
            batch_size = min(batch_size, max(1, 256 * 224**2 // self.pixels[0, 0].size))
        rows = self.where(pool)
        loader = BatchLoader(self, rows, batch_size, augment, shuffle)
        # theme 7's gate proves with them that it judges on unseen images
        if "sha256" in self.index:
            loader.hashes = self.index["sha256"].iloc[rows].tolist()
        return loader


def load_data(course: Course, checkpoint: Path | None = None) -> Data:
    """Index, pixels and labels of all images that have a pool; mean and std are those
    of the training pixels, or those with which the network of a checkpoint learned.
    """
    index = load_index(course)
    index = index[index["pool"] != ""].reset_index(drop=True)
    pixels = pixel_cache(course, index)
    numbers = {name: number for number, name in enumerate(course.classes)}
    labels = index["label"].map(numbers).to_numpy(np.int64, copy=True)
    mean, std = mean_and_std(pixels, np.flatnonzero(index["pool"] == "train"))
    hashes, pools = index["sha256"].tolist(), index["pool"].tolist()
    parts = hashes, pools, labels, course.image_size, course.channels
    key = fingerprint(decode, *parts)
    data = Data(index, pixels, labels, course.classes, mean, std, key, course)
    if checkpoint is None:
        return data
    state = load_checkpoint(checkpoint)
    return data.normalised(state["mean"], state["std"])


def mean_and_std(pixels: np.ndarray, rows: np.ndarray) -> tuple[list, list]:
    """Of the pixels in 0..1, one number a channel.

    Counting the 256 grey levels, in blocks, is exact and needs no float copy.
    """
    counts = np.zeros((pixels.shape[1], 256))
    for block in np.array_split(rows, len(rows) // 256 + 1):
        for channel, levels in enumerate(counts):
            levels += np.bincount(pixels[block, channel].ravel(), minlength=256)
    shares = counts / counts.sum(axis=1, keepdims=True)
    greys = np.arange(256) / 255
    mean = shares @ greys
    std = np.sqrt(shares @ greys**2 - mean**2)
    return mean.tolist(), std.tolist()


class BatchLoader:
    """Batches on the device: images float32 normalised (N, C, S, S), labels int64 (N,).

    The pixels travel as uint8, four times less than float32, or lie on the GPU already
    (`Data.tensors`); augmentation then runs on the whole batch, with one draw per
    sample, whose numbers travel once an epoch. Every pass is one epoch: its order and
    its draws depend on (seed, epoch) alone, so a training that was interrupted can go
    on in the middle. A look at one batch is no pass.

    With `shared`, each process of a training takes its share of every batch.
    """

    def __init__(self, data, rows, batch_size, augment=None, shuffle=False):
        if len(rows) == 0:
            raise CourseError("This pool is empty: run the notebook of theme 1 again.")
        if len(rows) < batch_size and shuffle:
            print(
                f"The pool has {len(rows)} images, fewer than a batch of {batch_size}."
            )
        self.dataset = rows  # len(loader.dataset), as torch's own loader has it
        self.pixels, self.targets = data.tensors
        self.rows, self.batch_size = torch.from_numpy(rows), min(batch_size, len(rows))
        self.augment, self.shuffle, self.shared = augment, shuffle, False
        self.own = [*OWN.get("augmentation", {}).values()] if augment else []
        self.seed, self.device = data.course.seed, data.course.device
        self.epoch = self.first_batch = 0
        self.mean = torch.tensor(data.mean, device=self.device).view(1, -1, 1, 1)
        self.std = torch.tensor(data.std, device=self.device).view(1, -1, 1, 1)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    @property
    def labels(self) -> np.ndarray:
        return self.targets.cpu()[self.rows].numpy()

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order, draws = torch.arange(len(self.rows)), {}
        if self.shuffle:
            order = torch.randperm(len(order), generator=generator)
        if self.augment:
            draws = draw_augmentation(len(order), self.augment, generator)
        rows = self.rows[order].to(self.pixels.device)  # (N,)
        drawn = torch.stack([draw[order] for draw in draws.values()] or [order])
        drawn = self._to_device(drawn)  # (effects, N)
        for first in range(0, len(order), self.batch_size)[self.first_batch :]:
            batch = slice(first, first + self.batch_size)
            own = self._own_share(rows[batch])
            if len(own) == 0:
                continue
            images = self._to_device(self.pixels[own]).float() / 255  # (N, C, S, S)
            if draws:
                numbers = self._own_share(drawn[:, batch]).unbind()
                images = augment(images, dict(zip(draws, numbers, strict=True)))
            for function in self.own:  # of the group, its draws as repeatable as ours
                number = [self.seed, self.epoch, int(order[first])]
                images = seeded(function, images, number)
            labels = self._to_device(self.targets[own])  # (N,)
            yield (images - self.mean) / self.std, labels
        self.epoch, self.first_batch = self.epoch + 1, 0

    def _own_share(self, batch: torch.Tensor) -> torch.Tensor:
        """What this process takes of a batch, (..., N). In training all take as many:
        where the images do not go round, the first ones serve twice, as in torch's
        sampler.
        """
        rank, world = rank_and_world() if self.shared else (0, 1)
        if self.shuffle and world > 1:
            size = math.ceil(batch.shape[-1] / world) * world
            batch = torch.cat([batch] * world, dim=-1)[..., :size]
        return batch[..., rank::world]

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type == self.device.type:
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


# ---- The naive loader, to measure ours against ---------------------------------------


class NaiveImages(torch.utils.data.Dataset):
    """What most tutorials do: PIL opens and transforms an image when asked for it."""

    def __init__(self, data: Data, rows: np.ndarray):
        from torchvision import transforms as T

        size, grey = data.course.image_size, data.course.channels == 1
        steps = [T.Grayscale()] if grey else []
        steps += [
            T.Resize((size, size)),
            T.RandomHorizontalFlip(),
            T.RandomAffine(10, (0.08, 0.08), (0.85, 1.15)),
            T.ColorJitter(0.15, 0.25),
            T.ToTensor(),
            T.Normalize(data.mean, data.std),
            T.RandomErasing(0.5),
        ]
        self.transform = T.Compose(steps)
        self.files = [data.course.root / path for path in data.index["path"].iloc[rows]]
        self.labels = data.labels[rows]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: int):
        from torchvision.datasets.folder import default_loader

        return self.transform(default_loader(self.files[item])), int(self.labels[item])


def compare_loaders(data: Data, rounds: int = 3, images: int = 600) -> list[dict]:
    """Images per second of the naive loader and of ours, in interleaved rounds.

    Both augment every sample and deliver normalised float32 batches of 64 on the
    device; the start of the worker processes counts, as it does in every epoch.
    Returns a list of dict: naive, cached, round, others (cores of other programs).
    """
    rows = data.where("train")[:images]
    options = {"batch_size": 64, "shuffle": True, "num_workers": 2}
    loaders = {
        "naive": torch.utils.data.DataLoader(NaiveImages(data, rows), **options),
        "cached": BatchLoader(data, rows, 64, AUGMENT[data.course.dataset], True),
    }
    turns = CalmRounds(rounds)
    for _ in turns:
        row = {}
        for name, loader in loaders.items():
            began = time.perf_counter()
            for pixels, _ in loader:
                pixels.to(data.course.device)
            if data.course.device.type == "cuda":
                torch.cuda.synchronize()
            row[name] = len(rows) / (time.perf_counter() - began)
        turns.rows.append(row)
    return turns.calmest()


# ---- Augmentation: one draw per sample, applied to the batch on its device -----------


# Ranges of the augmentation: what the world may change without changing the answer.
AUGMENT = {
    # Squashed to a square, a picture's own width and height become the width of the
    # lungs: "stretch" hides that hint.
    "pneumonia": {
        "rotate": 10,
        "zoom": 0.15,
        "stretch": 0.1,
        "shift": 0.08,
        "flip": True,
        "brightness": 0.15,
        "contrast": 0.25,
        "gamma": 0.3,
        "blur": 0.7,
        "noise": 0.04,
        "erase": 0.25,
    },
    # Panels are dark blue and a few pixels wide: interpolation, other light, blur,
    # noise and holes all cost more than they bring (measured on validation images).
    # Half of the roofs are only shifted, mirrored and turned by quarters.
    "solar": {
        "rotate": 10,
        "turn": True,
        "zoom": 0.1,
        "shift": 0.08,
        "flip": True,
        "affine": 0.5,
    },
}
AUGMENT["pneumonia3"] = AUGMENT["pneumonia"]


def draw_augmentation(count: int, ranges: dict, generator) -> dict[str, torch.Tensor]:
    """A whole epoch's augmentation: of each effect one number a sample, float32."""

    def uniform(low, high):
        return torch.rand(count, generator=generator) * (high - low) + low

    most = defaultdict(float, ranges)  # an effect that is not named stays at rest
    # Interpolation blurs: where details of a pixel matter, only the share "affine" of
    # the images is turned and zoomed.
    moved = (uniform(0, 1) < ranges.get("affine", 1.0)).float()
    draws = {
        "angle": moved * uniform(-most["rotate"], most["rotate"]) * math.pi / 180,
        "scale": 1 + moved * uniform(-most["zoom"], most["zoom"]),
        # wider and lower, or the other way
        "stretch": torch.exp(moved * uniform(-most["stretch"], most["stretch"])),
        "x": uniform(-most["shift"], most["shift"]),
        "y": uniform(-most["shift"], most["shift"]),
        "mirror": torch.where(uniform(0, 1) < most["flip"] / 2, -1.0, 1.0),
        "brightness": uniform(-most["brightness"], most["brightness"]),
        "contrast": uniform(1 - most["contrast"], 1 + most["contrast"]),
        "gamma": torch.exp(uniform(-most["gamma"], most["gamma"])),
        "blur": uniform(0, most["blur"]),
        "noise": uniform(0, most["noise"]),
        "erase": torch.where(uniform(0, 1) < 0.5, uniform(0, most["erase"]), 0.0),
    }
    # Where the hole and the noise lie.
    draws |= {name: uniform(0, 1) for name in ("place_x", "place_y", "texture")}
    if ranges.get("turn"):  # by quarters: pixels move onto pixels, nothing is blurred
        draws["angle"] = draws["angle"] + torch.floor(uniform(0, 4)) * math.pi / 2
    return draws


def augment(images: torch.Tensor, draws: dict[str, torch.Tensor]) -> torch.Tensor:
    """Apply one draw per sample to a batch, (N, C, S, S) floats in 0..1.

    Affine maps and interpolation: Jaderberg et al., Spatial Transformer Networks
    (2015); holes: Zhong et al., Random Erasing (2017).
    """
    n, _, size, _ = images.shape
    # turned, zoomed, stretched, mirrored and shifted: one affine map a sample
    cos, sin = torch.cos(draws["angle"]), torch.sin(draws["angle"])
    wide = draws["mirror"] / (draws["scale"] * draws["stretch"])
    tall = draws["stretch"] / draws["scale"]
    x = torch.round(draws["x"] * size) * 2 / size  # whole pixels: it blurs nothing
    y = torch.round(draws["y"] * size) * 2 / size
    matrix = torch.stack([cos * wide, -sin * tall, x, sin * wide, cos * tall, y], dim=1)
    grid = F.affine_grid(matrix.view(n, 2, 3), images.shape, align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    # softer, lighter or darker, noisier
    d = {name: values.view(-1, 1, 1, 1) for name, values in draws.items()}
    soft = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.lerp(images, soft, d["blur"])
    mean = images.mean(dim=(2, 3), keepdim=True)
    images = ((images - mean) * d["contrast"] + mean + d["brightness"]).clamp(0, 1)
    images = images.clamp_min(1e-4) ** d["gamma"]
    images = images + d["noise"] * _texture(draws["texture"], size)
    # a square hole in the mean grey
    line = torch.linspace(0, 1, size, device=images.device)
    far_x = (line.view(1, 1, 1, -1) - d["place_x"]).abs()
    far_y = (line.view(1, 1, -1, 1) - d["place_y"]).abs()
    hole = torch.maximum(far_x, far_y) < d["erase"] / 2
    return torch.where(hole, mean, images).clamp(0, 1)


def _texture(where: torch.Tensor, size: int) -> torch.Tensor:
    """Noise (N, 1, size, size) from one fixed field; `where` (N,), 0..1, is drawn."""
    line = torch.arange(size, device=where.device)
    top, left = (where * 512).long(), (where * 7919 * 512).long()
    rows = (top.view(-1, 1, 1) + line.view(1, -1, 1)) % 512
    columns = (left.view(-1, 1, 1) + line.view(1, 1, -1)) % 512
    return _noise(where.device)[rows, columns].unsqueeze(1)


@cache
def _noise(device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(512, 512, generator=generator).to(device)


# ======================================================================================
# 2 · TRAINING: a step, an epoch, a training that resumes
# ======================================================================================


def count_parameters(model: nn.Module) -> int:
    """Number of trainable numbers in a network."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def train_step(
    model, images, labels, criterion, optimizer, scaler, clip=None, amp=True
):
    """One step of gradient descent in mixed precision: loss, number of right answers.

    Both stay on the device: asking for them would make the CPU wait for the GPU.
    Source: Micikevicius et al., Mixed Precision Training (2018).
    """
    with autocast(images.device, amp):
        logits = model(images)  # (N, C, S, S) -> (N, K)
    loss = criterion(logits.float(), labels)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)  # the clip shall see the true gradient
    nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
    scaler.step(optimizer)  # float16: a step with an infinite gradient is skipped
    scaler.update()
    return loss.detach(), (logits.argmax(dim=1) == labels).sum()


@from_handout
def train_epoch(
    model,
    loader,
    criterion,
    optimizer,
    device,
    scaler=None,
    scheduler=None,
    step=train_step,
    totals=None,
    on_step=None,
) -> tuple[float, float]:
    """Train for one epoch: mean loss and accuracy, measured while the weights changed.

    Parameters
    ----------
    loader : yields images, float (N, C, H, W), and labels, int64 (N,)
    scaler : torch.amp.GradScaler, at work in float16, whose small gradients become zero
    scheduler : stepped after every batch, a skipped one too
    totals : float64 (3,), where an interrupted epoch stood: losses, correct, images
    on_step : callable, gets the totals after every step

    Raises
    ------
    TrainingStopped
        The loss is NaN or infinite.
    """
    device = torch.device(device)
    scaler = scaler or make_scaler(device)
    if totals is None:
        totals = torch.zeros(3, dtype=torch.float64, device=device)
    model.train()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        loss, correct = step(model, images, labels, criterion, optimizer, scaler)
        if scheduler is not None:
            scheduler.step()
        one = torch.ones_like(loss)  # sums stay on the device: nothing waits for them
        totals = totals + torch.stack([loss * len(labels), correct, one * len(labels)])
        if on_step is not None:
            on_step(totals)
    loss, accuracy = _means(totals)
    # so small a scale: gradients stay infinite in float16, every step is skipped
    if not math.isfinite(loss) or scaler.get_scale() < 1e-3:
        raise stopped(loss, optimizer.param_groups[0]["lr"])
    return loss, accuracy


def _means(totals: torch.Tensor) -> tuple[float, float]:
    """Mean loss and accuracy over all processes: the one wait for the device."""
    loss_sum, correct, seen = add_up(totals.clone()).tolist()
    return loss_sum / max(seen, 1), correct / max(seen, 1)


@torch.no_grad()
def validate(model, loader, criterion, device) -> tuple[float, float]:
    """Mean loss and accuracy over a loader; nothing is learned.

    Parameters
    ----------
    loader : yields images, float (N, C, H, W), and labels, int64 (N,)

    Returns
    -------
    (loss, accuracy) : means over the images; the accuracy is a fraction
    """
    device = torch.device(device)
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    model.eval()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        with autocast(device):
            logits = model(images)  # (N, K)
        loss = criterion(logits.float(), labels)
        correct = (logits.argmax(dim=1) == labels).sum()
        count = torch.ones_like(loss) * len(labels)
        totals += torch.stack([loss * len(labels), correct, count])
    return _means(totals)


# ---- Checkpoints ---------------------------------------------------------------------


@from_handout
def save_checkpoint(path, model, optimizer=None, **state) -> Path:
    """Store weights, architecture and whatever else serving needs, atomically.

    Parameters
    ----------
    state : plain Python values
        classes, mean, std, size, threshold, temperature ...: what `load_checkpoint`
        returns again.

    Raises
    ------
    CourseError
        A value that could not be read again: a NumPy scalar, an object.
    """
    content = {
        "architecture": type(model).__name__,
        "config": getattr(model, "config", {}),
        "weights": model.state_dict(),
        "optimizer": optimizer.state_dict() if optimizer else None,
    }
    return save_state(Path(path), content | state)


@from_handout
def load_checkpoint(path, model=None, optimizer=None, classes=None) -> dict:
    """Read a checkpoint; with a model, put the weights into it.

    A bare `state_dict`, as torch.save(model.state_dict(), path) writes it, is taken for
    the weights of that model.

    Returns
    -------
    dict : architecture, config, weights, and the `state` of `save_checkpoint`

    Raises
    ------
    CourseError
        The file is missing or damaged, or of another architecture, shapes or classes.
    """
    state = read_state(Path(path), best_device(), model, classes)
    if model is not None:
        fill_in(path, model, state)
    if optimizer is not None and state.get("optimizer") is not None:
        optimizer.load_state_dict(state["optimizer"])
    return state


def load_model(path, classes=None) -> tuple[nn.Module, dict]:
    """Build the network that a checkpoint names, with its weights: (model, state)."""
    state = load_checkpoint(path, classes=classes)
    name = state["architecture"]
    if name not in MODELS:
        raise CourseError(
            f"{path} holds a network {name} of your own, which this kernel does not"
            f" know: run utils.register_model({name}) where it is defined."
        )
    if name in OWN.get("model", {}):
        model = MODELS[name](state["channels"], len(state["classes"]))
    else:
        model = MODELS[name](**state["config"])
    model = model.to(best_device())
    fill_in(path, model, state)
    # the layout that `fit` leaves it in
    return model.to(memory_format=torch.channels_last).eval(), state


# ---- What a step needs: loss, precision, optimizer, rate -----------------------------


def class_weights(labels: np.ndarray, classes: int) -> torch.Tensor:
    """Weights float32 (classes,), inverse to frequency, of mean 1 over the samples."""
    counts = np.bincount(labels, minlength=classes)
    if (counts == 0).any():
        rare = int(np.argmin(counts))
        raise CourseError(f"Class {rare} has no training image: see theme 1's pools.")
    return torch.tensor(len(labels) / (classes * counts), dtype=torch.float32)


class WeightedCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy, each image with the weight of its class, averaged over the images.

    PyTorch's own divides by the sum of the weights in the batch, so that the mean of
    two halves is not the whole: processes that share a batch would learn otherwise. And
    it weights what label smoothing (Szegedy et al., 2016) gives to the other classes by
    theirs, which pulls a frequent class towards a rare one.
    """

    def __init__(self, weights: torch.Tensor | None = None, label_smoothing=0.0):
        super().__init__(reduction="none", label_smoothing=label_smoothing)
        self.register_buffer("weights", weights)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """logits (N, K), labels int64 (N,) -> scalar"""
        losses = super().forward(logits, labels)  # (N,)
        return (
            losses if self.weights is None else losses * self.weights[labels]
        ).mean()


def make_criterion(loader: BatchLoader, classes: int, recipe: Recipe) -> nn.Module:
    weights = class_weights(loader.labels, classes) if recipe.class_weights else None
    return WeightedCrossEntropy(weights, recipe.label_smoothing).to(loader.device)


def autocast(device: torch.device, enabled: bool = True):
    """Run the forward pass in the precision that pays here (see `amp_dtype`)."""
    dtype = amp_dtype(device)
    if dtype is None:  # float32, as it is
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, dtype, enabled)


def make_scaler(device: torch.device, enabled: bool = True) -> torch.amp.GradScaler:
    """Loss scaling, switched on where `autocast` uses float16."""
    half = amp_dtype(torch.device(device)) == torch.float16
    return torch.amp.GradScaler(torch.device(device).type, enabled=enabled and half)


def make_optimizer(model, recipe: Recipe, steps: int):
    """AdamW (Loshchilov and Hutter, 2019) and a schedule stepped after every batch.

    Biases and normalisation weights are not decayed: pulling them to zero regularises
    nothing.
    """
    check_choice("schedule", recipe.schedule, ("onecycle", "cosine", "constant"))
    groups = []
    for part, rate in rates_of(model, recipe).items():
        decayed = [p for p in part if p.ndim > 1]
        plain = [p for p in part if p.ndim <= 1]
        groups += [
            {"params": decayed, "lr": rate, "weight_decay": recipe.weight_decay},
            {"params": plain, "lr": rate, "weight_decay": 0.0},
        ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    schedules = torch.optim.lr_scheduler
    if recipe.schedule == "onecycle":  # Smith and Topin, Super-Convergence (2018)
        shape = {"pct_start": 0.3, "div_factor": 10, "final_div_factor": 100}
        rates = [group["lr"] for group in groups]
        schedule = schedules.OneCycleLR(optimizer, rates, steps + 1, **shape)
    elif recipe.schedule == "cosine":  # Loshchilov and Hutter, SGDR (2017)
        schedule = schedules.CosineAnnealingLR(optimizer, steps)
    else:
        schedule = schedules.ConstantLR(optimizer, factor=1.0)
    return optimizer, schedule


def rates_of(model: nn.Module, recipe: Recipe) -> dict[tuple, float]:
    """Learning rate of the parameters: that of a pretrained backbone is smaller."""
    if recipe.backbone_rate == 1:
        return {tuple(model.parameters()): recipe.lr}
    backbone = tuple(model.features.parameters())
    known = {id(p) for p in backbone}
    head = tuple(p for p in model.parameters() if id(p) not in known)
    return {backbone: recipe.backbone_rate * recipe.lr, head: recipe.lr}


class RunningAverage:
    """A copy of the network whose weights follow it slowly; often better than the last.

    The decay grows with the number of steps to its limit, so that a short training
    forgets its start. Source: Polyak and Juditsky (1992). PyTorch's own AveragedModel
    asks the GPU twice a step how often it was called; this one counts on the CPU.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.module, self.decay, self.steps = deepcopy(model), decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """average += share * (weight - average), all tensors of one kind at once."""
        self.steps += 1
        share = 1 - min((1 + self.steps) / (10 + self.steps), self.decay)
        averages, weights = (
            self.module.state_dict().values(),
            model.state_dict().values(),
        )
        pairs = defaultdict(list)  # what is counted (batches of batch norm) is copied
        for pair in zip(averages, weights, strict=True):
            pairs[pair[0].is_floating_point()].append(pair)
        torch._foreach_lerp_(*zip(*pairs[True], strict=True), share)
        if pairs[False]:
            torch._foreach_copy_(*zip(*pairs[False], strict=True))

    def state_dict(self) -> dict:
        return {"weights": self.module.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self.module.load_state_dict(state["weights"])
        self.steps = state["steps"]


# ---- A whole training ----------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """Every number of a training; with the same code, data and seed it is the same."""

    epochs: int = 6
    batch_size: int = 64  # of all processes together
    lr: float = 3e-3
    backbone_rate: float = 1.0  # share of `lr` for a backbone that has learned already
    weight_decay: float = 1e-4
    schedule: str = "onecycle"  # or "cosine", "constant"
    label_smoothing: float = 0.0
    class_weights: bool = True
    augment: bool = False
    mixed_precision: bool = True
    channels_last: bool = True
    clip: float | None = 1.0
    # memory of the running average of the weights, in epochs; 0 switches it off
    average: float = 0.0
    patience: int | None = None

    def __post_init__(self):
        check_recipe(self)


def _passes(data: Data, epochs: int, longer: float = 1.0) -> int:
    """More epochs, up to three times, for fewer than 1,300 images; in smoke no more."""
    if data.course.profile.name == "smoke":
        return epochs
    return round(longer * epochs * min(max(1300 / len(data.where("train")), 1), 3))


def baseline_recipe(data: Data) -> Recipe:
    """How theme 2 trains: nothing but AdamW, a one-cycle rate and class weights."""
    many = len(data.where("train")) > 2000
    batch_size, lr = (64, 5e-3) if many else (16, 3e-3)
    return Recipe(_passes(data, data.course.profile.baseline_epochs), batch_size, lr)


@dataclass
class Run:
    """A finished training: network with its best weights, a history row an epoch."""

    name: str
    model: nn.Module
    history: pd.DataFrame
    seconds: float
    date: str
    hardware: str
    recipe: Recipe
    path: Path
    loaded: bool = False


def fit(
    course: Course,
    name: str,
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    save_every: float = 30.0,
    tracker: str = "tensorboard",
    progress: bool = True,
    on_epoch=None,
) -> Run:
    """Train on pool train, watch pool val, keep the weights of the lowest loss there.

    The same call does three things. Finished before: loads at once. Interrupted: goes
    on from the last step saved, every `save_every` seconds, and ends with the weights
    of an uninterrupted run. New: trains. Code, first weights, recipe, data and seed
    say which training it is. Under torchrun the processes share each batch.

    `tracker`, where the curves go: "tensorboard", "wandb" or "none". `on_epoch(epoch,
    row)` is called after each epoch, may raise to stop (pruning), and is told the
    earlier epochs again by a training that goes on.
    """
    ranges = AUGMENT[course.dataset] if recipe.augment else None
    own = OWN.get("augmentation", {}) if ranges else {}
    key = fingerprint(fit, model, recipe, ranges, own, data, course.seed)
    folder = course.runs / f"{name}-{key}"
    model.to(course.device)
    with (
        one_training(course, folder, model, asdict(recipe)) as stored,
        same_generators(course.device),
    ):
        if stored:
            return _as_run(name, model, stored, folder, loaded=True, told=progress)
        job = Job(model, data, recipe, ranges)
        with closing(Curves(tracker, course, folder.name, asdict(recipe))) as curves:
            seed_generators(course.seed + rank_and_world()[0])
            session = Session(course, folder, job.parts, save_every)
            with session.clear_errors(recipe.batch_size):
                train_all(job, session, curves, progress, on_epoch)
            curves.describe(job.train, session.best_loss)
        return _as_run(name, model, session.finish(asdict(recipe)), folder)


def _as_run(name, model, state: dict, folder: Path, loaded=False, told=False) -> Run:
    """The network with the weights of a finished training, and what is known of it."""
    model.load_state_dict(state["weights"])
    recipe, history = Recipe(**state["recipe"]), pd.DataFrame(state["history"])
    seconds, date, hardware = (state[key] for key in ("seconds", "date", "hardware"))
    if recipe.channels_last:  # the layout it was trained in, to the last digit
        model.to(memory_format=torch.channels_last)
    if told:
        print(f"{name}: loaded, trained {date} in {seconds:.0f} s on {hardware}")
    model.eval()
    return Run(name, model, history, seconds, date, hardware, recipe, folder, loaded)


class Job:
    """The moving parts of a training: what a step changes, and how."""

    def __init__(self, model: nn.Module, data: Data, recipe: Recipe, ranges):
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        self.model, self.recipe = model, recipe
        self.train = data.loader("train", recipe.batch_size, ranges, shuffle=True)
        self.val = data.loader("val", 256)
        self.train.shared = self.val.shared = True
        self.parallel = parallel(model)
        self.criterion = make_criterion(self.train, len(data.classes), recipe)
        self.steps = recipe.epochs * len(self.train)
        self.optimizer, self.scheduler = make_optimizer(model, recipe, self.steps)
        self.scaler = make_scaler(self.train.device, recipe.mixed_precision)
        self.average = None
        if recipe.average:
            memory = max(recipe.average * len(self.train), 1.0)  # in steps
            self.average = RunningAverage(model, 1 - 1 / memory)

    @property
    def parts(self) -> dict:
        """What has a state, to be saved and found again."""
        names = ("model", "optimizer", "scheduler", "scaler", "average")
        found = {name: getattr(self, name) for name in names}
        return {name: part for name, part in found.items() if part is not None}

    @property
    def judged(self) -> nn.Module:
        """The network that validation judges: the average where there is one."""
        return self.average.module if self.average else self.model


def train_all(job: Job, session: Session, curves, progress: bool, on_epoch) -> None:
    """The epochs that are left of a training: the loop of the course."""
    recipe, train = job.recipe, job.train
    step = partial(train_step, clip=recipe.clip, amp=recipe.mixed_precision)

    def on_step(totals):
        if job.average:
            job.average.update(job.model)
        session.after_step(totals)

    def tell(row):
        curves.add(row)
        if on_epoch:
            on_epoch(row["epoch"], row)

    for row in session.history:  # the process that was killed may not have told them
        tell(row)
    with session.progress(curves.name, job.steps, progress):
        for epoch in session.epochs(recipe.epochs, recipe.patience):
            train.epoch, train.first_batch = epoch, session.step
            loss, accuracy = train_epoch(
                job.parallel,
                train,
                job.criterion,
                job.optimizer,
                train.device,
                scaler=job.scaler,
                scheduler=job.scheduler,
                step=step,
                totals=session.totals,
                on_step=on_step,
            )
            take_buffers_of_rank0(job.judged)
            val = validate(job.judged, job.val, job.criterion, train.device)
            row = {
                "epoch": epoch + 1,
                "train_loss": loss,
                "train_accuracy": accuracy,
                "val_loss": val[0],
                "val_accuracy": val[1],
                "lr": job.scheduler.get_last_lr()[0],
            }
            session.close_epoch(row, job.judged.state_dict())
            tell(session.history[-1])


# ======================================================================================
# 3 · EVALUATION AND SEARCH: figures with their uncertainty, a better network
# ======================================================================================


# ---- Figures and their intervals -----------------------------------------------------


@torch.no_grad()
def predict(model, loader) -> tuple[np.ndarray, np.ndarray]:
    """Logits float32 (N, K) and labels int64 (N,) of a pool, in its order."""
    model.eval()
    logits, labels = [], []
    for images, targets in loader:
        logits.append(model(images).float().cpu().numpy())
        labels.append(targets.cpu().numpy())
    return np.concatenate(logits), np.concatenate(labels)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities (N, K) from logits (N, K), softened by a temperature above 1."""
    from scipy.special import softmax as scipy_softmax

    return scipy_softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a proportion, right also near 0 and 1 (Wilson, 1927)."""
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    interval = binomtest(int(successes), int(n)).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def auroc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Chance that a random positive ranks above a random negative (macro over classes).

    Computed from ranks (Mann and Whitney, 1947), so that the bootstrap can afford it.
    """
    from scipy.stats import rankdata

    values = []
    columns = range(probabilities.shape[1]) if probabilities.shape[1] > 2 else [1]
    for k in columns:
        positive = labels == k
        n, m = positive.sum(), (~positive).sum()
        if n and m:
            ranks_of_positives = rankdata(probabilities[:, k])[positive].sum()
            values.append((ranks_of_positives - n * (n + 1) / 2) / (n * m))
    return float(np.mean(values)) if values else math.nan


def expected_calibration_error(probabilities, labels, bins=10) -> float:
    """Mean gap between confidence and accuracy over the bins (Naeini et al., 2015).

    Report it with the number of images and without an interval: gaps are taken without
    their sign, so noise only adds to them. A perfectly calibrated network measures
    about 0.04 on 300 images, and resampling those adds the noise once more.
    """
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    # Share of the bin times its gap, where the bin's own count cancels out.
    return float(np.abs(np.bincount(bin_of, hit - confidence)).sum() / len(labels))


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Counts int64 (K, K): rows are the true classes, columns the predicted ones."""
    pairs = labels * classes + predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def balanced_accuracy(predicted, labels, classes: int) -> float:
    """Mean recall of the classes."""
    counts = confusion(predicted, labels, classes)
    return float((np.diag(counts) / np.maximum(counts.sum(axis=1), 1)).mean())


def f1_macro(predicted, labels, classes: int) -> float:
    """Mean over the classes of the harmonic mean of precision and recall."""
    counts = confusion(predicted, labels, classes)
    both = counts.sum(axis=0) + counts.sum(axis=1)
    return float(np.mean(2 * np.diag(counts) / np.maximum(both, 1)))


def accuracy_row(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """accuracy, low, high (Wilson, 95 %), balanced_accuracy and n, for a table."""
    check_features(probabilities, "answer")  # else NaN would be class 0
    predicted, n = probabilities.argmax(axis=1), len(labels)
    hits = int((predicted == labels).sum())
    balanced = balanced_accuracy(predicted, labels, probabilities.shape[1])
    low, high = wilson(hits, n)
    row = {"accuracy": hits / n, "balanced_accuracy": balanced, "n": n}
    return row | {"low": low, "high": high}


def bootstrap(
    statistic, labels: np.ndarray, *arrays, resamples=1000, seed=42, level=0.95
) -> tuple[float, float]:
    """Percentile interval of `statistic(*arrays)` over resampled images (Efron, 1979).

    Each class keeps its size, so that no resample lacks one. Not for what resampling
    can only push one way (the calibration error), nor for the difference of two models
    (see `paired_difference`).
    """
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    values = []
    for _ in range(resamples):
        chosen = np.concatenate([rng.choice(own, len(own)) for own in rows])
        values.append(statistic(*(array[chosen] for array in arrays)))
    low, high = np.percentile(values, [50 - 50 * level, 50 + 50 * level])
    return float(low), float(high)


def evaluate(probabilities, labels, classes, resamples=1000, seed=42) -> pd.DataFrame:
    """Every metric of the course with its 95 % interval, on (N, K) and int64 (N,).

    A row each of accuracy, balanced_accuracy, f1_macro, auroc, ece, recall <class> ...:
    value, low, high, n. Proportions: Wilson; the others: stratified bootstrap over
    images; ece: none, see `expected_calibration_error`.
    """
    check_features(probabilities, "answer")
    k, n, predicted = len(classes), len(labels), probabilities.argmax(axis=1)
    hits = int((predicted == labels).sum())

    def measured(statistic, *arrays):
        ends = bootstrap(statistic, labels, *arrays, resamples=resamples, seed=seed)
        return statistic(*arrays), *ends, n

    balanced = partial(balanced_accuracy, classes=k)
    rows = {
        "accuracy": (hits / n, *wilson(hits, n), n),
        "balanced_accuracy": measured(balanced, predicted, labels),
        "f1_macro": measured(partial(f1_macro, classes=k), predicted, labels),
        "auroc": measured(auroc, probabilities, labels),
    }
    ece = expected_calibration_error(probabilities, labels)
    rows["ece"] = (ece, math.nan, math.nan, n)
    counts = confusion(predicted, labels, k)
    for name, hits, own in zip(classes, np.diag(counts), counts.sum(1), strict=True):
        rows[f"recall {name}"] = (hits / max(own, 1), *wilson(hits, own), int(own))
    columns = ["value", "low", "high", "n"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


# ---- Two models on the same images ---------------------------------------------------


def paired_difference(first, second, level=0.95) -> tuple[float, float, float]:
    """Share of images that `second` gets right minus that of `first`: value, low, high.

    Both are bool (N,), of the same images: only those count on which just one is right.
    Unlike a bootstrap this score interval stays right for a few dozen images: with no
    such image at all it still says how large a difference may hide. Source: Tango,
    Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design (1998).
    """
    from scipy.stats import norm

    n, z = len(first), norm.ppf((1 + level) / 2)
    lost, won = int((first & ~second).sum()), int((~first & second).sum())
    value = (won - lost) / n

    def excluded(delta):  # were it true, what was seen would be z errors away
        # most likely share of images lost: 2n q² + b q - lost * delta * (1 - delta) = 0
        b = (2 * n - won + lost) * delta - won - lost
        root = math.sqrt(max(b * b + 8 * n * lost * delta * (1 - delta), 0))
        q = (root - b) / (4 * n)
        variance = max(n * (2 * q + delta * (1 - delta)), 0)
        return n * abs(value - delta) > z * math.sqrt(variance)

    ends = []
    for outside in (-1.0, 1.0):
        inside = value
        for _ in range(30):  # halves the bracket, down to 1e-9
            middle = (inside + outside) / 2
            if excluded(middle):
                outside = middle
            else:
                inside = middle
        ends.append(inside)
    return value, *ends


def paired_balanced_difference(first, second, labels, level=0.95) -> tuple[float, ...]:
    """The same for balanced accuracy, the mean over the classes; `labels` int64 (N,).

    The intervals of the classes are joined by the square-and-add method. Source:
    Newcombe (1998); Zou and Donner, Construction of confidence limits about effect
    measures (2008).
    """
    classes = [labels == k for k in np.unique(labels)]
    ends = [paired_difference(first[own], second[own], level) for own in classes]
    value, low, high = np.array(ends).T  # (K,) each
    middle, k = value.mean(), len(ends)
    below = np.sqrt(((value - low) ** 2).sum()) / k
    above = np.sqrt(((high - value) ** 2).sum()) / k
    return float(middle), float(middle - below), float(middle + above)


def mcnemar(first, second, alternative="two-sided") -> float:
    """p-value of McNemar's exact test on bool (N,), which images each model gets right.

    Of those on which just one is right, is it as often the one as the other? With
    alternative="greater" only a better second model counts. Source: McNemar (1947),
    exact as in Edwards (1948).
    """
    from scipy.stats import binomtest

    lost, won = int((first & ~second).sum()), int((~first & second).sum())
    if lost + won == 0:
        return 1.0
    return float(binomtest(won, lost + won, alternative=alternative).pvalue)


def paired_row(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """`paired_difference` and `mcnemar` as a row of a table, with won, lost and n."""
    difference, low, high = paired_difference(first, second)
    won, lost = int((~first & second).sum()), int((first & ~second).sum())
    row = {"difference": difference, "low": low, "high": high, "won": won, "lost": lost}
    return row | {"p_value": mcnemar(first, second), "n": len(first)}


# ---- Calibration, threshold, and where the network looks -----------------------------


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The number that logits are divided by so that confidence means accuracy, on val.

    Source: Guo et al., On Calibration of Modern Neural Networks (2017).
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature):
        p = softmax(logits, math.exp(log_temperature))
        return -np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-12)).mean()

    return float(math.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def positive_probability(probabilities: np.ndarray) -> np.ndarray:
    """Probability that something is there, (N,): 1 - P(first class)."""
    return 1 - probabilities[:, 0]


def choose_threshold(
    probabilities: np.ndarray, labels: np.ndarray, cost_missed, cost_false_alarm=1.0
) -> tuple[float, pd.DataFrame]:
    """Threshold on P(positive) of the lowest mean cost per image on val, and its table.

    The table has a row a threshold: threshold, cost, missed, false_alarms.
    """
    score, positive = positive_probability(probabilities), labels > 0
    rows = []
    for threshold in np.linspace(0.01, 0.99, 99):
        alarm = score >= threshold
        missed, false = int((positive & ~alarm).sum()), int((~positive & alarm).sum())
        cost = (missed * cost_missed + false * cost_false_alarm) / len(labels)
        rows.append((threshold, cost, missed, false))
    table = pd.DataFrame(rows, columns=["threshold", "cost", "missed", "false_alarms"])
    return float(table["threshold"][table["cost"].idxmin()]), table


def grad_cam(model, images, target, least=7) -> np.ndarray:
    """Where the network looked: images (N, C, S, S), classes (N,) -> 0..1, (N, S, S).

    The gradient of the class score weights the deepest feature maps of at least `least`
    x `least`: on small images the very last maps are 4 x 4 and point nowhere. Source:
    Selvaraju et al., Grad-CAM (2017).
    """
    seen = []
    hooks = [
        part.register_forward_hook(lambda part, given, made: seen.append(made))
        for part in model.modules()
    ]
    scores = model.eval()(images)  # (N, K)
    for hook in hooks:
        hook.remove()
    maps = [made for made in seen if made.ndim == 4 and made.shape[-1] >= least][-1]
    target = target.to(scores.device).view(-1, 1)
    [gradient] = torch.autograd.grad(scores.gather(1, target).sum(), maps)
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # (N, D, 1, 1)
    heat = F.relu((weights * maps).sum(dim=1, keepdim=True)).detach()  # (N, 1, h, w)
    size = images.shape[-2:]
    heat = F.interpolate(heat, size, mode="bilinear", align_corners=False).squeeze(1)
    return (heat / heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-8)).cpu().numpy()


# ---- The network of theme 3, and the search for a better one -------------------------


def optimized_recipe(data: Data) -> Recipe:
    """How theme 3 trains; chosen on validation images of both real datasets."""
    # Quarter turns make four pictures of one: it takes longer to see them all.
    longer = 1.7 if AUGMENT[data.course.dataset].get("turn") else 1.0
    epochs = _passes(data, data.course.profile.optimized_epochs, longer)
    # Few images: smaller batches, so that there are steps enough, and a smaller rate
    # for their noisier gradients.
    many = len(data.where("train")) > 2000
    batch_size, lr = (64, 4e-3) if many else (32, 3e-3)
    more = {"label_smoothing": 0.05, "augment": True, "average": 3.0}
    return Recipe(epochs, batch_size, lr, weight_decay=5e-2, **more)


# Width and depth by dataset, chosen on validation images. Panels are a few pixels wide:
# their stem only halves.
ARCHITECTURES = {
    "pneumonia": {"stem": 4, "width": 32, "depth": 2},
    "pneumonia3": {"stem": 4, "width": 32, "depth": 2},
    "solar": {"stem": 2, "width": 24, "depth": 1},
}


def optimized_network(course: Course, **changes) -> OptimizedCNN:
    """The network of theme 3, with the weights that its seed draws.

    It has as many stages as the image size needs: the last maps are 4 to 7 pixels wide,
    smaller ones no longer say where anything is. `changes`: width, depth, stem (see
    ARCHITECTURES) or any argument of OptimizedCNN.
    """
    config = ARCHITECTURES[course.dataset] | changes
    width = config.pop("width")
    halvings = math.log2(course.image_size / config["stem"] / 7)
    stages = max(math.ceil(halvings) + 1, 2)
    widths = [width * growth for growth in (1, 2, 4, 6, 8, 8, 8, 8)][:stages]
    torch.manual_seed(course.seed)
    return OptimizedCNN(course.channels, len(course.classes), widths, **config)


def pretrained_network(course: Course, backbone="tf_efficientnet_lite0"):
    """A backbone with the weights of ImageNet and a new head, which the seed draws.

    The weights of EfficientNet-Lite0 come from a package; those of all other networks
    of timm, by name, from its hub. Normalise the images as it was:
    `data.normalised(model.mean, model.std)`. Source: Yosinski et al., How transferable
    are features in deep neural networks? (2014); Tan and Le, EfficientNet (2019).

    Raises
    ------
    CourseError
        The images are smaller than 64 x 64, the weights are missing or damaged, or the
        backbone is unknown.
    """
    if course.image_size < SMALLEST:
        raise CourseError(
            f"A pretrained network halves a picture five times: of {course.image_size}"
            f" pixels nothing would be left. IMAGE_SIZE = {SMALLEST} or more, please."
        )
    torch.manual_seed(course.seed)
    return build_pretrained(course.channels, len(course.classes), backbone)


def pretrained_recipe(data: Data) -> Recipe:
    """How a pretrained network is fine-tuned; chosen on validation images."""
    epochs = _passes(data, 5)
    rates = {"lr": 8e-3, "backbone_rate": 0.25, "weight_decay": 5e-2}
    more = {"label_smoothing": 0.05, "augment": True, "average": 1.0}
    # half precision slows a depthwise convolution down on CPUs
    half = data.course.device.type == "cuda"
    return Recipe(epochs, 32, **rates, **more, mixed_precision=half)


def build_trial(course: Course, params: dict, recipe: Recipe):
    """The network and the recipe of a set of search parameters."""
    shape = {name: params[name] for name in ("width", "depth", "dropout")}
    rates = {name: params[name] for name in ("lr", "weight_decay")}
    return optimized_network(course, **shape), replace(recipe, **rates)


def search(course, data, name, recipe, trials, storage=None):
    """Optuna study over width, depth, dropout, learning rate and weight decay.

    Trial 0 is the course's own choice, its parameters in `user_attrs["own"]`; TPE
    proposes the others (Bergstra et al., 2011), and one that lags behind the median
    after an epoch is pruned. An interrupted search goes on, a finished one loads.

    All processes that make this call work on the same study of `trials`, and try again
    what a dead one left. They share `storage`, the address of a database such as
    "postgresql://HOST/NAME"; None is a file in runs/ of the home.
    """
    own = {name: ARCHITECTURES[course.dataset][name] for name in ("width", "depth")}
    own |= {"dropout": 0.1, "lr": recipe.lr, "weight_decay": recipe.weight_decay}
    # only who has the same code, networks, recipe, data and seed may join
    title = f"{name}-{fingerprint(trial_loss, name, recipe, data, course.seed)}"
    study = studies.open_study(course, title, own, storage)
    objective = partial(trial_loss, course=course, data=data, name=name, recipe=recipe)
    studies.work_on(course, study, objective, trials, storage)
    return study


def trial_loss(trial, course, data, name, recipe) -> float:
    """Propose parameters, train, return the lowest validation loss; or TrialPruned."""
    optuna = studies.quiet_optuna()
    # one seed a trial: a resumed search repeats nothing, two workers look elsewhere
    seed = course.seed + trial.number
    trial.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)
    params = {
        "width": trial.suggest_categorical("width", [16, 24, 32]),
        "depth": trial.suggest_int("depth", 1, 2),
        "dropout": trial.suggest_float("dropout", 0.0, 0.4),
        "lr": trial.suggest_float("lr", 1e-3, 1e-2, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
    }
    model, chosen = build_trial(course, params, recipe)

    def report(epoch, row):
        trial.report(row["val_loss"], epoch)
        if epoch < chosen.epochs and trial.should_prune():
            raise optuna.TrialPruned

    options = {"tracker": "none", "progress": False, "on_epoch": report}
    try:
        run = fit(course, f"{name}-trial", model, data, chosen, **options)
    except TrainingStopped:  # this rate makes the loss explode: a result, too
        raise optuna.TrialPruned from None
    except KeyboardInterrupt:
        trial.study.enqueue_trial(params)  # the next worker goes on with it
        raise
    for row in run.history.itertuples() if run.loaded else ():
        trial.report(row.val_loss, int(row.epoch))
    loss = float(run.history["val_loss"].min())
    if math.isnan(loss):  # of every epoch
        raise optuna.TrialPruned
    return loss


# ======================================================================================
# 4 · DEPLOYMENT: from a checkpoint to a session that serves
# ======================================================================================


# ---- How long does an answer take? ---------------------------------------------------


def benchmark_model(model, input_shape, device="cuda", num_runs=100, warmup=10) -> dict:
    """Latency of a PyTorch network on random images, copies included.

    Parameters
    ----------
    input_shape : (N, C, H, W)
    num_runs, warmup : int, calls that are measured, and calls before them

    Returns
    -------
    dict : latency_p50, latency_p95, latency_p99 in ms, throughput in images/s
    """
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise CourseError('There is no GPU here: pass device="cpu".')
    # a copy: the caller's network stays where and as it is
    model, images = deepcopy(model).to(device).eval(), torch.rand(input_shape)

    @torch.inference_mode()
    def run(images):
        return model(images.to(device)).cpu()

    return _latencies(run, images, num_runs, warmup)


def benchmark_onnx(
    onnx_path, input_shape, num_runs=100, warmup=10, providers=None
) -> dict:
    """Latency of an ONNX file on random pixels of the type that it asks for.

    Parameters
    ----------
    input_shape : (N, C, H, W)
    providers : list of names of ONNX Runtime, None for the CPU's

    Returns
    -------
    dict : as of `benchmark_model`, and `provider`, the one that really ran

    Raises
    ------
    CourseError
        The first of the providers does not start; an input of another shape.
    """
    session = make_session(onnx_path, (providers or ["cpu"])[0])
    source = session.get_inputs()[0]
    kind = np.uint8 if source.type == "tensor(uint8)" else np.float32
    images = np.random.default_rng(0).integers(0, 256, input_shape).astype(kind)

    def run(images):
        return session.run(None, {source.name: images})

    table = _latencies(run, images, num_runs, warmup)
    return table | {"provider": session.get_providers()[0]}


def _latencies(run, images, num_runs: int, warmup: int) -> dict:
    for _ in range(warmup):
        run(images)
    ms = np.array([timed(run, images) for _ in range(num_runs)])
    p50, p95, p99 = np.percentile(ms, [50, 95, 99]).tolist()
    throughput = float(1000 * len(images) / ms.mean())
    found = {"latency_p50": p50, "latency_p95": p95, "latency_p99": p99}
    return found | {"throughput": throughput}


def timed(run, pixels) -> float:
    """Milliseconds of one call, whose answer lies in host memory.

    A GPU that was only told what to do would look very fast.
    """
    began = time.perf_counter()
    run(pixels)
    return 1000 * (time.perf_counter() - began)


# ---- Export: all that lies between pixels and answer, in one file --------------------


class ServedNetwork(nn.Module):
    """Normalisation, network, temperature and softmax in one graph.

    Whoever serves it cannot normalise differently from training: pixels (N, C, S, S)
    uint8 -> probabilities (N, K) float32, calibrated; embedding (N, D) float32.
    """

    def __init__(self, model: nn.Module, state: dict):
        super().__init__()
        self.model = nn.Sequential(*split_head(model))  # embedding, then logits
        self.temperature = state["temperature"]
        for name in ("mean", "std"):
            values = torch.tensor(state[name], dtype=torch.float32)
            self.register_buffer(f"pixel_{name}", values.view(1, -1, 1, 1))

    def forward(self, pixels):
        images = (pixels.float() / 255 - self.pixel_mean) / self.pixel_std
        # the network alone may be in half precision
        images = images.to(self.model[1].weight.dtype)
        embedding = self.model[0](images)  # (N, D)
        logits = self.model[1](embedding).float()  # (N, K)
        return torch.softmax(logits / self.temperature, dim=1), embedding.float()


def served_network(course: Course, checkpoint: Path) -> tuple[ServedNetwork, dict]:
    """The network of a checkpoint, on the CPU in float32, and the state of the file.

    CourseError where that is missing or damaged, of other classes, size or channels, or
    holds NaN.
    """
    model, state = load_model(checkpoint, course.classes)
    state = {"temperature": 1.0, "threshold": 0.5, "channels": course.channels} | state
    asked = {"size": course.image_size, "channels": course.channels}
    found = {key: state.get(key) for key in asked}
    if found != asked or not {"mean", "std"} <= state.keys():
        raise CourseError(
            f"{checkpoint} was made for {found}, this home holds {asked}: run the"
            " notebook that writes it again."
        )
    model = model.cpu().to(memory_format=torch.contiguous_format)
    network = ServedNetwork(model, state).eval()
    check_numbers(network, checkpoint)
    return network, state


# what the file says of the checkpoint that it comes from
ABOUT = "architecture size channels mean std threshold temperature seed".split()


def export_onnx(course, checkpoint, fuse=True, dtype=torch.float32) -> Path:
    """Write the network of a checkpoint as one file, exports/models/<hash>.onnx; what
    was exported before is found again.

    `fuse` lets the exporter fold constants and batch normalisation into convolutions.
    `dtype`, torch.float32 or, on GPUs, torch.float16, is that of the network alone:
    what goes in and comes out keeps its type.
    """
    check_choice("dtype", dtype, (torch.float32, torch.float16))
    network, state = served_network(course, checkpoint)
    network.model.to(dtype)
    about = {key: state[key] for key in ABOUT if key in state} | {
        "classes": list(course.classes),
        "dataset": course.dataset,
        "sample": course.sample,
        "precision": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "checkpoint": hash_file(checkpoint)[:16],
    }

    def export() -> Path:
        return store_onnx(course, to_onnx(network, state, fuse), about)

    return export_once(course, fingerprint(to_onnx, network, fuse, about), export)


def to_onnx(network: ServedNetwork, state: dict, fuse: bool):
    """The graph of a network, for any number of images, as `onnx.ModelProto`."""
    example = torch.zeros(2, state["channels"], *2 * [state["size"]], dtype=torch.uint8)
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        input_names=["pixels"],
        output_names=["probabilities", "embedding"],
        dynamic_shapes={"pixels": {0: "batch"}},
        # the newest whose every operator also runs on the GPU in older ONNX Runtimes
        opset_version=18,
        optimize=fuse,
        verbose=False,
    )
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces with the paths of this machine
    return model


def agreement(network, model, pixels, batches=(1, 2, 7, 32)) -> pd.DataFrame:
    """Largest difference between PyTorch and ONNX Runtime, one row a batch size.

    Of `pixels`, uint8 (N, C, S, S). Columns: max_abs_diff (of a probability),
    embedding_diff (relative to its largest value), changed (images whose most probable
    class, or side of the threshold, differs), n.
    """
    table = pd.DataFrame(index=pd.Index(batches, name="batch"))
    for batch in batches:
        parts = torch.from_numpy(np.array(pixels)).split(batch)
        with torch.inference_mode():
            answers = [network(part) for part in parts]
        ours, embedded = map(np.concatenate, zip(*answers, strict=True))
        theirs, embedding = model.predict_all(pixels, batch)
        apart = np.abs(embedded - embedding).max() / np.abs(embedded).max()
        sides = [positive_probability(p) >= model.threshold for p in (ours, theirs)]
        changed = (ours.argmax(1) != theirs.argmax(1)) | (sides[0] != sides[1])
        table.loc[batch, "max_abs_diff"] = np.abs(ours - theirs).max()
        table.loc[batch, ["embedding_diff", "changed"]] = apart, changed.sum()
    return table.assign(n=len(pixels)).astype({"changed": int})


# ---- Fewer bits: INT8 ----------------------------------------------------------------


def calibration_rows(data: Data, images: int = 200, least: int = 8) -> np.ndarray:
    """Rows of a calibration set: training images, as many of each class.

    With fewer than `least` of a class its range of activations would be guesswork.
    """
    rng, train = np.random.default_rng(data.course.seed), data.where("train")
    chosen = []
    for number, name in enumerate(data.classes):
        own = train[data.labels[train] == number]
        if len(own) < least:
            raise CourseError(
                f"The calibration set needs {least} training images of class {name},"
                f" there are {len(own)}: add images, or ship the float32 model."
            )
        share = min(images // len(data.classes), len(own))
        chosen.append(rng.choice(own, share, replace=False))
    return np.sort(np.concatenate(chosen))


def quantize_int8(course, path, pixels, keep_float=(), only=()) -> Path:
    """Static INT8 of an exported network: weights and activations as 8-bit integers.

    Activations are uint8, weights int8 with one scale per output channel (QDQ, U8S8):
    CPUs with VNNI multiply these in hardware. On one without, sums of such products
    overflow, so weights get 7 bits. `pixels`, uint8 (N, C, S, S), are training images:
    the smallest and largest value that they cause are each activation's range.
    Source: Jacob et al., Quantization and Training of Neural Networks (2018).

    `keep_float` names nodes that stay in float32, `only` the ones to quantize.

    CourseError for a network that is quantized already, no `pixels` or others than it
    takes, and nodes that it has not.
    """
    import onnx
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        batches = iter(np.array_split(pixels, max(len(pixels) // 32, 1)))

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {"pixels": batch}

    eight = multiplies_int8()
    named = [*keep_float, *only]
    with open_to_quantize(path, pixels, named) as (model, about, target):
        q.quantize_static(
            model,
            target,
            Reader(),
            quant_format=q.QuantFormat.QDQ,
            activation_type=q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            per_channel=True,
            reduce_range=not eight,
            nodes_to_exclude=list(keep_float),
            nodes_to_quantize=list(only),
            # nor do additions round what a float32 layer reads and writes
            op_types_to_quantize=LAYERS if keep_float else None,
        )
        about["precision"] = f"int8 QDQ U8S{8 if eight else 7} per channel"
        about |= {"kept_float": list(keep_float), "calibration_images": len(pixels)}
        return store_onnx(course, onnx.load(target), about)


# ---- One fair benchmark for every way to serve ---------------------------------------


def warm_up(run, pixels: np.ndarray, most: int = 30, seconds: float = 2.0) -> int:
    """Call until two groups of three calls agree within 10 %, or for so long; how many
    calls it took.
    """
    ends, ms = time.perf_counter() + seconds, []
    while len(ms) < 3 or (len(ms) < most and time.perf_counter() < ends):
        ms.append(timed(run, pixels))
        if len(ms) >= 6 and abs(np.median(ms[-3:]) / np.median(ms[-6:-3]) - 1) < 0.1:
            break
    return len(ms)


def benchmark(
    backends: list[Backend], pixels, batches=(1, 8, 32, 128), rounds=5, seconds=0.15
) -> list[dict]:
    """Latencies of every backend on the same images, in interleaved rounds.

    Other programs and the clock of the processor disturb whoever happens to run: in
    every round all backends take their turn, each round starts with another one, and
    each turn starts with calls that are not counted. Rounds beside which other programs
    worked are taken again (see CalmRounds).

    `pixels`, uint8 (N, C, S, S), are repeated up to the largest batch. Returns a list
    of dict: backend, batch, ms (latency of each call), round, others.
    """
    pixels = np.concatenate([pixels] * math.ceil(max(batches) / len(pixels)))
    turns = CalmRounds(rounds)
    for number in turns:
        first = number % len(backends)
        order = backends[first:] + backends[:first]
        for batch, backend in itertools.product(batches, order):
            if batch > backend.largest_batch:
                continue
            images = np.array(pixels[:batch])
            time.sleep(0.02)  # the threads of the one before stop spinning
            warm_up(backend.run, images)
            ends, ms = time.perf_counter() + seconds, []
            while time.perf_counter() < ends or len(ms) < 3:
                ms.append(round(timed(backend.run, images), 4))
            row = {"backend": backend.name, "batch": batch, "ms": ms}
            turns.rows.append(row)
    return turns.calmest()


def pareto(table: pd.DataFrame, low=(), high=()) -> list[bool]:
    """Which rows no other row beats: as good in all columns and better in one.

    `low` names columns of which less is better, `high` the others. Source: Pareto
    (1906).
    """
    columns = [table[name] for name in low] + [-table[name] for name in high]
    values = np.column_stack(columns)
    no_worse = [(values <= row).all(axis=1) for row in values]
    better = [(values < row).any(axis=1) for row in values]
    return (~(np.array(no_worse) & better).any(axis=1)).tolist()


def cost_per_million(images_s: float, price_per_hour: float) -> float:
    """Cost of a million predictions on a machine of that price that never waits."""
    return 1e6 * price_per_hour / (3600 * images_s)


# ======================================================================================
# 5 · MONITORING: from log lines to alerts
# ======================================================================================


# ---- The log: one line a prediction, appended, never rewritten -----------------------


# What each column takes and gives back; `time` is UTC, and always there.
LOG_COLUMNS = {
    "timestamp": "time",
    "run_id": "str",
    "model": "str",
    "image": "str",
    "pred_class": "Int64",
    "confidence": "share",
    "latency_ms": "float",
    "batch": "float",
    "brightness": "float",
    "contrast": "float",
    "sharpness": "float",
    "status": "status",
    "extra": "str",
}


class InferenceLogger:
    """Append one line a prediction to a CSV file, safely with several processes.

    On a local disk: network drives do not promise locks. `log_file` is made if missing,
    never truncated: one of another schema, or that cannot be written, is a CourseError.
    `run_id` stands in every line, and `read_log` selects by it; a new one when None.
    """

    def __init__(self, log_file: str | Path, run_id: str | None = None):
        self.path, self.run_id = Path(log_file), run_id or new_run_id()
        self._file = AppendOnlyCsv(log_file, "theme5_monitoring", LOG_COLUMNS)
        self._file.append([])  # a log that cannot be written is told now
        self._start = 0 if run_id else self.path.stat().st_size

    def log(self, pred_class, confidence, latency_ms, **extra) -> None:
        """Log one prediction; see `log_batch` for `extra`."""
        extra = {name: [value] for name, value in extra.items()}
        self.log_batch([pred_class], [confidence], [latency_ms], **extra)

    def log_batch(self, preds, confidences, latencies, **extra) -> None:
        """Log a batch, all lines in one write.

        Parameters
        ----------
        preds, confidences : N class numbers, and the probability of each
        latencies : N times in ms; every image waits for the whole batch
        extra : one value for all, or a list of N
            A column of LOG_COLUMNS (`timestamp`: the time now if missing; `status`:
            "ok" or the name of an error, and "nan" where a model answered NaN); other
            names go into the column `extra`, as JSON.

        Raises
        ------
        CourseError
            A value that `read_log` would not read: no line of the batch is written.
        """
        n = len(preds)
        columns = {"timestamp": datetime.now(UTC), "run_id": self.run_id, "batch": n}
        columns |= {"status": "ok"} | extra
        columns |= {"pred_class": preds, "confidence": confidences}
        self._file.append(rows_of(columns | {"latency_ms": latencies}, n))

    def read(self) -> pd.DataFrame:
        """The lines of this run; those of earlier ones are not even looked at."""
        return self._file.read(self.run_id, self._start)


def read_log(log_file: str | Path, run_id: str | None = None) -> pd.DataFrame:
    """Read an inference log, of one run or of all, with the columns of LOG_COLUMNS.

    pred_class is missing where the request failed.
    """
    return AppendOnlyCsv(log_file, "theme5_monitoring", LOG_COLUMNS).read(run_id)


def image_statistics(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Three numbers an image that show a broken input before any label arrives.

    brightness, mean of the grey image (mean of the channels) in levels 0..255;
    contrast, its standard deviation; sharpness, variance of its Laplacian (inner
    pixels), which blur lowers: float (N,) each, of pixels uint8 (N, C, S, S). Source:
    Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy (2000).
    """
    rows = []
    for image in pixels:
        grey = image.mean(axis=0, dtype=np.float32)  # (S, S)
        vertical = grey[:-2, 1:-1] + grey[2:, 1:-1]  # (S - 2, S - 2)
        horizontal = grey[1:-1, :-2] + grey[1:-1, 2:]
        laplacian = vertical + horizontal - 4 * grey[1:-1, 1:-1]
        rows.append((grey.mean(), grey.std(), laplacian.var()))
    names = ("brightness", "contrast", "sharpness")
    return dict(zip(names, np.array(rows).T, strict=True))


class MonitoredModel:
    """A model that answers as before and leaves one log line a prediction.

    `model` has `.predict(pixels)`, uint8 (N, C, S, S) -> probabilities (N, K), and a
    `.hash`, which the log names; `extra` stands in every line, e.g. role="shadow".
    `lost` counts the predictions that could not be logged: a full disk must not cost a
    patient an answer.
    """

    def __init__(self, model, logger: InferenceLogger, **extra):
        self.model, self.logger, self.extra, self.lost = model, logger, extra, 0

    def predict(self, pixels, images=None, timestamp=None, added_ms: float = 0.0):
        """Answer of the model, float32 (N, K); its errors are logged and raised again.

        `images` are N ids. A replay gives its own `timestamp`, and a drill shows a slow
        model in no time by `added_ms`.
        """
        answer, status, began = None, "ok", time.perf_counter()
        try:
            answer = self.model.predict(pixels)
        except BaseException as error:
            status = type(error).__name__
            raise
        finally:
            latency = 1000 * (time.perf_counter() - began) + added_ms
            about = {"status": status, "timestamp": timestamp or datetime.now(UTC)}
            self._log(pixels, answer, latency, image=images, **about)
        return answer

    def _log(self, pixels, answer, latency: float, **about) -> None:
        try:
            if isinstance(pixels, np.ndarray) and pixels.ndim == 4 and len(pixels):
                about |= image_statistics(pixels)
                n = len(pixels)
            else:  # whatever it was, it was one request
                about["image"], n = None, 1
            preds = confidences = [None] * n
            if answer is not None:
                preds, confidences = answer.argmax(axis=1), answer.max(axis=1)
            about |= {"model": self.model.hash} | self.extra
            self.logger.log_batch(preds, confidences, [latency] * n, **about)
        except Exception as error:
            # whatever it is, the answer matters more than its log line
            self.lost += 1
            if self.lost == 1:
                print(f"Monitoring has a gap: {error} Predictions go on.")


# ---- From lines to numbers: trailing windows against a quiet day ---------------------


LOW_CONFIDENCE = 0.7
# grey levels; a picture of nothing still has the sensor's noise, about one
BLANK_CONTRAST = 2.0
NO_LINES = "The log has no lines: serve some predictions, or read another run_id."
# what a window compares with a quiet day
COMPARED = ("positive_share", "confidence", "brightness", "sharpness")
METRICS = (
    "requests throughput latency_p50 latency_p95 latency_p99 error_rate confidence"
    " low_confidence_share positive_share blank_share brightness contrast sharpness"
    " positive_share_z confidence_z brightness_z sharpness_z class_mix_z"
).split()


def _quantities(log: pd.DataFrame) -> pd.DataFrame:
    """What each line contributes to the means of a window, by time.

    A failed request counts in error_rate alone.
    """
    answered, number = log["status"] == "ok", log["pred_class"].astype(float)
    names = ["latency_ms", "confidence", "brightness", "contrast", "sharpness"]
    table = log[names].assign(
        low_confidence_share=_below(log["confidence"], LOW_CONFIDENCE),
        blank_share=_below(log["contrast"], BLANK_CONTRAST),
        positive_share=number > 0,
    )
    for one in sorted(number.dropna().unique()):
        table[f"share_{one:.0f}"] = number == one
    table = table.astype(float).where(answered)
    table["error_rate"] = 1.0 - answered
    return table.set_index(log["timestamp"]).sort_index(kind="stable")


def _below(values: pd.Series, limit: float) -> pd.Series:
    """Is each value below? A missing one is neither."""
    return (values < limit).astype(float).where(values.notna())


def monitoring_baseline(log: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and n of a quiet period, by quantity: what is normal."""
    answered = log[log["status"] == "ok"]
    if len(answered) < 100:
        raise CourseError(
            f"A baseline of {len(answered)} answered requests is too short: log at"
            " least 100 quiet ones."
        )
    table = _quantities(answered).agg(["mean", "std", "count"])
    if silent := [name for name in table if not table.at["count", name]]:
        print(f"No line has {', '.join(silent)}: rules that watch them stay silent.")
    return table.rename(index={"count": "n"}).to_dict()


def window_statistics(
    log: pd.DataFrame, minutes=30, every=10, baseline=None, until=None
) -> pd.DataFrame:
    """Service and model in numbers: a row a tick, over (tick - minutes, tick].

    `baseline` (of `monitoring_baseline`) adds `<name>_z` and `class_mix_z`, the
    deviations from it. `until` is the last tick, the end of the log when None; a live
    watch gives the time now, else silence goes unseen.

    Columns: `timestamp` and METRICS; throughput in requests a minute, latency in ms,
    shares and rates in 0..1. Failed requests count in `requests`, `throughput` and
    `error_rate` only. Means over nothing are NaN.
    """
    if log.empty:
        raise CourseError(NO_LINES)
    lines, normal = _quantities(log), baseline or {}
    # a class that nobody had today still has its share, 0
    lines = lines.reindex(columns=lines.columns.union([*normal]), fill_value=0.0)
    start, ticks = ticks_of(lines.index, every, until)
    # a tick is a row without numbers, after all lines up to its time
    rows = pd.concat([lines, pd.DataFrame(index=ticks)]).sort_index(kind="stable")
    window = rows.rolling(pd.Timedelta(minutes=minutes))
    table = window.mean()
    table["requests"] = window["error_rate"].count().astype(int)
    since = (table.index - start) / pd.Timedelta(minutes=1)
    table["throughput"] = table["requests"] / np.minimum(since, minutes)
    for percent in (50, 95, 99):
        table[f"latency_p{percent}"] = window["latency_ms"].quantile(percent / 100)
    if normal:
        table = pd.concat([table, _deviations(window, table, normal)], axis=1)
    table = table[rows["error_rate"].isna()].rename_axis("timestamp").reset_index()
    return table[[name for name in ("timestamp", *METRICS) if name in table]]


def _deviations(window, means: pd.DataFrame, baseline: dict) -> pd.DataFrame:
    """How far a window is from a quiet day, in standard errors.

    (m - m0) / (s √(1/n + 1/n0)), where s is the larger of both standard deviations: one
    odd image in a small window widens its own yardstick. `class_mix_z` is the largest
    such deviation of the shares of all classes, without its sign.
    """
    shares, z = [name for name in baseline if name.startswith("share_")], {}
    for name in (*COMPARED, *shares):
        normal, n = baseline[name], window[name].count()
        spread = window[name].std().clip(lower=normal["std"])
        error = spread * np.sqrt(1 / n + 1 / normal["n"])
        z[name] = (means[name] - normal["mean"]) / error.clip(lower=1e-6)
    z = pd.DataFrame(z)
    mix = z[shares].abs().max(axis=1)
    return z[[*COMPARED]].add_suffix("_z").assign(class_mix_z=mix)


def error_budget(log, objective=0.99, limit_ms=50.0) -> pd.Series:
    """A service-level objective in requests: bad ones allowed, spent and left.

    A request is good when it was answered within `limit_ms`; budget_left is 1
    untouched, below 0 overspent. Source: Beyer et al., Site Reliability Engineering
    (2016).
    """
    if log.empty:
        raise CourseError(NO_LINES)
    if not 0 < objective < 1:
        raise CourseError(
            f"objective={objective} is no share between 0 and 1: 0.99 allows one bad"
            " request in a hundred."
        )
    good = (log["status"] == "ok") & (log["latency_ms"] <= limit_ms)
    bad, allowed = int((~good).sum()), (1 - objective) * len(log)
    told = {"objective": objective, "limit_ms": limit_ms, "requests": len(log)}
    told |= {"good_share": good.mean(), "allowed_bad": allowed, "bad": bad}
    return pd.Series(told | {"budget_left": 1 - bad / allowed}, name="error budget")


# ---- Alerts: rules as data, fired once -----------------------------------------------


ALERT_COLUMNS = {
    "timestamp": "time",
    "run_id": "str",
    "rule": "str",
    "severity": "str",
    "event": "str",
    "metric": "str",
    "value": "float",
    "threshold": "float",
    "runbook": "str",
}
CONDITIONS = {
    ">": operator.gt,
    "<": operator.lt,
    "abs>": lambda value, threshold: abs(value) > threshold,
}


@dataclass(frozen=True)
class AlertRule:
    """When to wake whom, as data for JSON: `AlertRule(**asdict(rule)) == rule`."""

    name: str
    metric: str  # a column of `window_statistics`: one of METRICS
    sign: str  # ">", "<" or "abs>"
    threshold: float
    severity: str = "warning"  # look at it in office hours; or "critical": get up
    hold: int = 10  # minutes that it must last to fire, and be gone to clear
    least: int = 0  # requests that a window needs for a verdict
    runbook: str = ""  # what the on-call engineer does first

    def __post_init__(self):
        rule = f"Rule {self.name!r}:"
        check_choice(f"{rule} metric", self.metric, METRICS)
        check_choice(f"{rule} sign", self.sign, CONDITIONS)
        check_choice(f"{rule} severity", self.severity, ("warning", "critical"))

    def breached(self, row) -> bool | None:
        """Verdict on a row of `window_statistics`; None where requests are too few."""
        if self.metric not in row:
            raise CourseError(
                f"Rule {self.name!r} watches {self.metric}, which this table lacks:"
                " call window_statistics(..., baseline=monitoring_baseline(quiet_log))."
            )
        if row["requests"] < self.least or math.isnan(row[self.metric]):
            return None
        return bool(CONDITIONS[self.sign](row[self.metric], self.threshold))


RUNBOOKS = {
    "slow": "p50 and p95 up: load or hardware; p95 alone: queueing. A new release?",
    "errors": "Group failed lines by status and sender. One: call them; all: undo.",
    "blank_images": "Open the last ten images; call the site that sends them.",
    "class_mix": "Has the population changed? Label thirty images before you retrain.",
    "confidence": "Look at the least confident images, then run the tests of theme 6.",
    "brightness": "Compare recent images with old ones: exposure, gain, preprocessing.",
    "no_traffic": "Send one request; if it is answered, look before the service.",
}


def default_rules(slo_ms: float = 50.0) -> list[AlertRule]:
    """Seven rules, of the service, its input and its output; and those you registered.

    Three of them compare with a quiet day, at 144 ticks: 432 looks a day. At 2 standard
    errors 20 of them would fire by chance, at 5 (two-sided normal tail 6e-7) one quiet
    day in 4,000; in 14,000 simulated quiet days none did.
    """
    table = [
        # name, metric, sign, threshold, severity, hold, least
        ("slow", "latency_p95", ">", slo_ms, "critical", 10, 20),
        ("errors", "error_rate", ">", 0.02, "critical", 10, 50),
        ("blank_images", "blank_share", ">", 0.05, "critical", 10, 20),
        ("class_mix", "class_mix_z", "abs>", 5.0, "warning", 10, 30),
        ("confidence", "confidence_z", "abs>", 5.0, "warning", 10, 30),
        ("brightness", "brightness_z", "abs>", 5.0, "warning", 10, 30),
        ("no_traffic", "requests", "<", 1, "critical", 10, 0),
    ]
    rules = [AlertRule(*row, RUNBOOKS[row[0]]) for row in table]
    return rules + [*OWN.get("rule", {}).values()]


class AlertManager:
    """Judge windows by rules, and tell each change once: "firing", then "resolved".

    A value that trembles around its threshold makes two events, not fifty. `path` is
    alerts.csv, appended like the inference log. With the `run_id` of a service, what it
    left firing is not fired again. `webhook` is an address that receives each event as
    JSON; a receiver that is down keeps nobody waiting.
    """

    def __init__(self, rules, path, run_id: str | None = None, webhook=None):
        self.rules, self.run_id = list(rules), run_id or new_run_id()
        self.webhook, self._since = webhook, {}
        names = [rule.name for rule in self.rules]
        if len(set(names)) < len(names):
            raise CourseError(f"Two rules share a name: {', '.join(names)}.")
        self._file = AppendOnlyCsv(path, "theme5_monitoring", ALERT_COLUMNS)
        self._file.append([])  # a file that cannot be written is told now
        last = self._file.read(run_id).groupby("rule")["event"].last() if run_id else {}
        self.firing = {rule for rule, event in last.items() if event == "firing"}

    def evaluate(self, now: datetime, row) -> list[dict]:
        """Judge one row of `window_statistics`; return, store and send the events."""
        events = []
        for rule in self.rules:
            verdict = rule.breached(row)
            if verdict is None or verdict == (rule.name in self.firing):
                self._since.pop(rule.name, None)
                continue
            since = self._since.setdefault(rule.name, now)
            if now - since >= pd.Timedelta(minutes=rule.hold):
                events.append(self._event(rule, now, row))
        if events:  # first: what could not be written is tried again at the next tick
            self._file.append(events)
        for event in events:
            self.firing ^= {event["rule"]}
            del self._since[event["rule"]]
            if self.webhook:
                send_alert(self.webhook, event)
        return events

    def _event(self, rule: AlertRule, now: datetime, row) -> dict:
        told = {"timestamp": now, "run_id": self.run_id, "rule": rule.name}
        told["event"] = "resolved" if rule.name in self.firing else "firing"
        return asdict(rule) | told | {"value": float(row[rule.metric])}


def read_alerts(path: str | Path, run_id: str | None = None) -> pd.DataFrame:
    """Events of alerts.csv in the order they were written (ALERT_COLUMNS)."""
    return AppendOnlyCsv(path, "theme5_monitoring", ALERT_COLUMNS).read(run_id)


def judge_windows(log, manager, baseline=None, **options) -> tuple:
    """Windows of a log, and the events that the manager makes of them: two tables."""
    windows = window_statistics(log, baseline=baseline, **options)
    events = []
    for row in windows.to_dict("records"):
        events += manager.evaluate(row["timestamp"], row)
    return windows, pd.DataFrame(events, columns=list(ALERT_COLUMNS))


# ======================================================================================
# 6 · DRIFT: have the pictures changed, and does it hurt
# ======================================================================================


# ---- The handout's names -------------------------------------------------------------


@from_handout
def extract_embeddings(model, loader, device) -> tuple[np.ndarray, np.ndarray]:
    """What the network knows before it decides: what its last linear layer reads.

    Returns
    -------
    embeddings : float32 (N, D)
    labels : int64 (N,), of the loader
    """
    body, _ = split_head(model)  # shares the weights of `model`
    body.eval()
    embeddings, labels = [], []
    with torch.no_grad():
        for images, targets in loader:
            embeddings.append(body(images.to(device)).flatten(1).float().cpu())
            labels.append(targets.cpu())
    return torch.cat(embeddings).numpy(), torch.cat(labels).numpy()


def compute_mmd(X, Y, kernel: str = "rbf", gamma: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy: how far apart are two clouds?

    mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over different points: 0 on average
    without drift, so it can fall a little below. Source: Gretton et al., A kernel
    two-sample test (2012), equation 3.

    Parameters
    ----------
    X, Y : float (n, D) and (m, D)
    kernel : "rbf", exp(-gamma |x - y|²), or "linear", x·y, which sees the means only
    gamma : float, None takes the median heuristic on X
    """
    x, y = check_pair(X, Y, what="MMD")
    n, m = len(x), len(y)
    k = _kernel_matrix(x, y, kernel, gamma)  # (n + m, n + m), its diagonal is 0
    within_x = k[:n, :n].sum() / (n * (n - 1))
    within_y = k[n:, n:].sum() / (m * (m - 1))
    return float(within_x + within_y - 2 * k[:n, n:].mean())


@from_handout
def detect_pixel_drift(baseline_loader, production_loader, alpha=0.05) -> DriftResult:
    """Have the pictures changed? KS test (Holm) of statistics of whole images.

    Not of pixels: ten thousand pixels of one picture are no ten thousand observations,
    and such a test finds drift in every window.

    Parameters
    ----------
    baseline_loader, production_loader : yield images, float (N, C, H, W), and labels

    Returns
    -------
    DriftResult : `bool(result)` says whether a p-value, after Holm, is below `alpha`
    """
    pixels = grey_levels(baseline_loader, production_loader)
    reference, window = (drift_statistics(part) for part in pixels)
    return replace(ks_test(reference, window, alpha), detector="KS statistics")


@from_handout
def detect_embedding_drift(
    model, baseline_loader, production_loader, device, alpha=0.05, permutations=1000
) -> DriftResult:
    """Does the network see something else? Permutation test of MMD on embeddings.

    Parameters
    ----------
    baseline_loader, production_loader : yield images, float (N, C, H, W), and labels
    permutations : int, the p-value is a multiple of 1 / (permutations + 1)

    Returns
    -------
    DriftResult : with the statistic and its p-value; `bool(result)` is its `drift`
    """
    reference, _ = extract_embeddings(model, baseline_loader, device)
    window, _ = extract_embeddings(model, production_loader, device)
    result = mmd_test(reference, window, alpha, permutations)
    return replace(result, detector="MMD embedding")


# ---- What a detector sees ------------------------------------------------------------


def drift_statistics(pixels: np.ndarray) -> pd.DataFrame:
    """Numbers of an image that change with camera, light and weather; a row an image.

    Columns: brightness, contrast, sharpness (see `image_statistics`); entropy of the
    grey levels in bits (Shannon, 1948); p05 and p95, the grey levels that 5 % and 95 %
    of the pixels do not exceed; in colour colourfulness (Hasler and Süsstrunk, 2003).
    """
    rows = []
    for image in pixels:  # (C, S, S)
        grey = np.round(image.mean(axis=0)).astype(int)  # (S, S)
        share = np.bincount(grey.ravel(), minlength=256) / grey.size  # (256,)
        entropy = -(share * np.log2(np.where(share > 0, share, 1))).sum()
        p05, p95 = np.searchsorted(share.cumsum(), (0.05 - 1e-9, 0.95 - 1e-9))
        row = {"entropy": entropy, "p05": p05, "p95": p95}
        if len(image) == 3:
            red, green, blue = image.astype(np.float32)
            both = np.stack([red - green, (red + green) / 2 - blue])  # (2, S, S)
            spread, offset = both.std(axis=(1, 2)), both.mean(axis=(1, 2))
            row["colourfulness"] = np.hypot(*spread) + 0.3 * np.hypot(*offset)
        rows.append(row)
    table = pd.DataFrame(image_statistics(pixels)).join(pd.DataFrame(rows))
    return table.astype(float)


def observe(model: OnnxModel, pixels: np.ndarray) -> Observation:
    """Statistics, answers and embeddings of pixels uint8 (N, C, S, S)."""
    key = fingerprint(drift_statistics, model.hash, pixels)
    return Observation(drift_statistics(pixels), *model.predict_all(pixels), key=key)


def fit_reference(model: OnnxModel, pixels, labels) -> Reference:
    """Observe the reference images, uint8 (N, C, S, S) with labels int64 (N,)."""
    seen = observe(model, pixels)
    check_features(seen.embedding, "reference embedding")
    about = {"model": model.hash, "classes": tuple(model.classes)}
    return Reference(**vars(seen), labels=np.asarray(labels), **about)


# ---- Detectors: is this window drawn from what the reference was drawn from? ---------


def holm(p_values) -> np.ndarray:
    """p-values of k tests, corrected for being many.

    Without drift the chance of any at alpha or below is alpha at most, whatever the
    dependence: the smallest is multiplied by k, the next by k - 1, and so on, and none
    may fall below the one before. Source: Holm (1979).
    """
    p, k = np.asarray(p_values, dtype=float), len(p_values)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * (k - np.arange(k)))
    adjusted = np.empty(k)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def ks_test(reference, window, alpha: float = 0.05) -> DriftResult:
    """Two-sample Kolmogorov–Smirnov test of each feature of (n, F) and (m, F), in one.

    The statistic is the largest distance between two distribution functions, 0..1. Its
    threshold is the formula for large samples (Smirnov, 1948); the decision goes by the
    exact p-value. Where features go together, Holm's correction is cautious. On softmax
    outputs it is black-box shift detection (Rabanser et al., Failing Loudly, 2019).
    """
    from scipy import stats

    x, y = check_pair(reference, window, alpha)
    (n, k), m = x.shape, len(y)
    check_reach(n, m, alpha / k, f"KS on {k} features (alpha / {k})")
    found = stats.ks_2samp(x, y, axis=0)
    p_values = holm(found.pvalue)  # (F,)
    features = pd.DataFrame(
        {"statistic": found.statistic, "p_value": p_values, "drift": p_values <= alpha},
        index=getattr(reference, "columns", None),
    )
    threshold = math.sqrt(math.log(2 * k / alpha) / 2 * (n + m) / (n * m))
    largest, p_value = float(found.statistic.max()), float(p_values.min())
    return DriftResult("KS", largest, p_value, threshold, alpha, m, n, features)


def median_gamma(x: np.ndarray, most: int = 1000) -> float:
    """Width of the RBF kernel: 1 / (median squared distance between two rows).

    A fixed gamma = 1 makes every kernel value 0 in 64 dimensions or more, and the test
    blind. Source: Gretton et al., A kernel two-sample test (2012).
    """
    from scipy.spatial.distance import pdist

    rows = np.random.default_rng(0).permutation(len(x))[:most]
    distances = pdist(np.asarray(x, dtype=np.float64)[rows], "sqeuclidean")
    median = np.median(distances) if len(distances) else 0.0
    return float(1 / median) if median > 0 else 1.0


def _kernel_matrix(x, y, kernel: str, gamma: float | None) -> torch.Tensor:
    """How alike any two rows of x and y are: float64 (n + m, n + m).

    A row is not compared with itself: the diagonal is 0.
    """
    check_choice("kernel", kernel, ("rbf", "linear"))
    rows = torch.from_numpy(np.concatenate([x, y])).to(best_device())
    if kernel == "rbf":
        gamma = median_gamma(x) if gamma is None else gamma
        rows = rows - rows.mean(dim=0)  # keeps digits: cdist takes |x|² + |y|² - 2 x·y
        k = torch.cdist(rows, rows).square_().mul_(-gamma).exp_()
    else:
        k = rows @ rows.T
    return k.fill_diagonal_(0)


def _shuffled(n: int, m: int, permutations: int, seed: int) -> np.ndarray:
    """Who belongs to the window of m: float64 0/1 (permutations + 1, n + m).

    Row 0 is the truth (the last m), the others are drawn as if it did not matter.
    """
    truth = np.repeat([0.0, 1.0], [n, m])
    members = np.tile(truth, (permutations + 1, 1))
    np.random.default_rng(seed).permuted(members[1:], axis=1, out=members[1:])
    return members


def _permutation_p(values: np.ndarray, alpha: float) -> tuple[float, float]:
    """p-value and threshold from statistics: the true one first, then the permuted.

    p = (b + 1) / (m + 1), where b of m permuted ones reach the true one: the true order
    is one of the m + 1 that are equally likely without drift, so p can never be 0.
    Source: Phipson and Smyth (2010).
    """
    true, permuted = values[0], np.sort(values[1:])[::-1]
    # rounding must not tell equal from equal
    equal = np.abs(permuted - true) <= 1e-12 * max(1.0, abs(true))
    permuted = np.where(equal, true, permuted)
    p_value = ((permuted >= true).sum() + 1) / (len(permuted) + 1)
    # p <= alpha: at most allowed - 1 reach the true one
    allowed = math.floor(alpha * (len(permuted) + 1) + 1e-9)
    return float(p_value), float(permuted[allowed - 1])


def mmd_test(
    reference, window, alpha=0.05, permutations=1000, gamma=None, seed=42
) -> DriftResult:
    """Permutation test of the squared MMD (RBF kernel); one matrix product for all.

    The kernel matrix, float64 (n + m, n + m), has to fit into memory: 128 MB for 2,000
    and 2,000 rows. gamma=None takes the median heuristic on the reference.
    """
    x, y = check_pair(reference, window, alpha, "MMD")
    n, m = len(x), len(y)
    check_reach(n, m, alpha, "MMD", permutations)
    k = _kernel_matrix(x, y, "rbf", gamma)  # (N, N), N = n + m
    w = torch.from_numpy(_shuffled(n, m, permutations, seed)).to(k.device)  # (B, N)
    to_window = w @ k  # (B, N): for every split, each row's sum over the window
    within = (to_window * w).sum(dim=1)  # (B,): pairs inside the window
    across = to_window.sum(dim=1) - within  # one of the pair inside
    rest = k.sum() - within - 2 * across  # none inside
    values = rest / (n * (n - 1)) + within / (m * (m - 1)) - 2 * across / (n * m)
    p_value, threshold = _permutation_p(values.cpu().numpy(), alpha)
    return DriftResult("MMD", float(values[0]), p_value, threshold, alpha, m, n)


def classifier_test(
    reference, window, alpha=0.05, permutations=1000, seed=42
) -> DriftResult:
    """Can a classifier tell the window from the reference?

    A logistic regression learns on one half, and its AUROC is measured on the other.
    The domain labels of that half are then permuted, which is exact, as it took no part
    in learning. Source: Lopez-Paz and Oquab, Revisiting classifier two-sample tests
    (2017).
    """
    from scipy.stats import rankdata
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    what = "A domain classifier"
    x, y = check_pair(reference, window, alpha, what, least=10)
    rows, domain = np.concatenate([x, y]), np.repeat([0, 1], [len(x), len(y)])
    learn, held = train_test_split(
        np.arange(len(rows)), test_size=0.5, stratify=domain, random_state=seed
    )
    held = np.sort(held)  # the window last, as `_shuffled` has it
    rows = (rows - rows[learn].mean(axis=0)) / (rows[learn].std(axis=0) + 1e-12)
    model = LogisticRegression(C=0.01, class_weight="balanced", solver="liblinear")
    scores = model.fit(rows[learn], domain[learn]).decision_function(rows[held])
    m = int(domain[held].sum())
    n = len(held) - m
    check_reach(n, m, alpha, what, permutations)
    members = _shuffled(n, m, permutations, seed)  # (B, n + m)
    # AUROC is a sum of ranks: Mann and Whitney (1947)
    values = (members @ rankdata(scores) - m * (m + 1) / 2) / (n * m)
    p_value, threshold = _permutation_p(values, alpha)
    return DriftResult(
        "domain classifier", float(values[0]), p_value, threshold, alpha, len(y), len(x)
    )


# The detectors of the course by name: at which part of an Observation each looks, and
# with which test. `register_detector` puts one of your own beside them.
DETECTORS = {
    "KS statistics": ("statistics", ks_test),
    "KS softmax": ("probabilities", ks_test),
    "KS embedding": ("embedding", ks_test),
    "MMD embedding": ("embedding", mmd_test),
    "classifier embedding": ("embedding", classifier_test),
}


def detect(
    reference, window, detector="MMD embedding", alpha=0.05, permutations=1000, seed=42
) -> DriftResult:
    """Ask one detector of DETECTORS whether the window has drifted from the reference.

    Both are an `Observation`. Of alpha, permutations and seed the detector gets what
    its signature names.
    """
    check_detector(DETECTORS, detector)
    view, test = DETECTORS[detector]
    sides = [getattr(side, view) for side in (reference, window)]
    if detector in OWN.get("detector", {}):  # a group's: arrays, which it may change
        sides = [np.array(side) for side in sides]
    options = {"alpha": alpha, "permutations": permutations, "seed": seed}
    named = inspect.signature(test).parameters
    options = {name: value for name, value in options.items() if name in named}
    answer = test(*sides, **options)
    return as_result(answer, detector, alpha, len(window), len(reference))


# ---- How good are detectors? False alarms without drift, power with it ---------------


def alarm_rates(
    undrifted: Observation,
    window: int,
    detectors=None,
    resamples=500,
    alpha=0.05,
    permutations=200,
    seed=42,
    groups=None,
) -> list[dict]:
    """How often does each detector raise a false alarm? A row for each of `detectors`.

    Reference and window are drawn from undrifted images, disjoint, again and again.
    This proves that the code keeps its level, not that production is like validation:
    drawn from one pool, the two are alike by construction. And the intervals (low,
    high: Wilson) are narrow: resamples of the same images count as independent.

    `groups`, an array (N,), names the patient or building of each image: windows then
    hold whole groups, as they come in life, and at least `window` images.
    """
    rng, rows = np.random.default_rng(seed), []
    alarms = dict.fromkeys(DETECTORS if detectors is None else detectors, 0)
    for number in range(resamples):
        inside = _draw_window(len(undrifted), window, rng, groups)
        drawn, rest = undrifted.take(inside), undrifted.take(~inside)
        for name in alarms:
            result = detect(rest, drawn, name, alpha, permutations, seed=number)
            alarms[name] += result.drift
    for name, count in alarms.items():
        low, high = wilson(count, resamples)
        row = {"detector": name, "alarms": count, "resamples": resamples}
        row |= {"rate": count / resamples, "low": low, "high": high}
        rows.append(row | {"window": window, "reference": len(undrifted) - window})
    return rows


def _draw_window(total: int, size: int, rng, groups=None) -> np.ndarray:
    """Who is drawn, bool (total,): `size` images, or whole groups until so many."""
    if size > total // 2:
        raise CourseError(
            f"A window of {size} leaves {total - size} of {total} images as the"
            " reference: give more undrifted images or a smaller window."
        )
    if groups is None:
        return rng.permutation(total) < size
    _, group = np.unique(groups, return_inverse=True)
    turn = rng.permutation(group.max() + 1)[group]  # when each image's group comes
    return turn <= np.sort(turn)[size - 1]


def count_found(
    reference, drifted, size: int, detector: str, draws=10, permutations=200, seed=42
) -> int:
    """Power: in how many of `draws` windows of drifted images a detector tells drift.

    Windows of a small pool share images: the count tells more of it than of the world.
    """
    rng, found = np.random.default_rng([seed, size]), 0
    for number in range(draws):
        window = drifted.take(rng.permutation(len(drifted))[:size])
        options = {"permutations": permutations, "seed": number}
        found += detect(reference, window, detector, **options).drift
    return found


# ---- How accurate is the model now, without a label? ---------------------------------


ESTIMATES = ("average_confidence", "difference_of_confidences", "atc")


def estimate_accuracy(reference: Reference, window: Observation) -> dict[str, float]:
    """Three estimates of the accuracy on a window without labels.

    All trust the model's own confidence: its mean (Hendrycks and Gimpel, 2017); the
    accuracy on the reference less the fall of that mean (Guillory et al., Predicting
    with confidence on unseen distributions, 2021); and average thresholded confidence,
    the share of the window above the confidence that, on the reference, as many images
    exceed as are answered right (Garg et al., Leveraging unlabeled data, 2022).
    """
    check_features(window.probabilities, "window (its answers)")
    before, now = reference.confidence, window.confidence
    wrong = int((reference.answers != reference.labels).sum())
    threshold = np.sort(before)[wrong] if wrong < len(before) else math.inf
    # The threshold is one of the confidences: half of those that equal it count, on
    # both sides.
    above = (now > threshold).mean() + 0.5 * (now == threshold).mean()
    difference = reference.accuracy + now.mean() - before.mean()
    return {
        "average_confidence": float(now.mean()),
        "difference_of_confidences": float(np.clip(difference, 0, 1)),
        "atc": float(above),
    }


# ---- The decision: none, watch or retrain --------------------------------------------


@dataclass(frozen=True)
class DriftPolicy:
    """When is drift drift, and when is it worth a retraining?"""

    # below this estimated accuracy a confirmed drift means `retrain`, else `watch`
    accuracy_floor: float
    window: int = 50  # images of one look
    # chance that an undrifted stream of `horizon` windows is ever called drifted
    alpha: float = 0.05
    horizon: int = 20  # windows: a month of daily looks
    consecutive: int = 2  # flagged windows in a row that confirm a drift
    # so many in a row mean `retrain` whatever the estimate says: drift can make a model
    # wrong and sure
    lasting: int = 5
    estimate: str = "atc"  # one of ESTIMATES
    # of DETECTORS, corrected by Holm
    detectors: tuple[str, ...] = ("KS statistics", "KS softmax", "MMD embedding")

    def __post_init__(self):
        check_policy(self, ESTIMATES, DETECTORS)

    @property
    def window_alpha(self) -> float:
        """Error rate of one window: consecutive * alpha / horizon.

        Without drift, `horizon` windows have on average horizon * window_alpha flagged
        ones, so `consecutive` or more come with a chance of at most horizon *
        window_alpha / consecutive = alpha (Markov's inequality), however much the
        windows have in common, such as one reference.
        """
        return self.consecutive * self.alpha / self.horizon

    @property
    def permutations(self) -> int:
        """Enough for twice the smallest p-value that the corrected test must reach."""
        return math.ceil(2 * len(self.detectors) / self.window_alpha)

    def level(self, streak: int, estimate: float) -> str:
        """The decision after `streak` flagged windows in a row."""
        if streak < self.consecutive:
            return "watch" if streak else "none"
        costs, lasts = estimate < self.accuracy_floor, streak >= self.lasting
        return "retrain" if costs or lasts else "watch"


class DriftMonitor:
    """Looks at one window after the other and decides; each look is a line of a log.

    The promise of the policy covers `horizon` windows from the first look on; a new
    monitor starts a new stream.
    """

    def __init__(self, reference: Reference, policy: DriftPolicy, log_file=None):
        self.reference, self.policy, self.run_id = reference, policy, new_run_id()
        self.number, self.streak, self.recent = 0, 0, []
        self.log = DecisionLog(log_file, self) if log_file else None

    def look(self, window: Observation) -> Decision:
        """Judge the next window. One that cannot be judged is told and not counted."""
        policy, results = self.policy, {}
        check_window(window, policy.window)
        each = policy.window_alpha / len(policy.detectors)  # Holm's smallest step
        options = each, policy.permutations, self.number
        for name in policy.detectors:
            results[name] = detect(self.reference, window, name, *options)
        p_values = holm([result.p_value for result in results.values()])
        flagged = bool(p_values.min() <= policy.window_alpha)

        self.streak = self.streak + 1 if flagged else 0
        self.recent = [*self.recent, window][-policy.consecutive :] if flagged else []
        seen = join(self.recent or [window])
        estimate = estimate_accuracy(self.reference, seen)[policy.estimate]
        level = policy.level(self.streak, estimate)

        p_of = dict(zip(results, p_values.tolist(), strict=True))
        why = explain(policy, p_of, self.streak, estimate, len(seen))
        numbers = self.streak, min(p_of.values()), estimate
        decision = Decision(self.number, level, flagged, *numbers, results, why)
        if self.log:
            self.log.append(decision, len(window))
        self.number += 1
        return decision


# ======================================================================================
# 7 · RETRAINING: from a labelling budget to a model that may serve
# ======================================================================================


@from_handout
def validate_retrained_model(
    new_model,
    current_model,
    clean_loader,
    drifted_loader,
    device,
    *,
    classes=None,
    trained_on=(),
    proof: tuple[Check, ...] = (),
    **limits,
) -> GateReport:
    """May the candidate replace the model in service? Each check with its interval.

    Parameters
    ----------
    new_model, current_model : OnnxModel, or networks from images to logits
    clean_loader, drifted_loader : of the gate; they must repeat their order
    classes : list of str, None for the models' own
    trained_on, proof : those of `gate_checks`
    limits : fields of GateLimits

    Returns
    -------
    GateReport : one row a check; `bool(report)` is `accepted`

    Raises
    ------
    CourseError
        A loader that gives no images, or others the second time.
    """
    limits, models, sets = GateLimits(**limits), (new_model, current_model), []
    for loader in (clean_loader, drifted_loader):
        answers = [_answers(model, loader, torch.device(device)) for model in models]
        (new, labels), (old, same) = answers
        if not np.array_equal(labels, same):
            raise CourseError(
                "The loader gave the two models other images, or in another order: a"
                " gate compares image by image, so switch shuffling off."
            )
        sets.append(Answers(new, old, labels, getattr(loader, "hashes", ())))
    known = classes or getattr(new_model, "classes", ())
    names = known or [f"class {k}" for k in range(sets[0].new.shape[1])]
    hashes = [getattr(model, "hash", "") for model in models]
    given = {"trained_on": trained_on, "proof": proof}
    return gate_checks(*sets, names, limits, **given, new=hashes[0], current=hashes[1])


def _answers(model, loader, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, K) and labels (N,) of one model over one loader."""
    if isinstance(model, OnnxModel):  # it normalises by itself, and needs the pixels
        pixels = loader.pixels.cpu()[loader.rows].numpy()
        return model.predict_all(pixels)[0], loader.labels
    batches = [(images.to(device), labels) for images, labels in loader]
    if not batches:
        raise CourseError("The gate got no images: pass a loader, not an iterator.")
    logits, labels = predict(model.to(device), batches)
    return softmax(logits), labels


# ---- From a labelling budget to a candidate ------------------------------------------


FINE_TUNING = ("whole", "frozen stem", "batch norm")


def buy_labels(drifted: Data, budget: int, seed: int = 42) -> np.ndarray:
    """Draw the drifted images that a labelling budget pays for: sorted rows of "adapt".

    They are drawn at random, not by class: nobody knows the class before paying for it.
    A larger budget with the same seed holds the smaller one.
    """
    pool = drifted.where("adapt")
    if not 0 < budget <= len(pool):
        raise CourseError(
            f"A budget of {budget} labels cannot be spent: choose 1 to {len(pool)}, the"
            " images of pool adapt."
        )
    rows = np.sort(np.random.default_rng(seed).permutation(pool)[:budget])
    if len(seen := np.unique(drifted.labels[rows])) < 2:
        raise CourseError(
            f"The {budget} labels are all {drifted.classes[seen[0]]}, and a network"
            " would learn that drifted means this class: raise the budget, or draw with"
            " another seed."
        )
    return rows


def mix(data: Data, drifted: Data, rows, share=0.1, images=None, seed=42) -> Data:
    """The training set of a candidate: clean images, so that nothing is forgotten, each
    once, and a share of drifted ones, the `rows` of `buy_labels` in turn.

    Pool "val" is the old one twice, clean and drifted. Mean and std are those of
    `data`: one normalisation for one model. The index gains `source` (hash of the clean
    file, for the gate's check of leakage) and `drifted` (bool).
    """
    train, val, rows = data.where("train"), data.where("val"), np.unique(rows)
    images = size_of_mix(data, drifted, rows, share, images)
    count = round(share * images)  # of drifted ones
    rng = np.random.default_rng([seed, 1])
    # in turn: none is repeated twice before all once
    bought = np.resize(rng.permutation(rows), count).astype(np.int64)
    clean = rng.choice(train, images - count, replace=False)

    parts = ((data, clean), (drifted, bought), (data, val), (drifted, val))
    chosen = np.concatenate([part for _, part in parts])
    old = np.repeat([False, True, False, True], [len(part) for _, part in parts])
    pools = np.repeat(["train", "val"], [images, 2 * len(val)])
    index = data.index.iloc[chosen].reset_index(drop=True)
    index = index.assign(pool=pools, drifted=old, source=index["sha256"])
    pixels = np.concatenate([source.pixels[part] for source, part in parts])
    key = fingerprint(mix, data.key, drifted.key, chosen, old)
    labels = data.labels[chosen]
    return replace(data, index=index, pixels=pixels, labels=labels, key=key)


def finetune_recipe(data: Data) -> Recipe:
    """As theme 3 trains, but for two epochs at a quarter to a third of its rate.

    The network starts near a good place, which a high rate would leave. The running
    average is short, as the training.
    """
    epochs = 1 if data.course.profile.name == "smoke" else 2
    same = {"weight_decay": 5e-2, "label_smoothing": 0.05, "augment": True}
    return Recipe(epochs, batch_size=32, lr=1e-3, average=0.5, **same)


def fine_tune(
    course, name, checkpoint, mixed: Data, how="whole", recipe=None, **options
) -> Run:
    """Train the network of a checkpoint further, on the images of `mix`, as `fit` does.

    `how` says what learns: the "whole" network; all but a "frozen stem", the first
    third of the layers, whose edges and textures a drift leaves useful; or no weight at
    all, but "batch norm" (see `renormalise`). `options` are those of `fit`.
    """
    check_choice("how", how, FINE_TUNING)
    model, state = load_model(checkpoint, course.classes)
    recipe, name = recipe or finetune_recipe(mixed), f"{name}-{how.replace(' ', '-')}"
    if how == "frozen stem":
        freeze(stem_of(model))
    if how == "batch norm":
        run = renormalise(course, name, model, mixed, recipe)
    else:
        # What is frozen stands neither in the weights nor in the recipe, so the key of
        # the data names it.
        named = replace(mixed, key=fingerprint(mixed.key, how, stem_of, freeze))
        options = {"tracker": "none", "progress": False} | options
        run = fit(course, name, model, named, recipe, **options)
    network = {"architecture", "config", "weights", "optimizer"}
    origin = {key: value for key, value in state.items() if key not in network}
    origin |= {"parent": hash_file(checkpoint)[:16], "how": how, "learned": mixed.key}
    write_json(run.path / "origin.json", origin)
    return run


def stem_of(model: nn.Module) -> list[nn.Module]:
    """The first third of the layers that have weights: edges and textures."""
    layers = [part for part in model.modules() if [*part.parameters(recurse=False)]]
    return layers[: max(len(layers) // 3, 1)]


def freeze(layers: list[nn.Module]) -> None:
    """From now on training changes no weight and no batch-norm statistic of these."""
    for layer in layers:
        layer.requires_grad_(False)
        layer.eval()
        # `train_epoch` puts the whole network into training mode: not these
        layer.train = lambda mode=True: None


def renormalise(course, name, model, mixed: Data, recipe: Recipe) -> Run:
    """Measure the means and variances of batch normalisation anew; no weight changes.

    One pass over pool train as it is, without augmentation or labels. It is shuffled:
    the variance kept is the mean over the batches, and batches of one domain each would
    lack what lies between the domains. Source: Li et al., Revisiting Batch
    Normalization for Practical Domain Adaptation (2016).
    """
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        raise CourseError(
            f"This {type(model).__name__} has no batch normalisation to measure anew:"
            " use how='whole'."
        )
    began, size = time.perf_counter(), max(recipe.batch_size, 64)
    model.to(course.device)
    path = course.runs / f"{name}-{fingerprint(renormalise, model, size, mixed.key)}"
    loader = mixed.loader("train", size, shuffle=True)
    swa_utils.update_bn(loader, model, course.device)
    seconds, history = time.perf_counter() - began, pd.DataFrame()
    about = now(), hardware(), recipe, path
    return Run(name, model.eval(), history, seconds, *about)


def save_candidate(course, run: Run, mixed: Data, path=None) -> Path:
    """Store a fine-tuned network with a temperature and threshold fitted on mixed val.

    In checkpoints/model_retrained.pth, unless told. The rest is what its parent's
    checkpoint says, and `trained_on`: the hashes of all images that the weights, the
    temperature or the choice among candidates depend on, its parent's included, so that
    the gate can prove that it judges on others.
    """
    origin = read_json(run.path / "origin.json")
    if origin.pop("learned", None) != mixed.key:
        raise CourseError(
            f"{run.path.name} has not learned from these images: pass the mix that"
            " fine_tune was given."
        )
    logits, labels = predict(run.model, mixed.loader("val", 256))
    temperature = fit_temperature(logits, labels)
    probabilities, cost = softmax(logits, temperature), origin.get("cost_missed", 5.0)
    index, learned = load_index(course), mixed.index[mixed.index["pool"] == "train"]
    known = index.loc[index["pool"].isin(["train", "val"]), "sha256"]
    seen = [*mixed.index["source"], *(origin.get("trained_on") or known)]
    own = {
        "mean": mixed.mean,
        "std": mixed.std,
        "temperature": temperature,
        "threshold": choose_threshold(probabilities, labels, cost)[0],
        "run": run.path.name,
        "trained_on": sorted({digest[:16] for digest in seen}),
        "share": float(learned["drifted"].mean()),
        "budget": int(learned.loc[learned["drifted"], "source"].nunique()),
    }
    path = path or course.checkpoints / "model_retrained.pth"
    return save_checkpoint(path, run.model, **origin | own)


# ---- The gate: what a candidate must prove before it may serve -----------------------


@dataclass(frozen=True)
class GateLimits:
    """What the gate asks for, fixed before anybody has seen a figure.

    A margin is what a patient could bear. It does not grow where there are few images:
    there the gate does not know, and says so. Clean accuracy, the recall of each class
    (both fractions) may fall by less than theirs, confidence less accuracy may rise by
    at most its own. `alpha` is the chance that one check lets a candidate pass that is
    just not good enough; as all must pass, that of the whole gate is no larger: an
    intersection-union test (Berger, 1982).
    """

    clean_margin: float = 0.05
    recall_margin: float = 0.15
    calibration_margin: float = 0.05
    alpha: float = 0.05

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not 0 < value < 0.5:
                raise CourseError(
                    f"{name}={value} is no limit of the gate: choose a fraction above 0"
                    " and below 0.5. At 0 nothing can be proven, however many images."
                )


def not_worse(name: str, old, new, margin: float, alpha: float) -> Check:
    """Non-inferiority: the lower end of the interval stays above minus the margin."""
    value, low, high = paired_difference(old, new, 1 - 2 * alpha)
    return Check(name, value, low, high, -margin, len(old), above=True)


def better(name: str, old, new, alpha: float) -> Check:
    """Superiority, by McNemar's exact test; one-sided: a worse model is refused anyway.

    The interval belongs to the test: that of Clopper and Pearson (1934) for the share
    won among the images on which just one of both is right, times their number.
    """
    from scipy.stats import binomtest

    lost, won, n = int((old & ~new).sum()), int((~old & new).sum()), len(old)
    low = high = 0.0
    if differing := lost + won:
        share = binomtest(won, differing).proportion_ci(1 - 2 * alpha, method="exact")
        low, high = ((2 * end - 1) * differing / n for end in (share.low, share.high))
    note = f"{won} answers won, {lost} lost, p = {mcnemar(old, new, 'greater'):.2g}"
    return Check(name, (won - lost) / n, low, high, 0.0, n, above=True, note=note)


def calibration_kept(answers: Answers, margin: float, alpha: float) -> Check:
    """Confidence less accuracy: the candidate must not become surer than it is right.

    A mean of paired differences, so its interval is that of a mean; the calibration
    error itself would test nothing, see `expected_calibration_error`.
    """
    from scipy.stats import norm

    surer = answers.new.max(axis=1) - answers.old.max(axis=1)
    gained = answers.new_right.astype(float) - answers.old_right
    change, n = surer - gained, len(surer)  # (N,)
    value = float(change.mean())
    arm = norm.ppf(1 - alpha) * change.std(ddof=1) / math.sqrt(n)
    return Check("calibration", value, value - arm, value + arm, margin, n)


def leakage(sets: tuple[Answers, ...], trained_on) -> Check:
    """No image of the gate may be among those that the candidate depends on."""
    n = max(len(answers.labels) for answers in sets)
    if not trained_on or any(len(a.hashes) < len(a.labels) for a in sets):
        lacks = "hashes of the gate's images" if trained_on else "trained_on"
        return unmeasured("leakage", f"give {lacks}")
    seen = {digest[:16] for digest in trained_on}
    leaked = len({digest[:16] for a in sets for digest in a.hashes} & seen)
    note = f"gate images among the {len(seen)} that the candidate depends on"
    return counted("leakage", leaked, 0, n, note)


def gate_checks(
    clean, drifted, classes, limits=None, *, trained_on=(), proof=(), new="", current=""
) -> GateReport:
    """Every check of the gate: ten, and one more with three classes.

    `clean` and `drifted` are Answers, `limits` GateLimits. `trained_on` has the hashes
    of the images that the candidate depends on, from its checkpoint. `proof` is what
    `measure_candidate` returns; what is not there does not pass. `new` and `current`
    are the hashes of the exported files, which `promote` compares with what it finds.
    """
    for answers in (clean, drifted):
        answers.check(classes)
    limits = limits or GateLimits()
    alpha, there = limits.alpha, (drifted.old_right, drifted.new_right)
    old, right = clean.old_right, clean.new_right
    # a gain that is paid for by giving up a small class does not count
    balanced = paired_balanced_difference(*there, drifted.labels, 1 - 2 * alpha)
    n = len(drifted.labels)
    checks = [
        leakage((clean, drifted), trained_on),
        not_worse("clean accuracy", old, right, limits.clean_margin, alpha),
        better("drifted accuracy", *there, alpha),
        Check("drifted balanced accuracy", *balanced, 0.0, n, above=True),
    ]
    for k, name in enumerate(classes):
        own = clean.labels == k
        pair = old[own], right[own]
        checks.append(not_worse(f"recall {name}", *pair, limits.recall_margin, alpha))
    checks.append(calibration_kept(clean, limits.calibration_margin, alpha))
    measured = {check.name: check for check in proof}
    for name in ("latency", "shadow", "onnx agreement"):
        lacks = unmeasured(name, "give what measure_candidate returns")
        checks.append(measured.get(name, lacks))
    return GateReport(tuple(checks), new, current)


def latency_ratio(new, current, pixels, rounds=15, seconds=0.03, limit=1.25) -> Check:
    """How many times as long the candidate takes for one image, in interleaved rounds.

    The median over the rounds, each end of its interval at 95 % by the sign test
    (Thompson, 1936), so that a few disturbed rounds move nothing. It takes five.
    """
    from scipy.stats import quantile_test

    backends = [
        Backend(name, model.predict, "cpu", "", model.provider, model.path)
        for name, model in (("new", new), ("current", current))
    ]
    rows = benchmark(backends, pixels, batches=(1,), rounds=rounds, seconds=seconds)
    took = {"new": [], "current": []}  # median ms of each round
    for row in rows:
        took[row["backend"]].append(np.median(row["ms"]))
    ratios = np.array(took["new"]) / took["current"]
    low, high = quantile_test(ratios, p=0.5).confidence_interval(0.9)
    value, others = float(np.median(ratios)), np.median([row["others"] for row in rows])
    ends = float(low), float(high)
    check = Check("latency", value, *ends, limit, rounds, of="rounds")
    if check.verdict == "failed" and others >= BUSY:  # nobody is refused for that
        why = f"other programs used {others:.1f} cores meanwhile: close them, try again"
        return unmeasured("latency", why)
    return check


# ---- Shadow: the candidate sees the traffic before it may answer ---------------------


def run_in_shadow(current, candidate, data, rows, logger, drifted=None) -> dict:
    """Replay requests of one image: current model first, then the candidate, unheard.

    Both are logged, told apart by their role. The answer stands before the candidate
    starts, so that neither an error nor a slow answer of its own can touch it. No label
    is needed: it shows crashes, latency, and how many answers would change, not which
    of both is right.

    Returns the current model's `answers`, float32 (n, K), the candidate's `errors`, and
    its `agreement` (Wilson: low, high), the share of the n others answered alike.
    """
    service = MonitoredModel(current, logger, role="service")
    shadow = MonitoredModel(candidate, logger, role="shadow")
    pixels, paths = (drifted or data).pixels, data.index["path"].to_numpy()
    answers, same = [], []
    for row in rows:
        image, path = np.array(pixels[row : row + 1]), [paths[row]]
        answers.append(np.array(service.predict(image.copy(), path))[0])
        # whatever goes wrong in the shadow stands in the log, and nowhere else
        with suppress(Exception):
            other = shadow.predict(image, path)[0]
            same.append(bool(answers[-1].argmax() == other.argmax()))
    low, high = wilson(sum(same), len(same))
    counts = {"requests": len(rows), "errors": len(rows) - len(same), "n": len(same)}
    alike = float(np.mean(same)) if same else math.nan
    found = {"agreement": alike, "low": low, "high": high}
    return {"answers": np.stack(answers)} | counts | found


# ---- The whole chain in one call -----------------------------------------------------


def retrain_and_gate(
    course: Course,
    data: Data,
    drifted: Data,
    budget: int,
    share=0.1,
    how="whole",
    *,
    path: Path | None = None,
    dry_run=False,
    seed=42,
    **limits,
) -> GateReport:
    """From the decision to the verdict, without a hand.

    Buy labels, mix, fine-tune, export, shadow, gate, promote; `dry_run` stops before
    the promotion. A candidate that the gate does not accept changes nothing; the audit
    log has it.
    """
    decision = read_drift_report(course)["decision"]
    if not dry_run and decision != "retrain":
        raise CourseError(f"Theme 6 decided {decision!r}: rehearse with dry_run=True.")
    mixed = mix(data, drifted, buy_labels(drifted, budget, seed), share, seed=seed)
    name, best = f"retrain-{budget}-{share:.0%}", course.checkpoints / "best_model.pth"
    run = fine_tune(course, name, best, mixed, how)
    checkpoint = save_candidate(course, run, mixed, path)
    stored = export_onnx(course, checkpoint)
    files = stored, course.exports / "model.onnx"
    new, current = (OnnxModel(f, course.classes, course.provider) for f in files)
    if new.hash == current.hash:
        raise CourseError(f"{new.hash} is in service already: nothing to do.")
    proof = measure_candidate(course, new, current, checkpoint, data, drifted)
    known = {"trained_on": load_checkpoint(checkpoint)["trained_on"], "proof": proof}
    sides = new, current, data.loader("gate", 256), drifted.loader("gate", 256)
    report = validate_retrained_model(*sides, course.device, **known, **limits)
    if not dry_run:
        why = f"{how}, {share:.0%} drifted, {budget} labels"
        try:
            promote(course, stored, report, why=why)
        except CourseError:
            if report:  # else it was refused: the audit log has it
                raise
    return report


def measure_candidate(course, new, current, checkpoint, data, drifted) -> tuple:
    """What the gate asks for beside answers: three of its checks.

    Latency; the shadow, on drifted traffic; agreement of file and checkpoint, on the
    CPU, where no TF32 rounds one of both.
    """
    gate = np.array(data.pixels[data.where("gate")])
    requests = data.where("production")[:100]
    logger = InferenceLogger(course.logs / "production.csv")
    seen = run_in_shadow(current, new, data, requests, logger, drifted)
    alike = f"requests failed; {seen['agreement']:.1%} of the others answered alike"
    shadow = counted("shadow", seen["errors"], 0, seen["requests"], alike)

    network, _ = served_network(course, checkpoint)
    exported = OnnxModel(new.path, course.classes, "cpu")
    apart = agreement(network, exported, gate, (1, 32))
    changed = int(apart["changed"].max())
    largest = math.inf if changed else float(apart["max_abs_diff"].max())
    told = f"file against checkpoint; {changed} decisions differ"
    same = counted("onnx agreement", largest, 1e-5, len(gate), told)
    return latency_ratio(new, current, gate[:8]), shadow, same


# ======================================================================================
# 8 · SYNTHESIS: the whole course in a few tables, read from the record
# ======================================================================================


def summary_backends(course: Course, results: dict) -> list[Backend]:
    """The variants of the summary that exist here, ready to be timed side by side."""
    provider, backends = course.provider, []
    for name, file in (("baseline", "baseline.pth"), ("optimised", "best_model.pth")):
        path = course.checkpoints / file
        if path.exists():
            network, _ = served_network(course, path)
            backends.append(torch_backend(network, path, name, provider))
    exported = results.get("theme4", {}).get("models", {})
    deployed = results.get("theme7", {}).get("models", {})
    served = (
        ("ONNX float32", exported.get("fp32"), provider),
        ("ONNX INT8", exported.get("int8"), "cpu"),
        ("retrained", deployed.get("after"), provider),
    )
    for name, digest, where in served:
        path = course.exports / "models" / f"{digest}.onnx"
        if path.exists():
            backends += onnx_backend(path, name, where)
    return backends


def serving_table(rows, backends: list[Backend], price) -> pd.DataFrame:
    """One row a variant, from the rows of `benchmark`, by its median call.

    p50_ms and p95_ms of one image, images_s in the largest batch, cost_per_million one
    by one (without a price none), size_mb of its file, runtime. One slow call of a busy
    machine would move a mean.
    """
    speed = benchmark_table(rows).set_index(["batch", "backend"])
    batch = max(speed.index.unique("batch"))
    one, many = speed.loc[1], speed.loc[batch]
    table = one[["p50_ms", "p95_ms"]].assign(images_s=1000 * batch / many["p50_ms"])
    if price is not None:
        costs = [cost_per_million(1000 / ms, price) for ms in one["p50_ms"]]
        table["cost_per_million"] = costs
    for b in backends:
        table.loc[b.name, "size_mb"] = b.file.stat().st_size / 2**20
        table.loc[b.name, "runtime"] = f"{b.provider}, {b.device}"
    return table.rename_axis("model")


def performance_table(home, results, serving=None, resamples=1000) -> pd.DataFrame:
    """One row a variant that has answered the test images; NaN was not measured.

    Columns: n; accuracy, balanced_accuracy and auroc, each with _low and _high (95 %,
    see `evaluate`); ece; train_seconds (of the retrained model: of the fine-tuning) and
    train_cost at the hourly price of theme 4; those of `serving_table`.
    """
    headline, meta = results.get("headline", {}), results["meta"]
    price = results.get("theme4", {}).get("price_per_hour")
    took = dict.fromkeys(VARIANTS, headline.get("train_seconds_optimized"))
    took["baseline"] = headline.get("train_seconds_baseline")
    took["retrained"] = results.get("theme7", {}).get("train_seconds")
    rows = {}
    for name, file in VARIANTS.items():
        if (stored := stored_predictions(home, file)) is None:
            continue
        classes = DATASETS[meta["dataset"]].classes
        metrics = evaluate(*stored, classes, resamples, meta["seed"])
        row = {"n": len(stored[1]), "ece": metrics.loc["ece", "value"]}
        for metric in ("accuracy", "balanced_accuracy", "auroc"):
            value, low, high = metrics.loc[metric, ["value", "low", "high"]]
            row |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
        spent, hourly = np.array([took[name], price], dtype=float)  # None: NaN
        rows[name] = row | {"train_seconds": spent, "train_cost": spent * hourly / 3600}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
    return table if serving is None or table.empty else table.join(serving)


def right_answers(home: str | Path) -> dict[str, np.ndarray]:
    """Which test images each variant got right, bool (N,); of the same images only."""
    stored = {name: stored_predictions(home, file) for name, file in VARIANTS.items()}
    known = stored["optimised"]
    return {
        name: answers[0].argmax(1) == answers[1]
        for name, answers in stored.items()
        if answers and known and np.array_equal(answers[1], known[1])
    }


def paired_tests(home: str | Path) -> pd.DataFrame:
    """Each pair of PAIRS on the same test images: `paired_row` and `with_verdicts`."""
    right = right_answers(home)
    rows = {
        f"{first} → {second}": paired_row(right[first], right[second])
        for first, second in PAIRS
        if first in right and second in right
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("step")
    return with_verdicts(table) if len(table) else table


def with_verdicts(table: pd.DataFrame, alpha: float = 0.05) -> pd.DataFrame:
    """A table of `paired_row` with Holm's correction over its rows, and a verdict each.

    `says` of the second model: "better", "worse" or "no difference shown".
    """
    p_holm = holm(table["p_value"])
    said = np.where(table["difference"] > 0, "better", "worse")
    said = np.where(p_holm <= alpha, said, "no difference shown")
    return table.assign(p_holm=p_holm, says=said)


def lost_accuracy(home: str | Path) -> pd.Series:
    """By variant, the most accuracy that it may have lost against the optimised model.

    The low end of `paired_difference`: answers that are all the same prove no more than
    their number. Of 150 images, a loss of 2.5 points stays possible.
    """
    right = right_answers(home)
    lost = {
        name: 0 - paired_difference(right["optimised"], own)[1]
        for name, own in right.items()
    }
    if lost:
        lost["optimised"] = 0.0
    return pd.Series(lost, dtype=float)


def not_shown_worse(home: str | Path, alpha: float = 0.05) -> tuple[str, list[str]]:
    """The variant most often right, and those not shown to be worse (McNemar, Holm)."""
    right = right_answers(home)
    best = max(right, key=lambda name: right[name].sum())
    others = [name for name in right if name != best]
    p_values = holm([mcnemar(right[name], right[best]) for name in others])
    return best, [name for name, p in zip(others, p_values, strict=True) if p > alpha]


def __getattr__(name: str):
    raise missing_name(name)


# Where code of your own stands beside the course's, once it is registered.
TABLES |= {
    "model": (MODELS, lambda network: network),
    "detector": (DETECTORS, lambda test: (getattr(test, "view", "embedding"), test)),
    "drift": (DRIFTS, Drift),
    "rule": (RUNBOOKS, lambda rule: rule.runbook),
}
remember_sources()  # as they stand now: see kit.fingerprint
