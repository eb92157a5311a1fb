"""Constraints on the experts of a MoELoRA adapter, and the edits of gates that they make.

An adapted projection adds Σᵢ gateᵢ(x) · expertᵢ(x) to the frozen one. A constraint edits the gates
after routing, so it can also use an expert that the router did not choose. With g the gates of one
token:

* ``off``: gᵢ = 0, the other gates are unchanged;
* ``off_renormalised``: gᵢ = 0, and if gᵢ was above 0 the other gates are divided by their sum (if
  that is 0, all gates are 0);
* ``force``: gᵢ = 1 and all others 0;
* ``swap``: gᵢ and gⱼ are exchanged;
* ``scale``: gᵢ becomes ``factor`` · gᵢ.

It acts on ``all`` tokens, generated ones included, or on the ``spans`` given to ``constrain``, in
the prefill only.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import check_choice, listed, real_number, whole_number
from interp.checked import by_position
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.forward.adapted_projections import AdaptedProjection, find_projection, projections_of
from interp.forward.transfer import upload
from interp.interventions.unit_table import action_name, unit_rows, unit_table
from interp.models.hooked_model import HookedModel

Expert = tuple[str, int]
"""(projection, expert), such as ("blocks.3.attn.q", 2); experts are counted from zero."""

ExpertName = Expert | tuple[int, str, int]
"""An expert as it may be given: also (layer, target, expert), such as (3, "attn.q", 2)."""

ExpertMode = Literal["off", "off_renormalised", "force", "swap", "scale"]
TokenScope = Literal["all", "spans"]

_ALONE: tuple[ExpertMode, ...] = ("off_renormalised", "force", "swap")
"""Modes that read or change the other gates of a projection."""
_EXPERTS_EACH: dict[ExpertMode, tuple[int, str]] = {"force": (1, "one expert"), "swap": (2, "two")}


@dataclass(frozen=True)
class ExpertConstraint(Displayed):
    """Experts, and the edit of their gates.

    Attributes:
        experts: (projection, expert) or (layer, target, expert) each, kept as the former.
        mode: the edit.
        factor: for ``scale`` only.
        place: the tokens, ``all`` or ``spans``.
        chosen_by: how the experts were chosen.
    """

    experts: Sequence[ExpertName]
    mode: ExpertMode = "off"
    factor: float = 0.0
    place: TokenScope = "all"
    chosen_by: str = field(default="by hand", compare=False)

    def __post_init__(self) -> None:
        check_expert_mode(self.mode)
        check_place(self.place)
        object.__setattr__(self, "factor", real_number("factor", self.factor))
        if self.mode != "scale" and self.factor != 0:
            raise UserError(f"a factor is for mode 'scale', not {self.mode!r}")
        pairs = tuple(sorted(map(_pair, self.experts), key=expert_order))
        if len(set(pairs)) < len(pairs):
            raise UserError("an expert is named twice in the constraint")
        object.__setattr__(self, "experts", pairs)
        check_counts(self.by_projection(), self.mode)

    @classmethod
    def across(
        cls,
        expert: int,
        layers: Iterable[int],
        targets: Sequence[str],
        *,
        mode: ExpertMode = "off",
        factor: float = 0.0,
        place: TokenScope = "all",
    ) -> "ExpertConstraint":
        """The expert with the same number in several layers and projections."""
        names = [(layer, target, expert) for layer in layers for target in targets]
        return cls(names, mode, factor, place, f"expert {expert} of every layer named")

    def __len__(self) -> int:
        return len(self.experts)

    @property
    def site(self) -> Literal["experts"]:
        """The key of the hook builder; constraints on heads have ``output`` or ``attention``."""
        return "experts"

    @property
    def pairs(self) -> tuple[Expert, ...]:
        """The experts as (projection, expert)."""
        return cast(tuple[Expert, ...], self.experts)

    @property
    def name(self) -> str:
        """Such as ``experts, off, 2 experts``."""
        action = action_name(self.mode, self.factor)
        at = "" if self.place == "all" else ", at spans"
        return f"experts, {action}, {len(self)} expert{'' if len(self) == 1 else 's'}{at}"

    def by_projection(self) -> dict[str, list[int]]:
        """Numbers of the experts of each projection."""
        found: dict[str, list[int]] = {}
        for projection, expert in self.pairs:
            found.setdefault(projection, []).append(expert)
        return found

    def on(self, model: HookedModel) -> "ExpertConstraint":
        """The same with the model's own names. Raises UserError for an expert that it lacks."""
        known = projections_of(model)
        pairs = []
        for name, expert in self.pairs:
            projection = find_projection(known, name)
            check_expert(projection, expert)
            pairs.append((projection.name, expert))
        return replace(self, experts=pairs)

    def conflict(self, other: "ExpertConstraint") -> str | None:
        """Why both cannot be combined, or None if their order does not matter."""
        mine, theirs = self.by_projection(), other.by_projection()
        for projection in mine.keys() & theirs.keys():
            if shared := set(mine[projection]) & set(theirs[projection]):
                what = f"expert {min(shared)} of {projection}"
            elif self.mode in _ALONE or other.mode in _ALONE:
                what = f"the gates of {projection}"
            else:
                continue
            return f"{what} would be constrained twice: {self.name!r} and {other.name!r}"
        return None

    def rows(self) -> list[dict[str, Any]]:
        """One row an expert, in the columns of ``Intervention.to_dataframe``."""
        action = action_name(self.mode, self.factor)
        return unit_rows("expert", self.pairs, action=action, place=self.place)

    def _shown(self) -> Shown:
        return Shown(f"{self.name}; gate oracle.", (unit_table(self.rows()),))


