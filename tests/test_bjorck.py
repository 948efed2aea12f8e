"""The 1-Lipschitz network's weights: torchlip's own on a CPU, the same without asking in between on any other device."""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter

import pytest
import torch
from deel.torchlip.normalizers import bjorck_normalization
from lit_xai.models import lipschitz
from lit_xai.models.lipschitz import Bjorck, orthonormalised, plain
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode

from conftest import seeded
from transfers import Counted, moved


def made() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lipschitz(1, 4, 16, width=4)


def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(8, 1, 16, 16, generator=seeded(1)), torch.arange(8) % 4


def with_torchlips_own(network: nn.Module) -> nn.Module:
    """Its Björck normalisation as torchlip has it."""
    own = importlib.import_module("deel.torchlip.utils.bjorck_norm")._BjorckNorm
    for parts in (m for m in network.modules() if isinstance(m, ParametrizationList)):
        for i, part in enumerate(parts):
            if isinstance(part, Bjorck):
                parts[i] = own(part._w_bjorck.clone(), part.eps)
    return network


def test_the_lipschitz_network_is_torchlips_bit_by_bit_and_takes_its_checkpoints():
    images, labels = batch()
    one, other = made().train(), with_torchlips_own(made()).train()
    one.load_state_dict(other.state_dict())
    for network in (one, other):
        optimizer = torch.optim.SGD(network.parameters(), lr=2.0)
        for _ in range(6):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
    state = one.state_dict()
    assert [*state] == [*other.state_dict()]
    assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items())
    other.load_state_dict(state)
    assert torch.equal(plain(other)(images), plain(one)(images))


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (6, 2, 3, 3), (30, 1, 3, 3)])
@pytest.mark.parametrize(("least", "rounds"), [(1.0, 1), (0.9, 3), (0.5, 5), (0.05, 11), (0.005, 15)])
def test_all_rounds_at_once_give_torchlips_weight_and_gradient_for_as_many_as_it_makes(shape, least, rounds):
    u, s, v = torch.linalg.svd(torch.randn(shape, generator=seeded(1), dtype=torch.float64).flatten(1), False)
    weight = (u * torch.linspace(1, least, len(s), dtype=s.dtype) @ v).view(shape).requires_grad_()
    along, asked = torch.randn(shape, generator=seeded(2), dtype=s.dtype), []

    class Rounds(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            asked.append(func is torch.linalg.norm)
            return func(*args, **(kwargs or {}))

    with Rounds():
        expected = bjorck_normalization(weight, eps=1e-3)
    found = orthonormalised(weight, 1e-3)
    assert sum(asked) == rounds
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    (theirs,), (ours,) = (torch.autograd.grad((w * along).sum(), weight) for w in (expected, found))
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-10)


def test_the_lipschitz_network_stays_1_lipschitz_when_it_is_trained_in_bf16():
    images, labels = batch()
    module = made().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=2.0)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(module(images), labels)
        loss.backward()
        optimizer.step()
    kept = [m._w_bjorck.flatten(1) for m in module.modules() if isinstance(m, Bjorck)]
    assert len(kept) == 4
    assert max(float(torch.linalg.matrix_norm(w, 2)) for w in kept) <= 1 + 1e-5


def test_all_rounds_at_once_are_made_in_float32_under_autocast():
    weight = torch.randn(6, 20, generator=seeded(1)) / 8
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = orthonormalised(weight, 1e-3)
    assert torch.equal(inside, orthonormalised(weight, 1e-3))


def test_training_the_1_lipschitz_network_waits_for_nothing_and_is_that_of_a_cpu():
    def trained(there: bool) -> tuple[list[Tensor], Counter[str]]:
        model, (x, targets) = made().double().train(), batch()
        x = x.double()
        with Counted() if there else contextlib.nullcontext() as counted:
            if there:
                model, x, targets = moved(model), moved(x), moved(targets)
                counted.counts.clear()
            weights = list(model.parameters())
            for _ in range(5):
                gradient = torch.autograd.grad(nn.functional.cross_entropy(20 * model(x), targets) / 20, weights)
                with torch.no_grad():
                    for weight, g in zip(weights, gradient, strict=True):
                        weight -= 0.5 * g
            return list(model.state_dict().values()), counted.counts if there else Counter()

    (there, waited), (here, _) = trained(True), trained(False)
    assert waited == Counter()
    for one, other in zip(there, here, strict=True):
        assert torch.allclose(one.held, other, rtol=0, atol=1e-10)
