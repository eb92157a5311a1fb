"""Logits at some tokens of a forward pass, without those of all others.

A vocabulary is a hundred times as wide as a model: the logits of eight questions take more memory
than everything else in the pass. Where a model's logits are what its unembedding gives and nothing
more, the pass computes those of the last position only, and the unembedding then runs on the tokens
that are asked for, some at a time. Models that cap or scale their logits compute all of them.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.models.call import call_model
from interp.models.placement import input_device

_ends_in_unembedding: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()
"""By unembedding, whether its output is the model's logits."""
TRIED = 8
"""Tokens on which that is tried."""


LogitsOf = Callable[[Int[Tensor, " token"], Int[Tensor, " token"]], Float[Tensor, "token d_vocab"]]
"""Logits of tokens, given the row and the position of each."""


def run_for_logits(hf_model: Any, run: Callable[[], Float[Tensor, "row keep d_vocab"]]) -> LogitsOf:
    """Run a forward pass; gives what computes the logits of tokens in it.

    Call `ends_in_unembedding` before, where hooks are on that should not see its pass.

    Args:
        run: returns the logits of the last ``keep`` positions, or of the last alone if the
            unembedding is given no more. Positions of tokens are counted in these.
    """
    seen: list[Tensor] = []

    def shorten(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(args[0])
        return args[0][:, -1:], *args[1:]

    if not ends_in_unembedding(hf_model):
        logits = run()
        return lambda rows, positions: logits[rows.to(logits.device), positions.to(logits.device)]
    unembedding = hf_model.get_output_embeddings()
    with unembedding.register_forward_pre_hook(shorten):
        run()
    given = seen[0]
    return lambda rows, positions: unembedding(
        given[None, rows.to(given.device), positions.to(given.device)]
    )[0]


def ends_in_unembedding(hf_model: Any) -> bool:
    """Whether a model's logits are its unembedding's output: tried once, on a few tokens.

    They are spread over the vocabulary: of a token for padding, whose embedding may be zero, a cap
    changes nothing.
    """
    unembedding = hf_model.get_output_embeddings()
    if unembedding is None:
        return False
    if unembedding not in _ends_in_unembedding:
        outputs: list[Any] = []
        last = hf_model.config.get_text_config().vocab_size - 1
        tokens = torch.linspace(0, last, TRIED, device=input_device(hf_model)).long()[None]
        with unembedding.register_forward_hook(lambda *seen: outputs.append(seen[-1])):
            logits = call_model(hf_model, tokens, torch.ones_like(tokens).bool(), keep=TRIED)
        _ends_in_unembedding[unembedding] = (
            len(outputs) == 1
            and isinstance(outputs[0], Tensor)
            and torch.equal(outputs[0].to(logits), logits)
            and bool(logits.any())
        )
    return _ends_in_unembedding[unembedding]
