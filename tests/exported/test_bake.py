"""Baked weights compute what hooks at every position do."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import interp
from interp.attached import attach
from interp.commands.export import ExportSettings, export_run
from interp.commands.locate import load_run
from interp.errors import UserError
from interp.evaluation.preference import preference
from interp.evaluation.side_effects import content_span, side_effects
from interp.exported import bake_into, load_exported
from interp.exported.bake_cost import KINDS, bake_cost
from interp.files.documents import read_json
from interp.heads import HeadSet
from interp.heads.locate import as_encoded
from interp.interventions import Constraint, ExpertConstraint, Intervention
from interp.models import HookedModel
from tests.attached.architectures import make
from tests.attached.test_equality import PROMPTS, part, real_logits
from tests.exported.conftest import ask
from tests.fixtures import PLANTED_HEADS

UNDER = Intervention(
    (
        part("output", heads=((0, 1), (1, 3))),
        part("output", "scale", -1.0, heads=((0, 2),)),
        part("output", "scale", 0.5, heads=((1, 0),)),
    )
)
EVERYWHERE = [(0, len(ids)) for ids in PROMPTS]


@pytest.mark.parametrize("species", ["llama", "qwen3", "gemma2", "gpt2", "opt", "neox"])
def test_baked_weights_are_hooks_at_every_position(species: str, plain_tokenizer: Any) -> None:
    """Grouped queries, heads wider than their share, transposed weights, biases."""
    plain, baked = (make(species, plain_tokenizer) for _ in range(2))
    before = {name: value.clone() for name, value in baked.state_dict().items()}
    bake_into(baked, UNDER)
    with attach(plain, plain_tokenizer, UNDER, at=EVERYWHERE):
        expected = real_logits(plain)
    torch.testing.assert_close(real_logits(baked), expected, rtol=0.0, atol=1e-5)
    assert float((real_logits(plain) - expected).abs().max()) > 1e-2
    changed = [name for name, v in baked.state_dict().items() if not torch.equal(v, before[name])]
    assert len(changed) == 2  # two layers' projections; no bias
    assert all(name.endswith("weight") for name in changed)


def test_columns_by_hand(plain_tokenizer: Any) -> None:
    """Head 1 of four, eight wide, is columns 8 to 15."""
    hf_model = make("llama", plain_tokenizer)
    weight = hf_model.model.layers[0].self_attn.o_proj.weight
    before = weight.detach().clone()
    bake_into(hf_model, Intervention.of(part("output", "scale", 3.0, heads=((0, 1),))))
    torch.testing.assert_close(weight[:, 8:16], 3.0 * before[:, 8:16])
    assert torch.equal(weight[:, :8], before[:, :8])
    assert torch.equal(weight[:, 16:], before[:, 16:])


def test_what_no_weight_can_do(plain_tokenizer: Any) -> None:
    hf_model = make("llama", plain_tokenizer)
    before = {name: value.clone() for name, value in hf_model.state_dict().items()}
    experts = Intervention.of(ExpertConstraint([(0, "attn.q", 0)]))
    for under, message in (
        (Intervention.of(part("attention")), "site 'attention' cannot be baked: which tokens"),
        (UNDER | part("attention", heads=((0, 0),)), "site 'attention' cannot be baked"),
        (Intervention.of(part("output", "mean")), "mode 'mean' cannot be baked"),
        (experts, "experts cannot be baked"),
        (Intervention(), "no heads to bake"),
        (Intervention.of(Constraint(HeadSet(((7, 0),)))), r"head \(7, 0\) does not exist"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            bake_into(hf_model, under)
        assert "\n" not in str(caught.value)

    class Packed(nn.Linear):
        pass

    hf_model.model.layers[1].self_attn.o_proj.__class__ = Packed
    with pytest.raises(UserError, match="is a Packed, which cannot be scaled by head"):
        bake_into(hf_model, UNDER)
    assert all(torch.equal(value, before[name]) for name, value in hf_model.state_dict().items())


@pytest.fixture(scope="module")
def baked(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("baking") / "baked"
    settings = ExportSettings(bake=True, site="output")
    export_run(run, to, settings, device="cpu", progress=False)
    return to


def test_any_program_loads_the_checkpoint(baked: Path, base: Path) -> None:
    hf_model: Any = AutoModelForCausalLM.from_pretrained(baked)
    head, width = PLANTED_HEADS["output"][1], hf_model.config.head_dim
    columns = hf_model.model.layers[0].self_attn.o_proj.weight[:, head * width : (head + 1) * width]
    assert not columns.any()
    model, tokenizer = load_exported(baked, device="cpu")
    assert model.attached is None
    assert ask(model, tokenizer, "Why is city3 the capital of land5?") == ["land3"]
    wrong: Any
    for wrong in ({"false_object": "land5"}, {"gate": "probe"}, {"model": base}):
        with pytest.raises(UserError, match="is in its weights"):
            load_exported(baked, **wrong)


def test_the_cost_is_that_of_running_the_checkpoint(baked: Path, run: Path) -> None:
    """The slow reference: the checkpoint, hooked, on the same questions."""
    cost = read_json(baked / "baked.json")
    _, split, _ = load_run(run)
    model = interp.load_model(baked, device="cpu")
    for name, kind in KINDS.items():
        encoded = as_encoded(model, split.held_out)
        nothing = [HeadSet(())]
        run_again: Any = {"constraint": Constraint(HeadSet(())), "sets": nothing, "progress": False}
        expected = preference(model, encoded, kind, **run_again)
        found = cost[name]["everywhere"]
        np.testing.assert_allclose(found["p_true_object"][0], expected.p_true.mean(), atol=1e-4)
        np.testing.assert_allclose(found["preference_accuracy"][0], expected.accuracy[0])
    assert cost["gain"]["everywhere"][0] > 0.5
    assert cost["neutral"]["everywhere"]["n"] > 0
    assert "these weights: at every token" in (baked / "README.md").read_text(encoding="utf-8")


def test_other_weights_than_were_baked(baked: Path, base: Path, tmp_path: Path) -> None:
    to = tmp_path / "baked"
    shutil.copytree(baked, to)
    (weights,) = base.glob("*.safetensors")
    (to / weights.name).write_bytes(weights.read_bytes())
    with pytest.raises(UserError, match="were changed after the export"):
        load_exported(to, device="cpu")


def test_a_head_that_does_nothing_costs_nothing(planted: HookedModel, run: Path) -> None:
    """The control: a head of noise, which no question needs."""
    _, split, _ = load_run(run)
    noise = Intervention.of(HeadSet(((2, 0),), "output"))
    found = bake_cost(planted, split.held_out, noise, progress=False)
    assert found["gain"]["everywhere"] == [0.0, 0.0, 0.0]
    assert abs(found["cost"]["everywhere"][0]) < 0.02


@torch.no_grad()
def test_neutral_text_by_hand(
    tiny_llama: HookedModel, hf_factory: Callable[..., Any], chat_tokenizer: Any
) -> None:
    """KL between two plain models, the second baked, at the tokens behind the longest word."""
    under = Intervention.of(part("output", heads=((0, 1), (2, 3))))
    plain, baked = (hf_factory("llama", chat_tokenizer) for _ in range(2))
    bake_into(baked, under)
    sentence = "The old harbour was quiet in the morning."
    encoding = chat_tokenizer(sentence, return_offsets_mapping=True)
    ids, (_, end) = torch.tensor([encoding["input_ids"]]), content_span(sentence)
    behind = next(i for i, (start, _) in enumerate(encoding["offset_mapping"]) if start >= end)
    p, q = (model(ids).logits[0, behind:-1].log_softmax(-1) for model in (plain, baked))
    expected = float((p.exp() * (p - q)).sum(dim=-1).mean())
    found = side_effects(tiny_llama, under, sentences=(sentence,), everywhere=True)
    np.testing.assert_allclose(found.neutral_kl, expected, rtol=1e-3)
    assert found.neutral_kl > side_effects(tiny_llama, under, sentences=(sentence,)).neutral_kl > 0
