"""The checker of the other tests notices what does not fit."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float, Int
from lit_xai.rng import SampleRng
from torch import Tensor

from checker import checked

IMAGES, CLASSES = torch.rand(3, 2), torch.arange(3)


@checked
def weighted(x: Float[Tensor, "b c"], y: Int[Tensor, " b"], by: float = 1, *more: int, **named: str) -> Tensor:
    return x.long() if by < 0 else x * by


@checked
def widened(x: Float[Tensor, "b c"], to: int) -> Float[Tensor, "b c"]:
    return x.expand(to, *x.shape)[0] if to == len(x) else x[:to]


@checked
@dataclass
class Held:
    value: list[int]


def test_what_fits_passes():
    assert weighted(IMAGES, CLASSES, 2, 3, name="x").shape == (3, 2)
    assert widened(IMAGES, 3).shape == (3, 2)
    assert Held([1]).value == [1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: weighted(IMAGES, CLASSES[:2]),
        lambda: weighted(IMAGES.long(), CLASSES),
        lambda: weighted(IMAGES[0], CLASSES),
        lambda: weighted(IMAGES, y=IMAGES),
        lambda: weighted(IMAGES, CLASSES, "2"),
        lambda: weighted(IMAGES, CLASSES, 2, 3.5),
        lambda: weighted(IMAGES, CLASSES, name=4),
        lambda: widened(IMAGES, 2),
        lambda: Held("1"),
        lambda: SampleRng("0", (1, 2)),
        lambda: SampleRng(0, (1, 2)).take("a"),
    ],
)
def test_what_does_not_fit_is_an_error(call):
    with pytest.raises(TypeError, match=" is not "):
        call()
