"""Results on Google Drive, pixels and running files on the local disk; what happens
when either is lost.
"""

import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch

import utils
from kit import home as home_room
from kit.files import make_parent
from kit.fingerprint import hash_weights
from kit.record import read_record
from tools.notebooks import run

RECIPE = utils.Recipe(epochs=2, batch_size=32)


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """Colab's module `drive`: mounting makes the folder, as long as `refuses` says
    nothing else.
    """

    def mount(place):
        if stand_in.refuses:
            raise stand_in.refuses
        stand_in.mounted.append(place)
        (stand_in.folder if stand_in.whole else stand_in.folder.parent).mkdir(
            parents=True, exist_ok=True
        )

    stand_in = SimpleNamespace(
        mount=mount,
        mounted=[],
        refuses=None,
        whole=True,
        folder=tmp_path / "drive" / "MyDrive",
    )
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(drive=stand_in))
    monkeypatch.setattr(home_room, "COLAB", tmp_path)
    monkeypatch.delenv("COURSE_HOME", raising=False)
    return stand_in


def session(theme=1, **options) -> utils.Course:
    return utils.start(
        theme, **({"source": "sample", "profile": "smoke", "drive": True} | options)
    )


def fit(course, name, **options) -> utils.Run:
    network, data = utils.optimized_network(course), utils.load_data(course)
    return utils.fit(course, name, network, data, RECIPE, progress=False, **options)


def stop(epoch, row):
    raise KeyboardInterrupt


def searched(course) -> list[dict]:
    short = replace(RECIPE, epochs=1)
    study = utils.search(course, utils.load_data(course), "search", short, 2)
    return [trial.params for trial in study.trials]


def test_two_homes_share_no_running_files(drive, tmp_path):
    first, second = session(), session(home="second", dataset="solar")
    assert drive.mounted == [str(tmp_path / "drive")] * 2
    assert (first.home, second.home) == (
        drive.folder / "dl-course",
        drive.folder / "second",
    )
    assert first.local == tmp_path / "dl-course-local" / "MyDrive" / "dl-course"
    assert first.logs != second.logs


def test_a_later_notebook_neither_draws_nor_decodes(drive, monkeypatch):
    course = session()
    utils.build_index(course)
    pixels = np.array(utils.load_data(course).pixels)
    shutil.rmtree(home_room.COLAB / "dl-course-local")

    course = session(theme=2)
    with monkeypatch.context() as patch:
        patch.setattr(utils, "decode", lambda *_: 1 / 0)
        assert np.array_equal(utils.load_data(course).pixels, pixels)
    assert not course.root.exists()
    # where they are asked for, they come
    size = course.variant(image_size=40)
    shutil.copytree(course.data, size.data, ignore=lambda *_: ["cache"])
    assert utils.load_data(size).pixels.shape[-1] == 40 and course.root.exists()
    # a copy on Drive that is damaged is made again
    shutil.rmtree(home_room.COLAB / "dl-course-local")
    [cache] = (course.data / "cache").glob("*.npy")
    cache.write_bytes(cache.read_bytes()[:-100])
    assert np.array_equal(utils.load_data(session(theme=2)).pixels, pixels)
    assert cache.stat().st_size > pixels.nbytes


@pytest.mark.course
def test_new_session_finds_finished_and_interrupted_work(drive, capsys):
    course = session()
    utils.build_index(course)
    finished, unbroken = fit(course, "done"), fit(course, "unbroken")
    make_parent(course.logs / "production.csv").write_text("time,run_id\n1,a\n")
    utils.copy_to_home(course, course.logs)
    measured = utils.load_or_run(course, "probe", lambda: 7)
    trials = searched(course)
    with pytest.raises(KeyboardInterrupt):
        fit(course, "cut", on_epoch=stop)
    on_drive = [path.suffix for path in course.home.rglob("*") if path.is_file()]
    assert on_drive.count(".npy") == 1 and ".jpeg" not in on_drive
    # the runtime is gone, the Drive is not
    shutil.rmtree(home_room.COLAB / "dl-course-local")

    capsys.readouterr()
    course = session(theme=2)
    again = fit(course, "done")
    assert again.loaded and hash_weights(again.model) == hash_weights(finished.model)
    resumed = fit(course, "cut")
    said = capsys.readouterr().out
    assert "resumed in epoch 2" in said
    assert hash_weights(resumed.model) == hash_weights(unbroken.model)
    assert not list(course.home.rglob("running.pt"))
    assert list((course.runs / "tensorboard").rglob("events*"))
    assert (course.logs / "production.csv").read_text() == "time,run_id\n1,a\n"
    assert utils.load_or_run(course, "probe", lambda: 7) == measured == 7
    assert searched(course) == trials and len(trials) == 2


