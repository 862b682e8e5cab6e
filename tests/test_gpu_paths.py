"""What runs on a GPU, tried without one: on fake CUDA tensors, in float16 on the CPU,
and against PyTorch's and ONNX Runtime's own lists.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.fake_cuda import Traffic, fake_cuda

import utils

CUDA = torch.device("cuda")
DATASETS = ("pneumonia", "pneumonia3", "solar")
NETWORKS = ("baseline", "optimised", "pretrained")


@pytest.fixture
def on_t4(monkeypatch):
    """A GPU of 15 GB that multiplies float16."""
    import torch.cuda.amp.common  # noqa: F401 - patched by fake_cuda

    half = {"cuda": torch.float16}
    monkeypatch.setattr(utils, "amp_dtype", lambda d: half.get(torch.device(d).type))
    monkeypatch.setattr(utils, "gpu_memory", lambda device: 15 * 10**9)


def drawn(tmp_path, dataset="pneumonia", size=64, images=96) -> utils.Data:
    """Random pixels in three pools, for a course on the GPU."""
    places = (tmp_path, tmp_path, tmp_path, CUDA)
    settings = (utils.PROFILES["full"], size, 42)
    course = utils.Course(2, dataset, "sample", *settings, *places, True)
    pools = np.repeat(["train", "val", "gate"], [images // 2, images // 4, images // 4])
    index = pd.DataFrame(
        {"pool": pools, "sha256": [f"{i:064d}" for i in range(images)]}
    )
    shape = (images, course.channels, size, size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(images) % len(course.classes)
    grey = [0.5] * course.channels, [0.2] * course.channels
    return utils.Data(index, pixels, labels, course.classes, *grey, "k", course)


def networks(data) -> dict:
    course = data.course
    with torch.device("cuda"):
        return {
            "baseline": utils.BaselineCNN(course.channels, len(course.classes)),
            "optimised": utils.optimized_network(course),
            "pretrained": utils.PretrainedCNN(course.channels, len(course.classes)),
        }


def parts_of_a_step(network, classes):
    recipe = utils.Recipe(label_smoothing=0.05)
    criterion = utils.WeightedCrossEntropy(torch.ones(classes, device="cuda"), 0.05)
    optimizer, scheduler = utils.make_optimizer(network, recipe, 100)
    scaler = utils.make_scaler(CUDA)
    assert scaler.is_enabled()
    return criterion, optimizer, CUDA, scaler, scheduler


@pytest.mark.parametrize("memory", [15 * 10**9, 10**6])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_a_training_stays_on_the_gpu_and_hardly_waits(
    on_t4, monkeypatch, tmp_path, dataset, name, memory
):
    """Pixels lie on the GPU, or are too many for it: then they and the labels travel,
    and nothing else. A wait costs more than a step of a small network.
    """
    monkeypatch.setattr(utils, "gpu_memory", lambda device: memory)
    data, made = drawn(tmp_path, dataset), []
    with fake_cuda(monkeypatch, made):
        network, twin = (networks(data)[name] for _ in range(2))
        made.append(network)
        monkeypatch.setattr(utils, "deepcopy", lambda model: twin)  # no memory to copy
        loader = data.loader("train", 12, utils.AUGMENT[dataset], shuffle=True)
        parts = parts_of_a_step(network, len(data.classes))
        average = utils.RunningAverage(network, 0.99)

        def epoch():
            options = {"on_step": lambda totals: average.update(network)}
            utils.train_epoch(network, loader, *parts, **options)

        with Traffic():
            epoch()
        with Traffic() as traffic:
            epoch()
    # an epoch: its order and its draws, else its draws and each batch with its labels
    resident = memory > 10**9
    assert traffic.to_gpu == (2 if resident else 1 + 2 * len(loader))
    # at the end of the epoch: the three sums, and the scale of float16
    assert traffic.waits <= 4 and traffic.from_gpu == 0
    kernels = sum(n for k, n in traffic.kernels.items() if not k.startswith("prim"))
    if name != "pretrained":  # has three times as many layers
        assert kernels / len(loader) < 350  # 638 in the first edition


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_what_looks_at_a_network_stays_on_the_gpu(
    on_t4, monkeypatch, tmp_path, dataset, name
):
    data, made = drawn(tmp_path, dataset), []
    classes, size = len(data.classes), data.course.image_size
    with fake_cuda(monkeypatch, made), Traffic():
        network = networks(data)[name]
        made.append(network)
        criterion = torch.nn.CrossEntropyLoss()
        assert len(utils.validate(network, data.loader("val", 8), criterion, CUDA)) == 2
        logits, labels = utils.predict(network, data.loader("val"))
        assert logits.shape == (24, classes) and labels.shape == (24,)
        seen, _ = utils.extract_embeddings(network, data.loader("val"), CUDA)
        assert len(seen) == 24
        images, _ = next(iter(data.loader("val", 4)))
        heat = utils.grad_cam(network, images, torch.zeros(4, dtype=torch.long))
        assert heat.shape == (4, size, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_served_network_answers_in_float32(monkeypatch, tmp_path, dtype):
    data = drawn(tmp_path, "solar")
    with fake_cuda(monkeypatch, []), Traffic(), torch.device("cuda"):
        torch.set_default_dtype(dtype)  # a fake network cannot be converted
        network = networks(data)["optimised"]
        torch.set_default_dtype(torch.float32)
        served = utils.ServedNetwork(network, {"temperature": 1.5} | data.about).eval()
        with torch.no_grad():
            answers = served(torch.zeros(2, *data.pixels.shape[1:], dtype=torch.uint8))
    assert [tuple(answer.shape)[0] for answer in answers] == [2, 2]
    assert {(a.device.type, a.dtype) for a in answers} == {("cuda", torch.float32)}


def test_mmd_stays_on_the_gpu(monkeypatch):
    rng, shapes = np.random.default_rng(0), []
    monkeypatch.setattr(utils, "best_device", lambda: CUDA)

    def p_value(values, alpha):
        shapes.append(values.shape)
        return 1.0, 0.0

    monkeypatch.setattr(utils, "_permutation_p", p_value)
    with fake_cuda(monkeypatch, []), Traffic():
        utils.mmd_test(rng.normal(size=(30, 4)), rng.normal(size=(20, 4)))
    assert shapes == [(1001,)]


# --- PyTorch's and ONNX Runtime's own lists


class Operators(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.add(operator.overloadpacket.__name__.rstrip("_"))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("dataset", DATASETS)
def test_no_operator_of_a_training_is_non_deterministic_on_a_gpu(
    monkeypatch, tmp_path, dataset
):
    """By the list of `torch.use_deterministic_algorithms`, of what raises on CUDA."""
    monkeypatch.setattr(utils, "amp_dtype", lambda device: torch.float16)
    data = drawn(tmp_path, dataset)
    data.course.device = torch.device("cpu")
    for network in (
        utils.BaselineCNN(data.course.channels, len(data.classes)),
        utils.optimized_network(data.course),
        utils.PretrainedCNN(data.course.channels, len(data.classes)),
    ):
        loader = data.loader("train", 16, utils.AUGMENT[dataset], shuffle=True)
        recipe = utils.Recipe(label_smoothing=0.05)
        criterion = utils.make_criterion(loader, len(data.classes), recipe)
        optimizer, _ = utils.make_optimizer(network, recipe, 10)
        scaler, average = (
            torch.amp.GradScaler("cpu"),
            utils.RunningAverage(network, 0.9),
        )
        with Operators() as called:
            images, labels = next(iter(loader))
            utils.train_step(network, images, labels, criterion, optimizer, scaler, 1.0)
            average.update(network)
        assert {"convolution_backward", "grid_sampler_2d"} <= called.names
        assert not called.names & raising_operators()


def raising_operators() -> set[str]:
    """What PyTorch's documentation lists, as the engine calls it."""
    text = torch.use_deterministic_algorithms.__doc__
    text = text[text.index("operations will throw") : text.index("In addition")]
    listed = set(re.findall(r":(?:class|func):`torch\.(?:\w+\.)*(\w+)`", text))
    unknown = listed - RAISING.keys() - OF_OTHERS
    assert not unknown, f"new in PyTorch: {unknown}"
    return set(RAISING.values())


