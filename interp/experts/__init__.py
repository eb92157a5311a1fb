"""What the experts of a MoELoRA adapter are used for, and what they do.

::

    records, similarity = collect_routing(adapted, {"sums": [...], "facts": [...]}, tokenizer)
    found = measure_specialization(records)      # measures with intervals, nulls and q-values
    found.summary(); found.plot("task_information"); records.plot("load", target="q_proj")

Causal effects are in `interp.experts.effects.effects`, experts and heads in `interp.experts.heads`.
`patch_expert_edges` says how much of an effect goes into an expert, and out of it.
"""

from interp.experts.edges.patch_expert_edges import patch_expert_edges
from interp.experts.edges.result import ExpertEdgeEffects
from interp.experts.routing.collect import CollectSettings, collect_routing
from interp.experts.routing.corpus import LabelledCorpus, LabelledText, corpus_of
from interp.experts.routing.records import RoutingRecords
from interp.experts.routing.similarity import OutputSimilarity
from interp.experts.routing.specialization import Specialization, measure_specialization
from interp.moelora.projections import AdaptedProjection
from interp.moved import old_names

__all__ = [
    "AdaptedProjection",
    "CollectSettings",
    "ExpertEdgeEffects",
    "LabelledCorpus",
    "LabelledText",
    "OutputSimilarity",
    "RoutingRecords",
    "Specialization",
    "collect_routing",
    "corpus_of",
    "measure_specialization",
    "patch_expert_edges",
]

__getattr__ = old_names(__name__)
