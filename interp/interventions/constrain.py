"""``constrain``: FAITH as a context manager on a hooked model, for forward passes and generation.

While it is open, every prefill first finds the places to act on in its prompts; the heads' hooks
then act there, and on every decoding step where the site asks for it. Nothing stays behind.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.heads.headset import Head, HeadSet, Site, as_head_set
from interp.heads.locate import as_encoded
from interp.heads.sources import mean_output
from interp.interventions.constraint import Constraint, Mode
from interp.interventions.places import Places, places_at, places_of_premises
from interp.patching.batch import TokenBatch
from interp.patching.components import hook_name
from interp.patching.edits import AttentionEdit, scores_hook_name
from interp.patching.forward import Hook, HookFunction, hooked, record_run
from interp.patching.sweep import check_units
from interp.premises.encode import DEFAULT_MASK, EncodedPremises
from interp.premises.questions import Premises

SPACES = ("Ġ", "▁")
"""How byte-level and SentencePiece vocabularies write the space before a word."""


class _Prefill:
    """The prompts that are running: where to act in them, and what to put there."""

    def __init__(self, model: Any, constraint: Constraint, places: Places, mask_text: str) -> None:
        self.model, self.constraint, self.places = model, constraint, places
        self.mask_text = mask_text
        self.at: Tensor | None = None
        self.resampled: dict[int, Tensor] = {}
        self.prefilling = False
        self.columns = 0
        self.suspended = False

    def begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before every forward pass of the model: a prefill, or a decoding step after one?"""
        if self.suspended:
            return
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens is None:
            raise UserError("constrain needs token ids: embeddings hide where the false object is")
        past = kwargs.get("past_key_values")
        seen = past.get_seq_length() if past is not None else 0
        self.prefilling = seen == 0
        self.columns = seen + tokens.shape[1]
        if not self.prefilling:
            if self.at is None or len(self.at) != len(tokens):
                raise UserError(
                    "a cache from outside the constraint cannot be continued: run the whole prompt"
                )
            return
        mask = kwargs.get("attention_mask")
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
        self.at = self.places(tokens, real)
        if self.constraint.mode == "resample" and self.constraint.heads.heads:
            self.suspended = True
            try:
                self.resampled = self._resample(tokens, real)
            finally:
                self.suspended = False

    def _resample(self, tokens: Tensor, real: Tensor) -> dict[int, Tensor]:
        """Per layer, the outputs at the object when a neutral word stands there instead."""
        assert self.at is not None
        prompts: list[list[int]] = []
        ends: list[tuple[int, int] | None] = []
        for row in range(len(tokens)):
            where = self.at[row].nonzero()[:, 0]
            if len(where) == 0:
                prompts.append(tokens[row][real[row]].tolist())
                ends.append(None)
                continue
            before = tokens[row, : where[0]][real[row, : where[0]]].tolist()
            space, neutral = self._neutral(int(tokens[row, where[0]]))
            prompts.append([*before, *space, *neutral])
            ends.append((len(before) + len(space), len(neutral)))
        batch = TokenBatch.from_lists(prompts, device=tokens.device)
        z = record_run(self.model, batch).z
        layers = sorted({layer for layer, _ in self.constraint.heads})
        out = {layer: z.new_zeros(*self.at.shape, *z.shape[3:]) for layer in layers}
        for row, end in enumerate(ends):
            if end is None:
                continue
            places = self.at[row].nonzero()[:, 0]
            offset, length = int(batch.offsets[row]) + end[0], end[1]
            # Aligned by the last token; a longer object repeats the neutral word's first token.
            steps = torch.arange(length - len(places), length).clamp(min=0) + offset
            for layer in layers:
                out[layer][row, places] = z[layer, row, steps.to(z.device)]
        return out

    def _neutral(self, first: int) -> tuple[list[int], list[int]]:
        """The neutral word's tokens, after a space where the object's first token has one.

        A token that is nothing but the space comes apart: it is not in the word's span.
        """
        tokenizer = self.model.tokenizer
        spaced = tokenizer.convert_ids_to_tokens(first)[:1] in SPACES
        text = f" {self.mask_text}" if spaced else self.mask_text
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        alone = int(tokenizer.convert_ids_to_tokens(ids[0]) in SPACES)
        return ids[:alone], ids[alone:]


