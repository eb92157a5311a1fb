"""``--engine``: where the shards of a run are made."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from interp.models import fingerprint, load_model, model_info
from interp.runs.choice import check_choice
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
    name: str, model: Any, *, address: str | None = None, workers: int | None = None
) -> Iterator[Engine]:
    """The engine for a hooked model that `load_model` made; its workers end with the context."""
    if name == "local":
        yield InProcess(model)
        return
    info = model_info(model)
    load = partial(load_model, info.spec, device=info.device.split(":")[0], dtype=info.dtype)
    with ray_engine(load, fingerprint, info.fingerprint, info.device, address, workers) as engine:
        yield engine


def ray_engine(
    load: Callable[[], Any],
    identify: Callable[[Any], str],
    expected: str,
    device: str,
    address: str | None,
    workers: int | None,
) -> RayEngine:
    """A Ray engine whose workers have a GPU each if the model is on one."""
    return RayEngine(
        load, identify=identify, expected=expected, address=address, workers=workers,
        gpus=int(device.startswith("cuda")),
    )  # fmt: skip
