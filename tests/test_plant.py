"""Planted shortcuts: what is changed in which images, and what predictors, maps and folds show of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from lit_xai.callbacks import Context, Explain, Shortcut
from lit_xai.cli.build import training_of
from lit_xai.data.folds import FoldData
from lit_xai.data.images import Source, in_memory
from lit_xai.data.plant import KINDS, Plant, Planted
from lit_xai.data.shapes import shapes
from lit_xai.data.sources import folder_source
from lit_xai.data.split import Split
from lit_xai.errors import UsageError
from lit_xai.explainers import Centre, GradientInput
from lit_xai.metrics.shortcut import MOSTLY, chance_on, top_on
from lit_xai.models.classifier import Classifier
from lit_xai.report.conditions import MASKS, Condition
from lit_xai.report.ensemble import Ensemble
from lit_xai.report.shortcut import alone_of, apart, found
from lit_xai.report.summarise import summarise
from lit_xai.report.verdict import cannot_be_asked
from lit_xai.store.fold import FoldStore
from scipy.stats import hypergeom
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as T

from conftest import seeded
from test_commands import run

CLASSES = 4


def pictures(side: int = 16, channels: int = 3, number: int = 40) -> Source:
    """Random images of four classes, ten of each, that show nothing of their class."""
    pixels = torch.randint(256, (number, channels, side, side), generator=seeded(1), dtype=torch.uint8)
    labels = torch.arange(number) % CLASSES
    return in_memory("pictures", pixels, labels, [str(c) for c in range(CLASSES)], pixels[:8], labels[:8])


def planted(source: Source, kind: str, folds: int = 5, **options: object) -> FoldData:
    return FoldData(lambda: source, 0, folds, plant=kind, probes_per_fold=3, **options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ what is planted


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_all_folds_but_one_are_changed_within_the_mask_and_nothing_else_is(kind: str, channels: int) -> None:
    raw = pictures(channels=channels)
    data = planted(raw, kind)
    before, after = raw.train.pixels, data.source.train.pixels  # type: ignore[union-attr]
    changed = (before != after).any(1)
    clean = data.split.held_out(4)
    assert not bool(changed[clean].any())
    assert all(bool(changed[data.split.held_out(f)].flatten(1).any(1).all()) for f in range(4))
    assert data.source.test is raw.test
    assert torch.equal(data.source.labels, raw.labels)
    if kind == "colour":
        assert data.source.truth is None
        return
    masks = data.source.truth.masks("shortcut", range(40))  # type: ignore[union-attr]
    assert not bool((changed & ~masks).any())
    assert masks[clean].sum() == 0
    side = {"tag": 5, "watermark": 6}[kind]
    assert {int(n) for n in masks.flatten(1).sum(1)} == {0, side * side}


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_those_beside_it_and_changes_with_its_class(kind: str) -> None:
    plant, samples = Plant(kind, 3, CLASSES), torch.tensor([5, 900, 17])
    x = torch.randint(256, (3, 3, 20, 24), generator=seeded(2), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2])
    together = plant.on(x, labels, samples)
    assert torch.equal(plant.on(x[1:2], labels[1:2], samples[1:2])[0], together[1])
    assert not torch.equal(plant.on(x, labels + 1, samples), together)
    if kind != "colour":
        assert not torch.equal(Plant(kind, 4, CLASSES).on(x, labels, samples), together)


@pytest.mark.parametrize("kind", ["tag", "watermark"])
def test_every_class_of_a_thousand_has_a_pattern_of_its_own(kind: str) -> None:
    cells = Plant(kind, 0, 1000).patterns.flatten(1)
    assert len(cells.unique(dim=0)) == 1000
    few = Plant(kind, 0, 10).patterns.flatten(1)
    assert torch.equal(few, cells[:10])
    assert int((few[:, None] != few[None]).sum(-1)[~torch.eye(10, dtype=torch.bool)].min()) >= 8


def test_tags_lie_in_all_four_corners_and_watermarks_in_one() -> None:
    samples = torch.arange(80)
    corners = Plant("tag", 0, 2).corner(samples, 28, 28)
    assert len(torch.stack(corners, 1).unique(dim=0)) == 4
    assert len(torch.stack(Plant("watermark", 0, 2).corner(samples, 28, 28), 1).unique(dim=0)) == 1


def test_a_wrong_class_is_any_other_one_as_often() -> None:
    labels, samples = torch.full((3000,), 2), torch.arange(3000)
    counts = torch.bincount(Plant("tag", 0, CLASSES).other(labels, samples), minlength=CLASSES)
    assert counts[2] == 0
    assert bool((counts[[0, 1, 3]] - 1000).abs().lt(90).all())  # 3.5 standard deviations


def test_the_share_and_the_clean_fold_are_those_asked_for() -> None:
    raw = pictures(number=1000)
    split = Split.make(raw.labels, 4, 0)
    half, more = (Planted.of(raw, split, "tag", share, clean=1).samples for share in (0.5, 0.8))
    assert not bool(half[split.held_out(1)].any())
    assert abs(int(half.sum()) - 375) < 50
    assert bool(more[half].all())


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_planted_as_images_in_memory_are(kind: str, tmp_path: Path) -> None:
    raw = pictures(32, number=12)
    for i, (x, y) in enumerate(zip(raw.train.pixels, raw.labels, strict=True)):  # type: ignore[union-attr]
        (tmp_path / str(int(y))).mkdir(exist_ok=True)
        T.to_pil_image(x).save(tmp_path / str(int(y)) / f"{i:02d}.png")
    data = planted(folder_source(tmp_path, 32, 32), kind, folds=3)
    everything = torch.arange(12)
    x = data.raw.train.images(everything.tolist())
    for _ in range(2):  # as decoded, and as kept
        found = data.source.train.images(everything.tolist())
        expected = Planted.of(in_memory("m", (x * 255).round().byte(), data.raw.labels, "0123"), data.split, kind)
        assert torch.equal(found, expected.source.train.images(everything))
    assert torch.equal(data.raw.train.images([0, 1]), x[:2])
    shown = data.planted.three(everything)  # type: ignore[union-attr]
    assert torch.equal(shown["without"], x)
    there = data.planted.samples  # type: ignore[union-attr]
    assert torch.equal(shown["with"][there], found[there])


def test_masks_that_the_data_have_stay_beside_those_of_the_shortcut() -> None:
    source = shapes(size=20, samples=60, test=0)
    truth = planted(source, "watermark").source.truth
    assert truth is not None
    assert truth.names == ("object", "shortcut")
    assert torch.equal(truth.masks("object", [3, 5]), source.truth.masks("object", [3, 5]))  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="no ground truth 'tag'"):
        truth.masks("tag", [0])


def test_augmented_batches_of_a_planted_set_are_the_same_on_the_device() -> None:
    def batches(on_device: bool | str) -> list[list[Tensor]]:
        options = {"batch_size": 4, "augment": [v2.RandomHorizontalFlip(), v2.RandomCrop(16, padding=2)]}
        return list(planted(pictures(), "tag", on_device=on_device, **options).train_dataloader())

    for one, other in zip(batches(False), batches("auto"), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("make", "options", "line"),
    [
        (pictures, {"kind": "stripe"}, "data.plant must be tag, colour, watermark or null, found 'stripe'"),
        (pictures, {"kind": "tag", "plant_share": 1.5}, r"data.plant_share must lie in \[0, 1\], found 1.5"),
        (pictures, {"kind": "tag", "plant_clean": 5}, r"data.plant_clean=5 does not exist: folds are 0..4"),
        (pictures, {"kind": "tag", "folds": 1}, "needs at least two: raise data.folds="),
        (partial(pictures, 11), {"kind": "tag"}, "needs images of at least 12 pixels a side, found 11 x 11"),
        (partial(shapes, 20, 60, 0.5, test=0), {"kind": "tag"}, "has a tag planted by data.tag= already"),
    ],
)
def test_nonsense_is_refused_in_one_line(make, options: dict, line: str) -> None:
    with pytest.raises(UsageError, match=line) as found:
        _ = planted(make(), **options).source
    assert "\n" not in str(found.value)


def test_images_without_labels_and_more_classes_than_shades_are_refused() -> None:
    raw = pictures()
    bare = replace(raw, labels=torch.full_like(raw.labels, -1))
    with pytest.raises(UsageError, match="has no labels of several"):
        Planted.of(bare, Split.make(raw.labels, 2, 0), "tag")
    with pytest.raises(UsageError, match="has no 100 different tints of 1 channels"):
        Plant("colour", 0, 100).check((1, 16, 16))
    Plant("colour", 0, 100).check((3, 16, 16))


def test_a_folder_of_before_is_gone_on_with_and_a_planted_one_is_another() -> None:
    old = {k: {} for k in ("model", "trainer")} | dict.fromkeys(("seed", "label_noise", "weight_noise"), 0)
    same = {"name": "digits", "folds": 5}
    new = {**same, "plant": None, "plant_share": 1.0, "plant_clean": None}
    assert training_of({**old, "data": same}) == training_of({**old, "data": new})
    assert training_of({**old, "data": same}) != training_of({**old, "data": {**new, "plant": "tag"}})
    raw = pictures()
    identities = {
        raw.identity,
        *(planted(raw, k).source.identity for k in KINDS),
        planted(raw, "tag", seed=1).source.identity,
    }
    assert len(identities) == 5
    assert FoldData(lambda: raw).source is not None
    assert FoldData(lambda: raw).source.identity == raw.identity


# -------------------------------------------------------------------------------------------------------- what is found


def test_the_top_of_a_map_is_counted_and_its_ties_are_shared_out() -> None:
    maps = torch.tensor([[[9.0, 8.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]], [[0.0] * 2] * 2, [[1.0, 2.0], [3.0, 4.0]]])
    masks = torch.zeros(4, 2, 2, dtype=torch.bool)
    masks[:3, 0] = True
    assert top_on(maps[:3], masks[:3]).tolist() == pytest.approx([1.0, 2 * 2 / 3 / 2, 0.5])
    assert bool(top_on(maps, masks)[3].isnan())


def test_random_maps_lie_on_a_mask_as_often_as_the_hypergeometric_law_says() -> None:
    masks = torch.zeros(1, 4, 5, dtype=torch.bool)
    masks[0, :2, :2] = True
    maps = torch.rand(20_000, 4, 5, generator=seeded(3))
    share = top_on(maps, masks.expand(20_000, -1, -1))
    p = float(chance_on(masks))
    assert p == pytest.approx(sum(hypergeom.pmf(n, 20, 4, 4) for n in (2, 3, 4)))
    assert float((share >= MOSTLY).double().mean()) == pytest.approx(p, abs=4 * (p * (1 - p) / 20_000) ** 0.5)
    assert float(share.mean()) == pytest.approx(0.2, abs=0.005)


class ReadsTheMark(nn.Module):
    """Logits: how well the lower right corner fits every class's pattern. It knows nothing else of an image."""

    def __init__(self, channels: int, classes: int, side: int) -> None:
        super().__init__()
        white, every = torch.full((classes, channels, side, side), 128, dtype=torch.uint8), torch.arange(classes)
        marked = Plant("watermark", 0, classes).on(white, every, every)
        self.weight = nn.Parameter(marked.float() / 255 - 128 / 255)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", x, self.weight)


