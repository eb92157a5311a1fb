"""What the experts of a MoELoRA adapter are used for, and what they do.

::

    records, similarity = collect_routing(adapted, {"sums": [...], "facts": [...]}, tokenizer)
    found = measure_specialization(records)      # measures with intervals, nulls and q-values
    found.summary(); found.plot("task_information"); records.plot("load", target="q_proj")

`expert_effects` measures what experts cause, `patch_experts` patches their gates and outputs, and
`patch_expert_edges` says how much of an effect goes into an expert, and out of it. Experts and
heads are in `interp.experts.heads`.
"""

from interp.experts.edges.patch_expert_edges import patch_expert_edges
from interp.experts.edges.result import ExpertEdgeEffects
from interp.experts.effects.agreement import routing_agreement
from interp.experts.effects.effects import ExpertEffects, expert_effects
from interp.experts.effects.patching import patch_experts
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
    "ExpertEffects",
    "LabelledCorpus",
    "LabelledText",
    "OutputSimilarity",
    "RoutingRecords",
    "Specialization",
    "collect_routing",
    "corpus_of",
    "expert_effects",
    "measure_specialization",
    "patch_expert_edges",
    "patch_experts",
    "routing_agreement",
]

__getattr__ = old_names(__name__)
