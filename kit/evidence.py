"""What a record proves: status, checklist, ML Test Score, limits."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd

from kit.files import KIT, CourseError, damaged, read_json
from kit.record import is_record, stale_sections

# The notebook of each theme, and what a synthesis lacks without it.
THEMES = {
    1: (
        "theme1_data_analysis",
        "no pools and no trivial answer to beat: no later figure has a yardstick",
    ),
    2: (
        "theme2_baseline_model",
        "no baseline: nobody can say what the later work was worth",
    ),
    3: (
        "theme3_optimization",
        "no optimised model, no calibration, no threshold: most rows are empty",
    ),
    4: (
        "theme4_onnx_deployment",
        "no export and no price: a trade-off has one side only",
    ),
    5: ("theme5_monitoring", "no log and no alert: nobody would notice a failure"),
    6: (
        "theme6_drift_detection",
        "no detector and no decision: retraining has no reason",
    ),
    7: ("theme7_retraining", "no gate and no way back: the model only grows older"),
}
# The variants of the summary, and the answers to the test images that each has stored.
VARIANTS = {
    "baseline": "baseline_test",
    "optimised": "optimized_test",
    "ONNX float32": "onnx_test",
    "ONNX INT8": "int8_test",
    "TensorRT": "tensorrt_test",
    "retrained": "retrained_test",
}
PAIRS = (
    ("baseline", "optimised"),
    ("optimised", "ONNX float32"),
    ("ONNX float32", "ONNX INT8"),
    ("optimised", "retrained"),
)


def theme_status(home: str | Path, results: dict) -> pd.DataFrame:
    """What ran, when, with how many criteria met; what is missing or stale, and what
    that costs the synthesis.
    """
    if not is_record(results):
        raise damaged(Path(home) / "exports" / "results.json")
    old, rows = stale_sections(Path(home), results), {}
    for theme, (notebook, cost) in THEMES.items():
        section, criteria = (
            results.get(f"theme{theme}"),
            results.get("criteria", {}).get(f"theme{theme}", []),
        )
        says = next((line for line in old if line.startswith(f"theme{theme} ")), "")
        rows[theme] = {
            "recorded": section.get("recorded", "unknown") if section else "missing",
            "criteria": (
                f"{sum(row['passed'] for row in criteria)} of {len(criteria)}"
                if criteria
                else "none"
            ),
            "says": says if section else f"{cost}. Run notebooks/{notebook}.ipynb",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("theme")


def life_of_model(home: str | Path, results: dict) -> pd.DataFrame:
    """What happened to the model, in order: theme, when (UTC), event, and the accuracy
    measured then, if any.

    Returns
    -------
    DataFrame: theme, when, event, images (which the accuracy is about), accuracy, low,
    high (Wilson, 95 %)."""
    second, third, fourth, fifth, sixth, seventh = (
        results.get(f"theme{theme}") for theme in range(2, 8)
    )
    gate = {
        (row["model"], row["images"]): row for row in (seventh or {}).get("on_gate", [])
    }
    events = []

    def add(theme, event, images="", measured=None):
        """`measured`: a row of `evaluate` or `accuracy_row`."""
        section, row = results[f"theme{theme}"], measured or {}
        value = row.get("accuracy", row.get("value", math.nan))
        events.append(
            {
                "theme": theme,
                "when": section.get("trained") or section["recorded"],
                "event": event,
                "images": images,
                "accuracy": value,
            }
            | {end: row.get(end, math.nan) for end in ("low", "high")}
        )

    if second:
        add(
            2,
            f"baseline trained, {second['parameters']} parameters",
            "test",
            second["test"]["accuracy"],
        )
    if third:
        add(
            3,
            f"optimised, {third['parameters']} parameters",
            "test",
            third["test"]["accuracy"],
        )
    if fourth:
        add(4, f"exported; cheapest within the SLO: {fourth['shipped'] or 'none'}")
    if fifth:
        raised = sum(row["raised"] for row in fifth["drill"])
        add(
            5,
            f"in service; {raised} of {len(fifth['drill'])} incidents raised their"
            " alert",
        )
    if sixth:
        at = "" if sixth["decided_at"] is None else f" at window {sixth['decided_at']}"
        case = f"{sixth['scenario']['kind']}, severity {sixth['scenario']['severity']}"
        add(
            6,
            f"drift ({case}): {sixth['decision']}{at}",
            "gate, drifted",
            gate.get(("old model", "drifted")),
        )
    if seventh:
        verdict = "accepted" if seventh["gate"]["passed"] else "refused"
        add(
            7,
            f"candidate of {seventh['chosen']['budget']} labels {verdict}",
            "gate, drifted",
            gate.get(("candidate", "drifted")),
        )
        add(7, "the candidate on the test images", "test", seventh["test"]["accuracy"])
        which = (
            "retrained"
            if seventh["in_service"] == seventh["models"]["after"]
            else "original"
        )
        add(7, f"in service now: {seventh['in_service'][:8]}, the {which} model")
    return pd.DataFrame(
        events, columns=["theme", "when", "event", "images", "accuracy", "low", "high"]
    )


CHECKLIST = {
    "Code": (
        "environment documented",
        "optimised loader tested",
        "baseline above 70 % accuracy",
        "optimised model above 80 % accuracy",
        "ONNX export works",
        "ONNX Runtime benchmarks complete",
        "monitoring in operation (TensorBoard and CSV)",
        "drift detection, two methods or more",
        "retraining pipeline tested",
        "code commented and reproducible",
        "random seeds fixed",
    ),
    "Report": (
        "executive summary",
        "introduction",
        "themes 1 to 7",
        "theme 8",
        "conclusion",
        "references",
        "figures clear, with captions",
        "comparative tables with precise figures",
    ),
    "Hand-in": (
        "report as PDF",
        "source code: eight notebooks",
        "checkpoints",
        "README with instructions",
        "demo or screenshots (optional)",
    ),
}


def checklist(
    home: str | Path, results: dict, project: str | Path | None = None
) -> pd.DataFrame:
    """The course's checklist before submission, item by item, with the evidence that
    stands in the files.

    Parameters
    ----------
    home : folder of the artefacts; project : folder of notebooks and README, the home's
    own or else this kit.

    Returns
    -------
    DataFrame: part ("Code", "Report", "Hand-in"), item, evidence (a sentence with
    measured values), passed (True, False, or None: a human must judge).
    """
    home = Path(home)
    project = Path(project or (home if (home / "notebooks").is_dir() else KIT))
    found = (
        _code_evidence(home, results, project)
        | _report_evidence(home)
        | _hand_in_evidence(home, project)
    )
    rows = [
        {"part": part, "item": item}
        | dict(zip(("evidence", "passed"), found[item], strict=True))
        for part, items in CHECKLIST.items()
        for item in items
    ]
    return pd.DataFrame(rows)


def _met(results: dict, theme: int, words: str) -> tuple[str, bool]:
    """Evidence of one criterion that a theme's checkpoint recorded."""
    for row in results.get("criteria", {}).get(f"theme{theme}", []):
        if row["name"].startswith(words):
            value = (
                f"{row['value']:.4g}"
                if isinstance(row["value"], float)
                else row["value"]
            )
            return f"{row['name']}: {value} (target {row['target']})", row["passed"]
    return f"not recorded: run notebooks/{THEMES[theme][0]}.ipynb", False


