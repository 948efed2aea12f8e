"""A yaml says its class and what differs; what is composed, checked and run is whole, and what it was before."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.types import RunMode
from hydra.utils import instantiate
from lit_xai.cli import complete as completing
from lit_xai.cli.build import check_numbers, check_targets, plain
from lit_xai.cli.checks import CommandError
from lit_xai.cli.command import run
from lit_xai.cli.complete import complete, defaults
from lit_xai.cli.compose import compose
from lit_xai.cli.ensembles import same
from lit_xai.cli.keys import COMMANDS, KEYS, keys_of
from lit_xai.cli.loader import application
from lit_xai.cli.schema import OPEN, config_dir, options, with_lists
from lit_xai.errors import UsageError
from lit_xai.explainers import RISE, MeaningfulPerturbation
from lit_xai.fillers import Blur
from lit_xai.fitting import describe
from lit_xai.store.plans import repeatable
from omegaconf import OmegaConf

BEFORE = json.loads((Path(__file__).parent / "composed.json").read_text())  # by folders and plans that are older
YAMLS = [file for group in OPEN for file in sorted((config_dir() / group).rglob("*.yaml"))]
NEEDS = {"own_pictures": ["data.root=x"], "paper_mege_cifar10": ["data.path=q"]}


def content(file: Path) -> Any:
    text = file.read_text().replace("${root}", "r").replace("${data.name}", "d")
    return yaml.safe_load(text)


def holds(node: Any, old: Any) -> bool:
    """Whether a node says all that an older one said; what is more are defaults of the same class."""
    if not isinstance(old, Mapping):
        return bool(json.dumps(node) == json.dumps(old))
    if set(node) - set(old) - set(defaults(str(old.get("_target_")))):
        return False
    return all(k in node and holds(node[k], v) for k, v in old.items())


# ------------------------------------------------------------------------------------------------------------------ yamls


@pytest.mark.parametrize("file", YAMLS, ids=lambda f: f.relative_to(config_dir()).with_suffix("").as_posix())
def test_a_yaml_says_what_differs_and_what_is_built_from_it_is_the_same_without_the_rest(file: Path) -> None:
    node = content(file)
    known = defaults(node["_target_"])
    assert [k for k, v in node.items() if k in known and complete(v) == complete(known[k])] == []
    assert describe(instantiate(node, _convert_="all")) == describe(instantiate(complete(node), _convert_="all"))


def test_all_yamls_are_at_most_800_lines() -> None:
    assert sum(len(f.read_text().splitlines()) for f in config_dir().rglob("*.yaml")) <= 800


def test_nodes_of_every_explainer_score_and_filler_say_what_they_said() -> None:
    chosen = [f"{group}=[{','.join(options(group))}]" for group in OPEN]
    cfg = plain(compose("explain", chosen))
    assert {g: set(cfg[g]) for g in OPEN} == {g: set(BEFORE[g]) for g in OPEN}
    assert [(g, n) for g in OPEN for n, old in BEFORE[g].items() if not holds(cfg[g][n], old)] == []


def test_data_models_and_trainers_are_what_folders_were_trained_with() -> None:
    groups = ("data", "model", "trainer")
    each = [f"+{group}@each.{group}.{choice}={choice}" for group in groups for choice in options(group)]
    with application("train") as hydra:
        cfg = ConfigLoaderImpl.load_configuration(hydra.config_loader, "train", each, RunMode.RUN)
    assert OmegaConf.to_container(cfg["each"], resolve=False) == {group: BEFORE[group] for group in groups}


def as_before(experiment: str) -> None:
    old = BEFORE["experiment"][experiment]
    cfg = plain(compose("explain", with_lists([f"experiment={experiment}", *NEEDS.get(experiment, ())])))
    assert {k: cfg[k] for k in old["rest"]} == old["rest"]
    for group in ("explainer", "score"):
        named = {n: BEFORE[group][node] if isinstance(node, str) else node for n, node in old[group].items()}
        assert [n for n, node in named.items() if not holds(cfg.get(group, {})[n], node)] == []


@pytest.mark.parametrize("experiment", ["information"])
def test_what_an_experiment_names_is_what_it_was(experiment: str) -> None:
    as_before(experiment)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", BEFORE["experiment"])
def test_every_experiment_is_what_it_was(experiment: str) -> None:
    as_before(experiment)


WIDE = Blur(sigma=2.0)


class Level(IntEnum):
    ONE = 1


class Own:
    """A class of a user's: what no yaml can say stays its own default."""

    def __init__(self, size: int = 3, window: tuple[int, int] = (2, 2), level: Level = Level.ONE, blur: Any = WIDE):
        self.all = (size, window, level, blur)


