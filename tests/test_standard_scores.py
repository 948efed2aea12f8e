"""Sparseness, complexity, max-sensitivity, class sensitivity, infidelity and ROAD: by hand, and where they are undefined."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from lit_xai import engine
from lit_xai.core import Explainer, Passes, Score
from lit_xai.crossval import explain_model
from lit_xai.errors import UsageError
from lit_xai.explainers import RISE, Edges, GradientInput, Random, Saliency
from lit_xai.fillers import NoisyLinear
from lit_xai.fillers.noisy_linear import imputed
from lit_xai.metrics import (
    ClassSensitivity,
    Complexity,
    Deletion,
    Infidelity,
    Insertion,
    MaxSensitivity,
    Sparseness,
)
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.summarise import summarise
from lit_xai.rng import SampleRng
from lit_xai.store.fold import read_shard
from torch import Tensor, nn

from conftest import Linear, seeded
from test_engine import job, predicted

RNG = SampleRng(3, (5, 6, 7, 8, 9))


def scored(score: Score, explainer: Explainer, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """The score of the explainer's maps, with the maps that it asks for."""
    maps = explainer(model, images, targets, RNG)
    observed = score.again(explainer, model, images, targets, RNG)
    return score(model, images, maps, targets, RNG, observed)


@dataclasses.dataclass(frozen=True)
class Broken(Explainer):
    """Saliency, but NaN for every class above 0."""

    def __call__(self, model, images, targets, rng=None) -> Tensor:
        maps = Saliency()(model, images, targets)
        return torch.where((targets > 0)[:, None, None], torch.nan, maps)


# ------------------------------------------------------------------------------------------------- sparseness, complexity

ONE = torch.zeros(1, 4, 4).index_put((torch.tensor(0), torch.tensor(1), torch.tensor(2)), torch.tensor(-3.0))


def test_one_pixel_that_has_everything_is_as_sparse_and_simple_as_can_be():
    assert float(Sparseness().of(ONE)) == pytest.approx(1 - 1 / 16, abs=1e-12)
    assert float(Complexity().of(ONE)) == 0


@pytest.mark.parametrize("value", [-0.1, 0.3, 1e-42, 3e38], ids=str)
def test_a_constant_map_is_as_dense_and_complex_as_can_be(value):
    constant = torch.full((1, 4, 4), value)
    assert float(Sparseness().of(constant)) == 0
    assert float(Complexity().of(constant)) == pytest.approx(math.log(16), abs=1e-12)


@pytest.mark.parametrize("score", [Sparseness(), Complexity()], ids=lambda s: type(s).__name__)
def test_a_map_of_zeros_has_no_distribution_and_leaves_the_others_alone(score):
    values = score.of(torch.cat([torch.zeros(1, 4, 4), ONE]))
    assert values.isnan().tolist() == [True, False]


def test_half_of_the_mass_by_hand():
    maps = torch.tensor([[[0.0, 1.0], [-3.0, 0.0]]])
    assert float(Sparseness().of(maps)) == pytest.approx((1 * 0.25 + 3 * 0.75) / 4)
    assert float(Complexity().of(maps)) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))


@pytest.mark.parametrize("score", [Sparseness(), Complexity()], ids=lambda s: type(s).__name__)
def test_neither_scale_nor_sign_nor_place_matter(score):
    maps = torch.randn(5, 6, 6, generator=seeded(1), dtype=torch.float64)
    assert torch.allclose(score.of(maps), score.of(-1e-30 * maps.flip(1)), rtol=0, atol=1e-12)


def test_the_model_is_not_asked_for_them(rgb, targets):
    def refuses(x: Tensor) -> Tensor:
        raise AssertionError

    assert torch.isfinite(Sparseness()(refuses, rgb, torch.rand(5, 12, 12, generator=seeded(1)), targets)).all()
    assert Sparseness().passes(12, 12) == Passes(0)


