"""Deletion of PMI maps under every filler, on images the predictor never saw: docs/information.md shows what came out.

python docs/information.py checkpoints/digits-resnet18 --images 200 --stride 2

The classifier and both samplers of that fold are trained first (data=digits, model=patch_sampler, conditional_gaussian).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from lit_xai.callbacks.fillers import held_out_order
from lit_xai.cli.build import read_config
from lit_xai.cli.compose import compose
from lit_xai.cli.offered import refuse_other_code
from lit_xai.cli.run import Run
from lit_xai.core import TrainedOn
from lit_xai.explainers import SlidingPatch
from lit_xai.explainers.control import Random
from lit_xai.explainers.sweep import PMI
from lit_xai.fillers import ConditionalGaussian, PatchMean, PatchSampler, UniformNoise
from lit_xai.fillers.constant import Colour
from lit_xai.metrics import Deletion, NegativeEvidence
from lit_xai.metrics.statistics import difference, mean_estimate
from lit_xai.report.table import Column, Table
from lit_xai.rng import SampleRng
from lit_xai.store.files import write_csv
from torch import Tensor
from tqdm import tqdm

BATCH = 16


def fold_of(folder: Path, fold: int) -> Run:
    """The run that trained a predictor, from the configuration in its folder."""
    from omegaconf import OmegaConf

    saved = read_config(file := folder / f"fold={fold}" / "config.yaml")
    refuse_other_code(saved, file, ("data", "model", "trainer"))
    cfg: Any = compose("explain", ["explainer=[]", "score=[]"])
    cfg = OmegaConf.create(OmegaConf.to_container(cfg))
    cfg.update({k: saved[k] for k in ("data", "model", "seed", "trainer")})
    cfg.update({"fold": fold, "name": folder.name, "root": str(folder.parent)})
    return Run(cfg, "explain")


def main() -> None:
    """Explain, delete, compare in pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="checkpoints/<name> of a trained classifier")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--images", type=int, default=200, help="held-out images")
    parser.add_argument("--stride", type=int, default=2, help="of the windows, pixels")
    parser.add_argument("--draws", type=int, default=8, help="N")
    parser.add_argument("--step", type=int, default=64, help="pixels a step of deletion")
    parser.add_argument("--out", type=Path, default=None, help="a CSV file")
    options = parser.parse_args()
    run = fold_of(options.folder, options.fold)
    data, root = run.data, options.folder.parent
    model = run.load().predictor()  # type: ignore[operator]
    name, on = str(run.cfg.data.name), data.trained_on
    learned = PatchSampler(str(root / f"{name}-patch_sampler"))
    fillers: dict[str, Any] = {
        "PatchSampler": learned,
        "conditional Gaussian": ConditionalGaussian(str(root / f"{name}-conditional_gaussian")),
        "patch mean": PatchMean(),
        "noise": UniformNoise(),
        "black": Colour(0.0),
        "grey": Colour(0.5),
    }
    patch = learned.fitted(on).patch
    samples = held_out_order(data, run.cfg.seed)[: options.images]
    explainers: dict[str, Any] = {
        f: SlidingPatch(patch, options.stride, filler, options.draws, PMI(), projection="mean", scale=False)
        for f, filler in fillers.items()
    }
    explainers["random map"] = Random()
    scores: dict[str, Any] = {
        "deletion, grey": Deletion(step=options.step, filler=Colour(0.5)),
        "deletion, in-fill": Deletion(step=options.step, filler=learned),
        "negative evidence, grey": NegativeEvidence(steps=10, filler=Colour(0.5)),
    }
    values = measure(model, data, samples, explainers, scores, on, run.cfg.seed)
    rows = []
    for explainer in explainers:
        row: list[Any] = [explainer]
        for score in scores:
            e = mean_estimate(values[explainer, score])
            d = difference(e, mean_estimate(values["PatchSampler", score]))
            mark = "" if d.low <= 0 <= d.high else "*"
            apart = "" if explainer == "PatchSampler" else f"  {d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}]{mark}"
            row.append(f"{e.value:.4f} [{e.low:.4f}, {e.high:.4f}]{apart}")
        rows.append(row)
    columns = ("filler of PMI", *scores)
    title = (
        f"{options.folder.name}, fold {options.fold}: {len(samples)} held-out images, K = {patch}, stride {options.stride}, "
        f"N = {options.draws}; mean [95 %], then the paired difference to PatchSampler (* = excludes 0)"
    )
    Table([Column(c) for c in columns], rows, title).show()
    if options.out:
        write_csv(options.out, columns, rows)


def measure(
    model: Any, data: Any, samples: Tensor, explainers: dict[str, Any], scores: dict[str, Any], on: TrainedOn, seed: int
) -> dict[tuple[str, str], Tensor]:
    """Every score of every explainer, `[images]`, for the class the model predicts."""
    out: dict[tuple[str, str], list[Tensor]] = {(e, s): [] for e in explainers for s in scores}
    fitted = {n: e.fitted(on) for n, e in explainers.items()}
    filled = {n: s.fitted(on) for n, s in scores.items()}
    for part in tqdm(samples.split(BATCH), unit="batch"):
        images, rng = data.source.train.images(part.tolist()), SampleRng(seed, tuple(part.tolist()))
        with torch.inference_mode():
            targets = model(images).argmax(1).clone()
        for e, explainer in fitted.items():
            maps = explainer(model, images, targets, rng)
            for s, score in filled.items():
                out[e, s].append(score(model, images, maps, targets, rng))
    return {key: torch.cat(found).double() for key, found in out.items()}


if __name__ == "__main__":
    main()
