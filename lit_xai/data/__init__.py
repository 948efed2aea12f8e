"""Data sets, the cross-validation split, and the LightningDataModule over both."""

from lit_xai.data.folds import FoldData, Split
from lit_xai.data.images import Source

__all__ = ["FoldData", "Source", "Split"]
