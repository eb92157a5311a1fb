"""The gradient of a metric at what each reader takes from the residual stream.

One forward and one backward pass give it at every projection's output and at every MLP's input.
From there it is pulled back through the reader's own weights and norm, so that a reader's gradient
does not contain what goes past it along the residual stream. Norms are differentiated: they are not
frozen at the run's scale.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import UserError
from interp.forward.hook_points import as_units, hook_name
from interp.forward.partial import Hook, RecordedRun, resume
from interp.models.call import with_gradients
from interp.models.hooked_model import HookedModel
from interp.patching.edges.graph import INTO, EdgeGraph
from interp.patching.edges.layer_parts import LayerParts, tensor_of
from interp.patching.metrics import Metric, differentiable_sum
from interp.precision import widened

ReaderGradient = tuple[slice, Float[Tensor, "prompt reader pos d_model"]]
"""The places of some readers in the graph, and their gradients."""


@dataclass(eq=False)
class _Seen:
    """What one forward pass shows, by layer: values, and tensors of its graph.

    Attributes:
        residual: the residual stream before the layer.
        mixed: what the layer's attention adds to it.
        watched: tensors whose gradient is wanted, by what they are and layer.
        versions: copies of projections, with how often they were written to.
    """

    residual: dict[int, Tensor] = field(default_factory=dict)
    mixed: dict[int, Tensor] = field(default_factory=dict)
    watched: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    versions: list[tuple[Tensor, int]] = field(default_factory=list)

    def hooks(self, layers: range) -> list[Hook]:
        """What keeps the values of some layers' hook points, and the end of the last one."""
        noted = (("resid_pre", self.residual), ("attn_out", self.mixed))
        found: list[Hook] = [
            (
                hook_name("resid_post", layers[-1]),
                partial(self.keep, what="logits", layer=layers[-1]),
            )
        ]
        for layer in layers:
            for name, into in noted:
                found.append((hook_name(name, layer), partial(self.note, into=into, layer=layer)))
            for name in INTO:
                found.append((hook_name(name, layer), partial(self.keep, what=name, layer=layer)))
        return found

    def keep(self, value: Tensor, hook: object, *, what: str, layer: int) -> Tensor:
        """Put a value in the graph, as a copy that only this hook point's reader reads."""
        copy = value.clone()
        self.watched[what, layer] = copy
        self.versions.append((copy, copy._version))
        return copy

    def note(self, value: Tensor, hook: object, *, into: dict[int, Tensor], layer: int) -> None:
        """Keep a value alone."""
        into[layer] = value.detach()


@dataclass(frozen=True, eq=False)
class RunGradients:
    """Gradients of a metric in one run, at what each reader computes with.

    Attributes:
        layers: those that ran.
        residual: by layer, the residual stream before it.
        mixed: by layer, what its attention adds to it.
        at: by what it is and layer: ``q``, ``k`` and ``v``; ``mlp``, what the MLP reads; of the
            last layer ``logits``, the residual stream behind it; and the points that were asked
            for.
    """

    layers: range
    residual: Mapping[int, Tensor]
    mixed: Mapping[int, Tensor]
    at: Mapping[tuple[str, int], Tensor]

    @property
    def of_logits(self) -> Float[Tensor, "prompt reader pos d_model"]:
        """The gradient at what the logits read."""
        return widened(self.at["logits", self.layers[-1]])[:, None]

    def of_attention(
        self, parts: LayerParts, layer: int
    ) -> tuple[Tensor, Float[Tensor, "prompt reader pos d_model"]]:
        """What a layer's attention reads, and the gradients of its heads behind the norm."""
        by_reader = [
            torch.einsum(
                "rpue,ude->rupd",
                widened(as_units(self.at[into, layer], into)),
                parts.weights[into],
            )
            for into in INTO
        ]
        return widened(self.residual[layer]), torch.cat(by_reader, dim=1)

    def of_mlp(
        self, parts: LayerParts, layer: int
    ) -> tuple[Tensor, Float[Tensor, "prompt reader pos d_model"]]:
        """What a layer's MLP reads, and the MLP's gradient behind the norm."""
        read = parts.read_by_mlp(widened(self.residual[layer]), self.mixed[layer])
        return read, widened(self.at["mlp", layer]).reshape(read.shape)[:, None]


