"""What every filler that draws with something trained promises about its file, and about what it is given."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from lit_xai.core import TrainedOn
from lit_xai.errors import UsageError
from lit_xai.explainers import SlidingPatch
from lit_xai.fillers.fitted import FittedFiller
from lit_xai.fitting import describe
from lit_xai.rng import SampleRng
from torch import Tensor

from conftest import seeded
from generators import GENERATORS, made, save

RNG = SampleRng(5, (3, 8))
every = pytest.mark.parametrize("name", GENERATORS)


@pytest.fixture(scope="module")
def modules() -> dict:
    return {name: made(g.module, **g.node) for name, g in GENERATORS.items()}


@pytest.fixture
def keep() -> Tensor:
    keep = torch.ones(2, 2, 8, 8, dtype=torch.bool)
    keep[0, 0, 3:5, 4:6] = keep[0, 1, :, :3] = keep[1, 0, 6:, 6:] = keep[1, 1] = False
    return keep


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 1, 8, 8, generator=seeded(1))


def trained_on(fold: int | None, about: str = "", shape: tuple[int, ...] = ()) -> TrainedOn:
    return TrainedOn((0.5,), fold, 60, about, shape)


@every
def test_what_was_trained_is_read_back_as_it_was(name, modules, tmp_path, images, keep):
    g, state = GENERATORS[name], torch.random.get_rng_state()
    given = g.filler(given=modules[name].denoiser() if "ddim" in name else modules[name], **g.options)
    read = g.filler(save(modules[name], tmp_path / "model.ckpt", g.node, "toy"), trained_on(1, "toy"), **g.options)
    assert torch.equal(read(images, keep, RNG, 2), given(images, keep, RNG, 2))
    assert read.resolve(lambda x: x, images)["fitted_on"] == "toy"
    assert not any(p.requires_grad for p in read.module.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


@every
def test_what_is_given_is_described_like_what_is_read_and_told_by_its_weights(name, modules):
    g = GENERATORS[name]
    given, other = (g.filler(given=m.sampler().module) for m in (modules[name], made(g.module, seed=1, **g.node)))
    assert describe(given) == describe(g.filler("a/file.ckpt"))
    assert given.content()["digest"] != other.content()["digest"]


@every
def test_a_module_in_training_draws_as_it_is_now(name, images, keep):
    g = GENERATORS[name]
    module = made(g.module, **g.node)
    before = module.sampler()(images.double(), keep, RNG)
    for key, value in module.state_dict().items():
        if value.is_floating_point() and key != "signal":
            value.mul_(1.1)
    assert not torch.equal(module.sampler()(images.double(), keep, RNG), before)


class Touch:
    """A pickled object that leaves a trace when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def wrong(kind: str, name: str, module: torch.nn.Module, folder: Path) -> FittedFiller:
    """A filler whose file is wrong in one way."""
    g, file = GENERATORS[name], folder / "model.ckpt"
    if kind == "no checkpoint":
        return g.filler()
    if kind == "missing file":
        return g.filler(str(folder / "none.ckpt"))
    if kind in ("folder without fold", "fold that is not there"):
        save(module, folder / "fold=0" / "model.ckpt", g.node)
        return g.filler(str(folder), trained_on(2) if kind == "fold that is not there" else None)
    on = None
    if kind == "other data":
        save(module, file, g.node, "toy (abc), fold 1 of 3 held out")
        on = trained_on(1, "toy (xyz), fold 1 of 3 held out")
    elif kind == "another model":
        save(module, file, {**g.node, "_target_": "lit_xai.models.Classifier"})
    elif kind == "other weights":
        save(module, file, {**g.node, **g.other})
    elif kind == "impossible options":
        save(module, file, {**g.node, next(iter(g.other)): "many"})
    elif kind == "a part of the weights":
        save(module, file, g.node)
        content = torch.load(file, weights_only=True)
        del content["state_dict"][next(iter(content["state_dict"]))]
        torch.save(content, file)
    elif kind == "no configuration":
        torch.save({"state_dict": {"weight": torch.zeros(1)}}, file)
    elif kind == "no state_dict":
        torch.save({"weight": torch.zeros(1)}, file)
    elif kind == "code":
        torch.save({"state_dict": {}, "config": Touch(folder / "trace")}, file)
    else:
        save(module, file, g.node)
        data = file.read_bytes()
        file.write_bytes({"cut": data[:-100], "empty": b"", "text": b"not a checkpoint"}[kind])
    return g.filler(str(file), on)


TRAIN = "python -m lit_xai.train model={model}"
WRONG = {
    "no checkpoint": "{filler} needs a fitted sampler: train it by " + TRAIN + " fold=0 .* checkpoint=",
    "missing file": "none.ckpt is missing: train it by " + TRAIN + " fold=0 with the same data=",
    "folder without fold": "is a folder and the fold is not known: name the file of one fold",
    "fold that is not there": "fold=2/model.ckpt is missing: train it by " + TRAIN + " fold=2",
    "another model": r"holds no {model} \(lit_xai.models.Classifier\): train one by " + TRAIN,
    "other weights": r"holds no whole {model} \(RuntimeError\): train it again by " + TRAIN,
    "impossible options": r"holds no whole {model} \(.*Error\): train it again by " + TRAIN,
    "a part of the weights": r"holds no whole {model} \(RuntimeError\): train it again by " + TRAIN,
    "no configuration": r"holds no {model} \(unknown\): train one by " + TRAIN,
    "no state_dict": "holds no state_dict: name a model.ckpt of lit_xai.train",
    "code": r"is damaged or no checkpoint \(UnpicklingError\): name another, or train again",
    "other data": r"was fitted to toy \(abc\), .* and this predictor to toy \(xyz\), .*" + TRAIN,
    "cut": "is damaged or no checkpoint .*: name another, or train again",
    "empty": "is damaged or no checkpoint .*: name another, or train again",
    "text": "is damaged or no checkpoint .*: name another, or train again",
}


