"""What the notebooks left in exports/, as the report prints it."""

import re
from collections import defaultdict
from pathlib import Path

import utils
from kit.archive import MANGLED
from kit.record import stale_sections
from tools.report import pictures
from tools.report.group import Draft, mentioned, toml
from tools.report.tables import layout, read_table
from tools.shared import text
from tools.shared.pictures import SUFFIXES
from tools.shared.sections import ON_GATE, WRITTEN, Section, timing_of

KINDS = {"figures": SUFFIXES, "tables": (".csv",)}  # the first is that of the notebooks
CALLS = {"tables": "table-of", "figures": "figure-of"}  # as a section places them
STEMS = {section.theme: section.file[3:-4] for section in WRITTEN if section.theme}
INTERVALS = {
    "baseline_test_accuracy": ("theme2", "accuracy"),
    "optimized_test_accuracy": ("theme3", "accuracy"),
    "optimized_test_balanced_accuracy": ("theme3", "balanced_accuracy"),
    "optimized_test_auroc": ("theme3", "auroc"),
}


def notebook(theme: str) -> str:
    """The notebook that makes the results of a theme, as a student would name it."""
    return f"notebooks/{STEMS.get(theme, theme)}.ipynb"


def places(draft: Draft, kind: str) -> dict[str, str]:
    """Where the figures or tables of exports/ lie, by their names; of two of one name,
    that of the notebooks.
    """
    ends, found = KINDS[kind], {}
    for path in sorted((draft.home / "exports" / kind).glob("[!.]*")):
        odd = path.suffix.lower() not in ends or MANGLED.search(path.name)
        if odd or not path.is_file():
            continue
        if path.suffix == ends[0] or path.stem not in found:
            found[path.stem] = f"exports/{kind}/{path.name}"
    return found


def has_run(draft: Draft, theme: str) -> bool:
    return theme in draft.results or any(
        name.startswith(f"{theme}_") for kind in KINDS for name in places(draft, kind)
    )


def left_out(draft: Draft, kind: str) -> list[str]:
    """Figures or tables of the kit whose theme left nothing: its section says so once,
    not once for each of them.
    """
    gone = [theme for theme in STEMS if not has_run(draft, theme)]
    return [name for name in toml("captions.toml")[kind] if name.split("_")[0] in gone]


def names(draft: Draft, kind: str) -> list[str]:
    """Figures or tables of the report in its order: those of the kit, then those that
    the group has added.
    """
    skipped = left_out(draft, kind)
    expected = [name for name in toml("captions.toml")[kind] if name not in skipped]
    own = places(draft, kind).keys() | mentioned(draft, CALLS[kind])
    return expected + sorted(own - set(expected) - set(skipped))


def facts_of(results: dict) -> defaultdict:
    """The numbers that a caption may name: n_train, n_val, ... from the pools of theme
    1; what is not known is '?'.
    """
    pools = results.get("theme1", {}).get("pools", {}).get("All", {})
    known = {f"n_{pool}": text.number(count) for pool, count in pools.items()}
    return defaultdict(lambda: "?", known)


def described(draft: Draft, kind: str, name: str) -> dict:
    """Caption of one figure or table, and the sentence that stands in its place where
    it is missing.
    """
    words, file = draft.words, f"{name}{KINDS[kind][0]}"
    caption = toml("captions.toml")[kind].get(name, {}).get(draft.lang)
    missing = damaged = f"{file} {words['nowhere']}"
    if theme := re.match(r"theme\d", name):
        missing = f"{file} {words['missing']} {notebook(theme[0])}"
        damaged = f"{file} {words['damaged']} {notebook(theme[0])}"
    return {
        "caption": (
            caption.format_map(facts_of(draft.results)) if caption else humanised(name)
        ),
        "known": caption is not None,
        "missing": missing,
        "damaged": damaged,
    }


def humanised(name: str) -> str:
    return re.sub(r"^theme\d_", "", name).replace("_", " ").capitalize()


def figures(draft: Draft) -> dict[str, dict]:
    """What the template needs of every figure; `path` is None for one that is missing
    or cannot be printed.
    """
    found, there = {}, places(draft, "figures")
    for name in names(draft, "figures"):
        item = found[name] = described(draft, "figures", name) | {"path": None}
        if place := there.get(name):
            item |= picture(draft, place)
            if item["known"]:
                item["missing"] = item["damaged"]
    return found


def picture(draft: Draft, place: str) -> dict:
    """A file that the template prints, or the sentence in its place."""
    found = pictures.look(draft.home, place, draft.words)
    return found | {"missing": refused(draft, place, found.get("why"), "save_picture")}


def refused(draft: Draft, place: str, why: str | None, advice: str) -> str:
    """Why a file of the group's own cannot be printed, and what to do."""
    told = draft.words["unprintable"].format(why=why)
    return f"{place} {told} {draft.words[advice]}"


def images(draft: Draft) -> dict[str, dict]:
    """The group's own pictures, by the names that its texts use."""
    files = pictures.own(draft.folder / "images", mentioned(draft, "image-of"))
    return {
        name: picture(draft, f"report/images/{file}") for name, file in files.items()
    }


