"""Measures of samplers against closed forms, scipy, scikit-learn and scikit-image; the table against its parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lit_xai.core import Filler
from lit_xai.errors import UsageError
from lit_xai.fillers import SegmentMean, UniformNoise
from lit_xai.fillers.constant import Blur, Colour
from lit_xai.metrics.statistics import difference, resamples
from lit_xai.quality import (
    Mahalanobis,
    image_ssim,
    label_entropy,
    penultimate,
    pixel_distance,
    probability_entropy,
    sampler_table,
    silhouette,
    umap_plane,
)
from lit_xai.quality import sampler_quality as quality_module
from lit_xai.quality.sampler import MEASURES
from lit_xai.quality.sampler_quality import hidden_segments, hides_of, silhouettes
from lit_xai.report.tables import every_sampler_number
from lit_xai.rng import SampleRng
from lit_xai.segments import Grid
from scipy.spatial import distance as scipy_distance
from scipy.stats import entropy
from skimage.metrics import structural_similarity
from sklearn.covariance import LedoitWolf, shrunk_covariance
from sklearn.metrics import silhouette_score

from conftest import seeded


def clouds(n: int = 90, f: int = 5, classes: int = 3, seed: int = 1):
    """Features of some classes with correlated noise, and their labels (7, 8, 9)."""
    labels = torch.arange(n) % classes + 7
    centres = 4 * torch.randn(classes, f, generator=seeded(seed), dtype=torch.float64)
    mix = torch.randn(f, f, generator=seeded(seed + 1), dtype=torch.float64)
    return centres[labels - 7] + torch.randn(n, f, generator=seeded(seed + 2), dtype=torch.float64) @ mix, labels


# --------------------------------------------------------------------------------------------------------- Mahalanobis


def brute_force(x, labels, queries, covariance=None):
    """The least squared distance by scipy, with a covariance of the class-centred features."""
    x, labels = x.numpy(), labels.numpy()
    means = {c: x[labels == c].mean(0) for c in np.unique(labels)}
    centred = x - np.stack([means[c] for c in labels])
    inverse = np.linalg.inv(centred.T @ centred / len(x) if covariance is None else covariance(centred))
    return [min(scipy_distance.mahalanobis(q, m, inverse) ** 2 for m in means.values()) for q in queries.numpy()]


def test_the_score_is_scipys_squared_distance_to_the_nearest_class():
    x, labels = clouds()
    queries = 5 * torch.randn(20, 5, generator=seeded(9), dtype=torch.float64)
    found = Mahalanobis.fit(x, labels, shrinkage=0.0)(queries)
    assert found.tolist() == pytest.approx(brute_force(x, labels, queries), rel=1e-9)


@pytest.mark.parametrize("features", [12, 60])  # 60: more than images, and the covariance is never made
def test_the_covariance_is_shrunk_as_scikit_learn_shrinks_it(features):
    x, labels = clouds(n=24, f=features)
    fitted, model = Mahalanobis.fit(x, labels), LedoitWolf(assume_centered=True)
    queries = torch.cat([x, 5 * torch.randn(9, features, generator=seeded(9), dtype=torch.float64)])
    expected = brute_force(x, labels, queries, lambda centred: model.fit(centred).covariance_)
    assert 0.01 < fitted.shrinkage == pytest.approx(model.shrinkage_)
    assert fitted(queries).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shrinkage", [0.2, 1.0])
def test_with_more_features_than_images_a_given_shrinkage_is_kept(shrinkage):
    x, labels = clouds(n=24, f=60)
    covariance = lambda centred: shrunk_covariance(centred.T @ centred / len(centred), shrinkage)  # noqa: E731
    expected = brute_force(x, labels, x, covariance)
    assert Mahalanobis.fit(x, labels, shrinkage)(x).tolist() == pytest.approx(expected, rel=1e-9)


def test_the_unshrunk_score_does_not_change_under_an_invertible_map():
    x, labels = clouds()
    change = torch.randn(5, 5, generator=seeded(4), dtype=torch.float64) + 2 * torch.eye(5, dtype=torch.float64)
    before = Mahalanobis.fit(x, labels, 0.0)(x)
    assert Mahalanobis.fit(x @ change + 3, labels, 0.0)(x @ change + 3).tolist() == pytest.approx(before.tolist())
    shrunk = Mahalanobis.fit(x, labels, 0.5)(x)
    assert not torch.allclose(Mahalanobis.fit(x @ change, labels, 0.5)(x @ change), shrunk, rtol=0.01)


def test_one_classs_own_features_score_their_number_on_average():
    x, _ = clouds(classes=1)
    assert float(Mahalanobis.fit(x, torch.zeros(90).long(), 0.0)(x).mean()) == pytest.approx(5)


def test_a_class_mean_scores_zero_and_features_that_never_vary_do_no_harm():
    x, labels = clouds()
    x = torch.cat([x, torch.zeros(90, 2).double()], 1)
    fitted = Mahalanobis.fit(x, labels)
    assert float(fitted(x[labels == 8].mean(0, keepdim=True))) == pytest.approx(0, abs=1e-12)
    assert bool(torch.isfinite(fitted(x)).all())


@pytest.mark.parametrize(
    ("features", "labels", "shrinkage", "message"),
    [
        (torch.ones(6, 3), torch.zeros(6).long(), None, "do not vary within classes"),
        (torch.rand(3, 5), torch.zeros(3).long(), 0.0, "no inverse"),
        (torch.rand(1, 5), torch.zeros(1).long(), None, "at least two images"),
        (torch.full((4, 2), torch.nan), torch.zeros(4).long(), None, "NaN or infinite"),
    ],
    ids=["constant", "few", "one", "nan"],
)
def test_features_without_gaussians_are_refused(features, labels, shrinkage, message):
    with pytest.raises(UsageError, match=message):
        Mahalanobis.fit(features, labels, shrinkage)


def test_features_of_another_network_are_refused():
    x, labels = clouds()
    with pytest.raises(UsageError, match="5 features were fitted, found 4"):
        Mahalanobis.fit(x, labels)(x[:, :4])


# ---------------------------------------------------------------------------------------------------- plane, silhouette


def points(n: int, shift: float = 0.0, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 2, generator=seeded(seed), dtype=torch.float64) + shift


@pytest.mark.parametrize("shift", [0.0, 1.0, 50.0])
def test_silhouette_equals_scikit_learns(shift):
    a, b = points(40), points(25, shift, 2)
    labels = [0] * 40 + [1] * 25
    assert float(silhouette(a, b)) == pytest.approx(silhouette_score(torch.cat([a, b]).numpy(), labels), rel=1e-9)


def test_clouds_that_are_alike_are_near_zero_and_far_ones_near_one():
    assert abs(float(silhouette(points(300), points(300, seed=2)))) < 0.01
    assert float(silhouette(points(50), points(50, 1000.0, 2))) > 0.99


def test_weights_count_points_and_copies_are_not_compared():
    a, b = points(12), points(9, 1.0, 2)
    counts = torch.tensor([[2, 0, 1, 1, 1, 3, 1, 1, 0, 1, 1, 1]]).double()
    found = float(silhouette(a, b, None, counts, torch.ones(1, 9).double()))
    used, total = torch.nonzero(counts[0])[:, 0].tolist(), 0.0
    for side, other, weight, against in ((a, b, counts[0], torch.ones(9)), (b, a, torch.ones(9), counts[0])):
        for i in range(len(side)):
            rest = [j for j in range(len(side)) if j != i]
            near = sum(weight[j] * torch.dist(side[i], side[j]) for j in rest) / sum(weight[j] for j in rest)
            far = sum(w * torch.dist(side[i], o) for o, w in zip(other, against, strict=True)) / against.sum()
            total += float(weight[i] * (far - near) / max(near, far))
    assert len(used) == 10
    assert found == pytest.approx(total / (float(counts.sum()) + 9), rel=1e-6)


def test_samples_of_one_image_are_not_compared_with_each_other():
    images, real = points(20, seed=3), points(400)
    origin = torch.arange(20).repeat_interleave(10)
    ten = torch.full((1, 20), 10.0).double()
    found = float(silhouette(real, images[origin], origin))
    assert found == pytest.approx(float(silhouette(real, images, None, torch.ones(1, 400).double(), ten)))
    assert float(silhouette(real, images[origin])) > found + 0.003  # copies keep apart what is alike


def test_a_set_of_one_point_has_its_silhouette_as_in_scikit_learn():
    a, b = points(6), points(1, 1.0, 2)
    expected = silhouette_score(torch.cat([a, b]).numpy(), [0] * 6 + [1])
    assert float(silhouette(a, b)) == pytest.approx(expected)
    same = torch.zeros(3, 2).double()
    assert float(silhouette(same, same)) == 0


@pytest.mark.slow  # what UMAP compiles takes 8 s
def test_the_plane_is_the_same_on_every_call_and_keeps_clusters_apart():
    x = torch.cat([torch.randn(20, 6, generator=seeded(1)), torch.randn(20, 6, generator=seeded(2)) + 30])
    state, threads = np.random.get_state()[1].copy(), torch.get_num_threads()  # noqa: NPY002
    plane = umap_plane(x, seed=3)
    assert torch.equal(plane, umap_plane(x, seed=3))
    assert not torch.equal(plane, umap_plane(x, seed=4))
    assert plane.shape == (40, 2)
    assert float(silhouette(plane[:20], plane[20:])) > 0.5
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    assert torch.get_num_threads() == threads


def test_a_plane_needs_rows():
    with pytest.raises(UsageError, match="at least 10 rows, found 9"):
        umap_plane(torch.rand(9, 3))


# -------------------------------------------------------------------------------------------------- diversity, locality


def test_label_entropy_of_k_equal_shares_is_the_logarithm_of_k():
    predicted = torch.stack([torch.arange(12) % k for k in (1, 2, 3, 6)]) + 5
    assert label_entropy(predicted).tolist() == pytest.approx([math.log(k) for k in (1, 2, 3, 6)], abs=1e-12)
    assert float(label_entropy(torch.tensor([[0, 0, 0, 9]]))) == pytest.approx(entropy([0.75, 0.25]))


def test_probability_entropy_is_that_of_a_histogram_in_bits():
    uniform = (torch.arange(20).double() + 0.5)[None] / 20
    assert float(probability_entropy(uniform)) == pytest.approx(math.log2(20))
    assert float(probability_entropy(torch.full((1, 7), 0.3))) == 0
    assert float(probability_entropy(torch.tensor([[0.0, 1.0, 1.0, 0.96]]))) == pytest.approx(entropy([1, 3], base=2))
    values = torch.rand(3, 50, generator=seeded(1))
    expected = [entropy(np.histogram(v.numpy(), 20, (0, 1))[0], base=2) for v in values]
    assert probability_entropy(values).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_numbers_that_are_no_probability_are_refused(bad):
    with pytest.raises(UsageError, match=r"must lie in \[0, 1\]"):
        probability_entropy(torch.tensor([[0.5, bad]]))


def test_pixel_distance_is_the_norm_of_the_flattened_difference(rgb):
    other = torch.rand(rgb.shape, generator=seeded(5))
    expected = [np.linalg.norm((a - b).numpy().ravel()) for a, b in zip(rgb, other, strict=True)]
    assert pixel_distance(rgb, other).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("side", [12, 7, 6])
def test_ssim_equals_scikit_images(rgb, side):
    a, b = rgb[..., :side, :], (rgb * 0.6 + 0.4 * torch.rand(rgb.shape, generator=seeded(5)))[..., :side, :]
    window = min(7, side - 1 + side % 2)
    options = {"data_range": 1.0, "channel_axis": 0, "win_size": window}
    expected = [
        structural_similarity(x.double().numpy(), y.double().numpy(), **options) for x, y in zip(a, b, strict=True)
    ]
    assert image_ssim(a, b).tolist() == pytest.approx(expected, rel=1e-6)
    assert image_ssim(a, a).tolist() == pytest.approx([1.0] * 5)


# ---------------------------------------------------------------------------------------------------------------- masks


def test_superpixels_are_hidden_with_the_turn_off_rate_and_nested(rgb):
    segments, rng = Grid(3)(rgb), SampleRng(1, (4, 2, 9, 0, 7))
    some, more, every = (hidden_segments(segments, hides, rng, 400) for hides in (0.5, 0.75, 1.0))
    assert [float(h.float().mean()) for h in (some, more)] == pytest.approx([0.5, 0.75], abs=0.02)
    assert bool(every.all())
    assert bool((more | ~some).all())
    assert torch.equal(hidden_segments(segments[[2]], 0.5, rng.take([2]), 400)[0], some[2])
    assert not torch.equal(some[0], some[1])


def test_the_rate_is_the_fillers_own():
    class Painter(Colour):
        turn_off_rate = 1.0

    class Wrong(Colour):
        turn_off_rate = 0

    assert (hides_of(Colour(0.0)), hides_of(Painter(0.0))) == (0.5, 1.0)
    with pytest.raises(UsageError, match=r"Wrong.turn_off_rate must lie in \(0, 1\]"):
        hides_of(Wrong(0.0))


# ---------------------------------------------------------------------------------------------------------------- table


class Whole(Filler):
    """Another image of noise for every draw, and what it was asked."""

    turn_off_rate = 1.0

    def __init__(self) -> None:
        self.kept, self.most = 0, 0

    def __call__(self, images, keep, rng, draws=1, segments=None):
        self.kept += int(keep.sum())
        self.most = max(self.most, len(images))
        return UniformNoise()(images, keep, rng, draws)


class Untouched(Filler):
    """Gives every image back."""

    def __call__(self, images, keep, rng, draws=1, segments=None):
        return images[:, None, None].expand(-1, keep.shape[1], draws, -1, -1, -1)


@pytest.fixture
def flat_umap(monkeypatch):
    """The first two features in the place of UMAP's plane: fast, and known."""
    monkeypatch.setattr(quality_module, "umap_plane", lambda x, seed: x[:, :2].clone())


