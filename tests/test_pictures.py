"""What a picture of maps shows: scales and captions that fit the method, and every word as it is written."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lit_xai.core import MAGNITUDE, RANGE, SIGNED, Legend, as_explainer
from lit_xai.explainers import RISE, Captum, GradCAM, GradientInput, Lime, Random, Saliency, SlidingPatch
from lit_xai.metrics import Estimate
from lit_xai.report import draw, draw_samplers
from lit_xai.report.figure import Scale, new_figure, span
from lit_xai.store.fold import FoldStore
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from conftest import seeded
from test_commands import run

NASTY = [
    "$\\frac$",
    "$x$",
    "a_b^c",
    "<b>bold</b>",
    "100 % \\alpha",
    "\N{GRINNING FACE} cat",
    "$",
    "a long name, as those of ImageNet",
]


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """All texts of every picture that is saved."""
    found: list[Text] = []
    save = Figure.savefig

    def saved(figure: Figure, *args: object, **options: object) -> None:
        save(figure, *args, **options)
        found.extend(figure.findobj(Text))

    monkeypatch.setattr(Figure, "savefig", saved)
    return found


def shown(texts: list[Text]) -> str:
    """Everything that is written, in one line."""
    return " ".join(" ".join(t.get_text() for t in texts).split())


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=seeded(1))


# ----------------------------------------------------------------------------------------------------------------- words


def gallery(path: Path, names: list[str]) -> None:
    images = torch.rand(len(names), 3, 8, 8, generator=seeded(2))
    maps = {name: noise(len(names), 8, 8) for name in names[:3]}
    draw.gallery(images, [f"label {n}\npred. {n} (0.50)" for n in names], maps, path, names[0])


def one_image(path: Path, names: list[str]) -> None:
    segments = torch.arange(64).view(8, 8) // 16
    draw.explained(noise(3, 8, 8).sigmoid(), noise(8, 8), names, path, segments, [0], noise(4), torch.ones(4))


def sanity(path: Path, names: list[str]) -> None:
    curve = torch.tensor([[0.5, 0.4, 0.6]] * 2)
    maps = {name: noise(3, 2, 8, 8) for name in names[:2]}
    lines = ({name: curve for name in maps} for _ in range(2))
    draw.sanity(noise(2, 3, 8, 8).sigmoid(), names[:2], maps, *lines, path, names[0])


def degradation(path: Path, names: list[str]) -> None:
    points = {name: [(0.0, Estimate(1.0, 0.9, 1.1)), (0.1, Estimate(0.5, 0.4, 0.6))] for name in names}
    draw.degradation({names[0]: {names[1]: points}}, path, names[0])


def plane(path: Path, names: list[str]) -> None:
    places = {name: noise(5, 2) for name in ["real", *names]}
    draw_samplers.alignment(places, dict.fromkeys(names, Estimate(0.1, 0.0, 0.2)), path, names[0])


PICTURES: dict[str, Callable[[Path, list[str]], object]] = {
    "gallery": gallery,
    "one image": one_image,
    "sanity": sanity,
    "degradation": degradation,
    "curves": lambda path, names: draw.curves(
        {n: torch.rand(5, 3) for n in names}, (0.0, 1.0), path, names[0], names[1]
    ),
    "histograms": lambda path, names: draw.histograms(dict.fromkeys(names, (noise(9), noise(9))), path, names[0]),
    "samples": lambda path, names: draw.samples(
        torch.rand(1, 3, 8, 8), torch.arange(64).view(1, 8, 8) > 9, torch.rand(1, 2, 3, 8, 8), path, names[0]
    ),
    "plane": plane,
    "trade": lambda path, names: draw_samplers.tradeoff(
        dict.fromkeys(names, (Estimate(1.0, 0.5, 1.5), Estimate(1.0, 0.5, 1.5))), path, names[0]
    ),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_words_of_data_are_drawn_as_they_are(kind: str, texts: list[Text], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no word of a character that the font has not
        PICTURES[kind](tmp_path / "picture.png", NASTY)
    assert (tmp_path / "picture.png").stat().st_size > 1000
    assert "$\\frac$" in shown(texts)
    assert not any(t.get_parse_math() for t in texts if t.get_text())


@pytest.mark.parametrize("kind", ["gallery", "one image", "sanity", "plane"])
def test_no_text_is_cut_at_the_edge(kind: str, texts: list[Text], tmp_path: Path) -> None:
    PICTURES[kind](tmp_path / "picture.png", NASTY)
    figure = texts[0].get_figure()
    edge = figure.bbox
    numbers = {t for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for t in axis.findobj(Text)}
    labels = {axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)}
    words = [t for t in texts if t.get_text().strip() and t not in numbers - labels]  # not all ticks are drawn
    assert len(words) >= 4
    for text in words:
        box = text.get_window_extent()
        inside = edge.x0 - 1 <= box.x0 and box.x1 <= edge.x1 + 1 and edge.y0 - 1 <= box.y0 and box.y1 <= edge.y1 + 1
        assert inside, (text.get_text(), box, edge)


@pytest.mark.slow
def test_classes_with_strange_names_are_explained_and_drawn_to_the_end(tmp_path: Path, texts: list[Text]) -> None:
    from PIL import Image

    for number, name in enumerate(("$\\frac$", "a_<b>")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for n in range(8):
            pixels = (torch.rand(12, 12, 3, generator=seeded(8 * number + n)) * 255).byte().numpy()
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{n}.png")
    options = ["data=folder", f"data.root={tmp_path}/data", "data.size=16", "data.folds=2", "data.probes_per_fold=2"]
    options += ["model.network.width=2", "trainer.max_epochs=1", "explainer=[saliency]", "score=[]"]
    run("train", tmp_path, *options, "fold=0", "logger=none", "progress=false", small=[])
    assert "label $\\frac$" in shown(texts)
    assert "label a_<b>" in shown(texts)


# ---------------------------------------------------------------------------------------------------------------- scales


def test_what_is_undecided_is_drawn_pale() -> None:
    def drawn(undecided: torch.Tensor | None) -> np.ndarray:
        figure, axes = new_figure(1, 1, 1, 1)
        axes[0, 0].set_position([0, 0, 1, 1])
        axes[0, 0].axis("off")
        Scale.of(torch.ones(8, 8), Legend(MAGNITUDE)).draw(axes[0, 0], torch.ones(8, 8), undecided)
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(float)

    plain, pale = drawn(None), drawn(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    height, width = plain.shape[0] // 2, plain.shape[1] // 2
    corner, rest = (pale - plain)[: height - 3, : width - 3], (pale - plain)[height + 3 :]
    assert corner.max() > 100
    assert corner.min() >= 0
    assert abs(rest).max() == 0


def test_signed_maps_are_symmetric_about_a_white_zero() -> None:
    scale = Scale.of(torch.tensor([[-1.0, 0.0], [0.5, 3.0]]), Legend(SIGNED))
    assert scale.colours == "RdBu_r"
    assert scale.low == -scale.high < 0
    assert Scale.of(torch.rand(2, 2), Legend(SIGNED)).low < 0  # of contributions, also where none is against the class


def test_magnitudes_begin_at_a_white_zero() -> None:
    scale = Scale.of(5 + torch.rand(8, 8), Legend(MAGNITUDE))
    assert (scale.colours, scale.low) == ("Reds", 0.0)
    assert scale.high == pytest.approx(6, abs=0.1)


def test_values_without_a_zero_point_go_from_their_least_to_their_largest() -> None:
    maps = torch.linspace(15.3, 17.3, 400).view(20, 20)
    scale = Scale.of(maps, Legend(RANGE))
    assert (scale.low, scale.high) == pytest.approx((15.3, 17.3), abs=0.02)
    assert scale.marks()[1] == ["15.3", "17.3"]
    one, other = maps, maps - 10
    both = Scale.of(torch.stack([one, other]), Legend(RANGE))
    assert both.at(other).low == pytest.approx(5.3, abs=0.02)


def test_one_pixel_far_out_does_not_hide_the_rest() -> None:
    maps = torch.linspace(15.3, 17.3, 1600).view(40, 40)
    maps[0, 0] = -1e4
    assert Scale.of(maps, Legend(RANGE)).low == pytest.approx(15.3, abs=0.02)


@pytest.mark.parametrize("value", [0.0, 15.3, -2.0, 1e-20, 1e20])
def test_a_constant_map_is_drawn_flat_and_called_constant(value: float) -> None:
    maps = value * (1 + 1e-8 * noise(8, 8).double())
    scale = Scale.of(maps, Legend(RANGE))
    axis = Figure().subplots()
    colours = scale.draw(axis, maps)
    flat = colours.cmap(colours.norm(colours.get_array()))
    assert (flat == flat[0, 0]).all()
    assert span(maps.float()) == f"constant {value:.3g}"


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(15.3, 17.3, "15.3..17.3"), (15.301, 15.302, "15.301..15.302"), (-0.26, 0.1, "-0.26..0.1"), (0, 1, "0..1")],
)
def test_the_numbers_of_a_range_differ(low: float, high: float, text: str) -> None:
    assert span(torch.tensor([[low, high]], dtype=torch.float64)) == text


def test_captions_say_what_the_colours_of_a_method_mean() -> None:
    said = {
        type(e).__name__: e.legend.text("cat")
        for e in (RISE(output="probability"), Saliency(), Random(), Lime(), GradCAM(), SlidingPatch(), GradientInput())
    }
    assert said == {
        "RISE": "red = higher probability of cat when the pixel is kept, yellow = lower",
        "Saliency": "darker = the output depends more on the pixel, white = 0",
        "Random": "noise: the colours have no meaning",
        "Lime": "probability: red = for cat, blue = against it, white = 0",
        "GradCAM": "darker = more evidence for cat, white = none",
        "SlidingPatch": "probability: red = for cat, blue = against it, white = 0",
        "GradientInput": "darker = the output depends more on the pixel, white = 0",
    }
    assert GradientInput(signed=True).legend.scale == SIGNED


def test_methods_that_do_not_say_are_drawn_by_the_sign_of_their_values() -> None:
    legend = Captum("Saliency").legend
    signed, unsigned = Scale.of(noise(8, 8), legend), Scale.of(noise(8, 8).abs(), legend)
    assert (signed.colours, unsigned.colours) == ("RdBu_r", "Reds")
    assert signed.says == "red = for the class, blue = against it, white = 0"
    assert unsigned.says == "darker = the output depends more on the pixel, white = 0"
    assert as_explainer(lambda model, images, targets, rng=None: images[:, 0]).legend == legend


def test_a_gallery_has_the_caption_of_every_method_and_the_range_of_every_map(
    texts: list[Text], tmp_path: Path
) -> None:
    flat, hill = torch.full((8, 8), 15.3), 15.3 + torch.rand(8, 8, generator=seeded(3)) * 2
    maps = {"rise": torch.stack([flat, hill]), "saliency": noise(2, 8, 8).abs(), "lime": noise(2, 8, 8)}
    legends = {n: e.legend for n, e in {"rise": RISE(), "saliency": Saliency(), "lime": Lime()}.items()}
    draw.gallery(torch.rand(2, 1, 8, 8), ["one", "two"], maps, tmp_path / "gallery.png", "title", legends)
    words = shown(texts)
    for name, values in maps.items():
        assert legends[name].text() in words
        assert all(span(m) in words for m in values), name
    assert "constant 15.3" in words


def test_a_changed_models_map_keeps_the_width_of_the_trained_ones_colours() -> None:
    trained = Scale.of(torch.linspace(15, 17, 400).view(20, 20), Legend(RANGE))
    blank = torch.linspace(-0.01, 0.01, 400).view(20, 20)  # next to nothing is left, elsewhere
    scale = trained.around(blank)
    assert (scale.low + scale.high) / 2 == pytest.approx(0, abs=1e-3)
    assert scale.high - scale.low == pytest.approx(2, abs=0.05)


def test_the_picture_of_one_photo_says_what_its_colours_mean(tmp_path: Path, texts: list[Text]) -> None:
    from PIL import Image

    tiny = ["data.train_subset=40", "data.folds=2", "data.size=16", "model.network.width=2", "trainer.max_epochs=1"]
    run("train", tmp_path, "fold=0", "explain=false", "logger=none", "progress=false", small=tiny)
    Image.fromarray((torch.rand(16, 16, 3) * 255).byte().numpy()).save(tmp_path / "photo.png")
    checkpoint = FoldStore(tmp_path / "digits-resnet18" / "fold=0").root / "model.ckpt"
    few = ["explainer=[rise,random]", "explainer.rise.masks=20"]
    run("explain", tmp_path, f"image={tmp_path}/photo.png", f"checkpoint={checkpoint}", *few, small=[])
    words = shown(texts)
    assert "when the pixel is kept, yellow = lower map " in words
    assert "noise: the colours have no meaning map -" in words
