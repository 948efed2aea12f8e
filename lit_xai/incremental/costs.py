"""What a device takes: the constants of the cost model, and how they are measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """What a device takes; decisions rest on these constants, not on a clock, so that two runs decide alike.

    Attributes:
        conv, pointwise, grouped: floating-point operations a second in convolutions: k > 1, 1 x 1, in groups.
        memory: bytes a second in element-wise work.
        gather: bytes a second when rows of feature maps are picked.
        call, patch: seconds of one call of an operation, and of one on patches.
    """

    conv: float
    pointwise: float
    grouped: float
    memory: float
    gather: float
    call: float
    patch: float


COSTS = {
    "cpu": Costs(conv=3e11, pointwise=3.5e11, grouped=3e10, memory=2e10, gather=1e10, call=1e-5, patch=1.2e-4),
    # An H100 under torch 2.11, with TF32 convolutions; `patch` is what explains a whole measured call, see docs/incremental.md
    "cuda": Costs(conv=9.4e13, pointwise=4.1e13, grouped=1.4e12, memory=2.0e12, gather=2.5e11, call=8e-6, patch=3.7e-4),
}
