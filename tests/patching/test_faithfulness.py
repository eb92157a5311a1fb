"""The faithfulness curve: areas by hand, circuits against plain runs, its two ends, its null."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import UserError
from interp.models import HookedModel
from interp.patching import LogitDifference, TokenBatch
from interp.patching.circuit import head_node, mlp_node, parse_node
from interp.patching.faithfulness import (
    PROPORTIONS,
    Faithfulness,
    area_from_one,
    area_under,
    faithfulness_curve,
)
from tests.patching.conftest import seen_in

CLEAN = [[5, 9, 20, 33, 7, 41], [5, 8, 21, 34, 7, 40], [3, 9, 25, 30, 6, 44]]
CORRUPTED = [[5, 9, 77, 33, 7, 41], [5, 50, 21, 60, 7, 40], [3, 9, 25, 88, 6, 44]]
ANSWER, WRONG = torch.tensor([50, 51, 52]), torch.tensor([60, 61, 62])


def metric() -> LogitDifference:
    return LogitDifference(ANSWER, WRONG)


def nodes_of(model: Any, *, mlps: bool) -> list[str]:
    cfg = model.cfg
    names = [head_node(at, head) for at in range(cfg.n_layers) for head in range(cfg.n_heads)]
    return names + ([mlp_node(layer) for layer in range(cfg.n_layers)] if mlps else [])


def curve_of(circuit: Any, random: Any = None, **changes: Any) -> Faithfulness:
    arguments: dict[str, Any] = {
        "proportions": (0.1, 0.5, 1.0),
        "counts": (1, 5, 10),
        "circuit": torch.tensor(circuit),
        "clean": torch.tensor([4.0, 6.0]),
        "corrupted": torch.tensor([1.0, -1.0]),
        "random": torch.tensor(random) if random is not None else torch.empty(0, 2, 3),
        "groups": ("a", "b"),
    }
    return Faithfulness(**(arguments | changes))


def test_curve_and_areas_by_hand() -> None:
    """Means: clean 5, corrupted 0, circuits 1, 6 and 5: f is 0.2, 1.2 and 1."""
    found = curve_of([[2.0, 5.0, 4.0], [0.0, 7.0, 6.0]])
    assert found.curve == pytest.approx([0.2, 1.2, 1.0])
    assert found.cpr[0] == pytest.approx(0.4 * 0.7 + 0.5 * 1.1)
    assert found.cmd[0] == pytest.approx(0.4 * (0.8 + 0.2) / 2 + 0.5 * (0.2 + 0) / 2)
    assert found.cpr[1] <= found.cpr[0] <= found.cpr[2]


def test_a_perfect_circuit_has_an_area_of_all_but_the_first_point() -> None:
    ones = np.ones((1, len(PROPORTIONS)))
    assert area_under(PROPORTIONS, ones)[0] == pytest.approx(0.999)
    assert area_from_one(PROPORTIONS, ones)[0] == 0
    assert area_from_one(PROPORTIONS, 0 * ones)[0] == pytest.approx(0.999)


def test_f_is_a_ratio_of_means() -> None:
    """The first prompt alone would give 3, the second 1/101."""
    found = curve_of(
        [[3.0, 0.0, 0.0], [1.0, 0.0, 0.0]],
        clean=torch.tensor([1.0, 101.0]),
        corrupted=torch.tensor([0.0, 0.0]),
    )
    assert found.curve[0] == pytest.approx(4 / 102)


def test_intervals_draw_groups() -> None:
    """One group leaves nothing to draw; of two, the two prompts' own ratios are the ends."""
    circuit = [[2.5, 4.0, 4.0], [-1.0, 6.0, 6.0]]
    table = curve_of(circuit).to_dataframe()
    assert (table["ci_low"][0], table["ci_high"][0]) == pytest.approx((0, 0.5))
    alone = curve_of(circuit, groups=("a", "a")).to_dataframe()
    assert alone["ci_low"].tolist() == pytest.approx(alone["faithfulness"].tolist())
    assert alone["random_mean"].isna().all()


@cache
def corrupted_run(model: Any, prompt: int) -> dict[str, torch.Tensor]:
    """What a corrupted prompt's plain run shows of every head and MLP."""
    layers = range(model.cfg.n_layers)
    heads = [f"blocks.{layer}.attn.hook_z" for layer in layers]
    return seen_in(
        model, CORRUPTED[prompt], [*heads, *(f"blocks.{layer}.hook_mlp_out" for layer in layers)]
    )


@torch.no_grad()
def slow(
    model: Any, prompt: int, dropped: set[str], full_logits: Callable[..., torch.Tensor]
) -> float:
    """The metric of a clean prompt with some nodes from the corrupted run: plain whole runs."""
    seen = corrupted_run(model, prompt)
    by_hook: dict[str, list[int | None]] = {}
    for name in dropped:
        layer, head = parse_node(name)
        hook = f"blocks.{layer}.hook_mlp_out" if head is None else f"blocks.{layer}.attn.hook_z"
        by_hook.setdefault(hook, []).append(head)

    def put(name: str) -> Any:
        def hook_function(value: torch.Tensor, hook: Any) -> torch.Tensor:
            other = seen[name][None]
            if by_hook[name] == [None]:
                return other
            new = value.clone()
            new[:, :, by_hook[name]] = other[:, :, by_hook[name]]
            return new

        return name, hook_function

    logits = full_logits(model, CLEAN[prompt], [put(name) for name in by_hook])
    return float(logits[ANSWER[prompt]] - logits[WRONG[prompt]])


