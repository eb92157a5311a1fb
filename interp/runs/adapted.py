"""Counting routing in parts: an adapted model as a worker loads it, and the work on one part."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.experts.collect import CollectSettings, collect_part
from interp.experts.corpus import LabelledCorpus
from interp.moelora.load import WEIGHTS_FILE, load_adapter
from interp.moelora.pretrained import load_pretrained
from interp.runs.shards import Shard, digest_of
from interp.runs.store import file_hash


@dataclass(frozen=True)
class AdaptedModel:
    """A PEFT model with its tokenizer, and the digest of base and adapter."""

    model: Any
    tokenizer: Any
    fingerprint: str


@dataclass(frozen=True)
class RoutingJob:
    """One part of a corpus, by its number."""

    corpus: LabelledCorpus
    settings: CollectSettings
    number: int


def load_adapted(spec: str, adapter: Path, dtype: str, device: str | None) -> AdaptedModel:
    """The base model that ``spec`` names with the adapter saved in a directory."""
    base = load_pretrained(spec, dtype=dtype, device=device)
    model = load_adapter(base.model, adapter).eval()
    return AdaptedModel(model, base.tokenizer, both_fingerprints(base.fingerprint, adapter))


def both_fingerprints(base: str, adapter: Path) -> str:
    """One digest of the base model and of the adapter's weights."""
    return digest_of([base, file_hash(adapter / WEIGHTS_FILE)])


def fingerprint_of(loaded: AdaptedModel) -> str:
    """The digest that the model was made with."""
    return loaded.fingerprint


def routing_shard(loaded: AdaptedModel, job: RoutingJob) -> Shard:
    """The sums over one part."""
    return Shard(
        collect_part(
            loaded.model, job.corpus, loaded.tokenizer, job.settings, job.number, progress=False
        )
    )
