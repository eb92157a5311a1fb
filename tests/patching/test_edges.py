"""Edges: by hand, against TransformerLens and path patching, and what attributions sum to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import interp.models
from interp.errors import UserError
from interp.models import HookedModel
from interp.patching import (
    EdgeEffects,
    LogitDifference,
    Probability,
    TokenBatch,
    patch,
    patch_edges,
    patch_paths,
)
from interp.patching.edges.graph import EdgeGraph
from tests.devices import on_device
from tests.patching.conftest import blank_llama
from tests.patching.lens_edges import lens_reader, lens_writer
from tests.patching.prompts import CLEAN, CORRUPTED, METRIC
from tests.unchecked import unchecked

METHODS = ("eap", "clean-corrupted", "eap-ig", "eap-ig-activations")
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
QUIET: dict[str, Any] = {"progress": False}
FIRST = LogitDifference(torch.tensor([0]), torch.tensor([1]))


def scored(model: Any, method: str = "eap", **options: Any) -> EdgeEffects:
    return patch_edges(model, CLEAN, CORRUPTED, METRIC, method=method, progress=False, **options)


def score(result: EdgeEffects, writer: str, reader: str) -> float:
    return float(result.mean[result.graph.index((writer, reader))])


# The micro model, see test_path: the changes of u, v and w at the logits, and 18 less of m.
U, V, W, M = 23.5 - 30, 10 * (70.5 - 90), 16 * ((12 + 12 + 52 / 3 + 23.5) / 4 - 21), -18.0
BY_HAND = {
    ("input", "a0.h0<v>"): U + W + V + M,
    ("input", "a0.h1<v>"): 0.0,
    ("input", "logits"): 0.0,
    ("a0.h0", "m0"): V + M,
    ("a0.h0", "a1.h0<v>"): U + W,
    ("a0.h0", "a1.h1<v>"): 0.0,
    ("m0", "a1.h1<v>"): V,
    ("m0", "logits"): M,
    ("a1.h0", "a2.h0<v>"): W,
    ("a1.h0", "logits"): U,
    ("a1.h1", "logits"): V,
    ("a2.h0", "logits"): W,
}


@pytest.mark.parametrize("method", [*METHODS, "exact"])
def test_edges_of_a_linear_model_as_computed_by_hand(micro: HookedModel, method: str) -> None:
    clean, corrupted = (TokenBatch.from_lists([ids]) for ids in ([1, 1, 5, 7], [1, 3, 5, 7]))
    result = patch_edges(micro, clean, corrupted, FIRST, method=method, progress=False)
    for (writer, reader), expected in BY_HAND.items():
        assert score(result, writer, reader) == pytest.approx(expected, rel=1e-6, abs=1e-4), writer
    others = result.values[0].nan_to_num()
    for edge in BY_HAND:
        others[result.graph.index(edge)] = 0
    torch.testing.assert_close(others, torch.zeros_like(others), rtol=0, atol=1e-4)
    gap = float(result.clean - result.corrupted)
    # Everything that leaves the input, and everything that arrives at the logits.
    assert float(result.values[0, 0].nansum()) == pytest.approx(gap, rel=1e-6)
    assert float(result.values[0, :, -1].nansum()) == pytest.approx(gap, rel=1e-6)


def test_a_writers_edges_sum_to_its_effect_as_a_node(family: HookedModel) -> None:
    result = scored(family)
    options: dict[str, Any] = {"method": "attribution", "progress": False}
    heads = patch(family, CLEAN, CORRUPTED, METRIC, component="z", **options)
    mlps = patch(family, CLEAN, CORRUPTED, METRIC, component="mlp_out", **options)
    sums = result.values.nansum(dim=2)
    for layer in range(family.cfg.n_layers):
        place = result.graph.heads_of(layer)
        # What comes after the heads (Gemma's norm) is run, not differentiated: no sum then.
        if not hasattr(family.blocks[layer], "ln1_post"):
            torch.testing.assert_close(sums[:, place], heads.values[:, layer], **CLOSE)
        torch.testing.assert_close(sums[:, place.stop], mlps.values[:, layer], **CLOSE)


def test_exact_edges_between_heads_are_paths_past_the_mlps(family: HookedModel) -> None:
    top = family.cfg.n_layers - 1
    wanted = [f"a{top}.h1<{into}>" for into in "qkv"] + ["logits"]
    graph = scored(family).graph
    # Every second head, the others into the next reader.
    senders = {
        reader: [
            (layer, head)
            for layer in range(top + (reader == "logits"))
            for head in range(family.cfg.n_heads)
            if (place + layer + head) % 2 == 0
        ]
        for place, reader in enumerate(wanted)
    }
    edges = [(f"a{at}.h{head}", reader) for reader in wanted for at, head in senders[reader]]
    result = scored(family, "exact", edges=edges)
    for reader in wanted:
        into = reader[-2] if reader != "logits" else "q"
        receivers = None if reader == "logits" else [(top, 1)]
        paths = patch_paths(
            family,
            CLEAN,
            CORRUPTED,
            METRIC,
            receivers=receivers,
            into=into,
            senders=senders[reader],
            progress=False,
        )
        place = graph.readers.index(reader)
        for layer in range(top + (reader == "logits")):
            found = result.values[:, graph.heads_of(layer), place]
            torch.testing.assert_close(found, paths.values[:, layer], equal_nan=True, **CLOSE)
    measured = ~result.values[0].isnan()
    assert int(measured.sum()) == len(edges)


@torch.no_grad()
def test_an_exact_edge_into_an_mlp_is_the_hook_said_literally(tiny_llama: HookedModel) -> None:
    result = scored(tiny_llama, "exact", edges=["input->m1", ("a0.h2", "m2")])
    tokens = [batch.tokens[:1] for batch in (CLEAN, CORRUPTED)]
    metric = METRIC.take(torch.tensor([0]))
    seen: dict[tuple[int, str], torch.Tensor] = {}
    for run, ids in enumerate(tokens):
        names = ["blocks.0.hook_resid_pre", "blocks.0.attn.hook_z"]
        hooks: Any = [
            (
                name,
                lambda value, hook, name=name, run=run: seen.update({(run, name): value.clone()}),
            )
            for name in names
        ]
        with tiny_llama.hooks(fwd_hooks=hooks):
            tiny_llama(ids)
    z = seen[0, "blocks.0.attn.hook_z"] - seen[1, "blocks.0.attn.hook_z"]
    changes = {
        ("input", "m1"): seen[0, "blocks.0.hook_resid_pre"] - seen[1, "blocks.0.hook_resid_pre"],
        ("a0.h2", "m2"): z[:, :, 2] @ tiny_llama.blocks[0].attn.W_O[2],
    }
    unpatched = metric(tiny_llama(tokens[1])[:, -1])
    for (writer, reader), change in changes.items():
        block = tiny_llama.blocks[int(reader[1:])]
        moved = block.ln2.register_forward_pre_hook(
            lambda module, args, change=change: (args[0] + change,)
        )
        try:
            expected = metric(tiny_llama(tokens[1])[:, -1]) - unpatched
        finally:
            moved.remove()
        found = result.values[0][result.graph.index((writer, reader))]
        assert abs(float(expected)) > 1e-3
        torch.testing.assert_close(found, expected[0], **CLOSE)


@pytest.mark.bridge_only
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_eap_is_transformer_lens_sum_over_positions(
    name: str,
    families: dict[str, HookedModel],
    plain_tokenizer: Any,
    hf_factory: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformer_lens.tools.analysis.attribution_patching import (
        EdgeAttributionConfig,
        attribution_patch,
    )

    model = families[name]
    if name == "llama":  # theirs takes no groups
        hf_model = hf_factory("llama", plain_tokenizer, num_key_value_heads=4)
        model = interp.models.from_hf(hf_model, plain_tokenizer, spec="llama")
    clean, corrupted = ([[5, 9, 7, 8, 30, 31]], [[5, 9, 7, 81, 30, 31]])
    metric = LogitDifference(torch.tensor([3]), torch.tensor([65]))
    result = patch_edges(model, clean, corrupted, metric, progress=False)
    for parameter in model.parameters():  # theirs takes gradients from the weights on
        monkeypatch.setattr(parameter, "requires_grad", True)
    theirs = attribution_patch(
        model,
        torch.tensor(clean),
        torch.tensor(corrupted),
        lambda logits: metric(logits[:, -1])[0],
        config=EdgeAttributionConfig(granularity="edge"),
    )
    expected = torch.full_like(result.values[0], torch.nan)
    for (writer, reader), value in theirs.edge_scores.items():
        index = result.graph.index((lens_writer(writer), lens_reader(reader)))
        expected[index] = value + (0 if expected[index].isnan() else expected[index])
    torch.testing.assert_close(result.values[0], expected, equal_nan=True, **CLOSE)


@pytest.mark.parametrize("method", ["eap-ig", "eap-ig-activations"])
def test_integrated_edges_of_the_input_sum_to_the_gap(tiny_llama: HookedModel, method: str) -> None:
    """Both methods walk from the corrupted to the clean embedding for the input's edges."""
    clean = TokenBatch.from_lists([[5, 9, 7, 8, 30, 31]])
    corrupted = TokenBatch.from_lists([[5, 9, 7, 81, 30, 31]])
    metric = LogitDifference(torch.tensor([3]), torch.tensor([65]))
    errors = []
    for steps in (1, 64):
        result = patch_edges(
            tiny_llama, clean, corrupted, metric, method=method, steps=steps, progress=False
        )
        gap = float(result.clean - result.corrupted)
        errors.append(abs(float(result.values[0, 0].nansum()) - gap))
        if method == "eap-ig-activations":
            break  # one step: the same runs for the input, a pass for every layer beside them
    if method == "eap-ig":
        assert errors[1] < 2e-3 * abs(gap) < errors[0]
        return
    inputs = patch_edges(
        tiny_llama, clean, corrupted, metric, method="eap-ig", steps=1, progress=False
    )
    torch.testing.assert_close(result.values[:, 0], inputs.values[:, 0], equal_nan=True, **CLOSE)


