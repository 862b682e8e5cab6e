"""Opening the course: one home, one story; the record; work that is done once."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import utils
from kit import home as home_room
from kit import machine
from kit.record import read_record
from tools.grading import consistency
from tools.shared.sections import timing_of


def test_set_seed_fixes_every_generator():
    def draw():
        utils.set_seed(7, threads=1)
        return (
            np.random.rand(3).tolist(),  # noqa: NPY002 - the global one is what we test
            torch.rand(3).tolist(),
        )

    assert draw() == draw()
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    "wrong, word",
    [
        ({"dataset": "cats"}, "pneumonia, pneumonia3, solar"),
        ({"profile": "huge"}, "smoke, quick, full"),
        ({"image_size": 31}, "whole number from 32"),
    ],
)
def test_wrong_parameters_are_named(tmp_path, drawn, wrong, word):
    with pytest.raises(utils.CourseError, match=word):
        utils.start(
            1,
            **(
                {"source": drawn, "profile": "smoke", "home": tmp_path / "home"} | wrong
            ),
        )
    assert not (tmp_path / "home" / "course.json").exists()


def test_one_home_one_story(open_course, drawn):
    open_course()
    open_course()
    for other in ({"dataset": "solar"}, {"seed": 7}, {"image_size": 48}):
        with pytest.raises(
            utils.CourseError,
            match="already holds other settings.*choose another folder",
        ):
            open_course(**other)


def test_auto_takes_what_the_home_holds(open_course, tmp_path):
    first = open_course(image_size=40)
    # profile, size and source left to the home
    again = utils.start(1, home=tmp_path / "home")
    assert (again.profile, again.image_size, again.source) == (
        first.profile,
        40,
        first.source,
    )


def test_earlier_theme_is_asked_for(open_course):
    with pytest.raises(
        utils.CourseError,
        match=r"index\.csv is missing: run notebooks/theme1_data_analysis",
    ):
        open_course(theme=2)
    utils.build_index(open_course())
    with pytest.raises(
        utils.CourseError,
        match=r"baseline\.pth is missing: run notebooks/theme2_baseline_model",
    ):
        open_course(theme=3)


def test_folder_that_is_no_dataset(tmp_path):
    (tmp_path / "photos" / "holidays").mkdir(parents=True)
    with pytest.raises(
        utils.CourseError,
        match=r"holds no folder chest_xray/ \(it holds \['holidays'\]\)",
    ):
        utils.start(
            1, source=tmp_path / "photos", profile="smoke", home=tmp_path / "home"
        )
    with pytest.raises(utils.CourseError, match="no such folder"):
        utils.start(
            1, source=tmp_path / "nowhere", profile="smoke", home=tmp_path / "home"
        )


def test_home_that_cannot_be_made(tmp_path, drawn):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        utils.CourseError, match="cannot be made .*choose a folder of your own"
    ):
        utils.start(1, source=drawn, home=tmp_path / "file" / "home")


def test_home_without_write_permission(tmp_path, drawn, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o555)
    # nothing is forbidden to root: let the system say what a student would hear
    if os.geteuid() == 0:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(
        utils.CourseError, match="is not writable: choose another folder"
    ):
        utils.start(1, source=drawn, profile="smoke", home=home)
    assert list(home.iterdir()) == []


def test_sample_has_a_banner_and_real_folders_have_none(tmp_path, drawn, capsys):
    utils.start(1, source="sample", profile="smoke", home=tmp_path / "a")
    assert "SAMPLE DATA" in capsys.readouterr().out
    utils.start(1, source=drawn, profile="smoke", home=tmp_path / "b")
    assert "SAMPLE DATA" not in capsys.readouterr().out


def test_environment_is_written(open_course):
    course = open_course()
    text = (course.exports / "environment.txt").read_text()
    assert torch.__version__.split("+")[0] in text and "hardware" in text
    meta = json.loads((course.exports / "results.json").read_text())["meta"]
    assert meta["dataset"] == "pneumonia" and meta["seed"] == 42


def test_drive_outside_colab_is_refused(tmp_path):
    with pytest.raises(utils.CourseError, match="Google Colab only"):
        utils.start(1, drive=True, home=tmp_path)


def test_record_merges_and_headline_is_closed(open_course):
    course = open_course()
    utils.record(course, "headline", {"baseline_test_accuracy": np.float64(0.8)})
    utils.record(course, "headline", {"optimized_test_accuracy": 0.9})
    stored = json.loads((course.exports / "results.json").read_text())
    assert stored["headline"] == {
        "baseline_test_accuracy": 0.8,
        "optimized_test_accuracy": 0.9,
    }
    with pytest.raises(utils.CourseError, match="my_score: not a headline figure"):
        utils.record(course, "headline", {"my_score": 1.0})
    assert set(stored["tags"].values()) <= {"exact", "tolerance", "timing", "platform"}


@pytest.mark.parametrize("name", ["course.json", "exports/results.json"])
def test_damaged_record_is_explained_and_kept(open_course, name):
    path = open_course().home / name
    path.write_text(path.read_text()[:40])
    with pytest.raises(
        utils.CourseError, match=f"{Path(name).name} is damaged: move it away"
    ):
        open_course()
    assert len(path.read_text()) == 40


def test_record_is_read_whole_or_explained(open_course):
    course = open_course()
    path = course.exports / "results.json"
    assert read_record(course.home)["meta"]["seed"] == 42
    whole = path.read_text()
    for text, word in (
        (whole[:60], "is damaged"),
        ("[1, 2]", "is damaged"),
        ('{"schema": 0}', "schema 0, this kit"),
        ('{"meta": {}}', "schema None"),
        ('{"schema": 1, "meta": []}', "is damaged"),
    ):
        path.write_text(text)
        with pytest.raises(utils.CourseError, match=word):
            read_record(course.home)
        assert path.read_text() == text
    path.unlink()
    with pytest.raises(
        utils.CourseError, match="results.json is missing: run notebooks/theme1"
    ):
        read_record(course.home)


def test_notes_in_a_record_stay_and_another_schema_is_never_overwritten(open_course):
    course = open_course()
    path = course.exports / "results.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"notes": "ask about fold 3"}))
    utils.record(course, "theme2", {"x": 1})
    assert json.loads(path.read_text())["notes"] == "ask about fold 3"
    path.write_text(old := json.dumps(stored | {"schema": 0}))
    with pytest.raises(
        utils.CourseError,
        match="has schema 0, this kit reads schema 1: .* another HOME",
    ):
        utils.record(course, "theme2", {"x": 2})
    assert path.read_text() == old


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1},
        {"seed": 3.5},
        {"seed": "42"},
        {"seed": None},
        {"seed": 2**32},
        {"seed": True},
        {"image_size": "96"},
        {"image_size": 64.0},
        {"image_size": 20_000},
        {"image_size": 16},
    ],
)
def test_impossible_seed_or_size_is_one_sentence_and_makes_no_home(
    tmp_path, drawn, options
):
    name, value = next(iter(options.items()))
    with pytest.raises(
        utils.CourseError,
        match=f"{name.upper()}={value!r} cannot be: give a whole number",
    ):
        utils.start(1, source=drawn, profile="smoke", home=tmp_path / "home", **options)
    assert not (tmp_path / "home").exists()


def test_stale_section_is_named_until_it_runs_again(open_course, capsys):
    course = open_course()
    utils.build_index(course)
    path = course.data / "index.csv"
    utils.record(course, "theme2", {"inputs": utils.hash_inputs(course, path)})
    assert utils.stale(course) == []
    path.write_text(path.read_text() + "\n")
    capsys.readouterr()
    open_course()
    assert (
        "theme2 is stale: data/pneumonia/index.csv has changed since it ran"
        in capsys.readouterr().out
    )
    utils.record(course, "theme2", {"inputs": utils.hash_inputs(course, path)})
    assert utils.stale(course) == []


def test_checkpoint_compares(open_course, capsys):
    course = open_course()
    table = utils.check_criteria(
        course, ("a", 0.7, ">", 0.7), ("b", 0.71, ">", 0.7), ("c", True, "==", True)
    )
    assert table["passed"].tolist() == [False, True, True]
    assert "2 of 3 criteria met" in capsys.readouterr().out
    stored = json.loads((course.exports / "results.json").read_text())["criteria"][
        "theme1"
    ]
    assert [row["name"] for row in stored] == ["a", "b", "c"]


@pytest.mark.parametrize("busy", [False, True])
def test_a_time_of_a_busy_machine_meets_no_target(open_course, busy):
    course = open_course()
    rates = pd.Series([3.0, 3.1, 3.3]), pd.Series([0.0, 1.0 * busy, 1.0 * busy])
    row = utils.ratio_row(*rates)
    others = {"environment_documented": True, "crossing_groups": 0, "usable_share": 1.0}
    table = course.finish(loader_speedup=row, **others)
    assert table["passed"].tolist() == [True, not busy, True, True]
    assert table["name"].str.contains("busy machine").sum() == busy
    stored = utils.read_json(course.exports / "results.json")
    assert stored["headline"]["loader_speedup"] == 3.1
    told = timing_of(stored, "loader_speedup")
    assert told == {"speedup": 3.1, "speedup_low": 3.0, "speedup_high": 3.3} | {
        "others": 1.0 * busy,
        "busy": busy,
    }
    assert not list(consistency._unmet_criteria(stored))


@pytest.mark.parametrize("cores, told", [(0.1, False), (1.6, True)])
def test_a_busy_machine_is_told(open_course, monkeypatch, capsys, cores, told):
    monkeypatch.setattr(home_room, "used_by_others", lambda: cores)
    open_course()
    assert ("Other programs use 1.6 of" in capsys.readouterr().out) == told


@pytest.mark.parametrize("said, asked", [(None, "cpu"), ("cuda", "cuda")])
def test_one_setting_says_where_to_serve(open_course, monkeypatch, said, asked):
    monkeypatch.delenv("COURSE_PROVIDER", raising=False)
    if said:
        monkeypatch.setenv("COURSE_PROVIDER", said)
    assert open_course().provider == asked


def test_atomic_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    utils.write_json(path, 1)
    with pytest.raises(ZeroDivisionError), utils.atomic(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "1\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists(), reason="reads what Linux says of the processor"
)
def test_no_bfloat16_where_pytorch_is_told_to_do_without_the_wide_units(monkeypatch):
    monkeypatch.setattr(machine, "cpu_flags", machine.cpu_flags.__wrapped__)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert utils.amp_dtype(torch.device("cpu")) is None
    assert not [
        flag for flag in machine.cpu_flags() if flag.startswith(("amx", "avx512"))
    ]


def test_a_container_without_nvidia_smi_still_starts(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine._gpu_driver() == "unknown"
    # autocast asks in each step
    assert machine.cpu_flags() is machine.cpu_flags()


def measured(number):
    CALLS.append(number)
    return {"value": number}


CALLS: list[int] = []


def test_once_runs_once_and_says_so(open_course, capsys):
    course = open_course()
    CALLS.clear()
    assert (
        utils.load_or_run(course, "probe", measured, 3)
        == utils.load_or_run(course, "probe", measured, 3)
        == {"value": 3}
    )
    assert CALLS == [3]
    assert "probe: loaded, measured" in capsys.readouterr().out
    utils.load_or_run(course, "probe", measured, 4)
    utils.load_or_run(course, "probe", measured, 4, depends=("another key",))
    assert CALLS == [3, 4, 4]


def test_record_is_json_for_every_reader(tmp_path):
    """NaN is no JSON: a browser or Typst would refuse the whole file."""
    values = {
        "a": float("nan"),
        "b": [np.float32("inf"), np.int64(3), True, None],
        4: {"c": np.array([1.5, np.nan])},
        "d": Path("x"),
    }
    path = utils.write_json(tmp_path / "a.json", values)

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads(path.read_text(), parse_constant=refuse)
    assert read == {
        "a": None,
        "b": [None, 3, True, None],
        "4": {"c": [1.5, None]},
        "d": "x",
    }


def test_keep_goes_file_by_file_and_removes_nothing(open_course, tmp_path):
    course = replace(open_course(), local=tmp_path / "local")
    folder = course.local / "logs"
    folder.mkdir(parents=True)
    (folder / "old.csv").write_text("old")
    utils.copy_to_home(course, folder)
    (folder / "old.csv").unlink()
    (folder / "new.csv").write_text("new")
    utils.copy_to_home(course, folder)
    # nothing is lost
    assert sorted(path.name for path in (course.home / "logs").iterdir()) == [
        "new.csv",
        "old.csv",
    ]


def test_threads_are_those_of_the_home_unless_told_otherwise(
    open_course, monkeypatch, tmp_path
):
    """Chosen from the cores that were free when it was made; never again."""
    monkeypatch.delenv("COURSE_THREADS")
    monkeypatch.setattr(home_room.os, "sched_getaffinity", lambda _: range(4))
    chosen = []
    for busy in (0.2, 3.8):  # the second time the machine is busy
        monkeypatch.setattr(home_room, "used_by_others", lambda: busy)  # noqa: B023
        open_course(home=tmp_path / "home")
        chosen.append(torch.get_num_threads())
    open_course(home=tmp_path / "made while it is busy")
    assert [*chosen, torch.get_num_threads()] == [4, 4, 1]
    monkeypatch.setenv("COURSE_THREADS", "2")
    open_course(home=tmp_path / "home")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
