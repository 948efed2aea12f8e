"""`python -m lit_xai.explain fold=3 explainer=[rise,gradcam]`: explain with a trained predictor; only what is missing."""

from __future__ import annotations

from typing import Any

from lit_xai.cli.command import command

ABOUT = """Explain and score probes with a trained (or pretrained) predictor. No training; only what is missing is computed.
probes=random (default), probes=disagreements (once all folds are trained) or probes=test (images that no fold saw: what holds
for new ones); part=0/8 does one eighth of the shards.
image=photo.jpg checkpoint=checkpoints/<name>/fold=0/model.ckpt (or model=pretrained) explainer=lime: one picture a method;
filler=[black,mean,blur]: how plausible images are after each filler; on data with masks, how well it removes the object.
sanity=[cascading,independent,labels]: do maps change when the model forgets what it learned?
explainer=[information/pmi]: bits of evidence; needs lit_xai.train model=patch_sampler with the same data and fold first.
summary=true: then the table of lit_xai.evaluate, for these explainers.
curves=true: the mean curve of deletion, insertion or negative evidence of every explainer, drawn.
name=<folder> alone takes data and model from the folder's saved configuration."""

NEW = {
    "decisions": "what this predictor wrongly says",
    "randomised": "fresh weights",
    "repeated": "other noise",
}  # what further passes explain, by kind


@command("explain", ABOUT)
def main(cfg: Any) -> None:
    """Explain what is missing, or one picture."""
    if cfg.image is not None:
        from lit_xai.cli.picture import explain_picture

        explain_picture(cfg)
        return
    from lit_xai.cli.run import Run
    from lit_xai.cli.saved import with_saved

    run = Run(with_saved(cfg), "explain")
    with run.interruptible():
        explain(run)


def explain(run: Any) -> None:
    """Predict (if need be), explain, score, measure, draw."""
    from lit_xai import engine
    from lit_xai.callbacks import Explain
    from lit_xai.cli.build import say
    from lit_xai.cli.cost import say_costs
    from lit_xai.store.names import RANDOM, RANDOMISED

    if run.is_sampler:
        from lit_xai.errors import UsageError

        raise UsageError(
            f"{run.name} is a sampler, which explains nothing: give it to an explainer's filler by its checkpoint="
        )
    run.require_trained()
    run.check_folder()
    reports = run.reports()
    passes = [r for r in reports if isinstance(r, Explain)]
    if not passes:
        check(run, reports[0])
        return
    module = run.load()
    tasks = [p.tasks(module.predictor(), run.data, run.device) for p in passes]
    every = list(zip(passes, tasks, strict=True))
    if all(run.complete(p, t) for p, t in every) and not run.fillers and not run.cfg.curves:
        if not run.cfg.dry_run:
            for p, t in every:
                p.write_plans(len(t.job.samples))
        say(f"{run.store.root} is complete: nothing to do")
        summarise(run)
        return
    say(f"{run.name} fold {run.cfg.fold} of {run.cfg.data.folds}, {passes[0].probes} probes -> {run.store.root}")
    if any(tasks[1:]) and not tasks[0]:
        new = [f"{sum(len(t.shard) for t in of)} of {NEW[p.kind]}" for p, of in every if of]
        say(
            f"the maps of {'random probes' if passes[0].kind == RANDOM else 'labels'} are there; new are {', '.join(new)}"
        )
    say_costs(run, engine.plan(*tasks, progress=bool(run.cfg.progress)))
    if run.cfg.dry_run:
        return
    run.claim()
    with run.launched(module) as on:
        for p, t in every:
            if p.kind != RANDOMISED:  # of a model without layers it is left out
                p.write_plans(len(t.job.samples))
        for p, t in every:
            p.run(on, t)
        for report in reports[len(passes) :]:
            report.run(on)
        say(f"done: {sum(p.written for p in passes)} shards written to {run.store.root}")
    if on.rank == 0:
        summarise(run)


def summarise(run: Any) -> None:
    """With `summary=true`, the table of this command's explainers, as `lit_xai.evaluate` makes it."""
    if run.cfg.get("summary"):
        from omegaconf import OmegaConf

        from lit_xai.evaluate import evaluate

        names = set(run.explainers) | {n.partition("__")[0] for n in run.explainers}
        pairs = [p for p in run.cfg.pairs if names.issuperset(p)]  # of an experiment, whose explainers may be others
        options = {"definition": "default", "distance": "spearman", "only": sorted(run.explainers), "pairs": pairs}
        evaluate(OmegaConf.merge(run.cfg, options), run.store.root.parent)


def check(run: Any, sanity: Any) -> None:
    """Sanity checks of a trained predictor: nothing of its folder is touched but their own files."""
    from lit_xai.cli.build import say

    ways = ", ".join("random labels" if way == "labels" else f"{way} randomisation" for way in sanity.how)
    say(f"{run.name} fold {run.cfg.fold} of {run.cfg.data.folds}: {ways} -> {run.store.root}")
    if "labels" in sanity.how:
        run.of_random_labels()  # missing? better now than after the other checks
    if run.cfg.dry_run:
        return
    with run.launched(run.load()) as on:
        sanity.run(on)


if __name__ == "__main__":
    main()
