"""What is logged, under which name, and to whom.

| key | what |
|---|---|
| `train/loss`, `val/acc`, `heldout/acc`, `test/acc` | training of one fold |
| `<score>/<explainer>` | mean of a score over a fold's probes |
| `mege/<explainer>`, `reco/<explainer>`, `reco_auc/<explainer>` | over the folds present (`stability/folds`) |
| `sanity/<way>/<measure>/<explainer>` | maps of the model whose layers are all re-initialised; `sanity/<way>` is the picture |
| `unfinished`, `alarms` | of an evaluation: 1 if something is missing; what, in the run's summary, and why not to trust it |
| `distances/<explainer>/equal`, `.../differ` | histograms of the two sets of distances |
| `probes` | a table of one fold: up to 32 held-out probes, each with its image, every explainer's map as a picture, its scores |
| `summary` | a table: every number with its interval, mark, ranks, and whether its row is a null's; the nulls last |
| `scores` | a table: one row a probe and explainer |
| `cases` | a table: the probes whose maps differ most between folds, and whether they are contradictions; `cases/<explainer>` shows them |
| `gallery`, `histograms`, `stability-plane` | pictures |
| `report`, `audit` | the pages |
| `checkpoint` | the checkpoint's path (in the run's summary) |

A run's summary keeps the best value of every number that has a direction (`define_metric`), e.g. `mege/rise.max`. Artifacts
`data-<data>` -> `model-<name>-fold-<i>` -> `maps-<name>-fold-<i>` -> `summary-<name>` say what was made from what
(`lit_xai.report.lineage`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from lit_xai.report.runs import cleaned, project_name, start, tags_of, wandb_mode
from lit_xai.rng import stable_hash


def wandb_logger(
    folder: Path,
    name: str,
    run: str,
    job_type: str,
    record: Mapping[str, Any],
    project: str = "lit_xai",
    entity: str | None = None,
    mode: str = "auto",
    tags: Sequence[str] = (),
) -> Logger:
    """One run per fold, grouped by experiment; a repeated command continues the run of the same id."""
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return WandbLogger(offline=True, save_dir=str(folder))  # never started: only rank 0 logs
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = dict(
        project=project_name(project),
        entity=entity,
        name=cleaned(run),
        id=f"{stable_hash(str(folder.resolve()), name, run, job_type):016x}",
        group=cleaned(name),
        job_type=job_type,
        tags=tags_of([*tags, *name.split("-")]),
        config=dict(record),
        dir=str(folder),
    )
    return WandbLogger(experiment=start(wandb_mode(mode), options))


def csv_logger(folder: Path, name: str, run: str, job_type: str, record: Mapping[str, Any]) -> Logger:
    """A logger of scalars to `<folder>/csv/<run>-<job_type>/metrics.csv`."""
    return CSVLogger(str(folder), name="csv", version=f"{run}-{job_type}")


def no_logger(folder: Path, name: str, run: str, job_type: str, record: Mapping[str, Any]) -> None:
    """Nothing is logged; all results are in the folder all the same."""
    return None


class Dashboard:
    """Scalars go to every logger, pictures and tables to W&B."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = list(loggers)
        first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
        self.runs = [g.experiment for g in self.loggers if first and isinstance(g, WandbLogger)]

    def directions(self, better: Mapping[str, bool]) -> None:
        """Whether higher is better, by key: a run's summary keeps the best value."""
        for run in self.runs:
            for key, up in better.items():
                run.define_metric(key, summary="max" if up else "min")

    def scalars(self, values: Mapping[str, float | None], better: Mapping[str, bool] | None = None) -> None:
        """Numbers; an undefined one is logged as NaN. `better` is whether higher is better, by the key without its last part."""
        of = {key: (better or {}).get(key.rpartition("/")[0]) for key in values}
        self.directions({key: up for key, up in of.items() if up is not None})
        plain = {k: math.nan if v is None else float(v) for k, v in values.items()}
        for logger in self.loggers:
            logger.log_metrics(plain)
            logger.save()  # no trainer ends an evaluation's logger

    def log(self, key: str, make: Callable[[Any], Any]) -> None:
        """What `make(wandb)` gives, to every run of W&B; nothing is made where there is none."""
        if self.runs:
            import wandb

            for run in self.runs:
                run.log({key: make(wandb)})

    def histogram(self, key: str, values: Tensor) -> None:
        """The distribution of numbers `[n]`; an empty one if there are none yet."""
        counts = np.histogram(values.numpy(), bins=64 if len(values) else 1)
        self.log(key, lambda wandb: wandb.Histogram(np_histogram=counts))

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table; an empty text stands for nothing, and a column may hold numbers and why there is none."""
        data = [[None if value == "" else value for value in row] for row in rows]
        self.log(key, lambda wandb: wandb.Table(columns=list(columns), data=data, allow_mixed_types=True))

    def picture(self, key: str, path: Path) -> None:
        """An image file, if it is there."""
        if path.exists():
            self.log(key, lambda wandb: wandb.Image(str(path)))

    def page(self, key: str, path: Path) -> None:
        """An HTML page, if it is there."""
        if path.exists():
            self.log(key, lambda wandb: wandb.Html(path.read_text()))

    def artifact(self, make: Callable[[Any], Any], used: bool, sources: Collection[str]) -> None:
        """Log what `make(wandb)` gives; a run that is sent says what it used: this very artifact, or these by name."""
        for run in self.runs:
            import wandb

            made = make(wandb)
            if run.offline or run.disabled:  # which may use nothing
                run.log_artifact(made)
                continue
            for name in sources:
                with contextlib.suppress(wandb.errors.Error, ValueError):  # nobody has sent it
                    run.use_artifact(f"{name}:latest")
            run.use_artifact(made) if used else run.log_artifact(made)

    def note(self, **values: Any) -> None:
        """Facts for the run's summary, e.g. the checkpoint's path."""
        for run in self.runs:
            run.summary.update(values)
