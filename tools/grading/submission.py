"""A submission: a folder or zip of somebody else's files, opened without running or
trusting any of it.
"""

import json
import os
import re
import shutil
import stat
import tempfile
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import utils
from kit import archive
from kit.archive import MAX_FILES, MIB, shown

VERDICTS = ("pass", "note", "human", "fail")  # worst last
MAX_RECORD, MAX_CODE_FILE = 20 * MIB, 20 * MIB
MAX_FOLDER, MAX_DEPTH = 10_000, 40
# of a file that is neither Python nor a notebook; beyond it, it holds data
MAX_WORDS = MIB // 4

# Folders that no one writes by hand: never opened, never copied.
IGNORED = {
    ".git",
    ".venv",
    "venv",
    "env",
    "__pycache__",
    ".ipynb_checkpoints",
    ".pytest_cache",
    ".ruff_cache",
    ".mypy_cache",
    ".cache",
    "node_modules",
    "__MACOSX",
    ".idea",
    ".vscode",
}
CODE = {
    ".py",
    ".ipynb",
    ".md",
    ".txt",
    ".toml",
    ".cfg",
    ".ini",
    ".yml",
    ".yaml",
    ".json",
    ".typ",
    ".bib",
    ".sh",
    ".html",
    ".css",
    ".js",
}
CODE_NAMES = {
    "Makefile",
    "LICENSE",
    "Dockerfile",
    ".gitignore",
    ".dockerignore",
    ".python-version",
}
ARTEFACT_FOLDERS = {"checkpoints", "exports", "runs", "logs", "data"}
ARTEFACTS = re.compile(
    r"course\.json|checkpoints/(\.gitkeep|[^/]+\.pth)|runs/.+|logs/.+|data/[^/]+/index\.(csv|json)"
    r"|exports/([^/]+\.(json|csv|npz|md|txt|onnx|trt|engine|lock)|\.gitkeep)|exports/models/[^/]+\.onnx"
    r"|exports/figures/.+|exports/tables/.+|exports/predictions/[^/]+\.npz|exports/notebooks/[^/]+\.ipynb"
)


class SubmissionError(utils.CourseError):
    """A submission that cannot be looked at, at all: what is wrong and what to do."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check saw.

    Attributes
    ----------
    check : str
        "required files", "notebooks", "environment", "seeds", "report", "secrets",
        "absolute paths", "artefacts", "record", "kit files", "size" or "files".
    verdict : {"pass", "note", "human", "fail"}
        All is well; worth knowing; a person must judge; contradicts what the course
        asks for.
    says : str
        One sentence for people, with the next step when it is not a pass.
    where : str
        File, cell, line.
    criterion : int
        Which of the course's five criteria it is evidence for (1 to 5); 0 for hygiene.
    """

    check: str
    verdict: str
    says: str
    where: str = ""
    criterion: int = 2


@dataclass(frozen=True)
class Submission:
    """An opened submission.

    Attributes
    ----------
    name : str
        Of the folder or zip, printable.
    root : Path
        The folder that holds notebooks/ and utils.py.
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


def few(findings: list[Finding], most: int = 16) -> list[Finding]:
    """At most `most` findings of each check and verdict, and a last one that counts the
    others.
    """
    kept, counts = [], {}
    for finding in findings:
        key = (finding.check, finding.verdict)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= most:
            kept.append(finding)
    for (check, verdict), count in counts.items():
        if count > most:
            kept.append(
                Finding(
                    check,
                    verdict,
                    f"and {count - most} more of this kind.",
                    criterion=0,
                )
            )
    return kept


def inputs_of(section) -> dict[str, str]:
    """The files that a section of a record was measured on, with their hashes; {} where
    a foreign record has none.
    """
    named = section.get("inputs") if isinstance(section, dict) else None
    return named if isinstance(named, dict) else {}


def worst_first(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: -VERDICTS.index(finding.verdict))


# --------------------------------------------------------------------------------------
# Opening
# --------------------------------------------------------------------------------------


def open_submission(path: str | Path, work: str | Path) -> Submission:
    """Open a folder, a zip, or a folder that holds nothing but a zip (as learning
    platforms deliver them).

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
    path, notes = Path(path).expanduser(), []
    name = shown(path.resolve().name).removesuffix(".zip") or "submission"
    if not path.is_dir():
        folder, notes = unpack(path, work)
    elif not (folder := find_root(path)):
        folder = path
        if len(zips := sorted(path.glob("*.zip"))) == 1:
            folder, notes = unpack(zips[0], work)
    root = find_root(folder)
    if root is None:
        raise SubmissionError(
            f"{shown(path)} holds neither notebooks/ nor utils.py, down to two folders"
            " below: hand in the zip that `python course.py pack` makes."
        )
    files, odd = list_files(root)
    record, story, why = _record(root, files)
    return Submission(name, root, record, story, files, few([*notes, *odd, *why]))


