"""Networks of timm (PyTorch Image Models): with given weights as they are, or trained on the folds."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lit_xai.errors import UsageError
from lit_xai.models.classifier import Classifier
from lit_xai.models.pretrained import Frame, Given, bare, check_use, fit_weights, head_size
from lit_xai.store.files import read_state


def library() -> Any:
    """The package.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import timm
    except ImportError:
        raise UsageError("model=timm needs the package timm: pip install 'lit_xai[timm]'") from None
    return timm


def create(arch: str, options: Mapping[str, Any], side: int = 0) -> Any:
    """Timm's network with random weights, for images of this side where it takes one (0 = its own). Nothing is fetched.

    Raises:
        UsageError: timm has no such network, or it does not take these options.
    """
    timm = library()
    if arch.partition(".")[0] not in timm.list_models():
        raise UsageError(f"timm has no network {arch!r}: see timm.list_models()")
    tries = [{"img_size": side, **options}] if side and "img_size" not in options else []
    for last, given in enumerate([*tries, dict(options)], 1 - len(tries)):
        try:
            return timm.create_model(arch, pretrained=False, **given)
        except (TypeError, ValueError, RuntimeError, AssertionError) as e:
            if last or not isinstance(e, TypeError):  # a network without img_size= takes any
                first = str(e).partition("\n")[0][:120]
                raise UsageError(f"timm's {arch} does not take {given} ({first}): set model.options=") from None
    raise AssertionError


def read_file(arch: str, file: str) -> dict[str, Tensor]:
    """The weights in a file, without running code from it."""
    return bare(read_state(Path(file), f"give the path of weights of {arch} (.safetensors or a state dict)"))


