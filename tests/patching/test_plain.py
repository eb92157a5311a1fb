"""The plain modules give the hooked model's numbers, or are not used; nothing stays behind."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch

import interp.forward.partial
import interp.forward.shared_prefix
import interp.forward.trial
import interp.models
from interp.errors import UserError
from interp.forward.hook_points import HOOK_LOCATIONS, hook_name
from interp.forward.partial import RecordedRun
from interp.forward.prompts import call_positions
from interp.forward.shared_prefix import SharedPrefix, shared_prefix_attention, use_prefix
from interp.forward.unhooked import UnhookedModel, unhooked_model
from interp.models import HookedModel
from interp.models.versions import wraps_transformers
from interp.patching import (
    last_logits,
    patch,
    patch_paths,
    record_run,
    resume,
)
from tests.patching.prompts import BATCH, CLEAN, CLOSE, CORRUPTED, METRIC, ROWS


def runs(model: Any, start: int, **settings: Any) -> tuple[RecordedRun, RecordedRun]:
    """The same run, to be resumed on the plain modules, and on the hooked model."""
    run = record_run(model, BATCH, start=start, **settings)
    assert run.plain is not None
    return run, replace(run, plain=None)


@torch.no_grad()
def agree(model: Any, both: tuple[RecordedRun, RecordedRun], **settings: Any) -> torch.Tensor:
    plain, hooked = (resume(model, run, rows=ROWS, **settings) for run in both)
    torch.testing.assert_close(plain, hooked, **CLOSE)
    return plain


@cache
def unedited(model: Any) -> tuple[tuple[RecordedRun, RecordedRun], torch.Tensor]:
    """The runs from column 5 on, and their logits without hooks."""
    both = runs(model, 5)
    return both, agree(model, both, layer=0)


@pytest.mark.bridge_only
@pytest.mark.parametrize("start", [0, 5])
def test_resumed_runs_equal_the_hooked_models(family: HookedModel, start: int) -> None:
    both = runs(family, start)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.tensor([[7, 0], [200, 7], [5, 5], [1, 2]])
    for layer in range(family.cfg.n_layers + 1):
        logits = agree(family, both, layer=layer) if layer < family.cfg.n_layers else None
        residual = torch.randn(4, BATCH.width - start, family.cfg.d_model, generator=generator)
        other = agree(family, both, layer=layer, residual=residual)
        assert logits is None or float((logits - other).abs().max()) > 0.1
        narrow = resume(family, both[0], layer=layer, rows=ROWS, residual=residual, tokens=tokens)
        torch.testing.assert_close(narrow, other.gather(1, tokens), **CLOSE)


@pytest.mark.bridge_only
def test_given_head_outputs_stand_for_the_layers_attention(family: HookedModel) -> None:
    both = runs(family, 5)
    generator = torch.Generator().manual_seed(0)
    shape = (4, BATCH.width - 5, family.cfg.n_heads, family.cfg.d_head)
    for layer in range(family.cfg.n_layers):
        agree(family, both, layer=layer, z=torch.randn(shape, generator=generator))


@pytest.mark.bridge_only
@pytest.mark.parametrize("component", [*HOOK_LOCATIONS, "attn_scores"])
def test_hooks_act_as_on_the_hooked_model(family: HookedModel, component: str) -> None:
    """One after another on the same point, in a lower and in the last layer, with a prefix."""
    inside = (
        f"attn.hook_{component}" if component == "attn_scores" else HOOK_LOCATIONS[component].hook
    )
    lower, last = (f"blocks.{at}.{inside}" for at in (0, family.cfg.n_layers - 1))
    if lower not in family.hook_dict:
        assert component == "resid_mid"
        return
    both, bare = unedited(family)
    assert both[0].plain is not None
    fused = component in ("q", "k", "v") and not hasattr(family.blocks[0].attn, "q_proj")
    assert both[0].plain.supports([(lower, print)]) or fused
    seen: list[tuple[int, ...]] = []

    def change(value: torch.Tensor, hook: Any) -> torch.Tensor:
        seen.append(tuple(value.shape))
        return torch.tanh(value) if component != "attn_scores" else value * 0.5

    def add(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return value + 0.25 if component not in ("attn_scores", "pattern") else value * 1.5

    for name in (lower, last):
        edited = agree(family, both, layer=0, hooks=[(name, change), (name, add)])
        assert float((edited - bare).abs().max()) > 1e-3
    assert seen[0] == seen[1]


@pytest.mark.bridge_only
def test_hooks_read_the_same_when_the_rest_is_cut_off(family: HookedModel) -> None:
    both = runs(family, 5)
    found: list[torch.Tensor] = []

    def keep(value: torch.Tensor, hook: Any) -> None:
        found.append(value.clone())

    for run in both:
        resume(family, run, layer=1, rows=ROWS, hooks=[(hook_name("attn_out", 1), keep)], stop=2)
    assert len(found) == 2
    real = BATCH.mask[ROWS, 5:]
    torch.testing.assert_close(found[0][real], found[1][real], **CLOSE)


@pytest.mark.bridge_only
def test_the_last_layer_is_trimmed_only_where_nobody_looks(tiny_llama: HookedModel) -> None:
    """An unwatched last layer computes its last column; a watched one shows all of them."""
    (run, hooked), last = runs(tiny_llama, 0), tiny_llama.cfg.n_layers - 1
    assert run.plain is not None
    columns: list[int] = []
    inner: Any = run.plain._narrowed[-1]
    handle = inner.up_proj.register_forward_pre_hook(
        lambda module, args: columns.append(args[0].shape[1])
    )
    shown: list[torch.Tensor] = []

    def look(value: torch.Tensor, hook: Any) -> None:
        shown.append(value.clone())

    try:
        resume(tiny_llama, run, layer=0, rows=ROWS)
        for one in (run, hooked):
            resume(tiny_llama, one, layer=0, rows=ROWS, hooks=[(hook_name("mlp_out", last), look)])
    finally:
        handle.remove()
    real = BATCH.mask[ROWS]
    torch.testing.assert_close(shown[0][real], shown[1][real], **CLOSE)
    assert columns == [1, BATCH.width]


@pytest.mark.bridge_only
def test_the_beginning_is_the_hooked_models(family: HookedModel) -> None:
    """Keys and values of the shared beginning, and the logits after it, from either path."""
    plain = record_run(family, BATCH, start=6)
    rows = torch.arange(3)
    torch.testing.assert_close(plain.logits, last_logits(family, BATCH)[:, -1], **CLOSE)
    hooked = record_run(family, BATCH, start=6, plain=False)
    assert plain.plain is not None
    assert hooked.plain is None
    assert plain.start == hooked.start == 6
    with family.hooks(fwd_hooks=[(hook_name("resid_pre", 0), lambda value, hook: None)]):
        watched = record_run(family, BATCH, start=6)
    assert watched.start == 0  # somebody's own hook may count positions
    torch.testing.assert_close(watched.logits, plain.logits, **CLOSE)
    for ours, theirs in zip(plain.prefix, hooked.prefix, strict=True):
        real = BATCH.mask[:, None, :6].expand(-1, ours[0].shape[1], -1)
        for which in (0, 1):
            torch.testing.assert_close(ours[which][real], theirs[which][real], **CLOSE)
    assert call_positions(family.original_model, BATCH, rows).shape[0] == 3


EVERY_METHOD: list[dict[str, Any]] = [
    {"component": "z", "positions": "each"},
    {"component": "q"},
    {"component": "pattern"},
    {"component": "resid_mid"},
    {"component": "resid_mid", "method": "attribution"},
    {"component": "mlp_out", "method": "ig", "steps": 2},
    {"component": "z", "method": "atp*"},
    {"component": "q", "method": "atp*"},
    {"component": "k", "method": "atp*", "positions": "each"},
]
FALLBACKS = [
    *(("llama", settings) for settings in EVERY_METHOD),
    *((name, EVERY_METHOD[1]) for name in ("gpt2", "qwen2", "gemma3", "neox")),
    *((name, EVERY_METHOD[2]) for name in ("gpt2", "neox")),
    *((name, EVERY_METHOD[3]) for name in ("gpt2", "gemma3")),
    *((name, EVERY_METHOD[7]) for name in ("gpt2", "gemma3", "neox")),
]


def without_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interp.forward.partial, "trusted_unhooked_model", lambda *_: None)


@pytest.mark.bridge_only
@pytest.mark.parametrize(("name", "settings"), FALLBACKS)
def test_every_method_gives_the_same_without_plain_modules(
    families: dict[str, HookedModel],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    settings: dict[str, Any],
) -> None:
    family = families[name]

    def values() -> torch.Tensor:
        return patch(family, CLEAN, CORRUPTED, METRIC, progress=False, **settings).values

    ours = values()
    without_plain(monkeypatch)
    assert record_run(family, CLEAN).plain is None
    torch.testing.assert_close(values(), ours, equal_nan=True, **CLOSE)
    assert float(ours.abs().nan_to_num().max()) > 1e-3


@pytest.mark.bridge_only
@pytest.mark.parametrize(
    ("name", "mlps"), [("llama", "recomputed"), ("gemma3", "frozen"), ("neox", "frozen")]
)
def test_paths_give_the_same_without_plain_modules(
    families: dict[str, HookedModel], monkeypatch: pytest.MonkeyPatch, name: str, mlps: str
) -> None:
    family = families[name]

    def values() -> torch.Tensor:
        receivers = [(family.cfg.n_layers - 1, 1)]
        to_head = patch_paths(
            family, CLEAN, CORRUPTED, METRIC, receivers=receivers, mlps=mlps, progress=False
        )
        to_logits = patch_paths(family, CLEAN, CORRUPTED, METRIC, mlps=mlps, progress=False)
        return torch.stack([to_head.values, to_logits.values])

    ours = values()
    without_plain(monkeypatch)
    torch.testing.assert_close(values(), ours, equal_nan=True, **CLOSE)


@pytest.mark.bridge_only
def test_the_plain_modules_share_the_parameters(tiny_llama: HookedModel) -> None:
    plain = unhooked_model(tiny_llama)
    assert isinstance(plain, UnhookedModel)
    theirs = {parameter.data_ptr() for parameter in tiny_llama.original_model.parameters()}
    assert {parameter.data_ptr() for parameter in plain.hf_model.parameters()} == theirs
    hf_model: Any = tiny_llama.original_model
    assert plain.hf_model.config._attn_implementation == "shared_prefix"
    assert hf_model.config._attn_implementation == "eager"


@pytest.mark.bridge_only
def test_what_could_differ_is_left_to_the_hooked_model(
    tiny_llama: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unhooked_model(tiny_llama) is not None
    with monkeypatch.context() as patched:
        # Weights that TransformerLens has processed are not those of the wrapped modules.
        patched.setattr(tiny_llama, "compatibility_mode", True)
        assert unhooked_model(tiny_llama) is None
    inner: Any = tiny_llama.blocks[1].mlp.original_component
    inner.__dict__["forward"] = lambda hidden_states: hidden_states
    try:
        assert unhooked_model(tiny_llama) is None
    finally:
        del inner.__dict__["forward"]
    assert unhooked_model(tiny_llama) is not None


@pytest.mark.bridge_only
def test_an_attention_with_unknown_extras_falls_back(
    families: dict[str, HookedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """gemma3's sliding window is in the mask, and known to be; forget that it is known."""
    model = families["gemma3"]
    before = patch(model, CLEAN, CORRUPTED, METRIC, progress=False).values
    monkeypatch.setattr(interp.forward.shared_prefix, "_IGNORED", frozenset())
    monkeypatch.setattr(interp.forward.trial, "_VERDICTS", WeakKeyDictionary())
    run = record_run(model, BATCH, start=5)
    assert run.plain is None
    torch.testing.assert_close(run.logits, last_logits(model, BATCH)[:, -1], **CLOSE)
    after = patch(model, CLEAN, CORRUPTED, METRIC, progress=False).values
    torch.testing.assert_close(after, before, **CLOSE)


