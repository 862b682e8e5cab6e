"""Deployment: the exported network answers like PyTorch, refuses what it was not made
for, and is measured fairly.
"""

import itertools
import json
import shutil
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from onnx import numpy_helper

import utils
from kit import tensorrt


def store_checkpoint(
    course, data, network="optimized", name="best_model.pth", **changes
) -> Path:
    """An untrained network whose normalisations have seen images and whose answers fall
    to both sides.
    """
    torch.manual_seed(0)
    if network == "baseline":
        model = utils.BaselineCNN(course.channels, len(course.classes))
    else:
        model = utils.optimized_network(course, residual=network != "no shortcuts")
    loader = data.loader("train", 64)
    with torch.no_grad():
        for block in model.features:
            if hasattr(block, "norm2"):
                # it starts at zero, and the block would do nothing
                block.norm2.weight.fill_(1)
        for images, _ in loader:
            model.train()(images)
        logits, _ = utils.predict(model, data.loader("val", 64))
        model.classifier.weight *= 2 / float(logits.std(axis=0).mean())
        logits, _ = utils.predict(model, data.loader("val", 64))
        model.classifier.bias -= torch.from_numpy(np.median(logits, axis=0))
    state = {
        "classes": list(course.classes),
        "mean": data.mean,
        "std": data.std,
        "size": course.image_size,
        "channels": course.channels,
        "threshold": 0.3,
        "temperature": 1.7,
        "dataset": course.dataset,
        "seed": 42,
    }
    return utils.save_checkpoint(course.checkpoints / name, model, **state | changes)


@pytest.fixture(scope="module")
def exported(drawn, tmp_path_factory) -> Path:
    """A home with a checkpoint and its model in service; read only."""
    course = utils.start(
        1, source=drawn, profile="smoke", home=tmp_path_factory.mktemp("exported")
    )
    utils.build_index(course)
    data = utils.load_data(course)
    stored = utils.export_onnx(course, store_checkpoint(course, data))
    utils.put_in_service(course, stored)
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


# --- export


@pytest.mark.parametrize(
    "dataset,network",
    [
        ("pneumonia", "optimized"),
        ("pneumonia", "baseline"),
        ("solar", "optimized"),
        ("pneumonia3", "baseline"),
    ],
)
def test_onnx_answers_like_pytorch_at_every_batch_size(open_course, dataset, network):
    course = open_course(dataset)
    utils.build_index(course)
    data = utils.load_data(course)
    path = store_checkpoint(course, data, network)
    stored = utils.export_onnx(course, path)
    table = utils.agreement(
        utils.served_network(course, path)[0], utils.OnnxModel(stored), data.pixels
    )
    assert list(table.index) == [1, 2, 7, 32] and (table["n"] == len(data.pixels)).all()
    assert table["max_abs_diff"].max() <= 1e-5 and table["embedding_diff"].max() <= 1e-5
    assert table["changed"].sum() == 0


def test_normalisation_temperature_and_softmax_are_inside(data, checkpoint, model):
    """Against the other way to the same figures: the loader's normalisation and SciPy's
    softmax.
    """
    network, state = utils.load_model(checkpoint)
    logits, _ = utils.predict(network, data.loader("test", 16))
    pixels = data.pixels[data.where("test")]
    probabilities, embedding = model.predict_all(pixels, batch=7)
    assert np.allclose(
        probabilities, utils.softmax(logits, state["temperature"]), atol=1e-5
    )
    assert embedding.shape == (len(pixels), network.classifier.in_features)
    assert np.array_equal(
        model.predict(pixels), model.predict_all(pixels, len(pixels))[0]
    )


def test_one_file_with_dynamic_batch_that_says_what_it_is(data, checkpoint, stored):
    # no .data beside it
    assert [path.name for path in stored.parent.iterdir()] == [stored.name]
    loaded = onnx.load(stored)
    onnx.checker.check_model(loaded, full_check=True)
    source = loaded.graph.input[0]
    assert (
        source.name == "pixels"
        and source.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    )
    assert source.type.tensor_type.shape.dim[0].dim_param
    assert [output.name for output in loaded.graph.output] == [
        "probabilities",
        "embedding",
    ]
    told = {item.key: json.loads(item.value) for item in loaded.metadata_props}
    assert (
        told["classes"] == ["NORMAL", "PNEUMONIA"]
        and told["size"] == 32
        and told["threshold"] == 0.3
    )
    assert (
        told["dataset"] == "pneumonia"
        and told["seed"] == 42
        and told["torch"] == torch.__version__
    )
    assert told["checkpoint"] == utils.hash_file(checkpoint)[:16]
    assert str(utils.KIT).encode() not in stored.read_bytes()  # no path of this machine


