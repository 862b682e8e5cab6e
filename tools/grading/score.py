"""Score the weights and models of a submission again, inside the sandbox: `python -P -m
tools.grading.score PLAN.json`, with the kit's copy as PYTHONPATH.

The images are read or drawn anew, the index is built anew, and all code is the grader's
but for the submitted models/. A network's code can lie about its answers, as it runs in
this process: what comes out is evidence, not proof."""

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import utils
from kit.drifts import drift_data
from tools.grading import hostile


@dataclass
class Case:
    """What is scored, and what came out so far."""

    plan: dict
    course: utils.Course
    data: utils.Data
    scores: dict

    def store(self, theme_models: str, kind: str):
        """A model that the record names, of the files in exports/models/."""
        name = self.plan[theme_models].get(kind)
        if not name:
            raise utils.CourseError(f"The record names no model {kind}.")
        path = self.course.exports / "models" / f"{name}.onnx"
        return hostile.onnx_model(path, self.course.classes)

    def pixels(self, pool: str) -> np.ndarray:
        return np.array(self.data.pixels[self.data.where(pool)])

    def labels(self, pool: str) -> np.ndarray:
        return self.data.labels[self.data.where(pool)]


def main(plan_file: str) -> int:
    plan = json.loads(Path(plan_file).read_text())
    adopt_networks(Path(plan["kit"]) / "models")
    story = plan["story"]
    course = utils.start(
        1,
        story["dataset"],
        plan["source"],
        story["profile"],
        story["image_size"],
        story["seed"],
        home=plan["home"],
    )
    utils.build_index(course)
    scores = {
        "headline": {},
        "predictions": {},
        "facts": {},
        "problems": {},
        "hardware": utils.hardware(),
        "environment": utils.environment().to_dict(),
    }
    case = Case(plan, course, utils.load_data(course), scores)
    for part, theme in PARTS.items():
        if theme > plan["last"]:
            continue
        try:
            part(case)
        except Exception as error:
            # one damaged file must not hide what the others are worth
            ours = isinstance(error, utils.CourseError)
            told = str(error) if ours else repr(error)[:500]
            scores["problems"][part.__name__] = told.replace(plan["home"] + "/", "")
    utils.write_json(plan["output"], scores)
    return 0


def adopt_networks(folder: Path) -> None:
    """Networks that a group wrote in models/, by the names that checkpoints call them
    by.
    """
    for path in sorted(folder.glob("*.py")):
        if path.stem == "__init__":
            continue
        try:
            module = importlib.import_module(f"models.{path.stem}")
        except Exception as error:
            print(f"models/{path.name} cannot be imported: {error!r}")
            continue
        for name, kind in vars(module).items():
            if isinstance(kind, type) and issubclass(kind, utils.nn.Module):
                if kind.__module__ == module.__name__:
                    utils.MODELS.setdefault(name, kind)


def pools(case: Case) -> None:
    """Compare the index that this kit builds with the submitted one, image by image."""
    path = Path(case.plan["index"])
    if not path.exists():
        return
    theirs = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("path")
    ours = utils.load_index(case.course).set_index("path")
    both = ours.index.intersection(theirs.index)
    pairs = pd.DataFrame(
        {"ours": ours.loc[both, "pool"], "theirs": theirs.loc[both, "pool"]}
    )
    moved = pairs[pairs["ours"] != pairs["theirs"]]
    changed = ours.loc[both, "sha256"] != theirs.loc[both, "sha256"]
    case.scores["facts"]["pools"] = {
        "images": len(ours),
        "submitted": len(theirs),
        "shared": len(both),
        "changed": int(changed.sum()),
        "moved": len(moved),
        "examples": [
            f"{name}: {row.ours or 'none'} -> {row.theirs or 'none'}"
            for name, row in moved.head(5).iterrows()
        ],
    }


def _test(case: Case, name: str, probabilities: np.ndarray) -> dict[str, float]:
    """Metrics on the test pool, and how far the stored answers are from these."""
    labels = case.labels("test")
    stored = case.course.exports / "predictions" / f"{name}.npz"
    if stored.exists():
        kept, truth = hostile.load_answers(stored)
        same = kept.shape == probabilities.shape and np.array_equal(truth, labels)
        case.scores["predictions"][name] = (
            float(np.abs(kept - probabilities).max()) if same else "other images"
        )
    classes = case.course.classes
    return utils.evaluate(probabilities, labels, classes, resamples=20)["value"]


