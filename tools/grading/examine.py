"""One submission, level by level: what each finds, and the report that holds it all."""

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import utils
from tools.grading import compare, copies, parts, reexecute, sandbox, static, verdict
from tools.grading.finding import Check, Finding
from tools.grading.submission import Submission, list_files, open_submission
from tools.grading.workplace import workplace
from tools.shared.foreign import SubmissionError, shown

OPENING = 300  # seconds: a hand-in may hold gigabytes of images
SCORING = 4  # scoring all weights may take as long as so many notebooks


@dataclass
class Seen:
    """What the levels find, collected on the way."""

    findings: list[Finding]
    notes: list[str] = field(default_factory=list)
    tables: dict = field(default_factory=dict)
    same: dict = field(default_factory=dict)
    differences: dict = field(default_factory=dict)
    runs: list[dict] = field(default_factory=list)
    scored: dict = field(default_factory=dict)  # figures of the submitted weights


def examine(path: Path, options: argparse.Namespace) -> dict:
    """Check one submission; the report as check.json holds it.

    Raises
    ------
    SubmissionError
        It cannot be opened.
    """
    began, before = time.monotonic(), fingerprint(path)
    with workplace() as work:
        submission = _opened(path, work / "opened")
        seen = Seen(list(static.checks(submission)))
        level = _possible(submission, options, seen)
        if level != "static":
            _guarded(_evaluate, submission, options, work, seen)
        if level == "full":
            _guarded(_full, submission, options, work, seen)
        if fingerprint(path) != before:
            says = "Files of the submission changed while it was checked: restore it,"
            says += " then look at what its code does."
            seen.findings.append(Check("containment", 0).fail(says, shown(path)))
        return _report(submission, level, options, seen, time.monotonic() - began)


def _opened(path: Path, work: Path) -> Submission:
    """`open_submission`, within limits."""

    def opening() -> Iterator[dict]:
        try:
            opened = open_submission(path, work)
        except SubmissionError as error:
            yield {"refused": str(error)}
        else:
            found = [asdict(finding) for finding in opened.findings]
            names = [str(path) for path in opened.files]
            yield vars(opened) | {
                "root": str(opened.root),
                "files": names,
                "findings": found,
            }

    ((_, found, why),) = parts.each({"opening": opening}, OPENING)
    if why:
        says = f"{shown(path)} could not be opened ({why}): ask for the zip that"
        raise SubmissionError(f"{says} `python course.py pack` makes.")
    values = found[0]
    if "refused" in values:
        raise SubmissionError(values["refused"])
    values["root"] = Path(values["root"])
    values["files"] = [Path(name) for name in values["files"]]
    values["findings"] = [Finding(**row) for row in values["findings"]]
    return Submission(**values)


def _possible(submission: Submission, options, seen: Seen) -> str:
    """The level that this submission allows, and a finding when it is not the one asked
    for.
    """
    if options.level == "static":
        return "static"
    story = submission.story
    asked = ("dataset", "source", "profile", "image_size", "seed")
    lacking = [key for key in asked if key not in story]
    if lacking:
        why = f"its record does not say {', '.join(lacking)}: ask for the results"
    elif reexecute.source_of(submission, options.source) is None:
        folder = utils.DATASETS[story["dataset"]].folder
        why = f"it was measured on images of source {shown(story['source'])}: give"
        why += f" --source, the folder above {folder}/"
    else:
        return options.level
    says = f"Level {options.level} is not possible, so nothing was run: {why}."
    verdict = "fail" if lacking else "human"
    where = "exports/results.json"
    seen.findings.append(Check("level", 0).finding(verdict, says, where))
    return "static"


def _guarded(step, submission: Submission, options, work: Path, seen: Seen) -> None:
    """Run a level; what it stumbles over is a finding, as foreign results may have any
    shape.
    """
    what = "The run" if step is _full else "The scoring"
    try:
        step(submission, options, work, seen)
        return
    except (utils.CourseError, OSError) as error:  # such as a disk that is full here
        says = f"{what} stopped half-way: {shown(error)}"
    except Exception as error:  # whatever foreign results bring about
        why = shown(repr(error)[:200])
        says = f"{what} stopped at results of a strange shape ({why}): look at them."
    seen.findings.append(Check("check", 0).fail(says))


