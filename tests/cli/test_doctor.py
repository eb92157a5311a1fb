"""``interp doctor`` names what is missing, and the command that mends it."""

import importlib
import shutil
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from interp.cli import main
from interp.commands import doctor
from interp.commands.doctor import Finding, diagnose


def by_topic(cache_dir: Path | None = None) -> dict[str, Finding]:
    return {finding.topic: finding for finding in diagnose(cache_dir)}


def test_this_machine_has_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    found = by_topic()
    assert all(finding.ok for finding in found.values())
    assert found["torch"].found == metadata.version("torch")
    assert "GiB free" in found["cpu"].found
    assert "float32" in found["cpu"].found
    main(["doctor"])
    out = capsys.readouterr().out
    assert "transformer-lens" in out
    assert out.rstrip().endswith("ready")


def test_missing_and_old_packages_are_faults_with_their_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = [
        Requirement("torch>=99"),
        Requirement("no-such-package>=1,<2"),
        Requirement("numpy"),
        Requirement('other-package>=3; extra == "ray"'),
        Requirement('never-wanted; python_version < "3"'),
    ]
    monkeypatch.setattr(doctor, "_requirements", lambda: needed)
    found = by_topic()
    assert not found["torch"].ok
    assert found["torch"].remedy == "pip install 'torch>=99'"
    assert found["no-such-package"].found == "not installed"
    assert found["no-such-package"].remedy == "pip install 'no-such-package<2,>=1'"
    assert found["numpy"].ok
    assert found["extra ray"].ok  # optional
    assert found["extra ray"].remedy == "pip install 'faithlens[ray]'"
    assert "never-wanted" not in found
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "faithlens[ray]" in out  # square brackets and all
    assert "2 to mend: torch, no-such-package" in out


def test_a_package_that_cannot_be_imported_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def import_module(name: str) -> Any:
        if name == "torch":
            raise OSError("libtorch.so: cannot open shared object file\nmore")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    found = [finding for finding in diagnose() if "cannot be imported" in finding.found]
    assert [finding.topic for finding in found] == ["torch"]
    assert "\n" not in found[0].found


def test_gpus_are_listed_with_their_memory_and_a_lost_one_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def memory(name: str) -> tuple[int, int]:
        if name == "cuda:1":
            raise RuntimeError("CUDA error: device lost")
        return 3 * 2**30, 8 * 2**30

    cuda = SimpleNamespace(
        device_count=lambda: 2, mem_get_info=memory, get_device_name=lambda name: "Card"
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(doctor, "_dtypes", lambda _, device: "float32")
    found = by_topic()
    assert found["cuda:0"].found == "Card, 3.0 GiB of 8.0 GiB free; float32"
    assert not found["cuda:1"].ok
    assert found["cuda:1"].found == "does not work: CUDA error: device lost"


def test_a_device_that_multiplies_wrongly_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    works = doctor._seconds_of_product
    narrow_fails = {"float32": 1.0, "bfloat16": None, "float16": 0.5}
    monkeypatch.setattr(doctor, "_seconds_of_product", lambda *which: narrow_fails[which[2]])
    assert by_topic()["cpu"].found.endswith("; float32, float16 (2 × its rate)")
    monkeypatch.setattr(doctor, "_seconds_of_product", works)
    wrong = torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2))
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *_: wrong)
    found = by_topic()["cpu"]
    assert not found.ok
    assert found.found == "does not work: no product of matrices in float32"


def test_the_cache_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = by_topic(tmp_path / "new" / "cache")
    assert found["cache"].ok
    assert found["embedded model"].ok
    assert "premises check" in found["embedded model"].remedy
    assert not (tmp_path / "new").exists()  # it only looks
    full = SimpleNamespace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    assert "FAITHLENS_CACHE" in by_topic(tmp_path)["cache"].remedy
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert "cannot be written" in by_topic(tmp_path)["cache"].found


def test_it_takes_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--device", "cpu"])
    assert stop.value.code == 2
    assert (
        capsys.readouterr().err
        == "error: interp doctor takes no options, and was given '--device'\n"
    )
    main(["doctor", "--help"])
    assert "usage: interp doctor" in capsys.readouterr().out
