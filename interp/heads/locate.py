"""Which heads make the model accept a false premise.

Three methods, one result (``HeadEffects``), for each of two sites (``interp.patching.edits``):

* ``path``: the paper's path patching (arXiv 2402.19103, section 3.3). One head's output at the
  false object's **last** token comes from the masked run; at that token all other heads keep
  their clean outputs, while MLPs there and all later positions are recomputed.
* ``activation``: the same replacement at **all** tokens of the false object, nothing frozen.
* ``attribution``: the first-order estimate of ``activation`` from one backward pass.

Replaced outputs come from a ``source``: the ``masked`` run, the true-premise ``twin``, ``zero``, or
the ``mean`` over the prompts' own false-object tokens. The ``attention`` site has one edit only:
attention from later positions to the false object is cut (``cut``).

O is the masked run's top token in ``path`` as in the paper, the true object's token otherwise.
"""

from collections.abc import Sequence
from typing import Any, get_args, overload

import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import check_choice, whole_number
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import TokenBatch
from interp.forward.partial import device_of, unedited_logits
from interp.forward.trial import sweep_resolution
from interp.heads.effects import HeadEffects, Method
from interp.heads.headset import Head, Site, check_site
from interp.heads.joint import JointEffects, pool_effects
from interp.heads.object_edits import Source, premise_edit
from interp.models.hooked_model import HookedModel
from interp.models.versions import check_hooked
from interp.patching.attribution import attribute_heads
from interp.patching.checks import checked_together
from interp.patching.metrics import LogitDifference, Probability, apply_metric
from interp.patching.sweep import sweep_effects
from interp.precision import result_dtype
from interp.premises.encode import EncodedPremises, encode_premises
from interp.premises.joint import AnyPremises
from interp.premises.questions import Premises, QuestionKind


@overload
def locate_heads(
    model: HookedModel, premises: Premises | EncodedPremises, **options: Any
) -> HeadEffects: ...


@overload
def locate_heads(
    model: HookedModel, premises: Sequence[Premises | EncodedPremises], **options: Any
) -> JointEffects: ...


@checked
def locate_heads(
    model: HookedModel,
    premises: Premises | EncodedPremises | Sequence[Premises | EncodedPremises],
    *,
    method: Method = "attribution",
    site: Site = "output",
    source: Source | None = None,
    kind: QuestionKind = "false",
    heads: tuple[Head, ...] | None = None,
    seed: int = 0,
    budget: int | None = None,
    progress: bool = True,
) -> HeadEffects | JointEffects:
    """Effect of editing each head alone on the answer to every false-premise question.

    Args:
        premises: known facts; only the search part of a split, if heads are to be scored later.
            Those of several relations are searched one by one, and their effects pooled.
        source: what replaces the heads' values, as in ``premise_edit``; by default ``masked`` for
            ``path`` and ``zero`` otherwise.
        kind: which prompts run: ``false``; or ``twin`` with source ``twin`` for the control in
            which there is no false premise, and nothing to find.
        heads: only these (exact methods); the others are NaN.

    Raises:
        UserError: an unknown method, site or source, or one that does not fit the site; the same
            relation twice.
    """
    options: dict[str, Any] = {
        **{"method": method, "site": site, "source": source, "kind": kind, "heads": heads},
        **{"seed": whole_number("seed", seed, least=0), "budget": budget, "progress": progress},
    }
    if isinstance(premises, Premises | EncodedPremises):
        return _in_relation(model, premises, **options)
    names = [relation_of(part) for part in premises]
    return pool_effects([_in_relation(model, part, **options) for part in premises], names)


def relation_of(premises: Premises | EncodedPremises) -> str:
    """The name of the relation that the questions are of."""
    if isinstance(premises, Premises):
        return premises.relation.name
    return premises.items[0].question.relation


@torch.no_grad()
def _in_relation(
    model: HookedModel,
    premises: Premises | EncodedPremises,
    *,
    method: Method,
    site: Site,
    source: Source | None,
    kind: QuestionKind,
    heads: tuple[Head, ...] | None,
    seed: int,
    budget: int | None,
    progress: bool,
) -> HeadEffects:
    """The effects on the questions of one relation; see `locate_heads`."""
    check_site(site)
    check_method(method)
    encoded = as_encoded(model, premises)
    batch = encoded.batch(kind)
    last_only = method == "path" and site == "output"
    source = source or ("masked" if last_only else "zero")
    edit = premise_edit(model, encoded, kind, site=site, source=source, last_only=last_only)
    top = encoded.true_tokens
    if method == "path":
        top = unedited_logits(model, encoded.batch("masked")).argmax(dim=-1)
    metrics = (LogitDifference(encoded.true_tokens, encoded.false_tokens), Probability(top))
    running: dict[str, Any] = {"budget": budget, "progress": progress}
    if method == "attribution":
        if heads is not None:
            raise UserError("attribution gives all heads in one pass: leave `heads` out")
        effects = attribute_heads(model, batch, edit, metrics=metrics, **running)
    else:
        running |= {"freeze": method == "path", "units": heads}
        effects = sweep_effects(model, batch, edit, metrics=metrics, **running)[..., 0]
    return HeadEffects(
        values=effects[0],
        probability=effects[1],
        subjects=encoded.subjects,
        templates=encoded.templates,
        site=site,
        method=method,
        source="cut" if site == "attention" else source,
        seed=seed,
        resolution=sweep_resolution(model),
    )


def as_encoded(
    model: HookedModel, premises: AnyPremises | EncodedPremises, *, system: str | None = None
) -> EncodedPremises:
    """Premises as this model's tokens, under a system prompt if one is given."""
    check_hooked(model)
    if isinstance(premises, EncodedPremises):
        return premises.to(device_of(model))
    return encode_premises(model.tokenizer, premises, device=device_of(model), system=system)


@torch.no_grad()
def batch_metrics(
    model: HookedModel, batch: TokenBatch, metrics: tuple[Any, ...]
) -> Float[Tensor, "metric prompt"]:
    """The metrics in an unedited run, from the same modules that a sweep runs."""
    logits, dtype = unedited_logits(model, batch), result_dtype(model)
    found = checked_together(lambda: [apply_metric(metric, logits) for metric in metrics])
    return torch.stack([values.to(logits.device, dtype) for values in found]).cpu()


def check_method(method: str) -> None:
    """Raise UserError for an unknown method, listing the known ones."""
    check_choice("method", method, get_args(Method))
