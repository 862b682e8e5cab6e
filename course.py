"""Command line of the course kit: `python course.py --help`."""

import sys

from tools.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
