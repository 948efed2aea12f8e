"""`python -m lit_xai.degradation experiment=degradation`: do MeGe and ReCo fall as the predictors get worse?"""

from __future__ import annotations

from typing import Any

from lit_xai.cli.command import command

ABOUT = """Train an ensemble for every level of damage (noise on weights, wrong training labels; Fel et al., 2022), explain with all of
them, and print MeGe and ReCo per level and their rank correlation with the level. What is there already is not done again.
Writes checkpoints/<name>-degradation/degradation.csv, correlations.csv and degradation.png; the ensembles lie beside it as
<name>-<kind>=<level>. experiment=degradation chooses eight quick explainers and small counts. A kind of damage is left out by
levels.label_noise=[]. Keys of one run (fold, probes, part, image, sanity, curves) have no meaning here."""


@command("degradation", ABOUT)
def main(cfg: Any) -> None:
    """Train, explain, measure, draw."""
    from pathlib import Path

    from lit_xai.cli.build import build_logger, finish, plain, say
    from lit_xai.cli.run import Run
    from lit_xai.cli.schema import experiment_name
    from lit_xai.metrics.measures import register_from
    from lit_xai.report import draw, levels
    from lit_xai.report.dashboard import Dashboard
    from lit_xai.store.files import write_csv

    register_from(cfg.measures)
    kinds = check_levels(cfg)
    base = Run(cfg, "train")
    folder = Path(cfg.root) / f"{experiment_name(cfg)}-degradation"
    ensembles = [("none", 0.0), *((kind, level) for kind, levels in kinds.items() for level in levels)]
    say(
        f"{len(ensembles)} ensembles of {cfg.data.folds} predictors, explained by {', '.join(base.explainers)} -> {folder}"
    )
    if cfg.dry_run:
        return
    rows: list[list[Any]] = []
    for kind, level in ensembles:
        own = damaged(cfg, kind, level)
        for fold in range(cfg.data.folds):
            train_one(own, cfg, fold)
        for fold in range(cfg.data.folds):
            disagreements(own, fold)
        rows += measured(own, kind, level, list(base.explainers))
        write_csv(folder / "degradation.csv", *levels.table(rows).file())
    correlations = levels.rank_correlations(rows)
    levels.for_people(rows).show()
    correlations.show()
    write_csv(folder / "correlations.csv", *correlations.file())
    title = f"{experiment_name(cfg)}: levels of damage"
    picture = draw.degradation(levels.lines_of(rows), folder / "degradation.png", title)
    say(f"written: {folder}/degradation.csv, correlations.csv, {picture.name}")
    logger = build_logger(plain(cfg), folder, "degradation", "evaluate")
    dashboard = Dashboard([logger] if logger is not None else [])
    dashboard.table("degradation", *levels.table(rows).file())
    dashboard.picture("degradation", picture)
    finish(logger)


def check_levels(cfg: Any) -> dict[str, list[float]]:
    """The levels of every kind of damage, in increasing order.

    Raises:
        UsageError: an unknown kind, a level out of (0, 1], or damage that every ensemble would have.
    """
    from lit_xai.cli.build import plain
    from lit_xai.errors import UsageError

    known = ("weight_noise", "label_noise")
    levels = plain(cfg.levels)
    if not isinstance(levels, dict) or not levels or set(levels) - set(known):
        raise UsageError(
            f"levels must give some of {', '.join(known)}, found {levels}: e.g. levels.weight_noise=[0.1,0.3]"
        )
    for kind in known:
        if cfg[kind]:
            raise UsageError(f"{kind}={cfg[kind]} would damage every ensemble: leave it at 0 and set levels.{kind}=")
    for kind, values in levels.items():
        shares = isinstance(values, list) and not any(isinstance(v, bool) for v in values)
        if not shares or not all(isinstance(v, int | float) and 0 < v <= 1 for v in values):
            raise UsageError(f"levels.{kind} must be a list of shares in (0, 1], found {values}")
    if not any(levels.values()):
        raise UsageError("levels has no level: set levels.weight_noise=[0.1,0.3] or levels.label_noise=")
    return {kind: sorted(set(values)) for kind, values in levels.items()}


def damaged(cfg: Any, kind: str, level: float) -> Any:
    """The configuration of one ensemble."""
    from lit_xai.cli.schema import experiment_name

    if kind == "none":
        return with_keys(cfg, name=experiment_name(cfg))
    return with_keys(cfg, name=f"{experiment_name(cfg)}-{kind}={level}", **{kind: level})


def with_keys(cfg: Any, **values: Any) -> Any:
    """A copy with some keys set."""
    from omegaconf import OmegaConf

    own: Any = OmegaConf.create(OmegaConf.to_container(cfg))
    own.update(values)
    return own


def train_one(own: Any, clean: Any, fold: int) -> None:
    """Train and explain one predictor. Weights are damaged after training: the undamaged ones are taken from their folder."""
    from lit_xai.cli.build import plain
    from lit_xai.cli.run import Run
    from lit_xai.store.files import load_weights, save_weights
    from lit_xai.train import origin, train

    run, whole = (Run(with_keys(cfg, fold=fold), "train") for cfg in (own, damaged(clean, "none", 0.0)))
    if own.weight_noise and not run.checkpoint.exists():
        run.check_folder()
        module: Any = run.module()
        load_weights(module, whole.checkpoint)
        module.add_weight_noise(own.weight_noise, own.seed, fold)
        run.claim()
        save_weights(module, run.checkpoint, {**plain(run.cfg), **origin(run.data)})
    train(run)


def disagreements(own: Any, fold: int) -> None:
    """Explain what one predictor gets right and another wrong."""
    from lit_xai.cli.run import Run
    from lit_xai.explain import explain

    explain(Run(with_keys(own, fold=fold, probes="disagreements"), "explain"))


def measured(own: Any, kind: str, level: float, explainers: list[str]) -> list[list[Any]]:
    """One row an explainer: kind, level, explainer, mean accuracy, an estimate of every measure of the short view."""
    from pathlib import Path

    from lit_xai.metrics.estimation import SHORT, estimates
    from lit_xai.metrics.measures import MEASURES, view
    from lit_xai.report.ensemble import Ensemble
    from lit_xai.report.head import head

    ensemble = Ensemble(Path(own.root) / own.name, own.seed)
    accuracy = [a["value"] for a in head(ensemble)["held_out_accuracy"].values()]
    known = {m: MEASURES[m] for m in view(SHORT)}
    mean = sum(accuracy) / len(accuracy)
    return [[kind, level, name, mean, *estimates(ensemble.pairs(name), known).values()] for name in explainers]


if __name__ == "__main__":
    main()
