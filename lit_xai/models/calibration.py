"""Training folds of which a share is kept back from the gradient, to say afterwards how sure a network may be of itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lit_xai.data.folds import FoldData
from lit_xai.data.split import Split
from lit_xai.errors import UsageError
from lit_xai.rng import Noise, stable_hash

SHARE = 0.1  # of the training folds
SPREAD = 0.5  # of the temperature's logarithm beforehand: a factor of e either way is two standard deviations
LEAST = 10  # images, below which a temperature is noise


@dataclass(frozen=True)
class KeepingBack(Split):
    """A split of which no predictor is trained on some samples, whichever fold it leaves out besides.

    Attributes:
        back: `[n]` whether each sample is kept back.
    """

    back: Bool[Tensor, "n"]

    def training(self, fold: int) -> Int[Tensor, "t"]:
        """Sample indices of D without V_i and without what is kept back."""
        return self.samples[(self.fold_of != self.check(fold)) & ~self.back]

    def kept_back(self, fold: int) -> Int[Tensor, "c"]:
        """Those that are kept back of D without V_i."""
        return self.samples[(self.fold_of != self.check(fold)) & self.back]


class CalibratedData(FoldData):
    """`FoldData` whose training leaves out a share of the training folds, to which a temperature is fitted (Guo et al., 2017).

    Every sample is kept back with probability `SHARE`, a function of seed and sample, and samples of one group together: an image of
    a patient whose other images were learned would make a network look surer than it may be. V_i has no part in it.
    """

    @cached_property
    def split(self) -> Split:
        """The split, without what is kept back in the training folds.

        Raises:
            UsageError: too few images would be left to fit a temperature to.
        """
        whole = super().split
        unit = self.grouping["groups"][whole.samples] if "groups" in self.grouping else whole.samples
        draws = Noise(torch.tensor(stable_hash(self.seed, "calibration"))).part(unit).uniform((1,))[:, 0]
        fields = (whole.samples, whole.fold_of, whole.labels, whole.k, whole.seed)
        found = KeepingBack(*fields, back=draws < SHARE)
        if len(found.kept_back(self.fold)) < LEAST:
            raise UsageError(
                f"calibrate=true fits a temperature to a tenth of the training folds, which are {len(found.kept_back(self.fold))} "
                f"images in fold {self.fold}, and needs {LEAST}: give more data or leave it out"
            )
        return found

    @property
    def kept_back(self) -> Int[Tensor, "c"]:
        """The samples of the training folds that the gradient never sees."""
        assert isinstance(self.split, KeepingBack)
        return self.split.kept_back(self.fold)
