"""Estimates of memory: by hand, and not below what methods really take, nor above twice that."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

import interp.models
from interp.forward.sizes import sizes_of
from interp.models import HookedModel
from interp.patching.chunks import graph_demand, row_demand

SCRIPT = Path(__file__).with_name("measured_memory.py")


def test_a_row_by_hand(tiny_llama: HookedModel) -> None:
    # 5 of 7 columns, d_model 32, MLP of 64, 2 key-value heads of 8, 4 heads, four bytes a number:
    # 5 · (3 · 64 + 10 · 32) + 2 · 7 · 2 · 8 + 4 · 5 · 7 = 2560 + 224 + 140 = 2924; 384 logits.
    sizes = sizes_of(tiny_llama)
    if sizes.eager:  # four patterns, and four times the inner values
        assert sizes.row(5, 7, logits=False) == 4 * (2924 + 5 * 64 + 3 * 140)
    else:
        assert sizes.row(5, 7, logits=False) == 4 * 2924
    assert sizes.row(5, 7) == sizes.row(5, 7, logits=False) + 4 * 384


def test_what_is_kept_by_hand(tiny_llama: HookedModel) -> None:
    # 3 layers of 2 · 7 · 16 keys and values, and twice 5 columns of inputs and of outputs of 32.
    assert sizes_of(tiny_llama).kept(5, 7, "z") == 4 * (3 * (224 + 2 * 320) + 5 * 384)
    assert sizes_of(tiny_llama).edit("k", 5, 7) == 4 * 3 * 5 * 16
    assert sizes_of(tiny_llama).edit("pattern", 5, 7) == 4 * 3 * 4 * 5 * 7


def test_narrow_weights_have_float32_activations(
    hf_factory: Any, plain_tokenizer: Any, tiny_llama: HookedModel
) -> None:
    half = interp.models.from_hf(
        hf_factory("llama", plain_tokenizer).to(torch.bfloat16), plain_tokenizer
    )
    taken = [sizes_of(model).edit("z", 5, 7) for model in (half, tiny_llama)]
    assert taken[0] == taken[1]


@pytest.mark.bridge_only
def test_every_expert_that_a_token_goes_to_counts(plain_tokenizer: Any) -> None:
    def inner(active: int) -> int:
        config = MixtralConfig(
            vocab_size=384,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=8,
            num_experts_per_tok=active,
        )
        return sizes_of(interp.models.from_hf(MixtralForCausalLM(config), plain_tokenizer)).inner

    assert inner(3) - inner(2) == 64


def test_everything_makes_more_of_it(tiny_llama: HookedModel, hf_factory: Any) -> None:
    few = graph_demand(tiny_llama, "k").least(8, 8)
    assert graph_demand(tiny_llama, "pattern").least(8, 8) > few
    assert graph_demand(tiny_llama, "pattern", places=8).least(8, 8) > few
    one = row_demand(tiny_llama, 4, edits=["z"])
    assert row_demand(tiny_llama, 4, "z", edits=["z"]).kept(8, 8) > one.kept(8, 8)
    assert row_demand(tiny_llama, 4, edits=["pattern"]).least(64, 64) > one.least(64, 64)
    assert one.of(2, 6, 8, 8) == 2 * one.kept(8, 8) + 6 * sizes_of(tiny_llama).row(8, 8)


@pytest.mark.bridge_only
def test_estimates_are_above_the_truth_and_below_twice_that() -> None:
    """In a process of its own, whose largest resident size is read from the kernel."""
    root = SCRIPT.parents[2]
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "vocabulary", "experts"],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env={**os.environ, **settings, "PYTHONPATH": str(root)},
    )
    found = json.loads(done.stdout)
    assert len(found) == 4
    ratios = {str(one["case"]): one["estimate"] / one["largest"] for one in found}
    assert all(1 <= ratio <= 2 for ratio in ratios.values()), ratios
