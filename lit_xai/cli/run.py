"""From a composed configuration to the objects of one run: data, module, trainer, callbacks, folder."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from lightning_fabric import Fabric
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from lit_xai.callbacks import (
    Context,
    Curves,
    Domain,
    Explain,
    FillerReport,
    Gallery,
    Logged,
    Report,
    SamplerReport,
    SanityCheck,
    Shortcut,
    Stability,
)
from lit_xai.callbacks.explain import TEST_PROBES
from lit_xai.cli.build import (
    build,
    build_data,
    build_logger,
    build_module,
    check_targets,
    filler_named,
    finish,
    fit_pictures,
    is_given,
    plain,
    read_config,
    shape_of,
    training_of,
)
from lit_xai.cli.schema import experiment_name, typed
from lit_xai.cli.values import check_values, without_unchosen
from lit_xai.cluster.interruption import Interrupted, Interruption, environment, requeue
from lit_xai.core import Explainer, Filler, Score, as_explainer, as_filler, as_score, refuse_channels
from lit_xai.data.folds import FoldData
from lit_xai.data.images import check_show
from lit_xai.engine import Tasks
from lit_xai.errors import UsageError
from lit_xai.fillers.hiding import Hiding
from lit_xai.metrics.in_domain import InDomain
from lit_xai.models.calibration import CalibratedData
from lit_xai.models.classifier import Classifier
from lit_xai.models.resnet import stem_for
from lit_xai.models.trainable import STEPS, SamplerModule, TrainedModule, epochs_for
from lit_xai.report import printed
from lit_xai.store.files import load_weights, write_atomically
from lit_xai.store.fold import FoldStore, differences
from lit_xai.store.names import CHECKS, SHORTCUTS
from lit_xai.store.plans import PLANS, plan_text

PLACE = ("accelerator", "devices", "num_nodes", "strategy")  # of the trainer's options: where it runs


@dataclass
class Run:
    """One command's work on one fold, built when it is asked for."""

    cfg: DictConfig
    job_type: str

    def __post_init__(self) -> None:
        self.cfg = without_unchosen(self.cfg)
        check_values(self.cfg)
        check_targets(plain(self.cfg))
        self.check_training()
        if not 0 <= self.cfg.fold < self.cfg.data.folds:
            raise UsageError(
                f"fold={self.cfg.fold} does not exist: folds are 0..{self.cfg.data.folds - 1} "
                f"(data.folds={self.cfg.data.folds})"
            )

        there = (config["data"] for _, config in self.trained_folds())
        fit_pictures(self.cfg.data, plain(self.cfg.model), there)

    def check_training(self) -> None:
        """Refuse damage and options of a training that this model has no use for."""
        c = self.cfg
        if self.is_sampler and (c.label_noise or c.weight_noise):
            raise UsageError(f"model={c.model.name} has no use for label_noise and weight_noise: leave them at 0")
        if c.train_seed is not None and not self.trainable:
            raise UsageError(f"model={c.model.name} is not trained here: leave train_seed= alone")
        if (c.hide or c.calibrate) and (self.is_sampler or not self.trainable):
            raise UsageError(
                f"model={c.model.name} is no classifier that is trained here: leave hide= and calibrate= alone"
            )
        if c.data.get("plant") and (self.is_sampler or not self.trainable):
            raise UsageError(
                f"model={c.model.name} is no classifier that is trained here, and learns no shortcut: leave data.plant= out"
            )

    @property
    def name(self) -> str:
        """The experiment's folder name."""
        return experiment_name(self.cfg)

    @cached_property
    def store(self) -> FoldStore:
        """The store in the fold's folder."""
        return FoldStore(Path(self.cfg.root) / self.name / f"fold={self.cfg.fold}")

    @property
    def checkpoint(self) -> Path:
        """Where the trained model lies."""
        return self.store.root / "model.ckpt"

    @property
    def resume_from(self) -> Path:
        """The state after the last complete epoch."""
        return self.store.root / "last.ckpt"

    @cached_property
    def interruption(self) -> Interruption:
        """What notices signals and saves where the training stands."""
        return Interruption(self.resume_from)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A signal ends the command where the same command goes on; near a time limit the job is put into the queue again."""
        try:
            with self.interruption.listening():
                yield
        except Interrupted as e:
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                then = requeue() if e.number == signal.SIGUSR1 else "run the same command to go on"
                print(f"{e}; {then}", flush=True)
            raise SystemExit(128 + e.number) from None

    @cached_property
    def data(self) -> FoldData:
        """The data set, its split and loaders."""
        cfg = plain(self.cfg)
        kind = CalibratedData if cfg["calibrate"] else FoldData
        return build_data(cfg["data"], cfg["fold"], cfg["seed"], cfg["label_noise"], cfg["train_seed"], kind)

    @cached_property
    def hiding(self) -> Hiding | None:
        """How random cells of the training images are hidden; None = they are seen whole."""
        return Hiding(filler_named(self.cfg.hide, self.cfg), self.cfg.hide_cells) if self.cfg.hide else None

    @cached_property
    def explainers(self) -> dict[str, Explainer]:
        """The explainers by name; none where a training explains nothing."""
        return (
            {} if self.job_type == "train" and not self.cfg.explain else build(self.cfg.get("explainer"), as_explainer)
        )

    @cached_property
    def fillers(self) -> dict[str, Filler]:
        """By name; those whose removal of objects is measured."""
        return build(self.cfg.get("filler"), as_filler)

    @cached_property
    def scores(self) -> dict[str, Score]:
        """By name; those of the network's domain hide as its training did."""
        found = build(self.cfg.get("score"), as_score)
        return {n: s.within(self.hiding, f"score.{n}") if isinstance(s, InDomain) else s for n, s in found.items()}

    def module(self) -> pl.LightningModule:
        """A fresh module; its initial weights are a function of the seed of training (the same for every fold)."""
        pl.seed_everything(self.data.train_seed, workers=True, verbose=False)
        module = build_module(plain(self.cfg.model), shape_of(self.data), self.data.colour)
        if self.hiding is not None and isinstance(module, Classifier):
            module.hides = partial(self.hiding.fitted(self.data.trained_on).shown, seed=self.data.train_seed)
        return module

    def trained_folds(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The folds that lie in this experiment's folder, and the configuration of each."""
        for file in sorted(self.store.root.parent.glob("fold=*/config.yaml")):
            if any((file.parent / f).exists() for f in ("model.ckpt", "last.ckpt", "predictions.safetensors")):
                yield file.parent, read_config(file)  # any other run came to nothing

    def fill_in(self) -> None:
        """Put into the configuration what it leaves to the data: the stem, and how many epochs.

        The folds of an ensemble are alike: what is left open is taken from those that are there.
        """
        there: dict[str, Any] = next((config for _, config in self.trained_folds()), {})
        network: Any = self.cfg.model.get("network") or {}
        trainer = self.cfg.trainer
        if network.get("stem") == "auto":
            had = (there.get("model", {}).get("network") or {}).get("stem")
            network.stem = had if had in ("small", "large") else stem_for(shape_of(self.data)["side"])
        if not any(o.lstrip("+").startswith("trainer.max_epochs=") for o in self.overrides):
            had = there.get("trainer", {}).get("max_epochs")
            trainer.max_epochs = had if isinstance(had, int) and had > 0 else trainer.max_epochs
        if trainer.max_epochs is None:
            train = self.job_type == "train"  # else the number is not used
            batches = len(self.data.train_dataloader()) if train else STEPS
            trainer.max_epochs = epochs_for(batches, trainer.get("accumulate_grad_batches") or 1)

    def check_folder(self) -> None:
        """Fill in what the configuration leaves open; refuse a folder that holds results of another one."""
        self.fill_in()
        self.check_channels()
        mine = plain(self.cfg)
        for folder, theirs in self.trained_folds():
            there, here = training_of(theirs), training_of(mine)
            if self.job_type != "train":  # how long it was trained is the checkpoint's affair
                there.pop("trainer"), here.pop("trainer")
            difference = differences(there, here)
            if difference:
                raise UsageError(
                    f"{folder} holds another configuration ({'; '.join(difference[:3])}): "
                    f"choose another name=, or restore these settings"
                )

    def check_channels(self) -> None:
        """Refuse what cannot use images of so many channels, before anything is trained.

        Raises:
            UsageError: naming the explainer, score or filler.
        """
        channels = shape_of(self.data)["channels"]
        check_show(self.data.show, channels)
        refuse_channels(self.explainers, channels, "explainer.")
        refuse_channels(self.scores, channels, "score.")
        refuse_channels(self.fillers, channels, "filler.")

    @rank_zero_only
    def claim(self) -> None:
        """Leave this run's configuration in its folder (explaining does not replace the training's)."""
        mine, config = plain(self.cfg), self.store.root / "config.yaml"
        if not config.exists() or (self.job_type == "train" and read_config(config) != mine):
            write_atomically(config, OmegaConf.to_yaml(OmegaConf.create(mine)))
        if self.job_type == "train":
            counts = {
                "folds": self.cfg.data.folds,
                "explains": int(bool(self.explainers)),
                "sampler": int(self.is_sampler),
            }
            plan = plan_text("train", self.overrides, **counts)
            write_atomically(self.store.root / PLANS / "train.json", plan)

    @property
    def overrides(self) -> list[str]:
        """The command line's, without lists that are the default."""
        given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
        return typed(given)

    def printed_beside(self, table: str) -> tuple[printed.Printed, ...]:
        """What papers print beside a table of ours, of this network."""
        return printed.of_table(printed.read(plain(self.cfg.get("printed"))), table, self.cfg.model.name)

    def reports(self) -> list[Report]:
        """Explain, then what is drawn from explanations; of a sampler, its report."""
        c = self.cfg
        if self.is_sampler:
            return [SamplerReport(self.store, c.seed)]
        if c.get("sanity"):
            ways = [c.sanity] if isinstance(c.sanity, str) else list(c.sanity)
            number = {"stages": c.sanity_stages, "number": c.sanity_images, "seed": c.seed, "progress": c.progress}
            check = SanityCheck(
                self.explainers, self.store, ways, self.of_random_labels, batch_size=c.batch_size, **number
            )
            return [check]
        explain = self.explain(c.get("probes", "random"))
        if explain.probes == "disagreements" and c.target == "label" and self.data.source.labelled:
            return [explain, self.explain("decisions")]
        if explain.probes != "random":
            return [explain]
        again = [self.explain(kind) for kind in CHECKS] if c.checks else []
        logged = Logged(self.store, self.explainers, trained=self.job_type == "train")
        after: list[Report] = [Gallery(self.store, self.explainers), logged]
        if self.cfg.data.folds > 1:
            after.insert(0, Stability(self.store, list(self.explainers), c.seed))
        if c.checks and self.scores:
            hiding = self.hiding
            after.append(Domain(self.store, self.explainers, self.scores, hiding, c.target, c.checks, c.seed))
        if c.data.get("plant"):
            after.append(Shortcut(self.store, c.seed))
        if self.fillers:
            beside = self.printed_beside(printed.REMOVAL)
            after.append(FillerReport(self.store, self.fillers, c.seed, inception=c.get("inception"), beside=beside))
        if c.get("curves"):
            after.append(Curves(self.store, list(self.explainers), self.scores, c.target, c.seed, c.batch_size))
        return [explain, *again, *after]

    def explain(self, probes: str) -> Explain:
        """The pass over these probes."""
        c = self.cfg
        return Explain(
            self.explainers,
            self.scores,
            self.store,
            probes=probes,
            seed=c.seed,
            batch_size=c.batch_size,
            shard_size=c.shard_size,
            target=c.target,
            cap=c.cap,
            checks=c.checks,
            tests=c.get("test_probes", TEST_PROBES),
            part=c.get("part", "0/1"),
            progress=c.progress,
            command=(self.job_type, self.overrides),
            nodes=plain(c.get("explainer") or {}),
        )

    def logger(self) -> Any:
        """The dashboard's logger (nothing on other ranks: Lightning sees to that)."""
        return build_logger(plain(self.cfg), self.store.root.parent, f"fold={self.cfg.fold}", self.job_type)

    def trainer(self, callbacks: list[pl.Callback], logger: Any) -> pl.Trainer:
        """Lightning's Trainer with what this project needs of it."""
        options = dict(plain(self.cfg.trainer))
        options.pop("_target_")
        for file in self.store.root.glob("hpc_ckpt_*"):
            # left by Lightning's own SLURM handler (of another program): it would be loaded over the weights we give
            file.unlink(missing_ok=True)
        self.check_accelerator(options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pl.Trainer(
                **options,
                callbacks=[self.interruption, *callbacks],
                plugins=environment(),
                logger=logger if logger is not None else False,
                default_root_dir=str(self.store.root),
                inference_mode=False,  # gradients are needed after trainer.test
                use_distributed_sampler=False,  # our samplers share without padding
                num_sanity_val_steps=0,
                enable_model_summary=False,
                enable_progress_bar=bool(self.cfg.progress),
                log_every_n_steps=min(10, len(self.data.train_dataloader())) if self.data.source.labelled else 10,
            )

    def load(self) -> pl.LightningModule:
        """The trained module of this fold."""
        module = self.module()
        if self.trainable:
            load_weights(module, self.checkpoint)
        return module

    def of_random_labels(self) -> torch.nn.Module:
        """The predictor of the same fold that was trained on random labels, to explain."""
        name = f"{self.store.root.parent.name}-label_noise=1.0"
        file = self.store.root.parent.with_name(name) / self.store.root.name / "model.ckpt"
        if not file.exists():
            raise UsageError(
                f"{file} is missing: train it by python -m lit_xai.train label_noise=1.0 name={name} "
                f"fold={self.cfg.fold} with the same data and model"
            )
        module = self.module()
        load_weights(module, file)
        return module.predictor()  # type: ignore[operator]

    @cached_property
    def fabric(self) -> Fabric:
        """The processes and devices that the trainer's configuration asks for, without a Trainer."""
        options = {k: v for k, v in plain(self.cfg.trainer).items() if k in PLACE}
        self.check_accelerator(options)
        return Fabric(**options, plugins=environment())

    @contextmanager
    def launched(self, module: pl.LightningModule) -> Iterator[Context]:
        """This command in all its processes, with a trained module and a logger."""
        fabric, logger = self.fabric, self.logger()
        self.interruption.launcher = fabric.strategy.launcher
        fabric.launch()
        loggers = [] if logger is None else [logger]
        module = module.to(fabric.device)
        places = fabric.device, fabric.global_rank, fabric.world_size
        with torch.no_grad():
            yield Context(module, self.data, *places, loggers, fabric.barrier, self.interruption.pause)
        if fabric.is_global_zero:
            finish(logger)

    @staticmethod
    def check_accelerator(options: Mapping[str, Any]) -> None:
        """Refuse a GPU that is not there."""
        if options.get("accelerator") == "gpu" and not torch.cuda.is_available():
            raise UsageError("trainer=gpu, ddp and their bf16 forms need a GPU and none is found: use trainer=cpu")

    @property
    def device(self) -> torch.device:
        """Where this process's models run."""
        return self.fabric.device

    @property
    def table(self) -> Path:
        """The scores of all probes, written when all parts are done."""
        return self.store.root / "scores.csv"

    def complete(self, explain: Explain, tasks: Tasks) -> bool:
        """Whether a part has nothing left to do; the table of all parts is whose shards end last, or whoever comes next."""
        if tasks or not self.store.predictions_file.exists():
            return False
        judged = not self.cfg.data.get("plant") or (self.store.root / SHORTCUTS).exists()
        return explain.probes != "random" or (self.table.exists() and judged) or not tasks.others_finished()

    def require_trained(self) -> None:
        """Refuse a fold that is not trained yet."""
        if self.trainable and not self.checkpoint.exists():
            raise UsageError(
                f"{self.checkpoint} is missing: run python -m lit_xai.train with the same options and fold={self.cfg.fold} first"
            )

    @property
    def trainable(self) -> bool:
        """Whether this model is trained here."""
        return issubclass(get_object(self.cfg.model._target_), TrainedModule) and not is_given(self.cfg.model)

    @property
    def is_sampler(self) -> bool:
        """Whether this model draws images or parts of them (and explains nothing)."""
        return issubclass(get_object(self.cfg.model._target_), SamplerModule)
