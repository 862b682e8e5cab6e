"""Kills and full disks: the system's own SIGKILL and the system's own "no space", at
every stage of the course.

After any of them the next run works, nothing valid was lost, and nothing half-written
passes for a result."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from support.killing import (
    error_of,
    killed,
    killed_in_writing,
    leftovers,
    on_full_disk,
    operations,
)
from support.networks import RECIPE, Interrupted, network, same_weights

import sample_data
import utils
from kit import datasets, figures, images
from kit.files import HOST, make_parent
from kit.promotion import in_service
from kit.record import read_record
from kit.serving import put_in_service, verify_onnx

KIT = Path(utils.__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*")
ONE_EPOCH = replace(RECIPE, epochs=1)


def every_step(work, most: int = 80):
    """Kill `work(step)` at its first file operation, its second, and so on until it
    ends before; yields each kill.
    """
    for step in range(1, most):
        if not killed(step, lambda step=step: work(step)):
            assert step > 3, "hardly a file operation seen: this proves nothing"
            return
        yield step
    raise AssertionError(f"{most} file operations and no end")


def tiny_model(value: float = 0.0):
    """An ONNX model of 100 kB that nobody runs."""
    weights = onnx.numpy_helper.from_array(
        np.full(25_000, value, np.float32), "weights"
    )
    node = onnx.helper.make_node("Add", ["weights", "weights"], ["sum"])
    sums = onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, [25_000])
    return onnx.helper.make_model(
        onnx.helper.make_graph([node], "tiny", [], [sums], [weights])
    )


@pytest.fixture
def course(open_course):
    return open_course()


@pytest.fixture
def indexed(course):
    utils.build_index(course)
    return course


# --- kills: files that are written in one step


WRITERS = {
    "record": (
        lambda c, v: utils.record(c, "theme1", {"value": v}),
        lambda c: read_record(c.home)["theme1"]["value"],
    ),
    "checkpoint": (
        lambda c, v: utils.save_checkpoint(c.checkpoints / "m.pth", network(), value=v),
        lambda c: utils.load_model(c.checkpoints / "m.pth")[1]["value"],
    ),
    "table": (
        lambda c, v: utils.save_table(c, pd.DataFrame({"value": [v] * 500}), "t"),
        lambda c: (
            pd.read_csv(c.exports / "tables" / "theme1_t.csv")["value"].unique().item()
        ),
    ),
    "predictions": (
        lambda c, v: utils.save_predictions(
            c, "p", np.full((500, 2), v), np.zeros(500)
        ),
        lambda c: np.unique(
            np.load(c.exports / "predictions" / "p.npz")["probabilities"]
        ).item(),
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_the_old_one_or_the_new_one(course, name):
    write, read = WRITERS[name]
    write(course, 0)
    seen = []
    for _ in every_step(lambda step: write(course, 1)):
        seen.append(read(course))
        write(course, 0)
        assert read(course) == 0 and not leftovers(course.home)
    assert set(seen) == {0, 1} and read(course) == 1


def test_once_runs_again_what_was_killed_and_loads_what_was_stored(course, capsys):
    def work(value):
        return {"value": value + 1}

    for step in every_step(
        lambda step: utils.load_or_run(course, f"sum-{step}", work, 1)
    ):
        stored = any(course.runs.glob(f"sum-{step}-*/result.json"))
        capsys.readouterr()
        assert utils.load_or_run(course, f"sum-{step}", work, 1) == {"value": 2}
        assert stored == (
            "loaded, measured" in capsys.readouterr().out
        ) and not leftovers(course.runs)


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


# --- kills: the data


def test_drawing_killed(tmp_path):
    """Hundreds of pictures: killed at the first operations, somewhere in the middle,
    and at the last ones.
    """
    whole = sample_data.draw_solar_panels(tmp_path / "whole", 100, seed=1)
    steps = operations(
        lambda: sample_data.draw_solar_panels(tmp_path / "counted", 100, seed=1)
    )
    for step in (
        1,
        random.Random(0).randrange(2, steps - 3),
        *range(steps - 2, steps + 1),
    ):
        folder = tmp_path / f"killed-{step}"
        assert killed(
            step,
            lambda folder=folder: datasets.acquire("solar", "sample", folder, 100, 1),
        )
        place = folder / "solar_panels"
        # whole or not at all
        assert not place.exists() or (place / ".drawn.json").exists()
        assert datasets.acquire("solar", "sample", folder, 100, 1)[:2] == (
            "sample",
            place,
        )
        assert not leftovers(folder) and files_of(place) == files_of(whole)


def files_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_index_killed_at_every_step(course):
    whole = utils.build_index(course)
    content = (course.data / "index.csv").read_bytes()
    shutil.rmtree(course.data)
    for _ in every_step(lambda step: utils.build_index(course)):
        index = course.data / "index.csv"
        assert not index.exists() or index.read_bytes() == content
        pd.testing.assert_frame_equal(utils.build_index(course), whole)
        assert index.read_bytes() == content and not leftovers(course.home)
        shutil.rmtree(course.data)


def test_cache_killed_at_every_step_and_in_the_middle(indexed):
    index = utils.load_index(indexed)
    index = index[index["pool"] != ""].reset_index(drop=True)
    whole, folder = utils.pixel_cache(indexed, index).copy(), indexed.data / "cache"

    def build(step=None):
        utils.pixel_cache(indexed, index)

    def check():
        assert np.array_equal(utils.pixel_cache(indexed, index), whole)
        assert len(list(folder.iterdir())) == 2 and not leftovers(folder)
        shutil.rmtree(folder)

    shutil.rmtree(folder)
    for _ in every_step(build):
        check()
    shutil.rmtree(folder)
    assert killed_in_writing(30_000, build) and leftovers(folder)
    check()


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


def test_training_killed_at_every_step(data):
    """Every operation on a file: the saved step, the finished training, what is removed
    at the end.
    """
    recipe = replace(RECIPE, epochs=1)
    whole = fit(data, "whole", recipe)
    for step in every_step(lambda step: fit(data, f"probe-{step}", recipe)):
        again = fit(data, f"probe-{step}", recipe)
        assert same_weights(again.model, whole.model) and not leftovers(
            data.course.runs
        )
        assert [path.name for path in again.path.iterdir()] == ["finished.pt"]


def test_training_killed_in_the_middle_of_saving(data):
    whole = fit(data, "whole")
    assert killed_in_writing(100_000, lambda: fit(data, save_every=0.0))
    left = leftovers(data.course.runs)
    assert (
        len(left) == 1
        and left[0].name.startswith(".running.pt.")
        and left[0].stat().st_size == 100_000
    )
    assert same_weights(fit(data).model, whole.model) and not leftovers(
        data.course.runs
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


# --- kills: models, logs, copies


def test_export_killed_at_every_step(course):
    old, new = (
        utils.store_onnx(course, tiny_model(value), {"value": value})
        for value in (0, 1)
    )
    put_in_service(course, old)

    def export(step=None):
        put_in_service(course, utils.store_onnx(course, tiny_model(1), {"value": 1}))

    seen = set()
    new.unlink()
    for _ in every_step(export):
        seen.add(verify_onnx(course.exports / "model.onnx"))
        assert all(
            path.stem == utils.hash_file(path)[:16]
            for path in (course.exports / "models").glob("*.onnx")
        )
        export()
        assert verify_onnx(course.exports / "model.onnx") == new.stem and not leftovers(
            course.exports
        )
        put_in_service(course, old)
        new.unlink()
    assert seen == {old.stem, new.stem}


@pytest.mark.parametrize("begun", [False, True])
def test_log_killed_at_every_step(tmp_path, begun):
    for step in (
        every_step(lambda step: log(tmp_path / f"{step}.csv", "killed"))
        if not begun
        else range(1, 6)
    ):
        path = tmp_path / f"{step}.csv"
        if begun:
            log(path, "before")
            assert killed(step, lambda path=path: log(path, "killed"))
        log(path, "after")
        found = utils.read_log(path)["run_id"].tolist()
        assert found[-2:] == ["after"] * 2 and found[:2] == (
            ["before"] * 2 if begun else found[:2]
        )
        assert set(found) <= {"before", "killed", "after"} and len(found) <= 6


def log(path, name):
    logger = utils.InferenceLogger(path, run_id=name)
    for _ in range(2):
        logger.log(1, 0.5, 1.0, image="x.png", source="a, b")


def test_lock_file_of_a_killed_process_blocks_nobody(tmp_path):
    code = f"""
