"""What cannot be attached is refused in one line, and nothing stays behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import interp.models
from interp.attached import attach
from interp.attached.plain_model import with_special_tokens
from interp.errors import UserError
from interp.heads import HeadSet
from interp.interventions import Constraint, ExpertConstraint, Intervention
from interp.models import fingerprint_of_model
from interp.models.fingerprint import tokenizer_fingerprint
from probes.detector.calibration import Calibration
from probes.detector.detector import PremiseDetector
from tests.attached.architectures import make
from tests.attached.test_equality import PROMPTS, SPANS, UNDER, greedy, padded, part

HEADS = HeadSet(((0, 1),), "attention")


@pytest.fixture
def hf_model(plain_tokenizer: Any) -> Any:
    return make("llama", plain_tokenizer)


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        (HeadSet(((7, 0),)), {"at": SPANS}, r"head \(7, 0\) does not exist.*layers 0 to 1"),
        (HeadSet(((0, 4),)), {"at": SPANS}, r"head \(0, 4\) does not exist.*heads 0 to 3"),
        (part("output", "mean"), {"at": SPANS}, "mode 'mean' needs mean="),
        (part("output", "mean"), {"at": SPANS, "mean": torch.zeros(2, 3, 8)}, "2 layers and 4"),
        (HEADS, {"at": SPANS, "mean": torch.zeros(2, 4, 8)}, "leave it out"),
        (HeadSet(()), {"at": SPANS}, "no heads or experts to attach"),
        (Intervention.of(ExpertConstraint([(0, "attn.q", 0)])), {}, "has no MoELoRA adapter"),
        (HEADS, {}, "where the false object is"),
        (HEADS, {"at": SPANS, "false_object": "Germany"}, "not both"),
        (HEADS, {"gate": "probe", "at": SPANS}, "finds the false object itself"),
        (HEADS, {"gate": "probe"}, "no detector for this model yet"),
        (HEADS, {"at": SPANS, "detector": object()}, "detector"),
        (HEADS, {"gate": "soft", "at": SPANS}, "gate 'soft' finds the false object itself"),
        ("nowhere", {"at": SPANS}, "nowhere"),
    ],
)
def test_one_line_says_what_is_wrong(
    hf_model: Any, plain_tokenizer: Any, what: Any, options: Any, message: str, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAITHLENS_CACHE", str(tmp_path))
        with pytest.raises(UserError, match=message) as caught:
            attach(hf_model, plain_tokenizer, what, **options)
    assert "\n" not in str(caught.value)
    with attach(hf_model, plain_tokenizer, HEADS, at=SPANS):
        pass  # the failed one left nothing


def test_models_that_hooks_would_not_reach(
    hf_model: Any, plain_tokenizer: Any, tiny_llama: Any
) -> None:
    for given, message in (
        ("smollm2-135m", "causal language model"),
        (nn.Linear(2, 2), "causal language model"),
        (nn.DataParallel(hf_model), "model inside"),
        (tiny_llama, "hooked by TransformerLens"),
        (tiny_llama.original_model, "hooked by TransformerLens"),
    ):
        with pytest.raises(UserError, match=message):
            attach(given, plain_tokenizer, HEADS, at=SPANS)


def test_an_attention_that_takes_no_mask_by_head(hf_model: Any, plain_tokenizer: Any) -> None:
    hf_model.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match='attn_implementation="eager" or "sdpa"'):
        attach(hf_model, plain_tokenizer, HEADS, at=SPANS)


def test_a_mask_that_the_module_drops_is_noticed(hf_model: Any, plain_tokenizer: Any) -> None:
    attention: Any = hf_model.model.layers[0].self_attn
    forward = type(attention).forward

    class Deaf(type(attention)):  # type: ignore[misc]
        def forward(self, hidden_states: Any, attention_mask: Any = None, **rest: Any) -> Any:
            return forward(self, hidden_states, attention_mask=None, **rest)

    attention.__class__ = Deaf
    with pytest.raises(UserError, match=r"takes no mask by head.*changes nothing"):
        attach(hf_model, plain_tokenizer, HEADS, at=SPANS)


def test_one_constraint_at_a_time_and_detach_twice(hf_model: Any, plain_tokenizer: Any) -> None:
    free = greedy(hf_model)
    first = attach(hf_model, plain_tokenizer, UNDER, at=SPANS)
    with pytest.raises(UserError, match="has a constraint already"):
        attach(hf_model, plain_tokenizer, HEADS, at=SPANS)
    assert first.is_attached
    assert not torch.equal(greedy(hf_model), free)
    first.detach()
    first.detach()
    assert not first.is_attached
    assert torch.equal(greedy(hf_model), free)


def test_an_error_in_the_middle_leaves_nothing(hf_model: Any, plain_tokenizer: Any) -> None:
    class Stop(Exception):
        pass

    def stop(ids: Any, scores: Any, **_: Any) -> Any:
        if ids.shape[1] > len(PROMPTS[0]) + 2:
            raise Stop
        return torch.zeros(len(ids), dtype=torch.bool)

    free = greedy(hf_model)
    before = dict(vars(hf_model))
    with pytest.raises(Stop), attach(hf_model, plain_tokenizer, UNDER, at=SPANS):
        greedy(hf_model, stopping_criteria=[stop])
    assert not any(
        module._forward_pre_hooks or module._forward_hooks for module in hf_model.modules()
    )
    assert vars(hf_model).keys() == before.keys()
    assert torch.equal(greedy(hf_model), free)


@torch.no_grad()
def test_prompts_that_do_not_fit(hf_model: Any, plain_tokenizer: Any) -> None:
    batch = padded("left")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"at": SPANS[:2]}, "2 spans for 3 prompts"),
        ({"at": [(0, 99), None, None]}, "is not in its 9 tokens"),
        ({"false_object": "Atlantis"}, "'Atlantis' is not found"),
        ({"false_object": ["a", "b"]}, "2 false objects for 3 prompts"),
    ]
    for options, message in cases:
        attached = attach(hf_model, plain_tokenizer, HEADS, **options)
        with attached as model, pytest.raises(UserError, match=message):
            model(**batch)
    with attach(hf_model, plain_tokenizer, HEADS, at=SPANS):
        embedded = hf_model.get_input_embeddings()(batch["input_ids"])
        with pytest.raises(UserError, match="token ids"):
            hf_model(inputs_embeds=embedded)
        with pytest.raises(UserError, match="packed into one row"):
            hf_model(**batch, cu_seq_lens_q=torch.tensor([0, 9]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"assistant_model": None}, "tokens follow a prefill at once"),
        ({"prompt_lookup_num_tokens": 2}, "tokens follow a prefill at once"),
        ({"prefill_chunk_size": 4}, "tokens follow a prefill at once"),
        ({"prefill_chunk_size": 3}, "is not in its 3 tokens"),
    ],
)
def test_prompts_in_pieces(
    hf_model: Any, plain_tokenizer: Any, options: dict[str, Any], message: str
) -> None:
    """Candidates of an assistant, and chunks of a prompt, are no decoding steps."""
    if "assistant_model" in options:
        options = {"assistant_model": make("llama", plain_tokenizer)}
    prompt = torch.tensor([[5, 9, 7, 8, 30, 5, 9, 7, 8]])
    with (
        attach(hf_model, plain_tokenizer, UNDER, at=[(1, 4)]),
        pytest.raises(UserError, match=message) as caught,
    ):
        hf_model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=3, **options)
    assert "\n" not in str(caught.value)


def test_a_run_is_attached_to_its_own_model_only(
    planted_run: Path, word_tokenizer: Any, hf_factory: Callable[..., Any], tmp_path: Path
) -> None:
    from tests.fixtures import make_planted_hf_model

    own_model = make_planted_hf_model(word_tokenizer)
    with pytest.raises(UserError, match="run `interp evaluate` on it first"):
        attach(own_model, word_tokenizer, planted_run, at=[(0, 1)])
    run = tmp_path / "run"
    run.mkdir()
    for name in ("manifest.json",):
        (run / name).write_bytes((planted_run / name).read_bytes())
    measures = {"splits": {"held_out": {"false_premise": {"baseline": {}, "constrained": {}}}}}
    setting = {"heads": [[1, 2]], "site": "attention", "mode": "zero", "gate": "oracle"}
    (run / "evaluation.json").write_text(json.dumps(setting | measures), encoding="utf-8")
    with attach(own_model, word_tokenizer, run, false_object="land5") as model:
        prompt = interp.models.render_chat(word_tokenizer, "Why is city3 the capital of land5?")
        ids = torch.tensor([word_tokenizer(prompt.text)["input_ids"]])
        out = model.generate(ids, max_new_tokens=1, do_sample=False)
        assert word_tokenizer.decode(out[0, -1:]) == "land3"
    with torch.no_grad():
        own_model.lm_head.weight[0, 0] += 1.0
    with pytest.raises(UserError, match="was made with the model 'planted'"):
        attach(own_model, word_tokenizer, run, false_object="land5")


def test_a_detector_of_another_model(hf_factory: Callable[..., Any], chat_tokenizer: Any) -> None:
    hf_model = hf_factory("llama", chat_tokenizer)
    detector = PremiseDetector(
        weight=torch.ones(2, 32),
        bias=(0.0, 0.0),
        layer=1,
        calibration=Calibration("platt"),
        threshold=0.5,
        fingerprint=fingerprint_of_model(hf_factory("llama", chat_tokenizer, seed=1)),
    )
    with pytest.raises(UserError, match="the detector was fitted on model"):
        attach(hf_model, chat_tokenizer, Constraint(HEADS), gate="probe", detector=detector)


def test_a_prompt_that_is_no_chat(hf_factory: Callable[..., Any], chat_tokenizer: Any) -> None:
    class Nothing:
        def detect(self, model: Any, questions: Any, **_: Any) -> Any:
            raise AssertionError("nothing is to be read")

    hf_model = hf_factory("llama", chat_tokenizer)
    ids = chat_tokenizer("Paris is in Germany.", return_tensors="pt")["input_ids"]
    attached = attach(hf_model, chat_tokenizer, HEADS, gate="probe", detector=Nothing())
    with attached as model, pytest.raises(UserError, match="no question in the model's chat"):
        model(ids)


def test_the_tokenizer_of_a_hooked_model(
    word_tokenizer: Any, plain_tokenizer: Any, planted: Any, tiny_gpt2: Any
) -> None:
    """TransformerLens gives it the special tokens that are missing."""
    for tokenizer, hooked in ((word_tokenizer, planted), (plain_tokenizer, tiny_gpt2)):
        found = tokenizer_fingerprint(with_special_tokens(tokenizer))
        assert found == tokenizer_fingerprint(hooked.tokenizer)
