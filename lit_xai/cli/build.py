"""From nodes of a configuration to objects: data, module, explainers, logger."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from lit_xai.cli.complete import complete
from lit_xai.cli.keys import alternatives
from lit_xai.cli.schema import config_dir, options
from lit_xai.core import Filler, as_filler
from lit_xai.data.folds import FoldData
from lit_xai.errors import UsageError, counted
from lit_xai.fitting import accepts
from lit_xai.models.pretrained import Frame, Given
from lit_xai.models.trainable import TrainedModule
from lit_xai.store.names import is_name

T = TypeVar("T")
HOW = ("_target_", "accelerator", "devices", "num_nodes", "strategy", "num_sanity_val_steps", "profiler")  # not what
ELSEWHERE = (
    "root",
    "path",
    "download",
    "num_workers",
    "on_device",
    "probes_per_fold",
    "show",
)  # where data lie, not what they are
PLANTED = ("plant", "plant_share", "plant_clean")


def plain(cfg: Any) -> Any:
    """Resolved, ordinary Python containers."""
    return OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg


def check_targets(node: Any, path: str = "") -> None:
    """Every `_target_` takes all the keys given to it.

    Raises:
        UsageError: naming the key.
    """
    if isinstance(node, list):
        for i, item in enumerate(node):
            check_targets(item, f"{path}[{i}]")
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        check_targets(value, f"{path}.{key}" if path else str(key))
    target = node.get("_target_")
    if target is None:
        return
    try:
        known = accepts(get_object(target))
        check_numbers(get_object(target), node, path)
    except UsageError:
        raise
    except Exception as e:
        raise UsageError(f"{path}._target_={target} cannot be imported ({type(e).__name__}: {e})") from None
    if known is None:
        return
    if path == "data":
        known |= accepts(get_object(node["source"]["_target_"])) or set()
    extra = {"name"} if path in ("data", "model") else set()
    for key in node:
        if not str(key).startswith("_") and key not in known | extra:
            raise UsageError(f"unknown key {path}.{key}: {target} takes {', '.join(sorted(known))}")


def check_numbers(target: Any, node: Mapping[str, Any], path: str) -> None:
    """Refuse a word where a `_target_` takes numbers alone, and a fraction where it takes whole ones; its own defaults are right."""
    own = inspect.signature(target).parameters
    for name, kinds in parameter_kinds(target).items():
        value = node.get(name)
        if name in own and type(own[name].default) is type(value) and own[name].default == value:
            continue
        words = any(isinstance(k, str) or k is str for k in kinds)
        said = any(isinstance(v, str) for v in (value if isinstance(value, list) else [value]))
        if name in node and {int, "auto"} <= kinds:
            counted(f"{path}.{name}", value, 1)
        elif said and not words and kinds & {int, float}:
            raise UsageError(f"{path}.{name} must be a number, found {value!r}")
        elif isinstance(value, float) and kinds - {type(None)} == {int}:
            raise UsageError(f"{path}.{name} must be a whole number, found {value!r}")


def parameter_kinds(target: Any) -> dict[str, set[Any]]:
    """The types and words that each parameter of a `_target_` takes; empty where they cannot be told."""
    told = target if is_dataclass(target) or not isinstance(target, type) else target.__init__
    try:
        return {name: leaves(kind) for name, kind in get_type_hints(told, include_extras=True).items()}
    except (NameError, TypeError):  # names of a type checker's alone, or code without annotations
        return {}


def leaves(kind: Any) -> set[Any]:
    """The types and words of an annotation, those inside of sequences and mappings, too."""
    own = {a for a in alternatives(kind) if isinstance(a, type | str)}
    return (
        own.union(*(leaves(a) for a in get_args(kind) if a is not ...))
        if get_origin(kind) not in (Annotated, Literal)
        else own
    )


def build_data(
    cfg: Mapping[str, Any],
    fold: int,
    seed: int,
    label_noise: float,
    train_seed: int | None = None,
    kind: type[FoldData] = FoldData,
) -> FoldData:
    """The LightningDataModule of a `data` node; keys that FoldData does not take go to its source."""
    node = dict(cfg)
    node.pop("_target_", None)
    own = accepts(FoldData.__init__) or set()
    options = {k: v for k, v in node.items() if k not in own}
    source = partial(get_object(node.pop("source")["_target_"]), **options)
    augment = [instantiate(t) for t in node.pop("augment", [])]
    kept = {k: v for k, v in node.items() if k in own}
    return kind(source, fold=fold, seed=seed, train_seed=train_seed, label_noise=label_noise, augment=augment, **kept)


def shape_of(data: FoldData) -> dict[str, Any]:
    """What a network must know of its data."""
    channels, height, width = data.source.shape
    if height != width:
        raise UsageError(f"images are {height} x {width}: models take square images, set data.size=")
    return {"channels": channels, "classes": len(data.source.classes), "side": height}


def build_module(cfg: Mapping[str, Any], shape: Mapping[str, Any], colour: Any = None) -> pl.LightningModule:
    """The LightningModule of a `model` node, for data of this shape (see `shape_of`)."""
    node = {k: v for k, v in cfg.items() if k != "name"}
    shape = {
        k: int(shape[k]) for k in ("channels", "classes", "side")
    }  # of a checkpoint: nothing else is taken from it
    colour = colour or ([0.5] * shape["channels"], [1.0] * shape["channels"])
    return instantiate(node, **shape, colour=colour, _convert_="all")


def is_given(node: Mapping[str, Any]) -> bool:
    """Whether a `model` node brings its own weights, which are explained and not trained."""
    kind = get_object(node["_target_"])
    return issubclass(kind, Given) and (not issubclass(kind, TrainedModule) or node.get("weights") is not None)


def fit_pictures(data: Any, model: Mapping[str, Any], there: Iterable[Mapping[str, Any]]) -> None:
    """Fill in the size of pictures where a `data` node leaves it open: that of the folder's folds, else what the network takes.

    Args:
        data: changed in place.
        model: the node; of a network that is trained here, torchvision's usual pictures.
        there: the `data` nodes of the folds that are there.
    """
    if "resize" not in data or None not in (data["size"], data["resize"]):
        return
    had: Mapping[str, Any] = next(iter(there), {})
    if isinstance(had.get("size"), int) and isinstance(had.get("resize"), int):
        frame = Frame(had["size"], had["resize"], str(had.get("interpolation", "bilinear")))
    else:
        frame = given_module(model).frame if is_given(model) else Frame()
    data["size"] = data["size"] or frame.side
    data["resize"] = data["resize"] or round(data["size"] * frame.resize / frame.side)
    if frame.interpolation != "bilinear" and "interpolation" not in data:
        data["interpolation"] = frame.interpolation


def given_module(node: Mapping[str, Any]) -> Given:
    """The network of a `model` node that brings its weights, whatever the data are."""
    return build_module(node, {"channels": 3, "classes": 0, "side": 0})  # type: ignore[return-value]


def build(node: Any, of_kind: Callable[[Any, str], T]) -> dict[str, T]:
    """Objects from a group of named nodes: explainers, scores or fillers (`core.as_explainer` and its like)."""
    return {name: of_kind(instantiate(n, _convert_="all"), name) for name, n in plain(node or {}).items()}


def config_places() -> list[Path]:
    """The folders of configurations: the user's own, then ours."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else ()
    return [*(Path(s.path) for s in sources if s.schema == "file"), config_dir()]


