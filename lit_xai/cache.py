"""Results that are asked for again within a run, kept while there is room."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor


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
        """Keep nothing."""
        self.known.clear()
        self.size = 0


def digest(tensor: Tensor) -> bytes:
    """16 bytes that belong to a tensor's content, shape, type and device."""
    content = tensor.detach().cpu().contiguous()
    about = repr((tuple(tensor.shape), tensor.dtype, str(tensor.device))).encode()
    return hashlib.blake2b(content.view(torch.uint8).numpy().tobytes() + about, digest_size=16).digest()


def nbytes(value: Any) -> int:
    """Bytes of a tensor, or of tensors in a list or tuple."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(nbytes, value)) if isinstance(value, list | tuple) else 0
