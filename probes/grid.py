"""Maps of where a false premise can be read: layer × position, and layer × head.

Every cell is a probe of its own, fitted on the search part and scored on other subjects and other
templates; beside it stands its cross-validated score within the search part, by which a cell may
be chosen. All layers, hooks and positions come from one forward pass over the prompts, kept on
disk (`probes.store`).
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.checked import checked
from interp.display import Displayed, Shown
from interp.errors import UserError
from interp.figures.probe_scores import grid_figure
from interp.models import fingerprint
from interp.models.hooked_model import HookedModel
from interp.premises import Premises, Split
from interp.premises.encode import EncodedPremise, encode_premises
from interp.progress import progress_bar
from probes.activation_reader import ActivationHook, TokensToRead, chosen_layers
from probes.activations import Position, PremiseKind, check_place, positions_read
from probes.labelled_activations import LabelledActivations
from probes.layers import score_place
from probes.linear import DEFAULT_C, LinearProbe, ProbeMethod, fit_probe
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

    table: pd.DataFrame
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
    def best(self) -> pd.Series:
        """The cell with the highest cross-validated search AUC; the lowest layer of equals."""
        order = ["search_auc", "layer"]
        return self.table.sort_values(order, ascending=[False, True]).iloc[0]

    def to_dataframe(self) -> pd.DataFrame:
        """A copy of the table, with the axis' own name for ``place``."""
        return self.table.rename(columns={"place": self.axis})

    def plot(self) -> go.Figure:
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
        UserError: parts that share something, an unknown hook or position, hook ``z`` (which is
            `probe_heads`'), or too few subjects or objects to cross-validate.
    """
    for position in positions:
        check_place(hook, position)
    if hook == "z":
        raise UserError("hook 'z' has one vector a head: use probes.probe_heads")
    if not positions:
        raise UserError("no positions are chosen: name at least one")
    rows = []
    with _collected(model, search, held_out, positions, hook, layers, folder, progress) as found:
        cells: list[tuple[int, Position]] = [
            (layer, position) for layer in found.store.layers for position in positions
        ]
        for layer, position in progress_bar(cells, description="probes", shown=progress):
            parts = [
                found.part(part, position, found.read(layer, part, position, hook))
                for part in ("search", "held_out")
            ]
            place = {"layer": layer, "place": position}
            rows.append(
                {**place, **_cell(found, parts, layer, hook, position, None, method, C, seed)}
            )
    return ProbeGrid(_table(rows, held_out), "position", hook, None, method)


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
    """Probes on every head's output (hook ``z``) at one position; else as `probe_grid`."""
    check_place("z", position)
    rows = []
    with _collected(model, search, held_out, [position], "z", layers, folder, progress) as found:
        for layer in progress_bar(found.store.layers, description="probes", shown=progress):
            read = {part: found.read(layer, part, position, "z") for part in ("search", "held_out")}
            for head in range(read["search"].shape[1]):
                parts = [found.part(part, position, read[part][:, head]) for part in read]
                place = {"layer": layer, "place": head}
                rows.append(
                    {**place, **_cell(found, parts, layer, "z", position, head, method, C, seed)}
                )
    return ProbeGrid(_table(rows, held_out), "head", "z", position, method)


def _cell(
    found: "_Collected",
    parts: list[LabelledActivations],
    layer: int,
    hook: ActivationHook,
    position: Position,
    head: int | None,
    method: ProbeMethod,
    C: float,
    seed: int,
) -> dict[str, float]:
    fitted, scored = parts
    probe: LinearProbe = fit_probe(
        fitted.activations,
        fitted.labels,
        layer=layer,
        fingerprint=found.fingerprint,
        hook=hook,
        position=position,
        head=head,
        method=method,
        C=C,
    )
    return score_place(
        probe, fitted, scored, found.objects["search"], method=method, C=C, seed=seed
    )


def _table(rows: list[dict[str, Any]], held_out: Premises) -> pd.DataFrame:
    return pd.DataFrame(rows).assign(n_subjects=len(held_out.subjects))


@dataclass(frozen=True, eq=False)
class _Collected:
    """Activations of both parts of a split, false-premise prompts and then twins of each."""

    store: ActivationStore
    fingerprint: str
    spans: dict[str, list[dict[str, tuple[int, ...]]]]
    """By part, for each prompt its positions by name."""
    offset: dict[str, int]
    """By part, its first prompt in the store."""
    subjects: dict[str, tuple[str, ...]]
    objects: dict[str, tuple[str, ...]]

    def read(
        self, layer: int, part: str, position: str, hook: ActivationHook
    ) -> Float[Tensor, "prompt ..."]:
        """One value a prompt: that of its position, or the mean over several."""
        row_of = {
            (prompt, token): row
            for row, (prompt, token) in enumerate(
                zip(self.store.prompt.tolist(), self.store.token.tolist(), strict=True)
            )
        }
        spans = [one[position] for one in self.spans[part]]
        rows = [
            row_of[self.offset[part] + index, token]
            for index, span in enumerate(spans)
            for token in span
        ]
        values = self.store.read(layer, hook=hook, rows=torch.tensor(rows))
        sizes = [len(span) for span in spans]
        return torch.stack([one.mean(dim=0) for one in values.split(sizes)])

    def part(
        self, part: str, position: str, values: Float[Tensor, "prompt width"]
    ) -> LabelledActivations:
        """With labels and subjects: the first half are false premises."""
        labels: Int[Tensor, " prompt"] = torch.zeros(len(values), dtype=torch.long)
        labels[: len(values) // 2] = 1
        return LabelledActivations(values, labels, self.subjects[part])


@contextlib.contextmanager
def _collected(
    model: HookedModel,
    search: Premises,
    held_out: Premises,
    positions: Sequence[Position],
    hook: ActivationHook,
    layers: Sequence[int] | None,
    folder: Path | None,
    progress: bool,
) -> Iterator[_Collected]:
    Split(search, held_out)  # refuses parts that share a subject or a template
    chosen = chosen_layers(model, layers)
    prompts: list[TokensToRead] = []
    spans: dict[str, list[dict[str, tuple[int, ...]]]] = {}
    offset, subjects, objects = {}, {}, {}
    for part, premises in (("search", search), ("held_out", held_out)):
        items = encode_premises(model.tokenizer, premises).items
        offset[part], spans[part] = len(prompts), []
        for kind in KINDS:
            for item in items:
                prompt = item.prompt(kind)
                read = {position: positions_read(prompt, position) for position in positions}
                spans[part].append(read)
                union = tuple(sorted({token for span in read.values() for token in span}))
                prompts.append(TokensToRead(prompt.tokens, union))
        subjects[part] = tuple(item.question.subject for item in items) * 2
        objects[part] = _objects(items)
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = store_activations(
            model, prompts, folder, hooks=[hook], layers=chosen, progress=progress
        )
        yield _Collected(store, fingerprint(model), spans, offset, subjects, objects)


def _objects(items: Sequence[EncodedPremise]) -> tuple[str, ...]:
    """What each prompt names: the false objects, then the true ones."""
    return tuple(item.question.false_object for item in items) + tuple(
        item.question.true_object for item in items
    )
