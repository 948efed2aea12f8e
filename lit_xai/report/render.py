"""The page and the card of an audit: what audit.json holds, through the templates beside this file."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lit_xai.report.answers import ICONS, called
from lit_xai.report.pictures import Strip

TEMPLATES = Path(__file__).parent / "templates"
ROOM = 0.04  # of an axis, beyond the outermost values
CLOSE = 12  # pixels below which two points have one label


def environment(html: bool) -> Environment:
    """Templates whose texts are escaped where they are of a page."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=None if html else plainly,
    )
    made.filters |= {"num": num, "est": est, "pct": pct, "pvalue": pvalue, "called": called, "at": at}
    made.globals |= {"icons": ICONS, "ticks": ticks}
    return made


def page(document: Mapping[str, Any], sprites: Mapping[tuple[int, str, int], Strip], listed: Sequence[str] = ()) -> str:
    """audit.html: one file that asks for nothing beside it; `listed` are pictures of probable label errors, an audit each."""
    script = (TEMPLATES / "audit.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        environment(True)
        .get_template("audit.html")
        .render(
            document=document,
            views=[view(a) for a in document["audits"]],
            sprites=sprites,
            listed=listed,
            script=Markup(script),
            digest=digest,
            style=Markup((TEMPLATES / "audit.css").read_text()),
        )
    )


def card(document: Mapping[str, Any]) -> str:
    """audit.md: a model card, every number with its place in audit.json."""

    def value(place: Sequence[Any], *more: Any) -> str:
        found: Any = document
        keys = (*place, *more)
        for key in keys:
            found = found[key] if not isinstance(found, Mapping) or key in found else None
            if found is None:
                return "not known"
        text = est(found) if isinstance(found, Mapping) and "value" in found else listed(found)
        return f"{text} (`{pointer(keys)}`)"

    return environment(False).get_template("audit.md").render(document=document, value=value, pointer=pointer)


def pointer(keys: Sequence[Any]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join(f"/{str(k).replace('~', '~0').replace('/', '~1')}" for k in keys)


def plainly(value: Any) -> Any:
    """A text in which Markdown finds no tag and no line of its own."""
    return " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;") if isinstance(value, str) else value


