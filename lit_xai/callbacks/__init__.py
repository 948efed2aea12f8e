"""Lightning callbacks: explanations and what is measured beside them, on held-out folds."""

from lit_xai.callbacks.base import Context, Report
from lit_xai.callbacks.checks import Curves, SanityCheck
from lit_xai.callbacks.domain import Domain
from lit_xai.callbacks.explain import Explain, parse_part, score_table
from lit_xai.callbacks.fillers import FillerReport, SamplerReport
from lit_xai.callbacks.logged import Logged
from lit_xai.callbacks.overview import Gallery, Stability
from lit_xai.callbacks.pace import Pace
from lit_xai.callbacks.samplers import SamplerTable
from lit_xai.callbacks.shortcut import Shortcut

__all__ = [
    "Context",
    "Curves",
    "Domain",
    "Explain",
    "FillerReport",
    "Gallery",
    "Logged",
    "Pace",
    "Report",
    "SamplerReport",
    "SamplerTable",
    "SanityCheck",
    "Shortcut",
    "Stability",
    "parse_part",
    "score_table",
]
