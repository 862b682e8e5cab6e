"""A submission: a folder or zip of somebody else's files, opened without running or trusting any of it."""

from dataclasses import dataclass, field
from pathlib import Path

import utils

VERDICTS = ("pass", "note", "human", "fail")  # worst last


class SubmissionError(utils.CourseError):
    """A submission that cannot be looked at, at all: what is wrong and what to do."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check saw.

    Attributes
    ----------
    check : str
        "required files", "notebooks", "environment", "seeds", "report", "secrets", "absolute paths", "artefacts",
        "record", "kit files", "size" or "files".
    verdict : {"pass", "note", "human", "fail"}
        All is well; worth knowing; a person must judge; contradicts what the course asks for.
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
        dataset, source, profile, image_size, seed: from the record's meta, else from course.json; {} when neither.
    files : list[Path]
        Regular files, relative to root, sorted.
    findings : list[Finding]
        What opening it showed: links that were not followed, special files, unreadable folders.
    """

    name: str
    root: Path
    record: dict
    story: dict
    files: list[Path]
    findings: list[Finding] = field(default_factory=list)


def open_submission(path: Path, work: Path) -> Submission:
    """Open a folder, or a zip unpacked below `work`."""
    raise NotImplementedError


def static_checks(submission: Submission) -> list[Finding]:
    """All findings that need nothing to be run, worst first."""
    raise NotImplementedError


def is_code(path: Path) -> bool:
    """Whether a relative path is something a group writes: notebooks, modules, settings, words."""
    raise NotImplementedError


def is_artefact(path: Path) -> bool:
    """Whether a relative path is something the notebooks make: checkpoints, exports, logs, the index, course.json."""
    raise NotImplementedError


def copy_code(submission: Submission, target: Path) -> list[Finding]:
    """Copy the code alone to `target`: nothing that a run could load instead of computing it."""
    raise NotImplementedError
