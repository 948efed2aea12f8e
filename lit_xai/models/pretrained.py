"""Networks with given weights, explained without training: what they all share, and torchvision's."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.errors import UsageError
from lit_xai.store.files import read_state

NESTS = ("state_dict", "model", "model_state_dict")  # where checkpoints keep the weights
PREFIXES = ("module.", "model.", "_orig_mod.")  # what wrappers put before their names
RENAMED = {  # names in files that torchvision published, by how its networks begin
    "densenet": {r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)": r"\1\2"},
    "vit": {r"(\.mlp\.)linear_1\.": r"\g<1>0.", r"(\.mlp\.)linear_2\.": r"\g<1>3."},
}
SAID = 3  # keys that an error names
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalise(nn.Module):
    """(x - mean) / std per channel of images `[b, c, h, w]`."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Frame(NamedTuple):
    """The pictures that a network was made for: shorter side to `resize`, then the central `side` pixels.

    Attributes:
        interpolation: `bilinear`, `bicubic`, `nearest` or `lanczos`.
    """

    side: int = 224
    resize: int = 256
    interpolation: str = "bilinear"


class Given(pl.LightningModule):
    """A network that brings its weights; normalisation inside, logits out.

    Attributes:
        class_names: of its logits; empty where nobody knows.
        frame: the pictures it takes.
    """

    network: nn.Module
    class_names: tuple[str, ...] = ()
    frame = Frame()

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.network(images)

    def predictor(self) -> nn.Module:
        """The network to explain."""
        return self.network.eval()

    def test_step(self, batch: tuple[Tensor, Tensor], index: int, dataloader_idx: int = 0) -> None:
        """Nothing is tested, whatever the batch `([b, c, h, w], [b])`: its classes need not be the data set's."""