import os, signal, sys
from filelock import FileLock
FileLock({str(tmp_path / "p.csv.lock")!r}).acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert (tmp_path / "p.csv.lock").exists()
    log(tmp_path / "p.csv", "next")
    assert len(utils.read_log(tmp_path / "p.csv")) == 2


@pytest.mark.parametrize("what", ["file", "folder"])
def test_copies_between_local_disk_and_home_killed_at_every_step(
    course, tmp_path, what
):
    """Half a log brought back from Drive would be stored over the whole one."""
    path = Path("logs") / ("production.csv" if what == "file" else "")
    whole = {"production.csv": b"x" * 1000, "alerts.csv": b"y" * 1000}

    def place(step, where):
        return replace(
            course, home=tmp_path / f"{step}-home", local=tmp_path / f"{step}-{where}"
        )

    def go(step, where="local"):
        here = place(step, where)
        utils.copy_back(here, here.local / path)
        utils.copy_to_home(here, here.local / path)

    def prepare(step):
        for name, content in whole.items():
            make_parent(tmp_path / f"{step}-home" / "logs" / name).write_bytes(content)

    for step in range(1, 60):
        prepare(step)
        was_killed = killed(step, lambda step=step: go(step))
        go(step)
        for folder in (f"{step}-home", f"{step}-local"):
            for name in (
                whole
                if what == "folder" or folder.endswith("home")
                else ["production.csv"]
            ):
                assert (tmp_path / folder / "logs" / name).read_bytes() == whole[name]
        assert not leftovers(tmp_path)
        if not was_killed:
            break
    assert step > 5


