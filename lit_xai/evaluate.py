"""`python -m lit_xai.evaluate`: the final numbers of an experiment, from its stores alone."""

from __future__ import annotations

from typing import Any

from lit_xai.cli import door

ABOUT = """MeGe, ReCo and every score of every explainer, with 95 % intervals, nulls and the paired difference to Random.
Reads checkpoints/<name>/fold=*/ and nothing else; writes summary.json, .csv, .tex, histograms and report.html there."""


@door("evaluate", ABOUT)
def main(cfg: Any) -> None:
    """Measure, print, write, log."""
    from pathlib import Path

    from lit_xai.runs import experiment_name

    evaluate(cfg, Path(cfg.root) / experiment_name(cfg))


def evaluate(cfg: Any, folder: Any) -> None:
    """The whole evaluation of one folder."""
    from lit_xai import report
    from lit_xai.dashboard import Dashboard
    from lit_xai.ensemble import Ensemble
    from lit_xai.runs import build_logger, finish, plain, say

    report.shown_or_refuse(cfg.definition)
    ensemble = Ensemble(folder, cfg.seed)
    only = plain(cfg.only)
    chosen = [only] if isinstance(only, str) else only
    say(
        f"{folder}: {len(ensemble.folds)} of {ensemble.split.k} folds, {len(chosen or ensemble.explainers())} explainers; "
        f"no model calls, maps are read once"
    )
    if cfg.dry_run:
        return
    summary = ensemble.summarise(chosen, cfg.distance, progress=cfg.progress)
    files = report.write(summary, folder, cfg.definition)
    report.show(summary, cfg.definition)
    say(f"written: {folder}/summary.json, {', '.join(f.name for f in files[1:])}")
    logger = build_logger(plain(cfg), folder, "evaluate", "evaluate")
    dashboard = Dashboard([logger] if logger is not None else [])
    log(summary, dashboard, folder)
    finish(logger)


def log(summary: Any, dashboard: Any, folder: Any) -> None:
    """Everything to the dashboard."""
    values = {f"{c}/{row.explainer}": e.value for row in summary.rows for c, e in row.estimates.items()}
    values["stability/folds"] = len(summary.head["folds_present"])
    for fold, accuracy in summary.head["held_out_accuracy"].items():
        values[f"heldout/acc/fold={fold}"] = accuracy["value"]
    dashboard.scalars(values)
    for name, (equal, differ) in summary.distances.items():
        dashboard.histogram(f"distances/{name}/equal", equal)
        dashboard.histogram(f"distances/{name}/differ", differ)
    rows = [
        [row.explainer, c, e.value, e.low, e.high, e.null, row.marked(c), e.reason]
        for row in summary.rows
        for c, e in row.estimates.items()
    ]
    dashboard.table("summary", ["explainer", "column", "value", "low", "high", "null", "marked", "reason"], rows)
    dashboard.picture("histograms", folder / "histograms.png")
    dashboard.page("report", folder / "report.html")


if __name__ == "__main__":
    main()
