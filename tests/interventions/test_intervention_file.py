"""Interventions on disk: they come back the same, and a stranger's file is only data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interp.errors import UserError
from interp.heads import HeadSet
from interp.interventions import Constraint, ExpertConstraint, Intervention
from interp.interventions.intervention_file import LARGEST_FILE
from interp.models import HookedModel

HERE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
FACTORS = st.floats(-4, 4, allow_nan=False).map(lambda value: round(value, 3))
HEADS = st.sets(st.tuples(st.integers(0, 40), st.integers(0, 20)), max_size=4).map(tuple)
TARGETS = st.sampled_from(["attn.q", "attn.v", "mlp.out", "attn.qkv"])
EXPERTS = st.sets(st.tuples(st.integers(0, 40), TARGETS, st.integers(0, 9)), max_size=4).map(list)


SITES = st.sampled_from(["output", "attention"])
HEAD_PARTS = st.none() | st.tuples(HEADS, SITES, FACTORS.map(abs))
EXPERT_PARTS = st.none() | st.tuples(EXPERTS, st.sampled_from(["all", "spans"]), FACTORS)


@HERE
@given(
    HEAD_PARTS,
    EXPERT_PARTS,
    st.booleans(),
    st.sampled_from(["oracle", "probe"]),
    st.sampled_from(["it.yaml", "it.yml", "it.json", "it"]),
)
def test_it_comes_back_the_same(
    tmp_path: Path, heads: Any, experts: Any, swap: bool, gate: Any, name: str
) -> None:
    one = Intervention(gate=gate)
    if heads:
        one |= Constraint(HeadSet(heads[0], heads[1], "größte: 3"), "scale", heads[2])
    if experts:
        one |= ExpertConstraint(experts[0], "scale", experts[2], experts[1])
    if swap:
        one |= ExpertConstraint([(50, "attn.q", 1), (50, "attn.q", 2)], "swap")
    path = one.save(tmp_path / name)
    again = Intervention.load(path)
    assert again == one
    assert again.parts == one.parts
    assert again.save(tmp_path / f"again-{name}").read_text() == path.read_text()


def test_a_file_written_by_hand(tmp_path: Path, experts_model: HookedModel) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "version: 1\nheads:\n- {site: attention, heads: [[1, 3]]}\n"
        "experts:\n- {mode: off, experts: [[1, q_proj, 2]]}\n"
    )
    one = Intervention.load(path, model=experts_model)
    expected = Intervention.of([(1, 3)], "attention") | ExpertConstraint([("blocks.1.attn.q", 2)])
    assert one == expected


def test_decoding_steps_are_kept_and_only_written_if_given(tmp_path: Path) -> None:
    given = Intervention.of([(1, 3)], "attention", decoding_steps=0)
    text = given.save(tmp_path / "steps.yaml").read_text()
    assert "decoding_steps: 0" in text
    assert Intervention.load(tmp_path / "steps.yaml") == given
    always = Intervention.of([(1, 3)], "attention")
    assert "decoding_steps" not in always.save(tmp_path / "all.yaml").read_text()
    # A file of an earlier version, and the same with the key, are different interventions.
    assert Intervention.load(tmp_path / "all.yaml") == always != given


GOOD: dict[str, Any] = {
    "version": 1,
    "gate": "oracle",
    "heads": [{"site": "output", "mode": "zero", "heads": [[0, 1]]}],
    "experts": [{"mode": "off", "experts": [["blocks.0.attn.q", 1]]}],
}


def head(**changes: Any) -> dict[str, Any]:
    return GOOD | {"heads": [GOOD["heads"][0] | changes]}


def expert(**changes: Any) -> dict[str, Any]:
    return GOOD | {"experts": [GOOD["experts"][0] | changes]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD | {"run": "rm"}, "unknown key 'run'; known: version, gate, heads, experts"),
        (GOOD | {"version": 2}, "version is 2, this program reads 1"),
        ({"gate": "oracle"}, "version is None"),
        (GOOD | {"gate": "guess"}, "unknown gate 'guess'"),
        (GOOD | {"gate": ["oracle"]}, "gate must be a short text, not a list"),
        (GOOD | {"heads": {"site": "output"}}, "heads must be a list, not a dict"),
        (GOOD | {"experts": [7]}, r"experts\[0\]: must hold the keys .* not 7"),
        (head(color="red"), r"heads\[0\]: unknown key 'color'"),
        (head(site="elsewhere"), r"heads\[0\]: unknown site 'elsewhere'"),
        (head(site="attention", mode="mean"), "does not fit site 'attention'"),
        (head(heads=[[0]]), r"a head is \[layer, head\], not a list"),
        (head(heads=[[0, True]]), r"a head is \[layer, head\]"),
        (head(heads=[[0, -1]]), "counted from zero"),
        (head(mode="scale", factor="big"), "factor must be a number, not 'big'"),
        (head(mode="scale", factor=10**400), "factor must be a number|beyond 64 bits"),
        (head(mode="scale", factor=10**15), "factor must be a number"),
        (head(chosen_by="x" * 1000), "chosen_by must be a short text"),
        (head(site="attention", decoding_steps=-1), "decoding_steps must be a whole number"),
        (head(site="attention", decoding_steps=True), "decoding_steps must be a whole number"),
        (head(decoding_steps=2), "site 'output' acts in the prefill only"),
        (GOOD | {"gate": "soft"}, "gate 'soft' is for heads"),
        (expert(mode="melt"), r"experts\[0\]: unknown expert mode 'melt'"),
        (expert(mode=False), "mode must be a short text, not False"),
        (expert(place="here"), "unknown place 'here'"),
        (expert(experts=[["attn.q"]]), r"an expert is \[projection, expert\] or \[layer, target"),
        (expert(experts=[["attn.q", 1.5]]), "an expert is"),
        (expert(experts=[["q", 1], ["q", 1]]), "an expert is named twice"),
        ([GOOD], "must hold the keys version, gate, heads, experts, not a list"),
        ("text", "must hold the keys .* not 'text'"),
    ],
)
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_faulty_file_is_told_in_one_line(
    tmp_path: Path, content: Any, message: str, suffix: str
) -> None:
    path = tmp_path / f"faulty.{suffix}"
    path.write_text(json.dumps(content) if suffix == "json" else yaml.safe_dump(content))
    with pytest.raises(UserError, match=message) as caught:
        Intervention.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\ngate: !!python/object/apply:os.system ['touch hacked']\n",
        "!!python/object/new:subprocess.Popen [['touch', 'hacked']]\n",
        "version: 1\nheads: !!binary aGVsbG8=\n",
        BOMB,
        "version: 1\nheads: " + "[" * 1500,
        "version: 1\nheads: " + "[" * 400 + "]" * 400,
        "version: 1\nexperts: 2024-99-99\n",
        "version: 1\nexperts: 190:20:30\n",
        "version: 1\n? [a, b]\n: c\n",
        "version: 1\n? {a: b}\n: c\n",
        "\x00\x01\x02",
        "",
        "version: 1\n---\nversion: 1\n",
        "- &a [*a]\n",
        "x" * (LARGEST_FILE + 1),
    ],
)
def test_a_hostile_file_does_nothing(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("it.yaml", "it.json"):
        Path(name).write_text(text)
        with pytest.raises(UserError) as caught:
            Intervention.load(name)
        assert len(str(caught.value)) < 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["it.json", "it.yaml"]


@HERE
@given(st.binary(max_size=200), st.sampled_from(["it.yaml", "it.json"]))
def test_any_bytes_are_an_intervention_or_an_error(tmp_path: Path, raw: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(UserError):
        Intervention.load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


@HERE
@given(st.sampled_from(["version", "gate", "heads", "experts", "new"]), JSON)
def test_any_value_in_a_good_file_is_read_or_told(tmp_path: Path, key: str, value: Any) -> None:
    path = tmp_path / "it.yaml"
    path.write_text(yaml.safe_dump(GOOD | {key: value}), encoding="utf-8")
    told = ""
    try:
        Intervention.load(path)
    except UserError as error:
        told = str(error)
    assert "\n" not in told
    if key == "new":
        assert "unknown key 'new'" in told


def test_a_missing_file_and_a_directory_are_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            Intervention.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (head(heads=[[9, 0]]), r"head \(9, 0\) does not exist"),
        (expert(experts=[[0, "attn.k", 1]]), "no adapted projection 'blocks.0.attn.k'"),
        (expert(experts=[[0, "attn.q", 4]]), "expert 4 of blocks.0.attn.q does not exist"),
    ],
)
def test_what_the_model_does_not_have_is_told(
    tmp_path: Path, experts_model: HookedModel, content: Any, message: str
) -> None:
    path = tmp_path / "it.yaml"
    path.write_text(yaml.safe_dump(content))
    assert len(Intervention.load(path)) == 2
    with pytest.raises(UserError, match=message):
        Intervention.load(path, model=experts_model)


@pytest.mark.parametrize("name", ["it.yaml", "it.json"])
def test_numbers_of_numpy_are_kept(tmp_path: Path, name: str) -> None:
    number = np.float64(0.3)
    one = Intervention.of([(0, 1)], "attention", mode="scale", factor=number)
    one |= ExpertConstraint([(0, "attn.q", 1)], "scale", number)
    assert Intervention.load(one.save(tmp_path / name)) == one
    assert type(one.heads[0].factor) is type(one.experts[0].factor) is float


def test_a_long_reason_is_shortened(tmp_path: Path) -> None:
    one = Intervention.of(HeadSet(((0, 1),), "attention", "by " + "a long name " * 60))
    again = Intervention.load(one.save(tmp_path / "it.yaml"))
    assert again == one
    assert again.heads[0].heads.chosen_by.startswith("by a long name")
