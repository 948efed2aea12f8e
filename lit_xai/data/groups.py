"""Which samples belong together (pictures of one patient, scene, video), and folds that are given: read from what people have.

A text says where it is written, one value a sample:

- `FILE.csv` or `FILE.csv:COLUMN`: a table with the column `file` (paths below the data root, or names of files), or a row a sample;
- `FILE.npy`, `FILE.npz:KEY`: an array in the order of the samples;
- a key of the archive that the images come from;
- else a regular expression, searched for in every picture's path below the data root: what its brackets hold, else what it matches.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lit_xai.data.images import Source
from lit_xai.errors import UsageError

FILE_COLUMNS = (
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "path",
    "image",
    "image_name",
    "image_path",
    "image_id",
    "img",
)


def codes(values: Iterable[Any], what: str = "groups") -> Int[Tensor, "n"]:
    """Values of any one kind as numbers from 0, in their order: equal values have equal numbers.

    Raises:
        UsageError: a value is missing.
    """
    plain = [v.item() if isinstance(v, np.generic | Tensor) else v for v in values]
    for i, value in enumerate(plain):
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            raise UsageError(f"sample {i} has no value among its {what}: fill it in, or leave the sample out")
    try:
        order = sorted(set(plain))
    except TypeError:  # numbers and words
        plain = [str(v) for v in plain]
        order = sorted(set(plain))
    number = {v: i for i, v in enumerate(order)}
    return torch.tensor([number[v] for v in plain], dtype=torch.long)


def of_samples(values: Any, samples: int, what: str = "groups") -> Int[Tensor, "n"]:
    """`codes` of an array or list that must hold one value a sample.

    Raises:
        UsageError: it does not.
    """
    try:
        found = list(values)
    except TypeError:
        raise UsageError(f"{what} must be a list or array of {samples} values, found {values!r:.60}") from None
    found = [v.reshape(-1)[0] if isinstance(v, np.ndarray | Tensor) and v.ndim and len(v) == 1 else v for v in found]
    if len(found) != samples:
        raise UsageError(f"{what} must hold one value a sample: found {len(found)} for {samples} samples")
    if any(isinstance(v, np.ndarray | Tensor) and v.ndim for v in found):
        raise UsageError(f"{what} must hold one value a sample: found several, of shape {tuple(found[0].shape)}")
    return codes(found, what)


def read(source: Source, text: str, what: str) -> Int[Tensor, "n"]:
    """The number of every training sample's group (or fold), as `text` says; see the head of this module.

    Raises:
        UsageError: it says nothing of a sample, or cannot be read.
    """
    key, n = f"data.{what}", len(source.labels)
    table = re.fullmatch(r"(.+\.[ct]sv)(?::(.*))?", text, re.I | re.S)
    array = re.fullmatch(r"(.+\.npy)|(.+\.npz):(.+)", text, re.I | re.S)
    if text in source.columns:
        return of_samples(source.columns[text], n, key)
    if table:
        return of_samples(column(source, found_at(table[1], source, key), table[2] or "", key), n, key)
    if array:
        return of_samples(loaded(found_at(array[1] or array[2], source, key), array[3], key), n, key)
    if not source.paths:
        known = f", or one of its arrays ({', '.join(source.columns)})" if source.columns else ""
        raise UsageError(
            f"{key}={text} is nothing of {source.name}: give FILE.csv:COLUMN, FILE.npy, FILE.npz:KEY{known}"
        )
    return codes(matched(source.paths, text, key), key)


def found_at(name: str, source: Source, key: str) -> Path:
    """A file from here, or from the data root."""
    path = Path(name).expanduser()
    places = [path, *([source.root / path] if source.root is not None else [])]
    found = next((p for p in places if p.is_file()), None)
    if found is None:
        raise UsageError(
            f"no file {path} for {key}: give FILE.csv:COLUMN, FILE.npy, FILE.npz:KEY or a regular expression"
        )
    return found


def loaded(file: Path, key: str | None, what: str) -> np.ndarray:
    """An array of a file."""
    try:
        content = np.load(file, allow_pickle=False)
        if key is None:
            return content
        with content:
            if key not in content.files:
                raise UsageError(f"{file} has no array {key} for {what}; it has: {', '.join(sorted(content.files))}")
            return content[key]
    except UsageError:
        raise
    except Exception as e:
        raise UsageError(f"{file} cannot be read for {what} ({e}): write it by numpy.save") from None


def matched(paths: Sequence[str], pattern: str, key: str) -> list[str]:
    """What a regular expression finds in every path."""
    try:
        found = [re.search(pattern, path) for path in paths]
    except re.error as e:
        raise UsageError(f"{key}={pattern} is no regular expression ({e}), and no file .csv, .npy or .npz") from None
    unmatched = [path for path, m in zip(paths, found, strict=True) if m is None]
    if unmatched:
        raise UsageError(
            f"{key}={pattern} is not found in {len(unmatched)} of {len(paths)} paths, such as {unmatched[0]} (a column of a table is "
            f"FILE.csv:COLUMN)"
        )
    return ["\0".join(g or "" for g in m.groups()) if m.groups() else m.group() for m in found if m is not None]


def column(source: Source, file: Path, name: str, key: str) -> list[str]:
    """A column of a table, a value a sample."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            first = lines.readline()
            lines.seek(0)
            rows = csv.DictReader(lines, delimiter=max(",;\t", key=first.count))
            heads, table = list(rows.fieldnames or ()), list(rows)
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise UsageError(
            f"{file} cannot be read for {key} ({e}): write it as text with a line of column names"
        ) from None
    by = next((c for c in heads if c.lower() in FILE_COLUMNS and c != name), None)
    others = [c for c in heads if c != by]
    name = name or (others[0] if len(others) == 1 else "")
    if name not in heads:
        said = f"has no column {name}" if name else "has several columns"
        raise UsageError(f"{file} {said}: set {key}={file.name}:COLUMN to one of {', '.join(others)}")
    if by is None:
        if len(table) != len(source.labels):
            mend = (
                f"give it a column {FILE_COLUMNS[0]} with paths below the data root"
                if source.paths
                else "write one a sample"
            )
            raise UsageError(f"{file} has {len(table)} rows for {len(source.labels)} samples: {mend}")
        return [row[name] or "" for row in table]
    if not source.paths:
        raise UsageError(
            f"{file} names files, and the images of {source.name} have none: write one row a sample, without {by}"
        )
    known: dict[str, str] = {}
    for row in table:
        place, value = (row[by] or "").removeprefix("./"), row[name] or ""
        if known.setdefault(place, value) != value:
            raise UsageError(f"{file} says {known[place]} and {value} of {place}: leave one row")
    return in_table(source.paths, known, file, key)


def in_table(paths: Sequence[str], known: dict[str, str], file: Path, key: str) -> list[str]:
    """The value of every path: by the path itself, or by the path below `train/`, the name, or the name without its ending
    where no other file has the same.
    """
    ways = (below_first, lambda p: Path(p).name, lambda p: Path(p).stem)
    counts = [Counter(map(way, paths)) for way in ways]
    out: list[str] = []
    lacking: list[str] = []
    for path in paths:
        shorter = [way(path) for way in ways]
        also = [text for text, count in zip(shorter, counts, strict=True) if count[text] == 1]
        value = next((known[w] for w in (path, *also) if w in known), None)
        (lacking if value is None else out).append(path if value is None else value)
    if lacking:
        raise UsageError(
            f"{file} says nothing of {len(lacking)} of {len(paths)} pictures for {key}, such as {lacking[0]}"
        )
    return out


def below_first(path: str) -> str:
    """A path without its first folder, such as `train`."""
    return path.partition("/")[2]
