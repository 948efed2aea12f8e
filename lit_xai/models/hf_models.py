"""Image classifiers of the transformers library from a folder, explained without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.errors import UsageError
from lit_xai.models.pretrained import Frame, Given, Normalise, check_use

RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
CROP = 0.875  # ConvNeXT's processor, where it does not say


class Logits(nn.Module):
    """A classifier whose forward gives an object with `.logits`, as one that gives them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.model(pixel_values=x).logits


class HuggingFace(Given):
    """A classifier that `save_pretrained` of transformers left in a folder; normalisation inside, logits out.

    Weights are read from safetensors, no code from the folder is run, and nothing is fetched.

    Args:
        path: the folder, with `config.json`, `model.safetensors` and `preprocessor_config.json`.
        class_names: names of the classes; None takes `id2label`.
        channels, classes, side, colour: given by the data (0 = not known); the first three are checked.
    """

    def __init__(
        self,
        path: str,
        class_names: Sequence[str] | None = None,
        channels: int = 3,
        classes: int = 0,
        side: int = 0,
        colour: Any = None,
    ) -> None:
        super().__init__()
        folder = Path(path)
        model, processor = read_folder(folder)
        config = model.config
        mean, std = numbers_of(processor)
        if channels != len(mean):
            raise UsageError(f"{folder} takes {len(mean)} channels, the images have {channels}")
        self.frame = frame_of(processor, folder)
        fixed = vars(config).get("image_size")
        check_use(str(folder), config.num_labels, classes, self.frame.side if fixed else None, side)
        self.network = nn.Sequential(Normalise(mean, std), Logits(model))
        self.class_names = tuple(class_names or (str(config.id2label[i]) for i in range(config.num_labels)))


def read_folder(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model and its image processor's numbers.

    Raises:
        UsageError: the package is not installed, a file is missing, or the model needs code of its own.
    """
    try:
        from transformers import AutoImageProcessor, AutoModelForImageClassification
        from transformers.utils import logging
    except ImportError:
        raise UsageError("model=hf needs the package transformers: pip install 'lit_xai[hf]'") from None
    files = ("config.json", "preprocessor_config.json")
    lacks = [f for f in files if not (folder / f).is_file()]
    if not any(folder.glob("model*.safetensors")):
        lacks.append("model.safetensors")
    if lacks:
        raise UsageError(
            f"{folder} has no {', '.join(lacks)}: give model.path= a folder that save_pretrained of the model and of its "
            f"image processor have written"
        )
    logging.disable_progress_bar()
    try:
        if any("auto_map" in json.loads((folder / f).read_text()) for f in files):
            raise UsageError(
                f"{folder} needs code of its own, which is not run: use a model that transformers itself has"
            )
        safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        model, report = AutoModelForImageClassification.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **safe
        )
        processor = AutoImageProcessor.from_pretrained(folder, **safe).to_dict()
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as e:
        raise UsageError(f"{folder} cannot be read as an image classifier ({str(e).splitlines()[0][:160]})") from None
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise UsageError(
            f"{folder} lacks {len(missing)} weights of its model, such as {', '.join(missing[:3])}: it is no trained classifier"
        )
    return model.float().eval(), processor  # weights in half precision are exact in float32, which images are


def numbers_of(processor: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, for images in [0, 1]."""
    scale = 255 * processor["rescale_factor"] if processor.get("do_rescale", True) else 255.0
    mean, std = [0.0] * 3, [1.0] * 3
    if processor.get("do_normalize", True):
        mean, std = list(processor["image_mean"]), list(processor["image_std"])
    shift = 1.0 if processor.get("rescale_offset") and processor.get("do_rescale", True) else 0.0
    return [(m + shift) / scale for m in mean], [s / scale for s in std]


def frame_of(processor: Mapping[str, Any], folder: Path) -> Frame:
    """The pictures of an image processor.

    Raises:
        UsageError: they are not square.
    """
    size, crop = processor.get("size") or {}, processor.get("crop_size") or {}
    how = RESAMPLE.get(int(processor.get("resample") or 2), "bilinear")
    edge = size.get("shortest_edge") or size.get("height")
    if edge is None or size.get("width", edge) != edge or crop.get("width") != crop.get("height"):
        raise UsageError(
            f"the image processor of {folder} makes no square images (size {dict(size)}, crop {dict(crop)})"
        )
    if processor.get("do_center_crop") and crop:
        return Frame(crop["height"], edge, how)
    if "crop_pct" in processor and edge < 384:  # ConvNeXT: larger images are not cropped
        return Frame(edge, int(edge / (processor["crop_pct"] or CROP)), how)
    return Frame(edge, edge, how)
