"""Gain against cost over sites, modes and head counts, and the choice of one.

Gain is the rise of preference accuracy on false premises; cost is the fall of P(true object) on
their true-premise twins. The choice is made on the search split, never on what is scored later.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from interp.checked import checked
from interp.errors import UserError
from interp.evaluation.preference import preference
from interp.heads.effects import HeadEffects
from interp.heads.headset import HeadSet, Site
from interp.heads.locate import as_encoded
from interp.heads.object_edits import mean_output
from interp.heads.significance import mean_interval
from interp.interventions.head_constraint import Constraint, Mode
from interp.jobs import RUN_HERE, JobRunner
from interp.models.hooked_model import HookedModel
from interp.premises.encode import EncodedPremises
from interp.premises.questions import Premises

SettingMode = tuple[Mode, float]
"""A mode and its factor."""

GAIN_TOLERANCE = 0.005
"""Settings whose gain is this close to the best count as equally good."""


@checked
def compare_settings(
    model: HookedModel,
    premises: Premises | EncodedPremises,
    effects: Mapping[Site, HeadEffects],
    *,
    counts: Sequence[int],
    modes: Mapping[Site, Sequence[SettingMode]],
    seed: int = 0,
    progress: bool = True,
    stages: JobRunner = RUN_HERE,
) -> pd.DataFrame:
    """Gain and cost of every site × mode × head count, in the columns of ``settings.csv``."""
    encoded = as_encoded(model, premises)
    rows: list[dict[str, Any]] = []
    for site, of_site in effects.items():
        sets = [HeadSet((), site), *(of_site.select(count=count) for count in counts)]
        n_all = of_site.values[0].numel()
        for mode, factor in modes[site]:
            constraint = Constraint(sets[-1], mode, factor)
            mean = mean_output(model, encoded) if mode == "mean" else None
            false, twin = (
                preference(
                    model,
                    encoded,
                    kind,
                    constraint,
                    sets,
                    mean=mean,
                    progress=progress,
                    stages=stages,
                )
                for kind in ("false", "twin")
            )
            prefers = (false.logit_difference > 0).astype(float)
            for index, heads in enumerate(sets[1:], start=1):
                gain = mean_interval(prefers[:, index] - prefers[:, 0], false.subjects, seed=seed)
                cost = mean_interval(
                    twin.p_true[:, 0] - twin.p_true[:, index], twin.subjects, seed=seed
                )
                rows.append(
                    {
                        "site": site,
                        "mode": setting_mode_name(mode, factor),
                        "factor": factor,
                        "n_heads": len(heads),
                        "head_fraction": len(heads) / n_all,
                        **dict(zip(("gain", "gain_low", "gain_high"), gain, strict=True)),
                        **dict(zip(("cost", "cost_low", "cost_high"), cost, strict=True)),
                        "chosen": False,
                    }
                )
    return pd.DataFrame(rows)


def setting_mode_name(mode: Mode, factor: float) -> str:
    """The mode as tables show it, with its factor where it has one."""
    return f"{mode} {factor:g}" if mode == "scale" else mode


@checked
def choose_setting(settings: pd.DataFrame, *, n_heads: int) -> int:
    """The row of the best setting with ``n_heads`` heads: most gain, then least cost."""
    fits = settings.loc[settings["n_heads"] == n_heads]
    if fits.empty:
        raise UserError(f"no setting with {n_heads} heads was compared")
    return best_setting(fits)


def most_gain(settings: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table of settings whose ``gain`` is as good as the best."""
    return settings.loc[settings["gain"] >= settings["gain"].max() - GAIN_TOLERANCE]


def best_setting(settings: pd.DataFrame) -> int:
    """The row of most ``gain``, and of equals of the least ``cost``: its label in the table."""
    cost: Any = most_gain(settings)["cost"]
    return int(cost.idxmin())
