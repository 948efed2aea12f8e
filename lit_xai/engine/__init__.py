"""Explain and score a range of probes with one model: the one loop behind callbacks, commands and `crossval`.

Model batches are aligned to the probe order: batch b always holds probes b*B .. (b+1)*B-1, whatever shard or rank asks
for them, so a map is bitwise the same for any rank count and shard size.
"""

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
from lit_xai.engine.job import Explained, files_of, model_hash, read_from
from lit_xai.engine.loop import check_maps, explain, explained_by, makers, run, settings_of
from lit_xai.engine.predict import predict, predictions_of
from lit_xai.engine.scan import (
    FINISHED,
    Recipe,
    Work,
    definition_of,
    finished,
    masks_digest,
    recipes,
    stale_layouts,
    work_list,
)

__all__ = [
    "COUNTS",
    "ENOUGH",
    "FINISHED",
    "LEAST",
    "Cost",
    "Explained",
    "Plan",
    "Recipe",
    "Work",
    "begun",
    "check_maps",
    "definition_of",
    "explain",
    "explained_by",
    "fewer_probes",
    "files_of",
    "finished",
    "makers",
    "masks_digest",
    "model_hash",
    "plan",
    "predict",
    "predictions_of",
    "read_from",
    "recipes",
    "run",
    "seconds_per_image",
    "setting",
    "settings_of",
    "stale_layouts",
    "trial",
    "unit",
    "work_list",
]
