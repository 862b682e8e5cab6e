"""Where a project begins in what was handed in: by what belongs to it, whatever its
folders are called.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kit.names import plain
from tools.grading.themes import is_left_behind, theme_of
from tools.shared.foreign import SubmissionError, read
from tools.shared.names import is_litter

MAX_SCANNED, MAX_ENTRIES, MAX_READ = 3_000, 10_000, 40
DEPTH = 2  # folders above the project
BELONGS = re.compile(
    r"utils\.py|course\.json|exports|checkpoints|models|report|rapport.*|makefile"
    r"|readme.*|requirements?.*\.txt|constraints\.txt|.*\.(pdf|docx)|\.gitignore"
)
SPEAKS = re.compile(rb"th(?:e|\xc3[\xa8\xa9]|\\u00e[89])me[\s_:#-]*0?[1-8]", re.I)


@dataclass
class Folder:
    """What stands directly in a folder; links and litter aside."""

    path: Path
    depth: int
    names: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)
    below: list["Folder"] = field(default_factory=list)


def find_roots(folder: Path, ignored: set[str]) -> list[Path]:
    """The folder that looks most like the project, at most two levels below, the
    highest of several; then other projects beside it. Nothing where nothing looks like
    this course.
    """
    folders = [each for each in _scan(folder, ignored) if each.depth <= DEPTH]
    found = [(_likeness(each), each.path) for each in folders]
    best = max(likeness for likeness, _ in found)
    if not best:
        return _speaking_of_themes(folders)
    roots = [next(path for likeness, path in found if likeness == best)]
    for other in folders:
        apart = not any(
            other.path.is_relative_to(root) or root.is_relative_to(other.path)
            for root in roots
        )
        if apart and set(_themes(other)):
            roots.append(other.path)
    return roots


def _scan(top: Path, ignored: set[str]) -> list[Folder]:
    """Folders from the top, level by level, with those below the lowest candidate."""
    found = [Folder(top, 0)]
    for folder in found:
        for entry in _entries(folder.path):
            if is_litter(entry.name) or entry.is_symlink():
                continue
            folder.names.add(plain(entry.name))
            if not entry.is_dir(follow_symlinks=False):
                folder.files.append(entry.name)
            elif entry.name not in ignored and len(found) < MAX_SCANNED:
                below = Folder(folder.path / entry.name, folder.depth + 1)
                folder.below.append(below)
                if below.depth <= DEPTH + 1:
                    found.append(below)
    return found


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            some = [entry for entry, _ in zip(entries, range(MAX_ENTRIES))]  # noqa: B905
    except OSError:
        return []
    return sorted(some, key=lambda entry: entry.name)


def _likeness(folder: Folder) -> float:
    """Notebooks of the themes, here or one folder below, and what else belongs to a
    project; 0 where there is nothing of this course.
    """
    themes = set(_themes(folder))
    of_course = bool(themes) or "notebooks" in folder.names
    if not of_course and not folder.names & {"utils.py", "exports"}:
        return 0
    belongs = sum(BELONGS.fullmatch(name) is not None for name in folder.names)
    return 2 * of_course + len(themes) / 10 + belongs


def _themes(folder: Folder) -> Iterator[int]:
    for place in (folder, *folder.below):
        if not is_left_behind(Path(place.path.name)):
            themes = (theme_of(Path(name)) for name in place.files)
            yield from (theme for theme in themes if theme)


def _speaking_of_themes(folders: list[Folder]) -> list[Path]:
    """The first folder with a notebook, here or one below, that has a theme of the
    course in its text; the first MAX_READ are read.
    """
    places = [
        (folder.path, place.path / name)
        for folder in folders
        for place in (folder, *folder.below)
        for name in place.files
        if name.lower().endswith(".ipynb")
    ]
    for root, path in places[:MAX_READ]:
        try:
            if SPEAKS.search(read(path.parent, Path(path.name))):
                return [root]
        except SubmissionError:
            continue
    return []
