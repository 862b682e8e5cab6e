"""The two networks: shapes, sizes, and the parts that the course explains."""

import pytest
import torch

from models.baseline_cnn import BaselineCNN
from models.optimized_cnn import OptimizedCNN

NETWORKS = [
    BaselineCNN,
    OptimizedCNN,
    lambda c, k: OptimizedCNN(c, k, norm=False, residual=False),
    lambda c, k: OptimizedCNN(c, k, (8, 16, 32, 48), depth=1, stem=2),
]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("channels, classes", [(1, 2), (3, 2), (1, 3)])
@pytest.mark.parametrize("height, width", [(32, 32), (33, 47), (96, 96), (224, 224)])
def test_any_size_from_32_up(network, channels, classes, height, width):
    model = network(channels, classes).eval()
    images = torch.randn(2, channels, height, width)
    with torch.no_grad():
        logits, embedding = model(images), model.embed(images)
    assert logits.shape == (2, classes)
    assert embedding.ndim == 2
    # dropout is off: the embedding decides alone
    torch.testing.assert_close(model.classifier(embedding), logits)


@pytest.mark.parametrize("network", [BaselineCNN, OptimizedCNN])
def test_config_rebuilds_the_network(network):
    model = network(3, 3)
    again = network(**model.config)
    again.load_state_dict(model.state_dict())
    assert again.config == model.config


def test_baseline_has_neither_normalisation_nor_shortcuts():
    kinds = {type(module).__name__ for module in BaselineCNN().modules()}
    assert kinds == {
        "BaselineCNN",
        "Sequential",
        "Conv2d",
        "ReLU",
        "MaxPool2d",
        "Linear",
    }


def test_a_small_bright_spot_survives_the_pooling():
    """Its share of the average falls with the size of the picture, the maximum does
    not.
    """
    model, maps = OptimizedCNN(1, 2), torch.zeros(1, 128, 14, 14)
    maps[0, :, 3, 5] = 1.0
    pooled = model.pool(maps)
    assert (
        pooled[0, :128].max().item() == pytest.approx(1 / 196)
        and (pooled[0, 128:] == 1).all()
    )


def test_residual_block_starts_as_the_identity():
    block = OptimizedCNN(1, 2).features[4]
    x = torch.rand(2, 32, 8, 8)
    torch.testing.assert_close(block.eval()(x), x)
