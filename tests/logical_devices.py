"""Several devices in one process on a CPU: real numbers that know which device they would be on.

``with logical_devices():`` tensors can be moved to ``cpu:0``, ``cpu:1`` and so on, which torch
itself takes for one and the same device. An operation on tensors of two of them raises what torch
raises on two GPUs, and so does one of a tensor there and one on plain ``cpu``; gradients go back to
where they came from. torch's own fake tensors (``FakeTensorMode``, with ``cuda:0`` and ``cuda:1``)
cannot take this place: they have no numbers, which the sweeps branch on, and a CPU build of torch
ends the process as soon as one of them requires a gradient.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

_NN: Any = torch._C._nn  # type: ignore[attr-defined]
_MIXED = "Expected all tensors to be on the same device, but found {}"
_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class LogicalTensor(torch.Tensor):
    """Numbers on the CPU, and the device that they are said to be on."""

    numbers: Tensor
    place: torch.device

    def __new__(
        cls, numbers: Tensor, place: torch.device | None = None, *, requires_grad: bool = False
    ) -> Any:
        if place is None:  # accelerate makes a new weight by the type of the old one
            return nn.Parameter(numbers, requires_grad=requires_grad)
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=torch.device("cpu"),
            requires_grad=requires_grad,
        )
        tensor.numbers, tensor.place = numbers.detach(), place
        return tensor

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"LogicalTensor({self.numbers!r}, {str(self.place)!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation on the numbers; its results are where its arguments are."""
    name = func._schema.name
    tensors = [leaf for leaf in _leaves((*args, *kwargs.values())) if isinstance(leaf, Tensor)]
    places = {leaf.place for leaf in tensors if isinstance(leaf, LogicalTensor)}
    if name in _INDEXING:  # indices may be on the CPU
        tensors = [args[0], *(leaf for leaf in tensors if isinstance(leaf, LogicalTensor))]
    plain = places and any(
        type(leaf) is not LogicalTensor and leaf.ndim > 0 and not leaf.is_meta for leaf in tensors
    )
    if name != "aten::copy_" and (len(places) > 1 or plain):
        found = [str(getattr(leaf, "place", "cpu")) for leaf in tensors]
        raise RuntimeError(_MIXED.format(f"{', '.join(found)} in {name}"))
    place = next(iter(places), None)
    if name == "aten::copy_":
        place = getattr(args[0], "place", None)
    inner = {key: numbers_of(value) for key, value in kwargs.items()}
    asked = inner.get("device")
    if isinstance(asked, torch.device) and asked.type == "cpu":
        inner["device"] = torch.device("cpu")
        place = place if asked.index is None else asked
    found = func(*map(numbers_of, args), **inner)
    if place is None:
        return found
    several = isinstance(found, list | tuple)
    wrapped: Any = [_placed(one, place) for one in (found if several else [found])]
    wrapped = type(found)(wrapped) if several else wrapped[0]
    if any(returned.alias_info is not None for returned in func._schema.returns):
        return return_and_correct_aliasing(func, args, kwargs, wrapped)
    return wrapped


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from value
        else:
            yield value


def _placed(value: Any, place: torch.device) -> Any:
    return LogicalTensor(value, place) if type(value) is Tensor and not value.is_meta else value


def numbers_of(value: Any) -> Any:
    """A tensor's numbers on plain ``cpu``, also in a list; anything else as it is."""
    if isinstance(value, LogicalTensor):
        return value.numbers
    if isinstance(value, list | tuple):
        return type(value)(map(numbers_of, value)) if value else value
    return value


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, place: torch.device) -> Tensor:
        ctx.place = value.device
        return _moved(value, place)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return _moved(grad_outputs[0], ctx.place), None


def _moved(value: Tensor, place: torch.device) -> Tensor:
    numbers = numbers_of(value).detach()
    if place.type != "cpu":
        return numbers.to(place)
    numbers = numbers.clone()
    return numbers if place.index is None else LogicalTensor(numbers, place)


class _Functions(TorchFunctionMode):
    """What torch does before it dispatches: moves, and tensors made of Python's numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            place = torch.device(kwargs.pop("device"))
            return func(*args, **kwargs).to(place)
        if func is _NN.pad_sequence:  # made with the options that C++ sees
            return func([numbers_of(one) for one in args[0]], *args[1:]).to(args[0][0].device)
        if func is torch.Tensor.to:
            return self._to(*args, **kwargs)
        if func is torch.Tensor.cpu:
            return self._to(args[0], "cpu")
        if func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.data_ptr):
            args = (numbers_of(args[0]), *args[1:])
        return func(*args, **kwargs)

    def _to(self, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("non_blocking", None)
        copy = kwargs.pop("copy", False)
        other = kwargs.pop("other", None)
        if args and isinstance(args[0], Tensor):
            other = args[0]
        if other is not None:
            place, dtype = other.device, other.dtype
        else:
            place, dtype, *_ = _NN._parse_to(*args, **kwargs)
        if dtype is not None and dtype != value.dtype:
            value = torch.ops.aten._to_copy.default(value, dtype=dtype)
        if place is None or place == value.device or value.is_meta:
            return value.clone() if copy else value
        return _Move.apply(value, place)  # type: ignore[return-value]


class _Dispatch(TorchDispatchMode):
    """Tensors that are made on a logical device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def put_on(model: Any, place: str) -> Any:
    """A model with all its weights on one logical device, without accelerate's hooks."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                moved = nn.Parameter(weight.detach().to(place), requires_grad=weight.requires_grad)
                module._parameters[name] = moved
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(place)
    return model


@contextmanager
def logical_devices() -> Iterator[None]:
    """While open, ``cpu:0`` and ``cpu:1`` are devices of their own."""
    with _Dispatch(), _Functions():
        yield
