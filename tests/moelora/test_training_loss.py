"""The Trainer's loss: against the model's own, over accumulation, with the auxiliary losses."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.errors import UserError
from interp.moelora import MoELoRAConfig, auxiliary_losses
from interp.moelora.data.encoding import IGNORED, AnswerCollator, EncodedExample
from interp.moelora.training.adapters import (
    adapt,
    check_method,
    equal_ranks,
    trainable_parameters,
)
from interp.moelora.training.similarity import expert_similarity, pairwise_cosine
from interp.moelora.training.trainer import answer_loss, predicting_columns
from interp.moelora.training.training import TrainingSettings, make_trainer

TARGETS = ["q_proj", "v_proj"]


def examples(n: int = 8, *, seed: int = 0) -> list[EncodedExample]:
    """Random prompts and answers of uneven length."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(n):
        length = 6 + index
        tokens = torch.randint(2, 300, (length,), generator=generator).tolist()
        made.append(EncodedExample(tuple(tokens), length - 2 - index % 4))
    return made


@pytest.fixture
def base(hf_factory: Callable[..., Any], plain_tokenizer: Any) -> Any:
    return hf_factory("llama", plain_tokenizer, num_hidden_layers=2)


def trainer_for(model: Any, folder: Path, n: int = 8, **settings: Any) -> Any:
    chosen = {"steps": 1, "batch": 4, "learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0}
    return make_trainer(
        model, examples(n), TrainingSettings(**(chosen | settings)), folder, device="cpu"
    )


def gradients(model: Any) -> dict[str, Tensor]:
    return {
        name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None
    }


def run_step(trainer: Any, batches: Sequence[Sequence[EncodedExample]]) -> dict[str, Tensor]:
    """The gradients of one step over these micro-batches, as the Trainer takes it."""
    inputs = [AnswerCollator()(batch) for batch in batches]
    n_tokens = sum((one["labels"][:, 1:] != IGNORED).sum() for one in inputs)
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = len(batches)
    trainer.create_optimizer()
    for one in inputs:
        trainer.training_step(trainer.model, one, torch.as_tensor(n_tokens))
    return gradients(trainer.model)


def fill(model: Any) -> None:
    """Give every B a value, as after some training."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "moelora_B" in name or "lora_B" in name:
                one.normal_(std=0.3)


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    assert a
    for name in a:
        assert float((a[name] - b[name]).abs().max()) < tolerance, name


def test_answer_loss_by_hand() -> None:
    logits = torch.tensor(
        [[[0.0, 0.0], [9.0, 9.0]], [[0.0, 0.0], [torch.log(torch.tensor(3.0)), 0]]]
    )
    targets = torch.tensor([[0, IGNORED], [1, 0]])
    # Two answers at even odds, one at three to one; the fourth place is no answer.
    expected = (2 * torch.tensor(2.0).log() + torch.tensor(4 / 3).log()) / 10
    assert float(answer_loss(logits, targets, 10)) == pytest.approx(float(expected))


def test_columns_are_those_that_predict_an_answer() -> None:
    labels = torch.tensor([[-100, -100, 5, 6, -100], [-100, -100, -100, 7, -100]])
    assert predicting_columns(labels).tolist() == [1, 2]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_loss_and_gradient_are_the_models_own(
    family: str, hf_factory: Callable[..., Any], plain_tokenizer: Any, tmp_path: Path
) -> None:
    targets = TARGETS if family == "llama" else ["c_attn"]
    base = hf_factory(
        family,
        plain_tokenizer,
        **({"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0} if family == "gpt2" else {}),
    )
    model = adapt(base, "lora", MoELoRAConfig(r=2, num_experts=4, target_modules=targets))
    fill(model)
    found = run_step(trainer_for(model, tmp_path), [examples(4)])
    model.zero_grad()
    model(**AnswerCollator()(examples(4))).loss.backward()
    assert_close(found, gradients(model))


def test_accumulated_step_is_the_step_of_one_large_batch(base: Any, tmp_path: Path) -> None:
    """Tokens weigh alike, though the micro-batches have different numbers of them."""
    model = adapt(base, "lora", MoELoRAConfig(r=2, num_experts=4, target_modules=TARGETS))
    fill(model)
    trainer = trainer_for(model, tmp_path)
    data = examples(8)
    whole = run_step(trainer, [data])
    # Sums of float32 in another order: up to 1.3e-6 on some machines.
    assert_close(run_step(trainer, [data[:4], data[4:]]), whole, 5e-6)
    assert_close(run_step(trainer, [data[:1], data[1:3], data[3:]]), whole, 5e-6)


def test_auxiliary_losses_are_added_with_their_weights(base: Any, tmp_path: Path) -> None:
    config = MoELoRAConfig(
        r=2,
        num_experts=4,
        target_modules=TARGETS,
        load_balance_weight=0.5,
        contrastive_weight=0.25,
        contrastive_tokens=10_000,
        router_z_weight=0.125,
    )
    model = adapt(base, "moelora", config)
    fill(model)
    found = run_step(trainer_for(model, tmp_path), [examples(4)])
    model.zero_grad()
    model.train()
    language = model(**AnswerCollator()(examples(4))).loss
    losses = auxiliary_losses(model)
    weighted = 0.5 * losses.load_balance + 0.25 * losses.contrastive + 0.125 * losses.router_z
    (language + weighted).backward()
    assert_close(found, gradients(model))
    # The control: without them the routers' gradient is another.
    model.zero_grad()
    model(**AnswerCollator()(examples(4))).loss.backward()
    other = gradients(model)
    name = next(name for name in other if "router" in name)
    assert float((other[name] - found[name]).abs().max()) > 1e-4


def test_auxiliary_losses_are_means_over_micro_batches(base: Any, tmp_path: Path) -> None:
    config = MoELoRAConfig(
        r=2, num_experts=4, target_modules=TARGETS, load_balance_weight=1.0, contrastive_weight=0.0
    )
    model = adapt(base, "moe", config)
    fill(model)
    trainer = trainer_for(model, tmp_path)
    data = examples(8)
    found = run_step(trainer, [data[:4], data[4:]])
    model.zero_grad()
    model.train()
    n_tokens = sum(len(one.tokens) - one.n_prompt for one in data)
    for half in (data[:4], data[4:]):
        share = sum(len(one.tokens) - one.n_prompt for one in half) / n_tokens
        loss = model(**AnswerCollator()(half)).loss * share
        (loss + auxiliary_losses(model).load_balance / 2).backward()
    assert_close(found, gradients(model))


def test_a_repeated_micro_batch_draws_other_numbers_but_a_repeated_step_the_same(
    base: Any, tmp_path: Path
) -> None:
    config = MoELoRAConfig(r=2, num_experts=4, target_modules=TARGETS, lora_dropout=0.5)
    model = adapt(base, "lora", config)
    fill(model)
    trainer = trainer_for(model, tmp_path, dropout=0.5)

    def loss() -> float:
        trainer.current_gradient_accumulation_steps = 1
        return float(trainer.training_step(model, AnswerCollator()(examples(4))))

    trainer.create_optimizer()
    first, second = loss(), loss()
    trainer.state.global_step = 1
    later = loss()
    trainer._micro = (-1, 0)
    trainer.state.global_step = 0
    assert len({first, second, later}) == 3
    assert (loss(), loss()) == (first, second)


def test_the_log_has_every_part_of_the_loss(base: Any, tmp_path: Path) -> None:
    config = MoELoRAConfig(r=2, num_experts=4, target_modules=TARGETS)
    model = adapt(base, "moelora", config)
    trainer = trainer_for(model, tmp_path, n=16, steps=4, log_every=2, accumulate=2)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        parts = line["language_loss"] + 1.0 * line["load_balance"] + 0.1 * line["contrastive"]
        assert line["loss"] == pytest.approx(parts, abs=1e-4)
        assert line["load_balance"] >= 0.99
        assert 0 <= line["load_smallest"] <= 1 <= line["load_largest"] <= 4 / 2
        assert line["dead_experts"] == 0


def test_dead_experts_are_counted(base: Any, tmp_path: Path) -> None:
    """Two experts of every projection are made the only ones."""
    config = MoELoRAConfig(r=2, num_experts=4, top_k=2, target_modules=TARGETS)
    model = adapt(base, "moe", config)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "router" in name:
                one.zero_()
    # With equal logits the same two of four are always chosen.
    trainer = trainer_for(model, tmp_path, n=4, steps=1, log_every=1, load_balance=0.0)
    trainer.train()
    line = next(line for line in trainer.state.log_history if "loss" in line)
    n_projections = 4
    assert line["dead_experts"] == 2 * n_projections
    assert (line["load_smallest"], line["load_largest"]) == (0.0, 2.0)


def test_lora_logs_no_experts(base: Any, tmp_path: Path) -> None:
    config = MoELoRAConfig(r=2, num_experts=4, target_modules=TARGETS)
    trainer = trainer_for(adapt(base, "lora", config), tmp_path, log_every=1)
    trainer.train()
    line = next(line for line in trainer.state.log_history if "loss" in line)
    assert line["language_loss"] == pytest.approx(line["loss"], abs=1e-5)
    assert "load_balance" not in line


def test_methods_have_equally_many_parameters(
    hf_factory: Callable[..., Any], plain_tokenizer: Any
) -> None:
    """As in the paper: 8 experts of rank 4 with a router are LoRA of rank 36 where in = out."""
    config = MoELoRAConfig(r=4, num_experts=8, target_modules=TARGETS)
    square = {"num_key_value_heads": 4}
    counts = {}
    for method in ("lora", "moe", "moelora"):
        model = adapt(hf_factory("llama", plain_tokenizer, **square), method, config)  # type: ignore[arg-type]
        counts[method] = trainable_parameters(model)
    assert counts == dict.fromkeys(counts, 3 * 2 * 36 * (32 + 32))
    ranks = equal_ranks(hf_factory("llama", plain_tokenizer, **square), config)
    assert set(ranks.values()) == {36}


def test_narrow_values_get_a_rank_of_their_own(
    hf_factory: Callable[..., Any], plain_tokenizer: Any
) -> None:
    """As in the embedded model: 576 to 192 takes rank 38 exactly."""
    base = hf_factory(
        "llama", plain_tokenizer, hidden_size=96, num_attention_heads=3, num_key_value_heads=1
    )
    config = MoELoRAConfig(r=4, num_experts=8, target_modules=TARGETS)
    by_ending = {name.rpartition(".")[2]: rank for name, rank in equal_ranks(base, config).items()}
    assert by_ending == {"q_proj": 36, "v_proj": 38}
    lora = adapt(base, "lora", config)
    layer = lora.base_model.model.model.layers[1].self_attn
    assert (layer.q_proj.r["default"], layer.v_proj.r["default"]) == (36, 38)
    assert layer.q_proj.scaling["default"] == layer.v_proj.scaling["default"] == config.scaling
    experts = adapt(
        hf_factory(
            "llama", plain_tokenizer, hidden_size=96, num_attention_heads=3, num_key_value_heads=1
        ),
        "moelora",
        config,
    )
    assert trainable_parameters(lora) == trainable_parameters(experts)


def test_moe_differs_from_moelora_by_the_contrastive_loss_alone(
    hf_factory: Callable[..., Any], plain_tokenizer: Any
) -> None:
    config = MoELoRAConfig(r=2, num_experts=4, target_modules=TARGETS, contrastive_weight=0.3)
    made = [
        adapt(hf_factory("llama", plain_tokenizer), method, config).peft_config["default"].to_dict()
        for method in ("moe", "moelora")
    ]
    differing = {key for key in made[0] if made[0][key] != made[1][key]}
    assert differing == {"contrastive_weight"}
    assert (made[0]["contrastive_weight"], made[1]["contrastive_weight"]) == (0.0, 0.3)


def test_unknown_method_and_targets(base: Any) -> None:
    with pytest.raises(UserError, match="unknown method 'ia3'; known: lora, moe, moelora"):
        check_method("ia3")
    for method in ("lora", "moelora"):
        with pytest.raises(UserError):
            adapt(base, method, MoELoRAConfig(target_modules=["nose"]))  # type: ignore[arg-type]


def test_cosine_by_hand() -> None:
    """Three experts of rank 1: the second like the first, the third at a right angle."""
    up = torch.tensor([[[1.0], [2.0], [0.0]], [[0.0], [0.0], [3.0]]])
    hidden = torch.tensor([[[1.0], [1.0], [1.0]], [[1.0], [-1.0], [0.0]]])
    cosine = pairwise_cosine(hidden, up)
    assert cosine[0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert cosine[1].tolist() == [[1, -1, 0], [-1, 1, 0], [0, 0, 0]]


def test_similarity_against_the_experts_outputs(base: Any) -> None:
    config = MoELoRAConfig(r=2, num_experts=3, target_modules=TARGETS)
    model = adapt(base, "moelora", config).eval()
    fill(model)
    data = examples(5)
    found = expert_similarity(model, data, batch=2)
    layer = model.base_model.model.model.layers[1].self_attn.v_proj
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    cosines = []
    with torch.no_grad():
        for one in data:
            inputs.clear()
            model(torch.tensor([one.tokens]))
            for x in inputs[0][0]:
                outputs = [
                    layer.moelora_B["default"][:, 2 * e : 2 * e + 2]
                    @ (layer.moelora_A["default"][2 * e : 2 * e + 2] @ x)
                    for e in range(3)
                ]
                pairs = [(0, 1), (0, 2), (1, 2)]
                cosines.append(
                    sum(torch.cosine_similarity(outputs[i], outputs[j], dim=0) for i, j in pairs)
                    / 3
                )
    handle.remove()
    expected = float(torch.stack(cosines).mean())  # type: ignore[arg-type]
    assert found[layer.name] == pytest.approx(expected, abs=1e-5)
    assert len(found) == 4


def test_lora_has_no_similarity(base: Any) -> None:
    model = adapt(base, "lora", MoELoRAConfig(r=2, num_experts=4, target_modules=TARGETS))
    assert expert_similarity(model, examples(3)) == {}
