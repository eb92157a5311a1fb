"""Information flow from the subject and the false object to the answer, by layer.

FAITH (arXiv 2402.19103), after Wang et al. (arXiv 2305.14160): per layer l the saliency

    S_l = | Σ_h A_{l,h} ⊙ ∂L/∂A_{l,h} |

with A the attention pattern and L the cross-entropy (nats) of the true object's token. It is read
on the row of the last token, which predicts the answer, and averaged over the tokens of a part of
the prompt: the question's ``subject``, its ``object``, and the ``rest`` (all other tokens, such as
the last one and a second mention of the subject in the cloze).

It is never negative: it measures the size of an influence, not its direction. The last row of a
pattern affects the answer at the last position only, so only that position is run with gradients,
and memory does not grow with the square of the prompt length.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.inspection import flow_by_layer
from interp.forward.batch import RUN_TOKENS, TokenBatch
from interp.forward.out_of_memory import over_parts
from interp.forward.partial import record_run
from interp.heads.locate import as_encoded
from interp.models.call import with_gradients
from interp.models.hooked_model import HookedModel
from interp.patching.attribution import gradient_pass
from interp.patching.metrics import LogProbability
from interp.precision import result_dtype, widened
from interp.premises.encode import EncodedPremises
from interp.premises.questions import Premises, QuestionKind
from interp.progress import progress_bar
from interp.statistics.significance import mean_interval

FlowPart = Literal["subject", "object", "rest"]
"""The tokens from which information flows to the last token."""

PARTS: tuple[FlowPart, ...] = get_args(FlowPart)


@dataclass(frozen=True, eq=False)
class InformationFlow(Displayed):
    """Mean saliency of each part's tokens for the last token, per prompt and layer.

    Attributes:
        values: Float[prompt layer part], parts in the order of ``PARTS``; zero or more.
        subjects, templates: of each prompt.
        kind: which prompts were run.
        seed: of the intervals.
    """

    values: Float[Tensor, "prompt layer part"]
    subjects: tuple[str, ...]
    templates: tuple[str, ...]
    kind: QuestionKind = "false"
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(self.values) == len(self.subjects) == len(self.templates):
            raise UserError(
                f"{len(self.values)} prompts but {len(self.subjects)} subjects and "
                f"{len(self.templates)} templates"
            )

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer and part: mean over prompts, 95 % interval from resampling subjects."""
        rows = []
        for layer in range(self.values.shape[1]):
            for index, part in enumerate(PARTS):
                values = self.values[:, layer, index].double().numpy()
                interval = mean_interval(values, self.subjects, seed=self.seed)
                rows.append((layer, part, *interval, len(values)))
        return pd.DataFrame(rows, columns=["layer", "part", "saliency", "ci_low", "ci_high", "n"])

    def plot(self) -> go.Figure:
        """Saliency against layer, a line for each part."""
        return flow_by_layer(self.to_dataframe())

    def _shown(self) -> Shown:
        words = (
            f"Saliency of the prompt's parts for the last token, {len(self.values)} prompts, "
            f"{self.values.shape[1]} layers; the layers in which it is largest:"
        )
        table = self.to_dataframe().sort_values("saliency", ascending=False)
        return Shown(words, (table,), self.plot)


@checked
def information_flow(
    model: HookedModel,
    premises: Premises | EncodedPremises,
    *,
    kind: QuestionKind = "false",
    batch_tokens: int = RUN_TOKENS,
    seed: int = 0,
    progress: bool = True,
) -> InformationFlow:
    """Measure the flow from subject, object and the rest to the last token.

    Args:
        kind: which prompts run; L is the true object's cross-entropy for all kinds.
        batch_tokens: tokens of one forward pass, padding included.
    """
    encoded = as_encoded(model, premises)
    batch = encoded.batch(kind)
    saliency = last_row_saliency(
        model, batch, encoded.true_tokens, batch_tokens=batch_tokens, progress=progress
    )
    subject = batch.span_mask([item.prompt(kind).subject for item in encoded.items]).cpu()
    objects = encoded.objects(kind).cpu()
    rest = batch.mask.cpu() & ~subject & ~objects
    values = part_means(saliency, torch.stack([subject, objects, rest]))
    return InformationFlow(values, encoded.subjects, encoded.templates, kind, seed)


def last_row_saliency(
    model: HookedModel,
    batch: TokenBatch,
    answer: Int[Tensor, " prompt"],
    *,
    batch_tokens: int = RUN_TOKENS,
    progress: bool = True,
) -> Float[Tensor, "prompt layer pos"]:
    """|Σ_h A ⊙ ∂L/∂A| on the last token's row, by key position; float32 on the CPU.

    Args:
        answer: the token of each prompt whose cross-entropy is L.
    """
    if len(answer) != len(batch):
        raise UserError(f"{len(batch)} prompts but {len(answer)} answers: give one for each")

    def saliency(part: TokenBatch, rows: range) -> Float[Tensor, "prompt layer pos"]:
        with torch.no_grad():
            run = record_run(model, part, start=part.width - 1, keep=())
        with with_gradients(model):
            logits, seen = gradient_pass(model, run, "pattern")
            # Prompts are independent, so the gradient of the sum holds that of each.
            loss = -LogProbability(answer[rows.start : rows.stop])(logits).sum()
            gradients = torch.autograd.grad(loss, seen, materialize_grads=True)
        layers = [
            (widened(pattern.detach()) * widened(gradient))[:, :, -1].sum(dim=1).abs()
            for pattern, gradient in zip(seen, gradients, strict=True)
        ]
        together = torch.stack([layer.to(part.tokens.device) for layer in layers], dim=1)
        return together.to("cpu", result_dtype(model))

    with progress_bar(total=len(batch), description="information flow", shown=progress) as bar:
        return torch.cat(list(over_parts(batch, saliency, batch_tokens=batch_tokens, bar=bar)))


def part_means(
    saliency: Float[Tensor, "prompt layer pos"], parts: Bool[Tensor, "part prompt pos"]
) -> Float[Tensor, "prompt layer part"]:
    """The mean over each part's tokens; NaN where a prompt has no token in a part."""
    weights = parts.to(saliency.dtype)
    sums = torch.einsum("nlp,knp->nlk", saliency, weights)
    return sums / weights.sum(dim=2).T[:, None, :]
