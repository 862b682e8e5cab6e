"""Executed notebooks as safe HTML: private places and secrets masked, nothing that runs
or asks another machine.
"""

import os
import re
from functools import cache
from pathlib import Path

import nbformat
from bleach.sanitizer import Cleaner
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from traitlets.config import Config

import utils
from tools.shared.secrets import PLACEHOLDER, SECRETS

KIT = Path(__file__).resolve().parents[2]
# Not SVG, a language in which scripts and addresses can hide.
KINDS = ("text/html", "text/markdown", "image/png", "image/jpeg", "text/plain")
TAGS = frozenset(
    """a b blockquote br caption code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i
    img kbd li mark ol p pre s small span strong sub summary sup table tbody td tfoot th
    thead tr u ul""".split()
)
ADDRESS = re.compile(r"(https?|mailto):|#|theme\w+\.html")
OF_PAGE = re.compile(r"data:image/(png|jpeg|gif);base64,")
ATTRIBUTES = {
    "*": ["class", "id", "title"],
    "a": lambda tag, name, value: (
        name == "class" or (name == "href" and bool(ADDRESS.match(value)))
    ),
    "img": lambda tag, name, value: (
        name == "alt" or (name == "src" and bool(OF_PAGE.match(value)))
    ),
    **dict.fromkeys(("td", "th"), ["colspan", "rowspan"]),
    "details": ["open"],
    "ol": ["start"],
}
# What goes with all that is in it; of other tags that may not stay, the text does.
GONE = "script, style, template, title, noscript, svg, math, iframe, object"
# The home folder of somebody, with all above it, on Linux, macOS and Windows. It begins
# after a colour of the terminal, a line's end, or no word and no server.
PERSONAL = re.compile(
    r"""(\x1b\[[\d;]*m|\\n|(?<![\w.~…-])(?<!:/))
    (?:/root\b
    |(?:(?:/[\w.-]+)*?/(?:home|Users)/
       |(?i:[a-z]:[/\\]{1,2}users[/\\]{1,2}))
     [^/\\\s:;,"'<>()\x1b]+)""",
    re.VERBOSE,
)
OF_A_KERNEL = re.compile(r"\S*/ipykernel_\d+/\d+\.py")
UNPUBLISHED = re.compile(r"^.*/github/OWNER/REPOSITORY/.*$", re.MULTILINE)
# of another server, as is Colab's badge: shown as its text
PICTURE = re.compile(r"!\[([^]]*)\]\((?:[a-z]+:)?//[^)]*\)", re.IGNORECASE)
LINK = re.compile(r"(?<!!)\[([^]]+)\]\((?![a-z]+:|#)([^)]*)\)", re.IGNORECASE)


def clean(html: str) -> str:
    """HTML with only those tags and attributes that are known to be harmless."""
    html = html.decode() if isinstance(html, bytes) else str(html)
    soup = BeautifulSoup(html, "html.parser")
    for element in soup.select(GONE):
        element.decompose()
    cleaner = Cleaner(
        TAGS, ATTRIBUTES, protocols={"http", "https", "mailto", "data"}, strip=True
    )
    return cleaner.clean(str(soup))


@cache
def exporter() -> HTMLExporter:
    """nbconvert's, sanitising by our list: its own would show <h2> and <p> as text."""
    config = Config()
    config.NbConvertBase.display_data_priority = list(KINDS)
    config.TagRemovePreprocessor.enabled = True
    config.TagRemovePreprocessor.remove_cell_tags = {"papermill-error-cell-tag"}
    made = HTMLExporter(
        config=config,
        template_name="basic",
        sanitize_html=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    made.register_filter("clean_html", clean)
    return made


def body(notebook, known: dict[str, str]) -> str:
    """The cells of a notebook as HTML; `known` says what to show for a folder."""
    notebook = nbformat.from_dict(masked(notebook, known))
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            titles = re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE)
            heading = (titles or [heading])[-1]
            text = PICTURE.sub(r"\1", UNPUBLISHED.sub("", cell.source))
            cell.source = LINK.sub(link, text)
        for output in cell.get("outputs", []):
            if "data" in output:
                output.data = {k: v for k, v in output.data.items() if k in KINDS}
                # for those who do not see a picture
                output.metadata = {"alt": f"Figure of the section “{heading}”"}
    return exporter().from_notebook_node(notebook)[0]


def link(match: re.Match) -> str:
    """A link to another notebook leads to its page, one to elsewhere in the kit is its
    text.
    """
    page = re.fullmatch(r"(?:\./)?(theme\d\w*)\.ipynb(#.*)?", match[2])
    return f"[{match[1]}]({page[1]}.html{page[2] or ''})" if page else match[1]


def masked(node, known: dict[str, str]):
    """All texts of a notebook made private; pictures as they are."""
    if isinstance(node, str):
        return private(node, known)
    if isinstance(node, list):
        return [masked(each, known) for each in node]
    if isinstance(node, dict):
        return {
            key: value if key.startswith("image/") else masked(value, known)
            for key, value in node.items()
        }
    return node


def private(text: str, known: dict[str, str]) -> str:
    """A text without folders of `known`, names of users and secrets."""
    for folder in sorted(known, key=len, reverse=True):
        text = re.sub(rf"{re.escape(folder)}(?![\w-])", known[folder], text)
    text = OF_A_KERNEL.sub("(a cell)", PERSONAL.sub(r"\1~", text))
    for name, pattern in SECRETS.items():
        weak = name == "a key or password"
        text = pattern.sub(lambda match, weak=weak: _mask(match, weak), text)
    return text


def _mask(match: re.Match, weak: bool) -> str:
    secret = next(filter(None, match.groups()), match[0])
    if weak and (PLACEHOLDER.search(secret) or not re.search(r"\d", secret)):
        return match[0]
    return match[0].replace(secret, f"{secret[:4]}…")


def places(notebook, home: Path) -> dict[str, str]:
    """Folders of the machines that ran and that build, and what is shown for them."""
    ran = notebook.metadata.get("papermill", {})
    given = ran.get("parameters", {})
    kit = ran.get("input_path", "").partition("/notebooks/")[0]
    folders = {str(KIT), str(home), kit, given.get("HOME"), given.get("SOURCE")}
    known = {f: f"…/{Path(f).name}" for f in folders if f and Path(f).is_absolute()}
    return {os.path.expanduser("~"): "~"} | known


def read(path: Path):
    """An executed notebook.

    Raises
    ------
    utils.CourseError
        It is not there, or it is no notebook.
    """
    if not path.exists():
        raise utils.CourseError(f"{path.name} has not been run in this home.")
    wrong = (OSError, ValueError, LookupError, AttributeError, TypeError)
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (*wrong, nbformat.ValidationError) as error:
        raise utils.CourseError(
            f"{path.name} is damaged: run its theme again."
        ) from error
    return notebook


def failure(notebook) -> str:
    """Why a run stopped; "" when it reached its end."""
    code = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    for cell in code:
        for output in cell.outputs:
            expected = "raises-exception" in cell.metadata.get("tags", [])
            if output.output_type == "error" and not expected:
                name = "" if output.ename == "CourseError" else f"{output.ename}: "
                return name + output.evalue
    if all(cell.execution_count for cell in code):
        return ""
    if not any(cell.execution_count for cell in code):
        return "It was not executed."
    return "A cell never finished: its kernel was killed, often for want of memory."
