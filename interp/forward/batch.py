"""Prompts of different lengths as one left-padded batch.

Positions are counted in the padded batch: the last real token of every prompt is at the last
position, so that one slice reads all the answers.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.arguments import listed, shown, whole_number
from interp.errors import UserError
from interp.forward.transfer import repeated_rows, upload

Item = TypeVar("Item")
Span = tuple[int, int]

RUN_TOKENS = 4096
"""Tokens of one plain forward pass over whole prompts."""


if TYPE_CHECKING:
    TokenIds = Int[Tensor, "prompt pos"]
    Prompts: TypeAlias = "TokenBatch | TokenIds | Sequence[Sequence[int]]"
    """What ``TokenBatch.of`` takes."""
else:
    TokenIds = Prompts = Any  # anything else is refused below


@dataclass(frozen=True)
class TokenBatch:
    """Left-padded token ids and the mask of real tokens.

    Attributes:
        tokens: Int[prompt pos], padding on the left.
        mask: Bool[prompt pos], True for real tokens.
    """

    tokens: Int[Tensor, "prompt pos"]
    mask: Bool[Tensor, "prompt pos"]

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, Tensor) or not isinstance(self.mask, Tensor):
            raise UserError(
                "tokens and mask are tensors [prompt pos]: build a TokenBatch with from_lists or "
                "from_padded"
            )
        _check_token_ids(self.tokens)
        if self.mask.dtype != torch.bool:
            raise UserError("the mask of a TokenBatch is True or False: from_padded takes others")
        if self.tokens.shape != self.mask.shape:
            raise UserError(
                f"tokens {tuple(self.tokens.shape)} and mask {tuple(self.mask.shape)} differ"
            )
        if len(self.tokens) == 0 or not bool(self.mask.any(dim=1).all()):
            raise UserError(
                "a batch needs at least one prompt, and every prompt at least one token"
            )
        positions = torch.arange(self.width, device=self.mask.device)
        if not torch.equal(self.mask, positions >= self.offsets[:, None]):
            raise UserError("a TokenBatch is left-padded: build it with from_lists or from_padded")

    @classmethod
    def from_lists(
        cls, prompts: Prompts, *, pad: int = 0, device: torch.device | str = "cpu"
    ) -> "TokenBatch":
        """Pad lists of token ids on the left to the longest of them."""
        prompts, pad = [_token_ids(prompt) for prompt in _listed(prompts)], whole_number("pad", pad)
        if not prompts or not all(prompts):
            raise UserError("there is an empty prompt: every prompt needs at least one token")
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        width = int(lengths.max())
        try:
            tokens = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        except (ValueError, OverflowError, RuntimeError) as error:
            largest = max((token for prompt in prompts for token in prompt), key=abs)
            raise UserError(f"token id {largest} is beyond any vocabulary") from error
        mask = torch.arange(width) >= (width - lengths)[:, None]
        try:
            return cls(tokens.to(device), mask.to(device))
        except (RuntimeError, TypeError, AssertionError) as error:
            raise UserError(f"device {shown(device)} is not there") from error

    @classmethod
    def from_padded(cls, tokens: TokenIds, mask: Any = None) -> "TokenBatch":
        """Take ids padded on either side, with a mask of real tokens (none: no padding)."""
        tokens = token_tensor("tokens", tokens)
        if mask is None:
            return cls(tokens, torch.ones_like(tokens, dtype=torch.bool))
        try:
            mask = torch.as_tensor(mask, device=tokens.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"mask is a tensor [prompt pos], not {shown(mask)}") from error
        if mask.shape != tokens.shape:
            raise UserError(
                f"the mask has shape {tuple(mask.shape)}, the tokens {tuple(tokens.shape)}"
            )
        rows = zip(tokens.tolist(), mask.bool().tolist(), strict=True)
        lists = [list(compress(row, real)) for row, real in rows]
        return cls.from_lists(lists, device=tokens.device)

    @classmethod
    def of(
        cls, prompts: Any, *, what: str = "prompts", device: torch.device | str | None = None
    ) -> "TokenBatch":
        """A batch of anything that holds token ids.

        A batch, a tensor [prompt pos] without padding, lists, or what a tokenizer gives for several
        texts, whose attention mask tells the padding.

        Args:
            what: names the argument in a message.
            device: where the batch is put; by default it stays where it is.

        Raises:
            UserError: texts, or anything else that holds no token ids.
        """
        if isinstance(prompts, cls):
            batch = prompts
        elif isinstance(prompts, Mapping) and "input_ids" in prompts:
            batch = _of_tokenizer(prompts, what)
        else:
            # A pandas column of lists has a shape as well.
            given: Any = prompts
            if hasattr(given, "to_numpy"):
                given = given.tolist()
            _refuse_text(given, what)
            try:
                padded = hasattr(given, "shape")
                batch = cls.from_padded(given) if padded else cls.from_lists(given)
            except UserError as error:
                raise UserError(f"{what}: {error}") from error
        if device is None or batch.tokens.device == torch.device(device):
            return batch
        return cls(batch.tokens.to(device), batch.mask.to(device))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def width(self) -> int:
        """The number of positions, padding included."""
        return self.tokens.shape[1]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return int(self.mask.sum(dim=1).max())

    @cached_property
    def shortest(self) -> int:
        """Tokens of the shortest prompt."""
        return int(self.mask.sum(dim=1).min())

    @cached_property
    def token_range(self) -> tuple[int, int]:
        """The lowest and the highest token id, padding included."""
        lowest, highest = torch.aminmax(self.tokens)
        return int(lowest), int(highest)

    @property
    def offsets(self) -> Int[Tensor, " prompt"]:
        """The position of each prompt's first real token."""
        return self.width - self.mask.sum(dim=1)

    @property
    def positions(self) -> Int[Tensor, "prompt pos"]:
        """Position ids as the unpadded prompt would have them; 0 on padding."""
        return (self.mask.long().cumsum(dim=1) - 1).clamp(min=0)

    @property
    def every_row(self) -> Int[Tensor, " row"]:
        """Each prompt once, as the rows of a batch that is run."""
        return repeated_rows(len(self), 1, self.tokens.device)

    def span_mask(self, spans: Sequence[Span]) -> Bool[Tensor, "prompt pos"]:
        """Mask of one token span [start, end) per prompt, counted without padding."""
        if len(spans) != len(self):
            raise UserError(f"{len(spans)} spans for {len(self)} prompts: give one per prompt")
        mask = torch.zeros(self.mask.shape, dtype=torch.bool)
        lengths = self.mask.sum(dim=1).tolist()
        for row, ((start, end), length) in enumerate(zip(spans, lengths, strict=True)):
            if not 0 <= start < end <= length:
                raise UserError(
                    f"span [{start}, {end}) of prompt {row} is not in its {length} tokens"
                )
            offset = self.width - length
            mask[row, offset + start : offset + end] = True
        return upload(mask, self.mask.device)

    columns = span_mask  # its name before version 0.2

    def parts(self, batch_tokens: int = RUN_TOKENS) -> list["TokenBatch"]:
        """The prompts in order, some at a time, all at this batch's width."""
        rows = in_batches(range(len(self)), batch_tokens // self.width)
        return [self.part(some[0], some[-1] + 1) for some in rows]

    def part(self, begin: int, end: int) -> "TokenBatch":
        """The prompts from ``begin`` to before ``end``, at this batch's width."""
        return TokenBatch(self.tokens[begin:end], self.mask[begin:end])

    def take(self, prompts: Sequence[int]) -> "TokenBatch":
        """Some of the prompts, at the width that they need."""
        index = torch.as_tensor(list(prompts), device=self.tokens.device)
        mask = self.mask[index]
        first = int((self.width - mask.sum(dim=1)).min())
        return TokenBatch(self.tokens[index, first:], mask[:, first:])


def in_batches(items: Sequence[Item], size: int) -> list[list[Item]]:
    """Items in order, ``size`` at a time, at least one."""
    size = max(1, size)
    return [list(items[begin : begin + size]) for begin in range(0, len(items), size)]


def by_length(
    lengths: Sequence[int], batch_tokens: int, *, longest_first: bool = False
) -> list[list[int]]:
    """Indices of prompts of similar length, in batches of ``batch_tokens`` with their padding.

    A prompt that is longer than that is alone.
    """
    batches: list[list[int]] = []
    sign = -1 if longest_first else 1
    for index in sorted(range(len(lengths)), key=lambda index: sign * lengths[index]):
        width = lengths[batches[-1][0] if longest_first and batches else index]
        if batches and (len(batches[-1]) + 1) * width <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _check_token_ids(tokens: Tensor, what: str = "") -> None:
    """Raise UserError, which begins with ``what``, unless these are token ids [prompt pos]."""
    kinds = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if tokens.ndim != 2 or tokens.dtype not in kinds:
        raise UserError(
            f"{what}token ids are whole numbers [prompt pos], not "
            f"{str(tokens.dtype).removeprefix('torch.')} {list(tokens.shape)}"
        )


def _of_tokenizer(encoding: Mapping[str, Any], what: str) -> TokenBatch:
    """The prompts that a tokenizer encoded, without their padding."""
    ids = encoding["input_ids"]
    rows = listed(what, ids, "token ids")
    masks = encoding.get("attention_mask")
    if masks is not None:
        masks = listed("attention_mask", masks, "numbers")
    try:
        if masks is not None:
            pairs = zip(rows, masks, strict=True)
            rows = [list(compress(_token_ids(row), _token_ids(mask))) for row, mask in pairs]
        device = ids.device if isinstance(ids, Tensor) else "cpu"
        return TokenBatch.from_lists(rows, device=device)
    except ValueError as error:
        raise UserError(f"{what}: input_ids and attention_mask differ in length") from error
    except UserError as error:
        raise UserError(f"{what}: {error}; encode a list of texts") from error


def _refuse_text(prompts: Any, what: str) -> None:
    """Raise UserError for a text, or several of them: prompts are not tokenized here."""
    some = prompts if isinstance(prompts, list | tuple) else [prompts]
    if any(isinstance(prompt, str | bytes) for prompt in some):
        raise UserError(
            f"{what}: this is text, and prompts are token ids: give a TokenBatch, such as "
            "TokenBatch.from_lists(tokenizer(texts).input_ids)"
        )


def _listed(prompts: Any) -> list[Any]:
    """The prompts as a list. Raises UserError for what has no prompts in it."""
    _refuse_text(prompts, "prompts")
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise UserError(
            f"prompts are a TokenBatch, token ids [prompt pos] or lists of token ids, not "
            f"{type(prompts).__name__}"
        )
    return listed("prompts", prompts, "lists of token ids")


def _token_ids(prompt: Any) -> list[int]:
    """One prompt's token ids. Raises UserError for anything else."""
    try:
        whole = prompt.tolist() if hasattr(prompt, "tolist") else prompt
        return [operator.index(token) for token in whole]
    except TypeError as error:
        raise UserError(
            f"a prompt is a list of token ids, whole numbers; this is none: {prompt!r:.60}"
        ) from error


def token_tensor(what: str, tokens: Any) -> Int[Tensor, "prompt pos"]:
    """Token ids as a tensor. Raises UserError, with the argument's name, for anything else."""
    _refuse_text(tokens, what)
    try:
        found = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{what}: token ids [prompt pos] are whole numbers, not {tokens!r:.60}"
        ) from error
    _check_token_ids(found, f"{what}: ")
    return found.long()


def first_difference(a: TokenBatch, b: TokenBatch) -> Int[Tensor, " prompt"]:
    """The first position at which two batches of equal lengths differ (the width where none does).

    In a causal model both runs are the same before it.
    """
    a, b = TokenBatch.of(a, what="a"), TokenBatch.of(b, what="b")
    if a.tokens.shape != b.tokens.shape or not torch.equal(a.mask, b.mask):
        raise UserError("clean and corrupted prompts differ in length: give spans to align them by")
    differs = (a.tokens != b.tokens) & a.mask
    return torch.where(differs.any(dim=1), differs.long().argmax(dim=1), a.width)