def test_leftovers_are_not_copied_to_the_home(course, tmp_path):
    away = replace(course, local=tmp_path / "local")
    left = make_parent(away.local / "runs" / "x" / f".events.{HOST}-1.tmp")
    for path in (left, left.with_name("events")):
        path.write_text("x")
    utils.copy_to_home(away, left.parent)
    assert [path.name for path in (away.home / "runs" / "x").iterdir()] == ["events"]


# --- full disks


def told(message: str, path: Path) -> bool:
    """Which file, why, how much is free, what to do, and that nothing was lost: in two
    sentences.
    """
    return (
        message.startswith(f"{path} could not be written (")
        and " MB are free on that disk)" in message
        and ": free some space there" in message
        and message.count(". ") == 1
    )


def write_reference(course):
    statistics = pd.DataFrame(np.random.default_rng(0).random((300, 3)))
    utils.Reference(
        statistics,
        np.ones((300, 2)),
        np.random.default_rng(0).random((300, 8)),
        np.ones(300),
        "0" * 16,
        course.classes,
    ).save(course.exports / "drift_reference.npz")


def write_figure(course):
    utils.save_figure(course, figures.image_grid([np.zeros((8, 8))], ["x"]), "f")


FULL_DISK = {
    "index": (utils.build_index, "data/pneumonia/index.csv"),
    "record": (
        lambda c: utils.record(c, "theme1", {"values": [0.5] * 2000}),
        "exports/results.json",
    ),
    "checkpoint": (
        lambda c: utils.save_checkpoint(c.checkpoints / "m.pth", network()),
        "checkpoints/m.pth",
    ),
    "table": (
        lambda c: utils.save_table(c, pd.DataFrame({"value": range(9999)}), "t"),
        "exports/tables/theme1_t.csv",
    ),
    "figure": (write_figure, "exports/figures/theme1_f.png"),
    "predictions": (
        lambda c: utils.save_predictions(c, "p", np.ones((500, 2)), np.ones(500)),
        "exports/predictions/p.npz",
    ),
    "reference": (write_reference, "exports/drift_reference.npz"),
    "export": (
        lambda c: utils.store_onnx(c, tiny_model(), {}),
        f"exports/models/{hashlib.sha256(b'').hexdigest()[:16]}.onnx",
    ),
}


@pytest.mark.parametrize("name", FULL_DISK)
def test_full_disk_is_explained_and_the_old_file_stays(course, name, monkeypatch):
    write, path = FULL_DISK[name]
    path = course.home / path
    # its name is the hash of what it holds, which the test need not know
    if name == "export":
        digest = SimpleNamespace(hexdigest=lambda: path.stem)
        monkeypatch.setattr(hashlib, "sha256", lambda content: digest)
    make_parent(path).write_bytes(b"old" if name != "record" else path.read_bytes())
    before = path.read_bytes()
    message = on_full_disk(lambda: write(course))
    assert told(message, path) and message.endswith(
        "What stood there before is untouched."
    )
    assert path.read_bytes() == before and not leftovers(course.home)
    write(course)  # with space again, it works
    assert path.read_bytes() != before and not on_full_disk(
        lambda: write(course), size=10**7
    )


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

    assert (
        told(on_full_disk(work), path)
        and path.read_text() == "old"
        and not leftovers(tmp_path)
    )


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
    assert told(str(error.value), running) and "No space left on device" in str(
        error.value
    )
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
    assert told(said, stored) and said.endswith(
        "The trials that are finished are all there."
    )
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
    assert all(
        (away.home / "runs" / name).read_text() == "old" for name in ("a", "b")
    ) and not leftovers(tmp_path)
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


def test_log_on_a_full_disk_tells_who_asks(tmp_path):
    path = tmp_path / "production.csv"
    log(path, "before")
    message = on_full_disk(lambda: [log(path, "x") for _ in range(100)])
    assert told(message, path) and message.endswith(
        "The lines written before are all there."
    )
    log(path, "after")
    assert utils.read_log(path)["run_id"].tolist()[:2] == ["before"] * 2
    assert utils.read_log(path, "after")["pred_class"].tolist() == [1, 1]


def test_promotion_on_a_full_disk(course):
    """No space for the copy: the old model serves on, and the next call goes on."""
    old, new = (utils.store_onnx(course, tiny_model(value), {}) for value in (0, 1))
    put_in_service(course, old)
    report = SimpleNamespace(new=new.stem, current=old.stem, accepted=True, figures={})
    message = on_full_disk(lambda: utils.promote(course, new, report), size=50_000)
    assert told(message, course.exports / "model.onnx")
    assert in_service(course) == old.stem and not leftovers(course.home)
    utils.promote(course, new, report)
    assert in_service(course) == new.stem
    assert utils.read_audit(course)["event"].tolist() == ["in service"]
