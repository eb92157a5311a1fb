"""The inputs of the adapted projections while a model runs, without its logits.

The model's own modules run as they are; a light hook sees what each adapted projection reads. The
unembedding, a fifth of a small model's work, is left out; what all texts begin with is run once.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

LEAST_SHARED = 4
"""A beginning of fewer tokens is not worth a cache."""

OnInput = Callable[[int, Tensor], None]


def base_of(model: Any) -> Any:
    """The transformers model inside a PEFT model or a hooked one, or the model itself."""
    if isinstance(model, PeftModel):
        return model.get_base_model()
    original = getattr(model, "original_model", None)
    return model if original is None else original


@contextmanager
def observing(layers: Iterable[nn.Module], on_input: OnInput) -> Iterator[None]:
    """Call ``on_input(number, input)`` whenever a layer runs."""

    def hook(layer: Any, args: tuple[Any, ...], *, number: int) -> None:
        on_input(number, args[0])

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            stack.callback(layer.register_forward_pre_hook(partial(hook, number=number)).remove)
        yield


class Runner:
    """Forward passes up to the last hidden states; what all texts begin with is run once."""

    def __init__(self, model: Any, beginning: Sequence[int] = ()) -> None:
        base = base_of(model)
        self.inner: Any = getattr(base, "base_model", base)
        self.device = next(iter(base.parameters())).device
        self.begun: DynamicCache | None = None
        # A hooked model's own hooks may act on whole prompts only.
        if len(beginning) >= LEAST_SHARED and base is not getattr(model, "original_model", None):
            self.begun = DynamicCache(config=base.config)
            tokens = torch.tensor([list(beginning)], device=self.device)
            self.inner(input_ids=tokens, past_key_values=self.begun, use_cache=True)
            self.length = len(beginning)

    def __call__(self, tokens: Int[Tensor, "text pos"], mask: Bool[Tensor, "text pos"]) -> None:
        """Run texts padded on the right, whole or behind the beginning that they share."""
        tokens, whole = tokens.to(self.device), mask.long().to(self.device)
        if self.begun is None:
            self.inner(input_ids=tokens, attention_mask=whole, use_cache=False)
            return
        cache = copy.deepcopy(self.begun)
        cache.batch_repeat_interleave(len(tokens))
        self.inner(
            input_ids=tokens[:, self.length :],
            attention_mask=whole,
            past_key_values=cache,
            use_cache=True,
        )
