"""Readers under hostile files: a valid value or one sentence, no other error, no hang,
nothing written elsewhere.
"""

import io
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from support import readers_home, readers_logs, readers_strangers  # noqa: F401
from support.fuzzing import READERS, is_sentence, put
from support.hostile import bounded_memory, listing, no_hang, peak, picture
from support.readers_home import finished, onnx_file, saved, train
from support.readers_logs import INFERENCES, first_line

import utils
from kit import datasets
from kit.fingerprint import hash_weights
from models.baseline_cnn import BaselineCNN
from tools.grading import hostile as guards

pytestmark = pytest.mark.course

GIB = 1 << 30


@pytest.fixture(scope="module")
def kit(drawn, tmp_path_factory) -> SimpleNamespace:
    """A home with one valid file of each kind, among canaries."""
    place = tmp_path_factory.mktemp("surroundings")
    for name in (
        "canary.txt",
        "user/.kaggle/kaggle.json",
        "cwd/canary.txt",
        "tmp/canary.txt",
        "data/raw/canary.txt",
    ):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("canary")
    home = place / "home"
    course = utils.start(1, "pneumonia", drawn, "smoke", home=home)
    whole = utils.build_index(course)
    index = pd.concat([part.head(3) for _, part in whole.groupby(["pool", "label"])])
    index.to_csv(home / "data" / "pneumonia" / "index.csv", index=False)
    data = utils.load_data(course)
    cache = Path(data.pixels.filename)
    # no longer mapped to the file that the cases write over
    data.pixels = np.array(data.pixels)
    return SimpleNamespace(
        place=place,
        home=home,
        course=course,
        index=index.to_csv(index=False),
        drawn=drawn,
        data=data,
        cache=cache,
    )


