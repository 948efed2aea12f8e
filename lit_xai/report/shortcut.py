"""What the audit says of a planted shortcut: whether predictors lean on it, and whether maps and folds show it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor

from lit_xai.errors import DamagedFile
from lit_xai.metrics.comparisons import BETTER, Mark, against_nulls, corrected
from lit_xai.metrics.shortcut import MOSTLY
from lit_xai.metrics.statistics import LEVEL, Estimate, mean_estimate, share_estimate
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.table import MARK, Column, Marked, Table, interval
from lit_xai.store.names import SHORTCUTS
from lit_xai.store.tensors import read_tensors

OTHERS = "the other predictors"
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
    "alone": "by {alone}",
    "more": "{alone} - others",
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
        marks: of the methods, whether the predictor that saw no image without it has more mass on it than the others.
        nulls: explainers that ignore the model.
    """

    kind: str
    share: float
    clean: int
    accuracy: dict[str, dict[str, Estimate]]
    maps: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    marks: dict[str, Mark] = field(default_factory=dict)
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
    def shown_by(self) -> list[str]:
        """The methods whose maps tell the predictor that can but lean on it from the others."""
        return [name for name, mark in self.marks.items() if mark.sign == BETTER]

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
        if alone is None:
            return f"{what} The predictor of that fold is not there yet, and its maps cannot be told from the others'."
        if not self.marks:
            return f"{what} Its maps cannot be told from those of the others: that needs two others and ten probes."
        by = ", ".join(self.shown_by) or "no method"
        return f"{what} Its maps have more mass on the {self.kind} than those of the others by {by}."

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
                    **({"mark": self.marks[name].plain()} if name in self.marks else {}),
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
            rows = [
                [name, *(Marked(of[n], MARK if n == "more" and name in self.shown_by else "") for n in self.shown)]
                for name, of in self.maps.items()
            ]
            caption = (
                f"over {next(iter(self.maps.values()))['mass'].samples} probes with it; /: the share of the image that it covers, and how often "
                "random maps would; others: predictors that saw images without it, of each probe those that were trained on it, too (interval: of "
                "one more predictor like these); "
                f"{MARK} = more, Holm over the methods; the top are as many pixels as it has, at least {MOSTLY:.0%} of them on it"
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
    maps = on_maps(ensemble, asked, clean, nulls)
    known = {
        n: of["more"] for n, of in maps.items() if n not in nulls and "more" in of and math.isfinite(of["more"].low)
    }
    marks = corrected({n: against_nulls({OTHERS: e}, OTHERS, up=True) for n, e in known.items()}, "methods")
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
    ensemble: Ensemble, files: Mapping[int, Mapping[str, Tensor]], clean: int, nulls: Collection[str]
) -> dict[str, dict[str, Estimate]]:
    """The numbers of every explainer that all folds have judged, `{number: [p]}` each; nulls last."""
    known = [{n.removeprefix("mass/") for n in of if n.startswith("mass/")} for of in files.values()]
    first, seed, out = next(iter(files.values())), ensemble.seed, {}
    for name in sorted(set.intersection(*known), key=lambda n: (n in nulls, n)):
        of_folds = {f: of[f"mass/{name}"] for f, of in files.items()}
        on = torch.stack([of[f"top/{name}"] for of in files.values()]) >= MOSTLY
        numbers = {"mass": mean_estimate(torch.stack(list(of_folds.values())).nanmean(0), seed)}
        numbers["mass"].null = float(first["area"].mean())
        if clean in files and len(files) > 1:
            numbers["alone"] = mean_estimate(of_folds[clean], seed)
            others = [others_of(ensemble, f, of, first["probe"]) for f, of in of_folds.items() if f != clean]
            numbers["more"] = apart(of_folds[clean], torch.stack(others))
        numbers["folds"] = mean_estimate(on.double().mean(0), seed)
        numbers["folds"].null = float(first["chance"].mean())
        numbers["all"] = share_estimate(on.all(0), float((first["chance"] ** len(files)).mean()))
        out[name] = numbers
    return out


def others_of(ensemble: Ensemble, fold: int, mass: Tensor, probes: Tensor) -> Tensor:
    """A predictor's mass `[p]` on probes `[p]` that it was trained on, as the one that it is compared with was; NaN on others, if there are further
    predictors.
    """
    held = ensemble.split.fold(probes) == fold
    return mass.masked_fill(held, torch.nan) if len(ensemble.folds) > 2 else mass


def apart(own: Float[Tensor, "p"], others: Float[Tensor, "k p"]) -> Estimate:
    """A predictor's mean minus that of others, with the 95 % interval of one more predictor like these: no two networks have the same mean,
    so that probes alone would tell any two apart. NaN entries are left out, in pairs.
    """
    each = (own - others).nanmean(1)  # of every other one, on its own probes
    n, k = int((own - others).isfinite().any(0).sum()), len(others)
    value = float(each.mean())
    if k < 2 or not math.isfinite(value):
        return Estimate(value, samples=n, reason="there is one other predictor: nothing says how unlike two are")
    se = float(each.std()) * math.sqrt(1 + 1 / k)
    reach = float(student.ppf((1 + LEVEL) / 2, k - 1)) * se
    return Estimate(value, value - reach, value + reach, se, samples=n, predictors=k)