ORDER = (5, 1, 9, 2, 8, 4, 0, 7, 3, 6)  # the samples that the images are


@pytest.fixture
def setting(convnet):
    """Images, targets, a fitted score, and other images."""
    images, real, training = (torch.rand(n, 3, 12, 12, generator=seeded(n)) for n in (10, 20, 60))
    score = Mahalanobis.fit(penultimate(convnet, training), torch.arange(60) % 4)
    return convnet, images, torch.arange(10) % 4, score, real


def tabled(setting, fillers, **options):
    model, images, targets, score, real = setting
    given = {"draws": 9, "rng": SampleRng(3, ORDER), "segmenter": Grid(3), "n_resamples": 50}
    return sampler_table(model, images, targets, fillers, score, real, **{**given, **options})


def samples_of(images, filler, hides=0.5, draws=9):
    """The samples as the definition reads, one by one: `[b, n, c, h, w]`."""
    rng, segments = SampleRng(3, ORDER), Grid(3)(images)
    out = []
    for row in range(len(images)):
        u = rng.noise("sampler masks")[row].parts(draws).uniform((9,))
        for n in range(draws):
            keep = (u[n] >= hides)[segments[row]]
            one = filler(images[[row]], keep[None, None], rng.take([row], [n]), 1, segments[[row]])
            out.append(one[0, 0, 0])
    return torch.stack(out).view(len(images), draws, *images.shape[1:])


