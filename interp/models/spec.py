"""A model spec, as a user writes it, becomes a directory that transformers can read.

A spec is ``"smollm2-135m"`` (the embedded model), a local directory, a ``.gguf`` file, or a hub id
``organisation/name``, optionally with ``@revision``. Weights are read from safetensors only: a
pickle file can run code when it is opened. A caller may allow pickle files of a trusted maker; even
then torch opens them with the unpickler that makes nothing but tensors.
"""

import hashlib
import logging
import os
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from interp.errors import UserError
from interp.files.gguf_header import check_gguf
from interp.models.converted import convert_gguf, convert_pickled, keep_converted
from interp.models.embedded import GGUF_SHA256, fetch_gguf
from interp.models.fingerprint import file_hashes

logger = logging.getLogger(__name__)

EMBEDDED = "smollm2-135m"

_KINDS = (
    f"{EMBEDDED} (the embedded model), a hub id such as organisation/name, "
    "a local model directory, or a .gguf file"
)
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
PICKLES = "pytorch_model*.bin"
_ADAPTER = "adapter_config.json"
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
# Copies in other formats: in subdirectories, or weights under a vendor's own names.
_HUB_IGNORED = ["*/*", "consolidated*.safetensors"]


def shown_spec(spec: str) -> str:
    """A spec without the directories of this machine, for files that are handed over."""
    return Path(spec).name if Path(spec).is_absolute() else spec


def folder_of(spec: str) -> str | None:
    """The whole path of a model's directory or file; None for a name of another kind."""
    path = os.path.expanduser(spec)
    return os.path.abspath(path) if spec != EMBEDDED and os.path.exists(path) else None


def cache_root(cache_dir: Path | None = None) -> Path:
    """Where converted models are kept: `cache_dir`, or ``FAITHLENS_CACHE``, or the user's cache."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if chosen := os.environ.get("FAITHLENS_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "faithlens"


def resolve(spec: str | Path, *, cache_dir: Path | None = None, allow_pickle: bool = False) -> Path:
    """The directory with configuration, safetensors and tokenizer of the model that `spec` names.

    The embedded model and GGUF files are converted once into `cache_dir` (see `cache_root`), and so
    are pickled weights, with `allow_pickle` only. No half-written files remain.

    Raises:
        UserError: there is no such model, or it cannot be downloaded or converted.
    """
    root = cache_root(cache_dir)
    name = str(spec).strip()
    if name == EMBEDDED:
        return _embedded(root)
    path = Path(os.path.expanduser(name))
    # os.path rather than Path, which raises on some texts, such as very long ones.
    if name and os.path.isdir(path):
        return _checked(path.resolve(), name, root, allow_pickle=allow_pickle)
    if path.suffix.lower() == ".gguf":
        return _gguf(path, root)
    if name and os.path.exists(path):
        raise UserError(f"{name!r} is not a model: give {_KINDS}")
    match = _HUB_ID.fullmatch(name)
    if match is None or name.startswith("."):
        problem = "no such directory" if "/" in name or "\\" in name else "unknown model"
        raise UserError(f"{problem} {name!r}: give {_KINDS}")
    return _from_hub(match["repo"], match["revision"], root, allow_pickle=allow_pickle)


def embedded_folder(root: Path) -> Path:
    """Where the converted embedded model belongs below a cache's root."""
    return root / "models" / f"{EMBEDDED}-{GGUF_SHA256[:12]}"


def _embedded(root: Path) -> Path:
    folder = embedded_folder(root)

    def build(into: Path) -> None:
        with fetch_gguf(root) as gguf:
            convert_gguf(gguf, into, name=EMBEDDED)

    return keep_converted(folder, build, source_sha256=GGUF_SHA256, known_whole=True)


def _gguf(path: Path, root: Path) -> Path:
    if not os.path.isfile(path):
        raise UserError(f"no such file {str(path)!r}: give the path of an existing .gguf file")
    path = path.resolve()
    check_gguf(path)
    (sha256,) = file_hashes([path], cache=root / "fingerprints")
    return keep_converted(
        root / "models" / f"{path.stem}-{sha256[:12]}",
        lambda into: convert_gguf(path, into, name=path.name),
        source_sha256=sha256,
    )


def _from_hub(repo: str, revision: str | None, root: Path, *, allow_pickle: bool) -> Path:
    try:
        folder = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[*_HUB_FILES, *([PICKLES] if allow_pickle else [])],
            ignore_patterns=_HUB_IGNORED,
        )
    except GatedRepoError as error:
        raise UserError(
            f"the hub model {repo!r} is gated: ask for access on its page, then run hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"the hub has no model {repo!r}: give {_KINDS}") from error
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"cannot get {repo!r} from the hub ({type(error).__name__}): check the name, the "
            "revision and the connection, or give a local directory"
        ) from error
    return _checked(Path(folder), repo, root, allow_pickle=allow_pickle)


def _checked(folder: Path, name: str, root: Path, *, allow_pickle: bool) -> Path:
    """`folder`, if it has the three things that a model consists of, and is no adapter."""
    if not (folder / "config.json").is_file():
        hint = ""
        if ggufs := sorted(folder.glob("*.gguf")):
            hint = f"; to use the GGUF file in it, give its path ({ggufs[0].name})"
        raise UserError(f"{name!r} is not a model directory: it has no config.json{hint}")
    if (folder / _ADAPTER).is_file():
        # transformers would read the weights of another directory, the one that the file names.
        raise UserError(
            f"{name!r} is an adapter (it has {_ADAPTER}), not a model: merge it into its base "
            "model with PEFT's merge_and_unload, save that with save_pretrained, and give it "
            "instead; a MoELoRA adapter is given beside its base model"
        )
    pickled = not any(folder.glob("*.safetensors"))
    if pickled and not (any(folder.glob(PICKLES)) and allow_pickle):
        raise UserError(
            f"{name!r} has no weights in safetensors; others are not read, as pickle files can run "
            "code: convert them with save_pretrained, or, if you trust who made them, say "
            "--allow-pickle (allow_pickle=True)"
        )
    if not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab.*")):
        raise UserError(f"{name!r} has no tokenizer: save it there with tokenizer.save_pretrained")
    return _unpickled(folder, name, root) if pickled else folder


def _unpickled(folder: Path, name: str, root: Path) -> Path:
    """Pickled weights as safetensors in the cache, converted once for each state of the files.

    Tokenizer, chat template and generation config are copied with them, so they count too.
    """
    patterns = (PICKLES, *_HUB_FILES, "*/*.jinja")
    read = {file for pattern in patterns for file in folder.glob(pattern)}
    files = [file for file in sorted(read) if file.is_file()]
    hashes = file_hashes(files, cache=root / "fingerprints")
    lines = [f"{file.relative_to(folder)} {it}" for file, it in zip(files, hashes, strict=True)]
    sha256 = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    logger.warning("%s: reading pickled weights, as allowed; converted to safetensors once", name)
    return keep_converted(
        root / "models" / f"{folder.name}-{sha256[:12]}",
        lambda into: convert_pickled(folder, into, name=name),
        source_sha256=sha256,
    )
