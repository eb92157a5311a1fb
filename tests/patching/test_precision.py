"""Number types: what is not float32 is no noisier than it has to be, and baselines cancel."""

import logging
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

import interp.models
from interp.commands.dtype_check import widened as in_float32
from interp.forward import partial as forward
from interp.forward import trial, widen
from interp.forward.partial import unedited_logits
from interp.forward.shared_prefix import NAME, implementation, shared_prefix_attention
from interp.models import HookedModel
from interp.patching import LogitDifference, patch, patch_heads, patch_paths, record_run
from interp.patching.edits import ActivationEdit
from interp.patching.metrics import Probability, apply_metric
from interp.patching.sweep import sweep_effects, sweep_sets
from interp.precision import PRECISIONS, agrees, precision_of, wide_dtype
from tests.patching.prompts import CLEAN, CORRUPTED, METRIC

Make = Callable[[str, torch.dtype], HookedModel]


@pytest.fixture
def make(hf_factory: Any, plain_tokenizer: Any) -> Make:
    """A tiny model of a family, in a number type."""

    def made(family: str, dtype: torch.dtype) -> HookedModel:
        return interp.models.from_hf(hf_factory(family, plain_tokenizer).to(dtype), plain_tokenizer)

    return made


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model has been tried yet."""
    monkeypatch.setattr(trial, "_VERDICTS", WeakKeyDictionary())


def loop(model: Any) -> torch.Tensor:
    """As TransformerLens' own, with values in the model's number type."""
    _, cache = model.run_with_cache(CLEAN.tokens, names_filter=lambda one: one.endswith("hook_z"))
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    rows = []
    for layer in range(n_layers):
        name = f"blocks.{layer}.attn.hook_z"
        for head in range(n_heads):

            def write(z: torch.Tensor, hook: Any, head: int = head, name: str = name) -> Any:
                z[:, :, head] = cache[name][:, :, head]
                return z

            logits = model.run_with_hooks(CORRUPTED.tokens, fwd_hooks=[(name, write)])
            rows.append(METRIC(logits[:, -1]))
    return torch.stack(rows, dim=1).unflatten(1, (n_layers, n_heads))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_float64_is_that_of_a_loop_over_heads(make: Make, family: str) -> None:
    model = make(family, torch.float64)
    values = patch_heads(model, CLEAN.tokens, CORRUPTED.tokens, METRIC, progress=False)
    assert values.dtype == torch.float64
    torch.testing.assert_close(values, loop(model), rtol=0, atol=1e-9)
    result = patch(model, CLEAN, CORRUPTED, METRIC, progress=False)
    assert {result.values.dtype, result.corrupted.dtype} == {torch.float64}
    summed = result.values + result.corrupted[:, None, None]
    torch.testing.assert_close(summed, values, rtol=0, atol=1e-9)
    assert result.resolution == PRECISIONS[torch.float64].resolution


EVERY_WAY: list[dict[str, Any]] = [
    {"component": "pattern"},
    {"component": "z", "source": "mean"},
    {"component": "resid_mid", "method": "attribution"},
    {"component": "mlp_out", "method": "ig", "steps": 2},
    {"component": "k", "method": "atp*"},
]


@pytest.mark.bridge_only
def test_narrow_weights_give_the_effects_of_the_same_weights_in_float32(make: Make) -> None:
    model = make("llama", torch.bfloat16)
    settings: dict[str, Any] = {"progress": False}
    found = [patch(model, CLEAN, CORRUPTED, METRIC, **way, **settings) for way in EVERY_WAY]
    paths = patch_paths(model, CLEAN, CORRUPTED, METRIC, receivers=[(2, 1)], **settings)
    with in_float32(model):
        for way, one in zip(EVERY_WAY, found, strict=True):
            expected = patch(model, CLEAN, CORRUPTED, METRIC, **way, **settings)
            torch.testing.assert_close(one.values, expected.values, rtol=0, atol=2e-5)
            torch.testing.assert_close(one.corrupted, expected.corrupted, rtol=0, atol=2e-5)
            assert float(expected.values.abs().max()) > 1e-3
        expected = patch_paths(model, CLEAN, CORRUPTED, METRIC, receivers=[(2, 1)], **settings)
        torch.testing.assert_close(paths.values, expected.values, rtol=0, atol=2e-5, equal_nan=True)
    assert all(one.dtype == torch.bfloat16 for one in model.original_model.parameters())
    assert found[0].resolution == PRECISIONS[torch.float32].resolution


@pytest.mark.bridge_only
def test_gpt2_and_float16_too(make: Make) -> None:
    model = make("gpt2", torch.float16)
    for method in ("exact", "attribution"):
        ours = patch(model, CLEAN, CORRUPTED, METRIC, method=method, progress=False)
        with in_float32(model):
            expected = patch(model, CLEAN, CORRUPTED, METRIC, method=method, progress=False)
        torch.testing.assert_close(ours.values, expected.values, rtol=0, atol=2e-5)


@pytest.mark.parametrize("plain", [True, False])
def test_an_edit_that_changes_nothing_has_no_effect(
    make: Make, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    """On the hooked model too, whose logits are 0.03 apart: both runs round alike."""
    model = make("llama", torch.bfloat16)
    if not plain:
        monkeypatch.setattr(forward, "trusted_unhooked_model", lambda *_: None)
    at = torch.zeros_like(CORRUPTED.mask)
    at[:, 2:] = True
    for component in ("z", "q", "mlp_out"):
        edit = ActivationEdit(at, scale=1.0, component=component)
        values = sweep_effects(model, CORRUPTED, edit, metrics=[METRIC], progress=False)[..., 0]
        assert float(values.abs().max()) <= 1e-5


def test_an_empty_set_is_the_unedited_run(make: Make) -> None:
    model = make("llama", torch.bfloat16)
    at = CORRUPTED.mask.clone()
    metrics = [METRIC, Probability(METRIC.answer)]
    values = sweep_sets(model, CORRUPTED, ActivationEdit(at), sets=[[], [(0, 0)]], metrics=metrics)
    logits = unedited_logits(model, CORRUPTED)
    for index, metric in enumerate(metrics):
        torch.testing.assert_close(values[index, :, 0], metric(logits), rtol=0, atol=1e-5)


def test_differences_are_taken_in_float32() -> None:
    """bfloat16 has 17.125 and 0.0625, but not 17.0625, which lies half-way between two of its."""
    logits = torch.tensor([[17.125, 0.0625]], dtype=torch.bfloat16)
    metric = LogitDifference(torch.tensor([0]), torch.tensor([1]))
    assert (logits[:, 0] - logits[:, 1]).item() != 17.0625
    assert metric(logits).item() == 17.0625
    assert metric(logits.double()).dtype == torch.float64
    # Somebody's own metric is given what it needs for the same.
    assert apply_metric(lambda given: given[:, 0] - given[:, 1], logits).item() == 17.0625


def test_one_table_of_number_types() -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    for name in ("agreement", "resolution"):
        values = [getattr(PRECISIONS[kind], name) for kind in kinds]
        assert values == sorted(values)
    assert precision_of(torch.float8_e4m3fn) == PRECISIONS[torch.bfloat16]
    assert [wide_dtype(kind) for kind in kinds] == [torch.float64, *[torch.float32] * 3]
    ten = torch.tensor([10.0])
    assert agrees(ten + 5e-4, ten, torch.float32)
    assert not agrees(ten + 5e-4, ten, torch.float64)
    assert not agrees(ten * torch.nan, ten, torch.bfloat16)


@pytest.fixture
def wrong_first_layer() -> Iterator[None]:
    """Attention that is wrong in the first layer alone."""

    def wrong(module: Any, *args: Any, **kwargs: Any) -> Any:
        out, pattern = shared_prefix_attention(module, *args, **kwargs)
        return (1.2 * out if module.layer_idx == 0 else out), pattern

    ALL_ATTENTION_FUNCTIONS.register(implementation(), wrong)
    yield
    ALL_ATTENTION_FUNCTIONS.register(NAME, shared_prefix_attention)


@pytest.mark.bridge_only
@pytest.mark.parametrize("start", [0, 3])
def test_a_wrong_fast_path_is_never_used(
    tiny_llama: HookedModel,
    untried: None,
    wrong_first_layer: None,
    caplog: pytest.LogCaptureFixture,
    start: int,
) -> None:
    with caplog.at_level(logging.INFO):
        assert record_run(tiny_llama, CORRUPTED, start=start).plain is None
    assert "no sweeps on plain modules in torch.float32: their logits differ by" in caplog.text


@pytest.mark.bridge_only
def test_a_model_is_tried_once(
    tiny_llama: HookedModel, untried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    verdict = trial._verdict

    def counted(*args: Any) -> Any:
        tried.append(args)
        return verdict(*args)

    monkeypatch.setattr(trial, "_verdict", counted)
    for start in (0, 2, 3):
        assert record_run(tiny_llama, CORRUPTED, start=start).plain is not None
    assert len(tried) == 1


@pytest.mark.bridge_only
def test_where_widening_fails_the_own_number_type_will_do(
    make: Make, untried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("expected both to have the same dtype")

    model = make("llama", torch.bfloat16)
    monkeypatch.setattr(widen, "wide_linear", broken)
    plain = record_run(model, CORRUPTED).plain
    assert plain is not None
    assert (plain.dtype, plain.wide) == (torch.bfloat16, False)
    assert trial.sweep_resolution(model) == PRECISIONS[torch.bfloat16].resolution


@pytest.mark.parametrize("size", [2**24, 40])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D, nn.LayerNorm, nn.Embedding, nn.Bilinear])
def test_a_widened_module_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, kind: Any, size: int
) -> None:
    monkeypatch.setattr(widen, "SLICE", size)
    arguments = {nn.LayerNorm: (8,), nn.Bilinear: (8, 8, 12), Conv1D: (12, 8)}
    module = kind(*arguments.get(kind, (8, 12))).bfloat16()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    expected = kind(*arguments.get(kind, (8, 12)))
    expected.load_state_dict(module.state_dict())
    given = (torch.tensor([[1, 7, 3]]),) if kind is nn.Embedding else (torch.randn(2, 3, 8),)
    given = (*given, torch.randn(2, 3, 8)) if kind is nn.Bilinear else given
    kept = {name: one for name, one in module.named_parameters() if one.ndim > 1}
    widen.widen(module)
    found = module(*given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected(*given))
    assert all(module._parameters[name] is one for name, one in kept.items())


def test_a_widened_projection_has_the_gradient_of_its_input() -> None:
    module = nn.Linear(8, 12).bfloat16().requires_grad_(False)
    expected = nn.Linear(8, 12)
    expected.load_state_dict(module.state_dict())
    widen.widen(module)
    x = torch.randn(2, 3, 8, requires_grad=True)
    (found,) = torch.autograd.grad(module(x).square().sum(), x)
    (right,) = torch.autograd.grad(expected(x).square().sum(), x)
    torch.testing.assert_close(found, right)


def test_weights_come_back_whatever_happens() -> None:
    module = nn.Bilinear(8, 8, 12).bfloat16()
    widen.widen(module)
    with pytest.raises(RuntimeError):
        module(torch.randn(2, 7), torch.randn(2, 8))
    assert module.weight.dtype == torch.bfloat16
