"""Pictures of samplers: where their samples lie among real images, and the trade of diversity against locality."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from lit_xai.metrics.statistics import Estimate
from lit_xai.report.figure import new_figure, save, wrapped

COLUMNS = 4  # of panels


def colour_of(number: int) -> str:
    """One of nine colours, none of them grey: that is the real images'."""
    return f"C{[0, 1, 2, 3, 4, 5, 6, 8, 9][number % 9]}"


def alignment(
    plane: Mapping[str, Float[Tensor, "_ 2"]],
    silhouettes: Mapping[str, Estimate],
    path: Path,
    title: str = "",
    real: str = "real",
) -> Path:
    """One panel a set of samples: its places in the plane over those of the real images, with its silhouette.

    Args:
        plane: `{name: [n, 2]}`, one of them `real`.
        silhouettes: by name, with their intervals.
        path: where the picture goes.
        title: above it.
        real: the name of the real images.
    """
    names = [name for name in plane if name != real]
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure, axes = new_figure(3.0 * columns, 0.7 + 3.0 * rows, rows, columns)
    figure.suptitle(wrapped(title, figure.get_figwidth(), 9), fontsize=9)
    for number, (axis, name) in enumerate(zip(axes.flat, names, strict=False)):
        colour = colour_of(number)
        axis.scatter(*plane[real].T.numpy(), s=9, color="#b0b0b0", linewidths=0, label=real, rasterized=True)
        axis.scatter(*plane[name].T.numpy(), s=5, color=colour, linewidths=0, alpha=0.6, label=name, rasterized=True)
        e = silhouettes[name]
        axis.set_title(wrapped(f"{name}: silhouette {e.text()}", 2.8, 7), fontsize=7)
        axis.legend(fontsize=6, markerscale=2, loc="best", framealpha=0.7)
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in axes.flat[len(names) :]:
        axis.axis("off")
    return save(figure, path)


def tradeoff(points: Mapping[str, tuple[Estimate, Estimate]], path: Path, title: str = "") -> Path:
    """One point a sampler, with its 95 % intervals: how far its samples lie from the image, and how diverse they are.

    Args:
        points: `{name: (l2 distance, entropy of the predicted classes)}`.
        path: where the picture goes.
        title: above it.
    """
    figure, axes = new_figure(6.5, 4.8, 1, 1)
    axis = axes[0, 0]
    for number, (name, (far, diverse)) in enumerate(points.items()):
        colour = colour_of(number)
        bars = [[[e.value - e.low], [e.high - e.value]] for e in (far, diverse)]
        axis.errorbar(far.value, diverse.value, xerr=bars[0], yerr=bars[1], fmt="o", markersize=5, color=colour)
        axis.annotate(name, (far.value, diverse.value), (5, 5), textcoords="offset points", fontsize=8, color=colour)
    axis.annotate(
        "better",
        xy=(0.03, 0.97),
        xytext=(0.16, 0.86),
        xycoords="axes fraction",
        color="#909090",
        fontsize=8,
        arrowprops={"arrowstyle": "->", "color": "#909090"},
    )
    axis.set_xlabel("l2 distance to the image (less = more local), 95 % interval")
    axis.set_ylabel("entropy of the predicted classes, nats, 95 % interval")
    axis.set_title(wrapped(title, 5.5, 9), fontsize=9)
    axis.margins(0.12)
    axis.grid(alpha=0.25)
    return save(figure, path)