@pytest.mark.parametrize("mlps", [False, True])
def test_circuits_equal_plain_runs(
    mlps: bool, family: HookedModel, full_logits: Callable[..., torch.Tensor]
) -> None:
    ranking = nodes_of(family, mlps=mlps)[::-1]
    proportions = (0.05, 0.3, 0.7, 1.0)
    found = faithfulness_curve(
        family,
        TokenBatch.from_lists(CLEAN),
        TokenBatch.from_lists(CORRUPTED),
        metric(),
        ranking=ranking,
        proportions=proportions,
        n_random=0,
        progress=False,
    )
    assert found.counts == tuple(int(p * len(ranking)) for p in proportions)
    for place, count in enumerate(found.counts):
        for prompt in range((place + mlps) % 2, len(CLEAN), 2):
            expected = slow(family, prompt, set(ranking[count:]), full_logits)
            assert float(found.circuit[prompt, place]) == pytest.approx(expected, abs=2e-4)


def test_nothing_kept_is_the_corrupted_run_and_all_the_clean_one(tiny_llama: HookedModel) -> None:
    """With every head and MLP from the corrupted run only the last token's embedding is clean."""
    found = faithfulness_curve(
        tiny_llama,
        TokenBatch.from_lists(CLEAN),
        TokenBatch.from_lists(CORRUPTED),
        metric(),
        ranking=nodes_of(tiny_llama, mlps=True),
        n_random=2,
        progress=False,
    )
    assert found.counts[0] == 0
    assert found.curve[0] == pytest.approx(0, abs=1e-4)
    assert found.curve[-1] == pytest.approx(1, abs=1e-4)
    assert found.random_curves[:, 0] == pytest.approx(0, abs=1e-4)
    assert found.random_curves[:, -1] == pytest.approx(1, abs=1e-4)
    assert len(found.to_dataframe()) == len(PROPORTIONS)


def test_the_heads_that_matter_beat_a_random_order(
    planted: HookedModel, planted_heads: dict[str, tuple[int, int]]
) -> None:
    """Two heads carry all; the order that begins with them has them in every circuit."""
    tokens = planted.tokenizer.encode
    clean = [tokens(f"Why is city{i} the capital of land{i + 1}?") for i in range(8)]
    corrupted = [tokens(f"Why is city{i} the capital of land{i + 2}?") for i in range(8)]
    lands = planted.tokenizer.convert_tokens_to_ids([f"land{i}" for i in range(10)])
    measure = LogitDifference(torch.tensor(lands[1:9]), torch.tensor(lands[2:10]))
    both = list(planted_heads.values())
    others = [(layer, head) for layer in range(3) for head in range(4)]
    found = faithfulness_curve(
        planted,
        TokenBatch.from_lists(clean),
        TokenBatch.from_lists(corrupted),
        measure,
        ranking=[*both, *(head for head in others if head not in both)],
        proportions=(0.17, 0.5, 1.0),
        n_random=8,
        progress=False,
    )
    assert found.counts[0] == 2
    assert found.curve == pytest.approx([1, 1, 1], abs=0.1)
    assert found.cpr[0] > found.random_cpr.mean() + 0.1
    assert found.cmd[0] < found.random_cmd.mean() - 0.1
    assert found.random_curves.min() == pytest.approx(0, abs=0.1)
    names = [trace.name for trace in found.plot().data]
    assert names.count("random orders") == 8
    assert "this ranking" in names


def test_padded_prompts_have_the_same_curve(tiny_llama: HookedModel) -> None:
    """A longer prompt in the batch changes nothing for the others, memory neither."""
    ranking = nodes_of(tiny_llama, mlps=True)

    def circuit(prompts: list[int], pad: list[int], budget: int | None = None) -> torch.Tensor:
        sides = []
        for rows in (CLEAN, CORRUPTED):
            last = [*pad, *rows[prompts[-1]]]
            sides.append(TokenBatch.from_lists([*(rows[i] for i in prompts[:-1]), last]))
        return faithfulness_curve(
            tiny_llama,
            sides[0],
            sides[1],
            metric().take(torch.tensor(prompts)),
            ranking=ranking,
            n_random=0,
            budget=budget,
            progress=False,
        ).circuit

    padded = circuit([0, 1, 2], pad=[1, 2, 3, 4])
    torch.testing.assert_close(padded[:2], circuit([0, 1], pad=[]), atol=5e-5, rtol=1e-5)
    small = circuit([0, 1, 2], pad=[1, 2, 3, 4], budget=260_000)
    torch.testing.assert_close(padded, small, atol=5e-5, rtol=1e-5)


def test_wrong_rankings_are_told(tiny_llama: HookedModel) -> None:
    clean, corrupted = TokenBatch.from_lists(CLEAN), TokenBatch.from_lists(CORRUPTED)
    cases: list[tuple[list[Any], dict[str, Any], str]] = [
        ([], {}, "ranking is empty"),
        (["a0.h0", (0, 0)], {}, "comes twice"),
        (["a9.h0"], {}, r"head \(9, 0\) does not exist"),
        (["m9"], {}, r"unit \(9, 0\) does not exist"),
        (["x"], {}, "is no node"),
        ([(0, 0)], {"proportions": (0.5, 0.2)}, "proportions rise"),
        ([(0, 0)], {"proportions": (0.5, 2.0)}, "proportions rise"),
    ]
    for ranking, more, said in cases:
        with pytest.raises(UserError, match=said):
            faithfulness_curve(tiny_llama, clean, corrupted, metric(), ranking=ranking, **more)
    with pytest.raises(UserError, match="faithfulness is not defined"):
        faithfulness_curve(
            tiny_llama, clean, clean, metric(), ranking=[(0, 0)], n_random=0, progress=False
        )
    with pytest.raises(UserError, match="differ in length"):
        faithfulness_curve(
            tiny_llama,
            clean,
            TokenBatch.from_lists([row[1:] for row in CLEAN]),
            metric(),
            ranking=[(0, 0)],
        )
