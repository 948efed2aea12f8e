"""Attribution methods: frozen dataclasses called as `explainer(model, images, targets) -> maps`."""

from lit_xai.explainers.attention import AttentionRollout, GradientRollout
from lit_xai.explainers.averaged_gradient import AveragedGradient
from lit_xai.explainers.cam import GradCAM, GradCAMPlusPlus
from lit_xai.explainers.centre import Centre
from lit_xai.explainers.control import Random
from lit_xai.explainers.edges import Edges
from lit_xai.explainers.gradient import (
    AbsoluteIntegratedGradients,
    GradientInput,
    GradientShap,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
)
from lit_xai.explainers.image import Image
from lit_xai.explainers.image_random import ImageRandom
from lit_xai.explainers.information import Information, information_maps
from lit_xai.explainers.lime import Lime
from lit_xai.explainers.lime_limit import lime_gap
from lit_xai.explainers.meaningful import MeaningfulPerturbation
from lit_xai.explainers.pomelo_lime import pomelo
from lit_xai.explainers.rise import RISE
from lit_xai.explainers.sweep import SlidingPatch
from lit_xai.explainers.via_captum import Captum

__all__ = [
    "RISE",
    "AbsoluteIntegratedGradients",
    "AttentionRollout",
    "AveragedGradient",
    "Captum",
    "Centre",
    "Edges",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradientInput",
    "GradientRollout",
    "GradientShap",
    "Image",
    "ImageRandom",
    "Information",
    "IntegratedGradients",
    "Lime",
    "MeaningfulPerturbation",
    "Random",
    "Saliency",
    "SlidingPatch",
    "SmoothGrad",
    "information_maps",
    "lime_gap",
    "pomelo",
]
