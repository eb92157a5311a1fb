"""Tasks without and with a constraint, those that ship, and the command."""

import json
from pathlib import Path
from typing import Any

import pytest

import interp.harness.model
from interp.cli import main
from interp.commands.harness import HarnessSettings, _identity, harness_run
from interp.errors import UserError
from interp.files.documents import write_json, write_jsonl
from interp.harness.compare import TaskOptions, compare_task, load_tasks, run_task
from interp.harness.documents import load, tasks_folder
from interp.harness.model import FaithlensLM
from interp.harness.paired import PairedMetric
from interp.heads import HeadSet
from interp.interventions import Constraint, Intervention
from interp.premises.registry import data_dir
from scripts import build_harness
from tests.harness.test_model import FALSE, LATER, TRUE, UNDER, FindsGermany

CHOICES = ["Berlin", "Rome is large", "No"]
YAML = """\
task: few
custom_dataset: !function interp.harness.documents.load
dataset_kwargs:
  file: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def lm(chat_tokenizer: Any, hf_factory: Any) -> FaithlensLM:
    model = hf_factory("llama", chat_tokenizer)
    return FaithlensLM(
        model, UNDER, detector=FindsGermany(), tokenizer=chat_tokenizer, batch_size=4
    )


@pytest.fixture
def few(tmp_path: Path) -> str:
    """A task of six questions, in three of which the gate opens."""
    questions = [FALSE, TRUE, LATER, f"{FALSE} Why?", f"{TRUE} Why?", "Is Rome large?"]
    rows = [
        {"question": question, "choices": CHOICES, "answer": index % 3}
        for index, question in enumerate(questions)
    ]
    write_jsonl(tmp_path / "few.jsonl", rows)
    (tmp_path / "few.yaml").write_text(YAML.format(file=tmp_path / "few.jsonl"))
    return str(tmp_path / "few.yaml")


def task(name: str) -> Any:
    (found,) = load_tasks([name], ours=tasks_folder()).values()
    return found


def test_closed_prompts_run_once(lm: FaithlensLM, few: str) -> None:
    """The slow reference runs everything in both ways, and nothing is remembered."""
    (metric,), documents = compare_task(lm, task(few), TaskOptions())
    assert (metric.task, metric.metric, metric.n, metric.fired) == ("few", "acc", 6, 3)
    assert [document["fired"] for document in documents] == [True, False, True, True, False, False]
    slow = {}
    for acts in (False, True):
        lm.places.acts = acts
        slow[acts] = run_task(lm, task(few), TaskOptions())
    for document, without, constrained in zip(documents, slow[False], slow[True], strict=True):
        for name, run in (("without", without), ("constrained", constrained)):
            wanted = [answer[0] for answer in run["filtered_resps"]]
            assert [a[0] for a in document[name]["answers"]] == pytest.approx(wanted, abs=1e-4)
        same = document["without"]["answers"] == document["constrained"]["answers"]
        assert same != document["fired"]
    accuracy = [sum(s["acc"] for s in slow[acts]) / 6 for acts in (False, True)]
    assert [metric.without, metric.constrained] == pytest.approx(accuracy)


def test_only_the_differences(lm: FaithlensLM, few: str) -> None:
    """Half of the prompts do not run at all, and the difference is the same."""
    (whole,), _ = compare_task(lm, task(few), TaskOptions())
    (metric,), _ = compare_task(lm, task(few), TaskOptions(differences_only=True))
    assert metric.without != metric.without  # not measured
    assert (metric.n, metric.fired) == (6, 3)
    assert metric.difference == pytest.approx(whole.difference)
    assert (metric.low, metric.high) == pytest.approx((whole.low, whole.high))
    assert repr(PairedMetric.from_dict(metric.to_dict())) == repr(metric)
    assert metric.to_dict()["without"] is None


def test_the_command_takes_up_what_is_there(
    lm: FaithlensLM,
    few: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(interp.harness.model, "FaithlensLM", lambda *_, **__: lm)
    run = tmp_path / "run"
    run.mkdir()
    write_json(run / "manifest.json", {"model": {"spec": "x", "fingerprint": lm.fingerprint}})
    main(["harness", str(run), "--tasks", few, "faithlens_neutral", "--limit", "3"])
    printed = capsys.readouterr().out
    assert "+0.0000" in printed  # the gate reads no running text
    content = json.loads((run / "harness" / "harness.json").read_text())
    assert [metric["n"] for metric in content["metrics"]] == [3, 3, 3]
    assert len((run / "harness" / "few.jsonl").read_text().splitlines()) == 3

    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("interp.harness.compare.run_task", never)
    settings = HarnessSettings((few, "faithlens_neutral"), limit=3)
    again = harness_run(run, settings, progress=False)
    assert again.to_dict()["metrics"] == content["metrics"]
    with pytest.raises(AssertionError):
        harness_run(run, HarnessSettings((few,), limit=2), progress=False)


def test_every_part_of_a_constraint_is_in_the_identity(lm: FaithlensLM, few: str) -> None:
    found = []
    for steps in (None, 0, 1):
        part = Constraint(HeadSet(((0, 1),), "attention"), decoding_steps=steps)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lm.attached, "intervention", Intervention.of(part))
            found.append(_identity(lm, task(few), HarnessSettings((few,)))["intervention"])
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nowhere.yaml"], "there is no task file .*nowhere.yaml"),
        (["broken.yaml"], "these tasks cannot be read"),
    ],
)
def test_tasks_that_are_none(names: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("task: broken\ncustom_dataset: !function a.b.c\n")
    with pytest.raises(UserError, match=message) as caught:
        load_tasks([str(tmp_path / name) for name in names], ours=tasks_folder())
    assert "\n" not in str(caught.value)


def test_bad_settings(tmp_path: Path) -> None:
    broken: list[dict[str, Any]] = [{"limit": 0}, {"batch_size": 0}, {"num_fewshot": -1}]
    for options in broken:
        with pytest.raises(UserError, match="must be at least"):
            HarnessSettings(**options)
    with pytest.raises(UserError, match="is not a run"):
        harness_run(tmp_path, HarnessSettings())
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match=r"list\.jsonl: entry 1"):
        load(file=tmp_path / "list.jsonl")
    with pytest.raises(UserError, match="name them"):
        load()


def test_what_ships() -> None:
    """Every task can be read, and has one right answer among its choices."""
    names = sorted(path.stem for path in tasks_folder().glob("*.yaml"))
    tasks = load_tasks(names, ours=tasks_folder())
    assert list(tasks) == names
    for name, found in tasks.items():
        documents = list(found.eval_docs)
        assert len(documents) >= (40 if "neutral" in name else 184)
        for document in documents:
            choices = document.get("choices", [])
            assert len(set(choices)) == len(choices)
            assert not choices or 0 <= document["answer"] < len(choices)


@pytest.mark.parametrize("name", ["capitals", "false_premises", "neutral_continued"])
def test_the_documents_can_be_made_again(name: str) -> None:
    lines = (data_dir() / "harness" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert build_harness.TASKS[name](0) == [json.loads(line) for line in lines]
