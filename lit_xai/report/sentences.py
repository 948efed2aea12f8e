"""The verdict in plain words."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence

from lit_xai.report.answers import CARE, CONTRADICTED, DISTRUST, NOT_SHOWN, ORDER, SHOWN, TRUST, Answer, Verdict, called
from lit_xai.report.conditions import Condition
from lit_xai.report.summary import Row, Summary


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sentence(verdict: Verdict, data: str, about: str) -> str:
    """The verdict in plain words: what is trusted and why, what with care, what not."""
    if not verdict.methods:
        return f"On {data}, no method explains {about}: there is nothing to judge."
    groups: dict[tuple[str, str], list[str]] = {}
    for name, overall in verdict.methods.items():
        groups.setdefault((overall, story(verdict, name)), []).append(name)
    parts = [
        f"{'Do not trust any of it' if verdict.overall == DISTRUST else 'Not finished'}: {w}." for w in verdict.because
    ]
    if verdict.because and verdict.overall == DISTRUST:
        return " ".join(parts)
    first = f"On {data}, explanations of {about} by"
    for (overall, why), names in sorted(groups.items(), key=lambda g: ORDER.index(g[0][0])):
        of, by = listed(names), first or "Those by"
        verb = {TRUST: "can be trusted", CARE: "are to be trusted with care", DISTRUST: "are not to be trusted"}[
            overall
        ]
        parts.append(f"{by} {of} {verb}: they {why}.")
        first = ""
    return " ".join(parts)


def story(verdict: Verdict, method: str) -> str:
    """What a method's explanations do, and what is not shown or contradicted of them."""
    asked = [(c, verdict.answers[method][c.key]) for c in verdict.conditions]
    wrong = [said_against(c, a) for c, a in asked if any(n.status == CONTRADICTED for n in a.numbers)]
    if wrong:
        return listed(wrong)
    known = [c.shown for c, a in asked if a.status == SHOWN]
    lacking = [c.shown for c, a in asked if a.status == NOT_SHOWN]
    if not known:
        return (
            f"are not shown to {listed([infinitive(t) for t in lacking])}" if lacking else "could not be asked anything"
        )
    also = f"; it is not shown that they {listed(lacking)}" if lacking else ""
    return listed(known) + also


def infinitive(text: str) -> str:
    """`be faithful` of `are faithful`."""
    return f"be{text[3:]}" if text.startswith("are ") else text


def said_against(c: Condition, answer: Answer) -> str:
    """What is said of a contradicted answer, by its first contradicted number."""
    against = list(dict.fromkeys(called(n.null) for n in answer.numbers if n.status == CONTRADICTED))
    return c.contradicted.replace("{null}", listed(against))


def tag_columns(summary: Summary) -> list[str]:
    """The columns that score maps against a planted tag."""
    return [c for c in summary.columns if "definition" in summary.definitions.get(c, {}) and is_tag(summary, c)]


def is_tag(summary: Summary, column: str) -> bool:
    """Whether a score is against the mask of a tag; of a shortcut of `data.plant=`, `lit_xai.report.shortcut` says more."""
    return summary.definitions[column]["definition"].get("truth") == "tag"


def tag_column(summary: Summary) -> str:
    """The column that says best how much of a map is on a planted tag; empty where there is none."""
    return next((c for c in tag_columns(summary) if "mass" in c), next(iter(tag_columns(summary)), ""))


def tag_sentence(summary: Summary, answers: Mapping[str, Mapping[str, Answer]], on_tag: Container[str]) -> str:
    """Whether the network looks at a planted tag, by the methods that can be believed; `on_tag` are those that show it."""
    column = tag_column(summary)
    rows = {row.explainer: row for row in summary.rows if row.explainer in answers and column in row.estimates}
    rows = {name: row for name, row in rows.items() if math.isfinite(row.estimates[column].value)}
    if not rows:
        return ""
    believed = [
        n for n in rows if {answers[n][k].status for k in ("depends", "faithful") if k in answers[n]} == {SHOWN}
    ]
    by = (
        "the methods that are faithful and depend on the model"
        if believed
        else "all methods, none of which is shown to be faithful and to depend on the model"
    )
    of = [rows[n] for n in believed or rows]
    said = [row.explainer in on_tag for row in of]
    looks = (
        "The network looks at the planted tag"
        if 2 * sum(said) > len(said)
        else "It is not shown that the network looks at the planted tag"
    )
    value = mean_of(of, column)
    whole = [null for row in of if (null := row.estimates[column].null) is not None]
    cover = f", which covers {sum(whole) / len(whole):.0%} of the image" if whole else ""
    what = "of the map's mass lies on the tag" if "mass" in column else "of the maps have their maximum on the tag"
    inside = next((c for c in summary.columns if c.rpartition("/")[2] == "mass_inside"), "")
    on = [row for row in of if inside in row.estimates and math.isfinite(row.estimates[inside].value)]
    there = f"; on the object {mean_of(on, inside):.0%}" if on and "mass" in column else ""
    return f"{looks}: by {by} ({listed([row.explainer for row in of])}), {value:.0%} {what}{cover}{there}."


def mean_of(rows: Sequence[Row], column: str) -> float:
    """The mean value of a column over methods."""
    return sum(row.estimates[column].value for row in rows) / len(rows)
