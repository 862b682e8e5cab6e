"""`course.py site`: the executed notebooks of some homes as a site of plain files.

An index and a page a theme, to be opened or published as they are. A theme that failed
or did not run has a page that says so. Exit status: 0 when every theme is there, 1 when
one is not (the rest stands), 2 when nothing could be built (an earlier site stays).
"""

import argparse
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

import sample_data
import utils
from kit.record import read_record
from tools.notebooks import run
from tools.shared import options

KIT = Path(__file__).resolve().parents[2]
TEMPLATES = Path(__file__).parent / "templates"
HOMES = ("sample-run", "sample-run-solar")  # what `make site` runs
MARKER = "site.json"  # a folder that holds it is a site of ours, which may be replaced


@dataclass
class Chapter:
    """One theme of one home: its address, title and page, and what went wrong."""

    address: str
    title: str
    body: str
    problem: str
    criteria: list[dict]


@dataclass
class Story:
    """One home on the site, in a folder of its name."""

    home: Path
    record: dict
    meta: dict
    chapters: list[Chapter] = field(default_factory=list)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = options.parser("site", __doc__)
    homes = f"folders of finished runs (default: {' '.join(HOMES)})"
    parser.add_argument("--home", type=Path, nargs="+", action="extend", help=homes)
    out = "folder of the site (default: site/)"
    parser.add_argument("-o", "--output", type=Path, default=KIT / "site", help=out)
    return parser.parse_args(arguments)


def open_stories(homes: list[Path]) -> list[Story]:
    """The homes with their records.

    Raises
    ------
    utils.CourseError
        A home holds no executed notebook, or a record that cannot be read; or two homes
        have one name.
    """
    stories = {}
    for home in dict.fromkeys(home.expanduser().resolve() for home in homes):
        if not any((home / "exports" / "notebooks").glob("theme*.ipynb")):
            raise utils.CourseError(
                f"{home} holds no executed notebook: run the course there first"
                f" (python course.py run --home {home})."
            )
        if home.name in stories:
            raise utils.CourseError(f"Two homes are named {home.name}: rename one.")
        # not so when theme 1 failed at once
        begun = (home / "exports" / "results.json").exists()
        record = read_record(home) if begun else {}
        meta = record.get("meta") or utils.read_json(home / "course.json")
        stories[home.name] = Story(home, record, meta)
    return list(stories.values())


def open_chapter(story: Story, theme: int, path: Path) -> Chapter:
    """The page of a theme as it ran last; `path` is the kit's own notebook."""
    # needs nbconvert, which only the bonus brings
    from tools.web import pages

    kit = pages.read(path)
    title = kit.cells[0].source.splitlines()[0].removeprefix("# ")
    ran = story.home / "exports" / "notebooks" / path.name
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
    known = pages.places(notebook, story.home)
    return Chapter(
        f"{path.stem}.html",
        title,
        pages.body(notebook, known),
        pages.private(problem, known),
        story.record.get("criteria", {}).get(f"theme{theme}", []),
    )


def write_pages(stories: list[Story], folder: Path) -> None:
    """The index, and the pages of all themes."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True
    )
    shared = {"stories": stories, "disclaimer": sample_data.DISCLAIMER}
    index = templates.get_template("index.html").render(shared)
    (folder / "index.html").write_text(index, encoding="utf-8")
    shutil.copy(TEMPLATES / "style.css", folder)
    # GitHub Pages: publish the files as they are
    (folder / ".nojekyll").touch()
    page = templates.get_template("theme.html")
    for story in stories:
        (folder / story.home.name).mkdir()
        around = [None, *story.chapters, None]
        for before, chapter, after in zip(
            around, story.chapters, around[2:], strict=False
        ):
            html = page.render(
                shared, story=story, chapter=chapter, before=before, after=after
            )
            path = folder / story.home.name / chapter.address
            path.write_text(html, encoding="utf-8")


def build(homes: list[Path], out: Path) -> list[Story]:
    """Build the site of some homes in the folder `out`, all of it or nothing.

    Raises
    ------
    utils.CourseError
        A home cannot be shown, nbconvert is missing, or `out` is something else than a
        site of ours; an earlier site is untouched.
    """
    taken = out.is_file() or (out.is_dir() and any(out.iterdir()))
    if taken and not (out / MARKER).is_file():
        raise utils.CourseError(
            f"{out} holds something else than a site: name another --output."
        )
    stories = open_stories(homes)
    try:
        for story in stories:
            for theme, path in run.notebooks(1, 8).items():
                story.chapters.append(open_chapter(story, theme, path))
    except ImportError as error:
        raise utils.CourseError(
            "The site needs nbconvert: run `make site`, which installs it."
        ) from error
    with utils.atomic(out) as temporary:
        temporary.mkdir()
        write_pages(stories, temporary)
        names = [story.home.name for story in stories]
        utils.write_json(temporary / MARKER, {"homes": names})
        shutil.rmtree(out, ignore_errors=True)
    return stories


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    out = given.output.expanduser().resolve()
    stories = build(given.home or [KIT / home for home in HOMES], out)
    failed = 0
    for story in stories:
        for chapter in story.chapters:
            if chapter.problem:
                failed += 1
                print(f"✗ {story.home.name}, {chapter.title}: {chapter.problem}")
    print(f"Open {out / 'index.html'}")
    return 1 if failed else 0
