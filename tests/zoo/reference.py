"""The right values, by transformers alone: plain forward hooks, eager attention, no cache.

Nothing here knows TransformerLens or the engine. Every effect is one whole forward pass with some
values replaced; first-order effects are autograd's own.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.anatomy import Anatomy
from tests.zoo.columns import Columns
from tests.zoo.watching import Edit, Watch

Place = tuple[str, int]
"""What, and in which layer."""
HEADS = ("z", "q", "pattern")
KEYS = ("k", "v")
RESIDUAL = ("resid_pre", "resid_mid", "resid_post")


class Reference:
    """A transformers model whose inner values are read and replaced, one prompt at a time."""

    def __init__(self, model: Any, attention: Sequence[int] | None = None) -> None:
        for module in model.modules():
            if hasattr(module, "_use_sdpa"):  # Falcon has made up its mind when it was made
                module._use_sdpa = False
        if hasattr(model, "set_attn_implementation"):
            model.set_attn_implementation("eager")
        self.model = model.eval()
        self.anatomy = Anatomy(model, attention)
        self.n_layers, self.n_heads = len(self.anatomy.layers), self.anatomy.n_heads
        self._columns: dict[int, Columns] = {}
        self._patterns: set[int] | None = None

    def logits(self, ids: Sequence[int], edits: Mapping[Place, Edit] | None = None, **more: Any):
        """The last logits [d_vocab] of one prompt, with some places edited."""
        tokens = torch.tensor([list(ids)])
        with self.editing(edits or {}):
            return self.model(input_ids=tokens, use_cache=False, **more).logits[0, -1].float()

    def read(self, ids: Sequence[int], places: Sequence[Place]) -> dict[Place, Tensor]:
        """The values at places in an unedited run."""
        found: dict[Place, Tensor] = {}
        edits = {place: keep(found, place) for place in places}
        with torch.no_grad():
            self.logits(ids, edits)
        if missing := [place for place in places if place not in found]:
            raise LookupError(f"{missing[0]} was not seen in the run")
        return {place: value.detach().clone() for place, value in found.items()}

    def greedy(
        self, ids: Sequence[int], count: int, edits: Mapping[Place, Edit] | None = None
    ) -> list[int]:
        """The likeliest tokens one by one, the whole text run anew for each, to the end token."""
        text, end = list(ids), 1
        with torch.no_grad():
            while len(text) < len(ids) + count and (len(text) == len(ids) or text[-1] != end):
                text.append(int(self.logits(text, edits).argmax()))
        return text[len(ids) :]

    def has(self, what: str, layer: int) -> bool:
        """Whether a layer has such a thing."""
        try:
            self.units(what, layer)
        except LookupError:
            return False
        return True

    def units(self, what: str, layer: int) -> int:
        """How many units of it a layer has. Raises LookupError where there are none."""
        if self.by_head(what, layer):
            return self.n_heads
        if what in KEYS or what == "q":
            return len(self.columns(layer).of(what))
        if what in HEADS:
            self.anatomy.attention(layer)
            if what == "pattern" and layer not in self._seen_patterns():
                raise LookupError(f"layer {layer} attends to other things than its positions")
            if what == "z":
                self.anatomy.into_out(layer)
            return self.n_heads
        self._modules(what, layer)
        return 1

    def by_head(self, what: str, layer: int) -> bool:
        """Whether these are keys or values [prompt head key width], made for every head."""
        return what in KEYS and self.anatomy.is_latent(layer)

    def _seen_patterns(self) -> set[int]:
        """The layers whose softmax over the positions can be watched."""
        if self._patterns is None:
            seen: set[int] = set()
            edits = {
                ("pattern", layer): lambda value, layer=layer: seen.add(layer)
                for layer in self.anatomy.with_heads
            }
            with torch.no_grad():
                self.logits(range(5, 11), edits)
            self._patterns = seen
        return self._patterns

    def columns(self, layer: int) -> Columns:
        """Where the heads' queries, keys and values stand in what projections give."""
        if layer not in self._columns:
            self._columns[layer] = Columns.found_in(self, layer)
        return self._columns[layer]

    def swap(self, what: str, layer: int, value: Tensor, unit: int, new: Tensor) -> Tensor:
        """``value`` with one unit's part of ``new``."""
        if what == "pattern" or self.by_head(what, layer):
            mine = torch.arange(value.shape[1]) == unit
            return torch.where(mine[None, :, None, None], new, value)
        if what == "z":
            flat, other = value.flatten(2), new.flatten(2)
            width = flat.shape[-1] // self.n_heads
            mine = torch.arange(flat.shape[-1]) // width == unit
            return torch.where(mine, other, flat).view_as(value)
        if what in ("q", *KEYS):
            at = self.columns(layer).of(what)[unit]
            return value.index_copy(-1, at, new[..., at])
        return new

    # Where edits act.

    def _modules(self, what: str, layer: int) -> list[Any]:
        parts = self.anatomy
        if what in ("resid_pre", "resid_post"):
            return [parts.layers[layer]]
        if what == "z":
            return [parts.into_out(layer)]
        if what == "attn_out":
            return [parts.attn_out(layer)]
        if what == "mlp_out":
            return parts.mlps(layer)
        if what == "resid_mid":
            return [parts.middle(layer)]
        if what in ("q", "k", "v"):
            return [parts.projection(what, layer)[0]]
        raise LookupError(what)

    @contextmanager
    def editing(self, edits: Mapping[Place, Edit]) -> Iterator[None]:
        """Edits at places, in force while the context is open.

        ``(name, layer)`` as in the engine; "mlp_out" of several modules acts on each of them, by
        ("mlp_out", layer) for the first and ("mlp_out.1", layer) for the second. ("write.2", layer)
        is the third of everything that writes into the residual stream.
        """
        scores = {layer: edit for (what, layer), edit in edits.items() if what == "scores"}
        patterns = {layer: edit for (what, layer), edit in edits.items() if what == "pattern"}
        watch = Watch(self.n_heads, scores, patterns)
        counting = self.model.register_forward_pre_hook(watch.count, with_kwargs=True)
        now: list[int | None] = [None]
        with ExitStack() as stack:
            stack.callback(counting.remove)
            for layer, block in enumerate(self.anatomy.layers):
                # Blocks may share modules (Zamba): an edit asks whose turn it is. Its own values
                # going in come first, so the turn is told before.
                stack.callback(block.register_forward_pre_hook(_tell(now, layer)).remove)
            if scores or patterns:
                for layer in {*scores, *patterns}:
                    attention = self.anatomy.attention(layer)
                    enter, leave = _turn(watch, now, layer)
                    stack.callback(attention.register_forward_pre_hook(enter).remove)
                    stack.callback(attention.register_forward_hook(leave).remove)
                stack.enter_context(watch)
            for (what, layer), edit in edits.items():
                if what not in ("scores", "pattern"):
                    stack.callback(self._hook(what, layer, edit, now).remove)
            yield

    def _hook(self, what: str, layer: int, edit: Edit, now: list[int | None]) -> Any:
        mine: Edit = lambda value: edit(value) if now[0] == layer else None  # noqa: E731
        name, _, index = what.partition(".")
        if self.by_head(name, layer):
            return _AtAttention(self.anatomy.attention(layer), KEYS.index(name), mine)
        if name == "write":
            module = self.anatomy.writers(layer)[int(index)]
        else:
            module = self._modules(name, layer)[int(index or 0)]
        if name in ("z", "resid_pre"):
            return module.register_forward_pre_hook(_before(mine), with_kwargs=True)
        if name == "resid_mid":
            return module.register_forward_pre_hook(_in_place(mine), with_kwargs=True)
        return module.register_forward_hook(_after(mine))


