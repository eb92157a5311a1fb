"""A prefill that goes on from the detector's reading: the same answers, from fewer positions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from interp.attached import attach
from interp.attached.anatomy import Anatomy
from interp.attached.plain_model import PlainModel
from interp.heads import HeadSet
from interp.models import fingerprint
from probes.detector.calibration import Calibration
from probes.detector.detector import PremiseDetector
from probes.detector.evidence import EXPECTATION, PROBES, Combination

QUESTIONS = ["Why is Paris the capital of Germany?", "When was Rome, the capital of Japan, built?"]
HEADS = tuple((layer, head) for layer in range(2) for head in range(4))


@pytest.fixture
def model(hf_factory: Callable[..., Any], chat_tokenizer: Any) -> Any:
    return hf_factory("llama", chat_tokenizer)


def detector(hf_model: Any, tokenizer: Any, threshold: float) -> PremiseDetector:
    plain: Any = PlainModel(hf_model, tokenizer, Anatomy.of(hf_model))
    return PremiseDetector(
        weight=torch.randn(2, 32, generator=torch.Generator().manual_seed(0)),
        bias=(0.1, -0.2),
        layer=1,
        calibration=Calibration("platt", slope=0.1),
        threshold=threshold,
        fingerprint=fingerprint(plain),
        combination=Combination((*PROBES, *EXPECTATION), (1.0, 0.5, 0.2, 0.3, -0.4), 0.1),
    )


def batch(tokenizer: Any, side: str = "left") -> dict[str, Any]:
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    found = tokenizer.apply_chat_template(
        chats,
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
        padding=True,
        tokenizer_kwargs={"padding_side": side},
    )
    return dict(found)


@contextmanager
def counting(hf_model: Any) -> Iterator[list[int]]:
    """How many positions each pass of the first layer had."""
    seen: list[int] = []
    original = type(Anatomy.of(hf_model).layers[0]).forward

    def forward(self: Any, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self is Anatomy.of(hf_model).layers[0]:
            seen.append(hidden.shape[1])
        return original(self, hidden, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:  # a hook would keep prefills whole
        patch.setattr(type(Anatomy.of(hf_model).layers[0]), "forward", forward)
        yield seen


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("side", ["left", "right"])
def test_only_the_rest_runs(model: Any, chat_tokenizer: Any, threshold: float, side: str) -> None:
    """With the gate open, and closed; beams run each prompt several times."""
    prompts, heads = batch(chat_tokenizer, side), HeadSet(HEADS, "attention")
    width = prompts["input_ids"].shape[1]
    under: dict[str, Any] = {
        "gate": "probe",
        "detector": detector(model, chat_tokenizer, threshold),
    }
    for beams in (1, 2):
        options = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams}
        options |= {"return_dict_in_generate": True, "output_logits": True}
        with attach(model, chat_tokenizer, heads, **under), counting(model) as seen:
            short = model.generate(**prompts, **options)
        assert width not in seen
        # Somebody's hook, who may want to see all positions: the slow reference.
        with (
            model.lm_head.register_forward_hook(lambda *given: None),
            attach(model, chat_tokenizer, heads, **under),
            counting(model) as seen,
        ):
            whole = model.generate(**prompts, **options)
        assert width in seen
        assert torch.equal(short.sequences, whole.sequences)
        torch.testing.assert_close(short.logits, whole.logits, atol=1e-4, rtol=0)


def test_the_rest_is_constrained(model: Any, chat_tokenizer: Any) -> None:
    """Negative control: with the gate open the logits are not those of the model alone."""
    prompts, heads = batch(chat_tokenizer), HeadSet(HEADS, "attention")
    options: dict[str, Any] = {"use_cache": True, "logits_to_keep": 1}
    places = (prompts["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits = []
    for threshold in (None, 1.0, 0.0):
        more = {"position_ids": places, "past_key_values": DynamicCache(config=model.config)}
        if threshold is None:
            logits.append(model(**prompts, **options, **more).logits.detach())
            continue
        gate = detector(model, chat_tokenizer, threshold)
        with (
            attach(model, chat_tokenizer, heads, gate="probe", detector=gate),
            torch.no_grad(),
            counting(model) as seen,
        ):
            logits.append(model(**prompts, **options, **more).logits)
        assert prompts["input_ids"].shape[1] not in seen
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=0)
    assert float((logits[2] - logits[0]).abs().amax(dim=(1, 2)).min()) > 1e-3


@pytest.mark.parametrize(
    "more",
    [
        {"logits_to_keep": 0},
        {"output_hidden_states": True},
        {"position_ids": None},  # then the model counts padding, and the reading does not
        {"past_key_values": StaticCache},
        {"site": "output"},  # acts at the false words themselves
        {"dtype": torch.bfloat16},
    ],
    ids=lambda more: next(iter(more)),
)
def test_whole_where_more_is_seen(model: Any, chat_tokenizer: Any, more: dict[str, Any]) -> None:
    more = dict(more)
    model = model.to(more.pop("dtype", torch.float32))
    prompts, heads = batch(chat_tokenizer), HeadSet(HEADS[:2], more.pop("site", "attention"))
    options: dict[str, Any] = {
        "use_cache": True,
        "logits_to_keep": 1,
        "position_ids": (prompts["attention_mask"].cumsum(1) - 1).clamp(min=0),
        "past_key_values": DynamicCache(config=model.config),
    }
    if more.get("past_key_values") is StaticCache:
        more["past_key_values"] = StaticCache(config=model.config, max_cache_len=128)
    gate = detector(model, chat_tokenizer, 0.0)
    with (
        attach(model, chat_tokenizer, heads, gate="probe", detector=gate),
        torch.no_grad(),
        counting(model) as seen,
    ):
        model(**prompts, **{**options, **more})
    assert prompts["input_ids"].shape[1] in seen


def test_gradients_go_through_all_positions(model: Any, chat_tokenizer: Any) -> None:
    prompts, gate = batch(chat_tokenizer), detector(model, chat_tokenizer, 1.0)
    heads, cache = HeadSet(HEADS, "attention"), DynamicCache(config=model.config)
    model.requires_grad_(False)  # grad mode alone keeps the prefill whole
    options: dict[str, Any] = {"past_key_values": cache, "logits_to_keep": 1, "use_cache": True}
    options["position_ids"] = (prompts["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with attach(model, chat_tokenizer, heads, gate="probe", detector=gate), counting(model) as seen:
        model(**prompts, **options)
    assert prompts["input_ids"].shape[1] in seen
