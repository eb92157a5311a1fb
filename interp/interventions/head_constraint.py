"""Constraints on heads, after FAITH (arXiv 2402.19103, section 4).

The paper zeroes the selected heads' outputs at all tokens of the false object, during the prefill.
Modes of site ``output``:

* ``zero``: as in the paper;
* ``mean``: the mean output over the object tokens of reference premises;
* ``resample``: the output at the same position when the object is replaced by a neutral word;
* ``scale``: the head's own output times ``factor``.

Of site ``attention``, in prefill and while decoding: ``zero`` cuts the heads' attention from all
later positions to the object before the softmax; ``scale`` multiplies it by ``factor`` before
renormalising. ``decoding_steps`` lets the answer's later tokens read the object again.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from interp.arguments import check_choice, real_number, whole_number
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.heatmap import chosen_heads
from interp.heads.headset import HeadSet, Site, as_head_set
from interp.heads.object_edits import Source, premise_edit
from interp.interventions.unit_table import action_name, unit_rows, unit_table
from interp.models.hooked_model import HookedModel
from interp.patching.edits import HeadEdit
from interp.premises.encode import EncodedPremises
from interp.premises.questions import QuestionKind

Mode = Literal["zero", "mean", "resample", "scale"]
SITE_MODES: dict[Site, tuple[Mode, ...]] = {
    "output": ("zero", "mean", "resample", "scale"),
    "attention": ("zero", "scale"),
}
_SOURCES: dict[Mode, Source] = {"mean": "mean", "resample": "masked"}
"""Where the values of a mode come from; of the others they are zero."""


def check_mode(site: Site, mode: str) -> None:
    """Raise UserError for an unknown mode, or one that does not fit the site."""
    check_choice("mode", mode, get_args(Mode))
    if mode not in SITE_MODES[site]:
        raise UserError(
            f"mode {mode!r} does not fit site {site!r}, which has {', '.join(SITE_MODES[site])}"
        )


@dataclass(frozen=True)
class Constraint(Displayed):
    """Heads, and how they are edited at the false object.

    Attributes:
        heads: the head set, with its site.
        mode: ``zero``, ``mean``, ``resample`` or ``scale`` (site ``output``); ``zero`` or ``scale``
            (site ``attention``).
        factor: for ``scale`` only.
        decoding_steps: for site ``attention``: in how many decoding steps it acts after the
            prefill, None for all. The prefill chooses the answer's first token, and step k the
            token k + 1; in later steps the heads read the object as they would without it.
    """

    heads: HeadSet
    mode: Mode = "zero"
    factor: float = 0.0
    decoding_steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", as_head_set(self.heads))
        check_mode(self.heads.site, self.mode)
        object.__setattr__(self, "factor", real_number("factor", self.factor))
        if self.mode != "scale" and self.factor != 0:
            raise UserError(f"a factor is for mode 'scale', not {self.mode!r}")
        if self.heads.site == "attention" and self.factor < 0:
            raise UserError(f"attention cannot be scaled by {self.factor}: use zero or more")
        if self.decoding_steps is not None:
            steps = whole_number("decoding_steps", self.decoding_steps, least=0)
            object.__setattr__(self, "decoding_steps", steps)
            if self.heads.site != "attention":
                raise UserError(
                    f"decoding_steps is for site 'attention': site {self.heads.site!r} acts in the "
                    "prefill only"
                )

    @property
    def site(self) -> Site:
        """The site of the heads."""
        return self.heads.site

    @property
    def name(self) -> str:
        """Such as ``attention, zero, 3 heads``."""
        count = len(self.heads)
        return f"{self.site}, {self._action}, {count} head{'' if count == 1 else 's'}"

    @property
    def _action(self) -> str:
        """Such as ``zero`` or ``scale 0.5, 4 decoding steps``."""
        action, steps = action_name(self.mode, self.factor), self.decoding_steps
        if steps is None:
            return action
        return f"{action}, {steps} decoding step{'' if steps == 1 else 's'}"

    def with_heads(self, heads: HeadSet) -> "Constraint":
        """The same constraint on other heads."""
        return replace(self, heads=heads)

    def edit(
        self,
        model: HookedModel,
        encoded: EncodedPremises,
        kind: QuestionKind,
        *,
        mean: Float[Tensor, "layer head d_head"] | None = None,
    ) -> HeadEdit:
        """The same constraint as an edit of encoded prompts, for sweeps over head sets."""
        return premise_edit(
            model,
            encoded,
            kind,
            site=self.site,
            source=_SOURCES.get(self.mode, "zero"),
            factor=self.factor,
            mean=mean,
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row a head, in the columns of ``Intervention.to_dataframe``."""
        return unit_rows("head", self.heads, action=self._action, place=f"spans ({self.site})")

    def _shown(self) -> Shown:
        words = f"{self.name}; gate oracle."
        return Shown(words, (unit_table(self.rows()),), lambda: chosen_heads(self.heads))
