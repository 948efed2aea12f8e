"""muFidelity, deletion, insertion and negative evidence against hand values and plain loops; the fillers they use."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lit_xai.cli.schema import config_dir, top_level
from lit_xai.core import Passes, TrainedOn
from lit_xai.errors import UsageError
from lit_xai.fillers import UniformNoise
from lit_xai.fillers.constant import Blur, Colour, Mean
from lit_xai.metrics import Deletion, Insertion, MuFidelity, NegativeEvidence
from lit_xai.metrics.fidelity import descending_position
from lit_xai.metrics.statistics import mean_estimate
from lit_xai.rng import SampleRng
from omegaconf import OmegaConf
from scipy.ndimage import correlate1d
from torch import Tensor

from conftest import Linear, seeded, two_logits


@pytest.fixture
def evidence(linear, rgb, targets) -> Tensor:
    """The exact contribution of every pixel to the linear model's logit."""
    return (rgb * linear.weight.detach()[targets]).sum(1)


def untied_maps(n: int, side: int = 12, seed: int = 5) -> Tensor:
    return torch.randn(n, side, side, generator=seeded(seed))


# ----------------------------------------------------------------------------------------------------------- muFidelity


@pytest.mark.parametrize("options", [{}, {"correlation": "spearman"}, {"grid": 4}, {"definition": "xplique"}], ids=str)
def test_mufidelity_of_the_exact_contributions_is_one(linear, rgb, targets, evidence, options):
    score = MuFidelity(subsets=40, **options)(linear.double(), rgb.double(), evidence.double(), targets)
    assert score.tolist() == pytest.approx([1.0] * 5, abs=1e-6)


def test_mufidelity_of_the_negated_contributions_is_minus_one(linear, rgb, targets, evidence):
    score = MuFidelity(subsets=40)(linear.double(), rgb.double(), -evidence.double(), targets)
    assert score.tolist() == pytest.approx([-1.0] * 5, abs=1e-6)


def test_mufidelity_with_a_grey_filler_measures_the_distance_to_grey(linear, rgb, targets):
    maps = ((rgb - 0.5) * linear.weight.detach()[targets]).sum(1).double()
    score = MuFidelity(subsets=40, filler=Colour(0.5))(linear.double(), rgb.double(), maps, targets)
    assert score.tolist() == pytest.approx([1.0] * 5, abs=1e-6)


def test_mufidelity_of_a_random_map_is_zero_on_average():
    n = 60
    images, maps = torch.rand(n, 1, 8, 8, generator=seeded(1)), untied_maps(n, 8)
    model = Linear(torch.randn(2, 1, 8, 8, generator=seeded(2)), torch.zeros(2))
    score = MuFidelity(subsets=100)(model, images, maps, torch.zeros(n, dtype=torch.long))
    assert abs(float(score.mean())) < 3 * float(score.std()) / math.sqrt(n)
    assert float(score.std()) < 0.4


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_mufidelity_of_a_constant_map_is_undefined(linear, rgb, targets, value):
    score = MuFidelity(subsets=20)(linear, rgb, torch.full((5, 12, 12), value), targets)
    assert bool(torch.isnan(score).all())


def test_mufidelity_of_a_model_that_ignores_its_input_is_undefined(rgb, targets):
    score = MuFidelity(subsets=20)(lambda x: torch.ones(len(x), 4), rgb, untied_maps(5), targets)
    assert bool(torch.isnan(score).all())


def test_xplique_counts_an_undefined_mufidelity_as_zero(linear, rgb, targets):
    score = MuFidelity(subsets=20, definition="xplique")(linear, rgb, torch.zeros(5, 12, 12), targets)
    assert score.tolist() == [0] * 5


def subsets(score: MuFidelity, height: int, width: int) -> Tensor:
    """All subsets of sample 7."""
    return score.removed(score.noise(SampleRng(0, (7,))).parts(score.subsets), height, width)[0]


def test_subsets_hold_exactly_their_share_of_the_pixels():
    removed = subsets(MuFidelity(subsets=30), 12, 10)
    assert removed.sum((1, 2)).tolist() == [18] * 30  # 15 % of 120
    assert len(removed.flatten(1).unique(dim=0)) == 30


