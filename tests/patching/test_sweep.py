"""Sweeps give the numbers of whole forward passes with one hook, prompt by prompt."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformer_lens.patching
from transformer_lens import ActivationCache

from interp.errors import UserError
from interp.models import HookedModel
from interp.patching import (
    ActivationEdit,
    AttentionEdit,
    LogitDifference,
    Probability,
    TokenBatch,
    first_difference,
    patch_heads,
    sweep_heads,
    sweep_sets,
)

# Different lengths; one begins its span in the first token, one ends it before the last.
PROMPTS = [
    [5, 9, 7, 8, 30, 31, 32, 12],
    [20, 21, 22, 23, 24],
    [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50],
]
SPANS = [(5, 7), (0, 2), (2, 4)]
BATCH = TokenBatch.from_lists(PROMPTS)
ANSWERS, WRONG = torch.tensor([3, 14, 15]), torch.tensor([65, 35, 89])
METRICS = (LogitDifference(ANSWERS, WRONG), Probability(ANSWERS))
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 1e-5}


def all_heads(model: Any) -> list[tuple[int, int]]:
    return [(i, j) for i in range(model.cfg.n_layers) for j in range(model.cfg.n_heads)]


def random_source(model: Any, first: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(BATCH), BATCH.width - first, model.cfg.n_heads, model.cfg.d_head)
    return torch.randn(model.cfg.n_layers, *shape, generator=generator)


def source_at(source: torch.Tensor, first: int, prompt: int, layer: int) -> torch.Tensor:
    """One prompt's source over its unpadded positions, [pos head d_head] (zero before first)."""
    length, width = len(PROMPTS[prompt]), BATCH.width
    padded = torch.zeros(width, *source.shape[3:])
    padded[first:] = source[layer, prompt]
    return padded[width - length :]


def write_hook(layer: int, head: int, span: tuple[int, int], values: Any, scale: float) -> Any:
    def hook_function(z: torch.Tensor, hook: Any) -> torch.Tensor:
        z = z.clone()
        for position in range(*span):
            z[0, position, head] = scale * z[0, position, head] + values[position, head]
        return z

    return f"blocks.{layer}.attn.hook_z", hook_function


def cut_hook(layer: int, head: int, span: tuple[int, int], factor: float) -> Any:
    """Scales weights after the softmax and renormalises, which is the same thing said otherwise."""

    def hook_function(scores: torch.Tensor, hook: Any) -> torch.Tensor:
        pattern = scores.softmax(dim=-1)
        for query in range(span[1], scores.shape[2]):
            pattern[0, head, query, span[0] : span[1]] *= factor
        return (pattern / pattern.sum(dim=-1, keepdim=True)).log()

    return f"blocks.{layer}.attn.hook_attn_scores", hook_function


def score(logits: torch.Tensor, prompt: int) -> torch.Tensor:
    """METRICS by hand, for one prompt's logits."""
    answer, wrong = ANSWERS[prompt], WRONG[prompt]
    return torch.stack([logits[answer] - logits[wrong], logits.softmax(-1)[answer]])


def literal(model: Any, full_logits: Any, make_hooks: Callable[..., list[Any]]) -> torch.Tensor:
    """Float[metric prompt layer head] from one whole unpadded forward pass each; NaN elsewhere.

    Each head in one of the prompts, so that any two of a prompt, a layer and a head meet.
    """
    values = torch.full((2, len(PROMPTS), model.cfg.n_layers, model.cfg.n_heads), torch.nan)
    for prompt, tokens in enumerate(PROMPTS):
        for layer, head in all_heads(model):
            if (prompt + layer + head) % len(PROMPTS) == 0:
                logits = full_logits(model, tokens, make_hooks(prompt, layer, head))
                values[:, prompt, layer, head] = score(logits, prompt)
    return values


def agree(values: torch.Tensor, expected: torch.Tensor) -> None:
    """Each head's are those of `literal`, and there is a value everywhere."""
    measured = ~expected.isnan()
    assert bool(measured.any(dim=1).all())
    assert values.shape == expected.shape
    assert bool(values.isfinite().all())
    torch.testing.assert_close(values[measured], expected[measured], **CLOSE)


