"""Recorded training steps are the steps themselves; what cannot be recorded is done as it is. Without a card, a recording does its work anew."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from deel.torchlip import SpectralLinear
from lit_xai.models import Classifier, lipschitz, resnet18
from lit_xai.models.steps import Steps
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal
from torch.utils.data import DataLoader

from conftest import seeded


def replayed(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What recording leaves: the work, done three times before, whenever it is asked for."""
    for _ in range(3):
        work()
    return work


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return resnet18(1, 4, 8, width=2, dropout=0.0).train()


def batches(number: int, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    g = seeded(1)
    return [(torch.rand(size, 1, 8, 8, generator=g), torch.randint(0, 4, (size,), generator=g)) for _ in range(number)]


def loss_of(module: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, labels: nn.functional.cross_entropy(module(images), labels)


def trained(
    module: nn.Module, loss: Callable[..., Tensor], many: list[tuple[Tensor, Tensor]], each: int = 1
) -> list[float]:
    """The losses of steps of `each` batches, whose gradients add up."""
    optimizer, losses = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.01), []
    for number, batch in enumerate(many):
        found = loss(*batch)
        (found / each).backward()
        losses.append(float(found.detach()))
        if (number + 1) % each == 0:
            optimizer.step()
            optimizer.zero_grad()
    return losses


def both(
    change: Callable[[nn.Module], None] = lambda module: None, many: int = 6, each: int = 1
) -> tuple[nn.Module, nn.Module]:
    """The same training, plain and recorded."""
    one, other = network(), network()
    change(one), change(other)
    steps = Steps(other, loss_of(other), replayed)
    expected, found = trained(one, loss_of(one), batches(many), each), trained(other, steps, batches(many), each)
    assert found == expected
    assert steps.replay is not None
    return one, other


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("each", [1, 2])
def test_a_recorded_training_ends_with_the_same_weights_and_statistics(each):
    one, other = both(each=each)
    assert equal(one, other)


def test_weights_that_are_not_trained_stay_as_they_are():
    one, other = both(lambda module: module.stages.requires_grad_(False))
    assert equal(one, other)
    assert equal(other.stages, network().stages) is False  # their statistics are followed


def test_a_layer_that_is_not_asked_has_no_gradient():
    def add(module: nn.Module) -> None:
        module.unused = nn.Linear(2, 2)

    torch.manual_seed(0)
    other = both(add)[1]
    assert other.unused.weight.grad is None


def test_a_batch_of_another_size_is_a_step_as_it_is():
    one, other = network(), network()
    many = [*batches(4), *batches(1, 3), *batches(2)]
    assert trained(other, Steps(other, loss_of(other), replayed), many) == trained(one, loss_of(one), many)
    assert equal(one, other)


def test_a_layer_that_is_frozen_or_trained_from_then_on_is_recorded_anew():
    module, recordings = network(), []
    module.stages.requires_grad_(False)
    steps = Steps(module, loss_of(module), lambda *a: recordings.append(1) or replayed(*a))
    trained(module, steps, batches(3))
    module.stages.requires_grad_(True)
    for batch in batches(3):
        steps(*batch).backward()
    assert len(recordings) == 2
    assert all(p.grad is not None for p in module.parameters())


def test_weights_that_moved_are_recorded_anew():
    one, other = network(), network()
    steps, recordings = Steps(other, loss_of(other), lambda *a: recordings.append(1) or replayed(*a)), []
    trained(other, steps, batches(3)), trained(one, loss_of(one), batches(3))
    for module in (one, other):
        for p in module.parameters():
            p.data = p.data * 0.5
    trained(other, steps, batches(3)), trained(one, loss_of(one), batches(3))
    assert len(recordings) == 2
    assert equal(one, other)


def test_buffers_that_were_replaced_are_found_by_a_look():
    module, recordings = network(), []
    steps = Steps(module, loss_of(module), lambda *a: recordings.append(1) or replayed(*a))
    norm = next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    for replaced in (False, True):
        trained(module, steps, batches(3))
        norm.running_mean = norm.running_mean + 1.0 if replaced else norm.running_mean
        steps.look()
    trained(module, steps, batches(1))
    assert len(recordings) == 2


def test_layers_that_are_put_into_another_mode_are_recorded_anew():
    module, recordings = network(), []
    steps = Steps(module, loss_of(module), lambda *a: recordings.append(1) or replayed(*a))
    trained(module, steps, batches(3))
    next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    trained(module, steps, batches(3))
    assert len(recordings) == 2


@pytest.mark.parametrize("from_step", [0, 1, 4])
@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_parameters_see_their_gradients(kind, from_step):
    module, seen = network(), []
    steps = Steps(module, loss_of(module), replayed)
    weight = next(module.parameters())
    for number, batch in enumerate(batches(7)):
        if number == from_step:
            getattr(weight, kind)(lambda x: seen.append(1))
        steps(*batch).backward()
    assert len(seen) == 7 - from_step


def test_gradients_lie_in_memory_as_their_parameters_do():
    images = torch.rand(6, 3, 8, 8, generator=seeded(1)).contiguous(memory_format=torch.channels_last)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 4))
    steps, batch = Steps(module, loss_of(module), replayed), (images, torch.arange(6) % 4)
    found = []
    for _ in range(3):
        module.zero_grad()
        steps(*batch).backward()
        found.append([p.grad for p in module.parameters() if p.grad is not None])
    assert steps.replay is not None
    assert [g.stride() for g in found[2]] == [p.stride() for p in module.parameters()]
    assert all(map(torch.equal, found[0], found[2]))


