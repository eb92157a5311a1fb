"""Models on several devices or offloaded: every result is that of the whole model.

The devices are logical ones (`tests.logical_devices`): several real GPUs are none of a test's
business. Offloading, to the disk and to the CPU, is accelerate's own.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import Tensor

import interp.models
from interp.errors import UserError
from interp.experts.effects.effects import expert_effects
from interp.forward.generate import generate_tokens, greedy_answers
from interp.forward.partial import last_logits, record_run
from interp.heads.locate import as_encoded, locate_heads
from interp.inspection.flow import last_row_saliency
from interp.interventions import constrain
from interp.models import HookedModel, from_hf, model_info
from interp.models.fingerprint import fingerprint_of_model
from interp.models.model_check import check_of
from interp.models.placement import input_device, is_offloaded, named_weights
from interp.models.quiet import quiet_libraries
from interp.models.whole import first_bad_weight
from interp.moelora import auxiliary_losses, hooked, load_adapter
from interp.moelora.data.encoding import EncodedExample
from interp.moelora.training.training import check_trainable
from interp.patching import LogitDifference, TokenBatch, patch, patch_paths
from interp.premises import Premises
from probes import collect_activations
from tests.fixtures import make_hf_model, make_planted_hf_model
from tests.interventions.conftest import make_adapted
from tests.logical_devices import logical_devices, numbers_of

pytestmark = [pytest.mark.bridge_only, pytest.mark.cpu_bits]

LLAMA = [
    *("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.layers.1"),
    *("model.norm", "lm_head"),
]
GPT2 = [
    *("transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.h.1"),
    *("transformer.ln_f", "lm_head"),
]
WAYS: dict[str, list[str]] = {
    "disk": ["cpu", "cpu", "disk", "cpu", "disk", "disk"],
    "two devices": ["cpu:0", "cpu:0", "cpu:0", "cpu:1", "cpu:1", "cpu:1"],
    "back and forth": ["cpu:1", "cpu:0", "cpu:1", "cpu:0", "cpu:1", "cpu:0"],
    "devices and disk": ["cpu:0", "cpu:0", "disk", "cpu:1", "cpu:1", "cpu:1"],
}
CLOSE = 1e-4


def divided(hf_model: Any, way: str, folder: Path) -> Any:
    """The model with its parts where the way says."""
    placed: dict[str, Any]
    placed = dict(zip(LLAMA if hasattr(hf_model, "model") else GPT2, WAYS[way], strict=True))
    if "model.layers.1" in placed:  # a third layer in some models
        placed |= {"model.layers.2": placed["model.layers.1"]}
    known = dict(hf_model.named_modules())
    placed = {name: place for name, place in placed.items() if name in known}
    with quiet_libraries():
        return dispatch_model(
            hf_model, placed, offload_dir=folder, skip_keys=hf_model._skip_keys_device_placement
        )


@contextlib.contextmanager
def where(way: str) -> Iterator[None]:
    """Logical devices, if the way needs them; one thread, since they are of a thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with logical_devices() if "device" in way or "forth" in way else contextlib.nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)


def same(found: Tensor, expected: Tensor) -> None:
    expected = expected.detach().double().cpu()
    scale = max(1.0, float(expected.abs().nan_to_num().max()))
    found = numbers_of(found.detach()).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE * scale, equal_nan=True)


@pytest.fixture(scope="module")
def pairs() -> tuple[TokenBatch, TokenBatch, LogitDifference]:
    """Prompts on the CPU, wherever the model is."""
    tokens = torch.randint(5, 300, (2, 6), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, 4] += 7
    metric = LogitDifference(torch.tensor([5, 6]), torch.tensor([8, 9]))
    return TokenBatch.of(other), TokenBatch.of(tokens), metric


def tiny(family: str, tokenizer: Any) -> Any:
    layers = {"num_hidden_layers": 2} if family == "llama" else {}
    return make_hf_model(family, tokenizer, tie_word_embeddings=False, **layers)


