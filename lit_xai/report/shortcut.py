"""What the audit says of a planted shortcut: whether predictors lean on it, and whether maps and folds show it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_xai.errors import DamagedFile
from lit_xai.metrics.comparisons import BETTER, Mark, against_nulls, corrected
from lit_xai.metrics.shortcut import MOSTLY
from lit_xai.metrics.statistics import Estimate, difference, mean_estimate, share_estimate
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.table import MARK, Column, Marked, Table, interval
from lit_xai.store.names import SHORTCUTS
from lit_xai.store.tensors import read_tensors

WHOLE, CENTRE = "whole image", "centre"
ASKED = ("with", "without", "wrong")
SAID = {
    "with": "accuracy with it",
    "without": "accuracy without it",
    "lost": "lost without it",
    "wrong": "accuracy with a wrong class's",
    "follows": "says the wrong class",
}
SHOWN = {
    "mass": "mass on it",
    "alone": "mass on it by {alone}",
    "folds": "folds whose top lies on it",
    "all": "all folds do",
}


@dataclass(frozen=True)
class Found:
    """What was found of a planted shortcut.

    Attributes:
        kind, share, clean: what was planted, in which share of the samples, in all folds but this one.
        accuracy: by row (every fold, and the pools of predictors that saw samples of the clean fold and that saw none) the numbers of `SAID`.
        maps: by explainer the numbers of `SHOWN`.
        marks: by `mass` and `alone` the methods, compared with the whole image and the blob in the middle.
        nulls: explainers that ignore the model.
    """

    kind: str
    share: float
    clean: int
    accuracy: dict[str, dict[str, Estimate]]
    maps: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    marks: dict[str, dict[str, Mark]] = field(default_factory=dict)
    nulls: Sequence[str] = ()

    @property
    def leans(self) -> list[str]:
        """The rows whose accuracy is lower without the shortcut, or that follow that of a wrong class more than they err anyway."""
        return [
            row
            for row, of in self.accuracy.items()
            if of["lost"].low > 0 or (of["follows"].null is not None and of["follows"].low > of["follows"].null)
        ]

    @property
    def shown_by(self) -> dict[str, list[str]]:
        """By `mass` and `alone` the methods whose maps lie on it."""
        return {number: [n for n, mark in of.items() if mark.sign == BETTER] for number, of in self.marks.items()}

    @property
    def shown(self) -> dict[str, str]:
        """The heads of the numbers of maps that there are."""
        known = next(iter(self.maps.values()), {})
        return {n: head.format(alone=f"fold {self.clean}") for n, head in SHOWN.items() if n in known}

    @property
    def sentence(self) -> str:
        """What was planted, and what of it was found."""
        alone = self.accuracy.get(alone_of(self.clean))
        what = f"A {self.kind} that gives the class away was planted in all folds but fold {self.clean}"
        what += f" ({self.share:.0%} of their samples)." if self.share < 1 else "."
        if alone is not None:
            fell = "leans on it" if alone_of(self.clean) in self.leans else "is not shown to lean on it"
            what += (
                f" The predictor that saw no fold without it {fell}: right on {alone['with'].text()} of its held-out images with it, on "
                f"{alone['without'].text()} without it."
            )
        if self.kind == "colour":
            return f"{what} It has no place, so that where maps lie says nothing."
        if not self.maps:
            return f"{what} No maps of images with it were scored."
        whose = "alone" if alone is not None else "mass"
        by = ", ".join(self.shown_by[whose]) or "no method"
        return f"{what} {'Its maps' if alone is not None else 'Maps'} lie on the {self.kind} by {by}."

    def plain(self) -> dict[str, Any]:
        """What `audit.json` holds of a shortcut."""
        return {
            "kind": self.kind,
            "share": self.share,
            "clean_fold": self.clean,
            "sentence": self.sentence,
            "leans": self.leans,
            "shown_by": self.shown_by,
            "accuracy": {row: {n: e.plain() for n, e in of.items()} for row, of in self.accuracy.items()},
            "maps": {
                name: {
                    **{n: e.plain() for n, e in of.items()},
                    "marks": {number: of[name].plain() for number, of in self.marks.items() if name in of},
                }
                for name, of in self.maps.items()
            },
            "nulls": list(self.nulls),
            "columns": {"accuracy": SAID, "maps": self.shown},
        }

    def tables(self) -> list[Table]:
        """Accuracies, and maps where the shortcut has a place."""
        columns = [Column("predictors"), *(interval(n, head=f"{head} [95 %]") for n, head in SAID.items())]
        rows: list[list[Any]] = [[row, *(of[n] for n in SAID)] for row, of in self.accuracy.items()]
        caption = (
            "the same held-out images with the shortcut of their class, without it, and with that of a wrong class; behind /: the most "
            "frequent class, and of the wrong class how often it is said of the image without a shortcut"
        )
        out = [Table(columns, rows, f"planted {self.kind}", caption)]
        if self.maps:
            columns = [Column("explainer"), *(interval(n, head=f"{head} [95 %]") for n, head in self.shown.items())]
            on = self.shown_by
            rows = [
                [name, *(Marked(of[n], MARK if name in on.get(n, ()) else "") for n in self.shown)]
                for name, of in self.maps.items()
            ]
            caption = (
                f"over {next(iter(self.maps.values()))['mass'].samples} probes with it; /: the share of the image that it covers, and how often "
                f"random maps would; {MARK} = more than the whole image and a blob in the middle have, Holm over the methods; the top are as many "
                f"pixels as it has, at least {MOSTLY:.0%} of them on it"
            )
            out.append(Table(columns, rows, f"maps on the planted {self.kind}", caption, below=self.nulls))
        return out


def alone_of(clean: int) -> str:
    """The row of the predictor that was trained on the other folds alone."""
    return f"fold {clean}: saw no image without it"


def planted_in(ensemble: Ensemble) -> str:
    """The kind of shortcut that is planted in the data, by the first fold's file; empty where there is none."""
    with contextlib.suppress(DamagedFile):
        return str(read_tensors(ensemble.stores[ensemble.folds[0]].root / SHORTCUTS)[1].get("kind", ""))
    return ""


