"""Names and heads of a store's files, without torch; what a cut or an altered byte does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lit_xai.errors import DamagedFile
from lit_xai.store import shards
from lit_xai.store.names import range_of, shard_name, shard_paths
from lit_xai.store.shards import read_head, verify
from lit_xai.store.tensors import read_tensors, write_tensors
from safetensors import SafetensorError, safe_open


def written(path: Path) -> bytes:
    """A file with tensors of several types, one of them empty, and its bytes."""
    tensors = {
        "sample": torch.arange(3),
        "maps": torch.linspace(-1, 1, 48).view(3, 4, 4),
        "seen": torch.tensor([True, False, True]),
        "nothing": torch.empty(0),
        "number": torch.tensor(2.5, dtype=torch.float64),
        "half": torch.ones(3, dtype=torch.bfloat16),
    }
    write_tensors(path, tensors, {"note": "whole", "by": {2: "two", 10: "ten"}})
    return path.read_bytes()


def test_a_head_says_what_is_in_the_file(tmp_path):
    file = tmp_path / "x.safetensors"
    size = len(written(file))
    for head in (read_head(file), verify(file)):
        assert head.size == size
        assert head.meta["note"] == "whole"
        assert head.meta == read_tensors(file)[1]
        tensors = read_tensors(file)[0]
        assert {n: t.shape for n, t in head.tensors.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
        where = head.tensors["maps"]
        assert where.dtype == "F32"
        assert file.read_bytes()[where.start : where.stop] == tensors["maps"].numpy().tobytes()


def test_our_files_are_safetensors_files(tmp_path):
    from safetensors.torch import load_file

    written(file := tmp_path / "x.safetensors")
    ours, theirs = read_tensors(file)[0], load_file(file)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name])


def test_a_cut_or_longer_file_is_noticed_by_its_head_alone(tmp_path):
    file = tmp_path / "x.safetensors"
    whole = written(file)
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(DamagedFile):
            read_head(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(DamagedFile, match="1 bytes too many"):
        read_head(file)
    with pytest.raises(DamagedFile, match="FileNotFound"):
        read_head(tmp_path / "y.safetensors")


def test_every_flipped_bit_is_noticed(tmp_path):
    file = tmp_path / "x.safetensors"
    whole = written(file)
    key = whole.index(b"meta_checksum")  # without this one the file is as good as those of older versions
    for place in [*range(key), *range(key + len("meta_checksum"), len(whole))]:
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        file.write_bytes(data)
        for read in (verify, read_tensors):
            with pytest.raises(DamagedFile):
                read(file)


def other_maps(**changes: Any) -> Any:
    """A header whose `maps` are said to be others."""
    return lambda head: json.dumps({**json.loads(head), "maps": {**json.loads(head)["maps"], **changes}}).encode()


def twice(head: bytes) -> bytes:
    """A header in which `maps` stand twice, in the same place."""
    return head.replace(b'"maps":', b'"maps":' + json.dumps(json.loads(head)["maps"]).encode() + b',"maps":')


GARBLED: dict[str, Any] = {
    "no JSON": lambda head: b"x" * len(head),
    "no UTF-8": lambda head: head.replace(b"dtype", b"dt\xffpe", 1),
    "UTF-16": lambda head: head.decode().encode("utf-16-le"),
    "a byte order mark": lambda head: b"\xef\xbb\xbf" + head,
    "no object": lambda _: b"[1, 2]",
    "deeper than the stack": lambda _: b"[" * 100_000,
    "wrong type": other_maps(dtype="F64"),
    "unknown type": other_maps(dtype="F99"),
    "no number": other_maps(data_offsets=[float("nan")] * 2),
    "infinite": other_maps(data_offsets=[0, float("inf")]),
    "three offsets": other_maps(data_offsets=[0, 1, 2]),
    "backwards": other_maps(data_offsets=[192, 0]),
    "beside its place": other_maps(data_offsets=[1, 193]),
    "fractional offsets": lambda head: other_maps(data_offsets=[*map(float, json.loads(head)["maps"]["data_offsets"])])(head),
    "fractional shape": other_maps(shape=[3.0, 4, 4]),
    "negative shape": other_maps(shape=[-3, -4, 4]),
    "shape of truths": other_maps(shape=[True, 12, 4]),
    "shape in words": other_maps(shape="344"),
    "no shape": other_maps(shape=None),
    "a number of 5,000 digits": lambda head: head.replace(b"[3,4,4]", b"[" + b"9" * 5000 + b"]"),
    "a field twice": lambda head: head.replace(b'"shape":[3,4,4]', b'"shape":[3,4,4],"shape":[4,3,4]'),
    "a tensor twice": twice,
}  # fmt: skip
LENGTHS = {"2^60": 1 << 60, "2^64 - 1": (1 << 64) - 1, "0": 0, "1": 1}


@pytest.mark.parametrize("garble", [*GARBLED.values(), *LENGTHS.values()], ids=[*GARBLED, *LENGTHS])
def test_a_header_that_safetensors_refuses_or_that_says_things_twice_is_refused_in_a_line(garble, tmp_path):
    file = tmp_path / "x.safetensors"
    whole = written(file)
    length = int.from_bytes(whole[:8], "little")
    head = whole[8 : 8 + length] if isinstance(garble, int) else garble(whole[8 : 8 + length])
    says = garble if isinstance(garble, int) else len(head)
    file.write_bytes(says.to_bytes(8, "little") + head + whole[8 + length :])
    for read in (read_head, verify, read_tensors):
        with pytest.raises(DamagedFile) as refused:
            read(file)
        assert "\n" not in str(refused.value)
    if garble is not twice:  # of which it takes the last
        with pytest.raises(SafetensorError), safe_open(file, "numpy"):
            pass


def test_large_tensors_are_checked_in_blocks(tmp_path, monkeypatch):
    written(file := tmp_path / "x.safetensors")
    monkeypatch.setattr(shards, "BLOCK", 7)
    verify(file)


def test_names_and_ranges(tmp_path):
    assert range_of(shard_name(64, 128)) == range(64, 128)
    assert range_of(shard_name(0, 10**9 + 1)) == range(10**9 + 1)
    assert range_of(".000000000-000000063.safetensors.host.1.tmp") is None
    for name in (shard_name(64, 128), shard_name(0, 64), ".x.tmp", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in shard_paths(tmp_path)] == [shard_name(0, 64), shard_name(64, 128)]
    assert shard_paths(tmp_path / "none") == []


def test_looking_after_a_store_needs_neither_torch_nor_numpy():
    check = "import lit_xai.store.shards, sys; sys.exit(sum(m in sys.modules for m in ('torch', 'numpy', 'hydra')))"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
