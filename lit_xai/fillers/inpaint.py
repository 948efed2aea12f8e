"""A feed-forward in-painter: one network call fills holes of any shape.

Gated convolutions for free-form masks and a spectrally normalised discriminator of patches, as in Yu et al., "Free-Form
Image Inpainting with Gated Convolution"; one stage, small. It stands where Agarwal & Nguyen, "Explaining Image Classifiers
by Removing Input Features Using Generative Models", used DeepFill-v1, which knew rectangles alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from lit_xai.calls import autocast
from lit_xai.core import Images
from lit_xai.errors import UsageError
from lit_xai.fillers.constant import Blur
from lit_xai.fillers.generative import GenerativeFiller, check_precision
from lit_xai.fillers.static import Call
from lit_xai.models.trainable import TrainableSampler
from lit_xai.rng import Noise, stable_hash

GRIDS = (2, 3, 4, 6, 8, 16)  # cells a side of the noise that training holes are cut from; one cell a pixel, too
SQUARES = 0.25  # share of training holes that are rectangles
STRONG, FAR = (
    Blur(kernel=61, sigma=10.0),
    1e-6,
)  # what a hole is filled with for comparison; least weight of visible pixels
TINY = 1e-6
GAIN = 2.4  # of a gated layer's first weights
SMALLEST, LARGEST = 0.03, 0.97  # share of an image that other training holes cover

Visible = Float[Tensor, "b 1 h w"]  # 1 = the pixel stays


class Gated(nn.Module):
    """A convolution whose every output value is weighed by a gate in (0, 1) of its own."""

    def __init__(self, inside: int, outside: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            inside, 2 * outside, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation
        )
        # gates are near 1/2 at first: this keeps the variance from layer to layer
        nn.init.normal_(self.convolution.weight, std=GAIN / math.sqrt(inside * kernel**2))
        nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Features of half of the filters, gated by the other half: `[b, c, h, w]` to `[b, k, u, v]`."""
        features, gate = self.convolution(x).chunk(2, dim=1)
        return F.elu(features) * torch.sigmoid(gate)


def pulled(images: Images, visible: Visible) -> Images:
    """Holes filled smoothly at every scale: means of visible pixels go up a pyramid, and back down where none is visible.

    Gortler et al., "The Lumigraph", 1996 (push-pull). Grey where nothing at all is visible.
    """
    colour, weight = [images * visible], [visible]
    while max(weight[-1].shape[-2:]) > 1:
        for scales in (colour, weight):
            scales.append(F.avg_pool2d(scales[-1], 2, ceil_mode=True))
    out = torch.full_like(colour[-1], 0.5)
    for c, w in zip(reversed(colour), reversed(weight), strict=True):
        enough = w if w.shape == visible.shape else (4 * w).clamp_max(1)  # one visible pixel of four will do
        out = F.interpolate(out, size=w.shape[-2:], mode="bilinear", align_corners=False)
        out = enough * c / w.clamp_min(TINY) + (1 - enough) * out
    return out


def smooth(images: Images, visible: Visible) -> Images:
    """Every pixel the mean of the visible ones by their distance (the strong blur's bell), of all where none is near."""
    weight = STRONG.background(visible)
    near = STRONG.background(images * visible) / weight.clamp_min(FAR)
    anywhere = (images * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True).clamp_min(1)
    return torch.where(weight > FAR, near, anywhere)


