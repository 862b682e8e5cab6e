"""The pages in docs/ and README.md speak of things that exist: files, links, sections,
commands, messages, figures.
"""

import io
import json
import re
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path

import pytest

import utils
from kit import files
from tools import cli

KIT = files.KIT
PAGES = sorted([KIT / "README.md", *(KIT / "docs").glob("*.md")])
OURS = [KIT / "docs" / name for name in ("instructor.md", "plan-de-seance.fr.md")]
# by the notebooks, below a home
MADE = re.compile(r"(checkpoints|exports|logs|runs|data|report)/")


def by_name(page: Path) -> str:
    return page.name


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)


def code_spans(page: Path) -> list[str]:
    return re.findall(r"`([^`]+)`", " ".join(prose(page).split()))


@cache
def notebook(theme: int) -> list[tuple[str, str]]:
    """(kind, source) of every cell."""
    (path,) = (KIT / "notebooks").glob(f"theme{theme}_*.ipynb")
    return [
        (cell["cell_type"], "".join(cell["source"]))
        for cell in json.loads(path.read_text())["cells"]
    ]


@cache
def sections(theme: int) -> dict[int, str]:
    """Numbered sections of a notebook, by number."""
    text = "\n".join(source for kind, source in notebook(theme) if kind == "markdown")
    return {
        int(number): title
        for number, title in re.findall(r"^## (\d+) · (.+)$", text, flags=re.MULTILINE)
    }


@cache
def source() -> str:
    """All text of the kit that a page may quote: code,
    templates, notebooks, Makefile.
    """
    files = [
        KIT / "Makefile",
        KIT / "utils.py",
        KIT / "course.py",
        *KIT.glob("requirements*.txt"),
    ]
    files += [
        path
        for folder in ("kit", "exercises", "tools", "report")
        for path in (KIT / folder).rglob("*.*")
    ]
    texts = [
        path.read_text(encoding="utf-8", errors="ignore")
        for path in files
        if path.is_file()
    ]
    texts += [f"{spec.kaggle.split('/')[1]}.zip" for spec in utils.DATASETS.values()]
    texts += [part for theme in range(1, 9) for _, part in notebook(theme)]
    return re.sub(r"\s+", " ", re.sub(r'"\s*\n\s*f?"', "", "\n".join(texts)))


@cache
def options(command: str) -> set[str]:
    """The long options of a command, as its help lists them."""
    assert command in cli.COMMANDS, f"course.py {command} is no command"
    with redirect_stdout(io.StringIO()) as shown, suppress(SystemExit):
        cli.main([command, "--help"])
    assert "--help" in shown.getvalue(), f"course.py {command} shows no help"
    return set(re.findall(r"--[a-z][a-z-]+", shown.getvalue()))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles
    }


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_commands_and_their_options_exist(page):
    for command, rest in re.findall(r"course\.py ([a-z]+)([^`\n#]*)", text_of(page)):
        for option in re.findall(r"--[a-z][a-z-]+", rest):
            assert option in options(command), f"course.py {command} {option}"
    targets = set(
        re.findall(r"^([a-z-]+):", text_of(KIT / "Makefile"), flags=re.MULTILINE)
    )
    named = set(
        re.findall(r"`make ([a-z-]+)", text_of(page))
        + re.findall(r"^make ([a-z-]+)", text_of(page), re.M)
    )
    assert named <= targets, named - targets


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_files_of_the_kit_exist(page):
    for span in code_spans(page):
        if re.fullmatch(
            r"(notebooks|tools|tests|models|docs|benchmarks|exercises|demo)/[\w./-]+",
            span,
        ):
            assert (KIT / span).exists(), span
        elif re.fullmatch(r"[\w.-]+\.(py|txt|toml)", span):
            assert (
                any(KIT.glob(span))
                or any(KIT.rglob(f"tests/{span}"))
                or span in source()
            ), span


@pytest.mark.parametrize("page", OURS, ids=by_name)
def test_sections_of_notebooks_exist_under_their_titles(page):
    found = re.findall(
        r"§(\d)\.(\d+)(?: \*([^*]+)\*)?", " ".join(text_of(page).split())
    )
    assert found
    for theme, number, title in found:
        there = sections(int(theme)).get(int(number))
        assert there, (
            f"§{theme}.{number}: theme {theme} has sections"
            f" {sorted(sections(int(theme)))}"
        )
        assert title in ("", there), f"§{theme}.{number} is called '{there}'"


@pytest.mark.parametrize("page", OURS, ids=by_name)
def test_what_stands_in_code_type_occurs_in_the_kit(page):
    """Figures, parameters, messages, files that notebooks write: no name that only the
    page knows.
    """
    for span in code_spans(page):
        if (
            span.startswith(("course.py", "make "))
            or (KIT / span).exists()
            or (page.parent / span).exists()
        ):
            continue
        if span.startswith("--"):
            assert any(
                span.split()[0] in options(command)
                for command in ("run", "check", "report", "pack")
            ), span
            continue
        # a parameter and the value that it shall get
        name = re.sub(r"^(\w+) = .+$", r"\1", span)
        assert name in source() or MADE.match(name) and Path(name).name in source(), (
            span
        )


def test_every_live_section_is_code_and_not_only_prose():
    """What is shown live runs: at least one code cell stands between the section's
    heading and the next one.
    """
    live = re.findall(r"\*\*Show live:\*\*(.+?)\n\n", text_of(OURS[0]), flags=re.DOTALL)
    assert len(live) == 8
    for theme, number in re.findall(r"§(\d)\.(\d+)", " ".join(live)):
        inside = False
        for kind, part in notebook(int(theme)):
            if inside and kind == "code":
                break
            inside = inside or (kind == "markdown" and f"## {number} · " in part)
        else:
            raise AssertionError(f"§{theme}.{number} has no cell to run")


def test_the_plan_fills_three_days_of_eight_hours():
    parts = re.split(r"^### ", text_of(OURS[0]), flags=re.MULTILINE)
    halves = [
        found.groups()
        for part in parts
        if (found := re.match(r"Session (\d), (\w+)\n(.+)", part, re.DOTALL))
    ]
    assert len(halves) == 6
    for session, half, table in halves:
        minutes = [
            int(number)
            for number in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)
        ]
        assert sum(minutes) == 240, f"session {session}, {half}: {sum(minutes)} minutes"


@pytest.mark.parametrize("page", OURS, ids=by_name)
def test_roles_rotate(page):
    """In each theme the three roles are three people, and over the course everybody has
    had each role twice or more.
    """
    lines = [
        line for line in text_of(page).splitlines() if re.search(r"\| [ABC] \|", line)
    ]
    rows = [re.findall(r"\| ([ABC])(?= \|)", line) for line in lines]
    assert len(rows) == 3 and all(len(row) == 8 for row in rows)
    assert all(set(theme) == set("ABC") for theme in zip(*rows, strict=True))
    assert all(row.count(member) >= 2 for row in rows for member in "ABC")