def listed(value: Any) -> str:
    """A plain value in a line of text."""
    if isinstance(value, list | tuple):
        return ", ".join(map(listed, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {listed(v)}" for k, v in value.items())
    return num(value) if isinstance(value, float) else " ".join(str(value).split())


# -------------------------------------------------------------------------------------------------------------- filters


def num(value: float | None, digits: int = 3) -> str:
    """A number, `-` where there is none."""
    return "-" if value is None else f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:,.0f}"


def pvalue(p: float | None) -> str:
    """A p-value with three digits, or `< .001`."""
    return "-" if p is None else "< .001" if p < 0.001 else f"{p:.3f}"


def pct(value: float | None) -> str:
    """A share in percent."""
    return "-" if value is None else f"{100 * value:.1f} %"


def est(e: Mapping[str, Any] | None) -> str:
    """An estimate's cell, as `0.580 [0.578, 0.583]`."""
    if e is None or e.get("value") is None:
        return "-"
    bounds = "" if e.get("low") is None else f" [{num(e['low'])}, {num(e['high'])}]"
    return f"{num(e['value'])}{bounds}"


def at(value: float, axis: Sequence[float], length: float = 100) -> str:
    """Where a value lies on an axis of that length, its ends where it is beyond."""
    low, high = axis
    return f"{length * min(1.0, max(0.0, (value - low) / (high - low))):.2f}"


def axis_of(values: Sequence[float | None]) -> list[float]:
    """The ends of an axis that holds these values."""
    known = [v for v in values if v is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    room = (high - low) * ROOM or 0.5
    return [low - room, high + room]


def ticks(axis: Sequence[float]) -> list[float]:
    """Three to seven round numbers on an axis."""
    span = axis[1] - axis[0]
    step = 10.0 ** math.floor(math.log10(span))
    step = next(s for s in (step, step / 2, step / 4, step / 5, step / 10) if span / s >= 3)
    return [round(k * step, 10) + 0.0 for k in range(math.ceil(axis[0] / step), math.floor(axis[1] / step) + 1)]


# ---------------------------------------------------------------------------------------------------------------- views


def view(a: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of one network, in order."""
    order = [row["explainer"] for row in a["leaderboard"]]
    questions = []
    for c in a["conditions"]:
        forests = [forest(a, c, column, order) for column in c["columns"] if column in a["columns"]]
        questions.append({**c, "forests": [f for f in forests if f["rows"]]})
    answers = [of["answers"] for of in a["verdict"]["methods"].values()]
    asked = [q for q in questions if any(of[q["key"]]["status"] != "not applicable" for of in answers)]
    ranked = [column for c in a["conditions"] for column in c["columns"]]
    return {
        "order": order,
        "ranked": [column for column in ranked if any(column in row["ranks"] for row in a["leaderboard"])],
        "questions": questions,
        "asked": asked,
        "plane": scatter(a),
        "pareto": pareto(a),
        "slices": sliced(a),
    }


def forest(a: Mapping[str, Any], c: Mapping[str, Any], column: str, order: Sequence[str]) -> dict[str, Any]:
    """One column as a forest plot: methods from the best down, then nulls; the lines are the nulls' values and the condition's."""
    up = a["columns"][column]["higher_is_better"]
    cells = {n: row[column] for n, row in a["rows"].items() if row.get(column, {}).get("value") is not None}
    nulls = {n: e["value"] for n, e in cells.items() if n in a["nulls"]}
    after = c["after"]
    rows = []
    for name in sorted((n for n in order if n in cells), key=lambda n: cells[n]["value"], reverse=up):
        answer = a["verdict"]["methods"][name]["answers"][c["key"]]
        number = next((n for n in answer["numbers"] if n["column"] == column), None)
        waits = number is not None and answer["status"] != number["status"] == "shown" and len(answer["numbers"]) == 1
        rows.append(
            {"explainer": name, "number": number, "waits": f"once {after} is" if waits else "", **read(cells[name])}
        )
    rows += [{"explainer": n, "number": None, "waits": "", **read(cells[n])} for n in nulls]
    numbers = [row["number"] for row in rows if row["number"]]
    threshold = c["above"] if c["below"] is None else c["below"]
    own = [n["reference"] for n in numbers if n["null"] in ("permuted labels", "whole image")]
    lines = nulls if threshold is None else {}
    ends = [row[k] for row in rows for k in ("value", "low", "high")]
    return {
        "column": column,
        "better": "higher" if up else "lower",
        "compared": threshold is None,
        "rows": rows,
        "nulls": nulls,
        "lines": lines,
        "threshold": threshold,
        "axis": axis_of([*ends, threshold, *own]),
    }


def read(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What a forest plot shows of a number."""
    return {k: cell[k] for k in ("value", "low", "high", "samples")}


def scatter(a: Mapping[str, Any]) -> dict[str, Any]:
    """The stability plane with a number for every explainer."""
    points = [{"label": str(i), **p} for i, p in enumerate(a["plane"], start=1)]
    x, y = axis_of([0.0, 1.0]), axis_of([0.5, 1.0, *(p["y"]["value"] for p in points)])
    return {
        "points": points,
        "x": x,
        "y": y,
        "labels": labels([(p["x"]["value"], p["y"]["value"]) for p in points], x, y),
    }


def labels(points: Sequence[tuple[float, float]], x: Sequence[float], y: Sequence[float]) -> list[str]:
    """The numbers of points, those that lie on each other at the first of them."""
    places = [(float(at(px, x, 400)), float(at(py, y, 300))) for px, py in points]
    out = [""] * len(points)
    heads: dict[int, list[int]] = {}
    for number, place in enumerate(places):
        head = next((h for h in heads if math.dist(places[h], place) < CLOSE), number)
        heads.setdefault(head, []).append(number + 1)
    for head, members in heads.items():
        out[head] = ", ".join(map(str, members))
    return out


def pareto(a: Mapping[str, Any]) -> dict[str, Any]:
    """Faithfulness against cost, of the methods of which both are known; passes on a logarithmic axis."""
    columns: list[str] = next((c["columns"] for c in a["conditions"] if c["key"] == "faithful"), [])
    name = next((n for n in columns if n in a["columns"]), "")
    points: list[dict[str, Any]] = []
    for row in a["leaderboard"]:
        e, cost = a["rows"][row["explainer"]].get(name, {}), row["cost"]
        if cost["forward"] is not None and e.get("value") is not None:
            passes = cost["forward"] + cost["backward"]
            points.append(
                {"label": str(len(points) + 1), **row, "passes": passes, "x": math.log10(max(1, passes)), "y": e}
            )
    x, y = (
        axis_of([0.0, 1.0, *(p["x"] for p in points)]),
        axis_of([p["y"][k] for p in points for k in ("value", "low", "high")]),
    )
    return {
        "column": name,
        "up": a["columns"][name]["higher_is_better"] if name else True,
        "points": points,
        "x": x,
        "y": y,
        "labels": labels([(p["x"], p["y"]["value"]) for p in points], x, y),
    }


def sliced(a: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Slices by score: which explainers have it, and the rows."""
    out: dict[str, dict[str, Any]] = {}
    for part in a["slices"]:
        for column, of in part["scores"].items():
            found = out.setdefault(column, {"explainers": [], "rows": []})
            found["explainers"] += [n for n in of if n not in found["explainers"]]
            found["rows"].append({"by": part["by"], "slice": part["slice"], "n": part["n"], "of": of})
    asked = [column for c in a["conditions"] for column in c["columns"]]
    out = dict(sorted(out.items(), key=lambda of: asked.index(of[0]) if of[0] in asked else len(asked)))
    for found in out.values():
        found["explainers"].sort(key=lambda n: list(a["rows"]).index(n))
    return out
