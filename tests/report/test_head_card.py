"""A card of the planted head says what was planted, and shows what its results say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.errors import UserError
from interp.figures.theme import shown_token
from interp.heads import HeadEffects
from interp.models import HookedModel
from interp.patching import LogitDifference, PatchEffects, patch_edges
from tests.fixtures import READER, WRITER

TEXT = "Why is city3 the capital of land5 ?"


def effects_of(model: HookedModel, head: tuple[int, int]) -> PatchEffects:
    values = torch.zeros(8, model.cfg.n_layers, model.cfg.n_heads)
    values[:, head[0], head[1]] = torch.linspace(1.0, 3.0, 8)
    return PatchEffects(
        values=values,
        axes=("prompt", "layer", "head"),
        corrupted=torch.zeros(8),
        component="z",
        method="exact",
        metric="logit_difference",
    )


def test_the_card_of_the_planted_reader(planted: HookedModel, tmp_path: Path) -> None:
    card = interp.head_card(
        planted,
        READER,
        TEXT,
        chat=False,
        answers=("land5", "land3"),
        results=[effects_of(planted, READER)],
        k=4,
    )
    row = card.effects.iloc[0]
    assert (row["effect"], row["rank"], row["of"]) == (pytest.approx(2.0), 1, 12)
    assert row["ci_low"] > 1
    assert card.pattern.attended(1)["token"].tolist() == [" land5"]
    assert card.writing.to_dataframe()["promoted"][0] == "land5"
    parts = dict(zip(card.attribution.components, card.attribution.difference()[0], strict=True))
    assert float(parts["a1.h2"]) == pytest.approx(10, abs=0.5)
    sentences = " ".join(card.sentences())
    assert "looks most at “land5”" in sentences
    assert "promotes “land5”" in sentences
    page = card.save(tmp_path / "card.html").read_text(encoding="utf-8")
    assert "a1.h2 of planted" in page
    assert "What it writes" in page
    assert 'id="edges"' not in page
    assert "promotes" in card._repr_html_()


def located(model: HookedModel, values: torch.Tensor) -> HeadEffects:
    names = tuple(f"s{number}" for number in range(len(values)))
    return HeadEffects(
        values, values * 0, names, ("why",) * len(values), "output", "attribution", "zero"
    )


def test_the_rank_says_its_order(planted: HookedModel) -> None:
    """Effect −2, the others 0: the last of 12 heads by sign, the first by size."""
    values = effects_of(planted, READER).values * -1
    results = [located(planted, values), effects_of(planted, READER)]
    card = interp.head_card(planted, READER, TEXT, chat=False, results=results)
    first, second = card.sentences()[:2]
    assert "is -2 [-2." in first
    assert first.endswith("rank 12 of 12 heads by signed effect.")
    assert second.endswith("rank 1 of 12 heads by absolute effect.")
    assert card.effects["rank"].tolist() == [12, 1]
    page = card.to_html()
    table = page[page.index('id="effects"') : page.index('id="attention"')]
    assert "<td>12</td>" in table.replace(' class="number"', "")
    assert "12.000" not in table
    assert "0.0078" in table  # p = 2/2⁸, the smallest that eight groups allow
    assert "by absolute effect, or by signed effect" in table


def test_a_head_that_was_not_measured_is_told(planted: HookedModel) -> None:
    values = effects_of(planted, READER).values
    values[:, 0, 0] = torch.nan
    results = [located(planted, values), replace(effects_of(planted, READER), values=values)]
    for result in results:
        with pytest.raises(UserError, match=r"head a0.h0 was not measured in a result \("):
            interp.head_card(planted, (0, 0), TEXT, chat=False, results=[result])


def test_edges_are_those_of_the_head_and_of_its_group(tiny_llama: HookedModel) -> None:
    clean, corrupted = [[5, 9, 7, 8]], [[5, 9, 4, 8]]
    metric = LogitDifference(torch.tensor([3]), torch.tensor([14]))
    edges = patch_edges(tiny_llama, clean, corrupted, metric, method="eap")
    card = interp.head_card(tiny_llama, (2, 3), "Why is Paris?", chat=False, results=[edges], k=50)
    assert card.edges_in is not None
    assert card.edges_out is not None
    # Head 3 of four reads through its own query, and the keys and values of group 1 of two.
    assert set(card.edges_in["reader"]) == {"a2.h3<q>", "a2.h1<k>", "a2.h1<v>"}
    assert set(card.edges_out["writer"]) == {"a2.h3"}
    assert set(card.edges_out["reader"]) == {"m2", "logits"}
    assert card.effects.empty
    assert 'id="edges"' in card.to_html()


def test_tokens_that_differ_in_a_space_look_different() -> None:
    assert [shown_token(text, space=True) for text in (" Ed", "Ed", " ")] == ["␣Ed", "Ed", "␣"]
    assert shown_token(" Ed") == "Ed"  # in a prompt every word has one


@pytest.mark.parametrize("markup", ["<b>&amp;", "</script><i>"])
def test_text_never_becomes_markup(markup: str, tiny_llama: HookedModel) -> None:
    page = interp.head_card(tiny_llama, (0, 1), f"Why is {markup} here?", chat=False).to_html()
    body = page[page.index("<main>") :]
    assert markup not in body.split("<script")[0]


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ((9, 0), {}, "does not exist"),
        ((0, 0), {"answers": ("",)}, "empty"),
        ((0, 0), {"answers": (10**6,)}, "vocabulary"),
        ((0, 0), {"k": 0}, "k"),
    ],
)
def test_bad_arguments_are_told(
    head: tuple[int, int], options: Any, message: str, planted: HookedModel
) -> None:
    with pytest.raises(UserError, match=message):
        interp.head_card(planted, head, TEXT, chat=False, **options)


def test_results_of_another_model_are_told(planted: HookedModel, tiny_llama: HookedModel) -> None:
    small = PatchEffects(
        values=torch.zeros(8, 1, 1),
        axes=("prompt", "layer", "head"),
        corrupted=torch.zeros(8),
        component="z",
        method="exact",
        metric="logit_difference",
    )
    with pytest.raises(UserError, match="another model"):
        interp.head_card(planted, (*WRITER[:1], 3), TEXT, chat=False, results=[small])
