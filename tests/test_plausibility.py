"""Plausibility of refilled images: closed forms and outside implementations of the distance, features, windows, tables."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from lit_xai.core import Filler
from lit_xai.errors import UsageError
from lit_xai.fillers import UniformNoise
from lit_xai.fillers.constant import Blur, Colour
from lit_xai.metrics.statistics import FEW, Estimate, resamples
from lit_xai.quality import frechet_distance, inception, penultimate, plausibility_table, windows_refilled
from lit_xai.quality.plausibility import Enlarged, differences, distances, window_corners
from lit_xai.report.tables import plausibility
from lit_xai.rng import SampleRng
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from conftest import seeded

BLACK, GREY = Colour(0.0), Colour(0.5)


def pixels(images: Tensor) -> Tensor:
    """Eight features: the mean light of the blocks of a 2 x 4 grid."""
    return nn.functional.adaptive_avg_pool2d(images, (2, 4)).mean(1).flatten(1)


def pictures(n: int, side: int = 16, channels: int = 1, seed: int = 1) -> Tensor:
    """Smooth random images in (0, 1)."""
    noise = torch.rand(n, channels, side // 4 + 1, side // 4 + 1, generator=seeded(seed))
    return nn.functional.interpolate(noise, size=(side, side), mode="bilinear") * 0.9 + 0.05


def with_moments(n: int, mean: Tensor, covariance: Tensor, seed: int) -> Tensor:
    """n rows whose sample mean and covariance are exactly these."""
    z = torch.randn(n, len(mean), generator=seeded(seed), dtype=torch.float64)
    z = z - z.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(z.T.cov()), z.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def covariance(f: int, seed: int) -> Tensor:
    a = torch.randn(f, 2 * f, generator=seeded(seed), dtype=torch.float64)
    return a @ a.T / f


def by_scipy(a: Tensor, b: Tensor) -> float:
    """The distance as its formula reads, with scipy's matrix root."""
    sa, sb = a.T.cov().numpy(), b.T.cov().numpy()
    root = sqrtm(sa @ sb)
    return float((a.mean(0) - b.mean(0)).square().sum()) + float(np.trace(sa + sb - 2 * root.real))


# ---------------------------------------------------------------------------------------------------- Fréchet distance


def test_distance_of_gaussians_with_common_axes_is_the_closed_form():
    mean, other = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    a = with_moments(20, mean, torch.diag(torch.tensor([1.0, 4.0, 9.0]).double()), 1)
    b = with_moments(30, other, torch.diag(torch.tensor([4.0, 4.0, 0.25]).double()), 2)
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (1 - 2) ** 2 + 0 + (3 - 0.5) ** 2, abs=1e-10)


def test_distance_of_a_shift_is_its_squared_length():
    a = torch.randn(30, 5, generator=seeded(1)).double()
    assert frechet_distance(a, a + 0.3) == pytest.approx(5 * 0.09, abs=1e-10)


@pytest.mark.parametrize(("n", "m", "f"), [(40, 60, 6), (7, 200, 6), (300, 300, 24)])
def test_distance_equals_scipys_matrix_root(n, m, f):
    a = with_moments(n, torch.zeros(f).double(), covariance(f, 1), 2)
    b = with_moments(m, torch.ones(f).double(), covariance(f, 3), 4)
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-9)


def test_distance_equals_torchmetrics():
    a, b = pictures(40, 16, 3, seed=1), pictures(50, 16, 3, seed=2) ** 2

    class Features(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.double().mean(-1).flatten(1)[:, ::4]

    fid = FrechetInceptionDistance(feature=Features(), normalize=False, input_img_size=(3, 16, 16)).set_dtype(
        torch.float64
    )
    fid.update(a, real=True)
    fid.update(b, real=False)
    expected = float(fid.compute())
    assert expected > 0.01
    assert frechet_distance(Features()(a), Features()(b)) == pytest.approx(expected, rel=1e-6)


def test_fewer_rows_than_features_give_the_distance_of_the_space_they_span():
    a, b = (torch.zeros(9, 400, dtype=torch.float64) for _ in range(2))
    a[:, :4] = torch.randn(9, 4, generator=seeded(1))
    b[:, :4] = 2 * torch.randn(9, 4, generator=seeded(2))
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a[:, :4], b[:, :4]), rel=1e-9)


