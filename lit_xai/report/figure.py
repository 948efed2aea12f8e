"""What pictures share: figures without a display, texts as they are, and the colours of a map.

Words that come from data (names of classes, explainers, folders) are drawn as they are: `save` sees to that for all of them.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from lit_xai.core import RANGE, SIGNED, Legend
from lit_xai.store.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110


def new_figure(width: float, height: float, rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """A figure that needs no display, with `rows x columns` axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure atomically; its suffix decides the format. No text is taken for a formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    # no dates inside: the same numbers give the same bytes
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a character that the font has not is drawn as a box
        figure.savefig(buffer, format=path.suffix[1:], dpi=DPI, metadata=metadata)
    write_atomically(path, buffer.getvalue())
    return path


def wrapped(text: str, inches: float, size: float) -> str:
    """A text with lines that are about so many inches wide at this size of letters; its own lines stay."""
    most = max(8, int(inches * 72 / (0.6 * size)))
    return "\n".join(textwrap.fill(line, most, break_on_hyphens=False) for line in text.splitlines())


TINY = 1e-6  # share of the largest value below which differences are rounding, not evidence
PALE = 0.65  # of white over what is undecided
TAIL = 0.005  # share of the values that may lie beyond an end of the colours


@dataclass(frozen=True)
class Scale:
    """The colours of some maps: name of the colour map, the values at its ends, and what the colours say.

    Of `own`, every map has ends of its own; those here are the first map's.
    """

    colours: str
    low: float
    high: float
    says: str
    own: bool = False

    @staticmethod
    def of(maps: Float[Tensor, "*b h w"], legend: Legend | None = None, label: str = "the class") -> Scale:
        """The scale for maps of one explainer."""
        legend = legend or Legend()
        values = maps.detach().float().numpy()
        if legend.scale == RANGE:
            low, high = ends(values.reshape(-1, *values.shape[-2:])[0])
            return Scale("YlOrRd", low, high, legend.text(label), own=True)
        size = np.abs(values)
        top = float(np.quantile(size, 1 - TAIL)) or float(size.max(initial=0)) or 1.0
        signed = legend.scale == SIGNED or bool((values < -TINY * top).any())
        return Scale("RdBu_r" if signed else "Reds", -top if signed else 0.0, top, legend.text(label, signed))

    def around(self, map_: Float[Tensor, "h w"]) -> Scale:
        """These colours, as wide as they are, around the middle of another map that has ends of its own."""
        if not self.own or self.high == self.low:
            return self.at(map_)
        middle, half = sum(ends(map_.float().numpy())) / 2, (self.high - self.low) / 2
        return Scale(self.colours, middle - half, middle + half, self.says, own=True)

    def at(self, map_: Float[Tensor, "h w"]) -> Scale:
        """These colours for one of the maps."""
        return Scale(self.colours, *ends(map_.float().numpy()), self.says, own=True) if self.own else self

    @property
    def top(self) -> float:
        """The value of the highest colour; of equal ends, all of a map has the lowest."""
        return self.high if self.high > self.low else self.low + max(1.0, abs(self.low))

    def draw(
        self, axis: Any, map_: Float[Tensor, "h w"], undecided: Float[Tensor, "r c"] | None = None, **options: Any
    ) -> Any:
        """The map on an axis, pale where a cell is undecided (above 0)."""
        drawn = axis.imshow(map_.float().numpy(), cmap=self.colours, vmin=self.low, vmax=self.top, **options)
        if undecided is not None:
            veil = np.ones((*map_.shape, 4), dtype=np.float32)
            veil[..., 3] = PALE * np.asarray(F.interpolate(undecided[None, None].float(), map_.shape)[0, 0] > 0)
            axis.imshow(veil)
        return drawn

    def pixels(self, map_: Float[Tensor, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
        """The map's colours, a pixel a value."""
        from matplotlib import colormaps

        share = (map_.float().numpy() - self.low) / (self.top - self.low)
        return colormaps[self.colours](share.clip(0, 1), bytes=True)[..., :3]

    def marks(self) -> tuple[list[float], list[str]]:
        """Where a colour bar has its numbers, and these."""
        at = [self.low, *([0.0] if self.low < 0 < self.high else []), *([self.high] if self.high > self.low else [])]
        return at, [f"{v:.{digits(self.low, self.high)}g}" for v in at]


def ends(values: Float[np.ndarray, "h w"]) -> tuple[float, float]:
    """The ends of the colours of one map that has no zero point; equal if it varies by rounding alone."""
    least, most = float(values.min()), float(values.max())
    if constant(least, most):
        return least, least
    low, high = (float(v) for v in np.quantile(values, [TAIL, 1 - TAIL]))
    return (low, high) if not constant(low, high) else (least, most)


def constant(least: float, most: float) -> bool:
    """Whether values between these differ by rounding alone."""
    return most - least <= TINY * max(abs(least), abs(most))


def digits(low: float, high: float) -> int:
    """Significant digits that tell two numbers apart."""
    if constant(low, high):
        return 3
    return max(2, math.ceil(math.log10(max(abs(low), abs(high)) / (high - low))) + 2)


def span(map_: Float[Tensor, "h w"]) -> str:
    """The range of a map's values in words; `constant` if they differ by rounding alone."""
    low, high = float(map_.min()), float(map_.max())
    n = digits(low, high)
    return f"constant {low:.3g}" if constant(low, high) else f"{low:.{n}g}..{high:.{n}g}"
