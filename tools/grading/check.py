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
import os
import sys
import traceback
from pathlib import Path

import utils
from tools.grading import klass, verdict
from tools.grading.examine import console, examine

LEVELS = ("static", "evaluate", "full")


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
    several = (
        "with --all: so many at a time, on Dask (default: what this machine holds)"
    )
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help=several)
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="with --all: the workers of this Dask scheduler (tcp://…)",
    )
    parser.add_argument(
        "--missing",
        action="store_true",
        help="with --all: only what has no report of this level, or has changed since",
    )
    options = parser.parse_args(arguments)
    if (options.path is None) == (options.all is None):
        parser.error("give one submission, or --all DIR")
    if options.path and (options.jobs or options.scheduler or options.missing):
        parser.error("--jobs, --scheduler and --missing are for a class: give --all")
    if options.jobs and options.scheduler:
        parser.error("give --jobs or --scheduler: that has workers of its own")
    if min(options.notebook_limit, options.jobs or 1) <= 0:
        parser.error("--notebook-limit and --jobs must be positive")
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
    try:
        return klass.check_all(options) if options.all else check_one(options)
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
    folder = options.output or Path(f"check-{klass.file_name(report['submission'])}")
    paths = verdict.write(report, folder)
    try:
        print(console(report))
        print(*(f"{path.suffix[1:]:<5}{path}" for path in paths), sep="\n", flush=True)
    except BrokenPipeError:  # such as `| head`: the reports are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return report["status"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
