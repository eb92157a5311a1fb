"""``constrain``: an intervention as a context manager on a hooked model.

It holds in forward passes and in generation. While it is open, every prefill first finds the places
to act on in its prompts; the hooks then act there, and on every decoding step where the site asks
for it. In patching sweeps too, which then run whole prompts: places have to be found in every row
of their batches, by ``premises`` or a callable. Nothing stays behind.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.batch import Span
from interp.forward.partial import hooked
from interp.heads.headset import Head, HeadSet, Site
from interp.heads.locate import as_encoded
from interp.heads.object_edits import mean_output
from interp.interventions.expert_constraint import ExpertConstraint
from interp.interventions.head_constraint import Constraint, Mode
from interp.interventions.hooks import hooks_of
from interp.interventions.intervention import Intervention
from interp.interventions.object_positions import ObjectPositions, places_at, places_of_premises
from interp.interventions.prompt_state import PromptState
from interp.models.hooked_model import HookedModel
from interp.models.versions import before_each_pass
from interp.premises.encode import DEFAULT_MASK, EncodedPremises
from interp.premises.questions import Premises


@contextmanager
def constrain(
    model: HookedModel,
    heads: HeadSet | Iterable[Head] | Constraint | ExpertConstraint | Intervention,
    *,
    at: Sequence[Span | None] | Tensor | ObjectPositions | None = None,
    premises: Premises | EncodedPremises | None = None,
    site: Site | None = None,
    mode: Mode = "zero",
    factor: float = 0.0,
    reference: Premises | EncodedPremises | None = None,
    mean: Float[Tensor, "layer head d_head"] | None = None,
    neutral: str | None = None,
) -> Iterator[Any]:
    """Hold heads at the false object, and experts, while the context is open.

    Args:
        heads: what is constrained: a HeadSet, (layer, head) tuples with ``site``, a whole
            Constraint, an ExpertConstraint (on a model from ``interp.moelora.hooked``), or an
            Intervention of any of them.
        at: where the false object is, or ``premises`` to look it up in; see
            ``interp.interventions.object_positions``. Exactly one of the two, unless nothing acts
            there: for experts at place ``all``, which act on every token of every prompt.
        mode, factor: of bare heads; see ``interp.interventions.head_constraint``.
        reference: premises whose mean output mode ``mean`` uses (``premises`` if not given), or
            the ``mean`` itself.
        neutral: the word that mode ``resample`` puts in the object's place; by default the mask of
            the premises' relation, or ``XXXX``.

    Yields:
        the model, for forward passes, ``interp.generate`` or its own generation.

    Raises:
        UserError: a head or an expert that the model does not have, a mode that does not fit the
            site, or places that do not fit the prompts.
    """
    what = Intervention.of(heads, site, mode, factor).check(model)
    encoded = as_encoded(model, premises) if premises is not None else None
    running = None
    given = (at is not None) + (premises is not None)
    if given > 1 or (what.needs_places and not given):
        raise UserError("constrain needs to know where the false object is: give at= or premises=")
    if what.needs_places:
        places = places_of_premises(encoded) if encoded is not None else places_at(at)  # type: ignore[arg-type]
        if neutral is None:
            neutral = encoded.mask if encoded is not None else DEFAULT_MASK
        layers = [
            layer for part in what.heads if part.mode == "resample" for layer, _ in part.heads
        ]
        running = PromptState(model, places, resample_layers=layers, neutral=neutral)
    if mean is None and any(part.mode == "mean" for part in what.heads):
        source = reference if reference is not None else encoded
        if source is None:
            raise UserError("mode 'mean' needs reference= premises to take the mean over")
        mean = mean_output(model, as_encoded(model, source))
    with hooked(
        model, [hook for part in what.parts for hook in hooks_of(part, model, running, mean)]
    ):
        if running is None:
            yield model
            return
        with before_each_pass(model, running.begin):
            yield model
