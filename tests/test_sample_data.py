"""The drawn datasets: real files in the archives' layout, the same every time, and hard
enough.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sample_data
import utils
from kit.images import quality_report


def contents(folder: Path) -> dict:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file()
    }


@pytest.mark.parametrize(
    "draw", [sample_data.draw_chest_xray, sample_data.draw_solar_panels]
)
def test_same_seed_same_files(tmp_path, draw):
    first, second, other = (
        draw(tmp_path / name, 100, seed)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert contents(first) == contents(second)
    assert set(contents(first).values()).isdisjoint(
        {v for k, v in contents(other).items() if k != ".drawn.json"}
    )


def test_layout_and_names_are_those_of_the_archives(drawn):
    xrays = {
        path.parent.relative_to(drawn).as_posix() for path in drawn.rglob("*.jpeg")
    }
    assert xrays == {
        f"chest_xray/{s}/{c}"
        for s in ("train", "test")
        for c in ("NORMAL", "PNEUMONIA")
    }
    names = [
        path.name for path in (drawn / "chest_xray" / "train" / "PNEUMONIA").iterdir()
    ]
    assert all(
        name.startswith("person") and ("_bacteria_" in name or "_virus_" in name)
        for name in names
    )
    assert {path.parent.name for path in drawn.rglob("*.jpg")} == {
        "positive",
        "negative",
    }
    with Image.open(next(drawn.rglob("*.jpg"))) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")


def test_class_balance(drawn):
    labels = [
        path.parent.name for path in (drawn / "chest_xray" / "train").rglob("*.jpeg")
    ]
    assert 2 < labels.count("PNEUMONIA") / labels.count("NORMAL") < 4
    roofs = [path.parent.name for path in drawn.rglob("*.jpg")]
    assert abs(roofs.count("positive") - roofs.count("negative")) <= 2


def test_size_can_be_asked_for(tmp_path):
    place = sample_data.draw_solar_panels(tmp_path, 100, size=80)
    assert {
        Image.open(path).size
        for path in place.rglob("*.jpg")
        if path.name != "roof_0005.jpg"
    } == {(80, 80)}


def test_finished_folder_is_used_and_another_one_is_never_touched(tmp_path):
    place = sample_data.draw_solar_panels(tmp_path, 100)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*.jpg")}
    sample_data.draw_solar_panels(tmp_path, 100)
    with pytest.raises(FileExistsError, match="choose another folder or delete it"):
        sample_data.draw_solar_panels(tmp_path, 101)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*.jpg")} == before


def test_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def stop(place, many):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_data, "_plant_roof_faults", stop)
    with pytest.raises(KeyboardInterrupt):
        sample_data.draw_solar_panels(tmp_path, 100)
    assert list(tmp_path.iterdir()) == []


def test_too_few_images_are_refused(tmp_path):
    for draw in (sample_data.draw_chest_xray, sample_data.draw_solar_panels):
        with pytest.raises(ValueError, match="draw at least 100"):
            draw(tmp_path, 99)


@pytest.mark.course
@pytest.mark.parametrize("dataset", ["pneumonia", "solar"])
def test_planted_faults_are_found_and_nothing_else(tmp_path, dataset):
    course = utils.start(1, dataset, source="sample", profile="quick", home=tmp_path)
    report = quality_report(utils.build_index(course)).set_index("problem")["images"]
    assert report["unreadable"] == 1 and report["blank"] == 1
    assert report["exact_duplicate"] == (3 if dataset == "pneumonia" else 2)
    assert report["near_duplicate"] == (4 if dataset == "pneumonia" else 6)
    assert report.get("leak_into_test", 0) == (1 if dataset == "pneumonia" else 0)
    assert set(report.index) - {
        "gray_as_rgb",
        "few images of NORMAL",
        "leak_into_test",
    } == {"unreadable", "blank", "exact_duplicate", "near_duplicate"}
    assert json.loads((course.root / ".drawn.json").read_text())["images"] == 2400


@pytest.mark.course
@pytest.mark.parametrize(
    "dataset", ["pneumonia", pytest.param("solar", marks=pytest.mark.slow)]
)
def test_difficulty(tmp_path, dataset):
    """Linear under 0.70 balanced, baseline 0.70 to 0.85, optimised network
    significantly better than the baseline.
    """
    course = utils.start(1, dataset, source="sample", profile="quick", home=tmp_path)
    utils.build_index(course)
    data = utils.load_data(course)
    train, test = data.where("train"), data.where("test")
    flat = data.pixels.reshape(len(data.labels), -1) / 255
    linear = make_pipeline(
        StandardScaler(),
        LogisticRegression(C=1e-3, max_iter=200, class_weight="balanced"),
    )
    linear.fit(flat[train], data.labels[train])
    assert balanced_accuracy_score(data.labels[test], linear.predict(flat[test])) < 0.70
    answers = {}
    recipes = {
        "baseline": utils.baseline_recipe(data),
        "optimized": utils.optimized_recipe(data),
    }
    torch.manual_seed(course.seed)
    networks = {
        "baseline": utils.BaselineCNN(course.channels, 2),
        "optimized": utils.optimized_network(course),
    }
    for name, model in networks.items():
        run = utils.fit(
            course, name, model, data, recipes[name], progress=False, tracker="none"
        )
        answers[name] = utils.predict(run.model, data.loader("test", 256))[0].argmax(1)
    labels = data.labels[test]
    assert 0.70 <= balanced_accuracy_score(labels, answers["baseline"]) <= 0.85
    right = [answers[name] == labels for name in ("baseline", "optimized")]
    paired = utils.paired_row(*right)
    assert paired["low"] > 0 and paired["p_value"] < 0.05
    assert np.mean(answers["optimized"] == labels) > 0.8
