"""A folder of one's own pictures: the stem and the epochs follow the data, and a dry run says what costs how much."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lit_xai import engine
from lit_xai.cli.compose import compose
from lit_xai.cli.run import Run
from lit_xai.core import Passes
from lit_xai.data import images as in_memory
from lit_xai.data import sources
from lit_xai.engine import estimate
from lit_xai.errors import UsageError
from lit_xai.models.trainable import epochs_for
from omegaconf import OmegaConf
from PIL import Image

from test_commands import run

SIZES = (32, 32), (48, 40), (36, 60)
SMALL = ["data=folder", "data.size=32", "data.resize=32", "data.batch_size=8", "data.folds=2", "data.probes_per_fold=4"]
SMALL += ["model.network.width=4", "score=[]", "logger=none", "progress=false"]
MAPS = ["explainer=[saliency,random]"]


def draw_pictures(root: Path, each: int = 8, grey: int = 0) -> Path:
    """Three classes in a folder: squares, bars or spots on noise, of several sizes, PNG and JPEG, the first `grey` grey."""
    rng = np.random.default_rng(0)
    for kind in ("bars", "spots", "squares"):
        (root / kind).mkdir(parents=True)
        for i in range(each):
            width, height = SIZES[i % len(SIZES)]
            pixels = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
            y, x = rng.integers(4, height - 16), rng.integers(4, width - 16)
            rows, columns = {"bars": (3, 14), "spots": (4, 4), "squares": (12, 12)}[kind]
            pixels[y : y + rows, x : x + columns] = rng.integers(150, 256, 3)
            Image.fromarray(pixels).convert("L" if i < grey else "RGB").save(
                root / kind / f"{i}.{'png' if i % 2 else 'jpg'}"
            )
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("pictures") / "mine")


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fold, trained for two epochs and explained by two methods."""
    root = tmp_path_factory.mktemp("trained")
    run("train", root, f"data.root={pictures}", "trainer.max_epochs=2", *MAPS, small=SMALL)
    return root


def planned(cmd: str, root: Path, pictures: Path, *options: str) -> str:
    """What a dry run prints."""
    return run(cmd, root, f"data.root={pictures}", "dry_run=true", *options, small=SMALL).stdout


def costs(text: str) -> list[tuple[str, str, str]]:
    """Name, cost and mends of every line of the list."""
    return re.findall(r"^  ((?:explainer|score)\.\w+): (.*); cheaper: (.*)$", text, re.M)


# ------------------------------------------------------------------------------------------------------ stem and epochs


@pytest.mark.parametrize(
    ("batches", "accumulate", "epochs"), [(1, 1, 300), (6, 1, 50), (7, 2, 75), (22, 1, 14), (38, 1, 8), (750, 1, 8)]
)
def test_a_small_data_set_is_trained_for_three_hundred_steps_and_a_large_one_for_eight_epochs(
    batches: int, accumulate: int, epochs: int
) -> None:
    assert epochs_for(batches, accumulate) == epochs


def test_the_epochs_of_a_folder_follow_its_number_of_pictures(pictures: Path, tmp_path: Path) -> None:
    assert "train: 100 epochs, 300 steps, about" in planned("train", tmp_path, pictures, *MAPS, "data.batch_size=4")


def test_a_typed_number_of_epochs_is_obeyed_and_few_steps_are_warned_of_in_one_line(
    pictures: Path, tmp_path: Path
) -> None:
    few = planned("train", tmp_path, pictures, *MAPS, "trainer.max_epochs=5")
    assert "train: 5 epochs, 5 steps, about" in few
    (warning,) = [line for line in few.splitlines() if line.startswith("warning")]
    for part in ("5 optimizer steps", "trainer.max_epochs=300 or more", "data.batch_size=8"):
        assert part in warning
    assert "warning" not in planned("train", tmp_path, pictures, *MAPS, "trainer.max_epochs=100")


def test_the_settled_numbers_are_saved_and_the_next_fold_follows_them(trained: Path, pictures: Path) -> None:
    saved = OmegaConf.load(trained / "folder-resnet18" / "fold=0" / "config.yaml")
    assert (saved.trainer.max_epochs, saved.model.network.stem) == (2, "small")
    text = planned("train", trained, pictures, "fold=1", *MAPS)
    assert "train: 2 epochs, 2 steps, about" in text
    assert "set another name= and trainer.max_epochs=300" in text


def test_a_typed_number_that_is_not_the_folders_is_refused(trained: Path, pictures: Path) -> None:
    done = run(
        "train", trained, f"data.root={pictures}", "fold=1", "trainer.max_epochs=3", *MAPS, check=False, small=SMALL
    )
    assert done.returncode == 1
    assert "trainer.max_epochs: 2 there, 3 here" in done.stderr


