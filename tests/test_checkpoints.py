"""Checkpoints whose bytes were altered are not used."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from lit_xai.errors import UsageError
from lit_xai.store.files import load_weights, save_weights


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path: Path) -> None:
    file, module = tmp_path / "model.ckpt", torch.nn.Linear(100, 100)
    save_weights(module, file, {})
    load_weights(module, file)
    with zipfile.ZipFile(file) as parts:
        largest = max(parts.infolist(), key=lambda p: p.file_size)
    data = bytearray(file.read_bytes())
    data[largest.header_offset + 200 + largest.file_size // 2] ^= 64
    file.write_bytes(data)
    with pytest.raises(UsageError, match="is damaged"):
        load_weights(module, file)