@pytest.mark.course
def test_cut_running_file_is_taken_from_the_drive(drive, capsys):
    course = session()
    utils.build_index(course)
    with pytest.raises(KeyboardInterrupt):
        fit(course, "cut", on_epoch=stop)
    running = next((course.local / "runs").glob("cut-*/running.pt"))
    running.write_bytes(running.read_bytes()[:100])
    assert len(fit(course, "cut").history) == 2
    assert "resumed in epoch 2" in capsys.readouterr().out


@pytest.mark.course
def test_full_drive_does_not_stop_a_training_and_loses_nothing(drive, capsys):
    course = session()
    utils.build_index(course)
    unbroken = fit(course, "unbroken")
    shutil.rmtree(course.runs)
    # every write below fails, as it does on a full Drive
    course.runs.write_text("where a folder was wanted")
    with pytest.raises(utils.CourseError, match="finished.pt could not be written"):
        fit(course, "full")
    said = capsys.readouterr().out
    assert "Not on Drive yet (" in said
    assert "the work goes on, kept on this machine in" in said
    assert len(list(course.local.rglob("running.pt"))) == 1  # both epochs are there
    course.runs.unlink()  # room was made
    run = fit(course, "full")
    assert "resumed in epoch 3" in capsys.readouterr().out
    assert hash_weights(run.model) == hash_weights(unbroken.model)


@pytest.mark.parametrize(
    "refuses, why",
    [
        (ValueError("mount failed"), "mount failed"),
        (
            RuntimeError("Error: credential propagation was unsuccessful"),
            "credential propagation was unsuccessful",
        ),
    ],
)
def test_refused_drive_is_one_sentence_and_starts_nothing(
    drive, tmp_path, refuses, why
):
    drive.refuses = refuses
    with pytest.raises(
        utils.CourseError,
        match=rf"was not opened \(.*{why}\): run this cell again .*DRIVE=False",
    ):
        session()
    assert not (tmp_path / "dl-course-local").exists() and not drive.folder.exists()


def test_mount_without_its_folder(drive):
    drive.whole = False
    with pytest.raises(
        utils.CourseError, match=r"Google Drive was not opened \(.*MyDrive"
    ):
        session()


