"""`python -m lit_xai.degradation experiment=degradation`: do MeGe and ReCo fall as the predictors get worse?"""

from __future__ import annotations

from typing import Any

from lit_xai.cli.command import door

ABOUT = """Train an ensemble for every level of damage (noise on weights, wrong training labels; Fel et al., 2022), explain with all of
them, and print MeGe and ReCo per level and their rank correlation with the level. What is there already is not done again.
Writes checkpoints/<name>-degradation/degradation.csv, correlations.csv and degradation.png; the ensembles lie beside it as
<name>-<kind>=<level>. experiment=degradation chooses eight quick explainers and small counts. A kind of damage is left out by
levels.label_noise=[]. Keys of one run (fold, probes, part, image, sanity, curves) have no meaning here."""

MEASURES = ("mege", "reco")
COLUMNS = (
    "kind",
    "level",
    "explainer",
    "accuracy",
    *(f"{m}{b}" for m in MEASURES for b in ("", "_low", "_high", "_null", "_note")),
)


@door("degradation", ABOUT)
def main(cfg: Any) -> None:
    """Train, explain, measure, draw."""
    from pathlib import Path

    from lit_xai.cli.build import build_logger, finish, plain, say
    from lit_xai.cli.run import Run
    from lit_xai.cli.schema import experiment_name
    from lit_xai.report import draw
    from lit_xai.report.dashboard import Dashboard
    from lit_xai.store.files import write_csv

    kinds = check_levels(cfg)
    base = Run(cfg, "train")
    folder = Path(cfg.root) / f"{experiment_name(cfg)}-degradation"
    ensembles = [("none", 0.0), *((kind, level) for kind, levels in kinds.items() for level in levels)]
    say(
        f"{len(ensembles)} ensembles of {cfg.data.folds} predictors, explained by {', '.join(base.explainers)} -> {folder}"
    )
    if cfg.dry_run:
        return
    table: list[list[Any]] = []
    for kind, level in ensembles:
        own = damaged(cfg, kind, level)
        for fold in range(cfg.data.folds):
            train_one(own, cfg, fold)
        for fold in range(cfg.data.folds):
            disagreements(own, fold)
        table += measured(own, kind, level, list(base.explainers))
        write_csv(folder / "degradation.csv", COLUMNS, table)
    correlations = rank_correlations(table)
    show(table, correlations)
    write_csv(folder / "correlations.csv", ("kind", "explainer", *MEASURES), correlations)
    picture = draw.degradation(lines_of(table), folder / "degradation.png", f"{experiment_name(cfg)}: levels of damage")
    say(f"written: {folder}/degradation.csv, correlations.csv, {picture.name}")
    logger = build_logger(plain(cfg), folder, "degradation", "evaluate")
    dashboard = Dashboard([logger] if logger is not None else [])
    dashboard.table("degradation", list(COLUMNS), table)
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
    """One row an explainer, in the order of `COLUMNS`."""
    from pathlib import Path

    from lit_xai.metrics.measures import MEASURES as KNOWN
    from lit_xai.metrics.measures import estimates
    from lit_xai.report.ensemble import Ensemble
    from lit_xai.report.head import head

    ensemble = Ensemble(Path(own.root) / own.name, own.seed)
    accuracy = [a["value"] for a in head(ensemble)["held_out_accuracy"].values()]
    rows: list[list[Any]] = []
    for name in explainers:
        found = estimates(ensemble.pairs(name), {m: KNOWN[m] for m in MEASURES})
        cells = [x for m in MEASURES for e in [found[m]] for x in (e.value, e.low, e.high, e.null, e.reason)]
        rows.append([kind, level, name, sum(accuracy) / len(accuracy), *cells])
    return rows


def lines_of(table: list[list[Any]]) -> dict[str, dict[str, dict[str, list[tuple[float, float, float, float]]]]]:
    """`{kind: {measure: {explainer: [(level, value, low, high)]}}}`; the undamaged ensemble is level 0 of every kind."""
    kinds = dict.fromkeys(row[0] for row in table if row[0] != "none")
    out: dict[str, dict[str, dict[str, list[tuple[float, float, float, float]]]]] = {}
    for kind in kinds:
        for measure in MEASURES:
            at = COLUMNS.index(measure)
            lines = out.setdefault(kind, {}).setdefault(measure, {})
            for row in sorted((r for r in table if r[0] in ("none", kind)), key=lambda r: r[1]):
                lines.setdefault(row[2], []).append((row[1], row[at], row[at + 1], row[at + 2]))
    return out


def rank_correlations(table: list[list[Any]]) -> list[list[Any]]:
    """Spearman correlation of every measure with the level: one row a kind and explainer; NaN below three levels."""
    import math

    from scipy.stats import spearmanr

    rows: list[list[Any]] = []
    for kind, measures in lines_of(table).items():
        for explainer in measures[MEASURES[0]]:
            row: list[Any] = [kind, explainer]
            for measure in MEASURES:
                points = [(level, value) for level, value, *_ in measures[measure][explainer] if not math.isnan(value)]
                enough = len(points) > 2 and len({v for _, v in points}) > 1
                levels, values = ([p[i] for p in points] for i in (0, 1))
                row.append(float(spearmanr(levels, values).statistic) if enough else math.nan)
            rows.append(row)
    return rows


def show(table: list[list[Any]], correlations: list[list[Any]]) -> None:
    """MeGe and ReCo per level on the terminal, with intervals and nulls, and the rank correlations."""
    from lit_xai.callbacks.fillers import show_rows
    from lit_xai.metrics.statistics import Estimate

    def cell(row: list[Any], measure: str) -> str:
        value, low, high, null, note = row[COLUMNS.index(measure) : COLUMNS.index(measure) + 5]
        if value != value:
            return f"NaN: {note}"
        return Estimate(value, low, high).text() + (f" /{null:.2f}" if null == null and null is not None else "")

    rows = [[r[0], f"{r[1]:.0%}", r[2], f"{r[3]:.3f}", *(cell(r, m) for m in MEASURES)] for r in table]
    show_rows("per level (95 % interval) /null", ("damage", "level", "explainer", "accuracy", *MEASURES), rows)
    show_rows(
        "rank correlation with the level: -1 = falls at every step", ("damage", "explainer", *MEASURES), correlations
    )


if __name__ == "__main__":
    main()
