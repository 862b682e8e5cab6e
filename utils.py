"""Helpers of the course "Deep Learning with PyTorch - MLOps pipeline", in the order of the themes.

Every function that a notebook calls stands here once; its docstring is its lecture slide.
Heavy libraries are imported inside the one function that needs them, so `import utils` stays quick.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import json
import math
import operator
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import textwrap
import time
import zipfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

import sample_data
from models.baseline_cnn import BaselineCNN
from models.optimized_cnn import OptimizedCNN

KIT = Path(__file__).resolve().parent
MODELS = {"BaselineCNN": BaselineCNN, "OptimizedCNN": OptimizedCNN}


class CourseError(RuntimeError):
    """An error for people: what was wrong, where, and the one thing to do next."""


# ======================================================================================================
# 1 · SETUP: one home, one story
# ======================================================================================================


@dataclass(frozen=True)
class Dataset:
    """Where a dataset comes from and how its folders become classes (the last class is the positive one)."""

    folder: str
    kaggle: str
    channels: int
    classes: tuple[str, ...]
    positive: str
    folders: dict[str, str] = field(default_factory=dict)


_XRAY = {"normal": "NORMAL", "pneumonia": "PNEUMONIA"}
_ROOF = {name: "PANEL" for name in ("positive", "panel", "panels", "solar", "yes", "1")} | {
    name: "NO_PANEL" for name in ("negative", "no_panel", "no_panels", "no_solar", "no", "0")
}
_KAGGLE_XRAY = "paultimothymooney/chest-xray-pneumonia"
DATASETS = {
    "pneumonia": Dataset("chest_xray", _KAGGLE_XRAY, 1, ("NORMAL", "PNEUMONIA"), "PNEUMONIA", _XRAY),
    "pneumonia3": Dataset("chest_xray", _KAGGLE_XRAY, 1, ("NORMAL", "BACTERIA", "VIRUS"), "pneumonia", _XRAY),
    "solar": Dataset(
        "solar_panels", "tunguz/solar-panel-classification", 3, ("NO_PANEL", "PANEL"), "PANEL", _ROOF
    ),
}


@dataclass(frozen=True)
class Profile:
    """How much work a run does: pixels, epochs, trials, resamples."""

    name: str
    image_size: int
    sample_images: int
    baseline_epochs: int
    optimized_epochs: int
    ablation_epochs: int
    trials: int
    trial_epochs: int
    permutations: int
    resamples: int


PROFILES = {
    "smoke": Profile("smoke", 32, 120, 1, 1, 1, 2, 1, 99, 200),
    "quick": Profile("quick", 64, 2400, 6, 10, 3, 6, 2, 200, 1000),
    "full": Profile("full", 224, 2400, 15, 30, 8, 20, 4, 1000, 2000),
}

# The file that each theme needs, and the notebook that writes it.
PREREQUISITES = {
    2: ("data/{dataset}/index.csv", "theme1_data_analysis"),
    3: ("checkpoints/baseline.pth", "theme2_baseline_model"),
}

# How a grader compares a headline figure: to the digit, within a tolerance, as a time, or not across platforms.
HEADLINE_TAGS = {
    "loader_speedup": "timing",
    "baseline_test_accuracy": "tolerance",
    "optimized_test_accuracy": "tolerance",
    "optimized_test_balanced_accuracy": "tolerance",
    "optimized_test_auroc": "tolerance",
    "train_seconds_baseline": "timing",
    "train_seconds_optimized": "timing",
}


@dataclass
class Course:
    """What every theme shares. Results live under `home`; pixels and running files under `local`."""

    theme: int
    dataset: str
    source: str
    profile: Profile
    image_size: int
    seed: int
    home: Path
    local: Path
    root: Path
    device: torch.device
    sample: bool

    @property
    def spec(self) -> Dataset:
        return DATASETS[self.dataset]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    @property
    def channels(self) -> int:
        return self.spec.channels

    @property
    def data(self) -> Path:
        return self.home / "data" / self.dataset

    @property
    def checkpoints(self) -> Path:
        return self.home / "checkpoints"

    @property
    def exports(self) -> Path:
        return self.home / "exports"

    @property
    def runs(self) -> Path:
        return self.home / "runs"


def set_seed(seed: int = 42, threads: int | None = None) -> None:
    """Fix every source of randomness, and the number of threads that sums are split over.

    Floating-point addition is not associative: another thread count gives other last bits, and after an
    epoch other weights. `threads=None` reads COURSE_THREADS, else 2, the cores of a free Colab machine.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries that students add still use the global generator
    torch.manual_seed(seed)
    torch.set_num_threads(threads or int(os.environ.get("COURSE_THREADS", 2)))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def hardware() -> str:
    """One line that names the machine a figure was measured on."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        name = found.group(1).strip() if found else name
    cpu = f"{name}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name()} + {cpu}" if torch.cuda.is_available() else cpu


def environment() -> pd.Series:
    """Versions and hardware of this run, one row each; `start` writes it to exports/environment.txt."""
    from importlib.metadata import PackageNotFoundError, version

    rows = {"date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), "python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "pandas", "scipy", "scikit-learn", "pillow", "optuna"):
        try:
            rows[package] = version(package)
        except PackageNotFoundError:
            rows[package] = "not installed"
    rows |= {"system": platform.platform(), "hardware": hardware(), "autocast": str(amp_dtype(best_device()))}
    rows |= {"CUDA of torch": str(torch.version.cuda)}
    if torch.cuda.is_available():
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        rows["GPU driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return pd.Series(rows, name="value")


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def amp_dtype(device: torch.device) -> torch.dtype | None:
    """Precision of autocast that pays on this hardware; None means plain float32.

    fp16 with loss scaling on compute capability 7.x (V100, T4), bf16 from 8.0 and on CPUs with AMX tiles.
    Source: Micikevicius et al., Mixed Precision Training (2018).
    """
    if device.type == "cuda":
        major = torch.cuda.get_device_capability(device)[0]
        return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else None
    cpuinfo = Path("/proc/cpuinfo")
    return torch.bfloat16 if cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text() else None


@contextmanager
def atomic(path: str | Path):
    """Yield a temporary name beside `path` and rename it at the end: a reader never sees half a file.

    Raises
    ------
    CourseError
        Disk full or no permission; what stood at `path` before is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise CourseError(
            f"{path} could not be written ({error.strerror or error}): free some space or check the permissions "
            "of the folder, then run the cell again. What stood there before is untouched."
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()


def write_json(path: str | Path, values) -> Path:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, default=_plain) + "\n")
    return Path(path)


