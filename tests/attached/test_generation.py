"""All ways to generate, on a plain model that something is attached to."""

from collections.abc import Callable
from typing import Any

import accelerate
import numpy as np
import peft
import pytest
import torch
from transformers import TextIteratorStreamer, pipeline, set_seed

import interp
import interp.models
from interp.attached import attach
from interp.attached.anatomy import Anatomy
from interp.attached.plain_model import PlainModel
from interp.heads import HeadSet
from interp.interventions import Intervention
from interp.models.quiet import quiet_libraries
from probes.activation_reader import read_activations
from probes.detector.calibration import Calibration
from probes.detector.detect import detect
from probes.detector.detections import Detection
from probes.detector.detector import PremiseDetector
from probes.detector.evidence import EXPECTATION, PROBES, Combination
from probes.detector.pair import Pair
from probes.detector.questions import AskedQuestion, tokenize_question
from probes.detector.support import contrast, contrast_after_reading
from tests.attached.architectures import SPECIES, make
from tests.attached.test_equality import PROMPTS, SPANS, greedy, padded, part

EVERY = tuple((layer, head) for layer in range(2) for head in range(4))
UNDER = Intervention.of(part("attention", heads=EVERY[:5])) | part("output", heads=EVERY[5:])
QUESTIONS = ["Why is Paris the capital of Germany?", "When was Rome, the capital of Japan, built?"]


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def hf_model(request: pytest.FixtureRequest, plain_tokenizer: Any) -> Any:
    return make(request.param, plain_tokenizer)


def chosen(hf_model: Any, tokenizer: Any, **more: Any) -> torch.Tensor:
    with attach(hf_model, tokenizer, UNDER, at=SPANS) as model:
        return greedy(model, **more)


def test_every_cache_gives_the_same(hf_model: Any, plain_tokenizer: Any) -> None:
    """No cache at all is the slow reference; a window slides over the object meanwhile."""
    slow = chosen(hf_model, plain_tokenizer, use_cache=False)
    assert not torch.equal(slow, greedy(hf_model))
    assert torch.equal(chosen(hf_model, plain_tokenizer), slow)
    assert torch.equal(chosen(hf_model, plain_tokenizer, cache_implementation="static"), slow)


def test_without_padding_no_mask_is_given(hf_model: Any, plain_tokenizer: Any) -> None:
    """The kernel leaves later keys out by itself then: the mask has to be made."""
    together = chosen(hf_model, plain_tokenizer)
    for row in (0, 2):
        prompt = torch.tensor([PROMPTS[row]])
        for cache in ({}, {"cache_implementation": "static"}):
            with attach(hf_model, plain_tokenizer, UNDER, at=[SPANS[row]]) as model:
                alone = model.generate(
                    prompt, max_new_tokens=6, do_sample=False, pad_token_id=3, **cache
                )
            assert alone[0, -6:].tolist() == together[row, -6:].tolist()


def test_beams_and_samples(plain_tokenizer: Any) -> None:
    hf_model = make("llama", plain_tokenizer)
    hooked = interp.models.from_hf(make("llama", plain_tokenizer), plain_tokenizer)
    ways: list[dict[str, Any]] = [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2},
    ]
    for way in ways:
        arguments = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 3, **padded("left")}
        found = []
        for running in (
            attach(hf_model, plain_tokenizer, UNDER, at=SPANS),
            interp.constrain(hooked, UNDER, at=SPANS),
        ):
            set_seed(0)
            with running as model:
                found.append(getattr(model, "original_model", model).generate(**arguments | way))
        assert torch.equal(*found), way


