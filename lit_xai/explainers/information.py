"""Information maps: what every window tells about each class (PMI) and about the class at all (information gain).

Yi et al., "Information-Theoretic Visual Explanation for Black-Box Classifiers" (Eqs. 3-5). With p(y|x\\i) the mean
softmax over N fillings of window i,

    PMI_i(y) = log (e + p(y|x)) / (e + p(y|x\\i)),    IG_i = sum_y p(y|x) PMI_i(y),    e = 1e-13,

and a pixel's value is the mean over the windows that cover it. One walk over the windows gives the maps of every class.
As an explainer of one class: `SlidingPatch` with the contrast `PMI`, `KL` (information gain) or `LogOddsDifference`
(prediction difference analysis), see `configs/explainer/information/`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.calls import AUTO, Size, admitted
from lit_xai.core import Filler, Images, Maps, Model, Passes, as_filler
from lit_xai.errors import UsageError
from lit_xai.explainers.contrasts import EPSILON, KL, Contrast, Probabilities, in_unit
from lit_xai.explainers.sweep import SlidingPatch, sweep
from lit_xai.rng import SampleRng

PATCH = 8  # K of the paper


@dataclass(frozen=True)
class Information:
    """The information maps of a batch.

    Attributes:
        pmi: `[b, y, h, w]` bits (or nats) that a pixel's windows add for each class, at most -log2 e = 43.2 either way;
            positive = evidence for the class.
        ig: `[b, h, w]` information gain, bits (or nats), at least 0: the mean PMI of all classes under p(y|x).
        classes: `[b, y]` the classes of `pmi`.
        probabilities: `[b, y]` their p(y|x).
        passes: model passes per image.
    """

    pmi: Float[Tensor, "b y h w"]
    ig: Maps
    classes: Int[Tensor, "b y"]
    probabilities: Float[Tensor, "b y"]
    passes: Passes


class Several(Contrast):
    """The information gain, then the PMI of several classes, of every row it is shown.

    Its targets are the rows' images, and `classes` is as in `information_maps`.

    Attributes:
        of: the classes of every image and their probabilities, `[images, y]` each.
    """

    def __init__(self, classes: Int[Tensor, "b y"] | str, unit: str, images: int) -> None:
        self.classes, self.unit, self.images = classes, unit, images
        self.of: tuple[Tensor, ...] = ()

    def __call__(self, whole: Probabilities, hidden: Probabilities, targets: Int[Tensor, "r"]) -> Float[Tensor, "r n"]:
        number = whole.shape[1]
        if isinstance(self.classes, Tensor):
            chosen = self.classes[targets]
            low, high = (0, 0) if self.of else (int(self.classes.min()), int(self.classes.max()))
            if not 0 <= low <= high < number:
                raise UsageError(f"targets must lie in 0..{number - 1}, found {low}..{high}")
        elif self.classes == "top2":
            chosen = whole.topk(2).indices
        else:
            chosen = torch.arange(number, device=whole.device).expand(len(whole), -1)
        before, after = whole.gather(1, chosen), hidden.gather(1, chosen)
        pmi = in_unit(torch.log((EPSILON + before) / (EPSILON + after)), self.unit)
        self.of = self.of or tuple(t.new_zeros(self.images, t.shape[1]) for t in (chosen, before))
        for mine, rows in zip(self.of, (chosen, before), strict=True):
            mine[targets] = rows  # alike for all rows of an image
        return torch.cat([KL(self.unit)(whole, hidden, targets)[:, None], pmi], dim=1)


def information_maps(
    model: Model,
    images: Images,
    targets: Int[Tensor, "b"] | Int[Tensor, "b y"] | str,
    filler: Filler,
    patch: int | None = None,
    stride: int | None = 1,
    draws: int = 8,
    unit: str = "bits",
    rng: SampleRng | None = None,
    precision: str = "float32",
    max_batch: Size = AUTO,
    incremental: str = "auto",
) -> Information:
    """PMI maps of several classes and the information gain map, for the cost of one map.

    The log of a mean over N draws is biased by O(1/N); the paper takes K = 8 and N = 8. Beside the model, memory holds
    windows x classes float64 numbers an image.

    Args:
        model: gives logits.
        images: `[b, c, h, w]`.
        targets: the class of every image, `[b]`, or y of them, `[b, y]`; `top2`, the two likeliest; or `all`.
        filler: draws what a window might have shown, given the rest of the image.
        patch, stride: pixels; windows flush with the right and bottom edges are added where the stride misses them. None =
            the K of a fitted filler, or 8.
        draws: fillings N of a window; a filler without randomness is asked once.
        unit: `bits` or `nats`.
        rng: the images' noise.
        precision: `float32`, or `bf16` for autocast.
        max_batch: most images per model call.
        incremental: as in `SlidingPatch`.

    Raises:
        UsageError: a patch larger than the image; a stride, draws or max_batch below 1; classes that do not exist.
    """
    classes = targets[:, None] if isinstance(targets, Tensor) and targets.ndim == 1 else targets
    if isinstance(classes, str):
        if classes not in ("top2", "all"):
            raise UsageError(f"targets must be top2, all, or a tensor [images, classes], found {classes!r}")
    elif classes.ndim != 2 or len(classes) != len(images) or classes.shape[1] == 0:
        raise UsageError(f"targets must be [{len(images)} images, classes], found shape {tuple(classes.shape)}")
    else:
        classes = classes.to(images.device)
    which = torch.arange(len(images), device=images.device)
    model, images = admitted(model, images)
    if not len(images):
        raise UsageError("information maps need images, found none: pass at least one")
    height, width = images.shape[-2:]
    filler = as_filler(filler)
    known = filler.window_side() or PATCH
    patch, stride = known if patch is None else patch, known if stride is None else stride
    walk = SlidingPatch(patch, stride, filler, draws, projection="mean", scale=False)
    windows, several = walk.windows(height, width), Several(classes, unit, len(images))
    rng = SampleRng.default(len(images), rng)
    found = sweep(model, images, which, windows, filler, [several], rng, draws, precision, max_batch, incremental)[0]
    ig, pmi = found[..., 0], found[..., 1:].transpose(1, 2).flatten(0, 1)
    chosen, p = several.of
    return Information(
        windows.covering_mean(pmi).unflatten(0, chosen.shape).to(images.dtype),
        windows.covering_mean(ig).to(images.dtype),
        chosen,
        p.to(images.dtype),
        walk.passes(height, width),
    )
