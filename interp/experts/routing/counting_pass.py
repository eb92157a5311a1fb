"""One pass over a labelled corpus: its batches, and what is counted of them.

Texts run in batches of like length, padded on the right. The model's own modules run as they are; a
light hook sees what each adapted projection reads. The unembedding, a fifth of a small model's
work, is left out, and what all texts begin with runs once. Each input is routed once more (a
product with 8 rows), by its own router and by untrained ones, and counted; nothing of a token is
kept, unless a file for it is asked for.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from zlib import crc32

import torch
from jaxtyping import Bool, Int
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache

from interp.arguments import whole_number
from interp.errors import UserError
from interp.experts.routing.corpus import LabelledCorpus
from interp.experts.routing.counter import RoutingCounter, TokenLabels, UntrainedRouters
from interp.experts.routing.records import RoutingRecords
from interp.experts.routing.similarity import OutputMoments, OutputSimilarity
from interp.experts.routing.tables import Sizes, Tables
from interp.experts.routing.token_class import token_class, token_texts
from interp.experts.routing.token_file import Routing, TokenFile
from interp.forward.batch import by_length
from interp.models.placement import input_device
from interp.moelora.layer import layers_in_use
from interp.moelora.projections import AdaptedProjection

LEAST_SHARED = 4
"""A beginning of fewer tokens is not worth a cache."""


def base_of(model: Any) -> Any:
    """The transformers model inside a PEFT model or a hooked one, or the model itself."""
    if isinstance(model, PeftModel):
        return model.get_base_model()
    original = getattr(model, "original_model", None)
    return model if original is None else original


class Runner:
    """Forward passes up to the last hidden states; what all texts begin with is run once.

    With experts on the unembedding, up to the logits.
    """

    def __init__(self, model: Any, beginning: Sequence[int] = ()) -> None:
        base = base_of(model)
        head = base.get_output_embeddings()
        whole = any(layer is head for layer in layers_in_use(base))
        self.inner: Any = base if whole else getattr(base, "base_model", base)
        self.device = input_device(base)
        self.begun: DynamicCache | None = None
        # A hooked model's own hooks may act on whole prompts only.
        if len(beginning) >= LEAST_SHARED and base is not getattr(model, "original_model", None):
            self.begun = DynamicCache(config=base.config)
            tokens = torch.tensor([list(beginning)], device=self.device)
            self.inner(input_ids=tokens, past_key_values=self.begun, use_cache=True)
            self.length = len(beginning)

    def __call__(self, tokens: Int[Tensor, "text pos"], mask: Bool[Tensor, "text pos"]) -> None:
        """Run texts padded on the right, whole or behind the beginning that they share."""
        tokens, whole = tokens.to(self.device), mask.long().to(self.device)
        if self.begun is None:
            self.inner(input_ids=tokens, attention_mask=whole, use_cache=False)
            return
        cache = copy.deepcopy(self.begun)
        cache.batch_repeat_interleave(len(tokens))
        self.inner(
            input_ids=tokens[:, self.length :],
            attention_mask=whole,
            past_key_values=cache,
            use_cache=True,
        )


ROUTERS = 99
_LEAST = {"folds": 2, "units": 2, "batch_tokens": 1, "ids": 1, "parts": 1}
_LEAST |= {"routers": 0, "id_routers": 0, "sampled": 0}


@dataclass(frozen=True)
class CollectSettings:
    """How a corpus is counted. Raises UserError for a value out of range.

    Attributes:
        folds: parts of the texts for the jackknife intervals.
        units: at most so many units a task; further ones share them.
        routers: untrained routers that look on.
        id_routers: those of them that are also counted by token id.
        ids: at most so many token ids have a row of their own.
        batch_tokens: tokens of a batch, with padding.
        sampled: about so many tokens are drawn to compare the experts' outputs on.
        parts: the corpus is counted in so many parts, whose sums are then added up in order.
        seed: of the untrained routers and of the tokens drawn.
    """

    folds: int = 10
    units: int = 256
    routers: int = ROUTERS
    id_routers: int = 4
    ids: int = 1024
    batch_tokens: int = 2048
    sampled: int = 2048
    parts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            whole_number(name, getattr(self, name), least=least)


@dataclass
class _Batch:
    """The texts of one forward pass, and what is known of their counted tokens."""

    tokens: Int[Tensor, "text pos"]
    mask: Bool[Tensor, "text pos"]
    counted: Bool[Tensor, "text pos"]
    labels: TokenLabels
    texts: Int[Tensor, " token"]
    sampled: Bool[Tensor, " token"]
    ran: set[int] = field(default_factory=set)
    latest: tuple[int, Tensor] | None = None
    routed: list[Routing] = field(default_factory=list)


class RoutingPass:
    """The state of one pass: the counter, and the batch that is running."""

    def __init__(
        self, model: Any, corpus: LabelledCorpus, tokenizer: Any, *, settings: CollectSettings
    ) -> None:
        self.corpus, self.settings = corpus, settings
        self.layers = layers_in_use(base_of(model))
        found = map(AdaptedProjection.of_layer, self.layers)
        # The tables count a projection outside the layers as one of layer 0.
        self.projections = tuple(replace(part, layer=part.layer or 0) for part in found)
        (adapter,) = self.layers[0].adapters_in_use
        config = self.layers[0].experts[adapter].config
        self.weights = [layer.weights(adapter) for layer in self.layers]
        _check_length(base_of(model), corpus)
        self.ids = corpus.frequent_ids(settings.ids)
        self.id_texts = token_texts(tokenizer, self.ids)
        self.class_of, self.row_of = _by_id(corpus, self.ids, tokenizer)
        self.unit_of, self.unit_task, self.unit_fold = _units(corpus, settings)
        self.sizes = Sizes(
            projections=len(self.layers),
            experts=max(projection.n_experts for projection in self.projections),
            top_k=config.top_k,
            tasks=len(corpus.tasks),
            folds=settings.folds,
            units=len(self.unit_task),
            ids=len(self.ids),
            routers=settings.routers,
            id_routers=settings.id_routers,
        )
        self.counter = RoutingCounter(self.sizes, renormalize=config.renormalize)
        self.moments = OutputMoments(self.weights, self.projections)
        self.untrained = UntrainedRouters(settings.routers, seed=settings.seed)
        self.shared: dict[int, int] = {}
        self.file: TokenFile | None = None
        self.batch: _Batch | None = None
        self.runner: Any = None

    @cached_property
    def _chosen(self) -> list[list[int]]:
        """Which texts each batch holds: those of like length, the longest first.

        Memory is then at its most at the beginning.
        """
        lengths = [len(text.tokens) for text in self.corpus.texts]
        return by_length(lengths, self.settings.batch_tokens, longest_first=True)

    def chosen(self, part: int) -> list[list[int]]:
        """The batches of one part: parts are of as many batches, in order."""
        parts, total = self.settings.parts, len(self._chosen)
        return self._chosen[total * part // parts : total * (part + 1) // parts]

    def tokens_of(self, chosen: Sequence[int]) -> int:
        """How many tokens of a batch are counted."""
        return sum(len(self.corpus.texts[index].tokens) - self.corpus.prefix for index in chosen)

    def batches(self, part: int) -> Iterator[_Batch]:
        """The batches of one part; which tokens are sampled does not depend on the parts."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        share = self.settings.sampled / max(1, sum(self.corpus.tokens.values()))
        mine = self.chosen(part)
        for chosen in self._chosen:
            if mine and chosen is mine[0]:
                break
            torch.rand(self.tokens_of(chosen), generator=generator)
        for chosen in mine:
            yield self._batch(chosen, generator, share)

    def _batch(self, chosen: list[int], generator: torch.Generator, share: float) -> _Batch:
        texts = [torch.tensor(self.corpus.texts[index].tokens) for index in chosen]
        tokens = pad_sequence(texts, batch_first=True)
        mask = torch.arange(tokens.shape[1]) < torch.tensor([[len(text)] for text in texts])
        counted = mask.clone()
        counted[:, : self.corpus.prefix] = False
        row, at = counted.nonzero().unbind(dim=-1)
        ids, index = tokens[row, at], torch.tensor(chosen)
        unit = self.unit_of[index][row]
        position = at - self.corpus.prefix
        labels = TokenLabels(
            task=torch.tensor(self.unit_task)[unit],
            fold=torch.tensor(self.unit_fold)[unit],
            unit=unit,
            row=self.row_of[ids],
            token_class=self.class_of[ids],
            position=position,
            follows=position > 0,
        )
        sampled = torch.rand(len(row), generator=generator) < share
        return _Batch(tokens, mask, counted, labels, index[row], sampled)

    def run(self, batch: _Batch) -> None:
        """One forward pass; every projection must have been seen in it."""
        self.batch = batch
        self.counter.add_tokens(batch.labels)
        self.runner(batch.tokens, batch.mask)
        if missing := set(range(len(self.layers))) - batch.ran:
            name = self.projections[min(missing)].name
            raise UserError(
                f"the hooked model computes {name!r} by other code than the projection's own: give "
                "the PEFT model itself"
            )
        if self.file is not None:
            tokens = batch.tokens[batch.counted]
            self.file.write(batch.labels, texts=batch.texts, tokens=tokens, routed=batch.routed)
        self.batch = None

    def on_input(self, number: int, given: Tensor) -> None:
        """Count what a projection's routers make of its input."""
        batch = self.batch
        if batch is None:
            return
        batch.ran.add(number)
        by_text = given if given.dim() == 3 else given.unflatten(0, (len(batch.counted), -1))
        # The positions that all texts share may have run before.
        x = by_text[batch.counted[:, -by_text.shape[1] :].to(given.device)]
        logits = self.weights[number].router_logits(x).cpu()
        gates, chosen = self.counter.add(number, logits, batch.labels)
        self.moments.add(number, x[batch.sampled.to(x.device)])
        if self.file is not None:
            batch.routed.append((self.projections[number], gates.gather(-1, chosen), chosen))
        if not self.settings.routers:
            return
        # Queries and values read the same hidden states; so do their untrained routers.
        experts = self.projections[number].n_experts
        if batch.latest is not None and batch.latest[1] is given:
            before = batch.latest[0]
            if self.projections[before].n_experts == experts:
                self.shared[number] = before
                return
        batch.latest = (number, given)
        drawn = self.untrained.logits(number, x, experts=experts)
        self.counter.add_random(number, drawn.cpu(), batch.labels)

    def sums(self) -> dict[str, Tensor]:
        """What was counted, by name; tables without entries are left out."""
        for number, source in self.shared.items():
            self.counter.share_random(number, source)
        tables = self.counter.tables.as_dict().items()
        return {
            **{f"tables.{name}": table for name, table in tables if table.numel()},
            **{f"moments.{name}": sums for name, sums in self.moments.state().items()},
        }

    def add(self, part: Mapping[str, Tensor]) -> None:
        """Add the sums over one part, as `sums` of another pass gave them."""
        groups: dict[str, dict[str, Tensor]] = {"tables": {}, "moments": {}}
        for name, tensor in part.items():
            kind, _, rest = name.partition(".")
            groups[kind][rest] = tensor
        self.counter.tables = self.counter.tables + Tables.of(self.sizes, groups["tables"])
        self.moments.add_state(groups["moments"])

    def result(self) -> tuple[RoutingRecords, OutputSimilarity]:
        """What was counted, and how alike the experts' outputs are."""
        records = RoutingRecords(
            projections=self.projections,
            sizes=self.sizes,
            tasks=self.corpus.tasks,
            ids=self.ids,
            id_texts=self.id_texts,
            unit_task=self.unit_task,
            unit_fold=self.unit_fold,
            tables=self.counter.tables,
            metadata={
                "n_texts": str(len(self.corpus.texts)),
                "prefix": str(self.corpus.prefix),
                "sampled": str(max(self.moments.counts)),
                "seed": str(self.settings.seed),
            },
        )
        return records, self.moments.similarity()


