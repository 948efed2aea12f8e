"""The commands' own keys: their types, choices and defaults, and what `--help` says of them. By the standard library alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

Place = None | str | int | float  # a name or a path, which may look like a number
Names = None | str | list


@dataclass(frozen=True)
class Key:
    """A key of a command: its value where nobody gives one, what it is, and between which numbers it lies."""

    default: Any
    about: str
    least: float | None = None
    most: float | None = None
    name: str = ""
    kind: Any = None

    @property
    def line(self) -> str:
        """`name: default  # about`."""
        return f"{f'{self.name}: {shown(self.default)}':<21} # {self.about}"

    def refused(self, value: Any) -> str:
        """What is wrong with a value, plain and resolved; empty if nothing is."""
        if value_of(value, self.kind) and within(value, self.least, self.most):
            return ""
        return f"{self.name} must {self.words}, found {shown(value)}"

    @property
    def words(self) -> str:
        """What its values are."""
        if self.most is not None:
            return f"lie in [{self.least}, {self.most}]"
        least = "" if self.least is None else f" of at least {self.least}"
        names = {
            int: f"a whole number{least}",
            float: f"a number{least}",
            bool: "true or false",
            str: "text",
            list: "a list",
        }
        names |= {dict: "a mapping", type(None): "null"}
        parts = [names[k] if isinstance(k, type) else str(k) for k in alternatives(self.kind)]
        parts.sort(key=lambda part: part != "null")
        return "be " + " or ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def key(default: Any, about: str, least: float | None = None, most: float | None = None) -> Any:
    """A key of the class it stands in, which has its name and type."""
    return Key(default, about, least, most)


class Train:
    """The keys of lit_xai.train and their defaults."""

    name: Place = key(None, "folder below root; null = <data>-<model>")
    root: Place = key("checkpoints", "where all experiments live")
    fold: int | Literal["all"] = key(
        0, "the fold that this predictor never sees, from 0; all = every fold, side by side (lit_xai.train)"
    )
    seed: int = key(0, "of the split, the weights, the order and all noise", least=0)
    train_seed: int | None = key(
        None,
        "of the weights, the order and augmentation alone; null = seed. Two of them: one network twice on one split",
        least=0,
    )
    label_noise: float = key(0.0, "share of training labels replaced by another class", least=0, most=1)
    weight_noise: float = key(0.0, "share of the weights that get noise after training", least=0, most=1)
    hide: str | None = key(
        None,
        "a filler, such as mean: half of the training images have random cells of a grid hidden by it (score=[in_domain/...])",
    )
    hide_cells: int = key(7, "a side of that grid", least=2)
    calibrate: bool = key(False, "a temperature, fitted to a tenth of the training folds that the gradient never sees")
    target: Literal["label", "prediction"] = key("label", "the class a map explains: label or prediction")
    explain: bool = key(True, "false: lit_xai.train trains and predicts alone")
    cap: int | None = key(200, "most disagreements explained per fold", least=0)
    checks: int = key(
        12,
        "held-out probes of a fold that are explained again by fresh weights, and with other noise; 0 = none",
        least=0,
    )
    pairs: list = key([], "explainers whose paired differences a summary shows, too: [[a,b],...]")
    printed: list | None = key([], "what a paper prints, to stand beside the tables; see experiment=paper_...")
    batch_size: int = key(16, "images per explainer call", least=1)
    shard_size: int = key(64, "probes per file", least=1)
    dry_run: bool = key(False, "say what would be done and how long it would take, and stop")
    progress: bool = key(True, "progress bars")


class Explain(Train):
    """The keys of lit_xai.explain and their defaults."""

    probes: Literal["random", "disagreements", "test"] = key(
        "random", "random; disagreements once all folds are trained; test: images that no fold saw"
    )
    test_probes: int | None = key(200, "at most so many of these; null = all", least=1)
    part: str = key("0/1", "this job's share of the shards: i/n")
    summary: bool = key(False, "the table of lit_xai.evaluate in the end")
    curves: bool = key(False, "draw the mean curve of every chosen score that has one")
    sanity: Literal["cascading", "independent", "labels"] | list | None = key(
        None, "cascading, independent, labels, or a list of them: explain models that forgot what they learned"
    )
    sanity_stages: int = key(6, "at most so many stages of each", least=1)
    sanity_images: int = key(16, "held-out probes that are explained at each", least=1)
    inception: Place = key(
        None, "weights of torchvision's inception_v3: the Fréchet distance of fillers in its features"
    )
    image: Place = key(None, "explain this picture alone, into <root>/pictures/")
    checkpoint: Place = key(None, "the model.ckpt that explains it, or the weights of model=pretrained")
    class_: int | str | None = key(None, "the class to explain it for; null = the predicted one")


class Evaluate(Train):
    """The keys of lit_xai.evaluate and their defaults."""

    definition: Literal["default", "paper", "xplique"] = key(
        "default", "default, paper or xplique: which variants the table shows (summary.json has all)"
    )
    distance: Literal["spearman", "sqrt_spearman", "wasserstein", "dice", "ssim", "l1", "l2"] = key(
        "spearman", "spearman, sqrt_spearman, wasserstein, dice, ssim, l1 or l2"
    )
    measures: list = key([], "modules that register measures of your own, see docs/new_measure.md")
    only: Names = key(None, "a list of explainers; null = all")
    compare: Names = key(
        None, "folders on one page: names below root=, or paths; writes audit.html with paired or unpaired tests"
    )
    samplers: Names = key(None, "a list of fillers: measure their samples of fold= in the place of explanations")
    sampler_images: int = key(32, "held-out probes that are sampled", least=1)
    sampler_draws: int = key(100, "samples of each", least=1)
    label_errors: bool | str | None = key(
        None,
        "true (Grad-CAM) or an explainer: probable label errors, and whether the folds' reasons agree (extra: labels)",
    )
    dashboard: bool = key(
        False, "true: a workspace of W&B with the panels of this experiment (pip install 'lit_xai[dashboards]')"
    )


class Audit(Evaluate):
    """The keys of lit_xai.audit and their defaults."""

    models: list | None = key([], "several models on one page: [resnet18,lipschitz]; empty = the one of model=")
    folds: Literal["all"] | int | list = key("all", "all, or a list of those to train and explain now")
    jobs: Literal["auto"] | int = key(
        "auto", "processes at once; auto = every core, or every card with trainer=gpu", least=1
    )


class Degradation(Explain):
    """The keys of lit_xai.degradation and their defaults."""

    checks: int = key(0, "the study follows MeGe, ReCo and scores", least=0)
    measures: list = key([], "modules that register measures of your own, see docs/new_measure.md")
    levels: dict = key(
        {"weight_noise": [0.05, 0.1, 0.3], "label_noise": [0.05, 0.1, 0.3]},
        "of each kind; an undamaged ensemble stands beside",
    )


def alternatives(kind: Any) -> list[Any]:
    """The types and words of a kind."""
    if get_origin(kind) in (Union, UnionType):
        return [a for k in get_args(kind) for a in alternatives(k)]
    return list(get_args(kind)) if get_origin(kind) in (Annotated, Literal) else [get_origin(kind) or kind]


def value_of(value: Any, kind: Any) -> bool:
    """Whether a value is one of a kind; a whole number is a number, true is none."""
    types = tuple(k for k in alternatives(kind) if isinstance(k, type))
    if isinstance(value, bool) and bool not in types:
        return False
    if isinstance(value, int) and float in types:
        return True
    return isinstance(value, types) or (isinstance(value, str) and value in alternatives(kind))


def within(value: Any, least: float | None, most: float | None) -> bool:
    """Whether a number lies between two; anything else does."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    return (least is None or value >= least) and (most is None or value <= most)


def shown(value: Any) -> str:
    """A value as a yaml says it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


COMMANDS: dict[str, type] = {kind.__name__.lower(): kind for kind in (Train, Explain, Evaluate, Audit, Degradation)}


@cache
def keys_of(command: str) -> dict[str, Key]:
    """The keys of a command, with those of the commands that it builds on, by name."""
    hints, kinds = get_type_hints(COMMANDS[command]), reversed(COMMANDS[command].__mro__[:-1])
    keys = {n: vars(kind)[n] for kind in kinds for n in kind.__annotations__}
    return {(name := n.rstrip("_")): replace(key, name=name, kind=hints[n]) for n, key in keys.items()}


def own(command: str) -> list[str]:
    """The keys that a command does not have from another one."""
    return [name.rstrip("_") for name in COMMANDS[command].__annotations__]


KEYS = {name: key for command in COMMANDS for name, key in keys_of(command).items()}
