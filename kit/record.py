"""exports/results.json: sections, criteria, staleness; tables, figures and answers on
disk.
"""

from __future__ import annotations

import operator
import re
from pathlib import Path

import numpy as np
import pandas as pd

from kit.files import (
    CourseError,
    alone,
    atomic,
    copy_to_home,
    damaged,
    hash_file,
    load_arrays,
    now,
    read_json,
    write_json,
)
from kit.machine import environment, hardware

# The layout of exports/results.json. It changes when a reader of the old layout would
# misread the new one.
SCHEMA = 1
# How a grader compares a headline figure: to the digit, within a tolerance, as a time,
# or not across platforms.
HEADLINE_TAGS = {
    "loader_speedup": "timing",
    "baseline_test_accuracy": "tolerance",
    "optimized_test_accuracy": "tolerance",
    "optimized_test_balanced_accuracy": "tolerance",
    "optimized_test_auroc": "tolerance",
    "train_seconds_baseline": "timing",
    "train_seconds_optimized": "timing",
    "onnx_max_abs_diff": "platform",
    "ort_speedup_b1": "timing",
    "ort_speedup_b32": "timing",
    "int8_speedup_b1": "timing",
    "int8_accuracy_drop": "tolerance",
    "provider": "platform",
    "alerts_raised": "platform",
    "drift_windows_flagged": "tolerance",
    "drift_false_alarms": "tolerance",
    "clean_accuracy_before": "tolerance",
    "clean_accuracy_after": "tolerance",
    "drift_accuracy_before": "tolerance",
    "drift_accuracy_after": "tolerance",
    "gate_passed": "tolerance",
}

# What the checkpoint of a theme compares with the course's targets: the name of the
# value, what it is, how it is compared and with what.
CRITERIA = {
    1: [
        ("environment_documented", "environment documented", "==", True),
        ("loader_speedup", "optimised loader, speedup over naive", ">", 1.0),
        ("crossing_groups", "groups that cross pools", "==", 0),
        ("usable_share", "usable share of the images", ">", 0.9),
    ],
    2: [
        ("baseline_test_accuracy", "baseline test accuracy", ">", 0.70),
        ("above_chance", "balanced accuracy above 1/K, low end of the gap", ">", 0.0),
        ("epochs_unlogged", "epochs of this run missing in TensorBoard", "==", 0),
        ("reload_change", "baseline.pth reloaded, largest change", "<=", 1e-4),
    ],
    3: [
        ("optimized_test_accuracy", "optimised test accuracy", ">", 0.80),
        ("above_chance", "balanced accuracy above 1/K, low end of the gap", ">", 0.0),
        ("gain_low", "better than the baseline, low end", ">", 0.0),
        ("ideas", "ideas measured in the ablation", ">=", 3),
        ("reload_change", "best_model.pth reloaded, largest change", "<=", 1e-4),
    ],
    4: [
        ("onnx_max_abs_diff", "ONNX against PyTorch, largest difference", "<=", 1e-5),
        ("changed_decisions", "decisions changed by the export", "==", 0),
        ("serving_max_abs_diff", "the same where it serves", "<=", 1e-4),
        ("ort_speedup_b1", "ONNX Runtime float32 speedup, batch 1", ">=", 3.0),
        ("int8_speedup_b1", "INT8 speedup, batch 1", ">=", 5.0),
        ("on_device", "the session runs where it should", "==", True),
        ("int8_accuracy_drop", "INT8 accuracy lost on test", "<=", 0.01),
        ("backends", "backends in one benchmark", ">=", 4),
        ("tensorrt_documented", "TensorRT attempt documented", "==", True),
    ],
    5: [
        ("logged_share", "lines in the log, of the requests sent", "==", 1.0),
        ("lost_lines", "predictions that could not be logged", "==", 0),
        ("missed_incidents", "incidents of the drill without an alert", "==", 0),
        ("false_alarms", "false alarms on a quiet day", "==", 0),
        ("dashboard_written", "TensorBoard dashboard written", "==", True),
    ],
    6: [
        ("methods", "detection methods with a p-value", ">=", 2),
        ("honest_share", "tests not shown to exceed α, share", "==", 1.0),
        ("drift_false_alarms", "undrifted windows flagged, share", "<=", 0.05),
        ("drift_windows_flagged", "drifted windows flagged, share", ">=", 0.5),
        ("false_decisions", "false decisions in the quiet stream", "==", 0),
        ("decided", "sudden drift: decision to retrain", "==", True),
    ],
    7: [
        ("leaked_images", "gate images that the candidate has seen", "==", 0),
        ("gate_passed", "the gate accepts the candidate", "==", True),
        ("drift_gain", "accuracy gained on drifted images", ">", 0.0),
        ("clean_loss", "accuracy lost on clean images", "<", 0.05),
        ("refused_share", "bad candidates refused, share", "==", 1.0),
        ("onnx_agreement", "checkpoint against ONNX, largest difference", "<=", 1e-5),
    ],
    8: [
        ("themes", "themes in the record", "==", 7),
        ("stale_sections", "stale sections", "==", 0),
        ("variants", "variants in one table, with intervals", ">=", 5),
        ("steps", "steps compared on the same images", ">=", 3),
        ("code_items_missing", "code items of the checklist not met", "==", 0),
        ("card_written", "model card written", "==", True),
    ],
}
BUSY_LABEL = " (busy machine: measure it again)"
COMPARE = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
}


