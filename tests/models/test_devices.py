"""A model on a device of its own: what it is given may be anywhere, and it is read seldom.

The devices are logical ones (`tests.logical_devices`), on which a tensor of the CPU, or of another
device, raises what it raises on a GPU.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from interp.evaluation.jobs import WholeRunsJob, whole_run_values
from interp.evaluation.preference import preference
from interp.evaluation.side_effects import side_effects
from interp.experts.effects.effects import expert_effects
from interp.experts.effects.patching import patch_experts
from interp.forward.partial import last_logits, record_run, resume
from interp.heads.headset import HeadSet
from interp.heads.locate import locate_heads
from interp.heads.object_edits import mean_output
from interp.inspection.flow import last_row_saliency
from interp.interventions import constrain
from interp.interventions.head_constraint import Constraint
from interp.interventions.intervention import Intervention
from interp.models import HookedModel, from_hf
from interp.moelora import auxiliary_losses, hooked
from interp.moelora.auxiliary import expert_load
from interp.moelora.data.encoding import EncodedExample
from interp.moelora.training.scoring import answer_losses, expert_similarity
from interp.patching import (
    ActivationEdit,
    AttentionEdit,
    KLDivergence,
    LogitDifference,
    Probability,
    TokenBatch,
    attribute_heads,
    faithfulness_curve,
    patch,
    patch_heads,
    patch_paths,
    sweep_position_sets,
    sweep_sets,
)
from interp.premises import Premises
from interp.premises.encode import encode_premises
from probes import collect_activations
from tests.devices import device_there
from tests.fixtures import make_hf_model, make_planted_hf_model
from tests.host_reads import HostReads, host_reads
from tests.interventions.conftest import make_adapted
from tests.logical_devices import numbers_of, put_on

pytestmark = [pytest.mark.bridge_only, pytest.mark.cpu_bits]

GPU = "cpu:0"
QUIET: dict[str, Any] = {"progress": False}
HALVES: dict[str, Any] = {"proportions": (0.5, 1.0), **QUIET}
Put = Callable[[Tensor], Tensor]


def devices() -> Any:
    """Logical devices, in one thread."""
    return device_there(torch.device(GPU))


def few(premises: Premises, count: int = 2) -> Premises:
    return Premises(premises.relation, premises.facts[:count], premises.templates[:1])


def tokens_of(prompts: int) -> tuple[Tensor, Tensor]:
    """Clean and corrupted token ids, which differ at the fifth position."""
    tokens = torch.randint(5, 300, (prompts, 7), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, 4] += 7
    return other, tokens


def difference(prompts: int, put: Put) -> LogitDifference:
    return LogitDifference(put(torch.arange(5, 5 + prompts)), put(torch.arange(60, 60 + prompts)))


def adapted(tokenizer: Any, **config: Any) -> Any:
    """A PEFT model whose experts, four a projection, in attention and MLPs, add something."""
    targets = ["q_proj", "down_proj"]
    return make_adapted(partial(make_hf_model, **config), tokenizer, target_modules=targets).eval()


TWO_LAYERS: dict[str, Any] = {"num_hidden_layers": 2}


@pytest.fixture(scope="module")
def small(chat_tokenizer: Any) -> HookedModel:
    return from_hf(make_hf_model("llama", chat_tokenizer, **TWO_LAYERS), chat_tokenizer)


@pytest.fixture(scope="module")
def on_gpu(chat_tokenizer: Any) -> HookedModel:
    """The weights of ``small``, on the device."""
    hf_model = make_hf_model("llama", chat_tokenizer, **TWO_LAYERS)
    with devices():
        return from_hf(put_on(hf_model, GPU), chat_tokenizer)


@pytest.fixture(scope="module")
def planted_on_gpu(word_tokenizer: Any) -> HookedModel:
    with devices():
        return from_hf(put_on(make_planted_hf_model(word_tokenizer), GPU), word_tokenizer)


# What is given may be on any device.


def patched(model: HookedModel, put: Put) -> list[Any]:
    clean, corrupted = map(put, tokens_of(2))
    metric, shared = difference(2, put), {**QUIET, "units": [(1, 3)]}
    units: Any = [(0, 1), (1, 3)]
    reference = KLDivergence(put(numbers_of(last_logits(model, TokenBatch.of(clean)))[:, -1]))
    mask = put(torch.ones(2, 7, dtype=torch.bool))
    spans: Any = {"end": ([(4, 7)] * 2, [(4, 7)] * 2)}
    return [
        patch(model, clean, corrupted, metric, units=units, **QUIET).values,
        patch(model, clean, corrupted, reference, **shared).values,
        patch(model, clean, corrupted, metric, positions=spans, **shared).values,
        patch(model, clean, corrupted, metric, source="mean", reference=clean, **shared).values,
        patch_heads(model, clean, corrupted, metric, mask=mask, **QUIET),
    ]


def estimated(model: HookedModel, put: Put) -> list[Any]:
    clean, corrupted = map(put, tokens_of(2))
    metric = Probability(put(torch.tensor([5, 6])))
    nodes = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(4)]
    return [
        patch(model, clean, corrupted, metric, method="attribution", **QUIET).values,
        patch(model, clean, corrupted, metric, method="atp*", component="k", **QUIET).values,
        patch(model, clean, corrupted, metric, method="ig", steps=1, **QUIET).values,
        patch_paths(model, clean, corrupted, metric, senders=[(0, 1)], **QUIET).values,
        faithfulness_curve(
            model, clean, corrupted, metric, ranking=nodes, n_random=0, **HALVES
        ).circuit,
    ]


def edited(model: HookedModel, put: Put) -> list[Any]:
    batch, metrics = TokenBatch.of(put(tokens_of(2)[1])), [difference(2, put)]
    at = torch.zeros(2, 7, dtype=torch.bool)
    at[0, 3] = at[1, 4] = True
    source = torch.linspace(-1, 1, 2 * 2 * 7 * 4 * 8).view(2, 2, 7, 4, 8)
    cut, write = AttentionEdit(put(at)), ActivationEdit(put(at), put(source))
    sets = [[], [(0, 1)], [(0, 2), (1, 3)]]
    where = put(torch.stack([at, at.roll(1, dims=1), torch.zeros_like(at)]))
    found = [
        sweep_sets(model, batch, edit, sets=sets, metrics=metrics, **QUIET) for edit in (cut, write)
    ]
    found += [
        attribute_heads(model, batch, edit, metrics=metrics, **QUIET) for edit in (cut, write)
    ]
    found.append(
        sweep_position_sets(
            model, batch, write, position_sets=where, sets=sets, metrics=metrics, **QUIET
        )
    )
    run = record_run(model, batch, start=3)
    rows = put(torch.tensor([1, 0, 1]))
    found.append(resume(model, run, layer=1, rows=rows.to(run.batch.tokens.device)))
    return found


def on_premises(model: HookedModel, put: Put, premises: Premises) -> list[Any]:
    device = put(torch.zeros(1)).device
    encoded = encode_premises(model.tokenizer, few(premises), device=device)
    batch, heads = encoded.batch("false"), HeadSet(((0, 1),), "output")
    mean = put(numbers_of(mean_output(model, encoded)))
    under: dict[str, Any] = {"constraint": Constraint(heads, "mean"), "sets": [heads]}
    some: dict[str, Any] = {"heads": ((2, 0),), **QUIET}
    found: list[Any] = [
        locate_heads(model, encoded, method="path", site="output", **some).values,
        locate_heads(model, encoded, method="activation", site="attention", **some).values,
    ]
    found.append(preference(model, encoded, "false", mean=mean, **under, **QUIET).p_true)
    found.append(last_row_saliency(model, batch, put(numbers_of(encoded.true_tokens)), **QUIET))
    found.append(collect_activations(model, encoded, "false", **QUIET))
    objects = put(numbers_of(encoded.objects("false")))
    spans = [item.false.object for item in encoded.items]
    for options in (
        {"at": objects, "mode": "resample"},
        {"at": spans, "mode": "mean", "mean": mean},
        {"at": lambda tokens, mask: objects, "mode": "zero"},
        {"premises": encoded, "mode": "resample"},
    ):
        with constrain(model, heads, **options):
            found.append(last_logits(model, batch))
    return found


def same(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        one, other = (numbers_of(torch.as_tensor(value)).detach().float() for value in (one, other))
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4, equal_nan=True)


@cache
def on_the_cpu(entry: Callable[..., list[Any]], model: HookedModel, *more: Any) -> list[Any]:
    """What is expected, wherever the inputs are."""
    return entry(model, lambda value: value, *more)


PLACES = [(True, "cpu"), (True, "cpu:1"), (False, GPU)]
"""Whether the model is on the device, and where the inputs are."""


@pytest.mark.parametrize(
    ("entry", "moved", "place"),
    [
        *((patched, *place) for place in PLACES[1:]),
        *((estimated, *place) for place in PLACES[::2]),
        *((edited, *place) for place in PLACES),
    ],
)
def test_tokens_masks_edits_and_metrics_may_be_anywhere(
    entry: Callable[[HookedModel, Put], list[Any]],
    moved: bool,
    place: str,
    on_gpu: HookedModel,
    small: HookedModel,
) -> None:
    with devices():
        found = entry(on_gpu if moved else small, lambda value: value.to(place))
    same(found, on_the_cpu(entry, small))


@pytest.mark.parametrize(("moved", "place"), PLACES[1:])
def test_premises_spans_and_means_may_be_anywhere(
    moved: bool,
    place: str,
    planted_on_gpu: HookedModel,
    planted: HookedModel,
    planted_premises: Premises,
) -> None:
    model = planted_on_gpu if moved else planted
    with devices():
        found = on_premises(model, lambda value: value.to(place), planted_premises)
    same(found, on_the_cpu(on_premises, planted, planted_premises))


def test_prompts_of_experts_may_be_anywhere(chat_tokenizer: Any) -> None:
    def measured(model: HookedModel, put: Put) -> Tensor:
        clean, corrupted = (TokenBatch.of(put(tokens)) for tokens in tokens_of(2))
        return patch_experts(model, clean, corrupted, difference(2, put), **QUIET).values

    whole, moved = (adapted(chat_tokenizer, **TWO_LAYERS) for _ in range(2))
    expected = measured(hooked(whole, chat_tokenizer), lambda value: value)
    with devices():
        model = hooked(put_on(moved, GPU), chat_tokenizer)
        same([measured(model, lambda value: value)], [expected])


# The device is read as often for many heads, layers, prompts and metrics as for few.


def reads_of(run: Callable[[], Any]) -> HostReads:
    with host_reads() as found:
        run()
    return found


def sizes(large: bool) -> tuple[dict[str, Any], int]:
    """A model's configuration, and how many prompts it runs."""
    if large:
        return {"num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 4}, 3
    return {"num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4}, 2


def run_once(model: HookedModel, batch: TokenBatch) -> None:
    """What a model is asked but once, such as whether its plain modules can be trusted."""
    with torch.no_grad():
        last_logits(model, batch)
        record_run(model, batch)


def jobs_of_patching(tokenizer: Any, large: bool) -> dict[str, Callable[[], Any]]:
    config, n_prompts = sizes(large)
    hf_model = put_on(make_hf_model("llama", tokenizer, **config), GPU)
    model = from_hf(hf_model, tokenizer)
    clean, corrupted = (tokens.to(GPU) for tokens in tokens_of(n_prompts))
    batch = TokenBatch.of(corrupted)
    metric = difference(n_prompts, lambda value: value.to(GPU))
    metrics = [metric, Probability(metric.answer), Probability(metric.wrong)]
    at = torch.zeros(n_prompts, 7, dtype=torch.bool)
    at[:, 3] = True
    edit = AttentionEdit(at.to(GPU))
    heads = range(config["num_attention_heads"])
    senders = [(layer, head) for layer in range(config["num_hidden_layers"]) for head in heads]
    some: Any = metrics if large else metrics[:1]
    run_once(model, batch)
    shared: dict[str, Any] = {"metric": metric, **QUIET}
    return {
        "sweep": lambda: patch(model, clean, corrupted, **shared),
        "sweep of sets": lambda: sweep_sets(
            model, batch, edit, sets=[[head] for head in senders], metrics=some, **QUIET
        ),
        "path patching of a sweep": lambda: sweep_sets(
            model, batch, edit, sets=[[a] for a in senders], metrics=some, freeze=True, **QUIET
        ),
        "attribution": lambda: attribute_heads(model, batch, edit, metrics=some, **QUIET),
        "integrated gradients": lambda: patch(
            model, clean, corrupted, method="ig", steps=2 if large else 1, **shared
        ),
        "atp*": lambda: patch(model, clean, corrupted, method="atp*", component="k", **shared),
        "paths": lambda: patch_paths(model, clean, corrupted, senders=senders, **shared),
        "circuits": lambda: faithfulness_curve(
            model, clean, corrupted, metric, ranking=senders, n_random=2 if large else 0, **HALVES
        ),
    }


def jobs_on_premises(
    tokenizer: Any, premises: Premises, large: bool
) -> dict[str, Callable[[], Any]]:
    model = from_hf(put_on(make_planted_hf_model(tokenizer), GPU), tokenizer)
    encoded = encode_premises(tokenizer, few(premises, 4 if large else 2), device=torch.device(GPU))
    heads = [(0, 1), (1, 2), (2, 3), (2, 0)] if large else [(0, 1)]
    sets = [HeadSet((head,), "output") for head in heads]
    under = tuple(Intervention.of(one) for one in (sets[:1] * (3 if large else 2)))
    mean = mean_output(model, encoded)
    text = ("Why is city0 the capital of land0 ?", "What is city1 famous for ?")
    text = text * 3 if large else text
    constraint = Constraint(HeadSet(tuple(heads), "output"))

    def prefill() -> None:
        with constrain(model, HeadSet(tuple(heads), "output"), premises=encoded, mode="resample"):
            last_logits(model, encoded.batch("false"))

    run_once(model, encoded.batch("false"))
    return {
        "preference": lambda: preference(
            model, encoded, "false", constraint=Constraint(sets[0]), sets=sets, **QUIET
        ),
        "whole runs": lambda: whole_run_values(
            model, WholeRunsJob(encoded, "false", under[:2], mean)
        ),
        "a constrained prefill": prefill,
        "side effects": lambda: side_effects(model, constraint, sentences=text),
        "activations": lambda: collect_activations(
            model, encoded, "false", layers=[0, 1, 2] if large else [0], **QUIET
        ),
    }


def jobs_of_experts(tokenizer: Any, large: bool) -> dict[str, Callable[[], Any]]:
    config, n_prompts = sizes(large)
    whole = put_on(adapted(tokenizer, **config), GPU)
    model = hooked(whole, tokenizer)
    clean, corrupted = (TokenBatch.of(tokens.to(GPU)) for tokens in tokens_of(n_prompts))
    metric = difference(n_prompts, lambda value: value.to(GPU))
    examples = [EncodedExample(tuple(row.tolist()), 5) for row in tokens_of(n_prompts)[0]]

    def step() -> None:
        whole.train()
        mask = torch.ones_like(clean.tokens)
        logits = whole(input_ids=clean.tokens, attention_mask=mask).logits
        (logits.logsumexp(-1).sum() + auxiliary_losses(whole).total).backward()
        expert_load(whole)
        whole.eval()

    run_once(model, clean)
    step()  # the first one tries the modules that have fewer operators
    return {
        "a training step": step,
        "patched experts": lambda: patch_experts(model, clean, corrupted, metric, **QUIET),
        "experts off": lambda: expert_effects(model, {"a": examples}, **QUIET),
        "gradients of gates": lambda: expert_effects(
            model, {"a": examples}, method="attribution", **QUIET
        ),
        "losses": lambda: answer_losses(whole, examples),
        "similarity": lambda: expert_similarity(whole, examples),
    }


def check_reads(small: dict[str, Callable[[], Any]], large: dict[str, Callable[[], Any]]) -> None:
    for name, run in small.items():
        few_reads, many = reads_of(run), reads_of(large[name])
        assert sum(few_reads.values()) < 100, name
        grown = {place: count for place, count in many.items() if count > few_reads[place]}
        assert grown == {}, name


def test_patching_reads_the_device_once_a_batch(chat_tokenizer: Any) -> None:
    with devices():
        check_reads(*(jobs_of_patching(chat_tokenizer, large) for large in (False, True)))


def test_premises_read_the_device_once_a_batch(
    word_tokenizer: Any, planted_premises: Premises
) -> None:
    with devices():
        check_reads(
            *(jobs_on_premises(word_tokenizer, planted_premises, large) for large in (False, True))
        )


def test_experts_read_the_device_once_a_batch(chat_tokenizer: Any) -> None:
    with devices():
        check_reads(*(jobs_of_experts(chat_tokenizer, large) for large in (False, True)))


def test_reads_are_counted() -> None:
    """The negative control: everything that waits for a device is seen."""
    with devices(), host_reads() as found:
        value = torch.arange(4.0).to(GPU, non_blocking=True)
        assert sum(found.values()) == 0
        _ = (value + 1).sum(), value[value.long()], torch.where(value > 1, value, 0.0)
        assert sum(found.values()) == 0
        waits: list[Callable[[], Any]] = [
            lambda: float(value[0]),
            lambda: bool((value > 1).all()),
            lambda: value.cpu(),
            lambda: value.tolist(),
            lambda: value[value > 1],
            lambda: (value > 1).nonzero(),
            lambda: torch.equal(value, value),
            lambda: torch.tensor([1.0], device=GPU),
            lambda: torch.ones(3).to(GPU),
            lambda: value[[0, 2]],
        ]
        for number, wait in enumerate(waits, start=1):
            wait()
            assert sum(found.values()) == number
