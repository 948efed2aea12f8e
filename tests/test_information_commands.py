"""The commands around samplers: training them, using them as fillers, sanity checks, curves, the degradation study."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

from ranks import run_ranks
from test_commands import interrupted
from test_commands import run as run_command

DATA = ["data.train_subset=160", "data.folds=2", "data.probes_per_fold=3", "data.size=16", "progress=false"]
DATA += ["checks=0"]
CLASSIFIER = [*DATA, "model.network.width=4", "trainer.max_epochs=2", "shard_size=8"]
SAMPLER = [*DATA, "model=patch_sampler", "model.patch=4", "model.width=4", "model.depth=1", "trainer.max_epochs=2"]
GAUSSIAN = [*DATA, "model=conditional_gaussian", "model.patch=4", "model.positions=2000"]
PMI = ["explainer=[information/pmi,information/information_gain,random]"]
PMI += ["explainer.pmi.stride=4", "explainer.pmi.draws=2", "explainer.information_gain.stride=4", "score=[]"]


def run(cmd, root, *options, small, check=True):
    return run_command(cmd, root, *options, "logger=none", small=small, check=check)


def fails(cmd, root, *options, small) -> str:
    """The one line a command ends with."""
    done = run(cmd, root, *options, small=small, check=False)
    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samplers and predictors of two folds, PMI explained."""
    root = tmp_path_factory.mktemp("information")
    run("train", root, "-m", "fold=0,1", small=SAMPLER)
    run("train", root, "-m", "fold=0,1", *PMI, small=CLASSIFIER)
    return root


@pytest.fixture(scope="module")
def with_gaussian(finished: Path) -> Path:
    """The same, and Gaussians of a fold."""
    run("train", finished, "fold=1", small=GAUSSIAN)
    return finished


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


# ------------------------------------------------------------------------------------------------------------ samplers


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("finished", "patch_sampler"),
        pytest.param("with_gaussian", "conditional_gaussian", marks=pytest.mark.slow),
    ],
)
def test_a_sampler_leaves_its_checkpoint_its_bits_and_a_picture(folder, name, request):
    fold = request.getfixturevalue(folder) / f"digits-{name}" / "fold=1"
    assert {f.name for f in fold.iterdir()} == {"model.ckpt", "config.yaml", "quality.csv", "samples.png", "plans"}
    (row,) = table(fold / "quality.csv")
    assert 0 < float(row["bits_per_dim_low"]) < float(row["bits_per_dim"]) < float(row["bits_per_dim_high"]) < 8
    assert int(row["images"]) == 80


def test_a_finished_sampler_is_not_trained_again(finished):
    assert "complete: nothing to do" in run("train", finished, "fold=1", small=SAMPLER).stdout


@pytest.mark.slow
def test_a_lost_picture_is_made_again_without_training(copy):
    fold = copy / "digits-patch_sampler" / "fold=0"
    weights, table_ = (fold / "model.ckpt").read_bytes(), (fold / "quality.csv").read_bytes()
    (fold / "samples.png").unlink()
    (fold / "quality.csv").unlink()
    run("train", copy, "fold=0", small=SAMPLER)
    assert (fold / "model.ckpt").read_bytes() == weights
    assert (fold / "quality.csv").read_bytes() == table_
    assert (fold / "samples.png").exists()


