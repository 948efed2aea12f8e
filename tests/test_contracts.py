"""What every explainer, score and filler promises. Each is found by its yaml: a new one is covered when that exists."""

from __future__ import annotations

import copy
import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object, instantiate
from lit_xai.cli.complete import complete
from lit_xai.cli.schema import config_dir
from lit_xai.core import TrainedOn
from lit_xai.errors import UsageError
from lit_xai.explainers import Saliency
from lit_xai.fillers import Hiding, Mean
from lit_xai.fillers.fitted import FittedFiller
from lit_xai.fitting import describe
from lit_xai.metrics.in_domain import InDomain
from lit_xai.models import resnet18
from lit_xai.rng import SampleRng
from omegaconf import OmegaConf
from torch import Tensor, nn

from conftest import seeded
from generators import GENERATORS, made, save

CONFIGS = config_dir()
COUNTS = {"masks": 12, "steps": 6, "samples": 60, "subsets": 14, "draws": 2}  # of yamls with such a key
RNG = SampleRng(7, (31, 4, 15, 9, 26))
OTHER = SampleRng(8, RNG.samples)
FOLDER = tempfile.TemporaryDirectory()  # of fitted fillers; removed at the end


@functools.cache
def checkpoint(filler: type[FittedFiller]) -> str:
    """That of a tiny module for a filler that draws with one; of a new one, the module by default."""
    node = next((g.node for g in GENERATORS.values() if g.filler is filler), {})
    node = {k: {"patch": 3, "positions": 1000}.get(k, v) for k, v in node.items()}
    return save(made(filler.kind, 1, 16, **node), Path(FOLDER.name) / f"{filler.__name__}.ckpt", node)


def is_fitted(target: Any) -> bool:
    """Whether a `_target_` is a filler that reads a checkpoint."""
    kind = get_object(target) if target else None
    return isinstance(kind, type) and issubclass(kind, FittedFiller)


def shrunk(node: Any) -> Any:
    """The yaml's content with smaller counts, and a file for every filler that reads one."""
    if not isinstance(node, dict):
        return node
    if is_fitted(node.get("_target_")):
        few = {"steps": 2} if "steps" in node else {}
        return {**node, **few, "checkpoint": checkpoint(get_object(node["_target_"]))}
    return {k: min(v, COUNTS[k]) if k in COUNTS and isinstance(v, int) else shrunk(v) for k, v in node.items()}


def every(group: str) -> Any:
    """A parameter for every yaml of a group of configurations, but of what asks the method alone (tests/test_certificates.py)."""
    files = [f for f in sorted((CONFIGS / group).rglob("*.yaml")) if f.stem != "certified_radius"]
    names = [str(f.relative_to(CONFIGS / group).with_suffix("")) for f in files]
    return pytest.mark.parametrize("file", files, ids=names)


def build(file: Path, change: Callable[[Any], Any] = lambda node: node) -> Any:
    """The object of a yaml, its content changed; what is fitted to data is."""
    node = complete(OmegaConf.to_container(OmegaConf.load(file)))
    made = instantiate(change(shrunk(node)), _convert_="all")
    made = made.within(Hiding(Mean(), 4)) if isinstance(made, InDomain) else made
    return made.fitted(TrainedOn((0.4,), samples=100))


def small_network() -> nn.Module:
    """The first half of the project's own residual network, its batch statistics no longer those of a fresh one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = resnet18(1, 4, 16, width=4, dropout=0.5)
        network.stages, network.head[-1] = network.stages[:2], nn.Linear(8, 4)
        network(torch.rand(32, 1, 16, 16))
    return network.eval()


class SmallTransformer(nn.Module):
    """Four patches and a class token, one layer of attention, four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Conv2d(1, 8, 8, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.mix, self.head = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), 9 * self.embed(x).flatten(2).transpose(1, 2)], 1)
        y = self.norm(tokens)
        return self.head((tokens + self.mix(y, y, y, need_weights=False)[0])[:, 0])


def network_for(file: Path) -> nn.Module:
    """One that the method of this yaml takes."""
    if file.parent.name != "attention":
        return small_network()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SmallTransformer().eval()


@pytest.fixture
def model(file) -> nn.Module:
    return network_for(file)


