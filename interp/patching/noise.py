"""Causal tracing: noise on the embeddings of a span, and what of the clean run mends the answer.

Meng et al. 2022 ("Locating and Editing Factual Associations in GPT", arXiv 2202.05262, section 2).
Gaussian noise is added to the embeddings of a span, mostly the subject's, so that the model loses
the answer. Then one state of the clean run is put back: the residual stream after a layer at one
position, or what the attention or the MLPs of a window of layers write there. Everything above is
computed from the noised run.

Effect = metric(noised run with the state put back) − metric(noised run), the mean over several
draws of noise. A positive effect means that the state carries what the span said.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.arguments import check_choice, pairs_of_numbers, real_number, whole_number
from interp.checked import checked
from interp.errors import UserError
from interp.figures.theme import shown_token
from interp.forward.batch import Prompts, Span, TokenBatch, in_batches
from interp.forward.hook_points import as_units, check_component, hook_name
from interp.forward.memory import Budget
from interp.forward.partial import Hook, RecordedRun, record_run, resume
from interp.forward.trial import keeping_unhooked
from interp.models.hooked_model import HookedModel
from interp.patching.chunks import Chunk, first_position
from interp.patching.edits import ActivationEdit
from interp.patching.metrics import Metric, can_take, take_metrics
from interp.patching.patch_inputs import PatchInputs
from interp.patching.patch_source import recorded_values
from interp.patching.result import PatchEffects
from interp.patching.sweep import UnitSet, sweep_position_sets
from interp.patching.unembedding import token_names
from interp.precision import result_dtype, widened
from interp.progress import progress_bar

By = Literal["role", "position"]
COMPONENTS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
WINDOW = 10
"""Layers whose attention or MLP outputs are put back together, as in the paper."""
ROLES = ("first", "middle", "last", "next", "further", "end")
"""Tokens by their place: of the span the first, those between and the last; behind it the next, the
further ones, and the prompt's last. A span of one token has only a last one."""
DRAWS = 10
ROWS = 16
"""Draws of prompts that run together, with their clean values in memory."""


@dataclass(frozen=True)
class Noise:
    """Noise for the rows of a batch, each a prompt and the number of a draw.

    Attributes:
        at: Bool[row pos], the spans.
        std: of the noise, absolute.
        keys: of each row the prompt and the draw, which decide its noise with the seed, whatever
            runs beside it.
    """

    at: Bool[Tensor, "row pos"]
    std: float
    keys: Sequence[tuple[int, int]]
    seed: int = 0

    def of(self, rows: Sequence[int], shape: torch.Size) -> Float[Tensor, "row pos d_model"]:
        """The noise on the embeddings of some rows, which end with the batch.

        Args:
            shape: of the embeddings, from some position before all spans on.
        """
        found = torch.zeros(shape, dtype=torch.float32)
        for place, row in enumerate(rows):
            state = np.random.SeedSequence([self.seed, *self.keys[row]])
            generator = torch.Generator().manual_seed(int(state.generate_state(1)[0]))
            here = self.at[row, -shape[1] :].cpu()
            size = (int(here.sum()), shape[2])
            noise = torch.randn(size, generator=generator, dtype=torch.float32)
            found[place, here] = self.std * noise
        return found

    def prepare(self, model: HookedModel, run: RecordedRun, chunk: Chunk) -> RecordedRun:
        """The run with noised embeddings, in place of the recorded one."""
        before = run.resid_pre[0]
        noise = self.of(chunk.rows.tolist(), before.shape).to(before)
        return noised_run(model, run, before + noise)


def noised_run(
    model: HookedModel, run: RecordedRun, embeddings: Float[Tensor, "prompt pos d_model"]
) -> RecordedRun:
    """A recorded run with other embeddings from its start on."""
    seen: dict[tuple[str, int], Tensor] = {}
    names = dict.fromkeys(("resid_pre", *run.values))

    def store(value: Tensor, hook: object, *, name: str, layer: int) -> None:
        seen[name, layer] = as_units(value.detach(), name)

    layers = range(model.cfg.n_layers)
    hooks: list[Hook] = [
        (hook_name(name, layer), partial(store, name=name, layer=layer))
        for layer in layers
        for name in names
    ]
    rows = run.batch.every_row
    logits = resume(model, run, layer=0, rows=rows, residual=embeddings, hooks=hooks)
    kept = {name: torch.stack([seen[name, layer] for layer in layers]) for name in names}
    # The keys and values that were recorded are those of the clean run: nothing may go on from
    # them behind the run's start.
    return replace(
        run,
        resid_pre=kept["resid_pre"].squeeze(3),
        values={name: kept[name] for name in run.values},
        logits=logits,
        all_positions=True,
    )


