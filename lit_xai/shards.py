"""What a store's files are called and whether they are whole, by the standard library alone.

A file is a safetensors file: eight bytes with the length of a JSON header, the header (every tensor's type, shape and place,
and under `lit_xai` our own description), the tensors. Reading the head of a shard takes one small read; `verify` reads all of
it once. Nothing here needs torch, so that looking after a store starts at once.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from lit_xai.cli import config_dir
from lit_xai.errors import DamagedFile

FORMAT = 1
RANDOM, DISAGREEMENTS = "maps", "disagreements"
PREDICTIONS = "predictions.safetensors"
LIBRARY = "explain_folds"  # the door in plans that no command but a call of this function left
PLANS, DOORS = "plans", ("train", "explain", LIBRARY)  # where plans are, and the commands that they may name
NAME = re.compile(r"(\d{9,})-(\d{9,})\.safetensors")
ITEMSIZE = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "BOOL": 1, "U8": 1, "I8": 1}
MAX_HEADER = 1 << 26  # bytes; a longer one is no header of ours
BLOCK = 1 << 20  # bytes read at once
READERS = 8  # threads that wait for files
SETTLED = 2_000_000_000  # ns after which a file's time of change tells it from its successor on every file system
A = TypeVar("A")
B = TypeVar("B")


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


# --------------------------------------------------------------------------------------------------------------- names


def shard_name(start: int, stop: int) -> str:
    """The file of probes start..stop-1."""
    return f"{start:09d}-{stop - 1:09d}.safetensors"


def range_of(name: str) -> range | None:
    """The probes of a shard by its file's name; None for any other file."""
    found = NAME.fullmatch(name)
    return range(int(found[1]), int(found[2]) + 1) if found else None


def shard_paths(folder: Path) -> list[Path]:
    """The shards that are in `fold=<i>/maps/<explainer>` or `fold=<i>/disagreements/<explainer>`, in order."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(e.name for e in entries if NAME.fullmatch(e.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in found]


def explainers_in(folder: Path) -> list[str]:
    """The explainers of which `fold=<i>/maps` or `fold=<i>/disagreements` holds anything."""
    return sorted(d.name for d in folder.iterdir() if d.is_dir() and shard_paths(d)) if folder.is_dir() else []


def fold_paths(root: Path) -> dict[int, Path]:
    """The folders `fold=<i>` of an experiment, by i, ascending."""
    found = {p.name.removeprefix("fold="): p for p in root.glob("fold=*")}
    return {int(n): found[n] for n in sorted((n for n in found if n.isdigit()), key=int)}


def called_again(root: Path) -> str:
    """What completes or mends an experiment that `explain_folds` made."""
    return f"call lit_xai.crossval.explain_folds again with the same arguments and root={str(root)!r}"


def mend(path: Path) -> str:
    """The command that writes a store's file again: the one that made it, where its plan is there."""
    fold = next((p for p in path.parents if p.name.startswith("fold=")), path.parent / "fold=0")
    place = [f"root={fold.parent.parent}", f"name={fold.parent.name}", fold.name]
    kind = path.parent.parent.name
    more = [f"explainer=[{path.parent.name}]"] if NAME.fullmatch(path.name) else []
    more += ["probes=disagreements"] if kind == DISAGREEMENTS else []
    plan = read_plan(fold / PLANS / kind / f"{path.parent.name}.json")
    if plan.get("withheld"):
        return "run the command that made it"
    if plan.get("door") == LIBRARY:
        return called_again(fold.parent)
    options = plan.get("overrides", more)
    return "run " + shlex.join(["python", "-m", f"lit_xai.{plan.get('door', 'explain')}", *options, *place])


def read_plan(file: Path) -> dict[str, Any]:
    """What a plan says (see `lit_xai.status`), of the right types; empty if there is none that can be read.

    Its command is shown to people who paste it. Where it holds an override that a file may not decide, `withheld` names it.
    """
    try:
        plan = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    types = {"door": str, "overrides": list, "scores": list, "node": dict}
    if not isinstance(plan, dict) or not all(isinstance(v, types.get(k, int)) for k, v in plan.items()):
        return {}
    if plan.setdefault("door", "explain") not in DOORS:
        return {}
    withheld = [o for o in plan.setdefault("overrides", []) if not repeatable(o)]
    target = plan.get("node", {}).get("_target_", "lit_xai.")
    withheld += (
        [] if str(target).startswith("lit_xai.") else [f"{file.stem}={target}"]
    )  # the user's own, who knows from where
    return {**plan, "withheld": printable(str(withheld[0]).split("=")[0])} if withheld else plan


