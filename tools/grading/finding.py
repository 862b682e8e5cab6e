"""What a check saw: one finding each, with its verdict."""

from collections.abc import Iterable
from dataclasses import dataclass

VERDICTS = ("pass", "note", "human", "fail")  # worst last
# What is missing before what is untidy; a check that is not named stands at "…".
ORDER = (
    *("containment", "check", "level", "secrets", "record", "required files"),
    *("report", "figures", "hard-coded figures", "re-execution", "weights", "pools"),
    *("…", "models", "artefacts", "evidence", "method", "seeds", "notebooks"),
    *("environment", "absolute paths", "kit files", "files", "size"),
)
MAX_PLACES, MAX_WHATS = 3, 8


@dataclass(frozen=True)
class Finding:
    """One thing that a check saw.

    Attributes
    ----------
    check : str
        Name of the check.
    verdict : {"pass", "note", "human", "fail"}
        All is well; worth knowing; a person must judge; contradicts what the course
        asks for.
    says : str
        One sentence for people, with the next step when it is not a pass.
    where : str
        File, cell, line.
    criterion : int
        Which of the course's five criteria it is evidence for (1 to 5); 0 for hygiene.
    kind : str
        The sentence for several of the same: {n} is their number, {what} what each is
        about. Without it, the finding stands alone.
    what : str
        What this one is about.
    """

    check: str
    verdict: str
    says: str
    where: str = ""
    criterion: int = 2
    kind: str = ""
    what: str = ""


@dataclass(frozen=True)
class Check:
    """Makes the findings of one check, which are evidence for one criterion."""

    name: str
    criterion: int = 2

    def passed(self, says: str, where: str = "") -> Finding:
        return self.finding("pass", says, where)

    def note(self, says: str, where: str = "", **several: str) -> Finding:
        return self.finding("note", says, where, **several)

    def human(self, says: str, where: str = "", **several: str) -> Finding:
        return self.finding("human", says, where, **several)

    def fail(self, says: str, where: str = "", **several: str) -> Finding:
        return self.finding("fail", says, where, **several)

    def finding(
        self, verdict: str, says: str, where: str = "", **several: str
    ) -> Finding:
        return Finding(self.name, verdict, says, where, self.criterion, **several)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """By verdict, then by weight; what weighs the same stays as it was."""
    places = {name: place for place, name in enumerate(ORDER)}

    def rank(finding: Finding) -> tuple[int, int]:
        weight = places.get(finding.check, places["…"])
        return -VERDICTS.index(finding.verdict), weight

    return sorted(findings, key=rank)


def one_a_kind(findings: Iterable[Finding]) -> list[Finding]:
    """Findings of one kind together, as one, with the first of their places."""
    groups: dict[tuple, list[Finding]] = {}
    for each in findings:
        kind = (each.kind,) if each.kind else (each.says, each.where)
        key = (each.check, each.verdict, each.criterion, *kind)
        groups.setdefault(key, []).append(each)
    return [
        group[0] if len(group) == 1 else _together(group) for group in groups.values()
    ]


def _together(group: list[Finding]) -> Finding:
    first = group[0]
    if not first.kind:
        return first
    whats = listed((each.what for each in group if each.what), MAX_WHATS)
    says = first.kind.format(n=len(group), what=whats)
    where = listed((each.where for each in group if each.where), MAX_PLACES, "; ")
    return Finding(first.check, first.verdict, says, where, first.criterion)


def listed(texts: Iterable[str], most: int, between: str = ", ") -> str:
    """The first texts, each once, and how many more there are."""
    texts = list(dict.fromkeys(texts))
    more = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return between.join([*texts[:most], *more])


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
            says = f"and {count - most} more of this kind."
            kept.append(Finding(check, verdict, says, criterion=0))
    return kept
