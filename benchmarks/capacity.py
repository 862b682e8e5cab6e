"""Capacity: what one request, one log line, one look at drift and one training image
cost. Run by hand.

    python -m benchmarks.capacity --home HOME [HOME ...] [--rounds 5]

HOME is a home that has finished theme 7 (a copy of it: opening it writes
exports/environment.txt), best one of each dataset. All is measured on one thread, so
that it is "a core". Writes docs/scaling.json, then the page that `python -m
tools.scaling` computes from it: docs/scaling.md with its figure. Parquet is measured
where duckdb and pyarrow are installed (.venv-scale). Linux, as memory is read from
/proc; two homes take about two minutes."""

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils  # noqa: E402
from tools import capacity, scaling  # noqa: E402

SIZES = (125, 250, 500, 1000, 2000, 4000)  # images in reference and window together
ROWS = (10_000, 30_000, 100_000, 300_000)
DETECTORS = ("KS statistics", "MMD embedding", "classifier embedding")


def spread(values) -> dict:
    """n, median, smallest and largest, to four digits."""
    low, median, high = (
        float(f"{value:.4g}") for value in (min(values), np.median(values), max(values))
    )
    return {"n": len(values), "median": median, "low": low, "high": high}


def timed(work, rounds: int) -> list[float]:
    """Seconds of each of `rounds` calls, after one that is not counted."""
    work()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return seconds


# --------------------------------------------------------------------------------------
# A home: its network, its requests, its detectors, its training
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """What is taken from the record of a home: the models of theme 4, and what themes 4
    to 7 decided.
    """

    models: dict[str, utils.OnnxModel]
    served: str
    price: float
    limit_ms: float
    policy: utils.DriftPolicy
    labels: int
    accuracy: dict[str, float]


def open_home(home: Path) -> tuple[utils.Course, Record]:
    """The course of a home and its record.

    Raises
    ------
    CourseError
        No course there, a theme of 4 to 7 that has not been run or that another version
        recorded, a missing model.
    """
    held = utils.read_json(home / "course.json")
    if not held:
        raise utils.CourseError(
            f"{home} holds no course: run `python course.py run --home {home}` first."
        )
    results = utils.read_json(home / "exports" / "results.json")
    missing = [number for number in (4, 5, 6, 7) if f"theme{number}" not in results]
    if missing:
        raise utils.CourseError(
            f"{home} has no results of theme {missing[0]}: run `python course.py run"
            f" --home {home} --from {missing[0]}` first."
        )
    story = {
        key: held.get(key)
        for key in ("dataset", "source", "profile", "image_size", "seed")
    }
    course = utils.start(7, home=home, **story)
    try:
        return course, read_record(course, results)
    except (KeyError, TypeError) as error:
        raise utils.CourseError(
            f"{home} was recorded by another version of the kit ({error!r}): run"
            f" `python course.py run --home {home} --from 4` again."
        ) from error


def read_record(course: utils.Course, results: dict) -> Record:
    """The part of a record that is used here; the models on one thread."""
    theme4, policy, headline = (
        results["theme4"],
        results["theme6"]["policy"],
        results["headline"],
    )
    models = {
        name: utils.OnnxModel(
            course.exports / "models" / f"{theme4['models'][name]}.onnx", threads=1
        )
        for name in ("fp32", "int8")
    }
    chosen = {
        key: policy[key]
        for key in ("accuracy_floor", "window", "alpha", "horizon", "consecutive")
    }
    accuracy = {
        "clean": headline["clean_accuracy_before"],
        "drifted": headline["drift_accuracy_before"],
    }
    return Record(
        models,
        "int8" if theme4["shipped"].endswith("int8") else "fp32",
        theme4["price_per_hour"],
        results["theme5"]["slo_ms"],
        utils.DriftPolicy(**chosen),
        results["theme7"]["chosen"]["budget"],
        accuracy,
    )


class Timed:
    """A model that remembers how long each answer took, in seconds."""

    def __init__(self, model: utils.OnnxModel):
        self.model, self.hash, self.seconds = model, model.hash, []

    def predict(self, pixels: np.ndarray) -> np.ndarray:
        began = time.perf_counter()
        answer = self.model.predict(pixels)
        self.seconds.append(time.perf_counter() - began)
        return answer


