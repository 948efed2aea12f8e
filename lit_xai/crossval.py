"""The same split, store, explainers and measures for anybody's model and data, without a config file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_xai import engine
from lit_xai.calls import Gate
from lit_xai.cli.build import HOW, say
from lit_xai.cli.loaded import ImagesOf, LoadedFold, MapsOf, load, outputs_of, predictor_of
from lit_xai.core import Explainer, Score, as_explainer, as_score
from lit_xai.data.folds import Disagreements, Split
from lit_xai.data.items import MapStyle, Samples
from lit_xai.errors import UsageError
from lit_xai.fitting import TrainedOn, code_digest, describe, plain_value
from lit_xai.models.outputs import AsLogits
from lit_xai.report import audit as report_audit
from lit_xai.report import conditions, page
from lit_xai.report.cases import draw_worst
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.summarise import summarise
from lit_xai.report.summary import Summary
from lit_xai.rng import stable_hash
from lit_xai.store.files import load_weights, read_checkpoint, save_weights
from lit_xai.store.fold import FoldStore, differences
from lit_xai.store.names import CHECKS, DECISIONS, DISAGREEMENTS, RANDOM
from lit_xai.store.plans import LIBRARY, plan_text

Train = Callable[[nn.Module, Dataset, int], None]


def audit(
    model: nn.Module | Callable[[], nn.Module],
    dataset: Any,
    explainers: Mapping[str, Explainer | Callable[..., Any]] | None = None,
    root: str | Path = "checkpoints/mine",
    *,
    classes: Sequence[str] = (),
    asked: Mapping[str, Any] | None = None,
    **options: Any,
) -> report_audit.Audit:
    """Can the explanations of a model be trusted? The verdict is printed, and `root` has the page, `audit.html`.

    Args:
        model: a trained module, of which is said what needs no others (see `explain_model`; `dataset` is what it never saw); or a
            function that makes a fresh one, of which k are trained by cross-validation (see `explain_folds`).
        dataset: map-style, `(image [c, h, w] in [0, 1], label)`; see `explain_folds`.
        explainers: by name; None takes six common ones (`common`) and every null.
        root: folder of this model and data set; a call that was interrupted goes on where it was.
        classes: their names.
        asked: conditions as in `configs/conditions/default.yaml`; None = those.
        options: further ones of `explain_model` or `explain_folds`.

    Returns:
        The audit: `verdict`, `summary`, and `plain`, what `audit.json` holds.

    Raises:
        UsageError: the data, the model, the conditions or the folder cannot be used; the message says how to mend it.
    """
    questions = conditions.default() if asked is None else conditions.read(asked)
    if isinstance(model, nn.Module) and "groups" in options:
        raise UsageError("groups= keeps samples together in one fold, and a trained model has none: leave it out")
    read = options.pop("cache", False), options.pop("groups", None), classes, options.pop("show", None)
    dataset = Samples.of(dataset, lambda image: outputs_of(model, image), *read)
    if isinstance(model, nn.Module):
        summary = explain_model(model, dataset, common(model) if explainers is None else explainers, root, **options)
    else:
        methods = common(predictor_of(model())) if explainers is None else explainers
        summary = explain_folds(model, dataset, methods, root=root, **options)
    ensemble = Ensemble(root, options.get("seed", 0))
    found = report_audit.Audit.of(ensemble, summary, questions, classes=tuple(classes) or dataset.labels.names)
    report_audit.show([found])
    files = report_audit.write([found], Path(root))
    say(f"written: {', '.join(map(str, files))}")
    return found


def common(model: nn.Module) -> dict[str, Explainer]:
    """Six common methods, five where the model has no convolution for Grad-CAM, and every null."""
    from lit_xai import explainers as e

    methods = {
        "saliency": e.Saliency(),
        "gradient_input": e.GradientInput(),
        "integrated_gradients": e.IntegratedGradients(steps=30),
        "smoothgrad": e.SmoothGrad(samples=30),
        "rise": e.RISE(masks=500),
    }
    if any(isinstance(m, nn.Conv2d) for m in model.modules()):
        methods["gradcam"] = e.GradCAM()
    nulls = {"random": e.Random(), "image": e.Image(), "edges": e.Edges(), "centre": e.Centre()}
    return {**methods, **nulls, "image_random": e.ImageRandom()}


def explain_folds(
    make_module: Callable[[], nn.Module],
    dataset: Any,
    explainers: Mapping[str, Explainer | Callable[..., Any]],
    k: int = 5,
    root: str | Path = "checkpoints/mine",
    *,
    scores: Mapping[str, Score] | None = None,
    train: Train | None = None,
    trainer: Mapping[str, Any] | None = None,
    probes_per_fold: int | None = 50,
    cap: int | None = 200,
    checks: int = 12,
    seed: int = 0,
    training_batch: int = 64,
    batch_size: int = 16,
    shard_size: int = 64,
    device: str | torch.device = "cpu",
    distance: str = "spearman",
    outputs: str | None = None,
    progress: bool = True,
    groups: Sequence[Any] | Tensor | None = None,
    cache: bool = False,
    show: Sequence[int] | None = None,
) -> Summary:
    """Train k predictors by cross-validation, explain held-out samples, and measure how far the maps can be trusted.

    The files under `root` are those of the commands: `python -m lit_xai.evaluate name=<root>` reads them, and a call
    that was interrupted goes on where it was.

    Args:
        make_module: a fresh LightningModule (trained by Lightning), or a plain module (with `train`); called under the
            seed. It maps images in [0, 1] to logits. If it has `predictor()`, that is what gets explained.
        dataset: map-style, `(image [c, h, w] in [0, 1], label)`, or what `lit_xai.data.items` makes that of: pictures of Pillow's,
            dictionaries, words as labels.
        explainers: by name, or plain functions of the same call; include `random=Random()` for a null.
        k: folds.
        root: folder of this experiment; one per model, data set and way of training. Predictors that are there are reused where
            their module's code, hyper-parameters and first weights, `train`, `trainer` and `training_batch` are as they were.
        scores: by name; None takes muFidelity (of pixels and of 7 x 7 cells), deletion and insertion. `{}` takes none.
        train: `train(module, training_set, fold)`, for modules that are not LightningModules.
        trainer: options of `pytorch_lightning.Trainer`, e.g. `dict(max_epochs=5)`.
        probes_per_fold: random samples of every fold that are explained by every predictor; None = all.
        cap: most disagreements explained per fold.
        checks: held-out probes of a fold that are explained again with fresh weights, and with other noise; 0 = none.
        seed: of the split, the initial weights, the order and all noise.
        training_batch: batch of the loader that Lightning gets.
        batch_size, shard_size: images per explainer call, probes per file.
        device: where models are explained.
        distance: between maps, see `lit_xai.metrics.DISTANCES`.
        outputs: what the module gives, see `lit_xai.models.AsLogits`; None = logits, and what is none is refused.
        progress: show bars.
        groups: a value a sample, equal where samples belong together (a patient's, a scene's); no group lies in two folds.
        cache: read every sample once and keep its image: for data sets that give another one at each reading.
        show: of images of several channels, those that pictures are drawn of, as `[3, 2, 1]`.

    Returns:
        The summary, also written to `root` (summary.json, .csv, .tex, histograms, report.html).

    Raises:
        UsageError: the data, the module or the folder cannot be used, or the folder's predictors were trained otherwise; the
            message says how to mend it.
    """
    if k < 2:
        raise UsageError(f"cross-validation needs at least 2 folds, found k={k}")
    options = (train, trainer or {}, seed, training_batch)
    data = Samples.of(dataset, lambda image: outputs_of(make_module, image), cache, groups, show=show)
    how = {"batch_size": batch_size, "shard_size": shard_size, "device": torch.device(device)}
    study = Study.of(
        lambda split, fold, store: trained(make_module, data, split, fold, store, *options),
        *(data, explainers, scores, k, root, seed, how, outputs),
    )
    study.explain(probes_per_fold, cap, checks, progress)
    return study.summarise(distance, progress)


def explain_model(
    model: nn.Module,
    dataset: Any,
    explainers: Mapping[str, Explainer | Callable[..., Any]],
    root: str | Path = "checkpoints/mine",
    *,
    scores: Mapping[str, Score] | None = None,
    probes: int | None = None,
    checks: int = 12,
    seed: int = 0,
    batch_size: int = 16,
    shard_size: int = 64,
    device: str | torch.device = "cpu",
    outputs: str | None = None,
    progress: bool = True,
    cache: bool = False,
    show: Sequence[int] | None = None,
) -> Summary:
    """Explain images that one trained model never saw: what can be said of its maps without training others.

    MeGe and ReCo need predictors of other folds; scores, `sanity` and `repeat` do not. The files are those of `explain_folds`.

    Args:
        model: images in [0, 1] -> logits. If it has `predictor()`, that is what gets explained.
        dataset: map-style, `(image [c, h, w] in [0, 1], label)`, of images that it was not trained on; see `explain_folds`.
        explainers: by name, or plain functions of the same call.
        root: folder of this model and data set.
        scores: by name; None takes muFidelity (of pixels and of 7 x 7 cells), deletion and insertion. `{}` takes none.
        probes: random samples that are explained; None = all.
        checks: of these, how many are explained again with fresh weights, and with other noise; 0 = none.
        seed: of the choice of probes and of all noise.
        batch_size, shard_size: images per explainer call, probes per file.
        device: where the model is explained.
        outputs: what it gives, see `lit_xai.models.AsLogits`; None = logits, and what is none is refused.
        progress: show bars.
        cache, show: see `explain_folds`.

    Returns:
        The summary, also written to `root`.

    Raises:
        UsageError: the data or the folder cannot be used; the message says how to mend it.
    """
    how = {"batch_size": batch_size, "shard_size": shard_size, "device": torch.device(device)}
    own = copy.deepcopy(model)  # the user's stays in its mode, on its device
    data = Samples.of(dataset, lambda image: outputs_of(own, image), cache, show=show)
    study = Study.of(lambda split, fold, store: own, data, explainers, scores, 1, root, seed, how, outputs)
    study.explain(probes, None, checks, progress)
    return study.summarise("spearman", progress)


@dataclass(frozen=True)
class Study:
    """Predictors of one data set, and what is to be explained of them.

    Attributes:
        module: `(split, fold, its store) -> module`, the trained one of a fold.
        images: of the data set.
        split: its folds; one fold is no split.
        methods, scores: by name.
        root: where results go.
        shared: what all folds have in common.
        how: options of every `engine.Job`.
        outputs: what modules give; None = logits.
    """

    module: Callable[[Split, int, FoldStore], nn.Module]
    images: MapStyle
    split: Split
    methods: Mapping[str, Explainer]
    scores: Mapping[str, Score]
    root: Path
    shared: Mapping[str, Any]
    how: Mapping[str, Any]
    outputs: str | None = None

    @staticmethod
    def of(
        module: Callable[[Split, int, FoldStore], nn.Module],
        data: Samples,
        explainers: Mapping[str, Explainer | Callable[..., Any]],
        scores: Mapping[str, Score] | None,
        k: int,
        root: str | Path,
        seed: int,
        how: Mapping[str, Any],
        outputs: str | None = None,
    ) -> Study:
        """That of a data set of one's own; see `explain_folds`."""
        from lit_xai.fillers import BlurOrMean
        from lit_xai.metrics import Deletion, Insertion, MuFidelity

        if scores is None:
            faithful = {"mufidelity": MuFidelity(), "mufidelity_cells": MuFidelity(grid=7)}
            scores = {**faithful, "deletion": Deletion(), "insertion": Insertion(filler=BlurOrMean())}
        methods = {name: as_explainer(e, f"explainer {name}") for name, e in explainers.items()}
        scores = {name: as_score(s, f"score {name}") for name, s in scores.items()}
        data.check(methods, scores)
        split = data.split(k, seed)
        say("\n".join(notes)) if (notes := data.notes(split)) else None
        shared = {**data.shared(split), **({"outputs": outputs} if outputs else {})}
        return Study(module, data.images, split, methods, scores, Path(root), shared, {"seed": seed, **how}, outputs)

    def store(self, fold: int) -> FoldStore:
        """The files of a fold."""
        return FoldStore(self.root / f"fold={fold}")

    def job(
        self, fold: int, kind: str, samples: Int[Tensor, "p"], classes: Int[Tensor, "p"], cap: int | None = None
    ) -> engine.Job:
        """A fold's predictor and the probes of one pass."""
        split, k, shared = self.split, self.split.k, self.shared
        model = predictor_of(self.module(split, fold, self.store(fold)))
        model = AsLogits(model, self.outputs) if self.outputs else model
        known = split.training(fold) if k > 1 else split.samples
        held_out = f"fold {fold} of {k} held out{f', groups {g}' if (g := shared.get('groups')) else ''}"
        about = f"{shared['data']} ({shared['content']}), {shared['samples']} samples, seed {split.seed}, {held_out}"
        colour = tuple(self.images.images(known[:500].tolist()).mean((0, 2, 3)).tolist())
        shape = tuple(self.images.images([0])[0].shape)
        return engine.Job(
            model=model,
            images=self.images,
            samples=samples,
            targets=classes,
            store=self.store(fold),
            shared={**shared, **({"cap": cap} if kind in (DISAGREEMENTS, DECISIONS) else {})},
            trained_on=TrainedOn(colour, fold, len(known), about, shape) if k > 1 else TrainedOn(colour, shape=shape),
            kind=kind,
            **self.how,
        )

    def plan(self, fold: int, kind: str, number: int) -> None:
        """Say what there is to do."""
        options = {"folds": self.split.k, "explains": 1, "sampler": 0}
        self.store(fold).write_plans("", {"train": plan_text(LIBRARY, (), **options)})
        text = plan_text(LIBRARY, (), probes=number, shard_size=self.how["shard_size"])
        self.store(fold).write_plans(kind, dict.fromkeys(self.methods, text))

    def explain(self, probes_per_fold: int | None, cap: int | None, checks: int, progress: bool) -> None:
        """Every pass over every fold; what is there is not computed again."""
        split, folds = self.split, range(self.split.k)
        probes = split.probes(probes_per_fold)
        for fold in folds:
            self.plan(fold, RANDOM, len(probes))
        for fold in folds:
            work = self.job(fold, RANDOM, probes, split.label(probes))
            Gate.of(work.model, split.labels)(self.images.images([0]).to(work.device))
            engine.predictions_of(work, split, fold, progress=progress)
            engine.explain(work, self.methods, self.scores, progress=progress)
            engine.keep_thumbnails(work, split, self.images.show)
        ensemble = Ensemble(self.root, split.seed)
        found = Disagreements.find(ensemble.split, ensemble.correct, cap)
        passes: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}  # samples, and the class that their maps explain
        for fold in folds:
            if split.k > 1:
                mine, says = found.samples[found.concerned[:, fold]], ensemble.predictions[fold]
                passes[fold, DISAGREEMENTS] = mine, split.label(mine)
                passes[fold, DECISIONS] = says.wrong_of(mine), says.of(says.wrong_of(mine))
            own = engine.checked_probes(split, probes, fold, checks)
            passes |= {(fold, kind): (own, split.label(own)) for kind in CHECKS if checks}
        for (fold, kind), (mine, classes) in passes.items():
            tasks = engine.Tasks.of(self.job(fold, kind, mine, classes, cap), self.methods, {})
            if (changed := engine.changed_tasks(tasks)) is not None:
                self.plan(fold, kind, len(mine))
                engine.compute(changed, progress)

    def summarise(self, distance: str, progress: bool) -> Summary:
        """All numbers, also written to the folder with the page of an audit."""
        ensemble = Ensemble(self.root, self.split.seed)
        summary = summarise(ensemble, list(self.methods), distance, progress=progress)
        page.write(summary, self.root)
        draw_worst(ensemble, summary.cases, summary.worst, self.root / "cases")
        report_audit.write([report_audit.Audit.of(ensemble, summary)], self.root)
        return summary


