"""The limits of a model: the positions in its table, and the tokens in its vocabulary.

A prompt beyond either raises an index error inside the model, and on a GPU breaks the CUDA context,
so that every run checks first. Only a *table* ends: learned positions, sinusoids that were computed
in advance, ALiBi of a fixed length. Rotary embeddings are computed for any position; a prompt
longer than those the model was trained on runs, and the log says so once.
"""

import logging
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, cast

from torch import Tensor, nn

from interp.errors import UserError
from interp.modules import named_modules

logger = logging.getLogger(__name__)

_POSITIONS = re.compile(r"(^|_)pos(_|ition|$)|^wpe$")
_RELATIVE = re.compile(r"(^|_)rel(ative)?(_|$)")


@dataclass(frozen=True)
class Positions:
    """How many positions a model has.

    Attributes:
        table: the length of the longest prompt, or None where no table ends.
        trained: the longest prompt that its configuration allows for, or None.
        padded: padding counts too, because the model takes no position ids.
        rotary: the longest prompt whose rotary frequencies are those of any shorter one, or None
            where they never change.
        by_length: beyond it, whether every length has frequencies of its own (dynamic), or all
            have the same (longrope).
    """

    table: int | None
    trained: int | None
    padded: bool
    rotary: int | None = None
    by_length: bool = False


_KNOWN: "weakref.WeakKeyDictionary[nn.Module, Positions]" = weakref.WeakKeyDictionary()
_TOLD: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def check_prompts(hf_model: Any, prompts: Sequence[Sequence[int]]) -> None:
    """Raise UserError for a prompt beyond the table of positions, or a token beyond the vocabulary.

    Args:
        hf_model: a transformers model, or a PEFT model around one.
        prompts: token ids.
    """
    filled = [prompt for prompt in prompts if len(prompt)]
    if filled:
        check_tokens(hf_model, min(map(min, filled)), max(map(max, filled)))
        longest = max(map(len, filled))
        check_length(hf_model, longest, longest)


def room_for_answer(hf_model: Any, length: int, wanted: int) -> int:
    """How many of ``wanted`` tokens can follow a prompt of ``length`` tokens.

    The last token of an answer is never read, so that it needs no position.
    """
    table = positions_of_model(hf_model).table
    return wanted if table is None else max(0, min(wanted, table - length + 1))


def positions_of_model(hf_model: Any) -> Positions:
    """How many positions a model has; looked up once per model."""
    known = _KNOWN.get(hf_model)
    if known is None:
        known = _KNOWN[hf_model] = _find_positions(hf_model)
    return known


def vocabulary_size(hf_model: Any) -> int | None:
    """How many tokens a model has embeddings for; None where that cannot be seen."""
    find = getattr(hf_model, "get_input_embeddings", None)
    embedding = None if find is None else find()
    weight = getattr(embedding, "weight", None)
    if weight is None:
        weight = getattr(embedding, "W_E", None)
    if isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point():
        return len(weight)
    return getattr(embedding, "num_embeddings", None)


def check_tokens(hf_model: Any, lowest: int, highest: int) -> None:
    """Raise UserError if a token from the lowest to the highest is not in the vocabulary."""
    size = vocabulary_size(hf_model)
    bad = lowest if lowest < 0 else highest
    if lowest < 0 or (size is not None and highest >= size):
        words = "" if size is None else f" of {size} tokens"
        raise UserError(
            f"token {bad} is not in the model's vocabulary{words}: use the tokenizer that belongs "
            "to the model, or resize the model's embedding to it"
        )


