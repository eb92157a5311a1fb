"""The identity of a run: one run per directory.

What decides a run's outcome (settings, fingerprints of model, tokenizer and chat template, the
data's hash, the prompts' tokens) is written into the directory first, as the run's identity. The
same command again continues the run; another command is refused. So is the continuation of a run of
an older version, which did not record tokenizer and prompts: its results can be read, but new ones
might not belong to them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from interp.errors import UserError
from interp.files.documents import read_json, write_json
from interp.files.links import check_links
from interp.files.whole import LEFTOVER
from interp.forward.generate import end_tokens
from interp.models import model_info
from interp.models.fingerprint import tokenizer_fingerprint
from interp.models.hooked_model import HookedModel
from interp.runs.lock import HOLDER, LOCK
from interp.runs.prompting import (
    comparable,
    first_difference,
    not_noted,
    tokenizer_identity,
    warn_of_older,
)
from interp.runs.shards import digest_of


def check_run(run: Path, file: str, identity: Mapping[str, Any]) -> None:
    """Raise UserError unless ``run`` is new, empty, or holds the run of this identity.

    Args:
        file: the name of the file that holds the identity.
        identity: as JSON gives it back; keys that are left out are not compared.
    """
    path = run / file
    if not path.is_file():
        if run.exists() and (not run.is_dir() or any(map(_is_something, run.iterdir()))):
            raise UserError(
                f"{run} holds something else (it is not empty and not a run of this kind): choose "
                "another --out"
            )
        return
    check_links(run)
    before = read_json(path)
    if difference := first_difference(before, comparable(before, identity)):
        raise UserError(
            f"{run} holds another run ({difference}): choose another --out, or delete that one"
        )
    if unknown := not_noted(before, identity):
        raise UserError(
            f"{run} was begun by an older version, which did not note {unknown}: what it holds can "
            "be read, but not taken up; choose another --out"
        )


def model_identity(model: HookedModel) -> dict[str, Any]:
    """The entries of a run's identity for its hooked model and tokenizer."""
    info = model_info(model)
    # Left out of other models' entries: runs of before there was any keep their digests.
    quantized = {} if info.quantization is None else {"quantization": info.quantization}
    return {
        "fingerprint": info.fingerprint,
        "dtype": info.dtype,
        **quantized,
        **tokenizer_identity(model.tokenizer),
    }


def conditions(model: HookedModel) -> dict[str, str]:
    """What decides what a hooked model computes, besides its prompts.

    Results of another dtype or device have other last bits, and answers depend on the tokenizer and
    on the tokens that end them, which the model's fingerprint does not cover. The chat template is
    not included: what is kept names the tokens of its prompts.
    """
    info = model_info(model)
    return {
        "fingerprint": info.fingerprint,
        "dtype": info.dtype,
        "device": torch.device(info.device).type,
        "tokenizer": tokenizer_fingerprint(model.tokenizer),
        "generation": digest_of(str(end_tokens(model.original_model, model.tokenizer))),
    }


def conditions_digest(model: HookedModel) -> str:
    """One digest of the conditions."""
    return digest_of(conditions(model))


def check_finished(run: Path, file: str, identity: Mapping[str, Any]) -> None:
    """`check_run` for a finished run, which may be an older version's, with a warning."""
    before = read_json(run / file) if (run / file).is_file() else identity
    warn_of_older(run, before, identity)
    check_run(run, file, comparable(before, identity))


def _is_something(path: Path) -> bool:
    """Whether a file is more than the leftovers of a process that was killed as it began."""
    if path.is_dir():
        return any(path.iterdir())
    return path.name not in (LOCK, HOLDER) and LEFTOVER.fullmatch(path.name) is None


def begin_run(run: Path, file: str, identity: Mapping[str, Any]) -> None:
    """Make the directory of a checked run and write its identity, unless it is there already.

    Raises:
        UserError: the directory cannot be made.
    """
    if (run / file).is_file():
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run} cannot be made ({error.strerror}): choose another --out") from error
    write_json(run / file, identity)


def claim_run(
    run: Path, file: str, identity: Mapping[str, Any], *, beside: Mapping[str, Any] | None = None
) -> None:
    """`check_run`, then `begin_run`.

    Args:
        beside: written with the identity, but not compared.
    """
    check_run(run, file, identity)
    begin_run(run, file, {**identity, **(beside or {})})
