"""Meaningful perturbation: learn the smallest smooth mask whose removal destroys the prediction (Fong & Vedaldi, 2017)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.calls import (
    AUTO,
    Chunk,
    Size,
    check_size,
    evaluating,
    gated,
    gradients,
    in_format_of,
    select_output,
    walk,
)
from lit_xai.core import MAGNITUDE, Explainer, Filler, Images, Legend, Maps, Model, Passes, Scores, Targets, scaled
from lit_xai.errors import UsageError
from lit_xai.fillers.constant import Blur
from lit_xai.fillers.refill import Refill
from lit_xai.rng import Noise, SampleRng

CHANGED = 1 / 255  # a pixel has changed when any channel moves by more than this


@dataclass(frozen=True)
class MeaningfulPerturbation(Explainer):
    """Adam on a small mask m in [0, 1] (1 = keep); the map is 1 - m at image size.

    loss = `area` sum|1 - m| + `smoothness` TV_3(m) + p(c | m x + (1 - m) filler), TV_3 = sum of |differences|^3 on the
    small mask (Agarwal & Nguyen, 2020). Images are independent of each other: a batch is many problems side by side. In
    float32 a batch's rounding still reaches its maps, because hundreds of steps amplify it. The penalties are sums over a
    mask that shrinks with the image: on small images raise `area` and `smoothness` by (28 / its side)^2 for their old weight.

    Args:
        mask: side of the mask at 224 px; scales with the side, at least 3.
        steps: of Adam.
        rate: its learning rate.
        area, smoothness: weights of the two penalties.
        jitter: largest shift of the perturbed image at a step, pixels at 224 px (scales, at least 1 unless 0).
        upsampling: `bilinear` (the paper) or `nearest` (its authors' code).
        filler: what shows where the mask is 0. One that does not depend on the mask blends in by the mask's value; any
            other fills where m <= 1/2 at every step, and the gradient passes straight through that decision. A
            differentiable one (`painted`, see `Filler`) gets it through the painting, too, and says what would stand where
            a pixel is still kept; with any other, kept pixels have no gradient but the penalties'.
        output: `probability` or `logit`.
        repeat: number of the run: another number starts from another mask.
        max_batch: most images per model call.
    """

    count = "steps"
    mask: int = 28
    steps: int = 300
    rate: float = 0.1
    area: float = 1e-4
    smoothness: float = 1e-2
    jitter: int = 3
    upsampling: str = "bilinear"
    filler: Filler = field(default_factory=lambda: Blur(kernel=61, sigma=10.0))
    output: str = "probability"
    repeat: int = 0
    max_batch: Size = AUTO

    legend: ClassVar[Legend] = Legend(MAGNITUDE, "darker = hidden more by the mask that destroys {label}, white = kept")

    def passes(self, height: int, width: int) -> Passes:
        """One forward and one backward pass a step."""
        return Passes(self.steps, self.steps)

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """The mask's side and the jitter in pixels of these images."""
        side = min(images.shape[-2:])
        shift = scaled(self.jitter, side, odd=False, least=1) if self.jitter else 0
        return {"mask": scaled(self.mask, side, odd=False), "jitter": shift}

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        return self.with_details(model, images, targets, rng)[0]

    @gated
    def with_details(
        self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None
    ) -> tuple[Maps, dict[str, Scores]]:
        """The maps; per image the share of pixels that the mask has changed, and the output left with that mask."""
        check_size(self.max_batch)
        positive = self.steps, self.mask, self.rate
        if min(positive) <= 0 or min(self.area, self.smoothness, self.jitter) < 0:
            raise UsageError(
                f"meaningful perturbation needs steps, mask, rate > 0 and area, smoothness, jitter >= 0, found {self}"
            )
        if self.upsampling not in ("bilinear", "nearest"):
            raise UsageError(f"upsampling must be bilinear or nearest, found {self.upsampling!r}")
        rng = SampleRng.default(len(images), rng).repeated(self.repeat)
        parts = {}

        with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
            together, classes = Refill(self.filler, images.clone(), rng), targets.clone()

            def solve(chunk: Chunk) -> None:
                refill = together.of(chunk.start, chunk.stop)
                parts[chunk.start] = self.optimise(model, refill, classes[chunk.start : chunk.stop])

            walk(model, images, 1, self.max_batch, solve)
        maps, changed, left = (torch.cat(p) for p in zip(*parts.values(), strict=True))
        return maps, {"pixels_changed": changed.double(), "output_left": left.double()}

    def optimise(self, model: Model, refill: Refill, targets: Targets) -> tuple[Maps, Scores, Scores]:
        """The maps of one chunk's images, the share of pixels changed, and the output left."""
        images, rng = refill.images, refill.rng
        size = self.resolve(model, images)
        side, shift = size["mask"], size["jitter"]
        m = rng.noise("mask", images.device).uniform((1, side, side)).to(images.dtype).requires_grad_()
        shifts = self.shifts(rng.noise("jitter", images.device), shift)
        optimiser = torch.optim.Adam([m], lr=self.rate)
        for step in range(self.steps):
            shown = self.perturbed(refill, self.enlarged(m, images), step)
            moved = in_format_of(moved_by(shown, shifts[:, step]), images) if shift else shown
            p = select_output(model(moved), targets, self.output)
            if not p.requires_grad:
                raise UsageError(
                    "the model's output does not depend on its input by a gradient: use Lime or SlidingPatch"
                )
            m.grad = gradients(self.area * (1 - m).abs().sum() + self.smoothness * tv3(m) + p.sum(), m)
            optimiser.step()
            with torch.no_grad():
                m.clamp_(0, 1)
        with torch.no_grad():
            keep = self.enlarged(m, images)
            shown = self.perturbed(refill, keep, self.steps)
            changed = ((shown - images).abs().amax(1) > CHANGED).to(images.dtype).mean((1, 2))
            left = select_output(model(shown), targets, self.output)
        return (1 - keep[:, 0]).detach(), changed, left

    def enlarged(self, m: Float[Tensor, "b 1 s s"], images: Images) -> Float[Tensor, "b 1 h w"]:
        """The mask at image size."""
        corners = {"align_corners": False} if self.upsampling == "bilinear" else {}
        return F.interpolate(m, size=images.shape[-2:], mode=self.upsampling, **corners)

    def perturbed(self, refill: Refill, keep: Float[Tensor, "b 1 h w"], step: int) -> Images:
        """The images seen through the mask."""
        images = refill.images
        if refill.whole is not None:
            return in_format_of(keep * images + (1 - keep) * refill.whole, images)
        kept = (keep > 0.5).detach()
        hard = kept.to(images.dtype) - keep.detach() + keep  # the value of the decision, the gradient of the mask
        filled = refill.filler.painted(images, hard)
        if filled is None:
            with torch.no_grad():
                filled = refill(kept[:, 0], Chunk(0, len(images), 1, images.device), step)
        return in_format_of(hard * images + (1 - hard) * filled, images)

    def shifts(self, noise: Noise, most: int) -> Int[Tensor, "b t 2"]:
        """Shifts in 0..most for every step and key."""
        return (noise.uniform((self.steps, 2)) * (most + 1)).long()


def moved_by(images: Images, shift: Int[Tensor, "b 2"]) -> Images:
    """Every image moved up and left by its own shift; the border repeats."""
    row, column = (
        (torch.arange(side, device=images.device) + by[:, None]).clamp_max(side - 1)
        for side, by in zip(images.shape[-2:], shift.unbind(1), strict=True)
    )
    image = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    return images[image, :, row[:, :, None], column[:, None]].movedim(-1, 1)


def tv3(m: Float[Tensor, "b 1 s s"]) -> Tensor:
    """Sum of the cubed absolute differences of neighbours."""
    return (m[..., 1:, :] - m[..., :-1, :]).abs().pow(3).sum() + (m[..., 1:] - m[..., :-1]).abs().pow(3).sum()