def test_attention_sinks_are_not_known() -> None:
    class Module:
        layer_idx = 0

    query = torch.randn(1, 2, 3, 4)
    with (
        use_prefix(SharedPrefix((), torch.arange(1))),
        pytest.raises(NotImplementedError, match="attention with s_aux"),
    ):
        shared_prefix_attention(Module(), query, query, query, None, s_aux=torch.zeros(2))


@pytest.mark.parametrize("grouped", [False, True])
def test_attention_by_hand(grouped: bool) -> None:
    """Softmax of scaled, capped, masked scores over shared and own keys, against plain torch."""

    class Module:
        layer_idx = 0

    kv_heads = 2 if grouped else 4
    query = torch.randn(3, 4, 2, 8)
    key, value = torch.randn(2, 3, kv_heads, 2, 8)
    shared_key, shared_value = torch.randn(2, 2, kv_heads, 3, 8)
    rows = torch.tensor([1, 0, 1])
    mask = torch.zeros(3, 1, 2, 5)
    mask[:, :, 0, 4] = torch.finfo(torch.float32).min
    mask[1, :, :, 0] = torch.finfo(torch.float32).min

    def expected(cap: float | None) -> torch.Tensor:
        repeats = 4 // kv_heads
        keys, values = (
            torch.cat([shared[rows], own], dim=2).repeat_interleave(repeats, dim=1)
            for shared, own in ((shared_key, key), (shared_value, value))
        )
        scores = torch.einsum("rhqd,rhkd->rhqk", query, keys) * 0.3
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        return torch.einsum("rhqk,rhkd->rqhd", (scores + mask).softmax(-1), values)

    twice: dict[int, Any] = {0: [lambda pattern: pattern * 2]}
    for shared, cap, factor in [
        (SharedPrefix(((shared_key, shared_value),), rows), None, 1),
        (SharedPrefix(((shared_key, shared_value),), rows), 0.5, 1),
        (SharedPrefix(((shared_key, shared_value),), rows, patterns=twice), None, 2),
    ]:
        with use_prefix(shared):
            out, _ = shared_prefix_attention(
                Module(), query, key, value, mask, scaling=0.3, softcap=cap
            )
        torch.testing.assert_close(out, factor * expected(cap), **CLOSE)
    last = SharedPrefix(((shared_key, shared_value),), rows, last_only=0)
    with use_prefix(last):
        out, _ = shared_prefix_attention(Module(), query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(out[:, -1], expected(None)[:, -1], **CLOSE)
    assert not bool(out[:, 0].any())


@pytest.mark.parametrize("fail_in", ["z", "pattern", "resid_post"])
def test_nothing_is_left_behind_when_a_hook_raises(
    family: HookedModel, traces: Callable[[Any], Any], fail_in: str
) -> None:
    before = traces(family)
    run = record_run(family, BATCH, start=5)
    assert (run.plain is not None) == wraps_transformers(family)
    modules = [] if run.plain is None else list(run.plain.hf_model.modules())

    def left() -> list[Any]:
        return [
            (len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__)
            for m in modules
        ]

    plain_before = left()

    def fail(value: torch.Tensor, hook: Any) -> None:
        raise RuntimeError("on purpose")

    hooks = [(hook_name(fail_in, family.cfg.n_layers - 1), fail)]
    with pytest.raises(RuntimeError, match="on purpose"):
        resume(family, run, layer=1, rows=ROWS, hooks=hooks)
    assert left() == plain_before
    assert traces(family) == before
    torch.testing.assert_close(
        resume(family, run, layer=0, rows=torch.arange(3)), run.logits, **CLOSE
    )


def test_nothing_is_left_behind_by_any_method(
    tiny_llama: HookedModel, traces: Callable[[Any], Any]
) -> None:
    family, before = tiny_llama, traces(tiny_llama)
    for method in ("exact", "attribution", "atp*", "ig"):
        patch(family, CLEAN, CORRUPTED, METRIC, method=method, steps=1, progress=False)
    patch_paths(family, CLEAN, CORRUPTED, METRIC, progress=False)
    calls = 0

    def broken(logits: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise RuntimeError("on purpose")
        return logits[:, 0]

    with pytest.raises(UserError, match="the metric broken raised RuntimeError"):
        patch(family, CLEAN, CORRUPTED, broken, progress=False)
    assert traces(family) == before
    assert all(parameter.grad is None for parameter in family.original_model.parameters())


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float64, 1e-5), (torch.bfloat16, 0.08)], ids=["float64", "bfloat16"]
)
def test_other_number_types(
    tiny_llama: HookedModel,
    hf_factory: Any,
    plain_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    dtype: Any,
    close: float,
) -> None:
    """float64 agrees with float32 to its rounding; bfloat16 roughly, on either path.

    In float64 the hooked model does it all: its softmax is in float32, which the plain modules' is
    not, and that is more than float64 explains.
    """
    settings: dict[str, Any] = {"progress": False}
    model = interp.models.from_hf(hf_factory("llama", plain_tokenizer).to(dtype), plain_tokenizer)
    plain = wraps_transformers(model) and dtype != torch.float64
    assert (record_run(model, CLEAN, start=2).plain is not None) == plain
    for component in ("z", "k", "resid_mid"):
        expected = patch(tiny_llama, CLEAN, CORRUPTED, METRIC, component=component, **settings)
        ours = patch(model, CLEAN, CORRUPTED, METRIC, component=component, **settings)
        with monkeypatch.context() as patched:
            without_plain(patched)
            theirs = patch(model, CLEAN, CORRUPTED, METRIC, component=component, **settings)
        assert ours.values.dtype == torch.promote_types(dtype, torch.float32)
        for values in (ours.values, theirs.values):
            torch.testing.assert_close(values.float(), expected.values, rtol=0, atol=close)
        assert float(expected.values.abs().max()) > 10 * close
