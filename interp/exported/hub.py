"""Exported directories and heads on the Hugging Face hub, or on a server that speaks like it."""

import re
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import RepositoryNotFoundError

from interp.checked import checked
from interp.errors import UserError
from interp.exported.card import render_heads_card
from interp.exported.folder import CARD, INTERVENTION, MANIFEST, ExportedFolder, read_export
from interp.files.documents import write_atomically
from interp.heads.headset import HeadSet
from interp.interventions.head_constraint import Constraint
from interp.interventions.intervention import Intervention

_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_FILES = ("*.json", "*.md", "*.yaml", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""What an exported directory consists of; nothing else is downloaded."""


def names_repository(text: str) -> bool:
    """Whether a text may name a repository: ``user/name``, or ``user/name@revision``."""
    return _REPOSITORY.fullmatch(text) is not None and not text.startswith(".")


@checked
def push_to_hub(
    what: str | Path | HeadSet | Constraint | Intervention,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload an exported directory, or heads, with a card; the repository is made if need be.

    Args:
        what: the directory of an export; or heads alone, or a file of ``Intervention.save``, that
            say which model they are of (``interp.heads.found_on``): an ``intervention.yaml`` there.
        repo_id: ``user/name``.
        private: of a new repository; by default as the hub does it.
        token: by default that of ``hf auth login``.
        endpoint: another server than the hub.

    Returns:
        the address of the commit.

    Raises:
        UserError: a directory that was changed after the export, heads without a model, or an
            upload that failed.
    """
    if not names_repository(repo_id) or "@" in repo_id:
        raise UserError(f"{repo_id!r} is no name of a repository: give user/name")
    api = huggingface_hub.HfApi(endpoint=endpoint, token=token)
    if isinstance(what, str | Path) and Path(what).is_file():
        what = Intervention.load(what)
    if isinstance(what, str | Path):
        exported = read_export(what)
        files = [MANIFEST, *exported.content["files"], "*.safetensors"]
        return _upload(api, exported.folder, repo_id, files=files, private=private)
    intervention = Intervention.of(what)
    card = render_heads_card(intervention)
    with tempfile.TemporaryDirectory() as folder:
        intervention.save(Path(folder) / INTERVENTION)
        write_atomically(Path(folder) / CARD, card)
        return _upload(api, Path(folder), repo_id, files=[INTERVENTION, CARD], private=private)


def _upload(api: Any, folder: Path, repo_id: str, *, files: list[str], private: bool | None) -> str:
    """Upload these files of a folder; the address of the commit."""
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        done: Any = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=files,
            commit_message="Exported by faithlens",
        )
    except Exception as error:  # whatever client, connection or server come to
        raise UserError(
            f"cannot upload to {repo_id!r} ({type(error).__name__}): check the name, the "
            "connection and the token (hf auth login)"
        ) from error
    return str(done.commit_url)


@checked
def from_hub(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Download an exported directory, or heads; what is there already is not fetched again.

    Args:
        repo_id: ``user/name``, or ``user/name@revision``.
        revision: a branch, tag or commit; name a commit where it must not change.
        token, endpoint: as of `push_to_hub`.
        cache_dir: by default the cache of huggingface_hub.

    Returns:
        the directory, for `load_exported`; of heads alone their ``intervention.yaml``, for
        ``interp.attach`` and ``Intervention.load``.

    Raises:
        UserError: no such repository, no connection, or what is there is neither.
    """
    match = _REPOSITORY.fullmatch(repo_id)
    if match is None:
        raise UserError(f"{repo_id!r} is no name of a repository: give user/name")
    try:
        folder = huggingface_hub.snapshot_download(
            match["repo"],
            revision=revision or match["revision"],
            token=token,
            endpoint=endpoint,
            cache_dir=cache_dir,
            allow_patterns=list(_FILES),
        )
    except RepositoryNotFoundError as error:
        raise UserError(f"the hub has no repository {match['repo']!r}") from error
    except Exception as error:  # whatever client, connection or server come to
        raise UserError(
            f"cannot get {match['repo']!r} from the hub ({type(error).__name__}): check the name, "
            "the revision and the connection, or give a local directory"
        ) from error
    file = Path(folder) / INTERVENTION
    if file.is_file() and not (Path(folder) / MANIFEST).is_file():
        Intervention.load(file)
        return file
    found: ExportedFolder = read_export(folder)
    return found.folder
