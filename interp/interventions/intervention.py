"""Interventions: constraints of heads, of experts, or of both.

An intervention is a value: a set of constraints of heads (``Constraint``) and of experts
(``ExpertConstraint``), in any order, and a gate that says who finds the false object. Interventions
are combined with ``|`` or ``+``; constraints that conflict raise an error::

    one = Intervention.of(heads) | ExpertConstraint([(3, "attn.q", 2)], "off")
    one.save("mine.yaml")
    with interp.constrain(model, Intervention.load("mine.yaml"), at=spans): ...
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from interp.arguments import listed, of_kind, shown
from interp.checked import by_position
from interp.display import Displayed, Shown
from interp.errors import UserError, errors_in
from interp.figures.heatmap import chosen_heads
from interp.heads.headset import Head, HeadSet, Site, as_head_set
from interp.heads.origin import common_origin
from interp.interventions.expert_constraint import ExpertConstraint
from interp.interventions.gate import Gate, check_gate
from interp.interventions.head_constraint import Constraint, Mode
from interp.interventions.intervention_file import read_parts, write_parts
from interp.interventions.unit_table import unit_table
from interp.lazy import go, pd
from interp.models.hooked_model import HookedModel
from interp.patching.sweep import check_units

Part = Constraint | ExpertConstraint
AnyPart = TypeVar("AnyPart", Constraint, ExpertConstraint)


@dataclass(frozen=True, eq=False, repr=False)
class Intervention(Displayed):
    """Constraints that are applied together.

    Interventions with the same parts are equal, in whatever order the parts were given.

    Attributes:
        heads: constraints of heads, at most one for each setting; they act at the false object.
        experts: constraints of experts.
        gate: who finds the false object: ``oracle`` (the caller), ``probe`` (a detector) or
            ``soft`` (a detector, whose probability is how strongly heads are constrained).

    Raises UserError for parts that conflict, and for experts with gate ``soft``.
    """

    heads: tuple[Constraint, ...] = ()
    experts: tuple[ExpertConstraint, ...] = ()
    gate: Gate = "oracle"

    def __post_init__(self) -> None:
        check_gate(self.gate)
        for what, kind in (("heads", Constraint), ("experts", ExpertConstraint)):
            for part in listed(what, getattr(self, what), f"{kind.__name__}s"):
                of_kind(f"a part of {what}", part, kind)
        if self.gate == "soft" and self.experts:
            raise UserError("gate 'soft' is for heads: constrain experts with 'oracle' or 'probe'")
        heads, experts = _merged(tuple(self.heads)), _merged(tuple(self.experts))
        object.__setattr__(self, "heads", heads)
        object.__setattr__(self, "experts", experts)
        for a, b in combinations(heads, 2):
            if a.site == b.site and (shared := set(a.heads) & set(b.heads)):
                raise UserError(
                    f"head {min(shared)} would be constrained twice: {a.name!r} and {b.name!r}"
                )
        for a, b in combinations(experts, 2):
            if reason := a.conflict(b):
                raise UserError(reason)

    @classmethod
    @by_position
    def of(
        cls,
        what: "Intervention | Part | HeadSet | Iterable[Head]",
        site: Site | None = None,
        *,
        mode: Mode = "zero",
        factor: float = 0.0,
        decoding_steps: int | None = None,
        gate: Gate | None = None,
    ) -> "Intervention":
        """An intervention of any of these; other arguments are for (layer, head) tuples.

        Raises UserError for an argument that what is given has already, or another site than its.
        """
        whole = isinstance(what, Intervention | Constraint | ExpertConstraint)
        if whole and decoding_steps is not None:
            raise UserError(f"decoding_steps is part of a Constraint: {shown(what)} has its own")
        if whole and (mode, factor) != ("zero", 0.0):
            raise UserError(f"mode and factor are part of a Constraint: {shown(what)} has its own")
        if isinstance(what, Intervention | Constraint) and site is not None:
            for part in what.heads if isinstance(what, Intervention) else (what,):
                as_head_set(part.heads, site)  # which are of that site
        if isinstance(what, Intervention):
            return what if gate is None else cls(what.heads, what.experts, gate)
        gate = gate or "oracle"
        if isinstance(what, ExpertConstraint):
            return cls((), (what,), gate)
        if not isinstance(what, Constraint):
            what = Constraint(as_head_set(what, site), mode, factor, decoding_steps)
        return cls((what,), (), gate)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Heads first, then experts."""
        return (*self.heads, *self.experts)

    @property
    def needs_positions(self) -> bool:
        """Whether any part acts at the false object only, not at all tokens."""
        return bool(self.heads) or any(part.place == "spans" for part in self.experts)

    @property
    def needs_mean(self) -> bool:
        """Whether mode ``mean`` needs the mean output of every head."""
        return any(part.mode == "mean" for part in self.heads)

    @property
    def name(self) -> str:
        """Such as ``attention, zero, 3 heads + experts, off, 1 expert``."""
        return " + ".join(part.name for part in self.parts) or "nothing"

    def __len__(self) -> int:
        """How many heads and experts are constrained."""
        return sum(
            len(part.heads) if isinstance(part, Constraint) else len(part) for part in self.parts
        )

    def __or__(self, other: Any) -> "Intervention":
        if not isinstance(other, Intervention | Constraint | ExpertConstraint):
            return NotImplemented
        if not isinstance(other, Intervention):
            other = Intervention.of(other, gate=self.gate)
        if self.gate != other.gate:
            raise UserError(f"gate {self.gate!r} and gate {other.gate!r} cannot be combined")
        return Intervention(self.heads + other.heads, self.experts + other.experts, self.gate)

    __add__ = __or__

    def __ror__(self, other: Any) -> "Intervention":
        if not isinstance(other, Constraint | ExpertConstraint):
            return NotImplemented
        return Intervention.of(other, gate=self.gate) | self

    __radd__ = __ror__

    def _key(self) -> tuple[Any, ...]:
        heads = {(*_setting(part), frozenset(part.heads)) for part in self.heads}
        return frozenset(heads), frozenset(self.experts), self.gate

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Intervention) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"<Intervention: {self.name}; gate {self.gate}>"

    def to_dataframe(self) -> "pd.DataFrame":
        """One row a head or expert: ``kind``, ``where``, ``number``, ``action``, ``place``.

        ``where`` is a head's layer or an expert's projection, ``number`` counts within it.
        """
        return unit_table(row for part in self.parts for row in part.rows())

    def plot(self) -> "go.Figure":
        """The constrained heads as squares, layer × head. Raises UserError where there are none."""
        return chosen_heads(dict.fromkeys(head for part in self.heads for head in part.heads))

    def _shown(self) -> Shown:
        figure = self.plot if self.heads else None
        return Shown(f"{self.name}; gate {self.gate}.", (self.to_dataframe(),), figure)

    def check(self, model: HookedModel) -> "Intervention":
        """The same intervention with the model's own names of projections.

        Raises:
            UserError: a head, projection or expert that the model does not have.
        """
        for part in self.heads:
            check_units(model, part.heads.heads)
        experts = tuple(part.on(model) for part in self.experts)
        return Intervention(self.heads, experts, self.gate)

    def save(self, path: str | Path) -> Path:
        """Write a small YAML file, or JSON if the name ends in ``.json``."""
        return write_parts((self.heads, self.experts, self.gate), Path(path))

    @classmethod
    def load(
        cls, path: str | Path, *, model: HookedModel | None = None, transfer: bool = False
    ) -> "Intervention":
        """Read a file that ``save`` wrote, or a person; nothing in it is executed.

        Args:
            model: raise for heads or experts that this model does not have, and for heads whose
                file says that they were found on another model.
            transfer: ``model`` is a fine-tuned relative on purpose: its layers and heads must fit.

        Raises:
            UserError: no such file, another format, something that the model does not have, or
                heads of another model.
        """
        heads, experts, gate = read_parts(Path(path))
        with errors_in(path):
            found = cls(heads, experts, gate)
        if model is None:
            return found
        found.check_origin(model, transfer=transfer)
        return found.check(model)

    def check_origin(self, model: HookedModel, *, transfer: bool = False) -> None:
        """Raise UserError for heads that were found on another model, as far as that was noted.

        Args:
            transfer: the model is a fine-tuned relative on purpose: its layers and heads must fit.
        """
        for part in self.heads:
            if part.heads.origin is not None:
                part.heads.origin.check(model, transfer=transfer)


