"""A search over several relations as a run: taken up, left out, evaluated, scored elsewhere."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from interp.commands.detect import detector_of
from interp.commands.evaluate import EvaluateSettings, evaluate_run
from interp.commands.locate import LocateSettings, locate_run
from interp.commands.locate_joint import load_search, locate_joint_run, searched_relations
from interp.commands.transfer import transfer_run
from interp.errors import UserError
from interp.files.documents import read_json
from interp.heads.joint import JointEffects
from interp.models import HookedModel
from interp.premises import JointSplit
from interp.report.heads_page import write_report
from tests.runs.killing import write_premises

READER = (1, 2)


def searched_in(relations: str | tuple[str, ...]) -> LocateSettings:
    return LocateSettings(premises=relations, site="attention", minimum=6)


def joint(model: HookedModel, run: Path, relations: tuple[str, ...]) -> None:
    locate_joint_run(model, searched_in(relations), run, progress=False)


@pytest.fixture(scope="module")
def relations(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    folder = tmp_path_factory.mktemp("relations")
    few = write_premises(folder, "few", first=12)
    return str(write_premises(folder)), str(few), str(write_premises(folder, "other", first=4))


@pytest.fixture(scope="module")
def run(
    planted: HookedModel, relations: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Interrupted in the last relation, and taken up."""
    run = tmp_path_factory.mktemp("joint") / "run"
    with pytest.raises(UserError, match="no-such"):
        joint(planted, run, (*relations, "no-such.csv"))
    assert not run.exists()
    joint(planted, run, relations)
    return run


def test_the_files(run: Path, planted: HookedModel, relations: tuple[str, ...]) -> None:
    found = read_json(run / "relations.json")
    assert found["relations"] == ["planted", "other"]
    assert "knows too few facts of 'few'" in found["left_out"]["few"]
    assert searched_relations(run) == ("planted", "other")
    assert {path.name for path in (run / "relations").iterdir()} == {"planted", "other"}
    heads = pd.read_csv(run / "heads.csv")
    assert tuple(heads.loc[0, ["layer", "head"]]) == READER
    assert len(heads) == 12
    assert list(heads.columns)[-2:] == ["rank", "selected"]
    by = pd.read_csv(run / "heads_by_relation.csv")
    assert list(by.columns[1:-1]) == list(heads.columns)
    assert len(by) == 3 * 12
    assert len(pd.read_csv(run / "stability.csv")) == 1
    # A relation's own run is that of a search in it alone.
    alone = run.parent / "alone"
    if not alone.exists():
        locate_run(planted, searched_in(relations[2]), alone, progress=False)
    ours = (run / "relations" / "other" / "effects.safetensors").read_bytes()
    assert ours == (alone / "effects.safetensors").read_bytes()


def test_taken_up_and_refused(run: Path, planted: HookedModel, relations: tuple[str, ...]) -> None:
    before = (run / "heads.csv").read_bytes()
    joint(planted, run, relations)
    assert (run / "heads.csv").read_bytes() == before
    with pytest.raises(UserError, match="holds another run"):
        joint(planted, run, relations[:2])
    with pytest.raises(UserError, match="'planted' is given twice"):
        joint(planted, run, relations[:1] * 2)


def test_nothing_known_in_any(
    planted: HookedModel, relations: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no relation is left to search"):
        joint(planted, tmp_path / "run", relations[1:2])


def test_evaluated_like_any_run(run: Path, planted: HookedModel) -> None:
    settings = EvaluateSettings(heads=1.0, counts=(1,), random_sets=0, answers="none")
    _, split, effects = load_search(run)
    assert isinstance(split, JointSplit)
    assert isinstance(effects["attention"], JointEffects)
    evaluate_run(planted, split, effects, settings=settings, run=run, progress=False)
    content = read_json(run / "evaluation.json")
    templates = content["splits"]["held_out"]["templates"]
    assert list(templates) == [f"{r}/{t}" for r in ("planted", "other") for t in ("when", "famous")]
    assert content["heads"] == [list(READER)]
    right = content["splits"]["held_out"]["false_premise"]
    assert (right["baseline"]["preference_accuracy"][0], right["constrained"]["n"]) == (0, 28)
    assert right["constrained"]["preference_accuracy"][0] == 1
    assert "planted/when" in write_report(run).read_text("utf-8")


def test_leave_one_out(run: Path, planted: HookedModel) -> None:
    settings = EvaluateSettings(heads=1.0, counts=(1,), random_sets=20)
    _, split, effects = load_search(run)
    found = transfer_run(planted, split, effects, settings=settings, run=run, progress=False)
    table = pd.read_csv(run / "transfer.csv")
    assert len(table) == len(found.table) == 2 * 3
    assert (table["preference_accuracy"] == 1).all()
    means = read_json(run / "transfer.json")["means"]
    assert {row["setting"] for row in means} == {"all others", "itself", "another"}
    assert "all others" in write_report(run).read_text("utf-8")


def test_another_relation_is_scored_beside_the_run(
    run: Path, planted: HookedModel, relations: tuple[str, ...], tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    locate_run(planted, searched_in(relations[2]), alone, progress=False)
    heads = (alone / "heads.csv").read_bytes()
    _, split, effects = load_search(alone)
    settings = EvaluateSettings(
        heads=1.0, counts=(1,), random_sets=0, answers="none", premises=relations[0]
    )
    evaluate_run(planted, split, effects, settings=settings, run=alone, progress=False)
    scored = alone / "scored" / "planted"
    content = read_json(scored / "evaluation.json")
    assert content["splits"]["held_out"]["false_premise"]["constrained"]["n"] == 16
    assert read_json(scored / "known.json")["subjects"][0] == "city0"
    assert not (alone / "evaluation.json").exists()
    assert (alone / "heads.csv").read_bytes() == heads
    with pytest.raises(UserError, match="was searched in one relation"):
        transfer_run(planted, split, effects, settings=settings, run=alone, progress=False)


def test_its_detector_is_trained_on_all_its_relations(
    run: Path, planted: HookedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`interp detect --run` takes a run over several relations too."""
    relations: list[str] = []

    def train(model: Any, split: JointSplit, run: Path, **_: Any) -> None:
        relations.extend(split.relations)

    monkeypatch.setattr("interp.commands.detect.run_detector", train)
    detector_of(planted, run=run, detector=None, progress=False)
    assert relations == ["planted", "other"]
