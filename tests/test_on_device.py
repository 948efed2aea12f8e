"""Training batches that are made and augmented as a whole, on the device that trains: the same as the loader's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lit_xai.data import augment, sources
from lit_xai.data.augment import AtOnce, first_values, one_by_one
from lit_xai.data.batches import EpochSampler, FoldDataset
from lit_xai.data.folds import FoldData
from lit_xai.data.images import InMemory, in_memory
from lit_xai.errors import UsageError
from lit_xai.models import Classifier, resnet18
from lit_xai.rng import stable_hash, stable_hashes
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms as v1
from torchvision.transforms import v2

FLIPS_AND_CROP = [v2.RandomCrop(16, padding=2), v2.RandomVerticalFlip(0.3), v1.RandomHorizontalFlip()]


@pytest.fixture(scope="module")
def coloured():
    """50 colour images of 16 x 16 whose pixels all differ from their neighbours'."""
    pixels = torch.randint(0, 256, (50, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return in_memory("noise", pixels, torch.arange(50) % 5, list("abcde"))


# ------------------------------------------------------------------------------------------------------------- numbers


def test_the_first_values_of_a_seed_are_those_of_torchs_generator():
    seeds = [0, 1, 5489, 2**32 + 5, 2**62 + 12345]
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    drawn = [[int(torch.randint(0, 2**24 + 1, (), generator=g)) for _ in range(227)] for g in generators]
    assert (first_values(seeds, 227) % (2**24 + 1)).tolist() == drawn


def test_hashes_with_a_common_beginning_are_the_hashes():
    assert stable_hashes((3, 0, "augment"), [0, 17, 60000]) == [stable_hash(3, 0, "augment", n) for n in (0, 17, 60000)]


@pytest.mark.parametrize("kinds", [v1, v2], ids=["v1", "v2"])
@pytest.mark.parametrize(
    "make",
    [
        lambda kinds: [kinds.RandomHorizontalFlip(0.3), kinds.RandomVerticalFlip()],
        lambda kinds: [kinds.RandomVerticalFlip(1.0), kinds.RandomCrop(16, padding=2), kinds.RandomHorizontalFlip()],
        lambda kinds: [kinds.RandomCrop((10, 16)), kinds.RandomHorizontalFlip()],
        lambda kinds: [kinds.RandomCrop((16, 10), padding=(0, 3), fill=0.5), kinds.RandomHorizontalFlip()],
        lambda kinds: [kinds.RandomCrop(16), kinds.RandomHorizontalFlip()],
        lambda kinds: [kinds.RandomCrop((18, 19), padding=[1, 2, 3, 4]), kinds.RandomCrop(9)],
    ],
    ids=["flips", "usual", "rows", "columns", "nothing", "twice"],
)
def test_a_batch_is_augmented_as_its_images_one_by_one(coloured, kinds, make):
    transforms, images = make(kinds), coloured.train.images(range(50))
    at_once = AtOnce.of(transforms, (3, 16, 16))
    expected = one_by_one(transforms, images, range(100, 150), (3, 7))
    assert torch.equal(at_once(images, at_once.values((3, 7), range(100, 150))), expected)


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomRotation(9),
        v2.RandomCrop(16, padding=2, padding_mode="reflect"),
        v2.RandomCrop(20, pad_if_needed=True),
        v1.RandomCrop(20),
        v2.RandomResizedCrop(16),
        type("Mine", (v2.RandomHorizontalFlip,), {})(),
    ],
    ids=repr,
)
def test_what_is_not_known_to_the_last_bit_stays_one_by_one(transform):
    assert AtOnce.of([v2.RandomHorizontalFlip(), transform], (3, 16, 16)) is None


def test_a_generator_that_draws_other_numbers_is_noticed(monkeypatch):
    monkeypatch.setattr(augment, "first_values", lambda seeds, number: first_values([s + 1 for s in seeds], number))
    assert AtOnce.of(FLIPS_AND_CROP, (3, 16, 16)) is None


def test_pixels_are_their_bytes_over_255():
    levels = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    assert torch.equal(InMemory(levels).images(torch.arange(256)), levels.float() / 255)


# -------------------------------------------------------------------------------------------------------------- batches


def attached(data: FoldData, rank: int = 0, world: int = 1, device: str = "cpu") -> FoldData:
    """The data of one process of a training on a device (of no device that must be there)."""
    place = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, current_epoch=0, strategy=place)  # type: ignore[assignment]
    return data


@pytest.mark.parametrize(
    ("rank", "world", "augment"),
    [
        (0, 1, FLIPS_AND_CROP),
        (1, 2, FLIPS_AND_CROP),
        (0, 1, []),
        (0, 1, [v1.RandomCrop(16)]),
        (0, 1, [v2.RandomRotation(9)]),
    ],
    ids=["alone", "one of two", "as they are", "nothing drawn", "one by one"],
)
def test_batches_are_those_of_the_loader_in_every_epoch_and_rank(coloured, rank, world, augment):
    def batches(on_device: bool | str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        data = FoldData(lambda: coloured, folds=2, batch_size=4, seed=5, augment=augment, on_device=on_device)
        loader, out = attached(data, rank, world).train_dataloader(), []
        for data.first_epoch, data.first_batch in ((0, 0), (3, 1)):
            out += list(loader)
        return out

    one_by_one, at_once = batches(False), batches("auto")
    assert len(one_by_one) == {1: 6 + 5, 2: 3 + 2}[world]
    for (images, labels), (same, also) in zip(one_by_one, at_once, strict=True):
        assert torch.equal(images, same)
        assert torch.equal(labels, also)


def test_one_image_is_what_its_batch_has(coloured):
    some = torch.arange(9)
    data = FoldDataset(coloured.train, some, some, FLIPS_AND_CROP, (2, 1), AtOnce.of(FLIPS_AND_CROP, (3, 16, 16)))
    images, _ = data.__getitems__([4, 8])
    data.key = (2, 2)
    assert not torch.equal(data[8][0], images[1])
    data.key = (2, 1)
    assert torch.equal(data[8][0], images[1])


def test_batches_that_are_made_in_one_go_need_no_processes(coloured):
    def processes(**options: object) -> int:
        return FoldData(lambda: coloured, folds=2, num_workers=2, **options).train_dataloader().num_workers

    assert processes(augment=FLIPS_AND_CROP) == 0
    assert processes(augment=FLIPS_AND_CROP, on_device=False) == 2
    assert processes(augment=[v2.RandomRotation(9)]) == 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"augment": [v2.RandomRotation(9)]},
            r"on_device=true cannot be: .*\(RandomRotation\) .* data\.on_device=auto",
        ),
        ({"on_device": "gpu"}, "must be auto, true or false, found 'gpu'"),
    ],
    ids=["transforms", "word"],
)
def test_what_cannot_live_on_a_device_is_refused_if_it_must(coloured, options, line):
    with pytest.raises(UsageError, match=line):
        FoldData(lambda: coloured, folds=2, **{"on_device": True, **options}).train_dataloader()


