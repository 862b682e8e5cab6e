"""Options that several commands have, each called the same everywhere."""

import argparse
import os
import sys
from pathlib import Path

KIT = Path(__file__).resolve().parents[2]
DATASETS = ("pneumonia", "pneumonia3", "solar")
PROFILES = ("auto", "smoke", "quick", "full")


def parser(command: str, text: str) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of its module."""
    return argparse.ArgumentParser(
        prog=f"course.py {command}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_home(parser: argparse.ArgumentParser) -> None:
    told = "folder of all artefacts (default: COURSE_HOME, else the newest run here)"
    parser.add_argument("--home", type=Path, help=told)


def home(given: Path | None, kit: Path = KIT) -> Path:
    """The home that is meant: the option, else COURSE_HOME, else the newest run here.

    Here are sample-run* and the kit itself. What nobody typed is said on stderr.
    """
    if given:
        return given.expanduser().resolve()
    if named := os.environ.get("COURSE_HOME"):
        chosen, why = Path(named).expanduser().resolve(), "COURSE_HOME"
    else:
        runs = [
            (record.stat().st_mtime, folder)
            for folder in (kit, *kit.glob("sample-run*"))
            if (record := folder / "exports" / "results.json").is_file()
        ]
        chosen, why = (
            (max(runs)[1], "the newest run here") if runs else (kit, "no run is here")
        )
    print(f"home: {chosen} ({why}; --home names another)", file=sys.stderr)
    return chosen


def add_story(parser: argparse.ArgumentParser) -> None:
    """What one home holds: dataset, source, profile, image size and seed."""
    parser.add_argument(
        "--dataset",
        choices=DATASETS,
        default=DATASETS[0],
        help="default: %(default)s",
    )
    source = "auto, kaggle, sample, or the folder above the dataset's own"
    parser.add_argument("--source", default="auto", help=f"{source} (default: auto)")
    parser.add_argument(
        "--profile", choices=PROFILES, default="auto", help="default: %(default)s"
    )
    size = "side in pixels, at least 32 (default: the profile's)"
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help=size)
    parser.add_argument("--seed", type=int, default=42, help="default: %(default)s")


def add_jobs(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-j", "--jobs", type=int, metavar="N", help=what)


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--output", type=Path, metavar="PATH", help=what)
