"""Patching any hooked model: exact sweeps, path patching and attribution, and their metrics.

Stands by itself: nothing here knows of premises.
"""

from interp.patching.attribution import attribute_heads
from interp.patching.batch import TokenBatch, first_difference
from interp.patching.edits import AttentionEdit, OutputEdit
from interp.patching.forward import RecordedRun, hooked, record_run, resume, tail_logits
from interp.patching.metrics import KLDivergence, LogitDifference, LogProbability, Probability
from interp.patching.sweep import patch_heads, sweep_heads, sweep_sets

__all__ = [
    "AttentionEdit",
    "KLDivergence",
    "LogProbability",
    "LogitDifference",
    "OutputEdit",
    "Probability",
    "RecordedRun",
    "TokenBatch",
    "attribute_heads",
    "first_difference",
    "hooked",
    "patch_heads",
    "record_run",
    "resume",
    "sweep_heads",
    "sweep_sets",
    "tail_logits",
]
