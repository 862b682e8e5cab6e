"""Deployment: the exported network answers like PyTorch, refuses what it was not made
for, and is measured fairly.
"""

import itertools
import json
import math
import shutil
import sys
import time
import types
from collections import namedtuple
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from onnx import numpy_helper
from support.networks import store, store_checkpoint

import utils
from kit import tensorrt
from kit.bench import torch_backend
from kit.files import KIT
from kit.machine import OtherPrograms
from kit.serving import (
    PROVIDERS,
    graph_table,
    layers_of,
    put_in_service,
    rewritten,
)

HANDOUT = {"latency_p50", "latency_p95", "latency_p99", "throughput"}


@pytest.fixture(scope="module")
def exported(drawn, tmp_path_factory) -> Path:
    """A home with a checkpoint and its model in service; read only."""
    course = utils.start(
        1, source=drawn, profile="smoke", home=tmp_path_factory.mktemp("exported")
    )
    utils.build_index(course)
    data = utils.load_data(course)
    stored = utils.export_onnx(course, store_checkpoint(course, data))
    put_in_service(course, stored)
    return course.home


@pytest.fixture
def data(exported, drawn, tmp_path):
    """A private copy of that home, to break."""
    home = shutil.copytree(exported, tmp_path / "home")
    return utils.load_data(utils.start(4, source=drawn, profile="smoke", home=home))


@pytest.fixture
def checkpoint(data):
    return data.course.checkpoints / "best_model.pth"


@pytest.fixture
def stored(data):
    return next((data.course.exports / "models").glob("*.onnx"))


@pytest.fixture
def model(data):
    return utils.OnnxModel(data.course.exports / "model.onnx", data.classes)


@pytest.fixture
def calibration(data):
    return data.pixels[utils.calibration_rows(data)]


# --- export


@pytest.mark.course
@pytest.mark.parametrize(
    "dataset, network, size",
    [
        ("pneumonia", "optimized", None),
        ("pneumonia", "baseline", None),
        ("solar", "optimized", None),
        # maps of odd width: pooling with a rest (ceil_mode)
        ("pneumonia3", "optimized", 45),
        ("pneumonia3", "optimized", 100),
    ],
)
def test_onnx_answers_like_pytorch_at_every_batch_size(
    open_course, dataset, network, size
):
    course = open_course(dataset, image_size=size)
    utils.build_index(course)
    data = utils.load_data(course)
    path = store_checkpoint(course, data, network)
    model, pixels = utils.OnnxModel(utils.export_onnx(course, path)), data.pixels[:40]
    table = utils.agreement(utils.served_network(course, path)[0], model, pixels)
    assert list(table.index) == [1, 2, 7, 32] and (table["n"] == 40).all()
    assert table["max_abs_diff"].max() <= 1e-5 and table["embedding_diff"].max() <= 1e-5
    assert table["changed"].sum() == 0
    assert model.predict(pixels).shape == (40, len(course.classes))


def test_normalisation_temperature_and_softmax_are_inside(data, checkpoint, model):
    """Against the other way to the same figures: the loader's normalisation, torch."""
    network, state = utils.load_model(checkpoint)
    logits, _ = utils.predict(network, data.loader("test", 16))
    pixels = data.pixels[data.where("test")]
    probabilities, embedding = model.predict_all(pixels, batch=7)
    expected = torch.from_numpy(logits).div(state["temperature"]).softmax(dim=1)
    assert np.allclose(probabilities, expected, atol=1e-5)
    assert embedding.shape == (len(pixels), network.classifier.in_features)


def test_agreement_sees_what_changed(data, checkpoint, model):
    """Against a network whose temperature alone differs."""
    network, _ = utils.served_network(data.course, checkpoint)
    network.temperature = 3.4
    pixels = torch.from_numpy(np.array(data.pixels))
    with torch.inference_mode():
        ours = network(pixels)[0].numpy()
    theirs = model.predict(data.pixels)
    row = utils.agreement(network, model, data.pixels, (32,)).loc[32]
    assert row["max_abs_diff"] == pytest.approx(np.abs(ours - theirs).max(), abs=1e-6)
    sides = (ours[:, 1] >= 0.3) != (theirs[:, 1] >= 0.3)
    assert row["changed"] == sides.sum() > 0 and row["embedding_diff"] <= 1e-5


