"""What the page says: sentences as Markdown, tables as frames, figures for Gradio."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

import sample_data
import utils
from demo import unlike
from demo.drift import Look
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
    parts = [
        f"*No {part}: {service.missing[part]}*"
        for part in ("heat map", "reference")
        if part in service.missing
    ]
    if not answer.results:
        return "\n\n".join(parts)
    results = {unlike.VIEWS[view]: result for view, result in answer.results.items()}
    found = [name for name, result in results.items() if result.drift]
    first = next(iter(results.values()))
    says = "No sign of it."
    if found:
        says = f"Yes, in {' and in '.join(found)}: do not trust the answer."
    elif first.threshold == np.inf:
        says = (
            f"Cannot be told: with {first.reference} pictures in the reference no"
            f" p-value reaches {first.alpha:g}."
        )
    rows = [
        f"- {name}: distance {result.statistic:.3g} (limit {result.threshold:.3g}),"
        f" p = {result.p_value:.3g}"
        for name, result in results.items()
    ]
    name, deviation = answer.furthest
    explained = (
        f"p: share of {first.reference} pictures that training has not seen, this one"
        f" counted, that lie as far out; unlike at p ≤ {first.alpha:g} in either view."
        f" Furthest number: {name}, {deviation:+.1f} standard deviations."
        f" {unlike.BLIND}"
    )
    head = "### Is this picture unlike the training data?"
    return "\n\n".join([*parts, head, f"**{says}**", "\n".join(rows), explained])


# --------------------------------------------------------------------------------------
# Drift
# --------------------------------------------------------------------------------------


def window(look: Look, severity: int) -> str:
    """What the model says of a whole window, and what theme 6's policy decides."""
    n, decision = len(look.labels), look.decision
    low, high = utils.wilson(look.right.sum(), n)
    return (
        f"Severity {severity}, {n} pictures: mean confidence"
        f" **{look.probabilities.max(axis=1).mean():.3f}**, accuracy estimated without"
        f" labels **{decision.estimated_accuracy:.3f}**, with labels"
        f" **{look.right.mean():.3f}** [{low:.3f}, {high:.3f}]. The policy says"
        f" **{decision.level}**: {'; '.join(decision.reasons)}."
    )


def window_pictures(look: Look, classes) -> list[tuple[Image.Image, str]]:
    """The first pictures, before beside after, with the answer to the latter."""
    cards = []
    for i in range(min(SHOWN, len(look.labels))):
        mark = "✓" if look.right[i] else "✗"
        answer = int(look.probabilities[i].argmax())
        both = np.concatenate([look.before[i], look.after[i]], axis=2)
        says = f"{mark} {classes[answer]} {look.probabilities[i].max():.0%}"
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
