"""Scores (one number per probe) and measures (one number per ensemble)."""

from lit_xai.metrics.distance import DISTANCES, map_distance
from lit_xai.metrics.fidelity import Deletion, Insertion, MuFidelity
from lit_xai.metrics.stability import MeGe, ReCo
from lit_xai.metrics.statistics import Estimate

__all__ = ["DISTANCES", "Deletion", "Estimate", "Insertion", "MeGe", "MuFidelity", "ReCo", "map_distance"]
