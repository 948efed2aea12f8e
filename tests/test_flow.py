"""The flow against Jacobians, densities and latents worked out by hand; its start, its files, its training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from lit_xai.data import FoldData, Source
from lit_xai.data.images import InMemory
from lit_xai.errors import UsageError
from lit_xai.fillers import Flow
from lit_xai.fillers.flow import BOUND, Coupling, FlowModule, Glow, rounded, to_bins
from lit_xai.rng import SampleRng
from lit_xai.store.files import save_weights
from torch import Tensor
from torch.distributions import Normal

from conftest import seeded
from ranks import run_ranks

SMALL = {"levels": 2, "steps": 2, "width": 6}
RNG = SampleRng(5, (3, 8, 1))
TARGET = "lit_xai.fillers.flow.FlowModule"


def module(channels: int = 1, side: int = 8, shake: float = 0.0, **options) -> FlowModule:
    """A small module; `shake` moves every parameter, so that no layer is the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        m = FlowModule(channels, side, **{**SMALL, **options})
        for p in m.parameters():
            p.data += shake * torch.randn(p.shape)
    return m


def sampler(channels: int = 1, side: int = 8, shake: float = 0.2, mu: float = 0.5, sigma: float = 0.3) -> Flow:
    return replace(module(channels, side, shake).eval().sampler(), mu=mu, sigma=sigma)


def toy(number: int, channels: int = 1, side: int = 8) -> Tensor:
    """Smooth images: a level and a slope of their own, and a little noise."""
    level, slope = (torch.rand(number, channels, 1, 1, generator=seeded(s)) for s in (1, 2))
    noise = torch.rand(number, channels, side, side, generator=seeded(3))
    return rounded(0.2 + 0.4 * level + 0.3 * slope * torch.linspace(0, 1, side) + 0.05 * noise)


def improved(m: FlowModule, images: Tensor, steps: int) -> list[float]:
    """The losses of a short training that begins with the start."""
    optimizer, losses = torch.optim.AdamW(m.parameters(), 5e-3), []
    with torch.random.fork_rng():
        torch.manual_seed(1)
        m.network.start(m.dequantised(images))
        for _ in range(steps):
            optimizer.zero_grad()
            loss = m.batch_loss((images, torch.zeros(len(images), dtype=torch.long)))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def hidden(images: Tensor, masks: int = 1) -> Tensor:
    """Masks that hide everything."""
    return torch.zeros(len(images), masks, *images.shape[2:], dtype=torch.bool)


# ------------------------------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize(("channels", "side", "levels"), [(1, 28, 2), (3, 16, 3), (2, 12, 1), (1, 2, 1)])
def test_a_trained_flow_decodes_what_it_encodes(channels, side, levels):
    m, images = module(channels, side, levels=levels), toy(24, channels, side)
    losses = improved(m, images, 12)
    assert losses[-1] < losses[0]
    s = m.eval().sampler()
    unseen = torch.rand(5, channels, side, side, generator=seeded(9)).lerp(toy(5, channels, side), 0.9)
    code = s.encode(unseen)
    assert code.shape == (5, channels * side**2)
    assert float((s.decode(code) - unseen).abs().max()) < 1e-4
    assert float(s.quality(unseen)["reconstruction_error"].max()) < 1e-4
    assert float((s.decode(code + 0.1) - unseen).abs().max()) > 1e-3


def test_black_and_white_stay_black_and_white():
    s, images = sampler(), torch.tensor([0.0, 1.0]).repeat(2, 1, 8, 4)
    assert torch.allclose(s.decode(s.encode(images)), images, rtol=0, atol=1e-5)
    assert torch.allclose(to_bins(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)) * 512, torch.tensor([-255.0, 255.0]))