def find_root(folder: Path) -> Path | None:
    """The folder that looks most like the project, at most two levels below; of
    several, the highest one.
    """
    best, level = (0, None), [folder]
    for _ in range(3):
        for place in level:
            rank = _likeness(place)
            best = (rank, place) if rank > best[0] else best
        level = [below for place in level for below in _subfolders(place)]
    return best[1]


def _likeness(folder: Path) -> int:
    has_notebooks = _real_folder(folder / "notebooks") or any(
        folder.glob("theme[1-8]*.ipynb")
    )
    return (
        2 * has_notebooks
        + (folder / "utils.py").is_file()
        + _real_folder(folder / "exports")
    )


def _real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _subfolders(folder: Path, most: int = 200) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(
                entry.name for entry in entries if entry.is_dir(follow_symlinks=False)
            )
    except OSError:
        return []
    return [folder / name for name in found if name not in IGNORED | ARTEFACT_FOLDERS][
        :most
    ]


def list_files(root: Path) -> tuple[list[Path], list[Finding]]:
    """Regular files below `root`, and what was passed over. Links are not followed, so
    loops and ways out end here.

    Folder by folder from the top, and never more than MAX_FILES: junk deep below hides
    none of what matters."""
    files, findings, waiting, closed = [], [], deque([Path()]), []
    while waiting:
        folder = waiting.popleft()
        try:
            with os.scandir(root / folder) as entries:
                entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            says = f"The folder cannot be read ({error.strerror}): hand it in again."
            findings.append(Finding("files", "human", says, shown(folder), 0))
            continue
        if len(entries) > MAX_FOLDER:
            findings.append(
                _crowded(folder, f"{len(entries):,} files in one folder", MAX_FOLDER)
            )
        for entry in entries[:MAX_FOLDER]:
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False) and len(path.parts) < MAX_DEPTH:
                (closed if entry.name in IGNORED else waiting).append(path)
            elif entry.is_file(follow_symlinks=False):
                files.append(path)
            elif entry.name in IGNORED:
                closed.append(path)
            else:
                findings.append(_passed_over(root, path, entry))
        if len(files) > MAX_FILES:
            findings.append(
                _crowded(folder, f"More than {MAX_FILES:,} files", MAX_FILES)
            )
            break
    if names := sorted({path.name for path in closed} - {"__pycache__"}):
        findings.append(
            Finding(
                "files",
                "note",
                f"Not opened, as a hand-in needs none of it: {', '.join(names)}.",
                criterion=0,
            )
        )
    return files[:MAX_FILES], findings


def _crowded(folder: Path, what: str, most: int) -> Finding:
    says = (
        f"{what}: only the first {most:,} were looked at. Hand in the zip that `python"
        " course.py pack` makes."
    )
    return Finding("files", "human", says, shown(folder), 0)


def _passed_over(root: Path, path: Path, entry: os.DirEntry) -> Finding:
    """Why an entry is no file of the submission."""
    if entry.is_symlink():
        try:
            leads = shown(os.readlink(root / path))
        except OSError:
            leads = "nowhere"
        return Finding(
            "files",
            "human",
            f"A link to {leads}, which was not followed: hand in the file itself.",
            shown(path),
            0,
        )
    what = (
        "Folders nested too deep"
        if entry.is_dir(follow_symlinks=False)
        else "Neither a file nor a folder"
    )
    return Finding("files", "human", f"{what}; it was not opened.", shown(path), 0)


