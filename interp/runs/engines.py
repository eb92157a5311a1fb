"""``--engine``: where the shards of a run are made."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from interp.errors import UserError
from interp.files.choice import check_choice
from interp.models import loader_of, model_info
from interp.models.hooked_model import HookedModel
from interp.runs.model_conditions import conditions_digest
from interp.runs.ray_engine import RayEngine, import_ray
from interp.runs.shards import Engine, InProcess

EngineName = Literal["local", "ray"]


def check_engine(name: str) -> None:
    """Raise UserError for an unknown engine, and for one that is not installed."""
    check_choice("engine", name, EngineName)
    if name == "ray":
        import_ray()


@contextmanager
def opened_engine(
    name: str, model: HookedModel, *, address: str | None = None, workers: int | None = None
) -> Iterator[Engine]:
    """The engine for a hooked model that `load_model` made; its workers end with the context."""
    if name == "local":
        yield InProcess(model)
        return
    device = model_info(model).device
    load = loader_of(model, device=torch.device(device).type)
    with engine_for(
        name, model, load, conditions_digest, device=device, address=address, workers=workers
    ) as engine:
        yield engine


@contextmanager
def engine_for(
    name: str,
    model: Any,
    load: Callable[[], Any],
    identify: Callable[[Any], str],
    *,
    device: str = "cpu",
    address: str | None = None,
    workers: int | None = None,
) -> Iterator[Engine]:
    """An engine for a model of any kind; its workers have a GPU each if ``device`` is one.

    Args:
        load: makes the same model in another process.
        identify: tells it from others; a function of a module.

    Raises:
        UserError: an engine that is unknown or not installed; a GPU other than the first, with Ray.
    """
    check_engine(name)
    if name == "local":
        yield InProcess(model)
        return
    if torch.device(device).index:
        raise UserError(f"every Ray worker has a GPU of its own: give --device cuda, not {device}")
    with RayEngine(
        load,
        identify=identify,
        expected=identify(model),
        address=address,
        workers=workers,
        gpus=int(device.startswith("cuda")),
    ) as engine:
        yield engine