def test_subsets_reach_every_pixel_equally_often():
    removed = subsets(MuFidelity(subsets=2000), 6, 6)
    assert removed.float().mean(0).flatten().tolist() == pytest.approx([5 / 36] * 36, abs=0.035)  # 4 standard errors


def test_subsets_on_a_grid_remove_whole_cells():
    removed = subsets(MuFidelity(subsets=10, grid=3), 12, 12).float()
    cells = torch.nn.functional.avg_pool2d(removed[:, None], 4)
    assert set(cells.unique().tolist()) <= {0.0, 1.0}
    assert cells.sum((1, 2, 3)).tolist() == [1] * 10  # 15 % of 9 cells


def test_a_smooth_map_that_is_right_by_cells_is_faithful_by_cells_and_hardly_by_pixels():
    blocks = torch.randn(3, 7, 7, generator=seeded(1)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    rough = 5 * torch.randn(3, 28, 28, generator=seeded(2))  # what a pixel adds to its cell, 0 over the cell
    rough -= torch.nn.functional.avg_pool2d(rough[:, None], 4)[:, 0].repeat_interleave(4, 1).repeat_interleave(4, 2)
    model = Linear((blocks + rough)[:, None].double(), torch.zeros(3).double())
    images, classes = torch.ones(3, 1, 28, 28, dtype=torch.float64), torch.arange(3)
    by_cells, by_pixels = (MuFidelity(grid=g)(model, images, blocks.double(), classes) for g in (7, None))
    assert by_cells.tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert by_pixels.tolist() == pytest.approx([1 / math.sqrt(26)] * 3, abs=3 / math.sqrt(200))


def test_mufidelity_of_pixels_and_of_cells_are_taken_where_no_score_is_named():
    assert {"mufidelity", "mufidelity_cells"} <= set(top_level("score"))
    cells, pixels = (OmegaConf.load(config_dir() / "score" / f"mufidelity{s}.yaml") for s in ("_cells", ""))
    assert {k for k in {*pixels, *cells} if pixels.get(k) != cells.get(k)} == {"grid"}


def test_xplique_removes_a_fifth_of_the_cells_of_a_nine_grid_independently():
    score = MuFidelity(subsets=400, definition="xplique")
    assert (score.grid, score.share, score.correlation) == (9, 0.2, "spearman")
    cells = subsets(score, 9, 9).float()
    assert float(cells.mean()) == pytest.approx(0.2, abs=0.01)
    assert len(cells.sum((1, 2)).unique()) > 5


def test_mufidelity_from_shared_observations_equals_mufidelity(convnet, rgb, targets):
    score, rng = MuFidelity(subsets=20), SampleRng(4, (9, 8, 7, 6, 5))
    observed = score.observe(convnet, rgb, targets, rng)
    expected = score(convnet, rgb, untied_maps(5), targets, rng)
    assert torch.equal(score(convnet, rgb, untied_maps(5), targets, rng, observed), expected)


@pytest.mark.parametrize(
    "wrong",
    [{"definition": "best"}, {"correlation": "kendall"}, {"share": 0.0}, {"share": 1.0}, {"subsets": 2}],
    ids=str,
)
def test_mufidelity_refuses_parameters_that_mean_nothing(wrong):
    with pytest.raises(UsageError):
        MuFidelity(**wrong)


# ------------------------------------------------------------------------------------------------- deletion, insertion


def additive(x: Tensor) -> Tensor:
    """The share of the light in the image, as a logit."""
    return two_logits(x.mean((1, 2, 3)))


WHITE, FIRST = torch.ones(1, 1, 8, 8), torch.tensor([0])


def loop_curve(model, image: Tensor, filled: Tensor, scores: Tensor, target: int, insert: bool, step: int, last: int):
    """One image's curve, pixel after pixel; no ties."""
    order = scores.flatten().argsort(descending=True).tolist()
    start, end = (filled, image) if insert else (image, filled)
    values, fractions, n = [], [], scores.numel()
    for count in [*range(0, last, step), last]:
        x = start.clone()
        for pixel in order[:count]:
            row, column = divmod(pixel, scores.shape[-1])
            x[:, row, column] = end[:, row, column]
        with torch.no_grad():
            values.append(model(x[None]).softmax(1)[0, target].item())
        fractions.append(count / n)
    return values, np.trapezoid(values, fractions)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("step", [0, 7])
@pytest.mark.parametrize("kind", [Deletion, Insertion])
def test_curve_and_area_equal_a_plain_loop(convnet, rgb, targets, kind, step, fraction):
    model, images, maps = convnet.double(), rgb.double()[:2], untied_maps(2)
    score = kind(step=step, fraction=fraction, filler=Colour(0.5), max_batch=5)
    curve = score.curve(model, images, maps, targets[:2])
    area = score(model, images, maps, targets[:2])
    for row in range(2):
        filled = torch.full_like(images[row], 0.5)
        args = (int(targets[row]), kind is Insertion, step or 12, round(fraction * 144))
        values, expected = loop_curve(model, images[row], filled, maps[row], *args)
        assert curve[row].tolist() == pytest.approx(values, abs=1e-9)
        assert area[row].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("fraction", "area"), [(1.0, 0.5), (0.5, 0.375)])
