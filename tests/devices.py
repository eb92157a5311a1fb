"""The device that the tests' models are on: ``FAITHLENS_TEST_DEVICE``, by default the CPU.

A tiny model is made on the CPU, so that its weights are the same everywhere, and then moved.
``cuda`` is for a machine with a GPU. ``cpu:0`` is a logical device (`tests.logical_devices`), for
one without: what takes a model to be on the CPU raises there.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from interp.models.device_map import choose_device
from tests.logical_devices import logical_devices, put_on

VARIABLE = "FAITHLENS_TEST_DEVICE"


def device_asked_for(environment: Mapping[str, str]) -> torch.device:
    """The tests' device. Raises UserError for one that is not there."""
    return choose_device(environment.get(VARIABLE) or "cpu")


DEVICE = device_asked_for(os.environ)


def is_logical(device: torch.device) -> bool:
    """Whether it is a device by name only."""
    return device.type == "cpu" and device.index is not None


def on_device(model: Any, device: torch.device = DEVICE) -> Any:
    """A model of transformers on the tests' device."""
    if is_logical(device):
        return put_on(model, str(device))
    return model if device.type == "cpu" else model.to(device)


@contextmanager
def device_there(device: torch.device = DEVICE) -> Iterator[None]:
    """While open, the tests' device is one. A logical one is that of a thread."""
    if not is_logical(device):
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with logical_devices():
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def nothing_for_absent_devices(device: torch.device = DEVICE) -> Iterator[None]:
    """While open, libraries leave out what they do for devices that are not there.

    torch keeps every seed, with the calls that led to it, for the day that a device appears, and
    accelerate collects garbage to give memory back to a GPU: a minute of the suite.
    """
    with pytest.MonkeyPatch.context() as patch:
        for kind, seeds in (
            (torch.cuda, torch.cuda.random),
            (torch.xpu, torch.xpu.random),
            (torch.mtia, torch.mtia),
        ):
            if not kind.is_available():
                patch.setattr(seeds, "_lazy_call", lambda _call, **_options: None)
        if device.type == "cpu":
            patch.setattr("accelerate.utils.memory.clear_device_cache", lambda **_options: None)
        yield


def skip_cpu_bits(items: Iterable[pytest.Item], device: torch.device = DEVICE) -> None:
    """On another device, skip what compares the last bits with those of a CPU, or needs one."""
    if device == torch.device("cpu"):
        return
    reason = f"needs the CPU, or its last bits; {VARIABLE} is {device}"
    for item in items:
        if item.get_closest_marker("cpu_bits"):
            item.add_marker(pytest.mark.skip(reason=reason))
