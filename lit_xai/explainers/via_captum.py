"""One adapter that runs any of captum's attributions by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_xai.calls import evaluating, gated, raw
from lit_xai.core import Explainer, Images, Maps, Model, Passes, Targets
from lit_xai.errors import UsageError
from lit_xai.explainers.gradient import reduce_channels
from lit_xai.fitting import accepts
from lit_xai.rng import SampleRng, stable_hash

BASELINE_REQUIRED = {"GradientShap", "DeepLiftShap"}  # captum wants a distribution of baselines: black images here
UNRELIABLE_ON_RESIDUAL = {"LRP"}  # captum 0.9 gives wrong relevances where branches are added


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's and NumPy's global generators seeded, because captum draws from both; restored afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002


@dataclass(frozen=True)
class Captum(Explainer):
    """captum's `method`, e.g. `Captum("DeepLift")`; maps are its attributions reduced over the channels.

    Methods that draw random numbers are run image by image from the sample's own seed, so that a map does not depend
    on its batch.

    Args:
        method: a class of `captum.attr`.
        layer: dotted module name, for layer methods.
        options: keyword arguments of captum's `attribute`.
        channels: reduction over the channels: mean, max or sum.
    """

    method: str
    layer: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    channels: str = "mean"

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        rng = SampleRng.default(len(images), rng)
        maps = []
        with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
            attribution = self.build(model)
            images, targets = images.clone(), targets.clone()
            single = self.is_random(attribution)
            for rows in [[r] for r in range(len(images))] if single else [list(range(len(images)))]:
                with seeded(stable_hash(rng.seed, "captum", rng.samples[rows[0]])):
                    maps.append(self.attribute(attribution, images[rows], targets[rows]))
        return torch.cat(maps)

    def build(self, model: Model) -> Any:
        """The captum object for this model."""
        import captum.attr

        known = {n: k for n, k in vars(captum.attr).items() if isinstance(k, type) and "attribute" in dir(k)}
        kind = known.get(self.method)
        if kind is None:
            raise UsageError(f"captum has no attribution {self.method!r}; it has: {', '.join(sorted(known))}")
        own = raw(model)
        if not isinstance(own, nn.Module):
            raise UsageError(f"captum's {self.method} needs a torch.nn.Module, found a plain function")
        if self.method in UNRELIABLE_ON_RESIDUAL and is_residual(own):
            raise UsageError(
                f"captum's {self.method} is unreliable on residual networks: use another method or network"
            )
        if self.method == "NoiseTunnel":
            return kind(captum.attr.Saliency(model))
        wants = accepts(kind.__init__) or set()
        if "layer" not in wants:
            return kind(model)
        modules = dict(own.named_modules())
        if self.layer not in modules:
            raise UsageError(f"captum's {self.method} needs layer=, one of: {', '.join(list(modules)[1:])}")
        return kind(model, modules[self.layer])

    def is_random(self, attribution: Any) -> bool:
        """Whether captum draws random numbers for this method (it then takes a number of samples)."""
        return bool({"n_samples", "nt_samples"} & (accepts(attribution.attribute) or set()))

    def attribute(self, attribution: Any, images: Tensor, targets: Tensor) -> Maps:
        """One call of captum, brought to image size and one channel."""
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in self.options.items()}  # captum wants tuples
        if self.method in BASELINE_REQUIRED:
            options.setdefault("baselines", torch.zeros_like(images[:1]).repeat(2, 1, 1, 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # captum announces the hooks it sets and removes
            out = attribution.attribute(images.requires_grad_(), target=targets, **options)
        out = out[0] if isinstance(out, tuple) else out
        out = out.detach().to(images.dtype)
        if out.ndim != 4:
            raise UsageError(
                f"captum's {self.method} gave shape {tuple(out.shape)}: it is not an attribution of pixels"
            )
        if out.shape[-2:] != images.shape[-2:]:
            out = F.interpolate(out, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return reduce_channels(out, self.channels)

    def passes(self, height: int, width: int) -> Passes:
        """A guess from the usual option names."""
        steps = int(self.options.get("n_steps", self.options.get("n_samples", 1)))
        return Passes(steps, steps)


def is_residual(model: nn.Module) -> bool:
    """Whether the network adds branches, by the names that residual blocks bear."""
    return any("block" in type(m).__name__.lower() or "bottleneck" in type(m).__name__.lower() for m in model.modules())
