"""The report of a check: evidence by the course's five criteria, what remains for a
person, and its two files: a page for people, JSON for programs.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import utils
from kit.evidence import checklist
from kit.files import KIT
from kit.record import is_record
from tools.grading import compare
from tools.grading.consistency import at, is_number, rows
from tools.grading.finding import VERDICTS, one_a_kind, worst_first
from tools.grading.submission import Submission, is_code, is_of_kit
from tools.shared.foreign import MIB, SubmissionError, decode, read, shown

TEMPLATES = Path(__file__).parent / "templates"
CRITERIA = {
    1: ("Understanding and completion (compréhension et complétion)", 4),
    2: ("Technical quality (qualité technique)", 6),
    3: ("Analysis and interpretation (analyse et interprétation)", 5),
    4: ("Presentation (qualité de présentation)", 3),
    5: ("Critical thinking and depth (esprit critique)", 2),
}
QUESTIONS = {
    1: [
        "Do summary and conclusion tell one story, from the data to the new model?",
        "Theme 8: do its recommendations follow from the group's own figures?",
        "Ask each member to explain one theme that somebody else wrote.",
    ],
    2: [
        "What the group changed in the kit (see the findings): is it clean and theirs?",
        "Would the monitoring dashboard have shown the incidents of the drill?",
        "Ask which line makes the training reproducible, and what would break it.",
    ],
    3: [
        "Theme 3: is the architecture argued from the ablation, or after the fact?",
        "Are differences judged by intervals and paired tests, or by larger numbers?",
        "Theme 4: are accuracy, latency and cost traded off for a stated use?",
    ],
    4: [
        "Can every figure of the report be read in print: its axes, its units, its n?",
        "Is the text the group's own, clear, and without filler?",
    ],
    5: [
        "Are the limits named: the shifted test set, few images, a simulated drift?",
        "Would the group put the model in service? What would have to be true first?",
    ],
}
NO_GRADE = (
    "This page gathers evidence. It awards no points and is no grade: every criterion"
    " has questions that only a person can answer, and a figure that cannot be"
    " reproduced is first of all a question to the group."
)


def criteria(submission: Submission, findings: list, checklist) -> list[dict]:
    """The five criteria: what is as asked, worst first, how many findings of the page
    bear on each, and the questions.
    """
    evidence = {number: [] for number in CRITERIA}
    above = {number: Counter() for number in CRITERIA}
    for finding in findings:
        if finding.criterion in evidence and finding.verdict == "pass":
            where = f" ({finding.where})" if finding.where else ""
            evidence[finding.criterion].append(("pass", finding.says + where))
        elif finding.criterion in evidence:
            above[finding.criterion][finding.verdict] += 1
    for part, item, says, passed in checklist:
        verdict = "human" if passed is None else "pass" if passed else "note"
        evidence[2 if part == "Code" else 1].append((verdict, f"{item}: {says}"))
    for number, verdict, says in facts(submission):
        evidence[number].append((verdict, says))
    return [
        {
            "criterion": number,
            "title": title,
            "of": of,
            "questions": QUESTIONS[number],
            "above": _counted(above[number]),
            "evidence": [
                {"verdict": verdict, "says": says}
                for verdict, says in sorted(
                    evidence[number], key=lambda told: -VERDICTS.index(told[0])
                )
            ],
        }
        for number, (title, of) in CRITERIA.items()
    ]


def _counted(counts: Counter) -> str:
    """2 fail, 1 human: the findings that stand above, by verdict."""
    kinds = [kind for kind in reversed(VERDICTS) if counts[kind]]
    return ", ".join(f"{counts[kind]} {kind}" for kind in kinds)


def checklist_of(submission: Submission) -> list[tuple]:
    """The course's list before handing in, as theme 8 measures it; nothing when the
    record does not allow it.
    """
    if not submission.record or not is_record(submission.record):
        return []
    told = submission.root / "report" / "report.json"
    if os.path.lexists(told) and not _is_read(submission, told):
        return []
    try:
        table = checklist(submission.root, submission.record)
    except Exception:
        # a record of strange values: the static checks say what is wrong with it
        return []
    return [
        (
            str(row.part),
            shown(row.item),
            shown(row.evidence),
            None if row.passed is None else bool(row.passed),
        )
        for row in table.itertuples()
        if row.item != "code commented and reproducible"  # this very check
    ]


def _is_read(submission: Submission, path: Path) -> bool:
    """Whether a file is one of the submission, of a size that the checks read."""
    own = path.relative_to(submission.root) in submission.files
    return own and path.stat().st_size <= MIB


def facts(submission: Submission) -> Iterator[tuple[int, str, str]]:
    """What the record and the files show by themselves: (criterion, verdict,
    sentence).
    """
    record = submission.record
    names = [f"theme{number}" for number in range(1, 9)]
    themes = [name for name in names if isinstance(record.get(name), dict)]
    if themes:
        numbers = ", ".join(name.removeprefix("theme") for name in themes)
        yield 1, "pass", f"The record holds the themes {numbers}."
    for theme in themes:
        table = rows(at(record, "criteria", theme))
        failed = [shown(row.get("name")) for row in table if not row.get("passed")]
        if table:
            met = f"{len(table) - len(failed)} of its {len(table)} own criteria met"
            says = f"Theme {theme.removeprefix('theme')}: {met}"
            says += f" (not: {'; '.join(failed)})." if failed else "."
            yield 2, "note" if failed else "pass", says
    for says in _comparisons(record):
        yield 3, "pass", says
    counts = Counter(path.parts[:2] for path in submission.files)
    figures, tables = counts["exports", "figures"], counts["exports", "tables"]
    if figures or tables:
        yield 4, "pass", f"{figures} figures and {tables} tables were exported."
    refused = at(record, "theme7", "refused")
    if isinstance(refused, dict) and refused:
        says = f"Theme 7 shows {len(refused)} candidates to its gate that it should"
        yield 5, "pass", f"{says} refuse."
    if isinstance(shipped := at(record, "theme4", "shipped"), str):
        says = f"Theme 4 decides what to ship ({shown(shipped)}) from a promise on"
        yield 5, "pass", f"{says} latency and a price."


def _comparisons(record: dict) -> Iterator[str]:
    """Comparisons that the record holds, in the words of their own figures."""
    difference, n = (at(record, "theme3", "paired", key) for key in ("difference", "n"))
    if is_number(difference) and is_number(n):
        yield f"Optimised against baseline, paired on {n} images: {difference:+.3f}."
    ablation = at(record, "theme3", "ablation")
    effects = [
        (at(row, "difference"), name)
        for name, row in (ablation.items() if isinstance(ablation, dict) else ())
        if is_number(at(row, "difference"))
    ]
    if effects:
        worst, name = min(effects)
        says = f"The ablation has {len(effects)} rows; the largest loss is"
        yield f"{says} '{shown(name)}' ({worst:+.3f})."
    table = rows(at(record, "theme4", "benchmark"))
    backends = {str(row.get("backend")) for row in table}
    if len(backends) > 1:
        yield f"Theme 4 measures {len(backends)} backends in one benchmark."


# --------------------------------------------------------------------------------------
# Bonuses
# --------------------------------------------------------------------------------------

WORKFLOW = re.compile(r"\.github/workflows/[^/]+\.ya?ml|\.gitlab-ci\.yml")
DEMO = re.compile(r"demo/.+")
TRACKED = ("wandb", "mlruns", ".dvc")
EXTRAS = {
    "demo": "gradio|streamlit",
    "tracking": "wandb|mlflow|comet_ml|neptune|clearml|dvclive|aim",
}


def bonuses(submission: Submission) -> list[dict]:
    """One line of evidence for each bonus of the course; a person decides, up to two
    points in all.
    """
    files = [path.as_posix() for path in submission.files]
    changed = [name for name in files if not is_of_kit(submission.root, name)]
    # of another version of the kit, or changed
    edited = [name for name in changed if (KIT / name).is_file()]
    own = [name for name in changed if name not in edited]
    read_too = [name for name in edited if name.startswith(("notebooks/", "models/"))]
    used = _imports(submission, own + read_too)
    demo = sorted({*filter(DEMO.fullmatch, own), *used["demo"]})
    flows = list(filter(WORKFLOW.fullmatch, own))
    tracked = {name for name in files if name.split("/")[0] in TRACKED}
    tracking = sorted(tracked | used["tracking"])
    no_demo = "nothing in demo/ but what the kit brings, no Gradio or Streamlit"
    found = {
        "TensorRT (+1)": _tensorrt(submission, files),
        "Demo": (demo, _named(demo, f"{no_demo} elsewhere", DEMO, edited)),
        "CI/CD": (
            flows,
            _named(flows, "no workflow but what the kit brings", WORKFLOW, edited),
        ),
        "Tracking": (
            tracking,
            _named(tracking, "TensorBoard at most, which the course requires of all"),
        ),
    }
    return [
        {"bonus": name, "found": bool(there), "evidence": shown(says)}
        for name, (there, says) in found.items()
    ]


def _tensorrt(submission: Submission, files: list[str]) -> tuple[bool, str]:
    about = at(submission.record, "theme4", "tensorrt")
    engine, works = "exports/model.trt" in files, at(about, "works") is True
    says = (
        f"exports/model.trt is {'there' if engine else 'not there'}; the record says"
        f" that it works: {'yes' if works else 'no'}"
    )
    reasons = at(about, "reasons")
    if isinstance(reasons, list) and reasons:
        says += f"; {len(reasons)} attempts documented"
    return engine and works, says


def _named(names: list[str], nothing: str, kind=None, edited=()) -> str:
    """The group's own files; and those of the kit's that look different, of a kind."""
    says = nothing
    if names:
        says = f"{len(names)} files of the group's own: {', '.join(names[:4])}"
    others = [name for name in edited if kind.fullmatch(name)] if kind else []
    if others:
        says += f"; {', '.join(others)} differ from this kit's: look at them"
    return says


def _imports(submission: Submission, names: list[str]) -> dict[str, set[str]]:
    """Files of the group's own that import what a bonus is made with."""
    found = {kind: set() for kind in EXTRAS}
    for name in names:
        if not name.endswith((".py", ".ipynb")) or not is_code(Path(name)):
            continue
        try:
            text = decode(read(submission.root, Path(name)))
        except SubmissionError:
            continue
        for kind, words in EXTRAS.items():
            if re.search(rf"\b(?:import|from) (?:{words})\b", text):
                found[kind].add(name)
    return found


# --------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------


def write(report: dict, folder: Path) -> list[Path]:
    """check.json and check.html of one check."""
    return _write("check", report, folder)


def write_summary(summary: dict, folder: Path) -> list[Path]:
    """summary.json and summary.html of a class."""
    return _write("summary", summary, folder)


def _write(name: str, values: dict, folder: Path) -> list[Path]:
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(TEMPLATES)
    pages = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    pages.filters["figure"] = compare.text
    text = pages.get_template(f"{name}.html").render(values, no_grade=NO_GRADE)
    data, page = folder / f"{name}.json", folder / f"{name}.html"
    utils.write_json(data, values)
    with utils.atomic(page) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return [data, page]


def order_findings(findings) -> list:
    """Worst first and one a kind; what is missing before what is untidy."""
    return worst_first(one_a_kind(findings))
