"""The gate that every model call goes through: what comes in is checked once a call of an explainer or a score, what comes out
at the model's first answer.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lit_xai.core import ROUNDING, Images, Model, Targets
from lit_xai.errors import UsageError

SUMS = 1e-4  # by which the sum of a row of probabilities may differ from 1
HALF = (torch.float16, torch.bfloat16)
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, AssertionError)

# ------------------------------------------------------------------------------------------------------------ what comes in


def check_images(images: Any) -> None:
    """Refuse what is not a batch of images in [0, 1]."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        found = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"images must be [batch, channels, height, width], found {found}")
    check_range(images)


def check_range(images: Tensor) -> None:
    """Refuse images `[b, c, h, w]` that are not numbers in [0, 1], but for rounding: fillers, noise and scores take them to be."""
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


def as_targets(targets: Any, images: int, device: torch.device) -> Targets:
    """Class indices `[images]`, int64 on `device`.

    Args:
        targets: one class for all images; a list, an array or a tensor of classes, `[n]` or `[n, 1]`, of any integers or of
            whole floating-point numbers; or one-hot rows `[n, k]`.
        images: how many there are.
        device: the images'.

    Raises:
        UsageError: anything else, or another number of them.
    """
    try:
        found = torch.as_tensor(targets, device=device).detach()
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(f"targets must be class indices, one per image, found {targets!r:.60}") from None
    if found.ndim == 0 and found.dtype != torch.bool:
        found = found.expand(images)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    elif found.ndim == 2:
        one_hot = (found == found.max(1, keepdim=True).values).sum(1) == 1 if found.numel() else found.sum(1) == 0
        if not bool((one_hot & (found.sum(1) == 1) & ((found == 0) | (found == 1)).all(1)).all()):
            raise UsageError(f"targets of shape {tuple(found.shape)} are not one-hot: pass one class index per image")
        found = found.int().argmax(1)
    if found.ndim != 1 or found.dtype == torch.bool or found.is_complex():
        what = f"{found.dtype} of shape {tuple(found.shape)}"
        raise UsageError(f"targets must be class indices, one per image, found {what}")
    if len(found) != images:
        raise UsageError(f"{len(found)} targets for {images} images: pass one class index per image")
    whole = found.long()
    if found.is_floating_point() and not torch.equal(whole.to(found.dtype), found):
        raise UsageError("targets are not whole numbers: pass class indices, not probabilities or regression values")
    if images and int(whole.min()) < 0:
        raise UsageError(f"target {int(whole.min())} is no class: pass class indices from 0")
    return whole


def check_classes(logits: Float[Tensor, "r k"], targets: Targets) -> None:
    """Refuse targets that the model has no output for."""
    if len(targets) and int(targets.max()) >= logits.shape[1]:
        raise no_class(int(targets.max()), logits.shape[1])


def no_class(target: int, classes: int) -> UsageError:
    """The line for a class that does not exist."""
    return UsageError(f"target {target} does not exist: the model has classes 0..{classes - 1}")


# ----------------------------------------------------------------------------------------------------------------- the gate


class Declared(nn.Module):
    """A model whose maker has said what its answers are: they are not looked at for probabilities."""


