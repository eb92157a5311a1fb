"""One architecture ready to be checked: its reference, the hooked model, prompts and edits."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import interp
from interp.patching import LogitDifference, TokenBatch
from interp.premises import Fact, Premises, Relation, Template
from interp.premises.encode import EncodedPremises, encode_premises
from tests.zoo.effects import Pair
from tests.zoo.reference import Place, Reference
from tests.zoo.species import Species
from tests.zoo.watching import Edit
from tests.zoo.words import make_tokenizer

CLEAN, CORRUPTED = (5, 20, 21, 22, 16, 30, 31, 40), (5, 20, 21, 23, 16, 30, 31, 40)
SHORT = (9, 50, 33, 17, 60, 8), (9, 50, 34, 17, 60, 8)
SPAN = (3, 5)
"""Of positions: what is edited where not all is, and what heads are cut off."""
RIGHT, WRONG = 45, 44
PROMPTS = (CLEAN, CORRUPTED, (61, 7, 90, 33, 41, 12, 77, 8, 15), (70, 71, 72, 80, 81, 82, 64))

_RELATION = Relation(
    name="capitals-of-three",
    description="",
    subject_kind="city",
    object_kind="country",
    templates=(
        Template("why", "Why is {subject} the capital of {object}?"),
        Template("when", "When did {subject} become the capital of {object}?"),
    ),
    search_templates=("why",),
    cloze="{subject} is the capital of",
    direct="Which country is {subject} the capital of?",
    facts=(Fact("Oslo", "Norway"), Fact("Lima", "Peru"), Fact("Cairo", "Egypt")),
)


class Specimen:
    """Made once a row; what is costly is made when it is first asked for."""

    def __init__(self, species: Species) -> None:
        self.species = species

    @cached_property
    def reference(self) -> Reference:
        """The architecture by transformers alone."""
        return Reference(self.species.make(), self.species.attention)

    @cached_property
    def model(self) -> Any:
        """The same weights, hooked."""
        name = self.species.name
        return interp.models.from_hf(self.species.make(), make_tokenizer(), spec=name)

    @cached_property
    def pair(self) -> Pair:
        """The pair of prompts that most checks are about."""
        return Pair(self.reference, CLEAN, CORRUPTED, RIGHT, WRONG)

    @cached_property
    def short_pair(self) -> Pair:
        """A shorter one, padded beside the first."""
        return Pair(self.reference, *SHORT, RIGHT, WRONG)

    @cached_property
    def encoded(self) -> EncodedPremises:
        """Two false premises, of different lengths in tokens."""
        premises = Premises(_RELATION, _RELATION.facts, ("why",))
        return encode_premises(make_tokenizer(), premises).take([0, 1])

    @property
    def layers(self) -> tuple[int, ...]:
        """Those with attention heads."""
        return self.reference.anatomy.with_heads

    def need_heads(self) -> None:
        """Raise LookupError if there are none whose outputs are known."""
        if not any(self.reference.has("z", layer) for layer in self.layers):
            raise LookupError("no layer has attention heads")

    def need_patterns(self) -> None:
        """Raise LookupError unless every layer with heads attends to its positions."""
        if not self.layers or not all(self.reference.has("pattern", one) for one in self.layers):
            raise LookupError("no layer has attention over positions")

    def heads(self, some: Sequence[int]) -> list[tuple[int, int]]:
        """These heads of every layer that has any; the first, which is none, if no layer has."""
        return [(layer, head) for layer in self.layers for head in some] or [(0, 0)]

    @property
    def layer_without_heads(self) -> int | None:
        """The first, in a model that has both kinds."""
        others = [at for at in range(self.reference.n_layers) if at not in self.layers]
        return others[0] if others and self.layers else None

    def cuts(self, heads: Sequence[tuple[int, int]], span: tuple[int, int]) -> dict[Place, Edit]:
        """Edits under which later positions do not see a span through these heads."""
        return {
            ("scores", layer): _cut([head for at, head in heads if at == layer], span)
            for layer in {layer for layer, _ in heads}
        }

    def silences(
        self, heads: Sequence[tuple[int, int]], span: tuple[int, int]
    ) -> dict[Place, Edit]:
        """Edits under which these heads write nothing at a span."""
        return {
            ("z", layer): _silence(
                [head for at, head in heads if at == layer], span, self.reference.n_heads
            )
            for layer in {layer for layer, _ in heads}
        }


def batch(*prompts: Sequence[int]) -> TokenBatch:
    """Token ids as the engine takes them."""
    return TokenBatch.from_lists([list(one) for one in prompts])


def metric(prompts: int = 1) -> LogitDifference:
    """The metric of `Pair`, for the engine."""
    return LogitDifference(torch.tensor([RIGHT] * prompts), torch.tensor([WRONG] * prompts))


def _cut(heads: Sequence[int], span: tuple[int, int]) -> Edit:
    def edit(scores: Tensor) -> Tensor:
        closed = torch.zeros(scores.shape[1:], dtype=torch.bool)
        closed[list(heads), span[1] :, span[0] : span[1]] = True
        return scores.masked_fill(closed, torch.finfo(scores.dtype).min)

    return edit


def _silence(heads: Sequence[int], span: tuple[int, int], n_heads: int) -> Edit:
    def edit(z: Tensor) -> Tensor:
        shown = z.flatten(2).unflatten(-1, (n_heads, -1)).clone()
        shown[:, span[0] : span[1], list(heads)] = 0
        return shown.view_as(z)

    return edit
