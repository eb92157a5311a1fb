"""The pass over a corpus: against a literal count of every token, and however it is cut."""

import itertools
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import interp.moelora
from interp.errors import UserError
from interp.experts import CollectSettings, RoutingRecords, collect_routing, corpus_of
from interp.experts.routing.counter import RoutingCounter, TokenLabels
from interp.experts.routing.tables import POSITIONS, Sizes, Tables, position_bucket
from interp.experts.routing.token_class import CLASSES, token_class
from tests.experts.conftest import FIRST, SECOND, texts_of

QUICK = CollectSettings(routers=2, id_routers=1, folds=3)


@pytest.fixture(scope="module")
def texts() -> dict[str, list[list[int]]]:
    """Three tasks of unlike lengths, all beginning with the same five tokens."""
    start = [5, 6, 7, 8, 9]
    return {
        name: [start + text[: 3 + number % 7] for number, text in enumerate(several)]
        for name, several in (
            ("first", texts_of(FIRST, 9)),
            ("second", texts_of(SECOND, 7, seed=1)),
            ("both", texts_of([*FIRST, *SECOND], 8, seed=2)),
        )
    }


@pytest.fixture(scope="module")
def adapted(adapted_of: Callable[..., Any]) -> Any:
    return adapted_of(dtype=torch.float64)


@pytest.fixture(scope="module")
def records(adapted: Any, texts: Any, plain_tokenizer: Any) -> RoutingRecords:
    return collect_routing(adapted, texts, plain_tokenizer, settings=QUICK, progress=False)[0]


def routed(hooked: Any, text: list[int]) -> tuple[Any, Any]:
    """Gates and softmax of every projection by the hooked model: [projection pos expert]."""
    names = [name for name in hooked.hook_dict if "moelora" in name and "expert_out" not in name]
    _, cache = hooked.run_with_cache(torch.tensor([text]), names_filter=names)
    gates = [cache[name][0] for name in names if name.endswith("hook_gate")]
    return torch.stack(gates), torch.stack(
        [cache[name][0] for name in names if name.endswith("hook_router")]
    )


@pytest.mark.bridge_only  # the count is of the hooked model
def test_agrees_with_a_literal_count(
    adapted: Any, texts: Any, records: RoutingRecords, plain_tokenizer: Any
) -> None:
    corpus = corpus_of(texts, plain_tokenizer)
    hooked = interp.moelora.hooked(adapted, plain_tokenizer)
    assert corpus.prefix == 5
    t, n = records.tables, len(records.projections)
    load = np.zeros((n, 3, 4), dtype=int)
    classes = np.zeros((n, len(CLASSES), 4), dtype=int)
    places = np.zeros((n, len(POSITIONS), 4), dtype=int)
    pairs = np.zeros((n, 4, 4), dtype=int)
    repeats, entropy = np.zeros(n, dtype=int), np.zeros(n)
    probability, gate = np.zeros((n, 3, 4)), np.zeros((n, 3, 4))
    for text in corpus.texts:
        task = corpus.tasks.index(text.task)
        gates, softmax = routed(hooked, list(text.tokens))
        for projection in range(n):
            before = None
            for position in range(5, len(text.tokens)):
                token = text.tokens[position]
                row, p = gates[projection, position], softmax[projection, position]
                chosen = row.nonzero()[:, 0].tolist()
                assert len(chosen) == 2
                for one in chosen:
                    load[projection, task, one] += 1
                    classes[projection, token_class(plain_tokenizer.decode([token])), one] += 1
                    places[
                        projection, min(len(bin(position - 5)) - 2, 8) if position > 5 else 0, one
                    ] += 1
                    for other in chosen:
                        pairs[projection, one, other] += 1
                top = int(p.argmax())
                repeats[projection] += top == before
                before = top
                entropy[projection] -= float((p * p.log()).sum())
                probability[projection, task] += p.numpy()
                gate[projection, task] += row.numpy()
    np.testing.assert_array_equal([records.task_counts(one) for one in range(n)], load)
    np.testing.assert_array_equal(t.class_load.sum(dim=2), classes)
    np.testing.assert_array_equal(t.position_load.sum(dim=2), places)
    np.testing.assert_array_equal(t.pairs.sum(dim=1), pairs)
    np.testing.assert_array_equal(t.repeats.sum(dim=(1, 2)), repeats)
    # The layer's router rounds to float32, the pass does not where the model is float64.
    np.testing.assert_allclose(t.entropy.sum(dim=(1, 2)), entropy, rtol=1e-6)
    np.testing.assert_allclose(t.probability.sum(dim=2), probability, rtol=1e-6)
    np.testing.assert_allclose(t.gate.sum(dim=2), gate, rtol=1e-6, atol=1e-9)
    assert records.n_tokens == sum(corpus.tokens.values())
    assert int(t.cell_follows.sum()) == records.n_tokens - len(corpus.texts)