def test_a_default_that_no_yaml_says_is_left_to_the_class() -> None:
    whole = complete({"_target_": f"{__name__}.Own"})
    blur = {"_target_": "lit_xai.fillers.Blur", "kernel": 11, "sigma": 2.0}
    assert whole == {"_target_": f"{__name__}.Own", "size": 3, "blur": blur}
    assert instantiate(whole, _convert_="all").all == Own().all
    assert complete({"_target_": "nowhere.Nothing"}) == {"_target_": "nowhere.Nothing"}


# -------------------------------------------------------------------------------------------------------------- overrides


def moved(x: float, by: float = 1.0) -> float:
    return x + by


class Unequal:
    """Two of them cannot be compared, as two tensors cannot."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("ambiguous")


@dataclass
class Wraps:
    what: Any = None

    def __post_init__(self) -> None:
        self.what = Unequal()


@dataclass
class Loads:
    wraps: Wraps = field(default_factory=Wraps)
    table: Any = field(default_factory=lambda: open("/nowhere/at/all"))  # noqa: SIM115


class Users:
    def __init__(
        self,
        first: float = 1.0,
        /,
        scale: int = 1.5,  # type: ignore[assignment]
        place: str = "${nowhere}",
        later: str = "???",
        variants: int = 3,
        table: Any = {(0, 1): 2},  # noqa: B006
        node: Any = {"_target_": "no.such"},  # noqa: B006
        power: int = 2,
    ) -> None:
        self.given = (first, scale, place, later, variants, table, node, power)


def test_defaults_of_the_users_code_that_a_yaml_would_say_otherwise_are_left_to_it() -> None:
    whole = complete({"_target_": f"{__name__}.Users"})
    assert whole == {"_target_": f"{__name__}.Users", "scale": 1.5, "power": 2}
    check_targets(whole)  # though its annotation says otherwise, its default is right
    assert instantiate(whole).given == Users().given
    with pytest.raises(UsageError, match="scale must be a whole number"):
        check_targets({**whole, "scale": 2.5})
    assert complete({"_target_": f"{__name__}.Loads"}) == {"_target_": f"{__name__}.Loads"}


def test_what_is_given_values_without_names_is_called_with_those_alone() -> None:
    node = {"_target_": f"{__name__}.moved"}
    assert instantiate(complete({**node, "_args_": [1.0, 2.0]})) == 3
    assert instantiate(complete({"f": {**node, "_partial_": True}}))["f"](1.0, 2.0) == 3
    assert complete({**node, "_partial_": False}) == {**node, "_partial_": False, "by": 1.0}


def test_a_node_that_names_its_class_has_the_defaults_of_that_one_alone() -> None:
    node = {"_target_": "lit_xai.explainers.MeaningfulPerturbation", "filler": {"_target_": "lit_xai.fillers.Blur"}}
    assert instantiate(complete(node)) == MeaningfulPerturbation(filler=Blur())
    assert complete({"_target_": node["_target_"], "filler": {"sigma": 3.0}})["filler"] == {
        "_target_": "lit_xai.fillers.Blur",
        "kernel": 61,
        "sigma": 3.0,
    }


def explainers(*overrides: str, chosen: str = "[rise,lime,sliding_patch]") -> Any:
    return plain(compose("explain", [f"explainer={chosen}", *overrides])).get("explainer")


def test_keys_that_no_yaml_says_are_set_added_and_deleted() -> None:
    found = explainers("explainer.rise.masks=300", "+explainer.lime.samples=7", "~explainer.sliding_patch")
    assert found == {
        "rise": complete({"_target_": "lit_xai.explainers.RISE", "masks": 300}),
        "lime": complete({"_target_": "lit_xai.explainers.Lime", "samples": 7}),
    }
    assert instantiate(explainers("~explainer.rise.masks")["rise"]) == RISE()
    assert explainers("explainer.rise.grid=${explainer.rise.masks}")["rise"]["grid"] == 1000


def test_a_mapping_of_a_whole_group_sets_keys_that_no_yaml_says() -> None:
    cfg = compose("explain", ["explainer=[lime]", "score=[]", "explainer={lime: {samples: 7, segments: {gain: 2}}}"])
    assert (cfg.explainer.lime.samples, cfg.explainer.lime.segments.gain) == (7, 2)
    grid = "explainer={lime: {segments: {_target_: lit_xai.segments.Grid}}}"
    assert plain(compose("explain", ["explainer=[lime]", "score=[]", grid]).explainer.lime.segments) == {
        "_target_": "lit_xai.segments.Grid",
        "cells": 7,
    }
    with pytest.raises(CommandError, match="unknown key explainer"):
        compose("explain", ["explainer=[lime]", "score=[]", "explainer={lime: {sample: 7}}"])


@pytest.mark.parametrize(
    "way",
    [
        ["explainer.sliding_patch.filler._target_=lit_xai.fillers.Blur", "explainer.sliding_patch.filler.sigma=3"],
        ["explainer.sliding_patch.filler._target_=lit_xai.fillers.Blur", "+explainer.sliding_patch.filler.sigma=3"],
        ["explainer.sliding_patch.filler={_target_: lit_xai.fillers.Blur, sigma: 3}"],
        ["explainer.sliding_patch={filler: {_target_: lit_xai.fillers.Blur, sigma: 3}}"],
    ],
)
def test_another_class_has_its_own_defaults_however_it_is_written(way: list[str]) -> None:
    filler = {"_target_": "lit_xai.fillers.Blur", "kernel": 11, "sigma": 3}
    assert explainers(*way)["sliding_patch"]["filler"] == filler


def test_what_the_yaml_says_stays_with_another_class_that_takes_it_and_defaults_of_the_old_class_do_not() -> None:
    other = "explainer.pomelo_ddim.filler._target_=lit_xai.fillers.DDIMInpainting"
    filler = explainers(other, chosen="[pomelo/pomelo_ddim]")["pomelo_ddim"]["filler"]
    assert filler["checkpoint"] == "checkpoints/digits-ddim"
    assert filler["eta"] == 0.8  # and not the .4 of DDIM
    assert "start" not in filler


def test_overrides_are_obeyed_in_their_order() -> None:
    assert set(explainers("explainer.rise.masks=3", "~explainer.rise")) == {"lime", "sliding_patch"}
    again = explainers("~explainer.rise", "+explainer.rise={_target_: lit_xai.explainers.Saliency}")["rise"]
    assert again == complete({"_target_": "lit_xai.explainers.Saliency"})
    early = ["+explainer.lime.segments.cells=4", "explainer.lime.segments._target_=lit_xai.segments.Grid"]
    assert explainers(*early)["lime"]["segments"] == explainers(*reversed(early))["lime"]["segments"]


def test_one_more_explainer_under_its_own_name_is_whole() -> None:
    found = explainers("+explainer.coarse={_target_: lit_xai.explainers.RISE, grid: 3}")["coarse"]
    assert found == complete({"_target_": "lit_xai.explainers.RISE", "grid": 3})


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("explainer.rise.mask=3", "did you mean explainer.rise.masks"),
        ("+explainer.rise.mask=3", "lit_xai.explainers.RISE takes"),
        ("explainer.risee.masks=3", "did you mean explainer.rise"),
        ("explainer.lime.segments.cells=3", "unknown key explainer.lime.segments.cells"),
        ("~explainer.nothing", "'explainer.nothing' does not exist"),
        ("explainer.rise._target_=lit_xai.nothing", "_target_=lit_xai.nothing cannot be imported"),
    ],
)
def test_a_wrong_key_of_an_explainer_is_one_line(override: str, says: str) -> None:
    with pytest.raises(CommandError, match=r"^.*$") as found:
        explainers(override)
    assert says in str(found.value)


@pytest.mark.parametrize("override", ["trainer.max_epoch=3", "fold=x", "data=nothing"])
def test_what_is_wrong_elsewhere_is_told_before_a_class_is_imported(
    override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def imported(target: str) -> Any:
        raise AssertionError(target)

    monkeypatch.setattr(completing, "resolve_name", imported)
    defaults.cache_clear()
    with pytest.raises(CommandError):
        compose("train", with_lists([override]))


# --------------------------------------------------------------------------------------------------------------- commands


def ran(*overrides: str, flags: tuple[str, ...] = ()) -> list[Any]:
    """The configurations that a command's jobs get."""
    found: list[Any] = []
    run("train", found.append, list(overrides), list(flags), lambda: None)
    return found


