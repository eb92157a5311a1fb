"""``Origin``: the model that heads were found on, how they were found there, and how they did.

It is saved with a head set or an intervention. What is read for another model is refused, unless
the caller says that this model is a fine-tuned relative; then its layers and heads must fit.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from interp.errors import UserError
from interp.files.shape import Maybe, check_shape
from interp.models.hooked_model import HookedModel
from interp.models.load import model_info

_SHAPE = {
    **{"model": str, "fingerprint": str, "n_layers": int, "n_heads": int},
    **{"found": Maybe(dict), "scores": Maybe([dict]), "stability": Maybe(dict)},
    "versions": Maybe({str: str}),
}


@dataclass(frozen=True)
class Origin:
    """Where heads come from.

    Attributes:
        model, fingerprint: the spec of the model, and the fingerprint of its weights.
        n_layers, n_heads: its layers, and the heads in each.
        found: how and on what they were found, such as the relations and the method.
        scores: for each head its effect there, with interval and q-value.
        stability: how alike the heads of two such searches are, and beside it chance.
        versions: of Python and of packages.
    """

    model: str
    fingerprint: str
    n_layers: int
    n_heads: int
    found: Mapping[str, Any] = field(default_factory=dict)
    scores: tuple[Mapping[str, Any], ...] = ()
    stability: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As files hold it; `from_dict` reads it."""
        content = asdict(self)
        content["scores"] = [dict(score) for score in self.scores]
        return {key: value for key, value in content.items() if value not in ({}, [])}

    @classmethod
    def from_dict(cls, content: Any) -> "Origin | None":
        """The origin that a file holds; None where it holds none, as in older files.

        Raises:
            UserError: something else than an origin.
        """
        if content is None:
            return None
        given = check_shape(content, _SHAPE, "origin", advice="save the heads again")
        about: dict[str, Any] = {
            name: dict(given.get(name) or {}) for name in ("found", "stability", "versions")
        }
        return cls(
            *(given[name] for name in ("model", "fingerprint", "n_layers", "n_heads")),
            scores=tuple(dict(score) for score in given.get("scores") or ()),
            **about,
        )

    def check(self, model: HookedModel, *, transfer: bool = False) -> None:
        """Raise UserError unless heads of this origin belong to a model.

        Args:
            transfer: the model is another one on purpose, a relative of the same layers and heads.
        """
        info = model_info(model)
        if info.fingerprint == self.fingerprint:
            return
        if not transfer:
            raise UserError(
                f"these heads were found on the model {self.model!r} ({self.fingerprint[:12]}…), "
                f"not on {info.spec!r} ({info.fingerprint[:12]}…): load that model or, for a "
                "fine-tuned relative of it, say so (transfer=True, --transfer)"
            )
        own_size = (info.n_layers, info.n_heads)
        if own_size != (self.n_layers, self.n_heads):
            raise UserError(
                f"heads of a model with {self.n_layers} layers of {self.n_heads} heads do not fit "
                f"one with {own_size[0]} layers of {own_size[1]}: a relative has the same layers "
                "and heads"
            )


def common_origin(a: Origin | None, b: Origin | None) -> Origin | None:
    """The origin of two head sets together: the model, if it is the same, without scores.

    Raises:
        UserError: heads of two models.
    """
    if a is None or b is None or a == b:
        return a or b
    if a.fingerprint != b.fingerprint:
        raise UserError(
            f"heads of two models ({a.model!r} and {b.model!r}) are no one set: use those of one"
        )
    return Origin(a.model, a.fingerprint, a.n_layers, a.n_heads, versions=a.versions)
