"""Evidence on a submission, for graders and for students before they hand in. Never a
grade.

Levels: static runs nothing of it (seconds, and safe); evaluate scores the submitted
weights again, with this kit; full runs the notebooks from nothing, and once more on
another seed. Foreign code needs bubblewrap to be closed in: the report says whether it
was.

Exit status: 0 nothing contradicts the submission, 1 something does, 2 it could not be
opened or the command line is wrong, 3 the check itself failed or was stopped.

A class, the report and what it means: docs/grading.md.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path

import utils
from tools.grading import attempt, cluster, compare, reexecute, sandbox, static, verdict
from tools.grading.finding import Check, Finding
from tools.grading.submission import Submission, open_submission
from tools.shared.foreign import shown

LEVELS = ("static", "evaluate", "full")
# beside the folders of the reports of a class
SUMMARY = ("summary.json", "summary.html")
# the last is there once the others are
REPORT = ("check.html", "check.json")
# what odd records end in
STRANGE = (TypeError, KeyError, ValueError, AttributeError, IndexError, OverflowError)
ENDED = {
    2: "Could not be opened",
    attempt.DIED: "Could not be checked",
    attempt.LOST: "Not checked",
}
SCORING = 4  # scoring all weights may take as long as so many notebooks


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="course.py check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        help="a project folder, or the zip of `course.py pack`",
    )
    parser.add_argument(
        "--level", choices=LEVELS, default="static", help="default: static"
    )
    parser.add_argument(
        "--source",
        type=Path,
        help="folder above chest_xray/ or solar_panels/, for real images",
    )
    parser.add_argument(
        "--until",
        type=int,
        default=8,
        choices=range(1, 9),
        metavar="N",
        help="last theme to run",
    )
    parser.add_argument(
        "--notebook-limit",
        type=float,
        default=900,
        metavar="SECONDS",
        help="default: 900",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of the reports (default: check-<name>/, here)",
    )
    parser.add_argument(
        "--another-seed",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="at level full, run again on another seed (default: yes)",
    )
    parser.add_argument(
        "--all", type=Path, metavar="DIR", help="check every folder and zip in DIR"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help=(
            "with --all: so many at a time, on Dask (default: as "
            "many as this machine has room for)"
        ),
    )
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="with --all: on this Dask scheduler (tcp://…)",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=60,
        metavar="SECONDS",
        help="for a worker to come (default: 60)",
    )
    parser.add_argument(
        "--missing",
        action="store_true",
        help=(
            "with --all: only what has no report of this level yet, "
            "or has changed since"
        ),
    )
    # ends when its input closes
    parser.add_argument("--bound", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if (options.path is None) == (options.all is None):
        parser.error("give one submission, or --all DIR")
    # also an empty address, of a variable that is not set
    on_cluster = options.cluster is not None
    if options.path and (options.jobs is not None or on_cluster or options.missing):
        parser.error("--jobs, --cluster and --missing are for a class: give --all DIR")
    if on_cluster and options.jobs is not None:
        parser.error(
            "give --jobs or --cluster: a cluster has as many workers as were started"
        )
    if (
        min(
            options.notebook_limit,
            options.wait,
            1 if options.jobs is None else options.jobs,
        )
        <= 0
    ):
        parser.error("--notebook-limit, --jobs and --wait must be positive")
    if options.source and not options.source.is_dir():
        parser.error(
            f"--source {options.source} is no folder: give the one above chest_xray/ or"
            " solar_panels/"
        )
    options.source = options.source.resolve() if options.source else None
    return options


def main(arguments: list[str]) -> int:
    try:
        options = parse(arguments)
    except SystemExit as ended:  # argparse has said why
        return ended.code or 0
    if options.bound:
        threading.Thread(target=attempt.end_with_parent, daemon=True).start()
    try:
        return check_all(options) if options.all else check_one(options)
    except utils.CourseError as error:
        print(error)
        return 2
    except KeyboardInterrupt:
        print("Stopped by hand. Reports of earlier checks are as they were.")
        return 3
    except Exception:
        traceback.print_exc()
        print(
            "The check itself failed, which says nothing of the submission: please"
            " report the lines above."
        )
        return 3


def check_one(options: argparse.Namespace) -> int:
    report = examine(options.path, options)
    folder = options.output or Path(f"check-{file_name(report['submission'])}")
    paths = verdict.write(report, folder)
    try:
        print(console(report))
        print(*(f"{path.suffix[1:]:<5}{path}" for path in paths), sep="\n", flush=True)
    except BrokenPipeError:  # such as `| head`: the reports are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return report["status"]


def file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:80] or "submission"


# --------------------------------------------------------------------------------------
# One submission
# --------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What the levels find, collected on the way."""

    findings: list[Finding]
    notes: list[str] = field(default_factory=list)
    tables: dict = field(default_factory=dict)
    same: dict = field(default_factory=dict)
    differences: dict = field(default_factory=dict)
    runs: list[dict] = field(default_factory=list)


