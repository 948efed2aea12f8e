"""A model as a list of steps: traced by torch.fx, batch norms folded into convolutions, nothing in place."""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.fx as fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lit_xai.incremental.costs import Costs
from lit_xai.incremental.operations import (
    EACH_BY_NAME,
    EACH_FUNCTIONS,
    EACH_METHODS,
    EACH_MODULES,
    IN_PLACE,
    JOIN_METHODS,
    JOINS,
    NotIncremental,
    Sliding,
    Step,
    average_pool_of,
    conv2d,
    conv_of,
    max_pool_of,
)
from lit_xai.incremental.plan import Plan

CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
MAX_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
AVERAGE_POOL = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
SAME = {nn.Identity, nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout}
FRESH_MODULES = (  # their values lie in memory of their own
    *(m for m in EACH_MODULES if m not in SAME),
    nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.LayerNorm, nn.GroupNorm,
)  # fmt: skip
FRESH_METHODS = (EACH_METHODS | JOIN_METHODS | {"size", "dim", "numel", "mean", "sum"}) - {
    "contiguous", "float", "add_", "sub_", "mul_", "div_",
}  # fmt: skip
FRESH_FUNCTIONS = ((EACH_FUNCTIONS | set(JOINS)) - IN_PLACE - {F.dropout, F.dropout2d}) | {
    torch.cat, torch.concat, F.conv2d, torch.conv2d, F.linear, F.max_pool2d, torch.max_pool2d, F.avg_pool2d,
    F.adaptive_avg_pool2d, F.batch_norm, F.interpolate,
}  # fmt: skip
POOLS: dict[Any, tuple[str, ...]] = {F.max_pool2d: MAX_POOL, torch.max_pool2d: MAX_POOL, F.avg_pool2d: AVERAGE_POOL}