def test_words_are_found_in_the_prompts(
    hf_factory: Callable[..., Any], chat_tokenizer: Any
) -> None:
    """As on the hooked model; in a pipeline and a stream, too."""
    hf_model = hf_factory("llama", chat_tokenizer)
    hooked = interp.models.from_hf(hf_factory("llama", chat_tokenizer), chat_tokenizer)
    heads = HeadSet(EVERY, "attention")
    words = ["Germany", "Japan"]
    expected = interp.generate(hooked, QUESTIONS, heads=heads, false_object=words, max_new_tokens=6)
    free = interp.generate(hooked, QUESTIONS, max_new_tokens=6)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    options = {"max_new_tokens": 6, "do_sample": False}
    ask = pipeline("text-generation", model=hf_model, tokenizer=chat_tokenizer)
    for chat, one, answer, other in zip(chats, words, expected, free, strict=True):
        with attach(hf_model, chat_tokenizer, heads, false_object=one):
            said = ask(chat, **options)[0]["generated_text"][-1]["content"]
            streamer = TextIteratorStreamer(
                chat_tokenizer, skip_prompt=True, skip_special_tokens=True
            )
            ids = chat_tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            hf_model.generate(**ids, **options, streamer=streamer)
        assert said.strip() == "".join(streamer).strip() == answer
        assert said.strip() != other