# -------------------------------------------------------------------------------------------------------- max-sensitivity


def test_the_saliency_of_a_linear_model_has_no_sensitivity(linear, rgb, targets):
    assert scored(MaxSensitivity(), Saliency(), linear, rgb, targets).tolist() == [0.0] * 5


def test_the_noise_of_the_method_is_no_sensitivity(convnet, rgb, targets):
    assert scored(MaxSensitivity(), Random(), convnet, rgb, targets).tolist() == [0.0] * 5


def test_a_methods_masks_are_the_same_for_the_moved_image(linear, rgb, targets):
    values = scored(MaxSensitivity(radius=1e-5), RISE(masks=8), linear, rgb, targets)
    assert 0 < float(values.max()) < 1e-3


def test_moved_images_stay_in_the_ball_and_are_images(rgb, targets):
    seen = []

    def spy(model, images, targets, rng):
        seen.append(images)
        return images.mean(1)

    MaxSensitivity(draws=3, radius=0.3).again(spy, nn.Flatten(), rgb, targets, RNG)
    assert len(seen) == 1  # call for all of them
    moved = seen[0].unflatten(0, (3, -1))
    assert 0.25 < float((moved - rgb).abs().max()) <= 0.3 + 1e-6
    assert 0 == float(moved.min()) < float(moved.max()) == 1
    assert not torch.equal(moved[0], moved[1])


def test_more_draws_can_only_find_more(convnet, rgb, targets):
    few, many = (scored(MaxSensitivity(draws=n), Saliency(), convnet, rgb, targets) for n in (2, 6))
    assert bool((many >= few).all())
    assert bool((many > few).any())


def test_nothing_is_a_share_of_a_map_of_zeros(convnet, rgb, targets):
    maps = torch.rand(5, 12, 12, generator=seeded(1))
    maps[2] = 0
    values = MaxSensitivity(draws=2)(convnet, rgb, maps, targets, RNG, torch.rand(5, 2, 12, 12, generator=seeded(2)))
    assert values.isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"radius": 0.0}, {"radius": 1.5}], ids=str)
def test_max_sensitivity_refuses_parameters_that_mean_nothing(wrong):
    with pytest.raises(UsageError, match="at least 1 draw and a radius"):
        MaxSensitivity(**wrong)


# ------------------------------------------------------------------------------------------------------ class sensitivity


@pytest.mark.parametrize("similarity", ["spearman", "ssim"])
def test_a_method_that_is_blind_to_the_class_has_exactly_one(convnet, rgb, targets, similarity):
    assert scored(ClassSensitivity(similarity), Edges(), convnet, rgb, targets).tolist() == [1.0] * 5


def test_the_evidence_of_the_opposite_class_has_minus_one(rgb):
    weight = torch.randn(1, 3, 12, 12, generator=seeded(1))
    model = Linear(torch.cat([weight, -weight]), torch.zeros(2))
    targets = torch.tensor([0, 1, 0, 1, 1])
    values = scored(ClassSensitivity(), GradientInput(signed=True), model, rgb, targets)
    assert values.tolist() == [-1.0] * 5


def test_the_other_class_is_any_but_the_explained_one_and_belongs_to_the_sample(convnet):
    images, targets = torch.rand(60, 3, 12, 12, generator=seeded(1)), torch.arange(60) % 4
    seen = []

    def spy(model, images, targets, rng):
        seen.append(targets)
        return images.mean(1)

    for samples in (range(60), range(60), range(60, 120)):
        ClassSensitivity().again(spy, convnet, images, targets, SampleRng(0, tuple(samples)))
    assert {tuple(p) for p in torch.stack([targets, seen[0]], 1).tolist()} == {
        (a, b) for a in range(4) for b in range(4) if a != b
    }
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_a_constant_map_has_no_order_to_compare(convnet, rgb, targets):
    maps, other = (torch.rand(5, 12, 12, generator=seeded(s)) for s in (1, 2))
    maps[1], other[3] = 0.5, 0.5
    values = ClassSensitivity()(convnet, rgb, maps, targets, RNG, other[:, None])
    assert values.isnan().tolist() == [False, True, False, True, False]


