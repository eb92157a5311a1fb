"""Config files: every option in, every option out, and what does not fit is one line."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp.cli.config import from_config, settings_of, take_config, to_config
from interp.cli.moelora import OPTIONS, CompareOptions, TrainOptions
from interp.cli.moelora import parse as parse_moelora
from interp.cli.options import COMMANDS, LocateOptions, PatchOptions, parse
from interp.commands.analyze import AnalyzeSettings
from interp.commands.ask import AskSettings
from interp.commands.card import CardSettings
from interp.commands.circuit import CircuitSettings
from interp.commands.compare import ComparedMethods
from interp.commands.demo import DemoSettings
from interp.commands.detect import DetectSettings
from interp.commands.evaluate import EvaluateSettings
from interp.commands.evaluate_questions import QuestionSettings
from interp.commands.export import ExportSettings
from interp.commands.locate import LocateSettings
from interp.commands.patch import PatchSettings
from interp.commands.probe import ProbeSettings
from interp.errors import UserError
from interp.moelora.training.training import TrainingSettings

KINDS: dict[str, type] = {**COMMANDS, **OPTIONS}
SETTINGS: dict[type, str] = {
    DemoSettings: "demo",
    LocateSettings: "locate",
    EvaluateSettings: "evaluate",
    QuestionSettings: "evaluate",
    DetectSettings: "detect",
    AskSettings: "ask",
    ProbeSettings: "probe",
    PatchSettings: "patch",
    CircuitSettings: "circuit",
    CardSettings: "card",
    TrainingSettings: "train",
    ComparedMethods: "compare",
    AnalyzeSettings: "analyze",
    ExportSettings: "export",
}
"""Which command is made from which settings."""
FIELDS = [(kind, one.name) for kind in SETTINGS for one in fields(kind)]


def read(kind: type, content: str, folder: Path) -> Any:
    path = folder / "config.yaml"
    path.write_text(content)
    return from_config(kind, path)


@pytest.mark.parametrize("name", list(KINDS))
def test_every_default_comes_back(name: str, tmp_path: Path) -> None:
    default = KINDS[name]()
    suppressed = {"method", "seed"} if name == "compare" else set()
    content = {k: v for k, v in to_config(default).items() if k not in suppressed}
    assert read(KINDS[name], yaml.safe_dump(content), tmp_path) == default
    assert read(KINDS[name], "", tmp_path) == default


def test_each_type_by_hand(tmp_path: Path) -> None:
    content = (
        "learning_rate: 1e-3\nscaling: 3\nsteps: 7\ndata: [a.csv, b.csv]\ntargets: q_proj\n"
        "checkpointing: true\nlimit: null\ntest_limit: 5\nout: there\nschedule: linear\n"
    )
    assert read(TrainOptions, content, tmp_path) == TrainOptions(
        learning_rate=1e-3,
        scaling=3.0,
        steps=7,
        data=("a.csv", "b.csv"),
        targets=("q_proj",),
        checkpointing=True,
        limit=None,
        test_limit=5,
        out=Path("there"),
        schedule="linear",
    )
    assert read(CompareOptions, "seeds: [4]\nmethods: [lora, moe]", tmp_path).seeds == (4,)


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        (LocateOptions, "seed: true", "seed is True, but must be a whole number"),
        (LocateOptions, "seed: null", "seed is None, but must be a whole number"),
        (LocateOptions, "limit: many", "limit is 'many', but must be a whole number or null"),
        (LocateOptions, "out: 3", "out is 3, but must be a path"),
        (LocateOptions, "premises: {a: b}", "must be text or a value or a list"),
        (LocateOptions, "method: guess", "must be one of path, activation, attribution"),
        (LocateOptions, "[1]: 2", "cannot be read as YAML"),
        (PatchOptions, "memory: lots", "memory is 'lots', but must be a number or null"),
        (PatchOptions, "chat: 1", "chat is 1, but must be true or false"),
        (CompareOptions, "seeds: [0, one]", "must be a value or a list"),
        (CompareOptions, "methods: [qlora]", "must be a value or a list"),
        (CompareOptions, "seed: 3", "unknown option 'seed'"),
        (TrainOptions, "steps: 0", "steps must be at least 1"),
    ],
)
def test_what_does_not_fit_is_told(kind: type, content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(kind, content, tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None
)
@given(
    name=st.sampled_from([one.name for one in fields(TrainOptions)]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=1),
        max_leaves=3,
    ),
)
def test_any_value_is_an_option_or_one_clear_line(name: str, value: Any, tmp_path: Path) -> None:
    message = ""
    try:
        options = read(TrainOptions, yaml.safe_dump({name: value}), tmp_path)
    except UserError as error:
        message = str(error)
    else:
        assert options == TrainOptions(**{name: getattr(options, name)})
    assert "\n" not in message


def test_the_config_file_is_taken_out_of_the_words() -> None:
    words = ["--seed", "1", "--config=b=c.yaml", "x"]
    assert take_config(words) == (["--seed", "1", "x"], Path("b=c.yaml"))
    with pytest.raises(UserError, match=r"given twice, as b=c\.yaml and a\.yaml"):
        take_config([*words, "--config", "a.yaml"])
    assert take_config(["--configure"]) == (["--configure"], None)
    with pytest.raises(UserError, match="--config needs a YAML file"):
        take_config(["--config"])


def parsed(command: str, words: list[str]) -> Any:
    return (parse if command in COMMANDS else parse_moelora)(command, words)


@pytest.mark.parametrize(
    ("kind", "name"), FIELDS, ids=[f"{kind.__name__}-{name}" for kind, name in FIELDS]
)
def test_every_setting_is_an_option_and_a_key_with_its_default(
    kind: type, name: str, tmp_path: Path
) -> None:
    command, default = SETTINGS[kind], getattr(kind(), name)
    assert getattr(KINDS[command](), name) == default
    flag = "--" + name.replace("_", "-")
    words = [flag, *map(str, default if isinstance(default, tuple) else [default])]
    if isinstance(default, bool):
        words = [flag if default else f"--no-{flag[2:]}"]
    assert getattr(parsed(command, words), name) == default
    content = yaml.safe_dump({name: default})
    assert getattr(read(KINDS[command], content, tmp_path), name) == default


@pytest.mark.parametrize("kind", list(SETTINGS))
def test_the_help_explains_every_setting(kind: type, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed(SETTINGS[kind], ["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for field in fields(kind):
        flag = "--" + field.name.replace("_", "-")
        (start,) = re.finditer(rf"^\W*{flag}\b(?!-)", shown, re.MULTILINE)
        entry = re.split(r"\n\W*--", shown[start.end() :])[0]
        not_words = r", --no\S*|\{.*?\}|[\[\]│]|\b[A-Z]+\b|\(default: .*"
        words = re.sub(not_words, " ", entry, flags=re.DOTALL)
        assert len(words.split()) >= 2, (field.name, entry)


def test_settings_are_those_of_the_options() -> None:
    found = settings_of(LocateSettings, LocateOptions(seed=4, limit=9, site="output"))
    assert type(found) is LocateSettings
    assert found == LocateSettings(seed=4, limit=9, site="output")


@pytest.mark.parametrize("kind", list(SETTINGS))
def test_no_setting_is_lost_between_the_options_and_the_run(kind: type) -> None:
    options = KINDS[SETTINGS[kind]]()
    assert settings_of(kind, options) == kind()


def test_a_setting_that_is_no_option_is_an_error() -> None:
    @dataclass(frozen=True)
    class Other:
        seed: int = 0
        not_an_option: str = "kept"

    options: Any = LocateOptions(seed=4)
    with pytest.raises(AttributeError, match="not_an_option"):
        settings_of(Other, options)


def test_a_wrong_setting_is_refused_as_options_are_made() -> None:
    with pytest.raises(UserError, match="shard is 0: it must be at least 1"):
        parse("locate", ["--shard", "0"])
    with pytest.raises(UserError, match="minimum is 0: it must be at least 1"):
        parse("locate", ["--minimum", "0"])
    with pytest.raises(UserError, match="fraction below 1 or a count"):
        parse("demo", ["--heads", "0"])
    with pytest.raises(UserError, match="methods must name each once"):
        parse_moelora("compare", ["--methods", "lora", "lora"])
    with pytest.raises(UserError, match="steps must be at least 1"):
        parse_moelora("compare", ["--steps", "0"])
