"""``attach``: a constraint on a plain transformers model, without TransformerLens.

The model is called, generates and stands in a pipeline as before. A hook before its forward pass
looks at the prompts of every prefill and finds the false object; hooks in the constrained layers do
the rest (`interp.attached.sites`). Nothing outside the model is changed, and its weights are not.
"""

import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.arguments import shown
from interp.attached.anatomy import Anatomy
from interp.attached.belonging import check_belongs
from interp.attached.compiled import inside, uncompiled
from interp.attached.expert_sites import install_experts, named_in
from interp.attached.handover import going_on
from interp.attached.places import PlacesOfDetector, PlacesOfWords
from interp.attached.plain_model import PlainModel, check_plain
from interp.attached.prompt_text import QuestionFrame
from interp.attached.resampled import Resampler
from interp.attached.sites import check_implementation, check_mean, install
from interp.attached.state import AttachedState, Install
from interp.attached.trial import try_heads
from interp.attached.what import intervention_of, run_of
from interp.checked import checked
from interp.errors import UserError
from interp.forward.batch import Span
from interp.heads.headset import HeadSet
from interp.interventions.expert_constraint import ExpertConstraint
from interp.interventions.gate import Gate, check_gate
from interp.interventions.head_constraint import Constraint
from interp.interventions.intervention import Intervention
from interp.interventions.object_positions import ObjectPositions, positions_at
from interp.models.passes import before_each_call, refuse_copy
from interp.models.transformers_modules import is_component
from interp.models.unwrapped import check_tokenizer, is_adapted
from interp.modules import modules
from interp.premises.joint import DEFAULT_MASK
from interp.runs.manifest import recorded_model
from probes.detector.detections import Detector
from probes.detector.detector import DETECTOR_FOLDER, has_detector
from probes.detector.own_model import for_relative
from probes.detector.support_detector import AnyDetector, load_detector
from probes.detector.train import kept_detector

_ATTACHED: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()
"""The models that have a constraint."""
_COMPILES = "_valid_auto_compile_criteria"
"""Of transformers: whether ``generate`` compiles the model by itself, which would drop hooks."""
Find = ObjectPositions | PlacesOfDetector
"""What finds the positions to act at."""


