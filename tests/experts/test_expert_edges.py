"""Edges of experts: against whole runs, against what edges without experts sum to, by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from interp.errors import UserError
from interp.experts import ExpertEdgeEffects, patch_expert_edges
from interp.experts.edges.expert_graph import Experts
from interp.experts.edges.expert_nodes import ReadingExperts, find_nodes
from interp.forward.adapted_projections import AdaptedProjection
from interp.models import HookedModel
from interp.models.quiet import quiet_libraries
from interp.moelora import MoELoRAConfig, hooked
from interp.moelora.layer import ExpertWeights
from interp.patching import LogitDifference, TokenBatch, patch, patch_edges
from tests.architectures import other_architectures
from tests.experts.slow_expert_edges import patched, put, seen, written
from tests.fuzz.seeds import made_up_edges

pytestmark = pytest.mark.bridge_only  # a hooked model with experts

CLEAN, CORRUPTED = [[5, 9, 7, 8, 30, 31]], [[5, 9, 7, 81, 30, 31]]
METRIC = LogitDifference(torch.tensor([3]), torch.tensor([65]))
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
MLP = ["gate_proj", "up_proj", "down_proj"]
TARGETS: dict[str, list[str]] = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", *MLP],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}
EDGES = {
    "llama": [
        ("input", "a0.v.e1"),
        ("a0.h1", "a1.q.e2"),
        ("m0", "a1.k.e0"),
        ("a0.o.e3", "a1.q.e0"),
        ("m0.out.e2", "a1.v.e3"),
        ("a0.o.e1", "m0.in.e2"),
        ("a1.h2", "m1.gate.e1"),
        ("a0.o.e2", "m0"),
        ("m0.out.e1", "a1.h3<q>"),
        ("a0.o.e0", "a1.h1<k>"),
        ("a1.o.e2", "logits"),
    ],
    "gpt2": [
        ("input", "a0.qkv.e1"),
        ("m0", "a1.qkv.e2"),
        ("m0.out.e3", "a1.h0<v>"),
        ("a0.o.e1", "m0.in.e2"),
        ("a0.o.e2", "m1"),
    ],
    "neox": [
        ("m0", "a1.qkv.e2"),
        ("a0.o.e1", "m1.in.e0"),
        ("m0.out.e1", "m1"),
        ("a1.o.e3", "logits"),
    ],
}


def adapted(base: Any, tokenizer: Any, targets: list[str], **config: Any) -> HookedModel:
    """A hooked model whose experts add something."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"r": 2, "num_experts": 4, "top_k": 2, "target_modules": targets}
    with quiet_libraries():
        made = peft.get_peft_model(base, MoELoRAConfig(task_type="CAUSAL_LM", **settings | config))
    for name, parameter in made.named_parameters():
        if "moelora_B" in name:
            parameter.data.normal_(std=0.3)
    return hooked(made.eval(), tokenizer)


@pytest.fixture(scope="module")
def models(hf_factory: Callable[..., Any], plain_tokenizer: Any) -> dict[str, HookedModel]:
    """Separate projections with grouped keys; joint ones; parallel blocks. In float64."""
    bases = {
        "llama": hf_factory("llama", plain_tokenizer, num_hidden_layers=2),
        "gpt2": hf_factory("gpt2", plain_tokenizer),
        "neox": other_architectures(plain_tokenizer)["neox"],
    }
    options = {"llama": {"lora_alpha": 6}, "gpt2": {"renormalize": False}, "neox": {}}
    return {
        name: adapted(base.double(), plain_tokenizer, TARGETS[name], **options[name])
        for name, base in bases.items()
    }


def scored(model: HookedModel, method: str = "eap", **options: Any) -> ExpertEdgeEffects:
    return patch_expert_edges(
        model, CLEAN, CORRUPTED, METRIC, method=method, progress=False, **options
    )


def by_edge(result: ExpertEdgeEffects) -> dict[tuple[str, str], Tensor]:
    return dict(zip(result.edges, result.values[0], strict=True))


def slope_of(function: Callable[[float], float]) -> float:
    """At zero, to fourth order."""
    size = 1e-2
    near, far = (function(step) - function(-step) for step in (size, 2 * size))
    return (8 * near - far) / (12 * size)