def _all_met(results: dict, *wanted: tuple[int, str]) -> tuple[str, bool]:
    said, passed = zip(
        *(_met(results, theme, words) for theme, words in wanted), strict=True
    )
    return "; ".join(said), all(passed)


def _seed_evidence(project: Path, seed: int | None) -> tuple[str, bool]:
    """How many of the notebooks hand SEED to `start`, and the seed of the record."""
    notebooks = sorted((project / "notebooks").glob("theme[1-8]_*.ipynb"))
    fixed = sum(
        bool(
            re.search(
                r"utils\.start\([^)]*\bseed=SEED\b", path.read_text(errors="replace")
            )
        )
        for path in notebooks
    )
    says = (
        f"seed {seed} in the record; {fixed} of {len(notebooks)} notebooks pass SEED to"
        " utils.start"
    )
    return says, seed is not None and 0 < fixed == len(notebooks)


def _code_evidence(
    home: Path, results: dict, project: Path
) -> dict[str, tuple[str, bool | None]]:
    meta, fourth, sixth = (
        results.get(name, {}) for name in ("meta", "theme4", "theme6")
    )
    versions, written = (
        meta.get("environment", {}),
        (home / "exports" / "environment.txt").exists(),
    )
    timed = {(row["backend"], row["batch"]) for row in fourth.get("benchmark", [])}
    backends, batches = (
        {backend for backend, _ in timed},
        sorted({batch for _, batch in timed}),
    )
    served = [name for name in backends if name.startswith("ONNX Runtime")]
    log = home / "logs" / "production.csv"
    lines = (
        f"; production.csv, {log.stat().st_size / 2**20:.1f} MiB"
        if log.exists()
        else "; no logs/production.csv"
    )
    board = _all_met(results, (5, "TensorBoard"), (5, "lines in the log"))
    refused = results.get("theme7", {}).get("refused", {})
    gate = _all_met(results, (7, "gate images"), (7, "bad candidates"))
    methods = _met(results, 6, "detection methods")
    seed = meta.get("seed")
    return {
        "environment documented": (
            (
                f"exports/environment.txt, torch {versions.get('torch')},"
                f" {meta.get('hardware')}"
                if written
                else "exports/environment.txt is missing"
            ),
            written,
        ),
        "optimised loader tested": _met(results, 1, "optimised loader"),
        "baseline above 70 % accuracy": _all_met(
            results, (2, "baseline test"), (2, "balanced accuracy above")
        ),
        "optimised model above 80 % accuracy": _all_met(
            results, (3, "optimised test"), (3, "balanced accuracy above")
        ),
        "ONNX export works": _all_met(
            results, (4, "ONNX against PyTorch"), (4, "decisions changed")
        ),
        "ONNX Runtime benchmarks complete": (
            (
                f"{len(backends)} backends, {len(served)} of ONNX Runtime, at batch"
                f" sizes {', '.join(map(str, batches)) or 'none'}"
            ),
            len(backends) >= 3 and bool(served) and len(batches) >= 2,
        ),
        "monitoring in operation (TensorBoard and CSV)": (
            board[0] + lines,
            board[1] and log.exists(),
        ),
        "drift detection, two methods or more": (
            (
                f"{methods[0]}; false alarms of {len(sixth.get('false_alarms', []))}"
                " detectors measured"
            ),
            methods[1],
        ),
        "retraining pipeline tested": (
            f"{gate[0]}; {len(refused)} bad candidates tried",
            gate[1],
        ),
        "code commented and reproducible": (
            "run `course.py check` on the hand-in: it repeats the figures",
            None,
        ),
        "random seeds fixed": _seed_evidence(project, seed),
    }


