"""Diffusion models that diffusers saved: which are understood, and how they are read without running code."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from lit_xai.errors import UsageError
from lit_xai.fillers.denoiser import Denoiser, MeanOnly, UNet

SAFELY = "name a folder saved by diffusers with safe_serialization=True"
WEIGHTS, NETWORK, SCHEDULE = "diffusion_pytorch_model.safetensors", "config.json", "scheduler_config.json"


def files_of(path: Path) -> list[Path] | None:
    """Weights, network and schedule of a folder that diffusers saved (a pipeline's); None for another folder.

    Raises:
        UsageError: one of them is missing, or the network's images are not pictures but another network's code.
    """
    if (path / "model_index.json").is_file():
        parts = read_json(path / "model_index.json")
        if {"vae", "vqvae"} & set(parts):
            raise UsageError(f"{path} draws codes of a {parts.get('_class_name')}, not images: name a model of pixels")
    for folder in (path / "unet", path):
        if (folder / NETWORK).is_file():
            places = (path / "scheduler" / SCHEDULE, path.parent / "scheduler" / SCHEDULE, folder / SCHEDULE)
            schedule = next((p for p in places if p.is_file()), places[0])
            for file in (folder / WEIGHTS, schedule):
                if not file.is_file():
                    raise UsageError(f"{file} is missing: {SAFELY}")
            return [folder / WEIGHTS, folder / NETWORK, schedule]
    return None


def read(weights: Path) -> Denoiser:
    """The network and schedule of a folder; images are taken to be scaled to [-1, 1]. No code runs.

    Raises:
        UsageError: files are damaged, or of a kind that cannot draw images here; the message says which.
    """
    import diffusers

    found = files_of(weights.parent)
    assert found is not None
    folder, schedule = weights.parent, found[2]
    config, steps = read_json(folder / NETWORK), read_json(schedule)
    side = checked_network(config, folder)
    kind = getattr(diffusers, str(steps.get("_class_name", "DDIMScheduler")), None)
    if not isinstance(kind, type) or not issubclass(kind, diffusers.SchedulerMixin):
        raise UsageError(f"{schedule} names {steps['_class_name']}, which is no schedule of diffusers: {SAFELY}")
    try:  # built from plain numbers and words: what else diffusers might do at the word of a file is not asked of it
        network: Any = diffusers.UNet2DModel(**own_options(diffusers.UNet2DModel, config, folder / NETWORK))
        network.load_state_dict(load_file(weights))
        scheduler = kind(**own_options(kind, steps, schedule))
    except UsageError:
        raise
    except Exception as e:
        first = (str(e).splitlines() or [""])[0][:120]
        raise UsageError(f"{folder} does not load ({type(e).__name__}: {first}): {SAFELY}") from None
    signal, predicts = checked_schedule(scheduler, schedule)
    channels = network.config.in_channels
    wrap = UNet if network.config.out_channels == channels else MeanOnly
    return Denoiser(wrap(network).eval().requires_grad_(False), channels, side, signal, predicts)


def read_json(file: Path) -> dict[str, Any]:
    """A file of diffusers' own.

    Raises:
        UsageError: it is damaged.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as e:
        raise UsageError(f"{file} cannot be read ({type(e).__name__}): {SAFELY}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{file} holds no options: {SAFELY}")
    return content


def own_options(kind: Any, config: dict[str, Any], file: Path) -> dict[str, Any]:
    """A file's options for a class of diffusers; its notes (`_class_name` and others with an underscore) are left out.

    Raises:
        UsageError: there are others that matter: remote code, quantisation; any other of a network.
    """
    from diffusers import SchedulerMixin

    options = {k: v for k, v in config.items() if not k.startswith("_")}
    known = set(inspect.signature(kind.__init__).parameters)
    if issubclass(kind, SchedulerMixin):  # folders keep numbers of schedules that they were converted from
        options = {k: v for k, v in options.items() if k in known or isinstance(v, dict)}
    if other := sorted(set(options) - known):
        raise UsageError(f"{file} asks for {', '.join(other[:3])}, which a {kind.__name__} does not have: {SAFELY}")
    return options


def checked_network(config: dict[str, Any], folder: Path) -> int:
    """The side of a network's images.

    Raises:
        UsageError: it is no UNet2DModel, or needs more than images and steps.
    """
    channels, out, side = config.get("in_channels"), config.get("out_channels"), config.get("sample_size")
    if isinstance(side, list) and len(set(side)) == 1:
        side = side[0]
    wrong = {
        f"is a {config.get('_class_name')}, not a UNet2DModel": config.get("_class_name") != "UNet2DModel",
        "was trained with class labels": config.get("class_embed_type") or config.get("num_class_embeds"),
        "takes noise levels for steps (time_embedding_type)": config.get("time_embedding_type", "positional")
        != "positional",
        f"has {channels} channels in and {out} out": out not in (channels, 2 * (channels or 0)),
        f"has sample_size={side}, not one side": not isinstance(side, int),
    }
    for what, is_so in wrong.items():
        if is_so:
            raise UsageError(f"the network in {folder} {what}: name an unconditional UNet2DModel of square images")
    assert isinstance(side, int)
    return side


def checked_schedule(scheduler: Any, file: Path) -> tuple[Tensor, str]:
    """The signal's share of variance after every step, and what the network predicts.

    Raises:
        UsageError: a schedule of another kind, or one that ends in noise alone.
    """
    signal, predicts = vars(scheduler).get("alphas_cumprod"), scheduler.config.get("prediction_type")
    kind = type(scheduler).__name__
    if signal is None or predicts is None:
        raise UsageError(f"{file} is a {kind}, whose steps are not DDIM's: name a model with a DDPM or DDIM schedule")
    if not float(signal[-1]) > 0:
        raise UsageError(
            f"{file} ends at a signal of 0 (rescale_betas_zero_snr), from which no deterministic way leads back to an image: "
            f"name a model trained without it"
        )
    return signal.double().cpu(), predicts
