"""Counts how often a program waits for a device, on the logical ones of `tests.logical_devices`.

On a GPU these read a number back, so that the host waits until all that was asked of the device is
done: ``item``, ``bool`` and ``tolist`` of its tensors, ``equal``, ``nonzero`` and what is made of
it (an index of True and False), a copy to the CPU. So does a copy from the CPU, unless it is
``non_blocking``, and an index that is still there.

``torch.cuda.set_sync_debug_mode`` finds the same on a real GPU.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.logical_devices import LogicalTensor

READS = frozenset(
    f"aten::{name}"
    for name in (
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"),
        *("unique_dim", "_unique2", "unique_consecutive", "bincount", "allclose"),
    )
)
INDEXING = frozenset({"aten::index", "aten::index_put", "aten::index_put_"})
ROOM = str(Path(__file__).parents[1])
CPU_ONLY = ("interp/forward/norms.py",)
"""Files that make constants for a CPU alone: on a GPU a norm is one kernel of torch."""


class HostReads(Counter[str]):
    """How often each place in the code waits, by file and line."""

    def note(self, what: str) -> None:
        """One wait, at the innermost line that is the project's own."""
        frame: Any = sys._getframe(1)
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith((f"{ROOM}/interp", f"{ROOM}/probes")):
                name = name.removeprefix(ROOM)[1:]
                if name not in CPU_ONLY:
                    self[f"{name}:{frame.f_lineno} {what}"] += 1
                return
            frame = frame.f_back
        self[what] += 1


class _Dispatched(TorchDispatchMode):
    def __init__(self, found: HostReads) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if args and isinstance(args[0], LogicalTensor):
            if name in READS:
                self.found.note(name)
            elif name in INDEXING:
                for index in filter(lambda one: isinstance(one, Tensor), args[1]):
                    if index.dtype == torch.bool or (
                        index.ndim and not isinstance(index, LogicalTensor)
                    ):
                        self.found.note(f"{name} by {index.dtype}")
        if name == "aten::repeat_interleave" and isinstance(args[0], LogicalTensor):
            self.found.note(name)
        return func(*args, **(kwargs or {}))


class _Called(TorchFunctionMode):
    def __init__(self, found: HostReads) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.tolist, torch.Tensor.numpy) and isinstance(args[0], LogicalTensor):
            self.found.note("read")
        made = func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None
        if made and not isinstance(args[0], Tensor):
            # Nothing is copied where there is nothing: transformers begins a cache so.
            if torch.device(kwargs["device"]).index is not None and args[0] != []:
                self.found.note("made of Python's numbers")
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        moved = func in (torch.Tensor.to, torch.Tensor.cpu) and not kwargs.get("non_blocking")
        if moved and args[0].device != result.device:
            self.found.note(f"copy from {args[0].device} to {result.device}")
        return result


@contextmanager
def host_reads() -> Iterator[HostReads]:
    """While open, within ``logical_devices``, every wait for a device is counted."""
    found = HostReads()
    with _Dispatched(found), _Called(found):
        yield found
