"""Grids of linear probes for false premises: layer × position, and layer × head.

Every cell is a probe of its own, fitted on the search part and scored on held-out subjects and
templates. Its cross-validated score within the search part is given too, to choose a cell by. All
layers and positions are read in one forward pass over the prompts, and kept on disk
(`probes.store`).
"""

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.probe_scores import grid_figure
from interp.lazy import go, pd
from interp.models import fingerprint
from interp.models.hooked_model import HookedModel
from interp.premises import Premises, Question, Split
from interp.premises.encode import encode_premises
from interp.progress import progress_bar
from probes.activation_reader import ActivationHook, TokensToRead, chosen_layers
from probes.activations import Position, PremiseKind, check_place, positions_read
from probes.labelled_activations import LabelledActivations, objects_of_pairs
from probes.layers import check_residual_place, fit_and_score
from probes.linear import DEFAULT_C, ProbeMethod
from probes.store import ActivationStore, store_activations

POSITIONS: tuple[Position, ...] = ("subject", "object", "object_mean", "last")
KINDS: tuple[PremiseKind, ...] = ("false", "twin")


@dataclass(frozen=True, eq=False)
class ProbeGrid(Displayed):
    """One probe's scores in each cell of a map.

    Attributes:
        table: one row a cell: layer, place, auc, ci_low, ci_high, accuracy, accuracy_low,
            accuracy_high, search_auc, n_subjects. ``place`` is a position's name, or a head.
        axis: what ``place`` is.
        hook: where in the block.
        position: at which token, for a map of heads; None for one of positions.
        method: how the probes were fitted.
    """

    table: "pd.DataFrame"
    axis: str
    hook: ActivationHook
    position: Position | None
    method: ProbeMethod

    def __post_init__(self) -> None:
        if self.axis not in ("position", "head"):
            raise UserError(f"unknown axis {self.axis!r}; known: position, head")
        if self.table.empty:
            raise UserError("a map needs at least one cell")

    @property
    def best(self) -> "pd.Series":
        """The cell with the highest cross-validated search AUC; the lowest layer of equals."""
        order = ["search_auc", "layer"]
        return self.table.sort_values(order, ascending=[False, True]).iloc[0]

    def to_dataframe(self) -> "pd.DataFrame":
        """A copy of the table, with the axis' own name for ``place``."""
        return self.table.rename(columns={"place": self.axis})

    def plot(self) -> "go.Figure":
        """A heat map of the held-out AUC."""
        return grid_figure(self.to_dataframe(), axis=self.axis, hook=self.hook)

    def _shown(self) -> Shown:
        best = self.best
        words = (
            f"Probes of {self.hook}, layer × {self.axis}; best in the search part: layer "
            f"{best['layer']}, {self.axis} {best['place']}, AUC {best['auc']:.3f} held out."
        )
        return Shown(words, (self.to_dataframe(),), self.plot)


