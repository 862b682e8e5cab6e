"""Tables of the report: cells as they are printed, and columns that fit the page."""

import math
import re

MOST_ROWS = 60  # of a table in the report; the file keeps all
TEXT = 26  # a cell longer than this many characters may be broken into lines
# width of the text in cm, on an upright page and on a turned one
PAGE, TURNED = 16.8, 25.2
GAP = 0.8  # left and right of a cell, in em
POINT = 0.0353  # cm


def number(value: float) -> str:
    """Three significant digits: 0.833, 12.3, 1 234, 8.1 · 10⁻⁷; whole numbers in full.

    The decimal sign is a point in both languages, as in the figures.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f")
    if value and abs(value) < 0.001:
        digits, exponent = f"{value:.1e}".split("e")
        raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
        return f"{digits} · 10{str(int(exponent)).translate(raised)}"
    return f"{value:#.3g}".rstrip(".") if value else "0"


def _numeric(cell: str) -> float | None:
    """The number in a cell of a CSV file, None where it holds something else."""
    return (
        float(cell)
        if re.fullmatch(r"-?\d+(\.\d*)?([eE][-+]?\d+)?|-?inf", cell)
        else None
    )


def _column(cells: list[str], words: dict) -> tuple[list[str], bool]:
    """One column as it is printed, and whether it holds numbers only."""
    values = [_numeric(cell) for cell in cells]
    present = [value for value in values if value is not None]
    numeric = bool(present) and len(present) == sum(cell != "" for cell in cells)
    # pandas writes a count as 216.0 where the column has a gap; a share of exactly 1
    # stays a share.
    whole = (
        numeric
        and all(value.is_integer() for value in present)
        and max(map(abs, present)) > 1
    )
    flags = {"True": words["yes"], "False": words["no"]}
    shown = []
    for cell, value in zip(cells, values, strict=True):
        if value is not None and (numeric or re.search(r"\.\d{4,}", cell)):
            exact = whole or re.fullmatch(r"-?\d+", cell)
            shown.append(number(int(value)) if exact else number(value))
        else:
            # a time to the second
            cell = re.sub(r"(\d\d:\d\d:\d\d)\.\d+(\+00:00)?$", r"\1", cell)
            # may break after / and _
            shown.append(
                flags.get(cell, re.sub(r"(?<=\S{12})([/_])", "\\1\u200b", cell))
            )
    return shown, numeric


def width(text: str) -> float:
    """Width of a text in em, estimated by kinds of letters."""
    return sum(
        (
            0.68
            if c.isupper() or c in "mw%×"
            else 0.28
            if c in " .,:;'il|[]()\u202f\u200b"
            else 0.5
        )
        for c in text
    )


def _columns(header: list[str], cells: list[list[str]]) -> tuple[list[str], float]:
    """Width of each column as Typst reads it (em, or a share of what is left), and the
    em that all of them need.
    """
    widths, need = [], 0.0
    for head, column in zip(header, cells, strict=True):
        word = max(
            (width(part) for text in column for part in re.split(r"[\s\u200b]", text)),
            default=1,
        )
        longest = max((width(text) for text in column), default=1)
        # bold is wider
        least = max((width(part) * 1.2 for part in head.split()), default=0)
        flows = max((len(text) for text in column), default=0) > TEXT
        least = max(least, word, min(longest / 3, 22)) if flows else max(least, longest)
        need += least + GAP
        widths.append(
            f"{math.sqrt(longest):.2f}fr" if flows else f"{least + GAP + 0.3:.2f}em"
        )
    return widths, need


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
    dict : header, rows, widths (em or fr), aligns, size (pt), landscape, note.

    Raises
    ------
    ValueError
        Rows of different lengths.
    """
    note = "" if rows else words["no_rows"]
    if len({len(row) for row in [header or rows[0], *rows]}) > 1:
        raise ValueError("rows of different lengths")
    if len(rows) > MOST_ROWS:
        note = words["rows_left"].format(shown=MOST_ROWS, all=len(rows), file=file)
    if (
        header
        and header[0] in ("", "Unnamed: 0")
        and [row[0] for row in rows] == [str(i) for i in range(len(rows))]
    ):
        # a counter that pandas adds
        header, rows = header[1:], [row[1:] for row in rows]
    columns = [
        [row[i] for row in rows[:MOST_ROWS]] for i in range(len(header or rows[0]))
    ]
    printed = (
        [(column, False) for column in columns]
        if plain
        else [_column(column, words) for column in columns]
    )
    heads = [title(name) for name in header] or [""] * len(columns)
    cells = [column for column, _ in printed]
    widths, need = _columns(heads, cells)
    size, landscape = fit(need)
    # too wide even so: every column gives up its share
    if need * size * POINT > TURNED:
        widths = [re.sub("em", "fr", width) for width in widths]
    return {
        "header": heads if header else [],
        "rows": [list(row) for row in zip(*cells, strict=True)],
        "widths": widths,
        "aligns": ["right" if numeric else "left" for _, numeric in printed],
        "size": size,
        "landscape": landscape,
        "note": note,
    }


def fit(need: float) -> tuple[float, bool]:
    """The largest type (pt) in which a table of this many em fits, and whether the page
    must be turned.
    """
    for landscape, room in ((False, PAGE), (True, TURNED)):
        for size in (9.5, 9.0, 8.5, 8.0, 7.5):
            if need * size * POINT <= room:
                return size, landscape
    return 6.5, True
