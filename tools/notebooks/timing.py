"""Where the time of executed notebooks went, and whether they can be shown live.

    python -m tools.notebooks.timing HOME [HOME ...]

prints a table of the notebooks executed there, in Markdown.

On finished artefacts long work loads, so that an instructor can run any notebook in
front of a class: the limits are those of somebody who stands there and waits.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.shared import text

NOTEBOOK_LIMIT, CELL_LIMIT = 60.0, 10.0  # seconds


@dataclass(frozen=True)
class Cell:
    """One executed code cell: seconds, theme, and the section that it stands in."""

    seconds: float
    theme: int
    section: str


def cells(executed: Path) -> list[Cell]:
    """The code cells of a notebook that papermill executed, with the seconds that each
    took.
    """
    theme, section, found = int(re.match(r"theme(\d)", executed.name)[1]), "start", []
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            for title in re.findall(
                r"^##+ (.+)|^\*\*(Exercise \d)", source, flags=re.MULTILINE
            ):
                section = "".join(title)
        elif (
            seconds := cell["metadata"].get("papermill", {}).get("duration")
        ) is not None:
            found.append(Cell(seconds, theme, section))
    return found


def of_theme(folder: Path, theme: int) -> list[Cell]:
    """The cells of a theme's executed notebook; none where it has not run, or only
    failed.
    """
    return [
        cell
        for path in folder.glob(f"theme{theme}_*.ipynb")
        if not path.stem.endswith(".failed")
        for cell in cells(path)
    ]


def report(folder: Path, seconds: dict[int, float], slowest: int = 5) -> list[str]:
    """Lines for the end of a run: its slowest cells, and the verdict on showing these
    notebooks live.

    Parameters
    ----------
    folder : Path
        Holds the executed notebooks.
    seconds : dict of int to float
        What each theme took in this run, start of the kernel included.
    """
    timed = {theme: of_theme(folder, theme) for theme in seconds}
    ranked = sorted(
        (cell for own in timed.values() for cell in own), key=lambda cell: -cell.seconds
    )
    lines = ["", "slowest cells:"]
    for cell in ranked[:slowest]:
        took = text.duration(cell.seconds)
        lines.append(f"  {took:>8}  theme {cell.theme}, {cell.section}")
    slow = [str(n) for n, own in timed.items() if not live(seconds[n], own)]
    limits = f"below {NOTEBOOK_LIMIT:g} s each and no cell above {CELL_LIMIT:g} s"
    if not slow:
        return [*lines, f"fit to be shown live: all {len(timed)} notebooks ({limits})"]
    return [
        *lines,
        "not fit to be shown live as they ran just now: theme"
        f" {', '.join(slow)} (fit is {limits});",
        "run again: finished work loads, labelled with its date",
    ]


def live(seconds: float, timed: list[Cell]) -> bool:
    """Whether a notebook that took so long keeps nobody waiting."""
    return seconds < NOTEBOOK_LIMIT and all(
        cell.seconds <= CELL_LIMIT for cell in timed
    )


def table(homes: list[Path]) -> str:
    """Markdown: one row a theme, for each home the seconds of all cells and the slowest
    of them.
    """
    heads = "".join(f" {home.name}, all cells | slowest cell |" for home in homes)
    lines = [f"| theme |{heads}", "|---|" + "---|---|" * len(homes)]
    for theme in range(1, 9):
        row = f"| {theme} |"
        for home in homes:
            timed = of_theme(home / "exports" / "notebooks", theme)
            if not timed:
                row += " not run | |"
                continue
            top = max(timed, key=lambda cell: cell.seconds)
            total = sum(cell.seconds for cell in timed)
            row += f" {total:.0f} s | {top.seconds:.1f} s: {top.section} |"
        lines.append(row)
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([Path(home) for home in sys.argv[1:]]))