@pytest.mark.parametrize(("n", "f"), [(50, 8), (8, 50)])
def test_distance_to_itself_is_zero(n, f):
    a = 1e3 * torch.randn(n, f, generator=seeded(1))
    assert 0 <= frechet_distance(a, a) < 1e-6


@pytest.mark.parametrize(("n", "f"), [(50, 8), (8, 50)])
def test_distance_is_symmetric(n, f):
    a, b = torch.randn(n, f, generator=seeded(1)), torch.rand(n, f, generator=seeded(2))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


@pytest.mark.parametrize(("n", "f"), [(50, 8), (8, 50)])
def test_distance_does_not_change_in_a_rotated_space(n, f):
    a, b = torch.randn(n, f, generator=seeded(1)).double(), torch.rand(n, f, generator=seeded(2)).double()
    rotation = torch.linalg.qr(torch.randn(f, f, generator=seeded(3), dtype=torch.float64)).Q
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_two_rows_are_enough():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    assert frechet_distance(a, b) == pytest.approx(1 + (math.sqrt(2) - math.sqrt(8)) ** 2)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.rand(1, 3), torch.rand(5, 3), "two images on either side, found 1 and 5"),
        (torch.rand(5, 3), torch.rand(5, 4), "features of 3 and 4 numbers"),
        (torch.tensor([[1.0], [torch.nan]]), torch.rand(5, 1), "NaN or infinite"),
        (torch.rand(5, 1), torch.tensor([[1.0], [torch.inf]]), "NaN or infinite"),
    ],
    ids=["rows", "widths", "nan", "inf"],
)
def test_features_without_a_distance_are_refused(a, b, message):
    with pytest.raises(UsageError, match=message):
        frechet_distance(a, b)


# ------------------------------------------------------------------------------------------------------------- features


def test_penultimate_features_enter_the_last_linear_layer(convnet, rgb):
    features = penultimate(convnet, rgb, max_batch=2)
    assert features.shape == (5, 24)
    assert torch.allclose(convnet[-1](features), convnet(rgb), atol=1e-6)


def test_the_last_linear_layer_is_the_last_that_runs(rgb):
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(7, 2), nn.Linear(432, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.flatten(1)))

    model = Backwards()
    assert torch.equal(penultimate(model, rgb), model.body(rgb.flatten(1)))


def test_a_last_convolution_of_one_pixel_gives_the_spatial_mean_of_its_input(rgb):
    body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    model = nn.Sequential(body, nn.Dropout(0.5), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert torch.allclose(penultimate(model.train(), rgb), body(rgb).mean((2, 3)), atol=1e-6)


def test_squeezenet_has_512_features():
    from torchvision.models import squeezenet1_1

    assert penultimate(squeezenet1_1(weights=None), torch.rand(2, 3, 32, 32)).shape == (2, 512)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(12, 4), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Sequential(nn.Unflatten(0, (1, 5)), nn.Linear(12, 4), nn.Flatten(0, 1)),
        nn.Flatten(),
        torch.flatten,
    ],
    ids=["wide convolution", "rows are no images", "no layer", "function"],
)
def test_other_models_need_features_of_their_own(model, rgb):
    with pytest.raises(UsageError, match=r"pass a function images -> \[n, f\]"):
        penultimate(model, rgb)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def test_the_model_is_left_as_found_even_after_an_error(convnet, rgb):
    convnet.train()
    convnet[0].eval()
    before, state = [m.training for m in convnet.modules()], {k: v.clone() for k, v in convnet.state_dict().items()}
    penultimate(convnet, rgb)
    with pytest.raises(RuntimeError):
        penultimate(convnet, rgb[:, :2])
    assert hooks(convnet) == 0
    assert [m.training for m in convnet.modules()] == before
    assert all(torch.equal(v, state[k]) for k, v in convnet.state_dict().items())


