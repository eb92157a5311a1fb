"""Path patching: by hand, against TransformerLens, and against the procedure said literally."""

from functools import cache
from typing import Any

import pytest
import torch
import transformer_lens.patching
from transformer_lens import ActivationCache

from interp.errors import UserError
from interp.forward.hook_points import hook_name
from interp.models import HookedModel
from interp.patching import LogitDifference, TokenBatch, patch, patch_paths
from tests.patching.conftest import run_one, seen_in

CLEAN = [[5, 9, 7, 8, 30, 31], [40, 41, 42, 43]]
CORRUPTED = [[5, 9, 7, 81, 30, 31], [40, 51, 42, 43]]
METRIC = LogitDifference(torch.tensor([3, 14]), torch.tensor([65, 35]))
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-5}


def paths(model: Any, **options: Any) -> Any:
    clean, corrupted = TokenBatch.from_lists(CLEAN), TokenBatch.from_lists(CORRUPTED)
    return patch_paths(model, clean, corrupted, METRIC, progress=False, **options)


# The micro model (see test_micro): corrupted x = 12, 36, 60, 84, clean x = 12, 12, 60, 84.
# Clean: b = 12 12 28 42, m = 36 36 84 126; u3 = 23.5 (was 30), v = 70.5 (90), w: 16.208 (21).
U, V, W = 23.5 - 30, 10 * (70.5 - 90), 16 * ((12 + 12 + 52 / 3 + 23.5) / 4 - 21)
NAN = float("nan")


@pytest.mark.parametrize(
    ("receivers", "mlps", "expected"),
    [
        # To the logits: u and w are read there; b is read by the MLP alone, 144 − 126 = 18.
        (None, "frozen", [[0, 0], [U, V], [W, 0]]),
        (None, "recomputed", [[-18, 0], [U, V], [W, 0]]),
        # Head (1, 0) reads b, and passes u on to the logits and to w.
        ([(1, 0)], "frozen", [[U + W, 0], [NAN, NAN], [NAN, NAN]]),
        # Head (1, 1) reads what the MLP makes of b: nothing without it.
        ([(1, 1)], "frozen", [[0, 0], [NAN, NAN], [NAN, NAN]]),
        ([(1, 1)], "recomputed", [[V, 0], [NAN, NAN], [NAN, NAN]]),
        # Both at once; and a head above reads u, not b.
        ([(1, 0), (1, 1)], "recomputed", [[U + W + V, 0], [NAN, NAN], [NAN, NAN]]),
        ([(2, 0)], "frozen", [[0, 0], [W, 0], [NAN, NAN]]),
        # One receiver above the other: (2, 0) gets what the sender wrote, and not u by (1, 0).
        ([(1, 0), (2, 0)], "frozen", [[U, 0], [W, 0], [NAN, NAN]]),
    ],
)
def test_paths_as_computed_by_hand(
    micro: HookedModel, receivers: Any, mlps: str, expected: Any
) -> None:
    result = patch_paths(
        micro,
        TokenBatch.from_lists([[1, 1, 5, 7]]),
        TokenBatch.from_lists([[1, 3, 5, 7]]),
        LogitDifference(torch.tensor([0]), torch.tensor([1])),
        receivers=receivers,
        into="v",
        mlps=mlps,
        progress=False,
    )
    torch.testing.assert_close(
        result.values[0], torch.tensor(expected).float(), rtol=0, atol=2e-3, equal_nan=True
    )
    assert result.clean is not None
    assert (float(result.corrupted), float(result.clean)) == pytest.approx(
        (2110, 2110 + U + V + W - 18), abs=2e-3
    )