def test_how_texts_are_batched_does_not_matter(
    adapted: Any, texts: Any, records: RoutingRecords, plain_tokenizer: Any
) -> None:
    other, _ = collect_routing(
        adapted, texts, plain_tokenizer, settings=replace(QUICK, batch_tokens=1), progress=False
    )
    for name, table in records.tables.as_dict().items():
        again = other.tables.as_dict()[name]
        if table.dtype == torch.float64:
            # Untrained routers are kept in float32.
            exact = 1e-6 if name.startswith("random") else 1e-12
            torch.testing.assert_close(table, again, rtol=exact, atol=0)
        else:
            assert torch.equal(table, again), name


def labelled(n: int, sizes: Sizes, seed: int) -> tuple[torch.Tensor, TokenLabels]:
    generator = torch.Generator().manual_seed(seed)

    def draw(limit: int) -> torch.Tensor:
        return torch.randint(0, limit, (n,), generator=generator)

    labels = TokenLabels(
        task=draw(sizes.tasks),
        fold=draw(sizes.folds),
        unit=draw(sizes.units),
        row=draw(sizes.ids + 1),
        token_class=draw(len(CLASSES)),
        position=draw(200),
        follows=draw(2).bool(),
    )
    # A cut never goes through a text.
    labels.follows[::10] = False
    return torch.randn(n, sizes.experts, generator=generator), labels


def part(labels: TokenLabels, begin: int, end: int) -> TokenLabels:
    return TokenLabels(**{one.name: getattr(labels, one.name)[begin:end] for one in fields(labels)})


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (3, 1), (12, 6)])
def test_streaming_is_the_batch_computation(experts: int, top_k: int) -> None:
    sizes = Sizes(1, experts, top_k, tasks=3, folds=4, units=6, ids=5, routers=2, id_routers=1)
    logits, labels = labelled(400, sizes, seed=0)
    drawn = torch.randn(400, 2, experts)
    assert sizes.as_sets == (experts < 12)

    def count(edges: list[int]) -> Tables:
        counter = RoutingCounter(sizes)
        for begin, end in itertools.pairwise(edges):
            counter.add_tokens(part(labels, begin, end))
            counter.add(0, logits[begin:end], part(labels, begin, end))
            counter.add_random(0, drawn[begin:end], part(labels, begin, end))
        return counter.tables

    whole = count([0, 400]).as_dict()
    halves = (count([0, 130]) + count([130, 400])).as_dict()
    for other in (count([0, 10, 20, 250, 400]).as_dict(), halves):
        for name, table in whole.items():
            if table.dtype == torch.float64:
                exact = 1e-6 if name.startswith("random") else 1e-12
                torch.testing.assert_close(table, other[name], rtol=exact, atol=1e-12)
            else:
                assert torch.equal(table, other[name]), name
    # The choices by id are the loads by id, whichever way they are coded.
    of_codes = whole["id_choice"][0].sum(dim=1) @ torch.from_numpy(sizes.experts_of_code)
    assert torch.equal(of_codes, whole["id_load"][0].sum(dim=1))


def test_untrained_routers_see_what_the_trained_one_sees(
    adapted: Any, texts: Any, plain_tokenizer: Any
) -> None:
    from interp.experts.routing.untrained import UntrainedRouters

    seen: dict[int, torch.Tensor] = {}
    layer = adapted.get_base_model().model.layers[1].self_attn.v_proj
    weight = UntrainedRouters(2, seed=0)._draw(2, 32, 4)  # layer 1's queries draw for its values
    assert weight.abs().max() <= 1 / 32**0.5
    handle = layer.register_forward_pre_hook(lambda module, args: seen.update({0: args[0]}))
    total = torch.zeros(3, 2, 4, dtype=torch.long)
    corpus = corpus_of(texts, plain_tokenizer)
    with torch.no_grad():
        for text in corpus.texts:
            adapted(input_ids=torch.tensor([text.tokens]))
            logits = (seen[0][0, 5:].float() @ weight.T).unflatten(-1, (2, 4))
            chosen = logits.topk(2, dim=-1).indices
            member = torch.zeros_like(logits).scatter_(-1, chosen, 1).long()
            total[corpus.tasks.index(text.task)] += member.sum(dim=0)
    handle.remove()
    records, _ = collect_routing(adapted, texts, plain_tokenizer, settings=QUICK, progress=False)
    names = [one.name for one in records.projections]
    number = names.index("model.layers.1.self_attn.v_proj")
    assert torch.equal(records.tables.random_load[number].transpose(0, 1), total)


