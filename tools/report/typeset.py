"""From the texts and the material to a PDF: the input of Typst, and whom it blames."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import utils
from kit import figures
from kit.files import read_text
from tools.report import material
from tools.report.group import (
    KIT,
    TEMPLATES,
    Draft,
    Fault,
    reference_places,
    without_comments,
)
from tools.shared.sections import SECTIONS, WRITTEN

FOUNDING = (
    "he2016resnet",
    "ioffe2015batchnorm",
    "micikevicius2018mixed",
    "rabanser2019failing",
)


def write_input(draft: Draft) -> None:
    """Write report/.build/: the template, the bibliography, data.json and main.typ."""
    build = draft.folder / ".build"
    fallback = any(fault.kind == "bibliography" for fault in draft.faults)
    bibliography = (TEMPLATES if fallback else draft.folder) / "references.bib"
    library = read_text(bibliography)
    data = data_of(draft, re.findall(r"@\w+\s*\{\s*([^,\s]+)\s*,", library))
    utils.write_json(build / "data.json", data)
    for name, text in (
        ("template.typ", (KIT / "report" / "template.typ").read_text("utf-8")),
        ("references.bib", library),
        ("main.typ", main_text(draft)),
    ):
        with utils.atomic(build / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def data_of(draft: Draft, keys: list[str]) -> dict:
    """All that the template reads; `keys` are those of the bibliography."""
    found = {"figures": material.figures(draft), "tables": material.tables(draft)}
    sections = {
        section.key: {
            "title": draft.words[section.key],
            "budget": section.budget,
            "notices": material.notices(draft, section),
            "material": material.material(draft, section, found),
        }
        for section in SECTIONS
    }
    meta = draft.results["meta"]
    medical = "pneumonia" in meta.get("dataset", "")
    sample = draft.words["sample" if medical else "sample_other"]
    return {
        **found,
        "sections": sections,
        "words": draft.words,
        "lang": draft.lang,
        "final": draft.final,
        "group": draft.group,
        "notices": draft.notices,
        "facts": material.facts(draft),
        "keys": keys,
        "left_out": {kind: material.left_out(draft, kind) for kind in material.KINDS},
        "founding": [key for key in FOUNDING if key in keys],
        "references": reference_places(draft),
        "sample": sample if meta.get("source") == "sample" else "",
        "accent": figures.COLOURS[0],
        "alarm": figures.COLOURS[1],
        "good": figures.COLOURS[2],
        "images": material.images(draft),
        "broken": {path: asdict(fault) for path, fault in draft.broken.items()},
    }


def main_text(draft: Draft) -> str:
    """The document: the title page, the sections in their order, a box in the place of
    each broken one.
    """
    lines = [
        '#import "template.typ": *',
        "#show: report",
        "#title-page()",
        "#contents()",
    ]
    for section in WRITTEN:
        body = f'include "/{section.path}"'
        if section.path in draft.broken:
            body = f'broken(data.broken.at("{section.path}"))'
        lines.append(f'#section("{section.key}", {body})')
    lines += ['#section("references", references("references.bib"))', "#measured()", ""]
    return "\n".join(lines)


def compile_pdf(home: Path) -> tuple[bytes, dict, list[str]]:
    """The PDF, what Typst measured (pages in all, first and last page of each section,
    lost references, boxes in the place of something), and the characters that no font
    has.

    Raises
    ------
    typst.TypstError
        A section, or the bibliography, cannot be read.
    """
    import typst

    own, main = home / "report" / "fonts", home / "report" / ".build" / "main.typ"
    paths = [str(own)] if own.is_dir() else []
    fonts = typst.Fonts(include_system_fonts=False, font_paths=paths)
    compiler = typst.Compiler(str(main), root=str(home), font_paths=fonts)
    pdf, lost = compiler.compile(format="pdf"), ""
    measured = json.loads(compiler.query("<measured>", field="value", one=True))
    try:
        # a PDF for archives must show every character: Typst names those that it cannot
        compiler.compile(format="pdf", pdf_standards="a-2b")
    except typst.TypstError as error:
        lost = error.diagnostic
    found = re.findall(r'the text `"(.+?)"` could not be displayed', lost)
    plain = [re.sub(r"\\u\{(\w+)\}", lambda c: chr(int(c[1], 16)), c) for c in found]
    return pdf, measured, sorted(set(plain))


def lost_letters(draft: Draft, letters: list[str]) -> list[Fault]:
    """One fault for each file that holds characters which no font has, at the first."""
    if not letters:
        return []
    build = draft.folder / ".build" / "references.bib"
    texts = {path: without_comments(text) for path, text in draft.texts.items()}
    texts["report/group.toml"] = read_text(draft.folder / "group.toml")
    texts["report/references.bib"] = read_text(build)
    for place in material.places(draft, "tables").values():
        texts[place] = read_text(draft.home / place)
    faults, rest = [], set(letters)
    for path, text in texts.items():
        if here := [letter for letter in letters if letter in text]:
            line = text.count("\n", 0, min(map(text.index, here))) + 1
            faults.append(Fault("letters", path, line, no_font_has(here)))
            rest.difference_update(here)
    if rest:  # made by the code of a section
        told = no_font_has(sorted(rest))
        faults.append(Fault("letters", "report/report.pdf", 1, told))
    return faults


def no_font_has(letters: list[str]) -> str:
    return (
        f"no font of the report has {', '.join(map(named, letters))}: put one that does"
        " (.ttf or .otf) into report/fonts/"
    )


def named(letter: str) -> str:
    """A character and its numbers, as not every screen can show it."""
    return f"{letter} ({' '.join(f'U+{ord(c):04X}' for c in letter)})"


def blame(draft: Draft, diagnostic: str) -> list[Fault]:
    """The new faults of one diagnostic, each with the file and the line of the group's
    text that it is about.
    """
    found = {}
    for part in re.split(r"^error: ", diagnostic, flags=re.MULTILINE)[1:]:
        message, part = part.splitlines()[0], part.replace("\\", "/")  # on Windows
        place = re.search(r"(report/sections/[\w.-]+\.typ):(\d+):\d+", part)
        whole = re.search(r"(report/sections/[\w.-]+\.typ)", part)
        if whole:
            path, line = (place[1], int(place[2])) if place else (whole[1], 1)
            lines = draft.texts.get(path, "").splitlines()
            source = lines[line - 1].strip() if line <= len(lines) else ""
            hints = tuple(re.findall(r"= hint: (.+)", part))
            found.setdefault(path, Fault("section", path, line, message, hints, source))
        elif "references" in part:
            at = re.search(r"references\.bib:(\d+)", part)
            line, file = int(at[1]) if at else 1, "report/references.bib"
            found[file] = Fault("bibliography", file, line, message)
    known = {(fault.kind, fault.file) for fault in draft.faults}
    return [fault for fault in found.values() if (fault.kind, fault.file) not in known]


def typeset(draft: Draft) -> tuple[bytes, dict]:
    """Build the PDF; a section that Typst refuses gives its place to a box, until the
    rest can be built.

    Returns
    -------
    the PDF, and what Typst measured.

    Raises
    ------
    utils.CourseError
        Typst refuses what is not the group's text.
    """
    import typst

    while True:
        write_input(draft)
        try:
            pdf, measured, letters = compile_pdf(draft.home)
            lost = lost_letters(draft, letters)
            new = [fault for fault in lost if fault not in draft.faults]
            if not new:
                return pdf, measured
        except typst.TypstError as error:
            new = blame(draft, error.diagnostic)
            if not new:
                raise utils.CourseError(
                    "Typst could not build the report:"
                    f" {error.diagnostic or error.message}\nAn earlier report.pdf is"
                    " untouched."
                ) from error
        draft.faults += new
        draft.notices += notices_of(draft, new)


def notices_of(draft: Draft, new: list[Fault]) -> list[str]:
    """What the title page says of faults that belong to no section."""
    words = draft.words
    told = [
        f"{words['bibliography']} ({fault.message})"
        for fault in new
        if fault.kind == "bibliography"
    ]
    lost = " ".join(fault.message for fault in new if fault.kind == "letters")
    if numbers := sorted(set(re.findall(r"U\+\w+", lost))):
        told.append(f"{words['letters']} {', '.join(numbers)}. {words['add_font']}")
    return told
