"""The report of a check: evidence by the course's five criteria, what remains for a
person, and three files.
"""

import filecmp
import re
from contextlib import suppress
from pathlib import Path

import utils
from tools.grading import compare
from tools.grading.consistency import at
from tools.grading.submission import (
    VERDICTS,
    Submission,
    SubmissionError,
    is_code,
    read,
    shown,
    worst_first,
)

KIT = Path(__file__).resolve().parents[2]
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
        (
            "Read the executive summary and the conclusion: do they tell one story from"
            " the data to the retrained model?"
        ),
        "Theme 8: do its recommendations follow from the group's own figures?",
        "Ask each member to explain one theme that somebody else wrote.",
    ],
    2: [
        (
            "Read what the group changed in the kit (listed under the findings): is it"
            " clean, commented and theirs?"
        ),
        (
            "Open the monitoring dashboard or its figures: would it have shown the"
            " incidents of the drill?"
        ),
        "Ask which line makes the training reproducible, and what would break it.",
    ],
    3: [
        (
            "Read theme 3's justification of the architecture: does it argue from the"
            " ablation, or after the fact?"
        ),
        (
            "Are differences judged by their intervals and paired tests, or by the"
            " larger number?"
        ),
        (
            "Theme 4: is the trade-off of accuracy, latency and cost decided for a"
            " stated use?"
        ),
    ],
    4: [
        (
            "Leaf through the report: can every figure be read in print, with its axes,"
            " units and n?"
        ),
        "Is the text the group's own, clear, and without filler?",
    ],
    5: [
        (
            "Are the limits named that matter here: the shifted test set, few images,"
            " the simulated drift, the source?"
        ),
        (
            "Would the group put the model in service? Is what would have to be true"
            " first written down?"
        ),
    ],
}
NO_GRADE = (
    "This page gathers evidence. It awards no points and is no grade: every criterion"
    " has questions that only a person can answer, and a figure that cannot be"
    " reproduced is first of all a question to the group."
)


def criteria(submission: Submission, findings: list, checklist) -> list[dict]:
    """The five criteria, each with its evidence, worst first, and
    the questions left.
    """
    evidence = {number: [] for number in CRITERIA}
    for finding in findings:
        if finding.criterion in evidence:
            where = f" ({finding.where})" if finding.where else ""
            evidence[finding.criterion].append(
                {"verdict": finding.verdict, "says": finding.says + where}
            )
    for part, item, says, passed in checklist:
        verdict = "human" if passed is None else "pass" if passed else "note"
        evidence[2 if part == "Code" else 1].append(
            {"verdict": verdict, "says": f"{item}: {says}"}
        )
    for number, verdict, says in facts(submission):
        evidence[number].append({"verdict": verdict, "says": says})
    order = {verdict: -place for place, verdict in enumerate(VERDICTS)}
    return [
        {
            "criterion": number,
            "title": title,
            "of": of,
            "questions": QUESTIONS[number],
            "evidence": sorted(
                evidence[number], key=lambda entry: order[entry["verdict"]]
            ),
        }
        for number, (title, of) in CRITERIA.items()
    ]


def checklist_of(submission: Submission) -> list[tuple]:
    """The course's list before handing in, as theme 8 measures it; nothing when the
    record does not allow it.
    """
    if not submission.record or not hasattr(utils, "checklist"):
        return []
    try:
        table = utils.checklist(submission.root, submission.record)
        return [
            (
                str(row.part),
                shown(row.item),
                shown(row.evidence),
                None if row.passed is None else bool(row.passed),
            )
            # this very check
            for row in table.itertuples()
            if row.item != "code commented and reproducible"
        ]
    except Exception:
        # a record of strange values: the static checks say what is wrong with it
        return []