def reader_gradients(
    model: HookedModel,
    run: RecordedRun,
    parts: Sequence[LayerParts],
    *,
    metric: Metric,
    graph: EdgeGraph,
    residual: Float[Tensor, "prompt pos d_model"] | None = None,
    layer: int = 0,
    hooks: Sequence[Hook] = (),
) -> Iterator[ReaderGradient]:
    """Gradients of all readers from a layer on, some readers at a time, from the logits down.

    The arguments are those of ``run_gradients``; ``graph`` gives the readers their places.
    """
    options: dict[str, Any] = {"residual": residual, "layer": layer, "hooks": hooks}
    found = run_gradients(model, run, parts, metric=metric, **options)
    yield slice(graph.shape[1] - 1, None), found.of_logits
    for at in reversed(found.layers):
        place = graph.readers_of(at)
        yield (
            slice(place.stop, place.stop + 1),
            pull_back(parts[at].mlp_norm, *found.of_mlp(parts[at], at)),
        )
        yield place, pull_back(parts[at].norm, *found.of_attention(parts[at], at))


def run_gradients(
    model: HookedModel,
    run: RecordedRun,
    parts: Sequence[LayerParts],
    *,
    metric: Metric,
    residual: Float[Tensor, "prompt pos d_model"] | None = None,
    layer: int = 0,
    hooks: Sequence[Hook] = (),
    points: Mapping[tuple[str, int], str] = MappingProxyType({}),
) -> RunGradients:
    """Gradients at what readers compute with, in a run from a layer on.

    Args:
        run: the prompts' run, recorded without transformers' own modules.
        parts: of every layer.
        metric: of these prompts.
        residual: what the layer reads; by default as recorded.
        layer: the first layer that runs.
        hooks: edits of the run, which act before the gradients are taken.
        points: other hook points whose gradients are wanted, by what they are and layer.

    Raises:
        UserError: a metric without a gradient, or a model that changes queries, keys or values in
            place (OLMo clips them).
    """
    layers = range(layer, len(parts))
    seen = _Seen()
    given = run.resid_pre[layer] if residual is None else residual
    with with_gradients(model), ExitStack() as stack:
        for at in layers:
            stack.enter_context(_watched_mlp(parts[at], seen, at))
        rows, leaf = run.batch.every_row, given.detach().clone().requires_grad_()
        watching = [*hooks, *seen.hooks(layers)]
        for (what, at), point in points.items():
            watching.append((point, partial(seen.keep, what=what, layer=at)))
        logits = resume(model, run, layer=layer, rows=rows, residual=leaf, hooks=watching)
        total = differentiable_sum(metric, logits)
        tensors = list(seen.watched.values())
        found = torch.autograd.grad(total, tensors, allow_unused=True, materialize_grads=True)
    if any(copy._version != version for copy, version in seen.versions):
        raise UserError(
            "this model changes queries, keys or values in place, so that their gradients cannot "
            "be taken: use method 'exact'"
        )
    gradients = dict(zip(seen.watched, found, strict=True))
    return RunGradients(layers, seen.residual, seen.mixed, gradients)


def pull_back(
    norm: nn.Module | None,
    x: Float[Tensor, "prompt pos d_model"],
    gradients: Float[Tensor, "prompt reader pos d_model"],
) -> Float[Tensor, "prompt reader pos d_model"]:
    """Gradients at a norm's input from those at its output, for each reader alone."""
    if norm is None:
        return gradients
    with torch.enable_grad():
        copies = x.detach()[:, None].expand_as(gradients).flatten(0, 1).requires_grad_()
        (found,) = torch.autograd.grad(widened(norm(copies)), copies, gradients.flatten(0, 1))
    return found.view_as(gradients)


def _watched_mlp(parts: LayerParts, seen: _Seen, layer: int) -> Any:
    """While open, what a layer's MLP reads is kept in the graph."""

    def keep_input(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = tensor_of(args, kwargs)
        return replaced_input(args, kwargs, seen.keep(value, None, what="mlp", layer=layer))

    def keep_output(module: Any, args: Any, output: Tensor) -> Tensor:
        return seen.keep(output, None, what="mlp", layer=layer)

    return hooked_mlp(parts, keep_input, keep_output)


def hooked_mlp(parts: LayerParts, of_input: Any, of_output: Any) -> Any:
    """The hook, of the two that are given, in the module that shows what the MLP reads."""
    module = parts.mlp_input
    if parts.mlp_reads_output:
        return module.register_forward_hook(of_output)
    return module.register_forward_pre_hook(of_input, with_kwargs=True)


def replaced_input(args: tuple[Any, ...], kwargs: dict[str, Any], new: Tensor) -> Any:
    """A module's arguments with another tensor."""
    if args and isinstance(args[0], Tensor):
        return (new, *args[1:]), kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return args, kwargs | {name: new}
