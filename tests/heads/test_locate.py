"""A planted head is ranked first by every method at its site; where none is, none is found."""

from typing import Any

import pytest
import torch

import interp.models
from interp.errors import UserError
from interp.heads import (
    HeadEffects,
    agreement,
    effects_by_layer,
    locate_heads,
    pool_effects,
    premise_edit,
)
from interp.heads.locate import check_method
from interp.interventions import constrain
from interp.models import HookedModel
from interp.patching import ActivationEdit, LogitDifference, Probability, last_logits, sweep_heads
from interp.premises import Premises, load_premises
from interp.premises.encode import encode_premises

METHODS = ("path", "activation", "attribution")
SITES = ("output", "attention")


def locate(model: Any, premises: Any, **options: Any) -> HeadEffects:
    return locate_heads(model, premises, progress=False, **options)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("method", METHODS)
def test_the_planted_head_is_first(
    planted: HookedModel,
    planted_premises: Premises,
    planted_heads: dict[str, tuple[int, int]],
    method: Any,
    site: Any,
) -> None:
    effects = locate(planted, planted_premises.first(12), method=method, site=site)
    first = planted_heads[site]
    assert effects.ranked()[0] == first
    assert effects.rank[first] == 1
    # It copies with a logit of ten, at every question; next to it all others are noise.
    assert float(effects.values[:, first[0], first[1]].min()) > 5
    others = effects.mean.clone()
    others[first] = 0
    assert float(others.abs().max()) < 0.5
    assert (effects.select(count=1).heads, effects.select(count=1).site) == ((first,), site)
    assert first in effects.select(fdr=0.05)
    assert effects.statistics.q_value[first] < 0.01
    assert effects.statistics.ci_low[first] > 5
    # The probability of the true object rises too: the paper's measure ranks the same head first.
    assert int(effects.probability.mean(0).argmax()) == first[0] * 4 + first[1]
    assert effects.select(count=1, vote=0.01).heads == (first,)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("method", METHODS)
def test_without_the_copying_head_there_is_nothing(
    honest: HookedModel, planted_premises: Premises, method: Any, site: Any
) -> None:
    effects = locate(honest, planted_premises.first(12), method=method, site=site)
    assert float(effects.values.abs().max()) < 0.05
    assert float(effects.probability.abs().max()) < 0.01
    # No prompt votes for any head at the paper's threshold.
    assert not bool((effects.probability >= 0.1).any())


def test_with_no_false_premise_the_search_selects_nothing(tiny_llama: HookedModel) -> None:
    """Both runs the true question: nothing differs, so no head has an effect."""
    encoded = encode_premises(tiny_llama.tokenizer, load_premises("capitals", limit=8))
    edit = premise_edit(tiny_llama, encoded, "twin", source="twin", last_only=True)
    metric = LogitDifference(encoded.true_tokens, encoded.false_tokens)
    batch = encoded.batch("twin")
    values = sweep_heads(tiny_llama, batch, edit, metrics=[metric], freeze=True, progress=False)[0]
    with torch.no_grad():
        unedited = metric(last_logits(tiny_llama, batch)[:, -1])
    torch.testing.assert_close(values, unedited[:, None, None].expand_as(values), rtol=0, atol=5e-5)


def test_a_model_of_random_weights_has_no_significant_head(
    hf_factory: Any, plain_tokenizer: Any
) -> None:
    """With small random weights no head treats the false object in a way of its own."""
    found = []
    premises = load_premises("capitals", limit=16).with_templates(["why"])
    for seed in range(3):
        hf_model = hf_factory("gpt2", plain_tokenizer, seed=seed)
        model = interp.models.from_hf(hf_model, plain_tokenizer)
        effects = locate(model, premises, method="activation", site="output")
        found += effects.select(fdr=0.05).heads
    assert len(found) <= 1


@pytest.mark.parametrize("site", SITES)
def test_exact_effects_are_differences_from_the_unedited_run(
    tiny_llama: HookedModel, site: Any
) -> None:
    """The value says: logit difference with the head edited, less the same without."""
    premises = load_premises("capitals", limit=6).with_templates(["why"])
    encoded = encode_premises(tiny_llama.tokenizer, premises)
    effects = locate(tiny_llama, encoded, method="activation", site=site)
    metrics = (
        LogitDifference(encoded.true_tokens, encoded.false_tokens),
        Probability(encoded.true_tokens),
    )
    batch = encoded.batch("false")
    with torch.no_grad():
        free = [metric(last_logits(tiny_llama, batch)[:, -1]) for metric in metrics]
        with constrain(tiny_llama, [(1, 2)], premises=encoded, site=site):
            held = [metric(last_logits(tiny_llama, batch)[:, -1]) for metric in metrics]
    torch.testing.assert_close(effects.values[:, 1, 2], held[0] - free[0], rtol=0, atol=5e-5)
    torch.testing.assert_close(effects.probability[:, 1, 2], held[1] - free[1], rtol=0, atol=5e-5)


