"""`python -m lit_xai.train fold=3`: train the predictor that never saw fold 3, explain with it, score it."""

from __future__ import annotations

import pickle
from typing import Any

from lit_xai.cli import door

ABOUT = """Train the predictor that never sees one fold, explain the probes of every fold with it, score the explanations,
and say how stable they are over the folds that are there. All results go to checkpoints/<name>/fold=<i>/.
model=inpainter, ddim, flow, patch_sampler or conditional_gaussian: train what draws hidden pixels or whole new images for
fillers, without the same fold."""


@door("train", ABOUT)
def main(cfg: Any) -> None:
    """Train, predict, explain, score, measure."""
    from lit_xai.core import UsageError
    from lit_xai.runs import Run

    run = Run(cfg, "train")
    if not run.trainable:
        raise UsageError(
            f"model={cfg.model.name} is not trained here: run python -m lit_xai.explain with the same options"
        )
    with run.interruptible():
        train(run)


def train(run: Any) -> None:
    """The main job on one fold."""
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    from lit_xai.callbacks import Pace
    from lit_xai.core import UsageError
    from lit_xai.dashboard import Dashboard
    from lit_xai.ensemble import untaught
    from lit_xai.files import load_weights, save_weights
    from lit_xai.runs import finish, plain, say

    if run.cfg.data.folds < 2:
        raise UsageError("training needs data.folds of at least 2: with one fold there is nothing to train on")
    run.check_folder()
    callbacks = run.callbacks()
    if run.complete(callbacks[0]):
        say(f"{run.store.root} is complete: nothing to do")
        return
    module = run.module()
    check_optimization(module, run.cfg.trainer)
    trained = run.checkpoint.exists()
    if trained:
        load_weights(module, run.checkpoint)
    announce(run, module, callbacks[0], trained)
    if run.cfg.dry_run:
        return
    run.claim()
    logger = run.logger()
    each_epoch = ModelCheckpoint(
        str(run.store.root), "last", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    pace = Pace(run.store, lines=not run.cfg.progress)
    trainer = run.trainer([*callbacks, *([] if trained else [each_epoch, pace])], logger)
    if not trained:
        resume = run.resume_from if run.resume_from.exists() else None
        if resume:
            say(f"resuming from {resume}")
        if hasattr(module, "fit_on"):
            module.fit_on(run.data)
        else:
            if resume is None and hasattr(module, "prepare"):
                module.prepare(run.data)
            fit(trainer, module, run, resume)
        if hasattr(module, "add_weight_noise"):
            module.add_weight_noise(run.cfg.weight_noise, run.cfg.seed, run.cfg.fold)
        if hasattr(module, "check_weights"):
            module.check_weights()
        if trainer.is_global_zero:
            save_weights(module, run.checkpoint, {**plain(run.cfg), **origin(run.data)})
            run.resume_from.unlink(missing_ok=True)
        trainer.strategy.barrier("trained")
    Dashboard(trainer.loggers).note(checkpoint=str(run.checkpoint))
    trainer.test(module, run.data, verbose=False)
    if trainer.is_global_zero:
        accuracy = {k: round(float(v), 4) for k, v in trainer.callback_metrics.items() if k.endswith("/acc")}
        say(f"done: {run.store.root} {accuracy}")
        if not run.is_sampler:
            for line in untaught({run.cfg.fold: run.store.read_predictions()}):
                say(f"warning: {line}")
        say_stability(callbacks)
    rank_zero_only(finish)(logger)


def check_optimization(module: Any, trainer: Any) -> None:
    """Refuse what Lightning does for the optimizer where a module has several and steps them itself."""
    from lit_xai.core import UsageError

    if module.automatic_optimization:
        return
    if trainer.get("gradient_clip_val"):
        raise UsageError("this model steps its optimizers itself: instead of trainer.gradient_clip_val use model.clip=")
    if trainer.get("accumulate_grad_batches", 1) != 1:
        raise UsageError(
            "this model steps its optimizers itself: instead of trainer.accumulate_grad_batches use a larger data.batch_size="
        )
    if str(trainer.get("precision")).startswith("16"):
        raise UsageError(
            "this model clips its gradients itself, which half precision scales: use trainer.precision=bf16-mixed"
        )


def origin(data: Any) -> dict[str, Any]:
    """What a checkpoint says of the data it comes from."""
    from lit_xai.runs import shape_of

    on = data.trained_on
    names = list(data.source.classes)
    return {"shape": shape_of(data), "class_names": names, "about": on.about, "training_samples": on.samples}


def fit(trainer: Any, module: Any, run: Any, resume: Any) -> None:
    """Train, from where an earlier run was interrupted or from its last complete epoch."""
    from lit_xai.cluster import begins_at
    from lit_xai.core import UsageError
    from lit_xai.files import load_whole

    if resume is None:
        trainer.fit(module, run.data)
        return
    try:
        saved = load_whole(resume)
        run.data.first_epoch, run.data.first_batch = begins_at(saved, trainer.world_size)
        trainer.fit(module, run.data, ckpt_path=resume, weights_only=True)
    except (RuntimeError, EOFError, KeyError, OSError, pickle.UnpicklingError) as e:
        text = (str(e).splitlines() or [type(e).__name__])[0][:120]
        raise UsageError(f"{resume} does not load ({text}): delete it and train again") from None


def say_stability(callbacks: Any) -> None:
    """MeGe and ReCo over the folds that are there, in a line each."""
    from lit_xai.callbacks import Stability
    from lit_xai.runs import say

    values = next((c.values for c in callbacks if isinstance(c, Stability)), {})
    for measure in ("mege", "reco"):
        known = {k.partition("/")[2]: v for k, v in values.items() if k.startswith(f"{measure}/") and v == v}
        if known:
            text = ", ".join(f"{n} {v:.3f}" for n, v in known.items())
            say(f"{measure} over {values['stability/folds']:.0f} of {values['stability/of_folds']:.0f} folds: {text}")


def announce(run: Any, module: Any, callback: Any, trained: bool) -> None:
    """Say what is going to happen and how long it will take, from a short trial."""
    import copy

    import torch

    from lit_xai import engine
    from lit_xai.callbacks import Explain
    from lit_xai.runs import say

    plan = None
    with torch.random.fork_rng():
        if isinstance(callback, Explain):
            trial = run.explained(
                copy.deepcopy(module), callback
            )  # a copy: planning must not touch what will be trained
            if not trained:
                trial.checkpoint = ""  # not known yet
            plan = engine.plan(trial, callback.explainers, callback.scores, callback.part)
        say(f"{run.name} fold {run.cfg.fold} of {run.cfg.data.folds} -> {run.store.root}")
        if hasattr(module, "fit_on"):
            say("fit: one pass over windows of the training folds")
        elif not trained:
            steps, minutes = training_time(module, run)
            say(f"train: {run.cfg.trainer.max_epochs} epochs, {steps:,} steps, about {minutes:.1f} min on this CPU")
    if plan is not None:
        say(f"explain: {plan}")


def training_time(module: Any, run: Any) -> tuple[int, float]:
    """Steps, and minutes by three trial steps of a copy of the module."""
    import copy
    import time

    data = run.data
    loader = data.train_dataloader()
    batch = next(iter(loader))
    trial = copy.deepcopy(module).train()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        trial.batch_loss(batch).backward()
        times.append(time.perf_counter() - began)
    steps = len(loader) * run.cfg.trainer.max_epochs
    return steps, steps * min(times) / 60


if __name__ == "__main__":
    main()
