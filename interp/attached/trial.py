"""A trial of heads in a transformers model, before anything is attached.

Architectures differ, and a mask that a module drops would do nothing without a word. So a few
tokens run with one head cut, in the lowest constrained layer of each kind of attention: that head's
output must change where the cut acts, and nothing else may. The pass ends in that layer, and the
cut runs its attention alone.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.attached.anatomy import Anatomy
from interp.attached.sites import install
from interp.attached.state import AttachedState
from interp.errors import UserError
from interp.files.text import one_line
from interp.heads.headset import HeadSet
from interp.interventions.head_constraint import Constraint
from interp.models.call import evaluating
from interp.models.self_check import trial_tokens

Outputs = Float[Tensor, "prompt pos head d_head"]
"""What a layer's heads put out."""
MOST_ELSEWHERE = 0.1
"""How much may change outside the cut head, as a share of what changes in it."""
WEAKER = 0.1
"""The factor in the trial of mode ``scale``."""


@torch.no_grad()
def try_heads(hf_model: Any, anatomy: Anatomy, parts: Iterable[Constraint]) -> None:
    """Raise UserError for heads whose constraint would not act as it should."""
    row = trial_tokens(hf_model)
    tokens = torch.cat([row, row.flip(1)])
    with evaluating(hf_model):
        for part in parts:
            for layer, head in _first_of_each_kind(anatomy, part):
                plain, again = _heads_outputs(hf_model, anatomy, layer, tokens)
                if part.site == "attention":
                    options: Any = {"plain": plain, "again": again, "tokens": tokens}
                    _try_cut(hf_model, anatomy, part, head=(layer, head), **options)


def _first_of_each_kind(anatomy: Anatomy, part: Constraint) -> list[tuple[int, int]]:
    found: dict[type, tuple[int, int]] = {}
    for layer, head in sorted(part.heads):
        found.setdefault(type(anatomy.attention_of(layer)), (layer, head))
    return list(found.values())


class _Seen(Exception):
    """The pass has come as far as it is needed."""


def _heads_outputs(
    hf_model: Any, anatomy: Anatomy, layer: int, tokens: Int[Tensor, "prompt pos"]
) -> tuple[Outputs, Callable[[], Outputs]]:
    """What goes into the output projection, and a function that runs that attention again."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    seen: list[Tensor] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    def read(module: Any, args: tuple[Any, ...]) -> None:
        seen.append(args[0])
        raise _Seen

    def again() -> Outputs:
        args, kwargs = calls[0]
        seen.clear()
        with anatomy.projection(layer).register_forward_pre_hook(read), suppress(_Seen):
            attention(*args, **kwargs)
        return by_head()

    def by_head() -> Outputs:
        if len(seen) != 1 or seen[0].ndim != 3 or seen[0].shape[-1] % anatomy.n_heads:
            raise UserError(
                f"the heads of {type(hf_model).__name__} cannot be told apart before its output "
                "projection: constrain the hooked model instead (interp.load_model, "
                "interp.constrain)"
            )
        return seen[0].float().unflatten(-1, (anatomy.n_heads, -1))

    attention = anatomy.attention_of(layer)
    with (
        attention.register_forward_pre_hook(note, with_kwargs=True),
        anatomy.projection(layer).register_forward_pre_hook(read),
        suppress(_Seen),
    ):
        hf_model(input_ids=tokens, use_cache=False)
    return by_head(), again


def _try_cut(
    hf_model: Any,
    anatomy: Anatomy,
    part: Constraint,
    *,
    head: tuple[int, int],
    plain: Outputs,
    again: Callable[[], Outputs],
    tokens: Int[Tensor, "prompt pos"],
) -> None:
    _, index = head
    heads = HeadSet((head,), "attention")
    trial = Constraint(heads, "scale", WEAKER) if part.factor else Constraint(heads)
    state = AttachedState(_first_token, in_every_pass=[install(trial, anatomy)])
    problem = None
    with ExitStack() as stack:
        stack.callback(state.remove_hooks)
        state.begin(tokens, None, 0)
        try:
            moved = (again() - plain).abs()
        except UserError:
            raise
        except Exception as error:  # a module may do anything with a mask that it does not expect
            problem = f"{type(error).__name__}: {one_line(error)}"
        else:
            cut = float(moved[0, 1:, index].max())
            moved[0, 1:, index] = 0
            if not cut or float(moved.max()) > MOST_ELSEWHERE * cut:
                problem = "it changes nothing" if not cut else "it changes other heads too"
    if problem is not None:
        raise UserError(
            f"the attention of {type(hf_model).__name__} takes no mask by head, which site "
            f"'attention' needs ({problem}): use site 'output', or the hooked model "
            "(interp.constrain)"
        )


def _first_token(tokens: Tensor, mask: Tensor) -> Tensor:
    """The first token of the first prompt."""
    at = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
    at[0, 0] = True
    return at
