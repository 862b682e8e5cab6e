"""Pack the hand-in as one zip, secrets and pixel data left out, and check it.

Ends with 0 when the zip was made, whatever the checks found; with 1 under --strict when
something must be corrected.
"""

import sys
from pathlib import Path

from tools.shared import options as shared


def main(arguments: list[str]) -> int:
    parser = shared.parser("pack", __doc__)
    shared.add_home(parser)
    project = "folder of notebooks and code (default: the kit)"
    parser.add_argument("--project", type=Path, default=shared.KIT, help=project)
    shared.add_output(parser, "the zip (default: hand-in-<dataset>.zip in the home)")
    strict = "end with 1 when something must be corrected"
    parser.add_argument("--strict", action="store_true", help=strict)
    options = parser.parse_args(arguments)
    from tools.handin import pack

    home = shared.home(options.home, options.project)
    path, findings = pack.build(options.project, home, options.output)
    print(pack.summary(path, findings))
    wrong = sum(finding.verdict == "fail" for finding in findings)
    if wrong:
        print(f"\nNOT READY TO HAND IN: {wrong} ✗ to correct.", file=sys.stderr)
    return 1 if wrong and options.strict else 0
