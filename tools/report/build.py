"""`course.py report`: one PDF from the group's own text and from what the notebooks
left in exports/.

The group writes in HOME/report/sections/, HOME/report/group.toml and
HOME/report/references.bib. Each is made once, from report/templates/, and never written
again. A figure, a table, a section or a bibliography that cannot be used becomes a
visible box: the PDF is always built, or the old one stays.
"""

import argparse
import csv
import json
import re
import shutil
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path

import utils
from tools.report.build import tables as report_tables

KIT = Path(__file__).resolve().parents[2]
KINDS = {"figures": ".png", "tables": ".csv"}
TOTAL = (40, 100)  # pages of the whole report
FOUNDING = (
    "he2016resnet",
    "ioffe2015batchnorm",
    "micikevicius2018mixed",
    "rabanser2019failing",
)
CLOSING = (
    "Exit status: 0 when a PDF was built, a draft included; 2 when none could be built "
    "(the old one stays)."
)


@dataclass(frozen=True)
class Section:
    """One of the twelve required sections: its file in report/sections/ and its budget
    in pages.
    """

    key: str
    file: str | None
    budget: tuple[int, int] | None

    @property
    def theme(self) -> str:
        return self.key if self.key.startswith("theme") else ""


SECTIONS = (
    Section("summary", "01_executive_summary.typ", (1, 2)),
    Section("introduction", "02_introduction.typ", (2, 3)),
    Section("theme1", "03_theme1_data_analysis.typ", (5, 8)),
    Section("theme2", "04_theme2_baseline_model.typ", (6, 8)),
    Section("theme3", "05_theme3_optimization.typ", (7, 10)),
    Section("theme4", "06_theme4_onnx_deployment.typ", (7, 10)),
    Section("theme5", "07_theme5_monitoring.typ", (5, 7)),
    Section("theme6", "08_theme6_drift_detection.typ", (6, 8)),
    Section("theme7", "09_theme7_retraining.typ", (6, 8)),
    Section("theme8", "10_theme8_synthesis.typ", (6, 10)),
    Section("conclusion", "11_conclusion.typ", (2, 3)),
    Section("references", None, None),
)


@dataclass
class Draft:
    """All that one build works on: the home, its record, the language, the group's
    texts, and what is wrong so far.
    """

    home: Path
    results: dict
    lang: str
    final: bool
    group: dict
    texts: dict[str, str]
    errors: list[dict]
    notices: list[str]

    @property
    def folder(self) -> Path:
        return self.home / "report"

    @property
    def words(self) -> dict:
        return toml("words.toml")[self.lang]

    @property
    def broken(self) -> dict[str, dict]:
        """The first error of each section that Typst refused, by the section's file."""
        return {
            error["file"]: error
            for error in reversed(self.errors)
            if error["kind"] == "section"
        }