@pytest.mark.bridge_only
def test_bfloat16_and_the_hooked_model(
    adapted_of: Callable[..., Any], texts: Any, plain_tokenizer: Any
) -> None:
    exact = adapted_of()
    records = collect_routing(exact, texts, plain_tokenizer, settings=QUICK, progress=False)[0]
    hooked = interp.moelora.hooked(exact, plain_tokenizer)
    same = collect_routing(hooked, texts, settings=QUICK, progress=False)[0]
    loads = records.tables.unit_load.sum(dim=1).double()
    difference = (same.tables.unit_load.sum(dim=1) - loads).abs().sum() / loads.sum()
    assert difference < 0.002  # a tie may fall the other way
    rounded = adapted_of(dtype=torch.bfloat16)
    low = collect_routing(rounded, texts, plain_tokenizer, settings=QUICK, progress=False)[0]
    assert low.n_tokens == records.n_tokens
    difference = (low.tables.unit_load.sum(dim=1) - loads).abs().sum() / loads.sum()
    assert difference < 0.1


def test_token_file(
    adapted: Any, texts: Any, records: RoutingRecords, plain_tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "tokens.parquet"
    settings = replace(QUICK, batch_tokens=40)
    collect_routing(
        adapted, texts, plain_tokenizer, settings=settings, token_file=path, progress=False
    )
    file = pq.ParquetFile(path)
    assert file.num_row_groups > 3
    table = file.read().to_pandas()
    assert len(table) == records.n_tokens * len(records.projections)
    for number, one in enumerate(records.projections):
        rows = table[(table["layer"] == one.layer) & (table["target"] == one.target)]
        for task, name in enumerate(records.tasks):
            chosen = np.concatenate(list(rows.loc[rows["task"] == name, "experts"]))
            np.testing.assert_array_equal(
                np.bincount(chosen, minlength=4), records.task_counts(number)[task]
            )
    gates = np.stack(list(table["gates"]))
    np.testing.assert_allclose(gates.sum(axis=1), 1, rtol=1e-6)
    assert (gates[:, 0] >= gates[:, 1]).all()
    first = table.iloc[0]
    corpus = corpus_of(texts, plain_tokenizer)
    assert corpus.texts[first["text"]].tokens[5 + first["position"]] == first["token"]


def test_nothing_is_left_behind_when_it_fails(
    adapted_of: Callable[..., Any], texts: Any, plain_tokenizer: Any, tmp_path: Path
) -> None:
    adapted = adapted_of().train()
    path = tmp_path / "tokens.parquet"
    broken = {**texts, "broken": [[5, 6, 7, 8, 9, 100_000]]}
    with pytest.raises(UserError, match="token 100000 is not in the model's vocabulary"):
        collect_routing(adapted, broken, plain_tokenizer, token_file=path, progress=False)
    assert list(tmp_path.iterdir()) == []
    assert adapted.training
    assert not any(module._forward_pre_hooks for module in adapted.get_base_model().model.modules())


def test_projections_with_unlike_numbers_of_experts(
    adapted_of: Callable[..., Any], texts: Any, plain_tokenizer: Any
) -> None:
    adapted = adapted_of(num_experts=[2, 5, 3])
    records, _ = collect_routing(adapted, texts, plain_tokenizer, settings=QUICK, progress=False)
    assert [one.experts for one in records.projections] == [2, 2, 5, 5, 3, 3]
    for number, one in enumerate(records.projections):
        assert records.task_counts(number).shape == (3, one.experts)
        assert records.task_counts(number).sum() == 2 * records.n_tokens
        assert records.tables.unit_load[number, :, one.experts :].sum() == 0


def test_refusals(
    planted: Any, hf_factory: Callable[..., Any], plain_tokenizer: Any, texts: Any
) -> None:
    plain = hf_factory("llama", plain_tokenizer)
    with pytest.raises(UserError, match="no MoELoRA adapter"):
        collect_routing(plain, texts, plain_tokenizer, progress=False)
    with pytest.raises(UserError, match="tokenizer"):
        collect_routing(planted, texts, progress=False)
    with planted.disable_adapter(), pytest.raises(UserError, match="no adapter is active"):
        collect_routing(planted, texts, plain_tokenizer, progress=False)
    long = {"a": [[3] * 600], "b": [[4] * 3]}
    with pytest.raises(UserError, match="600 tokens, but the model reads at most 512"):
        collect_routing(planted, long, plain_tokenizer, progress=False)
    with pytest.raises(UserError, match="folds is 1"):
        CollectSettings(folds=1)


def test_units_beyond_the_limit_share_rows(
    planted: Any, planted_texts: Any, plain_tokenizer: Any, planted_records: RoutingRecords
) -> None:
    few, _ = collect_routing(
        planted, planted_texts, plain_tokenizer, settings=replace(QUICK, units=6), progress=False
    )
    assert few.unit_task == (0,) * 6 + (1,) * 6
    for number in range(len(few.projections)):
        np.testing.assert_array_equal(few.task_counts(number), planted_records.task_counts(number))


def test_position_buckets() -> None:
    places = torch.tensor([0, 1, 2, 3, 4, 7, 8, 63, 64, 127, 128, 5000])
    assert position_bucket(places).tolist() == [0, 1, 2, 2, 3, 3, 4, 6, 7, 7, 8, 8]
