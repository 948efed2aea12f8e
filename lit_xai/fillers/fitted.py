"""Fillers that were fitted to the training folds beforehand: which file is read, and whether it is the right one."""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from lit_xai.cache import Cache
from lit_xai.core import Filler, Images, Model, TrainedOn
from lit_xai.errors import UsageError
from lit_xai.fillers.static import Static
from lit_xai.fitting import model_hash
from lit_xai.models.trainable import SamplerModule
from lit_xai.store.files import read_checkpoint

KEPT = 1 << 29  # bytes; what a Gaussian of K = 8 in colour asks for again with every image are 526 MB
Stamp = tuple[int, int, int]  # time, size and inode of a file: a rewritten one has another
F = TypeVar("F", bound="FittedFiller")


def read_module(file: Path, kind: type[SamplerModule], model: str) -> SamplerModule:
    """The module that `lit_xai.train model=...` saved, in evaluation mode, without gradients. No code of the file runs.

    Raises:
        UsageError: the file is missing, damaged, of another kind, or its parts do not fit each other.
    """
    content = read_checkpoint(file)
    config = content.get("config")
    node, shape = (config.get(k) if isinstance(config, Mapping) else None for k in ("model", "shape"))
    target = node.get("_target_") if isinstance(node, Mapping) else "unknown"
    train = f"train one by python -m lit_xai.train model={model}"
    if not str(target).endswith(kind.__name__) or not isinstance(node, Mapping) or not isinstance(shape, Mapping):
        raise UsageError(f"{file} holds no {model} ({target}): {train}")
    options = {k: v for k, v in node.items() if k not in ("_target_", "name")}
    try:
        # first weights are random, and replaced: the global generator is left alone
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            channels, side = int(shape["channels"]), int(shape["side"])
            module = kind(channels=channels, side=side, colour=([0.5] * channels, [1.0] * channels), **options)
            module.load_state_dict(content["state_dict"])
    except (KeyError, RuntimeError, TypeError, ValueError) as e:
        again = train.replace("one", "it again", 1)
        raise UsageError(f"{file} holds no whole {model} ({type(e).__name__}): {again}") from None
    module.about = str(config.get("about", ""))  # type: ignore[union-attr]
    return module.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Opened:
    """What a filler draws with.

    Attributes:
        module: what was trained.
        digest: of its files; empty = it comes from none.
        copies: of the module on other devices and in other types, made when they are first needed. Fillers of one file that
            differ in their options share them.
        kept: what they keep between calls.
        quick: calls of the module in few shapes, by what they depend on.
    """

    module: nn.Module
    digest: str = ""
    copies: dict[tuple[str, torch.dtype], nn.Module] = field(default_factory=dict)
    kept: Cache = field(default_factory=lambda: Cache(KEPT))
    quick: dict[tuple[Any, ...], Static] = field(default_factory=dict)

    def like(self, images: Tensor) -> nn.Module:
        """The module on the device and in the type of images `[b, c, h, w]`."""
        weight = next(self.module.parameters(), None)
        if weight is None or (weight.device, weight.dtype) == (images.device, images.dtype):
            return self.module
        key = (str(images.device), images.dtype)
        if key not in self.copies:
            with torch.inference_mode(False):
                self.copies[key] = copy.deepcopy(self.module).to(images.device, images.dtype)
        return self.copies[key]


@functools.lru_cache(maxsize=8)
def opened(kind: type[FittedFiller], files: tuple[Path, ...], stamps: tuple[Stamp, ...]) -> Opened:
    """What the first of these files holds, with a digest of them all."""
    content = hashlib.blake2b(digest_size=8)
    for file in files:
        content.update(file.read_bytes())
    return Opened(kind.read(files[0]), content.hexdigest())


@dataclass(frozen=True)
class FittedFiller(Filler):
    """A filler that draws with what was trained: it is given that, or reads it from a file when it is first used.

    Args:
        checkpoint: a file; or a folder of `python -m lit_xai.train model=...`, in which every predictor finds the sampler
            of its own fold, which has not seen V_i either.
        trained_on: what the predictor was trained on; whoever knows it gives it by `fitted`.
        given: what was trained; None = it is read from the checkpoint.
    """

    checkpoint: str | None = None
    trained_on: TrainedOn | None = field(default=None, metadata={"said": False})  # by no yaml
    given: nn.Module | None = field(
        default=None, kw_only=True, repr=False, compare=False, metadata={"described": False, "said": False}
    )

    model: ClassVar[str]  # of configs/model
    kind: ClassVar[type[SamplerModule]]  # that trains it
    paints: ClassVar[bool] = True  # what is hidden, given what is visible; False: whole new images

    @classmethod
    def read(cls, file: Path) -> nn.Module:
        """What a file holds; errors as `read_module`."""
        return read_module(file, cls.kind, cls.model)

    def fitted(self: F, trained_on: TrainedOn) -> F:
        """This filler, reading the file of the predictor's fold."""
        return replace(self, trained_on=trained_on)

    @property
    def file(self) -> Path:
        """The file that is read.

        Raises:
            UsageError: there is none.
        """
        fold = self.trained_on.fold if self.trained_on else None
        again = f"train it by python -m lit_xai.train model={self.model} fold={0 if fold is None else fold}"
        if self.checkpoint is None:
            raise UsageError(
                f"{type(self).__name__} needs a fitted sampler: {again} and set checkpoint= of the filler to its folder"
            )
        path = Path(self.checkpoint)
        if path.is_dir():
            if not (path / "model.ckpt").is_file() and fold is None:
                raise UsageError(f"{path} is a folder and the fold is not known: name the file of one fold")
            path = path / "model.ckpt" if (path / "model.ckpt").is_file() else path / f"fold={fold}" / "model.ckpt"
        if not path.is_file():
            raise UsageError(f"{path} is missing: {again} with the same data=, or set checkpoint= of the filler")
        return path

    @property
    def files(self) -> list[Path]:
        """All files that say what is drawn; the first is `file`."""
        return [self.file]

    @cached_property
    def opened(self) -> Opened:
        """What it draws with.

        Raises:
            UsageError: the file is missing, damaged, of another kind, or was fitted to other images.
        """
        if self.given is not None:
            self.check_module(self.given)
            return Opened(self.given)
        files = tuple(self.files)
        stats = [file.stat() for file in files]
        found = opened(type(self), files, tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in stats))
        about, theirs = self.trained_on.about if self.trained_on else "", str(found.module.about)
        if about and theirs and about != theirs:
            raise UsageError(
                f"{files[0]} was fitted to {theirs}, and this predictor to {about}: name the sampler of the same data and "
                f"fold (its folder finds the fold by itself), or train it by python -m lit_xai.train model={self.model}"
            )
        self.check_module(found.module)
        if self.trained_on and self.trained_on.shape:
            self.check_shape(found.module, self.trained_on.shape)
        return found

    def check_module(self, module: Any) -> None:
        """Refuse options of this filler that do not fit what was trained."""

    def check_shape(self, module: Any, shape: tuple[int, ...]) -> None:
        """Refuse images of other channels or another size than it was trained on; windows fit many."""

    @property
    def module(self) -> Any:
        """What was trained; errors as `opened`."""
        return self.opened.module

    def content(self) -> dict[str, Any]:
        """The digest of the file, or of what was given."""
        return {"digest": self.opened.digest or model_hash(self.module)}

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """What it was fitted on, and its content."""
        return {**self.content(), "fitted_on": self.module.about}
