"""Folders, archives, groups and paths as people have them: what is read, what is said of the rest, and what is refused in one line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lit_xai.cli.command import quoted
from lit_xai.cli.compose import CommandError, compose
from lit_xai.data import FoldData, Source, Split, groups
from lit_xai.data.archives import MEDMNIST, layout
from lit_xai.data.images import in_memory, seen
from lit_xai.data.sources import folder_source, medmnist, npz, pictures
from lit_xai.data.truth import shape_of
from lit_xai.errors import UsageError
from lit_xai.report import draw
from lit_xai.report.runs import artifact_name, cleaned, project_name, tags_of
from lit_xai.store.fold import FoldStore
from PIL import Image
from torch import Tensor

from test_commands import run

SIDE = {"size": 8, "resize": 8}
FORMATS = {
    "a.ppm": "PPM", "b.JPG": "JPEG", "c.jfif": "JPEG", "d.gif": "GIF", "e.tif": "TIFF", "f.TIFF": "TIFF", "g.webp": "WEBP",
    "h.bmp": "BMP", "i.pgm": "PPM", "j.jpeg": "JPEG", "k.PNG": "PNG",
}  # fmt: skip


def coloured(width: int = 12, height: int = 10) -> Image.Image:
    """Red on the left, green on the right, a blue row at the top."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 1] = 250
    pixels[:2] = (0, 0, 250)
    return Image.fromarray(pixels)


