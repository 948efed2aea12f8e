"""The synthetic shapes and their planted tags, and masks or boxes beside picture files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lit_xai.data.folds import FoldData
from lit_xai.data.shapes import CLASSES, shape_masks, shapes, tag_patterns
from lit_xai.data.sources import folder_source, pictures
from lit_xai.data.truth import InMemoryMasks, Truth, boxes
from lit_xai.errors import UsageError
from PIL import Image

from conftest import seeded

small = partial(shapes, size=32, samples=120, test=60)


@pytest.fixture(scope="module")
def plain():
    return small()


@pytest.fixture(scope="module")
def tagged():
    return small(tag=1.0)


def everything(source, part: str = "train") -> torch.Tensor:
    images = getattr(source, part)
    return images.images(range(len(images)))


# --------------------------------------------------------------------------------------------------------------- shapes


def test_shapes_have_the_size_and_number_asked_for(plain):
    assert (len(plain.train), len(plain.test), plain.shape, plain.classes) == (120, 60, (3, 32, 32), CLASSES)
    assert (plain.train.pixels.dtype, plain.test_labels.shape) == (torch.uint8, (60,))
    assert 0 <= float(everything(plain).min()) < float(everything(plain).max()) <= 1


def test_shapes_repeat_and_change_with_the_seed(plain):
    assert torch.equal(small().train.pixels, plain.train.pixels)
    other = small(seed=1)
    assert bool((other.train.pixels != plain.train.pixels).flatten(1).any(1).all())


@pytest.mark.parametrize("tag", [0.0, 0.5])
def test_a_sample_does_not_depend_on_how_many_there_are(tag):
    few, many = shapes(24, 30, tag, test=7), shapes(24, 300, tag, test=40)
    assert torch.equal(many.train.pixels[:30], few.train.pixels)
    assert torch.equal(many.test.pixels[:7], few.test.pixels)
    assert torch.equal(many.labels[:30], few.labels)
    for name in few.truth.names:
        assert torch.equal(many.truth.masks(name, range(30)), few.truth.masks(name, range(30)))


def test_test_images_are_others(plain):
    assert bool((plain.test.pixels != plain.train.pixels[:60]).flatten(1).any(1).all())


@pytest.mark.parametrize("samples", [6, 100, 251])
def test_classes_are_balanced(samples):
    number = torch.bincount(shapes(16, samples, test=samples).labels, minlength=6)
    assert int(number.max() - number.min()) <= 1


def test_every_parameter_changes_the_identity(plain):
    others = [{"size": 33}, {"samples": 121}, {"test": 61}, {"tag": 0.5}, {"tag": 1.0}, {"seed": 1}]
    others.append({"tag": 0.5, "tag_side": 0.2})
    identities = [plain.identity, *(small(**change).identity for change in others)]
    assert len(set(identities)) == 8
    assert small().identity == plain.identity


def test_the_test_split_may_be_left_out():
    assert shapes(16, 6, test=0).test is None


def test_colours_do_not_tell_the_class():
    """A classifier that sees the object's and the background's mean colour is at chance on new samples."""
    from sklearn.ensemble import RandomForestClassifier

    source = shapes(32, 1500, test=0)
    images, inside = everything(source), source.truth.masks("object", range(1500))[:, None]
    means = [(images * m).sum((2, 3)) / m.sum((2, 3)) for m in (inside, ~inside)]
    colours, labels = torch.cat(means, dim=1).numpy(), source.labels.numpy()
    forest = RandomForestClassifier(60, random_state=0).fit(colours[:1000], labels[:1000])
    assert forest.score(colours[1000:], labels[1000:]) < 1 / 6 + 4 * (5 / 36 / 500) ** 0.5


def test_the_mask_is_exactly_where_the_shape_is():
    """The same samples drawn without their shapes differ in the masks' pixels and in no other."""
    from unittest import mock

    from lit_xai.data import shapes as module

    indices = torch.arange(30)
    pixels, _, mask, _ = module.draw_chunk("train", indices, 32, 0.0, 0)
    with mock.patch.object(module, "shape_masks", lambda labels, u, size: torch.zeros(30, size, size).bool()):
        empty, _, nothing, _ = module.draw_chunk("train", indices, 32, 0.0, 0)
    assert not bool(nothing.any())
    assert torch.equal((pixels != empty).any(1), mask)