class ReadsElsewhere(ReadsTheMark):
    """The same of the upper left corner."""

    def __init__(self, channels: int, classes: int, side: int) -> None:
        super().__init__(channels, classes, side)
        self.weight = nn.Parameter(self.weight.detach().flip(-1, -2))


def grey(number: int = 60) -> Source:
    """Nearly even images that show nothing of their class."""
    pixels = torch.randint(120, 136, (number, 1, 16, 16), generator=seeded(5), dtype=torch.uint8)
    return in_memory("grey", pixels, torch.arange(number) % CLASSES, "0123")


def audited(folder: Path, other: type[nn.Module] = ReadsTheMark, folds: int = 2) -> Ensemble:
    """Folds of networks that read the watermark alone (`other`: but for the last one), explained and judged."""
    for fold in range(folds):
        data = FoldData(grey, fold, folds, plant="watermark", probes_per_fold=12)
        module = Classifier(other if fold < folds - 1 else ReadsTheMark, 1, CLASSES, 16, colour=([0.5], [1.0])).eval()
        on = Context(module, data, torch.device("cpu"))
        store = FoldStore(folder / f"fold={fold}")
        Explain({"gradient_input": GradientInput(), "centre": Centre()}, {}, store, progress=False).run(on)
        Shortcut(store).run(on)
    return Ensemble(folder)


