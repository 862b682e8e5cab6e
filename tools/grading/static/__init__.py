"""Static checks of a submission: everything that can be seen without running a line of
it. One file a check.
"""

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
from tools.shared.foreign import shown

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
    for name, check in CHECKS.items():
        found = []
        try:
            found.extend(check(look))
        except Exception as error:
            # whatever a foreign file brought about: a grader must see the rest
            says = f"This check broke off ({type(error).__name__}: {shown(error)[:80]}"
            verdict = "fail" if name == "record" else "human"
            found.append(Check(name, 0).finding(verdict, f"{says}): look by hand."))
        findings += few(one_a_kind(found))
    others = [each for each in look.unreadable if each.check != NOTEBOOKS.name]
    return worst_first(one_a_kind(findings + few(others)))
