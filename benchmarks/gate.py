"""What the gate costs: all checks of one call, over RISE of 300 masks at 32 px; and the memory of a Lipschitz constant."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

import torch
from lit_xai.calls import Gate, admit
from lit_xai.explainers import RISE
from torch import Tensor, nn

from benchmarks.harness import Report, Target, seconds
from benchmarks.setting import CLASSES, model_and_images

MASKS, MANY, CHECKS = 300, 4, 50  # masks of RISE, which is called once; images of the larger batch; calls of the checks
SHARE = 0.01
GIGABYTES = 2.0
CLASSES_OF_IMAGENET, SIDE_OF_IMAGENET = 1000, 224


class Instant(nn.Module):
    """Answers at once; the modules that the gate looks at are the network's."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.logits = torch.randn(64, CLASSES, generator=torch.Generator().manual_seed(0))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[: len(images)]


def largest_memory() -> None:
    """Print the peak memory, GB, of a local Lipschitz constant at 1,000 classes and 224 px, beside the imports'."""
    from lit_xai.models.lipschitz import local_lipschitz

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

    # a network whose backward pass is short: the memory is that of the Jacobian
    network = nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, CLASSES_OF_IMAGENET),
    )
    before = peak()
    local_lipschitz(network.eval(), torch.rand(2, 3, SIDE_OF_IMAGENET, SIDE_OF_IMAGENET))
    print(before, peak())


def gate() -> Report:
    """The checks are timed apart, because they are less than the noise of what they are compared with."""
    model, images, targets = model_and_images()
    report = Report("gate", ["images", "RISE s", "checks s", "share"])
    shares = []
    for number in (1, MANY):
        x, y, instant = images[:number], targets[:number], Instant(model)
        whole = seconds(lambda: RISE(masks=MASKS)(model, x, y))  # noqa: B023
        rows = torch.rand(64, *images.shape[1:])

        def checks() -> None:
            admit(instant, x, y)  # noqa: B023
            Gate.of(instant)(rows)  # noqa: B023

        with torch.inference_mode():
            own = statistics.median(seconds(checks) for _ in range(CHECKS))
        shares.append(own / whole)
        report.rows.append([number, whole, own, own / whole])
    ask = "from benchmarks.gate import largest_memory; largest_memory()"
    told = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout.split()
    report.targets = [
        Target("checks over RISE of 300 masks at 32 px, one image", shares[0], SHARE),
        Target(f"checks over RISE of 300 masks at 32 px, {MANY} images", shares[1], SHARE),
        Target("local Lipschitz constant at 1,000 classes and 224 px, GB", float(told[1]), GIGABYTES),
    ]
    return report
