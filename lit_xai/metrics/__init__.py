"""Scores (one number per probe) and measures (one number per ensemble)."""

from lit_xai.metrics.again import ClassSensitivity, MaxSensitivity
from lit_xai.metrics.distance import DISTANCES, map_distance
from lit_xai.metrics.drops import MuFidelity
from lit_xai.metrics.fidelity import Deletion, Insertion, NegativeEvidence
from lit_xai.metrics.in_domain import InDomainDeletion, InDomainInsertion, InDomainMuFidelity
from lit_xai.metrics.infidelity import Infidelity
from lit_xai.metrics.kept_share import KeptShare
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
from lit_xai.metrics.radius import CertifiedRadius
from lit_xai.metrics.robustness import robustness_table, similarities
from lit_xai.metrics.simplicity import Complexity, Sparseness
from lit_xai.metrics.soft_stability import SoftStability
from lit_xai.metrics.stability import MeGe, ReCo
from lit_xai.metrics.statistics import Estimate

__all__ = [
    "DISTANCES",
    "BoxIoU",
    "CertifiedRadius",
    "ClassSensitivity",
    "Complexity",
    "Deletion",
    "Estimate",
    "InDomainDeletion",
    "InDomainInsertion",
    "InDomainMuFidelity",
    "Infidelity",
    "Insertion",
    "KeptShare",
    "LocalisationError",
    "MaskIoU",
    "MaskPrecision",
    "MaskRecall",
    "MassInside",
    "MaxSensitivity",
    "MeGe",
    "MuFidelity",
    "NegativeEvidence",
    "PointingGame",
    "ReCo",
    "SoftStability",
    "Sparseness",
    "map_distance",
    "robustness_table",
    "settle",
    "similarities",
]
