"""A table of what is not finished says so first, everywhere, with what completes it; so does one of untaught predictors."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from lit_xai import engine
from lit_xai.crossval import explain_folds
from lit_xai.data.folds import Disagreements, Split
from lit_xai.data.sources import digits
from lit_xai.errors import UsageError
from lit_xai.explainers import Random, Saliency
from lit_xai.metrics import Deletion
from lit_xai.report import page, show
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.head import head, untaught
from lit_xai.report.summarise import summarise
from lit_xai.report.summary import Summary
from lit_xai.store.fold import Predictions
from lit_xai.store.names import DISAGREEMENTS
from lit_xai.store.plans import plan_file, plan_text
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from test_commands import run as run_command
from test_engine import job, predicted

BOTH = {"random": Random(), "saliency": Saliency()}
PARTS = 3  # shards of 8, 8 and 4 probes


def commanded(root: Path, number: int) -> None:
    """What every command leaves in a fold's folder."""
    (root / f"fold={number}" / "config.yaml").write_text("{}\n")


def summary(root: Path, *only: str) -> Summary:
    return summarise(Ensemble(root), list(only) or None, progress=False)


def unfinished(root: Path, *only: str) -> dict:
    return summary(root, *only).head["unfinished"]


def fold(root: Path, number: int, explainers: dict = BOTH, scores: dict | None = None, parts: int = PARTS) -> None:
    """The first shards of one fold, without plans, as a library's user leaves them."""
    work = predicted(job(root, fold=number))
    for part in range(parts):
        engine.explain(work, explainers, scores or {}, (part, PARTS), progress=False)


def disagreements(root: Path, number: int, explainers: dict = BOTH, parts: int = PARTS) -> int:
    """The first shards of the pass over disagreements of one fold; returns how many maps there are to be."""
    ensemble = Ensemble(root)
    found = Disagreements.find(ensemble.split, ensemble.correct, 10)
    mine = found.samples[found.concerned[:, number]]
    work = job(root, fold=number, samples=mine, targets=ensemble.split.label(mine), kind=DISAGREEMENTS)
    work = dataclasses.replace(work, shared={**work.shared, "cap": 10})
    for part in range(parts):
        engine.explain(work, explainers, {}, (part, PARTS), progress=False)
    return len(mine)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    for number in (0, 1):
        fold(tmp_path, number)
        commanded(tmp_path, number)
    return tmp_path


# ------------------------------------------------------------------------------------------------------- what is missing


def test_what_is_whole_is_not_called_unfinished(whole: Path) -> None:
    found = summary(whole)
    assert found.head["unfinished"] is None
    assert not any("not a result" in w for w in found.head["warnings"])
    for number in (0, 1):
        disagreements(whole, number)
    assert unfinished(whole) is None


def test_a_killed_run_of_one_fold_is_told_by_its_shards_alone(tmp_path: Path) -> None:
    fold(tmp_path, 0, parts=1)
    found = summary(tmp_path)
    lack = found.head["unfinished"]
    assert lack["message"] == "8 of 20 probes, 1 of 2 folds: not a result"
    assert lack["folds"] == {"present": 1, "planned": 2}
    assert lack["probes"] == {n: {"present": 8, "planned": 20} for n in ("random", "saliency")}
    assert found.head["alarms"][0] == found.head["warnings"][0] == lack["message"]


def test_a_table_rests_on_the_probes_that_every_fold_has(tmp_path: Path) -> None:
    fold(tmp_path, 0)
    fold(tmp_path, 1, parts=2)
    assert unfinished(tmp_path)["message"] == "16 of 20 probes: not a result"


def test_explainers_with_fewer_probes_are_named(whole: Path) -> None:
    (whole / "fold=1" / "maps" / "saliency" / "000000000-000000007.safetensors").unlink()
    assert unfinished(whole)["message"] == "12 of 20 probes (saliency): not a result"
    assert unfinished(whole, "random") is None


def test_an_explainer_that_a_fold_lacks_is_named(whole: Path) -> None:
    shutil.rmtree(whole / "fold=1" / "maps" / "saliency")
    lack = unfinished(whole)
    assert lack["message"] == "explained in 1 of 2 folds, left out (saliency): not a result"
    assert lack["left_out"] == {"saliency": [0]}
    assert unfinished(whole, "random") is None


def test_an_explainer_that_was_planned_and_not_begun_is_named(whole: Path) -> None:
    file = plan_file(whole / "fold=0", "maps", "lime")
    file.parent.mkdir(parents=True)
    file.write_text(plan_text("explain", ["explainer=[lime]"], probes=20, shard_size=8))
    lack = unfinished(whole)
    assert lack["message"] == "explained in 0 of 2 folds, left out (lime): not a result"
    assert f"explainer=[lime]' root={whole.parent}" in lack["commands"][0]


