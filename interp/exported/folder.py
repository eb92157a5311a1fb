"""The files of an exported directory, and the check that none was changed.

``export.json`` says which model the intervention is for, and holds the SHA-256 of every other file
and of itself. Weights are not among them: they are known by the model's fingerprint. The hashes
show damage and careless edits. They do not show who made the directory: whoever changes a file on
purpose can write its hash anew.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from interp.attached.what import EXPORT
from interp.errors import UserError, errors_in
from interp.files.documents import file_hash, write_json
from interp.files.links import plain_name
from interp.files.shape import Maybe, check_shape
from interp.files.text import read_json_object
from interp.interventions.intervention import Intervention
from interp.runs.shards import digest_of
from probes.detector.detector import DETECTOR_FOLDER

MANIFEST, CARD = EXPORT, "README.md"
INTERVENTION, BAKED = "intervention.yaml", "baked.json"
BASE = "model"
"""The folder of the base model's files, if they are there."""
FORMAT = 1
Weights = Literal["none", "beside", "baked"]
"""Whether the directory holds the base model, or weights that the intervention is written into."""
_MODEL = {
    **{"spec": str, "fingerprint": str, "n_layers": int, "n_heads": int, "dtype": str},
    "quantization": Maybe(str),
}
_SHAPE = {
    **{"format": int, "model": _MODEL, "weights": str, "files": {str: str}, "sha256": str},
    **{"baked_fingerprint": Maybe(str), "transferred": Maybe(bool)},
}
_AGAIN = "export the run again, or take the directory anew from where it came"


@dataclass(frozen=True)
class ExportedFolder:
    """An exported directory whose files are as they were written.

    Attributes:
        folder: the directory.
        content: of ``export.json``.
    """

    folder: Path
    content: Mapping[str, Any]

    @property
    def model(self) -> Mapping[str, Any]:
        """The base model: ``spec``, ``fingerprint``, sizes, ``dtype`` and ``quantization``."""
        return self.content["model"]

    @property
    def is_baked(self) -> bool:
        """Whether the weights have the intervention written into them."""
        return self.content["weights"] == "baked"

    @property
    def is_transferred(self) -> bool:
        """Whether the base model is a relative of the one that the heads were found on."""
        return bool(self.content.get("transferred"))

    @property
    def base(self) -> Path | None:
        """The base model's files, if they are in the directory."""
        return self.folder / BASE if self.content["weights"] == "beside" else None

    @property
    def intervention(self) -> Intervention:
        """What is constrained."""
        return Intervention.load(self.folder / INTERVENTION)

    @property
    def detector(self) -> Path | None:
        """The detector's files, if there are any."""
        found = self.folder / DETECTOR_FOLDER
        return found if found.is_dir() else None


def write_export(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write ``export.json``, with the hashes of the files that are there."""
    names = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_weights(path))
    files = {path.relative_to(folder).as_posix(): file_hash(path) for path in names}
    whole = {"format": FORMAT, **content, "files": files}
    return write_json(folder / MANIFEST, {**whole, "sha256": digest_of(whole)})


def read_export(folder: str | Path) -> ExportedFolder:
    """Read ``export.json``, and compare every file that it names.

    Raises:
        UserError: no exported directory, one of another format, or a file that is missing or was
            changed.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} is no exported directory: it has no {MANIFEST}; make one with `interp "
            "export RUN --to DIR`"
        )
    content = check_shape(read_json_object(path, advice=_AGAIN), _SHAPE, str(path), advice=_AGAIN)
    if content["format"] != FORMAT:
        raise UserError(f"{path}: format {content['format']}, this program reads {FORMAT}")
    without = {key: value for key, value in content.items() if key != "sha256"}
    if digest_of(without) != content["sha256"]:
        raise UserError(f"{path} was changed after it was written: {_AGAIN}")
    for name in (INTERVENTION, CARD):
        if name not in content["files"]:
            raise UserError(f"{path} names no {name}: {_AGAIN}")
    for name, digest in content["files"].items():
        _check_file(folder, name, digest)
    return ExportedFolder(folder, content)


def _check_file(folder: Path, name: str, digest: str) -> None:
    with errors_in(folder / MANIFEST):
        parts = [plain_name(part.lstrip("."), "a file") for part in name.split("/")]
        if len(parts) > 3 or any(part.startswith("..") for part in name.split("/")):
            raise UserError(f"a file is named {name!r}: it must be in the directory")
    path = folder / name
    if not path.is_file():
        raise UserError(f"{folder} is not whole: {name} is missing; {_AGAIN}")
    if file_hash(path) != digest:
        raise UserError(f"{path} was changed after the export: {_AGAIN}")


def _is_weights(path: Path) -> bool:
    """Whether the model's fingerprint covers a file."""
    return path.suffix == ".safetensors" and path.parent.name != DETECTOR_FOLDER.name
