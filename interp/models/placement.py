"""Where a model's weights are: on one device, on several, or fetched when they are used.

accelerate divides a model over devices (*dispatches* it) by hooks in its modules. A hook moves what
its module is given to the module's device; if the module's weights are *offloaded*, to the memory
of the CPU or to the disk, it fetches them before the module runs and drops them afterwards. Until
then they are on torch's meta device, which has shapes and no numbers. Whoever reads a weight
outside the module's own forward asks for it here.
"""

import functools
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, SequentialHook
from torch import Tensor, nn

from interp.errors import UserError
from interp.models.quiet import quiet_libraries
from interp.modules import modules


def aligning_hooks(module: nn.Module) -> list[AlignDevicesHook]:
    """The hooks of accelerate in a module that move what it is given, or fetch its weights."""
    waiting, found = [module.__dict__.get("_hf_hook")], []
    while waiting:
        hook = waiting.pop(0)
        if isinstance(hook, SequentialHook):
            waiting.extend(hook.hooks)
        elif isinstance(hook, AlignDevicesHook):
            found.append(hook)
    return found


def is_dispatched(model: Any) -> bool:
    """Whether accelerate's hooks move what the modules of a model are given."""
    return any(
        "_hf_hook" in module.__dict__ and aligning_hooks(module) for module in modules(model)
    )


def is_offloaded(model: Any) -> bool:
    """Whether weights of a model are fetched from the CPU or the disk when they are used."""
    return any(hook.offload for module in model.modules() for hook in aligning_hooks(module))


@contextmanager
def without_map(model: Any) -> Iterator[dict[str, Any]]:
    """While open, a dispatched model does not show its device map; its hooks stay. Gives the map.

    Libraries that find one divide the model anew (PEFT), or refuse it (TransformerLens).
    """
    placed = model.__dict__.pop("hf_device_map", None)
    try:
        yield dict(placed or {})
    finally:
        if placed is not None:
            model.hf_device_map = placed


def run_aligned(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` within the hook that accelerate has put into a module; itself if there is none.

    accelerate binds its hook to the module that it was put into, and not to a copy of it.
    """
    hook = module.__dict__.get("_hf_hook")
    if hook is None:
        return forward

    @functools.wraps(forward)
    def aligned(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = hook.pre_forward(module, *args, **kwargs)
        with torch.no_grad() if hook.no_grad else nullcontext():
            output = forward(*args, **kwargs)
        return hook.post_forward(module, output)

    return aligned


@contextmanager
def own_weights(module: nn.Module) -> Iterator[None]:
    """While open, a module's own weights have numbers; afterwards offloaded ones are dropped."""
    absent = any(weight is not None and weight.is_meta for weight in _own(module).values())
    with ExitStack() as stack:
        for hook in aligning_hooks(module) if absent else ():
            if hook.offload:
                hook.pre_forward(module)
                stack.callback(hook.post_forward, module, None)
        yield


def execution_device(module: nn.Module) -> torch.device | None:
    """Where accelerate lets a module run; None for one that it does not move."""
    places = (hook.execution_device for hook in aligning_hooks(module))
    return next((as_device(place) for place in places if place is not None), None)


def weight_device(module: nn.Module) -> torch.device:
    """The device of a module's own weights while it runs."""
    weights = (weight for weight in _own(module).values() if weight is not None)
    weight = next(weights, None)
    if weight is not None and not weight.is_meta:
        return weight.device
    return execution_device(module) or torch.device("cpu")


def _own(module: nn.Module) -> dict[str, Tensor | None]:
    return {**module._parameters, **module._buffers}


def named_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer of a model by name, with its numbers.

    Offloaded ones come last, and have their numbers only until the next one is asked for.
    """
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if not weight.is_meta:
            yield name, weight
    for path, module in model.named_modules():
        absent = [name for name, weight in _own(module).items() if weight is not None]
        absent = [name for name in absent if _own(module)[name].is_meta]  # type: ignore[union-attr]
        if not absent:
            continue
        with own_weights(module):
            for name in absent:
                weight = _own(module)[name]
                if weight is not None and not weight.is_meta:
                    yield f"{path}.{name}" if path else name, weight


def sorted_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's ``state_dict`` in order of name, with its numbers.

    An offloaded weight has them only until the next one is asked for.
    """
    for name, weight in sorted(model.state_dict().items()):
        if not weight.is_meta:
            yield name, weight
            continue
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        with own_weights(module):
            found = _own(module).get(last)
            yield name, weight if found is None else found


def input_device(model: Any) -> torch.device:
    """The device that token ids belong on: that of the model's embedding while it runs."""
    embedding = _embedding(model)
    if embedding is not None:
        for module in embedding.modules():
            if (device := execution_device(module)) is not None:
                return device
    for owner in (embedding, model):
        for weight in () if owner is None else owner.parameters():
            if not weight.is_meta:
                return weight.device
    places = filter(None, map(execution_device, model.modules()))
    return next(places, torch.device("cpu"))


def _embedding(model: Any) -> nn.Module | None:
    try:
        found = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # a model of another library, or of TL 3
        return None
    return found if isinstance(found, nn.Module) else None


def as_device(place: Any) -> torch.device:
    """A device of a device map; a number is that of a GPU."""
    return torch.device("cuda", place) if isinstance(place, int) else torch.device(place)


def placed_alike(hf_model: Any, other: Any) -> Any:
    """A model in memory, divided over devices as another one of the same configuration is.

    What stays on the disk there is written to a temporary directory, which goes with the model.

    Raises UserError for another one that does not know its device map.
    """
    placed = getattr(other, "hf_device_map", None)
    if not placed:
        raise UserError(
            "the model is offloaded, and does not say which parts: dispatch it with "
            "accelerate.dispatch_model, or load it with interp.load_model(device_map=...)"
        )
    folder = tempfile.mkdtemp(prefix="faithlens-offloaded-")
    skipped = getattr(hf_model, "_skip_keys_device_placement", None)
    with quiet_libraries():
        dispatched = dispatch_model(hf_model, placed, offload_dir=folder, skip_keys=skipped)
    weakref.finalize(dispatched, shutil.rmtree, folder, ignore_errors=True)
    return dispatched
