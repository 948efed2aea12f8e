"""How a map changes when its method explains again: a moved image, another class. One number per image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.calls import Gate, admit, evaluate_rows, gated
from lit_xai.core import Explainer, Images, Maps, Model, Passes, Scores, Targets, as_explainer
from lit_xai.errors import UsageError
from lit_xai.metrics.distance import DECIMALS, correlation, scaled_to_one, ssim, unit_ranks
from lit_xai.metrics.scored import OfMaps, check_scored
from lit_xai.rng import SampleRng


class Again(OfMaps):
    """The explained map beside others by the same method, with the same noise of the method: what it draws is no difference.

    `observed` is what `again` gives.
    """

    @abstractmethod
    def questions(
        self, gate: Gate, images: Images, targets: Targets, rng: SampleRng
    ) -> tuple[Float[Tensor, "n b c h w"], Int[Tensor, "n b"]]:
        """What is explained in place of the images and targets, as often as there are explanations."""

    @abstractmethod
    def value(self, maps: Float[Tensor, "b h w"], others: Float[Tensor, "b n h w"]) -> Scores:
        """The score of finite maps."""

    def again(
        self,
        explainer: Explainer | Callable[..., Maps],
        model: Model,
        images: Images,
        targets: Targets,
        rng: SampleRng | None = None,
    ) -> Float[Tensor, "b n h w"]:
        """The explainer's other maps, in one call for all of them: it is given `explanations` times as many images as here.

        Raises:
            UsageError: a map holds NaN; what an explainer's call refuses.
        """
        explainer = as_explainer(explainer)
        gate, batch, targets = admit(model, images, targets)
        if not len(batch):
            return batch.new_zeros(0, self.explanations, *batch.shape[-2:])
        rng = SampleRng.default(len(batch), rng)
        x, classes = (q.flatten(0, 1) for q in self.questions(gate, batch, targets, rng))
        same = rng.take(list(range(len(batch))) * self.explanations)
        maps = explainer(model, x.to(images.dtype), classes, same).detach()
        check_scored(x, maps)
        return maps.unflatten(0, (self.explanations, len(batch))).transpose(0, 1)

    @gated
    def __call__(
        self,
        model: Model,
        images: Images,
        maps: Maps,
        targets: Targets,
        rng: SampleRng | None = None,
        observed: Tensor | None = None,
    ) -> Scores:
        check_scored(images, maps)
        expected, name = (len(images), self.explanations, *images.shape[-2:]), type(self).__name__
        if observed is None or tuple(observed.shape) != expected:
            found = "" if observed is None else f" of shape {expected}, found {tuple(observed.shape)}"
            raise UsageError(
                f"{name} needs other maps{found}: pass observed=score.again(explainer, model, images, targets, rng)"
            )
        return self.value(maps.detach(), observed.to(maps.device))


@dataclass(frozen=True)
class MaxSensitivity(Again):
    """The largest ||Phi(x') - Phi(x)|| / ||Phi(x)|| over draws of x' near x, l2 norms over pixels: at least 0, lower is better.

    x' is x plus uniform noise in [-radius, radius], independent for every pixel and channel, clipped to [0, 1]: it stays an image and
    within the ball. NaN for a map of zeros, of which nothing is a share. A map that ignores the image has 0, the best there is: nothing
    is marked against nulls.

    Args:
        draws: of x'.
        radius: of the L-infinity ball, in pixel values, in (0, 1].

    Raises:
        UsageError: another radius, or no draw.
    """

    count = "draws"
    draws: int = 10
    radius: float = 0.02
    higher_is_better = False
    against_nulls = False
    source = (
        "Yeh et al. 2019, max-sensitivity by Monte Carlo over the ball, divided by the norm of the map (as captum does)"
    )

    def __post_init__(self) -> None:
        if self.draws < 1 or not 0 < self.radius <= 1:
            found = f"draws={self.draws}, radius={self.radius}"
            raise UsageError(f"max-sensitivity needs at least 1 draw and a radius in (0, 1], found {found}")

    @property
    def explanations(self) -> int:
        """One further map a draw."""
        return self.draws

    def questions(
        self, gate: Gate, images: Images, targets: Targets, rng: SampleRng
    ) -> tuple[Float[Tensor, "n b c h w"], Int[Tensor, "n b"]]:
        """The moved images; the class stays."""
        drawn = rng.noise("max_sensitivity", images.device).parts(self.draws).uniform(images.shape[1:]).to(images.dtype)
        moved = (images[:, None] + self.radius * (2 * drawn - 1)).clamp(0, 1)
        return moved.transpose(0, 1), targets.expand(self.draws, -1)

    def value(self, maps: Float[Tensor, "b h w"], others: Float[Tensor, "b n h w"]) -> Scores:
        """The largest relative change."""
        whole = maps.flatten(1).double()
        apart = torch.stack([(other.flatten(1) - whole).norm(dim=1) for other in others.unbind(1)]).amax(0)
        size = whole.norm(dim=1)
        return torch.where(size > 0, apart / size, torch.nan)


@dataclass(frozen=True)
class ClassSensitivity(Again):
    """How alike the maps of the explained class and of another one are, in [-1, 1]: 1 where the class plays no part. Lower is better.

    The other class is drawn for every sample, all alike (the random logit test). NaN where either map is constant (`spearman`), or
    zero (`ssim`): it has no order, or no scale.

    Args:
        similarity: `spearman`, signed, with average ranks for ties; or `ssim`, of maps divided by their largest magnitude, window 5.
    """

    similarity: str = "spearman"
    higher_is_better = False
    source = "Sixt et al. 2020 (random logit): similarity of the maps of the explained and of another class"

    def __post_init__(self) -> None:
        if self.similarity not in ("spearman", "ssim"):
            raise UsageError(f"class sensitivity's similarity must be spearman or ssim, found {self.similarity!r}")

    @property
    def explanations(self) -> int:
        """That of the other class."""
        return 1

    def passes(self, height: int, width: int) -> Passes:
        """One forward pass, by which the model says how many classes it has."""
        return Passes(1)

    def questions(
        self, gate: Gate, images: Images, targets: Targets, rng: SampleRng
    ) -> tuple[Float[Tensor, "n b c h w"], Int[Tensor, "n b"]]:
        """Another class of every image."""
        if gate.classes is None:
            evaluate_rows(gate, lambda c: images[c.image], images[:1], targets[:1], 1, 1)
        classes = gate.classes or 0
        if classes < 2:
            raise UsageError(f"class sensitivity needs a model of at least 2 classes, found {classes}")
        drawn = rng.noise("class_sensitivity", targets.device).uniform(())
        offset = 1 + (drawn * (classes - 1)).long().clamp_max(classes - 2)
        return images[None], ((targets + offset) % classes)[None]

    def value(self, maps: Float[Tensor, "b h w"], others: Float[Tensor, "b n h w"]) -> Scores:
        """The similarity, rounded to 1e-12: that of equal maps is 1, not what sums round to."""
        other = others[:, 0]
        if self.similarity == "spearman":
            return correlation(unit_ranks(maps), unit_ranks(other)).round(decimals=DECIMALS)
        return ssim(scaled_to_one(maps), scaled_to_one(other)).round(decimals=DECIMALS)
