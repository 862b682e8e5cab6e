"""The answers as HTML: pictures travel inside the page, so that nothing of an upload is
stored to be shown.
"""

import base64
import io
from html import escape

import numpy as np
import pandas as pd

import sample_data
import utils
from demo import unlike
from demo.replay import Look, adjusted_p
from demo.service import Answer, Service

TITLES = {
    "pneumonia": "Chest X-rays: pneumonia or not",
    "solar": "Roofs: solar panels or not",
    "pneumonia3": "Chest X-rays: normal, bacterial or viral pneumonia",
}
MEDICAL = (
    "Not a medical device. A model of a course, without clinical validation: nobody may"
    " be diagnosed, treated or left untreated because of what it says."
)


def encoded(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def png(pixels: np.ndarray) -> bytes:
    """Pixels uint8 (C, S, S) as a file that decodes to the same pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def picture(pixels: np.ndarray) -> str:
    """Address of pixels uint8 (C, S, S) that holds the picture itself."""
    return encoded(png(pixels))


def drawing(figure, alt: str, dpi: int = 110) -> str:
    """A figure as an <img> that scrolls inside its own box on a phone, and the figure
    closed.
    """
    import matplotlib.pyplot as plt

    buffer, wide = io.BytesIO(), " wide" if figure.get_figwidth() > 6 else ""
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    plt.close(figure)
    image = (
        f'<img class="figure{wide}" src="{encoded(buffer.getvalue())}"'
        f' alt="{escape(alt)}">'
    )
    return f'<div class="scroll">{image}</div>'


def message(text: str, kind: str = "error") -> str:
    """A sentence in a box: "error" is read out by screen readers at once, "note" is
    not.
    """
    return (
        f'<p class="box {kind}"'
        f' role="{"alert" if kind == "error" else "note"}">{escape(text)}</p>'
    )


def table(rows: pd.DataFrame, kind: str = "") -> str:
    """A table that scrolls inside its own box; every cell is text, never markup."""
    return (
        '<div class="scroll'
        f' {kind}">{rows.to_html(index=False, border=0, escape=True)}</div>'
    )


def banner(service: Service) -> str:
    """Title, and what must stay in sight whatever is shown."""
    dataset, model = service.course.dataset, service.model
    boxes = message(MEDICAL, "medical") if dataset.startswith("pneumonia") else ""
    if service.course.sample or model.metadata.get("sample"):
        boxes += message(f"SAMPLE DATA: {sample_data.DISCLAIMER}", "sample")
    return (
        f'<header class="banner"><h1>{escape(TITLES[dataset])}</h1>{boxes}</header><p'
        f' class="quiet">Model {model.hash} in service, {model.size} x {model.size}'
        f" pixels, {escape(model.provider)}.</p>"
    )


def answer_page(service: Service, answer: Answer, label: str | None = None) -> str:
    """Everything about one picture; `label` is the true class, where it is known."""
    parts = [
        _verdict(service, answer, label),
        _pictures(service, answer),
        _unlike(service, answer),
        (
            f'<p class="quiet">This request: decoding {answer.decode_ms:.1f} ms, model'
            f" {answer.model_ms:.1f} ms on {escape(service.model.provider)}. The rest"
            " of the page is not part of serving.</p>"
        ),
    ]
    return "".join([*(message(note, "note") for note in answer.notes), *parts])


def _verdict(service: Service, answer: Answer, label: str | None) -> str:
    """Both decisions: the most probable class, and the one at the cost threshold."""
    classes, probabilities, threshold = (
        service.model.classes,
        answer.probabilities,
        service.model.threshold,
    )
    best, positive = (
        int(probabilities.argmax()),
        float(utils.positive_probability(probabilities[None])[0]),
    )
    alarm = positive >= threshold
    name = classes[1] if len(classes) == 2 else "anything but " + classes[0]
    cost = (
        f" A missed one costs {service.cost_missed:g} false alarms."
        if service.cost_missed
        else ""
    )
    differ = " The two decisions differ." if alarm != (best > 0) else ""
    bars = "".join(
        f'<div class="bar"><span>{escape(c)}</span><meter min="0" max="1"'
        f' value="{p:.4f}"></meter><b>{p:.1%}</b></div>'
        for c, p in zip(classes, probabilities, strict=True)
    )
    truth = (
        f'<p class="quiet">Label of this picture: {escape(label)}.</p>' if label else ""
    )
    return (
        f"<section><h2>Most probable: {escape(classes[best])},"
        f" {probabilities[best]:.1%}</h2>{bars}<p><b>At the cost threshold"
        f" {threshold:.2f}: treat as {escape(name if alarm else classes[0])}</b>"
        f" (P({escape(name)}) = {positive:.3f}).{cost}{differ} Probabilities are"
        f" calibrated.</p>{truth}</section>"
    )


def _pictures(service: Service, answer: Answer) -> str:
    """The picture as the network gets it, and where it looked."""
    best = service.model.classes[int(answer.probabilities.argmax())]
    if answer.heat is None:
        shown = (
            f'<img class="pixels" src="{picture(answer.pixels)}" alt="The picture as'
            ' the network gets it">'
        )
        return (
            "<section><h2>What the network"
            f" gets</h2>{shown}{_missing(service, 'heat map')}</section>"
        )
    # NaN is drawn as nothing: the bare picture
    maps = np.stack([np.full_like(answer.heat, np.nan), answer.heat])
    figure = utils.plot_heat(
        np.stack([answer.pixels] * 2),
        maps,
        ["what the network gets", f"Grad-CAM, {best}"],
        "",
        2,
    )
    return (
        "<section><h2>Where the network"
        f" looked</h2>{drawing(figure, f'Picture and heat map for {best}', 200)}<p"
        ' class="quiet">Light: what speaks for this class; the line encloses what is'
        " above half of the maximum. It shows where, not why.</p></section>"
    )


def _unlike(service: Service, answer: Answer) -> str:
    """Is the picture unlike what the model was checked on, in both views?"""
    head = "<h2>Is this picture unlike the training data?</h2>"
    if not answer.results:
        return f"<section>{head}{_missing(service, 'reference')}</section>"
    found = [
        unlike.VIEWS[view] for view, result in answer.results.items() if result.drift
    ]
    says = (
        f"Yes, in {' and in '.join(found)}: do not trust the answer."
        if found
        else "No sign of it."
    )
    first = next(iter(answer.results.values()))
    furthest = "{}, {:+.1f} standard deviations".format(*answer.furthest)
    if first.threshold == np.inf:
        says = (
            f"Cannot be told: with {first.reference} pictures in the reference no"
            f" p-value reaches {first.alpha:g}."
        )
    rows = [
        {
            "view": unlike.VIEWS[view],
            "distance": f"{result.statistic:.3g}",
            "limit": f"{result.threshold:.3g}",
            "p-value": f"{result.p_value:.3g}",
            "decision": _decision(result),
        }
        for view, result in answer.results.items()
    ]
    return (
        f'<section>{head}<p><b class="{"bad" if found else "good"}">{says}</b></p>'
        f"{table(pd.DataFrame(rows))}"
        f'<p class="quiet">p: share of {first.reference} pictures that training has not'
        " seen, this one counted, that lie as far out; unlike at p &le;"
        f" {first.alpha:g} in either view. Furthest number: {furthest}."
        f" {unlike.BLIND}</p></section>"
    )


def _decision(result: utils.DriftResult) -> str:
    return (
        "unlike"
        if result.drift
        else "cannot tell"
        if result.threshold == np.inf
        else "no sign"
    )


def _missing(service: Service, part: str) -> str:
    """Why a part is not shown; and nothing where it is there."""
    return (
        message(f"No {part}: {service.missing[part]}", "note")
        if part in service.missing
        else ""
    )


def examples(pixels: np.ndarray) -> list[dict]:
    """Pictures to choose from, uint8 (n, C, S, S), as the template of the page wants
    them.
    """
    return [
        {"number": i, "src": picture(image), "alt": f"Example {i + 1}"}
        for i, image in enumerate(pixels)
    ]


def window_page(
    look: Look, classes, severity: int, policy: utils.DriftPolicy, shown: int = 8
) -> str:
    """The first pictures of a window, before and after, and what was decided about the
    whole.
    """
    n, decision = len(look.labels), look.decision
    cards = "".join(_card(look, i, classes) for i in range(min(shown, n)))
    adjusted, correction = adjusted_p(decision, policy), policy.correction.title()
    rows = [
        {
            "detector": name,
            "statistic": f"{result.statistic:.3g}",
            f"p before {correction}": f"{result.p_value:.2g}",
            f"p after {correction}": f"{adjusted[name]:.2g}",
            "decision": (
                "drift" if adjusted[name] <= policy.window_alpha else "no drift"
            ),
        }
        for name, result in decision.results.items()
    ]
    numbers = (
        f"Severity {severity}: mean confidence <b>{look.confidence:.3f}</b>, accuracy"
        f" estimated without labels <b>{decision.estimated_accuracy:.3f}</b>, with"
        f" labels <b>{look.right / n:.3f}</b> ({look.right} of {n}). The policy, which"
        f" reads p after {correction}, says <b>{decision.level}</b>:"
        f" {escape('; '.join(decision.reasons))}."
    )
    limit = (
        f"Before: each detector on its own. After {correction}, for {len(rows)}"
        f" detectors at once: drift at p &le; {policy.window_alpha:g}, as in the figure"
        " above."
    )
    head = (
        f"The first {min(shown, n)} of {n} pictures: before, and after with the answer"
    )
    return (
        f'<p aria-live="polite">{numbers}</p>{table(pd.DataFrame(rows))}<p'
        f' class="quiet">{limit}</p><h2>{head}</h2><div class="cards">{cards}</div>'
    )


def _card(look: Look, i: int, classes) -> str:
    answer, p = int(look.probabilities[i].argmax()), float(look.probabilities[i].max())
    right = answer == look.labels[i]
    return (
        f'<figure><img class="pixels" src="{picture(look.before[i])}" alt="before"><img'
        f' class="pixels" src="{picture(look.after[i])}" alt="after"><figcaption'
        f' class="{"good" if right else "bad"}">{"✓" if right else "✗"}'
        f" {escape(classes[answer])} {p:.0%}</figcaption></figure>"
    )


def alerts_table(alerts: pd.DataFrame) -> str:
    """The alerts of a run, as they stand in alerts.csv."""
    if alerts.empty:
        return message("No alert rang in this run.", "note")
    numbers = {
        name: alerts[name].map("{:.3g}".format) for name in ("value", "threshold")
    }
    shown = alerts.assign(
        at=alerts["timestamp"].dt.strftime("%Y-%m-%d %H:%M"), **numbers
    )
    return table(
        shown[
            [
                "at",
                "severity",
                "rule",
                "event",
                "metric",
                "value",
                "threshold",
                "runbook",
            ]
        ],
        "wide",
    )


def log_tail(log: pd.DataFrame, classes, lines: int = 12) -> str:
    """The last lines of a run, newest first."""
    tail = log.tail(lines)[::-1]
    names = {number: name for number, name in enumerate(classes)}
    shown = tail.assign(
        at=tail["timestamp"].dt.strftime("%H:%M:%S"),
        answer=tail["pred_class"].map(names).fillna(""),
        confidence=tail["confidence"].map("{:.3f}".format),
        latency_ms=tail["latency_ms"].map("{:.2f}".format),
    )
    return table(
        shown[["at", "model", "image", "answer", "confidence", "latency_ms", "status"]]
    )
