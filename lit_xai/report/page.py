"""The files of a summary, and one self-contained page."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path

from lit_xai.report import draw
from lit_xai.report.summary import Summary
from lit_xai.report.table import (
    LEGEND,
    PAIRS,
    ROBUSTNESS,
    SIMILARITIES,
    alarm_lines,
    arrow,
    cell,
    head_lines,
    latex,
    pair_columns,
    pair_rows,
    reasons,
    robustness_rows,
    shown,
)
from lit_xai.store.files import write_atomically, write_csv


def write(summary: Summary, folder: Path, definition: str = "default") -> list[Path]:
    """summary.json, .csv, .tex, histograms as PNG and PDF, report.html. Returns what was written."""
    columns = shown(summary, definition)
    out = [folder / f"summary.{s}" for s in ("json", "csv", "tex")]
    write_atomically(out[0], json.dumps(summary.plain(), indent=1, sort_keys=True, default=str) + "\n")
    fields = ("value", "low", "high", "se", "null", "samples", "pairs", "dropped", "reason")
    rows, lack = [], summary.head["unfinished"] or {"message": ""}
    for row in summary.rows:
        for c, e in row.estimates.items():
            plain = e.plain()
            whole = row.to_whole[c].plain() if c in row.to_whole else {}
            apart = [whole.get(f) for f in ("value", "low", "high")]
            rows.append([row.explainer, c, *(plain[f] for f in fields), row.marked(c), *apart, lack["message"]])
    whole_columns = ["minus_whole_image", "minus_whole_low", "minus_whole_high"]
    write_csv(out[1], ["explainer", "column", *fields, "marked", *whole_columns, "unfinished"], rows)
    write_atomically(out[2], latex(summary, columns))
    xlabel = f"distance: {summary.head['distance']['meaning']}"
    out += draw.histograms(summary.distances, folder / "histograms.png", xlabel)
    out.append(folder / "report.html")
    write_atomically(out[-1], page(summary, columns, folder))
    return out


def page(summary: Summary, columns: Sequence[str], folder: Path) -> str:
    """One HTML file that needs nothing beside it: table, reasons, pictures, every number's definition."""

    def wide(rows: str) -> str:
        return f'<div class="wide"><table>{rows}</table></div>'

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
    titles = "".join(f"<th>{html.escape(arrow(summary, c))}</th>" for c in columns)
    body = ""
    for row in summary.rows:
        cells = "".join(f"<td>{html.escape(cell(row, c))}</td>" for c in columns)
        body += f"<tr><th>{html.escape(row.explainer)}</th>{cells}</tr>"
    why = "".join(f"<li>{html.escape(r)}</li>" for r in reasons(summary, columns))
    alike = "".join(
        f"<tr><th>{html.escape(f)}</th>{''.join(f'<td>{html.escape(c)}</td>' for c in cells)}</tr>"
        for f, cells in robustness_rows(summary)
    )
    if alike:
        columns_ = "".join(f"<th>{s}</th>" for s in SIMILARITIES)
        alike = f"<h2>Robustness</h2><p>{ROBUSTNESS}</p>{wide(f'<tr><th>family</th>{columns_}</tr>{alike}')}"
    if summary.pairs:
        heads = "".join(f"<th>{html.escape(c)}</th>" for c in pair_columns(summary))
        lines = ["".join(f"<td>{html.escape(c)}</td>" for c in cells) for cells in pair_rows(summary)]
        body_ = "".join(f"<tr>{x}</tr>" for x in lines)
        alike += f"<h2>Differences</h2><p>{PAIRS}</p>{wide(f'<tr>{heads}</tr>{body_}')}"
    galleries = "".join(picture(p) for p in sorted(folder.glob("fold=*/gallery.png"))[:1])
    definitions = html.escape(json.dumps(summary.definitions, indent=1, sort_keys=True, default=str))
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(summary.head["name"])}: can its explanations be trusted?</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }}
th, td {{ padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }}
th:first-child {{ text-align: left }} .wide, figure {{ overflow-x: auto; margin: 1rem 0 }}
.alarm {{ color: #a00; border: 2px solid #a00; background: #fff4f4; padding: .5rem 1rem; font-weight: bold }}
.alarm p {{ margin: .2rem 0; overflow-wrap: anywhere }}
.alarm code {{ display: block; white-space: pre; overflow-x: auto; font-size: 12px; font-weight: normal; color: #222 }}
pre {{ background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: 12px }}
</style>
<h1>{html.escape(summary.head["name"])}</h1>{alarm}<ul>{head}</ul>
{wide(f"<tr><th>explainer</th>{titles}</tr>{body}")}
<p>{html.escape(LEGEND)}</p><ul>{why}</ul>
{alike}
<h2>Distances between maps</h2>{picture(folder / "histograms.png")}
<h2>Maps</h2>{galleries}
<h2>Definitions</h2><pre>{definitions}</pre></html>
"""