def five_images() -> Tensor:
    return torch.rand(5, 1, 16, 16, generator=seeded(1))


@pytest.fixture
def images() -> Tensor:
    return five_images()


@functools.cache
def maps_of(file: Path) -> Tensor:
    """What an explainer makes of the five images, their classes and the numbers of their samples."""
    return build(file)(network_for(file), five_images(), torch.tensor([0, 3, 1, 2, 3]), RNG)


@pytest.fixture
def maps() -> Tensor:
    """Maps with ties, as real ones have."""
    return (4 * torch.randn(5, 16, 16, generator=seeded(2))).round()


def snapshot(model: nn.Module) -> list[Any]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [
        [m.training for m in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [len(getattr(m, h)) for m in model.modules() for h in hooks],
    ]


def used_twice(use: Any, model: nn.Module) -> None:
    """`use(model)` leaves modes, gradients, hooks and state as they were, whatever they were."""
    model.train()
    model.head.eval()
    next(model.parameters()).requires_grad_(False)
    state, before = copy.deepcopy(model.state_dict()), snapshot(model)
    use(model)
    assert snapshot(model) == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def is_frozen(thing: Any) -> bool:
    return dataclasses.is_dataclass(thing) and thing.__dataclass_params__.frozen


def test_there_is_something_to_check():
    assert all(list((CONFIGS / group).rglob("*.yaml")) for group in ("explainer", "score", "filler"))


# ----------------------------------------------------------------------------------------------------------- explainers


@every("explainer")
class TestExplainer:
    def test_is_a_frozen_dataclass_with_a_plain_description(self, file):
        explainer = build(file)
        assert is_frozen(explainer)
        assert describe(explainer) == describe(build(file))

    def test_maps_are_finite_image_sized_and_of_the_images_type(self, file, images):
        maps = maps_of(file)
        assert maps.shape == (5, 16, 16)
        assert maps.dtype == images.dtype
        assert bool(torch.isfinite(maps).all())
        assert not maps.requires_grad

    def test_maps_are_not_all_the_same(self, file):
        assert float(maps_of(file).std()) > 0

    def test_its_legend_fits_the_signs_of_its_values_and_is_no_parameter(self, file):
        explainer = build(file)
        legend, maps = explainer.legend, maps_of(file)
        negative = bool((maps < -1e-6 * maps.abs().max()).any())
        fits = {"signed": negative, "magnitude": not negative, "range": True, "by sign": True}
        assert fits[legend.scale], (legend, float(maps.min()), float(maps.max()))
        assert "legend" not in describe(explainer)

    def test_maps_do_not_depend_on_the_batch(self, file, model, images, targets):
        explainer, model, images = build(file), model.double(), images.double()
        whole = explainer(model, images[:3], targets[:3], RNG.take([0, 1, 2]))
        alone = torch.cat([explainer(model, images[[i]], targets[[i]], RNG.take([i])) for i in range(3)])
        assert torch.allclose(whole, alone, rtol=0, atol=1e-9)

    def test_maps_repeat_whatever_the_global_generators_hold(self, file, model, images, targets):
        import numpy as np

        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002 - third parties draw from it
        assert torch.equal(build(file)(model, images, targets, RNG), maps_of(file))

    def test_other_noise_gives_other_maps_only_if_it_says_that_it_draws(self, file, model, images, targets):
        explainer = build(file)
        other = explainer(model, images, targets, OTHER)
        assert torch.equal(other, maps_of(file)) != explainer.draws_numbers()

    def test_without_an_rng_the_samples_are_numbered(self, file, model, images, targets):
        explainer = build(file)
        assert torch.equal(
            explainer(model, images, targets), explainer(model, images, targets, SampleRng(0, (*range(5),)))
        )

    def test_model_is_left_as_found(self, file, model, images, targets):
        used_twice(lambda m: build(file)(m, images, targets, RNG), model)

    def test_images_are_left_as_found(self, file, model, images, targets):
        before = images.clone()
        build(file)(model, images, targets, RNG)
        assert torch.equal(images, before)
        assert images.grad is None

    def test_works_inside_inference_mode(self, file, model, images, targets):
        with torch.inference_mode():
            inside = build(file)(model, images.clone(), targets.clone(), RNG)
        assert torch.allclose(inside, maps_of(file), rtol=1e-4, atol=1e-6)

    def test_cost_is_not_negative(self, file):
        assert min(build(file).passes(16, 16)) >= 0

    def test_what_it_resolves_is_plain(self, file, model, images):
        values = build(file).resolved(model, images).values()
        assert all(isinstance(v, str | int | float | bool | None) for v in values)


# --------------------------------------------------------------------------------------------------------------- scores


@pytest.fixture
def masks() -> Tensor:
    """Where the object is: a block of another size and place in every image."""
    out = torch.zeros(5, 16, 16, dtype=torch.bool)
    for i in range(5):
        out[i, i : i + 7, 2 * i : 2 * i + 5 + i] = True
    return out


def apply(
    score: Any, model: nn.Module, images: Tensor, maps: Tensor, targets: Tensor, masks: Tensor, rng=RNG
) -> Tensor:
    """The score, with masks for `observed` where it wants them, or with what another method says of the same images."""
    observed = masks if score.truth else None
    if score.explanations:
        observed = score.again(Saliency(), model, images, targets, rng)
    return score(model, images, maps, targets, rng, observed)


class Minus(nn.Module):
    """Logits without those of another image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.logits


@every("score")
class TestScore:
    def test_is_a_frozen_dataclass_with_a_direction_and_a_meaning(self, file):
        score = build(file)
        assert is_frozen(score)
        assert isinstance(score.higher_is_better, bool)
        assert score.meaning()["source"]

    def test_gives_one_finite_number_a_sample_and_setting(self, file, model, images, maps, targets, masks):
        score = build(file)
        values = apply(score, model, images, maps, targets, masks)
        settings = score.settings()
        assert values.shape == ((5,) if settings is None else (5, len(settings)))
        assert bool(torch.isfinite(values).all())
        assert not values.requires_grad

    def test_depends_on_the_map(self, file, model, images, maps, targets, masks):
        score, empty = build(file), model(images.mean(0, keepdim=True)).detach()
        model = nn.Sequential(model, Minus(empty))  # whose decisions differ between images, for scores of decisions
        values = apply(score, model, images, maps, targets, masks)
        other = maps.flip(1).clamp_min(-1)  # another order, and other values
        assert not torch.equal(values, apply(score, model, images, other, targets, masks))

    def test_does_not_depend_on_the_batch(self, file, model, images, maps, targets, masks):
        score, model, images = build(file), model.double(), images.double()
        whole = apply(score, model, images, maps, targets, masks)
        alone = [apply(score, model, images[[i]], maps[[i]], targets[[i]], masks[[i]], RNG.take([i])) for i in range(3)]
        assert torch.allclose(whole[:3], torch.cat(alone), rtol=0, atol=1e-9)

    def test_repeats_whatever_the_global_generator_holds(self, file, model, images, maps, targets, masks):
        results = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            results.append(apply(build(file), model, images, maps, targets, masks))
        assert torch.equal(*results)

    def test_other_noise_gives_other_values_only_if_it_says_that_it_draws(self, file, model, images, targets, masks):
        score, untied = build(file), torch.randn(5, 16, 16, generator=seeded(2))
        one, other = (apply(score, model, images, untied, targets, masks, rng) for rng in (RNG, OTHER))
        assert torch.equal(one, other) != score.draws_numbers()

    def test_shared_observations_give_the_same_value(self, file, model, images, maps, targets):
        score = build(file)
        if score.truth or score.explanations:  # what it observes comes with the data, or from each explainer
            return
        observed = score.observe(model, images, targets, RNG)
        shared = score(model, images, maps, targets, RNG, observed)
        assert torch.equal(shared, score(model, images, maps, targets, RNG))

    def test_a_score_of_masks_wants_them_and_has_a_baseline(self, file, model, images, maps, targets, masks):
        score = build(file)
        if not score.truth:
            return
        assert torch.equal(apply(score, model, images, maps, targets, masks), score.of(maps, masks))
        assert score.reference(masks).shape == (5,)
        with pytest.raises(UsageError, match="needs masks"):
            score(model, images, maps, targets, RNG)

    def test_a_score_that_explains_again_wants_as_many_maps_as_it_says(self, file, model, images, maps, targets):
        score = build(file)
        if not score.explanations:
            assert score.again(Saliency(), model, images, targets, RNG) is None
            return
        observed = score.again(Saliency(), model, images, targets, RNG)
        assert observed.shape == (5, score.explanations, 16, 16)
        for wrong in (None, observed[:, :0]):
            with pytest.raises(UsageError, match=r"pass observed=score\.again") as e:
                score(model, images, maps, targets, RNG, wrong)
            assert "\n" not in str(e.value)

    def test_an_empty_batch_has_no_scores(self, file, model, images, maps, targets, masks):
        rng = SampleRng(0, ())
        assert apply(build(file), model, images[:0], maps[:0], targets[:0], masks[:0], rng).shape == (0,)

    def test_a_model_of_half_precision_has_scores_of_more(self, file, model, images, maps, targets, masks):
        low, score = model.bfloat16(), build(file)
        values = apply(score, low, images.bfloat16(), maps, targets, masks)
        assert values.dtype != torch.bfloat16
        assert bool(torch.isfinite(values).all())

    def test_model_and_map_are_left_as_found(self, file, model, images, maps, targets, masks):
        before = maps.clone(), masks.clone()
        used_twice(lambda m: apply(build(file), m, images, maps, targets, masks), model)
        assert torch.equal(maps, before[0])
        assert torch.equal(masks, before[1])

    def test_cost_is_not_negative(self, file):
        assert min(build(file).passes(16, 16)) >= 0

    def test_what_it_resolves_is_plain(self, file, model, images):
        values = build(file).resolved(model, images).values()
        assert all(isinstance(v, str | int | float | bool | None) for v in values)


# -------------------------------------------------------------------------------------------------------------- fillers


@pytest.fixture
def keep() -> Tensor:
    return torch.rand(5, 3, 16, 16, generator=seeded(3)) < 0.6


@every("filler")
class TestFiller:
    def test_is_a_frozen_dataclass(self, file):
        assert is_frozen(build(file))

    def test_kept_pixels_are_identical(self, file, images, keep):
        filled = build(file)(images, keep, RNG, draws=2)
        assert filled.shape == (5, 3, 2, 1, 16, 16)
        visible = keep[:, :, None, None].expand_as(filled)
        assert torch.equal(filled[visible], images[:, None, None].expand_as(filled)[visible])

    def test_hidden_pixels_change(self, file, images, keep):
        filled = build(file)(images, keep, RNG)
        hidden = ~keep[:, :, None, None].expand_as(filled)
        changed = filled[hidden] != images[:, None, None].expand_as(filled)[hidden]
        assert float(changed.float().mean()) > 0.5

    def test_values_stay_in_the_unit_interval(self, file, images, keep):
        filled = build(file)(images, keep, RNG)
        assert -1e-6 <= float(filled.min()) <= float(filled.max()) <= 1 + 1e-6

    def test_does_not_depend_on_the_batch(self, file, images, keep):
        filler, images = build(file), images.double()
        whole = filler(images, keep, RNG)
        alone = [filler(images[[i]], keep[[i]], RNG.take([i])) for i in range(5)]
        assert torch.allclose(whole, torch.cat(alone), rtol=0, atol=1e-9)

    def test_repeats_whatever_the_global_generator_holds(self, file, images, keep):
        results = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            results.append(build(file)(images, keep, RNG))
        assert torch.equal(*results)

    def test_other_noise_and_other_draws_are_others_only_if_it_says_that_it_draws(self, file, images, keep):
        filler = build(file)
        one, other = (filler(images, keep, rng, 2) for rng in (RNG, OTHER))
        assert torch.equal(one, other) != filler.draws_numbers()
        assert torch.equal(one[:, :, 0], one[:, :, 1]) == filler.deterministic

    def test_background_is_what_stands_where_everything_is_hidden(self, file, images):
        filler = build(file)
        nothing = torch.zeros(5, 1, 16, 16, dtype=torch.bool)
        filled, background = filler(images, nothing, RNG), filler.background(images)
        assert filled.shape == (5, 1, 1, 1, 16, 16)
        assert background is None or torch.equal(filled[:, 0, 0], background)

    def test_images_are_left_as_found(self, file, images, keep):
        before = images.clone()
        build(file)(images, keep, RNG)
        assert torch.equal(images, before)
