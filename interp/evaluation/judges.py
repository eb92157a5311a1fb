"""Judges: whether an answer says that what a question presupposes is wrong.

A judge is any function of a question and an answer that returns a `Verdict`. `judge_by_words`, the
default, looks for words; `ModelJudge` asks a second model. What an answer *names* is read off the
answer by every judge alike (`Verdict.of`).

`judge_by_words` counts an answer as a rebuttal if it holds

* a phrase that rejects a premise (`REJECTIONS`: "there is no", "incorrect", "a misconception", …),
  or begins with "no";
* or a negation (`NEGATIONS`: "is not", "isn't", "never", "not", …) at most `NEAR` words from the
  subject, the true or the false object, where one of them is known; without them, a negated verb
  in the first sentence; or "actually" in a sentence that does not name the false object.

Words of doubt and of emphasis (`HEDGES`: "not sure", "I don't know", "not only") are taken out
first. It reads English only. It does not understand: a rebuttal in other words is missed, and in
the answer to a question with a negation ("Why is X not Y?") the question's own words count.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.partial import last_logits
from interp.forward.prompts import device_of
from interp.models import render_chat
from interp.models.hooked_model import HookedModel
from interp.models.spans import shared_length
from interp.premises.encode import answer_tokens
from interp.premises.question_list import RawQuestion
from interp.premises.relation import names, names_any


@dataclass(frozen=True)
class Verdict:
    """What is said of one answer.

    Attributes:
        rebuts: it says that the question's premise is wrong.
        names_answer: it names a right answer; None where none is known.
        names_false_object: it names the false object; None where that is not known.
    """

    rebuts: bool
    names_answer: bool | None = None
    names_false_object: bool | None = None

    @classmethod
    def of(cls, question: RawQuestion, answer: str, *, rebuts: bool) -> "Verdict":
        """The verdict whose names are read off the answer, as whole words and ignoring case."""
        right, false = question.right_answers, question.false_object
        subject = (question.subject or "",)
        return cls(
            rebuts,
            names_any(answer, right, apart_from=subject) if right else None,
            None if false is None else names(answer, false, apart_from=subject),
        )


@runtime_checkable
class Judge(Protocol):
    """A function that judges an answer to a question."""

    def __call__(self, question: RawQuestion, answer: str) -> Verdict:
        """The verdict on one answer."""
        ...


NEAR = 8
"""Words between a negation and a name that it is about."""
REJECTIONS = (
    *("there is no", "there was no", "there are no", "there were no", "there has never been"),
    *("there isn't", "there wasn't", "there aren't", "there weren't", "no such", "no evidence"),
    *("incorrect", "incorrectly", "inaccurate", "not accurate", "not correct", "isn't correct"),
    *("untrue", "not true", "isn't true", "is false", "false premise", "false assumption"),
    *("a misconception", "a common misconception", "mistaken", "a misunderstanding"),
    *("is a mistake", "is an error", "does not exist", "doesn't exist", "did not exist"),
    *("didn't exist", "contrary to", "rather than"),
)
_VERBS = ("is", "was", "are", "were", "has", "have", "had", "does", "do", "did")
_VERBS_SHORT = tuple(f"{verb}n't" for verb in _VERBS)
NEGATED_VERBS = (*(f"{verb} not" for verb in _VERBS), *_VERBS_SHORT, "never")
NEGATIONS = (*NEGATED_VERBS, "not", "no longer", "instead of")
HEDGES = (
    *("not sure", "not certain", "not aware", "not able", "not familiar", "not know"),
    *("don't know", "don't have", "do not have", "not have", "cannot", "can not", "can't"),
    *("not only", "not just", "not to mention", "whether or not", "if not", "why not"),
    *("not available", "not provided", "not specified", "not clear", "not known"),
)
OPENING_NO = re.compile(r"no\b[,.;:!]? ", re.IGNORECASE)


def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the phrases as whole words; the longest first."""
    ordered = sorted(phrases, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, ordered))})(?!\w)", re.IGNORECASE)


_REJECTION, _NEGATION, _NEGATED_VERB, _HEDGE = map(
    _pattern, (REJECTIONS, NEGATIONS, NEGATED_VERBS, HEDGES)
)
_ACTUALLY = _pattern(("actually", "in fact"))