@cache
def toml(name: str) -> dict:
    """captions.toml or words.toml of the kit."""
    return tomllib.loads((KIT / "report" / name).read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------
# The group's own files
# --------------------------------------------------------------------------------------


def create(home: Path, lang: str | None) -> list[Path]:
    """Make those of the group's files that are not there yet; returns the new ones."""
    folder, made = home / "report", []
    chosen = lang or _language(folder / "group.toml") or "fr"
    templates = KIT / "report" / "templates"
    wanted = {folder / "references.bib": templates / "references.bib"}
    wanted[folder / "group.toml"] = templates / chosen / "group.toml"
    for section in SECTIONS[:-1]:
        wanted[folder / "sections" / section.file] = templates / chosen / section.file
    for path, template in wanted.items():
        if not path.exists():
            with utils.atomic(path) as temporary:
                shutil.copy(template, temporary)
            made.append(path)
    return made


def _language(path: Path) -> str | None:
    """The language that group.toml names, None where there is none to be read."""
    try:
        lang = tomllib.loads(path.read_text(encoding="utf-8")).get("lang")
    except (OSError, ValueError):
        return None
    return lang if lang in ("fr", "en") else None


def read_group(path: Path, words: dict) -> tuple[dict, dict | None]:
    """Title, authors and date, with defaults for what is missing; and the error, if the
    file cannot be read.
    """
    error, known = None, {}
    try:
        known = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:  # a TOML or a Unicode error
        line = re.search(r"line (\d+)", str(problem))
        error = _error(
            "group", "report/group.toml", int(line[1]) if line else 1, str(problem)
        )
    authors = known.get("authors", [])
    group = {
        "title": str(known.get("title") or words["title"]),
        "date": str(known.get("date") or date.today()),
        "authors": [
            str(name) for name in (authors if isinstance(authors, list) else [authors])
        ],
    }
    return group, error


def _error(
    kind: str, file: str, line: int, message: str, hints=(), source: str = ""
) -> dict:
    return {
        "kind": kind,
        "file": file,
        "line": line,
        "message": message,
        "hints": list(hints),
        "source": source,
    }


def without_comments(text: str) -> str:
    """Typst text with comments and raw text blanked, line by line: what is only
    mentioned does not count.
    """
    blank = lambda found: re.sub(r"[^\n]", " ", found[0])  # noqa: E731
    return re.sub(
        r"```.*?```|`[^`\n]*`|/\*.*?\*/|(?<!:)//[^\n]*", blank, text, flags=re.DOTALL
    )


def placeholders(draft: Draft) -> list[dict]:
    """What is still to be written: file, line and the first words of each, in reading
    order.
    """
    found = []
    if not draft.group["authors"]:
        lines = (
            (draft.folder / "group.toml")
            .read_text("utf-8", errors="replace")
            .splitlines()
        )
        at = next(
            (
                number
                for number, line in enumerate(lines, 1)
                if line.startswith("authors")
            ),
            1,
        )
        found.append(
            {
                "section": "",
                "file": "report/group.toml",
                "line": at,
                "text": draft.words["no_authors"],
            }
        )
    for section in SECTIONS[:-1]:
        lines = draft.texts[section.file].splitlines()
        for number, line in enumerate(
            without_comments(draft.texts[section.file]).splitlines(), 1
        ):
            for match in re.finditer(r"(?<![\w-])placeholder\[", line):
                rest = (
                    lines[number - 1][match.end() :].strip()
                    or " ".join(lines[number : number + 1]).strip()
                )
                found.append(
                    {
                        "section": section.key,
                        "file": f"report/sections/{section.file}",
                        "line": number,
                        "text": rest.rstrip("]")[:70],
                    }
                )
    return found


def mentioned(draft: Draft, call: str) -> set[str]:
    """Names that the group's texts place themselves with figure-of("...") or
    table-of("...").
    """
    whole = "\n".join(
        without_comments(text)
        for name, text in draft.texts.items()
        if f"report/sections/{name}" not in draft.broken
    )
    return set(re.findall(rf'{call}\(\s*"([^"\n]+)"', whole))


def reference_places(draft: Draft) -> dict[str, list[str]]:
    """Where each @reference of the texts stands, so that one that leads nowhere can be
    found.
    """
    places = defaultdict(list)
    for name, text in draft.texts.items():
        for number, line in enumerate(without_comments(text).splitlines(), 1):
            for key in re.findall(r"(?<![\w\\])@([\w][\w:.-]*)", line):
                places[key.rstrip(".:")].append(f"report/sections/{name}:{number}")
    return places


# --------------------------------------------------------------------------------------
# What the notebooks left
# --------------------------------------------------------------------------------------


def notebook(theme: str) -> str:
    """The notebook that makes the results of a theme, as a student would name it."""
    files = [section.file for section in SECTIONS if section.theme == theme]
    return f"notebooks/{files[0][3:-4] if files else theme}.ipynb"


def has_run(draft: Draft, theme: str) -> bool:
    stored = any(
        list((draft.home / "exports" / kind).glob(f"{theme}_*{end}"))
        for kind, end in KINDS.items()
    )
    return theme in draft.results or stored


def left_out(draft: Draft, kind: str) -> list[str]:
    """Figures or tables of the kit whose theme left nothing: its section says so once,
    not once for each of them.
    """
    themes = [
        section.theme
        for section in SECTIONS
        if section.theme and not has_run(draft, section.theme)
    ]
    return [
        name for name in toml("captions.toml")[kind] if name.split("_")[0] in themes
    ]


def facts_of(results: dict) -> defaultdict:
    """The numbers that a caption may name: n_train, n_val, ... from the pools of theme
    1; what is not known is '?'.
    """
    pools = results.get("theme1", {}).get("pools", {}).get("All", {})
    return defaultdict(
        lambda: "?",
        {f"n_{pool}": report_tables.number(count) for pool, count in pools.items()},
    )


def names(draft: Draft, kind: str) -> list[str]:
    """Figures or tables of the report in its order: those of the kit, then those that
    the group has added.
    """
    skipped = left_out(draft, kind)
    expected = [name for name in toml("captions.toml")[kind] if name not in skipped]
    stored = {
        path.stem for path in (draft.home / "exports" / kind).glob(f"*{KINDS[kind]}")
    }
    placed = mentioned(draft, "figure-of" if kind == "figures" else "table-of")
    return expected + sorted((stored | placed) - set(expected) - set(skipped))


def described(draft: Draft, kind: str, name: str) -> dict:
    """Caption of one figure or table, and the sentence that stands in its place where
    it is missing.
    """
    caption = toml("captions.toml")[kind].get(name, {}).get(draft.lang)
    theme = re.match(r"theme\d", name)
    source, words = notebook(theme[0]) if theme else "", draft.words
    sentence = f"{name}{KINDS[kind]} " + (
        f"{words['missing']} {source}" if theme else words["nowhere"]
    )
    return {
        "caption": (
            caption.format_map(facts_of(draft.results)) if caption else humanised(name)
        ),
        "known": caption is not None,
        "missing": sentence,
        "damaged": sentence.replace(words["missing"], words["damaged"]),
    }


def humanised(name: str) -> str:
    return re.sub(r"^theme\d_", "", name).replace("_", " ").capitalize()


def figures(draft: Draft) -> dict[str, dict]:
    """What the template needs of every figure; `path` is None for one that is missing
    or cannot be opened.
    """
    found = {}
    for name in names(draft, "figures"):
        item, path = (
            described(draft, "figures", name),
            draft.home / "exports" / "figures" / f"{name}.png",
        )
        item["path"] = f"/exports/figures/{name}.png" if path.is_file() else None
        if item["path"]:
            try:
                with utils.open_image(path) as picture:
                    # what Typst reads
                    if picture.format not in ("PNG", "JPEG", "GIF", "WEBP"):
                        raise OSError(f"{picture.format} is no format of a figure")
                    picture.verify()
            except OSError:
                item |= {"path": None, "missing": item["damaged"]}
        found[name] = item
    return found


def tables(draft: Draft) -> dict[str, dict]:
    """The same for tables, with their cells as they are printed; `rows` is None for one
    that is missing.
    """
    found = {}
    for name in names(draft, "tables"):
        item, path = (
            described(draft, "tables", name),
            draft.home / "exports" / "tables" / f"{name}.csv",
        )
        item["rows"] = None
        if path.is_file():
            try:
                with open(path, newline="", encoding="utf-8") as file:
                    header, *rows = [row for row in csv.reader(file) if row]
                item |= report_tables.layout(
                    header, rows, draft.words, f"exports/tables/{name}.csv"
                )
            except (ValueError, csv.Error):  # empty, torn, or not text
                item["missing"] = item["damaged"]
        found[name] = item
    return found


def criteria(draft: Draft, theme: str) -> list[dict]:
    """The theme's criteria as a table of the report: part of its material, always."""
    words = draft.words
    rows = [
        [
            row["name"],
            _shown(row["value"], words),
            _target(str(row["target"]), words),
            "✓" if row["passed"] else "✗",
        ]
        for row in draft.results.get("criteria", {}).get(theme, [])
    ]
    return given(draft, f"{theme}_criteria", words["criteria_columns"], rows)


def _shown(value, words: dict) -> str:
    if isinstance(value, bool):
        return words["yes" if value else "no"]
    return (
        report_tables.number(value) if isinstance(value, (int, float)) else str(value)
    )


def _target(target: str, words: dict) -> str:
    """A target as it is read: '>= 0.7' becomes '≥ 0.700', '== True' becomes 'yes'."""
    sign, _, value = target.partition(" ")
    if value in ("True", "False"):
        return words["yes" if value == "True" else "no"]
    try:
        value = report_tables.number(int(value) if value.isdecimal() else float(value))
    except ValueError:  # the name of a provider
        pass
    return f"{ {'>=': '≥', '<=': '≤', '==': '='}.get(sign, sign) } {value}"


INTERVALS = {
    "baseline_test_accuracy": ("theme2", "accuracy"),
    "optimized_test_accuracy": ("theme3", "accuracy"),
    "optimized_test_balanced_accuracy": ("theme3", "balanced_accuracy"),
    "optimized_test_auroc": ("theme3", "auroc"),
}
ON_GATE = {
    "clean_accuracy_before": ("old model", "clean"),
    "clean_accuracy_after": ("candidate", "clean"),
    "drift_accuracy_before": ("old model", "drifted"),
    "drift_accuracy_after": ("candidate", "drifted"),
}


def measured_with(results: dict, key: str) -> dict | None:
    """The row of the record that holds the interval and the number of images of a
    headline figure.
    """
    if key in ON_GATE:
        rows = results.get("theme7", {}).get("on_gate", [])
        return next(
            (row for row in rows if (row["model"], row["images"]) == ON_GATE[key]), None
        )
    section, metric = INTERVALS.get(key, ("", ""))
    return results.get(section, {}).get("test", {}).get(metric)


def headline(draft: Draft) -> list[dict]:
    """The headline figures with plain names, and an interval where the
    record has one.
    """
    rows = headline_rows(draft.results, draft.lang)
    return given(draft, "headline", draft.words["headline_columns"], rows)


def headline_rows(results: dict, lang: str) -> list[list[str]]:
    """Name, value and interval of each headline figure of a record, for people."""
    plain, words, rows = toml("captions.toml")["headline"], toml("words.toml")[lang], []
    for key, value in results.get("headline", {}).items():
        kind = plain.get(key, {}).get("kind", "plain")
        row, interval = measured_with(results, key), ""
        if row:
            low, high = (_unit(row[end], kind, words) for end in ("low", "high"))
            interval = f"[{low}, {high}], n = {row['n']:.0f}"
        rows.append(
            [
                plain.get(key, {}).get(lang, humanised(key)),
                _unit(value, kind, words),
                interval,
            ]
        )
    return rows


def _unit(value, kind: str, words: dict) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _shown(value, words)
    if kind == "fraction":
        return f"{100 * value:.1f} %"
    return report_tables.number(value) + {"ratio": " ×", "seconds": " s"}.get(kind, "")


def given(
    draft: Draft, name: str, columns: list[str], rows: list[list[str]]
) -> list[dict]:
    """A table that comes from the record and not from a file of exports/; nothing where
    it has no rows.
    """
    if not rows:
        return []
    layout = report_tables.layout(columns, rows, draft.words, "", plain=True)
    return [
        {
            "kind": "given",
            "name": name,
            "table": layout,
            "caption": draft.words[name.split("_")[-1]],
        }
    ]


def facts(draft: Draft) -> list[list[str]]:
    """Dataset, images, pools, run, machine and versions: for the title page and the
    introduction.
    """
    meta, words = draft.results["meta"], draft.words
    first, versions = draft.results.get("theme1", {}), meta.get("environment", {})
    spec = utils.DATASETS.get(meta.get("dataset"))
    pools = {
        name: count
        for name, count in first.get("pools", {}).get("All", {}).items()
        if name != "All"
    }
    source = meta.get("source", "?")
    rows = [
        [
            words["dataset"],
            f"{meta.get('dataset', '?')}" + (f" ({spec.kaggle})" if spec else ""),
        ],
        [
            words["source"],
            source if source in ("sample", "kaggle") else Path(source).name,
        ],
        [words["classes"], ", ".join(spec.classes) if spec else ""],
        [
            words["images"],
            (
                words["usable"].format(**first)
                if {"images", "usable"} <= first.keys()
                else ""
            ),
        ],
        [
            words["pools"],
            " · ".join(f"{name} {count}" for name, count in pools.items()),
        ],
        [
            words["run"],
            words["run_words"].format(
                profile=meta.get("profile", "?"),
                seed=meta.get("seed", "?"),
                size=meta.get("image_size", "?"),
            ),
        ],
        [words["hardware"], meta.get("hardware", "")],
        [
            words["versions"],
            ", ".join(
                f"{name} {versions[name]}"
                for name in ("python", "torch", "onnxruntime")
                if name in versions
            ),
        ],
    ]
    return [row for row in rows if row[1]]


def material(draft: Draft, section: Section, found: dict) -> list[dict]:
    """What is placed after the group's text: its criteria, then every table and figure
    that the texts do not place.
    """
    if section.key == "summary":
        return headline(draft)
    if section.key == "introduction":
        return given(draft, "facts", [], facts(draft))
    if not section.theme:
        return []
    rest = criteria(draft, section.theme)
    for kind, call in (("tables", "table-of"), ("figures", "figure-of")):
        placed = mentioned(draft, call)
        rest += [
            {"kind": kind[:-1], "name": name}
            for name in found[kind]
            if name.startswith(f"{section.theme}_") and name not in placed
        ]
    return rest


def notices(draft: Draft, section: Section) -> list[str]:
    """Boxes at the head of a section: its theme has not run, or its files have changed
    since.
    """
    if not section.theme:
        return []
    if not has_run(draft, section.theme):
        return [f"{draft.words['not_run']} {notebook(section.theme)}"]
    changed = [
        re.search(r"stale: (.+) has changed", line)[1]
        for line in utils.stale_sections(
            draft.home, {section.theme: draft.results.get(section.theme, {})}
        )
    ]
    return (
        [f"{draft.words['stale']} {', '.join(changed)} {draft.words['again']}"]
        if changed
        else []
    )


# --------------------------------------------------------------------------------------
# Typst
# --------------------------------------------------------------------------------------


def write_input(draft: Draft) -> dict:
    """Write report/.build/: the template, the bibliography, data.json and main.typ.
    Returns the data.
    """
    build, found = (
        draft.folder / ".build",
        {
            "figures": figures(draft),
            "tables": tables(draft),
        },
    )
    group_text = (draft.folder / "references.bib").read_text(
        encoding="utf-8", errors="replace"
    )
    fallback = any(error["kind"] == "bibliography" for error in draft.errors)
    library = (
        (KIT / "report" / "templates" / "references.bib").read_text("utf-8")
        if fallback
        else group_text
    )
    keys = re.findall(r"@\w+\s*\{\s*([^,\s]+)\s*,", library)
    sections = {
        section.key: {
            "title": draft.words[section.key],
            "budget": section.budget,
            "notices": notices(draft, section),
            "material": material(draft, section, found),
        }
        for section in SECTIONS
    }
    images = draft.folder / "images"
    source = draft.results["meta"].get("source")
    sample = draft.words[
        (
            "sample"
            if "pneumonia" in draft.results["meta"].get("dataset", "")
            else "sample_other"
        )
    ]
    data = {
        **found,
        "sections": sections,
        "words": draft.words,
        "lang": draft.lang,
        "final": draft.final,
        "group": draft.group,
        "notices": draft.notices,
        "facts": facts(draft),
        "keys": keys,
        "left_out": {kind: left_out(draft, kind) for kind in KINDS},
        "founding": [key for key in FOUNDING if key in keys],
        "references": reference_places(draft),
        "sample": sample if source == "sample" else "",
        "accent": utils.COLOURS[0],
        "alarm": utils.COLOURS[1],
        "good": utils.COLOURS[2],
        "images": sorted(path.name for path in images.glob("*")),
        "broken": draft.broken,
    }
    utils.write_json(build / "data.json", data)
    for name, text in (
        ("template.typ", (KIT / "report" / "template.typ").read_text("utf-8")),
        ("references.bib", library),
        ("main.typ", main_text(draft)),
    ):
        with utils.atomic(build / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return data


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
    for section in SECTIONS[:-1]:
        path = f"report/sections/{section.file}"
        body = (
            f'broken(data.broken.at("{path}"))'
            if path in draft.broken
            else f'include "/{path}"'
        )
        lines.append(f'#section("{section.key}", {body})')
    return "\n".join(
        [
            *lines,
            '#section("references", references("references.bib"))',
            "#measured()",
            "",
        ]
    )


def compile_pdf(home: Path) -> tuple[bytes, dict]:
    """The PDF, and what Typst measured: pages in all, first and last page of each
    section, lost references.

    Raises
    ------
    typst.TypstError
        A section, or the bibliography, cannot be read.
    """
    import typst

    fonts = typst.Fonts(include_system_fonts=False)
    compiler = typst.Compiler(
        str(home / "report" / ".build" / "main.typ"), root=str(home), font_paths=fonts
    )
    pdf = compiler.compile(format="pdf")
    return pdf, json.loads(compiler.query("<measured>", field="value", one=True))


def blame(draft: Draft, error) -> list[dict]:
    """The errors of one diagnostic, each with the file and the line of the group's text
    that it is about.
    """
    found = {}
    for part in re.split(r"^error: ", error.diagnostic, flags=re.MULTILINE)[1:]:
        message = part.splitlines()[0]
        place = re.search(r"report/sections/([\w.-]+\.typ):(\d+):\d+", part)
        whole = re.search(r"report/sections/([\w.-]+\.typ)", part)
        if place or whole:
            name, line = (place or whole)[1], int(place[2]) if place else 1
            lines = draft.texts.get(name, "").splitlines()
            source = lines[line - 1].strip() if line <= len(lines) else ""
            hints = re.findall(r"= hint: (.+)", part)
            found.setdefault(
                name,
                _error(
                    "section", f"report/sections/{name}", line, message, hints, source
                ),
            )
        elif "references" in part:
            at = re.search(r"references\.bib:(\d+)", part)
            found["bib"] = _error(
                "bibliography",
                "report/references.bib",
                int(at[1]) if at else 1,
                message,
            )
    known = {(entry["kind"], entry["file"]) for entry in draft.errors}
    return [
        entry for entry in found.values() if (entry["kind"], entry["file"]) not in known
    ]


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
            new = blame(draft, error)
            if not new:
                raise utils.CourseError(
                    "Typst could not build the report:"
                    f" {error.diagnostic or error.message}\nAn earlier report.pdf is"
                    " untouched."
                ) from error
            draft.errors += new
            draft.notices += [
                f"{draft.words['bibliography']} ({entry['message']})"
                for entry in new
                if entry["kind"] == "bibliography"
            ]


# --------------------------------------------------------------------------------------
# What the build says
# --------------------------------------------------------------------------------------


def verdict(pages: int, budget: tuple[int, int] | None) -> str | None:
    if budget is None:
        return None
    return "short" if pages < budget[0] else "long" if pages > budget[1] else "within"


def summarise(draft: Draft, measured: dict, data: dict) -> dict:
    """The content of report.json: pages by section against their budgets, and
    everything that is still open.
    """
    open_, rows = placeholders(draft), []
    for section in SECTIONS:
        first, last = measured["sections"][section.key]
        pages = last - first + 1
        rows.append(
            {
                "key": section.key,
                "title": draft.words[section.key],
                "pages": pages,
                "budget": section.budget,
                "verdict": verdict(pages, section.budget),
                "placeholders": sum(entry["section"] == section.key for entry in open_),
            }
        )
    places = reference_places(draft)
    lost = [
        _error("reference", *place.rsplit(":", 1), f"@{key} leads nowhere")
        for key in dict.fromkeys(measured["unresolved"])
        for place in places.get(key, [])
    ]
    errors = draft.errors + [entry | {"line": int(entry["line"])} for entry in lost]
    missing = [
        item["missing"]
        for kind, gap in (("figures", "path"), ("tables", "rows"))
        for item in data[kind].values()
        if item[gap] is None
    ]
    warnings = [line for section in SECTIONS for line in notices(draft, section)]
    keys = ("file", "line", "message")
    return {
        "pages": measured["pages"],
        "sections": rows,
        "placeholders": [
            {key: entry[key] for key in ("file", "line", "text")} for entry in open_
        ],
        "errors": [{key: entry[key] for key in keys} for entry in errors],
        "missing": missing,
        "notices": warnings,
        "draft": bool(open_ or errors or missing or warnings),
        "lang": draft.lang,
        "final": draft.final,
        "built": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def describe(summary: dict, path: Path) -> str:
    """What the console shows: section by section, the whole, what is still open, and
    draft or complete.
    """
    width = max(len(row["title"]) for row in summary["sections"])
    lines = [f"{'section':<{width}}  pages  budget  verdict  placeholders"]
    for row in summary["sections"]:
        budget = "{}–{}".format(*row["budget"]) if row["budget"] else "–"
        lines.append(
            f"{row['title']:<{width}}  {row['pages']:>5}  {budget:>6} "
            f" {row['verdict'] or '–':<7}  {row['placeholders'] or '–':>12}"
        )
    unwritten = len(summary["placeholders"])
    lines += [
        "",
        f"{summary['pages']} pages, {verdict(summary['pages'], TOTAL)}"
        f" ({TOTAL[0]}–{TOTAL[1]})"
        + (
            f", with {unwritten} placeholders in the place of your own words"
            if unwritten
            else ""
        ),
    ]
    lines += ["errors:"] * bool(summary["errors"])
    lines += [
        f"  {entry['file']}:{entry['line']}  {entry['message']}"
        for entry in summary["errors"]
    ]
    lines += ["still to be written:"] * bool(summary["placeholders"]) + to_write(
        summary["placeholders"]
    )
    for head in ("missing", "notices"):
        lines += [f"{head}:"] * bool(summary[head]) + [
            f"  {line}" for line in summary[head]
        ]
    return "\n".join(
        [*lines, "", f"{'draft' if summary['draft'] else 'complete'}: {path}"]
    )


def to_write(entries: list[dict], most: int = 12) -> list[str]:
    """Placeholders for the console: each with its first words, or, where they are many,
    by file.
    """
    if len(entries) <= most:
        return [
            f"  {entry['file']}:{entry['line']}  {entry['text']}" for entry in entries
        ]
    files = defaultdict(list)
    for entry in entries:
        files[entry["file"]].append(str(entry["line"]))
    return [f"  {file}:{', '.join(numbers)}" for file, numbers in files.items()]


def build(home: str | Path, lang: str | None = None, final: bool = False) -> dict:
    """Build HOME/report/report.pdf, print what is still open, and write the same to
    HOME/report/report.json.

    Parameters
    ----------
    home : folder of all artefacts; only its exports/ and report/ are read.
    lang : {"fr", "en"}, optional
        Language of headings and captions, and of the templates when they are made;
        None: what report/group.toml says.
    final : bool
        Leave page budgets and the frames of placeholders out.

    Returns
    -------
    dict : pages, sections, placeholders, errors, missing, notices, draft, lang, final,
    built.

    Raises
    ------
    utils.CourseError
        No record, a disk that is full, or a template that Typst refuses; an earlier PDF
        is untouched.
    """
    home = Path(home).expanduser().resolve()
    results = utils.read_record(home)
    made = create(home, lang)
    written = _language(home / "report" / "group.toml") or "fr"
    lang = lang or written
    if made:
        print(
            f"{len(made)} files made in {home / 'report'}: yours to edit, never written"
            " again."
        )
    if lang != written:
        print(
            f"Headings and captions are in {lang!r}; your own texts stay as they are."
        )
    group, error = read_group(home / "report" / "group.toml", toml("words.toml")[lang])
    texts = {
        section.file: (
            (home / "report" / "sections" / section.file).read_text(
                "utf-8", errors="replace"
            )
        )
        for section in SECTIONS[:-1]
    }
    draft = Draft(
        home, results, lang, final, group, texts, [error] if error else [], []
    )
    draft.notices += [f"{draft.words['group']} ({error['message']})"] if error else []
    try:
        pdf, measured, data = typeset(draft)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as problem:
        raise utils.CourseError(
            f"{home / 'exports' / 'results.json'} holds what no notebook records"
            f" ({problem}): run the notebooks again, then the report."
        ) from problem
    with utils.atomic(home / "report" / "report.pdf") as temporary:
        temporary.write_bytes(pdf)
    summary = summarise(draft, measured, data)
    utils.write_json(home / "report" / "report.json", summary)
    print(describe(summary, home / "report" / "report.pdf"))
    return summary


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="course.py report",
        description=__doc__,
        epilog=CLOSING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--home",
        type=Path,
        default=KIT,
        help="folder of all artefacts (default: the kit)",
    )
    parser.add_argument(
        "--lang",
        choices=("fr", "en"),
        help="default: what report/group.toml says, else fr",
    )
    parser.add_argument(
        "--final",
        action="store_true",
        help="without page budgets and frames of placeholders",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    try:
        build(options.home, options.lang, options.final)
    except utils.CourseError as error:
        print(error)
        return 2
    return 0