@pytest.mark.parametrize("name", list(TARGETS))
def test_scores_are_those_of_whole_runs(name: str, models: dict[str, HookedModel]) -> None:
    """Exact ones, and to first order the slope of a small part of the change."""
    model, edges = models[name], EDGES[name]
    tokens = torch.tensor(CORRUPTED[0])
    runs = seen(model, torch.tensor(CLEAN[0]))[1], seen(model, tokens)[1]
    exact, eap = (by_edge(scored(model, method, edges=edges)) for method in ("exact", "eap"))
    unpatched = float(METRIC(patched(model, tokens, runs, edges[0], size=0)))
    for edge in edges:

        def part(size: float, edge: tuple[str, str] = edge) -> float:
            return float(METRIC(patched(model, tokens, runs, edge, size=size)))

        assert float(exact[edge]) == pytest.approx(part(1) - unpatched, rel=1e-5, abs=1e-6), edge
        # Norms of this Llama compute in float32 even so.
        close: dict[str, Any] = (
            {"rel": 2e-3, "abs": 3e-5} if name == "llama" else {"rel": 1e-5, "abs": 1e-8}
        )
        assert float(eap[edge]) == pytest.approx(slope_of(part), **close), edge
    assert sum(abs(float(exact[edge])) > 1e-3 for edge in edges) > len(edges) / 2


@pytest.mark.parametrize("name", list(TARGETS))
def test_all_edges_of_writers_sum_to_their_attribution_as_a_node(
    name: str, models: dict[str, HookedModel]
) -> None:
    model = models[name]
    result = by_edge(scored(model, all_edges=True))
    options: dict[str, Any] = {"method": "attribution", "progress": False}
    for component in ("resid_pre", "attn_out", "mlp_out"):
        nodes = patch(model, CLEAN, CORRUPTED, METRIC, component=component, **options).values[0]
        for layer in range(1 if component == "resid_pre" else model.cfg.n_layers):
            begins = {"resid_pre": "input", "attn_out": f"a{layer}.", "mlp_out": f"m{layer}"}
            found = sum(
                value
                for (writer, _), value in result.items()
                if f"{writer}.".startswith(begins[component])
            )
            torch.testing.assert_close(found, nodes[layer], **CLOSE)


def test_parts_of_an_mlp_sum_to_the_edges_of_the_whole(
    hf_factory: Callable[..., Any], plain_tokenizer: Any
) -> None:
    """``patch_edges`` takes an adapter on MLPs, whose experts it sees as parts of them."""
    base = hf_factory("llama", plain_tokenizer, num_hidden_layers=2)
    model = adapted(base, plain_tokenizer, MLP)
    how: dict[str, Any] = {"method": "eap-ig", "steps": 2, "progress": False}
    whole = patch_edges(model, CLEAN, CORRUPTED, METRIC, **how)
    parts = by_edge(patch_expert_edges(model, CLEAN, CORRUPTED, METRIC, all_edges=True, **how))
    sums = torch.zeros_like(whole.values[0])
    for (writer, reader), value in parts.items():
        of_node = (name.split(".")[0] if name[0] == "m" else name for name in (writer, reader))
        sums[whole.graph.index(tuple(of_node))] += value  # type: ignore[arg-type]
    torch.testing.assert_close(sums, whole.values[0].nan_to_num(), **CLOSE)


@torch.no_grad()
def test_parts_of_a_projection_sum_to_the_slope_of_the_whole(
    models: dict[str, HookedModel],
) -> None:
    """The whole value projection reads a little more: hooked where all its experts read."""
    model, point = models["llama"], "blocks.1.attn.v.hook_in"
    parts = by_edge(scored(model, all_edges=True))
    inside = [*(f"a1.h{unit}<v>" for unit in range(2)), *(f"a1.v.e{expert}" for expert in range(4))]
    (_, clean), (_, run) = (seen(model, torch.tensor(ids[0])) for ids in (CLEAN, CORRUPTED))
    change = written(model, clean, "m0") - written(model, run, "m0")

    def whole(size: float) -> float:
        new = model.blocks[1].ln1(run["blocks.1.hook_resid_pre"][None] + size * change)
        return float(METRIC(seen(model, torch.tensor(CORRUPTED[0]), [(point, put(new))])[0]))

    slope = slope_of(whole)
    assert abs(slope) > 1e-3
    found = sum(float(parts["m0", reader]) for reader in inside)
    assert found == pytest.approx(slope, rel=2e-3)


