"""Hook points of attention that transformers itself computes: what is written there is used.

Where TransformerLens leaves attention to the transformers module (GPT-J, GPT-Neo, OPT, XGLM, Gemma
4, nanochat, Llama 4, Jamba and others), its ``hook_attn_scores`` and ``hook_pattern`` fire when the
module has finished: they show the pattern at both, and drop what a hook writes. Here they fire
where the module takes its softmax, on the scores that go in and on the pattern that comes out. The
softmax is seen by a torch function mode, so that it does not matter how a module is written, as
long as its attention is not fused: the model runs with eager attention.

While nothing stands on the two hook points the module runs as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

from interp.errors import UserError
from interp.models.hooked_model import HookedModel

Scores = Float[Tensor, "prompt head query key"]


def connect_attention_hooks(model: HookedModel) -> None:
    """Make the attention hook points of a bridge act wherever transformers computes attention."""
    for component in model.modules():
        if _is_left_to_transformers(component):
            component.__dict__["forward"] = _Forward(component)


def _is_left_to_transformers(component: Any) -> TypeGuard[AttentionBridge]:
    """Whether a component runs the wrapped attention module and shows its pattern afterwards."""
    if not isinstance(component, AttentionBridge) or component.original_component is None:
        return False
    if type(component).forward is not AttentionBridge.forward:
        return False
    inside = getattr(component.original_component, "accepts_pattern_fn", False)
    return not inside and not component.requires_relative_position_bias


class _Forward:
    """The forward of one attention component."""

    def __init__(self, component: AttentionBridge) -> None:
        self._component = component
        # The component would show the finished pattern at both hook points once more.
        component.__dict__["_fire_post_hoc_hook"] = lambda hook, tensor, hook_label: tensor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        component = self._component
        if not (_is_watched(component.hook_attn_scores) or _is_watched(component.hook_pattern)):
            return AttentionBridge.forward(component, *args, **kwargs)
        with _softmax_at(component):
            return AttentionBridge.forward(component, *args, **kwargs)


def _is_watched(point: Any) -> bool:
    return bool(point.fwd_hooks or point.bwd_hooks or point._forward_hooks)


@contextmanager
def _softmax_at(component: Any) -> Iterator[None]:
    """The first softmax over scores that runs while open passes the component's hook points.

    Raises:
        UserError: there was none, so that the hooks would have been left out.
    """
    mode = _SoftmaxMode(component)
    with mode:
        yield
    if not mode.done:
        raise UserError(
            f"{type(component.original_component).__name__} takes no softmax over "
            "[prompt head query key]: nothing can be read or written at its attention pattern"
        )


class _SoftmaxMode(TorchFunctionMode):
    """Runs the hook points around the attention's softmax."""

    def __init__(self, component: Any) -> None:
        super().__init__()
        self._component = component
        self._n_heads = int(component._get_n_heads())
        self.done = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.done or getattr(func, "__name__", "") not in ("softmax", "_softmax"):
            return func(*args, **kwargs)
        name = "input" if "input" in kwargs else None
        given = kwargs["input"] if name else args[0]
        scores = self._by_head(given)
        if scores is None:
            return func(*args, **kwargs)
        self.done = True
        shown = self._component.hook_attn_scores(scores).reshape(given.shape)
        if name:
            pattern = func(*args, **{**kwargs, "input": shown})
        else:
            pattern = func(shown, *args[1:], **kwargs)
        return self._component.hook_pattern(pattern.view(scores.shape)).reshape(given.shape)

    def _by_head(self, scores: Tensor) -> Tensor | None:
        """Scores as [prompt head query key]; None for a softmax over anything else."""
        if scores.ndim == 4 and scores.shape[1] == self._n_heads:
            return scores
        if scores.ndim == 3 and scores.shape[0] % self._n_heads == 0:
            return scores.unflatten(0, (-1, self._n_heads))
        return None