@pytest.mark.usefixtures("flat_umap")
def test_the_table_holds_the_measures_of_the_samples(setting):
    model, images, targets, score, _ = setting
    fillers = {"black": Colour(0.0), "noise2": UniformNoise(), "superpixel": SegmentMean()}
    table = tabled(setting, fillers).estimates
    for name, filler in fillers.items():
        samples = samples_of(images, filler)
        flat, repeated = samples.flatten(0, 1), images.repeat_interleave(9, 0)
        with torch.no_grad():
            probabilities = model(flat).softmax(1)
        explained = probabilities[torch.arange(90), targets.repeat_interleave(9)]
        expected = {
            "mahalanobis": score(penultimate(model, flat)).mean(),
            "label_entropy": label_entropy(probabilities.argmax(1).view(10, 9)).mean(),
            "probability_entropy": probability_entropy(explained.view(10, 9)).mean(),
            "l2": pixel_distance(flat, repeated).mean(),
            "ssim": image_ssim(flat, repeated).mean(),
        }
        for measure, value in expected.items():
            e = table[name][measure]
            assert e.value == pytest.approx(float(value), rel=1e-5), (name, measure)
            assert e.low <= e.value <= e.high
            assert e.samples == 10
        assert table[name]["seconds_per_1000"].low > 0


