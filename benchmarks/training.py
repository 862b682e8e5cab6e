"""Training: one step tuned against plain, and the whole pipeline naive against ours.
Run by hand.

    python benchmarks/training.py [--images 2400] [--step-size 224] [--size 64]
    [--rounds 5] [--seeds 2] [--target 0.85]

Step: the same network, batch and optimiser; plain float32 NCHW against channels_last
with the precision that `utils.amp_dtype` picks, in interleaved rounds after a warm-up.
Pipeline: seconds until the validation AUROC first reaches the target, from 1300x1000
JPEG files that the benchmark draws, with the same network, recipe, evaluation and seed,
the two sides taking turns; naive decodes with PIL in two workers every epoch and
computes in plain float32, ours builds the cache first (its time counts) and computes as
in the step above.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils  # noqa: E402
from benchmarks.loader import large_images  # noqa: E402


def step_ratio(size: int, rounds: int, steps: int = 5) -> pd.DataFrame:
    """Images per second of a training step, plain and tuned, one row a round."""
    device, batch = utils.best_device(), 32
    images = torch.randn(batch, 1, size, size, device=device)
    labels = torch.randint(0, 2, (batch,), device=device)
    sides = {}
    for name in ("plain", "tuned"):
        torch.manual_seed(0)
        model = utils.OptimizedCNN().to(device).train()
        layout = torch.channels_last if name == "tuned" else torch.contiguous_format
        half = name == "tuned" and utils.amp_dtype(device) == torch.float16
        scaler = torch.amp.GradScaler(device.type, enabled=half)
        optimizer = torch.optim.AdamW(model.to(memory_format=layout).parameters())
        sides[name] = model, images.to(memory_format=layout), optimizer, scaler
    criterion, rows = torch.nn.CrossEntropyLoss(), []
    for _ in range(rounds + 1):
        row = {}
        for name, (model, x, optimizer, scaler) in sides.items():
            began = time.perf_counter()
            for _ in range(steps):
                loss, _ = utils.train_step(
                    model, x, labels, criterion, optimizer, scaler, amp=name == "tuned"
                )
            loss.item()  # waits until the device is done
            row[name] = steps * batch / (time.perf_counter() - began)
        rows.append(row)
    return pd.DataFrame(rows[1:])  # the first round warms up


def time_to_target(course, recipe, target: float, naive: bool) -> dict:
    """Seconds from the index to the first epoch whose validation AUROC reaches the
    target.
    """
    began = time.perf_counter()
    data = utils.load_data(course)
    ready = time.perf_counter() - began
    began = time.perf_counter()  # the naive side needs no cache: its clock starts here
    layout = torch.contiguous_format if naive else torch.channels_last
    train = data.loader(
        "train", recipe.batch_size, augment=utils.AUGMENT[course.dataset], shuffle=True
    )
    if naive:
        images = utils.NaiveImages(data, data.where("train"))
        train = torch.utils.data.DataLoader(
            images, recipe.batch_size, shuffle=True, num_workers=2
        )
    model = utils.optimized_network(course).to(course.device, memory_format=layout)
    criterion = utils.make_criterion(data.loader("train"), len(course.classes), recipe)
    optimizer, scheduler = utils.make_optimizer(
        model, recipe, recipe.epochs * len(train)
    )
    scores, reached = [], None
    for _ in range(recipe.epochs):
        batches = (
            (images.to(memory_format=layout), labels) for images, labels in train
        )
        utils.train_epoch(
            model,
            batches,
            criterion,
            optimizer,
            course.device,
            scheduler=scheduler,
            step=partial(utils.train_step, clip=recipe.clip, amp=not naive),
        )
        logits, labels = utils.predict(model, data.loader("val", 256))
        scores.append(utils.auroc(utils.softmax(logits), labels))
        if scores[-1] >= target:
            reached = time.perf_counter() - began + (0 if naive else ready)
            break
    side = "naive" if naive else "ours"
    return {
        "seed": course.seed,
        "side": side,
        "seconds": reached,
        "epochs": len(scores),
        "val_auroc": scores[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2400)
    parser.add_argument("--step-size", type=int, default=224)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--target", type=float, default=0.85)
    options = parser.parse_args()
    utils.set_seed()
    steps = step_ratio(options.step_size, options.rounds)
    ratio = steps["tuned"] / steps["plain"]
    precision = (
        utils.amp_dtype(utils.best_device())
        or "float32, as this hardware has nothing faster"
    )
    print(steps.round(1).assign(ratio=ratio.round(2)).to_string())
    print(
        f"training step at {options.step_size} px (channels_last, {precision}): median"
        f" {ratio.median():.2f}x, range {ratio.min():.2f}-{ratio.max():.2f}x,"
        f" {len(ratio)} rounds"
    )
    with tempfile.TemporaryDirectory() as folder:
        source = large_images(Path(folder) / "raw", options.images)
        course = utils.start(
            1,
            source=source,
            profile="quick",
            image_size=options.size,
            home=Path(folder) / "home",
        )
        utils.build_index(course)
        data = utils.load_data(course)
        recipe = replace(utils.optimized_recipe(data), epochs=options.epochs)
        rows = []
        for seed in range(course.seed, course.seed + options.seeds):
            for path in (course.local / "data" / course.dataset / "cache").iterdir():
                path.unlink()  # our side builds it again, on the clock
            own = replace(course, seed=seed)
            rows += [
                time_to_target(own, recipe, options.target, naive)
                for naive in (False, True)
            ]
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    seconds = table.pivot(index="seed", columns="side", values="seconds").dropna()
    ratio = seconds["naive"] / seconds["ours"]
    print(
        f"time to validation AUROC {options.target}: both sides reach it with"
        f" {len(ratio)} of {options.seeds} seeds"
    )
    if len(ratio):
        print(
            f"median {ratio.median():.1f}x, range {ratio.min():.1f}-{ratio.max():.1f}x"
        )
    print(utils.hardware())


if __name__ == "__main__":
    main()