class Gate(nn.Module):
    """A model whose answers are logits `[b, k]`, in float32 at least.

    Its first answer is checked; an object with `logits`, a dictionary with that key, or a sequence whose first item is `[b, k]` is
    taken for what it holds.

    Attributes:
        model: the user's own, for those who read its layers.
        takes: the floating-point type that inputs are cast to; None = they are passed on as they are.
        most: the largest class that is asked for.
        classes: how many it has; None = it was not called yet.
        plain: its own answer is the logits, and inputs are passed on: it may be called directly.

    Raises:
        UsageError: at the first call, the model fails, gives anything else than logits, gives probabilities, has no such class,
            draws random numbers, or treats an image by the batch that it is in.
    """

    def __init__(self, model: Model, most: int = -1) -> None:
        super().__init__()
        self.model = model
        self.takes: torch.dtype | None = None
        self.most = most
        self.classes: int | None = None
        self.logits_of: Callable[[Any], Tensor] | None = None
        self.training = False

    @staticmethod
    def of(model: Model, targets: Targets | None = None) -> Gate:
        """The model behind a gate, where it is not behind one already."""
        if isinstance(model, Gate):
            return model
        return Gate(model, int(targets.max()) if targets is not None and len(targets) else -1)

    @property
    def plain(self) -> bool:
        """See above; of a model that was not called yet, unknown: False."""
        return self.logits_of is itself and self.takes is None and not isinstance(self.model, Declared)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """The model's logits, float32 where it gives a half-precision type."""
        if self.takes is not None:
            x = x.to(self.takes)
        logits = self.first(x) if self.logits_of is None else self.logits_of(self.model(x))
        return logits.float() if logits.dtype in HALF else logits

    def first(self, x: Tensor) -> Tensor:
        """The first answer, checked."""
        refuse_batch_statistics(self.model)
        states = random_states(x.device)
        answer = self.answer(x)
        logits_of = way_to_logits(answer)
        logits = logits_of(answer)
        check_logits(logits, len(x), sure=isinstance(self.model, Declared))
        self.classes = logits.shape[1]
        self.require(self.most)
        if states != random_states(x.device) and not torch.equal(logits, logits_of(self.answer(x))):
            raise UsageError(
                "the model draws random numbers in evaluation mode, and answers the same image differently each time: pass "
                "training=self.training to its dropout, or fix its seed"
            )
        self.logits_of = logits_of
        return logits

    def answer(self, x: Tensor) -> Any:
        """What the model gives."""
        try:
            return self.model(x)
        except (UsageError, torch.OutOfMemoryError):
            raise
        except FAILURES as e:
            why = " ".join(str(e).split())[:160]
            what = f"images of shape {tuple(x.shape)}, {x.dtype} on {x.device}"
            raise UsageError(f"the model fails on {what} ({type(e).__name__}: {why})") from e

    def require(self, most: int) -> None:
        """Refuse classes up to `most` that the model does not have; before its first call, remember them."""
        self.most = max(most, self.most) if self.classes is None else most
        if self.classes is not None and self.most >= self.classes:
            raise no_class(self.most, self.classes)


def raw(model: Model) -> Model:
    """The user's own model, whose layers have the names that they know."""
    return model.model if isinstance(model, Gate) else model


def itself(answer: Tensor) -> Tensor:
    """What a model gives that gives logits `[b, k]`."""
    return answer


def way_to_logits(answer: Any) -> Callable[[Any], Tensor]:
    """How logits are taken from answers of this kind."""
    if isinstance(answer, Tensor):
        return itself
    if isinstance(answer, Mapping):
        if isinstance(answer.get("logits"), Tensor):
            return lambda a: a["logits"]
        found = f"a dictionary of {', '.join(map(str, list(answer)[:6]))}"
    elif isinstance(getattr(answer, "logits", None), Tensor):
        return lambda a: a.logits
    elif isinstance(answer, tuple | list) and answer and isinstance(answer[0], Tensor) and answer[0].ndim == 2:
        return lambda a: a[0]
    else:
        found = type(answer).__name__
    raise UsageError(f"the model gives {found}: wrap it so that it returns logits [b, k]")


def check_logits(logits: Tensor, images: int, sure: bool = False) -> None:
    """Refuse what is not one row of logits an image, `[images, k]`.

    Raises:
        UsageError: another shape, whole numbers, one column, and, unless somebody is sure, probabilities.
    """
    shape = tuple(logits.shape)
    if logits.ndim == 2 and shape == (images, 1):
        raise UsageError(
            "the model gives one number an image, [b, 1]: say which by lit_xai.models.AsLogits(model, 'binary') of a logit, "
            "(model, 'probabilities') of the probability of class 1"
        )
    if logits.ndim != 2 or len(logits) != images or not logits.is_floating_point():
        what = f"{shape}" if logits.is_floating_point() else f"{shape} of {logits.dtype}"
        raise UsageError(
            f"the model gives shape {what} for {images} images: wrap the model so that it returns logits [b, k]"
        )
    least, eps = logits.detach().double(), torch.finfo(logits.dtype).eps
    near = eps if logits.dtype in HALF else SUMS
    if images and not sure and bool((least >= 0).all() & ((least.sum(1) - 1).abs() <= near).all()):
        raise UsageError(
            "the model gives probabilities (at least 0, rows sum to 1) where logits are needed: remove its softmax, or say so by "
            "outputs='probabilities' (lit_xai.models.AsLogits(model, 'probabilities'))"
        )