def _report_evidence(home: Path) -> dict[str, tuple[str, bool | None]]:
    """From report/report.json, which `course.py report` writes beside the PDF."""
    report = read_json(home / "report" / "report.json")
    missing = "no report yet: python course.py report"
    parts = {
        "executive summary": ("summary",),
        "introduction": ("introduction",),
        "conclusion": ("conclusion",),
        "themes 1 to 7": tuple(f"theme{n}" for n in range(1, 8)),
        "theme 8": ("theme8",),
        "references": ("references",),
    }
    found = {}
    for item, keys in parts.items():
        rows = [
            row
            for row in report.get("sections", [])
            if any(key in row["key"] for key in keys)
        ]
        long = [
            f"{row['title']}: {row['pages']} of {'–'.join(map(str, row['budget']))}"
            " pages"
            for row in rows
            if row["budget"]
            and not row["budget"][0] <= row["pages"] <= row["budget"][1]
        ]
        open_ = sum(row["placeholders"] for row in rows)
        said = f"{len(rows)} of {len(keys)} sections, {open_} placeholders left"
        said += f"; outside the budget: {', '.join(long)}" if long else ""
        found[item] = (
            (said, len(rows) == len(keys) and not long and open_ == 0)
            if report
            else (missing, False)
        )
    for item, kind, suffix in (
        ("figures clear, with captions", "figures", "png"),
        ("comparative tables with precise figures", "tables", "csv"),
    ):
        count = len(list((home / "exports" / kind).glob(f"theme*.{suffix}")))
        found[item] = (
            f"{count} {kind} in exports/{kind}: read them as a stranger would",
            None if count else False,
        )
    return found