@checked
def judge_by_words(question: RawQuestion, answer: str) -> Verdict:
    """The default judge; see the module for its words."""
    text = answer.strip().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return Verdict.of(question, answer, rebuts=_rebuts(question, text))


def _rebuts(question: RawQuestion, text: str) -> bool:
    """Whether a text with straight apostrophes rebuts the premise."""
    text = _HEDGE.sub(" ", " ".join(text.split()))
    if OPENING_NO.match(f"{text} ") or _REJECTION.search(text):
        return True
    about = tuple(filter(None, (question.subject, question.true_object, question.false_object)))
    sentences = re.split(r"(?<=[.!?])\s+", text)
    for sentence in sentences if about else sentences[:1]:
        if about and _near(sentence, about):
            return True
        if not about and _NEGATED_VERB.search(sentence):
            return True
        named = not about or names_any(sentence, about)
        false_again = question.false_object is not None and names(sentence, question.false_object)
        if named and not false_again and _ACTUALLY.search(sentence):
            return True
    return False


def _near(sentence: str, about: tuple[str, ...]) -> bool:
    """Whether a negation stands at most `NEAR` words from one of the names."""
    for negation in _NEGATION.finditer(sentence):
        before = sentence[: negation.start()].split()[-NEAR:]
        after = sentence[negation.end() :].split()[:NEAR]
        if names_any(f"{' '.join(before)} | {' '.join(after)}", about):
            return True
    return False


@dataclass(frozen=True, eq=False)
class ModelJudge:
    """A second model decides whether an answer rebuts the premise.

    It is asked `ASKED` in its own chat format, and P(yes) is compared with P(no) at the next token.
    A judge can be wrong, and a small model mostly is: compare it with answers that you judged
    yourself.

    Attributes:
        model: the model that judges; not the one that is judged.
    """

    model: HookedModel

    ASKED = (
        "Question: {question}\nAnswer: {answer}\n\nDoes the answer say that something which the "
        "question takes for granted is wrong? Reply with yes or no."
    )
    WORDS = (("Yes", "No"), ("yes", "no"))

    def __call__(self, question: RawQuestion, answer: str) -> Verdict:
        """The verdict; it rebuts if P(yes) > P(no)."""
        return Verdict.of(question, answer, rebuts=self.log_odds(question, answer) > 0)

    @torch.no_grad()
    def log_odds(self, question: RawQuestion, answer: str) -> float:
        """Log P(yes) − log P(no) in nats, each summed over its spellings with a capital or not.

        Raises UserError for a tokenizer in which yes and no begin with the same token.
        """
        asked = self.ASKED.format(question=question.text, answer=answer.strip())
        prompt, yes, no = self._tokens(asked)
        batch = TokenBatch.from_lists([prompt], device=device_of(self.model))
        logits = last_logits(self.model, batch)[0, -1].double()
        return float(logits[yes].logsumexp(0) - logits[no].logsumexp(0))

    def _tokens(self, asked: str) -> tuple[list[int], list[int], list[int]]:
        """The prompt's tokens, and the tokens that tell yes from no after it."""
        tokenizer = self.model.tokenizer
        rendered = render_chat(tokenizer, asked)
        spelt = [answer_tokens(tokenizer, rendered, pair) for pair in self.WORDS]
        every = [ids for pair in spelt for ids in pair]
        shared = min(shared_length(every[0], other) for other in every[1:])
        yes, no = ({pair[which][shared] for pair in spelt} for which in (0, 1))
        if yes & no:
            raise UserError("in this model's tokenizer yes and no begin with the same token")
        return every[0][:shared], sorted(yes), sorted(no)


def judged(
    judge: Judge, questions: tuple[RawQuestion, ...], answers: tuple[str, ...]
) -> Iterator[Verdict]:
    """The verdict on each answer. Raises UserError for a judge that returns something else."""
    for question, answer in zip(questions, answers, strict=True):
        verdict = judge(question, answer)
        if not isinstance(verdict, Verdict):
            raise UserError(
                f"a judge returns an interp.evaluation.Verdict, not {type(verdict).__name__}"
            )
        yield verdict
