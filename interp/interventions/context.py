"""``constrain``: an intervention as a context manager on a hooked model.

It applies to forward passes and to generation. While it is open, every prefill finds the positions
to act at in its prompts. The hooks act there and, for site ``attention``, in every decoding step.
Patching sweeps inside the context run whole prompts, and need ``premises`` or a callable, which
finds the positions in every row of their batches. All hooks are removed at the end.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

from jaxtyping import Float
from torch import Tensor

from interp.arguments import listed, real_number
from interp.errors import UserError
from interp.forward.batch import Span
from interp.forward.partial import hooked
from interp.forward.prompts import device_of
from interp.heads.headset import Head, HeadSet, Site
from interp.heads.locate import as_encoded
from interp.heads.object_edits import mean_output
from interp.interventions.expert_constraint import ExpertConstraint
from interp.interventions.head_constraint import Constraint, Mode
from interp.interventions.hooks import hooks_of
from interp.interventions.intervention import Intervention
from interp.interventions.object_positions import (
    ObjectPositions,
    positions_at,
    positions_in_premises,
)
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
    decoding_steps: int | None = None,
    reference: Premises | EncodedPremises | None = None,
    mean: Float[Tensor, "layer head d_head"] | None = None,
    neutral: str | None = None,
    strengths: Sequence[float] | None = None,
) -> Iterator[HookedModel]:
    """Constrain heads at the false object, and experts, while the context is open.

    Args:
        heads: a HeadSet, (layer, head) tuples with ``site``, a Constraint, an ExpertConstraint (on
            a model from ``interp.moelora.hooked``), or an Intervention of any of them.
        at: where the false object is, or ``premises`` to look it up in; see
            ``interp.interventions.object_positions``. Give exactly one of the two, or none for
            experts at place ``all``, which act on every token.
        mode, factor, decoding_steps: of (layer, head) tuples or a HeadSet; see
            ``interp.interventions.head_constraint``.
        reference: premises whose mean output mode ``mean`` uses, by default ``premises``; or give
            the ``mean`` itself.
        neutral: the word that replaces the object in mode ``resample``; by default the mask of the
            premises' relation, or ``XXXX``.
        strengths: for each prompt, how much of the constraint on heads acts: 0 is none, 1 is all,
            as without this argument. Attention to the object is multiplied by 1 - strength · (1 -
            factor), and an output goes that far from the head's own to the edited.

    Yields:
        the model, for forward passes, ``interp.generate`` or its own generation.

    Raises:
        UserError: a head or an expert that the model does not have, a mode that does not fit the
            site, positions that do not fit the prompts, strengths outside 0 to 1, or of experts.
    """
    under = Intervention.of(
        heads, site, mode=mode, factor=factor, decoding_steps=decoding_steps
    ).check(model)
    encoded = as_encoded(model, premises) if premises is not None else None
    strengths = None if strengths is None else check_strengths(strengths, under)
    state = None
    given = (at is not None) + (premises is not None)
    if given > 1 or (under.needs_positions and not given):
        raise UserError("constrain needs to know where the false object is: give at= or premises=")
    if under.needs_positions:
        find = positions_in_premises(encoded) if encoded is not None else positions_at(at)  # type: ignore[arg-type]
        if neutral is None:
            neutral = encoded.mask if encoded is not None else DEFAULT_MASK
        resampled = [part.heads for part in under.heads if part.mode == "resample"]
        layers = [layer for heads in resampled for layer, _ in heads]
        state = PromptState(
            model, find, resample_layers=layers, neutral=neutral, strengths=strengths
        )
    if mean is None and under.needs_mean:
        source = reference if reference is not None else encoded
        if source is None:
            raise UserError("mode 'mean' needs reference= premises to take the mean over")
        mean = mean_output(model, as_encoded(model, source))
    mean = None if mean is None else mean.to(device_of(model))
    hooks = [hook for part in under.parts for hook in hooks_of(part, model, state=state, mean=mean)]
    updating = nullcontext() if state is None else before_each_pass(model, state.begin)
    with hooked(model, hooks), updating:
        yield model


def check_strengths(strengths: Sequence[float], under: Intervention) -> list[float]:
    """The strengths as numbers. Raises UserError outside 0 to 1, or if experts are constrained."""
    given = listed("strengths", strengths, "numbers")
    numbers = [real_number("a strength", each) for each in given]
    if outside := [number for number in numbers if not 0 <= number <= 1]:
        raise UserError(f"a strength lies between 0 and 1, not {outside[0]}")
    if under.experts:
        raise UserError("strengths are for heads: constrain experts by themselves")
    return numbers
