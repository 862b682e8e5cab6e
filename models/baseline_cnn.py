"""The baseline: the network that a student understands in a minute."""

from torch import Tensor, nn


class BaselineCNN(nn.Module):
    """Three times convolution, ReLU, pooling; then the average of each map, and one
    linear layer.

    No normalisation and no shortcuts: what these add is the subject of theme 3.

    Parameters
    ----------
    channels : int
        1 (grayscale) or 3 (RGB).
    classes : int
        Number of outputs.
    width : int
        Maps of the first convolution; doubled by each of the next two.

    Shapes
    ------
    (N, channels, H, W) float32, H and W at least 32 -> logits (N, classes).
    """

    def __init__(self, channels: int = 1, classes: int = 2, width: int = 16):
        super().__init__()
        self.config = {"channels": channels, "classes": classes, "width": width}
        layers, before = [], channels
        for after in (width, 2 * width, 4 * width):
            layers += [
                nn.Conv2d(before, after, kernel_size=3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            before = after
        self.features = nn.Sequential(*layers)
        for layer in self.features:
            # keeps the signal's size from layer to layer (He et al., 2015)
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.classifier = nn.Linear(before, classes)

    def pool(self, maps: Tensor) -> Tensor:
        """Average of each map: (N, D, h, w) -> (N, D)."""
        return maps.mean(dim=(2, 3))

    def embed(self, images: Tensor) -> Tensor:
        """The embedding before the classifier: (N, C, H, W) -> (N, 4 * width)."""
        return self.pool(self.features(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.embed(images))
