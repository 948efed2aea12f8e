"""Lightning callbacks: explanations and what is measured beside them, on held-out folds."""

from lit_xai.callbacks.checks import Curves, SanityCheck
from lit_xai.callbacks.explain import Explain, parse_part, score_table
from lit_xai.callbacks.fillers import FillerReport, SamplerReport
from lit_xai.callbacks.overview import Gallery, Stability

__all__ = [
    "Curves",
    "Explain",
    "FillerReport",
    "Gallery",
    "SamplerReport",
    "SanityCheck",
    "Stability",
    "parse_part",
    "score_table",
]
