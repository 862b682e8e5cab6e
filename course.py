"""Command line of the course kit: run the themes, check a submission, print the report, pack the hand-in."""

import sys

from tools import check, pack, report, run

COMMANDS = {"run": run.main, "check": check.main, "report": report.main, "pack": pack.main}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        print(f"usage: python course.py {{{','.join(COMMANDS)}}} [options]   (COMMAND --help lists its options)")
        return 2
    return COMMANDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
