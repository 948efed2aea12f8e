"""Confidence sequences: intervals of means that hold at every look at once, however often one looks (docs/deeper.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

ERROR = 0.05  # chance of a miss at any look
FIRST, GROWTH = 128, 1.25  # draws at the first look, and from one look to the next
BEST = 1000  # draws at which asymptotic intervals are narrowest
MOST = 0.75  # of an empirical-Bernstein weight
CELLS = 14  # most cells of a map along a side, of whose means the largest are sought
TOP, SHARE = 0.1, 0.65  # of the cells: those sought, and those whose side must be known


def cells(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n m"]:
    """The means over a grid of at most `CELLS` a side, as equal as the size allows."""
    grid = min(CELLS, maps.shape[-2]), min(CELLS, maps.shape[-1])
    return F.adaptive_avg_pool2d(maps[:, None], grid).flatten(1)


def looks(cap: int) -> Iterator[tuple[int, int]]:
    """The draws of every block, from and to: a number of looks that grows with the logarithm of the cap."""
    start, stop = 0, min(FIRST, cap)
    while start < cap:
        yield start, stop
        start, stop = stop, min(cap, math.ceil(stop * GROWTH))


def width(draws: int, error: float) -> float:
    """Half of an asymptotic interval, in standard deviations of one draw, at this and every other number of draws.

    Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas (2024), "Time-uniform central limit theory and asymptotic confidence sequences",
    theorem 2.2: it needs a variance alone, and holds as the first look gets later.
    """
    log = -2 * math.log(error)
    rho = (log + math.log(log + 1)) / BEST
    t = draws * rho + 1
    return math.sqrt(2 * t / (draws**2 * rho) * math.log(math.sqrt(t) / error))


@dataclass
class Bernstein:
    """Empirical-Bernstein sequence of means of values in [0, 1], whatever their law: exact, not asymptotic.

    Waudby-Smith & Ramdas (2024), "Estimating means of bounded random variables by betting", theorem 2, with weights and centres that are
    the same for all draws of a block, set by the blocks before it: so they are predictable, and sums of a block suffice.

    Args:
        shape: of the means.
        error: chance that one of them, given, is missed at any look.
    """

    shape: tuple[int, ...]
    error: float = ERROR
    draws: int = 0
    weight: Tensor = field(init=False, repr=False)
    total: Tensor = field(init=False, repr=False)
    spent: Tensor = field(init=False, repr=False)
    sum: Tensor = field(init=False, repr=False)
    squares: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("weight", "total", "spent", "sum", "squares"):
            setattr(self, name, torch.zeros(self.shape, dtype=torch.float64))

    def add(self, values: Float[Tensor, "n *m"]) -> None:
        """One block of draws."""
        values = values.double()
        number, sums, squares = len(values), values.sum(0), values.square().sum(0)
        centre = (0.5 + self.sum) / (self.draws + 1)
        spread = (0.25 + self.squares - 2 * centre * self.sum + self.draws * centre**2) / (self.draws + 1)
        at = self.draws + number
        weight = (2 * math.log(2 / self.error) / (spread * at * math.log(1 + at))).sqrt().clamp_max(MOST)
        self.spent += (squares - 2 * centre * sums + number * centre**2) * (-torch.log1p(-weight) - weight)
        self.weight, self.total = self.weight + number * weight, self.total + weight * sums
        self.draws, self.sum, self.squares = at, self.sum + sums, self.squares + squares

    def bounds(self) -> tuple[Float[Tensor, "*m"], Float[Tensor, "*m"]]:
        """The ends of the intervals after the draws so far, in [0, 1]."""
        half = (math.log(2 / self.error) + self.spent) / self.weight
        middle = self.total / self.weight
        return (middle - half).clamp_min(0), (middle + half).clamp_max(1)


def sides(
    mean: Float[Tensor, "b m"], covariance: Float[Tensor, "b m m"], draws: int, top: int
) -> tuple[Bool[Tensor, "b m"], Bool[Tensor, "b m"]]:
    """Which of m means are among the `top` largest, and which not, each wrong with chance `ERROR` at most, at any look.

    A mean is surely above another if their difference exceeds the interval of differences, at ERROR / m. One that is surely above m - top
    others is inside, one that `top` others are surely above is outside: were it wrong, one of fewer than m intervals would have missed.
    """
    number, variance = mean.shape[1], covariance.diagonal(dim1=1, dim2=2)
    spread = (variance[:, :, None] + variance[:, None] - 2 * covariance).clamp_min(0).sqrt()
    above = mean[:, :, None] - mean[:, None] > spread * width(draws, ERROR / number)
    return above.sum(2) >= number - top, above.sum(1) >= top


@dataclass(frozen=True)
class Stopped:
    """What a drawing until decided leaves.

    Attributes:
        draws: of every image.
        inside, outside: the means that are surely among the top, and surely not.
    """

    draws: Tensor
    inside: Bool[Tensor, "b m"]
    outside: Bool[Tensor, "b m"]

    def undecided(self, height: int, width: int) -> Float[Tensor, "b r c"]:
        """1 where the side of a cell of a map of this size is not known, else 0, `[b, r, c]` with at most `CELLS` rows and columns."""
        rows, columns = min(CELLS, height), min(CELLS, width)
        return (~(self.inside | self.outside)).double().unflatten(1, (rows, columns))

    def details(self, count: str, height: int, width: int) -> dict[str, Tensor]:
        """What a method says of its maps: how many draws each took, by the name of the count, the share of the cells whose side is
        known, and those of which it is not.
        """
        named = {count: self.draws.double(), "decided": self.decided}
        return {**named, "undecided": self.undecided(height, width)}

    @property
    def decided(self) -> Float[Tensor, "b"]:
        """The share of the means whose side is known."""
        return (self.inside | self.outside).double().mean(1)


def until_decided(
    images: int,
    draw: Callable[[list[int], int, int], None],
    moments: Callable[[list[int], int], tuple[Float[Tensor, "a m"], Float[Tensor, "a m m"]]],
    cap: int,
) -> Stopped:
    """Draw for every image, block by block, until `SHARE` of its means are known to be among the `TOP` or not, or the cap is reached.

    Args:
        images: how many.
        draw: draws from..to for these images.
        moments: their means, and the covariance of one draw, after so many draws.
        cap: most draws.
    """
    active, kept, draws = list(range(images)), {}, torch.zeros(images, dtype=torch.long)
    for start, stop in looks(cap):
        draw(active, start, stop)
        mean, covariance = moments(active, stop)
        inside, outside = sides(mean, covariance, stop, max(1, round(TOP * mean.shape[1])))
        known = (inside | outside).double().mean(1).cpu()  # the one wait of a look
        for row, image in enumerate(active):
            kept[image] = inside[row], outside[row]
        draws[active] = stop
        active = [image for row, image in enumerate(active) if known[row] < SHARE]
        if not active:
            break
    found = [torch.stack([kept[i][side] for i in range(images)]) for side in (0, 1)]
    return Stopped(draws, *found)
