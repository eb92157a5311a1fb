"""Long work in shards: each is a whole file as soon as it is made, and none is made twice.

The prompts of a sweep are cut into shards of a fixed size, which is part of what the sweep is:
in which batch a prompt runs decides the last bits of its values, so that only equal shards give
equal bytes, whether a run was interrupted or not and wherever its shards were made. A file holds
its checksum, its number and the digest of its sweep; a damaged one, and one of another sweep, is
said and made again, never read as a result.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.errors import UserError
from interp.files import check_shape, parse_json
from interp.files.tensor_file import read_tensor_file, write_tensor_file
from interp.files.whole import remove_leftovers
from interp.jobs import SHARD, Shard
from interp.models.hooked_model import HookedModel
from interp.progress import progress_bar
from interp.runs.versions import versions

logger = logging.getLogger(__name__)


@runtime_checkable
class Engine(Protocol):
    """Where shards are made."""

    def run(
        self, work: Callable[[Any, Any], Shard], jobs: Iterable[tuple[int, Any]]
    ) -> Iterator[tuple[int, Shard]]:
        """``work(model, job)`` for every numbered job, in whatever order they are done."""
        ...


@dataclass(frozen=True)
class InProcess:
    """The engine that makes one shard after the other with a model in this process."""

    model: HookedModel

    def run(
        self, work: Callable[[Any, Any], Shard], jobs: Iterable[tuple[int, Any]]
    ) -> Iterator[tuple[int, Shard]]:
        """See ``Engine``."""
        for number, job in jobs:
            yield number, work(self.model, job)


@dataclass(frozen=True)
class ShardStore:
    """The files of one sweep in a directory that several may share.

    Attributes:
        folder: the directory; made with the first shard.
        identity: everything that decides what the shards hold, as JSON can hold it.
        n_shards: how many there are.
    """

    folder: Path
    identity: Mapping[str, Any]
    n_shards: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the identity, the number of shards, and the versions that make them."""
        whole = {"identity": self.identity, "shards": self.n_shards, "versions": versions()}
        return digest_of(whole)

    def path(self, number: int) -> Path:
        """The file of one shard."""
        return self.folder / f"{self.digest[:12]}-{number:05d}.safetensors"

    def read(self, number: int) -> Shard | None:
        """A finished shard, or None; one that cannot be relied on is warned of."""
        path = self.path(number)
        try:
            tensors, texts = read_tensor_file(path)
            if (texts.get("sweep"), texts.get("shard")) != (self.digest, str(number)):
                raise UserError("it belongs to another sweep")
            # A model may have said half of a surrogate pair.
            said = {
                name: parse_json(texts.get(name, ""), surrogates=True) for name in ("texts", "kept")
            }
            check_shape(said, {"texts": [str], "kept": {}}, "what it says of itself")
            return Shard(tensors, texts=said["texts"], kept=said["kept"])
        except FileNotFoundError:
            return None
        except UserError as error:
            logger.warning("%s is not used (%s): this shard is made again", path, error)
            return None

    def finished(self, number: int) -> Shard:
        """A shard that was just made or read. Raises UserError if it cannot be relied on now."""
        shard = self.read(number)
        if shard is None:
            raise UserError(
                f"{self.path(number)} was changed while it was used: give the command again"
            )
        return shard

    def write(self, number: int, shard: Shard) -> None:
        """Keep a shard. Raises UserError if it cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be made ({error.strerror})") from error
        texts = {
            "sweep": self.digest,
            "shard": str(number),
            "texts": json.dumps(list(shard.texts)),
            "kept": json.dumps(dict(shard.kept)),
        }
        write_tensor_file(self.path(number), shard.tensors, texts)


def finish_shards(
    store: ShardStore,
    engine: Engine,
    work: Callable[[Any, Any], Shard],
    job: Callable[[int], Any],
    *,
    description: str = "shards",
    progress: bool = True,
) -> None:
    """Let ``engine`` make those shards of a sweep that are not there yet, and keep each.

    Args:
        work: a function of a module, of the model and a job.
        job: what ``work`` needs for a shard, by its number; asked for when it is that shard's turn.
    """
    if store.folder.is_dir():
        remove_leftovers(store.folder)
    missing = [number for number in range(store.n_shards) if store.read(number) is None]
    if there := store.n_shards - len(missing):
        logger.info("%s: %d of %d shards are there", description, there, store.n_shards)
    bar = progress_bar(total=store.n_shards, initial=there, description=description, shown=progress)
    with bar:
        for number, shard in engine.run(work, ((number, job(number)) for number in missing)):
            store.write(number, shard)
            bar.update()


def make_shards(
    store: ShardStore,
    engine: Engine,
    work: Callable[[Any, Any], Shard],
    job: Callable[[int], Any],
    *,
    description: str = "shards",
    progress: bool = True,
) -> list[Shard]:
    """All shards of a sweep in order, made by ``finish_shards`` and read from their files."""
    finish_shards(store, engine, work, job, description=description, progress=progress)
    return [store.finished(number) for number in range(store.n_shards)]


def cut(prompts: Sequence[int], size: int = SHARD) -> list[list[int]]:
    """Prompts in shards, in order; the last may be smaller."""
    return [list(prompts[begin : begin + size]) for begin in range(0, len(prompts), size)]


def put_together(shards: Sequence[Shard], parts: Sequence[Sequence[int]]) -> Shard:
    """The shards' tensors and texts for the prompts of ``parts``, in their order.

    What a shard ``kept`` is its own, and is left out.

    Raises:
        UserError: shards of other prompts, which somebody must have put there.
    """
    whole: dict[str, Tensor] = {}
    texts: dict[int, str] = {}
    total = sum(map(len, parts))
    for shard, prompts in zip(shards, parts, strict=True):
        _check_fits(shard, shards[0], len(prompts))
        for name, tensor in shard.tensors.items():
            into = whole.setdefault(name, torch.empty(total, *tensor.shape[1:], dtype=tensor.dtype))
            into[torch.tensor(prompts)] = tensor
        texts |= dict(zip(prompts, shard.texts, strict=bool(shard.texts)))
    return Shard(whole, texts=[texts[number] for number in sorted(texts)])


def _check_fits(shard: Shard, first: Shard, n_prompts: int) -> None:
    found = {name: (one.shape[1:], one.dtype) for name, one in shard.tensors.items()}
    wanted = {name: (one.shape[1:], one.dtype) for name, one in first.tensors.items()}
    lengths = {len(one) if one.ndim else 0 for one in shard.tensors.values()}
    n_texts = n_prompts if first.texts else 0
    if found != wanted or lengths - {n_prompts} or len(shard.texts) != n_texts:
        raise UserError(
            "the shards of a sweep do not fit together: remove the directory 'shards' of the run, "
            "and give the command again"
        )


def remove_shards(folder: Path) -> None:
    """Remove the shards of sweeps that are finished, and the directory above if that is all."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # others are left in it, or it was never made
        folder.parent.rmdir()


def digest_of(content: Any) -> str:
    """SHA-256 of what JSON can hold, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