def _merged(parts: tuple[AnyPart, ...]) -> tuple[AnyPart, ...]:
    """One part for each setting, with the units of all that have it."""
    by_setting: dict[tuple[Any, ...], AnyPart] = {}
    for part in parts:
        key = _setting(part)
        before = by_setting.get(key)
        by_setting[key] = part if before is None else _union(before, part)
    return tuple(by_setting.values())


def _setting(part: Part) -> tuple[Any, ...]:
    """What is done, without the units that it is done to."""
    last = part.place if isinstance(part, ExpertConstraint) else part.decoding_steps
    return part.site, part.mode, part.factor, last


def _union(a: AnyPart, b: AnyPart) -> AnyPart:
    """One part with the units of both, which have the same setting."""
    if isinstance(a, ExpertConstraint):
        assert isinstance(b, ExpertConstraint)
        chosen_by = " and ".join(dict.fromkeys((a.chosen_by, b.chosen_by)))
        return replace(a, experts=tuple({*a.pairs, *b.pairs}), chosen_by=chosen_by)
    assert isinstance(b, Constraint)
    chosen_by = " and ".join(dict.fromkeys((a.heads.chosen_by, b.heads.chosen_by)))
    heads = tuple(dict.fromkeys((*a.heads, *b.heads)))
    origin = common_origin(a.heads.origin, b.heads.origin)
    return a.with_heads(HeadSet(heads, a.site, chosen_by, origin))