def as_timms(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights `[...]` under timm's names, where their authors gave others, and position embeddings of the network's size."""
    rename = vars(sys.modules[type(network).__module__]).get("checkpoint_filter_fn")
    if rename is None:
        return state
    try:
        return bare(rename(dict(state), network))
    except (
        KeyError,
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
    ):  # they are of something else
        return state


def names_of(network: Any, classes: int) -> tuple[str, ...]:
    """The names of ImageNet's classes, where timm knows which of them a network tells apart."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    given = network.pretrained_cfg.get("label_names")
    subset = infer_imagenet_subset(network) if given is None else None
    names = tuple(given or (ImageNetInfo(subset).label_descriptions() if subset else ()))
    return names if len(names) == classes else ()


class Timm(Classifier, Given):
    """A network of timm. With `weights` it is explained as it is, else it is trained on the folds.

    Mean, standard deviation, side, crop and interpolation are those of timm's `pretrained_cfg`; a network that is trained on
    images of another number of channels takes the mean and standard deviation of its training folds.

    Args:
        arch: a name of `timm.list_models()`, with or without its tag, e.g. `vit_tiny_patch16_224`.
        weights: a file of weights that are explained and not trained: a state dict or safetensors.
        pretrained: a file of weights that training starts from; its head is left out where the classes are others, position
            embeddings and first convolution are fitted to the data.
        options: further arguments of `timm.create_model`, such as `img_size`.
        class_names: of given weights; None takes ImageNet's where they fit.
        channels, classes, side, colour: given by the data (0 = not known).
        training: see `Classifier`.
    """

    def __init__(
        self,
        arch: str,
        weights: str | None = None,
        pretrained: str | None = None,
        options: Mapping[str, Any] | None = None,
        class_names: Sequence[str] | None = None,
        channels: int = 3,
        classes: int = 0,
        side: int = 0,
        colour: Any = None,
        lr: float = 5e-4,
        weight_decay: float = 0.05,
        schedule: str = "cosine",
        optimizer: str = "adamw",
        label_smoothing: float = 0.1,
    ) -> None:
        if weights is not None and pretrained is not None:
            raise UsageError(
                "model.weights= explains a network as it is, model.pretrained= trains it: give one of them"
            )
        options = dict(options or {})
        if weights is not None:
            network, classes = as_given(arch, weights, options, channels, classes, side)
        else:
            network = to_train(arch, pretrained, options, channels, classes, side)
        use = network.pretrained_cfg
        if (weights or pretrained) and len(use["mean"]) == channels:
            colour = use["mean"], use["std"]
        super().__init__(
            lambda **_: network,
            channels,
            max(2, classes),
            side,
            colour or ([0.5] * channels, [0.5] * channels),
            lr,
            weight_decay,
            schedule,
            label_smoothing,
            optimizer=optimizer,
        )
        self.given = weights is not None
        if self.given:
            self.class_names = tuple(class_names or names_of(network, classes))
        self.frame = frame_of(network, options)

    def test_step(self, batch: tuple[Tensor, Tensor], index: int, dataloader_idx: int = 0) -> None:
        """Accuracy of what was trained here; the classes of given weights need not be the data set's."""
        if not self.given:
            super().test_step(batch, index, dataloader_idx)


def frame_of(network: Any, options: Mapping[str, Any]) -> Frame:
    """The pictures of timm's `pretrained_cfg`."""
    use = network.pretrained_cfg
    side = options.get("img_size") or use["input_size"][-1]
    side = int(side if isinstance(side, int) else side[-1])
    return Frame(side, math.floor(side / (use.get("crop_pct") or 0.875)), use.get("interpolation") or "bilinear")


def own_side(network: Any, state: Mapping[str, Tensor]) -> int | None:
    """The side of the images that weights `[...]` were made for, by position embeddings; None where it is the network's."""
    place, mine = state.get("pos_embed"), network.state_dict().get("pos_embed")
    if place is None or mine is None or place.ndim != 3 or mine.ndim != 3 or place.shape[1] == mine.shape[1]:
        return None
    embed = vars(network._modules.get("patch_embed", nn.Identity()))
    if not {"grid_size", "patch_size"} <= set(embed):
        return None
    u, v = embed["grid_size"]
    return math.isqrt(max(0, place.shape[1] - (mine.shape[1] - u * v))) * embed["patch_size"][0]


def as_given(arch: str, file: str, options: dict[str, Any], channels: int, classes: int, side: int) -> tuple[Any, int]:
    """The network of these weights, and how many classes they tell apart."""
    state = read_file(arch, file)
    network = create(arch, options)
    use = network.pretrained_cfg
    own = own_side(network, state)
    if own is not None:
        options["img_size"] = own
        network = create(arch, options)
    if set(state) != set(network.state_dict()):
        state = as_timms(network, state)
    first = state.get(f"{use.get('first_conv')}.weight")
    taken = first.shape[1] if first is not None and first.ndim == 4 else channels
    if taken != channels:
        raise UsageError(f"model={arch} takes {taken} channels, the images have {channels}")
    made = network.num_classes
    told = head_size(network, made, state)
    if told != made or channels != use["input_size"][0]:
        network = create(arch, {**options, "num_classes": told, "in_chans": channels})
    fit_weights(network, state, f"{file} holds no weights of {arch}")
    fixed = use.get("fixed_input_size") or "img_size" in options
    check_use(arch, told, classes, frame_of(network, options).side if fixed else None, side)
    return network, told


def to_train(arch: str, file: str | None, options: dict[str, Any], channels: int, classes: int, side: int) -> nn.Module:
    """A network for the data, with random weights or those of a file.

    Raises:
        UsageError: the file is of another network.
    """
    network = create(arch, {**options, "num_classes": classes, "in_chans": channels}, side)
    if file is None:
        return network
    from timm.models import load_pretrained

    use = dict(network.pretrained_cfg)
    heads = use.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    state = as_timms(network, read_file(arch, file))
    told = next((len(state[f"{h}.weight"]) for h in heads if f"{h}.weight" in state), -1)
    places = tuple(f"{h}." for h in heads)
    lacks = [k for k in network.state_dict() if k not in state and not k.startswith(places) and "num_batches" not in k]
    if lacks:
        raise UsageError(
            f"{file} holds no weights of {arch} ({len(lacks)} missing: {', '.join(lacks[:3])}): name the right model.arch="
        )
    given = {**use, "state_dict": state, "custom_load": False, "num_classes": told, "label_offset": 0}
    try:
        load_pretrained(network, given, num_classes=classes, in_chans=channels, strict=False)
    except (KeyError, RuntimeError, ValueError) as e:
        raise UsageError(f"{file} holds no weights of {arch} ({str(e).splitlines()[-1].strip()[:120]})") from None
    return network
