"""Does a record contradict itself? A headline figure against the sections, criteria and
stored answers that hold it, too; a verdict against its own reasons.

Rules for slips and for edits by hand: metrics, counts of images, times, the gate,
criteria. Whoever edits a record consistently is found by running it again.
"""

import io
import math
import re
from collections.abc import Iterator

import utils
from kit import record
from kit.record import BUSY_LABEL
from tools.grading.finding import Check, Finding
from tools.grading.hostile import load_answers
from tools.shared.foreign import SubmissionError, shown
from tools.shared.sections import ON_GATE

RECORD = "exports/results.json"
CHECK = Check("record", 3)
TEST = {  # stored answers: the theme that writes them, headline figures and metrics
    "baseline_test": ("theme2", {"baseline_test_accuracy": "accuracy"}),
    "optimized_test": (
        "theme3",
        {
            "optimized_test_accuracy": "accuracy",
            "optimized_test_balanced_accuracy": "balanced_accuracy",
            "optimized_test_auroc": "auroc",
        },
    ),
}
SPEEDUPS = {  # headline figure: backend and batch of its row in theme 4's benchmark
    "ort_speedup_b1": ("ONNX Runtime fp32", 1),
    "ort_speedup_b32": ("ONNX Runtime fp32", 32),
    "int8_speedup_b1": ("ONNX Runtime int8", 1),
}
# Headline figure: the criterion of the kit's notebooks that shows it.
CRITERIA = {
    name: says
    for rows in record.CRITERIA.values()
    for name, says, *_ in rows
    if name in record.HEADLINE_TAGS
}


def at(values, *keys):
    """A value deep in a record, None where the record has another shape."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values


def rows(values) -> list[dict]:
    """The rows of a table of a record, {} and other shapes aside."""
    values = values if isinstance(values, list) else []
    return [row for row in values if isinstance(row, dict)]


def is_number(value) -> bool:
    """Whether a foreign value is a finite number that a float holds."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and abs(value) < 1e300


def contradictions(look) -> Iterator[Finding]:
    """Figures of the headline that the rest contradicts; else a pass that says how many
    stand elsewhere, too.
    """
    record, headline = look.submission.record, at(look.submission.record, "headline")
    if not isinstance(headline, dict):
        return
    stored = {name: _answers(look, name) for name in TEST}
    rules = (_metrics(record, stored), _times(record), _gate(record), _shown(record))
    pairs = [
        (name, headline[name], said, where)
        for rule in rules
        for name, said, where in rule
        if headline.get(name) is not None and said is not None
    ]
    told = [
        f"headline {name} is {shown(value)[:24]}, and {shown(said)[:24]} by {where}"
        for name, value, said, where in pairs
        if not _agree(value, said)
    ]
    told += [
        *_counts(record, stored),
        *_speedups(record),
        *_failed_checks(record),
        *_unmet_criteria(record),
    ]
    for says in told:
        says = f"{says}: run the theme again, and change no figure by hand."
        yield CHECK.fail(says, RECORD)
    if pairs and not told:
        says = (
            f"Headline figures stand {len(pairs)} times elsewhere (sections, criteria,"
        )
        yield CHECK.passed(f"{says} stored answers): they agree.", RECORD)
    yield from _without_answers(stored, headline)


def _agree(value, said) -> bool:
    """The same, but for the rounding of whoever wrote one of them with three decimals
    or more.
    """
    if not (is_number(value) and is_number(said)):
        return value == said
    if "e" in f"{value!r}{said!r}":
        return abs(value - said) <= 1e-9
    fractions = (repr(float(number)).partition(".")[2] for number in (value, said))
    decimals = min(map(len, fractions))
    rounding = 0.5005 * 10.0**-decimals if decimals >= 3 else 0
    return abs(value - said) <= max(1e-9, rounding)


# --------------------------------------------------------------------------------------
# The rules
# --------------------------------------------------------------------------------------


def _metrics(record: dict, stored: dict) -> Iterator[tuple]:
    """Metrics on the test images: by the section, and computed here from answers."""
    for name, (theme, figures) in TEST.items():
        computed = {}
        if answers := stored[name]:
            classes = [str(number) for number in range(answers[0].shape[1])]
            computed = utils.evaluate(*answers, classes, resamples=1)["value"]
        for figure, metric in figures.items():
            said = at(record, theme, "test", metric, "value")
            yield figure, said, f"section {theme}"
            if metric in computed:
                where = f"exports/predictions/{name}.npz"
                yield figure, float(computed[metric]), where


def _counts(record: dict, stored: dict) -> Iterator[str]:
    """The number of test images by a section, and that of the answers stored."""
    for name, (theme, _) in TEST.items():
        said = at(record, theme, "test", "accuracy", "n")
        if stored[name] and is_number(said) and said != len(stored[name][1]):
            there = len(stored[name][1])
            yield f"{theme} was tested on {said} images, and {name}.npz holds {there}"


