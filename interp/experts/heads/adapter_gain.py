"""How much of an adapter's gain goes through given heads.

The gain on premises is the rise of the preference for the true object (share of prompts, or logit
difference) from the model without the adapter to the model with it. Everything that the experts add
to the heads' queries and values is then set to zero, and the gain that is **lost** is compared with
the loss for random heads: as many other heads' queries, and as many other groups' values, in every
layer. With grouped queries a value serves a whole group, so all heads of the group lose theirs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.evaluation.jobs import preference_metrics
from interp.evaluation.preference import Preference
from interp.experts.heads.slices import (
    NO_ABLATION,
    ExpertHeadContribution,
    Part,
    components_of,
    slices_of,
    sweep_ablations,
    without_experts,
    without_slices,
)
from interp.figures.dots import dot_figure
from interp.forward.hook_points import count_units
from interp.heads.headset import Head, HeadSet, as_head_set
from interp.heads.locate import as_encoded
from interp.heads.random_sets import random_head_sets
from interp.models.hooked_model import HookedModel
from interp.moelora.projections import head_outputs
from interp.patching.sweep import check_units
from interp.premises.encode import EncodedPremises
from interp.premises.questions import Premises, QuestionKind
from interp.statistics.significance import mean_interval

RANDOM_SETS = 20


@dataclass(frozen=True, eq=False)
class AdapterGain(Displayed):
    """The adapter's gain, whole, without its part in the heads, and without random parts.

    Attributes:
        heads, components: whose adapter parts were switched off.
        runs: preference per prompt; sets are [no adapter, the adapter, without its part in the
            heads, without random parts …].
        seed: of the intervals and the random sets.
    """

    heads: HeadSet
    components: tuple[Part, ...]
    runs: Preference
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """By measure (``accuracy``, ``logit_difference``): [value, low, high] over subjects.

        ``without_adapter``, ``with_adapter``, ``without_heads``; ``gain`` and ``lost``, paired by
        prompt; ``random_lost`` mean, 95th percentile, and the ``percentile`` of ``lost`` in it.
        """
        difference = self.runs.logit_difference
        right = (difference > 0).astype(float)
        return {"accuracy": self._measure(right), "logit_difference": self._measure(difference)}

    def _measure(self, values: np.ndarray) -> dict[str, Any]:
        without_adapter, full, without_heads = values[:, :3].T
        lost = full - without_heads
        of_prompts = {
            "without_adapter": without_adapter,
            "with_adapter": full,
            "without_heads": without_heads,
            "gain": full - without_adapter,
            "lost": lost,
        }
        found: dict[str, Any] = {
            name: list(mean_interval(numbers, self.runs.subjects, seed=self.seed))
            for name, numbers in of_prompts.items()
        }
        null = (full[:, None] - values[:, 3:]).mean(axis=0)
        if len(null):
            p95 = float(np.quantile(null, 0.95))
            found["random_lost"] = {"mean": float(null.mean()), "p95": p95}
            found["percentile"] = float((null < lost.mean()).mean() * 100)
        return found | {"n_sets": len(null)}

    def to_dataframe(self) -> pd.DataFrame:
        """One row a measure and run: value and interval."""
        rows = [
            (measure, what, *interval)
            for measure, content in self.to_dict().items()
            for what, interval in content.items()
            if isinstance(interval, list)
        ]
        return pd.DataFrame(rows, columns=["measure", "what", "value", "low", "high"])

    def plot(self) -> go.Figure:
        """Preference accuracy without the adapter, with it, and without its part in the heads."""
        content = self.to_dict()["accuracy"]
        values = {
            "no adapter": content["without_adapter"],
            "adapter": content["with_adapter"],
            "adapter, not in these heads": content["without_heads"],
            "gain of the adapter": content["gain"],
            "lost without these heads": content["lost"],
        }
        if "random_lost" in content:
            mean, p95 = content["random_lost"]["mean"], content["random_lost"]["p95"]
            values["lost without random heads (to 95 %)"] = [mean, mean, p95]
        mean, low, high = zip(*values.values(), strict=True)
        title = "preference accuracy, or its change"
        return dot_figure(list(values), mean, low=low, high=high, line=0.0, title=title)

    def _shown(self) -> Shown:
        words = (
            f"The adapter's gain, and what is lost without its part in {len(self.heads)} heads "
            f"({', '.join(self.components)}); {len(self.runs.subjects)} prompts."
        )
        return Shown(words, (self.to_dataframe(),), self.plot)


def adapter_gain(
    model: HookedModel,
    premises: Premises | EncodedPremises,
    heads: HeadSet | Iterable[Head],
    *,
    components: Sequence[Part] = ("q", "v"),
    kind: QuestionKind = "false",
    random_sets: int = RANDOM_SETS,
    seed: int = 0,
    progress: bool = True,
) -> AdapterGain:
    """The gain of a hooked model's adapter, and how much of it goes through these heads.

    Components without experts in a head's layer have nothing to switch off there.

    Raises:
        UserError: no heads, heads that the model does not have, none of them in a layer with
            experts, or so many that no random set can match.
    """
    chosen = as_head_set(heads)
    check_units(model, chosen.heads)
    encoded = as_encoded(model, premises)
    slices = _adapted(model, slices_of(model, chosen, components))
    if not slices:
        raise UserError("the adapter has no part in these heads: no experts in their layers")
    random = _random_slices(model, slices, n_sets=random_sets, seed=seed)
    without = [without_slices(model, some) for some in (slices, *random)]
    ablations = [without_experts(model), NO_ABLATION, *without]
    values = sweep_ablations(
        model,
        encoded.batch(kind),
        ablations,
        metrics=preference_metrics(encoded),
        progress=progress,
        description="adapter through heads",
    )
    runs = Preference.from_values(values, encoded)
    return AdapterGain(chosen, tuple(components), runs, seed)


def _adapted(
    model: HookedModel, slices: Sequence[ExpertHeadContribution]
) -> list[ExpertHeadContribution]:
    """The slices in layers that have experts on their component."""
    layers = {name: head_outputs(model, name) for name in components_of(slices)}
    return [part for part in slices if part.layer in layers[part.component]]


def _random_slices(
    model: HookedModel, chosen: Sequence[ExpertHeadContribution], *, n_sets: int, seed: int
) -> list[list[ExpertHeadContribution]]:
    """For each set, as many other slices of each component in each layer."""
    sets: list[list[ExpertHeadContribution]] = [[] for _ in range(n_sets)]
    for component in components_of(chosen):
        units = HeadSet(
            tuple((part.layer, part.unit) for part in chosen if part.component == component)
        )
        n_units = count_units(model, component)
        drawn = random_head_sets(
            units, n_layers=model.cfg.n_layers, n_heads=n_units, n_sets=n_sets, seed=seed
        )
        for into, found in zip(sets, drawn, strict=True):
            slices = [ExpertHeadContribution(component, layer, unit) for layer, unit in found]
            into += _adapted(model, slices)
    return sets