class InpaintNetwork(nn.Module):
    """What to add to the smooth filling: down twice, dilated, and up again beside what was there before.

    It sees the filling (see `smooth`), another one (`pulled`) and the mask; an untrained one adds nothing.

    Args:
        channels: of the images.
        width: filters at full size; twice and four times as many below.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.fine = Gated(2 * channels + 1, width, kernel=5)
        self.middle = nn.Sequential(Gated(width, 2 * width, stride=2), Gated(2 * width, 2 * width))
        self.coarse = nn.Sequential(
            Gated(2 * width, 4 * width, stride=2),
            *(Gated(4 * width, 4 * width, dilation=d) for d in (1, 2, 4, 1)),
        )
        self.up = Gated(6 * width, 2 * width)
        last = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.out = nn.Sequential(Gated(3 * width, width), last)

    def forward(self, images: Images, visible: Visible) -> Float[Tensor, "b c h w"]:
        """The painting at every pixel, in [0, 1]. Hidden pixels of the images are not read."""
        base = smooth(images, visible)
        fine = self.fine(torch.cat([2 * base - 1, 2 * pulled(images, visible) - 1, visible], dim=1))
        middle = self.middle(fine)
        x = F.interpolate(self.coarse(middle), size=middle.shape[-2:])
        x = F.interpolate(self.up(torch.cat([x, middle], dim=1)), size=fine.shape[-2:])
        return (base + self.out(torch.cat([x, fine], dim=1))).clamp(0, 1)


def discriminator(channels: int, width: int) -> nn.Module:
    """Whether every patch of a filled image looks real; it sees the mask, too."""
    sizes = [channels + 1, width, 2 * width, 4 * width]
    layers: list[nn.Module] = []
    for inside, outside in pairwise(sizes):
        layers += [spectral_norm(nn.Conv2d(inside, outside, 5, stride=2, padding=2)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(sizes[-1], 1, 3, padding=1)))


def free_form(number: int, height: int, width: int, generator: torch.Generator | None = None) -> Bool[Tensor, "m h w"]:
    """Masks for training, True = visible: rectangles, blobs, blocks and single pixels, from few hidden pixels to nearly all.

    All but the rectangles are random noise on a coarse grid, enlarged (smoothly or not) and cut at a random share.
    """
    out = torch.ones(number, height, width, dtype=torch.bool)
    u = torch.rand(number, 4, generator=generator).tolist()
    for row, (kind, share, grid, smooth) in enumerate(u):
        if kind < SQUARES:
            tall, wide = (max(1, round((0.1 + 0.7 * v) * n)) for v, n in ((share, height), (grid, width)))
            top, left = (int(torch.randint(n, (), generator=generator)) for n in (height - tall + 1, width - wide + 1))
            out[row, top : top + tall, left : left + wide] = False
            continue
        cells = (*GRIDS, max(height, width))[int(grid * (len(GRIDS) + 1))]
        noise = torch.rand(1, 1, min(cells, height), min(cells, width), generator=generator)
        mode = {"mode": "bilinear", "align_corners": False} if smooth < 0.5 else {"mode": "nearest"}
        level = F.interpolate(noise, size=(height, width), **mode)[0, 0]  # type: ignore[arg-type]
        hidden = level < level.flatten().quantile(SMALLEST + (LARGEST - SMALLEST) * share)
        out[row] = ~hidden if bool(hidden.any()) else level > level.min()
    return out


def holes_of(images: Images, generator: torch.Generator | None = None) -> Bool[Tensor, "b h w"]:
    """A free-form mask for each of these images."""
    height, width = images.shape[-2:]
    return free_form(len(images), height, width, generator).to(images.device)


def mean_over(values: Images, part: Visible) -> Float[Tensor, "b"]:
    """The mean of every image's values over a part of it; 0 where that is empty."""
    return (values * part).sum((1, 2, 3)) / (part.sum((1, 2, 3)) * values.shape[1]).clamp_min(1)


