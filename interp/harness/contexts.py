"""Where a constraint acts while a harness scores continuations of contexts.

A harness runs a context and its continuation in one pass, padded on the right and without a mask.
The gate reads the context alone, once for all of its continuations, and up to where the answer
begins: what follows is the answer, also where a task puts its first words into the context.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.attached.places import Ids, prompt_ids
from interp.attached.prompt_text import PromptText, QuestionFrame
from interp.errors import UserError
from interp.forward.batch import Span
from interp.forward.transfer import upload
from interp.interventions.object_positions import ObjectPositions
from interp.progress import progress_bar

PlainText = Literal["refuse", "leave"]
"""What to do with a prompt that is no question in the chat format."""
READ_AT_ONCE = 32
"""Contexts that the detector is given together."""
PADDING = 0
"""The token that a harness pads with on the right."""


class PlacesInContexts:
    """Positions for ``attach``: of rows that are scored, or of prompts that are continued.

    Attributes:
        acts: whether the constraint acts at all; the gate is closed otherwise.
    """

    def __init__(
        self,
        find: ObjectPositions,
        frame: QuestionFrame,
        *,
        plain_text: PlainText = "refuse",
        log: Path | None = None,
    ) -> None:
        """Take what finds the false words in prompts, and the model's chat format.

        Args:
            log: a file to which each prompt that is read is added, with the words found in it.
        """
        self._find, self._frame, self._plain_text, self._log = find, frame, plain_text, log
        self._read: dict[Ids, Span | None] = {}
        self._rows: Mapping[Ids, Span | None] | None = None
        self.acts = True

    def spans(self, contexts: Sequence[Ids], *, progress: bool = False) -> list[Span | None]:
        """The false words of each context, as tokens [start, end); None where there are none.

        Raises:
            UserError: a context is no question in the chat format, unless these are to be left.
        """
        unread = [ids for ids in dict.fromkeys(contexts) if ids not in self._read]
        prompts = {ids: self._prompt(ids) for ids in unread}
        self._read.update((ids, None) for ids, prompt in prompts.items() if prompt is None)
        to_read = sorted(
            ((ids, prompt) for ids, prompt in prompts.items() if prompt is not None),
            key=lambda pair: len(pair[1]),
        )
        bar = progress_bar(
            total=len(to_read), shown=progress and bool(to_read), description="gate reads prompts"
        )
        with bar:
            for begin in range(0, len(to_read), READ_AT_ONCE):
                part = to_read[begin : begin + READ_AT_ONCE]
                found = self._spans_of([prompt for _, prompt in part])
                self._read.update(zip((ids for ids, _ in part), found, strict=True))
                self._note([ids for ids, _ in part])
                bar.update(len(part))
        return [self._read[ids] for ids in contexts]

    @property
    def counts(self) -> dict[str, int]:
        """How many prompts were read, and at how many of them the gate opened."""
        opened = sum(span is not None for span in self._read.values())
        return {"prompts": len(self._read), "gate_open": opened}

    def _note(self, contexts: Sequence[Ids]) -> None:
        """Add prompts to the log."""
        if self._log is None:
            return
        decode = self._frame.tokenizer.decode
        with self._log.open("a", encoding="utf-8") as file:
            for ids in contexts:
                span = self._read[ids]
                words = None if span is None else decode(ids[slice(*span)])
                file.write(json.dumps({"prompt": decode(ids), "words": words}) + "\n")

    def opened(self, context: Ids) -> bool:
        """Whether a context was read, and has false words."""
        return self._read.get(context) is not None

    def _prompt(self, ids: Ids) -> Ids | None:
        """What the detector reads of a context; None if there is no question in it."""
        prompt = PromptText.of(self._frame.tokenizer, ids)
        if self._frame.question_in(prompt) is not None:
            return self._frame.before_answer(prompt)
        if self._plain_text == "refuse":
            raise UserError(
                "a prompt of this task is no question in the model's chat format, and the detector "
                "reads no other: add --apply_chat_template, or plain_text=leave to --model_args, "
                "which runs such prompts without the constraint"
            )
        return None

    def _spans_of(self, prompts: Sequence[Ids]) -> list[Span | None]:
        width = max(map(len, prompts))
        tokens = torch.full((len(prompts), width), PADDING)
        mask = torch.zeros((len(prompts), width), dtype=torch.bool)
        for row, ids in enumerate(prompts):
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = True
        found = []
        for at in self._find(tokens, mask).tolist():
            chosen = [position for position, acts in enumerate(at) if acts]
            found.append((chosen[0], chosen[-1] + 1) if chosen else None)
        return found

    @contextmanager
    def scoring(self, rows: Mapping[Ids, Span | None]) -> Iterator[None]:
        """While open, the passes are of these rows, by their tokens as `without_padding`."""
        before, self._rows = self._rows, rows
        try:
            yield
        finally:
            self._rows = before

    def __call__(
        self, tokens: Int[Tensor, "prompt pos"], mask: Bool[Tensor, "prompt pos"]
    ) -> Bool[Tensor, "prompt pos"]:
        """The positions to act at, as `ObjectPositions` gives them."""
        at = torch.zeros(mask.shape, dtype=torch.bool)
        if self.acts and self._rows is None:
            spans = self.spans(prompt_ids(tokens, mask))
            begins = mask.long().argmax(dim=1).tolist()
        elif self.acts and self._rows is not None:
            spans = [self._rows[without_padding(ids)] for ids in tokens.tolist()]
            begins = [0] * len(spans)
        else:
            spans, begins = [], []
        for row, (span, begin) in enumerate(zip(spans, begins, strict=True)):
            if span is not None:
                at[row, begin + span[0] : begin + span[1]] = True
        return upload(at, mask.device)


def without_padding(ids: Sequence[int]) -> Ids:
    """The tokens of a row up to the last one that is not padding."""
    end = len(ids)
    while end and ids[end - 1] == PADDING:
        end -= 1
    return tuple(ids[:end])
