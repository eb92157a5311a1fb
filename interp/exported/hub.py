"""Exported directories on the Hugging Face hub, or on a server that speaks like it."""

import re
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import RepositoryNotFoundError

from interp.checked import checked
from interp.errors import UserError
from interp.exported.folder import MANIFEST, ExportedFolder, read_export

_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
_FILES = ("*.json", "*.md", "*.yaml", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""What an exported directory consists of; nothing else is downloaded."""


def names_repository(text: str) -> bool:
    """Whether a text may name a repository: ``user/name``, or ``user/name@revision``."""
    return _REPOSITORY.fullmatch(text) is not None and not text.startswith(".")


@checked
def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Upload an exported directory, with its card; the repository is made if it is not there.

    Args:
        repo_id: ``user/name``.
        private: of a new repository; by default as the hub does it.
        token: by default that of ``hf auth login``.
        endpoint: another server than the hub.

    Returns:
        the address of the commit.

    Raises:
        UserError: a directory that was changed after the export, or an upload that failed.
    """
    exported = read_export(folder)
    if not names_repository(repo_id) or "@" in repo_id:
        raise UserError(f"{repo_id!r} is no name of a repository: give user/name")
    api = huggingface_hub.HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        done: Any = api.upload_folder(
            repo_id=repo_id,
            folder_path=exported.folder,
            allow_patterns=[MANIFEST, *exported.content["files"], "*.safetensors"],
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
    """Download an exported directory; files that are there already are not fetched again.

    Args:
        repo_id: ``user/name``, or ``user/name@revision``.
        revision: a branch, tag or commit; name a commit where it must not change.
        token, endpoint: as of `push_to_hub`.
        cache_dir: by default the cache of huggingface_hub.

    Returns:
        the directory, for `load_exported`.

    Raises:
        UserError: no such repository, no connection, or what is there is no exported directory.
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
    found: ExportedFolder = read_export(folder)
    return found.folder
