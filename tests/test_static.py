"""Passes of samplers in few shapes, by whatever makes them faster; encoding all at once; inverses once; no waiting inside a loop."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from lit_xai import segments
from lit_xai.errors import UsageError
from lit_xai.explainers import Lime
from lit_xai.explainers.lime import Toggle
from lit_xai.fillers import DDIM, DDIMInpainting, generative, static
from lit_xai.fillers.denoiser import Denoiser, signal
from lit_xai.fillers.diffusion import DDIMModule
from lit_xai.fillers.flow import FlowModule
from lit_xai.fillers.generative import GenerativeFiller
from lit_xai.fillers.inpaint import InpaintModule
from lit_xai.fillers.static import Recorded, Static, compiled
from lit_xai.fitting import describe
from lit_xai.rng import SampleRng
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import seeded
from generators import made, save

SIDE, RANGE = 8, 1e-5
KINDS = ["ddim", "ddim_inpainting", "flow", "inpainter"]
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal"}  # in inference mode `item` is not taken apart


class Small(nn.Module):
    """A noise estimate of neighbours and step, that a few lines compile to."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)
        nn.init.normal_(self.convolution.weight, std=0.2, generator=seeded(0))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """About as large as x is noise."""
        return (t / 1000).view(-1, 1, 1, 1) * x + 0.1 * torch.tanh(self.convolution(x))


def sampler(kind: str, predicts: str = "epsilon", **options: Any) -> GenerativeFiller:
    """A small one of a kind."""
    if kind in ("flow", "inpainter"):
        module: Any = (
            made(FlowModule, levels=1, steps=1, width=4) if kind == "flow" else made(InpaintModule, width=2, critic=2)
        )
        return replace(module.sampler(), **options)
    denoiser = Denoiser(Small().requires_grad_(False), 1, SIDE, signal(), predicts)
    return {"ddim": DDIM, "ddim_inpainting": DDIMInpainting}[kind](given=denoiser, **{"steps": 5, **options})


def images(number: int) -> Tensor:
    return torch.rand(number, 1, SIDE, SIDE, generator=seeded(1))


def drawn(
    filler: GenerativeFiller, number: int = 3, masks: int = 2, draws: int = 2, dtype: torch.dtype = torch.float32
) -> Tensor:
    keep = torch.rand(number, masks, SIDE, SIDE, generator=seeded(2)) < 0.5
    return filler(images(number).to(dtype), keep, SampleRng.default(number), draws)


@pytest.fixture
def by(monkeypatch) -> Callable[..., None]:
    """Passes on this device are made in these ways."""

    def use(*ways: static.Way) -> None:
        monkeypatch.setattr(generative, "ways_on", lambda device, fused: ways)

    return use


def recording(sizes: list[int]) -> static.Way:
    """A way that changes nothing but tells the sizes of all passes."""

    def way(module: nn.Module, call: static.Call, rows: Any) -> static.Call:
        def through(*rows: Tensor) -> Tensor:
            sizes.append(len(rows[0]))
            return call(*rows)

        return through

    return way


def by_backend(backend: str) -> static.Way:
    """What torch.compile makes of a call."""
    torch._dynamo.reset()
    return lambda module, call, rows: torch.compile(call, backend=backend)


# --------------------------------------------------------------------------------------------------------------- compile


@pytest.mark.usefixtures("unchecked")
def test_compiled_passes_draw_the_same(by):
    filler = sampler("ddim", max_batch=4)
    plain = drawn(filler)
    by(by_backend("eager"))
    fast = drawn(replace(filler))
    assert float((fast - plain).abs().max()) <= RANGE
    assert not fast.is_inference()


@pytest.mark.slow  # compilers take their time
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_torch_compiles_draws_the_same(by, kind, backend):
    fillers = [sampler(kind, max_batch=4)]
    if kind.startswith("ddim"):  # a network without training enlarges what is rounded: in float64
        module = made(DDIMModule, width=[8, 8], layers=1, attention=1).double()
        fillers.append(replace(fillers[0], given=module.denoiser()))
    for filler, type in zip(fillers, (torch.float32, torch.float64), strict=False):
        plain = drawn(filler, dtype=type)
        by(by_backend(backend))
        assert float((drawn(replace(filler), dtype=type) - plain).abs().max()) <= RANGE
        by()


