"""Routing of a labelled corpus, collected in one pass or in several parts.

A part is counted by itself, by any process that has the model; `RoutingPass.add` sums the parts.
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
from interp.experts.routing.counting_pass import (
    ROUTERS,
    CollectSettings,
    RoutingPass,
    Runner,
    base_of,
)
from interp.experts.routing.records import RoutingRecords
from interp.experts.routing.similarity import OutputSimilarity
from interp.experts.routing.token_file import TokenFile
from interp.forward.out_of_memory import halving
from interp.models.call import evaluating
from interp.models.limits import check_prompts
from interp.moelora.layer import observing
from interp.moved import old_names
from interp.progress import progress_bar

__all__ = ["ROUTERS", "CollectSettings", "RoutingPass", "collect_part", "collect_routing"]

__getattr__ = old_names(__name__)


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
        model: a PEFT or transformers model with one active MoELoRA adapter, or a hooked one, whose
            hooks stay in effect.
        corpus: by task, texts or token ids; or examples; or a corpus already made.
        tokenizer: by default the hooked model's.
        token_file: a Parquet file to which every token's experts and gates are written.

    Returns:
        The routing records, and how alike the experts' outputs are on a sample of tokens.

    Raises:
        UserError: texts without tasks or too long for the model; a model without one active
            MoELoRA adapter, or one that computes its projections by other code than their own.
    """
    settings = settings or CollectSettings()
    tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    if tokenizer is None:
        raise UserError("give the model's tokenizer: the model does not carry one")
    labelled = corpus if isinstance(corpus, LabelledCorpus) else corpus_of(corpus, tokenizer)
    total = RoutingPass(model, labelled, tokenizer, settings=settings)
    with ExitStack() as stack:
        file = None
        if token_file is not None:
            sizes = {"projections": total.projections, "top_k": total.sizes.top_k}
            file = stack.enter_context(TokenFile(token_file, tasks=labelled.tasks, **sizes))
        options: dict[str, Any] = {"settings": settings, "file": file, "progress": progress}
        for number in range(settings.parts):
            total.add(collect_part(model, labelled, tokenizer, number=number, **options))
    return total.result()


@torch.no_grad()
def collect_part(
    model: Any,
    corpus: LabelledCorpus,
    tokenizer: Any,
    *,
    settings: CollectSettings,
    number: int,
    file: TokenFile | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """The sums over one of ``settings.parts`` parts of a corpus, by name; see `collect_routing`."""
    pass_ = RoutingPass(model, corpus, tokenizer, settings=settings)
    pass_.file = file
    total = sum(pass_.tokens_of(chosen) for chosen in pass_.chosen(number))
    with (
        evaluating(base_of(model)),
        progress_bar(total=total, unit="tok", description="routing", shown=progress) as bar,
        observing(pass_.layers, pass_.on_input),
    ):
        check_prompts(base_of(model), [text.tokens for text in corpus.texts])
        pass_.runner = Runner(model, corpus.texts[0].tokens[: corpus.prefix])
        for batch in pass_.batches(number):
            # Its counts cannot be taken back, so that the batch cannot be cut here.
            what = f"{len(batch.tokens)} texts at a time (batch_tokens is {settings.batch_tokens})"
            for _ in halving([[batch]], lambda chunk: pass_.run(chunk[0]), what=what):
                pass
            bar.update(len(batch.labels))
    return pass_.sums()
