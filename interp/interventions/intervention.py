"""Everything that is done to a model at once: heads, experts, or both.

An intervention is a value. It is a set of constraints of heads (``Constraint``) and of experts
(``ExpertConstraint``) whose order does not matter, and a gate that says who finds the false object.
Interventions are combined with ``|`` (or ``+``, the same); what cannot hold at once is an error::

    one = Intervention.of(heads) | ExpertConstraint([(3, "attn.q", 2)], "off")
    one.save("mine.yaml")
    with interp.constrain(model, Intervention.load("mine.yaml"), at=spans): ...
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import plotly.graph_objects as go

from interp.arguments import listed, of_kind
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.heatmap import chosen_heads
from interp.heads.headset import Head, HeadSet, Site, as_head_set
from interp.interventions.expert_constraint import ExpertConstraint
from interp.interventions.gate import Gate, check_gate
from interp.interventions.head_constraint import Constraint, Mode
from interp.interventions.intervention_file import read_parts, write_parts
from interp.interventions.unit_table import unit_table
from interp.models.hooked_model import HookedModel
from interp.patching.sweep import check_units

Part = Constraint | ExpertConstraint
AnyPart = TypeVar("AnyPart", Constraint, ExpertConstraint)


@dataclass(frozen=True, eq=False, repr=False)
class Intervention(Displayed):
    """Constraints that hold together.

    Equal to another one that does the same, in whatever order its parts were given.

    Attributes:
        heads: at most one part a site and setting; they act at the false object.
        experts: parts on experts.
        gate: who finds the false object: ``oracle`` (the caller) or ``probe`` (a detector).

    Raises UserError for parts that conflict.
    """

    heads: tuple[Constraint, ...] = ()
    experts: tuple[ExpertConstraint, ...] = ()
    gate: Gate = "oracle"

    def __post_init__(self) -> None:
        check_gate(self.gate)
        for what, kind in (("heads", Constraint), ("experts", ExpertConstraint)):
            for part in listed(what, getattr(self, what), f"{kind.__name__}s"):
                of_kind(f"a part of {what}", part, kind)
        heads, experts = _merged(tuple(self.heads)), _merged(tuple(self.experts))
        object.__setattr__(self, "heads", heads)
        object.__setattr__(self, "experts", experts)
        for one, other in combinations(heads, 2):
            shared = set(one.heads) & set(other.heads) if one.site == other.site else set()
            if shared:
                raise UserError(
                    f"head {min(shared)} would be constrained twice: {one.name!r} and "
                    f"{other.name!r}"
                )
        for a, b in combinations(experts, 2):
            if reason := a.conflict(b):
                raise UserError(reason)

    @classmethod
    def of(
        cls,
        what: "Intervention | Part | HeadSet | Iterable[Head]",
        site: Site | None = None,
        mode: Mode = "zero",
        factor: float = 0.0,
        *,
        gate: Gate | None = None,
    ) -> "Intervention":
        """An intervention from whatever ``constrain`` takes; the settings are for bare heads."""
        if isinstance(what, Intervention):
            return what if gate is None else cls(what.heads, what.experts, gate)
        gate = gate or "oracle"
        if isinstance(what, ExpertConstraint):
            return cls((), (what,), gate)
        if not isinstance(what, Constraint):
            what = Constraint(as_head_set(what, site), mode, factor)
        return cls((what,), (), gate)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Heads first, then experts."""
        return (*self.heads, *self.experts)

    @property
    def needs_places(self) -> bool:
        """Whether anything acts at the false object, and not at all tokens alike."""
        return bool(self.heads) or any(part.place == "spans" for part in self.experts)

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
        heads = {(one.site, one.mode, one.factor, frozenset(one.heads)) for one in self.heads}
        return frozenset(heads), frozenset(self.experts), self.gate

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Intervention) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"<Intervention: {self.name}; gate {self.gate}>"

    def to_dataframe(self) -> pd.DataFrame:
        """One row a head or expert: ``kind``, ``where``, ``number``, ``action``, ``place``.

        ``where`` is a head's layer or an expert's projection, ``number`` counts within it.
        """
        return unit_table(row for part in self.parts for row in part.rows())

    def plot(self) -> go.Figure:
        """The constrained heads as squares, layer × head. Raises UserError where there are none."""
        return chosen_heads(dict.fromkeys(head for part in self.heads for head in part.heads))

    def _shown(self) -> Shown:
        figure = self.plot if self.heads else None
        return Shown(f"{self.name}; gate {self.gate}.", (self.to_dataframe(),), figure)

    def check(self, model: HookedModel) -> "Intervention":
        """The same with the model's own names of projections.

        Raises:
            UserError: a head, projection or expert that the model does not have.
        """
        for part in self.heads:
            check_units(model, part.heads.heads)
        experts = tuple(part.on(model) for part in self.experts)
        return Intervention(self.heads, experts, self.gate)

    def save(self, path: str | Path) -> Path:
        """Write a small YAML file, or JSON if the name ends so."""
        return write_parts((self.heads, self.experts, self.gate), Path(path))

    @classmethod
    def load(cls, path: str | Path, *, model: HookedModel | None = None) -> "Intervention":
        """Read what ``save`` wrote, or what somebody wrote by hand; nothing in it is run.

        Args:
            model: if given, everything named must be in it.

        Raises:
            UserError: no such file, not this format, or something that the model does not have.
        """
        heads, experts, gate = read_parts(Path(path))
        try:
            found = cls(heads, experts, gate)
        except UserError as error:
            raise UserError(f"{Path(path)}: {error}") from error
        return found if model is None else found.check(model)


def _merged(parts: tuple[AnyPart, ...]) -> tuple[AnyPart, ...]:
    """One part for each setting, with the units of all that have it."""
    by_setting: dict[tuple[Any, ...], AnyPart] = {}
    for part in parts:
        place = part.place if isinstance(part, ExpertConstraint) else None
        key = (part.site, part.mode, part.factor, place)
        before = by_setting.get(key)
        by_setting[key] = part if before is None else _union(before, part)
    return tuple(by_setting.values())


def _union(one: AnyPart, other: AnyPart) -> AnyPart:
    """One part with the units of both, which are of one setting."""
    if isinstance(one, ExpertConstraint):
        assert isinstance(other, ExpertConstraint)
        chosen = " and ".join(dict.fromkeys((one.chosen_by, other.chosen_by)))
        pairs = tuple(dict.fromkeys((*one.pairs, *other.pairs)))
        return ExpertConstraint(pairs, one.mode, one.factor, one.place, chosen)
    assert isinstance(other, Constraint)
    chosen = " and ".join(dict.fromkeys((one.heads.chosen_by, other.heads.chosen_by)))
    heads = tuple(dict.fromkeys((*one.heads, *other.heads)))
    return one.with_heads(HeadSet(heads, one.site, chosen))
