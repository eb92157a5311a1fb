"""Choosing a setting on the search part, by hand."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import interp
from interp.cli.options import EvaluateOptions
from interp.commands.evaluate import (
    EvaluateSettings,
    _best_rows,
    evaluate_run,
    modes_at,
    run_detector,
)
from interp.commands.locate import load_run
from interp.errors import UserError
from interp.evaluation.settings import SettingMode
from interp.files.documents import read_json
from interp.heads import Site
from interp.models import HookedModel
from interp.premises import load_premises
from tests.planted_detector import KnowsPlantedFacts

TABLE = pd.DataFrame(
    {
        "site": ["output", "output", "output", "attention", "attention"],
        "mode": ["zero", "scale -1", "scale -1", "zero", "scale 0.1"],
        "factor": [0.0, -1.0, -1.0, 0.0, 0.1],
        "n_heads": [3, 3, 8, 3, 3],
        "gain": [0.30, 0.50, 0.90, 0.70, 0.697],
        "cost": [0.10, 0.20, 0.30, 0.20, 0.05],
    }
)


def test_each_site_takes_its_best_mode_and_the_best_site_comes_first() -> None:
    settings = EvaluateSettings()
    sites: tuple[Site, ...] = ("output", "attention")
    modes: dict[Site, list[SettingMode]] = {site: modes_at(site, settings) for site in sites}
    assert _best_rows(TABLE, modes, 3) == [3, 1]  # `scale 0.1` was not asked for


def test_of_equal_gains_the_cheaper_one_is_taken() -> None:
    modes: dict[Site, list[SettingMode]] = {"attention": [("zero", 0.0), ("scale", 0.1)]}
    assert _best_rows(TABLE, modes, 3) == [4]  # 0.697 is as good as 0.70, and costs less


def test_an_asked_mode_is_the_only_candidate() -> None:
    assert modes_at("output", EvaluateSettings(mode="mean")) == [("mean", 0.0)]
    assert modes_at("attention", EvaluateSettings(mode="mean")) == [("zero", 0.0)]
    assert modes_at("attention", EvaluateSettings(mode="scale", factor=0.3)) == [("scale", 0.3)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"heads": 0.0}, "fraction below 1 or a count"),
        ({"heads": 2.5}, "whole number"),
        ({"site": "attention", "mode": "mean"}, "does not fit site 'attention'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        EvaluateSettings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("heads", "count"), [(0.01, 3), (0.0001, 1), (1.0, 1), (8.0, 8)])
def test_heads_are_a_fraction_or_a_count(heads: float, count: int) -> None:
    assert EvaluateSettings(heads=heads).count(270) == count


def test_the_gate_of_a_run_is_trained_on_its_search_part_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Stub:
        def detect(self, model: Any, questions: Any, **options: Any) -> tuple[()]:
            return ()

        def save(self, folder: Path) -> None:
            folder.mkdir()
            (folder / "detector.json").write_text("{}")

        @classmethod
        def load(cls, folder: Path, *, model: Any) -> "Stub":
            assert model == "model"
            return cls()

    def train(model: Any, premises: Any, **options: Any) -> Stub:
        seen.append((model, premises, options["seed"]))
        return Stub()

    monkeypatch.setattr("interp.commands.evaluate.train_detector", train)
    monkeypatch.setattr("interp.commands.evaluate.load_detector", Stub.load)
    split = load_premises("capitals", limit=12).split(seed=0)
    model: Any = "model"
    for _ in range(2):
        detector = run_detector(model, split, tmp_path, seed=3, progress=False)
        assert isinstance(detector, Stub)
    assert seen == [("model", (split.search,), 3)]


def test_a_relation_that_is_scored_is_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside: list[str] = []
    new_relations: list[bool] = []

    class Untrained:
        def detect(self, model: Any, questions: Any, **options: Any) -> tuple[()]:
            return ()

        def save(self, folder: Path) -> None:
            pass

    def train(model: Any, premises: Any, **options: Any) -> Any:
        beside.extend(part.relation.name for part in options["beside"])
        new_relations.append(options["new_relations"])
        return Untrained()

    monkeypatch.setattr("interp.commands.evaluate.train_detector", train)
    split = load_premises("capitals", limit=12).split(seed=0)
    unseen = load_premises("languages", limit=12)
    model: Any = "model"
    run_detector(model, split, tmp_path, unseen=[unseen], progress=False)
    assert "landmarks" in beside
    assert not {"capitals", "languages"} & set(beside)
    run_detector(model, split, tmp_path, unseen=[split.held_out], progress=False)
    assert new_relations == [True, False]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"leave_one_out": True, "gate": "probe"}, "leave --premises and --gate out"),
        ({"leave_one_out": True, "premises": "films"}, "leave --premises and --gate out"),
        ({"premises": "films", "plan": True}, "a plan is of the run's own evaluation"),
        ({"leave_one_out": True, "plan": True}, "a plan is of the run's own evaluation"),
        ({"premises": "films", "questions": Path("q.csv")}, "no --premises, no --leave-one-out"),
        ({"answer_null": 3}, "are for --questions FILE"),
        ({"heads": 0.0}, "heads is a fraction below 1"),
        ({"site": "output", "decoding_steps": 2}, "decoding_steps is for the attention site"),
        ({"decoding_steps": -1}, "decoding_steps is at least 0, not -1"),
        ({"factor": 0.5}, "is for --mode scale, not 'best'"),
        ({"factor": 0.5, "mode": "zero"}, "is for --mode scale, not 'zero'"),
    ],
)
def test_options_that_do_not_fit_together(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        EvaluateOptions(**given)


def test_a_gated_evaluation_has_the_told_one_beside_it(
    planted: HookedModel, planted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector that is never wrong keeps the whole gain, and costs the twins nothing."""
    run = Path(shutil.copytree(planted_run, tmp_path / "run"))
    monkeypatch.setattr("interp.commands.evaluate.run_detector", lambda *_, **__: detector)
    detector = KnowsPlantedFacts()
    _, split, effects = load_run(run)
    chosen: Any = {"site": "attention", "mode": "zero", "heads": 1.0, "counts": (1,)}
    settings = EvaluateSettings(**chosen, gate="probe", answers="none")
    evaluate_run(planted, split, effects, settings=settings, run=run, progress=False)
    content = read_json(run / "evaluation.json")
    (told,) = content["alternatives"]
    assert (content["gate"], told["gate"]) == ("probe", "oracle")
    assert (content["heads"], told["random_null"]) == (told["heads"], {"n_sets": 0})
    row = interp.atlas([run]).to_dataframe().iloc[0]
    assert row["preference_told"] > row["preference"] + 0.5
    assert (row["gain_kept"], row["twin_cost_gated"], row["p_true_fall_gated"]) == (1.0, 0.0, 0.0)
    assert row["p_true_fall_told"] > 0.0
    assert (row["random_gate"], row["random_sets"]) == ("probe", 20)