def effects_of(
    model: HookedModel, clean: TokenBatch, corrupted: TokenBatch, metric: LogitDifference
) -> list[Tensor]:
    shared: dict[str, Any] = {"metric": metric, "progress": False}
    return [
        last_logits(model, corrupted),
        patch(model, clean, corrupted, units=[(0, 1), (1, 3)], **shared).values,
        patch(model, clean, corrupted, method="attribution", **shared).values,
        patch_paths(model, clean, corrupted, senders=[(0, 1)], **shared).values,
        patch_paths(model, clean, corrupted, senders=[(0, 1)], receivers=[(1, 0)], **shared).values,
    ]


@cache
def effects_of_the_whole(
    family: str, tokenizer: Any, *prompts: Any
) -> tuple[HookedModel, list[Tensor]]:
    whole = from_hf(tiny(family, tokenizer), tokenizer)
    return whole, effects_of(whole, *prompts)


@pytest.mark.parametrize(
    ("family", "way"),
    [("llama", "disk"), ("llama", "two devices"), ("gpt2", "back and forth"), ("gpt2", "disk")],
)
def test_effects_are_those_of_the_whole_model(
    family: str, way: str, chat_tokenizer: Any, tmp_path: Path, pairs: Any
) -> None:
    with where(way):
        model = from_hf(divided(tiny(family, chat_tokenizer), way, tmp_path), chat_tokenizer)
        assert check_of(model).problems == {}
        assert record_run(model, pairs[1], start=4).plain is not None
        fingerprint, found = model_info(model).fingerprint, effects_of(model, *pairs)
    whole, expected = effects_of_the_whole(family, chat_tokenizer, *pairs)
    assert fingerprint == model_info(whole).fingerprint
    for one, other in zip(found, expected, strict=True):
        same(one, other)


def test_other_components_and_methods(chat_tokenizer: Any, tmp_path: Path, pairs: Any) -> None:
    clean, corrupted, metric = pairs
    whole = from_hf(tiny("llama", chat_tokenizer), chat_tokenizer)

    def measured(model: HookedModel) -> list[Tensor]:
        options: dict[str, Any] = {"metric": metric, "progress": False}
        exact = [("v", [(1, 1)]), ("pattern", [(1, 2)]), ("resid_mid", [(1, 0)])]
        return [
            *(
                patch(model, clean, corrupted, component=name, units=units, **options).values
                for name, units in exact
            ),
            patch(model, clean, corrupted, component="k", method="atp*", **options).values,
            patch(model, clean, corrupted, method="ig", steps=1, **options).values,
        ]

    with where(way := "back and forth"):
        hf_model = divided(tiny("llama", chat_tokenizer), way, tmp_path)
        found = measured(from_hf(hf_model, chat_tokenizer))
    for one, other in zip(found, measured(whole), strict=True):
        same(one, other)


@pytest.mark.parametrize("way", ["disk", "two devices"])
def test_heads_constraints_answers_and_probes(
    way: str, planted: HookedModel, word_tokenizer: Any, planted_premises: Premises, tmp_path: Path
) -> None:
    few = Premises(
        planted_premises.relation, planted_premises.facts[:2], planted_premises.templates[:1]
    )

    def measured(model: HookedModel) -> list[Any]:
        encoded = as_encoded(model, few)
        batch = encoded.batch("false")
        found: list[Any] = [
            locate_heads(
                model, few, method="path", site="attention", heads=((1, 2),), progress=False
            ).values,
            locate_heads(model, few, method="attribution", site="output", progress=False).values,
            collect_activations(model, encoded, "false", progress=False),
            last_row_saliency(model, batch, encoded.true_tokens, progress=False),
        ]
        prompts = [list(item.prompt("false").tokens) for item in encoded.items]
        for site, mode in (("output", "resample"), ("attention", "zero")):
            head = (1, 2) if site == "attention" else (0, 1)
            options: dict[str, Any] = {"site": site, "mode": mode, "reference": few}
            with constrain(model, [head], premises=few, **options):
                found.append(last_logits(model, batch))
                found.append(generate_tokens(model, prompts, max_new_tokens=2, progress=False))
        return found

    with where(way):
        hf_model = divided(make_planted_hf_model(word_tokenizer), way, tmp_path)
        found = measured(from_hf(hf_model, word_tokenizer))
    for one, other in zip(found, measured(planted), strict=True):
        if isinstance(one, Tensor):
            same(one, other)
        else:
            assert one == other