def finish(course, reads=(), **values) -> pd.DataFrame:
    """Record what a theme measured, and compare it with the course's targets. A safe
    point: its logs are copied to the home.

    Parameters
    ----------
    reads : paths
        Files that these values depend on: a later change of one makes them stale.
    **values
        The theme's headline figures (HEADLINE_TAGS) and criteria (CRITERIA) by name,
        and whatever else its section shall hold, beside what `course.note` kept.
        Tables become lists of their rows. A speedup is a `kit.bench.ratio_row`: its
        spread goes to the section's `timings`, and one of a busy machine meets nothing.

    Returns
    -------
    DataFrame: criterion, value, target, met.

    Raises
    ------
    CourseError
        A criterion of this theme has no value.
    """
    rows, values = CRITERIA[course.theme], course.noted | values
    if missing := [name for name, *_ in rows if name not in values]:
        raise CourseError(
            f"course.finish lacks {', '.join(missing)}: run the cells above that"
            " measure it, then this one again."
        )
    values = {name: _in_rows(value) for name, value in values.items()}
    timings = {n: row for n, row in values.items() if _is_timing(row)}
    values |= {name: row["speedup"] for name, row in timings.items()}
    busy = {name for name, row in timings.items() if row["busy"]}
    headline = {n: value for n, value in values.items() if n in HEADLINE_TAGS}
    if headline:
        record(course, "headline", headline)
    section = {name: values[name] for name in values.keys() - headline.keys()}
    section |= {"timings": timings} if timings else {}
    section["inputs"] = hash_inputs(course, *reads)
    record(course, f"theme{course.theme}", section)
    copy_to_home(course, course.logs)
    criteria = [
        (says, values[n], sign, goal, n in busy) for n, says, sign, goal in rows
    ]
    return check_criteria(course, *criteria)


def _is_timing(value) -> bool:
    return isinstance(value, dict) and "busy" in value