def _evaluate(submission: Submission, options, work: Path, seen: Seen) -> None:
    source = reexecute.source_of(submission, options.source)
    limit = SCORING * options.notebook_limit
    scores, findings = reexecute.score(
        submission, source, work / "evaluate", options.until, limit
    )
    seen.findings += findings
    missing = {
        compare.figure_of(name).theme: f"{part} could not be scored"
        for name, part in reexecute.SCORED.items()
    }
    known = _headline(submission).keys() | scores["headline"].keys()
    names = [name for name in _until(options.until, reexecute.SCORED) if name in known]
    _tabulate(submission, seen, "weights", names, scores["headline"], scores, missing)
    seen.scored = scores["headline"]
    answers = scores.get("predictions", {})
    seen.findings += compare.without_answers(seen.tables["weights"], answers)
    if own := reexecute.own_networks(submission):
        says = (
            f"{', '.join(own)} {'is' if len(own) == 1 else 'are'} not the kit's and ran"
            " inside the scoring, where code can change the scores: read it before you"
            " trust the table of the weights."
        )
        seen.findings.append(Check("weights").human(says, own[0]))
    seen.notes.append(f"Scoring the submitted weights took {scores['seconds']:.1f} s.")


def _until(last: int, names) -> list[str]:
    """The figures of themes 1..last."""
    return [name for name in names if compare.figure_of(name).theme <= last]


def _full(submission: Submission, options, work: Path, seen: Seen) -> None:
    source = reexecute.source_of(submission, options.source)
    if reexecute.own_networks(submission):
        limit = SCORING * options.notebook_limit
        seen.findings += reexecute.score_with_the_kit(
            submission, source, work / "with-the-kit", options.until, limit, seen.scored
        )
    run = reexecute.rerun(
        submission, source, work / "full", options.until, options.notebook_limit
    )
    _note_run(seen, "run from nothing", run)
    seen.findings += reexecute.findings_of(run)
    ours, meta = run.record.get("headline", {}), run.record.get("meta", {})
    names = _until(options.until, compare.TOLERANCES)
    _tabulate(submission, seen, "re-execution", names, ours, meta, run.missing)
    if options.another_seed:
        _guarded(_other_seeds, submission, options, work, seen)
    theirs = _headline(submission)
    if skipped := theirs.keys() - set(_until(options.until, theirs)):
        names = ", ".join(map(shown, sorted(skipped)))
        says = f"Themes above {options.until} were not run: {names} are unchecked."
        seen.notes.append(says)


def _tabulate(
    submission: Submission, seen: Seen, by: str, names, ours, machine, missing
) -> None:
    differ = compare.differences(
        submission.record, machine.get("hardware"), machine.get("environment") or {}
    )
    seen.differences[by], seen.same[by] = [shown(text) for text in differ], not differ
    images = compare.number_of_images(submission.record)
    seen.tables[by] = compare.compare(
        _headline(submission), ours, names, by, not differ, images, missing
    )
    seen.findings += compare.findings_of(seen.tables[by], not differ)


def _other_seeds(submission: Submission, options, work: Path, seen: Seen) -> None:
    """Run small on other seeds: a figure that must move and stays, twice, is called
    out.
    """
    theirs, check = _headline(submission), Check("hard-coded figures")
    source = reexecute.source_of(submission, options.source)
    still, last = list(theirs), min(options.until, 7)  # theme 8 measures none of them
    for more in (1, 2):
        seed = submission.story["seed"] + more
        run = reexecute.rerun(
            submission,
            source,
            work / f"seed{more}",
            last,
            options.notebook_limit,
            seed=seed,
            profile="smoke",
            image_size=utils.PROFILES["smoke"].image_size,
        )
        _note_run(seen, f"on seed {seed}, profile smoke", run)
        still = compare.unmoved(theirs, run.record.get("headline", {}), still)
        if not still:
            break
        last = max(compare.figure_of(name).theme for name in still)
    for name in still:
        says = (
            f"{name} is {compare.text(theirs[name])} in the record, and to 12 digits"
            " the same on two other seeds: it does not move with the seed. Is it, or"
            " the seed, hard-coded?"
        )
        seen.findings.append(check.fail(says, name))
    if not still and run.record.get("headline"):
        says = "Every figure that must move with the seed did move."
        seen.findings.append(check.passed(says))


def _note_run(seen: Seen, what: str, run: reexecute.Rerun) -> None:
    seconds = round(sum(row["seconds"] for row in run.notebooks), 1)
    seen.runs.append({"what": what, "seconds": seconds, "notebooks": run.notebooks})


def _headline(submission: Submission) -> dict:
    values = submission.record.get("headline")
    return values if isinstance(values, dict) else {}