@pytest.mark.parametrize("way", ["disk", "devices and disk"])
def test_experts(way: str, chat_tokenizer: Any, tmp_path: Path) -> None:
    tokens = torch.randint(5, 300, (2, 8), generator=torch.Generator().manual_seed(0))
    tasks = {"a": [EncodedExample(tuple(row.tolist()), 6) for row in tokens]}
    two_layers = partial(make_hf_model, num_hidden_layers=2)

    def placed(*args: Any, **config: Any) -> Any:
        return divided(two_layers(*args, **config), way, tmp_path / "weights")

    def measured(adapted: Any) -> list[Any]:
        model = hooked(adapted, chat_tokenizer)
        options: dict[str, Any] = {"layers": [1], "targets": ["attn.q"], "progress": False}
        found = [
            last_logits(model, TokenBatch.of(tokens)),
            expert_effects(model, tasks, **options).loss.values,
            expert_effects(model, tasks, method="attribution", **options).loss.values,
        ]
        adapted.train()
        logits = adapted(input_ids=tokens.to(input_device(adapted))).logits
        total = logits.logsumexp(-1).sum() + auxiliary_losses(adapted).total.to(logits.device)
        total.backward()
        named = sorted(adapted.named_parameters())
        found += [weight.grad.cpu() for name, weight in named if "moelora_A" in name]
        return [*found, total.detach()]

    whole = make_adapted(two_layers, chat_tokenizer)
    whole.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with where(way):
        loaded = load_adapter(placed("llama", chat_tokenizer), tmp_path / "adapter").eval()
        answers = greedy_answers(
            loaded, chat_tokenizer, tokens.tolist(), max_new_tokens=2, progress=False
        )
        found = measured(make_adapted(placed, chat_tokenizer))
    assert answers == greedy_answers(
        whole, chat_tokenizer, tokens.tolist(), max_new_tokens=2, progress=False
    )
    for one, other in zip(found, measured(whole), strict=True):
        same(one, other)


def test_the_whole_model_on_the_cpu_or_the_disk(
    chat_tokenizer: Any, tmp_path: Path, pairs: Any
) -> None:
    clean, corrupted, metric = pairs
    whole = from_hf(tiny("llama", chat_tokenizer), chat_tokenizer)
    with quiet_libraries():
        fetched = [
            cpu_offload(tiny("llama", chat_tokenizer)),
            disk_offload(tiny("llama", chat_tokenizer), str(tmp_path)),
        ]
    expected = patch(whole, clean, corrupted, metric=metric, units=[(1, 1)], progress=False)
    for hf_model in fetched:
        assert all(weight.is_meta for weight in hf_model.parameters())
        model = from_hf(hf_model, chat_tokenizer)
        found = patch(model, clean, corrupted, metric=metric, units=[(1, 1)], progress=False)
        same(found.values, expected.values)
        assert all(weight.is_meta for weight in model.original_model.parameters())


def test_half_precision_is_widened_while_it_is_used(
    chat_tokenizer: Any, tmp_path: Path, pairs: Any
) -> None:
    clean, corrupted, metric = pairs
    options: dict[str, Any] = {"metric": metric, "units": [(1, 1)], "progress": False}
    whole = from_hf(tiny("llama", chat_tokenizer).bfloat16(), chat_tokenizer)
    with where(way := "devices and disk"):
        hf_model = divided(tiny("llama", chat_tokenizer).bfloat16(), way, tmp_path)
        model = from_hf(hf_model, chat_tokenizer)
        run = record_run(model, corrupted, start=4)
        assert run.plain is not None
        assert run.plain.wide
        found = patch(model, clean, corrupted, **options).values
    same(found, patch(whole, clean, corrupted, **options).values)


