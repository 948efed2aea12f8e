"""The in-painter: what it may read, what it learns, and that explainers can differentiate through it."""

from __future__ import annotations

import copy

import pytest
import torch
from lit_xai.errors import UsageError
from lit_xai.explainers import MeaningfulPerturbation
from lit_xai.fillers import Inpainter
from lit_xai.fillers.constant import Blur
from lit_xai.fillers.inpaint import InpaintModule, free_form, smooth
from lit_xai.rng import SampleRng
from lit_xai.store.files import save_weights
from torch import Tensor, nn

from conftest import Linear, seeded

TINY = {"width": 4, "critic": 4}


def stripes(number: int, side: int = 16) -> Tensor:
    """Grey images of wide stripes, every image with its own phase and slant: what is hidden can be told from the rest."""
    g = seeded(1)
    phase, slant = torch.rand(2, number, 1, 1, generator=g)
    at = torch.arange(side, dtype=torch.float32)
    return (0.5 + 0.45 * torch.sin((at[:, None] * slant + at) * 6.28 / 12 + 6.28 * phase))[:, None]


@pytest.fixture(scope="module")
def fresh() -> InpaintModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return InpaintModule(channels=1, side=16, **TINY)


@pytest.fixture(scope="module")
def trained(fresh) -> InpaintModule:
    """After some steps of the in-painter alone."""
    module = copy.deepcopy(fresh)
    module.critic = None
    images, optimizer = stripes(64), torch.optim.AdamW(module.network.parameters(), 1e-2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(120):
            optimizer.zero_grad()
            module.batch_loss((images, torch.zeros(64))).backward()
            optimizer.step()
    return module


@pytest.fixture(scope="module")
def checkpoint(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("inpainter") / "model.ckpt"
    node = {"_target_": "lit_xai.fillers.inpaint.InpaintModule", **TINY, "adversarial": 0.0}
    save_weights(trained, path, {"model": node, "shape": {"channels": 1, "side": 16}})
    return str(path)


@pytest.fixture
def window() -> Tensor:
    keep = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    keep[..., 5:10, 6:12] = False
    return keep


# ---------------------------------------------------------------------------------------------------------------- holes


@pytest.mark.parametrize(("height", "width"), [(8, 8), (28, 28), (12, 20)])
def test_every_training_mask_hides_something_and_some_hide_nearly_all(height, width):
    hidden = (~free_form(400, height, width, seeded(0))).float().mean((1, 2))
    assert float(hidden.min()) > 0
    assert float(hidden.min()) < 0.1
    assert float(hidden.max()) > 0.9
    assert 0.3 < float(hidden.mean()) < 0.7


def test_training_masks_have_large_and_small_structures():
    hidden = ~free_form(400, 32, 32, seeded(0))
    edges = (hidden[:, 1:] != hidden[:, :-1]).float().mean((1, 2))
    assert float(edges.min()) < 0.03
    assert float(edges.max()) > 0.3


def test_masks_come_from_the_generator():
    assert torch.equal(free_form(20, 16, 16, seeded(3)), free_form(20, 16, 16, seeded(3)))
    assert not torch.equal(free_form(20, 16, 16, seeded(3)), free_form(20, 16, 16, seeded(4)))


# --------------------------------------------------------------------------------------------------------------- filler


def test_hidden_pixels_are_not_read(checkpoint, window):
    x = stripes(1)
    other = torch.where(window, x, torch.rand(x.shape, generator=seeded(2)))
    rng = SampleRng(0, (0,))
    assert torch.equal(Inpainter(checkpoint)(x, window, rng), Inpainter(checkpoint)(other, window, rng))


def test_all_draws_are_one_painting(checkpoint, window):
    drawn = Inpainter(checkpoint)(stripes(1), window, SampleRng(0, (0,)), draws=3)
    assert drawn.shape == (1, 1, 3, 1, 16, 16)
    assert torch.equal(drawn[:, :, 0], drawn[:, :, 2])
    assert Inpainter(checkpoint).deterministic


def test_another_mask_is_another_painting(checkpoint, window):
    x, wider = stripes(1), window.clone()
    wider[..., 4:12, 4:14] = False
    one, two = (Inpainter(checkpoint)(x, k, SampleRng(0, (0,)))[0, 0, 0] for k in (window, wider))
    assert float((one - two)[..., 5:10, 6:12].abs().max()) > 1e-3


def test_it_learns_what_stripes_hide(trained, fresh):
    """Closer to the truth than grey, than a blur of what is visible, and than itself untrained."""
    x = stripes(200)[64:]
    quality = trained.sampler().quality(x)
    mean = {n: float(v.mean()) for n, v in quality.items()}
    assert mean["hole_l1"] < 0.6 * mean["hole_l1_grey"]
    assert mean["hole_l1"] < 0.8 * mean["hole_l1_smooth"]
    assert mean["hole_l1"] < 0.6 * float(fresh.sampler().quality(x)["hole_l1"].mean())


def test_a_smooth_filling_is_the_mean_of_visible_neighbours():
    from scipy.ndimage import gaussian_filter

    x = torch.rand(1, 1, 28, 28, generator=seeded(0), dtype=torch.float64)
    visible = (torch.rand(1, 1, 28, 28, generator=seeded(1)) < 0.5).double()
    sigma = 10.0 * 28 / 224
    top, bottom = (gaussian_filter(t[0, 0].numpy(), sigma, mode="mirror", radius=4) for t in (x * visible, visible))
    assert torch.allclose(smooth(x, visible)[0, 0], torch.from_numpy(top / bottom), atol=1e-9)


def test_where_nothing_visible_is_near_it_is_the_mean_of_all():
    x = torch.rand(1, 1, 28, 28, generator=seeded(0), dtype=torch.float64)
    visible = torch.zeros(1, 1, 28, 28, dtype=torch.float64)
    visible[..., :2] = 1
    assert float(smooth(x, visible)[0, 0, 10, 25]) == pytest.approx(float(x[..., :2].mean()))


def test_quality_is_the_error_in_the_hole(trained):
    x = stripes(3)
    keep = free_form(3, 16, 16, seeded(0))
    sampler = trained.sampler()
    painted = sampler.painted(x, keep[:, None].to(x))
    blurred = Blur(kernel=61, sigma=10.0).background(x)
    for row in range(3):
        hole = ~keep[row]
        quality = {n: float(v[row]) for n, v in sampler.quality(x).items()}
        assert quality["hole_l1"] == pytest.approx(float((painted - x)[row, 0][hole].abs().mean()), rel=1e-5)
        assert quality["hole_l1_grey"] == pytest.approx(float((0.5 - x)[row, 0][hole].abs().mean()), rel=1e-5)
        assert quality["hole_l1_blur"] == pytest.approx(float((blurred - x)[row, 0][hole].abs().mean()), rel=1e-5)


# ------------------------------------------------------------------------------------------------------------- gradient


def test_the_painting_has_a_gradient_by_the_mask(checkpoint):
    visible = torch.rand(1, 1, 16, 16, generator=seeded(0)).requires_grad_()
    Inpainter(checkpoint).painted(stripes(1), visible).sum().backward()
    assert float(visible.grad.abs().min()) >= 0
    assert float((visible.grad != 0).float().mean()) > 0.9


def test_the_painting_of_a_hard_mask_is_the_filling(checkpoint, window):
    x = stripes(1)
    filler = Inpainter(checkpoint)
    painted = filler.painted(x, window.float())
    filled = filler(x, window, SampleRng(0, (0,)))[:, 0, 0]
    assert torch.allclose(torch.where(window, x, painted), filled, atol=1e-6)


def test_kept_pixels_of_meaningful_perturbation_learn_from_the_painting(checkpoint):
    """With the mask all but open, only a differentiable filler can tell which pixels to hide."""
    x = stripes(2)
    weight = torch.zeros(2, 1, 16, 16)
    weight[0, :, :, :8] = (x[0, :, :, :8] - 0.5) * 8  # the class is what the left half shows
    method = MeaningfulPerturbation(mask=224, steps=1, area=0.0, smoothness=0.0, jitter=0, filler=Inpainter(checkpoint))

    class Open(SampleRng):
        def uniform(self, stream, row, shape):
            return torch.full(tuple(shape), 0.95)

    maps = method(Linear(weight, torch.zeros(2)), x[:1], torch.tensor([0]), Open(0, (0,)))
    assert float((maps[0] - 0.05).abs().max()) > 0.01


# ------------------------------------------------------------------------------------------------------------- training


def test_the_discriminator_is_spectrally_normalised(fresh):
    x = torch.rand(4, 2, 16, 16, generator=seeded(0))
    critic = copy.deepcopy(fresh.critic)
    for _ in range(20):
        critic(x)
    for layer in critic.modules():
        if isinstance(layer, nn.Conv2d):
            assert float(torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).detach()) == pytest.approx(
                1, rel=0.02
            )


def test_the_in_painters_loss_has_no_gradient_of_the_discriminator(fresh):
    module, x = copy.deepcopy(fresh), stripes(4)
    keep = free_form(4, 16, 16, seeded(0))[:, None].float()
    module.verdict(module.network(x, keep), keep, constant=True).mean().backward()
    assert all(p.grad is None for p in module.critic.parameters())
    assert any(float(p.grad.abs().max()) > 0 for p in module.network.parameters())


def test_the_discriminator_learns_to_tell(fresh):
    module, x = copy.deepcopy(fresh), stripes(32)
    keep = free_form(32, 16, 16, seeded(0))[:, None].float()
    filled = keep * x + (1 - keep) * 0.5
    optimizer = torch.optim.Adam(module.critic.parameters(), 1e-2)

    def gap() -> Tensor:
        return module.verdict(x, keep).mean() - module.verdict(filled, keep).mean()

    before = gap().item()
    for _ in range(20):
        optimizer.zero_grad()
        (-gap()).backward()
        optimizer.step()
    assert gap().item() > before + 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"width": 0}, "must be positive"), ({"adversarial": -1.0}, "at least 0"), ({"clip": 0.0}, "must be positive")],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        InpaintModule(channels=1, side=16, **{**TINY, **options})


def test_sides_that_do_not_halve_twice_are_painted_too():
    module = InpaintModule(channels=3, side=18, **TINY)
    x, keep = torch.rand(2, 3, 18, 18), torch.zeros(2, 1, 18, 18)
    assert module.network(x, keep).shape == x.shape