def _times(record: dict) -> Iterator[tuple]:
    table = rows(at(record, "theme4", "benchmark"))
    headline = at(record, "headline")
    for name, (backend, batch) in SPEEDUPS.items():
        own = [
            row.get("speedup")
            for row in table
            if backend in str(row.get("backend")) and row.get("batch") == batch
        ]
        # a GPU and the CPU have one each
        if own and headline.get(name) not in own:
            yield name, own[0], "the benchmark of section theme4"


def _speedups(record: dict) -> Iterator[str]:
    """Speedups that the medians of the same table contradict, whichever row of its
    batch they are over: those of rounds, and of all calls, differ by less than half.
    """
    table = [
        row
        for row in rows(at(record, "theme4", "benchmark"))
        if is_number(row.get("p50_ms")) and row["p50_ms"] > 0
    ]
    for row in table:
        said, busy = row.get("speedup"), row.get("busy") is True
        ratios = [
            other["p50_ms"] / row["p50_ms"]
            for other in table
            if other.get("batch") == row.get("batch") and other.get("speedup") == 1
        ]
        if not ratios or busy or not is_number(said) or said <= 0:
            continue
        nearest = min(ratios, key=lambda ratio: abs(math.log(ratio / said)))
        if abs(math.log(nearest / said)) > math.log(2):
            name = f"{shown(row.get('backend'))[:40]}, batch {shown(row.get('batch'))}"
            yield f"{name} has a speedup of {said:.3g}, and {nearest:.3g} by its p50_ms"


def _gate(record: dict) -> Iterator[tuple]:
    yield "gate_passed", at(record, "theme7", "gate", "passed"), "section theme7"
    for row in rows(at(record, "theme7", "on_gate")):
        for name, place in ON_GATE.items():
            if (row.get("model"), row.get("images")) == place:
                yield name, row.get("accuracy"), "section theme7"


def _shown(record: dict) -> Iterator[tuple]:
    for theme, row in _all_criteria(record):
        for name, criterion in CRITERIA.items():
            if row.get("name") == criterion:
                yield name, row.get("value"), f"the criteria of {theme}"


def _all_criteria(record: dict) -> Iterator[tuple[str, dict]]:
    criteria = at(record, "criteria")
    for theme, table in criteria.items() if isinstance(criteria, dict) else ():
        for row in rows(table):
            yield shown(theme)[:10], row


def _failed_checks(record: dict) -> Iterator[str]:
    passed = [row.get("passed") for row in rows(at(record, "theme7", "gate", "checks"))]
    if at(record, "theme7", "gate", "passed") is True and False in passed:
        failed = f"{passed.count(False)} of its {len(passed)} checks failed"
        yield f"the gate of theme7 passed, with {failed}"


def _unmet_criteria(record: dict) -> Iterator[str]:
    """Criteria whose verdict their own value and target contradict."""
    for theme, row in _all_criteria(record):
        met = _met(row.get("value"), row.get("target"))
        if str(row.get("name")).endswith(BUSY_LABEL):
            met = False  # a time of a busy machine meets nothing
        if met is not None and met != row.get("passed"):
            name, value, target, passed = (
                shown(row.get(key))[:50]
                for key in ("name", "value", "target", "passed")
            )
            says = f"criterion {name} of {theme}: {value}, target {target}, passed ="
            yield f"{says} {passed}"


def _met(value, target) -> bool | None:
    """Whether a value meets a target such as "> 0.7"; None where that cannot be told,
    or a rounded target is near.
    """
    parts = re.fullmatch(r"(\S+) (\S+)", target) if isinstance(target, str) else None
    if not parts or parts[1] not in record.COMPARE:
        return None
    try:
        goal = float(parts[2])
    except ValueError:  # True, or the name of a provider
        known = isinstance(value, (bool, str)) and parts[1] == "=="
        return str(value) == parts[2] if known else None
    if not is_number(value) or 0 < abs(value - goal) <= 1e-3 * abs(goal):
        return None
    return bool(record.COMPARE[parts[1]](value, goal))


def _answers(look, name: str):
    """Stored probabilities and labels, or None where the file is none."""
    try:
        content = look.read(f"exports/predictions/{name}.npz")
        return load_answers(io.BytesIO(content))
    except (SubmissionError, ValueError):
        return None


def _without_answers(stored: dict, headline: dict) -> Iterator[Finding]:
    """Figures that nothing here can be held against."""
    lacking = [name for name, answers in stored.items() if answers is None]
    names = [figure for name in lacking for figure in TEST[name][1]]
    names = [figure for figure in names if figure in headline]
    if names:
        says = (
            f"Without whole exports/predictions/ of {' and '.join(lacking)} nothing"
            f" shows {', '.join(names)}: look at level evaluate, or run it again."
        )
        yield CHECK.human(says, "exports/predictions")