def upright(c: int, size: int = 256) -> torch.Tensor:
    """One class's shape, unturned, in the middle; the circle around it has a radius of .23 sides."""
    return shape_masks(torch.tensor([c]), torch.tensor([[0.5, 0.5, 0.5, 0.5]]), size)[0]


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("circle", np.pi * 0.85**2),
        ("square", 4 * 0.7**2),
        ("triangle", 3 * 3**0.5 / 4),
        ("cross", 4 * 0.26 * (2 * 0.95) - 4 * 0.26**2),
        ("star", 5 * 0.42 * np.sin(np.pi / 5)),
        ("ring", np.pi * (0.92**2 - 0.55**2)),
    ],
)
def test_shapes_have_their_areas(name, share):
    mask = upright(CLASSES.index(name))
    assert float(mask.sum()) == pytest.approx(share * (0.23 * 256) ** 2, rel=0.02)
    assert torch.equal(mask, mask.flip(1))


@pytest.mark.parametrize("c", range(6))
def test_shapes_lie_wholly_inside_the_image(c):
    n = 400
    draws = torch.rand(n, 4, generator=seeded(c))
    draws[:16, :4] = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    mask = shape_masks(torch.full((n,), c), draws, 64)
    # a shape that is cut off would be smaller than the same shape in the middle
    middle = torch.cat([torch.full((n, 2), 0.5), draws[:, 2:]], dim=1)
    whole = shape_masks(torch.full((n,), c), middle, 64)
    area, expected = (m.flatten(1).sum(1).double() for m in (mask, whole))
    assert float((area / expected - 1).abs().max()) < 0.15
    assert float((area / expected).mean()) == pytest.approx(1, abs=0.01)


# ----------------------------------------------------------------------------------------------------------------- tags


def test_without_tags_there_is_no_truth_about_them(plain, tagged):
    assert isinstance(plain.truth, Truth)
    assert (plain.truth.names, tagged.truth.names) == (("object",), ("object", "tag"))
    with pytest.raises(UsageError, match="no ground truth 'tag' in this data: set the score's truth= to object"):
        plain.truth.masks("tag", [0])


def test_tags_are_all_that_differs(plain, tagged):
    differ = (plain.train.pixels != tagged.train.pixels).any(1)
    assert torch.equal(differ, tagged.truth.masks("tag", range(120)))


@pytest.mark.parametrize(("size", "of_side"), [(16, 0.125), (31, 0.125), (64, 0.125), (16, 0.2), (28, 0.2)])
def test_tags_are_whole_squares_beside_the_object(size, of_side):
    source = shapes(size, 60, tag=0.3, test=0, tag_side=of_side)
    tag, inside = (source.truth.masks(name, range(60)) for name in ("tag", "object"))
    side = max(2, round(size * of_side))
    top, left, bottom, right = boxes(tag).T
    assert bool(((bottom - top == side) & (right - left == side)).all())
    assert tag.flatten(1).sum(1).unique().tolist() == [side * side]
    assert not bool((tag & inside).any())
    assert len(set(zip(top.tolist(), left.tolist(), strict=True))) > 30


def tag_classes(source, part: str = "train") -> torch.Tensor:
    """The class whose pure colour each image has some pixels of."""
    colours = (tag_patterns(1)[:, :, 0, 0] * 255).to(torch.uint8)
    pixels = getattr(source, part).pixels
    found = torch.stack([(pixels == c[:, None, None]).all(1).flatten(1).any(1) for c in colours], dim=1)
    assert found.sum(1).unique().tolist() == [1]
    return found.int().argmax(1)


@pytest.mark.parametrize(("tag", "own"), [(1.0, 1.0), (0.5, 0.5 + 0.5 / 6), (1e-9, 1 / 6)])
def test_tags_tell_the_class_as_often_as_asked(tag, own):
    source = shapes(32, 600, tag=tag, test=600)
    n = 600
    share = float((tag_classes(source) == source.labels).double().mean())
    assert share == pytest.approx(own, abs=4 * (own * (1 - own) / n) ** 0.5 + 1e-12)
    tests = tag_classes(source, "test")
    assert float((tests == source.test_labels).double().mean()) == pytest.approx(1 / 6, abs=4 * (5 / 36 / n) ** 0.5)
    assert torch.bincount(tests, minlength=6).tolist() == pytest.approx([n / 6] * 6, abs=40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 15}, "at least 16 pixels a side, found 15"),
        ({"samples": 5}, "data.samples >= 6"),
        ({"test": -1}, "data.test >= 0"),
        ({"tag": 1.01}, r"data\.tag must lie in \[0, 1\], found 1\.01"),
        ({"tag": -0.1}, r"data\.tag must lie"),
        ({"tag_side": 0.21}, r"data\.tag_side must lie in \(0, 0\.2\], found 0\.21"),
    ],
)
def test_impossible_shapes_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        small(**options)


