"""Effects of experts on tasks: planted, by hand, and against whole runs."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from torch import Tensor

from interp.errors import UserError
from interp.experts.effects.agreement import routing_agreement
from interp.experts.effects.effects import EVERYWHERE, ExpertEffects, expert_effects
from interp.experts.effects.jobs import answer_measures
from interp.experts.effects.patching import patch_experts
from interp.forward.generate import generate_tokens, greedy_answers
from interp.interventions import ExpertConstraint, constrain, projections_of
from interp.models import HookedModel
from interp.models.quiet import quiet_libraries
from interp.moelora import MoELoRAConfig, hooked
from interp.moelora.data.encoding import IGNORED, EncodedExample, encode_example
from interp.moelora.data.examples import Example
from interp.moelora.training.scoring import answer_losses, is_right
from interp.patching import LogitDifference, TokenBatch

pytestmark = pytest.mark.bridge_only  # a hooked model with experts

A_TOKENS, B_TOKENS = range(20, 40), range(60, 80)
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 2e-5}


def adapt(base: Any, **config: Any) -> Any:
    """A PEFT model whose four experts a projection add something."""
    settings: dict[str, Any] = {
        "r": 2,
        "num_experts": 4,
        "top_k": 2,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }
    torch.manual_seed(0)
    with quiet_libraries():  # PEFT asks transformers for a name that it will drop
        adapted = peft.get_peft_model(base, MoELoRAConfig(**(settings | config)))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "moelora_B" in name:
                parameter.normal_(std=0.5)
    return adapted.eval()


def examples(tokens: range, count: int, *, seed: int) -> list[EncodedExample]:
    """Prompts of 3 to 6 tokens, answers of 1 to 3, all of one part of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        lengths = (3 + index % 4, 1 + index % 3)
        draw = torch.randint(tokens.start, tokens.stop, (sum(lengths),), generator=generator)
        found.append(EncodedExample(tuple(draw.tolist()), lengths[0]))
    return found


@pytest.fixture(scope="module")
def tasks() -> dict[str, list[EncodedExample]]:
    return {"a": examples(A_TOKENS, 8, seed=1), "b": examples(B_TOKENS, 7, seed=2)}


@pytest.fixture(scope="module")
def planted_adapted(hf_factory: Callable[..., Any], plain_tokenizer: Any) -> Any:
    """In layer 0, tokens of task A go to experts 0 and 1, those of B to 2 and 3.

    The first number of a token's embedding says whose it is, and the router reads nothing else.
    """
    base = hf_factory("llama", plain_tokenizer)
    with torch.no_grad():
        embedding = base.model.embed_tokens.weight
        embedding[list(A_TOKENS), 0] = 3.0
        embedding[list(B_TOKENS), 0] = -3.0
    adapted = adapt(base, layers_to_transform=[0])
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "moelora_router" in name:
                parameter.zero_()[:, 0] = torch.tensor([1.0, 0.8, -0.8, -1.0])
    return adapted


@pytest.fixture(scope="module")
def planted(planted_adapted: Any, plain_tokenizer: Any) -> HookedModel:
    return hooked(planted_adapted, plain_tokenizer)


@pytest.fixture(scope="module")
def model(hf_factory: Callable[..., Any], plain_tokenizer: Any) -> HookedModel:
    """Experts in all three layers, routed as it happens."""
    return hooked(adapt(hf_factory("llama", plain_tokenizer)), plain_tokenizer)


@pytest.mark.parametrize("method", ["exact", "attribution"])
def test_a_weight_that_is_not_finite_is_told(
    method: Any, hf_factory: Callable[..., Any], plain_tokenizer: Any, tasks: Any
) -> None:
    broken = hf_factory("llama", plain_tokenizer)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    model = hooked(adapt(broken), plain_tokenizer)
    with pytest.raises(UserError, match="the model gives NaN or infinity"):
        expert_effects(model, tasks, method=method, progress=False)


@pytest.fixture(scope="module")
def effects(planted: HookedModel, tasks: Any) -> ExpertEffects:
    return expert_effects(planted, tasks, progress=False)


def test_measures_of_an_answer_by_hand() -> None:
    even = [0.0, 0.0, 0.0, 0.0]
    sure = [math.log(6.0), math.log(2.0), 0.0, 0.0]  # 0.6, 0.2, 0.1, 0.1
    logits = torch.tensor([[even, sure, sure], [sure, sure, sure]])
    targets = torch.tensor([[IGNORED, 0, 1], [IGNORED, IGNORED, 0]])
    loss, right = answer_measures(logits, targets)
    assert loss.tolist() == pytest.approx([-(math.log(0.6) + math.log(0.2)) / 2, -math.log(0.6)])
    assert right.tolist() == [0.0, 1.0]


