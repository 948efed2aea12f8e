"""Explain and score a range of probes with one model: the one loop behind callbacks, commands and `crossval`.

Model batches are aligned to the probe order: batch b always holds probes b*B .. (b+1)*B-1, whatever shard or rank asks
for them, so a map is bitwise the same for any rank count and shard size.
"""

from lit_xai.engine.checks import changed, changed_tasks, checked_probes
from lit_xai.engine.estimate import (
    COUNTS,
    ENOUGH,
    LEAST,
    Cost,
    Plan,
    begun,
    fewer_probes,
    plan,
    seconds_per_image,
    setting,
    trial,
    unit,
)
from lit_xai.engine.job import Job, explained_classes, files_of, model_hash, read_from
from lit_xai.engine.loop import check_maps, compute, explain
from lit_xai.engine.predict import keep_thumbnails, predict, predictions_of, predictions_of_tests
from lit_xai.engine.tasks import Spec, Task, Tasks, masks_digest, specs

__all__ = [
    "COUNTS",
    "ENOUGH",
    "LEAST",
    "Cost",
    "Job",
    "Plan",
    "Spec",
    "Task",
    "Tasks",
    "begun",
    "changed",
    "changed_tasks",
    "check_maps",
    "checked_probes",
    "compute",
    "explain",
    "explained_classes",
    "fewer_probes",
    "files_of",
    "keep_thumbnails",
    "masks_digest",
    "model_hash",
    "plan",
    "predict",
    "predictions_of",
    "predictions_of_tests",
    "read_from",
    "seconds_per_image",
    "setting",
    "specs",
    "trial",
    "unit",
]
