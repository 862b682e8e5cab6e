"""From the texts and the material to a PDF: the input of Typst, and whom it blames."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import utils
from kit import figures
from tools.report import material
from tools.report.group import (
    KIT,
    TEMPLATES,
    Draft,
    Fault,
    reference_places,
)
from tools.shared.sections import SECTIONS, WRITTEN

FOUNDING = (
    "he2016resnet",
    "ioffe2015batchnorm",
    "micikevicius2018mixed",
    "rabanser2019failing",
)


def write_input(draft: Draft) -> dict:
    """Write report/.build/: the template, the bibliography, data.json and main.typ.
    Returns the data.
    """
    build = draft.folder / ".build"
    fallback = any(fault.kind == "bibliography" for fault in draft.faults)
    bibliography = (TEMPLATES if fallback else draft.folder) / "references.bib"
    library = bibliography.read_text("utf-8", errors="replace")
    data = data_of(draft, re.findall(r"@\w+\s*\{\s*([^,\s]+)\s*,", library))
    utils.write_json(build / "data.json", data)
    for name, text in (
        ("template.typ", (KIT / "report" / "template.typ").read_text("utf-8")),
        ("references.bib", library),
        ("main.typ", main_text(draft)),
    ):
        with utils.atomic(build / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return data


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
        "images": sorted(path.name for path in (draft.folder / "images").glob("*")),
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


def compile_pdf(home: Path) -> tuple[bytes, dict]:
    """The PDF, and what Typst measured: pages in all, first and last page of each
    section, lost references.

    Raises
    ------
    typst.TypstError
        A section, or the bibliography, cannot be read.
    """
    import typst

    main = str(home / "report" / ".build" / "main.typ")
    fonts = typst.Fonts(include_system_fonts=False)
    compiler = typst.Compiler(main, root=str(home), font_paths=fonts)
    pdf = compiler.compile(format="pdf")
    return pdf, json.loads(compiler.query("<measured>", field="value", one=True))


def blame(draft: Draft, diagnostic: str) -> list[Fault]:
    """The new faults of one diagnostic, each with the file and the line of the group's
    text that it is about.
    """
    found = {}
    for part in re.split(r"^error: ", diagnostic, flags=re.MULTILINE)[1:]:
        message = part.splitlines()[0]
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


def typeset(draft: Draft) -> tuple[bytes, dict, dict]:
    """Build the PDF; a section that Typst refuses gives its place to a box, until the
    rest can be built.

    Returns
    -------
    the PDF, what Typst measured, and the data that the template was given.

    Raises
    ------
    utils.CourseError
        Typst refuses what is not the group's text.
    """
    import typst

    while True:
        data = write_input(draft)
        try:
            return *compile_pdf(draft.home), data
        except typst.TypstError as error:
            new = blame(draft, error.diagnostic)
            if not new:
                raise utils.CourseError(
                    "Typst could not build the report:"
                    f" {error.diagnostic or error.message}\nAn earlier report.pdf is"
                    " untouched."
                ) from error
            draft.faults += new
            draft.notices += [
                f"{draft.words['bibliography']} ({fault.message})"
                for fault in new
                if fault.kind == "bibliography"
            ]
