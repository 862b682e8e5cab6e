"""Kills: SIGKILL at random moments of a training and of the way from files to a served
model, then go on. Run by hand.

    python benchmarks/kills.py [--kills 20] [--again 5] [--chain 6] [--seed 0] [--images
    600] [--size 64] [--epochs 5]

Training: two trainings run undisturbed, one that saves every half second and one that
saves after every step. Then each kill has a training of its own, that is started,
killed once, started again and left to its end. Odd kills save every half second, even
ones after every step, so that many of these hit the saving itself; every fifth kill
falls before the first step (start, data, first folders), the others anywhere between
the first step and the last. A kill holds when the final weights and the history (its
times aside) equal the undisturbed ones bit for bit, and no temporary file is left. At
last one more training is killed `--again` times before it may end.

Chain: drawing, index, cache, training, checkpoint, export, service, log and record in
one process, killed once at a random moment and run again. It holds when nothing that
passes for a result after the kill differs from the undisturbed result, every line
logged before is still there, and the second run ends with the very same files.

Every process is a real one, new each time. A process that ends before its kill is run
anew, with another moment. Exit status 0: all kills hold.
"""

import argparse
import hashlib
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sample_data  # noqa: E402
import utils  # noqa: E402
from kit.files import LEFTOVER
from kit.serving import put_in_service, verify_onnx

SAVE_EVERY = {"each step": 0.0, "0.5 s": 0.5}

# --------------------------------------------------------------------------------------
# What is killed
# --------------------------------------------------------------------------------------


def say(word: str) -> None:
    """A line for the process that kills: written at once, unlike
    what `print` buffers.
    """
    os.write(1, f"{word}\n".encode())


