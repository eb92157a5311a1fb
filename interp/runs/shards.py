"""Shards of a long sweep: each is a complete file once it is computed, and none is computed twice.

The prompts of a sweep are cut into shards of a fixed size, which is part of the sweep's identity:
the batch in which a prompt runs decides the last bits of its values, so that only equal shards give
equal bytes, whether a run was interrupted or not and wherever its shards were computed. A file
holds its checksum, its number and the digest of its sweep; a damaged file, and one of another
sweep, is never read as a result: a warning says so, and the shard is computed again.
"""

import hashlib
import importlib.metadata
import json
import logging
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from interp.errors import UserError
from interp.files.shape import check_shape
from interp.files.tensor_file import read_tensor_file, write_tensor_file
from interp.files.text import parse_json
from interp.files.whole import remove_leftovers
from interp.jobs import Shard
from interp.models.hooked_model import HookedModel
from interp.moved import old_names
from interp.progress import progress_bar
from interp.runs.usage import in_use

logger = logging.getLogger(__name__)

PACKAGES = (
    *("faithlens", "torch", "transformer-lens", "transformers", "peft", "accelerate"),
    *("numpy", "scipy", "pandas"),
)
"""Packages that results depend on."""


@runtime_checkable
class Engine(Protocol):
    """Where shards are computed."""

    def run(
        self, work: Callable[[Any, Any], Shard], jobs: Iterable[tuple[int, Any]]
    ) -> Iterator[tuple[int, Shard]]:
        """``work(model, job)`` for every numbered job, in the order in which they finish."""
        ...


@dataclass(frozen=True)
class InProcess:
    """The engine that computes one shard after the other with a model in this process."""

    model: HookedModel

    def run(
        self, work: Callable[[Any, Any], Shard], jobs: Iterable[tuple[int, Any]]
    ) -> Iterator[tuple[int, Shard]]:
        """``work(model, job)`` for every numbered job, in order."""
        for number, job in jobs:
            yield number, work(self.model, job)


@dataclass(frozen=True)
class ShardStore:
    """The files of one sweep, in a directory that several sweeps may share.

    Attributes:
        folder: the directory; made with the first shard.
        identity: everything that decides the content of the shards, as JSON can hold it.
        n_shards: how many there are.
    """

    folder: Path
    identity: Mapping[str, Any]
    n_shards: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the identity, the number of shards, and the packages' versions."""
        return digest_of(
            {"identity": self.identity, "shards": self.n_shards, "versions": versions()}
        )

    def path(self, number: int) -> Path:
        """The file of one shard."""
        return self.folder / f"{self.digest[:12]}-{number:05d}.safetensors"

    def read(self, number: int) -> Shard | None:
        """A finished shard; None, with a warning if it is damaged, where there is none."""
        path = self.path(number)
        try:
            tensors, texts = read_tensor_file(path)
            if (texts.get("sweep"), texts.get("shard")) != (self.digest, str(number)):
                raise UserError("it belongs to another sweep")
            # A model's answer may contain half of a surrogate pair.
            found = {
                name: parse_json(texts.get(name, ""), surrogates=True) for name in ("texts", "kept")
            }
            check_shape(found, {"texts": [str], "kept": {}}, "its metadata")
            return Shard(tensors, texts=found["texts"], kept=found["kept"])
        except FileNotFoundError:
            return None
        except UserError as error:
            logger.warning("%s is not used (%s): this shard is made again", path, error)
            return None

    def finished(self, number: int) -> Shard:
        """A shard that was just written or read. Raises UserError if it is damaged now."""
        shard = self.read(number)
        if shard is None:
            raise UserError(
                f"{self.path(number)} was changed while it was used: give the command again"
            )
        return shard

    def write(self, number: int, shard: Shard) -> None:
        """Write a shard to its file. Raises UserError if that fails."""
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
    function: Callable[[Any, Any], Shard],
    *,
    job: Callable[[int], Any],
    description: str = "shards",
    progress: bool = True,
) -> None:
    """Let ``engine`` compute the missing shards of a sweep, and keep each.

    Args:
        function: at module level; called with the model and a job.
        job: the job of a shard, by its number; called when it is that shard's turn.
    """
    if store.folder.is_dir():
        remove_leftovers(store.folder)
    missing = [number for number in range(store.n_shards) if store.read(number) is None]
    if there := store.n_shards - len(missing):
        logger.info("%s: %d of %d shards are there", description, there, store.n_shards)
    bar = progress_bar(total=store.n_shards, initial=there, description=description, shown=progress)
    written = 0
    with bar:
        for number, shard in engine.run(function, ((number, job(number)) for number in missing)):
            store.write(number, shard)
            written += store.path(number).stat().st_size
            bar.set_postfix_str(in_use(written), refresh=False)
            bar.update()


def put_together(shards: Sequence[Shard], parts: Sequence[Sequence[int]]) -> Shard:
    """The shards' tensors and texts for the prompts of ``parts``, in their order.

    Of what the shards ``kept``, the entries on which all agree stay.

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
    kept = dict(shards[0].kept) if shards else {}
    kept = {key: it for key, it in kept.items() if all(s.kept.get(key) == it for s in shards)}
    return Shard(whole, texts=[texts[number] for number in sorted(texts)], kept=kept)


def _check_fits(shard: Shard, first: Shard, n_prompts: int) -> None:
    found = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in shard.tensors.items()}
    wanted = {name: (tensor.shape[1:], tensor.dtype) for name, tensor in first.tensors.items()}
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in shard.tensors.values()}
    n_texts = n_prompts if first.texts else 0
    if found != wanted or lengths - {n_prompts} or len(shard.texts) != n_texts:
        raise UserError(
            "the shards of a sweep do not fit together: remove the directory 'shards' of the run, "
            "and give the command again"
        )


def remove_shards(folder: Path) -> None:
    """Remove the shards of finished sweeps, and the directory above if it is then empty."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # others are left in it, or it was never made
        folder.parent.rmdir()


def digest_of(content: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


@cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


__getattr__ = old_names(__name__)
