"""The same split, store, explainers and measures for anybody's model and data, without a config file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from lit_xai import engine
from lit_xai.cli.build import HOW, build_data, build_module, read_config, say
from lit_xai.cli.offered import refuse_other_code
from lit_xai.core import Explainer, Score, as_explainer, as_score
from lit_xai.data.folds import Disagreements, Split
from lit_xai.data.images import ImageSet, digest
from lit_xai.errors import UsageError
from lit_xai.fitting import TrainedOn, code_digest, describe, plain_value
from lit_xai.report import page
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.summarise import summarise
from lit_xai.report.summary import Summary
from lit_xai.rng import stable_hash
from lit_xai.store.files import load_weights, read_checkpoint, save_weights
from lit_xai.store.fold import FoldStore, MapReader, common_samples, differences
from lit_xai.store.names import DECISIONS, DISAGREEMENTS, RANDOM
from lit_xai.store.plans import LIBRARY, plan_text

Train = Callable[[nn.Module, Dataset, int], None]


@dataclass(frozen=True)
class MapStyle:
    """Any map-style data set of `(image [c, h, w] in [0, 1], label)` as an image set."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def images(self, indices: Sequence[int]) -> Float[Tensor, "b c h w"]:
        """A batch of images."""
        images = torch.stack([torch.as_tensor(self.dataset[i][0]) for i in indices]).float()
        if images.ndim != 4 or float(images.min()) < 0 or float(images.max()) > 1:
            raise UsageError(
                f"the data set gives images of shape {tuple(images.shape[1:])} in "
                f"[{float(images.min()):.3g}, {float(images.max()):.3g}]: "
                f"give [c, h, w] in [0, 1] and put normalisation inside the model"
            )
        return images

    def labels(self) -> Int[Tensor, "n"]:
        """All labels (`dataset.targets` where there is one, else by going through the data set)."""
        known = getattr(self.dataset, "targets", None)
        if known is not None and len(known) == len(self.dataset):
            return torch.as_tensor(known).long()
        return torch.tensor([int(self.dataset[i][1]) for i in range(len(self.dataset))])

    def identity(self, labels: Int[Tensor, "n"]) -> str:
        """A digest of all labels and of 64 images."""
        some = torch.linspace(0, len(self) - 1, min(64, len(self))).long().unique().tolist()
        return digest(labels, self.images(some))


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
    seed: int = 0,
    training_batch: int = 64,
    batch_size: int = 16,
    shard_size: int = 64,
    device: str | torch.device = "cpu",
    distance: str = "spearman",
    progress: bool = True,
) -> Summary:
    """Train k predictors by cross-validation, explain held-out samples, and measure how far the maps can be trusted.

    The files under `root` are those of the commands: `python -m lit_xai.evaluate name=<root>` reads them, and a call
    that was interrupted goes on where it was.

    Args:
        make_module: a fresh LightningModule (trained by Lightning), or a plain module (with `train`); called under the
            seed. It maps images in [0, 1] to logits. If it has `predictor()`, that is what gets explained.
        dataset: map-style, `(image [c, h, w] in [0, 1], label)`.
        explainers: by name, or plain functions of the same call; include `random=Random()` for a null.
        k: folds.
        root: folder of this experiment; one per model, data set and way of training. Predictors that are there are reused where
            their module's code, hyper-parameters and first weights, `train`, `trainer` and `training_batch` are as they were.
        scores: by name; None takes muFidelity, deletion and insertion. `{}` takes none.
        train: `train(module, training_set, fold)`, for modules that are not LightningModules.
        trainer: options of `pytorch_lightning.Trainer`, e.g. `dict(max_epochs=5)`.
        probes_per_fold: random samples of every fold that are explained by every predictor; None = all.
        cap: most disagreements explained per fold.
        seed: of the split, the initial weights, the order and all noise.
        training_batch: batch of the loader that Lightning gets.
        batch_size, shard_size: images per explainer call, probes per file.
        device: where models are explained.
        distance: between maps, see `lit_xai.metrics.DISTANCES`.
        progress: show bars.

    Returns:
        The summary, also written to `root` (summary.json, .csv, .tex, histograms, report.html).

    Raises:
        UsageError: the data, the module or the folder cannot be used, or the folder's predictors were trained otherwise; the
            message says how to mend it.
    """
    from lit_xai.fillers import BlurOrMean
    from lit_xai.metrics import Deletion, Insertion, MuFidelity

    if k < 2:
        raise UsageError(f"cross-validation needs at least 2 folds, found k={k}")
    if scores is None:
        scores = {"mufidelity": MuFidelity(), "deletion": Deletion(), "insertion": Insertion(filler=BlurOrMean())}
    methods = {name: as_explainer(e, f"explainer {name}") for name, e in explainers.items()}
    scores = {name: as_score(s, f"score {name}") for name, s in scores.items()}
    images = MapStyle(dataset)
    labels = images.labels()
    split = Split.make(labels, k, seed)
    shared = {
        "data": type(dataset).__name__,
        "content": images.identity(labels),
        "samples": len(labels),
        "folds": k,
        "split_seed": seed,
        "label_noise": 0.0,
        "target": "label",
    }

    def job(
        fold: int,
        kind: str,
        samples: Int[Tensor, "p"],
        classes: Int[Tensor, "p"],
        extra: Mapping[str, Any] | None = None,
    ) -> engine.Job:
        store = FoldStore(Path(root) / f"fold={fold}")
        module = trained(make_module, dataset, split, fold, store, train, trainer or {}, seed, training_batch)
        model = predictor_of(module)
        some = split.training(fold)[:500].tolist()
        held_out = f"fold {fold} of {k} held out"
        about = f"{shared['data']} ({shared['content']}), {len(labels)} samples, seed {seed}, {held_out}"
        colour = tuple(images.images(some).mean((0, 2, 3)).tolist())
        return engine.Job(
            model=model,
            images=images,
            samples=samples,
            targets=classes,
            store=store,
            shared={**shared, **(extra or {})},
            trained_on=TrainedOn(colour, fold, len(split.training(fold)), about, tuple(images.images([0])[0].shape)),
            kind=kind,
            seed=seed,
            batch_size=batch_size,
            shard_size=shard_size,
            device=torch.device(device),
        )

    probes = split.probes(probes_per_fold)

    def plan(fold: int, kind: str, number: int) -> None:
        store = FoldStore(Path(root) / f"fold={fold}")
        store.write_plans("", {"train": plan_text(LIBRARY, (), folds=k, explains=1, sampler=0)})
        text = plan_text(LIBRARY, (), probes=number, shard_size=shard_size)
        store.write_plans(kind, dict.fromkeys(methods, text))

    for fold in range(k):
        plan(fold, RANDOM, len(probes))
    for fold in range(k):
        work = job(fold, RANDOM, probes, split.label(probes))
        engine.predictions_of(work, split, fold, progress=progress)
        engine.explain(work, methods, scores, progress=progress)
    ensemble = Ensemble(root, seed)
    found = Disagreements.find(ensemble.split, ensemble.correct, cap)
    passes: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}  # samples, and the class that their maps explain
    for fold in range(k):
        mine, says = found.samples[found.concerned[:, fold]], ensemble.predictions[fold]
        passes[fold, DISAGREEMENTS] = mine, split.label(mine)
        passes[fold, DECISIONS] = says.wrong_of(mine), says.of(says.wrong_of(mine))
    for (fold, kind), (mine, _) in passes.items():
        plan(fold, kind, len(mine))
    for (fold, kind), (mine, classes) in passes.items():
        if len(mine):
            engine.explain(job(fold, kind, mine, classes, {"cap": cap}), methods, {}, progress=progress)
    summary = summarise(Ensemble(root, seed), list(methods), distance, progress=progress)
    page.write(summary, Path(root))
    return summary