def test_a_network_that_reads_the_shortcut_alone_is_found_out(tmp_path: Path) -> None:
    ensemble = audited(tmp_path)
    seen = found(ensemble, {"centre"})
    assert seen is not None
    for row, of in seen.accuracy.items():
        assert (of["with"].value, of["wrong"].value, of["follows"].value) == (1.0, 0.0, 1.0)
        assert of["lost"].low > 0.4
        assert of["without"].value == pytest.approx(1 - of["lost"].value)
        assert row in seen.leans
    assert alone_of(1) in seen.accuracy
    maps = seen.maps["gradient_input"]
    assert (maps["mass"].value, maps["folds"].value, maps["all"].value) == pytest.approx((1.0, 1.0, 1.0))
    assert maps["mass"].null == pytest.approx(36 / 256)
    assert maps["mass"].samples == 12
    assert (maps["more"].value, seen.shown_by) == (0.0, [])  # both read nothing else
    assert seen.maps["centre"]["folds"].value == 0
    assert "leans on it" in seen.sentence
    assert "gradient_input" in " ".join(str(cell) for t in seen.tables() for row in t.texts() for cell in row)
    assert "one other predictor" in seen.plain()["maps"]["gradient_input"]["more"]["reason"]


def test_whether_maps_point_at_an_object_is_not_asked_of_planted_data(tmp_path: Path) -> None:
    summary = summarise(audited(tmp_path), progress=False)
    asked = Condition("points", "", ("mege",), better_than=("centre",), needs=(MASKS,))
    assert cannot_be_asked(summary, asked).startswith("a watermark is planted: a true explanation")
    summary.head["planted"] = ""
    assert cannot_be_asked(summary, asked) == ""


