"""Model calls: in which mode and precision they run, how a walk over many inputs is cut into chunks.

A chunk's indices are made on the device; nothing in a walk waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_xai.calls.gate import Gate
from lit_xai.calls.memory import Size, images_a_call, learn
from lit_xai.core import Images, Model, Targets
from lit_xai.errors import UsageError

LOG = logging.getLogger(__name__)


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


def gradients(output: Tensor, inputs: Tensor) -> Tensor:
    """D output / d inputs, `[b, ...]` as `inputs`, of a sum `output`; 0 where it does not depend on them.

    Raises:
        UsageError: the model does not hand a gradient on.
    """
    if not output.requires_grad:
        raise UsageError("the model's output does not depend on its input by a gradient: use a perturbation method")
    try:
        return torch.autograd.grad(output, inputs, materialize_grads=True)[0]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as e:
        why = " ".join(str(e).split())[:160]
        raise UsageError(f"the model's gradient cannot be taken ({why}): use a perturbation method") from e


def in_format_of(chunk: Tensor, like: Tensor) -> Tensor:
    """`chunk` `[r, c, h, w]` in channels-last memory if `like` is: a gather forgets it, and convolutions are faster with it."""
    if like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        return chunk.contiguous(memory_format=torch.channels_last)
    return chunk


@dataclass(frozen=True)
class Chunk:
    """Rows `start` to `stop - 1` of a walk over `images x each` inputs: row r is variant `r % each` of image `r // each`.

    Attributes:
        start, stop: the rows.
        each: variants of an image.
        device: where the indices are wanted.
    """

    start: int
    stop: int
    each: int
    device: torch.device

    def __len__(self) -> int:
        return self.stop - self.start

    @cached_property
    def row(self) -> Int[Tensor, "r"]:
        """The number of every row in the whole walk."""
        return torch.arange(self.start, self.stop, device=self.device)

    @cached_property
    def image(self) -> Int[Tensor, "r"]:
        """The image of every row."""
        return self.row // self.each

    @cached_property
    def variant(self) -> Int[Tensor, "r"]:
        """Which of its image's inputs every row is."""
        return self.row % self.each

    @property
    def images(self) -> range:
        """The images that it has rows of."""
        return range(self.start // self.each, (self.stop - 1) // self.each + 1)

    def rows(self, image: int) -> slice:
        """The rows of one of its images, counted from its own first."""
        first, last = (n - self.start for n in (image * self.each, (image + 1) * self.each))
        return slice(max(0, first), min(len(self), last))


def chunks(images: int, each: int, most: int, device: torch.device | None = None) -> Iterator[Chunk]:
    """A walk over `images x each` inputs in chunks of at most `most` rows."""
    for start in range(0, images * each, most):
        yield Chunk(start, min(start + most, images * each), each, device or torch.device("cpu"))


def walk(
    model: Model, images: Images, each: int, max_batch: Size, do: Callable[[Chunk], None], most: int | None = None
) -> None:
    """`do` every chunk of a walk over `images x each` inputs of a model.

    Where a chunk does not fit the device's memory, its half is tried, and a line says so: `do` may not have changed anything before it
    runs out of memory, or must be right when it is done again. Later walks of the same model begin with what did fit.

    Args:
        model, images: whose inputs they are.
        each: inputs of an image.
        max_batch: most of them in a chunk, or `auto` (see `images_a_call`).
        do: what is done with a chunk.
        most: of a chunk, where it makes several inputs of a row.

    Raises:
        UsageError: max_batch is neither a positive number nor `auto`.
        torch.OutOfMemoryError: one row does not fit.
    """
    size, start, total = images_a_call(model, images, max_batch), 0, len(images) * each
    size = size if most is None else min(size, most)
    while start < total:
        chunk, failed = Chunk(start, min(start + size, total), each, images.device), None
        try:
            do(chunk)
        except torch.OutOfMemoryError as e:
            if len(chunk) == 1:
                raise
            failed = str(e).splitlines()[0] if str(e) else "out of memory"
        if failed is None:
            start = chunk.stop
            continue
        size = len(chunk) // 2  # what failed is let go of by now
        if images.device.type == "cuda":
            torch.cuda.empty_cache()
        learn(model, images, size)
        LOG.warning("%d images a model call do not fit (%.80s): going on with %d", len(chunk), failed, size)


@contextmanager
def autocast(images: Tensor, precision: str) -> Iterator[None]:
    """`precision="bf16"` runs the model under autocast on the device of images `[b, ...]`; `"float32"` leaves it as it is."""
    if precision not in ("float32", "bf16"):
        raise UsageError(f"precision must be float32 or bf16, found {precision!r}")
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield


def evaluate_rows(
    model: Model,
    make: Callable[[Chunk], Tensor],
    images: Images,
    targets: Targets,
    each: int,
    max_batch: Size,
    output: str = "logit",
    precision: str = "float32",
) -> Float[Tensor, "b n"]:
    """The target's output for `each` variants of every image: `[images, each]`, chunk by chunk (see `walk`).

    `make(chunk)` builds the inputs of one, and may be asked for the same rows again. No gradient is recorded.
    """

    def of_target(logits: Tensor, chunk: Chunk) -> Tensor:
        return select_output(logits, targets[chunk.image], output)

    return asked(Gate.of(model, targets), make, images, each, max_batch, of_target, precision)


def predicted_rows(
    model: Model, make: Callable[[Chunk], Tensor], images: Images, each: int, max_batch: Size
) -> Float[Tensor, "b n"]:
    """The predicted class for `each` variants of every image, as a number; NaN where a logit is none: what such a model says is not
    its first class. Else as `evaluate_rows`.
    """

    def said(logits: Tensor, _: Chunk) -> Tensor:
        return logits.argmax(1).to(logits.dtype).masked_fill(logits.isnan().any(1), torch.nan)

    return asked(Gate.of(model), make, images, each, max_batch, said)


def asked(
    gate: Gate,
    make: Callable[[Chunk], Tensor],
    images: Images,
    each: int,
    max_batch: Size,
    take: Callable[[Float[Tensor, "r k"], Chunk], Float[Tensor, "r"]],
    precision: str = "float32",
) -> Float[Tensor, "b n"]:
    """What `take(logits, chunk)` makes of a model's answers, a number a row."""
    out = torch.empty(len(images) * each, dtype=images.dtype, device=images.device)

    def ask(chunk: Chunk) -> None:
        with autocast(images, precision):
            logits = gate(in_format_of(make(chunk), images))
        out[chunk.start : chunk.stop] = take(logits.to(images.dtype), chunk)

    with torch.inference_mode(), evaluating(gate):
        walk(gate, images, each, max_batch, ask)
    return out.view(len(images), each)
