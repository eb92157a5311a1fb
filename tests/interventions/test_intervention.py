"""Interventions as values; and held together on a model, as by one constrain inside another."""

from typing import Any

import pytest
import torch

from interp.errors import UserError
from interp.heads import HeadSet
from interp.interventions import Constraint, ExpertConstraint, Intervention, constrain
from interp.interventions.gate import check_gate
from interp.models import HookedModel
from interp.patching import LogitDifference, TokenBatch, last_logits, patch_heads

HEADS = Constraint(HeadSet(((0, 1), (1, 2))))
CUT = Constraint(HeadSet(((1, 3),), "attention"), "scale", 0.5)
EXPERTS = ExpertConstraint([(1, "attn.q", 1), (1, "mlp.out", 0)], "off")
LOUD = ExpertConstraint([(2, "attn.v", 2)], "scale", 3.0)
AT_SPANS = ExpertConstraint([(0, "attn.v", 2)], "force", place="spans")
PROMPTS = [[5, 9, 7, 8, 30, 31, 32, 12], [20, 21, 22, 23], [40, 41, 42, 43, 44, 45]]
SPANS = [(5, 7), (1, 2), (0, 3)]


def left_over(model: Any) -> list[str]:
    modules = dict(model.named_modules()) | dict(model.original_model.named_modules(prefix="hf"))
    found = [name for name, point in model.hook_dict.items() if point.fwd_hooks]
    return found + [name for name, module in modules.items() if "forward" in module.__dict__]


def test_the_order_of_parts_does_not_matter() -> None:
    every = [HEADS, CUT, EXPERTS, LOUD]
    whole = Intervention.of(HEADS) | CUT | EXPERTS | LOUD
    assert whole == Intervention.of(LOUD) + EXPERTS + CUT + HEADS
    assert hash(whole) == hash(LOUD | (Intervention.of(EXPERTS) | CUT | HEADS))
    assert whole | whole == whole
    assert whole != Intervention.of(HEADS) | CUT | EXPERTS
    assert whole.parts == tuple(every)
    assert len(whole) == 6


