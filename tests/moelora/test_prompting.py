"""Trainings and analyses are of one tokenizer, one chat template, and one date."""

import datetime
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers.utils.chat_template_utils as chat_templates
from tokenizers import processors

import interp.commands.train
from interp.commands.analyze import AnalyzeSettings, analyze_adapter
from interp.commands.compare import CompareSettings, compare_moelora
from interp.errors import UserError
from interp.files.documents import read_json, write_json
from interp.models.folder import read_tokenizer
from interp.moelora.training.training import TrainingSettings
from tests.fixtures import CHAT_TEMPLATE

Train = Callable[[TrainingSettings, Path], Path]
DATED = "{{ strftime_now('%d %b') }}\n" + CHAT_TEMPLATE


def change_template(folder: Path) -> str:
    retemplate(folder, f"{CHAT_TEMPLATE} ")
    return "the chat template was"


def change_tokenizer(folder: Path) -> str:
    tokenizer = read_tokenizer(folder, spec="tiny")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", 0)]
    )
    tokenizer.save_pretrained(folder)
    return "the tokenizer was"


def retemplate(folder: Path, template: str) -> None:
    tokenizer = read_tokenizer(folder, spec="tiny")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


@pytest.fixture
def settings(
    tiny_training: TrainingSettings, model_folder: Path, tmp_path: Path
) -> TrainingSettings:
    """A training of two steps, of a model that a test may change."""
    model = shutil.copytree(model_folder, tmp_path / "model")
    return replace(tiny_training, model=str(model), steps=2, save_every=1, log_every=1)


def interrupted(
    train: Train, settings: TrainingSettings, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that ends when it is to be scored."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(interp.commands.train, "metrics_of", stop)
        with pytest.raises(KeyboardInterrupt):
            train(settings, run)


@pytest.mark.parametrize("change", [change_template, change_tokenizer])
def test_a_training_is_not_taken_up(
    change: Callable[[Path], str],
    settings: TrainingSettings,
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupted(train, settings, tmp_path / "begun", monkeypatch)
    run = train(settings, tmp_path / "finished")
    assert train(settings, run) == run
    said = change(Path(settings.model))
    for place in ("begun", "finished"):
        with pytest.raises(UserError, match=said) as caught:
            train(settings, tmp_path / place)
        assert "\n" not in str(caught.value)


def test_an_older_versions_training_is_given_back_but_not_gone_on_with(
    settings: TrainingSettings, train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(settings, tmp_path / "run")
    content = read_json(run / "training.json")
    asked = ("tokenizer_sha256", "chat_template_sha256", "prompt_tokens_sha256")
    write_json(run / "training.json", {key: content[key] for key in content if key not in asked})
    train(settings, run)
    assert "made by an older version, which did not note the tokenizer" in caplog.text
    (run / "metrics.json").unlink()
    with pytest.raises(UserError, match="begun by an older version"):
        train(settings, run)


def test_a_training_has_one_date(
    settings: TrainingSettings, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to(day: int) -> None:
        class Day(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime.datetime:
                return datetime.datetime(2026, 1, day)

        monkeypatch.setattr(chat_templates, "datetime", Day)

    retemplate(Path(settings.model), DATED)
    to(1)
    train(settings, tmp_path / "first day")
    interrupted(train, settings, tmp_path / "both", monkeypatch)
    to(12)
    train(settings, tmp_path / "both")
    train(settings, tmp_path / "second day")
    losses = {
        name: read_json(tmp_path / name / "metrics.json")["held_out_loss"]
        for name in ("first day", "both", "second day")
    }
    assert losses["both"] == losses["first day"] != losses["second day"]
    assert read_json(tmp_path / "both" / "manifest.json")["template_time"] == "2026-01-01T00:00:00"


def test_a_comparison_is_not_taken_up(settings: TrainingSettings, tmp_path: Path) -> None:
    wanted = CompareSettings(settings, methods=("lora",), seeds=(0,))
    compare_moelora(wanted, tmp_path / "run", device="cpu", progress=False)
    said = change_template(Path(settings.model))
    with pytest.raises(UserError, match=said):
        compare_moelora(wanted, tmp_path / "run", device="cpu", progress=False)


@pytest.mark.parametrize("change", [change_template, change_tokenizer])
def test_an_analysis_is_not_taken_up(
    change: Callable[[Path], str],
    settings: TrainingSettings,
    train: Train,
    sums: Path,
    tmp_path: Path,
) -> None:
    words = tmp_path / "words.jsonl"
    rows = [{"prompt": f"Is Rome number {i} in Italy?", "answer": "yes"} for i in range(60)]
    words.write_text("\n".join(map(json.dumps, rows)))
    wanted = AnalyzeSettings(
        data=(str(sums), str(words)),
        part="both",
        limit=12,
        least_tokens=50,
        draws=19,
        token_draws=0,
        routers=0,
        effects=0,
    )
    adapter, run = train(settings, tmp_path / "training"), tmp_path / "run"
    analyze_adapter(adapter, wanted, run, progress=False)
    analyze_adapter(adapter, wanted, run, progress=False)
    said = change(Path(settings.model))
    with pytest.raises(UserError, match=said):
        analyze_adapter(adapter, wanted, run, progress=False)