def bare(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint under the network's own names: out of their nest, without the prefixes of wrappers."""
    while nest := next((key for key in NESTS if isinstance(state.get(key), Mapping)), None):
        state = state[nest]
    found = {k: v for k, v in state.items() if isinstance(v, Tensor) and k != "n_averaged"}
    while prefix := next((p for p in PREFIXES if found and all(k.startswith(p) for k in found)), None):
        found = {k.removeprefix(prefix): v for k, v in found.items()}
    return found


def fit_weights(network: nn.Module, state: Mapping[str, Tensor], named: str, without: str = "!") -> None:
    """Load weights `[...]` by name into a network; keys that start with `without` stay as they are.

    Args:
        named: file and network, for the message, as in `w.pth holds no weights of resnet18`.

    Raises:
        UsageError: a key is missing or unexpected, or its shape differs: how many, and at most three by name.
    """
    state = {k: v for k, v in state.items() if not k.startswith(without)}
    whole: Any = network.state_dict()
    mine = {k: v for k, v in whole.items() if not k.startswith(without)}
    missing = [k for k in mine if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in mine]
    shapes = [k for k in mine if k in state and mine[k].shape != state[k].shape]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    said, left = [], SAID
    for i, (text, keys) in enumerate(wrong.items()):
        others = sum(bool(v) for v in list(wrong.values())[i + 1 :])
        some = keys[: max(1, left - others)]
        left -= len(some)
        said += [f"{len(keys)} {text}: {', '.join(some)}{', ...' if len(keys) > len(some) else ''}"] if keys else []
    if said:
        raise UsageError(f"{named} ({'; '.join(said)}): name the right model.arch=")
    loaded: Any = OrderedDict(state)
    loaded._metadata = whole._metadata  # of this version: the names have been looked at
    network.load_state_dict(loaded, strict=False)


def head_size(network: nn.Module, classes: int, state: Mapping[str, Tensor]) -> int:
    """How many classes weights `[...]` by name tell apart, where the network was made for `classes`: by the heads that differ."""
    found = {
        len(state[k])
        for k, v in network.state_dict().items()
        if v.ndim and len(v) == classes and k in state and state[k].ndim == v.ndim and state[k].shape[1:] == v.shape[1:]
    }
    return found.pop() if len(found) == 1 else classes


def read_weights(arch: str, weights: str) -> dict[str, Tensor]:
    """A state dict from a file (no code is run from it) or, for `DEFAULT`, torchvision's download."""
    import torchvision.models

    if weights == "DEFAULT":
        try:
            return torchvision.models.get_model_weights(arch).DEFAULT.get_state_dict(progress=True)  # type: ignore[attr-defined]
        except OSError as e:
            raise UsageError(
                f"the weights of {arch} cannot be downloaded ({e}): give a file by model.weights="
            ) from None
    state = bare(read_state(Path(weights), f"give the path of a {arch} state dict by model.weights="))
    for old, new in next((names for start, names in RENAMED.items() if arch.startswith(start)), {}).items():
        state = {re.sub(old, new, k): v for k, v in state.items()}
    return state


def published(arch: str, weights: str, side: int | None) -> Any:
    """The entry of torchvision's list that says how these weights are used: by the file's name, by their side, else the best.

    `side` is that of the images the weights were made for, where they tell.
    """
    import torchvision.models

    entries: Any = torchvision.models.get_model_weights(arch)
    same = [e for e in entries if Path(e.url).name == Path(weights).name]
    same += [e for e in (entries.DEFAULT, *entries) if side is not None and e.transforms().crop_size[0] == side]
    return (same or [entries.DEFAULT])[0]


class Pretrained(Given):
    """A torchvision classifier and its weights, as its authors made it; normalisation inside, logits out.

    Args:
        arch: a name of torchvision.models, e.g. `squeezenet1_1`.
        weights: path of a state dict, or `DEFAULT` to let torchvision download it.
        class_names: names of the classes; None takes torchvision's ImageNet names where they fit.
        mean, std: per channel; None takes the architecture's own.
        options: further arguments of torchvision's function.
        channels, classes, side, colour: given by the data (0 = not known); `channels`, `side` and, where images have labels,
            `classes` are checked.
    """

    def __init__(
        self,
        arch: str,
        weights: str,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        channels: int = 3,
        classes: int = 0,
        side: int = 0,
        colour: Any = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        import torchvision.models

        if arch not in torchvision.models.list_models(module=torchvision.models):
            raise UsageError(f"torchvision has no classifier {arch!r}: see torchvision.models.list_models()")
        if channels != len(mean or IMAGENET_MEAN):
            raise UsageError(f"model={arch} takes {len(mean or IMAGENET_MEAN)} channels, the images have {channels}")
        state = read_weights(arch, weights)
        network, told, own = as_published(arch, state, dict(options or {}))
        fit_weights(network, state, f"{weights} holds no weights of {arch}")
        if arch == "googlenet":  # they are for training alone
            network.aux_logits, network.aux1, network.aux2 = False, None, None
        entry = published(arch, weights, own)
        use = entry.transforms()
        self.frame = Frame(use.crop_size[0], use.resize_size[0], use.interpolation.value)
        if own is not None and own != self.frame.side:
            self.frame = Frame(own, round(own * self.frame.resize / self.frame.side), self.frame.interpolation)
        check_use(arch, told, classes, own, side)
        self.network = nn.Sequential(Normalise(mean or use.mean, std or use.std), network)
        names = entry.meta.get("categories", ())
        self.class_names = tuple(class_names or (names if len(names) == told else ()))


def as_published(arch: str, state: Mapping[str, Tensor], options: dict[str, Any]) -> tuple[Any, int, int | None]:
    """Torchvision's network for weights `[...]` by name, how many classes they tell apart, and their images' side where it is fixed."""
    import torchvision.models

    if arch in ("googlenet", "inception_v3"):  # as torchvision does where it is given weights
        aux = any(k.startswith(("aux1.", "AuxLogits.")) for k in state)
        options = {"transform_input": True, "aux_logits": aux, "init_weights": False} | options
    side = None
    if arch.startswith("vit_"):
        place, patch = state.get("encoder.pos_embedding"), state.get("conv_proj.weight")
        if place is not None and patch is not None and place.ndim == 3 and patch.ndim == 4:
            options.setdefault("image_size", patch.shape[-1] * round((place.shape[1] - 1) ** 0.5))
            side = options["image_size"]
    network: Any = torchvision.models.get_model(arch, weights=None, **options)
    classes = options.get("num_classes", 1000)
    told = head_size(network, classes, state)
    if told != classes:
        network = torchvision.models.get_model(arch, weights=None, **options | {"num_classes": told})
    if arch.startswith("mnasnet"):
        as_version(network, state)
    return network, told, side


def as_version(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a MNASNet the stem of its first version where weights `[...]` by name have that."""
    mine, file = network.state_dict(), state.get("layers.0.weight")
    if file is not None and file.shape != mine["layers.0.weight"].shape:
        nothing: Any = OrderedDict()
        nothing._metadata = {"": {"version": 1}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network.load_state_dict(nothing, strict=False)


def check_use(name: str, told: int, classes: int, own: int | None, side: int) -> None:
    """Refuse data whose classes or side are not those of a network with given weights."""
    if classes not in (0, told):
        raise UsageError(
            f"{name} tells {told} classes apart and the data have {classes}: explain its own predictions by data=pictures "
            f"with the pictures in one folder, or train on these classes by model=resnet50 model.network.weights=FILE"
        )
    if own is not None and side not in (0, own):
        raise UsageError(f"{name} takes images of {own} pixels, the data have {side}: set data.size={own}")
