"""lit_xai: can an explanation of an image classifier be trusted?

`import lit_xai` is cheap; torch and everything heavy load where they are used.
"""

from __future__ import annotations

import os
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(folder: str | os.PathLike[str], fold: int = 0) -> Any:
    """The predictor, split and maps of one fold: see `lit_xai.crossval.load`."""
    from lit_xai.crossval import load as load_fold

    return load_fold(os.fspath(folder), fold)
