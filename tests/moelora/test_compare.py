"""Comparing methods: statistics by hand, resuming per run, and the page."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import interp.commands.compare
from interp.commands.compare import CompareSettings, compare_moelora, losses_of, parameter_spread
from interp.errors import UserError
from interp.files.documents import read_json
from interp.moelora.training.adapters import METHOD_NAMES
from interp.moelora.training.comparison import (
    FinishedRun,
    compare,
    finished_seeds,
    joined,
    paired_difference,
    seed_interval,
)
from interp.moelora.training.training import TrainingSettings
from interp.report.comparison_figures import accuracy_figure, curve_figure
from interp.report.comparison_page import (
    accuracy_table,
    cost_table,
    difference_table,
    render_comparison,
    summary,
)

STEP = {"loss": 2.0, "step": 4}
EXPERTS = {"dead_experts": 0.0, "load_smallest": 0.5, "load_largest": 1.5}


def finished(
    method: str, seed: int, right: Sequence[bool], *, dead: float = 0.0, prompt: str = "?"
) -> FinishedRun:
    """Half of the questions are of task a, half of task b; two questions a subject."""
    half = len(right) // 2
    tasks = ["a"] * half + ["b"] * (len(right) - half)
    answers = [
        {"task": task, "subject": f"{task}{row // 2}", "prompt": f"{row}{prompt}", "right": one}
        for row, (task, one) in enumerate(zip(tasks, right, strict=True))
    ]
    accuracy = {
        "a": {"value": sum(right[:half]) / half},
        "b": {"value": sum(right[half:]) / (len(right) - half)},
        "mean": {"value": sum(right) / len(right)},
    }
    experts = {} if method == "lora" else EXPERTS | {"dead_experts": dead}
    metrics = {
        "trainable_parameters": 100,
        "steps": 4,
        "seconds_per_step": 0.5,
        "accuracy": accuracy,
        "held_out_loss": {"a": 1.0 + seed, "b": 2.0},
        "expert_cosine": None if method == "lora" else 0.25,
        "last_step": STEP | experts,
    }
    losses = [{"step": step, "loss": 3.0 - step / 4, "language_loss": 2.5} for step in (2, 4)]
    return FinishedRun(method, seed, metrics, answers, losses)


N = 16
WORSE = [[row % 4 == 0 for row in range(N)], [row % 4 == 1 for row in range(N)]]
BETTER = [[row % 4 != 3 for row in range(N)] for _ in range(2)]


def runs(*, dead: float = 0.0) -> list[FinishedRun]:
    made = [finished("lora", seed, WORSE[seed]) for seed in (0, 1)]
    return made + [finished("moelora", seed, BETTER[seed], dead=dead) for seed in (0, 1)]


def settings_of(**more: Any) -> dict[str, Any]:
    return {"model": "m<b>", "data": ["a", "b"], "columns": ""} | more


def test_seed_interval_by_hand() -> None:
    """Three values 1, 2, 3: s = 1, t(0.975, 2) = 4.3027, half-width 4.3027 / sqrt 3."""
    mean, low, high = seed_interval([1.0, 2.0, 3.0])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-4)
    assert math.isnan(seed_interval([1.0])[1])
    assert seed_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_comparison_by_hand() -> None:
    content = compare(runs())
    lora, moelora = content["methods"]["lora"], content["methods"]["moelora"]
    assert lora["accuracy"]["mean"]["mean"] == 0.25
    assert moelora["accuracy"]["mean"]["mean"] == 0.75
    assert lora["accuracy"]["a"]["by_seed"] == [0.25, 0.25]
    assert lora["held_out_loss"]["a"]["mean"] == 1.5
    assert lora["experts"] is None
    assert moelora["experts"]["cosine"]["mean"] == 0.25
    gain = content["differences"]["moelora"]["mean"]
    assert gain["mean"] == 0.5
    assert gain["by_seed"] == [0.5, 0.5]
    low, high = gain["questions"]
    assert 0 < low <= 0.5 <= high
    assert gain["seeds"] == [0.5, 0.5]


def test_a_method_against_itself_makes_no_difference() -> None:
    """The control: other names, the same answers."""
    same = [finished(method, seed, WORSE[seed]) for seed in (0, 1) for method in ("lora", "moe")]
    gain = compare(same)["differences"]["moe"]["mean"]
    assert (gain["mean"], gain["questions"]) == (0.0, [0.0, 0.0])
    content = compare(same) | {"settings": settings_of(), "base": {}}
    assert any("No difference that the intervals bear out" in line for line in summary(content))


def test_difference_of_any_two_by_hand() -> None:
    """Seed 0 is right on one question more in task a, seed 1 on two: 1/8 and 1/4 of its eight."""
    plus = [[*WORSE[0]], [*WORSE[1]]]
    plus[0][1] = True
    plus[1][2], plus[1][6] = True, True
    less = [finished("moe", seed, WORSE[seed]) for seed in (0, 1)]
    more = [finished("moelora", seed, plus[seed]) for seed in (0, 1)]
    found = paired_difference(more, less)
    assert found["a"]["by_seed"] == pytest.approx([0.125, 0.25])
    assert found["a"]["mean"] == pytest.approx(0.1875)
    # t(0.975, 1) = 12.706; s / sqrt 2 = 0.0625.
    assert found["a"]["seeds"] == pytest.approx([0.1875 - 0.79414, 0.1875 + 0.79414], abs=1e-4)
    assert found["b"]["questions"] == [0.0, 0.0]
    with pytest.raises(UserError, match="different seeds"):
        paired_difference(more, less[:1])


def test_seeds_that_every_method_has_finished() -> None:
    some = [*runs(), finished("moe", 1, WORSE[1])]
    assert finished_seeds(some, ("lora", "moelora")) == (0, 1)
    assert finished_seeds(some, ("lora", "moe", "moelora")) == (1,)
    assert finished_seeds(some[:3], ("moe",)) == ()


def test_joined_runs_weigh_tasks_alike() -> None:
    """Eight of eight right in task a and b, and none of two in c: two thirds, not 16 of 18."""
    other = replace(
        finished("lora", 0, [False, False]),
        answers=[{"task": "c", "subject": "c", "prompt": str(i), "right": False} for i in (0, 1)],
    )
    whole = joined([finished("lora", 0, [True] * N), other])
    assert whole.accuracy("mean") == pytest.approx(2 / 3)
    assert (whole.accuracy("a"), whole.accuracy("c")) == (1.0, 0.0)
    assert len(whole.answers) == N + 2


def test_differences_are_paired_by_question() -> None:
    """Two methods that differ on no question have no interval, however uneven the questions."""
    uneven = [row % 2 == 0 for row in range(N)]
    content = compare([finished("lora", 0, uneven), finished("moe", 0, uneven)])
    assert content["methods"]["moe"]["accuracy"]["mean"]["questions"][0] <= 0.5
    assert content["differences"]["moe"]["mean"]["questions"] == [0.0, 0.0]
    assert content["differences"]["moe"]["mean"]["seeds"] is None


def test_runs_that_do_not_belong_together() -> None:
    other = finished("moelora", 0, WORSE[0], prompt="!")
    with pytest.raises(UserError, match="different questions"):
        compare([finished("lora", 0, WORSE[0]), other])
    with pytest.raises(UserError, match="different seeds"):
        compare([finished("lora", 0, WORSE[0]), finished("moelora", 1, WORSE[0])])
    with pytest.raises(UserError, match="no runs"):
        compare([])


def test_summary_says_which_way_it_went() -> None:
    ahead = compare(runs()) | {"settings": settings_of(), "base": {}}
    assert any("+50.0 points" in line and "Ahead by both" in line for line in summary(ahead))
    turned = [replace(one, method="moelora" if one.method == "lora" else "lora") for one in runs()]
    # Experts' figures went with the metrics; only the answers matter here.
    behind = compare(turned)
    behind["methods"]["lora"]["experts"] = None
    lines = summary(behind | {"settings": settings_of(), "base": {}})
    assert any("-50.0 points" in line and "Behind by both" in line for line in lines)


def test_summary_tells_of_dead_experts() -> None:
    lines = summary(compare(runs(dead=3.0)) | {"settings": settings_of(), "base": {}})
    assert "MoELoRA: 3 dead experts in the worst run at the end of training." in lines
    lines = summary(compare(runs()) | {"settings": settings_of(), "base": {}})
    assert "MoELoRA: no dead expert in any run at the end of training." in lines


def test_tables_hold_the_numbers() -> None:
    content = compare(runs()) | {
        "base": {"accuracy": {"a": {"value": 0.1, "ci_low": 0.0, "ci_high": 0.2}}}
    }
    table = accuracy_table(content).set_index("task")
    assert table.loc["mean", "MoELoRA"].startswith("0.750\nquestions [")
    assert table.loc["a", "no adapter"] == "0.100\nquestions [0.00, 0.20]"
    assert table.loc["b", "no adapter"] == "–"
    assert difference_table(content).set_index("task").loc["mean", "MoELoRA"].startswith("+50.0\n")
    costs = cost_table(content).set_index("method")
    assert costs.loc["LoRA", "dead experts"] == "–"
    assert costs.loc["MoELoRA", ["dead experts", "least used", "cosine"]].tolist() == [
        "0, 0",
        "0.50, 0.50",
        "0.250",
    ]


def test_figures_hold_the_numbers() -> None:
    content = compare(runs())
    figure = accuracy_figure(content)
    traces: Any = figure.data
    by_name = {trace.name: trace for trace in traces if trace.name}
    assert list(by_name["MoELoRA"].y) == [0.75, 0.75, 0.75]
    table = losses_of(runs())
    curve = curve_figure(table, "language_loss", "loss")
    traces = curve.data
    bold = [trace for trace in traces if trace.name]
    assert [trace.name for trace in bold] == ["LoRA", "MoELoRA"]
    assert list(bold[0].x) == [2, 4]
    assert list(bold[0].y) == [2.5, 2.5]


def test_curves_leave_out_methods_without_the_column() -> None:
    table = pd.DataFrame(
        [
            {"method": "lora", "seed": 0, "step": 1, "contrastive": math.nan},
            {"method": "moelora", "seed": 0, "step": 1, "contrastive": 0.5},
        ]
    )
    names = [trace.name for trace in curve_figure(table, "contrastive", "c").data if trace.name]  # type: ignore[union-attr]
    assert names == ["MoELoRA"]


class Page(HTMLParser):
    """What a browser would load and show."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_needs_nothing_else_and_shows_text_as_text() -> None:
    content = compare(runs()) | {"settings": settings_of(), "base": {}}
    html = render_comparison(content, losses_of(runs()))
    page = Page(html)
    assert len(html) < 6_000_000
    sources = [attrs.get("src") or attrs.get("href") for _, attrs in page.tags]
    assert all(source is None or source.startswith("#") for source in sources)
    policy = next(
        attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert ("b", {}) not in page.tags
    assert "m<b>" in page.text
    for name in METHOD_NAMES.values():
        assert (name in page.text) == (name != METHOD_NAMES["moe"])
    anchors = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    ids = {f"#{attrs['id']}" for _, attrs in page.tags if "id" in attrs}
    assert anchors <= ids


@pytest.fixture(scope="module")
def training(
    hf_factory: Callable[..., Any], chat_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> TrainingSettings:
    path = tmp_path_factory.mktemp("models") / "tiny"
    hf_factory("llama", chat_tokenizer, num_hidden_layers=1, num_key_value_heads=4).save_pretrained(
        path
    )
    chat_tokenizer.save_pretrained(path)
    data = path.with_name("data.jsonl")
    rows = [{"task": "sums", "prompt": f"{i} + 2?", "answer": str(i + 2)} for i in range(40)]
    rows += [
        {"task": "even", "prompt": f"Is {i} even?", "answer": "no" if i % 2 else "yes"}
        for i in range(40)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    return TrainingSettings(
        model=str(path), data=(str(data),), limit=16, test_limit=6, steps=2, batch=4, log_every=1
    )


@pytest.fixture(scope="module")
def compared(training: TrainingSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "comparison"
    settings = CompareSettings(training, seeds=(0, 1))
    compare_moelora(settings, run, device="cpu", progress=False)
    return run


def test_comparison_of_real_runs(compared: Path) -> None:
    content = read_json(compared / "comparison.json")
    assert list(content["methods"]) == ["lora", "moe", "moelora"]
    assert {row["trainable_parameters"] for row in content["methods"].values()} == {2 * 36 * 64}
    assert content["parameters_differ_by"] == 0
    for row in content["methods"].values():
        assert row["seeds"] == [0, 1]
        assert row["steps"] == 2
        assert set(row["accuracy"]) == {"sums", "even", "mean"}
    assert set(content["base"]["accuracy"]) == set(content["methods"]["lora"]["accuracy"])
    losses = pd.read_csv(compared / "losses.csv")
    assert len(losses) == 3 * 2 * 2
    assert losses.loc[losses["method"] == "lora", "load_balance"].isna().all()
    contrast = losses.loc[losses["method"] == "moe", "contrastive"]
    assert (contrast == 0).all()
    assert (compared / "report.html").stat().st_size < 6_000_000


def test_methods_begin_alike(compared: Path) -> None:
    """The first step's loss: no adapter changes anything yet, and all see the same questions."""
    losses = pd.read_csv(compared / "losses.csv")
    first = losses.loc[losses["step"] == 1].groupby("seed")["language_loss"]
    assert (first.max() - first.min()).max() < 1e-5
    assert first.mean().nunique() == 2


def test_finished_runs_are_not_trained_again(
    compared: Path, training: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing run is made, and only that one; another seed can be added."""
    before = read_json(compared / "comparison.json")
    trained: list[Path] = []
    make = interp.commands.compare.train_moelora

    def note(settings: TrainingSettings, run: Path, **more: Any) -> Path:
        if not (run / "metrics.json").is_file():
            trained.append(run)
        return make(settings, run, **more)

    monkeypatch.setattr(interp.commands.compare, "train_moelora", note)
    missing = compared / "runs" / "moe-seed1"
    for path in sorted(missing.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    missing.rmdir()
    settings = CompareSettings(training, seeds=(0, 1))
    again = compare_moelora(settings, compared, device="cpu", progress=False)
    assert trained == [missing]
    for content in (before, again):
        for row in content["methods"].values():
            del row["seconds_per_step"]
    assert json.loads(json.dumps(again)) == before


def test_another_comparison_in_the_same_directory_is_refused(
    compared: Path, training: TrainingSettings
) -> None:
    with pytest.raises(UserError, match=r"holds another run \(steps was 2, now 3\)"):
        compare_moelora(CompareSettings(replace(training, steps=3), seeds=(0,)), compared)


def test_runs_on_other_data_are_not_compared(
    compared: Path, training: TrainingSettings, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(compared, run)
    path = run / "runs" / "moe-seed1" / "training.json"
    path.write_text(json.dumps({**read_json(path), "data_sha256": "of another file"}))
    with pytest.raises(UserError, match="data_sha256 was"):
        compare_moelora(CompareSettings(training, seeds=(0, 1)), run, progress=False)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"seeds": (0, 0)}, "seeds must name each once"),
        ({"seeds": ()}, "seeds must name each once"),
        ({"methods": ()}, "methods must name each once"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CompareSettings(**wrong)


def test_damaged_run_is_told(compared: Path, training: TrainingSettings, tmp_path: Path) -> None:
    file = compared / "runs" / "lora-seed0" / "predictions.jsonl"
    text = file.read_text()
    file.write_text(text[:-5])
    try:
        with pytest.raises(UserError, match=r"predictions\.jsonl.*not valid JSON"):
            compare_moelora(CompareSettings(training, seeds=(0, 1)), compared, progress=False)
    finally:
        file.write_text(text)


def test_several_processes_are_refused(
    training: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="runs in one process"):
        compare_moelora(CompareSettings(training), tmp_path / "run")


def test_unequal_sizes_are_measured() -> None:
    one, other = runs()[0], runs()[2]
    assert parameter_spread([one, other]) == 0
    larger = replace(other, metrics={**other.metrics, "trainable_parameters": 103})
    assert parameter_spread([one, larger]) == pytest.approx(0.03)
