"""A reader that stops early, such as ``head``, is no error."""

import json
import subprocess
import sys

CALLED = """
import json, os, sys
import interp.cli.commands
from interp.cli import main
codes = []
for words in json.loads(sys.argv[1]):
    reading, writing = os.pipe()
    os.close(reading)  # before anything is written
    if os.fork() == 0:
        os.dup2(writing, 1)
        main(words)
        sys.exit()
    codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
print(json.dumps(codes))
"""
"""Each command in a copy of one process, which has everything imported, with a closed output."""


def test_a_closed_pipe_ends_the_command_without_a_word() -> None:
    commands = [["premises", "show", "capitals"], ["locate", "--help"]]
    words = [sys.executable, "-c", CALLED, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
    assert json.loads(done.stdout) == [141, 141]


def test_an_open_pipe_is_read_to_its_end() -> None:
    """The control: the same command says something, and ends with 0."""
    words = [sys.executable, "-m", "interp", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert "interp locate" in done.stdout
    assert done.returncode == 0