def test_a_command_composes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compositions, load = [], ConfigLoaderImpl._load_configuration_impl

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        compositions.append(arguments or options)
        return load(self, *arguments, **options)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    (cfg,) = ran("explainer=[rise]", "explainer.rise.masks=300", "cap=7")
    assert len(compositions) == 1
    assert (cfg.explainer.rise.masks, cfg.explainer.rise.grid, cfg.cap) == (300, 7, 7)


def test_a_multirun_goes_over_keys_that_no_yaml_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train"])
    found = ran("explainer=[rise]", "explainer.rise.masks=3,4", flags=("-m",))
    assert [cfg.explainer.rise.masks for cfg in found] == [3, 4]


def test_the_whole_configuration_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    ran("explainer=[rise]", "explainer.rise.masks=300", flags=("--cfg", "job"))
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["explainer"]["rise"] == complete({"_target_": "lit_xai.explainers.RISE", "masks": 300})


@pytest.mark.parametrize("flags", [("--config-dir", "{}"), ("--config-dir={}",), ("-cd", "{}")])
def test_a_yaml_of_the_users_own_has_the_name_of_its_file(flags: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "explainer").mkdir()
    (tmp_path / "explainer" / "coarse.yaml").write_text("_target_: lit_xai.explainers.RISE\ngrid: 3\n")
    (cfg,) = ran("explainer=[coarse]", "explainer.coarse.masks=5", flags=tuple(f.format(tmp_path) for f in flags))
    assert plain(cfg.explainer) == {"coarse": complete({"_target_": "lit_xai.explainers.RISE", "grid": 3, "masks": 5})}


