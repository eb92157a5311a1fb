"""Opening a run, the command, and the page's parts that need no browser."""

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import interp
from interp.cli import main
from interp.errors import UserError
from interp.explore import open_run, page
from interp.explore.answers import Answer, Answers, FoundPremise
from interp.explore.view import View
from interp.heads import HeadSet
from interp.interventions import Constraint
from interp.models import HookedModel
from interp.report.page import render_part

HOSTILE = "<script>alert(1)</script></script><img src=x onerror=alert(1)>"


@pytest.fixture
def run(planted_run: Path, tmp_path: Path) -> Path:
    """A copy, to be changed at will."""
    return Path(shutil.copytree(planted_run, tmp_path / "run"))


def test_an_evaluated_run_starts_with_what_was_evaluated(planted: HookedModel, run: Path) -> None:
    assert open_run(run, model=planted).start.mode == "zero"
    said = {"site": "output", "mode": "scale", "factor": -1.0, "heads": [[0, 1], [2, 2]]}
    (run / "evaluation.json").write_text(json.dumps(said))
    start = open_run(run, model=planted).start
    assert start == Constraint(HeadSet(((0, 1), (2, 2)), "output"), "scale", -1.0)
    steps = {**said, "site": "attention", "mode": "zero", "factor": None, "decoding_steps": 0}
    (run / "evaluation.json").write_text(json.dumps(steps))
    explorer = open_run(run, model=planted)
    assert explorer.start.decoding_steps == 0
    assert View(explorer).constraint == explorer.start
    (run / "evaluation.json").write_text(json.dumps({**said, "site": "output + experts"}))
    assert open_run(run, model=planted).start.heads.chosen_by == "selected in the run"


def test_what_is_no_run_is_refused(
    run: Path, planted: HookedModel, tiny_llama: HookedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (run / "nowhere", run.parent):
        with pytest.raises(SystemExit) as stop:
            main(["explore", str(wrong), "--no-open"])
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError, match="was made with the model 'planted'"):
        open_run(run, model=tiny_llama)
    (run / "heads.csv").unlink()
    with pytest.raises(UserError, match=r"has no heads\.csv: only a run of `interp locate`"):
        open_run(run, model=planted)


def test_a_model_needs_effects(planted: HookedModel) -> None:
    with pytest.raises(UserError, match=r"page\(model, effects=effects\)"):
        interp.explore.page(planted)


def test_without_panel_one_line_says_what_to_install(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true_import = builtins.__import__

    def without_panel(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == "panel":
            raise ImportError(name)
        return true_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_panel)
    with pytest.raises(SystemExit) as stop:
        main(["explore", str(run), "--no-open"])
    assert stop.value.code == 2
    assert "pip install 'faithlens[explore]'" in capsys.readouterr().err


def test_the_server_listens_on_the_loopback_address_only(planted: HookedModel, run: Path) -> None:
    from interp.explore.serve import LOOPBACK, address_of, make_server  # panel takes seconds

    server = make_server(open_run(run, model=planted))
    try:
        sockets = list(server._http._sockets.values())
        assert {one.getsockname()[0] for one in sockets} == {LOOPBACK}
        assert address_of(server) == f"http://localhost:{server.port}/"
        with pytest.raises(UserError, match=f"port {server.port} cannot be used"):
            make_server(open_run(run, model=planted), port=server.port or 0)
    finally:
        server.stop()
    with pytest.raises(UserError, match="0 to 65535"):
        make_server(open_run(run, model=planted), port=70000)


def test_a_notebook_gets_a_panel_object(planted: HookedModel, run: Path) -> None:
    shown = page(run, model=planted)
    assert hasattr(shown, "_repr_mimebundle_")
    assert shown.get_root() is not None


def test_all_text_of_an_answer_is_escaped() -> None:
    question = f"Why is {HOSTILE} in Germany?"
    start = question.index("Germany")
    answers = Answers(
        question,
        FoundPremise((start, start + 7), (3, 4), "you"),
        Constraint(HeadSet(((0, 1),))),
        Answer(f"In Germany. {HOSTILE}", 0.25),
        Answer(f"Not there: {HOSTILE}", 1.5),
        true_object=HOSTILE,
    )
    html = render_part("explore.html.j2", answers=answers)
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("&lt;script&gt;") >= 4
    assert "<mark>Germany</mark>" in html
    assert "0.2 s" in html
    message = render_part("explore_message.html.j2", text=HOSTILE, wrong=True)
    assert "<script" not in message
