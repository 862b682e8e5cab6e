"""Headline figures against what the same submission says elsewhere: its own sections and its stored answers."""

import io
import zipfile
from collections.abc import Iterator

import numpy as np

import utils
from tools.submission import MIB, Finding, SubmissionError, shown

MAX_ANSWERS = 64 * MIB  # unpacked: room for two million images of two classes
NEAR = 1e-9  # one number, written twice
RECORD = "exports/results.json"
MEASURED = {  # figure: stored answers, metric
    "baseline_test_accuracy": ("baseline_test", "accuracy"),
    "optimized_test_accuracy": ("optimized_test", "accuracy"),
    "optimized_test_balanced_accuracy": ("optimized_test", "balanced_accuracy"),
    "optimized_test_auroc": ("optimized_test", "auroc"),
}
WRITTEN_BY = {"baseline_test": "theme2", "optimized_test": "theme3"}


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
    """Figures of the headline that the sections or the stored answers contradict; a pass that counts the others."""
    headline, findings, agreed = at(look.submission.record, "headline"), [], 0
    if not isinstance(headline, dict):
        return []
    pairs = [*_sections(look.submission.record, headline), *_answers(look, headline)]
    for name, value, said, where in (pair for pair in pairs if pair[1] is not None and pair[2] is not None):
        if value == said or is_number(value) and is_number(said) and abs(value - said) <= NEAR:
            agreed += 1
            continue
        says = (f"headline {name} is {shown(value)[:24]}, and {shown(said)[:24]} by {where}: run the theme again, and "
                "change no figure by hand.")  # fmt: skip
        findings.append(Finding("record", "fail", says, RECORD, 3))
    if agreed and not findings:
        says = f"{agreed} times a headline figure stands elsewhere too, in a section or as stored answers: they agree."
        findings.append(Finding("record", "pass", says, RECORD, 3))
    return findings


def _sections(record: dict, headline: dict) -> Iterator[tuple]:
    """(figure, headline value, value by the theme's section, place) for what both hold."""
    for name, (answers, metric) in MEASURED.items():
        theme = WRITTEN_BY[answers]
        yield name, headline.get(name), at(record, theme, "test", metric, "value"), f"section {theme}"
    yield "gate_passed", headline.get("gate_passed"), at(record, "theme7", "gate", "passed"), "section theme7"
    drop = at(record, "theme4", "int8_paired", "difference")
    yield "int8_accuracy_drop", headline.get("int8_accuracy_drop"), -drop if is_number(drop) else None, "section theme4"
    rows = at(record, "theme4", "agreement")
    largest = [at(row, "max_abs_diff") for row in rows] if isinstance(rows, list) else []
    largest = max(filter(is_number, largest), default=None)
    yield "onnx_max_abs_diff", headline.get("onnx_max_abs_diff"), largest, "section theme4"
    checks = at(record, "theme7", "gate", "checks")
    rose = {at(row, "name"): at(row, "value") for row in checks} if isinstance(checks, list) else {}
    for images, check in (("clean", "clean accuracy"), ("drift", "drifted accuracy")):
        before, after = (headline.get(f"{images}_accuracy_{when}") for when in ("before", "after"))
        change = after - before if is_number(before) and is_number(after) else None
        yield f"{images}_accuracy_after less _before", change, rose.get(check), "the gate of section theme7"


def _answers(look, headline: dict) -> Iterator[tuple]:
    """The same for metrics that are computed here from the stored answers on the test images."""
    for stored in WRITTEN_BY:
        path = f"exports/predictions/{stored}.npz"
        answers = _load(look, path) if path in look.paths else None
        if answers is None:
            continue
        probabilities, labels = answers
        classes = [str(number) for number in range(probabilities.shape[1])]
        values = utils.evaluate(probabilities, labels, classes, resamples=1)["value"]
        for name, (where, metric) in MEASURED.items():
            if where == stored:
                yield name, headline.get(name), float(values[metric]), path


def _load(look, path: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Stored answers, or None where the file is none: level evaluate says so."""
    try:
        content = look.read(path, MAX_ANSWERS)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_ANSWERS:
                return None
        with np.load(io.BytesIO(content), allow_pickle=False) as kept:
            probabilities, labels = kept["probabilities"], kept["labels"]
    except (SubmissionError, OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile):
        return None
    fits = probabilities.ndim == 2 and labels.ndim == 1 and 0 < len(labels) == len(probabilities)
    kinds = fits and probabilities.dtype.kind == "f" and labels.dtype.kind in "iu" and probabilities.shape[1] >= 2
    inside = kinds and labels.min() >= 0 and labels.max() < probabilities.shape[1] and np.isfinite(probabilities).all()
    return (probabilities, labels) if inside else None
