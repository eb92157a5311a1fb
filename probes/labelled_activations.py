"""Activations with their labels and subjects, of one layer or of several."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import UserError
from interp.forward.partial import device_of
from interp.models.hooked_model import HookedModel
from interp.premises import Premises, Question
from interp.premises.encode import encode_premises
from probes.activation_reader import ActivationHook
from probes.activations import Position, collect_activations
from probes.linear import check_labelled


@dataclass(frozen=True, eq=False)
class LabelledActivations:
    """Activations of one layer, one row a prompt.

    Attributes:
        activations: Float[prompt d_model].
        labels: Int[prompt], 1 for a false premise and 0 for its twin.
        subjects: the subject of each prompt's question.

    Raises:
        UserError: lengths that differ, activations that are not finite, or one class only.
    """

    activations: Float[Tensor, "prompt d_model"]
    labels: Int[Tensor, " prompt"]
    subjects: tuple[str, ...]

    def __post_init__(self) -> None:
        check_labelled(self.activations, self.labels)
        if len(self.subjects) != len(self.labels):
            raise UserError(f"{len(self.labels)} prompts but {len(self.subjects)} subjects")

    @classmethod
    def from_pairs(
        cls,
        false: Float[Tensor, "question d_model"],
        twin: Float[Tensor, "question d_model"],
        subjects: Sequence[str],
    ) -> "LabelledActivations":
        """The false-premise prompts of some questions (label 1), then their twins (label 0)."""
        labels = (torch.arange(len(false) + len(twin)) < len(false)).long()
        return cls(torch.cat([false, twin]), labels, tuple(subjects) * 2)


@dataclass(frozen=True, eq=False)
class PremiseActivations:
    """Activations of false-premise prompts and their twins in several layers."""

    false: Float[Tensor, "question layer d_model"]
    twin: Float[Tensor, "question layer d_model"]
    questions: tuple[Question, ...]

    @property
    def objects(self) -> tuple[str, ...]:
        """The object in each prompt, in the order of ``at_layer``."""
        return objects_of_pairs(self.questions)

    def at_layer(self, index: int) -> LabelledActivations:
        """One layer's activations, by its index: false-premise prompts first."""
        subjects = [question.subject for question in self.questions]
        return LabelledActivations.from_pairs(self.false[:, index], self.twin[:, index], subjects)


def objects_of_pairs(questions: Sequence[Question]) -> tuple[str, ...]:
    """The objects of false-premise prompts and then of their twins: the false, then the true."""
    false = [question.false_object for question in questions]
    return (*false, *(question.true_object for question in questions))


def collect_pairs(
    model: HookedModel,
    premises: Premises,
    *,
    hook: ActivationHook,
    layers: Sequence[int],
    position: Position,
    progress: bool = True,
) -> PremiseActivations:
    """Read the activations of every question's false-premise prompt and of its twin."""
    encoded = encode_premises(model.tokenizer, premises, device=device_of(model))
    false, twin = (
        collect_activations(
            model, encoded, kind, hook=hook, layers=layers, position=position, progress=progress
        )
        for kind in ("false", "twin")
    )
    return PremiseActivations(false, twin, tuple(item.question for item in encoded.items))
