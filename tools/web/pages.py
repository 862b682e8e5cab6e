"""Executed notebooks and Markdown texts as pieces of HTML: made private, captioned, and
fit for any screen.

nbconvert turns cells into HTML with a template of our own,
tools/templates/site/cells.html; what no template can do (sections, tables, links) is
done on its result.
"""

import ast
import base64
import io
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, count, zip_longest
from pathlib import Path
from urllib.parse import unquote

from markupsafe import Markup

import utils
from tools.report import build as report
from tools.shared.secrets import PLACEHOLDER, SECRETS
from tools.web import safe_html

KIT = Path(__file__).resolve().parents[2]
TEMPLATES = Path(__file__).parent / "templates" / "site"
# not SVG, a language in which scripts, addresses and names of folders can hide
PICTURES = ("image/png", "image/jpeg")
KINDS = ["text/html", "text/markdown", *PICTURES, "text/plain"]  # nothing that runs
# The home folder of somebody, with all above it: of Linux, macOS, Windows and Windows'
# Linux, also in a file: address.
PERSONAL = re.compile(
    r"""(\x1b\[[\d;]*m|\\n|(?<![\w.~…-])(?<!:/))  # it begins after a colour, a line's end, or no word and no server
    (?:/root\b
    |(?:(?:/[\w.-]+)*?/(?:home|Users)/
       |(?i:(?:[a-z]:|\\\\[\w.$]+)(?:[/\\]{1,2}[\w.-]+)*?[/\\]{1,2}(?:home|users)[/\\]{1,2}))
     [^/\\\s:;,"'<>()\x1b]+)""",
    re.VERBOSE,
)
# A figure with its unit, or what stands in a table where there is none.
FIGURE = re.compile(
    r"[-+−]?[\d.,\u202f]*\d[\d.]*(e[-+]?\d+)?( ?(%|×|s|ms|MB|MiB))?|nan|NaN|[-–—]|"
)
OF_THE_PAGE = re.compile(r"figures/|data:image/(?:png|jpeg|gif|webp);base64,")
OF_A_KERNEL = re.compile(r"\S*/ipykernel_\d+/\d+\.py")


@dataclass
class Piece:
    """HTML of one document, without the page around it."""

    head: Markup  # its title, and all before the second cell
    body: Markup
    # level, id and text of each section
    contents: list[dict] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)  # pictures, by address
    remarks: list[str] = field(default_factory=list)  # what was masked or unlinked


# --------------------------------------------------------------------------------------
# Before the conversion: what a run says, and what must not be shown
# --------------------------------------------------------------------------------------


def read(path: Path):
    """An executed notebook, without the cells that papermill adds where one failed.

    Raises
    ------
    utils.CourseError
        The file is no notebook.
    """
    import nbformat

    broken = (
        OSError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        RecursionError,
        nbformat.ValidationError,
    )
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except broken as error:
        raise utils.CourseError(
            f"{path.name} is damaged: run its theme again."
        ) from error
    marked = "papermill-error-cell-tag"
    notebook.cells = [
        cell for cell in notebook.cells if marked not in cell.metadata.get("tags", [])
    ]
    return notebook


def failure(notebook) -> tuple[dict | None, str]:
    """The cell in which a run stopped and why; (None, "") when it reached its end."""
    code = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source.strip()
    ]
    if not any(cell.execution_count for cell in code):
        return None, "It was not executed."
    for cell in code:
        for output in cell.outputs:
            if (
                output.output_type == "error"
                and "raises-exception" not in cell.metadata.get("tags", [])
            ):
                return cell, (
                    output.evalue
                    if output.ename == "CourseError"
                    else f"{output.ename}: {output.evalue}"
                )
        if cell.execution_count is None:
            return (
                cell,
                (
                    "A cell never finished: its kernel was killed, most often because"
                    " memory ran out."
                ),
            )
    return None, ""


def places(notebook, home: Path, record: dict) -> dict[str, str]:
    """Folders of the machines that ran and that build, and what a reader sees in their
    place.
    """
    ran = notebook.metadata.get("papermill", {})
    given = ran.get("parameters", {})
    folders = {
        KIT,
        home,
        home.resolve(),
        given.get("HOME"),
        given.get("SOURCE"),
        record.get("meta", {}).get("source"),
    }
    if ran.get("input_path"):
        folders.add(Path(ran["input_path"]).parent.parent)
    absolute = (
        Path(folder) for folder in folders if folder and Path(folder).is_absolute()
    )
    known = {str(folder): f"…/{folder.name}" for folder in absolute if folder.name}
    own = os.path.expanduser("~")
    return known | ({own: "~"} if len(own) > 1 and own not in known else {})


