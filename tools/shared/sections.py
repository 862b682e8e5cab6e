"""The twelve sections of the report, and where the record holds the gate's figures."""

from dataclasses import dataclass

TOTAL = (40, 100)  # pages of the whole report


@dataclass(frozen=True)
class Section:
    """One required section.

    Attributes
    ----------
    title : its English title.
    pattern : how a heading may begin, in lower case, without accents and numbering.
    file : below report/sections/; the references have none.
    budget : pages, from and to.
    """

    key: str
    title: str
    pattern: str
    file: str = ""
    budget: tuple[int, int] | None = None

    @property
    def theme(self) -> str:
        return self.key if self.key.startswith("theme") else ""

    @property
    def path(self) -> str:
        return f"report/sections/{self.file}"


def _theme(number: int, title: str, stem: str, budget: tuple[int, int]) -> Section:
    file = f"{number + 2:02}_theme{number}_{stem}.typ"
    title = f"Theme {number}: {title}"
    return Section(f"theme{number}", title, rf"theme {number}\b", file, budget)


SUMMARY = r"executive summary|resume executif|synthese executive|resume$|summary$"
SECTIONS = (
    Section(
        "summary", "Executive Summary", SUMMARY, "01_executive_summary.typ", (1, 2)
    ),
    Section(
        "introduction", "Introduction", "introduction", "02_introduction.typ", (2, 3)
    ),
    _theme(1, "Data Analysis", "data_analysis", (5, 8)),
    _theme(2, "Baseline Model", "baseline_model", (6, 8)),
    _theme(3, "Optimization", "optimization", (7, 10)),
    _theme(4, "ONNX Deployment", "onnx_deployment", (7, 10)),
    _theme(5, "Monitoring", "monitoring", (5, 7)),
    _theme(6, "Drift Detection", "drift_detection", (6, 8)),
    _theme(7, "Retraining", "retraining", (6, 8)),
    _theme(8, "Synthesis", "synthesis", (6, 10)),
    Section("conclusion", "Conclusion", r"conclusions?\b", "11_conclusion.typ", (2, 3)),
    Section("references", "References", r"references\b|bibliograph"),
)
WRITTEN = SECTIONS[:-1]  # by the group; the references follow from what it cites

# Headline figure: the model and the images of its row in theme7.on_gate.
ON_GATE = {
    "clean_accuracy_before": ("old model", "clean"),
    "clean_accuracy_after": ("candidate", "clean"),
    "drift_accuracy_before": ("old model", "drifted"),
    "drift_accuracy_after": ("candidate", "drifted"),
}


def timing_of(results: dict, name: str) -> dict:
    """The `kit.bench.ratio_row` of a headline figure: its spread, and whether the
    machine was busy; {} where the record has none.
    """
    for theme in range(1, 9):
        section = results.get(f"theme{theme}")
        timings = section.get("timings") if isinstance(section, dict) else None
        row = timings.get(name) if isinstance(timings, dict) else None
        if (
            isinstance(row, dict)
            and {"speedup_low", "speedup_high", "busy"} <= row.keys()
        ):
            return row
    return {}
