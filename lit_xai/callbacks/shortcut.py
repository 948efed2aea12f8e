"""What a planted shortcut does to a predictor and to its maps: the measured half of the audit's section on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lit_xai import engine
from lit_xai.callbacks.base import Context, RankZeroReport
from lit_xai.callbacks.fillers import held_out_order
from lit_xai.calls import Gate
from lit_xai.data.plant import SHORTCUT, Planted
from lit_xai.errors import DamagedFile
from lit_xai.metrics.localisation import MassInside, area_share
from lit_xai.metrics.shortcut import chance_on, top_on
from lit_xai.store.fold import FoldStore, MapReader
from lit_xai.store.names import RANDOM, SHORTCUTS
from lit_xai.store.tensors import read_tensors, write_tensors

MOST, READ = 10_000, 250  # held-out images that are asked, and how many at once


class Shortcut(RankZeroReport):
    """Predictions of held-out images with the planted shortcut, without it and with that of a wrong class; how much of the maps lies on
    it. As `shortcut.safetensors`; `lit_xai.report.shortcut` makes numbers of all folds' files.

    Args:
        store: where maps lie and the file goes.
        seed: chooses the images, where there are more than `MOST`.
    """

    def __init__(self, store: FoldStore, seed: int = 0) -> None:
        self.store, self.seed = store, seed

    def make(self, on: Context) -> None:
        """Measure, where something is planted."""
        planted = on.data.planted
        if planted is None:
            return
        where = torch.zeros(0, dtype=torch.long)
        if planted.plant.kind != "colour":
            where = on.data.probes[planted.samples[on.data.probes]].sort().values
        readers = {n: MapReader(self.store, RANDOM, n) for n in self.store.explainers()} if len(where) else {}
        readers = {n: r for n, r in readers.items() if r.has(where)}
        about = {
            "checkpoint": engine.model_hash(on.model),
            "kind": planted.plant.kind,
            "share": planted.share,
            "clean": planted.clean,
            "maps": {n: r.fingerprint for n, r in readers.items()},
        }
        if self.complete(about):
            return
        tensors = self.asked(on, planted) | self.judged(planted, where, readers.items())
        write_tensors(self.store.root / SHORTCUTS, tensors, about)

    def complete(self, about: dict[str, Any]) -> bool:
        """Whether the file says all of that already."""
        with contextlib.suppress(DamagedFile):
            _, meta = read_tensors(self.store.root / SHORTCUTS)
            return all(meta.get(k) == v for k, v in about.items())
        return False

    def asked(self, on: Context, planted: Planted) -> dict[str, Tensor]:
        """What the predictor says of held-out images."""
        samples = held_out_order(on.data, self.seed)[:MOST].sort().values
        gate, said = Gate.of(on.model), []
        with torch.inference_mode():
            for part in samples.split(READ):
                shown = planted.three(part)
                said.append({n: gate(x.to(on.device)).argmax(1).cpu() for n, x in shown.items()})
        labels = planted.raw.labels[samples]
        known = {n: torch.cat([of[n] for of in said]) for n in said[0]}
        return {"sample": samples, "label": labels, "other": planted.plant.other(labels, samples), **known}

    def judged(self, planted: Planted, where: Tensor, readers: Iterable[tuple[str, MapReader]]) -> dict[str, Tensor]:
        """How much of the maps of probes with the shortcut, `where` `[p]`, lies on it, `{number: [p]}`."""
        if not len(where):
            return {}
        out: dict[str, list[Tensor]] = {}
        for part in where.split(READ):
            masks = planted.plant.place(part, *planted.raw.shape[1:])
            rows = {"area": area_share(masks), "chance": chance_on(masks)}
            for name, reader in readers:
                maps = reader.rows(part).float()
                rows |= {f"mass/{name}": MassInside(SHORTCUT).of(maps, masks), f"top/{name}": top_on(maps, masks)}
            for name, values in rows.items():
                out.setdefault(name, []).append(values)
        return {"probe": where, **{n: torch.cat(parts) for n, parts in out.items()}}
