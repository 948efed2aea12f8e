"""Noise: exact and the same everywhere, independent between keys, and drawn by nobody in another way."""

from __future__ import annotations

import ast
import math
from collections import Counter
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import lit_xai
import numpy as np
import pytest
import torch
from lit_xai import rng as noise_module
from lit_xai.core import Filler, Score
from lit_xai.errors import UsageError
from lit_xai.explainers import RISE, Saliency, SlidingPatch, SmoothGrad
from lit_xai.explainers.lime import Lime, Toggle
from lit_xai.fillers import NoisyLinear, UniformNoise
from lit_xai.fillers.constant import Colour
from lit_xai.metrics.fidelity import Deletion, MuFidelity
from lit_xai.rng import Noise, SampleRng, stable_hash
from scipy import stats
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

RNG = SampleRng(7, (3, 8, 2**40, 0))
N = 200_000


def noise(keys: int = 4) -> Noise:
    return SampleRng.default(keys).noise("tests")


def by_numpy(key: int, number: int) -> np.ndarray:
    """SplitMix64 from its definition, in unsigned integers."""
    with np.errstate(over="ignore"):
        z = np.uint64(key % 2**64) + np.arange(1, number + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


# ---------------------------------------------------------------------------------------------------------------- exact


def test_values_are_those_of_splitmix64():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]  # of seed 1234567
    found = Noise(torch.tensor([1234567])).bits(4)[0]
    assert [v % 2**64 for v in found.tolist()] == published


def test_the_first_ten_uniform_numbers_stay_as_they_are():
    found = (RNG.noise("stream")[0].part(2).uniform((10,)) * 2**24).long()
    assert found.tolist() == [
        5707784,
        15408401,
        13967861,
        2860816,
        16211948,
        3451268,
        4955018,
        4817602,
        10516695,
        12189709,
    ]


