"""One evaluation: held-out false premises, their true twins, a random null, and side effects.

The figures are those of ``evaluation.json``; see ``docs`` and the design of the run directory.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from interp.errors import UserError
from interp.evaluation.answer_pair import AnswerKind, AnswerPair
from interp.evaluation.answers import AskedQuestions, answer_pairs, ask, mention_rates
from interp.evaluation.preference import Preference, preference
from interp.evaluation.side_effects import SideEffects, side_effects
from interp.heads.headset import Head, HeadSet, Site, as_head_set
from interp.heads.locate import as_encoded
from interp.heads.selection import random_head_sets
from interp.heads.sources import mean_output
from interp.interventions.constraint import Constraint, Mode
from interp.models import model_info
from interp.patching.sweep import check_units
from interp.premises.questions import Premises

Gate = Literal["oracle"]
RANDOM_SETS = 20
MINIMUM_RANDOM_SETS = 20
ANSWER_KINDS: tuple[AnswerKind, ...] = ("false_premise", "true_premise")


@dataclass(frozen=True)
class Evaluation:
    """The outcome for one constraint; ``to_dict`` is ``evaluation.json``.

    Attributes:
        constraint: what was evaluated; ``n_all_heads`` and ``model`` say in what.
        false, twin: preference per prompt; sets are [none, the constraint, random, random, …].
        answers: greedy answers by kind, or empty if they were not asked for.
        side_effects: cost on neutral text.
    """

    constraint: Constraint
    model: str
    n_all_heads: int
    split: str
    false: Preference
    twin: Preference
    answers: tuple[AnswerPair, ...]
    side_effects: SideEffects
    seed: int = 0

    @cached_property
    def random_accuracy(self) -> np.ndarray:
        """Preference accuracy on false premises of every random head set."""
        return self.false.accuracy[2:]

    @property
    def gain(self) -> float:
        """Rise of preference accuracy on false premises."""
        return float(self.false.accuracy[1] - self.false.accuracy[0])

    @property
    def cost(self) -> float:
        """Fall of P(true object) on the twins."""
        return float(self.twin.p_true[:, 0].mean() - self.twin.p_true[:, 1].mean())

    def _measures(self, kind: AnswerKind, index: int, template: str | None) -> dict[str, Any]:
        values = self.false if kind == "false_premise" else self.twin
        measures = values.measures(index, template=template, seed=self.seed)
        pairs = [p for p in self.answers if p.kind == kind and template in (None, p.template)]
        if pairs:
            run = "constrained" if index else "baseline"
            measures |= mention_rates(pairs, run, seed=self.seed)
        else:
            measures |= dict.fromkeys(("true_object_mention_rate", "false_object_mention_rate"))
        return measures

    def _comparison(self, template: str | None) -> dict[str, Any]:
        return {
            kind: {
                "baseline": self._measures(kind, 0, template),
                "constrained": self._measures(kind, 1, template),
            }
            for kind in ANSWER_KINDS
        }

    def to_dict(self) -> dict[str, Any]:
        """The content of evaluation.json."""
        chosen, null = float(self.false.accuracy[1]), self.random_accuracy
        random_null: dict[str, Any] = {"n_sets": len(null)}
        if len(null):
            random_null["preference_accuracy"] = {
                "mean": float(null.mean()),
                "p95": float(np.quantile(null, 0.95)),
            }
            random_null["percentile_of_selected"] = float((null < chosen).mean() * 100)
        templates = dict.fromkeys(self.false.templates)
        return {
            "model": self.model,
            "n_heads": len(self.constraint.heads),
            "head_fraction": len(self.constraint.heads) / self.n_all_heads,
            "heads": [list(head) for head in self.constraint.heads],
            "chosen_by": self.constraint.heads.chosen_by,
            "site": self.constraint.site,
            "mode": self.constraint.mode,
            "factor": self.constraint.factor,
            "gate": "oracle",
            "splits": {
                self.split: self._comparison(None)
                | {"templates": {name: self._comparison(name) for name in templates}}
            },
            "random_null": random_null,
            "side_effects": self.side_effects.to_dict(),
        }

    def null_dataframe(self) -> pd.DataFrame:
        """One row a random head set, as in ``null.csv``."""
        return pd.DataFrame(
            {
                "site": self.constraint.site,
                "mode": self.constraint.mode,
                "n_heads": len(self.constraint.heads),
                "set": range(len(self.random_accuracy)),
                "preference_accuracy": self.random_accuracy,
            }
        )

    def plot(self) -> Any:
        """Preference per template, without and with the constraint."""
        from interp.report.figures import preference_by_template

        return preference_by_template(self.to_dict())

    def _repr_html_(self) -> str:
        from interp.report.tables import comparison_table

        return comparison_table(json.loads(json.dumps(self.to_dict()))).to_html(index=False)


def ask_all(
    model: Any, premises: Premises, *, progress: bool = True
) -> dict[AnswerKind, AskedQuestions]:
    """Unconstrained answers to the false-premise questions and to their twins."""
    return {kind: ask(model, premises, kind, progress=progress) for kind in ANSWER_KINDS}


def evaluate(
    model: Any,
    premises: Premises,
    *,
    heads: HeadSet | Iterable[Head] | Constraint,
    site: Site | None = None,
    mode: Mode = "zero",
    factor: float = 0.0,
    gate: str = "oracle",
    reference: Premises | None = None,
    random_sets: int = RANDOM_SETS,
    answers: bool | Mapping[AnswerKind, AskedQuestions] = True,
    seed: int = 0,
    progress: bool = True,
) -> Evaluation:
    """Score a constraint on premises, best on the held-out part of a split.

    Args:
        heads: a HeadSet, (layer, head) tuples with ``site``, or a whole Constraint.
        reference: premises whose mean output mode ``mean`` uses; give the search part.
        random_sets: how many random head sets make the null, matched per layer.
        answers: also ask for greedy answers, the slow part; or baseline answers of ``ask_all``.

    Raises:
        UserError: an unknown gate, or fewer random sets than ``MINIMUM_RANDOM_SETS`` (0: no null).
    """
    if gate != "oracle":
        raise UserError(f"unknown gate {gate!r}; known: oracle")
    if 0 < random_sets < MINIMUM_RANDOM_SETS:
        raise UserError(
            f"a null of {random_sets} random sets says little: {MINIMUM_RANDOM_SETS} or 0"
        )
    constraint = (
        heads
        if isinstance(heads, Constraint)
        else Constraint(as_head_set(heads, site), mode, factor)
    )
    check_units(model, constraint.heads.heads)
    encoded = as_encoded(model, premises)
    mean = None
    if constraint.mode == "mean":
        mean = mean_output(model, as_encoded(model, reference or premises))
    none = HeadSet((), constraint.site)
    random = random_head_sets(
        constraint.heads, model.cfg.n_layers, model.cfg.n_heads, random_sets, seed=seed
    )
    sets: Sequence[HeadSet] = (none, constraint.heads, *random)
    false = preference(model, encoded, "false", constraint, sets, mean=mean, progress=progress)
    twin = preference(model, encoded, "twin", constraint, sets[:2], mean=mean, progress=progress)
    pairs: list[AnswerPair] = []
    if isinstance(answers, bool):
        answers = ask_all(model, premises, progress=progress) if answers else {}
    for asked in answers.values():
        pairs += answer_pairs(model, asked, constraint, mean=mean, progress=progress)
    with torch.no_grad():
        effects = side_effects(model, constraint, mean=mean)
    return Evaluation(
        constraint=constraint,
        model=model_info(model).spec,
        n_all_heads=model.cfg.n_layers * model.cfg.n_heads,
        split=premises.part,
        false=false,
        twin=twin,
        answers=tuple(pairs),
        side_effects=effects,
        seed=seed,
    )