# ------------------------------------------------------------------------------------------------------------ inception


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A random inception_v3, as torchvision builds it for its weights."""
    from torchvision.models import inception_v3

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return inception_v3(weights=None, aux_logits=True, transform_input=True, init_weights=False).eval()


@pytest.fixture(scope="module")
def weights(network, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), file)
    return file


def test_inception_gives_the_pooled_features_of_torchvisions_network(network, weights):
    from torchvision.transforms.v2 import functional as V

    images = pictures(2, 40, 3)
    x = V.resize(images, [299, 299], interpolation=V.InterpolationMode.BILINEAR, antialias=True)
    x = V.normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    pooled: list[Tensor] = []
    handle = network.avgpool.register_forward_hook(lambda *a: pooled.append(a[2].flatten(1)))
    with torch.no_grad():
        network(x)
    handle.remove()
    features = inception(weights)(images)
    assert features.shape == (2, 2048)
    assert torch.allclose(features, pooled[0], rtol=1e-4, atol=1e-5 * float(pooled[0].abs().max()))


def test_inception_repeats_grey(weights):
    grey = pictures(2, 75)
    features = inception(weights)
    assert torch.allclose(features(grey), features(grey.repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-7)


def test_inception_shrinks_without_aliases():
    board = (torch.arange(897)[:, None] + torch.arange(897)).remainder(2).float()[None, None]
    small = Enlarged()(board)
    assert small.shape == (1, 3, 299, 299)
    assert float((small - 0.5).abs().mean()) < 0.1  # every third pixel alone would be a board again


def test_inception_draws_no_random_number(weights):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    inception(weights)
    assert torch.equal(torch.get_rng_state(), before)


def test_inception_takes_a_state_without_the_auxiliary_classifier(weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    torch.save({k: v for k, v in state.items() if "AuxLogits" not in k}, tmp_path / "plain.pth")
    assert inception(tmp_path / "plain.pth")(pictures(1, 75)).shape == (1, 2048)


def test_inception_refuses_images_of_other_channels(weights):
    with pytest.raises(UsageError, match="1 or 3 channels, found 2"):
        inception(weights)(torch.rand(2, 2, 32, 32))


def damage(kind: str, file, good) -> None:
    if kind == "cut":
        file.write_bytes(good.read_bytes()[:5000])
    elif kind == "text":
        file.write_text("not weights")
    elif kind == "another network":
        torch.save(nn.Linear(2, 2).state_dict(), file)
    elif kind == "list":
        torch.save([torch.zeros(2)], file)
    elif kind == "code":
        torch.save(nn.Linear(2, 2), file)


@pytest.mark.parametrize("kind", ["missing", "cut", "text", "another network", "list", "code"])
def test_a_file_without_inceptions_weights_is_named_in_one_line(kind, weights, tmp_path):
    file = tmp_path / "weights.pth"
    damage(kind, file, weights)
    with pytest.raises(
        UsageError, match=r"weights\.pth.*save the state_dict\(\) of torchvision's inception_v3"
    ) as error:
        inception(file)
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------------------------------- windows


def changed(images: Tensor, refilled: Tensor) -> Tensor:
    return (images != refilled).any(1)


def test_a_window_is_refilled_where_its_corner_says_and_nothing_else_changes():
    images, rng = pictures(6, 12, 3), SampleRng(3, (9, 4, 7, 1, 0, 2))
    refilled = windows_refilled(images, BLACK, 5, rng)
    for row, (top, left) in enumerate(window_corners(images, 5, rng).tolist()):
        expected = images[row].clone()
        expected[:, top : top + 5, left : left + 5] = 0
        assert torch.equal(refilled[row], expected)


def test_every_filler_gets_the_same_windows():
    images, rng = pictures(5), SampleRng(3, (9, 4, 7, 1, 0))
    black, noise = (windows_refilled(images, f, 4, rng) for f in (BLACK, UniformNoise()))
    assert torch.equal(changed(images, black), changed(images, noise))


def test_windows_reach_every_place_of_a_wide_image_equally_often():
    images = torch.zeros(1, 1, 4, 6).expand(3000, -1, -1, -1)
    corners = window_corners(images, 3, SampleRng(0, (*range(3000),)))
    places = torch.bincount(corners[:, 0] * 4 + corners[:, 1])
    assert len(places) == 8
    assert places.tolist() == pytest.approx([375] * 8, abs=4 * math.sqrt(375))


def test_refilled_windows_do_not_depend_on_the_batch():
    images, rng = pictures(5), SampleRng(3, (9, 4, 7, 1, 0))
    whole = windows_refilled(images, UniformNoise(), 4, rng)
    parts = windows_refilled(images, UniformNoise(), 4, rng, max_batch=2)
    alone = [windows_refilled(images[[i]], UniformNoise(), 4, rng.take([i])) for i in range(5)]
    assert torch.equal(whole, parts)
    assert torch.equal(whole, torch.cat(alone))


def test_a_filler_that_learned_leaves_no_gradient_behind():
    class Learned(Coded):
        def __call__(self, images, keep, rng, draws=1, segments=None):
            return super().__call__(images * nn.Parameter(torch.ones(1)), keep, rng, draws)

    assert not windows_refilled(pictures(3), Learned(), 4).requires_grad


@pytest.mark.parametrize("patch", [0, 13])
def test_windows_that_do_not_fit_are_refused(patch):
    with pytest.raises(UsageError, match=r"windows must be of 1\.\.12 pixels"):
        windows_refilled(torch.rand(2, 1, 12, 14), BLACK, patch)


# ------------------------------------------------------------------------------------------------- distances of pairs


def pair(
    n: int, f: int, seed: int, scale: float = 1.0, shift: float = 0.0, noise: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Features of n images, and of their perturbed versions."""
    generator = seeded(seed)
    a = torch.randn(n, f, generator=generator, dtype=torch.float64)
    return a, scale * a + noise * torch.randn(n, f, generator=generator, dtype=torch.float64) + shift


