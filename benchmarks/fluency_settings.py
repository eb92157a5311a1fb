"""The settings of a constraint that benchmarks/fluency.py compares."""

from dataclasses import dataclass
from typing import Any

from fluency_page import FULL, NONE

from interp.heads import HeadSet, shipped_for
from interp.interventions import Constraint, Intervention

STEPS = (0, 1, 2, 4, 8)
FACTORS = (0.1, 0.25, 0.5)


@dataclass(frozen=True)
class Setting:
    """A constraint under which the questions are answered.

    Attributes:
        everywhere: also on the reported relation, not only where the setting is chosen.
        twins_too: whether the twins are answered as well.
    """

    name: str
    under: Intervention
    everywhere: bool = True
    twins_too: bool = False


def settings(model: Any) -> list[Setting]:
    """Every setting but the gates' and the random heads', none first and the full one second."""
    shipped = shipped_for(model)
    assert shipped is not None
    heads = shipped.heads

    def of(name: str, *given: Any, everywhere: bool = True, twins_too: bool = False) -> Setting:
        return Setting(name, Intervention.of(Constraint(*given)), everywhere, twins_too)

    def scaled(factor: float) -> Setting:
        name = f"attention times {factor}"
        return of(name, heads, "scale", factor, everywhere=False)

    def ending(steps: int) -> Setting:
        given = (heads, "zero", 0.0, steps)
        return of(ending_name(steps), *given, everywhere=steps == 0, twins_too=steps == 0)

    def first(count: int) -> Setting:
        some = HeadSet(heads.heads[:count], heads.site)
        return of(f"first {count} heads", some, everywhere=count == 3)

    return [
        without(),
        of(FULL, heads, twins_too=True),
        *map(ending, STEPS),
        *map(scaled, FACTORS),
        *map(first, (3, 5)),
        of("outputs at the object zero", HeadSet(heads.heads, "output")),
    ]


def ending_name(steps: int) -> str:
    return "prefill only" if steps == 0 else f"prefill and {steps} step{'s'[: steps > 1]}"


def without() -> Setting:
    """No constraint."""
    return Setting(NONE, Intervention(), twins_too=True)
