"""Pictures: the gallery of maps, one explained image, sanity checks, the histograms of distances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lit_xai.core import Legend
from lit_xai.data.images import seen
from lit_xai.metrics.statistics import Estimate
from lit_xai.report.figure import TINY, Scale, new_figure, save, span, wrapped

DRAWN, GAP = 160, 6  # pixels of a panel and between two, where panels are pasted


def gallery(
    images: Tensor,
    captions: Sequence[str],
    maps: Mapping[str, Tensor],
    path: Path,
    title: str = "",
    legends: Mapping[str, Legend] | None = None,
    undecided: Mapping[str, Tensor] | None = None,
) -> Path:
    """One row a probe, one column an explainer. Below every map the range of its values, below a column what colours say.

    An explainer has one colour scale for all rows, unless its legend is a range: then every map has its own.

    Args:
        images: `[b, c, h, w]` in [0, 1].
        captions: a text for every image: label and predictions.
        maps: `{explainer: [b, h, w]}`.
        path: where the picture goes.
        title: above it.
        legends: by explainer; one without is drawn by the sign of its values.
        undecided: `[b, r, c]` by explainer, above 0 for the cells of its maps that are drawn pale.
    """
    figure, axes = new_figure(2.4 + 1.35 * len(maps), 1.1 + 1.55 * len(images), len(images), 1 + len(maps))
    figure.suptitle(wrapped(title, figure.get_figwidth(), 9), fontsize=9)
    for row, image in enumerate(seen(images)):
        picture = seen(image).permute(1, 2, 0).numpy()
        axes[row, 0].imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
        axes[row, 0].set_ylabel(wrapped(captions[row], 1.3, 6), fontsize=6, rotation=0, ha="right", va="center")
    for column, (name, values) in enumerate(maps.items(), start=1):
        scale, cells = Scale.of(values, (legends or {}).get(name)), (undecided or {}).get(name)
        axes[0, column].set_title(wrapped(name.replace("_", "\n"), 1.1, 7), fontsize=7)
        for row in range(len(images)):
            pale = None if cells is None else cells[row]
            drawn = scale.at(values[row]).draw(axes[row, column], values[row], pale)
            axes[row, column].set_xlabel(span(values[row]), fontsize=5, labelpad=2)
        bar = figure.colorbar(drawn, ax=axes[:, column].tolist(), location="bottom", fraction=0.03, pad=0.01)
        at, numbers = (list(drawn.get_clim()), ["least", "most"]) if scale.own else scale.marks()
        bar.set_ticks(at, labels=numbers)
        bar.ax.tick_params(labelsize=5)
        bar.set_label(wrapped(scale.says + ("" if cells is None else "; pale = not decided"), 1.1, 5), fontsize=5)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return save(figure, path)


def cases(
    images: Tensor | None,
    captions: Sequence[str],
    maps: Mapping[str, Tensor],
    consensus: Tensor,
    path: Path,
    title: str = "",
) -> Path:
    """One row a probe: image, every predictor's map in colours of its own scale, and the share of them that have a pixel on top.

    Args:
        images: `[b, c, s, s]` uint8; None leaves them out.
        captions: a text for every probe.
        maps: `{predictor: [b, h, w]}`.
        consensus: `[b, h, w]` in [0, 1].
        path: where the picture goes.
        title: above it.
    """
    rows = [*([pictures_of(images)] if images is not None else [])]
    for values in maps.values():
        rows.append([Scale.of(row[None]).pixels(row) for row in values])
    rows.append([Scale("viridis", 0.0, 1.0, "").pixels(row) for row in consensus])
    side = max(DRAWN // max(consensus.shape[-2:]), 1)
    step = [n * side + GAP for n in consensus.shape[-2:]]
    sheet = np.full((step[0] * len(captions) - GAP, step[1] * len(rows) - GAP, 3), 255, dtype=np.uint8)
    for column, panels in enumerate(rows):
        for row, panel in enumerate(panels):
            top, left = row * step[0], column * step[1]
            large = enlarged(panel, step[0] - GAP, step[1] - GAP)
            sheet[top : top + step[0] - GAP, left : left + step[1] - GAP] = large
    figure, axes = new_figure(1.3 + 1.25 * len(rows), 0.8 + 1.25 * len(captions) * step[0] / step[1], 1, 1)
    axis = axes[0, 0]
    axis.imshow(sheet, interpolation="none")
    axis.set_title(wrapped(title, figure.get_figwidth(), 9), fontsize=9)
    heads = [*["image"] * (images is not None), *maps, "share of folds\nwith it on top"]
    axis.set_xticks([step[1] * (n + 0.5) for n in range(len(heads))], heads, fontsize=7)
    axis.set_yticks([step[0] * (n + 0.5) for n in range(len(captions))], captions, fontsize=6)
    axis.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axis.set_frame_on(False)
    return save(figure, path)


def pictures_of(images: Tensor) -> list[np.ndarray]:
    """uint8 images `[b, c, s, s]` as `[s, s, 3]` each."""
    plain = images.permute(0, 2, 3, 1).numpy()
    return [np.broadcast_to(x[..., :3] if x.shape[-1] >= 3 else x[..., :1], (*x.shape[:2], 3)) for x in plain]


def enlarged(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """`[h, w, 3]` to another size by its nearest pixels."""
    rows, columns = (np.arange(n) * m // n for n, m in zip((height, width), picture.shape[:2], strict=True))
    return picture[rows][:, columns]


def stability_plane(
    points: Mapping[str, tuple[Estimate, Estimate]], nulls: Sequence[str], path: Path, title: str = ""
) -> list[Path]:
    """Every explainer as a point with two intervals: across, 1 - its similarity with fresh weights; up, MeGe. PNG and PDF.

    Only the upper right corner is trust: a method in the upper left is stable because it ignores the model.

    Args:
        points: `{explainer: (sanity, mege)}`.
        nulls: those drawn hollow.
        path: where the picture goes.
        title: above it.
    """
    from matplotlib import colormaps

    figure, axes = new_figure(6.4, 5.2, 1, 1)
    axis, colours = axes[0, 0], colormaps["tab10" if len(points) <= 10 else "tab20"]
    axis.fill_between([0.5, 1], 0.75, 1, color="#2ca02c", alpha=0.07, linewidth=0)
    for number, (name, (sanity, mege)) in enumerate(points.items()):
        x, y, null = 1 - sanity.value, mege.value, name in nulls
        across = [[max(0.0, sanity.high - sanity.value)], [max(0.0, sanity.value - sanity.low)]]
        upwards = [[max(0.0, y - mege.low)], [max(0.0, mege.high - y)]]
        axis.errorbar(
            x, y, np.nan_to_num(upwards), np.nan_to_num(across), "s" if null else "o", color="#777" if null else colours(number),
            markerfacecolor="white" if null else None, markersize=5, elinewidth=0.8, label=f"{name} (null)" if null else name,
        )  # fmt: skip
    axis.set_xlim(-0.03, 1.03)
    axis.set_ylim(0.45, 1.03)
    axis.set_xlabel("depends on the model: 1 - similarity with fresh weights")
    axis.set_ylabel("persists over folds: MeGe")
    axis.set_title(wrapped(title, 6.0, 9), fontsize=9)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axis.grid(alpha=0.25)
    return [save(figure, path.with_suffix(suffix)) for suffix in (".png", ".pdf")]


def curves(
    lines: Mapping[str, Tensor], span: tuple[float, float], path: Path, title: str = "", what: str = "pixels"
) -> Path:
    """The probability along a walk, one line an explainer, with its interval as a band.

    Args:
        lines: `{explainer: [points, 3]}`, mean, low and high.
        span: shares of the pixels that have changed at the first and at the last point.
        path: where the picture goes.
        title: above it.
        what: which pixels.
    """
    from matplotlib import colormaps

    figure, axes = new_figure(7.5, 4.5, 1, 1)
    axis = axes[0, 0]
    for number, (name, line) in enumerate(lines.items()):
        colour, values = colormaps["tab10" if len(lines) <= 10 else "tab20"](number), line.numpy()
        at = np.linspace(*span, len(values))
        axis.plot(at, values[:, 0], label=name, color=colour, linewidth=1.4)
        axis.fill_between(at, values[:, 1], values[:, 2], color=colour, alpha=0.12, linewidth=0)
    axis.set_xlabel(f"share of the {what}")
    axis.set_ylabel("mean probability, 95 % interval")
    axis.set_title(wrapped(title, 6.0, 9), fontsize=9)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axis.grid(alpha=0.25)
    return save(figure, path)


def degradation(
    lines: Mapping[str, Mapping[str, Mapping[str, Sequence[tuple[float, Estimate]]]]],
    path: Path,
    title: str = "",
) -> Path:
    """Measures over levels of damage: one column a kind of damage, one row a measure, one line an explainer.

    Args:
        lines: `{kind: {measure: {explainer: [(level, estimate)]}}}`.
        path: where the picture goes.
        title: above it.
    """
    from matplotlib import colormaps

    measures = list(next(iter(lines.values())))
    figure, axes = new_figure(4.6 * len(lines) + 1.8, 3.2 * len(measures), len(measures), len(lines))
    figure.suptitle(wrapped(title, figure.get_figwidth(), 10), fontsize=10)
    for column, (kind, rows) in enumerate(lines.items()):
        for row, (measure, explainers) in enumerate(rows.items()):
            axis = axes[row, column]
            for number, (name, points) in enumerate(explainers.items()):
                level, value, low, high = np.array([(x, e.value, e.low, e.high) for x, e in points], dtype=float).T
                colour = colormaps["tab10" if len(explainers) <= 10 else "tab20"](number)
                axis.plot(level, value, marker="o", markersize=3, label=name, color=colour, linewidth=1.3)
                axis.fill_between(level, low, high, color=colour, alpha=0.1, linewidth=0)
            axis.set_ylabel(measure)
            axis.set_xlabel(f"{kind.replace('_', ' ')}, share")
            axis.grid(alpha=0.25)
    axes[0, -1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    return save(figure, path)


def samples(images: Tensor, keep: Tensor, draws: Tensor, path: Path, title: str = "") -> Path:
    """One row an image: what a sampler saw (the hidden window hatched), the truth, and its draws.

    Args:
        images: `[b, c, h, w]` in [0, 1].
        keep: `[b, h, w]`, False where it was hidden.
        draws: `[b, d, c, h, w]`.
        path: where the picture goes.
        title: above it.
    """
    columns = 2 + draws.shape[1]
    figure, axes = new_figure(1.1 * columns, 0.5 + 1.2 * len(images), len(images), columns)
    figure.suptitle(wrapped(title, figure.get_figwidth(), 9), fontsize=9)
    for row, image in enumerate(images):
        y, x = (int(t.min()) for t in (~keep[row]).nonzero(as_tuple=True))
        tall, wide = (int(t.max()) + 1 for t in (~keep[row]).nonzero(as_tuple=True))
        for column, picture in enumerate([image, image, *draws[row]]):
            shown = seen(picture).permute(1, 2, 0).float().numpy()
            axis = axes[row, column]
            axis.imshow(shown.squeeze(-1) if shown.shape[-1] == 1 else shown, cmap="gray", vmin=0, vmax=1)
            fill = {"facecolor": "#8899bb", "hatch": "///"} if column == 0 else {"fill": False}
            axis.add_patch(_rectangle((x - 0.5, y - 0.5), wide - x, tall - y, **fill))
            axis.set_xticks([])
            axis.set_yticks([])
    for column, name in enumerate(["context", "truth", *(f"draw {d + 1}" for d in range(draws.shape[1]))]):
        axes[0, column].set_title(name, fontsize=7)
    return save(figure, path)


def _rectangle(corner: tuple[float, float], width: float, height: float, **style: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, edgecolor="#d62728", linewidth=0.8, **style)


def explained(
    image: Tensor,
    map_: Tensor,
    lines: Sequence[str],
    path: Path,
    segments: Tensor | None = None,
    top: Sequence[int] = (),
    coefficients: Tensor | None = None,
    half_width: Tensor | None = None,
    scale: Scale | None = None,
    undecided: Tensor | None = None,
) -> Path:
    """One image, its map alone and over the image, the top superpixels with their coefficients, and the numbers.

    Args:
        image: `[c, h, w]` in [0, 1].
        map_: `[h, w]`.
        lines: the numbers.
        path: where the picture goes.
        segments: `[h, w]`; None leaves the superpixels out.
        top: superpixels to outline, largest first.
        coefficients, half_width: `[d]` values and half of their 95 % intervals.
        scale: the map's colours; None = by the sign of its values.
        undecided: `[r, c]`, above 0 for the cells of the map that are drawn pale.
    """
    figure, axes = new_figure(12.0 if segments is None else 18.0, 4.6, 1, 3 if segments is None else 5)
    row = axes[0]
    picture = seen(image).permute(1, 2, 0).numpy()
    shown = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
    scale = scale or Scale.of(map_)
    row[0].imshow(shown)
    bar = figure.colorbar(scale.draw(row[1], map_, undecided), ax=row[1], location="bottom", fraction=0.05, pad=0.02)
    at, numbers = scale.marks()
    bar.set_ticks(at, labels=numbers)
    bar.ax.tick_params(labelsize=7)
    row[2].imshow(shown.mean(2), cmap="gray", vmin=0, vmax=1)
    scale.draw(row[2], map_, alpha=0.6)
    if segments is not None and coefficients is not None and half_width is not None:
        from skimage.segmentation import mark_boundaries

        inside = np.where(np.isin(segments.numpy(), list(top)), segments.numpy() + 1, 0)
        dimmed = np.where(inside[..., None] > 0, shown, 0.35 * shown)
        row[3].imshow(mark_boundaries(dimmed, inside, color=(1, 0.9, 0)))
        row[3].set_title(f"top {len(top)} superpixels" if top else "no superpixel is for the class", fontsize=8)
        for place, s in enumerate(top, start=1):
            y, x = (float(v.mean()) for v in np.nonzero(segments.numpy() == s))
            row[3].text(x, y, str(place), color="white", fontsize=8, ha="center", va="center", fontweight="bold")
        order = coefficients.abs().argsort(descending=True)[:12]
        tint = ["#b2182b" if c > 0 else "#2166ac" for c in coefficients[order].tolist()]
        names = [str(list(top).index(s) + 1) if s in top else "" for s in order.tolist()]
        widths, bars = coefficients[order].numpy(), half_width[order].numpy()
        row[4].barh(range(len(order)), widths, xerr=bars, color=tint, ecolor="#555")
        row[4].set_yticks(range(len(order)), names, fontsize=7)
        row[4].invert_yaxis()
        row[4].axvline(0, color="black", linewidth=0.6)
        row[4].tick_params(axis="x", labelsize=7)
        row[4].set_title("coefficients, 95 % intervals", fontsize=8)
    for axis in row[:4]:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.supxlabel(wrapped("\n".join(lines), figure.get_figwidth(), 8), fontsize=8)
    return save(figure, path)


def histograms(sets: Mapping[str, tuple[Tensor, Tensor]], path: Path, xlabel: str) -> list[Path]:
    """The distances `[n]` of S_equal and S_differ of every explainer, as densities; written as PNG and PDF."""
    columns = min(3, len(sets))
    rows = -(-len(sets) // columns)
    figure, axes = new_figure(3.2 * columns, 2.2 * rows, rows, columns)
    for axis, (name, (equal, differ)) in zip(axes.flat, sets.items(), strict=False):
        both = np.concatenate([equal.numpy(), differ.numpy()])
        if len(both) == 0:
            axis.text(0.5, 0.5, "no pairs", ha="center", transform=axis.transAxes)
            continue
        bins = np.linspace(min(0.0, both.min()), max(1.0, both.max()) if both.max() <= 1 else both.max(), 31)
        for values, colour, label in ((equal, "#2166ac", "S_equal"), (differ, "#b2182b", "S_differ")):
            if len(values):
                axis.hist(
                    values.numpy(), bins, density=True, alpha=0.55, color=colour, label=f"{label} ({len(values)})"
                )
        axis.set_title(wrapped(name, 3.0, 8), fontsize=8)
        axis.legend(fontsize=6)
        axis.tick_params(labelsize=6)
    for axis in axes.flat[len(sets) :]:
        axis.axis("off")
    figure.supxlabel(wrapped(xlabel, figure.get_figwidth(), 8), fontsize=8)
    return [save(figure, path.with_suffix(suffix)) for suffix in (".png", ".pdf")]


def sanity(
    images: Tensor,
    stages: Sequence[str],
    maps: Mapping[str, Tensor],
    spearman: Mapping[str, Tensor],
    magnitude: Mapping[str, Tensor],
    path: Path,
    title: str = "",
    legends: Mapping[str, Legend] | None = None,
) -> Path:
    """The maps of ever more changed models, and what is left of them: one block of rows an explainer.

    An explainer's colours are those of the trained model's maps, so that a map which vanishes looks blank; where values have
    no zero point, as wide as those of the trained model's map, around the middle of each. Beside them,
    over the stages: the rank correlation with the trained model's maps (0: none left), and the mean |map| relative to
    theirs, both with their intervals. What is undefined is left out; a mean outside of [1e-4, 1e4] stands at the edge.

    Args:
        images: `[b, c, h, w]` in [0, 1], one row each in every block.
        stages: a text for every changed model.
        maps: `{explainer: [1 + stages, b, h, w]}`, the trained model's first.
        spearman, magnitude: `{explainer: [stages, 3]}`, value, low and high.
        path: where the picture goes.
        title: above it.
        legends: by explainer; one without is drawn by the sign of its values.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    blocks, rows, columns = len(maps), len(images), 2 + len(stages)
    width, height = 1.15 * columns + 5.0, 1.15 * blocks * rows + 0.9
    figure, _ = new_figure(width, max(height, 2.4), 1, 1)
    figure.clear()
    figure.suptitle(wrapped(title, figure.get_figwidth(), 9), fontsize=9)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    grid = figure.add_gridspec(blocks * rows, columns + 2, width_ratios=[1.0] * columns + [1.6, 1.6])
    heads = ["image", "trained", *(f"{n}: {_wrapped(text)}" for n, text in enumerate(stages, start=1))]
    at = np.arange(1, len(stages) + 1)
    sizes = np.concatenate([np.asarray(m, dtype=float).ravel() for m in magnitude.values()])
    sizes = np.clip(sizes[np.isfinite(sizes) & (sizes > 0)], 1e-4, 1e4)
    least, most = min([0.5, *sizes]) / 1.5, max([2.0, *sizes]) * 1.5
    lows = np.concatenate([np.asarray(s, dtype=float)[:, :2].ravel() for s in spearman.values()])
    floor = min([-0.3, *(lows[np.isfinite(lows)] - 0.08)])
    for block, name in enumerate(maps):
        values = maps[name].float().nan_to_num(0.0, 0.0, 0.0)
        legend = (legends or {}).get(name, Legend())
        scale = Scale.of(values[0], legend)
        if not scale.own and bool((values < -TINY * scale.high).any()):  # a changed model's maps may be the signed ones
            scale = Scale("RdBu_r", -scale.high, scale.high, legend.text(signed=True))
        for row, image in enumerate(images):
            cells = [figure.add_subplot(grid[block * rows + row, column]) for column in range(columns)]
            picture = seen(image).permute(1, 2, 0).numpy()
            cells[0].imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=1)
            for cell, map_ in zip(cells[1:], values[:, row], strict=True):
                scale.at(values[0, row]).around(map_).draw(cell, map_)
                cell.set_xlabel(span(map_), fontsize=5, labelpad=3)
            for cell, head in zip(cells, heads, strict=True):
                cell.set_xticks([])
                cell.set_yticks([])
                if block == row == 0:
                    cell.set_title(head, fontsize=7)
            if row == rows // 2:  # of an even number, the middle is this row's upper edge
                where = 0.5 if rows % 2 else 1.0
                said = f"{name}\n{scale.says}"
                cells[0].set_ylabel(wrapped(said, 1.2, 6), fontsize=6, rotation=0, ha="right", va="center", y=where)
        whole = slice(block * rows, (block + 1) * rows)
        for column, (curve, colour) in enumerate(((spearman[name], "#2166ac"), (magnitude[name], "#b2182b"))):
            axis = figure.add_subplot(grid[whole, columns + column])
            value, lower, upper = np.asarray(curve, dtype=float).T
            if column:
                axis.set_yscale("log")
                axis.set_ylim(least, most)
                axis.axhline(1, color="#999", linewidth=0.6)
                value, lower, upper = (np.clip(v, least, most) for v in (value, lower, upper))
                axis.yaxis.set_major_locator(LogLocator(numticks=4))
                axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
                axis.yaxis.set_minor_formatter(NullFormatter())
            else:
                axis.set_ylim(floor, 1.08)
                axis.set_yticks([-0.5, 0, 0.5, 1] if floor < -0.5 else [0, 0.5, 1])
                axis.axhline(0, color="#999", linewidth=0.6)
            axis.fill_between(at, lower, upper, color=colour, alpha=0.2, linewidth=0)
            axis.plot(at, value, color=colour, marker="o", markersize=2.5, linewidth=1)
            axis.set_xlim(0.7, len(stages) + 0.3)
            axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axis.tick_params(labelsize=6, length=2, labelbottom=block == blocks - 1)
            if block == 0:
                axis.set_title(("Spearman", "mean |map| / trained")[column], fontsize=7)
            if block == blocks - 1:
                axis.set_xlabel("stage", fontsize=7)
    return save(figure, path)


def _wrapped(text: str, most: int = 14) -> str:
    """A dotted name over several lines of about this many characters."""
    lines = [""]
    for part in text.replace(".", ".\n").split("\n"):
        if lines[-1] and len(lines[-1] + part) > most:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
