"""What a build says: pages against budgets, and everything that is still open."""

from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path

from tools.report.group import Draft, Fault, placeholders, reference_places
from tools.report.material import notices
from tools.shared.sections import SECTIONS, TOTAL

MOST = 12  # placeholders that are listed one by one


def verdict(pages: int, budget: tuple[int, int] | None) -> str | None:
    if budget is None:
        return None
    return "short" if pages < budget[0] else "long" if pages > budget[1] else "within"


def summarise(draft: Draft, measured: dict) -> dict:
    """The content of report.json."""
    open_ = placeholders(draft)
    asked = [entry["section"] for entry in open_]
    rows = []
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
                "placeholders": asked.count(section.key),
            }
        )
    errors = draft.faults + lost_references(draft, measured["unresolved"])
    missing = list(dict.fromkeys(measured["absent"]))
    warnings = [line for section in SECTIONS for line in notices(draft, section)]
    return {
        "pages": measured["pages"],
        "sections": rows,
        "placeholders": [
            {key: entry[key] for key in ("file", "line", "text")} for entry in open_
        ],
        "errors": [
            {"file": fault.file, "line": fault.line, "message": fault.message}
            for fault in errors
        ],
        "missing": missing,
        "notices": warnings,
        "draft": bool(open_ or errors or missing or warnings),
        "lang": draft.lang,
        "final": draft.final,
        "built": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def lost_references(draft: Draft, unresolved: list[str]) -> list[Fault]:
    """One fault for each place of an @reference that leads nowhere."""
    places, lost = reference_places(draft), []
    for key in dict.fromkeys(unresolved):
        for place in places.get(key, []):
            file, line = place.rsplit(":", 1)
            lost.append(Fault("reference", file, int(line), f"@{key} leads nowhere"))
    return lost


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
    pages, unwritten = summary["pages"], summary["placeholders"]
    total = f"{pages} pages, {verdict(pages, TOTAL)} ({TOTAL[0]}–{TOTAL[1]})"
    if unwritten:
        total += f", with {len(unwritten)} placeholders in the place of your own words"
    lines += ["", total]
    for head, entries in (
        ("errors", [_place(row, "message") for row in summary["errors"]]),
        ("still to be written", to_write(unwritten)),
        ("missing", summary["missing"]),
        ("notices", summary["notices"]),
    ):
        if entries:
            lines += [f"{head}:", *(f"  {entry}" for entry in entries)]
    state = "draft" if summary["draft"] else "complete"
    return "\n".join([*lines, "", f"{state}: {path}"])


def _place(entry: dict, told: str) -> str:
    return f"{entry['file']}:{entry['line']}  {entry[told]}"


def to_write(entries: list[dict]) -> list[str]:
    """Placeholders for the console: each with its first words, or, where they are many,
    by file.
    """
    if len(entries) <= MOST:
        return [_place(entry, "text") for entry in entries]
    files = defaultdict(list)
    for entry in entries:
        files[entry["file"]].append(str(entry["line"]))
    return [f"{file}:{', '.join(numbers)}" for file, numbers in files.items()]
