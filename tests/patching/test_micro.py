"""A micro model whose every patched output is worked out by hand.

Norms hand their input on, queries are zero (every position attends evenly to itself and all
before it), the MLP is linear, and all values are small whole numbers. With x the number that a
token stands for, and "mean" over this and all earlier positions:

    layer 0, head 0   b = mean x           layer 0, head 1   c = 7 (a mean of sevens)
    layer 0, MLP      m = 3 b
    layer 1, head 0   u = mean b           layer 1, head 1   v = mean m
    layer 2, head 0   w = mean u           layer 2, head 1   writes nothing
    logit(answer) = u + 10 v + 100 c + m + 16 w, and the logit of every other token is 0

For x = 12, 36, 60, 84:  b = 12, 24, 36, 48;  m = 36, 72, 108, 144;  u = 12, 18, 24, 30;
v = 90 and w = 21 at the end;  logit = 30 + 900 + 700 + 144 + 336 = 2110.
"""

from typing import Any

import pytest
import torch

from interp.models import HookedModel
from interp.patching import (
    ActivationEdit,
    AttentionEdit,
    LogitDifference,
    TokenBatch,
    attribute_heads,
    last_logits,
    patch_heads,
    record_run,
    sweep_heads,
    sweep_sets,
)

PROMPT = [1, 3, 5, 7]  # token t stands for x = 12 t
UNEDITED = 2110.0
M = 4  # where the MLP of layer 0 writes
LAYERS, HEADS, D_HEAD = 3, 2, 4


def batch() -> TokenBatch:
    return TokenBatch.from_lists([PROMPT])


def logit() -> LogitDifference:
    return LogitDifference(torch.tensor([0]), torch.tensor([1]))


def columns(*which: int) -> torch.Tensor:
    return torch.tensor([[column in which for column in range(len(PROMPT))]])


# What the answer's logit becomes with each head edited, one row a layer.
ZERO_AT_1 = {
    # b1 = 0, m1 = 0: u = 12 6 16 24, v = 288/4 = 72, w = 58/4 = 14.5;
    # 24 + 720 + 700 + 144 + 232 = 1820. And u1 = 0: w = 66/4 = 16.5, 72 less.
    False: [[1820, 2110], [2038, 2110], [2110, 2110]],
    # Layer 1 is held at position 1: u1 stays 18, so w = 70/4 = 17.5 and 48 more than 1820.
    True: [[1868, 2110], [2038, 2110], [2110, 2110]],
}
ZERO_AT_3 = {
    # b3 = 0, m3 = 0: u3 = 72/4 = 18, v = 216/4 = 54, w = 72/4 = 18; 18 + 540 + 700 + 0 + 288.
    # c3 = 0: 700 less. u3 = 0: w = 54/4 = 13.5, so 30 and 120 less. v: 900 less. w: 336 less.
    False: [[1546, 1410], [1960, 1210], [1774, 2110]],
    # Only the MLP passes b3 on: m3 = 0, 144 less; and u3 directly: 30 less.
    True: [[1966, 1410], [2080, 1210], [1774, 2110]],
}
CUT_1 = {
    # Positions 2 and 3 do not read position 1: b2 = 72/2 = 36, b3 = 156/3 = 52, m3 = 156,
    # u3 = 124/4 = 31, v = 372/4 = 93, w = 85/4 = 21.25; 31 + 930 + 700 + 156 + 340 = 2157.
    # u2 = 48/2 = 24, u3 = 96/3 = 32, w = 86/4 = 21.5: 2 + 8 more. v = 288/3 = 96: 60 more.
    # w = 66/3 = 22: 16 more.
    False: [[2157, 2110], [2120, 2170], [2126, 2110]],
    # Layers above are held at positions 2 and 3: only m3 = 156, 12 more; only u3 = 32, 2 more.
    True: [[2122, 2110], [2112, 2170], [2126, 2110]],
}


def test_the_unedited_model_is_as_computed_by_hand(micro: HookedModel) -> None:
    assert last_logits(micro, batch())[0, -1].tolist() == [UNEDITED, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (ActivationEdit(columns(1)), ZERO_AT_1),
        (ActivationEdit(columns(3)), ZERO_AT_3),
        (AttentionEdit(columns(1)), CUT_1),
    ],
    ids=["zero at 1", "zero at 3", "cut 1"],
)
def test_every_head_as_computed_by_hand(
    micro: HookedModel, edit: Any, expected: dict[bool, Any], freeze: bool
) -> None:
    values = sweep_heads(micro, batch(), edit, metrics=[logit()], freeze=freeze, progress=False)
    # Thirds are not exact in binary; the numbers are.
    torch.testing.assert_close(
        values[0, 0], torch.tensor(expected[freeze], dtype=torch.float32), rtol=0, atol=2e-3
    )