def examine(path: Path, options: argparse.Namespace) -> dict:
    """Check one submission; the report as check.json holds it.

    Raises
    ------
    SubmissionError
        It cannot be opened.
    """
    began, before = time.monotonic(), fingerprint(path)
    with tempfile.TemporaryDirectory(
        prefix="check-", ignore_cleanup_errors=True
    ) as work:
        work = Path(work)
        submission = open_submission(path, work / "opened")
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
    except STRANGE as error:
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
    """Names, sizes and times of all that is below a path."""
    if not path.is_dir():
        return [(path.stat().st_size, path.stat().st_mtime_ns)] if path.exists() else []
    seen = []
    for folder, below, names in os.walk(path):
        # Python's own, where a group checks the kit that it runs
        below[:] = sorted(set(below) - {"__pycache__"})
        for name in sorted(names):
            with suppress(OSError):  # gone in between, or not ours to see
                about = os.lstat(os.path.join(folder, name))
                seen.append((folder, name, about.st_size, about.st_mtime_ns))
    return seen


def _report(
    submission: Submission, level: str, options, seen: Seen, seconds: float
) -> dict:
    criteria, bonuses = _by_criterion(submission, seen)
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
        "findings": [asdict(finding) for finding in findings],
        "passes": len(passed),
        "passed_checks": sorted({finding.check for finding in passed}),
        "tables": seen.tables,
        "same": seen.same,
        "differences": seen.differences,
        "runs": seen.runs,
        "criteria": criteria,
        "bonuses": bonuses,
    }


def _by_criterion(submission: Submission, seen: Seen) -> tuple[list, list]:
    """Evidence by the five criteria, and on the bonuses; a finding where a strange
    record allows none.
    """
    findings = verdict.order_findings([*submission.findings, *seen.findings])
    try:
        checklist = verdict.checklist_of(submission)
        criteria = verdict.criteria(submission, findings, checklist)
        return criteria, verdict.bonuses(submission)
    except STRANGE as error:
        says = f"The record has a strange shape ({shown(repr(error)[:200])}): no"
        says += " criterion could be filled, look at it."
        seen.findings.append(Check("record").fail(says, "exports/results.json"))
        return [], []


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


# --------------------------------------------------------------------------------------
# A class
# --------------------------------------------------------------------------------------


def check_all(options: argparse.Namespace) -> int:
    """Check every folder and zip in a folder, each in a process of its own, and put a
    table over them.
    """
    began, output = (
        time.monotonic(),
        options.output or Path(f"check-{file_name(options.all.resolve().name)}"),
    )
    if not options.all.is_dir():
        print(f"{options.all} is no folder: give the one that holds the submissions.")
        return 2
    there = sorted(
        path
        for path in options.all.iterdir()
        if not path.name.startswith(".") and path.resolve() != output.resolve()
    )
    if reports := [path for path in there if _holds_reports(path)]:
        print(
            "Left out, as they hold reports:"
            f" {', '.join(shown(path.name) for path in reports)}."
        )
        there = [path for path in there if path not in reports]
    found = [
        path
        for path in there
        if not path.is_symlink() and (path.is_dir() or path.suffix.lower() == ".zip")
    ]
    if not found:
        print(
            f"{options.all} holds no folder and no zip: give the folder that holds the"
            " submissions."
        )
        return 2
    rows, lost = _check_each(_names(found), output, options)
    rows += [
        _row(path, output, 2, "neither a folder nor a zip, ask for one", 0.0)
        for path in there
        if path not in found
    ]
    rows.sort(key=lambda row: (-row["status"], row["submission"]))
    summary = {
        "schema": 1,
        "level": options.level,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(time.monotonic() - began, 1),
        "rows": rows,
    }
    for row in rows:
        print(f"{row['submission']:<28.28} {row['verdict']}")
    print(*verdict.write_summary(summary, output), sep="\n")
    if lost:
        print(f"{lost} The same command with --missing checks the others.")
        return 3
    statuses = {row["status"] for row in rows}
    if wrong := statuses & {1, 3}:
        return max(wrong)
    return 2 if statuses == {2} else 0


