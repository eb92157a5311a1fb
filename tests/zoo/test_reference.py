"""The reference is right by itself: known layouts, known sums, transformers' own mask."""

import pytest
import torch
from torch import Tensor

from tests.zoo.checks import agrees_with_own_mask
from tests.zoo.registry import ZOO
from tests.zoo.specimen import CLEAN, CORRUPTED, SPAN, Specimen

pytestmark = pytest.mark.filterwarnings("ignore")


def columns_of(name: str, what: str) -> list[list[int]]:
    one = Specimen(ZOO[name])
    return [columns.tolist() for columns in one.reference.columns(0).of(what)]


def blocks(*starts: int, size: int = 8) -> list[list[int]]:
    return [list(range(start, start + size)) for start in starts]


@pytest.mark.parametrize(
    ("name", "queries", "keys", "values"),
    [
        # three blocks
        ("GPT-2", blocks(0, 8, 16, 24), blocks(32, 40, 48, 56), blocks(64, 72, 80, 88)),
        # by head: query, key, value
        ("GPT-NeoX", blocks(0, 24, 48, 72), blocks(8, 32, 56, 80), blocks(16, 40, 64, 88)),
        # four queries, one key, one value
        ("Falcon", blocks(0, 8, 16, 24), blocks(32), blocks(40)),
        # by group: two queries, a key, a value
        ("Falcon, new decoder", blocks(0, 8, 32, 40), blocks(16, 48), blocks(24, 56)),
        # projections of their own
        ("Llama", blocks(0, 8, 16, 24), blocks(0, 8), blocks(0, 8)),
    ],
)
def test_columns_are_found_in_joint_projections(
    name: str, queries: list[list[int]], keys: list[list[int]], values: list[list[int]]
) -> None:
    assert columns_of(name, "q") == queries
    assert columns_of(name, "k") == keys
    assert columns_of(name, "v") == values


def test_the_query_beside_a_gate_is_found() -> None:
    one = Specimen(ZOO["Qwen 3 Next"])
    columns = [columns.tolist() for columns in one.reference.columns(1).of("q")]
    assert columns == blocks(0, 16, 32, 48)  # each before the gate of its head


@pytest.mark.parametrize("name", ["Llama", "BLOOM", "XGLM"])
def test_cutting_scores_is_what_the_mask_does(name: str) -> None:
    one = Specimen(ZOO[name])
    heads = one.heads([0, 2])
    with torch.no_grad():
        cut = one.reference.logits(CLEAN, one.cuts(heads, SPAN))
        free = one.reference.logits(CLEAN)
        agrees_with_own_mask(one, heads, cut)
        assert float((cut - free).abs().max()) > 0.01


def test_a_cut_that_is_not_the_mask_is_noticed() -> None:
    one = Specimen(ZOO["Llama"])
    with torch.no_grad(), pytest.raises(AssertionError, match="not the mask"):
        agrees_with_own_mask(one, one.heads([0, 2]), one.reference.logits(CLEAN))


@pytest.mark.parametrize("name", ["GPT-2", "Jamba"])
def test_the_clean_residual_stream_everywhere_is_the_clean_run(name: str) -> None:
    one = Specimen(ZOO[name])
    with torch.no_grad():
        gap = one.pair.metric(one.reference.logits(CLEAN)) - one.pair.bare()
    for what in ("resid_pre", "resid_mid", "resid_post"):
        effects = one.pair.exact(what)
        torch.testing.assert_close(effects, gap.expand_as(effects), atol=1e-5, rtol=0)


def test_paths_and_what_comes_later_add_up() -> None:
    """A head of the last layer has one path to the logits past the MLP; without MLPs it is all."""
    one = Specimen(ZOO["Phi"])  # the MLP stands beside the attention: nothing comes after it
    last = one.reference.n_layers - 1
    torch.testing.assert_close(one.pair.paths()[last], one.pair.exact("z")[last])


def test_integrated_gradients_are_complete() -> None:
    one = Specimen(ZOO["Qwen 3"])
    effects = one.pair.integrated("z", 32)
    new = one.reference.read(CLEAN, one.pair.places("z"))

    def put(value: Tensor) -> Tensor:
        return new["z", 1]

    with torch.no_grad():
        whole = one.pair.metric(one.reference.logits(CORRUPTED, {("z", 1): put})) - one.pair.bare()
    torch.testing.assert_close(effects[1].sum(), whole, atol=2e-3, rtol=0)


def test_a_layer_without_heads_has_none() -> None:
    one = Specimen(ZOO["Jamba"])
    assert torch.isnan(one.pair.exact("z")).any(dim=1).tolist() == [True, False, True, False]
    assert not Specimen(ZOO["Mamba"]).reference.has("z", 0)
    with pytest.raises(LookupError, match="no layer has q"):
        Specimen(ZOO["Mamba"]).pair.exact("q")
