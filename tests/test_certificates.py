"""Certificates of maps: exact where a network is affine, never above what an attack finds, refused where they do not hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lit_xai.calls import Gate
from lit_xai.errors import UsageError
from lit_xai.explainers import RISE, IntegratedGradients, Lime, Saliency, SlidingPatch
from lit_xai.explainers.lime import Coalitions, PixelCosineKernel, ShapleyKernel, Toggle
from lit_xai.explainers.sweep import PMI
from lit_xai.fillers import Blur, Colour
from lit_xai.metrics import CertifiedRadius, SoftStability
from lit_xai.metrics.certificates import Question, attack_radius, attacked, certified_radius, certified_share, valued
from lit_xai.metrics.kept_share import KeptShare
from lit_xai.metrics.radius import none
from lit_xai.models import lipschitz
from lit_xai.models.bounds import slopes
from lit_xai.models.lipschitz import Temperature, local_lipschitz, plain
from lit_xai.models.pretrained import Normalise
from lit_xai.rng import SampleRng
from lit_xai.segments import Grid, segment_sums
from torch import Tensor, nn

from conftest import seeded

BLACK = Colour(0.0)
METHODS = {
    "rise": RISE(masks=30, grid=3),
    "rise of probabilities": RISE(masks=30, grid=3, output="probability"),
    "sliding patch": SlidingPatch(patch=3, stride=2, scale=False, projection="mean", filler=Colour(0.4)),
    "enlarged sliding patch": SlidingPatch(patch=3, stride=2, scale=False, filler=BLACK),
    "lime": Lime(segments=Grid(3), perturbation=Toggle(BLACK), samples=30, output="logit"),
    "kernel shap": Lime(
        segments=Grid(3), perturbation=Coalitions(BLACK), kernel=ShapleyKernel(), samples=30, ridge=0.0, repeat=2
    ),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
RNG = SampleRng(5, (7, 2))


@pytest.fixture
def images() -> Tensor:
    return 0.3 + 0.4 * torch.rand(2, 1, 8, 8, generator=seeded(1), dtype=torch.float64)


@pytest.fixture
def targets() -> Tensor:
    return torch.tensor([1, 2])


def chain(*layers: nn.Module) -> nn.Module:
    """Layers whose weights are drawn anew, in float64."""
    model = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            p.copy_(torch.randn(p.shape, generator=seeded(number)) / max(1, p[0].numel()) ** 0.5)
    return model


def affine() -> nn.Module:
    return chain(Normalise([0.4], [0.5]), nn.Conv2d(1, 2, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(18, 4))


def bent() -> nn.Module:
    return chain(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 4))


# ------------------------------------------------------------------------------------------------------- weighted sums


@every_method
def test_a_masked_sum_gives_the_methods_own_map(method, images, targets):
    model = bent()
    question = Question.of(method, model, images, targets, RNG)
    maps = method(model, images, targets, RNG)
    summed = (question.sums.weights * question.outputs(images)[:, :, None, None]).sum(1)
    assert torch.allclose(summed, maps, rtol=1e-6, atol=1e-9 * float(maps.abs().max()) + 1e-12)


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (Saliency(), "Saliency is no sum of outputs at masked images"),
        (IntegratedGradients(), "IntegratedGradients is no sum"),
        (Lime(perturbation=Toggle(BLACK)), "superpixels by Quickshift move with the image"),
        (Lime(segments=Grid(3)), "SegmentMean paints with what it sees"),
        (Lime(segments=Grid(3), perturbation=Toggle(BLACK), kernel=PixelCosineKernel()), "OnOff, PixelCosineKernel"),
        (Lime(segments=Grid(3), perturbation=Toggle(BLACK), samples="auto"), "CosineKernel, auto"),
        (SlidingPatch(patch=3, stride=2, scale=False, filler=Blur()), "Blur paints with what it sees"),
        (SlidingPatch(patch=3, stride=2, scale=False, contrast=PMI()), "found PMI"),
        (RISE(precision="bf16"), "found 1000 and bf16"),
    ],
    ids=str,
)
def test_what_moves_with_the_image_is_refused_in_one_line(method, why, images, targets):
    with pytest.raises(UsageError, match=why) as e:
        Question.of(method, affine(), images, targets)
    assert "\n" not in str(e.value)


def test_superpixels_of_ones_own_stay_where_they_are(images, targets):
    method = Lime(perturbation=Toggle(BLACK), samples=30)
    own = Grid(3)(images)
    with_grid = Lime(segments=Grid(3), perturbation=Toggle(BLACK), samples=30).masked_sum(images, RNG)
    assert torch.equal(method.masked_sum(images, RNG, own).weights, with_grid.weights)


# ---------------------------------------------------------------------------------------------------------- constants


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Conv2d(2, 4, (3, 2), stride=2, padding=(2, 0), groups=2, dilation=(2, 1)),
        nn.Conv2d(2, 3, 5, padding=4),
        nn.AvgPool2d(3, 1, 1),
        nn.AvgPool2d(2),
        nn.BatchNorm2d(2),
        Normalise([0.2, 0.3], [0.5, 0.25]),
    ],
    ids=str,
)
def test_a_layers_bound_lies_tightly_above_its_largest_singular_value(layer):
    from lit_xai.models.bounds import norm_of

    layer = chain(layer)[0]
    if isinstance(layer, nn.BatchNorm2d):
        layer.running_var.copy_(torch.tensor([0.5, 4.0]))
    x = torch.zeros(1, 2, 7, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda t: layer(t).flatten(), x).flatten(1)
    exact, bound = float(torch.linalg.matrix_norm(jacobian, 2)), norm_of(layer, x)
    assert exact <= bound * (1 + 1e-12)
    assert bound <= 1.6 * exact


def test_logits_and_log_odds_of_an_affine_network_have_their_exact_constants(images):
    model = affine()
    jacobian = torch.autograd.functional.jacobian(lambda t: model(t)[0], images[:1]).flatten(1)
    known, classes = slopes(model, images), torch.arange(4)
    assert known.affine
    assert torch.allclose(known.logit(classes), jacobian.norm(dim=1))
    apart = torch.cdist(jacobian, jacobian).amax(1)
    assert torch.allclose(known.log_odds(classes), apart)


def test_no_gradient_exceeds_the_bound_of_a_network_with_bends(images, targets):
    model, known = bent(), slopes(bent(), images)
    x = torch.rand(64, 1, 8, 8, generator=seeded(3), dtype=torch.float64).requires_grad_()
    z = model(x)
    odds = z[:, 1] - z[:, [0, 2, 3]].logsumexp(1)
    for value, bound in ((z[:, 1], known.logit(targets[:1])), (odds, known.log_odds(targets[:1]))):
        gradient = torch.autograd.grad(value.sum(), x, retain_graph=True)[0].flatten(1).norm(dim=1)
        assert 0.05 * float(bound) < float(gradient.max()) <= float(bound)


def test_the_1_lipschitz_network_has_a_bound_near_one(images):
    torch.manual_seed(0)
    model = plain(lipschitz(1, 10, 16, width=4))
    large = torch.rand(4, 1, 16, 16, generator=seeded(1))
    known = slopes(model, large)
    bound = known.body * float(torch.linalg.matrix_norm(known.rows, 2))
    assert float(local_lipschitz(model, large).max()) <= bound <= 1 + 1e-4


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Louder(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 10 * x.relu()


@pytest.mark.parametrize(
    "layer",
    [Twice(), Louder(), nn.AvgPool2d(2, divisor_override=1), nn.AvgPool2d(3, ceil_mode=True), nn.LayerNorm(8)],
    ids=str,
)
def test_a_layer_that_is_not_known_is_refused(layer, images, targets):
    model = nn.Sequential(layer, nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)).double()
    model(images)
    with pytest.raises(UsageError, match=f"no Lipschitz constant of a {type(layer).__name__} is known"):
        certified_radius(Question.of(METHODS["rise"], model, images, targets))


def test_a_network_with_hooks_is_refused(images):
    model = affine()
    model[1].register_forward_hook(lambda m, x, y: 10 * y)
    with pytest.raises(UsageError, match="without forward hooks"):
        slopes(model, images)


# --------------------------------------------------------------------------------------------------------------- radii


def regions(maps: Tensor, cells: int) -> Tensor:
    """Means over the cells of a grid."""
    labels = Grid(cells)(maps[:, None])
    return segment_sums(maps, labels) / segment_sums(torch.ones_like(maps), labels)


@pytest.mark.parametrize("name", ["rise", "lime"])
def test_of_an_affine_network_the_radius_is_the_least_change_in_closed_form(name, images, targets):
    model, method = affine(), METHODS[name]
    radii = certified_radius(Question.of(method, model, images, targets, RNG, cells=4))
    for i in range(2):
        one, rng = images[i : i + 1], RNG.take([i])
        jacobian = torch.autograd.functional.jacobian(
            lambda x, rng=rng, i=i: regions(method_of(method, model, x, targets[i : i + 1], rng), 4)[0], one
        ).flatten(1)
        value = regions(method(model, one, targets[i : i + 1], rng), 4)[0]
        first = int(value.argmax())
        others = torch.arange(16) != first
        exact = (value[first] - value[others]) / (jacobian[first] - jacobian[others]).norm(dim=1)
        assert float(radii[i]) == pytest.approx(float(exact.min()), rel=1e-6)


def method_of(method, model: nn.Module, x: Tensor, targets: Tensor, rng: SampleRng) -> Tensor:
    """The map with its gradient, which the methods do not record: by hand from masks and weights."""
    sums = method.masked_sum(x.detach(), rng)
    z = model(sums.keep[0][:, None] * x + (1 - sums.keep[0][:, None]) * sums.fill)
    return (sums.weights[0] * z[:, targets[0], None, None]).sum(0, keepdim=True)


@pytest.mark.parametrize("name", ["rise", "rise of probabilities"])
def test_images_with_more_regions_change_nothing_for_those_with_fewer(name, images, targets, monkeypatch):
    own = torch.cat([Grid(3)(images[:1]), Grid(2)(images[1:])])

    def asked(some: slice) -> Question:
        return Question.of(
            METHODS[name], bent(), images[some], targets[some], RNG.take(range(2)[some]), segments=own[some]
        )

    alone = [asked(slice(i, i + 1)) for i in range(2)]
    for of in (certified_radius, lambda q: certified_share(q, 0.02), lambda q: attack_radius(q, 20)):
        each = torch.cat([of(question) for question in alone])
        assert torch.allclose(of(asked(slice(2))), each)
        monkeypatch.setattr("lit_xai.metrics.certificates.MEMORY", 1)  # one image at a time
        monkeypatch.setattr("lit_xai.metrics.certificates.ROWS", 7)  # and a part of its masks
        assert torch.allclose(of(asked(slice(2))), each)
        monkeypatch.undo()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_regions_of_the_same_weights_are_equal_whatever_their_sums_are_rounded_to(dtype):
    images = torch.rand(20, 1, 8, 8, generator=seeded(1), dtype=torch.float64).to(dtype)
    number = torch.arange(4).repeat(2)[:, None] * 4 + torch.arange(4).repeat(2)  # of a pixel inside of its superpixel
    inside = Grid(2)(images) * 3 + (number >= 3).int() + (number >= 8).int()  # 3, 5 and 8 pixels
    whole = Lime(segments=Grid(2), perturbation=Toggle(BLACK), samples=30, output="probability")
    question = Question.of(whole, bent().to(dtype), images, torch.arange(20) % 4, segments=inside)
    assert certified_radius(question).tolist() == [0.0] * 20
    assert certified_share(question, 1e6).tolist() == [0.0] * 20


def test_a_top_of_all_pixels_is_refused(images, targets):
    with pytest.raises(UsageError, match="a top of all 64 pixels has no order: take a smaller share"):
        Question.of(METHODS["rise"], bent(), images, targets, RNG, cells=0, share=0.999)


def test_pairs_of_pixels_are_kept_of_a_few_images_at_once(images, targets, monkeypatch):
    question = Question.of(RISE(masks=2, grid=3), bent(), images, targets, RNG, cells=0, share=0.5)
    assert [len(r.constant) for r in question.rankings()] == [2]
    monkeypatch.setattr("lit_xai.metrics.certificates.CACHED", 32 * 32)
    assert [len(r.constant) for r in question.rankings()] == [1, 1]


def test_radii_are_the_same_where_no_gradient_may_be_recorded(images, targets):
    model = bent()

    def asked() -> list[Tensor]:
        question = Question.of(METHODS["rise"], model, images.clone(), targets.clone(), RNG)
        return [certified_radius(question), attack_radius(question, 5)]

    with torch.inference_mode():
        inside = asked()
    assert all(map(torch.equal, inside, asked()))


def test_of_an_affine_network_the_attack_finds_the_least_change(images, targets):
    question = Question.of(METHODS["lime"], affine(), images, targets, RNG, cells=3)
    sure, found = certified_radius(question), attack_radius(question, 60)
    assert bool((sure <= found).all())
    assert float((found / sure).min()) < 1.01


@every_method
def test_no_attack_breaks_a_certificate(method, images, targets):
    model, images = bent(), images.float()
    model = model.float()
    for cells in (3, 0):
        question = Question.of(method, model, images, targets, RNG, cells=cells)
        (ranking,) = question.rankings()
        for radius in (0.02, 0.2):
            holds = ranking.holds(radius)
            assert bool((ranking.holds(radius / 2) | ~holds).all())
            size, x = attacked(question, 8, radius)
            assert float((x - images).flatten(1).norm(dim=1).max()) <= radius * (1 + 1e-5)
            assert float(size.max()) <= radius * (1 + 1e-5)
            now = ranking.gaps(valued(question.regions, question.outputs(x)))
            assert bool((now[holds] > 0).all())


def test_a_change_behind_masks_is_never_larger_than_its_sharper_bound_and_may_equal_it(images, targets):
    question = Question.of(METHODS["rise"], bent(), images, targets, RNG, cells=3)
    ranking = next(iter(question.rankings()))
    weights = torch.rand(2, 5, 30, generator=seeded(4), dtype=torch.float64)
    d = torch.randn(200, 64, generator=seeded(5), dtype=torch.float64)
    d = torch.cat([d / d.norm(dim=1, keepdim=True), torch.eye(64, dtype=torch.float64)])
    change = weights @ (ranking.masks[:, :, None] * d).norm(dim=3)
    bound = ranking.sharper(weights)
    assert bool((change <= bound[:, :, None]).all())
    assert float((change.amax(2) / bound).min()) > 0.7
    whole = replace(ranking, masks=torch.full_like(ranking.masks, 0.5))
    assert torch.allclose(whole.sharper(weights), weights.sum(2) / 2)


def test_a_radius_is_the_largest_at_which_every_pair_holds(images, targets):
    question = Question.of(METHODS["rise of probabilities"], bent(), images, targets, RNG, cells=0)
    radius, (ranking,) = certified_radius(question), question.rankings()
    assert bool((radius > 0).all())
    assert bool(ranking.holds(radius).all())
    assert not bool(ranking.holds(radius * (1 + 1e-6)).flatten(1).all(1).any())
    shares = [float(certified_share(question, r).mean()) for r in (0.0, 0.1, 1e6)]
    assert shares[0] == 1 > shares[1] > shares[2] == 0


def test_probabilities_at_rest_are_certified_further_than_by_their_steepest_slope(images, targets):
    question = Question.of(METHODS["rise of probabilities"], chain(*bent(), Temperature(30.0)), images, targets, RNG)
    ranking = next(iter(question.rankings()))
    reach, constant = ranking.reach(torch.full((2,), 1e-3, dtype=torch.float64)), ranking.constant[:, None]
    assert bool((reach.slope <= constant / 4 + 1e-12).all())
    assert bool((reach.slope.mean(1, keepdim=True) < constant / 8).all())
    at = ranking.log_odds - 1e-3 * constant * ranking.masks.amax(2)
    assert torch.allclose(ranking.outputs - at.sigmoid(), reach.down)


def test_outputs_are_those_of_a_model_without_tf32(images, targets):
    from lit_xai.incremental.patches import FLOAT32

    seen = []

    class Asked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append({kind.fp32_precision for kind in FLOAT32})
            return x.flatten(1)[:, :4]

    before = [kind.fp32_precision for kind in FLOAT32]
    assert "tf32" in before  # of convolutions, by default
    Question.of(METHODS["rise"], Asked(), images, targets).outputs(images)
    assert seen
    assert all(s == {"ieee"} for s in seen)
    assert [kind.fp32_precision for kind in FLOAT32] == before


def test_a_tie_has_no_radius(images, targets):
    flat = chain(nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        flat[1].weight.zero_()
    assert certified_radius(Question.of(METHODS["lime"], flat, images, targets, RNG, cells=3)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "why"), [({"cells": 1}, "one region"), ({"share": 1.0}, "share in"), ({"cells": -1}, "cells >= 0")]
)
def test_a_top_that_is_none_is_refused(options, why, images, targets):
    with pytest.raises(UsageError, match=why):
        Question.of(METHODS["rise"], affine(), images, targets, **options)


def test_the_score_is_the_radius_beside_the_attacks(images, targets):
    score, method, model = CertifiedRadius(cells=3, steps=20), METHODS["rise"], bent()
    both = score.again(method, model, images, targets, RNG)
    value, details = score.with_details(model, images, method(model, images, targets, RNG), targets, RNG, both)
    question = Question.of(method, model, images, targets, RNG, cells=3)
    assert value.tolist() == certified_radius(question).tolist()
    assert details["attack"].tolist() == attack_radius(question, 20).tolist()
    assert bool((value < details["attack"]).all())


@pytest.mark.parametrize(
    ("method", "model", "why"),
    [
        (Saliency(), bent, "certified radius of Saliency"),
        (
            METHODS["rise"],
            lambda: chain(nn.Conv2d(1, 2, 1), nn.LayerNorm(8), nn.Flatten(), nn.Linear(128, 4)),
            "certified radius of RISE",
        ),
    ],
)
def test_what_has_no_certificate_has_no_radius_and_a_line_says_why(method, model, why, images, targets, caplog):
    none.cache_clear()
    assert bool(CertifiedRadius(steps=0).again(method, model(), images, targets, RNG)[:, 0].isnan().all())
    assert why in caplog.text


class Mute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] * torch.nan


def test_of_an_answer_that_is_no_number_no_radius_is_known(images, targets):
    question = Question.of(METHODS["rise"], affine(), images, targets, RNG, cells=3)
    outputs = next(question.rankings()).outputs.clone()
    outputs[0, 3] = torch.nan
    assert replace(next(question.rankings()), outputs=outputs).radius().isnan().tolist() == [True, False]
    assert bool(attack_radius(replace(question, gate=Gate.of(Mute()))).isnan().all())


def test_the_radius_of_a_method_is_none_of_another_methods_map(images, targets):
    score, method, model = CertifiedRadius(cells=3, steps=2), METHODS["rise"], bent()
    both = score.again(method, model, images, targets, RNG)
    value, details = score.with_details(model, images, -method(model, images, targets, RNG), targets, RNG, both)
    assert bool(value.isnan().all())
    assert bool(details["attack"].isnan().all())


@pytest.mark.parametrize("options", [{"cells": 1}, {"steps": -1}])
def test_a_certified_radius_without_a_question_is_refused(options):
    with pytest.raises(UsageError, match="needs 2 cells a side"):
        CertifiedRadius(**options)


# ------------------------------------------------------------------------------------------------------ soft stability


@pytest.mark.parametrize("samples", [3000, "auto"])
def test_soft_stability_is_the_share_over_all_sets_by_enumeration(samples):
    from itertools import combinations

    model = chain(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    x, maps = torch.rand(1, 1, 8, 8, generator=seeded(2), dtype=torch.float64), torch.arange(64.0).view(1, 8, 8)
    score = SoftStability(samples=samples, cells=3, share=0.34, radius=3)
    value, details = score.with_details(model, x, maps.double(), torch.tensor([0]), SampleRng(0, (4,)))
    labels, kept = Grid(3)(x)[0], {6, 7, 8}

    def says(cells: set[int]) -> int:
        return int(model(x * torch.isin(labels, torch.tensor(sorted(cells))))[0].argmax())

    sets = [kept | set(more) for size in range(4) for more in combinations(range(6), size)]
    exact = sum(says(s) == says(kept) for s in sets) / len(sets)
    assert 0 < exact < 1
    assert float(details["low"]) <= exact <= float(details["high"])
    assert float(value) == pytest.approx(exact, abs=0.04)
    if samples == "auto":
        assert 128 < float(details["samples"]) < 2000
        assert float(details["high"] - details["low"]) <= 0.1


def test_added_cells_are_uniform_over_sets():
    score = SoftStability(samples=4000, cells=2, share=0.25, radius=2)
    kept = torch.tensor([[False, True, False, False]])
    sets = score.added(SampleRng(0, (3,)).noise("soft_stability").parts(4000), kept)[0]
    assert bool(sets[:, 1].all())
    number, counts = sets.unique(dim=0, return_counts=True)
    assert len(number) == 1 + 3 + 3
    assert float((counts / 4000 - 1 / 7).abs().max()) < 0.02


@pytest.mark.parametrize(
    "options",
    [{"cells": 1}, {"share": 1.0}, {"radius": 0}, {"radius": 40}, {"samples": 0}, {"samples": "some"}],
    ids=str,
)
def test_soft_stability_without_a_choice_is_refused(options):
    with pytest.raises(UsageError, match=r"soft stability needs|samples must be a positive number or auto"):
        SoftStability(**options)


# ---------------------------------------------------------------------------------------------- answers that are no numbers


class Silent(nn.Module):
    """Answers that are no numbers for images whose first pixel is dark."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1)[:, :3]
        return torch.where(x[:, :1, 0, 0] < 0.5, torch.nan, z)


@pytest.mark.parametrize(
    "score",
    [SoftStability(20, cells=4), SoftStability("auto", cells=4), KeptShare(filler=BLACK)],
    ids=["soft", "auto", "kept"],
)
def test_an_answer_that_is_no_number_is_no_class_that_stays(score):
    images = torch.rand(2, 1, 8, 8, generator=seeded(0))
    images[:, 0, 0, 0] = torch.tensor([0.1, 0.9])
    scores = score(Silent(), images, images[:, 0] + 9 * (torch.arange(64).view(8, 8) == 0), torch.zeros(2).long())
    assert bool(scores[0].isnan())
    if not isinstance(score, KeptShare):  # whose walk begins with a dark image
        assert not bool(scores[1].isnan())


def test_a_surrogate_whose_map_is_refused_has_no_certificate_either():
    images = torch.rand(1, 1, 8, 8, generator=seeded(0))
    method = Lime(segments=Grid(4), perturbation=Toggle(BLACK), samples=12, ridge=0.0)  # fewer samples than cells
    with pytest.raises(UsageError, match="singular design"):
        method.masked_sum(images)
