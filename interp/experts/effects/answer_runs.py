"""Right answers in batches: their loss and accuracy in runs that begin at any layer.

What is measured of an example is its mean loss over the answer's tokens and the token that ends it
(nats per answer token), and whether every one of them is the most likely one. A batch is run once
without interventions, and every layer's input is kept: an intervention in layer 12 then runs from
layer 12 on, over the examples that it can change at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.forward.batch import TokenBatch, by_length
from interp.forward.call import call_columns
from interp.forward.finite import check_finite
from interp.forward.partial import Hook, RecordedRun, hooked, record_run
from interp.models.hooked_model import HookedModel
from interp.models.modes import with_gradients
from interp.moelora.data.encoding import IGNORED, EncodedExample
from interp.moelora.projections import Projection
from interp.precision import widened

BATCH_TOKENS = 2048
"""Tokens of one batch: every layer's input is kept for it."""


@dataclass(frozen=True)
class AnswerBatch:
    """Some examples, left-padded, without the last token of each.

    Attributes:
        examples: which they are.
        batch: their tokens.
        targets: Int[example keep], what follows each of the last columns; ``IGNORED`` where that is
            not the answer's.
    """

    examples: tuple[int, ...]
    batch: TokenBatch
    targets: Int[Tensor, "example keep"]


def answer_chunks(examples: Sequence[EncodedExample]) -> list[list[int]]:
    """All examples, by index, in batches of similar lengths, shortest first."""
    return by_length([len(one.tokens) - 1 for one in examples], BATCH_TOKENS)


def answer_batch(
    examples: Sequence[EncodedExample], chunk: Sequence[int], device: torch.device
) -> AnswerBatch:
    """Some of the examples as one batch."""
    some = [examples[index] for index in chunk]
    batch = TokenBatch.from_lists([one.tokens[:-1] for one in some], device=device)
    answers = [one.tokens[one.n_prompt :] for one in some]
    keep = max(len(answer) for answer in answers)
    rows = [[*[IGNORED] * (keep - len(answer)), *answer] for answer in answers]
    return AnswerBatch(tuple(chunk), batch, torch.tensor(rows, device=device))


def answer_measures(
    logits: Float[Tensor, "example keep d_vocab"], targets: Int[Tensor, "example keep"]
) -> tuple[Float[Tensor, " example"], Float[Tensor, " example"]]:
    """Loss (nats per answer token), and 1 where all answer tokens are the most likely ones."""
    counted = targets != IGNORED
    losses = F.cross_entropy(
        widened(logits).transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    right = (logits.argmax(dim=-1) == targets) | ~counted
    return losses.sum(dim=1) / counted.sum(dim=1), right.all(dim=1).float()


@dataclass(frozen=True)
class BareRun:
    """A batch run without interventions.

    Attributes:
        run: the recorded run.
        loss, right: see ``answer_measures``.
        used: by projection, Bool[example expert]: whether an expert has a gate above zero at any of
            the example's tokens.
    """

    answers: AnswerBatch
    run: RecordedRun
    loss: Float[Tensor, " example"]
    right: Float[Tensor, " example"]
    used: dict[str, Bool[Tensor, "example expert"]]


@torch.no_grad()
def run_bare(
    model: HookedModel, answers: AnswerBatch, projections: Sequence[Projection]
) -> BareRun:
    """Run a batch as it is; keep every layer's input, and which experts are used."""
    used: dict[str, Tensor] = {}
    mask = answers.batch.mask[:, :, None]

    def see(name: str) -> Callable[[Tensor, Any], None]:
        def read(gates: Tensor, hook: Any) -> None:
            # The unembedding sees the columns of the answer only.
            used[name] = ((gates != 0) & mask[:, -gates.shape[1] :]).any(dim=1)

        return read

    # Experts have no place in the plain modules, and answers are more than the last column.
    with hooked(model, [(one.gate, see(one.name)) for one in projections]):
        run = record_run(
            model, answers.batch, keep=(), plain=False, logits_to_keep=answers.targets.shape[1]
        )
    return BareRun(answers, run, *answer_measures(run.logits, answers.targets), used)


def _all_rows(answers: AnswerBatch) -> Int[Tensor, " row"]:
    return torch.arange(len(answers.batch), device=answers.batch.tokens.device)


def _logits(
    model: HookedModel, answers: AnswerBatch, rows: Int[Tensor, " row"], hooks: Sequence[Hook]
) -> Float[Tensor, "row keep d_vocab"]:
    keep = answers.targets.shape[1]
    with hooked(model, hooks):
        return call_columns(model.original_model, answers.batch, rows, keep=keep)


GateEdit = Callable[[Float[Tensor, "*token expert"], int], Float[Tensor, "*token expert"]]
"""(gates, expert) → the gates under an intervention on that expert."""


def attribute_gates(
    model: HookedModel, answers: AnswerBatch, projections: Sequence[Projection], edit: GateEdit
) -> tuple[Float[Tensor, " example"], dict[str, Float[Tensor, "example expert"]]]:
    """Every example's loss, and its first-order change under an intervention on each expert alone.

    (edited gates − gates) · ∂loss/∂gates, summed over tokens and gates, from one backward pass. The
    gradient goes through everything above, later routers included.
    """
    gates: dict[str, Tensor] = {}
    steps: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[Tensor, Any], Tensor]:
        def read(value: Tensor, hook: Any) -> Tensor:
            # A step of zero from the gates as they are: the parameters are frozen, and at the
            # lowest projection nothing else would need a gradient.
            gates[name] = value.detach()
            steps[name] = torch.zeros_like(value, requires_grad=True)
            return value + steps[name]

        return read

    with with_gradients(model):
        hooks: list[Hook] = [(one.gate, watch(one.name)) for one in projections]
        logits = _logits(model, answers, _all_rows(answers), hooks)
        check_finite(
            logits.detach(), model, lambda: _logits(model, answers, _all_rows(answers), ())
        )
        loss, _ = answer_measures(logits, answers.targets)
        found = torch.autograd.grad(loss.sum(), [steps[one.name] for one in projections])
    changes = {}
    for one, gradient in zip(projections, found, strict=True):
        now, gradient = widened(gates[one.name]), widened(gradient)
        real = answers.batch.mask[:, -now.shape[1] :, None]
        columns = [
            ((edit(now, expert) - now) * gradient * real).sum(dim=(1, 2))
            for expert in range(one.n_experts)
        ]
        changes[one.name] = torch.stack(columns, dim=1)
    return loss.detach(), changes