def test_the_inverse_is_exact_under_autocast():
    s, images = sampler(side=16), toy(3, side=16)
    code = s.encode(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(s.encode(images), code)
        assert float((s.decode(code) - images).abs().max()) < 1e-5


def test_how_images_lie_in_memory_does_not_matter():
    s, images = sampler(channels=3), toy(3, 3)
    code = s.encode(images)
    assert torch.allclose(s.encode(images.to(memory_format=torch.channels_last)), code, rtol=0, atol=1e-6)
    grown = toy(3, 1).expand(-1, 3, -1, -1)
    assert torch.allclose(s.encode(grown), s.encode(grown.contiguous()), rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- density


def test_the_density_is_the_priors_times_the_jacobian():
    network, y = (
        module(2, 4, shake=0.3).network.double().requires_grad_(False),
        to_bins(torch.rand(3, 2, 4, 4, generator=seeded(1)).double()),
    )
    mean, scale = network.prior()
    for image in y:
        jacobian = torch.autograd.functional.jacobian(lambda v: network.encode(v[None])[0], image).view(32, 32)
        expected = Normal(mean, scale).log_prob(network.encode(image[None])[0]).sum() + jacobian.slogdet().logabsdet
        assert float(network.log_prob(image[None])) == pytest.approx(float(expected), abs=1e-9)


def test_the_density_integrates_to_one():
    network = module(1, 2, shake=0.15, levels=1).network.double().requires_grad_(False)
    mean, scale = network.prior()
    y = network.decode(mean + scale * torch.randn(20_000, 4, generator=seeded(1)).double())
    proposal = torch.distributions.MultivariateNormal(y.flatten(1).mean(0), 0.5 * y.flatten(1).T.cov())
    ratio = (proposal.log_prob(y.flatten(1)) - network.log_prob(y)).exp()  # E_p[q / p] = 1
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert error < 0.01
    assert abs(float(ratio.mean()) - 1) < 4 * error


def as_identity(network: Glow) -> Glow:
    """Every layer of a fresh flow the identity; the squeeze remains."""
    for m in network.modules():
        if hasattr(m, "log_S"):
            m.P.copy_(torch.eye(m.num_channels))
            m.sign_S.fill_(1)
            for p in (m.L, m.U, m.log_S):
                p.data.zero_()
    return network


@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, 0.0), (0.25, -1.5)])
def test_bits_of_a_known_flow(mean, log_scale):
    m = module(3, 4)
    for q in as_identity(m.network).flow.q0:
        q.loc.data.fill_(mean)
        q.log_scale.data.fill_(log_scale)
    levels = torch.randint(256, (5, 3, 4, 4), generator=seeded(1))
    images = (levels + 0.8 * torch.rand(levels.shape, generator=seeded(3)) - 0.4) / 255  # rounded to their levels
    u = torch.rand(images.shape, generator=seeded(2))
    total = 0.0
    for level, point in zip(levels.flatten().tolist(), u.flatten().tolist(), strict=True):
        z = ((level + point) / 256 - 0.5 - mean) / math.exp(log_scale)
        total += 8 + (0.5 * z**2 + 0.5 * math.log(2 * math.pi) + log_scale) / math.log(2)
    assert m.loss(images, seeded(2)).item() == pytest.approx(total / images.numel(), abs=1e-5)


def test_bits_are_those_of_the_nearest_levels_and_the_same_every_time():
    s, images = sampler(), toy(4)
    off = (images + 0.4 / 255 * torch.randn(images.shape, generator=seeded(4)).clamp(-1, 1)).clamp(0, 1)
    found = s.quality(images)["bits_per_dim"]
    assert found.shape == (4,)
    torch.manual_seed(3)
    assert torch.allclose(s.quality(off)["bits_per_dim"], found, rtol=0, atol=1e-5)
    assert torch.allclose(s.quality(images[2:])["bits_per_dim"], found[2:], rtol=0, atol=1e-5)
    assert float(s.log_prob(images)[0]) != pytest.approx(float(s.log_prob(off)[0]), abs=1e-3)


def test_bits_are_a_mean_over_the_points_of_the_bins():
    m, images = module(3, 16), torch.full((2, 3, 16, 16), 100 / 255)
    for q in as_identity(m.network).flow.q0:  # the prior is narrower than a bin, around its middle
        q.loc.data.fill_((100 + 0.5) / 256 - 0.5)
        q.log_scale.data.fill_(-6.0)
    square = (1 / 256) ** 2 / 12 * math.exp(12)
    expected = 8 + (0.5 * square + 0.5 * math.log(2 * math.pi) - 6) / math.log(2)
    found = m.sampler().quality(images)["bits_per_dim"]
    assert found.tolist() == pytest.approx([expected] * 2, abs=0.02)
    assert float(found[0]) > 0.1 + 8 + (0.5 * math.log(2 * math.pi) - 6) / math.log(2)  # at the middle


