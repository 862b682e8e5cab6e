"""Score the weights and models of a submission again, inside the sandbox: `python -P
score.py PLAN.json`.

The images are read or drawn anew, the index is built anew, and all code is the grader's
but for the submitted models/. A network's code can lie about its answers, as it runs in
this process: what comes out is evidence, not proof."""

import importlib
import json
import sys
from pathlib import Path

# stored and new probabilities that differ by less are the same answers on another
# machine
EXACT = 1e-4


def main(plan_file: str) -> int:
    plan = json.loads(Path(plan_file).read_text())
    sys.path.insert(0, plan["kit"])
    import utils

    adopt_networks(utils, Path(plan["kit"]) / "models")
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
    data = utils.load_data(course)
    scores = {
        "headline": {},
        "predictions": {},
        "facts": {},
        "problems": {},
        "hardware": utils.hardware(),
        "environment": utils.environment().to_dict(),
    }
    parts = {
        pools: 1,
        baseline: 2,
        optimised: 3,
        onnx: 4,
        int8: 4,
        gate: 7,
        retrained: 7,
    }
    for part in (part for part, theme in parts.items() if theme <= plan["last"]):
        try:
            part(utils, course, data, plan, scores)
        except Exception as error:
            # one damaged file must not hide what the others are worth
            told = str(error).replace(plan["home"] + "/", "")
            scores["problems"][part.__name__] = (
                told if isinstance(error, utils.CourseError) else repr(error)[:500]
            )
    utils.write_json(plan["output"], scores)
    return 0


def adopt_networks(utils, folder: Path) -> None:
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
            if (
                isinstance(kind, type)
                and issubclass(kind, utils.nn.Module)
                and kind.__module__ == module.__name__
            ):
                utils.MODELS.setdefault(name, kind)


def pools(utils, course, data, plan, scores) -> None:
    """Compare the index that this kit builds with the submitted one, image by image."""
    import pandas as pd

    path = Path(plan["index"])
    if not path.exists():
        return
    theirs = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("path")
    ours = utils.load_index(course).set_index("path")
    both = ours.index.intersection(theirs.index)
    pairs = pd.DataFrame(
        {"ours": ours.loc[both, "pool"], "theirs": theirs.loc[both, "pool"]}
    )
    moved = pairs[pairs["ours"] != pairs["theirs"]]
    changed = int((ours.loc[both, "sha256"] != theirs.loc[both, "sha256"]).sum())
    examples = [
        f"{name}: {row.ours or 'none'} -> {row.theirs or 'none'}"
        for name, row in moved.head(5).iterrows()
    ]
    scores["facts"]["pools"] = {
        "images": len(ours),
        "submitted": len(theirs),
        "shared": len(both),
        "changed": changed,
        "moved": len(moved),
        "examples": examples,
    }


def _test(
    utils, course, data, plan, scores, name: str, probabilities
) -> dict[str, float]:
    """Metrics on the test pool, and how far the stored answers are from these."""
    import numpy as np

    labels = data.labels[data.where("test")]
    stored = Path(plan["home"]) / "exports" / "predictions" / f"{name}.npz"
    if stored.exists():
        with np.load(stored) as kept:
            same = kept[
                "probabilities"
            ].shape == probabilities.shape and np.array_equal(kept["labels"], labels)
            scores["predictions"][name] = (
                float(np.abs(kept["probabilities"] - probabilities).max())
                if same
                else "other images"
            )
    return utils.evaluate(probabilities, labels, course.classes, resamples=20)["value"]


def baseline(utils, course, data, plan, scores) -> None:
    model, _ = utils.load_model(course.checkpoints / "baseline.pth", course.classes)
    probabilities = utils.softmax(utils.predict(model, data.loader("test", 256))[0])
    values = _test(utils, course, data, plan, scores, "baseline_test", probabilities)
    scores["headline"]["baseline_test_accuracy"] = values["accuracy"]


