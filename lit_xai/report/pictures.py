"""The cases of an audit: which probes to look at, and their maps by every predictor, small, side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from lit_xai.report.ensemble import Ensemble
from lit_xai.report.figure import Scale
from lit_xai.report.summary import Summary

SIDE = 64  # pixels of a thumbnail
GAP = 2
WORST, LOWEST, OFF = 6, 3, 3  # cases of a method: least alike, least faithful, off the object
BUDGET = 1_900_000  # bytes of all pictures of a page, in base64
CONTRADICTION, UNLIKE = "contradiction", "least alike over the predictors"


class Strip(NamedTuple):
    """Small pictures side by side, as a data URI; `image` is whether the first is the probe itself."""

    uri: str
    image: bool


def chosen(
    ensemble: Ensemble, summary: Summary, faithful: str, points: str, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """The cases of every method, contradictions first; `faithful` and `points` are columns that may be missing."""
    out: list[dict[str, Any]] = []
    for row in summary.rows:
        if row.explainer in summary.nulls:
            continue
        own = sorted(
            (c for c in summary.cases if c["explainer"] == row.explainer),
            key=lambda c: (not c["contradiction"], c["worst_rho"]),
        )
        found = [{"kind": CONTRADICTION if c["contradiction"] else UNLIKE, **c} for c in own[:WORST]]
        samples = summary.probes[row.explainer]
        for kind, column, number in (("least faithful", faithful, LOWEST), ("off the object", points, OFF)):
            e = row.estimates.get(column)
            if e is None or len(e.each) != len(samples):
                continue
            order = (e.each if summary.columns[column] else -e.each).nan_to_num(torch.inf).argsort(stable=True)
            found += [
                {
                    "kind": f"{kind} ({column})",
                    "probe": int(samples[i]),
                    "explainer": row.explainer,
                    "score": float(e.each[i]),
                }
                for i in order[:number].tolist()
                if bool(e.each[i].isfinite())
            ]
        out += [{**about(ensemble, c["probe"], classes), **c} for c in found]
    return out


def about(ensemble: Ensemble, probe: int, classes: Sequence[str]) -> dict[str, Any]:
    """A probe's class, and what every predictor says of it."""

    def named(c: int) -> str:
        return "" if c < 0 else classes[c] if c < len(classes) else f"class {c}"

    sample = torch.tensor([probe])
    said = {f: named(int(p.of(sample))) for f, p in ensemble.predictions.items()}
    at = int(torch.searchsorted(ensemble.split.samples, sample))
    return {"class": named(int(ensemble.split.labels[at])), "home": int(ensemble.split.fold(sample)), "said": said}


def sprites(
    ensemble: Ensemble, cases: Sequence[Mapping[str, Any]], budget: int = BUDGET
) -> dict[tuple[str, int], Strip]:
    """A picture of every case, `{(explainer, probe): strip}`: the image where the store has one, then the map of every fold.

    Methods take turns, so that those left out for want of room are the last cases of each.
    """
    by: dict[str, list[int]] = {}
    for c in cases:
        if c["probe"] not in by.setdefault(c["explainer"], []):
            by[c["explainer"]].append(c["probe"])
    images = thumbnails(ensemble, sorted({c["probe"] for c in cases}))
    maps = {e: ensemble.maps_of(e, torch.tensor(probes)) for e, probes in by.items()}
    out: dict[tuple[str, int], Strip] = {}
    for turn in range(max(map(len, by.values()), default=0)):
        for explainer, probes in by.items():
            if turn >= len(probes):
                continue
            tiles = [images[probes[turn]]] if probes[turn] in images else []
            uri = encoded([*tiles, *(coloured(m) for m in maps[explainer][:, turn])])
            if budget < len(uri):
                return out
            budget -= len(uri)
            out[explainer, probes[turn]] = Strip(uri, bool(tiles))
    return out


def thumbnails(ensemble: Ensemble, probes: Sequence[int]) -> dict[int, np.ndarray]:
    """The images of some probes as `[h, w, 3]` bytes, where the store has them."""
    found = ensemble.thumbnails(torch.tensor(probes, dtype=torch.long)) if probes else None
    return {} if found is None else {p: as_rgb(image) for p, image in zip(probes, found, strict=True)}


def as_rgb(image: UInt8[Tensor, "c h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Grey or colour bytes as colour; of more channels, the first three."""
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy() if len(image) == 1 else image[:3].permute(1, 2, 0).numpy()


def coloured(map_: Float[Tensor, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """A map in the colours of its own scale."""
    from matplotlib import colormaps

    values = map_.float().nan_to_num(0.0, 0.0, 0.0)
    scale = Scale.of(values[None])
    share = ((values - scale.low) / ((scale.high - scale.low) or 1.0)).clamp(0, 1)
    return np.asarray(colormaps[scale.colours](share.numpy(), bytes=True)[..., :3])


def encoded(tiles: Sequence[np.ndarray]) -> str:
    """Tiles of `SIDE` pixels in a row, as the data URI of a WebP picture."""
    strip = Image.new("RGB", (len(tiles) * (SIDE + GAP) - GAP, SIDE), (127, 127, 127))
    for place, tile in enumerate(tiles):
        small = min(tile.shape[:2]) < SIDE
        way = Image.Resampling.NEAREST if small else Image.Resampling.BOX
        strip.paste(Image.fromarray(np.ascontiguousarray(tile)).resize((SIDE, SIDE), way), (place * (SIDE + GAP), 0))
    file = io.BytesIO()
    strip.save(file, "WEBP", quality=60, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