class Value(fx.Proxy):
    """A traced value; torch.fx alone takes `x += y` for `x = x + y`, although others may hold the same x."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class Tracer(fx.Tracer):
    """Layers of torch and activations that are known by name stay whole.

    While torch.fx traces, it has replaced `nn.Module.__call__` and `__getattr__` for the whole process: what other threads
    ask of them is answered as ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return pixelwise(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Value(node, self)


def pixelwise(m: nn.Module) -> bool:
    """Whether a layer is one of deel-torchlip's activations over channels."""
    known = type(m).__name__ in EACH_BY_NAME and type(m).__module__.startswith("deel.")
    return known and vars(m).get("_dim") in (None, 1)


def in_place(module: nn.Module | None) -> bool:
    """Whether a layer writes its result into its input."""
    return bool(vars(module).get("inplace", False)) if module is not None else False


def refusals(model: Any) -> None:
    """What makes a model's passes depend on more than its input.

    Raises:
        NotIncremental: with the reason.
    """
    if not isinstance(model, nn.Module):
        raise NotIncremental(f"{type(model).__name__} is no torch module")
    for name, m in model.named_modules():
        where = f"{name or 'the model'} ({type(m).__name__})"
        if isinstance(m, torch.jit.ScriptModule):
            raise NotIncremental(f"{where} is scripted")
        if m.training:
            raise NotIncremental(f"{where} is in training mode: call eval()")
        if "forward" in vars(m):
            raise NotIncremental(f"{where} has a forward pass that is not its class's")
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            raise NotIncremental(f"{where} has hooks: remove them")
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None:
            raise NotIncremental(f"{where} normalises by the batch")
    modules = torch.nn.modules.module
    if modules._global_forward_hooks or modules._global_forward_pre_hooks:
        raise NotIncremental("there are global hooks on modules: remove them")
    kinds = {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()}
    if kinds - {torch.float32}:
        raise NotIncremental(f"its weights are {', '.join(map(str, kinds))}: only float32")
    if len({t.device for t in model.parameters()}) > 1:
        raise NotIncremental("it lies on several devices")


class Network:
    """A model as a list of steps, batch norms folded into convolutions.

    Raises:
        NotIncremental: it cannot be traced, or changes values that are used elsewhere.
    """

    def __init__(self, model: Any) -> None:
        refusals(model)
        with untouched(model):
            self.trace(model)

    def trace(self, model: nn.Module) -> None:
        """Trace the model into its steps."""
        try:
            graph = Tracer().trace(model)
        except Exception as e:
            raise NotIncremental(f"torch.fx cannot trace it ({in_a_line(e)})") from None
        self.model = model
        self.steps: list[Step] = []
        self.constants: dict[str, Any] = {}
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.renamed: dict[str, str] = {}
        self.shaped: dict[tuple[int, ...], list[Step]] = {}
        self.plans: dict[Any, Plan] = {}
        for node in graph.nodes:
            if node.op == "output":
                name = node.args[0].name if isinstance(node.args[0], fx.Node) else ""
                self.output = self.renamed.get(name, name)
                if not self.output:
                    raise NotIncremental("it returns more than one tensor")
            elif node.op == "get_attr":
                self.constants[node.name] = operator.attrgetter(node.target)(model)
            elif node.op == "placeholder":
                if self.steps:
                    if not node.args and node.users:
                        raise NotIncremental("it takes more than one input")
                    self.constants[node.name] = node.args[0] if node.args else None
                else:
                    self.steps.append(Step(node.name, lambda x: x, (), "source"))
            elif node.name not in self.renamed:
                self.steps.append(self.step_of(node))
        used = {n: s.name for s in self.steps for n in s.inputs}
        for s in self.steps:
            s.last = [n for n, user in used.items() if user == s.name and n != self.output]

    def step_of(self, node: fx.Node) -> Step:
        """What one node does."""
        inputs = tuple(self.renamed.get(n.name, n.name) for n in node.all_input_nodes)
        names = [n.name for n in node.all_input_nodes]
        module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        call = self.operation(node, module)
        kwargs = {k: v for k, v in node.kwargs.items() if k != "inplace"}

        def run(*values: Any) -> Any:
            found = dict(zip(names, values, strict=True))
            args, more = fx.node.map_arg((node.args, kwargs), lambda n: found[n.name])
            return call(*args, **more)

        step = Step(node.name, run, inputs, "whole")
        if module is not None:
            self.of_module(step, node, module)
        else:
            self.of_function(step, node)
        return step

    def operation(self, node: fx.Node, module: nn.Module | None) -> Callable[..., Any]:
        """What a node calls, never in place.

        Raises:
            NotIncremental: in place, on a value that is used elsewhere, too.
        """
        method = str(node.target) if node.op == "call_method" else ""
        name = method or getattr(node.target, "__name__", "")
        changes = in_place(module) or node.kwargs.get("inplace") or node.target in IN_PLACE
        changes = changes or method in ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__")
        changes = changes or (name.endswith("_") and not name.endswith("__") and not hasattr(operator, name))
        if "out" in node.kwargs:
            raise NotIncremental(f"{node.name} writes into a given tensor")
        if changes:
            self.check_alone(node, node.args[0])
        if module is not None:
            if in_place(module):
                module = type(module).__new__(type(module))
                module.__dict__.update(self.model.get_submodule(str(node.target)).__dict__)
                module.inplace = False  # type: ignore[assignment]
            return module
        if method:
            name = method.removesuffix("_") if changes else method
            if name in ("view", "view_as") and not isinstance(node.args[1], torch.dtype):
                name = name.replace("view", "reshape")  # maps are channels-last here
            return lambda x, *a, **k: getattr(x, name)(*a, **k)
        if node.target in (F.conv2d, torch.conv2d):
            return conv2d
        return JOINS.get(node.target, node.target)  # type: ignore[arg-type, return-value]

    def check_alone(self, node: fx.Node, changed: Any) -> None:
        """Refuse an operation in place whose input is read again later, under this name or another.

        Raises:
            NotIncremental: it is, or may be.
        """
        group, found = [changed], {changed}
        for n in group:  # grows: whatever may share memory
            near = [*(n.all_input_nodes if self.shares(n) else ()), *(u for u in n.users if self.shares(u))]
            for other in near:
                if self.order[other] < self.order[node] and other not in found:
                    found.add(other)
                    group.append(other)
        for n in group:
            if n.op in ("placeholder", "get_attr") or any(self.order[u] > self.order[node] for u in n.users):
                raise NotIncremental(f"{node.name} changes {changed.name} in place, which is used elsewhere")

    def shares(self, node: fx.Node) -> bool:
        """Whether a value may lie in the memory of what it was computed from."""
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            return in_place(module) or not isinstance(module, FRESH_MODULES)
        if node.op == "call_method":
            return node.target not in FRESH_METHODS
        fresh = node.target in FRESH_FUNCTIONS or (node.target is getattr and node.args[1] != "T")
        return node.op == "call_function" and (bool(node.kwargs.get("inplace")) or not fresh)

    def of_module(self, step: Step, node: fx.Node, module: nn.Module) -> None:
        """A layer's kind, and how it slides."""
        if type(module) is nn.Conv2d and module.padding_mode == "zeros":
            users = list(node.users)
            norm = (
                self.model.get_submodule(str(users[0].target))
                if len(users) == 1 and users[0].op == "call_module"
                else None
            )
            weight, bias = module.weight, module.bias
            mean, var = (norm.running_mean, norm.running_var) if isinstance(norm, nn.BatchNorm2d) else (None, None)
            if type(norm) is nn.BatchNorm2d and mean is not None and var is not None:
                weight, bias = fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, norm.weight, norm.bias)
                self.renamed[users[0].name] = step.name
            weight = weight.detach().contiguous(memory_format=torch.channels_last)
            bias = None if bias is None else bias.detach()
            stride, padding, dilation, groups = module.stride, module.padding, module.dilation, module.groups
            step.run = lambda x: conv2d(x, weight, bias, stride, padding, dilation, groups)
            self.convolves(step, conv_of(weight, bias, stride, padding, dilation, groups), weight, groups)
        elif type(module) is nn.MaxPool2d and not module.return_indices:
            self.pools(step, max_pool_of(module.kernel_size, module.stride, module.padding, module.dilation))
        elif type(module) is nn.AvgPool2d:
            m = module
            options = m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
            self.pools(step, average_pool_of(*options))
        elif type(module) in EACH_MODULES or pixelwise(module):
            step.kind = "each"
        elif isinstance(module, nn.Linear):
            step.work = ("conv", 2.0 * module.weight.numel())

    def convolves(self, step: Step, slides: Sliding | None, weight: Tensor, groups: int) -> None:
        """Make a step a convolution with `weight` `[o, i, u, v]`, and say what an output pixel costs."""
        if slides is not None:
            name = "grouped" if groups > 1 else "pointwise" if math.prod(slides.size) == 1 else "conv"
            step.kind, step.sliding, step.work = "sliding", slides, (name, 2.0 * weight.numel() / len(weight))

    def of_function(self, step: Step, node: fx.Node) -> None:
        """A function's or method's kind."""
        target, args = node.target, node.args
        kwargs: dict[str, Any] = dict(node.kwargs)
        method = node.op == "call_method"
        if kwargs.get("training") or kwargs.get("train") or (target is torch.dropout and args[2:3] == (True,)):
            raise NotIncremental(f"{node.name} is in training mode, also in evaluation mode of the model")
        if target in (F.conv2d, torch.conv2d) and set(step.inputs[1:]) <= set(self.constants):
            self.of_conv(step, dict(zip(CONV, args, strict=False)) | kwargs)
        elif target in POOLS:
            kwargs.pop("input", None)
            given: dict[str, Any] = dict(zip(POOLS[target], args, strict=False)) | kwargs
            given.pop("input", None)
            if not given.pop("return_indices", False):
                self.pools(step, max_pool_of(**given) if target is not F.avg_pool2d else average_pool_of(**given))
        elif target in (torch.cat, torch.concat):
            if kwargs.get("dim", args[1] if len(args) > 1 else 0) in (1, -3):
                step.kind = "join"
        elif target in JOINS or (method and target in JOIN_METHODS):
            step.kind = "join" if len(step.inputs) > 1 else "each"
        elif target in EACH_FUNCTIONS or (method and target in EACH_METHODS):
            step.kind = "each" if len(step.inputs) == 1 else "join"

    def of_conv(self, step: Step, given: dict[str, Any]) -> None:
        """A convolution called as a function, with constant weights."""
        weight, bias = (self.constants[given[n].name] if given.get(n) is not None else None for n in ("weight", "bias"))
        stride, padding, dilation, groups = (given.get(n, d) for n, d in zip(CONV[3:], (1, 0, 1, 1), strict=True))
        if isinstance(weight, Tensor):
            self.convolves(step, conv_of(weight, bias, stride, padding, dilation, groups), weight, groups)

    def pools(self, step: Step, slides: Sliding | None) -> None:
        """A pooling; None is left to whole maps."""
        if slides is not None:
            step.kind, step.sliding, step.work = "sliding", slides, ("memory", 4.0 * math.prod(slides.size))

    def values(self, image: Tensor, keep: Callable[[Step, Any], None]) -> Any:
        """The network on whole images `[b, c, h, w]`, step by step; `keep` sees every value."""
        env: dict[str, Any] = dict(self.constants)
        for step in self.steps:
            env[step.name] = image if step.kind == "source" else step.run(*(env[n] for n in step.inputs))
            keep(step, env[step.name])
            for n in step.last:
                if n not in self.constants:
                    env.pop(n, None)
        return env[self.output]

    def plan(
        self,
        shape: tuple[int, ...],
        patch: tuple[int, int],
        rows: int,
        costs: Costs,
        device: torch.device,
        images: int | None = None,
    ) -> Plan:
        """Up to where patches are carried, for images of this shape (see `Plan.make`); kept for the next image."""
        if shape not in self.shaped:
            steps: list[Step] = []

            def note(step: Step, value: Any) -> None:
                steps.append(replace(step, shape=tuple(value.shape) if isinstance(value, Tensor) else ()))

            self.values(torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last), note)
            self.shaped[shape] = steps
        key = (shape, patch, rows, costs, images)
        if key not in self.plans:
            self.plans[key] = Plan.make(self.shaped[shape], self.constants, patch, rows, costs, images)
        return self.plans[key]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """What tracing writes into a model is taken out again.

    Raises:
        NotIncremental: its forward pass keeps values.
    """
    holders: list[Any] = [
        v for m in model.modules() for v in (vars(m), *vars(m).values()) if isinstance(v, dict | list)
    ]
    before = [(v, v.copy()) for v in holders]
    try:
        yield
    finally:
        touched = False
        for now, was in before:
            if same_items(now, was):
                continue
            kept = {k: v for k, v in now.items() if "_tensor_constant" not in str(k)} if isinstance(now, dict) else now
            touched |= not same_items(kept, was)
            now.clear()
            now.update(was) if isinstance(now, dict) else now.extend(was)
    if touched:
        raise NotIncremental("its forward pass keeps values for later")


def same_items(one: Any, other: Any) -> bool:
    """Whether two dictionaries, or two lists, hold the same objects in the same order."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(operator.is_, one.values(), other.values()))
    return len(one) == len(other) and all(map(operator.is_, one, other))


def in_a_line(e: Exception) -> str:
    """What an error says, in short."""
    return (str(e).splitlines() or [type(e).__name__])[0][:150]


LOCK = threading.RLock()  # two tracings at once would leave nn.Module as one of them replaced it


def network_of(model: Any) -> Network:
    """The model, traced; it answers for the weights and settings of now.

    Raises:
        NotIncremental: why it cannot be.
    """
    with LOCK, torch.inference_mode(False), torch.no_grad():  # what is traced serves in either mode
        try:
            return Network(model)
        except NotIncremental:
            raise
        except Exception as e:
            raise NotIncremental(f"its traced form cannot be read ({in_a_line(e)})") from None
