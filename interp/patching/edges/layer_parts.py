"""How a layer reads the residual stream, and what each of its heads adds to it.

Found in the hooked model's own modules, and compared with what its hook points show before it is
used: a layer that does more than is known here (scales, norms or routes in another place) is
refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.partial import RecordedRun, record_run
from interp.models.hooked_model import HookedModel
from interp.patching.edges.frozen_norm import FrozenNorm
from interp.patching.edges.graph import INTO
from interp.precision import agrees, dtype_of, widened

_RECORDED = ("q", "k", "v", "z", "attn_out", "mlp_out", "resid_post")


@dataclass(frozen=True, eq=False)
class LayerParts:
    """What lies between the residual stream and the heads of one layer.

    Attributes:
        weights: by ``q``, ``k`` and ``v``, the projection [unit d_model d_head].
        biases: by ``q``, ``k`` and ``v``, [unit d_head] or None.
        output: the output projection [head d_head d_model].
        output_bias: [d_model], or None.
        norm: the norm before the attention, None without one.
        post_norm: the norm of the attention's output (Gemma, OLMo 2), None without one.
        scale: what the attention's output is multiplied with (Granite).
        mlp_norm: the norm before the MLP, None without one.
        mlp_input: a module whose output (``mlp_norm``) or input (the MLP) is what the MLP reads.
        reads_before: the MLP reads what the attention reads (parallel blocks).
    """

    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor | None]
    output: Float[Tensor, "head d_head d_model"]
    output_bias: Tensor | None
    norm: nn.Module | None
    post_norm: nn.Module | None
    scale: float
    mlp_norm: nn.Module | None
    mlp_input: nn.Module
    reads_before: bool

    @property
    def mlp_reads_output(self) -> bool:
        """Whether what the MLP reads is the output of ``mlp_input``, and not its input."""
        return self.mlp_input is self.mlp_norm

    def project(
        self, into: str, normed: Float[Tensor, "row pos d_model"], unit: int | slice = slice(None)
    ) -> Tensor:
        """The queries, keys or values of one head [row pos d_head], or of all."""
        weight, bias = self.weights[into][unit], self.biases[into]
        if isinstance(unit, int):
            found = normed @ weight
        else:
            found = torch.einsum("rpd,ude->rpue", normed, weight)
        return found if bias is None else found + bias[unit]

    def write(self, z: Float[Tensor, "row pos head d_head"]) -> Float[Tensor, "row pos d_model"]:
        """What the attention adds to the residual stream."""
        return self._added(self._mixed(z))

    def read_by_mlp(
        self, before: Float[Tensor, "row pos d_model"], mixed: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos d_model"]:
        """What the MLP reads, in front of its norm.

        Args:
            before: the residual stream before the layer.
            mixed: what the attention adds to it.
        """
        return before if self.reads_before else before + widened(mixed)

    def head_writes(
        self,
        z: Float[Tensor, "row pos head d_head"],
        change: Float[Tensor, "row pos head d_head"],
    ) -> Float[Tensor, "row head pos d_model"]:
        """By how much the attention adds more, or less, when one head alone changes.

        Args:
            z: the unchanged outputs of all heads.
            change: each head's change.
        """
        moved = torch.einsum("rphe,hed->rhpd", change, self.output)
        if self.post_norm is None:
            return self.scale * moved
        mixed = self._mixed(z)[:, None]
        changed = self._added((mixed + moved).flatten(0, 1)).unflatten(0, moved.shape[:2])
        return changed - self._added(mixed[:, 0])[:, None]

    def head_parts(
        self, z: Float[Tensor, "row pos head d_head"]
    ) -> Float[Tensor, "row head pos d_model"]:
        """Each head's part of what the attention adds, at the scale of the norm behind it."""
        parts = torch.einsum("rphe,hed->rhpd", z, self.output)
        if self.post_norm is None:
            return self.scale * parts
        norm = FrozenNorm(self.post_norm, self._mixed(z))
        return self.scale * torch.stack([norm.part(of_head) for of_head in parts.unbind(1)], dim=1)

    def _mixed(self, z: Tensor) -> Tensor:
        found = torch.einsum("rphe,hed->rpd", z, self.output)
        return found if self.output_bias is None else found + self.output_bias

    def _added(self, mixed: Tensor) -> Tensor:
        return self.scale * normed(self.post_norm, mixed)


def normed(norm: nn.Module | None, x: Float[Tensor, "row pos d_model"]) -> Tensor:
    """A norm's output, in float32 at least; the input itself where there is none."""
    return x if norm is None else widened(norm(x))


@torch.no_grad()
def find_parts(model: HookedModel, batch: TokenBatch) -> list[LayerParts]:
    """The parts of every layer, compared with what the hook points show of one prompt.

    Raises:
        UserError: a layer that does something else, or whose weights cannot be read.
    """
    first = batch.take([0])
    seen: dict[int, Tensor] = {}
    handles = [
        handle
        for layer, block in enumerate(model.blocks)
        for handle in _watch_mlp(block, layer, seen)
    ]
    try:
        run = record_run(model, first, keep=_RECORDED, plain=False)
    finally:
        for handle in handles:
            handle.remove()
    return [_parts_of(model, layer, run, seen.get(layer)) for layer in range(model.cfg.n_layers)]


