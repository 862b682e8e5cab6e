"""Evidence without a record: the course's checklist, judged from code and stored
outputs, each with its place. What is not found is a question and never a fail.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tools.grading.finding import Check, Finding, listed
from tools.grading.static.code import called
from tools.grading.static.look import Look, calls
from tools.grading.static.method import WRITES
from tools.shared.foreign import MIB, SubmissionError, decode, shown
from tools.shared.parsing import Source, output_text

EVIDENCE = Check("evidence", 1)
ASKED = {2: 0.7, 3: 0.8}  # accuracy that the course asks of the model of a theme
ACCURACY = re.compile(
    r"(?i)((?<![a-z])(?P<of>test|val|train)[a-z]*[ _-]*)?(?<![a-z])"
    r"(acc(uracy)?|exactitude)(?![a-z])[^0-9\n]{0,24}"
    r"(?P<value>\d{1,3}[.,]\d+|\d{1,3}(?=\s*%))(?P<percent>\s*%)?"
)
DRIFT = {  # what a test is called, and how it is written
    "Kolmogorov–Smirnov": r"ks_2samp|kstest|ks_test",
    "MMD": r"\w*mmd\w*",
    "PSI": r"\w*psi\b\w*|population_stability\w*",
    "Wasserstein": r"wasserstein\w*",
    "Jensen–Shannon": r"jensenshannon|js_diverg\w*",
    "χ²": r"chi2_contingency|chisquare",
    "Cramér–von Mises": r"cramervonmises_2samp",
    "Anderson–Darling": r"anderson_ksamp",
    "Mann–Whitney": r"mannwhitneyu",
    "t test": r"ttest_ind",
    "Kullback–Leibler": r"kl_div\w*|entropy",
    "the handout's pixel test": r"detect_pixel_drift",
    "the handout's test of embeddings": r"detect_embedding_drift",
    "Evidently": r"DataDriftPreset|DataDriftTable",
}
LOGGED = re.compile(r"(?i)confiden|confian|latenc")
TIMED = re.compile(
    r"perf_counter|\btime\.time\(|timeit|benchmark_(?:onnx|model)|Event\("
)
MAX_TABLES = 50


def evidence(look: Look) -> Iterator[Finding]:
    """Only where there is no record, and code that is not the kit's own."""
    if look.submission.record or not look.notebooks or look.on_the_kit:
        return
    missing = []
    yield from _accuracies(look, missing)
    for item, place in (
        ("an ONNX export", _first_call(look, "export", "torch.onnx.export")),
        ("a benchmark of ONNX Runtime", _benchmark(look)),
        ("TensorBoard that is written", _tensorboard(look)),
        ("a CSV log of predictions", _csv_log(look)),
        ("a retraining in theme 7", _retraining(look)),
    ):
        if place:
            yield EVIDENCE.passed(f"Found: {item}.", place)
        else:
            missing.append(item)
    yield from _drift_methods(look, missing)
    if missing:
        says = f"Not found in code or outputs: {', '.join(missing)}. Ask for the place"
        yield EVIDENCE.human(f"{says}, or for the record.")


def _accuracies(look: Look, missing: list[str]) -> Iterator[Finding]:
    """The accuracy that a theme prints: of test images where it says so."""
    for theme, least in ASKED.items():
        found = _accuracy(look, theme)
        if found is None:
            missing.append(f"an accuracy that theme {theme} prints")
            continue
        of, value, where = found
        says = f"Theme {theme} prints an accuracy{of} of {value:.3g}"
        if value > least:
            yield EVIDENCE.passed(f"{says} (asked: above {least}).", where)
        else:
            says += f", and the course asks for more than {least}: which images?"
            yield EVIDENCE.human(says, where)


def _accuracy(look: Look, theme: int) -> tuple[str, float, str] | None:
    notebook, best = look.notebooks.get(theme), None
    for cell in notebook.code if notebook else ():
        for match in ACCURACY.finditer(output_text(cell)):
            value = float(match["value"].replace(",", "."))
            value = value / 100 if match["percent"] or value > 1 else value
            of = (match["of"] or "").lower()
            # a report of scikit-learn, or a sentence on test images, over an epoch's
            rank = 2 if of == "test" else 1 if not of else 0
            if value <= 1 and (best is None or rank >= best[0]):
                where = f"{shown(notebook.path)}, cell {cell.number}, output"
                best = rank, f" on {of} images" if of else "", value, where
    return best[1:] if best else None


def _first_call(look: Look, name: str, dotted: str) -> str:
    for source in look.sources:
        for call in calls(source, name):
            if ast.unparse(call.func) == dotted:
                return source.where(call)
    return ""


def _text(source: Source) -> str:
    return source.cell.source if source.cell else ""


def _benchmark(look: Look) -> str:
    """A cell that times ONNX Runtime, and is not the log of a service."""
    for source in look.sources:
        runs = next(calls(source, "run", "benchmark_onnx"), None)
        logs = any(calls(source, "log", "log_batch", "add_scalar"))
        if runs and not logs and TIMED.search(_text(source)):
            return source.where(runs)
    return ""


def _tensorboard(look: Look) -> str:
    for source in look.sources:
        for node in source.nodes:
            if WRITES.fullmatch(called(node)):
                return source.where(node)
    events = [p for p in look.submission.files if p.name.startswith("events.out.")]
    return shown(events[0].parent) if events else ""


def _csv_log(look: Look) -> str:
    """Code that writes what a service answered, or such a table."""
    for source in look.sources:
        if source.cell is None:
            continue
        for call in calls(source, "InferenceLogger"):
            return source.where(call)
        for call in calls(source, "writer", "DictWriter", "to_csv"):
            if LOGGED.search(_text(source)):
                return source.where(call)
    tables = [p for p in look.submission.files if p.suffix.lower() == ".csv"]
    for path in tables[:MAX_TABLES]:
        if LOGGED.search(_first_line(look, path)):
            return shown(path)
    return ""


def _first_line(look: Look, path: Path) -> str:
    try:
        return decode(look.read(path, MIB)).partition("\n")[0]
    except SubmissionError:
        return ""


def _retraining(look: Look) -> str:
    notebook = look.notebooks.get(7)
    for source in look.sources:
        if notebook and source.path == notebook.path:
            for call in calls(source, "backward", "train_epoch", "train_epoch_amp"):
                return source.where(call)
    return ""


def _drift_methods(look: Look, missing: list[str]) -> Iterator[Finding]:
    found: dict[str, str] = {}
    for source in look.sources:
        if source.cell is None:
            continue
        for node in source.nodes:
            name = called(node)
            for method, pattern in DRIFT.items() if name else ():
                if method not in found and re.fullmatch(pattern, name):
                    found[method] = source.where(node)
    places = listed((f"{method}: {where}" for method, where in found.items()), 4, "; ")
    if len(found) > 1:
        says = f"{len(found)} methods look for drift: {', '.join(found)}."
        yield EVIDENCE.passed(says, places)
    elif found:
        says = f"One method looks for drift ({', '.join(found)}), and the course asks"
        yield EVIDENCE.human(f"{says} for two: is there another?", places)
    else:
        missing.append("a method that detects drift")