@pytest.mark.slow
def test_a_killed_sampler_resumes_to_the_same_weights(finished, tmp_path):
    interrupted("train", tmp_path, "last.ckpt", "fold=0", "logger=none", small=SAMPLER)
    assert not list(tmp_path.rglob("model.ckpt"))
    assert "resuming from" in run("train", tmp_path, "fold=0", small=SAMPLER).stdout
    ours, theirs = (
        torch.load(root / "digits-patch_sampler" / "fold=0" / "model.ckpt", weights_only=True)["state_dict"]
        for root in (tmp_path, finished)
    )
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "small",
    [
        pytest.param(SAMPLER, id="patch_sampler"),
        pytest.param(GAUSSIAN, id="conditional_gaussian", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_a_sampler(small, tmp_path):
    run_ranks("train", tmp_path, "fold=0", "logger=none", small=small)
    (fold,) = tmp_path.glob("*/fold=0")
    assert {f.name for f in fold.iterdir()} == {"model.ckpt", "config.yaml", "quality.csv", "samples.png", "plans"}


def test_a_sampler_explains_nothing(finished):
    assert "sampler, which explains nothing" in fails("explain", finished, "fold=0", small=SAMPLER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.patch=17"], "model.patch=17 does not fit images of 16 x 16"),
        (["model.patch=0"], "model.patch=0 does not fit"),
        (["model.width=0"], "model.width must be at least 1"),
        (["model.holes=2"], r"model.holes must lie in [0, 1]"),
        (["label_noise=0.5"], "no use for label_noise"),
        (["weight_noise=0.5"], "no use for label_noise and weight_noise"),
    ],
    ids=lambda o: o[0] if isinstance(o, list) else "",
)
def test_samplers_that_cannot_be_are_refused_before_anything_is_written(options, message, tmp_path):
    assert message in fails("train", tmp_path, "fold=0", *options, small=SAMPLER)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------- fillers


def test_pmi_takes_the_sampler_of_the_predictors_own_fold(finished):
    from lit_xai.store.fold import FoldStore, MapReader

    prints = []
    for fold in (0, 1):
        found = MapReader(FoldStore(finished / "digits-resnet18" / f"fold={fold}"), "maps", "pmi").fingerprint
        assert found["fitted"] == {"filler": {"patch": 4}}
        prints.append(found["files"]["filler"])
        assert "checkpoint" not in found["explainer"]["filler"]
    assert prints[0] != prints[1]


def test_a_moved_root_changes_nothing(copy):
    assert "complete: nothing to do" in run("explain", copy, "fold=0", *PMI, small=CLASSIFIER).stdout


@pytest.mark.slow
def test_another_sampler_in_the_same_place_is_noticed(copy):
    shutil.rmtree(copy / "digits-patch_sampler")
    run("train", copy, "fold=0", "seed=0", "model.lr=0.02", small=SAMPLER)
    message = fails("explain", copy, "fold=0", *PMI, small=CLASSIFIER)
    assert "was computed otherwise" in message
    assert "files" in message


def test_the_folds_are_evaluated_together(finished):
    run("evaluate", finished, small=CLASSIFIER)
    assert (finished / "digits-resnet18" / "summary.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["explainer.pmi.patch=3", "name=other"], "patch=3 is not the K=4"),
        (["explainer.pmi.draws=0", "name=other"], "draws must be at least 1, found 0"),
        (["explainer.pmi.stride=0", "name=other"], "stride must be at least 1"),
        (["explainer.pmi.filler.checkpoint=/nowhere"], "/nowhere is missing: train it by python -m lit_xai.train"),
        (["explainer.pmi.filler.checkpoint=null"], "needs a fitted sampler"),
        (["data.train_subset=120", "name=other"], "was fitted to digits"),
        (
            ["data.size=32", "name=other", "explainer.pmi.filler.checkpoint=${root}/digits-patch_sampler"],
            "was fitted to",
        ),
    ],
    ids=lambda o: o[0] if isinstance(o, list) else "",
)
def test_a_sampler_that_does_not_fit_is_refused_before_the_training(finished, copy, options, message):
    before = sorted(copy.rglob("*"))
    assert message in fails("train", copy, "fold=0", *PMI, *options, small=CLASSIFIER)
    assert sorted(copy.rglob("*")) == before


def test_the_sampler_of_another_fold_is_refused(finished):
    other = f"explainer.pmi.filler.checkpoint='{finished}/digits-patch_sampler/fold=1/model.ckpt'"
    message = fails("explain", finished, "fold=0", *PMI, other, small=CLASSIFIER)
    assert "fold 1 of 2 held out, and this predictor to" in message


def measured(root: Path, fold: int, fillers: str) -> tuple[dict[str, dict[str, str]], str]:
    """The rows of the fillers' table, and what was printed."""
    out = run("explain", root, f"fold={fold}", f"filler=[{fillers}]", small=CLASSIFIER).stdout
    rows = {r["filler"]: r for r in table(root / "digits-resnet18" / f"fold={fold}" / "plausibility.csv")}
    assert list(rows) == ["real", *fillers.split(",")]
    return rows, out


