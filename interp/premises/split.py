"""Search and held-out premises that share neither a subject nor a template.

Heads found on one set of questions are scored on another: other subjects, asked about through other
templates, with false objects drawn among the other subjects' objects only.
"""

import hashlib
from dataclasses import dataclass, replace

import pandas as pd

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.premises.questions import Premises


@dataclass(frozen=True)
class Split(Displayed):
    """Two sets of premises; `UserError` when they share a subject or a template."""

    search: Premises
    held_out: Premises

    def __post_init__(self) -> None:
        for what, ours, theirs in (
            ("subject", self.search.subjects, self.held_out.subjects),
            ("template", self.search.templates, self.held_out.templates),
        ):
            if shared := sorted(set(ours) & set(theirs)):
                raise UserError(f"search and held-out premises share the {what} {shared[0]!r}")

    def _shown(self) -> Shown:
        rows = [
            (name, len(part.facts), ", ".join(part.templates), len(part))
            for name, part in (("search", self.search), ("held out", self.held_out))
        ]
        table = pd.DataFrame(rows, columns=["part", "facts", "templates", "questions"])
        return Shown("Two parts that share no subject and no template.", (table,))


@checked
def split_premises(
    premises: Premises,
    *,
    seed: int = 0,
    fraction: float = 0.5,
    templates: tuple[str, ...] | None = None,
) -> Split:
    """Split by subject and by template.

    The search part is a random `fraction` of the subjects, asked about through `templates`, by
    default the relation's search templates; the held-out part is the other subjects through the
    other templates. Each part draws its false objects among its own facts. Raises `UserError` when
    a part would have no template, or too few facts for a false object.
    """
    if not 0 < fraction < 1:
        raise UserError(f"fraction must lie between 0 and 1, got {fraction}")
    if premises.part != "all":
        raise UserError(f"these premises are the {premises.part} part of a split already")
    seen = _seen_templates(premises, templates)
    unseen = tuple(name for name in premises.templates if name not in seen)
    if not seen or not unseen:
        raise UserError(
            f"cannot split by template: {len(seen)} of the templates "
            f"{', '.join(premises.templates)} for search, {len(unseen)} held out; need both"
        )
    chosen = _chosen_subjects(premises.subjects, seed, fraction)
    facts = premises.facts
    search = replace(
        premises,
        facts=tuple(fact for fact in facts if fact.subject in chosen),
        templates=seen,
        part="search",
    )
    held_out = replace(
        premises,
        facts=tuple(fact for fact in facts if fact.subject not in chosen),
        templates=unseen,
        part="held_out",
    )
    for part in (search, held_out):
        part.questions()  # too few objects to draw from shows here, not in the middle of a run
    return Split(search, held_out)


def _seen_templates(premises: Premises, templates: tuple[str, ...] | None) -> tuple[str, ...]:
    if templates is None:
        wanted = premises.relation.search_templates
        return tuple(name for name in premises.templates if name in wanted)
    for name in templates:
        if name not in premises.templates:
            raise UserError(
                f"cannot split off template {name!r}; these premises have "
                f"{', '.join(premises.templates)}"
            )
    return templates


def _chosen_subjects(subjects: tuple[str, ...], seed: int, fraction: float) -> frozenset[str]:
    """A random `fraction` of the subjects, whatever their order, at least one on either side."""
    if len(subjects) < 2:
        raise UserError(f"cannot split {len(subjects)} fact by subject; need at least 2")
    size = min(max(round(fraction * len(subjects)), 1), len(subjects) - 1)
    shuffled = sorted(
        subjects, key=lambda subject: hashlib.sha256(f"{seed}\0{subject}".encode()).digest()
    )
    return frozenset(shuffled[:size])