def trained(
    make_module: Callable[[], nn.Module],
    data: Samples,
    split: Split,
    fold: int,
    store: FoldStore,
    train: Train | None,
    options: Mapping[str, Any],
    seed: int,
    batch: int,
) -> nn.Module:
    """The predictor of one fold: from its checkpoint, or trained now on everything but that fold."""
    file = store.root / "model.ckpt"
    pl.seed_everything(seed, verbose=False)
    module = make_module()
    mine = training_of(module, train, options, batch)
    if file.exists():
        refuse_other_training(file, mine)
        load_weights(module, file)
        return module
    training = data.training(split.training(fold).tolist())
    torch.manual_seed(stable_hash(seed, "train", fold))
    if train is not None:
        train(module, training, fold)
    elif isinstance(module, pl.LightningModule):
        g = torch.Generator().manual_seed(stable_hash(seed, "order", fold))
        settings = {"max_epochs": 5, "logger": False, "enable_model_summary": False, **options}
        settings.setdefault("enable_checkpointing", False)
        loader = DataLoader(training, batch_size=batch, shuffle=True, generator=g, drop_last=len(training) > batch)
        pl.Trainer(**settings).fit(module, loader)
    else:
        raise UsageError("a plain nn.Module needs train=function(module, training_set, fold), or a LightningModule")
    save_weights(module, file, {"training": mine})
    return module


