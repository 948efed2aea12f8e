"""Has a network seen such images? How far those that a score shows it lie from images that it knows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lit_xai.core import Images, Maps, Score, Targets
from lit_xai.quality.plausibility import penultimate
from lit_xai.quality.sampler import Mahalanobis
from lit_xai.rng import SampleRng

SHOWN = 16  # most images of a probe that are looked at
BEYOND = 0.95  # the quantile of held-out images that an image lies beyond


class Recorder(nn.Module):
    """In the place of a model: it keeps what it is shown, and says nothing of it (all logits are 0).

    Args:
        classes: how many logits.
        like: the model, whose device and precision its caller looks at.
    """

    def __init__(self, classes: int, like: nn.Module) -> None:
        super().__init__()
        self.like, self.classes = like, classes
        self.seen: list[Images] = []

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        self.seen.append(x.detach().clone())
        return x.new_zeros(len(x), self.classes)


def shown_by(
    score: Score, model: nn.Module, image: Images, map_: Maps, target: Targets, rng: SampleRng
) -> Float[Tensor, "n c h w"]:
    """The images that a score shows the model to judge one map, evenly over its calls at most `SHOWN` of them.

    The model itself is not called: it costs nothing but the making of the images.
    """
    recorder = Recorder(int(target.max()) + 2, model)
    score(recorder, image, map_, target, rng)
    seen = torch.cat(recorder.seen)
    return seen[torch.linspace(0, len(seen) - 1, min(SHOWN, len(seen))).round().long()]


@dataclass(frozen=True, eq=False)
class Known:
    """What a network knows: where the features of its training images lie, and how far away those of images like them.

    Attributes:
        score: the squared Mahalanobis distance to the nearest class of training images.
        held_out: `[n]` that of images that it never saw, untouched.
    """

    score: Mahalanobis
    held_out: Float[Tensor, "n"]

    def distance(self, model: nn.Module, images: Images) -> Float[Tensor, "m"]:
        """How far every image lies."""
        return self.score(penultimate(model, images))

    def beyond(self, distance: Float[Tensor, "m"]) -> Bool[Tensor, "m"]:
        """Whether it is farther than 95 of 100 held-out images: of images like those, one in twenty is."""
        return distance > torch.quantile(self.held_out, BEYOND)