def saved(file: Path, kind: str = "PNG", image: Image.Image | None = None, **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    (image or coloured()).save(file, kind, **options)
    return file


def classes_of(root: Path, names: Mapping[str, int]) -> Path:
    for name, number in names.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            saved(root / name / f"{i}.png")
    return root


# -------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.kind("formats of pictures")
def test_every_format_is_read_hidden_files_are_not_and_the_rest_is_counted_and_named(tmp_path: Path) -> None:
    for name, kind in FORMATS.items():
        saved(tmp_path / "x" / name, kind)
    for name in ("._b.JPG", ".hidden.png", "notes.txt", "photo.heic"):
        (tmp_path / "x" / name).write_bytes(b"no picture")
    saved(tmp_path / "x" / "deeper" / "l.png")
    source = folder_source(tmp_path, **SIDE)
    assert len(source.train) == len(FORMATS) + 1
    assert source.train.images(range(len(source.train))).shape == (len(FORMATS) + 1, 3, 8, 8)
    (note,) = source.notes
    assert note == f"2 files in {tmp_path} are no pictures that are read here, and left out: x/notes.txt, x/photo.heic"


@pytest.mark.kind("formats of pictures")
@pytest.mark.parametrize("mode", ["P", "CMYK", "RGBA"])
def test_opaque_pictures_of_other_modes_are_read_as_colour(tmp_path: Path, mode: str) -> None:
    saved(tmp_path / "x.tif", "TIFF", coloured().quantize(8) if mode == "P" else coloured().convert(mode))
    found = pictures(str(tmp_path), **SIDE).train.images([0])[0]
    wanted = pictures(str(saved(tmp_path / "y" / "x.png").parent), **SIDE).train.images([0])[0]
    assert float((found - wanted).abs().max()) < 0.06


def transparent() -> Image.Image:
    image = coloured().convert("P")
    image.info["transparency"] = image.getpixel((0, 0))
    return image


@pytest.mark.kind("formats of pictures")
@pytest.mark.parametrize(
    ("image", "options", "text"),
    [
        (Image.fromarray(np.full((9, 9), 4000, dtype=np.uint16)), {}, "more than 8 bits"),
        (transparent(), {}, "has transparent pixels"),
        (Image.new("LA", (9, 9), (9, 200)), {}, "has transparent pixels"),
        (Image.new("L", (9, 9)), {}, "grey-scale among colour pictures"),
    ],
    ids=["sixteen bits", "a palette with transparency", "grey with alpha", "grey"],
)
def test_a_picture_that_cannot_be_read_rightly_is_refused_by_its_name(tmp_path: Path, image, options, text) -> None:
    file = saved(tmp_path / "x.png", "PNG", image, **options)
    with pytest.raises(UsageError, match=text) as found:
        pictures(str(tmp_path), **SIDE).train.images([0])
    assert str(file) in str(found.value)


@pytest.mark.kind("formats of pictures")
@pytest.mark.parametrize(("colour", "value"), [("white", 1.0), ("black", 0.0)])
def test_transparent_pixels_lie_on_the_background_that_is_asked_for(tmp_path: Path, colour: str, value: float) -> None:
    half = coloured().convert("RGBA")
    half.paste((250, 0, 0, 0), (0, 0, 6, 10))
    saved(tmp_path / "x.png", "PNG", half)
    x = pictures(str(tmp_path), 10, 10, transparent=colour).train.images([0])[0]
    assert float((x[:, :, :4] - value).abs().max()) < 0.01
    assert float((x[1, 3:, 7:] - 250 / 255).abs().max()) < 0.01


@pytest.mark.kind("formats of pictures")
def test_a_bomb_is_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(UsageError, match=r"more pixels than is safe to decode \(over 100\)") as found:
        pictures(str(tmp_path), **SIDE).train.images([0])
    assert str(file) in str(found.value)


@pytest.mark.kind("formats of pictures")
def test_names_of_files_need_not_be_utf8(tmp_path: Path) -> None:
    for name in (b"K\xe4fer", b"M\xfcll"):
        folder = os.fsencode(tmp_path) + b"/" + name
        os.mkdir(folder)
        saved(Path(os.fsdecode(folder + b"/f\xfcr.png")))
    source = folder_source(tmp_path, **SIDE)
    assert source.classes == ("Käfer", "Müll")
    assert len(source.train.images([0, 1])) == 2


# --------------------------------------------------------------------------------------------------------- orientation


def turned(file: Path, how: int, kind: str = "JPEG") -> Path:
    """The file whose pixels are turned so that its EXIF orientation puts them upright again."""
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[how]
    exif = Image.Exif()
    exif[0x0112] = how
    image = coloured(24, 16)
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    return saved(file, kind, image if back is None else image.transpose(back), exif=exif, **options)


@pytest.mark.kind("EXIF orientation")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("how", range(1, 9))
def test_pictures_are_read_upright(tmp_path: Path, how: int, kind: str) -> None:
    file = turned(tmp_path / f"x.{kind.lower()}", how, kind)
    x = pictures(str(tmp_path), size=16, resize=16).train.images([0])[0]
    assert shape_of(file) == (16, 24)
    assert float(x[2, 0].min()) > 0.8 > 0.2 > float(x[2, 4:].max())  # blue above
    assert float(x[0, 4:, :6].min()) > 0.8 > 0.2 > float(x[0, 4:, 10:].max())  # red on the left


@pytest.mark.kind("EXIF orientation")
@pytest.mark.parametrize("given_as", ["masks", "boxes"])
def test_masks_and_boxes_are_as_people_see_the_picture(tmp_path: Path, given_as: str) -> None:
    turned(tmp_path / "x.jpeg", 6)
    left = np.zeros((16, 24), dtype=np.uint8)
    left[:, :12] = 255
    if given_as == "masks":
        saved(tmp_path / "masks" / "x.png", "PNG", Image.fromarray(left))
    else:
        (tmp_path / "boxes.csv").write_text("file,x,y,width,height\nx.jpeg,0,0,12,16\n")
    source = pictures(str(tmp_path), size=16, resize=16)
    assert source.truth is not None
    (mask,) = source.truth.masks("object", [0])
    red = source.train.images([0])[0, 0] > 0.5
    assert torch.equal(mask[4:], red[4:])


@pytest.mark.kind("EXIF orientation")
def test_results_of_a_picture_that_was_read_sideways_are_not_taken_for_those_of_the_upright_one(tmp_path: Path) -> None:
    stamps = []
    for how in (1, 6):
        file = turned(tmp_path / "x.jpeg", how)
        file.write_bytes(file.read_bytes().ljust(5000, b"\0"))  # of one length
        stamps.append(pictures(str(tmp_path), **SIDE).identity)
    assert stamps[0] != stamps[1]


# -------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.kind("class folders")
def test_an_empty_class_keeps_its_number_and_test_pictures_of_unknown_classes_are_counted(tmp_path: Path) -> None:
    classes_of(tmp_path / "train", {"a": 3, "b": 0, "c": 3})
    classes_of(tmp_path / "val", {"b": 2, "c": 1, "d": 4})
    source = folder_source(tmp_path, **SIDE)
    assert source.classes == ("a", "b", "c")
    assert source.labels.tolist() == [0] * 3 + [2] * 3
    assert source.test_labels is not None
    assert source.test_labels.tolist() == [1, 1, 2]
    text = "; ".join(source.notes)
    for part in (
        "no pictures in",
        "of 1 of 3 classes: b",
        "4 test pictures are left out",
        "(d)",
        "no test pictures",
        "classes: a",
    ):
        assert part in text


@pytest.mark.kind("class folders")
@pytest.mark.parametrize(
    ("folders", "text"),
    [
        (["train/a", "valid/a", "test/a", "extra/a"], "train/ and valid/ is read and extra/, test/ is not"),
        (["Training/a", "Validation/a"], ""),
        (["a", "notes"], "notes/ in .*: no pictures, no class"),
        (["a", "checkpoints/mine/fold=0"], "checkpoints/ in .*: no pictures, no class"),
    ],
)
def test_what_lies_beside_the_classes_is_said(tmp_path: Path, folders: Sequence[str], text: str) -> None:
    for folder in folders:
        if folder == "notes":
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "x.txt").write_text("x")
        else:
            classes_of(tmp_path, {folder: 2})
    source = folder_source(tmp_path, **SIDE)
    assert source.classes == ("a",)
    assert re.search(text, "; ".join(source.notes))