def test_half_of_the_disagreements_are_no_s_differ(whole: Path) -> None:
    many = [disagreements(whole, 0), disagreements(whole, 1, parts=1)]
    lack = unfinished(whole)
    assert many[1] > 8
    assert lack["disagreements"]["random"] == {"present": many[0] + 8, "planned": sum(many)}
    assert lack["message"] == f"{many[0] + 8} of {sum(many)} maps of disagreements: not a result"


def test_disagreements_of_one_explainer_are_no_ones_else(whole: Path) -> None:
    for number in (0, 1):
        disagreements(whole, number, {"random": Random()})
    assert unfinished(whole) is None  # nobody asked for saliency's: its ReCo has a reason
    disagreements(whole, 0, {"saliency": Saliency()})
    assert list(unfinished(whole)["disagreements"]) == ["saliency"]


def test_a_score_that_some_shards_lack_is_told(whole: Path) -> None:
    fold(whole, 0, {"saliency": Saliency()}, {"deletion": Deletion()}, parts=2)
    lack = unfinished(whole)
    assert lack["unscored"] == {"saliency": {0: 1, 1: 3}}
    assert lack["message"] == "a score is missing in 4 shards (saliency): not a result"
    for number in (0, 1):
        fold(whole, number, {"saliency": Saliency()}, {"deletion": Deletion()})
    assert unfinished(whole) is None


def test_without_any_explainer_in_all_folds_the_error_names_a_command(whole: Path) -> None:
    shutil.rmtree(whole / "fold=1" / "maps")
    with pytest.raises(
        UsageError, match=r"no explanations of all its folds: python -m lit_xai\.explain root=.* fold=0"
    ):
        summary(whole)


@pytest.mark.parametrize("per_fold", [1, 2, 7, 19, 33, 34, None])
def test_a_sample_and_its_place_tell_the_number_of_probes_but_for_a_few(per_fold: int | None) -> None:
    split = Split.make(torch.arange(101) % 5, 3, 4)  # folds of 34, 34 and 33
    probes = split.probes(per_fold).tolist()
    for place in range(0, len(probes), 5):
        found = list(split.per_fold(probes[place], place))
        assert (per_fold or 34) in found
        assert all(split.probes(n)[place] == probes[place] for n in found)


# ----------------------------------------------------------------------------------------------------------- where it is


def test_it_stands_at_the_top_of_everything(tmp_path: Path) -> None:
    fold(tmp_path, 0, parts=1)
    commanded(tmp_path, 0)
    found = summary(tmp_path)
    page.write(found, tmp_path)
    said = "8 of 20 probes, 1 of 2 folds: not a result"
    (command,) = {c for c in found.head["unfinished"]["commands"] if "lit_xai.train" in c}
    screen = io.StringIO()
    show.show(found, to=Console(file=screen, force_terminal=True, width=100, color_system="standard"))
    lines = screen.getvalue().splitlines()
    assert lines[0] == f"\x1b[1;31m{said}\x1b[0m"
    assert f"\x1b[1;31m  {command}\x1b[0m" in lines[: len(found.head["unfinished"]["commands"]) + 2]
    html = (tmp_path / "report.html").read_text()
    assert html.index('role="alert"') < html.index(said) < html.index("<table>")
    assert "color: #a00" in html
    tex = (tmp_path / "summary.tex").read_text().splitlines()
    assert tex[0] == f"% {said}"
    assert f"%   {command}" in tex
    assert json.loads((tmp_path / "summary.json").read_text())["head"]["unfinished"]["message"] == said
    with (tmp_path / "summary.csv").open() as file:
        assert {row["unfinished"] for row in csv.DictReader(file)} == {said}


