"""The tables of further reports: fillers (plausible images, removed objects, samples) and sanity checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lit_xai.metrics import sanity as checks
from lit_xai.metrics.comparisons import ALPHA, holm, two_sided
from lit_xai.metrics.statistics import Estimate, too_few
from lit_xai.quality.plausibility import REAL, differences
from lit_xai.quality.sampler import MEASURES
from lit_xai.quality.sampler_quality import SamplerQuality
from lit_xai.report.table import MARK, WHOLE, Column, Marked, Table, interval

Estimates = Mapping[str, Mapping[str, Estimate]]  # by filler and measure


def notes(row: Mapping[str, Estimate]) -> str:
    """What is to be said of numbers that are there."""
    return "; ".join(f"{name}: {e.reason}" for name, e in row.items() if e.reason and not math.isnan(e.value))


def plausibility(table: Estimates, title: str = "") -> Table:
    """Of `plausibility_table`; with the paired difference to the distance of the first filler."""
    columns = [Column("filler"), interval("distance", head="distance [95 %]"), Column("reference", shown=False)]
    columns += [interval("difference", head="difference [95 %]", undefined="")]
    columns += [
        interval("bits", head="bits [95 %]", undefined="{reason}"),
        *(Column(n, shown=False) for n in ("images", "note")),
    ]
    first = next((name for name in table if name != REAL), "")
    against = differences(table, first) if first else {}
    rows: list[list[Any]] = []
    for name, row in table.items():
        compared = (first if name in against else "", against.get(name))
        rows.append([name, row["distance"], *compared, row["bits"], row["distance"].samples, notes(row)])
    return Table(columns, rows, title, zeros=True, missing=math.nan)


def removal(table: Estimates, title: str = "") -> Table:
    """Of `removal_table`; `lpips` is a number or why there is none."""
    columns = [Column("filler"), *(interval(n, head=f"{n} [95 %]") for n in ("accuracy", "ms_ssim"))]
    columns += [Column("lpips"), Column("share"), Column("note", shown=False)]
    rows = []
    for name, row in table.items():
        note = f"MS-SSIM: {row['ms_ssim'].reason}" if row["ms_ssim"].reason else ""
        lpips = row["lpips"].reason if math.isnan(row["lpips"].value) else row["lpips"].value
        rows.append([name, row["accuracy"], row["ms_ssim"], lpips, row["share"].value, note])
    return Table(columns, rows, title, zeros=True, missing=math.nan)


def sanity(entries: Iterable[checks.Entry]) -> Table:
    """Of `sanity_table`; `layers` is how many are re-initialised."""
    columns = [Column(n) for n in ("how", "explainer", "stage", "layer", "layers")]
    columns += [*map(interval, checks.MEASURES), Column("undefined")]
    rows = [
        [e.how, e.explainer, e.number, *e.stage, *(e.estimates[m] for m in checks.MEASURES), e.undefined]
        for e in entries
    ]
    return Table(columns, rows, missing=math.nan)


def samplers(quality: SamplerQuality, about: str = "") -> Table:
    """One row a sampler, with every measure; marked where it differs from the reference, and from real images."""
    columns = [Column("sampler")]
    columns += [Column(n, better=m.better, head=n.replace("_", " ")) for n, m in MEASURES.items()]
    marks = {MARK: differing(quality, quality.to_reference), WHOLE: differing(quality, quality.to_real)}
    rows = [
        [
            n,
            *(
                Marked(e, "".join(m for m, found in marks.items() if (n, measure) in found))
                for measure, e in row.items()
            ),
        ]
        for n, row in quality.estimates.items()
    ]
    return Table(columns, rows, about, digits=None)


def differing(quality: SamplerQuality, apart: Callable[[str, str], Estimate | None]) -> set[tuple[str, str]]:
    """The rows and measures whose difference is not 0, corrected by Holm over the rows of a measure."""
    out = set()
    for measure in MEASURES:
        known = {
            n: d for n, row in quality.estimates.items() if measure in row and (d := apart(n, measure)) is not None
        }
        p = holm({name: two_sided(d) for name, d in known.items()})
        out |= {(name, measure) for name in known if p[name] <= ALPHA}
    return out


def every_sampler_number(quality: SamplerQuality) -> Table:
    """One row a sampler and measure, for files; empty where undefined, `note` says why."""
    columns = [Column("sampler"), Column("measure"), interval("value", stem=""), Column("reference")]
    columns += [interval("difference"), interval("minus_real")]
    columns += [Column(n) for n in ("images", "draws", "hides", "measured_on", "note")]
    rows = []
    for name, row in quality.estimates.items():
        for measure, e in row.items():
            apart, sampled = quality.to_reference(name, measure), name in quality.hides
            about = [e.samples, quality.draws if sampled else "", quality.hides.get(name, "")]
            about += [quality.measured_on if measure == "seconds_per_1000" and sampled else "", e.reason]
            reference = "" if apart is None else quality.reference
            rows.append([name, measure, e, reference, apart, quality.to_real(name, measure), *about])
    return Table(columns, rows)


def about_samplers(quality: SamplerQuality, where: str) -> list[str]:
    """What the table of samplers rests on."""
    images = next(quality.estimates[n]["l2"].samples for n in quality.hides)
    rates = ", ".join(f"{n} {h:g}" for n, h in quality.hides.items())
    return [
        f"{where}: {quality.draws} samples of each of {images} held-out probes, share of superpixels hidden: {rates}"
        f"{too_few(images)}",
        f"value [95 % interval]; {MARK} = differs from {quality.reference}, {WHOLE} from other real images, "
        f"corrected by Holm over the samplers of a column; seconds: {quality.measured_on}",
    ]
