"""TransformerLens 3: a `HookedTransformer` with the unchanged weights of a transformers model.

Its list of names lacks many models, so that the configuration is made from transformers' own
(`interp.models.hooked_config`) and the weights go through TransformerLens' converters; nothing is
folded or centred. The new parameters are views of the old where possible: the weights are in memory
once. The model then runs a few tokens, and its logits must be the transformers model's: a model
that TransformerLens 3 computes differently is refused.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformer_lens
from torch import Tensor, nn
from transformer_lens.pretrained import (  # pyright: ignore[reportMissingImports]
    weight_conversions,
)

from interp.errors import UserError
from interp.files.text import one_line
from interp.models.hooked_config import ARCHITECTURES, config_entries
from interp.models.hooked_model import HookedModel
from interp.models.transformers_face import TransformersFace
from interp.precision import agrees, widened
from interp.quantized import quantization_of

# Any, because type checkers see TransformerLens 4, which has neither.
HookedTransformer: Any = transformer_lens.HookedTransformer
HookedTransformerConfig: Any = transformer_lens.HookedTransformerConfig  # pyright: ignore[reportAttributeAccessIssue]

HOOKED_CLASS = HookedTransformer
TRIAL_TOKENS = 24


class FacedTransformer(HookedTransformer):
    """A `HookedTransformer` with ``original_model``, which is called as a transformers model."""

    @property
    def original_model(self) -> TransformersFace:
        """The face towards transformers; see `interp.models.transformers_face`."""
        return self.__dict__["face"]

    def input_to_embed(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens' embedding, with every token id real unless a mask says otherwise.

        If its tokenizer pads on the left, TransformerLens masks leading padding tokens, which may
        be the end-of-text token of a prompt, in ids that are given without a mask.
        """
        if isinstance(input, Tensor) and kwargs.get("attention_mask") is None:
            kwargs["attention_mask"] = torch.ones_like(torch.atleast_2d(input))
        return super().input_to_embed(input, *args, **kwargs)


def boot(
    hf_model: Any, tokenizer: Any, *, spec: str, device: torch.device, dtype: torch.dtype
) -> FacedTransformer:
    """The hooked model with the weights of a transformers model in evaluation mode.

    Raises:
        UserError: TransformerLens cannot hook this architecture.
    """
    architecture = type(hf_model).__name__
    if quantized := quantization_of(hf_model):
        raise UserError(
            f"TransformerLens 3 reads the weights of {architecture} into modules of its own, which "
            f"cannot be quantized ({quantized}): load the model without quantization, or install "
            "version 4 (pip install 'transformer-lens>=4,<5')"
        )
    tokenizer = copy.deepcopy(tokenizer)
    try:
        cfg = HookedTransformerConfig.from_dict(
            {
                **config_entries(hf_model.config, architecture),
                "model_name": spec,
                "device": str(device),
                "dtype": dtype,
                "init_weights": False,
                "default_prepend_bos": tokenizer.bos_token is not None,
                "tokenizer_prepends_bos": len(tokenizer.encode("")) > 0,
            }
        )
        model = FacedTransformer(cfg)
        convert = getattr(weight_conversions, ARCHITECTURES[architecture][1])
        state = {name: it.detach().to(device, dtype) for name, it in convert(hf_model, cfg).items()}
        _take_weights(model, state)
        # Masked scores become the lowest number, as in transformers, instead of minus infinity,
        # whose softmax over a row of padding, with nothing but masked scores, is undefined.
        for block in model.blocks:
            block.attn.IGNORE = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=device)
    except (
        *(ValueError, AssertionError, NotImplementedError),
        *(AttributeError, KeyError, RuntimeError),
    ) as error:
        raise UserError(
            f"TransformerLens 3 cannot hook {architecture}: {one_line(error)}"
        ) from error
    # Handed to the constructor, it would be made anew to begin every text with BOS.
    model.tokenizer = tokenizer
    config = copy.deepcopy(hf_model.config)
    config._attn_implementation = "eager"
    face = TransformersFace(model, config, copy.deepcopy(hf_model.generation_config))
    model.__dict__["face"] = face.eval()  # past nn.Module: each would be the other's submodule
    _check_logits(model, hf_model, architecture)
    return model


def _take_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Assign converted weights; only biases, which are then zero, may be missing among them."""
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    names = dict(model.named_parameters())
    left = [name for name in missing if name in names and not _is_bias(name)]
    if left or unexpected:
        raise ValueError(f"the weight {[*left, *unexpected][0]} has no counterpart")


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] in ("b", "b_U", "b_in", "b_out") or ".b_" in name


@torch.no_grad()
def _check_logits(model: FacedTransformer, hf_model: Any, architecture: str) -> None:
    """Raise UserError unless both models give the same logits on a few tokens."""
    cfg = model.cfg
    generator = torch.Generator().manual_seed(0)
    width = min(TRIAL_TOKENS, cfg.n_ctx)
    tokens = torch.randint(cfg.d_vocab, (1, width), generator=generator).to(cfg.device)
    try:
        expected = hf_model(input_ids=tokens).logits
    except Exception as error:  # sizes that contradict each other, say
        raise UserError(
            f"TransformerLens 3 cannot hook {architecture}, which transformers itself cannot run: "
            f"{one_line(error)}"
        ) from error
    if not bool(torch.isfinite(expected).all()):
        return  # nothing to compare with: whoever runs the model is told where it fails
    found = model.original_model(input_ids=tokens).logits
    # In float64 too: transformers takes norms in float32, TransformerLens does not.
    if not agrees(found, expected, torch.float32 if cfg.dtype == torch.float64 else cfg.dtype):
        difference = float((widened(found) - widened(expected)).abs().max())
        raise UserError(
            f"TransformerLens 3 does not compute this {architecture} as transformers does: logits "
            f"differ by {difference:.2g}; install version 4 (pip install 'transformer-lens>=4,<5')"
        )


@contextmanager
def before_each_pass(model: HookedModel, begin: Callable[..., None]) -> Iterator[None]:
    """`interp.models.bridge.before_each_pass`, for a `HookedTransformer`."""

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("input", args[0] if args else None)
        if kwargs.get("start_at_layer") is not None:
            given = None
        elif given is not None and not isinstance(given, Tensor):
            options = {
                name: kwargs[name] for name in ("prepend_bos", "padding_side") if name in kwargs
            }
            given = model.to_tokens(given, **options)
        tokens = None if given is None else torch.atleast_2d(given)
        mask, past = kwargs.get("attention_mask"), kwargs.get("past_kv_cache")
        begin(tokens, mask, 0 if past is None else past[0].past_keys.shape[1])

    with model.register_forward_pre_hook(hook, with_kwargs=True):
        yield
