"""``--engine``: where the shards of a run are computed."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from interp.arguments import check_choice
from interp.errors import UserError
from interp.models import loader_of, model_info
from interp.models.hooked_model import HookedModel
from interp.runs.identity import conditions_digest
from interp.runs.ray_engine import RayEngine, import_ray
from interp.runs.shards import Engine, InProcess

EngineName = Literal["local", "ray"]


def check_engine(name: str, device_map: Any = None) -> None:
    """Raise UserError for an unknown engine, and for one that is not installed.

    A model with a device map, which is divided over the devices of one process, is not for Ray.
    """
    check_choice("engine", name, EngineName)
    if name == "ray":
        if device_map is not None:
            raise UserError(
                "every Ray worker holds the whole model on one device: leave --engine ray or "
                "--device-map out"
            )
        import_ray()


def opened_engine(
    name: str, model: HookedModel, *, address: str | None = None, workers: int | None = None
) -> AbstractContextManager[Engine]:
    """The engine for a hooked model that `load_model` made; its workers end with the context."""
    device = model_info(model).device
    check_engine(name, model_info(model).device_map)
    return engine_for(
        name,
        model,
        loader_of(model, device=torch.device(device).type),
        identify=conditions_digest,
        device=device,
        address=address,
        workers=workers,
    )


def engine_for(
    name: str,
    model: Any,
    load: Callable[[], Any],
    *,
    identify: Callable[[Any], str],
    device: str = "cpu",
    address: str | None = None,
    workers: int | None = None,
) -> AbstractContextManager[Engine]:
    """An engine for a model of any kind; its workers have a GPU each if ``device`` is one.

    Args:
        load: makes the same model in another process.
        identify: gives its fingerprint; a function at module level.

    Raises:
        UserError: an engine that is unknown or not installed; a GPU other than the first, with Ray.
    """
    check_engine(name)
    if name == "local":
        return nullcontext(InProcess(model))
    if torch.device(device).index:
        raise UserError(f"every Ray worker has a GPU of its own: give --device cuda, not {device}")
    return RayEngine(
        load,
        identify=identify,
        expected=identify(model),
        address=address,
        workers=workers,
        gpus=int(device.startswith("cuda")),
    )
