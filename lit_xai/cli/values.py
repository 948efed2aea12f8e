"""Values of a configuration that would fail late, or in somebody else's code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lit_xai.cli.build import plain
from lit_xai.cli.checks import check_types
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
    check_types(cfg)
    for key in ("fold", "data.folds", "data.batch_size", "trainer.max_epochs"):
        value = OmegaConf.select(cfg, key)
        if value is None and key == "trainer.max_epochs":
            continue  # the data decide
        if not isinstance(value, int) or isinstance(value, bool) or (value < 1 and key != "fold"):
            least = "" if key == "fold" else " of at least 1"
            raise UsageError(f"{key} must be a whole number{least}, found {value}")
    pairs = plain(cfg.get("pairs", []))
    if not isinstance(pairs, list) or any(
        not isinstance(p, list) or len(p) != 2 or not all(isinstance(n, str) for n in p) for p in pairs
    ):
        raise UsageError(f"pairs must be a list of pairs of names, as in pairs=[[lime,rise]], found {pairs}")
    printed.read(plain(cfg.get("printed")))
    for group in ("explainer", "score"):
        for name, node in (cfg.get(group) or {}).items():
            if not isinstance(node, Mapping | DictConfig) or "_target_" not in node:
                raise UsageError(f"{group}.{name} has no _target_: choose it by {group}=[{name}], or correct its name")
