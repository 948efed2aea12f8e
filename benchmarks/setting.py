"""The model and the images that all speed benchmarks share: ResNet-18 at 32 px, channels-last, batch 16."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lit_xai.models import resnet18
from torch import Tensor, nn

BATCH, CHANNELS, SIDE, CLASSES, WIDTH = 16, 3, 32, 10, 64


def model_and_images() -> tuple[nn.Module, Tensor, Tensor]:
    """A network with seeded, untrained weights, one batch of random images, and their targets."""
    torch.manual_seed(0)
    model = resnet18(CHANNELS, CLASSES, SIDE, WIDTH).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(BATCH, CHANNELS, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    return model, images, torch.arange(BATCH) % CLASSES


def bare_forward(model: nn.Module, images: Tensor, calls: int) -> Callable[[], None]:
    """`calls` forward passes of the batch and nothing else."""

    def run() -> None:
        with torch.inference_mode():
            for _ in range(calls):
                model(images)

    return run


def bare_gradient(model: nn.Module, images: Tensor, targets: Tensor, calls: int) -> Callable[[], None]:
    """`calls` forward passes of the batch with the gradient to the images, and nothing else."""

    def run() -> None:
        for _ in range(calls):
            x = images.detach().requires_grad_()
            torch.autograd.grad(model(x).gather(1, targets[:, None]).sum(), x)

    return run


def rows_through(model: nn.Module, work: Callable[[], object]) -> int:
    """How many images `work` sends through the model."""
    rows = 0

    def count(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal rows
        rows += len(args[0])

    handle = model.register_forward_pre_hook(count)
    try:
        work()
    finally:
        handle.remove()
    return rows
