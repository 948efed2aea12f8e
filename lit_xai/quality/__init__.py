"""What judges fillers as samplers: plausibility, removal, diversity, locality."""

from lit_xai.quality.plausibility import frechet_distance, inception, penultimate, plausibility_table, windows_refilled
from lit_xai.quality.removal import removal_table
from lit_xai.quality.sampler import (
    Mahalanobis,
    image_ssim,
    label_entropy,
    pixel_distance,
    probability_entropy,
    silhouette,
    umap_plane,
)
from lit_xai.quality.sampler_quality import SamplerQuality, sampler_table

__all__ = [
    "Mahalanobis",
    "SamplerQuality",
    "frechet_distance",
    "image_ssim",
    "inception",
    "label_entropy",
    "penultimate",
    "pixel_distance",
    "plausibility_table",
    "probability_entropy",
    "removal_table",
    "sampler_table",
    "silhouette",
    "umap_plane",
    "windows_refilled",
]
