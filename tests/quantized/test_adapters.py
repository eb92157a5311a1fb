"""MoELoRA on quantized weights, as QLoRA: trained, saved, loaded, hooked; the base unchanged."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import interp
from interp.errors import UserError
from interp.models import model_info
from interp.moelora import MoELoRAConfig, auxiliary_losses, load_adapter
from interp.moelora.data.encoding import EncodedExample
from interp.moelora.layer import adapted_layers
from interp.moelora.training.training import TrainingSettings, make_trainer
from interp.patching import LogitDifference, TokenBatch, attribute_heads, patch_heads
from interp.patching.edits import ActivationEdit
from interp.quantized import quantization_of, quantized_modules, weight_of

pytestmark = pytest.mark.bridge_only

TARGETS = ["q_proj", "v_proj", "o_proj", "down_proj"]
CONFIG: dict[str, Any] = {
    "r": 2,
    "num_experts": 4,
    "top_k": 2,
    "target_modules": TARGETS,
    "task_type": "CAUSAL_LM",
}


def adapted_model(load: Callable[..., Any], kind: str, *, filled: bool = False) -> Any:
    torch.manual_seed(0)
    adapted = peft.get_peft_model(load(kind), MoELoRAConfig(**CONFIG))
    if filled:
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "moelora_B" in name:
                    weight.normal_(std=0.3)
    return adapted.eval()


def packed_bytes(model: Any) -> dict[str, torch.Tensor]:
    """All that the quantized weights are made of, by name."""
    return {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if "moelora_" not in name
    }


@pytest.fixture
def ids(plain_tokenizer: Any) -> torch.Tensor:
    return torch.randint(2, len(plain_tokenizer), (3, 9))


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids).logits


def train(adapted: Any, ids: torch.Tensor, steps: int = 6) -> list[float]:
    """Plain steps, with the auxiliary losses; each step's language loss."""
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-2)
    losses = []
    for _ in range(steps):
        adapted.train()
        loss = adapted(input_ids=ids, labels=ids).loss
        (loss + auxiliary_losses(adapted).total).backward()
        optimizer.step()
        optimizer.zero_grad()
        adapted.eval()
        logits_of(adapted, ids)  # training goes on after an evaluation
        losses.append(float(loss.detach()))
    return losses


def test_a_fresh_adapter_changes_nothing(kind: str, load: Any, ids: torch.Tensor) -> None:
    expected = logits_of(load(kind), ids)
    assert torch.equal(logits_of(adapted_model(load, kind), ids), expected)
    assert not torch.equal(logits_of(adapted_model(load, kind, filled=True), ids), expected)


def test_training_saving_loading_hooking(
    kind: str, load: Any, ids: torch.Tensor, plain_tokenizer: Any, tmp_path: Path, caplog: Any
) -> None:
    adapted = adapted_model(load, kind)
    assert {layer.moelora_A["default"].dtype for layer in adapted_layers(adapted)} == {
        torch.float32  # PEFT trains adapters in float32, whatever the base computes in
    }
    before, quantization = packed_bytes(adapted), quantization_of(adapted)
    losses = train(adapted, ids)
    assert losses[-1] < 0.7 * losses[0]
    after = packed_bytes(adapted)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert quantization_of(adapted) == quantization

    trained = logits_of(adapted, ids)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    with caplog.at_level(logging.WARNING):
        loaded = load_adapter(load(kind), tmp_path / "adapter").eval()
    assert not caplog.records
    torch.testing.assert_close(logits_of(loaded, ids), trained, rtol=0, atol=1e-5)

    model = interp.moelora.hooked(loaded, plain_tokenizer)
    close = 0.1 if kind == "bfloat16" else 5e-5  # another attention kernel, and rounding behind it
    assert float((logits_of(model.original_model, ids) - trained).abs().max()) < close
    assert model_info(model).dtype == "float32"
    assert quantization_of(model.original_model) == quantization
    assert torch.equal(logits_of(loaded, ids), logits_of(adapted, ids))


def test_a_hooked_adapter_shares_the_packed_weights(
    kind: str, load: Any, ids: torch.Tensor, plain_tokenizer: Any
) -> None:
    adapted = adapted_model(load, kind, filled=True)
    logits_of(adapted, ids)
    model = interp.moelora.hooked(adapted, plain_tokenizer)

    def places(one: Any) -> set[int]:
        modules: list[Any] = [module for _, module in quantized_modules(one)]
        return {module.weight.data_ptr() for module in modules}

    assert places(model.original_model) == places(adapted)
    for (_, ours), (_, theirs) in zip(
        quantized_modules(model.original_model), quantized_modules(adapted), strict=True
    ):
        assert ours is not theirs
        for name in ("quant_state", "state"):
            assert ours.__dict__.get(name) is theirs.__dict__.get(name)


