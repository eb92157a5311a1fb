"""Effects of heads, their significance, and the sets chosen from them."""

from typing import TYPE_CHECKING

from interp.lazy import names_on_demand

if TYPE_CHECKING:
    from interp.heads.effects import (
        HeadEffects,
        Method,
        agreement,
        count_of_fraction,
        effects_by_layer,
        load_effects,
        save_effects,
        select_heads,
    )
    from interp.heads.headset import Head, HeadSet, Site, as_head_set
    from interp.heads.joint import JointEffects, pool_effects
    from interp.heads.locate import locate_heads
    from interp.heads.noting import found_on
    from interp.heads.object_edits import Source, premise_edit
    from interp.heads.origin import Origin
    from interp.heads.random_sets import random_head_sets
    from interp.heads.shipped import Shipped, shipped_for
    from interp.heads.statistics import HeadStatistics, head_statistics
    from interp.statistics.significance import mean_interval

__all__ = [
    "Head",
    "HeadEffects",
    "HeadSet",
    "HeadStatistics",
    "JointEffects",
    "Method",
    "Origin",
    "Shipped",
    "Site",
    "Source",
    "agreement",
    "as_head_set",
    "count_of_fraction",
    "effects_by_layer",
    "found_on",
    "head_statistics",
    "load_effects",
    "locate_heads",
    "mean_interval",
    "pool_effects",
    "premise_edit",
    "random_head_sets",
    "save_effects",
    "select_heads",
    "shipped_for",
]

__getattr__, __dir__ = names_on_demand(__name__)
