"""Attribution methods: frozen dataclasses called as `explainer(model, images, targets) -> maps`."""

from lit_xai.explainers.cam import GradCAM, GradCAMPlusPlus
from lit_xai.explainers.control import Random
from lit_xai.explainers.gradient import GradientInput, IntegratedGradients, Saliency, SmoothGrad
from lit_xai.explainers.rise import RISE
from lit_xai.explainers.via_captum import Captum

__all__ = [
    "RISE",
    "Captum",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradientInput",
    "IntegratedGradients",
    "Random",
    "Saliency",
    "SmoothGrad",
]