@pytest.fixture(scope="module")
@torch.no_grad()
def gated(plain_tokenizer: Any) -> HookedModel:
    """An MLP that is shut, and flat, in the corrupted run: a gate of −40 opens to 40."""
    hf_model = blank_llama(n_layers=1, width=4, d_head=2)
    hf_model.model.embed_tokens.weight[:, 0] = torch.tensor([-40.0, 40.0, 0.0, 0.0])
    hf_model.model.embed_tokens.weight[:, 1] = 1
    mlp = hf_model.model.layers[0].mlp
    mlp.gate_proj.weight[0, 0] = 1
    mlp.up_proj.weight[0, 1] = 1
    mlp.down_proj.weight[2, 0] = 1
    hf_model.lm_head.weight[0, 2] = 1
    return interp.models.from_hf(on_device(hf_model), plain_tokenizer, spec="gated")


@pytest.mark.parametrize(("method", "expected"), [("exact", 40), ("eap", 0), ("eap-ig", 40)])
def test_where_the_gradient_is_zero_eap_sees_nothing(
    gated: HookedModel, method: str, expected: float
) -> None:
    # Ten steps: gates of −36, −28, …, 36, of which half are open.
    result = patch_edges(gated, [[2, 1]], [[2, 0]], FIRST, method=method, steps=10, progress=False)
    assert score(result, "input", "m0") == pytest.approx(expected, abs=0.05)


