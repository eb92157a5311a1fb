"""The whole way on the embedded model, at a reduced size, and the method's own controls."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

import interp
from interp.cli import main
from interp.commands.evaluate import EvaluateSettings, evaluate_run
from interp.commands.locate import LocateSettings, load_run, locate_run
from interp.evaluation.side_effects import neutral_sentences
from interp.forward.generate import greedy_answers
from interp.heads import load_effects, locate_heads
from interp.interventions import Intervention
from interp.interventions.random_controls import random_interventions
from interp.models import HookedModel, resolve
from interp.premises import Premises
from interp.premises.encode import encode_premises
from interp.premises.registry import data_dir
from interp.statistics.significance import RESOLUTION

N_FACTS = 26
HELD_OUT_TEMPLATE = "when"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> LocateSettings:
    """The capitals, in one template of the search and one that is held out, for speed."""
    folder = tmp_path_factory.mktemp("relation")
    shipped = data_dir() / "relations"
    content = yaml.safe_load((shipped / "capitals.yaml").read_text(encoding="utf-8"))
    content["search_templates"] = content["search_templates"][:1]
    kept = (*content["search_templates"], HELD_OUT_TEMPLATE)
    content["templates"] = {name: content["templates"][name] for name in kept}
    (folder / "capitals.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    path = shutil.copy(shipped / "capitals.csv", folder / "capitals.csv")
    return LocateSettings(premises=str(path), limit=N_FACTS)


def interrupt(*_arguments: Any, **_options: Any) -> Any:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def asked(
    smollm: HookedModel, settings: LocateSettings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that was interrupted after the model had been asked which capitals it knows."""
    folder = tmp_path_factory.mktemp("runs") / "capitals"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.commands.locate.locate_shard", interrupt)
        with pytest.raises(KeyboardInterrupt):
            locate_run(smollm, settings, folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def located(smollm: HookedModel, settings: LocateSettings, asked: Path) -> Path:
    """The run, taken up: a search over a few capitals, not evaluated yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.commands.known.knowledge_shard", interrupt)  # is not asked again
        locate_run(smollm, settings, asked, progress=False)
    return asked


WANTED = EvaluateSettings(counts=(3,), heads=0.01, mode="zero")


def shards_of(run: Path) -> dict[Path, int]:
    """The shards of an evaluation, and when each was written."""
    files = (run / "shards" / "evaluate").rglob("*.safetensors")
    return {path: path.stat().st_mtime_ns for path in files}


@contextmanager
def shortened() -> Iterator[pytest.MonkeyPatch]:
    """Short answers, few neutral sentences, and random sets for the site that is expected to be
    chosen.
    """
    sentences = neutral_sentences()[:2]

    def short(*arguments: Any, **options: Any) -> list[str]:
        return greedy_answers(*arguments, **{**options, "max_new_tokens": 2})

    def of_one_site(model: HookedModel, under: Intervention, count: int, *, seed: int) -> Any:
        n_sets = count if under.heads[0].site == "attention" else 0
        return random_interventions(model, under, n_sets, seed=seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interp.evaluation.jobs.greedy_answers", short)
        evaluation = sys.modules[interp.evaluate.__module__]
        patch.setattr(evaluation, "random_interventions", of_one_site)
        measure = sys.modules[neutral_sentences.__module__]
        patch.setattr(measure, "neutral_sentences", lambda: sentences)
        yield patch


@pytest.fixture(scope="module")
def chosen(smollm: HookedModel, located: Path) -> dict[Path, int]:
    """The shards of an evaluation that was interrupted after the choice of a site, and after the
    unconstrained answers.
    """
    _, split, effects = load_run(located)
    with shortened() as patch:
        patch.setattr("interp.commands.evaluate.evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(smollm, split, effects, settings=WANTED, run=located, progress=False)
    return shards_of(located)


@pytest.fixture(scope="module")
def run(smollm: HookedModel, located: Path, chosen: dict[Path, int]) -> Path:
    """The evaluation, taken up."""
    assert chosen
    _, split, effects = load_run(located)
    with shortened():
        evaluate_run(smollm, split, effects, settings=WANTED, run=located, progress=False)
    return located


@pytest.mark.bridge_only
def test_what_the_model_knows_is_kept_of_an_interrupted_search(asked: Path) -> None:
    known = json.loads((asked / "known.json").read_text(encoding="utf-8"))
    assert 16 <= len(known["subjects"]) < N_FACTS
    assert not (asked / "effects.safetensors").exists()


@pytest.mark.bridge_only
def test_search_saw_nothing_of_the_held_out_part(located: Path) -> None:
    rows = [json.loads(line) for line in (located / "premises.jsonl").read_text().splitlines()]
    search = [row for row in rows if row["split"] == "search"]
    held_out = [row for row in rows if row["split"] == "held_out"]
    assert search
    assert held_out
    effects = load_effects(located / "effects.safetensors")["output"]
    assert set(effects.subjects) == {row["subject"] for row in search}
    assert set(effects.templates) == {row["template"] for row in search}
    text = " ".join(row[kind]["question"] for row in search for kind in ("false", "twin"))
    for row in held_out:
        assert row["subject"] not in text
        assert row["template"] not in effects.templates


@pytest.mark.bridge_only
def test_an_interrupted_evaluation_keeps_what_was_scored(
    located: Path, chosen: dict[Path, int]
) -> None:
    assert len(chosen) >= 6  # two sites and the answers, false premises and their twins
    assert not (located / "evaluation.json").exists()


@pytest.mark.bridge_only
def test_constraint_helps_on_held_out_and_random_sets_do_not(run: Path) -> None:
    best = json.loads((run / "evaluation.json").read_text())
    assert best["site"] == "attention"
    assert best["n_heads"] == 3
    assert {one["site"] for one in best["alternatives"]} == {"output"}
    false = best["splits"]["held_out"]["false_premise"]
    before = false["baseline"]["preference_accuracy"][0]
    after = false["constrained"]["preference_accuracy"][0]
    null = best["random_null"]
    assert after - before >= 0.4
    assert null["preference_accuracy"]["mean"] - before <= 0.2
    assert null["percentile_of_selected"] == 100


@pytest.mark.bridge_only
def test_what_was_scored_is_not_scored_again(run: Path, chosen: dict[Path, int]) -> None:
    after = shards_of(run)
    assert chosen.items() < after.items()


@pytest.mark.bridge_only
def test_run_holds_what_the_contract_lists(run: Path) -> None:
    expected = {
        "manifest.json",
        "premises.jsonl",
        "effects.safetensors",
        "heads.csv",
        "evaluation.json",
        "generations.jsonl",
    }
    assert expected <= {path.name for path in run.iterdir()}
    heads = pd.read_csv(run / "heads.csv")
    columns = "site,layer,head,effect,ci_low,ci_high,p_value,q_value,rank,selected"
    assert list(heads.columns) == columns.split(",")
    assert len(heads) == 2 * 270
    for site in ("output", "attention"):
        assert sum(heads["selected"] & (heads["site"] == site)) == 3
    effects = load_effects(run / "effects.safetensors")
    assert effects["output"].values.shape[1:] == (30, 9)
    assert not list(run.glob("*.part*"))


@pytest.mark.bridge_only
def test_second_call_takes_up_what_is_there(
    smollm: HookedModel, settings: LocateSettings, run: Path
) -> None:
    before = (run / "effects.safetensors").stat().st_mtime_ns
    locate_run(smollm, settings, run, progress=False)
    assert (run / "effects.safetensors").stat().st_mtime_ns == before
    with pytest.raises(interp.UserError, match="holds another run"):
        locate_run(smollm, replace(settings, seed=1), run, progress=False)


@pytest.mark.bridge_only
def test_a_run_whose_facts_have_changed_is_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    lines = (copy / "premises.jsonl").read_text().replace("Why is", "How is")
    (copy / "premises.jsonl").write_text(lines)
    with pytest.raises(interp.UserError, match="have changed since"):
        load_run(copy)


@pytest.mark.bridge_only
def test_damaged_effects_are_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    path = copy / "effects.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(interp.UserError, match="is damaged"):
        load_run(copy)


@pytest.mark.bridge_only
def test_report_is_written_from_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(run)])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "report.html" in capsys.readouterr().out
    assert len(page) < 6_000_000
    assert "Content-Security-Policy" in page


@pytest.fixture(scope="module")
def few(smollm: HookedModel) -> Premises:
    """Some capitals that the model knows, in two templates."""
    premises = interp.load_premises("capitals", limit=7)
    return interp.filter_known(smollm, premises, minimum=3, progress=False).with_templates(["why"])


def test_path_and_attribution_agree(smollm: HookedModel, few: Premises) -> None:
    encoded = encode_premises(smollm.tokenizer, few.first(2))
    estimate = locate_heads(smollm, encoded, method="attribution", source="masked", progress=False)
    top = estimate.mean.flatten().topk(6).indices.tolist()
    low = estimate.mean.abs().flatten().topk(6, largest=False).indices.tolist()
    heads = tuple((index // 9, index % 9) for index in top + low)
    exact = locate_heads(smollm, encoded, method="path", heads=heads, progress=False)
    values = torch.stack([exact.mean[head] for head in heads])
    assert values[:6].mean() > 5 * values[6:].abs().mean()


def test_without_a_false_premise_nothing_is_found(smollm: HookedModel, few: Premises) -> None:
    heads = tuple((layer, 1) for layer in range(2, 30, 9))
    control = locate_heads(
        smollm, few.first(2), method="path", kind="twin", source="twin", heads=heads, progress=False
    )
    found = torch.stack([control.values[:, layer, head] for layer, head in heads])
    assert found.abs().max() < RESOLUTION


def test_random_weights_give_no_significant_heads(smollm: HookedModel) -> None:
    folder = resolve("smollm2-135m")
    config = AutoConfig.from_pretrained(folder, num_hidden_layers=3)
    torch.manual_seed(1)
    random = AutoModelForCausalLM.from_config(config)
    model = interp.models.from_hf(random, smollm.tokenizer)
    premises = interp.load_premises("capitals", limit=8).with_templates(["why", "population"])
    for site in ("output", "attention"):
        effects = locate_heads(model, premises, site=site, progress=False)
        assert len(effects.select(fdr=0.05)) == 0