@pytest.mark.slow
def test_a_gaussian_draws_what_is_nearer_to_images_than_noise(with_gaussian, tmp_path):
    shutil.copytree(with_gaussian, tmp_path / "copy")
    rows, _ = measured(tmp_path / "copy", 1, "conditional_gaussian,uniform_noise")
    assert float(rows["conditional_gaussian"]["distance"]) < float(rows["uniform_noise"]["distance"])


def test_fillers_are_measured_on_the_held_out_images(copy):
    rows, out = measured(copy, 0, "patch_sampler,uniform_noise,patch_mean")
    assert rows["uniform_noise"]["bits"] == "8.0"
    assert "one window of 4 x 4 refilled in 80 held-out images" in out


# -------------------------------------------------------------------------------------------------------------- checks


@pytest.mark.slow
def test_sanity_has_a_row_for_every_explainer_and_stage_and_a_picture_each_way(copy):
    fold = copy / "digits-resnet18" / "fold=0"
    before = {f: f.read_bytes() for f in fold.rglob("*.safetensors")}
    ways = ["sanity=[cascading,independent]", "sanity_stages=3", "sanity_images=4"]
    run("explain", copy, "fold=0", *PMI, *ways, small=CLASSIFIER)
    rows = table(fold / "sanity.csv")
    assert len(rows) == 2 * 3 * 3
    assert {r["how"] for r in rows} == {"cascading", "independent"}
    assert (fold / "sanity-cascading.png").exists()
    assert (fold / "sanity-independent.png").exists()
    assert {f: f.read_bytes() for f in fold.rglob("*.safetensors")} == before


@pytest.mark.slow
def test_random_labels_are_compared_once_they_are_trained(copy):
    wanted = [*PMI, "sanity=labels", "sanity_images=4"]
    message = fails("explain", copy, "fold=0", *wanted, small=CLASSIFIER)
    assert "label_noise=1.0" in message
    clean = ["explainer=[]", "score=[]", "fold=0", "label_noise=1.0", "name=digits-resnet18-label_noise=1.0"]
    run("train", copy, *clean, small=CLASSIFIER)
    run("explain", copy, "fold=0", *wanted, small=CLASSIFIER)
    assert {r["how"] for r in table(copy / "digits-resnet18" / "fold=0" / "sanity.csv")} == {"models"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["sanity=foo"], "sanity must be null, cascading, independent, labels or a list, found foo"),
        (["sanity=cascading", "sanity_images=0"], "sanity_images must be a whole number"),
        (["sanity=cascading", "~explainer.pmi", "~explainer.information_gain", "~explainer.random"], "set explainer="),
        (["curves=true"], "choose one of them by score="),
    ],
    ids=lambda o: o[0] if isinstance(o, list) else "",
)
def test_checks_that_cannot_be_are_refused(finished, options, message):
    assert message in fails("explain", finished, "fold=0", *PMI, *options, small=CLASSIFIER)


@pytest.mark.slow
def test_the_curve_of_negative_evidence_begins_at_the_images_own_probability(copy):
    options = [*PMI[:-1], "score=[variants/negative_evidence]", "curves=true"]
    run("explain", copy, "fold=0", *options, small=CLASSIFIER)
    fold = copy / "digits-resnet18" / "fold=0"
    rows = table(fold / "curves-negative_evidence.csv")
    starts = {float(r["probability"]) for r in rows if float(r["share"]) == 0}
    assert len({round(s, 5) for s in starts}) == 1
    assert len(rows) == 21 * 3
    assert (fold / "curves-negative_evidence.png").exists()


def test_a_picture_says_the_unit_and_the_class():
    from lit_xai.explainers import SlidingPatch
    from lit_xai.explainers.sweep import KL, PMI

    said = {u: SlidingPatch(contrast=c).legend.text("cat") for u, c in (("bits", PMI()), ("nats", KL("nats")))}
    assert said["bits"] == "bits: red = for cat, blue = against it, white = 0"
    assert said["nats"] == "nats: darker = more informative, whichever the class; white = 0"


# --------------------------------------------------------------------------------------------------------- degradation

