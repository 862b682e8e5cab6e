"""Notebooks and modules of strangers, read as text and as syntax trees: nothing in them
is run or imported.
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from tools.shared.foreign import MIB, SubmissionError, read_json, shown

MAX_NOTEBOOK = 32 * MIB
# Beyond it a cell holds data, not code. IPython reads the whole cell again for each of
# up to 500 magics.
MAX_CELL, MAX_LINES = 100_000, 1000  # characters; lines that are not plain Python
INJECTED = "injected-parameters"
# What Python's parser raises on text that is no Python, or is nested too deep for it.
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Cell:
    """One cell; `number` counts all cells of the file from 1, as a reader does."""

    number: int
    kind: str
    source: str
    count: int | None
    outputs: list[dict]
    tags: list[str]


@dataclass(frozen=True)
class Notebook:
    path: Path
    cells: list[Cell]

    @property
    def code(self) -> list[Cell]:
        """Code cells that are not empty: those that a kernel counts."""
        return [
            cell for cell in self.cells if cell.kind == "code" and cell.source.strip()
        ]


@dataclass(frozen=True)
class Source:
    """A parsed piece of Python: a module, or a cell (`cell` is its number)."""

    path: Path
    cell: Cell | None
    tree: ast.Module
    nodes: list[ast.AST]

    def where(self, node: ast.AST | None = None) -> str:
        line = f", line {node.lineno}" if node is not None else ""
        cell = f", cell {self.cell.number}" if self.cell else ""
        return f"{shown(self.path)}{cell}{line}"


def read_notebook(root: Path, path: Path) -> Notebook:
    """A notebook as it stands, whatever a foreign file holds.

    Raises
    ------
    SubmissionError
        Too large, no JSON, or no notebook of format 4.
    """
    content = read_json(root, path, MAX_NOTEBOOK)
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise SubmissionError(
            "This is not a notebook of format 4: open it in Jupyter and save it again."
        )
    return Notebook(path, [_cell(number, cell) for number, cell in enumerate(cells, 1)])


def _cell(number: int, cell: dict) -> Cell:
    count, about = cell.get("execution_count"), cell.get("metadata")
    outputs = cell.get("outputs")
    outputs = outputs if isinstance(outputs, list) else []
    tags = about.get("tags") if isinstance(about, dict) else None
    tags, source = tags if isinstance(tags, list) else [], _joined(cell.get("source"))
    if INJECTED in tags and not _only_parameters(source):
        tags = [tag for tag in tags if tag != INJECTED]
    return Cell(
        number,
        str(cell.get("cell_type")),
        source,
        count if type(count) is int else None,
        [output for output in outputs if isinstance(output, dict)],
        tags,
    )


def _only_parameters(source: str) -> bool:
    """Whether a cell gives plain values to names and does nothing else, as the one that
    a runner puts in: whatever else calls itself so is code of the group.
    """
    if len(source) > MAX_CELL:
        return False
    try:
        for part in ast.parse(source).body:
            ast.literal_eval(part.value)
            if not isinstance(part, ast.Assign) or not part.targets[0].id.isupper():
                return False
    except (*NOT_PYTHON, AttributeError):  # no value, or given to no name
        return False
    return True


def _joined(text) -> str:
    """Text of a notebook: one string, or a list of lines."""
    if isinstance(text, list):
        return "".join(map(str, text))
    return text if isinstance(text, str) else ""


def output_text(cell: Cell) -> str:
    """What a reader sees below a cell, less the pictures."""
    parts = []
    for output in cell.outputs:
        data = output.get("data") if isinstance(output.get("data"), dict) else {}
        parts += [output.get("text"), output.get("evalue"), output.get("traceback")]
        parts += [text for kind, text in data.items() if str(kind).startswith("text/")]
    return re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", "\n".join(map(_joined, parts)))


def parse_cell(source: str) -> ast.Module:
    """Python of a cell; magics and shell lines become calls of get_ipython(), as
    IPython itself reads them.
    """
    if len(source) > MAX_CELL:
        raise ValueError("it is longer than a cell of code")
    try:
        return ast.parse(source)
    except SyntaxError:
        if source.count("\n") > MAX_LINES:
            says = f"of more than {MAX_LINES:,} lines, some are no plain Python"
            raise ValueError(says) from None
        from IPython.core.inputtransformer2 import TransformerManager

        if source.lstrip().startswith(("%%time", "%%capture")):
            # the body is Python, on the same lines
            source = "\n" + source.lstrip().partition("\n")[2]
        return ast.parse(TransformerManager().transform_cell(source))
