"""Adds batches of routed tokens to the tables.

The counter keeps no token. What it adds up is exact (whole numbers) or float64, so that it does not
matter how the corpus is cut into batches.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.experts.routing.tables import Sizes, Tables, position_bucket
from interp.experts.routing.token_class import CLASSES
from interp.moelora.routing import choose_experts, gates_of_logits


@dataclass(frozen=True)
class TokenLabels:
    """What is known of the counted tokens of a batch, one after the other, text by text.

    Attributes:
        task: number of the text's task.
        fold: number of its fold.
        unit: number of its unit.
        row: of the token id; the last row for those without their own.
        token_class: number in ``CLASSES``.
        position: in the text, from 0.
        follows: whether the token before this one stands right before it here.
    """

    task: Int[Tensor, " token"]
    fold: Int[Tensor, " token"]
    unit: Int[Tensor, " token"]
    row: Int[Tensor, " token"]
    token_class: Int[Tensor, " token"]
    position: Int[Tensor, " token"]
    follows: Bool[Tensor, " token"]

    def __len__(self) -> int:
        return len(self.task)


class RoutingCounter:
    """Fills tables of the given sizes; `tables` may be read at any time."""

    def __init__(self, sizes: Sizes, *, renormalize: bool = True) -> None:
        self.sizes = sizes
        self.renormalize = renormalize
        self.tables = Tables.empty(sizes)

    def add_tokens(self, labels: TokenLabels) -> None:
        """Count the tokens of a batch; called once for each batch."""
        tables, folds = self.tables, self.sizes.folds
        bucket = position_bucket(labels.position)
        follows = labels.follows.long()
        _count(tables.unit_tokens, labels.unit)
        _count(tables.cell_tokens, labels.task * folds + labels.fold)
        _count(tables.cell_follows, labels.task * folds + labels.fold, follows)
        _count(tables.class_tokens, labels.token_class * folds + labels.fold)
        _count(tables.position_tokens, bucket * folds + labels.fold)
        _count(tables.id_tokens, labels.row * self.sizes.tasks + labels.task)

    def add(
        self, projection: int, logits: Float[Tensor, "token expert"], labels: TokenLabels
    ) -> tuple[Float[Tensor, "token expert"], Int[Tensor, "token slot"]]:
        """Count one projection's routing of a batch; returns the gates and the chosen experts."""
        sizes, tables, folds = self.sizes, self.tables, self.sizes.folds
        experts = logits.shape[-1]
        chosen = choose_experts(logits, sizes.top_k)
        gates = gates_of_logits(logits.double(), chosen, renormalize=self.renormalize)
        member = torch.zeros(logits.shape, dtype=torch.int64).scatter_(-1, chosen, 1)
        cell = labels.task * folds + labels.fold
        bucket = position_bucket(labels.position)
        for table, key in (
            (tables.unit_load, labels.unit),
            (tables.class_load, labels.token_class * folds + labels.fold),
            (tables.position_load, bucket * folds + labels.fold),
            (tables.id_load, labels.row * folds + labels.fold),
        ):
            _add_rows(table[projection], key, member)
        pairs = (member[:, :, None] * member[:, None, :]).flatten(1)
        by_fold = torch.zeros(folds, experts * experts, dtype=torch.int64)
        by_fold.index_add_(0, labels.fold, pairs)
        tables.pairs[projection, :, :experts, :experts] += by_fold.view(folds, experts, experts)
        self._count_choices(projection, chosen, labels)
        top = logits.argmax(dim=-1)
        _count(tables.repeats[projection], cell, _repeats(top, labels.follows))
        probability = logits.double().softmax(dim=-1)
        _add_rows(tables.probability[projection], cell, probability)
        _add_rows(tables.gate[projection], cell, gates)
        entropy = torch.special.entr(probability).sum(dim=-1)
        tables.entropy[projection].view(-1).index_add_(0, cell, entropy)
        return gates, chosen

    def add_random(
        self, projection: int, logits: Float[Tensor, "token router expert"], labels: TokenLabels
    ) -> None:
        """Count the routing of untrained routers on the same hidden states."""
        sizes, tables = self.sizes, self.tables
        routers, experts = logits.shape[1:]
        chosen = logits.topk(sizes.top_k, dim=-1, sorted=False).indices
        member = torch.zeros_like(logits).scatter_(-1, chosen, 1.0)
        bucket = position_bucket(labels.position)
        # Sums of ones in float32 are whole numbers up to 2^24, more than a batch has.
        for table, key, size in (
            (tables.random_load, labels.task, sizes.tasks),
            (tables.random_class, labels.token_class, len(CLASSES)),
            (tables.random_position, bucket, tables.random_position.shape[2]),
        ):
            kinds = torch.nn.functional.one_hot(key, size).to(member.dtype)
            counts = (kinds.T @ member.flatten(1)).view(size, routers, experts)
            table[projection, :, :, :experts] += counts.transpose(0, 1).long()
        for router, of_ids in enumerate(tables.random_id[projection]):
            _add_rows(of_ids, labels.row, member[:, router].long())
        by_router = member.transpose(0, 1)
        tables.random_pairs[projection, :, :experts, :experts] += (
            by_router.transpose(1, 2) @ by_router
        ).long()
        repeats = _repeats(logits.argmax(dim=-1), labels.follows)
        tables.random_repeats[projection] += repeats.sum(dim=0)
        probability = logits.softmax(dim=-1)
        tables.random_probability[projection, :, :experts] += probability.sum(dim=0).double()
        entropy = torch.special.entr(probability).sum(dim=-1)
        tables.random_entropy[projection] += entropy.sum(dim=0).double()

    def share_random(self, projection: int, source: int) -> None:
        """Copy untrained routers' counts from a projection that reads the same hidden states."""
        for name, table in self.tables.as_dict().items():
            if name.startswith("random_"):
                table[projection] = table[source]

    def _count_choices(
        self, projection: int, chosen: Int[Tensor, "token slot"], labels: TokenLabels
    ) -> None:
        sizes = self.sizes
        key = labels.row * sizes.tasks + labels.task
        codes = chosen.unbind(dim=-1)
        if sizes.as_sets:
            codes = (sizes.code_of_mask[(1 << chosen).sum(dim=-1)],)
        for code in codes:
            _count(self.tables.id_choice[projection], key * sizes.codes + code)