@pytest.mark.usefixtures("flat_umap")
def test_the_silhouette_is_that_of_other_real_images_and_the_samples(setting):
    model, images, _, _, real = setting
    found = tabled(setting, {"black": Colour(0.0)})
    seen = penultimate(model, samples_of(images, Colour(0.0)).flatten(0, 1))[:, :2].double()
    assert torch.allclose(found.plane["black"], seen, atol=1e-5)
    origin = torch.arange(10).repeat_interleave(9)
    expected = silhouette(penultimate(model, real)[:, :2].double(), seen, origin)
    assert found.estimates["black"]["silhouette"].value == pytest.approx(float(expected), abs=1e-5)
    assert (len(found.plane["real"]), len(found.plane["noise"])) == (20, 20)


@pytest.mark.usefixtures("flat_umap")
def test_an_untouched_sample_is_local_cheap_and_without_diversity(setting):
    row = tabled(setting, {"same": Untouched()}).estimates["same"]
    assert [row[m].value for m in ("label_entropy", "probability_entropy", "l2")] == pytest.approx([0, 0, 0])
    assert row["ssim"].value == pytest.approx(1)


@pytest.mark.usefixtures("flat_umap")
def test_a_full_input_sampler_is_shown_nothing_in_chunks_of_bounded_size(setting):
    filler = Whole()
    found = tabled(setting, {"whole": filler, "black": Colour(0.0)}, max_batch=5)
    assert filler.kept == 0
    assert 1 < filler.most <= 5
    assert found.hides == {"whole": 1.0, "black": 0.5}