def private(text: str, known: dict[str, str], found: list[str]) -> str:
    """The text without the folders of `known`, without names of users, secrets masked
    (and named in `found`).
    """
    if known:
        longest_first = "|".join(
            re.escape(folder) for folder in sorted(known, key=len, reverse=True)
        )
        text = re.sub(
            rf"(?:{longest_first})(?![\w-])", lambda match: known[match[0]], text
        )
    text = OF_A_KERNEL.sub("(a cell)", PERSONAL.sub(r"\1~", text))

    def mask(match: re.Match) -> str:
        secret = next((group for group in match.groups() if group), match[0])
        if weak and (PLACEHOLDER.search(secret) or not re.search(r"\d", secret)):
            return match[0]
        found.append(f"{name} ({secret[:4]}…)")
        return match[0].replace(secret, f"{secret[:4]}…")

    for name, pattern in SECRETS.items():
        weak = name == "a key or password"
        text = pattern.sub(mask, text)
    return text


def make_private(notebook, known: dict[str, str]) -> list[str]:
    """Clean all texts of a notebook in place; returns what secrets were masked."""
    found = []
    for cell in notebook.cells:
        cell.source = private(cell.source, known, found)
        for output in cell.get("outputs", []):
            for name in ("text", "evalue"):
                if name in output:
                    output[name] = private(output[name], known, found)
            if "traceback" in output:
                output.traceback = [
                    private(line, known, found) for line in output.traceback
                ]
            for kind, value in output.get("data", {}).items():
                if kind.startswith("text/") and isinstance(value, str):
                    output.data[kind] = private(value, known, found)
    return sorted(set(found))


def saved_figures(source: str) -> list[str]:
    """Names under which a cell saves its figures, in the order of their lines."""
    try:
        calls = [
            node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
        ]
    except SyntaxError:  # a magic, or a student's half a line
        return []
    saves = [
        call
        for call in calls
        if getattr(call.func, "attr", getattr(call.func, "id", "")) == "save_figure"
    ]
    saves = [
        call
        for call in saves
        if len(call.args) > 2 and isinstance(call.args[2], ast.Constant)
    ]
    return [
        str(call.args[2].value) for call in sorted(saves, key=lambda call: call.lineno)
    ]


def describe_pictures(notebook, theme: int, record: dict) -> None:
    """Give every picture a name, a caption where the report has one, a size, and a text
    for those who do not see it.
    """
    captions, heading, used = (
        report.toml("captions.toml")["figures"],
        f"theme {theme}",
        set(),
    )
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (
                re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE) or [heading]
            )[-1].replace("*", "")
            continue
        shown = [
            output
            for output in cell.get("outputs", [])
            if set(PICTURES) & set(output.get("data", ()))
        ]
        names = [f"theme{theme}_{name}" for name in saved_figures(cell.source)]
        # else nobody knows which is which
        known = names if len(names) == len(shown) else [""] * len(shown)
        for output, name in zip(shown, known, strict=True):
            caption = (
                captions.get(name, {}).get("en", "").format_map(report.facts_of(record))
            )
            alt = caption or f"Picture of the section “{heading}”"
            output.metadata.update(alt=alt, caption=caption, size=size(output))
            if name and name not in used:
                output.metadata.filename = name
                used.add(name)


def size(output) -> tuple[int, int] | None:
    """Width and height of a picture in pixels, so that the page does not jump when it
    arrives.
    """
    from PIL import Image

    encoded = next((output.data[kind] for kind in PICTURES if kind in output.data), "")
    with suppress(OSError, ValueError, Image.DecompressionBombError):
        return Image.open(io.BytesIO(base64.b64decode(encoded))).size
    return None


def mark(notebook, stopped: dict | None) -> None:
    """Fold what is plumbing, and frame the cell in which the run stopped."""
    for cell in notebook.cells:
        if cell.source.startswith("# Bootstrap"):
            cell.metadata.fold = (
                "Bootstrap cell, the same in all notebooks: finds the kit, installs"
                " what is missing"
            )
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata.fold = "Parameters of this run"
        if cell is stopped:
            cell.metadata.stopped, cell.metadata.fold = True, ""


# --------------------------------------------------------------------------------------
# The conversion, and what follows it
# --------------------------------------------------------------------------------------


@cache
def exporter():
    """nbconvert's, with our template: made once, as this takes longer
    than a notebook.
    """
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    into_files = {"enabled": True, "extract_output_types": set(PICTURES)}
    config = Config(
        {
            "NbConvertBase": {"display_data_priority": KINDS},
            "ExtractOutputPreprocessor": into_files,
        }
    )
    made = HTMLExporter(
        config=config,
        template_name=TEMPLATES.name,
        extra_template_basedirs=[str(TEMPLATES.parent)],
        template_file="cells.html",
        exclude_anchor_links=True,
    )
    made.register_filter("clean", safe_html.clean)
    return made


def notebook_piece(
    notebook, theme: int, home: Path, record: dict, link: Callable[[str], str | None]
) -> Piece:
    """One executed notebook as HTML.

    Parameters
    ----------
    notebook : as `read` returns it; changed in place
    link : the address on the site of a relative link, or None where it leads nowhere
    """
    stopped, _ = failure(notebook)
    masked = make_private(notebook, places(notebook, home, record))
    describe_pictures(notebook, theme, record)
    mark(notebook, stopped)
    about = {"unique_key": f"theme{theme}", "output_files_dir": "figures"}
    html, made = exporter().from_notebook_node(notebook, about)
    piece = finished(html, link)
    piece.files = {
        name: content
        for name, content in made["outputs"].items()
        if isinstance(content, bytes)
    }
    piece.remarks += [
        f"{secret} was masked: revoke it, it stands in the notebook."
        for secret in masked
    ]
    return piece