def test_home_beside_the_drive_is_refused(drive, tmp_path):
    with pytest.raises(
        utils.CourseError,
        match="is not on Google Drive, but DRIVE=True: give a folder below",
    ):
        session(home=tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_files_brought_back_are_whole_or_not_there(drive):
    course = session()
    folder = course.local / "runs" / "events"
    folder.mkdir(parents=True)
    (folder / "a").write_text("a")
    (folder / "b").write_text("b")
    utils.copy_to_home(course, folder)
    (course.runs / "events" / ".a.elsewhere-12.tmp").write_text("left by a kill")
    shutil.rmtree(course.local / "runs")
    broken = course.runs / "events" / "broken"
    broken.symlink_to("nowhere")
    with pytest.raises(
        utils.CourseError,
        match="events could not be brought back .*then run the cell again",
    ):
        utils.copy_back(course, folder)
    assert not folder.exists()
    broken.unlink()
    utils.copy_back(course, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
    (folder / "a").write_text("newer")
    utils.copy_back(course, folder)
    assert (folder / "a").read_text() == "newer"


@pytest.mark.parametrize(
    ("colab", "allowed", "home", "on_drive"),
    [
        (True, True, None, True),
        (True, True, "mine", True),
        (True, False, None, False),
        (True, True, "/elsewhere", False),
        (False, True, None, False),
    ],
)
def test_drive_auto(
    drive, tmp_path, monkeypatch, capsys, colab, allowed, home, on_drive
):
    """A refusal is a sentence, not the end; where nobody is asked, nobody is told."""
    monkeypatch.setattr(home_room, "KIT", tmp_path / "kit")
    monkeypatch.setattr(home_room, "on_colab", lambda: colab)
    drive.refuses = None if allowed else ValueError("mount failed")
    home = home and home.replace("/elsewhere", str(tmp_path / "elsewhere"))
    course = session(drive="auto", home=home)
    assert course.home.is_relative_to(drive.folder) == on_drive
    assert bool(drive.mounted) == on_drive
    told = "Google Drive was not opened: the results stay on this machine"
    assert (told in capsys.readouterr().out) == (not allowed)


@pytest.mark.parametrize("kaggle", [False, True])
def test_a_kaggle_kernel_is_not_colab_though_it_has_its_packages(monkeypatch, kaggle):
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    if kaggle:
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert home_room.on_colab() != kaggle


def test_missing_theme_on_colab_speaks_of_catching_up(drive):
    with pytest.raises(
        utils.CourseError,
        match=r"run notebooks/theme1_data_analysis.*utils\.catch_up\(\)",
    ):
        session(theme=2)


@pytest.mark.slow
def test_eight_notebooks_on_eight_machines_share_only_the_drive(tmp_path, monkeypatch):
    """What Colab does: each notebook finds an empty local disk, and Drive as the one
    before has left it.
    """
    stand_in = tmp_path / "stand-in" / "google" / "colab"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text("")
    (stand_in / "drive.py").write_text(
        "import os\ndef mount(to):\n    os.makedirs(to + '/MyDrive', exist_ok=True)\n"
    )
    (stand_in / "files.py").write_text(
        "def download(path):\n    print('downloaded', path)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(stand_in.parent.parent))
    monkeypatch.delenv("COURSE_HOME", raising=False)
    content = tmp_path / "content"
    for path in run.notebooks(1, 8).values():
        notebook = nbformat.read(path, 4)
        moved = (
            f"import pathlib, kit.home as h\nh.COLAB = pathlib.Path({str(content)!r})"
        )
        notebook.cells.insert(2, nbformat.v4.new_code_cell(moved))
        copy = tmp_path / path.name
        nbformat.write(notebook, copy)
        parameters = {
            "SOURCE": "sample",
            "PROFILE": "smoke",
            "DRIVE": True,
            "HOME": None,
        }
        run.execute(copy, parameters, tmp_path)
        shutil.rmtree(content / "dl-course-local")
    home = content / "drive" / "MyDrive" / "dl-course"
    record = read_record(home)
    assert {f"theme{theme}" for theme in range(1, 9)} <= record.keys()
    assert (home / "hand-in-pneumonia.zip").exists()
    assert (home / "report" / "report.pdf").exists()
    # of the images only the decoded ones: Colab decodes slowly, and once is enough
    assert [path.parent.name for path in home.rglob("*.npy")] == ["cache"]
    assert not list(home.rglob("*.jpeg"))


# --- the first screen

MENU = (
    "Switch one on: Runtime > Change runtime type > T4 GPU (Exécution > Modifier le"
    " type d'exécution > GPU T4), then run from the first cell."
)


@pytest.mark.parametrize(
    "device, name, profile, says",
    [
        ("cuda", "Tesla T4", "full", "GPU: Tesla T4."),
        ("cpu", "", "quick", f"No GPU: profile quick on the CPU. {MENU}"),
        (
            "cpu",
            "",
            "full",
            f"No GPU: profile full on the CPU, which takes hours. {MENU}",
        ),
    ],
)
def test_first_screen_speaks_of_the_gpu(
    drive, open_course, monkeypatch, capsys, device, name, profile, says
):
    course = replace(
        open_course(), device=torch.device(device), profile=utils.PROFILES[profile]
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(home_room, "amp_dtype", lambda device: None)
    capsys.readouterr()
    utils.greet(course, "")
    assert says in capsys.readouterr().out.splitlines()


def test_first_screen_off_colab_names_no_menu(open_course, capsys):
    open_course()
    assert "No GPU: profile smoke on the CPU.\n" in capsys.readouterr().out
