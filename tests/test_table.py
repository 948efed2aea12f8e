"""One table: files, the terminal, LaTeX and pages show the same texts."""

from __future__ import annotations

import io
import math

import pytest
from lit_xai import explainers
from lit_xai.metrics.statistics import Estimate
from lit_xai.report.show import count_of
from lit_xai.report.table import Column, Marked, Table, cell, interval
from rich.console import Console

HALF = Estimate(0.5, 0.25, 0.75)
UNKNOWN = Estimate(math.nan, reason="no pairs")


@pytest.mark.parametrize(
    ("value", "options", "text"),
    [
        (HALF, {}, "0.500 [.250, .750]"),
        (HALF, {"zeros": True}, "0.500 [0.250, 0.750]"),
        (HALF, {"digits": 1}, "0.5 [.2, .8]"),
        (Estimate(-0.1, -0.2, 10.05), {}, "-0.100 [-.200, 10.050]"),
        (Estimate(0.5, 0.25, 0.75, null=0.125), {}, "0.500 [.250, .750] /0.12"),
        (Marked(HALF, "*°"), {}, "0.500 [.250, .750]*°"),
        (Estimate(0.5), {}, "0.500"),
        (Estimate(123.4, 101.0, 130.0), {"digits": None}, "123 [101, 130]"),
        (Estimate(5.234, 1.0, 9.9), {"digits": None}, "5.23 [1.00, 9.90]"),
        (UNKNOWN, {}, "-"),
        (UNKNOWN, {"undefined": "NaN: {reason}"}, "NaN: no pairs"),
        (Marked(None, "*"), {}, "-"),
        (None, {"undefined": ""}, ""),
        (0.25, {}, "0.250"),
        (7, {}, "7"),
        ("rise", {}, "rise"),
    ],
)
def test_the_text_of_a_cell(value, options, text):
    assert cell(value, **options) == text


TABLE = Table(
    [Column("name"), interval("iou", better="up", right=True), Column("why", ("reason",), undefined="{reason}")],
    [["a_b", Marked(HALF, "°"), UNKNOWN], ["c<d", UNKNOWN, HALF]],
    "title",
    "caption",
)


def printed(table: Table) -> str:
    screen = io.StringIO()
    table.show(Console(file=screen, width=100))
    return screen.getvalue()


def test_brackets_are_texts_and_no_markup_on_the_terminal():
    for text in ("[all of it]", "[/red]", "a [b] \\\\[c]"):
        assert printed(Table([Column(text)], [[text]], text, text)).count(text) == 4


def test_every_form_has_the_same_texts():
    texts = [["a_b", "0.500 [.250, .750]°", "no pairs"], ["c<d", "-", "0.500 [.250, .750]"]]
    assert TABLE.texts() == texts
    screen, tex, page = printed(TABLE), TABLE.latex(["about"]), TABLE.html()
    for row in texts:
        for text in row:
            assert text in screen
            assert text.replace("_", r"\_").replace("°", r"$^\circ$") in tex
            assert text.replace("<", "&lt;") in page
    assert screen.split()[0] == "title"
    assert "iou ↑" in screen
    assert tex.startswith("% about\n\\begin{tabular}{lrr}")
    assert r"name & iou $\uparrow$ & why \\" in tex
    assert page.count("<td>") == 4


def test_a_file_has_a_field_for_every_part_and_nothing_where_nothing_is_known():
    columns, rows = TABLE.file()
    assert columns == ["name", "iou", "iou_low", "iou_high", "why", "why_reason"]
    assert rows == [["a_b", 0.5, 0.25, 0.75, "no pairs", ""], ["c<d", "", "", "", 0.5, ""]]


@pytest.mark.parametrize(
    ("described", "count"),
    [
        ({"name": "RISE", "masks": 20}, ("masks", 20)),
        ({"name": "AveragedGradient", "points": 3}, None),
        ({"name": "Mine", "masks": 20}, None),
    ],
)
def test_the_count_at_a_tables_head_is_what_the_explainer_says_and_no_guess(described, count):
    assert count_of(explainers, described) == count


def test_a_column_of_files_alone_is_not_shown():
    table = Table([Column("name"), Column("note", shown=False)], [["a", "long story"]])
    assert "long story" not in printed(table) + table.latex() + table.html()
    assert table.file() == (["name", "note"], [["a", "long story"]])


def test_the_dashboard_takes_a_column_of_numbers_and_reasons(tmp_path):
    import wandb
    from lit_xai.report.dashboard import Dashboard
    from pytorch_lightning.loggers import WandbLogger

    run = wandb.init(mode="disabled", dir=tmp_path)
    Dashboard([WandbLogger(experiment=run)]).table("table", *TABLE.file())
    run.finish()
