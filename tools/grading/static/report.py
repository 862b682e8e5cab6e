"""Report: a PDF of 40 to 100 pages with the twelve sections in order."""

import re
from collections.abc import Iterator
from pathlib import Path

from kit.names import plain
from tools.grading.finding import Check, Finding, listed
from tools.grading.pdf import read_pdf, section_of
from tools.grading.static.look import Look
from tools.grading.submission import DOCUMENTS
from tools.grading.themes import is_left_behind
from tools.shared.foreign import MIB, SubmissionError, shown
from tools.shared.sections import SECTIONS, TOTAL

REPORT = Check("report", 1)
SOURCES = {".tex", ".md", ".html", ".ipynb"}
CONCLUSION = len(SECTIONS) - 2
MAX_PDF = 200 * MIB
NAMED = re.compile("report|rapport|compte[ _-]?rendu|memoire|mémoire")


def report(look: Look) -> Iterator[Finding]:
    """A draft is said to be one, and is no failure."""
    path = _report_file(look)
    if path is None:
        yield _no_pdf(look)
        return
    try:
        pages, headings = read_pdf(look.read(path, MAX_PDF))
    except ImportError:
        says = "Pages and sections were not looked at, as pypdf is not installed: `pip"
        yield REPORT.human(f"{says} install pypdf`.", shown(path))
        return
    except SubmissionError as error:
        yield REPORT.fail(str(error), shown(path))
        return
    low, high = TOTAL
    if low <= pages <= high:
        yield REPORT.passed(f"The report has {pages} pages.", shown(path))
    else:
        says = f"The report has {pages} pages: the course asks for {low} to {high}."
        yield REPORT.human(says, shown(path))
    yield from _sections(headings, shown(path))
    yield from _draft(look, pages)


def _report_file(look: Look) -> Path | None:
    """The report: where the kit writes it, else the PDF (two folders down at most) of
    that name, else the largest.
    """

    def rank(path: Path) -> tuple:
        named = NAMED.search(plain(path.name))
        return path != Path("report/report.pdf"), not named, -look.size(path)

    files = look.submission.files
    pdfs = [path for path in files if path.suffix.lower() == ".pdf"]
    return min((path for path in pdfs if len(path.parts) <= 3), key=rank, default=None)


def _no_pdf(look: Look) -> Finding:
    """What is there in the place of the PDF that the course asks for."""
    files = [path for path in look.submission.files if not is_left_behind(path)]
    named = [path for path in files if NAMED.search(plain(path.name))]
    texts = [path for path in named if path.suffix.lower() in DOCUMENTS | SOURCES]
    documents = [path for path in files if path.suffix.lower() in DOCUMENTS]
    if found := [path for path in texts or documents if path.suffix != ".pdf"]:
        names = listed((shown(path) for path in found), 3)
        says = f"The report is no PDF, as the course asks: ask for {names} as one."
        return REPORT.fail(says, shown(found[0]))
    says = "There is no report: write report/sections/*.typ and run `python course.py"
    return REPORT.fail(f"{says} report`, or ask for the PDF.", "report")


def _sections(headings: list[tuple[str, int]], where: str) -> Iterator[Finding]:
    """Missing sections, their order, and their lengths against the course's budget."""
    begins = {}
    for title, page in headings:
        number = section_of(title)
        # the last heading of that name: "Conclusion" may close a theme, too
        if number == CONCLUSION or number not in begins:
            begins[number] = page
    begins.pop(None, None)
    titles = [part.title for part in SECTIONS]
    missing = [title for number, title in enumerate(titles) if number not in begins]
    if missing:
        says = f"No heading was found for {', '.join(missing)}: look whether they are"
        yield REPORT.human(f"{says} there, under another name.", where)
    order = [begins[number] for number in sorted(begins)]
    if order != sorted(order):
        says = "The sections are not in the order of the course."
        yield REPORT.human(says, where)
        return
    off = list(_outside_the_budget(begins))
    if off:
        yield REPORT.note(f"Pages outside the budget: {'; '.join(off)}.", where)
    if not missing:
        yield REPORT.passed("The twelve sections are there, in order.", where)


def _outside_the_budget(begins: dict[int, int]) -> Iterator[str]:
    for number, page in begins.items():
        part = SECTIONS[number]
        if part.budget is None or number + 1 not in begins:
            continue
        length = max(begins[number + 1] - page, 1)
        low, high = part.budget
        if not low <= length <= high:
            yield f"{part.title} {length} (asked: {low}–{high})"


def _draft(look: Look, pages: int) -> Iterator[Finding]:
    """What `course.py report` said when it built the PDF."""
    path = "report/report.json"
    again = "run `python course.py report` again."
    try:
        told = look.read_json(path) if path in look.paths else {}
    except SubmissionError:
        yield REPORT.note(f"report.json is damaged: {again}", path)
        return
    if not isinstance(told, dict) or not told:
        return
    left = told.get("placeholders")
    left = len(left) if isinstance(left, list) else left if isinstance(left, int) else 0
    if left:
        says = f"Still a draft, with {left} placeholders left: write them, then {again}"
        yield REPORT.human(says, path)
    elif told.get("draft"):
        says = "Still a draft, with notices or missing figures: see what it prints,"
        yield REPORT.human(f"{says} then {again}", path)
    if errors := told.get("errors"):
        count = len(errors) if isinstance(errors, list) else "Some"
        says = f"{count} sections have Typst errors: correct what the boxes in the PDF"
        yield Check("report", 4).human(f"{says} say.", path)
    if isinstance(told.get("pages"), int) and told["pages"] != pages:
        yield REPORT.note(f"report.json belongs to another PDF: {again}", path)
