"""`python -m lit_xai.evaluate`: the final numbers of an experiment, from its stores alone."""

from __future__ import annotations

from typing import Any

from lit_xai.cli.command import command

SHOWN = 10_000  # cases on the dashboard; the file has them all
ABOUT = """MeGe, ReCo and every score of every explainer, with 95 % intervals, nulls, marks and rank sets.
Reads checkpoints/<name>/fold=*/ and nothing else; writes summary.json, .csv, .tex, histograms and report.html there.
compare=[a,b]: folders (names below root=, or paths) on one page, compared-a-b/audit.html, with their differences.
samplers=[black,grey,mean] name=<folder> fold=0: how good fillers are as samplers for that fold's predictor instead:
are their samples in distribution, diverse, local, and what do they cost; writes fold=0/samplers.csv, .tex and pictures.
label_errors=true name=<folder>: which labels are probably wrong by predictors that never saw them, and whether the folds' reasons
agree about it; writes label_errors.csv, .json and .png.
--status name=<folder>: how many shards of every fold and explainer are done, running and missing, which processes work on
them, and the commands that complete them (--json for programs); nothing is computed."""


def show_status(arguments: list[str]) -> None:
    """`--status`: how far the experiment is. Neither torch nor any map is loaded."""
    from pathlib import Path

    from lit_xai.cli.command import fail, parted, quoted
    from lit_xai.cli.compose import compose
    from lit_xai.cli.schema import experiment_name
    from lit_xai.cluster import status
    from lit_xai.errors import UsageError

    overrides, flags = parted(arguments)
    if set(flags) - {"--json"}:
        fail(f"--status takes root=, name= (or data=, model=) and --json, found {min(set(flags) - {'--json'})}")
    try:
        cfg = compose("evaluate", ["explainer=[]", "score=[]", *map(quoted, overrides)])
        status.show(Path(cfg.root) / experiment_name(cfg), "--json" in flags)
    except UsageError as e:
        fail(str(e))


@command("evaluate", ABOUT, show_status, sweeps=False)
def main(cfg: Any) -> None:
    """Measure, print, write, log."""
    from pathlib import Path

    from lit_xai.cli.schema import experiment_name

    if cfg.label_errors not in (None, False):
        from lit_xai.cli.label_errors import label_errors

        label_errors(cfg)
        return
    if cfg.get("filler") or cfg.samplers is not None:
        evaluate_samplers(cfg)
        return
    if cfg.compare is not None:
        compare(cfg)
        return
    evaluate(cfg, Path(cfg.root) / experiment_name(cfg))


def measured(cfg: Any, folder: Any) -> Any:
    """A folder's stores and their summary; None where it is a dry run."""
    from lit_xai.cli.build import plain, say
    from lit_xai.metrics.measures import register_from
    from lit_xai.report import audit, printed, show, workspace
    from lit_xai.report.ensemble import Ensemble
    from lit_xai.report.summarise import summarise

    show.shown_or_refuse(cfg.definition)
    workspace.check(cfg.get("dashboard", False), cfg.logger)
    register_from(cfg.get("measures") or ())
    asked = printed.read(plain(cfg.get("printed")))
    ensemble = Ensemble(folder, cfg.seed)
    only = plain(cfg.only)
    only = [only] if isinstance(only, str) else only
    say(
        f"{folder}: {len(ensemble.folds)} of {ensemble.split.k} folds, {len(only or ensemble.explainers())} explainers; "
        f"no model calls, maps are read once"
    )
    if cfg.dry_run:
        return None
    summary = summarise(ensemble, only, cfg.distance, progress=cfg.progress, pairs=plain(cfg.pairs))
    network = audit.saved(folder / f"fold={ensemble.folds[0]}" / "config.yaml").get("model") or {}
    for table in printed.of_table(asked, printed.SUMMARY, network.get("name")):
        summary.compare_with(table)
    return ensemble, summary


def evaluate(cfg: Any, folder: Any) -> None:
    """The whole evaluation of one folder."""
    from lit_xai.report import show

    found = measured(cfg, folder)
    if found is not None:
        show.show(found[1], cfg.definition)
        write(cfg, folder, *found)


def write(cfg: Any, folder: Any, ensemble: Any, summary: Any) -> None:
    """A folder's tables and pictures, and what the logger gets of them."""
    from lit_xai.cli.build import build_logger, finish, plain, say
    from lit_xai.report import lineage, page, workspace
    from lit_xai.report.cases import draw_worst
    from lit_xai.report.dashboard import Dashboard

    files = page.write(summary, folder, cfg.definition) + draw_worst(
        ensemble, summary.cases, summary.worst, folder / "cases"
    )
    say(f"written: {folder}/{', '.join(str(f.relative_to(folder)) for f in files)}")
    logger = build_logger(plain(cfg), folder, "evaluate", "evaluate")
    dashboard = Dashboard([logger] if logger is not None else [])
    log(summary, dashboard, folder)
    lineage.log(dashboard, lineage.summary_of(folder, [ensemble.stores[f] for f in ensemble.folds], summary.head))
    if cfg.get("dashboard"):
        say(f"W&B: {workspace.offer(summary, dashboard, folder)}")
    finish(logger)


def together_in(folders: Any) -> Any:
    """Where the page of some folders goes: into the folder itself, or one beside several."""
    first, *others = folders
    return first.parent / f"compared-{'-'.join(f.name for f in folders)}"[:120] if others else first


