"""Headline figures against what the same submission says elsewhere: sections, criteria,
stored answers.
"""

import io
import operator
import re
from collections.abc import Iterator

import numpy as np

import utils
from tools.grading.submission import Finding, SubmissionError, shown
from tools.shared.sections import ON_GATE

RECORD = "exports/results.json"
MEASURED = {  # figure: stored answers, metric
    "baseline_test_accuracy": ("baseline_test", "accuracy"),
    "optimized_test_accuracy": ("optimized_test", "accuracy"),
    "optimized_test_balanced_accuracy": ("optimized_test", "balanced_accuracy"),
    "optimized_test_auroc": ("optimized_test", "auroc"),
}
WRITTEN_BY = {"baseline_test": "theme2", "optimized_test": "theme3"}
# figure: theme, and how the kit's notebook names the criterion that shows it
CRITERIA = {
    "loader_speedup": ("theme1", "optimised loader, speedup over naive"),
    "baseline_test_accuracy": ("theme2", "baseline test accuracy"),
    "optimized_test_accuracy": ("theme3", "optimised test accuracy"),
    "onnx_max_abs_diff": (
        "theme4",
        "ONNX against PyTorch, largest difference of a probability",
    ),
    "ort_speedup_b1": ("theme4", "ONNX Runtime float32 speedup, batch 1"),
    "int8_speedup_b1": ("theme4", "INT8 speedup, batch 1"),
    "int8_accuracy_drop": ("theme4", "INT8 accuracy lost on test"),
    "provider": ("theme4", "provider of the float32 session"),
    "drift_false_alarms": ("theme6", "undrifted windows flagged, share"),
    "drift_windows_flagged": ("theme6", "drifted windows flagged, share"),
    "gate_passed": ("theme7", "the gate accepts the candidate"),
}
COMPARE = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
}


def at(values, *keys):
    """A value deep in a record, None where the record has another shape."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def is_number(value) -> bool:
    """Whether a foreign value is a finite number that a float holds."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and abs(value) < 1e300


def contradictions(look) -> list[Finding]:
    """Figures of the headline that the rest contradicts; else a pass that says how many
    stand elsewhere, too.
    """
    record, headline = look.submission.record, at(look.submission.record, "headline")
    if not isinstance(headline, dict):
        return []
    stored = {name: _load(look, name) for name in WRITTEN_BY}
    pairs = [
        *_sections(record, headline),
        *_criteria(record, headline),
        *_answers(stored, headline),
    ]
    pairs = [pair for pair in pairs if pair[1] is not None and pair[2] is not None]
    findings = [
        _contradiction(
            f"headline {name} is {shown(value)[:24]}, and {shown(said)[:24]} by {where}"
        )
        for name, value, said, where in pairs
        if not _agree(value, said)
    ]
    findings += [_contradiction(says) for says in _verdicts(record)]
    if pairs and not findings:
        says = (
            f"Headline figures stand {len(pairs)} times elsewhere (sections, criteria,"
            " stored answers): they agree."
        )
        findings.append(Finding("record", "pass", says, RECORD, 3))
    return findings + _without_answers(stored, headline)


def _contradiction(what: str) -> Finding:
    return Finding(
        "record",
        "fail",
        f"{what}: run the theme again, and change no figure by hand.",
        RECORD,
        3,
    )


def _agree(value, said) -> bool:
    """The same, but for the rounding of whoever wrote one of them with three decimals
    or more.
    """
    if not (is_number(value) and is_number(said)):
        return value == said
    decimals = [
        len(re.sub(r"e.*", "", repr(float(number)).partition(".")[2]))
        for number in (value, said)
    ]
    rounding = (
        0.5 * 10.0 ** -min(decimals)
        if min(decimals) >= 3 and "e" not in f"{value!r}{said!r}"
        else 0
    )
    return abs(value - said) <= max(1e-9, rounding * 1.001)


def _rows(values) -> list[dict]:
    return (
        [row for row in values if isinstance(row, dict)]
        if isinstance(values, list)
        else []
    )