def test_the_yaml_builds_them():
    from lit_xai.cli.build import build_data, check_targets
    from lit_xai.cli.compose import compose
    from omegaconf import OmegaConf

    small = ["data.size=16", "data.samples=60", "data.test=12", "data.tag=0.5"]
    node = OmegaConf.to_container(compose("train", ["data=shapes", *small]).data)
    check_targets(node, "data")
    data = build_data(node, 0, 0, 0.0)
    assert isinstance(data, FoldData)
    assert (data.source.shape, len(data.held_out), len(data.source.test)) == ((3, 16, 16), 12, 12)


# ------------------------------------------------------------------------------------------------------------- in memory


def test_masks_in_memory_may_be_bytes():
    raw = torch.tensor([[[0, 1], [255, 0]], [[0, 0], [0, 2]]], dtype=torch.uint8)
    truth = InMemoryMasks({"object": raw})
    assert truth.masks("object", [1, 0]).tolist() == [[[False, False], [False, True]], [[False, True], [True, False]]]


def test_boxes_are_tight():
    masks = torch.zeros(4, 5, 7, dtype=torch.bool)
    masks[0, 1, 2] = True
    masks[1, 1, 6] = masks[1, 4, 3] = True
    masks[2] = True
    assert boxes(masks).tolist() == [[1, 2, 2, 3], [1, 3, 5, 7], [0, 0, 5, 7], [0, 0, 0, 0]]


def test_boxes_are_scikit_images():
    from skimage.measure import regionprops

    masks = torch.rand(20, 9, 11, generator=seeded(0)) < 0.05
    masks[:, 4, 4] = True
    expected = [regionprops(m.numpy().astype(int))[0].bbox for m in masks]
    assert boxes(masks).tolist() == [list(b) for b in expected]


# --------------------------------------------------------------------------------------------------------- masks on disk


def save(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file)


HEIGHT, WIDTH = 12, 18
BLOCK = (slice(2, 8), slice(5, 11))  # rows and columns of the object


def block(value: int = 255) -> np.ndarray:
    out = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    out[BLOCK] = value
    return out


def write_pictures(root: Path, prefix: str = "") -> list[str]:
    """Two classes of two pictures that are white on the object and black elsewhere."""
    names = [f"{prefix}{c}/{i}.png" for c in ("ant", "bee") for i in range(2)]
    for name in names:
        save(root / name, np.repeat(block()[..., None], 3, axis=2))
    return names


def write_boxes(file: Path, rows: list[str], header: str = "file,x,y,width,height") -> None:
    file.write_text("\n".join([header, *rows]) + "\n")


same_size = partial(folder_source, size=HEIGHT, resize=HEIGHT)


def expected_mask() -> torch.Tensor:
    """The object after the central crop."""
    cut = (WIDTH - HEIGHT) // 2
    return torch.from_numpy(block() > 0)[:, cut:-cut]


@pytest.mark.parametrize("prefix", ["", "train/"])
@pytest.mark.parametrize("given", [False, True])
def test_masks_lie_beside_the_pictures_or_where_they_are_said_to(tmp_path, prefix, given):
    root, folder = tmp_path / "data", tmp_path / ("elsewhere" if given else "data/masks")
    for name in write_pictures(root, prefix):
        save(folder / name, block())
    source = same_size(root, masks=folder if given else None)
    assert (source.classes, source.truth.names) == (("ant", "bee"), ("object",))
    masks = source.truth.masks("object", [3, 0])
    assert torch.equal(masks, expected_mask().expand(2, -1, -1))
    assert torch.equal(masks, source.train.images([3, 0])[:, 0] > 0.5)