def test_gates_are_read_and_written(
    kind: str, load: Any, ids: torch.Tensor, plain_tokenizer: Any
) -> None:
    adapted = adapted_model(load, kind, filled=True)
    expected = logits_of(load(kind), ids)
    model = interp.moelora.hooked(adapted, plain_tokenizer)
    hooks = [
        (name, lambda gate, hook: torch.zeros_like(gate))
        for name in model.hook_dict
        if name.endswith("moelora.hook_gate")
    ]
    assert len(hooks) == len(TARGETS) * 3
    with torch.no_grad():
        found = model.run_with_hooks(ids, fwd_hooks=hooks)
    close = {"bfloat16": 0.2, "int8": 1e-4}.get(kind, 1e-4)
    torch.testing.assert_close(found, expected, rtol=0, atol=close)


def test_effects_of_an_adapted_quantized_model(
    kind: str, load: Any, plain_tokenizer: Any, hf_factory: Any
) -> None:
    """As those of the same adapter on the same weights as numbers."""
    from tests.quantized.conftest import SIZES, plain_twin

    metric = LogitDifference(torch.tensor([3, 14]), torch.tensor([65, 35]))
    clean = torch.tensor([[5, 9, 7, 8, 30, 31], [40, 41, 42, 43, 44, 45]])
    corrupted = torch.tensor([[5, 9, 7, 81, 30, 31], [40, 41, 52, 43, 44, 45]])
    adapted = adapted_model(load, kind, filled=True)
    plain = plain_twin(load(kind), hf_factory("llama", plain_tokenizer, **SIZES))
    twin = peft.get_peft_model(plain, MoELoRAConfig(**CONFIG)).eval()
    weights = {n: w for n, w in adapted.state_dict().items() if "moelora_" in n}
    twin.load_state_dict(weights, strict=False)
    batch = TokenBatch.from_padded(corrupted)
    edit = ActivationEdit(batch.span_mask([(1, 4), (1, 4)]))
    found, expected = [], []
    for made, into in ((adapted, found), (twin, expected)):
        model = interp.moelora.hooked(made, plain_tokenizer)
        into.append(patch_heads(model, clean, corrupted, metric, progress=False))
        into.append(attribute_heads(model, batch, edit, metrics=[metric], progress=False))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_another_quantization_is_warned_of(
    load: Any, plain_folder: Path, ids: torch.Tensor, tmp_path: Path, caplog: Any
) -> None:
    adapted = adapted_model(load, "nf4", filled=True)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    plain = AutoModelForCausalLM.from_pretrained(plain_folder, dtype=torch.float32)
    for base, words in ((plain, "is not quantized"), (load("int8"), "as bitsandbytes int8")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            loaded = load_adapter(base, tmp_path / "adapter").eval()
        (record,) = (one for one in caplog.records if one.name.startswith("interp"))
        assert "made for a base model quantized as bitsandbytes nf4" in record.getMessage()
        assert words in record.getMessage()
        assert torch.isfinite(logits_of(loaded, ids)).all()
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        peft.get_peft_model(load("nf4"), MoELoRAConfig(**CONFIG))
    assert not caplog.records


def test_nothing_is_merged(kind: str, load: Any) -> None:
    adapted = adapted_model(load, kind)
    for merge in (adapted.merge_and_unload, adapted.merge_adapter):
        with pytest.raises(UserError, match="cannot be merged into the weights"):
            merge()


def test_in_bfloat16_an_adapter_can_be_in_the_compute_type(load: Any) -> None:
    config = MoELoRAConfig(**CONFIG)
    adapted = peft.get_peft_model(load("bfloat16"), config, autocast_adapter_dtype=False)
    found = {layer.moelora_B["default"].dtype for layer in adapted_layers(adapted)}
    assert found == {torch.bfloat16}


def test_the_trainer_takes_it(kind: str, load: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    adapted = adapted_model(load, kind)
    examples = [EncodedExample(tuple(row), 3) for row in ids.tolist()] * 2
    settings = TrainingSettings(
        steps=4, batch=2, log_every=1, save_every=4, learning_rate=2e-2, checkpointing=True
    )
    trainer = make_trainer(adapted, examples, settings, folder=tmp_path, device="cpu")
    trainer.train()
    losses = [
        line["language_loss"] for line in trainer.state.log_history if "language_loss" in line
    ]
    assert losses[-1] < losses[0]
    module = adapted.base_model.model.model.layers[0].mlp.up_proj
    expected = load(kind).model.layers[0].mlp.up_proj
    assert torch.equal(
        weight_of(module, needed_by="the test"), weight_of(expected, needed_by="the test")
    )
