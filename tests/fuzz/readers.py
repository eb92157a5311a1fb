"""Every reader of files that somebody else may have made, with valid files to begin from.

A reader is a directory of valid files and a function that reads it as the package does. Whatever is
done to the files, the function ends well or raises `interp.errors.UserError`.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import interp.premises
import probes
from interp.commands.locate import load_run
from interp.commands.report import report_run
from interp.errors import UserError
from interp.experts import ExpertEdgeEffects
from interp.experts.routing.records import RoutingRecords
from interp.explore.explorer import Explorer
from interp.explore.opening import _evaluated
from interp.files.gguf_header import check_gguf
from interp.files.text import parse_json, read_text
from interp.heads import HeadEffects, HeadSet
from interp.heads.effects import load_effects
from interp.interventions import Intervention
from interp.models import render_chat
from interp.moelora.data.reading import read_examples
from interp.moelora.load import load_adapter
from interp.patching import EdgeEffects, PatchEffects
from interp.patching.circuit import Circuit
from interp.premises.encode import encode_premises, tokenize
from interp.report.read_run import read_heads
from interp.runs.identity import check_run
from interp.runs.manifest import read_manifest
from interp.runs.shards import put_together
from interp.tasks import read_pairs
from probes.linear import LinearProbe
from tests.fuzz import run_seeds, seeds


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        make: fills a directory with valid files.
        kinds: how each file is mutated, by name; files that are not named stay as they are.
        read: reads the directory.
    """

    make: Callable[[Path], None]
    kinds: Mapping[str, str]
    read: Callable[[Path], object]

    def valid(self, folder: Path) -> dict[str, bytes]:
        """The valid files of a new directory."""
        folder.mkdir(parents=True, exist_ok=True)
        self.make(folder)
        return {name: (folder / name).read_bytes() for name in self.kinds}


def _relation(folder: Path) -> None:
    premises = interp.premises.load_premises(folder / "rivers.csv")
    for question in premises.questions():
        for kind in ("false", "twin", "masked"):
            premises.fill(question, kind)
        premises.cloze(question)
        premises.direct(question)
    premises.split(seed=0)
    premises._shown()


def _questions(folder: Path) -> None:
    for name in ("asked.csv", "asked.jsonl"):
        interp.premises.load_questions(folder / name)._shown()


def _spans(folder: Path) -> None:
    # As a caller hands it over: any text that Python can hold, half of a surrogate pair too.
    asked = parse_json(read_text(folder / "asked.json"), surrogates=True)
    if not isinstance(asked, dict) or not all(isinstance(one, str) for one in asked.values()):
        raise UserError("no texts")
    from interp.interventions.generate import named_span

    for tokenizer in seeds.tokenizers():
        rendered = render_chat(tokenizer, asked.get("question", ""), asked.get("answer", ""))
        encoding = tokenize(tokenizer, rendered)
        named_span(
            asked.get("question", ""), asked.get("false_object"), rendered, encoding=encoding
        )


def _encoded(folder: Path) -> None:
    premises = interp.premises.load_premises(folder / "rivers.csv", limit=2)
    for tokenizer in seeds.tokenizers():
        encode_premises(tokenizer, premises)


def _chat_template(folder: Path) -> None:
    tokenizer = seeds.tokenizers()[0]
    before = tokenizer.chat_template
    tokenizer.chat_template = read_text(folder / "chat.jinja")
    try:
        render_chat(
            tokenizer, "Why is Paris the capital of Germany?", "Paris is", system="Be kind."
        )
    finally:
        tokenizer.chat_template = before


def _report(folder: Path) -> None:
    report_run(folder)


def _resumed(folder: Path) -> None:
    """What evaluating, exploring or resuming a run of ``interp locate`` reads of it."""
    check_run(folder, "search.json", {"seed": 0})
    read_manifest(folder)
    _, split, effects = load_run(folder)
    heads = read_heads(folder / "heads.csv")
    for one in effects.values():
        one.select(count=1)
    _evaluated(folder, Explorer(seeds.planted_model(), heads, split=split))


def _effects(folder: Path) -> None:
    for one in load_effects(folder / "effects.safetensors").values():
        one.to_dataframe()
        one.select(count=1)
        HeadEffects.load(folder / "effects.safetensors", site=one.site)


def _patching_result(folder: Path) -> None:
    result = PatchEffects.load(folder / "effects.safetensors")
    result.to_dataframe()
    result.plot()


def _edge_effects(folder: Path) -> None:
    result = EdgeEffects.load(folder / "edges.safetensors")
    result.to_dataframe(10)
    result.plot()
    result.circuit(len(result.order()))


def _expert_edge_effects(folder: Path) -> None:
    result = ExpertEdgeEffects.load(folder / "edges.safetensors")
    result.to_dataframe(10)
    result.plot()


def _shard(folder: Path) -> None:
    store = seeds.shard_store(folder)
    if (shard := store.read(0)) is None:
        raise UserError("it is made again")
    put_together([shard, store.finished(1)], [[0, 2], [1, 3]])


def _head_set(folder: Path) -> None:
    HeadSet.load(folder / "heads.json").plot()


