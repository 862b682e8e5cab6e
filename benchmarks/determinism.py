"""How far the headline figures of one seed move between runs, thread counts and
processors. Run by hand.

    python benchmarks/determinism.py [--dataset pneumonia] [--source sample] [--seeds 42
    43 44] [--until 7] [--home DIR]
                                     [--variants "1 thread" AVX2]

For each seed the whole course runs four times: as it is, once more, with another number
of threads, and with that and the vector units of an older processor (AVX2: no AVX-512,
no bfloat16), which stands in for another machine. The second run must give the same
figures and the same weights, bit for bit; of the other two the largest difference of
each figure is shown beside the tolerance that `course.py check` grants elsewhere.
Finished runs are kept under --home, so that an interrupted benchmark goes on. On two
cores a run takes about four minutes at profile quick.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch

KIT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(KIT))
import utils  # noqa: E402
from kit.record import HEADLINE_TAGS  # noqa: E402
from tools.grading.compare import CLOCKED, TOLERANCES  # noqa: E402

VARIANTS = {
    "first": {"COURSE_THREADS": "2"},
    "again": {"COURSE_THREADS": "2"},
    "1 thread": {"COURSE_THREADS": "1"},
    "AVX2": {
        "COURSE_THREADS": "1",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}
# and the theme that writes them
WEIGHTS = {"baseline.pth": 2, "best_model.pth": 3, "model_retrained.pth": 7}


def run(home: Path, settings: dict, seed: int, options) -> dict:
    """The headline of one run of the course; a finished one is read."""
    done = home / "finished"
    if not done.exists():
        command = [
            sys.executable,
            "course.py",
            "run",
            "--home",
            str(home),
            "--seed",
            str(seed),
            "--until",
            str(options.until),
            "--dataset",
            options.dataset,
            "--source",
            options.source,
            "--profile",
            options.profile,
        ]
        with open(f"{home}.log", "w") as log:
            rc = subprocess.run(
                command, cwd=KIT, env=os.environ | settings, stdout=log, stderr=log
            ).returncode
        if rc:
            raise SystemExit(f"{home.name} stopped: see {home}.log")
        done.touch()
    return json.loads((home / "exports" / "results.json").read_text())["headline"]


def same_weights(first: Path, second: Path, until: int) -> bool:
    """Whether the checkpoints of two homes hold the same numbers, bit for bit."""
    for name in (name for name, theme in WEIGHTS.items() if theme <= until):
        ours, theirs = (
            torch.load(home / "checkpoints" / name, weights_only=True)["weights"]
            for home in (first, second)
        )
        if ours.keys() != theirs.keys() or not all(
            torch.equal(ours[key], theirs[key]) for key in ours
        ):
            return False
    return True


def moved(first, other) -> float | None:
    """By how much a figure moved; for what is no number, 1 if it changed."""
    if isinstance(first, (bool, str)) or isinstance(other, (bool, str)):
        return float(first != other)
    return abs(other - first)


def table_of(figures: dict, timed: set) -> pd.DataFrame:
    """One row a figure: whether the repetition was identical, the largest difference of
    each variant, the tolerance.
    """
    rows, others = (
        {},
        [
            name
            for name in next(iter(figures.values()))
            if name not in ("first", "again")
        ],
    )
    for name in next(iter(figures.values()))["first"]:
        if name in timed:
            continue
        row = {
            "again": (
                "identical"
                if all(
                    runs["first"][name] == runs["again"][name]
                    for runs in figures.values()
                )
                else "CLOCK"
                if name in CLOCKED
                else "DIFFERS"
            )
        }
        for variant in others:
            row[variant] = max(
                moved(runs["first"][name], runs[variant][name])
                for runs in figures.values()
            )
        row["tolerance"] = TOLERANCES[name].again
        row["within"] = all(row[variant] <= row["tolerance"] for variant in others)
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="pneumonia")
    parser.add_argument("--source", default="sample")
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument(
        "--variants", nargs="*", choices=list(VARIANTS)[2:], default=list(VARIANTS)[2:]
    )
    parser.add_argument("--until", type=int, default=7)
    parser.add_argument("--home", type=Path, default=Path("determinism-runs"))
    options = parser.parse_args()
    options.home.mkdir(parents=True, exist_ok=True)
    figures, equal = {}, []
    for seed in options.seeds:
        homes = {
            name: (
                options.home.resolve()
                / f"{options.dataset}-{seed}-{name.replace(' ', '-')}"
            )
            for name in ("first", "again", *options.variants)
        }
        figures[seed] = {}
        for name, home in homes.items():
            figures[seed][name] = run(home, VARIANTS[name], seed, options)
            print(f"seed {seed}, {name}: done", flush=True)
        equal.append(same_weights(homes["first"], homes["again"], options.until))
    table = table_of(
        figures, {name for name, tag in HEADLINE_TAGS.items() if tag == "timing"}
    )
    print(
        f"\n{options.dataset}, {options.source}, {options.profile}, seeds"
        f" {options.seeds}; {utils.hardware()}"
    )
    print(table.to_string(float_format=lambda value: f"{value:.2g}"))
    print(
        f"weights of the repetition bit-identical: {sum(equal)} of {len(equal)} seeds"
    )
    return int(not all(equal) or "DIFFERS" in set(table["again"]))


if __name__ == "__main__":
    sys.exit(main())