# --------------------------------------------------------------------------------------------------------------- draws


def test_without_mixing_the_image_returns():
    images = toy(3)
    out = sampler(mu=0, sigma=0)(images, hidden(images, 2), RNG, 2)
    assert torch.allclose(out, images[:, None, None].expand_as(out), rtol=0, atol=1e-4)
    moved = sampler()(images, hidden(images, 2), RNG, 2)
    assert float((moved - images[:, None, None]).abs().mean()) > 0.05
    assert len(moved.flatten(0, 2).flatten(1).unique(dim=0)) == 12


def test_draws_mix_the_latents_one_by_one():
    s, images = sampler(mu=0.4, sigma=0.2), toy(3)
    noise = RNG.noise("filler")
    out = s.draw(images, s.encoded(images), torch.arange(3), hidden(images)[:, 0], noise)
    mean, scale = s.module.network.prior()
    for i in range(3):
        z = s.encode(images[[i]])[0]
        star, share = mean + scale * noise[i].part(0).normal((64,)), 0.4 + 0.2 * noise[i].part(1).normal((64,))
        mixed = torch.stack([(1 - a) * b + a * c for a, b, c in zip(share, z, star, strict=True)])
        assert torch.allclose(out[i], s.decode(mixed[None])[0], rtol=0, atol=1e-5)


def test_wholly_mixed_draws_have_the_priors_moments_and_forget_the_image():
    s, images = sampler(mu=1, sigma=0), toy(2)
    noise, keep = SampleRng.default(3000).noise("filler"), torch.zeros(3000, 8, 8, dtype=torch.bool)
    drawn = s.draw(
        images[:1].expand(3000, -1, -1, -1), s.encoded(images), torch.zeros(3000, dtype=torch.long), keep, noise
    )
    z, (mean, scale) = s.encode(drawn), s.module.network.prior()
    assert float(((z.mean(0) - mean) / scale).abs().max()) < 4.5 / math.sqrt(3000)
    assert float((z.std(0) / scale - 1).abs().max()) < 4.5 / math.sqrt(6000)
    assert len(scale.unique()) == 2 + 8  # a channel of a level has one: 2 leave after the first, 8 after the second
    other = s.draw(images[1:], s.encoded(images), torch.tensor([1]), hidden(images)[:1, 0], noise[:1])
    assert torch.allclose(other, drawn[:1], rtol=0, atol=1e-5)


def test_the_prior_is_the_librarys():
    network = module(3, 8, shake=0.5).network.double()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        parts = [q(7) for q in network.flow.q0]
    mean, scale = network.prior()
    z = torch.cat([p.flatten(1) for p, _ in parts], 1)
    assert torch.allclose(Normal(mean, scale).log_prob(z).sum(1), sum(p for _, p in parts), rtol=0, atol=1e-9)


