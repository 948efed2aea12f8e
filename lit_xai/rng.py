"""Noise keyed by sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_xai.errors import UsageError


def stable_hash(*parts: object) -> int:
    """A 63-bit integer from the text of `parts`, the same on every machine and in every process."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class SampleRng:
    """Noise that belongs to samples, not to batches.

    Every value is a function of `(seed, stream, sample index, draw)` alone, so an explanation depends neither on the
    batch it was computed in, nor on the rank, nor on which fold's model is explained (common random numbers).

    Args:
        seed: the run's seed.
        samples: the index of every image of the batch in its data set.
        variants: which variant of its image (mask, window) every row is, where rows share a sample.
    """

    seed: int
    samples: tuple[int, ...]
    variants: tuple[int, ...] | None = None

    @staticmethod
    def default(batch: int, rng: SampleRng | None = None) -> SampleRng:
        """`rng` itself, or samples 0..batch-1 under seed 0."""
        if rng is None:
            return SampleRng(0, tuple(range(batch)))
        if len(rng.samples) != batch:
            raise UsageError(f"rng names {len(rng.samples)} samples for {batch} images: pass one index per image")
        return rng

    def take(self, rows: Sequence[int], variants: Sequence[int] | None = None) -> SampleRng:
        """The generator of a part of the batch; with `variants`, row t has its own noise for variant `variants[t]`."""
        return SampleRng(self.seed, tuple(self.samples[r] for r in rows), tuple(variants) if variants else None)

    def repeated(self, repeat: int) -> SampleRng:
        """Independent noise for another run of the same method; repeat 0 is this generator itself."""
        return replace(self, seed=stable_hash(self.seed, "repeat", repeat)) if repeat else self

    def generator(self, stream: str, row: int, draw: int = 0) -> torch.Generator:
        """A CPU generator for one sample (`row` of this batch) and one draw."""
        variant = () if self.variants is None else (self.variants[row],)
        return torch.Generator().manual_seed(stable_hash(self.seed, stream, self.samples[row], draw, *variant))

    def uniform(self, stream: str, row: int, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1) for one sample, float32 on the CPU."""
        return torch.rand(tuple(shape), generator=self.generator(stream, row))

    def normal(self, stream: str, rows: Sequence[int], draws: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Standard normal `[len(rows), *shape]`; entry t belongs to sample `rows[t]` and draw `draws[t]`."""
        out = torch.empty(len(rows), *shape)
        for t, (row, draw) in enumerate(zip(rows, draws, strict=True)):
            torch.randn(tuple(shape), generator=self.generator(stream, row, draw), out=out[t])
        return out
