"""Readers of what a home holds: settings, images, trainings, models, logs, arrays."""

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from hypothesis import strategies as st

import utils
from kit.evidence import theme_status
from kit.fingerprint import hash_weights
from kit.images import inspect_image, quality_report
from kit.record import HEADLINE_TAGS, SCHEMA, read_record
from models.baseline_cnn import BaselineCNN
from support.fuzzing import put, reader
from support.hostile import (
    PICTURES,
    broken,
    broken_csv,
    broken_json,
    edited,
    huge_png,
    picture,
)
from tools.grading import hostile as guards

STORY = {"dataset": "pneumonia", "profile": "smoke", "image_size": 32, "seed": 42}


# --- setup: JSON of the home


def story(kit) -> dict:
    return STORY | {"source": str(kit.drawn)}


RECORD = {
    "schema": SCHEMA,
    "tags": HEADLINE_TAGS,
    "meta": STORY | {"source": "sample", "recorded": "today"},
    "headline": {
        "baseline_test_accuracy": 0.75,
        "provider": "CPUExecutionProvider",
        "gate_passed": True,
    },
    "theme1": {
        "inputs": {"data/pneumonia/index.csv": "0" * 16},
        "recorded": "today",
        "pools": {"All": {"val": 3}},
    },
    "theme4": {"recorded": "today", "models": {"fp32": "0" * 16}},
    "criteria": {
        "theme1": [{"name": "it ran", "value": 1, "target": "== 1", "passed": True}]
    },
}


@reader(
    lambda kit: broken_json(story(kit)),
    quick=20,
    many=300,
    examples=lambda kit: [
        json.dumps(story(kit) | change).encode()
        for change in (
            {},
            {"profile": []},
            {"profile": "x"},
            {"image_size": None},
            {"image_size": 10**400},
            {"seed": {}},
        )
    ],
)
def course_json(kit, case):
    path = put(kit.home / "course.json", case)
    try:
        course = utils.start(1, "pneumonia", kit.drawn, "smoke", home=kit.home)
        assert (course.image_size, course.seed) == (32, 42)
        course = utils.start(1, "pneumonia", home=kit.home)
        assert (course.profile.name, course.source) == ("smoke", str(kit.drawn))
    except utils.CourseError:
        assert path.read_bytes() == case  # nothing was written over it
        raise
    finally:
        put(path, json.dumps(story(kit)).encode())


@reader(lambda kit: broken_json(RECORD), quick=60, many=600)
def results_json(kit, case):
    home = kit.home / "recorded"
    course, path = (
        replace(kit.course, home=home, local=home),
        put(home / "exports" / "results.json", case),
    )
    try:
        utils.record(course, "headline", {"baseline_test_accuracy": 0.5})
    except utils.CourseError:
        assert path.read_bytes() == case  # nothing was written over it
        raise
    utils.check_criteria(course, ("accuracy", 0.5, ">=", 0.7))
    assert all(isinstance(line, str) for line in utils.stale(course))
    record = read_record(home)
    assert record["headline"]["baseline_test_accuracy"] == 0.5
    assert len(record["criteria"]["theme1"]) == 1
    assert len(theme_status(home, record)) == 7


@reader(
    lambda kit: broken_json(
        {"date": "today", "hardware": "here", "result": {"a": [1, 2]}}
    ),
    quick=80,
    many=500,
)
def stored_results(kit, case):
    path = (
        kit.course.runs
        / f"work-{utils.fingerprint(result, (), (), kit.course.seed)}"
        / "result.json"
    )
    put(path, case)
    # what was stored, be it what it may, or the work is done again
    utils.load_or_run(kit.course, "work", result)
    assert set(json.loads(path.read_text())) >= {"date", "hardware", "result"}


def result() -> dict:
    return {"a": [1, 2]}


# --- data: folders, images, index, cache, zips


@reader(
    lambda kit: PICTURES,
    quick=120,
    many=1200,
    examples=lambda kit: [
        huge_png(13_000, 13_000),
        huge_png(2**31 - 1, 2**31 - 1),
        picture("GIF", "P", (9, 9), 3),
        picture("TIFF", "LAB", (9, 9)),
    ],
)
def images(kit, case):
    path = put(kit.home / "image", case)
    row = inspect_image(path)
    assert row["thumbnail"].shape == (32, 32)
    assert row["bytes"] == len(case)
    assert isinstance(row["flags"], list)
    for channels in (1, 3):
        try:
            pixels = utils.decode(path, 32, channels)
            assert pixels.shape == (channels, 32, 32) and pixels.dtype == np.uint8
            assert (
                pixels.tobytes()
                == utils.decode(io.BytesIO(case), 32, channels).tobytes()
            )
        except OSError as error:  # what its docstring promises
            assert str(error) and "unreadable" in row["flags"]