def requests(files: list[Path], model: utils.OnnxModel, log: Path, rounds: int) -> dict:
    """From the file to the answer and its line in the log, one request after the other.

    Returns
    -------
    dict: mean_ms (spread over the rounds), cv2 (squared coefficient of variation of all
    requests), p50_ms, p99_ms,
        and parts: mean ms of decoding, network, statistics and log line.
    """
    network = Timed(model)
    monitored = utils.MonitoredModel(network, utils.InferenceLogger(log))
    decoding, whole = [], []

    def one_round() -> None:
        for file in files:
            began = time.perf_counter()
            pixels = utils.decode(file, model.size, model.channels)[None]
            decoding.append(time.perf_counter() - began)
            monitored.predict(pixels, images=[file.name])
            whole.append(time.perf_counter() - began)

    timed(one_round, rounds)
    # less the first round
    ms = 1000 * np.array([whole, decoding, network.seconds])[:, len(files) :]
    total, decode, answer = ms
    rest = total - decode - answer
    parts = {
        "decoding": decode.mean(),
        "network": answer.mean(),
        "statistics and log line": rest.mean(),
    }
    return {
        "n": len(total),
        "mean_ms": spread(total.reshape(rounds, -1).mean(axis=1)),
        "cv2": round(float(total.var() / total.mean() ** 2), 4),
        **{f"p{q}_ms": round(float(np.percentile(total, q)), 3) for q in (50, 99)},
        "parts": {name: round(float(value), 4) for name, value in parts.items()},
    }


def networks(
    models: dict[str, utils.OnnxModel], images: np.ndarray, rounds: int
) -> dict:
    """Images a second of one core, by precision and batch size,
    in interleaved rounds.
    """
    backends = [
        utils.Backend(name, model.predict, "cpu", name, model.provider, model.path)
        for name, model in models.items()
    ]
    found = {name: {} for name in models}
    for row in utils.benchmark(backends, images, batches=(1, 32), rounds=rounds):
        found[row["backend"]].setdefault(str(row["batch"]), []).append(
            1000 * row["batch"] / np.mean(row["ms"])
        )
    return {
        name: {batch: spread(values) for batch, values in row.items()}
        for name, row in found.items()
    }


