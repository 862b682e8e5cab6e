"""Where the curves of a training go changes neither its name nor its weights, and never
costs it."""

import json
import os
import signal
import struct
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import utils
from kit import trackers
from kit.files import KIT
from utils import Recipe

RECIPE = Recipe(epochs=3, batch_size=16)


def fit(data, name="probe", **options):
    torch.manual_seed(0)
    model = utils.OptimizedCNN(1, 2, (8, 8), dropout=0.2)
    options = {"progress": False} | options
    return utils.fit(data.course, name, model, data, RECIPE, **options)


def same_weights(first, second) -> bool:
    states = (run.model.state_dict().values() for run in (first, second))
    return all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def made(folder: Path) -> set[str]:
    found = folder.iterdir() if folder.exists() else ()
    return {path.name for path in found if not path.name.startswith(".")}


def test_unknown_tracker_is_refused_before_anything(data):
    with pytest.raises(utils.CourseError, match="choose one of tensorboard, wandb, n"):
        fit(data, tracker="tensorbord")
    assert not made(data.course.runs)


def test_tensorflow_is_not_loaded_where_it_is_installed(tmp_path):
    """Colab has it; half a gigabyte and seconds, for a writer of a few numbers."""
    package = tmp_path / "packages" / "tensorflow" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("raise SystemExit('tensorflow was imported')")
    code = """
import sys, utils
from kit.trackers import Curves
course = utils.start(1, source="sample", profile="smoke", home=sys.argv[1])
with utils.closing(Curves("tensorboard", course, "probe-0123456789ab", {})) as curves:
    curves.add(dict.fromkeys(["train_loss", "train_accuracy", "val_loss"], 0.5)
               | {"val_accuracy": 0.5, "lr": 0.1, "epoch": 1})
assert curves.writer
"""
    path = os.pathsep.join([str(KIT), str(package.parent.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "home"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    events = next((tmp_path / "home" / "runs" / "tensorboard").rglob("events*"))
    assert events.stat().st_size > 100


def test_none_writes_nothing_and_a_finished_run_loads_whatever_the_tracker(
    data, monkeypatch
):
    run = fit(data, tracker="none")
    assert made(data.course.runs) == {run.path.name}
    assert made(run.path) == {"finished.pt"}
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    for tracker in trackers.TRACKERS:
        again = fit(data, tracker=tracker)
        assert again.loaded and again.path == run.path and same_weights(run, again)


def test_tracker_that_breaks_costs_neither_the_training_nor_a_digit(
    data, monkeypatch, capsys
):
    from torch.utils import tensorboard

    class Rough(tensorboard.SummaryWriter):
        def add_scalar(self, tag, value, step):
            torch.rand(1)  # draws from a generator of the training
            if step == 2:
                raise OSError("No space left on device")

    whole = fit(data, "whole", tracker="none")
    monkeypatch.setattr(tensorboard, "SummaryWriter", Rough)
    run = fit(data)
    assert run.history["epoch"].tolist() == [1, 2, 3]
    said = capsys.readouterr().out
    assert said.count("The curves end here (OSError: No space left on device)") == 1
    assert whole.history["val_loss"].iloc[0] == run.history["val_loss"].iloc[0]


def test_wandb_that_is_not_installed(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(utils.CourseError, match="wandb is not installed: pip install"):
        fit(data, tracker="wandb")


def test_interrupted_curves_are_whole_in_the_end(data):
    def interrupt(epoch, row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(data, on_epoch=interrupt)
    run = fit(data)
    folder = next((data.course.runs / "tensorboard").glob("probe-*"))
    events = EventAccumulator(str(folder)).Reload()
    stored = [(point.step, point.value) for point in events.Scalars("val_loss")]
    assert [step for step, _ in stored] == [1, 2, 3]
    values = [value for _, value in stored]
    assert values == pytest.approx(run.history["val_loss"].tolist(), rel=1e-5)


# --- Weights & Biases


SCRIPT = """
import json, os, signal, sys
import torch, utils
course = utils.start(1, source=sys.argv[1], profile="smoke", home=sys.argv[2])
data = utils.load_data(course)

def on_epoch(epoch, row):
    if len(sys.argv) > 3 and epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)

torch.manual_seed(0)
model = utils.OptimizedCNN(1, 2, (8, 8), dropout=0.2)
recipe = utils.Recipe(epochs=3, batch_size=16)
utils.fit(course, "probe", model, data, recipe, tracker="wandb", on_epoch=on_epoch)
"""


def records(path: Path) -> list:
    """The records of a .wandb file, laid out as a log of LevelDB: blocks of 32 KiB, in
    them pieces of records.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, found, piece, at = path.read_bytes(), [], b"", 7
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        left = (1 << 15) - at % (1 << 15)
        if left < 7:  # no header fits in what is left of the block
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        piece, at = piece + content[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last piece
            found.append(Record.FromString(piece))
            piece = b""
    return found


def stored(path: Path) -> tuple[list[dict], dict]:
    """The history and the settings in the file of an offline run."""
    history, config = [], {}
    for record in records(path):
        for item in record.run.config.update:
            config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        if record.HasField("history"):
            items = record.history.item
            names = ["/".join(item.nested_key) or item.key for item in items]
            values = [json.loads(item.value_json) for item in items]
            history.append(dict(zip(names, values, strict=True)))
    return history, config


@pytest.mark.bonus
def test_wandb_holds_the_history_and_the_recipe(data, drawn, tmp_path):
    environment = {name: v for name, v in os.environ.items() if "WANDB" not in name}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(KIT)}
    command = [sys.executable, "-c", SCRIPT, str(drawn), str(data.course.home)]
    killed = subprocess.run([*command, "die"], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = fit(data, tracker="none")
    assert run.loaded
    files = sorted((data.course.runs / "wandb").glob("offline-run-*/*.wandb"))
    history, config = stored(files[-1])
    # what the killed process had written is copied, too: the last of a step counts
    losses = {
        row["global_step"]: row["val_loss"] for row in history if "val_loss" in row
    }
    expected = run.history["val_loss"].tolist()
    assert list(losses.values()) == pytest.approx(expected, rel=1e-5)
    plain = {name: config[name] for name in asdict(RECIPE) if name in config}
    assert plain == {name: asdict(RECIPE)[name] for name in plain} and "lr" in plain


@pytest.mark.bonus
def test_wandb_that_cannot_begin(data, monkeypatch):
    def refuse(**options):
        raise ValueError("mode must be one of online, offline")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(utils.CourseError, match="wandb could not begin .mode must be"):
        fit(data, tracker="wandb")
