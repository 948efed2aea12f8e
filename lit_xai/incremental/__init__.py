"""Logits of one image with a window replaced, computed from where the window can be seen: exact, below the naive floor.

A change of K x K pixels reaches only a patch of each feature map. The image's own activations are kept; the patch is carried
through the network, its surroundings are read from what is kept, and where it has grown over so much of the map that the
whole map is cheaper, the rest of the network runs as ever (Nakandala et al., SIGMOD 2019, without their approximation).

    image        conv 3x3      conv 3x3       pool 2        conv 3x3            dense
    K = 8   ->   10      ->    12       ->    7       ->    9       -> ... ->   the whole map

Nothing is done where it would not be exact or would not pay: `network_of` says why, and callers use the model itself.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.calls import in_format_of
from lit_xai.errors import UsageError
from lit_xai.incremental.costs import COSTS, Costs
from lit_xai.incremental.measuring import measure
from lit_xai.incremental.network import Network, in_a_line, network_of
from lit_xai.incremental.operations import NotIncremental
from lit_xai.incremental.patches import Incremental, Ints, on_device
from lit_xai.incremental.plan import Plan

__all__ = [
    "COSTS",
    "MODES",
    "Costs",
    "Incremental",
    "Network",
    "NotIncremental",
    "WindowLogits",
    "measure",
    "network_of",
]

LOG = logging.getLogger(__name__)
GAIN = 0.85  # of the naive cost, by prediction: above it the model itself is used
MEMORY = 1 << 30  # bytes of feature maps that may be kept of an image
MODES = ("auto", "always", "never")


class WindowLogits:
    """Logits of one image with windows replaced, by the shortest exact way.

    It answers for the weights, the settings and the image of when it was made: who changes one of them makes another.

    Args:
        model: images in [0, 1] to logits, in evaluation mode.
        image: `[1, c, h, w]`.
        patch: height and width of the windows, in pixels.
        rows: most images in a call of the model itself.
        mode: `auto` carries patches where it is possible and pays by prediction, `always` where it is possible, `never`
            calls the model.
        costs: of the device; None takes `COSTS`.
        network: the model as it was traced for another image; None traces it.
        windows: most windows in a call by patches, for which its time is predicted; None = `rows`. Above `rows`, they are no more
            than what holds as much memory as the model's own call; what they are is the attribute.
        later: that the traced network is the model on this image, too, is left to whoever looks at `differs`: nothing waits for it.

    Attributes:
        network: the traced model; None where it is not.
        why: in one line, why the model itself is called; empty where patches are carried.
        kept: bytes of the image's feature maps.
        share: predicted time relative to the model's; 1 where it is called.
        differs: whether patches are carried through what is not the model, where that was left for later: a truth on the device.

    Raises:
        UsageError: an unknown mode, an image or a window of the wrong shape; with `always`, it is not possible.
    """

    def __init__(
        self,
        model: Any,
        image: Float[Tensor, "1 c h w"],
        patch: tuple[int, int],
        rows: int = 16,
        mode: str = "auto",
        costs: Costs | None = None,
        network: Network | None = None,
        windows: int | None = None,
        later: bool = False,
    ) -> None:
        if mode not in MODES:
            raise UsageError(f"incremental must be one of {', '.join(MODES)}, found {mode!r}")
        if (
            image.ndim != 4
            or len(image) != 1
            or not all(1 <= k <= s for k, s in zip(patch, image.shape[2:], strict=True))
        ):
            raise UsageError(f"windows of {patch[0]} x {patch[1]} do not fit an image of shape {tuple(image.shape)}")
        self.model, self.image, self.patch, self.rows = model, image, patch, rows
        self.windows = rows if windows is None else windows
        self.mode, self.network, self.later = mode, network, later
        self.incremental: Incremental | None = None
        self.differs = torch.zeros((), dtype=torch.bool, device=image.device)
        self.why, self.kept, self.share = "incremental=never", 0, 1.0
        if mode == "never":
            return
        try:
            with torch.no_grad():
                self.incremental, self.why = self.carrying(costs), ""
            self.kept, self.share = self.incremental.kept, self.incremental.plan.share
            self.differs = self.incremental.differs
        except NotIncremental as e:
            if mode == "always":
                raise UsageError(f"incremental=always is not possible: {e}") from None
            self.why = str(e)
            LOG.info("the model itself is called for every window: %s", e)

    def carrying(self, costs: Costs | None) -> Incremental:
        """The way by patches.

        Raises:
            NotIncremental: it is not possible, or does not pay.
        """
        device = self.image.device
        if torch.is_autocast_enabled(device.type):
            raise NotIncremental("autocast is on: windows would be rounded otherwise than whole maps")
        if self.image.dtype != torch.float32:
            raise NotIncremental(f"the image is {self.image.dtype}: only float32")
        known = costs or COSTS.get(device.type)
        if known is None:
            raise NotIncremental(f"nothing is known of the speed of {device.type}")
        self.network = network = self.network or network_of(self.model)
        try:
            plan = self.planned(network, known)
            self.windows = plan.rows
            if self.mode == "auto" and plan.share > GAIN:
                raise NotIncremental(
                    f"it would take {plan.share:.2f} of the model's own time at {plan.rows} windows a call"
                )
            if plan.kept > MEMORY:
                raise NotIncremental(f"{plan.kept / 1e6:.0f} MB of feature maps are more than {MEMORY / 1e6:.0f} MB")
            return Incremental(network, plan, self.image, self.later)
        except torch.OutOfMemoryError:
            raise  # a command that goes on otherwise where memory was short would give other last bits
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, AssertionError) as e:
            raise NotIncremental(f"its traced form does not run ({in_a_line(e)})") from None

    def planned(self, network: Network, costs: Costs) -> Plan:
        """How far patches are carried, and how many windows a call takes."""
        windows = self.windows
        while True:
            shape = tuple(self.image.shape)
            plan = network.plan(shape, self.patch, windows, costs, self.image.device, self.rows)
            if windows <= self.rows or plan.held * windows <= plan.held_by_model * self.rows:
                return plan
            windows = max(self.rows, windows // 2)

    def __call__(
        self, pixels: Float[Tensor, "r c k l"], top: Any, left: Any, here: Int[Tensor, "r 2"] | None = None
    ) -> Float[Tensor, "r n"]:
        """Row t is the image with the window at `top[t]`, `left[t]` replaced by `pixels[t]`; `here`: both on the image's device, else copied."""
        ys, xs = np.asarray(top, dtype=np.int64), np.asarray(left, dtype=np.int64)
        (height, width), (h, w) = self.image.shape[2:], self.patch
        if pixels.shape[1:] != (self.image.shape[1], h, w) or not len(pixels) == len(ys) == len(xs):
            raise UsageError(
                f"pixels of shape {tuple(pixels.shape)} do not show {len(ys)} windows of {self.image.shape[1]} x {h} x {w}"
            )
        if len(ys) and (min(ys.min(), xs.min()) < 0 or ys.max() > height - h or xs.max() > width - w):
            raise UsageError(f"a window of {h} x {w} lies outside of the image of {height} x {width} pixels")
        rows = self.windows if self.carries else self.rows
        here = on_device(ys, xs, self.image.device) if here is None else here
        some = [slice(i, i + rows) for i in range(0, max(1, len(ys)), rows)]
        return torch.cat([self.of_rows(pixels[s], ys[s], xs[s], here[s]) for s in some])

    @property
    def carries(self) -> bool:
        """Whether a call carries patches now."""
        return self.incremental is not None and not torch.is_autocast_enabled(self.image.device.type)

    def of_rows(self, pixels: Tensor, top: Ints, left: Ints, here: Tensor) -> Tensor:
        """The logits of windows `[r, c, K, K]` by one call, by what is kept or by the model."""
        if self.incremental is not None and self.carries and len(pixels):
            with torch.no_grad():
                return self.incremental(pixels.to(self.image), top, left, here)
        return self.by_model(pixels, top, left)

    def by_model(self, pixels: Tensor, top: Ints, left: Ints) -> Tensor:
        """The model's own answer."""
        x = in_format_of(self.image.repeat(len(pixels), 1, 1, 1), self.image)
        for row, (t, s) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
            x[row, :, t : t + self.patch[0], s : s + self.patch[1]] = pixels[row]
        return self.model(x)
