"""`course.py site`: the executed notebooks of a home as a site of plain files.

An index and a page a theme, to be opened or published as they are. A theme that failed
or did not run has a page that says so. Exit status: 0 when every theme is there, 1 when
one is not (the rest stands), 2 when nothing could be built (an earlier site stays).
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import jinja2

import sample_data
import utils
from kit.record import read_record
from tools.notebooks import run
from tools.shared import options

KIT = Path(__file__).resolve().parents[2]
TEMPLATES = Path(__file__).parent / "templates"
MARKER = ".course-site"  # a folder that holds it is ours, and may be replaced


@dataclass
class Chapter:
    """A theme: its address, title and page, what went wrong, and its criteria."""

    address: str
    title: str
    body: str
    problem: str
    criteria: list[dict]


def open_chapter(home: Path, record: dict, theme: int, path: Path) -> Chapter:
    """The page of a theme as it ran last; `path` is the kit's own notebook."""
    # needs nbconvert, which only the bonus brings
    from tools.web import pages

    kit = pages.read(path)
    title = kit.cells[0].source.splitlines()[0].removeprefix("# ")
    ran = home / "exports" / "notebooks" / path.name
    # is there only when it is younger than the good one
    failed = run.failed_copy(ran.parent, ran)
    try:
        notebook = pages.read(failed if failed.exists() else ran)
        problem = pages.failure(notebook)
        if failed.exists() and not problem:
            problem = "It failed: see its last cells."
    except utils.CourseError as error:
        # what the theme promises, at least
        notebook, problem = kit, str(error)
        notebook.cells = kit.cells[:1]
    known = pages.places(notebook, home)
    body, problem = pages.body(notebook, known), pages.private(problem, known)
    criteria = record.get("criteria", {}).get(f"theme{theme}", [])
    return Chapter(f"{path.stem}.html", title, body, problem, criteria)


def write_pages(chapters: list[Chapter], meta: dict, record: dict, folder: Path):
    """The index, and the pages of all themes."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True
    )
    shared = {"meta": meta, "disclaimer": sample_data.DISCLAIMER}
    around = [None, *chapters, None]
    index = {"chapters": chapters, "headline": record.get("headline")}
    pages = {"index.html": templates.get_template("index.html").render(shared, **index)}
    for n, chapter in enumerate(chapters):
        beside = {"before": around[n], "chapter": chapter, "after": around[n + 2]}
        page = templates.get_template("theme.html")
        pages[chapter.address] = page.render(shared, **beside)
    for name, html in pages.items():
        (folder / name).write_text(html, encoding="utf-8")
    shutil.copy(TEMPLATES / "style.css", folder)
    for name in (MARKER, ".nojekyll"):  # GitHub publishes the files as they are
        (folder / name).touch()


def build(home: Path, out: Path) -> list[Chapter]:
    """Build the site of a home in the folder `out`, all of it or nothing.

    Raises
    ------
    utils.CourseError
        The home holds no executed notebook, or a record that cannot be read; nbconvert
        is missing; `out` is something else than a site of ours. An earlier site is
        untouched.
    """
    taken = out.is_file() or (out.is_dir() and any(out.iterdir()))
    if taken and not (out / MARKER).is_file():
        raise utils.CourseError(
            f"{out} holds something else than a site: name another --output."
        )
    if not any((home / "exports" / "notebooks").glob("theme*.ipynb")):
        raise utils.CourseError(
            f"{home} holds no executed notebook: run the course there first (python"
            f" course.py run --home {home})."
        )
    # there is no record when theme 1 failed at once
    begun = (home / "exports" / "results.json").exists()
    record = read_record(home) if begun else {}
    meta = record.get("meta") or utils.read_json(home / "course.json")
    themes = run.notebooks(1, 8).items()
    try:
        chapters = [open_chapter(home, record, theme, path) for theme, path in themes]
    except ImportError as error:
        raise utils.CourseError(
            "The site needs nbconvert: run `make site`, which installs it."
        ) from error
    with utils.atomic(out) as temporary:
        temporary.mkdir()
        write_pages(chapters, meta, record, temporary)
        shutil.rmtree(out, ignore_errors=True)
    return chapters


def main(arguments: list[str]) -> int:
    parser = options.parser("site", __doc__)
    options.add_home(parser)
    options.add_output(parser, "folder of the site (default: site/)")
    given = parser.parse_args(arguments)
    out = (given.output or KIT / "site").expanduser().resolve()
    chapters = build(options.home(given.home), out)
    failed = [chapter for chapter in chapters if chapter.problem]
    for chapter in failed:
        print(f"✗ {chapter.title}: {chapter.problem}")
    print(f"Open {out / 'index.html'}")
    return 1 if failed else 0
