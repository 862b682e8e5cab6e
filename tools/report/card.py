"""The model card, exports/MODEL_CARD.md, filled from the record: what the model is, for
whom, and where it fails.

Source: Mitchell et al. (2019), Model Cards for Model Reporting; their headings, with
data, calibration and drift apart."""

import json
import math
import tomllib
from contextlib import suppress
from pathlib import Path

import utils

TASKS = {
    "pneumonia": "tells chest X-rays with signs of pneumonia from normal ones",
    "pneumonia3": "tells normal chest X-rays, bacterial and viral pneumonia apart",
    "solar": "tells aerial pictures of roofs with solar panels from those without",
}
USES = {
    "pneumonia": (
        "a teaching example of triage: which X-ray a radiologist might read first",
        (
            "any diagnosis, any decision about a patient, adults (the images are of"
            " children), other scanners than those of the training images"
        ),
    ),
    "solar": (
        (
            "a teaching example of a survey: estimating how many roofs of a region"
            " carry panels"
        ),
        (
            "decisions about a single household, other regions or resolutions than"
            " those of the training images"
        ),
    ),
}
USES["pneumonia3"] = USES["pneumonia"]
UNKNOWN = {
    "pneumonia": "Age, sex, origin and scanner are",
    "solar": "Region, season, kind of roof and resolution are",
}
UNKNOWN["pneumonia3"] = UNKNOWN["pneumonia"]
ROOFS = " Roofs belong to people: ask before you judge one."
THREE = (
    "; the threshold tells NORMAL from the rest, the class is the one of the largest"
    " probability"
)
LABELS = {
    True: "The images are drawn, their labels follow from the drawing.",
    False: (
        "The labels are those of the dataset's authors; their errors are the model's."
    ),
}
DISCLAIMER = (
    "**Not a medical device.** This model was trained in a course. It has had no"
    " clinical validation and no approval by any authority; nobody may be diagnosed,"
    " treated or left untreated because of what it says."
)


def interval(row: dict, name: str = "value") -> str:
    return f"{row[name]:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def markdown(header: tuple, rows: list[tuple]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |"
        for line in lines
    )


def missing(theme: int) -> str:
    notebook, cost = utils.THEMES[theme]
    return (
        f"*Not known: theme {theme} has not run ({cost}). Run"
        f" `notebooks/{notebook}.ipynb`.*"
    )


def authors(home: Path) -> list[str]:
    """Of the report's title page, where the group has filled it in."""
    with suppress(OSError, ValueError):
        names = tomllib.loads(
            (home / "report" / "group.toml").read_text(encoding="utf-8")
        ).get("authors", [])
        return [str(name) for name in names] if isinstance(names, list) else []
    return []


def details(home: Path, results: dict) -> str:
    meta, third, seventh = results["meta"], results.get("theme3"), results.get("theme7")
    lines = [
        f"- Task: {TASKS[meta['dataset']]}.",
        (
            f"- Course profile `{meta['profile']}`, {meta['image_size']} px, seed"
            f" {meta['seed']}; torch {meta['environment'].get('torch')},"
            f" {meta['hardware']}."
        ),
    ]
    if names := authors(home):
        lines.insert(0, f"- Made by {', '.join(names)}.")
    if third:
        lines.append(
            f"- Residual network, {third['parameters']:,} parameters, trained from"
            f" scratch on {third.get('trained', 'an unknown day')}."
        )
    if seventh:
        chosen, retrained = (
            seventh["chosen"],
            seventh["in_service"] == seventh["models"]["after"],
        )
        lines.append(
            f"- In service: `exports/models/{seventh['in_service']}.onnx`, the "
            f"{'retrained' if retrained else 'original'} model."
        )
        lines.append(
            f"- Retraining ({seventh['recorded']}): fine-tuned with {chosen['budget']}"
            f" labels of drifted images; the gate: {seventh['gate']['verdict']}"
        )
    elif "theme4" in results:
        lines.append(
            "- In service:"
            f" `exports/models/{results['theme4']['models']['fp32']}.onnx`."
        )
    return "\n".join(lines)