class InpaintModule(TrainableSampler):
    """Trains the in-painter on free-form holes in images of the training folds.

    Loss: mean absolute error (in the hole, and a little outside) and, times `adversarial`, what the discriminator thinks of
    the filled image (hinge). The two have an optimizer each, stepped by hand after one backward pass: the in-painter's part of
    the loss sees the discriminator's weights as constants.

    Args:
        channels, side, classes, colour: given by the data.
        width: filters at full size.
        critic: filters of the discriminator's first layer.
        adversarial: weight of the discriminator's verdict; 0 trains without one.
        outside: weight of the visible pixels' error.
        clip: largest norm of either gradient.
        lr, weight_decay, schedule, optimizer: see `Trainable`.

    Raises:
        UsageError: images that cannot be halved twice; a number out of range.
    """

    measure = "l1"

    def __init__(
        self,
        channels: int,
        side: int,
        classes: int = 0,
        colour: Any = None,
        width: int = 16,
        critic: int = 16,
        adversarial: float = 0.001,
        outside: float = 0.1,
        clip: float = 1.0,
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        schedule: str = "onecycle",
        optimizer: str = "adamw",
    ) -> None:
        super().__init__(lr, weight_decay, schedule, optimizer)
        if side < 8:
            raise UsageError(f"the in-painter needs images of at least 8 px, found {side}")
        if min(width, critic) < 1 or min(adversarial, outside) < 0 or not clip > 0:
            raise UsageError(
                f"model.width, critic and clip must be positive, adversarial and outside at least 0, found {width}, "
                f"{critic}, {clip}, {adversarial}, {outside}"
            )
        self.automatic_optimization = False
        self.clipping = f"model.clip below {clip}"
        self.channels, self.side = channels, side
        self.adversarial, self.outside, self.clip = adversarial, outside, clip
        self.network = InpaintNetwork(channels, width)
        self.critic = discriminator(channels, critic) if adversarial else None

    def sampler(self) -> Inpainter:
        """What paints with the network."""
        return Inpainter(given=self)

    def configure_optimizers(self) -> Any:
        """One of the in-painter and one of the discriminator."""
        return [self.optimizer_of(part.parameters()) for part in self.parts]

    @property
    def parts(self) -> list[nn.Module]:
        """The in-painter and the discriminator, if there is one."""
        return [self.network] if self.critic is None else [self.network, self.critic]

    def filled(self, images: Images) -> tuple[Images, Tensor, Visible]:
        """Images with free-form holes filled, the error of the painting, and the masks."""
        keep = holes_of(images)[:, None].to(images)
        painting = self.network(images, keep)
        error = (painting - images).abs()
        inside, outside = (mean_over(error, part).mean() for part in (1 - keep, keep))
        return keep * images + (1 - keep) * painting, inside + self.outside * outside, keep

    def verdict(self, images: Images, keep: Visible, constant: bool = False) -> Tensor:
        """The discriminator's opinion of every patch, above 0 = real; without a gradient of its weights if `constant`."""
        assert self.critic is not None
        weights = {n: p.detach() if constant else p for n, p in self.critic.named_parameters()}
        return torch.func.functional_call(self.critic, weights, (torch.cat([2 * images - 1, keep], dim=1),))

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The in-painter's and the discriminator's loss of a batch."""
        filled, error, keep = self.filled(batch[0])
        if self.critic is None:
            return error
        real, false = self.verdict(batch[0], keep), self.verdict(filled.detach(), keep)
        fooled = self.verdict(filled, keep, constant=True).mean()
        return error - self.adversarial * fooled + F.relu(1 - real).mean() + F.relu(1 + false).mean()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:  # type: ignore[override]
        """One step of both."""
        loss = self.batch_loss(batch)
        self.check_finite(loss.detach(), index)
        found: Any = self.optimizers()
        optimizers = found if isinstance(found, list) else [found]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for part, optimizer in zip(self.parts, optimizers, strict=True):
            nn.utils.clip_grad_norm_(part.parameters(), self.clip)
            optimizer.step()
        for scheduler in self.schedulers():
            scheduler.step()
        self.log("train/loss", loss.detach(), prog_bar=True, on_step=True, on_epoch=False)

    def schedulers(self) -> list[Any]:
        """Of the learning rates; none for a constant one."""
        found: Any = self.lr_schedulers()
        return [] if found is None else found if isinstance(found, list) else [found]

    def held_out(self, images: Images, index: int) -> Tensor:
        """Mean absolute error in one hole of every image; the holes are the same in every epoch."""
        g = torch.Generator().manual_seed(stable_hash(self.seed, "inpaint", index, self.global_rank))
        hidden = 1 - holes_of(images, g)[:, None].to(images)
        return mean_over((self.network(images, 1 - hidden) - images).abs(), hidden).mean()


@dataclass(frozen=True)
class Inpainter(GenerativeFiller):
    """Hidden pixels painted by one call of a trained network; the same visible pixels always get the same painting.

    Args:
        checkpoint, trained_on, given, max_batch, compile: see `GenerativeFiller`.
        precision: `float32`, or `bf16` for autocast.
    """

    precision: str = "float32"

    model = "inpainter"
    kind = InpaintModule
    turn_off_rate = 0.5
    deterministic = True
    paints = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_precision(self.precision)

    def draw(
        self,
        images: Float[Tensor, "m c h w"],
        code: Float[Tensor, "b ..."],
        rows: Int[Tensor, "m"],
        keep: Bool[Tensor, "m h w"],
        noise: Noise,
    ) -> Float[Tensor, "m c h w"]:
        """One painting a row."""
        with torch.inference_mode():
            return self.painted(images, keep[:, None].to(images))

    def painted(self, images: Images, visible: Visible) -> Images:
        """The painting at every pixel, differentiable by the mask, which may be soft."""

        def make(module: Any) -> Call:
            def passed(images: Tensor, visible: Tensor) -> Tensor:
                with autocast(images, self.precision):
                    return module.network(images, visible).to(images.dtype)

            return passed

        return self.quick(images, make, self.precision)(images, visible)

    def quality(self, images: Images) -> dict[str, Float[Tensor, "b"]]:
        """Mean absolute error in a free-form hole of every image, and that of other fillings.

        `grey`; `smooth`, a Gaussian blur of what is visible; `blur`, one of the whole image, which has seen what is hidden.
        """
        visible = holes_of(images, torch.Generator().manual_seed(0))[:, None].to(images)
        with torch.inference_mode():
            painted = self.painted(images, visible)
        fillings = {
            "hole_l1": painted,
            "hole_l1_grey": torch.full_like(images, 0.5),
            "hole_l1_smooth": smooth(images, visible),
            "hole_l1_blur": STRONG.background(images),
        }
        return {n: mean_over((f - images).abs(), 1 - visible) for n, f in fillings.items()}
