"""Readers under hostile files: a valid value or one sentence, no other error, no hang,
nothing written elsewhere.
"""

import io
import json
import os
import shutil
import zipfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.hostile import (
    BROKEN_ZIPS,
    PICTURES,
    bounded_memory,
    broken,
    broken_csv,
    broken_json,
    edited,
    huge_png,
    listing,
    no_hang,
    peak,
    picture,
    zipped,
)

import utils
from kit import datasets, log
from kit.archive import ArchiveError, unpack
from kit.evidence import theme_status
from kit.fingerprint import hash_weights
from kit.images import inspect_image, quality_report
from kit.promotion import AUDIT_COLUMNS
from kit.record import HEADLINE_TAGS, SCHEMA, read_record
from kit.watching import DRIFT_COLUMNS, read_drift_log
from models.baseline_cnn import BaselineCNN
from tools.grading import hostile as guards
from tools.grading import pdf, static, submission
from tools.report import build as report
from tools.shared import parsing
from tools.shared import secrets as leaks

GIB = 1 << 30
STORY = {"dataset": "pneumonia", "profile": "smoke", "image_size": 32, "seed": 42}
READERS = {}


@dataclass(frozen=True)
class Reader:
    """A reader of the kit, with the files that it is given.

    Attributes
    ----------
    read : callable(kit, case)
        Writes the case into kit.home, reads it as the kit does, and asserts that what
        comes back is valid.
    cases : callable(kit) -> strategy
    quick, many : int
        Cases in `make test` and in `make test-all`.
    examples : callable(kit) -> list of cases
        What fuzzing has found once, and what chance does not find.
    """

    read: object
    cases: object
    quick: int
    many: int
    examples: object


def reader(cases, quick: int, many: int, examples=lambda kit: []):
    def register(read):
        READERS[read.__name__] = Reader(read, cases, quick, many, examples)
        return read

    return register


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


def is_sentence(text: str) -> bool:
    return 10 < len(text.strip()) < 4000 and "Traceback" not in text


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


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


@reader(lambda kit: broken_json(RECORD), quick=100, many=900)
def json_files(kit, case):
    path = put(kit.home / "any.json", case)
    assert isinstance(utils.read_json(path), dict)
    assert isinstance(utils.read_json(path, precious=True), dict)


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
    assert (
        record["headline"]["baseline_test_accuracy"] == 0.5
        and len(record["criteria"]["theme1"]) == 1
    )
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
    assert (
        row["thumbnail"].shape == (32, 32)
        and row["bytes"] == len(case)
        and isinstance(row["flags"], list)
    )
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
        assert {"path", "label", "pool", "flags"} <= {*index} and set(
            index["label"]
        ) == {"NORMAL", "PNEUMONIA"}
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
    assert (
        len(data.pixels) == len(data.labels) == (index["pool"] != "").sum()
        and data.labels.min() >= 0
    )


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


@reader(lambda kit: BROKEN_ZIPS, quick=80, many=800)
def dataset_zips(kit, case):
    archive, target = put(kit.home / "raw.zip", case), kit.home / "raw" / "chest_xray"
    try:
        links = unpack(archive, target)
        assert target.is_dir() and not any(
            path.is_symlink() for path in target.rglob("*")
        )
        assert all(isinstance(name, PurePosixPath) for name in links)
    except ArchiveError as error:  # whose callers say what to do
        assert not target.exists()
        raise utils.CourseError(str(error)) from error
    finally:
        shutil.rmtree(kit.home / "raw", ignore_errors=True)


@reader(
    lambda kit: BROKEN_ZIPS,
    quick=60,
    many=800,
    examples=lambda kit: [
        good := zipped([("utils.py", b"", 0, 0), ("notebooks/", b"", 0, 0)]),
        good[:26] + b"9" * 5000 + good[26:],
    ],
)
def submission_zips(kit, case):
    archive, work = put(kit.home / "hand-in.zip", case), kit.home / "work"
    try:
        opened = submission.open_submission(archive, work)
        assert work in opened.root.parents or opened.root.parent == work
        assert not any(path.is_symlink() for path in work.rglob("*"))
    finally:
        shutil.rmtree(work, ignore_errors=True)


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
        assert model.classes == list(kit.course.classes) and isinstance(
            model.threshold, (int, float)
        )
        pixels = np.zeros((2, model.channels, model.size, model.size), np.uint8)
        assert model.predict(pixels).shape == (2, 2)
        assert isinstance(guards.onnx_metadata(case), dict)
    finally:
        path.unlink()


# --- monitoring: logs


