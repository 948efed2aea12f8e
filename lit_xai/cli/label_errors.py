"""`evaluate label_errors=`: probable label errors of an ensemble's data, and whether the reasons of its predictors agree."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from tqdm.auto import tqdm

from lit_xai import engine
from lit_xai.calls import Gate
from lit_xai.cli.build import named, say
from lit_xai.cli.loaded import predictor_of
from lit_xai.cli.run import Run
from lit_xai.cli.saved import with_saved
from lit_xai.core import Explainer, as_explainer
from lit_xai.data.folds import noisy_labels
from lit_xai.errors import UsageError
from lit_xai.metrics import label_errors as measured
from lit_xai.metrics.statistics import share_estimate
from lit_xai.report.label_errors import Listed, write
from lit_xai.rng import SampleRng

DEFAULT = "gradcam"


def label_errors(cfg: DictConfig) -> None:
    """List, explain, judge, write.

    Raises:
        UsageError: cleanlab is not installed, the folder has no predictors of all folds, its images have no labels, or no such explainer.
    """
    measured.require_cleanlab()
    cfg = with_saved(cfg)
    method = DEFAULT if cfg.label_errors is True else cfg.label_errors
    plain: Any = OmegaConf.to_container(cfg)
    runs = [Run(OmegaConf.create({**plain, "fold": fold}), "evaluate") for fold in range(cfg.data.folds)]
    first = runs[0]
    if first.is_sampler or not first.trainable or len(runs) < 2:
        raise UsageError(
            f"label_errors= asks predictors that never saw a sample, and {first.name} has none of several folds: train with fold=all"
        )
    explainer = named("explainer", method, first.cfg, "label_errors", as_explainer)
    for run in runs:
        run.require_trained()
        run.check_folder()
    if not first.data.source.labelled:
        raise UsageError(
            f"{first.data.source.name} has no labels, and so no label errors: name= a folder of labelled data"
        )
    split, source = first.data.split, first.data.source
    say(
        f"{first.name}: {len(split.samples):,} labels by {len(runs)} predictors, reasons by {method} -> {first.store.root.parent}"
    )
    if cfg.dry_run:
        return
    models = [predictor_of(run.load()).to(first.device).eval() for run in runs]
    probabilities = out_of_fold(runs, models)
    given = noisy_labels(split, len(source.classes), cfg.label_noise)
    right = share_estimate(probabilities.argmax(1) == given)
    frequent = float(torch.bincount(given).max() / len(given))
    if not right.low > frequent:
        raise UsageError(
            f"label_errors= needs predictors that know the classes: theirs are {right.text()} of the labels of {first.name}, the most frequent "
            f"one alone {frequent:.3f}: train longer (trainer.max_epochs=), or on more data"
        )
    issues = measured.listed(given, probabilities)
    rows = measured.pool(issues, given, probabilities)
    predicted = probabilities.argmax(1)
    about_predicted, about_given = agreements(
        runs, models, explainer, split.samples[rows], predicted[rows], given[rows], cfg
    )
    found = Listed(
        name=first.name,
        method=str(method),
        samples=split.samples[rows],
        given=given[rows],
        predicted=predicted[rows],
        probability=probabilities[rows].gather(1, given[rows][:, None])[:, 0],
        about_given=about_given,
        about_predicted=about_predicted,
        length=len(issues),
        true=split.labels[rows] if cfg.label_noise else None,
        errors=int((given != split.labels).sum()),
        total=len(given),
        classes=source.classes,
        paths=source.paths,
        seed=cfg.seed,
    )
    files = write(found, source.train, first.store.root.parent, first.data.show)
    say(f"written: {', '.join(map(str, files))}")


def out_of_fold(runs: list[Run], models: list[nn.Module]) -> Tensor:
    """`[n, k]` what every sample's own predictor gives each class: kept ones, else asked for and kept now."""
    split, rows = runs[0].data.split, []
    for run, model in zip(runs, models, strict=True):
        samples, checkpoint = split.held_out(run.cfg.fold), engine.model_hash(model)
        found = run.store.read_probabilities(samples, checkpoint)
        if found is None:
            every = torch.ones(len(samples), dtype=torch.bool)
            labels, images = split.label(samples), run.data.source.train
            *_, found = engine.predict(
                model, images, samples, labels, run.device, keep=every, progress=run.cfg.progress
            )
            run.store.write_probabilities(samples, found, checkpoint)
        rows.append(found)
    out = torch.empty(len(split.samples), rows[0].shape[1])
    for run, found in zip(runs, rows, strict=True):
        out[split.fold_of == run.cfg.fold] = found
    return out


def agreements(
    runs: list[Run],
    models: list[nn.Module],
    explainer: Explainer,
    samples: Tensor,
    predicted: Tensor,
    given: Tensor,
    cfg: Any,
) -> tuple[Tensor, Tensor]:
    """How much all folds' maps of every sample `[p]` agree for its predicted class `[p]`, and for the given one `[p]`: `[p]` each."""
    fitted = [explainer.fitted(run.data.trained_on) for run in runs]
    gates, images, device = [Gate.of(m) for m in models], runs[0].data.source.train, runs[0].device
    out: tuple[list[Tensor], list[Tensor]] = ([], [])
    starts = range(0, len(samples), cfg.batch_size)
    for start in tqdm(starts, desc="reasons", unit="batch", disable=not cfg.progress, leave=False):
        some = slice(start, start + cfg.batch_size)
        x = images.images(samples[some].tolist()).to(device)
        rng = SampleRng(cfg.seed, tuple(samples[some].tolist()))
        for kept, classes in zip(out, (predicted[some], given[some]), strict=True):
            maps = [e(g, x, classes.to(device), rng).detach().cpu() for e, g in zip(fitted, gates, strict=True)]
            kept.append(measured.agreement(torch.stack(maps)))
    nobody = torch.zeros(0, dtype=torch.float64)
    return tuple(torch.cat([nobody, *kept]) for kept in out)  # type: ignore[return-value]