@pytest.mark.usefixtures("flat_umap")
def test_the_table_depends_neither_on_chunks_nor_on_other_fillers(setting, monkeypatch):
    fillers = {"noise2": UniformNoise(), "blur": Blur(5, 8.0), "whole": Whole()}
    one = tabled(setting, fillers)
    monkeypatch.setattr(quality_module, "GROUP", 4)
    other = tabled(setting, dict(reversed(fillers.items())), max_batch=4)
    assert list(other.estimates) == ["real", "noise", "whole", "blur", "noise2"]
    for name in one.estimates:
        for measure, e in one.estimates[name].items():
            if measure != "seconds_per_1000":
                again = other.estimates[name][measure]
                assert [again.value, again.low, again.high] == pytest.approx(
                    [e.value, e.low, e.high], rel=1e-4, abs=1e-6, nan_ok=True
                ), (name, measure)


@pytest.mark.usefixtures("flat_umap")
def test_reference_rows_have_alignment_alone_and_a_reason(setting):
    model, _, _, score, real = setting
    table = tabled(setting, {"black": Colour(0.0)}).estimates
    assert table["real"]["mahalanobis"].value == pytest.approx(float(score(penultimate(model, real)).mean()))
    assert table["real"]["mahalanobis"].samples == 20
    assert table["real"]["silhouette"].reason == "one random half to the other"
    for name in ("real", "noise"):
        for measure in ("label_entropy", "probability_entropy", "l2", "ssim", "seconds_per_1000"):
            assert math.isnan(table[name][measure].value)
            assert table[name][measure].reason == "no samples of an image"


@pytest.mark.usefixtures("flat_umap")
def test_differences_are_paired_by_image(setting):
    found = tabled(setting, {"grey": Colour(0.5), "black": Colour(0.0), "again": Colour(0.0)})
    d = found.to_reference("black", "l2")
    black, grey = (found.estimates[n]["l2"] for n in ("black", "grey"))
    assert d.value == pytest.approx(black.value - grey.value)
    assert (d.low, d.high) == tuple(pytest.approx(v) for v in np.quantile(black.draws - grey.draws, [0.025, 0.975]))
    assert found.to_reference("grey", "l2") is None
    assert found.to_reference("real", "mahalanobis") is None
    same = tabled(setting, {"black": Colour(0.0), "again": Colour(0.0)})
    assert [same.to_reference("again", m).high for m in ("mahalanobis", "silhouette", "ssim")] == [0, 0, 0]
    assert found.to_real("black", "l2") is None
    real = found.to_real("black", "mahalanobis")
    assert real.value == pytest.approx(
        difference(found.estimates["black"]["mahalanobis"], found.estimates["real"]["mahalanobis"]).value
    )


