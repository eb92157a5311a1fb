"""``compare_answers``: what an intervention changes in the answers to some questions."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from interp.asking.ask import asked_model, gate_of
from interp.asking.compared import ComparedAnswers
from interp.attached.what import intervention_of, run_of
from interp.checked import checked
from interp.forward.generate import MAX_NEW_TOKENS
from interp.heads.headset import Site
from interp.interventions.gate import Gate
from interp.interventions.generate import Heads, questions_of
from interp.interventions.head_constraint import Mode
from interp.interventions.intervention import Intervention
from probes.detector.detections import Detector


@checked
def compare_answers(
    model: Any,
    questions: str | Iterable[str],
    *,
    heads: Heads | str | Path,
    tokenizer: Any = None,
    false_object: str | Sequence[str | None] | None = None,
    gate: Gate | None = None,
    detector: Detector | None = None,
    site: Site | None = None,
    mode: Mode = "zero",
    factor: float = 0.0,
    decoding_steps: int | None = None,
    system: str | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: bool = False,
) -> ComparedAnswers:
    """The greedy answers to questions without and with an intervention, and what it changed.

    The answers are those of ``interp.generate`` on a hooked model, and of a plain model with
    ``interp.attach``. A notebook shows them as a table.

    Args:
        model: a hooked model; or a transformers model, then with its ``tokenizer``.
        heads: heads, experts or both, as ``interp.generate`` takes them; or the directory of a run
            that was evaluated, whose best setting is taken, or a file of ``Intervention.save``.
        false_object: the words that may be false, for gate ``oracle``; their last occurrence is
            used. One text for all questions, or one for each, None to leave that question alone.
        gate: by default ``oracle`` if ``false_object`` is given, else ``probe``, or ``soft`` if the
            intervention says so.
        detector: by default the run's own, or the model's.
        site, mode, factor, decoding_steps: of (layer, head) tuples or a head set.

    Raises:
        UserError: what ``interp.generate`` or ``interp.attach`` refuse, no heads, or a plain model
            without a tokenizer.
    """
    texts = questions_of(questions)
    if isinstance(heads, str | Path):
        found = intervention_of(heads)
    else:
        options: Any = {"mode": mode, "factor": factor, "decoding_steps": decoding_steps}
        found = Intervention.of(heads, site, **options)
    under = Intervention.of(found, gate=gate_of(gate, false_object, found))
    asked = asked_model(model, tokenizer, under, run=run_of(heads), detector=detector)
    answers = asked.compare(
        texts,
        false_object=false_object,
        system=system,
        max_new_tokens=max_new_tokens,
        progress=progress,
    )
    return ComparedAnswers(under, answers)