@pytest.mark.kind("class folders")
def test_pictures_outside_the_classes_are_counted_and_a_set_without_training_is_refused(tmp_path: Path) -> None:
    classes_of(tmp_path / "train", {"a": 2})
    saved(tmp_path / "train" / "loose.png")
    assert any(n.startswith("1 pictures in") for n in folder_source(tmp_path, **SIDE).notes)
    classes_of(tmp_path / "other" / "val", {"a": 2})
    with pytest.raises(UsageError, match="has val and no train/"):
        folder_source(tmp_path / "other", **SIDE)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert folder_source(classes_of(tmp_path, {"bus": 2, "train": 2}), **SIDE).classes == ("bus", "train")


# ------------------------------------------------------------------------------------------------------------- archives


def archive(file: Path, **arrays: Any) -> str:
    n = len(arrays.get("train_images", np.zeros(6)))
    arrays = {"train_images": np.zeros((n, 8, 8), np.uint8), "train_labels": np.arange(n) % 2, **arrays}
    np.savez(file, **arrays)
    return str(file)


def bytes_of(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, *shape), dtype=np.uint8)


@pytest.mark.kind("archives")
@pytest.mark.parametrize(
    ("shape", "channels", "axis"),
    [((9, 9), 1, None), ((9, 9, 3), 3, -1), ((3, 9, 9), 3, 1), ((4, 9, 9), 4, 1), ((9, 9, 4), 4, -1), ((20, 20, 13), 13, -1), ((13, 20, 20), 13, 1)],
)  # fmt: skip
def test_channels_are_found_where_they_are(tmp_path: Path, shape, channels, axis) -> None:
    raw = bytes_of(*shape)
    source = npz(archive(tmp_path / "x.npz", train_images=raw))
    wanted = raw[:, None] if axis is None else np.moveaxis(raw, axis, 1)
    assert source.shape[0] == channels
    assert torch.equal(source.train.images(range(6)), torch.from_numpy(wanted.copy()).float() / 255)