STUDY = [*CLASSIFIER, "experiment=degradation", "explainer=[saliency,random]", "data.probes_per_fold=3", "cap=4"]
STUDY += ["levels.weight_noise=[0.3]", "levels.label_noise=[0.4]"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("study")
    return root, run("degradation", root, small=STUDY).stdout


@pytest.mark.slow
def test_the_study_has_a_row_for_every_level_and_explainer_and_draws_them(study):
    folder = study[0] / "digits-resnet18-degradation"
    rows = table(folder / "degradation.csv")
    levels = [("none", 0.0), ("weight_noise", 0.3), ("label_noise", 0.4)]
    assert [(r["kind"], float(r["level"])) for r in rows[::2]] == levels
    assert {r["explainer"] for r in rows} == {"saliency", "random"}
    assert (folder / "degradation.png").exists()
    assert "rank correlation with the level" in study[1]


@pytest.mark.slow
def test_the_study_gives_the_numbers_of_the_ensembles_it_trained(study):
    from lit_xai.metrics.measures import MEASURES
    from lit_xai.report.ensemble import Ensemble

    rows = table(study[0] / "digits-resnet18-degradation" / "degradation.csv")
    pairs = Ensemble(study[0] / "digits-resnet18-label_noise=0.4").pairs("saliency")
    found = next(r for r in rows if r["explainer"] == "saliency" and r["level"] == "0.4")
    assert float(found["mege"]) == pytest.approx(MEASURES["mege"].alone(pairs)[0], abs=1e-12, nan_ok=True)


def test_rank_correlation_of_the_study_is_that_of_its_points():
    from lit_xai.metrics.statistics import Estimate
    from lit_xai.report.levels import rank_correlations

    def row(kind, level, mege):
        return [kind, level, "e", 0.5, Estimate(mege), Estimate(float("nan"))]

    rows = [row("none", 0.0, 0.9), row("label_noise", 0.1, 0.7), row("label_noise", 0.3, 0.8)]
    columns, ((kind, explainer, mege, reco),) = rank_correlations(rows).file()
    assert columns == ["kind", "explainer", "mege", "reco"]
    assert (kind, explainer) == ("label_noise", "e")
    assert mege == pytest.approx(-0.5)
    assert reco != reco


@pytest.mark.slow
def test_damaged_weights_are_those_of_a_training_with_damage(study, tmp_path):
    options = ["explainer=[]", "score=[]", "weight_noise=0.3", "fold=0"]
    run("train", tmp_path, *options, small=CLASSIFIER)
    ours, theirs = (
        torch.load(root / "digits-resnet18-weight_noise=0.3" / "fold=0" / "model.ckpt", weights_only=True)["state_dict"]
        for root in (study[0], tmp_path)
    )
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["levels=3"], "levels must be a mapping, found 3"),
        (["levels.weight_noise=[2]"], "list of shares"),
        (["label_noise=0.1"], "would damage every ensemble"),
    ],
    ids=lambda o: o[0] if isinstance(o, list) else "",
)
def test_levels_that_mean_nothing_are_refused(tmp_path, options, message):
    small = [o for o in STUDY if not o.startswith(options[0].split("=")[0])]
    assert message in fails("degradation", tmp_path, *options, small=small)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.patch=4.5"], "model.patch must be a whole number, found 4.5"),
        (["model.lr=-1"], "model.lr must be above 0"),
    ],
    ids=lambda o: o[0] if isinstance(o, list) else "",
)
def test_numbers_of_the_wrong_kind_are_refused_before_anything_is_planned(tmp_path, options, message):
    done = run("train", tmp_path, "fold=0", *options, small=SAMPLER, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "train:" not in done.stdout


def test_curves_is_yes_or_no(finished):
    message = fails("explain", finished, "fold=0", *PMI[:-1], "score=[deletion]", "curves=maybe", small=CLASSIFIER)
    assert "curves must be true or false, found maybe" in message


@pytest.mark.parametrize("levels", ["levels={weight_noise:[true]}", "levels={weight_noise:[],label_noise:[]}"])
def test_levels_that_are_no_levels_are_refused(tmp_path, levels):
    small = [o for o in STUDY if not o.startswith("levels")]
    assert "level" in fails("degradation", tmp_path, levels, small=small)
