import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp.errors import UserError
from interp.report.read_run import read_generations, read_heads, read_run


def test_a_complete_run_is_read(run_directory: Path) -> None:
    run = read_run(run_directory)
    assert list(run.heads["selected"])[:3] == [False, False, True]
    assert run.heads["effect"][0] == 0.0123456789
    assert run.heads["q_value"].isna().sum() == 1
    assert run.settings is not None
    assert run.settings["n_heads"].tolist() == [3, 1, 3]
    assert run.null is not None
    assert run.null["preference_accuracy"].tolist() == [0.25, 0.5, 0.75]
    assert run.generations is not None
    assert [pair.kind for pair in run.generations] == ["false_premise", "true_premise"]


def test_optional_files_read_as_none(run_directory: Path) -> None:
    for path in run_directory.iterdir():
        if path.name not in ("manifest.json", "heads.csv"):
            path.unlink()
    run = read_run(run_directory)
    others = (run.evaluation, run.settings, run.null, run.generations)
    assert others == (None, None, None, None)


@pytest.mark.parametrize("name", ["manifest.json", "heads.csv"])
def test_what_is_no_run_is_refused(run_directory: Path, name: str) -> None:
    (run_directory / name).unlink()
    with pytest.raises(UserError, match=f"not a run: it has no {name}"):
        read_run(run_directory)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a directory"):
        read_run(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("heads.csv", lambda text: text.replace("q_value", "q"), "lacks the columns q_value"),
        ("heads.csv", lambda text: text.replace("-0.75", "much"), "line 3: effect is 'much'"),
        ("heads.csv", lambda text: text.replace("True", "maybe"), "line 4: selected is 'maybe'"),
        ("heads.csv", lambda text: text.replace("output,1,1", "output,1.5,1"), "whole number"),
        ("heads.csv", lambda text: text.replace("output,1,1", "output,1,0"), "two rows"),
        ("heads.csv", lambda text: text.splitlines()[0], "no rows"),
        ("heads.csv", lambda text: "", "cannot be read as a CSV"),
        ("settings.csv", lambda text: text.replace("gain_low", "low"), "lacks the columns"),
        ("null.csv", lambda text: text.replace("0.75", "inf"), "not a number"),
        ("manifest.json", lambda text: text[:-3], "not valid JSON"),
        ("evaluation.json", lambda text: "[1, 2]", "must hold a JSON object"),
        ("evaluation.json", lambda text: "{}", "held_out.false_premise.baseline is missing"),
        ("evaluation.json", lambda text: '{"splits": 1}', "splits must be an object"),
        ("generations.jsonl", lambda text: text + "{", "line 3"),
        ("generations.jsonl", lambda text: text.replace("subject", "s"), "line 1: lacks subject"),
    ],
)
def test_malformed_files_are_named(
    run_directory: Path, name: str, spoil: Callable[[str], str], message: str
) -> None:
    path = run_directory / name
    path.write_text(spoil(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        read_run(run_directory)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_a_user_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    for read, start in ((read_heads, b""), (read_heads, HEADER), (read_generations, b"")):
        path.write_bytes(start + content)
        try:
            read(path)
        except UserError as error:
            assert "file" in str(error)  # noqa: PT017


HEADER = b"site,layer,head,effect,ci_low,ci_high,p_value,q_value,rank,selected\n"


def test_the_run_may_be_moved(run_directory: Path, tmp_path: Path) -> None:
    moved = shutil.move(run_directory, tmp_path / "a run with spaces")
    assert json.dumps(dict(read_run(Path(moved)).manifest))
