"""Noise keyed by sample: a counter-based generator in plain integer tensor operations.

A key is a 64-bit hash of (seed, stream, sample, and whatever else its numbers belong to: variant, draw, mask). Value i of a key is
SplitMix64's finaliser (Steele, Lea & Flood, 2014) of `key + (i + 1) * WEYL`: two multiplications and three xor-shifts of 64-bit
integers, which wrap in the same way everywhere. Uniform numbers are bitwise the same on every device, for every chunk of keys
or values, and normal ones (Box-Muller) to the rounding of a logarithm and a cosine.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lit_xai.errors import UsageError

NOISE = 2  # version of the numbers, in what stands for maps and scores that rest on them; 1 were torch's generators on the CPU
WEYL = 0x9E3779B97F4A7C15 - 2**64  # odd, the golden ratio: from one value of a key to the next
FOLD = 0xD1342543DE82EF95 - 2**64  # odd: from one number that a key is refined by to the next
MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
CPU_BLOCK = 1 << 16  # values that are made together: in the cache of a CPU,
DEVICE_BLOCK = 1 << 24  # and of a device, to bound memory
Numbers = int | Sequence[int] | Tensor


def stable_hash(*parts: object) -> int:
    """A 63-bit integer from the text of `parts`, the same on every machine and in every process."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stable_hashes(parts: Sequence[object], numbers: Sequence[int]) -> list[int]:
    """`stable_hash(*parts, number)` for each of the numbers."""
    common = hashlib.blake2b("".join(f"{p}/" for p in parts).encode(errors="surrogatepass"), digest_size=8)
    digests = []
    for number in numbers:
        one = common.copy()
        one.update(b"%d" % number)
        digests.append(one.digest())
    return (np.frombuffer(b"".join(digests), "<u8") >> np.uint64(1)).tolist()


def mixed(z: Int[Tensor, "*n"], upper: bool = False) -> Int[Tensor, "*n"]:
    """SplitMix64's finaliser, in place; of `upper` the upper 31 bits alone are right, which its last step leaves as they are."""
    shifted = torch.empty_like(z)
    for shift, factor in zip((30, 27), MIX, strict=True):
        z.bitwise_xor_(right(z, shift, shifted)).mul_(factor)
    return z if upper else z.bitwise_xor_(right(z, 31, shifted))


def right(z: Int[Tensor, "*n"], shift: int, out: Tensor | None = None) -> Int[Tensor, "*n"]:
    """A logical shift of integers `[...]`: torch's own repeats the sign."""
    return torch.bitwise_right_shift(z, shift, out=out).bitwise_and_((1 << (64 - shift)) - 1)


