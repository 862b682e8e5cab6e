"""Execute one notebook of a submission, inside the sandbox: `python -P rerun.py KIT
PROJECT NOTEBOOK PARAMETERS`.

The kit's own runner does it, the copy of the submission is what runs: its utils.py, its
notebook, its folder as home.
"""

import json
import os
import sys
from pathlib import Path


def main(kit: str, project: str, name: str, parameters: str) -> int:
    sys.path.insert(0, kit)
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError

    from tools.notebooks import run

    copy = Path(project)
    folder = copy / "exports" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    _shell_lines()
    try:
        run.execute(copy / name, json.loads(parameters), folder, kit=copy)
    except PapermillExecutionError as error:
        first = error.source.strip().splitlines() or [""]
        print(
            f"cell {error.cell_index} ({first[0][:80]}): {error.ename}:"
            f" {error.evalue.strip()}"
        )
        return 1
    except DeadKernelError:
        print("the kernel died, most often because memory ran out")
        return 1
    except Exception as error:  # not a notebook, no kernel: whatever was handed in
        print(f"{type(error).__name__}: {error}")
        return 1
    return 0


def _shell_lines() -> None:
    """IPython gives each `!` line a terminal; where none can be opened, a pipe."""
    try:
        for end in os.openpty():
            os.close(end)
    except OSError:
        line = "get_ipython().system = get_ipython().system_raw"
        profile = Path.home() / ".ipython" / "profile_default"
        profile.mkdir(parents=True, exist_ok=True)
        settings = profile / "ipython_kernel_config.py"
        settings.write_text(f"c.InteractiveShellApp.exec_lines = [{line!r}]\n")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
