"""An adapted model as a worker loads it, and the jobs that run on it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from interp.experts.routing.collect import CollectSettings, collect_part
from interp.experts.routing.corpus import LabelledCorpus
from interp.files.documents import file_hash
from interp.jobs import Shard
from interp.models.fingerprint import prompting_fingerprint
from interp.moelora.hooked import hooked
from interp.moelora.load import WEIGHTS_FILE, load_adapter, read_adapter_config
from interp.moelora.training.pretrained import load_pretrained
from interp.runs.shards import Engine, digest_of


@dataclass(frozen=True)
class AdaptedModel:
    """A PEFT model, its tokenizer, and their origin.

    Attributes:
        spec, base_fingerprint: of the base model.
        adapter_sha256: of the adapter's weights.
        adapter_config: digest of the adapter's settings, except the path of its base model.
    """

    model: Any
    tokenizer: Any
    spec: str
    base_fingerprint: str
    adapter_sha256: str
    adapter_config: str

    @property
    def fingerprint(self) -> str:
        """One digest of the base model, its tokenizer, and the adapter, weights and settings."""
        tokenizer = prompting_fingerprint(self.tokenizer)
        return digest_of(
            [self.base_fingerprint, tokenizer, self.adapter_sha256, self.adapter_config]
        )

    @cached_property
    def hooked(self) -> Any:
        """The same weights in TransformerLens. Raises UserError if that is not possible."""
        return hooked(self.model, self.tokenizer, spec=self.spec)


def load_adapted(
    spec: str,
    adapter: Path,
    *,
    dtype: str = "float32",
    **placing: Any,
) -> AdaptedModel:
    """The base model that ``spec`` names with the adapter saved in a directory.

    ``placing`` is further options of `load_pretrained`: where the model goes, how it is quantized.
    """
    base = load_pretrained(spec, dtype=dtype, **placing)
    model = load_adapter(base.model, adapter).eval()
    sha256 = file_hash(adapter / WEIGHTS_FILE)
    config = digest_of({**read_adapter_config(adapter), "base_model_name_or_path": None})
    return AdaptedModel(model, base.tokenizer, base.spec, base.fingerprint, sha256, config)


def fingerprint_of(loaded: AdaptedModel) -> str:
    """`AdaptedModel.fingerprint`, as a function that can be pickled."""
    return loaded.fingerprint


@dataclass(frozen=True)
class OnHooked:
    """An engine for work on the hooked model, made of one whose models are adapted ones."""

    engine: Engine

    def run(
        self, work: Callable[[Any, Any], Shard], jobs: Iterable[tuple[int, Any]]
    ) -> Iterator[tuple[int, Shard]]:
        """See ``Engine``."""
        return self.engine.run(partial(_on_hooked, work), jobs)


def _on_hooked(work: Callable[[Any, Any], Shard], loaded: AdaptedModel, job: Any) -> Shard:
    return work(loaded.hooked, job)


@dataclass(frozen=True)
class RoutingJob:
    """A corpus whose routing is counted part by part; each part, by its number, is a shard.

    Attributes:
        run: what decides the outcome of the run that the counts belong to.
    """

    corpus: LabelledCorpus
    settings: CollectSettings
    run: Any = None
    number: int = 0
    prompts_per_shard: int = 1

    def order(self) -> Sequence[int]:
        """The numbers of all parts."""
        return range(self.settings.parts)

    def take(self, prompts: Sequence[int]) -> "RoutingJob":
        """The job of one part."""
        return replace(self, number=prompts[0])

    def identity(self) -> dict[str, Any]:
        """What decides the counts."""
        return {"run": self.run, "corpus": digest_of(asdict(self.corpus))}


def routing_shard(model: AdaptedModel, job: RoutingJob, *, progress: bool = False) -> Shard:
    """The sums over one part."""
    return Shard(
        collect_part(
            model.model,
            job.corpus,
            model.tokenizer,
            settings=job.settings,
            number=job.number,
            progress=progress,
        )
    )
