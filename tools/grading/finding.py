"""What a check saw: one finding each, with its verdict."""

from dataclasses import dataclass

VERDICTS = ("pass", "note", "human", "fail")  # worst last


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
    """

    check: str
    verdict: str
    says: str
    where: str = ""
    criterion: int = 2


@dataclass(frozen=True)
class Check:
    """Makes the findings of one check, which are evidence for one criterion."""

    name: str
    criterion: int = 2

    def passed(self, says: str, where: str = "") -> Finding:
        return self.finding("pass", says, where)

    def note(self, says: str, where: str = "") -> Finding:
        return self.finding("note", says, where)

    def human(self, says: str, where: str = "") -> Finding:
        return self.finding("human", says, where)

    def fail(self, says: str, where: str = "") -> Finding:
        return self.finding("fail", says, where)

    def finding(self, verdict: str, says: str, where: str = "") -> Finding:
        return Finding(self.name, verdict, says, where, self.criterion)


def worst_first(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: -VERDICTS.index(finding.verdict))


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
