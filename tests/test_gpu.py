"""What a card alone can show: the same numbers as a CPU, no waiting in a loop, and calls that truly do not fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lit_xai.data.augment import AtOnce
from lit_xai.data.folds import FoldData
from lit_xai.data.images import in_memory
from lit_xai.explainers import RISE, Saliency, SlidingPatch
from lit_xai.fillers import Colour
from lit_xai.metrics import CertifiedRadius
from lit_xai.models import Classifier, lipschitz, resnet18
from lit_xai.rng import SampleRng
from torch import Tensor, nn

from conftest import seeded
from test_contracts import build, every, network_for
from test_on_device import FLIPS_AND_CROP
from test_transfers import free_of_waits, grown, network

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("exact")]
MASKED = RISE(masks=60, grid=3, output="probability", max_batch=4)  # certificates are of sums over masks
CLOSE = 5e-4  # of the largest value: convolutions add up in another order


@pytest.fixture
def exact(monkeypatch):
    """No TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_both(work: Callable[[torch.device], Tensor]) -> tuple[Tensor, Tensor]:
    return work(torch.device("cpu")), work(torch.device("cuda")).cpu()


def test_uniform_numbers_are_bitwise_those_of_a_cpu():
    def numbers(device: torch.device) -> Tensor:
        noise = SampleRng(7, tuple(range(5))).noise("here", device)
        return torch.cat([noise.uniform((n,)).flatten() for n in (1, 1000, 2**17 + 3)])

    cpu, cuda = on_both(numbers)
    assert torch.equal(cpu, cuda)


def test_normal_numbers_are_those_of_a_cpu_to_rounding():
    cpu, cuda = on_both(lambda device: SampleRng(7, (1, 2)).noise("here", device).normal((100_003,)))
    assert float((cpu - cuda).abs().max()) < 1e-5


def inputs(device: torch.device, images: int = 5) -> tuple[Tensor, Tensor, SampleRng]:
    x = torch.rand(images, 1, 16, 16, generator=seeded(1)).to(device)
    return x, torch.arange(images, device=device) % 4, SampleRng(7, tuple(range(images)))


def scored(score: Any, model: nn.Module, x: Tensor, targets: Tensor, rng: SampleRng) -> Tensor:
    """Of maps that are no function of the model."""
    masks = (x[:, 0] > 0.5) if score.truth is not None else None
    explainer = MASKED if isinstance(score, CertifiedRadius) else Saliency()
    others = score.again(explainer, model, x, targets, rng) if score.explanations else masks
    maps = (4 * torch.randn(len(x), 16, 16, generator=seeded(2))).round().to(x)
    return score(model, x, maps, targets, rng, others)


@every("explainer")
def test_an_explainer_gives_the_maps_of_a_cpu(file):
    cpu, cuda = on_both(lambda device: build(file)(network_for(file).to(device), *inputs(device)))
    assert float((cpu - cuda).abs().max()) <= CLOSE * float(cpu.abs().max())


@every("score")
def test_a_score_gives_the_numbers_of_a_cpu(file):
    cpu, cuda = on_both(lambda device: scored(build(file), network_for(file).to(device), *inputs(device)))
    torch.testing.assert_close(cpu, cuda, rtol=1e-3, atol=1e-3, equal_nan=True)


# ----------------------------------------------------------------------------------------------------------- waiting


def waits_of(call: Callable[[], Any]) -> int:
    """How often a second call waits for the card."""
    call()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(w.message) for w in said)


def waits(file: Path, times: int, images: int, of: Any) -> int:
    """The same of a yaml's explainer or score on so many images."""
    thing, model = build(file, lambda node: grown(node, times)), network(file).cuda()
    args = inputs(torch.device("cuda"), images)
    return waits_of(lambda: of(thing, model, *args))


@free_of_waits("explainer")
def test_an_explainer_waits_as_often_for_many_as_for_few(file):
    few = waits(file, 1, 2, lambda explainer, *args: explainer(*args))
    assert waits(file, 3, 2, lambda explainer, *args: explainer(*args)) == few
    assert waits(file, 1, 5, lambda explainer, *args: explainer(*args)) == few