def _circuit(folder: Path) -> None:
    circuit = Circuit.load(folder / "circuit.json")
    circuit.top(len(circuit.ranked()) // 2).to_json()


def _records(folder: Path) -> None:
    records = RoutingRecords.load(folder / "routing.safetensors")
    records.to_dataframe()
    records.by_projection()


def _detector(folder: Path) -> None:
    probes.PremiseDetector.load(folder)._shown()


def _support_detector(folder: Path) -> None:
    probes.SupportDetector.load(folder)._shown()


def _adapter(folder: Path) -> None:
    load_adapter(seeds.tiny_hf_model(), folder)


def _config(folder: Path) -> None:
    from interp.cli.config import from_config, settings_of
    from interp.cli.options import LocateOptions, PatchOptions
    from interp.commands.locate import LocateSettings
    from interp.commands.patch import PatchSettings

    locate = from_config(LocateOptions, folder / "locate.yaml")
    settings_of(LocateSettings, locate)
    settings_of(PatchSettings, from_config(PatchOptions, folder / "patch.yaml"))


def _examples(name: str) -> Callable[[Path], object]:
    return lambda folder: read_examples(folder / name)


READERS: dict[str, Reader] = {
    "premises": Reader(seeds.relation, {"rivers.csv": "csv", "rivers.yaml": "yaml"}, _relation),
    "premises, tokens": Reader(
        seeds.relation, {"rivers.csv": "csv", "rivers.yaml": "yaml"}, _encoded
    ),
    "questions": Reader(seeds.questions, {"asked.csv": "csv", "asked.jsonl": "jsonl"}, _questions),
    "span finder": Reader(seeds.asked, {"asked.json": "json"}, _spans),
    "chat template": Reader(seeds.chat_template, {"chat.jinja": "text"}, _chat_template),
    "run of locate, report": Reader(run_seeds.evaluated_run, run_seeds.EVALUATED_KINDS, _report),
    "run of locate, resumed": Reader(run_seeds.located_run, run_seeds.LOCATED_KINDS, _resumed),
    "run of patch, report": Reader(run_seeds.patch_run, run_seeds.PATCH_KINDS, _report),
    "run of circuit, report": Reader(run_seeds.circuit_run, run_seeds.CIRCUIT_KINDS, _report),
    "run of probe, report": Reader(run_seeds.probe_run, run_seeds.PROBE_KINDS, _report),
    "run of compare, report": Reader(
        run_seeds.comparison_run, {"comparison.json": "json", "losses.csv": "csv"}, _report
    ),
    "shard of a sweep": Reader(
        seeds.shards, {seeds.shard_store(Path()).path(0).name: "tensors"}, _shard
    ),
    "head effects": Reader(seeds.effects, {"effects.safetensors": "tensors"}, _effects),
    "patching result": Reader(
        seeds.patching_result, {"effects.safetensors": "tensors"}, _patching_result
    ),
    "edge effects": Reader(seeds.edge_effects, {"edges.safetensors": "tensors"}, _edge_effects),
    "expert edge effects": Reader(
        seeds.expert_edge_effects, {"edges.safetensors": "tensors"}, _expert_edge_effects
    ),
    "head set": Reader(seeds.head_set, {"heads.json": "json"}, _head_set),
    "circuit": Reader(seeds.circuit, {"circuit.json": "json"}, _circuit),
    "intervention, YAML": Reader(
        seeds.intervention,
        {"it.yaml": "yaml"},
        lambda folder: Intervention.load(folder / "it.yaml"),
    ),
    "intervention, JSON": Reader(
        seeds.intervention,
        {"it.json": "json"},
        lambda folder: Intervention.load(folder / "it.json"),
    ),
    "pairs": Reader(
        seeds.pairs, {"pairs.jsonl": "jsonl"}, lambda folder: read_pairs(folder / "pairs.jsonl")
    ),
    "adapter": Reader(
        seeds.adapter,
        {"adapter_config.json": "json", "adapter_model.safetensors": "tensors"},
        _adapter,
    ),
    "routing records": Reader(seeds.records, {"routing.safetensors": "tensors"}, _records),
    "linear probe": Reader(
        seeds.probe,
        {"probe.safetensors": "tensors"},
        lambda folder: LinearProbe.load(folder / "probe.safetensors"),
    ),
    "premise detector": Reader(
        seeds.detector, {"detector.json": "json", "detector.safetensors": "tensors"}, _detector
    ),
    "support detector": Reader(seeds.support_detector, {"support.json": "json"}, _support_detector),
    "command-line config": Reader(
        seeds.config, {"locate.yaml": "yaml", "patch.yaml": "yaml"}, _config
    ),
    "task data, JSON lines": Reader(
        seeds.task_data, {"data.jsonl": "jsonl"}, _examples("data.jsonl")
    ),
    "task data, JSON": Reader(seeds.task_data, {"data.json": "json"}, _examples("data.json")),
    "task data, CSV": Reader(seeds.task_data, {"data.csv": "csv"}, _examples("data.csv")),
    "task data, Parquet": Reader(
        seeds.task_data, {"data.parquet": "binary"}, _examples("data.parquet")
    ),
    "GGUF header": Reader(
        seeds.gguf, {"model.gguf": "gguf"}, lambda folder: check_gguf(folder / "model.gguf")
    ),
}


def fresh(reader: Reader, folder: Path) -> dict[str, bytes]:
    """A directory with the reader's valid files only, made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    return reader.valid(folder)
