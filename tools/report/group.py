"""The group's own files: made once, read, and what is still to be written in them."""

import re
import shutil
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

import utils
from kit.files import read_text
from tools.shared.sections import WRITTEN

KIT = Path(__file__).resolve().parents[2]
TEMPLATES = KIT / "report" / "templates"


@dataclass(frozen=True)
class Fault:
    """What cannot be used, and where; `kind` is group, section, bibliography, letters
    or reference.
    """

    kind: str
    file: str
    line: int
    message: str
    hints: tuple[str, ...] = ()
    source: str = ""


@dataclass
class Draft:
    """All that one build works on; `texts` are the group's, by their path in the
    home.
    """

    home: Path
    results: dict
    lang: str
    final: bool
    group: dict
    texts: dict[str, str]
    faults: list[Fault]
    notices: list[str]

    @property
    def folder(self) -> Path:
        return self.home / "report"

    @property
    def words(self) -> dict:
        return toml("words.toml")[self.lang]

    @property
    def broken(self) -> dict[str, Fault]:
        """The first fault of each section that Typst refused, by the section's path."""
        ones = [fault for fault in self.faults if fault.kind == "section"]
        return {fault.file: fault for fault in reversed(ones)}


@cache
def toml(name: str) -> dict:
    """captions.toml or words.toml of the kit."""
    return tomllib.loads((KIT / "report" / name).read_text(encoding="utf-8"))


def create(home: Path, lang: str | None) -> list[Path]:
    """Make those of the group's files that are not there yet; returns the new ones."""
    folder = home / "report"
    own = TEMPLATES / (lang or language(folder / "group.toml"))
    wanted = {
        folder / "references.bib": TEMPLATES / "references.bib",
        folder / "group.toml": own / "group.toml",
    }
    wanted |= {home / section.path: own / section.file for section in WRITTEN}
    made = [path for path in wanted if not path.exists()]
    for path in made:
        with utils.atomic(path) as temporary:
            shutil.copy(wanted[path], temporary)
    return made


def language(path: Path) -> str:
    """The language that group.toml names, French where it names none that is known;
    other lines may be broken.
    """
    return known_language(named_language(path)[0]) or "fr"


def named_language(path: Path) -> tuple[str, int]:
    """What group.toml calls its language, as it is written there, and on which line."""
    text = read_text(path) if path.is_file() else ""
    found = re.search(r"^[ \t]*lang[ \t]*=[ \t]*['\"]*([^'\"\n#]*)", text, re.MULTILINE)
    if not found:
        return "", 1
    return found[1].strip(), text.count("\n", 0, found.start(1)) + 1


def known_language(name: str) -> str | None:
    """en or fr, for what people write: EN, English, anglais, en_GB, Français, fra."""
    found = re.match(r"(en|ang)|fr", name, re.IGNORECASE)
    return found and ("en" if found[1] else "fr")


def open_draft(home: Path, results: dict, lang: str, final: bool) -> Draft:
    """Read what the group has written; a group.toml that cannot be read is a fault, and
    so is a language that the report has not.
    """
    path = home / "report" / "group.toml"
    group, fault = read_group(path, toml("words.toml")[lang])
    texts = {section.path: read_text(home / section.path) for section in WRITTEN}
    draft = Draft(home, results, lang, final, group, texts, [], [])
    if fault:
        draft.faults.append(fault)
        draft.notices.append(f"{draft.words['group']} ({fault.message})")
    name, line = named_language(path)
    if name and not known_language(name):
        told = f"lang = {name!r} is unknown: write 'fr' or 'en'"
        draft.faults.append(Fault("group", "report/group.toml", line, told))
    return draft


def read_group(path: Path, words: dict) -> tuple[dict, Fault | None]:
    """Title, authors and date, with defaults for what is missing; and the fault, if the
    file cannot be read.
    """
    fault, known = None, {}
    try:
        known = tomllib.loads(read_text(path))
    except (OSError, ValueError) as error:
        line = re.search(r"line (\d+)", str(error))
        at = int(line[1]) if line else 1
        fault = Fault("group", "report/group.toml", at, str(error))
    authors = known.get("authors", [])
    group = {
        "title": str(known.get("title") or words["title"]),
        "date": str(known.get("date") or date.today()),
        "authors": [
            str(name) for name in (authors if isinstance(authors, list) else [authors])
        ],
    }
    return group, fault


def without_comments(text: str) -> str:
    """Typst text of the same length, comments and raw text blanked: what is only
    mentioned does not count.
    """
    ignored = r"```.*?```|`[^`\n]*`|/\*.*?\*/|(?<!:)//[^\n]*"
    blank = lambda found: re.sub(r"[^\n]", " ", found[0])  # noqa: E731
    return re.sub(ignored, blank, text, flags=re.DOTALL)


def placeholders(draft: Draft) -> list[dict]:
    """What is still to be written: section, file, line and the first words of each, in
    reading order.
    """
    found = []
    if not draft.group["authors"]:
        text = read_text(draft.folder / "group.toml")
        before = re.search(r"\A(.*?^)authors", text, flags=re.DOTALL | re.MULTILINE)
        line = before[1].count("\n") + 1 if before else 1
        found.append(_open("", "report/group.toml", line, draft.words["no_authors"]))
    for section in WRITTEN:
        text = draft.texts[section.path]
        plain = without_comments(text)
        for match in re.finditer(r"(?<![\w-])placeholder\[", plain):
            line = plain.count("\n", 0, match.end()) + 1
            asked = " ".join(text[match.end() :].partition("]")[0].split())
            found.append(_open(section.key, section.path, line, asked[:70]))
    return found


def _open(section: str, file: str, line: int, text: str) -> dict:
    return {"section": section, "file": file, "line": line, "text": text}


def mentioned(draft: Draft, call: str) -> set[str]:
    """Names that the group's texts place themselves with figure-of("...") or
    table-of("...").
    """
    whole = "\n".join(
        without_comments(text)
        for path, text in draft.texts.items()
        if path not in draft.broken
    )
    called = re.findall(rf'{call}\(\s*"([^"\n]+)"', whole)
    return {name.replace(r"\\", "\\") for name in called}


def reference_places(draft: Draft) -> dict[str, list[str]]:
    """Where each @reference of the texts stands, so that one that leads nowhere can be
    found.
    """
    places = defaultdict(list)
    for path, text in draft.texts.items():
        for number, line in enumerate(without_comments(text).splitlines(), 1):
            for key in re.findall(r"(?<![\w\\])@([\w][\w:.-]*)", line):
                places[key.rstrip(".:")].append(f"{path}:{number}")
    return places
