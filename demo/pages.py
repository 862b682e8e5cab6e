"""What the page says: sentences as Markdown, tables as frames, figures for Gradio."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

import sample_data
import utils
from demo import unlike
from demo.replay import Look, adjusted_p
from demo.service import Answer, Service
from kit import figures

TITLES = {
    "pneumonia": "Chest X-rays: pneumonia or not",
    "solar": "Roofs: solar panels or not",
    "pneumonia3": "Chest X-rays: normal, bacterial or viral pneumonia",
}
MEDICAL = (
    "**Not a medical device.** A model of a course, without clinical validation: nobody"
    " may be diagnosed, treated or left untreated because of what it says."
)
SHOWN = 8  # pictures of a window


def banner(service: Service) -> str:
    """Title, and what must stay in sight whatever is shown."""
    dataset, model = service.course.dataset, service.model
    parts = [f"# {TITLES[dataset]}"]
    if dataset.startswith("pneumonia"):
        parts.append(MEDICAL)
    if service.course.sample or model.metadata.get("sample"):
        parts.append(f"**SAMPLE DATA:** {sample_data.DISCLAIMER}")
    parts.append(
        f"Model {model.hash} in service, {model.size} x {model.size} pixels,"
        f" {model.provider}."
    )
    return "\n\n".join(parts)


def image_of(pixels: np.ndarray) -> Image.Image:
    """Pixels uint8 (C, S, S) as a picture."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def closed(figure):
    """A figure that pyplot no longer holds: a server would collect them."""
    plt.close(figure)
    return figure


# --------------------------------------------------------------------------------------
# One picture
# --------------------------------------------------------------------------------------


def verdict(service: Service, answer: Answer, label: str | None) -> str:
    """Both decisions: the most probable class, and the one at the cost threshold."""
    model, probabilities = service.model, answer.probabilities
    classes, best = model.classes, int(probabilities.argmax())
    positive = float(utils.positive_probability(probabilities[None])[0])
    alarm = positive >= model.threshold
    name = classes[1] if len(classes) == 2 else "anything but " + classes[0]
    parts = [
        *(f"*{note}*" for note in answer.notes),
        f"### Most probable: {classes[best]}, {probabilities[best]:.1%}",
        f"**At the cost threshold {model.threshold:.2f}: treat as"
        f" {name if alarm else classes[0]}** (P({name}) = {positive:.3f}).",
    ]
    if service.cost_missed:
        parts.append(f"A missed one costs {service.cost_missed:g} false alarms.")
    if alarm != (best > 0):
        parts.append("The two decisions differ.")
    if label:
        parts.append(f"Label of this picture: {label}.")
    parts.append(
        f"Probabilities are calibrated. This request: decoding {answer.decode_ms:.1f}"
        f" ms, model {answer.model_ms:.1f} ms on {model.provider}."
    )
    return "\n\n".join(parts)


def heat(service: Service, answer: Answer):
    """The picture as the network gets it, and where it looked; None without a map."""
    if answer.heat is None:
        return None
    best = service.model.classes[int(answer.probabilities.argmax())]
    # NaN is drawn as nothing: the bare picture
    maps = np.stack([np.full_like(answer.heat, np.nan), answer.heat])
    titles = ["what the network gets", f"Grad-CAM, {best}"]
    return closed(figures.heat(np.stack([answer.pixels] * 2), maps, titles, "", 2))


def comparison(service: Service, answer: Answer) -> str:
    """Is the picture unlike what the model was checked on, in both views?"""
    missing = [
        f"*No {part}: {service.missing[part]}*"
        for part in ("heat map", "reference")
        if part in service.missing
    ]
    if not answer.results:
        return "\n\n".join(missing)
    found = [unlike.VIEWS[view] for view, r in answer.results.items() if r.drift]
    first = next(iter(answer.results.values()))
    says = "No sign of it."
    if found:
        says = f"Yes, in {' and in '.join(found)}: do not trust the answer."
    elif first.threshold == np.inf:
        says = (
            f"Cannot be told: with {first.reference} pictures in the reference no"
            f" p-value reaches {first.alpha:g}."
        )
    name, deviation = answer.furthest
    explained = (
        f"p: share of {first.reference} pictures that training has not seen, this one"
        f" counted, that lie as far out; unlike at p ≤ {first.alpha:g} in either view."
        f" Furthest number: {name}, {deviation:+.1f} standard deviations."
        f" {unlike.BLIND}"
    )
    head = "### Is this picture unlike the training data?"
    return "\n\n".join([*missing, head, f"**{says}**", explained])


