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
import threading
import time
import traceback
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path

import utils
from tools.grading import attempt, cluster, verdict
from tools.grading.examine import SCORING, STRANGE, console, examine
from tools.shared.foreign import shown

LEVELS = ("static", "evaluate", "full")
# beside the folders of the reports of a class
SUMMARY = ("summary.json", "summary.html")
# the last is there once the others are
REPORT = ("check.html", "check.json")
ENDED = {
    2: "Could not be opened",
    attempt.DIED: "Could not be checked",
    attempt.LOST: "Not checked",
}


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
