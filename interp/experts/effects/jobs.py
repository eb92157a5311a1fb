"""Jobs that intervene on every expert, one by one, and measure loss and accuracy.

``ExpertJob`` holds the examples and experts; ``estimate_experts`` and ``measure_experts`` run it,
over all examples at once or over some of them at a time. Measured of an example are its mean loss
over the answer's tokens and the token that ends it (nats per answer token), and whether every one
of them is the most likely one. A batch runs once without interventions, and every layer's input is
kept: an intervention in layer 12 then runs from layer 12 on, over the examples that it can change.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from interp.forward.batch import TokenBatch, by_length
from interp.forward.finite import check_finite
from interp.forward.generate import generate_tokens
from interp.forward.out_of_memory import halving
from interp.forward.partial import Hook, RecordedRun, device_of, hooked, record_run
from interp.forward.pass_tokens import pass_tokens
from interp.forward.prompts import call_positions
from interp.forward.transfer import upload
from interp.interventions.context import constrain
from interp.interventions.expert_constraint import ExpertConstraint, ExpertMode, edit_gates
from interp.interventions.hooks import hooks_of
from interp.jobs import SHARD, OutputSpec, Shard
from interp.models.call import with_gradients
from interp.models.hooked_model import HookedModel
from interp.moelora.data.encoding import IGNORED, EncodedExample, end_token
from interp.moelora.data.examples import Example
from interp.moelora.projections import AdaptedProjection
from interp.moelora.training.scoring import is_right
from interp.patching.variants import Variant, measure_runs, run_variants
from interp.precision import result_dtype, widened
from interp.progress import progress_bar

BATCH_TOKENS = 2048
"""Tokens of one batch: every layer's input is kept for it."""


@dataclass(frozen=True)
class AnswerBatch:
    """Some examples, left-padded, without the last token of each.

    Attributes:
        batch: their tokens.
        targets: Int[example keep], the token after each of the last positions; ``IGNORED`` where
            that is not the answer's.
    """

    batch: TokenBatch
    targets: Int[Tensor, "example keep"]


def answer_chunks(model: HookedModel, examples: Sequence[EncodedExample]) -> list[list[int]]:
    """All examples, by index, in batches of similar lengths, shortest first."""
    lengths = [len(example.tokens) - 1 for example in examples]
    return by_length(
        lengths, pass_tokens(model, max(lengths, default=1), least=BATCH_TOKENS, kept=[])
    )


def answer_batch(
    examples: Sequence[EncodedExample], chunk: Sequence[int], device: torch.device
) -> AnswerBatch:
    """Some of the examples as one batch."""
    some = [examples[index] for index in chunk]
    batch = TokenBatch.from_lists([example.tokens[:-1] for example in some], device=device)
    answers = [torch.tensor(example.tokens[example.n_prompt :]) for example in some]
    padding: dict[str, Any] = {"padding_value": IGNORED, "padding_side": "left"}
    return AnswerBatch(batch, upload(pad_sequence(answers, batch_first=True, **padding), device))


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
class BaselineRun:
    """A batch run without interventions.

    Attributes:
        run: the recorded run.
        loss, right: see ``answer_measures``.
        used: by projection, Bool[example expert]: whether an expert has a gate above zero at any of
            the example's tokens; on the CPU.
    """

    answers: AnswerBatch
    run: RecordedRun
    loss: Float[Tensor, " example"]
    right: Float[Tensor, " example"]
    used: dict[str, Bool[Tensor, "example expert"]]


@torch.no_grad()
def run_baseline(
    model: HookedModel, answers: AnswerBatch, projections: Sequence[AdaptedProjection]
) -> BaselineRun:
    """Run a batch without interventions; keep every layer's input, and which experts are used."""
    used: dict[str, Tensor] = {}
    mask = answers.batch.mask[:, :, None]

    def see(name: str) -> Callable[[Tensor, Any], None]:
        def read(gates: Tensor, hook: Any) -> None:
            # The unembedding sees the answer's positions only.
            acting = (gates != 0).to(mask.device)
            used[name] = (acting & mask[:, -gates.shape[1] :]).any(dim=1)

        return read

    # Only hooked modules have experts, and an answer is read at more than the last position.
    with hooked(model, [(projection.gate, see(projection.name)) for projection in projections]):
        run = record_run(
            model, answers.batch, keep=(), plain=False, logits_to_keep=answers.targets.shape[1]
        )
    # Read once: which examples an expert reaches decides what is run.
    experts = [found.shape[1] for found in used.values()]
    together = torch.cat(list(used.values()), dim=1).cpu().split(experts, dim=1)
    on_host = dict(zip(used, together, strict=True))
    return BaselineRun(answers, run, *answer_measures(run.logits, answers.targets), on_host)