def _output_hook(state: _Prefill, layer: int, heads: Tensor, mean: Tensor | None) -> Hook:
    mode, factor = state.constraint.mode, state.constraint.factor

    def write(z: Tensor, hook: object) -> Tensor:
        if state.suspended or not state.prefilling:
            return z
        assert state.at is not None
        where = state.at[:, :, None, None] & heads[None, None, :, None].to(z.device)
        if mode == "mean":
            assert mean is not None
            new = mean[layer].to(device=z.device, dtype=z.dtype).expand_as(z)
        elif mode == "resample":
            new = state.resampled[layer].to(z.dtype)
        else:
            new = factor * z
        return torch.where(where, new, z)

    return hook_name("z", layer), write


def _attention_hook(state: _Prefill, layer: int, heads: Tensor) -> Hook:
    factor = state.constraint.factor

    def cut(scores: Tensor, hook: object) -> Tensor:
        if state.suspended:
            return scores
        assert state.at is not None
        queries, keys = scores.shape[2:]
        # While decoding there are more columns than the prompt had: none of them is the object.
        # A layer with a sliding window has kept the keys of the last columns only.
        at = torch.nn.functional.pad(state.at, (0, state.columns - state.at.shape[1]))
        at = at[:, -keys:].to(scores.device)
        rows = torch.arange(len(at), device=at.device)
        everywhere = heads.to(at.device).expand(len(at), -1)
        _, edit = AttentionEdit(at, factor).hook(layer, rows, everywhere, keys - queries)
        return cast(Tensor, edit(scores, hook))

    return scores_hook_name(layer), cut


def _hooks(model: Any, state: _Prefill, mean: Tensor | None) -> list[Hook]:
    hooks: list[tuple[str, HookFunction]] = []
    for layer in sorted({layer for layer, _ in state.constraint.heads}):
        heads = torch.zeros(model.cfg.n_heads, dtype=torch.bool)
        heads[[head for at, head in state.constraint.heads if at == layer]] = True
        if state.constraint.site == "output":
            hooks.append(_output_hook(state, layer, heads, mean))
        else:
            hooks.append(_attention_hook(state, layer, heads))
    return hooks


@contextmanager
def constrain(
    model: Any,
    heads: HeadSet | Iterable[Head] | Constraint,
    *,
    at: Sequence[tuple[int, int]] | Tensor | Places | None = None,
    premises: Premises | EncodedPremises | None = None,
    site: Site | None = None,
    mode: Mode = "zero",
    factor: float = 0.0,
    reference: Premises | EncodedPremises | None = None,
    mean: Float[Tensor, "layer head d_head"] | None = None,
    neutral: str | None = None,
) -> Iterator[Any]:
    """Constrain heads at the false object while the context is open.

    Args:
        heads: a HeadSet, (layer, head) tuples with ``site``, or a whole Constraint.
        at: where the false object is, or ``premises`` to look it up in; see
            ``interp.interventions.places``. Exactly one of the two.
        mode, factor: see ``interp.interventions.constraint``.
        reference: premises whose mean output mode ``mean`` uses (``premises`` if not given), or
            the ``mean`` itself.
        neutral: the word that mode ``resample`` puts in the object's place; by default the mask of
            the premises' relation, or ``XXXX``.

    Yields:
        the model, for forward passes, ``interp.generate`` or its own generation.

    Raises:
        UserError: a head that the model does not have, a mode that does not fit the site, or
            places that do not fit the prompts.
    """
    if isinstance(heads, Constraint):
        constraint = heads
    else:
        constraint = Constraint(as_head_set(heads, site), mode, factor)
    check_units(model, constraint.heads.heads)
    if (at is None) == (premises is None):
        raise UserError("constrain needs to know where the false object is: give at= or premises=")
    encoded = as_encoded(model, premises) if premises is not None else None
    places = places_of_premises(encoded) if encoded is not None else places_at(at)  # type: ignore[arg-type]
    if constraint.mode == "mean" and mean is None:
        source = reference if reference is not None else encoded
        if source is None:
            raise UserError("mode 'mean' needs reference= premises to take the mean over")
        mean = mean_output(model, as_encoded(model, source))
    if neutral is None:
        neutral = encoded.mask if encoded is not None else DEFAULT_MASK
    state = _Prefill(model, constraint, places, neutral)
    with hooked(model, _hooks(model, state, mean)):
        handle = model.original_model.register_forward_pre_hook(state.begin, with_kwargs=True)
        try:
            yield model
        finally:
            handle.remove()
