"""Answers under a constraint: with the cache as generate uses it, in batches, with beams."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

import interp
from interp.heads.headset import Site
from tests.zoo.outcome import CLOSE
from tests.zoo.specimen import PROMPTS, SPAN, Specimen

NEW = 5
"""Tokens that are generated."""
BATCH = PROMPTS[2], PROMPTS[0]


def _edits(one: Specimen, site: Site) -> dict[Any, Any]:
    if site == "attention":
        one.need_patterns()
    else:
        one.need_heads()
    heads = one.heads(range(one.reference.n_heads))
    return (one.cuts if site == "attention" else one.silences)(heads, SPAN)


def _everywhere(tokens: Tensor, mask: Tensor) -> Tensor:
    """The span, in however many rows generate makes of one prompt."""
    at = torch.zeros_like(mask)
    at[:, SPAN[0] : SPAN[1]] = True
    return at


def _generate(
    one: Specimen, site: Site, prompts: Sequence[Sequence[int]], **more: Any
) -> list[Any]:
    """The engine's tokens, new ones only, without padding at their end."""
    at = _everywhere if "num_beams" in more else [SPAN] * len(prompts)
    width = max(map(len, prompts))
    ids = torch.tensor([[1] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    heads = one.heads(range(one.reference.n_heads))
    with interp.constrain(one.model, heads, at=at, site=site):
        said = one.model.original_model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=1,
            **more,
        )
    return [_ended(row[width:].tolist()) for row in said]


def _ended(tokens: list[int]) -> list[int]:
    """To the first end token."""
    return tokens[: tokens.index(1) + 1] if 1 in tokens else tokens


def generation_checks(one: Specimen) -> Iterator[Any]:
    """One prompt at each site, and two of different lengths."""
    for site in get_args(Site):
        chosen: dict[str, Sequence[int]] = {}

        def right(site: Site = site, chosen: dict[str, Any] = chosen) -> list[Any]:
            edits, said = _edits(one, site), None
            for prompt in PROMPTS:
                chosen["prompt"] = prompt
                said = one.reference.greedy(prompt, NEW, edits)
                if said != one.reference.greedy(prompt, NEW):  # else nothing would be shown
                    break
            return [said]

        yield (
            site,
            right,
            lambda site=site, chosen=chosen: _generate(
                one, site, [chosen.get("prompt", PROMPTS[0])]
            ),
            CLOSE,
        )

    def each() -> list[Any]:
        edits = _edits(one, "attention")
        return [one.reference.greedy(prompt, NEW, edits) for prompt in BATCH]

    yield "padded", each, lambda: _generate(one, "attention", BATCH), CLOSE


def beam_checks(one: Specimen) -> Iterator[Any]:
    """Two beams, at each site: as transformers gives them with the same edits and no cache."""
    for site in get_args(Site):

        def right(site: Site = site) -> list[Any]:
            with torch.no_grad(), one.reference.editing(_edits(one, site)):
                said = one.reference.model.generate(
                    input_ids=torch.tensor([PROMPTS[0]]),
                    max_new_tokens=NEW,
                    do_sample=False,
                    attention_mask=torch.ones(1, len(PROMPTS[0]), dtype=torch.long),
                    num_beams=2,
                    use_cache=False,
                    pad_token_id=1,
                )
            return [_ended(said[0, len(PROMPTS[0]) :].tolist())]

        ask: Callable[[], Any] = lambda site=site: _generate(one, site, PROMPTS[:1], num_beams=2)  # noqa: E731
        yield site, right, ask, CLOSE