def test_one_file_with_dynamic_batch_that_says_what_it_is(data, checkpoint, stored):
    # no .data beside it
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]
    loaded = onnx.load(stored)
    onnx.checker.check_model(loaded, full_check=True)
    (source,), shape = loaded.graph.input, loaded.graph.input[0].type.tensor_type
    assert source.name == "pixels" and shape.elem_type == onnx.TensorProto.UINT8
    assert shape.shape.dim[0].dim_param and shape.shape.dim[2].dim_value == 32
    outputs = [output.name for output in loaded.graph.output]
    assert outputs == ["probabilities", "embedding"]
    told = {item.key: json.loads(item.value) for item in loaded.metadata_props}
    expected = {
        "classes": ["NORMAL", "PNEUMONIA"],
        "dataset": "pneumonia",
        "size": 32,
        "mean": data.mean,
        "std": data.std,
        "threshold": 0.3,
        "temperature": 1.7,
        "seed": 42,
        "torch": torch.__version__,
        "checkpoint": utils.hash_file(checkpoint)[:16],
    }
    assert expected.items() <= told.items()
    assert str(KIT).encode() not in stored.read_bytes()  # no path of this machine
    # operators that older GPU runtimes have
    assert {part.version for part in loaded.opset_import if not part.domain} == {18}
    # the same checkpoint gives the same bytes
    assert utils.export_onnx(data.course, checkpoint) == stored
    assert stored.stem == utils.hash_file(stored)[:16]


def test_half_precision_keeps_the_types_of_its_ports(data, checkpoint, model):
    half = utils.OnnxModel(
        utils.export_onnx(data.course, checkpoint, dtype=torch.float16)
    )
    assert half.metadata["precision"] == "float16"
    assert half.path.stat().st_size < 0.6 * model.path.stat().st_size
    assert np.abs(half.predict(data.pixels) - model.predict(data.pixels)).max() < 0.02


def test_missing_or_foreign_checkpoint(data, open_course, checkpoint, tmp_path):
    with pytest.raises(utils.CourseError, match="run notebooks/theme3_optimization"):
        utils.export_onnx(data.course, tmp_path / "best_model.pth")
    solar = open_course("solar", home=tmp_path / "solar")
    with pytest.raises(utils.CourseError, match="NO_PANEL"):
        utils.export_onnx(solar, checkpoint)
    larger = store_checkpoint(data.course, data, name="larger.pth", size=64)
    with pytest.raises(utils.CourseError, match="'size': 64.*'size': 32"):
        utils.export_onnx(data.course, larger)


# --- what is in service