def read(root: Path, path: Path, most: int = MAX_CODE_FILE) -> bytes:
    """Content of one regular file of a submission.

    Raises
    ------
    SubmissionError
        It is larger than `most` bytes, cannot be read, or has become a link or a
        special file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(os.open(root / path, flags), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise SubmissionError(
                    f"{shown(path)} is no regular file: hand in the file itself."
                )
            if about.st_size > most:
                raise SubmissionError(
                    f"{shown(path)} has {about.st_size / MIB:,.3g} MiB and was not read"
                    f" (limit: {most / MIB:,.3g} MiB): make it smaller."
                )
            return file.read(most)
    except OSError as error:
        raise SubmissionError(
            f"{shown(path)} cannot be read ({error.strerror}): hand it in again."
        ) from error


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
        what = (
            "is neither a folder nor a whole zip"
            if error.kind == "no zip"
            else error.what
        )
        raise SubmissionError(f"{shown(zipped)} {what}{ADVICE[error.kind]}") from error
    says = "A link inside the zip, which was not unpacked: hand in the file itself."
    return folder / "content", [
        Finding("files", "human", says, shown(link), 0) for link in links
    ]


# --------------------------------------------------------------------------------------
# Record and story
# --------------------------------------------------------------------------------------


def _record(root: Path, files: list[Path]) -> tuple[dict, dict, list[Finding]]:
    """The record and the story, or findings that say why not."""
    record, findings, path = {}, [], Path("exports/results.json")
    try:
        if path in files:
            read(root, path, MAX_RECORD)  # bounded and no link, before utils reads it
            record = utils.read_record(root)
        else:
            findings.append(Finding("record", "fail", _no_record(files), str(path)))
    except (utils.CourseError, RecursionError) as error:
        says = (
            "It is nested too deep to be a record."
            if isinstance(error, RecursionError)
            else str(error)
        )
        findings.append(
            Finding(
                "record", "fail", shown(says.replace(f"{root}{os.sep}", "")), str(path)
            )
        )
    told = record.get("meta") or _story_file(root, files)
    story = {
        key: told[key]
        for key, valid in STORY.items()
        if key in told and valid(told[key])
    }
    wrong = [key for key in STORY if told and key not in story]
    if wrong:
        says = (
            f"The story lacks a valid {', '.join(wrong)}: run the notebooks again from"
            " theme 1."
        )
        findings.append(
            Finding("record", "fail", says, str(path) if record else "course.json")
        )
    return record, story, findings


def _no_record(files: list[Path]) -> str:
    nested = [
        path.parent.parent
        for path in files
        if path.parts[1:] == ("exports", "results.json")
    ]
    if nested:
        home = shown(nested[0])
        return (
            f"The record stands in {home}/: pack that home with `python course.py pack"
            f" --home {home}`."
        )
    return (
        "There is no record of results: run the notebooks, then `python course.py"
        " pack`."
    )


def _whole_number(value, low: int, high: int) -> bool:
    return (
        isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    )


STORY = {
    "dataset": lambda value: isinstance(value, str) and value in utils.DATASETS,
    "source": lambda value: isinstance(value, str) and 0 < len(value) < 4096,
    "profile": lambda value: isinstance(value, str) and value in utils.PROFILES,
    "image_size": lambda value: _whole_number(value, 32, 1024),
    "seed": lambda value: _whole_number(value, 0, 2**32 - 1),
}


def _story_file(root: Path, files: list[Path]) -> dict:
    try:
        told = (
            json.loads(read(root, Path("course.json"), MIB))
            if Path("course.json") in files
            else {}
        )
    except (ValueError, RecursionError, SubmissionError):
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
    if (
        IGNORED.intersection(path.parts)
        or path.name in ("course.json", "report.json")
        or is_check(path)
    ):
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
    return path.parts[0].startswith("check-") or path.name in (
        "check.json",
        "check.md",
        "check.html",
    )


def is_report(path: Path) -> bool:
    return path.suffix.lower() == ".pdf" or (
        path.parts[0] == "report" and len(path.parts) > 1
    )


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
            try:
                content = read(
                    submission.root,
                    path,
                    MAX_CODE_FILE if path.suffix in (".py", ".ipynb") else MAX_WORDS,
                )
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                (target / path).write_bytes(content)
            except SubmissionError as error:
                findings.append(
                    Finding("files", "human", f"Not copied: {error}", shown(path), 0)
                )
        elif not (
            is_artefact(path)
            or is_report(path)
            or is_check(path)
            or path.parts[0] in ARTEFACT_FOLDERS
        ):
            junk.append(path)
    if junk:
        names = ", ".join(map(shown, junk[:5])) + (", …" if len(junk) > 5 else "")
        findings.append(
            Finding(
                "files",
                "note",
                f"{len(junk):,} files that are no code were not copied: {names}",
                criterion=0,
            )
        )
    return few(findings)


def static_checks(submission: Submission) -> list[Finding]:
    """All findings that need nothing to be run, worst first; see
    `tools/grading/static.py`.
    """
    from tools.grading import static  # it imports this module

    return static.checks(submission)