def log_lines(columns, rows) -> str:
    return (
        "\n".join(
            ",".join(str(row.get(name, "")) for name in columns) + ",1" for row in rows
        )
        + "\n"
    )


def first_line(columns) -> str:
    return f"{','.join(columns)},{log.SCHEMA}\n"


INFERENCES = log_lines(
    utils.LOG_COLUMNS,
    [
        {
            "timestamp": f"2026-03-01T12:{minute:02}:00.000Z",
            "run_id": "a",
            "model": "m",
            "image": "x",
            "pred_class": 1,
            "confidence": 0.9,
            "latency_ms": 2.5,
            "batch": 1,
            "brightness": 100,
            "contrast": 20,
            "sharpness": 5,
            "status": "ok",
        }
        for minute in range(0, 40, 5)
    ],
)


@reader(
    lambda kit: broken_csv(INFERENCES, first_line(utils.LOG_COLUMNS)),
    quick=60,
    many=700,
)
def inference_logs(kit, case):
    path = put(kit.home / "logs" / "production.csv", case)
    log = utils.read_log(path)
    assert (
        list(log) == list(utils.LOG_COLUMNS) and str(log["pred_class"].dtype) == "Int64"
    )
    assert log["timestamp"].notna().all()
    utils.InferenceLogger(path, "b").log(1, 0.5, 1.0)
    assert path.read_bytes().startswith(case[: case.rfind(b"\n") + 1])
    assert len(utils.read_log(path, "b")) == 1
    windows = utils.window_statistics(log)
    assert {"requests", "error_rate"} <= {*windows}
    assert 0 <= utils.error_budget(log)["good_share"] <= 1


ALERTS = log_lines(
    utils.ALERT_COLUMNS,
    [
        {
            "timestamp": "2026-03-01T12:00:00.000Z",
            "run_id": "a",
            "rule": "slow",
            "severity": "critical",
            "event": event,
            "metric": "latency_p95",
            "value": 60,
            "threshold": 50,
            "runbook": "look",
        }
        for event in ("firing", "resolved")
    ],
)


@reader(
    lambda kit: broken_csv(ALERTS, first_line(utils.ALERT_COLUMNS)),
    quick=80,
    many=400,
)
def alert_logs(kit, case):
    path = put(kit.home / "logs" / "alerts.csv", case)
    alerts = utils.read_alerts(path)
    assert list(alerts) == list(utils.ALERT_COLUMNS) and alerts["value"].dtype == float
    manager = utils.AlertManager(utils.default_rules(), path, "a")
    assert manager.firing <= set(alerts["rule"])
    assert path.read_bytes().startswith(case[: case.rfind(b"\n") + 1])


DRIFTS = log_lines(DRIFT_COLUMNS, [dict.fromkeys(DRIFT_COLUMNS, 1)] * 3)
AUDITS = log_lines(
    AUDIT_COLUMNS,
    [
        {
            "timestamp": "2026-03-01T12:00:00.000Z",
            "who": "a",
            "event": event,
            "model": "0" * 16,
            "previous": "1" * 16,
        }
        for event in ("promoting", "in service", "rolling back", "rollback")
    ],
)


@reader(
    lambda kit: broken_csv(DRIFTS, first_line(DRIFT_COLUMNS)),
    quick=60,
    many=250,
)
def drift_logs(kit, case):
    table = read_drift_log(put(kit.home / "logs" / "drift.csv", case))
    assert list(table) == list(DRIFT_COLUMNS) and table["p_value"].dtype == float


@reader(
    lambda kit: broken_csv(AUDITS, first_line(AUDIT_COLUMNS)),
    quick=80,
    many=350,
)
def audit_logs(kit, case):
    put(kit.home / "exports" / "audit.csv", case)
    table = utils.read_audit(kit.course)
    assert list(table) == list(AUDIT_COLUMNS)


# --- drift and synthesis: arrays


def arrays(**values) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **values)
    return buffer.getvalue()


