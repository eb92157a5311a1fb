"""Mutated files and raw bytes for every reader: it reads, or it raises the package's own error.

`benchmarks/fuzz.py` does the same with ten thousand inputs a reader.
"""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp.errors import UserError
from tests.fuzz.mutations import mutate
from tests.fuzz.readers import READERS, Reader, fresh

INPUTS = 24
# transformers renames gradient checkpointing; PEFT knows the old names only.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`(is_)?gradient_checkpointing(_enable)?` is deprecated:FutureWarning",
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
)
PROPERTY = settings(
    derandomize=True,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(params=sorted(READERS))
def reader(request: pytest.FixtureRequest) -> Reader:
    return READERS[request.param]


@pytest.fixture
def valid(reader: Reader, tmp_path: Path) -> dict[str, bytes]:
    return fresh(reader, tmp_path / "input")


def outcome(reader: Reader, folder: Path) -> str:
    said = None
    try:
        reader.read(folder)
    except UserError as error:
        said = str(error)
    assert said is None or (said and said.isprintable())
    return "read" if said is None else "refused"


def test_the_valid_files_are_read(reader: Reader, valid: Any, tmp_path: Path) -> None:
    """Negative control: without this a reader that refuses everything would pass."""
    assert outcome(reader, tmp_path / "input") == "read"


def test_mutated_files_are_read_or_refused(reader: Reader, valid: Any, tmp_path: Path) -> None:
    folder, seen = tmp_path / "input", set()
    for number in range(INPUTS):
        draw = random.Random(f"test/{number}")
        name = draw.choice(sorted(valid))
        (folder / name).write_bytes(mutate(valid[name], reader.kinds[name], draw))
        seen.add(outcome(reader, folder))
        (folder / name).write_bytes(valid[name])
    assert "refused" in seen


@PROPERTY
@given(raw=st.binary(max_size=300), pick=st.integers(0, 99))
def test_any_bytes_are_read_or_refused(
    reader: Reader, valid: Any, tmp_path: Path, raw: bytes, pick: int
) -> None:
    folder = tmp_path / "input"
    name = sorted(valid)[pick % len(valid)]
    (folder / name).write_bytes(raw)
    outcome(reader, folder)
    (folder / name).write_bytes(valid[name])


def test_a_missing_file_is_told(reader: Reader, valid: Any, tmp_path: Path) -> None:
    folder = tmp_path / "input"
    for name in sorted(valid):
        (folder / name).unlink()
        outcome(reader, folder)
        (folder / name).write_bytes(valid[name])