RAISING = {
    "AdaptiveAvgPool2d": "_adaptive_avg_pool2d_backward",
    "AdaptiveMaxPool2d": "adaptive_max_pool2d_backward",
    "FractionalMaxPool2d": "fractional_max_pool2d_backward",
    "MaxUnpool2d": "max_unpool2d",
    "interpolate": "upsample_bilinear2d_backward",
    "ReflectionPad2d": "reflection_pad2d_backward",
    "NLLLoss": "nll_loss2d_forward",  # of maps; that of classes is deterministic
    "put_": "put",
    "histc": "histc",
    "bincount": "bincount",
    "median": "median",
    "grid_sample": "grid_sampler_2d_backward",
    "scatter_reduce": "scatter_reduce",
}
# of other dimensions, of texts, or on Apple's GPUs alone
OF_OTHERS = {"AvgPool3d", "AdaptiveAvgPool3d", "FractionalMaxPool3d", "MaxUnpool1d"}
OF_OTHERS |= {"MaxUnpool3d", "ReflectionPad1d", "ReflectionPad3d", "CTCLoss"}
OF_OTHERS |= {"EmbeddingBag", "Embedding", "index_put", "index_reduce", "kthvalue"}
OF_OTHERS |= {"MaxPool2d", "MaxPool3d", "resize_", "RuntimeError"}


# --- With one: COURSE_TEST_GPU=1 pytest -m gpu


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_first_gpu_finds_nothing_wrong():
    script = Path(__file__).parents[1] / "benchmarks" / "first_gpu.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