def tables(draft: Draft) -> dict[str, dict]:
    """The same as `figures` for tables, with their cells as they are printed; `rows` is
    None for one that is missing.
    """
    found, there = {}, places(draft, "tables")
    for name in names(draft, "tables"):
        item = found[name] = described(draft, "tables", name) | {"rows": None}
        if not (place := there.get(name)):
            continue
        try:
            header, *rows = read_table(draft.home / place, draft.words)
            item |= layout(header, rows, draft.words, place)
        except ValueError as error:  # of read_table: its sentence
            mine = refused(draft, place, str(error), "save_table")
            item["missing"] = item["damaged"] if item["known"] else mine
    return found


def given(
    draft: Draft, name: str, columns: list[str], rows: list[list[str]]
) -> list[dict]:
    """A table that comes from the record and not from a file of exports/; nothing where
    it has no rows.
    """
    if not rows:
        return []
    table = layout(columns, rows, draft.words, "", plain=True)
    caption = draft.words[name.split("_")[-1]]
    return [{"kind": "given", "name": name, "table": table, "caption": caption}]


def criteria(draft: Draft, theme: str) -> list[dict]:
    """The theme's criteria as a table of the report: part of its material, always."""
    words = draft.words
    rows = [
        [
            row["name"],
            text.shown(row["value"], words["yes"], words["no"]),
            text.target(str(row["target"]), words["yes"], words["no"]),
            "✓" if row["passed"] else "✗",
        ]
        for row in draft.results.get("criteria", {}).get(theme, [])
    ]
    return given(draft, f"{theme}_criteria", words["criteria_columns"], rows)


def measured_with(results: dict, key: str) -> dict | None:
    """The row of the record that holds the interval and the number of images of a
    headline figure.
    """
    if key in ON_GATE:
        rows = results.get("theme7", {}).get("on_gate", [])
        by_place = {(row["model"], row["images"]): row for row in reversed(rows)}
        return by_place.get(ON_GATE[key])
    section, metric = INTERVALS.get(key, ("", ""))
    return results.get(section, {}).get("test", {}).get(metric)


def headline_rows(results: dict, lang: str) -> list[list[str]]:
    """Name, value and interval of each headline figure of a record, for people."""
    plain, words, rows = toml("captions.toml")["headline"], toml("words.toml")[lang], []
    for key, value in results.get("headline", {}).items():
        about = plain.get(key, {})
        kind, interval = about.get("kind", "plain"), ""
        if row := measured_with(results, key):
            low, high = (_unit(row[end], kind, words) for end in ("low", "high"))
            interval = f"[{low}, {high}], n = {row['n']:.0f}"
        elif row := timing_of(results, key):
            ends = [
                _unit(row[f"speedup_{end}"], kind, words) for end in ("low", "high")
            ]
            interval = f"[{', '.join(ends)}]" + words["busy"] * row["busy"]
        name = about.get(lang, humanised(key))
        rows.append([name, _unit(value, kind, words), interval])
    return rows


def _unit(value, kind: str, words: dict) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return text.shown(value, words["yes"], words["no"])
    if kind == "fraction":
        return f"{100 * value:.1f} %"
    return text.number(value) + {"ratio": " ×", "seconds": " s"}.get(kind, "")


def facts(draft: Draft) -> list[list[str]]:
    """Dataset, images, pools, run, machine and versions: for the title page and the
    introduction.
    """
    meta, words = draft.results["meta"], draft.words
    first, versions = draft.results.get("theme1", {}), meta.get("environment", {})
    pools = first.get("pools", {}).get("All", {})
    dataset, source = meta.get("dataset", "?"), meta.get("source", "?")
    spec = utils.DATASETS.get(dataset)
    counted = {"images", "usable"} <= first.keys()
    story = {
        "profile": meta.get("profile", "?"),
        "seed": meta.get("seed", "?"),
        "size": meta.get("image_size", "?"),
    }
    known = {
        "dataset": f"{dataset} ({spec.kaggle})" if spec else dataset,
        # of a folder, its name only
        "source": source if source in ("sample", "kaggle") else Path(source).name,
        "classes": ", ".join(spec.classes) if spec else "",
        "images": words["usable"].format(**first) if counted else "",
        "pools": " · ".join(
            f"{pool} {n}" for pool, n in pools.items() if pool != "All"
        ),
        "run": words["run_words"].format(**story),
        "hardware": meta.get("hardware", ""),
        "versions": ", ".join(
            f"{name} {versions[name]}"
            for name in ("python", "torch", "onnxruntime")
            if name in versions
        ),
    }
    return [[words[name], value] for name, value in known.items() if value]


def material(draft: Draft, section: Section, found: dict) -> list[dict]:
    """What is placed after the group's text: its criteria, then every table and figure
    that the texts do not place.
    """
    if section.key == "summary":
        rows = headline_rows(draft.results, draft.lang)
        return given(draft, "headline", draft.words["headline_columns"], rows)
    if section.key == "introduction":
        return given(draft, "facts", [], facts(draft))
    if not section.theme:
        return []
    rest = criteria(draft, section.theme)
    for kind, call in CALLS.items():
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
    words, theme = draft.words, section.theme
    if not has_run(draft, theme):
        return [f"{words['not_run']} {notebook(theme)}"]
    changed = [
        re.search(r"stale: (.+) has changed", line)[1]
        for line in stale_sections(draft.home, {theme: draft.results.get(theme, {})})
    ]
    if not changed:
        return []
    return [f"{words['stale']} {', '.join(changed)} {words['again']}"]
