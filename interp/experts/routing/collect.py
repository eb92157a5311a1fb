"""`collect_routing`: what a labelled corpus makes the routers do, in one pass or in several parts.

A part is counted by itself, by whoever has the model; `RoutingSum` adds the parts up.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.checked import checked
from interp.errors import UserError
from interp.experts.routing.corpus import LabelledCorpus, corpus_of
from interp.experts.routing.counting_pass import ROUTERS, CollectSettings, RoutingPass
from interp.experts.routing.observe import (
    Runner,
    base_of,
    observing,
)
from interp.experts.routing.records import RoutingRecords
from interp.experts.routing.similarity import OutputSimilarity
from interp.experts.routing.tables import Tables
from interp.experts.routing.token_file import TokenFile
from interp.forward.out_of_memory import halving
from interp.models.limits import check_prompts
from interp.models.modes import evaluating
from interp.progress import progress_bar

__all__ = ["ROUTERS", "CollectSettings", "RoutingSum", "collect_part", "collect_routing"]


@checked
def collect_routing(
    model: Any,
    corpus: LabelledCorpus | Mapping[str, Sequence[str | Sequence[int]]] | Sequence[Any],
    tokenizer: Any = None,
    *,
    settings: CollectSettings | None = None,
    token_file: Path | None = None,
    progress: bool = True,
) -> tuple[RoutingRecords, OutputSimilarity]:
    """Route every token of a labelled corpus and count what its experts are used for.

    Args:
        model: a PEFT or transformers model with one active MoELoRA adapter, or a hooked one (whose
            hooks act as always; counted is what the routers say of what they are given).
        corpus: by task, texts or token ids; or examples; or a corpus already made.
        tokenizer: by default the hooked model's.
        token_file: a Parquet file to write every token's experts and gates to, as they come.

    Returns:
        The routing records, and how alike the experts' outputs are on a sample of tokens.

    Raises:
        UserError: texts without tasks or too long for the model; a model without one active
            MoELoRA adapter, or one whose projections are run by other code than their own.
    """
    settings = settings or CollectSettings()
    tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    if tokenizer is None:
        raise UserError("give the model's tokenizer: the model does not carry one")
    labelled = corpus if isinstance(corpus, LabelledCorpus) else corpus_of(corpus, tokenizer)
    total = RoutingSum(model, labelled, tokenizer, settings)
    with ExitStack() as stack:
        file = None
        if token_file is not None:
            file = stack.enter_context(total.token_file(token_file))
        for number in range(settings.parts):
            total.add(
                collect_part(
                    model, labelled, tokenizer, settings, number, file=file, progress=progress
                )
            )
    return total.result()


@torch.no_grad()
def collect_part(
    model: Any,
    corpus: LabelledCorpus,
    tokenizer: Any,
    settings: CollectSettings,
    number: int,
    *,
    file: TokenFile | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """The sums over one of ``settings.parts`` parts of a corpus, by name; see `collect_routing`."""
    pass_ = RoutingPass(model, corpus, tokenizer, settings)
    pass_.file = file
    with ExitStack() as stack:
        stack.enter_context(evaluating(base_of(model)))
        total = sum(pass_.tokens_of(chosen) for chosen in pass_.chosen(number))
        bar = stack.enter_context(
            progress_bar(total=total, unit="tok", description="routing", shown=progress)
        )
        stack.enter_context(observing(pass_.layers, pass_.see))
        check_prompts(base_of(model), [one.tokens for one in corpus.texts])
        pass_.runner = Runner(model, corpus.texts[0].tokens[: corpus.prefix])
        for batch in pass_.batches(number):
            # Its counts cannot be taken back, so that the batch cannot be cut here.
            what = f"{len(batch.tokens)} texts at a time (batch_tokens is {settings.batch_tokens})"
            for _ in halving([[batch]], lambda one: pass_.run(one[0]), what=what):
                pass
            bar.update(len(batch.labels))
    return pass_.sums()


class RoutingSum:
    """Adds up the parts of a corpus, in the order in which they are given."""

    def __init__(
        self, model: Any, corpus: LabelledCorpus, tokenizer: Any, settings: CollectSettings
    ) -> None:
        self._pass = RoutingPass(model, corpus, tokenizer, settings)
        self._begun = False

    def token_file(self, path: Path) -> TokenFile:
        """A file for every token's experts and gates."""
        pass_ = self._pass
        return TokenFile(path, pass_.projections, pass_.corpus.tasks, pass_.sizes.top_k)

    def add(self, part: Mapping[str, Tensor]) -> None:
        """Add one part, as `collect_part` returned it."""
        own = self._pass
        empty = Tables.empty(own.sizes).as_dict()
        tables = Tables(**{name: part.get(f"tables.{name}", one) for name, one in empty.items()})
        own.counter.tables = own.counter.tables + tables if self._begun else tables
        prefix = "moments."
        own.moments.add_state(
            {name[len(prefix) :]: one for name, one in part.items() if name.startswith(prefix)}
        )
        self._begun = True

    def result(self) -> tuple[RoutingRecords, OutputSimilarity]:
        """Of all parts that were added."""
        return self._pass.records(), self._pass.moments.similarity()