ODD = {
    "volumes": ({"train_images": bytes_of(9, 9, 9)}, r"volumes or films of 9 x 9 x 9"),
    "films": ({"train_images": bytes_of(4, 9, 9, 3)}, "volumes or films of 4 x 9 x 9 x 3"),
    "slices": ({"train_images": bytes_of(28, 40, 40)}, r"volumes.*data\.channels=first \(or last\) that 28"),
    "fractions": ({"train_images": np.full((6, 8, 8), np.nan)}, "float64.*sample 0 of them has NaN.*multiply values"),
    "several labels": ({"train_labels": np.ones((6, 14), int)}, r"shape \(6, 14\) are several labels an image"),
    "float labels": ({"train_labels": np.linspace(0, 1, 6)}, "train_labels are float64, and classes are whole numbers or words"),
    "a label for none": ({"train_labels": np.array([0, 1, 2, 0, 1, -1])}, "has the label -1 beside others"),
    "images without labels": ({"val_images": bytes_of(8, 8)}, "images and no val_labels"),
    "words and numbers": ({"test_images": bytes_of(8, 8), "test_labels": np.array(list("abcdef"))}, "words as labels in one part"),
}  # fmt: skip


@pytest.mark.kind("archives")
@pytest.mark.parametrize("case", ODD)
def test_arrays_that_are_no_labelled_pictures_are_refused_in_a_line_that_says_what_they_are(
    tmp_path: Path, case
) -> None:
    arrays, text = ODD[case]
    with pytest.raises(UsageError, match=text):
        npz(archive(tmp_path / "x.npz", **arrays))


@pytest.mark.kind("archives")
@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (np.array(["dog", "cat"] * 3), [1, 0] * 3, ("cat", "dog")),
        (np.array([b"dog", b"cat"] * 3), [1, 0] * 3, ("cat", "dog")),
        (np.array([10, 20] * 3), [0, 1] * 3, ("10", "20")),
        (np.array([[-1], [1]] * 3), [0, 1] * 3, ("-1", "1")),
        (np.eye(3, dtype=int)[[2, 0, 1, 2, 0, 1]], [2, 0, 1] * 2, ("0", "1", "2")),
        (np.array([True, False] * 3), [1, 0] * 3, ("0", "1")),
        (np.array([0, 2] * 3), [0, 2] * 3, ("0", "1", "2")),  # a class of which there is none
        (np.array([[1], [0]] * 3, np.uint8), [1, 0] * 3, ("0", "1")),  # as MedMNIST ships them
    ],
)
def test_labels_of_an_archive_are_numbered(tmp_path: Path, labels, numbers, names) -> None:
    source = npz(archive(tmp_path / "x.npz", train_labels=labels))
    assert (source.labels.tolist(), source.classes) == (numbers, names)


@pytest.mark.kind("archives")
def test_where_channels_are_is_nobodys_guess() -> None:
    assert [layout(*s) for s in ((9, 9, 3), (3, 9, 9), (9, 9, 9), (28, 64, 64), (64, 64, 28), (5, 64, 64))] == [
        "last", "first", None, None, None, "first",
    ]  # fmt: skip


@pytest.mark.kind("MedMNIST by name")
def test_a_set_of_medmnist_is_found_by_name_and_size_with_its_classes_and_its_validation_images(tmp_path: Path) -> None:
    part = {"images": bytes_of(8, 8, 3), "labels": np.arange(6)[:, None] % 4}
    arrays = {f"{p}_{k}": v for p in ("train", "val", "test") for k, v in part.items()}
    for name in ("octmnist", "octmnist_64"):
        archive(tmp_path / f"{name}.npz", **arrays)
    whole = medmnist("octmnist", root=str(tmp_path))
    assert (whole.name, len(whole.train), whole.classes[2]) == ("octmnist", 12, "drusen")
    assert (
        medmnist("OCTMNIST_64", root=str(tmp_path)).name
        == medmnist("octmnist", str(tmp_path), 64).name
        == "octmnist_64"
    )
    assert whole.test is not None
    assert len(whole.test) == 6
    tested = medmnist("octmnist", path=str(tmp_path / "octmnist.npz"), val="test").test
    assert tested is not None
    assert len(tested) == 12
    assert npz(str(tmp_path / "octmnist.npz")).notes[0].startswith("the 6 val_images of")
    with pytest.raises(UsageError, match=r"pathmnist is not at .*pathmnist\.npz"):
        medmnist("pathmnist", root=str(tmp_path))
    assert {len(names) for names in MEDMNIST.values()} == {9, 7, 4, 2, 5, 8, 11}