def facts(submission: Submission) -> list[tuple[int, str, str]]:
    """What the record and the files show by themselves:
    (criterion, verdict, sentence).
    """
    record, told = submission.record, []
    themes = [
        theme for theme in range(1, 9) if isinstance(record.get(f"theme{theme}"), dict)
    ]
    if themes:
        told.append(
            (1, "pass", f"The record holds the themes {', '.join(map(str, themes))}.")
        )
    for theme in themes:
        rows = at(record, "criteria", f"theme{theme}")
        rows = (
            [row for row in rows if isinstance(row, dict)]
            if isinstance(rows, list)
            else []
        )
        failed = [shown(row.get("name")) for row in rows if not row.get("passed")]
        if rows:
            told.append(
                (
                    2,
                    "note" if failed else "pass",
                    f"Theme {theme}: {len(rows) - len(failed)} of its {len(rows)} own"
                    " criteria met"
                    + (f" (not: {'; '.join(failed)})." if failed else "."),
                )
            )
    told += [(number, "pass", says) for number, says in _comparisons(record)]
    counts = {
        kind: sum(path.parts[:2] == ("exports", kind) for path in submission.files)
        for kind in ("figures", "tables")
    }
    told.append(
        (
            4,
            "pass",
            f"{counts['figures']} figures and {counts['tables']} tables were exported.",
        )
    )
    refused = at(record, "theme7", "refused")
    if isinstance(refused, dict):
        told.append(
            (
                5,
                "pass",
                (
                    f"Theme 7 shows {len(refused)} candidates to its gate that it"
                    " should refuse."
                ),
            )
        )
    if isinstance(shipped := at(record, "theme4", "shipped"), str):
        says = (
            f"Theme 4 decides what to ship ({shown(shipped)}) from a promise on latency"
            " and a price."
        )
        told.append((5, "pass", says))
    return told


def _comparisons(record: dict) -> list[tuple[int, str]]:
    """Comparisons that the record holds, in the words of their own figures."""
    told, paired = [], at(record, "theme3", "paired")
    if isinstance(paired, dict) and all(
        isinstance(paired.get(key), (int, float)) for key in ("difference", "n")
    ):
        told.append(
            (
                3,
                (
                    f"Optimised against baseline, paired on {paired['n']} images:"
                    f" {paired['difference']:+.3f}."
                ),
            )
        )
    effects = [
        (row["difference"], name)
        for name, row in (at(record, "theme3", "ablation") or {}).items()
        if isinstance(at(row, "difference"), (int, float))
    ]
    if effects:
        worst, name = min(effects)
        told.append(
            (
                3,
                (
                    f"The ablation has {len(effects)} rows; the largest loss is"
                    f" '{shown(name)}' ({worst:+.3f})."
                ),
            )
        )
    rows = at(record, "theme4", "benchmark")
    if isinstance(rows, list):
        backends = {row.get("backend") for row in rows if isinstance(row, dict)}
        told.append((3, f"Theme 4 measures {len(backends)} backends in one benchmark."))
    return told


WORKFLOW = r"\.github/workflows/[^/]+\.ya?ml|\.gitlab-ci\.yml"


