"""The constraint in running models: the same numbers as the sweep's, and nothing left behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.heads import HeadSet
from interp.heads.object_edits import mean_output
from interp.interventions import constrain
from interp.models import HookedModel, model_info
from interp.patching import LogitDifference, TokenBatch, last_logits, sweep_sets
from interp.premises import Premises
from interp.premises.encode import EncodedPremises, encode_premises
from tests.interventions.settings import CLOSE, HEADS, SETTINGS, constraint


def encoded_for(model: Any, premises: Premises) -> EncodedPremises:
    return encode_premises(model.tokenizer, premises)


def traces(model: Any) -> dict[str, Any]:
    """Everything that a hook or an override could be left in."""
    modules = dict(model.named_modules()) | dict(model.original_model.named_modules(prefix="hf"))
    return {
        "hooks": {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()},
        "modules": {
            name: (len(module._forward_hooks), len(module._forward_pre_hooks))
            for name, module in modules.items()
        },
        "overrides": [name for name, module in modules.items() if "forward" in module.__dict__],
    }


@contextmanager
def unchanged(model: Any) -> Iterator[None]:
    before = traces(model)
    yield
    assert traces(model) == before


@torch.no_grad()
def decode_with_cache(model: Any, batch: TokenBatch, steps: int) -> torch.Tensor:
    ids = model.original_model.generate(
        input_ids=batch.tokens,
        attention_mask=batch.mask.long(),
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        pad_token_id=0,
    )
    return ids[:, batch.width :]


@pytest.mark.parametrize("number", range(len(SETTINGS)))
@torch.no_grad()
def test_constraining_equals_the_sweeps_edit(
    model: HookedModel, premises: Premises, number: int
) -> None:
    """Each setting on false premises and on twins, and so each model."""
    site, mode, factor = SETTINGS[number]
    kind: Any = ("false", "twin")[(number + (model_info(model).spec == "sliding")) % 2]
    some = premises.first(2)
    one, encoded = constraint(site, mode, factor), encoded_for(model, some)
    metric = LogitDifference(encoded.true_tokens, encoded.false_tokens)
    # Mode "mean" means the false objects' mean, also where it acts on twins.
    mean = mean_output(model, encoded) if mode == "mean" else None
    edit = one.edit(model, encoded, kind, mean=mean)
    batch = encoded.batch(kind)
    expected = sweep_sets(model, batch, edit, sets=[HEADS, ()], metrics=[metric], progress=False)[0]
    with constrain(model, one, premises=some):
        held = metric(last_logits(model, batch)[:, -1])
    free = metric(last_logits(model, batch)[:, -1])
    torch.testing.assert_close(held, expected[:, 0], **CLOSE)
    torch.testing.assert_close(free, expected[:, 1], **CLOSE)
    assert float((held - free).abs().max()) > 1e-3


@pytest.mark.parametrize("site", ["output", "attention"])
@torch.no_grad()
def test_an_empty_head_set_is_no_constraint_exactly(
    model: HookedModel, premises: Premises, site: str
) -> None:
    encoded = encoded_for(model, premises)
    batch = encoded.batch("false")
    free = last_logits(model, batch, keep=3)
    spoken = decode_with_cache(model, batch, 5)
    for mode in ("zero", "mean", "resample") if site == "output" else ("zero",):
        with constrain(model, constraint(site, mode, heads=()), premises=encoded):
            assert torch.equal(last_logits(model, batch, keep=3), free)
            assert torch.equal(decode_with_cache(model, batch, 5), spoken)


@pytest.mark.parametrize(("site", "mode", "factor"), SETTINGS[2:])
@torch.no_grad()
def test_batches_of_different_spans_equal_prompts_one_by_one(
    model: HookedModel, site: str, mode: str, factor: float
) -> None:
    prompts = [[5, 9, 7, 8, 30, 31, 32, 12], [20, 21, 22, 23], [40, 41, 42, 43, 44, 45]]
    spans = [(5, 7), (1, 2), (0, 3)]
    one = constraint(site, mode, factor)
    batch = TokenBatch.from_lists(prompts)
    with constrain(model, one, at=spans):
        together = last_logits(model, batch)[:, -1]
    # The other side of padding, through the model itself: each prompt's last token is elsewhere.
    right = torch.zeros_like(batch.tokens)
    mask = torch.zeros_like(batch.mask)
    for row, tokens in enumerate(prompts):
        right[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = True
    with constrain(model, one, at=spans):
        on_the_left = model.original_model(input_ids=right, attention_mask=mask.long()).logits
    for row, (tokens, span) in enumerate(zip(prompts, spans, strict=True)):
        with constrain(model, one, at=[span]):
            alone = model(torch.tensor([tokens]))[0, -1]
        torch.testing.assert_close(together[row], alone, **CLOSE)
        torch.testing.assert_close(on_the_left[row, len(tokens) - 1], alone, **CLOSE)


def test_nothing_is_left_behind(model: HookedModel, premises: Premises) -> None:
    encoded = encoded_for(model, premises.first(2))
    for site, mode, factor in SETTINGS:
        with unchanged(model), constrain(model, constraint(site, mode, factor), premises=encoded):
            decode_with_cache(model, encoded.batch("false"), 2)


def test_nothing_is_left_behind_after_an_exception(model: HookedModel, premises: Premises) -> None:
    encoded = encoded_for(model, premises.first(2))
    for site, mode, factor in SETTINGS:
        with (
            unchanged(model),
            pytest.raises(RuntimeError, match="on purpose"),
            constrain(model, constraint(site, mode, factor), premises=encoded),
        ):
            raise RuntimeError("on purpose")


def test_nothing_is_left_behind_when_a_forward_pass_raises(tiny_llama: HookedModel) -> None:
    def fail(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("on purpose")

    batch = TokenBatch.from_lists([[5, 9, 7]])
    free = last_logits(tiny_llama, batch)
    with (
        unchanged(tiny_llama),
        pytest.raises(UserError, match="RuntimeError: on purpose"),
        constrain(tiny_llama, constraint("output"), at=fail),
    ):
        last_logits(tiny_llama, batch)
    assert torch.equal(last_logits(tiny_llama, batch), free)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": [(0, 0), (7, 0)]}, r"head \(7, 0\) does not exist"),
        ({"heads": [(0, 4)]}, r"head \(0, 4\) does not exist"),
        ({"heads": [(0, 0), (0, 0)]}, "named twice"),
        ({"site": "attention", "mode": "mean"}, "does not fit site 'attention'"),
        ({"mode": "zero", "factor": 0.5}, "a factor is for mode 'scale'"),
        ({"site": "attention", "mode": "scale", "factor": -1.0}, "cannot be scaled by -1"),
        ({"at": None}, "needs to know where the false object is"),
        ({"mode": "mean"}, "needs reference= premises"),
    ],
)
def test_a_mistake_is_told_before_any_hook_is_on(
    tiny_llama: HookedModel, arguments: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"heads": [(0, 0)], "at": [(0, 1)]} | arguments
    with (
        unchanged(tiny_llama),
        pytest.raises(UserError, match=message),
        constrain(tiny_llama, given.pop("heads"), **given),
    ):
        raise AssertionError("the constrain must not be entered")


@torch.no_grad()
def test_a_cache_from_outside_is_refused(tiny_llama: HookedModel) -> None:
    tokens = torch.tensor([[1, 2, 3, 4]])
    cache = tiny_llama.original_model(input_ids=tokens, use_cache=True).past_key_values
    with constrain(tiny_llama, [(0, 0)], at=[(0, 1)]), pytest.raises(UserError, match="a cache"):
        tiny_llama.original_model(input_ids=tokens[:, :1], past_key_values=cache, use_cache=True)


@torch.no_grad()
def test_embeddings_hide_the_object(tiny_llama: HookedModel) -> None:
    with constrain(tiny_llama, [(0, 0)], at=[(0, 1)]), pytest.raises(UserError, match="token ids"):
        tiny_llama.original_model(inputs_embeds=torch.zeros(1, 4, 32))


@torch.no_grad()
def test_constraints_can_be_nested(tiny_llama: HookedModel) -> None:
    batch = TokenBatch.from_lists([[5, 9, 7, 8, 30, 31]])
    with constrain(tiny_llama, [(0, 1), (1, 2)], at=[(2, 4)]):
        both = last_logits(tiny_llama, batch)
    with constrain(tiny_llama, [(0, 1)], at=[(2, 4)]):
        one = last_logits(tiny_llama, batch)
        with constrain(tiny_llama, [(1, 2)], at=[(2, 4)]):
            torch.testing.assert_close(last_logits(tiny_llama, batch), both, **CLOSE)
        torch.testing.assert_close(last_logits(tiny_llama, batch), one, rtol=0, atol=0)


@torch.no_grad()
def test_a_plain_list_takes_its_site(tiny_llama: HookedModel) -> None:
    batch = TokenBatch.from_lists([[5, 9, 7, 8, 30, 31]])
    for site in ("output", "attention"):
        with constrain(tiny_llama, list(HEADS), at=[(2, 4)], site=site) as yielded:
            plain = last_logits(tiny_llama, batch)
        with constrain(tiny_llama, constraint(site), at=[(2, 4)]):
            assert torch.equal(last_logits(tiny_llama, batch), plain)
        assert yielded is tiny_llama
    with (
        pytest.raises(UserError, match="chosen for site 'output', not 'attention'"),
        constrain(tiny_llama, HeadSet(HEADS, "output"), at=[(2, 4)], site="attention"),
    ):
        pass