def _plain(value):
    """NumPy scalars, paths and tuples as JSON knows them."""
    if isinstance(value, (np.generic, torch.Tensor, np.ndarray)):
        return value.tolist()
    return str(value)


def start(theme, dataset="pneumonia", source="auto", profile="auto", image_size=None, seed=42, drive=False,
          home=None) -> Course:  # fmt: skip
    """Open the course for one theme: seeds, device, folders, dataset, prerequisites.

    Parameters
    ----------
    theme : int
        1 to 8.
    dataset : {"pneumonia", "pneumonia3", "solar"}
    source : {"auto", "kaggle", "sample"} or path
        A path is a folder that holds `chest_xray/` or `solar_panels/`.
    profile : {"auto", "smoke", "quick", "full"}
        `auto` is what the home already holds, else full with a GPU and quick without.
    image_size : int, optional
        Pixels of a side, at least 32; the profile's own when None.
    drive : bool
        On Colab: keep the results on Google Drive, the pixels on the local disk.
    home : path, optional
        Folder of all artefacts; COURSE_HOME, else the kit's folder when None.

    Raises
    ------
    CourseError
        Unknown names, size below 32, a home that holds another story, a missing earlier theme.
    """
    _check_versions()
    if dataset not in DATASETS:
        raise CourseError(f"DATASET={dataset!r} is unknown: choose one of {', '.join(DATASETS)}.")
    if profile not in (*PROFILES, "auto"):
        raise CourseError(f"PROFILE={profile!r} is unknown: choose auto, {', '.join(PROFILES)}.")
    if image_size is not None and image_size < 32:
        raise CourseError(f"IMAGE_SIZE={image_size} is too small: the networks halve the picture up to "
                          "four times and need 32 pixels or more.")  # fmt: skip
    set_seed(seed)
    home, local = _folders(home or os.environ.get("COURSE_HOME") or None, drive)
    story = _story(home, dataset, source, profile, image_size, seed)
    chosen = PROFILES[story["profile"]]
    needed, notebook = PREREQUISITES.get(theme, ("course.json", ""))
    needed = home / needed.format(dataset=dataset)
    if notebook and not needed.exists():
        raise CourseError(f"{needed} is missing: run notebooks/{notebook}.ipynb first (with the same HOME).")
    origin, root = acquire(dataset, story["source"], local / "data" / "raw", chosen.sample_images, seed)
    story["source"] = origin
    write_json(home / "course.json", story)
    course = Course(theme, dataset, origin, chosen, story["image_size"], seed, home, local, root, best_device(),
                    sample=origin == "sample")  # fmt: skip
    environment().to_string(_opened(course.exports / "environment.txt"))
    record(course, "meta", story | {"hardware": hardware(), "environment": environment().to_dict()})
    _greet(course)
    return course


