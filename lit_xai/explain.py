"""`python -m lit_xai.explain fold=3 explainer=[rise,gradcam]`: explain with a trained predictor; only what is missing."""

from __future__ import annotations

from typing import Any

from lit_xai.cli import door

ABOUT = """Explain and score probes with a trained (or pretrained) predictor. No training; only what is missing is computed.
probes=random (default) or probes=disagreements (once all folds are trained); part=0/8 does one eighth of the shards.
name=<folder> alone takes data and model from the folder's saved configuration."""


@door("explain", ABOUT)
def main(cfg: Any) -> None:
    """Explain what is missing."""
    from lit_xai.runs import Run

    explain(Run(with_saved(cfg), "explain"))


def with_saved(cfg: Any) -> Any:
    """With `name=` and no data or model given: those of the folder's configuration."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    from lit_xai.runs import check_targets, experiment_name, plain, read_config

    given = [o.lstrip("+~").split("=")[0] for o in HydraConfig.get().overrides.task] if HydraConfig.initialized() else []
    file = next(iter(sorted((cfg_root(cfg) / experiment_name(cfg)).glob("fold=*/config.yaml"))), None)
    if file is None or any(g.split(".")[0] in ("data", "model") for g in given):
        return cfg
    saved = read_config(file)
    check_targets({k: saved[k] for k in ("data", "model")}, safe=("lit_xai.", "torchvision.transforms."))
    with open_dict(cfg):
        for key in ("data", "model", "seed", "label_noise", "weight_noise"):
            if key not in given:
                cfg[key] = saved[key]
        for key in ("max_epochs", "precision"):
            if f"trainer.{key}" not in given:
                cfg.trainer[key] = saved["trainer"].get(key)
        cfg.name = plain(cfg.name) or file.parent.parent.name
    return OmegaConf.create(plain(cfg))


def cfg_root(cfg: Any) -> Any:
    """`root` as a path."""
    from pathlib import Path

    return Path(cfg.root)


def explain(run: Any) -> None:
    """Predict (if need be), explain, score, measure, draw."""
    from lit_xai import engine
    from lit_xai.train import finish, say

    if run.trainable and not run.checkpoint.exists():
        from lit_xai.core import UsageError

        raise UsageError(
            f"{run.checkpoint} is missing: run python -m lit_xai.train with the same options and fold={run.cfg.fold} first"
        )
    run.claim()
    callbacks = run.callbacks()
    callback = callbacks[0]
    if run.complete(callback):
        say(f"{run.store.root} is complete: nothing to do")
        return
    module = run.load()
    plan = engine.plan(run.explained(module, callback), callback.explainers, callback.scores, callback.part)
    say(f"{run.name} fold {run.cfg.fold} of {run.cfg.data.folds}, {callback.probes} probes -> {run.store.root}")
    if plan.maps == 0 and run.store.predictions_file.exists() and callback.probes == "disagreements":
        say("complete: nothing to do")
        return
    say(f"explain: {plan}")
    if run.cfg.dry_run:
        return
    logger = run.logger()
    trainer = run.trainer(callbacks, logger)
    trainer.test(module, run.data, verbose=False)
    say(f"done: {callback.written} shards written to {run.store.root}")
    if trainer.is_global_zero:
        finish(logger)


if __name__ == "__main__":
    main()