@pytest.mark.usefixtures("flat_umap")
def test_rows_are_a_csv_file_without_a_bare_number(setting):
    found = tabled(setting, {"black": Colour(0.0), "grey": Colour(0.5)})
    columns, cells = every_sampler_number(found).file()
    rows = [dict(zip(columns, row, strict=True)) for row in cells]
    assert [(r["sampler"], r["measure"]) for r in rows] == [
        (s, m) for s in ("real", "noise", "black", "grey") for m in MEASURES
    ]
    for row in rows:
        assert (row["value"] == "") == (row["low"] == "") == (row["high"] == ""), row
        assert row["value"] != "" or row["note"], row
        assert (row["difference"] != "") == (row["sampler"] == "grey") == bool(row["reference"])
        assert (row["minus_real"] != "") == (
            row["sampler"] != "real" and row["measure"] in ("mahalanobis", "silhouette")
        )
    grey = next(r for r in rows if (r["sampler"], r["measure"]) == ("grey", "seconds_per_1000"))
    assert (grey["draws"], grey["hides"], grey["measured_on"]) == (
        9,
        0.5,
        f"cpu, {torch.get_num_threads()} threads",
    )


@pytest.mark.slow  # what UMAP compiles takes 8 s
def test_all_rows_lie_in_one_plane(setting):
    found = tabled(setting, {"black": Colour(0.0), "whole": Whole()})
    model, images, _, _, real = setting
    noise = SampleRng(3, tuple(range(20)))
    sets = [
        penultimate(model, real),
        penultimate(model, torch.stack([noise.uniform("sampler noise", row, (3, 12, 12)) for row in range(20)])),
        *(penultimate(model, samples_of(images, *f).flatten(0, 1)) for f in ((Colour(0.0),), (UniformNoise(), 1.0))),
    ]
    assert [len(x) for x in found.plane.values()] == [len(x) for x in sets]
    assert torch.equal(torch.cat(list(found.plane.values())), umap_plane(torch.cat(sets), 3))


def test_resamples_draw_images_with_all_their_samples():
    plane = {"real": points(8), "noise": points(8, 4.0, 2), "it": points(15, 1.0, 3)}
    found = silhouettes(plane, 5, torch.arange(8), 6)["it"]
    counts = torch.cat(list(resamples(torch.tensor([0] * 8 + [1] * 8 + [2] * 5), 6)))
    origin = torch.arange(5).repeat_interleave(3)
    for draw, count in zip(found.draws.tolist(), counts, strict=True):
        weights = count[:8], count[16:].repeat_interleave(3)
        assert draw == pytest.approx(float(silhouette(plane["real"], plane["it"], origin, *(w[None] for w in weights))))
    assert found.samples == 5


@pytest.mark.usefixtures("flat_umap")
def test_samples_of_the_plane_are_the_first_of_every_image(setting):
    few, all_ = (tabled(setting, {"black": Colour(0.0)}, plotted=n) for n in (23, 500))
    assert few.plane["black"].shape == (20, 2)
    assert torch.equal(few.plane["black"].view(10, 2, 2), all_.plane["black"].view(10, 9, 2)[:, :2])


@pytest.mark.parametrize(
    ("fillers", "options", "message"),
    [
        ({}, {}, "no sampler is chosen"),
        ({"real": Colour(0.0)}, {}, "named 'real'"),
        ({"noise": Colour(0.0)}, {}, "named 'noise'"),
        ({"black": Colour(0.0)}, {"draws": 0}, "draws must be at least 1"),
    ],
    ids=["none", "real", "noise", "draws"],
)
def test_requests_without_sense_are_refused(setting, fillers, options, message):
    with pytest.raises(UsageError, match=message):
        tabled(setting, fillers, **options)


def test_a_few_images_are_refused(setting):
    model, images, targets, score, real = setting
    with pytest.raises(UsageError, match="at least 4 images, found 3"):
        sampler_table(model, images[:3], targets[:3], {"black": Colour(0.0)}, score, real)
    with pytest.raises(UsageError, match="at least 4 other real images, found 2"):
        sampler_table(model, images, targets, {"black": Colour(0.0)}, score, real[:2])
    with pytest.raises(UsageError, match=r"the model has classes 0\.\.3"):
        sampler_table(model, images, targets + 3, {"black": Colour(0.0)}, score, real)
