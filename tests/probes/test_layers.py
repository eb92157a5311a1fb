"""A probe in every layer, end to end on a tiny model, and the figure of it."""

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch

import interp.models
import probes.layers
from interp.errors import UserError
from interp.models import HookedModel
from interp.premises import Split, load_premises
from probes import LayerScore, LinearProbe, ProbeMap, probe_layers

COLUMNS = [
    "layer",
    "auc",
    "ci_low",
    "ci_high",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "n_subjects",
    "shuffled_auc",
    "search_auc",
]
SHUFFLES = 3
SIGNS = 1.0 - 2.0 * (torch.arange(32) % 3 == 0)


@pytest.fixture(scope="module")
def split() -> Split:
    return load_premises("capitals", limit=24).split(seed=0)


def run(model: HookedModel, split: Split, **options: Any) -> ProbeMap:
    options = {"n_shuffles": SHUFFLES, "progress": False} | options
    return probe_layers(model, split.search, split.held_out, **options)


@pytest.fixture(scope="module")
def random_map(tiny_llama: HookedModel, split: Split) -> ProbeMap:
    return run(tiny_llama, split)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """False premises shifted along one dense direction, in layer 1 only."""
    collect = probes.layers.collect_activations

    def shifted(model: Any, encoded: Any, kind: Any, **options: Any) -> torch.Tensor:
        values = collect(model, encoded, kind, **options)
        if kind == "false":
            values[:, list(options["layers"]).index(1)] += 20 * SIGNS
        return values

    monkeypatch.setattr(probes.layers, "collect_activations", shifted)


def test_a_row_and_a_probe_for_each_layer(random_map, tiny_llama, split):
    table = random_map.to_dataframe()
    assert list(table.columns) == COLUMNS
    assert table["layer"].tolist() == [0, 1, 2]
    assert table["n_subjects"].tolist() == [len(split.held_out.facts)] * 3
    assert (table["ci_low"] <= table["auc"]).all()
    assert (table["auc"] <= table["ci_high"]).all()
    for layer, probe in zip(random_map.layers, random_map.probes, strict=True):
        assert (probe.layer, probe.hook, probe.position) == (layer, "resid_post", "object")
        probe.check_model(tiny_llama)
    assert "search_auc" in random_map._repr_html_()


def test_a_random_model_is_at_chance(random_map):
    table = random_map.to_dataframe()
    assert (table["ci_low"] < 0.6).all()
    assert (table["ci_high"] > 0.4).all()
    assert table["shuffled_auc"].mean() == pytest.approx(0.5, abs=0.15)
    assert (table["search_auc"] < 0.9).all()


@pytest.mark.usefixtures("planted")
def test_a_planted_layer_is_found(tiny_llama, split):
    found = run(tiny_llama, split)
    table = found.to_dataframe().set_index("layer")
    assert table.loc[1, ["auc", "ci_low", "ci_high", "search_auc"]].tolist() == [1, 1, 1, 1]
    assert table.loc[1, "shuffled_auc"] == pytest.approx(0.5, abs=0.15)
    assert (table.loc[[0, 2], "auc"] < 0.9).all()
    assert found.best is found.probe(1)
    assert torch.equal(found.best.weight.sign(), SIGNS)  # a positive score is a false premise


def test_the_answer_depends_on_the_seed_only(random_map, tiny_llama, split):
    again = run(tiny_llama, split, layers=[2])
    assert again.scores[0] == random_map.scores[2]
    other = run(tiny_llama, split, layers=[2], seed=1).scores[0]
    assert other.auc == again.scores[0].auc
    assert other.shuffled_auc != again.scores[0].shuffled_auc


def test_other_places(tiny_gpt2, split):
    found = run(tiny_gpt2, split, layers=[1, 0], hook="mlp_out", position="last")
    assert found.layers == (1, 0)
    assert {(probe.hook, probe.position) for probe in found.probes} == {("mlp_out", "last")}
    assert all(probe.fingerprint == interp.models.fingerprint(tiny_gpt2) for probe in found.probes)


def test_the_best_layer_is_not_chosen_on_held_out_subjects():
    def probe(layer: int) -> LinearProbe:
        return LinearProbe(torch.ones(2), 0.0, layer, "resid_post", "object", "f")

    scores = tuple(
        LayerScore(layer, auc, auc, auc, 0.5, 0.4, 0.6, 0.5, search_auc)
        for layer, auc, search_auc in ((4, 0.99, 0.7), (3, 0.8, 0.9), (1, 0.7, 0.9))
    )
    found = ProbeMap(scores, tuple(probe(score.layer) for score in scores), n_subjects=9)
    assert found.best.layer == 1
    with pytest.raises(UserError, match="no probe of layer 2; there are 4, 3, 1"):
        found.probe(2)
    with pytest.raises(UserError, match="scores and probes are of different layers"):
        replace(found, probes=found.probes[::-1])
    with pytest.raises(UserError, match="at least one layer"):
        replace(found, scores=(), probes=())


def test_the_figure_shows_the_table(random_map):
    figure = replace(
        random_map, scores=random_map.scores[::-1], probes=random_map.probes[::-1]
    ).plot()
    content = figure.to_plotly_json()
    band, shuffled, line = content["data"]
    table = random_map.to_dataframe()
    assert line["x"] == [0, 1, 2]  # in order, whatever the order of the layers
    assert line["y"] == table["auc"].tolist()
    assert line["customdata"] == table[["ci_low", "ci_high", "search_auc"]].to_numpy().tolist()
    assert shuffled["y"] == table["shuffled_auc"].tolist()
    assert band["x"] == [0, 1, 2, 2, 1, 0]
    assert band["y"] == table["ci_high"].tolist() + table["ci_low"].tolist()[::-1]
    assert band["name"] == "95 % interval, 12 subjects"
    layout = content["layout"]
    assert layout["xaxis"]["title"]["text"] == "layer (resid_post at the object's last token)"
    assert layout["yaxis"]["title"]["text"] == "AUC, held-out subjects and templates"
    assert [shape["y0"] for shape in layout["shapes"]] == [0.5]


def test_bad_input(tiny_llama, split):
    with pytest.raises(UserError, match="share the subject"):
        probe_layers(tiny_llama, split.search, split.search, progress=False)
    same_template = split.held_out.with_templates(split.search.templates)
    with pytest.raises(UserError, match="share the template"):
        probe_layers(tiny_llama, split.search, same_template, progress=False)
    few = replace(split, search=split.search.first(3))
    with pytest.raises(UserError, match="3 groups cannot fill 5 folds"):
        run(tiny_llama, few, layers=[0])
    with pytest.raises(UserError, match="layer 7 does not exist"):
        run(tiny_llama, split, layers=[7])
    unchecked = inspect.unwrap(probe_layers)
    for place, fault in (
        ({"hook": "pattern"}, "unknown hook 'pattern'; known: resid_pre"),
        ({"position": "end"}, "unknown position 'end'; known: object, last"),
    ):
        with pytest.raises(UserError, match=fault):
            unchecked(tiny_llama, split.search, split.held_out, **place)