def test_no_rows_are_passed_on_as_they_are():
    with torch.no_grad():
        assert Static(nn.Identity(), lambda x: 2 * x, (fails,), 4)(torch.empty(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_passes_draw_the_same(by, kind):
    filler, sizes = sampler(kind, max_batch=8), []
    plain = drawn(filler)
    by(recording(sizes))
    assert float((drawn(replace(filler)) - plain).abs().max()) <= RANGE
    assert sizes
    assert set(sizes) <= {4, 8}  # 3 images; 12 draws, or 6 of what draws the same every time


def test_a_pass_is_made_for_a_size_once_and_used_by_whoever_draws_from_the_file(by, tmp_path):
    node = {"levels": 1, "steps": 1, "width": 4}
    file = save(made(FlowModule, **node), tmp_path / "model.ckpt", node)
    made_for: list[int] = []

    def way(module: nn.Module, call: static.Call, rows: Any) -> static.Call:
        made_for.append(len(rows[0]))
        return call

    by(way)
    for number, mu in ((3, 0.5), (4, 0.5), (3, 0.6), (1, 0.5)):
        drawn(replace(sampler("flow"), given=None, checkpoint=file, mu=mu, max_batch=4), number, masks=1, draws=1)
    assert made_for == [4, 1]


def test_sizes_are_powers_of_two_up_to_the_largest():
    calls = Static(nn.Identity(), lambda x: x, (), 100)
    assert [calls.size(n) for n in (1, 2, 3, 64, 65, 99, 100, 101)] == [1, 2, 4, 64, 100, 100, 100, 128]


def test_on_a_cpu_passes_are_made_as_they_are():
    filler, sizes = sampler("ddim", max_batch=8), []
    filler.module.network.register_forward_pre_hook(lambda module, rows: sizes.append(len(rows[0])))
    drawn(filler)
    assert set(sizes) == {3, 8, 4}
    assert "compile" not in filler.resolve(nn.Identity(), images(1))


def test_compile_never_makes_them_as_they_are(by):
    sizes: list[int] = []
    by(recording(sizes))
    filler = sampler("ddim", compile="never")
    drawn(filler)
    assert not sizes
    assert "compile" not in filler.resolve(nn.Identity(), images(1))
    assert replace(filler, compile="auto").resolve(nn.Identity(), images(1))["compile"] == "auto"


@pytest.mark.parametrize("kind", KINDS)
def test_how_passes_are_made_is_no_part_of_what_a_filler_is(kind):
    described = describe(sampler(kind))
    assert "compile" not in described
    assert describe(sampler(kind, compile="never")) == described


def test_what_was_drawn_by_compiled_passes_is_not_given_for_others(by, tmp_path):
    node = {"levels": 1, "steps": 1, "width": 4}
    filler = replace(
        sampler("flow"), given=None, checkpoint=save(made(FlowModule, **node), tmp_path / "model.ckpt", node)
    )
    plain = drawn(filler)
    by(lambda module, call, rows: lambda *rows: call(*rows) + 1e-3)
    assert not torch.equal(drawn(filler), plain)
    assert torch.equal(drawn(replace(filler, compile="never")), plain)


@pytest.mark.usefixtures("unchecked")
def test_another_word_for_compile_is_refused():
    with pytest.raises(UsageError, match=r"compile must be auto .* or never, found 'always'"):
        sampler("flow", compile="always")


def fails(module: nn.Module, call: static.Call, rows: Any) -> static.Call:
    raise RuntimeError("no compiler\nwas found")


def errs(module: nn.Module, call: static.Call, rows: Any) -> static.Call:
    return lambda *now: call(*rows) * 0.5


@pytest.mark.parametrize(
    ("way", "why"), [(fails, "RuntimeError: no compiler was found"), (errs, r"its results differ by 0\.\d")]
)
def test_a_way_that_does_not_work_is_named_in_one_line_and_left(by, caplog, way, why):
    static.say.cache_clear()
    filler = sampler("flow")
    plain = drawn(filler)
    by(way)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(drawn(replace(filler)), plain)
    assert len(caplog.records) == 1
    assert f"FlowModule goes on uncompiled: {way.__name__} failed ({why.partition(' differ')[0]}" in caplog.text
    assert len(caplog.records[0].getMessage().splitlines()) == 1


def test_a_pass_that_fails_later_is_named_and_made_without_it(by, caplog):
    static.say.cache_clear()
    filler, calls = sampler("ddim", max_batch=4), []

    def way(module: nn.Module, call: static.Call, rows: Any) -> static.Call:
        def through(*rows: Tensor) -> Tensor:
            calls.append(len(rows[0]))
            if len(calls) > 12:
                raise torch.OutOfMemoryError("out of memory")
            return call(*rows)

        return through

    plain = drawn(filler)
    by(way)
    with caplog.at_level(logging.WARNING):
        assert float((drawn(replace(filler)) - plain).abs().max()) <= RANGE
    assert len(calls) == 13
    assert "Denoiser goes on uncompiled: a pass that worked before failed (OutOfMemoryError: out of" in caplog.text
    assert len(caplog.records) == 1


def test_after_a_way_that_does_not_work_the_next_is_taken(by):
    sizes: list[int] = []
    by(fails, recording(sizes))
    drawn(sampler("flow"))
    assert sizes


def test_a_gradient_goes_through_the_network_itself(by):
    by(lambda module, call, rows: lambda *rows: call(*rows).detach())
    visible = torch.full((2, 1, SIDE, SIDE), 0.5, requires_grad=True)
    sampler("inpainter").painted(images(2), visible).sum().backward()
    assert float(visible.grad.abs().sum()) > 0


# ------------------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [Recorded, compiled])
def test_passes_on_a_gpu_draw_as_plain_ones_and_follow_the_weights(by, monkeypatch, kind, way):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    static.say.cache_clear()
    filler = sampler(kind, max_batch=4)
    filler.module.cuda()
    keep = (torch.rand(3, 2, SIDE, SIDE, generator=seeded(2)) < 0.5).cuda()

    def draw(filler: GenerativeFiller) -> Tensor:
        return filler(images(3).cuda(), keep, SampleRng.default(3), 2)

    by(way)
    for change in (lambda p: p, lambda p: p * 0.9, lambda p: p.clone() * 1.1):
        for p in filler.module.parameters():
            p.data = change(p.data)
        assert float((draw(filler) - draw(replace(filler, compile="never"))).abs().max()) <= RANGE
    assert static.say.cache_info().currsize == 0


# ---------------------------------------------------------------------------------------------------------- encoding


@pytest.mark.parametrize("kind", ["ddim", "ddim_inpainting"])
def test_all_images_of_a_batch_are_encoded_in_the_same_passes(kind):
    filler, sizes = sampler(kind, steps=5, refine=3), []
    filler.module.network.register_forward_pre_hook(lambda module, rows: sizes.append(len(rows[0])))
    together = filler.encoded(images(5))
    assert sizes == [5] * 20
    alone = torch.cat([filler.encoded(images(5)[[i]]) for i in range(5)])
    assert float((together - alone).abs().max()) <= RANGE
    sizes.clear()
    replace(filler, max_batch=2).encoded(images(5))
    assert sizes == [2] * 40 + [1] * 20


def test_lime_that_samples_until_the_top_stands_encodes_all_images_together():
    filler, sizes = sampler("ddim", steps=2, refine=1), []
    encode = type(filler).encode

    class Watched(DDIM):
        def encode(self, images: Tensor) -> Tensor:
            sizes.append(len(images))
            return encode(self, images)

    watched = Watched(given=filler.module, steps=2, refine=1)
    lime = Lime(segments=segments.Grid(2), perturbation=Toggle(watched, keep=0.0), samples="auto", cap=100)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 2))
    for p in model.parameters():
        nn.init.normal_(p, generator=seeded(3))
    maps = lime(model, images(3), torch.tensor([0, 1, 0]), SampleRng(1, (4, 2, 9)))
    assert sizes == [3]
    alone = lime(model, images(3)[[1]], torch.tensor([1]), SampleRng(1, (2,)))
    assert torch.allclose(maps[[1]], alone, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- inverses


class Calls(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*arguments, **(options or {}))

    @property
    def inverses(self) -> int:
        return sum(n for name, n in self.counts.items() if "inv" in name)

    @property
    def waits(self) -> int:
        return sum(n for name, n in self.counts.items() if name in WAITS)


def inverses(work: Callable[[], object]) -> int:
    with Calls() as calls:
        work()
    return calls.inverses


def test_a_flow_inverts_its_convolutions_once_a_load(tmp_path):
    node = {"levels": 2, "steps": 2, "width": 4}
    file = save(made(FlowModule, **node), tmp_path / "model.ckpt", node)
    filler = replace(sampler("flow"), given=None, checkpoint=file, max_batch=2)
    assert inverses(lambda: drawn(filler)) == 2 * 4  # of L and U of four convolutions
    assert inverses(lambda: drawn(replace(filler, mu=0.9), 5, 3)) == 0
    assert inverses(lambda: filler.quality(images(3))) == 0


def step(module: FlowModule) -> None:
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    module.batch_loss((images(4), torch.zeros(4, dtype=torch.long))).backward()
    optimizer.step()


def in_secret(module: FlowModule) -> None:
    for p in module.parameters():
        p.data.mul_(1.1)


def loaded(module: FlowModule) -> None:
    module.load_state_dict(made(FlowModule, seed=5, levels=1, steps=2, width=4).state_dict())


def moved(module: FlowModule) -> None:
    torch.nn.utils.vector_to_parameters(
        1.1 * torch.nn.utils.parameters_to_vector(module.parameters()), module.parameters()
    )


def signs(module: FlowModule) -> None:
    for name, b in module.named_buffers():
        if "sign_S" in name:
            b.neg_()


@pytest.mark.parametrize("change", [step, in_secret, loaded, moved, signs])
def test_inverses_are_those_of_the_weights_as_they_are(change):
    module: Any = made(FlowModule, levels=1, steps=2, width=4)
    filler, rows = module.sampler(), torch.randn(3, SIDE**2, generator=seeded(4))
    before, lying = filler.decode(rows), [t.data_ptr() for t in module.network.inverses]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        change(module)
    fresh: Any = made(FlowModule, levels=1, steps=2, width=4)
    fresh.load_state_dict(module.state_dict())
    now = filler.decode(rows)
    assert torch.equal(now, fresh.sampler().decode(rows))
    assert not torch.allclose(now, before, atol=1e-3)
    assert [t.data_ptr() for t in module.network.inverses] == lying  # where recorded passes read them


def test_draws_see_changed_weights(by):
    module: Any = made(FlowModule, levels=1, steps=2, width=4)
    for ways in ((), (lambda module, call, rows: call,)):
        by(*ways)
        filler = module.sampler()
        prepared = filler.prepared(images(3))
        keep = torch.zeros(3, 1, SIDE, SIDE, dtype=torch.bool)
        prepared(torch.arange(3), keep, SampleRng.default(3))
        in_secret(module)
        fresh: Any = made(FlowModule, levels=1, steps=2, width=4)
        fresh.load_state_dict(module.state_dict())
        expected = replace(prepared, filler=fresh.sampler())(torch.arange(3), keep, SampleRng.default(3))
        assert torch.allclose(prepared(torch.arange(3), keep, SampleRng.default(3)), expected, atol=1e-6)


def test_decoding_without_a_density_is_the_librarys():
    network: Any = made(FlowModule, levels=2, steps=2, width=4).network
    z = torch.randn(3, SIDE**2, generator=seeded(4))
    shapes = [q.shape for q in network.flow.q0]
    parts = [
        p.reshape(3, *s) for p, s in zip(z.split([s.numel() for s in map(torch.Size, shapes)], 1), shapes, strict=True)
    ]
    with torch.no_grad():
        assert torch.equal(network.decode(z), network.flow.forward_and_log_det(parts)[0])


# ------------------------------------------------------------------------------------------------------------- waiting


def waits(filler: GenerativeFiller, masks: int, draws: int) -> int:
    drawn(filler, 2, 1, 1)  # what is loaded and worked out once
    generative.forget()
    with Calls() as calls:
        drawn(filler, 2, masks, draws)
    return calls.waits


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["ddim", "ddim_inpainting"])
def test_steps_of_a_diffusion_wait_for_nothing(kind, predicts):
    few, many = (waits(sampler(kind, predicts, steps=n, refine=n, max_batch=2), 1, 1) for n in (1, 3))
    assert few == many


@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_draws_wait_for_nothing_each(kind):
    filler = sampler(kind, max_batch=2)
    assert waits(filler, 4, 3) == waits(filler, 1, 1) <= 6
