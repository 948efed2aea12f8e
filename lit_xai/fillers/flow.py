"""Glow, a normalising flow: encode an image, mix its code with a draw from the prior, decode.

Kingma & Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", built from the library normflows; used as a
sampler of perturbed images by Ademi, Noppel & Wressnegger (POMELO, section 2.4). An image x in [0, 1] stands for the bins
of its 256 levels: y = (255 x + u) / 256 - 1/2 with u in [0, 1]. The flow f gives z = f(y) the prior's density, so

    log p(y) = log p(z) + log |det df/dy|,        bits per dimension = 8 - log2 p(y) / dimensions,

u uniform (dequantisation): on average over u an upper bound of what the 8-bit image costs. To encode an image, u = 1/2, the
middle of every bin; whatever lies between two levels has its place there too, so that decoding undoes encoding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_xai.core import Images
from lit_xai.errors import UsageError, at_least
from lit_xai.fillers.generative import GenerativeFiller
from lit_xai.models.trainable import TrainableSampler
from lit_xai.rng import Noise, SampleRng, stable_hash

LEVELS = 256
BOUND = 2.0  # a coupling's log scale stays within +- so much
LEAST = 1e-6  # deviation of a channel, where activation normalisation starts
INIT_IMAGES = 256  # that it starts from
MIDDLE = 0.5  # of a bin


def to_bins(images: Images, u: Float[Tensor, "..."] | float = MIDDLE) -> Float[Tensor, "b c h w"]:
    """The values y in [-1/2, 1/2] of images in [0, 1]."""
    return (images * (LEVELS - 1) + u) / LEVELS - 0.5


def from_bins(y: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
    """The image whose bins' middles these are."""
    return ((y + 0.5) * LEVELS - MIDDLE) / (LEVELS - 1)


