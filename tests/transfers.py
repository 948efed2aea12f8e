"""A device that is not there: real numbers on the CPU, in tensors that say that they lie elsewhere.

Work on it counts what a real one would wait for: copies between host and device, and values that Python reads. A tensor of the host
where one of the device is needed is an error, as it is on a GPU. torch's `lazy` device has no kernels of its own and its gradients are
taken in the calling thread, so it needs no hardware and starts nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("lazy")
aten = torch.ops.aten
READS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten._unique2,
    aten.unique_consecutive,
    aten._linalg_check_errors,
}
COPIES = {aten._to_copy, aten.copy_}  # may cross
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}  # an index of the host is copied
MADE = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
SET = Tensor.data.__set__  # type: ignore[attr-defined]
HANDLED = {*MADE, SET, Tensor.tolist, Tensor.numpy, Tensor.__getitem__, Tensor.__setitem__}


class There(Tensor):
    """A tensor that says that it lies on `DEVICE`; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        strides, offset = held.stride(), held.storage_offset()
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=strides, storage_offset=offset, dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(func, args, kwargs or {}, Counter())


def tensors(args: Any) -> Iterator[Tensor]:
    """Those among the arguments of an operation."""
    for x in args:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, list | tuple):
            yield from tensors(x)


def here(x: Any) -> Any:
    """The values of a tensor, or of a list of tensors."""
    if isinstance(x, There):
        return x.held
    return type(x)(map(here, x)) if type(x) in (list, tuple) else x


def there(x: Any) -> Any:
    """What an operation gives, on the device."""
    if isinstance(x, Tensor):
        return x if isinstance(x, There) else There(x)
    return type(x)(map(there, x)) if type(x) in (list, tuple) else x


def carried_out(func: Any, args: Any, kwargs: Any, counts: Counter[str]) -> Any:
    """An operation on the values that are held; its results lie where the operands do, or where it says."""
    found, packet = list(tensors((*args, *kwargs.values()))), func.overloadpacket
    lands = on_device = any(isinstance(x, There) for x in found)
    mixed = on_device and any(not isinstance(x, There) and x.ndim for x in found)
    if mixed and packet not in COPIES | INDEXED:
        raise RuntimeError(f"expected all tensors on one device: {func} got some of the host")
    args, kwargs = here(args), {k: here(v) for k, v in kwargs.items()}
    if packet is aten.copy_:
        lands = isinstance(found[0], There)
    elif kwargs.get("device") is not None:
        lands = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"} | {"device": torch.device("cpu")}
    if packet in READS and on_device:
        counts["read by Python"] += 1
    elif packet in COPIES and isinstance(found[-1], There) != lands:
        counts["to the device" if lands else "to the host"] += 1
    elif packet in INDEXED and mixed:
        counts["to the device"] += 1
    out = func(*args, **kwargs)
    return there(out) if lands else out


class FromLists(TorchFunctionMode):
    """What is made of Python's numbers is made on the host and copied, and what becomes a list is copied back, as on a real device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in HANDLED:
            return func(*args, **kwargs)
        first, goal = args[0], kwargs.get("device")
        from_there = isinstance(first, There)
        if func == SET and from_there:  # of a module that changes its type
            first.held = here(args[1])
            return func(*args, **kwargs)
        if func in MADE and (torch.device(goal).type == DEVICE.type if goal is not None else from_there):
            kwargs = {k: v for k, v in kwargs.items() if k != "device"}
            if func is Tensor.new_tensor:
                return torch.tensor(*args[1:], **{"dtype": first.dtype, **kwargs}).to(DEVICE)
            return first.to(kwargs.get("dtype") or first.dtype) if from_there else func(*args, **kwargs).to(DEVICE)
        if from_there and func is Tensor.numpy:
            raise TypeError("cannot convert a tensor of the device to NumPy: copy it to the host first")
        if from_there and func is Tensor.tolist:
            return first.cpu().tolist()
        if from_there and func in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i).to(DEVICE) if isinstance(i, list) else i for i in index)
            return func(first, index, *args[2:])
        return func(*args, **kwargs)


class Counted(TorchDispatchMode):
    """What a device would wait for, by name: `to the device`, `to the host`, `read by Python`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.from_lists = FromLists()

    def __enter__(self) -> Counted:
        self.from_lists.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.from_lists.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(func, args, kwargs or {}, self.counts)


def moved(thing: Tensor | nn.Module) -> Any:
    """A tensor, or a module's parameters and buffers, on the device."""
    if isinstance(thing, Tensor):
        return There(thing.detach().clone())
    for module in thing.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(There(parameter.detach().clone()), parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = There(buffer.clone())
    return thing
