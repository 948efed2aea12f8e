"""Feature-removal quality: hand examples, torchmetrics called directly, and what is refused."""

from __future__ import annotations

import pytest
import torch
from lit_xai.core import Filler
from lit_xai.errors import UsageError
from lit_xai.fillers import UniformNoise
from lit_xai.fillers.constant import Blur, Colour
from lit_xai.metrics.statistics import FEW
from lit_xai.quality.removal import BETAS, ms_ssim, removal, removal_table, scales_of
from lit_xai.report import tables
from lit_xai.rng import SampleRng
from torch import Tensor, nn
from torchmetrics.functional.image import (
    learned_perceptual_image_patch_similarity,
    multiscale_structural_similarity_index_measure,
)
from torchvision.models import AlexNet_Weights, alexnet

from conftest import seeded

WEIGHTS = AlexNet_Weights.DEFAULT.url.rpartition("/")[2]


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty checkpoint folder, and no way to fill it from elsewhere."""

    def download(*_, **__):
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def weights(hub) -> None:
    """AlexNet on disk, with random features; its classifier, which nobody reads, takes no room."""
    hub.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = alexnet().state_dict()
    torch.save({k: v if "features" in k else torch.zeros(1).expand(v.shape) for k, v in state.items()}, hub / WEIGHTS)


def pictures(n: int, side: int, channels: int = 3, seed: int = 1) -> Tensor:
    """Smooth random images in (0, 1)."""
    noise = torch.rand(n, channels, side // 4 + 1, side // 4 + 1, generator=seeded(seed))
    return nn.functional.interpolate(noise, size=(side, side), mode="bilinear") * 0.9 + 0.05


def squares(n: int, side: int) -> Tensor:
    """An object in the upper left of every image, larger from image to image."""
    masks = torch.zeros(n, side, side, dtype=torch.bool)
    for row in range(n):
        masks[row, : side // 2, : side // 4 + row] = True
    return masks


def reader(row: int, column: int):
    """A model that calls an image bright (class 1) by one pixel."""

    def model(x: Tensor) -> Tensor:
        light = x[:, :, row, column].mean(1)
        return torch.stack([0.5 - light, light - 0.5], 1)

    return model


# -------------------------------------------------------------------------------------------------------- hand examples


@pytest.mark.parametrize(
    ("pixel", "fill", "correct"),
    [((2, 1), 0.0, False), ((2, 1), 0.8, True), ((15, 15), 0.0, True)],
    ids=["object removed", "bright filler", "another pixel"],
)
def test_accuracy_of_a_model_that_reads_one_pixel(pixel, fill, correct):
    images, masks = torch.full((2, 3, 16, 16), 0.9), squares(2, 16)
    result = removal(reader(*pixel), images, masks, torch.ones(2, dtype=torch.long), Colour(fill))
    assert result.correct.tolist() == [correct] * 2


def test_the_share_is_that_of_the_pixels_that_changed():
    images, masks = pictures(3, 16), squares(3, 16)
    images[1, :, 0, :2] = 0.0  # black already
    images[2, 0, 0, :2] = 0.0  # black in one channel only
    result = removal(reader(0, 0), images, masks, torch.zeros(3, dtype=torch.long), Colour(0.0))
    assert result.share.tolist() == pytest.approx([8 * 4 / 256, (8 * 5 - 2) / 256, 8 * 6 / 256])


def test_the_real_row_is_the_images_themselves():
    images, masks, labels = pictures(4, 32), squares(4, 32), torch.tensor([0, 1, 0, 1])
    model = reader(2, 1)
    table = removal_table(model, images, masks, labels, {"black": Colour(0.0), "blur": Blur()})
    assert list(table) == ["real", "black", "blur"]
    real = table["real"]
    assert real["accuracy"].value == float((model(images).argmax(1) == labels).float().mean())
    assert (real["ms_ssim"].value, real["share"].value) == (pytest.approx(1, abs=1e-6), 0)
    assert table["black"]["ms_ssim"].value < table["blur"]["ms_ssim"].value < 1


def test_the_table_holds_the_means_and_intervals_of_each_removal():
    images, masks, labels = pictures(10, 32), squares(10, 32), torch.arange(10) % 2
    rng, fillers = SampleRng(3, (9, 4, 7, 1, 0, 2, 3, 5, 6, 8)), {"noise": UniformNoise(), "grey": Colour(0.5)}
    table = removal_table(reader(2, 1), images, masks, labels, fillers, rng)
    for name, filler in fillers.items():
        alone = removal(reader(2, 1), images, masks, labels, filler, rng)
        row = table[name]
        assert row["accuracy"].value == pytest.approx(float(alone.correct.float().mean()))
        assert row["accuracy"].low < row["accuracy"].value < row["accuracy"].high  # Wilson
        assert row["ms_ssim"].value == pytest.approx(float(alone.ms_ssim.mean()), abs=1e-6)
        assert row["ms_ssim"].low < row["ms_ssim"].value < row["ms_ssim"].high
        assert row["share"].value == pytest.approx(float(masks.float().mean()))


def test_removal_does_not_depend_on_the_batch():
    images, masks, labels = pictures(5, 32), squares(5, 32), torch.tensor([0, 1, 0, 1, 0])
    rng = SampleRng(3, (9, 4, 7, 1, 0))
    whole = removal(reader(2, 1), images, masks, labels, UniformNoise(), rng)
    parts = removal(reader(2, 1), images, masks, labels, UniformNoise(), rng, max_batch=2)
    assert torch.equal(whole.correct, parts.correct)
    assert torch.equal(whole.share, parts.share)
    assert torch.allclose(whole.ms_ssim, parts.ms_ssim, atol=1e-6)


def test_the_model_is_evaluated_and_its_mode_restored():
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 2), nn.Dropout(0.9)).train()
    images, masks, labels = pictures(8, 16), squares(8, 16), torch.zeros(8, dtype=torch.long)
    first, again = (removal(model, images, masks, labels, Colour(0.0)).correct for _ in range(2))
    assert torch.equal(first, again)
    assert all(m.training for m in model.modules())


# -------------------------------------------------------------------------------------------------------------- MS-SSIM


def test_ms_ssim_equals_torchmetrics_on_five_scales_at_224_pixels():
    images, masks = pictures(2, 224), squares(2, 224)
    result = removal(reader(0, 0), images, masks, torch.zeros(2, dtype=torch.long), Colour(0.0))
    filled = torch.where(masks[:, None], 0.0, images)
    expected = multiscale_structural_similarity_index_measure(filled, images, data_range=1.0, reduction="none")
    assert result.scales == 5
    assert torch.allclose(result.ms_ssim, expected, atol=1e-6)
    assert bool((result.ms_ssim < 0.95).all())


def test_a_smaller_image_takes_fewer_scales_and_says_so():
    images, masks, labels = pictures(2, 64), squares(2, 64), torch.zeros(2, dtype=torch.long)
    result = removal(reader(0, 0), images, masks, labels, Colour(0.0))
    assert result.scales == 3
    betas = (0.0448 / 0.6305, 0.2856 / 0.6305, 0.3001 / 0.6305)
    filled = torch.where(masks[:, None], 0.0, images)
    expected = multiscale_structural_similarity_index_measure(
        filled, images, data_range=1.0, betas=betas, reduction="none"
    )
    assert torch.allclose(result.ms_ssim, expected, atol=1e-6)
    table = removal_table(reader(0, 0), images, masks, labels, {"black": Colour(0.0)})
    assert [row["ms_ssim"].reason for row in table.values()] == [f"{FEW}; 3 of 5 scales"] * 2


@pytest.mark.parametrize("side", [5, 8, 10, 11, 20, 21, 22, 28, 43, 44, 81, 98, 99, 161, 175, 176, 224])
def test_every_size_has_an_ms_ssim(side):
    images = torch.rand(2, 1, side, side + 3, generator=seeded(1))
    same, other = ms_ssim(images, images), ms_ssim(images, images.flip(0))
    assert same.tolist() == pytest.approx([1, 1], abs=1e-5)
    assert bool(((other >= 0) & (other < 0.9)).all())


def test_the_number_of_scales_follows_the_window():
    sides = {8: 1, 11: 1, 28: 2, 32: 2, 44: 3, 64: 3, 99: 4, 128: 4, 176: 5, 224: 5}
    assert {side: scales_of(side) for side in sides} == sides
    assert len(BETAS) == 5


# ---------------------------------------------------------------------------------------------------------------- LPIPS


def test_without_weights_the_lpips_column_names_the_missing_file():
    images, masks, labels = pictures(2, 32), squares(2, 32), torch.zeros(2, dtype=torch.long)
    result = removal(reader(0, 0), images, masks, labels, Colour(0.0))
    assert result.lpips is None
    assert result.lpips_missing == f"weights not on disk: {WEIGHTS}"
    table = removal_table(reader(0, 0), images, masks, labels, {"black": Colour(0.0)})
    assert [row["lpips"].reason for row in table.values()] == [result.lpips_missing] * 2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.usefixtures("weights")
def test_lpips_equals_torchmetrics(channels):
    images, masks, labels = pictures(3, 64, channels), squares(3, 64), torch.zeros(3, dtype=torch.long)
    result = removal(reader(0, 0), images, masks, labels, Colour(0.0), max_batch=2)
    filled = torch.where(masks[:, None], 0.0, images)
    a, b = (x.expand(-1, 3, -1, -1) for x in (images, filled))
    expected = learned_perceptual_image_patch_similarity(a, b, "alex", reduction="none", normalize=True)
    assert result.lpips is not None
    assert torch.allclose(result.lpips, expected.detach(), atol=1e-6)
    assert bool((result.lpips > 0).all())
    assert result.lpips_missing == ""
    table = removal_table(reader(0, 0), images, masks, labels, {"black": Colour(0.0)})
    assert table["real"]["lpips"].value == pytest.approx(0, abs=1e-6)
    assert table["black"]["lpips"].value == pytest.approx(float(result.lpips.mean()), abs=1e-6)


@pytest.mark.usefixtures("weights")
def test_lpips_takes_the_smallest_image_that_alexnet_can_read():
    masks, labels = squares(1, 31), torch.zeros(1, dtype=torch.long)
    assert removal(reader(0, 0), pictures(1, 31), masks, labels, Colour(0.0)).lpips is not None


@pytest.mark.parametrize(("side", "channels", "why"), [(30, 3, "31 pixels"), (32, 2, "1 or 3 channels")])
@pytest.mark.usefixtures("weights")
def test_images_that_alexnet_cannot_read_have_no_lpips(side, channels, why):
    images, masks = pictures(1, side, channels), squares(1, side)
    result = removal(reader(0, 0), images, masks, torch.zeros(1, dtype=torch.long), Colour(0.0))
    assert result.lpips is None
    assert why in result.lpips_missing


# ----------------------------------------------------------------------------------------------------------------- rows


def test_a_file_has_every_number_and_why_one_is_missing():
    images, masks, labels = pictures(10, 64), squares(10, 64), torch.arange(10) % 2
    table = removal_table(reader(2, 1), images, masks, labels, {"black": Colour(0.0)})
    columns, rows = tables.removal(table).file()
    real, black = (dict(zip(columns, row, strict=True)) for row in rows)
    assert [real["filler"], black["filler"]] == ["real", "black"]
    accuracy = table["black"]["accuracy"]
    found = [black[c] for c in ("accuracy", "accuracy_low", "accuracy_high")]
    assert found == [accuracy.value, accuracy.low, accuracy.high]
    assert black["ms_ssim_low"] <= black["ms_ssim"] <= black["ms_ssim_high"]
    assert real["lpips"] == f"weights not on disk: {WEIGHTS}"
    assert (real["share"], real["note"]) == (0, "MS-SSIM: 3 of 5 scales")


@pytest.mark.usefixtures("weights")
def test_a_file_holds_the_lpips_where_there_is_one():
    images, masks, labels = pictures(2, 32), squares(2, 32), torch.tensor([0, 1])
    table = removal_table(reader(2, 1), images, masks, labels, {"black": Colour(0.0)})
    columns, rows = tables.removal(table).file()
    assert [row[columns.index("lpips")] for row in rows] == [row["lpips"].value for row in table.values()]


# -------------------------------------------------------------------------------------------------------------- refused


class Flat(Filler):
    """A filler that forgets the masks and the draws."""

    def __call__(self, images, keep, rng, draws=1, segments=None):
        return images


def test_a_filler_of_another_shape_is_named():
    args = reader(0, 0), pictures(2, 16), squares(2, 16), torch.zeros(2, dtype=torch.long)
    shapes = r"must return shape \(2, 1, 1, 3, 16, 16\), found \(2, 3, 16, 16\)"
    with pytest.raises(UsageError, match=f"filler Flat {shapes}"):
        removal(*args, Flat())
    with pytest.raises(UsageError, match=f"filler mine {shapes}"):
        removal_table(*args, {"black": Colour(0.0), "mine": Flat()})


@pytest.mark.parametrize(("value", "what"), [(False, "empty"), (True, "full")])
def test_a_mask_without_object_or_without_surroundings_is_named(value, what):
    images, masks, labels = pictures(3, 16), squares(3, 16), torch.zeros(3, dtype=torch.long)
    masks[1] = value
    message = rf"row 1 \(sample 40\) is {what}"
    rng = SampleRng(0, (30, 40, 50))
    with pytest.raises(UsageError, match=message):
        removal(reader(0, 0), images, masks, labels, Colour(0.0), rng)
    with pytest.raises(UsageError, match=message):
        removal_table(reader(0, 0), images, masks, labels, {"black": Colour(0.0)}, rng)


@pytest.mark.parametrize("masks", [squares(2, 12), squares(3, 16), squares(2, 16).to(torch.uint8)], ids=str)
def test_masks_that_are_not_the_images_are_refused(masks, unchecked):
    with pytest.raises(UsageError, match=r"must be boolean \(2, 16, 16\)"):
        removal(reader(0, 0), pictures(2, 16), masks, torch.zeros(2, dtype=torch.long), Colour(0.0))


def test_real_is_not_a_fillers_name():
    args = pictures(2, 16), squares(2, 16), torch.zeros(2, dtype=torch.long)
    with pytest.raises(UsageError, match="named 'real'"):
        removal_table(reader(0, 0), *args, {"real": Colour(0.0)})
