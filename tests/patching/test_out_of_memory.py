"""What does not fit into memory runs by halves; the numbers are those of the whole batch."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tqdm.auto import tqdm

from interp.errors import UserError
from interp.forward.out_of_memory import OutOfMemory, halving, is_out_of_memory, over_parts
from interp.forward.partial import last_logits, record_run
from interp.models import HookedModel
from interp.patching import LogitDifference, TokenBatch, faithfulness_curve, patch, patch_paths

CLEAN = TokenBatch.from_lists(
    [[5, 9, 7, 8, 30, 31, 32, 12], [20, 21, 22], [40, 41, 42, 43, 44, 45], [1, 2, 3, 4]]
)
CORRUPTED = TokenBatch.from_lists(
    [[5, 6, 7, 8, 30, 31, 32, 12], [20, 21, 29], [40, 41, 42, 43, 49, 45], [7, 2, 3, 9]]
)
METRIC = LogitDifference(torch.tensor([3, 14, 15, 16]), torch.tensor([65, 35, 89, 90]))
GPU_MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB"


@pytest.fixture(autouse=True)
def _quick_collection() -> Iterator[None]:
    """What is there before a test is left alone when memory is freed: it is most of it all."""
    gc.freeze()
    yield
    gc.unfreeze()


def full(message: str = GPU_MESSAGE) -> torch.cuda.OutOfMemoryError:
    return torch.cuda.OutOfMemoryError(message)


@contextmanager
def room_for(model: HookedModel, rows: int) -> Iterator[list[int]]:
    """A model whose middle MLP has memory for so many rows; yields the rows it was given."""
    seen: list[int] = []

    def refuse(module: Any, args: Any) -> None:
        seen.append(len(args[0]))
        if len(args[0]) > rows:
            raise full()

    mlp: Any = model.blocks[1].mlp
    handle = getattr(mlp, "original_component", mlp).register_forward_pre_hook(refuse)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "error",
    [
        full(),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:125] . DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 4 bytes. Error code 12"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GiB)"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_the_words_of_every_allocator(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_what_this_machine_really_says() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_other_errors_are_not_about_memory() -> None:
    others = [RuntimeError("size mismatch"), ValueError("out of memory"), UserError("memory")]
    assert not any(is_out_of_memory(error) for error in others)


def test_halves_in_order_and_no_larger_ones_afterwards() -> None:
    tried: list[list[int]] = []

    def run(items: list[int]) -> int:
        tried.append(items)
        if len(items) > 2:
            raise full()
        return sum(items)

    done = list(halving([range(5), range(5, 9)], run))
    assert done == [([0, 1], 1), ([2], 2), ([3, 4], 7), ([5, 6], 11), ([7, 8], 15)]
    assert tried[:3] == [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1]]
    assert all(len(items) <= 2 for items in tried[3:])


def test_nothing_is_cut_where_there_is_room() -> None:
    assert list(halving([[1, 2, 3], [4]], sum)) == [([1, 2, 3], 6), ([4], 4)]


def test_the_bar_goes_back() -> None:
    with tqdm(total=4, disable=True) as hidden, tqdm(total=4) as bar:
        for one in (hidden, bar):

            def run(items: list[int], one: Any = one) -> None:
                for place, _ in enumerate(items):
                    one.update()
                    if place > 1:
                        raise full()

            list(halving([range(4)], run, bar=one))
        assert bar.n == 4


def test_the_tensors_of_a_failed_run_are_gone_when_the_next_begins() -> None:
    held: list[Any] = []

    def run(items: list[int]) -> None:
        assert all(one() is None for one in held)
        large = torch.zeros(8)
        held.append(weakref.ref(large))
        if len(items) > 1:
            raise full()

    gc.disable()  # halving itself has to see to it
    try:
        list(halving([range(4)], run))
    finally:
        gc.enable()
    assert len(held) == 6


def test_an_inner_failure_is_an_outer_batch_too_large() -> None:
    def inner(prompts: list[int]) -> list[int]:
        def run(units: list[int]) -> int:
            if len(units) * len(prompts) > 2:
                raise full()
            return len(units)

        return [done for _, done in halving([range(4)], run)]

    done = list(halving([range(6)], inner))
    assert [len(prompts) for prompts, _ in done] == [2, 1, 2, 1]
    assert [units for _, units in done] == [[1] * 4, [2, 2], [1] * 4, [2, 2]]


@pytest.mark.parametrize("divisible", [True, False])
def test_what_does_not_fit_at_all_is_told_in_one_line(divisible: bool) -> None:
    def run(items: list[int]) -> None:
        raise full(f"{GPU_MESSAGE}\nmore lines")

    with pytest.raises(OutOfMemory) as caught:
        list(halving([range(3)], run, divisible=divisible, what="one prompt of 7 tokens"))
    assert str(caught.value) == (
        f"out of memory with one prompt of 7 tokens ({GPU_MESSAGE}): give shorter prompts, a "
        "dtype of fewer bytes (bfloat16), or a device with more memory"
    )
    assert caught.value.__context__ is None  # it would hold the tensors


def test_other_errors_pass() -> None:
    def run(items: list[int]) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(halving([range(3)], run))


def test_parts_of_a_batch(tiny_llama: HookedModel) -> None:
    whole = last_logits(tiny_llama, CLEAN)[:, -1]
    rows: list[range] = []

    def run(part: TokenBatch, some: range) -> torch.Tensor:
        rows.append(some)
        return record_run(tiny_llama, part).logits

    with room_for(tiny_llama, 1):
        found = torch.cat(list(over_parts(CLEAN, run, batch_tokens=16)))
    assert rows == [range(2), range(1), range(1, 2), range(2, 3), range(3, 4)]
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)


def test_logits_by_halves(tiny_llama: HookedModel) -> None:
    whole = last_logits(tiny_llama, CLEAN, keep=2)
    with room_for(tiny_llama, 1) as seen:
        found = last_logits(tiny_llama, CLEAN, keep=2)
    assert seen == [4, 2, 1, 1, 1, 1]
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5)


def test_hooks_of_somebody_see_the_whole_batch(tiny_llama: HookedModel) -> None:
    """They may count rows."""
    seen: list[int] = []

    def look(value: torch.Tensor, hook: Any) -> None:
        seen.append(len(value))

    hooks = [("blocks.0.hook_resid_pre", look)]
    with room_for(tiny_llama, 3), tiny_llama.hooks(fwd_hooks=hooks), pytest.raises(RuntimeError):
        last_logits(tiny_llama, CLEAN)
    assert seen == [4]


UNITS = [(0, 0), (0, 1), (1, 1)]
SETTINGS: list[dict[str, Any]] = [
    {"component": "z", "units": UNITS},
    {"component": "k", "positions": "each", "units": UNITS[1:]},
    {"component": "pattern", "units": UNITS},
    {"component": "mlp_out", "source": "zero"},
    {"component": "v", "source": "mean", "units": UNITS},
    {"method": "attribution"},
    {"method": "ig", "steps": 1},
    {"method": "atp*", "component": "q"},
    {"method": "atp*", "component": "k", "positions": "each"},
    {"method": "screen", "top_k": 3},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda one: "-".join(map(str, one)))
def test_patching_by_halves_gives_the_same_numbers(
    tiny_llama: HookedModel, settings: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"progress": False, **settings}
    rows = [1, 2, 3]  # of 3, 6 and 4 tokens
    prompts = CLEAN.take(rows), CORRUPTED.take(rows), METRIC.take(torch.tensor(rows))
    whole = patch(tiny_llama, *prompts, **options)
    with room_for(tiny_llama, 1) as seen:
        by_one = patch(tiny_llama, *prompts, **options)
    assert max(seen) > 1  # it was too much at first
    for name in ("values", "corrupted", "clean"):
        torch.testing.assert_close(
            getattr(by_one, name), getattr(whole, name), rtol=0, atol=1e-5, equal_nan=True
        )


@pytest.mark.parametrize("threads", [1, 2])
def test_batches_side_by_side_by_halves(tiny_llama: HookedModel, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = patch(tiny_llama, CLEAN, CORRUPTED, METRIC, progress=False)
        with room_for(tiny_llama, 5):
            halved = patch(tiny_llama, CLEAN, CORRUPTED, METRIC, progress=False)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(halved.values, whole.values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mlps", ["frozen", "recomputed"])
def test_paths_by_halves_give_the_same_numbers(tiny_llama: HookedModel, mlps: str) -> None:
    options: dict[str, Any] = {"receivers": [(2, 1)], "mlps": mlps, "progress": False}
    whole = patch_paths(tiny_llama, CLEAN, CORRUPTED, METRIC, **options)
    with room_for(tiny_llama, 1):
        by_one = patch_paths(tiny_llama, CLEAN, CORRUPTED, METRIC, **options)
    torch.testing.assert_close(by_one.values, whole.values, rtol=0, atol=1e-5, equal_nan=True)


def test_circuits_by_halves_give_the_same_numbers(tiny_llama: HookedModel) -> None:
    ranking = [(0, 1), (1, 2), (2, 3), "m1"]
    options: dict[str, Any] = {"n_random": 1, "progress": False}
    whole = faithfulness_curve(tiny_llama, CLEAN, CORRUPTED, METRIC, ranking=ranking, **options)
    with room_for(tiny_llama, 1):
        by_one = faithfulness_curve(
            tiny_llama, CLEAN, CORRUPTED, METRIC, ranking=ranking, **options
        )
    torch.testing.assert_close(by_one.circuit, whole.circuit, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["exact", "attribution", "ig", "atp*"])
def test_one_prompt_that_does_not_fit_is_told(tiny_llama: HookedModel, method: str) -> None:
    with room_for(tiny_llama, 0), pytest.raises(UserError, match="give shorter prompts") as caught:
        patch(tiny_llama, CLEAN, CORRUPTED, METRIC, method=method, progress=False)
    assert "\n" not in str(caught.value)


def test_a_metric_of_all_prompts_at_once_is_not_cut(tiny_llama: HookedModel) -> None:
    def own(logits: torch.Tensor) -> torch.Tensor:
        assert len(logits) == len(CLEAN)
        return logits[:, 3]

    whole = patch(tiny_llama, CLEAN, CORRUPTED, own, progress=False)
    with room_for(tiny_llama, 4):
        halved = patch(tiny_llama, CLEAN, CORRUPTED, own, progress=False)
    torch.testing.assert_close(halved.values, whole.values, rtol=0, atol=1e-5)
    with room_for(tiny_llama, 3), pytest.raises(UserError, match="out of memory with"):
        patch(tiny_llama, CLEAN, CORRUPTED, own, progress=False)
