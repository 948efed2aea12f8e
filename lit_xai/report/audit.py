"""An audit of one or several networks: audit.html, audit.json, audit.md, and the verdict on the terminal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from yaml import YAMLError

import lit_xai
from lit_xai.report import conditions, evidence, label_errors, pictures
from lit_xai.report import show as tables
from lit_xai.report.answers import CARE, DISTRUST, ICONS, NOT_APPLICABLE, TRUST, Verdict
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.shortcut import Found, found
from lit_xai.report.summary import Summary
from lit_xai.report.table import Column, Table, console
from lit_xai.report.verdict import conclude
from lit_xai.store.files import write_atomically

MOST = 2  # reasons that a question has on the terminal
TRAINING = {
    "hide": "hide",
    "hide_cells": "hide",
    "calibrate": "calibrate",
    "train_seed": "train_seed",
}  # named if that is set
SCHEMA = 1  # of audit.json: it grows when a key changes its meaning or goes


@dataclass
class Audit:
    """One network's numbers and what follows from them.

    Attributes:
        ensemble, summary, verdict: of the network.
        command: that makes all of it again; empty = not known.
        classes: their names; empty = numbers.
        seconds: of one forward and one backward pass of one image; None = not timed.
    """

    ensemble: Ensemble
    summary: Summary
    verdict: Verdict
    command: str = ""
    classes: Sequence[str] = ()
    seconds: tuple[float, float] | None = None

    @staticmethod
    def of(
        ensemble: Ensemble, summary: Summary, asked: Sequence[conditions.Condition] | None = None, **about: Any
    ) -> Audit:
        """With its verdict, by these conditions (None: the default ones)."""
        config = saved(ensemble.root / f"fold={ensemble.folds[0]}" / "config.yaml")
        data = str((config.get("data") or {}).get("name") or "")
        verdict = conclude(summary, conditions.default() if asked is None else asked, data=data)
        return Audit(ensemble, summary, verdict, **about)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return str(self.summary.head["name"])

    def column(self, key: str) -> str:
        """The first column of a question that any method has; empty if none has."""
        asked = [c for c in self.verdict.conditions if c.key == key]
        known = [c for of in asked for c in of.columns if any(c in row.estimates for row in self.summary.rows)]
        return next(iter(known), "")

    @cached_property
    def shortcut(self) -> Found | None:
        """What was found of a planted shortcut; None where there is none."""
        return found(self.ensemble, self.summary.nulls)

    @cached_property
    def plain(self) -> dict[str, Any]:
        """All of it, JSON-ready: what the page and the card show."""
        s, v = self.summary, self.verdict
        cost = evidence.costs(self.ensemble, s, self.seconds)
        return clean(
            {
                "name": self.name,
                "command": self.command,
                "verdict": v.plain(),
                "conditions": [c.plain() for c in v.conditions],
                "not_shown": [
                    dict(zip(("question", "status", "reason", "methods"), u, strict=True)) for u in v.unanswered()
                ],
                "network": self.network(),
                **s.plain(),
                "costs": cost,
                "leaderboard": evidence.leaderboard(s, v.methods, v.standing(), cost, self.column("faithful")),
                "plane": evidence.plane(s),
                "distances": evidence.distances(s),
                "calibration": evidence.calibration(self.ensemble),
                "domain": evidence.domain(self.ensemble),
                "shortcut": self.shortcut.plain() if self.shortcut is not None else None,
                "label_errors": label_errors.kept(self.ensemble.root),
                "slices": evidence.slices(self.ensemble, s, self.classes),
                "cases": pictures.chosen(
                    self.ensemble, s, self.column("faithful"), self.column("points"), self.classes
                ),
            }
        )

    def network(self) -> dict[str, Any]:
        """What the predictors are: checkpoints by fold, and what their saved configuration says of architecture and data."""
        e = self.ensemble
        config = saved(e.root / f"fold={e.folds[0]}" / "config.yaml")
        model, data = config.get("model") or {}, config.get("data") or {}
        return {
            "architecture": model.get("name"),
            "network": model.get("network"),
            "training": {k: config[k] for k, on in TRAINING.items() if config.get(on) not in (None, False)},
            "data": {k: v for k, v in data.items() if isinstance(v, str | int | float)},
            "checkpoints": {str(f): p.meta.get("checkpoint") for f, p in e.predictions.items()},
            "classes": len(self.classes) or (int(e.split.labels.max()) + 1 if len(e.split.labels) else 0),
            "class_names": list(self.classes),
            "seed": e.seed,
        }


def saved(file: Path) -> dict[str, Any]:
    """A saved configuration as it is written, nothing resolved; empty where there is none that can be read."""
    try:
        found = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (OSError, OmegaConfBaseException, YAMLError):
        return {}
    return {str(k): v for k, v in found.items()} if isinstance(found, dict) else {}


def clean(value: Any) -> Any:
    """The same for JSON: keys are texts, NaN and infinity are null, what else it cannot hold is text."""
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [clean(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def document(audits: Sequence[Audit], comparisons: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What `audit.json` holds, of all audits."""
    return {
        "schema": SCHEMA,
        "version": lit_xai.__version__,
        "written": time.strftime("%Y-%m-%d", time.gmtime()),
        "audits": [a.plain for a in audits],
        "comparisons": [clean(c) for c in comparisons],
    }


