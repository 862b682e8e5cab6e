"""Kills and full disks: the system's own SIGKILL and the system's own "no space", at
every stage of the course.

After any of them the next run works, nothing valid was lost, and nothing half-written
passes for a result."""

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from support.killing import error_of, leftovers, on_full_disk, told
from support.networks import RECIPE, Interrupted, network, same_weights

import utils
from kit import datasets, images
from kit.files import HOST, make_parent

KIT = Path(utils.__file__).parent
FORKED = "ignore:.*multi-threaded, use of fork.*"
pytestmark = [pytest.mark.course, pytest.mark.filterwarnings(FORKED)]


@pytest.fixture
def course(open_course):
    return open_course()


@pytest.fixture
def indexed(course):
    utils.build_index(course)
    return course


def test_leftovers_of_the_killed_go_and_those_of_the_living_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old, new = (tmp_path / f".cache.npy.elsewhere-{number}.tmp" for number in (1, 2))
    gone = tmp_path / f".cache.npy.{HOST}-{dead.pid}.tmp"
    mine = [
        tmp_path / f".other.{HOST}-{os.getpid()}.tmp",
        tmp_path / ".notes.tmp",
        new,
        tmp_path / f".x.{HOST}-99999999999999.tmp",
    ]
    for path in (old, gone, *mine):
        path.write_text("half")
    os.utime(old, (0, 0))
    utils.write_json(tmp_path / "value.json", 1)
    assert sorted(tmp_path.iterdir()) == sorted([*mine, tmp_path / "value.json"])


def test_two_threads_write_one_file(tmp_path):
    """Neither undoes the other: the file is that of the last one, and whole."""
    path, both = tmp_path / "value.txt", threading.Barrier(2)

    def write(text: str) -> None:
        with utils.atomic(path) as temporary:
            temporary.write_text(text)
            both.wait(20)

    with ThreadPoolExecutor(2) as threads:
        done = [threads.submit(write, letter * 1000) for letter in "ab"]
        assert [work.result() for work in done] == [None, None]
    assert path.read_text() in ("a" * 1000, "b" * 1000)
    assert list(tmp_path.iterdir()) == [path]


# --- kills: training


def fit(data, name="probe", recipe=RECIPE, **options):
    options = {"tracker": "none", "progress": False} | options
    return utils.fit(
        data.course,
        name,
        options.pop("model", None) or network(),
        data,
        recipe,
        **options,
    )


class Noisy(utils.OptimizedCNN):
    """Draws from all three global generators, as augmentation of a
    student's own may.
    """

    def forward(self, x):
        return super().forward(
            x
            + 0.1 * random.random()
            + 0.1 * np.random.rand()  # noqa: NPY002
            + 0.1 * torch.rand(1)
        )


def noisy():
    torch.manual_seed(0)
    return Noisy(1, 2, (8, 8, 8))


def test_all_generators_go_on_where_they_stood(data):
    whole = fit(data, "whole", model=noisy())
    with pytest.raises(Interrupted):
        fit(data, model=noisy(), save_every=0.0, on_epoch=interrupt)
    random.random(), np.random.rand(2), torch.rand(3)  # noqa: NPY002 - whatever else the notebook drew in between
    assert same_weights(fit(data, model=noisy()).model, whole.model)


def interrupt(epoch, row):
    raise Interrupted


def test_loss_scaler_goes_on_where_it_stood(data, monkeypatch):
    """float16 with a scale that doubles every third step: a scaler that began anew
    would stand elsewhere.
    """
    scale = []
    monkeypatch.setattr(utils, "amp_dtype", lambda device: torch.float16)
    monkeypatch.setattr(
        utils,
        "make_scaler",
        lambda device, enabled=True: (
            scale.append(torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3))
            or scale[-1]
        ),
    )
    whole = fit(data, "whole")
    with pytest.raises(Interrupted):
        fit(data, save_every=0.0, on_epoch=interrupt)
    assert same_weights(fit(data).model, whole.model)
    assert scale[0].state_dict() == scale[2].state_dict() and scale[0].get_scale() > 16


def test_resumed_training_tells_its_earlier_epochs_again(data):
    """The process may have been killed after an epoch was saved and before it was told:
    a search would not prune.
    """
    with pytest.raises(Interrupted):
        fit(data, on_epoch=interrupt)
    told = []
    fit(data, on_epoch=lambda epoch, row: told.append((epoch, row["epoch"])))
    assert told == [(1, 1), (2, 2), (3, 3)]