def test_a_map_that_becomes_nan_for_another_class_is_refused(convnet, rgb):
    targets = torch.zeros(5, dtype=torch.long)
    with pytest.raises(UsageError, match="holds NaN"):
        ClassSensitivity().again(Broken(), convnet, rgb, targets, RNG)


def test_an_unknown_similarity_is_refused():
    with pytest.raises(UsageError, match="spearman or ssim, found 'cosine'"):
        ClassSensitivity("cosine")


# ------------------------------------------------------------------------------------------------------------- infidelity


@pytest.mark.parametrize(("options", "factor"), [({}, -7.0), ({"scaled": False}, 3.0)], ids=str)
def test_the_exact_contributions_of_a_linear_model_have_no_infidelity(linear, rgb, targets, options, factor):
    maps = factor * GradientInput(signed=True)(
        linear, rgb, targets
    )  # a mean over 3 channels, and any factor where it is scaled
    assert float(Infidelity(**options)(linear, rgb, maps, targets, RNG).max()) < 1e-6
    wrong = Infidelity(**options)(linear, rgb, maps.flip(1), targets, RNG)
    assert float(wrong.min()) > 0.1


def test_a_map_of_zeros_has_the_mean_squared_drop(linear, rgb, targets):
    score = Infidelity()
    drops = score.observe(linear, rgb, targets, RNG)
    values = score(linear, rgb, torch.zeros(5, 12, 12), targets, RNG)
    assert torch.allclose(values, drops.double().square().mean(1))


@pytest.mark.parametrize(("height", "width"), [(12, 20), (20, 12), (224, 224)])
def test_windows_are_whole_squares_that_reach_every_pixel(height, width):
    score = Infidelity(subsets=2000)
    windows = score.removed(score.noise(RNG)[0].parts(score.subsets), height, width)
    side = min(height, width) // 4
    assert windows.flatten(1).sum(1).tolist() == [side**2] * 2000
    assert set(windows.any(2).sum(1).tolist()) == set(windows.any(1).sum(1).tolist()) == {side}
    assert height > 20 or bool(windows.any(0).all())
    assert score.resolve(lambda x: x, torch.rand(1, 1, height, width)) == {"window": side}


@pytest.mark.parametrize("wrong", [{"subsets": 0}, {"window": 0}, {"window": 224}], ids=str)
def test_infidelity_refuses_parameters_that_mean_nothing(wrong):
    with pytest.raises(UsageError, match="at least 1 subset and a window"):
        Infidelity(**wrong)


# ------------------------------------------------------------------------------------------------------------------- road