@pytest.mark.parametrize(("resize", "size"), [(24, 24), (24, 17), (7, 7), (6, 5), (9, 12)])
def test_masks_are_resized_and_cropped_like_their_pictures(tmp_path, resize, size):
    for name in write_pictures(tmp_path):
        save(tmp_path / "masks" / name, block())
    source = folder_source(tmp_path, size=size, resize=resize)
    mask, image = source.truth.masks("object", [0])[0], source.train.images([0])[0, 0]
    assert mask.shape == (size, size)
    clear = (image - 0.5).abs() > 0.25  # an interpolated edge is on neither side
    assert int(mask[clear].sum()) > 0
    assert torch.equal(mask[clear], image[clear] > 0.5)


def test_pictures_have_masks_in_a_flat_folder(tmp_path):
    save(tmp_path / "a.jpg", np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8))
    save(tmp_path / "masks" / "a.png", block())
    source = pictures(str(tmp_path), size=HEIGHT, resize=HEIGHT)
    assert (len(source.train), source.labelled) == (1, False)
    assert torch.equal(source.truth.masks("object", [0])[0], expected_mask())


@pytest.mark.parametrize("kind", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_any_kind_are_read(tmp_path, kind):
    for name in write_pictures(tmp_path):
        file = tmp_path / "masks" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if kind == "P":  # the palette's colours do not count, its indices do
            picture = Image.fromarray(block(1)).convert("L")
            picture.putpalette([9, 9, 9, 0, 0, 0])
        elif kind == "I;16":
            picture = Image.fromarray(block(1).astype(np.uint16) * 256)
        else:
            picture = Image.fromarray(block()).convert(kind)
        picture.save(file)
    assert torch.equal(same_size(tmp_path).truth.masks("object", [0])[0], expected_mask())


def test_without_masks_and_boxes_there_is_no_truth(tmp_path):
    write_pictures(tmp_path)
    assert same_size(tmp_path).truth is None
    save(tmp_path / "masks" / "0.png", np.zeros((9, 9, 3), dtype=np.uint8))
    source = same_size(tmp_path)  # a class of that name
    assert (source.classes, source.truth) == (("ant", "bee", "masks"), None)


@pytest.mark.parametrize("folder", ["masks", "annotations"])
def test_the_folder_of_masks_is_not_a_class(tmp_path, folder):
    for name in write_pictures(tmp_path):
        save(tmp_path / folder / name, block())
    save(tmp_path / folder / "overview.png", block())
    source = same_size(tmp_path, masks=None if folder == "masks" else tmp_path / folder)
    assert source.classes == ("ant", "bee")
    assert bool(source.truth.masks("object", [0]).any())


def test_masks_do_not_change_the_identity(tmp_path):
    names = write_pictures(tmp_path)
    before = same_size(tmp_path).identity
    for name in names:
        save(tmp_path / "masks" / name, block())
    assert same_size(tmp_path).identity == before


def test_a_picture_without_a_mask_is_named_when_it_is_asked_for(tmp_path):
    names = write_pictures(tmp_path)
    for name in names[1:]:
        save(tmp_path / "masks" / name, block())
    truth = same_size(tmp_path).truth
    assert truth.masks("object", [1, 2, 3]).shape == (3, HEIGHT, HEIGHT)
    with pytest.raises(UsageError, match=r"ant/0\.png has no mask .*masks/ant/0\.png: draw one"):
        truth.masks("object", [1, 0])


def test_a_mask_of_another_size_is_refused(tmp_path):
    for name in write_pictures(tmp_path):
        save(tmp_path / "masks" / name, block().T)
    with pytest.raises(UsageError, match=r"masks/ant/0\.png is 12 x 18 pixels and its picture .*ant/0\.png 18 x 12"):
        same_size(tmp_path).truth.masks("object", [0])


@pytest.mark.parametrize("keep", [0, 4, 30, 60])
def test_a_damaged_mask_is_named(tmp_path, keep):
    for name in write_pictures(tmp_path):
        save(tmp_path / "masks" / name, block())
    file = tmp_path / "masks" / "ant" / "0.png"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UsageError, match=r"masks/ant/0\.png cannot be decoded"):
        same_size(tmp_path).truth.masks("object", [0])