def test_changed_missing_and_foreign_files_are_refused(data, stored, model):
    with pytest.raises(utils.CourseError, match="knows the classes"):
        utils.OnnxModel(model.path, utils.DATASETS["solar"].classes)
    with pytest.raises(utils.CourseError, match="is missing: run notebooks/theme4"):
        utils.OnnxModel(model.path.with_name("other.onnx"))
    for about in ({"classes": ["a", "b"]}, model.metadata | {"size": 64}):
        foreign = utils.store_onnx(data.course, onnx.load(stored), about)
        with pytest.raises(utils.CourseError, match="not exported by this course"):
            utils.OnnxModel(foreign)
    content = bytearray(model.path.read_bytes())
    content[len(content) // 2] ^= 1
    model.path.write_bytes(content)
    with pytest.raises(utils.CourseError, match="have changed. Run notebooks/theme4"):
        utils.OnnxModel(model.path)
    stored.write_bytes(b"no model")
    renamed = stored.rename(stored.with_name(f"{utils.hash_file(stored)[:16]}.onnx"))
    with pytest.raises(utils.CourseError, match="no session on CPUExecutionProvider"):
        utils.OnnxModel(renamed)


@pytest.mark.parametrize(
    "pixels,words",
    [
        (np.zeros((1, 1, 32, 32), np.float32), "must be uint8.*float32"),
        (np.zeros((1, 1, 32, 32), np.int64), "these are int64"),
        ([[0]], "these are list"),
        (np.zeros((1, 1, 64, 64), np.uint8), r"these are uint8 \(1, 1, 64, 64\)"),
        (np.zeros((1, 3, 32, 32), np.uint8), r"uint8 \(N, 1, 32, 32\)"),
        (np.zeros((1, 32, 32), np.uint8), "one image as pixels.None."),
        (np.zeros((0, 1, 32, 32), np.uint8), "N >= 1"),
    ],
)
def test_what_the_network_was_not_made_for_is_refused(model, pixels, words):
    for ask in (model.predict, model.predict_all):
        with pytest.raises(utils.CourseError, match=words):
            ask(pixels)


def test_a_new_model_goes_into_service_whole_or_not_at_all(
    data, stored, model, monkeypatch
):
    before = model.path.read_bytes()

    def disk_full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copy", disk_full)
    with pytest.raises(utils.CourseError, match="untouched"):
        put_in_service(data.course, stored)
    assert model.path.read_bytes() == before
    assert not list(model.path.parent.glob(".*.tmp"))


def test_an_export_is_made_once_and_again_where_its_file_was_damaged(
    data, checkpoint, monkeypatch
):
    path = utils.export_onnx(data.course, checkpoint)
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", lambda *_, **__: 1 / 0)
        assert utils.export_onnx(data.course, checkpoint) == path
        path.write_bytes(whole[:-10])
        with pytest.raises(ZeroDivisionError):
            utils.export_onnx(data.course, checkpoint)
    assert utils.export_onnx(data.course, checkpoint) == path
    assert path.read_bytes() == whole


def test_every_operator_of_an_export_runs_on_a_gpu(data, checkpoint, stored):
    """Those that ONNX Runtime has CUDA kernels for at opset 18, and none that works on
    shapes, which would go back to the CPU.
    """
    kernels = "Add AveragePool Cast Concat Conv Div Gemm MaxPool ReduceMax ReduceMean"
    kernels = {*kernels.split(), "Relu", "Softmax", "Sub"}
    half = utils.export_onnx(data.course, checkpoint, dtype=torch.float16)
    for path in (stored, half):
        model = onnx.load(path)
        assert {node.op_type for node in model.graph.node} <= kernels
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]


# --- providers


def test_provider_that_does_not_start_is_refused_with_the_way_on(
    stored, monkeypatch, capsys
):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    cuda, cpu = PROVIDERS["cuda"], PROVIDERS["cpu"]
    way_on = f"{cuda}.*or serve on the CPU.*COURSE_PROVIDER=cpu"
    for ask in (
        lambda: utils.make_session(stored, "cuda"),
        lambda: utils.benchmark_onnx(stored, (1, 1, 32, 32), providers=[cuda, cpu]),
    ):
        with pytest.raises(utils.CourseError, match=way_on):
            ask()
    with pytest.raises(utils.CourseError, match="provider='Abacus' is unknown"):
        utils.benchmark_onnx(stored, (1, 1, 32, 32), providers=["Abacus"])
    assert utils.onnx_backend(stored, "on the GPU", "cuda") == []
    assert "on the GPU is left out: " in capsys.readouterr().out

    # as onnxruntime-gpu behaves without a GPU: CUDA is listed, the session is the CPU's
    fallen = types.SimpleNamespace(get_providers=lambda: [cpu])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda, cpu])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: fallen)
    with pytest.raises(utils.CourseError, match=f"fell back to {cpu}.*on the CPU"):
        utils.make_session(stored, "cuda")


# --- INT8


def test_calibration_set_is_stratified_and_from_train_only(data):
    train, rows = data.where("train"), utils.calibration_rows(data, images=20)
    assert np.bincount(data.labels[rows]).tolist() == [10, 10]
    assert set(rows) <= set(train) and len(set(rows)) == len(rows)
    assert np.array_equal(rows, utils.calibration_rows(data, images=20))
    data.index.loc[train[data.labels[train] == 0][3:], "pool"] = "val"
    with pytest.raises(
        utils.CourseError, match="needs 8 training images of class NORMAL, there are 3"
    ):
        utils.calibration_rows(data)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"pixels": lambda p: p[:0]}, r"these are uint8 \(0, 1, 32, 32\)"),
        ({"pixels": lambda p: p / np.float32(255)}, "these are float32"),
        ({"pixels": lambda p: p[:, :, :16]}, r"these are uint8 \(\d+, 1, 16, 32\)"),
        ({"pixels": lambda p: p.tolist()}, "these are list"),
        ({"keep_float": lambda p: ["conv9"]}, "has no node conv9: its layers are node"),
        ({"only": lambda p: ["conv9"]}, "has no node conv9"),
        ({"only": lambda p: ["node_relu"]}, "Nothing of this network would be INT8"),
        ({"path": lambda p: "int8"}, "is INT8 already"),
    ],
)
def test_what_cannot_be_quantized_is_told(data, stored, calibration, change, told):
    given = {"path": stored, "pixels": calibration}
    (name, of), *_ = change.items()
    given[name] = of(calibration)
    if name == "path":
        given["path"] = utils.quantize_int8(data.course, stored, calibration)
    before = sorted(stored.parent.iterdir())
    with pytest.raises(utils.CourseError, match=told):
        utils.quantize_int8(data.course, **given)
    assert sorted(stored.parent.iterdir()) == before


