"""What weights cost that constrain heads everywhere, beside a constraint at false words only."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from interp.evaluation.preference import VALUES, Preference, preference_under
from interp.evaluation.side_effects import side_effects
from interp.figures.measures import Measure, format_number, format_small
from interp.heads.locate import as_encoded
from interp.interventions.intervention import Intervention
from interp.models.hooked_model import HookedModel
from interp.premises.joint import AnyPremises
from interp.premises.questions import QuestionKind
from interp.statistics.significance import mean_interval

RUNS = ("unconstrained", "at_false_words", "everywhere")
KINDS: dict[str, QuestionKind] = {"false_premise": "false", "true_premise": "twin"}


def bake_cost(
    model: HookedModel,
    premises: AnyPremises,
    intervention: Intervention,
    *,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Preference on held-out premises and their twins, and cost on neutral text.

    ``everywhere`` is the intervention at every token of the prompts, which is what the baked
    weights compute; ``at_false_words`` is the same intervention, told where the object is.

    Returns:
        the content of ``baked.json``: measures with 95 % intervals for each kind and run; ``gain``
        in preference accuracy on false premises and ``cost`` in P(true object) on twins, paired by
        prompt; ``neutral``: KL divergence and perplexity.
    """
    encoded = as_encoded(model, premises)
    found: dict[str, Any] = {"intervention": intervention.name}
    values: dict[str, Preference] = {}
    for name, kind in KINDS.items():
        options: Any = {"interventions": [intervention], "progress": progress}
        told = preference_under(model, encoded, kind, **options)
        whole = [(0, len(item.prompt(kind).tokens)) for item in encoded.items]
        # Plain prompts run again, in the same batches as with the intervention.
        baked = preference_under(model, encoded, kind, spans=whole, **options)
        values[name] = _beside(told, baked)
        found[name] = {run: values[name].measures(i, seed=seed) for i, run in enumerate(RUNS)}
    false, twin = values["false_premise"], values["true_premise"]
    prefers = (false.logit_difference > 0).astype(float)
    for index, run in enumerate(RUNS[1:], start=1):
        gain = mean_interval(prefers[:, index] - prefers[:, 0], false.subjects, seed=seed)
        cost = mean_interval(twin.p_true[:, 0] - twin.p_true[:, index], twin.subjects, seed=seed)
        found.setdefault("gain", {})[run] = list(gain)
        found.setdefault("cost", {})[run] = list(cost)
    found["neutral"] = {
        "at_one_word": side_effects(model, intervention).to_dict(),
        "everywhere": side_effects(model, intervention, everywhere=True).to_dict(),
    }
    return found


def bake_sentences(found: Mapping[str, Any]) -> tuple[str, ...]:
    """What acting everywhere does, beside acting at the false words; nothing of an empty cost."""
    if not found:
        return ()
    gains, costs = (
        [Measure(*found[what][run]).format() for run in RUNS[1:]] for what in ("gain", "cost")
    )
    neutral = [found["neutral"][place] for place in ("at_one_word", "everywhere")]
    kl = [format_small(each["neutral_kl"]) for each in neutral]
    ratio = [format_number(each["neutral_perplexity_ratio"], 3) for each in neutral]
    n = found["false_premise"]["unconstrained"]["n"]
    return (
        f"Gain in preference accuracy on {n} held-out false premises: {gains[1]} with the baked "
        f"weights, {gains[0]} with the constraint at the false words.",
        f"Fall of P(true object) on their twins: {costs[1]} baked, {costs[0]} at the object.",
        f"Neutral text: KL {kl[1]} nats and perplexity times {ratio[1]} baked; {kl[0]} and "
        f"{ratio[0]} with the constraint at one word of each sentence.",
    )


def _beside(told: Preference, baked: Preference) -> Preference:
    """The sets [none, at the object, everywhere]."""
    both = {
        name: np.concatenate([getattr(told, name), getattr(baked, name)[:, 1:]], axis=1)
        for name in VALUES
    }
    return replace(told, **both)
