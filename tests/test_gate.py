"""Models, images and targets as people have them: the right map, or one line, from every method and every score."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lit_xai import explainers as e
from lit_xai.calls import as_targets
from lit_xai.crossval import explain_model
from lit_xai.errors import UsageError
from lit_xai.explainers.information import information_maps
from lit_xai.fillers import Colour
from lit_xai.metrics import Deletion, Insertion, MuFidelity
from lit_xai.metrics.sanity import sanity
from lit_xai.models import AsLogits
from lit_xai.models.lipschitz import local_lipschitz
from lit_xai.rng import SampleRng
from lit_xai.segments import Grid
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from conftest import seeded

RNG = SampleRng(3, (0, 1))
METHODS: dict[str, Any] = {
    "saliency": e.Saliency(),
    "gradient_input": e.GradientInput(),
    "integrated_gradients": e.IntegratedGradients(steps=3),
    "smoothgrad": e.SmoothGrad(samples=3),
    "rise": e.RISE(masks=12),
    "gradcam": e.GradCAM(),
    "gradcam_plus_plus": e.GradCAMPlusPlus(),
    "lime": e.Lime(segments=Grid(2), samples=30),
    "averaged_gradient": e.AveragedGradient(segments=Grid(2), points=3),
    "sliding_patch": e.SlidingPatch(patch=8, stride=8, scale=False),
    "meaningful": e.MeaningfulPerturbation(steps=2),
    "captum": e.Captum("DeepLift"),
}
SCORES = {
    "mufidelity": MuFidelity(subsets=8),
    "deletion": Deletion(step=64, filler=Colour(0.3)),
    "insertion": Insertion(step=64),
}


class Small(nn.Module):
    """A network of k outputs."""

    def __init__(self, k: int = 3) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.out = nn.Linear(4 * 16, k)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.adaptive_avg_pool2d(self.relu(self.norm(self.conv(x))), 4).flatten(1))


class Answers(nn.Module):
    """A network whose logits are handed on in another way."""

    def __init__(self, network: nn.Module, way: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.way = network, way

    def forward(self, x: Tensor) -> Any:
        return self.way(self.network(x))


def small(k: int = 3) -> Small:
    torch.manual_seed(0)
    return Small(k).eval()


X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1])


def maps_of(model: Any, images: Tensor = X, targets: Any = Y) -> dict[str, Tensor]:
    return {name: method(model, images, targets, RNG.take(range(len(images)))) for name, method in METHODS.items()}


def scores_of(model: Any, images: Tensor = X, targets: Any = Y) -> dict[str, Tensor]:
    maps = torch.rand(len(images), *images.shape[-2:], generator=torch.Generator().manual_seed(2))
    return {n: score(model, images, maps, targets, RNG.take(range(len(images)))) for n, score in SCORES.items()}


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor], within: float = 1e-6) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=within, msg=lambda m, n=name: f"{n}: {m}")


def assert_refused(model: Any, match: str, images: Tensor = X, targets: Any = Y) -> None:
    things = {**METHODS, **{n: lambda m, x, y, r, s=s: s(m, x, X.mean(1), y, r) for n, s in SCORES.items()}}
    for name, thing in things.items():
        with pytest.raises(UsageError, match=match) as found:
            thing(model, images, targets, RNG)
        assert "\n" not in str(found.value), name


# ------------------------------------------------------------------------------------------------------------------ outputs

TAKEN = {
    "an object with logits": lambda z: SimpleNamespace(logits=z, hidden=None),
    "a dictionary with logits": lambda z: {"loss": None, "logits": z},
    "a tuple": lambda z: (z, z.sum(1)),
    "a list": lambda z: [z, "auxiliary"],
    "log-probabilities": lambda z: z,
}


@pytest.mark.kind("outputs: an object, a dictionary, a tuple")
@pytest.mark.parametrize("way", list(TAKEN))
def test_logits_are_taken_out_of_what_holds_them(way: str) -> None:
    model = small()
    wrapped = Answers(model, TAKEN[way])
    assert_alike(maps_of(wrapped), maps_of(model))
    assert_alike(scores_of(wrapped), scores_of(model))


@pytest.mark.kind("outputs: an object, a dictionary, a tuple")
def test_information_maps_take_logits_out_of_what_holds_them() -> None:
    model = small()
    models = Answers(model, TAKEN["a tuple"]), model
    found, expected = (information_maps(m, X, Y, Colour(0.5), patch=8, stride=8).pmi for m in models)
    torch.testing.assert_close(found, expected)


OTHER_SHAPES = {
    r"\(\d+,\) for": lambda z: z[:, 0],
    r"\(\d+, 3, 1, 1\) for": lambda z: z[:, :, None, None],
    r"\(3,\) for": lambda z: z[0],
    "a dictionary of out, aux": lambda z: {"out": z, "aux": z},
    "NoneType": lambda z: None,
    "int64": lambda z: (10 * z).long(),
}


@pytest.mark.kind("outputs: other shapes")
@pytest.mark.parametrize("shape", list(OTHER_SHAPES))
def test_what_is_no_row_of_logits_an_image_is_refused_by_its_shape(shape: str) -> None:
    assert_refused(Answers(small(), OTHER_SHAPES[shape]), f"{shape}.*logits \\[b, k\\]")


@pytest.mark.kind("outputs: one logit")
@pytest.mark.parametrize("way", [lambda z: z, torch.sigmoid], ids=["logit", "sigmoid"])
def test_one_column_is_refused_until_somebody_says_what_it_is(way: Callable[[Tensor], Tensor]) -> None:
    assert_refused(Answers(small(1), way), r"\[b, 1\].*AsLogits", targets=torch.zeros(2, dtype=torch.long))


@pytest.mark.kind("outputs: one logit")
def test_a_binary_logit_has_the_sigmoid_as_its_probability() -> None:
    model, maps = small(1), torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(2))
    z = AsLogits(model, "binary")(X)
    torch.testing.assert_close(z.softmax(1)[:, 1], model(X)[:, 0].sigmoid())
    torch.testing.assert_close(z[:, 1] - z[:, 0], model(X)[:, 0])
    for target, sign in ((1, 1.0), (0, -1.0)):
        start = SCORES["deletion"].with_details(AsLogits(model, "binary"), X, maps, target, RNG)[1]["start"]
        torch.testing.assert_close(start.float(), (sign * model(X)[:, 0]).sigmoid())


@pytest.mark.kind("outputs: probabilities")
def test_probabilities_are_refused_by_every_method_and_score() -> None:
    assert_refused(Answers(small(), lambda z: z.softmax(1)), "remove its softmax")


@pytest.mark.kind("outputs: probabilities")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_probabilities_are_known_in_every_precision(dtype: torch.dtype) -> None:
    model = Answers(small(), lambda z: z.softmax(1)).to(dtype)
    with pytest.raises(UsageError, match="remove its softmax"):
        e.RISE(masks=8)(model, X.to(dtype), Y)


@pytest.mark.kind("outputs: probabilities")
def test_probabilities_that_are_declared_score_as_the_logits_do() -> None:
    model = small()
    declared = AsLogits(Answers(model, lambda z: z.softmax(1)), "probabilities")
    found, expected = scores_of(declared), scores_of(model)
    assert_alike({n: found[n] for n in ("deletion", "insertion")}, {n: expected[n] for n in ("deletion", "insertion")})
    one = AsLogits(Answers(small(1), torch.sigmoid), "probabilities")
    torch.testing.assert_close(one(X).softmax(1)[:, 1], small(1)(X)[:, 0].sigmoid())


@pytest.mark.kind("outputs: probabilities")
def test_declared_probabilities_outside_of_0_to_1_give_nan_and_no_number() -> None:
    assert bool(AsLogits(small(), "probabilities")(X).isnan().any())


@pytest.mark.kind("outputs: probabilities")
def test_scores_of_several_labels_are_no_probabilities_of_classes() -> None:
    assert bool(AsLogits(Answers(small(), torch.sigmoid), "probabilities")(X).isnan().all())


@pytest.mark.kind("outputs: probabilities")
def test_logits_that_look_like_probabilities_pass_where_somebody_says_that_they_are_logits() -> None:
    model = Answers(small(), lambda z: z.softmax(1))
    assert e.Saliency()(AsLogits(model, "logits"), X, Y).shape == (2, 16, 16)


# ---------------------------------------------------------------------------------------------------------------- precision


@pytest.mark.kind("precision")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_are_what_they_are_in_float32(dtype: torch.dtype) -> None:
    model, images = small(), X.to(dtype)
    assert_alike(maps_of(model, images), maps_of(model, images.float()), 0.0)


@pytest.mark.kind("precision")
@pytest.mark.parametrize(("dtype", "least"), [(torch.float16, 0.999), (torch.bfloat16, 0.99)])
def test_a_half_precision_network_is_summed_in_float32(dtype: torch.dtype, least: float) -> None:
    model, images = small(), X.to(dtype)
    large = Answers(model, lambda z: 30 * z)  # 4,000 of its answers are more than float16 holds
    expected = e.RISE(masks=4000)(large, images.float(), Y, RNG)
    found = e.RISE(masks=4000)(Answers(small().to(dtype), lambda z: 30 * z), images, Y, RNG)
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())
    pair = torch.stack([found.flatten(), expected.flatten()])
    assert float(torch.corrcoef(pair)[0, 1]) > least


@pytest.mark.kind("precision")
def test_float64_goes_all_the_way_and_takes_float32_images() -> None:
    model = small().double()
    found = maps_of(model)
    assert {m.dtype for m in found.values()} == {torch.float64}
    assert_alike(found, maps_of(model, X.double()), 1e-12)


MIXED = {
    "float32 and the images are float64": (torch.float32, torch.float64),
    "float16 and the images are float32": (torch.float16, torch.float32),
    "float16 and the images are bfloat16": (torch.float16, torch.bfloat16),
}


@pytest.mark.kind("precision")
@pytest.mark.parametrize("pair", list(MIXED))
def test_what_would_be_rounded_is_refused(pair: str) -> None:
    of_model, of_images = MIXED[pair]
    assert_refused(small().to(of_model), pair, X.to(of_images))


@pytest.mark.kind("precision")
def test_whole_numbers_are_refused() -> None:
    assert_refused(small(), "images / 255", (X * 255).round().to(torch.uint8))


# ------------------------------------------------------------------------------------------------------------------ targets

SAME = {
    "a list": [0, 1],
    "numpy": np.array([0, 1]),
    "numpy int8": np.array([0, 1], dtype=np.int8),
    "uint8": torch.tensor([0, 1], dtype=torch.uint8),
    "int16": torch.tensor([0, 1], dtype=torch.int16),
    "whole floats": torch.tensor([0.0, 1.0]),
    "a column": torch.tensor([[0], [1]]),
    "one-hot": F.one_hot(Y, 3),
    "one-hot floats": F.one_hot(Y, 3).float(),
    "one-hot booleans": F.one_hot(Y, 3).bool(),
}


@pytest.mark.kind("targets")
@pytest.mark.parametrize("kind", list(SAME))
def test_targets_of_any_kind_are_class_indices(kind: str) -> None:
    model = small()
    for name in ("saliency", "rise", "gradcam", "lime", "captum"):
        method = METHODS[name]
        torch.testing.assert_close(method(model, X, SAME[kind], RNG), method(model, X, Y, RNG))
    assert_alike(scores_of(model, targets=SAME[kind]), scores_of(model))


@pytest.mark.kind("targets")
def test_one_number_is_the_class_of_all_images() -> None:
    model = small()
    assert_alike(maps_of(model, targets=1), maps_of(model, targets=torch.tensor([1, 1])))


NO_TARGETS = {
    "1 targets for 2 images": torch.tensor([1]),
    "not one-hot": torch.tensor([[0.2, 0.8], [0.5, 0.5]]),
    "whole numbers": torch.tensor([0.0, 0.5]),
    "bool": torch.tensor([True, False]),
    "target -1 is no class": torch.tensor([0, -1]),
    "class indices, one per image": ["cat", "dog"],
}


@pytest.mark.kind("targets")
@pytest.mark.parametrize("match", list(NO_TARGETS))
def test_what_are_no_classes_is_refused(match: str) -> None:
    with pytest.raises(UsageError, match=match):
        as_targets(NO_TARGETS[match], 2, torch.device("cpu"))


@pytest.mark.kind("targets")
def test_a_class_that_the_model_does_not_have_is_refused_by_every_method_and_score() -> None:
    assert_refused(small(), "target 3 does not exist: the model has classes 0..2", targets=torch.tensor([0, 3]))


@pytest.mark.kind("an empty batch")
def test_an_empty_batch_has_empty_maps_and_scores() -> None:
    model, none = small(), X[:0]
    everything = {**METHODS, "random": e.Random(), "edges": e.Edges(), "centre": e.Centre(), "image": e.ImageRandom()}
    for name, method in everything.items():
        assert method(model, none, Y[:0]).shape == (0, 16, 16), name
        assert method.with_details(model, none, Y[:0])[0].shape == (0, 16, 16), name
    for name, score in SCORES.items():
        assert score(model, none, none.mean(1), Y[:0]).shape == (0,), name


# ------------------------------------------------------------------------------------------------------- how models compute


@pytest.mark.kind("dropout that is always on")
def test_a_model_that_draws_random_numbers_is_refused() -> None:
    assert_refused(Answers(small(), lambda z: F.dropout(z, 0.5, training=True)), "draws random numbers")


DRAWS = {
    "torch": lambda: float(torch.rand(())),
    "NumPy": lambda: float(np.random.rand()),  # noqa: NPY002
    "Python": random.random,
}


@pytest.mark.kind("dropout that is always on")
@pytest.mark.parametrize("whose", list(DRAWS))
def test_whatever_generator_a_model_draws_from_is_noticed(whose: str) -> None:
    with pytest.raises(UsageError, match="draws random numbers"):
        e.RISE(masks=8)(Answers(small(), lambda z: z * (1 + DRAWS[whose]())), X, Y)


@pytest.mark.kind("dropout that is always on")
def test_a_model_that_draws_the_same_numbers_each_time_is_explained() -> None:
    def noisy(z: Tensor) -> Tensor:
        return z + torch.randn(z.shape[1], generator=torch.Generator().manual_seed(1))

    assert e.Saliency()(Answers(small(), noisy), X, Y).shape == (2, 16, 16)


@pytest.mark.kind("track_running_stats=False")
def test_a_network_that_normalises_by_the_batch_is_refused() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), small()).eval()
    assert_refused(model, "layer 0 normalises an image by the others")


@pytest.mark.kind("track_running_stats=False")
def test_instance_normalisation_is_each_images_own() -> None:
    model = nn.Sequential(nn.InstanceNorm2d(3), small()).eval()
    both, one = e.Saliency()(model, X, Y), e.Saliency()(model, X[:1], Y[:1])
    torch.testing.assert_close(both[:1], one)


@pytest.mark.kind("track_running_stats=False")
def test_a_study_refuses_a_model_whose_answer_depends_on_the_batch(tmp_path: Path) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = small()

        def forward(self, x: Tensor) -> Tensor:
            return self.network(F.batch_norm(x, None, None, training=True))

    bright = torch.linspace(0.1, 1, 6).view(-1, 1, 1, 1) * torch.rand(6, 3, 16, 16, generator=seeded(3))
    data = TensorDataset(bright, torch.arange(6) % 3)
    with pytest.raises(UsageError, match="differently alone and in a batch"):
        explain_model(Functional(), data, {"saliency": e.Saliency()}, tmp_path, scores={}, progress=False)


@pytest.mark.kind("precision")
def test_a_sanity_check_takes_half_precision_as_explainers_do() -> None:
    model, images = small().to(torch.bfloat16), X.to(torch.bfloat16)
    result = sanity(model, images, Y, {"saliency": e.Saliency()}, stages=1)
    torch.testing.assert_close(result.maps["saliency"][0], e.Saliency()(model, images, Y))
    expected = model(images).float().softmax(1).gather(1, Y[:, None])[:, 0]
    torch.testing.assert_close(result.trained.float(), expected)


@pytest.mark.kind("wrapped models")
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.jit.script], ids=["DataParallel", "scripted"])
def test_wrapped_models_are_explained_as_what_they_wrap(wrap: Callable[[nn.Module], Any]) -> None:
    model = small()
    wrapped = wrap(model)
    for name in ("saliency", "smoothgrad", "rise", "lime", "sliding_patch"):
        torch.testing.assert_close(METHODS[name](wrapped, X, Y, RNG), METHODS[name](model, X, Y, RNG))


def test_a_model_that_fails_is_named_with_the_images_that_it_failed_on() -> None:
    with pytest.raises(UsageError, match=r"the model fails on images of shape \(2, 1, 16, 16\)"):
        e.Saliency()(small(), X[:, :1], Y)


def test_the_modes_and_the_random_state_are_as_they_were() -> None:
    model = small().train()
    before = torch.get_rng_state()
    maps_of(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(m.training for m in model.modules())


# ---------------------------------------------------------------------------------------------------------------- Lipschitz


@pytest.mark.kind("the Lipschitz constant of many classes")
def test_the_local_constant_is_the_largest_singular_value_of_the_jacobian() -> None:
    model = small(5)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), X)  # [k, b, c, h, w]
    expected = torch.linalg.matrix_norm(jacobian.transpose(0, 1).flatten(2).double(), ord=2)
    torch.testing.assert_close(local_lipschitz(model, X), expected)


@pytest.mark.kind("the Lipschitz constant of many classes")
def test_batches_of_the_jacobian_are_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = small(40), []
    model.register_forward_hook(lambda m, args, out: calls.append(len(args[0])))
    whole = local_lipschitz(model, X)
    monkeypatch.setattr(sys.modules["lit_xai.models.lipschitz"], "MEMORY", 4 * 40 * X[0].numel())  # of one image
    calls.clear()
    torch.testing.assert_close(local_lipschitz(model, X), whole)
    assert max(calls) == 1


def test_log_probabilities_are_logits() -> None:
    model = small()
    found = Deletion(step=64, filler=Colour(0.3))(Answers(model, lambda z: z.log_softmax(1)), X, X.mean(1), Y, RNG)
    torch.testing.assert_close(found, Deletion(step=64, filler=Colour(0.3))(model, X, X.mean(1), Y, RNG))
    assert math.isfinite(float(found[0]))
