"""What maps are held against to see what they depend on: other weights, other noise.

A few held-out probes of every predictor are explained twice more: by a copy of its network whose layers are all re-initialised
(kind `randomised`, Adebayo et al. 2018), and by itself with other noise (kind `repeated`).
"""

from __future__ import annotations

from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from lit_xai.data.folds import Split
from lit_xai.engine.job import Job
from lit_xai.engine.tasks import Tasks
from lit_xai.errors import UsageError
from lit_xai.models.randomise import find_layers, randomised
from lit_xai.rng import stable_hash
from lit_xai.store.names import RANDOMISED, REPEATED


def checked_probes(split: Split, probes: Int[Tensor, "p"], fold: int, number: int) -> Int[Tensor, "c"]:
    """The first `number` of the probes that the predictor of a fold never saw."""
    return probes[split.fold(probes) == fold][:number]


def changed(job: Job) -> Job:
    """The job of a check with the model or the noise that makes it one; of any other kind, itself.

    The fresh weights are a function of the seed and the fold: those of two predictors are independent.

    Raises:
        UsageError: the model has no layers that can be re-initialised, see `find_layers`.
    """
    if job.kind == REPEATED:
        return replace(job, repeat=1)
    if job.kind != RANDOMISED or not len(job.samples):
        return job
    layers = find_layers(job.model, job.batch(0)[0])
    return replace(job, model=randomised(job.model, layers, stable_hash(job.seed, "fold", job.store.fold)))


def changed_tasks(tasks: Tasks) -> Tasks | None:
    """The same tasks by `changed` of their job, as they are where nothing is left to do; None of a model that has no layers to
    re-initialise, after a line that says so.
    """
    if not tasks:
        return tasks
    try:
        job = changed(tasks.job)
    except UsageError as e:
        print(f"sanity is left out: {e}", flush=True)
        return None
    own = tuple(replace(task, spec=replace(task.spec, job=job)) for task in tasks)
    return replace(tasks, job=job, tasks=own)