class Attached:
    """A constraint that is attached to a model, until ``detach`` or the end of a ``with``.

    Attributes:
        model: the model, as it was given.
        intervention: the constraint.
        find: finds the positions at which it acts.
    """

    def __init__(
        self,
        model: Any,
        intervention: Intervention,
        *,
        find: Find,
        state: AttachedState,
        closing: ExitStack,
    ) -> None:
        self.model, self.intervention, self.find = model, intervention, find
        self._state, self._closing = state, closing
        self._is_attached = True

    @property
    def is_attached(self) -> bool:
        """Whether the constraint still acts."""
        return self._is_attached

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While open, the model runs as it is. Not for the time between a prompt and its answer."""
        before, self._state.suspended = self._state.suspended, True
        try:
            yield
        finally:
            self._state.suspended = before
            self._state.forget()

    def detach(self) -> None:
        """Take everything off the model; a second call does nothing."""
        self._is_attached = False
        self._closing.close()

    __deepcopy__: Any = refuse_copy
    __reduce__: Any = refuse_copy

    def __enter__(self) -> Any:
        """The model, as it was given. Raises UserError if the constraint was detached."""
        if not self._is_attached:
            raise UserError("this constraint was detached: attach it again")
        return self.model

    def __exit__(self, *error: object) -> None:
        self.detach()

    def __repr__(self) -> str:
        state = "attached" if self.is_attached else "detached"
        return f"<{self.intervention.name}, {state}: {type(self.model).__name__}>"


@checked
def attach(
    hf_model: Any,
    tokenizer: Any,
    what: str | Path | Intervention | Constraint | ExpertConstraint | HeadSet,
    *,
    gate: Gate | None = None,
    detector: Detector | None = None,
    false_object: str | Sequence[str | None] | None = None,
    at: Sequence[Span | None] | Tensor | ObjectPositions | None = None,
    system: str | None = None,
    transfer: bool = False,
    mean: Float[Tensor, "layer head d_head"] | None = None,
    neutral: str = DEFAULT_MASK,
) -> Attached:
    """Attach a constraint on heads, on experts or on both to a transformers model.

    The result is a context manager whose end detaches, and a handle with ``detach``. Forward
    passes, ``generate`` (batches, beams, sampling, caches of either kind) and pipelines are
    constrained at the false object of their prompts, as ``interp.constrain`` does it on the hooked
    model.

    Args:
        hf_model: a causal language model of transformers; one that PEFT has wrapped, or that is
            quantized, compiled or divided over devices, too.
        what: an intervention, a constraint or a head set; the directory of a run that was
            evaluated, whose best setting is taken; or a file of ``Intervention.save``. Experts are
            those of a PEFT model with a MoELoRA adapter.
        gate: who finds the false object: the caller (``oracle``) or a detector (``probe``, or
            ``soft``, as strong as the detector is sure). By default the caller if ``at`` or
            ``false_object`` is given, else what ``what`` says.
        detector: for gates ``probe`` and ``soft``; by default the run's own, or the model's own if
            there is one already (``probes.detector_for`` makes one on the hooked model).
        false_object: the words that may be false, of which the last occurrence in a prompt is
            taken; or one for each prompt, None to leave a prompt alone.
        at: where the false object is, as ``interp.constrain`` takes it.
        system: the system prompt, if the prompts have one that their template writes into the
            user's turn (Gemma, Mistral): a detector reads the question behind it.
        transfer: the model is a fine-tuned relative of that which the run, the heads or the
            detector are of: its layers and heads must fit.
        mean: for mode ``mean``, every head's mean output at the object
            (``interp.heads.object_edits.mean_output`` of premises on the hooked model).
        neutral: for mode ``resample``, the word in place of the object; a pass over the prompts up
            to it goes before each prefill.

    Raises:
        UserError: another model than the run's, the heads' or the detector's, a head that the
            model does not have, an attention that takes no mask by head, a model that has a
            constraint already, or no way to find the false object.
    """
    base = _unwrapped(hf_model)
    intervention = named_in(intervention_of(what), base)
    anatomy = Anatomy.of(base)
    anatomy.check(intervention)
    check_mean(intervention, anatomy, mean)
    for part in intervention.heads:
        check_implementation(anatomy, part)
    run = run_of(what)
    belonging: Any = {"intervention": intervention, "run": run, "transfer": transfer}
    check_belongs(base, tokenizer, anatomy, **belonging)
    gate = _gate(gate or (None if _given(at, false_object) else intervention.gate), detector)
    if gate != "oracle":
        if _given(at, false_object):
            raise UserError(f"gate {gate!r} finds the false object itself: leave at and words out")
        reading: Any = {"run": run, "detector": detector, "transfer": transfer, "system": system}
        find: Find = _detecting(base, tokenizer, anatomy, gate=gate, **reading)
    elif intervention.needs_positions or _given(at, false_object):
        find = _told(tokenizer, at, false_object)
    else:
        find = _nowhere
    with uncompiled(hf_model):
        try_heads(base, anatomy, intervention.heads)
    resampler = Resampler.of(intervention, base, tokenizer, anatomy, neutral=neutral)
    sources: Any = {"mean": mean, "resampler": resampler}
    return _attached(hf_model, base, anatomy, intervention=intervention, find=find, **sources)


def _nowhere(tokens: Tensor, mask: Tensor) -> Tensor:
    """No position, for experts that act at all of them."""
    return torch.zeros_like(tokens, dtype=torch.bool)


def _attached(
    hf_model: Any,
    base: Any,
    anatomy: Anatomy,
    *,
    intervention: Intervention,
    find: Find,
    mean: Tensor | None,
    resampler: Resampler | None,
) -> Attached:
    by_site: dict[str, list[Install]] = {"output": [], "attention": []}
    for part in intervention.heads:
        by_site[part.site].append(install(part, anatomy, mean=mean))
    always: list[Install] = []
    for part in intervention.experts:
        everywhere = not isinstance(find, PlacesOfDetector)
        experts = install_experts(part, base, everywhere=everywhere)
        if part.place == "all":
            (always if everywhere else by_site["attention"]).append(experts)
        else:
            by_site["output"].append(experts)
    state = AttachedState(
        find,
        in_prefill=by_site["output"],
        in_every_pass=by_site["attention"],
        read_strength=lambda: find.strength if isinstance(find, PlacesOfDetector) else None,
        resampler=resampler,
    )
    with ExitStack() as stack:
        stack.enter_context(uncompiled(hf_model))
        stack.callback(_ATTACHED.discard, base)
        _ATTACHED.add(base)
        stack.callback(state.remove_hooks)
        for handle in chain.from_iterable(put(state) for put in always):
            stack.callback(handle.remove)
        # PEFT calls the forward of the model in it past the model's hooks, but not its body's.
        entry = anatomy.body if is_adapted(base) else base
        stack.enter_context(before_each_call(entry, state.begin, state.end, note=state.note))
        stack.enter_context(entry.register_forward_pre_hook(_refuse_packed, with_kwargs=True))
        if isinstance(find, PlacesOfDetector) and entry is base:
            find.keeps_reading = True
            hook = going_on(state, find.take_reading, intervention)
            stack.enter_context(base.register_forward_pre_hook(hook, with_kwargs=True))
        if hasattr(base, _COMPILES):
            stack.callback(base.__dict__.pop, _COMPILES, None)
            base.__dict__[_COMPILES] = _never
        return Attached(hf_model, intervention, find=find, state=state, closing=stack.pop_all())


def _refuse_packed(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Raise UserError for several prompts in one row, as continuous batching runs them."""
    if kwargs.get("cu_seq_lens_q") is not None:
        raise UserError(
            "prompts that are packed into one row (generate_batch) cannot be constrained: use "
            "generate with a padded batch"
        )