def _in_rows(value):
    """A table as JSON knows it: its rows, by name where they have one."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, pd.Series):
        return {name: _in_rows(part) for name, part in value.items()}
    if not isinstance(value, pd.DataFrame):
        return value
    plain = isinstance(value.index, pd.RangeIndex)
    return value.to_dict("records" if plain else "index")


def record_settings(course, settings: dict) -> None:
    """What was asked for and what it runs on, in the record and in environment.txt."""
    machine = environment()
    with atomic(course.exports / "environment.txt") as temporary:
        machine.to_string(temporary)
    told = {"hardware": hardware(), "environment": machine.to_dict()}
    record(course, "meta", settings | told)


def record(course, section: str, values: dict) -> None:
    """Merge `values` into one section of exports/results.json, the one record of the
    course.

    `headline` takes only the keys of HEADLINE_TAGS, as fractions, and stores the tag
    that graders compare by."""
    path = course.exports / "results.json"
    unknown = [
        key for key in values if section == "headline" and key not in HEADLINE_TAGS
    ]
    if unknown:
        raise CourseError(
            f"{', '.join(unknown)}: not a headline figure; record it under your own"
            " section."
        )
    # another notebook may record at this moment
    with alone(course, "results", quiet=True):
        results = open_record(course)
        dated = {} if section == "headline" else {"recorded": now()}
        results[section] = results.get(section, {}) | values | dated
        write_json(path, results | {"schema": SCHEMA, "tags": HEADLINE_TAGS})


def open_record(course) -> dict:
    """The record as far as it goes; {} before the first theme. Never one of another
    shape, which would be mixed in.
    """
    path = course.exports / "results.json"
    results = _of_this_schema(path) if path.exists() else {}
    if not is_record(results):
        raise damaged(path)
    return results


def _of_this_schema(path: Path) -> dict:
    results = read_json(path, precious=True)
    if results.get("schema") != SCHEMA:
        raise CourseError(
            f"{path} has schema {results.get('schema')!r}, this kit reads schema"
            f" {SCHEMA}: read it with the version of the kit that wrote it, or run the"
            " notebooks again from theme 1, with another HOME."
        )
    return results


def is_record(results: dict) -> bool:
    """Whether every section is one, and the criteria are rows that a table can show; a
    student's notes may be there.
    """
    ours = re.compile(r"theme[1-8]|meta|headline|tags|criteria")
    sections = [part for name, part in results.items() if ours.fullmatch(name)]
    if not all(isinstance(part, dict) for part in sections):
        return False
    criteria = results.get("criteria", {})
    tables = [rows for name, rows in criteria.items() if name != "recorded"]
    if not all(isinstance(rows, list) for rows in tables):
        return False
    return all(
        isinstance(row, dict)
        and {"name", "value", "target", "passed"} <= row.keys()
        and type(row["passed"]) is bool
        for rows in tables
        for row in rows
    )


def read_record(home: str | Path) -> dict:
    """The record of a home, exports/results.json, as the themes left it.

    Raises
    ------
    CourseError
        There is none, it is half-written, or it comes from another version of the kit.
    """
    path = Path(home) / "exports" / "results.json"
    if not path.exists():
        raise CourseError(
            f"{path} is missing: run notebooks/theme1_data_analysis.ipynb first (with"
            " the same HOME)."
        )
    results = _of_this_schema(path)
    if not isinstance(results.get("meta"), dict):
        raise damaged(path)
    return results


def hash_inputs(course, *paths: Path) -> dict[str, str]:
    """Hashes of the files that a theme read, by path below the home: a later change of
    one makes its section stale.
    """
    return {
        path.relative_to(course.home).as_posix(): hash_file(path)[:16]
        for path in paths
        if path.exists()
    }


def stale(course) -> list[str]:
    """What in the record was measured on files that have changed or gone since, one
    sentence each.
    """
    return stale_sections(course.home, open_record(course))


def stale_sections(home: Path, results: dict) -> list[str]:
    """The same for a record that was read elsewhere: a grader's copy of a home."""
    found = []
    for section, values in results.items():
        named = values.get("inputs") if isinstance(values, dict) else None
        for name, digest in named.items() if isinstance(named, dict) else ():
            if _digest_below(home, name) != digest:
                found.append(
                    f"{section} is stale: {name} has changed since it ran. Run"
                    f" {section} again."
                )
    return found


