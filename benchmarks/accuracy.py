"""Accuracy of the networks on real images: mean and range over seeds. Run by hand.

    python benchmarks/accuracy.py --source DIR [--dataset pneumonia] [--size 96]
    [--networks baseline optimized pretrained] [--seeds 42 43 44] [--home DIR]
    [--json FILE]

Every seed draws its own pools and its own weights, and opens the test pool once per
network. "linear" is the pretrained backbone as it is, with a logistic regression on
what it sees; "pretrained" is fine-tuned. Finished trainings are kept under --home, so
that an interrupted run goes on. FILE gets the rows, one a network and seed.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils  # noqa: E402

NETWORKS = ("baseline", "optimized", "linear", "pretrained")


def trained(course, data, name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Probabilities (N, K) and labels (N,) of the test pool, seconds of training."""
    utils.set_seed(course.seed)
    if name == "baseline":
        model = utils.BaselineCNN(course.channels, len(course.classes))
        recipe = utils.baseline_recipe(data)
    elif name == "optimized":
        model, recipe = utils.optimized_network(course), utils.optimized_recipe(data)
    else:
        model, recipe = utils.pretrained_network(course), utils.pretrained_recipe(data)
        data = data.normalised(model.mean, model.std)
    if name == "linear":
        return linear_head(model, data)
    run = utils.fit(course, name, model, data, recipe, tracker="none")
    logits, labels = utils.predict(run.model, data.loader("test", 256))
    return utils.softmax(logits), labels, run.seconds


def linear_head(model, data) -> tuple[np.ndarray, np.ndarray, float]:
    """The same of a logistic regression on the embeddings; C is chosen inside train."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model, device = model.to(data.course.device), data.course.device
    began = time.perf_counter()
    x, y = utils.extract_embeddings(model, data.loader("train", 256), device)
    strengths = np.logspace(-4, 0, 5)
    head = LogisticRegressionCV(Cs=strengths, cv=5, class_weight="balanced")
    head = make_pipeline(StandardScaler(), head).fit(x, y)
    seconds = time.perf_counter() - began
    x, labels = utils.extract_embeddings(model, data.loader("test", 256), device)
    return head.predict_proba(x), labels, seconds


def one_seed(dataset: str, source: str, size: int, seed: int, options) -> list[dict]:
    """A row a network: test metrics and training seconds."""
    home = options.home / f"{dataset}-{size}-{seed}"
    course = utils.start(1, dataset, source, "quick", size, seed, home=home)
    utils.build_index(course)
    data, rows = utils.load_data(course), []
    for name in options.networks:
        probabilities, labels, seconds = trained(course, data, name)
        table = utils.evaluate(probabilities, labels, course.classes, resamples=200)
        metrics = table["value"].drop("f1_macro").to_dict()
        row = {"model": name, "seed": seed, **metrics, "seconds": seconds}
        rows.append(row | {"n": len(labels)})
    return rows


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean [smallest, largest] over the seeds, a row a network."""

    def spread(values):
        return f"{values.mean():.3f} [{values.min():.3f}, {values.max():.3f}]"

    groups = table.drop(columns=["seed", "n"]).groupby("model", sort=False)
    return groups.agg(spread)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True)
    parser.add_argument("--dataset", default="pneumonia", choices=utils.DATASETS)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--home", type=Path, default=Path("accuracy-runs"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows, asked = [], (options.dataset, options.source, options.size)
    for seed in options.seeds:
        rows += one_seed(*asked, seed, options)
        if options.json:
            utils.write_json(options.json, rows)
    table = pd.DataFrame(rows)
    print(table.round(3).to_string(index=False))
    print(f"\n{options.dataset} at {options.size} px, {len(options.seeds)} seeds")
    print(summary(table).T.to_string())
    print(utils.hardware())


if __name__ == "__main__":
    main()
