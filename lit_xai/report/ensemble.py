"""The k predictors of one experiment, read from their stores alone: the measures and score tables.

Maps stream chunk by chunk; only one number per pair of maps and per score is kept.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lit_xai.cli.schema import NULL
from lit_xai.cluster.status import status
from lit_xai.data.folds import Disagreements, Split
from lit_xai.errors import DamagedFile, UsageError
from lit_xai.metrics.distance import distance_of
from lit_xai.metrics.localisation import settle
from lit_xai.metrics.robustness import robustness_table
from lit_xai.metrics.stability import MeGe, ReCo
from lit_xai.metrics.statistics import (
    Estimate,
    basic_difference,
    difference,
    mean_estimate,
    share_estimate,
)
from lit_xai.report.summary import Row, Summary
from lit_xai.report.unfinished import Share, planned_probes, unfinished
from lit_xai.store.fold import FoldStore, MapReader, Predictions, as_slice, common_samples, differences
from lit_xai.store.names import DISAGREEMENTS, RANDOM
from lit_xai.store.plans import mend
from lit_xai.store.shards import read_head

VALUES = 1 << 19  # map values of one fold in memory at once
MAX_SPREAD = 0.03  # beyond it, accuracies of the folds are not comparable (Fel et al., 4.1)
MEASURE_COLUMNS = ("mege", "reco", "reco_eq6", "reco_auc", "mege_xplique", "reco_xplique")


def measures_for(distance: str, seed: int) -> dict[str, MeGe | ReCo]:
    """Every column of a table, from one distance. They do not talk to other ranks: the stores hold everything."""
    alone: dict[str, Any] = {"seed": seed, "sync_on_compute": False}
    return {
        "mege": MeGe(distance=distance, **alone),
        "reco": ReCo(distance=distance, **alone),
        "reco_eq6": ReCo("paper", distance=distance, **alone),
        "reco_auc": ReCo("auc", distance=distance, **alone),
        "mege_xplique": MeGe("xplique", **alone),
        "reco_xplique": ReCo("xplique", **alone),
    }


NO_PAIRS = (
    torch.zeros(0, dtype=torch.float64),
    torch.zeros(0, dtype=torch.bool),
    torch.zeros(0, dtype=torch.long),
)


def add_pairs(measures: Sequence[MeGe | ReCo], d: Tensor, equal: Tensor, sample: Tensor, weight: Tensor) -> None:
    """The same pairs to several measures, kept once."""
    for number, measure in enumerate(measures):
        if number == 0:
            measure.add_distances(d, equal, sample, weight)
        else:
            measure.share(measures[0])


def estimates_of(measures: dict[str, MeGe | ReCo]) -> dict[str, Estimate]:
    """Every measure's estimate; forms of ReCo that hold the same pairs are made together."""
    together = {n: m for n, m in measures.items() if isinstance(m, ReCo) and m.variant != "xplique"}
    forms = next(iter(together.values())).forms([m.variant for m in together.values()]) if together else {}
    return {n: forms[m.variant] if n in together else m.estimate() for n, m in measures.items()}


def accuracy_of(p: Predictions) -> Estimate | None:
    """A predictor's accuracy on V_i, whose null is the share of the most frequent class; None without labels."""
    labels = p.split.labels
    if not len(labels) or bool((labels < 0).any()):
        return None
    return share_estimate(p.held_out, float(torch.bincount(labels).max() / len(labels)))


def untaught(predictions: Mapping[int, Predictions]) -> list[str]:
    """Why explanations of these predictors are worth nothing, by fold: no better than chance, or an infinite loss."""
    out = []
    accuracy = {f: a for f, p in predictions.items() if (a := accuracy_of(p)) is not None}
    poor = {f: a for f, a in accuracy.items() if a.null is not None and a.low <= a.null}  # NaN: of too few samples
    if poor:
        found = ", ".join(f"fold {f} {percent(a.value, a.low, a.high)}" for f, a in poor.items())
        chance = 100 * max(a.null or 0.0 for a in poor.values())
        out.append(
            f"no better than chance: held-out accuracy % of {found}; the most frequent class alone has {chance:.1f}"
        )
    lost = [str(f) for f, p in predictions.items() if p.meta.get("loss", 0.0) is None]
    if lost:
        out.append(f"the loss is not finite in fold {', '.join(lost)}: a held-out image's own class has probability 0")
    return out