@pytest.mark.parametrize(
    "break_it, told",
    [
        (
            lambda n, s: n.classifier.weight.data[0, 0].fill_(np.nan),
            "first: classif",
        ),
        (lambda n, s: n.classifier.bias.data.fill_(np.inf), "in 1 of"),
        (lambda n, s: s.update(temperature=math.nan), "the first: temperature"),
        (lambda n, s: s.update(std=[math.nan]), "the first: pixel_std"),
    ],
)
def test_a_network_that_has_diverged_is_not_exported(data, checkpoint, break_it, told):
    network, state = utils.load_model(checkpoint)
    kept = {"architecture", "config", "weights", "optimizer"}
    state = {name: value for name, value in state.items() if name not in kept}
    break_it(network, state)
    path = utils.save_checkpoint(checkpoint.with_name("nan.pth"), network, **state)
    with pytest.raises(utils.CourseError, match=rf"nan\.pth holds NaN .*{told}"):
        utils.export_onnx(data.course, path)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"provider": "gpu"}, "provider='gpu' is unknown: choose one of cpu, cuda"),
        ({"provider": None}, "provider=None is unknown"),
        ({"level": "max"}, "level='max' is unknown: choose one of none, basic"),
    ],
)
def test_ways_to_serve_that_are_none(stored, options, told):
    with pytest.raises(utils.CourseError, match=told):
        utils.make_session(stored, **options)


@pytest.mark.parametrize(
    "name", ["CPU", "CPUExecutionProvider", "cpuexecutionprovider"]
)
def test_a_provider_by_any_of_its_names(stored, name):
    session = utils.make_session(stored, name)
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_a_type_that_no_file_holds(data, checkpoint):
    with pytest.raises(utils.CourseError, match="dtype=torch.bfloat16 is unknown"):
        utils.export_onnx(data.course, checkpoint, dtype=torch.bfloat16)


def test_int8_is_u8s8_per_channel(data, stored, model, calibration, caplog):
    path = utils.quantize_int8(data.course, stored, calibration)
    assert not caplog.records  # the advice to preprocess is not for us
    nodes, constants = onnx.load(path).graph.node, {}
    for tensor in onnx.load(path).graph.initializer:
        constants[tensor.name] = numpy_helper.to_array(tensor)
    weights = [
        (constants[node.input[0]], constants[node.input[1]])
        for node in nodes
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    ]
    kernels = [(w, scale) for w, scale in weights if w.ndim == 4]
    assert len(kernels) == sum(node.op_type == "Conv" for node in nodes) > 4
    for values, scale in kernels:  # one scale an output channel
        assert values.dtype == np.int8 and scale.shape == (values.shape[0],)
    quantized = [node for node in nodes if node.op_type == "QuantizeLinear"]
    assert {constants[node.input[2]].dtype for node in quantized} == {np.dtype("uint8")}
    small = utils.OnnxModel(path, data.classes)
    told = small.metadata
    assert told["precision"].startswith("int8 QDQ U8S")
    assert told["float_model"] == stored.stem and told["kept_float"] == []
    assert told["calibration_images"] == len(calibration)
    for name in ("mean", "std", "threshold", "temperature", "checkpoint", "seed"):
        assert told[name] == model.metadata[name]
    assert np.abs(small.predict(data.pixels) - model.predict(data.pixels)).mean() < 0.05