def test_deletion_of_a_line_is_the_raw_area_under_it(fraction, area):
    # the output falls from 1 to 0 by the changed fraction; the area is not divided by its width
    score = Deletion(fraction=fraction, output="logit", filler=Colour(0.0))
    assert score(additive, WHITE, untied_maps(1, 8), FIRST).item() == pytest.approx(area, abs=1e-6)


def test_default_step_is_the_image_side():
    assert Deletion().counts(224, 224).tolist() == list(range(0, 224 * 224 + 1, 224))


def test_last_point_changes_every_pixel_even_if_the_step_does_not_divide():
    assert Deletion(step=30).counts(8, 8).tolist() == [0, 30, 60, 64]


def test_deletion_runs_from_the_image_to_the_filler(convnet, rgb, targets):
    curve = Deletion(filler=Colour(0.2)).curve(convnet, rgb, untied_maps(5), targets)
    ends = [convnet(x).softmax(1).gather(1, targets[:, None])[:, 0] for x in (rgb, torch.full_like(rgb, 0.2))]
    assert torch.allclose(curve[:, [0, -1]], torch.stack(ends, 1), atol=1e-6)


def test_insertion_runs_from_the_blur_to_the_image(linear, rgb, targets):
    curve = Insertion(output="logit").curve(linear, rgb, untied_maps(5), targets)
    ends = [linear(x).gather(1, targets[:, None])[:, 0] for x in (Blur().background(rgb), rgb)]
    assert bool(((ends[0] - ends[1]).abs() > 5e-3).all())
    assert torch.allclose(curve[:, [0, -1]], torch.stack(ends, 1), atol=1e-4)


@pytest.mark.parametrize(
    "score", [Deletion(filler=Colour(0.2)), Insertion(filler=Colour(0.2)), NegativeEvidence(filler=Colour(0.2))]
)
def test_a_walk_tells_where_it_starts_and_ends(convnet, rgb, targets, score):
    maps = untied_maps(5)
    value, details = score.with_details(convnet, rgb, maps, targets)
    curve = score.curve(convnet, rgb, maps, targets).double()
    assert torch.equal(value, score(convnet, rgb, maps, targets))
    assert {name: v.tolist() for name, v in details.items()} == {
        "start": curve[:, 0].tolist(),
        "end": curve[:, -1].tolist(),
    }
    assert bool((curve[:, 0] != curve[:, -1]).all())


def test_half_a_walk_ends_at_the_mean_over_the_orders_of_ties():
    # two pixels, a light one and a dark one, of which one is removed: 0 is left if the light one goes first, else .5
    image, flat, rng = torch.tensor([[[[1.0, 0.0]]]]), torch.zeros(1, 1, 2), SampleRng(0, (3,))
    score = Deletion(step=1, fraction=0.5, repeats=25, output="logit", filler=Colour(0.0))
    dark_first = [descending_position(flat, rng, r)[0, 1].item() == 0 for r in range(25)]
    details = score.with_details(additive, image, flat, FIRST, rng)[1]
    assert details["start"].item() == 0.5
    assert details["end"].item() == pytest.approx(np.mean([0.5 * dark for dark in dark_first]), abs=1e-7)


def test_insertion_of_a_map_is_deletion_of_its_negative_read_backwards(convnet, rgb, targets):
    filler, maps = Colour(0.5), untied_maps(5)
    inserted = Insertion(filler=filler).curve(convnet, rgb, maps, targets)
    deleted = Deletion(filler=filler).curve(convnet, rgb, -maps, targets)
    assert torch.allclose(inserted, deleted.flip(1), atol=1e-6)


