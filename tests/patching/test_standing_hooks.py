"""Hooks that somebody else has put on the model act in every run of a sweep."""

from typing import Any

import pytest
import torch

from interp.forward.hook_points import hook_name
from interp.forward.unhooked import unhooked_model
from interp.interventions import constrain
from interp.models import HookedModel
from interp.models.versions import wraps_transformers
from interp.patching import patch
from tests.patching.prompts import CLEAN, CLOSE, CORRUPTED, METRIC


def test_hooks_on_the_hooked_model_still_act(
    family: HookedModel, full_logits: Any, full_values: Any, unit_hook: Any
) -> None:
    """The plain modules know nothing of somebody's hooks, so that the sweep does without them."""

    def halve(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return value * 0.5

    standing = (hook_name("mlp_out", 0), halve)
    with family.hooks(fwd_hooks=[standing]):
        assert unhooked_model(family) is None
        within = patch(family, CLEAN, CORRUPTED, METRIC, units=[(1, 2)], progress=False)
    assert (unhooked_model(family) is not None) == wraps_transformers(family)
    without = patch(family, CLEAN, CORRUPTED, METRIC, units=[(1, 2)], progress=False)
    moves = {position: position for position in range(6)}
    for prompt in range(2):
        tokens, name = CLEAN.tokens[prompt], hook_name("z", 1)
        with family.hooks(fwd_hooks=[standing]):
            z = full_values(family, tokens, [name])[name]
            logits = full_logits(family, CORRUPTED.tokens[prompt], [unit_hook("z", 1, 2, moves, z)])
        expected = METRIC.take(torch.tensor([prompt]))(logits[None])[0]
        patched = within.values[prompt, 1, 2] + within.corrupted[prompt]
        torch.testing.assert_close(patched, expected, **CLOSE)
    assert float((within.values - without.values).abs().nan_to_num().max()) > 1e-3


def test_a_sweep_sees_a_constraint(
    tiny_llama: HookedModel, full_logits: Any, unit_hook: Any
) -> None:
    """Inside ``interp.constrain`` every run is constrained: here head (0, 1) is off at token 2."""

    def third(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (torch.arange(tokens.shape[1]) == 2)[None] & mask

    with constrain(tiny_llama, [(0, 1)], site="output", at=third):
        result = patch(tiny_llama, CLEAN, CORRUPTED, METRIC, source="zero", progress=False)
    free = patch(tiny_llama, CLEAN, CORRUPTED, METRIC, source="zero", progress=False)
    assert float((result.values - free.values).abs().max()) > 1e-2
    off = unit_hook("z", 0, 1, {2: 2}, None)
    for layer, head in [(0, 1), (0, 2), (2, 3)]:
        zero = unit_hook("z", layer, head, {position: position for position in range(6)}, None)
        logits = full_logits(tiny_llama, CORRUPTED.tokens[0], [off, zero])
        expected = METRIC.take(torch.tensor([0]))(logits[None])[0]
        patched = result.values[0, layer, head] + result.corrupted[0]
        torch.testing.assert_close(patched, expected, **CLOSE)


@pytest.mark.parametrize("method", ["exact", "attribution"])
def test_hooks_of_ones_own_may_count_positions(
    tiny_llama: HookedModel, full_logits: Any, method: str
) -> None:
    """A sweep leaves the shared beginning out, but not while somebody's hooks look at columns."""

    def blank_second(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, 1] = 0
        return value

    own = [(hook_name("resid_pre", 1), blank_second)]
    with tiny_llama.hooks(fwd_hooks=own):
        result = patch(tiny_llama, CLEAN, CORRUPTED, METRIC, method=method, progress=False)
    bare = METRIC.take(torch.tensor([0]))(full_logits(tiny_llama, CORRUPTED.tokens[0], own)[None])
    torch.testing.assert_close(result.corrupted[:1], bare, **CLOSE)
    if method == "attribution":
        return
    for layer, head in [(0, 2), (1, 1), (2, 3)]:
        seen: list[torch.Tensor] = []
        keep = (hook_name("z", layer), lambda z, hook, seen=seen: seen.append(z.clone()))
        full_logits(tiny_llama, CLEAN.tokens[0], [*own, keep])

        def put(
            z: torch.Tensor, hook: Any, seen: list[torch.Tensor] = seen, head: int = head
        ) -> torch.Tensor:
            z = z.clone()
            z[:, :, head] = seen[0][:, :, head]
            return z

        hooks = [*own, (hook_name("z", layer), put)]
        logits = full_logits(tiny_llama, CORRUPTED.tokens[0], hooks)
        expected = METRIC.take(torch.tensor([0]))(logits[None])
        patched = result.values[:1, layer, head] + result.corrupted[:1]
        torch.testing.assert_close(patched, expected, **CLOSE)


def test_hooks_on_modules_act_too(tiny_llama: HookedModel) -> None:
    """Not on a hook point: the plain modules would run past it."""
    seen: list[int] = []
    hf_model: Any = tiny_llama.original_model
    embedding = hf_model.get_input_embeddings()

    def count(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(len(output))
        return output * 0.5

    free = patch(tiny_llama, CLEAN, CORRUPTED, METRIC, units=[(1, 2)], progress=False)
    handle = embedding.register_forward_hook(count)
    try:
        halved = patch(tiny_llama, CLEAN, CORRUPTED, METRIC, units=[(1, 2)], progress=False)
    finally:
        handle.remove()
    assert seen
    assert float((halved.corrupted - free.corrupted).abs().max()) > 1e-2


@pytest.mark.parametrize("place", ["hook point", "module"])
def test_backward_hooks_act_on_gradients(place: str, tiny_llama: HookedModel) -> None:
    """A hook that stops the gradient behind layer 1 leaves nothing of the layers before it."""

    def attribution() -> torch.Tensor:
        return patch(
            tiny_llama, CLEAN, CORRUPTED, METRIC, method="attribution", progress=False
        ).values

    assert float(attribution()[:, 0].abs().max()) > 1e-3
    if place == "hook point":
        point = tiny_llama.hook_dict[hook_name("resid_post", 1)]
        handle = point.register_full_backward_hook(lambda module, given, out: (given[0] * 0,))
    else:
        within: Any = tiny_llama
        layers = within.original_model.model.layers if wraps_transformers(within) else within.blocks
        block = layers[1]
        handle = block.register_full_backward_hook(lambda module, given, out: (given[0] * 0,))
    try:
        assert unhooked_model(tiny_llama) is None
        stopped = attribution()
    finally:
        handle.remove()
    assert float(stopped[:, 0].abs().max()) == 0
    assert float(stopped[:, 2].abs().max()) > 1e-3