def test_the_scan_finds_the_layer_that_hurts_and_layers_can_stay_in_float(
    data, calibration
):
    """In one block a map is made a thousand times larger than the others: eight bits
    cannot hold both.
    """
    course = data.course
    path = store_checkpoint(course, data, "no shortcuts", "plain.pth")
    network, _ = utils.load_model(path)
    block = next(layer for layer in network.features if hasattr(layer, "conv2"))
    with torch.no_grad():
        block.norm1.weight[0] *= 1e3
        block.norm1.bias[0] = 1e3
        block.conv2.weight[:, 0] /= 1e3
    stored = utils.export_onnx(course, store(course, data, network, "spiky.pth"))
    labels = utils.OnnxModel(stored).predict_all(data.pixels)[0].argmax(1)
    layers = layers_of(stored)

    def changed(**nodes):
        path = utils.quantize_int8(course, stored, calibration, **nodes)
        model = utils.OnnxModel(path)
        assert model.metadata["kept_float"] == nodes.get("keep_float", [])
        return (model.predict_all(data.pixels)[0].argmax(1) != labels).mean()

    harm = {node: changed(only=[node]) for node in layers}
    worst = sorted(harm, key=harm.get)[::-1]
    assert layers[worst[0]] == "features.4.conv2"
    assert changed(keep_float=worst[:4]) < changed() / 2


# --- the benchmark


def fake(name, run=lambda pixels: pixels):
    return utils.Backend(name, run, "cpu", "float32", "fake", Path(__file__))


@pytest.fixture
def others(monkeypatch):
    """Sets what other programs use in each round: cores, the last one for ever."""

    def use(*cores):
        rounds = itertools.chain(cores, itertools.repeat(cores[-1]))
        monkeypatch.setattr("kit.bench.OtherPrograms.cores", lambda self: next(rounds))

    return use


def test_rounds_are_interleaved_on_the_same_images(others):
    others(0.0)
    calls = []

    def backend(name):
        return fake(name, lambda pixels: calls.append((name, len(pixels))))

    pixels = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    rows = utils.benchmark(
        [*map(backend, "abc")], pixels, batches=(1, 8), rounds=3, seconds=0
    )
    turns = [key for key, _ in itertools.groupby(calls)]
    assert "".join(name for name, batch in turns if batch == 8) == "abcbcacab"
    assert all(len(row["ms"]) >= 3 for row in rows) and len(rows) == 3 * 3 * 2


@pytest.mark.parametrize(
    "cores, kept, busy",
    [
        ([0.1, 0.0, 0.2], {0, 1, 2}, False),
        ([0.1, 1.5, 0.2, 0.9, 0.0], {0, 2, 4}, False),  # two rounds are taken again
        ([1.5, 1.2, 0.3, 1.4, 1.9, 0.9], {1, 2, 5}, True),  # six, none of them calm
        ([1.5, 0.2, 0.3, 1.4, 0.1, 0.9], {1, 2, 4}, False),  # two calm ones of three
    ],
)
def test_disturbed_rounds_are_taken_again_and_told(others, cores, kept, busy):
    others(*cores, 0.0)
    rows = utils.benchmark([fake("a"), fake("b")], np.zeros((1, 1)), (1,), 3, 0)
    assert {row["round"] for row in rows} == kept
    rows = [row | {"ms": [1.0 + (row["backend"] == "a")]} for row in rows]
    table = utils.benchmark_table(rows, "a").set_index("backend")
    assert (table["busy"] == busy).all() and table.loc["b", "speedup"] == 2


@pytest.mark.parametrize(
    "ratios, busy",
    [([3.0, 3.3, 4.0, 3.1, 3.2], False), ([3.0, 3.3, 9.0, 3.1, 3.2], False)]
    + [([3.0, 3.3, 9.0, 8.0, 3.2], True)],
)
def test_rounds_far_from_one_another_tell_that_something_disturbed(ratios, busy):
    """One round of five moves no median; two that differ leave no figure."""
    assert utils.ratio_row(pd.Series(ratios), pd.Series([0.0] * 5))["busy"] == busy


