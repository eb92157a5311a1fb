"""The page says what came out, and the script's exit code too."""

from pathlib import Path

import pytest

from scripts import architectures
from tests.zoo.checks import COLUMNS
from tests.zoo.outcome import Outcome
from tests.zoo.page import failures, render
from tests.zoo.registry import ZOO

Row = dict[str, list[Outcome]]
NO_K = "this model has no 'k'"


def right(column: str = "z") -> Row:
    hooks = [Outcome("hooks", "yes", "fast")]
    return {"hooks": hooks, **{name: [Outcome(name, "yes")] for name in COLUMNS}}


def rows(**changed: Row) -> dict[str, Row]:
    return {name: changed.get(name, right()) for name in ZOO}


def line_of(page: str, name: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {name}<br>")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_architecture_has_a_line_with_a_cell_a_column() -> None:
    page = render(rows(), date="2026-01-31")
    for name in ZOO:
        assert line_of(page, name)[2:] == ["fast", *["yes"] * len(COLUMNS)]


def test_refusals_are_numbered_and_their_words_are_below() -> None:
    mixed = right() | {
        "q k v": [Outcome("q", "yes"), Outcome("k", "refused", NO_K), Outcome("v", "refused", "b")],
        "IG": [Outcome("z", "refused", "b")],
    }
    page = render(rows(Llama=mixed), date="2026-01-31")
    cells = line_of(page, "Llama")
    at = {column: cells[3 + index] for index, column in enumerate(COLUMNS)}
    assert at["q k v"] == "yes<br>k: no <sup>1</sup><br>v: no <sup>2</sup>"
    assert at["IG"] == "no <sup>2</sup>"
    assert f"\n1. `{NO_K}`\n2. `b`\n" in page


def test_what_is_wrong_is_shown_and_counted() -> None:
    wrong = right() | {"z": [Outcome("z", "FAIL", "off by 1, where the largest is 2")]}
    assert line_of(render(rows(Llama=wrong), date="2026-01-31"), "Llama")[3] == "**FAIL**"
    assert failures({"Llama": wrong}) == ["Llama: z / z: off by 1, where the largest is 2"]


def test_a_model_that_cannot_be_hooked_has_no_cells() -> None:
    row = {"hooks": [Outcome("hooks", "refused", "not known")]}
    cells = line_of(render(rows(Llama=row), date="2026-01-31"), "Llama")
    assert cells[2] == "no <sup>1</sup>"
    assert set(cells[3:]) == {""}


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The script with a page of its own; every row is right unless its name begins with GPT."""

    def run(species: object) -> Row:
        name = getattr(species, "name", "")
        bad = {"z": [Outcome("z", "FAIL", "off")]} if name == "GPT-J" else {}
        if name == "GPT-2":
            raise RuntimeError("broken")
        return right() | bad

    monkeypatch.setattr(architectures, "run_checks", run)
    monkeypatch.setattr(architectures, "quiet", lambda: None)
    monkeypatch.setattr(architectures, "ROOT", tmp_path)
    monkeypatch.setattr(architectures, "PAGE", tmp_path / "page.md")
    return tmp_path / "page.md"


def test_the_exit_code_says_whether_something_is_wrong(
    faked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert architectures.main(["--jobs", "1", "--only", "Llama", "Jamba"]) == 0
    assert architectures.main(["--jobs", "1", "--only", "GPT-J"]) == 1
    assert "FAIL GPT-J: z / z: off" in capsys.readouterr().out
    assert architectures.main(["--jobs", "1", "--only", "GPT-2"]) == 1
    assert "RuntimeError: broken" in capsys.readouterr().out
    assert not faked.exists()


def test_check_compares_with_the_page(
    faked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(architectures, "run_checks", lambda species: right())
    assert architectures.main(["--jobs", "1", "--check"]) == 1
    assert architectures.main(["--jobs", "1"]) == 0
    assert architectures.main(["--jobs", "1", "--check"]) == 0
    text = faked.read_text(encoding="utf-8")
    faked.write_text(text.replace("fast", "hooked", 1), encoding="utf-8")
    assert architectures.main(["--jobs", "1", "--check"]) == 1
    assert "on disk" in capsys.readouterr().out


def test_mistakes_and_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--only", "Lama"], ["--check", "--only", "Llama"]):
        with pytest.raises(SystemExit) as stopped:
            architectures.main(words)
        assert stopped.value.code == 2
    assert "unknown architecture 'Lama'" in capsys.readouterr().err
    assert architectures.main(["--list"]) == 0
    assert all(name in capsys.readouterr().out for name in ("Llama",))


def test_the_page_on_disk_has_all_rows_and_nothing_wrong() -> None:
    page = architectures.PAGE.read_text(encoding="utf-8")
    assert "**FAIL**" not in page, "run python scripts/architectures.py"
    for name in ZOO:
        assert line_of(page, name)