@contextmanager
def exact(x: Tensor) -> Iterator[None]:
    """Neither autocast nor TF32 where `x` `[m, ...]` lies: the inverse would not be one."""
    cudnn = torch.backends.cudnn
    kept = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    matmul = torch.backends.cuda.matmul
    allowed, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        with torch.autocast(x.device.type, enabled=False), cudnn.flags(**kept, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = allowed


class Coupling(nn.Module):
    """normflows' network of a coupling, its log scales bounded by BOUND tanh(. / BOUND) in either direction.

    Glow's own map, sigmoid(. + 2), divides by numbers as small as one likes where latents were mixed.
    """

    def __init__(self, channels: int, width: int) -> None:
        from normflows.nets import ConvNet2d

        super().__init__()
        self.net = ConvNet2d((channels // 2, width, width, channels), (3, 1, 3), init_zeros=True)

    def forward(self, x: Float[Tensor, "m half h w"]) -> Float[Tensor, "m all h w"]:
        """Shift and log scale of every channel, alternating."""
        out = self.net(x)
        scale = BOUND * torch.tanh(out[:, 1::2] / BOUND)
        return torch.stack((out[:, 0::2], scale), 2).flatten(1, 2)


class Glow(nn.Module):
    """Squeeze; steps of activation normalisation, 1 x 1 convolution (LU) and affine coupling; split; and again.

    Args:
        channels, side: of the images.
        levels: how often they are squeezed; half of the channels leave after every level but the last.
        steps: a level.
        width: filters of the couplings' networks.
    """

    def __init__(self, channels: int, side: int, levels: int, steps: int, width: int) -> None:
        from normflows import MultiscaleFlow
        from normflows.distributions import GlowBase
        from normflows.flows import Merge, Squeeze

        super().__init__()
        flows, priors = [], []
        for level in range(levels):  # from the last to the first
            inside = channels * 2 ** (levels + 1 - level)
            flows.append([f for _ in range(steps) for f in glow_step(inside, width)] + [Squeeze()])
            small = side // 2 ** (levels - level)
            priors.append(GlowBase((inside // 2 if level else inside, small, small)))
        self.flow = MultiscaleFlow(priors, flows, [Merge() for _ in range(levels - 1)], class_cond=False)
        self.inverses: list[Tensor] = []  # of the 1 x 1 convolutions in the order of decoding, see `renew`
        self.known = torch.empty(0)  # the weights that they belong to

    def encode(self, y: Float[Tensor, "m c h w"]) -> Float[Tensor, "m d"]:
        """The latents of all levels in a row, the deepest first."""
        with exact(y):
            z, _ = self.flow.inverse_and_log_det(y)
        return torch.cat([part.flatten(1) for part in z], 1)

    def decode(self, z: Float[Tensor, "m d"]) -> Float[Tensor, "m c h w"]:
        """The inverse of `encode`. No gradient reaches the weights of the 1 x 1 convolutions."""
        self.renew()
        return self.decoded(z)

    def decoded(self, z: Float[Tensor, "m d"]) -> Float[Tensor, "m c h w"]:
        """The same by the inverses that were worked out last; nothing in it waits for the device."""
        shapes, inverses = [tuple(q.shape) for q in self.flow.q0], iter(self.inverses)
        parts = [p.reshape(-1, *s) for p, s in zip(z.split([math.prod(s) for s in shapes], 1), shapes, strict=True)]
        y = parts[0]
        with exact(z):
            for level, flows in enumerate(self.flow.flows):
                if level:
                    y, _ = self.flow.merges[level - 1]([y, parts[level]])
                for flow in flows:
                    y = nn.functional.conv2d(y, next(inverses)) if is_convolution(flow) else flow(y)[0]
        return y

    @torch.inference_mode(False)
    @torch.no_grad()
    def renew(self) -> None:
        """Work out the inverses of the 1 x 1 convolutions where weights are others than before; this waits for the device.

        They are written where they were, since a recorded pass reads them there.
        """
        convolutions = [flow for flows in self.flow.flows for flow in flows if is_convolution(flow)]
        now = torch.cat([w.detach().flatten() for c in convolutions for w in (*c.parameters(), *c.buffers())])
        same = (now.shape, now.dtype, now.device) == (self.known.shape, self.known.dtype, self.known.device)
        if same and torch.equal(now, self.known):
            return
        with exact(now):
            found = [inverse_of(c, now) for c in convolutions]
        if same:
            for old, new in zip(self.inverses, found, strict=True):
                old.copy_(new)
        else:
            self.inverses = found
        self.known = now

    def log_prob(self, y: Float[Tensor, "m c h w"]) -> Float[Tensor, "m"]:
        """The log density of y, nats an image."""
        with exact(y):
            z, log_det = self.flow.inverse_and_log_det(y)
            return log_det + sum(q.log_prob(part) for q, part in zip(self.flow.q0, z, strict=True))

    def prior(self) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
        """Mean and standard deviation of the latents, in the order of `encode`; each channel of a level has its own."""
        of = []
        for q in self.flow.q0:
            mean = q.loc * torch.exp(q.loc_logs * q.logscale_factor)
            scale = torch.exp(q.log_scale * torch.exp(q.log_scale_logs * q.logscale_factor))
            of.append([v.expand(1, *q.shape).flatten() for v in (mean, scale)])
        mean, scale = (torch.cat(v) for v in zip(*of, strict=True))
        return mean, scale

    @torch.no_grad()
    def start(self, y: Float[Tensor, "m c h w"]) -> None:
        """Activation normalisation so set that each one's outputs on these have mean 0 and variance 1."""
        from normflows.flows import AffineConstFlow

        for level in reversed(range(len(self.flow.flows))):
            for flow in reversed(self.flow.flows[level]):
                if isinstance(flow, AffineConstFlow):
                    flow.t.copy_(y.mean((0, 2, 3), keepdim=True))
                    flow.s.copy_(y.std((0, 2, 3), keepdim=True, correction=0).clamp_min(LEAST).log())
                y, _ = flow.inverse(y)
            if level:
                (y, _), _ = self.flow.merges[level - 1].inverse(y)


def is_convolution(flow: nn.Module) -> bool:
    """Whether a flow is an invertible 1 x 1 convolution."""
    from normflows.flows import Invertible1x1Conv

    return isinstance(flow, Invertible1x1Conv)


def inverse_of(convolution: Any, like: Tensor) -> Float[Tensor, "c c 1 1"]:
    """The kernel by which it decodes: what it makes of unit vectors `[c, c, 1, 1]`, in the type and on the device of `like`."""
    units = torch.eye(convolution.num_channels, dtype=like.dtype, device=like.device)[:, :, None, None]
    return convolution(units)[0].transpose(0, 1).contiguous()


def glow_step(channels: int, width: int) -> list[nn.Module]:
    """One step, in the order of decoding.

    (normflows' ActNorm takes whichever batch comes first; here `Glow.start` does its work, once, and the layer is plain.)
    """
    from normflows.flows import AffineConstFlow, AffineCouplingBlock, Invertible1x1Conv

    coupling = AffineCouplingBlock(Coupling(channels, width), scale=True, scale_map="exp")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.lu is deprecated")
        convolution = Invertible1x1Conv(channels, use_lu=True)
    return [coupling, convolution, AffineConstFlow((channels, 1, 1))]


def rounded(images: Images) -> Images:
    """At the nearest of the 256 levels."""
    return (images * (LEVELS - 1)).round() / (LEVELS - 1)


def bits(log_prob: Float[Tensor, "b"], images: Images) -> Float[Tensor, "b"]:
    """Bits per pixel and channel of the 8-bit image, from log p(y)."""
    return math.log2(LEVELS) - log_prob / (math.log(2) * images[0].numel())


class FlowModule(TrainableSampler):
    """Trains Glow on images of the training folds; the loss is bits per dimension, uniformly dequantised.

    Args:
        channels, side, classes, colour: given by the data.
        levels: how often images are squeezed to half their side.
        steps: of the flow a level.
        width: filters of the couplings' networks.
        lr, weight_decay, schedule, optimizer: see `Trainable`.

    Raises:
        UsageError: a side that cannot be halved so often; a number out of range.
    """

    measure = "bits_per_dim"

    def __init__(
        self,
        channels: int,
        side: int,
        classes: int = 0,
        colour: Any = None,
        levels: int = 3,
        steps: int = 8,
        width: int = 64,
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        schedule: str = "onecycle",
        optimizer: str = "adamw",
    ) -> None:
        super().__init__(lr, weight_decay, schedule, optimizer)
        at_least(1, "model.", levels=levels, steps=steps, width=width)
        if side % 2**levels:
            most = (side & -side).bit_length() - 1
            advice = f"set model.levels={most} or less" if most else "set data.size= to an even number"
            raise UsageError(f"images of {side} px cannot be squeezed {levels} times: {advice}")
        self.channels, self.side = channels, side
        self.network = Glow(channels, side, levels, steps, width)

    def sampler(self) -> Flow:
        """What draws with the flow."""
        return Flow(given=self)

    def prepare(self, data: Any) -> None:
        """Start activation normalisation from images of the training folds of a `FoldData`; once, before the training.

        They belong to the seed, so every process does the same.
        """
        samples = data.split.training(data.fold) if data.k > 1 else data.split.samples
        g = torch.Generator().manual_seed(stable_hash(data.seed, "flow start"))
        samples = samples[torch.randperm(len(samples), generator=g)[:INIT_IMAGES]]
        images = data.source.train.images(samples.tolist()).to(self.device)
        self.network.start(self.dequantised(images, g))

    @staticmethod
    def dequantised(images: Images, generator: torch.Generator | None = None) -> Images:
        """Values y at a random point of every bin."""
        return to_bins(rounded(images), torch.rand(images.shape, generator=generator).to(images))

    def loss(self, images: Images, generator: torch.Generator | None = None) -> Tensor:
        """Mean bits per dimension."""
        return bits(self.network.log_prob(self.dequantised(images, generator)), images).mean()

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The training loss of a batch."""
        return self.loss(batch[0])

    def held_out(self, images: Images, index: int) -> Tensor:
        """Bits per dimension; the points of the bins are the same in every epoch."""
        g = torch.Generator().manual_seed(stable_hash(self.seed, "flow", index, self.global_rank))
        return self.loss(images, g)


@dataclass(frozen=True)
class Flow(GenerativeFiller):
    """Whole new images near the given one, by a trained flow: z' = (1 - l) z + l z*, z* from the prior, every l normal.

    Args:
        checkpoint, trained_on, given, max_batch, compile: see `GenerativeFiller`.
        mu, sigma: mean and standard deviation of l. 0 and 0 give the image back, 1 and 0 samples of the flow itself.
    """

    mu: float = 0.5
    sigma: float = 0.3

    model = "flow"
    kind = FlowModule

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = all(isinstance(v, int | float) and math.isfinite(v) for v in (self.mu, self.sigma))
        if not numbers or self.sigma < 0:
            raise UsageError(
                f"mu must be a number (0 = the image, 1 = a draw from the prior) and sigma at least 0, found "
                f"mu={self.mu}, sigma={self.sigma}"
            )

    def network(self, images: Tensor) -> Glow:
        """The flow on the device and in the type of images `[b, c, h, w]`."""
        module: Any = self.opened.like(images)
        return module.network

    def encode(self, images: Images) -> Float[Tensor, "b ..."]:
        """The latents of the images themselves, without noise."""
        with torch.no_grad():
            return self.network(images).encode(to_bins(images))

    def decode(self, code: Float[Tensor, "m d"]) -> Float[Tensor, "m c h w"]:
        """The images of latents, to values in [0, 1] (not cut off there)."""
        self.begin(code)
        return self.decoded(code)

    def begin(self, images: Tensor) -> None:
        """See to it that the inverses are those of the weights."""
        self.network(images).renew()

    def decoded(self, code: Float[Tensor, "m d"]) -> Float[Tensor, "m c h w"]:
        """As `decode`, within a loop, after `begin`."""
        with torch.no_grad():
            return from_bins(self.quick(code, lambda module: module.network.decoded)(code))

    def draw(
        self,
        images: Float[Tensor, "m c h w"],
        code: Float[Tensor, "b ..."],
        rows: Int[Tensor, "m"],
        keep: Bool[Tensor, "m h w"],
        noise: Noise,
    ) -> Float[Tensor, "m c h w"]:
        """A whole new image a row; what is visible does not matter to it."""
        z = code[rows]
        mean, scale = self.network(images).prior()
        latents, shares = (noise.part(p).normal(z.shape[1:]).to(z.dtype) for p in (0, 1))
        drawn, share = mean + scale * latents, self.mu + self.sigma * shares
        return self.decoded((1 - share) * z + share * drawn)

    def log_prob(self, images: Images, u: Float[Tensor, "..."] | float = MIDDLE) -> Float[Tensor, "b"]:
        """Nats: log p(y) of every image at the point u of its bins."""
        with torch.no_grad():
            return self.network(images).log_prob(to_bins(images, u))

    def quality(self, images: Images) -> dict[str, Float[Tensor, "b"]]:
        """Bits per dimension, and the largest absolute error of a pixel that is encoded and decoded.

        The point of the bins is drawn once and is the same for every image and call.
        """
        u = SampleRng.default(1).noise("bins", images.device)[0].uniform(images.shape[1:]).to(images.dtype)
        back = self.decode(self.encode(images))
        return {
            "bits_per_dim": bits(self.log_prob(rounded(images), u), images),
            "reconstruction_error": (back - images).abs().amax((1, 2, 3)),
        }
