"""The glossary: each term of it is met in a notebook, and has its French name."""

import re

from support.books import cells

from kit.files import KIT


def rows() -> list[list[str]]:
    text = (KIT / "docs" / "glossary.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[part.strip() for part in line.strip("| ").split(" | ")] for line in lines]


def test_each_row_has_two_names_and_one_line():
    table = rows()[2:]
    assert len(table) > 60
    assert all(len(row) == 3 and all(row) for row in table)
    names = [row[0] for row in table]
    assert len(set(names)) == len(names)


def test_terms_are_met_in_the_notebooks():
    prose = " ".join(
        cell.source
        for theme in range(1, 9)
        for cell in cells(f"theme{theme}")
        if cell.cell_type == "markdown"
    )
    prose = re.sub(r"\W+", " ", prose.lower())
    absent = [
        name
        for name, *_ in rows()[2:]
        if not any(
            re.sub(r"\W+", " ", word.lower()).strip()[:9] in prose
            for word in re.sub(r"\(.*?\)|^to ", "", name).split(",")
        )
    ]
    assert absent == []
