"""``interp locate`` as a function: taken up anywhere, it leaves the bytes of an undisturbed run."""

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import interp.commands.locate as locate
from interp.commands.locate import LocateSettings, load_run, locate_run
from interp.errors import UserError
from interp.files.documents import read_json, write_json
from interp.heads.locate import locate_heads
from interp.jobs import Shard
from interp.models import HookedModel
from interp.report.read_run import read_heads
from tests.runs.killing import Trials, write_premises

FILES = {
    "effects.safetensors",
    "heads.csv",
    "known.json",
    "knowledge.csv",
    "manifest.json",
    "premises.jsonl",
    "search.json",
}


@pytest.fixture
def settings(tmp_path: Path) -> LocateSettings:
    return LocateSettings(premises=str(write_premises(tmp_path)), method="activation", shard=5)


def hashes(run: Path) -> dict[str, str]:
    assert {path.name for path in run.iterdir()} == FILES
    names = FILES - {"manifest.json"}
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in names}


def stopped_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Interrupt at the so-manieth shard; the list says how many prompts each shard had."""
    sizes: list[int] = []
    real = locate.locate_shard

    def stops(model: Any, job: Any) -> Shard:
        sizes.append(len(job.encoded))
        if len(sizes) == number:
            raise KeyboardInterrupt
        return real(model, job)

    monkeypatch.setattr(locate, "locate_shard", stops)
    return sizes


@pytest.mark.parametrize("method", ["activation", "path", "attribution"])
def test_an_interrupted_run_gives_the_same_bytes(
    method: Any,
    planted: HookedModel,
    settings: LocateSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = replace(settings, method=method)
    whole = locate_run(planted, settings, tmp_path / "whole", progress=False)
    for at in (1, 3, 6):
        run = tmp_path / f"run{at}"
        with monkeypatch.context() as patch:
            sizes = stopped_at(patch, at)
            with pytest.raises(KeyboardInterrupt):
                locate_run(planted, settings, run, progress=False)
            locate_run(planted, settings, run, progress=False)
            assert sum(sizes) == 2 * 16 + sizes[at - 1]  # only that one was begun twice
            locate_run(planted, settings, run, progress=False)
            assert sum(sizes) == 2 * 16 + sizes[at - 1]
        assert hashes(run) == hashes(tmp_path / "whole")
    direct = locate_heads(
        planted,
        load_run(tmp_path / "whole")[1].search,
        method=method,
        site="output",
        progress=False,
    )
    torch.testing.assert_close(whole["output"].values, direct.values, atol=1e-4, rtol=1e-4)
    assert whole["output"].subjects == direct.subjects


def test_the_same_run_twice_gives_the_same_bytes(
    planted: HookedModel, settings: LocateSettings, tmp_path: Path
) -> None:
    found = []
    for name in ("a", "b"):
        locate_run(planted, settings, tmp_path / name, progress=False)
        found.append(hashes(tmp_path / name))
    assert found[0] == found[1]
    other = replace(settings, shard=3)
    locate_run(planted, other, tmp_path / "c", progress=False)
    assert hashes(tmp_path / "c")["search.json"] != found[0]["search.json"]


@pytest.mark.parametrize("harm", ["cut", "altered", "foreign"])
def test_damaged_effects_are_refused_or_made_again(
    harm: str,
    planted: HookedModel,
    settings: LocateSettings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = tmp_path / "run"
    locate_run(planted, settings, run, progress=False)
    good, path = hashes(run), run / "effects.safetensors"
    content = bytearray(path.read_bytes())
    if harm == "cut":
        del content[-1:]
    elif harm == "altered":
        content[-1] ^= 1
    else:
        other = replace(settings, method="attribution")
        locate_run(planted, other, tmp_path / "other", progress=False)
        content = bytearray((tmp_path / "other" / path.name).read_bytes())
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"effects of another run|is damaged") as caught:
        load_run(run)
    assert "\n" not in str(caught.value)
    with caplog.at_level(logging.WARNING):
        locate_run(planted, settings, run, progress=False)
    assert "the effects are made again" in caplog.text
    assert hashes(run) == good


def test_altered_facts_are_refused(
    planted: HookedModel, settings: LocateSettings, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    locate_run(planted, settings, run, progress=False)
    content = read_json(run / "known.json")
    write_json(run / "known.json", {**content, "subjects": content["subjects"][:-1]})
    for again in (
        lambda: load_run(run),
        lambda: locate_run(planted, settings, run, progress=False),
    ):
        with pytest.raises(UserError, match=r"known\.json was changed"):
            again()


def test_a_run_goes_on_with_the_threads_that_it_began_with(
    planted: HookedModel, settings: LocateSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    real = locate.locate_shard

    def notes(model: Any, job: Any) -> Shard:
        seen.append(torch.get_num_threads())
        return real(model, job)

    run = tmp_path / "run"
    sizes = stopped_at(monkeypatch, 1)
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyboardInterrupt):
            locate_run(planted, settings, run, progress=False)
        assert len(sizes) == 1
        torch.set_num_threads(1)
        monkeypatch.setattr(locate, "locate_shard", notes)
        locate_run(planted, settings, run, progress=False)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {2}
    assert read_json(run / "search.json")["threads"] == 2


@pytest.mark.parametrize(("command", "moments"), [("locate", 8), ("evaluate", 6), ("patch", 6)])
def test_killed_at_any_moment_it_gives_the_same_bytes(
    command: str, moments: int, tmp_path: Path
) -> None:
    trials = Trials(tmp_path, command=command).several(moments)
    assert len(trials) == moments
    # Those at a call are killed for certain.
    assert sum(one["killed"] for one in trials) >= moments // 2
    assert all(one["same"] for one in trials)
    assert [one["made_again"] for one in trials] == [0] * moments
    assert any(one["finished_shards"] for one in trials)


def test_located_again_the_table_marks_what_was_evaluated(
    planted: HookedModel,
    settings: LocateSettings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = tmp_path / "run"
    locate_run(planted, settings, run, progress=False)
    half = {"baseline": {"n": 1}, "constrained": {"n": 1}}
    evaluated = {
        **{"site": "output", "mode": "zero", "factor": 0.0, "n_heads": 2},
        **{"heads": [[0, 3], [2, 1]], "splits": {"held_out": {"false_premise": half}}},
    }
    (run / "evaluation.json").write_text(json.dumps(evaluated))
    locate_run(planted, settings, run, progress=False)
    heads = read_heads(run / "heads.csv")
    chosen = heads.loc[heads["selected"], ["layer", "head"]].to_numpy().tolist()
    assert sorted(chosen) == [[0, 3], [2, 1]]
    (run / "evaluation.json").write_text("{")
    locate_run(planted, settings, run, progress=False)
    assert "marks other heads than were evaluated" in caplog.text