FILE_NAMES = [
    "a.jpeg",
    "A.JPEG",
    "person1_bacteria_1.jpeg",
    "IM-0001.jpeg",
    "._a.jpeg",
    ".jpeg",
    "a.jpeg.txt",
    "a,b.jpeg",
    'a"b.jpeg',
    "a\nb.jpeg",
    "a\rb.jpeg",
    "é\u202e.jpeg",
    "\udcff.jpeg",
    "-rf.jpeg",
    " .jpeg",
    "nan.jpeg",
    "x" * 250 + ".png",
    "a\\b.jpeg",
    "a/b/c.jpeg",
    "loop.jpeg",
    "link.jpeg",
    "pipe.jpeg",
]
FOLDER_NAMES = [
    "train/NORMAL",
    "train/pneumonia",
    "test/NORMAL",
    "val/NORMAL",
    "val/x",
    "train",
    "train/normal",
    "other",
    "chest_xray/train/NORMAL",
    "__MACOSX/train/NORMAL",
    "train/\udcff",
    "train/nan",
    "test/PNEUMONIA",
]
FILES = st.tuples(st.sampled_from(FOLDER_NAMES), st.sampled_from(FILE_NAMES), PICTURES)
LITTER = st.lists(FILES, min_size=1, max_size=5)
CLASSES = {"normal": "NORMAL", "pneumonia": "PNEUMONIA", "other": "NORMAL"}


@reader(
    lambda kit: st.tuples(LITTER, st.none() | broken_json(CLASSES)), quick=6, many=150
)
def dataset_folders(kit, case):
    litter, classes = case
    root = Path(
        shutil.copytree(
            kit.drawn / "chest_xray",
            kit.home / "raw" / "chest_xray",
            copy_function=os.link,
        )
    )
    home = kit.home / "indexed"
    try:
        for folder, name, content in litter:
            _lay(root / folder / name, content)
        if classes is not None:
            put(root / "classes.json", classes)
        index = utils.build_index(replace(kit.course, home=home, local=home, root=root))
        assert {"path", "label", "pool", "flags"} <= {*index}
        assert set(index["label"]) == {"NORMAL", "PNEUMONIA"}
        assert all((root / path).is_file() for path in index["path"])
        assert len(quality_report(index)) > 0
    finally:
        shutil.rmtree(kit.home / "raw")
        shutil.rmtree(home, ignore_errors=True)


