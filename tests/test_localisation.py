"""Scores against a mask: hand values, the definitions restated with loops, outside implementations, baselines."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from lit_xai.errors import UsageError
from lit_xai.metrics import (
    BoxIoU,
    LocalisationError,
    MaskIoU,
    MaskPrecision,
    MaskRecall,
    MassInside,
    PointingGame,
    settle,
)
from lit_xai.metrics.localisation import ALPHAS, area, boxes_at, counts_above
from lit_xai.rng import stable_hash

from conftest import seeded

SCORES = [BoxIoU, LocalisationError, MaskIoU, MaskRecall, MaskPrecision, PointingGame, MassInside]
TAUS = [k / 100 for k in range(101)]


def random_case(seed: int, n: int = 12, height: int = 9, width: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps with ties, two of them constant, two without a positive value; masks neither empty nor full."""
    g = seeded(seed)
    maps = torch.randn(n, height, width, generator=g)
    maps[: n // 2] = (2 * maps[: n // 2]).round()
    maps[0], maps[1], maps[2], maps[3] = 0.7, 0.0, -maps[2].abs(), -1.3
    masks = torch.rand(n, height, width, generator=g) < torch.rand(n, 1, 1, generator=g)
    masks[:, 3, 4], masks[:, 5, 5] = True, False
    return maps, masks


# ------------------------------------------------------------------------------------- the definitions, pixel by pixel


def slow_box(inside: np.ndarray) -> tuple[int, int, int, int]:
    points = [(y, x) for y in range(inside.shape[0]) for x in range(inside.shape[1]) if inside[y, x]]
    ys, xs = [y for y, _ in points], [x for _, x in points]
    return min(ys), min(xs), max(ys), max(xs)  # inclusive


def slow_box_iou(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    def cells(box: tuple[int, ...]) -> set[tuple[int, int]]:
        return {(y, x) for y in range(box[0], box[2] + 1) for x in range(box[1], box[3] + 1)}

    return len(cells(a) & cells(b)) / len(cells(a) | cells(b))


def slow_box_ious(m: np.ndarray, mask: np.ndarray) -> list[float]:
    positive, out = np.maximum(m, 0), []
    for i in range(20):
        chosen = positive > 0 if i == 0 else positive >= i / 20 * positive.max()
        if positive.max() == 0:
            chosen = np.ones_like(mask)
        out.append(slow_box_iou(slow_box(chosen), slow_box(mask)))
    return out


def slow_areas(m: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    scaled = (m - m.min()) / (m.max() - m.min()) if m.max() > m.min() else np.zeros_like(m)
    curves: dict[str, list[float]] = {"iou": [], "recall": [], "precision": []}
    for tau in TAUS:
        hit = found = size = 0
        for value, on in zip(scaled.flat, mask.flat, strict=True):
            hit += bool(value > tau and on)
            found += bool(value > tau)
            size += bool(on)
        curves["iou"].append(hit / (found + size - hit))
        curves["recall"].append(hit / size)
        curves["precision"].append(hit / found if found else 0.0)
    return {k: sum((a + b) / 2 for a, b in pairwise(c)) / 100 for k, c in curves.items()}


def slow_pointing(m: np.ndarray, mask: np.ndarray, tolerance: float) -> float:
    distance, hits = tolerance * min(m.shape) / 224, []
    on = [(y, x) for y, x in np.ndindex(*m.shape) if mask[y, x]]
    for y, x in np.ndindex(*m.shape):
        if m[y, x] == m.max():
            hits.append(any((y - v) ** 2 + (x - u) ** 2 <= distance**2 for v, u in on))
    return sum(hits) / len(hits)


def slow_mass(m: np.ndarray, mask: np.ndarray) -> float:
    inside = sum(v for v, on in zip(m.flat, mask.flat, strict=True) if on and v > 0)
    total = sum(v for v in m.flat if v > 0)
    return inside / total if total else math.nan


def rows(maps: torch.Tensor, masks: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(m.double().numpy(), a.numpy()) for m, a in zip(maps, masks, strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_box_iou_is_its_definition(seed):
    maps, masks = random_case(seed)
    expected = torch.tensor([slow_box_ious(*row) for row in rows(maps, masks)], dtype=torch.float64)
    assert torch.allclose(BoxIoU().of(maps, masks), expected, rtol=0, atol=1e-12)
    assert torch.equal(LocalisationError().of(maps, masks), (expected <= 0.5).double())


@pytest.mark.parametrize("seed", range(3))
def test_areas_are_their_definitions(seed):
    maps, masks = random_case(seed)
    expected = [slow_areas(*row) for row in rows(maps, masks)]
    for score, key in ((MaskIoU(), "iou"), (MaskRecall(), "recall"), (MaskPrecision(), "precision")):
        assert score.of(maps, masks).tolist() == pytest.approx([e[key] for e in expected], abs=1e-12)


@pytest.mark.parametrize("tolerance", [0, 15, 25, 60, 111.9])
def test_pointing_is_its_definition(tolerance):
    for seed in range(3):
        maps, masks = random_case(seed)
        masks &= torch.rand(masks.shape, generator=seeded(seed)) < 0.1
        masks[:, 3, 4] = True
        expected = [slow_pointing(*row, tolerance) for row in rows(maps, masks)]
        assert PointingGame(tolerance=tolerance).of(maps, masks).tolist() == pytest.approx(expected, abs=1e-12)


def test_mass_is_its_definition():
    maps, masks = random_case(0)
    expected = [slow_mass(*row) for row in rows(maps, masks)]
    assert MassInside().of(maps, masks).tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert [math.isnan(e) for e in expected[:4]] == [False, True, True, True]


# ------------------------------------------------------------------------------------------------------------ by hand

RAMP = torch.tensor([[[0.0, 1, 2, 3], [0, 0, 0, 4], [-9, 0, 0, 0]]])
CORNER = torch.zeros(1, 3, 4, dtype=torch.bool)
CORNER[0, :2, 2:] = True  # a box of 4 pixels


def test_box_iou_by_hand():
    iou = BoxIoU().of(RAMP, CORNER)[0]
    at = dict(zip(BoxIoU().settings(), iou.tolist(), strict=True))
    assert at[0] == at[0.05] == at[0.25] == pytest.approx(4 / 6)  # columns 1..3 of rows 0..1
    assert at[0.3] == at[0.5] == 1  # {2, 3, 4}: equal to alpha * max counts
    assert at[0.55] == at[0.75] == 0.5  # {3, 4}
    assert at[0.8] == at[0.95] == 0.25  # {4}
    error = LocalisationError().of(RAMP, CORNER)[0]
    assert error.tolist() == [0.0] * 11 + [1.0] * 9  # an IoU of exactly .5 is an error


def test_a_map_without_positive_values_has_the_whole_image_as_its_box():
    for m in (torch.zeros(1, 3, 4), -RAMP.abs()):
        assert BoxIoU().of(m, CORNER).unique().tolist() == [4 / 12]


def test_areas_by_hand():
    mask = torch.tensor([[[True, True, False, False]]])
    m = torch.tensor([[[1.0, 0.5, 0.25, 0.0]]])

    def step(a: float, b: float, c: float) -> float:
        """The set is {1, .5, .25} at 0 .. .24, {1, .5} at .25 .. .49 (strict >), {1} at .5 .. .99, empty at 1."""
        return (24.5 * a + 25 * b + 50 * c) / 100

    assert MaskRecall().of(m, mask).tolist() == pytest.approx([step(1, 1, 0.5)])
    assert MaskIoU().of(m, mask).tolist() == pytest.approx([step(2 / 3, 1, 0.5)])
    assert MaskPrecision().of(m, mask).tolist() == pytest.approx([step(2 / 3, 1, 1)])


def test_a_constant_map_is_scaled_to_zero():
    maps, masks = torch.full((1, 3, 4), 5.0), CORNER
    assert [s().of(maps, masks).item() for s in (MaskIoU, MaskRecall, MaskPrecision)] == [0, 0, 0]


def test_pointing_by_hand():
    assert PointingGame().of(RAMP, CORNER).tolist() == [1]
    assert PointingGame().of(-RAMP, CORNER).tolist() == [0]
    assert PointingGame().of(torch.ones(1, 3, 4), CORNER).tolist() == [4 / 12]
    tied = torch.tensor([[[7.0, 0, 7, 0], [0, 0, 0, 7], [0, 0, 0, 0]]])
    assert PointingGame().of(tied, CORNER).tolist() == pytest.approx([2 / 3])


@pytest.mark.parametrize(("tolerance", "hits"), [(0, False), (9, False), (10, True), (15, True)])
def test_pointing_tolerates_a_distance_in_pixels_at_224(tolerance, hits):
    """On 112 pixels half of it counts: the point is (3, 4) = 5 pixels away from the object."""
    maps, masks = torch.zeros(1, 112, 112), torch.zeros(1, 112, 112, dtype=torch.bool)
    maps[0, 50, 60], masks[0, 53:70, 64:70] = 1, True
    assert bool(PointingGame(tolerance=tolerance).of(maps, masks)) == hits


def test_mass_by_hand():
    assert MassInside().of(RAMP, CORNER).tolist() == pytest.approx([9 / 10])
    assert math.isnan(MassInside().of(-RAMP.abs(), CORNER).item())


# ------------------------------------------------------------------------------------------------ outside implementations


@pytest.mark.parametrize("tau", [0, 13, 50, 99, 100])
def test_the_curves_under_the_areas_are_scikit_learns(tau):
    from sklearn.metrics import jaccard_score, precision_score, recall_score

    maps, masks = random_case(5)
    hit, found, size = counts_above(maps.double(), masks)
    for i, (m, mask) in enumerate(rows(maps, masks)):
        scaled = (m - m.min()) / (m.max() - m.min()) if m.max() > m.min() else m * 0
        chosen, true = (scaled > tau / 100).ravel(), mask.ravel()
        h, f, s = int(hit[i, tau]), int(found[i, tau]), int(size[i])
        assert h / (f + s - h) == pytest.approx(jaccard_score(true, chosen))
        assert h / s == pytest.approx(recall_score(true, chosen))
        assert h / max(f, 1) == pytest.approx(precision_score(true, chosen, zero_division=0))


def test_areas_of_a_curve_are_numpys():
    curve = torch.rand(4, 101, generator=seeded(0), dtype=torch.float64)
    assert area(curve).tolist() == pytest.approx(np.trapezoid(curve.numpy(), np.linspace(0, 1, 101), axis=1).tolist())


def test_boxes_and_their_iou_are_torchvisions_and_scikit_images():
    from skimage.measure import regionprops
    from torchvision.ops import box_iou as outside

    maps, masks = random_case(6)
    maps = maps[4:].clamp_min(0).double()
    found = boxes_at(maps, ALPHAS)
    true = torch.tensor([regionprops(m.numpy().astype(int))[0].bbox for m in masks[4:]])
    for i, m in enumerate(maps):
        for t, alpha in enumerate(ALPHAS):
            chosen = (m >= alpha * m.max()) & (m > 0)
            assert found[i, t].tolist() == list(regionprops(chosen.numpy().astype(int))[0].bbox)
    iou = torch.stack([outside(found[i].double(), true[[i]].double())[:, 0] for i in range(len(maps))])
    assert torch.allclose(BoxIoU().of(maps, masks[4:]), iou, atol=1e-6)


# ----------------------------------------------------------------------------------------------- identities, baselines


def test_the_mask_itself_is_the_best_map():
    _, masks = random_case(1)
    maps = masks.float()
    assert BoxIoU().of(maps, masks).unique().tolist() == [1]
    assert LocalisationError().of(maps, masks).unique().tolist() == [0]
    for score in (PointingGame(), PointingGame(tolerance=15), MassInside()):
        assert score.of(maps, masks).unique().tolist() == [1]
    for score in (MaskIoU(), MaskRecall(), MaskPrecision()):  # 1 for tau < 1, 0 for tau = 1
        assert score.of(maps, masks).tolist() == pytest.approx([0.995] * len(masks))


@pytest.mark.parametrize("kind", SCORES)
def test_scores_do_not_depend_on_the_maps_scale(kind):
    maps, masks = random_case(2)
    maps = maps.double()
    assert torch.allclose(kind().of(maps, masks), kind().of(8 * maps, masks), atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("kind", [MaskIoU, MaskRecall, MaskPrecision, PointingGame])
def test_these_do_not_depend_on_the_maps_zero(kind):
    maps, masks = random_case(2)
    assert torch.allclose(kind().of(maps.double(), masks), kind().of(maps.double() - 4, masks), atol=1e-12)


def test_the_baseline_is_that_of_the_whole_image():
    _, masks = random_case(3)
    whole = torch.ones(masks.shape)
    assert torch.allclose(BoxIoU().of(whole, masks), BoxIoU().reference(masks)[:, None].expand(-1, 20))
    assert torch.equal(LocalisationError().of(whole, masks)[:, 7], LocalisationError().reference(masks))
    for score in (PointingGame(), PointingGame(tolerance=30), MassInside()):
        assert torch.allclose(score.of(whole, masks), score.reference(masks))
    # at every threshold all pixels are in the set
    share = [m.sum() / m.size for _, m in rows(whole, masks)]
    assert MaskIoU().reference(masks).tolist() == pytest.approx(share)
    assert MaskPrecision().reference(masks).tolist() == pytest.approx(share)
    assert MaskRecall().reference(masks).tolist() == [1] * len(masks)


def test_the_baselines_error_is_that_of_half_an_image():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, :3], masks[2, 0, 0] = True, True, True
    masks[2, 3, 3] = True  # its box is the whole image
    assert BoxIoU().reference(masks).tolist() == [0.5, 0.75, 1]
    assert LocalisationError().reference(masks).tolist() == [1, 0, 0]


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def case(rgb, targets):
    """Five images, maps and masks of 12 x 12 pixels."""
    maps = torch.randn(5, 12, 12, generator=seeded(0))
    masks = torch.zeros(5, 12, 12, dtype=torch.bool)
    masks[:, 3:7, 2:9] = True
    return rgb, maps, targets, masks


@pytest.mark.parametrize("kind", SCORES)
def test_the_masks_come_as_what_is_observed(kind, case, convnet):
    images, maps, targets, masks = case
    value = kind()(convnet, images, maps, targets, None, masks)
    assert torch.equal(value, kind().of(maps, masks))
    assert not value.requires_grad


@pytest.mark.parametrize(
    ("kind", "name"),
    zip(
        SCORES,
        ["box_iou", "localisation_error", "mask_iou", "mask_recall", "mask_precision", "pointing_game", "mass_inside"],
        strict=True,
    ),
)
def test_without_masks_there_is_no_score(kind, name, case, convnet):
    images, maps, targets, _ = case
    with pytest.raises(UsageError, match=rf"score {name} needs masks: use data with ground truth .* \.of\(maps, masks"):
        kind()(convnet, images, maps, targets)


@pytest.mark.kind("a mask that is empty or full after the crop")
@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("value", [False, True], ids=["empty", "full"])
def test_a_mask_that_says_nothing_gives_its_own_sample_no_score_and_others_theirs(kind, value, case, convnet):
    images, maps, targets, masks = case
    before, whole = kind()(convnet, images, maps, targets, None, masks), kind().reference(masks)
    masks[3] = value
    others = [0, 1, 2, 4]
    for now, then in ((kind()(convnet, images, maps, targets, None, masks), before), (kind().reference(masks), whole)):
        assert bool(now[3].isnan().all())
        assert torch.equal(now[others], then[others].double())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("change", [lambda m: m[:, :6], lambda m: m[:4], lambda m: m.to(torch.uint8)])
def test_masks_that_do_not_belong_to_the_maps_are_refused(case, change):
    _, maps, _, masks = case
    with pytest.raises(UsageError, match="do not belong to maps of shape"):
        BoxIoU().of(maps, change(masks))


def test_a_map_with_nan_is_refused(case, convnet):
    images, maps, targets, masks = case
    maps[1, 0, 0] = math.nan
    with pytest.raises(UsageError, match="NaN or infinite"):
        MassInside()(convnet, images, maps, targets, None, masks)


def test_a_negative_tolerance_is_refused():
    with pytest.raises(UsageError, match="tolerance must be at least 0 pixels"):
        PointingGame(tolerance=-1)


@pytest.mark.parametrize("kind", SCORES)
def test_direction_and_cost(kind):
    score = kind(truth="tag")
    assert score.higher_is_better == (kind is not LocalisationError)
    assert score.passes(32, 32) == (0, 0)
    assert score.meaning()["truth"] == "tag"


def test_scores_on_the_synthetic_shapes_see_their_masks():
    from lit_xai.data.shapes import shapes

    source = shapes(32, 12, tag=1.0, test=0)
    tag, inside = (source.truth.masks(name, range(12)) for name in ("tag", "object"))
    assert MassInside("tag").of(tag.float(), tag).unique().tolist() == [1]
    assert MassInside("object").of(tag.float(), inside).unique().tolist() == [0]


# --------------------------------------------------------------------------------------------------------------- settle


def halves(samples: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return torch.tensor([stable_hash(seed, "settle", s) % 2 == 0 for s in samples.tolist()])


def test_a_setting_is_chosen_on_one_half_and_reported_on_the_other():
    samples = torch.arange(100, 140)
    choosing = halves(samples)
    values = torch.rand(40, 3, generator=seeded(0)) / 10
    values[choosing, 1] += 1  # best where it is chosen ...
    values[~choosing, 2] += 5  # ... not where it is reported
    reported, column = settle(values, samples, True)
    assert column == 1
    assert torch.equal(reported.isnan(), choosing)
    assert torch.equal(reported[~choosing], values[~choosing, 1])
    assert settle(-values, samples, False)[1] == 1
    assert settle(values, samples, False)[1] != 1


def test_the_halves_belong_to_the_samples():
    samples = torch.arange(60)
    values = torch.rand(60, 2, generator=seeded(1))
    first = settle(values, samples, True)[0].isnan()
    order = torch.randperm(60, generator=seeded(2))
    assert torch.equal(settle(torch.rand(60, 4), samples[order], False)[0].isnan(), first[order])
    assert torch.equal(first, halves(samples))
    assert not torch.equal(settle(values, samples, True, seed=1)[0].isnan(), first)
    assert 15 < int(first.sum()) < 45


def test_the_first_of_equal_settings_is_chosen():
    assert settle(torch.ones(40, 5), torch.arange(40), True)[1] == 0
    assert settle(torch.ones(40, 5), torch.arange(40), False)[1] == 0


def test_an_undefined_value_is_left_out_of_both_halves():
    samples = torch.arange(40)
    values = torch.rand(40, 2, generator=seeded(3))
    values[:, 1] += 1
    values[::5, 0] = math.nan
    reported, column = settle(values, samples, True)
    assert column == 1
    assert torch.equal(reported.isnan(), halves(samples) | (samples % 5 == 0))


def test_a_half_without_samples_is_refused():
    with pytest.raises(UsageError, match=r"both must be at least 1, raise data\.probes_per_fold="):
        settle(torch.ones(1, 3), torch.tensor([4]), True)
    with pytest.raises(UsageError, match="0 probes choose the threshold and 0 report it"):
        settle(torch.full((30, 2), math.nan), torch.arange(30), True)