def refuse_batch_statistics(model: Model) -> None:
    """Refuse layers that normalise an image by the others in its batch, also in evaluation mode."""
    for name, m in model.named_modules() if isinstance(model, nn.Module) else ():
        if isinstance(m, _BatchNorm) and not isinstance(m, _InstanceNorm) and m.running_mean is None:
            raise UsageError(
                f"layer {name} normalises an image by the others in its batch (track_running_stats=False), so maps would depend on "
                "them: give it running statistics"
            )


def random_states(device: torch.device) -> list[Any]:
    """The states of the common random generators that a model on this device can draw from: torch's, NumPy's, Python's."""
    numpy = np.random.get_state(legacy=False)["state"]  # type: ignore[call-overload]  # noqa: NPY002
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return [random.getstate(), numpy["pos"], numpy["key"].tobytes(), *(s.numpy().tobytes() for s in states)]


def admitted(model: Model, images: Any) -> tuple[Gate, Images]:
    """The model behind its gate, and images in the precision in which all sums are taken: float32, or the model's float64.

    Half-precision images are exact in float32; a model of half precision gets them back as they were.

    Raises:
        UsageError: images that are no batch in [0, 1], are on another device than the model, or would be rounded for it.
    """
    check_images(images)
    gate = Gate.of(model)
    weights = next((p for p in gate.parameters() if p.is_floating_point()), None)
    dtype = images.dtype if weights is None else weights.dtype
    if weights is not None and weights.device != images.device:
        raise UsageError(f"the model is on {weights.device} and the images are on {images.device}: move one of them")
    if gate.takes is not None:
        return gate, images.float() if images.dtype in HALF else images
    if dtype in HALF and images.dtype == dtype:
        gate.takes = dtype
    elif torch.promote_types(dtype, images.dtype) != dtype:
        names = (str(t).removeprefix("torch.") for t in (dtype, images.dtype, dtype))
        raise UsageError("the model is {} and the images are {}: pass images.to(torch.{})".format(*names))
    return gate, images.to(torch.float64 if dtype == torch.float64 else torch.float32)


def admit(model: Model, images: Any, targets: Any) -> tuple[Gate, Images, Targets]:
    """What an explainer or a score works with: the gate, images in [0, 1], int64 targets on their device.

    Raises:
        UsageError: see `admitted`, `as_targets`, and of classes that are not the model's `Gate`.
    """
    gate, images = admitted(model, images)
    targets = as_targets(targets, len(images), images.device)
    if len(images):
        gate.require(int(targets.max()))
    return gate, images, targets


C = TypeVar("C", bound=Callable[..., Any])


def gated(call: C) -> C:
    """An explainer's call or a score's, that gets its `model`, `images` and `targets` by `admit`.

    It is not made for an empty batch, whose maps `[0, h, w]` or scores `[0]` are empty.
    """
    signature = inspect.signature(call)
    of_maps = "maps" in signature.parameters

    @wraps(call)
    def through(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        gate, images, targets = admit(given["model"], given["images"], given["targets"])
        if not len(images):
            nothing = images.new_zeros(0) if of_maps else images.new_zeros(0, *images.shape[-2:])
            return (nothing, {}) if call.__name__ == "with_details" else nothing
        given.update(model=gate, images=images, targets=targets)
        result = call(*bound.args, **bound.kwargs)
        return result.to(images.dtype) if isinstance(result, Tensor) and not of_maps else result

    return through  # type: ignore[return-value]
