"""lit_xai: can an explanation of an image classifier be trusted?

`import lit_xai` is cheap; torch and everything heavy load where they are used.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "audit", "code", "load", "made_by"]


@functools.cache
def code() -> str:
    """A short digest of the package's Python sources: which code computed a file."""
    here = Path(__file__).resolve().parent
    h = hashlib.blake2b(digest_size=4)
    for file in sorted(here.rglob("*.py"), key=lambda f: f.relative_to(here).as_posix()):
        h.update(file.relative_to(here).as_posix().encode() + b"\0" + file.read_bytes())
    return h.hexdigest()


def made_by() -> dict[str, str]:
    """What every file of a store says of the code that computed it; two versions of it may fill one store."""
    return {"version": __version__, "code": code()}


def audit(*args: Any, **options: Any) -> Any:
    """Can the explanations of a model of your own be trusted? See `lit_xai.crossval.audit`."""
    from lit_xai.crossval import audit as audit_model

    return audit_model(*args, **options)


def load(folder: str | os.PathLike[str], fold: int = 0, module: Any = None, dataset: Any = None) -> Any:
    """The predictor, split, maps and images of one fold: see `lit_xai.crossval.load`."""
    from lit_xai.crossval import load as load_fold

    return load_fold(os.fspath(folder), fold, module, dataset)
