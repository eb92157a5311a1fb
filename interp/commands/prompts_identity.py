"""The digest of every prompt that premises may become, for a run's identity.

It sees the tokenizer, the chat template, and what a template reads of the world, such as the date.
"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from interp.errors import UserError
from interp.models import render_chat
from interp.premises.encode import tokenize
from interp.premises.questions import Premises, QuestionKind
from interp.runs.prompting import PROMPTS
from interp.runs.shards import digest_of

OTHERS: tuple[QuestionKind, ...] = ("twin", "masked")


def prompts_identity(tokenizer: Any, premises: Premises) -> dict[str, str]:
    """The digest of every prompt that premises may become, as an identity holds it.

    Of the question with the false object, and of the direct question, it is the text and the tokens
    as the model gets them; of the twin and the masked question, which differ in a name, the words.
    """
    return {PROMPTS: digest_of(list(_prompts(tokenizer, premises)))}


def _prompts(tokenizer: Any, premises: Premises) -> Iterator[Any]:
    for fact in premises.facts:
        yield _rendered(tokenizer, premises.direct(fact), premises.cloze(fact))
    for question in premises.questions():
        yield [asdict(question), *(premises.fill(question, kind).text for kind in OTHERS)]
        yield _rendered(tokenizer, premises.fill(question, "false").text, premises.cloze(question))


def _rendered(tokenizer: Any, text: str, answer: str) -> Any:
    try:
        rendered = render_chat(tokenizer, text, answer)
    except UserError as error:  # of a fact that may be left out; if not, encoding it says so
        return str(error)
    return [rendered.text, list(tokenize(tokenizer, rendered)["input_ids"])]