def test_files_cannot_live_on_a_device(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(3):
            v2.functional.to_pil_image(torch.full((3, 16, 16), 0.1 * i)).save(tmp_path / name / f"{i}.png")
    with pytest.raises(UsageError, match=r"on_device=true cannot be: the images of folder are read one by one"):
        FoldData(lambda: sources.folder_source(tmp_path, 16, 16), folds=2, on_device=True).train_dataloader()


# ---------------------------------------------------------------------------------------------------------------- a GPU


ELSEWHERE = torch.device("meta")  # stands for a GPU: its tensors have no values, and who asks for one fails


class Transfers(TorchDispatchMode):
    """Counts what is sent to another device."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in (*args, out) if isinstance(x, torch.Tensor)]
        self.number += len({x.device for x in tensors}) > 1
        return out


def test_on_a_gpu_batches_are_made_without_a_transfer_or_a_wait(coloured):
    numbers, at_once = torch.arange(50), AtOnce.of(FLIPS_AND_CROP, (3, 16, 16))
    values = at_once.values((0, 0), range(50))
    data = FoldDataset(coloured.train.on(ELSEWHERE), numbers, numbers, at_once=at_once, device=ELSEWHERE)
    data.drawn = data.key, values.to(ELSEWHERE)
    order = list(EpochSampler(data, 8, 0, 0, 1, lambda: (0, 0)))
    with Transfers() as transfers:
        batches = [data.__getitems__(rows) for rows in order]
        images, labels = batches[-1]
        assert transfers.number == 0
        torch.zeros(3).to(ELSEWHERE)
        assert transfers.number == 1
    assert len(batches) == 6
    assert images.shape == (8, 3, 16, 16)
    assert {images.device, labels.device} == {ELSEWHERE}


def test_images_are_put_on_a_gpu_once_if_they_take_a_tenth_of_it_at_most(coloured, monkeypatch, capsys):
    size = coloured.train.pixels.numel()
    monkeypatch.setattr(InMemory, "on", lambda self, device: InMemory(self.pixels.to(ELSEWHERE)))
    data = attached(FoldData(lambda: coloured, folds=2, augment=FLIPS_AND_CROP), device="cuda:0")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * size, 0))
    images, device = data.placed(coloured.train)
    assert (images.pixels.device, device) == (ELSEWHERE, torch.device("cuda", 0))
    assert data.placed(coloured.train)[0] is images
    data.there.clear()
    assert not capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 * size - 1, 0))
    assert data.placed(coloured.train) == data.placed(coloured.train) == (coloured.train, None)
    assert capsys.readouterr().out.count("from the loader: 0.0 GB of images are more than a tenth") == 1


@pytest.mark.parametrize("on_device", ["auto", True])
def test_a_gpu_without_room_is_no_end_unless_it_must_hold_them(coloured, monkeypatch, capsys, on_device):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 0))
    monkeypatch.setattr(InMemory, "on", full)
    data = attached(FoldData(lambda: coloured, folds=2, on_device=on_device), device="cuda:0")
    if on_device is True:
        with pytest.raises(UsageError, match=r"do not fit into cuda:0; set data\.on_device=auto"):
            data.train_dataloader()
    else:
        assert data.train_dataloader().dataset.device is None
        assert "from the loader: 0.0 GB of images do not fit into cuda:0" in capsys.readouterr().out


def test_a_training_on_a_gpu_says_which_transforms_keep_it_waiting(coloured, capsys):
    data = attached(FoldData(lambda: coloured, folds=2, augment=[v2.RandomRotation(9)]), device="cuda:0")
    assert data.train_dataloader().dataset.device is data.train_dataloader().dataset.device is None
    assert capsys.readouterr().out.count("from the loader: not all transforms of data.augment (RandomRotation)") == 1


def test_a_gpus_losses_are_looked_at_together_and_the_first_bad_one_is_named():
    module = Classifier(lambda **shape: resnet18(**shape, width=4), 1, 3, 16)
    module.trainer = SimpleNamespace(num_training_batches=100, checkpoint_callbacks=[], ckpt_path=None, current_epoch=2)
    for index in range(31):
        module.check_finite(torch.empty((), device=ELSEWHERE), index)
    module.losses = {5: torch.tensor(1.0), 6: torch.tensor(torch.inf), 7: torch.tensor(torch.nan)}
    with pytest.raises(UsageError, match="the loss became inf in epoch 2, step 206"):
        module.on_save_checkpoint({})
