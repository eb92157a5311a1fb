"""The prompts that run on an attached model, and the hooks that are in its layers meanwhile.

The hooks are put in when a prefill holds a false object, and taken out when they have nothing to
do: those of site ``output`` after the prefill, all of them at the next prefill. A batch in which no
prompt is constrained runs on the model as it is.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from transformers.cache_utils import Cache

from interp.attached.head_mask import cut_pairs
from interp.attached.resampled import Resampler
from interp.errors import UserError
from interp.interventions.object_positions import ObjectPositions
from interp.interventions.prompt_positions import OUTSIDE, PromptPositions

ONE_THREAD = (
    "another thread runs this attached model, which keeps the positions of one batch of prompts: "
    "let the threads take turns (a lock around generate), or give each a model of its own"
)


class Handle(Protocol):
    """What was put into a layer, such as a hook."""

    def remove(self) -> None:
        """Take it out."""
        ...


Install = Callable[["AttachedState"], Sequence[Handle]]
"""Puts the hooks of one site into the layers."""


class AttachedState(PromptPositions):
    """The positions of the prompts that run on a transformers model.

    Attributes:
        first_query: the position of the pass's first token, padding included.
        n_prompt: the width of the prompts, padding included.
        resampled: per layer [prompt pos head d_head], for mode ``resample``.
        strength: Float[prompt], from 0 (no effect) to 1 (the whole constraint); None for all 1.
    """

    def __init__(
        self,
        find: ObjectPositions,
        *,
        in_prefill: Sequence[Install] = (),
        in_every_pass: Sequence[Install] = (),
        read_strength: Callable[[], Float[Tensor, " prompt"] | None] = lambda: None,
        resampler: Resampler | None = None,
    ) -> None:
        """Args beside the positions: ``read_strength`` is called when they have been found, and
        ``resampler`` then gives the values of mode ``resample``."""
        super().__init__(find)
        self._resampler, self.resampled = resampler, dict[int, Tensor]()
        self._read_strength, self.strength = read_strength, read_strength()
        self._in_prefill, self._in_every_pass = tuple(in_prefill), tuple(in_every_pass)
        self._handles: dict[bool, list[Handle]] = {True: [], False: []}
        self._prompts: Tensor | None = None
        self._width = 0
        self.first_query = 0
        self.n_prompt = 0
        self._pairs: dict[tuple[Any, ...], Tensor] = {}
        self._running, self._open_passes, self._prefilled_by = 0, 0, 0
        self._without_cache = False
        self._cache: weakref.ref[Any] | None = None
        self._earlier_caches: weakref.WeakSet[Any] = weakref.WeakSet()

    def note(self, arguments: dict[str, Any]) -> None:
        """Take in what a pass is called with, before `begin`.

        Raises UserError for the cache of an earlier prompt.
        """
        if self.suspended:
            return
        cache = arguments.get("past_key_values")
        self._without_cache = arguments.get("use_cache") is False
        if not isinstance(cache, Cache):
            return
        if cache.get_seq_length():
            if cache in self._earlier_caches:
                raise UserError(OUTSIDE)
        else:
            self._take_cache(cache)

    def _take_cache(self, cache: Cache) -> None:
        """The cache of the prompts that are running; one before it is that of earlier ones."""
        before = None if self._cache is None else self._cache()
        if before is not None and before is not cache:
            self._earlier_caches.add(before)
        self._earlier_caches.discard(cache)
        self._cache = weakref.ref(cache)

    def begin(self, tokens: Tensor | None, mask: Tensor | None, seen: int) -> None:
        """As in `PromptPositions`, and put the hooks in, or take them out.

        Raises UserError for a pass of another thread than the one whose prompts are running.
        """
        thread = threading.get_ident()
        if self._open_passes and self._running != thread:
            raise UserError(ONE_THREAD)
        self._running = thread
        self._open_passes += 1
        if self.suspended:
            return
        if seen and self._prefilled_by not in (0, thread):
            raise UserError(ONE_THREAD)
        self._prefilled_by = thread
        if seen:
            self._remove(prefill_only=True)
        super().begin(tokens, mask, seen)
        self.first_query = seen
        self._pairs.clear()

    def end(self, output: Any = None) -> None:
        """A pass is over; ``output`` is None if it raised an error."""
        cache = getattr(output, "past_key_values", None)
        if self.prefilling and not self.suspended and isinstance(cache, Cache):
            self._take_cache(cache)  # which the model has made
        if self._open_passes and self._running == threading.get_ident():
            self._open_passes -= 1

    def pairs(
        self,
        *,
        n_queries: int,
        first_key: int,
        n_keys: int,
        device: torch.device,
        end: int | None = None,
    ) -> Bool[Tensor, "prompt query key"]:
        """The pairs that are cut in this pass, which layers with the same keys share."""
        key = (n_queries, first_key, n_keys, device, end)
        if key not in self._pairs:
            self._pairs[key] = cut_pairs(
                self.positions.to(device),
                first_query=self.first_query,
                n_queries=n_queries,
                first_key=first_key,
                n_keys=n_keys,
                end=end,
            )
        return self._pairs[key]

    def factor_of(self, factor: float) -> float | Float[Tensor, " prompt"]:
        """What a constraint of that factor multiplies by in each prompt."""
        return factor if self.strength is None else 1 - self.strength * (1 - factor)

    def prefill(self, tokens: Tensor, real: Tensor) -> None:
        """Find the positions, unless this is the last prefill with one token more, without a cache.

        Generation without a cache runs the whole text again for every token: what it has said does
        not count as the prompt.
        """
        before, self._width = self._width, tokens.shape[1]
        prompts = self._prompts
        if (
            self._without_cache
            and prompts is not None
            and before
            and tokens.shape == (len(prompts), before + 1)
            and torch.equal(tokens[:, : prompts.shape[1]], prompts)
        ):
            self.positions = F.pad(self.positions, (0, 1))
            for layer, values in self.resampled.items():
                self.resampled[layer] = F.pad(values, (0, 0, 0, 0, 0, 1))
            return
        self.remove_hooks()
        self._prompts, self._width = None, 0
        self.suspended = True  # a detector runs the model as it is
        try:
            super().prefill(tokens, real)
            if self._resampler is not None and bool(self.positions.any()):
                self.resampled = self._resampler.outputs(tokens, real, self.positions)
        finally:
            self.suspended = False
        self._prompts, self._width = tokens.clone(), tokens.shape[1]
        self.n_prompt, self.strength = self._width, self._read_strength()
        if bool(self.positions.any()):
            for prefill_only, sites in ((True, self._in_prefill), (False, self._in_every_pass)):
                for install in sites:
                    self._handles[prefill_only] += install(self)

    @property
    def n_hooks(self) -> int:
        """How many hooks are in the layers."""
        return sum(map(len, self._handles.values()))

    def forget(self) -> None:
        """Take the next prefill for a new one, whatever its tokens."""
        self._prompts, self._width = None, 0

    def remove_hooks(self) -> None:
        """Take all hooks out of the layers."""
        self._remove(prefill_only=True)
        self._remove(prefill_only=False)

    def _remove(self, *, prefill_only: bool) -> None:
        handles = self._handles[prefill_only]
        while handles:
            handles.pop().remove()
