"""What of a hooked model can be relied on: a short prompt, run by transformers and through hooks.

TransformerLens computes parts of many architectures anew, and a hook point can be shown without
being read. So every model runs one short prompt when it is loaded, and each part is compared with
the transformers model itself:

* ``logits``: the hooked model gives transformers' logits;
* ``output``: a value written at one head's ``hook_z`` moves the logits as the same value does at
  the input of the output projection of transformers' own module;
* ``attention``: one head cut off one key moves the logits as it does through the mask that
  transformers' own attention adds to its scores, or where that module takes its softmax;
* ``residual``: what attention and MLP show as theirs is what a layer adds to its input;
* ``continuation``: a prompt in two pieces, with a cache, gives the logits of the whole prompt;
* ``padding``: padding on the left changes nothing.

``output``, ``attention`` and ``residual`` are looked at in the middle layer and in one layer of
every other kind. A part that fails is refused, with the reason, by whoever needs it
(`interp.models.model_check.require`); the rest can be used.
Without ``continuation`` prompts run whole, and without ``padding`` together with prompts of the
same length only: that costs time and nothing else.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.cache_utils import DynamicCache

from interp.files.text import one_line
from interp.models.call import call_model
from interp.models.hooked_model import HookedModel
from interp.models.model_check import ModelCheck, Part
from interp.models.transformers_modules import TransformersModules
from interp.models.versions import wraps_transformers

logger = logging.getLogger(__name__)

PROMPT_TOKENS = 16
KEY = 1
"""The column that is cut off, and that is written to."""
PADDING = 3
_IN_ORDER = ("resid_pre", "attn_out", "mlp_out", "resid_post")
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}
HALF_PRECISION_TOLERANCE = 5e-2
"""Of logits, relative to the largest; two attention kernels differ by that much in bfloat16."""


def trial_tokens(hf_model: Any) -> Int[Tensor, "prompt pos"]:
    """The self-check's prompt: tokens spread over the vocabulary, no two the same."""
    n_tokens = int(hf_model.get_input_embeddings().weight.shape[0])
    step = max(1, n_tokens // (PROMPT_TOKENS + 3))
    ids = (torch.arange(2, PROMPT_TOKENS + 2) * step).clamp(max=n_tokens - 1)
    return ids[None].to(hf_model.get_input_embeddings().weight.device)


@torch.no_grad()
def trial_logits(hf_model: Any) -> Float[Tensor, "prompt pos d_vocab"] | None:
    """A transformers model's logits on the prompt, before anything wraps it.

    None where the model itself cannot run it, or gives NaN: whoever runs it is told then.
    """
    tokens = trial_tokens(hf_model)
    try:
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
    return _Trial(model, expected).run()


class _Trial:
    """One self-check as it goes on."""

    def __init__(self, model: HookedModel, expected: Tensor) -> None:
        self.model, self.expected = model, expected
        self.tokens = trial_tokens(model.original_model)
        relative = _TOLERANCE.get(expected.dtype, HALF_PRECISION_TOLERANCE)
        self.tolerance = relative * (float(expected.abs().max()) + 1.0)
        self.problems: dict[str, str] = {}

    def run(self) -> ModelCheck:
        found = self._try("logits", self._check_logits)
        if "logits" in self.problems:
            return ModelCheck(self.problems)
        unhooked, plain = self._unhooked()
        if not self._continues_padded():  # then which of the two it is that goes wrong
            self._try("continuation", self._check_continuation)
            self._try("padding", self._check_padding)
        for layer in self._layers_of_each_kind():
            if "residual" not in self.problems:
                self._try("residual", self._check_residual, layer)
            if "output" not in self.problems:
                self._try("output", self._check_output, layer, unhooked)
            if "attention" not in self.problems:
                self._try("attention", self._check_attention, layer, unhooked)
        return ModelCheck(self.problems, found or (), plain)

    def _try(self, part: Part, check: Callable[..., Any], *arguments: Any) -> Any:
        """What the check gives; a difference, or whatever it raises, becomes the part's problem."""
        try:
            return check(*arguments)
        except _Differs as difference:
            self.problems[part] = str(difference)
        except Exception as error:  # a model that cannot do it raises anything, from anywhere
            self.problems[part] = f"{type(error).__name__}: {one_line(error)}"
        return None

    def _check_logits(self) -> tuple[int, ...]:
        found: list[Tensor] = []
        outputs = self._tuple_outputs(list(self.model.blocks), lambda: found.append(self._logits()))
        self._compare(found[0], self.expected, "logits")
        return outputs

    def _continues_padded(self) -> bool:
        """Whether a prompt with padding, in two pieces, gives the logits of the bare whole one."""
        try:
            self._check_continuation(padding=PADDING)
        except Exception:  # a model that cannot do it raises anything, from anywhere
            return False
        return True

    def _check_continuation(self, padding: int = 0) -> None:
        tokens, mask = self._padded(padding)
        half = tokens.shape[1] // 2
        cache, hf_model = DynamicCache(), self.model.original_model
        call_model(hf_model, tokens[:, :half], mask[:, :half], cache=cache)
        if len(cache.layers) != len(self.model.blocks) or cache.get_seq_length() != half:
            raise _Differs("it keeps no keys and values of every layer")
        rest = call_model(hf_model, tokens[:, half:], mask, cache=cache)
        self._compare(rest[:, -1], self.expected[:, -1], "the last logits")

    def _check_padding(self) -> None:
        logits = call_model(self.model.original_model, *self._padded(PADDING))
        self._compare(logits[:, -1], self.expected[:, -1], "the last logits")

    def _padded(self, padding: int) -> tuple[Tensor, Tensor]:
        """Tokens and mask with so much padding on the left."""
        tokens = nn.functional.pad(self.tokens, (padding, 0))
        return tokens, nn.functional.pad(torch.ones_like(self.tokens), (padding, 0)).bool()

    def _check_output(self, layer: int, unhooked: TransformersModules | None) -> None:
        name = f"blocks.{layer}.attn.hook_z"
        point = self.model.hook_dict.get(name)
        if point is None:
            return
        change: list[Tensor] = []

        def write(z: Tensor, hook: Any) -> Tensor:
            if z.ndim != 4 or z.shape[2] != self.model.cfg.n_heads:
                raise _Differs(f"layer {layer} shows its heads' outputs as {tuple(z.shape)}")
            change.append(torch.zeros_like(z))
            change[0][:, KEY, -1] = 1.0 + 3.0 * z.float().std().to(z.dtype)
            return z + change[0]

        written = self._logits((name, write))
        projection = self._module(unhooked, layer, "o")
        if projection is None:
            self._moved(written, f"what is written at {name}")
            return
        with _adding(projection, lambda x: change[0].reshape(x.shape)):
            right = _all_logits(unhooked.root, self.tokens)  # type: ignore[union-attr]
        self._compare(written, right, f"with a value written at {name} the logits")

    def _check_attention(self, layer: int, unhooked: TransformersModules | None) -> None:
        name = f"blocks.{layer}.attn.hook_attn_scores"
        if name not in self.model.hook_dict:
            return
        seen: list[tuple[int, ...]] = []

        def cut(scores: Tensor, hook: Any) -> Tensor:
            seen.append(tuple(scores.shape))
            if scores.ndim != 4 or scores.shape[1] != self.model.cfg.n_heads:
                raise _Differs(f"layer {layer} shows its attention scores as {seen[0]}")
            return scores.masked_fill(_edges(scores), torch.finfo(scores.dtype).min)

        written = self._logits((name, cut))
        if not seen:
            raise _Differs(f"{name} is never run")
        attention = self._module(unhooked, layer, None)
        if attention is None:
            self._moved(written, f"what is written at {name}")
            return
        right = self._cut_in_transformers(unhooked, attention)
        self._compare(written, right, f"with one head cut off in layer {layer} the logits")

    def _check_residual(self, layer: int) -> None:
        names = [f"blocks.{layer}.hook_{one}" for one in _IN_ORDER]
        if any(name not in self.model.hook_dict for name in names):
            return  # a layer of another make, whose parts are not patched
        seen: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any, name: str) -> None:
            seen[name] = value.detach().float().clone()

        hooks = [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names]
        self._logits(*hooks)
        before, attention, mlp, after = (seen[name] for name in names)
        if mlp.shape != before.shape or attention.shape != before.shape:
            return  # shown in a shape that cannot be patched, which says so itself
        difference = float((before + attention + mlp - after).abs().max())
        relative = 10 * _TOLERANCE.get(self.expected.dtype, HALF_PRECISION_TOLERANCE)
        if not difference <= relative * (float(after.abs().max()) + 1.0):
            raise _Differs(f"layer {layer} adds something else: they differ by {difference:.2g}")

    def _cut_in_transformers(self, unhooked: Any, attention: nn.Module) -> Tensor:
        """The logits with the same edges cut in transformers' own module."""
        for way in (_cutting_mask, _cutting_softmax):
            with way(attention, self.model.cfg.n_heads) as used:
                try:
                    logits = _all_logits(unhooked.root, self.tokens)
                except ValueError:  # XGLM looks at the mask's shape before it uses it
                    continue
            if used:
                return logits
        raise _Differs(f"{type(attention).__name__} cannot be cut to compare with")

    def _logits(self, *hooks: tuple[str, Callable[..., Any]]) -> Tensor:
        with self.model.hooks(fwd_hooks=list(hooks)):
            return _all_logits(self.model.original_model, self.tokens)

    def _compare(self, found: Tensor, right: Tensor, what: str) -> None:
        """Raise if logits are not those of transformers, or are not moved where those are."""
        difference = float((found.float() - right.float()).abs().max())
        expected = self.expected[:, -right.shape[1] :] if right.ndim == 3 else self.expected[:, -1]
        moved = float((right.float() - expected.float()).abs().max())
        close = min(self.tolerance, moved / 2) if moved > self.tolerance / 8 else self.tolerance
        if not difference <= close:
            raise _Differs(f"{what} differ from those of transformers by {difference:.2g}")

    def _moved(self, found: Tensor, what: str) -> None:
        """Raise if an edit moved nothing, where there is nothing to compare it with."""
        if torch.equal(found, self.expected):
            raise _Differs(f"{what} moves nothing")

    def _unhooked(self) -> tuple[TransformersModules | None, tuple[int, ...]]:
        """Transformers' own modules, and what their blocks return (`_tuple_outputs`).

        None if they do not run as the model did before it was wrapped.
        """
        logits: list[Tensor] = []
        try:
            unhooked = TransformersModules(self.model)
            lengths = self._tuple_outputs(
                [unhooked.of(block) for block in self.model.blocks],
                lambda: logits.append(_all_logits(unhooked.root, self.tokens)),
            )
            self._compare(logits[0], self.expected, "logits")
        except Exception as error:  # then edits can only be seen to move something
            logger.info("the self-check has no unhooked model: %s", one_line(error))
            return None, ()
        return unhooked, lengths

    def _module(self, unhooked: TransformersModules | None, layer: int, name: str | None) -> Any:
        """Transformers' attention module of a layer, or its output projection."""
        attention = getattr(self.model.blocks[layer], "attn", None)
        component = attention if name is None else getattr(attention, name, None)
        if unhooked is None or component is None:
            return None
        return unhooked.of(component)

    def _layers_of_each_kind(self) -> list[int]:
        """The middle layer, and one more of every other make."""
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

    def _tuple_outputs(self, blocks: list[Any], run: Callable[[], Any]) -> tuple[int, ...]:
        """How many values each block returned as a tuple; 0 for a tensor. Runs ``run()``."""
        lengths = [0] * len(blocks)

        def note(layer: int) -> Callable[..., None]:
            def hook(module: Any, args: Any, output: Any) -> None:
                lengths[layer] = len(output) if isinstance(output, tuple) else 0

            return hook

        with ExitStack() as stack:
            for layer, block in enumerate(blocks):
                stack.callback(block.register_forward_hook(note(layer)).remove)
            run()
        return tuple(lengths)


