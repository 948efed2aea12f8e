"""How many images one model call of a fold takes: found out once on a kind of device and kept with the fold, for all parts and ranks."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from lit_xai.calls import AUTO, images_a_call
from lit_xai.core import Component, Filler
from lit_xai.engine.job import Job
from lit_xai.store.files import write_atomically
from lit_xai.store.plans import PLANS

T = TypeVar("T", bound=Component)


def name_of(device: torch.device) -> str:
    """What such devices are called: `cpu`, `NVIDIA H100 80GB HBM3`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def kept_in(job: Job) -> Path:
    """The file of a fold that says it for this kind of device."""
    slug = re.sub(r"[^a-z0-9]+", "-", name_of(job.device).lower()).strip("-")
    return job.store.root / PLANS / f"calls-{slug}.json"


def read_size(file: Path) -> int | None:
    """The number that is kept; None where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        size = json.loads(file.read_text()).get("max_batch")
        if isinstance(size, int) and not isinstance(size, bool) and size >= 1:
            return size
    return None


def size_of(job: Job) -> int:
    """Images a call where `max_batch` is `auto`: what the fold says, else what the device has room for."""
    known = read_size(kept_in(job))
    return images_a_call(job.model, job.batch(0)[0], AUTO) if known is None else known


def keep_size(job: Job) -> int:
    """The same, kept with the fold: of parts that begin at once, the first to write decides for all."""
    file = kept_in(job)
    known = read_size(file)
    if known is not None:
        return known
    size = size_of(job)
    mine = file.with_name(f".{file.stem}.{platform.node()}.{os.getpid()}.json")
    write_atomically(mine, json.dumps({"device": name_of(job.device), "max_batch": size}) + "\n")
    try:
        if file.exists():  # one that cannot be read
            mine.replace(file)
        else:
            os.link(mine, file)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        mine.replace(file)
    finally:
        mine.unlink(missing_ok=True)
    return read_size(file) or size


def sized(thing: T, size: int) -> T:
    """The component, and all inside it but fillers, which call networks of their own, with this number in the place of `auto`."""
    if isinstance(thing, Filler):
        return thing
    inside = {name: sized(component, size) for name, component in thing.components().items()}
    changed = {name: c for name, c in inside.items() if c is not thing.components()[name]}
    if vars(thing).get("max_batch") == AUTO:
        changed["max_batch"] = size  # type: ignore[assignment]
    return replace(thing, **changed) if changed else thing  # type: ignore[type-var]