def test_a_call_that_was_interrupted_says_to_call_again(tmp_path: Path) -> None:
    source, root = digits(16), tmp_path / "mine"
    data = TensorDataset(source.train.images(list(range(200))), source.labels[:200])

    pressed = [2]

    def train(module: nn.Module, part: object, number: int) -> None:
        if number in pressed:
            raise KeyboardInterrupt

    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(256, 10))

    options = {"k": 3, "root": root, "scores": {}, "train": train, "probes_per_fold": 4, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        explain_folds(network, data, {"saliency": Saliency()}, **options)
    lack = unfinished(root)
    assert lack["message"] == "2 of 3 folds: not a result"
    assert lack["commands"] == [
        f"call lit_xai.crossval.explain_folds again with the same arguments and root='{root}'",
    ]
    pressed.clear()
    assert explain_folds(network, data, {"saliency": Saliency()}, **options).head["unfinished"] is None
    for plans in root.glob("fold=*/plans"):
        shutil.rmtree(plans)  # made before it left any
    next((root / "fold=1" / "maps" / "saliency").iterdir()).unlink()
    with pytest.raises(UsageError, match=r"call lit_xai\.crossval\.explain_folds again"):
        unfinished(root)


# -------------------------------------------------------------------------------------------------------------- untaught


def with_predictions(root: Path, right: Tensor, loss: float | None = 0.5) -> dict[int, Predictions]:
    """The predictions of a predictor that is right on some samples of V_0."""
    found = predicted(job(root)).store.read_predictions()
    other = (found.split.labels + 1) % 10
    inside = found.split.fold_of == 0
    predictions = other.clone()
    predictions[inside] = torch.where(right[: int(inside.sum())], found.split.labels[inside], other[inside])
    return {0: Predictions(found.split, 0, predictions, found.confidence, {**found.meta, "loss": loss})}


@pytest.mark.parametrize(("hits", "poor"), [(0, True), (10, True), (15, True), (40, False)])
def test_an_accuracy_whose_interval_holds_chance_is_an_alarm(tmp_path: Path, hits: int, poor: bool) -> None:
    found = untaught(with_predictions(tmp_path, torch.arange(100) < hits))
    assert bool(found) == poor
    if poor:
        assert found[0].startswith(f"no better than chance: held-out accuracy % of fold 0 {hits:.1f} [")


def test_a_loss_that_is_not_finite_is_an_alarm_and_an_unknown_one_is_not(tmp_path: Path) -> None:
    good = with_predictions(tmp_path, torch.arange(100) < 90)
    assert untaught(good) == []
    del good[0].meta["loss"]  # predictions of an older version
    assert untaught(good) == []
    (line,) = untaught(with_predictions(tmp_path, torch.arange(100) < 90, None))
    assert "loss is not finite in fold 0" in line


class Certain(nn.Module):
    """A linear network whose first class is impossible: `low` is its logit."""

    def __init__(self, low: float) -> None:
        super().__init__()
        self.linear, self.low = nn.Linear(256, 10), low

    def forward(self, x: Tensor) -> Tensor:
        logits = self.linear(x.flatten(1))
        return torch.cat([torch.full_like(logits[:, :1], self.low), logits[:, 1:]], 1)


def test_the_held_out_loss_is_kept_and_probabilities_that_round_to_zero_are_finite(tmp_path: Path) -> None:
    for number, low in enumerate((-1e4, -torch.inf)):
        work = predicted(job(tmp_path / str(number), model=Certain(low)))
        kept = work.store.read_predictions()
        inside = kept.split.fold_of == 0
        images = work.images.images(kept.split.samples[inside].tolist())
        with torch.no_grad():
            expected = nn.functional.cross_entropy(work.model(images).double(), kept.split.labels[inside])
        if number:
            assert kept.meta["loss"] is None
            assert torch.isinf(expected)
            assert any("not finite in fold 0" in w for w in head(Ensemble(tmp_path / "1"))["alarms"])
        else:
            assert kept.meta["loss"] == pytest.approx(float(expected), rel=1e-6)
            assert not any("not finite" in w for w in head(Ensemble(tmp_path / "0"))["alarms"])


def test_folds_of_different_losses_and_of_an_older_version_belong_together(tmp_path: Path) -> None:
    for number in (0, 1):
        predicted(job(tmp_path, fold=number))
    store = Ensemble(tmp_path).stores[1]
    old = store.read_predictions()
    del old.meta["loss"]
    store.write_predictions(Predictions(old.split, 1, old.predicted, old.confidence, old.meta))
    assert list(head(Ensemble(tmp_path))["held_out_loss"]) == [0]
    before = store.predictions_file.read_bytes()
    predicted(job(tmp_path, fold=1))  # and are taken as they are
    assert store.predictions_file.read_bytes() == before


def test_without_labels_there_is_no_accuracy_and_no_alarm_of_one(tmp_path: Path) -> None:
    split = Split(torch.arange(40), torch.zeros(40).long(), torch.full((40,), -1), 1, 0)
    work = job(tmp_path, samples=split.probes(12), targets=torch.zeros(12).long())
    engine.predictions_of(work, split, 0)
    engine.explain(work, BOTH, {}, progress=False)
    found = summary(tmp_path)
    assert found.head["alarms"] == []
    assert found.head["held_out_accuracy"] == {}
    assert not any("accuracy" in line for line in show.head_lines(found))
    page.write(found, tmp_path)
    assert "loss" not in work.store.read_predictions().meta


def test_training_says_that_nothing_was_learned_and_over_how_many_folds_it_measures(tmp_path: Path) -> None:
    small = ["data.train_subset=90", "data.folds=3", "data.probes_per_fold=30", "data.size=8", "model.network.width=2"]
    small += [
        "trainer.max_epochs=1",
        "model.lr=1e-12",
        "explainer=[random]",
        "score=[]",
        "progress=false",
        "logger=none",
    ]
    out = run_command("train", tmp_path, "-m", "fold=range(2)", small=small).stdout
    assert "mege over 2 of 3 folds: random 1.000" in out
    assert "not a result" not in out
    done = [i for i, line in enumerate(out.splitlines()) if line.startswith("done: ")]
    for number, at in enumerate(done):
        warning = out.splitlines()[at + 1]
        assert warning.startswith(f"warning: no better than chance: held-out accuracy % of fold {number} ")
