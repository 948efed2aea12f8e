"""The split, its probes and disagreements, the loaders' order, and every kind of source from tiny files."""

from __future__ import annotations

import gzip
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lit_xai.data import FoldData, Split
from lit_xai.data.folds import (
    Disagreements,
    EpochSampler,
    FoldDataset,
    ShareSampler,
    as_batch,
    noisy_labels,
)
from lit_xai.data.images import InMemory
from lit_xai.data.sources import digits as make_digits
from lit_xai.data.sources import fashion_mnist, folder_source, npz, pictures, read_idx
from lit_xai.data.split import stratified_subset
from lit_xai.errors import UsageError
from PIL import Image
from torch.utils.data import DataLoader

from conftest import seeded

LABELS = torch.arange(200) % 4


@pytest.fixture(scope="module")
def split() -> Split:
    return Split.make(LABELS, 5, seed=3)


# ---------------------------------------------------------------------------------------------------------------- split


def test_folds_are_disjoint_and_cover_everything(split):
    held = torch.cat([split.held_out(i) for i in range(5)])
    assert sorted(held.tolist()) == list(range(200))


def test_training_and_held_out_samples_are_complements(split):
    for i in range(5):
        assert sorted([*split.training(i).tolist(), *split.held_out(i).tolist()]) == list(range(200))


def test_every_fold_holds_every_class_in_proportion(split):
    for i in range(5):
        assert torch.bincount(split.label(split.held_out(i))).tolist() == [10] * 4


def test_split_repeats_with_its_seed_and_changes_with_another(split):
    assert torch.equal(Split.make(LABELS, 5, seed=3).fold_of, split.fold_of)
    assert not torch.equal(Split.make(LABELS, 5, seed=4).fold_of, split.fold_of)


def test_fold_and_label_of_a_sample_are_found_in_a_subset():
    split = Split.make(LABELS, 2, seed=0, subset=40)
    assert torch.equal(split.label(split.samples), LABELS[split.samples])
    for i in range(2):
        assert split.fold(split.held_out(i)).unique().tolist() == [i]


def test_subset_keeps_the_classes_in_proportion():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    chosen = stratified_subset(labels, 20, seed=1)
    assert torch.bincount(labels[chosen]).tolist() == [12, 6, 2]
    assert chosen.tolist() == sorted(set(chosen.tolist()))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.floats(0, 1))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_subset_has_exactly_the_size_asked_for(sizes, share):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    size = max(1, round(share * len(labels)))
    chosen = stratified_subset(labels, size, seed=0)
    assert len(chosen.unique()) == size
    exact = torch.tensor(sizes) * size / len(labels)
    assert bool(((torch.bincount(labels[chosen], minlength=len(sizes)) - exact).abs() < 1).all())


def test_one_fold_means_that_everything_is_held_out():
    split = Split.make(LABELS, 1, seed=0)
    assert split.held_out(0).tolist() == list(range(200))
    assert len(split.training(0)) == 0


def test_a_class_with_fewer_members_than_folds_is_refused():
    labels = torch.tensor([0] * 20 + [1] * 3)
    with pytest.raises(UsageError, match="class 1 has 3 members for 5 folds"):
        Split.make(labels, 5, seed=0)


@pytest.mark.parametrize("fold", [-1, 5])
def test_a_fold_that_does_not_exist_is_refused(split, fold):
    with pytest.raises(UsageError, match=r"folds are 0\.\.4"):
        split.held_out(fold)


@pytest.mark.parametrize("subset", [3, 201])
def test_a_subset_of_an_impossible_size_is_refused(subset):
    with pytest.raises(UsageError, match="train_subset"):
        Split.make(LABELS, 5, seed=0, subset=subset)


# --------------------------------------------------------------------------------------------------------------- probes


def test_probes_are_as_many_of_every_fold(split):
    probes = split.probes(7)
    assert len(probes.unique()) == 35
    assert split.fold(probes).tolist() == sorted([*range(5)] * 7)


def test_fewer_probes_are_among_more(split):
    assert set(split.probes(3).tolist()) < set(split.probes(8).tolist())


