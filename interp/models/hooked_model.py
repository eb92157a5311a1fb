"""`HookedModel`: what the toolkit asks of a model, whichever TransformerLens made it."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

if TYPE_CHECKING:

    @runtime_checkable
    class HookedModel(Protocol):
        """A `TransformerBridge` (TransformerLens 4) or a `HookedTransformer` (TransformerLens 3).

        ``tokenizer`` is the model's tokenizer, ``blocks`` are its layers in order, and
        ``original_model`` is called and generates as a transformers model does, on both.
        """

        tokenizer: Any
        training: bool

        @property
        def cfg(self) -> Any:
            """TransformerLens' configuration: ``n_layers``, ``n_heads``, ``d_head``, ..."""

        @property
        def hook_dict(self) -> Mapping[str, Any]:
            """The hook points by name, such as ``blocks.3.attn.hook_z``."""
            ...

        def hooks(
            self, fwd_hooks: list[Any] = ..., bwd_hooks: list[Any] = ...
        ) -> AbstractContextManager[Any]:
            """While open, the functions run at their hook points."""
            ...

        # As torch.nn.Module has them.
        # ruff: noqa: D102
        def parameters(self, recurse: bool = ...) -> Iterator[nn.Parameter]: ...
        def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
        def buffers(self, recurse: bool = ...) -> Iterator[Tensor]: ...
        def modules(self) -> Iterator[nn.Module]: ...
        def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...
        def state_dict(self, *, keep_vars: bool = ...) -> Mapping[str, Tensor]: ...
        def eval(self) -> Any: ...
        def train(self, mode: bool = ...) -> Any: ...
        def __getattr__(self, name: str) -> Any: ...
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

else:  # `check_hooked` tells what is none, in words; `interp.models.HookedModel` is the class
    HookedModel = Any