def test_grouped_keys_and_values_are_one_reader(tiny_llama: HookedModel) -> None:
    result = scored(tiny_llama)
    graph = result.graph
    assert [name for name in graph.readers if name.startswith("a1.") and "<k>" in name] == [
        "a1.h0<k>",
        "a1.h1<k>",
    ]
    assert len([name for name in graph.readers if name.startswith("a1.") and "<q>" in name]) == 4
    circuit = result.circuit(len(result.order()))
    edges = circuit.to_json()["edges"]
    # Heads 2 and 3 share key-value head 1: each has half of the edge's score.
    halves = [edges[f"a0.h1->a1.h{head}<v>"]["score"] for head in (2, 3)]
    whole = score(result, "a0.h1", "a1.h1<v>")
    assert halves == pytest.approx([whole / 2, whole / 2])
    assert abs(whole) > 1e-4


def test_padding_and_chunks_change_nothing(tiny_llama: HookedModel) -> None:
    long, short = [40, 41, 42, 43, 44, 45], [5, 9, 7]
    other, changed = [40, 41, 52, 43, 44, 45], [5, 81, 7]
    for method in ("eap", "exact"):
        edges = ["input->m0", "m0->a2.h1<v>"] if method == "exact" else None
        options: dict[str, Any] = {"method": method, "edges": edges, "progress": False}
        both = patch_edges(tiny_llama, [long, short], [other, changed], METRIC, **options)
        for row, pair in enumerate([(long, other), (short, changed)]):
            alone = patch_edges(
                tiny_llama, [pair[0]], [pair[1]], METRIC.take(torch.tensor([row])), **options
            )
            torch.testing.assert_close(
                both.values[row], alone.values[0], equal_nan=True, rtol=0, atol=2e-5
            )


