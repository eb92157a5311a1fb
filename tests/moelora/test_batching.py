"""Batches of like length: every example once, less padding, the same order when taken up again."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import interp.commands.train
from interp.commands.train import plain_settings
from interp.errors import UserError
from interp.moelora.training.batching import LikeLengths
from interp.moelora.training.training import TrainingSettings

Train = Callable[[TrainingSettings, Path], Path]


def batches_of(sampler: LikeLengths, size: int) -> list[list[int]]:
    order = list(sampler)
    return [order[at : at + size] for at in range(0, len(order), size)]


def padding(sampler: LikeLengths, size: int) -> float:
    """The share of padding in whole batches."""
    whole = [
        [sampler.lengths[index] for index in batch]
        for batch in batches_of(sampler, size)
        if len(batch) == size
    ]
    return 1 - sum(map(sum, whole)) / sum(max(batch) * size for batch in whole)


def test_all_examples_together_by_hand() -> None:
    """Six lengths in batches of two: the neighbours by length are together, in a drawn order."""
    sampler = LikeLengths([9, 1, 5, 2, 8, 4], batch=2, together=3, seed=0)
    assert sorted(map(sorted, batches_of(sampler, 2))) == [[0, 4], [1, 3], [2, 5]]


@pytest.mark.parametrize("count", [1, 7, 48, 50])
def test_every_example_once(count: int) -> None:
    sampler = LikeLengths(list(range(count)), batch=4, together=3, seed=1)
    assert sorted(sampler) == list(range(count))
    assert len(sampler) == count


def test_an_incomplete_batch_comes_last() -> None:
    """The Trainer leaves out what is behind the last whole batch."""
    sampler = LikeLengths([5] * 10, batch=4, together=8, seed=0)
    assert [len(batch) for batch in batches_of(sampler, 4)] == [4, 4, 2]


def test_less_padding_the_more_are_drawn_together() -> None:
    """The control is one batch at a time, which is a random order."""
    rng = random.Random(0)
    lengths = [rng.randint(40, 120) for _ in range(400)]
    found = [
        padding(LikeLengths(lengths, batch=4, together=together, seed=0), 4)
        for together in (1, 4, 100)
    ]
    assert found[0] > 0.2
    assert found[0] > 2 * found[1] > 4 * found[2]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = LikeLengths([3, 1, 2] * 20, batch=2, together=4, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 2) == order(0, 2)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


class _Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_a_run_taken_up_again_ends_with_the_same_bits(
    tiny_training: TrainingSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    train: Train,
    same_weights: Callable[[Path, Path], bool],
) -> None:
    """With few examples, so that the run is stopped in its second epoch."""
    settings = replace(
        tiny_training, limit=12, steps=4, save_every=1, accumulate=2, like_lengths=2, method="lora"
    )
    whole = train(settings, tmp_path / "whole")
    make = interp.commands.train.make_trainer

    def make_stopping(*args: Any, **kwargs: Any) -> Any:
        trainer = make(*args, **kwargs)
        trainer.add_callback(_Stop())
        return trainer

    with monkeypatch.context() as patched:
        patched.setattr(interp.commands.train, "make_trainer", make_stopping)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "stopped")
    assert same_weights(train(settings, tmp_path / "stopped"), whole)
    with pytest.raises(UserError, match="like_lengths"):
        train(replace(settings, like_lengths=3), whole)


def test_settings_of_before_there_was_any_keep_their_identity(
    tiny_training: TrainingSettings,
) -> None:
    assert "like_lengths" not in plain_settings(tiny_training)
    assert plain_settings(replace(tiny_training, like_lengths=4))["like_lengths"] == 4
    with pytest.raises(UserError, match="like_lengths must be at least 1"):
        replace(tiny_training, like_lengths=0)