@every
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_refused_in_one_line_that_names_the_mend(name, kind, modules, tmp_path, images, keep):
    filler = wrong(kind, name, modules[name], tmp_path)
    message = WRONG[kind].format(model=filler.model, filler=type(filler).__name__)
    with pytest.raises(UsageError, match=message) as error:
        filler(images, keep, RNG)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "trace").exists()  # no code ran


@every
def test_images_that_it_was_not_trained_on_are_refused(name, modules, keep):
    filler = modules[name].sampler()
    with pytest.raises(UsageError, match=r"1( x 8 x 8| channels).*found 3"):
        filler(torch.rand(2, 3, 8, 8), keep, RNG)
    with pytest.raises(UsageError, match="draws must be at least 1, found 0"):
        filler(torch.rand(2, 1, 8, 8), keep, RNG, 0)


def test_every_predictor_finds_the_sampler_of_its_own_fold(tmp_path):
    g = GENERATORS["patch_sampler"]
    for fold in (0, 1, 2):
        save(made(g.module, seed=fold, **g.node), tmp_path / f"fold={fold}" / "model.ckpt", g.node, f"toy, fold {fold}")
    explainer = SlidingPatch(None, None, g.filler(str(tmp_path)))
    for fold in (2, 0, 1):
        filler = explainer.fitted(trained_on(fold, f"toy, fold {fold}")).filler
        assert filler.file == tmp_path / f"fold={fold}" / "model.ckpt"
        assert filler.module.about == f"toy, fold {fold}"


def test_the_folder_of_one_fold_will_do(modules, tmp_path):
    g = GENERATORS["flow"]
    save(modules["flow"], tmp_path / "model.ckpt", g.node)
    assert g.filler(str(tmp_path)).file == tmp_path / "model.ckpt"
    assert g.filler(str(tmp_path)).fitted(trained_on(4)).file == tmp_path / "model.ckpt"


def test_a_sampler_of_other_images_is_refused_as_soon_as_the_data_are_known(modules, tmp_path):
    g = GENERATORS["ddim"]
    filler = g.filler(save(modules["ddim"], tmp_path / "model.ckpt", g.node), steps=2)
    with pytest.raises(UsageError, match="trained on images of 1 x 8 x 8"):
        filler.fitted(trained_on(None, shape=(3, 8, 8))).content()


def test_a_rewritten_file_is_read_anew(modules, tmp_path):
    g, file = GENERATORS["inpainter"], tmp_path / "model.ckpt"
    save(modules["inpainter"], file, g.node)
    first, before = g.filler(str(file)), file.stat()
    digest, weight = first.content()["digest"], first.module.network.up.convolution.weight
    save(made(g.module, seed=5, **g.node), file, g.node)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    again = g.filler(str(file))
    assert again.content()["digest"] == hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest() != digest
    assert not torch.equal(again.module.network.up.convolution.weight, weight)


def test_a_file_is_read_once_for_all_its_fillers_and_copied_once_for_all_its_types(modules, tmp_path, images, keep):
    g = GENERATORS["patch_sampler"]
    explainer = SlidingPatch(None, None, g.filler(save(modules["patch_sampler"], tmp_path / "model.ckpt", g.node)))
    fillers = [explainer.fitted(trained_on(1)).filler for _ in range(3)]
    assert len({id(f.module) for f in fillers}) == 1
    for f in fillers:
        f(images.double(), keep, RNG)
    assert len(fillers[0].opened.copies) == 1
    assert fillers[0].opened is fillers[2].opened


def test_a_description_says_what_the_file_holds_and_not_where_it_lies(modules, tmp_path):
    g = GENERATORS["patch_sampler"]
    save(modules["patch_sampler"], tmp_path / "here" / "model.ckpt", g.node, "toy")
    data = (tmp_path / "here" / "model.ckpt").read_bytes()
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "model.ckpt").write_bytes(data)
    here, there = (
        SlidingPatch(None, None, g.filler(str(tmp_path / d), trained_on(f, "toy"), max_batch=b))
        for d, f, b in (("here", 1, 5), ("there", 2, 6))
    )
    assert describe(here) == describe(there)
    assert str(tmp_path) not in str(describe(here))
    assert describe(here)["filler"] == {"name": "PatchSampler", "precision": "float32"}
    expected = {"patch": 2, "digest": hashlib.blake2b(data, digest_size=8).hexdigest()}
    assert here.contents() == there.contents() == {"filler": expected}
    assert here.filler.resolve(lambda x: x, torch.rand(1, 1, 8, 9)) == {**expected, "fitted_on": "toy"}