def test_the_gradient_of_a_single_chosen_expert_by_hand() -> None:
    """A gate that is always 1 has no slope: what is left is s·AᵀBᵀG, here with whole numbers."""
    weights = ExpertWeights(
        down=torch.tensor([[1.0, 2.0], [3.0, -1.0]]),
        up=torch.tensor([[1.0, 0.0], [2.0, 5.0], [0.0, 1.0]]),
        router=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        r=1,
    )
    config = MoELoRAConfig(r=1, num_experts=2, top_k=1, lora_alpha=2, target_modules=["q_proj"])
    projection = AdaptedProjection("blocks.0.attn.q", 0, "attn.q", 2)
    experts = ReadingExperts(Experts(0, "attn.q", 2), projection, weights, config, {})
    x = torch.tensor([[[4.0, 1.0]]])  # goes to expert 0
    # B₀ A₀ x = (1, 2, 0) · 6, and the scaling is 2.
    torch.testing.assert_close(experts.added(x), torch.tensor([[[12.0, 24.0, 0.0]]]))
    torch.testing.assert_close(experts.added(x, 1), torch.zeros(1, 1, 3))
    at_output = torch.tensor([[[1.0, 1.0, 7.0]]])
    found = experts.gradients(x, torch.tensor([[[1.0, 0.0]]]), at_output)
    # Bᵀ₀ G = 3, so 2 · 3 · (1, 2).
    torch.testing.assert_close(found, torch.tensor([[[[6.0, 12.0]], [[0.0, 0.0]]]]))


def test_an_expert_that_is_never_chosen_does_nothing(
    hf_factory: Callable[..., Any], plain_tokenizer: Any
) -> None:
    base = hf_factory("llama", plain_tokenizer, num_hidden_layers=2)
    targets = ["q_proj", "o_proj"]
    model = adapted(base, plain_tokenizer, targets, num_experts=8, top_k=1)
    chosen: set[str] = set()

    def note(value: Tensor, hook: Any) -> None:
        point = hook.name.split(".")
        for expert in (value != 0).any(dim=1).any(dim=0).nonzero()[:, 0].tolist():
            chosen.add(f"a{point[1]}.{point[3]}.e{expert}")

    hooks = [(name, note) for name in model.hook_dict if name.endswith("hook_gate")]
    for ids in (CLEAN, CORRUPTED):
        model.run_with_hooks(torch.tensor(ids), fwd_hooks=hooks)
    never = {name for some in find_nodes(model).experts for name in some.names} - chosen
    eap = by_edge(scored(model))
    writes = [edge for edge in eap if edge[0] in never]
    exact = by_edge(scored(model, "exact", edges=writes[::7]))
    assert never & {name for name, _ in eap}
    assert never & {name for _, name in eap}
    assert all(value == 0 for edge, value in eap.items() if never & set(edge))
    assert all(abs(value) < 1e-6 for value in exact.values())
    assert any(value != 0 for value in eap.values())


def test_pairs_that_do_not_differ_change_nothing_and_chunks_neither(
    models: dict[str, HookedModel],
) -> None:
    model = models["llama"]
    prompts = [*CORRUPTED, [40, 41, 42]], [*CLEAN, [40, 52, 42]]
    metric = LogitDifference(torch.tensor([3, 14]), torch.tensor([65, 35]))
    edges = EDGES["llama"][::3]
    for method in ("eap", "exact"):
        options: dict[str, Any] = {"method": method, "edges": edges, "progress": False}
        both = patch_expert_edges(model, *prompts, metric, **options)
        for row in range(2):
            single = metric.take(torch.tensor([row]))
            alone = patch_expert_edges(
                model, [prompts[0][row]], [prompts[1][row]], single, **options
            )
            torch.testing.assert_close(both.values[row], alone.values[0], rtol=1e-5, atol=1e-6)
        same = patch_expert_edges(model, prompts[0], prompts[0], metric, **options)
        assert float(same.values.abs().max()) < 1e-12


def test_a_norm_behind_the_attention_is_for_readers_alone(plain_tokenizer: Any) -> None:
    base = other_architectures(plain_tokenizer)["gemma3"].double()
    model = adapted(base, plain_tokenizer, ["q_proj", "up_proj"])
    edges = [("m0", "a1.q.e1"), ("input", "m1.in.e2")]
    tokens = torch.tensor(CORRUPTED[0])
    runs = seen(model, torch.tensor(CLEAN[0]))[1], seen(model, tokens)[1]
    for edge, value in by_edge(scored(model, "exact", edges=edges)).items():
        whole, none = (METRIC(patched(model, tokens, runs, edge, size=size)) for size in (1, 0))
        assert float(value) == pytest.approx(float(whole - none), rel=1e-5, abs=1e-6)
    base = other_architectures(plain_tokenizer)["gemma3"]
    with pytest.raises(UserError, match="through a norm"):
        scored(adapted(base, plain_tokenizer, ["q_proj", "down_proj"]))


