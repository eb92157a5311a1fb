"""The data of one training run: which examples are trained on and tested on, and their tokens.

What is chosen depends on the sources and the limits alone, never on the seed, so that runs over
several seeds and methods see the same questions.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from interp.errors import UserError
from interp.moelora.data.encoding import (
    EncodedExample,
    TooLong,
    encode_example,
    encode_examples,
    end_token,
)
from interp.moelora.data.examples import Example
from interp.moelora.data.formats import ColumnMapping
from interp.moelora.data.sources import HELD_OUT_SHARE, load_split

SPARE_TOKENS = 8
"""How much longer than the longest right response an answer may get."""


@dataclass(frozen=True)
class TaskData:
    """Training and test examples as text and as tokens.

    Attributes:
        train: encoded training examples.
        test: the test examples.
        encoded_test: the same with their right responses, encoded.
        max_new_tokens: how long an answer may get.
        sha256: of all examples, to tell whether a run's data are still the same.
    """

    train: tuple[EncodedExample, ...]
    test: tuple[Example, ...]
    encoded_test: tuple[EncodedExample, ...]
    max_new_tokens: int
    sha256: str


def load_task_data(
    tokenizer: Any,
    sources: Sequence[str],
    *,
    max_length: int,
    columns: str = "",
    held_out: float = HELD_OUT_SHARE,
    limit: int | None = None,
    test_limit: int | None = None,
    too_long: TooLong = "error",
) -> TaskData:
    """Read, draw and encode the examples of all sources.

    `limit` is a number of training examples per source, `test_limit` one of test examples per task.
    A subject that one source trains on is not tested in another. Raises `UserError` for every fault
    in the data, and for an example longer than `max_length` unless `too_long` is "drop".
    """
    mapping = ColumnMapping.parse(columns) if columns else None
    train: list[Example] = []
    test: list[Example] = []
    for source in sources:
        split = load_split(source, columns=mapping, held_out=held_out)
        train += draw(split.train, limit)
        test += split.test
    seen = {one.subject for one in train}
    apart = [one for one in test if one.subject not in seen]
    tasks = dict.fromkeys(one.task for one in apart)
    drawn = [
        one for task in tasks for one in draw([x for x in apart if x.task == task], test_limit)
    ]
    if not drawn:
        raise UserError("every subject that is tested is also trained on: give other test data")
    end = end_token(tokenizer)
    pairs = [(one, encode_example(tokenizer, one, end=end)) for one in drawn]
    kept = [(one, code) for one, code in pairs if len(code.tokens) <= max_length]
    if len(kept) < len(pairs) and (too_long == "error" or not kept):
        encode_examples(tokenizer, drawn, max_length=max_length)  # says which
    longest = max(len(code.tokens) - code.n_prompt for _, code in kept)
    return TaskData(
        train=encode_examples(tokenizer, train, max_length=max_length, too_long=too_long),
        test=tuple(one for one, _ in kept),
        encoded_test=tuple(code for _, code in kept),
        max_new_tokens=longest + SPARE_TOKENS,
        sha256=_sha256([*train, *drawn]),
    )


def draw(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """`limit` of the examples, chosen by a hash of their prompts, in their order."""
    if limit is None or limit >= len(examples):
        return list(examples)
    order = sorted(range(len(examples)), key=lambda index: _digest(examples[index].prompt))
    return [examples[index] for index in sorted(order[:limit])]


def _sha256(examples: Iterable[Example]) -> str:
    text = json.dumps([asdict(one) for one in examples], ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
