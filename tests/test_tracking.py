"""Tracking: where the curves of a training go changes neither its identity nor its
weights, and never costs it.
"""

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from killing import error_of

import utils
from utils import Recipe

RECIPE = Recipe(epochs=3, batch_size=16)
CURVES = ["train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"]


class Noisy(utils.BaselineCNN):
    """Draws from all three global generators, as augmentation of a student's own may: a
    tracker must not move them.
    """

    def forward(self, x):
        return super().forward(
            x
            + 0.1 * random.random()
            + 0.1 * np.random.rand()  # noqa: NPY002
            + 0.1 * torch.rand(1)
        )


def fit(data, name="probe", **options):
    torch.manual_seed(0)
    return utils.fit(
        data.course, name, Noisy(1, 2, 4), data, RECIPE, **{"progress": False} | options
    )


def same_weights(first, second) -> bool:
    pairs = zip(
        first.model.state_dict().values(),
        second.model.state_dict().values(),
        strict=True,
    )
    return all(torch.equal(a, b) for a, b in pairs)


def interrupt(epoch, row):
    raise KeyboardInterrupt


def made(folder: Path) -> set[str]:
    return (
        {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if folder.exists()
        else set()
    )


class Rough:
    """A tracker that draws random numbers, and breaks after its second epoch."""

    def __init__(self, course, name, session):
        self.rows = []
        self.draw()

    def draw(self):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002

    def add(self, row):
        self.draw()
        self.rows.append(row)
        if len(self.rows) == 2:
            raise ConnectionResetError("Connection lost\nand much more")

    def close(self, session, finished):
        raise AssertionError("a tracker that broke is not asked again")


# --- every tracker


def test_unknown_tracker_is_refused_before_anything(data):
    with pytest.raises(
        utils.CourseError,
        match="tracker='tensorbord' is unknown: choose one of tensorboard, wandb, n",
    ):
        fit(data, tracker="tensorbord")
    assert not made(data.course.runs)


def test_none_writes_nothing(data):
    run = fit(data, tracker="none")
    assert made(data.course.runs) == {run.path.name} and made(run.path) == {
        "finished.pt"
    }


def test_a_finished_run_loads_whatever_the_tracker(data, monkeypatch):
    first = fit(data, tracker="none")
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    for tracker in utils.TRACKERS:
        again = fit(data, tracker=tracker)
        assert again.loaded and again.path == first.path and same_weights(first, again)
    assert made(data.course.runs) == {first.path.name}


def test_tracker_that_breaks_costs_neither_the_training_nor_a_digit(
    data, monkeypatch, capsys
):
    whole = fit(data, "whole", tracker="none")
    monkeypatch.setitem(utils.TRACKERS, "rough", Rough)
    run = fit(data, tracker="rough")
    assert same_weights(whole, run) and run.history["epoch"].tolist() == [1, 2, 3]
    said = [line for line in capsys.readouterr().out.splitlines() if "stopped" in line]
    assert said == [
        "rough stopped (Connection lost): its curves end here, the training goes on"
        " without them. run.history holds every epoch."
    ]


def test_tensorboard_that_finds_no_room_later(data, small_disk, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place = small_disk(1 << 17, data.course.runs / "tensorboard")

    def fill(epoch, row):
        if epoch == 1:
            with (
                pytest.raises(OSError),
                (place / "ballast").open("wb", buffering=0) as file,
            ):
                while True:
                    file.write(bytes(4096))

    run = fit(data, on_epoch=fill)
    assert run.history["epoch"].tolist() == [1, 2, 3]
    assert (
        "tensorboard stopped (No space left on device): its curves end here"
        in capsys.readouterr().out
    )
    events = EventAccumulator(str(next(place.glob("probe-*")))).Reload()
    assert [point.step for point in events.Scalars("val_loss")] == [1]


def test_wandb_that_is_not_installed(data, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        fit(data, tracker="none", on_epoch=interrupt)
    running = next(data.course.runs.glob("probe-*/running.pt"))
    before = running.read_bytes()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(utils.CourseError) as error:
        fit(data, tracker="wandb")
    assert (
        str(error.value)
        == "wandb is not installed: pip install -r requirements-bonus.txt, or "
        "tracker='tensorboard'."
    )
    assert running.read_bytes() == before and made(data.course.runs) == {
        running.parent.name
    }
    assert same_weights(fit(data, tracker="none"), fit(data, "whole", tracker="none"))


def test_a_folder_called_wandb_is_no_wandb(data, tmp_path, monkeypatch):
    if "wandb" in sys.modules or any(
        (Path(folder) / "wandb").is_dir() for folder in sys.path
    ):
        pytest.skip("wandb is installed here")
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(utils.CourseError, match="wandb is not installed"):
        fit(data, tracker="wandb")


def test_a_run_that_goes_on_at_the_server_gets_no_epoch_twice(data, tmp_path):
    logged = []
    tracker = utils._WandB.__new__(utils._WandB)
    tracker.course, tracker.folder = data.course, tmp_path / "elsewhere"
    tracker.run = SimpleNamespace(
        starting_step=3, log=lambda values, step: logged.append(step)
    )
    for epoch in (1, 2, 3, 4):
        tracker.add(dict.fromkeys(CURVES, 0.0) | {"epoch": epoch})
    assert logged == [3, 4]


def test_search_and_fine_tuning_pass_the_tracker_on(data, monkeypatch):
    asked = []

    def fake(course, name, model, data, recipe, tracker="tensorboard", **options):
        asked.append(tracker)
        return SimpleNamespace(history={"val_loss": np.array([0.5])}, loaded=False)

    monkeypatch.setattr(utils, "fit", fake)
    utils.search(data.course, data, "quiet", RECIPE, 1)
    utils.search(data.course, data, "told", RECIPE, 1, tracker="wandb")
    assert asked == ["none", "wandb"]


# --- Weights & Biases, for real and offline


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """The real library, as on a machine where nobody has logged in; its processes end
    with the test.
    """
    for name in list(os.environ):
        if name.startswith("WANDB_") and name != "WANDB_ERROR_REPORTING":
            monkeypatch.delenv(name)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    module = pytest.importorskip("wandb")
    yield module
    module.teardown()


def records(path: Path) -> list:
    """The records of a .wandb file, laid out as a log of LevelDB: blocks of 32 KiB, in
    them pieces of records.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, found, piece, at = path.read_bytes(), [], b"", 7
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        # no header fits in what is left of the block
        if (1 << 15) - at % (1 << 15) < 7:
            at += (1 << 15) - at % (1 << 15)
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        piece, at = piece + content[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last piece
            found.append(Record.FromString(piece))
            piece = b""
    return found


def runs_of(course) -> list[Path]:
    return sorted((course.local / "runs" / "wandb").glob("*/*.wandb"))


def history_of(path: Path) -> list[dict]:
    import json

    rows = [record.history for record in records(path) if record.HasField("history")]
    return [
        {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in row.item
        }
        | {"step": row.step.num}
        for row in rows
    ]


@pytest.mark.bonus
def test_wandb_holds_the_history_and_the_recipe(data, wandb, capsys):
    import json

    run = fit(data, tracker="wandb")
    (path,) = runs_of(data.course)
    assert (
        path.parent.name.startswith("offline-run-")
        and path.name == f"run-{run.path.name}.wandb"
    )
    rows = history_of(path)
    assert [row["step"] for row in rows] == run.history["epoch"].tolist() == [1, 2, 3]
    for curve in CURVES:
        assert [row[curve] for row in rows] == run.history[curve].tolist(), curve
    (head,) = [record.run for record in records(path) if record.HasField("run")]
    config = {item.key: json.loads(item.value_json) for item in head.config.update}
    assert asdict(RECIPE).items() <= config.items()
    assert (head.run_id, head.display_name, head.project) == (
        run.path.name,
        "probe",
        "course-pneumonia",
    )
    (end,) = [record.exit for record in records(path) if record.HasField("exit")]
    assert (
        end.exit_code == 0
        and capsys.readouterr().out == ""
        and made(data.course.runs) == {run.path.name, "wandb"}
    )


@pytest.mark.bonus
def test_no_tracker_changes_a_digit(data, wandb):
    runs = [
        fit(data, tracker, tracker=tracker)
        for tracker in ("none", "tensorboard", "wandb")
    ]
    assert [run.loaded for run in runs] == [False] * 3
    assert same_weights(runs[0], runs[1]) and same_weights(runs[0], runs[2])
    assert len({run.path.name[-12:] for run in runs}) == 1  # the identity


@pytest.mark.bonus
def test_nothing_secret_is_stored(data, wandb, monkeypatch):
    secrets = {
        "WANDB_API_KEY": "a1" * 20,
        "KAGGLE_KEY": "k2" * 16,
        "KAGGLE_API_TOKEN": "KGAT_" + "t3" * 16,
        "USER": "u4nobody",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["course.py", "--token", "s5" * 12])
    print("p6" * 12)
    fit(data, tracker="wandb")
    stored = [
        path
        for path in (data.course.local / "runs" / "wandb").rglob("*")
        if path.is_file()
    ]
    content = b"".join(path.read_bytes() for path in stored)
    assert runs_of(data.course)[0] in stored and b"val_loss" in content
    told = [*secrets.values(), "s5" * 12, "p6" * 12, sys.executable, "test_tracking.py"]
    assert not [word for word in told if word.encode() in content]


@pytest.fixture
def script(data, drawn, tmp_path):
    """script(lines, **environment) runs a training of its own process on the same data;
    `lines` define `on_epoch`.
    """
    text = f"""
import os, signal, subprocess, sys
sys.path[:0] = [{str(utils.KIT)!r}, {str(Path(__file__).parent)!r}]
import utils, test_tracking
home = {str(data.course.home)!r}
course = utils.start(1, source={str(drawn)!r}, profile="smoke", home=home)
data = utils.load_data(course)
on_epoch = None
"""

    def run(lines="", **environment):
        end = (
            "\nrun = test_tracking.fit(data, tracker='wandb',"
            " on_epoch=on_epoch)\nprint('epochs', len(run.history))"
        )
        return subprocess.run(
            [sys.executable, "-c", text + lines + end],
            env=os.environ | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.mark.bonus
def test_killed_and_resumed_is_one_run_without_an_epoch_twice(
    data, wandb, script, capsys
):
    whole = fit(data, "whole", tracker="none")
    die = (
        "def on_epoch(epoch, row):\n    if epoch == 2: os.kill(os.getpid(),"
        " signal.SIGKILL)\n"
    )
    assert script(die).returncode == -signal.SIGKILL
    (first,) = runs_of(data.course)
    run = fit(data, tracker="wandb")
    assert "resumed" in capsys.readouterr().out and same_weights(whole, run)
    (path,) = runs_of(data.course)
    assert path != first and path.name == first.name  # another file of the same run
    assert [row["step"] for row in history_of(path)] == [1, 2, 3]
    assert [row["val_loss"] for row in history_of(path)] == run.history[
        "val_loss"
    ].tolist()


@pytest.mark.bonus
def test_interrupted_and_run_again_in_one_notebook(data, wandb):
    with pytest.raises(KeyboardInterrupt):
        fit(data, tracker="wandb", on_epoch=interrupt)
    fit(data, tracker="wandb")
    (path,) = runs_of(data.course)
    assert [row["step"] for row in history_of(path)] == [1, 2, 3]


@pytest.mark.bonus
def test_only_runs_of_the_same_training_are_replaced(data, wandb):
    # its name ends as the other's, with the same identity
    other = fit(data, "x-probe", tracker="wandb")
    online = data.course.local / "runs" / "wandb" / "run-20260101_000000-probe"
    online.mkdir()
    fit(data, tracker="wandb")
    assert [path.name for path in runs_of(data.course)].count(
        f"run-{other.path.name}.wandb"
    ) == 1
    assert len(runs_of(data.course)) == 2 and online.exists()


@pytest.mark.bonus
def test_names_that_the_server_would_refuse(data, wandb):
    """Theme 7 calls its candidates by a share: retrain-80-10%-whole."""
    run = fit(data, "retrain-10%", tracker="wandb")
    (path,) = runs_of(data.course)
    assert (
        path.name == f"run-{run.path.name.replace('%', '_')}.wandb"
        and len(history_of(path)) == 3
    )


@pytest.mark.bonus
def test_runs_reach_the_home(data, wandb, tmp_path):
    """On Colab with Drive: after a lost machine, the home keeps one run, the whole."""
    machines = [
        replace(data, course=replace(data.course, local=tmp_path / name))
        for name in ("first", "second")
    ]
    with pytest.raises(KeyboardInterrupt):
        fit(machines[0], tracker="wandb", on_epoch=interrupt)
    assert len(list(data.course.home.glob("runs/wandb/*/*.wandb"))) == 1
    fit(machines[1], tracker="wandb")
    (kept,) = data.course.home.glob("runs/wandb/*/*.wandb")
    assert [row["step"] for row in history_of(kept)] == [1, 2, 3]


@pytest.mark.bonus
def test_nothing_leaves_the_machine(data, wandb, script):
    """Not the process that writes the files, either: a proxy on the loopback waits for
    whatever would call home.
    """
    called = []

    def wait():
        while True:
            try:
                connection, _ = proxy.accept()
            except OSError:
                return
            called.append(connection.recv(200))
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as proxy:
        threading.Thread(target=wait, daemon=True).start()
        names = (
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "http_proxy",
            "https_proxy",
            "all_proxy",
        )
        through = dict.fromkeys(names, f"http://127.0.0.1:{proxy.getsockname()[1]}") | {
            "NO_PROXY": "",
            "no_proxy": "",
        }
        done = script(**through)
        assert done.returncode == 0 and "epochs 3" in done.stdout, done.stderr
        assert called == []
        caller = (
            "import contextlib, urllib.request as u\nwith contextlib.suppress(OSError):"
            " u.urlopen('https://x.org')"
        )
        subprocess.run(
            [sys.executable, "-c", caller], env=os.environ | through, timeout=60
        )
        # the proxy would have heard it
        assert called and called[0].startswith(b"CONNECT x.org")
        proxy.shutdown(socket.SHUT_RDWR)


@pytest.mark.bonus
def test_process_of_wandb_that_dies_does_not_stop_the_training(data, wandb, script):
    kill = """
import psutil
def on_epoch(epoch, row):
    if epoch == 1:
        for child in psutil.Process().children(recursive=True):
            if child.name() == "wandb-core":
                child.kill()
"""
    done = script(kill)
    assert (
        "epochs 3" in done.stdout
        and "wandb stopped (Connection lost): its curves end here" in done.stdout
    )
    assert same_weights(fit(data, tracker="none"), fit(data, "whole", tracker="none"))


@pytest.mark.bonus
def test_mode_of_the_student_wins(data, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run = fit(data, tracker="wandb")
    assert made(data.course.runs) <= {run.path.name, "wandb"} and not runs_of(
        data.course
    )


@pytest.mark.bonus
def test_wandb_that_cannot_begin(data, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "sideways")
    with pytest.raises(utils.CourseError) as error:
        fit(data, tracker="wandb")
    said = str(error.value)
    assert (
        said.startswith("wandb could not begin (")
        and "without WANDB_MODE" in said
        and "\n" not in said
    )
    assert not list(data.course.runs.rglob("*.pt"))


@pytest.mark.bonus
def test_wandb_on_a_full_disk(data, wandb, small_disk):
    small_disk(4096, data.course.runs / "wandb")
    message = error_of(lambda: fit(data, tracker="wandb"))
    assert message.startswith(
        f"{data.course.runs / 'wandb'} could not be written (No space left on device"
    )
    assert (
        not list(data.course.runs.rglob("*.pt"))
        and not fit(data, tracker="none").loaded
    )
