"""Where the curves of a training go."""

from __future__ import annotations

import os
import re
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from kit.files import CourseError, clear_disk_errors, fetch, keep, make_parent, remove
from kit.home import Course, on_colab
from kit.machine import generator_states, set_generator_states
from kit.ranks import ranks


def show_tensorboard(folder: Path) -> None:
    """Open TensorBoard below the cell on Colab; elsewhere print the command that starts
    it.
    """
    if on_colab():
        from tensorboard import notebook

        notebook.start(f"--logdir {folder}")
    else:
        print(f"Start it with: tensorboard --logdir {folder}")


class Curves:
    """The curves of one training, in the tracker that was asked for.

    A tracker that cannot begin is an error before the first step. One that breaks later
    is told in a sentence, and the training goes on without it. What a killed process
    had written is replaced by the history, which lost nothing."""

    def __init__(self, tracker: str, name: str, session):
        self.session, self.name, kind = (
            session,
            tracker,
            TRACKERS[tracker if ranks()[0] == 0 else "none"],
        )
        with same_generators(session.device):
            self.tracker = kind(session.course, name, session) if kind else None
        for row in session.history:
            self.add(row)

    def __enter__(self):
        return self

    def __exit__(self, error, *_) -> None:
        self._call("close", self.session, error is None)

    def add(self, row: dict) -> None:
        """A point on each curve, and a safe point."""
        self._call("add", row)

    def _call(self, what: str, *arguments) -> None:
        if self.tracker is None:
            return
        try:
            with same_generators(self.session.device):
                getattr(self.tracker, what)(*arguments)
        except Exception as error:
            # of somebody else's library: whatever it is, it must not cost a training
            self.tracker = None
            print(
                f"\n{self.name} stopped ({_first_line(error)}): its curves end here,"
                " the training goes on without them. run.history holds every epoch."
            )


@contextmanager
def same_generators(device: torch.device):
    """Within this block others may draw random numbers: the training
    does not notice.
    """
    states = generator_states(device)
    try:
        yield
    finally:
        set_generator_states(states, device)


def _first_line(error: Exception) -> str:
    return (
        getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    ).splitlines()[0]


def _check_room(folder: Path) -> None:
    """Fail as a full disk does: trackers write in a thread or a process of their own,
    which does not tell.
    """
    room = make_parent(folder / "room")
    try:
        room.write_bytes(bytes(1 << 14))
    finally:
        room.unlink(missing_ok=True)


class _TensorBoard:
    """One training in runs/tensorboard: scalars, a batch of training images, the
    recipe.
    """

    def __init__(self, course: Course, name: str, session):
        self.course, self.folder = course, course.local / "runs" / "tensorboard" / name
        with clear_disk_errors(self.folder):
            from torch.utils.tensorboard import SummaryWriter

            fetch(course, self.folder)
            _check_room(self.folder)
            # hides the points of an earlier process
            self.writer = SummaryWriter(self.folder, purge_step=0)

    def add(self, row: dict) -> None:
        _check_room(self.folder)
        for tag in CURVES:
            self.writer.add_scalar(tag, row[tag], row["epoch"])
        self.writer.flush()
        keep(self.course, self.folder)

    def close(self, session, finished: bool) -> None:
        if finished:
            train, recipe = session.loader, asdict(session.recipe).items()
            plain = {
                name: value
                for name, value in recipe
                if isinstance(value, (int, float, str, bool))
            }
            images = next(iter(train))[0][:16] * train.std + train.mean
            self.writer.add_images("training batch", images.clamp(0, 1))
            self.writer.add_hparams(
                plain, {"best_val_loss": session.best_loss}, run_name="."
            )
        self.writer.close()
        keep(self.course, self.folder)


class _WandB:
    """One training in runs/wandb: a run of Weights & Biases whose id is the identity of
    the training.

    It stays on this machine, unless WANDB_MODE says otherwise; `wandb sync` uploads it
    any time later. The code, the printed text, the command and the machine of the
    student are not stored with it.
    """

    def __init__(self, course: Course, name: str, session):
        try:
            # a mere folder called wandb can be imported, but not from
            from wandb import Settings, init
        except ImportError as error:
            raise CourseError(
                "wandb is not installed: pip install -r requirements-bonus.txt, or "
                "tracker='tensorboard'."
            ) from error
        self.course, folder = course, course.local / "runs" / "wandb"
        # what an id of a run may not hold at the server
        self.name = re.sub(r"[/\\#?%:]", "_", name)
        with clear_disk_errors(folder):
            _check_room(folder)
        private = {
            "silent": True,
            "console": "off",
            "symlink": False,
            "host": "",
            "disable_git": True,
            "disable_code": True,
            "save_code": False,
            "x_disable_meta": True,
            "x_disable_machine_info": True,
            "x_disable_stats": True,
            "x_save_requirements": False,
        }
        # x_: not promised
        known = {
            key: value for key, value in private.items() if key in Settings.model_fields
        }
        config = asdict(session.recipe) | {
            "dataset": course.dataset,
            "image_size": course.image_size,
            "seed": course.seed,
            "network": type(session.model).__name__,
        }
        try:
            self.run = init(
                mode=os.environ.get("WANDB_MODE", "offline"),
                dir=folder.parent,
                id=self.name,
                project=os.environ.get("WANDB_PROJECT", f"course-{course.dataset}"),
                name=name[:-13],
                resume="allow",
                config=config,
                settings=Settings(**known),
                reinit="create_new",
            )
        except Exception as error:
            # a dozen kinds, from a mode that does not exist to a server that is not
            # there
            raise CourseError(
                f"wandb could not begin ({_first_line(error)}): restart the session"
                " without WANDB_MODE, so that its runs stay on this machine, or take"
                " tracker='tensorboard'."
            ) from error
        self.folder = Path(self.run.dir).parent

    def add(self, row: dict) -> None:
        # a run that goes on at the server holds the epochs before
        if row["epoch"] >= self.run.starting_step:
            _check_room(self.folder)
            self.run.log({tag: row[tag] for tag in CURVES}, step=row["epoch"])
            self._keep()

    def close(self, session, finished: bool) -> None:
        sizes = [self._size()]
        self.run.summary["best_val_loss"] = session.best_loss
        self.run.finish(exit_code=0 if finished else 1)
        # its process writes on
        while (
            0 < sizes[0] and len(sizes) < 50 and not sizes[0] < sizes[-1] == sizes[-2]
        ):
            time.sleep(0.1)
            sizes.append(self._size())
        self._keep()
        earlier = re.compile(rf"offline-run-\d+_\d+-{re.escape(self.name)}(-\d+)?")
        # of processes that were killed: ours holds their epochs
        for home in {self.course.local, self.course.home}:
            for path in (home / "runs" / "wandb").glob("offline-run-*"):
                if earlier.fullmatch(path.name) and path.name != self.folder.name:
                    remove(path)

    def _size(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob("*.wandb"))

    def _keep(self) -> None:
        # with WANDB_MODE=disabled it writes nothing
        if self.folder.is_relative_to(self.course.local):
            keep(self.course, self.folder)


CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")
TRACKERS = {"tensorboard": _TensorBoard, "wandb": _WandB, "none": None}