def check_expert(projection: AdaptedProjection, expert: int) -> None:
    """Raise UserError for an expert that a projection does not have."""
    if expert >= projection.n_experts:
        raise UserError(
            f"expert {expert} of {projection.name} does not exist: it has experts 0 to "
            f"{projection.n_experts - 1}"
        )


def check_expert_mode(mode: str) -> None:
    """Raise UserError for an unknown mode, and list the known."""
    check_choice("expert mode", mode, get_args(ExpertMode))


def check_place(place: str) -> None:
    """Raise UserError for an unknown place, and list the known."""
    check_choice("place", place, get_args(TokenScope))


def check_counts(by_projection: dict[str, list[int]], mode: ExpertMode) -> None:
    """Raise unless every projection names as many experts as the mode takes."""
    count, words = _EXPERTS_EACH.get(mode, (None, ""))
    for projection, experts in by_projection.items():
        if count not in (None, len(experts)):
            raise UserError(
                f"mode {mode!r} takes {words} of each projection, but {projection} has "
                f"{len(experts)}"
            )


def expert_order(pair: Expert) -> tuple[tuple[int | str, ...], int]:
    """Sorts layer 10 behind layer 9."""
    pieces = re.split(r"(\d{1,18})", pair[0])
    return tuple(int(text) if i % 2 else text for i, text in enumerate(pieces)), pair[1]


def _pair(name: ExpertName) -> Expert:
    projection, expert = name if len(name) == 2 else (f"blocks.{name[0]}.{name[1]}", name[2])
    if expert < 0 or (len(name) == 3 and name[0] < 0):
        raise UserError("layers and experts are counted from zero")
    return str(projection), int(expert)


@by_position
def edit_gates(
    gates: Float[Tensor, "*token expert"],
    experts: Sequence[int],
    mode: ExpertMode,
    *,
    factor: float = 0.0,
) -> Float[Tensor, "*token expert"]:
    """A copy of the gates with the constraint applied to these experts.

    Raises UserError for an unknown mode, an expert that is not there, or too many for the mode.
    """
    check_expert_mode(mode)
    chosen = [whole_number("an expert", given, least=0) for given in listed("experts", experts)]
    if missing := [expert for expert in chosen if expert >= gates.shape[-1]]:
        raise UserError(f"there is no expert {missing[0]}: the gates have {gates.shape[-1]}")
    check_counts({"the call": chosen}, mode)
    new = torch.zeros_like(gates) if mode == "force" else gates.clone()
    index = upload(torch.tensor(chosen, dtype=torch.long), gates.device)
    if mode in ("force", "swap"):
        new[..., index] = gates[..., index.flip(0)] if mode == "swap" else 1.0
        return new
    new[..., index] = factor * gates[..., index]
    if mode == "off_renormalised":
        lost = (gates[..., index] > 0).any(dim=-1, keepdim=True)
        total = new.sum(dim=-1, keepdim=True)
        return torch.where(lost, new / total.clamp_min(torch.finfo(new.dtype).tiny), new)
    return new