def blocks(rows: int, columns: int, most: int) -> Iterator[tuple[slice, slice]]:
    """`rows x columns` in blocks of about `most`, as many whole rows as fit, or pieces of one."""
    tall, wide = max(1, most // max(1, columns)), min(columns, most)
    for top in range(0, rows, tall):
        for left in range(0, columns, max(1, wide)):
            yield slice(top, min(top + tall, rows)), slice(left, min(left + wide, columns))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The common generators of torch, NumPy and Python seeded, for other people's code that draws from them; afterwards as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    cards = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=cards):
        random.seed(seed), np.random.seed(seed % 2**32), torch.random.default_generator.manual_seed(seed)  # noqa: NPY002
        if cards:
            torch.cuda.manual_seed_all(seed)
        try:
            yield
        finally:
            random.setstate(python), np.random.set_state(numpy)  # noqa: NPY002


@dataclass(frozen=True)
class Noise:
    """Keys of random numbers: those of one key are independent of all others'.

    What it gives has the keys' shape before its own, and lies on their device.

    Attributes:
        keys: any shape.
    """

    keys: Int[Tensor, "*r"]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: Any) -> Noise:
        """The keys at an index, as of a tensor."""
        return Noise(self.keys[index])

    def part(self, numbers: Numbers) -> Noise:
        """Keys of their own for these draws, masks or steps; numbers and keys broadcast."""
        if isinstance(numbers, int):
            return Noise(mixed(self.keys + step(numbers)))
        numbers = torch.as_tensor(numbers, dtype=torch.long, device=self.keys.device)
        return Noise(mixed(self.keys + (numbers + 1) * FOLD))

    def parts(self, start: int, stop: int | None = None) -> Noise:
        """Keys `[*r, n]` for parts start..stop-1 of every key; of one argument, from 0."""
        first, last = (0, start) if stop is None else (start, stop)
        return self[..., None].part(torch.arange(first, last, device=self.keys.device))

    def reshape(self, *shape: int) -> Noise:
        """The same keys in another shape."""
        return Noise(self.keys.reshape(shape))

    def bits(self, number: int) -> Int[Tensor, "*r n"]:
        """Values 0..number-1 of every key, all 64 bits."""
        return self.made(number, torch.long, lambda bits, out: out.copy_(bits))

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*r *shape"]:
        """Uniform in [0, 1): the upper 24 bits of a value in float32, 53 in float64, so that every number is exact.

        Raises:
            UsageError: another type.
        """
        kept = {torch.float32: 24, torch.float64: 53}.get(dtype)
        if kept is None:
            raise UsageError(f"uniform numbers are float32 or float64, found {dtype}: convert them")

        def write(bits: Tensor, out: Tensor) -> None:
            out.copy_(right(bits, 64 - kept, bits)).mul_(2.0**-kept)

        return self.made(math.prod(shape), dtype, write, upper=kept <= 31).view((*self.keys.shape, *shape))

    def normal(self, shape: Sequence[int]) -> Float[Tensor, "*r *shape"]:
        """Standard normal, float32, |z| <= 6.7; the halves of one value make two of them."""

        def write(bits: Tensor, out: Tensor) -> None:
            angle = (bits & 0xFFFFFFFF).to(out.dtype).mul_(2 * math.pi * 2.0**-32)
            radius = right(bits, 32, bits).add_(1).to(out.dtype).mul_(2.0**-32).log_().mul_(-2).sqrt_()
            pairs = out.unflatten(-1, (-1, 2))
            torch.mul(radius, angle.cos(), out=pairs[..., 0])
            torch.mul(radius, angle.sin_(), out=pairs[..., 1])

        number = math.prod(shape)
        found = self.made(-(-number // 2), torch.float32, write, each=2)
        return found[..., :number].reshape((*self.keys.shape, *shape))

    def order(self, number: int) -> Int[Tensor, "*r n"]:
        """A random order of 0..number-1: that of the values."""

        def write(bits: Tensor, out: Tensor) -> None:
            out.copy_(ascending(bits))

        return self.made(number, torch.long, write, whole=True)

    def subset(self, number: int, size: int) -> Bool[Tensor, "*r n"]:
        """Exactly `size` of `number` cells, at least one: those with the smallest values."""

        def write(bits: Tensor, out: Tensor) -> None:
            torch.le(bits, kth_smallest(bits, size), out=out)

        return self.made(number, torch.bool, write, whole=True)

    def made(
        self,
        number: int,
        dtype: torch.dtype,
        write: Callable[[Tensor, Tensor], Any],
        each: int = 1,
        whole: bool = False,
        upper: bool = False,
    ) -> Tensor:
        """`[*r, number * each]`, made block by block: `write(bits, out)` makes `each` numbers of every value.

        Args:
            number: values of a key.
            dtype: of what is made.
            write: the values of a block `[k, m]` are its own to change; `out` is `[k, m * each]`.
            each: numbers that it makes of a value.
            whole: a block holds all values of a key.
            upper: the upper 31 bits of a value are enough.
        """
        keys = self.keys.reshape(-1, 1)
        out = torch.empty(len(keys), number * each, dtype=dtype, device=keys.device)
        most = CPU_BLOCK if keys.device.type == "cpu" else DEVICE_BLOCK
        counter = torch.arange(1, number + 1, device=keys.device).mul_(WEYL)
        for rows, columns in blocks(len(keys), number, max(most, number) if whole else most):
            bits = mixed(keys[rows] + counter[columns], upper)
            write(bits, out[rows, columns.start * each : columns.stop * each])
        return out.view(*self.keys.shape, number * each)


def step(number: int) -> int:
    """By how much a key moves for a number that refines it, as a signed 64-bit integer."""
    return ((number + 1) * FOLD + 2**63) % 2**64 - 2**63


def ascending(x: Int[Tensor, "k n"]) -> Int[Tensor, "k n"]:
    """The ascending order of every row; on the CPU by NumPy, whose sort is vectorised."""
    if x.device.type != "cpu":
        return x.argsort(dim=1)
    return torch.from_numpy(x.numpy().argsort(axis=1))


def kth_smallest(x: Int[Tensor, "k n"], rank: int) -> Int[Tensor, "k 1"]:
    """The value of every row that `rank` values do not exceed."""
    if x.device.type != "cpu":
        return x.kthvalue(rank, dim=1, keepdim=True).values
    return torch.from_numpy(np.partition(x.numpy(), rank - 1, axis=1)[:, rank - 1 : rank])


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
    samples: Sequence[int] | Int[Tensor, "b"]
    variants: Sequence[int] | Int[Tensor, "b"] | None = None

    @staticmethod
    def default(batch: int, rng: SampleRng | None = None) -> SampleRng:
        """`rng` itself, or samples 0..batch-1 under seed 0."""
        if rng is None:
            return SampleRng(0, tuple(range(batch)))
        if len(rng.samples) != batch:
            raise UsageError(f"rng names {len(rng.samples)} samples for {batch} images: pass one index per image")
        return rng

    def take(self, rows: Sequence[int] | Tensor, variants: Sequence[int] | Tensor | None = None) -> SampleRng:
        """The noise of a part of the batch; with `variants`, row t has its own noise for variant `variants[t]`."""
        if isinstance(rows, Tensor) or isinstance(self.samples, Tensor):
            samples: Any = torch.as_tensor(self.samples, device=rows.device if isinstance(rows, Tensor) else None)[rows]
        else:
            samples = tuple(self.samples[r] for r in rows)
        return SampleRng(self.seed, samples, variants if variants is None or len(variants) else None)

    def on(self, device: torch.device) -> SampleRng:
        """The same noise with the samples' numbers on a device, where it is taken many times."""
        return replace(self, samples=torch.as_tensor(self.samples, device=device))

    def repeated(self, repeat: int) -> SampleRng:
        """Independent noise for another run of the same method; repeat 0 is this noise itself."""
        return replace(self, seed=stable_hash(self.seed, "repeat", repeat)) if repeat else self

    def noise(self, stream: str, device: torch.device | str = "cpu") -> Noise:
        """The keys `[b]` of every row (sample and variant) for one purpose, on the device of the images."""
        start = torch.full((), stable_hash(self.seed, stream), device=device)  # made there: nothing is copied
        noise = Noise(start).part(self.samples)
        return noise if self.variants is None else Noise(~noise.keys).part(self.variants)  # they are no draws

    def uniform(self, stream: str, row: int, shape: Sequence[int]) -> Float[Tensor, "*shape"]:
        """Uniform numbers in [0, 1) for one sample (`row` of this batch), float32 on the CPU."""
        return self.noise(stream)[row].uniform(shape)

    def normal(
        self, stream: str, rows: Sequence[int], draws: Sequence[int], shape: Sequence[int]
    ) -> Float[Tensor, "r *shape"]:
        """Standard normal numbers on the CPU; entry t belongs to sample `rows[t]` and draw `draws[t]`."""
        return self.noise(stream)[list(rows)].part(list(draws)).normal(shape)

    def generator(self, stream: str, row: int, draw: int = 0) -> torch.Generator:
        """One of torch's own generators, on the CPU, for one sample and draw: for code that takes nothing else."""
        variant = () if self.variants is None else (int(self.variants[row]),)
        seed = stable_hash(self.seed, stream, int(self.samples[row]), draw, *variant)
        return torch.Generator().manual_seed(seed)
