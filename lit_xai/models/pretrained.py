"""torchvision networks with given weights, explained without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.errors import UsageError
from lit_xai.store.files import read_state

IMAGENET_CLASSES = 1000
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalise(nn.Module):
    """(x - mean) / std per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def read_weights(arch: str, weights: str) -> dict[str, Tensor]:
    """A state dict from a file (no code is run from it) or, for `DEFAULT`, torchvision's download."""
    import torchvision.models

    if weights == "DEFAULT":
        try:
            return torchvision.models.get_model_weights(arch).DEFAULT.get_state_dict(progress=True)  # type: ignore[attr-defined]
        except OSError as e:
            raise UsageError(
                f"the weights of {arch} cannot be downloaded ({e}): give a file by model.weights="
            ) from None
    return read_state(Path(weights), f"give the path of a {arch} state dict by model.weights=")


class Pretrained(pl.LightningModule):
    """A torchvision classifier and its weights; normalisation inside, logits out.

    Args:
        arch: a name of torchvision.models, e.g. `squeezenet1_1`.
        weights: path of a state dict, or `DEFAULT` to let torchvision download it.
        class_names: names of the classes; None takes torchvision's ImageNet names where they fit.
        mean, std: per channel.
        channels, classes, side, colour: given by the data; `channels` and, where images have labels, `classes` are checked.
    """

    def __init__(
        self,
        arch: str,
        weights: str,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        channels: int = 3,
        classes: int = 0,
        side: int = 224,
        colour: Any = None,
    ) -> None:
        super().__init__()
        import torchvision.models

        if arch not in torchvision.models.list_models(module=torchvision.models):
            raise UsageError(f"torchvision has no classifier {arch!r}: see torchvision.models.list_models()")
        if channels != len(mean):
            raise UsageError(f"model={arch} takes {len(mean)} channels, the images have {channels}")
        state = read_weights(arch, weights)
        network = torchvision.models.get_model(arch, weights=None)
        try:
            network.load_state_dict(state)
        except RuntimeError as e:
            first = str(e).splitlines()[-1].strip()
            raise UsageError(f"{weights} holds no weights of {arch} ({first}): name the right model.arch=") from None
        if classes not in (0, IMAGENET_CLASSES):
            raise UsageError(
                f"{arch} tells {IMAGENET_CLASSES} classes apart and the data have {classes}: explain its own predictions by "
                f"data=pictures with the pictures in one folder, or train on these classes by model=resnet50 "
                f"model.network.weights=FILE"
            )
        self.network = nn.Sequential(Normalise(mean, std), network)
        meta = torchvision.models.get_model_weights(arch).DEFAULT.meta  # type: ignore[attr-defined]
        self.class_names = tuple(class_names or meta.get("categories", ()))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.network(images)

    def predictor(self) -> nn.Module:
        """The network to explain."""
        return self.network.eval()

    def test_step(self, batch: tuple[Tensor, Tensor], index: int, dataloader_idx: int = 0) -> None:
        """Nothing: its classes need not be the data set's."""