def printable(text: str) -> str:
    """A text of a file for a terminal: no control characters, and not long."""
    return "".join(c if c.isprintable() else "?" for c in text)[:80]


def repeatable(override: Any) -> bool:
    """Whether an override that a file tells may stand in a command: it names no code but what our own configurations name."""
    if not isinstance(override, str) or not override.isprintable():
        return False
    key = re.match(r"(\+\+|\+|~)?([\w./@]+)(=|$)", override)
    if key is None or key[2].startswith("hydra") or re.sub(r"\$\{oc\.env:\w+\}", "", override).count("${"):
        return False
    named = re.findall(r"_target_[\"']?\s*[:=]\s*[\"']?([\w.]+)", override)
    return len(named) == override.count("_target_") and (not named or set(named) <= named_in_configs())


def named_in_configs() -> set[str]:
    """Every `_target_` of the package's own configurations, read as text."""
    texts = (file.read_text() for file in sorted(config_dir().rglob("*.yaml")))
    return {name for text in texts for name in re.findall(r"_target_: *([\w.]+)", text)}


def damaged(path: Path, why: object) -> DamagedFile:
    """The error that says so."""
    text = why if isinstance(why, str) else type(why).__name__
    return DamagedFile(f"{path} is damaged ({text}): {mend(path)}")


# --------------------------------------------------------------------------------------------------------------- heads


def meta_checksum(meta: Mapping[str, Any]) -> int:
    """CRC-32 of a description's text."""
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def parse_head(path: Path, header: bytes | bytearray, size: int) -> Head:
    """The head in a file's first bytes: `header` holds at least the length and the JSON, `size` is the file's.

    Raises:
        DamagedFile: the tensors do not fill the file, or it is not one of ours.
    """
    try:
        length = int.from_bytes(header[:8], "little")
        if len(header) < 8 + length:
            raise damaged(path, "cut")
        content = json.loads(header[8 : 8 + length])
        meta = json.loads(content.pop("__metadata__")["lit_xai"])
        tensors = {}
        for name, t in content.items():
            first, last = t["data_offsets"]
            tensors[name] = Entry(t["dtype"], tuple(t["shape"]), 8 + length + first, 8 + length + last)
            if last - first != ITEMSIZE[t["dtype"]] * math.prod(t["shape"]):
                raise damaged(path, f"{name} has another size than its shape")
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


class Identity(NamedTuple):
    """What tells a file from its successor of the same name; times in ns."""

    path: str
    size: int
    inode: int
    changed: int


def identity_of(path: Path, stat: os.stat_result | None = None) -> Identity | None:
    """A file's identity; None if it is not there."""
    try:
        stat = stat or os.stat(path)
    except OSError:
        return None
    return Identity(str(path), stat.st_size, stat.st_ino, stat.st_mtime_ns)


def is_settled(identity: Identity | None) -> bool:
    """Whether a change from now on would show in the file's identity: clocks of file systems tick slowly."""
    return identity is not None and time.time_ns() - identity.changed > SETTLED


VERIFIED: set[Identity] = set()  # what this process found whole


def verify(path: Path) -> Head:
    """A file's head, once every byte of it agrees with its checksums; memory does not grow with the file.

    A file that did not change since is not read again by the same process. Threads may call this side by side.

    Raises:
        DamagedFile: the file is cut, altered, or not one of ours.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            stat = os.fstat(file.fileno())
            identity = identity_of(path, stat)
            head = read_open_head(path, file)
            if identity in VERIFIED:
                return head
            crc, block = 0, memoryview(bytearray(min(BLOCK, max(1, stat.st_size))))
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
    if identity is not None and is_settled(identity):
        VERIFIED.add(identity)
    return head


def side_by_side(work: Callable[[A], B], things: Iterable[A]) -> Iterator[B]:
    """`work(thing)` for every thing, in order, by a few threads: for what waits for files, or checks their bytes."""
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        for thing in things:
            waiting.append(pool.submit(work, thing))
            if len(waiting) > 2 * READERS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
