"""The layers of a network in the order of its calls, and copies of it in which some of them forget what they learned."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import partial
from math import nan
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lit_xai.core import Images, Model
from lit_xai.errors import UsageError
from lit_xai.rng import stable_hash

EMBEDDED = 0.02  # standard deviation of fresh tokens and position embeddings, as transformers are initialised


class Layer(NamedTuple):
    """What is re-initialised together: the name of the module with the weights, and all modules it takes along."""

    name: str
    modules: tuple[str, ...]


def inside(inner: str, outer: str) -> bool:
    """Whether the module named `inner` lies below the one named `outer` (the model itself is named "")."""
    return inner != outer and (not outer or inner.startswith(f"{outer}."))


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that are a module's own, not its submodules'."""
    return dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))


def statistics_of(module: nn.Module) -> dict[str, Tensor]:
    """The floating-point buffers of a module that keeps running statistics; any other module's are constants."""
    own = dict(module.named_buffers(recurse=False))
    kept = any(name.startswith("running_") for name in own)
    return {name: b for name, b in own.items() if kept and b.is_floating_point()}


def call_order(network: nn.Module, images: Images) -> dict[str, int]:
    """When each module of this (disposable) network is first called, by dotted name; the network itself is named ""."""
    order = {"": 0}

    def note(name: str, *_: Any) -> None:
        order.setdefault(name, len(order))

    for name, module in network.named_modules():
        module.register_forward_pre_hook(partial(note, name))
    with torch.no_grad():
        network(images[:1])
    return order


def find_layers(model: Model, images: Images) -> tuple[Layer, ...]:
    """The layers of a model in the order in which one image passes them, input first.

    A layer is a module with a parameter of two or more dimensions (a convolution, a linear map) together with the
    modules that have only smaller ones (batch norm, PReLU), or only running statistics, and are first called after it
    and before the next; those that come before the first layer belong to it. What a module holds outside of the layers
    inside it - parameters of its own (a class token), submodules it never calls as such (an auxiliary head, weights
    used by `F.linear`) - belongs to the first of these layers, or makes a layer of the module where it has none inside
    (`nn.MultiheadAttention`). So every parameter belongs to exactly one layer.

    Buffers without a parameter beside them are no layer: a fixed normalisation in front belongs to the input, and
    running statistics before the first layer do too.

    Args:
        model: gives logits; it is copied, called once in evaluation mode, and left alone.
        images: `[b, c, h, w]`; the first is used.

    Raises:
        UsageError: not a module, no layers, no images, parametrised weights.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"a sanity check re-initialises layers: pass a torch.nn.Module, found {type(model).__name__}")
    if images.ndim != 4 or len(images) == 0:
        raise UsageError(f"finding layers needs an image [1, channels, height, width], found {tuple(images.shape)}")
    network = randomised(model, (), 0)
    order = call_order(network, images)
    modules = dict(network.named_modules())
    held: dict[str, list[str]] = {}
    for name, module in modules.items():
        if is_parametrized(module):
            raise UsageError(
                f"the weights of {name or 'the model'} are parametrised: export it to plain layers first "
                "(lit_xai.models.lipschitz.plain, torch.nn.utils.parametrize.remove_parametrizations)"
            )
        if any(True for _ in module.parameters(recurse=False)) or statistics_of(module):
            holder = name
            while holder not in order:
                holder = holder.rpartition(".")[0]
            held.setdefault(holder, []).append(name)

    def widest(holder: str) -> int:
        return max((p.ndim for name in held[holder] for p in modules[name].parameters(recurse=False)), default=-1)

    ordered = sorted(held, key=order.__getitem__)
    wide = [holder for holder in ordered if widest(holder) >= 2]
    members: dict[str, list[str]] = {h: [] for h in wide if not any(inside(other, h) for other in wide)}
    if not members:
        raise UsageError(f"{type(model).__name__} has no layer with weights: there is nothing to re-initialise")
    current: str | None = None
    for holder in ordered:
        if holder in members:
            current = holder
        home = next((name for name in members if inside(name, holder)), current)
        if home is None and widest(holder) >= 0:
            home = next(iter(members))
        if home is not None:
            members[home] += held[holder]
    return tuple(Layer(name or type(model).__name__, tuple(names)) for name, names in members.items())


def redraw(module: nn.Module) -> None:
    """Re-initialise a (disposable) module's own parameters and running statistics, by its `reset_parameters`.

    What that leaves untouched, or where there is none: uniform in +-1/sqrt(n) for n inputs per output (PyTorch's
    default) from two dimensions, or normal where these are of one output (tokens and position embeddings); below these, and
    for one number an output (the scale of a branch), 0 for a bias and a mean and 1 for anything else. A buffer beside no
    running statistics is a constant of the architecture, and stays where `reset_parameters` leaves it.
    """
    tensors = dict(module.named_parameters(recurse=False)) | statistics_of(module)
    tensors = {name: t for name, t in tensors.items() if t.is_floating_point()}
    with torch.no_grad():
        for t in tensors.values():
            t.fill_(nan)  # what is still NaN afterwards was not reset
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        for name, t in tensors.items():
            if not bool(torch.isnan(t).any()):
                continue
            if t.ndim >= 2 and len(t) == 1:  # class tokens, position embeddings
                nn.init.trunc_normal_(t, std=EMBEDDED)
            elif t.ndim >= 2 and len(t) < t.numel():
                bound = (t.shape[0] / max(1, t.numel())) ** 0.5
                t.uniform_(-bound, bound)
            else:
                t.fill_(0.0 if name.endswith(("bias", "mean")) else 1.0)


def randomised(model: nn.Module, layers: Iterable[Layer], seed: int) -> nn.Module:
    """A copy of the model in evaluation mode, with these layers re-initialised.

    The new weights of a layer are a function of `(seed, its name)` alone: they are the same on every device, and
    whatever else is re-initialised. The model and the global random state are left as they are.
    """
    network = copy.deepcopy(model).eval()
    with torch.random.fork_rng(devices=[]):
        for layer in layers:
            torch.random.default_generator.manual_seed(stable_hash(seed, "sanity", layer.name))
            for name in layer.modules:
                module = network.get_submodule(name)
                fresh = copy.deepcopy(module).cpu()
                redraw(fresh)
                new = tensors_of(fresh)  # its own only: a reset may have reached into submodules, other layers
                with torch.no_grad():
                    for key, t in tensors_of(module).items():
                        t.copy_(new[key])
    return network
