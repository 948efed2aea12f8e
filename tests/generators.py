"""Tiny generators with weights that are all alive, and their checkpoints as `lit_xai.train` leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from lit_xai.fillers import DDIM, ConditionalGaussian, DDIMInpainting, Flow, Inpainter, PatchSampler
from lit_xai.fillers.diffusion import DDIMModule
from lit_xai.fillers.fitted import FittedFiller
from lit_xai.fillers.flow import FlowModule
from lit_xai.fillers.gaussian import GaussianModule
from lit_xai.fillers.inpaint import InpaintModule
from lit_xai.fillers.patch import PatchModule
from lit_xai.fillers.patch_network import Smooth
from lit_xai.models.trainable import SamplerModule
from lit_xai.store.files import save_weights

from conftest import seeded


class Generator(NamedTuple):
    """What is trained, the filler that draws with it, and options of both; `other` is another shape of the weights."""

    filler: type[FittedFiller]
    module: type[SamplerModule]
    node: dict[str, Any]
    other: dict[str, Any]
    options: dict[str, Any]


DIFFUSION = {"width": [8], "layers": 1, "attention": 0}
GENERATORS = {
    "patch_sampler": Generator(
        PatchSampler, PatchModule, {"patch": 2, "width": 3, "depth": 1}, {"width": 4}, {"max_batch": 3}
    ),
    "conditional_gaussian": Generator(
        ConditionalGaussian, GaussianModule, {"patch": 2, "margin": 1, "positions": 100}, {"margin": 2}, {}
    ),
    "ddim": Generator(DDIM, DDIMModule, DIFFUSION, {"width": [16]}, {"steps": 2, "refine": 1, "eta": 0.7}),
    "ddim_inpainting": Generator(DDIMInpainting, DDIMModule, DIFFUSION, {"width": [16]}, {"steps": 2, "blur": 0.5}),
    "flow": Generator(Flow, FlowModule, {"levels": 2, "steps": 1, "width": 4}, {"steps": 2}, {"mu": 0.6, "sigma": 0.1}),
    "inpainter": Generator(Inpainter, InpaintModule, {"width": 4, "critic": 4}, {"width": 5}, {"max_batch": 2}),
}


def made(kind: type[SamplerModule], channels: int = 1, side: int = 8, seed: int = 0, **node: Any) -> SamplerModule:
    """A module whose weights have all an effect; a Gaussian is fitted to noise."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = kind(channels=channels, side=side, colour=([0.4] * channels, [0.3] * channels), **node)
        for p in module.parameters():
            p.data += 0.1 * torch.randn(p.shape)
        for m in module.modules():
            if isinstance(m, Smooth):
                m.gain.normal_(0, 0.1)
                m.log_scale.fill_(-2.5)
    if isinstance(module, GaussianModule):
        module.fit(torch.rand(50, channels, side, side, generator=seeded(seed)))
    return module.eval()


def save(module: SamplerModule, path: Path, node: dict[str, Any], about: str = "") -> str:
    """Its checkpoint."""
    kind = type(module)
    config = {
        "model": {"_target_": f"{kind.__module__}.{kind.__name__}", **node},
        "shape": {"channels": module.channels, "side": module.side},
        "about": about,
    }
    save_weights(module, path, config)
    return str(path)
