"""Pairs for runs of ``interp patch``, and an adapter for those of ``interp moelora analyze``."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs.analysis import write_adapter_files


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """See ``write_pairs``."""
    return write_pairs(tmp_path / "pairs.jsonl")


@pytest.fixture(scope="session")
def adapter_files(chat_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See ``write_adapter_files``."""
    return write_adapter_files(tmp_path_factory.mktemp("analyze"), chat_tokenizer)


def write_pairs(path: Path) -> Path:
    """Twelve questions about a country that the model will repeat, and about another one."""
    rows = []
    for number in range(12):
        lands = [f"land{(number + i) % 16}" for i in (1, 2)]
        texts = [f"Why is city{number} the capital of {land}?" for land in lands]
        ends, start = [len(text) - 1 for text in texts], texts[0].index("land")
        row = {
            "clean": texts[0],
            "corrupted": texts[1],
            "answer": f" {lands[0]}",
            "wrong_answer": f" {lands[1]}",
            "spans": {
                "object": {"clean": [start, ends[0]], "corrupted": [start, ends[1]]},
                "end": {"clean": [ends[0], ends[0] + 1], "corrupted": [ends[1], ends[1] + 1]},
            },
            "group": f"city{number}",
        }
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows))
    return path
