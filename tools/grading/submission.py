"""A submission: a folder or zip of somebody else's files, opened without running or
trusting any of it.
"""

import filecmp
import os
import re
import shutil
import tempfile
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import utils
from kit import archive
from kit.archive import MAX_FILES
from kit.files import KIT
from kit.record import read_record
from tools.grading.finding import Check, Finding, few, listed
from tools.grading.root import find_roots
from tools.shared.foreign import (
    MAX_FILE,
    MIB,
    SubmissionError,
    read,
    read_json,
    shallow,
    shown,
)
from tools.shared.names import is_litter

FILES, RECORD = Check("files", 0), Check("record")
RESULTS, STORY_FILE = Path("exports/results.json"), Path("course.json")
MAX_RECORD = 20 * MIB
MAX_FOLDER, MAX_DEPTH = 10_000, 40
# of a file that is neither Python nor a notebook; beyond it, it holds data
MAX_WORDS = MIB // 4

# Folders that no one writes by hand: never opened, never copied.
IGNORED = {
    *(".git", ".venv", "venv", "env", "__pycache__", ".ipynb_checkpoints"),
    *(".pytest_cache", ".ruff_cache", ".mypy_cache", ".cache", "node_modules"),
    *("__MACOSX", ".idea", ".vscode"),
}
CODE = {
    *(".py", ".ipynb", ".md", ".txt", ".toml", ".cfg", ".ini", ".yml", ".yaml"),
    *(".json", ".typ", ".bib", ".sh", ".html", ".css", ".js"),
}
CODE_NAMES = {
    *("Makefile", "LICENSE", "Dockerfile"),
    *(".gitignore", ".dockerignore", ".python-version"),
}
ARTEFACT_FOLDERS = {"checkpoints", "exports", "runs", "logs", "data"}
NO_PROJECT = IGNORED | ARTEFACT_FOLDERS  # where none begins
DOCUMENTS = {".pdf", ".docx", ".doc", ".odt", ".pages", ".pptx", ".rtf"}
ARTEFACTS = re.compile(
    r"course\.json|checkpoints/(\.gitkeep|[^/]+\.pth)|runs/.+|logs/.+"
    r"|data/[^/]+/index\.(csv|json)|exports/models/[^/]+\.onnx"
    r"|exports/([^/]+\.(json|csv|npz|md|txt|onnx|trt|engine|lock)|\.gitkeep)"
    r"|exports/(figures|tables)/.+|exports/predictions/[^/]+\.npz"
    r"|exports/notebooks/[^/]+\.ipynb"
)


@dataclass(frozen=True)
class Submission:
    """An opened submission.

    Attributes
    ----------
    name : str
        Of the folder or zip, printable.
    root : Path
        The folder that holds the notebooks' folder and what else belongs to a project.
    record : dict
        exports/results.json; {} when it cannot be read, and `findings` say why.
    story : dict
        Those of dataset, source, profile, image_size and seed that are valid, from the
        record's meta, else from course.json; {} when there is neither.
    files : list[Path]
        Regular files, relative to root, shallow ones first; links and special files are
        not among them.
    findings : list[Finding]
        What opening it showed: links that were not followed, special files, unreadable
        folders, a broken record.
    """

    name: str
    root: Path
    record: dict
    story: dict
    files: list[Path]
    findings: list[Finding] = field(default_factory=list)


def inputs_of(section) -> dict[str, str]:
    """The files that a section of a record was measured on, with their hashes; {} where
    a foreign record has none.
    """
    named = section.get("inputs") if isinstance(section, dict) else None
    return named if isinstance(named, dict) else {}


# --------------------------------------------------------------------------------------
# Opening
# --------------------------------------------------------------------------------------


def open_submission(path: str | Path, work: str | Path) -> Submission:
    """Open a folder, a zip, or a folder or zip that holds nothing but one zip (as
    learning platforms deliver them).

    Parameters
    ----------
    work : path
        A zip is unpacked into a new folder below it; nothing is written anywhere else.

    Raises
    ------
    SubmissionError
        Missing, neither folder nor zip, a zip that is damaged, encrypted, far too large
        or reaches outside its own folder, or nothing in it that looks like the course's
        project.
    """
    path = Path(path).expanduser()
    name = re.sub(r"(?i)\.zip$", "", shown(path.resolve().name)) or "submission"
    folder, notes = (path, []) if path.is_dir() else unpack(path, work)
    roots = find_roots(folder, NO_PROJECT)
    if not roots and len(zips := _zips(folder)) == 1:
        folder, notes = unpack(zips[0], work)
        roots = find_roots(folder, NO_PROJECT)
    if not roots:
        raise SubmissionError(f"{shown(path)} {_no_project(folder)}")
    root, *others = roots
    if others:
        names = listed((shown(other.relative_to(folder)) for other in others), 4)
        says = f"Another project lies beside it, and was not looked at: {names}."
        notes.append(FILES.human(says, shown(root.relative_to(folder))))
    files, odd = list_files(root)
    record, story, why = _record(root, files)
    return Submission(name, root, record, story, files, few([*notes, *odd, *why]))


