"""Activations on disk: collected once for all layers and hooks, read a layer at a time.

A store is a directory of safetensors shards with an ``index.json`` that says what they hold: the
model's fingerprint, the hash of the prompts and positions, hooks, layers, and each shard's SHA-256.
Every file is written whole or not at all, the index last; so a store that was interrupted, was made
from other prompts or by another model, or whose bytes have changed is seen as such and made anew.
Memory holds one shard, however many prompts there are.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.checked import checked
from interp.errors import UserError
from interp.files import check_shape, plain_name
from interp.files.documents import read_json, write_json
from interp.files.whole import beside_of, move_into_place, remove_leftovers
from interp.models import fingerprint
from interp.models.converted import file_sha256
from interp.models.hooked_model import HookedModel
from probes.activation_reader import (
    DEFAULT_BATCH_TOKENS,
    ActivationHook,
    TokensToRead,
    chosen_layers,
    read_activations,
)

logger = logging.getLogger(__name__)

INDEX = "index.json"
SHARD_TOKENS = 4096
"""Tokens in one shard; 30 layers of width 576 in float32 take 283 MB."""
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class ActivationStore:
    """Activations of some prompts' tokens, on disk.

    Attributes:
        folder: where the shards are.
        hooks, layers: what was read.
        prompt, token: Int[row], which prompt and which position in it each row is; rows stand in
            the order of the prompts, each prompt's positions in order.
        shards: file names, and the rows that each holds (Int[shard_row]).
    """

    folder: Path
    hooks: tuple[str, ...]
    layers: tuple[int, ...]
    prompt: Int[Tensor, " row"]
    token: Int[Tensor, " row"]
    shards: tuple[tuple[str, Tensor], ...]

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
        wanted = torch.arange(len(self)) if rows is None else rows
        place = torch.full((len(self),), -1)
        place[wanted] = torch.arange(len(wanted))
        out = torch.empty(0)
        for name, held in self.shards:
            chosen = place[held] >= 0
            if not bool(chosen.any()):
                continue
            with safe_open(str(self.folder / name), framework="pt") as file:
                values = file.get_tensor(_key(hook, layer))[chosen].float()
            if not len(out):
                out = torch.empty(len(wanted), *values.shape[1:])
            out[place[held[chosen]]] = values
        # A row that was asked for twice was filled in once.
        return out[place[wanted]]


@checked
def store_activations(
    model: HookedModel,
    prompts: Sequence[TokensToRead],
    folder: Path,
    *,
    hooks: Sequence[ActivationHook] = ("resid_post",),
    layers: Sequence[int] | None = None,
    shard_tokens: int = SHARD_TOKENS,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    progress: bool = True,
) -> ActivationStore:
    """The store of these prompts in ``folder``: the one that is there if it fits, or a new one.

    Args:
        hooks, layers: what is read, all in the same forward pass; every layer if None.
        shard_tokens: rows in one file, and in memory.

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
    writer = _Writer(folder, chosen, shard_tokens)
    starts = _starts(prompts)
    for chunk in read_activations(
        model, prompts, hooks=hooks, layers=chosen, batch_tokens=batch_tokens, progress=progress
    ):
        rows = [row for index in chunk.prompts for row in range(starts[index], starts[index + 1])]
        writer.add(torch.tensor(rows), chunk.values)
    writer.flush()
    write_json(folder / INDEX, {**identity, "shards": writer.written})
    return _store(folder, identity, writer.written, prompts)


class _Writer:
    """Gathers rows until a shard is full, and writes it."""

    def __init__(self, folder: Path, layers: tuple[int, ...], shard_tokens: int) -> None:
        if shard_tokens < 1:
            raise UserError(f"a shard holds at least one token, not {shard_tokens}")
        self.folder, self.layers, self.shard_tokens = folder, layers, shard_tokens
        self.rows: list[Tensor] = []
        self.values: list[dict[str, Tensor]] = []
        self.written: list[dict[str, Any]] = []

    def add(self, rows: Tensor, values: dict[str, Tensor]) -> None:
        self.rows.append(rows)
        self.values.append(values)
        if sum(len(part) for part in self.rows) >= self.shard_tokens:
            self.flush()

    def flush(self) -> None:
        if not self.rows:
            return
        rows = torch.cat(self.rows)
        tensors = {
            _key(hook, layer): torch.cat([part[hook][:, index] for part in self.values])
            for hook in self.values[0]
            for index, layer in enumerate(self.layers)
        }
        name = f"{len(self.written):05d}.safetensors"
        beside = beside_of(self.folder / name)
        try:
            beside.unlink(missing_ok=True)  # a link to elsewhere would be written through
            save_file({**tensors, "rows": rows}, str(beside))
            move_into_place(beside, self.folder / name)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror or error}): free some space"
            ) from error
        self.written.append({"file": name, "sha256": file_sha256(self.folder / name)})
        self.rows, self.values = [], []


def _open(
    folder: Path, identity: dict[str, Any], prompts: Sequence[TokensToRead]
) -> ActivationStore | None:
    """The store in the folder, if it is whole and the one that is meant."""
    if not (folder / INDEX).is_file():
        return None
    try:
        index = read_json(folder / INDEX)
        shards = index.pop("shards")
        if index != identity:
            return None
        check_shape(shards, [{"file": str, "sha256": str}], INDEX)
        names = [plain_name(one["file"], "a shard") for one in shards]
        hashes = [file_sha256(folder / name) for name in names]
        if hashes != [one["sha256"] for one in shards]:
            logger.warning("the activations in %s are damaged and are made anew", folder)
            return None
    except (UserError, OSError, KeyError):
        return None
    return _store(folder, identity, shards, prompts)


def _store(
    folder: Path,
    identity: dict[str, Any],
    shards: Sequence[dict[str, str]],
    prompts: Sequence[TokensToRead],
) -> ActivationStore:
    rows = []
    for one in shards:
        with safe_open(str(folder / one["file"]), framework="pt") as file:
            rows.append((one["file"], file.get_tensor("rows")))
    prompt = torch.tensor([index for index, one in enumerate(prompts) for _ in one.positions])
    token = torch.tensor([position for one in prompts for position in one.positions])
    hooks, layers = tuple(identity["hooks"]), tuple(identity["layers"])
    return ActivationStore(folder, hooks, layers, prompt, token, tuple(rows))


def _starts(prompts: Sequence[TokensToRead]) -> list[int]:
    """The row at which each prompt begins, and the number of rows."""
    starts = [0]
    for one in prompts:
        starts.append(starts[-1] + len(one.positions))
    return starts


def _hash_of(prompts: Sequence[TokensToRead]) -> str:
    sha = hashlib.sha256()
    for one in prompts:
        sha.update(json.dumps([one.tokens, one.positions]).encode())
    return sha.hexdigest()


def _key(hook: str, layer: int) -> str:
    return f"{hook}.{layer}"