@pytest.fixture
def outside(kit, monkeypatch):
    """Working folder, folder of the user and temporary folder lie
    among the canaries.
    """
    monkeypatch.chdir(kit.place / "cwd")
    monkeypatch.setenv("HOME", str(kit.place / "user"))
    monkeypatch.setenv("TMPDIR", str(kit.place / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)


def fuzz(kit, name: str, examples: int, chosen: bool) -> Counter:
    """Run one reader on so many cases, the same ones each time where they are `chosen`.

    Returns how many gave a value, and how many a sentence.
    """
    reader, counts = READERS[name], Counter()

    def one(case):
        before = listing(kit.place, kit.home)
        with no_hang():
            try:
                reader.read(kit, case)
                counts["value"] += 1
            except utils.CourseError as error:
                counts["sentence"] += 1
                assert is_sentence(str(error)), error
        assert listing(kit.place, kit.home) == before, (
            "something outside of the home has changed"
        )

    phases = set(Phase) - {Phase.reuse, Phase.explain}
    bound = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=chosen,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    with bounded_memory():
        for case in reader.examples(kit):
            one(case)
        bound(given(reader.cases(kit))(one))()
    return counts


# --- all of them


@pytest.mark.parametrize("name", READERS)
def test_a_hostile_file_gives_a_value_or_a_sentence(name, kit, outside, capsys):
    before = peak()
    counts = fuzz(kit, name, READERS[name].quick, chosen=True)
    assert counts["value"], "no case was read to its end"
    assert peak() - before < GIB
    assert "Traceback" not in "".join(capsys.readouterr())


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_new_cases(name, kit, outside, capsys):
    """Ten thousand of all readers together, others each time."""
    before = peak()
    fuzz(kit, name, READERS[name].many, chosen=False)
    assert peak() - before < GIB
    assert "Traceback" not in "".join(capsys.readouterr())


# --- what was found once, each with what must be true in its place


def test_an_index_with_a_class_of_another_dataset_trains_nothing(kit):
    path = put(
        kit.course.data / "index.csv", kit.index.replace(",NORMAL,", ",PANEL,").encode()
    )
    with pytest.raises(
        utils.CourseError,
        match="classes that this dataset has not.*theme1_data_analysis",
    ):
        utils.load_data(kit.course)
    put(path, kit.index.encode())
    assert (utils.load_data(kit.course).labels == kit.data.labels).all()


def test_a_cache_of_another_shape_is_made_again(kit):
    path = kit.cache
    np.save(path, np.zeros((2, 2), np.uint8))
    utils.write_json(path.with_suffix(".json"), {"sha256": utils.hash_file(path)})
    assert (utils.load_data(kit.course).pixels == kit.data.pixels).all()


def test_a_training_that_is_damaged_in_its_last_part_starts_from_its_own_weights(
    kit, capsys
):
    path, whole = finished(kit)
    values = torch.load(io.BytesIO(whole), weights_only=True)
    other = {
        name: torch.full_like(value, 9) for name, value in values["weights"].items()
    }
    put(path, saved(values | {"weights": other, "recipe": None}))
    run = train(kit)
    assert "is set aside" in capsys.readouterr().out
    assert not run.loaded and hash_weights(run.model) == kit.weights


class OwnHead(BaselineCNN):
    """A group's own network, which drops the part that it was made with."""

    def __init__(self, **config):
        super().__init__(**config)
        self.classifier = torch.nn.Linear(16, 100_000)
        self.classifier = torch.nn.Linear(16, 2)


def test_a_network_that_drops_a_part_is_still_loaded(kit, monkeypatch):
    monkeypatch.setitem(utils.MODELS, "OwnHead", OwnHead)
    model = OwnHead(channels=1, classes=2, width=4)
    path = utils.save_checkpoint(kit.home / "checkpoints" / "own.pth", model)
    assert hash_weights(guards.load_model(path)[0]) == hash_weights(model)


def test_one_line_of_1970_asks_for_no_million_of_windows(kit):
    old = INFERENCES.splitlines()[0].replace("2026", "1970") + "\n"
    head = first_line(utils.LOG_COLUMNS)
    log = utils.read_log(
        put(kit.home / "logs" / "clock.csv", (head + old + INFERENCES).encode())
    )
    with pytest.raises(
        utils.CourseError, match="goes from 1970-03-01 to 2026-03-01.*larger `every`"
    ):
        utils.window_statistics(log)
    assert len(utils.window_statistics(log[1:])) == 4


@pytest.mark.parametrize("old, new", [(",x,1,", ",x,1e300,"), ("2026", "9999")])
def test_a_line_with_an_impossible_value_is_told(kit, old, new):
    lines = INFERENCES.splitlines(keepends=True)
    lines[2] = lines[2].replace(old, new)
    content = first_line(utils.LOG_COLUMNS) + "".join(lines)
    with pytest.raises(utils.CourseError, match=r"odd\.csv is damaged"):
        utils.read_log(put(kit.home / "logs" / "odd.csv", content.encode()))


def test_names_that_no_table_can_hold_are_passed_over_and_said(kit):
    root = kit.home / "named" / "chest_xray"
    for name in ("a.jpeg", "a\nb.jpeg", "\udcff.jpeg", "\u202f é.jpeg"):
        put(root / "train" / "NORMAL" / name, picture("JPEG", "L", (9, 9)))
    found = datasets.find_images(root, "pneumonia")
    assert sorted(found.loc[found["folder"] != "", "path"]) == [
        "train/NORMAL/a.jpeg",
        "train/NORMAL/\u202f é.jpeg",
    ]
    assert (found["problem"] == "names that are no text").sum() == 2


def test_a_foreign_network_is_no_model_of_the_course(kit):
    foreign = onnx_file(size=64)  # says 64 pixels, takes 32
    models = kit.home / "exports" / "models"
    path = put(models / "any.onnx", foreign)
    path = path.rename(models / f"{utils.hash_file(path)[:16]}.onnx")
    with pytest.raises(
        guards.HostileError, match=r"was not exported by this course.*takes .*32, 32"
    ):
        guards.onnx_model(path)