@pytest.mark.parametrize("method", ["attribution", "atp*", "ig"])
@pytest.mark.parametrize("component", ["z", "pattern"])
def test_gradients_of_half_precision_fetch_the_weights_again(
    chat_tokenizer: Any, tmp_path: Path, pairs: Any, method: Any, component: Any
) -> None:
    clean, corrupted, metric = pairs
    if (method, component) == ("ig", "pattern"):
        component = "v"
    options: dict[str, Any] = {"metric": metric, "component": component, "method": method}
    whole = from_hf(tiny("llama", chat_tokenizer).bfloat16(), chat_tokenizer)
    with quiet_libraries():
        hf_model = disk_offload(tiny("llama", chat_tokenizer).bfloat16(), str(tmp_path))
    model = from_hf(hf_model, chat_tokenizer)
    found = patch(model, clean, corrupted, **options, progress=False).values
    assert float(found.abs().max()) > 1e-4
    same(found, patch(whole, clean, corrupted, **options, progress=False).values)
    assert all(weight.is_meta for weight in model.original_model.parameters())


def test_weights_that_are_not_there_are_fetched(chat_tokenizer: Any, tmp_path: Path) -> None:
    whole, offloaded = (tiny("llama", chat_tokenizer) for _ in range(2))
    with torch.no_grad():
        offloaded.model.layers[0].mlp.up_proj.weight[3, 4] = torch.nan
    offloaded = divided(offloaded, "disk", tmp_path)
    assert is_offloaded(offloaded)
    assert not is_offloaded(whole)
    assert first_bad_weight(whole) is None
    assert first_bad_weight(offloaded) == "model.layers.0.mlp.up_proj.weight"
    assert fingerprint_of_model(offloaded) != fingerprint_of_model(whole)
    shapes = {name: weight.shape for name, weight in named_weights(whole)}
    assert {name: weight.shape for name, weight in named_weights(offloaded)} == shapes


def test_a_wrong_placement_raises(chat_tokenizer: Any, tmp_path: Path, pairs: Any) -> None:
    """The negative control: without accelerate's hooks the logical devices do not mix."""
    _, corrupted, _ = pairs
    with where("two devices"):
        hf_model = divided(tiny("llama", chat_tokenizer), "two devices", tmp_path)
        model = from_hf(hf_model, chat_tokenizer)
        block = model.original_model.model.layers[1]
        inner = getattr(block, "original_component", block)
        inner.__dict__["forward"] = inner.__dict__["_old_forward"]  # past the hook
        with pytest.raises(RuntimeError, match="same device, but found cpu:"):
            last_logits(model, corrupted)


def test_what_offloaded_weights_cannot_do(
    hf_factory: Callable[..., Any], chat_tokenizer: Any, tmp_path: Path
) -> None:
    offloaded = divided(hf_factory("llama", chat_tokenizer), "disk", tmp_path)
    with pytest.raises(UserError, match="offloaded to the CPU or the disk cannot be trained"):
        check_trainable(offloaded)
    check_trainable(hf_factory("llama", chat_tokenizer))
    adapted = make_adapted(lambda *args, **config: offloaded, chat_tokenizer)
    with pytest.raises(UserError, match="while weights are offloaded"):
        from_hf(adapted, chat_tokenizer)


def test_weights_without_numbers_are_refused(chat_tokenizer: Any) -> None:
    with pytest.raises(UserError, match="has no data"):
        interp.models.from_hf(tiny("llama", chat_tokenizer).to("meta"), chat_tokenizer)
