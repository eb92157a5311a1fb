"""A reader that stops early, such as ``head``, is no error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import interp.cli.commands  # noqa: F401  # the copies have it imported
from interp.cli import main


def ended_with_closed_output(words: list[str], errors: Path) -> int:
    """The exit code of a command in a copy of this process, whose output nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)  # before anything is written
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.dup2(writing, 1)
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT, 0o600), 2)
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
            try:
                main(words)
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 98
            sys.stdout.flush()  # as Python does at its end
            sys.stderr.flush()
        except BrokenPipeError:
            code = 120
        finally:
            os._exit(code)
    os.close(writing)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Python 3.12 warns of threads beside a fork.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("words", [["premises", "show", "capitals"], ["locate", "--help"]])
def test_a_closed_pipe_ends_the_command_without_a_word(words: list[str], tmp_path: Path) -> None:
    assert ended_with_closed_output(words, tmp_path / "errors") == 141
    assert (tmp_path / "errors").read_text() == ""


def test_an_open_pipe_is_read_to_its_end() -> None:
    """The control: the same command says something, and ends with 0."""
    words = [sys.executable, "-m", "interp", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert "interp locate" in done.stdout
    assert done.returncode == 0
