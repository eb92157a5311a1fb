"""One process a run directory: refusals name the holder, and a dead holder is none."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from interp.cli import main
from interp.errors import UserError
from interp.runs.lock import HOLDER, LOCK, check_free, holding, one_process

HOLD = (
    "import sys, time; from pathlib import Path; from interp.runs.lock import holding\n"
    "with holding(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds ``tmp_path / "run"``."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_is_dead(
    holder: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    said = f"is being written by process {holder.pid} on {socket.gethostname()}"
    with pytest.raises(UserError, match=said) as caught, holding(run):
        pass
    assert "\n" not in str(caught.value)
    for command in ("locate", "patch", "probe", "demo"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--out", str(run)])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert said in error
        assert error.count("\n") == 1
    assert {path.name for path in run.iterdir()} == {LOCK, HOLDER}
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert {path.name for path in run.iterdir()} == {LOCK, HOLDER}  # left behind, and no hindrance
    with holding(run):
        assert str(os.getpid()) in (run / HOLDER).read_text()
    assert not any(run.iterdir())


def test_a_run_may_be_made_of_runs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with holding(run):
        with holding(tmp_path / "x" / ".." / "run"):
            pass
        assert (run / LOCK).is_file()
        with holding(tmp_path / "other"):  # and another one beside it
            (tmp_path / "other" / "file").write_text("")
        refused: list[str] = []
        thread = threading.Thread(target=lambda: refused.append(refusal(run)))
        thread.start()
        thread.join()
        assert f"process {os.getpid()}" in refused[0]
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def refusal(run: Path) -> str:
    with pytest.raises(UserError) as caught, holding(run):
        pass
    return str(caught.value)


def test_directories_that_stay_empty_are_taken_away(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), holding(tmp_path / "a" / "b"):
        _ = 1 / 0
    assert not any(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    with holding(tmp_path / "there"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    check_free(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_finished_run_has_no_left_over_files(tmp_path: Path) -> None:
    (tmp_path / ".heads.csv.77.part").write_text("half")
    with pytest.raises(ZeroDivisionError), holding(tmp_path):
        _ = 1 / 0
    assert (tmp_path / ".heads.csv.77.part").exists()
    with holding(tmp_path):
        pass
    assert not any(tmp_path.iterdir())


def test_a_function_holds_its_run(tmp_path: Path) -> None:
    @one_process
    def work(what: str, run: Path, *, more: int = 1) -> str:
        assert (run / LOCK).is_file()
        return what * more

    assert work("x", tmp_path, more=3) == "xxx"
    assert work("y", run=tmp_path) == "y"
    assert not any(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be made" in refusal(tmp_path / "file")
    assert "cannot be made" in refusal(tmp_path / "file" / "run")

    def read_only(*arguments: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("filelock._unix.os.open", read_only)
    (tmp_path / "run").mkdir()
    said = refusal(tmp_path / "run")
    assert said == f"{tmp_path / 'run'} cannot be written (Read-only file system)"
    assert not any((tmp_path / "run").iterdir())
