"""A chosen set of heads: saved, loaded, and given to ``constrain`` and ``evaluate``."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from interp.arguments import as_path, check_choice, pairs_of_numbers
from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.heatmap import chosen_heads
from interp.files.documents import write_atomically
from interp.files.shape import Maybe, check_shape
from interp.files.text import parse_json, read_text
from interp.heads.origin import Origin
from interp.lazy import go, pd
from interp.models.hooked_model import HookedModel

Head = tuple[int, int]
"""(layer, head), both counted from zero."""

Site = Literal["output", "attention"]
"""Where a head is constrained: its output at the false object, or its attention to the object."""


def check_site(site: str) -> None:
    """Raise UserError for an unknown site, listing the known ones."""
    check_choice("site", site, get_args(Site))


@dataclass(frozen=True)
class HeadSet(Displayed):
    """Heads, their site, and how they were chosen.

    Iterates as (layer, head) tuples; equal to another set of the same heads and site.

    Attributes:
        origin: the model that they were found on, if it was noted (`interp.heads.found_on`).
    """

    heads: tuple[Head, ...]
    site: Site = "output"
    chosen_by: str = field(default="by hand", compare=False)
    origin: Origin | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_site(self.site)
        object.__setattr__(self, "heads", tuple(pairs_of_numbers("heads", self.heads)))
        if len(set(self.heads)) < len(self.heads):
            raise UserError("a head is named twice in the set")
        if any(layer < 0 or head < 0 for layer, head in self.heads):
            raise UserError("layers and heads are counted from zero")

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    def __len__(self) -> int:
        return len(self.heads)

    def __contains__(self, head: object) -> bool:
        return head in self.heads

    def save(self, path: str | Path) -> Path:
        """Write the set as a small JSON file."""
        content: dict[str, Any] = {
            **{"site": self.site, "heads": self.heads, "chosen_by": self.chosen_by},
            # Left out where it is not known, as in files of versions that did not note it.
            **({} if self.origin is None else {"origin": self.origin.to_dict()}),
        }
        return write_atomically(as_path("path", path), json.dumps(content) + "\n")

    @classmethod
    def load(
        cls, path: str | Path, *, model: HookedModel | None = None, transfer: bool = False
    ) -> "HeadSet":
        """Read a set that ``save`` wrote.

        Args:
            model: raise for heads that were found on another model.
            transfer: ``model`` is a fine-tuned relative on purpose: its layers and heads must fit.

        Raises:
            UserError: no head set, or one of another model.
        """
        path = as_path("path", path)
        try:
            content = check_shape(
                parse_json(read_text(path)),
                {
                    "site": str,
                    "heads": [[int, int]],
                    "chosen_by": Maybe(str),
                    "origin": Maybe(dict),
                },
                "the file",
                advice="write one with .save()",
            )
            heads = tuple((layer, head) for layer, head in content["heads"])
            check_site(content["site"])
            origin = Origin.from_dict(content.get("origin"))
            found = cls(heads, content["site"], content.get("chosen_by") or "", origin)
        except UserError as error:
            raise UserError(f"{path} is not a head set: {error}") from error
        if model is not None and origin is not None:
            origin.check(model, transfer=transfer)
        return found

    def plot(self) -> "go.Figure":
        """The heads as squares, layer × head."""
        return chosen_heads(self)

    def _shown(self) -> Shown:
        table = pd.DataFrame(list(self.heads), columns=["layer", "head"])
        plural = "" if len(self) == 1 else "s"
        text = f"{len(self)} head{plural}, site {self.site}, chosen by: {self.chosen_by}."
        return Shown(text, (table,), self.plot)


@checked
def as_head_set(heads: "HeadSet | Iterable[Head]", site: Site | None = None) -> HeadSet:
    """A HeadSet as it is, or a plain list of tuples with its site (``output`` if not given)."""
    if isinstance(heads, HeadSet):
        if site is not None and site != heads.site:
            raise UserError(f"these heads were chosen for site {heads.site!r}, not {site!r}")
        return heads
    return HeadSet(tuple(pairs_of_numbers("heads", heads)), site or "output")