def _lay(path: Path, content: bytes) -> None:
    """A file of the litter: some names stand for a link or a pipe."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if path.name == "pipe.jpeg":
        os.mkfifo(path)
    elif path.name in ("loop.jpeg", "link.jpeg"):
        path.symlink_to(path.name if path.name == "loop.jpeg" else "/etc/hostname")
    else:
        path.write_bytes(content)


@reader(
    lambda kit: broken_csv(kit.index),
    quick=60,
    many=800,
    examples=lambda kit: [
        kit.index.replace("NORMAL,NORMAL", "x,NORMAL").encode(),
        b"path\n",
        b"",
    ],
)
def index_csv(kit, case):
    put(kit.course.data / "index.csv", case)
    index = utils.load_index(kit.course)
    assert {"path", "label", "pool", "sha256"} <= {*index}
    if "flags" in index:
        assert list(quality_report(index)) == [
            "problem",
            "images",
            "share",
            "action",
        ]
    data = utils.load_data(kit.course)
    assert len(data.pixels) == len(data.labels) == (index["pool"] != "").sum()
    assert data.labels.min() >= 0


@reader(
    lambda kit: st.tuples(
        broken(kit.cache.read_bytes()),
        st.booleans(),
        broken_json({"sha256": "0" * 64, "images": 1, "date": "today"}),
    ),
    quick=25,
    many=300,
)
def pixel_cache(kit, case):
    content, consistent, stamp = case
    put(kit.course.data / "index.csv", kit.index.encode())
    path = put(kit.cache, content)
    put(path.with_suffix(".json"), stamp)
    if consistent:  # whoever writes the pixels can write their checksum
        utils.write_json(path.with_suffix(".json"), {"sha256": utils.hash_file(path)})
    pixels = utils.load_data(kit.course).pixels
    assert pixels.shape == kit.data.pixels.shape and pixels.dtype == np.uint8


# --- training: checkpoints and runs


def state(kit) -> dict:
    model = BaselineCNN(1, 2, 4)
    return {
        "architecture": "BaselineCNN",
        "config": model.config,
        "weights": dict(model.state_dict()),
        "optimizer": None,
        "classes": ["NORMAL", "PNEUMONIA"],
        "mean": [0.5],
        "std": [0.25],
        "size": 32,
        "channels": 1,
        "threshold": 0.5,
        "temperature": 1.0,
        "seed": 42,
        "dataset": "pneumonia",
        "trained_on": ["0" * 16],
    }


def saved(values) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def legacy(values) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def wrong_checkpoints(kit) -> list[bytes]:
    """Networks of any size, weights that are no weights."""
    expanded = {"features.0.weight": torch.zeros(1).expand(10**9)}
    changes = [
        {"config": {"channels": 1, "classes": 2, "width": 10**6}},
        {"config": {"width": -1}},
        {"config": 3},
        {"architecture": ["BaselineCNN"]},
        {"weights": expanded},
        {"architecture": "OptimizedCNN", "config": {"widths": [2] * 10**6}},
        {"classes": 3},
        {"architecture": "OptimizedCNN", "config": {"depth": 10**9}},
        {"config": {"width": 10**400}},
        {"weights": {1: 2}},
        {"weights": []},
        {"mean": "x"},
        {"std": [0.0]},
        {"size": torch.zeros(3)},
    ]
    return [saved(state(kit) | change) for change in changes]


@reader(
    lambda kit: (
        broken(saved(state(kit)))
        | broken(legacy(state(kit)))
        | edited(state(kit)).map(saved)
    ),
    quick=60,
    many=700,
    examples=wrong_checkpoints,
)
def checkpoints(kit, case):
    path = put(kit.home / "checkpoints" / "baseline.pth", case)
    assert isinstance(guards.check_checkpoint(path)["weights"], dict)
    model, _ = guards.load_model(path, kit.course.classes)
    assert isinstance(model, torch.nn.Module)
    network, _ = guards.served_network(kit.course, path)
    probabilities, _ = network(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
    assert probabilities.shape == (1, 2)


RECIPE = utils.Recipe(epochs=2, batch_size=8)


def train(kit) -> utils.Run:
    torch.manual_seed(0)
    return utils.fit(
        kit.course,
        "fuzzed",
        BaselineCNN(1, 2, 4),
        kit.data,
        RECIPE,
        tracker="none",
        progress=False,
    )


def finished(kit) -> tuple[Path, bytes]:
    """The stored training of `train`, whole."""
    put(kit.course.data / "index.csv", kit.index.encode())
    if not hasattr(kit, "run"):
        kit.run = train(kit)
        kit.finished = (kit.run.path / "finished.pt").read_bytes()
        kit.weights = hash_weights(kit.run.model)
    return kit.run.path / "finished.pt", kit.finished


def finished_cases(kit):
    _, whole = finished(kit)
    values = torch.load(io.BytesIO(whole), weights_only=True)
    return broken(whole) | edited(values).map(saved)


@reader(finished_cases, quick=8, many=200)
def finished_trainings(kit, case):
    path, _ = finished(kit)
    put(path, case)
    run = train(kit)
    assert isinstance(run, utils.Run) and isinstance(run.seconds, (int, float))
    # trained again, from its own first weights
    assert run.loaded or hash_weights(run.model) == kit.weights


# --- deployment: ONNX files


def onnx_file(**about) -> bytes:
    """The smallest network that answers as an export does."""
    make, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        make.make_node("Cast", ["pixels"], ["x"], to=kinds.FLOAT),
        make.make_node("Flatten", ["x"], ["embedding"]),
        make.make_node("MatMul", ["embedding", "w"], ["logits"]),
        make.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    weights = make.make_tensor("w", kinds.FLOAT, [1024, 2], [0.0] * 2048)
    outputs = [
        make.make_tensor_value_info(name, kinds.FLOAT, ["n", k])
        for name, k in (("probabilities", 2), ("embedding", 1024))
    ]
    pixels = make.make_tensor_value_info("pixels", kinds.UINT8, ["n", 1, 32, 32])
    model = make.make_model(
        make.make_graph(nodes, "g", [pixels], outputs, [weights]),
        ir_version=10,
        opset_imports=[make.make_opsetid("", 18)],
    )
    onnx.helper.set_model_props(
        model, {key: json.dumps(value) for key, value in (ONNX | about).items()}
    )
    return model.SerializeToString()


ONNX = {
    "classes": ["NORMAL", "PNEUMONIA"],
    "dataset": "pneumonia",
    "size": 32,
    "channels": 1,
    "threshold": 0.5,
    "temperature": 1.0,
    "seed": 42,
    "checkpoint": "0" * 16,
}


@reader(
    lambda kit: (
        broken(onnx_file())
        | edited(ONNX).map(
            lambda about: onnx_file(**about) if isinstance(about, dict) else onnx_file()
        )
    ),
    quick=60,
    many=500,
)
def onnx_files(kit, case):
    models = kit.home / "exports" / "models"
    path = put(models / "any.onnx", case)
    path = path.rename(models / f"{utils.hash_file(path)[:16]}.onnx")
    try:
        model = guards.onnx_model(path, kit.course.classes)
        assert model.classes == list(kit.course.classes)
        assert isinstance(model.threshold, (int, float))
        pixels = np.zeros((2, model.channels, model.size, model.size), np.uint8)
        assert model.predict(pixels).shape == (2, 2)
        assert isinstance(guards.onnx_metadata(case), dict)
    finally:
        path.unlink()
