"""The model type ``faithlens``: where its constraint acts, against slow references."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

import interp
import interp.models
from interp.errors import UserError
from interp.harness.installed import check_installed, register
from interp.harness.model import FaithlensLM
from interp.interventions import Intervention
from probes.detector.detections import Detection
from probes.detector.questions import tokenize_question
from tests.attached.test_copies_and_caches import FOLDED
from tests.attached.test_equality import part

UNDER = Intervention.of(part("attention", heads=((0, 1), (1, 0), (2, 2)))) | part(
    "output", heads=((0, 2), (1, 3))
)
FALSE, TRUE = "Why is Paris the capital of Germany?", "What is the population of Madrid?"
LATER = "When was Rome, the capital of Germany, built?"
CLOSE: dict[str, Any] = {"rel": 0.0, "abs": 1e-4}


class FindsGermany:
    """Fires on every question that names Germany; remembers what it has read."""

    def __init__(self, *, fires: bool = True) -> None:
        self.fires, self.asked = fires, []

    def detect(
        self, model: Any, questions: Sequence[str], *, system: Any = None, progress: bool = True
    ) -> tuple[Detection, ...]:
        self.asked += questions
        return tuple(self._of(model, text) for text in questions)

    def _of(self, model: Any, text: str) -> Detection:
        start = text.find("Germany")
        if start < 0 or not self.fires:
            return Detection(False, 0.1)
        span = (start, start + len("Germany"))
        return Detection(True, 0.9, span, tokenize_question(model.tokenizer, text).tokens_at(span))


@pytest.fixture(scope="module")
def make_lm(chat_tokenizer: Any, hf_factory: Any) -> Any:
    """``make_lm(kind, detector, **options)`` on weights that are always the same."""

    def make(detector: Any = None, **options: Any) -> Any:
        model = hf_factory("llama", chat_tokenizer)
        plain: Any = HFLM
        options = {"tokenizer": chat_tokenizer, "batch_size": 3} | options
        if detector is None:
            return plain(model, **options)
        return FaithlensLM(model, UNDER, detector=detector, **options)

    return make


@pytest.fixture(scope="module")
def open_lm(make_lm: Any) -> Any:
    return make_lm(FindsGermany())


@pytest.fixture(scope="module")
def plain_lm(make_lm: Any) -> Any:
    return make_lm()


def context(lm: Any, *questions: str, prefix: str = "") -> str:
    turns = []
    for question in questions[:-1]:
        turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "Yes."},
        ]
    turns.append({"role": "user", "content": questions[-1]})
    return lm.apply_chat_template(turns) + prefix


def asks(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, pair, 0) for pair in arguments]


def scored(lm: Any, *pairs: tuple[str, str]) -> list[float]:
    return [found[0] for found in lm.loglikelihood(asks("loglikelihood", *pairs), True)]


PAIRS = [(FALSE, "", "Berlin"), (TRUE, "", "Germany is large."), (LATER, "It was", " a city")]


def pairs(lm: Any) -> list[tuple[str, str]]:
    return [(context(lm, q, prefix=prefix), answer) for q, prefix, answer in PAIRS]


@torch.no_grad()
def test_log_likelihoods_equal_the_hooked_model(
    open_lm: Any, plain_lm: Any, chat_tokenizer: Any, hf_factory: Any
) -> None:
    """One request at a time, told where to act, by ``interp.constrain``."""
    hooked = interp.models.from_hf(hf_factory("llama", chat_tokenizer), chat_tokenizer)
    wanted = []
    for (text, answer), (question, _, _) in zip(pairs(plain_lm), PAIRS, strict=True):
        ids, continuation = plain_lm._encode_pair(text, answer)
        span = None
        if "Germany" in question:
            at = question.index("Germany")
            span = tokenize_question(chat_tokenizer, question).tokens_at((at, at + 7))
        tokens = torch.tensor([ids + continuation])
        with interp.constrain(hooked, UNDER, at=[span]):
            logs = hooked(tokens)[0].log_softmax(-1)
        places = range(len(ids) - 1, tokens.shape[1] - 1)
        wanted.append(sum(float(logs[p, tokens[0, p + 1]]) for p in places))
    found = scored(open_lm, *pairs(open_lm))
    assert found == pytest.approx(wanted, **CLOSE)
    plain = scored(plain_lm, *pairs(plain_lm))
    assert found[1] == pytest.approx(plain[1], **CLOSE)
    assert abs(found[0] - plain[0]) > 1e-3
    assert abs(found[2] - plain[2]) > 1e-3


def test_a_log_likelihood_by_hand(make_lm: Any) -> None:
    """Without an output matrix all tokens are alike: each costs log of their number."""
    lm = make_lm(FindsGermany())
    torch.nn.init.zeros_(lm.model.lm_head.weight)
    answer = "Berlin is large."
    (found,) = scored(lm, (context(lm, FALSE), answer))
    n_tokens = len(lm._encode_pair(context(lm, FALSE), answer)[1])
    vocabulary = lm.model.config.vocab_size
    assert n_tokens > 3
    assert found == pytest.approx(-n_tokens * float(torch.tensor(vocabulary).log()), abs=1e-4)


@pytest.mark.parametrize("options", [{"gate": "closed"}, {}])
def test_with_the_gate_closed_nothing_differs(
    make_lm: Any, plain_lm: Any, options: dict[str, Any]
) -> None:
    """To the last bit, whether the gate is closed or the detector never fires."""
    lm = make_lm(FindsGermany(fires=False), **options)
    assert scored(lm, *pairs(lm)) == scored(plain_lm, *pairs(plain_lm))
    texts = asks("loglikelihood_rolling", (FALSE,), (f"{TRUE} {LATER}",))
    assert lm.loglikelihood_rolling(texts) == plain_lm.loglikelihood_rolling(texts)
    generations = asks("generate_until", *((context(lm, q), UNTIL) for q in (FALSE, TRUE)))
    assert lm.generate_until(generations, True) == plain_lm.generate_until(generations, True)


UNTIL = {"until": ["\n\n"], "max_gen_toks": 6}


def test_generation_equals_attach(open_lm: Any, make_lm: Any, chat_tokenizer: Any) -> None:
    plain = make_lm()
    questions = (FALSE, TRUE, LATER)
    requests = asks("generate_until", *((context(plain, q), UNTIL) for q in questions))
    found = open_lm.generate_until(requests, True)
    assert found != plain.generate_until(requests, True)
    for question, answer in zip(questions, found, strict=True):
        ids = torch.tensor([plain.tok_encode(context(plain, question))])
        words = "Germany" if "Germany" in question else None
        with interp.attach(plain.model, chat_tokenizer, UNDER, false_object=[words]) as model:
            whole = model.generate(
                ids, max_new_tokens=6, do_sample=False, pad_token_id=chat_tokenizer.pad_token_id
            )
        assert chat_tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True) == answer


def test_the_gate_reads_the_last_question_once(make_lm: Any) -> None:
    """Not the examples before it, and not once for each answer."""
    detector = FindsGermany()
    lm = make_lm(detector)
    few_shot = context(lm, FALSE, TRUE)
    both = scored(
        lm, (few_shot, "Yes."), (few_shot, "No, it is large."), (context(lm, LATER), "No")
    )
    assert sorted(detector.asked) == sorted([TRUE, LATER])
    assert both[0] == pytest.approx(scored(make_lm(), (few_shot, "Yes."))[0], **CLOSE)


def test_the_answers_first_words_are_not_read(open_lm: Any) -> None:
    """A task puts them into the context; the detector reads the prompt as a user sends it."""
    prompt, opened = (
        tuple(open_lm.tok_encode(context(open_lm, FALSE, prefix=prefix)))
        for prefix in ("", "Paris is the capital of")
    )
    assert len(opened) > len(prompt)
    assert open_lm.places._prompt(opened) == open_lm.places._prompt(prompt) == prompt


def test_the_same_tokens_parted_in_two_ways(make_lm: Any, plain_lm: Any) -> None:
    """A question in the continuation is none of the prompt's."""
    lm = make_lm(FindsGermany())
    first, second = context(lm, TRUE), context(lm, TRUE, FALSE)
    answer = second.removeprefix(first)
    early, late = scored(lm, (first, f"{answer}a"), (second, "a"))
    assert early == pytest.approx(scored(plain_lm, (first, f"{answer}a"))[0], **CLOSE)
    assert late == pytest.approx(scored(make_lm(FindsGermany()), (second, "a"))[0], **CLOSE)
    assert abs(late - scored(plain_lm, (second, "a"))[0]) > 1e-3