@pytest.mark.kind("MedMNIST by name")
def test_a_command_trains_on_a_set_of_medmnist_with_its_groups(tmp_path: Path) -> None:
    part = {"images": bytes_of(8, 8), "labels": np.arange(6)[:, None] % 2, "patient": np.arange(6) // 2}
    archive(tmp_path / "breastmnist_64.npz", **{f"{p}_{k}": v for p in ("train", "val") for k, v in part.items()})
    small = ["data=medmnist", "data.set=breastmnist_64", f"data.root={tmp_path}", "data.groups=patient", "data.folds=2"]
    small += ["model.network.width=2", "trainer.max_epochs=1", "explain=false", "logger=none", "progress=false"]
    run("train", tmp_path, small=small)
    split = FoldStore(tmp_path / "breastmnist_64-resnet18" / "fold=0").read_predictions().split
    assert len(split.samples) == 12
    assert torch.equal(split.fold_of[:6], split.fold_of[6:])


# --------------------------------------------------------------------------------------------------------------- groups


@pytest.mark.kind("groups")
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_group_lies_in_two_folds_and_every_sample_in_one(data: st.DataObject) -> None:
    k = data.draw(st.integers(2, 4))
    members = data.draw(st.lists(st.integers(1, 6), min_size=3 * k, max_size=25))
    of = torch.tensor([g for g, n in enumerate(members) for _ in range(n)])
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(of), max_size=len(of))))
    try:
        split = Split.make(labels, k, data.draw(st.integers(0, 9)), groups=of)
    except UsageError as e:
        assert "members for" in str(e)  # noqa: PT017
        return
    for group in of.unique():
        assert len(split.fold_of[of == group].unique()) == 1
    assert len(split.fold_of.unique()) == k


