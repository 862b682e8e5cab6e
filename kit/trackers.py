"""Where the curves of a training go: TensorBoard, and from there Weights & Biases."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from types import ModuleType

from kit.files import (
    CourseError,
    check_choice,
    clear_disk_errors,
    copy_back,
    copy_to_home,
)
from kit.home import Course, on_colab
from kit.ranks import rank_and_world

TRACKERS = ("tensorboard", "wandb", "none")
CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")
# Importing wandb calls its maker, even for a run that stays here, unless told.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


class Curves:
    """The curves of one training in runs/tensorboard/<name>.

    A tracker that cannot begin is an error before the first step. One that breaks later
    is told in a sentence, and the training goes on without it. What a killed process
    had written is replaced by the history, which lost nothing.
    """

    def __init__(self, tracker: str, course: Course, name: str, settings: dict):
        check_choice("tracker", tracker, TRACKERS)
        self.course, self.settings, self.name = course, settings, name[:-13]
        self.folder = course.local / "runs" / "tensorboard" / name
        self.run, self.writer = None, None
        if tracker == "none" or rank_and_world()[0] > 0:
            return
        if tracker == "wandb":
            self.run = start_wandb(course, name, settings)
        # else TensorFlow, where it is installed (Colab), is loaded: 0.5 GB and seconds
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
        from torch.utils.tensorboard import SummaryWriter  # after wandb has hooked it

        copy_back(course, self.folder)
        with clear_disk_errors(self.folder):
            self.writer = SummaryWriter(self.folder, purge_step=0)

    def add(self, row: dict) -> None:
        """A point on each curve, and a safe point."""
        for tag in CURVES:
            self._try("add_scalar", tag, row[tag], row["epoch"])
        self._try("flush")
        if self.writer:
            copy_to_home(self.course, self.folder)

    def describe(self, loader, best_loss: float) -> None:
        """Some images as a step sees them, the recipe, and what it led to."""
        images = next(iter(loader))[0][:16]
        images = (images * loader.std + loader.mean).clamp(0, 1)
        plain = (int, float, str, bool)
        recipe = {n: v for n, v in self.settings.items() if isinstance(v, plain)}
        self._try("add_images", "training batch", images)
        self._try("add_hparams", recipe, {"best_val_loss": best_loss}, run_name=".")

    def close(self) -> None:
        self._try("close")
        if self.run:
            self.run.finish()
        if self.writer:
            copy_to_home(self.course, self.folder)

    def _try(self, method: str, *values, **options) -> None:
        if self.writer is None:
            return
        try:
            getattr(self.writer, method)(*values, **options)
        except Exception as error:  # of somebody else's library: costs no training
            self.writer = None
            print(
                f"\nThe curves end here ({type(error).__name__}: {error}): the training"
                " goes on without them, run.history holds every epoch."
            )


def start_wandb(course: Course, name: str, settings: dict):
    """A run of Weights & Biases that copies what TensorBoard gets.

    It stays on this machine, unless WANDB_MODE says otherwise; `wandb sync` uploads it
    any time later.
    """
    try:
        from wandb import init
    except ImportError as error:
        raise CourseError(
            "wandb is not installed: pip install -r requirements-bonus.txt, or"
            " tracker='tensorboard'."
        ) from error
    try:
        return init(
            mode=os.environ.get("WANDB_MODE", "offline"),
            dir=course.local / "runs",
            id=re.sub(r"[/\\#?%:]", "_", name),
            name=name[:-13],
            project=os.environ.get("WANDB_PROJECT", f"course-{course.dataset}"),
            resume="allow",
            config=settings,
            sync_tensorboard=True,
            save_code=False,
            reinit="finish_previous",
        )
    except Exception as error:  # a dozen kinds, from a wrong mode to no server
        raise CourseError(
            f"wandb could not begin ({error}): restart the session without WANDB_MODE,"
            " so that its runs stay on this machine, or take tracker='tensorboard'."
        ) from error


def show_tensorboard(folder) -> None:
    """Open TensorBoard below the cell on Colab; elsewhere print the command."""
    words = ["--logdir", str(folder)]  # of Drive: "Colab Notebooks"
    if on_colab():
        from tensorboard import notebook

        notebook.start(shlex.join(words))
    else:
        line = subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
        print(f"Start it with: tensorboard {line}")
