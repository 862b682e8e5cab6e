"""What hangs on the course itself: its checkpoint, its variants, catching up."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import utils
from kit import home, record

VALUES = {
    "environment_documented": True,
    "loader_speedup": np.float64(2.5),
    "crossing_groups": 0,
    "usable_share": 0.95,
}


def test_finish_records_and_compares(open_course):
    course = open_course()
    utils.build_index(course)
    table = pd.DataFrame({"share": [0.5, 0.25]}, index=["NORMAL", "PNEUMONIA"])
    course.note(quality=table.reset_index(), own=table)
    shown = course.finish(reads=[course.data / "index.csv"], **VALUES)
    assert shown["passed"].all() and list(shown["name"])[1].startswith(
        "optimised loader"
    )
    results = json.loads((course.exports / "results.json").read_text())
    assert results["headline"] == {"loader_speedup": 2.5}
    section = results["theme1"]
    assert list(section["inputs"]) == ["data/pneumonia/index.csv"]
    assert section["own"] == {"NORMAL": {"share": 0.5}, "PNEUMONIA": {"share": 0.25}}
    assert section["quality"][1] == {"index": "PNEUMONIA", "share": 0.25}
    assert "loader_speedup" not in section and section["crossing_groups"] == 0
    assert utils.stale(course) == []


def test_finish_names_what_was_not_measured(open_course):
    course = open_course()
    del (values := dict(VALUES))["usable_share"]
    with pytest.raises(
        utils.CourseError, match="lacks usable_share: run the cells above"
    ):
        course.finish(**values)
    assert "theme1" not in json.loads((course.exports / "results.json").read_text())


def test_every_headline_figure_belongs_to_a_theme():
    """Criteria are named once, and compared as they are meant."""
    for theme, rows in record.CRITERIA.items():
        names = [name for name, *_ in rows]
        assert len(set(names)) == len(names), theme
        assert all(sign in record.COMPARE for _, _, sign, _ in rows)


def test_variant_leaves_its_home_as_it_is(open_course):
    course = open_course()
    first = utils.build_index(course)
    before = (course.data / "index.csv").read_bytes()
    other = course.variant(seed=7)
    second = utils.build_index(other)
    assert (course.data / "index.csv").read_bytes() == before
    assert other.home.is_relative_to(course.home) and other.seed == 7
    assert (second["path"] == first["path"]).all()
    assert (second["pool"] != first["pool"]).any()
    assert utils.load_data(other).key != utils.load_data(course).key
    assert course.variant(seed=7) == other  # opened again
    assert course.variant(image_size=40).image_size == 40
    with pytest.raises(utils.CourseError, match="SEED=-1"):
        course.variant(seed=-1)


def test_an_interrupted_theme_is_asked_for_and_goes_on(open_course):
    course = open_course()
    utils.build_index(course)
    data = utils.load_data(course)
    recipe = replace(utils.baseline_recipe(data), epochs=2)

    def train(**options):
        utils.set_seed(1)
        model = utils.BaselineCNN(1, 2, width=4)
        quiet = {"tracker": "none", "progress": False, "save_every": 0.0}
        return utils.fit(course, "baseline", model, data, recipe, **quiet, **options)

    def interrupt(epoch, row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(on_epoch=interrupt)
    [run] = course.runs.glob("baseline-*")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with pytest.raises(
        utils.CourseError, match=r"baseline\.pth is missing: .*theme2_baseline_model"
    ):
        open_course(theme=3)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before != {}
    told = []
    assert train(on_epoch=lambda epoch, row: told.append(epoch)).path == run
    assert told == [1, 2]


@pytest.fixture
def nothing_asked(monkeypatch):
    monkeypatch.setattr(home, "_asked", {})


def test_catch_up_before_anything_was_started(nothing_asked):
    with pytest.raises(
        utils.CourseError, match=r"Run the cell with utils\.start first"
    ):
        utils.catch_up()


@pytest.mark.course
def test_catch_up_runs_what_is_missing(open_course, nothing_asked, capsys):
    with pytest.raises(
        utils.CourseError, match=r"utils\.catch_up\(\).*runs theme 1 here"
    ):
        open_course(theme=2)
    utils.catch_up()
    assert "theme1_data_analysis" in capsys.readouterr().out
    open_course(theme=2)
    utils.catch_up()
    assert "Nothing is missing" in capsys.readouterr().out


@pytest.mark.course
def test_catch_up_says_why_it_stopped(open_course, nothing_asked, tmp_path, capsys):
    with pytest.raises(utils.CourseError):
        open_course(theme=2)
    (tmp_path / "home" / "course.json").write_text("{")
    with pytest.raises(utils.CourseError, match="The earlier themes stopped"):
        utils.catch_up()
    assert "course.json is damaged" in capsys.readouterr().out
