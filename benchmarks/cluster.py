"""A class of submissions: one after the other, and on 1, 2, … workers of a Dask
cluster. Run by hand.

    .venv-scale/bin/python benchmarks/cluster.py [--submissions 12] [--rounds 5]
    [--workers 1 2] [--level static]

The submissions are those of the tests, whole and faithful. Each measurement is a
`course.py check --all` of its own, from start to summary; the clusters of `--cluster`
run before, that of `--jobs` starts and ends within. The sides take turns, forth and
back, and all must come to the same verdicts. For a level above static, give real ones:
--class DIR."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

KIT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(KIT), str(KIT / "tests")]
import utils  # noqa: E402
from tools.grading import cluster  # noqa: E402


def draw(folder: Path, count: int) -> Path:
    """A class of faithful submissions."""
    from support.submissions import make_submission

    first = make_submission(folder / "team0")
    for number in range(1, count):
        shutil.copytree(first, folder / f"team{number}")
    return folder


def measure(
    side: list[str], options: argparse.Namespace, output: Path
) -> tuple[float, list]:
    """Seconds of one check of the class, and its verdicts."""
    command = [
        sys.executable,
        "course.py",
        "check",
        "--all",
        str(options.folder),
        "--level",
        options.level,
        "--output",
        str(output),
        *side,
    ]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=KIT, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    rows = json.loads((output / "summary.json").read_text())["rows"]
    return seconds, [(row["submission"], row["verdict"]) for row in rows]


def compare(options: argparse.Namespace) -> pd.DataFrame:
    """One row for each side: median and range of seconds, and of the ratio to one after
    the other in the same round.
    """
    with ExitStack() as stack, tempfile.TemporaryDirectory() as output:
        sides = {"one after the other": ["--jobs", "1"]}
        for workers in options.workers:
            running = stack.enter_context(cluster._local(workers))
            sides[f"{workers} on a running cluster"] = [
                "--cluster",
                running.scheduler_address,
            ]
        sides |= {
            f"--jobs {workers}": ["--jobs", str(workers)]
            for workers in options.workers
            if workers > 1
        }
        seconds, verdicts = {name: [] for name in sides}, []
        for number in range(options.rounds):
            for name in list(sides)[:: -1 if number % 2 else 1]:
                took, seen = measure(sides[name], options, Path(output))
                seconds[name].append(took)
                verdicts.append(seen)
    if any(seen != verdicts[0] for seen in verdicts):
        raise SystemExit("The sides came to different verdicts.")
    alone, count = np.array(seconds["one after the other"]), len(verdicts[0])
    return pd.DataFrame(
        {
            "submissions": count,
            "n": options.rounds,
            "seconds": {name: spread(values) for name, values in seconds.items()},
            "ratio": {name: spread(alone / values) for name, values in seconds.items()},
            "submissions a minute": {
                name: f"{60 * count / np.median(values):.0f}"
                for name, values in seconds.items()
            },
        }
    )


def spread(values) -> str:
    """Median [smallest, largest]."""
    return f"{np.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--submissions", type=int, default=12)
    parser.add_argument(
        "--class",
        type=Path,
        dest="folder",
        metavar="DIR",
        help="submissions of your own instead",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--level", choices=("static", "evaluate", "full"), default="static"
    )
    return parser.parse_args()


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as drawn:
        options.folder = options.folder or draw(Path(drawn), options.submissions)
        print(compare(options).to_string())
    print(
        f"level {options.level}; {utils.hardware()}; Python {sys.version.split()[0]}, "
        + ", ".join(f"{name} {version(name)}" for name in ("distributed", "torch"))
    )


if __name__ == "__main__":
    main()
