"""The valid files that are mutated: small, and with something in every part of them."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import peft
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file

import probes
from interp.experts import ExpertEdgeEffects
from interp.experts.routing.counter import RoutingCounter, TokenLabels
from interp.experts.routing.records import RoutingRecords
from interp.experts.routing.tables import Sizes
from interp.files.documents import write_json, write_jsonl, write_yaml
from interp.heads import HeadEffects, HeadSet
from interp.heads.effects import save_effects
from interp.interventions import Constraint, ExpertConstraint, Intervention
from interp.jobs import Shard
from interp.moelora import MoELoRAConfig
from interp.moelora.projections import AdaptedProjection
from interp.patching import EdgeEffects, PatchEffects
from interp.patching.circuit import Circuit
from interp.patching.edges.graph import EdgeGraph
from interp.runs.shards import ShardStore
from probes.detector.calibration import Calibration
from probes.detector.evidence import Combination
from probes.linear import LinearProbe
from tests.fixtures import make_hf_model, make_planted_model, make_tokenizer, make_word_tokenizer
from tests.fixtures import planted_relation as relation_of_planted

RIVERS = """\
name: rivers
description: Cities and their rivers.
subject_kind: city
object_kind: river
templates:
  why: "Why does the {object} flow through {subject}?"
  bridges: "How many bridges cross the {object} in {subject}, {country}?"