@pytest.mark.parametrize(
    ("scale", "with_source", "budget"),
    [(0.0, False, None), (0.5, False, None), (0.0, True, 150_000)],
)
def test_output_sweep_equals_whole_runs(
    family: HookedModel, full_logits: Any, scale: float, with_source: bool, budget: int | None
) -> None:
    first = 2  # the first edited column: the longest prompt's position 2
    source = random_source(family, first) if with_source else None
    nothing = torch.zeros(family.cfg.n_layers, len(BATCH), BATCH.width - first, 1, 1).expand(
        -1, -1, -1, family.cfg.n_heads, family.cfg.d_head
    )
    used = nothing if source is None else source

    def hooks(prompt: int, layer: int, head: int) -> list[Any]:
        values = source_at(used, first, prompt, layer)
        return [write_hook(layer, head, SPANS[prompt], values, scale)]

    edit = ActivationEdit(BATCH.span_mask(SPANS), source=source, scale=scale, first=first)
    values = sweep_heads(family, BATCH, edit, metrics=METRICS, budget=budget, progress=False)
    agree(values, literal(family, full_logits, hooks))


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_attention_sweep_equals_whole_runs(
    family: HookedModel, full_logits: Any, factor: float
) -> None:
    def hooks(prompt: int, layer: int, head: int) -> list[Any]:
        return [cut_hook(layer, head, SPANS[prompt], factor)]

    edit = AttentionEdit(BATCH.span_mask(SPANS), factor)
    values = sweep_heads(family, BATCH, edit, metrics=METRICS, budget=300_000, progress=False)
    agree(values, literal(family, full_logits, hooks))


def path_patch(
    model: Any, tokens: list[int], at: set[int], layer: int, head: int, edit_hook: Any, own: Any
) -> list[Any]:
    """Path patching said literally: all other heads of all layers are held at ``at``.

    ``own`` are the unedited run's outputs. MLPs at ``at`` and everything at later positions are
    computed anew by the forward pass itself.
    """

    def hold(of_layer: int) -> Any:
        def hook_function(z: torch.Tensor, hook: Any) -> torch.Tensor:
            z = z.clone()
            for position in at:
                for other in range(z.shape[2]):
                    if (of_layer, other) != (layer, head):
                        z[0, position, other] = own[of_layer][position, other]
            return z

        return f"blocks.{of_layer}.attn.hook_z", hook_function

    return [edit_hook, *(hold(of_layer) for of_layer in range(model.cfg.n_layers))]


def test_path_patching_at_one_token_equals_the_literal_procedure(
    family: HookedModel, full_logits: Any, full_outputs: Any
) -> None:
    ends = [(end - 1, end) for _, end in SPANS]
    source = random_source(family, 1, seed=1)
    own = [full_outputs(family, tokens) for tokens in PROMPTS]

    def hooks(prompt: int, layer: int, head: int) -> list[Any]:
        values = source_at(source, 1, prompt, layer)
        edit_hook = write_hook(layer, head, ends[prompt], values, 0.0)
        at = {ends[prompt][0]}
        return path_patch(family, PROMPTS[prompt], at, layer, head, edit_hook, own[prompt])

    edit = ActivationEdit(BATCH.span_mask(ends), source=source, first=1)
    expected = literal(family, full_logits, hooks)
    for budget in (None, 180_000):
        values = sweep_heads(
            family, BATCH, edit, metrics=METRICS, freeze=True, budget=budget, progress=False
        )
        agree(values, expected)
    # Freezing is not idle: without it, the next layer's heads pass the change on to those above.
    free = sweep_heads(family, BATCH, edit, metrics=METRICS, progress=False)
    idle = family.cfg.n_layers == 2
    assert (float((free - expected)[~expected.isnan()].abs().max()) < 1e-5) == idle


def test_path_patching_of_attention_equals_the_literal_procedure(
    family: HookedModel, full_logits: Any, full_outputs: Any
) -> None:
    own = [full_outputs(family, tokens) for tokens in PROMPTS]

    def hooks(prompt: int, layer: int, head: int) -> list[Any]:
        at = set(range(SPANS[prompt][1], len(PROMPTS[prompt])))
        edit_hook = cut_hook(layer, head, SPANS[prompt], 0.0)
        return path_patch(family, PROMPTS[prompt], at, layer, head, edit_hook, own[prompt])

    edit = AttentionEdit(BATCH.span_mask(SPANS))
    values = sweep_heads(family, BATCH, edit, metrics=METRICS, freeze=True, progress=False)
    agree(values, literal(family, full_logits, hooks))


@pytest.mark.parametrize("site", ["output", "attention"])
def test_sets_equal_whole_runs_with_all_their_hooks(
    family: HookedModel, full_logits: Any, site: str
) -> None:
    sets: list[list[tuple[int, int]]] = [
        [(1, 0), (0, 3), (1, 2)],
        [],
        [(1, 1)],
        [(0, 1), (0, 2)],
        [(1, 3), (0, 0)],
    ]
    at = BATCH.span_mask(SPANS)
    edit = ActivationEdit(at) if site == "output" else AttentionEdit(at)
    nothing = torch.zeros(max(map(len, PROMPTS)), family.cfg.n_heads, family.cfg.d_head)
    expected = torch.full((2, len(PROMPTS), len(sets)), torch.nan)
    for prompt, tokens in enumerate(PROMPTS):
        for index, heads in enumerate(sets):
            if (prompt + index + (site == "output")) % 2:  # every second, the others at one site
                continue
            hooks = [
                write_hook(*head, SPANS[prompt], nothing, 0.0)
                if site == "output"
                else cut_hook(*head, SPANS[prompt], 0.0)
                for head in heads
            ]
            expected[:, prompt, index] = score(full_logits(family, tokens, hooks), prompt)
    values = sweep_sets(
        family, BATCH, edit, sets=sets, metrics=METRICS, budget=230_000, progress=False
    )
    agree(values, expected)