def test_several_values_without_a_multirun_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ran("explainer=[rise]", "explainer.rise.masks=3,4")
    mend = "add -m for a run of each, or write explainer.rise.masks=[3,4] for a list"
    assert capsys.readouterr().err == f"error: explainer.rise.masks=3,4 are several values: {mend}\n"


def test_a_folder_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ran(flags=("--config-dir", "nowhere"))
    assert capsys.readouterr().err.startswith("error: --config-dir=nowhere is no folder")


# ------------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("fold=x", "fold must be a whole number or all, found x"),
        ("seed=-1", "seed must be a whole number of at least 0, found -1"),
        ("train_seed=half", "train_seed must be null or a whole number of at least 0, found half"),
        ("label_noise=2", "label_noise must lie in [0, 1], found 2"),
        ("label_noise=nan", "label_noise must lie in [0, 1], found nan"),
        ("batch_size=2.5", "batch_size must be a whole number of at least 1, found 2.5"),
        ("checks=true", "checks must be a whole number of at least 0, found true"),
        ("dry_run=maybe", "dry_run must be true or false, found maybe"),
        ("target=truth", "target must be label or prediction, found truth"),
        ("probes=some", "probes must be random, disagreements or test, found some"),
        ("pairs=lime", "pairs must be a list, found lime"),
        ("hide=[mean]", "hide must be null or text, found [mean]"),
    ],
)
def test_a_value_of_another_type_or_no_choice_is_one_line(override: str, says: str) -> None:
    key, _, text = override.partition("=")
    assert KEYS[key].refused(yaml.safe_load(text.replace("nan", ".nan"))) == says


