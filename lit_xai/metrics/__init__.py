"""Scores (one number per probe) and measures (one number per ensemble)."""

from lit_xai.metrics.distance import DISTANCES, map_distance
from lit_xai.metrics.fidelity import Deletion, Insertion, MuFidelity, NegativeEvidence
from lit_xai.metrics.localisation import (
    BoxIoU,
    LocalisationError,
    MaskIoU,
    MaskPrecision,
    MaskRecall,
    MassInside,
    PointingGame,
    settle,
)
from lit_xai.metrics.plausibility import frechet_distance, inception, penultimate, plausibility_table, windows_refilled
from lit_xai.metrics.removal import removal_table
from lit_xai.metrics.robustness import robustness_table, similarities
from lit_xai.metrics.sampler import (
    Mahalanobis,
    image_ssim,
    label_entropy,
    pixel_distance,
    probability_entropy,
    silhouette,
    umap_plane,
)
from lit_xai.metrics.sampler_quality import SamplerQuality, sampler_table
from lit_xai.metrics.stability import MeGe, ReCo
from lit_xai.metrics.statistics import Estimate

__all__ = [
    "DISTANCES",
    "BoxIoU",
    "Deletion",
    "Estimate",
    "Insertion",
    "LocalisationError",
    "Mahalanobis",
    "MaskIoU",
    "MaskPrecision",
    "MaskRecall",
    "MassInside",
    "MeGe",
    "MuFidelity",
    "NegativeEvidence",
    "PointingGame",
    "ReCo",
    "SamplerQuality",
    "frechet_distance",
    "image_ssim",
    "inception",
    "label_entropy",
    "map_distance",
    "penultimate",
    "pixel_distance",
    "plausibility_table",
    "probability_entropy",
    "removal_table",
    "robustness_table",
    "sampler_table",
    "settle",
    "silhouette",
    "similarities",
    "umap_plane",
    "windows_refilled",
]
