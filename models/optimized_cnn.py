"""The optimised network: a small residual network and the few ideas that pay."""

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two normalised convolutions and a shortcut around them.

    Shortcut: He et al., Deep Residual Learning (2015). Normalisation: Ioffe and Szegedy
    (2015).
    """

    def __init__(
        self,
        before: int,
        after: int,
        stride: int,
        norm: bool = True,
        residual: bool = True,
    ):
        super().__init__()
        self.residual = residual
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=not norm)
        self.norm1 = nn.BatchNorm2d(after) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=not norm)
        self.norm2 = nn.BatchNorm2d(after) if norm else nn.Identity()
        self.relu = nn.ReLU()
        # Average pooling before the 1x1 convolution loses no pixel (ResNet-D: He et
        # al., Bag of Tricks, 2019).
        self.shortcut = nn.Identity()
        if residual and (stride > 1 or before != after):
            pool = (
                nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
                if stride > 1
                else nn.Identity()
            )
            project = nn.Conv2d(before, after, 1, bias=not norm)
            self.shortcut = nn.Sequential(
                pool, project, nn.BatchNorm2d(after) if norm else nn.Identity()
            )
        if norm and residual:
            # Each block starts as the identity (Goyal et al., Accurate, Large Minibatch
            # SGD, 2017).
            nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(out + self.shortcut(x)) if self.residual else self.relu(out)


class OptimizedCNN(nn.Module):
    """A stem that makes the picture small, residual stages that halve it, two kinds of
    pooling, one linear layer.

    Parameters
    ----------
    channels : int
        1 (grayscale) or 3 (RGB).
    classes : int
        Number of outputs.
    widths : tuple of int
        Maps of each stage.
    depth : int
        Residual blocks in each stage.
    stem : int
        The picture is made this many times smaller before the first stage: 4, or 2
        where what matters is only a few pixels wide.
    dropout : float
        Share of the embedding that training drops (Srivastava et al., 2014).
    norm, residual : bool
        Switch one idea off, for the ablation of theme 3.

    Shapes
    ------
    (N, channels, H, W) float32, H and W at least 32 -> logits (N, classes).
    """

    def __init__(
        self,
        channels=1,
        classes=2,
        widths=(32, 64, 128),
        depth=2,
        stem=4,
        dropout=0.1,
        norm=True,
        residual=True,
    ):
        super().__init__()
        widths = tuple(widths)
        self.config = {
            "channels": channels,
            "classes": classes,
            "widths": list(widths),
            "depth": depth,
            "stem": stem,
            "dropout": dropout,
            "norm": norm,
            "residual": residual,
        }
        first = nn.BatchNorm2d(widths[0]) if norm else nn.Identity()
        stages = [
            nn.Conv2d(channels, widths[0], 5, stride=2, padding=2, bias=not norm),
            first,
            nn.ReLU(),
        ]
        if stem == 4:
            stages.append(nn.MaxPool2d(3, stride=2, padding=1))
        before = widths[0]
        for stage, after in enumerate(widths):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(ResidualBlock(before, after, stride, norm, residual))
                before = after
        self.features = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * before, classes)

    def pool(self, maps: Tensor) -> Tensor:
        """Average and maximum of each map: (N, D, h, w) -> (N, 2 * D).

        The average says how much there is of something, the maximum whether it is there
        at all: a small opacity or panel drowns in the average (concat pooling: Howard
        and Gugger, fastai, 2020).
        """
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)

    def embed(self, images: Tensor) -> Tensor:
        """The embedding before the classifier: (N, C, H, W) -> (N, 2 * widths[-1])."""
        return self.pool(self.features(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.embed(images)))
