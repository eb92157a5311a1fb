"""Maps over positions and heads, and the verdict beside controls, on a tiny model."""

import inspect
from typing import Any

import pytest
import torch

import probes.store
from interp.errors import UserError
from interp.premises import Split, load_premises
from interp.premises.encode import encode_premises
from probes import (
    ControlReport,
    ProbeGrid,
    collect_activations,
    compare_with_controls,
    fit_probe,
    probe_grid,
    probe_heads,
    probe_layers,
)
from probes.control_report import Score


@pytest.fixture(scope="module")
def split() -> Split:
    return load_premises("capitals", limit=20).split(seed=0)


@pytest.fixture(scope="module")
def grid(tiny_llama, split) -> ProbeGrid:
    return probe_grid(
        tiny_llama,
        split.search,
        split.held_out,
        positions=("object", "subject", "last"),
        layers=[0, 1],
        progress=False,
    )


def test_a_cell_is_a_probe_of_its_own(grid, tiny_llama, split):
    assert len(grid.table) == 6
    for position in ("object", "last"):
        alone = probe_layers(
            tiny_llama,
            split.search,
            split.held_out,
            layers=[1],
            position=position,
            n_shuffles=1,
            progress=False,
        ).scores[0]
        rows = grid.table[(grid.table["layer"] == 1) & (grid.table["place"] == position)]
        (cell,) = rows.to_dict("records")
        for name in ("auc", "ci_low", "ci_high", "accuracy", "search_auc"):
            assert cell[name] == pytest.approx(getattr(alone, name), abs=0.02)


def test_the_subject_s_token_knows_no_object(grid):
    """Where the subject comes first it is the same token in both prompts: exactly chance."""
    rows = grid.table[grid.table["place"] == "subject"]
    assert rows["auc"].tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


def test_heads(tiny_llama, split):
    found = probe_heads(tiny_llama, split.search, split.held_out, layers=[1], progress=False)
    assert found.to_dataframe()[["layer", "head"]].to_numpy().tolist() == [
        [1, 0],
        [1, 1],
        [1, 2],
        [1, 3],
    ]
    parts = []
    for premises in (split.search, split.held_out):
        encoded = encode_premises(tiny_llama.tokenizer, premises)
        parts.append(
            torch.cat(
                [
                    collect_activations(
                        tiny_llama, encoded, kind, hook="z", layers=[1], progress=False
                    )[:, 0, 2]
                    for kind in ("false", "twin")
                ]
            )
        )
    search, held_out = parts
    labels = (torch.arange(len(search)) < len(search) // 2).long()
    probe = fit_probe(search, labels, layer=1, fingerprint="f", hook="z", position="object", head=2)
    right = (probe.scores(held_out) > 0) == (torch.arange(len(held_out)) < len(held_out) // 2)
    row = found.table.iloc[2]
    assert row["accuracy"] == pytest.approx(float(right.double().mean()), abs=0.03)
    assert found.plot().layout.xaxis.title.text == "head"


def test_the_map_is_drawn_as_it_is(grid):
    figure = grid.plot()
    wide = grid.table.pivot(index="layer", columns="place", values="auc")
    assert figure.data[0].z[1][0] == pytest.approx(wide.loc[1, "object"])
    assert list(figure.data[0].x)[2] == "prompt's last token"
    assert grid.best["search_auc"] == grid.table["search_auc"].max()
    assert "search_auc" in grid._repr_html_()


def test_activations_are_kept_for_another_call(tiny_llama, split, tmp_path, monkeypatch):
    options: dict[str, Any] = {
        "positions": ("object",),
        "layers": [0],
        "folder": tmp_path,
        "progress": False,
    }
    first = probe_grid(tiny_llama, split.search, split.held_out, **options)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(probes.store, "read_activations", fail)
    again = probe_grid(
        tiny_llama, split.search, split.held_out, method="mean_difference", **options
    )
    assert again.table["auc"].tolist() != first.table["auc"].tolist()


def test_bad_input(tiny_llama, split):
    unchecked: Any = inspect.unwrap(probe_grid)
    with pytest.raises(UserError, match=r"use probes\.probe_heads"):
        unchecked(tiny_llama, split.search, split.held_out, hook="z")
    with pytest.raises(UserError, match=r"use probes\.probe_heads"):
        probe_layers(tiny_llama, split.search, split.held_out, hook="z")
    with pytest.raises(UserError, match="no positions are chosen"):
        unchecked(tiny_llama, split.search, split.held_out, positions=())
    with pytest.raises(UserError, match="share the subject"):
        probe_grid(tiny_llama, split.search, split.search, progress=False)


def verdict(task: Score, *controls: Score) -> ControlReport:
    return ControlReport(3, "resid_post", "object", task, controls, 0.6, 0.3)


def test_the_verdict_by_hand():
    low, high = Score("layer 0", 0.5, 0.4, 0.6), Score("random weights", 0.55, 0.5, 0.71)
    good = verdict(Score("probe", 0.9, 0.72, 0.95), low, high)
    assert good.beats_controls
    assert good.sentence.startswith("The probe of layer 3 reads the premise: AUC 0.900")
    bad = verdict(Score("probe", 0.9, 0.70, 0.95), low, high)
    assert not bad.beats_controls
    assert "does not beat its controls" in bad.sentence
    assert "random weights 0.550 [0.500, 0.710]" in bad.sentence
    assert bad.to_dataframe()["name"].tolist() == ["probe", "layer 0", "random weights"]
    with pytest.raises(UserError, match="at least one control"):
        verdict(low)


def test_a_random_model_does_not_beat_its_controls(tiny_llama, split):
    report = compare_with_controls(
        tiny_llama, split.search, split.held_out, layer=2, n_shuffles=5, progress=False
    )
    assert [control.name for control in report.controls] == [
        "shuffled labels",
        "object alone",
        "layer 0",
        "random weights",
    ]
    assert not report.beats_controls
    # Balanced objects make a probe of the object alone do worse than chance on other subjects.
    assert report.selectivity < 0.2