def test_halves_and_sets_by_hand(micro: HookedModel) -> None:
    edit = ActivationEdit(columns(3), scale=0.5)
    sets = [(), [(0, 1)], [(0, 1), (1, 1)], [(1, 0), (2, 0)]]
    # Half of c: 350 less; and half of v: 450 less. u3 = 15 gives w = 69/4, of which half is kept:
    # 2110 − 15 − 336 + 8 · 17.25 = 1897.
    expected = [2110.0, 1760.0, 1310.0, 1897.0]
    values = sweep_sets(micro, batch(), edit, sets=sets, metrics=[logit()], progress=False)
    assert values[0, 0].tolist() == expected


def test_attention_weighted_down_by_hand(micro: HookedModel) -> None:
    # Head (2, 0) reads positions 0 to 3 with weights 1 : 1/2 : 1 : 1, so w = 75/3.5.
    edit = AttentionEdit(columns(1), factor=0.5)
    (value,) = sweep_sets(micro, batch(), edit, sets=[[(2, 0)]], metrics=[logit()], progress=False)[
        0, 0
    ]
    assert float(value) == pytest.approx(2110 + 16 * (75 / 3.5 - 21), abs=1e-3)


def test_a_source_takes_the_heads_place_by_hand(micro: HookedModel) -> None:
    source = torch.zeros(LAYERS, 1, 3, HEADS, D_HEAD)  # columns 1 to 3
    source[0, 0, 0, 0, 0] = 120.0  # b1 = 120, m1 = 360: u = 12 66 56 54, v = 648/4, w = 188/4
    edit = ActivationEdit(columns(1), source=source, first=1)
    values = sweep_heads(micro, batch(), edit, metrics=[logit()], heads=[(0, 0)], progress=False)
    assert float(values[0, 0, 0, 0]) == 54 + 10 * 162 + 700 + 144 + 16 * 47
    assert int(torch.isfinite(values).sum()) == 1


def test_patch_heads_by_hand(micro: HookedModel) -> None:
    """Clean x = 12, 12, 60, 84: b = 12 12 28 42, m = 36 36 84 126; u = 12 12 52/3 47/2."""
    patched = patch_heads(
        micro,
        torch.tensor([[1, 1, 5, 7]]),
        torch.tensor([PROMPT]),
        lambda logits: logits[:, 0],
        progress=False,
    )
    u2, u3, v3 = 52 / 3, 94 / 4, 282 / 4
    w3 = (12 + 12 + u2 + u3) / 4
    expected = [
        [u3 + 10 * v3 + 700 + 126 + 16 * w3, 2110],
        [u3 + 900 + 700 + 144 + 16 * w3, 30 + 10 * v3 + 700 + 144 + 336],
        [30 + 900 + 700 + 144 + 16 * w3, 2110],
    ]
    torch.testing.assert_close(patched[0], torch.tensor(expected), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    "edit", [ActivationEdit(columns(1)), ActivationEdit(columns(3), scale=0.25)]
)
def test_attribution_is_exact_where_the_model_is_linear(micro: HookedModel, edit: Any) -> None:
    exact = sweep_heads(micro, batch(), edit, metrics=[logit()], progress=False) - UNEDITED
    estimate = attribute_heads(micro, batch(), edit, metrics=[logit()], progress=False)
    assert float(exact.abs().max()) > 100
    torch.testing.assert_close(estimate, exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize("factor", [0.0, 0.5, 3.0])
def test_attention_attribution_is_exact_where_the_model_is_linear(
    micro: HookedModel, factor: float
) -> None:
    edit = AttentionEdit(columns(1), factor)
    exact = sweep_heads(micro, batch(), edit, metrics=[logit()], progress=False) - UNEDITED
    estimate = attribute_heads(micro, batch(), edit, metrics=[logit()], progress=False)
    assert float(exact.abs().max()) > 10
    torch.testing.assert_close(estimate, exact, rtol=0, atol=5e-3)


def test_the_recorded_outputs_are_as_computed_by_hand(micro: HookedModel) -> None:
    run = record_run(micro, batch(), start=1)
    assert run.z[0, 0, :, 0, 0].tolist() == [24, 36, 48]
    assert run.z[1, 0, :, 0, 0].tolist() == [18, 24, 30]
    assert run.resid_pre[1, 0, :, M].tolist() == [72, 108, 144]
    assert float(run.logits[0, 0]) == UNEDITED
