"""The valid run directories that are mutated: finished ones, made without running a model."""

from pathlib import Path

import pandas as pd
import torch

from interp.commands.circuit import CircuitSettings, write_results
from interp.commands.patch import PatchSettings, summary_of
from interp.files.documents import write_json, write_jsonl, write_table, write_yaml
from interp.heads.effects import save_effects
from interp.patching.edges.edge_faithfulness import EdgeCircuits
from tests.fixtures import planted_relation as relation_of_planted
from tests.fuzz.seeds import made_up_edges, made_up_effects, made_up_result
from tests.report.conftest import make_evaluation, write_run

EVALUATED_KINDS = {
    **dict.fromkeys(("manifest.json", "evaluation.json"), "json"),
    **dict.fromkeys(("heads.csv", "settings.csv", "null.csv"), "csv"),
    "generations.jsonl": "jsonl",
}


def evaluated_run(folder: Path) -> None:
    """A finished run of ``interp locate`` and ``interp evaluate``."""
    folder.rmdir()
    write_run(folder, {**make_evaluation(), "alternatives": [make_evaluation("output", 0.5)]})


LOCATED_KINDS = {
    **dict.fromkeys(("manifest.json", "known.json", "search.json", "evaluation.json"), "json"),
    "premises.jsonl": "jsonl",
    "heads.csv": "csv",
    "effects.safetensors": "tensors",
}


def located_run(folder: Path) -> None:
    """A run of ``interp locate`` on the planted model's facts, without running the model."""
    from interp.commands.known import known_part, premise_rows
    from interp.commands.locate import LocateSettings, effects_digest
    from interp.premises import load_premises
    from interp.runs.shards import digest_of

    made_up = relation_of_planted()
    beside = folder.with_name(f"{folder.name}-facts")
    beside.mkdir(exist_ok=True)
    facts = "".join(f"{one.subject},{one.object}\n" for one in made_up.facts)
    (beside / "planted.csv").write_text(f"subject,object\n{facts}", encoding="utf-8")
    description = {
        "name": made_up.name,
        "templates": {one.name: one.text for one in made_up.templates},
        "search_templates": list(made_up.search_templates),
        "cloze": made_up.cloze,
        "direct": made_up.direct,
    }
    write_yaml(beside / "planted.yaml", description)
    settings = LocateSettings(premises=str(beside / "planted.csv"), site="output")
    premises = load_premises(settings.relation)
    known = {"subjects": list(premises.subjects), "summary": "All."}
    write_json(folder / "known.json", {**known, "sha256": digest_of(known)})
    split = known_part(premises, folder).split(seed=0)
    write_jsonl(folder / "premises.jsonl", premise_rows(split))
    effects_of_planted = made_up_effects(tuple(q.subject for q in split.search.questions()))
    asked = {
        "tokenizer_sha256": "1" * 64,
        "chat_template_sha256": None,
        "end_tokens": [0],
        "prompt_tokens_sha256": "2" * 64,
        "template_time": "2026-01-01T12:00:00",
    }
    write_json(folder / "search.json", {"seed": 0, "premises": settings.premises, **asked})
    digest = effects_digest(settings, "0" * 64, split, prompts=asked["prompt_tokens_sha256"])
    save_effects(folder / "effects.safetensors", [effects_of_planted], kept={"run": digest})
    write_table(folder / "heads.csv", effects_of_planted.to_dataframe())
    content = {**make_evaluation("output"), "heads": [[0, 1]], "factor": 0.0}
    write_json(folder / "evaluation.json", content)
    manifest = {
        "model": {"spec": "planted", "fingerprint": "0" * 64},
        "settings": {key: value for key, value in vars(settings).items() if key != "limit"},
        **asked,
    }
    write_json(folder / "manifest.json", manifest)


PATCH_KINDS = {
    "effects.safetensors": "tensors",
    **dict.fromkeys(("summary.json", "manifest.json"), "json"),
}


def patch_run(folder: Path) -> None:
    """A finished run of ``interp patch``."""
    result = made_up_result()
    result.save(folder / "effects.safetensors")
    write_json(folder / "patch.json", {"pairs": "ioi"})
    write_json(folder / "summary.json", summary_of(result, PatchSettings(), n_right=7, n_pairs=7))
    write_json(folder / "manifest.json", {"model": {"spec": "tiny"}, "seed": 0, "versions": {}})


CIRCUIT_KINDS = {
    "edges.safetensors": "tensors",
    **dict.fromkeys(("summary.json", "manifest.json"), "json"),
}


