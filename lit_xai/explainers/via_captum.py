"""One adapter that runs any of captum's attributions by name (Kokhlikyan et al., 2020)."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_xai.calls import gated, raw
from lit_xai.core import Explainer, Images, Maps, Model, Passes, Targets
from lit_xai.errors import UsageError
from lit_xai.explainers.gradient import reduce_channels
from lit_xai.explainers.layers import (
    CHECKPOINTS,
    Pass,
    attends,
    differentiable,
    layers_of,
    operations,
    run_through,
)
from lit_xai.fitting import accepts
from lit_xai.rng import SampleRng, seeded, stable_hash

BASELINE_REQUIRED = {"GradientShap", "DeepLiftShap"}  # captum wants a distribution of baselines: black images here
GUIDED = ("Guided", "Deconvolution")  # in the names of those that change the gradient of nn.ReLU, and of nothing else
# operations of autograd's graph that DeepLift has a rule for, where these modules run them
RULES: dict[str, tuple[type[nn.Module], ...]] = {
    "Relu": (nn.ReLU,),
    "Elu": (nn.ELU,),
    "LeakyRelu": (nn.LeakyReLU,),
    "Sigmoid": (nn.Sigmoid,),
    "Tanh": (nn.Tanh,),
    "Softplus": (nn.Softplus,),
    "MaxPool2DWithIndices": (nn.MaxPool2d, nn.MaxPool1d),
}
# and those that captum takes for linear; guided methods need no rule for norms, and for sigmoids as gates
NORMS = "norms of the sample itself"
BENT = {
    "GELU activations": ("Gelu", "Erf"),
    "SiLU activations": ("Silu",),
    "activations without a rule": ("Mish", "Hardswish", "Hardsigmoid", "Hardtanh", "PreluKernel", "LogSigmoid", "Exp"),
    "sorted or cut values": ("Sort", "Topk", "Maximum", "Minimum", "Max", "Amax", "Abs", "Clamp", "ClampMin", "Where"),
    NORMS: ("NativeLayerNorm", "NativeGroupNorm", "FusedRmsNorm", "Rsqrt", "LinalgVectorNorm"),
}
PRODUCTS = ("Mul", "Div", "Bmm")
MISSING = {"DeepLift": 0.01, "LRP": 0.001}  # share of all attributions by which their sum may be wrong


@dataclass(frozen=True)
class Captum(Explainer):
    """captum's `method`, e.g. `Captum("DeepLift")`; maps are its attributions reduced over the channels.

    Methods that draw random numbers are run image by image, with torch's and NumPy's generators seeded for the sample, so that
    a map does not depend on its batch.

    Args:
        method: a class of `captum.attr`.
        layer: dotted module name, for layer methods.
        options: keyword arguments of captum's `attribute`.
        channels: reduction over the channels: mean, max or sum.
    """

    deterministic: ClassVar[bool] = True  # its random numbers are captum's own

    method: str
    layer: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    channels: str = "mean"

    @gated
    def __call__(self, model: Model, images: Images, targets: Targets, rng: SampleRng | None = None) -> Maps:
        rng = SampleRng.default(len(images), rng)
        maps = []
        with differentiable(model):
            attribution = self.build(model)
            images, targets = images.clone(), targets.clone()
            if self.changes_gradients and len(images) and isinstance(model, nn.Module):
                self.check(model, attribution, images)
            single = self.is_random(attribution)
            for rows in [slice(r, r + 1) for r in range(len(images))] if single else [slice(0, len(images))]:
                with seeded(stable_hash(rng.seed, "captum", rng.samples[rows.start])):
                    maps.append(self.attribute(attribution, images[rows], targets[rows]))
        return torch.cat(maps)

    @property
    def changes_gradients(self) -> bool:
        """Whether captum puts rules of its own in the place of some modules' gradients."""
        return any(word in self.method for word in (*MISSING, *GUIDED))

    def build(self, model: Model) -> Any:
        """The captum object for this model."""
        import captum.attr

        known = {n: k for n, k in vars(captum.attr).items() if isinstance(k, type) and "attribute" in dir(k)}
        kind = known.get(self.method)
        if kind is None:
            raise UsageError(f"captum has no attribution {self.method!r}; it has: {', '.join(sorted(known))}")
        own = raw(model)
        if not isinstance(own, nn.Module):
            raise UsageError(f"captum's {self.method} needs a torch.nn.Module, found a plain function")
        if self.method == "NoiseTunnel":
            return kind(captum.attr.Saliency(model))
        wants = accepts(kind.__init__) or set()
        if self.changes_gradients or "layer" in wants:
            layers_of(model, f"captum's {self.method}")
        if "layer" not in wants:
            return kind(model)
        modules = dict(own.named_modules())
        if self.layer not in modules:
            raise UsageError(f"captum's {self.method} needs layer=, one of: {', '.join(list(modules)[1:])}")
        return kind(model, modules[self.layer])

    def check(self, model: nn.Module, attribution: Any, images: Tensor) -> None:
        """Refuse networks for which captum's rules are not those of the method; `images` `[b, c, h, w]` go through it once.

        captum changes the gradients of some modules, and takes everything else for linear: attention, other activations,
        functions. What has no such operation is tried on noise: DeepLift's and LRP's attributions have to add up.

        Raises:
            UsageError: naming the operation, or how far they do not.
        """
        instead = "use integrated_gradients or another method"
        with differentiable(model):
            runs = run_through(model, images, {n: m for n, m in model.named_modules() if isinstance(m, KNOWN)})
            wrong = self.misread(runs)
        if wrong:
            raise UsageError(f"captum's {self.method} is wrong on this network, which has {wrong}: {instead}")
        if any(word in self.method for word in GUIDED) or "return_convergence_delta" not in (
            accepts(attribution.attribute) or set()
        ):
            return
        noise = SampleRng.default(1).noise("captum", images.device).uniform(images.shape[1:]).to(images.dtype)
        options: dict[str, Any] = {"target": 0, "return_convergence_delta": True}
        if "LRP" not in self.method:
            options["baselines"] = torch.zeros_like(noise).repeat(2 if self.method in BASELINE_REQUIRED else 1, 1, 1, 1)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                out, delta = attribution.attribute(noise.requires_grad_(), **options)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, TypeError, NotImplementedError, AttributeError, ValueError) as e:
            # captum says in any of these that it has no rule for a layer, or that a module is used twice
            raise UsageError(
                f"captum's {self.method} does not take this network ({str(e).splitlines()[0][:120]}): {instead}"
            ) from None
        out = out[0] if isinstance(out, tuple) else out
        share = float(delta.detach().abs().max() / out.detach().abs().sum().clamp_min(1e-30))
        if not share <= next(most for word, most in MISSING.items() if word in self.method):
            raise UsageError(
                f"captum's {self.method} is wrong on this network: on noise its attributions miss the sum that they must have "
                f"by {100 * share:.2g} % of them all; {instead}"
            )

    def misread(self, passed: Pass) -> str:
        """The first operation of a pass that the method's rules are wrong for; empty where there is none."""
        nodes = operations(passed.logits)
        if attends(passed.logits):
            return "attention"
        counts = Counter(node.name().partition("Backward")[0] for node in nodes)
        guided = any(word in self.method for word in GUIDED)
        others = {f"{RULES[n][0].__name__} activations": (n,) for n in ("Elu", "LeakyRelu", "Tanh", "Softplus")}
        wrong = {k: v for k, v in BENT.items() if k != NORMS} | others if guided else BENT
        bent = next((text for text, names in wrong.items() if any(counts[name] for name in names)), "")
        if bent:
            return bent
        if not guided and any(is_joint(node, PRODUCTS) for node in nodes):
            return "products of activations"
        for name, kinds in RULES.items() if "LRP" not in self.method else ():
            as_modules = sum(isinstance(r.module, kinds) for r in passed.runs)
            if counts[name] > as_modules and not (guided and name != "Relu"):
                return f"{name} as a function (give it as a module, nn.{kinds[0].__name__})"
        if guided and not counts["Relu"]:
            return "no ReLU"
        if "LRP" in self.method and any(is_joint(node, ("Add",)) for node in nodes):
            return "residual sums"
        return ""

    def is_random(self, attribution: Any) -> bool:
        """Whether captum draws random numbers for this method (it then takes a number of samples)."""
        return bool({"n_samples", "nt_samples"} & (accepts(attribution.attribute) or set()))

    def attribute(self, attribution: Any, images: Tensor, targets: Tensor) -> Maps:
        """One call of captum for images `[b, c, h, w]`, brought to image size and one channel."""
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in self.options.items()}  # captum wants tuples
        if self.method in BASELINE_REQUIRED:
            options.setdefault("baselines", torch.zeros_like(images[:1]).repeat(2, 1, 1, 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # captum announces the hooks it sets and removes
            try:
                out = attribution.attribute(images.requires_grad_(), target=targets, **options)
            except RuntimeError as e:
                if "use_reentrant" not in str(e):
                    raise
                raise UsageError(f"captum's {self.method} cannot see into {CHECKPOINTS}") from None
        out = out[0] if isinstance(out, tuple) else out
        out = out.detach().to(images.dtype)
        if out.ndim != 4:
            raise UsageError(
                f"captum's {self.method} gave shape {tuple(out.shape)}: it is not an attribution of pixels"
            )
        if out.shape[-2:] != images.shape[-2:]:
            out = F.interpolate(out, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return reduce_channels(out, self.channels)

    def passes(self, height: int, width: int) -> Passes:
        """A guess from the usual option names."""
        steps = int(self.options.get("n_steps", self.options.get("n_samples", 1)))
        return Passes(steps, steps)


KNOWN = tuple(kind for kinds in RULES.values() for kind in kinds)


def is_joint(node: Any, kinds: tuple[str, ...]) -> bool:
    """Whether an operation of these kinds joins two values that were computed, not a computed one and a weight."""
    parents = [n for n, _ in node.next_functions if n is not None and "AccumulateGrad" not in n.name()]
    return node.name().partition("Backward")[0] in kinds and len(parents) > 1
