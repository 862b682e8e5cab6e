"""Work that is done once: finished it loads, interrupted it goes on, new it runs."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from numbers import Integral
from pathlib import Path

import torch
from torch import nn

from kit import ranks
from kit.files import (
    CourseError,
    alone,
    atomic,
    copy_back,
    copy_to_home,
    now,
    read_json,
    write_json,
)
from kit.fingerprint import fingerprint
from kit.home import PREREQUISITES, Course
from kit.machine import generator_states, hardware, set_generator_states


def load_or_run(
    course: Course, name: str, function, *arguments, depends=(), again: bool = False
):
    """Run `function(*arguments)` once; later calls load its result at once and say when
    and where it was measured.

    Parameters
    ----------
    function : callable
        Returns values that JSON can hold. What the result depends on is found by
        itself: the code that it reaches, its arguments, the seed (see `fingerprint`).
    depends : sequence
        What no code says: the hardware of a measurement, versions of libraries.
    again : bool
        Run it even if a result is stored, and replace that: a benchmark on another day.
    """
    key = fingerprint(function, arguments, depends, course.seed)
    path = course.runs / f"{name}-{key}" / "result.json"
    with alone(course, path.parent.name):
        stored = read_json(path)
        if {"date", "hardware", "result"} <= stored.keys() and not again:
            print(f"{name}: loaded, measured {stored['date']} on {stored['hardware']}")
            return stored["result"]
        result = function(*arguments)
        write_json(path, {"date": now(), "hardware": hardware(), "result": result})
        return json.loads(path.read_text())["result"]


def _whole(value) -> bool:
    return isinstance(value, Integral) and value >= 1


# What the numbers of a recipe may be, in words and as a test.
LIMITS = {
    "epochs": ("a whole number, 1 or more", _whole),
    "batch_size": ("a whole number, 1 or more", _whole),
    "lr": ("a number above 0", lambda value: 0 < value < math.inf),
    "weight_decay": ("a number, 0 or more", lambda value: 0 <= value < math.inf),
    "label_smoothing": ("a number of 0 to 1", lambda value: 0 <= value <= 1),
    "clip": ("a number above 0, or None", lambda value: value is None or value > 0),
    "average": ("a number, 0 or more", lambda value: 0 <= value < math.inf),
    "patience": ("a whole number, or None", lambda v: v is None or _whole(v)),
}


def check_recipe(recipe) -> None:
    """Refuse numbers that no training could have, before anything is stored."""
    for name, (words, fits) in LIMITS.items():
        value = getattr(recipe, name)
        with suppress(TypeError):  # text, a list: no number
            if fits(value):
                continue
        raise CourseError(f"A recipe with {name}={value!r} cannot train: give {words}.")


# --------------------------------------------------------------------------------------
# A training: one file holds all that its next step depends on
# --------------------------------------------------------------------------------------


class TrainingStopped(CourseError):
    """The loss is no number any more; the last good state is kept."""


def stopped(loss: float, rate: float) -> TrainingStopped:
    """The error of a loss, or else of gradients, that became NaN or infinite at this
    learning rate.
    """
    what = "the gradients became infinite in float16, step after step,"
    if not math.isfinite(loss):
        what = f"the loss became {loss}"
    return TrainingStopped(
        f"{what} at a learning rate near {rate:.2g}: lower lr (try {rate / 10:.1g}) or"
        " look for broken images"
    )


class Session:
    """The state of one training, saved as it goes on and found again after a kill.

    Parameters
    ----------
    folder : Path
        runs/<name>-<fingerprint> in the home; the running state lies on the local disk
        and is copied there after each epoch.
    parts : dict
        Whatever has a `state_dict`: model, optimizer, scheduler, scaler, average.
    save_every : float
        Seconds between two saved steps.
    """

    def __init__(self, course: Course, folder: Path, parts: dict, save_every: float):
        self.course, self.folder, self.parts = course, folder, parts
        self.path = course.local / "runs" / folder.name / "running.pt"
        self.save_every, self.saved = save_every, time.perf_counter()
        self.epoch = self.step = 0  # finished epochs; steps of the epoch after them
        self.steps = 0  # of all epochs
        self.totals = torch.zeros(3, dtype=torch.float64, device=course.device)
        self.history: list[dict] = []
        self.best: dict = {}
        self.seconds = 0.0
        self.resume()
        self.began = time.perf_counter() - self.seconds

    def epochs(self, last: int, patience: int | None = None):
        """The epochs that are left to do, from 0, until the validation loss has not
        improved for `patience` epochs.
        """
        while self.epoch < last and self._stalled() < (patience or math.inf):
            yield self.epoch

    def _stalled(self) -> int:
        """Epochs since the lowest validation loss."""
        losses = [row["val_loss"] for row in self.history]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def _spent(self) -> float:
        return time.perf_counter() - self.began

    @property
    def best_loss(self) -> float:
        return min((row["val_loss"] for row in self.history), default=math.inf)

    def after_step(self, totals: torch.Tensor) -> None:
        """Count a step; every now and then, save."""
        self.step, self.steps, self.totals = self.step + 1, self.steps + 1, totals
        self.bar.update()
        if time.perf_counter() - self.saved > self.save_every:
            self.save()

    def close_epoch(self, row: dict, weights: dict) -> None:
        """Note an epoch, keep the weights of the lowest validation loss, and save."""
        self.seconds = self._spent()
        if not row["val_loss"] >= self.best_loss:
            self.best = {name: value.clone() for name, value in weights.items()}
        self.history.append(row | {"seconds": self.seconds})
        self.epoch, self.step = self.epoch + 1, 0
        self.totals = torch.zeros_like(self.totals)
        self.save()
        if ranks.rank_and_world()[0] == 0:
            copy_to_home(self.course, self.path)

    @contextmanager
    def progress(self, name: str, total: int, shown: bool):
        """A bar of all steps, those of earlier processes among them."""
        from tqdm import tqdm

        silent = not shown or ranks.rank_and_world()[0] > 0
        if self.steps == 0 and not silent:
            tell_of_earlier(self.folder)
        options = {"desc": name, "unit": "step", "file": sys.stdout, "disable": silent}
        with tqdm(total=total, initial=self.steps, **options) as self.bar:
            yield

    @contextmanager
    def clear_errors(self, batch_size: int):
        """Say in a sentence why a training cannot go on."""
        try:
            yield
        except TrainingStopped as error:
            kept = f" What was good is kept in {self.path}." * self.path.exists()
            message = f"Epoch {self.epoch + 1}: {error}.{kept}"
            raise TrainingStopped(message) from None
        except torch.OutOfMemoryError as error:
            raise CourseError(
                f"The GPU's memory is too small for batches of {batch_size} images:"
                " lower batch_size in the recipe, or IMAGE_SIZE."
            ) from error

    def save(self) -> None:
        """Write all that the next step depends on; never weights that are no number."""
        self.saved = time.perf_counter()
        model = self.parts["model"]
        broken = any(not weight.isfinite().all() for weight in model.parameters())
        if ranks.rank_and_world()[0] > 0 or broken:
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {
            "progress": (self.epoch, self.step, self.steps, self._spent()),
            "totals": self.totals,
            "history": self.history,
            "best": self.best,
            "generators": generator_states(self.course.device),
        }
        save_state(self.path, state)

    def resume(self) -> None:
        """Go on where a killed run stood; a damaged file is set aside."""
        for _ in range(2):  # a damaged file of this disk may have a good copy at home
            copy_back(self.course, self.path)
            if not self.path.exists():
                return
            # torch.load raises a dozen kinds of error on a damaged file
            with suppress(Exception):
                self._take(torch.load(self.path, self.course.device, weights_only=True))
                print(f"resumed in epoch {self.epoch + 1}, after step {self.steps}")
                return
            set_aside(self.path)

    def _take(self, state: dict) -> None:
        progress, totals = state["progress"], state["totals"]
        history, best, generators = (
            state[n] for n in ("history", "best", "generators")
        )
        for name, part in self.parts.items():
            if state[name]:  # a scaler that was off has no state
                part.load_state_dict(state[name])
        self.epoch, self.step, self.steps, self.seconds = progress
        self.totals, self.history, self.best = totals, history, best
        if ranks.rank_and_world()[0] == 0:
            set_generator_states(generators, self.course.device)

    def finish(self, recipe: dict) -> dict:
        """Store the result; the saved steps are not needed any more."""
        _, world = ranks.rank_and_world()
        state = {
            "weights": self.best,
            "history": self.history,
            "seconds": self.seconds,
            "date": now(),
            "hardware": hardware() + (f", {world} processes" if world > 1 else ""),
            "recipe": recipe,
        }
        if ranks.rank_and_world()[0] == 0:
            save_state(self.folder / "finished.pt", state)
            remove_running(self.folder, self.path)
        return state


@contextmanager
def one_training(course: Course, folder: Path, model, recipe: dict):
    """Yield what a finished training of the model has stored, {} where there is none.

    Another process that is at the same training is waited for; of the processes that
    train together, rank 0 holds the lock.
    """
    first = ranks.rank_and_world()[0] == 0
    with alone(course, folder.name) if first else nullcontext():
        ranks.wait_for_all()
        finished = load_finished(folder / "finished.pt", model, recipe, course.device)
        if finished and first:  # it may have been killed before it removed them
            remove_running(folder, course.local / "runs" / folder.name / "running.pt")
        yield finished


def load_finished(path: Path, model, recipe: dict, device: torch.device) -> dict:
    """A finished training; {} where there is none. A damaged file is set aside."""
    if not path.exists():
        return {}
    try:
        state = torch.load(path, device, weights_only=True)
        kinds = {"history": list, "seconds": float, "date": str, "hardware": str}
        if not all(isinstance(state[name], kind) for name, kind in kinds.items()):
            raise ValueError("values of other kinds")
        if not all(isinstance(row, dict) and row for row in state["history"]):
            raise ValueError("a history without its rows")
        stored = {name: part.shape for name, part in state["weights"].items()}
        if stored != {name: part.shape for name, part in model.state_dict().items()}:
            raise ValueError("weights of another network")
        if state["recipe"] != recipe:
            raise ValueError("another recipe")
        return state
    except Exception:  # torch.load raises a dozen kinds of error on a damaged file
        set_aside(path)
        return {}


def tell_of_earlier(folder: Path) -> None:
    """Say why a network that was trained before is trained anew."""
    name = folder.name[:-13]  # less the fingerprint
    earlier = [*folder.parent.glob(f"{name}-{'?' * 12}/finished.pt")]
    if earlier:
        print(
            f"{name}: trains anew, as code, data, recipe or seed differ from"
            f" {len(earlier)} finished run(s) of it"
        )


def remove_running(folder: Path, path: Path) -> None:
    """Remove the saved steps of a finished training, here and in the home."""
    for left in (path, folder / "running.pt"):
        left.unlink(missing_ok=True)


def read_state(path: Path, device: torch.device, model=None, classes=None) -> dict:
    """A checkpoint of ours, or the bare weights of `model` as one.

    Raises
    ------
    CourseError
        A file that is missing, with the notebook that writes it, or damaged; one that
        knows other classes.
    """
    if not path.exists():
        writers = {Path(file).name: name for file, name in PREREQUISITES.values()}
        advice = "check the path"
        if path.name in writers:
            advice = f"run notebooks/{writers[path.name]}.ipynb first"
        raise CourseError(f"{path} is missing: {advice}.")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        ours = {"architecture", "config", "weights"} <= state.keys()
        bare = len(state) and all(torch.is_tensor(value) for value in state.values())
        if not ours and not bare:
            raise ValueError("neither a checkpoint nor weights")
    except Exception as error:  # torch.load raises a dozen kinds on a damaged file
        raise CourseError(
            f"{path} is damaged or no checkpoint of this course"
            f" ({type(error).__name__}): delete it and run the notebook that writes it"
            " again."
        ) from error
    state = state if ours else _from_bare_weights(path, state, model)
    known = list(state.get("classes", classes or ()))
    if classes is not None and list(classes) != known:
        raise CourseError(
            f"{path} knows the classes {known}, asked for {list(classes)}: use the HOME"
            " of that dataset, or train again."
        )
    return state


def _from_bare_weights(path, weights: dict, model) -> dict:
    """What a file says that holds weights and nothing else."""
    if model is None:
        raise CourseError(
            f"{path} holds weights alone, not which network they belong to: give that"
            " network, utils.load_checkpoint(path, model), and store it with"
            " utils.save_checkpoint."
        )
    config = getattr(model, "config", {})
    return {"architecture": type(model).__name__, "config": config, "weights": weights}


def fill_in(path, model: nn.Module, state: dict) -> None:
    """Put the weights into the network, if they are of its kind."""
    own = type(model).__name__, getattr(model, "config", {})
    stored = state["architecture"], state["config"]
    if own != stored:
        raise CourseError(
            f"{path} holds {stored[0]}({stored[1]}), not {own[0]}({own[1]}): build that"
            " network (utils.load_model does) or train this one again."
        )
    try:
        model.load_state_dict(state["weights"])
    except (RuntimeError, TypeError) as error:
        raise CourseError(
            f"{path} holds weights of other shapes or names than this {own[0]}: build"
            " the network that it was saved from, or train this one again."
        ) from error


def set_aside(path: Path) -> None:
    os.replace(path, path.with_suffix(".damaged"))
    print(f"{path} was damaged and is set aside: what it held is trained again.")


def save_state(path: Path, state: dict) -> Path:
    """torch.save through memory and a temporary file, so that a full disk raises and
    leaves the old file.

    Raises
    ------
    CourseError
        A value that `torch.load(..., weights_only=True)` would refuse.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, weights_only=True)
    except pickle.UnpicklingError as error:
        kind = re.search(r"GLOBAL (\S+)", str(error))
        raise CourseError(
            f"{path} cannot hold {kind[1] if kind else 'one of these values'}: a"
            " checkpoint takes tensors, numbers, texts, lists and dicts; float(x) or"
            " x.tolist() makes one of a NumPy value."
        ) from error
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return path
