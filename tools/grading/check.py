"""Evidence on a submission, for graders and for students before they hand in. Never a
grade.

Levels: static runs nothing of it (seconds, and safe); evaluate scores the submitted
weights again, with this kit; full runs the notebooks from nothing, and once more on
another seed. Foreign code needs bubblewrap to be closed in: the report says whether it
was.

Exit status: 0 nothing contradicts the submission, 1 something does, 2 it could not be
opened or the command line is wrong, 3 the check itself failed, which says nothing of
the submission, 130 Ctrl-C.

A class, the report and what it means: docs/grading.md.
"""

import argparse
import os
import sys
from pathlib import Path

from tools.shared import options as shared

LEVELS = ("static", "evaluate", "full")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = shared.parser("check", __doc__)
    add = parser.add_argument
    add("path", nargs="?", type=Path, help="a project folder, or the zip of `pack`")
    add("--level", choices=LEVELS, default="static", help="default: static")
    source = "folder above chest_xray/ or solar_panels/, for real images"
    add("--source", type=Path, help=source)
    themes = {"type": int, "choices": range(1, 9), "default": 8, "metavar": "N"}
    add("--until", **themes, help="last theme to run")
    limit = {"type": float, "default": 900, "metavar": "SECONDS"}
    add("--notebook-limit", **limit, help="default: 900")
    shared.add_output(parser, "folder of the reports (default: check-<name>/, here)")
    seed = "at level full, run again on another seed (default: yes)"
    switch = argparse.BooleanOptionalAction
    add("--another-seed", action=switch, default=True, help=seed)
    add("--all", type=Path, metavar="DIR", help="check every folder and zip in DIR")
    several = "so many at a time, on Dask (default: what this machine holds)"
    shared.add_jobs(parser, f"with --all: {several}")
    scheduler = "with --all: the workers of this Dask scheduler (tcp://…)"
    add("--scheduler", metavar="ADDRESS", help=scheduler)
    missing = "with --all: only what has no report of this level, or has changed since"
    add("--missing", action="store_true", help=missing)
    options = parser.parse_args(arguments)
    if wrong := _wrong(options):
        parser.error(wrong)
    options.source = options.source.resolve() if options.source else None
    return options


def _wrong(options: argparse.Namespace) -> str:
    """What is wrong with options that are right one by one; empty if nothing is."""
    if (options.path is None) == (options.all is None):
        return "give one submission, or --all DIR"
    if options.path and (options.jobs or options.scheduler or options.missing):
        return "--jobs, --scheduler and --missing are for a class: give --all"
    if options.jobs and options.scheduler:
        return "give --jobs or --scheduler: that has workers of its own"
    if min(options.notebook_limit, options.jobs or 1) <= 0:
        return "--notebook-limit and --jobs must be positive"
    if options.source and not options.source.is_dir():
        above = "give the one above chest_xray/ or solar_panels/"
        return f"--source {options.source} is no folder: {above}"
    return ""


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    from tools.grading import klass

    return klass.check_all(options) if options.all else check_one(options)


def check_one(options: argparse.Namespace) -> int:
    from tools.grading import klass, verdict
    from tools.grading.examine import console, examine

    report = examine(options.path, options)
    folder = options.output or Path(f"check-{klass.file_name(report['submission'])}")
    paths = verdict.write(report, folder)
    try:
        print(console(report))
        print(*(f"{path.suffix[1:]:<5}{path}" for path in paths), sep="\n", flush=True)
    except BrokenPipeError:  # such as `| head`: the reports are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return report["status"]
