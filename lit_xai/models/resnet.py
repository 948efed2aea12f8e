"""Residual networks of 18 and 50 layers, for small and large images."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.errors import UsageError

SMALL = 64  # pixels of an image's side up to which `auto` is the small stem


def stem_for(side: int, stem: str = "auto") -> str:
    """What `auto` means for images of `side` pixels; any other `stem` as it is."""
    return stem if stem != "auto" else "small" if side <= SMALL else "large"


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al., 2016), `[b, c, h, w]`. Each activation is a module of its own.

    Activations are not in place and not shared, so that methods that hook them (DeepLift) work.
    """

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.act2 = nn.ReLU()
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inside == out
            else nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        x = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(x)) + shortcut)


class ResNet18(nn.Module):
    """ResNet-18 with `width` filters in the first convolution and dropout before the classifier.

    Args:
        channels: image channels.
        classes: logits.
        width: filters of the first convolution (doubled at every stage).
        dropout: before the last layer.
        stem: `small` is 3 x 3 without pooling, for images up to 64 px; `large` is 7 x 7 stride 2 with max-pooling.
    """

    def __init__(self, channels: int, classes: int, width: int = 64, dropout: float = 0.0, stem: str = "small") -> None:
        super().__init__()
        if stem not in ("small", "large"):
            raise UsageError(f"model.network.stem must be auto, small or large, found {stem!r}")
        kernel, stride, padding = (3, 1, 1) if stem == "small" else (7, 2, 3)
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        if stem == "large":
            layers.append(nn.MaxPool2d(3, 2, 1))
        self.stem = nn.Sequential(*layers)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *[
                nn.Sequential(ResidualBlock(a, b, 1 if i == 0 else 2), ResidualBlock(b, b, 1))
                for i, (a, b) in enumerate(pairwise(widths))
            ]
        )
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8 * width, classes)
        )
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.head(self.stages(self.stem(x)))


def resnet18(
    channels: int, classes: int, side: int, width: int = 64, dropout: float = 0.0, stem: str = "small"
) -> nn.Module:
    """ResNet-18: see `ResNet18`; the stem may also be `auto`, see `stem_for`."""
    return ResNet18(channels, classes, width, dropout, stem_for(side, stem))


def resnet50(channels: int, classes: int, side: int, dropout: float = 0.0, weights: str | None = None) -> nn.Module:
    """Torchvision's ResNet-50 with a new last layer.

    Args:
        channels: 3.
        classes: logits.
        side: image side.
        dropout: before the last layer.
        weights: path of a torchvision state dict to start from (its last layer is left out), `DEFAULT` for
            torchvision's download, or None.
    """
    import torchvision.models

    from lit_xai.models.pretrained import fit_weights, read_weights

    if channels != 3:
        raise UsageError(f"model=resnet50 takes RGB images, found {channels} channels: use model=resnet18")
    network = torchvision.models.resnet50()
    if weights is not None:
        state = read_weights("resnet50", weights)
        fit_weights(network, state, f"{weights} holds no weights of resnet50", without="fc.")
    network.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(network.fc.in_features, classes))  # type: ignore[assignment]
    with torch.no_grad():
        network.fc[1].bias.zero_()  # type: ignore[index]
    return network
