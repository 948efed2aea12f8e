"""What a newcomer runs into: files that cannot be used, options that do not fit, commands that should agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lit_xai.cli.picture import loaded
from omegaconf import OmegaConf
from PIL import Image

from test_commands import run as run_command

SMALL = [
    "data.train_subset=200",
    "data.folds=2",
    "data.probes_per_fold=6",
    "data.size=8",
    "model.network.width=4",
    "trainer.max_epochs=3",
    "score=[deletion]",
    "shard_size=4",
    "progress=false",
    "logger=none",
]
QUIET = ["progress=false", "logger=none"]
NAME = "digits-resnet18"


def run(cmd: str, root: Path, *options: str, check: bool = True, small: list[str] = SMALL) -> Any:
    return run_command(cmd, root, *options, check=check, small=small)


def refusal(done: Any) -> str:
    """The one line of a command that refuses."""
    assert done.returncode == 1, done.stdout[-2000:]
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    run("train", root, "-m", "fold=0,1", "explainer=[saliency,gradcam]")
    return root


def picture(file: Path, shade: int = 120, side: int = 40, mode: str = "RGB") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file)
    return file


# ---------------------------------------------------------------------------------------------- the folder says what it is


def test_the_null_is_among_the_explainers_that_a_user_lists(trained: Path) -> None:
    assert {p.name for p in (trained / NAME / "fold=0" / "maps").iterdir()} == {"saliency", "gradcam", "random"}


def test_disagreements_are_explained_by_the_folders_explainers(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trained, root)
    for fold in (0, 1):
        run("explain", root, f"name={NAME}", f"fold={fold}", "probes=disagreements", small=QUIET)
    for fold in (0, 1):
        folders = (root / NAME / f"fold={fold}" / "disagreements").iterdir()
        assert {p.name for p in folders} == {"saliency", "gradcam", "random"}


@pytest.mark.slow
def test_explainers_that_came_later_are_the_folders_too(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trained, root)
    for fold in (0, 1):
        run("explain", root, f"name={NAME}", f"fold={fold}", "explainer=[rise]", "explainer.rise.masks=7", small=QUIET)
    done = run("explain", root, f"name={NAME}", "fold=0", small=QUIET)
    assert "nothing to do" in done.stdout
    next((root / NAME / "fold=0" / "maps" / "rise").iterdir()).unlink()
    done = run("explain", root, f"name={NAME}", "fold=0", small=QUIET)
    assert "done: 1 shards" in done.stdout


SLOWLY = [pytest.param(lost, marks=pytest.mark.slow) for lost in ("a score", "an explainer")]


@pytest.mark.parametrize("lost", ["nothing", "a shard", *SLOWLY])
def test_status_and_explain_agree_on_what_is_complete(trained: Path, tmp_path: Path, lost: str) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trained, root)

    def says() -> tuple[bool, bool]:
        status = json.loads(run("evaluate", root, "--status", "--json", f"name={NAME}", small=[]).stdout)
        explained = run("explain", root, f"name={NAME}", "fold=1", small=QUIET).stdout
        return status["complete"], "nothing to do" in explained

    maps = root / NAME / "fold=1" / "maps"
    if lost == "a shard":
        next((maps / "gradcam").iterdir()).unlink()
    elif lost == "an explainer":
        shutil.rmtree(maps / "gradcam")
    elif lost == "a score":
        for file in (root / NAME).rglob("plans/maps/*.json"):
            plan = json.loads(file.read_text())
            file.write_text(json.dumps({**plan, "scores": ["deletion", "insertion"]}))
        assert not json.loads(run("evaluate", root, "--status", "--json", f"name={NAME}", small=[]).stdout)["complete"]
        return
    if lost != "nothing":
        assert says() == (False, False)
    assert says() == (True, True)


@pytest.mark.slow
def test_an_explainer_whose_only_shard_is_lost_is_left_out_and_named(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trained, root)
    for file in (root / NAME / "fold=0" / "maps" / "gradcam").iterdir():
        file.unlink()
    done = run("evaluate", root, f"name={NAME}", small=QUIET)
    assert "left out (gradcam): not a result" in done.stdout
    assert set(json.loads((root / NAME / "summary.json").read_text())["rows"]) == {"saliency", "random"}


def test_evaluate_takes_one_experiment(trained: Path) -> None:
    assert "one experiment" in refusal(run("evaluate", trained, "-m", f"name={NAME},other", check=False, small=QUIET))


def test_the_table_is_shown_where_it_cannot_be_written(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trained, root)
    (root / NAME / "summary.json").mkdir()
    (root / NAME / "summary.json" / "in the way").touch()
    done = run("evaluate", root, f"name={NAME}", check=False, small=QUIET)
    assert "saliency" in done.stdout
    assert "could not be written" in refusal(done)


@pytest.mark.slow
def test_an_offline_run_says_how_it_is_sent(trained: Path) -> None:
    done = run("evaluate", trained, f"name={NAME}", small=["progress=false"])
    (line,) = (x for x in done.stdout.splitlines() if x.startswith("W&B: "))
    place = Path(line.partition("wandb sync ")[2])
    assert list(place.glob("*.wandb"))


def test_a_multirun_is_offered_by_the_commands_that_take_one(tmp_path: Path) -> None:
    offered = {
        c for c in ("train", "explain", "evaluate", "audit") if "[-m" in run(c, tmp_path, "--help", small=[]).stdout
    }
    assert offered == {"train", "explain"}


def test_the_version_is_ours(tmp_path: Path) -> None:
    import lit_xai

    for cmd in ("train", "explain", "evaluate", "degradation"):
        assert run(cmd, tmp_path, "--version", small=[]).stdout == f"lit_xai {lit_xai.__version__}\n"


# -------------------------------------------------------------------------------------------------------------- pictures


def test_one_class_is_none_to_tell_apart(tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / "data" / "cats" / f"{i}.png", i)
    options = ["data=folder", f"data.root={tmp_path / 'data'}", "data.size=16", "data.folds=2", *QUIET]
    assert "at least 2 classes" in refusal(run("train", tmp_path / "ck", *options, check=False, small=[]))


def test_every_file_that_cannot_be_used_is_named_at_once(tmp_path: Path) -> None:
    for c in ("cats", "dogs"):
        for i in range(4):
            picture(tmp_path / "data" / c / f"{i}.png", i)
    (tmp_path / "data" / "cats" / "1.png").write_bytes(b"no picture")
    (tmp_path / "data" / "dogs" / "2.png").write_bytes((tmp_path / "data" / "dogs" / "3.png").read_bytes()[:200])
    picture(tmp_path / "data" / "dogs" / "0.png", mode="L")
    options = [
        "data=folder",
        f"data.root={tmp_path / 'data'}",
        "data.size=16",
        "data.resize=16",
        "data.folds=2",
        *QUIET,
    ]
    line = refusal(run("train", tmp_path / "ck", *options, "data.num_workers=0", check=False, small=[]))
    assert "3 of 8 pictures" in line
    for name in ("cats/1.png", "dogs/2.png", "dogs/0.png"):
        assert name in line


def test_postscript_in_a_pictures_clothes_is_not_run(tmp_path: Path) -> None:
    from lit_xai.data.truth import opened
    from lit_xai.errors import UsageError

    file = tmp_path / "a.png"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) print\nshowpage\n%%EOF\n")
    with pytest.raises(UsageError, match="cannot be decoded"), opened(file) as found:
        found.load()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny predictor of colour pictures."""
    root = tmp_path_factory.mktemp("shapes")
    options = ["data=shapes", "data.samples=40", "data.test=4", "data.size=16", "data.folds=2", "explain=false", *QUIET]
    run("train", root, *options, "model.network.width=2", "trainer.max_epochs=1", "fold=0", small=[])
    return root / "shapes-resnet18" / "fold=0" / "model.ckpt"


