"""Probes and detectors belong to a tokenizer and a chat template too."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors

import probes.detector.train
from interp.errors import UserError
from interp.files.documents import read_json, write_json
from interp.files.tensor_file import read_tensor_file, write_tensor_file
from interp.models import fingerprint, from_hf
from interp.models.fingerprint import prompting_fingerprint
from interp.premises import Premises
from probes import (
    Calibration,
    LinearProbe,
    PremiseDetector,
    detector_for,
    fit_probe,
    probe_layers,
    train_detector,
)
from tests.fixtures import CHAT_TEMPLATE, make_hf_model, make_tokenizer


def made(*, template: str | None = CHAT_TEMPLATE, begin: bool = False) -> Any:
    """A tiny model; the weights are the same, what it is asked through is not."""
    tokenizer = make_tokenizer()
    model = make_hf_model("llama", tokenizer)
    tokenizer.chat_template = template
    if begin:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|start|> $A", special_tokens=[("<|start|>", 0)]
        )
    return from_hf(model, tokenizer, fingerprint="f" * 64)


CHANGES: list[dict[str, Any]] = [
    {"template": f"{CHAT_TEMPLATE} "},
    {"template": None},
    {"begin": True},
]


def detector_of(model: Any) -> PremiseDetector:
    return PremiseDetector(
        weight=torch.ones(2, 32),
        bias=(0.0, 0.0),
        layer=1,
        calibration=Calibration("platt"),
        threshold=0.5,
        fingerprint=fingerprint(model),
        prompting=prompting_fingerprint(model.tokenizer),
    )


def probe_of(model: Any) -> LinearProbe:
    values = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    return fit_probe(
        values,
        torch.arange(20) % 2,
        layer=1,
        fingerprint=fingerprint(model),
        prompting=prompting_fingerprint(model.tokenizer),
    )


@pytest.mark.parametrize("change", CHANGES)
def test_another_tokenizer_or_template_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    model, other = made(), made(**change)
    detector, probe = detector_of(model), probe_of(model)
    folder, path = detector.save(tmp_path / "detector"), probe.save(tmp_path / "probe.safetensors")
    PremiseDetector.load(folder, model=model).check_model(model)
    LinearProbe.load(path, model=model).check_model(model)
    uses: list[Callable[[], Any]] = [
        lambda: detector.detect(other, ["Why is Rome the capital of Italy?"], progress=False),
        lambda: PremiseDetector.load(folder, model=other),
        lambda: LinearProbe.load(path, model=other),
        lambda: probe.check_model(other),
    ]
    for use in uses:
        with pytest.raises(UserError, match="another tokenizer or chat template") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_files_of_older_versions_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = made()
    folder = detector_of(model).save(tmp_path / "detector")
    content = read_json(folder / "detector.json")
    del content["prompting"]
    write_json(folder / "detector.json", content)
    with caplog.at_level(logging.WARNING):
        assert PremiseDetector.load(folder, model=made(template=None)).prompting is None
    assert "of an older version, which does not name tokenizer and chat template" in caplog.text
    path = probe_of(model).save(tmp_path / "probe.safetensors")
    tensors, said = read_tensor_file(path)
    keys = ("layer", "hook", "position", "fingerprint", "head")
    write_tensor_file(path, tensors, {key: said[key] for key in keys})
    assert LinearProbe.load(path, model=made(template=None)).prompting is None


def test_the_cache_keeps_them_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []

    def train(model: Any, **_: Any) -> PremiseDetector:
        trained.append(model)
        return detector_of(model)

    monkeypatch.setattr(probes.detector.train, "train_detector", train)
    models = [made(), *(made(**change) for change in CHANGES)]
    for model in (*models, *models):
        detector_for(model, cache_dir=tmp_path, progress=False).check_model(model)
    assert trained == models
    assert len(list(tmp_path.glob("detectors/*/detector.json"))) == len(models)


def test_what_is_fitted_notes_it(
    planted: Any, planted_premises: Premises, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = planted_premises.split(seed=0)
    wanted = prompting_fingerprint(planted.tokenizer)
    found = probe_layers(planted, split.search, split.held_out, layers=[1], progress=False)
    assert [probe.prompting for probe in found.probes] == [wanted]
    monkeypatch.setattr(probes.detector.train, "collect_material", lambda *_, **__: None)
    noted = replace(detector_of(planted), prompting=None)
    monkeypatch.setattr(
        probes.detector.train,
        "fit_detector",
        lambda _, *, prompting, **__: replace(noted, prompting=prompting),
    )
    found = train_detector(planted, [split.search], support=False, progress=False)
    assert found.prompting == wanted
