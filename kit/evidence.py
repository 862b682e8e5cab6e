"""What a record proves: status, checklist, ML Test Score, limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from kit.files import KIT, CourseError, damaged, read_json
from kit.record import is_record, stale_sections

# The notebook of each theme, and what a synthesis lacks without it.
THEMES = {
    1: ("theme1_data_analysis", "no pools, and no trivial answer as a yardstick"),
    2: ("theme2_baseline_model", "no baseline: nobody can say what the rest was worth"),
    3: ("theme3_optimization", "no optimised model, calibration and threshold"),
    4: ("theme4_onnx_deployment", "no export, no price: a trade-off has one side only"),
    5: ("theme5_monitoring", "no log and no alert: nobody would notice a failure"),
    6: ("theme6_drift_detection", "no detector, no decision: no reason to retrain"),
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
        section = results.get(f"theme{theme}")
        criteria = results.get("criteria", {}).get(f"theme{theme}", [])
        met = sum(row["passed"] for row in criteria)
        says = next((line for line in old if line.startswith(f"theme{theme} ")), "")
        rows[theme] = {
            "recorded": section.get("recorded", "unknown") if section else "missing",
            "criteria": f"{met} of {len(criteria)}" if criteria else "none",
            "says": says if section else f"{cost}. Run notebooks/{notebook}.ipynb",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("theme")


# Part, item, and where its evidence stands: a file below the home, criteria that the
# themes recorded (their first words), sections of the report, or None: a human judges.
BASELINE = ("theme2 baseline test", "theme2 balanced accuracy above")
OPTIMISED = ("theme3 optimised test", "theme3 balanced accuracy above")
EXPORT = ("theme4 ONNX against PyTorch", "theme4 decisions changed")
MONITORING = ("theme5 TensorBoard", "theme5 lines in the log")
RETRAINING = ("theme7 gate images", "theme7 bad candidates")
CHECKLIST = (
    ("Code", "environment documented", "exports/environment.txt"),
    ("Code", "optimised loader tested", ("theme1 optimised loader",)),
    ("Code", "baseline above 70 % accuracy", BASELINE),
    ("Code", "optimised model above 80 % accuracy", OPTIMISED),
    ("Code", "ONNX export works", EXPORT),
    ("Code", "ONNX Runtime benchmarks complete", ("theme4 backends in one benchmark",)),
    ("Code", "monitoring in operation (TensorBoard and CSV)", MONITORING),
    ("Code", "drift detection, two methods or more", ("theme6 detection methods",)),
    ("Code", "retraining pipeline tested", RETRAINING),
    ("Code", "code commented and reproducible", None),
    ("Code", "random seeds fixed", "course.json"),
    ("Report", "executive summary", {"summary"}),
    ("Report", "introduction", {"introduction"}),
    ("Report", "themes 1 to 7", {f"theme{n}" for n in range(1, 8)}),
    ("Report", "theme 8", {"theme8"}),
    ("Report", "conclusion", {"conclusion"}),
    ("Report", "references", {"references"}),
    ("Report", "figures clear, with captions", None),
    ("Report", "comparative tables with precise figures", None),
    ("Hand-in", "report as PDF", "report/report.pdf"),
    ("Hand-in", "source code: eight notebooks", "notebooks/theme8_synthesis.ipynb"),
    ("Hand-in", "checkpoints", "checkpoints/model_retrained.pth"),
    ("Hand-in", "README with instructions", "README.md"),
    ("Hand-in", "demo or screenshots (optional)", None),
)


def checklist(home: str | Path, results: dict) -> pd.DataFrame:
    """The course's checklist before submission: part ("Code", "Report", "Hand-in"),
    item, evidence (a sentence with measured values), passed (True, False, or None: a
    human must judge). Notebooks and README are the home's own or else this kit's.
    """
    home = Path(home)
    project = home if (home / "notebooks").is_dir() else KIT
    report = read_json(home / "report" / "report.json")
    sections = {row["key"]: row for row in report.get("sections", [])}

    def found(where) -> tuple[str, bool | None]:
        if where is None:
            return "a human must judge", None
        if isinstance(where, str):
            there = (home / where).exists() or (project / where).exists()
            return where if there else f"{where} is missing", there
        if isinstance(where, tuple):
            said, met = zip(*(_criterion(results, each) for each in where), strict=True)
            return "; ".join(said), all(met)
        written = [sections[key] for key in where & sections.keys()]
        open_ = sum(row["placeholders"] for row in written)
        says = f"{len(written)} of {len(where)} sections, {open_} placeholders left"
        return says, len(written) == len(where) and open_ == 0

    rows = [(part, item, *found(where)) for part, item, where in CHECKLIST]
    table = pd.DataFrame(rows, columns=["part", "item", "evidence", "passed"])
    return table.astype({"passed": object})


def _criterion(results: dict, named: str) -> tuple[str, bool]:
    """Evidence of one criterion that a theme's checkpoint recorded."""
    theme, words = named.split(" ", 1)
    for row in results.get("criteria", {}).get(theme, []):
        if row["name"].startswith(words):
            value = row["value"]
            value = f"{value:.4g}" if isinstance(value, float) else value
            return f"{row['name']}: {value} (target {row['target']})", row["passed"]
    return f"not recorded: run notebooks/{THEMES[int(theme[5:])][0]}.ipynb", False


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