def bonuses(submission: Submission) -> list[dict]:
    """One line of evidence for each bonus of the course; a person decides, up to two
    points in all.
    """
    files = [path.as_posix() for path in submission.files]
    changed = [name for name in files if not _of_the_kit(submission, name)]
    # of another version of the kit, or changed
    edited = [name for name in changed if (KIT / name).is_file()]
    own = [name for name in changed if name not in edited]
    used = _imports(
        submission,
        own + [name for name in edited if name.startswith(("notebooks/", "models/"))],
    )
    demo = sorted({name for name in own if name.startswith("demo/")} | used["demo"])
    flows = [name for name in own if re.fullmatch(WORKFLOW, name)]
    look = {
        what: (
            f"; {', '.join(names)} differ from this kit's: look at them"
            if names
            else ""
        )
        for what, names in (
            ("demo", [name for name in edited if name.startswith("demo/")]),
            ("flows", [name for name in edited if re.fullmatch(WORKFLOW, name)]),
        )
    }
    tracking = sorted(
        {name for name in files if name.split("/")[0] in ("wandb", "mlruns", ".dvc")}
        | used["tracking"]
    )
    engine, works = (
        "exports/model.trt" in files,
        at(submission.record, "theme4", "tensorrt", "works"),
    )
    reasons = at(submission.record, "theme4", "tensorrt", "reasons")
    routes = (
        f"; {len(reasons)} attempts documented"
        if isinstance(reasons, list) and reasons
        else ""
    )
    found = {
        "TensorRT (+1)": (
            engine and works is True,
            (
                f"exports/model.trt is {'there' if engine else 'not there'}; the "
                f"record says that it works: {'yes' if works is True else 'no'}{routes}"
            ),
        ),
        "Demo": (
            demo,
            _named(
                demo,
                "nothing in demo/ but what the kit brings, no Gradio or Streamlit"
                " elsewhere",
            )
            + look["demo"],
        ),
        "CI/CD": (
            flows,
            _named(flows, "no workflow but what the kit brings") + look["flows"],
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


EXTRAS = {
    "demo": "gradio|streamlit",
    "tracking": "wandb|mlflow|comet_ml|neptune|clearml|dvclive|aim",
}


def _imports(submission: Submission, names: list[str]) -> dict[str, set[str]]:
    """Files of the group's own that import what a bonus is made with."""
    found = {kind: set() for kind in EXTRAS}
    for name in names:
        if name.endswith((".py", ".ipynb")) and is_code(Path(name)):
            with suppress(SubmissionError):
                content = read(submission.root, Path(name)).decode(errors="replace")
                for kind, words in EXTRAS.items():
                    found[kind] |= (
                        {name}
                        if re.search(rf"\b(?:import|from) (?:{words})\b", content)
                        else set()
                    )
    return found


def _of_the_kit(submission: Submission, name: str) -> bool:
    """Whether a file is one of the kit's, byte for byte."""
    kit = KIT / name
    same = (
        kit.is_file() and kit.stat().st_size == (submission.root / name).stat().st_size
    )
    return same and filecmp.cmp(kit, submission.root / name, shallow=False)


def _named(names: list[str], nothing: str) -> str:
    return (
        f"{len(names)} files of the group's own: {', '.join(names[:4])}"
        if names
        else nothing
    )


def write(report: dict, folder: Path) -> list[Path]:
    """check.json, check.md and check.html of one check."""
    paths = [utils.write_json(folder / "check.json", report)]
    return paths + _render("check", report, folder)


def write_summary(summary: dict, folder: Path) -> list[Path]:
    """summary.json, summary.md and summary.html of a class."""
    paths = [utils.write_json(folder / "summary.json", summary)]
    return paths + _render("summary", summary, folder)


def _render(name: str, values: dict, folder: Path) -> list[Path]:
    from jinja2 import Environment, FileSystemLoader

    places, paths = (
        Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=lambda file: file.endswith(".html"),
            trim_blocks=True,
            lstrip_blocks=True,
        ),
        [],
    )
    places.filters |= {"figure": compare.text, "cell": _cell}
    for ending in ("md", "html"):
        path = folder / f"{name}.{ending}"
        with utils.atomic(path) as temporary:
            temporary.write_text(
                places.get_template(path.name).render(values, no_grade=NO_GRADE),
                encoding="utf-8",
                errors="backslashreplace",
            )
        paths.append(path)
    return paths


def _cell(value) -> str:
    """Foreign text as a Markdown table cell shows it: nothing in it is markup, but for
    code between two backticks.
    """
    text = " ".join(str(value).split())
    parts = text.split("`")
    if len(parts) % 2 == 0 or any("|" in part for part in parts[1::2]):
        return _escaped(text, "`")
    parts[::2] = map(_escaped, parts[::2])
    return "`".join(parts)


def _escaped(text: str, more: str = "") -> str:
    return re.sub(rf"([\\*|<>\[\]#{more}]|(?<!\w)_|_(?!\w))", r"\\\1", text)


def order_findings(findings: list) -> list:
    """Worst first, then by check and place, so that two runs of a check read alike."""
    return worst_first(
        sorted(
            findings, key=lambda finding: (finding.check, finding.where, finding.says)
        )
    )