@checked
def probe_grid(
    model: HookedModel,
    search: Premises,
    held_out: Premises,
    *,
    positions: Sequence[Position] = POSITIONS,
    layers: Sequence[int] | None = None,
    hook: ActivationHook = "resid_post",
    method: ProbeMethod = "logistic",
    C: float = DEFAULT_C,
    folder: Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ProbeGrid:
    """Probes at every layer and position.

    Args:
        search, held_out: the parts of a split, which share no subject or template.
        folder: keeps the activations for another call; by default a temporary one.

    Raises:
        UserError: parts that share something, an unknown hook or position, hook ``z`` (use
            `probe_heads`), or too few subjects or objects to cross-validate.
    """
    for position in positions:
        check_residual_place(hook, position)
    if not positions:
        raise UserError("no positions are chosen: name at least one")
    fitting: dict[str, Any] = {"method": method, "C": C, "seed": seed}
    reading: dict[str, Any] = {"layers": layers, "folder": folder, "progress": progress}
    return _grid(model, (search, held_out), positions, hook=hook, **reading, **fitting)


@checked
def probe_heads(
    model: HookedModel,
    search: Premises,
    held_out: Premises,
    *,
    position: Position = "object",
    layers: Sequence[int] | None = None,
    method: ProbeMethod = "logistic",
    C: float = DEFAULT_C,
    folder: Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> ProbeGrid:
    """Probes on every head's output (hook ``z``) at one position; otherwise like `probe_grid`."""
    check_place("z", position)
    fitting: dict[str, Any] = {"method": method, "C": C, "seed": seed}
    reading: dict[str, Any] = {"layers": layers, "folder": folder, "progress": progress}
    return _grid(model, (search, held_out), [position], hook="z", **reading, **fitting)


def _grid(
    model: HookedModel,
    split: tuple[Premises, Premises],
    positions: Sequence[Position],
    *,
    hook: ActivationHook,
    layers: Sequence[int] | None,
    folder: Path | None,
    progress: bool,
    **fitting: Any,
) -> ProbeGrid:
    """A cell for each layer and position or, for hook ``z``, for each layer and head."""
    Split(*split)  # raises if the parts share a subject or a template
    prompts: list[TokensToRead] = []
    parts = [_add_prompts(prompts, model, premises, positions=positions) for premises in split]
    objects = objects_of_pairs(parts[0].questions)
    chosen, rows = chosen_layers(model, layers), []
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = store_activations(
            model, prompts, folder, hooks=[hook], layers=chosen, progress=progress
        )
        places = [(layer, position) for layer in chosen for position in positions]
        fitting["fingerprint"] = fingerprint(model)
        for layer, position in progress_bar(places, description="probes", shown=progress):
            values = [part.read(store, layer, hook=hook, position=position) for part in parts]
            for head in range(values[0].shape[1]) if hook == "z" else (None,):
                fitted, scored = (
                    part.labelled(read if head is None else read[:, head])
                    for part, read in zip(parts, values, strict=True)
                )
                place = {"layer": layer, "hook": hook, "position": position, "head": head}
                _, scores = fit_and_score(fitted, scored, objects, **place, **fitting)
                name = position if head is None else head
                rows.append({"layer": layer, "place": name, **scores})
    table = pd.DataFrame(rows).assign(n_subjects=len(split[1].subjects))
    axis, position = ("head", positions[0]) if hook == "z" else ("position", None)
    return ProbeGrid(table, axis, hook, position, fitting["method"])


@dataclass(frozen=True, eq=False)
class _Part:
    """One part of a split: its questions, and the rows of its prompts in the store.

    Attributes:
        rows: by position, one entry a prompt: false-premise prompts and then twins.
    """

    questions: tuple[Question, ...]
    rows: dict[Position, list[list[int]]]

    def read(
        self, store: ActivationStore, layer: int, *, hook: ActivationHook, position: Position
    ) -> Float[Tensor, "prompt ..."]:
        """The activations of each prompt, averaged over the tokens of its position."""
        spans = self.rows[position]
        rows = torch.tensor([row for span in spans for row in span])
        values = store.read(layer, hook=hook, rows=rows)
        sizes = [len(span) for span in spans]
        return torch.stack([of_prompt.mean(dim=0) for of_prompt in values.split(sizes)])

    def labelled(self, values: Float[Tensor, "prompt width"]) -> LabelledActivations:
        """With labels and subjects."""
        subjects = [question.subject for question in self.questions]
        false, twin = values.chunk(2)
        return LabelledActivations.from_pairs(false, twin, subjects)


def _add_prompts(
    prompts: list[TokensToRead],
    model: HookedModel,
    premises: Premises,
    *,
    positions: Sequence[Position],
) -> _Part:
    """Append one part's prompts, each with all positions that are read in it."""
    items = encode_premises(model.tokenizer, premises).items
    rows: dict[Position, list[list[int]]] = {position: [] for position in positions}
    first = sum(len(prompt.positions) for prompt in prompts)
    for prompt in (item.prompt(kind) for kind in KINDS for item in items):
        spans = [positions_read(prompt, position) for position in positions]
        union = sorted({token for span in spans for token in span})
        for position, span in zip(positions, spans, strict=True):
            rows[position].append([first + union.index(token) for token in span])
        prompts.append(TokensToRead(prompt.tokens, tuple(union)))
        first += len(union)
    return _Part(tuple(item.question for item in items), rows)