CLEAN = torch.tensor([[5, 9, 7, 8, 30, 31], [5, 9, 70, 8, 30, 31], [40, 41, 42, 43, 44, 45]])
CORRUPTED = torch.tensor([[5, 9, 7, 81, 30, 31], [5, 9, 71, 8, 33, 31], [40, 51, 42, 43, 44, 45]])


def test_patch_heads_equals_transformer_lens(family: Any) -> None:
    metric = LogitDifference(torch.tensor([3, 14, 15]), torch.tensor([65, 35, 89]))
    _, cache = family.run_with_cache(CLEAN)
    assert isinstance(cache, ActivationCache)
    theirs = transformer_lens.patching.get_act_patch_attn_head_out_all_pos(
        family, CORRUPTED, cache, lambda logits: metric(logits[:, -1]).mean()
    )
    ours = patch_heads(family, CLEAN, CORRUPTED, metric, progress=False)
    assert ours.shape == (3, family.cfg.n_layers, family.cfg.n_heads)
    torch.testing.assert_close(ours.mean(dim=0), theirs, **CLOSE)
    assert float(ours.std(dim=(1, 2)).min()) > 1e-3


def test_patch_heads_of_padded_prompts_equals_one_by_one(family: HookedModel) -> None:
    lengths = [6, 4, 5]
    answers, wrong = torch.tensor([3, 14, 15]), torch.tensor([65, 35, 89])

    def metric(logits: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(logits))
        return logits[rows, answers] - logits[rows, wrong]

    alone = [
        patch_heads(
            family,
            CLEAN[row : row + 1, :length],
            CORRUPTED[row : row + 1, :length],
            LogitDifference(answers[row : row + 1], wrong[row : row + 1]),
            progress=False,
        )
        for row, length in enumerate(lengths)
    ]
    for side in ("left", "right"):
        mask = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
        clean, corrupted = CLEAN.clone(), CORRUPTED.clone()
        if side == "left":
            mask = mask.flip(1)
            for tokens in (clean, corrupted):
                for row, length in enumerate(lengths):
                    tokens[row] = tokens[row].roll(-length)
        together = patch_heads(family, clean, corrupted, metric, mask=mask, progress=False)
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=5e-5)


def test_patch_heads_in_chunks_with_a_metric_that_can_be_narrowed(tiny_llama: HookedModel) -> None:
    """Lengths so mixed that a chunk of short prompts begins after the others' first change."""
    generator = torch.Generator().manual_seed(0)
    lengths, width = [30, 8, 6], 30
    clean = torch.randint(5, 300, (3, width), generator=generator)
    corrupted = clean.clone()
    mask = torch.arange(width)[None] >= (width - torch.tensor(lengths))[:, None]
    for row, place in enumerate([3, 24, 25]):
        corrupted[row, place] = 7
    metric = LogitDifference(ANSWERS, WRONG)
    settings: dict[str, Any] = {"mask": mask, "progress": False}
    whole = patch_heads(tiny_llama, clean, corrupted, metric, budget=10**9, **settings)
    for budget in (300_000, 1_500_000):
        chunked = patch_heads(tiny_llama, clean, corrupted, metric, budget=budget, **settings)
        torch.testing.assert_close(chunked, whole, **CLOSE)


def test_equal_pairs_give_the_unpatched_metric(tiny_llama: HookedModel, full_logits: Any) -> None:
    tokens = torch.tensor([PROMPTS[1], PROMPTS[1]])
    metric = LogitDifference(ANSWERS[:2], WRONG[:2])
    values = patch_heads(tiny_llama, tokens, tokens, metric, progress=False)
    logits = full_logits(tiny_llama, PROMPTS[1])
    expected = metric(torch.stack([logits, logits]))[:, None, None].expand_as(values)
    torch.testing.assert_close(values, expected, **CLOSE)


