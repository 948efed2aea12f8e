"""Plain convolutional networks: stacks of convolutions, and a single one."""

from __future__ import annotations

from torch import nn

from lit_xai.errors import UsageError

FILTERS = (32, 64, 128)


def vgg(channels: int, classes: int, side: int, blocks: int = 3, dense: int = 128, dropout: float = 0.0) -> nn.Module:
    """`blocks` x [two 3 x 3 convolutions (32/64/128 filters), max-pool], then a dense layer (Garreau & Mardaoui, 2021).

    Args:
        channels, classes, side: image channels, logits, image side in pixels.
        blocks: 1, 2 or 3.
        dense: units of the hidden layer.
        dropout: before the last layer.
    """
    if not 1 <= blocks <= len(FILTERS) or side < 2**blocks:
        raise UsageError(
            f"model=vgg takes 1..{len(FILTERS)} blocks on images of 2^blocks pixels, found {blocks}, {side}"
        )
    layers: list[nn.Module] = []
    for filters in FILTERS[:blocks]:
        for inside in (channels, filters):
            layers += [nn.Conv2d(inside, filters, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels = filters
    features = channels * (side // 2**blocks) ** 2
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(features, dense), nn.ReLU(), nn.Dropout(dropout), nn.Linear(dense, classes)
    )


def one_layer(channels: int, classes: int, side: int, units: int = 32) -> nn.Module:
    """A dense layer of sigmoids on every pixel, then one dense layer (the smallest network of Garreau & Mardaoui, 2021).

    Args:
        channels, classes, side: image channels, logits, image side in pixels.
        units: sigmoids a pixel.
    """
    return nn.Sequential(
        nn.Conv2d(channels, units, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(units * side * side, classes)
    )
