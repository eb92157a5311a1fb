"""The code in the README and in the documentation: all names are there, and what is cheap runs.

Pages run from top to bottom in one namespace. ``interp.load_model`` gives a stand-in: the planted
model, which has everything that FAITH needs and answers in milliseconds. Facts, pairs and neutral
sentences are such as it can read.
"""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import plotly.graph_objects as go
import pytest
import torch

import interp
import probes
import probes.detector.detect
from interp.interventions import Detection
from interp.models import render_chat
from interp.premises.encode import token_span, tokenize
from interp.tasks import Pair, Pairs
from tests.docs.snippets import Snippet, faults, pages, snippets_in, snippets_of

NOT_RUN = {
    "docs/experts_heads.md": "written by a script; tests/experts/test_heads.py makes these calls",
    "docs/explore.md": "opens a finished run; tests/explore does",
}
PAGES = pages()
RUN = [page for page in PAGES if page not in NOT_RUN]


@pytest.mark.parametrize("page", PAGES)
def test_every_name_in_the_code_is_there(page: str) -> None:
    names: dict[str, Any] = {"interp": interp, "probes": probes, "peft": peft}
    found = [f"{one}: {fault}" for one in snippets_of(page) for fault in faults(one.code, names)]
    assert not found, "\n".join(found)


class NamedCountry:
    """A detector that fires on the last word of a question."""

    def detect(
        self, model: Any, questions: Any, *, system: str | None = None, progress: bool = True
    ) -> list[Detection]:
        return [self._one(model, question, system) for question in questions]

    def _one(self, model: Any, question: str, system: str | None) -> Detection:
        end = len(question.rstrip("?"))
        start = question.rstrip("?").rfind(" ") + 1
        rendered = render_chat(model.tokenizer, question, system=system)
        offsets = tokenize(model.tokenizer, rendered)["offset_mapping"]
        begin = rendered.question_start
        span = token_span(offsets, rendered.text, (begin + start, begin + end))
        return Detection(True, 0.9, (start, end), span)


@pytest.fixture(scope="module")
def adapted_base(hf_factory: Callable[..., Any], chat_tokenizer: Any, tmp_path_factory: Any) -> Any:
    """A tiny model, in memory and in a directory; it has the layer 3 that pages look at."""
    hf_model = hf_factory("llama", chat_tokenizer, num_hidden_layers=4)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    hf_model.save_pretrained(folder)
    chat_tokenizer.save_pretrained(folder)
    return SimpleNamespace(hf_model=hf_model, tokenizer=chat_tokenizer, folder=folder)


@pytest.fixture
def names(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    planted: Any,
    planted_premises: Any,
    adapted_base: Any,
) -> dict[str, Any]:
    """The namespace that a page begins with, and the stand-ins that it meets."""
    page = request.getfixturevalue("page")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(interp, "load_model", lambda spec="", **options: planted)
    monkeypatch.setattr(interp, "load_premises", lambda name, **options: planted_premises)
    monkeypatch.setattr(interp.tasks, "ioi_pairs", lambda n, **options: Pairs(PAIRS[:n], "ioi"))
    neutral = ("Question: What is the population of a city?", "Answer: When did it become famous?")
    # A function of the same name stands before the module in its package.
    side_effects = importlib.import_module("interp.evaluation.side_effects")
    monkeypatch.setattr(side_effects, "neutral_sentences", lambda: neutral)
    monkeypatch.setattr(interp.models, "resolve", lambda spec: adapted_base.folder)
    for place in (probes, probes.detector.detect):
        monkeypatch.setattr(place, "detector_for", lambda model, **options: NamedCountry())
    monkeypatch.setattr(go.Figure, "show", lambda figure: None)  # would open a browser
    (tmp_path / "mine.jsonl").write_text(json.dumps(PAIRS[0].row()) + "\n", encoding="utf-8")
    begin: dict[str, Any] = {"__name__": "page", "interp": interp, "probes": probes, "peft": peft}
    if page == "README.md":
        begin |= {"hf_model": adapted_base.hf_model, "tokenizer": adapted_base.tokenizer}
        begin |= {"tokens": torch.tensor([[1, 2, 3]])}
    return begin


PAIRS = tuple(
    Pair(f"city{i} is the capital of", f"city{i + 1} is the capital of", f"land{i}", f"land{i + 1}")
    for i in range(8)
)


@pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("page", RUN)
def test_what_is_cheap_runs(page: str, names: dict[str, Any]) -> None:
    for snippet in snippets_of(page):
        if snippet.not_run is None:
            run(snippet, names)


def run(snippet: Snippet, names: dict[str, Any]) -> None:
    """Run one block; what it raises says where it stands on the page."""
    padded = "\n" * (snippet.line - 1) + snippet.code
    exec(compile(padded, snippet.page, "exec"), names)


def test_a_missing_name_and_a_wrong_keyword_are_found() -> None:
    code = "import interp\ninterp.locate_heads(model, split, sight='output')\ninterp.locate()\n"
    assert list(faults(code, {})) == [
        "line 2: interp.locate_heads takes no sight",
        "line 3: interp has no locate",
    ]
    (fault,) = faults("from interp.heads import Headset\n", {})
    assert "Headset" in fault


def test_what_is_known_of_a_variable_is_forgotten() -> None:
    assert list(faults("import interp\ninterp = 3\ninterp.nothing\n", {})) == []


def test_blocks_are_read_with_their_line_and_mark() -> None:
    text = "a\n\n<!-- not run: slow -->\n```python\nx = 1\n```\n\n```python\ny = 2\n```\n"
    first, second = snippets_in(text)
    assert (first.line, first.code, first.not_run) == (5, "x = 1\n", "slow")
    assert (second.line, second.code, second.not_run) == (9, "y = 2\n", None)