def test_a_transparent_mask_is_refused(tmp_path):
    for name in write_pictures(tmp_path):
        save(tmp_path / "masks" / name, np.stack([block() * 0 + 255] * 3 + [block()], axis=-1))
    with pytest.raises(UsageError, match="transparent pixels: flatten it"):
        same_size(tmp_path).truth.masks("object", [0])


def test_a_name_that_files_do_not_have_is_refused(tmp_path):
    for name in write_pictures(tmp_path):
        save(tmp_path / "masks" / name, block())
    with pytest.raises(UsageError, match="no ground truth 'tag'"):
        same_size(tmp_path).truth.masks("tag", [0])


def test_a_folder_of_masks_that_is_not_there_is_refused(tmp_path):
    write_pictures(tmp_path)
    with pytest.raises(UsageError, match=r"no folder .*nowhere: point data\.masks="):
        same_size(tmp_path, masks=tmp_path / "nowhere")


# --------------------------------------------------------------------------------------------------------- boxes on disk


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_boxes_are_drawn(tmp_path, prefix):
    rows = [f"{name},5,2,6,6" for name in write_pictures(tmp_path, prefix)]
    write_boxes(tmp_path / "boxes.csv", rows)
    masks = same_size(tmp_path).truth.masks("object", [0, 3])
    assert torch.equal(masks, expected_mask().expand(2, -1, -1))


def test_several_boxes_of_a_picture_are_united(tmp_path):
    name = write_pictures(tmp_path)[0]
    write_boxes(tmp_path / "mine.csv", [f"{name},5,2,6,2", f"{name},5,4,2,4", f"./{name},7,4,4,4"])
    source = same_size(tmp_path, boxes=tmp_path / "mine.csv")
    assert torch.equal(source.truth.masks("object", [0])[0], expected_mask())


def test_a_pixel_is_in_a_box_if_its_centre_is(tmp_path):
    name = write_pictures(tmp_path)[0]
    write_boxes(tmp_path / "boxes.csv", [f"{name},4.6,1.5,6.3,6.9"])
    drawn = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            drawn[y, x] = 4.6 <= x + 0.5 < 4.6 + 6.3 and 1.5 <= y + 0.5 < 1.5 + 6.9
    assert torch.equal(same_size(tmp_path).truth.masks("object", [0])[0], drawn[:, 3:-3])


def test_a_box_that_leaves_its_picture_is_cut(tmp_path):
    name = write_pictures(tmp_path)[0]
    write_boxes(tmp_path / "boxes.csv", [f"{name},-4,-3,40,5"])
    mask = same_size(tmp_path).truth.masks("object", [0])[0]
    assert boxes(mask[None]).tolist() == [[0, 0, 2, HEIGHT]]


def test_a_table_with_a_byte_order_mark_and_more_columns_is_read(tmp_path):
    name = write_pictures(tmp_path)[0]
    (tmp_path / "boxes.csv").write_bytes(f"\ufeffheight,width,x,y,label,file\r\n6,6,5,2,an ant,{name}\r\n".encode())
    assert torch.equal(same_size(tmp_path).truth.masks("object", [0])[0], expected_mask())


def test_pictures_have_boxes(tmp_path):
    save(tmp_path / "a.png", np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8))
    write_boxes(tmp_path / "boxes.csv", ["a.png,5,2,6,6"])
    source = pictures(str(tmp_path), size=HEIGHT, resize=HEIGHT)
    assert torch.equal(source.truth.masks("object", [0])[0], expected_mask())


@pytest.mark.parametrize("given", [(), ("masks", "boxes")])
def test_masks_and_boxes_together_are_refused(tmp_path, given):
    for name in write_pictures(tmp_path):
        save(tmp_path / "masks" / name, block())
    write_boxes(tmp_path / "boxes.csv", ["ant/0.png,5,2,6,6"])
    options = {"masks": tmp_path / "masks", "boxes": tmp_path / "boxes.csv"}
    with pytest.raises(UsageError, match=r"choose one with data\.masks= or data\.boxes="):
        same_size(tmp_path, **{k: options[k] for k in given})
    assert same_size(tmp_path, boxes=options["boxes"]).truth.names == ("object",)
    assert same_size(tmp_path, masks=options["masks"]).classes == ("ant", "bee")


