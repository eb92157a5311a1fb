"""Activations with what they are: labels and subjects, kept together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import UserError
from probes.linear import check_labelled


@dataclass(frozen=True, eq=False)
class LabelledActivations:
    """Activations of one layer, prompt by prompt.

    Attributes:
        activations: Float[prompt d_model].
        labels: Int[prompt], 1 for a false premise and 0 for its twin.
        subjects: whom each prompt asks about.

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
        labels = torch.cat(
            [torch.ones(len(false), dtype=torch.long), torch.zeros(len(twin), dtype=torch.long)]
        )
        return cls(torch.cat([false, twin]), labels, tuple(subjects) * 2)
