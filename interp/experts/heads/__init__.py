"""Experts and heads: what a MoELoRA adapter does to single heads, and to FAITH's head set.

::

    contributions = expert_contributions(model, premises, component="q")   # what experts add
    feeding = rank_expert_contributions(model, premises, heads)                      # which feed
    the heads causal = slice_effects(model, premises, feeding.slices(8))             # take them out
    shift = compare_heads(effects_of_base, effects_of_adapted)             # did the heads move?
    gain = adapter_gain(model, premises, heads)                            # does it work there?

``model`` is of `interp.moelora.hooked`.
"""

from interp.experts.heads.adapter_gain import AdapterGain, adapter_gain
from interp.experts.heads.contributions import ExpertContributions, expert_contributions
from interp.experts.heads.feeding import ExpertFeeding, rank_expert_contributions
from interp.experts.heads.slice_effects import SliceEffects, slice_effects
from interp.experts.heads.slices import (
    ExpertHeadContribution,
    slices_of,
    without_experts,
    without_slices,
)
from interp.heads.compare import HeadComparison, compare_heads
from interp.moved import old_names

__all__ = [
    "AdapterGain",
    "ExpertContributions",
    "ExpertFeeding",
    "ExpertHeadContribution",
    "HeadComparison",
    "SliceEffects",
    "adapter_gain",
    "compare_heads",
    "expert_contributions",
    "rank_expert_contributions",
    "slice_effects",
    "slices_of",
    "without_experts",
    "without_slices",
]

__getattr__ = old_names(__name__)