@pytest.mark.parametrize(
    "name", ["photo (1).jpg", "a,b.jpg", "it's [mine] #1.jpg", "ä = 日本.jpg", 'say "x".jpg', "{x}.jpg"]
)
def test_a_picture_may_be_called_anything(checkpoint: Path, tmp_path: Path, name: str) -> None:
    file = picture(tmp_path / "my pictures" / name)
    done = run("explain", tmp_path, f"image={file}", f"checkpoint={checkpoint}", "explainer=saliency", small=QUIET)
    assert (tmp_path / "pictures" / f"{file.stem}.saliency.png").exists(), done.stdout


def test_a_pictures_predictor_tells_fillers_what_it_was_trained_on(checkpoint: Path) -> None:
    cfg = OmegaConf.create({"checkpoint": str(checkpoint), "model": {"_target_": "lit_xai.models.Classifier"}})
    on = loaded(cfg)[3]
    assert (on.fold, on.samples, on.shape) == (0, 20, (3, 16, 16))
    assert on.about.endswith("40 samples, seed 0, fold 0 of 2 held out")


def test_a_dry_run_of_a_picture_says_its_costs_and_draws_nothing(checkpoint: Path, tmp_path: Path) -> None:
    file = picture(tmp_path / "a.jpg")
    options = [f"image={file}", f"checkpoint={checkpoint}", "dry_run=true", "explainer=[saliency,rise,lime]"]
    lines = run("explain", tmp_path / "ck", *options, small=QUIET).stdout.splitlines()
    names = [line.strip().partition(":")[0] for line in lines[1:-1]]
    assert set(names) == {"explainer.saliency", "explainer.rise", "explainer.lime"}
    assert names[-1] == "explainer.saliency", "the dearest comes first"
    assert "cheaper: explainer.rise.masks=" in "".join(lines)
    assert not (tmp_path / "ck").exists()