@checked
@keeping_unhooked()
@torch.no_grad()
def trace_noise(
    model: HookedModel,
    prompts: Prompts,
    metric: Metric,
    spans: Sequence[Span],
    *,
    component: str = "resid_post",
    window: int | None = None,
    by: By = "role",
    scale: float = 3.0,
    draws: int = DRAWS,
    groups: Sequence[str] = (),
    templates: Sequence[str] = (),
    seed: int = 0,
    budget: int | Budget | None = None,
    progress: bool = True,
) -> PatchEffects:
    """Effect of putting each clean state back into a run with noise on a span's embeddings.

    Args:
        prompts: the clean prompts.
        metric: last position's logits Float[prompt d_vocab] → Float[prompt], such as
            ``Probability`` of the answer.
        spans: of each prompt, the tokens [start, end) without padding whose embeddings are noised.
        component: ``resid_pre``, ``resid_mid``, ``resid_post``, ``attn_out`` or ``mlp_out``.
        window: how many layers around each are put back together; by default 10 for ``attn_out``
            and ``mlp_out`` and 1 for the stream, as in the paper.
        by: ``role``: tokens by their place (`ROLES`), each put back alone, the mean over those of
            a role; ``position``: each position, counted in the padded batch, with the tokens' texts
            where there is one prompt.
        scale: of the noise, in standard deviations of the spans' embeddings over all prompts.
        draws: of noise.
        groups, templates: of each prompt, for intervals.

    Returns:
        effects with the axes prompt, layer, and span (the roles) or position; its ``corrupted`` is
        the mean metric of the noised runs, its ``source`` "noise".

    Raises:
        UserError: a component or span that is not there, or any error of `interp.patching.patch`.
    """
    check_traced(component)
    check_component(component, model)
    check_choice("by", by, get_args(By))
    draws, scale = whole_number("draws", draws, least=1), real_number("scale", scale)
    if scale <= 0:
        raise UserError(f"scale is {scale}: it must be more than 0")
    shared: dict[str, Any] = {"groups": groups, "templates": templates, "seed": seed}
    inputs = PatchInputs(model, prompts, prompts, metric, budget=budget, **shared)
    batch = inputs.clean
    at = batch.span_mask(pairs_of_numbers("spans", spans, of="(start, end)"))
    sets = _windows(model.cfg.n_layers, component, window)
    first = first_position(at)
    std = scale * _embedding_std(model, batch, at)
    places = list(range(first, batch.width))
    keys = [(prompt, draw) for prompt in range(len(batch)) for draw in range(draws)]
    whole = not can_take([metric])  # a metric that sees all prompts has them all, draw by draw
    keys.sort(key=lambda key: key[::-1] if whole else key)
    shape = (len(batch), 1 + model.cfg.n_layers, len(places))
    summed = torch.zeros(shape, dtype=result_dtype(model))
    with progress_bar(total=len(keys), description="draws of noise", shown=progress) as bar:
        for some in in_batches(keys, len(batch) if whole else ROWS):
            found = _swept(inputs, at, component, first=first, sets=sets, keys=some, std=std)
            summed.index_add_(0, torch.tensor([prompt for prompt, _ in some]), found)
            bar.update(len(some))
    mean = summed / draws
    values, corrupted = mean[:, 1:] - mean[:, :1], mean[:, 0, -1]
    names, axis = _position_names(model, batch, places), "position"
    if by == "role":
        values, names, axis = _by_role(values, batch, at, places=places), ROLES, "span"
    noted = {"noise_std": f"{std:.6g}", "scale": f"{scale:g}", "draws": str(draws)}
    noted["window"] = str(max(map(len, sets)))
    return inputs.result(
        values,
        axes=("prompt", "layer", axis),
        labels={axis: names},
        corrupted=corrupted,
        clean=inputs.unedited_metric(batch, metric),
        component=component,
        method="exact",
        source="noise",
        metadata=noted,
    )


