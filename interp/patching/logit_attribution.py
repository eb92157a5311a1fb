"""Direct logit attribution: what each head, MLP and the embedding adds to the logits of tokens.

The residual stream before the final norm is a sum of what was written to it, and so are the logits,
with the norm's scale fixed at that of the run (Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits"). A norm behind the attention (Gemma, OLMo 2) is fixed at its own scale. What
belongs to no node, biases, is the component ``rest``; the components sum to the logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.figures.edges import contribution_bars
from interp.figures.tables import where
from interp.forward.batch import Prompts, TokenBatch
from interp.forward.out_of_memory import over_parts
from interp.forward.partial import record_run
from interp.forward.pass_tokens import pass_tokens
from interp.forward.prompts import batch_for
from interp.lazy import pd
from interp.models.hooked_model import HookedModel
from interp.models.model_check import require
from interp.patching.edges.frozen_norm import FrozenNorm
from interp.patching.edges.graph import EdgeGraph
from interp.patching.edges.layer_parts import LayerParts, find_parts, is_parallel
from interp.patching.unembedding import check_unembedding, checked_tokens, unembedding
from interp.precision import result_dtype, widened

KEPT = ("z", "attn_out", "mlp_out", "resid_post")
REST = "rest"


@dataclass(frozen=True, eq=False)
class LogitAttribution(Displayed):
    """Parts of the last position's logits.

    Attributes:
        values: Float[prompt component token], in logits.
        components: ``input``, ``a0.h0`` …, ``m0`` …, and ``rest``.
        logits: Float[prompt token], to which the components sum.
        tokens: Int[prompt token].
    """

    values: Float[Tensor, "prompt component token"]
    components: tuple[str, ...]
    logits: Float[Tensor, "prompt token"]
    tokens: Int[Tensor, "prompt token"]

    def difference(self) -> Float[Tensor, "prompt component"]:
        """Parts of the first token's logit less those of the second, or of the only token's."""
        if self.values.shape[2] == 1:
            return self.values[..., 0]
        return self.values[..., 0] - self.values[..., 1]

    def to_dataframe(self) -> "pd.DataFrame":
        """One row a component, largest absolute mean first: ``component``, ``logits``, ``rank``.

        Of two tokens or more, the difference between the first and the second.
        """
        mean = self.difference().double().mean(dim=0)
        order = mean.abs().argsort(descending=True, stable=True)
        return pd.DataFrame(
            {
                "component": [self.components[index] for index in order.tolist()],
                "logits": mean[order].numpy(),
                "rank": range(1, len(order) + 1),
            }
        )

    def plot(self, *, n: int = 20, mark: str | None = None) -> Any:
        """Bars of the ``n`` largest components.

        Args:
            mark: a component whose bar is framed; it is shown below the others if it is smaller.
        """
        table = self.to_dataframe()
        shown = where(table, (table["rank"] <= n) | (table["component"] == mark))
        return contribution_bars(shown, mark=mark)

    def _shown(self) -> Shown:
        logits, whole = self.logits.double(), "the logits"
        total = logits[:, 0]
        if logits.shape[1] > 1:
            total, whole = total - logits[:, 1], "the logit of the first token less the second's"
        text = (
            f"Direct contributions of {len(self.components)} components to {whole}, "
            f"{len(self.values)} prompts; they sum to {float(total.mean()):.3g}."
        )
        return Shown(text, (self.to_dataframe(),), self.plot)


@checked
@torch.no_grad()
def logit_attribution(
    model: HookedModel, batch: Prompts, tokens: Tensor | Sequence[Any]
) -> LogitAttribution:
    """What each component adds to the logits of some tokens at the last position.

    Args:
        batch: the prompts.
        tokens: Int[prompt], or Int[prompt token]: say, the answer and the wrong answer.

    Raises:
        UserError: tokens that do not fit the prompts or the vocabulary, or a model whose logits are
            not a norm and an unembedding of the sum (it caps its logits, say, or scales them).
    """
    prompts = batch_for(model, batch)
    require(model, "residual")
    wanted = checked_tokens(model, tokens, len(prompts))
    parts = find_parts(model, prompts)
    graph = EdgeGraph.of(model, parallel=is_parallel(parts))

    def attributed(part: TokenBatch, rows: range) -> Tensor:
        of_part = wanted[rows.start : rows.stop].to(part.tokens.device)
        return _attributed(model, part, of_part, parts=parts)

    passes = pass_tokens(model, prompts.width, least=1, kept=list(KEPT))
    found = torch.cat(list(over_parts(prompts, attributed, batch_tokens=passes))).cpu()
    dtype = result_dtype(model)
    values, logits = found[:, :-1].to(dtype), found[:, -1].to(dtype)
    check_unembedding(model, values.sum(dim=1), logits)
    return LogitAttribution(values, (*graph.writers, REST), logits, wanted)


def _attributed(
    model: HookedModel, batch: TokenBatch, tokens: Tensor, *, parts: Sequence[LayerParts]
) -> Float[Tensor, "prompt row token"]:
    """The components' parts, that of the rest, and the logits themselves."""
    run = record_run(model, batch, start=batch.width - 1, keep=KEPT, plain=False)
    last = {name: widened(run.values[name][:, :, -1:]) for name in KEPT}
    writes = [widened(run.resid_pre[0][:, -1:])[:, None]]
    for layer, of_layer in enumerate(parts):
        writes.append(of_layer.head_parts(last["z"][layer]))
        writes.append(last["mlp_out"][layer].transpose(1, 2))
    written = torch.cat(writes, dim=1)  # [prompt component 1 d_model]
    end = last["resid_post"][-1].squeeze(2)
    written = torch.cat([written, end[:, None] - written.sum(dim=1, keepdim=True)], dim=1)
    norm = FrozenNorm(model.ln_final, end)
    normed = torch.stack([norm.part(written[:, i]) for i in range(written.shape[1])], dim=1)
    normed[:, -1] += norm.bias
    weight, bias = unembedding(model)
    columns = widened(weight)[tokens]  # [prompt token d_model]
    found = torch.einsum("pcd,ptd->pct", normed.squeeze(2), columns)
    if bias is not None:
        found[:, -1] += widened(bias)[tokens]
    return torch.cat([found, widened(run.logits).gather(1, tokens)[:, None]], dim=1)