def _sections(record: dict, headline: dict) -> Iterator[tuple]:
    """(figure, headline value, value by the theme's section, place) for what both may
    hold.
    """
    for name, (answers, metric) in MEASURED.items():
        theme = WRITTEN_BY[answers]
        yield (
            name,
            headline.get(name),
            at(record, theme, "test", metric, "value"),
            f"section {theme}",
        )
    yield (
        "gate_passed",
        headline.get("gate_passed"),
        at(record, "theme7", "gate", "passed"),
        "section theme7",
    )
    drop = at(record, "theme4", "int8_paired", "difference")
    yield (
        "int8_accuracy_drop",
        headline.get("int8_accuracy_drop"),
        -drop if is_number(drop) else None,
        "section theme4",
    )
    value = headline.get("onnx_max_abs_diff")
    differences = [
        row.get("max_abs_diff") for row in _rows(at(record, "theme4", "agreement"))
    ]
    differences = [number for number in differences if is_number(number)]
    # a row of the group's own, such as INT8, may be the largest
    if differences and value not in differences:
        yield "onnx_max_abs_diff", value, max(differences), "section theme4"
    for row in _rows(at(record, "theme7", "on_gate")):
        for name, place in ON_GATE.items():
            if (row.get("model"), row.get("images")) == place:
                yield name, headline.get(name), row.get("accuracy"), "section theme7"
    speeds = [
        row
        for row in _rows(at(record, "theme4", "benchmark"))
        if is_number(row.get("speedup"))
    ]
    for name, kind, batch in (
        ("ort_speedup_b1", "fp32", 1),
        ("ort_speedup_b32", "fp32", 32),
        ("int8_speedup_b1", "int8", 1),
    ):
        own = [
            row["speedup"]
            for row in speeds
            if f"ONNX Runtime {kind}" in str(row.get("backend"))
            and row.get("batch") == batch
        ]
        if own and headline.get(name) not in own:  # a GPU and the CPU have one each
            yield name, headline.get(name), own[0], "the benchmark of section theme4"


def _criteria(record: dict, headline: dict) -> Iterator[tuple]:
    for name, (theme, criterion) in CRITERIA.items():
        for row in _rows(at(record, "criteria", theme)):
            if row.get("name") == criterion:
                yield (
                    name,
                    headline.get(name),
                    row.get("value"),
                    f"the criteria of {theme}",
                )


def _verdicts(record: dict) -> Iterator[str]:
    """Verdicts that their own reasons contradict."""
    checks = [
        row.get("passed") for row in _rows(at(record, "theme7", "gate", "checks"))
    ]
    if at(record, "theme7", "gate", "passed") is True and False in checks:
        yield (
            f"the gate of theme7 passed, with {checks.count(False)} of its"
            f" {len(checks)} checks failed"
        )
    criteria = at(record, "criteria")
    for theme, rows in criteria.items() if isinstance(criteria, dict) else ():
        for row in _rows(rows):
            if (
                met := _met(row.get("value"), row.get("target"))
            ) is not None and met != row.get("passed"):
                name, value, target, passed = (
                    shown(row.get(k))[:50]
                    for k in ("name", "value", "target", "passed")
                )
                yield (
                    f"criterion {name} of {shown(theme)[:10]}: {value}, target"
                    f" {target}, passed = {passed}"
                )


def _met(value, target) -> bool | None:
    """Whether a value meets a target such as "> 0.7"; None where that cannot be told,
    or a rounded target is near.
    """
    sign, _, goal = target.partition(" ") if isinstance(target, str) else ("", "", "")
    if sign not in COMPARE:
        return None
    if goal in ("True", "False"):
        return (
            value is (goal == "True")
            if isinstance(value, bool) and sign == "=="
            else None
        )
    try:
        goal = float(goal)
    except ValueError:  # the name of a provider
        return value == goal if isinstance(value, str) and sign == "==" else None
    if not is_number(value) or 0 < abs(value - goal) <= 1e-3 * abs(goal):
        return None
    return bool(COMPARE[sign](value, goal))


def _answers(stored: dict, headline: dict) -> Iterator[tuple]:
    """The same for metrics that are computed here from the stored answers on the test
    images.
    """
    for answers_of, answers in stored.items():
        if answers:
            probabilities, labels = answers
            classes = [str(number) for number in range(probabilities.shape[1])]
            values = utils.evaluate(probabilities, labels, classes, resamples=1)[
                "value"
            ]
            for name, (where, metric) in MEASURED.items():
                if where == answers_of:
                    yield (
                        name,
                        headline.get(name),
                        float(values[metric]),
                        f"exports/predictions/{answers_of}.npz",
                    )


def _load(look, stored: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Stored probabilities (N, K) and labels (N,), or None where the file is none."""
    path = f"exports/predictions/{stored}.npz"
    try:
        arrays = utils.load_arrays(io.BytesIO(look.read(path)))
        utils.check_stored_answers(arrays["probabilities"], arrays["labels"])
    except (SubmissionError, ValueError, KeyError):
        return None
    return arrays["probabilities"], arrays["labels"]


def _without_answers(stored: dict, headline: dict) -> list[Finding]:
    """Figures that nothing here can be held against, as their answers are not there or
    are damaged.
    """
    lacking = [name for name, answers in stored.items() if answers is None]
    names = [
        name
        for name, (where, _) in MEASURED.items()
        if where in lacking and name in headline
    ]
    if not names:
        return []
    says = (
        f"Without whole exports/predictions/ of {' and '.join(lacking)} nothing shows"
        f" {', '.join(names)}: look at level evaluate, or run the theme again."
    )
    return [Finding("record", "human", says, "exports/predictions", 3)]