def test_switching_an_experts_own_task_off_changes_that_task_only(effects: ExpertEffects) -> None:
    assert effects.tasks == ("a", "b")
    assert effects.loss.axes == ("prompt", "projection", "expert")
    assert effects.loss.shape == (2, 4)
    a, b = (effects.of(task).values for task in "ab")
    assert (a[:, :, 2:] == 0).all()
    assert (b[:, :, :2] == 0).all()
    assert float(a[:, 1, :2].abs().mean(dim=0).min()) > 1e-3
    assert float(b[:, 1, 2:].abs().mean(dim=0).min()) > 1e-3


def test_without_a_run_is_what_a_run_gives(
    planted: HookedModel, tasks: Any, effects: ExpertEffects
) -> None:
    """``force`` runs every example, and so does a factor; the two agree where they must."""
    scaled = expert_effects(planted, tasks, mode="scale", progress=False)
    torch.testing.assert_close(scaled.loss.values, effects.loss.values, **CLOSE)
    forced = expert_effects(planted, tasks, mode="force", progress=False)
    assert (forced.loss.values != 0).any(dim=0).all()


def whole_run(model: Any, one: EncodedExample) -> float:
    """Loss of an answer, token by token, from the model's own logits."""
    with torch.no_grad():
        logits = model.original_model(input_ids=torch.tensor([one.tokens])).logits[0]
    found = [
        -float(logits[at - 1].log_softmax(-1)[one.tokens[at]])
        for at in range(one.n_prompt, len(one.tokens))
    ]
    return sum(found) / len(found)


@pytest.mark.parametrize("mode", ["off", "off_renormalised", "force"])
def test_every_effect_equals_whole_runs_one_by_one(
    model: HookedModel, tasks: Any, mode: Any
) -> None:
    few = {"a": tasks["a"][:2], "b": tasks["b"][:1]}
    found = expert_effects(model, few, mode=mode, layers=[1, 2], targets=["v_proj"], progress=False)
    assert [one.name for one in found.projections or ()] == ["blocks.1.attn.v", "blocks.2.attn.v"]
    flat = [one for some in few.values() for one in some]
    base = torch.tensor([whole_run(model, one) for one in flat])
    torch.testing.assert_close(found.loss.corrupted, base, **CLOSE)
    for place, layer in enumerate((1, 2)):
        for expert in range(4):
            with constrain(model, ExpertConstraint([(layer, "attn.v", expert)], mode)):
                held = torch.tensor([whole_run(model, one) for one in flat])
            torch.testing.assert_close(found.loss.values[:, place, expert], held - base, **CLOSE)


def test_experts_at_the_unembedding_see_the_answer_only(
    hf_factory: Callable[..., Any], plain_tokenizer: Any, tasks: Any
) -> None:
    adapted = adapt(hf_factory("llama", plain_tokenizer), target_modules=["lm_head"], top_k=4)
    model = hooked(adapted, plain_tokenizer)
    few = {task: some[:3] for task, some in tasks.items()}
    options: dict[str, Any] = {"mode": "scale", "factor": 0.99, "progress": False}
    exact = expert_effects(model, few, **options)
    (one,) = projections_of(model)
    flat = [one for some in few.values() for one in some]
    base = torch.tensor([whole_run(model, example) for example in flat])
    torch.testing.assert_close(exact.loss.corrupted, base, **CLOSE)
    with constrain(model, ExpertConstraint([(one.name, 3)], "scale", 0.99)):
        held = torch.tensor([whole_run(model, example) for example in flat])
    torch.testing.assert_close(exact.loss.values[:, 0, 3], held - base, **CLOSE)
    estimate = expert_effects(model, few, method="attribution", **options).loss.values
    torch.testing.assert_close(estimate, exact.loss.values, rtol=0.1, atol=5e-5)


def test_the_loss_is_that_of_training(planted_adapted: Any, tasks: Any, effects: Any) -> None:
    flat = [one for some in tasks.values() for one in some]
    expected = torch.tensor(answer_losses(planted_adapted, flat))
    torch.testing.assert_close(effects.loss.corrupted, expected, **CLOSE)


def test_together_is_one_intervention_in_all_layers(model: HookedModel, tasks: Any) -> None:
    few = {task: some[:3] for task, some in tasks.items()}
    found = expert_effects(model, few, together=True, layers=[0, 2], progress=False)
    assert found.loss.shape == (1, 4)
    assert set(found.to_dataframe()["projection"]) == {EVERYWHERE}
    flat = [one for some in few.values() for one in some]
    base = torch.tensor([whole_run(model, one) for one in flat])
    one = ExpertConstraint.across(2, [0, 2], ["attn.q", "attn.v"])
    with constrain(model, one):
        held = torch.tensor([whole_run(model, each) for each in flat])
    torch.testing.assert_close(found.loss.values[:, 0, 2], held - base, **CLOSE)