def _check_versions() -> None:
    found = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if sys.version_info < (3, 11) or found < (2, 6):
        raise CourseError(
            f"Python {platform.python_version()} with torch {torch.__version__} is too old: the course needs "
            "Python 3.11 and torch 2.6 or newer (on Colab: Runtime > Change runtime type > Latest)."
        )


def _opened(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _folders(home, drive) -> tuple[Path, Path]:
    """Folder of results and folder of pixels and running files; two different ones only with Drive."""
    if drive:
        try:
            from google.colab import drive as google_drive
        except ImportError as error:
            raise CourseError("DRIVE=True works on Google Colab only: set DRIVE=False and give a HOME.") from error
        google_drive.mount("/content/drive")
        return Path(home or "/content/drive/MyDrive/dl-course"), Path("/content/dl-course-local")
    home = Path(home or KIT).expanduser().resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CourseError(f"HOME={home} cannot be made ({error.strerror}): choose a folder you may write to.") from error
    if not os.access(home, os.W_OK):
        raise CourseError(f"HOME={home} is not writable: choose another folder with HOME or --home.")
    return home, home


def _story(home: Path, dataset, source, profile, image_size, seed) -> dict:
    """What this home holds, checked against what was asked; `auto` takes what is there."""
    path, asked_source = home / "course.json", str(source)
    if asked_source not in ("auto", "kaggle", "sample"):
        asked_source = str(Path(asked_source).expanduser().resolve())
    known = json.loads(path.read_text()) if path.exists() else {}
    if profile == "auto":
        profile = known.get("profile") or ("full" if torch.cuda.is_available() else "quick")
    if image_size is None:
        same = known.get("profile") == profile
        image_size = known["image_size"] if same else PROFILES[profile].image_size
    if asked_source == "auto":
        asked_source = known.get("source", "auto")
    story = {"dataset": dataset, "source": asked_source, "profile": profile, "image_size": image_size, "seed": seed}
    different = [f"{key} {known[key]!r} (asked: {story[key]!r})" for key in story if known and known[key] != story[key]]
    if different:
        raise CourseError(
            f"{home} already holds another story: {', '.join(different)}. One home holds one story: "
            "choose another folder with HOME (or --home), or ask for what it holds."
        )
    return story


def _greet(course: Course) -> None:
    """The first screen: what runs where, and a banner when the images are drawn."""
    precision = str(amp_dtype(course.device) or torch.float32).removeprefix("torch.")
    print(f"Theme {course.theme} · {course.dataset} from {course.source} · profile {course.profile.name} at "
          f"{course.image_size} px · seed {course.seed} · {hardware()} · {precision}")  # fmt: skip
    print(f"Results in {course.home}")
    if course.profile.name == "full" and course.device.type == "cpu":
        print("No GPU here: on Colab choose Runtime > Change runtime type > T4 GPU, or expect hours.")
    if course.sample:
        bar = "=" * 88
        print(f"{bar}\n  SAMPLE DATA · {sample_data.DISCLAIMER}\n{bar}")


def record(course: Course, section: str, values: dict) -> Path:
    """Merge `values` into one section of exports/results.json, the one record of the course.

    `headline` takes only the keys of HEADLINE_TAGS, as fractions, and stores the tag that graders compare by.
    """
    path = course.exports / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    unknown = [key for key in values if section == "headline" and key not in HEADLINE_TAGS]
    if unknown:
        raise CourseError(f"{', '.join(unknown)}: not a headline figure; record it under your own section.")
    results[section] = results.get(section, {}) | values | ({} if section == "headline" else {"recorded": _now()})
    results["tags"] = HEADLINE_TAGS
    return write_json(path, results)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def inputs(*paths: Path) -> dict[str, str]:
    """Hashes of the files that a theme read: a later change of one makes its section stale."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}


def checkpoint(course: Course, *criteria: tuple) -> pd.DataFrame:
    """Compare measured values with the targets of the course's checklist, show and record the outcome.

    Parameters
    ----------
    criteria : tuples (name, value, comparison, target)
        `comparison` is one of ">", ">=", "<", "<=", "==".
    """
    compare = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq}
    rows = [
        {"name": name, "value": value, "target": f"{sign} {target}", "passed": bool(compare[sign](value, target))}
        for name, value, sign, target in criteria
    ]
    path = course.exports / "results.json"
    known = json.loads(path.read_text()).get("criteria", {}) if path.exists() else {}
    record(course, "criteria", known | {f"theme{course.theme}": rows})
    passed = sum(row["passed"] for row in rows)
    print(f"Theme {course.theme}: {passed} of {len(rows)} criteria met.")
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------
# One idea of a run: finished work loads, interrupted training resumes, new work runs
# ------------------------------------------------------------------------------------------------------


def code_of(*objects) -> str:
    """Source of functions, classes and networks, less comments and docstrings: what a result depends on."""
    parts = []
    for thing in objects:
        if isinstance(thing, nn.Module):
            own = {type(m) for m in thing.modules() if not type(m).__module__.startswith("torch.")}
            parts += [code_of(kind) for kind in sorted(own, key=lambda kind: kind.__qualname__)]
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                    node.body = body[1:] or [ast.Pass()]
        parts.append(ast.dump(tree))
    return "\n".join(parts)


def identity(*parts) -> str:
    """Short hash of code, arguments, data and seed: the same work has the same name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).hexdigest()[:12]


