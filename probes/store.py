"""Activations on disk: collected once for all layers and hooks, read a layer at a time.

A store is a directory of safetensors shards with an ``index.json``: the model's fingerprint, the
hash of prompts and positions, hooks, layers, and each shard's SHA-256. Files are written whole or
not at all, the index last. A store that was interrupted, belongs to other prompts or another model,
or is damaged is made anew. Memory holds one shard at a time.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.checked import checked
from interp.errors import UserError
from interp.files.documents import file_hash, read_json, write_json
from interp.files.links import plain_name
from interp.files.shape import check_shape
from interp.files.whole import beside_of, move_into_place, remove_leftovers
from interp.models import fingerprint
from interp.models.hooked_model import HookedModel
from probes.activation_reader import (
    DEFAULT_BATCH_TOKENS,
    ActivationHook,
    ReadChunk,
    TokensToRead,
    chosen_layers,
    read_activations,
)

logger = logging.getLogger(__name__)

INDEX = "index.json"
SHARD_TOKENS = 4096
"""Tokens in one shard; 30 layers of width 576 in float32 take 283 MB."""
_FORMAT = 1
_PREDICTIONS = "predictions"


@dataclass(frozen=True, eq=False)
class ActivationStore:
    """Activations of some prompts' tokens, on disk.

    Attributes:
        folder: where the shards are.
        hooks, layers: what was read.
        prompt, token: Int[row], which prompt and which position in it each row is; rows stand in
            the order of the prompts, each prompt's positions in order.
        shards: file names, and the rows that each holds (Int[shard_row]).
        predictions: whether it also holds what the model expected at each row.
    """

    folder: Path
    hooks: tuple[str, ...]
    layers: tuple[int, ...]
    prompt: Int[Tensor, " row"]
    token: Int[Tensor, " row"]
    shards: tuple[tuple[str, Tensor], ...]
    predictions: bool = False

    def __len__(self) -> int:
        return len(self.prompt)

    def read(
        self, layer: int, *, hook: str = "resid_post", rows: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "row ..."]:
        """One layer's activations in float32, of all rows or of those chosen, in their order.

        Raises UserError for a hook or layer that the store does not hold.
        """
        if hook not in self.hooks or layer not in self.layers:
            raise UserError(
                f"the store in {self.folder} has no {hook} of layer {layer}; it has "
                f"{', '.join(self.hooks)} of layers {', '.join(map(str, self.layers))}"
            )
        return self._gather(_key(hook, layer), rows)

    def read_predictions(
        self, *, rows: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "row 3"]:
        """What the model expected at all rows or at those chosen; see `PREDICTIONS`.

        Raises UserError for a store that was made without predictions.
        """
        if not self.predictions:
            raise UserError(f"the store in {self.folder} has no predictions: collect them again")
        return self._gather(_PREDICTIONS, rows)

    def _gather(self, key: str, rows: Int[Tensor, " chosen"] | None) -> Float[Tensor, "row ..."]:
        """The tensor of a name, of all rows or of those chosen, over all shards."""
        wanted = torch.arange(len(self)) if rows is None else rows
        index = torch.full((len(self),), -1)  # of each of the store's rows in `out`
        index[wanted] = torch.arange(len(wanted))
        out = torch.empty(0)
        for name, shard_rows in self.shards:
            chosen = index[shard_rows] >= 0
            if not bool(chosen.any()):
                continue
            with safe_open(str(self.folder / name), framework="pt") as file:
                values = file.get_tensor(key)[chosen].float()
            if not len(out):
                out = torch.empty(len(wanted), *values.shape[1:])
            out[index[shard_rows[chosen]]] = values
        return out[index[wanted]]  # repeated rows were filled in once


@checked
def store_activations(
    model: HookedModel,
    prompts: Sequence[TokensToRead],
    folder: Path,
    *,
    hooks: Sequence[ActivationHook] = ("resid_post",),
    layers: Sequence[int] | None = None,
    predictions: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> ActivationStore:
    """Open the store of these prompts in ``folder``, or make it if there is no such store.

    Args:
        hooks, layers: read in the same forward pass; by default every layer.
        predictions: also keep what the model expected at each token.
        shard_tokens: tokens in one file, and in memory.

    Raises:
        UserError: what `read_activations` refuses, or a folder that cannot be written.
    """
    chosen = chosen_layers(model, layers)
    identity = {
        "format": _FORMAT,
        "fingerprint": fingerprint(model),
        "prompts_sha256": _hash_of(prompts),
        "hooks": list(hooks),
        "layers": list(chosen),
        **({"predictions": True} if predictions else {}),
    }
    found = _open(folder, identity, prompts)
    if found is not None:
        logger.info("activations: taken from %s", folder)
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX).unlink(missing_ok=True)
        remove_leftovers(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror or error})") from error
    if shard_tokens < 1:
        raise UserError(f"shard_tokens is at least 1, not {shard_tokens}")
    starts = [0, *accumulate(len(prompt.positions) for prompt in prompts)]
    chunks = (
        (torch.cat([torch.arange(*starts[at : at + 2]) for at in chunk.prompts]), chunk)
        for chunk in read_activations(
            model,
            prompts,
            hooks=hooks,
            layers=chosen,
            predictions=predictions,
            batch_tokens=batch_tokens,
            progress=progress,
        )
    )
    shards = []
    for some in _gathered(chunks, shard_tokens):
        tensors = {
            _key(hook, layer): torch.cat([chunk.values[hook][:, index] for _, chunk in some])
            for hook in hooks
            for index, layer in enumerate(chosen)
        }
        expected = [chunk.predictions for _, chunk in some if chunk.predictions is not None]
        if expected:
            tensors[_PREDICTIONS] = torch.cat(expected)
        path = folder / f"{len(shards):05d}.safetensors"
        _write_shard(path, {**tensors, "rows": torch.cat([rows for rows, _ in some])})
        shards.append({"file": path.name, "sha256": file_hash(path)})
    write_json(folder / INDEX, {**identity, "shards": shards})
    return _store(folder, prompts, identity=identity, shards=shards)


def _gathered(
    chunks: Iterable[tuple[Tensor, ReadChunk]], shard_tokens: int
) -> Iterator[list[tuple[Tensor, ReadChunk]]]:
    """Chunks of rows and their values, as many together as fill a shard."""
    waiting: list[tuple[Tensor, ReadChunk]] = []
    for chunk in chunks:
        waiting.append(chunk)
        if sum(len(rows) for rows, _ in waiting) >= shard_tokens:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write one file whole. Raises UserError if it cannot be written."""
    beside = beside_of(path)
    try:
        beside.unlink(missing_ok=True)  # saving through a symbolic link would write elsewhere
        save_file(tensors, str(beside))
        move_into_place(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(
            f"{path.parent} cannot be written ({error.strerror or error}): free some space"
        ) from error


def _open(
    folder: Path, identity: dict[str, Any], prompts: Sequence[TokensToRead]
) -> ActivationStore | None:
    """The store in the folder, or None if it is damaged or has another identity."""
    if not (folder / INDEX).is_file():
        return None
    try:
        index = read_json(folder / INDEX)
        shards = index.pop("shards")
        if index != identity:
            return None
        check_shape(shards, [{"file": str, "sha256": str}], INDEX)
        for shard in shards:
            if file_hash(folder / plain_name(shard["file"], "a shard")) != shard["sha256"]:
                logger.warning("the activations in %s are damaged and are made anew", folder)
                return None
    except (UserError, OSError, KeyError):
        return None
    return _store(folder, prompts, identity=identity, shards=shards)


def _store(
    folder: Path,
    prompts: Sequence[TokensToRead],
    *,
    identity: dict[str, Any],
    shards: Sequence[dict[str, str]],
) -> ActivationStore:
    rows = []
    for shard in shards:
        with safe_open(str(folder / shard["file"]), framework="pt") as file:
            rows.append((shard["file"], file.get_tensor("rows")))
    prompt = torch.tensor([index for index, prompt in enumerate(prompts) for _ in prompt.positions])
    token = torch.tensor([position for prompt in prompts for position in prompt.positions])
    hooks, layers = tuple(identity["hooks"]), tuple(identity["layers"])
    predictions = bool(identity.get("predictions"))
    return ActivationStore(folder, hooks, layers, prompt, token, tuple(rows), predictions)


def _hash_of(prompts: Sequence[TokensToRead]) -> str:
    sha = hashlib.sha256()
    for prompt in prompts:
        sha.update(json.dumps([prompt.tokens, prompt.positions]).encode())
    return sha.hexdigest()


def _key(hook: str, layer: int) -> str:
    return f"{hook}.{layer}"