@free_of_waits("score")
def test_a_score_waits_as_often_for_many_as_for_few(file):
    few = waits(file, 1, 2, scored)
    assert waits(file, 3, 2, scored) == few
    assert waits(file, 1, 5, scored) == few


def chain(device: torch.device) -> nn.Module:
    """A network whose windows can be carried, and whose Lipschitz constants are known."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(32, 4)).eval().to(device)


def carried(stride: int) -> SlidingPatch:
    return SlidingPatch(3, stride, Colour(0.5), scale=False, incremental="always", max_batch=4)


def test_carried_windows_give_the_maps_of_a_cpu_and_wait_as_often_for_many_as_for_few():
    cpu, cuda = on_both(lambda device: carried(2)(chain(device), *inputs(device)))
    assert float((cpu - cuda).abs().max()) <= CLOSE * float(cpu.abs().max())
    card = torch.device("cuda")
    model, given = chain(card), {n: inputs(card, n) for n in (1, 4)}
    assert waits_of(lambda: carried(5)(model, *given[1])) == waits_of(lambda: carried(2)(model, *given[4]))


def test_certified_radii_are_those_of_a_cpu():
    score = CertifiedRadius(cells=3, steps=5)
    cpu, cuda = on_both(lambda device: score.again(MASKED, chain(device), *inputs(device))[:, 0])
    assert bool(cpu.isfinite().all())
    torch.testing.assert_close(cpu, cuda, rtol=1e-3, atol=0)


# ------------------------------------------------------------------------------------------------------------ memory


def test_calls_that_do_not_fit_the_card_are_halved_and_give_the_same_maps(caplog):
    wide = nn.Sequential(nn.Conv2d(1, 512, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(wide, nn.Linear(512, 4)).cuda().eval()
    x, targets = torch.rand(2, 1, 64, 64, generator=seeded(1)).cuda(), torch.tensor([0, 3]).cuda()
    rng = SampleRng(7, (0, 1))
    expected = RISE(256, max_batch=16)(model, x, targets, rng)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 1.5e9) / total)
    try:
        found = RISE(256, max_batch=512)(model, x, targets, rng)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "images a model call do not fit" in caplog.text
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


# ---------------------------------------------------------------------------------------------------------- training


def test_a_batch_is_augmented_on_the_card_as_on_a_cpu():
    images = torch.rand(50, 3, 16, 16, generator=seeded(1))
    at_once = AtOnce.of(FLIPS_AND_CROP, (3, 16, 16))
    values = at_once.values((3, 7), range(50))
    cpu, cuda = on_both(lambda device: at_once(images.to(device), values.to(device)))
    assert torch.equal(cpu, cuda)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("network", [resnet18, lipschitz])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_recorded_training_is_that_of_single_kernels(network, precision, caplog):
    def trained(record: str) -> tuple[Classifier, list[float], list[bool]]:
        pixels = torch.randint(0, 256, (120, 1, 16, 16), dtype=torch.uint8, generator=seeded(1))
        source = in_memory("noise", pixels, torch.arange(120) % 4, list("abcd"))
        losses, recorded = [], []

        class Watch(pl.Callback):
            def on_train_batch_end(self, trainer, module, outputs, batch, index):
                losses.append(float(outputs["loss"]))
                recorded.append(module.steps is not None and module.steps.replay is not None)

        torch.manual_seed(0)
        module = Classifier(partial(network, width=8), 1, 4, 16, lr=1e-3, record=record)
        quiet = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        trainer = pl.Trainer(
            accelerator="gpu",
            devices=1,
            precision=precision,
            max_epochs=2,
            limit_val_batches=0,
            callbacks=[Watch()],
            **quiet,
        )
        trainer.fit(module, FoldData(lambda: source, folds=2, batch_size=10))
        return module.cpu(), losses, recorded

    one, expected, never = trained("never")
    other, found, always = trained("auto")
    assert not any(never)
    assert always == [False, *[True] * 11]
    assert "launched kernel by kernel" not in caplog.text
    close = 1e-3 if precision == "32-true" else 3e-2
    assert found == pytest.approx(expected, rel=close)
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=10 * close, rtol=close)
