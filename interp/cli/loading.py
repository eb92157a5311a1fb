"""Loading the model that a command's options name."""

from typing import Any

from rich.console import Console

from interp.cli.options import ModelOptions, PremisesOptions
from interp.models import load_model


def load(options: ModelOptions | PremisesOptions, console: Console) -> Any:
    """The hooked model of the options, with a word on the screen while it loads."""
    with console.status(f"loading {options.model}"):
        return load_model(
            options.model,
            device=options.device,
            dtype=options.dtype,
            allow_pickle=options.allow_pickle,
        )