def optimised(utils, course, data, plan, scores) -> None:
    model, state = utils.load_model(
        course.checkpoints / "best_model.pth", course.classes
    )
    logits = utils.predict(model, data.loader("test", 256))[0]
    probabilities = utils.softmax(logits, state.get("temperature", 1.0))
    values = _test(utils, course, data, plan, scores, "optimized_test", probabilities)
    scores["headline"] |= {
        f"optimized_test_{name}": values[name]
        for name in ("accuracy", "balanced_accuracy", "auroc")
    }


def _stored(utils, course, plan, kind: str):
    """The model of theme 4 that the record names, of the files in exports/models/."""
    name = plan["models"].get(kind)
    if not name:
        raise utils.CourseError(f"The record names no {kind} model of theme 4.")
    return utils.OnnxModel(course.exports / "models" / f"{name}.onnx", course.classes)


def onnx(utils, course, data, plan, scores) -> None:
    """Largest difference between the checkpoints and the files exported from them, as
    theme 4 measures it.
    """
    pixels = data.pixels[data.where("test")]
    pairs = {
        "fp32": ("best_model.pth", (1, 2, 7, 32)),
        "baseline": ("baseline.pth", (1, 32)),
    }
    largest = 0.0
    for kind, (checkpoint, batches) in pairs.items():
        network, _ = utils.served_network(course, course.checkpoints / checkpoint)
        table = utils.agreement(
            network, _stored(utils, course, plan, kind), pixels, batches
        )
        largest = max(largest, float(table["max_abs_diff"].max()))
    scores["headline"]["onnx_max_abs_diff"] = largest


def int8(utils, course, data, plan, scores) -> None:
    test = data.where("test")
    answers = {
        kind: _stored(utils, course, plan, kind).predict_all(data.pixels[test])[0]
        for kind in ("fp32", "int8")
    }
    for kind, name in (("fp32", "onnx_test"), ("int8", "int8_test")):
        _test(utils, course, data, plan, scores, name, answers[kind])
    right = [answers[kind].argmax(1) == data.labels[test] for kind in ("fp32", "int8")]
    difference, _, _ = utils.paired_difference(*right)
    scores["headline"]["int8_accuracy_drop"] = 0 - difference


def gate(utils, course, data, plan, scores) -> None:
    """Accuracies before and after the retraining, on the clean and the drifted images
    of pool gate.
    """
    import numpy as np

    case, rows = plan["scenario"], data.where("gate")
    if not case or not {"before", "after"} <= set(plan["retrained"]):
        raise utils.CourseError(
            "The record holds no drift scenario with a model before and after it."
        )
    drifted = utils.drift_data(data, case["kind"], case["severity"], case["seed"])
    for when, name in plan["retrained"].items():
        model = utils.OnnxModel(
            course.exports / "models" / f"{name}.onnx", course.classes
        )
        for images, source in (("clean", data), ("drift", drifted)):
            answers = model.predict_all(np.array(source.pixels[rows]))[0]
            row = utils.accuracy_row(answers, data.labels[rows])
            scores["headline"][f"{images}_accuracy_{when}"] = row["accuracy"]


def retrained(utils, course, data, plan, scores) -> None:
    """The retrained checkpoint: the file exported from it, and whether it has seen the
    images that judge it.
    """
    path = course.checkpoints / "model_retrained.pth"
    network, state = utils.served_network(course, path)
    name = plan["retrained"].get("after")
    if not name:
        raise utils.CourseError("The record of theme 7 names no candidate.")
    model = utils.OnnxModel(course.exports / "models" / f"{name}.onnx", course.classes)
    pixels = data.pixels[data.where("test")]
    _test(
        utils,
        course,
        data,
        plan,
        scores,
        "retrained_test",
        model.predict_all(pixels)[0],
    )
    difference = utils.agreement(network, model, pixels, (32,))["max_abs_diff"].max()
    seen = set(state.get("trained_on", [])) & set(data.loader("gate").hashes)
    scores["facts"]["retrained"] = {
        "max_abs_diff": float(difference),
        "gate_images_seen": len(seen),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