def train(options: argparse.Namespace) -> None:
    """One training of the course, in a home whose index and cache may
    be there already.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook

    course = utils.start(
        1,
        source=options.source,
        profile="quick",
        image_size=options.size,
        home=options.home,
    )
    utils.build_index(course)
    data = utils.load_data(course)
    recipe = replace(utils.optimized_recipe(data), epochs=options.epochs)
    register_optimizer_step_post_hook(lambda *_: say("step"))
    utils.fit(
        course,
        options.name,
        utils.optimized_network(course),
        data,
        recipe,
        progress=False,
        save_every=SAVE_EVERY[options.saved],
    )


def chain(options: argparse.Namespace) -> None:
    """From no files at all to a served model, its log and the record, on the smoke
    profile.
    """
    say("start")
    course = utils.start(1, source="sample", profile="smoke", home=options.home)
    say("index")
    utils.build_index(course)
    say("cache")
    data = utils.load_data(course)
    say("training")
    recipe = replace(utils.optimized_recipe(data), epochs=3)
    run = utils.fit(
        course,
        "chain",
        utils.optimized_network(course),
        data,
        recipe,
        progress=False,
        save_every=0.0,
    )
    say("checkpoint")
    state = {
        "classes": list(course.classes),
        "mean": data.mean,
        "std": data.std,
        "size": course.image_size,
        "channels": course.channels,
        "threshold": 0.5,
        "temperature": 1.0,
        "seed": course.seed,
    }
    checkpoint = utils.save_checkpoint(
        course.checkpoints / "best_model.pth", run.model, **state
    )
    say("export")
    path = put_in_service(course, utils.export_onnx(course, checkpoint))
    say("log")
    served = utils.MonitoredModel(
        utils.OnnxModel(path), utils.InferenceLogger(course.logs / "production.csv")
    )
    for row in data.where("production"):
        served.predict(data.pixels[row : row + 1])
    say("record")
    utils.record(course, "theme4", {"model": verify_onnx(path)})


# --------------------------------------------------------------------------------------
# Who kills
# --------------------------------------------------------------------------------------


def run(arguments: list, after: str | None = None, delay: float | None = None) -> dict:
    """Run this file in a process of its own; with `delay`, kill it so many seconds
    after its first line `after`.

    Returns
    -------
    dict
        lines (as said), times (s, one a line), killed, seconds.
    """
    began, lines, times = time.perf_counter(), [], []
    process = subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )
    timer = threading.Timer(delay or 0, process.kill)
    if delay is not None and after is None:
        timer.start()
    for line in process.stdout:
        if delay is not None and line.strip() == after and after not in lines:
            timer.start()
        lines.append(line.strip())
        times.append(time.perf_counter() - began)
    code = process.wait()
    timer.cancel()
    if code and code != -9:
        raise SystemExit("\n".join(["The process failed by itself:", *lines]))
    return {
        "lines": lines,
        "times": times,
        "killed": code == -9,
        "seconds": time.perf_counter() - began,
    }


def leftovers(home: Path) -> list[str]:
    return [path.name for path in home.rglob(".*") if LEFTOVER.fullmatch(path.name)]


def finished(home: Path, name: str) -> dict | None:
    """What a training stored at its end, less its times."""
    path = next((home / "runs").glob(f"{name}-*/finished.pt"), None)
    if path is None:
        return None
    state = torch.load(path, weights_only=True)
    return {
        "weights": state["weights"],
        "history": pd.DataFrame(state["history"]).drop(columns="seconds"),
    }


def same(first: dict, second: dict) -> bool:
    weights = first["weights"], second["weights"]
    return (
        weights[0].keys() == weights[1].keys()
        and first["history"].equals(second["history"])
        and all(
            torch.equal(value, weights[1][key]) for key, value in weights[0].items()
        )
    )


def found(result: dict) -> int:
    """The step that a process went on from; 0 when it began anew."""
    said = "\n".join(result["lines"])
    told = re.search(r"resumed in epoch \d+, after step (\d+)", said)
    return int(told[1]) if told else 0


def kill_trainings(
    options: argparse.Namespace, common: list
) -> tuple[list[dict], float]:
    """A row a kill, each with a training of its own; and the seconds of steps of an
    undisturbed one that saves each.
    """
    home, rng, whole, spans = options.home, random.Random(options.seed), {}, {}
    modes = [options.saved] if options.saved else list(SAVE_EVERY)
    for saved in modes:
        name = f"whole-{saved[0]}"
        result = run([*common, "--name", name, "--saved", saved])
        steps = [
            moment
            for line, moment in zip(result["lines"], result["times"], strict=True)
            if line == "step"
        ]
        whole[saved], spans[saved] = (
            finished(home, name),
            (
                steps[0],
                steps[-1] - steps[0],
            ),
        )
        print(
            f"undisturbed, saved {saved}: {len(steps)} steps, {result['seconds']:.1f}"
            f" s, the first step after {steps[0]:.1f} s"
        )
    if not same(whole[modes[0]], whole[modes[-1]]):
        raise SystemExit(
            "Two undisturbed trainings differ: nothing can be shown on this machine."
        )
    rows = []
    while len(rows) < options.kills:
        number, saved = len(rows) + 1, modes[-1 - len(rows) % len(modes)]
        early, name = number % 5 == 0, f"kill-{number}-{rng.randrange(10**6)}"
        delay = rng.uniform(0, spans[saved][not early])
        arguments = [*common, "--name", name, "--saved", saved]
        killed = run(arguments, None if early else "step", delay)
        if finished(home, name):
            continue
        cut = any(name.startswith(".running.pt") for name in leftovers(home))
        steps, again = killed["lines"].count("step"), run(arguments)
        holds = same(finished(home, name), whole[saved]) and not leftovers(home)
        rows.append(
            {
                "kill": number,
                "saved": saved,
                "killed after s": round(killed["seconds"], 1),
                "steps done": steps,
                "in saving": "yes" if cut else "",
                "step found": found(again),
                "steps lost": steps - found(again),
                "same weights, bit for bit": "yes" if holds else "NO",
            }
        )
    return rows, spans[modes[0]][1]


def kill_again_and_again(
    options: argparse.Namespace, common: list, span: float
) -> list[dict]:
    """One training, whose steps take `span` seconds, all of them saved, that is killed
    several times; a row a kill.
    """
    rng, rows, attempt = random.Random(options.seed + 1), [], 1
    while len(rows) < options.again:
        name = f"again{attempt}"
        arguments = [*common, "--name", name, "--saved", "each step"]
        result = run(arguments, "step", rng.uniform(0, 0.8 * span / options.again))
        if result["killed"]:
            done = result["lines"].count("step")
            rows.append(
                {"kill": len(rows) + 1, "step found": found(result), "steps done": done}
            )
        else:  # it was faster than the undisturbed one
            rows, attempt = [], attempt + 1
    last = run(arguments) if rows else {"lines": []}
    holds = not rows or same(
        finished(options.home, name), finished(options.home, "whole")
    )
    holds = holds and not leftovers(options.home)
    told = {
        "found at last": found(last),
        "same weights, bit for bit": "yes" if holds else "NO",
    }
    return [row | told for row in rows]


# --------------------------------------------------------------------------------------
# The chain from files to a served model
# --------------------------------------------------------------------------------------


def artefacts(home: Path) -> dict[str, str]:
    """Hash of everything in a home that passes for a result, by name; of trainings and
    checkpoints the weights.
    """
    data, found = home / "data", {}
    for path in (
        *data.glob("*/index.csv"),
        *home.glob("exports/models/*.onnx"),
        *home.glob("exports/model.onnx"),
        *(
            path
            for path in data.glob("*/cache/*.npy")
            if path.with_suffix(".json").exists()
        ),
    ):
        found[path.relative_to(home).as_posix()] = utils.hash_file(path)
    for path in (*home.glob("runs/*/finished.pt"), *home.glob("checkpoints/*.pth")):
        weights = torch.load(path, weights_only=True)["weights"]
        content = b"".join(
            value.contiguous().numpy().tobytes() for value in weights.values()
        )
        found[path.relative_to(home).as_posix()] = hashlib.sha256(content).hexdigest()
    for path in data.glob("raw/[!.]*/"):
        found[path.relative_to(home).as_posix()] = utils.fingerprint(
            [
                (file.relative_to(path).as_posix(), utils.hash_file(file))
                for file in sorted(path.rglob("*.jp*g"))
            ]
        )
    for path in home.glob("exports/results.json"):
        found["theme4"] = str(
            utils.read_json(path, precious=True).get("theme4", {}).get("model")
        )
    return {name: value for name, value in found.items() if value != "None"}


def log_lines(home: Path) -> list[str]:
    path = home / "logs" / "production.csv"
    return (
        utils.read_log(path)["timestamp"].astype(str).tolist() if path.exists() else []
    )


def kill_chains(options: argparse.Namespace) -> list[dict]:
    """A row a kill: each in a home of its own, from no files at all."""
    rng, rows = random.Random(options.seed + 2), []
    undisturbed = run(["--work", "chain", "--home", options.home / "chain"])
    began = undisturbed["times"][undisturbed["lines"].index("start")]
    whole, lines = (
        artefacts(options.home / "chain"),
        len(log_lines(options.home / "chain")),
    )
    print(
        f"undisturbed chain: {undisturbed['seconds']:.1f} s, {len(whole)} results,"
        f" {lines} log lines"
    )
    while len(rows) < options.chain:
        home = options.home / f"chain-{len(rows) + 1}-{rng.randrange(10**6)}"
        killed = run(
            ["--work", "chain", "--home", home],
            "start",
            rng.uniform(0, undisturbed["seconds"] - began),
        )
        if not killed["killed"]:
            continue
        kept, logged = artefacts(home), log_lines(home)
        valid = kept.items() <= whole.items()
        run(["--work", "chain", "--home", home])
        holds = (
            valid
            and artefacts(home) == whole
            and log_lines(home)[: len(logged)] == logged
            and len(log_lines(home)) == len(logged) + lines
            and not leftovers(home)
        )
        stages = [
            line
            for line in killed["lines"]
            if re.fullmatch("[a-z]+", line) and line != "step"
        ]
        rows.append(
            {
                "kill": len(rows) + 1,
                "killed after s": round(killed["seconds"], 1),
                "in": stages[-1],
                "results found": len(kept),
                "log lines found": len(logged),
                "holds": "yes" if holds else "NO",
            }
        )
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="trainings killed once")
    parser.add_argument(
        "--again",
        type=int,
        default=5,
        help="kills of the one training that is killed repeatedly",
    )
    parser.add_argument(
        "--chain",
        type=int,
        default=6,
        help="kills on the way from files to a served model",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument(
        "--saved",
        choices=SAVE_EVERY,
        help="how often all trainings save (default: both in turn)",
    )
    # for the processes that this one starts
    for name in ("--work", "--name", "--source"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = parse()
    if options.work:
        {"train": train, "chain": chain}[options.work](options)
        return 0
    utils.set_seed(options.seed)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options.home = Path(folder) / "home"
        sample_data.draw_chest_xray(Path(folder) / "raw", options.images, seed=1)
        common = [
            "--work",
            "train",
            "--source",
            Path(folder) / "raw",
            "--home",
            options.home,
            "--size",
            options.size,
            "--epochs",
            options.epochs,
        ]
        rows, span = kill_trainings(options, common)
        tables = {
            "kills": rows,
            "repeated kills of one training": kill_again_and_again(
                options, common, span
            ),
            "kills of the chain": kill_chains(options) if options.chain else [],
        }
    held = True
    for name, rows in tables.items():
        if rows:
            good = sum("NO" not in row.values() for row in rows)
            held &= good == len(rows)
            print(
                f"\n{pd.DataFrame(rows).to_string(index=False)}\n{good} of {len(rows)}"
                f" {name} hold"
            )
    rows = tables["kills"]
    lost = {
        saved: [row["steps lost"] for row in rows if row["saved"] == saved]
        for saved in SAVE_EVERY
    }
    print(
        "\nsteps lost, median and most:",
        ", ".join(
            f"saved {saved}: {np.median(steps):.0f} and {max(steps)}"
            for saved, steps in lost.items()
            if steps
        ),
    )
    print(
        f"{time.perf_counter() - began:.0f} s on {utils.hardware()}; Python"
        f" {sys.version.split()[0]}, torch {version('torch')}, numpy {version('numpy')}"
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
