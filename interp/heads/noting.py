"""``found_on``: a head set that says which model it was found on, and how its heads did there."""

from dataclasses import replace
from math import isnan
from typing import Any

from interp.checked import checked
from interp.errors import UserError
from interp.heads.effects import HeadEffects
from interp.heads.headset import HeadSet
from interp.heads.joint import JointEffects
from interp.heads.origin import Origin
from interp.models.hooked_model import HookedModel
from interp.models.load import model_info
from interp.models.spec import shown_spec
from interp.patching.stability import stability
from interp.runs.shards import versions

SCORES = ("effect", "ci_low", "ci_high", "q_value")
"""What is noted of each head."""


@checked
def found_on(
    heads: HeadSet, model: HookedModel, effects: HeadEffects | JointEffects | None = None
) -> HeadSet:
    """The same heads, with their origin: what ``save`` writes, and loading checks.

    Args:
        model: the hooked model that they were found on.
        effects: those they were chosen by: their scores and stability are noted too.
    """
    info = model_info(model)
    about: dict[str, Any] = {}
    if effects is not None:
        names = effects.relations if isinstance(effects, JointEffects) else ()
        pooled = effects.pooled if isinstance(effects, JointEffects) else effects
        about = {
            "found": {
                **({"searched": list(names)} if names else {}),
                "method": pooled.method,
                "source": pooled.source,
                "n_prompts": len(pooled.values),
                "n_subjects": len(set(pooled.subjects)),
            },
            "scores": scores_of(heads, effects),
            "stability": _stability(effects, len(heads)),
        }
    sizes = info.n_layers, info.n_heads
    origin = Origin(shown_spec(info.spec), info.fingerprint, *sizes, versions=versions(), **about)
    return replace(heads, origin=origin)


def scores_of(heads: HeadSet, effects: HeadEffects | JointEffects) -> tuple[dict[str, Any], ...]:
    """For each head its effect, with interval and q-value."""
    table = effects.to_dataframe()
    rows = {
        (int(row["layer"]), int(row["head"])): {name: float(row[name]) for name in SCORES}
        for row in table.to_dict("records")
    }
    if missing := [head for head in heads if head not in rows]:
        raise UserError(f"there is no effect of head {missing[0]}: give those of this model")
    return tuple(
        {
            **{"layer": layer, "head": head},
            **{name: None if isnan(value) else value for name, value in rows[layer, head].items()},
        }
        for layer, head in heads
    )


def _stability(effects: HeadEffects | JointEffects, count: int) -> dict[str, Any]:
    """The overlap of the best heads in resamples, or between relations; and chance."""
    if not 0 < count < effects.n_heads:
        return {}
    if isinstance(effects, JointEffects):
        if len(effects.relations) < 2:
            return {}
        means = effects.stability(count)[["jaccard", "jaccard_null"]].mean()
        overlap, chance, over = [float(means["jaccard"])], float(means["jaccard_null"]), "relations"
    elif len(set(effects.subjects)) < 2:
        return {}
    else:
        found = stability(effects.as_patching()[0], count, by="signed")
        overlap, chance, over = list(found.overlap), found.chance, "resamples"
    return {"over": over, "n_heads": count, "jaccard": overlap, "chance": chance}
