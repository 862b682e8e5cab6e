"""What drift detectors are given, what they give back, and what stands around them:
observations and their reference, the result, checks, the log of decisions.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kit.files import CourseError, atomic, check_choice, load_arrays, read_json
from kit.fingerprint import fingerprint
from kit.home import Course
from kit.log import AppendOnlyCsv


@dataclass(frozen=True)
class Observation:
    """What detectors may see of N images. No labels: in production there are none.

    statistics : DataFrame (N, F) of `drift_statistics`; probabilities : float (N, K),
    calibrated; embedding : float (N, D), the last layer but one; key : of which images
    and which model, the same on every machine.
    """

    statistics: pd.DataFrame
    probabilities: np.ndarray
    embedding: np.ndarray
    key: str = field(default="", kw_only=True)

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def answers(self) -> np.ndarray:
        """The most probable class of each image, int64 (N,)."""
        return self.probabilities.argmax(axis=1)

    @property
    def confidence(self) -> np.ndarray:
        """How sure the model is of its answer, float64 (N,)."""
        return self.probabilities.max(axis=1).astype(np.float64)

    def take(self, rows) -> Observation:
        """The images `rows`, in that order."""
        return Observation(
            self.statistics.iloc[rows],
            self.probabilities[rows],
            self.embedding[rows],
            key=fingerprint(self.key, rows),
        )


def join(parts: list[Observation]) -> Observation:
    """Several observations as one."""
    return Observation(
        pd.concat([part.statistics for part in parts], ignore_index=True),
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate([part.embedding for part in parts]),
        key=fingerprint([part.key for part in parts]),
    )


@dataclass(frozen=True)
class Reference(Observation):
    """What normal looks like: images that the training never saw (pool val).

    labels : int64 (N,), for estimates of accuracy; model, classes : whose answers these
    are.
    """

    labels: np.ndarray
    model: str
    classes: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        return float((self.answers == self.labels).mean())

    def save(self, path: str | Path) -> Path:
        """Write one .npz file, in one step."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            statistics=self.statistics.to_numpy(),
            names=list(self.statistics.columns),
            probabilities=self.probabilities,
            embedding=self.embedding,
            labels=self.labels,
            model=self.model,
            classes=list(self.classes),
            key=self.key,
        )
        with atomic(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
        return Path(path)


def load_reference(path: str | Path, model) -> Reference:
    """Read what `Reference.save` wrote, for the model that it describes: embeddings of
    another model mean something else.
    """
    advice = "run notebooks/theme6_drift_detection.ipynb"
    if not Path(path).exists():
        raise CourseError(f"{path} is missing: {advice} first.")
    try:
        stored = load_arrays(Path(path))
        reference = Reference(
            pd.DataFrame(stored["statistics"], columns=stored["names"].tolist()),
            stored["probabilities"],
            stored["embedding"],
            stored["labels"],
            str(stored["model"]),
            tuple(stored["classes"].tolist()),
            key=str(stored.get("key", "")),
        )
    except (ValueError, KeyError) as error:
        raise CourseError(f"{path} is damaged ({error}): {advice} again.") from error
    if reference.classes != tuple(model.classes):
        raise CourseError(
            f"{path} knows the classes {list(reference.classes)}, the model"
            f" {list(model.classes)}: use the HOME of that dataset, or {advice} again."
        )
    if reference.model != model.hash:
        raise CourseError(
            f"{path} describes model {reference.model}, asked for {model.hash}:"
            f" embeddings of two models cannot be compared. For the new model, {advice}"
            " again."
        )
    return reference


@dataclass(frozen=True)
class DriftResult:
    """The answer of every detector. It is true where there is drift, and unpacks as
    the handout's pair: `drift, p_value = result`.

    `p_value` is the chance of such a statistic without drift, corrected for all
    features; `drift` says that it is alpha at most. With permutations that is the same
    as a statistic above the threshold; for KS the threshold is that of large samples.
    `window` and `reference` are numbers of images. `features`, where a detector looks
    at each alone, has statistic, p_value (corrected) and drift by name.
    """

    detector: str
    statistic: float
    p_value: float
    threshold: float
    alpha: float
    window: int
    reference: int
    features: pd.DataFrame | None = None

    @property
    def drift(self) -> bool:
        return bool(self.p_value <= self.alpha)

    def __bool__(self) -> bool:
        return self.drift

    def __iter__(self):
        return iter((self.drift, self.p_value))

    def __str__(self) -> str:
        return (
            f"{self.detector}: {'drift' if self.drift else 'no drift'}"
            f" ({self.statistic:.3g} against {self.threshold:.3g}, p ="
            f" {self.p_value:.3g}, {self.window} images)"
        )


@dataclass(frozen=True)
class Decision:
    """What the policy says after one window: `level` is none, watch or retrain;
    `reasons` say why.
    """

    number: int
    level: str
    flagged: bool
    streak: int
    p_value: float
    estimated_accuracy: float
    results: dict[str, DriftResult]
    reasons: list[str]


DRIFT_COLUMNS = {
    "timestamp": "time",
    "run_id": "str",
    "model": "str",
    "window": "float",
    "images": "float",
    "level": "str",
    "flagged": "str",
    "streak": "float",
    "p_value": "float",
    "estimated_accuracy": "float",
    "floor": "float",
    "reasons": "str",
}


class DecisionLog:
    """One line a decision of a DriftMonitor, appended, never shortened."""

    def __init__(self, path, monitor):
        self.file = AppendOnlyCsv(path, "theme6_drift_detection", DRIFT_COLUMNS)
        self.same = {"run_id": monitor.run_id, "model": monitor.reference.model}
        self.same["floor"] = monitor.policy.accuracy_floor

    def append(self, decision: Decision, images: int) -> None:
        line = vars(decision) | self.same
        line |= {"timestamp": datetime.now(UTC), "images": images}
        line |= {"window": decision.number, "reasons": "; ".join(decision.reasons)}
        self.file.append([line])


def explain(policy, p_values: dict, streak: int, estimate: float, images: int) -> list:
    """The reasons of a decision, in sentences: is the window flagged, is the drift
    confirmed, does it cost accuracy or last?
    """
    limit = policy.window_alpha
    found = [f"{name} p = {p:.2g}" for name, p in p_values.items() if p <= limit]
    if not found:
        least = min(p_values, key=p_values.get)
        smallest = f"smallest: {least}, {p_values[least]:.2g}"
        return [f"no p-value down to {limit:.3g} ({smallest})"]
    reasons = [f"{', '.join(found)}, at most {limit:.3g}"]
    if streak < policy.consecutive:
        needed = f"the {policy.consecutive} in a row that confirm"
        return [*reasons, f"flagged window {streak} of {needed}"]
    low = estimate < policy.accuracy_floor
    reasons += [
        f"{streak} flagged windows in a row, {policy.consecutive} confirm",
        f"accuracy estimated without labels ({policy.estimate}, {images} images)"
        f" {estimate:.3f}, {'below' if low else 'not below'} the floor of"
        f" {policy.accuracy_floor:.3f}",
    ]
    if streak >= policy.lasting and not low:
        reasons.append(
            f"but it has lasted {streak} windows ({policy.lasting} count), and"
            " estimates can be fooled"
        )
    return reasons


def read_drift_log(path: str | Path, run_id: str | None = None) -> pd.DataFrame:
    """The looks of a DriftMonitor, one row each, columns DRIFT_COLUMNS."""
    return AppendOnlyCsv(path, "theme6_drift_detection", DRIFT_COLUMNS).read(run_id)


def check_features(values: np.ndarray, what: str) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        raise CourseError(
            f"The {what} has NaN or infinite values in {int(bad.any(axis=1).sum())} of"
            f" {len(values)} images: look at these images, or at the weights of the"
            " model."
        )


LARGEST = 1e150  # of a feature: its square is still a number


def check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise CourseError(
            f"alpha={alpha} is no error rate: choose one between 0 and 1, such as 0.05."
        )


def check_pair(reference, window, alpha=0.05, what="This test", least=2):
    """Two sets of rows as float64 (n, D) and (m, D), fit to be compared: tables by the
    names of their columns, whatever their order.
    """
    check_alpha(alpha)
    if isinstance(reference, pd.DataFrame) and isinstance(window, pd.DataFrame):
        window = _in_order(window, [*reference.columns])
    pair = []
    for rows, name in ((reference, "reference"), (window, "window")):
        rows = _as_numbers(rows, name)
        check_features(rows, name)
        if np.abs(rows).max(initial=0) > LARGEST:
            raise CourseError(
                f"The {name} has values beyond {LARGEST:g}, whose squares no number"
                " holds: divide by a scale of your data."
            )
        if len(rows) < least:
            raise CourseError(
                f"{what} needs at least {least} images, the {name} has {len(rows)}:"
                " wait for more traffic or make the window larger."
            )
        pair.append(rows)
    if pair[0].shape[1] != pair[1].shape[1]:
        raise CourseError(
            f"The reference has {pair[0].shape[1]} features, the window"
            f" {pair[1].shape[1]}: observe both with the same model and the same kind"
            " of image."
        )
    return pair


def _in_order(window: pd.DataFrame, columns: list) -> pd.DataFrame:
    """A window with its columns as the reference has them."""
    own = [*window.columns]
    if len(set(own)) < len(own) or set(own) != set(columns):
        lacks = [repr(name) for name in columns if name not in own]
        more = [repr(name) for name in own if name not in columns]
        raise CourseError(
            f"Reference and window have other columns (the window lacks"
            f" {', '.join(lacks) or 'none'}, and has {', '.join(more) or 'none'}"
            " beside): give both the same, each once."
        )
    return window[columns]


def _as_numbers(rows, name: str) -> np.ndarray:
    """Rows of somebody's as float64 (n, D), D >= 1."""
    rows = rows.detach().cpu() if isinstance(rows, torch.Tensor) else rows
    if isinstance(rows, pd.DataFrame):
        for column, kind in rows.dtypes.items():
            if not pd.api.types.is_numeric_dtype(kind):
                raise CourseError(
                    f"Column {column!r} of the {name} holds {kind}, no numbers: code it"
                    " as numbers first, or leave it out."
                )
        rows = rows.to_numpy(np.float64, na_value=np.nan)
    try:
        rows = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CourseError(f"The {name} holds no numbers: {error}.") from error
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or 0 in rows.shape[1:]:
        raise CourseError(
            f"The {name} has the shape {rows.shape}, it must be (images, features): of"
            " images take utils.drift_statistics(pixels) or an embedding."
        )
    return rows


def check_policy(policy, estimates, detectors) -> None:
    check_alpha(policy.alpha)
    if not 1 <= policy.consecutive <= min(policy.lasting, policy.horizon):
        raise CourseError(
            f"consecutive={policy.consecutive} must lie between 1 and the smaller of"
            f" lasting={policy.lasting} and horizon={policy.horizon}."
        )
    check_choice("estimate", policy.estimate, estimates)
    if not policy.detectors or not set(policy.detectors) <= set(detectors):
        raise CourseError(
            f"detectors={policy.detectors} must be names of DETECTORS:"
            f" {', '.join(detectors)}."
        )


def check_window(window: Observation, size: int) -> None:
    if len(window) < size:
        raise CourseError(
            f"The window has {len(window)} images, the policy asks for {size}: wait for"
            " more traffic, or make the policy's window smaller and lose power."
        )
    check_features(window.probabilities, "window (its answers)")


def check_detector(detectors: dict, name: str) -> None:
    """Is there a detector of this name, and does its entry say what it looks at?"""
    check_choice("detector", name, detectors)
    if not isinstance(detectors[name], tuple):
        raise CourseError(
            f"DETECTORS[{name!r}] must say what it looks at: statistics,"
            ' probabilities, confidence or embedding, as in ("embedding", my_p_value).'
        )


def as_result(answer, detector: str, alpha: float, m: int, n: int) -> DriftResult:
    """What a detector answered about a window of m images and a reference of n; a
    p-value alone will do.
    """
    if isinstance(answer, DriftResult):
        return replace(answer, detector=detector)
    if not isinstance(answer, (int, float, np.number)) or not 0 <= answer <= 1:
        raise CourseError(
            f"Detector {detector!r} must return a p-value, a number of 0 to 1; it"
            f" returned {answer!r}."
        )
    return DriftResult(detector, math.nan, float(answer), math.nan, alpha, m, n)


def check_reach(n, m, alpha, what="This test", permutations=None) -> None:
    """No test says less than two in all ways to choose the window (a mirrored choice
    looks alike), a permutation test no less than one in those that it tries.
    """
    if permutations is not None and permutations + 1 < 1 / alpha - 1e-9:
        raise CourseError(
            f"{permutations} permutations give no p-value below"
            f" {1 / (permutations + 1):.2g}, so alpha={alpha:g} can never be reached:"
            f" take at least {math.ceil(1 / alpha - 1e-9) - 1}."
        )
    if math.comb(n + m, m) < (1 - 1e-9) * 2 / alpha:
        raise CourseError(
            f"{what} at alpha={alpha:.2g} can say nothing of a window of {m} images"
            f" beside {n} of the reference: wait for more traffic or make the window"
            " larger."
        )


def grey_levels(*loaders) -> list[np.ndarray]:
    """uint8 (N, C, S, S) of each loader. Images that somebody else has normalised are
    brought to 0..255 by one scale for all.
    """
    found = []
    for loader in loaders:
        images = torch.cat([images.cpu() for images, _ in loader])
        if images.dtype == torch.uint8:
            images = images / 255
        elif hasattr(loader, "mean"):  # ours: undo the normalisation
            images = images * loader.std.cpu() + loader.mean.cpu()
        found.append(images)
    low = min(float(images.min()) for images in found)
    high = max(float(images.max()) for images in found)
    if low < -0.01 or high > 1.01:
        found = [(images - low) / (high - low) for images in found]
    return [(images * 255).round().clamp(0, 255).byte().numpy() for images in found]


def watched_path(course: Course) -> Path:
    """The file of the network that theme 4 exported, named by its hash."""
    results = read_json(course.exports / "results.json", precious=True)
    models = results.get("theme4", {}).get("models", {})
    if "fp32" not in models:
        raise CourseError(
            "exports/results.json names no exported network: run"
            " notebooks/theme4_onnx_deployment.ipynb first."
        )
    return course.exports / "models" / f"{models['fp32']}.onnx"


def read_drift_report(course: Course) -> dict:
    """exports/drift_report.json, which must be about the network of theme 4."""
    path, watched = course.exports / "drift_report.json", watched_path(course).stem
    report, advice = read_json(path), "run notebooks/theme6_drift_detection.ipynb"
    if not {"model", "decision", "scenario", "policy", "streams"} <= report.keys():
        raise CourseError(f"{path} is missing or damaged: {advice} first.")
    if report["model"] != watched:
        raise CourseError(
            f"{path} is about model {report['model']}, theme 4 has exported {watched}"
            f" since: {advice} again."
        )
    return report
