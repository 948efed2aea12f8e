"""Model calls: what is checked before them, in which mode and precision they run, how they are cut into chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_xai.core import Images, Model, Targets
from lit_xai.errors import UsageError

CPU_VALUES = 16 * 3 * 224 * 224  # most pixel values of one model call on the CPU
ROUNDING = 1e-3  # by which pixel values may leave [0, 1]


def check_batch(images: Images, targets: Targets) -> None:
    """Refuse what no explainer can use: images that are not a batch or not in [0, 1], a target per image missing."""
    if images.ndim != 4:
        raise UsageError(f"images must be [batch, channels, height, width], found shape {tuple(images.shape)}")
    check_range(images)
    if len(targets) != len(images):
        raise UsageError(f"{len(targets)} targets for {len(images)} images: pass one class index per image")
    if len(targets) and int(targets.min()) < 0:
        raise UsageError(f"target {int(targets.min())} is no class: pass class indices from 0")


def check_range(images: Tensor) -> None:
    """Refuse images that are not numbers in [0, 1], but for rounding: fillers, noise and scores take them to be."""
    if not images.is_floating_point():
        raise UsageError(f"images are {images.dtype}: pass floating-point values in [0, 1], as images / 255")
    if not images.numel():
        return
    low, high = (float(v) for v in torch.aminmax(images.detach()))
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return
    if not math.isfinite(low) or not math.isfinite(high):
        bad = int((~torch.isfinite(images)).flatten(1).any(1).nonzero()[0])
        raise UsageError(f"image {bad} of this batch holds NaN or infinite values: mend it or leave it out")
    mend = (
        "put the normalisation inside the model" if low < 0 else f"divide by {'255' if high > 16 else 'their largest'}"
    )
    raise UsageError(f"images lie in [{low:.3g}, {high:.3g}]: pass values in [0, 1] ({mend})")


def check_classes(logits: Float[Tensor, "r k"], targets: Targets) -> None:
    """Refuse targets that the model has no output for."""
    if len(targets) and int(targets.max()) >= logits.shape[1]:
        raise UsageError(f"target {int(targets.max())} does not exist: the model has classes 0..{logits.shape[1] - 1}")


def check_logits(model: Model, image: Images, labels: Int[Tensor, "n"]) -> None:
    """Refuse a model that does not give the logits of every class for one image `[1, c, h, w]`."""
    with torch.inference_mode():
        logits: Any = model(image)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UsageError(f"the model must give logits [b, k] for images [b, c, h, w]; for one image it gives {found}")
    check_classes(logits, labels)


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """The model in evaluation mode (no dropout, fixed batch statistics); every module's mode is restored afterwards."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [m.training for m in modules]
    try:
        if any(modes):
            model.eval()  # type: ignore[attr-defined]
        yield
    finally:
        for m, mode in zip(modules, modes, strict=True):
            m.training = mode


def select_output(logits: Float[Tensor, "b k"], targets: Targets, output: str = "logit") -> Float[Tensor, "b"]:
    """The logit (`output="logit"`) or softmax probability (`"probability"`) of each row's target class."""
    if output == "probability":
        logits = logits.softmax(dim=-1)
    elif output != "logit":
        raise UsageError(f"output must be logit or probability, found {output!r}")
    return logits.gather(-1, targets[:, None])[:, 0]


def in_format_of(chunk: Tensor, like: Tensor) -> Tensor:
    """`chunk` in channels-last memory if `like` is (a gather forgets it, and convolutions are faster with it)."""
    if like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        return chunk.contiguous(memory_format=torch.channels_last)
    return chunk


def row_chunks(images: int, each: int, max_batch: int) -> Iterator[tuple[list[int], list[int]]]:
    """Walk `images x each` model inputs in chunks of at most `max_batch` rows.

    Yields two lists of equal length: the image of every row, and which of that image's inputs it is.
    """
    if max_batch < 1:
        raise UsageError(f"max_batch must be at least 1, found {max_batch}")
    for start in range(0, images * each, max_batch):
        rows = range(start, min(start + max_batch, images * each))
        yield [r // each for r in rows], [r % each for r in rows]


def per_call(images: Images, max_batch: int) -> int:
    """How many of these images go into one model call: `max_batch`, and on the CPU fewer of large ones.

    Past some 2 million values the activations leave the caches, and larger calls are slower, not faster.
    """
    if images.device.type != "cpu" or max_batch < 1:
        return max_batch
    return min(max_batch, max(1, CPU_VALUES // images[0].numel()))


@contextmanager
def autocast(images: Tensor, precision: str) -> Iterator[None]:
    """`precision="bf16"` runs the model under autocast; `"float32"` leaves it as it is."""
    if precision not in ("float32", "bf16"):
        raise UsageError(f"precision must be float32 or bf16, found {precision!r}")
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield


def evaluate_rows(
    model: Model,
    make: Callable[[list[int], list[int]], Tensor],
    images: Images,
    targets: Targets,
    each: int,
    max_batch: int,
    output: str = "logit",
    precision: str = "float32",
) -> Float[Tensor, "b n"]:
    """The target's output for `each` variants of every image: `[images, each]`, in chunks of `max_batch` rows.

    `make(image_of_row, variant_of_row)` builds one chunk. No gradient is recorded.
    """
    out = torch.empty(len(images) * each, dtype=images.dtype, device=images.device)
    with torch.inference_mode(), evaluating(model):
        done = 0
        for image_of, variant_of in row_chunks(len(images), each, per_call(images, max_batch)):
            with autocast(images, precision):
                logits = model(in_format_of(make(image_of, variant_of), images))
            if not done:
                check_classes(logits, targets)
            chunk = select_output(logits.to(images.dtype), targets[image_of], output)
            out[done : done + len(chunk)] = chunk
            done += len(chunk)
    return out.view(len(images), each)