def test_units_under_one_setting_are_one_part() -> None:
    both = Intervention.of(Constraint(HeadSet(((0, 1),)))) | Constraint(HeadSet(((1, 2), (0, 1))))
    assert both == Intervention.of(HEADS)
    (experts,) = (Intervention.of(EXPERTS) | ExpertConstraint([(1, "attn.q", 3)])).experts
    assert [expert for name, expert in experts.pairs if name == "blocks.1.attn.q"] == [1, 3]


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (HEADS, Constraint(HeadSet(((1, 2),)), "scale", -1.0), r"head \(1, 2\) would be"),
        (
            EXPERTS,
            ExpertConstraint([(1, "attn.q", 1)], "scale", 2.0),
            "expert 1 of blocks.1.attn.q",
        ),
        (EXPERTS, ExpertConstraint([(1, "attn.q", 3)], "force"), "the gates of blocks.1.attn.q"),
        (
            ExpertConstraint([(1, "attn.q", 0)], "force"),
            ExpertConstraint([(1, "attn.q", 1)], "force"),
            "mode 'force' takes one expert",
        ),
        (HEADS, Intervention.of(CUT, gate="probe"), "gate 'oracle' and gate 'probe' cannot"),
    ],
)
def test_what_cannot_hold_at_once_is_told(one: Any, other: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = Intervention.of(one, gate="oracle") | other


def test_one_head_may_be_held_at_both_sites() -> None:
    at_both = Intervention.of(HEADS) | Constraint(HeadSet(((0, 1),), "attention"))
    assert [part.site for part in at_both.heads] == ["output", "attention"]


def test_it_can_be_looked_at() -> None:
    one = Intervention.of(HEADS, gate="probe") | EXPERTS
    assert repr(one) == (
        "<Intervention: output, zero, 2 heads + experts, off, 2 experts; gate probe>"
    )
    table = one.to_dataframe()
    assert table["kind"].tolist() == ["head", "head", "expert", "expert"]
    assert table["where"].tolist() == ["0", "1", "blocks.1.attn.q", "blocks.1.mlp.out"]
    assert table["number"].tolist() == [1, 2, 1, 0]
    assert "blocks.1.mlp.out" in one._repr_html_()
    assert repr(Intervention()) == "<Intervention: nothing; gate oracle>"


def test_it_is_made_from_whatever_constrain_takes() -> None:
    assert Intervention.of([(0, 1), (1, 2)]) == Intervention.of(HEADS)
    assert Intervention.of([(1, 3)], "attention", mode="scale", factor=0.5) == Intervention.of(CUT)
    assert Intervention.of(Intervention.of(CUT), gate="probe").gate == "probe"
    with pytest.raises(UserError, match="unknown gate 'guess'; known: oracle, probe, soft"):
        check_gate("guess")


@pytest.mark.parametrize(
    ("heads", "experts"),
    [
        (HEADS, EXPERTS),
        (CUT, ExpertConstraint(EXPERTS.pairs, "force")),
        (HEADS, AT_SPANS),
        (CUT, AT_SPANS),
        # A resampled run has other prompts, in which the outer constrain would know no spans.
        (Constraint(HEADS.heads, "resample"), EXPERTS),
    ],
)
@torch.no_grad()
def test_together_equals_one_inside_the_other(
    experts_model: HookedModel, heads: Constraint, experts: ExpertConstraint
) -> None:
    batch = TokenBatch.from_lists(PROMPTS)
    free = last_logits(experts_model, batch)
    with (
        constrain(experts_model, heads, at=SPANS),
        constrain(experts_model, experts, at=SPANS),
    ):
        nested, spoken = last_logits(experts_model, batch), speak(experts_model, batch)
    with constrain(experts_model, Intervention.of(heads) | experts, at=SPANS):
        together, said = last_logits(experts_model, batch), speak(experts_model, batch)
    torch.testing.assert_close(together, nested, rtol=0, atol=5e-5)
    assert torch.equal(said, spoken)
    with constrain(experts_model, heads, at=SPANS):
        heads_alone = last_logits(experts_model, batch)
    for other in (free, heads_alone):
        assert float((together - other).abs().max()) > 1e-4
    assert not left_over(experts_model)


@torch.no_grad()
def speak(model: Any, batch: TokenBatch) -> torch.Tensor:
    return model.original_model.generate(
        input_ids=batch.tokens,
        attention_mask=batch.mask.long(),
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
    )


@torch.no_grad()
def test_a_prompt_without_a_place_is_left_alone(experts_model: HookedModel) -> None:
    batch = TokenBatch.from_lists(PROMPTS)
    free = last_logits(experts_model, batch)
    for heads in (HEADS, CUT, Constraint(HEADS.heads, "resample")):
        with constrain(experts_model, heads, at=[SPANS[0], None, SPANS[2]]):
            held = last_logits(experts_model, batch)
        with constrain(experts_model, heads, at=SPANS):
            everywhere = last_logits(experts_model, batch)
        torch.testing.assert_close(held[1], free[1], rtol=0, atol=1e-5)
        torch.testing.assert_close(held[::2], everywhere[::2], rtol=0, atol=5e-5)
        assert float((everywhere[1] - free[1]).abs().max()) > 1e-4


def test_nothing_is_left_after_an_exception(experts_model: HookedModel) -> None:
    whole = Intervention.of(HEADS) | CUT | EXPERTS | LOUD
    with pytest.raises(RuntimeError, match="on purpose"), constrain(experts_model, whole, at=SPANS):
        raise RuntimeError("on purpose")
    assert not left_over(experts_model)

    def fail(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("on purpose")

    told = pytest.raises(UserError, match="RuntimeError: on purpose")
    with told, constrain(experts_model, whole, at=fail):
        last_logits(experts_model, TokenBatch.from_lists(PROMPTS))
    assert not left_over(experts_model)


@pytest.mark.parametrize("same_start", [True, False])
def test_a_sweep_under_spans_is_told(experts_model: HookedModel, same_start: bool) -> None:
    """Its batches have a row for every prompt and head: spans for the prompts do not fit."""
    clean = torch.tensor([PROMPTS[0], PROMPTS[0][::-1]])
    corrupted = clean.flip(0)
    if same_start:
        corrupted[:, :5] = clean[:, :5]
    metric = LogitDifference(torch.tensor([3, 3]), torch.tensor([4, 4]))
    for what in (HEADS, CUT, AT_SPANS):
        with (
            pytest.raises(UserError, match=r"2 spans for \d+ prompts"),
            constrain(experts_model, what, at=[(0, 2), (0, 2)]),
        ):
            patch_heads(experts_model, clean, corrupted, metric, progress=False)
        assert not left_over(experts_model)
    with constrain(experts_model, EXPERTS):
        patch_heads(experts_model, clean, corrupted, metric, progress=False)


@pytest.mark.parametrize("what", [HEADS, CUT, AT_SPANS])
def test_places_are_found_in_every_row_of_a_sweep(experts_model: HookedModel, what: Any) -> None:
    """With a shared beginning, which the sweep then does not leave out: as whole runs give it."""
    clean, corrupted = torch.tensor([PROMPTS[0]]), torch.tensor([PROMPTS[0]])
    corrupted[0, 5:] = clean[0, 5:].flip(0)
    metric = LogitDifference(torch.tensor([3]), torch.tensor([4]))

    def first_two(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (torch.arange(tokens.shape[1]) < 2)[None] & mask

    point = "blocks.1.attn.hook_z"
    with constrain(experts_model, what, at=first_two):
        swept = patch_heads(experts_model, clean, corrupted, metric, progress=False)[0, 1, 0]
        _, cache = experts_model.run_with_cache(clean, names_filter=point)

        def put(z: torch.Tensor, hook: Any) -> torch.Tensor:
            z = z.clone()
            z[:, :, 0] = cache[point][:, :, 0]
            return z

        logits = experts_model.run_with_hooks(corrupted, fwd_hooks=[(point, put)])
    torch.testing.assert_close(swept, metric(logits[:, -1])[0], rtol=0, atol=3e-5)


def test_resampling_cannot_be_held_in_a_sweep(experts_model: HookedModel) -> None:
    clean, corrupted = torch.tensor([PROMPTS[0]]), torch.tensor([PROMPTS[0][::-1]])
    metric = LogitDifference(torch.tensor([3]), torch.tensor([4]))

    def first_two(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (torch.arange(tokens.shape[1]) < 2)[None] & mask

    with (
        pytest.raises(UserError, match="mode 'resample' runs prompts of its own"),
        constrain(experts_model, [(0, 1)], at=first_two, mode="resample"),
    ):
        patch_heads(experts_model, clean, corrupted, metric, progress=False)
    assert not left_over(experts_model)


def test_places_are_asked_for_where_they_are_needed(experts_model: HookedModel) -> None:
    for what in (HEADS, AT_SPANS, Intervention.of(EXPERTS) | HEADS):
        with (
            pytest.raises(UserError, match="needs to know where the false object is"),
            constrain(experts_model, what),
        ):
            raise AssertionError("the constrain must not be entered")
    with constrain(experts_model, Intervention()) as model:
        assert model is experts_model


def test_another_site_than_its_own_is_refused() -> None:
    constraint = Constraint(HeadSet(((0, 1),), "output"))
    assert Intervention.of(constraint, "output") == Intervention.of(constraint)
    for what in (constraint.heads, constraint, Intervention.of(constraint)):
        with pytest.raises(UserError, match="chosen for site 'output', not 'attention'"):
            Intervention.of(what, "attention")