def test_draws_belong_to_their_noise_alone():
    images, keep = toy(3).double(), torch.rand(3, 2, 8, 8, generator=seeded(3)) < 0.5
    s, state = sampler(), torch.random.get_rng_state()
    whole = s(images, keep, RNG, 3)
    alone = torch.cat([s(images[[i]], keep[[i]], RNG.take([i]), 3) for i in range(3)])
    assert torch.allclose(whole, alone, rtol=0, atol=1e-9)
    assert torch.allclose(replace(s, max_batch=4)(images, keep, RNG, 3), whole, rtol=0, atol=1e-9)
    assert torch.allclose(s(images.float(), keep, RNG, 3).double(), whole, rtol=0, atol=1e-4)
    assert not torch.allclose(s(images, keep, SampleRng(6, (3, 8, 1)), 3), whole, rtol=0, atol=1e-3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_couplings_scale_within_bounds():
    s = sampler(shake=3.0)  # weights as no training leaves them
    seen = []
    for m in s.module.network.modules():
        if isinstance(m, Coupling):
            m.register_forward_hook(lambda module, args, out: seen.append(out[:, 1::2]))
    images = toy(2)
    s.encode(images)
    assert BOUND - 0.1 < max(float(v.abs().max()) for v in seen) <= BOUND
    assert all(bool((v.std() > 0).all()) for v in seen)


# --------------------------------------------------------------------------------------------------------------- start


def data_of(number: int = 90) -> tuple[FoldData, list[int]]:
    """Toy images in three folds of which the second is held out, and a list of the samples that were asked for."""
    asked: list[int] = []

    class Recorder(InMemory):
        def images(self, indices):
            asked.extend(indices)
            return super().images(indices)

    pixels = Recorder((toy(number) * 255).round().to(torch.uint8))
    return FoldData(lambda: Source("toy", pixels, torch.arange(number) % 3, (*"abc",), "abc"), fold=1, folds=3), asked


def normalised(network: Glow, y: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The outputs of every activation normalisation."""
    from normflows.flows import AffineConstFlow

    outputs, inverse = [], AffineConstFlow.inverse

    def recorded(self, z):
        out = inverse(self, z)
        outputs.append(out[0])
        return out

    with monkeypatch.context() as patch:
        patch.setattr(AffineConstFlow, "inverse", recorded)
        network.encode(y)
    return outputs


def test_at_the_start_normalised_activations_have_mean_zero_and_variance_one(monkeypatch):
    m, images = module(shake=0.1), toy(50)
    y = m.dequantised(images, seeded(1))
    before = normalised(m.network, y, monkeypatch)
    m.network.start(y)
    after = normalised(m.network, y, monkeypatch)
    assert len(after) == 4
    for out in after:
        assert torch.allclose(out.mean((0, 2, 3)), torch.zeros(out.shape[1]), rtol=0, atol=1e-4)
        assert torch.allclose(out.var((0, 2, 3), correction=0), torch.ones(out.shape[1]), rtol=0, atol=1e-3)
    assert any(float((out.var((0, 2, 3)) - 1).abs().max()) > 0.1 for out in before)


def test_a_constant_channel_does_not_become_infinite():
    m = module()
    m.network.start(torch.zeros(5, 1, 8, 8))
    assert all(bool(torch.isfinite(p).all()) for p in m.parameters())


def test_the_start_sees_training_images_alone_and_belongs_to_the_seed():
    (data, asked), state = data_of(), torch.random.get_rng_state()
    one, two = module(), module()
    one.prepare(data)
    assert set(asked) == set(data.split.training(1).tolist())
    torch.manual_seed(9)
    two.prepare(data)
    torch.random.set_rng_state(state)
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    assert not torch.equal(one.network.flow.flows[0][2].s, module().network.flow.flows[0][2].s)
    one.prepare(data)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_it_starts_once(tmp_path):
    """Neither a first batch nor loading moves what `prepare` set."""
    m, fresh = module(), module()
    m.prepare(data_of()[0])
    save_weights(m, tmp_path / "model.ckpt", {})
    fresh.load_state_dict(torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"])
    for used in (m, fresh):
        before = {k: v.clone() for k, v in used.network.state_dict().items()}
        used.train().batch_loss((1 - toy(7), torch.zeros(7, dtype=torch.long)))
        used.sampler().decode(torch.randn(2, 64, generator=seeded(1)))
        assert all(torch.equal(v, before[k]) for k, v in used.network.state_dict().items())
    assert all(torch.equal(v, m.state_dict()[k]) for k, v in fresh.state_dict().items())


# ------------------------------------------------------------------------------------------------------------ training


def test_training_saves_bits():
    m, images = module(levels=1, width=16), toy(96)
    m.network.start(m.dequantised(images[:64], seeded(1)))
    before = float(m.loss(images[64:], seeded(2)))
    improved(m, images[:64], 120)
    assert float(m.loss(images[64:], seeded(2))) < before - 0.7


def test_every_parameter_gets_a_gradient():
    m = module(shake=0.1)
    m.batch_loss((toy(4), torch.zeros(4, dtype=torch.long))).backward()
    assert all(p.grad is not None for p in m.parameters())  # DDP waits for each


class Stop(pl.Callback):
    """Ends the training after an epoch, and leaves its state."""

    def __init__(self, file: Path, epoch: int) -> None:
        self.file, self.epoch = file, epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.file)
            trainer.should_stop = True


def fitted(epochs: int = 4, stop: pl.Callback | None = None, resume: Path | None = None) -> tuple[FlowModule, float]:
    """A module trained on the toy images, and its bits on the held-out fold; a resumed one is not prepared."""
    data, m = data_of()[0], module()
    if resume:
        data.first_epoch = torch.load(resume, weights_only=True)["epoch"] + 1
    else:
        m.prepare(data)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
    quiet |= {"enable_model_summary": False, "use_distributed_sampler": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_epochs=epochs, gradient_clip_val=1.0, callbacks=[stop] if stop else [], **quiet)
    trainer.fit(m, data, ckpt_path=resume, weights_only=True if resume else None)
    return m, float(trainer.callback_metrics["val/bits_per_dim"])


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_training_equals_an_undisturbed_one(tmp_path):
    undisturbed, held_out = fitted()
    part, _ = fitted(stop=Stop(tmp_path / "last.ckpt", 1))
    resumed, again = fitted(resume=tmp_path / "last.ckpt")
    assert all(torch.equal(v, undisturbed.state_dict()[k]) for k, v in resumed.state_dict().items())
    assert again == held_out < 8
    assert any(not torch.equal(v, part.state_dict()[k]) for k, v in resumed.state_dict().items())


def test_held_out_bits_have_the_same_noise_every_time():
    class Trainer:
        datamodule, global_rank = type("Data", (), {"seed": 3}), 0

    m, images = module(shake=0.1), toy(3)
    m._trainer = Trainer()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        a = m.held_out(images, 0)
        torch.manual_seed(2)
        assert torch.equal(m.held_out(images, 0), a)
    assert not torch.equal(m.held_out(images, 1), a)


@pytest.mark.slow
def test_two_processes_train_a_flow(tmp_path):
    small = ["data.train_subset=120", "data.folds=2", "data.size=16", "progress=false", "trainer.max_epochs=1"]
    small += ["model=flow", "model.steps=1", "model.width=4", "model.levels=2", "logger=none"]
    run_ranks("train", tmp_path, "fold=0", small=small)
    sampler = Flow(str(tmp_path / "digits-flow" / "fold=0")).module
    assert all(bool(torch.isfinite(v).all()) for v in sampler.network.state_dict().values())
    assert "fold 0 of 2 held out" in sampler.about


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 28, "levels": 3}, "images of 28 px cannot be squeezed 3 times: set model.levels=2 or less"),
        ({"side": 15, "levels": 1}, "images of 15 px cannot be squeezed 1 times: set data.size= to an even number"),
        ({"levels": 0}, "model.levels must be at least 1, found 0"),
        ({"steps": 0}, "model.steps must be at least 1, found 0"),
        ({"width": 0}, "model.width must be at least 1, found 0"),
    ],
    ids=str,
)
def test_flows_that_cannot_be_are_refused(options, message):
    with pytest.raises(UsageError, match=message) as error:
        module(**options)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": -0.1}, "sigma at least 0, found mu=0.5, sigma=-0.1"),
        ({"mu": float("nan")}, "mu must be a number .* found mu=nan"),
        ({"mu": "half"}, "mu must be a number .* found mu=half"),
        ({"sigma": None}, "found mu=0.5, sigma=None"),
        ({"max_batch": 0}, "max_batch must be at least 1, or auto, found 0"),
    ],
    ids=str,
)
def test_draws_that_mean_nothing_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Flow(**options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 1, 16, 16), "trained on images of 1 x 8 x 8 .* found 1 x 16 x 16: train one"),
        (torch.rand(3, 3, 8, 8), "found 3 x 8 x 8"),
        (torch.rand(3, 1, 8, 8) + 1, r"takes values in \[0, 1\]"),
    ],
    ids=["side", "channels", "range"],
)
def test_images_of_another_kind_are_refused(images, message):
    with pytest.raises(UsageError, match=message):
        sampler()(images, hidden(images), RNG)
