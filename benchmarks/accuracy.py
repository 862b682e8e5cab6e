"""Accuracy of both networks on real images: mean and range over seeds. Run by hand.

    python benchmarks/accuracy.py --source DIR [--dataset pneumonia] [--size 96]
    [--seeds 42 43 44] [--home DIR]

Every seed draws its own pools and its own weights, and opens the test pool once per
network. Finished trainings are kept under --home, so that an interrupted run goes on.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils  # noqa: E402


def one_seed(dataset: str, source: str, size: int, seed: int, home: Path) -> list[dict]:
    """Rows for the baseline and the optimised network: test metrics and training
    seconds.
    """
    course = utils.start(
        1, dataset, source, "quick", size, seed, home=home / f"{dataset}-{size}-{seed}"
    )
    utils.build_index(course)
    data = utils.load_data(course)
    rows = []
    torch.manual_seed(seed)
    networks = {
        "baseline": utils.BaselineCNN(course.channels, len(course.classes)),
        "optimized": utils.optimized_network(course),
    }
    recipes = {
        "baseline": utils.baseline_recipe(data),
        "optimized": utils.optimized_recipe(data),
    }
    for name, model in networks.items():
        run = utils.fit(course, name, model, data, recipes[name], tracker="none")
        logits, labels = utils.predict(run.model, data.loader("test", 256))
        metrics = utils.evaluate(
            utils.softmax(logits), labels, course.classes, resamples=200
        )["value"].to_dict()
        del metrics["ece"], metrics["f1_macro"]
        rows.append(
            {
                "model": name,
                "seed": seed,
                **metrics,
                "seconds": run.seconds,
                "n": len(labels),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True)
    parser.add_argument("--dataset", default="pneumonia")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--home", type=Path, default=Path("accuracy-runs"))
    options = parser.parse_args()
    rows = [
        row
        for seed in options.seeds
        for row in one_seed(
            options.dataset, options.source, options.size, seed, options.home
        )
    ]
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    for name, own in table.drop(columns=["seed", "n"]).groupby("model"):
        n = table["n"].iloc[0]
        print(
            f"\n{options.dataset} {name} at {options.size} px, {len(own)} seeds, n ="
            f" {n} test images"
        )
        for column in own.columns.drop("model"):
            print(
                f"  {column:<20} {own[column].mean():.3f} [{own[column].min():.3f},"
                f" {own[column].max():.3f}]"
            )
    print(utils.hardware())


if __name__ == "__main__":
    main()
