"""One PDF from the group's own text and from what the notebooks left in exports/."""

from pathlib import Path

import utils
from kit.record import read_record
from tools.report.group import create, language, open_draft
from tools.report.summary import describe, summarise
from tools.report.typeset import typeset

# What a record ends in that no notebook wrote.
STRANGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def build(home: str | Path, lang: str | None = None, final: bool = False) -> dict:
    """Build HOME/report/report.pdf, print what is still open, and write the same to
    HOME/report/report.json.

    Parameters
    ----------
    home : folder of all artefacts; only its exports/ and report/ are read.
    lang : {"fr", "en"}, optional
        Of headings, captions and new templates; None: what report/group.toml says.
    final : bool
        Leave page budgets and the frames of placeholders out.

    Returns
    -------
    dict : the content of report.json.

    Raises
    ------
    utils.CourseError
        No record, a disk that is full, or a template that Typst refuses; an earlier PDF
        is untouched.
    """
    home = Path(home).expanduser().resolve()
    folder, results = home / "report", read_record(home)
    if made := create(home, lang):
        print(f"{len(made)} files made in {folder}: yours to edit.")
    written = language(folder / "group.toml")
    if lang and lang != written:
        print(f"Headings and captions are in {lang!r}; your own texts stay.")
    draft = open_draft(home, results, lang or written, final)
    try:
        pdf, measured = typeset(draft)
    except STRANGE as error:
        raise utils.CourseError(
            f"{home / 'exports' / 'results.json'} holds what no notebook records"
            f" ({error}): run the notebooks again, then the report."
        ) from error
    with utils.atomic(folder / "report.pdf") as temporary:
        temporary.write_bytes(pdf)
    summary = summarise(draft, measured)
    utils.write_json(folder / "report.json", summary)
    print(describe(summary, folder / "report.pdf"))
    return summary
