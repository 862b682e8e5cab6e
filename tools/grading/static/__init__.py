"""Static checks of a submission: everything that can be seen without running a line of
it. One file a check.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial

from tools.grading import parts
from tools.grading.finding import Check, Finding, few, one_a_kind, worst_first
from tools.grading.static.artefacts import artefacts
from tools.grading.static.environment import environment
from tools.grading.static.evidence import evidence
from tools.grading.static.files import required_files
from tools.grading.static.kit import kit_files
from tools.grading.static.leaks import secrets
from tools.grading.static.look import NOTEBOOKS, Look
from tools.grading.static.method import method
from tools.grading.static.models import models
from tools.grading.static.notebooks import notebooks
from tools.grading.static.paths import absolute_paths
from tools.grading.static.record import record
from tools.grading.static.report import report
from tools.grading.static.seeds import seeds
from tools.grading.static.size import size
from tools.grading.submission import Submission

CHECKS = {
    "secrets": secrets,
    "record": record,
    "required files": required_files,
    "notebooks": notebooks,
    "environment": environment,
    "seeds": seeds,
    "models": models,
    "artefacts": artefacts,
    "evidence": evidence,
    "method": method,
    "absolute paths": absolute_paths,
    "report": report,
    "kit files": kit_files,
    "size": size,
}


def checks(submission: Submission) -> list[Finding]:
    """All findings, worst first and one a kind; a check that a hostile file breaks is
    itself a finding, and the others go on.
    """
    look, findings = Look(submission), list(submission.findings)
    todo = CHECKS | {"unreadable": _unreadable}
    todo = {name: partial(_rows, check, look) for name, check in todo.items()}
    for name, rows, why in parts.each(todo):
        findings += few(one_a_kind([Finding(**row) for row in rows]))
        if why:
            says = f"This check broke off ({why}): look by hand."
            verdict = "fail" if name == "record" else "human"
            findings.append(Check(name, 0).finding(verdict, says))
    return worst_first(one_a_kind(findings))


def _rows(check: Callable[[Look], Iterable[Finding]], look: Look) -> Iterator[dict]:
    return map(asdict, check(look))


def _unreadable(look: Look) -> Iterator[Finding]:
    """Files that could not be read; of notebooks their own check says so."""
    look.sources  # noqa: B018 - reading them fills the list
    yield from (each for each in look.unreadable if each.check != NOTEBOOKS.name)