def dense(pixels: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """The image `[h, w]` with hidden pixels that solve the system, written down pixel by pixel."""
    height, width = pixels.shape
    system, right = np.eye(height * width), np.where(hidden, 0, pixels).ravel()
    for y, x in zip(*np.nonzero(hidden), strict=True):
        near = {
            (y + dy, x + dx): 1 / 12 if dy and dx else 1 / 6
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if (dy or dx) and 0 <= y + dy < height and 0 <= x + dx < width
        }
        for (b, a), weight in near.items():
            system[y * width + x, b * width + a] -= weight / sum(near.values())
    return np.linalg.solve(system, right).reshape(height, width)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("shape", [(7, 11), (9, 4), (1, 12)], ids=str)
def test_imputation_solves_the_authors_system(share, shape):
    images = torch.rand(1, 2, *shape, generator=seeded(1), dtype=torch.float64)
    hidden = torch.rand(shape, generator=seeded(2)) < share
    hidden[0, 3] = False
    filled = NoisyLinear(noise=0.0)(images, ~hidden[None, None], SampleRng(0, (0,)))[0, 0, 0]
    for channel in (0, 1):
        assert np.abs(filled[channel].numpy() - dense(images[0, channel].numpy(), hidden.numpy())).max() < 1e-12


def test_a_hole_in_one_colour_takes_that_colour():
    image = torch.full((25, 1), 0.3, dtype=torch.float64)
    hidden = torch.zeros(5, 5, dtype=torch.bool)
    hidden[1:, :4] = True
    assert np.allclose(imputed(image.numpy(), hidden.flatten().numpy(), 5, 5), 0.3, atol=1e-12)


def test_imputed_pixels_have_normal_noise_of_their_own():
    images, keep = torch.full((2, 1, 40, 40), 0.5), torch.ones(2, 1, 40, 40, dtype=torch.bool)
    keep[..., 2:38, 2:38] = False
    filled = NoisyLinear(noise=0.02)(images, keep, SampleRng(0, (0, 1)), draws=2)
    noise = (filled - 0.5)[..., 2:38, 2:38].flatten(3).view(4, -1)
    assert noise.std(1).tolist() == pytest.approx([0.02] * 4, rel=0.1)
    assert float((torch.corrcoef(noise) - torch.eye(4)).abs().max()) < 0.1


def test_an_image_of_which_nothing_is_seen_is_grey_with_the_noise():
    keep = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    images = torch.rand(1, 3, 8, 8, generator=seeded(1))
    assert torch.equal(NoisyLinear(0.0)(images, keep, RNG.take([0]))[0, 0, 0], torch.full((3, 8, 8), 0.5))
    assert 0 < float((NoisyLinear()(images, keep, RNG.take([0])) - 0.5).abs().max()) < 0.1


def test_imputation_without_a_hole_gives_the_image(rgb):
    keep = torch.ones(5, 1, 12, 12, dtype=torch.bool)
    assert torch.equal(NoisyLinear()(rgb, keep, RNG)[:, 0, 0], rgb)


def test_negative_noise_is_refused():
    with pytest.raises(UsageError, match="noise >= 0, found -1"):
        NoisyLinear(-1)


@pytest.mark.parametrize(("kind", "end"), [(Deletion, "start"), (Insertion, "end")])
def test_road_walks_in_steps_of_a_twentieth_from_or_to_the_image(convnet, rgb, targets, kind, end):
    score = kind(step=0.05, filler=NoisyLinear())
    assert score.counts(12, 12).tolist() == [round(144 * i / 20) for i in range(21)]
    maps = torch.randn(5, 12, 12, generator=seeded(1))
    _, ends = score.with_details(convnet, rgb, maps, targets, RNG)
    expected = convnet(rgb).softmax(1).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(ends[end].float(), expected, atol=1e-6)


def test_road_insertion_begins_on_the_same_image_for_every_map(convnet, rgb, targets):
    score = Insertion(step=0.05, filler=NoisyLinear())
    starts = [
        score.with_details(convnet, rgb, torch.randn(5, 12, 12, generator=seeded(s)), targets, RNG)[1]["start"]
        for s in (1, 2)
    ]
    assert torch.equal(*starts)


@pytest.mark.parametrize(
    ("step", "fraction", "points"), [(0.25, 1.0, 5), (0.3, 1.0, 5), (0.1, 0.35, 5), (0.001, 1.0, 17)]
)
def test_a_step_below_one_is_a_share_of_the_pixels(step, fraction, points):
    score = Deletion(step=step, fraction=fraction)
    counts = score.counts(4, 4)
    assert len(counts) == points
    assert int(counts[-1]) == round(16 * fraction)
    assert score.resolve(lambda x: x, torch.rand(1, 1, 4, 4))["points"] == points


def test_a_step_that_is_neither_whole_nor_a_share_is_refused():
    with pytest.raises(UsageError, match="whole pixels or a share"):
        Deletion(step=1.5).counts(4, 4)


# ---------------------------------------------------------------------------------------------------------------- engine

AGAIN = {"max_sensitivity": MaxSensitivity(draws=3), "class_sensitivity": ClassSensitivity()}


def test_the_loop_gives_every_explainer_its_own_maps(tmp_path):
    work, methods = predicted(job(tmp_path)), {"saliency": Saliency(), "rise": RISE(masks=6), "edges": Edges()}
    engine.explain(work, methods, AGAIN, progress=False)
    images, targets, rng = work.batch(4)
    for name, explainer in methods.items():
        maps = explainer(work.model, images, targets, rng)
        tensors, _ = read_shard(work.store.shard("maps", name, 0, 8))
        for of, score in AGAIN.items():
            expected = score(
                work.model, images, maps, targets, rng, score.again(explainer, work.model, images, targets, rng)
            )
            assert torch.equal(tensors[f"score/{of}"][4:8], expected.double())


def test_a_score_that_explains_again_may_be_asked_for_later(tmp_path):
    methods = {"saliency": Saliency(), "rise": RISE(masks=6)}
    engine.explain(job(tmp_path / "at once"), methods, AGAIN, progress=False)
    engine.explain(job(tmp_path / "later"), methods, {}, progress=False)
    assert engine.explain(job(tmp_path / "later"), methods, AGAIN, progress=False) == 6
    for file in (tmp_path / "at once").rglob("*.safetensors"):
        assert (tmp_path / "later" / file.relative_to(tmp_path / "at once")).read_bytes() == file.read_bytes()


def test_every_score_has_a_column_with_its_direction_and_its_nulls(tmp_path):
    scores = {**AGAIN, "sparseness": Sparseness(), "complexity": Complexity(), "infidelity": Infidelity(subsets=8)}
    for fold in (0, 1):
        methods = {"saliency": Saliency(), "edges": Edges()}
        engine.explain(predicted(job(tmp_path, fold=fold)), methods, scores, progress=False)
    summary = summarise(Ensemble(tmp_path), progress=False)
    assert {n: summary.columns[n] for n in scores} == {n: n == "sparseness" for n in scores}
    marked = {n for n in scores if summary.about(n)["null"] == "edges"}
    assert marked == {
        "class_sensitivity",
        "infidelity",
    }  # of the others a map that ignores the model may have the best value
    assert {n for row in summary.rows for n in row.marks} == marked
    rows = {row.explainer: row.estimates for row in summary.rows}
    assert rows["edges"]["class_sensitivity"].value == 1
    assert all(math.isfinite(rows["saliency"][n].value) for n in scores)


def test_a_model_is_explained_by_scores_that_explain_again(tmp_path, digits):
    """In one call of the library."""
    model = job(tmp_path).model
    found = explain_model(
        model,
        list(zip(digits.train.images(list(range(30))), digits.labels[:30].tolist(), strict=True)),
        {"saliency": Saliency()},
        root=tmp_path / "here",
        scores=AGAIN,
        progress=False,
    )
    rows = {row.explainer: row.estimates for row in found.rows}
    assert rows["saliency"]["max_sensitivity"].value == 0
    assert -1 <= rows["saliency"]["class_sensitivity"].value < 1


def test_a_plan_counts_the_explainers_own_passes_for_every_map_that_is_asked_for(tmp_path):
    methods = {"saliency": Saliency(), "rise": RISE(masks=60)}
    tasks = engine.Tasks.of(job(tmp_path), methods, {**AGAIN, "sparseness": Sparseness()})
    costs = {c.name: c for c in engine.plan(tasks, enough=0.01).costs}
    one = sum((m.passes(16, 16) for m in methods.values()), Passes(0))
    assert costs["score.max_sensitivity"].passes == Passes(*(20 * 3 * n for n in one))
    assert costs["score.class_sensitivity"].passes == Passes(*(20 * n for n in one)) + Passes(2 * 20)
    assert str(costs["score.sparseness"]) == "score.sparseness: no passes"