def audits(cfg: Any, folders: Any, into: Any, command: str, own: Any = (), **about: Any) -> None:
    """The verdicts on some folders: printed, and on one page in the folder `into`.

    Args:
        cfg: how they are evaluated.
        folders: their places.
        into: where the page goes.
        command: that makes it again.
        own: the configuration of each folder, under which its own files are written and logged; empty = they are not.
        about: further lists for `Audit`, an entry a folder: names of classes, seconds of model passes.
    """
    from lit_xai.cli.build import plain, say
    from lit_xai.report import audit, conditions
    from lit_xai.report.compare import comparisons

    asked = conditions.read(plain(cfg.conditions))
    found = [(folder, *both) for folder in folders if (both := measured(cfg, folder)) is not None]
    every = []
    for number, (_, ensemble, summary) in enumerate(found):
        more = {key: values[number] for key, values in about.items()}
        every.append(audit.Audit.of(ensemble, summary, asked, command=command, **more))
    if not every:
        return
    audit.show(every, definition=cfg.definition)
    files = audit.write(every, into, comparisons(every))
    for theirs, (folder, ensemble, summary) in zip(own, found, strict=False):
        write(theirs, folder, ensemble, summary)
    say(f"written: {', '.join(map(str, files))}")


def compare(cfg: Any) -> None:
    """Several folders on one page.

    Raises:
        UsageError: fewer than two, or one is no folder of results.
    """
    import shlex
    import sys
    from pathlib import Path

    from lit_xai.cli.build import plain
    from lit_xai.errors import UsageError

    names = plain(cfg.compare)
    names = [names] if isinstance(names, str) else list(map(str, names))
    if len(names) < 2:
        raise UsageError(f"compare= takes two folders or more, as in compare=[a,b]; found {', '.join(names) or 'none'}")
    folders = [path if (path := Path(cfg.root) / name).is_dir() else Path(name) for name in names]
    for name, folder in zip(names, folders, strict=True):
        if not any(folder.glob("fold=*")):
            raise UsageError(
                f"compare= names {name}, but there are no results in {folder}: give a name below root={cfg.root}, or a path"
            )
    audits(
        cfg,
        folders,
        together_in(folders),
        shlex.join(["python", "-m", "lit_xai.evaluate", *sys.argv[1:]]),
    )


def evaluate_samplers(cfg: Any) -> None:
    """Samples of the fillers by the predictor of one fold; nothing but their own files is written.

    Raises:
        UsageError: no such predictor, or a filler that does not fit it.
    """
    from lit_xai.callbacks import SamplerTable
    from lit_xai.cli.build import say
    from lit_xai.cli.run import Run
    from lit_xai.cli.saved import with_saved
    from lit_xai.errors import UsageError
    from lit_xai.report import printed

    if not cfg.get("filler"):
        raise UsageError("samplers= names no filler: give it on the command line, as in samplers=[black,grey]")
    run = Run(with_saved(cfg), "evaluate")
    c = run.cfg
    if run.is_sampler:
        raise UsageError(f"{run.name} is a sampler: name= a classifier's folder, and the sampler in samplers=")
    run.require_trained()
    run.check_folder()
    options = {"number": c.sampler_images, "draws": c.sampler_draws, "target": c.target, "progress": c.progress}
    options["beside"] = run.printed_beside(printed.SAMPLERS)
    callback = SamplerTable(run.store, run.fillers, c.seed, **options)
    for filler in run.fillers.values():
        filler.fitted(run.data.trained_on).contents()  # a missing file? better now than after the others
    say(
        f"{run.name} fold {c.fold} of {c.data.folds}: {c.sampler_draws} samples of at most {c.sampler_images} held-out "
        f"probes by {', '.join(run.fillers)} -> {run.store.root}"
    )
    if c.dry_run:
        return
    with run.interruptible(), run.launched(run.load()) as on:
        callback.run(on)


def log(summary: Any, dashboard: Any, folder: Any) -> None:
    """Everything to the dashboard."""
    from lit_xai.report.cases import case_table
    from lit_xai.report.printed import every_number as every_printed_number
    from lit_xai.report.show import every_number

    values = {f"{c}/{row.explainer}": e.value for row in summary.rows for c, e in row.estimates.items()}
    values["stability/folds"] = len(summary.head["folds_present"])
    lack = summary.head["unfinished"]
    values["unfinished"] = float(lack is not None)
    dashboard.note(unfinished=lack["message"] if lack else "", alarms=summary.head["alarms"])
    for fold, accuracy in summary.head["held_out_accuracy"].items():
        values[f"heldout/acc/fold={fold}"] = accuracy["value"]
    dashboard.scalars(values, {**summary.columns, "heldout/acc": True})
    for name, (equal, differ) in summary.distances.items():
        dashboard.histogram(f"distances/{name}/equal", equal)
        dashboard.histogram(f"distances/{name}/differ", differ)
    dashboard.table("summary", *every_number(summary).file())
    if summary.beside:
        dashboard.table("printed", *every_printed_number(summary.beside).file())
    columns, rows = case_table(summary.cases).file()
    dashboard.table("cases", columns, rows[:SHOWN])
    for path in (folder / "histograms.png", folder / "stability-plane.png"):
        dashboard.picture(path.stem, path)
    for name in dict.fromkeys(case["explainer"] for case in summary.cases):
        dashboard.picture(f"cases/{name}", folder / "cases" / f"{name}.png")
    for path in (folder / "report.html", folder / "audit.html"):
        dashboard.page(path.stem, path)


if __name__ == "__main__":
    main()
