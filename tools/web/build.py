"""`course.py site`: the executed notebooks of one or more homes as a browsable site of
plain files.

The pages need no server and no network: open index.html, or publish the folder as it
is. A theme that failed or did not run has a page that says so. Exit status: 0 when
every theme is there, 1 when one is not (the rest stands), 2 when nothing could be built
(an earlier site stays).

Built with nbconvert and not with Jupyter Book: that one executes or parses a book of
its own, has no place for the same chapter on two datasets, and its pages load scripts
from elsewhere.
"""

import argparse
import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote

import jinja2
from markupsafe import Markup

import sample_data
import utils
from tools.colab.publish import BADGE
from tools.notebooks import run
from tools.report import build as report
from tools.report import card
from tools.report import tables as report_tables
from tools.web import pages

KIT = Path(__file__).resolve().parents[2]
HOMES = ("sample-run", "sample-run-solar")  # what `make site` runs where it is missing
MARKER = "site.json"  # a folder that holds it is a site of ours, which may be replaced
IMAGES = {
    "pneumonia": "Chest X-rays",
    "pneumonia3": "Chest X-rays, three classes",
    "solar": "Roofs",
}
COURSE = "Deep learning with PyTorch"
UNPUBLISHED = "OWNER/REPOSITORY"


@dataclass
class Theme:
    """One notebook as the kit has it: what its first cell promises."""

    number: int
    stem: str
    title: str
    time: Markup
    learn: Markup
    colab: str


@dataclass
class Chapter:
    """One theme of one home: its criteria, and what is wrong with it."""

    criteria: list[dict] = field(default_factory=list)
    problem: str = ""
    mark: str = ""  # the problem in two words
    stopped: bool = False  # is there a cell to point at?

    @property
    def of(self) -> int:
        return len(self.criteria)

    @property
    def met(self) -> int:
        return sum(bool(row["passed"]) for row in self.criteria)


@dataclass
class Story:
    """One home on the site, in the folder `key`."""

    home: Path
    key: str
    record: dict
    dataset: str
    chapters: dict[int, Chapter] = field(default_factory=dict)
    alone: bool = True  # no earlier home has the same images

    @property
    def meta(self) -> dict:
        return self.record.get("meta", {})

    @property
    def sample(self) -> bool:
        return self.meta.get("source") == "sample"

    @property
    def title(self) -> str:
        images = IMAGES.get(self.dataset, self.dataset) + (
            " (drawn)" if self.sample else ""
        )
        return images if self.alone else f"{images}, {self.home.name}"

    @property
    def kaggle(self) -> str:
        """The dataset's name on Kaggle, "" for drawn images."""
        known = utils.DATASETS.get(self.dataset)
        return known.kaggle if known and not self.sample else ""

    @property
    def medical(self) -> bool:
        return self.dataset.startswith("pneumonia")

    def measured(self, section: str = "meta") -> str:
        """Hardware, profile and date of the figures of one section of the record, in
        one line.
        """
        if section not in self.record:
            return ""
        known = {
            "hardware": "unknown hardware",
            "profile": "?",
            "image_size": "?",
            "seed": "?",
        } | self.meta
        return (
            f"Measured on {known['hardware']}; profile {known['profile']} at"
            f" {known['image_size']} px, seed {known['seed']};"
            f" {self.record[section].get('recorded', 'date unknown')}."
        )

    @property
    def met(self) -> int:
        return sum(chapter.met for chapter in self.chapters.values())

    @property
    def of(self) -> int:
        return sum(chapter.of for chapter in self.chapters.values())

    @property
    def failed(self) -> str:
        return ", ".join(
            f"theme {n} {chapter.mark}"
            for n, chapter in self.chapters.items()
            if chapter.problem
        )

    @property
    def card(self) -> bool:
        return (self.home / "exports" / "MODEL_CARD.md").is_file()

    @property
    def report(self) -> bool:
        return (self.home / "report" / "report.pdf").is_file()


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="course.py site",
        description=__doc__.split("\n\n")[0],
        epilog=__doc__.split("\n\n")[1],
    )
    parser.add_argument(
        "--home",
        type=Path,
        nargs="+",
        action="extend",
        help=f"folders of finished runs (default: {' '.join(HOMES)})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=KIT / "site",
        help="the site (default: site/ of the kit)",
    )
    return parser.parse_args(arguments)


# --------------------------------------------------------------------------------------
# What there is to show
# --------------------------------------------------------------------------------------