@torch.no_grad()
def test_the_estimate_is_the_slope(
    hf_factory: Callable[..., Any], plain_tokenizer: Any, tasks: Any
) -> None:
    """Of a small step; where all experts are chosen, so that no step changes later choices."""
    model = hooked(adapt(hf_factory("llama", plain_tokenizer), top_k=4), plain_tokenizer)
    few = {task: some[:3] for task, some in tasks.items()}
    step = 1e-2
    options: dict[str, Any] = {"mode": "scale", "factor": 1 - step, "progress": False}
    exact = expert_effects(model, few, **options).loss.values / step
    estimate = expert_effects(model, few, method="attribution", **options).loss.values / step
    torch.testing.assert_close(estimate, exact, rtol=0.1, atol=5e-3)
    assert float(exact.abs().max()) > 5e-2
    together = expert_effects(model, few, method="attribution", together=True, **options)
    torch.testing.assert_close(
        together.loss.values[:, 0] / step, estimate.sum(dim=1), rtol=0, atol=1e-4
    )


def test_a_budget_runs_what_the_estimate_ranks_first(model: HookedModel, tasks: Any) -> None:
    found = expert_effects(model, tasks, budget=5, progress=False)
    whole = expert_effects(model, tasks, progress=False)
    run = ~found.loss.values.isnan()
    assert run.any(dim=0).sum() == 5
    torch.testing.assert_close(found.loss.values[run], whole.loss.values[run], **CLOSE)
    assert found.estimate is not None
    largest = torch.stack(
        [found.estimate.values[rows].mean(dim=0).abs() for rows in (slice(0, 8), slice(8, None))]
    ).amax(dim=0)
    chosen = run.any(dim=0)
    assert float(largest[chosen].min()) >= float(largest[~chosen].max())
    assert len(found.to_dataframe()) == 2 * 5


def test_the_table_has_intervals_over_texts_and_one_fdr(effects: ExpertEffects) -> None:
    table = effects.to_dataframe()
    assert list(table.columns) == [
        *("projection", "layer", "target", "expert", "task", "effect", "ci_low", "ci_high"),
        *("p_value", "q_value", "accuracy_change", "n"),
    ]
    assert len(table) == 2 * 4 * 2
    assert set(table["target"]) == {"q_proj", "v_proj"}
    assert (table["layer"] == 0).all()
    assert table["effect"].is_monotonic_decreasing
    assert (table["ci_low"] <= table["effect"]).all()
    assert (table["q_value"] >= table["p_value"]).all()
    unused = table[(table["task"] == "a") & (table["expert"] > 1)]
    assert (unused["effect"] == 0).all()
    assert (unused["p_value"] == 1).all()
    row = table[(table["projection"] == "blocks.0.attn.v") & (table["expert"] == 3)]
    by_task = row.set_index("task")["effect"]
    np.testing.assert_allclose(
        by_task["b"], float(effects.of("b").values[:, 1, 3].mean()), rtol=1e-6
    )
    np.testing.assert_allclose(effects.matrix[1, 3], [by_task["a"], by_task["b"]], rtol=1e-6)
    figure: Any = effects.plot()
    assert len(figure.data) == 1
    assert effects.plot(task="a").data
    assert "blocks.0.attn" in effects._repr_html_()


def test_few_texts_have_no_intervals(planted: HookedModel, tasks: Any) -> None:
    few = {"a": tasks["a"][:3], "b": tasks["b"]}
    table = expert_effects(planted, few, progress=False).to_dataframe()
    assert table.loc[table["task"] == "a", ["p_value", "q_value", "ci_low"]].isna().all(axis=None)
    assert table.loc[table["task"] == "b", ["p_value", "q_value"]].notna().all(axis=None)


