"""Results that are asked for again within a run, kept while there is room; and what of a device's room is this process's."""

from __future__ import annotations

import hashlib
import math
import os
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from lit_xai.errors import UsageError

SHARE = "LIT_XAI_MEMORY_SHARE"  # what of a device's memory is this process's, in (0, 1], where several share it


class Cache:
    """Values by key; the least recently used go when `limit` bytes are reached."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self.known: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        """The value, or None."""
        if key not in self.known:
            return None
        self.known.move_to_end(key)
        return self.known[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep a value of this many bytes; one that is larger than the limit is not kept."""
        if key in self.known:
            self.size -= self.known.pop(key)[1]
        self.known[key] = value, size
        self.size += size
        while self.size > self.limit:
            self.size -= self.known.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Forget everything that is kept."""
        self.known.clear()
        self.size = 0


def digest(tensor: Tensor) -> bytes:
    """16 bytes that belong to the content, shape, type and device of a tensor `[...]`."""
    content = tensor.detach().cpu().contiguous()
    about = repr((tuple(tensor.shape), tensor.dtype, str(tensor.device))).encode()
    return hashlib.blake2b(content.view(torch.uint8).numpy().tobytes() + about, digest_size=16).digest()


def nbytes(value: Any) -> int:
    """Bytes of a tensor, or of tensors in a list or tuple."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(nbytes, value)) if isinstance(value, list | tuple) else 0


def share_of_memory() -> float:
    """This process's share of a device's memory, by `LIT_XAI_MEMORY_SHARE`; 1 where it is not set.

    Raises:
        UsageError: it is no number in (0, 1].
    """
    text = os.environ.get(SHARE, "1")
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UsageError(f"{SHARE}={text} is no share of a device's memory: set a number in (0, 1], or unset it")
    return share
