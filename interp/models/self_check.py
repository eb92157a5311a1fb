"""Self-check of a hooked model: a short prompt, run by transformers and through the hooks.

TransformerLens computes parts of many architectures anew, and a hook point can exist without
being read. So every model runs one short prompt when it is loaded, and each part is compared with
the transformers model itself:

* ``logits``: the hooked model gives transformers' logits;
* ``output``: a value written at one head's ``hook_z`` moves the logits as the same value does at
  the input of the output projection of transformers' own module;
* ``attention``: one head cut off one key moves the logits as it does through the mask that
  transformers' own attention adds to its scores, or where that module takes its softmax;
* ``residual``: the outputs of attention and MLP add up to what a layer adds to its input;
* ``continuation``: a prompt in two pieces, with a cache, gives the logits of the whole prompt;
* ``padding``: padding on the left changes nothing.

``output``, ``attention`` and ``residual`` are checked in the middle layer and in one layer of
every other kind. At first all parts run together: each edit in its own row of a batch, behind
padding, in two pieces. A model that is right takes four short passes so. If anything differs,
each part runs alone. Quantized projections do not round their inputs (`interp.quantized`).

A part that fails is refused, with the reason, by the code that needs it
(`interp.models.model_check.require`); the other parts can be used. Without ``continuation``
prompts run whole, and without ``padding`` only with prompts of the same length, which costs time
and changes no result.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from interp.files.text import one_line
from interp.models.call import call_model
from interp.models.hooked_model import HookedModel
from interp.models.model_check import ModelCheck, Part
from interp.models.placement import input_device
from interp.models.reference_edits import KEY, adding, cut_edges, cutting_mask, cutting_softmax
from interp.models.transformers_modules import TransformersModules
from interp.models.versions import wraps_transformers
from interp.quantized import unrounded

logger = logging.getLogger(__name__)

PROMPT_TOKENS = 6
PADDING = 2
_EDITED_AT: dict[Literal["output", "attention"], str] = {
    "output": "hook_z",
    "attention": "hook_attn_scores",
}
_IN_ORDER = ("resid_pre", "attn_out", "mlp_out", "resid_post")
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
"""Of logits, relative to the largest; transformers computes softmax in float32 in any model."""
HALF_PRECISION_TOLERANCE = 5e-2
"""Of logits, relative to the largest; two attention kernels differ by that much in bfloat16."""


def trial_tokens(hf_model: Any) -> Int[Tensor, "prompt pos"]:
    """The self-check's prompt: tokens spread over the vocabulary, no two the same."""
    n_tokens = int(hf_model.get_input_embeddings().weight.shape[0])
    step = max(1, n_tokens // (PROMPT_TOKENS + 3))
    ids = (torch.arange(2, PROMPT_TOKENS + 2) * step).clamp(max=n_tokens - 1)
    return ids[None].to(input_device(hf_model))


@torch.no_grad()
def trial_logits(hf_model: Any) -> Float[Tensor, "prompt pos d_vocab"] | None:
    """A transformers model's logits on the prompt, before anything wraps it.

    None where the model itself cannot run it, or gives NaN: whoever runs it is told then.
    """
    tokens = trial_tokens(hf_model)
    try:
        with unrounded(hf_model):
            logits = _all_logits(hf_model, tokens)
    except Exception as error:  # a model in the making raises anything; it is not for here to tell
        logger.info("the self-check cannot run the model: %s", one_line(error))
        return None
    return logits if bool(torch.isfinite(logits).all()) else None


@torch.no_grad()
def check_model(
    model: HookedModel, expected: Float[Tensor, "prompt pos d_vocab"] | None
) -> ModelCheck:
    """Compare every part of a bridge with transformers.

    Args:
        expected: what `trial_logits` gave before the model was wrapped; with None nothing can be
            compared, and nothing is refused.
    """
    if expected is None or not wraps_transformers(model):
        return ModelCheck()  # TransformerLens 3 computes all by itself, and is checked when made
    with unrounded(model.original_model):
        return _Trial(model, expected).run()


@dataclass(frozen=True)
class _Edit:
    """One head of a layer, changed in one row of the batch; row 0 is the bare prompt."""

    part: Literal["output", "attention"]
    layer: int
    row: int

    @property
    def name(self) -> str:
        """The hook point that it is made at."""
        return f"blocks.{self.layer}.attn.{_EDITED_AT[self.part]}"


class _Trial:
    """The state of one self-check."""

    def __init__(self, model: HookedModel, expected: Tensor) -> None:
        self.model, self.expected = model, expected
        self.tokens = trial_tokens(model.original_model)
        relative = _TOLERANCE.get(expected.dtype, HALF_PRECISION_TOLERANCE)
        self.tolerance = relative * (float(expected.abs().max()) + 1.0)
        self.problems: dict[str, str] = {}
        self.outputs: tuple[int, ...] = ()
        self.unhooked_outputs: tuple[int, ...] = ()

    def run(self) -> ModelCheck:
        layers = self._layers_of_each_kind()
        edits = [
            edit
            for layer in layers
            for part in _EDITED_AT
            if (edit := _Edit(part, layer, 1)).name in self.model.hook_dict
        ]
        if not self._all_right(edits, layers):
            self._run_each(edits, layers)
        return ModelCheck(self.problems, self.outputs, self.unhooked_outputs)

    def _all_right(self, edits: Sequence[_Edit], layers: Sequence[int]) -> bool:
        """Whether all parts are right when all edits run at once."""
        rows = [replace(edit, row=row) for row, edit in enumerate(edits, start=1)]
        try:
            unhooked = TransformersModules(self.model)
            self._check_edits(rows, unhooked, layers, padding=PADDING)
        except Exception as error:  # a model that cannot do it raises anything, from anywhere
            logger.debug("the self-check runs each part alone: %s", one_line(error))
            return False
        return True

    def _run_each(self, edits: Sequence[_Edit], layers: Sequence[int]) -> None:
        """Check every part alone, and keep the problems."""
        self._try("logits", self._check_edits, (), None)
        if "logits" in self.problems:
            return
        unhooked = self._unhooked()
        self._try("continuation", self._check_continuation)
        self._try("padding", self._check_padding)
        for layer in layers:
            self._try("residual", self._check_edits, (), None, [layer])
        for edit in edits:
            self._try(edit.part, self._check_edits, [edit], unhooked)

    def _try(self, part: Part, check: Callable[..., Any], *arguments: Any) -> None:
        """Run a check unless its part has failed; what it raises becomes the part's problem."""
        if part in self.problems:
            return
        try:
            check(*arguments)
        except _Differs as difference:
            self.problems[part] = str(difference)
        except Exception as error:  # a model that cannot do it raises anything, from anywhere
            self.problems[part] = f"{type(error).__name__}: {one_line(error)}"

    def _unhooked(self) -> TransformersModules | None:
        """Transformers' own modules; None if they do not run as they did before being wrapped."""
        try:
            unhooked = TransformersModules(self.model)
            self._compare(self._unhooked_logits(unhooked, 1), self.expected, "logits")
        except Exception as error:  # then edits can only be seen to move something
            logger.info("the self-check has no unhooked model: %s", one_line(error))
            self.unhooked_outputs = ()
            return None
        return unhooked

    def _check_edits(
        self,
        edits: Sequence[_Edit],
        unhooked: TransformersModules | None,
        residual: Sequence[int] = (),
        padding: int = 0,
    ) -> None:
        """Compare the bare prompt and every edit with transformers, and the sums of some layers.

        With ``padding`` the hooked model runs behind it and in two pieces.
        """
        change: dict[_Edit, Tensor] = {}
        shown: dict[str, Tensor] = {}
        hooks = [(edit.name, self._writer(edit, change, KEY + padding)) for edit in edits]
        for layer in residual:
            names = self._residual_names(layer)
            hooks += [(name, partial(_keep, name=name, shown=shown)) for name in names]
        logits = self._hooked_logits(hooks, 1 + len(edits), padding)
        self._compare(logits[:1], self.expected, "logits")
        for layer in residual:
            self._check_residual(layer, shown)
        for edit in edits:
            if edit not in change:
                raise _Differs(f"{edit.name} is never run")
        compared = [edit for edit in edits if self._reference(unhooked, edit) is not None]
        for edit in edits:
            if edit not in compared and torch.equal(logits[edit.row], self.expected[0]):
                raise _Differs(f"what is written at {edit.name} moves nothing")
        if unhooked is None:
            return
        right = self._edited_in_transformers(unhooked, compared, change, 1 + len(edits))
        self._compare(right[:1], self.expected, "logits")
        for edit in compared:
            row = slice(edit.row, edit.row + 1)
            self._compare(logits[row], right[row], f"with an edit at {edit.name} the logits")

    def _writer(self, edit: _Edit, change: dict[_Edit, Tensor], key: int) -> Callable[..., Tensor]:
        """A hook function that makes the edit at a position in its row, and keeps what it adds.

        The position lies in the first piece of the prompt.
        """
        n_heads = self.model.cfg.n_heads

        def write(z: Tensor, hook: Any) -> Tensor:
            if z.ndim != 4 or z.shape[2] != n_heads:
                raise _Differs(f"layer {edit.layer} shows its heads' outputs as {tuple(z.shape)}")
            if edit in change:
                return z
            value = 1.0 + 3.0 * z.float().std().to(z.dtype)
            whole = z.new_zeros(z.shape[0], self.tokens.shape[1], *z.shape[2:])
            whole[edit.row, KEY, -1] = value
            change[edit] = whole
            written = z.clone()
            written[edit.row, key, -1] += value
            return written

        def cut(scores: Tensor, hook: Any) -> Tensor:
            if scores.ndim != 4 or scores.shape[1] != n_heads:
                raise _Differs(
                    f"layer {edit.layer} shows its attention scores as {tuple(scores.shape)}"
                )
            change[edit] = torch.zeros_like(scores[:0])
            edges = cut_edges(scores, edit.row, key)
            return scores.masked_fill(edges, torch.finfo(scores.dtype).min)

        return write if edit.part == "output" else cut

    def _edited_in_transformers(
        self,
        unhooked: TransformersModules,
        edits: Sequence[_Edit],
        change: dict[_Edit, Tensor],
        rows: int,
    ) -> Tensor:
        """The logits with the same edits made in transformers' own modules."""
        for way in (cutting_mask, cutting_softmax):
            used: list[list[bool]] = []
            with ExitStack() as stack:
                for edit in edits:
                    module = self._reference(unhooked, edit)
                    if edit.part == "output":
                        stack.enter_context(adding(module, change[edit]))
                    else:
                        cutting = way(module, self.model.cfg.n_heads, edit.row)
                        used.append(stack.enter_context(cutting))
                try:
                    logits = self._unhooked_logits(unhooked, rows)
                except ValueError:  # XGLM looks at the mask's shape before it uses it
                    continue
            if all(used):
                return logits
        names = {type(self._reference(unhooked, edit)).__name__ for edit in edits}
        raise _Differs(f"{', '.join(sorted(names))} cannot be cut to compare with")

    def _reference(self, unhooked: TransformersModules | None, edit: _Edit) -> Any:
        """The module of transformers in which an edit is repeated; None if there is none."""
        attention = getattr(self.model.blocks[edit.layer], "attn", None)
        component = attention if edit.part == "attention" else getattr(attention, "o", None)
        return None if unhooked is None or component is None else unhooked.of(component)

    def _residual_names(self, layer: int) -> list[str]:
        """The hook points of a layer's sum; none for a layer whose parts are not patched."""
        names = [f"blocks.{layer}.hook_{part}" for part in _IN_ORDER]
        return names if all(name in self.model.hook_dict for name in names) else []

    def _check_residual(self, layer: int, shown: dict[str, Tensor]) -> None:
        names = self._residual_names(layer)
        if not names:
            return
        # Where layers are on several devices, a layer's input is on that of the layer before.
        before, attention, mlp, after = (shown[name].cpu() for name in names)
        if mlp.shape != before.shape or attention.shape != before.shape:
            return  # shown in a shape that cannot be patched, which says so itself
        difference = float((before + attention + mlp - after).abs().max())
        relative = 10 * _TOLERANCE.get(self.expected.dtype, HALF_PRECISION_TOLERANCE)
        if not difference <= relative * (float(after.abs().max()) + 1.0):
            raise _Differs(f"layer {layer} adds something else: they differ by {difference:.2g}")

    def _check_continuation(self) -> None:
        last = self._in_two_pieces(padding=0)[1][:, -1]
        self._compare(last, self.expected[:, -1], "the last logits")

    def _check_padding(self) -> None:
        logits = call_model(self.model.original_model, *self._padded(PADDING))
        self._compare(logits[:, -1], self.expected[:, -1], "the last logits")

    def _padded(self, padding: int) -> tuple[Tensor, Tensor]:
        """Tokens and mask with padding on the left."""
        tokens = nn.functional.pad(self.tokens, (padding, 0))
        return tokens, nn.functional.pad(torch.ones_like(self.tokens), (padding, 0)).bool()

    def _hooked_logits(
        self, hooks: list[tuple[str, Callable[..., Any]]], rows: int, padding: int
    ) -> Float[Tensor, "row pos d_vocab"]:
        hf_model = self.model.original_model
        with self.model.hooks(fwd_hooks=hooks), _output_lengths(list(self.model.blocks)) as lengths:
            if padding:
                logits = torch.cat(self._in_two_pieces(padding, rows), 1)[:, padding:]
            else:
                logits = _all_logits(hf_model, self.tokens.repeat(rows, 1))
        self.outputs = tuple(lengths)
        return logits

    def _in_two_pieces(self, padding: int, rows: int = 1) -> list[Float[Tensor, "row pos d_vocab"]]:
        """The logits of the padded prompt's first half, and of the second by the cache of it."""
        tokens, mask = (tensor.repeat(rows, 1) for tensor in self._padded(padding))
        half = tokens.shape[1] // 2
        cache, hf_model = DynamicCache(), self.model.original_model
        first = call_model(hf_model, tokens[:, :half], mask[:, :half], cache=cache, keep=half)
        if len(cache.layers) != len(self.model.blocks) or cache.get_seq_length() != half:
            raise _Differs("it keeps no keys and values of every layer")
        rest = tokens.shape[1] - half
        return [first, call_model(hf_model, tokens[:, half:], mask, cache=cache, keep=rest)]

    def _unhooked_logits(
        self, unhooked: TransformersModules, rows: int
    ) -> Float[Tensor, "row pos d_vocab"]:
        with _output_lengths([unhooked.of(block) for block in self.model.blocks]) as lengths:
            logits = _all_logits(unhooked.root, self.tokens.repeat(rows, 1))
        self.unhooked_outputs = tuple(lengths)
        return logits

    def _compare(self, found: Tensor, right: Tensor, what: str) -> None:
        """Raise if logits are not those of transformers, or are not moved where those are."""
        difference = float((found.float() - right.float()).abs().max())
        expected = self.expected if right.ndim == 3 else self.expected[:, -1]
        moved = float((right.float() - expected.float()).abs().max())
        close = min(self.tolerance, moved / 2) if moved > self.tolerance / 8 else self.tolerance
        if not difference <= close:
            raise _Differs(f"{what} differ from those of transformers by {difference:.2g}")

    def _layers_of_each_kind(self) -> list[int]:
        """The middle layer, and one layer of every other kind."""
        blocks = self.model.blocks
        middle = len(blocks) // 2
        kinds: dict[tuple[str, ...], int] = {}
        for layer in [middle, *range(len(blocks))]:
            kind = tuple(
                type(getattr(blocks[layer], part, None)).__name__
                for part in ("original_component", "attn", "linear_attn", "mamba", "mixer", "mlp")
            ) + tuple(sorted(name for name, _ in blocks[layer].named_children()))
            kinds.setdefault(kind, layer)
        return list(kinds.values())


class _Differs(Exception):
    """A part of the hooked model is not transformers'."""


def _all_logits(hf_model: Any, tokens: Tensor) -> Float[Tensor, "prompt pos d_vocab"]:
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return call_model(hf_model, tokens, mask, keep=tokens.shape[1])


def _keep(value: Tensor, hook: Any, *, name: str, shown: dict[str, Tensor]) -> None:
    """A hook function that keeps the bare prompt's values, in float32, of all pieces."""
    new = value[:1].detach().float()
    shown[name] = torch.cat([shown[name], new], 1) if name in shown else new.clone()


@contextmanager
def _output_lengths(blocks: Sequence[Any]) -> Iterator[list[int]]:
    """How many values each block returned as a tuple; 0 for a tensor."""
    lengths = [0] * len(blocks)

    def note(layer: int, module: Any, args: Any, output: Any) -> None:
        lengths[layer] = len(output) if isinstance(output, tuple) else 0

    with ExitStack() as stack:
        for layer, block in enumerate(blocks):
            stack.enter_context(block.register_forward_hook(partial(note, layer)))
        yield lengths
