"""Whether a constraint and a model belong together, by what a run or saved heads say of theirs."""

from pathlib import Path
from typing import Any

from interp.attached.anatomy import Anatomy
from interp.attached.plain_model import PlainModel
from interp.heads.origin import Origin
from interp.interventions.intervention import Intervention
from interp.models.unwrapped import check_tokenizer
from interp.runs.manifest import check_same_model, recorded_model


def check_belongs(
    base: Any,
    tokenizer: Any,
    anatomy: Anatomy,
    *,
    intervention: Intervention,
    run: Path | None,
    transfer: bool,
) -> None:
    """Raise UserError for heads, or a run, of another model.

    Args:
        run: the run that the intervention is of, if it is of one.
        transfer: the model is a fine-tuned relative on purpose: its layers and heads must fit.
    """

    def plain(wanted: str) -> Any:
        check_tokenizer(tokenizer)
        return PlainModel(base, tokenizer, anatomy, wanted=wanted)

    for part in intervention.heads:
        if part.heads.origin is not None:
            part.heads.origin.check(plain(part.heads.origin.fingerprint), transfer=transfer)
    if run is None:
        return
    recorded = recorded_model(run)
    model = plain(recorded["fingerprint"])
    n_layers, n_heads = recorded.get("n_layers"), recorded.get("n_heads")
    if not transfer:
        check_same_model(run, model)
    elif isinstance(n_layers, int) and isinstance(n_heads, int):
        of_run = Origin(recorded["spec"], recorded["fingerprint"], n_layers, n_heads)
        of_run.check(model, transfer=True)