search_templates: [why]
cloze: "The river of {subject} is the"
direct: "Which river flows through {subject}?"
mask: XXXX
"""
FACTS = """\
subject,object,also_true,country
Vienna,Danube,Donau,Austria
Cairo,Nile,,Egypt
London,Thames,"Tamesis; Isis",England
Paris,Seine,,France
"""


@cache
def tokenizers() -> tuple[Any, Any]:
    """One with a chat template, one without."""
    return make_tokenizer(chat=True), make_tokenizer(chat=False)


@cache
def planted_model() -> Any:
    return make_planted_model(make_word_tokenizer(relation_of_planted()))


@cache
def _one_layer() -> Any:
    return make_hf_model("llama", tokenizers()[1], num_hidden_layers=1, num_key_value_heads=4)


def tiny_hf_model() -> Any:
    """A new copy of one small model: an adapter changes what it is put on."""
    return copy.deepcopy(_one_layer())


def questions(folder: Path) -> None:
    """The same questions as a table and as edited facts."""
    (folder / "asked.csv").write_text(
        'question,answer,label\nWhy is Paris in Spain?,"[""France"", 1]",1\n'
        "Why is Rome in Italy?,Italy; Europe,valid\n",
        encoding="utf-8",
    )
    edit = {"subject": "Paris", "relation": "in", "object": "France", "false_object": "Spain"}
    texts = ["Why is Paris in Spain?", "Why is Paris in France?"]
    write_jsonl(folder / "asked.jsonl", [{**edit, "questions": texts, "answer": ["France", 1]}])


def relation(folder: Path) -> None:
    (folder / "rivers.yaml").write_text(RIVERS, encoding="utf-8")
    (folder / "rivers.csv").write_text(FACTS, encoding="utf-8")


def asked(folder: Path) -> None:
    content = {
        "question": "Why is Paris the capital of Germany?",
        "false_object": "Germany",
        "answer": "Paris is the capital of",
    }
    write_json(folder / "asked.json", content)


def chat_template(folder: Path) -> None:
    (folder / "chat.jinja").write_text(tokenizers()[0].chat_template, encoding="utf-8")


def made_up_effects(subjects: tuple[str, ...]) -> HeadEffects:
    """Effects of twelve heads, a prompt a subject."""
    torch.manual_seed(0)
    return HeadEffects(
        values=torch.randn(len(subjects), 3, 4),
        probability=torch.rand(len(subjects), 3, 4),
        subjects=subjects,
        templates=("why",) * len(subjects),
        site="output",
        method="attribution",
        source="masked",
    )


def shard_store(folder: Path) -> ShardStore:
    """Where ``shards`` puts them."""
    return ShardStore(folder, {"model": "0" * 64, "site": "output"}, 2)


def shards(folder: Path) -> None:
    """The two shards of a sweep."""
    made = Shard(
        {"values": torch.rand(2, 3, 4)},
        texts=["Paris.", "Ünderstood\ud800"],
        kept={"source": "masked"},
    )
    for number in range(2):
        shard_store(folder).write(number, made)


def effects(folder: Path) -> None:
    made_up = made_up_effects(tuple(f"city{number}" for number in range(6)))
    save_effects(folder / "effects.safetensors", [made_up])


def made_up_result() -> PatchEffects:
    """Effects at spans of two layers."""
    torch.manual_seed(0)
    return PatchEffects(
        values=torch.randn(7, 2, 3),
        axes=("prompt", "layer", "span"),
        corrupted=torch.randn(7),
        clean=torch.randn(7),
        component="resid_pre",
        method="exact",
        metric="logit_difference",
        labels={"span": ("subject", "object", "end")},
        groups=tuple("abcdefg"),
        metadata={"model": "0" * 64, "pairs": "ioi"},
    )


def patching_result(folder: Path) -> None:
    made_up_result().save(folder / "effects.safetensors")


def made_up_edges() -> EdgeEffects:
    """Scores of all edges of a model of two layers."""
    graph = EdgeGraph(n_layers=2, n_heads=2, n_kv_heads=1)
    torch.manual_seed(0)
    values = torch.randn(6, *graph.shape).masked_fill(~graph.exists, torch.nan)
    clean, corrupted = torch.randn(2, 6)
    return EdgeEffects(values, graph, 8, corrupted, clean, method="eap", metric="kl")


def edge_effects(folder: Path) -> None:
    made_up_edges().save(folder / "edges.safetensors")


def expert_edge_effects(folder: Path) -> None:
    torch.manual_seed(0)
    edges = ("input", "a0.q.e1"), ("a0.o.e0", "a1.h1<q>"), ("m0", "a1.v.e3")
    clean, corrupted = torch.randn(2, 6)
    made = ExpertEdgeEffects(torch.randn(6, 3), edges, corrupted, clean, method="eap", metric="kl")
    made.save(folder / "edges.safetensors")


def head_set(folder: Path) -> None:
    HeadSet(((0, 1), (3, 2)), "attention", "by hand").save(folder / "heads.json")


def circuit(folder: Path) -> None:
    scores = torch.tensor([[0.5, -1.0], [2.0, torch.nan]], dtype=torch.float64)
    mlps = torch.tensor([0.1, torch.nan], dtype=torch.float64)
    Circuit(scores, mlps, 8).top(2).save(folder / "circuit.json", edges=True)


def intervention(folder: Path) -> None:
    one = Intervention(gate="probe")
    one |= Constraint(HeadSet(((0, 1), (2, 3)), "output"), "scale", -1.0)
    one |= ExpertConstraint([(1, "attn.q", 2), (0, "attn.v", 1)], "scale", 0.5, "spans")
    for name in ("it.yaml", "it.json"):
        one.save(folder / name)


def pairs(folder: Path) -> None:
    row = {
        "clean": "Paris is the capital of",
        "corrupted": "Rome is the capital of",
        "answer": " France",
        "wrong_answer": " Italy",
        "spans": {"city": {"clean": [0, 5], "corrupted": [0, 4]}},
        "group": "Paris",
        "template": "is",
    }
    write_jsonl(folder / "pairs.jsonl", [row, {**row, "group": "Rome"}])


def adapter(folder: Path) -> None:
    config = MoELoRAConfig(r=2, num_experts=3, top_k=2, target_modules=["q_proj", "v_proj"])
    peft.get_peft_model(tiny_hf_model(), config).save_pretrained(str(folder))
    assert load_file(str(folder / "adapter_model.safetensors"))


def records(folder: Path) -> None:
    sizes = Sizes(
        projections=1, experts=3, top_k=2, tasks=2, folds=2, units=6, ids=2, routers=0, id_routers=0
    )
    unit = torch.arange(6).repeat(5)
    zeros = torch.zeros(30, dtype=torch.long)
    labels = TokenLabels(
        task=unit % 2,
        fold=unit // 3,
        unit=unit,
        row=unit % 3,
        token_class=zeros,
        position=zeros,
        follows=zeros.bool(),
    )
    counter = RoutingCounter(sizes)
    counter.add_tokens(labels)
    counter.add(0, torch.from_numpy(np.random.default_rng(0).normal(size=(30, 3))).float(), labels)
    made = RoutingRecords(
        (AdaptedProjection("q", 0, "q", 3),),
        sizes,
        ("a", "b"),
        (7, 8),
        ("x", "y"),
        (0, 1, 0, 1, 0, 1),
        (0, 0, 0, 1, 1, 1),
        counter.tables,
        {"sampled": "8"},
    )
    made.save(folder / "routing.safetensors")


def probe(folder: Path) -> None:
    made = LinearProbe(torch.arange(4.0), 0.5, 1, "resid_post", "object", "0" * 64)
    made.save(folder / "probe.safetensors")


def detector(folder: Path) -> None:
    curve = Calibration("isotonic", scores=(-1.0, 2.0), probabilities=(0.1, 0.9))
    made = probes.PremiseDetector(
        torch.ones(2, 4), (0.1, 0.2), 1, curve, 0.5, "0" * 64, {"relations": ["capitals"], "n": 9}
    )
    made.save(folder)


def support_detector(folder: Path) -> None:
    of_probes = probes.PremiseDetector(
        torch.ones(3, 4),
        (0.1, 0.2, 0.3),
        1,
        Calibration("platt"),
        0.5,
        "0" * 64,
        combination=Combination(("falsity", "entropy"), (1.0, 0.5), 0.1),
    )
    probes.SupportDetector(
        of_probes,
        weights=(1.0, -0.5, 0.3),
        bias=0.1,
        floor=-1.0,
        sureness=0.5,
        calibration=Calibration("platt"),
        threshold=0.9,
        training={"auc": 0.9},
    ).save(folder)


def config(folder: Path) -> None:
    locate = {"seed": 1, "premises": "capitals", "method": "path", "limit": None, "out": "runs/x"}
    write_yaml(folder / "locate.yaml", locate)
    patch = {"pairs": "ioi", "component": "z", "memory": 100.5, "chat": True, "top_k": 5}
    write_yaml(folder / "patch.yaml", patch)


def task_data(folder: Path) -> None:
    rows = [
        {
            "prompt": "1 + 1?",
            "answer": "2",
            "options": ["2", "3"],
            "task": "sums",
            "kind": "number",
        },
        {
            "prompt": "2 + 1?",
            "answer": "3",
            "also_true": ["three"],
            "subject": "s",
            "kind": "number",
        },
    ]
    write_jsonl(folder / "data.jsonl", rows)
    problem = {
        "Question": "Ann has number0 and number1 apples. How many?",
        "Numbers": "3 4.0",
        "Equation": "+ number0 number1",
        "Answer": 7.0,
    }
    (folder / "data.json").write_text(json.dumps([problem, problem]))
    instruct = {"instruction": "Add.", "input": "1, 2", "output": "It is 3.", "answer": "3"}
    pd.DataFrame([instruct, instruct]).to_csv(folder / "data.csv", index=False)
    pd.DataFrame([{"question": "1?", "answer": "#### 1"}] * 2).to_parquet(folder / "data.parquet")


def gguf(folder: Path) -> None:
    """A small file of the format with every kind of value in it."""
    writer = GGUFWriter(folder / "model.gguf", "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_float32("llama.eps", 1e-5)
    writer.add_bool("tokenizer.add_bos", True)
    writer.add_string("general.name", "tiny")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "<s>"])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5, 2.5])
    writer.add_tensor("token_embd.weight", np.ones((3, 32), dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(32, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
