"""The plain modules are made once in a call, and nothing of them is left after it."""

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from interp.forward.trial import keeping_unhooked, trusted_unhooked_model
from interp.forward.unhooked import UnhookedModel
from interp.models import HookedModel, from_hf
from interp.modules import modules, named_modules
from interp.patching import LogitDifference, patch
from tests.fixtures import make_hf_model

pytestmark = pytest.mark.bridge_only  # TransformerLens 3 has no plain modules

CLEAN, CORRUPTED = torch.tensor([[5, 9, 70, 8]]), torch.tensor([[5, 19, 70, 8]])
METRIC = LogitDifference(torch.tensor([14]), torch.tensor([35]))


def made(monkeypatch: pytest.MonkeyPatch) -> list[HookedModel]:
    """The models whose plain modules are made from now on."""
    found: list[HookedModel] = []
    begin = UnhookedModel.__init__

    def counted(self: Any, model: HookedModel, **options: Any) -> None:
        found.append(model)
        begin(self, model, **options)

    monkeypatch.setattr(UnhookedModel, "__init__", counted)
    return found


def effects(model: HookedModel) -> torch.Tensor:
    return patch(model, CLEAN, CORRUPTED, METRIC, progress=False).values


@pytest.fixture
def model(chat_tokenizer: Any) -> HookedModel:
    """One that a test may change."""
    return from_hf(make_hf_model("llama", chat_tokenizer), chat_tokenizer)


@pytest.fixture
def half(chat_tokenizer: Any) -> HookedModel:
    """In bfloat16: the plain modules have norms of their own, in float32."""
    return from_hf(make_hf_model("llama", chat_tokenizer).bfloat16(), chat_tokenizer)


def test_a_call_makes_them_once(model: HookedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    effects(model)  # the first one tries them
    found = made(monkeypatch)
    effects(model)
    assert found == [model]
    effects(model)
    assert found == [model] * 2


def test_what_changes_between_two_calls_is_seen(half: HookedModel) -> None:
    """Weights in place, weights that are replaced, and norms, of which there are wide copies."""
    before = effects(half)
    assert torch.equal(effects(half), before)
    layer: Any = half.original_model.model.layers[1]
    norm, projection = layer.input_layernorm, layer.mlp.down_proj
    norm, projection = (getattr(part, "original_component", part) for part in (norm, projection))
    with torch.no_grad():
        norm.weight.mul_(2)
        second = effects(half)
        assert float((second - before).abs().max()) > 1e-2
        projection.weight.mul_(3)
        third = effects(half)
        assert float((third - second).abs().max()) > 1e-2
        projection.weight = nn.Parameter(-projection.weight)
        assert float((effects(half) - third).abs().max()) > 1e-2


def test_inside_hooks_and_weights_are_seen(model: HookedModel) -> None:
    with keeping_unhooked():
        plain = trusted_unhooked_model(model, 4)
        assert plain is not None
        assert trusted_unhooked_model(model, 4) is plain
        hook: Any = [("blocks.1.attn.hook_z", lambda value, hook: None)]
        with model.hooks(fwd_hooks=hook):
            assert trusted_unhooked_model(model, 4) is None
        assert trusted_unhooked_model(model, 4) is plain
        weight: Any = next(model.original_model.parameters())
        assert any(weight is own for own in plain.hf_model.parameters())


def test_each_model_and_each_thread_has_its_own(model: HookedModel, half: HookedModel) -> None:
    found: list[Any] = []
    with keeping_unhooked():
        mine, other = (trusted_unhooked_model(one, 4) for one in (model, half))
        assert mine is not other
        run = lambda: found.extend(trusted_unhooked_model(model, 4) for _ in range(2))  # noqa: E731
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert len({id(one) for one in (*found, mine)}) == 3


def leave_by_an_error(model: HookedModel) -> Iterator[Any]:
    with keeping_unhooked():
        with keeping_unhooked():  # within another one nothing is dropped
            yield trusted_unhooked_model(model, 4)
        yield trusted_unhooked_model(model, 4)
        raise KeyError("stop")


def test_nothing_is_kept_after_the_call(model: HookedModel) -> None:
    trusted_unhooked_model(model, 4)
    seen: list[Any] = []
    with pytest.raises(KeyError, match="stop"):
        seen += leave_by_an_error(model)
    assert seen[0] is seen[1]
    with keeping_unhooked():
        inner = [trusted_unhooked_model(model, 4) for _ in range(2)]
    assert inner[0] is inner[1]
    left = weakref.ref(inner[0])
    inner.clear()
    gc.collect()
    assert left() is None
    first, second = (trusted_unhooked_model(model, 4) for _ in range(2))
    assert first is not second


def test_modules_come_as_torch_lists_them(tiny_llama: HookedModel) -> None:
    """Shared modules once, under their first name; places without one are passed over."""
    shared = nn.Linear(2, 2)
    tree = nn.Sequential(nn.Sequential(shared, nn.ReLU()), shared, nn.ModuleDict({"a": shared}))
    tree.register_module("empty", None)
    tree[0].register_module("above", tree)  # a circle
    for root in (tree, tiny_llama, tiny_llama.original_model):
        assert list(named_modules(root)) == list(root.named_modules())
        assert list(modules(root)) == list(root.modules())