def test_uniform_numbers_are_those_of_numpy_bit_for_bit():
    some = RNG.noise("a stream").part([5, 0, -1, 2**33])
    for row, key in enumerate(some.keys.tolist()):
        expected = by_numpy(key, 1001)
        assert np.array_equal(some.bits(1001)[row].numpy().view(np.uint64), expected)
        short = (expected >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        assert np.array_equal(some.uniform((7, 143))[row].numpy().ravel(), short)
        long = (expected >> np.uint64(11)).astype(np.float64) * 2.0**-53
        assert np.array_equal(some.uniform((1001,), torch.float64)[row].numpy(), long)


def test_uniform_numbers_are_made_of_exact_operations_alone():
    on_integers = {"add", "mul", "mul_", "bitwise_and_", "bitwise_xor_", "bitwise_right_shift", "arange"}
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name, tensors = func.overloadpacket.__name__, [a for a in args if isinstance(a, Tensor)]
            if name == "mul_" and tensors[0].is_floating_point():
                assert math.frexp(args[1])[0] == 0.5  # by a power of two
            elif name in on_integers:
                assert all(t.dtype == torch.long for t in tensors), name
            seen.add(name)
            return func(*args, **(kwargs or {}))

    some = noise()
    with Watch():
        some.part(3).part(torch.arange(4)).uniform((50,))
        some.uniform((50,), torch.float64)
    assert on_integers <= seen
    assert seen - on_integers <= {"copy_", "empty", "empty_like", "slice", "view", "alias", "_to_copy", "detach"}


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_no_number_depends_on_how_many_are_made_together(monkeypatch, block):
    whole = [f(noise(5)) for f in (lambda k: k.uniform((99,)), lambda k: k.normal((99,)), lambda k: k.order(99))]
    subset = noise(5).subset(99, 13)
    monkeypatch.setattr(noise_module, "CPU_BLOCK", block)
    some = noise(5)[[3, 1]]
    assert torch.equal(some.uniform((60,)), whole[0][[3, 1], :60])
    assert torch.equal(some.normal((61,)), whole[1][[3, 1], :61])
    assert torch.equal(some.order(99), whole[2][[3, 1]])
    assert torch.equal(some.subset(99, 13), subset[[3, 1]])


def test_other_devices_sort_and_choose_as_the_cpu_does(monkeypatch):
    orders, subset = noise().order(500), noise().subset(500, 75)
    assert torch.equal(noise().bits(500).argsort(1), orders)
    assert torch.equal(noise().bits(500) <= noise().bits(500).kthvalue(75, keepdim=True).values, subset)


def test_on_a_gpu_nothing_is_moved_or_waited_for():
    with FakeTensorMode():  # a value that was asked for would fail
        some = Noise(torch.empty(4, dtype=torch.long, device="cuda"))
        more = some[:, None].part(torch.arange(3, device="cuda")).part(1)
        for made in (more.uniform((2, 5)), more.normal((2, 5)), more.order(10), more.subset(10, 3), some.parts(4).keys):
            assert made.device.type == "cuda"
            assert made.shape[:1] == (4,)


def test_another_type_is_refused():
    with pytest.raises(UsageError, match=r"uniform numbers are float32 or float64, found torch\.bfloat16"):
        noise().uniform((3,), torch.bfloat16)


# ----------------------------------------------------------------------------------------------------------------- keys


def test_a_sample_has_the_same_key_in_every_batch():
    assert torch.equal(RNG.take([2, 0]).noise("s").keys, RNG.noise("s").keys[[2, 0]])
    by_tensor = RNG.take(torch.tensor([2, 0]), torch.tensor([5, 6]))
    assert torch.equal(by_tensor.noise("s").keys, RNG.take([2, 0], [5, 6]).noise("s").keys)
    assert torch.equal(by_tensor.take([1]).noise("s").keys, RNG.take([0]).noise("s").keys)


def test_a_part_is_the_same_alone_and_among_others():
    some = RNG.noise("s")
    assert torch.equal(some.parts(3, 6).keys[:, 1], some.part(4).keys)
    assert torch.equal(some.part([9, 4, 4, 4]).keys[1:], some.part(4).keys[1:])


def test_seed_stream_sample_variant_draw_and_run_each_have_keys_of_their_own():
    every = [
        *RNG.noise("s").keys.tolist(),
        *RNG.noise("t").keys.tolist(),
        *replace(RNG, seed=8).noise("s").keys.tolist(),
        *RNG.repeated(1).noise("s").keys.tolist(),
        *RNG.take([0, 0, 1], [0, 1, 0]).noise("s").keys.tolist(),
        *RNG.noise("s").parts(5).keys.flatten().tolist(),
        *RNG.take([0, 0], [1, 2]).noise("s").part([2, 1]).keys.tolist(),
    ]
    assert len(set(every)) == len(every) == 4 * 4 + 3 + 20 + 2


# ----------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_numbers_have_their_distribution(kind):
    made = noise(1).uniform((N,)) if kind == "uniform" else noise(1).normal((N,))
    x, law = made[0].double().numpy(), stats.uniform if kind == "uniform" else stats.norm
    assert stats.kstest(x, law.cdf).pvalue > 0.01
    for power in (1, 2, 3, 4):
        error = math.sqrt(law.moment(2 * power) / N)
        assert abs(np.mean(x**power) - law.moment(power)) < 4 * error
    if kind == "uniform":
        assert 0 <= x.min() < x.max() < 1
    else:
        assert abs(x).max() > 4


@pytest.mark.parametrize("lag", [1, 2, 3, 64, 3072])
@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_numbers_of_a_key_are_uncorrelated(kind, lag):
    x = (noise(1).uniform((N,)) if kind == "uniform" else noise(1).normal((N,)))[0].double()
    assert abs(float(torch.corrcoef(torch.stack([x[lag:], x[:-lag]]))[0, 1])) < 4 / math.sqrt(N)


@pytest.mark.parametrize("neighbours", ["samples", "draws", "variants", "seeds", "streams", "repeats"])
def test_neighbours_are_independent(neighbours):
    rows = list(range(40))
    keys = {
        "samples": lambda: SampleRng(0, tuple(rows)).noise("s"),
        "draws": lambda: noise(1)[0].parts(40),
        "variants": lambda: SampleRng(0, (5,)).take([0] * 40, rows).noise("s"),
        "seeds": lambda: Noise(torch.cat([SampleRng(r, (5,)).noise("s").keys for r in rows])),
        "streams": lambda: Noise(torch.cat([SampleRng(0, (5,)).noise(f"s{r}").keys for r in rows])),
        "repeats": lambda: Noise(torch.cat([SampleRng(0, (5,)).repeated(r).noise("s").keys for r in rows])),
    }[neighbours]()
    x = keys.normal((5000,)).double()
    off = torch.corrcoef(x) - torch.eye(40, dtype=torch.float64)
    assert float(off.abs().max()) < 5 / math.sqrt(5000)
    assert stats.kstest((off[off.triu(1) != 0] * math.sqrt(5000)).numpy(), "norm").pvalue > 0.01
    assert stats.kstest(x[:, :2].flatten().numpy(), "norm").pvalue > 0.01  # the first numbers of many keys


def test_every_bit_is_a_fair_coin_and_tells_nothing_of_the_next_keys():
    keys = torch.arange(20_000)
    bits = (Noise(keys).bits(1) >> torch.arange(64)) & 1
    assert float((bits.double().mean(0) - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(20_000)
    changed = (bits[1:] != bits[:-1]).double()
    assert float((changed.mean(0) - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(20_000)


def test_all_orders_are_equally_likely():
    found = Counter(map(tuple, noise(1)[0].parts(24_000).order(4).tolist()))
    assert set(found) == set(permutations(range(4)))
    assert stats.chisquare(list(found.values())).pvalue > 0.01


def test_subsets_have_their_size_and_hold_every_cell_and_pair_equally_often():
    chosen = noise(1)[0].parts(20_000).subset(10, 3)
    assert chosen.sum(1).unique().tolist() == [3]
    x = chosen.double()
    together = x.T @ x / len(x)
    expected = torch.full((10, 10), 3 * 2 / (10 * 9), dtype=torch.float64).fill_diagonal_(0.3)
    assert float((together - expected).abs().max()) < 5 * math.sqrt(0.21 / 20_000)


# -------------------------------------------------------------------------------------------------- what draws and does not


def test_what_draws_says_so_and_so_does_what_holds_it():
    class Mine(Filler):
        def __call__(self, images, keep, rng, draws=1, segments=None):
            return images[:, None, None]

    class Marks(Score):
        def __call__(self, model, images, maps, targets, rng=None, observed=None):
            return maps.mean((1, 2))

        def meaning(self):
            return {}

    drawing = [RISE(), SmoothGrad(), Lime(), Toggle(), UniformNoise(), NoisyLinear(), MuFidelity(), Mine(), Marks()]
    drawing += [SlidingPatch(filler=UniformNoise()), Deletion(filler=Mine())]
    assert [type(d).__name__ for d in drawing if not d.draws_numbers()] == []
    silent = [Saliency(), SlidingPatch(), Deletion(), Colour(0.5)]
    assert [type(d).__name__ for d in silent if d.draws_numbers()] == []


TRAINING = {  # where torch's generators may be used: to train, to fit, and on statistics
    "lit_xai/fillers/diffusion.py": {"loss", "held_out"},
    "lit_xai/fillers/flow.py": {"prepare", "dequantised", "loss", "held_out"},
    "lit_xai/fillers/gaussian.py": {"prepare"},
    "lit_xai/fillers/inpaint.py": {"free_form", "holes_of", "held_out", "quality"},
    "lit_xai/fillers/patch.py": {"held_out"},
    "lit_xai/fillers/tiles.py": {"windows"},
    "lit_xai/metrics/gaps.py": {"permuted"},
    "lit_xai/metrics/label_errors.py": {"judge"},
    "lit_xai/metrics/statistics.py": {"draw_resamples"},
}


def test_no_generator_is_named_but_to_train_and_to_resample():
    root, found = Path(lit_xai.__file__).parent, {}
    for file in sorted(p for part in ("explainers", "metrics", "fillers") for p in (root / part).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                inside = ast.walk(node)
                if any(isinstance(n, ast.Attribute) and n.attr in ("Generator", "generator") for n in inside):
                    found.setdefault(str(file.relative_to(root.parent)), set()).add(node.name)
    assert found == TRAINING


# ----------------------------------------------------------------------------------------- the same methods, other numbers


@dataclass(frozen=True)
class Former(Noise):
    """What noise was before: torch's generators, one a sample and draw (RISE: one a sample)."""

    seed: int = 0
    stream: str = ""
    samples: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()

    def __getitem__(self, rows) -> Former:
        return replace(self, samples=tuple(self.samples[int(r)] for r in rows))

    def part(self, numbers) -> Former:
        return replace(self, numbers=tuple(int(n) for n in numbers))

    def generator(self, sample: int, draw: int) -> torch.Generator:
        return torch.Generator().manual_seed(stable_hash(self.seed, self.stream, sample, draw))

    def normal(self, shape) -> Tensor:
        pairs = zip(self.samples, self.numbers, strict=True)
        return torch.stack([torch.randn(tuple(shape), generator=self.generator(*pair)) for pair in pairs])

    def uniform(self, shape, dtype=torch.float32) -> Tensor:
        pairs = zip(self.samples, self.numbers, strict=True)
        return torch.stack([torch.rand(9, *shape, generator=self.generator(s, 0))[n] for s, n in pairs])


class Bent(nn.Module):
    """Three logits quadratic in the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.linspace(-1, 1, 75).view(3, 25).cos().T
        return (x.flatten(1) * x.flatten(1).roll(1, 1)) @ weight


@pytest.mark.parametrize(
    ("explainer", "rows"),
    [
        (
            SmoothGrad(samples=7),
            [
                [0.72287649, 0.37038973, 0.29467058, 0.70939356, 0.67916107],
                [0.66918087, 1.23749948, 0.81608045, 1.66806519, 0.28181255],
            ],
        ),
        (
            RISE(masks=9, grid=2),
            [
                [2.74145436, 2.79336214, 2.78923130, 2.66101193, 2.53279352],
                [1.69857645, 1.83418989, 1.89103365, 1.85789382, 1.82475388],
            ],
        ),
    ],
)
def test_with_the_former_numbers_the_former_maps_come_out(monkeypatch, explainer, rows):
    def former(self, stream, device="cpu"):
        return Former(torch.zeros(0, dtype=torch.long), self.seed, stream, tuple(self.samples))

    monkeypatch.setattr(SampleRng, "noise", former)
    images = (torch.arange(50.0).view(2, 1, 5, 5) * 0.37) % 1
    maps = explainer(Bent(), images, torch.tensor([0, 2]), SampleRng(5, (11, 4)))
    assert torch.allclose(maps[:, 0], torch.tensor(rows), rtol=0, atol=1e-6)