@pytest.mark.kind("groups")
def test_grouped_folds_are_about_as_large_and_as_mixed_as_plain_ones() -> None:
    labels = torch.arange(300) % 3
    split = Split.make(labels, 5, 0, groups=torch.arange(300) // 4)
    table = torch.zeros(5, 3)
    table.index_put_((split.fold_of, labels), torch.ones(300), accumulate=True)
    assert bool(((table - 20).abs() <= 4).all())
    assert not split.remarks()


@pytest.mark.kind("groups")
def test_a_subset_keeps_groups_whole_in_its_folds() -> None:
    of = torch.arange(300) // 4
    split = Split.make(torch.arange(300) % 3, 5, 0, subset=120, groups=of)
    for group in of[split.samples].unique():
        assert len(split.fold_of[of[split.samples] == group].unique()) == 1


@pytest.mark.kind("groups")
def test_classes_that_groups_keep_out_of_folds_are_said_and_too_few_groups_refused() -> None:
    labels, of = torch.tensor([0] * 12 + [1] * 4 + [2] * 4), torch.tensor([*range(12), 12, 12, 13, 13, 14, 14, 14, 14])
    said = Split.make(labels, 3, 0, groups=of).remarks(["a", "b", "c"])
    assert said[0].startswith("class b has no sample in fold ")
    assert said[1].startswith("all samples of class c lie in fold ")
    with pytest.raises(UsageError, match="2 groups cannot fill 3 folds"):
        Split.make(labels, 3, 0, groups=of % 2)


@pytest.mark.kind("groups")
def test_folds_that_are_given_are_taken_and_checked() -> None:
    labels, mine = torch.arange(12) % 2, torch.arange(12) // 4
    assert torch.equal(Split.make(labels, 3, 0, given=mine).fold_of, mine)
    with pytest.raises(UsageError, match="the given folds are 0, 1, 2, and there are 5 folds"):
        Split.make(labels, 5, 0, given=mine)
    with pytest.raises(UsageError, match="1 groups lie in several of the given folds"):
        Split.make(labels, 3, 0, given=mine, groups=torch.tensor([0, 0, 0, 0, 0, *range(1, 8)]))


def of_files(root: Path) -> Source:
    for c in ("cat", "dog"):
        for i in range(6):
            saved(root / "train" / c / f"p{i // 2}_{c}{i}.png")
    return folder_source(root, **SIDE)


def written(root: Path, source: Source, name: str) -> str:
    """The patients of these pictures (the same in both classes) in one of the forms that people have."""
    patients = [p.rpartition("/")[2].partition("_")[0] for p in source.paths]
    files = {
        "path": source.paths,
        "below": [p.partition("/")[2] for p in source.paths],
        "name": [p.rpartition("/")[2] for p in source.paths],
        "stem": [Path(p).stem for p in source.paths],
    }
    if name in files:
        rows = "\n".join(f'"{f}",{p},x' for f, p in zip(files[name], patients, strict=True))
        (root / "meta.csv").write_text(f"filename,patient,site\n{rows}\n")
        return "meta.csv:patient"
    if name == "rows":
        (root / "meta.tsv").write_text("patient\n" + "\n".join(patients) + "\n")
        return str(root / "meta.tsv")
    if name == "npy":
        np.save(root / "p.npy", np.array(patients))
        return str(root / "p.npy")
    if name == "npz":
        np.savez(root / "p.npz", who=np.array(patients)[:, None])
        return f"{root / 'p.npz'}:who"
    return {"expression": r"/p(\d)_", "whole match": r"p\d"}[name]


@pytest.mark.kind("groups")
@pytest.mark.parametrize("form", ["path", "below", "name", "stem", "rows", "npy", "npz", "expression", "whole match"])
def test_groups_are_read_in_every_form(tmp_path: Path, form: str) -> None:
    source = of_files(tmp_path)
    found = groups.read(source, written(tmp_path, source, form), "groups")
    assert found.tolist() == [0, 0, 1, 1, 2, 2] * 2


@pytest.mark.kind("groups")
def test_a_table_of_a_spreadsheet_is_read(tmp_path: Path) -> None:
    source = of_files(tmp_path)
    rows = "".join(f"{Path(p).stem};{i // 2 % 3}\r\n" for i, p in enumerate(source.paths))
    (tmp_path / "meta.csv").write_bytes(b"\xef\xbb\xbf" + f"Image_ID;Patient\r\n{rows}".encode())
    assert groups.read(source, "meta.csv", "groups").tolist() == [0, 0, 1, 1, 2, 2] * 2


@pytest.mark.kind("groups")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (r"q(\d)", r"is not found in 12 of 12 paths, such as train/cat/p0_cat0\.png"),
        ("p(", "is no regular expression"),
        ("none.csv:patient", "no file none.csv"),
        ("meta.csv:site", "has no column site: set .* to one of patient"),
        ("meta.csv:patient", r"says nothing of 11 of 12 pictures.*such as train/cat/p0_cat1\.png"),
        ("short.npy", "must hold one value a sample: found 3 for 12 samples"),
    ],
)
def test_groups_that_say_nothing_of_a_sample_are_refused(tmp_path: Path, text: str, says: str) -> None:
    source = of_files(tmp_path)
    (tmp_path / "meta.csv").write_text("file,patient\ntrain/cat/p0_cat0.png,1\n")
    np.save(tmp_path / "short.npy", np.arange(3))
    with pytest.raises(UsageError, match=says):
        groups.read(source, text, "groups")