def trained(
    make_module: Callable[[], nn.Module],
    dataset: Any,
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
    training = Subset(dataset, split.training(fold).tolist())
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


@runtime_checkable
class HasPredictor(Protocol):
    """A module of which a part gets explained."""

    def predictor(self) -> nn.Module: ...


def predictor_of(module: nn.Module) -> nn.Module:
    """What gets explained: `module.predictor()` where there is one."""
    return (module.predictor() if isinstance(module, HasPredictor) else module).eval()


# ------------------------------------------------------------------------------------------------------------- notebook


class MapsOf(Mapping[str, Tensor]):
    """Maps of one predictor by explainer: `maps["rise"]` is `[p, h, w]`, row by row of `maps.samples`.

    Attributes:
        samples: `[p]` the probes, as indices of the data set.
    """

    def __init__(self, store: FoldStore, split: Split) -> None:
        self.readers = {n: MapReader(store, RANDOM, n) for n in store.explainers()}
        samples = common_samples(self.readers.values())
        self.samples = samples[split.fold(samples).sort(stable=True).indices]

    def __getitem__(self, explainer: str) -> Tensor:
        if explainer not in self.readers:
            raise UsageError(f"no maps of {explainer!r} in this fold; there are: {', '.join(self.readers) or 'none'}")
        return self.readers[explainer].rows(self.samples)

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)

    def scores(self, explainer: str) -> dict[str, Tensor]:
        """Every score of an explainer, `[p]`."""
        reader = self.readers[explainer]
        return {n: reader.rows(self.samples, f"score/{n}") for n in reader.scores()}


