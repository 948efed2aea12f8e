"""The commands around generators of images: training them, POMELO, the in-painting forms of SP, LIME and MP, their tables."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from lit_xai.cluster.interruption import begins_at

from ranks import run_ranks
from test_commands import interrupted
from test_information_commands import fails, run
from test_interruption import signalled

DATA = ["data=shapes", "data.size=16", "data.samples=60", "data.test=12", "data.folds=2", "data.probes_per_fold=2"]
DATA += ["checks=0"]
DATA += ["data.batch_size=8", "progress=false"]
CLASSIFIER = [*DATA, "model.network.width=4", "trainer.max_epochs=2", "shard_size=8"]
GENERATORS = {
    "ddim": ["model=ddim", "model.width=[8]", "model.attention=0"],
    "inpainter": ["model=inpainter", "model.width=4", "model.critic=4"],
    "flow": ["model=flow", "model.steps=2", "model.width=8", "model.levels=2"],
}
SMALL = {name: [*DATA, *options, "trainer.max_epochs=2"] for name, options in GENERATORS.items()}
LEFT = {"model.ckpt", "config.yaml", "quality.csv", "samples.png", "plans"}
SLOWLY = [pytest.param(name, marks=pytest.mark.slow) for name in ("ddim", "flow")]
every_generator = pytest.mark.parametrize("name", GENERATORS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A predictor of one fold; generators come beside it as tests want them."""
    root = tmp_path_factory.mktemp("generative")
    run("train", root, "fold=0", "explainer=[random]", "score=[]", small=CLASSIFIER)
    return root


@pytest.fixture
def finished(root: Path, request: pytest.FixtureRequest) -> Path:
    """The predictor, and the generator of the test's parameter `name`, or the in-painter."""
    names = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    return with_generators(root, [names.get("name", "inpainter")])


def with_generators(root: Path, names: Iterable[str]) -> Path:
    for name in names:
        if not (root / f"shapes-{name}").exists():
            run("train", root, "fold=0", small=SMALL[name])
    return root


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """A predictor and every generator, to do with as one likes."""
    shutil.copytree(with_generators(root, GENERATORS), tmp_path / "copy")
    return tmp_path / "copy"


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("name", "measures"),
    [
        pytest.param("ddim", ["reconstruction_rmse"], marks=pytest.mark.slow),
        ("inpainter", ["hole_l1", "hole_l1_grey", "hole_l1_smooth", "hole_l1_blur"]),
        pytest.param("flow", ["bits_per_dim", "reconstruction_error"], marks=pytest.mark.slow),
    ],
)
def test_a_generator_leaves_its_checkpoint_its_quality_and_a_picture(finished, name, measures):
    fold = finished / f"shapes-{name}" / "fold=0"
    assert {f.name for f in fold.iterdir()} == LEFT
    (row,) = csv.DictReader((fold / "quality.csv").open())
    for m in measures:
        assert float(row[f"{m}_low"]) <= float(row[m]) <= float(row[f"{m}_high"])
    assert float(row["seconds_per_1000_draws"]) > 0
    assert int(row["images"]) == 30


@pytest.mark.parametrize("name", ["inpainter", *SLOWLY])
def test_a_finished_generator_is_not_trained_again(finished, name):
    assert "complete: nothing to do" in run("train", finished, "fold=0", small=SMALL[name]).stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["inpainter", *SLOWLY])
def test_a_generator_interrupted_within_an_epoch_ends_with_the_same_weights(finished, tmp_path, name):
    """Averages, two optimizers, noise of the loss: all go on where they were."""
    with signalled("on_train_batch_start", 4, signal.SIGTERM):
        run("train", tmp_path, "fold=0", small=SMALL[name], check=False)
    assert begins_at(torch.load(next(tmp_path.rglob("last.ckpt")), weights_only=True), 1)[1] > 0
    run("train", tmp_path, "fold=0", small=SMALL[name])
    ours, theirs = (
        torch.load(root / f"shapes-{name}" / "fold=0" / "model.ckpt", weights_only=True)["state_dict"]
        for root in (tmp_path, finished)
    )
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())


@pytest.mark.slow
@every_generator
def test_two_processes_train_a_generator(name, tmp_path):
    run_ranks("train", tmp_path, "fold=0", "logger=none", small=SMALL[name])
    (fold,) = tmp_path.glob("*/fold=0")
    assert {f.name for f in fold.iterdir()} == LEFT


@every_generator
def test_a_training_that_blows_up_says_where_and_leaves_no_checkpoint(tmp_path, name):
    message = fails("train", tmp_path, "fold=0", "model.lr=1e30", "model.schedule=constant", small=SMALL[name])
    assert "the loss became" in message
    assert "step" in message
    assert "no epoch was complete" in message
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_the_last_good_checkpoint_is_named(copy):
    """One epoch is kept; the next one meets weights that are no numbers."""
    fold = copy / "shapes-ddim" / "fold=0"
    (fold / "model.ckpt").unlink()
    interrupted("train", copy, "shapes-ddim/fold=0/last.ckpt", "fold=0", "logger=none", small=SMALL["ddim"])
    if (fold / "model.ckpt").exists():
        pytest.skip("it had finished before it was killed")
    state = torch.load(fold / "last.ckpt", weights_only=True)
    for k, v in state["state_dict"].items():
        if k.startswith("network."):
            v.fill_(float("nan"))
    torch.save(state, fold / "last.ckpt")
    assert f"the last good checkpoint is {fold / 'last.ckpt'}" in fails("train", copy, "fold=0", small=SMALL["ddim"])


