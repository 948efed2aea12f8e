"""How many images go into one model call: as many as the device has room for, where nobody says.

Nothing is timed: what one image needs is measured by what a small call allocates, so that equal devices with equal room agree.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lit_xai.cache import share_of_memory
from lit_xai.calls.gate import FAILURES, Gate, raw
from lit_xai.core import Auto, Images, Model
from lit_xai.errors import UsageError

Size = int | Auto  # images a model call: a number, or `auto`
AUTO: Auto = "auto"
CPU_IMAGES = 64  # most images of one call on the CPU,
CPU_VALUES = 16 * 3 * 224 * 224  # and most pixel values: past some 2 million, activations leave the caches
MOST = 4096  # images of one call on any device
TRIED = (8, 16)  # images of the two calls that are measured
ROOM = 0.5  # of the free memory; masks, noise and other tensors need some, too
# Kept beside the model, since measuring takes more than many a call on a GPU. It is a size to begin with and no result: one that
# a changed model has outgrown runs out of memory once, and is halved.
LEARNED: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], int]] = WeakKeyDictionary()


def check_size(max_batch: Size) -> None:
    """Refuse what is neither a positive number nor `auto`."""
    whole = isinstance(max_batch, int) and not isinstance(max_batch, bool)
    if max_batch != AUTO and not (whole and int(max_batch) >= 1):
        raise UsageError(f"max_batch must be at least 1, or auto, found {max_batch!r}")


def images_a_call(model: Model, images: Images, max_batch: Size = AUTO) -> int:
    """How many of these images go into one call of a model.

    A number is taken as it is; on the CPU, fewer of large ones. `auto` is 64 there; on a GPU it is what half of the free memory holds, by
    what forward and backward pass of 8 and of 16 images allocate, as a power of two of at most 4,096.

    Raises:
        UsageError: max_batch is neither a positive number nor `auto`.
    """
    check_size(max_batch)
    known, key = learned(model), key_of(images)
    if max_batch != AUTO:
        wanted = int(max_batch)
    elif images.device.type == "cuda" and len(images):
        wanted = known.get((AUTO, *key)) or power_of_two(allocated(model, images), free(images.device))
        known[AUTO, *key] = wanted
    else:
        wanted = CPU_IMAGES
    return per_call(images, min(wanted, known.get(key, wanted)))


def per_call(images: Images, most: int) -> int:
    """`most`, and on the CPU fewer of large images."""
    return most if images.device.type != "cpu" else min(most, max(1, CPU_VALUES // max(1, images[:1].numel())))


def key_of(images: Images) -> tuple[Any, ...]:
    """What makes a difference to what an image needs."""
    return (images.device, images.dtype, *images.shape[1:])


def learned(model: Model) -> dict[tuple[Any, ...], int]:
    """What is known of a model's calls; forgotten with it."""
    model = raw(model)
    return LEARNED.setdefault(model, {}) if isinstance(model, nn.Module) else {}


def learn(model: Model, images: Images, size: int) -> None:
    """Calls of more than `size` such images do not fit."""
    learned(model)[key_of(images)] = size


def power_of_two(bytes_of: dict[int, int], room: int) -> int:
    """The largest power of two, up to `MOST`, of images that `ROOM` of the free bytes hold.

    Args:
        bytes_of: what a call allocated at its peak, by its number of images; of two numbers.
        room: bytes that are free.
    """
    (few, small), (many, large) = sorted(bytes_of.items())
    each = max((large - small) / (many - few), large / many / 2, 1.0)
    fits = (ROOM * room - max(0.0, large - many * each)) / each
    return min(MOST, 2 ** int(math.log2(max(1.0, fits))))


def free(device: torch.device) -> int:
    """Bytes that this process may still use of a CUDA device."""
    left, total = torch.cuda.mem_get_info(device)
    held, used = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
    return max(0, min(left + held - used, int(total * share_of_memory()) - used))


def allocated(model: Model, images: Images) -> dict[int, int]:
    """Bytes at the peak of a call of 8 and of 16 images on a CUDA device, with the gradient by the images where there is one."""
    gate, device, found = Gate.of(model), images.device, {}
    modes = [(m, m.training) for m in gate.modules()]
    gate.eval()
    for number in TRIED:
        x = images[:1].expand(number, -1, -1, -1).clone()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_()
            logits = gate(x)
            with contextlib.suppress(*FAILURES):  # no gradient, no need of room for one
                torch.autograd.grad(logits.sum(), x, materialize_grads=True)
            del logits
        found[number] = torch.cuda.max_memory_allocated(device) - before
    for module, mode in modes:
        module.training = mode
    return found