def test_a_source_in_chunks_equals_prompts_one_by_one(tiny_llama: HookedModel) -> None:
    """The source begins before a chunk of short prompts does."""
    first = 2
    source = random_source(tiny_llama, first, seed=2)
    edit = ActivationEdit(BATCH.span_mask(SPANS), source=source, first=first)
    whole = sweep_heads(tiny_llama, BATCH, edit, metrics=METRICS, budget=10**9, progress=False)
    one_by_one = sweep_heads(
        tiny_llama, BATCH, edit, metrics=METRICS, budget=64_000, progress=False
    )
    torch.testing.assert_close(one_by_one, whole, **CLOSE)


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("site", ["output", "attention"])
def test_batch_order_and_chunks_are_irrelevant(
    tiny_llama: HookedModel, site: str, freeze: bool
) -> None:
    def sweep(order: list[int], budget: int | None) -> torch.Tensor:
        batch = TokenBatch.from_lists([PROMPTS[index] for index in order])
        at = batch.span_mask([SPANS[index] for index in order])
        index = torch.tensor(order)
        values = sweep_heads(
            tiny_llama,
            batch,
            ActivationEdit(at) if site == "output" else AttentionEdit(at),
            metrics=[LogitDifference(ANSWERS[index], WRONG[index])],
            freeze=freeze,
            budget=budget,
            progress=False,
        )
        return values[:, index.argsort()]

    expected = sweep([0, 1, 2], None)
    for order, budget in [([2, 1, 0], None), ([2, 0, 1], 200_000)]:
        torch.testing.assert_close(sweep(order, budget), expected, **CLOSE)


def test_a_metric_of_ones_own_gets_all_prompts_in_order(tiny_llama: HookedModel) -> None:
    """It cannot be narrowed, so prompts are not cut into chunks, however small budget."""
    edit = ActivationEdit(BATCH.span_mask(SPANS))

    def own(logits: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(PROMPTS))
        return logits[rows, ANSWERS] - logits[rows, WRONG]

    expected = sweep_heads(tiny_llama, BATCH, edit, metrics=METRICS[:1], progress=False)
    values = sweep_heads(tiny_llama, BATCH, edit, metrics=[own], budget=64_000, progress=False)
    torch.testing.assert_close(values, expected, **CLOSE)


def test_only_some_heads(tiny_llama: HookedModel) -> None:
    edit = ActivationEdit(BATCH.span_mask(SPANS))
    every = sweep_heads(tiny_llama, BATCH, edit, metrics=METRICS, progress=False)
    some = sweep_heads(
        tiny_llama, BATCH, edit, metrics=METRICS, heads=[(2, 1), (0, 3)], progress=False
    )
    asked = torch.zeros(3, 4, dtype=torch.bool)
    asked[2, 1] = asked[0, 3] = True
    torch.testing.assert_close(some[:, :, asked], every[:, :, asked], **CLOSE)
    assert bool(some[:, :, ~asked].isnan().all())


def test_first_difference_finds_the_first_column() -> None:
    a, b = TokenBatch.from_lists([[1, 2, 3], [4, 5]]), TokenBatch.from_lists([[1, 2, 9], [4, 5]])
    assert first_difference(a, b).tolist() == [2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": [(3, 0)]}, r"head \(3, 0\) does not exist.*layers 0 to 2.*heads 0 to 3"),
        ({"heads": [(0, -1)]}, r"head \(0, -1\) does not exist"),
        ({"edit": ActivationEdit(torch.zeros_like(BATCH.mask))}, "no position"),
        ({"metrics": [lambda logits: logits]}, "one value per prompt"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tiny_llama: HookedModel, change: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"edit": ActivationEdit(BATCH.span_mask(SPANS)), "metrics": METRICS}
    given |= change
    edit, metrics = given.pop("edit"), given.pop("metrics")
    with pytest.raises(UserError, match=message) as caught:
        sweep_heads(tiny_llama, BATCH, edit, metrics=metrics, progress=False, **given)
    assert "\n" not in str(caught.value)


def test_path_patching_takes_one_head_at_a_time(tiny_llama: HookedModel) -> None:
    edit = ActivationEdit(BATCH.span_mask(SPANS))
    with pytest.raises(UserError, match="one head at a time"):
        sweep_sets(
            tiny_llama,
            BATCH,
            edit,
            sets=[[(0, 0), (1, 0)]],
            metrics=METRICS,
            freeze=True,
            progress=False,
        )


def test_patch_heads_refuses_what_it_cannot_align(tiny_llama: HookedModel) -> None:
    metric = LogitDifference(ANSWERS[:1], WRONG[:1])
    with pytest.raises(UserError, match="differ in shape"):
        patch_heads(tiny_llama, torch.ones(1, 3).long(), torch.ones(1, 4).long(), metric)
    with pytest.raises(UserError, match="unknown component 'nose'; known: z, q"):
        patch_heads(tiny_llama, CLEAN[:1], CORRUPTED[:1], metric, component="nose")