def test_what_cannot_be_recorded_goes_on_as_it_is_and_says_so(caplog):
    def broken(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
        work()
        raise RuntimeError("operation not permitted when stream is capturing")

    one, other = network(), network()
    steps = Steps(other, loss_of(other), broken)
    assert trained(other, steps, batches(4)) == trained(one, loss_of(one), batches(4))
    assert equal(one, other)
    assert caplog.text.count("launched kernel by kernel, as they cannot be recorded (RuntimeError: operation not") == 1


def test_a_buffer_that_is_put_elsewhere_in_every_step_is_not_recorded(caplog):
    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.seen + 1
            return self.inner(x) + 0 * self.seen

    module = Moves()
    steps = Steps(module, loss_of(module), replayed)
    trained(module, steps, batches(4))
    assert steps.replay is None
    assert "it puts its buffers elsewhere every time" in caplog.text
    assert int(module.seen) == 4


def test_the_1_lipschitz_network_is_recorded_and_its_kernels_stay_where_they_are():
    def made() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return lipschitz(1, 4, 8, width=2).train()

    one, other = made(), made()
    steps = Steps(other, loss_of(other), replayed)
    assert trained(other, steps, batches(6)) == trained(one, loss_of(one), batches(6))
    assert steps.replay is not None
    assert equal(one, other)
    assert equal(one.eval(), made()) is False


@pytest.mark.parametrize("layer", [lambda: SpectralLinear(4, 4), lambda: orthogonal(nn.Linear(4, 4))])
def test_weights_that_are_computed_anew_in_who_knows_how_many_rounds_are_not_recorded(layer):
    module = nn.Sequential(network(), layer()).train()
    steps = Steps(module, loss_of(module), replayed)
    trained(module, steps, batches(4))
    assert steps.replay is None


def test_without_gradients_a_loss_is_a_loss():
    module = network()
    steps = Steps(module, loss_of(module), replayed)
    with torch.no_grad():
        for batch in batches(3):
            steps(*batch)
    assert steps.replay is None


class StopsAt(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step == self.step


@pytest.mark.parametrize(
    ("each", "stop", "most", "rows_of"),
    [(1, 99, -1, 1 + 5), (2, 99, -1, 1 + 3), (1, 6, -1, 1 + 2), (2, 5, -1, 1 + 2), (1, 99, 10, 1 + 2)],
)
def test_losses_reach_the_loggers_as_if_every_step_were_logged(each, stop, most, rows_of, tmp_path):
    class Always(Classifier):
        def is_shown(self, index: int) -> bool:
            return True

        on_train_batch_end = pl.LightningModule.on_train_batch_end

    def rows(kind: type[Classifier]) -> list[list[str]]:
        torch.manual_seed(0)
        module = kind(lambda **shape: resnet18(1, 4, 8, width=2), 1, 4, 8, schedule="constant")
        logger = CSVLogger(str(tmp_path), kind.__name__)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = pl.Trainer(
                accelerator="cpu", max_epochs=3, logger=logger, log_every_n_steps=4, accumulate_grad_batches=each,
                limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
                callbacks=[StopsAt(stop)], max_steps=most,
            )  # fmt: skip
            trainer.fit(module, DataLoader(batches(7), batch_size=None, collate_fn=tuple))  # type: ignore[arg-type]
        last = [str(round(float(trainer.callback_metrics["train/loss"]), 6))]
        return [*csv.reader(Path(logger.log_dir, "metrics.csv").open()), last]

    assert len(rows(Classifier)) == rows_of + 1
    assert rows(Classifier) == rows(Always)


def test_a_loop_of_ones_own_takes_training_steps():
    module = Classifier(lambda **shape: resnet18(1, 4, 8, width=2), 1, 4, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is logged
        assert module.training_step(batches(1)[0], 1).requires_grad
