"""Loading the model that a command's options name."""

from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console

from interp.cli.options import EngineOptions, ModelOptions
from interp.models import load_model
from interp.models.hooked_model import HookedModel
from interp.runs.engines import opened_engine
from interp.runs.shards import Engine


def load(options: ModelOptions, console: Console) -> Any:
    """The hooked model of the options, with a word on the screen while it loads."""
    with console.status(f"loading {options.model}"):
        return load_model(
            options.model,
            device=options.device,
            dtype=options.dtype,
            allow_pickle=options.allow_pickle,
        )


def engine_of(options: EngineOptions, model: HookedModel) -> AbstractContextManager[Engine]:
    """The engine that the options name, for a model that ``load`` made."""
    return opened_engine(options.engine, model, address=options.address, workers=options.workers)