def data(results: dict) -> str:
    if "theme1" not in results:
        return missing(1)
    first, meta = results["theme1"], results["meta"]
    spec = utils.DATASETS[meta["dataset"]]
    pools = first["pools"]
    names = [name for name in pools["All"] if name != "All"]
    rows = [(name, *(pools[kind].get(name, 0) for kind in pools)) for name in names]
    source = (
        "drawn by `sample_data.py`"
        if meta["source"] == "sample"
        else f"Kaggle `{spec.kaggle}`"
    )
    return (
        f"Source: {source}; {first['usable']} of {first['images']} images are usable."
        " Pools, split by patient or by near-duplicate group; `test` chose nothing in"
        " the kit's notebooks.\n\n" + markdown(("pool", *pools), rows)
    )


def metrics(results: dict) -> str:
    seventh, third = results.get("theme7"), results.get("theme3")
    if not third:
        return missing(3)
    columns = {"before retraining": third["test"]}
    if seventh:
        columns["candidate of theme 7"] = seventh["test"]
    rows = [
        (
            name,
            *(interval(test[name]) for test in columns.values()),
            third["test"][name]["n"],
        )
        for name in third["test"]
    ]
    text = markdown(("test images, 95 % interval", *columns, "n"), rows)
    if seventh:
        served = seventh["in_service"] == seventh["models"]["after"]
        text += (
            f"\n\nIn service is the model of the {'last' if served else 'first'} column"
            " of figures."
        )
    return text


def threshold(home: Path, results: dict) -> str:
    third, stored = (
        results.get("theme3"),
        utils.stored_predictions(home, "optimized_test"),
    )
    if not third or stored is None:
        return missing(3)
    probabilities, labels = stored
    positive = utils.DATASETS[results["meta"]["dataset"]].positive
    rows = []
    for name, cut in (("default", 0.5), ("chosen on `val`", third["threshold"])):
        alarm = utils.positive_probability(probabilities) >= cut
        counts = [
            (alarm[labels > 0].sum(), (labels > 0).sum()),
            ((~alarm)[labels == 0].sum(), (labels == 0).sum()),
        ]
        ends = [
            dict(zip(("low", "high"), utils.wilson(k, n), strict=True))
            | {"value": k / n}
            for k, n in counts
        ]
        rows.append((f"{name}: {cut:.2f}", *(interval(end) for end in ends)))
    before, after = third["ece"]
    three = THREE * (len(utils.DATASETS[results["meta"]["dataset"]].classes) > 2)
    return (
        f"Confidence is calibrated with one temperature ({third['temperature']:.2f},"
        " fitted on `val`): expected "
        f"calibration error {before:.3f} before, {after:.3f} after, on `test`. The"
        " threshold assumes that a missed "
        f"{positive} costs as much as {third.get('cost_missed', math.nan):g} false"
        " alarms: an assumption of this "
        "course, to be replaced by that of whoever pays. These are the figures of the"
        " model before retraining"
        f"{in_service(home)}{three}.\n\n"
        + markdown((f"threshold on P({positive})", "recall", "specificity"), rows)
    )


def in_service(home: Path) -> str:
    """What the file in service carries, as it was fitted for that very model."""
    import onnx
    from google.protobuf.message import DecodeError

    path = home / "exports" / "model.onnx"
    if not path.exists():
        return ""
    try:
        stored = onnx.load(path, load_external_data=False).metadata_props
        about = {entry.key: json.loads(entry.value) for entry in stored}
        temperature, cut = float(about["temperature"]), float(about["threshold"])
    except (DecodeError, OSError, ValueError, TypeError, KeyError):
        return (
            "; the file in service is damaged or not this course's: run theme 4 again"
        )
    return (
        f"; the file in service carries temperature {temperature:.2f} and threshold"
        f" {cut:.2f}"
    )


