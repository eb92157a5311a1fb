"""Noise on a span, and a clean state put back, against whole forward passes with hooks."""

from functools import partial
from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.forward.hook_points import hook_name
from interp.models import HookedModel
from interp.patching import LogitDifference, TokenBatch, trace_noise
from interp.patching.noise import ROLES, Noise, _windows

PROMPTS = [[5, 9, 7, 8, 30, 31], [20, 21, 22, 23]]
SPANS = [(1, 3), (0, 2)]
BATCH = TokenBatch.from_lists(PROMPTS)
METRIC = LogitDifference(torch.tensor([3, 14]), torch.tensor([65, 35]))


def literal(
    model: HookedModel, prompt: int, noise: torch.Tensor, restored: dict[str, torch.Tensor], at: int
) -> float:
    """The metric of one unpadded prompt: noise on its embeddings, states put back at ``at``."""

    def add(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return value + noise

    def put_back(value: torch.Tensor, hook: Any, *, name: str) -> torch.Tensor:
        value[:, at] = restored[name][:, at]
        return value

    hooks: list[Any] = [(name, partial(put_back, name=name)) for name in restored]
    hooks.insert(0, ("blocks.0.hook_resid_pre", add))
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        logits = model(torch.tensor([PROMPTS[prompt]]))[:, -1]
    return float(METRIC.take(torch.tensor([prompt]))(logits))


def clean_values(model: HookedModel, prompt: int, names: list[str]) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}
    hooks: Any = [
        (name, lambda value, hook, name=name: seen.update({name: value.clone()})) for name in names
    ]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(torch.tensor([PROMPTS[prompt]]))
    return seen


@pytest.mark.parametrize(
    ("name", "component", "window"),
    [("tiny_llama", "resid_post", 1), ("tiny_gpt2", "mlp_out", 2), ("tiny_llama", "attn_out", 3)],
)
def test_effects_are_those_of_whole_passes(
    name: str, component: str, window: int, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    n_layers, width = model.cfg.n_layers, BATCH.width
    options: Any = {"component": component, "window": window, "draws": 2, "by": "position"}
    found = trace_noise(model, BATCH, METRIC, SPANS, progress=False, **options)
    assert found.axes == ("prompt", "layer", "position")
    std, at = float(found.metadata["noise_std"]), BATCH.span_mask(SPANS)
    first = width - found.values.shape[2]
    for prompt, ids in enumerate(PROMPTS):
        offset = width - len(ids)
        draws = [
            Noise(at[[prompt]], std, [(prompt, draw)]).of(
                [0], torch.Size([1, len(ids), model.cfg.d_model])
            )
            for draw in (0, 1)
        ]
        base = sum(literal(model, prompt, noise, {}, 0) for noise in draws) / 2
        assert float(found.corrupted[prompt]) == pytest.approx(base, abs=2e-4)
        for layer, units in enumerate(_windows(n_layers, component, window)):
            names = [hook_name(component, at) for at, _ in units]
            clean = clean_values(model, prompt, names)
            for place in (0, 2, len(ids) - 1):
                expected = sum(literal(model, prompt, noise, clean, place) for noise in draws) / 2
                if place + offset >= first:
                    effect = float(found.values[prompt, layer, place + offset - first])
                    assert effect == pytest.approx(expected - base, abs=3e-4)
                else:
                    assert expected == pytest.approx(base, abs=1e-4)


def test_the_last_state_brings_the_clean_answer_back(tiny_llama: HookedModel) -> None:
    found = trace_noise(tiny_llama, BATCH, METRIC, SPANS, draws=1, progress=False)
    assert found.clean is not None
    gap = found.clean - found.corrupted
    assert gap.abs().min() > 1e-3
    end = found.values[:, -1, ROLES.index("end")]
    torch.testing.assert_close(end, gap, rtol=1e-3, atol=1e-4)
    assert found.values[:, :, ROLES.index("middle")].isnan().all()  # spans of two tokens
    assert found.labels["span"] == ROLES
    assert found.source == "noise"


def test_noise_does_not_depend_on_what_runs_beside_it(tiny_llama: HookedModel) -> None:
    options: Any = {"draws": 1, "progress": False, "by": "position"}
    both = trace_noise(tiny_llama, BATCH, METRIC, SPANS, **options)
    first = TokenBatch.from_lists(PROMPTS[:1])
    metric = METRIC.take(torch.tensor([0]))
    alone = trace_noise(tiny_llama, first, metric, SPANS[:1], **options)
    ratio = float(alone.metadata["noise_std"]) / float(both.metadata["noise_std"])
    scale = 3.0 / ratio  # the same absolute noise
    again = trace_noise(tiny_llama, first, metric, SPANS[:1], scale=scale, **options)
    torch.testing.assert_close(again.values[0], both.values[0, :, -5:], rtol=1e-3, atol=1e-4)


def test_a_metric_that_sees_all_prompts_gives_the_same(tiny_llama: HookedModel) -> None:
    options: Any = {"draws": 2, "progress": False}
    found = trace_noise(tiny_llama, BATCH, METRIC, SPANS, **options)
    plain = trace_noise(tiny_llama, BATCH, lambda logits: METRIC(logits), SPANS, **options)
    torch.testing.assert_close(
        plain.values.nan_to_num(), found.values.nan_to_num(), rtol=1e-3, atol=1e-4
    )


def test_windows_are_those_of_the_paper() -> None:
    windows = [[layer for layer, _ in units] for units in _windows(12, "mlp_out", None)]
    assert windows[0] == [0, 1, 2, 3, 4]
    assert windows[6] == list(range(1, 11))
    assert windows[11] == [6, 7, 8, 9, 10, 11]
    assert _windows(3, "resid_post", None) == [((0, 0),), ((1, 0),), ((2, 0),)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"component": "z"}, "noise is traced in"),
        ({"scale": 0.0}, "scale"),
        ({"draws": 0}, "draws"),
        ({"window": 0}, "window"),
    ],
)
def test_bad_arguments_are_told(changes: Any, message: str, tiny_llama: HookedModel) -> None:
    with pytest.raises(UserError, match=message):
        trace_noise(tiny_llama, BATCH, METRIC, SPANS, progress=False, **changes)


def test_a_span_beyond_the_prompt_is_told(tiny_llama: HookedModel) -> None:
    with pytest.raises(UserError, match="span"):
        trace_noise(tiny_llama, BATCH, METRIC, [(1, 3), (2, 9)], progress=False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_noise_does_not_depend_on_the_default_dtype(dtype: torch.dtype) -> None:
    noise = Noise(torch.ones(1, 4, dtype=torch.bool), 1.0, [(0, 0)])
    usual = noise.of([0], torch.Size((1, 4, 8)))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        other = noise.of([0], torch.Size((1, 4, 8)))
    finally:
        torch.set_default_dtype(before)
    assert other.dtype == usual.dtype == torch.float32
    assert torch.equal(other, usual)
