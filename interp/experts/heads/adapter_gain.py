"""Does an adapter work through given heads? Its gain with its part in them switched off.

The adapter's gain on premises is the rise of the preference for the true object (share of prompts,
or logit difference) from the model without it to the model with it. Everything that its experts
add to the heads' queries and values is then taken away, and the gain that is **lost** is compared
with what is lost for random heads: as many other heads' queries, and as many other groups'
values, in every layer. With grouped queries a value serves a whole group, so the other heads of a
chosen head's group lose theirs too.
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
    adapted_parts,
    components_of,
    slices_of,
    sweep_removals,
    without_experts,
    without_slices,
)
from interp.figures.dots import dot_figure
from interp.forward.hook_points import count_units
from interp.heads.headset import Head, HeadSet, as_head_set
from interp.heads.locate import as_encoded
from interp.heads.random_sets import random_head_sets
from interp.heads.significance import mean_interval
from interp.models.hooked_model import HookedModel
from interp.patching.sweep import check_units
from interp.premises.encode import EncodedPremises
from interp.premises.questions import Premises, QuestionKind

RANDOM_SETS = 20
_NO_ADAPTER, _FULL, _WITHOUT, _RANDOM = 0, 1, 2, 3


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

    def _interval(self, values: np.ndarray) -> list[float]:
        return list(mean_interval(values, self.runs.subjects, seed=self.seed))

    def _of(self, measure: str) -> np.ndarray:
        difference = self.runs.logit_difference
        return (difference > 0).astype(float) if measure == "accuracy" else difference

    def to_dict(self) -> dict[str, Any]:
        """By measure (``accuracy``, ``logit_difference``): [value, low, high] over subjects.

        ``without_adapter``, ``with_adapter``, ``without_heads``; ``gain`` and ``lost``, paired by
        prompt; ``random_lost`` mean, 95th percentile, and the ``percentile`` of ``lost`` in it.
        """
        return {name: self._measure(self._of(name)) for name in ("accuracy", "logit_difference")}

    def _measure(self, values: np.ndarray) -> dict[str, Any]:
        lost = values[:, _FULL] - values[:, _WITHOUT]
        found: dict[str, Any] = {
            "without_adapter": self._interval(values[:, _NO_ADAPTER]),
            "with_adapter": self._interval(values[:, _FULL]),
            "without_heads": self._interval(values[:, _WITHOUT]),
            "gain": self._interval(values[:, _FULL] - values[:, _NO_ADAPTER]),
            "lost": self._interval(lost),
        }
        null = (values[:, [_FULL]] - values[:, _RANDOM:]).mean(axis=0)
        if len(null):
            found["random_lost"] = {
                "mean": float(null.mean()),
                "p95": float(np.quantile(null, 0.95)),
            }
            found["percentile"] = float((null < lost.mean()).mean() * 100)
        return found | {"n_sets": len(null)}

    def to_dataframe(self) -> pd.DataFrame:
        """One row a measure and run: value and interval."""
        return pd.DataFrame(
            [
                {"measure": measure, "what": what, "value": one[0], "low": one[1], "high": one[2]}
                for measure, content in self.to_dict().items()
                for what, one in content.items()
                if isinstance(one, list)
            ]
        )

    def plot(self) -> go.Figure:
        """Preference accuracy without the adapter, with it, and without its part in the heads."""
        content = self.to_dict()["accuracy"]
        names = {
            "without_adapter": "no adapter",
            "with_adapter": "adapter",
            "without_heads": "adapter, not in these heads",
            "gain": "gain of the adapter",
            "lost": "lost without these heads",
        }
        values = {text: content[key] for key, text in names.items()}
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
    own = _adapted(model, slices_of(model, chosen, components))
    if not own:
        raise UserError("the adapter has no part in these heads: no experts in their layers")
    random = _random_slices(model, own, random_sets, seed)
    removals = [without_experts(model), NO_ABLATION]
    removals += [without_slices(model, one) for one in (own, *random)]
    values = sweep_removals(
        model,
        encoded.batch(kind),
        removals,
        preference_metrics(encoded),
        progress=progress,
        description="adapter through heads",
    )
    runs = Preference.from_values(values, encoded)
    return AdapterGain(chosen, tuple(components), runs, seed)


def _adapted(
    model: HookedModel, slices: Sequence[ExpertHeadContribution]
) -> list[ExpertHeadContribution]:
    """Those in layers that have experts on the component."""
    layers = {one: adapted_parts(model, one) for one in components_of(slices)}
    return [one for one in slices if one.layer in layers[one.component]]


def _random_slices(
    model: HookedModel, own: Sequence[ExpertHeadContribution], n_sets: int, seed: int
) -> list[list[ExpertHeadContribution]]:
    """For each set, as many other slices of each component in each layer."""
    sets: list[list[ExpertHeadContribution]] = [[] for _ in range(n_sets)]
    for component in components_of(own):
        units = HeadSet(tuple((one.layer, one.unit) for one in own if one.component == component))
        n_units = count_units(model, component)
        drawn = random_head_sets(units, model.cfg.n_layers, n_units, n_sets, seed=seed)
        for into, found in zip(sets, drawn, strict=True):
            slices = [ExpertHeadContribution(component, layer, unit) for layer, unit in found]
            into += _adapted(model, slices)
    return sets