def drift(home: Path, results: dict) -> str:
    if "theme6" not in results:
        return missing(6)
    sixth, seventh = results["theme6"], results.get("theme7", {})
    case, estimate = sixth["scenario"], sixth["policy"]["estimate"]
    error = sixth["estimates"][estimate]
    seen = [name for name, told in sixth["unseen_shift"].items() if told]
    policy = sixth["policy"]
    lines = [
        (
            f"- Watched by {', '.join(policy['detectors'])} on windows of"
            f" {policy['window']} images, {policy['consecutive']} flagged ones in a row"
            " confirm."
        ),
        (
            f"- Accuracy estimated without labels ({estimate}): off by"
            f" {error['mean absolute error']:.3f} on average, up to"
            f" {error['most optimistic']:.3f} too good."
        ),
        (
            "- Detectors that tell the test images from the reference:"
            f" {', '.join(seen) or 'none'}."
        ),
    ]
    table = markdown(
        ("gate images", "old model", "candidate", "n"),
        [
            (kind, *(interval(row, "accuracy") for row in rows), int(rows[0]["n"]))
            for kind, rows in on_gate(seventh).items()
        ],
    )
    case = f"Drifted: {case['kind']}, severity {case['severity']} of 5."
    said = f"\n\n{case}\n\n{table}" if seventh.get("on_gate") else ""
    worst = hardest(home)
    return "\n".join(lines) + (f"\n- {worst}" if worst else "") + said


def on_gate(seventh: dict) -> dict[str, list[dict]]:
    rows = seventh.get("on_gate", [])
    return {
        kind: [row for row in rows if row["images"] == kind]
        for kind in ("clean", "drifted")
        if rows
    }


def hardest(home: Path) -> str:
    """The drift of theme 6's grid that costs most, if the grid is there."""
    cost = (
        utils.read_json(home / "exports" / "drift_report.json")
        .get("grid", {})
        .get("accuracy", [])
    )
    if not cost:
        return ""
    worst = min(cost, key=lambda row: row["accuracy"])
    return (
        "The drift that costs most, before retraining:"
        f" {worst['kind'].replace('_', ' ')}, severity {worst['severity']}, accuracy"
        f" {worst['accuracy']:.3f} on {worst['n']} production images."
    )


def card(home: Path, results: dict) -> str:
    """The whole model card as Markdown; a section whose theme has not run says so."""
    dataset, sample = results["meta"]["dataset"], results["meta"]["source"] == "sample"
    intended, never = USES[dataset]
    medical = f"> {DISCLAIMER}\n\n" if dataset.startswith("pneumonia") else ""
    banner = (
        "> **Sample data.** Trained on drawn images: no figure here means anything.\n\n"
        if sample
        else ""
    )
    limits = "\n".join(f"- {fact}" for fact, _ in utils.limitations(results))
    sections = {
        "Model details": details(home, results),
        "Intended use": f"- For: {intended}.\n- Not for: {never}.",
        "Factors": (
            f"By class, and under one drift, below. {UNKNOWN[dataset]} not recorded for"
            " these images, so nothing can be said about them."
        ),
        "Quantitative analyses": metrics(results),
        "Training and evaluation data": data(results),
        "Calibration, threshold and its cost": threshold(home, results),
        "Sensitivity to drift": drift(home, results),
        "Ethical considerations": (
            f"{LABELS[sample]} The groups that the images do not name cannot be checked"
            f" for fairness.{ROOFS * (dataset == 'solar')}"
        ),
        "Caveats and recommendations": limits,
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"# Model card: {dataset}\n\n{medical}{banner}{body}\n"


def write(home: str | Path, results: dict) -> Path:
    """Write exports/MODEL_CARD.md below `home`; what stood there is replaced at once or
    not at all.
    """
    path = Path(home) / "exports" / "MODEL_CARD.md"
    with utils.atomic(path) as temporary:
        temporary.write_text(card(Path(home), results), encoding="utf-8")
    return path