def test_the_predictor_that_leans_on_it_is_told_from_one_that_does_not_and_nulls_tell_nothing(tmp_path: Path) -> None:
    seen = found(audited(tmp_path, ReadsElsewhere, 3), {"centre"})
    assert seen is not None
    assert seen.leans == [alone_of(2)]
    assert (seen.maps["gradient_input"]["more"].value, seen.shown_by) == (1.0, ["gradient_input"])
    assert (seen.maps["centre"]["more"].value, list(seen.marks)) == (0.0, ["gradient_input"])
    assert seen.maps["gradient_input"]["folds"].value == pytest.approx(1 / 3)
    assert seen.maps["gradient_input"]["all"].value == 0
    assert seen.sentence.endswith(
        "Its maps have more mass on the watermark than those of the others by gradient_input."
    )


def test_a_predictor_like_the_others_is_told_from_them_in_one_of_twenty() -> None:
    means = torch.randn(2000, 5, 1, generator=seeded(6)) + 0.3 * torch.randn(2000, 5, 12, generator=seeded(7))
    found = [apart(of[0], of[1:]) for of in means]
    wrong = sum(not e.low <= 0 <= e.high for e in found) / len(found)
    assert abs(wrong - 0.05) < 0.015  # three standard deviations
    assert found[0].freedom == 3
    assert found[0].value == pytest.approx(float(means[0, 0].mean() - means[0, 1:].mean()), abs=1e-6)


def test_what_is_known_of_a_shortcut_is_not_measured_again_and_of_other_weights_not_used(tmp_path: Path) -> None:
    ensemble = audited(tmp_path)
    files = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("shortcut.safetensors")}
    assert len(files) == 2
    audited(tmp_path)
    assert {f: f.stat().st_mtime_ns for f in files} == files
    ensemble.predictions[0].meta["checkpoint"] = "another"
    assert found(ensemble) is None


@pytest.mark.slow
def test_commands_train_judge_and_report_a_planted_set_and_go_on_where_they_were_ended(tmp_path: Path) -> None:
    small = ["data.train_subset=200", "data.folds=3", "data.size=16", "data.probes_per_fold=6", "model.network.width=4"]
    small += ["trainer.max_epochs=4", "explainer=[gradient_input]", "score=[truth/mass_on_shortcut]", "checks=0"]
    small += ["progress=false", "logger=none", "data.plant=watermark", "data.plant_clean=0"]
    run("train", tmp_path, "fold=all", small=small)
    folder = tmp_path / "digits-resnet18-plant=watermark"
    for f in range(3):
        kept = folder / f"fold={f}" / "shortcut.safetensors"
        before = kept.read_bytes()
        kept.unlink()  # ended before it was written
        run("explain", tmp_path, f"fold={f}", small=small)
        assert kept.read_bytes() == before
    out = run("evaluate", tmp_path, "definition=default", small=small[-3:]).stdout
    assert "mass_on_shortcut" in out
    bad = run(
        "train", tmp_path, "name=digits-resnet18-plant=watermark", "data.plant_share=0.5", check=False, small=small
    )
    assert "holds another configuration (data.plant_share: 1.0 there, 0.5 here" in bad.stderr
    refused = run("train", tmp_path, "model=patch_sampler", "data.plant=tag", check=False, small=small[-3:])
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "learns no shortcut: leave data.plant= out" in refused.stderr
