"""Compare gain and cost over sites, modes and head counts, and choose the best setting.

Gain is the rise of preference accuracy on false premises; cost is the fall of P(true object) on
their true-premise twins. Choose on the search split, never on the held-out one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from interp.checked import checked
from interp.errors import UserError
from interp.evaluation.preference import preference
from interp.heads.effects import HeadEffects
from interp.heads.headset import HeadSet, Site
from interp.heads.joint import JointEffects
from interp.heads.locate import as_encoded
from interp.heads.object_edits import mean_output
from interp.interventions.head_constraint import Constraint, Mode
from interp.interventions.unit_table import action_name
from interp.jobs import RUN_HERE, JobRunner
from interp.lazy import pd
from interp.models.hooked_model import HookedModel
from interp.premises.encode import EncodedPremises
from interp.premises.joint import AnyPremises
from interp.statistics.significance import mean_interval

SettingMode = tuple[Mode, float]
"""A mode and its factor."""

GAIN_TOLERANCE = 0.005
"""Settings whose gain is at most this far from the best count as equally good."""


@checked
def compare_settings(
    model: HookedModel,
    premises: AnyPremises | EncodedPremises,
    effects: Mapping[Site, HeadEffects | JointEffects],
    *,
    counts: Sequence[int],
    modes: Mapping[Site, Sequence[SettingMode]],
    seed: int = 0,
    progress: bool = True,
    stages: JobRunner = RUN_HERE,
) -> "pd.DataFrame":
    """Gain and cost of every site × mode × head count, in the columns of ``settings.csv``."""
    encoded = as_encoded(model, premises)
    rows: list[dict[str, Any]] = []
    for site, site_effects in effects.items():
        sets = [HeadSet((), site), *(site_effects.select(count=count) for count in counts)]
        n_all = site_effects.n_heads
        for mode, factor in modes[site]:
            run: dict[str, Any] = {
                "constraint": Constraint(sets[-1], mode, factor),
                "sets": sets,
                "mean": mean_output(model, encoded) if mode == "mean" else None,
                "progress": progress,
                "stages": stages,
            }
            false, twin = (preference(model, encoded, kind, **run) for kind in ("false", "twin"))
            prefers = (false.logit_difference > 0).astype(float)
            gains, costs = prefers - prefers[:, :1], twin.p_true[:, :1] - twin.p_true
            for index, heads in enumerate(sets[1:], start=1):
                gain = mean_interval(gains[:, index], false.subjects, seed=seed)
                cost = mean_interval(costs[:, index], twin.subjects, seed=seed)
                rows.append(
                    {
                        "site": site,
                        "mode": action_name(mode, factor),
                        "factor": factor,
                        "n_heads": len(heads),
                        "head_fraction": len(heads) / n_all,
                        **dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True)),
                        **dict(zip(("cost", "cost_low", "cost_high"), cost, strict=True)),
                        "chosen": False,
                    }
                )
    return pd.DataFrame(rows)


@checked
def choose_setting(settings: "pd.DataFrame", *, n_heads: int) -> int:
    """The row of the best setting with ``n_heads`` heads: most gain, then least cost."""
    fits = settings.loc[settings["n_heads"] == n_heads]
    if fits.empty:
        raise UserError(f"no setting with {n_heads} heads was compared")
    return best_setting(fits)


def most_gain(settings: "pd.DataFrame") -> "pd.DataFrame":
    """The rows of a table of settings whose ``gain`` is as good as the best."""
    return settings.loc[settings["gain"] >= settings["gain"].max() - GAIN_TOLERANCE]


def best_setting(settings: "pd.DataFrame") -> int:
    """The label of the row with most ``gain`` and, among equals, least ``cost``."""
    cost: Any = most_gain(settings)["cost"]
    return int(cost.idxmin())