def true_distance(f: int, scale: float, shift: float, noise: float) -> float:
    return f * (shift**2 + (math.sqrt(scale**2 + noise**2) - 1) ** 2)


def test_the_distance_is_reflected_at_the_plain_one():
    a, b = pair(60, 5, 1, scale=0.7)
    found, plain = distances(a, {"it": b}, 200)["it"], frechet_distance(a, b)
    resampled = [2 * plain - d for d in found.draws.tolist()]
    low, high = np.quantile(resampled, [0.025, 0.975])
    assert found.value == pytest.approx(2 * plain - np.mean(resampled))
    assert (found.low, found.high) == (pytest.approx(2 * plain - high), pytest.approx(2 * plain - low))
    assert (found.samples, found.reason) == (60, "")


def test_resamples_draw_images_with_their_pairs():
    a, b = pair(30, 4, 1)
    found, plain = distances(a, {"it": b}, 5)["it"], frechet_distance(a, b)
    counts = next(resamples(torch.zeros(30, dtype=torch.long), 5)).long()
    for draw, count in zip(found.draws.tolist(), counts, strict=True):
        index = torch.arange(30).repeat_interleave(count)
        assert 2 * plain - draw == pytest.approx(frechet_distance(a[index], b[index]), rel=1e-9)


def test_the_interval_holds_the_true_distance_where_percentiles_miss_it():
    setting = {"scale": 0.9, "shift": 0.05, "noise": 0.2}
    truth, held, percentiles = true_distance(12, **setting), 0, 0
    for seed in range(40):
        a, b = pair(80, 12, seed, **setting)
        found, plain = distances(a, {"it": b}, 60)["it"], frechet_distance(a, b)
        held += found.low <= truth <= found.high
        low, high = np.quantile(2 * plain - found.draws, [0.025, 0.975])
        percentiles += low <= truth <= high
    assert held >= 34
    assert percentiles <= 4


def test_the_bias_is_taken_away():
    setting = {"scale": 0.9, "shift": 0.05, "noise": 0.2}
    pairs = [pair(80, 12, seed, **setting) for seed in range(40)]
    truth = true_distance(12, **setting)
    corrected = np.mean([distances(a, {"it": b}, 30)["it"].value for a, b in pairs])
    plain = np.mean([frechet_distance(a, b) for a, b in pairs])
    assert plain > 1.3 * truth
    assert corrected == pytest.approx(truth, rel=0.1)


def test_an_exact_filler_is_at_zero():
    a, _ = pair(40, 5, 1)
    found = distances(a, {"it": a}, 50)["it"]
    assert [found.value, found.low, found.high] == pytest.approx([0, 0, 0], abs=1e-10)