def _zips(folder: Path) -> list[Path]:
    """Zips in a folder or in the folders directly below it, as platforms nest them."""
    found = sorted([*folder.glob("*"), *folder.glob("*/*")])
    zips = [path for path in found if path.suffix.lower() == ".zip"]
    return [path for path in zips if _is_own_file(path)]


def _is_own_file(path: Path) -> bool:
    return not is_litter(path.name) and path.is_file() and not path.is_symlink()


def _no_project(folder: Path) -> str:
    """Why a folder is no hand-in: what it holds instead."""
    says = "holds no notebook of a theme and no utils.py, down to two folders below"
    if zips := _zips(folder):
        names = listed((shown(zipped.name) for zipped in zips), 6)
        remedy = "check each of them, or all with --all on the folder that holds them."
        return f"{says}. It holds {len(zips)} zips ({names}): {remedy}"
    inside = sorted(path.name for path in folder.iterdir() if not is_litter(path.name))
    holds = (
        f" (it holds {listed(map(shown, inside), 6)})" if inside else ": it is empty"
    )
    return f"{says}{holds}. Hand in the zip that `python course.py pack` makes."


def list_files(root: Path) -> tuple[list[Path], list[Finding]]:
    """Regular files below `root`, and what was passed over. Links are not followed, so
    loops and ways out end here.

    Folder by folder from the top, and never more than MAX_FILES: junk deep below hides
    none of what matters."""
    files, findings, waiting, closed = [], [], deque([Path()]), set()
    while waiting:
        folder = waiting.popleft()
        try:
            with os.scandir(root / folder) as entries:
                entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            says = f"The folder cannot be read ({error.strerror}): hand it in again."
            findings.append(FILES.human(says, shown(folder)))
            continue
        if len(entries) > MAX_FOLDER:
            what = f"{len(entries):,} files in one folder"
            findings.append(_crowded(folder, what, MAX_FOLDER))
        for entry in entries[:MAX_FOLDER]:
            if is_litter(entry.name):
                continue
            path = folder / entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if entry.is_file(follow_symlinks=False):
                files.append(path)
            elif entry.name in IGNORED:
                closed.add(entry.name)
            elif is_folder and len(path.parts) < MAX_DEPTH:
                waiting.append(path)
            else:
                findings.append(_passed_over(root, path, entry))
        if len(files) > MAX_FILES:
            what = f"More than {MAX_FILES:,} files"
            findings.append(_crowded(folder, what, MAX_FILES))
            break
    if closed := closed - {"__pycache__"}:
        says = f"Not opened, as a hand-in needs none of it: {', '.join(sorted(closed))}"
        findings.append(FILES.note(f"{says}."))
    return files[:MAX_FILES], findings


def _crowded(folder: Path, what: str, most: int) -> Finding:
    says = f"{what}: only the first {most:,} were looked at. Hand in the zip that"
    return FILES.human(f"{says} `python course.py pack` makes.", shown(folder))


def _passed_over(root: Path, path: Path, entry: os.DirEntry) -> Finding:
    """Why an entry is no file of the submission."""
    if entry.is_symlink():
        try:
            leads = shown(os.readlink(root / path))
        except OSError:
            leads = "nowhere"
        says = f"A link to {leads}, which was not followed: hand in the file itself."
    elif entry.is_dir(follow_symlinks=False):
        says = "Folders nested too deep; it was not opened."
    else:
        says = "Neither a file nor a folder; it was not opened."
    return FILES.human(says, shown(path))


# --------------------------------------------------------------------------------------
# Zips
# --------------------------------------------------------------------------------------


# What to do about a zip that was not unpacked, by kind.
ADVICE = {
    "missing": ": give a folder, or the zip that `python course.py pack` makes.",
    "no zip": ": give a folder, or the zip that `python course.py pack` makes.",
    "damaged": ": pack it again with `python course.py pack`, without a password.",
    "outside": ": it was not unpacked. Pack it again with `python course.py pack`.",
    "encrypted": ": ask for a zip without a password.",
    "large": (
        ": it was not unpacked. Ask for the zip that `python course.py pack` makes."
    ),
    "disk": ": free some space on this machine, or choose another folder to work in.",
}


def unpack(zipped: Path, work: str | Path) -> tuple[Path, list[Finding]]:
    """Unpack a zip into a new folder below `work`; links in it are named, not made.

    Raises
    ------
    SubmissionError
        See `open_submission`. What was unpacked until then is removed.
    """
    Path(work).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="unpacked-", dir=work))
    try:
        links = archive.unpack(zipped, folder / "content", IGNORED, MAX_FILES)
    except archive.ArchiveError as error:
        shutil.rmtree(folder)
        none = error.kind == "no zip"
        what = "is neither a folder nor a whole zip" if none else error.what
        raise SubmissionError(f"{shown(zipped)} {what}{ADVICE[error.kind]}") from error
    says = "A link inside the zip, which was not unpacked: hand in the file itself."
    return folder / "content", [FILES.human(says, shown(link)) for link in links]


