"""Files that are whole or not there: text, tables, checkpoints. Reading one runs no code from it."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import platform
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from safetensors.torch import load_file

from lit_xai.errors import UsageError


def write_atomically(path: Path, data: bytes | str) -> None:
    """The whole file or nothing. A full disk leaves no trace and gives one clear line."""
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UsageError(
            f"{path} could not be written ({e.strerror}): make room or choose root= elsewhere, then run the same command"
        ) from None


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A CSV file, atomically."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def save_weights(module: torch.nn.Module, file: Path, config: Mapping[str, Any]) -> None:
    """Weights and plain configuration, atomically; `torch.load(weights_only=True)` reads it."""
    buffer = io.BytesIO()
    state = {k: v.detach().cpu() for k, v in module.state_dict().items()}
    torch.save({"state_dict": state, "config": dict(config), "pytorch-lightning_version": pl.__version__}, buffer)
    write_atomically(file, buffer.getvalue())


def load_whole(file: Path) -> Any:
    """What `torch.save` wrote, without running code from it, once every byte agrees with its checksum: torch looks at none.

    Raises:
        OSError, RuntimeError, EOFError, pickle.UnpicklingError: the file is cut or altered.
    """
    if zipfile.is_zipfile(file):  # files of very old versions of torch are none
        try:
            with zipfile.ZipFile(file) as parts:
                broken = parts.testzip()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as e:  # zipfile: a compression it lacks
            raise RuntimeError(f"its parts cannot be read: {type(e).__name__}") from None
        if broken is not None:
            raise RuntimeError(f"checksum of {broken} differs")
    return torch.load(file, map_location="cpu", weights_only=True)


def read_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint's content, without running code from it.

    Raises:
        UsageError: the file is missing or damaged.
    """
    if not file.exists():
        raise UsageError(f"{file} is missing: train it by python -m lit_xai.train (root=, name= and fold= say where)")
    try:
        content = load_whole(file)
    except Exception as e:
        raise UsageError(
            f"{file} is damaged or no checkpoint ({type(e).__name__}): name another, or train again"
        ) from None
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise UsageError(
            f"{file} holds no state_dict: name a model.ckpt of lit_xai.train (torchvision weights: model=pretrained)"
        )
    return dict(content)


def read_state(file: Path, again: str) -> dict[str, Any]:
    """A state dict of torch or safetensors, or a checkpoint around it, without running code from it; `again` says how to mend.

    Raises:
        UsageError: the file is missing, damaged, or holds no state dict.
    """
    if not file.is_file():
        raise UsageError(f"no weights at {file}: {again}")
    try:
        state = load_file(file) if file.suffix == ".safetensors" else load_whole(file)
    except Exception as e:
        raise UsageError(f"{file} is not a state dict that loads safely ({type(e).__name__}): {again}") from None
    if not isinstance(state, Mapping):
        raise UsageError(f"{file} is not a state dict (it holds a {type(state).__name__}): {again}")
    return dict(state.get("state_dict", state))


def load_weights(module: torch.nn.Module, file: Path) -> None:
    """Weights into a module of the same configuration.

    Raises:
        UsageError: the file is missing, damaged, or of another model.
    """
    try:
        module.load_state_dict(read_checkpoint(file)["state_dict"])
    except RuntimeError as e:
        first = str(e).splitlines()[1].strip() if "\n" in str(e) else str(e)
        raise UsageError(
            f"{file} is a checkpoint of another model ({first[:120]}): set model= and its options"
        ) from None