def _check_length(base: Any, corpus: LabelledCorpus) -> None:
    context = getattr(base.config, "max_position_embeddings", None)
    longest = max(len(text.tokens) for text in corpus.texts)
    if context is not None and longest > context:
        raise UserError(
            f"a text has {longest} tokens, but the model reads at most {context}: leave it out"
        )


def _by_id(
    corpus: LabelledCorpus, ids: Sequence[int], tokenizer: Any
) -> tuple[Int[Tensor, " id"], Int[Tensor, " id"]]:
    """The class and the row of every token id that occurs; the last row for those without one."""
    occurring = sorted({token for text in corpus.texts for token in text.tokens})
    classes = torch.zeros(occurring[-1] + 1, dtype=torch.long)
    classes[occurring] = torch.tensor(
        [token_class(text) for text in token_texts(tokenizer, occurring)]
    )
    rows = torch.full((occurring[-1] + 1,), len(ids), dtype=torch.long)
    rows[list(ids)] = torch.arange(len(ids))
    return classes, rows


def _units(
    corpus: LabelledCorpus, settings: CollectSettings
) -> tuple[Int[Tensor, " text"], tuple[int, ...], tuple[int, ...]]:
    """The unit of each text, and each unit's task and fold.

    When a task has more units than there is room for, further ones join one by their name's hash.
    """
    names: dict[str, dict[str, int]] = {task: {} for task in corpus.tasks}
    of_text: list[int] = []
    task_of: list[int] = []
    fold_of: list[int] = []
    for text in corpus.texts:
        known = names[text.task]
        if text.unit not in known and len(known) < settings.units:
            fold_of.append(len(known) % settings.folds)
            task_of.append(corpus.tasks.index(text.task))
            known[text.unit] = len(task_of) - 1
        if text.unit in known:
            of_text.append(known[text.unit])
        else:
            several = list(known.values())
            of_text.append(several[crc32(text.unit.encode("utf-8", "replace")) % len(several)])
    return torch.tensor(of_text), tuple(task_of), tuple(fold_of)
