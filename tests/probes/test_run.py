"""``interp probe``: a whole run on a tiny model that knows the facts put into it."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

import interp.commands.known
import interp.commands.probe
from interp.cli import main
from interp.cli.options import ProbeOptions
from interp.commands.probe import ProbeSettings, best_layer, probe_run, write_probe_report
from interp.errors import UserError
from interp.models import HookedModel
from interp.premises import Premises
from tests.unchecked import unchecked

FILES = {
    "probe.json",
    "manifest.json",
    "known.json",
    "knowledge.csv",
    "premises.jsonl",
    "auc.csv",
    "auc_heads.csv",
    "controls.csv",
    "controls.json",
    "detection.json",
    "report.html",
}


@pytest.fixture(scope="module")
def relation(planted_premises: Premises, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted relation as a user's two files."""
    folder = tmp_path_factory.mktemp("relation")
    planted = planted_premises.relation
    content = {
        "name": planted.name,
        "templates": {one.name: one.text for one in planted.templates},
        "search_templates": list(planted.search_templates),
        "cloze": planted.cloze,
        "direct": planted.direct,
    }
    (folder / "planted.yaml").write_text(yaml.safe_dump(content))
    rows = [f"{fact.subject},{fact.object}" for fact in planted.facts]
    path = folder / "planted.csv"
    path.write_text("\n".join(["subject,object", *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def run(planted: HookedModel, relation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "probe"
    settings = ProbeSettings(str(relation), heads=True)
    probe_run(planted, settings, folder, progress=False)
    return folder


def test_a_run_is_complete(run):
    assert {path.name for path in run.iterdir() if path.is_file()} >= FILES
    assert not (run / "activations").exists()
    table = pd.read_csv(run / "auc.csv")
    assert set(table["position"]) == {"subject", "object", "object_mean", "last"}
    assert sorted(set(table["layer"])) == [0, 1, 2]
    assert len(pd.read_csv(run / "auc_heads.csv")) == 12
    controls = json.loads((run / "controls.json").read_text())
    assert controls["layer"] == best_layer(table)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["settings"]["heads"] is True
    assert len(manifest["prompts_sha256"]) == 64


def test_the_report_stands_alone(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Where the premise can be read" in page
    assert "Which heads carry it" in page
    assert json.loads((run / "controls.json").read_text())["sentence"] in page
    assert "<script src" not in page
    assert "<link" not in page


def test_the_same_call_takes_up_what_is_there(run, relation, planted, monkeypatch):
    before = (run / "auc.csv").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(interp.commands.known, "check_knowledge", fail)
    for name in ("probe_grid", "probe_heads"):
        monkeypatch.setattr(interp.commands.probe, name, fail)
    probe_run(planted, ProbeSettings(str(relation), heads=True), run, progress=False)
    assert (run / "auc.csv").read_bytes() == before


def test_another_run_is_refused(run, relation, planted, honest):
    with pytest.raises(UserError, match="holds another run"):
        probe_run(planted, ProbeSettings(str(relation), heads=True, seed=1), run, progress=False)
    with pytest.raises(UserError, match="fingerprint was"):
        probe_run(honest, ProbeSettings(str(relation), heads=True), run, progress=False)


def test_bad_settings(tmp_path):
    with pytest.raises(UserError, match="heads are probed with --heads"):
        unchecked(ProbeSettings, hook="z")
    with pytest.raises(UserError, match="no finished run of `interp probe`"):
        write_probe_report(tmp_path)


def test_the_command(relation, planted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("interp.cli.probe.load", lambda options, console: planted)
    out = tmp_path / "run"
    main(["probe", "--premises", str(relation), "--out", str(out), "--no-detector"])
    printed = capsys.readouterr().out
    assert "AUC on held-out subjects and templates" in printed
    assert (out / "report.html").is_file()
    assert not (out / "detection.json").exists()
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["detector"] is False
    assert set(config) == set(vars(ProbeOptions()))
    with pytest.raises(SystemExit) as stop:
        main(["probe", "--premises", "capitols", "--out", str(tmp_path / "other")])
    assert stop.value.code == 2
    assert "unknown relation 'capitols'" in capsys.readouterr().err