def outline() -> list[Theme]:
    """The themes of the kit, from the first cells of its notebooks."""
    import nbformat

    themes = []
    for number, path in run.notebooks(1, 8).items():
        first = nbformat.read(path, as_version=4).cells[0].source
        title = re.sub(r"^#+ *", "", first.splitlines()[0])
        paragraphs = {"time": "**Time needed:**", "learn": "**You will learn**"}
        said = {
            name: next(
                (part for part in first.split("\n\n") if part.startswith(start)), ""
            )
            for name, start in paragraphs.items()
        }
        badge = BADGE.search(first)
        colab = badge[0] if badge and UNPUBLISHED not in badge[0] else ""
        themes.append(
            Theme(
                number,
                path.stem,
                title,
                inline(said["time"]),
                inline(said["learn"]),
                colab,
            )
        )
    return themes


def inline(markdown: str) -> Markup:
    """One paragraph of Markdown as HTML, without its <p>."""
    html = pages.text_piece(markdown, lambda address: None).body
    return Markup(re.sub(r"</?(?:p|div)\b[^>]*>", "", html).strip())


def open_stories(homes: list[Path]) -> list[Story]:
    """The homes with their records, each under a name of its own.

    Raises
    ------
    utils.CourseError
        A home holds no executed notebook, or a record that cannot be read.
    """
    stories = []
    for home in dict.fromkeys(home.expanduser().resolve() for home in homes):
        if not any((home / "exports" / "notebooks").glob("theme*.ipynb")):
            how = (
                "make site runs what is missing"
                if home.name in HOMES
                else f"python course.py run --home {home}"
            )
            raise utils.CourseError(
                f"{home} holds no executed notebook: run the course there first"
                f" ({how})."
            )
        # not so when theme 1 failed at once
        begun = (home / "exports" / "results.json").exists()
        record = utils.read_record(home) if begun else {}
        dataset = (record.get("meta") or utils.read_json(home / "course.json")).get(
            "dataset", home.name
        )
        taken = {"docs", *(story.key for story in stories)}
        key = next(name for name in names(dataset, home.name) if name not in taken)
        story = Story(home, key, record, dataset)
        story.alone = all(story.title != other.title for other in stories)
        stories.append(story)
    return stories


def names(dataset: str, home: str) -> Iterator[str]:
    """Folders that a home may have on the site, plainest first."""
    plain = re.sub(r"[^\w-]+", "-", home)
    yield from (re.sub(r"[^\w-]+", "-", dataset), plain)
    yield from (f"{plain}-{number}" for number in range(2, 100))


def executed(story: Story, theme: Theme) -> tuple[object, Chapter]:
    """The notebook of a theme as it ran last, or None, and what became of it."""
    folder = story.home / "exports" / "notebooks"
    good = folder / f"{theme.stem}.ipynb"
    # is there only when it is younger than the good one
    failed = run.failed_copy(folder, good)
    path = failed if failed.exists() else good
    if not path.exists():
        return None, Chapter(
            problem=f"Theme {theme.number} has not been run in this home.",
            mark="not run",
        )
    try:
        notebook = pages.read(path)
    except utils.CourseError as error:
        return None, Chapter(problem=str(error), mark="damaged")
    stopped, says = pages.failure(notebook)
    if says or path == failed:
        known = pages.places(notebook, story.home, story.record)
        problem = pages.private(says or "See its last cells.", known, [])
        return notebook, Chapter(
            problem=problem, mark="failed", stopped=stopped is not None
        )
    rows = story.record.get("criteria", {}).get(f"theme{theme.number}", [])
    return notebook, Chapter(
        [
            row | {"value": shown(row["value"]), "target": aimed(row["target"])}
            for row in rows
        ]
    )