@pytest.fixture
def alike() -> dict[str, dict[str, Estimate]]:
    """Two sets of features of the same law as the real ones, whose distances without bias are below 0."""
    real, a, b = torch.randn(3, 60, 4, generator=seeded(23), dtype=torch.float64)
    return {name: {"distance": e} for name, e in distances(real, {"a": a, "b": b}, 100).items()}


def test_a_distance_is_cut_off_at_zero(alike):
    a = alike["a"]["distance"]
    assert float(a.draws.mean()) < 0
    assert (a.value, a.low) == (0, 0)


def test_a_difference_is_that_of_distances_that_are_not_cut_off(alike):
    draws = alike["a"]["distance"].draws - alike["b"]["distance"].draws
    assert abs(float(draws.mean())) > 0.01
    assert differences(alike, "b")["a"].value == pytest.approx(float(draws.mean()), abs=1e-12)


@pytest.mark.parametrize(("n", "reason"), [(29, "29 images for 10 features: too large"), (30, "")])
def test_too_few_images_for_the_features_are_said(n, reason):
    a, b = pair(n, 10, 1)
    assert distances(a, {"it": b}, 10)["it"].reason == reason


# ---------------------------------------------------------------------------------------------------------------- table


class Coded(Filler):
    """A filler that knows its bits: the brightness of the window's first pixel, say."""

    def __init__(self, value: float = 0.5) -> None:
        self.value = value

    def __call__(self, images, keep, rng, draws=1, segments=None):
        return Colour(self.value)(images, keep, rng, draws)

    def window_bits(self, images: Tensor, top: Tensor, left: Tensor) -> Tensor:
        return images[torch.arange(len(images)), 0, top, left]


RNG = SampleRng(3, tuple(range(100, 140)))


@pytest.fixture(scope="module")
def table():
    fillers = {"grey": GREY, "black": BLACK, "noise": UniformNoise(), "coded": Coded()}
    return plausibility_table(pixels, pictures(40), fillers, 6, RNG, max_batch=7, n_resamples=200)


def test_the_table_holds_the_distance_of_the_refilled_images(table):
    images = pictures(40)
    for name, filler in {"grey": GREY, "black": BLACK, "noise": UniformNoise()}.items():
        filled = pixels(windows_refilled(images, filler, 6, RNG)).double()
        expected = distances(pixels(images).double(), {name: filled}, 200)[name]
        found = table[name]["distance"]
        assert [found.value, found.low, found.high] == pytest.approx(
            [expected.value, expected.low, expected.high], rel=1e-5, abs=1e-9
        )


def test_black_windows_are_less_plausible_than_grey_ones(table):
    grey, black = (table[n]["distance"] for n in ("grey", "black"))
    assert grey.value < grey.high < black.low < black.value


def test_the_real_row_comes_first_and_shows_what_chance_alone_gives(table):
    assert next(iter(table)) == "real"
    features = pixels(pictures(40)).double()
    u = torch.stack([RNG.uniform("halves", row, (100,)) for row in range(40)])
    splits = [u[:, s].argsort() for s in range(100)]
    found = [frechet_distance(features[s[:20]], features[s[20:]]) for s in splits]
    real = table["real"]["distance"]
    low, high = np.quantile(found, [0.025, 0.975])
    assert [real.value, real.low, real.high] == pytest.approx([np.mean(found), low, high], rel=1e-6)
    assert table["real"]["bits"].reason == "nothing is filled"


def test_the_table_does_not_depend_on_the_order_of_the_images():
    images, order = pictures(12), torch.randperm(12, generator=seeded(3)).tolist()
    rng = SampleRng(3, tuple(range(12)))
    args = {"fillers": {"noise": UniformNoise()}, "patch": 6, "n_resamples": 2}
    one = plausibility_table(pixels, images, rng=rng, **args)
    other = plausibility_table(pixels, images[order], rng=rng.take(order), **args)
    assert one["real"]["distance"].value == pytest.approx(other["real"]["distance"].value, rel=1e-6)