def test_same_checkpoint_same_hash(data, checkpoint, stored):
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


def test_changed_bytes_are_refused(data, model):
    content = bytearray(model.path.read_bytes())
    content[len(content) // 2] ^= 1
    model.path.write_bytes(content)
    with pytest.raises(
        utils.CourseError, match="its bytes have changed. Run notebooks/theme4"
    ):
        utils.OnnxModel(model.path)
    with pytest.raises(utils.CourseError, match="is missing: run notebooks/theme4"):
        utils.OnnxModel(model.path.with_name("other.onnx"))


def test_other_classes_and_foreign_files_are_refused(data, model):
    with pytest.raises(utils.CourseError, match="knows the classes"):
        utils.OnnxModel(model.path, utils.DATASETS["solar"].classes)
    foreign = onnx.load(model.path)
    del foreign.metadata_props[:]
    path = utils.store_onnx(data.course, foreign, {"classes": ["a", "b"]})
    with pytest.raises(utils.CourseError, match="not exported by this course"):
        utils.OnnxModel(path)


@pytest.mark.parametrize(
    "pixels,words",
    [
        (np.zeros((1, 1, 32, 32), np.float32), "must be uint8.*float32"),
        (np.full((1, 1, 32, 32), np.nan, np.float32), "float32 with 1024 NaN"),
        (np.zeros((1, 1, 32, 32), np.int64), "these are int64"),
        ([[0]], "these are list"),
        (np.zeros((1, 1, 64, 64), np.uint8), r"these are \(1, 1, 64, 64\)"),
        (np.zeros((1, 3, 32, 32), np.uint8), r"must be \(N, 1, 32, 32\)"),
        (np.zeros((1, 32, 32), np.uint8), "pixels.None. for one image"),
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

    monkeypatch.setattr(utils.shutil, "copy", disk_full)
    with pytest.raises(utils.CourseError, match="untouched"):
        utils.put_in_service(data.course, stored)
    assert model.path.read_bytes() == before and not list(
        model.path.parent.glob(".*.tmp")
    )


# --- providers


def test_provider_that_is_not_compiled_in(stored):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed here")
    with pytest.raises(
        utils.CourseError, match='CUDAExec.* cannot start.*or serve on the CPU: prov.*"'
    ):
        utils.make_session(stored, "cuda")
    with pytest.raises(utils.CourseError, match="cannot start"):
        utils.benchmark_onnx(
            stored,
            (1, 1, 32, 32),
            providers=["CUDAExecutionProvider", "CPUExecutionProvider"],
        )
    with pytest.raises(utils.CourseError, match="no provider of this course"):
        utils.benchmark_onnx(stored, (1, 1, 32, 32), providers=["Abacus"])


def test_silent_fallback_to_the_cpu_is_a_loud_failure(stored, monkeypatch):
    """As onnxruntime-gpu behaves without a GPU: CUDA is listed as available, the
    session runs on the CPU.
    """
    fallen = types.SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: list(utils.PROVIDERS.values())
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: fallen)
    with pytest.raises(
        utils.CourseError,
        match="fell back to CPUExecutionProvider.*serve on the CPU",
    ):
        utils.make_session(stored, "cuda")


def test_what_does_not_start_is_said_and_left_out(data, stored, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert utils.open_or_say(stored, "cuda") is None
    assert "left out: " in capsys.readouterr().out
    assert utils.open_or_say(stored).provider == "CPUExecutionProvider"


def test_error_of_onnx_runtime_is_told_in_words(data, stored):
    stored.write_bytes(b"no model")
    renamed = stored.rename(stored.with_name(f"{utils.hash_file(stored)[:16]}.onnx"))
    with pytest.raises(
        utils.CourseError, match="gives no session on CPUExecutionProvider"
    ):
        utils.OnnxModel(renamed)


def test_export_stays_with_operators_that_older_gpu_runtimes_have(stored):
    assert {
        item.version for item in onnx.load(stored).opset_import if not item.domain
    } == {18}


@pytest.mark.parametrize("size", [45, 100])
def test_odd_sizes_and_three_classes(open_course, size):
    """Maps of odd width: pooling with a rest (ceil_mode)."""
    course = open_course("pneumonia3", image_size=size)
    utils.build_index(course)
    data = utils.load_data(course)
    path = store_checkpoint(course, data)
    model = utils.OnnxModel(utils.export_onnx(course, path))
    table = utils.agreement(
        utils.served_network(course, path)[0], model, data.pixels[:24], (1, 7)
    )
    assert table["max_abs_diff"].max() <= 1e-5 and model.predict(
        np.array(data.pixels[:2])
    ).shape == (2, 3)


# --- INT8


def test_calibration_set_is_stratified_and_from_train_only(data):
    rows = utils.calibration_rows(data, images=20)
    assert np.bincount(data.labels[rows]).tolist() == [10, 10] and set(rows) <= set(
        data.where("train")
    )
    assert np.array_equal(rows, utils.calibration_rows(data, images=20)) and len(
        set(rows)
    ) == len(rows)


def test_calibration_set_that_is_too_small(data):
    normal = data.where("train")[data.labels[data.where("train")] == 0]
    data.index.loc[normal[3:], "pool"] = "val"
    with pytest.raises(
        utils.CourseError, match="needs 8 training images of class NORMAL, there are 3"
    ):
        utils.calibration_rows(data)


def test_int8_is_u8s8_per_channel(data, stored, model):
    calibration = data.pixels[utils.calibration_rows(data)]
    path = utils.quantize_int8(data.course, stored, calibration)
    graph = onnx.load(path).graph
    constants = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
    }
    weights = [
        node
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in constants
        and constants[node.input[0]].ndim == 4
    ]
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(weights) == len(convolutions) > 4
    for node in weights:
        values, scale = constants[node.input[0]], constants[node.input[1]]
        # one scale an output channel
        assert values.dtype == np.int8 and scale.shape == (values.shape[0],)
    zeros = {
        constants[node.input[2]].dtype
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }
    assert zeros == {np.dtype(np.uint8)}
    small = utils.OnnxModel(path, data.classes)
    assert small.metadata["float_model"] == stored.stem and small.metadata[
        "calibration_images"
    ] == len(calibration)
    assert np.abs(small.predict(data.pixels) - model.predict(data.pixels)).mean() < 0.05


def test_layers_that_hurt_are_kept_in_float(data):
    """In one block a map is made a thousand times larger than the others: eight bits
    cannot hold both.
    """
    course = data.course
    network, state = utils.load_model(
        store_checkpoint(course, data, "no shortcuts", "plain.pth")
    )
    block = next(layer for layer in network.features if hasattr(layer, "conv2"))
    with torch.no_grad():
        block.norm1.weight[0] *= 1e3
        block.norm1.bias[0] = 1e3
        block.conv2.weight[:, 0] /= 1e3
    kept = {
        key: state[key]
        for key in (
            "classes",
            "mean",
            "std",
            "size",
            "channels",
            "threshold",
            "temperature",
        )
    }
    stored = utils.export_onnx(
        course, utils.save_checkpoint(course.checkpoints / "spiky.pth", network, **kept)
    )
    labels = utils.OnnxModel(stored).predict_all(data.pixels)[0].argmax(1)
    calibration = data.pixels[utils.calibration_rows(data)]
    scan = utils.sensitivity(course, stored, calibration, data.pixels, labels)
    assert scan[0]["layer"] == "features.4.conv2" and scan[0]["kl"] > 10 * np.median(
        [row["kl"] for row in scan]
    )
    assert [row["kl"] for row in scan] == sorted(
        (row["kl"] for row in scan), reverse=True
    )

    def changed(keep):
        path = utils.quantize_int8(course, stored, calibration, keep_float=keep)
        model = utils.OnnxModel(path)
        assert model.metadata["kept_float"] == keep
        return (model.predict_all(data.pixels)[0].argmax(1) != labels).mean()

    assert changed([scan[0]["node"]]) <= 0.05 < changed([])


# --- the benchmark


def fake(name, run=lambda pixels: pixels, file=Path(__file__)):
    return utils.Backend(name, run, "cpu", "float32", "fake", file)


def test_rounds_are_interleaved_on_the_same_images():
    calls = []
    backends = [
        fake(name, lambda pixels, name=name: calls.append((name, len(pixels))))
        for name in "abc"
    ]
    pixels = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    rows = utils.benchmark(backends, pixels, batches=(1, 8), rounds=3, seconds=0)
    turns = [key for key, _ in itertools.groupby(calls)]
    assert [name for name, batch in turns if batch == 8] == [
        "a",
        "b",
        "c",
        "b",
        "c",
        "a",
        "c",
        "a",
        "b",
    ]
    assert all(len(row["ms"]) >= 3 for row in rows) and len(rows) == 3 * 3 * 2


def test_warm_up_ends_when_the_times_are_stable(monkeypatch):
    def timed(times):
        monkeypatch.setattr(utils, "timed", lambda *_: next(times))
        return utils.warm_up(None, None)

    assert timed(iter([100, 50, 20, 9, 5, 5, 5, 5, 5, 5, 5])) == 9
    assert timed(iter([5.0] * 10)) == 6
    assert timed(1.5**n for n in itertools.count()) == 30


def test_table_against_numpy():
    rng = np.random.default_rng(0)
    rows = [
        {
            "backend": name,
            "batch": 4,
            "round": number,
            "ms": rng.gamma(4, scale, 50).tolist(),
        }
        for number in range(3)
        for name, scale in (("slow", 2.0), ("quick", 0.5))
    ]
    table = utils.benchmark_table(rows, "slow").set_index("backend")
    mine = [row["ms"] for row in rows if row["backend"] == "quick"]
    assert np.allclose(
        table.loc["quick", ["p50_ms", "p95_ms", "p99_ms"]].to_numpy(float),
        np.percentile(np.concatenate(mine), [50, 95, 99]),
    )
    assert table.loc["quick", "images_s"] == pytest.approx(4000 / np.mean(mine))
    ratios = [
        np.median(rows[2 * n]["ms"]) / np.median(rows[2 * n + 1]["ms"])
        for n in range(3)
    ]
    assert table.loc["quick", "speedup"] == pytest.approx(np.median(ratios))
    assert table.loc["quick", "speedup_low"] == pytest.approx(min(ratios))
    assert table.loc["slow", "speedup"] == 1 and table.loc["quick", "calls"] == 150


def test_a_finished_benchmark_loads_and_is_measured_again_on_demand(
    data, stored, model, capsys
):
    calls, ask = [], model.session.run
    model.session = types.SimpleNamespace(
        run=lambda *given: calls.append(1) or ask(*given)
    )
    other = utils.OnnxModel(
        utils.store_onnx(data.course, onnx.load(stored), model.metadata | {"seed": 43})
    )
    pixels = np.array(data.pixels[:1])

    def measure(of=model, **options):
        backends, before = [fake("a", of.predict)], len(calls)
        options |= {"batches": (1,), "rounds": 1, "seconds": 0}
        utils.benchmark_once(data.course, "b", backends, pixels, **options)
        return len(calls) > before, capsys.readouterr().out

    assert measure() == (True, "")
    ran, said = measure()
    assert not ran and said.startswith("b: loaded, measured")
    assert measure(again=True)[0]
    assert measure(other)[1] == ""  # another file is another benchmark


def test_every_backend_answers_alike(data, checkpoint, stored):
    int8 = utils.quantize_int8(
        data.course, stored, data.pixels[utils.calibration_rows(data)]
    )
    pixels = np.array(data.pixels[:8])
    backends, reference, tuning = utils.make_backends(
        data.course, checkpoint, {"fp32": stored, "int8": int8}, pixels
    )
    answers = {backend.name: backend.run(pixels) for backend in backends}
    eager = answers["PyTorch eager"]
    assert np.abs(answers["ONNX Runtime fp32"] - eager).max() < 1e-5
    assert all(
        a.dtype == np.float32 and np.abs(a - eager).max() < 0.1
        for a in answers.values()
    )
    assert set(reference.values()) == {"PyTorch eager"} and (
        tuning.drop(columns="device") > 0
    ).all(axis=None)


def test_choice_of_pytorch_settings_is_kept_when_the_notebook_runs_again(
    data, checkpoint, monkeypatch
):
    """Two layouts that are as fast as each other must not swap: every measurement after
    them would start anew.
    """
    monkeypatch.setattr(utils, "amp_dtype", lambda device: torch.bfloat16)
    chosen = []
    for ms in (1.0, 2.0):  # what a clock would say the first and the second time
        monkeypatch.setattr(utils, "timed", lambda run, pixels, ms=ms: ms)
        backends, _, tuning = utils.make_backends(
            data.course, checkpoint, {}, np.array(data.pixels[:4])
        )
        chosen.append(backends[1].name)
        assert (tuning[[1, 32]] == 1.0).all(axis=None) and len(tuning) == 2
    assert chosen[0] == chosen[1]


def test_compiler_that_fails_is_left_out_in_one_sentence(
    data, checkpoint, monkeypatch, capsys
):
    def no_compiler(*_, **__):
        def call(pixels):
            raise RuntimeError(
                "InvalidCxxCompiler: no working C++ compiler\nand ten more lines"
            )

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    network, _ = utils.served_network(data.course, checkpoint)
    label, run, _, table = utils.tuned_torch(
        network, "cpu", np.array(data.pixels[:4]), compiled=True
    )
    assert (
        "torch.compile: left out, RuntimeError: InvalidCxxCompiler"
        in capsys.readouterr().out
    )
    assert label.startswith("channels_last") and "torch.compile" not in table.index
    assert run(np.array(data.pixels[:4])).shape == (4, 2)


def test_names_of_the_handout(data, stored, checkpoint):
    network = utils.load_model(checkpoint)[0].train()  # it is left as it was
    keys = {"latency_p50", "latency_p95", "latency_p99", "throughput"}
    ours = utils.benchmark_model(
        network, (2, 1, 32, 32), device="cpu", num_runs=5, warmup=1
    )
    theirs = utils.benchmark_onnx(stored, (2, 1, 32, 32), num_runs=5, warmup=1)
    assert ours.keys() == keys and theirs.keys() == keys | {"provider"}
    assert (
        theirs["provider"] == "CPUExecutionProvider"
        and ours["latency_p50"] <= ours["latency_p99"]
    )
    assert network.training and all(part.training for part in network.modules())
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
    run = utils.torch_runner(Spy(), "cuda")
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
    assert (
        utils.pareto(table, low=("ms", "mb"), high=("accuracy",)) == expected
        and 0 < sum(expected) < 40
    )


def test_cost_of_a_million_predictions():
    assert utils.cost_per_million(images_s=1000, price_per_hour=3.6) == pytest.approx(
        1.0
    )


def test_graph_table_counts_what_onnx_runtime_fused(stored, data, checkpoint):
    plain = utils.export_onnx(data.course, checkpoint, fuse=False)
    table = utils.graph_table(
        {"plain": plain, "exported": stored, "all": utils.rewritten(stored, "all")}
    )
    assert (
        table.loc["BatchNormalization", "plain"]
        > 0
        == table.loc["BatchNormalization", "exported"]
    )
    assert table.loc["all nodes"].is_monotonic_decreasing
    assert table.loc["all nodes", "exported"] == len(onnx.load(stored).graph.node)
    assert (
        table.drop(index=["all nodes", "KiB on disk"]).sum().tolist()
        == table.loc["all nodes"].tolist()
    )


# --- TensorRT


def test_tensorrt_without_a_gpu_is_a_documented_result(data, stored):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    told = tensorrt.attempt(data.course, stored)
    written = utils.read_json(data.course.exports / "tensorrt_attempt.json")
    assert written == told and not any(row["works"] for row in told["attempts"])
    assert "TensorrtExecutionProvider" in told["attempts"][0]["message"]
    assert "No module named 'tensorrt'" in told["attempts"][1]["message"]
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