def comparison_table(answer: Answer) -> pd.DataFrame:
    """One column a view."""
    shown = {"": ["distance", "limit", "p-value", "decision"]}
    for view, result in answer.results.items():
        numbers = (result.statistic, result.threshold, result.p_value)
        cannot = "cannot tell" if result.threshold == np.inf else "no sign"
        decision = "unlike" if result.drift else cannot
        shown[unlike.VIEWS[view]] = [*map("{:.3g}".format, numbers), decision]
    return pd.DataFrame(shown)


# --------------------------------------------------------------------------------------
# Drift
# --------------------------------------------------------------------------------------


def window(look: Look, severity: int, policy: utils.DriftPolicy) -> str:
    """What was decided about a whole window."""
    n, decision, correction = len(look.labels), look.decision, policy.correction.title()
    return (
        f"Severity {severity}: mean confidence **{look.confidence:.3f}**, accuracy"
        f" estimated without labels **{decision.estimated_accuracy:.3f}**, with labels"
        f" **{look.right / n:.3f}** ({look.right} of {n}). The policy, which reads p"
        f" after {correction}, says **{decision.level}**:"
        f" {'; '.join(decision.reasons)}.\n\nBefore {correction}: each detector on its"
        f" own. After it, for {len(decision.results)} detectors at once: drift at p ≤"
        f" {policy.window_alpha:g}, as in the figure above. The first pictures of the"
        " window: before, after, and the answer to the latter."
    )


def window_table(look: Look, policy: utils.DriftPolicy) -> pd.DataFrame:
    adjusted, correction = adjusted_p(look.decision, policy), policy.correction.title()
    rows = []
    for name, result in look.decision.results.items():
        drift = adjusted[name] <= policy.window_alpha
        rows.append(
            {
                "detector": name,
                "statistic": f"{result.statistic:.3g}",
                f"p before {correction}": f"{result.p_value:.2g}",
                f"p after {correction}": f"{adjusted[name]:.2g}",
                "decision": "drift" if drift else "no drift",
            }
        )
    return pd.DataFrame(rows)


def window_pictures(look: Look, classes) -> list[tuple[Image.Image, str]]:
    """The first pictures, before beside after, with the answer to the latter."""
    cards = []
    for i in range(min(SHOWN, len(look.labels))):
        answer = int(look.probabilities[i].argmax())
        right = "✓" if answer == look.labels[i] else "✗"
        both = np.concatenate([look.before[i], look.after[i]], axis=2)
        says = f"{right} {classes[answer]} {look.probabilities[i].max():.0%}"
        cards.append((image_of(both), says))
    return cards


# --------------------------------------------------------------------------------------
# The production log
# --------------------------------------------------------------------------------------


def alerts_table(alerts: pd.DataFrame) -> pd.DataFrame:
    """The alerts of a run, as they stand in alerts.csv."""
    columns = ["severity", "rule", "event", "metric", "value", "threshold", "runbook"]
    if alerts.empty:
        return pd.DataFrame({"at": ["No alert rang in this run."]})
    at = alerts["timestamp"].dt.strftime("%Y-%m-%d %H:%M")
    numbers = {n: alerts[n].map("{:.3g}".format) for n in ("value", "threshold")}
    return alerts.assign(at=at, **numbers)[["at", *columns]]


def log_tail(log: pd.DataFrame, classes, lines: int = 12) -> pd.DataFrame:
    """The last lines of a run, newest first."""
    tail = log.tail(lines)[::-1]
    shown = tail.assign(
        at=tail["timestamp"].dt.strftime("%H:%M:%S"),
        answer=tail["pred_class"].map(dict(enumerate(classes))).fillna(""),
        confidence=tail["confidence"].map("{:.3f}".format),
        latency_ms=tail["latency_ms"].map("{:.2f}".format),
    )
    columns = ["at", "model", "image", "answer", "confidence", "latency_ms", "status"]
    return shown[columns]
