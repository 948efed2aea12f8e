"""Data sets as people write them, given to the library: what their items are, and one line where nobody can know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lit_xai.crossval import audit, explain_folds, explain_model
from lit_xai.data.items import Labels, MapStyle, Samples
from lit_xai.errors import UsageError
from lit_xai.explainers import Lime, Saliency
from lit_xai.metrics import Deletion
from lit_xai.report.ensemble import Ensemble
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder
from torchvision.transforms import v2

from conftest import seeded

N = 12
IMAGES = (torch.rand(N, 3, 10, 10, generator=seeded(1)) * 255).round() / 255
BYTES = (IMAGES * 255).round().byte().permute(0, 2, 3, 1).numpy()
CLASSES = torch.arange(N) % 3
PICTURES = [Image.fromarray(b) for b in BYTES]


class Given(Dataset):
    """Items by a function of their number."""

    def __init__(self, item: Callable[[int], Any], n: int = N) -> None:
        self.item, self.n = item, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return self.item(i)


class Disagreeing(Given):
    """A `target_transform`: `targets` are not what the items say."""

    targets = torch.zeros(N, dtype=torch.long)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(x, 0) for x in IMAGES])


def read(dataset: Any, classes: int | None = 3, **options: Any) -> Samples:
    return Samples.of(dataset, lambda image: classes, **options)


def network(classes: int = 3, channels: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, classes)
    )


def label(i: int) -> int:
    return int(CLASSES[i])


TAKEN = {
    "tensors": lambda i: (IMAGES[i], CLASSES[i]),
    "a list": lambda i: [IMAGES[i], label(i)],
    "a picture of Pillow's": lambda i: (PICTURES[i], label(i)),
    "an opaque picture with alpha": lambda i: (PICTURES[i].convert("RGBA"), label(i)),
    "a dictionary": lambda i: {"image": PICTURES[i], "label": label(i), "file": "x"},
    "another dictionary": lambda i: {"pixel_values": IMAGES[i], "labels": CLASSES[i]},
    "a third dictionary": lambda i: {"img": IMAGES[i], "target": label(i)},
    "bytes with channels last": lambda i: (BYTES[i], label(i)),
    "numbers with channels last": lambda i: (np.float32(IMAGES[i].permute(1, 2, 0).numpy()), label(i)),
    "an array with channels first": lambda i: (IMAGES[i].numpy(), label(i)),
    "a box between": lambda i: (IMAGES[i], torch.rand(4, generator=seeded(i)), label(i)),
    "an index behind": lambda i: (IMAGES[i], label(i), i),
    "a label of one element": lambda i: (IMAGES[i], np.array([label(i)])),
    "a word that is a number": lambda i: (IMAGES[i], str(label(i))),
}


@pytest.mark.kind("items of usual forms")
@pytest.mark.parametrize("form", TAKEN)
def test_items_of_usual_forms_give_their_image_and_their_label(form: str) -> None:
    found = read(Given(TAKEN[form]))
    assert torch.equal(found.labels.numbers, CLASSES)
    assert torch.allclose(found.images.images(range(N)), IMAGES, atol=1e-7)


@pytest.mark.kind("items of usual forms")
@pytest.mark.parametrize("form", ["a picture of Pillow's", "a dictionary", "bytes with channels last", "a box between"])
def test_a_loader_trains_on_what_the_explained_images_are(form: str) -> None:
    found = read(Given(TAKEN[form]))
    batch = next(iter(DataLoader(found.training([4, 7]), batch_size=2)))
    x, y = (batch["image"], batch["label"]) if isinstance(batch, dict) else (batch[0], batch[-1])
    assert torch.allclose(x, IMAGES[[4, 7]], atol=1e-7)
    assert y.tolist() == CLASSES[[4, 7]].tolist()


@pytest.mark.kind("labels are dataset[i][1]")
@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Subset(d, range(N)), lambda d: ConcatDataset([d])])
def test_labels_are_those_of_the_items_whatever_the_data_set_says_beside_them(wrap) -> None:
    found = read(wrap(Disagreeing(TAKEN["tensors"])))
    assert torch.equal(found.labels.numbers, CLASSES)


@pytest.mark.kind("labels are dataset[i][1]")
def test_a_perfect_model_of_transformed_targets_counts_as_right(tmp_path: Path) -> None:
    images = torch.stack([torch.full((1, 6, 6), i / 12) for i in range(12)])

    class Middle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bright = x.mean((1, 2, 3)) - 0.49
            return torch.stack([-bright, bright], 1) * 9

    data = Disagreeing(lambda i: (images[i], int(i >= 6)))
    explain_model(Middle(), data, {"saliency": Saliency()}, tmp_path, scores={}, checks=0, progress=False)
    assert bool(Ensemble(tmp_path).correct.all())


NUMBERED = {
    "words": (["eel", "cat", "dog"], 3, (), [2, 0, 1], ("cat", "dog", "eel")),
    "words whose places are known": (["eel", "cat", "cat"], 3, ("eel", "dog", "cat"), [0, 2, 2], ("eel", "dog", "cat")),
    "minus one and one": ([-1, 1, -1], 2, (), [0, 1, 0], ("-1", "1")),
    "gaps": ([20, 10, 20], 2, (), [1, 0, 1], ("10", "20")),
    "classes of a model that has more": ([2, 0, 2], 3, (), [2, 0, 2], ()),
    "classes of an unknown model": ([2, 0, 2], None, (), [2, 0, 2], ()),
}


@pytest.mark.kind("words and gaps as labels")
@pytest.mark.parametrize("case", NUMBERED)
def test_labels_are_numbered_in_their_order_where_they_are_as_many_as_classes(case: str) -> None:
    found, classes, names, numbers, named = NUMBERED[case]
    labels = Labels.of(found, lambda: classes, names)
    assert (labels.numbers.tolist(), labels.names) == (numbers, named)


@pytest.mark.kind("words and gaps as labels")
@pytest.mark.parametrize(
    ("found", "classes", "text"),
    [
        (["cat", 1], 2, "some labels are words, such as 'cat', and some numbers"),
        (["cat", "dog"], 3, r"labels are cat, dog \(2 different\) and the model has 3 classes.*classes="),
        ([10, 20], 3, r"labels are 10, 20 \(2 different\) and the model has 3 classes: give whole numbers 0\.\.2"),
        ([0, 1, -1], 3, "label -1 is no class: leave unlabelled samples out"),
    ],
)
def test_labels_that_do_not_say_their_class_are_refused(found, classes, text) -> None:
    with pytest.raises(UsageError, match=text):
        Labels.of(found, lambda: classes)


def broken(i: int) -> Any:
    raise OSError("truncated")


def spoilt(i: int) -> Any:
    image = IMAGES[i].clone()
    image[0, 0, 0] = torch.inf if i == 5 else 0
    return image, label(i)


REFUSED = {
    "several labels": (lambda i: (IMAGES[i], torch.zeros(14)), "float32 of shape .14,. .several labels"),
    "a fraction": (lambda i: (IMAGES[i], 0.5), "has as its label 0.5"),
    "no label": (lambda i: (IMAGES[i], None), "has as its label None"),
    "a picture as a label": (lambda i: (IMAGES[i], PICTURES[i]), "has as its label a Image"),
    "two targets": (lambda i: (IMAGES[i], (label(i), PICTURES[i])), "has as its label a tuple of int, Image"),
    "a dictionary without an image": (lambda i: {"a": 1, "label": 2}, "is a dictionary of a, label"),
    "two labels in a dictionary": (
        lambda i: {"image": 1, "label": 2, "target": 3},
        "a dictionary of image, label, target",
    ),
    "an image alone": (lambda i: IMAGES[i], r"sample 0 is float32 of shape \(3, 10, 10\)"),
    "bytes of a tensor": (lambda i: ((IMAGES[i] * 255).byte(), 1), r"in \[3, 255\].*divide by 255"),
    "normalised": (lambda i: (IMAGES[i] * 4 - 2, 1), "put normalisation inside the model"),
    "unequal sizes": (
        lambda i: (torch.rand(3, 10 + i, 10), 1),
        r"differ in size: sample 0 is \(3, 10, 10\) and sample 1",
    ),
    "unequal channels": (lambda i: (IMAGES[i][: 1 + 2 * (i % 2)], 1), "images differ in size"),
    "sixteen bits": (lambda i: (Image.new("I;16", (9, 9)), 1), r"more than 8 bits a channel \(I;16\)"),
    "an unreadable item": (broken, r"sample 0 cannot be read \(OSError: truncated\)"),
    "an infinite pixel": (spoilt, "sample 5 has NaN or infinite pixels"),
    "a text for an image": (lambda i: ("photo.jpg", 1), "has as its image a str"),
}


@pytest.mark.kind("items that nobody can know")
@pytest.mark.parametrize("form", REFUSED)
def test_what_nobody_can_know_is_refused_in_a_line_that_names_the_sample(form: str) -> None:
    item, text = REFUSED[form]
    with pytest.raises(UsageError, match=text) as found:
        read(Given(item))
    assert "\n" not in str(found.value)


@pytest.mark.kind("items that nobody can know")
@pytest.mark.parametrize("data", [Stream(), (x for x in IMAGES), DataLoader(TensorDataset(IMAGES, CLASSES))])
def test_items_without_numbers_are_refused_with_the_mend(data: Any) -> None:
    with pytest.raises(UsageError, match=r"no numbered items.*list\(dataset\).*\.dataset"):
        read(data)


@pytest.mark.kind("NaN or infinite pixels")
def test_the_file_of_a_spoilt_sample_is_named_through_what_wraps_it(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "a").mkdir(exist_ok=True)
        PICTURES[i].save(tmp_path / "a" / f"{i}.png")
    spoil = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), lambda x: x * torch.nan])
    folder = ImageFolder(str(tmp_path), transform=spoil)
    with pytest.raises(UsageError, match=r"sample 3 \(.*a/2\.png\) has NaN"):
        read(ConcatDataset([TensorDataset(IMAGES[:3], CLASSES[:3]), Subset(folder, [2])]))


@pytest.mark.kind("a random data set")
def test_a_data_set_that_is_random_is_noticed_and_may_be_kept_as_it_is_read() -> None:
    flip = v2.RandomHorizontalFlip()
    data = Given(lambda i: (flip(IMAGES[i]), label(i)))
    with pytest.raises(UsageError, match=r"another image whenever sample \d+ is read.*cache=True"):
        read(data)
    kept, again = read(data, cache=True), read(data, cache=True)
    first = kept.images.images(range(N))
    assert torch.equal(kept.images.images(range(N)), first)
    assert torch.equal(again.images.images(range(N)), first)
    assert not torch.equal(first, IMAGES)
    assert torch.equal(kept.training([3])[0][0], first[3])


@pytest.mark.kind("a random data set")
def test_random_labels_are_noticed() -> None:
    calls = iter(range(1000))
    with pytest.raises(UsageError, match="another label whenever"):
        read(Given(lambda i: (IMAGES[i], next(calls) // N % 3)))


@pytest.mark.kind("a random data set")
def test_reading_and_keeping_leaves_the_generators_as_they_were() -> None:
    torch.manual_seed(3)
    before, numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    read(Given(lambda i: (torch.rand(3, 4, 4), int(np.random.rand() > 2))), cache=True)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy).all()  # noqa: NPY002


def test_kept_images_are_the_very_numbers_that_were_read() -> None:
    for images in (IMAGES, torch.rand(N, 3, 5, 5, generator=seeded(4))):
        kept = MapStyle(TensorDataset(images, CLASSES))
        kept.read(cache=True)
        assert torch.equal(kept.images(range(N)), images)


def test_the_stamp_of_plain_data_is_what_it_was() -> None:
    found = read(TensorDataset(IMAGES, CLASSES))
    assert found.images.identity(found.labels.numbers) == "1fde1b0a84f69409"


@pytest.mark.kind("common torchvision sets")
def test_pictures_of_torchvision_train_and_are_explained_by_folds(tmp_path: Path) -> None:
    data = FakeData(size=18, image_size=(3, 10, 10), num_classes=3)

    def fit(module: nn.Module, training: Dataset, fold: int) -> None:
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        for x, y in DataLoader(training, batch_size=6):
            nn.functional.cross_entropy(module(x), y).backward()
            optimizer.step()

    summary = explain_folds(
        network, data, {"saliency": Saliency()}, k=2, root=tmp_path, scores={}, train=fit, checks=0, progress=False
    )
    assert summary.rows[0].estimates["mege"] is not None
    assert torch.equal(Ensemble(tmp_path).split.labels, torch.tensor([int(data[i][1]) for i in range(18)]))


@pytest.mark.kind("groups")
def test_groups_of_a_data_set_lie_in_one_fold_each_and_in_its_stamp(tmp_path: Path) -> None:
    data, patients = TensorDataset(IMAGES, CLASSES), [f"patient {i // 3}" for i in range(N)]

    def untrained(module: nn.Module, training: Dataset, fold: int) -> None:
        return None

    options = {"scores": {}, "train": untrained, "checks": 0, "progress": False, "k": 2}
    explain_folds(network, data, {"saliency": Saliency()}, root=tmp_path / "a", groups=patients, **options)
    explain_folds(network, data, {"saliency": Saliency()}, root=tmp_path / "b", **options)
    grouped, plain = (Ensemble(tmp_path / n) for n in "ab")
    folds = grouped.split.fold_of.view(-1, 3)
    assert bool((folds == folds[:, :1]).all())
    assert not bool((plain.split.fold_of.view(-1, 3) == plain.split.fold_of.view(-1, 3)[:, :1]).all())
    for groups, text in (
        (patients[:-1], "11 for 12 samples"),
        ([None] * N, "sample 0 has no value"),
        (["x"] * N, "1 groups"),
    ):
        with pytest.raises(UsageError, match=text):
            explain_folds(network, data, {"s": Saliency()}, root=tmp_path / "c", groups=groups, **options)
    with pytest.raises(UsageError, match="a trained model has none"):
        audit(network(), data, {"s": Saliency()}, tmp_path / "d", groups=patients)


@pytest.mark.kind("4 and more channels")
def test_what_cannot_use_five_channels_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    trained = []
    data = TensorDataset(torch.rand(N, 5, 10, 10, generator=seeded(2)), CLASSES)
    options = {
        "scores": {},
        "train": lambda *a: trained.append(a),
        "checks": 0,
        "progress": False,
        "k": 2,
        "root": tmp_path,
    }
    with pytest.raises(UsageError, match=r"images have 5 channels: lime cuts superpixels by colour.*segments\.Grid"):
        explain_folds(lambda: network(channels=5), data, {"lime": Lime()}, **options)
    with pytest.raises(UsageError, match=r"show must be one or three of the channels 0\.\.4"):
        explain_folds(lambda: network(channels=5), data, {"s": Saliency()}, show=[0, 1, 5], **options)
    assert not trained


@pytest.mark.kind("4 and more channels")
def test_five_channels_are_explained_and_drawn_in_the_channels_that_are_asked_for(tmp_path: Path) -> None:
    images = torch.rand(N, 5, 10, 10, generator=seeded(2))
    explain_model(
        network(channels=5), TensorDataset(images, CLASSES), {"saliency": Saliency()}, tmp_path, scores={"deletion": Deletion()},
        checks=0, progress=False, show=[4, 2, 0],
    )  # fmt: skip
    samples, drawn = Ensemble(tmp_path).kept_thumbnails
    assert torch.equal(drawn, (images[samples][:, [4, 2, 0]] * 255).round().byte())


@pytest.mark.kind("words and gaps as labels")
def test_words_are_the_names_of_the_classes_in_an_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Given(lambda i: (IMAGES[i], ["eel", "cat", "dog"][i % 3]))
    found = audit(network(), data, {"saliency": Saliency()}, tmp_path, scores={}, checks=0, progress=False)
    assert found.classes == ("cat", "dog", "eel")
    assert "cat = 0, dog = 1, eel = 2" in capsys.readouterr().out
