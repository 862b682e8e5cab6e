"""The commands of `python course.py`: what they are called, and how they end.

A command's room is loaded when it is called. Results go to stdout, progress and errors
to stderr. Exit status: 0 done, 1 findings or a failed run, 2 usage, 3 an error of the
kit itself, 130 Ctrl-C.
"""

import io
import sys
import traceback
from importlib import import_module

VERSION = "2.0"
# Command: the module that has its main(arguments) -> status, and what it does.
COMMANDS = {
    "run": ("tools.notebooks.run", "execute the eight notebooks in order"),
    "train": ("tools.scale.train", "one training, alone or on several processes"),
    "search": ("tools.scale.search", "one more worker for the search of theme 3"),
    "report": ("tools.report.command", "what is written so far, as a PDF"),
    "pack": ("tools.handin.command", "the hand-in as one zip"),
    "check": ("tools.grading.check", "evidence on a hand-in; repeats its figures"),
    "publish": ("tools.colab.publish", "put a repository into the Colab badges"),
    "site": ("tools.web.build", "a finished run as web pages"),
    "compact": ("tools.scale.logs", "a production log into daily Parquet files"),
    "demo": ("demo.__main__", "the model in service as a web page"),
    "exercises": ("exercises.__main__", "all exercises with their hints"),
}


def usage() -> str:
    return "\n".join(
        [
            "usage: python course.py COMMAND [options]",
            "",
            *(f"  {name:<10} {told}" for name, (_, told) in COMMANDS.items()),
            "",
            "python course.py COMMAND --help lists the options of a command.",
        ]
    )


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        # of Windows, into a file: ✓ becomes \N{CHECK MARK}, and the work is not lost
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="namereplace")
    command, *rest = arguments or [""]
    if command == "help" and rest:
        command, rest = rest[0], ["--help"]
    if command in ("-h", "--help", "help"):
        print(usage())
        return 0
    if command == "--version":
        print(f"course kit {VERSION}")
        return 0
    if command not in COMMANDS:
        said = f"There is no command {command!r}.\n\n" if command else ""
        print(said + usage(), file=sys.stderr)
        return 2
    try:
        return import_module(COMMANDS[command][0]).main(rest)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except Exception as error:
        return explain(error)


def explain(error: Exception) -> int:
    """Say what went wrong, a fault of the user in its sentence; returns the status."""
    # by name: importing utils for its class would fail where torch is what is missing
    if any(kind.__name__ == "CourseError" for kind in type(error).__mro__):
        print(error, file=sys.stderr)
        return 2
    traceback.print_exception(error)
    print(
        "This is an error of the course kit: please report these lines.",
        file=sys.stderr,
    )
    return 3
