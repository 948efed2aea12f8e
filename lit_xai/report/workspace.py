"""A workspace of W&B, built from what an evaluation found: what is asked first stands first."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

from lit_xai.errors import UsageError
from lit_xai.metrics.measures import MEASURES
from lit_xai.report import conditions
from lit_xai.report.answers import Verdict
from lit_xai.report.dashboard import Dashboard
from lit_xai.report.summary import Summary
from lit_xai.report.verdict import conclude
from lit_xai.store.files import write_atomically

FILE = "workspace.json"
MEND = "pip install 'lit_xai[dashboards]'"


def check(wanted: Any, logger: Any) -> None:
    """Refuse `dashboard=` before any work is done where no workspace can be built.

    Raises:
        UsageError: it is no yes or no, another logger is chosen, or the package is missing.
    """
    if not isinstance(wanted, bool):
        raise UsageError(f"dashboard must be true or false, found {wanted!r}")
    if not wanted:
        return
    if "project" not in logger:
        raise UsageError("dashboard=true builds a workspace of Weights & Biases: set logger=wandb")
    try:
        import wandb_workspaces.workspaces  # noqa: F401
    except ImportError as e:
        raise UsageError(f"dashboard=true needs wandb-workspaces ({e}): {MEND}") from None


def offer(summary: Summary, dashboard: Dashboard, folder: Path) -> str:
    """Save the workspace where the run is sent, else leave it in the folder; says what was done."""
    (run,) = dashboard.runs
    made = build(summary, str(run.entity or "entity"), str(run.project), str(run.group))
    view = made._to_model()  # what `save` sends; the package has no other form of it
    write_atomically(
        folder / FILE, json.dumps(view.model_dump(mode="json", by_alias=True, exclude_none=True), indent=1)
    )
    why = "log in (wandb login)"
    if not run.offline:
        try:
            made.save()
            return f"the workspace {made.url}"
        except Exception as e:  # whatever a server answers, the evaluation is done
            why = f"it was not taken ({(str(e).splitlines() or [type(e).__name__])[0]})"
    return f"a workspace in {folder / FILE}; to send it: {why}, then the same command again"


def build(summary: Summary, entity: str, project: str, group: str) -> Any:
    """The workspace of one experiment, its runs by fold."""
    import wandb_workspaces.workspaces as ws

    name = "".join(
        "-" if unicodedata.category(c)[0] in "SC" else c for c in f"{group}: can its explanations be trusted?"
    )
    mine = (
        [] if set(group) & set("'\"\\") else [ws.Metric("Group") == group]
    )  # the package writes code of it, without escapes
    by_fold = ws.RunsetSettings(groupby=[ws.Metric("Group"), ws.Metric("Name")], filters=mine)
    shown = sections(summary, conclude(summary, conditions.default()))
    rooms = [ws.Section(name=n, panels=panels, is_open=True) for n, panels in shown.items()]
    return ws.Workspace(entity=entity, project=project, name=name, sections=rooms, runset_settings=by_fold)


def sections(summary: Summary, verdict: Verdict) -> dict[str, list[Any]]:
    """The panels of every section; a number that no method has gets none."""
    import wandb_workspaces.reports.v2 as wr

    def bars(column: str) -> Any:
        up = summary.columns.get(column, True)
        keys: list[Any] = [f"{column}/{row.explainer}" for row in summary.rows if column in row.estimates]
        return wr.BarPlot(title=f"{column} ({'higher' if up else 'lower'} is better)", metrics=keys)

    def media(title: str, *keys: str) -> Any:
        return wr.MediaBrowser(title=title, media_keys=list(keys), num_columns=1)

    measures = [c for c in summary.columns if c in MEASURES]
    scores = [c for c in summary.columns if c not in MEASURES]
    drawn = list(dict.fromkeys(f"cases/{case['explainer']}" for case in summary.cases))
    return {
        "Verdict": [
            wr.MarkdownPanel(markdown=words(verdict)),
            media("The pages", "audit", "report"),
            wr.WeavePanelSummaryTable(table_name="summary"),
        ],
        "Stability": [*map(bars, measures), media("Dependence on the model", "stability-plane", "histograms")],
        "Faithfulness": [*map(bars, scores), wr.WeavePanelSummaryTable(table_name="scores")],
        "Maps": [media("Gallery", "gallery"), wr.WeavePanelSummaryTable(table_name="probes")],
        "Contradictions": [wr.WeavePanelSummaryTable(table_name="cases"), *(media(key, key) for key in drawn)],
        "Training": [
            wr.LinePlot(title="Loss", y=["train/loss"]),
            wr.LinePlot(title="Accuracy", y=["val/acc"]),
            wr.BarPlot(title="Held-out accuracy", metrics=["heldout/acc"]),
        ],
    }


def words(verdict: Verdict) -> str:
    """The verdict, as Markdown: a name's characters mean nothing there."""
    text = "\n\n".join(t for t in (f"# {verdict.overall}", verdict.sentence, verdict.tag) if t)
    return "".join(f"\\{c}" if c in "\\`*_[]<>|" else c for c in text)