def shown(value) -> str:
    """A value of the record for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        report_tables.number(value) if isinstance(value, (int, float)) else str(value)
    )


def aimed(target: str) -> str:
    """A target of the record for people: "yes", "≥ 3", "0"."""
    plain = {"==": "", ">=": "≥ ", "<=": "≤ "}
    sign, _, value = str(target).partition(" ")
    return plain.get(sign, f"{sign} ") + {"True": "yes", "False": "no"}.get(
        value, value
    )


def headline(stories: list[Story]) -> dict[str, list[dict]]:
    """Headline figures of all stories, by their plain names: figure and interval, an
    empty one where there is none.
    """
    rows, nothing = {}, {"figure": "–", "interval": ""}
    for place, story in enumerate(stories):
        for name, figure, interval in report.headline_rows(story.record, "en"):
            rows.setdefault(name, [nothing] * len(stories))[place] = {
                "figure": figure,
                "interval": interval,
            }
    return rows


# --------------------------------------------------------------------------------------
# The pages
# --------------------------------------------------------------------------------------


@dataclass
class Site:
    """The folder that is being filled, what all pages share, and what went wrong on the
    way.
    """

    folder: Path
    themes: list[Theme]
    stories: list[Story]
    texts: list[dict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def write(self, address: str, template: str, **values) -> None:
        """Fill a template and put the page at its address."""
        shared = {
            "root": "../" * address.count("/"),
            "texts": self.texts,
            "themes": self.themes,
            "stories": self.stories,
            "course": COURSE,
            "sample_says": sample_data.DISCLAIMER,
        }
        path = self.folder / address
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            templates().get_template(template).render(shared | values), encoding="utf-8"
        )

    def add_files(self, folder: str, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            path = self.folder / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(pages.TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


def text_address(path: str) -> str:
    """Where a Markdown text of the kit stands on the site."""
    return f"docs/{Path(path).stem.lower()}.html"


def find_texts() -> list[dict]:
    """The README and docs/*.md of the kit: file, address and title of each."""
    texts = []
    for path in [KIT / "README.md", *sorted((KIT / "docs").glob("*.md"))]:
        if path.exists():
            content = path.read_text(encoding="utf-8")
            title = re.search(r"^# +(.+)$", content, re.MULTILINE)
            name = path.relative_to(KIT).as_posix()
            texts.append(
                {
                    "file": name,
                    "url": text_address(name),
                    "content": content,
                    "title": title[1] if title else path.stem,
                }
            )
    return texts


def resolve(site: Site, folder: str, below: str, address: str) -> str | None:
    """Where a relative link of a file in `folder` of the kit leads on the site, seen
    from a page `below`.

    Returns
    -------
    None where the site has no such page, and GitHub no such file that we know of.
    """
    plain, _, anchor = address.partition("#")
    target = posixpath.normpath(posixpath.join(folder, unquote(plain)))
    on_site = {text["file"]: text["url"] for text in site.texts}
    on_site |= {
        f"notebooks/{theme.stem}.ipynb": f"{site.stories[0].key}/{theme.stem}.html"
        for theme in site.themes
    }
    if target in on_site:
        return quote(posixpath.relpath(on_site[target], below or ".")) + (
            f"#{anchor}" if anchor else ""
        )
    if target.startswith(("/", "..")):
        return None  # a file of the machine that builds, not of the kit
    source = KIT / target
    if (
        source.suffix.lower() in (".png", ".jpg", ".jpeg", ".svg", ".gif")
        and source.is_file()
    ):
        site.add_files("", {target: source.read_bytes()})
        return quote(posixpath.relpath(target, below or "."))
    colab = next((theme.colab for theme in site.themes if theme.colab), "")
    published = re.search(r"github/([^/]+/[^/]+/blob/.+)/notebooks/", colab)
    return (
        f"https://github.com/{published[1]}/{quote(target)}"
        if published and source.exists()
        else None
    )


def write_theme(site: Site, story: Story, theme: Theme) -> None:
    """The page of one theme on one set of images, and its pictures."""
    name, heading = f"theme{theme.number}", Markup("<h1>{}</h1>").format(theme.title)
    notebook, chapter = executed(story, theme)
    story.chapters[theme.number], piece = chapter, pages.Piece(heading, Markup())
    if notebook is not None:
        link = partial(resolve, site, "notebooks", story.key)
        piece = pages.notebook_piece(
            notebook, theme.number, story.home, story.record, link
        )
    if chapter.problem:
        site.problems.append(
            f"{story.home.name}, theme {theme.number} ({chapter.mark}):"
            f" {chapter.problem}"
        )
    site.remarks += [
        f"{story.home.name}, theme {theme.number}: {remark}" for remark in piece.remarks
    ]
    site.add_files(story.key, piece.files)
    site.write(
        f"{story.key}/{theme.stem}.html",
        "theme.html",
        title=f"{theme.title} · {story.title}",
        story=story,
        theme=theme,
        chapter=chapter,
        sample=story.sample,
        head=piece.head or heading,
        body=piece.body,
        contents=piece.contents,
        measured=story.measured(name),
        versions=versions(story),
        stale=[
            line
            for line in utils.stale_sections(story.home, story.record)
            if line.startswith(f"{name} ")
        ],
    )


def versions(story: Story) -> dict[str, str]:
    """What ran, by name; the operating system's full name says more of a machine than a
    reader needs.
    """
    told = story.meta.get("environment", {})
    return {
        name: str(value)
        for name, value in told.items()
        if name not in ("date", "hardware", "system")
    }


def write_texts(site: Site) -> None:
    """README, docs/*.md, and of each home the model card and the report."""
    for text in site.texts:
        folder = posixpath.dirname(text["file"])
        piece = pages.text_piece(
            text["content"], partial(resolve, site, folder, "docs")
        )
        site.remarks += [f"{text['file']}: {remark}" for remark in piece.remarks]
        site.write(
            text["url"], "text.html", title=text["title"], sample=False, **parts(piece)
        )
    for story in site.stories:
        if story.report:
            site.add_files(
                story.key,
                {"report.pdf": (story.home / "report" / "report.pdf").read_bytes()},
            )
        if story.card:
            content = (story.home / "exports" / "MODEL_CARD.md").read_text(
                encoding="utf-8"
            )
            piece = pages.text_piece(
                pages.private(content, {}, []), lambda address: None
            )
            site.write(
                f"{story.key}/model_card.html",
                "text.html",
                title=f"Model card · {story.title}",
                sample=story.sample,
                **parts(piece),
            )


def parts(piece: pages.Piece) -> dict:
    return {"head": piece.head, "body": piece.body, "contents": piece.contents}


def introduction() -> Markup:
    """What the README says before its first section: what the course is."""
    text = (KIT / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]
    return pages.text_piece(
        re.sub(r"^# .+$", "", text, flags=re.MULTILINE), lambda address: None
    ).body


def fill(site: Site) -> None:
    """All pages of the site."""
    shutil.copy(pages.TEMPLATES / "style.css", site.folder)
    (site.folder / ".nojekyll").touch()  # GitHub Pages: publish the files as they are
    for story in site.stories:
        for theme in site.themes:
            write_theme(site, story, theme)
    write_texts(site)
    site.write(
        "index.html",
        "index.html",
        title=f"{COURSE}: from data to production",
        intro=introduction(),
        figures=headline(site.stories),
        disclaimer=inline(card.DISCLAIMER),
    )
    homes = {
        story.key: {"measured": story.measured(), "problems": story.failed}
        for story in site.stories
    }
    utils.write_json(
        site.folder / MARKER, {"made by": "course.py site", "homes": homes}
    )


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `out` at the end; until then, and
    after an error, the old one stands.

    Raises
    ------
    utils.CourseError
        `out` is no site of ours, or cannot be written.
    """
    aside = out.with_name(f".{out.name}.old")
    if aside.exists() and not out.exists():
        os.rename(aside, out)  # an earlier build was killed between its two renames
    if (
        out.is_file()
        or out.is_dir()
        and any(out.iterdir())
        and not (out / MARKER).is_file()
    ):
        raise utils.CourseError(
            f"{out} holds something else than a site: name another folder with --out."
        )
    try:
        with utils.atomic(out) as temporary:
            temporary.mkdir()
            yield temporary
            shutil.rmtree(aside, ignore_errors=True)
            if out.exists():
                os.rename(out, aside)
    except BaseException:
        if aside.exists() and not out.exists():
            os.rename(aside, out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def build(homes: list[Path], out: Path) -> Site:
    """Build the site of some homes in the folder `out`, all of it or nothing.

    Returns
    -------
    Site, with `problems` (themes that failed or are missing) and `remarks` (secrets
    masked, links that lead nowhere).

    Raises
    ------
    utils.CourseError
        A home cannot be shown, nbconvert is missing, or `out` cannot be written; an
        earlier site is untouched.
    """
    try:
        import nbconvert  # noqa: F401  (part of requirements-bonus.txt)
    except ImportError as error:
        raise utils.CourseError(
            "The site needs nbconvert: run `make site`, which installs it."
        ) from error
    stories = open_stories(homes)
    with replacing(Path(out).expanduser().resolve()) as folder:
        site = Site(folder, outline(), stories, find_texts())
        fill(site)
    return site


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        site = build(options.home or [KIT / home for home in HOMES], options.out)
    except utils.CourseError as error:
        print(error)
        return 2
    for story in site.stories:
        there = sum(not chapter.problem for chapter in story.chapters.values())
        print(
            f"{story.home.name}: {story.title}, {there} of {len(story.chapters)} themes"
            + (", SAMPLE DATA" if story.sample else "")
        )
    for remark in site.remarks:
        print(f"· {remark}")
    for problem in site.problems:
        print(f"✗ {problem}")
    print(f"Open {options.out.expanduser().resolve() / 'index.html'}")
    return 1 if site.problems else 0
