"""What a store's files are called and whether they are whole, by the standard library alone.

A file is a safetensors file: eight bytes with the length of a JSON header, the header (every tensor's type, shape and place,
and under `lit_xai` our own description), the tensors. Reading the head of a shard takes one small read; `verify` reads all of
it once. Nothing here needs torch, so that looking after a store starts at once.

The header is read here and not by `safetensors.safe_open`, which says of no tensor where it lies, as checksums by blocks must know; opens
a file by its name, so that head and bytes could be of two files where one is replaced; maps it into memory, where a file that somebody
cuts ends the process; and needs NumPy. What it refuses is refused here, too.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lit_xai.errors import DamagedFile
from lit_xai.store.names import FORMAT
from lit_xai.store.plans import damaged

ITEMSIZE = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "BOOL": 1, "U8": 1, "I8": 1}
MAX_HEADER = 1 << 26  # bytes; a longer one is no header of ours
BLOCK = 1 << 20  # bytes read at once


class Entry(NamedTuple):
    """Where one tensor lies: safetensors' name of its type, its shape, its first byte and the one after its last."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Head(NamedTuple):
    """What a file says of itself: our description, its tensors by name, its size in bytes."""

    meta: dict[str, Any]
    tensors: dict[str, Entry]
    size: int


class Said(NamedTuple):
    """What a shard says of itself: names of its scores, and which code made its maps and its scores."""

    scores: frozenset[str]
    made_by: tuple[tuple[str, str], ...]

    @staticmethod
    def of(head: Head) -> Said:
        """What the head of a shard says."""
        made = (head.meta, *head.meta.get("also", []))
        return Said(
            frozenset(head.meta.get("scores", ())),
            tuple((str(m.get("version", "")), str(m.get("code", ""))) for m in made),
        )


def meta_checksum(meta: Mapping[str, Any]) -> int:
    """CRC-32 of a description's text."""
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a header, in which no name stands twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


HEADER = json.JSONDecoder(object_pairs_hook=once)


def parse_head(path: Path, header: bytes | bytearray, size: int) -> Head:
    """The head in a file's first bytes: `header` holds at least the length and the JSON, `size` is the file's.

    Raises:
        DamagedFile: the tensors do not fill the file, or it is not one of ours.
    """
    try:
        length = int.from_bytes(header[:8], "little")
        if len(header) < 8 + length:
            raise damaged(path, "cut")
        content = HEADER.decode(str(header[8 : 8 + length], "utf-8"))
        meta = json.loads(content.pop("__metadata__")["lit_xai"])
        tensors = {}
        for name, t in content.items():
            (first, last), shape = t["data_offsets"], t["shape"]
            if {*map(type, (first, last, *shape))} != {int} or min(first, last, *shape) < 0:
                raise damaged(path, f"{name} has a shape or a place that is none")
            if last - first != ITEMSIZE[t["dtype"]] * math.prod(shape):
                raise damaged(path, f"{name} has another size than its shape")
            tensors[name] = Entry(t["dtype"], tuple(shape), 8 + length + first, 8 + length + last)
        expected = meta.pop("meta_checksum", None)  # files of older versions have none
        if meta["format"] != FORMAT or expected not in (None, meta_checksum(meta)):
            raise damaged(path, "checksum or format differs")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise (e if isinstance(e, DamagedFile) else damaged(path, e)) from None
    end = 8 + length
    for entry in sorted(tensors.values(), key=lambda t: (t.start, t.stop)):
        if entry.start != end:
            raise damaged(path, "a gap between tensors")
        end = entry.stop
    if end != size:
        raise damaged(path, f"cut: {size} of {end} bytes" if size < end else f"{size - end} bytes too many")
    return Head(meta, tensors, size)


def read_open_head(path: Path, file: BinaryIO) -> Head:
    """The head of an open file."""
    size = os.fstat(file.fileno()).st_size
    first = file.read(1 << 13)  # most heads, in one read
    length = int.from_bytes(first[:8], "little")
    if length > min(MAX_HEADER, max(0, size - 8)):
        raise damaged(path, f"cut: {size} bytes")
    if len(first) < 8 + length:
        first += file.read(8 + length - len(first))
    return parse_head(path, first, size)


def read_head(path: Path) -> Head:
    """A file's head, without its tensors; that it is as long as it must be is checked, what is in it is not.

    Raises:
        DamagedFile: the file cannot be opened, is cut, or is not one of ours.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return read_open_head(path, file)
    except OSError as e:
        raise damaged(path, e) from None


def checksum_of(tensors: Mapping[str, Any]) -> int:
    """CRC-32 of tensors' names and bytes (anything with the buffer protocol), by name."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name], zlib.crc32(name.encode(), crc))
    return crc


class Stamp(NamedTuple):
    """What tells a file from its successor of the same name; times in ns."""

    path: str
    size: int
    inode: int
    changed: int


def stamp_of(path: Path) -> Stamp | None:
    """A file's identity; None if it is not there."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return Stamp(str(path), stat.st_size, stat.st_ino, stat.st_mtime_ns)


def verify(path: Path) -> Head:
    """A file's head, once every byte of it agrees with its checksums; memory does not grow with the file.

    Threads may call this side by side.

    Raises:
        DamagedFile: the file is cut, altered, or not one of ours.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            head = read_open_head(path, file)
            crc, block = 0, memoryview(bytearray(min(BLOCK, max(1, head.size))))
            for name in sorted(head.tensors):
                entry = head.tensors[name]
                crc = zlib.crc32(name.encode(), crc)
                file.seek(entry.start)
                left = entry.stop - entry.start
                while left:
                    got = file.readinto(block[: min(left, len(block))])
                    if not got:
                        raise damaged(path, "cut")
                    crc = zlib.crc32(block[:got], crc)
                    left -= got
    except OSError as e:
        raise damaged(path, e) from None
    if crc != head.meta.get("checksum"):
        raise damaged(path, "checksum or format differs")
    return head
