"""Steering: adding fixed vectors to activations while the model runs, as a value.

The baselines that a constraint of heads has to beat. Two kinds are in use, and one type holds both:

* difference of means on the residual stream (Marks & Tegmark, arXiv 2310.06824; Zou et al.,
  arXiv 2310.01405): ``component`` ``resid_post``, one unit a layer;
* inference-time intervention on heads' outputs (Li et al., arXiv 2306.03341): ``component`` ``z``,
  a unit for each head.

``value ← value + strength · vector`` at the chosen tokens: the ``object`` of the question; ``all``
tokens; or the ``answer``, from the prompt's last token on, which is where the next token of an
answer is decided. The last two go on while decoding.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.arguments import one_of
from interp.errors import UserError
from interp.evaluation.jobs import preference_metrics
from interp.evaluation.preference import Preference
from interp.forward.batch import Span, TokenBatch
from interp.forward.generate import generate_tokens
from interp.forward.partial import Hook, hooked
from interp.heads.locate import as_encoded
from interp.models.hooked_model import HookedModel
from interp.patching.edits import ActivationEdit
from interp.patching.sweep import Unit, check_units, sweep_sets
from interp.premises.encode import EncodedPrompt, encode_questions
from interp.premises.questions import Premises, QuestionKind

SteeredComponent = Literal["resid_post", "z"]
SteeringPlace = Literal["object", "all", "answer"]


@dataclass(frozen=True, eq=False)
class Steering:
    """Vectors, and where they are added.

    Attributes:
        vectors: Float[layer unit width], what strength 1 adds to each unit of every layer.
        units: the (layer, unit) that are steered; unit 0 is a layer's residual stream.
        component: ``resid_post`` (the residual stream) or ``z`` (heads' outputs).
        place: the tokens: those of the ``object``, ``all``, or those of the ``answer``.
        strength: multiplies the vectors.
        chosen_by: how units and strength were chosen.
    """

    vectors: Float[Tensor, "layer unit width"] = field(repr=False)
    units: tuple[Unit, ...]
    component: SteeredComponent = "resid_post"
    place: SteeringPlace = "object"
    strength: float = 1.0
    chosen_by: str = "by hand"

    def __post_init__(self) -> None:
        if self.component not in get_args(SteeredComponent):
            known = ", ".join(get_args(SteeredComponent))
            raise UserError(f"{self.component!r} cannot be steered; known: {known}")
        one_of("place", self.place, get_args(SteeringPlace))
        if not bool(self.vectors.isfinite().all()) or not abs(self.strength) < float("inf"):
            raise UserError("steering vectors and their strength must be finite")
        n_layers, n_units = self.vectors.shape[:2]
        for layer, unit in self.units:
            if not (0 <= layer < n_layers and 0 <= unit < n_units):
                raise UserError(f"there is no vector for ({layer}, {unit})")

    def with_strength(self, strength: float) -> "Steering":
        """The same steering, weaker or stronger."""
        return replace(self, strength=strength)

    def with_units(self, units: tuple[Unit, ...]) -> "Steering":
        """The same vectors, added to other units."""
        return replace(self, units=units)

    def edit(self, at: Bool[Tensor, "prompt pos"]) -> ActivationEdit:
        """As an edit at some columns, for sweeps over sets of units."""
        shape = (len(self.vectors), *at.shape, *self.vectors.shape[1:])
        added = (self.strength * self.vectors).to(at.device)[:, None, None].expand(shape)
        return ActivationEdit(at, added, scale=1.0, component=self.component)


@contextmanager
def steer(model: HookedModel, steering: Steering, at: Bool[Tensor, "prompt pos"]) -> Iterator[Any]:
    """Steer one batch of prompts, and what is decoded after it, while the context is open.

    Args:
        at: the columns of the batch to steer; decoding is steered unless the place is the object.

    Raises:
        UserError: a unit that the model does not have, or a run of other prompts than ``at``'s.
    """
    check_units(model, steering.units, steering.component)
    layers = sorted({layer for layer, _ in steering.units})
    with hooked(model, [_hook(steering, at, layer) for layer in layers]):
        yield model


def _hook(steering: Steering, at: Bool[Tensor, "prompt pos"], layer: int) -> Hook:
    """The hook of one layer: the steering's edit of a prefill, and of every decoding step."""
    rows = torch.arange(len(at), device=at.device)
    units = at.new_zeros(len(at), steering.vectors.shape[1])
    units[:, [unit for of_layer, unit in steering.units if of_layer == layer]] = True
    name, prefill = steering.edit(at).hook(layer, rows, units, 0)
    # A decoding step has one column, which comes after the object.
    _, decode = steering.edit(at.new_full((len(at), 1), steering.place != "object")).hook(
        layer, rows, units, 0
    )

    def add(value: Tensor, hook: Any) -> Any:
        n_rows, columns = value.shape[:2]
        if n_rows != len(at) or columns not in (1, at.shape[1]):
            raise UserError(
                f"steering was made for {len(at)} prompts of {at.shape[1]} tokens, but "
                f"{n_rows} of {columns} run"
            )
        return (prefill if columns == at.shape[1] else decode)(value, hook)

    return name, add


def steered_columns(
    place: SteeringPlace,
    batch: TokenBatch,
    spans: Sequence[Span],
    lengths: Sequence[int],
) -> Bool[Tensor, "prompt pos"]:
    """The columns that are steered; ``lengths`` are those of the bare questions' prompts."""
    if place == "object":
        return batch.columns(spans)
    if place == "all":
        return batch.mask
    ends = [int(real.sum()) for real in batch.mask]
    return batch.columns([(length - 1, end) for length, end in zip(lengths, ends, strict=True)])


def steered_preference(
    model: HookedModel,
    premises: Premises,
    steering: Steering,
    kind: QuestionKind,
    *,
    sets: Sequence[Sequence[Unit]] | None = None,
    progress: bool = True,
) -> Preference:
    """Preference under steering, for its own units or for several sets of units at once."""
    encoded = as_encoded(model, premises)
    batch = encoded.batch(kind)
    spans = [item.prompt(kind).object for item in encoded.items]
    lengths = [len(one.tokens) for one in encode_questions(model.tokenizer, premises, kind)]
    values = sweep_sets(
        model,
        batch,
        steering.edit(steered_columns(steering.place, batch, spans, lengths)),
        [steering.units] if sets is None else sets,
        preference_metrics(encoded),
        progress=progress,
        description=f"steering, {kind}",
    )
    return Preference.from_values(values, encoded)


def steered_answers(
    model: HookedModel,
    prompts: Sequence[EncodedPrompt],
    steering: Steering,
    *,
    max_new_tokens: int,
    progress: bool = True,
) -> tuple[str, ...]:
    """The greedy answer to every bare question under steering."""

    def within(chunk: list[int], batch: TokenBatch) -> AbstractContextManager[Any]:
        some = [prompts[index] for index in chunk]
        spans, lengths = [one.object for one in some], [len(one.tokens) for one in some]
        return steer(model, steering, steered_columns(steering.place, batch, spans, lengths))

    tokens = [prompt.tokens for prompt in prompts]
    return tuple(
        generate_tokens(
            model, tokens, max_new_tokens=max_new_tokens, within=within, progress=progress
        )
    )