def test_a_picture_without_a_box_is_named_when_it_is_asked_for(tmp_path):
    write_pictures(tmp_path)
    write_boxes(tmp_path / "boxes.csv", ["ant/1.png,5,2,6,6"])
    with pytest.raises(UsageError, match=r"ant/0\.png has no box in .*boxes\.csv: add a row"):
        same_size(tmp_path).truth.masks("object", [0])


@pytest.mark.parametrize("box", ["18,0,3,3", "0,12,3,3", "-5,0,5,3", "3,3,0.2,4"])
def test_a_box_without_a_pixel_is_refused(tmp_path, box):
    write_pictures(tmp_path)
    write_boxes(tmp_path / "boxes.csv", [f"ant/0.png,{box}"])
    with pytest.raises(UsageError, match=rf"box {box} holds no pixel of .*ant/0\.png \(18 x 12 pixels\)"):
        same_size(tmp_path).truth.masks("object", [0])


@pytest.mark.parametrize("box", ["a,0,3,3", "0,0,0,3", "0,0,3,-1", "nan,0,3,3", "0,0,inf,3", "0,0,3", ",,,", ""])
def test_a_row_without_a_box_is_refused(tmp_path, box):
    write_pictures(tmp_path)
    write_boxes(tmp_path / "boxes.csv", ["ant/1.png,1,1,3,3", f"ant/0.png,{box}"])
    with pytest.raises(UsageError, match=r"boxes\.csv line 3: x,y,width,height must be numbers"):
        same_size(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lacks file, x, y, width, height: its first line must be"),
        (b"file,x,y,w,h\n", "lacks width, height"),
        (b"\xff\xfe\x00\x81", "cannot be read"),
    ],
    ids=["empty", "other columns", "not text"],
)
def test_a_table_that_is_none_is_refused(tmp_path, content, message):
    write_pictures(tmp_path)
    (tmp_path / "boxes.csv").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        same_size(tmp_path)


def test_a_table_that_is_not_there_is_refused(tmp_path):
    write_pictures(tmp_path)
    with pytest.raises(UsageError, match=r"nowhere\.csv cannot be read"):
        same_size(tmp_path, boxes=tmp_path / "nowhere.csv")


# -------------------------------------------------------------------------------------------------- transparent pictures


def test_grey_palette_and_opaque_pictures_become_rgb(tmp_path):
    colour = Image.new("RGB", (9, 9), (10, 20, 30))
    for kind in ("L", "P", "RGBA", "LA"):
        file = tmp_path / "ant" / f"{kind}.png"
        file.parent.mkdir(exist_ok=True)
        colour.convert(kind).save(file)
    images = folder_source(tmp_path, size=9, resize=9, grey="convert").train
    assert images.images(range(4)).shape == (4, 3, 9, 9)
    opaque = images.images([[f.stem for f in images.files].index("RGBA")])
    assert torch.allclose(opaque[0, :, 0, 0] * 255, torch.tensor([10.0, 20.0, 30.0]))


def palette_with_transparency() -> Image.Image:
    picture = Image.new("P", (9, 9), 1)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.info["transparency"] = 1
    return picture


@pytest.mark.parametrize(
    "make",
    [
        lambda: Image.new("RGBA", (9, 9), (10, 20, 30, 254)),
        lambda: Image.new("LA", (9, 9), (10, 0)),
        palette_with_transparency,
    ],
    ids=["RGBA", "LA", "palette"],
)
def test_transparent_pictures_are_refused(tmp_path, make):
    (tmp_path / "ant").mkdir()
    picture = make()
    picture.save(tmp_path / "ant" / "0.png", **picture.info)
    with pytest.raises(UsageError, match=r"ant/0\.png has transparent pixels: flatten it onto a background first"):
        folder_source(tmp_path, size=9, resize=9).train.images([0])


def test_deep_pictures_are_refused_since_decoding_would_clip_them(tmp_path):
    save(tmp_path / "ant" / "0.png", np.full((9, 9), 40_000, dtype=np.uint16))
    with pytest.raises(UsageError, match="more than 8 bits a channel"):
        folder_source(tmp_path, size=9, resize=9).train.images([0])


@pytest.mark.parametrize("tag", [0.0, 1.0])
def test_images_are_in_torchs_own_memory_order(tag):
    source = shapes(size=16, samples=12, test=6, tag=tag)
    assert source.train.images([0, 1]).is_contiguous()
    assert source.test.images([0, 1]).is_contiguous()
