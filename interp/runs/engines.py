"""``--engine``: where the shards of a run are computed."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch

from interp.arguments import check_choice, whole_number
from interp.errors import UserError
from interp.models import loader_of, model_info
from interp.models.device_map import DISK
from interp.models.hooked_model import HookedModel
from interp.runs.identity import conditions_digest
from interp.runs.ray_engine import RayEngine, import_ray
from interp.runs.shards import Engine, InProcess

EngineName = Literal["local", "ray"]


def check_engine(name: str, gpus_per_worker: int | None = None) -> None:
    """Raise UserError for an unknown engine, one that is not installed, or GPUs without workers."""
    check_choice("engine", name, EngineName)
    if gpus_per_worker is not None:
        whole_number("gpus_per_worker", gpus_per_worker, least=1)
        if name != "ray":
            raise UserError("--gpus-per-worker is for --engine ray: leave it out")
    if name == "ray":
        import_ray()


def opened_engine(
    name: str,
    model: HookedModel,
    *,
    address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: int | None = None,
) -> AbstractContextManager[Engine]:
    """The engine for a hooked model that `load_model` made; its workers end with the context.

    Every worker divides the model over its devices as it is divided here.
    """
    info = model_info(model)
    load = loader_of(model, device=torch.device(info.device).type)
    return engine_for(
        name,
        model,
        placed_as_here(load, info.device, info.device_map),
        identify=conditions_digest,
        device=info.device,
        device_map=info.device_map,
        address=address,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
    )


def placed_as_here(
    load: "partial[Any]", device: str, placed: Mapping[str, str] | None
) -> "partial[Any]":
    """A loader that puts every part of a model where it is in this process.

    A word such as ``auto`` is not divided anew: the free memory of a worker may be another.

    Args:
        load: takes ``device``, ``device_map`` and ``max_memory``.
        device, placed: where the model is here; ``placed`` is None on one device.
    """
    if load.keywords.get("device_map") is None:
        return load
    if placed is None:
        return partial(load, device_map=None, max_memory=None, device=torch.device(device).type)
    return partial(load, device_map=dict(placed), max_memory=None)


def gpus_of_worker(device: str, placed: Mapping[str, str] | None, given: int | None = None) -> int:
    """How many GPUs a worker takes: those that its model is on, or as many as are given.

    Raises:
        UserError: a model on a GPU other than the first; more or fewer GPUs than it can use.
    """
    if placed is None and torch.device(device).index:
        raise UserError(f"every Ray worker has a GPU of its own: give --device cuda, not {device}")
    places = [torch.device(name) for name in (placed or {"": device}).values() if name != DISK]
    needed = max((1 + (place.index or 0) for place in places if place.type == "cuda"), default=0)
    if given is None:
        return needed
    if needed == 0:
        raise UserError("--gpus-per-worker is for a model on GPUs, and this one is on none")
    if given < needed:
        raise UserError(
            f"the device map names cuda:{needed - 1}, which a worker with {_gpus(given)} does not "
            f"have: give --gpus-per-worker {needed}, or a map of fewer"
        )
    if placed is None and given > 1:
        raise UserError(
            f"without --device-map a model is on one GPU, and a worker would take {given}: give a "
            "device map, or leave --gpus-per-worker out"
        )
    return given


def _gpus(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"


def engine_for(
    name: str,
    model: Any,
    load: Callable[[], Any],
    *,
    identify: Callable[[Any], str],
    device: str = "cpu",
    device_map: Mapping[str, str] | None = None,
    address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: int | None = None,
) -> AbstractContextManager[Engine]:
    """An engine for a model of any kind; its workers have the GPUs that the model is on.

    Args:
        load: makes the same model in another process.
        identify: gives its fingerprint; a function at module level.
        device, device_map: where the model is, and its parts if it is divided.
        gpus_per_worker: more GPUs for a worker than its model is on.

    Raises:
        UserError: an engine that is unknown or not installed; with Ray, see ``gpus_of_worker``.
    """
    check_engine(name, gpus_per_worker)
    if name == "local":
        return nullcontext(InProcess(model))
    return RayEngine(
        load,
        identify=identify,
        expected=identify(model),
        address=address,
        workers=workers,
        gpus=gpus_of_worker(device, device_map, gpus_per_worker),
    )