@pytest.mark.bridge_only  # TransformerLens 3 has no such function to compare with
@pytest.mark.parametrize(
    ("name", "into"), [("llama", "q"), ("qwen2", "q"), ("gpt2", "q"), ("gpt2", "k"), ("gpt2", "v")]
)
def test_direct_paths_equal_transformer_lens(
    families: dict[str, Any], name: str, into: Any
) -> None:
    model, last = families[name], families[name].cfg.n_layers - 1
    tokens = torch.tensor(CLEAN[:1]), torch.tensor(CORRUPTED[:1])
    metric = METRIC.take(torch.tensor([0]))
    with torch.no_grad():
        caches = [model.run_with_cache(one)[1] for one in tokens]
        clean, corrupted = caches
        assert isinstance(clean, ActivationCache)
        assert isinstance(corrupted, ActivationCache)
        theirs = transformer_lens.patching.get_act_patch_direct_path(
            model,
            tokens[1],
            clean,
            corrupted,
            lambda logits: metric(logits[:, -1])[0],
            src_layer=0,
            src_head=2,
            component=into,
            verbose=False,  # type: ignore[arg-type]
        )
    for receiver in [(1, 0), (last, 3)]:
        ours = patch_paths(
            model,
            TokenBatch.from_padded(tokens[0]),
            TokenBatch.from_padded(tokens[1]),
            metric,
            receivers=[receiver],
            into=into,
            senders=[(0, 2)],
            progress=False,
        )
        patched = float(ours.values[0, 0, 2] + ours.corrupted[0])
        assert patched == pytest.approx(float(theirs[receiver]), abs=1e-5)
    assert float((theirs[1:] - ours.corrupted[0]).abs().max()) > 1e-3


def hold(model: Any, values: dict[str, torch.Tensor], names: list[str]) -> list[Any]:
    """Hooks that hold hook points at recorded values."""

    def held(name: str) -> Any:
        def hook_function(value: torch.Tensor, hook: Any) -> torch.Tensor:
            return values[name][None]

        return name, hook_function

    return [held(name) for name in names]


@cache
def recorded(
    model: Any, prompt: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], float]:
    """What a corrupted prompt's run shows, its clean one's heads, and the unpatched metric."""
    layers = range(model.cfg.n_layers)
    z = [hook_name("z", layer) for layer in layers]
    own = seen_in(model, CORRUPTED[prompt], [*z, *(hook_name("mlp_out", at) for at in layers)])
    logits = run_one(model, CORRUPTED[prompt])[None]
    bare = float(METRIC.take(torch.tensor([prompt]))(logits)[0])
    return own, seen_in(model, CLEAN[prompt], z), bare