def test_weights_that_are_no_numbers_explain_nothing(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["network.head.3.bias"].fill_(float("nan"))
    torch.save(content, tmp_path / "nan.ckpt")
    file = picture(tmp_path / "a.jpg")
    options = [f"image={file}", f"checkpoint={tmp_path / 'nan.ckpt'}", "explainer=saliency"]
    assert "predicts NaN" in refusal(run("explain", tmp_path, *options, check=False, small=QUIET))


def test_a_network_of_other_classes_does_not_name_these(tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1().state_dict(), tmp_path / "weights.pth")
    for c in ("cats", "dogs", "eels"):
        for i in range(2):
            picture(tmp_path / "data" / c / f"{i}.png", i)
    pretrained = ["model=pretrained", f"model.weights={tmp_path / 'weights.pth'}"]
    options = ["data=folder", f"data.root={tmp_path / 'data'}", "data.folds=2", *pretrained, *QUIET]
    line = refusal(run("explain", tmp_path / "ck", *options, "explainer=saliency", check=False, small=[]))
    assert "1000 classes" in line
    assert "have 3" in line


# --------------------------------------------------------------------------------------------------------------- library


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x * 255, "divide by 255"),
        (lambda x: (x * 255).to(torch.uint8), "torch.uint8"),
        (lambda x: (x - 0.45) / 0.22, "normalisation inside the model"),
        (lambda x: x.index_put((torch.tensor(1),), torch.tensor(float("nan"))), "image 1 of this batch holds NaN"),
        (
            lambda x: x.index_put((torch.tensor(0),), torch.tensor(float("inf"))),
            "image 0 of this batch holds NaN or inf",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_images_out_of_range_are_refused_by_every_explainer_and_score(change: Any, says: str) -> None:
    import lit_xai.explainers as explainers
    import lit_xai.metrics as metrics
    from lit_xai.errors import UsageError

    images, targets = torch.rand(2, 3, 16, 16), torch.tensor([0, 1])
    maps = images.mean(1)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    for name in (
        "Saliency",
        "GradientInput",
        "IntegratedGradients",
        "SmoothGrad",
        "GradCAM",
        "RISE",
        "Lime",
        "SlidingPatch",
    ):
        with pytest.raises(UsageError, match=says):
            getattr(explainers, name)()(model, change(images), targets)
    for name in ("Random", "AveragedGradient", "MeaningfulPerturbation"):
        with pytest.raises(UsageError, match=says):
            getattr(explainers, name)()(model, change(images), targets)
    with pytest.raises(UsageError, match=says):
        explainers.Captum("Saliency")(model, change(images), targets)
    for name in ("MuFidelity", "Deletion", "Insertion"):
        with pytest.raises(UsageError, match=says):
            getattr(metrics, name)()(model, change(images), maps, targets)


def test_rounding_is_no_reason_to_refuse() -> None:
    from lit_xai.calls import check_range

    check_range(torch.tensor([[-1e-6, 1.0000002]]))
    check_range(torch.rand(2, 3, 8, 8).bfloat16())
    check_range(torch.empty(0, 3, 8, 8))
