"""A corpus whose texts are labelled with tasks: what routing is collected on.

Tokens that all texts begin with (a chat template's first line) are in the same state in each of
them, so they say nothing about tasks: they are run but not counted.

Texts about one subject are not independent. They share a *unit*, and it is units that are permuted
and left out together; without a subject each text is its own.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from interp.arguments import listed
from interp.checked import checked
from interp.errors import UserError
from interp.models.spans import prompt_ids, shared_length
from interp.moelora.data.encoding import encode_example, end_token
from interp.moelora.data.examples import Example


@dataclass(frozen=True)
class LabelledText:
    """One text as token ids, its task, and the unit it is resampled with."""

    tokens: tuple[int, ...]
    task: str
    unit: str


@dataclass(frozen=True)
class LabelledCorpus:
    """Texts with tasks.

    Attributes:
        texts: at least one; none empty.
        prefix: how many tokens all texts begin with; they are not counted.
    """

    texts: tuple[LabelledText, ...]
    prefix: int = 0

    def __post_init__(self) -> None:
        if not self.texts:
            raise UserError("the corpus holds no texts")
        if "all" in self.tasks:
            raise UserError("a task cannot be called 'all', as tables call all tasks together so")
        for number, text in enumerate(self.texts):
            if len(text.tokens) <= self.prefix:
                raise UserError(
                    f"text {number} of task {text.task!r} has no tokens of its own: leave it out"
                )

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The tasks' names, in order of first appearance."""
        return tuple(dict.fromkeys(text.task for text in self.texts))

    @cached_property
    def tokens(self) -> dict[str, int]:
        """How many tokens of each task are counted."""
        found: Counter[str] = Counter()
        for text in self.texts:
            found[text.task] += len(text.tokens) - self.prefix
        return found

    @cached_property
    def units(self) -> dict[str, int]:
        """How many units each task has."""
        return Counter(task for task, _ in {(text.task, text.unit): None for text in self.texts})

    def frequent_ids(self, limit: int) -> tuple[int, ...]:
        """The most frequent token ids that are counted at least twice, at most `limit`, sorted."""
        counts = np.bincount(np.concatenate([text.tokens[self.prefix :] for text in self.texts]))
        order = np.argsort(-counts, kind="stable")[:limit]
        return tuple(sorted(order[counts[order] > 1].tolist()))


@checked
def corpus_of(data: Mapping[str, Any] | Sequence[Any], tokenizer: Any) -> LabelledCorpus:
    """Texts with their tasks, as tokens.

    Args:
        data: by task, a list of texts or of token ids; or examples (`interp.moelora.data.sources`),
            of which the prompt in the model's chat format and the response are taken.

    Raises:
        UserError: no texts, texts without tasks, or what is neither text nor token ids.
    """
    if isinstance(data, Mapping):
        data = {task: listed(f"task {task!r}", several, "texts") for task, several in data.items()}
        if empty := [task for task, several in data.items() if not several]:
            raise UserError(f"task {empty[0]!r} has no texts")
        texts = [
            LabelledText(_ids(tokenizer, text), str(task), f"{task}/{number}")
            for task, several in data.items()
            for number, text in enumerate(several)
        ]
    elif all(isinstance(example, Example) for example in data):
        end = end_token(tokenizer) if data else None
        encoded = [(example, encode_example(tokenizer, example, end=end)) for example in data]
        texts = [
            LabelledText(code.tokens, example.task, f"{example.task}/{example.subject}")
            for example, code in encoded
        ]
    else:
        raise UserError(
            "the texts are not labelled with tasks: give a mapping {task: [text, …]}, or examples"
        )
    return LabelledCorpus(tuple(texts), common_prefix([text.tokens for text in texts]))


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with, at least one token of the shortest being left."""
    if len(rows) < 2:
        return 0
    texts = sorted(map(tuple, rows))  # what the first and the last share, all of them share
    return max(0, min(shared_length(texts[0], texts[-1]), min(map(len, rows)) - 1))


def check_enough(corpus: LabelledCorpus, *, tokens: int, units: int, least_tasks: int = 2) -> None:
    """Raise UserError unless there are several tasks with that many tokens and units each."""
    if len(corpus.tasks) < least_tasks:
        raise UserError(
            f"all texts are of one task ({corpus.tasks[0]!r}), so there is nothing to compare: "
            "give several sources, or data with a task column"
        )
    for task in corpus.tasks:
        if corpus.tokens[task] < tokens or corpus.units[task] < units:
            raise UserError(
                f"task {task!r} has {corpus.tokens[task]} tokens in {corpus.units[task]} "
                f"independent texts: at least {tokens} tokens in {units} texts are needed; give "
                "more data or leave the task out"
            )


def _ids(tokenizer: Any, text: Any) -> tuple[int, ...]:
    if isinstance(text, str):
        return tuple(prompt_ids(tokenizer, text))
    given = text.tolist() if isinstance(text, np.ndarray | Tensor) else text
    if not isinstance(given, list | tuple) or not all(
        isinstance(token, int | np.integer) and not isinstance(token, bool) and token >= 0
        for token in given
    ):
        raise UserError(f"a text must be text or token ids, got {type(text).__name__}")
    return tuple(map(int, given))