@pytest.mark.kind("groups")
def test_groups_are_part_of_what_folds_share_and_of_nothing_where_there_are_none(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", train_images=bytes_of(8, 8), train_patient=np.arange(6) // 2)
    plain, grouped, again = (
        FoldData(lambda: npz(path), folds=2, **o) for o in ({}, {"groups": "patient"}, {"groups": "train_patient"})
    )
    assert "groups" not in plain.shared()
    assert "group" not in plain.about
    assert grouped.shared()["groups"] == again.shared()["groups"]
    assert grouped.shared()["groups"] in grouped.about
    assert torch.equal(grouped.split.fold_of[::2], grouped.split.fold_of[1::2])


@pytest.mark.kind("groups")
def test_a_command_keeps_patients_together(tmp_path: Path) -> None:
    of_files(tmp_path / "mine")
    small = [
        "data=folder",
        "data.size=8",
        "data.resize=8",
        "data.folds=2",
        "data.num_workers=0",
        "data.probes_per_fold=2",
    ]
    small += ["model.network.width=2", "trainer.max_epochs=1", "explain=false", "logger=none", "progress=false"]
    run("train", tmp_path, f"data.root={tmp_path / 'mine'}", r"data.groups=p(\d)_", small=small)
    split = FoldStore(tmp_path / "folder-resnet18" / "fold=0").read_predictions().split
    assert bool((split.fold_of[:6] == split.fold_of[6:]).all())
    assert bool((split.fold_of[::2] == split.fold_of[1::2]).all())


# ---------------------------------------------------------------------------------------------------------------- paths

NAMES = [
    "a b/[x],{y}", "it's #1", 'say "so"', "ümläut/写真", "cost $5", "a=b", "back\\slash", "(1) & (2)", "2024", "1e5", "true", "100%",
    "😀", "a:b;c!d*e?f", "tab\there", "~mine",
]  # fmt: skip


@pytest.mark.kind("paths on the command line")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["data.root", "root", "name"])
def test_a_path_arrives_as_it_was_typed(name: str, key: str) -> None:
    place = name if key == "name" else f"/x/{name}"
    cfg = compose("train", ["data=folder", "data.root=x", quoted(f"{key}={place}"), "explainer=[]", "score=[]"])
    assert {"data.root": cfg.data.root, "root": cfg.root, "name": cfg.name}[key] == place
    assert quoted(quoted(f"{key}={place}")) == quoted(f"{key}={place}")  # of a process that this one starts


@pytest.mark.kind("paths on the command line")
def test_home_is_where_the_user_is_at_home_and_a_number_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    cfg = compose(
        "train",
        [
            "data=folder",
            quoted("data.root=~/my pictures"),
            "explainer=[rise]",
            "score=[]",
            quoted("explainer.rise.masks=7"),
        ],
    )
    assert (cfg.data.root, cfg.explainer.rise.masks) == ("/home/me/my pictures", 7)


@pytest.mark.kind("paths on the command line")
def test_a_multirun_parts_what_it_is_meant_to_and_no_name_of_what_is_there(tmp_path: Path) -> None:
    assert quoted("name=a,b", sweeps=True) == "name=a,b"
    assert quoted("name=choice(a,b)", sweeps=True) == "name=choice(a,b)"
    (tmp_path / "a,b").mkdir()
    assert quoted(f"data.root={tmp_path}/a,b", sweeps=True) == f'data.root="{tmp_path}/a,b"'


@pytest.mark.kind("paths on the command line")
def test_folders_and_files_of_configurations_may_have_any_name(tmp_path: Path) -> None:
    place = tmp_path / "my cfg, [x] {y} #1 it's"
    (place / "experiment").mkdir(parents=True)
    (place / "experiment" / "mine (1), x.yaml").write_text("# @package _global_\ncap: 41\n")
    done = run("train", tmp_path, "--config-dir", str(place), "experiment=mine (1), x", "--cfg", "job", small=[])
    assert "cap: 41" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["data=medmnist"], r"data\.set is needed: give data\.set="),
        (["data=folder", "data.root=/a/${b}"], r"Interpolation key 'b' not found.*\$\{\.\.\.\} stands for"),
    ],
)
def test_a_value_that_names_what_is_missing_is_one_line(overrides: list[str], text: str) -> None:
    with pytest.raises(CommandError, match=text) as found:
        compose("train", [*map(quoted, overrides), "explainer=[]", "score=[]"])
    assert "\n" not in str(found.value)


@pytest.mark.kind("paths on the command line")
def test_a_wrong_key_is_still_one_line() -> None:
    with pytest.raises(CommandError, match=r"unknown key model\.root"):
        compose("train", ["data=folder", "data.root=x", quoted("model.root=/a b/[x]")])


# ---------------------------------------------------------------------------------------------------------------- names

WORDS = ("costs $5_{x}$", "a<b&c", 'say "so"', "back\\slash", "emoji 😀", "two\nlines", "100% #1 ~^")