def found(ensemble: Ensemble, nulls: Collection[str] = ()) -> Found | None:
    """What the folds' files say; None where nothing was planted, or a file is missing or another predictor's."""
    files: dict[int, tuple[dict[str, Tensor], dict[str, Any]]] = {}
    for f in ensemble.folds:
        with contextlib.suppress(DamagedFile):
            tensors, meta = read_tensors(ensemble.stores[f].root / SHORTCUTS)
            if meta["checkpoint"] == ensemble.predictions[f].meta["checkpoint"]:
                files[f] = tensors, meta
    if not files or set(files) != set(ensemble.folds):
        return None
    meta = files[ensemble.folds[0]][1]
    kind, share, clean = str(meta["kind"]), float(meta["share"]), int(meta["clean"])
    asked = {f: of for f, (of, _) in files.items()}
    rows = {alone_of(clean) if f == clean else f"fold {f}": [of] for f, of in asked.items()}
    others = [of for f, of in asked.items() if f != clean]
    if len(others) > 1:
        rows["all others"] = others
    accuracy = {row: accuracies(of, ensemble.seed) for row, of in rows.items()}
    maps = on_maps(asked, clean, nulls, ensemble.seed)
    marks = {number: marks_of(maps, number, nulls) for number in ("mass", "alone")}
    return Found(kind, share, clean, accuracy, maps, marks, [n for n in maps if n in nulls])


def accuracies(parts: Sequence[Mapping[str, Tensor]], seed: int) -> dict[str, Estimate]:
    """The numbers of one row, over the held-out images of some predictors, `{name: [n]}` each."""
    label, other, *said = (torch.cat([of[n] for of in parts]) for n in ("label", "other", *ASKED))
    right = {n: s == label for n, s in zip(ASKED, said, strict=True)}
    frequent = float(torch.bincount(label).max() / len(label))
    out = {n: share_estimate(r, frequent) for n, r in right.items()}
    out["lost"] = mean_estimate(right["with"].double() - right["without"].double(), seed)
    anyway = float((said[ASKED.index("without")] == other).double().mean())
    out["follows"] = share_estimate(said[ASKED.index("wrong")] == other, anyway)
    return {n: out[n] for n in SAID}


def on_maps(
    files: Mapping[int, Mapping[str, Tensor]], clean: int, nulls: Collection[str], seed: int
) -> dict[str, dict[str, Estimate]]:
    """The numbers of every explainer that all folds have judged, `{number: [p]}` each; nulls last."""
    known = [{n.removeprefix("mass/") for n in of if n.startswith("mass/")} for of in files.values()]
    first, out = next(iter(files.values())), {}
    for name in sorted(set.intersection(*known), key=lambda n: (n in nulls, n)):
        mass = torch.stack([of[f"mass/{name}"] for of in files.values()]).nanmean(0)
        on = torch.stack([of[f"top/{name}"] for of in files.values()]) >= MOSTLY
        numbers = {"mass": mean_estimate(mass, seed)}
        if clean in files:
            numbers["alone"] = mean_estimate(files[clean][f"mass/{name}"], seed)
        for e in numbers.values():
            e.null = float(first["area"].mean())
        numbers["folds"] = mean_estimate(on.double().mean(0), seed)
        numbers["folds"].null = float(first["chance"].mean())
        numbers["all"] = share_estimate(on.all(0), float((first["chance"] ** len(files)).mean()))
        out[name] = numbers
    return out


def marks_of(maps: Mapping[str, Mapping[str, Estimate]], number: str, nulls: Collection[str]) -> dict[str, Mark]:
    """The methods whose mass is compared with the whole image and, where it is there, the blob in the middle; corrected."""
    marks = {}
    for name, of in maps.items():
        e = of.get(number)
        if e is None or name in nulls or not math.isfinite(e.low) or e.null is None:
            continue
        apart = {WHOLE: mean_estimate(e.each - e.null)}
        if CENTRE in maps:
            apart[CENTRE] = difference(e, maps[CENTRE][number])
        marks[name] = against_nulls(apart, min(apart, key=lambda n: apart[n].value), up=True)
    return corrected(marks, "methods")
