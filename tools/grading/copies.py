"""Files of one group that are those of another: weights, answers, and what was written
beside the kit.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from kit.files import KIT, hash_file
from tools.grading.submission import Submission, is_code
from tools.shared.foreign import MIB, SubmissionError, read, shown
from tools.shared.parsing import read_notebook

RESULTS = re.compile(
    r"checkpoints/[^/]+\.pth|exports/(models/)?[^/]+\.onnx"
    r"|exports/predictions/[^/]+\.npz|.+\.(pdf|docx)"
)
WRITTEN = {".ipynb", ".py", ".typ", ".md"}
LEAST, MOST = 200, 500 * MIB  # two groups may well write the same few characters


def marks(submission: Submission) -> Iterator[list[str]]:
    """[path, hash] of what only one group of a class should have."""
    for path in submission.files:
        if RESULTS.fullmatch(path.as_posix()):
            if LEAST <= (submission.root / path).lstat().st_size <= MOST:
                yield [shown(path), hash_file(submission.root / path)[:16]]
        elif path.suffix in WRITTEN and is_code(path):
            text = _own_text(submission.root, path)
            if len(text) >= LEAST:
                yield [shown(path), hashlib.sha256(text.encode()).hexdigest()[:16]]


def _own_text(root: Path, path: Path) -> str:
    """What a file holds beside the kit's own of that name; "" where it cannot be
    read.
    """
    own, kits = _pieces(root, path), set()
    if (KIT / path).is_file():
        kits = set(_pieces(KIT, path))
    return "\n".join(piece for piece in own if piece not in kits)


def _pieces(root: Path, path: Path) -> list[str]:
    """Cells of a notebook, lines of another file."""
    try:
        if path.suffix == ".ipynb":
            cells = read_notebook(root, path).cells
            return [cell.source.strip() for cell in cells]
        text = read(root, path).decode("utf-8", "replace")
        return [line.strip() for line in text.splitlines()]
    except SubmissionError:
        return []


def shared(marks_of: dict[str, dict[str, str]]) -> list[dict]:
    """Groups of submissions and the files that they have in common, most files first.

    What more than half of a class of four and more has was handed out to all.
    """
    owners = defaultdict(lambda: defaultdict(list))
    for name, paths in marks_of.items():
        for path, digest in paths.items():
            owners[digest][name].append(path)
    files = defaultdict(list)
    for paths in owners.values():
        if len(paths) > 1 and (len(marks_of) < 4 or 2 * len(paths) <= len(marks_of)):
            files[tuple(sorted(paths))].append(min(sum(paths.values(), [])))
    rows = [
        {"submissions": list(names), "files": sorted(files[names])} for names in files
    ]
    return sorted(rows, key=lambda row: (-len(row["files"]), row["submissions"]))
