"""Values of a configuration that would fail late, or in somebody else's code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lit_xai.cli.build import plain
from lit_xai.cli.schema import options
from lit_xai.errors import UsageError
from lit_xai.report import printed


def without_unchosen(cfg: Any) -> Any:
    """The configuration without the counts that an experiment's file gives for explainers and scores nobody chose."""
    cfg = OmegaConf.create(OmegaConf.to_container(cfg))
    for group in ("explainer", "score"):
        known = {name.rpartition("/")[2] for name in options(group)}
        nodes = (cfg.get(group) or {}).items()
        for name in [n for n, node in nodes if n in known and isinstance(node, DictConfig) and "_target_" not in node]:
            del cfg[group][name]
    return cfg


def check_values(cfg: Any) -> None:
    """Numbers that would fail late, or in somebody else's code."""
    for key in (
        "fold",
        "seed",
        "checks",
        "batch_size",
        "shard_size",
        "data.folds",
        "data.batch_size",
        "trainer.max_epochs",
    ):
        value = OmegaConf.select(cfg, key)
        least = {"fold": None, "seed": 0, "checks": 0}.get(key, 1)
        if value is None and key == "trainer.max_epochs":
            continue  # the data decide
        if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
            raise UsageError(
                f"{key} must be a whole number{'' if least is None else f' of at least {least}'}, found {value}"
            )
    if cfg.train_seed is not None and (
        not isinstance(cfg.train_seed, int) or isinstance(cfg.train_seed, bool) or cfg.train_seed < 0
    ):
        raise UsageError(f"train_seed must be null or a whole number of at least 0, found {cfg.train_seed}")
    for key in ("label_noise", "weight_noise"):
        if not isinstance(cfg[key], int | float) or not 0 <= cfg[key] <= 1:
            raise UsageError(f"{key} must lie in [0, 1], found {cfg[key]}")
    if isinstance(cfg.hide_cells, bool) or not isinstance(cfg.hide_cells, int) or cfg.hide_cells < 2:
        raise UsageError(f"hide_cells must be a whole number of at least 2, found {cfg.hide_cells}")
    for key in ("curves", "explain", "calibrate"):
        if not isinstance(cfg.get(key, False), bool):
            raise UsageError(f"{key} must be true or false, found {cfg[key]}")
    pairs = plain(cfg.get("pairs", []))
    if not isinstance(pairs, list) or any(
        not isinstance(p, list) or len(p) != 2 or not all(isinstance(n, str) for n in p) for p in pairs
    ):
        raise UsageError(f"pairs must be a list of pairs of names, as in pairs=[[lime,rise]], found {pairs}")
    printed.read(plain(cfg.get("printed")))
    for group in ("explainer", "score"):
        for name, node in (cfg.get(group) or {}).items():
            if name == "_target_":
                raise UsageError(
                    f"a yaml of {group}={node} does not say its name: let its first line be `# @package {group}.<name>`"
                )
            if not isinstance(node, Mapping | DictConfig) or "_target_" not in node:
                raise UsageError(f"{group}.{name} has no _target_: choose it by {group}=[{name}], or correct its name")
