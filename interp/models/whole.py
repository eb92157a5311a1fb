"""A checkpoint is whole: its files hold every weight of the model, and no weight without a place.

transformers initializes a weight that the files lack with random numbers, skips one that has no
place in the model, and reports both only in its log. Here both are refused, with the name of a
weight and the likely reason. Not counted are tables that the model makes itself (rotary
frequencies, causal masks, position ids), tied weights, and what transformers' own classes list in
``_keys_to_ignore_on_load_missing`` and ``_keys_to_ignore_on_load_unexpected``. An additional head,
such as a value head, does not change the logits: it is left out with a warning.
"""

import logging
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from interp.errors import UserError
from interp.files.shape import check_shape
from interp.files.tensors import tensor_shapes
from interp.files.text import read_json_object
from interp.models.fingerprint import INDEX, SINGLE
from interp.models.placement import named_weights
from interp.quantized import is_packed

logger = logging.getLogger(__name__)

_TABLES = re.compile(
    r"(?:^|\.)(?:rotary_emb\.\w+|inv_freq|position_ids|masked_bias|causal_mask"
    r"|(?:attn|attention|self_attention|self_attn)\.bias)$"
)
"""Buffers of older versions of transformers, which are made from the configuration today."""
_ADAPTER = re.compile(r"\.base_layer\.|(?:^|[._])lora_|\.modules_to_save\.|\.original_module\.")
_AGAIN = "get the model again, or save it again with save_pretrained"


def load_whole(place: Path, *, spec: str, **options: Any) -> Any:
    """The causal language model that transformers reads, if its weights are whole.

    No code of the directory's own runs, and nothing is fetched.

    Args:
        place: what ``from_pretrained`` takes: a directory, or with ``gguf_file`` that file's.
        spec: what the user called the model, for messages.
        options: handed on to ``from_pretrained``.

    Raises:
        UserError: a weight is missing, has no place, or has another shape than the model's.
        Exception: whatever transformers raises on files that it cannot read.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        place,
        **options,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are listed; they are refused below
    )
    model, info = loaded
    _check_shapes(info["mismatched_keys"], spec)
    # A weight that is tied to another one is missing because that one is.
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    missing = sorted(info["missing_keys"], key=lambda name: (name in tied, name))
    unplaced = sorted(info["unexpected_keys"])
    if missing:
        raise UserError(
            f"the files of {spec} lack the weight {_first(missing)}: "
            f"{_why_missing(missing, unplaced, model)}"
        )
    check_places(model, unplaced, spec)
    return model


def check_places(model: nn.Module, unplaced: Collection[str], spec: str) -> None:
    """Raise UserError for a weight without a place that belongs to the model.

    Args:
        unplaced: the names in the files that the model does not take. Tables pass; an additional
            head gives a warning.
    """
    buffers = {name for name, _ in model.named_buffers()}
    left = [name for name in sorted(unplaced) if name not in buffers and not _TABLES.search(name)]
    modules = {name for name, _ in model.named_modules() if name}
    # A checkpoint of the model without its head leaves this out of its names.
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    modules |= {name.removeprefix(prefix) for name in modules}
    inside = [name for name in left if _belongs(name, modules)]
    if inside:
        raise UserError(
            f"the files of {spec} hold the weight {_first(inside)}, which has no place in the "
            f"model: {_why_unplaced(inside)}"
        )
    if left:
        logger.warning(
            "%s: left out what is no part of the language model: %s",
            spec,
            ", ".join(left[:8]) + (" …" if len(left) > 8 else ""),
        )


def check_shards(folder: Path, spec: str) -> None:
    """Raise UserError if a shard of the directory's safetensors is missing, or two disagree.

    The names in the shards count, not those in the index.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file() or not index.is_file():
        return
    content = read_json_object(index, advice=_AGAIN)
    check_shape(content, {"weight_map": {str: str}}, str(index), advice=_AGAIN)
    if not content["weight_map"]:
        raise UserError(f"{INDEX} of {spec} names no weights; {_AGAIN}")
    where: dict[str, str] = {}
    for shard in sorted(set(content["weight_map"].values())):
        if not (folder / shard).resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{INDEX} of {spec} names the file {shard} of another folder; {_AGAIN}")
        if not (folder / shard).is_file():
            raise UserError(f"{spec} lacks the file {shard}, which {INDEX} names; {_AGAIN}")
        try:
            names = tensor_shapes(folder / shard)
        except UserError as error:
            raise UserError(f"the file {shard} of {spec} is damaged ({error}); {_AGAIN}") from error
        for name in names:
            if name in where:
                raise UserError(
                    f"the weight {name} of {spec} stands in two files, {where[name]} and {shard}, "
                    f"and nothing says which one counts; {_AGAIN}"
                )
            where[name] = shard


