"""The threads and the memory budget that a run began with.

Both decide how prompts are batched, and so the last bits of values. They are written into the run's
identity but not compared: a run that is continued elsewhere goes on with the threads, and on the
same kind of device with the budget, that it began with, and so do its workers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from interp.files.documents import read_json
from interp.forward.memory import Budget, decide_budget, read_budget, using_budget
from interp.forward.prompts import device_of
from interp.models.hooked_model import HookedModel

THREADS, BUDGET = "threads", "pass_memory"


def with_resources(identity: Mapping[str, Any], model: HookedModel | None = None) -> dict[str, Any]:
    """The identity as it is written, with the threads and, for a model, the budget of now."""
    found = {**identity, THREADS: torch.get_num_threads()}
    if model is None:
        return found
    device = device_of(model)
    return {**found, BUDGET: _budget_entry(device, decide_budget(None, device))}


@contextmanager
def run_resources(run: Path, file: str, model: HookedModel | None = None) -> Iterator[None]:
    """Use the threads and, for a model, the budget that the run began with; then those of before.

    Args:
        file: the name of the file that holds the run's identity.
    """
    threads = _written(run, file, THREADS)
    with using_threads(threads if isinstance(threads, int) and threads > 0 else None):
        if model is None:
            yield
            return
        with using_budget(_budget_of(run, file, model)):
            yield


def budget_entry(run: Path, file: str, model: HookedModel) -> dict[str, Any]:
    """The budget as the manifest holds it: bytes of the batches, and of everything together."""
    return {BUDGET: _budget_entry(device_of(model), _budget_of(run, file, model))}


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Let torch use this many threads while open; None leaves their number as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _written(run: Path, file: str, key: str) -> Any:
    return read_json(run / file).get(key) if (run / file).is_file() else None


def _budget_of(run: Path, file: str, model: HookedModel) -> Budget:
    """The run's budget; the device's if none is written, or that of another kind of device."""
    device, found = device_of(model), _written(run, file, BUDGET)
    if isinstance(found, Mapping) and found.get("device") == device.type:
        return read_budget(found) or decide_budget(None, device)
    return decide_budget(None, device)


def _budget_entry(device: torch.device, budget: Budget) -> dict[str, Any]:
    fields = asdict(budget)
    del fields["given"]
    return {"device": device.type, **fields}
