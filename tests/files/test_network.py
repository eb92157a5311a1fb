"""Once the model is there, nothing opens a connection: not to read, locate, evaluate or report."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Stands in the path as sitecustomize: from the first import on, a connection is an error.
BLOCKED = """
import socket

def refuse(*arguments, **options):
    with open({mark!r}, "a") as file:
        file.write(repr(arguments) + "\\n")
    raise RuntimeError("a connection was opened")

socket.socket.connect = refuse
socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
socket.create_connection = refuse
"""


@pytest.fixture
def offline(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python code in a process of its own, in which every connection is noted and fails."""
    site, mark = tmp_path / "site", tmp_path / "connections"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BLOCKED.format(mark=str(mark)))

    def run(code: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(site), *filter(None, sys.path)])
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
        )
        assert not mark.exists(), mark.read_text()
        return done

    return run


def test_the_block_is_one(offline: Any, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"127\.0\.0\.1"):
        offline("import socket; socket.create_connection(('127.0.0.1', 9))")


@pytest.mark.usefixtures("planted", "smollm")
def test_the_whole_way_on_a_directory_and_on_the_embedded_model(
    offline: Any, planted_run: Path, tmp_path: Path
) -> None:
    """Load, locate, evaluate, report and patch as a user would, and ask the embedded model."""
    folder = tmp_path / "model"
    # The planted model's own weights under the names that transformers gives them.
    from tests.files.planted_folder import write_planted

    write_planted(folder)
    facts = planted_run.parent / "planted.csv"
    texts = [f"Why is city0 the capital of {land}?" for land in ("land0", "land1")]
    pair = dict(zip(("clean", "corrupted"), texts, strict=True))
    line = json.dumps(pair | {"answer": " land0", "wrong_answer": " land1"})
    (tmp_path / "pairs.jsonl").write_text(f"{line}\n{line}\n")
    model, premises = ["--model", str(folder), "--device", "cpu"], ["--premises", str(facts)]
    evaluate = (
        "from pathlib import Path; import interp; from interp.commands.locate import load_run\n"
        "from interp.commands.evaluate import EvaluateSettings, evaluate_run\n"
        f"model = interp.load_model({str(folder)!r}, device='cpu')\n"
        "_, split, effects = load_run(Path('run'))\n"
        "settings = EvaluateSettings(heads=1, counts=(1,), answers='all')\n"
        "evaluate_run(model, split, effects, settings=settings, run=Path('run'), progress=False)\n"
    )
    command = "main({!r})\n"
    done = offline(
        "from interp.cli import main\n"
        + command.format(["locate", *model, *premises, "--out", "run", "--site", "output"])
        + evaluate
        + command.format(["report", "run"])
        + command.format(["patch", *model, "--pairs", "pairs.jsonl", "--out", "patched"])
        + "model = interp.load_model('smollm2-135m', device='cpu')\n"
        "print(interp.generate(model, 'What is the capital of France?', max_new_tokens=12))\n"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "patched" / "effects.safetensors").is_file()
    assert (tmp_path / "run" / "evaluation.json").is_file()
    assert (tmp_path / "run" / "report.html").is_file()
    assert "Paris" in done.stdout.splitlines()[-1]