def check_length(hf_model: Any, longest: int, width: int) -> None:
    """Raise UserError if a prompt is longer than the model has positions."""
    positions = positions_of_model(hf_model)
    length = width if positions.padded else longest
    if positions.table is not None and length > positions.table:
        raise UserError(
            f"a prompt of {length} tokens is longer than the {positions.table} positions that the "
            "model has: shorten it, or take a model with a longer context"
        )
    extrapolated = positions.table is None and length > (positions.trained or length)
    if extrapolated and hf_model not in _TOLD:
        _TOLD.add(hf_model)
        logger.warning(
            "a prompt of %d tokens is longer than the %d positions that the model was made for: "
            "what it computes beyond them may be worth little",
            length,
            positions.trained,
        )


def changes_rotary(hf_model: Any, longest: int) -> bool:
    """Whether a prompt of this length has other rotary frequencies than its own beginning."""
    rotary = positions_of_model(hf_model).rotary
    return rotary is not None and longest > rotary


def check_rotary(hf_model: Any, shortest: int, longest: int) -> None:
    """Raise UserError for prompts, one of which `changes_rotary`, that change each other's numbers.

    transformers computes the frequencies of a whole batch from its longest prompt.
    """
    positions = positions_of_model(hf_model)
    if positions.by_length:
        raise UserError(
            f"this model's rotary embedding changes with the length of prompts of more than "
            f"{positions.rotary} tokens, and one has {longest}: shorten it"
        )
    if positions.rotary is not None and shortest <= positions.rotary:
        raise UserError(
            f"this model's rotary embedding is another one for prompts of more than "
            f"{positions.rotary} tokens: run those of {shortest} and of {longest} tokens apart"
        )


def _find_positions(hf_model: Any) -> Positions:
    if hasattr(hf_model, "get_base_model"):  # a PEFT model
        hf_model = hf_model.get_base_model()
    whole: Any = getattr(hf_model, "config", None)
    config = whole.get_text_config() if hasattr(whole, "get_text_config") else whole
    # The positions of an image or of sound are no limit of a text.
    is_part = config is not whole and hasattr(hf_model, "get_decoder")
    tables = list(_tables(hf_model.get_decoder() if is_part else hf_model))
    # MPT: a bias of this many positions, computed in every pass.
    if getattr(getattr(config, "attn_config", None), "alibi", False):
        tables.append(config.max_seq_len)
    accepted = signature(hf_model.forward).parameters
    rotary, by_length = _changing_rotary(config)
    return Positions(
        table=min(tables) if tables else None,
        trained=getattr(config, "max_position_embeddings", None),
        padded="position_ids" not in accepted and not hasattr(hf_model, "max_positions"),
        rotary=rotary,
        by_length=by_length,
    )


def _changing_rotary(config: Any) -> tuple[int | None, bool]:
    """``rotary`` and ``by_length`` of `Positions`."""
    named = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for part in (named, *(of_kind for of_kind in named.values() if isinstance(of_kind, Mapping))):
        kind = str(part.get("rope_type") or part.get("type") or "")
        name = "original_max_position_embeddings"
        original = part.get(name) or getattr(config, name, None)
        if kind == "longrope" and original:
            return int(original), False
        if "dynamic" in kind:
            return int(original or config.max_position_embeddings), True
    return None, False


def _tables(hf_model: Any) -> Iterator[int]:
    """The lengths of a model's tables of positions."""
    max_positions = getattr(hf_model, "max_positions", None)  # TransformersFace says it itself
    if max_positions is not None:
        yield max_positions
        return
    for path, module in named_modules(hf_model):
        weight: Any = getattr(module, "weight", None)
        if any(map(_is_of_positions, path.split("."))) and _is_table(weight):
            # OPT and BioGPT begin to count behind rows that stand for padding.
            yield len(weight) - int(getattr(module, "offset", 0))
        # Sinusoids of GPT-J, CodeGen (buffers) and CTRL (a plain tensor).
        for name, value in (*module._buffers.items(), *vars(module).items()):
            if _is_of_positions(name) and _is_table(value):
                yield len(cast(Tensor, value))


def _is_of_positions(name: str) -> bool:
    return bool(_POSITIONS.search(name)) and not _RELATIVE.search(name)


def _is_table(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point()
