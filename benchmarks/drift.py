"""Drift tests: false alarms and growth of our detectors; speed and power beside
alibi-detect. Run by hand.

    python benchmarks/drift.py [--only speed power null scaling] [--home HOME]
    [--environment DIR] [--threads 1]

Speed: n = m = 2,000 rows, d = 128, 1,000 permutations, both sides with the same arrays,
width of the kernel and number of threads, in interleaved rounds. alibi-detect loops
over its permutations, so a round times 1 and 1 + --loops of them and adds up the rest;
--whole runs all 1,000 once, which takes minutes. The kernel of the reference counts on
both sides. Power: the same draws for both. Null: reference and window drawn anew from
undrifted rows, correlated Gaussian ones and, with --home, the held-out images (val and
production) of a home that theme 4 has finished, by image and by whole groups. Scaling:
seconds and peak memory over rows, permutations and dimensions.

alibi-detect needs an older NumPy: it gets an environment of its own, made on the first
run (a minute, 1 GB), which borrows the PyTorch of this one. Without it, its columns are
left out, with the reason.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import cdist
from scipy.stats import binom, binomtest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils  # noqa: E402

ALIBI = "0.13.0"
TARGET_SPEED, TARGET_DIFFERENCE = 100, 1e-6
# false alarms allowed to permutation tests, and to Bonferroni and Holm
EXACT, CAUTIOUS = (0.03, 0.07), (0.0, 0.07)

WORKER = """
import json, sys, time, warnings
answers, sys.stdout = sys.stdout, sys.stderr
warnings.filterwarnings("ignore")
import numpy as np, scipy, torch
import alibi_detect
from alibi_detect.cd import KSDrift, MMDDrift

def mmd(x, y, gamma, permutations, alpha):
    sigma = np.array([(2 * gamma) ** -0.5], dtype=x.dtype)  # its kernel is exp(-|x - y|^2 / (2 sigma^2))
    began = time.perf_counter()
    detector = MMDDrift(x, backend="pytorch", p_val=alpha, sigma=sigma, configure_kernel_from_x_ref=False,
                        n_permutations=permutations, device="cpu")
    told = detector.predict(y)["data"]
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "statistic": float(told["distance"]), "drift": bool(told["is_drift"])}

def ks(x, y, alpha):
    return {"drift": bool(KSDrift(x, p_val=alpha, correction="bonferroni").predict(y)["data"]["is_drift"])}

torch.set_num_threads(int(sys.argv[1]))
torch.manual_seed(0)
versions = {"alibi-detect": alibi_detect.__version__, "torch": torch.__version__, "numpy": np.__version__,
            "scipy": scipy.__version__}
print(json.dumps(versions), file=answers, flush=True)
for line in sys.stdin:
    test, x, y, options = json.loads(line)
    pairs = zip(np.load(x), np.load(y))
    print(json.dumps([{"mmd": mmd, "ks": ks}[test](*pair, **options) for pair in pairs]), file=answers, flush=True)