def _logits(case: Case, checkpoint: str) -> tuple[np.ndarray, dict]:
    """Answers of a checkpoint on the test pool, and its state."""
    path = case.course.checkpoints / checkpoint
    model, state = hostile.load_model(path, case.course.classes)
    data = case.data
    if hostile.can_serve(state, case.course.channels):
        data = data.normalised(state["mean"], state["std"])
    return utils.predict(model, data.loader("test", 256))[0], state


def baseline(case: Case) -> None:
    logits, _ = _logits(case, "baseline.pth")
    values = _test(case, "baseline_test", utils.softmax(logits))
    case.scores["headline"]["baseline_test_accuracy"] = values["accuracy"]


def optimised(case: Case) -> None:
    logits, state = _logits(case, "best_model.pth")
    probabilities = utils.softmax(logits, state.get("temperature", 1.0))
    values = _test(case, "optimized_test", probabilities)
    case.scores["headline"] |= {
        f"optimized_test_{name}": values[name]
        for name in ("accuracy", "balanced_accuracy", "auroc")
    }


def onnx(case: Case) -> None:
    """Largest difference between the checkpoints and the files exported from them, as
    theme 4 measures it.
    """
    largest, pixels = 0.0, case.pixels("test")
    for kind, checkpoint, batches in (
        ("fp32", "best_model.pth", (1, 2, 7, 32)),
        ("baseline", "baseline.pth", (1, 32)),
    ):
        path = case.course.checkpoints / checkpoint
        network, _ = hostile.served_network(case.course, path)
        model = case.store("models", kind)
        table = utils.agreement(network, model, pixels, batches)
        largest = max(largest, float(table["max_abs_diff"].max()))
    case.scores["headline"]["onnx_max_abs_diff"] = largest


def int8(case: Case) -> None:
    answers = [
        case.store("models", kind).predict_all(case.pixels("test"))[0]
        for kind in ("fp32", "int8")
    ]
    for name, probabilities in zip(("onnx_test", "int8_test"), answers, strict=True):
        _test(case, name, probabilities)
    right = [
        probabilities.argmax(1) == case.labels("test") for probabilities in answers
    ]
    difference, _, _ = utils.paired_difference(*right)
    case.scores["headline"]["int8_accuracy_drop"] = 0 - difference


def gate(case: Case) -> None:
    """Accuracies before and after the retraining, on the clean and the drifted images
    of pool gate.
    """
    drift, rows = case.plan["scenario"], case.data.where("gate")
    if not drift or not {"before", "after"} <= set(case.plan["retrained"]):
        raise utils.CourseError(
            "The record holds no drift scenario with a model before and after it."
        )
    drifted = drift_data(case.data, drift["kind"], drift["severity"], drift["seed"])
    for when in ("before", "after"):
        model = case.store("retrained", when)
        for images, source in (("clean", case.data), ("drift", drifted)):
            answers = model.predict_all(np.array(source.pixels[rows]))[0]
            row = utils.accuracy_row(answers, case.labels("gate"))
            case.scores["headline"][f"{images}_accuracy_{when}"] = row["accuracy"]


def retrained(case: Case) -> None:
    """The retrained checkpoint: the file exported from it, and whether it has seen the
    images that judge it.
    """
    path = case.course.checkpoints / "model_retrained.pth"
    network, state = hostile.served_network(case.course, path)
    model, pixels = case.store("retrained", "after"), case.pixels("test")
    _test(case, "retrained_test", model.predict_all(pixels)[0])
    difference = utils.agreement(network, model, pixels, (32,))["max_abs_diff"].max()
    known = {str(digest)[:16] for digest in state.get("trained_on", [])}
    judges = {
        digest[:16]
        for pool in ("test", "gate")
        for digest in case.data.loader(pool).hashes
    }
    case.scores["facts"]["retrained"] = {
        "max_abs_diff": float(difference),
        "images_seen": len(known & judges),
    }


def unseen(case: Case) -> None:
    """How many images of two pools that no training has seen each network gets
    right.
    """
    found = case.scores["facts"].setdefault("unseen", {})
    for checkpoint in ("baseline.pth", "best_model.pth"):
        path = case.course.checkpoints / checkpoint
        if path.exists():
            model, _ = hostile.load_model(path, case.course.classes)
            found[checkpoint] = {
                pool: _right(case, model, pool) for pool in ("test", "gate")
            }


def _right(case: Case, model, pool: str) -> tuple[int, int]:
    answers = utils.predict(model, case.data.loader(pool, 256))[0].argmax(1)
    labels = case.labels(pool)
    return int((answers == labels).sum()), len(labels)


PARTS = {  # the theme that submits what each needs
    pools: 1,
    baseline: 2,
    unseen: 2,
    optimised: 3,
    onnx: 4,
    int8: 4,
    gate: 7,
    retrained: 7,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
