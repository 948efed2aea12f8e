"""What is shown, not shown and contradicted of a method, and the judgement and the sentence that follow."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from lit_xai.errors import UsageError
from lit_xai.metrics.statistics import Estimate, mean_estimate
from lit_xai.report import conditions
from lit_xai.report.answers import CARE, DISTRUST, TRUST, Verdict
from lit_xai.report.conditions import Condition
from lit_xai.report.summarise import compare_with_nulls
from lit_xai.report.summary import Row, Summary
from lit_xai.report.verdict import conclude
from torch import Tensor

from conftest import seeded

PROBES = 60
UP = {"sanity": False, "repeat": True, "mege": True, "mufidelity": True, "deletion": False, "insertion": True}
NULLS = {"image": "Image", "image_random": "ImageRandom", "centre": "Centre"}
# mean of every column: a method that holds everything, and what nulls have
GOOD = {"sanity": 0.2, "repeat": 0.9, "mege": 0.8, "mufidelity": 0.6, "deletion": 0.2, "insertion": 0.8}
NULL = {"mege": 0.5, "mufidelity": 0.1, "deletion": 0.6, "insertion": 0.3}


def noisy(mean: float, seed: int, spread: float = 0.1, n: int = PROBES) -> Tensor:
    """Values of a column: that mean exactly, so that a test is of the rule and not of luck."""
    noise = torch.randn(n, generator=seeded(seed), dtype=torch.float64)
    return mean + spread * (noise - noise.mean())


def made(methods: dict[str, dict[str, float | Estimate]], **head) -> Summary:
    """A summary of methods with these means, beside nulls with theirs."""
    columns = {c: UP.get(c, True) for of in methods.values() for c in of}
    rows = []
    for name, means in {**methods, **dict.fromkeys(NULLS, NULL)}.items():
        row = Row(name)
        for number, (column, mean) in enumerate(means.items()):
            seed = 100 * number + sum(map(ord, name))
            value = mean if isinstance(mean, Estimate) else mean_estimate(noisy(mean, seed), n_resamples=200)
            if column in columns:
                row.estimates[column] = value
        rows.append(row)
    names = [row.explainer for row in rows]
    accuracy = {0: Estimate(0.9).plain()}
    about = {"name": "digits-net", "data": "digits", "folds_present": [0, 1, 2], "held_out_accuracy": accuracy}
    about |= {"alarms": [], "unfinished": None, **head}
    summary = Summary(
        about,
        columns,
        rows,
        {"explainers": {n: {"name": NULLS.get(n, "RISE")} for n in names}},
        {n: (torch.ones(4), torch.ones(4)) for n in names},
        probes=dict.fromkeys(names, torch.arange(PROBES)),
    )
    compare_with_nulls(summary)
    return summary


def asked(*keys: str, **changed) -> list[Condition]:
    """Conditions of the default file, changed."""
    return [dataclasses.replace(c, **changed) for c in conditions.default() if not keys or c.key in keys]


def verdict(methods: dict[str, dict[str, float | Estimate]], *keys: str, **head) -> Verdict:
    return conclude(made(methods, **head), asked(*keys))


def statuses(of: Verdict, method: str = "it") -> dict[str, str]:
    return {key: answer.status for key, answer in of.answers[method].items()}


# ------------------------------------------------------------------------------------------------------------- questions


def test_a_method_that_holds_every_condition_is_trusted_and_questions_that_cannot_be_asked_do_not_count():
    found = verdict({"it": GOOD})
    assert statuses(found) == {
        "depends": "shown",
        "persists": "shown",
        "differs": "not shown",
        "faithful": "shown",
        "points": "not applicable",
        "repeats": "shown",
    }
    assert found.methods == {"it": CARE}  # ReCo is not measured, and could be
    assert conclude(made({"it": GOOD}), asked("depends", "persists", "faithful", "points")).overall == TRUST


@pytest.mark.parametrize(
    ("column", "key", "worse"),
    [("sanity", "depends", 0.9), ("repeat", "repeats", 0.1), ("mege", "persists", 0.2), ("insertion", "faithful", 0.1)],
)
def test_what_is_worse_is_not_trusted_and_contradicted_where_a_null_is_better(column, key, worse):
    found = verdict({"it": GOOD | {column: worse}})
    assert statuses(found)[key] == ("not shown" if column in ("sanity", "repeat") else "contradicted")
    assert found.methods == {"it": DISTRUST}
    (number,) = [n for n in found.answers["it"][key].numbers if n.status == "contradicted"]
    assert (number.column, number.samples) == (column, PROBES)
    assert number.value == pytest.approx(worse)
    assert found.answers["it"][key].reason.startswith(column)


def test_the_sentence_calls_the_data_by_their_own_name():
    assert conclude(made({"it": GOOD}), asked("depends"), data="mine").sentence.startswith("On mine, explanations of ")


def test_dependence_comes_before_persistence():
    found = verdict({"it": GOOD | {"sanity": 0.5}})
    assert statuses(found)["depends"] == statuses(found)["persists"] == "not shown"
    assert "says nothing before it is shown" in found.answers["it"]["persists"].reason
    worse = verdict({"it": GOOD | {"sanity": 0.5, "mege": 0.1}})
    assert statuses(worse)["persists"] == "contradicted"  # worse than a null needs no other answer


def test_a_method_is_faithful_if_every_score_says_so():
    found = verdict({"it": GOOD | {"deletion": 0.6}})
    assert {n.column: n.status for n in found.answers["it"]["faithful"].numbers} == {
        "mufidelity": "shown",
        "deletion": "not shown",
        "insertion": "shown",
    }
    assert statuses(found)["faithful"] == "not shown"


def test_as_many_samples_as_a_threshold_is_said_to_need_would_show_it():
    values = noisy(0.485, 3, 0.2)

    def one(times: int) -> Verdict:
        return verdict({"it": {"sanity": mean_estimate(values.repeat(times), n_resamples=500)}}, "depends")

    (number,) = one(1).answers["it"]["depends"].numbers
    assert number.needed is not None
    assert f"about {number.needed} samples would be needed instead of 60" in number.reason
    times = number.needed / PROBES
    assert statuses(one(int(0.7 * times)))["depends"] == "not shown"
    assert statuses(one(math.ceil(1.4 * times)))["depends"] == "shown"


def test_as_many_samples_as_a_test_is_said_to_need_would_show_it():
    def one(times: int) -> Verdict:
        own = noisy(0.32, 1, 0.1).repeat(times)
        summary = made({"it": {"insertion": mean_estimate(own, n_resamples=200)}})
        for row in summary.rows[1:]:
            row.estimates["insertion"] = mean_estimate(noisy(0.3, 2, 0.1).repeat(times), n_resamples=200)
        summary.probes = {n: torch.arange(len(own)) for n in summary.probes}
        compare_with_nulls(summary)
        return conclude(summary, asked("faithful"))

    (number,) = one(1).answers["it"]["faithful"].numbers
    assert number.status == "not shown"
    assert number.needed is not None
    times = number.needed / PROBES
    assert statuses(one(math.ceil(1.4 * times)))["faithful"] == "shown"
    assert statuses(one(max(1, int(0.6 * times))))["faithful"] == "not shown"


def test_no_number_of_samples_is_told_for_a_value_on_the_other_side():
    (number,) = verdict({"it": {"sanity": 0.503}}, "depends").answers["it"]["depends"].numbers
    assert number.needed is None
    assert "more samples alone would not show it" in number.reason


def test_few_samples_show_nothing():
    few = mean_estimate(noisy(0.1, 1, n=5), n_resamples=50)
    (number,) = verdict({"it": {"sanity": few}}, "depends").answers["it"]["depends"].numbers
    assert (number.status, number.needed) == ("not shown", 10)


def test_the_correction_is_over_the_methods_of_the_question():
    one = {"mege": mean_estimate(noisy(0.54, 5, 0.1), n_resamples=200)}
    alone = asked("persists", after="")
    p = conclude(made({"it": one}), alone).answers["it"]["persists"].numbers[0]
    crowd = {f"m{i}": {"mege": 0.5} for i in range(19)}
    many = conclude(made({"it": one, **crowd}), alone).answers["it"]["persists"].numbers[0]
    assert many.p == pytest.approx(p.p)
    assert many.p_corrected == pytest.approx(min(1.0, 20 * p.p))


# ------------------------------------------------------------------------------------------------- what cannot be asked


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ({"folds_present": [0]}, "there is one predictor alone: persistence needs those of other folds"),
        ({"held_out_accuracy": {}}, "the images have no labels"),
    ],
)
def test_without_folds_or_labels_two_questions_cannot_be_asked(head, reason):
    found = conclude(made({"it": GOOD}, **head), asked())
    for key in ("persists", "differs"):
        assert found.answers["it"][key].status == "not applicable"
        assert found.answers["it"][key].reason == reason
    assert found.overall == TRUST


def test_a_method_that_draws_nothing_has_no_other_seed_but_a_pass_that_is_missing_is_said():
    gone = Estimate(math.nan, reason="deterministic")
    lost = Estimate(math.nan, reason="run lit_xai.audit")
    same = mean_estimate(torch.ones(PROBES), n_resamples=50)
    changes = {"it": {"repeat": gone}, "same": {"repeat": same}, "lost": {"repeat": lost}, "none": {"sanity": lost}}
    found = verdict({name: GOOD | change for name, change in changes.items()})
    assert [statuses(found, m)["repeats"] for m in changes] == ["not applicable"] * 2 + ["not shown", "shown"]
    assert found.answers["none"]["depends"].reason == "run lit_xai.audit"
    assert ("Does it survive another seed?", "not applicable", "deterministic", ["it"]) in found.unanswered()


def test_a_null_that_is_not_explained_is_missed():
    found = conclude(made({"it": GOOD}), asked("persists", after="", better_than=("edges",)))
    assert found.answers["it"]["persists"].status == "not shown"
    assert "no edges on the same probes" in found.answers["it"]["persists"].reason


# ------------------------------------------------------------------------------------------------------------- judgement


def test_nothing_shown_is_not_trusted():
    assert verdict({"it": GOOD | {"sanity": 0.5}}, "depends").overall == DISTRUST


def test_the_network_has_the_judgement_of_its_best_method_and_the_sentence_names_all():
    found = verdict({"good": GOOD, "copy": GOOD | {"mufidelity": 0.02}}, "depends", "faithful")
    assert (found.overall, found.methods) == (TRUST, {"good": TRUST, "copy": DISTRUST})
    assert found.sentence == (
        "On digits, explanations of digits-net by good can be trusted: they depend on the model and are faithful. "
        "Those by copy are not to be trusted: they are less faithful than the brightness of the image itself."
    )


@pytest.mark.parametrize(
    ("head", "overall", "words"),
    [
        ({"alarms": ["no better than chance"]}, DISTRUST, "Do not trust any of it: no better than chance."),
        ({"alarms": ["2 of 3 folds"], "unfinished": {"message": "2 of 3 folds"}}, CARE, "Not finished: 2 of 3 folds."),
    ],
)
def test_alarms_overrule_the_methods(head, overall, words):
    found = verdict({"it": GOOD}, "depends", **head)
    assert found.methods == {"it": overall}
    assert found.overall == overall
    assert found.sentence.startswith(words)


def test_a_planted_tag_is_named_with_its_share_of_the_image():
    summary = made({"it": GOOD, "poor": GOOD | {"sanity": 0.9}})
    for row, mass, inside in zip(summary.rows[:2], (0.61, 0.01), (0.12, 0.9), strict=True):
        for column, mean, area in (("mass_on_tag", mass, 0.04), ("mass_inside", inside, 0.2)):
            row.estimates[column] = e = mean_estimate(noisy(mean, 9), n_resamples=200)
            e.null = area
            whole = mean_estimate(torch.full((PROBES,), area), n_resamples=200)
            row.to_whole[column] = dataclasses.replace(e, value=mean - area, draws=e.draws - whole.draws)
            summary.columns[column] = True
            truth = "tag" if column == "mass_on_tag" else "object"
            summary.definitions[column] = {"definition": {"name": "MassInside", "truth": truth}}
    image = next(row for row in summary.rows if row.explainer == "image")
    image.estimates["mass_on_tag"] = mean_estimate(noisy(0.8, 8), n_resamples=200)  # a bright tag
    compare_with_nulls(summary)
    found = conclude(summary, asked("depends", "faithful", "points"))
    assert found.tag == (
        "The network looks at the planted tag: by the methods that are faithful and depend on the model (it), 61% of the map's "
        "mass lies on the tag, which covers 4% of the image; on the object 12%."
    )
    assert statuses(found)["points"] == "not applicable"  # the tag is where a true explanation points


# ------------------------------------------------------------------------------------------------------------ conditions


def test_a_condition_that_the_user_changes_changes_the_answer():
    summary = made({"it": {"sanity": 0.2}})
    assert conclude(summary, asked("depends", below=0.1)).methods["it"] == DISTRUST


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"a": {"columns": ["mege"]}}, "needs columns and one of below, above, better_than"),
        ({"a": {"columns": ["mege"], "below": 1, "above": 0}}, "found columns ['mege'] and below, above"),
        ({"a": {"below": 1}}, "found columns [] and below"),
        ({"a": {"columns": ["mege"], "below": "low"}}, "conditions.a.below must be a number, found 'low'"),
        ({"a": {"column": ["mege"]}}, "conditions.a.column means nothing"),
        ({"a": {"columns": ["mege"], "below": 1, "after": "b"}}, "conditions.a.after must be one of none"),
        ({"a": {"columns": ["mege"], "below": 1, "needs": ["luck"]}}, "must be of folds, labels, masks, found luck"),
        ({"a": 3}, "conditions.a must be a mapping"),
        ({"a": None}, "names no question"),
    ],
)
def test_a_condition_that_means_nothing_is_refused(given, text):
    with pytest.raises(UsageError, match=r"^conditions") as error:
        conditions.read(given)
    assert text in str(error.value)


def test_a_question_is_left_out_by_null_and_a_name_alone_is_a_list():
    (one,) = conditions.read({"a": {"columns": "mege", "above": 0.5}, "b": None})
    assert one.columns == ("mege",)
    assert one.text() == "the 95 % interval of mege lies above 0.5"


def test_of_two_columns_the_first_that_is_scored_counts():
    cells = asked("faithful", columns=("mufidelity_cells|mufidelity",))
    with_, without = (
        conclude(made({"it": GOOD | {"mufidelity_cells": 0.9}}), cells),
        conclude(made({"it": GOOD}), cells),
    )
    assert [v.conditions[0].columns for v in (with_, without)] == [("mufidelity_cells",), ("mufidelity",)]
    assert statuses(without) == {"faithful": "shown"}


def test_every_default_condition_is_told_in_the_documentation():
    page = (Path(__file__).parent.parent / "docs" / "verdict.md").read_text()
    for c in conditions.default():
        assert c.question in page
