"""Do experts read and write the residual stream as their nodes say? Compared on one prompt.

A projection's router must give, for what the layer's norm gives, what its hook point shows. The
output of a projection that writes must be what its part of the layer adds, at one scale: nothing
may come between them (a norm behind the attention or the MLP, as in Gemma).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import UserError
from interp.experts.edges.expert_nodes import ExpertNodes, ReadingExperts, WritingExperts
from interp.forward.batch import TokenBatch
from interp.forward.partial import RecordedRun, hooked, record_run
from interp.models.hooked_model import HookedModel
from interp.patching.edges.layer_parts import LayerParts, normed
from interp.precision import agrees, dtype_of, widened

_BEHIND = {"attention": ("attn_out", "ln1_post"), "mlp": ("mlp_out", "ln2_post")}
"""By part of a layer: what it adds, and the norm that may come before that is added."""


@torch.no_grad()
def checked_nodes(
    model: HookedModel, nodes: ExpertNodes, parts: Sequence[LayerParts], *, batch: TokenBatch
) -> ExpertNodes:
    """The nodes, with the scale at which each projection that writes is added.

    Args:
        parts: of every layer, without experts.
        batch: whose first prompt is run.

    Raises:
        UserError: experts that read something else, or that write through a norm.
    """
    seen: dict[str, Tensor] = {}
    points = [some.router_point for some in nodes.all_reading()]
    points += [some.projection.output for some in nodes.all_writing()]
    with hooked(model, [(point, partial(_keep, into=seen)) for point in points]):
        run = record_run(model, batch.take([0]), keep=("attn_out", "mlp_out"), plain=False)
    for experts in nodes.all_reading():
        shown, expected = seen.get(experts.router_point), _probabilities(experts, parts, run)
        if shown is None or not agrees(expected, shown, dtype_of(model)):
            raise UserError(
                f"the experts of {experts.projection.name} do not read what the layer's norm "
                "gives: their edges cannot be told apart"
            )
    writing = {}
    for (layer, part), group in nodes.writing.items():
        component, norm = _BEHIND[part]
        added, behind = run.values[component][layer], getattr(model.blocks[layer], norm, None)
        scales = () if isinstance(behind, nn.Module) else (1.0, parts[layer].scale)
        writing[layer, part] = [
            replace(some, scale=_scale(model, some, seen, added=added, scales=scales))
            for some in group
        ]
    return replace(nodes, writing=writing)


def _probabilities(
    experts: ReadingExperts, parts: Sequence[LayerParts], run: RecordedRun
) -> Tensor:
    """The router's softmax, by what the experts' node reads."""
    layer = experts.nodes.layer
    of_layer, read = parts[layer], widened(run.resid_pre[layer])
    if experts.into:
        return experts.probabilities(normed(of_layer.norm, read))
    read = of_layer.read_by_mlp(read, run.values["attn_out"][layer].squeeze(2))
    return experts.probabilities(normed(of_layer.mlp_norm, read))


def _scale(
    model: HookedModel,
    experts: WritingExperts,
    seen: dict[str, Tensor],
    *,
    added: Tensor,
    scales: Sequence[float],
) -> float:
    """What the projection's output is multiplied with on its way to the residual stream."""
    output = seen.get(experts.projection.output)
    if output is not None:
        for scale in scales:
            if agrees(scale * output.reshape(added.shape), added, dtype_of(model)):
                return scale
    raise UserError(
        f"what the experts of {experts.projection.name} write does not reach the residual stream "
        "as it is, but through a norm or in another way: their edges cannot be told apart"
    )


def _keep(value: Tensor, hook: Any, *, into: dict[str, Tensor]) -> None:
    into[hook.name] = widened(value.detach())
