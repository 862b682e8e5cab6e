"""HTML that others wrote, reduced to what shows: nothing in it runs, leads away by
itself, or asks the network.

A list of what may stay, as no list of what must go is ever complete. bleach reads HTML
as browsers do; it comes with nbconvert, and tinycss2 for styles with it.
"""

import re
from functools import cache
from types import SimpleNamespace

TAGS = frozenset(
    """a abbr b blockquote br caption cite code col colgroup dd del details dfn div dl dt em figcaption
figure h1 h2 h3 h4 h5 h6 hr i img input ins kbd li mark ol p pre q s samp small span strong sub summary sup table tbody
td tfoot th thead time tr u ul var wbr""".split()
)
ATTRIBUTES = {
    "a": {"href"},
    "img": {"src", "alt", "width", "height"},
    "th": {"colspan", "rowspan", "scope", "valign"},
    "td": {"colspan", "rowspan", "valign"},
    "col": {"span"},
    "ol": {"start"},
    "details": {"open"},
    "input": {"type", "checked", "disabled"},
    "time": {"datetime"},
}
OF_ALL = {"class", "dir", "id", "lang", "style", "title"}
# What goes with all that is in it; of other elements that may not stay, the text does.
GONE = """script, style, template, title, noscript, svg, math, iframe, object, embed, audio, video, canvas, button,
select, textarea, input:not([type=checkbox])"""
# What pandas' Styler sets, and colours of a terminal. No value may name an address: see
# VALUE.
PROPERTIES = frozenset(
    """background background-color border border-bottom border-collapse border-color border-left
border-right border-top color font-family font-size font-style font-weight height line-height max-width min-width
padding text-align text-decoration vertical-align white-space width""".split()
)
VALUE = re.compile(
    r"(?:[\w\s#%.,+-]|\b(?:rgba?|hsla?|linear-gradient)\(|\))*(?:!important)?"
)
# a selector of Styler: one table, not the page around it
OF_A_TABLE = re.compile(r"\s*#T_[\w-]+[\w\s.:#()>-]*")


def clean(html: str) -> str:
    """The HTML with only those elements, attributes and styles that are known to be
    harmless; unclosed ones closed.

    Links and pictures may still lead to other machines: what becomes of them is the
    caller's to say."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    rules = "".join(table_rules(style.get_text()) for style in soup.find_all("style"))
    for element in soup.select(GONE):
        element.decompose()
    return (f"<style>{rules}</style>\n" if rules else "") + cleaner().clean(str(soup))


@cache
def cleaner():
    """bleach's, with our lists; it parses with a state of its own, so one thread may
    use it.
    """
    from bleach.sanitizer import Cleaner

    return Cleaner(
        TAGS,
        lambda tag, name, value: name in OF_ALL or name in ATTRIBUTES.get(tag, ()),
        strip=True,
        protocols={"http", "https", "mailto", "data"},
        css_sanitizer=SimpleNamespace(sanitize_css=declarations),
    )


def declarations(css: str) -> str:
    """Those declarations of a style attribute that set colours, type and measures."""
    import tinycss2

    found = tinycss2.parse_declaration_list(
        css, skip_comments=True, skip_whitespace=True
    )
    known = [
        each
        for each in found
        if each.type == "declaration" and each.lower_name in PROPERTIES
    ]
    return " ".join(
        f"{each.serialize()};"
        for each in known
        if VALUE.fullmatch(each.serialize().partition(":")[2])
    )


def table_rules(css: str) -> str:
    """Those rules of a style sheet that are about one table of Styler's."""
    import tinycss2

    kept = []
    for rule in tinycss2.parse_stylesheet(
        css, skip_comments=True, skip_whitespace=True
    ):
        selectors = (
            tinycss2.serialize(rule.prelude) if rule.type == "qualified-rule" else ""
        )
        if all(OF_A_TABLE.fullmatch(selector) for selector in selectors.split(",")):
            kept.append(
                f"{selectors.strip()} {{"
                f" {declarations(tinycss2.serialize(rule.content))} }}\n"
            )
    return "".join(kept)