def test_numbers_of_any_kind_are_saved(tiny_llama: HookedModel, tmp_path: Path) -> None:
    result = unchecked(lambda: scored(tiny_llama), metadata={"n": 3}, seed=np.int64(3))
    again = EdgeEffects.load(result.save(tmp_path / "edges.safetensors"))
    assert (dict(again.metadata), again.seed) == ({"n": "3"}, 3)


def test_results_are_saved_and_tabled(tiny_llama: HookedModel, tmp_path: Path) -> None:
    result = scored(tiny_llama)
    again = EdgeEffects.load(result.save(tmp_path / "edges.safetensors"))
    torch.testing.assert_close(again.values, result.values, equal_nan=True)
    assert (again.graph, again.method, again.metric) == (result.graph, "eap", "LogitDifference")
    frame = result.to_dataframe()
    assert list(frame.columns) == ["writer", "reader", "score", "ci_low", "ci_high", "rank"]
    assert len(frame) == int(result.graph.exists.sum())
    assert frame["score"].abs().is_monotonic_decreasing
    assert result.agreement(again)["spearman"] == pytest.approx(1.0)
    drawn: Any = result.plot(n=5).data[0]
    assert len(drawn.x) == len(drawn.y) == 5
    assert "edges (eap) on LogitDifference, 2 prompts" in result._shown().words


def test_intervals_hold_the_mean_of_their_groups(tiny_llama: HookedModel) -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, 300, (8, 5), generator=generator)
    corrupted = tokens.clone()
    corrupted[:, 2] += 9
    metric = LogitDifference(torch.arange(8), torch.arange(8) + 20)
    frame = patch_edges(tiny_llama, tokens, corrupted, metric, progress=False).to_dataframe(50)
    assert (frame["ci_low"] <= frame["score"]).all()
    assert (frame["score"] <= frame["ci_high"]).all()
    assert (frame["ci_low"] < frame["ci_high"]).all()


def test_nothing_stays_on_the_model(tiny_llama: HookedModel, traces: Any) -> None:
    before = traces(tiny_llama)
    scored(tiny_llama)
    scored(tiny_llama, "exact", edges=["input->m0", "m0->a1.h0<q>"])
    with pytest.raises(UserError, match="no gradient"):
        patch_edges(
            tiny_llama, CLEAN, CORRUPTED, lambda logits: logits.argmax(-1).float(), progress=False
        )
    assert traces(tiny_llama) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": []}, "there are no edges"),
        ({"edges": ["a0.h9->m1"]}, "a0.h9"),
        ({"edges": ["m0->a1.h3<k>"]}, "a layer has 2 keys and values"),
        ({"edges": ["m1->m0"]}, "does not run before"),
        ({"edges": ["m1"]}, "an edge is named as"),
        ({"method": "ig"}, "method"),
        ({"steps": 0}, "steps"),
        ({"budget": 1000}, "MiB"),
    ],
)
def test_bad_input_is_one_line(tiny_llama: HookedModel, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        patch_edges(tiny_llama, CLEAN, CORRUPTED, METRIC, **{"progress": False, **options})
    assert "\n" not in str(caught.value)


LONG, SHORT = [[5, 9, 7, 8, 30, 31], [40, 41, 43, 44]], [[5, 81, 30, 31], [40, 50, 51, 43, 45]]
SPANS = {
    "subject": ([(1, 4), (1, 2)], [(1, 2), (1, 3)]),
    "end": ([(5, 6), (3, 4)], [(3, 4), (4, 5)]),
}


def test_unequal_lengths_need_spans(tiny_llama: HookedModel) -> None:
    for spans in ("all", "each"):
        with pytest.raises(UserError, match=r"equal lengths|unknown positions") as caught:
            scored_by_spans(tiny_llama, "eap", spans)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="use eap, eap-ig or exact"):
        scored_by_spans(tiny_llama, "clean-corrupted")