def _hand_in_evidence(home: Path, project: Path) -> dict[str, tuple[str, bool | None]]:
    report = read_json(home / "report" / "report.json")
    pdf, pages = (home / "report" / "report.pdf").exists(), report.get("pages", 0)
    notebooks = len(list((project / "notebooks").glob("theme[1-8]_*.ipynb")))
    names = ("best_model.pth", "model_retrained.pth")
    there = [name for name in names if (home / "checkpoints" / name).exists()]
    demo = (project / "demo").is_dir()
    draft = ", still a draft" if report.get("draft") else ""
    return {
        "report as PDF": (
            (
                f"report.pdf, {pages} pages of 40–100{draft}"
                if pdf
                else "report/report.pdf is missing"
            ),
            pdf and 40 <= pages <= 100 and not draft,
        ),
        "source code: eight notebooks": (f"{notebooks} of 8 notebooks", notebooks == 8),
        "checkpoints": (
            f"{', '.join(there) or 'none'} of {' and '.join(names)}",
            len(there) == 2,
        ),
        "README with instructions": (
            "README.md" if (project / "README.md").exists() else "README.md is missing",
            (project / "README.md").exists(),
        ),
        "demo or screenshots (optional)": (
            "demo/ is there" if demo else "none found, and none is required",
            None,
        ),
    }


ML_TEST_SCORE = {
    "data": (
        "expectations about the inputs are written down",
        "every input is useful",
        "no input costs too much",
        "inputs respect law and policy",
        "the pipeline protects privacy",
        "a new input can be added quickly",
        "the code that reads inputs is tested",
    ),
    "model": (
        "every model specification is reviewed",
        "offline and online metrics agree",
        "hyperparameters were tuned",
        "the price of a stale model is known",
        "a simpler model is not better",
        "quality holds on all important slices",
        "fairness and inclusion were tested",
    ),
    "infrastructure": (
        "training is reproducible",
        "model code has unit tests",
        "the pipeline has an integration test",
        "quality is validated before serving",
        "single predictions can be debugged",
        "a canary or shadow precedes serving",
        "serving can be rolled back",
    ),
    "monitoring": (
        "changes of a dependency are noticed",
        "invariants of the inputs are watched",
        "training and serving do not differ",
        "the age of the model is watched",
        "numerical stability is watched",
        "speed and memory have not got worse",
        "a fall of quality is noticed",
    ),
}
# Upper end of the score, and how the paper reads it.
MATURITY = (
    (0, "more of a research project than a productionised system"),
    (1, "not totally untested, but serious holes in reliability are possible"),
    (2, "a first pass at productionisation, more investment may be needed"),
    (3, "reasonably tested, more of it could be automated"),
    (5, "strong automated testing and monitoring, fit for mission-critical systems"),
    (7, "exceptional automated testing and monitoring"),
)


def _stale_price(section: dict) -> str:
    old = {
        row["images"]: row["accuracy"]
        for row in section.get("on_gate", [])
        if row["model"] == "old model"
    }
    return (
        f"accuracy {old['clean']:.3f} on clean images, {old['drifted']:.3f} after the"
        " drift"
        if old
        else ""
    )


def _largest(agreement: list[dict]) -> float:
    return max(row["max_abs_diff"] for row in agreement)


# Test, theme, and what its section of the record says about it.
_MATURITY_EVIDENCE = (
    (
        "expectations about the inputs are written down",
        1,
        lambda s: f"{len(s['quality'])} kinds of faulty files",
    ),
    (
        "hyperparameters were tuned",
        3,
        lambda s: f"a search, and {len(s['ablation'])} trainings of the ablation",
    ),
    (
        "a simpler model is not better",
        3,
        lambda s: (
            f"optimised against baseline {100 * s['paired']['difference']:+.1f} "
            f"points, p = {s['paired']['p_value']:.2g}"
        ),
    ),
    (
        "training and serving do not differ",
        4,
        lambda s: f"answers only: {_largest(s['agreement']):.1e} apart",
    ),
    (
        "speed and memory have not got worse",
        5,
        lambda s: "an alert rule on latency; memory is not watched",
    ),
    (
        "invariants of the inputs are watched",
        5,
        lambda s: "brightness, sharpness and blank images, by window",
    ),
    (
        "a fall of quality is noticed",
        6,
        lambda s: (
            f"{s['policy']['estimate']}, no labels; at worst"
            f" {100 * s['estimates'][s['policy']['estimate']]['most optimistic']:.0f}"
            " points too good"
        ),
    ),
    ("the price of a stale model is known", 7, _stale_price),
    (
        "quality is validated before serving",
        7,
        lambda s: f"{len(s['gate']['checks'])} checks; {s['gate']['verdict']}",
    ),
    (
        "a canary or shadow precedes serving",
        7,
        lambda s: f"{s['shadow']['requests']} requests in the shadow",
    ),
    (
        "serving can be rolled back",
        7,
        lambda s: "rehearsed; exports/audit.csv holds the lines",
    ),
)


