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

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import UserError
from interp.patching.components import as_units, from_units, hook_name
from interp.patching.edits import ActivationEdit
from interp.patching.forward import Hook, HookFunction, hooked
from interp.patching.sweep import Unit, check_units

SteeredComponent = Literal["resid_post", "z"]
SteeringPlace = Literal["object", "all", "answer"]


@dataclass(frozen=True, eq=False)
class Steering:
    """Vectors, and where they are added.

    Attributes:
        vectors: Float[layer unit width], what strength 1 adds to each unit of every layer.
        units: the (layer, unit) that are steered; unit 0 is a layer's residual stream.
        component, place, strength: see the module's text.
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
        if self.place not in get_args(SteeringPlace):
            known = ", ".join(get_args(SteeringPlace))
            raise UserError(f"unknown place {self.place!r}; known: {known}")
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
def steer(model: Any, steering: Steering, at: Bool[Tensor, "prompt pos"]) -> Iterator[Any]:
    """Steer one batch of prompts, and what is decoded after it, while the context is open.

    Args:
        at: the columns of the batch to steer; decoding is steered unless the place is the object.

    Raises:
        UserError: a unit that the model does not have, or a run of other prompts than ``at``'s.
    """
    check_units(model, steering.units, steering.component)
    with hooked(model, _hooks(steering, at)):
        yield model


def _hooks(steering: Steering, at: Tensor) -> list[Hook]:
    def adding(layer: int) -> HookFunction:
        chosen = [unit for of_layer, unit in steering.units if of_layer == layer]
        vector = steering.vectors.new_zeros(steering.vectors.shape[1:])
        vector[chosen] = steering.strength * steering.vectors[layer, chosen]

        def add(value: Tensor, hook: object) -> Tensor:
            rows, columns = value.shape[:2]
            if rows != len(at) or columns not in (1, at.shape[1]):
                raise UserError(
                    f"steering was made for {len(at)} prompts of {at.shape[1]} tokens, but "
                    f"{rows} of {columns} run"
                )
            shown = as_units(value, steering.component)
            new = shown + vector.to(device=value.device, dtype=value.dtype)
            if columns == at.shape[1]:
                new = new.where(at.to(value.device)[:, :, None, None], shown)
            elif steering.place == "object":  # a decoding step: the object lies behind it
                return value
            return from_units(new, steering.component)

        return add

    layers = sorted({layer for layer, _ in steering.units})
    return [(hook_name(steering.component, layer), adding(layer)) for layer in layers]