def percent(value: float, low: float | None, high: float | None) -> str:
    """A share in percent with its interval, where it has one."""
    bounds = "" if low is None or high is None or math.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f}{bounds}"


class Ensemble:
    """The stores of one experiment.

    Args:
        root: `checkpoints/<name>`.
        seed: of the resamples.
        folds: restrict to these; None takes every fold that has predictions.

    Raises:
        UsageError: nothing is there, or the folds' stores do not belong together.
    """

    def __init__(self, root: str | Path, seed: int = 0, folds: Sequence[int] | None = None) -> None:
        self.root, self.seed = Path(root), seed
        found = sorted(self.root.glob("fold=*"), key=lambda p: int(p.name[5:]) if p.name[5:].isdigit() else -1)
        stores = [FoldStore(p) for p in found if p.name[5:].isdigit()]
        stores = [s for s in stores if s.predictions_file.exists() and (folds is None or s.fold in folds)]
        if not stores:
            raise UsageError(
                f"no predictions in {self.root}/fold=*: run python -m lit_xai.train for every fold, or set name= or root="
            )
        self.stores = {s.fold: s for s in stores}
        self.open: dict[tuple[str, str], dict[int, MapReader]] = {}
        self.predictions: dict[int, Predictions] = {}
        for fold, store in self.stores.items():
            p = store.read_predictions()
            self.require_same(next(iter(self.predictions.values()), p), p, store)
            self.predictions[fold] = p
        self.folds = sorted(self.stores)
        self.split: Split = self.predictions[self.folds[0]].split

    @staticmethod
    def require_same(first: Predictions, other: Predictions, store: FoldStore) -> None:
        """Two folds must share data, split and seed."""
        own = {"checkpoint", "fold", "lipschitz", "loss", "version", "code", "checksum", "format"}
        a, b = ({k: v for k, v in p.meta.items() if k not in own} for p in (first, other))
        difference = differences(a, b)
        if difference or not torch.equal(first.split.fold_of, other.split.fold_of):
            raise UsageError(
                f"{store.root} and fold={first.fold} do not belong together ({'; '.join(difference) or 'splits differ'}): "
                f"{mend(store.predictions_file)} after deleting it, or use another name="
            )

    @property
    def complete(self) -> bool:
        """Whether all k predictors are there."""
        return self.folds == list(range(self.split.k))

    @property
    def correct(self) -> Tensor:
        """`[folds, n]` which training samples each predictor gets right."""
        return torch.stack([self.predictions[f].correct for f in self.folds])

    def explainers(self) -> list[str]:
        """Explainers of which every fold has something; the null last."""
        common = set.intersection(*(set(self.stores[f].explainers()) for f in self.folds))
        return sorted(common, key=lambda n: (n == NULL, n))

    def folds_with(self) -> dict[str, list[int]]:
        """Which folds have something of every explainer of which there is anything."""
        out: dict[str, list[int]] = {}
        for f in self.folds:
            for name in self.stores[f].explainers():
                out.setdefault(name, []).append(f)
        return out

    def planned(self, readers: dict[int, MapReader]) -> int | None:
        """How many random probes an explainer was to explain, where its shards tell."""
        return next((planned_probes(self.split, r) for r in readers.values() if r.files), None)

    def readers(self, explainer: str, kind: str = RANDOM) -> dict[int, MapReader]:
        """Readers of all folds, checked to belong together."""
        if (explainer, kind) in self.open:
            return self.open[explainer, kind]
        readers = {f: MapReader(self.stores[f], kind, explainer) for f in self.folds}
        own = {"checkpoint", "fold", "targets", "files"} | ({"probes"} if kind == DISAGREEMENTS else set())
        seen: tuple[int, dict[str, Any], dict[str, Any]] | None = None
        for f, r in readers.items():
            if not r.files:
                continue
            made_with = self.predictions[f].meta["checkpoint"]
            if r.fingerprint["checkpoint"] != made_with:
                raise UsageError(
                    f"{r.files[0].parent} explains another checkpoint than {self.stores[f].predictions_file}: "
                    f"delete that folder, then {mend(r.files[0])}"
                )
            print_ = {k: v for k, v in r.fingerprint.items() if k not in own}
            definitions = {n: s["definition"] for n, s in r.meta["scores"].items()}
            difference = differences(seen[1], print_) if seen else []
            if seen:
                both = set(definitions) & set(seen[2])
                difference += differences({n: seen[2][n] for n in both}, {n: definitions[n] for n in both}, "score.")
            if seen and difference:
                raise UsageError(
                    f"{r.files[0].parent} and fold={seen[0]} were computed otherwise ({'; '.join(difference[:3])}): "
                    f"delete one of them and explain it again with the other's settings"
                )
            seen = (f, print_, definitions)
        # keep what one explainer needs: the index of a large store is not small
        self.open = {k: v for k, v in self.open.items() if k[0] == explainer} | {(explainer, kind): readers}
        return readers

    def probes(self, readers: dict[int, MapReader]) -> Tensor:
        """The random probes, fold by fold: those that every fold has explained."""
        samples = common_samples(readers.values())
        return samples[self.split.fold(samples).sort(stable=True).indices]

    # -------------------------------------------------------------------------------------------------------- pairs

    def pairs(
        self, readers: dict[int, MapReader], samples: Tensor, distance: str
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Distances between f_i's map (the fold that holds the sample out) and every f_j's.

        Yields `(distance, correct_i, correct_j, sample)`; a pair is left out where one of the two maps is missing.
        """
        d = distance_of(distance)
        if not len(samples):
            return
        first = next(r for r in readers.values() if int(samples[0]) in r)
        pixels = first.rows(samples[:1]).numel()
        correct = {f: self.predictions[f].correct for f in readers}
        each = max(8, VALUES // pixels)
        homes = self.split.fold(samples).split(each)
        indices = torch.searchsorted(self.split.samples, samples).split(each)
        for part, home, index in zip(samples.split(each), homes, indices, strict=True):
            prepared: dict[int, Tensor] = {}
            rows_of: dict[int, Tensor] = {}  # where a sample's map is among the prepared ones; -1: there is none
            for f, reader in readers.items():
                here = reader.holds(part)
                if bool(here.any()):
                    prepared[f] = d.prepare(reader.rows(part[here]))
                    rows_of[f] = torch.full((len(part),), -1).masked_scatter_(here, torch.arange(int(here.sum())))
            for i in (f for f in home.unique().tolist() if f in prepared):
                for j in prepared:
                    both = (home == i) & (rows_of[i] >= 0) & (rows_of[j] >= 0)
                    if i == j or not bool(both.any()):
                        continue
                    value = d.compare(*(prepared[f][as_slice(rows_of[f][both].numpy())] for f in (i, j)))
                    right = [correct[f][index[both]] for f in (i, j)]
                    yield value.double(), right[0], right[1], part[both]

    def disagreements(self, readers: dict[int, MapReader]) -> Disagreements | None:
        """The disagreements that were explained, or None if that pass is not complete."""
        if not self.complete:
            return None
        if not any(r.files for r in readers.values()):  # the predictors may never contradict each other
            none = Disagreements.find(self.split, self.correct, None)
            return none if not none.found else None
        found = self.wanted_disagreements(readers)
        if found is None:
            return None
        share = self.share_of(found, readers)
        return found if share.present == share.planned else None

    def wanted_disagreements(self, readers: dict[int, MapReader]) -> Disagreements | None:
        """Those that a pass of which there is anything is to explain; None while folds are missing, or nothing is begun."""
        caps = {r.fingerprint.get("cap") for r in readers.values() if r.files}
        return Disagreements.find(self.split, self.correct, caps.pop()) if self.complete and len(caps) == 1 else None

    def share_of(self, found: Disagreements, readers: dict[int, MapReader]) -> Share:
        """How many maps of these disagreements are there, of how many."""
        mine = {f: found.samples[found.concerned[:, column]] for column, f in enumerate(self.folds)}
        there = sum(int(readers[f].holds(samples).sum()) for f, samples in mine.items())
        return Share(there, sum(map(len, mine.values())))

    def measure(
        self, explainer: str, distance: str = "spearman", columns: Sequence[str] = MEASURE_COLUMNS
    ) -> tuple[dict[str, Estimate], dict[str, Any], tuple[Tensor, Tensor]]:
        """MeGe and ReCo of one explainer, their definitions, and the two sets of distances."""
        measures = measures_for(distance, self.seed)
        measures = {n: measures[n] for n in columns}
        readers = self.readers(explainer)
        random = self.probes(readers)
        number = torch.bincount(self.split.fold_of, minlength=self.split.k).double()
        drawn = torch.bincount(self.split.fold(random), minlength=self.split.k).double()
        rate = number / drawn.clamp_min(1)
        pass_two = self.readers(explainer, DISAGREEMENTS)
        found = self.disagreements(pass_two)
        rows: list[tuple[Tensor, Tensor, Tensor]] = []  # distance, equal, sample
        for d, right_i, right_j, sample in self.pairs(readers, random, distance):
            equal = right_i & right_j
            use = equal if found is not None else right_i | right_j
            rows.append((d[use], equal[use], sample[use]))
        d, equal, sample = (torch.cat(column) for column in zip(*rows, strict=True)) if rows else NO_PAIRS
        weight = rate[self.split.fold(sample)]
        if found is not None:
            rows = []
            for apart, right_i, right_j, of in self.pairs(pass_two, found.samples, distance):
                use = right_i ^ right_j
                rows.append((apart[use], torch.zeros(int(use.sum()), dtype=torch.bool), of[use]))
            more = tuple(torch.cat(column) for column in zip(*rows, strict=True)) if rows else NO_PAIRS
            ascending = found.samples.argsort()
            at = ascending[torch.searchsorted(found.samples[ascending], more[2])]
            d, equal, sample = (torch.cat([a, b]) for a, b in zip((d, equal, sample), more, strict=True))
            weight = torch.cat([weight, found.weight[at]])
        # 1 - |rho| is known: Xplique's distance is its root
        add_pairs([m for n, m in measures.items() if not n.endswith("xplique")], d, equal, sample, weight)
        if distance == "spearman":
            others = [m for n, m in measures.items() if n.endswith("xplique")]
            add_pairs(others, d.clamp_min(0).sqrt(), equal, sample, weight)
        estimates = estimates_of(measures)
        for name, e in estimates.items():
            if name.endswith("xplique") and distance != "spearman":
                e.reason = "only for distance=spearman"
            elif name.startswith("reco") and math.isnan(e.value) and "disagree" in e.reason:
                if found is None:
                    e.reason += "; run python -m lit_xai.explain probes=disagreements for every fold"
                elif not found.found:
                    e.reason = "the predictors never contradict each other"
        return estimates, {n: m.meaning() for n, m in measures.items()}, next(iter(measures.values())).sets()

    # ------------------------------------------------------------------------------------------------------- scores

    def scores(self, explainer: str) -> tuple[dict[str, Tensor], dict[str, Any], Tensor]:
        """Each score of one explainer `[folds, probes]`, the definitions, and the probes."""
        readers = self.readers(explainer)
        samples = self.probes(readers)
        names = sorted(set.intersection(*(set(r.scores()) for r in readers.values())))
        values = {n: torch.stack([r.rows(samples, f"score/{n}") for r in readers.values()]) for n in names}
        meta = next(iter(readers.values())).meta
        return values, {n: meta["scores"][n] for n in names}, samples

    def estimate(self, name: str, value: Tensor, scored: dict[str, Any], samples: Tensor) -> tuple[Estimate, Tensor]:
        """One score's mean over probes, folds averaged first, and the value of every probe.

        Where a score has a column for every setting, the setting is chosen on one half of the probes and the other half
        is reported.
        """
        each, reason = value.nanmean(0), ""
        if each.ndim == 2:
            each, chosen = settle(each, samples, scored["higher_is_better"], self.seed)
            reported = int(torch.isfinite(each).sum())
            setting = scored["settings"][chosen]
            reason = f"setting {setting:g} chosen on the other {len(samples) - reported} probes"
        return mean_estimate(each, self.seed, reason=reason), each

    def whole_image(self, explainer: str, score: str, samples: Tensor, each: Tensor, e: Estimate) -> Estimate | None:
        """The paired difference of a score to that of the whole image, whose mean becomes the score's null."""
        reader = next(iter(self.readers(explainer).values()))
        if f"reference/{score}" not in reader.extra:
            return None
        reference = reader.rows(samples, f"reference/{score}").double()
        if reference.ndim == 2:
            reference = reference[:, 0]
        reference = torch.where(torch.isfinite(each), reference, torch.nan)
        whole = mean_estimate(reference, self.seed)
        e.null = whole.value
        return difference(e, whole)

    def details(self, explainer: str, samples: Tensor) -> dict[str, dict[str, float]]:
        """What a method knows of its own maps: mean and range over folds and probes."""
        readers = self.readers(explainer).values()
        out = {}
        for name in sorted(set.intersection(*(r.extra for r in readers))):
            if name.startswith("detail/"):
                values = torch.stack([r.rows(samples, name).double() for r in readers])
                known = values[torch.isfinite(values)]
                if len(known):
                    numbers = float(known.mean()), float(known.min()), float(known.max())
                    out[name.removeprefix("detail/")] = dict(zip(("mean", "min", "max"), numbers, strict=True))
        return out

    def robustness(self, names: Sequence[str]) -> tuple[dict[str, dict[str, Estimate]], dict[str, Tensor]]:
        """Similarity of the maps of explainers named `<family>__<variant>`, by the first fold's predictor; on which probes."""
        families: dict[str, list[str]] = {}
        for name in names:
            family, _, variant = name.partition("__")
            if variant:
                families.setdefault(family, []).append(name)
        out: dict[str, dict[str, Estimate]] = {}
        probes: dict[str, Tensor] = {}
        for family, members in families.items():
            readers = [self.readers(m)[self.folds[0]] for m in members]
            common = common_samples(readers)
            if len(members) > 1 and len(common):
                probes[family] = common
                maps = torch.stack([r.rows(probes[family]) for r in readers])
                out.update(robustness_table({family: maps}, self.seed))
        return out, probes

    # ------------------------------------------------------------------------------------------------------ summary

    def versions(self) -> list[dict[str, Any]]:
        """Which versions of the code computed predictions and shards of which folds."""
        seen: dict[tuple[str, str], set[int]] = {}
        for f in self.folds:
            store = self.stores[f]
            metas = [self.predictions[f].meta]
            for kind in (RANDOM, DISAGREEMENTS):
                for path in (p for e in store.explainers(kind) for p in store.shards(kind, e)):
                    with contextlib.suppress(DamagedFile):  # refused when it is read, if it is
                        metas.append(read_head(path).meta)
            for meta in [m for made in metas for m in (made, *made.get("also", []))]:
                seen.setdefault((str(meta.get("version", "")), str(meta.get("code", ""))), set()).add(f)
        return [{"version": v, "code": c, "folds": sorted(folds)} for (v, c), folds in sorted(seen.items())]

    def head(self) -> dict[str, Any]:
        """What the numbers rest on."""
        accuracy = {f: a for f, p in self.predictions.items() if (a := accuracy_of(p)) is not None}
        values = [a.value for a in accuracy.values()]
        spread = max(values) - min(values) if values else None
        alarms = untaught(self.predictions)
        warnings = []
        if spread is not None and spread > MAX_SPREAD:
            warnings.append(f"held-out accuracy differs by {100 * spread:.1f} points between folds: more than 3")
        versions = self.versions()
        if len(versions) > 1:
            of = [f"{v['version']} {v['code']} in fold {', '.join(map(str, v['folds']))}" for v in versions]
            warnings.append(f"computed by {len(versions)} versions of the code ({'; '.join(of)})")
        meta = self.predictions[self.folds[0]].meta
        return {
            "name": self.root.name,
            "data": meta.get("data"),
            "content": meta.get("content"),
            "samples": len(self.split.samples),
            "folds": self.split.k,
            "folds_present": self.folds,
            "split_seed": self.split.seed,
            "held_out_accuracy": {f: a.plain() for f, a in accuracy.items()},
            "accuracy_spread": spread,
            "held_out_loss": {f: p.meta["loss"] for f, p in self.predictions.items() if "loss" in p.meta},
            "empirical_lipschitz": {f: self.predictions[f].meta.get("lipschitz") for f in self.folds},
            "versions": versions,
            "alarms": alarms,
            "warnings": [*alarms, *warnings],
        }

    def summarise(
        self,
        explainers: Sequence[str] | None = None,
        distance: str = "spearman",
        progress: bool = True,
        columns: Sequence[str] = MEASURE_COLUMNS,
        pairs: Sequence[Sequence[str]] = (),
    ) -> Summary:
        """Every measure and score of every explainer, with intervals, nulls and paired differences to Random.

        `pairs` names two explainers (or two families of variants) each, whose paired differences are wanted, too.
        """
        names = self.explainers() if explainers is None else list(explainers)
        unknown = [n for n in names if n not in self.explainers()]
        if unknown:
            have = ", ".join(self.explainers()) or "none"
            raise UsageError(f"explainer {unknown[0]} is not explained in every fold of {self.root}; there are: {have}")
        if not names:
            mend = next(iter(status(self.root).commands), "run python -m lit_xai.explain")
            raise UsageError(f"{self.root} holds no explanations of all its folds: {mend}")
        head, rows, definitions, sets = self.head(), [], {"explainers": {}}, {}  # type: ignore[var-annotated]
        directions = dict.fromkeys(columns, True)
        probes: dict[str, Tensor] = {}
        planned: dict[str, int | None] = {}
        differ: dict[str, Share] = {}
        for name in tqdm(names, desc="evaluate", unit="explainer", disable=not progress, leave=False):
            estimates, meaning, sets[name] = self.measure(name, distance, columns)
            definitions.update(meaning)
            values, scored, samples = self.scores(name)
            to_whole: dict[str, Estimate] = {}
            for score, value in values.items():
                estimates[score], each = self.estimate(score, value, scored[score], samples)
                directions[score] = scored[score]["higher_is_better"]
                whole = self.whole_image(name, score, samples, each, estimates[score])
                if whole is not None:
                    to_whole[score] = whole
            definitions.update(scored)
            reader = next(iter(self.readers(name).values()))
            resolved = reader.meta.get("resolved", {})
            own = self.details(name, samples)
            definitions["explainers"][name] = {**reader.fingerprint["explainer"], "resolved": resolved, "details": own}
            probes[name], planned[name] = samples, self.planned(self.readers(name))
            pass_two = self.readers(name, DISAGREEMENTS)
            begun = self.wanted_disagreements(pass_two)
            if begun is not None:
                differ[name] = self.share_of(begun, pass_two)
            rows.append(Row(name, estimates, to_whole=to_whole))
        head["probes"] = max(len(s) for s in probes.values())
        shares = {name: (len(samples), planned[name]) for name, samples in probes.items()}
        lack = unfinished(
            self.root, Share(len(self.folds), self.split.k), shares, self.folds_with(), differ, explainers
        )
        head["unfinished"] = None if lack is None else lack.plain()
        if lack is not None:
            head["alarms"].insert(0, lack.message)
            head["warnings"].insert(0, lack.message)
        for name, samples in probes.items():
            if len(samples) < head["probes"] and (lack is None or name not in lack.probes):
                head["warnings"].append(f"{name} is explained on {len(samples)} of {head['probes']} probes")
        null = next((r for r in rows if r.explainer == NULL), None)
        for row in rows:
            if null is None or row is null or not torch.equal(probes[row.explainer], probes[NULL]):
                continue
            for column, e in row.estimates.items():
                if column in null.estimates and len(e.draws) == len(null.estimates[column].draws):
                    pair = basic_difference if column.startswith("reco") else difference
                    row.differences[column] = pair(e, null.estimates[column])
        found = self.disagreements(self.readers(names[0], DISAGREEMENTS))
        head["disagreements"] = None if found is None else {"found": found.found, "explained": len(found.samples)}
        head["null"] = NULL if null else "none: explain with explainer=[random] to have a null"
        head["distance"] = {"name": distance, "meaning": distance_of(distance).meaning}
        alike, on = self.robustness(names)
        summary = Summary(head, directions, rows, definitions, sets, alike, probes={**probes, **on})
        for a, b in pairs:
            summary.pair(a, b)
        return summary
