"""A reader that stops early, such as ``head``, is no error."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("words", [["premises", "show", "capitals"], ["locate", "--help"]])
def test_a_closed_pipe_ends_the_command_without_a_word(words: list[str]) -> None:
    command = [sys.executable, "-m", "interp", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # before anything is written
        said = process.stderr.read().decode()
        code = process.wait(timeout=120)
    assert "Traceback" not in said
    assert "BrokenPipe" not in said
    assert code == 141
