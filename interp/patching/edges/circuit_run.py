"""Running a circuit of edges: every other edge carries what it carries in another run.

For a circuit the clean prompts run, and the other run is the corrupted one. Each reader takes the
residual stream less, for every writer whose edge to it is left out, the difference between what
that writer adds now and what it adds in the other run. A writer that no kept edge reaches adds what
it adds there, so that it does not matter whether edges that lead nowhere are pruned first. This is
how MIB (arXiv 2504.13151) measures circuits of edges. Patching a set of edges is the same with the
runs exchanged: the corrupted prompts run, and the set's edges carry what they carry in the clean
run.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.hook_points import as_units, from_units, hook_name
from interp.forward.partial import Hook, RecordedRun, resume
from interp.models.hooked_model import HookedModel
from interp.patching.edges.graph import INTO, EdgeGraph
from interp.patching.edges.layer_parts import LayerParts, normed, tensor_of
from interp.patching.edges.reader_gradients import hooked_mlp, replaced_input
from interp.precision import widened


class CircuitRun:
    """Runs of circuits on some prompts.

    Args:
        parts: of every layer.
        graph: of the model.
        run: of the prompts that run, recorded with ``attribution.KEPT`` and without transformers'
            own modules.
        other: where the values of the edges come from that are left out; recorded in the same way.

    Raises:
        UserError: a bias before a norm behind the attention, which belongs to no head.
    """

    def __init__(
        self,
        model: HookedModel,
        parts: Sequence[LayerParts],
        graph: EdgeGraph,
        *,
        run: RecordedRun,
        other: RecordedRun,
    ) -> None:
        if any(p.post_norm is not None and p.output_bias is not None for p in parts):
            raise UserError(
                "circuits of edges cannot be run on a model with a bias before the norm behind its "
                "attention: what its heads add to the residual stream does not sum up"
            )
        self.model, self.parts, self.graph = model, parts, graph
        self.run, self.other = run, other

    @torch.no_grad()
    def logits(self, kept: Bool[Tensor, "writer reader"]) -> Float[Tensor, "prompt d_vocab"]:
        """The last position's logits of the circuit that keeps these edges."""
        return _OneRun(self, kept).logits()


class _OneRun:
    """The run of one circuit, layer by layer."""

    def __init__(self, runs: CircuitRun, kept: Bool[Tensor, "writer reader"]) -> None:
        self.runs, self.graph, self.parts = runs, runs.graph, runs.parts
        first = widened(runs.run.resid_pre[0])
        self.dropped = (~kept).to(first)
        self.changes = first.new_empty(self.graph.shape[0], *first.shape)
        """What each writer so far adds more than in the other run, [writer prompt pos d_model]."""
        self.n_written = 0
        self._note((first - widened(runs.other.resid_pre[0]))[None])
        self.residual, self.normed, self.mixed = first, first, first
        self.in_norm = False

    def logits(self) -> Float[Tensor, "prompt d_vocab"]:
        """Run all layers."""
        runs, hooks = self.runs, []
        with ExitStack() as stack:
            for layer, parts in enumerate(self.parts):
                at = partial(partial, layer=layer)
                hooks += [
                    _hook("resid_pre", layer, at(self._begin)),
                    *(_hook(into, layer, at(self._project, into=into)) for into in INTO),
                    _hook("z", layer, at(self._heads)),
                    _hook("attn_out", layer, at(self._middle)),
                    _hook("mlp_out", layer, at(self._mlp)),
                ]
                stack.enter_context(
                    hooked_mlp(parts, at(self._mlp_input), at(self._mlp_input_of_norm))
                )
            last = len(self.parts) - 1
            hooks.append(_hook("resid_post", last, self._end))
            rows = runs.run.batch.every_row
            return resume(runs.model, runs.run, layer=0, rows=rows, hooks=hooks)

    def _taken(
        self, residual: Tensor, readers: slice, *, n_writers: int
    ) -> Float[Tensor, "prompt reader pos d_model"]:
        """What some readers take of the residual stream, to which so many have written."""
        dropped = self.dropped[:n_writers, readers]
        # Writers come first in the changes, so that this is one product of plain matrices.
        left_out = dropped.T @ self.changes[:n_writers].flatten(1)
        return residual[:, None] - left_out.view(-1, *residual.shape).transpose(0, 1)

    def _note(self, changes: Float[Tensor, "writer prompt pos d_model"]) -> None:
        """Keep what the next writers add."""
        here = slice(self.n_written, self.n_written + len(changes))
        self.changes[here] = changes
        self.n_written = here.stop

    def _begin(self, value: Tensor, *, layer: int) -> None:
        self.residual = widened(value)
        n_writers = self.graph.writers_before(layer)
        taken = self._taken(self.residual, self.graph.readers_of(layer), n_writers=n_writers)
        flat = normed(self.parts[layer].norm, taken.flatten(0, 1))
        self.normed = flat.unflatten(0, taken.shape[:2])

    def _project(self, value: Tensor, *, layer: int, into: str) -> Tensor:
        units = [
            self.parts[layer].project(into, self.normed[:, place], unit)
            for place, (name, unit) in enumerate(self.graph.inputs)
            if name == into
        ]
        return from_units(torch.stack(units, dim=2).to(value.dtype), into)

    def _heads(self, value: Tensor, *, layer: int) -> None:
        before = widened(self.runs.other.values["z"][layer])
        now, parts = widened(as_units(value, "z")), self.parts[layer]
        self._note((parts.head_parts(now) - parts.head_parts(before)).transpose(0, 1))

    def _middle(self, value: Tensor, *, layer: int) -> None:
        self.mixed = widened(value)

    def _read_by_mlp(self, like: Tensor, layer: int) -> Tensor:
        parts, place = self.parts[layer], self.graph.readers_of(layer).stop
        residual = self.residual if parts.reads_before else self.residual + self.mixed
        n_writers = self.graph.writers_before(layer, mlp=True)
        taken = self._taken(residual, slice(place, place + 1), n_writers=n_writers)[:, 0]
        return normed(parts.mlp_norm, taken).to(like.dtype).reshape(like.shape)

    def _mlp_input(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, layer: int
    ) -> Any:
        return replaced_input(args, kwargs, self._read_by_mlp(tensor_of(args, kwargs), layer))

    def _mlp_input_of_norm(
        self, module: Any, args: Any, output: Tensor, *, layer: int
    ) -> Tensor | None:
        if self.in_norm:  # the norm is called here, by this very hook
            return None
        self.in_norm = True
        try:
            return self._read_by_mlp(output, layer)
        finally:
            self.in_norm = False

    def _mlp(self, value: Tensor, *, layer: int) -> None:
        before = widened(self.runs.other.values["mlp_out"][layer].squeeze(2))
        self._note((widened(value).reshape(before.shape) - before)[None])

    def _end(self, value: Tensor) -> Tensor:
        n_writers, n_readers = self.graph.shape
        last = slice(n_readers - 1, n_readers)
        return self._taken(widened(value), last, n_writers=n_writers)[:, 0].to(value.dtype)


def _hook(component: str, layer: int, function: Callable[..., Tensor | None]) -> Hook:
    return hook_name(component, layer), lambda value, hook: function(value)