def keep(into: dict[Place, Tensor], place: Place) -> Edit:
    """An edit that only looks. Some models go on to change in place what they are given."""

    def look(value: Tensor) -> Tensor:
        into[place] = value
        return value.clone()

    return look


class _AtAttention:
    """An edit of the keys (0) or values (1) [prompt head key width] that attention is given.

    Latent attention has no module that returns them.
    """

    def __init__(self, attention: nn.Module, which: int, edit: Edit) -> None:
        self._home: Any = sys.modules[type(attention).__module__]
        self._before = self._home.eager_attention_forward

        def edited(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
            new = edit(args[which]) if module is attention else None
            if new is not None:
                args = (*args[:which], new, *args[which + 1 :])
            return self._before(module, query, *args, **kwargs)

        self._home.eager_attention_forward = edited

    def remove(self) -> None:
        self._home.eager_attention_forward = self._before


def _tell(now: list[int | None], layer: int) -> Callable[..., None]:
    def tell(*args: Any) -> None:
        now[0] = layer

    return tell


def _turn(watch: Watch, now: list[int | None], layer: int) -> tuple[Any, Any]:
    def enter(*args: Any) -> None:
        if now[0] == layer:
            watch.layer = layer

    def leave(*args: Any) -> None:
        if now[0] == layer:
            watch.layer = None

    return enter, leave


def _before(edit: Edit) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            new = edit(args[0])
            return None if new is None else ((new.clone(), *args[1:]), kwargs)
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        new = edit(kwargs[name])
        return None if new is None else (args, {**kwargs, name: new.clone()})

    return hook


def _in_place(edit: Edit) -> Callable[..., Any]:
    """What the block adds the MLP's output to is the very tensor that the norm is given."""

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        value = args[0] if args else kwargs["hidden_states"]
        new = edit(value.clone())
        if new is not None:
            value.copy_(new)

    return hook


def _after(edit: Edit) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        several = isinstance(output, tuple | list)
        new = edit(output[0] if several else output)
        if new is None:
            return None
        new = new.clone()
        return type(output)((new, *output[1:])) if several else new

    return hook
