"""A pretrained network: a backbone that has seen a million photographs, a new head."""

import torch
from torch import Tensor, nn


class PretrainedCNN(nn.Module):
    """A backbone of the library timm, two kinds of pooling, one new linear layer.

    Building it draws random weights: those of ImageNet are put in once, by
    `utils.pretrained_network`, and stand in the checkpoint from then on.

    Parameters
    ----------
    channels : int
        3 (RGB), or 1 (grayscale): the kernels of the three colours are then added up,
        which is what they would see of a picture whose colours are equal.
    classes : int
        Number of outputs.
    backbone : str
        Name of the network in timm, such as "tf_efficientnet_lite0" or "resnet18".
    dropout : float
        Share of the embedding that training drops (Srivastava et al., 2014).

    Shapes
    ------
    (N, channels, H, W) float32, normalised with `mean` and `std`, H and W at least 64
    -> logits (N, classes).
    """

    def __init__(
        self, channels=1, classes=2, backbone="tf_efficientnet_lite0", dropout=0.2
    ):
        super().__init__()
        import timm  # takes two seconds, and only this network needs it

        if not timm.is_model(backbone):  # "hf-hub:…" would ask the network
            raise ValueError(f"timm has no network {backbone!r}")
        self.config = {
            "channels": channels,
            "classes": classes,
            "backbone": backbone,
            "dropout": dropout,
        }
        # without its own pooling and its head of 1,000 classes
        headless = {"num_classes": 0, "global_pool": ""}
        self.features = timm.create_model(backbone, in_chans=channels, **headless)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * self.features.num_features, classes)

    @property
    def mean(self) -> list[float]:
        """What the backbone's pixels were normalised with, in 0..1, one a channel."""
        return self._normalisation("mean")

    @property
    def std(self) -> list[float]:
        return self._normalisation("std")

    def _normalisation(self, name: str) -> list[float]:
        colours = self.features.pretrained_cfg[name]
        if self.config["channels"] == 1:
            return [sum(colours) / len(colours)]
        return list(colours)

    def pool(self, maps: Tensor) -> Tensor:
        """Average and maximum of each map: (N, D, h, w) -> (N, 2 * D)."""
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)

    def embed(self, images: Tensor) -> Tensor:
        """The embedding before the classifier: (N, C, H, W) -> (N, 2 * D)."""
        return self.pool(self.features(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.embed(images)))