def claiming(shape: tuple, dtype: str = "<f8") -> bytes:
    """An array whose header claims any shape and which holds nothing."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def with_claim(valid: dict, name: str, shape: tuple) -> bytes:
    buffer = io.BytesIO(
        arrays(**{key: value for key, value in valid.items() if key != name})
    )
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(f"{name}.npy", claiming(shape))
    return buffer.getvalue()


ODD_ARRAYS = [
    np.array(None),
    np.zeros(0),
    np.array(["x"]),
    np.array(np.nan),
    np.zeros((2, 0)),
    np.zeros((4, 2, 2)),
    np.full((4, 2), np.nan),
    np.full((4, 2), np.inf),
    np.zeros(4, complex),
    np.array([b"x"] * 4),
    np.zeros(4, "M8[s]"),
    np.array([{}] * 4),
    np.zeros(4, [("a", "f4")]),
]
ANSWERS = {"probabilities": np.full((4, 2), 0.5), "labels": np.array([0, 1, 0, 1])}


def broken_arrays(valid: dict):
    """Arrays of other kinds and shapes, missing ones, or a broken file."""
    other = st.tuples(
        st.sampled_from(list(valid)), st.sampled_from([*ODD_ARRAYS, None])
    )

    def change(pairs):
        return arrays(
            **{
                name: array
                for name, array in (valid | dict(pairs)).items()
                if array is not None
            }
        )

    return broken(arrays(**valid)) | st.lists(other, min_size=1, max_size=2).map(change)


def claims(valid: dict) -> list[bytes]:
    return [
        with_claim(valid, name, shape)
        for name in valid
        for shape in ((10**9,), (10**9, 10**9), (4, 10**9), (-1,))
    ]


@reader(
    lambda kit: broken_arrays(ANSWERS),
    quick=80,
    many=450,
    examples=lambda kit: claims(ANSWERS),
)
def stored_answers(kit, case):
    path = put(kit.home / "exports" / "predictions" / "optimized_test.npz", case)
    try:
        probabilities, labels = guards.load_answers(path)
    except ValueError as error:  # what its callers turn into a finding
        raise utils.CourseError(str(error)) from error
    assert (
        probabilities.ndim == 2
        and len(probabilities) == len(labels)
        and labels.dtype.kind in "iu"
    )
    assert utils.right_answers(kit.home)["optimised"].dtype == bool


# --- strangers' files: notebooks, submissions, PDFs


CELL = {
    "cell_type": "code",
    "source": ["import torch\n", "%time x = 1"],
    "execution_count": 1,
    "metadata": {"tags": ["a"]},
    "outputs": [{"output_type": "stream", "name": "stdout", "text": "key = 'a'"}],
}
NOTEBOOK = {
    "cells": [
        CELL,
        {
            "cell_type": "markdown",
            "source": "# Theme 1",
            "metadata": {},
            "attachments": {},
        },
    ],
    "metadata": {"kernelspec": {"name": "python3"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}


@reader(lambda kit: broken_json(NOTEBOOK), quick=80, many=600)
def notebooks(kit, case):
    path = Path("theme1_data_analysis.ipynb")
    put(kit.home / path, case)
    assert all(isinstance(pair, tuple) for pair in leaks.secrets_in(kit.home, path))
    for cell in parsing.read_notebook(kit.home, path).cells:
        assert isinstance(cell.source, str) and isinstance(
            parsing.output_text(cell), str
        )
        try:
            parsing.parse_cell(cell.source)
        except (*parsing.NOT_PYTHON, RuntimeError):
            # what its callers turn into a finding
            pass


FOREIGN = {
    "exports/results.json": broken_json(RECORD),
    "course.json": broken_json(STORY),
    "report/report.json": broken_json({"pages": 3, "placeholders": [], "errors": []}),
    "notebooks/theme1_data_analysis.ipynb": broken_json(NOTEBOOK),
    "requirements.txt": broken(b"torch>=2.6\nnumpy==2.0\n"),
    "utils.py": broken(
        b"import numpy as np\n\n\ndef f(x):\n    return np.random.default_rng(0)\n"
    ),
    "exports/audit.csv": broken_csv(AUDITS, first_line(AUDIT_COLUMNS)),
    "exports/model.onnx": broken(onnx_file()),
    "report/report.pdf": broken(
        b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"
    ),
}


@reader(
    lambda kit: st.dictionaries(
        st.sampled_from(list(FOREIGN)), st.none(), min_size=1, max_size=4
    ).flatmap(
        lambda names: st.fixed_dictionaries({name: FOREIGN[name] for name in names})
    ),
    quick=25,
    many=350,
)
def submissions(kit, case):
    root = kit.home / "group"
    try:
        put(
            root / "notebooks" / "theme2_baseline_model.ipynb",
            json.dumps(NOTEBOOK).encode(),
        )
        for name, content in case.items():
            put(root / name, content)
        findings = static.checks(submission.open_submission(root, kit.home / "work"))
        assert findings and all(is_sentence(finding.says) for finding in findings)
        assert not [finding.says for finding in findings if "broke off" in finding.says]
    finally:
        shutil.rmtree(root)


def small_pdf() -> bytes:
    import pypdf

    writer, buffer = pypdf.PdfWriter(), io.BytesIO()
    for title in ("Introduction", "Theme 1: Data Analysis"):
        page = writer.add_blank_page(100, 100)
        writer.add_outline_item(title, page.page_number)
    writer.write(buffer)
    return buffer.getvalue()


@reader(lambda kit: broken(small_pdf()), quick=80, many=350)
def pdfs(kit, case):
    pages, headings = pdf.read_pdf(case)
    assert isinstance(pages, int) and all(
        isinstance(title, str) for title, _ in headings
    )


# --- the report: the group's own files and what the notebooks left


GROUP = (
    b'title = "Notre rapport"\nauthors = ["A", "B"]\ndate = "2026-03-01"\nlang = "fr"\n'
)
TABLE = "name,n,share\na,1,0.123456\nb,2,0.5\n"


@reader(
    lambda kit: st.tuples(
        broken(GROUP), broken_csv(TABLE), PICTURES, broken_json(RECORD)
    ),
    quick=8,
    many=120,
    examples=lambda kit: [
        (GROUP, TABLE.encode(), figure, json.dumps(RECORD).encode())
        for figure in (
            picture("PNG", "RGB", (9, 9)),
            picture("TIFF", "L", (9, 9)),
            b"P6 9999999 9999999 255\n",
        )
    ],
)
def report_inputs(kit, case):
    home = kit.home / "reported"
    names = (
        "report/group.toml",
        "exports/tables/theme1_pools.csv",
        "exports/figures/theme1_samples.png",
        "exports/results.json",
    )
    for name, content in zip(names, case, strict=True):
        put(home / name, content)
    summary = report.build(home)
    assert summary["pages"] > 0 and (
        home / "report" / "report.pdf"
    ).read_bytes().startswith(b"%PDF")


SECTION = (
    b'= Texte\n\nUne phrase. @fig:theme1_samples #figure-of("theme1_samples")'
    b" placeholder[rien]\n"
)


@reader(
    lambda kit: st.tuples(
        broken(SECTION), broken(b"@article{a, title={T}, author={A}, year=2020}\n")
    ),
    quick=6,
    many=120,
)
def report_texts(kit, case):
    home, (section, library) = kit.home / "written", case
    put(home / "exports" / "results.json", json.dumps(RECORD).encode())
    put(home / "report" / "sections" / "03_theme1_data_analysis.typ", section)
    put(home / "report" / "references.bib", library)
    assert report.build(home)["pages"] > 0
    assert (
        home / "report" / "sections" / "03_theme1_data_analysis.typ"
    ).read_bytes() == section


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
    files, repairs = datasets.find_images(root, "pneumonia")
    assert sorted(files["path"]) == [
        "train/NORMAL/a.jpeg",
        "train/NORMAL/\u202f é.jpeg",
    ]
    assert repairs.set_index("what")["files"]["names that are no text"] == 2


def test_a_foreign_network_is_no_model_of_the_course(kit):
    foreign = onnx_file(size=64)  # says 64 pixels, takes 32
    models = kit.home / "exports" / "models"
    path = put(models / "any.onnx", foreign)
    path = path.rename(models / f"{utils.hash_file(path)[:16]}.onnx")
    with pytest.raises(
        guards.HostileError, match=r"was not exported by this course.*takes .*32, 32"
    ):
        guards.onnx_model(path)


# --- all of them


@pytest.mark.parametrize("name", READERS)
def test_a_hostile_file_gives_a_value_or_a_sentence(name, kit, outside, capsys):
    before = peak()
    counts = fuzz(kit, name, READERS[name].quick, chosen=True)
    assert counts["value"], "no case was read to its end"
    assert peak() - before < GIB
    assert "Traceback" not in "".join(capsys.readouterr())


@pytest.mark.slow
def test_ten_thousand_cases(kit, outside, capsys):
    """Every reader on new cases each time, all of them even when one fails; the table
    is printed.
    """
    table, failed, before = {}, [], peak()
    for name in READERS:
        try:
            table[name] = fuzz(kit, name, READERS[name].many, chosen=False)
        except Exception as error:
            error.add_note(name)
            failed.append(error)
    assert "Traceback" not in "".join(capsys.readouterr())
    rows = pd.DataFrame.from_dict(table, orient="index").fillna(0).astype(int)
    with capsys.disabled():
        print(
            f"\n{rows.assign(cases=rows.sum(axis=1))}\n{rows.to_numpy().sum():,}"
            " hostile files"
        )
    if failed:
        raise ExceptionGroup("readers that a hostile file broke", failed)
    assert rows.to_numpy().sum() >= 10_000 and peak() - before < GIB