def fingerprint(path: Path) -> list[tuple]:
    """Names, sizes and times of all files below a path, as far as they are opened."""
    if not path.is_dir():
        return [(path.stat().st_size, path.stat().st_mtime_ns)] if path.exists() else []
    seen = []
    for name in list_files(path)[0]:
        with suppress(OSError):  # gone in between, or not ours to see
            about = os.lstat(path / name)
            seen.append((str(name), about.st_size, about.st_mtime_ns))
    return seen


def _report(
    submission: Submission, level: str, options, seen: Seen, seconds: float
) -> dict:
    tables = _tables(submission, seen)
    # what opening found, the static checks may repeat
    findings = verdict.order_findings(
        dict.fromkeys([*submission.findings, *seen.findings])
    )
    by_verdict = {kind: [] for kind in ("fail", "human", "note", "pass")}
    for finding in findings:
        by_verdict[finding.verdict].append(finding)
    wrong, asked, passed = (by_verdict[kind] for kind in ("fail", "human", "pass"))
    layer = sandbox.best_layer() if level != "static" else ""
    notes = ["Nothing of the submission was run."]
    if layer:
        threads = reexecute.threads_of(submission.record)
        notes = [f"Contained by {sandbox.LAYERS[layer]}."]
        notes.append(f"Threads: {threads}, as in the record.")
    return {
        "schema": 1,
        "submission": submission.name,
        "level": level,
        "asked_level": options.level,
        "status": 1 if wrong else 0,
        "contradicted": bool(wrong),
        "verdict": _verdict(len(wrong), len(asked), level),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(seconds, 1),
        "hardware": utils.hardware(),
        "containment": layer,
        "story": submission.story,
        "notes": notes + seen.notes,
        "findings": [_row(finding) for finding in findings],
        "passes": len(passed),
        "passed_checks": sorted({finding.check for finding in passed}),
        "tables": seen.tables,
        "same": seen.same,
        "differences": seen.differences,
        "runs": seen.runs,
        "criteria": tables["criteria"],
        "bonuses": tables["bonuses"],
        "marks": dict(tables["marks"]),
    }


def _row(finding: Finding) -> dict:
    """A finding as check.json holds it; what grouped it is of no use there."""
    told = asdict(finding)
    return {key: told[key] for key in told if key not in ("kind", "what")}


def _tables(submission: Submission, seen: Seen) -> dict[str, list]:
    """Evidence by the five criteria and on the bonuses, and what would tell a copy; a
    finding where a strange record or file allows none.
    """
    findings = verdict.order_findings([*submission.findings, *seen.findings])

    def criteria() -> list[dict]:
        checklist = verdict.checklist_of(submission)
        return verdict.criteria(submission, findings, checklist)

    def bonuses() -> list[dict]:
        return verdict.bonuses(submission)

    tables = {}
    todo = {"criteria": criteria, "bonuses": bonuses}
    todo["marks"] = lambda: copies.marks(submission)
    for name, tables[name], why in parts.each(todo):
        if why:
            says = f"The evidence on {name} broke off ({why}): look by hand."
            kind = "fail" if name == "criteria" else "human"
            where = "exports/results.json"
            seen.findings.append(Check("record").finding(kind, says, where))
    return tables


def _verdict(wrong: int, asked: int, level: str) -> str:
    if wrong:
        return f"{wrong} finding{'s' if wrong > 1 else ''} to take up with the group"
    seen = {
        "static": "the files",
        "evaluate": "the submitted weights",
        "full": "the re-execution",
    }[level]
    questions = f"{asked} question{'s' if asked > 1 else ''} for a person"
    says = f"Nothing in {seen} contradicts it"
    return f"{says}; {questions}" if asked else says


def console(report: dict, most: int = 12) -> str:
    """A few lines, worst first."""
    lines = [
        f"\n{report['submission']}: {report['verdict']} (level {report['level']},"
        f" {report['seconds']:.0f} s)",
        *report["notes"],
    ]
    left = [row for row in report["findings"] if row["verdict"] != "pass"]
    for row in left[:most]:
        where = f" [{row['where']}]" if row["where"] else ""
        lines.append(f"  {row['verdict']:<6}{row['check']}: {row['says']}{where}")
    if len(left) > most:
        lines.append(f"  … and {len(left) - most} more in the report")
    for by, rows in report["tables"].items():
        counts = Counter(row["verdict"] for row in rows)
        kinds = [kind for kind in reversed(compare.VERDICTS) if counts[kind]]
        told = ", ".join(f"{counts[kind]} {kind}" for kind in kinds)
        lines.append(f"  figures by {by}: {told}")
    return "\n".join([*lines, ""])
