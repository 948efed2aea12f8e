"""`python -m lit_xai.train fold=3`: train the predictor that never saw fold 3, explain with it, score it."""

from __future__ import annotations

import pickle
from typing import Any

from lit_xai.cli import side_by_side
from lit_xai.cli.command import command

ABOUT = """Train the predictor that never sees one fold, explain the probes of every fold with it, score the explanations,
and say how stable they are over the folds that are there. All results go to checkpoints/<name>/fold=<i>/.
fold=all: every fold, side by side on the cores or cards that are there.
model=inpainter, ddim, flow, patch_sampler or conditional_gaussian: train what draws hidden pixels or whole new images for
fillers, without the same fold."""


def serve_all(overrides: list[str]) -> None:
    """What `fold=all` needs is loaded beside what this process needs."""
    if "fold=all" in overrides:
        side_by_side.serve()


@command("train", ABOUT, ahead=serve_all)
def main(cfg: Any) -> None:
    """Train, predict, explain, score, measure."""
    if cfg.fold == "all":
        train_all(cfg)
        return
    from lit_xai.cli.run import Run
    from lit_xai.errors import UsageError

    run = Run(cfg, "train")
    if not run.trainable:
        raise UsageError(
            f"model={cfg.model.name} is not trained here: run python -m lit_xai.explain with the same options"
        )
    with run.interruptible():
        train(run)


def train_all(cfg: Any) -> None:
    """Every fold, side by side; ends with an error where one failed."""
    import sys

    from lit_xai.cli.command import parted
    from lit_xai.cli.ensembles import ensembles
    from lit_xai.cli.together import together

    together(ensembles(cfg, "train", parted(sys.argv[1:])[1]), "auto", cfg.dry_run, reveal=False).end()


def train(run: Any) -> None:
    """The main job on one fold."""
    import torch
    from pytorch_lightning.utilities.rank_zero import rank_zero_only

    from lit_xai.callbacks import Context, Explain, Pace
    from lit_xai.cli.build import finish, plain, say
    from lit_xai.cluster.interruption import EachEpoch
    from lit_xai.errors import UsageError
    from lit_xai.report.dashboard import Dashboard
    from lit_xai.report.head import untaught
    from lit_xai.store.files import load_weights, save_weights

    if run.cfg.data.folds < 2:
        raise UsageError("training needs data.folds of at least 2: with one fold there is nothing to train on")
    run.check_folder()
    reports = run.reports()
    module, trained = run.module(), run.checkpoint.exists()
    check_optimization(module, run.cfg.trainer)
    if trained:
        load_weights(module, run.checkpoint)
    passes = [report for report in reports if isinstance(report, Explain)]
    tasks = [p.tasks(module.predictor(), run.data, run.device) for p in passes] if trained else []
    if trained and (all(map(run.complete, passes, tasks)) if passes else reports[0].complete):
        say(f"{run.store.root} is complete: nothing to do")
        return
    announce(run, module, passes, tasks, trained)
    if run.cfg.dry_run:
        return
    run.claim()
    logger = run.logger()
    if not run.is_sampler:
        kept = {"train/loss": False, "val/acc": True, "heldout/acc": True, "test/acc": True}
        Dashboard([] if logger is None else [logger]).directions(kept)
    each_epoch = EachEpoch(
        str(run.store.root), "last", every_n_epochs=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    pace = Pace(run.store, lines=not run.cfg.progress)
    trainer = run.trainer([] if trained else [each_epoch, pace], logger)
    if not trained:
        resume = run.resume_from if run.resume_from.exists() else None
        if resume:
            say(f"resuming from {resume}")
        if resume is None:
            module.prepare(run.data)
        if not module.in_one_pass:
            fit(trainer, module, run, resume)
        module.add_weight_noise(run.cfg.weight_noise, run.cfg.seed, run.cfg.fold)
        module.check_weights()
        if trainer.is_global_zero:
            save_weights(module, run.checkpoint, {**plain(run.cfg), **origin(run.data)})
            run.resume_from.unlink(missing_ok=True)
        trainer.strategy.barrier("trained")
    Dashboard(trainer.loggers).note(checkpoint=str(run.checkpoint))
    trainer.test(module, run.data, verbose=False)
    accuracy = {k: round(float(v), 4) for k, v in trainer.callback_metrics.items() if k.endswith("/acc")}
    with torch.no_grad():
        on = Context.of(trainer, module.to(trainer.strategy.root_device))
        for number, report in enumerate(reports):  # the passes come first
            report.run(on, tasks[number]) if number < len(tasks) else report.run(on)
    if trainer.is_global_zero:
        say(f"done: {run.store.root} {accuracy}")
        if not run.is_sampler:
            for line in untaught({run.cfg.fold: run.store.read_predictions()}):
                say(f"warning: {line}")
        say_stability(reports)
    rank_zero_only(finish)(logger)


def check_optimization(module: Any, trainer: Any) -> None:
    """Refuse what Lightning does for the optimizer where a module has several and steps them itself."""
    from lit_xai.errors import UsageError

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
    from lit_xai.cli.build import shape_of

    on = data.trained_on
    names = list(data.source.classes)
    return {"shape": shape_of(data), "class_names": names, "about": on.about, "training_samples": on.samples}


def fit(trainer: Any, module: Any, run: Any, resume: Any) -> None:
    """Train, from where an earlier run was interrupted or from its last complete epoch."""
    from lit_xai.cluster.interruption import begins_at
    from lit_xai.errors import UsageError
    from lit_xai.store.files import load_whole

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


def say_stability(reports: Any) -> None:
    """MeGe and ReCo over the folds that are there, in a line each."""
    from lit_xai.callbacks import Stability
    from lit_xai.cli.build import say
    from lit_xai.metrics.estimation import SHORT
    from lit_xai.metrics.measures import view

    values = next((c.values for c in reports if isinstance(c, Stability)), {})
    for measure in view(SHORT):
        known = {k.partition("/")[2]: v for k, v in values.items() if k.startswith(f"{measure}/") and v == v}
        if known:
            text = ", ".join(f"{n} {v:.3f}" for n, v in known.items())
            say(f"{measure} over {values['stability/folds']:.0f} of {values['stability/of_folds']:.0f} folds: {text}")


def announce(run: Any, module: Any, passes: Any, tasks: Any, trained: bool) -> None:
    """Say what is going to happen and how long it will take, from a short trial."""
    import copy

    import torch

    from lit_xai import engine
    from lit_xai.cli.build import say
    from lit_xai.cli.cost import say_costs, training_time
    from lit_xai.models.trainable import FEW, epochs_for

    say(f"{run.name} fold {run.cfg.fold} of {run.cfg.data.folds} -> {run.store.root}")
    plan, training = None, None
    with torch.random.fork_rng():
        if module.in_one_pass:
            say("fit: one pass over windows of the training folds")
        elif not trained:
            training = training_time(module, run)
        if passes:
            if not tasks:  # of a copy: this must not touch what will be trained
                network = copy.deepcopy(module).predictor()
                tasks = [p.tasks(network, run.data, run.device, checkpoint="") for p in passes]
            plan = engine.plan(*tasks, progress=bool(run.cfg.progress))
    if training is not None:
        say(f"train: {training}")
        if training.steps < FEW:
            enough = epochs_for(training.batches, training.accumulate)
            name = "another name= and " if any(run.trained_folds()) else ""
            say(
                f"warning: {training.steps} optimizer steps are few to learn from: set {name}trainer.max_epochs={enough} "
                f"or more, or lower data.batch_size={run.cfg.data.batch_size}"
            )
    say_costs(run, plan, training)


if __name__ == "__main__":
    main()