def first_bad_weight(model: Any) -> str | None:
    """The name of the first parameter or buffer with a value that is not finite, or None.

    A sum is finite if all its terms are, unless it overflows: only the values of a weight whose sum
    is not finite are looked at one by one.
    """
    found = _first_bad(model)
    return None if found is None else found[0]


def _first_bad(model: Any) -> tuple[str, int, int] | None:
    """The name of the first bad weight, how many of its values are bad, and how many it has."""
    for name, weight in named_weights(model):
        if is_packed(weight) or weight.is_meta or not weight.numel():
            continue
        total = weight.detach().sum(dtype=torch.float32)
        if not bool(torch.isfinite(total)):
            bad = int((~torch.isfinite(weight)).sum())
            if bad:
                return name, bad, weight.numel()
    return None


def check_weights(model: nn.Module, spec: str) -> None:
    """Raise UserError that names the first weight that is NaN or infinite, and how many are."""
    found = _first_bad(model)
    if found is None:
        return
    name, bad, count = found
    raise UserError(
        f"the weights of {spec} are damaged: {bad} of {count} values of {name} are NaN or "
        "infinite; get the model again, or load it in another dtype"
    )


def _check_shapes(mismatched: Collection[tuple[str, Any, Any]], spec: str) -> None:
    if not mismatched:
        return
    name, found, wanted = min(mismatched, key=lambda entry: str(entry[0]))
    raise UserError(
        f"the weight {name} of {spec} has the shape {list(found)} in the files, but "
        f"{list(wanted)} in the model that config.json describes"
        f"{_more(len(mismatched) - 1)}: the configuration is another model's, or was changed"
    )


def _first(names: list[str]) -> str:
    return f"{names[0]}{_more(len(names) - 1)}"


def _more(count: int) -> str:
    return f" (and {count} more)" if count else ""


def _belongs(name: str, modules: Collection[str]) -> bool:
    """Whether a weight is in a module that the model has, also behind a wrapper's prefix."""
    if _ADAPTER.search(name):
        return True
    parts = name.split(".")
    # Of model.layers.2.mlp.up_proj.weight the model has "model"; of v_head.weight nothing. Behind
    # a prefix a single word says too little: "score.norm.weight" is no final norm.
    if parts[0] in modules:
        return True
    return any(".".join(parts[at : at + 2]) in modules for at in range(1, len(parts) - 1))


def _why_missing(missing: list[str], unplaced: list[str], model: Any) -> str:
    """The likely reason, and what to do."""
    if any(_ADAPTER.search(name) for name in unplaced):
        return (
            f"the files hold {next(name for name in unplaced if _ADAPTER.search(name))}: an "
            "adapter that was not merged; merge it (PEFT's merge_and_unload) and save the model"
        )
    for name in unplaced:
        for wanted in missing:
            if name.endswith(f".{wanted}"):
                prefix = name.removesuffix(wanted)
                return (
                    f"the files name it {name}: save the model itself, not the wrapper that puts "
                    f"{prefix!r} before every name (torch.compile, DistributedDataParallel, PEFT)"
                )
    head = model.get_output_embeddings()
    names = [f"{name}.weight" for name, module in model.named_modules() if module is head]
    if head is not None and missing == names[:1]:
        return (
            "the checkpoint is of a class without a language model's head (a classifier's or a "
            "bare model's), or its tie_word_embeddings in config.json is wrong"
        )
    if unplaced:
        return f"the files hold {unplaced[0]} instead, which the model does not know; {_AGAIN}"
    return (
        "the files are incomplete, or config.json says more layers or biases than they hold; "
        f"{_AGAIN}"
    )


def _why_unplaced(inside: list[str]) -> str:
    if any(_ADAPTER.search(name) for name in inside):
        return "an adapter that was not merged; merge it (PEFT's merge_and_unload) and save again"
    return (
        "config.json says fewer layers or biases than the files hold, or is of another model; "
        f"{_AGAIN}"
    )