def literal(
    full_logits: Any,
    full_values: Any,
    model: Any,
    prompt: int,
    sender: tuple[int, int],
    receivers: list[tuple[int, int]] | None,
    into: str,
    mlps: str,
) -> float:
    """Wang et al.'s three runs, unpadded: record, send with all else held, receive."""
    n_layers = model.cfg.n_layers
    layers = range(n_layers)
    z = [hook_name("z", layer) for layer in layers]
    inputs = [hook_name(into, layer) for layer in layers]
    mlp = [hook_name("mlp_out", layer) for layer in layers]
    own, clean, bare = recorded(model, prompt)
    sent = own[z[sender[0]]].clone()
    sent[:, sender[1]] = clean[z[sender[0]]][:, sender[1]]
    hooks = hold(model, own | {z[sender[0]]: sent}, z)
    if mlps == "frozen":
        hooks += hold(model, own, mlp)
    metric = METRIC.take(torch.tensor([prompt]))
    if receivers is None:
        return float(metric(full_logits(model, CORRUPTED[prompt], hooks)[None])[0]) - bare
    with model.hooks(fwd_hooks=hooks):
        arriving = full_values(model, CORRUPTED[prompt], inputs)

    def receive(layer: int) -> Any:
        units = [unit for at, unit in receivers if at == layer]

        def hook_function(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            value[0, :, units] = arriving[inputs[layer]][:, units]
            return value

        return inputs[layer], hook_function

    taken = [receive(layer) for layer in sorted({at for at, _ in receivers if at > sender[0]})]
    return float(metric(full_logits(model, CORRUPTED[prompt], taken)[None])[0]) - bare


@pytest.mark.parametrize(
    ("mlps", "to_logits"), [("frozen", False), ("recomputed", False), ("recomputed", True)]
)
def test_paths_equal_the_literal_procedure(
    family: HookedModel, full_logits: Any, full_values: Any, mlps: str, to_logits: bool
) -> None:
    """Padded together, on every architecture: post-norms, parallel blocks, grouped keys."""
    last = family.cfg.n_layers - 1
    receivers = None if to_logits else [(last, 1), (1, 0)]
    into = "q" if mlps == "frozen" else "k"
    senders = [(0, 1), (0, 3), (last, 2) if to_logits else (last - 1, 2)]
    result = paths(family, receivers=receivers, into=into, senders=senders, mlps=mlps)
    for place, (layer, head) in enumerate(senders):
        prompt = place % 2
        expected = literal(
            full_logits, full_values, family, prompt, (layer, head), receivers, into, mlps
        )
        found = float(result.values[prompt, layer, head])
        assert found == pytest.approx(expected, abs=1e-5)
    assert float(result.values.nan_to_num().abs().max()) > 1e-3
    asked = {(0, 1), (0, 3), senders[2]}
    measured = (~result.values.isnan()).all(dim=0).nonzero().tolist()
    assert {(layer, head) for layer, head in measured} == asked


def test_direct_effects_equal_the_literal_procedure(
    families: dict[str, HookedModel], full_logits: Any, full_values: Any
) -> None:
    """A post-norm stands between gemma3's heads and the residual stream."""
    for name, sender in [("gemma3", (0, 1)), ("gemma3", (2, 2)), ("llama", (1, 0))]:
        model = families[name]
        result = paths(model, senders=[sender])
        for prompt in range(2):
            expected = literal(full_logits, full_values, model, prompt, sender, None, "q", "frozen")
            found = float(result.values[prompt, sender[0], sender[1]])
            assert found == pytest.approx(expected, abs=1e-5)
            assert abs(found) > 1e-4


def test_the_last_layers_direct_effect_is_its_whole_effect_without_mlps(
    families: dict[str, HookedModel],
) -> None:
    """In a parallel block nothing stands between the last heads and the logits."""
    model = families["neox"]
    direct = paths(model).values[:, -1]
    whole = patch(
        model,
        TokenBatch.from_lists(CLEAN),
        TokenBatch.from_lists(CORRUPTED),
        METRIC,
        units=[(2, head) for head in range(4)],
        progress=False,
    ).values[:, -1]
    torch.testing.assert_close(direct, whole, **CLOSE)
    assert float(direct.abs().max()) > 1e-3


def test_equal_prompts_have_no_paths(tiny_llama: HookedModel) -> None:
    same = TokenBatch.from_lists(CLEAN)
    for receivers in (None, [(2, 1)]):
        result = patch_paths(tiny_llama, same, same, METRIC, receivers=receivers, progress=False)
        assert float(result.values.nan_to_num().abs().max()) < 1e-5


def test_a_result_says_which_paths(tiny_llama: HookedModel) -> None:
    result = paths(tiny_llama, receivers=[(1, 1)], into="k", senders=[(0, 0)], seed=3)
    assert result.method == "path, MLPs frozen"
    assert result.metadata == {"receivers": "k of [(1, 1)]"}
    assert result.axes == ("prompt", "layer", "head")
    assert result.seed == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mlps": "gone"}, "unknown mlps 'gone'; known: frozen, recomputed"),
        ({"into": "z"}, "unknown into 'z'; known: q, k, v"),
        ({"receivers": []}, "there are no receivers: name heads, or leave `receivers` out"),
        ({"receivers": [(3, 0)]}, r"head \(3, 0\) does not exist: the model has layers 0 to 2"),
        (
            {"receivers": [(1, 2)], "into": "k"},
            r"unit \(1, 2\) does not exist: .* units 0 to 1",
        ),
        ({"senders": [(0, 4)]}, r"head \(0, 4\) does not exist: .* heads 0 to 3"),
        ({"budget": 100}, "too small for one prompt of 6 tokens"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tiny_llama: HookedModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        paths(tiny_llama, **options)
    assert "\n" not in str(caught.value)


def test_prompts_of_unequal_lengths_have_no_paths(tiny_llama: HookedModel) -> None:
    with pytest.raises(UserError, match="differ in length"):
        patch_paths(
            tiny_llama,
            TokenBatch.from_lists([[1, 2]]),
            TokenBatch.from_lists([[1, 2, 3]]),
            METRIC.take(torch.tensor([0])),
            progress=False,
        )