def is_parallel(parts: Sequence[LayerParts]) -> bool:
    """Whether attention and MLP of a layer read the same.

    Raises:
        UserError: in some layers only.
    """
    found = {of_layer.reads_before for of_layer in parts}
    if len(found) > 1:
        raise UserError("some layers run attention and MLP side by side and some do not: no edges")
    return found.pop()


def _watch_mlp(block: Any, layer: int, seen: dict[int, Tensor]) -> list[Any]:
    """Hooks that keep what a layer's MLP reads."""

    def keep_input(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[layer] = tensor_of(args, kwargs)

    def keep_output(module: Any, args: Any, output: Tensor) -> None:
        seen[layer] = output

    module, is_output = _mlp_input(block)
    if module is None:
        return []
    if is_output:
        return [module.register_forward_hook(keep_output)]
    return [module.register_forward_pre_hook(keep_input, with_kwargs=True)]


def tensor_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The tensor that a module is called with."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


def _mlp_input(block: Any) -> tuple[nn.Module | None, bool]:
    """The module that shows what the MLP reads, and whether that is its output."""
    norm = getattr(block, "ln2", None)
    if isinstance(norm, nn.Module):
        return norm, True
    mlp = getattr(block, "mlp", None)
    return (mlp, False) if isinstance(mlp, nn.Module) else (None, False)


def _parts_of(
    model: HookedModel, layer: int, run: RecordedRun, mlp_reads: Tensor | None
) -> LayerParts:
    block = model.blocks[layer]
    try:
        weights, biases = _projections(block.attn)
        output, output_bias = _wide(block.attn.W_O), _wide(block.attn.b_O)
        if output_bias is not None and not bool(output_bias.any()):
            output_bias = None  # TransformerLens 3 has zeros where a model has no bias
    except (AttributeError, NotImplementedError, ValueError, RuntimeError) as error:
        raise _refusal(model, layer, "its weights cannot be read by head") from error
    module, is_output = _mlp_input(block)
    if module is None or output is None or mlp_reads is None:
        raise _refusal(model, layer, "it has no MLP that can be found")
    values = {name: widened(run.values[name][layer]) for name in _RECORDED}
    before, added = widened(run.resid_pre[layer]), values["attn_out"].squeeze(2)
    dtype, norms = dtype_of(model), dict.fromkeys((_norm(block, "ln1"), None))
    parts = LayerParts(
        weights=weights,
        biases=biases,
        output=output,
        output_bias=output_bias,
        norm=None,
        post_norm=_norm(block, "ln1_post"),
        scale=float(getattr(block, "residual_contribution_scale", 1.0) or 1.0),
        mlp_norm=None,
        mlp_input=module,
        reads_before=False,
    )

    def projects(norm: nn.Module | None) -> bool:
        x = normed(norm, before)
        return all(agrees(parts.project(into, x), values[into], dtype) for into in INTO)

    found = [norm for norm in norms if projects(norm)]
    reads = [
        {"mlp_norm": norm, "reads_before": early}
        for norm in ([module] if is_output else norms)
        for early in (False, True)
        if agrees(
            normed(norm, before if early else before + added).reshape(mlp_reads.shape),
            mlp_reads,
            dtype,
        )
    ]
    after = before + added + values["mlp_out"].squeeze(2)
    sums = agrees(after, values["resid_post"].squeeze(2), dtype)
    if not (found and reads and sums and agrees(parts.write(values["z"]), added, dtype)):
        raise _refusal(model, layer, "it reads or writes the residual stream in a way of its own")
    return replace(parts, norm=found[0], **reads[0])


def _projections(attention: Any) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """The weights and biases of queries, keys and values, by unit."""
    weights, biases = {}, {}
    for into in INTO:
        # TransformerLens 3 repeats grouped keys and values for every query head.
        name = into.upper()
        weight = getattr(attention, f"_W_{name}", None)
        weight = getattr(attention, f"W_{name}") if weight is None else weight
        weights[into] = widened(weight).detach()
        bias = getattr(attention, f"_b_{name}", None)
        biases[into] = _wide(getattr(attention, f"b_{name}", None) if bias is None else bias)
    return weights, biases


def _wide(value: Tensor | None) -> Tensor | None:
    return None if value is None else widened(value).detach()


def _norm(block: Any, name: str) -> nn.Module | None:
    found = getattr(block, name, None)
    return found if isinstance(found, nn.Module) else None


def _refusal(model: HookedModel, layer: int, why: str) -> UserError:
    name = type(model.original_model).__name__
    return UserError(
        f"edges of {name} cannot be told apart in layer {layer}: {why}. Nodes can: use "
        "interp.patching.patch"
    )