def circuit_run(folder: Path) -> None:
    """A finished run of ``interp circuit``."""
    found = made_up_edges()
    circuits = EdgeCircuits.of(found, n_random=2)
    values = torch.randn(6, len(circuits.masks()))
    curve = circuits.curve(values, clean=found.clean, corrupted=found.corrupted)
    write_results(folder, found, curve, settings=CircuitSettings(), n_right=6, n_pairs=12)
    found.save(folder / "edges.safetensors")
    write_json(folder / "circuit_run.json", {"pairs": "ioi"})
    write_json(folder / "manifest.json", {"model": {"spec": "tiny"}, "seed": 0, "versions": {}})


PROBE_KINDS = {
    **dict.fromkeys(("manifest.json", "controls.json", "known.json", "detection.json"), "json"),
    **dict.fromkeys(("auc.csv", "auc_heads.csv", "controls.csv", "reliability.csv"), "csv"),
}


def probe_run(folder: Path) -> None:
    """A finished run of ``interp probe``."""
    rows = [
        {
            "layer": layer,
            "auc": 0.8,
            "ci_low": 0.7,
            "ci_high": 0.9,
            "accuracy": 0.75,
            "search_auc": 0.85,
        }
        for layer in (0, 1)
    ]
    both = pd.concat([pd.DataFrame(rows), pd.DataFrame(rows)], ignore_index=True)
    write_table(folder / "auc.csv", both.assign(position=["object", "object", "last", "last"]))
    write_table(folder / "auc_heads.csv", both.assign(head=[0, 0, 1, 1]))
    controls = {"name": ["probe", "words"], "auc": [0.8, 0.5], "ci_low": 0.4, "ci_high": 0.9}
    write_table(folder / "controls.csv", pd.DataFrame(controls))
    curve = {"bin": [0, 9], "predicted": [0.1, 0.9], "observed": [0.2, 0.8], "n": [5, 7]}
    write_table(folder / "reliability.csv", pd.DataFrame(curve))
    write_json(folder / "probe.json", {"premises": "capitals"})
    write_json(folder / "known.json", {"summary": "The model knows 4 of 9.", "subjects": ["a"]})
    said = {"sentence": "It beats them.", "control_task_auc": 0.6, "selectivity": 0.2}
    write_json(folder / "controls.json", said)
    measure = [0.8, 0.7, 0.9]
    names = ("auc", "fired_on_false", "fired_on_twins", "span_covers_object")
    detection = {**dict.fromkeys(names, measure), "calibration_error": 0.1, "n": 12, "layer": 1}
    write_json(folder / "detection.json", detection)
    manifest = {
        "model": {"spec": "tiny"},
        "settings": {"premises": "capitals", "hook": "resid_post"},
        "seed": 0,
    }
    write_json(folder / "manifest.json", manifest)


def comparison_run(folder: Path) -> None:
    """A finished run of ``interp moelora compare``."""
    of_task = {
        "n": 9,
        "mean": 0.5,
        "questions": [0.4, 0.6],
        "seeds": [0.3, 0.7],
        "by_seed": [0.4, 0.6],
    }
    experts = {
        "dead_experts": [0, 1],
        "load_smallest": [0.2, 0.3],
        "load_largest": [1.5, 1.6],
        "cosine": {"mean": 0.1, "ci_low": 0.0, "ci_high": 0.2},
    }
    method = {
        "trainable_parameters": 1000,
        "seeds": [0, 1],
        "steps": 10,
        "seconds_per_step": 0.5,
        "accuracy": {"sums": of_task, "dates": of_task},
        "held_out_loss": {"sums": {"mean": 1.5}, "dates": {"mean": 2.5}},
    }
    one = {"value": 0.3, "ci_low": 0.1, "ci_high": 0.5}
    content = {
        "methods": {"lora": {**method, "experts": None}, "moelora": {**method, "experts": experts}},
        "differences": {"moelora": {"sums": of_task, "dates": of_task}},
        "base": {"accuracy": {"sums": one}},
        "settings": {"model": "tiny", "data": ["a", "b"], "steps": 10},
        "manifest": {"seed": 0},
        "parameters_differ_by": 0.004,
    }
    write_json(folder / "comparison.json", content)
    losses = [
        {
            "method": name,
            "seed": seed,
            "step": step,
            "language_loss": 2.0 - step / 10,
            "load_balance": 1.0 if name != "lora" else None,
        }
        for name in ("lora", "moelora")
        for seed in (0, 1)
        for step in (1, 2)
    ]
    write_table(folder / "losses.csv", pd.DataFrame(losses))
