"""The files of a summary, and one self-contained page."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path

from lit_xai.metrics.statistics import Estimate
from lit_xai.report import draw, printed
from lit_xai.report.cases import case_table
from lit_xai.report.show import (
    LEGEND,
    alarm_lines,
    every_number,
    further_tables,
    head_lines,
    main_table,
    reasons,
    shown,
)
from lit_xai.report.summary import Summary
from lit_xai.store.files import write_atomically, write_csv


def write(summary: Summary, folder: Path, definition: str = "default") -> list[Path]:
    """summary.json, .csv, .tex, printed.csv and .tex where a paper is compared with, histograms as PNG and PDF, report.html. Returns what was written."""
    columns = shown(summary, definition)
    out = [folder / f"summary.{s}" for s in ("json", "csv", "tex")]
    write_atomically(out[0], json.dumps(summary.plain(), indent=1, sort_keys=True, default=str) + "\n")
    write_csv(out[1], *every_number(summary).file())
    comments = [*alarm_lines(summary), *head_lines(summary)]
    write_atomically(out[2], main_table(summary, columns).latex(comments))
    out += printed.leave(summary.beside, folder, "printed")
    xlabel = f"distance: {summary.head['distance']['meaning']}"
    write_csv(folder / "cases.csv", *case_table(summary.cases).file())
    out.append(folder / "cases.csv")
    if len(points := plane(summary)) > 1:
        title = f"{summary.head['name']}: only the upper right corner is trust"
        out += draw.stability_plane(points, list(summary.nulls), folder / "stability-plane.png", title)
    out += draw.histograms(summary.distances, folder / "histograms.png", xlabel)
    out.append(folder / "report.html")
    write_atomically(out[-1], page(summary, columns, folder))
    return out


def plane(summary: Summary) -> dict[str, tuple[Estimate, Estimate]]:
    """The points of the stability plane: by explainer, its similarity with fresh weights and its MeGe, where both are known."""
    found = {row.explainer: (row.estimates.get("sanity"), row.estimates.get("mege")) for row in summary.rows}
    return {n: (s, m) for n, (s, m) in found.items() if s and m and math.isfinite(s.value) and math.isfinite(m.value)}


def page(summary: Summary, columns: Sequence[str], folder: Path) -> str:
    """One HTML file that needs nothing beside it: table, reasons, pictures, every number's definition."""

    def picture(path: Path) -> str:
        if not path.exists():
            return ""
        data = base64.b64encode(path.read_bytes()).decode()
        return f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(path.stem)}"></figure>'

    head = "".join(f"<li>{html.escape(line)}</li>" for line in head_lines(summary))
    alarm = "".join(
        f"<code>{html.escape(line[2:])}</code>" if line.startswith("  ") else f"<p>{html.escape(line)}</p>"
        for line in alarm_lines(summary)
    )
    alarm = f'<div class="alarm" role="alert">{alarm}</div>' if alarm else ""
    why = "".join(f"<li>{html.escape(r)}</li>" for r in reasons(summary, columns))
    more = "".join(
        f"<h2>{name}</h2><p>{html.escape(t.title)}</p>{t.html()}"
        for name, t in further_tables(summary, columns).items()
    )
    galleries = "".join(picture(p) for p in sorted(folder.glob("fold=*/gallery.png"))[:1])
    definitions = html.escape(json.dumps(summary.definitions, indent=1, sort_keys=True, default=str))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(summary.head["name"])}: can its explanations be trusted?</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }}
th, td {{ padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }}
th:first-child {{ text-align: left }} tr.line > * {{ border-top: 2px solid #555 }} tr.below {{ color: #666 }} .wide, figure {{ overflow-x: auto; margin: 1rem 0 }}
.alarm {{ color: #a00; border: 2px solid #a00; background: #fff4f4; padding: .5rem 1rem; font-weight: bold }}
.alarm p {{ margin: .2rem 0; overflow-wrap: anywhere }}
.alarm code {{ display: block; white-space: pre; overflow-x: auto; font-size: 12px; font-weight: normal; color: #222 }}
pre {{ background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: 12px }}
</style>
<h1>{html.escape(summary.head["name"])}</h1>{alarm}<ul>{head}</ul>
{main_table(summary, columns).html()}
<p>{html.escape(LEGEND)}</p><ul>{why}</ul>
{more}
<h2>Stability needs dependence on the model</h2>{picture(folder / "stability-plane.png")}
<h2>Distances between maps</h2>{picture(folder / "histograms.png")}
<h2>Maps</h2>{galleries}
<h2>Definitions</h2><pre>{definitions}</pre></html>
"""
