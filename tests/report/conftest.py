"""A run directory made by hand, with hostile text wherever text can stand."""

import json
from pathlib import Path
from typing import Any

import pytest

from interp.report import write_report

BREAKOUT = "</script><img src=x onerror=alert(1)>"
TAG = "<script>alert('x')</script>"

HEADS_CSV = """site,layer,head,effect,ci_low,ci_high,p_value,q_value,rank,selected
attention,0,0,0.0123456789,-0.01,0.03,0.4,0.6,2,False
attention,0,1,-0.75,-0.9,-0.5,0.001,0.004,4,False
attention,1,0,1.5,1.25,1.75,0.0005,0.004,1,True
attention,1,1,0.0,-0.02,0.02,0.9,0.9,3,False
output,0,0,0.5,0.4,0.6,0.001,0.002,1,True
output,0,1,0.25,0.1,0.4,0.02,0.04,2,True
output,1,0,0.1,-0.1,0.3,0.3,0.4,3,False
output,1,1,-0.2,-0.5,0.1,0.2,,4,False
"""
SETTINGS_CSV = """\
site,mode,n_heads,head_fraction,gain,gain_low,gain_high,cost,cost_low,cost_high,chosen
attention,zero,3,0.011,0.5,0.4,0.6,0.17,0.1,0.2,True
attention,zero,1,0.004,0.2,0.1,0.3,0.05,0.0,0.1,False
output,<b>mean</b>,3,0.011,0.4,0.3,0.5,0.14,0.1,0.2,False
"""
NULL_CSV = """site,mode,n_heads,set,preference_accuracy
attention,zero,3,0,0.25
attention,zero,3,1,0.5
output,zero,3,0,0.75
"""


def metrics(accuracy: float, **others: Any) -> dict[str, Any]:
    """One `M` of the contract; every interval is the value ± 0.1."""
    values = {
        "preference_accuracy": accuracy,
        "p_true_object": 0.5,
        "p_false_object": 0.25,
        "logit_difference": -1.5,
        "true_object_mention_rate": 0.2,
        "false_object_mention_rate": 0.9,
        **others,
    }
    measured = {
        key: None if value is None else [value, round(value - 0.1, 6), round(value + 0.1, 6)]
        for key, value in values.items()
    }
    return {"n": 58, **measured}


def make_evaluation(site: str = "attention", accuracy: float = 0.75) -> dict[str, Any]:
    """An `evaluation.json` of the contract, with two templates."""
    both = {
        "false_premise": {
            "baseline": metrics(0.25),
            "constrained": metrics(accuracy, true_object_mention_rate=0.6),
        },
        "true_premise": {
            "baseline": metrics(1.0, p_true_object=0.875),
            "constrained": metrics(0.9, p_true_object=0.625),
        },
    }
    return {
        "model": f"tiny {BREAKOUT}",
        "n_heads": 3,
        "head_fraction": 0.011,
        "heads": [[1, 0]],
        "site": site,
        "mode": "zero",
        "gate": "oracle",
        "splits": {"held_out": {**both, "templates": {"when": both, TAG: both}}},
        "random_null": {
            "n_sets": 20,
            "preference_accuracy": {"mean": 0.26, "p95": 0.375},
            "percentile_of_selected": 100.0,
        },
        "side_effects": {"neutral_kl": 0.0031, "neutral_perplexity_ratio": 1.004},
    }


def generation(kind: str = "false_premise", **changes: Any) -> dict[str, Any]:
    """A row of `generations.jsonl`."""
    question = f"Why is {TAG} the capital of Guinea?"
    start = question.index("Guinea")
    row = {
        "kind": kind,
        "template": f"why {BREAKOUT}",
        "subject": TAG,
        "true_object": "Papua New Guinea",
        "false_object": "Guinea",
        "question": question,
        "object_span": [start, start + len("Guinea")],
        "baseline": f"It lies in Guinea. {BREAKOUT}",
        "constrained": "It is the capital of Papua New Guinea, not of guinea.",
        "baseline_names_true": False,
        "baseline_names_false": True,
        "constrained_names_true": True,
        "constrained_names_false": True,
    }
    return {**row, **changes}


@pytest.fixture
def evaluation() -> dict[str, Any]:
    return {**make_evaluation(), "alternatives": [make_evaluation("output", 0.5)]}


@pytest.fixture
def generation_row() -> dict[str, Any]:
    return generation()


@pytest.fixture
def run_directory(tmp_path: Path, evaluation: dict[str, Any]) -> Path:
    """A complete run, to be changed at will."""
    return write_run(tmp_path / "run", evaluation)


@pytest.fixture(scope="session")
def reported_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run with its report, to be read only."""
    evaluation = {**make_evaluation(), "alternatives": [make_evaluation("output", 0.5)]}
    run = write_run(tmp_path_factory.mktemp("reported") / "run", evaluation)
    write_report(run)
    return run


def write_run(run: Path, evaluation: dict[str, Any]) -> Path:
    """Write every file of a run into a new directory."""
    run.mkdir()
    manifest = {"model": "tiny", "seed": 0, "command": BREAKOUT, "versions": {"torch": TAG}}
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (run / "heads.csv").write_text(HEADS_CSV, encoding="utf-8")
    (run / "settings.csv").write_text(SETTINGS_CSV, encoding="utf-8")
    (run / "null.csv").write_text(NULL_CSV, encoding="utf-8")
    (run / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    rows = [generation(), generation("true_premise")]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (run / "generations.jsonl").write_text(lines, encoding="utf-8")
    return run
