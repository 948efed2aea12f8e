"""What a command leaves open is taken from the configuration that the folder it names was trained with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lit_xai.cli import config_dir
from lit_xai.runs import ELSEWHERE, HOW, check_targets, experiment_name, read_config

SAFE_TARGETS = ("lit_xai.", "torchvision.transforms.")


def with_saved(cfg: Any) -> Any:
    """The configuration, with everything the command line leaves open taken from the folder it names.

    Where data or model are given, they are taken as given (and refused later if the folder holds others).
    """
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    given = {o.lstrip("+~").split("=")[0] for o in overrides}
    folder = Path(cfg.root) / experiment_name(cfg)
    files = sorted(folder.glob("fold=*/config.yaml"))
    places = {f"data.{k}" for k in ELSEWHERE}
    experiment = HydraConfig.get().runtime.choices.get("experiment") if HydraConfig.initialized() else None
    chosen = {g.split(".")[0] for g in given if g not in places} | (decided_by(experiment) if experiment else set())
    if not files or chosen & {"data", "model"}:
        return cfg
    saved = read_config(files[0])
    mine: Any = OmegaConf.to_container(cfg)  # unresolved: places may depend on the name of the data
    check_targets({k: saved[k] for k in ("data", "model")}, safe=SAFE_TARGETS)
    for key in ("data", "model", "seed", "label_noise", "weight_noise", "target", "cap", "batch_size", "shard_size"):
        if key not in given and key in saved:
            kept = {k: v for k, v in mine["data"].items() if f"data.{k}" in given} if key == "data" else {}
            mine[key] = {**saved[key], **kept} if key == "data" else saved[key]
    for key, value in saved["trainer"].items():
        if f"trainer.{key}" not in given and key not in HOW:
            mine["trainer"][key] = value
    for group in ("explainer", "score"):
        for name in mine.get(group) or {}:
            if name in (saved.get(group) or {}) and not any(g.startswith(f"{group}.{name}.") for g in given):
                mine[group][name] = saved[group][name]
    mine["name"] = folder.name
    return OmegaConf.create(mine)


def decided_by(experiment: str) -> set[str]:
    """Which of data and model an experiment's file decides."""
    text = (config_dir() / "experiment" / f"{experiment}.yaml").read_text()
    return set(re.findall(r"override /(data|model):", text)) | set(re.findall(r"^(data|model):", text, re.M))
