"""Cosine and CKA of experts' outputs against the outputs themselves."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange

from interp.errors import UserError
from interp.experts import CollectSettings, OutputSimilarity, collect_routing
from interp.experts.routing.similarity import linear_cka


def literal_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    top = (x.T @ y).square().sum()
    return float(top / ((x.T @ x).norm() * (y.T @ y).norm()))


def moments(hidden: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r = up.shape[-1]
    gram = torch.einsum("dir,djs->irjs", up, up)
    flat = hidden.flatten(1)
    return linear_cka(flat.sum(dim=0), flat.T @ flat, gram, n=len(flat), r=r)


def test_cka_by_hand() -> None:
    hidden = torch.randn(50, 3, 2, dtype=torch.float64)
    up = torch.randn(5, 3, 2, dtype=torch.float64)
    hidden[:, 1] = hidden[:, 0] @ torch.tensor([[0.0, -3.0], [3.0, 0.0]]).double() + 7
    up[:, 1] = up[:, 0] * 0 + torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64))[0]
    up[:, 0] = up[:, 1]
    outputs = torch.einsum("nir,dir->nid", hidden, up)
    cka, chance = moments(hidden, up)
    # The second is the first turned, scaled and moved.
    assert float(cka[0, 1]) == pytest.approx(1, abs=1e-12)
    for i in range(3):
        for j in range(3):
            assert float(cka[i, j]) == pytest.approx(literal_cka(outputs[:, i], outputs[:, j]))
    # By chance: the mean over shuffles.
    shuffled = [literal_cka(outputs[:, 0], outputs[torch.randperm(50), 2]) for _ in range(2000)]
    assert float(chance[0, 2]) == pytest.approx(np.mean(shuffled), rel=0.08)


def test_an_expert_that_does_not_vary_has_no_cka() -> None:
    hidden, up = torch.randn(20, 2, 2).double(), torch.randn(4, 2, 2).double()
    up[:, 1] = 0
    cka, chance = moments(hidden, up)
    assert torch.isnan(cka[0, 1])
    assert torch.isnan(chance[1, 1])
    assert float(cka[0, 0]) == pytest.approx(1)


def test_collected_similarity_is_that_of_the_outputs(
    adapted_of: Callable[..., Any], planted_texts: Any, plain_tokenizer: Any
) -> None:
    adapted = adapted_of(dtype=torch.float64)
    settings = CollectSettings(routers=0, sampled=100_000)
    _, found = collect_routing(
        adapted, planted_texts, plain_tokenizer, settings=settings, progress=False
    )
    assert found.n == 480
    layer = adapted.get_base_model().model.layers[1].self_attn.q_proj
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        for text in [*planted_texts["first"], *planted_texts["second"]]:
            adapted(input_ids=torch.tensor([text]))
    handle.remove()
    x = torch.cat(seen, dim=1)[0]
    hidden = rearrange(x @ layer.moelora_A["default"].T, "n (i r) -> n i r", r=2)
    up = rearrange(layer.moelora_B["default"], "d (i r) -> d i r", r=2)
    outputs = torch.einsum("nir,dir->nid", hidden, up).detach()
    table = found.to_dataframe()
    rows = table[(table["layer"] == 1) & (table["target"] == "q_proj")]
    assert len(rows) == 6
    for row in rows.itertuples():
        one, other = outputs[:, row.expert], outputs[:, row.other]
        assert row.cka == pytest.approx(literal_cka(one, other), abs=1e-5)
        cosine = torch.cosine_similarity(one, other, dim=-1).mean()
        assert row.cosine == pytest.approx(float(cosine), abs=1e-5)


def test_a_sample_is_about_as_large_as_asked_for(
    planted: Any, planted_texts: Any, plain_tokenizer: Any
) -> None:
    settings = CollectSettings(routers=0, sampled=100)
    _, found = collect_routing(
        planted, planted_texts, plain_tokenizer, settings=settings, progress=False
    )
    assert 60 < found.n < 140
    assert "cka" in found._repr_html_()
    with pytest.raises(UserError, match="lacks the column"):
        OutputSimilarity(3, found.table.drop(columns="cka"))
