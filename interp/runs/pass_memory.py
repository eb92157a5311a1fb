"""The memory budget that a run began with: it decides batches, and so the last bits of values.

On a GPU the default follows what is free at the moment. It is decided once a run and written into
the run's identity, but not compared: a run that is taken up on the same kind of device goes on with
the budget that it began with, and so do its workers.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from interp.files.documents import read_json
from interp.forward.memory import Budget, decide_budget, read_budget
from interp.forward.partial import device_of
from interp.models.hooked_model import HookedModel

KEY = "pass_memory"


def with_budget(identity: Mapping[str, Any], model: HookedModel) -> dict[str, Any]:
    """The identity as it is written, with the budget of this moment."""
    return {**identity, **_described(device_of(model), decide_budget(None, device_of(model)))}


def budget_of(run: Path, file: str, model: HookedModel) -> Budget:
    """What the run began with; the device's where it is not written, or was another device's."""
    device = device_of(model)
    found = read_json(run / file).get(KEY) if (run / file).is_file() else None
    if isinstance(found, Mapping) and found.get("device") == device.type:
        recorded = read_budget(found)
        if recorded is not None:
            return recorded
    return decide_budget(None, device)


def budget_entry(run: Path, file: str, model: HookedModel) -> dict[str, Any]:
    """What the manifest says of it: bytes of the batches, and of all with what is kept."""
    return _described(device_of(model), budget_of(run, file, model))


def _described(device: torch.device, budget: Budget) -> dict[str, Any]:
    fields = asdict(budget)
    del fields["given"]
    return {KEY: {"device": device.type, **fields}}