def test_the_work_of_other_programs_is_told_from_ours(monkeypatch):
    """In 2 s the machine worked 3 s, 1 s of it we and a child of ours."""
    whole = namedtuple("whole", "user system idle iowait guest")
    machine = iter([whole(10, 5, 100, 1, 4), whole(12, 6, 101, 9, 5)])
    ours = iter([(2.0, 1.0, 0.5, 0.0, 7.0), (2.25, 1.25, 0.75, 0.25, 9.0)])
    clock = iter([50.0, 52.0])
    monkeypatch.setattr("psutil.cpu_times", lambda: next(machine))
    process = types.SimpleNamespace(cpu_times=lambda: next(ours))
    monkeypatch.setattr("psutil.Process", lambda: process)
    monkeypatch.setattr("kit.machine.time.perf_counter", lambda: next(clock))
    assert OtherPrograms().cores() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "times, calls",
    [
        ([100, 50, 20, 9, 5, 5, 5, 5, 5, 5, 5], 9),
        ([5.0] * 10, 6),
        ([1.5**n for n in range(40)], 30),
    ],
)
def test_warm_up_ends_when_the_times_are_stable(monkeypatch, times, calls):
    clock = iter(times)
    monkeypatch.setattr(utils, "timed", lambda *_: next(clock))
    assert utils.warm_up(None, None) == calls


def test_warm_up_of_slow_calls_is_short():
    assert utils.warm_up(lambda _: time.sleep(0.05), None, seconds=0.01) == 3


def test_table_against_numpy():
    rng = np.random.default_rng(0)
    rows = [
        {"backend": name, "batch": 4, "round": n, "others": 0.1}
        | {"ms": rng.gamma(4, scale, 50)}
        for n in range(3)
        for name, scale in (("slow", 2.0), ("quick", 0.5))
    ]
    table = utils.benchmark_table(rows, "slow").set_index("backend")
    quick, mine = table.loc["quick"], np.concatenate([row["ms"] for row in rows[1::2]])
    for name, percent in (("p50_ms", 50), ("p95_ms", 95), ("p99_ms", 99)):
        assert quick[name] == pytest.approx(np.percentile(mine, percent))
    assert quick["images_s"] == pytest.approx(4000 / mine.mean())
    medians = [np.median(row["ms"]) for row in rows]
    ratios = [medians[2 * n] / medians[2 * n + 1] for n in range(3)]
    assert quick["speedup"] == pytest.approx(np.median(ratios))
    assert quick["speedup_low"] == pytest.approx(min(ratios))
    assert table.loc["slow", "speedup"] == 1 and quick["calls"] == 150


def test_a_finished_benchmark_loads_and_is_measured_again_on_demand(
    data, stored, model, capsys, monkeypatch
):
    calls, ask = [], model.session.run
    model.session = types.SimpleNamespace(
        run=lambda *given: calls.append(1) or ask(*given)
    )
    changed = model.metadata | {"seed": 43}
    other = utils.OnnxModel(utils.store_onnx(data.course, onnx.load(stored), changed))
    pixels = np.array(data.pixels[:1])

    def measure(of=model, **options):
        backends, before = [fake("a", of.predict)], len(calls)
        work = utils.benchmark, backends, pixels, (1,), 1, 0
        utils.load_or_run(data.course, "b", *work, **options)
        return len(calls) > before, capsys.readouterr().out

    assert measure() == (True, "")
    ran, said = measure()
    assert not ran and said.startswith("b: loaded, measured")
    assert measure(again=True)[0]
    assert measure(other)[1] == ""  # another file is another benchmark
    monkeypatch.setattr("kit.bench.hardware", lambda: "another machine")
    assert measure()[1] == ""


def test_every_backend_answers_alike(data, checkpoint, stored, calibration):
    int8 = utils.quantize_int8(data.course, stored, calibration)
    network, _ = utils.served_network(data.course, checkpoint)
    eager = partial(torch_backend, network, checkpoint)
    backends = [
        eager("eager"),
        eager("tuned", channels_last=True, dtype=torch.bfloat16),
        *utils.onnx_backend(stored, "fp32"),
        *utils.onnx_backend(int8, "int8"),
    ]
    pixels = np.array(data.pixels[:8])
    answers = {backend.name: backend.run(pixels) for backend in backends}
    assert np.abs(answers["fp32"] - answers["eager"]).max() < 1e-5
    for probabilities in answers.values():
        assert probabilities.dtype == np.float32
        assert np.abs(probabilities - answers["eager"]).max() < 0.1
    assert [b.precision for b in backends[:3]] == ["float32", "bfloat16", "float32"]