@pytest.mark.kind("names of classes")
def test_names_of_classes_are_drawn_as_they_are(tmp_path: Path) -> None:
    images, maps = torch.rand(7, 3, 6, 6), {"$rise": torch.rand(7, 6, 6)}
    assert draw.gallery(images, WORDS, maps, tmp_path / "gallery.png", WORDS[0]).stat().st_size > 1000
    assert draw.cases(None, WORDS, maps, torch.rand(7, 6, 6), tmp_path / "cases.png").stat().st_size > 1000


@pytest.mark.kind("names of classes")
@pytest.mark.parametrize("name", ["a--b", "x" * 200, "name with $ and /", "--"])
def test_names_of_experiments_are_such_that_wandb_takes_them(name: str) -> None:
    for made, most in ((project_name(name), 128), (artifact_name(name, "model"), 128), (cleaned(name), 128)):
        assert 0 < len(made) <= most
    assert all(len(t) <= 64 for t in tags_of([name]))


# ------------------------------------------------------------------------------------------------------------- channels


@pytest.mark.kind("4 and more channels")
@pytest.mark.parametrize(("channels", "shown"), [(1, [0]), (2, [0]), (3, [0, 1, 2]), (4, [0, 1, 2]), (13, [0, 1, 2])])
def test_pictures_of_several_channels_are_drawn_in_the_first_three(
    channels: int, shown: list[int], tmp_path: Path
) -> None:
    images = torch.rand(2, channels, 6, 6)
    assert torch.equal(seen(images), images[:, shown])
    if channels != 2:
        assert torch.equal(seen(images, [0]), images[:, :1])
    draw.gallery(images, ["a", "b"], {"x": torch.rand(2, 6, 6)}, tmp_path / "x.png")


@pytest.mark.kind("4 and more channels")
def test_a_command_refuses_before_training_what_cannot_use_the_channels_and_takes_a_grid(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", train_images=bytes_of(16, 16, 5))
    small = [
        "data=npz",
        f"data.path={path}",
        "data.folds=2",
        "data.probes_per_fold=1",
        "model.network.width=2",
        "trainer.max_epochs=1",
    ]
    small += ["explainer=[lime]", "explainer.lime.samples=60", "score=[]", "checks=0", "logger=none", "progress=false"]
    grid = "explainer.lime.segments._target_=lit_xai.segments.Grid"
    done = run("train", tmp_path, small=small, check=False)
    assert done.returncode == 1
    assert (
        f"images have 5 channels: explainer.lime cuts superpixels by colour, of 1 or 3 channels: take a grid, {grid}"
        in done.stderr
    )
    assert not list(tmp_path.rglob("model.ckpt"))
    run("train", tmp_path, grid, "data.show=[4,2,0]", small=small)
    assert (tmp_path / "npz-resnet18" / "fold=0" / "gallery.png").exists()


# ----------------------------------------------------------------------------------------------------- unlabelled images


@pytest.mark.kind("pictures without labels")
def test_the_table_of_unlabelled_pictures_says_nothing_of_accuracy_nor_of_folds(tmp_path: Path) -> None:
    for i in range(4):
        saved(tmp_path / "mine" / f"{i}.png", "PNG", coloured(40 + i, 40))
    torch.manual_seed(0)
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1().state_dict(), tmp_path / "net.pth")
    small = [f"data.root={tmp_path / 'mine'}", "data=pictures", "data.size=32", "data.resize=32", "model=pretrained"]
    small += [
        "model.arch=squeezenet1_1",
        f"model.weights={tmp_path / 'net.pth'}",
        "explainer=[saliency]",
        "score=[deletion]",
    ]
    done = run("explain", tmp_path, "summary=true", "logger=none", "progress=false", "checks=0", small=small)
    assert "deletion" in done.stdout
    assert "accuracy" not in done.stdout
    head = next(line for line in done.stdout.splitlines() if "explainer" in line and line[0] in "┃│")
    assert "mege" not in head
    assert "reco" not in head


def test_two_sources_of_the_same_pixels_share_their_stamp() -> None:
    pixels: Tensor = torch.from_numpy(bytes_of(8, 8))[:, None]
    assert (
        in_memory("a", pixels, torch.arange(6) % 2, "ab").identity
        == in_memory("b", pixels, torch.arange(6) % 2, "cd").identity
    )