GateEdit = Callable[[Float[Tensor, "*token expert"], int], Float[Tensor, "*token expert"]]
"""(gates, expert) → the gates under an intervention on that expert."""


def attribute_gates(
    model: HookedModel,
    answers: AnswerBatch,
    projections: Sequence[AdaptedProjection],
    *,
    edit: GateEdit,
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

    points = [projection.gate for projection in projections]
    every = answers.batch.every_row
    keep = answers.targets.shape[1]

    def logits_with(hooks: Sequence[Hook]) -> Float[Tensor, "example keep d_vocab"]:
        with hooked(model, hooks):
            return call_positions(model.original_model, answers.batch, every, keep=keep)

    with with_gradients(model):
        logits = logits_with([(gate, watch(gate)) for gate in points])
        check_finite(logits.detach(), model, lambda: logits_with(()))
        loss, _ = answer_measures(logits, answers.targets)
        found = torch.autograd.grad(loss.sum(), [steps[gate] for gate in points])
    changes = {}
    for projection, gradient in zip(projections, found, strict=True):
        now, gradient = widened(gates[projection.gate]), widened(gradient)
        real = answers.batch.mask[:, -now.shape[1] :, None].to(now.device)
        columns = [
            ((edit(now, expert) - now) * gradient * real).sum(dim=(1, 2)).to(loss.device)
            for expert in range(projection.n_experts)
        ]
        changes[projection.name] = torch.stack(columns, dim=1)
    return loss.detach(), changes


Unit = tuple[int, int]
"""(group, expert): the group is a projection's number, or 0 for all of them together."""


@dataclass(frozen=True)
class ExpertJob:
    """Examples, and the experts that are intervened on one by one.

    Attributes:
        examples: prompts with their right answers.
        projections: those whose experts are meant.
        mode, factor: what is done to an expert.
        together: the expert with the same number in all projections is one unit.
        units: only these; by default all.
        prompts_per_shard: examples that are computed, and kept, together.
    """

    examples: tuple[EncodedExample, ...]
    projections: tuple[AdaptedProjection, ...]
    mode: ExpertMode = "off"
    factor: float = 0.0
    together: bool = False
    units: frozenset[Unit] | None = None
    prompts_per_shard: int = 2 * SHARD

    def order(self) -> Sequence[int]:
        """The examples, sorted by length."""
        return sorted(range(len(self.examples)), key=lambda index: len(self.examples[index].tokens))

    def take(self, prompts: Sequence[int]) -> "ExpertJob":
        """A job for some of the examples."""
        return replace(self, examples=tuple(self.examples[index] for index in prompts))

    def identity(self) -> dict[str, Any]:
        """All values that decide the effects, as JSON can hold them."""
        return {
            "examples": [[example.tokens, example.n_prompt] for example in self.examples],
            "projections": [[part.name, part.n_experts] for part in self.projections],
            "setting": [self.mode, self.factor, self.together],
            "units": None if self.units is None else sorted(self.units),
        }

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of examples, of groups, and of the largest group's experts."""
        n_groups = 1 if self.together else len(self.projections)
        n_experts = max(projection.n_experts for projection in self.projections)
        return len(self.examples), n_groups, n_experts

    def constraints(self) -> list[tuple[Unit, ExpertConstraint]]:
        """Every unit of the job, with its constraint."""
        groups = [self.projections] if self.together else list(zip(self.projections, strict=True))
        found = []
        for index, members in enumerate(groups):
            for expert in range(max(member.n_experts for member in members)):
                if self.units is not None and (index, expert) not in self.units:
                    continue
                pairs = [(part.name, expert) for part in members if expert < part.n_experts]
                constraint = ExpertConstraint(pairs, self.mode, self.factor)
                found.append(((index, expert), constraint))
        return found


ESTIMATED = OutputSpec({"loss": 1, "changes": 3})
MEASURED = OutputSpec({"bare": 2, "changes": 4})


def estimate_experts(model: HookedModel, job: ExpertJob, *, progress: bool = False) -> Shard:
    """First-order changes of loss.

    Returns:
        ``loss`` [example] without interventions, ``changes`` [example group expert].
    """
    dtype = result_dtype(model)
    loss = torch.empty(job.shape[0], dtype=dtype)
    changes = torch.full(job.shape, torch.nan, dtype=dtype)

    def edit(gates: Tensor, expert: int) -> Tensor:
        return edit_gates(gates, [expert], job.mode, factor=job.factor)

    device = device_of(model)

    def run_chunk(chunk: list[int]) -> None:
        answers = answer_batch(job.examples, chunk, device)
        here, found = attribute_gates(model, answers, job.projections, edit=edit)
        sizes, rows = [part.n_experts for part in job.projections], torch.tensor(chunk)
        columns = [found[part.name].to(here.device, dtype) for part in job.projections]
        here, *columns = (
            torch.cat([here.to(dtype)[:, None], *columns], 1).cpu().split([1, *sizes], 1)
        )
        loss[rows] = here[:, 0]
        for number, (size, column) in enumerate(zip(sizes, columns, strict=True)):
            group, experts = 0 if job.together else number, torch.arange(size)
            # First-order effects of a group are the sum of its members'.
            before = changes[rows[:, None], group, experts].nan_to_num()
            changes[rows[:, None], group, experts] = before + column

    with progress_bar(total=len(job.examples), description="gradients", shown=progress) as bar:
        for chunk, _ in halving(answer_chunks(model, job.examples), run_chunk, what="one example"):
            bar.update(len(chunk))
    return Shard({"loss": loss, "changes": changes})


def measure_experts(model: HookedModel, job: ExpertJob, *, progress: bool = False) -> Shard:
    """Loss and accuracy without interventions, and their changes; NaN beyond the job's units.

    Returns:
        ``bare`` [example measure], without interventions; ``changes``
        [example measure group expert].
    """
    n_examples, *units = job.shape
    wanted, device = job.constraints(), device_of(model)

    def runs(chunk: list[int]) -> Iterator[Tensor]:
        baseline = run_baseline(model, answer_batch(job.examples, chunk, device), job.projections)
        yield torch.stack([baseline.loss, baseline.right])
        for _, constraint in wanted:
            yield _changes(model, job, baseline, constraint=constraint)

    found = measure_runs(
        runs,
        answer_chunks(model, job.examples),
        shape=(2, n_examples, 1 + len(wanted)),
        dtype=result_dtype(model),
        what="one example",
        progress=progress,
        description=f"experts, {job.mode}",
    ).transpose(0, 1)
    changes = found.new_full((n_examples, 2, *units), torch.nan)
    for number, ((group, expert), _) in enumerate(wanted, start=1):
        changes[:, :, group, expert] = found[:, :, number]
    return Shard({"bare": found[:, :, 0].contiguous(), "changes": changes})


def _changes(
    model: HookedModel, job: ExpertJob, baseline: BaselineRun, *, constraint: ExpertConstraint
) -> Float[Tensor, "measure example"]:
    """Changes under one constraint; zero where an example uses none of its experts."""
    pairs = constraint.pairs
    reached = torch.ones(len(baseline.loss), dtype=torch.bool)
    if job.mode != "force":
        reached = torch.stack([baseline.used[name][:, expert] for name, expert in pairs]).any(dim=0)
    rows = upload(reached.nonzero()[:, 0], baseline.loss.device)
    measured = torch.stack([baseline.loss, baseline.right])
    changes = torch.zeros_like(measured)
    if len(rows):
        layer_of = {projection.name: projection.layer for projection in job.projections}
        # Outside the layers (an adapted unembedding) the whole model runs.
        first_layer = min(layer_of[name] or 0 for name, _ in pairs)
        variant = Variant(first_layer, tuple(hooks_of(constraint, model)), rows)
        (logits,) = run_variants(model, baseline.run, [variant])
        edited = answer_measures(logits, baseline.answers.targets[rows])
        changes[:, rows] = torch.stack(edited) - measured[:, rows]
    return changes


def greedy_accuracy(
    model: HookedModel, job: ExpertJob, questions: Sequence[Example], *, progress: bool = True
) -> tuple[Float[Tensor, " example"], Float[Tensor, "example group expert"]]:
    """Accuracy of greedy answers without interventions, and its changes.

    Args:
        questions: the job's examples, as questions that an answer is scored against.
    """
    prompts = [example.tokens[: example.n_prompt] for example in job.examples]
    end = end_token(model.tokenizer)

    def accuracy() -> Float[Tensor, " example"]:
        answers = generate_tokens(model, prompts, end=end, progress=False)
        right = map(is_right, questions, answers)
        return torch.tensor(list(right), dtype=torch.float32)

    baseline, changes = accuracy(), torch.full(job.shape, torch.nan)
    wanted = progress_bar(job.constraints(), description="greedy answers", shown=progress)
    for (group, expert), constraint in wanted:
        with constrain(model, constraint):
            changes[:, group, expert] = accuracy() - baseline
    return baseline, changes


def most_promising(
    estimate: Float[Tensor, "example group expert"], tasks: Sequence[str], budget: int
) -> frozenset[Unit]:
    """The ``budget`` units with the largest absolute mean estimate in any task."""
    means = []
    for task in dict.fromkeys(tasks):
        rows = [row for row, name in enumerate(tasks) if name == task]
        means.append(estimate[rows].mean(dim=0).abs())
    largest = torch.stack(means).amax(dim=0).nan_to_num(nan=-1.0)
    order = largest.flatten().argsort(descending=True, stable=True)
    order = order[largest.flatten()[order] >= 0][:budget].tolist()
    width = largest.shape[1]
    return frozenset(divmod(unit, width) for unit in order)
