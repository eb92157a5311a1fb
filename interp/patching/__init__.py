"""Patching any hooked model: exact sweeps, path patching and attribution, and their metrics.

Works on any pair of prompts; nothing here depends on premises.
"""

from typing import TYPE_CHECKING

from interp.lazy import names_on_demand
from interp.moved import old_names

if TYPE_CHECKING:
    from interp.forward.batch import TokenBatch, first_difference
    from interp.forward.partial import RecordedRun, hooked, last_logits, record_run, resume
    from interp.patching.attribution import attribute_heads
    from interp.patching.circuit import Circuit, circuit_of
    from interp.patching.edges.edge_faithfulness import edge_faithfulness
    from interp.patching.edges.edge_screen import EdgeScreening, screen_edges
    from interp.patching.edges.edge_sets import circuit_metric, patch_edge_sets
    from interp.patching.edges.patch_edges import patch_edges
    from interp.patching.edges.result import EdgeEffects
    from interp.patching.edits import ActivationEdit, AttentionEdit
    from interp.patching.faithfulness import faithfulness_curve
    from interp.patching.logit_attribution import LogitAttribution, logit_attribution
    from interp.patching.logit_lens import LogitLens, logit_lens
    from interp.patching.metrics import KLDivergence, LogitDifference, LogProbability, Probability
    from interp.patching.noise import trace_noise
    from interp.patching.patch import patch, patch_heads
    from interp.patching.path import patch_paths
    from interp.patching.result import PatchEffects
    from interp.patching.screen import Screening, screen
    from interp.patching.stability import stability
    from interp.patching.sweep import sweep_heads, sweep_position_sets, sweep_sets

__all__ = [
    "ActivationEdit",
    "AttentionEdit",
    "Circuit",
    "EdgeEffects",
    "EdgeScreening",
    "KLDivergence",
    "LogProbability",
    "LogitAttribution",
    "LogitDifference",
    "LogitLens",
    "PatchEffects",
    "Probability",
    "RecordedRun",
    "Screening",
    "TokenBatch",
    "attribute_heads",
    "circuit_metric",
    "circuit_of",
    "edge_faithfulness",
    "faithfulness_curve",
    "first_difference",
    "hooked",
    "last_logits",
    "logit_attribution",
    "logit_lens",
    "patch",
    "patch_edge_sets",
    "patch_edges",
    "patch_heads",
    "patch_paths",
    "record_run",
    "resume",
    "screen",
    "screen_edges",
    "stability",
    "sweep_heads",
    "sweep_position_sets",
    "sweep_sets",
    "trace_noise",
]

__getattr__, __dir__ = names_on_demand(__name__, old_names(__name__))
