"""Steering: add fixed vectors to activations while the model runs.

Steering is the baseline of constraints on heads. One type holds both kinds in use:

* difference of means on the residual stream (Marks & Tegmark, arXiv 2310.06824; Zou et al.,
  arXiv 2310.01405): ``component`` ``resid_post``, one unit a layer;
* inference-time intervention on heads' outputs (Li et al., arXiv 2306.03341): ``component`` ``z``,
  a unit for each head.

``value ← value + strength · vector`` at the chosen tokens: the ``object`` of the question; ``all``
tokens; or the ``answer``, from the prompt's last token on, where the answer's first token is
predicted. The last two also act while decoding.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.arguments import check_choice
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
    """Vectors, and the units and tokens to which they are added.

    Attributes:
        vectors: Float[layer unit width], added to each unit of every layer with strength 1.
        units: the (layer, unit) that are steered; unit 0 is a layer's residual stream.
        component: ``resid_post`` (the residual stream) or ``z`` (heads' outputs).
        place: the tokens: ``object``, ``all``, or ``answer``.
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
        check_choice("component", self.component, get_args(SteeredComponent))
        check_choice("place", self.place, get_args(SteeringPlace))
        if not bool(self.vectors.isfinite().all()) or not abs(self.strength) < float("inf"):
            raise UserError("steering vectors and their strength must be finite")
        n_layers, n_units = self.vectors.shape[:2]
        for layer, unit in self.units:
            if not (0 <= layer < n_layers and 0 <= unit < n_units):
                raise UserError(f"there is no vector for ({layer}, {unit})")

    def with_strength(self, strength: float) -> "Steering":
        """The same steering, weaker or stronger."""
        return replace(self, strength=strength)

    def edit(self, at: Bool[Tensor, "prompt pos"]) -> ActivationEdit:
        """The edit at some positions, for sweeps over sets of units."""
        shape = (len(self.vectors), *at.shape, *self.vectors.shape[1:])
        added = (self.strength * self.vectors).to(at.device)[:, None, None].expand(shape)
        return ActivationEdit(at, added, scale=1.0, component=self.component)


@contextmanager
def steer(model: HookedModel, steering: Steering, at: Bool[Tensor, "prompt pos"]) -> Iterator[Any]:
    """Steer one batch of prompts, and what is decoded after it, while the context is open.

    Args:
        at: the positions to steer; decoding is steered unless ``place`` is ``object``.

    Raises:
        UserError: a unit that the model does not have, or a run on other prompts than ``at``'s.
    """
    check_units(model, steering.units, steering.component)
    layers = sorted({layer for layer, _ in steering.units})
    with hooked(model, [_hook(steering, at, layer) for layer in layers]):
        yield model


def _hook(steering: Steering, at: Bool[Tensor, "prompt pos"], layer: int) -> Hook:
    """The hook of one layer: the edit of the prefill, and of every decoding step."""
    rows = torch.arange(len(at), device=at.device)
    units = at.new_zeros(len(at), steering.vectors.shape[1])
    units[:, [unit for at_layer, unit in steering.units if at_layer == layer]] = True
    name, prefill = steering.edit(at).hook(layer, rows=rows, units=units, start=0)
    # A decoding step has one position, which comes after the object.
    _, decode = steering.edit(at.new_full((len(at), 1), steering.place != "object")).hook(
        layer, rows=rows, units=units, start=0
    )

    def add(value: Tensor, hook: Any) -> Any:
        n_rows, width = value.shape[:2]
        if n_rows != len(at) or width not in (1, at.shape[1]):
            raise UserError(
                f"steering was made for {len(at)} prompts of {at.shape[1]} tokens, but "
                f"{n_rows} of {width} run"
            )
        return (prefill if width == at.shape[1] else decode)(value, hook)

    return name, add


def steered_positions(
    place: SteeringPlace, batch: TokenBatch, spans: Sequence[Span], *, lengths: Sequence[int]
) -> Bool[Tensor, "prompt pos"]:
    """The positions that are steered; ``lengths`` are those of the questions' own prompts."""
    if place == "object":
        return batch.span_mask(spans)
    if place == "all":
        return batch.mask
    ends = batch.mask.sum(dim=1).tolist()
    return batch.span_mask([(length - 1, end) for length, end in zip(lengths, ends, strict=True)])


def steered_preference(
    model: HookedModel,
    premises: Premises,
    steering: Steering,
    *,
    kind: QuestionKind,
    sets: Sequence[Sequence[Unit]] | None = None,
    progress: bool = True,
) -> Preference:
    """Preference under steering, for its own units or for several sets of units at once."""
    encoded = as_encoded(model, premises)
    batch = encoded.batch(kind)
    spans = [item.prompt(kind).object for item in encoded.items]
    questions = encode_questions(model.tokenizer, premises, kind)
    lengths = [len(question.tokens) for question in questions]
    values = sweep_sets(
        model,
        batch,
        steering.edit(steered_positions(steering.place, batch, spans, lengths=lengths)),
        sets=[steering.units] if sets is None else sets,
        metrics=preference_metrics(encoded),
        progress=progress,
        description=f"steering, {kind}",
    )
    return Preference.from_values(values, encoded)


def steered_answers(
    model: HookedModel, prompts: Sequence[EncodedPrompt], steering: Steering, **options: Any
) -> tuple[str, ...]:
    """The greedy answer to every question under steering; options of ``generate_tokens``."""

    def within(chunk: list[int], batch: TokenBatch) -> AbstractContextManager[Any]:
        spans = [prompts[index].object for index in chunk]
        lengths = [len(prompts[index].tokens) for index in chunk]
        at = steered_positions(steering.place, batch, spans, lengths=lengths)
        return steer(model, steering, at)

    tokens = [prompt.tokens for prompt in prompts]
    return tuple(generate_tokens(model, tokens, within=within, **options))
