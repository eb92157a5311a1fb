"""Heads and detectors that ship with the package, for models known by their weights.

`data/models/NAME` holds, for one model, ``model.json`` (its fingerprint, and the relations that
neither the heads nor the detector have seen), ``heads.json``, the detector's files, and a card.
"""

from dataclasses import dataclass
from pathlib import Path

from interp.checked import checked
from interp.files.shape import check_shape
from interp.files.text import read_json_object
from interp.heads.headset import HeadSet
from interp.models import fingerprint
from interp.models.hooked_model import HookedModel
from interp.premises.registry import data_dir

MODEL, HEADS = "model.json", "heads.json"


@dataclass(frozen=True)
class Shipped:
    """What ships for a model.

    Attributes:
        folder: with the files.
        left_out: relations that neither heads nor detector have seen.
    """

    folder: Path
    left_out: tuple[str, ...]

    @property
    def heads(self) -> HeadSet:
        """The head set, found on all relations but those left out."""
        return HeadSet.load(self.folder / HEADS)


@checked
def shipped_for(model: HookedModel) -> Shipped | None:
    """What ships for this model's weights; None for any other model."""
    return shipped_by(fingerprint(model))


@checked
def shipped_by(digest: str) -> Shipped | None:
    """What ships for the model with this fingerprint; None for any other model."""
    for path in sorted((data_dir() / "models").glob(f"*/{MODEL}")):
        shape = {"fingerprint": str, "left_out": [str]}
        content = check_shape(read_json_object(path), shape, str(path))
        if content["fingerprint"] == digest:
            return Shipped(path.parent, tuple(content["left_out"]))
    return None
