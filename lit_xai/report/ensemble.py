"""The k predictors of one experiment, read from their stores alone: which maps there are, and the distances of their pairs.

Maps stream chunk by chunk; only one number per pair of maps is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_xai.cli.schema import NULL
from lit_xai.data.folds import Disagreements, Split
from lit_xai.errors import UsageError
from lit_xai.metrics.distance import distance_of, unit_ranks
from lit_xai.metrics.pairs import Pairs
from lit_xai.report.tested import VALUES, pairs_of_tests, predictions_of_tests
from lit_xai.report.unfinished import Share, planned_probes
from lit_xai.store.fold import FoldStore, MapReader, Predictions, as_slice, common_samples, differences, meaning
from lit_xai.store.names import CHECKS, DECISIONS, DISAGREEMENTS, RANDOM, TEST
from lit_xai.store.plans import mend
from lit_xai.store.shards import Said

EXPLAIN_THEM = "run python -m lit_xai.explain probes=disagreements for every fold"
NO_PAIRS = (*(torch.zeros(0, dtype=t) for t in (torch.float64, torch.bool, torch.bool)), *[torch.zeros(0).long()] * 3)


def family_of(explainer: str) -> str:
    """`lime` of `lime__2`, its second variant."""
    return explainer.partition("__")[0]


class Decided:
    """Maps of disagreements that explain what one predictor says: the label's where it is right, else those of its own class."""

    def __init__(self, of_labels: MapReader, of_wrong: MapReader, predictions: Predictions) -> None:
        self.of_labels, self.of_wrong, self.predictions = of_labels, of_wrong, predictions

    def __contains__(self, sample: int) -> bool:
        return sample in self.of_labels

    def holds(self, samples: Tensor) -> Tensor:
        """Which of the samples `[n]` are there, `[n]`."""
        return self.of_labels.holds(samples)

    def rows(self, samples: Tensor) -> Tensor:
        """The maps of samples `[n]`, `[n, h, w]`."""
        out, wrong = self.of_labels.rows(samples), ~self.predictions.right(samples)
        if bool(wrong.any()):
            out[wrong] = self.of_wrong.rows(samples[wrong])
        return out


