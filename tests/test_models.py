"""Networks and the module that trains them."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lit_xai import engine
from lit_xai.callbacks import Explain
from lit_xai.data import FoldData
from lit_xai.errors import UsageError
from lit_xai.explainers import Saliency
from lit_xai.models import Classifier, Pretrained, lipschitz, one_layer, resnet18, resnet50, vgg
from lit_xai.models.lipschitz import fitted_temperature, local_lipschitz
from lit_xai.store.fold import FoldStore
from torch import nn

from conftest import seeded

SMALL = {
    "resnet18": lambda **shape: resnet18(**shape, width=2, dropout=0.3),
    "vgg": lambda **shape: vgg(**shape, blocks=1, dense=8, dropout=0.3),
    "lipschitz": lambda **shape: lipschitz(**shape, width=4),
}
every_network = pytest.mark.parametrize("network", SMALL.values(), ids=SMALL)


def classifier(network=SMALL["resnet18"], channels: int = 1, classes: int = 10, **options) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(network, channels=channels, classes=classes, side=16, **options)


def batch(n: int = 24, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(n, 1, 16, 16, generator=seeded(1)), torch.arange(n) % classes


def fit(module: pl.LightningModule, digits, **options) -> pl.Trainer:
    data = FoldData(lambda: digits, folds=2, train_subset=80, batch_size=20)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", limit_val_batches=0, use_distributed_sampler=False, **quiet, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data)
    return trainer


# --------------------------------------------------------------------------------------------------------------- shapes


@every_network
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_have_one_column_a_class(network, channels):
    module = classifier(network, channels, classes=7, colour=([0.5] * channels, [0.2] * channels)).eval()
    logits = module(torch.rand(3, channels, 16, 16, generator=seeded(1)))
    assert logits.shape == (3, 7)
    assert bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("side", [28, 32, 64])
def test_resnet18_halves_small_images_three_times(side):
    network = resnet18(1, 10, side, width=2).eval()
    assert network.stages(network.stem(torch.rand(1, 1, side, side))).shape == (1, 16, -(-side // 8), -(-side // 8))


def test_resnet18_with_the_large_stem_halves_twice_before_its_stages():
    network = resnet18(3, 10, 64, width=2, stem="large").eval()
    assert network.stem(torch.rand(1, 3, 64, 64)).shape == (1, 2, 16, 16)


def test_resnet18_has_seventeen_convolutions_three_shortcuts_and_one_dense_layer():
    kinds = [type(m) for m in resnet18(3, 10, 32, width=2).modules()]
    assert (kinds.count(nn.Conv2d), kinds.count(nn.Linear)) == (17 + 3, 1)


def test_no_activation_of_the_resnet_runs_twice():
    network, runs = resnet18(1, 3, 16, width=2).eval(), []
    for m in network.modules():
        if isinstance(m, nn.ReLU):
            m.register_forward_hook(lambda module, *_: runs.append(id(module)))
    network(torch.rand(1, 1, 16, 16))
    assert len(runs) == len(set(runs)) == 17


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_vgg_has_two_convolutions_a_block(blocks):
    network = vgg(3, 10, 16, blocks=blocks)
    filters = [m.out_channels for m in network if isinstance(m, nn.Conv2d)]
    assert filters == [32, 32, 64, 64, 128, 128][: 2 * blocks]


@pytest.mark.parametrize(
    "make",
    [
        lambda: resnet18(1, 10, 16, stem="huge"),
        lambda: resnet50(1, 10, 64),
        lambda: vgg(1, 10, 16, blocks=4),
        lambda: vgg(1, 10, 4, blocks=3),
        lambda: lipschitz(1, 10, 4),
        lambda: lipschitz(1, 10, 16, activation="relu"),
        lambda: classifier(schedule="linear"),
        lambda: classifier(loss="mse"),
    ],
    ids=["stem", "grey resnet50", "four blocks", "tiny vgg", "tiny lipschitz", "activation", "schedule", "loss"],
)
def test_what_cannot_be_built_is_refused(make):
    with pytest.raises(UsageError):
        make()


# -------------------------------------------------------------------------------------------------------- normalisation


def test_normalisation_is_part_of_the_model():
    module = classifier(colour=([0.3], [0.2])).eval()
    images, _ = batch()
    assert torch.allclose(module(images), module.network((images - 0.3) / 0.2), atol=1e-6)


def test_without_scale_normalisation_only_centres():
    module = classifier(colour=([0.3], [0.2]), scale=False).eval()
    images, _ = batch()
    assert torch.allclose(module(images), module.network(images - 0.3), atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- training


@every_network
def test_a_few_steps_lower_the_loss_of_their_batch(network):
    module = classifier(network).train()
    images, labels = batch()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    torch.manual_seed(0)
    losses = []
    for _ in range(25):
        loss = module.loss(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("options", [{"loss": "hkr"}, {"loss": "tau_cross_entropy", "tau": 20.0}], ids=str)
def test_the_losses_of_lipschitz_networks_move_every_parameter(options):
    module = classifier(SMALL["lipschitz"], scale=False, **options).train()
    images, labels = batch()
    before = [p.detach().clone() for p in module.parameters()]
    module.loss(module(images), labels).backward()
    torch.optim.SGD(module.parameters(), lr=1.0).step()
    assert len(before) > 4
    assert not any(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))


def test_label_smoothing_is_that_of_the_cross_entropy():
    logits, labels = torch.randn(6, 10, generator=seeded(2)), torch.arange(6)
    smooth, plain = classifier(label_smoothing=0.1).loss(logits, labels), classifier().loss(logits, labels)
    uniform = -logits.log_softmax(1).mean()
    assert float(smooth) == pytest.approx(float(0.9 * plain + 0.1 * uniform), abs=1e-6)


def test_label_smoothing_is_accepted_by_the_temperature_cross_entropy():
    module = classifier(SMALL["lipschitz"], loss="tau_cross_entropy", label_smoothing=0.1)
    logits, labels = torch.randn(6, 10, generator=seeded(2)), torch.arange(6)
    plain = classifier(SMALL["lipschitz"], loss="tau_cross_entropy").loss(logits, labels)
    assert float(module.loss(logits, labels)) != pytest.approx(float(plain))


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "constant"])
def test_one_epoch_changes_every_parameter_under_every_schedule(digits, schedule):
    module = classifier(schedule=schedule)
    before = [p.detach().clone() for p in module.parameters()]
    fit(module, digits, max_epochs=1)
    assert not any(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize(("schedule", "ends_low"), [("onecycle", True), ("cosine", True), ("constant", False)])
def test_learning_rate_ends_near_zero_unless_constant(digits, schedule, ends_low):
    module = classifier(schedule=schedule, lr=0.004)
    trainer = fit(module, digits, max_epochs=5)
    last = trainer.optimizers[0].param_groups[0]["lr"]
    assert (last < 0.0004) is ends_low


def test_training_twice_gives_the_same_weights(digits):
    first, second = classifier(), classifier()
    for module, noise in ((first, 1), (second, 2)):
        torch.manual_seed(noise)  # nothing may depend on the global generator
        fit(module, digits, max_epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


class Recorder(pl.Callback):
    """The labels of every batch, epoch by epoch."""

    def __init__(self) -> None:
        self.labels: list[list[int]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.labels.append([])

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs, batch, index) -> None:
        self.labels[-1] += batch[1].tolist()


def test_every_epoch_has_its_own_order_a_function_of_seed_and_epoch(digits):
    recorder = Recorder()
    fit(classifier(), digits, max_epochs=3, callbacks=[recorder])
    loader = FoldData(lambda: digits, folds=2, train_subset=80, batch_size=20).train_dataloader()
    for epoch, labels in enumerate(recorder.labels):
        loader.batch_sampler.begins = lambda epoch=epoch: (epoch, 0)
        assert labels == [int(y) for _, batch in loader for y in batch]
    assert recorder.labels[0] != recorder.labels[1] != recorder.labels[2]


def test_a_loss_that_is_not_finite_stops_with_the_setting_to_change(digits):
    module = classifier()
    with torch.no_grad():
        module.network.head[-1].weight.fill_(torch.nan)
    with pytest.raises(UsageError, match=r"lower model\.lr"):
        fit(module, digits, max_epochs=1)


# ------------------------------------------------------------------------------------------------------------ predictor


@every_network
def test_predictor_equals_the_module_in_evaluation_mode(network):
    module = classifier(network, colour=([0.3], [0.5]))
    images, labels = batch()
    module.train()
    module.loss(module(images), labels).backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    predictor = module.predictor()
    with torch.no_grad():
        assert torch.allclose(predictor(images), module.eval()(images), atol=1e-5)


@every_network
def test_predictor_has_no_dropout_and_no_parametrisation(network):
    module = classifier(network).train()
    predictor, (images, _) = module.predictor(), batch()
    assert not any(m.training for m in predictor.modules())
    assert not any(nn.utils.parametrize.is_parametrized(m) for m in predictor.modules())
    with torch.no_grad():
        assert torch.equal(predictor(images), predictor(images))


@pytest.mark.parametrize("activation", ["groupsort", "prelu"])
def test_lipschitz_network_is_1_lipschitz_everywhere_we_look(activation):
    module = classifier(lambda **shape: lipschitz(**shape, width=4, activation=activation), scale=False)
    images, labels = batch()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        module.loss(module(images), labels).backward()
        optimizer.step()
    constants = local_lipschitz(module.predictor(), images)
    assert float(constants.max()) <= 1 + 1e-4
    assert float(constants.max()) > 0.01


def test_lipschitz_network_never_moves_outputs_further_than_inputs():
    predictor = classifier(SMALL["lipschitz"], scale=False).predictor()
    a, b = torch.rand(2, 40, 1, 16, 16, generator=seeded(3))
    with torch.no_grad():
        moved = (predictor(a) - predictor(b)).norm(dim=1)
    assert bool((moved <= (a - b).flatten(1).norm(dim=1) * (1 + 1e-4)).all())


def test_local_constant_of_a_linear_map_is_its_largest_singular_value(linear, rgb):
    expected = torch.linalg.matrix_norm(linear.weight.detach().flatten(1).double(), ord=2)
    assert local_lipschitz(linear, rgb).tolist() == pytest.approx([float(expected)] * 5, rel=1e-6)


# ---------------------------------------------------------------------------------------------------------- temperature


def test_a_predictor_is_read_at_the_temperature_it_is_trained_at():
    module = classifier(SMALL["lipschitz"], scale=False, loss="tau_cross_entropy", tau=7.0).eval()
    images, labels = batch()
    with torch.no_grad():
        z = module(images)
        assert torch.allclose(module.predictor()(images), 7 * z, atol=1e-4)
        loss = nn.functional.cross_entropy(module.predictor()(images), labels)
        assert float(module.loss(z, labels)) == pytest.approx(float(loss) / 7, rel=1e-4)  # torchlip divides by tau
    assert float(local_lipschitz(module.predictor(), images).max()) <= 1 + 1e-4
    assert len(classifier(scale=False).eval().predictor()) == 2


def test_the_fitted_temperature_has_the_least_loss():
    z = torch.randn(300, 4, generator=seeded(0))
    labels = (z + 0.3 * torch.randn(300, 4, generator=seeded(1))).argmax(1)

    def loss(tau: float) -> float:
        return float(nn.functional.cross_entropy(tau * z, labels))

    tau = fitted_temperature(z, labels)
    assert loss(tau) <= min(loss(t) for t in np.geomspace(0.1, 100, 400)) + 1e-6


def test_hkr_keeps_the_temperature_of_its_training_folds_and_older_checkpoints_have_none(digits):
    data = FoldData(lambda: digits, folds=2, train_subset=120)
    module = classifier(SMALL["lipschitz"], scale=False, loss="hkr")
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    pl.Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(module, data)
    module.eval()
    images, labels = data.source.train.images(data.split.training(0).tolist()), data.split.label(data.split.training(0))
    with torch.no_grad():
        expected = fitted_temperature(module(images), labels)
    assert float(module.temperature) == pytest.approx(expected, rel=1e-3)
    state = module.state_dict()
    again = classifier(SMALL["lipschitz"], scale=False, loss="hkr")
    again.load_state_dict(state)
    assert float(again.temperature) == pytest.approx(expected, rel=1e-3)
    state.pop("temperature")
    again.load_state_dict(state)
    assert float(again.temperature) == 1
    assert "temperature" not in classifier(scale=False).state_dict()


def test_a_folder_explained_at_temperature_1_is_refused_by_name(digits, tmp_path):
    data = FoldData(lambda: digits, folds=2, train_subset=120, probes_per_fold=3)
    module = classifier(SMALL["lipschitz"], scale=False, loss="tau_cross_entropy").eval()
    explain = Explain({"saliency": Saliency()}, {}, FoldStore(tmp_path / "fold=0"), progress=False)
    job = explain.job(module.predictor()[:-1], data, torch.device("cpu"), None)
    engine.predictions_of(job, data.split, 0)
    with pytest.raises(UsageError, match=r"at temperature 1 by an earlier version.*delete its predictions"):
        explain.tasks(module.predictor(), data, torch.device("cpu"))


# ---------------------------------------------------------------------------------------------------------- degradation


def kernels(module: Classifier) -> torch.Tensor:
    return torch.cat([m.weight.detach().flatten() for m in module.network.modules() if isinstance(m, nn.Conv2d)])


def degraded(share: float, fold: int = 0, network=SMALL["resnet18"], **options) -> Classifier:
    module = classifier(network, scale=False)
    module.add_weight_noise(share, seed=5, fold=fold, **options)
    return module


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_weight_noise_reaches_its_share_of_the_convolution_parameters(share):
    change = kernels(degraded(share)) - kernels(classifier())
    assert float((change != 0).float().mean()) == pytest.approx(share, abs=0.01)


def test_weight_noise_has_its_standard_deviation():
    change = kernels(degraded(1.0)) - kernels(classifier())
    assert float(change.std()) == pytest.approx(0.5, rel=0.1)
    assert abs(float(change.mean())) < 0.05


def test_weight_noise_is_nested_across_shares():
    clean, few, many = kernels(classifier()), kernels(degraded(0.1)), kernels(degraded(0.3))
    changed = few != clean
    assert torch.equal(few[changed], many[changed])


def test_weight_noise_touches_weights_and_nothing_else():
    clean, noisy = classifier(scale=False).state_dict(), degraded(0.5).state_dict()
    changed = {k for k in clean if not torch.equal(clean[k], noisy[k])}
    assert changed == {k for k in clean if clean[k].ndim > 1 and k.startswith("network")}


class Attending(nn.Module):
    """A transformer's parts: a convolution that cuts patches, attention, a head."""

    def __init__(self, channels: int, classes: int, side: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, 8, 4, 4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def test_weight_noise_reaches_every_matrix_of_a_transformer():
    clean, noisy = (m.state_dict() for m in (classifier(Attending), degraded(0.5, network=Attending)))
    matrices = {k: v for k, v in clean.items() if v.ndim > 1 and k.startswith("network")}
    assert len(matrices) == 6
    for name, before in matrices.items():
        assert float((noisy[name] != before).float().mean()) == pytest.approx(0.5, abs=0.02), name


def test_weight_noise_differs_between_folds():
    assert not torch.equal(kernels(degraded(0.3, fold=0)), kernels(degraded(0.3, fold=1)))


def test_weight_noise_reaches_the_kernels_under_a_spectral_parametrisation():
    clean, noisy = classifier(SMALL["lipschitz"], scale=False), degraded(0.3, network=SMALL["lipschitz"])
    images, _ = batch()
    with torch.no_grad():
        assert not torch.allclose(clean.predictor()(images), noisy.predictor()(images), atol=1e-4)


def test_weight_noise_leaves_the_lipschitz_network_1_lipschitz():
    images, _ = batch()
    constants = local_lipschitz(degraded(1.0, network=SMALL["lipschitz"], sigma=2.0).predictor(), images)
    assert float(constants.max()) <= 1 + 1e-4


def test_weight_noise_outside_the_unit_interval_is_refused():
    with pytest.raises(UsageError, match="weight_noise"):
        degraded(1.5)


# -------------------------------------------------------------------------------------------------------------- weights


@every_network
def test_weights_survive_a_file_that_holds_no_code(tmp_path, network):
    module, images = classifier(network).eval(), batch()[0]
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    other = Classifier(network, channels=1, classes=10, side=16).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with torch.no_grad():
        assert torch.equal(other(images), module(images))


@pytest.fixture(scope="module")
def squeezenet() -> nn.Module:
    import torchvision.models

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.squeezenet1_1(weights=None).eval()


@pytest.mark.parametrize("nested", [False, True], ids=["state dict", "checkpoint"])
def test_pretrained_network_is_normalisation_then_torchvisions(tmp_path, squeezenet, nested):
    state = squeezenet.state_dict()
    torch.save({"state_dict": state} if nested else state, tmp_path / "w.pt")
    predictor = Pretrained(
        "squeezenet1_1", str(tmp_path / "w.pt"), mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7]
    ).predictor()
    images = torch.rand(2, 3, 64, 64, generator=seeded(1))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]))
    with torch.no_grad():
        assert torch.allclose(predictor(images), squeezenet((images - mean) / std), atol=1e-5)