def scored_by_spans(model: HookedModel, method: str, spans: Any = SPANS, **options: Any) -> Any:
    options |= {"method": method, "positions": spans, "progress": False}
    return patch_edges(model, LONG, SHORT, METRIC, **options)


def test_spans_align_edges_as_they_align_nodes(tiny_llama: HookedModel) -> None:
    sums = scored_by_spans(tiny_llama, "eap").values.nansum(dim=2)
    options: dict[str, Any] = {"positions": SPANS, "method": "attribution", "progress": False}
    heads = patch(tiny_llama, LONG, SHORT, METRIC, component="z", **options)
    mlps = patch(tiny_llama, LONG, SHORT, METRIC, component="mlp_out", **options)
    for layer in range(tiny_llama.cfg.n_layers):
        place = heads_place(tiny_llama, layer)
        torch.testing.assert_close(sums[:, place], heads.values[:, layer].sum(-1), **CLOSE)
        torch.testing.assert_close(sums[:, place.stop], mlps.values[:, layer].sum(-1), **CLOSE)


def heads_place(model: HookedModel, layer: int) -> slice:
    return EdgeGraph.of(model, parallel=False).heads_of(layer)


def test_spans_of_a_linear_model(micro: HookedModel) -> None:
    """Every method is exact there, and the gap of prompts that differ in a span alone is whole."""
    spans = {"token": ([(1, 2)], [(1, 2)])}
    found = {
        method: patch_edges(
            micro, [[1, 1, 5, 7]], [[1, 3, 5]], FIRST, method=method, positions=spans, **QUIET
        ).values
        for method in ("eap", "eap-ig", "eap-ig-activations", "exact")
    }
    assert float(found["exact"].nan_to_num().abs().max()) > 1
    for values in found.values():
        torch.testing.assert_close(values, found["exact"], equal_nan=True, rtol=1e-6, atol=1e-4)
    whole = {"token": ([(1, 4)], [(1, 4)])}
    given = (micro, [[1, 1, 5, 7]], [[1, 3, 5, 7]], FIRST)
    spanned, plain = (patch_edges(*given, positions=at, **QUIET) for at in (whole, "all"))
    torch.testing.assert_close(spanned.values, plain.values, equal_nan=True)


@pytest.mark.bridge_only
def test_a_layer_with_a_way_of_its_own_is_refused(
    tiny_llama: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A norm that the layer does not have, or one that does not do what the layer does.
    monkeypatch.setattr(tiny_llama.blocks[1].attn.__class__, "b_O", torch.ones(32), raising=False)
    with pytest.raises(UserError, match="cannot be told apart in layer 0"):
        scored(tiny_llama)


def test_half_precision_agrees(hf_factory: Any, chat_tokenizer: Any, tiny_llama: Any) -> None:
    hf_model = hf_factory("llama", chat_tokenizer).to(torch.bfloat16)
    model = interp.models.from_hf(hf_model, chat_tokenizer, spec="narrow")
    narrow = patch_edges(
        model, CLEAN, CORRUPTED, Probability(torch.tensor([3, 14])), progress=False
    )
    wide = patch_edges(
        tiny_llama, CLEAN, CORRUPTED, Probability(torch.tensor([3, 14])), progress=False
    )
    assert narrow.values.dtype == torch.float32
    assert narrow.agreement(wide)["pearson"] > 0.98
