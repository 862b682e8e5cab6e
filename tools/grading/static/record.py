"""Record: exports/results.json is complete, and its figures are figures."""

import math
from collections.abc import Iterator

from kit.record import HEADLINE_TAGS
from tools.grading.consistency import contradictions, rows
from tools.grading.finding import Check, Finding
from tools.grading.static.look import RECORD, Look
from tools.shared.foreign import SubmissionError, shown

CHECK = Check("record", 3)


def record(look: Look) -> Iterator[Finding]:
    if look.submission.record:  # else opening it said why
        found = list(_record(look))
        yield from found
        if not any(finding.verdict == "fail" for finding in found):
            count = len(look.submission.record.get("headline", {}))
            says = f"The record holds {count} headline figures, all of the right kind."
            yield CHECK.passed(says, RECORD)


def _record(look: Look) -> Iterator[Finding]:
    values = look.submission.record
    headline = values.get("headline", {})
    for name, value in headline.items():
        if problem := _odd_figure(name, value):
            says = f"headline {shown(name)} is {shown(value)[:40]}, {problem}: run the"
            yield CHECK.fail(f"{says} theme that records it again.", RECORD)
    if missing := [name for name in HEADLINE_TAGS if name not in headline]:
        says = f"Headline figures that no theme recorded: {', '.join(missing)}."
        yield CHECK.finding("human" if headline else "fail", says, RECORD)
    without = [
        str(theme)
        for theme in range(1, 9)
        if not isinstance(values.get(f"theme{theme}"), dict)
    ]
    if without:
        says = f"No results of themes {', '.join(without)} are recorded: run their"
        yield Check("record", 1).fail(f"{says} notebooks.", RECORD)
    yield from contradictions(look)
    yield _criteria(values)
    yield from _two_stories(look)


def _odd_figure(name: str, value) -> str | None:
    """What is wrong with a headline figure, or None."""
    if name not in HEADLINE_TAGS:
        return "a figure that the course does not know"
    if name == "provider":
        return None if isinstance(value, str) else "which is no name"
    if name == "gate_passed":
        return None if isinstance(value, bool) else "neither true nor false"
    if type(value) not in (int, float):
        return "which is no number"
    if type(value) is float and not math.isfinite(value):
        return "which is no number"
    if name.endswith(("speedup", "_b1", "_b32")) or name.startswith("train_seconds"):
        return None if value > 0 else "which must be above 0"
    if name in ("onnx_max_abs_diff", "alerts_raised"):
        return None if value >= 0 else "which must not be negative"
    low = -1 if name.endswith("drop") else 0
    return None if low <= value <= 1 else f"outside {low} to 1"


def _criteria(values: dict) -> Finding:
    """What the record says of the course's own criteria: the group's claim, not this
    check's.
    """
    recorded = values.get("criteria")
    recorded = recorded if isinstance(recorded, dict) else {}
    told = [(theme, row) for theme, part in recorded.items() for row in rows(part)]
    if not told:
        says = "No criteria are recorded: run the last cells of the notebooks."
        return Check("record", 2).human(says, RECORD)
    failed = [
        shown(f"{theme}: {row.get('name')}")
        for theme, row in told
        if row.get("passed") is not True
    ]
    says = f"{len(told) - len(failed)} of {len(told)} recorded criteria are met"
    if failed:
        says += f"; not met: {'; '.join(failed[:6])}{'; …' if failed[6:] else ''}"
    return CHECK.note(f"{says}.", RECORD)


def _two_stories(look: Look) -> Iterator[Finding]:
    path, story = "course.json", look.submission.story
    if path not in look.paths:
        return
    try:
        home = look.read_json(path)
    except SubmissionError:
        says = "course.json is damaged: run a notebook again."
        yield Check("record").human(says, path)
        return
    home = home if isinstance(home, dict) else {}
    differ = [key for key in story if home.get(key, story[key]) != story[key]]
    if differ:
        says = f"course.json and the record differ in {', '.join(differ)}: one home"
        yield Check("record").fail(f"{says} holds one story. Run it again.", path)