def test_weights_that_would_run_code_are_refused(tmp_path):
    touched = tmp_path / "touched"

    class Touch:
        def __reduce__(self):
            return type(touched).touch, (touched,)

    torch.save({"x": Touch()}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="loads safely"):
        Pretrained("squeezenet1_1", str(tmp_path / "w.pt"))
    assert not touched.exists()


def test_weights_of_another_network_are_refused(tmp_path, squeezenet):
    torch.save(classifier().state_dict(), tmp_path / "w.pt")
    with pytest.raises(UsageError, match="holds no weights of squeezenet1_1"):
        Pretrained("squeezenet1_1", str(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"arch": "nonet"}, "no classifier"),
        ({"weights": "nowhere.pt"}, r"model\.weights="),
        ({"channels": 1}, "takes 3 channels"),
    ],
    ids=["architecture", "file", "channels"],
)
def test_pretrained_networks_that_cannot_be_had_are_refused(options, match):
    with pytest.raises(UsageError, match=match):
        Pretrained(**{"arch": "squeezenet1_1", "weights": "nowhere.pt", **options})


def test_a_copy_of_a_trained_lipschitz_predictor_is_independent_of_the_module():
    module, (images, _) = classifier(SMALL["lipschitz"]), batch()
    predictor = module.predictor()
    with torch.no_grad():
        before = copy.deepcopy(predictor(images))
        for p in module.network.parameters():
            p.zero_()
        assert torch.equal(predictor(images), before)


def test_one_layer_is_sigmoids_on_every_pixel_and_a_dense_layer():
    network, x = one_layer(3, 4, 5, units=2), torch.rand(2, 3, 5, 5)
    pixel, _, _, dense = network
    inside = torch.einsum("bchw,uc->buhw", x, pixel.weight[:, :, 0, 0]) + pixel.bias[:, None, None]
    expected = torch.sigmoid(inside).flatten(1) @ dense.weight.T + dense.bias
    assert torch.allclose(network(x), expected, atol=1e-6)


def test_sgd_has_momentum():
    module = Classifier(one_layer, 1, 2, 4, optimizer="sgd", schedule="constant", lr=0.001)
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.001, 0.9)