def test_a_folder_of_before_whose_large_images_met_the_small_stem_goes_on_with_it(
    trained: Path, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "folder-resnet18" / "fold=0" / "config.yaml"
    saved = OmegaConf.load(config)
    saved.data.size, saved.data.resize = 72, 72
    config.write_text(OmegaConf.to_yaml(saved))
    larger = ["data.size=72", "data.resize=72", "fold=1", *MAPS]
    assert "train: 2 epochs" in planned("train", tmp_path, pictures, *larger)
    done = run(
        "train", tmp_path, f"data.root={pictures}", *larger, "model.network.stem=large", check=False, small=SMALL
    )
    assert "model.network.stem: small there, large here" in done.stderr


def test_a_large_image_meets_the_large_stem(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    module = Run.module
    monkeypatch.setattr(Run, "module", lambda self: built.append(module(self)) or built[-1])
    for side in (64, 72):
        planned("train", tmp_path, pictures, *MAPS, f"data.size={side}", f"data.resize={side}")
    assert [m.network.stem[0].stride for m in built] == [(1, 1), (2, 2)]


@pytest.mark.parametrize("model", ["resnet18", "lipschitz", "vgg", "one_layer"])
def test_digits_keep_their_eight_epochs(model: str) -> None:
    assert compose("train", [f"model={model}"]).trainer.max_epochs == 8


def test_samplers_and_experiments_keep_their_own_epochs() -> None:
    for model, epochs in (("ddim", 80), ("flow", 50), ("inpainter", 30), ("patch_sampler", 120)):
        assert compose("train", [f"model={model}"]).trainer.max_epochs == epochs
    assert compose("train", ["experiment=shapes"]).trainer.max_epochs == 10
    assert compose("train", ["data=cifar10"]).trainer.max_epochs == 20
    assert compose("train", ["data=cifar10", "trainer.max_epochs=3"]).trainer.max_epochs == 3


def test_epochs_are_a_whole_number_or_null(pictures: Path) -> None:
    options = [f"data.root={pictures}", *SMALL, *MAPS]
    for value in ("auto", "0", "1.5", "true"):
        with pytest.raises(UsageError, match=r"trainer\.max_epochs must be a whole number of at least 1"):
            Run(compose("train", [*options, f"trainer.max_epochs={value}"]), "train")
    Run(compose("train", [*options, "trainer.max_epochs=null"]), "train")


# --------------------------------------------------------------------------------------------------------- a dry run


def test_a_dry_run_lists_every_cost_with_its_mend_the_dearest_first(pictures: Path, tmp_path: Path) -> None:
    options = ["explainer=[saliency,random,rise,smoothgrad]", "score=[mufidelity,deletion]"]
    text = planned("train", tmp_path, pictures, *options)
    found = {name: (cost, mend) for name, cost, mend in costs(text)}
    assert found["explainer.rise"][0].startswith("16,000 forward passes, about")  # 8 probes, and 4 twice more
    assert found["explainer.rise"][1] == "explainer.rise.masks=250, data.probes_per_fold=1"
    assert found["score.mufidelity"][0].startswith("1,608 forward passes")  # shared by the explainers
    assert found["score.deletion"][0].startswith("1,056 forward passes")  # 33 points, 8 probes, 4 explainers
    assert found["score.deletion"][1] == "score.deletion.step=128, data.probes_per_fold=1"
    assert found["explainer.smoothgrad"][0].startswith("960 forward and 960 backward passes")
    assert found["explainer.saliency"][1] == "data.probes_per_fold=1"
    assert "  explainer.random: no passes\n" in text
    minutes = [float(re.search(r"about ([\d.]+) min", cost)[1]) for _, cost, _ in costs(text)]
    assert minutes == sorted(minutes, reverse=True)
    assert re.search(r"^total: about [\d.]+ min, \d+ min for all of 2 folds$", text, re.M)
    assert re.search(r"^explain: 64 maps in 12 shards, .* min on this CPU, \d+ images a call$", text, re.M)
    assert not list(tmp_path.iterdir()), "a dry run left something"


def test_a_mend_keeps_what_it_says(pictures: Path, tmp_path: Path) -> None:
    dear = planned("train", tmp_path, pictures, "explainer=[rise,lime,sliding_patch]")
    mends = [mend.split(", ")[0] for _, _, mend in costs(dear)]
    assert len(mends) == 3
    cheap = planned("train", tmp_path, pictures, "explainer=[rise,lime,sliding_patch]", *mends)
    passes = [{name: int(cost.split()[0].replace(",", "")) for name, cost, _ in costs(text)} for text in (dear, cheap)]
    assert all(2 * passes[1][name] <= passes[0][name] for name in passes[0])


@pytest.mark.usefixtures("unchecked")  # torch.fx does not trace through checked annotations
def test_a_sweep_that_computes_only_what_changes_is_expected_to_take_less(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "seconds_per_image", lambda *_, **__: (1.0, 0.0))
    options = ["data.size=128", "data.resize=128", "model.network.width=16", "explainer=[sliding_patch]"]
    found = []
    for mode in ("auto", "never"):
        text = planned("train", tmp_path, pictures, *options, f"explainer.sliding_patch.incremental={mode}")
        ((_, cost, _),) = costs(text)
        found.append(float(re.search(r"about ([\d.]+) min", cost)[1]) * 60 / int(cost.split()[0].replace(",", "")))
    assert 0.1 < found[0] < 0.9
    assert found[1] == pytest.approx(1, rel=0.01)


def test_explain_lists_the_same_without_a_training(trained: Path, pictures: Path) -> None:
    text = planned("explain", trained, pictures, "explainer=[saliency,rise]")
    assert [name for name, *_ in costs(text)] == ["explainer.rise"], "the maps of saliency are there"
    assert "train:" not in text
    assert "total: about" in text


def test_what_is_there_already_is_not_told_to_change(trained: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    run("explain", tmp_path, f"data.root={pictures}", "explainer=[rise]", "explainer.rise.masks=20", small=SMALL)
    text = planned("train", tmp_path, pictures, "fold=1", "explainer=[rise,smoothgrad]", "explainer.rise.masks=20")
    mends = {name: mend for name, _, mend in costs(text)}  # other probes and masks would be refused or not comparable
    assert mends == {"explainer.rise": "leave it out", "explainer.smoothgrad": "explainer.smoothgrad.samples=15"}


@pytest.mark.slow
def test_a_long_command_names_its_dearest_part(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "seconds_per_image", lambda *_, **__: (1.0, 0.0))
    options = ["explainer=[random,rise]", "explainer.rise.masks=300", "trainer.max_epochs=1"]
    out = run("train", tmp_path, f"data.root={pictures}", *options, small=SMALL).stdout
    assert (
        "the dearest is explainer.rise: 4,800 forward passes, about 80.0 min; cheaper: explainer.rise.masks=75" in out
    )
    assert out.count("; cheaper:") == 1


def test_a_plan_says_which_device_was_timed() -> None:
    for device, words in (("cpu", "on this CPU"), ("cuda", "on this GPU")):
        assert str(engine.Plan(1, 1, Passes(1), 1.0, device=device)).endswith(words)


def test_trials_are_made_where_the_trainer_trains(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [f"root={tmp_path}", f"data.root={pictures}", *SMALL, "explainer=[]"]
    cpu, gpu = (Run(compose("train", [*options, f"trainer={t}"]), "train") for t in ("cpu", "gpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cpu.device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="use trainer=cpu"):
        _ = gpu.device


def test_a_trial_grows_until_it_took_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    now, tried = [0.0], []

    def take(items: int) -> None:
        tried.append(items)
        now[0] += 0.1 * items + {1: 5.0, 3: 0.5}.get(len(tried), 0.0)  # the first is slow, another is disturbed

    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    assert engine.trial(take, 64, enough=1.5) == pytest.approx(0.1)
    assert tried == [1, 1, 2, 4, 8]
    tried.clear()
    engine.trial(take, 5, least=2, enough=1e9)
    assert tried == [2, 2, 4, 5, 5, 5]


def test_a_second_try_that_something_held_up_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now, tried = [0.0], []

    def take(items: int) -> None:
        tried.append(items)
        now[0] += 0.1 * items + {1: 1.0, 2: 600.0}.get(len(tried), 0.0)

    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now[0])
    assert engine.trial(take, 64, enough=1.5) == pytest.approx(0.1)
    assert tried == [1, 1, 2]


# ------------------------------------------------------------------------------------------------- reading, end to end


def test_pictures_that_fit_into_memory_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = draw_pictures(tmp_path / "mine", each=2)
    images = sources.folder_source(root, 32, 32).train
    first = images.images([0, 3])
    monkeypatch.setattr(in_memory, "KEPT", 0)
    unkept = sources.folder_source(root, 32, 32).train
    assert torch.equal(unkept.images([0, 3]), first)
    shutil.rmtree(root)
    assert torch.equal(images.images([3, 0]), first.flip(0))
    for absent in (lambda: images.images([1]), lambda: unkept.images([0])):
        with pytest.raises(UsageError, match="cannot be decoded"):
            absent()


def test_processes_read_only_pictures_that_do_not_fit(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_xai.data import FoldData

    data = FoldData(lambda: sources.folder_source(pictures, 32, 32), folds=2, num_workers=2)
    assert data.train_dataloader().num_workers == data.val_dataloader().num_workers == 0
    monkeypatch.setattr(in_memory, "KEPT", 0)
    assert data.train_dataloader().num_workers == 2


@pytest.mark.slow
def test_the_experiment_for_own_pictures_ends_with_a_table(tmp_path: Path) -> None:
    root = draw_pictures(tmp_path / "mine", grey=2)
    quick = ["data.size=32", "data.resize=36", "data.folds=2", "model.network.width=4", "trainer.max_epochs=1"]
    quick += ["explainer=[saliency,random]", "score=[]", "logger=none", "progress=false"]
    run("train", tmp_path, "-m", "experiment=own_pictures", f"data.root={root}", "fold=0,1", small=quick)
    options = ["name=own_pictures", "explainer=[saliency,random]", "logger=none", "progress=false"]
    run("explain", tmp_path, "-m", "fold=0,1", "probes=disagreements", small=options)
    table = run("evaluate", tmp_path, "name=own_pictures", "logger=none", "progress=false", small=[]).stdout
    assert "saliency" in table
    assert "24 samples" in table or "held-out" in table