def detectors(
    seen: utils.Observation, permutations: int, rounds: int, sizes=SIZES
) -> dict:
    """Seconds of one look, by detector and number of images of both sides together
    (drawn with repetition).
    """
    found = {"sizes": list(sizes)} | {name: [] for name in DETECTORS}
    for size in sizes:
        rows = np.random.default_rng(size).integers(0, len(seen), size)
        sides = seen.take(rows[: size // 2]), seen.take(rows[size // 2 :])
        for name in DETECTORS:
            work = partial(
                utils.detect, *sides, name, alpha=0.005, permutations=permutations
            )
            found[name].append(spread(timed(work, rounds)))
    return found


def training(
    course: utils.Course, data: utils.Data, rounds: int, most: int = 640
) -> dict:
    """Images a second of one epoch of fine-tuning, as theme 7 does it."""
    model, _ = utils.load_model(course.checkpoints / "best_model.pth", course.classes)
    recipe, index = utils.finetune_recipe(data), data.index.copy()
    left_out = np.random.default_rng(0).permutation(data.where("train"))[most:]
    index.loc[left_out, "pool"] = ""
    part = replace(data, index=index)
    loader = part.loader(
        "train", recipe.batch_size, augment=utils.AUGMENT[course.dataset], shuffle=True
    )
    criterion = utils.make_criterion(loader, len(course.classes), recipe)
    model = model.to(course.device, memory_format=torch.channels_last)
    optimizer, scheduler = utils.make_optimizer(
        model, recipe, (rounds + 1) * len(loader)
    )
    seconds = timed(
        lambda: utils.train_epoch(
            model, loader, criterion, optimizer, course.device, None, scheduler
        ),
        rounds,
    )
    return {
        "images_s": spread([len(loader.rows) / each for each in seconds]),
        "epochs": recipe.epochs,
    }


def measure_home(course: utils.Course, record: Record, rounds: int) -> dict:
    """Everything that depends on the network and the images of one home."""
    data, models = utils.load_data(course), record.models
    rows, held = (
        data.where("production"),
        np.concatenate([data.where("val"), data.where("production")]),
    )
    files = [course.root / path for path in data.index["path"].iloc[rows[:200]]]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "production.csv"
        served = requests(files, models[record.served], log, rounds)
        line = log.stat().st_size / (len(files) * (rounds + 1))
    seen, some = (
        utils.observe(models["fp32"], np.array(data.pixels[held])),
        np.array(data.pixels[held[:256]]),
    )
    observing = timed(lambda: utils.observe(models["fp32"], some), rounds)
    policy = {
        key: getattr(record.policy, key)
        for key in ("window", "horizon", "consecutive", "alpha")
    }
    return {
        "image_size": course.image_size,
        "pixels": [int(data.index[side].median()) for side in ("width", "height")],
        "file_bytes": round(float(data.index["bytes"].mean()), 1),
        "files": len(data.index),
        "line_bytes": round(line, 1),
        "embedding": int(seen.embedding.shape[1]),
        "served": record.served,
        "request": served,
        "network": networks(models, some, rounds),
        "observe_ms": spread([1000 * seconds / len(some) for seconds in observing]),
        "detectors": detectors(seen, record.policy.permutations, min(rounds, 3)),
        "training": training(course, data, min(rounds, 3)),
        "policy": policy,
        "reference": len(data.where("val")),
        "labels": record.labels,
        "accuracy": record.accuracy,
    }


# --------------------------------------------------------------------------------------
# The log: writing it, reading it
# --------------------------------------------------------------------------------------


def write_lines(path: Path, lines: int) -> float:
    """Append so many lines, one call each, and return the seconds; run in a process of
    its own, too.
    """
    logger = utils.InferenceLogger(path)
    logger.log(1, 0.9, 2.0)
    began = time.perf_counter()
    for _ in range(lines):
        logger.log(
            1,
            0.987654,
            2.34567,
            model="85099a1b76abaea4",
            image="person1_virus_1.jpeg",
            brightness=122.3,
            contrast=61.4,
            sharpness=294.1,
        )
    return time.perf_counter() - began


def together(
    path: Path, processes: int, lines: int, pool: ProcessPoolExecutor
) -> float:
    """Lines a second that several processes append to one file, all together."""
    seconds = list(pool.map(write_lines, [path] * processes, [lines] * processes))
    return processes * lines / max(seconds)


def writing(folder: Path, rounds: int, lines: int = 1000) -> dict:
    """Microseconds a line: one call each, in batches, under a lock, forced to the disk;
    and several processes.
    """
    log, lock = utils.InferenceLogger(folder / "log.csv"), FileLock(folder / "log.lock")
    columns = {
        "model": "85099a1b76abaea4",
        "image": "person1_virus_1.jpeg",
        "brightness": 122.3,
        "contrast": 61.4,
        "sharpness": 294.1,
    }

    def batches(size: int):
        return lambda: [
            log.log_batch([1] * size, [0.987654] * size, [2.34567] * size, **columns)
            for _ in range(max(lines // size, 1))
        ]

    def locked() -> None:
        for _ in range(lines):
            with lock:
                log.log(1, 0.987654, 2.34567, **columns)

    def forced() -> None:
        for _ in range(lines // 10):
            log.log(1, 0.987654, 2.34567, **columns)
            with open(log.path, "rb") as file:
                os.fsync(file.fileno())

    ways = {
        "line_us": (batches(1), lines),
        "batch32_us": (batches(32), lines // 32 * 32),
        "locked_us": (locked, lines),
        "forced_us": (forced, lines // 10),
    }
    found = {
        name: spread([1e6 * each / count for each in timed(work, rounds)])
        for name, (work, count) in ways.items()
    }
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        # both processes have imported the kit
        together(folder / "warm.csv", 2, 10, pool)
        for processes in (1, 2):
            path = folder / f"{processes}.csv"
            found[f"processes{processes}_s"] = spread(
                [together(path, processes, 3 * lines, pool) for _ in range(rounds)]
            )
    return found


def draw_log(path: Path, rows: int) -> Path:
    """A log of one day, its lines evenly spaced."""
    utils.InferenceLogger(path)
    start, step = datetime(2026, 3, 1, tzinfo=UTC), timedelta(days=1) / (rows + 1)
    rng = np.random.default_rng(0)
    with open(path, "a") as log:
        for i, (confidence, latency) in enumerate(rng.random((rows, 2))):
            time_of = (
                (start + i * step)
                .isoformat(timespec="milliseconds")
                .replace("+00:00", "Z")
            )
            log.write(
                f"{time_of},20260301T000000-drawn0,85099a1b76abaea4,person{i % 1000}_virus_{i % 7}.jpeg,{i % 2},"
                f"{0.5 + confidence / 2:.6g},{1 + latency:.6g},1,122.3,61.4,294.1,ok,\n"
            )
    return path


def peak_memory() -> int:
    """Bytes that this process has had at most, beyond which it must grow for the peak
    to move.
    """
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


def read_csv(path: Path) -> dict:
    """Seconds and bytes to read a whole log and to compute its windows, as a watch
    without Parquet does each time.
    """
    before, began = peak_memory(), time.perf_counter()
    windows = utils.window_statistics(utils.read_log(path))
    assert windows["requests"].max() > 0
    return {"seconds": time.perf_counter() - began, "bytes": peak_memory() - before}


def read_parquet(path: Path) -> dict:
    """Seconds to compact a log, and to compute the windows of what was compacted."""
    from tools.compact import compact
    from tools.parquet_log import open_log

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        began = time.perf_counter()
        compact(path, Path(folder) / "log")
        compacted = time.perf_counter()
        utils.window_statistics(open_log(Path(folder) / "log"))
        ended = time.perf_counter()
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet"))
    return {"compacted": compacted - began, "answered": ended - compacted, "size": size}


def in_a_process(work, path: Path, rounds: int) -> list[dict]:
    """`rounds` calls, each in a new process, whose peak of memory is its own."""
    results = []
    for _ in range(rounds):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            results.append(pool.submit(work, path).result())
    return results


def reading(folder: Path, rounds: int, rows=ROWS) -> dict:
    """What it takes to look at a log of so many lines: with pandas on the CSV, and with
    DuckDB on Parquet.
    """
    logs = [draw_log(folder / f"{count}.csv", count) for count in rows]
    plain = [in_a_process(read_csv, log, rounds) for log in logs]
    found = {
        "rows": list(rows),
        "csv_s": [spread([each["seconds"] for each in part]) for part in plain],
        "csv_bytes": [spread([each["bytes"] for each in part]) for part in plain],
        "parquet": None,
    }
    if find_spec("duckdb") and find_spec("pyarrow"):
        packed = [in_a_process(read_parquet, log, rounds) for log in logs]
        found["parquet"] = {
            "compact_s": [
                spread([each["compacted"] for each in part]) for part in packed
            ],
            "answer_s": [
                spread([each["answered"] for each in part]) for part in packed
            ],
            "line_bytes": round(packed[-1][0]["size"] / rows[-1], 2),
            "csv_line_bytes": round(logs[-1].stat().st_size / rows[-1], 2),
        }
    return found


# --------------------------------------------------------------------------------------
# All of it
# --------------------------------------------------------------------------------------


def measure(homes: list[Path], rounds: int) -> dict:
    """The content of docs/scaling.json.

    Raises
    ------
    CourseError
        A home that cannot be opened, before anything is measured; two homes of one
        dataset.
    """
    opened = [open_home(home.resolve()) for home in homes]
    names = [course.dataset for course, _ in opened]
    if len(set(names)) < len(names):
        raise utils.CourseError(
            f"{len(names)} homes hold {', '.join(sorted(set(names)))}: give one home a"
            " dataset."
        )
    parts = {}
    for course, record in opened:
        print(f"{course.dataset} ...", flush=True)
        parts[course.dataset] = measure_home(course, record, rounds)
    with tempfile.TemporaryDirectory() as folder:
        print("log ...", flush=True)
        log = {
            "writing": writing(Path(folder), rounds),
            "reading": reading(Path(folder), min(rounds, 3)),
        }
    assumed = capacity.ASSUMED | {
        "price_per_hour": opened[0][1].price,
        "limit_ms": opened[0][1].limit_ms,
    }
    return {
        "schema": capacity.SCHEMA,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "hardware": utils.hardware(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "versions": {
            name: version(name) for name in ("torch", "onnxruntime", "numpy", "pandas")
        },
        "assumed": assumed,
        "log": log,
        "homes": parts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--home",
        type=Path,
        nargs="+",
        required=True,
        help="homes that have finished theme 7",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--to",
        type=Path,
        default=capacity.MEASURED,
        help="the JSON file (default: docs/scaling.json)",
    )
    options = parser.parse_args()
    # of the processes that are started, too
    os.environ.update(COURSE_THREADS="1", OMP_NUM_THREADS="1")
    try:
        load, began = round(os.getloadavg()[0], 1), time.perf_counter()
        if load > capacity.BUSY:
            print(
                f"This machine is busy (load {load:g}): it can do better than what is"
                " measured now."
            )
        measured = measure(options.home, options.rounds) | {"load": load}
        utils.write_json(options.to, measured)
        scaling.publish(options.to)
    except utils.CourseError as error:
        raise SystemExit(str(error)) from None
    print(f"{options.to} and its page, after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