def _repeats(
    top: Int[Tensor, "token ..."], follows: Bool[Tensor, " token"]
) -> Int[Tensor, "token ..."]:
    """1 where the most probable expert is that of the token before, if there is one."""
    same = torch.zeros_like(top)
    same[1:] = (top[1:] == top[:-1]).long()
    return same * follows.long().view(-1, *[1] * (top.ndim - 1))


def _count(table: Tensor, key: Tensor, by: Tensor | None = None) -> None:
    """Add one, or `by`, at each flat index of a table."""
    ones = torch.ones_like(key) if by is None else by
    table.view(-1).index_add_(0, key, ones.to(table.dtype))


def _add_rows(table: Tensor, key: Tensor, rows: Tensor) -> None:
    """Add a row of experts at each index of a table whose last axis is experts."""
    flat = table.view(-1, table.shape[-1])
    if rows.shape[-1] == flat.shape[-1]:
        flat.index_add_(0, key, rows.to(table.dtype))
    else:  # a projection with fewer experts than another
        flat[:, : rows.shape[-1]].index_add_(0, key, rows.to(table.dtype))


class UntrainedRouters:
    """Routers as they are before training, reading what the trained ones read.

    Any linear router sorts tokens, as different tasks have different hidden states. What training
    has added shows against routers from the distribution that an adapter starts from
    (``U(−1/√d, 1/√d)``). They change nothing: the hidden states are those of the trained adapter.
    """

    def __init__(self, count: int, *, seed: int = 0) -> None:
        self.count = count
        self.seed = seed
        self._weights: dict[int, Tensor] = {}

    def logits(
        self, projection: int, x: Float[Tensor, "token d_in"], *, experts: int
    ) -> Float[Tensor, "token router expert"]:
        """The logits of every router; the same seed gives a projection the same weights."""
        if projection not in self._weights:
            generator = torch.Generator().manual_seed(self.seed * 100_003 + projection)
            drawn = torch.rand(self.count * experts, x.shape[-1], generator=generator)
            scale = 1 / math.sqrt(x.shape[-1])
            self._weights[projection] = ((2 * drawn - 1) * scale).to(x.device)
        return (x.float() @ self._weights[projection].T).unflatten(-1, (self.count, experts))
