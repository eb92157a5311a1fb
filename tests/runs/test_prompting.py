"""All that decides a prompt is part of what a run is: tokenizer, template, facts, and the date."""

import datetime
import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.utils.chat_template_utils as chat_templates
from tokenizers import processors

from interp.commands.evaluate import EvaluateSettings, evaluate_run
from interp.commands.known import prompts_identity
from interp.commands.locate import LocateSettings, effects_digest, load_run, locate_run
from interp.commands.patch import PatchSettings, patch_run
from interp.commands.probe import ProbeSettings, probe_run
from interp.commands.report import report_run
from interp.errors import UserError
from interp.explore.opening import open_run
from interp.files.documents import read_json, write_json
from interp.heads.effects import load_effects, save_effects
from interp.models import from_hf
from interp.premises import load_premises
from interp.runs.clock import run_clock
from interp.runs.manifest import read_manifest
from interp.runs.prompting import PROMPTS, end_tokens
from tests.fixtures import make_planted_hf_model, make_word_tokenizer, planted_relation
from tests.runs.killing import write_premises
from tests.runs.stopping import Stopping

TURN = "{{ messages[0]['content'] }}\nAnswer:"
DATED = "{{ 'Why' if strftime_now('%d') | int < 10 else 'When' }} Question: " + TURN
KEYS = ("tokenizer_sha256", "chat_template_sha256", "end_tokens", PROMPTS)


@cache
def made(
    template: str | None = f"Question: {TURN}",
    *,
    ends: tuple[int, ...] = (0,),
    begin: bool = False,
) -> Any:
    """The planted model; of what its prompts hang on, one thing may be changed."""
    tokenizer = make_word_tokenizer(planted_relation())
    tokenizer.chat_template = template
    if begin:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<unk> $A", special_tokens=[("<unk>", 1)]
        )
    model = make_planted_hf_model(tokenizer)
    model.generation_config.eos_token_id = list(ends)
    return from_hf(model, tokenizer, spec="planted", fingerprint="f" * 64)


CHANGES: dict[str, tuple[Callable[[], Any], str]] = {
    "template": (lambda: made(f"Why Question: {TURN}"), "the chat template was"),
    "no template": (lambda: made(None), "the chat template was"),
    "tokenizer": (lambda: made(begin=True), "the tokenizer was"),
    "ends": (lambda: made(ends=(0, 1)), r"the tokens that end an answer was \[0\], now \[0, 1\]"),
}


@pytest.fixture(params=list(CHANGES))
def changed(request: pytest.FixtureRequest) -> tuple[Any, str]:
    """A model that is asked in another way, and what is said of it."""
    make, said = CHANGES[request.param]
    return make(), said


def settings_in(folder: Path) -> LocateSettings:
    return LocateSettings(premises=str(write_premises(folder)), site="output", shard=8)


@pytest.fixture
def search(tmp_path: Path) -> LocateSettings:
    return settings_in(tmp_path)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocateSettings, Path]:
    """A search that was stopped after its first shard, to be read only."""
    folder = tmp_path_factory.mktemp("begun")
    settings = settings_in(folder)
    with pytest.raises(KeyboardInterrupt):
        locate_run(made(), settings, folder / "run", engine=Stopping(made(), 1), progress=False)
    return settings, folder / "run"