# ------------------------------------------------------------------------------------------------------------- explaining

GENERATIVE = ["experiment=generative_removal", "summary=true", "score=[truth/mask_iou]"]
GENERATIVE += ["explainer.lime_grey.samples=90", "explainer.lime_g.samples=90", "explainer.sp_g.stride=40"]
GENERATIVE += [
    "explainer.sliding_patch.stride=40",
    "explainer.sliding_patch_cover.stride=40",
    "explainer.mp_g.steps=3",
    "explainer.meaningful_perturbation.steps=3",
]
POMELO = ["experiment=pomelo", "summary=true", "score=[truth/mask_iou,replaced/deletion_inpainting]"]
POMELO += [f"explainer.pomelo_{n}.samples=60" for n in ("flow", "ddim", "inpainting", "black", "grey", "mean", "blur")]
POMELO += [f"explainer.pomelo_{n}.filler.steps=2" for n in ("ddim", "inpainting")]
POMELO += ["score.deletion_inpainting.filler.steps=2"]


@pytest.mark.slow
def test_the_in_painting_forms_are_explained_and_compared_in_one_command(copy):
    out = run("explain", copy, "fold=0", *GENERATIVE, small=CLASSIFIER).stdout
    summary = json.loads((copy / "shapes-resnet18" / "summary.json").read_text())
    assert {"sp_g", "lime_g", "mp_g", "sliding_patch", "lime_grey", "meaningful_perturbation"} < set(summary["rows"])
    pair = summary["pairs"]["lime_g - lime_grey"]["mask_iou"]
    rows = summary["rows"]
    assert pair["value"] == pytest.approx(rows["lime_g"]["mask_iou"]["value"] - rows["lime_grey"]["mask_iou"]["value"])
    assert pair["low"] is None
    assert "fewer than 10 probes" in pair["reason"]
    assert "mp_g - meaningful_perturbation" in out
    assert "pixels_changed" in out


@pytest.mark.slow
def test_pomelo_explains_with_every_sampler_in_one_command(copy):
    run("explain", copy, "fold=0", *POMELO, small=CLASSIFIER)
    summary = json.loads((copy / "shapes-resnet18" / "summary.json").read_text())
    assert {f"pomelo_{n}" for n in ("flow", "ddim", "inpainting", "black", "grey", "mean", "blur")} < set(
        summary["rows"]
    )
    again = run("explain", copy, "fold=0", *POMELO, small=CLASSIFIER).stdout
    assert "complete: nothing to do" in again
    assert "written: " in again  # the table once more


def test_families_of_repeats_have_their_stability(root, tmp_path):
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    options = ["explainer=[random]", "score=[]", "summary=true"]
    node = "{_target_: lit_xai.explainers.Lime, samples: 60, segments: {_target_: lit_xai.segments.Grid, cells: 3}"
    options += [f"+explainer.grey__{r}={node}, repeat: {r}}}" for r in range(2)]
    run("explain", copy, "fold=0", *options, small=CLASSIFIER)
    summary = json.loads((copy / "shapes-resnet18" / "summary.json").read_text())
    assert summary["robustness"]["grey"]["stability"]["value"] > 0


def test_a_pair_of_unknown_explainers_is_refused(finished):
    message = fails("evaluate", finished, "pairs=[[lime,random]]", small=CLASSIFIER)
    assert "pairs= names lime" in message


def test_a_sampler_that_is_not_trained_is_named_with_its_command(finished):
    message = fails("explain", finished, "fold=1", "explainer=[pomelo/pomelo_ddim]", small=CLASSIFIER)
    assert "lit_xai.train" in message


@pytest.mark.slow
def test_a_missing_in_painter_is_named_with_its_command(copy):
    shutil.rmtree(copy / "shapes-inpainter")
    message = fails("explain", copy, "fold=0", "explainer=[generative/sp_g]", "score=[]", small=CLASSIFIER)
    assert "python -m lit_xai.train model=inpainter fold=0" in message


@pytest.mark.slow
def test_eta_out_of_range_is_refused_before_anything_is_written(copy):
    options = ["explainer=[pomelo/pomelo_ddim]", "score=[]", "explainer.pomelo_ddim.filler.eta=2"]
    assert "eta must lie in [0, 1]" in fails("explain", copy, "fold=0", *options, small=CLASSIFIER)
    assert not (copy / "shapes-resnet18" / "fold=0" / "maps" / "pomelo_ddim").exists()


@pytest.mark.slow
def test_more_steps_than_the_schedule_has_are_refused(copy):
    options = ["explainer=[pomelo/pomelo_ddim]", "score=[]", "explainer.pomelo_ddim.filler.steps=1001"]
    assert "steps must lie in 1..1000" in fails("explain", copy, "fold=0", *options, small=CLASSIFIER)


@pytest.mark.parametrize(
    ("option", "mend"),
    [("trainer.gradient_clip_val=1.0", "model.clip="), ("+trainer.accumulate_grad_batches=2", "data.batch_size=")],
)
def test_what_lightning_cannot_do_for_two_optimizers_is_refused_with_the_mend(tmp_path, option, mend):
    assert mend in fails("train", tmp_path, "fold=0", option, small=SMALL["inpainter"])
    assert not list(tmp_path.iterdir())
