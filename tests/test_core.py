"""What explainers, fillers and scores promise by default, and what may stand in their place."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from lit_xai.cli.build import build
from lit_xai.core import (
    Explainer,
    Filler,
    Legend,
    Passes,
    Score,
    TrainedOn,
    as_explainer,
    as_filler,
    as_score,
)
from lit_xai.errors import UsageError
from lit_xai.explainers import Lime, SlidingPatch
from lit_xai.explainers.lime import Toggle
from lit_xai.explainers.sweep import LogOddsDifference
from lit_xai.fillers import Colour, Mean
from lit_xai.fitting import describe
from lit_xai.metrics import Deletion
from lit_xai.segments import Grid


def brightness(model, images, targets, rng=None, power=1.0):
    return images.mean(1) ** power


def grey(images, keep, rng, draws=1, segments=None):
    return torch.where(keep[:, :, None], images[:, None], 0.5)[:, :, None].repeat(1, 1, draws, 1, 1, 1)


class Calls:
    """No explainer by its class, and nothing but a call."""

    def __init__(self) -> None:
        self.power = 2.0

    def __call__(self, model, images, targets, rng=None):
        return images.mean(1) ** self.power


@dataclass(frozen=True)
class Minimal(Explainer):
    """A call and nothing else."""

    filler: Filler = field(default_factory=Mean)

    def __call__(self, model, images, targets, rng=None):
        return images.requires_grad_().sum(1)


@pytest.mark.parametrize(
    "thing", [brightness, partial(brightness, power=3.0), Calls()], ids=["function", "partial", "object"]
)
def test_a_plain_callable_explains_and_is_described_as_itself(thing, rgb, targets, convnet):
    explainer = as_explainer(thing)
    assert torch.equal(explainer(convnet, rgb, targets), thing(convnet, rgb, targets))
    assert describe(explainer) == describe(thing)


def test_a_plain_function_fills_wherever_a_filler_may_stand(rgb, targets, convnet):
    plain, known = as_filler(grey), Colour(0.5)
    for explain in (
        lambda f: SlidingPatch(stride=112, filler=f),
        lambda f: Lime(segments=Grid(2), perturbation=Toggle(filler=f), samples=30),
    ):
        assert torch.allclose(explain(plain)(convnet, rgb, targets), explain(known)(convnet, rgb, targets), atol=1e-6)
    assert describe(SlidingPatch(filler=plain))["filler"] == describe(grey)


def test_a_method_that_gives_a_call_alone_has_every_default(rgb, targets, convnet):
    explainer = Minimal()
    maps, details = explainer.with_details(convnet, rgb.clone(), targets)
    assert (maps.requires_grad, details) == (False, {})
    assert (explainer.passes(8, 8), explainer.legend) == (Passes(1, 1), Legend())
    assert (explainer.resolved(convnet, rgb), explainer.contents()) == ({}, {})


def test_what_lies_deep_inside_is_fitted_and_the_rest_is_the_same_object():
    on = TrainedOn((0.1, 0.2, 0.3), samples=7)
    fitted = Lime(perturbation=Toggle(filler=Mean())).fitted(on)
    assert fitted.perturbation.filler == Mean(on.colour)
    assert SlidingPatch(contrast=LogOddsDifference(samples=None)).fitted(on).contrast.samples == 7
    known = Minimal(Colour(0.5))
    assert known.fitted(on) is known


class OldExplainer(Calls):
    """Of the time when methods were looked for."""

    def passes(self, height, width):
        return Passes(9)


@dataclass(frozen=True)
class OldNested:
    """A filler that nobody would fit."""

    filler: Filler = field(default_factory=Mean)

    def __call__(self, model, images, targets, rng=None):
        return images.sum(1)


class OldFiller:
    """Its draws are alike, and nobody would hear of it."""

    deterministic = True

    def __call__(self, images, keep, rng, draws=1, segments=None):
        return grey(images, keep, rng, draws)


@pytest.mark.parametrize(
    ("accept", "thing", "message"),
    [
        (
            as_explainer,
            OldExplainer(),
            "mine (OldExplainer) has passes: let its class inherit lit_xai.core.Explainer",
        ),
        (
            as_explainer,
            OldNested(),
            "mine (OldNested) has filler: let its class inherit lit_xai.core.Explainer",
        ),
        (as_explainer, 3, "mine (int) cannot be called: let its class inherit lit_xai.core.Explainer"),
        (
            as_filler,
            OldFiller(),
            "mine (OldFiller) has deterministic: let its class inherit lit_xai.core.Filler",
        ),
        (as_score, Calls(), "mine (Calls) is no score: let its class inherit lit_xai.core.Score"),
    ],
)
def test_a_class_that_says_more_than_its_call_must_inherit(accept, thing, message):
    with pytest.raises(UsageError) as refused:
        accept(thing, "mine")
    assert str(refused.value) == message


def test_a_configuration_may_name_a_plain_function():
    node = {"_target_": "test_core.brightness", "_partial_": True, "power": 2.0}
    (explainer,) = build({"bright": node}, as_explainer).values()
    assert describe(explainer) == describe(partial(brightness, power=2.0))


def test_scores_share_outputs_only_where_they_observe_any():
    assert isinstance(Deletion(), Score)
    assert not Deletion().observes
    assert as_score(Deletion()).settings() is None