def test_one_token_more_is_another_pass(make_lm: Any) -> None:
    """Generation without a cache looks the same: the tokens of the last pass, and one more."""
    lm, text = make_lm(FindsGermany(), batch_size=1), context(make_lm(), FALSE)
    pair = ((text, "B"), (text, "Be"))
    assert [len(lm.tok_encode(answer)) for _, answer in pair] == [1, 2]
    wanted = [scored(make_lm(FindsGermany()), each)[0] for each in pair]
    for acts in (False, True, False):
        lm.places.acts = acts
        found = [scored(lm, each)[0] for each in pair]
        assert (found == pytest.approx(wanted, **CLOSE)) == acts


def test_a_prompt_that_loses_its_beginning(make_lm: Any) -> None:
    """The false words move with the rest; if they are gone, nothing is constrained."""
    text = context(make_lm(), FALSE)
    length = len(make_lm().tok_encode(f"{text}Berlin"))
    for cut, acts in ((3, True), (length - 6, False)):
        options = {"max_length": length - 1 - cut}
        constrained = scored(make_lm(FindsGermany(), **options), (text, "Berlin"))[0]
        plain = scored(make_lm(**options), (text, "Berlin"))[0]
        assert (abs(constrained - plain) > 1e-3) == acts


def test_a_system_prompt_in_the_users_turn_is_no_question(
    make_lm: Any, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_tokenizer, "chat_template", FOLDED)
    finder = FindsGermany()
    lm = make_lm(finder)
    system = {"role": "system", "content": "Germany is a country."}
    texts = [
        lm.apply_chat_template([*system_turn, {"role": "user", "content": question}])
        for system_turn in ([], [system])
        for question in (FALSE, TRUE)
    ]
    assert system["content"] in texts[3]
    scored(lm, *((text, "Berlin") for text in texts))
    assert sorted(finder.asked) == sorted([FALSE, TRUE] * 2)


