"""hydra's composition of a command line, once, with what its yamls leave out."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lit_xai.cli.checks import check, check_keys
from lit_xai.cli.complete import at, fill_in, make_room, targets_in
from lit_xai.cli.keys import COMMANDS, keys_of, own
from lit_xai.cli.schema import ANYWHERE, OPEN, config_dir

for command in COMMANDS:  # what its yaml begins or ends with
    ConfigStore.instance().store(name=f"{command}_keys", node={n: keys_of(command)[n].default for n in own(command)})


def printed(file: str) -> dict[str, dict[str, float]]:
    """What a paper prints, by column and method: `${printed:FILE.csv}` in a yaml, below configs/papers/ or anywhere."""
    with (config_dir() / "papers" / file).open() as lines:
        rows = list(csv.DictReader(lines))
    return {c: {r["method"]: number(r[c]) for r in rows if r[c]} for c in rows[0] if c != "method"}


def number(text: str) -> float:
    """A number, whole where it is printed so."""
    return int(text) if text.lstrip("-").isdigit() else float(text)


OmegaConf.register_new_resolver("printed", printed, replace=True)


class Sources(ConfigRepository):
    """Yamls, each put at its place: an explainer, score or filler under the name of its file unless its first line gives another
    (`# @package score.in_domain_deletion`), and what sets keys of any group, such as an experiment, at the root.
    """

    def load_config(self, config_path: str) -> ConfigResult | None:
        """A yaml, with the place of its content."""
        found = super().load_config(config_path)
        group, _, name = config_path.partition("/")
        if found is not None and group in ANYWHERE:
            found.header["package"] = "_global_"
        elif found is not None and group in OPEN and name:
            found.header["package"] = found.header["package"] or f"{group}.{Path(name).name}"
        return found


class Loader(ConfigLoaderImpl):
    """Composes a command's configuration, completes its explainers, scores and fillers, and says what is wrong with it.

    What the command line says of those comes last: their keys are there once the defaults of their classes are filled in. Classes
    are imported, and with them torch, once everything else is found right; `ahead` is called before.
    """

    def __init__(self, path: ConfigSearchPath, command: str, ahead: Callable[[], None] | None = None) -> None:
        super().__init__(path)
        self.repository = Sources(path)
        self.command, self.ahead = command, ahead

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """The configuration, with hydra's own part; of a multirun, what its jobs have in common, which is not completed.

        Raises:
            HydraException, CommandError: what is wrong with it.
        """
        parsed = OverridesParser.create().parse_overrides(overrides)
        inside = [o for o in parsed if is_inside(o)]
        others = [str(o.input_line) for o in parsed if o not in inside]
        cfg = super().load_configuration(config_name, others, run_mode, from_shell, validate_sweep_overrides)
        note(cfg, [o for o in parsed if not o.is_hydra_override()])
        if run_mode is not RunMode.MULTIRUN:
            self.validate_sweep_overrides_legal(inside, run_mode, from_shell)
            check_keys(cfg, parsed, self.command)
        ahead, self.ahead = self.ahead, None  # once
        if ahead is not None:
            ahead()
        if run_mode is RunMode.MULTIRUN:
            return cfg
        self.fill(cfg, inside)
        check(cfg, parsed, self.command)
        return cfg

    def fill(self, cfg: DictConfig, overrides: list[Override]) -> None:
        """Complete the nodes of open groups, and obey overrides of what is in them.

        One that gives a node another `_target_` takes the place of what is there, but for what its yaml says and the new class
        takes, too.
        """
        yamls = {g: OmegaConf.to_container(cfg[g], resolve=False) for g in OPEN if cfg.get(g)}
        fill_in(cfg)
        later: list[Override] = []
        gone: set[str] = set()
        for o in (replace(o, type=OverrideType.FORCE_ADD) if o.is_add() else o for o in overrides):
            path, value = o.key_or_group, cast(Any, o.value())
            if path.endswith("._target_"):
                path, value = path.removesuffix("._target_"), {"_target_": value}
            if o.is_delete() or not targets_in(value) or any(f"{path}.".startswith(g) for g in gone):
                later.append(o)
                gone |= {f"{path}."} if o.is_delete() else set()
            else:
                there = make_room(cfg, path, value, at(yamls, path))
                self._apply_overrides_to_config([replace(o, type=OverrideType.FORCE_ADD) if there else o], cfg)
        if len(later) < len(overrides):
            fill_in(cfg)
        self._apply_overrides_to_config(later, cfg)
        fill_in(cfg)


def is_inside(o: Override) -> bool:
    """Whether an override is of what an open group holds, also as `explainer={lime: {samples: 100}}`."""
    group, dot, _ = o.key_or_group.partition(".")
    return o.package is None and group in OPEN and bool(dot or isinstance(o.value(), dict))


def note(cfg: DictConfig, overrides: list[Override]) -> None:
    """What hydra keeps of a command line: all of it, in its order."""
    how = cfg.hydra.job.config.override_dirname
    cfg.hydra.overrides.task = [o.input_line for o in overrides]
    cfg.hydra.job.override_dirname = get_overrides_dirname(overrides, how.exclude_keys, how.item_sep, how.kv_sep)


@contextmanager
def application(command: str, ahead: Callable[[], None] | None = None, main: Path | None = None) -> Iterator[Any]:
    """Hydra for one command, inside of another one's or alone.

    Args:
        command: its name.
        ahead: what begins beside the loading of torch once the command line is found right.
        main: the folder of its configurations; None = ours.
    """
    outer = GlobalHydra.instance().hydra  # of the command that asks
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(main or config_dir()), job_name=command, version_base="1.3"):
            hydra: Any = GlobalHydra.instance().hydra
            hydra.config_loader = Loader(hydra.config_loader.get_search_path(), command, ahead)
            yield hydra
    finally:
        GlobalHydra.instance().hydra = outer