def test_curves_of_a_killed_training_are_whole(data):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(Interrupted):
        fit(data, tracker="tensorboard", on_epoch=interrupt)
    folder = next((data.course.runs / "tensorboard").glob("probe-*"))
    for path in folder.glob("events*"):
        path.write_bytes(path.read_bytes()[:-10])  # cut by the kill
    time.sleep(1.1)  # TensorBoard orders its files by the second they began in
    run = fit(data, tracker="tensorboard")
    events = EventAccumulator(str(folder)).Reload()
    assert [point.step for point in events.Scalars("val_loss")] == [1, 2, 3]
    assert [point.value for point in events.Scalars("val_loss")] == pytest.approx(
        run.history["val_loss"].tolist()
    )


def test_saved_steps_of_a_finished_training_do_not_stay(data):
    """Killed between storing the result and removing the steps."""
    run = fit(data)
    left = run.path / "running.pt"
    left.write_bytes(b"steps")
    assert fit(data).loaded and not left.exists()


SHORT = "--kills 2 --again 0 --chain 0 --images 120 --size 32 --saved".split()


@pytest.mark.parametrize(
    "options, held",
    [
        ([*SHORT, "each step"], ["2 of 2 kills hold"]),
        pytest.param(
            [],
            ["20 of 20 kills hold", "6 of 6 kills of the chain hold"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_kills_at_random_moments(options, held):
    command = [sys.executable, KIT / "benchmarks" / "kills.py", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(words in done.stdout for words in held)


def quick_search(data, name, recipe, trials=6):
    def quick(course, name, model, *rest, **options):
        losses = pd.DataFrame({"val_loss": [float(utils.count_parameters(model))]})
        return SimpleNamespace(history=losses, loaded=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "fit", quick)
        return utils.search(data.course, data, name, recipe, trials)


def finished(study) -> list:
    return [
        (trial.params, trial.value)
        for trial in study.trials
        if trial.state.name == "COMPLETE"
    ]


def test_leftovers_are_not_copied_to_the_home(course, tmp_path):
    away = replace(course, local=tmp_path / "local")
    left = make_parent(away.local / "runs" / "x" / f".events.{HOST}-1.tmp")
    for path in (left, left.with_name("events")):
        path.write_text("x")
    utils.copy_to_home(away, left.parent)
    assert [path.name for path in (away.home / "runs" / "x").iterdir()] == ["events"]


# --- full disks


def test_full_disk_while_the_cache_is_built(indexed, monkeypatch):
    """It is told before the first image is decoded: on a real dataset the end of the
    work is minutes away.
    """
    index = utils.load_index(indexed)
    decoded = indexed.home / "decoded"
    decode = utils.decode
    monkeypatch.setattr(
        images, "decode", lambda *given: decoded.touch() or decode(*given)
    )
    message = on_full_disk(lambda: utils.load_data(indexed), size=50_000)
    folder = indexed.data / "cache"
    assert not decoded.exists() and not list(folder.iterdir())
    assert len(utils.load_data(indexed).pixels) == (index["pool"] != "").sum()
    assert told(message, next(folder.glob("*.npy")))


def test_full_disk_while_images_are_drawn(small_disk):
    raw = small_disk(64 * 1024)
    with pytest.raises(utils.CourseError, match="Nothing half-drawn is left") as error:
        datasets.acquire("solar", "sample", raw, 100, 1)
    assert told(str(error.value), raw / "solar_panels")
    assert [path.name for path in raw.iterdir()] == [".solar_panels.lock"]


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_tells_of_a_full_disk_in_its_own_words(tmp_path, zipped):
    """A RuntimeError about file positions, which no student would take for
    a full disk.
    """
    path, weights = tmp_path / "own.pt", {"weights": torch.zeros(10_000)}
    path.write_text("old")

    def work():
        with utils.atomic(path) as temporary:
            torch.save(weights, temporary, _use_new_zipfile_serialization=zipped)

    assert told(on_full_disk(work), path)
    assert path.read_text() == "old"
    assert not leftovers(tmp_path)


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (
        RuntimeError("shapes differ"),
        ValueError("no quota"),
        utils.CourseError("No space left: of ours"),
    ):
        with pytest.raises(type(error)) as raised, utils.atomic(tmp_path / "x"):
            raise error
        assert raised.value is error


def test_no_permission_asks_for_no_space(tmp_path, monkeypatch):
    def refuse(*paths):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(utils.os, "replace", refuse)
    with pytest.raises(
        utils.CourseError,
        match=r"x could not be written \(Permission denied\): check the permissions",
    ):
        utils.write_json(tmp_path / "x", 1)


def test_training_on_a_disk_that_fills_up(data, small_disk):
    """A real file system: the training stops with a sentence, and with space again ends
    with the same weights.
    """
    whole = fit(data, "whole")
    size = (
        utils.save_state(data.course.home / "size", {"state": network().state_dict()})
        .stat()
        .st_size
    )
    course = replace(data.course, home=small_disk(24 * size), local=data.course.local)
    course = replace(course, local=course.home)
    ballast = course.home / "ballast"
    there = replace(data, course=course)

    def fill(epoch, row):
        with ballast.open("wb") as file:
            while True:
                file.write(b"x" * 4096)
                file.flush()

    with pytest.raises(OSError, match="No space left"):
        fit(there, on_epoch=fill)
    running = next(course.runs.glob("probe-*/running.pt"))
    before = running.read_bytes()
    with pytest.raises(utils.CourseError) as error:
        fit(there, save_every=0.0)
    assert told(str(error.value), running)
    assert "No space left on device" in str(error.value)
    assert running.read_bytes() == before and not leftovers(course.home)
    ballast.unlink()
    assert same_weights(fit(there).model, whole.model)


def test_curves_on_a_full_disk(data, small_disk):
    import torch.utils.tensorboard  # noqa: F401 - takes seconds, once here instead of in each process

    folder = data.course.runs / "tensorboard"
    small_disk(4096, folder)
    # they are lost, the training is not
    assert error_of(lambda: fit(data, tracker="tensorboard")) == ""
    assert not leftovers(data.course.home) and fit(data, tracker="tensorboard").loaded


def test_search_on_a_full_disk(data):
    recipe = replace(RECIPE, epochs=1)
    before = finished(quick_search(data, "search", recipe, trials=2))
    stored = next(data.course.runs.glob("search-*.db"))
    full = stored.stat().st_size + 4096
    said = on_full_disk(
        lambda: quick_search(data, "search", recipe, trials=50), size=full
    )
    assert told(said, stored)
    assert said.endswith("The trials that are finished are all there.")
    after = finished(quick_search(data, "search", recipe, trials=8))
    assert len(after) >= 8 and after[:2] == before


def test_copies_to_and_from_the_home_on_a_full_disk(course, tmp_path):
    """A full Drive does not stop the work; a full local disk does, as what is missing
    would be taken for nothing.
    """
    away = replace(course, local=tmp_path / "local")
    for name in ("a", "b"):
        make_parent(away.local / "runs" / name).write_text(name * 5000)
        make_parent(away.home / "runs" / name).write_text("old")
    assert on_full_disk(lambda: utils.copy_to_home(away, away.local / "runs")) == ""
    assert all((away.home / "runs" / name).read_text() == "old" for name in ("a", "b"))
    assert not leftovers(tmp_path)
    utils.copy_to_home(away, away.local / "runs")
    shutil.rmtree(away.local)
    message = on_full_disk(lambda: utils.copy_back(away, away.local / "runs"))
    assert "runs could not be brought back (" in message and "File too large" in message
    assert "free some space here" in message
    assert not (away.local / "runs").exists() and not leftovers(tmp_path)
    utils.copy_back(away, away.local / "runs")
    assert (away.local / "runs" / "b").read_text() == "b" * 5000


def test_answers_go_on_when_the_log_is_full(small_disk):
    """Decided: a service answers on. The lines lost are counted, and with space again
    the log goes on.
    """
    disk = small_disk(64 * 1024)
    path, ballast = disk / "production.csv", disk / "ballast"
    model = SimpleNamespace(
        hash="0" * 16, predict=lambda pixels: np.full((len(pixels), 2), 0.5, np.float32)
    )
    served = utils.MonitoredModel(model, utils.InferenceLogger(path))
    ballast.write_bytes(b"x" * 32 * 1024)
    answers = 0
    while served.lost < 3:
        answers += len(served.predict(np.zeros((1, 1, 8, 8), np.uint8)))
    ballast.unlink()
    served.predict(np.zeros((1, 1, 8, 8), np.uint8))
    assert len(utils.read_log(path)) == answers - 3 + 1 and answers > 100
    assert len(pd.read_csv(path)) == len(utils.read_log(path))