def test_prompts_without_chat_format(make_lm: Any, plain_lm: Any) -> None:
    with pytest.raises(UserError, match="add --apply_chat_template") as caught:
        scored(make_lm(FindsGermany()), (FALSE, " Berlin"))
    assert "\n" not in str(caught.value)
    lm = make_lm(FindsGermany(), plain_text="leave")
    assert scored(lm, (FALSE, " Berlin")) == scored(plain_lm, (FALSE, " Berlin"))


def test_the_gate_notes_what_it_reads(make_lm: Any, tmp_path: Path) -> None:
    lm = make_lm(FindsGermany(), gate_log=tmp_path / "gate.jsonl")
    scored(lm, *pairs(lm))
    assert lm.get_model_info()["faithlens"] == {"prompts": 3, "gate_open": 2}
    lines = (tmp_path / "gate.jsonl").read_text().splitlines()
    assert sum('Germany"' in line for line in lines) == 2
    assert sum('"words": null' in line for line in lines) == 1


def test_what_is_missing_or_unknown(make_lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="needs a run"):
        FaithlensLM("smollm2-135m")
    with pytest.raises(UserError, match="nowhere"):
        FaithlensLM("smollm2-135m", "nowhere")
    for option in ({"gate": "oracle"}, {"plain_text": "read"}):
        with pytest.raises(UserError, match="unknown"):
            make_lm(FindsGermany(), **option)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'faithlens\[harness\]'"):
        check_installed()


def test_lm_eval_knows_the_model_type() -> None:
    register()
    register()
    assert get_model("faithlens") is FaithlensLM