# options of a Trainer that change where and how a training runs, or what it leaves, and not the weights
NOT_WEIGHTS = (*HOW, "logger", "default_root_dir", "log_every_n_steps")
# packages whose code another version may change without another meaning
THEIRS = (
    "torch", "torchvision", "torchmetrics", "pytorch_lightning", "lightning_fabric", "lightning", "lit_xai", "builtins", "abc",
)  # fmt: skip


def training_of(module: nn.Module, train: Train | None, options: Mapping[str, Any], batch: int) -> dict[str, Any]:
    """What decides a predictor's weights and outputs, for comparison: code, hyper-parameters, first weights, how it is trained.

    Code is that of the module's classes and of `train`; what those call elsewhere is not looked at.
    """
    classes = [c for m in module.modules() for c in type(m).__mro__ if not of_theirs(c)]
    own = {
        f"{name}.{k}".lstrip("."): plain_value(v)
        for name, m in module.named_modules()
        for k, v in vars(m).items()
        if not k.startswith("_") and k != "training" and not (callable(v) and of_theirs(type(m)))
    }
    if isinstance(module, pl.LightningModule):
        own |= {k: plain_value(v) for k, v in dict(module.hparams).items()}
    kept = {k: plain_value(v) for k, v in options.items() if k not in NOT_WEIGHTS and not k.startswith("enable_")}
    return {
        "code": code_digest(classes),
        "hyper_parameters": own,
        "first_weights": engine.model_hash(module),
        "train": describe(train) if train is not None else None,
        "trainer": kept,
        "training_batch": batch,
    }


def of_theirs(kind: type) -> bool:
    """Whether a class is a library's, whose code another version may change without another meaning."""
    return kind.__module__.split(".")[0] in THEIRS


def refuse_other_training(file: Path, mine: Mapping[str, Any]) -> None:
    """Refuse a predictor that was trained otherwise.

    Raises:
        UsageError: it was; the message names what differs.
    """
    there = read_checkpoint(file).get("config", {}).get("training")
    if there is None:
        say(f"{file} is reused: it does not say how it was trained")
        return
    difference = differences(there, mine)
    if difference:
        raise UsageError(
            f"{file} was trained otherwise ({'; '.join(difference[:3])}): choose another root=, restore what differs, or delete "
            f"{file.parent.parent}"
        )


__all__ = ["ImagesOf", "LoadedFold", "MapsOf", "audit", "explain_folds", "explain_model", "load"]