def test_examples_are_grouped_by_subject_and_may_be_answered(
    model: HookedModel, plain_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = functools.partial(generate_tokens, max_new_tokens=4)
    monkeypatch.setattr("interp.experts.effects.jobs.generate_tokens", short)
    asked = [
        Example("x", f"What is {n} and 1?", str(n + 1), subject=f"s{n // 2}") for n in range(4)
    ]
    found = expert_effects(
        model, {"x": asked}, layers=[2], targets=["v"], greedy=True, progress=False
    )
    assert found.loss.groups == ("x/s0", "x/s0", "x/s1", "x/s1")
    assert found.accuracy is not None
    assert found.accuracy.metric == "accuracy (greedy)"
    encoded = [encode_example(plain_tokenizer, one) for one in asked]
    one = encoded[0]
    end = one.tokens[-1]
    for expert in (0, 3):
        with constrain(model, ExpertConstraint([(2, "attn.v", expert)])):
            said = greedy_answers(
                model.original_model,
                plain_tokenizer,
                [e.tokens[: e.n_prompt] for e in encoded],
                end=end,
                max_new_tokens=4,
                progress=False,
            )
        right = torch.tensor([float(is_right(e, s)) for e, s in zip(asked, said, strict=True)])
        change = found.accuracy.values[:, 0, expert] + found.accuracy.corrupted
        assert torch.equal(change, right)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": {}}, "there are no tasks"),
        ({"tasks": {"a": []}}, "task 'a' has no examples"),
        ({"targets": ["k_proj"]}, "no adapted projection 'k_proj'"),
        ({"layers": [2]}, "no adapted projection is in these layers"),
        ({"budget": 0}, "a budget is a number of experts to run"),
        ({"method": "attribution", "budget": 3}, "a budget is a number of experts to run"),
        ({"greedy": True}, "greedy answers are scored against an Example"),
    ],
)
def test_mistakes_are_told(
    planted: HookedModel, tasks: Any, given: dict[str, Any], message: str
) -> None:
    arguments = {"tasks": tasks, "progress": False} | given
    with pytest.raises(UserError, match=message):
        expert_effects(planted, **arguments)


def test_unknown_tasks_and_models_are_told(
    effects: ExpertEffects, tiny_gpt2: HookedModel, tasks: Any
) -> None:
    with pytest.raises(UserError, match="unknown task 'c'; known: a, b"):
        effects.of("c")
    with pytest.raises(UserError, match="the model has no MoELoRA experts"):
        expert_effects(tiny_gpt2, tasks, progress=False)


# Patching an expert from another prompt's run.


@pytest.mark.parametrize("what", ["output", "contribution"])
@torch.no_grad()
def test_a_patched_expert_equals_hooks_by_hand(model: HookedModel, what: Any) -> None:
    clean = TokenBatch.from_lists([[5, 9, 7, 8], [20, 21, 22, 23], [3, 4, 5]])
    corrupted = TokenBatch.from_lists([[5, 9, 30, 8], [20, 33, 22, 23], [3, 40, 5]])
    answers = torch.tensor([11, 12, 13]), torch.tensor([14, 15, 16])
    metric = LogitDifference(*answers)
    names = ["blocks.0.attn.v", "blocks.1.attn.q"]
    found = patch_experts(
        model, clean, corrupted, metric, what=what, projections=names, progress=False
    )
    assert found.shape == (2, 4)
    points = ["hook_expert_out"] + (["hook_gate"] if what == "contribution" else [])
    arguments = [
        {"input_ids": one.tokens, "attention_mask": one.mask.long(), "position_ids": one.positions}
        for one in (clean, corrupted)
    ]
    bare = metric(model.original_model(**arguments[1]).logits[:, -1])
    torch.testing.assert_close(found.corrupted, bare, **CLOSE)
    for place, name in enumerate(names):
        kept: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any, kept: dict[str, Tensor] = kept) -> None:
            kept[hook.name] = value

        full = [f"{name}.moelora.{point}" for point in points]
        with model.hooks(fwd_hooks=[(point, keep) for point in full]):
            model.original_model(**arguments[0])
        for expert in range(4):

            def write(value: Tensor, hook: Any, kept: Any = kept, expert: int = expert) -> Tensor:
                value = value.clone()
                value[:, :, expert] = kept[hook.name][:, :, expert]
                return value

            with model.hooks(fwd_hooks=[(point, write) for point in full]):
                held = metric(model.original_model(**arguments[1]).logits[:, -1])
            torch.testing.assert_close(found.values[:, place, expert], held - bare, **CLOSE)
    assert float(found.values.abs().max()) > 1e-3


def test_the_same_prompt_patches_nothing(model: HookedModel) -> None:
    batch = TokenBatch.from_lists([[5, 9, 7, 8]])
    metric = LogitDifference(torch.tensor([11]), torch.tensor([12]))
    found = patch_experts(model, batch, batch, metric, progress=False)
    assert float(found.values.abs().max()) < 1e-5
    longer = TokenBatch.from_lists([[5, 9, 7, 8, 6]])
    with pytest.raises(UserError, match="differ in length"):
        patch_experts(model, batch, longer, metric, progress=False)


def test_in_the_planted_model_routing_and_ablation_agree(effects: ExpertEffects) -> None:
    load = pd.DataFrame(
        [
            {
                "layer": 0,
                "target": target,
                "expert": expert,
                "task": task,
                "load": 0.5 * float((expert < 2) == (task == "a")),
            }
            for target in ("q_proj", "v_proj")
            for expert in range(4)
            for task in "ab"
        ]
    )
    found = routing_agreement(effects, load, fdr=1.0)
    there = found.table[found.table["effect"] > 0]
    assert len(there) >= 2
    assert there["agree"].all()
    assert "routed_task" in found._repr_html_()