def config_file(group: str, name: str) -> Path | None:
    """The yaml of a choice: the user's own where there is one, else ours; None where there is neither."""
    return next((f for p in config_places() if (f := p / group / f"{name}.yaml").is_file()), None)


def filler_named(name: Any, cfg: Any) -> Filler:
    """The filler that `hide=` names."""
    return named("filler", name, cfg, "hide", as_filler)


def named(group: str, name: Any, cfg: Any, key: str, of_kind: Callable[[Any, str], Any]) -> Any:
    """The filler, explainer or score of a yaml that the value of `key` names, whose places are below the roots of a configuration.

    Raises:
        UsageError: there is none of that name.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    file = config_file(group, name) if all(map(is_name, parts)) else None
    if file is None:
        raise UsageError(f"{key}={name} is no {group}: choose one of {', '.join(options(group))}")
    whole = OmegaConf.create({**OmegaConf.to_container(cfg), "of_yaml": OmegaConf.load(file)})  # type: ignore[dict-item]
    return build({f"{group}.{name}": complete(plain(whole)["of_yaml"])}, of_kind)[f"{group}.{name}"]


def build_logger(cfg: Mapping[str, Any], folder: Path, run: str, job_type: str) -> Any:
    """The logger of one run of an experiment; the configuration goes on record there."""
    options = dict(cfg["logger"])
    make = get_object(options.pop("_target_"))
    return make(folder=folder, name=folder.name, run=run, job_type=job_type, record=cfg, **options)


def training_of(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two trainings the same: everything that decides the weights, and nothing else."""
    trainer = {k: v for k, v in cfg.get("trainer", {}).items() if k not in HOW}
    unused = () if cfg["data"].get("plant") else PLANTED  # older folders do not name them
    return {
        "data": {k: v for k, v in cfg["data"].items() if k not in (*ELSEWHERE, *unused)},
        "model": dict(cfg["model"]),
        "seed": cfg["seed"],
        **({} if cfg.get("train_seed") in (None, cfg["seed"]) else {"train_seed": cfg["train_seed"]}),
        "label_noise": cfg["label_noise"],
        "weight_noise": cfg["weight_noise"],
        **({"hide": cfg["hide"], "hide_cells": cfg["hide_cells"]} if cfg.get("hide") else {}),
        **({"calibrate": True} if cfg.get("calibrate") else {}),
        "trainer": trainer,
    }


SAVED = ("data", "model", "trainer", "seed", "label_noise", "weight_noise")  # what every saved configuration says


def read_config(file: Path) -> dict[str, Any]:
    """A saved configuration as plain containers. Nothing in it is resolved, and whoever builds from it asks `offered` first.

    Raises:
        UsageError: it is damaged, or says too little.
    """
    mend = f"restore it, or delete {file.parent} and train again"
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception as e:
        raise UsageError(f"{file} cannot be read ({type(e).__name__}): {mend}") from None
    lacks = [k for k in SAVED if k not in saved] if isinstance(saved, dict) else ["everything"]
    lacks += [k for k in ("data", "model", "trainer") if not lacks and not isinstance(saved[k], dict)]
    if lacks:
        raise UsageError(f"{file} is no whole configuration (it lacks {', '.join(lacks)}): {mend}")
    return saved


def say(text: str) -> None:
    """A line on the terminal, from rank 0."""
    shown = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)  # names may come from a file
    rank_zero_only(print)(shown, flush=True)


def finish(logger: Any) -> None:
    """Close the W&B run, so that a multirun's next job gets its own, and say where it is."""
    if isinstance(logger, WandbLogger):
        run = logger.experiment
        place = Path(run.dir).parent
        text = f"an offline run in {place}; to look at it, send it: wandb sync {place}" if run.offline else run.url
        run.finish()
        say(f"W&B: {text}")
