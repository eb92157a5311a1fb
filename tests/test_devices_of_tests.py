"""``FAITHLENS_TEST_DEVICE`` puts the tests' models on a device, and skips what needs the CPU."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from interp.errors import UserError
from tests.devices import VARIABLE, device_asked_for, device_there, on_device, skip_cpu_bits
from tests.fixtures import make_hf_model
from tests.logical_devices import numbers_of

CPU, LOGICAL = torch.device("cpu"), torch.device("cpu:0")


class Item:
    """As much of a test as is asked for."""

    def __init__(self, *markers: str) -> None:
        self.markers = list(markers)

    def get_closest_marker(self, name: str) -> Any:
        return name if name in self.markers else None

    def add_marker(self, marker: Any) -> None:
        self.markers.append(marker.name)
        self.reason = marker.kwargs["reason"]


def test_the_device_is_that_of_the_environment() -> None:
    assert device_asked_for({}) == device_asked_for({VARIABLE: ""}) == CPU
    assert device_asked_for({VARIABLE: "cpu:0"}) == LOGICAL
    with pytest.raises(UserError, match="device 'gpu' is not there: choose one of cpu"):
        device_asked_for({VARIABLE: "gpu"})


def test_what_needs_the_cpu_is_skipped_elsewhere() -> None:
    there: Any = [Item("cpu_bits"), Item("bridge_only")]
    skip_cpu_bits(there, CPU)
    assert [item.markers for item in there] == [["cpu_bits"], ["bridge_only"]]
    skip_cpu_bits(there, LOGICAL)
    assert [item.markers for item in there] == [["cpu_bits", "skip"], ["bridge_only"]]
    assert there[0].reason == f"needs the CPU, or its last bits; {VARIABLE} is cpu:0"


@pytest.mark.cpu_bits
def test_a_model_has_the_same_weights_there(chat_tokenizer: Any) -> None:
    here = make_hf_model("llama", chat_tokenizer)
    assert on_device(here, CPU) is here
    before = {name: weight.detach().clone() for name, weight in here.named_parameters()}
    with device_there(LOGICAL):
        moved = on_device(here, LOGICAL)
        for name, weight in moved.named_parameters():
            assert weight.device == LOGICAL
            assert torch.equal(numbers_of(weight.detach()), before[name])
        assert {buffer.device for buffer in moved.buffers()} == {LOGICAL}
        tokens = torch.tensor([[1, 2, 3]])
        with pytest.raises(RuntimeError, match="same device"):
            moved(input_ids=tokens)
        assert moved(input_ids=tokens.to(LOGICAL)).logits.device == LOGICAL


def test_a_gpu_is_asked_to_take_the_model() -> None:
    moved: list[Any] = []
    model = SimpleNamespace(to=lambda device: moved.append(device) or "moved")
    assert on_device(model, torch.device("cuda")) == "moved"
    assert moved == [torch.device("cuda")]
