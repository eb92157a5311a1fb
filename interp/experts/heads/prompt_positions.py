"""Which tokens of which prompts are looked at: the object, the subject, the last one, or spans."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.errors import UserError
from interp.forward.batch import Span, TokenBatch
from interp.heads.locate import as_encoded
from interp.models.hooked_model import HookedModel
from interp.premises.encode import EncodedPremises
from interp.premises.questions import Premises, QuestionKind

Where = Literal["object", "subject", "last"]


@dataclass(frozen=True)
class PromptColumns:
    """Prompts, the columns of each that are looked at, and what the prompts are about.

    Attributes:
        at: Bool[prompt pos], at least one column of every prompt.
        name: how the columns were asked for.
        groups: of each prompt, what is resampled together.
    """

    batch: TokenBatch
    at: Bool[Tensor, "prompt pos"]
    name: str
    groups: tuple[str, ...]


def check_place(at: object) -> None:
    """Raise UserError for an unknown place; spans are looked at with the prompts."""
    if isinstance(at, str) and at not in get_args(Where):
        known = ", ".join(get_args(Where))
        raise UserError(f"unknown place {at!r}; known: {known}, or one token span per prompt")


def prompt_columns(
    model: HookedModel,
    prompts: Premises | EncodedPremises | TokenBatch,
    at: Where | Sequence[Span],
    kind: QuestionKind = "false",
) -> PromptColumns:
    """The columns of premises' prompts of one kind, or of any tokens.

    Args:
        at: ``object``, ``subject`` (premises only), ``last``, or one token span [start, end) per
            prompt, counted in the unpadded prompt.

    Raises:
        UserError: an unknown place, one that tokens alone do not have, or spans that do not fit.
    """
    check_place(at)
    if isinstance(prompts, TokenBatch):
        batch, groups = prompts, tuple(str(index) for index in range(len(prompts)))
        if at in ("object", "subject"):
            raise UserError(f"tokens alone have no {at}: give premises, at='last', or token spans")
    else:
        encoded = as_encoded(model, prompts)
        batch, groups = encoded.batch(kind), encoded.subjects
        if at in ("object", "subject"):
            spans = [getattr(item.prompt(kind), str(at)) for item in encoded.items]
            return PromptColumns(batch, batch.columns(spans), str(at), groups)
    if at == "last":
        columns = torch.zeros_like(batch.mask)
        columns[:, -1] = True
        return PromptColumns(batch, columns, "last", groups)
    spans = [(int(start), int(end)) for start, end in at]  # type: ignore[misc]
    return PromptColumns(batch, batch.columns(spans), "spans", groups)
