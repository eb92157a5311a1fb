"""Planted specialization is found at its size; where nothing was planted, nothing is found."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interp.errors import UserError
from interp.experts import (
    CollectSettings,
    RoutingRecords,
    Specialization,
    collect_routing,
    measure_specialization,
)
from interp.experts.routing.measure_list import MEASURES
from tests.experts.conftest import FIRST, SECOND, texts_of

FAST = CollectSettings(routers=39, folds=5)


@pytest.fixture(scope="module")
def found(planted_records: RoutingRecords) -> Specialization:
    return measure_specialization(planted_records, draws=499, token_draws=19)


def rows(found: Specialization, measure: str, null: str, layer: int) -> Any:
    table = found.to_dataframe()
    return table[
        (table["measure"] == measure) & (table["null"] == null) & (table["layer"] == layer)
    ]


def test_planted_information_is_log_two(found: Specialization) -> None:
    """Two tasks of as many tokens without an expert in common: the expert says which task."""
    for null in ("texts", "untrained"):
        planted = rows(found, "task_information", null, 0)
        assert len(planted) == 2
        assert np.abs(planted["value"] - math.log(2)).max() < 1e-3
        assert np.abs(planted["ci_low"] - math.log(2)).max() < 1e-3
        assert (planted["p_value"] <= 1 / 40).all()
    assert (rows(found, "task_information", "texts", 0)["q_value"] <= 0.05).all()
    # The null of whole texts is flat: near nothing.
    assert (rows(found, "task_information", "texts", 0)["null_mean"] < 0.05).all()
    # Each id occurs in one task only, so that within ids there is nothing to shuffle.
    within = rows(found, "task_information", "within_token", 0)
    np.testing.assert_allclose(within["null_mean"], within["value"])
    np.testing.assert_allclose(within["p_value"], 1)


def test_folds_without_a_text_do_not_narrow_intervals(
    planted: Any, planted_texts: dict[str, list[list[int]]], plain_tokenizer: Any
) -> None:
    few = {task: texts[:4] for task, texts in planted_texts.items()}
    tables = []
    for folds in (4, 40):
        settings = CollectSettings(routers=39, folds=folds)
        records, _ = collect_routing(
            planted, few, plain_tokenizer, settings=settings, progress=False
        )
        assert set(records.unit_fold) == {0, 1, 2, 3}
        tables.append(measure_specialization(records, draws=19, token_draws=0).to_dataframe())
    for column in ("value", "ci_low", "ci_high"):
        np.testing.assert_allclose(tables[0][column], tables[1][column])


def test_other_planted_measures(found: Specialization) -> None:
    value = {name: rows(found, name, "untrained", 0)["value"].to_numpy() for name in MEASURES}
    np.testing.assert_allclose(value["domain_spread"], 0.5)
    np.testing.assert_allclose(value["task_jaccard"], 0)
    np.testing.assert_allclose(value["vocabulary_specialization"], 0.5)
    np.testing.assert_allclose(value["load_cv"], 0)
    np.testing.assert_allclose(value["load_entropy"], 1)
    np.testing.assert_allclose(value["strongest_pair"], 1)
    np.testing.assert_allclose(value["repeat_rate"], 1)
    np.testing.assert_allclose(value["dead_experts"], 0)
    # 40 equally frequent ids would say log 2 as well; the correction takes a little off.
    assert np.abs(value["token_information"] - math.log(2)).max() < 0.1
    assert (value["router_entropy"] < value["mean_router_entropy"]).all()


def test_planted_experts(found: Specialization) -> None:
    table: Any = found.experts[
        (found.experts["layer"] == 0) & (found.experts["target"] == "q_proj")
    ]
    share = table.pivot(index="task", columns="expert", values="specialization")
    np.testing.assert_allclose(share.loc["first"], [1, 1, 0, 0])
    np.testing.assert_allclose(share.loc["second"], [0, 0, 1, 1])
    np.testing.assert_allclose(table["difference"].abs(), 0.5)
    assert (table["q_value"] <= 0.05).all()
    assert (table["ci_high"] - table["ci_low"] < 1e-9).all()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_is_significant_without_training_or_tasks(
    adapted_of: Callable[..., Any], plain_tokenizer: Any, seed: int
) -> None:
    """An untrained adapter, and tasks that are mere names given to texts: no test rejects."""
    texts = texts_of([*FIRST, *SECOND], 60, length=10, seed=10 * seed)
    named = {"a": texts[:30], "b": texts[30:]}
    records, _ = collect_routing(
        adapted_of(seed=seed), named, plain_tokenizer, settings=FAST, progress=False
    )
    found = measure_specialization(records, draws=499, token_draws=99, seed=seed)
    table = found.to_dataframe()
    assert {"texts", "within_token", "untrained"} == set(table["null"])
    assert not (table["q_value"] <= 0.05).any()
    assert not (found.experts["q_value"] <= 0.05).any()


def test_an_untrained_adapter_sorts_words_but_no_better_than_other_untrained_ones(
    adapted_of: Callable[..., Any], planted_texts: Any, plain_tokenizer: Any
) -> None:
    """Tasks with words of their own: whole texts differ, and that is no training's merit."""
    records, _ = collect_routing(
        adapted_of(seed=5), planted_texts, plain_tokenizer, settings=FAST, progress=False
    )
    table = measure_specialization(records, draws=499, token_draws=0).to_dataframe()
    task = table[table["measure"] == "task_information"]
    assert (task[task["null"] == "texts"]["q_value"] <= 0.05).all()
    assert not (table[table["null"] == "untrained"]["q_value"] <= 0.05).any()