def _never(*args: Any, **kwargs: Any) -> bool:
    return False


def _given(at: Any, false_object: Any) -> bool:
    return at is not None or false_object is not None


def _gate(gate: Gate | None, detector: Detector | None) -> Gate:
    chosen = check_gate(gate or "oracle")
    if detector is not None and chosen == "oracle":
        raise UserError("a detector is for gate='probe' and gate='soft'")
    return chosen


def _told(tokenizer: Any, at: Any, false_object: Any) -> ObjectPositions:
    """Positions that the caller knows."""
    if at is not None and false_object is not None:
        raise UserError("give at= or false_object=, not both")
    if at is not None:
        return positions_at(at)
    if not false_object or (
        not isinstance(false_object, str)
        and not all(words is None or (isinstance(words, str) and words) for words in false_object)
    ):
        found = "nothing" if false_object is None else shown(false_object)
        raise UserError(
            "attach needs to know where the false object is: give its words (false_object=), "
            f"positions (at=) or gate='probe', not {found}"
        )
    check_tokenizer(tokenizer)
    return PlacesOfWords(tokenizer, false_object)


def detector_places(
    hf_model: Any, tokenizer: Any, *, run: Path | None = None, detector: Detector | None = None
) -> PlacesOfDetector:
    """What finds the false words of prompts that run on a model, as gate ``probe`` does.

    It runs the model as it is, and gives the mask [prompt pos] that ``attach`` takes as ``at``.
    Raises UserError as ``attach`` does: no detector, or one of another model.
    """
    base = _unwrapped(hf_model)
    return _detecting(base, tokenizer, Anatomy.of(base), run=run, detector=detector)


def _detecting(
    base: Any,
    tokenizer: Any,
    anatomy: Anatomy,
    *,
    run: Path | None,
    detector: Detector | None,
    gate: Gate = "probe",
    transfer: bool = False,
    system: str | None = None,
) -> PlacesOfDetector:
    """Positions that a detector finds."""
    check_tokenizer(tokenizer)
    wanted = getattr(detector, "fingerprint", None)
    if detector is None and run is not None:
        wanted = recorded_model(run)["fingerprint"]
    model: Any = PlainModel(base, tokenizer, anatomy, wanted=wanted)
    if transfer and detector is None and run is not None and has_detector(run):
        detector = load_detector(run / DETECTOR_FOLDER)
    if transfer and isinstance(detector, AnyDetector):
        detector = for_relative(detector, model)
    if isinstance(detector, AnyDetector):
        detector.check_model(model)
    elif detector is None and run is not None and has_detector(run):
        detector = load_detector(run / DETECTOR_FOLDER, model=model)
    elif detector is None:
        detector = kept_detector(model)
    if detector is None:
        raise UserError(
            "there is no detector for this model yet: train one on the hooked model, once "
            "(`interp detect --model …`, or probes.detector_for(interp.load_model(…))), or give "
            "detector=, on the command line --detector"
        )
    if not isinstance(detector, Detector):
        raise UserError(f"detector is a premise detector (probes.Detector), not {shown(detector)}")
    frame = QuestionFrame(tokenizer, (system,) if system else ())
    return PlacesOfDetector(model, detector, frame, gate)


def _unwrapped(given: Any) -> Any:
    """The transformers model that hooks go into. Raises UserError where they would not act."""
    if not isinstance(given, nn.Module):
        raise UserError(
            "attach takes a causal language model of transformers, not "
            f"{shown(given)}: load one with transformers.AutoModelForCausalLM"
        )
    if isinstance(given, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise UserError(
            "hooks do not act in copies of a model: attach to the model inside (.module)"
        )
    base = _without_adapter(inside(given))
    if any(map(is_component, modules(base))):
        raise UserError("this model is hooked by TransformerLens: use interp.constrain")
    check_plain(base)
    if base in _ATTACHED:
        raise UserError(
            "this model has a constraint already: detach that one first, or attach both as one "
            "intervention (a | b)"
        )
    return base


def _without_adapter(given: Any) -> Any:
    """The model inside a PEFT model, its adapters included."""
    if "peft" not in sys.modules:
        return given
    from peft import PeftMixedModel, PeftModel  # importing PEFT takes seconds

    return given.get_base_model() if isinstance(given, PeftModel | PeftMixedModel) else given
