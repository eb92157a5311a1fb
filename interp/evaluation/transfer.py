"""Do heads that were found in some relations help in another? Scores of searched × scored.

A user does not know which relation a question is about, so a head set has to work where it was not
searched. *Leave one out*: the heads found in all relations but one are scored on the one left out,
beside its own heads and, on request, those of every other relation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.evaluation.preference import Preference, preference
from interp.figures.relations import transfer_matrix
from interp.figures.tables import where
from interp.heads.effects import HeadEffects
from interp.heads.headset import HeadSet
from interp.heads.joint import JointEffects
from interp.heads.locate import as_encoded
from interp.heads.object_edits import mean_output
from interp.heads.random_sets import random_head_sets
from interp.interventions.head_constraint import Constraint, Mode
from interp.interventions.unit_table import action_name
from interp.jobs import RUN_HERE, JobRunner
from interp.lazy import go, pd
from interp.models.hooked_model import HookedModel
from interp.premises.joint import JointPremises
from interp.premises.questions import Premises
from interp.statistics.significance import mean_interval

OTHERS = "all others"
"""What the heads were searched in that are scored on the relation left out."""
MEASURES = ("preference_accuracy", "gain", "cost", "p_true_cost")
"""Measures with an interval: share of false premises that prefer the true object; its rise; its
fall on the twins; the fall of P(true object) on the twins."""


@dataclass(frozen=True, eq=False)
class Transfer(Displayed):
    """Scores of head sets on relations.

    Attributes:
        table: one row for each head set and the relation it is scored on. ``searched``, ``scored``,
            ``site``, ``mode``, ``n_heads``, ``heads``; ``n`` prompts of each kind, ``n_subjects``;
            ``baseline`` accuracy; `MEASURES`, each with ``_low`` and ``_high`` (95 %, subjects
            resampled); ``random_mean`` and ``random_p95`` of the accuracy under random sets matched
            per layer, where they were asked for.
    """

    table: "pd.DataFrame"

    def over_relations(self, *, seed: int = 0) -> "pd.DataFrame":
        """Means over the relations, one row for each setting, relations resampled.

        Relations scored with their own heads are one setting, named ``itself``; with those of each
        other relation, ``another``. ``worst`` is the lowest accuracy, of the relation ``worst_in``.
        """
        table, searched = self.table, self.table["searched"]
        single = (searched != OTHERS) & ~searched.str.contains(" ")
        setting = np.where(
            single & (searched == table["scored"]), "itself", np.where(single, "another", searched)
        )
        rows = []
        keys = ["setting", "site", "mode", "n_heads"]
        groups: Any = table.assign(setting=setting).groupby(keys, sort=False)
        for key, part in groups:
            worst = part.loc[part["preference_accuracy"].idxmin()]
            row: dict[str, Any] = dict(zip(keys, key, strict=True))
            row |= {"relations": part["scored"].nunique(), "baseline": part["baseline"].mean()}
            for name in MEASURES:
                value = mean_interval(part[name].to_numpy(), list(part["scored"]), seed=seed)
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), value, strict=True))
            row |= {"worst": worst["preference_accuracy"], "worst_in": worst["scored"]}
            row["random_mean"] = part["random_mean"].mean()
            rows.append(row)
        return pd.DataFrame(rows)

    def plot(
        self, value: str = "preference_accuracy", *, n_heads: int | None = None
    ) -> "go.Figure":
        """The matrix searched × scored of one number of heads, by default the largest.

        Raises:
            UserError: another value than one of `MEASURES`, or a number that was not scored.
        """
        if value not in MEASURES:
            raise UserError(f"unknown value {value!r}; known: {', '.join(MEASURES)}")
        counts = sorted(set(self.table["n_heads"]))
        wanted = counts[-1] if n_heads is None else n_heads
        if wanted not in counts:
            raise UserError(f"{wanted} heads were not scored; known: {', '.join(map(str, counts))}")
        part = where(self.table, self.table["n_heads"] == wanted)
        return transfer_matrix(part, value=value, title=value.replace("_", " "))

    def _shown(self) -> Shown:
        text = f"Head sets scored on {self.table['scored'].nunique()} relations, and their means."
        return Shown(text, (self.over_relations(), self.table), self.plot)


@checked
def score_transfer(
    model: HookedModel,
    premises: Premises | JointPremises,
    constraints: Mapping[str, Sequence[Constraint]],
    *,
    random_sets: int = 0,
    matched_to: Constraint | None = None,
    seed: int = 0,
    progress: bool = True,
    stages: JobRunner = RUN_HERE,
) -> "pd.DataFrame":
    """Score constraints on premises: one row each, in the columns of `Transfer.table`.

    Args:
        premises: known facts that none of the constraints was chosen on.
        constraints: by what they were searched in.
        random_sets: random head sets in the null of ``matched_to``, as many in each layer.
        stages: where sweeps are done, and kept.
    """
    encoded = as_encoded(model, premises)
    named = [(searched, part) for searched, parts in constraints.items() for part in parts]
    named.sort(key=lambda pair: _setting(pair[1]))
    scored = premises.relation.name if isinstance(premises, Premises) else "all"
    rows: list[dict[str, Any]] = []
    for setting, group in groupby(named, key=lambda pair: _setting(pair[1])):
        each = list(group)
        constraint = each[0][1]
        null: tuple[HeadSet, ...] = ()
        if random_sets and matched_to is not None and _setting(matched_to) == setting:
            null = random_head_sets(
                matched_to.heads,
                n_layers=model.cfg.n_layers,
                n_heads=model.cfg.n_heads,
                n_sets=random_sets,
                seed=seed,
            )
        sets = [HeadSet((), constraint.site), *(part.heads for _, part in each)]
        run: dict[str, Any] = {
            "constraint": constraint,
            "mean": mean_output(model, encoded) if constraint.mode == "mean" else None,
            "progress": progress,
            "stages": stages,
        }
        false = preference(model, encoded, "false", sets=[*sets, *null], **run)
        twin = preference(model, encoded, "twin", sets=sets, **run)
        random = false.accuracy[len(sets) :]
        for index, (searched, part) in enumerate(each, start=1):
            row = {"searched": searched, "scored": scored, **_described(part)}
            row |= _scores(false, twin, index, seed=seed)
            has_null = len(random) > 0 and part is matched_to
            row["random_mean"] = float(random.mean()) if has_null else float("nan")
            row["random_p95"] = float(np.quantile(random, 0.95)) if has_null else float("nan")
            rows.append(row)
    order = {name: index for index, name in enumerate(constraints)}
    table = pd.DataFrame(rows)
    return table.sort_values("searched", key=lambda names: names.map(order), kind="stable")


def _setting(constraint: Constraint) -> tuple[str, str, float]:
    return constraint.site, constraint.mode, constraint.factor


def _described(constraint: Constraint) -> dict[str, Any]:
    """The columns that say which constraint it is."""
    return {
        "site": constraint.site,
        "mode": action_name(constraint.mode, constraint.factor),
        "n_heads": len(constraint.heads),
        "heads": " ".join(f"{layer}.{head}" for layer, head in constraint.heads),
    }


def _scores(false: Preference, twin: Preference, index: int, *, seed: int) -> dict[str, Any]:
    """The measures of one head set, against the first, which is empty."""
    right, right_twin = ((part.logit_difference > 0).astype(float) for part in (false, twin))
    values = {
        "preference_accuracy": right[:, index],
        "gain": right[:, index] - right[:, 0],
        "cost": right_twin[:, 0] - right_twin[:, index],
        "p_true_cost": twin.p_true[:, 0] - twin.p_true[:, index],
    }
    row: dict[str, Any] = {
        "n": len(false.subjects),
        "n_subjects": len(set(false.subjects)),
        "baseline": float(right[:, 0].mean()),
    }
    for name, per_prompt in values.items():
        interval = mean_interval(per_prompt, false.subjects, seed=seed)
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))
    return row


@checked
def leave_one_out(
    model: HookedModel,
    premises: JointPremises,
    effects: JointEffects,
    *,
    counts: Sequence[int] = (8,),
    mode: Mode = "zero",
    factor: float = 0.0,
    each: bool = False,
    random_sets: int = 0,
    seed: int = 0,
    progress: bool = True,
    stages: JobRunner = RUN_HERE,
) -> Transfer:
    """Score every relation under the heads of all others, beside its own.

    Args:
        premises: the relations' held-out parts.
        effects: of the same relations, from their search parts.
        counts: numbers of heads; the null is matched to the largest.
        each: also the heads of every other relation by itself: the whole matrix.

    Raises:
        UserError: fewer than two relations, or effects of other relations.
    """
    if set(premises.relations) != set(effects.relations):
        raise UserError("the effects and the premises are of different relations")
    if len(premises.relations) < 2:
        raise UserError("leaving one relation out needs at least two of them")
    tables = []
    for name in premises.relations:
        singles = effects.relations if each else (name,)
        searched: dict[str, HeadEffects | JointEffects] = {OTHERS: effects.without(name)}
        searched |= {single: effects.by_relation[single] for single in singles}
        constraints = {
            place: [Constraint(found.select(count=count), mode, factor) for count in counts]
            for place, found in searched.items()
        }
        tables.append(
            score_transfer(
                model,
                premises.of(name),
                constraints,
                random_sets=random_sets,
                matched_to=constraints[OTHERS][int(np.argmax(counts))],
                seed=seed,
                progress=progress,
                stages=stages,
            )
        )
    return Transfer(pd.concat(tables, ignore_index=True))
