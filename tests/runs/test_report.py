"""``interp report`` on runs of every kind."""

import json
from pathlib import Path

import pytest

from interp.commands.patch import PatchSettings, patch_run
from interp.commands.report import report_run
from interp.errors import UserError
from interp.models import HookedModel


@pytest.fixture
def patched(planted: HookedModel, pairs_file: Path, tmp_path: Path) -> Path:
    run = tmp_path / "patched"
    settings = PatchSettings(pairs=str(pairs_file), method="attribution")
    patch_run(planted, settings, run, progress=False)
    return run


def test_a_patch_run_is_reported_from_its_files(patched: Path) -> None:
    first = (patched / "report.html").read_bytes()
    (patched / "report.html").unlink()
    assert report_run(patched) == patched / "report.html"
    assert (patched / "report.html").read_bytes() == first


def test_text_of_a_patch_run_is_only_text(patched: Path) -> None:
    summary = json.loads((patched / "summary.json").read_text())
    summary["metric"] = "</script><img src=x onerror=alert(1)>"
    (patched / "summary.json").write_text(json.dumps(summary))
    page = report_run(patched).read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_patch_run_is_told_in_one_line(patched: Path, damage: str) -> None:
    path = patched / "effects.safetensors"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError) as error:
        report_run(patched)
    assert "effects.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_training_run_has_no_page(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text("{}")
    with pytest.raises(UserError, match="interp moelora train"):
        report_run(tmp_path)


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        report_run(tmp_path)
