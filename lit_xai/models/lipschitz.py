"""The 1-Lipschitz network of Fel et al. (2022), table 4, and the constant that is measured on it."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from lit_xai.calls import Gate
from lit_xai.errors import UsageError

ACTIVATIONS = ("groupsort", "prelu")
MEMORY = 1 << 29  # bytes of the Jacobians that are kept at once
SLICE = 8192  # pixel values of them that are in float64 at once
ROUNDS = 15  # of Björck's iteration, at most, as torchlip has it; the gradient goes through the first ones,
DIFFERENTIATED = 4  # and those after them hand on 1.5 times what comes


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
    for layer in filter(parametrize.is_parametrized, network):
        chain = layer.parametrizations["weight"]  # type: ignore[index, union-attr]
        for i, part in enumerate(chain):
            if type(part).__name__ == "_BjorckNorm":
                chain[i] = Bjorck(part._w_bjorck, part.eps)
    return network


class Bjorck(nn.Module):
    """torchlip's Björck normalisation of a weight, by which its singular values become 1 (Björck & Bowie, 1971).

    On the CPU it is torchlip's own. That asks after every round whether another is needed, and on any other device waits for the
    answer: there, all rounds are made and the device chooses. Buffers have torchlip's names, and stay where they are.

    Args:
        weight: to begin with.
        eps: rounds end when one changes the weight by less, in the Frobenius norm.
    """

    _w_bjorck: Tensor

    def __init__(self, weight: Float[Tensor, "out *in"], eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("_w_bjorck", weight.detach().clone())

    def forward(self, weight: Float[Tensor, "out *in"]) -> Float[Tensor, "out *in"]:
        """Of a new weight in training mode; else that of the last step."""
        if not self.training:
            return self._w_bjorck
        if weight.device.type == "cpu":
            from deel.torchlip.normalizers import bjorck_normalization

            with torch.autocast("cpu", enabled=False):  # in bf16 it does not converge, and norms are up to 1.003
                found = bjorck_normalization(weight, self.eps)
        else:
            found = orthonormalised(weight, self.eps)
        self._w_bjorck.copy_(found.detach())
        return found


def orthonormalised(weight: Float[Tensor, "out *in"], eps: float) -> Float[Tensor, "out *in"]:
    """What torchlip's early end gives, to rounding, and its gradient, without asking how many rounds that is."""
    matrix = weight.flatten(1)
    tall = matrix.shape[0] > matrix.shape[1]
    found = Rounds.apply(matrix.mT if tall else matrix, eps)
    return (found.mT if tall else found).reshape(weight.shape)


class Rounds(torch.autograd.Function):
    """w <- 1.5 w - .5 w w^T w until a round changes w `[m, n]` by less than eps, at most `ROUNDS` times; m <= n."""

    @staticmethod
    def forward(ctx: Any, w: Float[Tensor, "m n"], eps: float) -> Float[Tensor, "m n"]:
        """All rounds are made; the first small change tells which is the last."""
        every, gram = w.new_empty(ROUNDS + 1, *w.shape), w.new_empty(len(w), len(w))
        every[0].copy_(w)
        for before, after in pairwise(every):
            torch.mm(before, before.mT, out=gram)  # autocast leaves what has an `out` in float32
            torch.addmm(before, gram, before, beta=1.5, alpha=-0.5, out=after)
        large = (every[1:] - every[:-1]).flatten(1).norm(dim=1) >= eps
        number = (large.cumprod(0).sum() + 1).clamp_max(ROUNDS)
        ctx.save_for_backward(every[:DIFFERENTIATED].clone(), number)
        return every.index_select(0, number.view(1))[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, "m n"]) -> Any:
        """Back through the rounds that there were."""
        every, number = ctx.saved_tensors
        grad = grad * torch.pow(1.5, (number - DIFFERENTIATED).clamp_min(0))
        for k in reversed(range(DIFFERENTIATED)):
            w = every[k]
            along = grad @ w.mT
            back = torch.addmm(grad, w @ w.mT, grad, beta=1.5, alpha=-0.5).addmm_(along + along.mT, w, alpha=-0.5)
            grad = torch.where(number > k, back, grad)
        return grad, None


