"""Fillers that were fitted to the training folds beforehand: which file is read, and whether it is the right one."""

from __future__ import annotations

import copy
import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_xai.core import Filler, Images, Keep, Model, Segments, TrainedOn
from lit_xai.errors import UsageError
from lit_xai.rng import SampleRng
from lit_xai.store.files import read_checkpoint


class Sampler(ABC):
    """What was fitted to images and draws hidden pixels.

    Attributes:
        about: what it was fitted on (`FoldData.about`); empty = not known.
        deterministic: all draws are alike.
        paints: what is hidden, given what is visible; False: whole new images.
    """

    about: str
    deterministic = False
    paints = False

    @abstractmethod
    def fill(
        self, images: Images, keep: Keep, rng: SampleRng, draws: int = 1, segments: Segments | None = None
    ) -> Float[Tensor, "b n d c h w"]:
        """Hidden pixels drawn given the visible ones, as `Filler` says."""

    def check_shape(self, shape: tuple[int, ...]) -> None:  # noqa: B027
        """Refuse images of other channels or another size than it was trained on; windows fit many."""


class WindowSampler(Sampler):
    """p(K x K tile | surroundings), fitted.

    Attributes:
        patch: K, pixels.
    """

    patch: int

    @abstractmethod
    def window_bits(self, images: Images, top: Int[Tensor, "b"], left: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Bits per pixel and channel of the K x K window at (top, left) of every image, given its surroundings."""


class Saved(NamedTuple):
    """What a `model.ckpt` of `lit_xai.train` says of a sampler."""

    state: Mapping[str, Tensor]
    model: Mapping[str, Any]
    shape: Mapping[str, Any]
    about: str


def saved(file: Path, module: str, model: str) -> Saved:
    """Read the checkpoint of one kind of sampler, the LightningModule named `module` of `model=`. No code runs.

    Raises:
        UsageError: the file is missing, damaged, or holds something else.
    """
    content = read_checkpoint(file)
    config = content.get("config")
    node, shape = (config.get(k) if isinstance(config, Mapping) else None for k in ("model", "shape"))
    target = node.get("_target_") if isinstance(node, Mapping) else "unknown"
    if not str(target).endswith(module) or not isinstance(node, Mapping) or not isinstance(shape, Mapping):
        raise UsageError(f"{file} holds no {model} ({target}): train one by python -m lit_xai.train model={model}")
    assert isinstance(config, Mapping)
    return Saved(content["state_dict"], node, shape, str(config.get("about", "")))


def rebuilt(file: Path, module: str, model: str, build: Callable[[Saved], Sampler]) -> Any:
    """What `build` makes of a checkpoint (see `saved`); the global generator is left alone.

    Raises:
        UsageError: as `saved`; parts of it are missing or do not fit each other.
    """
    found = saved(file, module, model)
    try:
        with torch.random.fork_rng(devices=[]):  # a network's first weights are random, and replaced
            return build(found)
    except (KeyError, RuntimeError, TypeError) as e:
        raise UsageError(
            f"{file} holds no whole {model} ({type(e).__name__}): train it again by python -m lit_xai.train model={model}"
        ) from None


def below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state dict whose names begin like this, without that."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


class Placed:
    """Copies of a network on other devices and in other types, made when they are first needed.

    Samplers of one file that differ in their options share one (`dataclasses.replace` hands it on).
    """

    def __init__(self) -> None:
        self.copies: dict[tuple[int, str, torch.dtype], nn.Module] = {}

    def like(self, network: nn.Module, images: Tensor) -> nn.Module:
        """The network, in evaluation mode, on the device and in the type of these images."""
        weight = next(network.parameters(), None)
        if weight is None or (weight.device, weight.dtype) == (images.device, images.dtype):
            return network
        key = (id(network), str(images.device), images.dtype)
        if key not in self.copies:
            with torch.inference_mode(False):
                self.copies[key] = copy.deepcopy(network).to(images.device, images.dtype)
        return self.copies[key]


Stamp = tuple[int, int, int]  # time, size and inode of a file: a rewritten one has another


@functools.lru_cache(maxsize=8)
def opened(read: Callable[[Path], Sampler], files: tuple[Path, ...], stamps: tuple[Stamp, ...]) -> tuple[Sampler, str]:
    """The sampler of the first of these files, and a digest of them all."""
    content = hashlib.blake2b(digest_size=8)
    for file in files:
        content.update(file.read_bytes())
    return read(files[0]), content.hexdigest()


F = TypeVar("F", bound="FittedFiller")


@dataclass(frozen=True)
class FittedFiller(Filler):
    """A filler that reads what it was fitted to from a file, when it is first used.

    Args:
        checkpoint: a file; or a folder of `python -m lit_xai.train model=...`, in which every predictor finds the sampler
            of its own fold, which has not seen V_i either.
        trained_on: what the predictor was trained on; whoever knows it gives it by `fitted`.
    """

    checkpoint: str | None = None
    trained_on: TrainedOn | None = None

    model: ClassVar[str]  # of configs/model

    @staticmethod
    @abstractmethod
    def read(file: Path) -> Sampler:
        """What a file holds.

        Raises:
            UsageError: it is damaged, or of another kind.
        """

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

    @cached_property
    def opened(self) -> tuple[Sampler, str]:
        """The sampler and its file's digest.

        Raises:
            UsageError: the file is missing, damaged, of another kind, or was fitted to other images.
        """
        files = tuple(self.files)
        stats = [file.stat() for file in files]
        stamps = tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)
        (file, *_), (sampler, digest) = files, opened(type(self).read, files, stamps)
        about = self.trained_on.about if self.trained_on else ""
        if about and sampler.about and about != sampler.about:
            raise UsageError(
                f"{file} was fitted to {sampler.about}, and this predictor to {about}: name the sampler of the same data "
                f"and fold (its folder finds the fold by itself), or train it by python -m lit_xai.train model={self.model}"
            )
        sampler = self.adapted(sampler)
        shape = self.trained_on.shape if self.trained_on else ()
        if shape:
            sampler.check_shape(shape)
        return sampler, digest

    @property
    def files(self) -> list[Path]:
        """All files that say what is drawn; the first is `file`."""
        return [self.file]

    def adapted(self, sampler: Sampler) -> Sampler:
        """The file's sampler with this filler's own options."""
        return sampler

    @property
    def sampler(self) -> Sampler:
        """What the file holds; errors as `opened`."""
        return self.opened[0]

    def content(self) -> dict[str, Any]:
        """The digest of the file."""
        return {"digest": self.opened[1]}

    def resolve(self, model: Model, images: Images) -> dict[str, Any]:
        """What it was fitted on, and its content."""
        return {**self.content(), "fitted_on": self.sampler.about}

    def __call__(
        self, images: Images, keep: Keep, rng: SampleRng, draws: int = 1, segments: Segments | None = None
    ) -> Float[Tensor, "b n d c h w"]:
        return self.sampler.fill(images, keep, rng, draws, segments)


@dataclass(frozen=True)
class WindowFiller(FittedFiller):
    """A filler that was fitted to windows with a hidden K x K patch in the middle."""

    @property
    def sampler(self) -> WindowSampler:
        """What the file holds; errors as `opened`."""
        sampler = self.opened[0]
        assert isinstance(sampler, WindowSampler)
        return sampler

    @property
    def patch(self) -> int:
        """Side K of the windows it was fitted to, pixels."""
        return self.sampler.patch

    def window_side(self) -> int:
        """K."""
        return self.patch

    def content(self) -> dict[str, Any]:
        """K, and the digest of the file."""
        return {"patch": self.patch, **super().content()}

    def window_bits(self, images: Images, top: Int[Tensor, "b"], left: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Bits per pixel and channel of the K x K window at (top, left) of every image, given its surroundings."""
        return self.sampler.window_bits(images, top, left)