def test_all_samples_are_probes_without_a_number(split):
    assert sorted(split.probes(None).tolist()) == list(range(200))


def test_probes_are_the_same_for_every_predictor(digits):
    chosen = [FoldData(lambda: digits, fold=i, probes_per_fold=4).probes for i in (0, 3)]
    assert torch.equal(*chosen)


# ---------------------------------------------------------------------------------------------------------- label noise


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_label_noise_replaces_exactly_its_share_by_other_classes(split, share):
    noisy = noisy_labels(split, 4, share)
    assert int((noisy != split.labels).sum()) == round(share * 200)
    assert 0 <= int(noisy.min()) <= int(noisy.max()) < 4


def test_label_noise_is_nested_across_shares(split):
    few, many = noisy_labels(split, 4, 0.1), noisy_labels(split, 4, 0.3)
    wrong = few != split.labels
    assert torch.equal(few[wrong], many[wrong])


def test_label_noise_reaches_every_other_class():
    split = Split.make(torch.zeros(300, dtype=torch.long), 2, seed=0)
    assert torch.bincount(noisy_labels(split, 4, 1.0), minlength=4).tolist() == pytest.approx(
        [0, 100, 100, 100], abs=35
    )


def test_label_noise_belongs_to_the_sample_not_to_its_place():
    whole = Split.make(LABELS, 2, seed=0)
    part = Split.make(LABELS, 2, seed=0, subset=100)
    everywhere = noisy_labels(whole, 4, 1.0)[part.samples]
    assert torch.equal(noisy_labels(part, 4, 1.0), everywhere)


def test_label_noise_of_two_classes_flips_them():
    split = Split.make(torch.arange(40) % 2, 2, seed=0)
    assert torch.equal(noisy_labels(split, 2, 1.0), 1 - split.labels)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_label_noise_outside_the_unit_interval_is_refused(split, share):
    with pytest.raises(UsageError, match="label_noise"):
        noisy_labels(split, 4, share)


def test_label_noise_reaches_training_only(digits):
    data = FoldData(lambda: digits, folds=3, train_subset=120, label_noise=0.5, batch_size=40)
    split = data.split
    trained = data.train_dataloader().dataset
    share = float((trained.labels != digits.labels[trained.samples]).float().mean())
    assert 0.3 < share < 0.7
    assert torch.equal(data.val_dataloader().dataset.labels, digits.labels[split.held_out(0)])


# -------------------------------------------------------------------------------------------------------- disagreements


@pytest.fixture(scope="module")
def correct() -> torch.Tensor:
    return torch.rand(5, 200, generator=seeded(6)) < 0.85


def slow_disagreements(split: Split, correct: torch.Tensor) -> dict[int, set[int]]:
    """Sample -> the predictors concerned, by definition."""
    found = {}
    for x, i in enumerate(split.fold_of.tolist()):
        against = {j for j in range(5) if bool(correct[j, x]) != bool(correct[i, x])}
        if against:
            found[x] = against | {i}
    return found


def test_disagreements_are_found_as_defined(split, correct):
    found = Disagreements.find(split, correct, None)
    expected = slow_disagreements(split, correct)
    concerned = [{j for j in range(5) if row[j]} for row in found.concerned]
    assert dict(zip(found.samples.tolist(), concerned, strict=True)) == expected
    assert found.found == len(expected)
    assert found.weight.unique().tolist() == [1]


def test_capped_disagreements_are_some_of_each_fold_with_the_inverse_of_their_rate(split, correct):
    everything, capped = (Disagreements.find(split, correct, cap) for cap in (None, 6))
    assert set(capped.samples.tolist()) < set(everything.samples.tolist())
    total = torch.bincount(split.fold(everything.samples), minlength=5)
    fold = split.fold(capped.samples)
    assert int(total.min()) > 6  # otherwise the cap would not bind
    assert torch.bincount(fold).tolist() == [6] * 5
    assert torch.allclose(capped.weight, total[fold].double() / 6)
    assert capped.found == everything.found