def text_piece(markdown: str, link: Callable[[str], str | None]) -> Piece:
    """One Markdown text as HTML; what it links to on our disk is the
    caller's to copy.
    """
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    return finished(
        f'<div class="text">{safe_html.clean(markdown2html_mistune(markdown))}</div>',
        link,
    )


def finished(html: str, link: Callable[[str], str | None]) -> Piece:
    """The HTML with anchors, tables in boxes of their own, and no link or picture that
    leads nowhere.
    """
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    for anchor in soup.select("a.anchor-link"):
        anchor.decompose()
    piece = Piece(Markup(), Markup(), contents=sections(soup))
    for table in soup.find_all("table"):
        tidy_table(soup, table)
    for image in soup.find_all("img"):
        place_picture(image, link, piece.remarks)
    for anchor in soup.find_all("a", href=True):
        place_link(soup, anchor, link, piece.remarks)
    title = soup.find("h1")
    cell = title.find_parent("div", class_="text") if title else None
    if cell is not None and cell.find_previous_sibling("div") is None:
        piece.head = Markup(str(cell.extract()))
    piece.body = Markup(str(soup))
    return piece


def sections(soup) -> list[dict]:
    """Give every heading an address, as GitHub would, and put those of outputs below
    those of the text.
    """
    found, used = [], set()
    headings = soup.find_all(re.compile(r"^h[1-6]$"))
    for heading in sorted(
        headings, key=lambda heading: heading.find_parent(class_="output") is not None
    ):
        level, text = int(heading.name[1]), " ".join(heading.get_text().split())
        inside = heading.find_parent(class_="output") is not None
        # one title, the first heading
        level = max(level, 3 if inside else min(2, len(used) + 1))
        heading.name, heading["id"] = f"h{level}", address_of(text, used)
        if level in (2, 3) and not inside:
            found.append({"level": level, "id": heading["id"], "text": text})
    return found


def address_of(text: str, used: set[str]) -> str:
    """The anchor of a heading, unlike those already in `used`, to which it is added."""
    plain = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") or "section"
    names = chain([plain], (f"{plain}-{number}" for number in count(1)))
    anchor = next(name for name in names if name not in used)
    used.add(anchor)
    return anchor


def tidy_table(soup, table) -> None:
    """A table that scrolls in its own box, with the meaning of its heads said, and
    columns of figures to the right.
    """
    del table["border"]
    for head in table.find_all("th"):
        head["scope"] = "col" if head.find_parent("thead") else "row"
    rows = [row.find_all(["td", "th"]) for row in table.find_all("tr")]
    plain = [row[::-1] for row in rows if not any(cell.get("colspan") for cell in row)]
    # from the right: a head that spans rows stands in the first of them only
    for column in zip_longest(*plain):
        column = [cell for cell in column if cell is not None]
        texts = [cell.get_text(strip=True) for cell in column if cell.name == "td"]
        if any(texts) and all(FIGURE.fullmatch(text) for text in texts):
            for cell in column:
                cell["class"] = [*cell.get("class", []), "n"]
    if table.tbody is not None and not table.tbody.find("tr") and rows:
        table.tbody.append(soup.new_tag("tr"))
        table.tbody.tr.append(
            soup.new_tag("td", attrs={"colspan": len(rows[0])}, string="no rows")
        )
    for row in table.find_all("tr", style=True):
        del row["style"]
    table.wrap(soup.new_tag("div", attrs={"class": "table"}))


def place_picture(image, link: Callable[[str], str | None], remarks: list[str]) -> None:
    """Pictures of other servers become their text, as a page must not ask the network
    for anything.
    """
    address = image.get("src", "")
    if OF_THE_PAGE.match(address):
        return
    target = None if re.match(r"(?i)[a-z]+:|//", address) else link(address)
    if target is None:
        if "colab-badge" not in address:
            remarks.append(
                f"the picture {address[:80]} is shown as its text, as it is not part of"
                " the kit."
            )
        image.replace_with(image.get("alt", ""))
    else:
        image["src"], image["loading"] = target, "lazy"


def place_link(
    soup, anchor, link: Callable[[str], str | None], remarks: list[str]
) -> None:
    """Links of the kit become links of the site; one that leads nowhere becomes its
    text.
    """
    address = anchor["href"]
    # the page has its own, where the kit is published
    if "colab.research.google.com" in address:
        around = anchor.parent
        (
            anchor.decompose()
            if anchor.get_text(strip=True) == "Open in Colab"
            else anchor.unwrap()
        )
        if around.name == "p" and not around.get_text(strip=True):
            around.decompose()
    elif address.startswith("#"):
        if soup.find(id=unquote(address[1:])) is None:
            remarks.append(f"the link to {address} leads nowhere.")
            anchor.unwrap()
    elif not re.match(r"(?i)(https?|mailto):|figures/", address):
        if (target := link(address)) is None:
            anchor.unwrap()
        else:
            anchor["href"] = target
