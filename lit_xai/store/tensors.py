"""Files of tensors with what they mean and a checksum of both."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_bytes
from torch import Tensor

from lit_xai.store.files import write_atomically
from lit_xai.store.names import FORMAT
from lit_xai.store.plans import damaged
from lit_xai.store.shards import Entry, Head, checksum_of, meta_checksum, parse_head

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of all tensors `[...]` by name."""
    return checksum_of({n: t.contiguous().flatten().view(torch.uint8).numpy() for n, t in tensors.items()})


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors `[...]` by name and their JSON description, atomically."""
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    description = json.loads(json.dumps({**meta, "format": FORMAT, "checksum": checksum(plain)}))
    text = json.dumps({**description, "meta_checksum": meta_checksum(description)}, sort_keys=True)
    write_atomically(path, save_bytes(plain, metadata={"lit_xai": text}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a whole, unaltered file.

    Raises:
        DamagedFile: the file is cut, altered, or not one of ours.
    """
    tensors, head = read_whole(path)
    return tensors, head.meta


def read_whole(path: Path) -> tuple[dict[str, Tensor], Head]:
    """Tensors and head of a whole, unaltered file, read once and not copied.

    Raises:
        DamagedFile: the file is cut, altered, or not one of ours.
    """
    try:
        data = bytearray(path.stat().st_size)
        with open(path, "rb", buffering=0) as file:
            got = file.readinto(data)
    except OSError as e:
        raise damaged(path, e) from None
    head = parse_head(path, data, got)
    view = memoryview(data)
    if head.meta.get("checksum") != checksum_of({n: view[t.start : t.stop] for n, t in head.tensors.items()}):
        raise damaged(path, "checksum or format differs")
    return {n: tensor_at(data, t) for n, t in head.tensors.items()}, head


def tensor_at(data: bytearray, entry: Entry) -> Tensor:
    """A tensor that shares a file's bytes."""
    if entry.start == entry.stop:
        return torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    number = math.prod(entry.shape)
    return torch.frombuffer(data, dtype=DTYPES[entry.dtype], count=number, offset=entry.start).view(entry.shape)
