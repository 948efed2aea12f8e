"""The LightningModule that trains one predictor of the ensemble."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lit_xai.calls import evaluating
from lit_xai.errors import UsageError
from lit_xai.models.calibration import SPREAD, CalibratedData
from lit_xai.models.lipschitz import Temperature, fitted_temperature, plain
from lit_xai.models.pretrained import Normalise
from lit_xai.models.steps import Steps
from lit_xai.models.trainable import Trainable, check_choice
from lit_xai.rng import stable_hash

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.MultiheadAttention)  # layers that have weights to damage
FITTED = 2000  # most training images that a temperature is fitted to
LOSSES = ("cross_entropy", "tau_cross_entropy", "hkr")
RECORD = ("auto", "never")


class Classifier(Trainable):
    """Images in [0, 1] to logits; normalisation is part of the model.

    Args:
        network: called as `network(channels=, classes=, side=)`.
        channels, classes, side: given by the data.
        colour: mean and standard deviation per channel of the training folds.
        lr, weight_decay, schedule, optimizer: see `Trainable`.
        label_smoothing: of the cross-entropy.
        loss: `cross_entropy`; `tau_cross_entropy` and `hkr` are deel-torchlip's, for 1-Lipschitz networks.
        tau: temperature of `tau_cross_entropy`; the predictor is softmax(tau z), as it is trained.
        hkr_alpha, hkr_margin: weight of the hinge term and margin of `hkr`.
        scale: divide by the standard deviation as well (must be off where the Lipschitz constant counts).
        record: `auto` records steps of a small network as a CUDA graph where one GPU trains (see `Steps`); `never` launches
            every kernel.

    Attributes:
        calibration: the positive factor on the predictor's logits that fits images best that the gradient never saw, see
            `CalibratedData`; None = it was not asked for.
        hides: `(images, epoch=) -> images` as a training step sees them; None = as they are.
    """

    temperature: Tensor
    calibration: Tensor | None
    hides: Callable[..., Tensor] | None = None
    steps: Steps | None = None  # of the training that goes on

    def __init__(
        self,
        network: Callable[..., nn.Module],
        channels: int,
        classes: int,
        side: int,
        colour: Sequence[Sequence[float]] = ((0.5,), (0.5,)),
        lr: float = 3e-3,
        weight_decay: float = 0.0,
        schedule: str = "onecycle",
        label_smoothing: float = 0.0,
        loss: str = "cross_entropy",
        tau: float = 20.0,
        hkr_alpha: float = 0.95,
        hkr_margin: float = 0.1,
        scale: bool = True,
        optimizer: str = "adamw",
        record: str = "auto",
    ) -> None:
        super().__init__(lr, weight_decay, schedule, optimizer)
        check_choice(loss, LOSSES, "loss")
        check_choice(record, RECORD, "record")
        if classes < 2:
            raise UsageError(
                f"a classifier needs at least 2 classes and the data have {classes}: point data.root= at a folder with one "
                f"sub-folder a class, or explain pictures without labels by data=pictures model=pretrained"
            )
        mean, std = colour
        self.normalise = Normalise(mean, std if scale else [1.0] * len(std))
        self.network = network(channels=channels, classes=classes, side=side)
        self.label_smoothing, self.loss_name, self.trained_tau = label_smoothing, loss, tau
        self.record = record
        self.hkr_alpha, self.hkr_margin = hkr_alpha, hkr_margin
        self.classes = classes
        self.register_buffer("temperature", torch.tensor(1.0), persistent=loss == "hkr")
        self.register_buffer("calibration", None)
        self.val_accuracy = MulticlassAccuracy(classes, average="micro")
        self.test_accuracy = nn.ModuleList([MulticlassAccuracy(classes, average="micro") for _ in range(2)])

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.network(self.normalise(images))

    @property
    def tau(self) -> float:
        """The factor on the network's outputs that it is trained at."""
        return {"tau_cross_entropy": self.trained_tau, "hkr": float(self.temperature)}.get(self.loss_name, 1.0)

    def predictor(self) -> nn.Module:
        """The network to explain: evaluation mode, plain layers, normalisation first; last the temperature that it is trained at,
        times the calibration.
        """
        layers = [self.normalise, plain(self.network)]
        tau = self.tau if self.calibration is None else self.tau * float(self.calibration)
        return nn.Sequential(*layers, *([Temperature(tau)] if tau != 1 else [])).eval()

    def on_train_start(self) -> None:
        """Steps on one GPU are recorded; those of several wait for each other in between."""
        alone = self.device.type == "cuda" and self.trainer.world_size == 1
        self.steps = Steps(self, self.plain_loss) if alone and self.record == "auto" else None

    def on_validation_end(self) -> None:
        """Whatever ran between two steps may have put other tensors in place of the module's."""
        if self.steps is not None:
            self.steps.look()

    def on_train_end(self) -> None:
        """HKR trains at no temperature: the one that fits the training folds best is kept with the weights. Then the calibration."""
        self.steps = None
        if self.loss_name == "hkr" and self.data is not None:
            samples = self.data.split.training(self.data.fold)[:FITTED]
            self.temperature.fill_(fitted_temperature(*self.answers(self.data, samples)))
        if isinstance(self.data, CalibratedData):
            logits, labels = self.answers(self.data, self.data.kept_back)
            self.calibration = self.temperature.new_tensor(fitted_temperature(logits * self.tau, labels, SPREAD))

    def answers(self, data: Any, samples: Tensor) -> tuple[Float[Tensor, "n k"], Tensor]:
        """The network's outputs for samples `[n]` of a `FoldData`, in evaluation mode, and their labels."""
        images = data.source.train
        with torch.no_grad(), evaluating(self):
            parts = [self(images.images(part.tolist()).to(self.device)).cpu() for part in samples.split(250)]
        return torch.cat(parts), data.split.label(samples)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        """A checkpoint of before says no temperature: it is 1 then. One of a calibrated network says its calibration."""
        if f"{prefix}calibration" in state_dict:
            self.calibration = torch.ones_like(self.temperature)
        if self.loss_name == "hkr":
            state_dict.setdefault(f"{prefix}temperature", torch.tensor(1.0))
        super()._load_from_state_dict(state_dict, prefix, *more)

    # ------------------------------------------------------------------------------------------------------- training

    def loss(self, logits: Float[Tensor, "b k"], labels: Tensor) -> Tensor:
        """The training loss of a batch with labels `[b]`."""
        if self.loss_name == "cross_entropy":
            return nn.functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        import deel.torchlip as lip

        if self.loss_name == "tau_cross_entropy":
            return lip.TauCrossEntropyLoss(self.trained_tau, label_smoothing=self.label_smoothing)(logits, labels)
        one_hot = nn.functional.one_hot(labels, self.classes)
        return lip.HKRMulticlassLoss(alpha=self.hkr_alpha, min_margin=self.hkr_margin)(logits, one_hot)

    def batch_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The training loss of a batch."""
        images, labels = batch
        if self.hides is not None:
            images = self.hides(images, epoch=self.current_epoch)
        return self.plain_loss(images, labels) if self.steps is None else self.steps(images, labels)

    def plain_loss(self, images: Float[Tensor, "b c h w"], labels: Tensor) -> Tensor:
        """The training loss of images as they are, labels `[b]`."""
        return self.loss(self(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Accuracy on images `[b, c, h, w]` of V_i: watched, never used to select."""
        images, labels = batch
        self.val_accuracy(self(images), labels)
        self.log("val/acc", self.val_accuracy, prog_bar=True, on_epoch=True, on_step=False)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int, dataloader_idx: int = 0) -> None:
        """Accuracy on images `[b, c, h, w]` of V_i (loader 0) and of the fixed test split (loader 1)."""
        images, labels = batch
        accuracy: Any = self.test_accuracy[dataloader_idx]
        accuracy(self(images), labels)
        name = ("heldout/acc", "test/acc")[dataloader_idx]
        self.log(name, accuracy, on_epoch=True, on_step=False, add_dataloader_idx=False)

    # -------------------------------------------------------------------------------------------------- degradation

    @torch.no_grad()
    def add_weight_noise(self, share: float, seed: int, fold: int, sigma: float = 0.5) -> None:
        """Gaussian noise of standard deviation `sigma` on `share` of the weights of convolutions, linear layers and attention.

        The weights chosen at a smaller share are among those at a larger one, with the same noise (Fel et al., E.2; they damage
        convolutions, which are all but the last layer of a ResNet and 1 % of a transformer).
        Kernels that a parametrisation keeps are recomputed, also for a share of 0.
        """
        if not 0 <= share <= 1:
            raise UsageError(f"weight_noise must lie in [0, 1], found {share}")
        for name, p in weights_of(self.network) if share else ():
            g = torch.Generator().manual_seed(stable_hash(seed, "weight_noise", fold, name))
            rank = torch.rand(p.numel(), generator=g).argsort().argsort().view_as(p)
            noise = torch.randn(p.shape, generator=g) * sigma
            p += torch.where(rank < round(share * p.numel()), noise, 0.0).to(p)
        refresh(self.network)


def weights_of(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Weight matrices and kernels by their layer's name; under a parametrisation the raw ones."""
    for name, module in network.named_modules():
        if isinstance(module, WEIGHTED):
            own = [
                p for n, p in module.named_parameters() if p.ndim > 1 and ("." not in n or n.startswith("parametriz"))
            ]
            yield from ((f"{name}.{i}" if i else name, p) for i, p in enumerate(own))


def refresh(network: nn.Module) -> None:
    """Recompute the kernels that deel-torchlip's parametrisations keep from their last training step."""
    for module in network.modules():
        if nn.utils.parametrize.is_parametrized(module):
            modes = [(m, m.training) for m in module.modules()]
            module.train()
            _ = module.weight  # reading it runs the parametrisation
            for m, mode in modes:
                m.training = mode
