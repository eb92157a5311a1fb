"""``interp card``: pages of the heads of a run, on one of its prompts."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import interp.cli.commands
from interp.cli import main
from interp.commands.card import CardSettings, card_run
from interp.commands.circuit import CircuitSettings, circuit_run
from interp.commands.patch import PatchSettings, patch_run
from interp.errors import UserError
from interp.models import HookedModel


def test_cards_of_a_search(
    planted: HookedModel,
    planted_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(planted_run, run)
    monkeypatch.setattr(interp.cli.commands, "load_model", lambda *args, **kwargs: planted)
    main(["card", str(run), "--count", "1"])
    assert "a0.h1.html" in capsys.readouterr().out.replace("\n", "")
    main(["card", str(run), "--head", "1.2", "--prompt", "1"])
    page = (run / "cards" / "a1.h2.html").read_text(encoding="utf-8")
    assert "site output" in page
    assert "site attention" in page
    assert "promotes “land" in page
    with pytest.raises(SystemExit) as stop:
        main(["card", str(run), "--head", "9.9"])
    assert stop.value.code == 2
    assert "does not exist" in capsys.readouterr().err


def test_cards_of_patched_heads_and_of_edges(
    planted: HookedModel, pairs_file: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"pairs": str(pairs_file), "limit": 4}
    patched, circuit = tmp_path / "patched", tmp_path / "circuit"
    patch_run(planted, PatchSettings(**options), patched, progress=False)
    settings = CircuitSettings(**options, method="eap", held_out=0.0, n_random=0)
    circuit_run(planted, settings, circuit, progress=False)
    (card,) = card_run(planted, patched, CardSettings(count=1))
    assert card.name in ("a0.h1.html", "a1.h2.html")
    assert "rank 1 of 12 heads" in card.read_text()
    cards = card_run(planted, circuit, CardSettings(count=2))
    assert {card.name for card in cards} == {"a0.h1.html", "a1.h2.html"}
    assert 'id="edges"' in cards[0].read_text()
    with pytest.raises(UserError, match="no prompt 4"):
        card_run(planted, circuit, CardSettings(prompt=4))
    by_position = tmp_path / "spans"
    patch_run(planted, PatchSettings(**options, positions="each"), by_position, progress=False)
    with pytest.raises(UserError, match="cards need"):
        card_run(planted, by_position, CardSettings())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": ("x",)}, "no head"),
        ({"head": ("3",)}, "no head"),
        ({"count": 0}, "count"),
        ({"prompt": -1}, "prompt"),
    ],
)
def test_bad_settings_are_told(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CardSettings(**options)
    assert CardSettings(head=("a3.h1", "3.2")).heads() == [(3, 1), (3, 2)]