"""


class Rival:
    """alibi-detect in a process of its own environment; arrays go there as files,
    answers come as JSON lines.
    """

    def __init__(self, folder: Path, threads: int):
        program = make_environment(folder)
        self.place, self.errors = (
            tempfile.TemporaryDirectory(),
            tempfile.TemporaryFile("w+"),
        )
        pipes = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": self.errors,
            "text": True,
        }
        self.process = subprocess.Popen(
            [program, "-c", WORKER, str(threads)],
            **pipes,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )
        self.versions = self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(
                last_line(self.errors.read()) or "its process died without a word"
            )
        return json.loads(line)

    def ask(self, test: str, x: np.ndarray, y: np.ndarray, **options) -> list[dict]:
        """One answer a pair of x (draws, n, D) and y (draws, m, D), in their dtype."""
        paths = [f"{self.place.name}/{name}.npy" for name in "xy"]
        for path, array in zip(paths, (x, y), strict=True):
            np.save(path, array)
        with suppress(BrokenPipeError):  # it has died: it will not answer either
            self.process.stdin.write(json.dumps([test, *paths, options]) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """The end of its input ends it."""
        self.process.communicate()
        self.place.cleanup()


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def make_environment(folder: Path) -> str:
    """Python of an environment that has alibi-detect, made if it is not there."""
    program = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    ready = folder / "ready"
    if ready.exists():
        return program
    print(f"alibi-detect {ALIBI} is installed into {folder} ...", flush=True)
    install = [
        program,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--retries",
        "1",
        f"alibi-detect=={ALIBI}",
    ]
    for command in ([sys.executable, "-m", "venv", str(folder)], install):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(last_line(done.stderr) or last_line(done.stdout))
    asked = subprocess.run(
        [program, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    # At the end of the search path: what alibi-detect pins comes first, only what it
    # lacks is borrowed.
    (Path(asked.stdout.strip()) / "borrowed.pth").write_text(
        f"{Path(torch.__file__).parent.parent}\n"
    )
    ready.touch()
    return program


def open_rival(folder: Path, threads: int) -> Rival | None:
    try:
        return Rival(folder, threads)
    except (RuntimeError, OSError) as error:
        print(
            f"alibi-detect is left out, as it cannot be installed or started: {error}\n"
        )
        return None


def spread(values, digits: int = 2) -> str:
    """Median [smallest, largest]."""
    return (
        f"{np.median(values):.{digits}f} [{np.min(values):.{digits}f},"
        f" {np.max(values):.{digits}f}]"
    )


# --------------------------------------------------------------------------------------
# Speed and power, beside alibi-detect
# --------------------------------------------------------------------------------------


def brute_force(x: np.ndarray, y: np.ndarray, gamma: float) -> float:
    """Squared MMD as in the textbook, from differences of coordinates in float64."""
    inner = [
        np.exp(-gamma * cdist(a, a, "sqeuclidean"))
        for a in (x.astype(float), y.astype(float))
    ]
    across = np.exp(-gamma * cdist(x.astype(float), y.astype(float), "sqeuclidean"))
    return (
        sum((k.sum() - len(k)) / (len(k) * (len(k) - 1)) for k in inner)
        - 2 * across.mean()
    )


def speed(rival: Rival | None, options) -> None:
    """Seconds of one whole test, and the statistic of the same numbers."""
    n, dimension, permutations = 2000, 128, 1000
    rng = np.random.default_rng(0)
    x, y = (
        rng.normal(shift, 1, (n, dimension)).astype(np.float32) for shift in (0, 0.02)
    )
    gamma = utils.median_gamma(x)
    kinds, rows, statistics = (np.float32, np.float64) if rival else (), [], {}
    for _ in range(options.rounds + 1):
        began = time.perf_counter()
        statistics["ours"] = utils.mmd_test(
            x, y, gamma=gamma, permutations=permutations
        ).statistic
        row = {"ours": time.perf_counter() - began}
        for kind in kinds:
            one, some = (
                rival.ask(
                    "mmd",
                    x[None].astype(kind),
                    y[None].astype(kind),
                    gamma=gamma,
                    permutations=count,
                    alpha=0.05,
                )[0]
                for count in (1, 1 + options.loops)
            )
            each = (some["seconds"] - one["seconds"]) / options.loops
            row[f"alibi {kind.__name__}"] = one["seconds"] + (permutations - 1) * each
            statistics[f"alibi {kind.__name__}"] = one["statistic"]
        rows.append(row)
    table = pd.DataFrame(rows[1:])  # the first round warms up
    print(
        f"seconds of one test, n = m = {n}, d = {dimension}, {permutations}"
        " permutations"
    )
    print(table.round(3).to_string(), "\n")
    true = brute_force(x, y, gamma)
    print(f"squared MMD of these rows by brute force in float64: {true:.12e}")
    for name, value in statistics.items():
        print(f"  {name:<14} {value:.12e}   off by {abs(value - true):.1e}")
    for name in table.columns[1:]:
        ratio, gap = (
            table[name] / table["ours"],
            abs(statistics[name] - statistics["ours"]),
        )
        reached = np.median(ratio) >= TARGET_SPEED and gap <= TARGET_DIFFERENCE
        print(
            f"{spread(ratio, 1)}x faster than {name}, {len(ratio)} rounds; difference"
            f" of the statistic {gap:.1e}: {'reached' if reached else 'not reached'}"
            f" ({TARGET_SPEED}x, {TARGET_DIFFERENCE:g})"
        )
    if rival and options.whole:
        told = rival.ask(
            "mmd", x[None], y[None], gamma=gamma, permutations=permutations, alpha=0.05
        )[0]
        print(
            f"all {permutations} permutations of alibi float32: {told['seconds']:.0f}"
            f" s, added up above {spread(table['alibi float32'], 0)}"
        )


# By name: what a window of standard normal rows goes through.
SHIFTS = {
    "none": lambda rows: rows,
    "mean of all": lambda rows: rows + 0.12,
    "scale of all": lambda rows: rows * 1.12,
    "mean of one": lambda rows: rows + 0.8 * (np.arange(rows.shape[-1]) == 0),
}


def power(rival: Rival | None, options) -> None:
    """Drifts found by both sides in the same draws, with one width of the kernel; both
    tests at alpha = 0.05.
    """
    dimension, rows = 32, []
    for shift, change in SHIFTS.items():
        for size in options.sizes:
            drawn = np.random.default_rng([size, 1]).normal(
                size=(2, options.draws, size, dimension)
            )
            x, y = drawn[0], change(drawn[1])
            gamma = utils.median_gamma(x[0])
            ours = {
                "MMD": [
                    utils.mmd_test(
                        a, b, permutations=options.permutations, gamma=gamma, seed=i
                    ).drift
                    for i, (a, b) in enumerate(zip(x, y, strict=True))
                ],
                # the smallest p-value is the same after Holm
                "KS Bonferroni": [
                    utils.ks_test(a, b).drift for a, b in zip(x, y, strict=True)
                ],
            }
            asked = {"MMD": "mmd", "KS Bonferroni": "ks"} if rival else {}
            more = {"mmd": {"gamma": gamma, "permutations": options.permutations}}
            theirs = {}
            for name, test in asked.items():
                told = rival.ask(test, x, y, alpha=0.05, **more.get(test, {}))
                theirs[name] = [answer["drift"] for answer in told]
            for name, found in ours.items():
                row = {"shift": shift, "n = m": size}
                rows.append(row | pair_up(name, found, theirs.get(name)))
    table = pd.DataFrame(rows)
    print(
        f"share of {options.draws} draws with an alarm [95 % interval], d ="
        f" {dimension}, {options.permutations} permutations, alpha = 0.05"
    )
    print(table.drop(columns="p", errors="ignore").to_string(index=False), "\n")
    if rival:
        p = min(1.0, table["p"].min() * len(table))
        print(
            f"{int(table['only ours'].sum())} alarms of {len(table) * options.draws}"
            f" tests are only ours, {int(table['only alibi'].sum())} only alibi's;"
            f" smallest p of {len(table)} rows (McNemar, Bonferroni) {p:.2g}:"
            f" {'they differ' if p < 0.05 else 'they agree to within noise'}"
        )


def pair_up(test: str, ours: list[bool], theirs: list[bool] | None) -> dict:
    """Both sides of one test as cells, and the exact McNemar test of their
    disagreement.
    """
    sides = {"ours": ours, "alibi": theirs} if theirs else {"ours": ours}
    cells = {
        name: "{:.2f} [{:.2f}, {:.2f}]".format(
            np.mean(found), *utils.wilson(sum(found), len(found))
        )
        for name, found in sides.items()
    }
    if not theirs:
        return {"test": test, **cells}
    ours, theirs = np.array(ours), np.array(theirs)
    first, second = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    p = binomtest(first, first + second).pvalue if first + second else 1.0
    return {"test": test, **cells, "only ours": first, "only alibi": second, "p": p}


# --------------------------------------------------------------------------------------
# False alarms
# --------------------------------------------------------------------------------------


def gaussian(n: int, seed: int = 0) -> utils.Observation:
    """Rows without drift whose neighbouring features correlate by 0.9."""
    rng = np.random.default_rng(seed)

    def correlated(features: int) -> np.ndarray:
        distance = np.abs(np.subtract.outer(np.arange(features), np.arange(features)))
        return rng.normal(size=(n, features)) @ np.linalg.cholesky(0.9**distance).T

    names = utils.drift_statistics(np.zeros((1, 1, 32, 32), np.uint8)).columns
    return utils.Observation(
        pd.DataFrame(correlated(len(names)), columns=names),
        utils.softmax(correlated(2)),
        correlated(64),
    )


def held_out(home: Path) -> tuple[str, utils.Observation, np.ndarray]:
    """Name, observation and groups of the images that no training has seen (pools val
    and production).
    """
    held = utils.read_json(home.resolve() / "course.json")
    if not held:
        raise SystemExit(
            f"{home} holds no course: run course.py run --home {home} --until 4 first."
        )
    held.pop("threads", None)  # `start` reads them from the home
    course = utils.start(5, home=home, **held)
    data = utils.load_data(course)
    rows = np.concatenate([data.where("val"), data.where("production")])
    name = utils.read_json(course.exports / "results.json")["theme4"]["models"]["fp32"]
    model = utils.OnnxModel(course.exports / "models" / f"{name}.onnx")
    return (
        course.dataset,
        utils.observe(model, np.array(data.pixels[rows])),
        data.index["group"].to_numpy()[rows],
    )


def verdict(row: dict) -> str:
    """The rate decides; the interval tells whether chance alone may have carried it
    there.
    """
    limits = {"KS": CAUTIOUS}.get(row["detector"].split()[0], EXACT)
    if limits[0] <= row["rate"] <= limits[1]:
        return "within {:g}-{:g}".format(*limits)
    apart = row["high"] < limits[0] or row["low"] > limits[1]
    return "outside {:g}-{:g}".format(*limits) + ("" if apart else ", interval is not")


def null(options) -> None:
    """How often does each detector cry wolf at alpha = 0.05?"""
    chance = (
        1
        - np.diff(
            binom.cdf(
                [EXACT[0] * options.resamples - 0.5, EXACT[1] * options.resamples],
                options.resamples,
                0.05,
            )
        )[0]
    )
    print(
        f"an exact test lies outside {EXACT[0]:g}-{EXACT[1]:g} in {chance:.1%} of such"
        " runs by chance\n"
    )
    sources = [("Gaussian", gaussian(1000), None)]
    if options.home:
        name, seen, groups = held_out(options.home)
        sources += [
            (f"{name} by image", seen, None),
            (f"{name} by group", seen, groups),
        ]
    for name, seen, groups in sources:
        for window in options.windows:
            if 2 * window > len(seen):
                print(
                    f"{name}, window {window}: left out, as {len(seen)} rows hold no"
                    " reference of that size\n"
                )
                continue
            began = time.perf_counter()
            rows = utils.alarm_rates(
                seen,
                window,
                resamples=options.resamples,
                permutations=options.permutations,
                groups=groups,
            )
            table = pd.DataFrame(rows)
            table["verdict"] = [verdict(row) for row in rows]
            outside = table.loc[
                table["verdict"].str.startswith("outside"), "detector"
            ].tolist()
            print(
                f"false alarms, {name}, {seen.embedding.shape[1]} embedding dimensions,"
                f" {options.permutations} permutations"
                f" ({time.perf_counter() - began:.0f} s)"
            )
            print(table.round(3).to_string(index=False))
            told = (
                f"outside: {', '.join(outside)}" if outside else "all within the limits"
            )
            print(
                f"{name}, window {window}, n = {options.resamples} resamples: {told}\n",
                flush=True,
            )


# --------------------------------------------------------------------------------------
# Growth
# --------------------------------------------------------------------------------------

BASE = {"rows": 1000, "permutations": 1000, "dimensions": 128}
AXES = {
    "rows": (250, 500, 1000, 2000, 4000),
    "permutations": (100, 250, 1000, 4000),
    "dimensions": (16, 64, 256, 1024),
}


def peak_memory() -> float:
    """Peak of this process in MiB."""
    status = Path("/proc/self/status")
    if not status.exists():
        return np.nan
    return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) / 1024


def grow(axis: str, threads: int) -> list[dict]:
    """Seconds of one MMD test while one of the three sizes grows; a process of its own,
    as its peak memory is told.
    """
    torch.set_num_threads(threads)
    warms_up = {"rows": 50, "permutations": 100, "dimensions": 16}
    sizes, rows = [warms_up, *(BASE | {axis: value} for value in AXES[axis])], []
    for size in sizes:
        shape = (2, size["rows"], size["dimensions"])
        x, y = np.random.default_rng(0).normal(size=shape)
        seconds, before = [], peak_memory()
        while len(seconds) < 3 and sum(seconds) < 10:
            began = time.perf_counter()
            gamma = 0.5 / size["dimensions"]
            utils.mmd_test(x, y, gamma=gamma, permutations=size["permutations"])
            seconds.append(time.perf_counter() - began)
        told = {"runs": len(seconds), "seconds": np.median(seconds)}
        told |= {"low": min(seconds), "high": max(seconds)}
        rows.append({**size, **told, "peak MiB": peak_memory(), "before": before})
    return rows[1:]


def scaling(options) -> None:
    """Tables of seconds and peak memory, and how both grow."""
    said = []
    for axis in AXES:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            rows = pool.submit(grow, axis, options.threads).result()
        table = pd.DataFrame(rows)
        shown = table.drop(columns="before").round(3)
        print(shown.to_string(index=False), "\n", flush=True)
        top, last = table.tail(3), table.iloc[-1]
        slope = np.polyfit(np.log(top[axis]), np.log(top["seconds"]), 1)[0]
        own = last["peak MiB"] - table["before"].iloc[0]
        said.append(
            f"seconds grow as {axis}^{slope:.2f} (last three); at {last[axis]:,.0f}"
            f" {axis} {last['seconds']:.1f} s and {own:.0f} MiB over the warmed-up"
            " process"
        )
    print(f"rows = n = m, the others at {BASE}, float64", *said, sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("speed", "power", "null", "scaling")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--home", type=Path, help="a home that theme 4 has finished")
    parser.add_argument(
        "--environment",
        type=Path,
        default=Path.home() / ".cache" / f"alibi-detect-{ALIBI}",
    )
    parser.add_argument(
        "--threads", type=int, default=int(os.environ.get("COURSE_THREADS", 2))
    )
    parser.add_argument("--rounds", type=int, default=5, help="speed")
    parser.add_argument(
        "--loops",
        type=int,
        default=20,
        help="speed: permutations of alibi-detect that are timed",
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="speed: all permutations of alibi-detect, once",
    )
    parser.add_argument("--draws", type=int, default=50, help="power")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[50, 200],
        help="power: rows of each side",
    )
    parser.add_argument("--permutations", type=int, default=200, help="power and null")
    parser.add_argument("--resamples", type=int, default=500, help="null")
    parser.add_argument(
        "--windows", type=int, nargs="+", default=[50, 200], help="null"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    versions = [
        f"{name} {version(name)}"
        for name in ("torch", "numpy", "scipy", "scikit-learn")
    ]
    print(utils.hardware(), *versions, sep=", ")
    rival = (
        open_rival(options.environment, options.threads)
        if {"speed", "power"} & set(options.only)
        else None
    )
    if rival:
        print(
            "beside it",
            *(f"{name} {number}" for name, number in rival.versions.items()),
            sep=", ",
        )
    run = {
        "speed": lambda: speed(rival, options),
        "power": lambda: power(rival, options),
        "null": lambda: null(options),
        "scaling": lambda: scaling(options),
    }
    for part in options.only:
        load = (
            f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
            if hasattr(os, "getloadavg")
            else ""
        )
        print(f"\n== {part}{load} ==\n", flush=True)
        began = time.perf_counter()
        run[part]()
        print(f"\n{part} took {time.perf_counter() - began:.0f} s", flush=True)
    if rival:
        rival.close()


if __name__ == "__main__":
    main()