def test_tokens_of_one_text_are_not_independent(
    adapted_of: Callable[..., Any], plain_tokenizer: Any
) -> None:
    """Texts of one repeated word each, named at random: only whole texts are a fair test."""
    ids = [*FIRST, *SECOND]
    rng = np.random.default_rng(0)
    texts = [[int(one)] * 20 for one in rng.choice(ids, 24)]
    named = {"a": texts[:12], "b": texts[12:]}
    records, _ = collect_routing(
        adapted_of(seed=1), named, plain_tokenizer, settings=FAST, progress=False
    )
    table = measure_specialization(records, draws=499, token_draws=0).to_dataframe()
    task = table[(table["measure"] == "task_information") & (table["null"] == "texts")]
    assert not (task["q_value"] <= 0.05).any()
    # As if its tokens were independent, 2 N · information would be χ² with 3 degrees of freedom.
    assert (2 * 2 * records.n_tokens * task["value"] > 16.3).sum() >= 4


def test_without_untrained_routers(planted: Any, planted_texts: Any, plain_tokenizer: Any) -> None:
    records, _ = collect_routing(
        planted,
        planted_texts,
        plain_tokenizer,
        settings=CollectSettings(routers=0, folds=5),
        progress=False,
    )
    table = measure_specialization(records, draws=19, token_draws=0).to_dataframe()
    untrained: Any = table[table["null"] == "untrained"]
    assert set(untrained["measure"]) == set(MEASURES)
    assert untrained["p_value"].isna().all()
    with pytest.raises(UserError, match="draws is 0"):
        measure_specialization(records, draws=0)


def test_tables_and_files(found: Specialization, tmp_path: Path) -> None:
    again = Specialization.load(found.save(tmp_path))
    assert again.to_dataframe()["measure"].tolist() == found.table["measure"].tolist()
    np.testing.assert_allclose(again.table["value"], found.table["value"])
    np.testing.assert_allclose(again.experts["q_value"], found.experts["q_value"])
    summary = found.summary()
    task = summary[(summary["measure"] == "task_information") & (summary["null"] == "texts")]
    assert task["projections"].tolist() == [6]
    assert "task_information" in found._repr_html_()
    with pytest.raises(UserError, match="cannot be read"):
        Specialization.load(tmp_path / "nowhere")


def test_records_round_trip(planted_records: RoutingRecords, tmp_path: Path) -> None:
    again = RoutingRecords.load(planted_records.save(tmp_path / "routing.safetensors"))
    assert again.projections == planted_records.projections
    assert (again.sizes, again.tasks) == (planted_records.sizes, planted_records.tasks)
    for name, table in planted_records.tables.as_dict().items():
        assert np.array_equal(table, again.tables.as_dict()[name])
    table = planted_records.to_dataframe()
    assert list(table.columns[:4]) == ["layer", "target", "expert", "task"]
    by_task: Any = table.groupby(["layer", "target", "task"])
    np.testing.assert_allclose(by_task["load"].sum(), 1)
    np.testing.assert_allclose(by_task["specialization"].sum(), 2)
    np.testing.assert_allclose(by_task["probability"].sum(), 1)
    np.testing.assert_allclose(by_task["gate"].sum(), 1)
    assert "tokens, 2 tasks" in planted_records._repr_html_()
    (tmp_path / "cut").write_bytes((tmp_path / "routing.safetensors").read_bytes()[:200])
    with pytest.raises(UserError, match="damaged"):
        RoutingRecords.load(tmp_path / "cut")
    with pytest.raises(UserError, match="no routing records"):
        RoutingRecords.load(tmp_path / "none")
