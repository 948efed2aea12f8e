"""One fold of an experiment in memory, for notebooks: predictor, split, maps and images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lit_xai.calls import Gate, evaluating, way_to_logits
from lit_xai.cli.build import build_data, build_module, read_config
from lit_xai.cli.offered import refuse_other_code
from lit_xai.data.folds import Split
from lit_xai.data.images import ImageSet
from lit_xai.data.items import MapStyle
from lit_xai.errors import UsageError
from lit_xai.store.files import load_weights, read_checkpoint
from lit_xai.store.fold import FoldStore, MapReader, common_samples
from lit_xai.store.names import RANDOM


@runtime_checkable
class HasPredictor(Protocol):
    """A module of which a part gets explained."""

    def predictor(self) -> nn.Module: ...


def predictor_of(module: nn.Module) -> nn.Module:
    """What gets explained: `module.predictor()` where there is one."""
    return part_of(module).eval()


def part_of(module: nn.Module) -> nn.Module:
    """The same in the mode that it is in."""
    return module.predictor() if isinstance(module, HasPredictor) else module


def outputs_of(model: nn.Module | Callable[[], nn.Module], image: Tensor) -> int | None:
    """The number of classes of a model, or of one that is made, by its answer to `[1, c, h, w]`; None where that does not say."""
    given = part_of(model if isinstance(model, nn.Module) else model())
    with evaluating(given), torch.inference_mode():
        found = Gate(given).answer(image.to(next(given.parameters(), image).device))
    logits = found if isinstance(found, Tensor) else way_to_logits(found)(found)
    return max(2, logits.shape[1]) if logits.ndim == 2 else 2 if logits.shape == (1,) else None


class MapsOf(Mapping[str, Tensor]):
    """Maps of one predictor by explainer: `maps["rise"]` is `[p, h, w]`, row by row of `maps.samples`.

    Attributes:
        samples: `[p]` the probes, as indices of the data set.
    """

    def __init__(self, store: FoldStore, split: Split) -> None:
        self.readers = {n: MapReader(store, RANDOM, n) for n in store.explainers()}
        samples = common_samples(self.readers.values())
        self.samples = samples[split.fold(samples).sort(stable=True).indices]

    def __getitem__(self, explainer: str) -> Tensor:
        if explainer not in self.readers:
            raise UsageError(f"no maps of {explainer!r} in this fold; there are: {', '.join(self.readers) or 'none'}")
        return self.readers[explainer].rows(self.samples)

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)

    def scores(self, explainer: str) -> dict[str, Tensor]:
        """Every score of an explainer, `[p]`."""
        reader = self.readers[explainer]
        return {n: reader.rows(self.samples, f"score/{n}") for n in reader.scores()}


class ImagesOf:
    """Images of a data set by index, read when they are asked for: `images[maps.samples[:8]]` is `[8, c, h, w]` in [0, 1]."""

    def __init__(self, make: Callable[[], ImageSet]) -> None:
        self.make = make

    @cached_property
    def known(self) -> ImageSet:
        """The data set.

        Raises:
            UsageError: it is not where the configuration says, or nobody has said what it is.
        """
        return self.make()

    def __len__(self) -> int:
        return len(self.known)

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Tensor:
        """One image `[c, h, w]`, or a batch of them."""
        if isinstance(index, int):
            return self.known.images([index])[0]
        rows = range(len(self))[index] if isinstance(index, slice) else [int(i) for i in index]
        return self.known.images(list(rows))


class LoadedFold(NamedTuple):
    """`model, split, maps, images = lit_xai.load(...)`.

    Attributes:
        model: the predictor in evaluation mode, see `takes`.
        split: the folds.
        maps: by explainer, row by row of `maps.samples`.
        images: of the data set, by index.
    """

    model: nn.Module
    split: Split
    maps: MapsOf
    images: ImagesOf

    @property
    def takes(self) -> str:
        """What the model takes and gives, such as `images [b, 1, 32, 32] in [0, 1] -> logits [b, 10]`."""
        shape = list(self.images[0].shape)
        with torch.inference_mode():
            classes = Gate.of(self.model)(self.images[:1]).shape[1]
        return f"images [b, {', '.join(map(str, shape))}] in [0, 1] -> logits [b, {classes}]"


def load(folder: str | Path, fold: int = 0, module: nn.Module | None = None, dataset: Any = None) -> LoadedFold:
    """The predictor, split, maps and images of one fold of `checkpoints/<name>`.

    Nothing that a file names is run, except lit_xai's own models and data sets; for a model of your own, give `module`.

    Args:
        folder: `checkpoints/<name>`.
        fold: which predictor.
        module: your module, to load the weights into; None builds it from the saved configuration.
        dataset: your data set, as `explain_folds` took it; None reads the one of the saved configuration when it is needed.

    Returns:
        The four. The model takes images in [0, 1], with no normalisation before it, and gives logits.

    Raises:
        UsageError: nothing is there, or the files do not fit.
    """
    store = FoldStore(Path(folder) / f"fold={fold}")
    if not store.root.is_dir():
        have = ", ".join(sorted(p.name for p in Path(folder).glob("fold=*"))) or "nothing"
        raise UsageError(f"{store.root} is not there ({folder} has {have}): run python -m lit_xai.train fold={fold}")
    split = store.read_predictions().split
    config = store.root / "config.yaml"
    if module is None:
        if not config.exists():
            raise UsageError(f"{config} is missing: pass module=, a fresh module to load the weights into")
        node = read_config(config)["model"]
        refuse_other_code({"model": node}, config)
        file = store.root / "model.ckpt"
        if file.exists():
            module = build_module(node, read_checkpoint(file)["config"]["shape"])
            load_weights(module, file)
        else:
            module = build_module(node, {"channels": 3, "classes": 0, "side": 0})
    else:
        load_weights(module, store.root / "model.ckpt")
    images = ImagesOf(lambda: image_set(config, dataset))
    return LoadedFold(predictor_of(module), split, MapsOf(store, split), images)


def image_set(config: Path, dataset: Any) -> ImageSet:
    """The images of a data set that is given, else of the one that a saved configuration names.

    Raises:
        UsageError: neither is there.
    """
    if dataset is not None:
        return MapStyle(dataset)
    if not config.exists():
        raise UsageError(f"{config.parent} does not say where its images are: pass dataset= to lit_xai.load")
    saved = read_config(config)
    refuse_other_code({"data": saved["data"]}, config)
    return build_data(saved["data"], 0, saved["seed"], saved["label_noise"]).source.train
