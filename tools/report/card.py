"""The model card, exports/MODEL_CARD.md, filled from the record: what the model is, for
whom, and where it fails.

Source: Mitchell et al. (2019), Model Cards for Model Reporting; their headings, with
data, calibration and drift apart. The words stand in templates/card.md.
"""

import json
import math
import tomllib
from contextlib import suppress
from pathlib import Path

import jinja2

import utils
from kit.evidence import THEMES, limitations
from kit.files import read_text

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
DISCLAIMER = (
    "**Not a medical device.** This model was trained in a course. It has had no"
    " clinical validation and no approval by any authority; nobody may be diagnosed,"
    " treated or left untreated because of what it says."
)


def card(home: Path, results: dict) -> str:
    """The whole model card as Markdown; a section whose theme has not run says so."""
    themes = {f"theme{n}": results.get(f"theme{n}") for n in (1, 3, 4, 6, 7)}
    pools = (themes["theme1"] or {}).get("pools", {})
    sixth, seventh = themes["theme6"] or {}, themes["theme7"] or {}
    return TEMPLATES.get_template("card.md").render(
        **themes,
        meta=results["meta"],
        dataset=utils.DATASETS[results["meta"]["dataset"]],
        themes=THEMES,
        disclaimer=DISCLAIMER,
        authors=authors(home),
        served=seventh and seventh["in_service"] == seventh["models"]["after"],
        pools=[
            (name, *(pools[kind].get(name, 0) for kind in pools))
            for name in pools.get("All", {})
            if name != "All"
        ],
        cuts=thresholds(home, results),
        file=in_service(home),
        seen=[name for name, told in sixth.get("unseen_shift", {}).items() if told],
        worst=hardest(home),
        on_gate=on_gate(seventh),
        limits=[fact for fact, _ in limitations(results)],
        nan=math.nan,
    )


def authors(home: Path) -> list[str]:
    """Of the report's title page, where the group has filled it in."""
    path = home / "report" / "group.toml"
    with suppress(OSError, ValueError):
        names = tomllib.loads(read_text(path)).get("authors")
        return [str(name) for name in names] if isinstance(names, list) else []
    return []


def thresholds(home: Path, results: dict) -> list[dict]:
    """Recall and specificity on `test` with their intervals, at 0.5 and at the chosen
    threshold; nothing where theme 3 has not run.
    """
    third = results.get("theme3")
    stored = utils.stored_predictions(home, "optimized_test")
    if not third or stored is None:
        return []
    probabilities, labels = stored
    ill, rows = labels > 0, []
    for name, at in (("default", 0.5), ("chosen on `val`", third["threshold"])):
        alarm = utils.positive_probability(probabilities) >= at
        recall = share(alarm[ill].sum(), ill.sum())
        specificity = share((~alarm)[~ill].sum(), (~ill).sum())
        rows.append(
            {"name": name, "at": at, "recall": recall, "specificity": specificity}
        )
    return rows


def share(count: int, n: int) -> dict:
    low, high = utils.wilson(count, n)
    return {"value": count / n, "low": low, "high": high}


def in_service(home: Path) -> dict | str:
    """What the file in service carries, as it was fitted for that very model; empty
    where there is none, "damaged" where it does not say.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = home / "exports" / "model.onnx"
    if not path.exists():
        return ""
    try:
        stored = onnx.load(path, load_external_data=False).metadata_props
        about = {entry.key: json.loads(entry.value) for entry in stored}
        return {name: float(about[name]) for name in ("temperature", "threshold")}
    except (DecodeError, OSError, ValueError, TypeError, KeyError):
        return "damaged"


def on_gate(seventh: dict) -> dict[str, list[dict]]:
    """The rows of old model and candidate, by kind of images."""
    rows = seventh.get("on_gate", [])
    kinds = ("clean", "drifted") if rows else ()
    return {kind: [row for row in rows if row["images"] == kind] for kind in kinds}


def hardest(home: Path) -> dict | None:
    """The drift of theme 6's grid that costs most, if the grid is there."""
    grid = utils.read_json(home / "exports" / "drift_report.json").get("grid", {})
    return min(grid.get("accuracy", []), key=lambda row: row["accuracy"], default=None)


def write(home: str | Path, results: dict) -> Path:
    """Write exports/MODEL_CARD.md below `home`; what stood there is replaced at once or
    not at all.
    """
    path = Path(home) / "exports" / "MODEL_CARD.md"
    with utils.atomic(path) as temporary:
        temporary.write_text(card(Path(home), results), encoding="utf-8")
    return path
