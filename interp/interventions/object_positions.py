"""The positions at which a constraint acts: the tokens of the false object in the prompts.

``at`` of ``constrain`` may be one token span [start, end) per prompt (counted in the unpadded
prompt; None to leave a prompt alone), a mask [prompt pos], or any callable (tokens, mask) → mask.
Premises may be given in its place: their prompts are looked up, in any order and padding.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.arguments import listed, pairs_of_numbers
from interp.checked import checked
from interp.errors import UserError
from interp.files.text import one_line
from interp.forward.transfer import upload
from interp.premises.encode import EncodedPremises

ObjectPositions = Callable[[Int[Tensor, "prompt pos"], Bool[Tensor, "prompt pos"]], Tensor]
"""(token ids, mask of real tokens) → mask of the tokens to act on, all [prompt pos]."""


def positions_at(
    at: "Sequence[tuple[int, int] | None] | Tensor | ObjectPositions",
) -> ObjectPositions:
    """Spans, a mask or a callable, as a callable."""
    if isinstance(at, Tensor):
        return partial(_in_mask, at)
    if callable(at):
        return partial(_from_function, at)
    spans = listed("at", at, "token spans (start, end), one for each prompt")
    given = [span for span in spans if span is not None]
    pairs = iter(pairs_of_numbers("at", given, of="(start, end)"))
    return partial(_in_spans, [None if span is None else next(pairs) for span in spans])


@checked
def positions_in_premises(encoded: EncodedPremises) -> ObjectPositions:
    """A callable that finds the object in every prompt that begins like one of the premises'."""
    starts: dict[tuple[int, ...], int] = {}
    for item in encoded.items:
        for prompt in (item.false, item.twin):
            starts[prompt.tokens[: prompt.object[1]]] = prompt.object[0]
    lengths = sorted({len(key) for key in starts}, reverse=True)

    def find(tokens: Tensor, mask: Tensor) -> Tensor:
        at = torch.zeros(mask.shape, dtype=torch.bool)
        for row, (ids, real) in enumerate(zip(tokens.tolist(), mask.tolist(), strict=True)):
            first, prompt = real.index(True) if any(real) else 0, tuple(compress(ids, real))
            end = next((n for n in lengths if prompt[:n] in starts), None)
            if end is None:
                raise UserError(
                    f"prompt {row} of the batch is not one of the premises given to constrain: "
                    "give its spans with at="
                )
            at[row, first + starts[prompt[:end]] : first + end] = True
        return upload(at, mask.device)

    return find


def _in_spans(spans: Sequence[tuple[int, int] | None], tokens: Tensor, mask: Tensor) -> Tensor:
    copies = copies_of(tokens, len(spans))
    if not copies:
        raise UserError(f"{len(spans)} spans for {len(tokens)} prompts: give one per prompt")
    at, real = torch.zeros(mask.shape, dtype=torch.bool), mask.long()
    begins, lengths = torch.stack([real.argmax(dim=1), real.sum(dim=1)]).tolist()
    for row, (first, length) in enumerate(zip(begins, lengths, strict=True)):
        if (span := spans[row // copies]) is None:
            continue
        start, end = span
        if not 0 <= start < end <= length:
            raise UserError(
                f"span [{start}, {end}) of prompt {row // copies} is not in its {length} tokens "
                "(a prompt has to run whole: leave prefill_chunk_size out)"
            )
        at[row, first + start : first + end] = True
    return upload(at, mask.device)


def _in_mask(at: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    copies = copies_of(tokens, len(at)) if at.ndim == 2 else 0
    if not copies or at.shape[1] != tokens.shape[1]:
        raise UserError(
            f"the mask at= has shape {tuple(at.shape)}, the prompts {tuple(tokens.shape)}"
        )
    at = at.to(device=tokens.device, dtype=torch.bool)
    return at.repeat_interleave(copies, dim=0)


def _from_function(at: ObjectPositions, tokens: Tensor, mask: Tensor) -> Tensor:
    try:
        found = at(tokens, mask)
    except UserError:
        raise
    except Exception as error:  # a user's function may raise anything
        problem = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"the function at= cannot be used ({problem})") from error
    if not isinstance(found, Tensor) or found.shape != tokens.shape:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(
            f"the function at= gives {what}, and not a mask [prompt pos] of {tuple(tokens.shape)}"
        )
    if found.dtype != torch.bool and not bool(((found == 0) | (found == 1)).all()):
        raise UserError("the function at= gives other values than True and False, or 1 and 0")
    return found.to(device=tokens.device, dtype=torch.bool)


def copies_of(tokens: Int[Tensor, "row pos"], n_prompts: int) -> int:
    """How many consecutive rows each prompt has; 0 if the rows are not copies of the prompts.

    ``generate`` runs a prompt once for every beam and every returned sequence.
    """
    copies, rest = divmod(len(tokens), n_prompts) if n_prompts else (0, 1)
    if rest or not torch.equal(tokens, tokens[::copies].repeat_interleave(copies, dim=0)):
        return 0
    return copies