def test_path_is_the_papers_procedure_at_the_last_token(tiny_llama: HookedModel) -> None:
    """One token of the masked run, others frozen, and O the masked run's own top token."""
    premises = load_premises("capitals", limit=6).with_templates(["why", "famous"])
    encoded = encode_premises(tiny_llama.tokenizer, premises)
    effects = locate(tiny_llama, encoded, method="path")
    batch, masked = encoded.batch("false"), encoded.batch("masked")
    source = torch.zeros(3, len(batch), batch.width, 4, 8)
    at = torch.zeros_like(batch.mask)
    top = []
    for row, item in enumerate(encoded.items):
        with torch.no_grad():
            logits, cache = tiny_llama.run_with_cache(torch.tensor([item.masked.tokens]))
        top.append(int(logits[0, -1].argmax()))
        column = int(batch.offsets[row]) + item.false.object[1] - 1
        at[row, column] = True
        for layer in range(3):
            z = cache[f"blocks.{layer}.attn.hook_z"][0, item.masked.object[1] - 1]
            source[layer, row, column] = z
    metrics = (
        LogitDifference(encoded.true_tokens, encoded.false_tokens),
        Probability(torch.tensor(top)),
    )
    edit = ActivationEdit(at, source=source)
    edited = sweep_heads(tiny_llama, batch, edit, metrics=metrics, freeze=True, progress=False)
    with torch.no_grad():
        free = torch.stack([metric(last_logits(tiny_llama, batch)[:, -1]) for metric in metrics])
    expected = edited - free[:, :, None, None]
    assert len(masked) == len(batch)
    assert float(expected.abs().max()) > 1e-2
    torch.testing.assert_close(effects.values, expected[0], rtol=0, atol=5e-5)
    torch.testing.assert_close(effects.probability, expected[1], rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("method", "source"),
    [("path", "masked"), ("path", "mean"), ("activation", "twin"), ("activation", "zero")],
)
def test_small_batches_give_the_same_effects(
    tiny_llama: HookedModel, source: Any, method: Any
) -> None:
    premises = load_premises("capitals", limit=2).with_templates(["why", "population"])
    options: dict[str, Any] = {"method": method, "source": source}
    whole = locate(tiny_llama, premises, **options)
    small = locate(tiny_llama, premises, budget=800_000, **options)
    torch.testing.assert_close(small.values, whole.values, rtol=0, atol=5e-5)
    assert whole.source == source


def test_attribution_and_activation_agree_on_the_planted_model(
    planted: HookedModel, planted_premises: Premises
) -> None:
    exact, estimate = (
        locate(planted, planted_premises, method=method) for method in ("activation", "attribution")
    )
    found = agreement(exact, estimate, top_k=2)
    assert found["n"] == 12
    assert found["spearman"] > 0.9
    assert found["top_k_overlap"] == 1.0


def test_only_the_heads_asked_for(tiny_gpt2: HookedModel) -> None:
    premises = load_premises("capitals", limit=3).with_templates(["why"])
    every = locate(tiny_gpt2, premises, method="activation")
    some = locate(tiny_gpt2, premises, method="activation", heads=((1, 2),))
    torch.testing.assert_close(some.values[:, 1, 2], every.values[:, 1, 2], rtol=0, atol=5e-5)
    assert int(some.values.isnan().sum()) == 3 * 7


def test_a_result_of_some_heads_is_used_like_any_other(
    planted: HookedModel, planted_premises: Premises
) -> None:
    options: dict[str, Any] = {"method": "activation"}
    every = locate(planted, planted_premises, **options)
    heads = every.ranked()[:2]
    some = locate(planted, planted_premises, heads=heads, **options)
    assert some.n_edited == 2
    assert set(some.ranked()) == set(heads)
    assert list(some.to_dataframe()["effect"]) == pytest.approx(
        list(every.to_dataframe()["effect"][:2]), abs=1e-5
    )
    assert some.select(count=1).heads == heads[:1]
    assert some.select(count=2, vote=0.0).heads == some.ranked()
    assert set(some.select(fdr=0.5)) <= set(heads)
    with pytest.raises(UserError, match="cannot choose 3 of 2 heads"):
        some.select(count=3)
    figure: Any = some.plot(some.select(count=1))
    shown = figure.data[0].z
    assert sum(cell is not None and cell == cell for row in shown for cell in row) == 2
    assert len(effects_by_layer(some)) == planted.cfg.n_layers
    joint = pool_effects([some, some], ["a", "b"])
    for by in ("mean", "worst", "votes"):
        assert joint.select(count=1, by=by).heads == heads[:1]
    assert len(joint.relations_dataframe()) == 6
    with pytest.raises(UserError, match="locate without `heads`"):
        joint.stability(1)
    with pytest.raises(UserError, match="of different heads"):
        pool_effects([some, every], ["a", "b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "attention", "source": "twin"}, "source 'twin' is for site 'output'"),
        ({"method": "attribution", "heads": ((0, 0),)}, "all heads in one pass"),
        ({"method": "activation", "heads": ((9, 0),)}, r"head \(9, 0\) does not exist"),
    ],
)
def test_what_does_not_fit_is_told(
    tiny_gpt2: HookedModel, options: dict[str, Any], message: str
) -> None:
    premises = load_premises("capitals", limit=3).with_templates(["why"])
    with pytest.raises(UserError, match=message):
        locate(tiny_gpt2, premises, **options)


def test_an_unknown_method_lists_the_known() -> None:
    with pytest.raises(UserError, match="unknown method 'guess'; known: path, activation, attrib"):
        check_method("guess")