def _check_each(
    names: dict[Path, str], output: Path, options: argparse.Namespace
) -> tuple[list[dict], str]:
    """Rows of the summary, and why not all could be checked, if so. Each report is in
    its place once it is whole.
    """
    from tqdm import tqdm

    output, lost = output.resolve(), ""
    kept = {
        path: options.missing and _kept(path, output / name, options.level)
        for path, name in names.items()
    }
    rows = {path: row for path, row in kept.items() if row}
    with _attempts(output) as root:
        jobs = {
            _job(path, name, root, options): path
            for path, name in names.items()
            if path not in rows
        }
        options.jobs = _at_a_time(options, len(jobs))
        with _engine(names, root, options) if jobs else nullcontext(list) as outcomes:
            try:
                rows |= _drop_reports(jobs, output)
                jobs = {job: path for job, path in jobs.items() if path not in rows}
                for job, outcome in tqdm(
                    outcomes(jobs),
                    total=len(jobs),
                    unit="submission",
                    disable=not jobs,
                    file=sys.stdout,
                ):
                    rows[jobs[job]] = _put(jobs[job], root, output / job.name, outcome)
            except cluster.LostError as error:
                lost = str(error)
            except KeyboardInterrupt:
                lost = "Stopped by hand."
    left = [path for path in names if path not in rows]
    return [
        *rows.values(),
        *(
            _row(path, output, attempt.LOST, "the class was stopped", 0.0)
            for path in left
        ),
    ], lost


def _at_a_time(options: argparse.Namespace, submissions: int) -> int:
    """How many are checked at once on this machine, where nobody said: notebooks take
    two threads, as on Colab.
    """
    if options.jobs is not None or options.cluster is not None:
        return options.jobs or 1
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )
    if options.level != "static":
        cores = 1 if utils.torch.cuda.is_available() else cores // 2
    jobs = max(1, min(cores, submissions))
    if jobs > 1 and not cluster.is_installed():
        print(
            f"One submission after the other: Dask, with which {jobs} are checked at a"
            " time, is not installed (run `make scale`, then use"
            " .venv-scale/bin/python in the place of python)."
        )
        return 1
    return jobs


@contextmanager
def _engine(names: dict[Path, str], root: Path, options: argparse.Namespace):
    """A function that checks jobs: one after the other here, or on the workers of a
    cluster.
    """
    if options.jobs == 1 and options.cluster is None:
        yield lambda jobs: ((job, attempt.attempt(job)) for job in jobs)
        return
    shared = attempt.Shared(
        cluster.packages(),
        str(options.all.resolve()),
        tuple(sorted(path.name for path in names)),
        str(options.source or ""),
        str(root),
    )
    with cluster.workers(shared, options) as outcomes:
        yield outcomes


@contextmanager
def _attempts(output: Path):
    """A folder for the reports of attempts; when it goes, whoever is still at work for
    it stops.

    One that is left by a killed process goes with the next report, as all that
    `utils.atomic` knows to be left over."""
    root = output / f".attempts.{utils.HOST}-{os.getpid()}.tmp"
    with utils.clear_disk_errors(root):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _job(path: Path, name: str, root: Path, options: argparse.Namespace) -> attempt.Job:
    arguments = [
        str(path.resolve()),
        "--level",
        options.level,
        "--until",
        str(options.until),
        "--notebook-limit",
        str(options.notebook_limit),
        "--another-seed" if options.another_seed else "--no-another-seed",
    ]
    arguments += ["--source", str(options.source)] if options.source else []
    notebooks = {"static": 0, "evaluate": SCORING, "full": SCORING + 3 * 8}[
        options.level
    ]
    environment = tuple(
        (variable, os.environ.get(variable)) for variable in attempt.CHOSEN_HERE
    )
    return attempt.Job(
        name,
        tuple(arguments),
        str(root),
        600 + notebooks * options.notebook_limit,
        environment,
    )


