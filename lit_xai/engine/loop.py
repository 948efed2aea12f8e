"""Explain and score a range of probes with one model: the one loop behind callbacks, commands and `crossval`.

Model batches are aligned to the probe order: batch b always holds probes b*B .. (b+1)*B-1, whatever shard or rank asks
for them, so a map is bitwise the same for any rank count and shard size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

import lit_xai
from lit_xai.core import Explainer, Score
from lit_xai.engine.job import Job
from lit_xai.engine.sizes import keep_size, sized
from lit_xai.engine.tasks import Task, Tasks
from lit_xai.errors import UsageError
from lit_xai.rng import SampleRng
from lit_xai.store.fold import read_shard
from lit_xai.store.names import RANDOMISED
from lit_xai.store.tensors import write_tensors


def explain(
    job: Job,
    explainers: Mapping[str, Explainer],
    scores: Mapping[str, Score],
    part: tuple[int, int] = (0, 1),
    progress: bool = True,
    on_shard: Callable[[str, int, int, int], None] | None = None,
) -> int:
    """Compute and write every missing shard of this part; return how many were written. See `compute`."""
    return compute(Tasks.of(job, explainers, scores, part), progress, on_shard)


def compute(tasks: Tasks, progress: bool = True, on_shard: Callable[[str, int, int, int], None] | None = None) -> int:
    """Compute and write these shards; return how many were written.

    Before every shard, and in the end, `on_shard` is told what comes, how many of how many shards are done and how many
    images that were.

    Model outputs that a score needs but that do not depend on the map are computed once per shard and shared by all
    explainers; further maps that it needs are each explainer's own.
    """
    job = tasks.job
    size = keep_size(job) if tasks else 0
    fitted = {n: sized(s.fitted(job.trained_on), size) for n, s in tasks.scores.items()}
    job.store.remove_temporary()
    observed: dict[tuple[str, int], Tensor | None] = {}
    current: range | None = None
    total = sum(len(t.shard) for t in tasks)
    with tqdm(total=total, unit="map", disable=not progress or not tasks, dynamic_ncols=True) as bar:
        images = 0
        for done, task in enumerate(tasks):
            if task.shard != current:
                observed, current = {}, task.shard
            bar.set_description(f"fold {job.store.fold} {task.name}")
            if on_shard is not None:
                on_shard(f"{task.path.stem} of {task.name}", done, len(tasks), images)
            run(task, size, fitted, observed, bar)
            images += len(task.shard)
    if on_shard is not None:
        on_shard("end", len(tasks), len(tasks), images)
    return len(tasks)


def run(
    task: Task, size: int, scores: Mapping[str, Score], observed: dict[tuple[str, int], Tensor | None], bar: Any
) -> None:
    """Compute one shard's missing maps `[n, h, w]` and scores, by calls of `size` images, and write it."""
    job, shard = task.job, task.shard
    explainer = sized(task.spec.explainer.fitted(job.trained_on), size)
    maps, values = [], {name: [] for name in task.missing}  # type: ignore[var-annotated]
    resolved: dict[str, Any] = {}
    details: dict[str, list[Tensor]] = {}
    had = read_shard(task.path)[0] if task.meta else {}
    for start in job.batches(shard):
        images, targets, rng = job.batch(start)
        inside = slice(max(shard.start - start, 0), min(shard.stop - start, len(images)))
        if not resolved:
            resolved = {"explainer": explainer.resolved(job.model, images)}
            resolved.update({n: scores[n].resolved(job.model, images) for n in scores})
        if had:
            batch_maps = torch.zeros(len(images), *images.shape[-2:], device=images.device)
            kept = had["maps"][start + inside.start - shard.start : start + inside.stop - shard.start]
            batch_maps[inside] = kept.to(images.device)
        else:
            batch_maps, found = explainer.with_details(job.model, images, targets, rng)
            if job.kind == RANDOMISED:  # fresh weights may overflow; a constant map is no evidence for or against
                batch_maps = torch.where(torch.isfinite(batch_maps).flatten(1).all(1)[:, None, None], batch_maps, 0.0)
            check_maps(batch_maps, images, rng, task)
            for name, detail in found.items():
                details.setdefault(f"detail/{name}", []).append(detail[inside].double().cpu())
        maps.append(batch_maps[inside].float().cpu())
        for name in task.missing:
            score = scores[name]
            if score.explanations:  # of this explainer alone
                known = score.again(explainer, job.model, images, targets, rng)
            else:
                if (name, start) not in observed:
                    if score.truth is not None and job.truth is not None:
                        observed[name, start] = job.truth.masks(score.truth, [int(s) for s in rng.samples]).to(
                            images.device
                        )
                    else:
                        observed[name, start] = score.observe(job.model, images, targets, rng)
                known = observed[name, start]
            value, found = score.with_details(job.model, images, batch_maps, targets, rng, known)
            values[name].append(value[inside].double().cpu())
            for learned, numbers in found.items():
                details.setdefault(f"detail/{name}/{learned}", []).append(numbers[inside].double().cpu())
            whole = score.reference(known) if score.truth is not None and known is not None else None
            if whole is not None:
                details.setdefault(f"reference/{name}", []).append(whole[inside].double().cpu())
        bar.update(inside.stop - inside.start)
    tensors = {"sample": job.samples[shard.start : shard.stop], "maps": torch.cat(maps)}
    tensors.update({k: v for k, v in had.items() if k not in tensors})
    tensors.update({k: torch.cat(v) for k, v in details.items()})
    tensors.update({f"score/{n}": torch.cat(v) for n, v in values.items()})
    definitions = {
        n: {
            "definition": task.spec.wanted[n],
            "resolved": resolved.get(n, {}),
            "higher_is_better": scores[n].higher_is_better,
            **({} if scores[n].against_nulls else {"against_nulls": False}),
            **({"files": task.spec.files[n]} if task.spec.files[n] else {}),
            **({} if (settings := scores[n].settings()) is None else {"settings": list(settings)}),
        }
        for n in task.missing
    }
    meta = {
        "fingerprint": task.spec.fingerprint,
        "resolved": resolved.get("explainer", {}),
        "scores": {**task.meta.get("scores", {}), **definitions},
        **made_by(task.meta),
    }
    write_tensors(task.path, tensors, meta)


def made_by(had: Mapping[str, Any]) -> dict[str, Any]:
    """Which code made a shard's maps, and under `also` which other code added scores to them."""
    now = lit_xai.made_by()
    maps = {k: had[k] for k in now if k in had} or now
    also = [m for m in (*had.get("also", []), *([now] if maps != now else []))]
    unique = [m for i, m in enumerate(also) if m not in also[:i]]
    return {**maps, "also": unique} if unique else maps


def check_maps(maps: Tensor, images: Tensor, rng: SampleRng, task: Task) -> None:
    """Refuse maps that are not `[b, h, w]` of the images, and maps with NaN, before anything is written."""
    expected = (len(images), *images.shape[-2:])
    if tuple(maps.shape) != expected:
        raise UsageError(f"explainer {task.name} gave maps of shape {tuple(maps.shape)}, expected {expected}")
    bad = torch.nonzero(~torch.isfinite(maps).flatten(1).all(1))[:, 0].tolist()
    if bad:
        raise UsageError(
            f"explainer {task.name} gave NaN for sample {rng.samples[bad[0]]} (fold {task.job.store.fold}): "
            f"check the checkpoint (train again with another model.lr) or leave the explainer out"
        )