class ImagesOf:
    """Images of a data set by index, read when they are asked for: `images[maps.samples[:8]]` is `[8, c, h, w]` in [0, 1]."""

    def __init__(self, make: Callable[[], ImageSet]) -> None:
        self.make = make

    @cached_property
    def known(self) -> ImageSet:
        """The data set.

        Raises:
            UsageError: it is not where the configuration says, or nobody has said what it is.
        """
        return self.make()

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        """One image `[c, h, w]`, or a batch of them."""
        if isinstance(index, int):
            return self.known.images([index])[0]
        rows = range(len(self))[index] if isinstance(index, slice) else [int(i) for i in index]
        return self.known.images(list(rows))


class LoadedFold(NamedTuple):
    """`model, split, maps, images = lit_xai.load(...)`.

    Attributes:
        model: the predictor in evaluation mode, see `takes`.
        split: the folds.
        maps: by explainer, row by row of `maps.samples`.
        images: of the data set, by index.
    """

    model: nn.Module
    split: Split
    maps: MapsOf
    images: ImagesOf

    @property
    def takes(self) -> str:
        """What the model takes and gives, such as `images [b, 1, 32, 32] in [0, 1] -> logits [b, 10]`."""
        shape = list(self.images[0].shape)
        with torch.inference_mode():
            classes = self.model(self.images[:1]).shape[1]
        return f"images [b, {', '.join(map(str, shape))}] in [0, 1] -> logits [b, {classes}]"


def load(folder: str | Path, fold: int = 0, module: nn.Module | None = None, dataset: Any = None) -> LoadedFold:
    """The predictor, split, maps and images of one fold of `checkpoints/<name>`.

    Nothing that a file names is run, except lit_xai's own models and data sets; for a model of your own, give `module`.

    Args:
        folder: `checkpoints/<name>`.
        fold: which predictor.
        module: your module, to load the weights into; None builds it from the saved configuration.
        dataset: your data set, as `explain_folds` took it; None reads the one of the saved configuration when it is needed.

    Returns:
        The four. The model takes images in [0, 1], with no normalisation before it, and gives logits.

    Raises:
        UsageError: nothing is there, or the files do not fit.
    """
    store = FoldStore(Path(folder) / f"fold={fold}")
    if not store.root.is_dir():
        have = ", ".join(sorted(p.name for p in Path(folder).glob("fold=*"))) or "nothing"
        raise UsageError(f"{store.root} is not there ({folder} has {have}): run python -m lit_xai.train fold={fold}")
    split = store.read_predictions().split
    config = store.root / "config.yaml"
    if module is None:
        if not config.exists():
            raise UsageError(f"{config} is missing: pass module=, a fresh module to load the weights into")
        node = read_config(config)["model"]
        refuse_other_code({"model": node}, config)
        file = store.root / "model.ckpt"
        if file.exists():
            module = build_module(node, read_checkpoint(file)["config"]["shape"])
            load_weights(module, file)
        else:
            module = build_module(node, {"channels": 3, "classes": 0, "side": 0})
    else:
        load_weights(module, store.root / "model.ckpt")
    images = ImagesOf(lambda: image_set(config, dataset))
    return LoadedFold(predictor_of(module), split, MapsOf(store, split), images)


def image_set(config: Path, dataset: Any) -> ImageSet:
    """The images of a data set that is given, else of the one that a saved configuration names.

    Raises:
        UsageError: neither is there.
    """
    if dataset is not None:
        return MapStyle(dataset)
    if not config.exists():
        raise UsageError(f"{config.parent} does not say where its images are: pass dataset= to lit_xai.load")
    saved = read_config(config)
    refuse_other_code({"data": saved["data"]}, config)
    return build_data(saved["data"], 0, saved["seed"], saved["label_noise"]).source.train


__all__ = ["ImagesOf", "LoadedFold", "MapsOf", "explain_folds", "load"]
