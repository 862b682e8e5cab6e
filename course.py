"""Command line of the course kit.

run     executes the eight notebooks in order       report  prints what is written so
far as a PDF train   one training, alone or under torchrun
pack    makes the hand-in, as one zip               check   looks for evidence in a
hand-in, and repeats its figures publish stamps a GitHub repository into the Colab
badges and bootstrap cells
site    builds the executed notebooks of finished runs into a browsable site
search  joins the search of theme 3 with one more process
compact takes what is new in a production log into Parquet
"""

import sys
from importlib import import_module

# Where each command lives below tools/.
COMMANDS = {
    "run": "notebooks.run",
    "train": "scale.train",
    "search": "scale.search",
    "report": "report.build",
    "pack": "handin.pack",
    "check": "grading.check",
    "publish": "colab.publish",
    "site": "web.build",
    "compact": "scale.compact",
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        print(
            f"usage: python course.py {{{','.join(COMMANDS)}}} [options]   (COMMAND"
            " --help lists its options)\n"
        )
        print(__doc__.split("\n", 2)[2].strip())
        return 2
    # loads only what the command needs
    return import_module(f"tools.{COMMANDS[arguments[0]]}").main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