@pytest.fixture(scope="module")
def finished(
    begun: tuple[LocateSettings, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[LocateSettings, Path]:
    """The same search, taken up and finished, to be read only."""
    settings, run = begun
    run = shutil.copytree(run, tmp_path_factory.mktemp("finished") / "run")
    locate_run(made(), settings, run, progress=False)
    return settings, run


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[ProbeSettings, Path]:
    """A finished comparison of probes, to be read only."""
    folder = tmp_path_factory.mktemp("probed")
    premises = settings_in(folder).relation
    settings = ProbeSettings(premises, method="mean_difference", detector=False)
    probe_run(made(), settings, folder / "run", progress=False)
    return settings, folder / "run"


@pytest.fixture
def today(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the clock that chat templates read to a day of a month."""

    def to(day: int) -> None:
        class Day(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime.datetime:
                return datetime.datetime(2026, 1, day, 12)

        monkeypatch.setattr(chat_templates, "datetime", Day)

    return to


def listing(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in run.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def refused(what: Callable[[], Any], said: str, run: Path) -> None:
    before = listing(run)
    with pytest.raises(UserError, match=said) as caught:
        what()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(run))
    assert listing(run) == before


def evaluated(model: Any, run: Path) -> Any:
    _, split, effects = load_run(run)
    settings = EvaluateSettings(heads=1.0, random_sets=20, counts=(1,))
    return evaluate_run(model, split, effects, settings=settings, run=run, progress=False)


def test_a_search_is_not_taken_up(
    changed: tuple[Any, str],
    begun: tuple[LocateSettings, Path],
    finished: tuple[LocateSettings, Path],
) -> None:
    model, said = changed
    for search, run in (begun, finished):
        refused(lambda: locate_run(model, search, run, progress=False), said, run)  # noqa: B023
    refused(lambda: evaluated(model, run), said, run)
    refused(lambda: open_run(run, model=model), said, run)
    assert all(key in read_manifest(run) for key in KEYS)


def test_probes_are_not_taken_up(
    changed: tuple[Any, str], probed: tuple[ProbeSettings, Path]
) -> None:
    (model, said), (settings, run) = changed, probed
    refused(lambda: probe_run(model, settings, run, progress=False), said, run)
    assert read_manifest(run)[PROMPTS] == read_json(run / "probe.json")[PROMPTS]


@pytest.mark.parametrize(("name", "chat"), [("template", True), ("tokenizer", False)])
def test_patching_is_not_taken_up(name: str, chat: bool, pairs_file: Path, tmp_path: Path) -> None:
    make, said = CHANGES[name]
    settings, run = PatchSettings(pairs=str(pairs_file), chat=chat, shard=4), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        patch_run(made(), settings, run, engine=Stopping(made(), 1), progress=False)
    refused(lambda: patch_run(make(), settings, run, progress=False), said, run)
    whole = patch_run(made(), settings, run, progress=False)
    refused(lambda: patch_run(make(), settings, run, progress=False), said, run)
    assert torch.equal(patch_run(made(), settings, run, progress=False).values, whole.values)


def test_other_facts_are_not_taken_up(search: LocateSettings, tmp_path: Path) -> None:
    """The premises have the same name, but other words."""
    run = tmp_path / "run"
    locate_run(made(), search, run, progress=False)
    description = Path(search.relation).with_suffix(".yaml")
    text = description.read_text()
    description.write_text(text.replace("When did", "Why did"))
    refused(lambda: locate_run(made(), search, run, progress=False), "the prompts' tokens was", run)


def test_the_tokens_tell_prompts_apart_that_the_template_does_not(search: LocateSettings) -> None:
    model, premises = made(DATED), load_premises(search.relation)

    def at(day: int) -> str:
        moment = Path(search.relation).with_name(f"{day}.json")
        write_json(moment, {"template_time": f"2026-01-{day:02}T00:00:00"})
        with run_clock(moment.parent, moment.name):
            return prompts_identity(model.tokenizer, premises)[PROMPTS]

    assert at(2) == at(2) == at(3)  # the same word
    assert at(2) != at(12)


@pytest.mark.parametrize("command", ["locate", "patch", "probe"])
def test_a_run_has_one_date(
    command: str,
    search: LocateSettings,
    pairs_file: Path,
    tmp_path: Path,
    today: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Begun on one day and ended on another it is as if the first day had lasted."""
    model = made(DATED)
    commands: dict[str, Callable[[Path], Any]] = {
        "locate": lambda run: locate_run(model, search, run, progress=False),
        "patch": lambda run: patch_run(
            model, PatchSettings(pairs=str(pairs_file), chat=True, shard=4), run, progress=False
        ),
        # Of the second day only the probes' own table is looked at.
        "probe": lambda run: probe_run(
            model,
            ProbeSettings(
                search.relation, method="mean_difference", detector=run.name != "second day"
            ),
            run,
            progress=False,
        ),
    }
    call = commands[command]
    today(1)
    call(tmp_path / "first day")
    hooked = model.original_model.get_input_embeddings()
    begun = {"locate": "search.json", "patch": "patch.json", "probe": "auc.csv"}

    def stop(*_: Any) -> None:
        if (tmp_path / "both" / begun[command]).is_file():
            raise KeyboardInterrupt

    handle = hooked.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        call(tmp_path / "both")
    handle.remove()
    today(12)
    call(tmp_path / "both")
    call(tmp_path / "second day")
    whole, both = listing(tmp_path / "first day"), listing(tmp_path / "both")
    pages = {"report.html"}  # it shows the manifest, with the command and the directory
    assert {name: whole[name] for name in whole.keys() - pages} == {
        name: both[name] for name in both.keys() - pages
    }
    assert read_manifest(tmp_path / "both")["template_time"] == "2026-01-01T12:00:00"
    assert read_manifest(tmp_path / "second day")["template_time"] == "2026-01-12T12:00:00"
    differs = {"probe": "auc.csv"}.get(command, "effects.safetensors")
    assert listing(tmp_path / "second day")[differs] != whole[differs]


def test_an_evaluation_keeps_the_date_of_its_search(
    search: LocateSettings, tmp_path: Path, today: Callable[[int], None]
) -> None:
    model = made(DATED)
    for name in ("one day", "two days"):
        today(1)
        locate_run(model, search, tmp_path / name, progress=False)
        today(12 if name == "two days" else 1)
        evaluated(model, tmp_path / name)
    assert listing(tmp_path / "one day") == listing(tmp_path / "two days")


def test_without_a_date_none_is_noted(search: LocateSettings, tmp_path: Path) -> None:
    locate_run(made(), search, tmp_path / "run", progress=False)
    assert "template_time" not in read_json(tmp_path / "run" / "search.json")
    assert "template_time" not in read_manifest(tmp_path / "run")


@pytest.mark.parametrize("moment", [12, "yesterday", ["2026-01-01"]])
def test_a_damaged_date_is_told(moment: Any, search: LocateSettings, tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"template_time": moment})
    with pytest.raises(UserError, match=r"template_time is .* which is no date"):
        run_clock(tmp_path, "run.json")


def older(run: Path, settings: LocateSettings) -> None:
    """Make of a run what an older version would have left."""
    _, split, effects = load_run(run)
    digest = effects_digest(settings, "f" * 64, split)
    kept = list(effects.values())
    save_effects(run / "effects.safetensors", kept, kept={"run": digest})
    for name in ("search.json", "manifest.json"):
        content = read_json(run / name)
        write_json(run / name, {key: content[key] for key in content if key not in KEYS})


def test_a_run_of_an_older_version_is_read_but_not_taken_up(
    search: LocateSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    locate_run(made(), search, run, progress=False)
    shutil.copytree(run, tmp_path / "new")
    older(run, search)
    said = "begun by an older version, which did not note the tokenizer"
    refused(lambda: locate_run(made(), search, run, progress=False), said, run)
    other = replace(search, seed=1)
    refused(lambda: locate_run(made(), other, run, progress=False), "seed was 0, now 1", run)
    new, old = load_run(tmp_path / "new")[2], load_run(run)[2]
    assert torch.equal(new["output"].values, old["output"].values)
    with caplog.at_level(logging.WARNING):
        evaluated(made(), run)
    assert "made by an older version, which did not note the tokenizer" in caplog.text
    evaluated(made(), tmp_path / "new")
    assert (run / "evaluation.json").read_text() == (tmp_path / "new/evaluation.json").read_text()
    assert report_run(run).is_file()
    assert load_effects(run / "effects.safetensors").keys() == {"output"}


def test_ends_of_answers() -> None:
    model = make_planted_hf_model(make_word_tokenizer(planted_relation()))
    for given, found in ((3, [3]), ([5, 3, 5], [3, 5]), (None, []), ([], [])):
        model.generation_config.eos_token_id = given
        assert end_tokens(model) == found
    assert end_tokens(object()) == []