def test_a_lower_cap_keeps_some_of_the_same_disagreements(split, correct):
    low, high = (set(Disagreements.find(split, correct, cap).samples.tolist()) for cap in (2, 5))
    assert low < high


def test_predictors_that_agree_have_no_disagreement(split):
    found = Disagreements.find(split, torch.ones(5, 200, dtype=torch.bool), None)
    assert (len(found.samples), found.concerned.shape, found.found) == (0, (0, 5), 0)


# -------------------------------------------------------------------------------------------------------------- loading


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    pixels, numbers = InMemory(torch.zeros(n, 1, 1, 1, dtype=torch.uint8)), torch.arange(n)
    sampler = EpochSampler(FoldDataset(pixels, numbers, numbers), batch_size, seed, rank, world, lambda: (epoch, 0))
    assert len(list(sampler)) == len(sampler)
    return list(sampler)


def epoch_sampler(n: int, batch_size: int, seed: int, epoch: int, rank: int, world: int) -> EpochSampler:
    """The sampler of n samples (their images are never read) in one epoch."""
    data = FoldDataset(InMemory(torch.zeros(n, 1, 1, 1, dtype=torch.uint8)), torch.arange(n), torch.zeros(n).long())
    return EpochSampler(data, batch_size, seed, rank, world, lambda: (epoch, 0))