def plain(network: nn.Module) -> nn.Module:
    """A copy without parametrisations: equal in value, and one ordinary forward pass per call."""
    if hasattr(network, "vanilla_export"):
        with torch.no_grad():
            return copy.deepcopy(network).eval().vanilla_export()  # type: ignore[operator]
    return network


class Temperature(nn.Module):
    """Logits tau z of a network z: 1-Lipschitz networks are trained as softmax(tau z), and z alone is never sure of anything.

    Args:
        tau: above 0.
    """

    tau: Tensor

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.register_buffer("tau", torch.tensor(float(tau)))

    def forward(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        return logits * self.tau


def without_temperature(model: nn.Module) -> nn.Module | None:
    """The network z of a predictor that ends in a `Temperature`; None for any other."""
    if isinstance(model, nn.Sequential) and len(model) and isinstance(model[-1], Temperature):
        return model[:-1]
    return None


def temperature_of(model: nn.Module) -> float:
    """The tau of a predictor that ends in a `Temperature`; 1 of any other."""
    return float(model[-1].tau) if isinstance(model, nn.Sequential) and without_temperature(model) is not None else 1.0  # type: ignore[arg-type]


def fitted_temperature(logits: Float[Tensor, "n k"], labels: Tensor, spread: float = math.inf) -> float:
    """The tau in [.01, 10,000] that makes the mean of -log softmax(tau z)[label] least.

    Args:
        logits, labels: z, and the classes `[n]`.
        spread: standard deviation of log tau about 0 before any image was seen (the maximum a posteriori); without one, the tau that
            fits images that are all told rightly is as large as may be.
    """
    z = logits.double()

    def loss(log_tau: float) -> float:
        fit = float(nn.functional.cross_entropy(z * math.exp(log_tau), labels))
        return fit + (log_tau / spread) ** 2 / (2 * len(z))

    return math.exp(minimize_scalar(loss, bounds=(math.log(1e-2), math.log(1e4)), method="bounded").x)


def local_lipschitz(model: nn.Module, images: Float[Tensor, "b c h w"], max_batch: int = 64) -> Float[Tensor, "b"]:
    """The largest singular value of d z / d image at every image: a lower bound of the Lipschitz constant.

    Of a predictor with a `Temperature` z are the logits before it. One backward pass a class and batch; a batch is of at most
    `max_batch` images, and of as few as their Jacobians in `MEMORY` bytes allow, at least one.
    """
    gate = Gate.of(without_temperature(model) or model)
    with torch.inference_mode():
        classes = gate(images[:1]).shape[1]
    each = max(1, min(max_batch, MEMORY // (4 * classes * images[0].numel())))
    return torch.cat([largest_singular_value(gate, part, classes) for part in images.split(each)])


def largest_singular_value(gate: Gate, images: Float[Tensor, "b c h w"], classes: int) -> Float[Tensor, "b"]:
    """Of the Jacobians of one batch, by J J^T in float64, summed over slices of the pixels."""
    with torch.inference_mode(False), torch.enable_grad():
        x = images.clone().requires_grad_()
        logits = gate(x)
        jacobian = torch.empty(len(x), classes, x[0].numel(), dtype=x.dtype, device=x.device)
        for k in range(classes):
            jacobian[:, k] = torch.autograd.grad(logits[:, k].sum(), x, retain_graph=k + 1 < classes)[0].flatten(1)
    gram = torch.zeros(len(images), classes, classes, dtype=torch.float64, device=images.device)
    for part in jacobian.split(SLICE, dim=2):
        part = part.double()
        gram += part @ part.mT
    return torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0).sqrt()