def maturity_evidence(results: dict) -> dict[str, str]:
    """What the record holds for a test of the ML Test Score; a test that is not named
    has no evidence there.
    """
    said = {
        test: (theme, tell(results[f"theme{theme}"]))
        for test, theme, tell in _MATURITY_EVIDENCE
        if f"theme{theme}" in results
    }
    return {
        test: f"theme {theme}: {text}" for test, (theme, text) in said.items() if text
    }


def maturity(
    results: dict, scores: dict[str, tuple]
) -> tuple[pd.DataFrame, float, str]:
    """The ML Test Score of a project: per test 0 (not done), 0.5 (done by hand, written
    down) or 1 (automated).

    Parameters
    ----------
    scores : dict
        Seven numbers for each section of ML_TEST_SCORE.

    Returns
    -------
    table (section, test, score, evidence in the record), the final score (the lowest of
    the four sums: a chain is as strong as its weakest link), how the paper reads it.
    Source: Breck et al. (2017), The ML Test Score.

    Raises
    ------
    CourseError
        A section without seven numbers, or another number than 0, 0.5 and 1.
    """
    evidence, rows = maturity_evidence(results), []
    for section, tests in ML_TEST_SCORE.items():
        own = tuple(scores.get(section, ()))
        if len(own) != len(tests) or not set(own) <= {0, 0.5, 1}:
            raise CourseError(
                f"Section {section!r} needs {len(tests)} scores of 0, 0.5 or 1, these"
                f" are {own}: give one for each test, in the order of the table."
            )
        rows += [
            {
                "section": section,
                "test": test,
                "score": float(score),
                "evidence": evidence.get(test, ""),
            }
            for test, score in zip(tests, own, strict=True)
        ]
    table = pd.DataFrame(rows)
    final = float(table.groupby("section")["score"].sum().min())
    return table, final, next(text for end, text in MATURITY if final <= end)


def limitations(results: dict) -> list[tuple[str, str]]:
    """Facts of this run that limit what may be claimed, each with the question that it
    asks.
    """
    meta, third, sixth, seventh = (
        results.get(name, {}) for name in ("meta", "theme3", "theme6", "theme7")
    )
    found = []
    if meta.get("source") == "sample":
        found.append(
            (
                "All images are drawn.",
                "Which of your conclusions would you dare to repeat on real ones?",
            )
        )
    if third:
        low, high, n = (
            third["test"]["accuracy"][name] for name in ("low", "high", "n")
        )
        found.append(
            (
                (
                    f"{n} test images put the accuracy before retraining in [{low:.3f},"
                    f" {high:.3f}] (95 %), if they are independent: several can come"
                    " from one patient or one street."
                ),
                "Which difference between two models is too small for you to see?",
            )
        )
        recalls = {
            name: row
            for name, row in third["test"].items()
            if name.startswith("recall ")
        }
        name, worst = min(recalls.items(), key=lambda item: item[1]["low"])
        found.append(
            (
                (
                    f"The {name} before retraining may be as low as {worst['low']:.3f}"
                    f" (n = {worst['n']})."
                ),
                "Who pays for these errors, and who decides that this is acceptable?",
            )
        )
    if sixth:
        seen = [name for name, told in sixth["unseen_shift"].items() if told]
        found.append(
            (
                (
                    f"{len(seen)} of {len(sixth['unseen_shift'])} detectors tell the"
                    " test images from the training hospital's (or region's)."
                ),
                "Where else will the images come from, and who checks that?",
            )
        )
        error = sixth["estimates"][sixth["policy"]["estimate"]]["most optimistic"]
        found.append(
            (
                (
                    f"Accuracy estimated without labels was up to {100 * error:.0f}"
                    " points too good."
                ),
                "How many images a month must somebody label for you to notice?",
            )
        )
    if seventh:
        checks = [
            row for row in seventh["gate"]["checks"] if row["name"] == "clean accuracy"
        ]
        found += [
            (
                (
                    f"The gate lets clean accuracy fall by {100 * -row['limit']:.1f}"
                    " points before it refuses; this time its interval excluded more"
                    f" than {100 * -row['low']:.1f}."
                ),
                "How many gate images would three points need?",
            )
            for row in checks
        ]
    found.append(
        (
            f"One seed ({meta.get('seed')}), one machine ({meta.get('hardware')}).",
            (
                "Which of your figures would you expect to move with another seed, and"
                " by how much?"
            ),
        )
    )
    return found