def _swept(
    inputs: PatchInputs,
    at: Bool[Tensor, "prompt pos"],
    component: str,
    *,
    first: int,
    sets: Sequence[UnitSet],
    keys: Sequence[tuple[int, int]],
    std: float,
) -> Float[Tensor, "row set place"]:
    """The metric of some draws, with nothing put back, and with each set at each position."""
    model, batch = inputs.model, inputs.clean
    index = inputs.index([prompt for prompt, _ in keys])
    part = TokenBatch(batch.tokens[index], batch.mask[index])
    places = torch.arange(first, batch.width)
    noise = Noise(at[index], std, keys, inputs.seed)
    edit = ActivationEdit(
        part.mask & (torch.arange(batch.width, device=index.device) >= first),
        recorded_values(model, part, component, first=first),
        first=first,
        component=component,  # type: ignore[arg-type]
    )
    (found,) = sweep_position_sets(
        model,
        part,
        edit,
        position_sets=torch.eye(batch.width, dtype=torch.bool)[places][:, None] & part.mask.cpu(),
        sets=[(), *sets],
        metrics=take_metrics([inputs.metric], index),
        budget=inputs.budget,
        progress=False,
        prepare=partial(noise.prepare, model),
    )
    return found


def check_traced(component: str) -> None:
    """Raise UserError for a component whose clean values are not put back into noised runs."""
    if check_component(component) not in COMPONENTS:
        raise UserError(f"noise is traced in {', '.join(COMPONENTS)}, not in {component!r}")


def _position_names(
    model: HookedModel, batch: TokenBatch, places: Sequence[int]
) -> tuple[str, ...]:
    """The numbers of positions, and of a single prompt its tokens."""
    if len(batch) > 1:
        return tuple(map(str, places))
    ids = batch.tokens[0, list(places)].tolist()
    texts = token_names(model, batch.tokens)
    return tuple(f"{place} {shown_token(texts[i])}" for place, i in zip(places, ids, strict=True))


def _windows(n_layers: int, component: str, window: int | None) -> list[UnitSet]:
    """The layers that are put back together around each layer."""
    if window is None:
        window = WINDOW if component in ("attn_out", "mlp_out") else 1
    window = whole_number("window", window, least=1)
    return [
        tuple(
            (at, 0)
            for at in range(max(0, layer - window // 2), min(n_layers, layer + (window + 1) // 2))
        )
        for layer in range(n_layers)
    ]


def _embedding_std(model: HookedModel, batch: TokenBatch, at: Tensor) -> float:
    """The standard deviation of what the first layer reads at the spans, over all its numbers."""
    found = []
    for some in in_batches(range(len(batch)), ROWS):
        part = TokenBatch(batch.tokens[some], batch.mask[some])
        run = record_run(model, part, keep=(), plain=False)
        found.append(widened(run.resid_pre[0])[at[some][:, run.start :]])
    return float(torch.cat(found).std())


def _by_role(
    values: Float[Tensor, "prompt layer place"],
    batch: TokenBatch,
    at: Bool[Tensor, "prompt pos"],
    *,
    places: Sequence[int],
) -> Float[Tensor, "prompt layer role"]:
    """The mean over the tokens of each role; NaN for a role that a prompt does not have."""
    found = values.new_full((*values.shape[:2], len(ROLES)), torch.nan)
    for prompt, span in enumerate(at.cpu()):
        first, last = int(span.long().argmax()), int(span.nonzero()[-1])
        roles = _roles(first, last, batch.width)
        for role, positions in enumerate(roles[name] for name in ROLES):
            if positions:
                index = [position - places[0] for position in positions]
                found[prompt, :, role] = values[prompt][:, index].mean(dim=1)
    return found


def _roles(first: int, last: int, width: int) -> Mapping[str, Sequence[int]]:
    """The positions of each role, for a span from ``first`` to ``last``."""
    after = list(range(last + 1, width))
    return {
        "first": [first] if first < last else [],
        "middle": list(range(first + 1, last)),
        "last": [last],
        "next": after[:1] if len(after) > 1 else [],
        "further": after[1:-1],
        "end": after[-1:],
    }
