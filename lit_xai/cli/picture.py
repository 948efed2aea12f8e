"""`python -m lit_xai.explain image=photo.jpg checkpoint=FILE explainer=lime`: one picture of one explained image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_xai.calls import Gate
from lit_xai.cli.build import build, build_module, given_module, is_given, plain, say
from lit_xai.cli.offered import refuse_other_code
from lit_xai.core import Explainer, TrainedOn, as_explainer
from lit_xai.data.images import GREY, OnDisk
from lit_xai.data.truth import opened
from lit_xai.engine.estimate import Cost, seconds_per_image, setting
from lit_xai.errors import UsageError
from lit_xai.explainers.lime import Lime
from lit_xai.models.pretrained import IMAGENET_MEAN
from lit_xai.report import draw
from lit_xai.report.figure import Scale, span
from lit_xai.rng import SampleRng
from lit_xai.store.files import load_weights, read_checkpoint


def loaded(cfg: Any) -> tuple[nn.Module, dict[str, Any], Sequence[str], TrainedOn]:
    """The network, the images it takes (`channels`, `side`, `resize`, `interpolation`), its class names, what it was trained on.

    Raises:
        UsageError: no checkpoint and no pretrained model is named, or it cannot be read.
    """
    node = plain(cfg.model)
    if is_given(node):
        place = "path" if "path" in node else "weights"
        given = given_module({**node, place: cfg.checkpoint or node[place]})
        side, resize, interpolation = given.frame
        takes = {"channels": 3, "side": side, "resize": resize, "interpolation": interpolation}
        return given.predictor(), takes, given.class_names, TrainedOn(IMAGENET_MEAN, shape=(3, side, side))
    if cfg.checkpoint is None:
        raise UsageError(
            "image= needs a model: checkpoint=checkpoints/<name>/fold=0/model.ckpt, or model=pretrained with "
            "model.arch= and model.weights="
        )
    file = Path(cfg.checkpoint)
    file = file / "model.ckpt" if file.is_dir() else file
    content = read_checkpoint(file)
    saved = content.get("config", {})
    if not {"model", "shape"} <= set(saved):
        raise UsageError(f"{file} says nothing of its model: give a model.ckpt that lit_xai.train has written")
    refuse_other_code({"model": saved["model"]}, file)
    module: Any = build_module(saved["model"], saved["shape"])
    load_weights(module, file)
    shape = saved["shape"]
    takes = {**shape, "resize": saved["data"].get("resize") or shape["side"]}
    colour = tuple(module.normalise.mean.flatten().tolist())
    number, about = saved.get("training_samples", 0), saved.get("about", "")
    on = TrainedOn(colour, saved.get("fold"), number, about, (shape["channels"], shape["side"], shape["side"]))
    return module.predictor(), takes, saved.get("class_names", ()), on


def read_picture(file: Path, takes: dict[str, Any]) -> Tensor:
    """The picture as the model takes it, `[1, c, side, side]`.

    Raises:
        UsageError: it is not there, cannot be decoded, has transparent pixels, or is grey where the model takes colour.
    """
    if not file.is_file():
        raise UsageError(f"no picture at {file}: give the path of an image file by image=")
    if takes["channels"] not in (1, 3):
        raise UsageError(
            f"the model takes images of {takes['channels']} channels, which a picture file has not: image= cannot give one"
        )
    with opened(file) as picture:
        if takes["channels"] == 3 and picture.mode in GREY:
            raise UsageError(f"{file} is grey-scale and the model takes colour: save it as an RGB picture first")
    how = takes.get("interpolation", "bilinear")
    image = OnDisk((file,), takes["side"], takes["resize"], grey="convert", interpolation=how).images([0])
    return image.mean(1, keepdim=True) if takes["channels"] == 1 else image


def explain_picture(cfg: Any) -> list[Path]:
    """Write one picture for every explainer asked for; return their paths."""
    if cfg.get("filler"):
        raise UsageError(
            "image= has no mask to remove an object by: leave out filler=, or set the explainer's own filler"
        )
    network, takes, names, trained_on = loaded(cfg)
    file = Path(cfg.image)
    image = read_picture(file, takes)
    with torch.inference_mode():
        p = Gate.of(network)(image).softmax(-1)[0]
    if not bool(torch.isfinite(p).all()):
        raise UsageError(
            f"the model predicts NaN for {file}: its weights are damaged, or train again with another model.lr="
        )
    wanted = list(names).index(cfg["class"]) if cfg["class"] in list(names) else cfg["class"]
    chosen = int(p.argmax()) if wanted is None else wanted
    if not isinstance(chosen, int) or not 0 <= chosen < len(p):
        known = f" ({', '.join(names)})" if 0 < len(names) <= 20 else ""
        raise UsageError(f"class={chosen} does not exist: the model has classes 0..{len(p) - 1}{known}")
    label = names[chosen] if chosen < len(names) else str(chosen)
    say(f"{file}: {label} with probability {float(p[chosen]):.3f}")
    rng = SampleRng(cfg.seed, (0,))
    written = []
    explainers = build(cfg.get("explainer"), as_explainer)
    if cfg.dry_run:
        say_costs(network, {n: e.fitted(trained_on) for n, e in explainers.items()}, image, torch.tensor([chosen]))
        return []
    for name, explainer in explainers.items():
        path = Path(cfg.root) / "pictures" / f"{file.stem}.{name}.png"
        title = f"{name}: {label}, probability {float(p[chosen]):.3f}"
        picture(network, explainer.fitted(trained_on), image, chosen, rng, title, path, label)
        say(f"{name}: {path}")
        written.append(path)
    return written


def say_costs(network: nn.Module, explainers: Mapping[str, Explainer], image: Tensor, target: Tensor) -> None:
    """Print what each explainer would cost for the image `[1, c, h, w]`, the dearest first, and what makes it cheaper."""
    forward, backward = seconds_per_image(network, image, target)
    costs = []
    for name, explainer in explainers.items():
        passes = explainer.passes(*image.shape[-2:])
        mend = setting(f"explainer.{name}", explainer, *image.shape[-2:])
        minutes = (passes.forward * forward + passes.backward * backward) / 60
        costs.append(Cost(f"explainer.{name}", passes, minutes, (mend,) if mend else ()))
    for cost in sorted(costs, key=lambda c: -c.minutes):
        say(f"  {cost}")
    say(f"total: about {sum(c.minutes for c in costs):.1f} min; choose by explainer=[...]")


def picture(
    network: nn.Module,
    explainer: Explainer,
    image: Tensor,
    target: int,
    rng: SampleRng,
    title: str,
    path: Path,
    label: str,
) -> None:
    """Explain the image `[1, c, h, w]` by one explainer and draw it."""
    targets = torch.tensor([target])
    if not isinstance(explainer, Lime):
        maps, details = explainer.with_details(network, image, targets, rng)
        map_ = maps[0].detach()
        scale = Scale.of(map_, explainer.legend, label)
        undecided = details.pop("undecided", None)
        known = [f"map {span(map_)}", *(f"{k} {float(v[0]):.3g}" for k, v in details.items())]
        known += ["what is not decided is pale"] if undecided is not None else []
        lines = [title, scale.says, ", ".join(known)]
        pale = None if undecided is None else undecided[0].cpu()
        draw.explained(image[0], map_, lines, path, scale=scale, undecided=pale)
        return
    s = explainer.explain(network, image, targets, rng)
    low, high = s.intervals()
    top = s.top()[0]
    numbers = ", ".join(
        f"{i}: {float(s.coefficients[0, j]):.4f} [{float(low[0, j]):.4f}, {float(high[0, j]):.4f}]"
        for i, j in enumerate(top, 1)
    )
    settled = "settled" if bool(s.settled[0]) else "not settled"
    scale = Scale.of(s.maps()[0], explainer.legend, label)
    lines = [
        f"{title}; {int(s.counts[0])} superpixels, {int(s.samples[0])} samples, weighted R² {float(s.r2[0]):.3f}",
        scale.says,
        f"top {len(top)} ({settled} at 95 %): {numbers}" if top else "no superpixel has a positive coefficient",
    ]
    for line in lines:
        say(line)
    half = (high - low)[0] / 2
    draw.explained(image[0], s.maps()[0], lines, path, s.segments[0], top, s.coefficients[0], half, scale)
