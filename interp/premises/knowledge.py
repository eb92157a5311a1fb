"""Which facts a model knows: only for those is a wrong answer to a false premise informative.

Two checks (FAITH, arXiv 2402.19103, section 3.1, uses the second):

* ``strict``: after the direct question and the cloze, every token of the true object is the most
  likely next token.
* ``answer``: the greedy answer to the direct question names the true object.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from interp.arguments import check_choice
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.dots import dot_figure
from interp.forward.batch import TokenBatch, by_length
from interp.forward.generate import generate_tokens
from interp.forward.out_of_memory import halving
from interp.forward.partial import device_of, last_logits
from interp.lazy import go, pd
from interp.models import render_chat
from interp.models.hooked_model import HookedModel
from interp.models.versions import check_hooked
from interp.premises.encode import answer_tokens, shared_length, tokenize
from interp.premises.questions import Premises
from interp.premises.relation import Fact, names_any
from interp.progress import progress_bar

logger = logging.getLogger(__name__)

KnowledgeCheck = Literal["strict", "answer"]
MINIMUM_KNOWN = 16
BATCH_TOKENS = 4096


class TooFewKnown(UserError):
    """The model knows too few facts of a relation."""


@dataclass(frozen=True)
class FactKnowledge:
    """Whether the model knows one fact, and its answer."""

    subject: str
    true_object: str
    known: bool
    answer: str


@dataclass(frozen=True)
class Knowledge(Displayed):
    """The outcome of a knowledge check over all facts of some premises."""

    check: KnowledgeCheck
    facts: tuple[FactKnowledge, ...]

    @property
    def n_known(self) -> int:
        """How many facts are known."""
        return sum(fact.known for fact in self.facts)

    @property
    def summary(self) -> str:
        """How many facts are known, and the most frequent answers to the others, in one line."""
        answers = ", ".join(f"{text!r} × {count}" for text, count in self._wrong(4))
        line = f"{self.n_known} of {len(self.facts)} facts known ({self.check} check)"
        return f"{line}; the others answered {answers}" if answers else line

    def _wrong(self, count: int) -> list[tuple[str, int]]:
        """The most frequent answers to facts that are not known, with their numbers."""
        return Counter(fact.answer for fact in self.facts if not fact.known).most_common(count)

    def to_dataframe(self) -> "pd.DataFrame":
        """One row a fact."""
        return pd.DataFrame([vars(fact) for fact in self.facts])

    def keep(self, premises: Premises, *, minimum: int = MINIMUM_KNOWN) -> Premises:
        """The premises about known facts. Raises TooFewKnown if they are fewer than ``minimum``."""
        known = {fact.subject for fact in self.facts if fact.known}
        if len(known) < minimum:
            raise TooFewKnown(
                f"the model knows too few facts of {premises.relation.name!r}: {self.summary}; "
                f"at least {minimum} are needed: give more facts, another relation, or the "
                "looser check 'answer'"
            )
        kept = premises.with_facts(fact for fact in premises.facts if fact.subject in known)
        return kept.askable()

    def plot(self, count: int = 10) -> "go.Figure":
        """How many facts are known, and the ``count`` most frequent answers to the others."""
        wrong = self._wrong(count)
        names = ["known", *(f"not known, said {text!r}" for text, _ in wrong)]
        counts = [float(self.n_known), *(float(number) for _, number in wrong)]
        return dot_figure(names, counts, title="facts")

    def _shown(self) -> Shown:
        return Shown(f"{self.summary}.", (self.to_dataframe(),), self.plot)


@checked
@torch.no_grad()
def check_knowledge(
    model: HookedModel,
    premises: Premises,
    *,
    check: KnowledgeCheck = "strict",
    progress: bool = True,
) -> Knowledge:
    """Ask the model for every fact directly, and check its answers."""
    check_hooked(model)
    check_choice("knowledge check", check, get_args(KnowledgeCheck))
    run = _strict if check == "strict" else _by_answer
    return Knowledge(check, tuple(run(model, premises, progress)))


@checked
def filter_known(
    model: HookedModel,
    premises: Premises,
    *,
    check: KnowledgeCheck = "strict",
    minimum: int = MINIMUM_KNOWN,
    progress: bool = True,
) -> Premises:
    """The premises about facts that the model knows; logs how many it knows.

    Raises:
        TooFewKnown: fewer than ``minimum`` facts are known.
    """
    knowledge = check_knowledge(model, premises, check=check, progress=progress)
    logger.info(knowledge.summary)
    return knowledge.keep(premises, minimum=minimum)


def _strict(model: HookedModel, premises: Premises, progress: bool) -> list[FactKnowledge]:
    tokenizer = model.tokenizer
    prompts, sizes = [], []
    for fact in premises.facts:
        rendered = render_chat(tokenizer, premises.direct(fact), premises.cloze(fact))
        plain = tokenize(tokenizer, rendered)["input_ids"]
        (full,) = answer_tokens(tokenizer, rendered, [fact.object])
        # The answer's tokens: from the end of the prompt, without the full stop.
        prompts.append(full[:-1])
        sizes.append(max(1, len(full) - 1 - shared_length(plain, full)))
    results: list[FactKnowledge | None] = [None] * len(prompts)
    chunks = by_length([len(prompt) for prompt in prompts], BATCH_TOKENS)

    def run_chunk(chunk: list[int]) -> None:
        batch = TokenBatch.from_lists([prompts[i] for i in chunk], device=device_of(model))
        keep = max(sizes[i] for i in chunk) + 1
        top = last_logits(model, batch, keep=keep).argmax(dim=-1).cpu()
        for row, index in enumerate(chunk):
            size = sizes[index]
            answered = top[row, -size - 1 : -1].tolist()
            fact = premises.facts[index]
            known = answered == prompts[index][-size:]
            answer = fact.object if known else _first_word(tokenizer, answered)
            results[index] = FactKnowledge(fact.subject, fact.object, known, answer)

    with progress_bar(total=len(prompts), description="knowledge", shown=progress) as bar:
        for chunk, _ in halving(chunks, run_chunk):
            bar.update(len(chunk))
    return [result for result in results if result is not None]


def _first_word(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The first token's text, or that of as many as a whole character has."""
    texts = (tokenizer.decode(tokens[:end]).strip() for end in range(1, len(tokens) + 1))
    return next((text for text in texts if "\N{REPLACEMENT CHARACTER}" not in text), "…")


def _says_object(fact: Fact, answer: str) -> bool:
    return names_any(answer, fact.true_names, apart_from=(fact.subject,))


def _by_answer(model: HookedModel, premises: Premises, progress: bool) -> list[FactKnowledge]:
    rendered = [render_chat(model.tokenizer, premises.direct(fact)) for fact in premises.facts]
    prompts = [list(tokenize(model.tokenizer, text)["input_ids"]) for text in rendered]
    answers = generate_tokens(model, prompts, max_new_tokens=24, progress=progress)
    return [
        FactKnowledge(fact.subject, fact.object, _says_object(fact, text), text[:40])
        for fact, text in zip(premises.facts, answers, strict=True)
    ]