def test_names_of_the_handout(stored, checkpoint):
    network = utils.load_model(checkpoint)[0].train()
    ours = utils.benchmark_model(
        network, (2, 1, 32, 32), device="cpu", num_runs=5, warmup=1
    )
    theirs = utils.benchmark_onnx(stored, (2, 1, 32, 32), num_runs=5, warmup=1)
    assert ours.keys() == HANDOUT and theirs.keys() == HANDOUT | {"provider"}
    assert theirs["provider"] == "CPUExecutionProvider"
    assert ours["latency_p50"] <= ours["latency_p99"] and ours["throughput"] > 0
    # the caller's network is left as it was
    assert all(part.training for part in network.modules())
    if not torch.cuda.is_available():
        with pytest.raises(utils.CourseError, match='pass device="cpu"'):
            utils.benchmark_model(network, (2, 1, 32, 32))


def test_pytorch_is_timed_with_cudnn_on(monkeypatch):
    """As on a GPU; the network stays on the CPU and looks at the switches."""

    class Spy(torch.nn.Module):
        model = torch.nn.Identity()

        def to(self, *_, **__):
            return self

        def forward(self, pixels):
            seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark))
            return (pixels,)

    seen, before = [], torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: self)
    run = torch_backend(Spy(), Path(), "spy", "cuda").run
    run(np.zeros((1, 1, 2, 2), np.uint8))
    assert seen == [(True, True)] and torch.backends.cudnn.benchmark == before


def test_pareto_front_against_its_definition():
    table = pd.DataFrame(
        np.random.default_rng(3).integers(0, 5, (40, 3)),
        columns=["ms", "mb", "accuracy"],
    )

    def beats(a, b):
        signed = [(a.ms, b.ms), (a.mb, b.mb), (-a.accuracy, -b.accuracy)]
        return all(x <= y for x, y in signed) and any(x < y for x, y in signed)

    rows = list(table.itertuples())
    expected = [not any(beats(other, row) for other in rows) for row in rows]
    assert utils.pareto(table, low=("ms", "mb"), high=("accuracy",)) == expected
    assert 0 < sum(expected) < 40
    assert utils.cost_per_million(1000, price_per_hour=3.6) == pytest.approx(1.0)


def test_graph_table_counts_what_onnx_runtime_fused(stored, data, checkpoint):
    plain = utils.export_onnx(data.course, checkpoint, fuse=False)
    table = graph_table(
        {"plain": plain, "exported": stored, "all": rewritten(stored, "all")}
    )
    norms = table.loc["BatchNormalization"]
    assert norms["plain"] > 0 == norms["exported"]
    nodes = table.loc["all nodes"]
    assert nodes.is_monotonic_decreasing
    assert nodes["exported"] == len(onnx.load(stored).graph.node)


# --- TensorRT


def test_tensorrt_without_a_gpu_is_a_documented_result(data, stored):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    told = tensorrt.attempt(data.course, stored)
    written = utils.read_json(data.course.exports / "tensorrt_attempt.json")
    assert written == told and not any(row["works"] for row in told["attempts"])
    assert "TensorrtExecutionProvider" in told["attempts"][0]["message"]
    says = "TensorRT is not installed. ModuleNotFoundError: No module named 'tensorrt'"
    assert told["attempts"][1]["message"] == says
    assert not (data.course.exports / "model.trt").exists()


@pytest.mark.parametrize("parses", [True, False])
def test_tensorrt_builds_an_engine_or_says_which_operator_it_lacks(
    data, stored, monkeypatch, parses
):
    """With a stand-in for the package: this machine has none."""
    package = mock.MagicMock(__version__="10.9")
    builder, parser = package.Builder(), package.OnnxParser()
    parser.parse.return_value, parser.num_errors = parses, 1
    parser.get_error().desc.return_value = "No importer registered for op: Whatever"
    builder.create_network().get_input().shape = (-1, 1, 32, 32)
    builder.build_serialized_network.return_value = b"engine"
    monkeypatch.setitem(sys.modules, "tensorrt", package)
    row = tensorrt.attempt(data.course, stored)["attempts"][1]
    engine = data.course.exports / "model.trt"
    assert row["works"] == parses == engine.exists()
    assert ("built with TensorRT 10.9" if parses else "Whatever") in row["message"]
    if parses:
        profile = builder.create_optimization_profile().set_shape
        sizes = [(n, 1, 32, 32) for n in (1, 32, 128)]
        profile.assert_called_once_with("pixels", *sizes)
        assert engine.read_bytes() == b"engine"