# Test, the theme whose section of the record shows it, and what stands there.
MATURITY_EVIDENCE = {
    "expectations about the inputs are written down": (1, "kinds of faulty files"),
    "hyperparameters were tuned": (3, "the ablation, on validation images"),
    "a simpler model is not better": (3, "optimised against baseline, paired"),
    "training and serving do not differ": (4, "largest difference of an answer"),
    "speed and memory have not got worse": (5, "a rule on latency; memory is not seen"),
    "invariants of the inputs are watched": (5, "brightness, sharpness, blank images"),
    "a fall of quality is noticed": (6, "an estimate of accuracy without labels"),
    "the price of a stale model is known": (7, "the old model after the drift"),
    "quality is validated before serving": (7, "the checks of the gate"),
    "a canary or shadow precedes serving": (7, "requests in the shadow"),
    "serving can be rolled back": (7, "rehearsed; exports/audit.csv holds the lines"),
}


def maturity_evidence(results: dict) -> dict[str, str]:
    """What the record holds for a test of the ML Test Score; a test that is not named
    has no evidence there.
    """
    return {
        test: f"theme {theme}: {says}"
        for test, (theme, says) in MATURITY_EVIDENCE.items()
        if f"theme{theme}" in results
    }


def maturity(
    results: dict, scores: dict[str, tuple]
) -> tuple[pd.DataFrame, float, str]:
    """The ML Test Score of a project, from seven numbers for each section of
    ML_TEST_SCORE: 0 (not done), 0.5 (done by hand, written down) or 1 (automated).

    Returns the table (section, test, score, evidence in the record), the final score
    (the lowest of the four sums: a chain is as strong as its weakest link), and how the
    paper reads it. Source: Breck et al. (2017), The ML Test Score.
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
            (section, test, float(score), evidence.get(test, ""))
            for test, score in zip(tests, own, strict=True)
        ]
    table = pd.DataFrame(rows, columns=["section", "test", "score", "evidence"])
    final = float(table.groupby("section")["score"].sum().min())
    return table, final, next(text for end, text in MATURITY if final <= end)


def limitations(results: dict) -> list[tuple[str, str]]:
    """Facts of this run that limit what may be claimed, each with the question that it
    asks.
    """
    meta, found = results.get("meta", {}), []
    if meta.get("source") == "sample":
        asks = "Which of your conclusions would you dare to repeat on real ones?"
        found.append(("All images are drawn.", asks))
    tellers = [("theme1", _of_the_data), ("theme3", _of_the_test)]
    tellers += [("theme6", _of_the_drift), ("theme7", _of_the_gate)]
    for theme, tell in tellers:
        found += tell(results[theme]) if theme in results else ()
    fact = f"One seed ({meta.get('seed')}), one machine ({meta.get('hardware')})."
    return [*found, (fact, "Which figures would move with another seed, and how far?")]


def _of_the_data(section: dict) -> Iterator[tuple[str, str]]:
    for row in section.get("quality", ()):
        if row["problem"] == "no_patient":
            yield (
                f"The names of {row['images']} X-rays give no patient: images of one"
                " may stand in training and in the test.",
                "How would you find out whether they do?",
            )


def _of_the_test(section: dict) -> Iterator[tuple[str, str]]:
    test = section["test"]
    low, high, n = (test["accuracy"][name] for name in ("low", "high", "n"))
    yield (
        f"{n} test images put the accuracy before retraining in [{low:.3f},"
        f" {high:.3f}] (95 %), if they are independent: several can come from one"
        " patient or one street.",
        "Which difference between two models is too small for you to see?",
    )
    recalls = {name: row for name, row in test.items() if name.startswith("recall ")}
    name, worst = min(recalls.items(), key=lambda item: item[1]["low"])
    yield (
        f"The {name} before retraining may be as low as {worst['low']:.3f}"
        f" (n = {worst['n']}).",
        "Who pays for these errors, and who decides that this is acceptable?",
    )


def _of_the_drift(section: dict) -> Iterator[tuple[str, str]]:
    seen = sum(map(bool, section["unseen_shift"].values()))
    yield (
        f"{seen} of {len(section['unseen_shift'])} detectors tell the test images"
        " from the training hospital's (or region's).",
        "Where else will the images come from, and who checks that?",
    )
    error = section["estimates"][section["policy"]["estimate"]]["most optimistic"]
    yield (
        f"Accuracy estimated without labels was up to {100 * error:.0f} points too"
        " good.",
        "How many images a month must somebody label for you to notice?",
    )


def _of_the_gate(section: dict) -> Iterator[tuple[str, str]]:
    checks = {check["name"]: check for check in section["gate"]["checks"]}
    if clean := checks.get("clean accuracy"):
        yield (
            f"The gate lets clean accuracy fall by {-100 * clean['limit']:.1f} points;"
            f" these images excluded a fall of more than {-100 * clean['low']:.1f}.",
            "How many gate images would one point need?",
        )


def with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """The same table for reading: `x`, `x_low` and `x_high` in one column, "0.956
    [0.932, 0.972]"; nothing for NaN.
    """

    def number(value) -> str:
        if not isinstance(value, float):
            return str(value)
        if math.isnan(value):
            return ""
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    shown = {}
    for name in table.columns:
        if f"{name}_low" in table:
            ends = table[[name, f"{name}_low", f"{name}_high"]].itertuples(index=False)
            shown[name] = ["{:.3f} [{:.3f}, {:.3f}]".format(*row) for row in ends]
        elif not name.endswith(("_low", "_high")):
            shown[name] = [number(value) for value in table[name]]
    return pd.DataFrame(shown, index=table.index)