class _Differs(Exception):
    """A part of the hooked model is not transformers'."""


def _all_logits(hf_model: Any, tokens: Tensor) -> Float[Tensor, "prompt pos d_vocab"]:
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return call_model(hf_model, tokens, mask, keep=tokens.shape[1])


def _edges(scores: Float[Tensor, "prompt head query key"]) -> Tensor:
    """The last head's edges from every query after the key to the key."""
    where = torch.zeros_like(scores, dtype=torch.bool)
    where[:, -1, KEY + 1 :, KEY] = True
    return where


@contextmanager
def _adding(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The module's input has something added."""

    def before(module: Any, args: tuple[Any, ...]) -> Any:
        return (args[0] + change(args[0]), *args[1:])

    handle = module.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _cutting_mask(attention: nn.Module, n_heads: int) -> Iterator[list[bool]]:
    """The attention's own mask cuts the edges; what is yielded stays empty if it takes no mask.

    Only an additive mask [prompt 1 query key] says without doubt what it does.
    """
    used: list[bool] = []

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 4 and mask.is_floating_point():
            mask = mask.expand(-1, n_heads, -1, -1)
            used.append(True)
            lowest = torch.finfo(mask.dtype).min
            return args, {**kwargs, "attention_mask": mask.masked_fill(_edges(mask), lowest)}
        return None

    handle = attention.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield used
    finally:
        handle.remove()


@contextmanager
def _cutting_softmax(attention: nn.Module, n_heads: int) -> Iterator[list[bool]]:
    """The edges are cut in what the attention takes its softmax of."""
    used: list[bool] = []
    running: list[Any] = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            scores = args[0] if args else None
            if getattr(func, "__name__", "") == "softmax" and isinstance(scores, Tensor):
                by_head = scores if scores.ndim == 4 else None
                if scores.ndim == 3 and scores.shape[0] % n_heads == 0:
                    by_head = scores.unflatten(0, (-1, n_heads))
                if by_head is not None and by_head.shape[1] == n_heads and not used:
                    used.append(True)
                    lowest = torch.finfo(scores.dtype).min
                    new = by_head.masked_fill(_edges(by_head), lowest)
                    args = (new.reshape(scores.shape), *args[1:])
            return func(*args, **(kwargs or {}))

    def enter(module: Any, args: Any) -> None:
        running.append(Mode())
        running[-1].__enter__()

    def leave(module: Any, args: Any, output: Any) -> None:
        running.pop().__exit__(None, None, None)

    with ExitStack() as stack:
        stack.callback(attention.register_forward_pre_hook(enter).remove)
        stack.callback(attention.register_forward_hook(leave).remove)
        try:
            yield used
        finally:
            while running:
                running.pop().__exit__(None, None, None)
