"""Tables of the report: cells as they are printed. Typst finds widths and type size."""

import csv
import io
import re
from pathlib import Path

from kit.files import read_text
from tools.shared.text import number

MOST_ROWS = 60  # of a table in the report; the file keeps all


def read_table(path: Path, words: dict) -> list[list[str]]:
    """The rows of a CSV file, its header first, whatever program has saved it.

    Raises
    ------
    ValueError
        Empty, no text, or rows of different lengths: a sentence in the report's
        language.
    """
    text = read_text(path)
    if "\0" in text:
        raise ValueError(words["no_text"])
    text = re.sub(r"\Asep=.\n", "", text)  # a spreadsheet's note to itself
    first = re.sub(r'"[^"]*"', "", text.lstrip("\n").partition("\n")[0])
    # a spreadsheet takes semicolons where the comma is the decimal sign
    mark, rows = max(",;\t", key=first.count), []
    try:
        reader = csv.reader(io.StringIO(text), delimiter=mark, strict=True)
        for row in filter(None, reader):
            rows.append(row)
            if len(row) != len(rows[0]):
                told = {"line": reader.line_num, "n": len(row), "first": len(rows[0])}
                raise ValueError(words["uneven"].format(**told))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if not rows:
        raise ValueError(words["is_empty"])
    return rows


def _numeric(cell: str) -> float | None:
    """The number in a cell of a CSV file, None where it holds something else."""
    digits = r"-?\d+(\.\d*)?([eE][-+]?\d+)?|-?inf"
    return float(cell) if re.fullmatch(digits, cell) else None


def _column(cells: list[str], words: dict) -> tuple[list[str], bool]:
    """One column as it is printed, and whether it holds numbers only."""
    values = [_numeric(cell) for cell in cells]
    present = [value for value in values if value is not None]
    numeric = bool(present) and len(present) == sum(cell != "" for cell in cells)
    # pandas writes a count as 216.0 where the column has a gap; a share of exactly 1
    # stays a share.
    whole = numeric and all(value.is_integer() for value in present)
    whole = whole and max(map(abs, present)) > 1
    flags = {"True": words["yes"], "False": words["no"]}
    shown = []
    for cell, value in zip(cells, values, strict=True):
        if value is not None and (numeric or re.search(r"\.\d{4,}", cell)):
            exact = whole or re.fullmatch(r"-?\d+", cell)
            shown.append(number(int(value) if exact else value))
        else:
            # a time to the second
            cell = re.sub(r"(\d\d:\d\d:\d\d)\.\d+(\+00:00)?$", r"\1", cell)
            # may break after / and _
            cell = re.sub(r"(?<=\S{12})([/_])", "\\1\u200b", cell)
            shown.append(flags.get(cell, cell))
    return shown, numeric


def title(name: str) -> str:
    """The name of a column as it is read: p50_ms becomes 'p50 (ms)'."""
    name = {"images_s": "images/s"}.get(name, name)
    return re.sub(r" (ms|mb)$", r" (\1)", name.replace("_", " "))


def layout(
    header: list[str],
    rows: list[list[str]],
    words: dict,
    file: str,
    plain: bool = False,
) -> dict:
    """One table as the template prints it.

    Parameters
    ----------
    header : names of the columns; [] prints none.
    rows : cells as text, as a CSV file holds them.
    plain : bool
        The cells are ready: no number is to be shortened.

    Returns
    -------
    dict : header, rows, aligns, note.
    """
    note = "" if rows else words["no_rows"]
    if len(rows) > MOST_ROWS:
        note = words["rows_left"].format(shown=MOST_ROWS, all=len(rows), file=file)
    counter = [str(number) for number in range(len(rows))]
    if header[:1] in ([""], ["Unnamed: 0"]) and [row[0] for row in rows] == counter:
        header, rows = header[1:], [row[1:] for row in rows]  # that pandas adds
    width = len(header or rows[0])
    columns = [[row[at] for row in rows[:MOST_ROWS]] for at in range(width)]
    printed = [
        (column, False) if plain else _column(column, words) for column in columns
    ]
    cells = [column for column, _ in printed]
    return {
        "header": [title(name) for name in header],
        "rows": [list(row) for row in zip(*cells, strict=True)],
        "aligns": ["right" if numeric else "left" for _, numeric in printed],
        "note": note,
    }
