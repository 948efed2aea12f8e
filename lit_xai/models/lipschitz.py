"""The 1-Lipschitz network of Fel et al. (2022), table 4, and the constant that is measured on it."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.errors import UsageError

ACTIVATIONS = ("groupsort", "prelu")


def lipschitz(channels: int, classes: int, side: int, width: int = 48, activation: str = "groupsort") -> nn.Module:
    """Conv w - act - pool - Conv 2w - act - pool - Conv 2w - pool - dense, every layer 1-Lipschitz (deel-torchlip).

    No dropout: it is not 1-Lipschitz in training.

    Args:
        channels, classes, side: image channels, logits, image side in pixels.
        width: filters of the first convolution (48 in the paper).
        activation: `groupsort` (pairs) or `prelu` (slope clipped to [-1, 1]).
    """
    import deel.torchlip as lip

    if activation not in ACTIVATIONS:
        raise UsageError(f"model.network.activation must be one of {', '.join(ACTIVATIONS)}, found {activation!r}")
    if side < 8:
        raise UsageError(f"model=lipschitz pools three times by 2: images need at least 8 pixels, found {side}")

    def act() -> nn.Module:
        return lip.GroupSort2() if activation == "groupsort" else lip.LPReLU()

    features = 2 * width * (side // 2 // 2 // 2) ** 2
    network = lip.Sequential(
        lip.SpectralConv2d(channels, width, 3, padding=1),
        act(),
        lip.ScaledAvgPool2d(2),
        lip.SpectralConv2d(width, 2 * width, 3, padding=1),
        act(),
        lip.ScaledAvgPool2d(2),
        lip.SpectralConv2d(2 * width, 2 * width, 3, padding=1),
        lip.ScaledAvgPool2d(2),
        nn.Flatten(),
        lip.SpectralLinear(features, classes),
    )
    return network


def plain(network: nn.Module) -> nn.Module:
    """A copy without parametrisations: equal in value, and one ordinary forward pass per call."""
    if hasattr(network, "vanilla_export"):
        with torch.no_grad():
            return copy.deepcopy(network).eval().vanilla_export()  # type: ignore[operator]
    return network


def local_lipschitz(model: nn.Module, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """The largest singular value of d logits / d image at every image: a lower bound of the Lipschitz constant."""
    with torch.inference_mode(False), torch.enable_grad():
        x = images.clone().requires_grad_()
        logits = model(x)
        rows = [torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)[0] for k in range(logits.shape[1])]
    jacobian = torch.stack(rows, dim=1).flatten(2).double()
    return torch.linalg.matrix_norm(jacobian, ord=2)
