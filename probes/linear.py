"""Linear probes: a direction in a model's activations and a threshold.

Two methods, both on standardised activations: logistic regression (Alain & Bengio, arXiv
1610.01644), and the difference of the class means (Marks & Tegmark, arXiv 2310.06824), whose
projection becomes log-odds by a logistic regression of one variable. The standardisation is folded
into weight and bias, so a probe takes raw activations. Scores are log-odds.

Sign: a **positive** score means label 1, the false premise.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import check_choice
from interp.checked import checked
from interp.errors import UserError
from interp.files.tensor_file import read_tensor_file, write_tensor_file
from interp.files.tensors import check_tensors
from interp.files.text import one_line
from interp.lazy import linear_model, preprocessing
from interp.models import fingerprint as fingerprint_of
from interp.models.fingerprint import prompting_fingerprint
from interp.models.hooked_model import HookedModel
from probes.activation_reader import ActivationHook
from probes.activations import Position, check_place

ProbeMethod = Literal["logistic", "mean_difference"]
"""Logistic regression on all features, or the direction from one class's mean to the other's."""

DEFAULT_C = 0.1
MAX_ITERATIONS = 2000


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted probe and the hook point and position that it reads.

    Attributes:
        weight: Float[d_model], in units of log-odds per unit of raw activation.
        bias: log-odds at the origin of the raw activations.
        layer: the block it reads, counted from zero.
        hook, position: hook point in the block and token; see `probes.activations`.
        fingerprint: of the model it was fitted on, as `interp.models.fingerprint` gives it.
        head: the head it reads, for hook ``z`` only.
        prompting: fingerprint of the tokenizer and chat template; None in files of older versions,
            which do not hold it.
    """

    weight: Float[Tensor, " d_model"] = field(repr=False)
    bias: float
    layer: int
    hook: ActivationHook
    position: Position
    fingerprint: str
    head: int | None = None
    prompting: str | None = None

    def __post_init__(self) -> None:
        check_place(self.hook, self.position)
        if (self.head is None) == (self.hook == "z"):
            raise UserError("a probe of hook 'z' reads one head, and only such a probe does")
        if self.layer < 0:
            raise UserError(f"layers are counted from zero, got {self.layer}")
        if not bool(torch.isfinite(self.weight).all()) or not abs(self.bias) < float("inf"):
            raise UserError("a probe's weight and bias must be finite")

    def scores(self, activations: Float[Tensor, "*prompts d_model"]) -> Float[Tensor, " *prompts"]:
        """Log-odds of label 1 for raw activations, on their device and in the weight's dtype.

        Raises UserError for activations of another width.
        """
        if activations.shape[-1] != len(self.weight):
            raise UserError(
                f"the probe reads activations of width {len(self.weight)}, not "
                f"{activations.shape[-1]}: it belongs to another model"
            )
        weight = self.weight.to(activations.device)
        return activations.to(weight.dtype) @ weight + self.bias

    def check_model(self, model: HookedModel) -> None:
        """Raise UserError for another model, tokenizer or chat template than it was fitted with."""
        check_fitted_on(model, "the probe", fingerprint=self.fingerprint, prompting=self.prompting)

    def save(self, path: str | Path) -> Path:
        """Write the probe to one safetensors file. Raises UserError if it cannot be written."""
        path = Path(path)
        names = ("layer", "hook", "position", "fingerprint", "head", "prompting")
        values = {name: getattr(self, name) for name in names}
        metadata = {name: "" if value is None else str(value) for name, value in values.items()}
        tensors = {"weight": self.weight, "bias": torch.tensor(self.bias, dtype=torch.float64)}
        return write_tensor_file(path, tensors, metadata)

    @classmethod
    def load(cls, path: str | Path, *, model: HookedModel | None = None) -> "LinearProbe":
        """Read a probe that ``save`` wrote; with ``model``, only if it was fitted on that model.

        Raises UserError for a file that is not a probe, and for a probe of another model.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"there is no probe at {path}: fit one and write it with .save()")
        try:
            tensors, metadata = read_tensor_file(path)
            check_tensors(tensors, weight=1)
            bias, wanted = tensors.get("bias"), ("layer", "hook", "position", "fingerprint")
            if bias is None or bias.numel() != 1 or bias.is_complex():
                raise UserError("it has no bias")
            if missing := [name for name in wanted if name not in metadata]:
                raise UserError(f"it has no {missing[0]}")
            check_place(metadata["hook"], metadata["position"])  # type: ignore[arg-type]
            head = metadata.get("head")
            probe = cls(
                weight=tensors["weight"],
                bias=float(bias),
                layer=int(metadata["layer"]),
                hook=metadata["hook"],  # type: ignore[arg-type]
                position=metadata["position"],  # type: ignore[arg-type]
                fingerprint=metadata["fingerprint"],
                head=int(head) if head else None,
                prompting=metadata.get("prompting") or None,
            )
        except (UserError, ValueError) as error:
            raise UserError(
                f"{path} is not a probe ({one_line(error)}): write one with .save()"
            ) from error
        if model is not None:
            probe.check_model(model)
        return probe


def check_fitted_on(
    model: HookedModel, what: str, *, fingerprint: str, prompting: str | None
) -> None:
    """Raise UserError if ``what`` was fitted with another model, tokenizer or chat template."""
    if (found := fingerprint_of(model)) != fingerprint:
        raise UserError(
            f"{what} was fitted on model {fingerprint[:12]}, this is {found[:12]}: fit one on this "
            "model, or load the model that it was fitted on"
        )
    if prompting not in (None, prompting_fingerprint(model.tokenizer)):
        raise UserError(
            f"{what} was fitted with another tokenizer or chat template than this model's: fit one "
            "with these, or load the model as it was"
        )


@checked
def fit_probe(
    activations: Float[Tensor, "prompt d_model"],
    labels: Int[Tensor, " prompt"],
    *,
    layer: int,
    fingerprint: str,
    prompting: str | None = None,
    hook: ActivationHook = "resid_post",
    position: Position = "object",
    head: int | None = None,
    method: ProbeMethod = "logistic",
    C: float = DEFAULT_C,
) -> LinearProbe:
    """Fit a probe that tells label 1 from label 0; the keywords say where activations come from.

    Args:
        labels: 1 for a false premise, 0 for its twin.
        method: ``logistic`` regression, or ``mean_difference`` of the classes.
        C: inverse strength of the L2 penalty, on standardised activations.

    Raises:
        UserError: activations that are not finite, labels other than 0 and 1, or of one class only.
    """
    check_place(hook, position)
    weight, bias = fit_direction(activations, labels, method=method, C=C)
    return LinearProbe(weight.float(), bias, layer, hook, position, fingerprint, head, prompting)


def fit_direction(
    activations: Float[Tensor, "prompt d_model"],
    labels: Int[Tensor, " prompt"],
    *,
    method: ProbeMethod = "logistic",
    C: float = DEFAULT_C,
    counts: Float[Tensor, " prompt"] | None = None,
) -> tuple[Float[Tensor, " d_model"], float]:
    """Weight (float64) and bias of the probe, in the space of the raw activations.

    ``counts`` says how much each prompt counts in the logistic loss; 1 by default.
    """
    check_labelled(activations, labels)
    check_choice("method", method, get_args(ProbeMethod))
    if C <= 0:
        raise UserError(f"C must be above zero, got {C}")
    raw, classes = activations.detach().cpu().double().numpy(), labels.cpu().numpy()
    scale = preprocessing.StandardScaler()
    standard = scale.fit_transform(raw)
    features, direction = standard, None
    if method == "mean_difference":
        difference = standard[classes == 1].mean(axis=0) - standard[classes == 0].mean(axis=0)
        # Of length one; where the means are equal there is no direction, and the weight is zero.
        direction = difference / (np.linalg.norm(difference) or 1.0)
        features = standard @ direction[:, None]
    regression = linear_model.LogisticRegression(C=C, max_iter=MAX_ITERATIONS)
    regression.fit(features, classes, None if counts is None else counts.cpu().double().numpy())
    # w·(x − mean)/scale + b  =  (w/scale)·x + (b − (w/scale)·mean)
    found = regression.coef_[0] if direction is None else regression.coef_[0, 0] * direction
    weight = torch.from_numpy(found / scale.scale_)
    bias = float(np.ravel(regression.intercept_)[0]) - float(weight @ torch.from_numpy(scale.mean_))
    return weight, bias


def check_labelled(
    activations: Float[Tensor, "prompt d_model"], labels: Int[Tensor, " prompt"]
) -> None:
    """Raise UserError unless a probe can be fitted or scored on these."""
    if len(activations) != len(labels):
        raise UserError(
            f"{len(activations)} activations but {len(labels)} labels: give one for each"
        )
    if not bool(torch.isfinite(activations).all()):
        bad = int((~torch.isfinite(activations)).any(dim=1).nonzero()[0])
        raise UserError(f"the activations of prompt {bad} are not finite: leave it out, or mend it")
    found = set(labels.tolist())
    if found - {0, 1}:
        raise UserError(f"labels are 0 and 1, not {min(found - {0, 1})}")
    if len(found) < 2:
        only = f"only label {found.pop()} occurs" if found else "there are no prompts"
        raise UserError(f"{only}: a probe needs prompts of both classes, 0 and 1")