def rise_area(model, image: Tensor, start: Tensor, finish: Tensor, scores: Tensor, target: int, step: int) -> float:
    """RISE's published causal metric: `start` takes the pixels of `finish` in descending order; no ties."""
    pixels = scores.numel()
    salient = scores.flatten().argsort(descending=True)
    start = start.clone().flatten(1)
    values = []
    for i in range((pixels + step - 1) // step + 1):
        with torch.no_grad():
            values.append(model(start.view(1, *image.shape)).softmax(1)[0, target].item())
        coordinates = salient[step * i : step * (i + 1)]
        start[:, coordinates] = finish.flatten(1)[:, coordinates]
    return (sum(values) - values[0] / 2 - values[-1] / 2) / (len(values) - 1)


def test_insertion_equals_rises_published_protocol(convnet, rgb, targets):
    model, images, maps = convnet.double(), rgb.double(), untied_maps(5)
    sizes = Blur().resolve(lambda x: x, images)
    offsets = np.arange(sizes["kernel"]) - sizes["kernel"] // 2
    kernel = np.exp(-(offsets**2) / (2 * sizes["sigma"] ** 2))
    blurred = images.numpy()
    for axis in (2, 3):
        blurred = correlate1d(blurred, kernel / kernel.sum(), axis=axis, mode="mirror")
    found = Insertion()(model, images, maps, targets)
    for row, start in enumerate(torch.from_numpy(blurred)):
        expected = rise_area(model, images[row], start, images[row], maps[row], int(targets[row]), 12)
        assert found[row].item() == pytest.approx(expected, abs=1e-9)


def test_deletion_equals_rises_published_protocol(convnet, rgb, targets):
    model, images, maps = convnet.double(), rgb.double(), untied_maps(5)
    found = Deletion(step=9, filler=Colour((0.2, 0.5, 0.7)))(model, images, maps, targets)
    colour = torch.tensor([0.2, 0.5, 0.7])[:, None, None].expand(3, 12, 12).double()
    for row, image in enumerate(images):
        expected = rise_area(model, image, image, colour, maps[row], int(targets[row]), 9)
        assert found[row].item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("kind", [Deletion, Insertion])
def test_half_of_the_pixels_give_the_raw_area_of_the_first_half(convnet, rgb, targets, kind):
    maps = untied_maps(5)
    half = kind(fraction=0.5, filler=Colour(0.5))(convnet, rgb, maps, targets)
    curve = kind(filler=Colour(0.5)).curve(convnet, rgb, maps, targets)
    assert half.tolist() == pytest.approx(np.trapezoid(curve[:, :7], dx=1 / 12, axis=1).tolist(), abs=1e-6)
    assert bool(((half > 0) & (half <= 0.5)).all())


def test_half_of_a_certain_prediction_has_the_largest_area():
    def certain(x: Tensor) -> Tensor:
        return torch.tensor([[1000.0, 0.0]]).expand(len(x), 2)

    score = Deletion(fraction=0.5, filler=Colour(0.0))(certain, WHITE, untied_maps(1, 8), FIRST)
    assert score.item() == pytest.approx(0.5, abs=1e-12)


def test_exact_contributions_delete_faster_than_their_opposite(linear, rgb, targets, evidence):
    score = Deletion(output="logit", filler=Colour(0.0))
    assert bool((score(linear, rgb, evidence, targets) < score(linear, rgb, -evidence, targets)).all())


def test_directions_are_the_papers():
    assert (MuFidelity().higher_is_better, Deletion().higher_is_better, Insertion().higher_is_better) == (
        True,
        False,
        True,
    )


def test_positions_put_the_largest_value_first():
    maps = torch.tensor([[[0.1, 0.9], [-2.0, 0.5]]])
    assert descending_position(maps, SampleRng(0, (0,))).tolist() == [[2, 0, 3, 1]]


def test_ties_are_broken_at_random_but_reproducibly():
    flat = torch.zeros(1, 12, 12)
    first, again = (descending_position(flat, SampleRng(0, (3,))) for _ in range(2))
    assert torch.equal(first, again)
    assert sorted(first[0].tolist()) == list(range(144))
    assert abs(np.corrcoef(first[0], range(144))[0, 1]) < 0.3


@pytest.mark.parametrize("other", [SampleRng(0, (4,)), SampleRng(1, (3,))], ids=["sample", "seed"])
def test_ties_depend_on_the_sample_and_the_seed(other):
    flat = torch.zeros(1, 12, 12)
    assert not torch.equal(descending_position(flat, SampleRng(0, (3,))), descending_position(flat, other))


def test_ties_do_not_depend_on_the_batch():
    rng = SampleRng(0, (3, 8, 5))
    whole = descending_position(torch.zeros(3, 6, 6), rng)
    assert torch.equal(whole[[1]], descending_position(torch.zeros(1, 6, 6), rng.take([1])))


def test_only_tied_pixels_are_shuffled():
    flat = torch.zeros(1, 4, 4)
    flat[0, 2, 1], flat[0, 0, 0] = 1.0, -1.0
    position = descending_position(flat, SampleRng(0, (3,)))[0].view(4, 4)
    assert (int(position[2, 1]), int(position[0, 0])) == (0, 15)


def test_the_first_order_of_ties_is_that_of_the_samples_stream():
    rng = SampleRng(0, (3, 8))
    for row in range(2):
        order = rng.noise("ties")[row].part(0).order(16)
        assert torch.equal(descending_position(torch.zeros(2, 4, 4), rng)[row][order], torch.arange(16))


def test_the_first_order_of_ties_stays_as_it_is():
    position = descending_position(torch.zeros(1, 3, 3), SampleRng(0, (3,)))
    assert position.tolist() == [[0, 3, 2, 5, 1, 8, 6, 7, 4]]


def test_every_repeat_has_its_own_order_of_ties():
    flat, rng = torch.zeros(1, 12, 12), SampleRng(0, (3,))
    orders = [tuple(descending_position(flat, rng, r)[0].tolist()) for r in range(10)]
    assert len(set(orders)) == 10
    assert all(sorted(order) == list(range(144)) for order in orders)


def test_the_area_is_the_mean_over_the_orders_of_ties():
    # two pixels, a light one and a dark one: .5 -> 0 -> 0 has area .125, .5 -> .5 -> 0 has .375
    image, flat, rng = torch.tensor([[[[1.0, 0.0]]]]), torch.zeros(1, 1, 2), SampleRng(0, (3,))
    score = Deletion(step=1, repeats=25, output="logit", filler=Colour(0.0))
    light_first = [descending_position(flat, rng, r)[0, 0].item() == 0 for r in range(25)]
    assert 0 < sum(light_first) < 25
    expected = np.mean([0.125 if light else 0.375 for light in light_first])
    assert score(additive, image, flat, FIRST, rng).item() == pytest.approx(expected, abs=1e-7)


def test_many_orders_of_ties_tend_to_the_mean_of_all_orders():
    image = torch.tensor([[[[1.0, 0.0]]]]).expand(100, 1, 1, 2)
    score = Deletion(step=1, repeats=50, output="logit", filler=Colour(0.0))
    areas = score(additive, image, torch.zeros(100, 1, 2), torch.zeros(100, dtype=torch.long))
    assert areas.mean().item() == pytest.approx(0.25, abs=4 * 0.125 / math.sqrt(5000))
    assert areas.std().item() == pytest.approx(0.125 / math.sqrt(50), rel=0.3)


@pytest.mark.parametrize("kind", [Deletion, Insertion])
def test_one_repeat_is_the_area_of_the_curve(convnet, rgb, targets, kind):
    maps, rng = untied_maps(5).round(), SampleRng(1, (4, 3, 2, 1, 0))
    score = kind(filler=Colour(0.5))
    expected = np.trapezoid(score.curve(convnet, rgb, maps, targets, rng).double(), dx=1 / 12, axis=1)
    assert score(convnet, rgb, maps, targets, rng).tolist() == pytest.approx(expected.tolist(), abs=1e-12)


class Counting:
    """A model that counts the images it sees."""

    def __init__(self, model) -> None:
        self.model, self.seen = model, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.model(x)


def test_maps_without_ties_are_computed_once(convnet, rgb, targets):
    one, ten = Deletion(filler=Colour(0.5)), Deletion(filler=Colour(0.5), repeats=10)
    tied, untied = untied_maps(5), untied_maps(5)
    tied[2, 3, 4] = tied[2, 0, 0]
    for maps, repeats in ((untied, 1), (tied, 10)):
        model = Counting(convnet)
        areas = ten(model, rgb, maps, targets)
        assert model.seen == 5 * 13 * repeats
        others = [0, 1, 3, 4]
        assert torch.equal(areas[others], one(convnet, rgb, untied, targets)[others])


def test_a_repeat_costs_as_much_as_the_first():
    assert Deletion().passes(224, 224) == Passes(225)
    assert Deletion(repeats=10, fraction=0.5).passes(224, 224) == Passes(1130)
    assert Insertion(repeats=3).meaning()["repeats"] == 3


@pytest.mark.parametrize(
    "wrong", [{"fraction": 0.0}, {"fraction": 1.5}, {"step": -1}, {"repeats": 0}, {"output": "odds"}], ids=str
)
def test_deletion_refuses_parameters_that_mean_nothing(wrong):
    with pytest.raises(UsageError):
        Deletion(filler=Colour(0.0), **wrong)(additive, WHITE, untied_maps(1, 8), FIRST)


# -------------------------------------------------------------------------------------------------------------- fillers


@pytest.mark.parametrize("side", [224, 64, 20])
def test_blur_equals_an_explicit_convolution_with_mirrored_borders(side):
    images = torch.rand(1, 2, side, side, generator=seeded(1), dtype=torch.float64)
    sizes = Blur().resolve(lambda x: x, images)
    offsets = np.arange(sizes["kernel"]) - sizes["kernel"] // 2
    kernel = np.exp(-(offsets**2) / (2 * sizes["sigma"] ** 2))
    expected = images.numpy()
    for axis in (2, 3):
        expected = correlate1d(expected, kernel / kernel.sum(), axis=axis, mode="mirror")
    assert np.allclose(Blur().background(images), expected, atol=1e-12)


@pytest.mark.parametrize(("side", "kernel", "sigma"), [(224, 11, 5.0), (112, 7, 2.5), (32, 3, 5 / 7)])
def test_blur_is_given_for_224_pixels_and_scales(side, kernel, sigma):
    sizes = Blur().resolve(lambda x: x, torch.zeros(1, 1, side, side))
    assert sizes == {"kernel": kernel, "sigma": pytest.approx(sigma)}


def test_blur_takes_any_filler_for_the_hidden_pixels_only(rgb):
    keep = torch.rand(5, 3, 12, 12, generator=seeded(1)) < 0.5
    filled = Blur()(rgb, keep, SampleRng.default(5), draws=2)
    assert filled.shape == (5, 3, 2, 3, 12, 12)
    hidden = ~keep[:, :, None, None].expand_as(filled)
    blurred = Blur().background(rgb)[:, None, None].expand_as(filled)
    assert torch.equal(filled[hidden], blurred[hidden])


def test_a_colour_of_another_number_of_channels_is_refused(rgb):
    with pytest.raises(UsageError, match="2 values"):
        Colour((0.1, 0.2)).background(rgb)


def test_a_mean_filler_without_its_colour_is_refused(rgb):
    with pytest.raises(UsageError, match="does not know its colour"):
        Mean().background(rgb)


def test_fitting_gives_the_mean_colour_to_fillers_inside_scores(rgb):
    score = Deletion(step=3).fitted(TrainedOn((0.1, 0.2, 0.3)))
    assert score == Deletion(step=3, filler=Mean((0.1, 0.2, 0.3)))
    assert score.filler.background(rgb)[0, :, 0, 0].tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_fitting_leaves_a_colour_that_was_given(rgb):
    score = Deletion(filler=Mean((0.9,)))
    assert score.fitted(TrainedOn((0.1,))) == score


@pytest.mark.parametrize(
    "score",
    [MuFidelity(subsets=5), Deletion(filler=Colour(0.0)), Insertion(), NegativeEvidence(filler=Colour(0.0))],
    ids=lambda s: type(s).__name__,
)
def test_a_map_with_nan_has_no_score(score, convnet, rgb, targets):
    maps = torch.rand(5, 12, 12)
    maps[2, 3, 4] = torch.nan
    with pytest.raises(UsageError, match="NaN"):
        score(convnet, rgb, maps, targets)


# --------------------------------------------------------------------------------------------------- negative evidence


def two_classes(x: Tensor) -> Tensor:
    """Two classes; the first has the light of the left column for it, and that of the others against it."""
    logit = 2 * x[:, 0, :, 0].sum(1) - x[:, 0, :, 1:].sum((1, 2))
    return torch.stack([logit, torch.zeros_like(logit)], 1)


def rises(counts: list[int], gain: float, start: float) -> np.ndarray:
    """p(t) - p(0) of a logit that starts at `start` and gains `gain` a pixel."""
    p = 1 / (1 + np.exp(-(start + gain * np.array(counts))))
    return p - p[0]


def contributions(side: int = 4) -> Tensor:
    """The exact contribution of every pixel of a white image to the first class."""
    maps = torch.full((1, side, side), -1.0)
    maps[:, :, 0] = 2.0
    return maps


@pytest.mark.parametrize(
    ("steps", "counts"),
    [(1, [0, 12]), (3, [0, 4, 8, 12]), (5, [0, 2, 5, 7, 10, 12]), (8, [0, 2, 3, 5, 6, 8, 9, 11, 12])],
    ids=lambda v: str(v) if isinstance(v, int) else "",
)
@pytest.mark.parametrize("max_batch", [1, 4, 64])
def test_removing_all_that_speaks_against_a_class_raises_it_by_a_known_amount(steps, counts, max_batch):
    score = NegativeEvidence(steps=steps, filler=Colour(0.0), max_batch=max_batch)
    white, maps = torch.ones(1, 1, 4, 4, dtype=torch.float64), contributions().double()
    expected = rises(counts, 1.0, 8.0 - 12.0)
    curve = score.curve(two_classes, white, maps, FIRST)
    assert (curve - curve[:, :1])[0].tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    area = np.trapezoid(expected, dx=1 / steps)
    assert area > 0.3
    assert score(two_classes, white, maps, FIRST).item() == pytest.approx(area, abs=1e-12)


def test_negative_evidence_that_speaks_for_the_class_lowers_it():
    score = NegativeEvidence(steps=4, filler=Colour(0.0))
    white = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    expected = np.trapezoid(rises([0, 1, 2, 3, 4], -2.0, -4.0), dx=1 / 4)
    assert expected < 0
    assert score(two_classes, white, -contributions().double(), FIRST).item() == pytest.approx(expected, abs=1e-12)


def test_the_most_negative_pixel_goes_first_and_positive_ones_stay():
    def light(x: Tensor) -> Tensor:
        return two_logits(x.flatten(1) @ torch.tensor([1.0, 10.0, 100.0, 1000.0]))

    maps = torch.tensor([[[-0.1, 0.2], [-0.3, 0.0]], [[0.2, -2.0], [-1.0, -3.0]]])
    score = NegativeEvidence(steps=3, output="logit", filler=Colour(0.0))
    curve = score.curve(light, torch.ones(2, 1, 2, 2), maps, torch.tensor([0, 0]))
    assert curve.tolist() == [[1111, 1011, 1011, 1010], [1111, 111, 101, 1]]


def test_every_image_goes_through_its_own_number_of_negative_pixels():
    maps = torch.ones(3, 5, 5)
    maps[0, 0, 0] = -1
    maps[1].flatten()[:10] = -1
    counts = NegativeEvidence(steps=4).counts(maps)
    assert counts.tolist() == [[0, 0, 1, 1, 1], [0, 3, 5, 8, 10], [0, 0, 0, 0, 0]]


def test_maps_that_know_nothing_have_no_negative_evidence_on_average():
    n = 300
    images, maps = torch.rand(n, 1, 6, 6, generator=seeded(1)), untied_maps(n, 6)
    weight = torch.randn(1, 1, 6, 6, generator=seeded(2))
    model = Linear(torch.cat([weight, -weight]), torch.tensor([0.0, 0.0]))
    score = NegativeEvidence(filler=Colour(0.5))(model, images, maps, torch.arange(n) % 2)
    assert abs(float(score.mean())) < 3 * float(score.std()) / math.sqrt(n)
    assert float(score.std()) < 0.3


def test_exact_contributions_have_more_negative_evidence_than_noise(linear, rgb, targets, evidence):
    score = NegativeEvidence(filler=Colour(0.0))
    assert bool((score(linear, rgb, evidence, targets) > score(linear, rgb, untied_maps(5), targets)).all())


def test_a_map_without_negative_pixels_has_no_negative_evidence_to_test(convnet, rgb, targets):
    maps = untied_maps(5)
    maps[1], maps[3] = maps[1].abs(), 0.0
    score, ends = NegativeEvidence(filler=Colour(0.5)).with_details(convnet, rgb, maps, targets)
    for values in (score, *ends.values()):
        assert torch.isnan(values).tolist() == [False, True, False, True, False]


def test_an_undefined_negative_evidence_is_left_out_of_the_mean(convnet, rgb, targets):
    maps = untied_maps(5)
    maps[1] = maps[1].abs()
    score = NegativeEvidence(filler=Colour(0.5))(convnet, rgb, maps, targets)
    mean = mean_estimate(score)
    assert (mean.samples, mean.dropped) == (4, 1)
    assert mean.value == pytest.approx(float(score[[0, 2, 3, 4]].mean()))


def test_negative_ties_go_in_the_samples_random_order():
    rng, flat = SampleRng(0, (3,)), torch.full((1, 4, 4), -1.0)
    image = torch.arange(16.0).view(1, 1, 4, 4) / 16
    curve = NegativeEvidence(steps=16, output="logit", filler=Colour(0.0)).curve(additive, image, flat, FIRST, rng)
    order = rng.noise("ties")[0].part(0).order(16)
    expected = image.mean() - torch.cat([torch.zeros(1), image.flatten()[order].cumsum(0)]) / 16
    assert curve[0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_negative_evidence_does_not_depend_on_the_batch(convnet, rgb, targets):
    model, images, maps, rng = convnet.double(), rgb.double(), untied_maps(5).round(), SampleRng(1, (4, 9, 2, 7, 0))
    score = NegativeEvidence(steps=6, filler=UniformNoise())
    whole = score(model, images, maps, targets, rng)
    alone = [score(model, images[[i]], maps[[i]], targets[[i]], rng.take([i])) for i in range(5)]
    assert torch.allclose(whole, torch.cat(alone), rtol=0, atol=1e-12)


def test_all_negative_evidence_is_deletion_of_the_opposite_map(convnet, rgb, targets):
    maps = -untied_maps(5).abs()
    rise = NegativeEvidence(steps=12, filler=Colour(0.5))(convnet, rgb, maps, targets)
    deletion = Deletion(filler=Colour(0.5))
    start = deletion.curve(convnet, rgb, -maps, targets)[:, 0]
    assert rise.tolist() == pytest.approx((deletion(convnet, rgb, -maps, targets) - start).tolist(), abs=1e-6)


def test_negative_evidence_says_what_it_is_and_costs():
    score = NegativeEvidence()
    assert score.higher_is_better
    assert score.passes(224, 224) == Passes(21)
    meaning = score.meaning()
    assert (meaning["steps"], meaning["filler"]["name"], "max_batch" in meaning) == (20, "Mean", False)


def test_negative_evidence_in_no_step_is_refused():
    with pytest.raises(UsageError, match="steps=0"):
        NegativeEvidence(steps=0)


def test_a_fraction_of_the_negative_evidence_is_the_first_part_of_the_walk(linear, rgb):
    images = rgb
    maps = torch.randn(len(images), *images.shape[-2:], generator=seeded(5))
    maps[:, 0] = torch.where(maps[:, 0] < 0, 1.0, maps[:, 0])
    negative = int((maps[0] < 0).sum())
    whole = NegativeEvidence(steps=negative, filler=Colour(0.5)).curve(
        linear, images[:1], maps[:1], torch.zeros(1, dtype=torch.long)
    )
    half = NegativeEvidence(steps=-(-negative // 2), fraction=0.5, filler=Colour(0.5))
    part = half.curve(linear, images[:1], maps[:1], torch.zeros(1, dtype=torch.long))
    assert torch.allclose(part, whole[:, : part.shape[1]])
    rise = torch.trapezoid(part.double() - part[:, :1], dx=0.5 / half.steps, dim=1)
    assert torch.allclose(half(linear, images[:1], maps[:1], torch.zeros(1, dtype=torch.long)), rise)


@pytest.mark.parametrize("fraction", [0.0, 1.5, -1.0])
def test_a_fraction_of_negative_evidence_that_is_none_is_refused(fraction):
    with pytest.raises(UsageError, match="fraction in"):
        NegativeEvidence(fraction=fraction)
