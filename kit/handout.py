"""What the course's first handout called otherwise: understood, or one sentence that
names ours. docs/from-the-handout.md is the table.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps

import torch
from torch import nn

from kit.files import CourseError

KEYWORDS = {
    "threshold": "give alpha, the share of false alarms that you accept, such as 0.05:"
    " what a distance means depends on its kernel and the number of images",
    "num_samples": "leave it out: one image is one observation, and all of the loader"
    " count",
    "layer_name": "leave it out: the embedding is what the last nn.Linear reads",
    "filename": "the path comes first, such as save_checkpoint('best.pth', model)",
    "criterion": "leave it out: the gate compares answers, image by image",
}
NAMES = {
    "train_epoch_amp": "train_epoch(model, loader, criterion, optimizer, device,"
    " scaler)",
    "validate_amp": "validate(model, loader, criterion, device)",
    "print_training_summary": "fit(…).history, a table with a row an epoch",
    "detect_drift": "detect_pixel_drift or detect_embedding_drift",
    "plot_training_history": "figures.history(run.history, title), from kit",
}


def from_handout(function: Callable) -> Callable:
    """Say in one sentence what a function does not take, or takes in another order."""
    known = inspect.signature(function).parameters
    free = any(given.kind is given.VAR_KEYWORD for given in known.values())
    asked = {"filename"} if free else KEYWORDS.keys()  # a checkpoint has a threshold

    @wraps(function)
    def called(*args, **options):
        for name in (options.keys() & asked) - known.keys():
            refuse(f"{function.__name__} takes no {name}=", KEYWORDS[name])
        for name, value in [*zip(known, args, strict=False), *options.items()]:
            if name == "path" and isinstance(value, nn.Module):
                refuse(f"{function.__name__} begins with a path", KEYWORDS["filename"])
            if name == "device" and isinstance(value, torch.amp.GradScaler):
                refuse("The device comes before the scaler", "swap the two")
            if name == "device" and isinstance(value, nn.Module):
                refuse(
                    "A criterion stands where the device does", KEYWORDS["criterion"]
                )
            if name == "alpha" and value > 0.2:
                refuse(
                    f"alpha={value:g} is an alarm in {value:.0%} of all undrifted"
                    " windows",
                    KEYWORDS["threshold"],
                )
        return function(*args, **options)

    return called


def refuse(what: str, advice: str) -> None:
    raise CourseError(f"{what}, as the handout had it: {advice}.")


def missing_name(name: str) -> AttributeError:
    """The error of a name that utils does not have."""
    if name in NAMES:
        return AttributeError(
            f"utils.{name} is the handout's; here it is utils.{NAMES[name]}."
        )
    return AttributeError(f"module 'utils' has no attribute {name!r}")