def _digest_below(home: Path, name: str) -> str | None:
    """Hash of a file that a record names; None where it has gone, or never was a file
    of this home.
    """
    try:
        path = home / name
        return hash_file(path)[:16] if path.is_file() else None
    except OSError:  # a name that is too long, a file that may not be read
        return None


def check_criteria(course, *criteria: tuple) -> pd.DataFrame:
    """Compare measured values with the targets of the course's checklist, show and
    record the outcome.

    Parameters
    ----------
    criteria : tuples (name, value, comparison, target, busy)
        `comparison` is one of ">", ">=", "<", "<=", "=="; `busy`, False where it is
        left out, says that other programs disturbed the measurement: it is not met.
    """
    rows = []
    for name, value, sign, target, *busy in criteria:
        row = {"name": name, "value": value, "target": f"{sign} {_shown(target)}"}
        row["passed"] = bool(COMPARE[sign](value, target)) and not any(busy)
        if any(busy):
            row["name"] += BUSY_LABEL
        rows.append(row)
    record(course, "criteria", {f"theme{course.theme}": rows})
    passed = sum(row["passed"] for row in rows)
    print(f"Theme {course.theme}: {passed} of {len(rows)} criteria met.")
    return pd.DataFrame(rows).assign(value=[_shown(row["value"]) for row in rows])


def _shown(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def save_figure(course, figure, name: str) -> Path:
    """Store a figure as exports/figures/themeN_<name>.png, where the report looks for
    it.
    """
    path = course.exports / "figures" / f"theme{course.theme}_{name}.png"
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")
    # the layout is found: what the cell shows need not look for it again
    figure.set_layout_engine("none")
    return path


def save_table(course, table: pd.DataFrame, name: str) -> Path:
    """Store a table as exports/tables/themeN_<name>.csv, where the report looks for it;
    the index is a column.
    """
    path = course.exports / "tables" / f"theme{course.theme}_{name}.csv"
    with atomic(path) as temporary:
        table.to_csv(temporary)
    return path


def save_predictions(
    course, name: str, probabilities: np.ndarray, labels: np.ndarray
) -> Path:
    """Store probabilities (N, K) and labels (N,) as exports/predictions/<name>.npz, for
    paired comparisons later; CourseError where `stored_predictions` would refuse them.
    """
    path = course.exports / "predictions" / f"{name}.npz"
    try:
        check_stored_answers(np.asarray(probabilities), np.asarray(labels))
    except ValueError as error:
        told = f"The answers {name!r} are not stored, as nobody could read them"
        raise CourseError(f"{told} ({error}): look at the model.") from error
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, probabilities=probabilities, labels=labels)
    return path


def stored_predictions(
    home: str | Path, name: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """Probabilities (N, K) and labels (N,) as `save_predictions` stored them; None
    where there are none.

    Raises
    ------
    CourseError
        The file is damaged.
    """
    path = Path(home) / "exports" / "predictions" / f"{name}.npz"
    if not path.exists():
        return None
    try:
        stored = load_arrays(path)
        check_stored_answers(stored["probabilities"], stored["labels"])
    except (ValueError, KeyError) as error:
        raise CourseError(
            f"{path} is damaged ({error}): delete it, then run the notebook that"
            " wrote it."
        ) from error
    return stored["probabilities"], stored["labels"]


def check_stored_answers(probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Raise ValueError unless these are finite probabilities (N, K) and class numbers
    (N,), of one image at least.
    """
    shape = probabilities.shape
    if len(shape) != 2 or 0 in shape or labels.shape != shape[:1]:
        raise ValueError(f"probabilities {shape} for labels {labels.shape}")
    kinds = probabilities.dtype.kind == "f" and labels.dtype.kind in "iu"
    if not kinds or not np.isfinite(probabilities).all():
        raise ValueError("probabilities or labels that are no such numbers")
    if labels.min() < 0 or labels.max() >= shape[1]:
        raise ValueError("labels of other classes")