# --------------------------------------------------------------------------------------
# Record and story
# --------------------------------------------------------------------------------------


def _record(root: Path, files: list[Path]) -> tuple[dict, dict, list[Finding]]:
    """The record and the story, or findings that say why not."""
    record, findings = {}, []
    try:
        if RESULTS in files:
            read(root, RESULTS, MAX_RECORD)  # bounded and no link, before utils reads
            record = shallow(read_record(root))
        else:
            findings.append(RECORD.fail(_no_record(files), str(RESULTS)))
    except (utils.CourseError, RecursionError) as error:
        says = shown(str(error).replace(f"{root}{os.sep}", ""))
        findings.append(RECORD.fail(says, str(RESULTS)))
    told = record.get("meta") or _story_file(root, files)
    story = {
        key: told[key]
        for key, valid in STORY.items()
        if key in told and valid(told[key])
    }
    wrong = [key for key in STORY if told and key not in story]
    if wrong:
        says = f"The story lacks a valid {', '.join(wrong)}: run the notebooks again"
        where = str(RESULTS if record else STORY_FILE)
        findings.append(RECORD.fail(f"{says} from theme 1.", where))
    return record, story, findings


def _no_record(files: list[Path]) -> str:
    for path in files:
        if path.parts[1:] == RESULTS.parts:
            home = shown(path.parts[0])
            return (
                f"The record stands in {home}/: pack that home with `python course.py"
                f" pack --home {home}`."
            )
    return (
        "There is no record of results: run the notebooks, then `python course.py"
        " pack`."
    )


def _whole_number(value, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


STORY = {
    "dataset": lambda value: isinstance(value, str) and value in utils.DATASETS,
    "source": lambda value: isinstance(value, str) and 0 < len(value) < 4096,
    "profile": lambda value: isinstance(value, str) and value in utils.PROFILES,
    "image_size": lambda value: _whole_number(value, 32, 1024),
    "seed": lambda value: _whole_number(value, 0, 2**32 - 1),
}


def _story_file(root: Path, files: list[Path]) -> dict:
    try:
        told = read_json(root, STORY_FILE, MIB) if STORY_FILE in files else {}
    except SubmissionError:
        return {}
    return told if isinstance(told, dict) else {}


# --------------------------------------------------------------------------------------
# What is what
# --------------------------------------------------------------------------------------


def is_code(path: Path) -> bool:
    """Whether a relative path is something a group writes: notebooks, modules,
    settings, words.

    In the folders of artefacts only modules count, as an executed copy or a record in
    there is a result."""
    if IGNORED.intersection(path.parts) or is_check(path):
        return False
    if path.name in ("course.json", "report.json"):
        return False
    if path.suffix == ".py":
        return True
    made = ARTEFACT_FOLDERS.intersection(path.parts[:-1])
    return not made and (path.suffix.lower() in CODE or path.name in CODE_NAMES)


def is_artefact(path: Path) -> bool:
    """Whether a relative path is something the notebooks make: checkpoints, exports,
    runs, logs, index, course.json.
    """
    return ARTEFACTS.fullmatch(path.as_posix()) is not None


def is_check(path: Path) -> bool:
    """Whether a relative path is what an earlier `course.py check` wrote."""
    written = ("check.json", "check.html", "check.md")  # the last by an older kit
    return path.parts[0].startswith("check-") or path.name in written


def is_report(path: Path) -> bool:
    in_report = path.parts[0] == "report" and len(path.parts) > 1
    return in_report or path.suffix.lower() in DOCUMENTS


def is_of_kit(root: Path, path: Path | str) -> bool:
    """Whether a file is one of the kit's, byte for byte."""
    kit, own = KIT / path, root / path
    same = kit.is_file() and kit.stat().st_size == own.stat().st_size
    return same and filecmp.cmp(kit, own, shallow=False)


def copy_code(submission: Submission, target: str | Path) -> list[Finding]:
    """Copy the code alone to `target`: nothing that a run could load instead of
    computing it.

    Left out: checkpoints, exports, runs, logs, data, course.json, caches, environments,
    PDFs, archives, junk, any file above 20 MiB, and words or settings above 256 KiB,
    which could hold results; what a reader would not expect to miss is said.
    """
    target, findings, junk = Path(target), [], []
    for path in submission.files:
        if is_code(path):
            most = MAX_FILE if path.suffix in (".py", ".ipynb") else MAX_WORDS
            try:
                content = read(submission.root, path, most)
            except SubmissionError as error:
                findings.append(FILES.human(f"Not copied: {error}", shown(path)))
                continue
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(content)
        elif path.parts[0] not in ARTEFACT_FOLDERS:
            if not (is_artefact(path) or is_report(path) or is_check(path)):
                junk.append(path)
    if junk:
        names = ", ".join(map(shown, junk[:5])) + (", …" if len(junk) > 5 else "")
        says = f"{len(junk):,} files that are no code were not copied: {names}"
        findings.append(FILES.note(says))
    return few(findings)