def test_results_are_tabled_drawn_and_saved(models: dict[str, HookedModel], tmp_path: Path) -> None:
    result = scored(models["gpt2"])
    again = ExpertEdgeEffects.load(result.save(tmp_path / "edges.safetensors"))
    torch.testing.assert_close(again.values, result.values)
    for name in ("edges", "method", "metric", "groups", "seed", "left_out"):
        assert getattr(again, name) == getattr(result, name)
    frame = result.to_dataframe()
    assert list(frame.columns) == ["writer", "reader", "score", "ci_low", "ci_high", "rank"]
    assert len(frame) == len(result.edges)
    assert frame["score"].abs().is_monotonic_decreasing
    assert all(".e" in writer + reader for writer, reader in result.edges)
    assert result.agreement(again)["spearman"] == pytest.approx(1.0)
    drawn: Any = result.plot(n=5).data[0]
    assert len(drawn.x) == len(drawn.y) == 5
    assert "edges of experts (eap) on LogitDifference, 1 prompts" in result._shown().words
    with pytest.raises(UserError, match="no result of edges"):
        ExpertEdgeEffects.load(tmp_path / "none.safetensors")
    for scores in (result, made_up_edges()):
        with pytest.raises(UserError, match="a seed is zero or more, not -1"):
            replace(scores, seed=-1)
        with pytest.raises(UserError, match="prompts but 2 groups"):
            replace(scores, groups=("a", "b"))


def test_intervals_hold_the_mean_and_nothing_stays_on_the_model(
    models: dict[str, HookedModel],
) -> None:
    model = models["llama"]
    modules = [(name, id(module)) for name, module in model.named_modules()]
    tokens = torch.randint(4, 300, (8, 5), generator=torch.Generator().manual_seed(1))
    corrupted = tokens.clone()
    corrupted[:, 2] += 9
    metric = LogitDifference(torch.arange(8), torch.arange(8) + 20)
    frame = patch_expert_edges(model, tokens, corrupted, metric, progress=False).to_dataframe(50)
    assert (frame["ci_low"] <= frame["score"]).all()
    assert (frame["score"] <= frame["ci_high"]).all()
    assert [(name, id(module)) for name, module in model.named_modules()] == modules
    assert not any(point.has_hooks() for point in model.hook_dict.values())


def test_experts_elsewhere_are_left_out_and_said(
    hf_factory: Callable[..., Any], plain_tokenizer: Any
) -> None:
    base = hf_factory("llama", plain_tokenizer, num_hidden_layers=1, tie_word_embeddings=False)
    model = adapted(base, plain_tokenizer, ["v_proj", "lm_head"])
    result = scored(model)
    assert result.left_out == ("unembed",)
    assert {edge for edge in result.edges if "unembed" in edge[1]} == set()
    base = hf_factory("llama", plain_tokenizer, num_hidden_layers=1, tie_word_embeddings=False)
    with pytest.raises(UserError, match="no expert of this adapter is a node"):
        scored(adapted(base, plain_tokenizer, ["lm_head"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": ["a0.h1->a1.q.e9"]}, "a1.q.e9"),
        ({"edges": ["a1.h1->a1.q.e0"]}, "does not run before"),
        ({"edges": ["a0.q.e1->m1"]}, "nothing in this model that writes"),
        ({"edges": []}, "there are no edges"),
        ({"method": "clean-corrupted"}, "method"),
        ({"steps": 0}, "steps"),
        ({"budget": 1000}, "MiB"),
    ],
)
def test_wrong_options_are_told(
    options: dict[str, Any], message: str, models: dict[str, HookedModel]
) -> None:
    with pytest.raises(UserError, match=message):
        scored(models["llama"], **options)


def test_wrong_inputs_are_told(models: dict[str, HookedModel], tiny_llama: HookedModel) -> None:
    model = models["llama"]
    quiet: dict[str, Any] = {"progress": False}
    with pytest.raises(UserError, match="no MoELoRA experts"):
        scored(tiny_llama)
    with pytest.raises(UserError, match="equal lengths"):
        patch_expert_edges(model, [[5, 9, 7]], [[5, 9]], METRIC, **quiet)
    clean, corrupted = (TokenBatch.from_lists(ids) for ids in (CLEAN, CORRUPTED))
    with pytest.raises(UserError, match="no gradient"):
        patch_expert_edges(
            model, clean, corrupted, lambda logits: logits.argmax(-1).double(), **quiet
        )