def once(course: Course, name: str, work, *arguments, depends=()):
    """Run `work(*arguments)` once; later calls load its result at once and say when and where it was measured.

    Parameters
    ----------
    work : callable
        Returns values that JSON can hold. Its code is part of the identity.
    depends : sequence
        Whatever else the result depends on: functions, networks, numbers, the key of the data.
    """
    code = [code_of(part) if callable(part) or isinstance(part, nn.Module) else part for part in (work, *depends)]
    path = course.runs / f"{name}-{identity(code, arguments, course.seed)}" / "result.json"
    if path.exists():
        stored = json.loads(path.read_text())
        print(f"{name}: loaded, measured {stored['date']} on {stored['hardware']}")
        return stored["result"]
    result = work(*arguments)
    write_json(path, {"date": _now(), "hardware": hardware(), "result": result})
    return json.loads(path.read_text())["result"]


# ------------------------------------------------------------------------------------------------------
# One look for all figures
# ------------------------------------------------------------------------------------------------------

# Okabe and Ito (2008): told apart with every common colour blindness, and by lightness in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def style() -> None:
    """Set the one style of the course: readable on a projector and in grey print."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({
        "axes.prop_cycle": plt.cycler(color=COLOURS), "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False,
        "axes.spines.right": False, "font.size": 11, "axes.titlesize": 12, "figure.dpi": 100, "savefig.dpi": 150,
        "figure.constrained_layout.use": True, "legend.frameon": False, "image.cmap": "gray",
    })  # fmt: skip


def save_figure(course: Course, figure, name: str) -> Path:
    """Store a figure as exports/figures/themeN_<name>.png, where the report looks for it."""
    path = course.exports / "figures" / f"theme{course.theme}_{name}.png"
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def image_grid(images, titles, columns: int = 8, title: str = ""):
    """Draw a sheet of images.

    Parameters
    ----------
    images : sequence of arrays
        (H, W), (H, W, 3) or (C, H, W); uint8 or floats in 0..1.
    titles : sequence of str
    """
    import matplotlib.pyplot as plt

    style()
    rows = max(1, math.ceil(len(images) / columns))
    figure, axes = plt.subplots(rows, columns, figsize=(1.6 * columns, 1.9 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, text in zip(axes.flat, images, titles, strict=False):
        image = np.asarray(image)
        if image.ndim == 3 and image.shape[0] in (1, 3):
            image = image.transpose(1, 2, 0).squeeze()
        axis.imshow(image, vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
        axis.set_title(text, fontsize=8)
    figure.suptitle(title)
    return figure