def write(audits: Sequence[Audit], folder: Path, comparisons: Sequence[Mapping[str, Any]] = ()) -> list[Path]:
    """audit.html, audit.json and audit.md of one or several networks. Returns what was written."""
    from lit_xai.report.render import card, page

    found = document(audits, comparisons)
    sprites: dict[tuple[int, str, int], pictures.Strip] = {}
    for number, a in enumerate(audits):
        of = pictures.sprites(a.ensemble, a.plain["cases"], pictures.BUDGET // len(audits))
        sprites |= {(number, *key): uri for key, uri in of.items()}
    listed = [label_errors.picture(a.ensemble.root) if a.plain["label_errors"] else "" for a in audits]
    texts = {
        "audit.html": page(found, sprites, listed),
        "audit.json": json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "audit.md": card(found),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text)
    return [folder / name for name in texts]


# ------------------------------------------------------------------------------------------------------------- terminal


def answers(a: Audit) -> Table:
    """Method by question, the most trusted first; `✓ shown` and so on."""
    asked = [
        c for c in a.verdict.conditions if any(of[c.key].status != NOT_APPLICABLE for of in a.verdict.answers.values())
    ]
    columns = [Column("explainer"), Column("verdict"), *(Column(c.key, head=c.question) for c in asked)]
    rows = [
        [m, marked(a.verdict.methods[m]), *(marked(a.verdict.answers[m][c.key].status) for c in asked)]
        for m in ordered(a)
    ]
    caption = "\n".join(f"{c.key}: shown where {c.text()}" for c in a.verdict.conditions)
    return Table(columns, rows, caption=caption)


def lacking(v: Verdict) -> list[str]:
    """What could not be shown, a line a question: the reason, if it is one for all, else what each method would need."""
    out: dict[tuple[str, str], list[tuple[str, list[str]]]] = {}
    for question, status, reason, methods in v.unanswered():
        out.setdefault((question, status), []).append((reason, methods))
    return [
        f"{question} {status}: "
        + (
            found[0][0]
            if len(found) == 1
            else "; ".join(reason for reason, _ in found[:MOST])
            + (f"; and {len(found) - MOST} more, see audit.html" if len(found) > MOST else "")
        )
        for (question, status), found in out.items()
    ]


def marked(word: str) -> str:
    """A word behind its sign."""
    return f"{ICONS[word]} {word}"


def ordered(a: Audit) -> list[str]:
    """The methods, the most trusted first."""
    return [row["explainer"] for row in a.plain["leaderboard"]]


def show(audits: Sequence[Audit], to: Console | None = None, definition: str = "default") -> None:
    """The verdict first, then why, then the numbers in the same order."""
    to = to or console()
    for a in audits:
        style = {TRUST: "bold green", CARE: "bold yellow", DISTRUST: "bold red"}[a.verdict.overall]
        to.print(f"{ICONS[a.verdict.overall]} {a.verdict.headline}", style=style, markup=False, highlight=False)
        for line in (a.verdict.sentence, a.verdict.tag, a.shortcut.sentence if a.shortcut is not None else ""):
            to.print(line, markup=False, highlight=False, soft_wrap=True) if line else None
        answers(a).show(to)
        for table in a.shortcut.tables() if a.shortcut is not None else ():
            table.show(to)
        for line in lacking(a.verdict):
            to.print(f"  {line}", style="yellow", markup=False, highlight=False)
        order = {name: place for place, name in enumerate(ordered(a))}
        rows = sorted(a.summary.rows, key=lambda row: order.get(row.explainer, len(order)))
        tables.show(
            replace(a.summary, rows=rows), definition, to, tables.filled(a.summary, tables.shown(a.summary, definition))
        )
