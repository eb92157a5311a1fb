"""Runs of the planted model and of a tiny chat model, evaluated at both sites."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.commands.export import ExportSettings, export_run
from interp.commands.locate import LocateSettings, locate_run
from interp.interventions import Intervention
from interp.models import fingerprint_of_folder, load_model, render_chat
from probes.detector.calibration import Calibration
from probes.detector.detector import PremiseDetector
from tests.files.planted_folder import write_planted
from tests.fixtures import PLANTED_HEADS
from tests.report.conftest import metrics

CHAT_HEADS = [[0, 1], [1, 2], [1, 0]]
_BEST_FIRST = [(site, PLANTED_HEADS[site]) for site in ("attention", "output")]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted model's files."""
    folder = tmp_path_factory.mktemp("base") / "planted"
    write_planted(folder)
    return folder


def evaluation(site: str, heads: list[list[int]], gate: str = "oracle") -> dict[str, Any]:
    """An evaluation.json, of which only the heads matter here."""
    runs = {"baseline": metrics(0.25), "constrained": metrics(0.75)}
    return {
        **{"model": "planted", "dtype": "float32", "n_heads": len(heads), "heads": heads},
        **{"site": site, "mode": "zero", "factor": 0.0, "gate": gate, "chosen_by": "1 largest"},
        "splits": {"held_out": {"false_premise": runs, "true_premise": runs, "templates": {}}},
    }


@pytest.fixture(scope="session")
def run(planted_run: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of the planted model by its files, and an evaluation that is best at attention."""
    folder = tmp_path_factory.mktemp("exporting") / "run"
    settings = LocateSettings(premises=str(planted_run.parent / "planted.csv"))
    locate_run(load_model(base, device="cpu"), settings, folder, progress=False)
    best, other = (evaluation(site, [list(head)]) for site, head in _BEST_FIRST)
    content = json.dumps({**best, "alternatives": [other]})
    (folder / "evaluation.json").write_text(content, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def chat_run(
    hf_factory: Callable[..., Any], chat_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What export needs of a run of a tiny chat model, whose detector fires on everything."""
    folder, model = tmp_path_factory.mktemp("chat") / "run", tmp_path_factory.mktemp("tiny")
    hf_factory("llama", chat_tokenizer).save_pretrained(model)
    chat_tokenizer.save_pretrained(model)
    found = fingerprint_of_folder(model)
    PremiseDetector(
        weight=torch.randn(2, 32, generator=torch.Generator().manual_seed(0)),
        bias=(0.1, -0.2),
        layer=1,
        calibration=Calibration("platt", slope=0.1),
        threshold=0.0,
        fingerprint=found,
    ).save(folder / "detector")
    entries = {"spec": str(model), "fingerprint": found, "n_layers": 3, "n_heads": 4}
    manifest = {"model": entries, "dtype": "float32", "versions": {"torch": "2"}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    content = json.dumps(evaluation("attention", CHAT_HEADS, "probe"))
    (folder / "evaluation.json").write_text(content, encoding="utf-8")
    return folder


@pytest.fixture
def exported(chat_run: Path, tmp_path: Path) -> Path:
    """With gate ``probe``, without weights."""
    to = tmp_path / "exported"
    export_run(chat_run, to, ExportSettings(), progress=False)
    return to


def ask(model: Any, tokenizer: Any, *questions: str) -> list[str]:
    """The first word of each answer."""
    prompts = [render_chat(tokenizer, question).text for question in questions]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    ids = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=1,
        do_sample=False,
    )
    return tokenizer.batch_decode(ids[:, -1:])


def origin_of(path: Path) -> Any:
    """The origin of the heads in an intervention's file."""
    return Intervention.load(path).heads[0].heads.origin