def test_a_detector_reads_the_plain_model(
    hf_factory: Callable[..., Any], chat_tokenizer: Any
) -> None:
    """The same probabilities and words, and the same answers, as on the hooked model."""
    hf_model = hf_factory("llama", chat_tokenizer)
    hooked = interp.models.from_hf(hf_factory("llama", chat_tokenizer), chat_tokenizer)
    generator = torch.Generator().manual_seed(0)
    detector = PremiseDetector(
        weight=torch.randn(4, 32, generator=generator),
        bias=(0.1, -0.2),
        layer=2,
        layers=(1, 2),
        calibration=Calibration("platt", slope=0.1),
        threshold=0.0,
        fingerprint=interp.models.fingerprint(hooked),
        combination=Combination((*PROBES, *EXPECTATION), (1.0, 0.5, 0.2, 0.3, -0.4), 0.1),
    )
    found = detect(hooked, QUESTIONS, detector=detector, progress=False)
    heads = HeadSet(EVERY, "attention")
    under: dict[str, Any] = {"gate": "probe", "detector": detector}
    expected = interp.generate(hooked, QUESTIONS, heads=heads, max_new_tokens=6, **under)
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    ids = chat_tokenizer.apply_chat_template(
        chats,
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
        padding=True,
        tokenizer_kwargs={"padding_side": "left"},
    )
    seen: list[Any] = []
    decide = PremiseDetector.decide
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            PremiseDetector, "decide", lambda *given: seen.append(decide(*given)) or seen[-1]
        )
        with attach(hf_model, chat_tokenizer, heads, **under) as model:
            out = model.generate(**ids, max_new_tokens=6, do_sample=False)
    assert [one.token_span for one in seen] == [one.token_span for one in found]
    assert [one.char_span for one in seen] == [one.char_span for one in found]
    assert [one.probability for one in seen] == pytest.approx(
        [one.probability for one in found], abs=1e-5
    )
    answers = chat_tokenizer.batch_decode(
        out[:, ids["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert [answer.strip() for answer in answers] == expected


class SuspectsGermany:
    """Fires on every question that names Germany, at that word."""

    def detect(self, model: Any, questions: Any, **_: Any) -> list[Detection]:
        return [self._of(model.tokenizer, question) for question in questions]

    def _of(self, tokenizer: Any, question: str) -> Detection:
        start = question.find("Germany")
        if start < 0:
            return Detection(False, 0.1)
        chars = (start, start + len("Germany"))
        return Detection(True, 0.9, chars, tokenize_question(tokenizer, question).tokens_at(chars))


def test_the_gate_opens_where_the_detector_fires(
    hf_factory: Callable[..., Any], chat_tokenizer: Any
) -> None:
    """In a conversation, too: the last question counts, in its own prompt."""
    hf_model = hf_factory("llama", chat_tokenizer)
    heads = HeadSet(EVERY, "attention")
    before = [
        {"role": "user", "content": "Is Berlin in Germany?"},
        {"role": "assistant", "content": "Berlin is in Germany."},
    ]
    for earlier in ([], before):
        chats = [[*earlier, {"role": "user", "content": question}] for question in QUESTIONS]
        ids = chat_tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            padding=True,
            tokenizer_kwargs={"padding_side": "left"},
        )
        options = {"max_new_tokens": 6, "do_sample": False}
        free = hf_model.generate(**ids, **options)
        with attach(hf_model, chat_tokenizer, heads, false_object=["Germany", None]) as model:
            told = model.generate(**ids, **options)
        detector = SuspectsGermany()
        with attach(hf_model, chat_tokenizer, heads, gate="probe", detector=detector) as model:
            found = model.generate(**ids, **options)
        assert torch.equal(found, told)
        assert torch.equal(found[1], free[1])
        assert not torch.equal(found[0], free[0])


@pytest.mark.parametrize("site", ["attention", "output"])
def test_as_strong_as_the_detector_is_sure(
    hf_factory: Callable[..., Any], chat_tokenizer: Any, site: Any
) -> None:
    """Strengths 0.3 and 0.8, which `constrain` is told; beams run each prompt several times."""
    hf_model = hf_factory("llama", chat_tokenizer)
    hooked = interp.models.from_hf(hf_factory("llama", chat_tokenizer), chat_tokenizer)
    asked = [tokenize_question(chat_tokenizer, text) for text in QUESTIONS]
    places = [text.index(word) for text, word in zip(QUESTIONS, ("Germany", "Japan"), strict=True)]
    found = [
        Detection(True, sure, (at, at + 5), of.tokens_at((at, at + 5)))
        for of, at, sure in zip(asked, places, (0.3, 0.8), strict=True)
    ]

    class Sure:
        def detect(self, model: Any, questions: Any, **_: Any) -> list[Detection]:
            return [found[QUESTIONS.index(question)] for question in questions]

    heads = HeadSet(EVERY, site)
    for beams, rows in ((1, [0]), (1, [1, 0]), (2, [1, 0])):
        prompts = [list(asked[row].tokens) for row in rows]
        width = max(map(len, prompts))
        batch = {
            "input_ids": torch.tensor([[3] * (width - len(ids)) + ids for ids in prompts]),
            "attention_mask": torch.tensor(
                [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
            ),
        }
        options = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams}
        told = [found[row].token_span for row in rows]
        sure = [found[row].probability for row in rows]
        with interp.constrain(hooked, heads, at=told, strengths=sure):
            expected = hooked.original_model.generate(**batch, **options)
        with attach(hf_model, chat_tokenizer, heads, gate="soft", detector=Sure()) as model:
            said = model.generate(**batch, **options)
        assert torch.equal(said, expected)
    with torch.no_grad():
        tokens = torch.tensor([list(asked[0].tokens)])
        free = hf_model(tokens).logits
        with interp.constrain(hooked, heads, at=[found[0].token_span], strengths=[0.3]):
            logits = hooked.original_model(tokens).logits
        with attach(hf_model, chat_tokenizer, heads, gate="soft", detector=Sure()):
            torch.testing.assert_close(hf_model(tokens).logits, logits, atol=1e-4, rtol=0)
        with attach(hf_model, chat_tokenizer, heads, gate="probe", detector=Sure()):
            whole = hf_model(tokens).logits
    assert float((logits - free).abs().max()) > 1e-3
    assert float((logits - whole).abs().max()) > 1e-3


def test_an_adapter_and_offloaded_weights(plain_tokenizer: Any) -> None:
    with quiet_libraries():
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"])
        adapted: Any = peft.get_peft_model(make("llama", plain_tokenizer), config).eval()
    expected = chosen(make("llama", plain_tokenizer), plain_tokenizer)
    assert torch.equal(chosen(adapted, plain_tokenizer), expected)
    batch = padded("left")
    with (
        torch.no_grad(),
        attach(make("llama", plain_tokenizer), plain_tokenizer, UNDER, at=SPANS) as model,
    ):
        logits = model(**batch).logits
    with torch.no_grad(), attach(adapted, plain_tokenizer, UNDER, at=SPANS):
        torch.testing.assert_close(adapted(**batch).logits, logits)
    with torch.no_grad(), attach(adapted.get_base_model(), plain_tokenizer, UNDER, at=SPANS):
        torch.testing.assert_close(adapted(**batch).logits, logits)
    offloaded = accelerate.cpu_offload(make("llama", plain_tokenizer), torch.device("cpu"))
    assert torch.equal(chosen(offloaded, plain_tokenizer), expected)


def test_two_models_do_not_see_each_other(plain_tokenizer: Any) -> None:
    first, second = make("llama", plain_tokenizer), make("llama", plain_tokenizer)
    free = greedy(second)
    expected = chosen(second, plain_tokenizer)
    with attach(first, plain_tokenizer, UNDER, at=SPANS):
        assert torch.equal(greedy(second), free)
        assert torch.equal(greedy(first), expected)


def test_nothing_is_in_the_layers_while_no_prompt_is_constrained(plain_tokenizer: Any) -> None:
    hf_model = make("llama", plain_tokenizer)

    def hooks() -> int:
        return sum(len(module._forward_pre_hooks) for module in hf_model.model.modules())

    with attach(hf_model, plain_tokenizer, UNDER, at=[None, None, None]):
        greedy(hf_model)
        assert not hooks()
    with attach(hf_model, plain_tokenizer, UNDER, at=SPANS):
        greedy(hf_model)
        assert hooks() == 2  # attention of two layers; those of site output ended with the prefill
    assert not hooks()


def test_supports_are_those_of_the_hooked_model(
    hf_factory: Callable[..., Any], chat_tokenizer: Any
) -> None:
    """Of unequal lengths, with padding; and one prompt alone, for which no mask is made."""
    hf_model = hf_factory("llama", chat_tokenizer)
    hooked = interp.models.from_hf(hf_factory("llama", chat_tokenizer), chat_tokenizer)
    asked, pairs = asked_with_pairs(chat_tokenizer)
    plain: Any = PlainModel(hf_model, chat_tokenizer, Anatomy.of(hf_model))
    for some in (slice(0, 2), slice(1, 2)):
        of = (asked[some], pairs[some])
        found = contrast(plain, *of, progress=False)
        expected = contrast(hooked, *of, progress=False)
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("name", ["mistral", "gemma3", "gptj", "opt"])
def test_supports_go_on_from_what_a_plain_model_has_read(name: str, chat_tokenizer: Any) -> None:
    """Windows that slide, layers that return tuples, and positions that the mask counts."""
    window = {"sliding_window": 40} if "sliding_window" in SPECIES[name][2] else {}
    hf_model = make(name, chat_tokenizer, max_position_embeddings=256, **window)
    plain: Any = PlainModel(hf_model, chat_tokenizer, Anatomy.of(hf_model))
    asked, pairs = asked_with_pairs(chat_tokenizer)
    expected = contrast(plain, asked, pairs, progress=False)
    prompts = [of.to_read for of in asked]
    (chunk,) = read_activations(plain, prompts, layers=[0], keys_values=True, progress=False)
    rows = [chunk.prompts.index(row) for row in range(2)]
    given = {"keys_values": chunk.keys_values, "rows": rows}
    found = contrast_after_reading(plain, asked, pairs, **given)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def asked_with_pairs(tokenizer: Any) -> tuple[list[AskedQuestion], list[Pair]]:
    """The questions, with the token after their first two and the last but one."""
    asked = [tokenize_question(tokenizer, text) for text in QUESTIONS]
    ends = [(of.span[0] + 2, of.span[1] - 2) for of in asked]
    return asked, [Pair((first, first + 1), (last, last + 1)) for first, last in ends]