class Growing:
    """Numbers that come some at a time, in one block: small tensors that stay between large ones that go would leave holes in memory
    that no large one fits into.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.data = dtype, bytearray()

    def add(self, values: Tensor) -> None:
        """Keep values `[n]` behind those that are there."""
        self.data += values.contiguous().numpy().tobytes()

    def tensor(self) -> Tensor:
        """All of them `[n]`."""
        return torch.frombuffer(self.data, dtype=self.dtype) if self.data else torch.empty(0, dtype=self.dtype)


Maps = MapReader | Decided
# Some samples, all folds' maps of them, and these maps' unit ranks where they are there.
Look = Callable[[Tensor, dict[int, Tensor], dict[int, Tensor] | None], None]


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
        self.said: dict[Path, Said] = {}  # by every shard that was opened
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
        own = {"checkpoint", "fold", "lipschitz", "loss", "temperature", "version", "code", "checksum", "format"}
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
        own = {"checkpoint", "fold", "targets", "files"} | (set() if kind in (RANDOM, TEST) else {"probes"})
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
            definitions = {n: meaning(s) for n, s in r.meta["scores"].items()}
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
        for r in readers.values():
            self.said |= r.said
        # keep what one explainer and its variants need: the index of a large store is not small
        kept = {k: v for k, v in self.open.items() if family_of(k[0]) == family_of(explainer)}
        self.open = kept | {(explainer, kind): readers}
        return readers

    def probes(self, readers: dict[int, MapReader]) -> Tensor:
        """The random probes, fold by fold: those that every fold has explained."""
        samples = common_samples(readers.values())
        return samples[self.split.fold(samples).sort(stable=True).indices]

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

    def distances(
        self, readers: Mapping[int, Maps], samples: Tensor, distance: str, look: Look | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Of f_i's map (the fold that holds a sample of `[n]` out) and every f_j's: `(distance, right_i, right_j, sample, i, j)`.

        A pair is left out where one of the two maps is missing. `look` is shown the maps that pass by.
        """
        columns = tuple(Growing(c.dtype) for c in NO_PAIRS)
        for row in self.compared(readers, samples, distance, look):
            for column, values in zip(columns, row, strict=True):
                column.add(values)
        return tuple(column.tensor() for column in columns)  # type: ignore[return-value]

    def compared(
        self, readers: Mapping[int, Maps], samples: Tensor, distance: str, look: Look | None = None
    ) -> Iterator[tuple[Tensor, ...]]:
        """`distances` of samples `[n]`, chunk by chunk."""
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
            whole: dict[int, Tensor] = {}  # maps of folds that have all of these samples
            rows_of: dict[int, Tensor] = {}  # where a sample's map is among the prepared ones; -1: there is none
            for f, reader in readers.items():
                here = reader.holds(part)
                if bool(here.any()):
                    maps = reader.rows(part[here])
                    prepared[f] = d.prepare(maps)
                    whole |= {f: maps} if len(maps) == len(part) else {}
                    rows_of[f] = torch.full((len(part),), -1).masked_scatter_(here, torch.arange(int(here.sum())))
            if look is not None and len(whole) == len(readers):
                look(part, whole, prepared if d.prepare is unit_ranks else None)
            for i in (f for f in home.unique().tolist() if f in prepared):
                for j in prepared:
                    both = (home == i) & (rows_of[i] >= 0) & (rows_of[j] >= 0)
                    if i == j or not bool(both.any()):
                        continue
                    value = d.compare(*(prepared[f][as_slice(rows_of[f][both].numpy())] for f in (i, j)))
                    right = [correct[f][index[both]] for f in (i, j)]
                    yield (
                        value.double().round(decimals=12),
                        *right,
                        part[both],
                        *(torch.full_like(part[both], f) for f in (i, j)),
                    )

    def pairs(self, explainer: str, distance: str = "spearman", look: Look | None = None) -> Pairs:
        """All pairs of one explainer: of the random probes, and of the disagreements once all of those are explained.

        `look` is shown the maps of the random probes, some at a time, where all folds have them.
        """
        readers, pass_two = self.readers(explainer), self.readers(explainer, DISAGREEMENTS)
        own = self.readers(explainer, DECISIONS)
        probes, found = self.probes(readers), self.disagreements(pass_two)
        number = torch.bincount(self.split.fold_of, minlength=self.split.k).double()
        drawn = torch.bincount(self.split.fold(probes), minlength=self.split.k).double()
        d, right_i, right_j, sample, i, j = self.distances(readers, probes, distance, look)
        differ, label = (right_i ^ right_j) & (found is None), torch.full_like(right_i, self.target == "label")
        weight = (number / drawn.clamp_min(1))[self.split.fold(sample)]
        columns = [(d, right_i & right_j, differ, sample, weight, i, j, label & differ)]
        beside = {kind: pairs for kind in CHECKS if (pairs := self.beside(explainer, kind)) is not None}
        tests = self.readers(explainer, TEST)
        if all(r.files for r in tests.values()):
            beside[TEST] = pairs_of_tests(tests, self.predictions_of_tests, distance, self.seed)
        lacks = {} if self.target == "label" else {"labels": "maps explain predictions (target=prediction)"}
        if found is not None:
            both: list[tuple[Mapping[int, Maps], bool]] = [(pass_two, self.target == "label")]
            if self.target == "label" and not self.decisions_lacking(found, own):
                both.append(({f: Decided(pass_two[f], own[f], self.predictions[f]) for f in self.folds}, False))
            elif self.target == "label":
                lacks["both"] = f"what wrong predictors say on disagreements is not explained; {EXPLAIN_THEM}"
            for maps, of_labels in both:
                d, right_i, right_j, sample, i, j = self.distances(maps, found.samples, distance)
                ascending = found.samples.argsort()
                weight = found.weight[ascending[torch.searchsorted(found.samples[ascending], sample)]]
                no, label = torch.zeros_like(right_i), torch.full_like(right_i, of_labels)
                columns.append((d, no, right_i ^ right_j, sample, weight, i, j, label))
        d, equal, differ, sample, weight, i, j, label = (torch.cat(column) for column in zip(*columns, strict=True))
        more: Any = {"mend": EXPLAIN_THEM} if found is None else {"found": found.found}
        more |= {"lacks": lacks, "beside": beside}
        return Pairs(d, equal, differ, sample, weight, i, j, label, distance, self.seed, self.predictions, **more)

    def checked(self, explainer: str, kind: str) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Every predictor's maps of some held-out probes, and those of a check on it (see `lit_xai.engine.checks`), some at a time:
        `(fold, samples, its maps, the others)`.
        """
        readers, own = self.readers(explainer, kind), self.readers(explainer)
        for f, reader in readers.items():
            samples = reader.samples[own[f].holds(reader.samples)]
            if len(samples):
                pixels = reader.rows(samples[:1]).numel()
                for part in samples.split(max(1, VALUES // pixels)):
                    yield f, part, own[f].rows(part), reader.rows(part)

    def beside(self, explainer: str, kind: str) -> Pairs | None:
        """The maps of a check beside the predictors' own, as pairs; None while a fold has none of them.

        Their distance is `spearman`, 1 - |rho|.
        """
        d = distance_of("spearman")
        columns = [
            (d.compare(d.prepare(a), d.prepare(b)), part, torch.full_like(part, f))
            for f, part, a, b in self.checked(explainer, kind)
        ]
        if {int(fold[0]) for _, _, fold in columns} != set(self.folds):
            return None
        apart, sample, fold = (torch.cat(column) for column in zip(*columns, strict=True))
        every = torch.ones_like(apart, dtype=torch.bool)
        return Pairs(apart, every, ~every, sample, torch.ones_like(apart), fold, fold, name="spearman", seed=self.seed)

    @cached_property
    def predictions_of_tests(self) -> dict[int, Predictions]:
        """What every predictor says of the test probes."""
        return predictions_of_tests(self.stores, self.predictions)

    def thumbnails(self, samples: Tensor) -> Tensor | None:
        """`[p, c, s, s]` uint8, small copies of held-out probes; None where one of them is not kept."""
        of, images = self.kept_thumbnails
        if not len(of):
            return None
        place = torch.searchsorted(of, samples).clamp(max=len(of) - 1)
        return images[place] if torch.equal(of[place], samples) else None

    @cached_property
    def kept_thumbnails(self) -> tuple[Tensor, Tensor]:
        """Samples, ascending, and their small copies."""
        kept = [k for s in self.stores.values() if len((k := s.read_thumbnails())[0])]
        if not kept:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0)
        of, images = (torch.cat(column) for column in zip(*kept, strict=True))
        order = of.argsort()
        return of[order], images[order]

    def maps_of(self, explainer: str, samples: Tensor) -> Tensor:
        """`[folds, p, h, w]`, every predictor's maps of random probes that all have explained."""
        readers = self.readers(explainer)
        return torch.stack([readers[f].rows(samples) for f in self.folds])

    @property
    def target(self) -> str:
        """Which class the maps of random probes explain: `label` or `prediction`."""
        return str(next(iter(self.predictions.values())).meta.get("target", "label"))

    def decisions_lacking(self, found: Disagreements, readers: Mapping[int, MapReader]) -> int:
        """How many maps of what wrong predictors say on disagreements are missing."""
        share = self.share_of_decisions(found, readers)
        return share.planned - share.present

    def share_of_decisions(self, found: Disagreements, readers: Mapping[int, MapReader]) -> Share:
        """How many maps there are of what wrong predictors say on these disagreements, of how many."""
        there = planned = 0
        for column, f in enumerate(self.folds):
            wrong = self.predictions[f].wrong_of(found.samples[found.concerned[:, column]])
            there, planned = there + int(readers[f].holds(wrong).sum()), planned + len(wrong)
        return Share(there, planned)