def _drop_reports(jobs: dict[attempt.Job, Path], output: Path) -> dict[Path, dict]:
    """Remove the reports of what is checked anew: none may pass for a new one, also
    where the class is stopped.

    Returns
    -------
    dict
        Rows of those that cannot get a report, such as where a file stands in the place
        of its folder.
    """
    rows = {}
    for job, path in jobs.items():
        folder = output / job.name
        try:
            for name in REPORT:
                (folder / name).unlink(missing_ok=True)
        except OSError as error:
            rows[path] = _row(
                path, folder, attempt.FAILED, _no_place(folder, error), 0.0
            )
    return rows


def _put(path: Path, root: Path, folder: Path, outcome: attempt.Outcome) -> dict:
    """Put the report of an attempt, if it made one, in its place, check.json last; its
    row.
    """
    made, rc, said = root / outcome.folder, outcome.rc, outcome.said
    try:
        if rc in (0, 1) and (made / "check.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            for name in REPORT:
                os.replace(made / name, folder / name)
    except OSError as error:
        rc, said = attempt.FAILED, _no_place(folder, error)
    return _row(path, folder, rc, said, outcome.seconds)


def _no_place(folder: Path, error: OSError) -> str:
    return (
        f"its report cannot be put into {folder} ({error.strerror}): move away what is"
        " there, or give --output"
    )


def _names(paths: list[Path]) -> dict[Path, str]:
    """A folder name for each report, the same as the class grows wherever that is
    possible.

    Folders keep their names; a zip whose name is taken keeps its ending; others are
    numbered until one is free."""
    names, taken = {}, set(SUMMARY)
    order = {
        path: (file_name(path.name) != path.name, path.suffix.lower() == ".zip")
        for path in paths
    }
    for path in sorted(paths, key=order.get):
        wanted = (file_name(path.name.removesuffix(".zip")), file_name(path.name))
        more = (f"{wanted[1]}-{number}" for number in count(2))
        names[path] = next(name for name in chain(wanted, more) if name not in taken)
        taken.add(names[path])
    return {path: names[path] for path in paths}


def _holds_reports(folder: Path) -> bool:
    """Whether this is the output of a check, as it is called by default."""
    return folder.name.startswith("check-") and any(
        (folder / name).is_file() for name in ("check.json", SUMMARY[0])
    )


def _kept(path: Path, folder: Path, level: str) -> dict | None:
    """The row of a report of this level, written after the last change of the
    submission; None without one.
    """
    try:
        written = (folder / "check.json").stat().st_mtime
        report = json.loads((folder / "check.json").read_text())
        below = [path, *path.rglob("*")] if path.is_dir() else [path]
        # What a zip brings keeps the times of its owner's machine: that of the last
        # change of an entry is of this one.
        last = max(entry.lstat().st_ctime for entry in below)
        whole = (
            report["schema"] == 1
            and report["level"] == level
            and report["status"] in (0, 1)
        )
        return (
            _row_of(report, path, folder, report["seconds"])
            if whole and last <= written
            else None
        )
    except (OSError, *STRANGE):  # none, or no report
        return None


def _row(path: Path, folder: Path, rc: int, said: str, seconds: float) -> dict:
    """One line of the summary; its status is 3 where the submission was not checked."""
    if rc in (0, 1):
        with suppress(OSError, ValueError):  # an attempt without a report is a fault
            return _row_of(
                json.loads((folder / "check.json").read_text()), path, folder, seconds
            )
    what = ENDED.get(rc, "The check itself failed")
    return {
        "submission": shown(path.name),
        "seconds": round(seconds, 1),
        "report": "",
        "status": 2 if rc == 2 else 3,
        "verdict": f"{what}: {shown(said)}",
        "level": "none",
        "identical": 0,
        "within": 0,
        "differ": 0,
        "unknown": 0,
        "fail": 0,
        "human": 0,
    }


def _row_of(report: dict, path: Path, folder: Path, seconds: float) -> dict:
    figures = [row["verdict"] for rows in report["tables"].values() for row in rows]
    kinds = [finding["verdict"] for finding in report["findings"]]
    return {
        "submission": shown(path.name),
        "seconds": round(seconds, 1),
        "report": f"{folder.name}/check.html",
        "status": report["status"],
        "verdict": report["verdict"],
        "level": report["level"],
        "identical": figures.count("identical"),
        "within": figures.count("within tolerance"),
        "differ": figures.count("differs"),
        "unknown": figures.count("not reproduced"),
        "fail": kinds.count("fail"),
        "human": kinds.count("human"),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