def test_values_that_are_composed_are_looked_at() -> None:
    with pytest.raises(CommandError, match=r"^cap must be null or a whole number of at least 0, found half$"):
        compose("explain", ["cap=half"])
    assert compose("explain", ["cap=${data.folds}"]).cap == 5


def test_every_default_is_a_value_of_its_key_and_every_key_says_what_it_is() -> None:
    for command in COMMANDS:
        assert [k.name for k in keys_of(command).values() if k.refused(k.default) or not k.about] == []
    assert set(keys_of("audit")) > set(keys_of("evaluate")) > set(keys_of("train"))
    assert (keys_of("train")["checks"].default, keys_of("degradation")["checks"].default) == (12, 0)
    assert "class" in KEYS


@pytest.mark.parametrize(
    ("target", "values", "says"),
    [
        ("lit_xai.explainers.RISE", {"masks": "many"}, "x.masks must be a positive number or auto, found 'many'"),
        ("lit_xai.explainers.RISE", {"grid": "seven"}, "x.grid must be a number, found 'seven'"),
        ("lit_xai.explainers.RISE", {"grid": 2.5}, "x.grid must be a whole number, found 2.5"),
        ("lit_xai.fillers.Mean", {"colour": "red"}, "x.colour must be a number, found 'red'"),
        ("lit_xai.explainers.GradientShap", {"baselines": [0, "a"]}, "x.baselines must be a number, found [0, 'a']"),
        ("lit_xai.explainers.Saliency", {"max_batch": 2}, "unknown key x.max_batch"),
    ],
)
def test_values_that_a_class_does_not_take_are_refused_by_its_annotations(target, values, says) -> None:
    with pytest.raises(UsageError) as found:
        check_targets({"_target_": target, **values}, "x")
    assert says in str(found.value)


def test_what_a_class_takes_is_not_refused() -> None:
    check_numbers(RISE, {"masks": "auto", "grid": 7, "keep": 1, "output": "logit"}, "x")


# -------------------------------------------------------------------------------------------------------------- old files


def test_a_plan_that_left_defaults_out_is_of_the_same_node_and_no_code_is_imported_for_it() -> None:
    said = {"_target_": "lit_xai.explainers.SlidingPatch", "stride": 14}
    assert same(said, complete(said))
    assert not same({**said, "stride": 7}, complete(said))
    assert not same({**said, "filler": {"_target_": "antigravity.nothing"}}, complete(said))
    assert "antigravity" not in sys.modules


def test_an_override_of_a_plan_may_name_every_class_that_a_file_may() -> None:
    assert repeatable("explainer.lime.kernel._target_=lit_xai.explainers.lime.ShapleyKernel")
    assert repeatable("+explainer.x={_target_: lit_xai.explainers.RISE, masks: 3}")
    assert not repeatable("+explainer.x={_target_: lit_xai.explainers.RISE, masks: {_target_: os.system}}")
    assert not repeatable("explainer.x._target_=lit_xai.models.pretrained.torch.load")