def test_bits_are_those_of_the_first_window(table):
    images = pictures(40)
    top, left = window_corners(images, 6, RNG).T
    bits, expected = table["coded"]["bits"], images[torch.arange(40), 0, top, left]
    assert bits.value == pytest.approx(float(expected.mean()))
    assert bits.low < bits.value < bits.high
    assert bits.samples == 40


def test_uniform_noise_needs_eight_bits(table):
    bits = table["noise"]["bits"]
    assert (bits.value, bits.low, bits.high) == (8, 8, 8)


def test_a_filler_without_density_has_no_bits_and_says_so(table):
    assert math.isnan(table["grey"]["bits"].value)
    assert table["grey"]["bits"].reason == "the filler has no density"


def test_windows_a_filler_excludes_are_not_left_out_of_the_mean():
    class Excluding(Coded):
        def window_bits(self, images, top, left):
            bits = torch.ones(len(images))
            bits[0] = math.inf
            return bits

    found = plausibility_table(pixels, pictures(8), {"it": Excluding()}, 4, max_batch=4, n_resamples=2)["it"]["bits"]
    assert math.isnan(found.value)
    assert found.reason == "infinite: 2 of 8 windows have probability 0"


def test_features_of_a_model_can_be_used(convnet):
    images = pictures(8, 12, 3)
    found = plausibility_table(partial(penultimate, convnet), images, {"blur": Blur()}, 4, n_resamples=5)
    assert found["blur"]["distance"].reason == f"8 images for 24 features: too large; {FEW}"
    assert found["blur"]["distance"].value > 0


# ---------------------------------------------------------------------------------------------------------- differences


def test_differences_are_paired_and_their_interval_is_basic(table):
    found = differences(table, "grey")
    assert list(found) == ["black", "noise", "coded"]
    draws = table["black"]["distance"].draws - table["grey"]["distance"].draws
    low, high = np.quantile(draws, [0.025, 0.975])
    black = found["black"]
    assert [black.value, black.low, black.high] == pytest.approx([float(draws.mean()), low, high])
    assert black.low > 0


def test_the_same_filler_twice_has_no_difference(table):
    same = differences(table, "grey")["coded"]  # both fill with grey
    assert [same.value, same.low, same.high] == pytest.approx([0, 0, 0], abs=1e-12)


@pytest.mark.parametrize("reference", ["real", "none"])
def test_a_reference_that_is_no_filler_is_refused(table, reference):
    with pytest.raises(UsageError, match="choose one of grey, black, noise, coded"):
        differences(table, reference)


def test_a_file_has_every_number_and_why_one_is_missing(table):
    columns, rows = plausibility(table).file()
    real, grey, black, noise, _ = (dict(zip(columns, row, strict=True)) for row in rows)
    assert [real["filler"], black["filler"], noise["bits"]] == ["real", "black", 8.0]
    found, apart = table["black"]["distance"], differences(table, "grey")["black"]
    for name, e in (("distance", found), ("difference", apart)):
        assert [black[name], black[f"{name}_low"], black[f"{name}_high"]] == [e.value, e.low, e.high]
    assert (black["reference"], grey["reference"], real["difference"]) == ("grey", "", "")
    known = (grey["bits"], grey["bits_low"], grey["images"], real["note"])
    assert known == ("the filler has no density", "", 40, "distance: two random halves")


# -------------------------------------------------------------------------------------------------------------- refused


def test_real_is_not_a_fillers_name():
    with pytest.raises(UsageError, match="named 'real'"):
        plausibility_table(pixels, pictures(8), {"real": BLACK}, 4)


def test_halves_need_four_images():
    with pytest.raises(UsageError, match="at least 4 images, found 3"):
        plausibility_table(pixels, pictures(3), {"black": BLACK}, 4)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (lambda x: x, r"must be \[8, f\]"),
        (lambda x: pixels(x)[:4], r"found shape \(4, 8\)"),
        (lambda x: pixels(x) / 0, "NaN"),
    ],
    ids=["images", "rows", "infinite"],
)
def test_features_that_are_no_row_an_image_are_refused(features, message):
    with pytest.raises(UsageError, match=message):
        plausibility_table(features, pictures(8), {"black": BLACK}, 4, n_resamples=2)