@given(st.integers(1, 300), st.integers(1, 70), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_epoch_batches_are_disjoint_equal_and_leave_out_less_than_one_batch_a_rank(n, batch_size, world, epoch):
    ranks = [epoch_batches(n, batch_size, 0, epoch, rank, world) for rank in range(world)]
    batches = [batch for rank in ranks for batch in rank]
    seen = [i for batch in batches for i in batch]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(n))
    assert len({len(rank) for rank in ranks}) == 1
    assert len({len(batch) for batch in batches}) <= 1
    if n >= world:
        assert n - len(seen) < min(batch_size, n // world) * world


def test_epoch_order_is_a_function_of_seed_and_epoch():
    first, again, later, other = (epoch_batches(50, 7, s, e) for s, e in [(0, 0), (0, 0), (0, 1), (1, 0)])
    assert first == again
    assert first != later
    assert first != other


@given(st.integers(1, 300), st.integers(1, 70), st.integers(1, 5))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_shares_partition_the_samples_without_padding(n, batch_size, world):
    ranks = [ShareSampler(n, batch_size, rank, world) for rank in range(world)]
    seen = [i for rank in ranks for batch in rank for i in batch]
    assert sorted(seen) == list(range(n))
    assert [len(list(rank)) for rank in ranks] == [len(rank) for rank in ranks]


def noise(image: torch.Tensor) -> torch.Tensor:
    """An augmentation that draws from torch's global generator, as torchvision's do."""
    return image + torch.rand(())


def augmented(digits, samples: list[int], key: tuple[int, int]) -> torch.Tensor:
    indices = torch.tensor(samples)
    data = FoldDataset(digits.train, indices, digits.labels[indices], (noise,), key)
    return data.__getitems__(list(range(len(samples))))[0]


def test_augmentation_of_a_sample_does_not_depend_on_its_batch(digits):
    assert torch.equal(augmented(digits, [5, 9, 2], (0, 1))[1], augmented(digits, [9], (0, 1))[0])


@pytest.mark.parametrize("key", [(0, 2), (1, 1)], ids=["epoch", "seed"])
def test_augmentation_changes_with_epoch_and_seed(digits, key):
    assert not torch.equal(augmented(digits, [5], (0, 1)), augmented(digits, [5], key))


def test_augmentation_differs_between_samples(digits):
    shift = augmented(digits, [5, 9], (0, 1)) - digits.train.images([5, 9])
    assert not torch.allclose(shift[0], shift[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_every_epoch_augments_anew_in_any_process(digits, workers):
    numbers, now = torch.arange(10), [0]
    data = FoldDataset(digits.train, numbers, numbers, (noise,))
    sampler = EpochSampler(data, 10, 3, 0, 1, lambda: (now[0], 0))
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=as_batch, num_workers=workers)
    for now[0] in (0, 1, 0):
        ((images, order),) = loader
        assert torch.equal(images, augmented(digits, order.tolist(), (3, now[0])))


def test_augmentation_seeds_no_gpu(digits, monkeypatch):
    """Dropout on a GPU would draw anew from every image's seed; where there is none, the seed is kept for later, slowly."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("a GPU's generator was seeded"))
    augmented(digits, [5], (0, 1))


def test_augmentation_leaves_the_global_generator_alone(digits):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    augmented(digits, [5], (0, 1))
    assert torch.equal(torch.rand(1), expected)


def test_a_data_module_trains_without_v_i_and_validates_on_it(digits):
    data = FoldData(lambda: digits, fold=1, folds=3, train_subset=90, batch_size=20)
    trained = data.train_dataloader().dataset.samples
    validated = data.val_dataloader().dataset.samples
    assert torch.equal(validated, data.held_out)
    assert not set(trained.tolist()) & set(validated.tolist())
    assert len(trained) + len(validated) == 90


def test_a_data_module_gives_images_in_the_unit_interval_with_their_labels(digits):
    data = FoldData(lambda: digits, folds=3, train_subset=90, batch_size=20)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (20, 1, 16, 16)
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    assert labels.dtype == torch.long


def test_colour_is_the_mean_and_deviation_of_the_training_folds(digits):
    data = FoldData(lambda: digits, folds=3, train_subset=90)
    images = digits.train.images(data.split.training(0).tolist()).double()
    (mean,), (std,) = data.colour
    assert (mean, std) == pytest.approx((float(images.mean()), float(images.std(correction=0))), abs=1e-5)


def test_no_probes_at_all_are_refused(digits):
    with pytest.raises(UsageError, match="probes_per_fold"):
        FoldData(lambda: digits, probes_per_fold=0)


# -------------------------------------------------------------------------------------------------------------- sources


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(f): (f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.rglob("*"))}


@pytest.fixture
def unwritten(tmp_path):
    """Checks on the way out that nothing under the data root was written, given `watch(tmp_path)` on the way in."""
    before = {}

    def watch() -> None:
        before.update(contents(tmp_path))

    yield watch
    assert contents(tmp_path) == before


def test_digits_are_the_embedded_set(digits):
    assert (len(digits.train), digits.shape, digits.classes) == (1797, (1, 16, 16), tuple("0123456789"))
    assert torch.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_at_their_own_size_are_scikit_learns():
    from sklearn.datasets import load_digits

    images = make_digits(8).train.images(range(1797))[:, 0]
    assert np.allclose(images, load_digits().images / 16, atol=0.5 / 255 + 1e-6)


def test_identity_of_a_source_is_its_content(digits):
    assert make_digits(16).identity == digits.identity != make_digits(8).identity


def arrays(n: int = 6, channels: int | None = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (n, 5, 4) if channels is None else (n, 5, 4, channels)
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    return {"train_images": images, "train_labels": np.arange(n)[:, None] % 3}


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_npz_round_trip(tmp_path, unwritten, channels):
    content = arrays(channels=channels)
    np.savez(tmp_path / "set.npz", **content, test_images=content["train_images"][:2], test_labels=np.array([1, 2]))
    unwritten()
    source = npz(str(tmp_path / "set.npz"))
    pixels = content["train_images"].reshape(6, 5, 4, channels or 1).transpose(0, 3, 1, 2)
    assert np.allclose(source.train.images(range(6)), pixels / 255)
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (source.name, source.classes, source.shape) == ("set", ("0", "1", "2"), (channels or 1, 5, 4))
    assert (len(source.test), source.test_labels.tolist()) == (2, [1, 2])


def test_npz_without_a_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"data\.path="):
        npz(str(tmp_path / "nowhere.npz"))


def test_npz_names_the_keys_it_lacks(tmp_path):
    np.savez(tmp_path / "set.npz", train_images=arrays()["train_images"])
    with pytest.raises(UsageError, match="lacks train_labels"):
        npz(str(tmp_path / "set.npz"))


@pytest.mark.parametrize("keep", [0, 10, 200, 0.5, 0.9])
def test_npz_that_is_truncated_is_refused(tmp_path, keep):
    file = tmp_path / "set.npz"
    np.savez_compressed(file, **arrays())
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(UsageError):
        npz(str(file))


def test_npz_with_bytes_overwritten_is_refused(tmp_path):
    file = tmp_path / "set.npz"
    np.savez_compressed(file, **arrays(200))
    whole = bytearray(file.read_bytes())
    whole[1000:1100] = bytes(100)
    file.write_bytes(bytes(whole))
    with pytest.raises(UsageError):
        npz(str(file))


def test_npz_with_pickled_objects_is_refused_without_running_them(tmp_path):
    touched = tmp_path / "touched"

    class Touch:
        def __reduce__(self):
            return Path.touch, (touched,)

    content = arrays()
    content["train_labels"] = np.array([Touch()] * 6, dtype=object)
    np.savez(tmp_path / "set.npz", **content)
    with pytest.raises(UsageError, match="pickled"):
        npz(str(tmp_path / "set.npz"))
    assert not touched.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_images", np.zeros((6, 5, 4), dtype=np.float32)),
        ("train_images", np.zeros((6, 5), dtype=np.uint8)),
        ("train_images", np.zeros((5, 5, 4), dtype=np.uint8)),
        ("train_labels", np.array([0, 1, 2, 0, 1, -1])),
        ("train_labels", np.zeros(0, dtype=np.int64)),
    ],
    ids=["float images", "two dimensions", "fewer images", "negative label", "no labels"],
)
def test_npz_with_arrays_that_do_not_fit_is_refused(tmp_path, key, value):
    np.savez(tmp_path / "set.npz", **{**arrays(), key: value})
    with pytest.raises(UsageError):
        npz(str(tmp_path / "set.npz"))


def test_npz_whose_test_part_does_not_fit_is_refused(tmp_path):
    content = arrays()
    np.savez(tmp_path / "set.npz", **content, test_images=content["train_images"], test_labels=np.array([0, 1]))
    with pytest.raises(UsageError):
        npz(str(tmp_path / "set.npz"))


def idx(array: np.ndarray) -> bytes:
    return b"\x00\x00\x08" + bytes([array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_fashion(root: Path, n: int = 5) -> np.ndarray:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(n, dtype=np.uint8))))
    return images


def test_fashion_mnist_round_trip(tmp_path, unwritten):
    images = write_fashion(tmp_path)
    unwritten()
    source = fashion_mnist(str(tmp_path))
    assert np.allclose(source.train.images(range(5))[:, 0], images / 255)
    assert source.labels.tolist() == source.test_labels.tolist() == [0, 1, 2, 3, 4]
    assert source.shape == (1, 28, 28)


def test_fashion_mnist_that_is_not_there_says_where_it_looked(tmp_path):
    with pytest.raises(UsageError, match=r"data\.root="):
        fashion_mnist(str(tmp_path))


def test_an_unpacked_idx_file_is_read_too(tmp_path):
    (tmp_path / "x").write_bytes(idx(np.arange(6, dtype=np.uint8).reshape(2, 3)))
    assert read_idx(tmp_path / "x.gz").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: gzip.compress(good)[:-12],
        lambda good: gzip.compress(good[:-1]),
        lambda good: gzip.compress(good + b"x"),
        lambda good: gzip.compress(b"\x00\x00\x0d" + good[3:]),
        lambda good: gzip.compress(b""),
        lambda good: good,
        lambda good: b"",
    ],
    ids=["cut archive", "short body", "long body", "other type", "no content", "not an archive", "no file content"],
)
def test_a_damaged_idx_file_is_refused(tmp_path, damage):
    (tmp_path / "x.gz").write_bytes(damage(idx(np.zeros((3, 2), dtype=np.uint8))))
    with pytest.raises(UsageError, match="damaged"):
        read_idx(tmp_path / "x.gz")


def picture(file: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 9)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


def write_folder(root: Path) -> None:
    for part in ("train", "val"):
        for c, name in enumerate(["ant", "bee", "cat"]):
            for i in range(2):
                picture(root / part / name / f"{i}.png", (50 * c, 100, 200 - 10 * i))


small_folder = partial(folder_source, size=6, resize=8)


def test_folder_round_trip(tmp_path, unwritten):
    write_folder(tmp_path)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not a picture")
    unwritten()
    source = small_folder(tmp_path)
    assert (source.classes, source.labels.tolist(), source.shape) == (
        ("ant", "bee", "cat"),
        [0, 0, 1, 1, 2, 2],
        (3, 6, 6),
    )
    assert source.test_labels.tolist() == [0, 0, 1, 1, 2, 2]
    expected = torch.tensor([50.0, 100.0, 190.0]) / 255
    assert torch.allclose(source.train.images([3])[0], expected[:, None, None].expand(3, 6, 6), atol=1e-6)


def test_folder_without_train_and_val_is_read_as_it_is(tmp_path):
    for name in ("ant", "bee"):
        picture(tmp_path / name / "0.png", (1, 2, 3))
    source = small_folder(tmp_path)
    assert (source.classes, source.test) == (("ant", "bee"), None)


def test_folder_chooses_classes_by_seed(tmp_path):
    write_folder(tmp_path)
    chosen = {small_folder(tmp_path, classes=2, seed=s).classes for s in range(8)}
    assert len(chosen) > 1
    assert all(len(names) == 2 for names in chosen)
    assert small_folder(tmp_path, classes=2, seed=0).labels.tolist() == [0, 0, 1, 1]


def test_identity_of_a_folder_changes_with_its_files(tmp_path):
    write_folder(tmp_path)
    before = small_folder(tmp_path).identity
    assert small_folder(tmp_path).identity == before
    picture(tmp_path / "train" / "cat" / "new.png", (0, 0, 0))
    assert small_folder(tmp_path).identity != before


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "ant" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    source = small_folder(tmp_path)
    with pytest.raises(UsageError, match=r"0\.png cannot be decoded"):
        source.train.images([0])


def test_a_truncated_picture_is_named(tmp_path):
    file = tmp_path / "ant" / "0.png"
    file.parent.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UsageError, match="cannot be decoded"):
        small_folder(tmp_path).train.images([0])


def test_grey_pictures_are_refused_or_converted(tmp_path):
    picture(tmp_path / "ant" / "a.png", (1, 2, 3))
    Image.new("L", (9, 9), 128).save(tmp_path / "ant" / "b.png")
    with pytest.raises(UsageError, match=r"b\.png is grey-scale .*data\.grey=convert"):
        small_folder(tmp_path).train.images([0, 1])
    assert small_folder(tmp_path, grey="convert").train.images([0, 1]).shape == (2, 3, 6, 6)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"data\.root="):
        small_folder(tmp_path / "nowhere")


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no sub-folder with pictures"):
        small_folder(tmp_path)


def test_more_classes_than_there_are_is_refused(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(UsageError, match="4 classes are asked for"):
        small_folder(tmp_path, classes=4)


def test_pictures_round_trip(tmp_path, unwritten):
    for i in range(3):
        picture(tmp_path / f"{i}.jpg", (80, 80, 80))
    unwritten()
    source = pictures(str(tmp_path), size=6, resize=8)
    assert (len(source.train), source.labels.tolist(), source.labelled) == (3, [-1] * 3, False)
    assert torch.allclose(source.train.images([0]), torch.full((1, 3, 6, 6), 80 / 255), atol=0.01)


def test_pictures_cannot_be_trained_on(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png", (80, 80, 80))
    data = FoldData(lambda: pictures(str(tmp_path), size=6, resize=8), folds=1)
    with pytest.raises(UsageError, match="no labels to train on"):
        data.train_dataloader()


def test_a_folder_without_pictures_directly_inside_is_refused(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(UsageError, match="no pictures"):
        pictures(str(tmp_path))
